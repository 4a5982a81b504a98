//! `kills`: programs use a group of two SoftHSM tokens, all at once, and are killed (`SIGKILL`) at any moment, again and
//! again. What they had been told is noted outside of them, and compared with what is on the bare tokens: nothing that was
//! acknowledged is lost, nothing that was destroyed is back, and what was under way is whole or absent.
//!
//! | file | subject |
//! | --- | --- |
//! | `program` | a program that is killed: it does what it is told, one line each |
//! | `pen` | the programs from outside: started, told, killed |
//! | `noted` | what was acknowledged |
//! | `bare` | what is on the bare tokens |
//! | `run` | rounds of kills, and the comparison after each |
#![forbid(unsafe_code)]

mod bare;
mod noted;
mod pen;
mod program;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Kills programs that use a group of two SoftHSM tokens, and compares the tokens with what was acknowledged.
#[derive(Parser)]
#[command(name = "kills")]
struct Cli {
    /// How many kills.
    #[arg(long, default_value_t = 2000)]
    kills: u64,
    /// How many programs at once.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=16))]
    programs: u64,
    /// What is done, and when a program dies. Nearly so: the system has a say in it. Drawn unless told.
    #[arg(long)]
    seed: Option<u64>,
    /// Objects are copied, too: SoftHSM begins a copy with the names of what is copied, and one that its process did not live
    /// to finish is not told from that yet.
    #[arg(long)]
    copies: bool,
    /// This process is such a program, with this configuration.
    #[arg(long, hide = true)]
    program: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.program {
        Some(config) => program::serve(config),
        None => run::run(&run::Options {
            kills: cli.kills,
            programs: cli.programs as usize,
            copies: cli.copies,
            seed: cli.seed.unwrap_or_else(|| fastrand::u64(..1 << 32)),
        }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kills: {error:#}");
            ExitCode::FAILURE
        }
    }
}
