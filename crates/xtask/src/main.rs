//! `cargo xtask demo` and `cargo xtask test`: each does its own set-up and then runs.

mod demo;
mod load;
mod setup;

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
    Simulate {
        /// Given on to the simulation.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The seeded bugs, each with the oracle that caught it and after how many seeds.
    Mutants {
        /// Given on to the simulation.
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
        Verb::Simulate { arguments } => simulate(&arguments),
        Verb::Mutants { arguments } => mutants(&arguments),
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

/// Runs a cargo command of this workspace.
fn cargo(arguments: &[&str]) -> Result<()> {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(arguments)
        .status()
        .context("cargo cannot be run")?;
    if !status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
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

/// Histories that go wrong and are not mended yet. The list is to become empty.
const OPEN: &str = "162,541,693,1031";

fn test(arguments: &[String]) -> Result<()> {
    // Tests load the module and run the command: both are built first. Simulations have a library of their own, built so
    // that its threads take turns; what is tested here is what is shipped.
    cargo(&["build"])?;
    let mut all = vec!["test", "--workspace", "--exclude", "simulations"];
    all.extend(arguments.iter().map(String::as_str));
    cargo(&all)?;
    let mut simulations = vec!["test", "--profile", "simulation", "--package", "simulations"];
    simulations.extend(arguments.iter().map(String::as_str));
    cargo(&simulations)?;
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/../../simulations/kept.jsonl");
    simulate(&["--replay", kept].map(String::from))?;
    simulate(&["--seeds", "1500", "--except", OPEN].map(String::from))
}

fn mutants(arguments: &[String]) -> Result<()> {
    let mut all = vec!["run", "--quiet", "--profile", "simulation", "--package", "simulations"];
    all.extend(["--features", "mutants", "--", "--mutants", "--seeds", "20000"]);
    all.extend(arguments.iter().map(String::as_str));
    cargo(&all)
}

fn simulate(arguments: &[String]) -> Result<()> {
    let mut all = vec!["run", "--quiet", "--profile", "simulation", "--package", "simulations", "--"];
    all.extend(arguments.iter().map(String::as_str));
    cargo(&all)
}
