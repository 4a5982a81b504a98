//! `cargo xtask simulate`: runs histories, and shows one that went wrong.
#![forbid(unsafe_code)]

mod cli;
#[cfg(feature = "mutants")]
mod mutants;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use simulations::history::play;
use simulations::kept;
use simulations::panics;
use simulations::plan::Plan;
use simulations::pool::Pool;
use simulations::run::{Run, Totals, differs, run};
use simulations::shrink::shrink;

use cli::Cli;

/// What a shell says of a program that was interrupted.
const INTERRUPTED: u8 = 130;

/// The command line or a file is wrong.
fn wrong(why: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("error: {why}");
    ExitCode::from(2)
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    panics::tell_with_their_history();
    #[cfg(feature = "mutants")]
    if let Some(status) = mutants::main(&cli) {
        return status;
    }
    match (cli.seed, &cli.replay) {
        (Some(seed), _) => show(seed, &cli),
        (None, Some(file)) => replay(file, cli.whole),
        (None, None) => many(&cli),
    }
}

fn replay(file: &Path, whole: bool) -> ExitCode {
    let all = match kept::read(file) {
        Ok(all) => all,
        Err(error) => return wrong(&error),
    };
    let pool = Pool::new();
    let mut failed = 0;
    for kept in &all {
        let ended = play(&kept.plan, &pool, whole);
        if let Some((guarantee, how)) = ended.broken {
            print!("{}", ended.lines);
            println!("seed {} ({}): {guarantee}: {how}", kept.plan.seed, kept.meaning);
            failed += 1;
        }
    }
    println!("{} kept histories, {failed} of them went wrong", all.len());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show(seed: u64, cli: &Cli) -> ExitCode {
    let pool = Pool::new();
    let plan = Plan::of(cli.scenario(), seed);
    let ended = play(&plan, &pool, true);
    if cli.whole {
        print!("{}", ended.lines);
    }
    if let Some(how) = differs(&plan, &ended, &pool) {
        println!("seed {seed}: determinism: {how}");
        return ExitCode::FAILURE;
    }
    let Some((guarantee, how)) = ended.broken.clone() else {
        println!("seed {seed}: nothing went wrong; trace {:016x}", ended.hash);
        return match &cli.keep {
            Some(file) => wrong(&format!("{}: nothing was kept, because nothing went wrong", file.display())),
            None => ExitCode::SUCCESS,
        };
    };
    if cli.whole {
        println!("seed {seed}: {guarantee}: {how}; trace {:016x}", ended.hash);
        return ExitCode::FAILURE;
    }
    let (short, end, played) = shrink(&plan, &guarantee, &pool, 400);
    if let (Some(file), Some(meaning)) = (&cli.keep, &cli.meaning)
        && let Err(error) = kept::add(file, meaning, &short)
    {
        return wrong(&error);
    }
    println!("{} members, min_copies {}, {}", short.members, short.min_copies, short.balance);
    print!("{}", end.lines);
    let now = end.broken.map_or_else(String::new, |(_, how)| how);
    println!(
        "seed {seed}: {guarantee}: {how}\nmade shorter from {} to {} operations and faults in {played} histories: {now}\ntrace {:016x}",
        plan.len(),
        short.len(),
        ended.hash
    );
    ExitCode::FAILURE
}

/// What is to be run, or why that cannot be.
fn asked(cli: &Cli, seeds: u64) -> Result<Run, String> {
    if cli.from.checked_add(seeds).is_none() {
        return Err(format!("there are no {seeds} seeds from {} on", cli.from));
    }
    Ok(Run {
        scenario: cli.scenario(),
        first: cli.from,
        seeds,
        except: cli.except.clone(),
        time: cli.time,
        threads: cli.threads(),
        go_on: cli.go_on,
    })
}

/// Set when the user interrupts this program, which then ends what it has begun; the second time it ends at once.
fn interruption() -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&interrupted);
    let handler = ctrlc::set_handler(move || {
        if told.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
    });
    if let Err(error) = handler {
        eprintln!("an interruption will show no figures: {error}");
    }
    interrupted
}

fn many(cli: &Cli) -> ExitCode {
    // A time alone is as many as begin within it.
    let seeds = cli.seeds.or(if cli.time.is_some() { None } else { Some(1000) });
    let what = match asked(cli, seeds.unwrap_or(u64::MAX - cli.from)) {
        Ok(what) => what,
        Err(why) => return wrong(&why),
    };
    let interrupted = interruption();
    let count = seeds.map_or_else(|| "all".into(), |n| n.to_string());
    println!("{count} seeds from {} on, {}, {} at once", what.first, what.scenario.name(), what.threads);
    let (bar, style) = match seeds {
        Some(n) => (ProgressBar::new(n), "{bar:30} {pos}/{len} seeds, {per_sec}, {eta} left, {msg}"),
        None => (ProgressBar::no_length(), "{spinner} {elapsed}, {pos} seeds, {per_sec}, {msg}"),
    };
    bar.set_style(ProgressStyle::with_template(style).expect("the template is right"));
    let started = Instant::now();
    let (totals, failures) = run(&what, &interrupted, |totals: &Totals| {
        bar.set_position(totals.histories);
        if totals.histories.is_multiple_of(16) {
            let calls: u64 = totals.calls.values().sum();
            let faults: u64 = totals.faulted.values().sum();
            bar.set_message(format!(
                "{calls} calls, {faults} faults, {} fault and function pairs",
                totals.faulted.len()
            ));
        }
    });
    bar.finish_and_clear();
    figures(&totals, started.elapsed());
    let missing = totals.coverage.missing();
    if cli.coverage || cli.require_coverage {
        print!("{}", totals.coverage);
    }
    for failure in &failures {
        println!("seed {}: {}: {}", failure.seed, failure.guarantee, failure.how);
        println!("    {}", cli.replays(failure.seed));
    }
    if !failures.is_empty() {
        return ExitCode::FAILURE;
    }
    if interrupted.load(Ordering::Relaxed) {
        println!("interrupted: the figures are of what was played until then");
        return ExitCode::from(INTERRUPTED);
    }
    if cli.require_coverage && !missing.is_empty() {
        println!("no seed reached:\n    {}", missing.join("\n    "));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn figures(totals: &Totals, took: Duration) {
    let calls: u64 = totals.calls.values().sum();
    let faults: u64 = totals.faulted.values().sum();
    let (reached, rows) = totals.coverage.count();
    println!(
        "{} histories in {:.1} s ({:.0} a second), {} operations and troubles, {calls} calls to members, {faults} of them made to fail \
         ({} fault and function pairs), {reached} of {rows} rows of the fault table and changes of health, {} changes of thread, \
         {:.0} hours of virtual time",
        totals.histories,
        took.as_secs_f64(),
        totals.histories as f64 / took.as_secs_f64().max(0.001),
        totals.planned,
        totals.faulted.len(),
        totals.switches,
        totals.time.as_secs_f64() / 3600.0
    );
}
