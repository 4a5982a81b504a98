//! Whose turn it is: the threads of a simulation run one at a time, in an order that the seed decides, and the clock is
//! the scheduler's.
//!
//! The threads are the operating system's, because the core keeps things by thread; each waits until it is given the
//! baton. It is handed on where a thread waits, at each lock, and at each call to a member; which thread gets it is drawn.
//! When no thread can go on the clock jumps to the first moment that somebody waits for: an hour of back-off costs
//! nothing. When nobody waits for a moment either, the threads have locked each other out, and that is said.

mod death;
mod waiting;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use ha_core::seam::turns::{self, Reached, Step, Turns};

use crate::panics::{Stopped, words};
use crate::pool::Pool;
use crate::random::Random;
use crate::seat::Seat;
use crate::trace::Trace;

pub use death::Fate;

/// A thread's number in its simulation.
pub type ThreadId = usize;

/// An event's number in its simulation.
pub type EventId = u64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Status {
    /// It can go on.
    Ready,
    /// A lock that it needs was not free when it last looked.
    Blocked,
    /// It waits for an event, for a moment, or for both.
    Waiting {
        event: Option<EventId>,
        until: Option<Duration>,
    },
    /// It waits for another thread's end.
    Joining(ThreadId),
    Finished,
    /// Its process was killed: it does nothing any more.
    Dead,
}

impl Status {
    fn is_over(self) -> bool {
        matches!(self, Status::Finished | Status::Dead)
    }
}

struct Row {
    name: String,
    /// The process that it belongs to, if it belongs to one.
    process: Option<u32>,
    status: Status,
    seat: Arc<Seat>,
    /// The thread for which it does what it does, if that is another one.
    acts_for: Option<ThreadId>,
    /// The last step that it has done of a protocol.
    step: Option<Step>,
    /// How far a call to a member is, if it is in one.
    call: Option<death::Call>,
}

struct State {
    now: Duration,
    random: Random,
    rows: Vec<Row>,
    current: ThreadId,
    /// Events that are set.
    set: BTreeMap<EventId, bool>,
    /// How often of 1000 the thread that has the baton keeps it.
    stays: u64,
    /// Why every thread is to stop.
    stop: Option<String>,
    /// The words of the first panic in a thread other than the first one.
    panicked: Option<String>,
    switches: u64,
    points: u64,
    reached: BTreeMap<Reached, u64>,
    deaths: death::Deaths,
    /// What was spent when the first thread had ended, and only what was killed was left.
    spent: Option<Cost>,
    /// After this moment of virtual time, or so many points, a history is taken for one that does not end.
    longest: Duration,
    most_points: u64,
}

/// The scheduler of one simulation.
pub struct Scheduler {
    state: Mutex<State>,
    pool: Arc<Pool>,
    /// What happened.
    pub trace: Trace,
    /// The disk that ledgers are on.
    disk_full: AtomicBool,
}

thread_local! {
    static ME: Cell<Option<ThreadId>> = const { Cell::new(None) };
    /// The simulation that this thread is in.
    static HERE: RefCell<Option<Arc<Scheduler>>> = const { RefCell::new(None) };
}

/// What a simulation cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Places where another thread could go on.
    pub points: u64,
    /// How often one did.
    pub switches: u64,
    /// Virtual time.
    pub time: Duration,
}

impl Scheduler {
    /// Runs `body` as the first thread of a simulation, and every thread that it starts, to their ends. Answers what it
    /// answered, or why the threads were stopped, or the words of a panic.
    pub fn run<T: Send>(
        pool: &Arc<Pool>,
        mut random: Random,
        trace: Trace,
        body: impl FnOnce(&Arc<Scheduler>) -> T + Send,
    ) -> (Arc<Scheduler>, Result<T, String>) {
        let stays = *random.pick(&[0, 300, 700, 900, 970]);
        let scheduler = Arc::new(Scheduler {
            state: Mutex::new(State {
                now: Duration::from_secs(1),
                random,
                rows: Vec::new(),
                current: 0,
                set: BTreeMap::new(),
                stays,
                stop: None,
                panicked: None,
                switches: 0,
                points: 0,
                reached: BTreeMap::new(),
                deaths: death::Deaths::default(),
                spent: None,
                longest: Duration::from_secs(100_000),
                most_points: 3_000_000,
            }),
            pool: Arc::clone(pool),
            trace,
            disk_full: AtomicBool::new(false),
        });
        let me = scheduler.enrol("main", None);
        let answer = scheduler.as_thread(me, || body(&scheduler));
        // The others are told to stop, one after the other, and the last one gives the baton back here.
        if answer.is_err() || scheduler.others_left(me) {
            if answer.is_ok() && !scheduler.must_stop() {
                // What is unwound now is nobody's, and no part of what happened.
                scheduler.trace.close();
                let spent = scheduler.cost();
                scheduler.state().spent = Some(spent);
            }
            scheduler.state().stop.get_or_insert_with(|| "the history is over".into());
        }
        scheduler.leave_last(me);
        scheduler.state().deaths.all = true;
        let (panicked, stop) = {
            let mut state = scheduler.state();
            (state.panicked.take(), state.stop.clone())
        };
        let answer = match (answer, panicked) {
            (_, Some(words)) => Err(words),
            (Ok(value), None) => Ok(value),
            (Err(payload), None) => Err(words(&*payload).or(stop).unwrap_or_else(|| "a panic".into())),
        };
        (scheduler, answer)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enrol(&self, name: &str, process: Option<u32>) -> ThreadId {
        let mut state = self.state();
        // One that a process was about to start when it was killed never begins.
        let status = if state.deaths.has(process) { Status::Dead } else { Status::Ready };
        let row = Row {
            name: name.into(),
            process,
            status,
            seat: Arc::default(),
            step: None,
            acts_for: None,
            call: None,
        };
        state.rows.push(row);
        state.rows.len() - 1
    }

    /// Runs `body` as the thread `me`, which has the baton.
    fn as_thread<T>(
        self: &Arc<Self>,
        me: ThreadId,
        body: impl FnOnce() -> T,
    ) -> Result<T, Box<dyn Any + Send>> {
        ME.set(Some(me));
        turns::take_part(Some(Arc::clone(self) as Arc<dyn Turns>));
        HERE.set(Some(Arc::clone(self)));
        let answer = catch_unwind(AssertUnwindSafe(body));
        HERE.set(None);
        turns::take_part(None);
        answer
    }

    /// Starts a thread that belongs to no process. It gets the baton when it is drawn.
    pub fn spawn(self: &Arc<Self>, name: &str, body: Box<dyn FnOnce() + Send>) -> ThreadId {
        self.spawn_in(None, name, body)
    }

    /// The same, for a thread of a process.
    pub fn spawn_in(
        self: &Arc<Self>,
        process: Option<u32>,
        name: &str,
        body: Box<dyn FnOnce() + Send>,
    ) -> ThreadId {
        let id = self.enrol(name, process);
        let me = Arc::clone(self);
        let seat = Arc::clone(&self.state().rows[id].seat);
        self.pool.run(Box::new(move || {
            seat.sit();
            let stopped = me.must_stop();
            if !stopped && let Err(payload) = me.as_thread(id, body) {
                me.contain(id, &*payload);
            }
            ME.set(None);
            me.finish(id);
        }));
        self.point_of(self.me());
        id
    }

    /// A panic that was not ours to make ends the simulation, and is its answer: also where it comes when the first thread
    /// has ended.
    fn contain(&self, id: ThreadId, payload: &(dyn Any + Send)) {
        if let Some(words) = words(payload) {
            let mut state = self.state();
            let words = format!("thread {} panicked: {words}", state.rows[id].name);
            state.panicked.get_or_insert(words.clone());
            state.stop.get_or_insert(words);
        }
    }

    fn must_stop(&self) -> bool {
        self.state().stop.is_some()
    }

    fn me(&self) -> ThreadId {
        ME.get().expect("a thread of a simulation")
    }

    /// Whether this thread belongs to a simulation.
    fn is_here() -> bool {
        ME.get().is_some()
    }

    /// The name of the history that this thread is in.
    pub(crate) fn history() -> Option<String> {
        HERE.with_borrow(|here| here.as_ref().map(|here| here.trace.name.clone()))
    }

    /// The name of the thread that has the baton.
    pub fn name(&self) -> String {
        let state = self.state();
        state.rows[state.current].name.clone()
    }

    /// The thread for which the current one does what it does: itself, unless it makes calls for others.
    pub fn caller(&self) -> String {
        let state = self.state();
        let current = &state.rows[state.current];
        current.acts_for.map_or(current, |other| &state.rows[other]).name.clone()
    }

    /// Adds a line of the core's log to the trace of the history that this thread is in, for who reads it: the log is
    /// said of what happens, and does not make it.
    pub fn log(line: &str) {
        HERE.with_borrow(|here| {
            if let Some(here) = here {
                here.trace.note(here.now(), &here.name(), line);
            }
        });
    }

    /// Whether the disk that ledgers are on takes no more.
    pub fn set_disk_full(&self, full: bool) {
        self.disk_full.store(full, Ordering::Release);
    }

    /// Which rows of the core's tables were reached, and how often.
    pub fn reached(&self) -> BTreeMap<Reached, u64> {
        self.state().reached.clone()
    }

    /// Virtual time since some moment.
    pub fn now(&self) -> Duration {
        self.state().now
    }

    /// Lets time pass for everybody, while this thread goes on.
    pub fn pass(&self, time: Duration) {
        self.state().now += time;
    }

    /// What was spent so far.
    pub fn cost(&self) -> Cost {
        let state = self.state();
        state.spent.unwrap_or(Cost { points: state.points, switches: state.switches, time: state.now })
    }

    /// Ends the simulation: every thread stops at its next point.
    pub fn stop(&self, why: String) -> ! {
        self.state().stop.get_or_insert(why);
        resume_unwind(Box::new(Stopped));
    }

    /// Who was told that a lock is not free looks again once somebody has gone on.
    fn unblock(state: &mut State) {
        for row in &mut state.rows {
            if row.status == Status::Blocked {
                row.status = Status::Ready;
            }
        }
    }

    fn point_of(&self, me: ThreadId) {
        let dies = {
            let mut state = self.state();
            if state.rows[me].is_last_call() {
                return;
            }
            state.points += 1;
            if state.points > state.most_points && state.stop.is_none() {
                state.stop = Some(format!("the history does not end: {} points", state.points));
            }
            Self::unblock(&mut state);
            let dies = state.dies_at(me);
            let stays = state.stays;
            if !dies && state.stop.is_none() && state.random.chance(stays) {
                return;
            }
            dies
        };
        if dies {
            self.die(me);
        }
        self.hand_on(me);
    }

    /// Hands the baton to a thread that can go on, and waits until it comes back.
    fn hand_on(&self, me: ThreadId) {
        let seat = {
            let mut state = self.state();
            let next = self.draw(&mut state);
            if next == me {
                None
            } else {
                state.switches += 1;
                state.current = next;
                Some((Arc::clone(&state.rows[next].seat), Arc::clone(&state.rows[me].seat)))
            }
        };
        // Given when the state is free: the next thread needs it at once.
        if let Some((next, mine)) = seat {
            next.give();
            mine.sit();
        }
        if self.must_stop() && !thread::panicking() {
            resume_unwind(Box::new(Stopped));
        }
    }

    /// Draws the thread that goes on. If none can, time passes.
    fn draw(&self, state: &mut State) -> ThreadId {
        loop {
            let now = state.now;
            let ending = state.stop.is_some();
            for row in &mut state.rows {
                match row.status {
                    // Whoever is to stop has to go on for that.
                    Status::Waiting { .. } | Status::Blocked | Status::Joining(_) | Status::Dead
                        if ending =>
                    {
                        row.status = Status::Ready;
                    }
                    Status::Waiting { until: Some(until), .. } if until <= now => row.status = Status::Ready,
                    _ => {}
                }
            }
            let ready = state.rows.iter().filter(|r| r.status == Status::Ready).count() as u64;
            if ready > 0 {
                let nth = state.random.below(ready) as usize;
                let mut ids = (0..state.rows.len()).filter(|i| state.rows[*i].status == Status::Ready);
                return ids.nth(nth).expect("counted");
            }
            let moments = state.rows.iter().filter_map(|r| match r.status {
                Status::Waiting { until, .. } => until,
                _ => None,
            });
            match moments.min() {
                Some(moment) if moment <= state.longest => state.now = moment.max(now),
                Some(_) => state.stop = Some("the history does not end: too much time has passed".into()),
                None => {
                    let who = state.rows.iter().filter(|r| !r.status.is_over());
                    let who: Vec<_> = who.map(|r| format!("{} ({:?})", r.name, r.status)).collect();
                    state.stop = Some(format!("nobody can go on: {}", who.join(", ")));
                    Self::unblock(state);
                }
            }
        }
    }

    fn others_left(&self, me: ThreadId) -> bool {
        self.state().rows.iter().enumerate().any(|(i, r)| i != me && r.status != Status::Finished)
    }

    /// The first thread's end: the others go on until each has ended.
    fn leave_last(&self, me: ThreadId) {
        while self.others_left(me) {
            let seat = {
                let mut state = self.state();
                state.rows[me].status = Status::Blocked;
                let next = self.draw(&mut state);
                state.rows[me].status = Status::Ready;
                if next == me {
                    continue;
                }
                state.current = next;
                state.rows[next].seat.give();
                Arc::clone(&state.rows[me].seat)
            };
            seat.sit();
        }
        ME.set(None);
    }

    /// A thread's end: somebody else goes on.
    fn finish(&self, me: ThreadId) {
        let mut state = self.state();
        for row in &mut state.rows {
            if row.status == Status::Joining(me) {
                row.status = Status::Ready;
            }
        }
        state.rows[me].status = Status::Finished;
        Self::unblock(&mut state);
        let next = self.draw(&mut state);
        state.current = next;
        state.rows[next].seat.give();
    }
}

impl Turns for Scheduler {
    fn point(&self) {
        if let Some(me) = ME.get() {
            self.point_of(me);
        }
    }

    fn blocked(&self) {
        let Some(me) = ME.get() else { return };
        self.state().rows[me].status = Status::Blocked;
        self.hand_on(me);
        self.state().rows[me].status = Status::Ready;
    }

    fn reached(&self, what: Reached) {
        *self.state().reached.entry(what).or_default() += 1;
    }

    fn disk_is_full(&self) -> bool {
        self.disk_full.load(Ordering::Acquire)
    }

    fn step(&self, step: Option<Step>) {
        let Some(me) = ME.get() else { return };
        self.state().rows[me].step = step;
    }

    fn who(&self) -> Option<usize> {
        ME.get()
    }

    fn acts_for(&self, who: Option<usize>) {
        let Some(me) = ME.get() else { return };
        self.state().rows[me].acts_for = who;
    }

    fn holds(&self, lock: Weak<File>) {
        let Some(me) = ME.get() else { return };
        let mut state = self.state();
        if let Some(process) = state.rows[me].process {
            state.deaths.holds(process, lock);
        }
    }
}
