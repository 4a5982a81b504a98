//! A member: its configuration, its health, its current connection and its load.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use ha_token::{Connector, Function, MechanismInfo, Rv, Ulong};

use super::link::Link;
use super::refused::Refusals;
use super::sharing::Shown;
use crate::config::{MemberConfig, Role};
use crate::lanes::Pending;
use crate::mutants::wrong;
use crate::policy::doubt::Doubts;
use crate::policy::failure::Class;
use crate::policy::health::{Health, State, Transition};
use crate::policy::slow_start::{self, WHOLE};
use crate::seam::{Event, Thread};
use crate::sync::Mutex;

/// One operation started, in the word that counts them.
const STARTED: u64 = 1 << 20;

/// One token of the group.
pub struct Member {
    /// Its seat in the group: its own for good.
    pub index: usize,
    /// What the file said of it when it joined; its role and its place there may be others by now.
    pub config: MemberConfig,
    /// Its place in the configuration file.
    place: AtomicU8,
    standby: AtomicBool,
    /// Whether the configuration names it no more.
    left_group: AtomicBool,
    connector: Box<dyn Connector>,
    link: ArcSwapOption<Link>,
    /// Its token's mechanisms as last known, from this connection, an earlier one or the ledger.
    mechanisms: ArcSwapOption<Vec<(Ulong, MechanismInfo)>>,
    health: Mutex<Health>,
    /// A copy of the health's state that is read without a lock.
    state: AtomicU8,
    /// The same of when its slow start ends, in microseconds; 0 when it has ended.
    slow_until: AtomicU64,
    /// Operations at this moment in the low bits, and above them those since the start: one word, one step for both.
    work: AtomicU64,
    /// The current connection's generation, read without taking hold of it; 0 without one.
    generation: AtomicU64,
    /// Held by whoever connects it: its keeper, or who has just initialised its token.
    pub(super) connecting: Mutex<()>,
    /// What sees to the leavings of earlier connections. Nobody waits for this lock: it is its keeper's, and taken once
    /// more when that has ended.
    pub(super) tidying: std::sync::Mutex<Option<Box<dyn Thread>>>,
    last_fault: Mutex<Option<Fault>>,
    connect_error: Mutex<Option<String>>,
    rtt: AtomicU64,
    /// PINs that it refused and another member takes for right, or that are its own: not sent to it again.
    pub(super) refused: Refusals,
    /// That it refuses PINs is played in this process, by a drill.
    pub(super) plays_refusals: AtomicBool,
    /// Its operator says that the PIN which it refused is right now: its instance may not know of that.
    pub(super) pin_changed: AtomicBool,
    /// How often it answered the login in words that do not say whether the PIN was counted.
    doubts: Mutex<Doubts>,
    /// Whether it is we who are logged in to its token: in a shared instance it may be the host.
    pub(super) logged_in: AtomicBool,
    /// Objects that applications can see here and nowhere else: a search has to ask this member too.
    pub(super) alone: AtomicU32,
    /// Whether the token holds objects that the ledger does not know.
    pub(super) foreign: AtomicBool,
    /// Whether its token was set back: nothing unknown on it is believed to be new.
    pub(super) set_back: AtomicBool,
    /// Held while it is brought up to date: by one thread at a time.
    pub(super) catching_up: Mutex<()>,
    /// Its calls that have not returned, where they have a deadline.
    pub(super) pending: Arc<Pending>,
    /// Counts what passed it by: what others were given, or what became of it here is not known.
    pub(super) owed: AtomicU64,
    /// Whether it could not be given all that the others have.
    pub(super) lacks: AtomicBool,
    /// Whether some of that is what it refused, and may take at another time.
    pub(super) may_take: AtomicBool,
    /// How much it could not be given, or made to destroy or change.
    pub(super) left: AtomicUsize,
    /// Tries in a row to bring it up to date that left something.
    pub(super) behind_tries: AtomicU32,
    /// How often it was up, and not any more.
    pub(super) falls: AtomicU64,
    /// When it is brought up to date again, where no keeper does it.
    pub(super) behind_until: Mutex<Duration>,
    /// Tries in a row to give it the group keys that it failed in words that say nothing.
    pub(super) key_tries: AtomicU32,
    /// Whether it refused to write what others wrote, in words that say nothing of the cause.
    pub(super) refuses_writes: AtomicBool,
    /// Somebody waits for its keeper to connect it anew, and how often that was done.
    pub(super) asked_for: AtomicBool,
    pub(super) asked_done: AtomicUsize,
    /// What other processes of this host are told of it.
    pub(super) shown: Shown,
    /// Wakes the member's keeper.
    pub(super) wake: Arc<dyn Event>,
}

/// The last fault that was put down to a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The function that failed.
    pub function: Function,
    /// What the member answered.
    pub rv: Rv,
    /// What that was taken for.
    pub class: Class,
    /// When, since the Unix epoch.
    pub at: Duration,
}

impl Member {
    pub(super) fn new(
        index: usize,
        config: MemberConfig,
        connector: Box<dyn Connector>,
        health: Health,
        wake: Arc<dyn Event>,
    ) -> Self {
        let state = AtomicU8::new(health.state() as u8);
        Member {
            index,
            place: AtomicU8::new(index as u8),
            standby: AtomicBool::new(config.role == Role::Standby),
            left_group: AtomicBool::new(false),
            config,
            connector,
            link: ArcSwapOption::empty(),
            mechanisms: ArcSwapOption::empty(),
            health: Mutex::new(health),
            state,
            slow_until: AtomicU64::new(0),
            work: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            connecting: Mutex::default(),
            tidying: std::sync::Mutex::default(),
            catching_up: Mutex::default(),
            pending: Arc::default(),
            owed: AtomicU64::new(0),
            lacks: AtomicBool::new(false),
            may_take: AtomicBool::new(false),
            left: AtomicUsize::new(0),
            behind_tries: AtomicU32::new(0),
            falls: AtomicU64::new(0),
            behind_until: Mutex::default(),
            key_tries: AtomicU32::new(0),
            refuses_writes: AtomicBool::new(false),
            last_fault: Mutex::new(None),
            connect_error: Mutex::new(None),
            rtt: AtomicU64::new(0),
            refused: Refusals::default(),
            plays_refusals: AtomicBool::new(false),
            pin_changed: AtomicBool::new(false),
            doubts: Mutex::default(),
            logged_in: AtomicBool::new(false),
            alone: AtomicU32::new(0),
            foreign: AtomicBool::new(true),
            set_back: AtomicBool::new(false),
            asked_for: AtomicBool::new(false),
            asked_done: AtomicUsize::new(0),
            shown: Shown::default(),
            wake,
        }
    }

    /// Something has passed it by, or what became of it here is not known. What is to be done is found out when it is next
    /// brought up to date: by its keeper at once if it is up, else when it is back.
    pub(crate) fn falls_behind(&self) {
        if wrong!(FallsBehindForgotten) {
            return;
        }
        self.owed.fetch_add(1, Ordering::AcqRel);
        self.lacks.store(true, Ordering::Release);
        self.wake.set();
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Its health.
    pub fn state(&self) -> State {
        State::ALL.into_iter().find(|s| *s as u8 == self.state.load(Ordering::Acquire)).unwrap_or(State::Down)
    }

    /// Whether operations may be sent to it.
    pub fn is_up(&self) -> bool {
        self.state.load(Ordering::Acquire) == State::Up as u8
    }

    /// Whether it has just come back, and serves less than the others for a while.
    pub(super) fn starts_slowly(&self) -> bool {
        self.slow_until.load(Ordering::Relaxed) != 0
    }

    /// How much it serves of what it would, if its slow start takes so long.
    pub(super) fn share(&self, now: Duration, length: Duration) -> u8 {
        let until = self.slow_until.load(Ordering::Relaxed);
        let share = slow_start::share(now, Duration::from_micros(until), length);
        if share == WHOLE {
            // Unless it has come back once more meanwhile.
            _ = self.slow_until.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        share
    }

    /// Whether it is up, or ever was.
    pub(super) fn was_up(&self) -> bool {
        self.is_up() || self.falls.load(Ordering::Acquire) > 0
    }

    /// Whether it serves only when no active member is up.
    pub fn is_standby(&self) -> bool {
        self.standby.load(Ordering::Relaxed)
    }

    /// Its place in the configuration.
    #[inline]
    pub(super) fn place(&self) -> u8 {
        self.place.load(Ordering::Relaxed)
    }

    /// The configuration says another place or role of it, perhaps.
    pub(super) fn stands_as(&self, place: usize, role: Role) {
        self.place.store(u8::try_from(place).unwrap_or(u8::MAX), Ordering::Relaxed);
        self.standby.store(role == Role::Standby, Ordering::Relaxed);
    }

    /// Whether the configuration names it no more: it is none of the group's.
    #[inline]
    pub(super) fn has_left(&self) -> bool {
        self.left_group.load(Ordering::Acquire)
    }

    pub(super) fn leave(&self) {
        self.left_group.store(true, Ordering::Release);
    }

    /// Operations at this moment.
    pub fn load(&self) -> u32 {
        (self.work.load(Ordering::Relaxed) & (STARTED - 1)) as u32
    }

    /// Operations started since the start.
    pub(super) fn served(&self) -> u64 {
        self.work.load(Ordering::Relaxed) / STARTED
    }

    pub(super) fn work_begins(&self) {
        self.work.fetch_add(STARTED + 1, Ordering::Relaxed);
    }

    pub(super) fn work_ends(&self) {
        self.work.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn set_foreign(&self, foreign: bool) {
        self.foreign.store(foreign, Ordering::Relaxed);
    }

    /// The current connection, if there is one.
    pub fn link(&self) -> Option<Arc<Link>> {
        self.link.load_full()
    }

    /// Whether its token has the mechanism, for the operation that `flag` names.
    pub(super) fn supports(&self, mechanism: Ulong, flag: Ulong) -> bool {
        self.link.load().as_ref().is_some_and(|l| l.supports(mechanism, flag))
    }

    /// Its token's mechanisms as last known, sorted by type; `None` if it was never seen.
    pub(super) fn mechanisms(&self) -> Option<Arc<Vec<(Ulong, MechanismInfo)>>> {
        self.mechanisms.load_full()
    }

    pub(super) fn set_mechanisms(&self, list: Vec<(Ulong, MechanismInfo)>) {
        self.mechanisms.store(Some(Arc::new(list)));
    }

    /// The last fault.
    pub fn last_fault(&self) -> Option<Fault> {
        self.last_fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why it could not be connected the last time, if it could not.
    pub fn connect_error(&self) -> Option<String> {
        self.connect_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How long its last probe took.
    pub fn round_trip(&self) -> Option<Duration> {
        match self.rtt.load(Ordering::Relaxed) {
            0 => None,
            us => Some(Duration::from_micros(us)),
        }
    }

    pub(super) fn connector(&self) -> &dyn Connector {
        &*self.connector
    }

    /// Whether a connection is the current one.
    pub(super) fn is_current(&self, link: &Link) -> bool {
        self.generation.load(Ordering::Acquire) == link.generation
    }

    /// Whether this is its connection of now.
    pub(super) fn is_in(&self, generation: u64) -> bool {
        // As many bits as a place has for it.
        generation != 0 && self.generation.load(Ordering::Acquire) as u32 == generation as u32
    }

    /// It hosts one less of the objects that no other member has.
    pub(super) fn host_less(&self) {
        // Never below zero: a second drop of the same object must not wrap.
        _ = self.alone.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
    }

    pub(super) fn set_link(&self, link: Option<Arc<Link>>) {
        let generation = link.as_ref().map_or(0, |l| l.generation);
        self.link.store(link);
        self.generation.store(generation, Ordering::Release);
    }

    pub(super) fn set_fault(&self, fault: Fault) {
        *self.last_fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }

    pub(super) fn set_connect_error(&self, error: Option<String>) {
        *self.connect_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    pub(super) fn set_round_trip(&self, rtt: Duration) {
        self.rtt.store((rtt.as_micros() as u64).max(1), Ordering::Relaxed);
    }

    /// Its vague answers to logins.
    pub(super) fn doubts(&self) -> MutexGuard<'_, Doubts> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The health machine; whoever changes it calls [`Member::publish`] before letting go.
    pub(super) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what has changed of the machine visible to readers without the lock.
    pub(super) fn publish(&self, health: &Health, transition: Option<&Transition>) {
        if transition.is_some_and(|t| (t.from, t.to) == (State::Syncing, State::Up)) {
            let until = health.slow_until().map_or(0, |until| until.as_micros() as u64);
            self.slow_until.store(until, Ordering::Relaxed);
        }
        if transition.is_some_and(|t| t.from == State::Up) {
            self.falls.fetch_add(1, Ordering::AcqRel);
        }
        self.state.store(health.state() as u8, Ordering::Release);
    }
}
