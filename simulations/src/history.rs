//! One history: a plan is played on the real core over simulated tokens, and judged.
//!
//! Two phases. In the first, members are in trouble while the application works, and what must never happen is watched
//! for. Then every member is healed, and everything must come to rest within bounded virtual time: every object on every
//! member, every call answered, by any member alone.

mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ha_core::seam::turns::Reached;
use ha_token::*;

use crate::log;
use crate::member::Faults;
use crate::oracle;
use crate::plan::{ENOUGH, Plan};
use crate::pool::Pool;
use crate::random::Random;
use crate::scheduler::{Cost, Scheduler};
use crate::stage::Stage;
use crate::trace::Trace;
use crate::trouble::{happen, heal};
use process::{Process, Program};

/// The user's PIN.
pub const PIN: &str = "simulated-pin-4711";
/// The security officer's.
pub const SO_PIN: &str = "simulated-so-pin";

/// A PIN that is not the user's.
pub const WRONG: &str = "simulated-wrong-pin";

/// How long a member that was in trouble is given to come back before the next trouble, in a gentle history, and
/// everything to come to rest, at the end.
pub(crate) const REST: Duration = Duration::from_secs(300);

/// How a history ended.
pub struct Ended {
    /// The guarantee that was broken, and how; "deadlock" or "panic" where none but the core itself was.
    pub broken: Option<(String, String)>,
    /// The trace's hash.
    pub hash: u64,
    /// The trace's lines, if they were kept.
    pub lines: String,
    /// What it cost.
    pub cost: Cost,
    /// Which rows of the core's tables were reached, and how often.
    pub reached: BTreeMap<Reached, u64>,
    /// Calls to members, and those that were made to fail.
    pub calls: BTreeMap<Function, u64>,
    /// Calls that were made to fail, by their answer.
    pub faulted: BTreeMap<(Function, Rv), u64>,
}

/// Plays a plan.
pub fn play(plan: &Plan, pool: &Arc<Pool>, readable: bool) -> Ended {
    log::listen();
    let dir = folder();
    let mut random = Random::new(plan.seed ^ 0x5eed);
    let scheduling = random.part("scheduler");
    let stage = Mutex::new(None);
    let (scheduler, answer) = Scheduler::run(
        pool,
        scheduling,
        Trace::new(readable).named(format!("seed {}", plan.seed)),
        |scheduler| {
            let mine = Arc::new(Stage::new(plan, scheduler, dir.path().join("state"), &mut random));
            *stage.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&mine));
            story(&mine, dir.path(), &mut random);
        },
    );
    let stage = stage.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut ended = Ended {
        broken: None,
        hash: scheduler.trace.hash(),
        lines: scheduler.trace.lines(),
        cost: scheduler.cost(),
        reached: scheduler.reached(),
        calls: Default::default(),
        faulted: Default::default(),
    };
    if let Some(stage) = stage {
        for line in &stage.lines {
            for (function, n) in line.calls() {
                *ended.calls.entry(function).or_default() += n;
            }
            for (key, n) in line.faulted() {
                *ended.faulted.entry(key).or_default() += n;
            }
        }
        ended.broken = stage.take_broken().map(|(g, how)| (g.to_owned(), how));
        if let Some(how) = oracle::secrets::told(&stage.secrets(), &scheduler.trace.log(), dir.path()) {
            ended.broken.get_or_insert(("G9".into(), how));
        }
    }
    if let (None, Err(why)) = (&ended.broken, answer) {
        let word = if why.starts_with("nobody") || why.starts_with("the history does not") {
            "deadlock"
        } else {
            "panic"
        };
        ended.broken = Some((word.to_owned(), why));
    }
    ended
}

fn folder() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("pkcs11-ha-simulation-");
    // In memory, where there is such a place: the ledger waits for its disk at every step.
    builder
        .tempdir_in("/dev/shm")
        .or_else(|_| builder.tempdir())
        .expect("a folder for the ledger can be made")
}

fn story(stage: &Arc<Stage>, dir: &std::path::Path, random: &mut Random) {
    let scheduler = &stage.scheduler;
    let watching = Arc::downgrade(stage);
    scheduler.on_death(move |process| {
        if let Some(stage) = watching.upgrade() {
            stage.died(process);
        }
    });
    if stage.plan.untold {
        stage.disk.silence("ha1");
    }
    let mut first = Program::new(stage, dir, 0, random);
    let beside: Vec<_> = (1..stage.plan.programs().count())
        .map(|number| {
            let mut program = Program::new(stage, dir, number, &mut random.part("program"));
            let ended = Arc::new(Mutex::new(None));
            let told = Arc::clone(&ended);
            let body = move || {
                program.begin();
                program.live();
                *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(program);
            };
            (scheduler.spawn(&format!("program{number}"), Box::new(body)), ended)
        })
        .collect();
    // What every thread uses is made before anything goes wrong.
    first.begin();

    // In a harsh history each member has its own troubles, whatever the others have.
    let makers = if stage.plan.gentle { 1 } else { stage.plan.members };
    let troubles: Vec<_> = (0..makers)
        .map(|maker| {
            let stage = Arc::clone(stage);
            let body = move || {
                let all = stage.plan.troubles.iter();
                all.filter(|t| makers == 1 || t.member == maker).for_each(|t| happen(&stage, t));
            };
            scheduler.spawn("trouble", Box::new(body))
        })
        .collect();
    first.live();
    let mut programs = vec![first];
    for (thread, ended) in beside {
        scheduler.join(thread);
        programs.extend(ended.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
    troubles.into_iter().for_each(|t| scheduler.join(t));

    stage.say(format_args!("everything is healed"));
    scheduler.spare_all();
    heal(stage);
    let somebody_lives = programs.iter().any(Program::lives);
    programs.retain(|p| p.lives() || !(stage.plan.stays_dead && somebody_lives));
    let processes: Vec<_> = programs.into_iter().map(Program::remains).collect();
    processes.iter().for_each(Process::take_back_liars);
    scheduler.sleep(stage.rest());
    // One that was set back is found out when it is used; where there is little time, when it is looked at.
    let is_used = |m: &usize| stage.rest() >= ENOUGH && !stage.is_out(*m);
    let set_back: BTreeSet<usize> = stage.set_backs().into_iter().filter(is_used).collect();
    for alone in set_back {
        leave_alone(stage, &processes, alone);
        heal(stage);
        scheduler.sleep(stage.rest());
    }
    stage.set_calm();
    processes.iter().for_each(|p| p.application(stage).ask_all());
    scheduler.sleep(stage.rest());
    oracle::at_rest(stage);
    for alone in (0..stage.plan.members).filter(|m| !stage.is_out(*m)) {
        leave_alone(stage, &processes, alone);
        stage.set_alone(Some(alone));
        processes.iter().for_each(|p| p.application(stage).ask_all());
        stage.set_alone(None);
        heal(stage);
        scheduler.sleep(stage.rest());
        oracle::at_rest(stage);
    }
    for process in processes {
        process.application(stage).close();
        stage.all_closed(process.number, &process.slot);
        process.stop(stage);
        let number = process.number;
        drop(process);
        stage.ended(number);
    }
    oracle::at_the_end(stage);
}

/// Every other member is dead from now on.
fn leave_alone(stage: &Stage, processes: &[Process], alone: usize) {
    stage.say(format_args!("member {alone} is alone"));
    for (i, line) in stage.lines.iter().enumerate() {
        line.set(Faults { dead: i != alone, ..Faults::default() });
    }
    for process in processes {
        // One whose connection died while nobody used it is found out and connected again.
        process.application(stage).wait_for_service(Duration::from_secs(30));
    }
}
