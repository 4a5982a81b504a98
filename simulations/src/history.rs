//! One history: a plan is played on the real core over simulated tokens, and judged.
//!
//! Two phases. In the first, members are in trouble while the application works, and what must never happen is watched
//! for. Then every member is healed, and everything must come to rest within bounded virtual time: every object on every
//! member, every call answered, by any member alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ha_core::config::{Config, ConfigError};
use ha_core::provider::Provider;
use ha_core::seam::turns::Reached;
use ha_token::*;

use crate::application::Application;
use crate::log;
use crate::member::{Faults, LineConnector};
use crate::oracle;
use crate::plan::{Fault, Kind, Op, Plan, Trouble};
use crate::pool::Pool;
use crate::random::Random;
use crate::scheduler::{Cost, Scheduler};
use crate::stage::Stage;
use crate::token::Device;
use crate::trace::Trace;
use crate::world::SimWorld;

/// The user's PIN.
pub const PIN: &str = "simulated-pin-4711";
/// The security officer's.
pub const SO_PIN: &str = "simulated-so-pin";

/// A PIN that is not the user's.
pub const WRONG: &str = "simulated-wrong-pin";

/// How long a member that was in trouble is given to come back before the next trouble, in a gentle history, and
/// everything to come to rest, at the end.
const REST: Duration = Duration::from_secs(300);

/// How long a shutdown may wait for what is in flight.
const PATIENCE: Duration = Duration::from_secs(60);

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
            let mine = Arc::new(Stage::new(plan, scheduler, &mut random));
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

/// The configuration that a plan is played under, its state in `dir`.
///
/// # Errors
/// Where the plan asks for what no group can have.
pub(crate) fn config(plan: &Plan, dir: &std::path::Path) -> std::result::Result<Config, ConfigError> {
    let mut text = format!(
        "state_dir = {:?}\n[[group]]\nlabel = \"ha1\"\ndeadline = \"off\"\nbalance = {:?}\nmin_copies = {}\n\
         [group.recovery]\ninterval = \"1s\"\nmax_interval = \"5s\"\n",
        dir.join("state"),
        plan.balance,
        plan.min_copies
    );
    for i in 0..plan.members {
        text +=
            &format!("[[group.member]]\nname = \"m{i}\"\nmodule = \"/simulated\"\ntoken = \"member-{i}\"\n");
    }
    Config::parse(&text)
}

fn start(stage: &Arc<Stage>, dir: &std::path::Path, random: &mut Random, process: u32) -> Arc<Provider> {
    let world = SimWorld::new(&stage.scheduler, random.part("world"), process);
    let connectors = stage.lines.iter().zip(&stage.devices).map(|(line, device)| {
        let real = device.connector();
        Box::new(LineConnector { line: Arc::clone(line), real, process }) as Box<dyn Connector>
    });
    let connectors = vec![connectors.collect()];
    let config = config(&stage.plan, dir).expect("plans are drawn so, and kept ones are looked at");
    let provider = Provider::with_members(config, world, connectors);
    Arc::new(provider.expect("the provider starts, whatever its members do"))
}

/// Opens a session and logs in, as often as it takes in trouble.
fn log_in(stage: &Stage, slot: &Arc<dyn Token>) -> SessionHandle {
    loop {
        let session = match slot.open_session(true) {
            Ok(session) => {
                stage.new_session(session);
                session
            }
            // No member was seen yet.
            Err(Rv::TOKEN_NOT_PRESENT) if !stage.can_log_in() => {
                stage.scheduler.sleep(Duration::from_millis(500));
                continue;
            }
            Err(rv) => stage.broken("G4", format!("C_OpenSession answered {rv}")),
        };
        match slot.login(session, UserType::User, Some(PIN.as_bytes())) {
            Ok(()) | Err(Rv::USER_ALREADY_LOGGED_IN) => return session,
            Err(rv) if stage.can_log_in() => {
                stage.broken("G6", format!("C_Login answered the right PIN with {rv}"));
            }
            Err(rv) => {
                stage.say(format_args!("C_Login answered {rv}"));
                _ = slot.close_session(session);
                stage.scheduler.sleep(Duration::from_millis(500));
            }
        }
    }
}

/// Guarantee G6: a PIN that is refused was sent once, to one member, and is not sent again.
fn wrong_pin(stage: &Stage, slot: &Arc<dyn Token>) {
    let Ok(session) = slot.open_session(true) else { return };
    stage.new_session(session);
    for _ in 0..2 {
        match slot.login(session, UserType::User, Some(WRONG.as_bytes())) {
            Err(Rv::PIN_INCORRECT) => {}
            answer => stage.broken("G6", format!("a wrong PIN was answered with {answer:?}")),
        }
    }
    let sent: usize =
        stage.lines.iter().flat_map(|l| l.take_logins()).filter(|a| a.pin == WRONG.as_bytes()).count();
    if sent != 1 {
        stage.broken("G6", format!("a wrong PIN was sent {sent} times"));
    }
    _ = slot.close_session(session);
}

fn story(stage: &Arc<Stage>, dir: &std::path::Path, random: &mut Random) {
    let scheduler = &stage.scheduler;
    let mut process = 1;
    let mut provider = start(stage, dir, random, process);
    let mut slot = Arc::clone(&provider.slots()[0]);
    if stage.plan.wrong_pin {
        wrong_pin(stage, &slot);
    }
    let mut session = log_in(stage, &slot);
    // What every thread uses is made before anything goes wrong.
    Application { stage, slot: Arc::clone(&slot), me: usize::MAX, session }.act(&Op::Make(Kind::Mac));

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
    for (life, threads) in stage.plan.lives.iter().enumerate() {
        if life > 0 {
            Application { stage, slot: Arc::clone(&slot), me: usize::MAX, session }.close();
            stage.all_closed(&slot);
            stop(stage, &provider, process);
            stage.begin_life();
            process += 1;
            // A process that has ended holds nothing any more when the next one begins.
            drop((slot, provider));
            provider = start(stage, dir, random, process);
            slot = Arc::clone(&provider.slots()[0]);
            session = log_in(stage, &slot);
        }
        let workers: Vec<_> = threads
            .iter()
            .enumerate()
            .map(|(me, ops)| {
                let (stage, slot, ops) = (Arc::clone(stage), Arc::clone(&slot), ops.clone());
                let body = move || {
                    let session = log_in(&stage, &slot);
                    let mut application = Application { stage: &stage, slot, me, session };
                    let (parts, lives) = (stage.plan.troubles.len() + 1, stage.plan.lives.len());
                    for (n, op) in ops.iter().enumerate() {
                        if stage.plan.spread {
                            stage.await_troubles((life * ops.len() + n) * parts / (lives * ops.len()));
                        }
                        application.act(op);
                    }
                    application.close();
                };
                scheduler.spawn(&format!("app{me}"), Box::new(body))
            })
            .collect();
        workers.into_iter().for_each(|w| scheduler.join(w));
    }
    troubles.into_iter().for_each(|t| scheduler.join(t));

    stage.say(format_args!("everything is healed"));
    heal(stage);
    scheduler.sleep(REST);
    stage.set_calm();
    let application = Application { stage, slot: Arc::clone(&slot), me: usize::MAX, session };
    application.ask_all();
    scheduler.sleep(REST);
    oracle::at_rest(stage);
    for alone in 0..stage.plan.members {
        stage.say(format_args!("member {alone} is alone"));
        for (i, line) in stage.lines.iter().enumerate() {
            line.set(Faults { dead: i != alone, ..Faults::default() });
        }
        // One whose connection died while nobody used it is found out and connected again.
        application.wait_for_service(Duration::from_secs(30));
        application.ask_all();
        heal(stage);
        scheduler.sleep(REST);
        oracle::at_rest(stage);
    }
    application.close();
    stage.all_closed(&slot);
    stop(stage, &provider, process);
    oracle::at_the_end(stage);
}

/// Guarantee G5: no call hangs here, so that a process ends whole, and soon.
fn stop(stage: &Stage, provider: &Provider, process: u32) {
    let began = stage.scheduler.now();
    let hanging = provider.shutdown(PATIENCE);
    if !hanging.is_empty() {
        stage.broken("G5", format!("shutting down, {hanging:?} hang"));
    }
    let running = stage.scheduler.running(process);
    if !running.is_empty() {
        stage.broken("G5", format!("{running:?} go on after the shutdown"));
    }
    let took = stage.scheduler.now() - began;
    if took > PATIENCE {
        stage.broken("G5", format!("the shutdown took {took:?}"));
    }
    oracle::when_ended(stage);
}

fn heal(stage: &Stage) {
    for (line, device) in stage.lines.iter().zip(&stage.devices) {
        line.set(Faults::default());
        device.find_token();
        device.set_full(false);
        device.set_read_only(false);
    }
    stage.set_troubled(None);
}

/// A member loses its login, then its handles, and so on.
fn flicker(stage: &Stage, device: &Device, times: u16, turns: u16) {
    for n in 0..times {
        // Whoever can go on does.
        (0..turns).for_each(|_| stage.scheduler.sleep(Duration::ZERO));
        if n % 2 == 0 { device.drop_logins() } else { device.drop_handles() }
    }
}

/// One trouble, from its beginning to its end.
fn happen(stage: &Stage, trouble: &Trouble) {
    let scheduler = &stage.scheduler;
    scheduler.sleep(trouble.after);
    stage.set_troubled(Some(trouble.member));
    stage.say(format_args!("member {}: {:?} for {:?}", trouble.member, trouble.fault, trouble.lasts));
    let (line, device) = (&stage.lines[trouble.member], &stage.devices[trouble.member]);
    match &trouble.fault {
        Fault::Die => line.set(Faults { dead: true, ..Faults::default() }),
        Fault::Err { before, after, answers, only } => line.set(Faults {
            before: (*before).into(),
            after: (*after).into(),
            answers: answers.clone(),
            only: only.clone(),
            ..Faults::default()
        }),
        Fault::Slow(slow) => line.set(Faults { slow: *slow, ..Faults::default() }),
        Fault::Lost => device.lose_token(),
        Fault::Sessions => device.drop_sessions(),
        Fault::Logins => device.drop_logins(),
        Fault::Handles => device.drop_handles(),
        Fault::Flicker { .. } => {}
        Fault::Full => device.set_full(true),
        Fault::ReadOnly => device.set_read_only(true),
        Fault::Other => {
            line.set(Faults { dead: true, ..Faults::default() });
            device.become_other("another-token");
            line.set(Faults::default());
        }
    }
    stage.trouble_begun();
    if let Fault::Flicker { times, turns } = trouble.fault {
        flicker(stage, device, times, turns);
    }
    scheduler.sleep(trouble.lasts);
    stage.say(format_args!("member {}: {:?} is over", trouble.member, trouble.fault));
    if trouble.fault == Fault::Other {
        line.set(Faults { dead: true, ..Faults::default() });
        device.become_itself();
    }
    line.set(Faults::default());
    device.find_token();
    device.set_full(false);
    device.set_read_only(false);
    if stage.plan.gentle {
        scheduler.sleep(REST);
        stage.set_troubled(None);
    }
}
