//! The threads that make a connection's calls: who has one, who waits for one, and who has left one behind.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ha_token::{Result, Rv};

use crate::seam::{Event, Thread, World};
use crate::sync::Mutex;

/// Lanes that one connection may have, with those in which a call hangs.
pub(super) const MOST: usize = 64;

/// Lanes that there may be besides for who looks after the member: one that is busy is not to be taken for dead.
const SPARE: usize = 2;

/// How long a lane waits for its next call before it ends.
const IDLE: Duration = Duration::from_secs(60);

/// How long a lane is on the watch for its next call before it sleeps.
const ALERT: Duration = Duration::from_micros(50);

/// Calls that take no longer are watched for; those that do are so long that being woken is nothing to them.
const QUICK: Duration = Duration::from_millis(1);

/// With more calls than this under way on one member nobody watches: there is always a lane that has use for the core.
const CROWD: usize = 2;

/// What a lane does. Answers whether its caller had left it behind.
pub(super) type Job = Box<dyn FnOnce() -> bool + Send>;

/// A thread of ours, and the one call that it makes at a time.
pub(super) struct Lane {
    job: Mutex<Option<Job>>,
    /// There is a job, or the end.
    wake: Arc<dyn Event>,
    /// The job is done. Who took the lane waits for it, and nobody else.
    pub(super) done: Arc<dyn Event>,
}

/// A caller for whom there was no lane.
struct Waiter {
    lane: Mutex<Option<Arc<Lane>>>,
    /// It has one, or there will be none.
    told: Arc<dyn Event>,
}

/// Every lane of a group: of its connections, and of those that there were.
#[derive(Default)]
pub(crate) struct AllLanes {
    pools: Mutex<Vec<Weak<Pool>>>,
    /// Pools with a call under way. A member that works has use for a core: a token in software is on one at a time mostly,
    /// by its own lock.
    working: AtomicUsize,
    threads: Mutex<Vec<Box<dyn Thread>>>,
}

impl AllLanes {
    fn add_pool(&self, pool: &Arc<Pool>) {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Arc::downgrade(pool));
    }

    /// A thread that is waited for at the end as theirs are.
    pub(crate) fn add_thread(&self, thread: Box<dyn Thread>) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
    }

    /// Ends all of them, and waits for their threads, but for as many as are `left` behind in a call; no longer than `until`.
    pub(crate) fn end(&self, world: &dyn World, until: Duration, left: impl Fn() -> usize) {
        let pools = std::mem::take(&mut *self.pools.lock().unwrap_or_else(PoisonError::into_inner));
        pools.iter().filter_map(Weak::upgrade).for_each(|pool| pool.end());
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let pause = world.event();
        let running = || threads.iter().filter(|thread| !thread.is_finished()).count();
        while running() > left() && world.now() < until {
            pause.wait(Some(Duration::from_millis(1)));
        }
        threads.into_iter().filter(|thread| thread.is_finished()).for_each(Thread::join);
    }
}

/// One connection's lanes.
pub(super) struct Pool {
    pub(super) world: Arc<dyn World>,
    name: String,
    all: Arc<AllLanes>,
    state: Mutex<State>,
    /// The last call that was waited for did not return.
    hangs: AtomicBool,
    /// Lanes that have a call, but for those that were left behind in one. Changed under the lock of `state`.
    busy: AtomicUsize,
    /// How long calls take, in nanoseconds: what they took lately, the last ones most.
    usual: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Every one.
    lanes: Vec<Arc<Lane>>,
    /// Those without a call, the last one that had one last.
    idle: Vec<Arc<Lane>>,
    /// How many were left behind in a call; below zero for a moment, where one returns that is just being left.
    left: isize,
    waiting: VecDeque<Arc<Waiter>>,
    ended: bool,
}

impl Lane {
    /// Gives it its call.
    pub(super) fn begin(&self, job: Job) {
        *self.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
        self.wake.set();
    }
}

impl Pool {
    /// Without lanes yet; `name` is what their threads are called.
    pub(super) fn new(world: Arc<dyn World>, all: Arc<AllLanes>, name: String) -> Arc<Self> {
        let pool = Arc::new(Pool {
            world,
            name,
            all,
            state: Mutex::default(),
            hangs: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            usual: AtomicU64::new(0),
        });
        pool.all.add_pool(&pool);
        pool
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lane for one call: the one that was used last, a new one, or the first that is free before `until`. With `spare` it
    /// may be one more than others may have.
    ///
    /// # Errors
    /// `CKR_HOST_MEMORY` when none was, or a thread could not be started; [`Rv::NO_ANSWER`] when a call was found to hang
    /// meanwhile; `CKR_CRYPTOKI_NOT_INITIALIZED` after the end.
    pub(super) fn take(self: &Arc<Self>, until: Option<Duration>, spare: bool) -> Result<Arc<Lane>> {
        let most = if spare { MOST + SPARE } else { MOST };
        let waiter = {
            let mut state = self.state();
            if state.ended {
                return Err(Rv::CRYPTOKI_NOT_INITIALIZED);
            }
            if let Some(lane) = state.idle.pop() {
                self.count(&state);
                return Ok(lane);
            }
            if state.lanes.len() < most {
                let lane = Arc::new(Lane {
                    job: Mutex::default(),
                    wake: self.world.event(),
                    done: self.world.event(),
                });
                state.lanes.push(Arc::clone(&lane));
                self.count(&state);
                drop(state);
                return self.start(lane);
            }
            if self.hangs() {
                return Err(Rv::NO_ANSWER);
            }
            let waiter = Arc::new(Waiter { lane: Mutex::default(), told: self.world.event() });
            state.waiting.push_back(Arc::clone(&waiter));
            waiter
        };
        waiter.told.wait(until.map(|until| until.saturating_sub(self.world.now())));
        // Under the lock: it may be given one just now.
        let mut state = self.state();
        state.waiting.retain(|other| !Arc::ptr_eq(other, &waiter));
        let lane = waiter.lane.lock().unwrap_or_else(PoisonError::into_inner).take();
        lane.ok_or(match state.ended || self.hangs() {
            true => Rv::NO_ANSWER,
            false => Rv::HOST_MEMORY,
        })
    }

    fn start(self: &Arc<Self>, lane: Arc<Lane>) -> Result<Arc<Lane>> {
        let body = {
            let (pool, lane) = (Arc::clone(self), Arc::clone(&lane));
            move || pool.work(&lane)
        };
        match self.world.spawn(&self.name, Box::new(body)) {
            Ok(thread) => {
                self.all.add_thread(thread);
                Ok(lane)
            }
            Err(error) => {
                tracing::warn!(lane = self.name, %error, "no thread could be started for a call with a deadline");
                let mut state = self.state();
                state.lanes.retain(|other| !Arc::ptr_eq(other, &lane));
                self.count(&state);
                Err(Rv::HOST_MEMORY)
            }
        }
    }

    /// A lane's life.
    fn work(&self, lane: &Arc<Lane>) {
        loop {
            let told = !self.is_crowded() && lane.wake.watch(ALERT) || lane.wake.wait(Some(IDLE));
            let job = lane.job.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(job) = job {
                if job() {
                    self.state().left -= 1;
                    self.give_back(Arc::clone(lane));
                }
                continue;
            }
            let mut state = self.state();
            let place = state.idle.iter().position(|idle| Arc::ptr_eq(idle, lane));
            // Whoever took it meanwhile has a call for it.
            if let Some(place) = place.filter(|_| !told || state.ended) {
                state.idle.remove(place);
                state.lanes.retain(|other| !Arc::ptr_eq(other, lane));
                return;
            }
        }
    }

    /// The lane has no call any more.
    pub(super) fn give_back(&self, lane: Arc<Lane>) {
        let mut state = self.state();
        if let Some(waiter) = state.waiting.pop_front() {
            *waiter.lane.lock().unwrap_or_else(PoisonError::into_inner) = Some(lane);
            drop(state);
            waiter.told.set();
            return;
        }
        let ended = state.ended;
        state.idle.push(Arc::clone(&lane));
        self.count(&state);
        drop(state);
        if ended {
            lane.wake.set();
        }
    }

    /// A call's deadline has passed: nobody waits for a lane any more.
    pub(super) fn hang(&self) {
        self.hangs.store(true, Ordering::Release);
        {
            let mut state = self.state();
            state.left += 1;
            self.count(&state);
        }
        self.turn_away();
    }

    fn turn_away(&self) {
        let waiting = std::mem::take(&mut self.state().waiting);
        waiting.iter().for_each(|waiter| waiter.told.set());
    }

    /// Waits for a lane's answer, at most `limit`.
    pub(super) fn wait_for(&self, lane: &Lane, limit: Option<Duration>) -> bool {
        let is_quick = u128::from(self.usual.load(Ordering::Relaxed)) < QUICK.as_nanos();
        let may_watch = is_quick && !self.is_crowded();
        may_watch && lane.done.watch(limit.unwrap_or(QUICK).min(QUICK)) || lane.done.wait(limit)
    }

    /// Whether who watches would keep a lane from its core.
    fn is_crowded(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > CROWD
            || self.all.working.load(Ordering::Relaxed) >= self.world.cores()
    }

    /// A lane has got a call, or has none any more.
    fn count(&self, state: &State) {
        let free = state.idle.len().saturating_add_signed(state.left);
        let busy = state.lanes.len().saturating_sub(free);
        match (self.busy.swap(busy, Ordering::Relaxed), busy) {
            (0, 1..) => _ = self.all.working.fetch_add(1, Ordering::Relaxed),
            (1.., 0) => _ = self.all.working.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
    }

    /// A call returned in time, after so long.
    pub(super) fn answered(&self, took: Duration) {
        if self.hangs() {
            self.hangs.store(false, Ordering::Release);
        }
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let usual = self.usual.load(Ordering::Relaxed);
        self.usual.store(usual / 8 * 7 + took / 8, Ordering::Relaxed);
    }

    /// Whether the last call that was waited for did not return.
    pub(super) fn hangs(&self) -> bool {
        self.hangs.load(Ordering::Acquire)
    }

    /// Lanes without a call end now, the others when their call returns: nobody waits for that any more.
    pub(super) fn end(&self) {
        let lanes = {
            let mut state = self.state();
            state.ended = true;
            state.lanes.clone()
        };
        for lane in lanes {
            lane.wake.set();
            lane.done.set();
        }
        self.turn_away();
    }

    /// Whether its lanes have ended, or are about to.
    pub(super) fn has_ended(&self) -> bool {
        self.state().ended
    }
}
