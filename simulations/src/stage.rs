//! What everybody in a history shares: the plan, the members, what the application was told, and what is wrong now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ha_core::provider::Provider;
use ha_token::*;

use crate::history::{PIN, SO_PIN};
use crate::member::Line;
use crate::model::Model;
use crate::plan::{ANSWERS, Fault, Plan};
use crate::random::Random;
use crate::scheduler::{EventId, Scheduler};
use crate::token::{Device, Profile, RsaPool};

/// What everybody in a history shares.
pub struct Stage {
    /// The plan.
    pub plan: Plan,
    /// Whose turn it is.
    pub scheduler: Arc<Scheduler>,
    /// What the application was told.
    pub model: Model,
    /// The ways to the members.
    pub lines: Vec<Arc<Line>>,
    /// The tokens.
    pub devices: Vec<Device>,
    /// The member that is in trouble, or has not had the time to come back; the number of members where none is.
    troubled: AtomicUsize,
    /// Everything is healed.
    calm: AtomicBool,
    broken: Mutex<Option<(&'static str, String)>>,
    /// Handles of objects and of sessions that each process was given.
    given: Mutex<BTreeMap<u32, [BTreeSet<Ulong>; 2]>>,
    /// When each process of the application called.
    calls: Mutex<BTreeMap<u32, Vec<Duration>>>,
    operations: Mutex<Vec<Operation>>,
    /// Values of keys, as far as they tell them.
    secrets: Mutex<BTreeSet<Vec<u8>>>,
    pace: Mutex<Pace>,
    /// The number of the last process.
    last_process: AtomicU32,
    /// The processes that have not ended; of those that were killed what they held is kept.
    providers: Mutex<BTreeMap<u32, Arc<Provider>>>,
}

/// What is left of processes does nothing when it goes: it was killed, or the history has gone wrong.
impl Drop for Stage {
    fn drop(&mut self) {
        self.providers().values().for_each(|provider| provider.forsake());
    }
}

/// An operation with a key, from its beginning to its end.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The process.
    pub process: u32,
    /// The thread that made it.
    pub thread: String,
    /// When it began.
    pub from: Duration,
    /// When it ended.
    pub until: Duration,
}

/// An operation that goes on: it has ended when this is dropped.
pub struct Ongoing<'a> {
    stage: &'a Stage,
    process: u32,
    from: Duration,
}

impl Drop for Ongoing<'_> {
    fn drop(&mut self) {
        let (scheduler, from) = (&self.stage.scheduler, self.from);
        let (process, thread, until) = (self.process, scheduler.name(), scheduler.now());
        let operation = Operation { process, thread, from, until };
        self.stage.operations.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
    }
}

/// How far the troubles are.
#[derive(Default)]
struct Pace {
    begun: usize,
    waiting: Vec<EventId>,
}

impl Stage {
    /// The stage of a plan, on which nothing is wrong yet.
    pub fn new(plan: &Plan, scheduler: &Arc<Scheduler>, random: &mut Random) -> Self {
        let lines = (0..plan.members).map(|i| Line::new(scheduler, i, random.part("line"))).collect();
        let pairs = RsaPool::default();
        let device = |i| {
            let (label, serial) = (format!("member-{i}"), format!("{i:016}"));
            let (so_pin, pin) = (SO_PIN.as_bytes(), PIN.as_bytes());
            Device::with_pool(Profile::softhsm(), &label, &serial, so_pin, pin, random.draw(), &pairs)
        };
        Stage {
            plan: plan.clone(),
            scheduler: Arc::clone(scheduler),
            model: Model::default(),
            lines,
            devices: (0..plan.members).map(device).collect(),
            troubled: AtomicUsize::new(plan.members),
            calm: AtomicBool::new(false),
            broken: Mutex::default(),
            given: Mutex::default(),
            calls: Mutex::default(),
            operations: Mutex::default(),
            secrets: Mutex::default(),
            pace: Mutex::default(),
            last_process: AtomicU32::new(0),
            providers: Mutex::default(),
        }
    }

    /// The number of another process.
    pub fn new_process(&self) -> u32 {
        self.last_process.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn providers(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Provider>>> {
        self.providers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process has started.
    pub fn started(&self, process: u32, provider: &Arc<Provider>) {
        self.providers().insert(process, Arc::clone(provider));
    }

    /// A process has ended: it holds nothing any more.
    pub fn ended(&self, process: u32) {
        let provider = self.providers().remove(&process);
        drop(provider);
    }

    /// Whether a process has started, and neither ended nor been killed.
    pub fn is_running(&self, process: u64) -> bool {
        let process = u32::try_from(process).unwrap_or_default();
        self.providers().contains_key(&process) && !self.scheduler.is_dead(process)
    }

    /// A process was killed. What it was at is done or not, and the members close its sessions.
    pub fn died(&self, process: u32) {
        self.say(format_args!("process {process} is killed"));
        self.devices.iter().for_each(|device| device.process_died(process.into()));
        self.model.died(process);
        if let Some(provider) = self.providers().get(&process) {
            provider.forsake();
        }
    }

    /// A member is in trouble, or has not had the time to come back; `None`: no member is.
    pub fn set_troubled(&self, member: Option<usize>) {
        self.troubled.store(member.unwrap_or(self.plan.members), Ordering::Release);
    }

    /// Everything is healed, for good.
    pub fn set_calm(&self) {
        self.calm.store(true, Ordering::Release);
    }

    /// The guarantee that was broken, and how.
    pub fn take_broken(&self) -> Option<(&'static str, String)> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Writes down what somebody does.
    pub fn say(&self, what: std::fmt::Arguments<'_>) {
        self.scheduler.trace.add(self.scheduler.now(), &self.scheduler.name(), what);
    }

    /// A guarantee is broken: the history ends here.
    pub fn broken(&self, guarantee: &'static str, how: String) -> ! {
        self.say(format_args!("BROKEN {guarantee}: {how}"));
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        broken.get_or_insert((guarantee, how.clone()));
        drop(broken);
        self.scheduler.stop(format!("{guarantee}: {how}"))
    }

    /// Whether each call must succeed now: a member that can serve is up all the time.
    pub fn must_succeed(&self) -> bool {
        self.plan.gentle || self.calm.load(Ordering::Acquire)
    }

    /// Whether as many members as copies are asked for are well.
    pub fn copies_can_be_had(&self) -> bool {
        let troubled = self.troubled.load(Ordering::Acquire) < self.plan.members;
        self.plan.members - usize::from(troubled) >= self.plan.min_copies as usize
    }

    /// A process was given a handle, which none before it may be (what: 0 for an object, 1 for a session).
    fn is_new(&self, process: u32, what: usize, handle: Ulong) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if !given.entry(process).or_default()[what].insert(handle) {
            drop(given);
            self.broken("G3", format!("the handle {handle} was given out before"));
        }
    }

    /// An object was made.
    pub fn new_object(&self, process: u32, handle: ObjectHandle) {
        self.is_new(process, 0, handle.0);
    }

    /// A session was opened.
    pub fn new_session(&self, process: u32, handle: SessionHandle) {
        self.is_new(process, 1, handle.0);
    }

    /// No session that a process has opened is open.
    pub fn all_closed(&self, process: u32, slot: &Arc<dyn Token>) {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner).get(&process).cloned();
        let [_, sessions] = given.unwrap_or_default();
        if let Some(open) = sessions.into_iter().find(|s| slot.session_info(SessionHandle(*s)).is_ok()) {
            self.broken("sessions", format!("the session {open} has outlived its closing"));
        }
    }

    /// The slot has answered a call of a process's.
    pub fn called(&self, process: u32) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.entry(process).or_default().push(self.scheduler.now());
    }

    /// When each process called.
    pub fn calls(&self) -> BTreeMap<u32, Vec<Duration>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An operation of a process's with a key begins.
    pub fn operation(&self, process: u32) -> Ongoing<'_> {
        Ongoing { stage: self, process, from: self.scheduler.now() }
    }

    /// The operations with keys that have ended.
    pub fn operations(&self) -> Vec<Operation> {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Values of keys that were seen on tokens.
    pub fn secrets(&self) -> MutexGuard<'_, BTreeSet<Vec<u8>>> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A trouble has begun: whoever waits for it goes on.
    pub fn trouble_begun(&self) {
        let waiting = {
            let mut pace = self.pace();
            pace.begun += 1;
            std::mem::take(&mut pace.waiting)
        };
        waiting.into_iter().for_each(|event| self.scheduler.set(event));
    }

    /// Waits until so many troubles have begun.
    pub fn await_troubles(&self, begun: usize) {
        while self.pace().begun < begun {
            let event = self.scheduler.new_event();
            self.pace().waiting.push(event);
            self.scheduler.wait(event, None);
        }
    }

    /// Whether a right PIN must be accepted now: a member that can judge it is up. None of those in trouble may answer
    /// with what a PIN is refused with.
    pub fn can_log_in(&self) -> bool {
        let troubles = &self.plan.troubles;
        let untroubled = (0..self.plan.members).any(|m| troubles.iter().all(|t| t.member != m));
        let vague = |fault: &Fault| match fault {
            Fault::Err { answers, .. } => answers.iter().all(|rv| ANSWERS.contains(rv)),
            _ => true,
        };
        self.must_succeed() || (untroubled && troubles.iter().all(|t| vague(&t.fault)))
    }
}
