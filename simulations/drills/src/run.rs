//! Conducts a drill.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;
use ha_core::config::Config;
use ha_core::group::{Group, GroupEvent};
use ha_core::policy::health::State;
use ha_core::provider::{Provider, StartError};
use ha_rig::PIN;
use ha_token::{Rv, SessionHandle, Token, UserType};

use crate::load::{self, Count, Keys, Load};
use crate::plan::{How, Part, Scenario, Settings, Step, plan};
use crate::record::{Change, Fault, Played, Record, Sample};
use crate::rig::Rig;
use crate::verdict::shown;

/// How often it is looked at what there is to tell.
const LOOK: Duration = Duration::from_millis(10);
/// How often it is noted who has served what.
const SAMPLE: Duration = Duration::from_millis(100);
/// Over how many samples the throughput is told.
const RECENT: usize = 10;
/// How long a member is waited for that was mended.
const COMING_BACK: Duration = Duration::from_secs(60);
/// How long calls in flight are waited for at the end, besides the deadlines.
const ENDING: Duration = Duration::from_secs(15);
/// Members are probed soon here: a drill is short.
const RECOVERY: &str = "[group.recovery]\ninterval = \"200ms\"\nmax_interval = \"2s\"";

/// What is drilled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// What goes wrong.
    pub scenario: Scenario,
    /// How many tokens.
    pub members: usize,
    /// How long each scenario is to last.
    pub length: Duration,
    /// How many threads ask.
    pub threads: usize,
    /// Of the plan and the load.
    pub seed: u64,
    /// How long a call waits for one member; `None`: as long as it takes.
    pub deadline: Option<Duration>,
}

/// What is told while it goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// Something happened; when, if the load has begun.
    Line(Option<Duration>, String),
    /// How it is going.
    Tick(Tick),
}

/// How it is going.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tick {
    /// How long the load has lasted.
    pub at: Duration,
    /// About how long it is going to.
    pub about: Duration,
    /// What is played.
    pub scenario: Scenario,
    /// What was done.
    pub count: Count,
    /// Operations a second, lately.
    pub per_second: u64,
    /// The members that are not used.
    pub away: Vec<String>,
}

/// Why there was no drill.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DrillError {
    /// Tokens or servers.
    #[error("the tokens: {0}")]
    Rig(#[from] std::io::Error),
    /// The group.
    #[error("the group: {0}")]
    Group(#[from] StartError),
    /// The group's configuration.
    #[error("the group's configuration: {0}")]
    Config(#[from] ha_core::config::ConfigError),
    /// A call before the load.
    #[error("{0}: {1}")]
    Call(&'static str, Rv),
    /// A member that never was up.
    #[error("not every member is up before the drill: {0}")]
    NotUp(String),
    /// The load.
    #[error(transparent)]
    Load(#[from] load::StartError),
    /// Somebody ended it before the load began.
    #[error("interrupted before the load began")]
    Interrupted,
}

/// Ends a drill from elsewhere.
#[derive(Clone)]
pub struct Handle {
    rig: Arc<Rig>,
    interrupted: Arc<AtomicBool>,
}

impl Handle {
    /// The first time the drill is asked to end, with the figures so far. The second time its servers and its folder are
    /// removed here and now, and true is answered: the process should end at once.
    pub fn interrupt(&self) -> bool {
        let again = self.interrupted.swap(true, Ordering::Relaxed);
        if again {
            self.rig.remove();
        }
        again
    }
}

/// A drill.
pub struct Drill {
    options: Options,
    handle: Handle,
}

impl Drill {
    /// One that has not begun.
    pub fn new(options: Options) -> Self {
        Drill { options, handle: Handle { rig: Arc::default(), interrupted: Arc::default() } }
    }

    /// What ends it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    fn is_interrupted(&self) -> bool {
        self.handle.interrupted.load(Ordering::Relaxed)
    }

    /// Makes the group, plays the scenario, removes everything.
    ///
    /// # Errors
    /// There could be no drill. What went wrong in it is in the record.
    pub fn run(&self, tell: &mut dyn FnMut(Told)) -> Result<Record, DrillError> {
        let removed = Removed(&self.handle.rig);
        let record = self.make_and_play(tell);
        drop(removed);
        match record {
            // What was being made fails too where an interruption reaches it.
            Err(_) if self.is_interrupted() => Err(DrillError::Interrupted),
            other => other,
        }
    }

    fn go_on(&self) -> Result<(), DrillError> {
        if self.is_interrupted() { Err(DrillError::Interrupted) } else { Ok(()) }
    }

    fn make_and_play(&self, tell: &mut dyn FnMut(Told)) -> Result<Record, DrillError> {
        let options = &self.options;
        let rig = &*self.handle.rig;
        let mut line = |text: String| tell(Told::Line(None, text));
        line(format!("making {} SoftHSM tokens in a temporary folder", options.members));
        rig.make(options.members)?;
        self.go_on()?;
        line("making keys on them, directly".into());
        // p11-kit 0.24 carries no key wrapping to its server: keys are made first, then used through it.
        let direct = Open::new(&rig.config(false, "deadline = \"off\"")?)?;
        let keys =
            Keys::make(&*direct.slot, direct.session).map_err(|rv| DrillError::Call("making keys", rv))?;
        direct.provider.shutdown(ENDING);
        drop(direct);
        self.go_on()?;
        line(format!("starting {} p11-kit servers, and the group over them", options.members));
        for member in 0..options.members {
            rig.serve(member)?;
        }
        let deadline = options.deadline.map_or_else(|| "off".into(), |d| format!("{}ms", d.as_millis()));
        let served = Open::new(&rig.config(true, &format!("deadline = \"{deadline}\"\n{RECOVERY}"))?)?;
        let keys = keys
            .found_on(&*served.slot, served.session)
            .map_err(|rv| DrillError::Call("looking for the keys", rv))?;
        served.await_members(self)?;
        self.play(&served, keys, tell)
    }

    fn play(&self, open: &Open, keys: Keys, tell: &mut dyn FnMut(Told)) -> Result<Record, DrillError> {
        let Options { scenario, members, length, threads, seed, deadline } = self.options;
        let parts = plan(scenario, &Settings { members, length, deadline, seed });
        let steps = parts.iter().flat_map(|p| &p.steps);
        let about = steps.map(|s| if let Step::Go(time) = s { *time } else { Duration::ZERO }).sum();
        let began = Instant::now();
        let group = open.group()?;
        let listener = Listener::new(group, began)?;
        let load = Load::start(&open.slot, keys, threads, seed, began)?;
        tell(Told::Line(Some(Duration::ZERO), format!("{threads} threads sign and verify")));
        let mut stage = Stage {
            drill: self,
            group,
            load: &load,
            listener: &listener,
            tell,
            began,
            about,
            scenario,
            before: group.served(),
            told: 0,
            recent: Vec::new(),
            samples: Vec::new(),
            faults: Vec::new(),
            played: Vec::new(),
        };
        let ended = stage.parts(&parts);
        let lasted = began.elapsed();
        // So that calls that hang can end.
        stage.release();
        let Stage { mut samples, faults, played, before, .. } = stage;
        let patience = deadline.map_or(Duration::ZERO, |d| d * (members as u32 + 1)) + ENDING;
        let (operations, hung) = load.end(patience);
        samples.push(Sample { at: lasted, served: served_since(&before, group) });
        let mut away: Vec<String> = Vec::new();
        if !self.is_interrupted() {
            away = group.members.iter().filter(|m| !m.is_up()).map(|m| m.name().to_owned()).collect();
        }
        let names = group.members.iter().map(|m| m.name().to_owned()).collect();
        let left = open.provider.shutdown(if self.is_interrupted() { ENDING / 5 } else { ENDING });
        let changes = listener.end();
        ended?;
        Ok(Record {
            scenario,
            seed,
            length,
            threads,
            deadline,
            members: names,
            lasted,
            played,
            operations,
            changes,
            faults,
            samples,
            away,
            hung: hung + if self.is_interrupted() { 0 } else { left.len() },
            interrupted: self.is_interrupted(),
        })
    }
}

/// What each member has served besides.
fn served_since(before: &[u64], group: &Group) -> Vec<u64> {
    group.served().iter().zip(before).map(|(now, before)| now - before).collect()
}

/// Removes everything, also when something panics.
struct Removed<'a>(&'a Rig);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0.remove() {
            eprintln!("{} could not be removed", path.display());
        }
    }
}

/// A slot with the user logged in.
struct Open {
    provider: Provider,
    slot: Arc<dyn Token>,
    session: SessionHandle,
}

impl Open {
    fn new(config: &str) -> Result<Open, DrillError> {
        let provider = Provider::from_config(Config::parse(config)?)?;
        let call = |what| move |rv| DrillError::Call(what, rv);
        let slot = Arc::clone(provider.slot(0).map_err(call("the slot"))?);
        let session = slot.open_session(true).map_err(call("opening a session"))?;
        slot.login(session, UserType::User, Some(PIN.as_bytes())).map_err(call("the login"))?;
        Ok(Open { provider, slot, session })
    }

    fn group(&self) -> Result<&Arc<Group>, DrillError> {
        self.provider.groups().first().ok_or(DrillError::Call("the group", Rv::SLOT_ID_INVALID))
    }

    fn await_members(&self, drill: &Drill) -> Result<(), DrillError> {
        let group = self.group()?;
        let until = Instant::now() + COMING_BACK;
        while let Some(member) = group.members.iter().find(|m| !m.is_up()) {
            drill.go_on()?;
            if Instant::now() > until {
                return Err(DrillError::NotUp(format!("{:?}", member.status())));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// Notes when the members' health changes.
struct Listener {
    changes: Arc<Mutex<Vec<Change>>>,
    thread: JoinHandle<()>,
}

impl Listener {
    fn new(group: &Group, began: Instant) -> Result<Listener, DrillError> {
        let names: Vec<String> = group.members.iter().map(|m| m.name().to_owned()).collect();
        let changes = Arc::<Mutex<Vec<Change>>>::default();
        let (events, to) = (group.events(), Arc::clone(&changes));
        let thread = std::thread::Builder::new().name("drill-events".into());
        let thread = thread.spawn(move || listen(&events, &names, began, &to))?;
        Ok(Listener { changes, thread })
    }

    fn since(&self, told: usize) -> Vec<Change> {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.get(told..).unwrap_or(&[]).to_vec()
    }

    /// Once the group has stopped.
    fn end(self) -> Vec<Change> {
        _ = self.thread.join();
        std::mem::take(&mut *self.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn listen(events: &Receiver<GroupEvent>, names: &[String], began: Instant, to: &Mutex<Vec<Change>>) {
    // Until the group stops.
    while let Ok(event) = events.recv() {
        if let GroupEvent::Member { member, from, to: state, .. } = event
            && let Some(member) = names.iter().position(|name| *name == member)
        {
            let change = Change { at: began.elapsed(), member, from, to: state };
            to.lock().unwrap_or_else(PoisonError::into_inner).push(change);
        }
    }
}

/// A drill that is going on.
struct Stage<'a> {
    drill: &'a Drill,
    group: &'a Group,
    load: &'a Load,
    listener: &'a Listener,
    tell: &'a mut dyn FnMut(Told),
    began: Instant,
    about: Duration,
    scenario: Scenario,
    /// What each member had served before.
    before: Vec<u64>,
    /// How many changes were told.
    told: usize,
    /// What was done by when.
    recent: Vec<(Duration, u64)>,
    samples: Vec<Sample>,
    faults: Vec<Fault>,
    played: Vec<Played>,
}

/// Whether the plan is to be followed further.
#[derive(PartialEq, Eq)]
enum Go {
    On,
    /// Interrupted, or a member does not come back.
    NoFurther,
}

impl Stage<'_> {
    fn parts(&mut self, parts: &[Part]) -> Result<(), DrillError> {
        for part in parts {
            self.scenario = part.scenario;
            let from = self.began.elapsed();
            let mut go = Go::On;
            for step in &part.steps {
                go = self.step(step)?;
                if go == Go::NoFurther {
                    break;
                }
            }
            self.played.push(Played { scenario: part.scenario, from, to: self.began.elapsed() });
            if go == Go::NoFurther {
                break;
            }
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<Go, DrillError> {
        match step {
            Step::Go(time) => {
                let until = Instant::now() + *time;
                Ok(self.wait(|_| Instant::now() >= until))
            }
            Step::Break(members, how) => {
                for member in members {
                    let fault = Fault {
                        scenario: self.scenario,
                        member: *member,
                        how: *how,
                        from: self.began.elapsed(),
                        to: None,
                    };
                    self.drill.handle.rig.break_down(*member, *how)?;
                    self.faults.push(fault);
                    self.line(format!("{} is {how}", self.name(*member)));
                }
                Ok(Go::On)
            }
            Step::Mend(members, how) => {
                members.iter().try_for_each(|member| self.mend(*member, *how)).map(|()| Go::On)
            }
            Step::Back => {
                let until = Instant::now() + COMING_BACK;
                let go = self.wait(|stage| stage.are_up() || Instant::now() >= until);
                Ok(if self.are_up() { go } else { Go::NoFurther })
            }
        }
    }

    fn mend(&mut self, member: usize, how: How) -> Result<(), DrillError> {
        self.drill.handle.rig.mend(member, how)?;
        let now = self.began.elapsed();
        if let Some(fault) = self.faults.iter_mut().rev().find(|f| f.member == member && f.to.is_none()) {
            fault.to = Some(now);
        }
        let what = match how {
            How::Killed => "is started again",
            How::Hung => "goes on",
            How::Lost => "has its token again",
        };
        self.line(format!("{} {what}", self.name(member)));
        Ok(())
    }

    /// Lets go on what is stopped, where the plan did not come to that.
    fn release(&mut self) {
        for fault in self.faults.iter().filter(|f| f.to.is_none() && f.how == How::Hung) {
            // Where it is gone there is nothing that hangs.
            _ = self.drill.handle.rig.mend(fault.member, How::Hung);
        }
    }

    fn are_up(&self) -> bool {
        self.group.members.iter().all(|m| m.is_up())
    }

    fn name(&self, member: usize) -> String {
        self.group.members.get(member).map_or_else(String::new, |m| m.name().to_owned())
    }

    fn line(&mut self, text: String) {
        (self.tell)(Told::Line(Some(self.began.elapsed()), text));
    }

    fn wait(&mut self, is_over: impl Fn(&Self) -> bool) -> Go {
        loop {
            self.look();
            if self.drill.is_interrupted() {
                return Go::NoFurther;
            }
            if is_over(self) {
                return Go::On;
            }
            std::thread::sleep(LOOK);
        }
    }

    fn look(&mut self) {
        let changes = self.listener.since(self.told);
        self.told += changes.len();
        for change in changes {
            let since = |from: Option<Duration>| from.map(|from| shown(change.at.saturating_sub(from)));
            let fault = self.faults.iter().rev().find(|f| f.member == change.member);
            let text = match (change.from, change.to) {
                (State::Up, _) => since(fault.map(|f| f.from)).map_or_else(
                    || "is not used".into(),
                    |time| format!("is not used any more, {time} after it broke"),
                ),
                (_, State::Up) => since(fault.and_then(|f| f.to)).map_or_else(
                    || "is used".into(),
                    |time| format!("is used again, {time} after it was mended"),
                ),
                _ => continue,
            };
            let text = format!("{} {text}", self.name(change.member));
            (self.tell)(Told::Line(Some(change.at), text));
        }
        let now = self.began.elapsed();
        if self.samples.last().is_none_or(|s| now - s.at >= SAMPLE) {
            self.sample();
            self.tick();
        }
    }

    fn sample(&mut self) {
        let served = served_since(&self.before, self.group);
        self.samples.push(Sample { at: self.began.elapsed(), served });
    }

    fn tick(&mut self) {
        let (at, count) = (self.began.elapsed(), self.load.count());
        self.recent.push((at, count.done));
        if self.recent.len() > RECENT {
            self.recent.remove(0);
        }
        let per_second = match (self.recent.first(), self.recent.last()) {
            (Some((from, before)), Some((to, after))) if to > from => {
                ((after - before) as f64 / (*to - *from).as_secs_f64()) as u64
            }
            _ => 0,
        };
        let (about, scenario) = (self.about, self.scenario);
        let away = self.group.members.iter().filter(|m| !m.is_up()).map(|m| m.name().to_owned()).collect();
        (self.tell)(Told::Tick(Tick { at, about, scenario, count, per_second, away }));
    }
}
