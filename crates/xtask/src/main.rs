//! The project's own commands: the demo, every test, the published tests of others, and the simulation with its seeded bugs.
//! Each does its own set-up.

mod demo;
mod load;
mod setup;

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// The main job, shown: two SoftHSM tokens are one, and one of them dies under load.
    Demo,
    /// The demo's load, in a process of its own.
    #[command(hide = true)]
    Load {
        /// The PKCS#11 module.
        module: std::path::PathBuf,
    },
    /// Every test of the workspace.
    Test {
        /// Given on to `cargo test`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The real core under seeds, over simulated tokens that fail: `cargo xtask simulate --help` says how.
    #[command(disable_help_flag = true)]
    Simulate {
        /// Given on to the simulation.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The seeded bugs, each with the oracle that caught it and after how many seeds.
    #[command(disable_help_flag = true)]
    Mutants {
        /// Given on to the simulation.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Programs that use a group of two SoftHSM tokens are killed again and again, and the tokens compared with what was
    /// acknowledged: `cargo xtask kills --help` says how.
    #[command(disable_help_flag = true)]
    Kills {
        /// Given on to the command.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The published tests of other projects, on a bare token and through the slot: needs the network.
    Published,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Demo => setup::ensure(&[setup::DEMO]).and_then(|()| demo::run()),
        Verb::Load { module } => load::run(&module, "demo-ec", 4),
        Verb::Test { arguments } => {
            setup::ensure(&[setup::DEMO, setup::TEST]).and_then(|()| test(&arguments))
        }
        Verb::Simulate { arguments } => become_simulation(&[], &arguments),
        Verb::Mutants { arguments } => become_simulation(&["mutants"], &mutants(arguments)),
        Verb::Kills { arguments } => setup::ensure(&[setup::DEMO]).and_then(|()| kills(&arguments)),
        Verb::Published => setup::ensure(&[setup::DEMO, setup::PUBLISHED]).and_then(|()| published()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(if error.is::<setup::Missing>() { 2 } else { 1 })
        }
    }
}

fn kills(arguments: &[String]) -> Result<()> {
    let mut all: Vec<String> = ["run", "--quiet", "--package", "ha-kills", "--"].map(String::from).into();
    all.extend(arguments.iter().cloned());
    cargo(&all)
}

/// Runs a cargo command of this workspace.
fn cargo<S: AsRef<str>>(arguments: &[S]) -> Result<()> {
    run(Command::new(program()), arguments)
}

fn run<S: AsRef<str>>(mut cargo: Command, arguments: &[S]) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
    let status = cargo.args(&arguments).status().context("cargo cannot be run")?;
    if !status.success() {
        // A signal is named too: what aborts has said nothing of itself.
        bail!("cargo {} failed ({status})", arguments.join(" "));
    }
    Ok(())
}

fn program() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn published() -> Result<()> {
    cargo(&["build", "--package", "ha-module"])?;
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    for script in ["ha-core/tests/api_published.sh", "ha-module/tests/python_pkcs11.sh"] {
        eprintln!("{script}");
        let status = Command::new("sh").arg(script).current_dir(root).status().context("sh cannot be run")?;
        if !status.success() {
            bail!("{script} found differences");
        }
    }
    Ok(())
}

fn test(arguments: &[String]) -> Result<()> {
    // Tests load the module and run the command: both are built first. Simulations have a library of their own, built so
    // that its threads take turns; what is tested here is what is shipped.
    cargo(&["build"])?;
    let mut all = vec!["test", "--workspace", "--exclude", "simulations"];
    all.extend(arguments.iter().map(String::as_str));
    cargo(&all)?;
    // Most tests call members directly, to the benefit of their traces; these are run with lanes between, too.
    let mut on_lanes = vec!["test", "--package", "ha-core"];
    for test in
        ["reference", "limits", "mechanisms", "session_rules", "replication", "returning", "uncertain"]
    {
        on_lanes.extend(["--test", test]);
    }
    on_lanes.extend(arguments.iter().map(String::as_str));
    let mut with_deadline = Command::new(program());
    with_deadline.env("HA_TEST_DEADLINE", "10s");
    run(with_deadline, &on_lanes)?;
    let mut simulations = vec!["test", "--profile", "simulation", "--package", "simulations"];
    simulations.extend(arguments.iter().map(String::as_str));
    cargo(&simulations)?;
    // The same core that simulations play, where no thread takes turns.
    let mut core = vec!["test", "--package", "ha-core", "--features", "simulation", "--lib"];
    core.extend(arguments.iter().map(String::as_str));
    cargo(&core)?;
    // Seeded bugs are in a build of their own, which has tests of its own.
    let mut seeded =
        vec!["test", "--profile", "simulation", "--package", "simulations", "--features", "mutants"];
    seeded.extend(["--bin", "simulate", "--test", "command"]);
    seeded.extend(arguments.iter().map(String::as_str));
    cargo(&seeded)?;
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/../../simulations/kept.jsonl");
    // As many as are known to be clean.
    for arguments in [&["--replay", kept][..], &["--seeds", "18000", "--time", "3m"]] {
        cargo(&simulation(&[], &arguments.iter().map(ToString::to_string).collect::<Vec<_>>()))?;
    }
    Ok(())
}

/// The arguments that cargo runs the simulation with.
fn simulation(features: &[&str], arguments: &[String]) -> Vec<String> {
    let mut all: Vec<String> =
        ["run", "--quiet", "--profile", "simulation", "--package", "simulations"].map(String::from).into();
    for feature in features {
        all.extend(["--features", feature].map(String::from));
    }
    all.push("--".into());
    all.extend(arguments.iter().cloned());
    all
}

/// The seeded bugs one after the other, unless one of them is named to be played alone.
fn mutants(arguments: Vec<String>) -> Vec<String> {
    let one = arguments.iter().any(|a| a == "--mutant" || a.starts_with("--mutant="));
    let all = (!one).then(|| "--mutants".to_owned());
    all.into_iter().chain(arguments).collect()
}

/// This process becomes the simulation's: what it is told by the terminal, and its exit status, are the simulation's own.
fn become_simulation(features: &[&str], arguments: &[String]) -> Result<()> {
    let mut command = Command::new(program());
    Err(command.args(simulation(features, arguments)).exec()).context("cargo cannot be run")
}
