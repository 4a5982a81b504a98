//! What everybody in a history shares: the plan, the members, what the application was told, and what is wrong now.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_token::*;

use crate::disk::Disk;
use crate::history::{PIN, REST, SO_PIN};
use crate::member::Line;
use crate::model::{Model, Standing, Thing};
use crate::plan::{ANSWERS, End, Fault, Kind, Make, Plan};
use crate::random::Random;
use crate::scheduler::{EventId, Scheduler};
use crate::token::{Device, RsaPool, Snapshot};

/// No history comes to rest sooner: members are looked at after five seconds.
const LEAST_REST: Duration = Duration::from_secs(15);

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
    /// The member that has signed wrongly, and may be kept out of use for it; the number of members where none has.
    liar: AtomicUsize,
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
    /// Of each token, as it was when its troubles began.
    snapshots: Mutex<Vec<Vec<Snapshot>>>,
    /// The members whose tokens were set back, each time.
    set_backs: Mutex<Vec<usize>>,
    /// The members whose tokens are others now, for good.
    out: Mutex<BTreeSet<usize>>,
    /// The ledger's.
    pub disk: Disk,
    ledger: Mutex<LedgerState>,
    /// The member that is alone; the number of members where none is.
    alone: AtomicUsize,
    /// The number of the last process.
    last_process: AtomicU32,
    /// How often the configuration has changed, and the member that it does not name now.
    named: Mutex<(u64, Option<usize>)>,
    /// The processes that have not ended; of those that were killed what they held is kept.
    providers: Mutex<BTreeMap<u32, Arc<Provider>>>,
}

/// What happened to the ledger.
#[derive(Default)]
struct LedgerState {
    full: bool,
    /// It went under the process that has it open.
    gone: bool,
    /// How often it was in trouble.
    troubles: usize,
    /// What the ledger may not know any more, by its number in the model, with the members that held it then.
    forgotten: BTreeMap<usize, BTreeSet<usize>>,
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
    pub fn new(plan: &Plan, scheduler: &Arc<Scheduler>, folder: PathBuf, random: &mut Random) -> Self {
        let lines = (0..plan.members).map(|i| Line::new(scheduler, i, random.part("line"))).collect();
        let pairs = RsaPool::default();
        let device = |i| {
            let (label, serial) = (format!("member-{i}"), format!("{i:016}"));
            let (so_pin, pin) = (SO_PIN.as_bytes(), PIN.as_bytes());
            Device::with_pool(plan.make(i).profile(), &label, &serial, so_pin, pin, random.draw(), &pairs)
        };
        let devices: Vec<Device> = (0..plan.members).map(device).collect();
        for (number, before) in plan.before.iter().enumerate() {
            before.put(&devices[before.member], number).expect("a token that is well takes a key");
        }
        Stage {
            plan: plan.clone(),
            scheduler: Arc::clone(scheduler),
            model: Model::default(),
            lines,
            devices,
            troubled: AtomicUsize::new(plan.members),
            liar: AtomicUsize::new(plan.members),
            calm: AtomicBool::new(false),
            broken: Mutex::default(),
            given: Mutex::default(),
            calls: Mutex::default(),
            operations: Mutex::default(),
            secrets: Mutex::default(),
            pace: Mutex::default(),
            snapshots: Mutex::new(vec![Vec::new(); plan.members]),
            set_backs: Mutex::default(),
            out: Mutex::default(),
            disk: Disk::new(folder),
            ledger: Mutex::default(),
            alone: AtomicUsize::new(plan.members),
            last_process: AtomicU32::new(0),
            named: Mutex::default(),
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

    /// How long everything is given to come to rest when all is healed: as long as the plan says, but so that each member has
    /// been looked at.
    pub fn rest(&self) -> Duration {
        self.plan.rest.unwrap_or(REST).max(LEAST_REST)
    }

    /// Whether a process has started, and neither ended nor been killed.
    pub fn is_running(&self, process: u32) -> bool {
        self.providers().contains_key(&process) && !self.scheduler.is_dead(process)
    }

    /// A process was killed. What it was at is done or not, and the members close its sessions.
    pub fn died(&self, process: u32) {
        self.say(format_args!("process {process} is killed"));
        self.devices.iter().for_each(|device| device.process_died(process));
        self.model.died(process);
        if let Some(provider) = self.providers().get(&process) {
            provider.forsake();
        }
    }

    /// A member is in trouble, or has not had the time to come back; `None`: no member is, but one that signed wrongly.
    pub fn set_troubled(&self, member: Option<usize>) {
        let member = member.unwrap_or_else(|| self.liar.load(Ordering::Acquire));
        self.troubled.store(member, Ordering::Release);
    }

    /// A member signs wrongly from now on; `None`: whoever operates the group has looked at it, and wants it back.
    pub fn set_liar(&self, member: Option<usize>) {
        self.liar.store(member.unwrap_or(self.plan.members), Ordering::Release);
    }

    /// How often the configuration has changed, and the member that it does not name.
    pub(crate) fn named(&self) -> (u64, Option<usize>) {
        *self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configuration does not name this member from now on; `None`: it names all.
    pub(crate) fn set_unnamed(&self, member: Option<usize>) {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.1 != member {
            *named = (named.0 + 1, member);
        }
    }

    /// Whether a process keeps a member out of use, for good.
    pub fn is_quarantined(&self, process: u32, member: usize) -> bool {
        let provider = self.providers().get(&process).cloned();
        let name = format!("m{member}");
        let is_it = |m: &Arc<ha_core::group::Member>| m.name() == name && m.state() == State::Quarantined;
        provider.is_some_and(|p| p.groups()[0].members.iter().any(is_it))
    }

    /// Everything is healed, for good.
    pub fn set_calm(&self) {
        self.calm.store(true, Ordering::Release);
    }

    /// Another life of the first program begins, after one that ended so.
    pub fn begin_life(&self, end: End) {
        let lost = std::mem::take(&mut self.ledger().gone);
        if self.disk.end_life(end) || lost {
            self.ledger_forgets();
        }
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

    /// Whether as many members are well, and can have a copy, as copies are asked for.
    pub fn copies_can_be_had(&self, kind: Kind) -> bool {
        let troubled = self.troubled.load(Ordering::Acquire);
        let can =
            |m: &usize| !self.is_out(*m) && (!is_secret(kind, false) || self.plan.make(*m) != Make::Tpm);
        let well = (0..self.plan.members).filter(|m| *m != troubled).filter(can);
        // The group has no mechanism that one of its members lacks.
        let all_make = !matches!(kind, Kind::Mac | Kind::Aes) || !self.plan.makes.contains(&Make::Tpm);
        all_make && well.count() >= self.plan.min_copies as usize
    }

    /// Whether another token is behind a member, for good.
    pub fn is_out(&self, member: usize) -> bool {
        self.out.lock().unwrap_or_else(PoisonError::into_inner).contains(&member)
    }

    /// Another token is behind a member from now on: what was kept is of the one before.
    pub fn set_out(&self, member: usize) {
        self.snapshots()[member].clear();
        self.out.lock().unwrap_or_else(PoisonError::into_inner).insert(member);
    }

    fn snapshots(&self) -> MutexGuard<'_, Vec<Vec<Snapshot>>> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a member's token as it is, if the plan is to put one back.
    pub fn take_snapshot(&self, member: usize) {
        if self.plan.troubles.iter().any(|t| matches!(t.fault, Fault::SetBack { .. })) {
            let now = self.devices[member].snapshot();
            self.snapshots()[member].push(now);
        }
    }

    /// Puts a member's token back to what it was so many snapshots before the last one, or at the first.
    pub fn set_back(&self, member: usize, by: usize) {
        let snapshots = self.snapshots();
        let at = snapshots[member].len().saturating_sub(1 + by);
        if let Some(before) = snapshots[member].get(at) {
            self.devices[member].restore(before);
        }
    }

    fn ledger(&self) -> MutexGuard<'_, LedgerState> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ledger's disk is full from now on, or no longer.
    pub fn ledger_is_full(&self, full: bool) {
        self.scheduler.set_disk_full(full);
        let mut ledger = self.ledger();
        ledger.troubles += usize::from(full);
        ledger.full = full;
    }

    /// The ledger's folder goes, under the process that has it open.
    pub fn ledger_goes(&self) {
        self.disk.remove();
        let mut ledger = self.ledger();
        (ledger.gone, ledger.troubles) = (true, ledger.troubles + 1);
        drop(ledger);
        self.ledger_forgets();
    }

    /// What tells whether the ledger was well from one moment to another: the same answer at both. `None`: it is not.
    pub fn ledger_is_well(&self) -> Option<usize> {
        let ledger = self.ledger();
        (!ledger.full && !ledger.gone).then_some(ledger.troubles)
    }

    /// The ledger knows less than it did: what is on tokens now stays where it is.
    fn ledger_forgets(&self) {
        let held: Vec<_> = self.devices.iter().map(Device::inspect).collect();
        let mut ledger = self.ledger();
        for thing in self.model.things().iter() {
            let holders = (0..held.len()).filter(|m| held[*m].iter().any(|object| thing.is(object)));
            ledger.forgotten.extend(thing.number.map(|number| (number, holders.collect())));
        }
    }

    /// Whether the ledger may have forgotten an object.
    pub fn is_forgotten(&self, thing: &Thing) -> bool {
        thing.number.is_some_and(|number| self.ledger().forgotten.contains_key(&number))
    }

    /// Whether a member has to hold what is there, when all is at rest.
    pub fn must_hold(&self, member: usize, thing: &Thing) -> bool {
        let ledger = self.ledger();
        let held = thing.number.and_then(|number| ledger.forgotten.get(&number));
        let can = self.plan.make(member) != Make::Tpm || !is_secret(thing.kind, thing.public);
        can && !self.is_out(member) && held.is_none_or(|held| held.contains(&member))
    }

    /// One member is alone from now on, or (`None`) none is.
    pub fn set_alone(&self, member: Option<usize>) {
        self.alone.store(member.unwrap_or(self.plan.members), Ordering::Release);
    }

    /// Whether what is there has to be served: not by a member alone that does not have to hold it.
    pub fn must_serve(&self, thing: &Thing) -> bool {
        let alone = self.alone.load(Ordering::Acquire);
        self.must_succeed() && (alone == self.plan.members || self.must_hold(alone, thing))
    }

    /// The members whose tokens were set back, each time.
    pub fn set_backs(&self) -> Vec<usize> {
        self.set_backs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A member's token was set back: what no other one holds is lost.
    pub fn was_set_back(&self, member: usize) {
        self.set_backs.lock().unwrap_or_else(PoisonError::into_inner).push(member);
        self.ledger().forgotten.values_mut().for_each(|held| _ = held.remove(&member));
        let things = self.model.things().clone();
        self.lost_where_nowhere(&things);
    }

    /// Whether no token holds a thing.
    pub fn is_nowhere(&self, thing: &Thing) -> bool {
        !self.devices.iter().flat_map(Device::inspect).any(|object| thing.is(&object))
    }

    /// Of these things, those that are there and that no token holds are lost.
    pub fn lost_where_nowhere(&self, things: &[Thing]) {
        let held: Vec<_> = self.devices.iter().flat_map(Device::inspect).collect();
        for thing in things.iter().filter(|t| t.standing == Standing::There) {
            if !held.iter().any(|object| thing.is(object)) {
                self.say(format_args!("{} is on no token any more", thing.name()));
                self.model.set(thing, Standing::Lost);
            }
        }
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

/// Whether a thing of this kind, or the public one of a pair, cannot be written without being wrapped.
fn is_secret(kind: Kind, public: bool) -> bool {
    match kind {
        Kind::Ec | Kind::Rsa => !public,
        Kind::Mac | Kind::Aes => true,
        Kind::Data | Kind::Certificate => false,
    }
}
