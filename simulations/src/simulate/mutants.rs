//! The seeded bugs, one after the other, each in a process of its own: one that makes the process die is seen as that.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::Instant;

use clap::Args;
use ha_core::mutants::{Mutant, switch};
use serde::{Deserialize, Serialize};
use simulations::history::play;
use simulations::plan::Plan;
use simulations::pool::Pool;
use simulations::run::{Failure, run};
use simulations::scenario::Scenario;

use crate::cli::Cli;
use crate::{INTERRUPTED, asked, interruption, wrong};

/// What a process that aborts dies by, on every system.
const SIGABRT: i32 = 6;
/// How many seeds a seeded bug may take to be caught.
const SEEDS: u64 = 20_000;

/// What a build with seeded bugs is asked besides.
#[derive(Args)]
pub(crate) struct Seeded {
    /// Runs the seeded bugs, one after the other, and says which oracle caught each after how many seeds.
    #[arg(long, conflicts_with_all = ["mutant", "seed", "whole", "keep", "meaning", "replay", "go_on", "coverage", "require_coverage"])]
    mutants: bool,
    /// Only the seeded bugs with this in their name.
    #[arg(long, value_name = "TEXT", requires = "mutants")]
    named: Option<String>,
    /// Plays with this seeded bug.
    #[arg(long, value_name = "NAME", value_parser = mutant)]
    pub(crate) mutant: Option<Mutant>,
    /// Answers the run with --mutants that has started this one.
    #[arg(long, hide = true, requires = "mutant", conflicts_with = "seed")]
    answer: bool,
}

fn mutant(name: &str) -> Result<Mutant, String> {
    let found = named(name).into_iter().find(|m| format!("{m:?}") == name);
    found.ok_or_else(|| format!("there are {}", names()))
}

/// Those with this in their name.
fn named(text: &str) -> Vec<Mutant> {
    Mutant::ALL.iter().copied().filter(|m| format!("{m:?}").contains(text)).collect()
}

fn names() -> String {
    Mutant::ALL.iter().map(|m| format!("{m:?}")).collect::<Vec<_>>().join(", ")
}

/// Where a seeded bug shows soonest: of some there is too little in `everything`.
pub(crate) fn shows_in(mutant: Mutant) -> Scenario {
    use Mutant::*;
    match mutant {
        DeadlineIgnored | NoAnswerIsCallers | StuckSessionUsed | LateSessionKept | LateObjectKept
        | HangingTakenBack | LatePinTried | HungIsAskedAgain | LateChangeUntold | LateWritesNotAwaited => {
            Scenario::Hangs
        }
        UncertainDestructionForgotten
        | OnTheirWayTaken
        | CatchUpNotAlone
        | NameStaysOnHandle
        | RenamedIsAbsent
        | RenamedTwinTaken
        | AnyTypeIsCandidate
        | DyingIsCandidate
        | UndecidedMade
        | LostOwnerKept
        | GoneIsAskedFor
        | DoneIsMadeAgain
        | LeavingsNotSought
        | SettledUntold
        | LostGroupKeysBelieved
        | IdleNotProbed
        | ReplacedBlamed
        | KeeperNotWoken => Scenario::Corners,
        InabilityBelieved | OtherVisitBelieved | UndecidedNotTried => Scenario::Restless,
        WrongSignatureHandedOut | LiarNotQuarantined => Scenario::Liars,
        SessionObjectNotSought | SessionObjectStaysStale => Scenario::SessionObjects,
        RefusedChangeStays => Scenario::Crashes,
        MarkerNotRead | SettledForgotten => Scenario::SetBacks,
        LeaverTakesSessionObjects => Scenario::Joins,
        _ => Scenario::Everything,
    }
}

/// What came of the run with one seeded bug.
#[derive(Serialize, Deserialize)]
struct Answer {
    histories: u64,
    failure: Option<Failure>,
}

/// Does what was asked of the seeded bugs, if that is all; one that the rest is to be done with is switched on.
pub(crate) fn main(cli: &Cli) -> Option<ExitCode> {
    switch(cli.seeded.mutant);
    if cli.seeded.mutants {
        Some(all(cli))
    } else if cli.seeded.answer {
        Some(answer(cli))
    } else {
        None
    }
}

fn answer(cli: &Cli) -> ExitCode {
    let mut what = match asked(cli, cli.seeds.unwrap_or(SEEDS)) {
        Ok(what) => what,
        Err(why) => return wrong(&why),
    };
    let (mutant, interrupted, pool) = (cli.seeded.mutant, interruption(), Pool::new());
    let mut answer = Answer { histories: 0, failure: None };
    while what.seeds > 0 {
        switch(mutant);
        let (totals, failures) = run(&what, &interrupted, |_| ());
        answer.histories += totals.histories;
        let Some(failure) = failures.into_iter().next() else { break };
        // What goes wrong without the seeded bug is not its doing.
        switch(None);
        let done = failure.seed + 1 - what.first;
        if play(&Plan::of(cli.scenario(), failure.seed), &pool, false).broken.is_none() {
            answer.failure = Some(failure);
            break;
        }
        what.first += done;
        what.seeds -= done;
    }
    println!("{}", serde_json::to_string(&answer).expect("an answer is numbers and text"));
    ExitCode::SUCCESS
}

/// Runs this program with one seeded bug. What it answers, or how it ended instead.
fn ask(cli: &Cli, mutant: Mutant) -> Result<Answer, String> {
    let mut child = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
    child.args([
        "--answer",
        "--mutant",
        &format!("{mutant:?}"),
        "--scenario",
        &cli.scenario_of(mutant).name(),
    ]);
    child.args(["--from", &cli.from.to_string(), "--seeds", &cli.seeds.unwrap_or(SEEDS).to_string()]);
    child.args(["--jobs", &cli.threads().to_string()]);
    if let Some(time) = cli.time {
        child.args(["--time", &format!("{}s", time.as_secs())]);
    }
    heard(&child.stderr(Stdio::inherit()).output().map_err(|e| e.to_string())?)
}

fn heard(child: &Output) -> Result<Answer, String> {
    match child.status.signal() {
        Some(SIGABRT) => Err("SIGABRT".into()),
        Some(signal) => Err(format!("signal {signal}")),
        None => serde_json::from_slice(&child.stdout).map_err(|_| child.status.to_string()),
    }
}

fn all(cli: &Cli) -> ExitCode {
    let text = cli.seeded.named.as_deref().unwrap_or_default();
    let chosen = named(text);
    if chosen.is_empty() {
        return wrong(&format!("no seeded bug has {text:?} in its name; there are {}", names()));
    }
    if let Err(why) = asked(cli, cli.seeds.unwrap_or(SEEDS)) {
        return wrong(&why);
    }
    let interrupted = interruption();
    let (mut run, mut missed, mut died) = (0, 0, 0);
    println!(
        "{:<30} {:<11} {:<11} {:>8} {:>8}  what is wrong",
        "seeded bug", "played in", "caught by", "seeds", "seconds"
    );
    for mutant in chosen {
        let started = Instant::now();
        let answer = ask(cli, mutant);
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        run += 1;
        let (by, seeds) = match answer {
            Ok(Answer { failure: Some(failure), .. }) => {
                (failure.guarantee, (failure.seed - cli.from + 1).to_string())
            }
            Ok(Answer { histories, failure: None }) => {
                missed += 1;
                ("nobody".into(), histories.to_string())
            }
            Err(how) => {
                died += 1;
                (how, "-".into())
            }
        };
        println!(
            "{:<30} {:<11} {by:<11} {seeds:>8} {:>8.1}  {}",
            format!("{mutant:?}"),
            cli.scenario_of(mutant).name(),
            started.elapsed().as_secs_f64(),
            mutant.what()
        );
    }
    println!(
        "{run} seeded bugs, {missed} not caught, {died} that ended the process before an oracle saw them"
    );
    if interrupted.load(Ordering::Relaxed) {
        println!("interrupted: the others were not played");
        return ExitCode::from(INTERRUPTED);
    }
    if missed + died == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn how_a_process_died_is_said_instead_of_an_answer() {
        let heard = |status, stdout: &str| {
            heard(&Output { status: ExitStatus::from_raw(status), stdout: stdout.into(), stderr: Vec::new() })
        };
        assert_eq!(heard(0, "{\"histories\":3,\"failure\":null}").map(|a| a.histories), Ok(3));
        assert_eq!(heard(6, "").map(|a| a.histories), Err("SIGABRT".into()));
        assert_eq!(heard(9, "").map(|a| a.histories), Err("signal 9".into()));
        assert_eq!(heard(101 << 8, "").map(|a| a.histories), Err("exit status: 101".into()));
    }
}
