//! Many histories, on every core, and what they reached together.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ha_token::{Function, Rv};
use serde::{Deserialize, Serialize};

use crate::cores::keep_to;
use crate::coverage::Coverage;
use crate::history::{Ended, play};
use crate::plan::Plan;
use crate::pool::Pool;
use crate::scenario::Scenario;

/// Every so many seeds one is played twice.
const TWICE: u64 = 50;

/// What to run.
#[derive(Clone, Debug)]
pub struct Run {
    /// The mix of what happens.
    pub scenario: Scenario,
    /// The first seed.
    pub first: u64,
    /// How many.
    pub seeds: u64,
    /// Seeds that are left out.
    pub except: Vec<u64>,
    /// No new one is begun after this long.
    pub time: Option<Duration>,
    /// How many at once.
    pub threads: usize,
    /// Goes on after a failure.
    pub go_on: bool,
}

/// What was reached.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Histories.
    pub histories: u64,
    /// Operations of the application, and troubles, that were planned.
    pub planned: u64,
    /// Calls to members.
    pub calls: BTreeMap<Function, u64>,
    /// Calls that were made to fail.
    pub faulted: BTreeMap<(Function, Rv), u64>,
    /// Virtual time.
    pub time: Duration,
    /// How often another thread went on.
    pub switches: u64,
    /// Rows of the core's tables.
    pub coverage: Coverage,
}

impl Totals {
    fn add(&mut self, plan: &Plan, ended: &Ended) {
        self.histories += 1;
        self.planned += plan.len() as u64;
        for (function, n) in &ended.calls {
            *self.calls.entry(*function).or_default() += n;
        }
        for (key, n) in &ended.faulted {
            *self.faulted.entry(*key).or_default() += n;
        }
        self.time += ended.cost.time;
        self.switches += ended.cost.switches;
        self.coverage.add(&ended.reached);
    }
}

/// A history that went wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// The guarantee.
    pub guarantee: String,
    /// How it was broken.
    pub how: String,
}

/// Plays a plan that ended so once more: says what differs, which nothing may.
pub fn differs(plan: &Plan, first: &Ended, pool: &Arc<Pool>) -> Option<String> {
    let again = play(plan, pool, !first.lines.is_empty());
    if (again.hash, again.cost) == (first.hash, first.cost) {
        return None;
    }
    let happened = |ended: &Ended| -> Vec<String> {
        ended.lines.lines().filter(|l| !l.contains("   log: ")).map(str::to_owned).collect()
    };
    let (one, other) = (happened(first), happened(&again));
    let end = || "(the end)".to_owned();
    let at = (0..one.len().max(other.len())).find(|i| one.get(*i) != other.get(*i)).map(|i| {
        let line = |of: &[String]| of.get(i).cloned().unwrap_or_else(end);
        format!(", from here on:\n{}\n{}", line(&one), line(&other))
    });
    let at = at.unwrap_or_default();
    Some(format!(
        "the same seed twice is not the same: trace {:016x}, then {:016x}{at}",
        first.hash, again.hash
    ))
}

/// Runs histories until there are no more, the time is over, `stop` is set, or (unless it goes on) one went wrong. Some
/// are played twice: nothing else shows that a seed decides everything. `tell` is called after each with the totals so
/// far.
pub fn run(run: &Run, stop: &AtomicBool, tell: impl Fn(&Totals) + Sync) -> (Totals, Vec<Failure>) {
    let next = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let started = Instant::now();
    let totals = Mutex::new(Totals::default());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for nth in 0..run.threads.max(1) {
            let (next, over, totals, failures, tell) = (&next, &over, &totals, &failures, &tell);
            scope.spawn(move || {
                keep_to(nth);
                let pool = Pool::new();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let late = run.time.is_some_and(|t| started.elapsed() >= t);
                    let ends = over.load(Ordering::Relaxed) || stop.load(Ordering::Relaxed);
                    if n >= run.seeds || late || ends {
                        return;
                    }
                    let seed = run.first + n;
                    if run.except.contains(&seed) {
                        continue;
                    }
                    let plan = Plan::of(run.scenario, seed);
                    let ended = play(&plan, &pool, false);
                    let broken = ended.broken.clone().or_else(|| {
                        let twice = seed.is_multiple_of(TWICE);
                        let how = twice.then(|| differs(&plan, &ended, &pool)).flatten()?;
                        Some(("determinism".to_owned(), how))
                    });
                    if let Some((guarantee, how)) = broken {
                        let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
                        failures.push(Failure { seed, guarantee, how });
                        if !run.go_on {
                            over.store(true, Ordering::Relaxed);
                        }
                    }
                    let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
                    totals.add(&plan, &ended);
                    tell(&totals);
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    failures.sort_by_key(|f| f.seed);
    (totals.into_inner().unwrap_or_else(PoisonError::into_inner), failures)
}
