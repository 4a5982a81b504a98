//! The threads that make a connection's calls: who has one, who waits for one, and who has left one behind.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use ha_token::{Result, Rv};

use crate::policy::width::{self, STALL, Use};
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

/// A call that has waited so long for a lane looks whether one is to be put to work for it: nobody else may come by.
const NUDGE: Duration = Duration::from_millis(5);

/// What a lane does. Answers whether its caller had left it behind.
pub(super) type Job = Box<dyn FnOnce() -> bool + Send>;

/// A thread of ours, and the one call that it makes at a time.
pub(super) struct Lane {
    at: Mutex<At>,
    /// When it began its call, in nanoseconds, or [`AT_REST`].
    began: AtomicU64,
    /// There is a job, or the end.
    wake: Arc<dyn Event>,
}

const AT_REST: u64 = u64::MAX;

/// A time as lanes keep it.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(AT_REST - 1)
}

/// Where a lane is.
#[derive(Default)]
struct At {
    /// What it is to do next.
    job: Option<Job>,
    /// Who waits for what it does.
    ticket: Option<Arc<Ticket>>,
}

/// A caller's wait for one call.
pub(super) struct Ticket {
    /// The call was made, or will be by nobody.
    done: Arc<dyn Event>,
    /// No lane has begun it yet.
    queued: AtomicBool,
    /// No lane will: one hangs, or all have ended.
    turned_away: AtomicBool,
    /// Until when its caller waits, in nanoseconds.
    until: AtomicU64,
}

/// A call for which no lane is at work yet.
struct Queued {
    ticket: Arc<Ticket>,
    job: Job,
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
    /// Tickets that are not used now.
    tickets: ArrayQueue<Arc<Ticket>>,
    /// Calls that wait for a lane. Changed under the lock of `state`.
    waiting: AtomicUsize,
    /// How much of the cores its calls keep busy ([`Use`]).
    used: AtomicU64,
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
    /// Calls for which no lane is at work yet, the next one first.
    queue: VecDeque<Queued>,
    ended: bool,
}

impl State {
    /// Lanes that have a call, those too that were left behind in one.
    fn at_work(&self) -> usize {
        self.lanes.len().saturating_sub(self.idle.len())
    }

    /// Lanes that have a call, but for those that were left behind in one.
    fn working(&self) -> usize {
        self.lanes.len().saturating_sub(self.idle.len().saturating_add_signed(self.left))
    }
}

impl Lane {
    fn at(&self) -> MutexGuard<'_, At> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives it a call, under the lock of the pool's state.
    fn give(&self, Queued { ticket, job }: Queued, now: Duration) {
        ticket.queued.store(false, Ordering::Release);
        self.began.store(nanos(now), Ordering::Relaxed);
        *self.at() = At { job: Some(job), ticket: Some(ticket) };
    }

    /// Whether it is at work, and may well be on a core.
    fn is_busy(&self, now: Duration) -> bool {
        let began = self.began.load(Ordering::Relaxed);
        began != AT_REST && now.saturating_sub(Duration::from_nanos(began)) < STALL
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
            tickets: ArrayQueue::new(MOST),
            waiting: AtomicUsize::new(0),
            used: AtomicU64::new(Use::UNKNOWN.0),
            usual: AtomicU64::new(0),
        });
        pool.all.add_pool(&pool);
        pool
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ticket(&self) -> Arc<Ticket> {
        let used = self.tickets.pop();
        used.unwrap_or_else(|| {
            let (queued, turned_away) = (AtomicBool::new(true), AtomicBool::new(false));
            Arc::new(Ticket {
                done: self.world.event(),
                queued,
                turned_away,
                until: AtomicU64::new(u64::MAX),
            })
        })
    }

    /// The call has been made, and was waited for: the ticket serves for another one.
    pub(super) fn give_back(&self, ticket: Arc<Ticket>) {
        ticket.queued.store(true, Ordering::Relaxed);
        // With as many as are of use it goes.
        drop(self.tickets.push(ticket));
    }

    /// Has a call made at this time, or after it, that is waited for `until` then: by the lane that was used last, by a new
    /// one, or by one that is at work and makes others before. With `spare` it has a lane at once, one more than others may have.
    ///
    /// # Errors
    /// `CKR_HOST_MEMORY` when a thread could not be started; [`Rv::NO_ANSWER`] where every lane has a call and one was found
    /// to hang; `CKR_CRYPTOKI_NOT_INITIALIZED` after the end.
    pub(super) fn submit(
        self: &Arc<Self>,
        job: Job,
        now: Duration,
        until: Option<Duration>,
        spare: bool,
    ) -> Result<Arc<Ticket>> {
        let ticket = self.ticket();
        ticket.until.store(until.map_or(u64::MAX, nanos), Ordering::Relaxed);
        let most = if spare { MOST + SPARE } else { MOST };
        let mut state = self.state();
        if state.ended {
            return Err(Rv::CRYPTOKI_NOT_INITIALIZED);
        }
        if state.at_work() >= most && self.hangs() {
            return Err(Rv::NO_ANSWER);
        }
        let call = Queued { ticket: Arc::clone(&ticket), job };
        match spare {
            true => state.queue.push_front(call),
            // Not before those that wait already.
            false => state.queue.push_back(call),
        }
        if !spare && !self.wants_one_more(&state, now) {
            self.count(&state);
        } else if let Err(rv) = self.put_to_work(state, most, now)
            && self.withdraw(&ticket).is_some()
        {
            return Err(rv);
        }
        Ok(ticket)
    }

    /// Whether one lane more is to be at work for the calls that wait.
    fn wants_one_more(&self, state: &State, now: Duration) -> bool {
        let (cores, used) = (self.world.cores(), Use(self.used.load(Ordering::Relaxed)));
        let wants = |working| width::one_more(working, cores, used);
        // Nearly always the first one tells it.
        wants(state.working()) || wants(state.lanes.iter().filter(|lane| lane.is_busy(now)).count())
    }

    /// Has the first call that waits begun by one lane more, where there may be so many at work.
    ///
    /// # Errors
    /// `CKR_HOST_MEMORY` when a thread could not be started: the call waits.
    fn put_to_work<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, State>,
        most: usize,
        now: Duration,
    ) -> Result<()> {
        let Some((lane, is_new)) = self.free_lane(&mut state, most) else {
            self.count(&state);
            return Ok(());
        };
        if is_new {
            self.count(&state);
            drop(state);
            self.start(&lane)?;
            state = self.state();
        }
        match state.queue.pop_front() {
            Some(call) => lane.give(call, now),
            // Another lane was quicker, or all have ended.
            None => state.idle.push(Arc::clone(&lane)),
        }
        self.count(&state);
        drop(state);
        lane.wake.set();
        Ok(())
    }

    /// A lane without a call, where there may be so many at work; and whether its thread is still to be started.
    fn free_lane(&self, state: &mut State, most: usize) -> Option<(Arc<Lane>, bool)> {
        if state.at_work() >= most {
            return None;
        }
        if let Some(lane) = state.idle.pop() {
            return Some((lane, false));
        }
        let (at, began) = (Mutex::default(), AtomicU64::new(AT_REST));
        let lane = Arc::new(Lane { at, began, wake: self.world.event() });
        state.lanes.push(Arc::clone(&lane));
        Some((lane, true))
    }

    fn start(self: &Arc<Self>, lane: &Arc<Lane>) -> Result<()> {
        let body = {
            let (pool, lane) = (Arc::clone(self), Arc::clone(lane));
            move || pool.work(&lane)
        };
        match self.world.spawn(&self.name, Box::new(body)) {
            Ok(thread) => {
                self.all.add_thread(thread);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(lane = self.name, %error, "no thread could be started for a call with a deadline");
                let mut state = self.state();
                state.lanes.retain(|other| !Arc::ptr_eq(other, lane));
                self.count(&state);
                Err(Rv::HOST_MEMORY)
            }
        }
    }

    /// Makes a lane's call; `calls`: how many it has made before.
    fn make(&self, job: Job, calls: u32) -> bool {
        let looks = calls.is_multiple_of(width::EVERY);
        let time = || self.world.time_on_core().zip(Some(self.world.now()));
        let before = looks.then(time).flatten();
        let was_left = job();
        if let Some(((core, began), (core_after, ended))) = before.and_then(|before| Some((before, time()?)))
        {
            let used = Use(self.used.load(Ordering::Relaxed));
            let working = self.busy.load(Ordering::Relaxed).max(1);
            let used = used.seen(working, ended.saturating_sub(began), core_after.saturating_sub(core));
            // Of two that look at once one is not heard, which is no matter.
            self.used.store(used.0, Ordering::Relaxed);
        }
        was_left
    }

    /// A lane's life.
    fn work(&self, lane: &Arc<Lane>) {
        let mut calls = 0;
        loop {
            let told = !self.is_crowded() && lane.wake.watch(ALERT) || lane.wake.wait(Some(IDLE));
            let mut next = lane.at().job.take();
            if next.is_some() {
                while let Some(job) = next {
                    let was_left = self.make(job, calls);
                    calls = calls.wrapping_add(1);
                    next = self.made(lane, was_left);
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

    /// A lane has made its call. Answers what it is to do next, if it is not to rest.
    fn made(&self, lane: &Arc<Lane>, was_left: bool) -> Option<Job> {
        let ticket = std::mem::take(&mut *lane.at()).ticket;
        let mut state = self.state();
        if was_left {
            state.left -= 1;
        }
        lane.began.store(AT_REST, Ordering::Relaxed);
        // Whether it makes the next one is decided as if it were asleep, and might be woken.
        state.idle.push(Arc::clone(lane));
        let mut next = None;
        if !state.queue.is_empty() && !state.ended {
            let now = self.world.now();
            if state.at_work() < MOST
                && self.wants_one_more(&state, now)
                && let Some(call) = state.queue.pop_front()
            {
                state.idle.pop();
                lane.give(call, now);
                next = lane.at().job.take();
            }
        }
        self.count(&state);
        let is_over = state.ended && next.is_none();
        drop(state);
        // It rests, or is at work again, by the time that its caller goes on.
        if let Some(ticket) = ticket.filter(|_| !was_left) {
            ticket.done.set();
        }
        if is_over {
            lane.wake.set();
        }
        next
    }

    /// A call's deadline has passed. Those that wait for a lane have another one; where there is none nobody waits any more.
    pub(super) fn hang(self: &Arc<Self>, ticket: &Ticket) {
        // It has been said.
        ticket.until.store(u64::MAX, Ordering::Relaxed);
        self.hangs.store(true, Ordering::Release);
        let mut state = self.state();
        state.left += 1;
        if state.at_work() >= MOST {
            self.turn_away(state);
        } else if !state.queue.is_empty() {
            // Where no thread can be started they wait for those that there are.
            _ = self.put_to_work(state, MOST, self.world.now());
        } else {
            self.count(&state);
        }
    }

    /// Calls that no lane has begun will be made by nobody.
    fn turn_away(&self, mut state: MutexGuard<'_, State>) {
        let queue = std::mem::take(&mut state.queue);
        self.count(&state);
        drop(state);
        for Queued { ticket, job } in queue {
            drop(job);
            ticket.turned_away.store(true, Ordering::Release);
            ticket.done.set();
        }
    }

    /// A call that no lane has begun is made by nobody. Answers why, if it was one.
    pub(super) fn withdraw(&self, ticket: &Arc<Ticket>) -> Option<Rv> {
        // Nearly always, and without the lock: once one has begun it that stays so.
        if !ticket.queued.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.state();
        if !ticket.queued.load(Ordering::Relaxed) {
            return None;
        }
        state.queue.retain(|call| !Arc::ptr_eq(&call.ticket, ticket));
        self.count(&state);
        // Its caller may not have said so yet.
        let now = nanos(self.world.now());
        let is_late = |at: &At| at.ticket.as_ref().is_some_and(|t| t.until.load(Ordering::Relaxed) <= now);
        let one_hangs = || self.hangs() || state.lanes.iter().any(|lane| is_late(&lane.at()));
        let is_sure = ticket.turned_away.load(Ordering::Acquire) || state.ended || one_hangs();
        Some(if is_sure { Rv::NO_ANSWER } else { Rv::HOST_MEMORY })
    }

    /// Waits for a call to be made, no longer than `until`. Answers whether it was, or will be by nobody.
    pub(super) fn wait_for(self: &Arc<Self>, ticket: &Ticket, until: Option<Duration>) -> bool {
        let left = || until.map(|until| until.saturating_sub(self.world.now()));
        while ticket.queued.load(Ordering::Relaxed) {
            // The more wait the less often each of them looks.
            let waiting = u32::try_from(self.waiting.load(Ordering::Relaxed) / MOST).unwrap_or(u32::MAX - 1);
            let (left, patience) = (left(), NUDGE.saturating_mul(waiting + 1));
            if ticket.done.wait(Some(left.map_or(patience, |left| left.min(patience)))) {
                return true;
            }
            if left.is_some_and(|left| left <= patience) {
                return false;
            }
            self.nudge();
        }
        let is_quick = u128::from(self.usual.load(Ordering::Relaxed)) < QUICK.as_nanos();
        let may_watch = is_quick && !self.is_crowded();
        let left = left();
        may_watch && ticket.done.watch(left.unwrap_or(QUICK).min(QUICK)) || ticket.done.wait(left)
    }

    /// A call has waited for a lane: the first one that does so has one now, if those at work wait for something.
    fn nudge(self: &Arc<Self>) {
        let now = self.world.now();
        let state = self.state();
        if !state.queue.is_empty() && self.wants_one_more(&state, now) {
            // Where no thread can be started it goes on waiting for those that there are.
            _ = self.put_to_work(state, MOST, now);
        }
    }

    /// Calls that no lane has begun.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether who watches would keep a lane from its core.
    fn is_crowded(&self) -> bool {
        let cores = self.world.cores();
        self.busy.load(Ordering::Relaxed) >= cores
            || self.waiting.load(Ordering::Relaxed) > 0
            || self.all.working.load(Ordering::Relaxed) >= cores
    }

    /// A lane has got a call, or has none any more; or a call waits for one, or does no more.
    fn count(&self, state: &State) {
        self.waiting.store(state.queue.len(), Ordering::Relaxed);
        let busy = state.working();
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
        let mut state = self.state();
        state.ended = true;
        let lanes = state.lanes.clone();
        self.turn_away(state);
        for lane in lanes {
            if let Some(ticket) = &lane.at().ticket {
                ticket.done.set();
            }
            lane.wake.set();
        }
    }
}
