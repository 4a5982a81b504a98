//! What the outside gives the core besides tokens: time, randomness, threads and waiting.
//!
//! Nothing else in this crate reads a clock, draws a random number, starts a thread or sleeps, so that a simulation
//! can run the whole core under one seed by giving it another [`World`].

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time, randomness, threads and waiting. All methods may be called from any thread.
pub trait World: Send + Sync {
    /// Monotonic time since some fixed moment.
    fn now(&self) -> Duration;
    /// Monotonic time that every process of this host reads alike.
    fn host_time(&self) -> Duration {
        self.now()
    }
    /// Wall-clock time since the Unix epoch, for records that people read; never for decisions.
    fn wall_clock(&self) -> Duration;
    /// Fills `bytes` from a cryptographically secure source.
    ///
    /// # Errors
    /// When the operating system has none.
    fn random(&self, bytes: &mut [u8]) -> std::io::Result<()>;
    /// Starts a named thread.
    ///
    /// # Errors
    /// When the operating system refuses.
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> std::io::Result<Box<dyn Thread>>;
    /// A new event, not set.
    fn event(&self) -> Arc<dyn Event>;
    /// How long this thread has been on a core, where that can be told. Only what is faster is decided by it.
    fn time_on_core(&self) -> Option<Duration> {
        None
    }
    /// How many threads can run at a time. Only what is faster is decided by it.
    fn cores(&self) -> usize {
        1
    }
}

/// A thread that was started by [`World::spawn`].
pub trait Thread: Send + Sync {
    /// Whether it has ended.
    fn is_finished(&self) -> bool;
    /// Waits until it has ended; a panic in it has been contained and is not passed on.
    fn join(self: Box<Self>);
}

/// An auto-reset event: one `set` lets one `wait` pass; setting it twice is as once.
pub trait Event: Send + Sync {
    /// Sets it.
    fn set(&self);
    /// Waits until it is set, at most `limit` (`None`: without limit), and resets it. Answers whether it was set.
    fn wait(&self, limit: Option<Duration>) -> bool;
    /// Looks for at most `time` whether it is set, where there is a core to spare for that, and resets it: a thread that
    /// sleeps and is woken loses some microseconds. Answers whether it was set.
    fn watch(&self, time: Duration) -> bool {
        _ = time;
        false
    }
}

/// Taking turns: how the threads of a simulation let each other go on.
#[cfg(feature = "simulation")]
pub mod turns {
    use std::cell::RefCell;
    use std::fs::File;
    use std::sync::{Arc, Weak};

    use ha_token::Rv;

    use crate::policy::failure::Class;
    use crate::policy::health::Transition;

    /// Who says whose turn it is.
    pub trait Turns: Send + Sync {
        /// Another thread may go on here.
        fn point(&self);
        /// Another thread must go on: what this one needs is not free.
        fn blocked(&self);
        /// A row of one of the core's tables was reached.
        fn reached(&self, what: Reached);
        /// Whether the disk that the ledger is on takes no more.
        fn disk_is_full(&self) -> bool {
            false
        }
        /// This thread has done a step of a protocol; `None`: the protocol is over.
        fn step(&self, step: Option<Step>);
        /// Who this thread is.
        fn who(&self) -> Option<usize> {
            None
        }
        /// What this thread does from now on it does for another one.
        fn acts_for(&self, who: Option<usize>) {
            _ = who;
        }
        /// This thread's process holds a lock of the host's, which ends with the process, however that ends.
        fn holds(&self, lock: Weak<File>);
    }

    /// A row of one of the core's tables.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
    pub enum Reached {
        /// A member's answer was looked up in the fault table, and taken for this.
        Fault(Rv, Class),
        /// So was one that a fresh session gave again.
        Fresh(Rv, Class),
        /// A member's health changed.
        Health(Transition),
        /// A process died when one of its threads had done this step, and not the next one.
        Died(Step),
    }

    macro_rules! steps {
        ($($(#[$doc:meta])* $name:ident,)*) => {
            /// A step of what makes, changes or destroys objects: the last thing that was done when a process dies.
            #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
            pub enum Step { $($(#[$doc])* $name,)* }

            impl Step {
                /// All of them.
                pub const ALL: &[Step] = &[$(Step::$name,)*];
            }
        };
    }

    steps! {
        /// A new object is announced.
        Announced,
        /// It was made, as what copies are made from.
        Made,
        /// What a copy is made from, and must answer, is durable.
        Staged,
        /// The first member has its copy.
        CopiedOnFirst,
        /// So has another one.
        CopiedOnAnother,
        /// The object is committed.
        Committed,
        /// It was given up.
        Abandoned,
        /// A destruction is announced.
        DestructionAnnounced,
        /// The first member has destroyed its copy.
        DestroyedOnFirst,
        /// The destruction is final.
        Tombstoned,
        /// Another member has destroyed its copy.
        DestroyedOnAnother,
        /// A member is known to have no copy any more.
        Acknowledged,
        /// No member has destroyed the object: it is as it was.
        DestructionTakenBack,
        /// A change is announced.
        ChangeAnnounced,
        /// The first member has made it.
        ChangedOnFirst,
        /// So has another one.
        ChangedOnAnother,
        /// It goes forward.
        ChangeDecided,
        /// No member has made it: the object is as it was.
        ChangeTakenBack,
        /// A member that was away has destroyed what was destroyed meanwhile.
        DestroyedLater,
        /// It has changed what was changed meanwhile.
        ChangedLater,
        /// That is noted.
        ChangeNoted,
        /// It was given a copy.
        CopiedLater,
        /// That is noted.
        CopyNoted,
        /// The group keys were made.
        GroupKeysMade,
        /// They are known by what they answer.
        GroupKeysRemembered,
        /// Another member was given them.
        GroupKeysGiven,
        /// A member's marker is about to be written.
        MarkAnnounced,
        /// What is known of some objects was written on its token.
        Recorded,
        /// It was.
        Marked,
        /// That is noted.
        MarkNoted,
        /// What it may have missed is noted.
        MissedNoted,
    }

    thread_local! {
        static TURNS: RefCell<Option<Arc<dyn Turns>>> = const { RefCell::new(None) };
    }

    /// From now on this thread takes turns with others, or (`None`) no longer.
    pub fn take_part(turns: Option<Arc<dyn Turns>>) {
        TURNS.set(turns);
    }

    fn with(f: impl FnOnce(&dyn Turns)) {
        let turns = TURNS.try_with(|t| t.borrow().clone()).ok().flatten();
        if let Some(turns) = turns {
            f(&*turns);
        }
    }

    /// Whether this thread takes turns with others.
    pub(crate) fn are_taken() -> bool {
        TURNS.try_with(|t| t.borrow().is_some()).unwrap_or(false)
    }

    pub(crate) fn point() {
        with(|t| t.point());
    }

    pub(crate) fn reached(what: Reached) {
        with(|t| t.reached(what));
    }

    pub(crate) fn blocked() {
        with(|t| t.blocked());
    }

    pub(crate) fn disk_is_full() -> bool {
        let mut full = false;
        with(|t| full = t.disk_is_full());
        full
    }

    pub(crate) fn step(step: Option<Step>) {
        with(|t| t.step(step));
    }

    pub(crate) fn who() -> Option<usize> {
        let mut who = None;
        with(|t| who = t.who());
        who
    }

    pub(crate) fn acts_for(who: Option<usize>) {
        with(|t| t.acts_for(who));
    }

    pub(crate) fn holds(lock: &Arc<File>) {
        with(|t| t.holds(Arc::downgrade(lock)));
    }
}

/// A step of a protocol is done; one of two, as is so or not.
macro_rules! step {
    ($step:ident) => {
        #[cfg(feature = "simulation")]
        crate::seam::turns::step(Some(crate::seam::turns::Step::$step));
    };
    ($so:expr => $step:ident, $other:ident) => {
        #[cfg(feature = "simulation")]
        if $so {
            step!($step);
        } else {
            step!($other);
        }
    };
}
pub(crate) use step;

/// The real one: the operating system's.
#[derive(Debug)]
pub struct System {
    start: Instant,
}

impl System {
    /// A world whose monotonic time starts now.
    #[expect(clippy::disallowed_methods, reason = "the seam itself")]
    pub fn new() -> Arc<Self> {
        Arc::new(System { start: Instant::now() })
    }
}

struct SystemThread(std::thread::JoinHandle<()>);

impl Thread for SystemThread {
    fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    fn join(self: Box<Self>) {
        // A panic was printed by the panic hook already; there is nobody here to tell.
        drop(self.0.join());
    }
}

/// How long it is looked whether somebody else has just ended watching.
const ENTERING: Duration = Duration::from_micros(2);

/// Whether a thread of this process watches for an event: one may, so that it costs one core at the most.
static WATCHING: AtomicBool = AtomicBool::new(false);

static CORES: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));

#[derive(Default)]
struct SystemEvent {
    set: AtomicBool,
    /// Threads that sleep until it is set.
    asleep: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

impl SystemEvent {
    /// Resets it. Answers whether it was set.
    fn take(&self) -> bool {
        self.set.load(Ordering::SeqCst) && self.set.swap(false, Ordering::SeqCst)
    }

    /// Looks again and again whether it is set, or `other` is so, for so long.
    #[expect(clippy::disallowed_methods, reason = "the seam itself")]
    fn look(&self, time: Duration, other: impl Fn() -> bool) -> Looked {
        let start = Instant::now();
        loop {
            for _ in 0..16 {
                if self.take() {
                    return Looked::Set;
                }
                if other() {
                    return Looked::Other;
                }
                // Long enough that a thread on the same core's other half is not held up.
                (0..16).for_each(|_| std::hint::spin_loop());
            }
            if start.elapsed() >= time {
                return Looked::Over;
            }
            // Who is to set it may be waiting for this core.
            std::thread::yield_now();
        }
    }
}

/// What ended a look at an event.
enum Looked {
    Set,
    Other,
    Over,
}

#[expect(clippy::disallowed_methods, reason = "the seam itself")]
impl Event for SystemEvent {
    fn set(&self) {
        self.set.store(true, Ordering::SeqCst);
        // Who counts itself as asleep looks once more after that: one of the two sees the other.
        if self.asleep.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.changed.notify_one();
        }
    }

    fn wait(&self, limit: Option<Duration>) -> bool {
        if self.take() {
            return true;
        }
        let start = Instant::now();
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.asleep.fetch_add(1, Ordering::SeqCst);
        let is_set = loop {
            if self.take() {
                break true;
            }
            guard = match limit.map(|limit| limit.saturating_sub(start.elapsed())) {
                Some(Duration::ZERO) => break false,
                Some(left) => {
                    self.changed.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner),
            };
        };
        self.asleep.fetch_sub(1, Ordering::SeqCst);
        is_set
    }

    fn watch(&self, time: Duration) -> bool {
        // There is to be a core for that, besides the one that works.
        if *CORES < 2 {
            return false;
        }
        match self.look(ENTERING, || !WATCHING.swap(true, Ordering::Relaxed)) {
            Looked::Set => true,
            Looked::Over => false,
            Looked::Other => {
                let looked = self.look(time, || false);
                WATCHING.store(false, Ordering::Relaxed);
                matches!(looked, Looked::Set)
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the seam itself")]
impl World for System {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn host_time(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Duration::try_from(time).unwrap_or_default()
    }

    fn wall_clock(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn random(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        getrandom::fill(bytes).map_err(std::io::Error::other)
    }

    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> std::io::Result<Box<dyn Thread>> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body)?;
        Ok(Box::new(SystemThread(thread)))
    }

    fn event(&self) -> Arc<dyn Event> {
        Arc::new(SystemEvent::default())
    }

    fn time_on_core(&self) -> Option<Duration> {
        Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime)).ok()
    }

    fn cores(&self) -> usize {
        *CORES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two threads that wait for each other in turn: one wake-up that is lost, and this never ends.
    #[test]
    fn no_set_is_lost_by_who_sleeps_or_watches() {
        let system = System::new();
        let waits: [fn(&dyn Event) -> bool; 3] = [
            |event| event.wait(None),
            |event| event.watch(Duration::from_micros(5)) || event.wait(None),
            |event| event.wait(Some(Duration::from_micros(1))) || event.wait(Some(Duration::from_secs(3600))),
        ];
        for wait in waits {
            let (there, back) = (system.event(), system.event());
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        assert!(wait(&*there));
                        back.set();
                    }
                });
                for _ in 0..20_000 {
                    there.set();
                    assert!(wait(&*back));
                }
            });
            assert!(
                !there.wait(Some(Duration::ZERO)) && !back.wait(Some(Duration::ZERO)),
                "each set was taken"
            );
        }
    }

    #[test]
    fn two_sets_are_one() {
        let event = System::new().event();
        event.set();
        event.set();
        assert!(event.wait(None));
        assert!(!event.watch(Duration::ZERO) && !event.wait(Some(Duration::from_millis(1))));
    }
}
