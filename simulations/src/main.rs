//! `cargo xtask simulate`: runs histories, and shows one that went wrong.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use simulations::history::play;
use simulations::kept;
use simulations::plan::Plan;
use simulations::pool::Pool;
use simulations::run::{Run, Totals, run};
use simulations::shrink::shrink;

/// Runs the real core under seeds, over simulated tokens that fail.
#[derive(Parser)]
#[command(name = "cargo xtask simulate", args_override_self = true)]
struct Cli {
    /// How many histories.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Seeds that are left out, as 3,5,7: faults that are known and not mended yet.
    #[arg(long, value_delimiter = ',')]
    except: Vec<u64>,
    /// Plays this seed alone, and shows what happened.
    #[arg(long)]
    seed: Option<u64>,
    /// Begins no history after this long, as 90s, 5m or 2h.
    #[arg(long, value_parser = duration)]
    time: Option<Duration>,
    /// How many histories at once; as many as there are cores unless told.
    #[arg(long)]
    jobs: Option<usize>,
    /// Goes on after a history that went wrong.
    #[arg(long)]
    go_on: bool,
    /// Shows the whole history of --seed, not made shorter.
    #[arg(long)]
    whole: bool,
    /// Adds the history of --seed, made short, to this file, with --meaning.
    #[arg(long, requires_all = ["seed", "meaning"])]
    keep: Option<PathBuf>,
    /// What was wrong in a history that is kept.
    #[arg(long)]
    meaning: Option<String>,
    /// Runs the seeded bugs, one after the other, and says which oracle caught each after how many seeds.
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutants: bool,
    /// Only the seeded bugs with this in their name.
    #[cfg(feature = "mutants")]
    #[arg(long, default_value = "")]
    named: String,
    /// Plays the histories that are kept in this file.
    #[arg(long, conflicts_with = "seed")]
    replay: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: a number with s, m or h is wanted");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let number: u64 = text.strip_suffix(unit).and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
    match unit {
        's' => Ok(Duration::from_secs(number)),
        'm' => Ok(Duration::from_secs(60 * number)),
        'h' => Ok(Duration::from_secs(3600 * number)),
        _ => Err(wrong()),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Threads of a simulation are stopped by unwinding them, which is nothing to tell anybody.
    std::panic::set_hook(Box::new(|_| {}));
    #[cfg(feature = "mutants")]
    if cli.mutants {
        return mutants(&cli);
    }
    match (cli.seed, &cli.replay) {
        (Some(seed), _) => show(seed, &cli),
        (None, Some(file)) => replay(file),
        (None, None) => many(&cli),
    }
}

fn replay(file: &Path) -> ExitCode {
    let all = match kept::read(file) {
        Ok(all) => all,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let pool = Pool::new();
    let mut wrong = 0;
    for kept in &all {
        if let Some((guarantee, how)) = play(&kept.plan, &pool, false).broken {
            println!("seed {} ({}): {guarantee}: {how}", kept.plan.seed, kept.meaning);
            wrong += 1;
        }
    }
    println!("{} kept histories, {wrong} of them went wrong", all.len());
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show(seed: u64, cli: &Cli) -> ExitCode {
    let pool = Pool::new();
    let plan = Plan::new(seed);
    let ended = play(&plan, &pool, true);
    let Some((guarantee, how)) = ended.broken.clone() else {
        if cli.whole {
            print!("{}", ended.lines);
        }
        println!("seed {seed}: nothing went wrong; trace {:016x}", ended.hash);
        return ExitCode::SUCCESS;
    };
    if cli.whole {
        print!("{}", ended.lines);
        println!("seed {seed}: {guarantee}: {how}; trace {:016x}", ended.hash);
        return ExitCode::FAILURE;
    }
    let (short, end, played) = shrink(&plan, &guarantee, &pool, 400);
    if let (Some(file), Some(meaning)) = (&cli.keep, &cli.meaning)
        && let Err(error) = kept::add(file, meaning, &short)
    {
        eprintln!("{error}");
        return ExitCode::from(2);
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

#[cfg(feature = "mutants")]
fn mutants(cli: &Cli) -> ExitCode {
    use ha_core::mutants::{Mutant, switch};
    let threads = cli.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let mut missed = 0;
    println!("{:<30} {:<10} {:>8} {:>8}  what is wrong", "seeded bug", "caught by", "seeds", "seconds");
    for mutant in Mutant::ALL.iter().filter(|m| format!("{m:?}").contains(&cli.named)) {
        switch(Some(*mutant));
        let what = Run {
            first: cli.from,
            seeds: cli.seeds,
            except: cli.except.clone(),
            time: cli.time,
            threads,
            go_on: false,
        };
        let started = Instant::now();
        let (totals, failures) = run(&what, &AtomicBool::new(false), |_| ());
        let (by, seeds) = match failures.first() {
            Some(failure) => (failure.guarantee.as_str(), failure.seed - cli.from + 1),
            None => ("nobody", totals.histories),
        };
        missed += usize::from(failures.is_empty());
        println!(
            "{:<30} {by:<10} {seeds:>8} {:>8.1} {}",
            format!("{mutant:?}"),
            started.elapsed().as_secs_f64(),
            mutant.what()
        );
    }
    switch(None);
    println!("{} seeded bugs, {missed} not caught", Mutant::ALL.len());
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn many(cli: &Cli) -> ExitCode {
    let threads = cli.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let what = Run {
        first: cli.from,
        seeds: cli.seeds,
        except: cli.except.clone(),
        time: cli.time,
        threads,
        go_on: cli.go_on,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let interrupted = Arc::new(AtomicBool::new(false));
    let (stopping, told) = (Arc::clone(&stop), Arc::clone(&interrupted));
    let handler = ctrlc::set_handler(move || {
        told.store(true, Ordering::Relaxed);
        stopping.store(true, Ordering::Relaxed);
    });
    if let Err(error) = handler {
        eprintln!("an interruption will show no figures: {error}");
    }
    let bar = ProgressBar::new(cli.seeds);
    let style = "{bar:30} {pos}/{len} seeds, {per_sec}, {eta} left, {msg}";
    bar.set_style(ProgressStyle::with_template(style).expect("the template is right"));
    let started = Instant::now();
    let (totals, failures) = run(&what, &stop, |totals: &Totals| {
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
    for failure in &failures {
        println!("seed {}: {}: {}", failure.seed, failure.guarantee, failure.how);
        println!("    cargo xtask simulate --seed {}", failure.seed);
    }
    if interrupted.load(Ordering::Relaxed) {
        println!("interrupted: the figures are of what was run until then");
        return ExitCode::FAILURE;
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn figures(totals: &Totals, took: Duration) {
    let calls: u64 = totals.calls.values().sum();
    let faults: u64 = totals.faulted.values().sum();
    println!(
        "{} histories in {:.1} s ({:.0} a second), {} operations and troubles, {calls} calls to members, {faults} of them made to fail \
         ({} fault and function pairs), {} changes of thread, {:.0} hours of virtual time",
        totals.histories,
        took.as_secs_f64(),
        totals.histories as f64 / took.as_secs_f64().max(0.001),
        totals.planned,
        totals.faulted.len(),
        totals.switches,
        totals.time.as_secs_f64() / 3600.0
    );
}
