//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use simulations::scenario::Scenario;

const STATUS: &str = "Exit status: 0 nothing went wrong; 1 something did, or --require-coverage was not met; 2 the command line \
                      or a file is wrong; 130 interrupted, and the figures are of what was played until then.";

/// Runs the real core under seeds, over simulated tokens that fail.
#[derive(Parser)]
#[command(name = "cargo xtask simulate", after_help = STATUS)]
pub(crate) struct Cli {
    /// How many histories. Unless told 1000; with --time as many as begin within it; for each seeded bug 20000.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seeds: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    pub(crate) from: u64,
    /// Seeds that are left out, as 3,5,7: faults that are known and not mended yet.
    #[arg(long, value_delimiter = ',')]
    pub(crate) except: Vec<u64>,
    /// What is played. Unless told everything; a seeded bug where it shows soonest.
    #[arg(long, value_name = "NAME")]
    scenario: Option<Scenario>,
    /// Begins no history after this long, as 90s, 5m or 2h.
    #[arg(long, value_parser = duration)]
    pub(crate) time: Option<Duration>,
    /// How many histories at once; as many as there are cores unless told.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) jobs: Option<u16>,
    /// Goes on after a history that went wrong.
    #[arg(long)]
    pub(crate) go_on: bool,
    /// Shows how often each row of the fault table and each change of a member's health was reached.
    #[arg(long)]
    pub(crate) coverage: bool,
    /// The same, and one that was never reached is a failure.
    #[arg(long)]
    pub(crate) require_coverage: bool,
    /// Plays this seed alone, twice, and shows what happened.
    #[arg(long, conflicts_with_all = ["seeds", "from", "except", "time", "jobs", "go_on", "coverage", "require_coverage"])]
    pub(crate) seed: Option<u64>,
    /// Shows the whole history of --seed, not made shorter, or those of --replay that went wrong.
    #[arg(long, requires = "seed", conflicts_with = "keep")]
    pub(crate) whole: bool,
    /// Adds the history of --seed, made short, to this file, with --meaning.
    #[arg(long, value_name = "FILE", requires_all = ["seed", "meaning"])]
    pub(crate) keep: Option<PathBuf>,
    /// What was wrong in a history that is kept.
    #[arg(long, requires = "keep")]
    pub(crate) meaning: Option<String>,
    /// Plays the histories that are kept in this file.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["seed", "keep", "meaning", "seeds", "from", "except", "scenario", "time", "jobs", "go_on", "coverage", "require_coverage"]
    )]
    pub(crate) replay: Option<PathBuf>,
    #[cfg(feature = "mutants")]
    #[command(flatten)]
    pub(crate) seeded: crate::mutants::Seeded,
}

impl Cli {
    /// What is played.
    pub(crate) fn scenario(&self) -> Scenario {
        #[cfg(feature = "mutants")]
        if let Some(mutant) = self.seeded.mutant {
            return self.scenario_of(mutant);
        }
        self.scenario.unwrap_or(Scenario::Everything)
    }

    /// Where a seeded bug is played.
    #[cfg(feature = "mutants")]
    pub(crate) fn scenario_of(&self, mutant: ha_core::mutants::Mutant) -> Scenario {
        self.scenario.unwrap_or_else(|| crate::mutants::shows_in(mutant))
    }

    /// How many histories are played at once.
    pub(crate) fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.jobs.map_or_else(cores, usize::from)
    }

    /// The command that plays a seed of this run again, as this build plays it.
    pub(crate) fn replays(&self, seed: u64) -> String {
        let mut command = "cargo xtask simulate".to_owned();
        #[cfg(feature = "mutants")]
        if let Some(mutant) = self.seeded.mutant {
            command = format!("cargo xtask mutants --mutant {mutant:?}");
        }
        if self.scenario() != Scenario::Everything {
            command += &format!(" --scenario {}", self.scenario().name());
        }
        format!("{command} --seed {seed}")
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: a number with s, m or h is wanted");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let number: u64 = text.strip_suffix(unit).and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(wrong()),
    };
    let time = number.checked_mul(seconds).ok_or_else(|| format!("{text:?} is too long a time"))?;
    Ok(Duration::from_secs(time))
}
