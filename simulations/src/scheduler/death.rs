//! The death of a process: at a point of one of its threads all of them stop, as if it had been killed.
//!
//! They do nothing any more, not even end: each stays where it is, with all that it holds, until the history is over and
//! judged. What the system does for a process that was killed is done for it: its locks on files are let go, and the
//! members close its sessions. Its connections to the ledger are in no transaction, because no point is within one.
//! A call to a member that is in flight was asked for: whether the member has done it is drawn.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::panic::resume_unwind;
use std::sync::{Arc, Weak};
use std::thread;

use ha_core::seam::turns::Reached;

use super::{Row, Scheduler, State, Status, ThreadId};
use crate::panics::Stopped;

/// When a process is to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate {
    /// At this point of its threads, counted from 0.
    pub at: u64,
    /// Whether only those points count that come between two steps of a protocol.
    pub at_work: bool,
    /// How many of 1000 calls in flight the members have done.
    pub done: u64,
}

/// How far a call to a member is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Call {
    /// The member may have been asked.
    InFlight,
    /// The process dies when the member has done it.
    Last,
    /// The process dies: the member does this yet, for the thread that sees to the death.
    Finishing(ThreadId),
}

impl Row {
    /// Whether it does nothing any more but end a call.
    pub(super) fn is_last_call(&self) -> bool {
        matches!(self.call, Some(Call::Finishing(_)))
    }
}

type OnDeath = Arc<dyn Fn(u32) + Send + Sync>;

/// Who is to die, and who is dead.
#[derive(Default)]
pub(super) struct Deaths {
    fates: BTreeMap<u32, Fate>,
    dead: BTreeSet<u32>,
    /// The locks on files that each process may hold.
    locks: BTreeMap<u32, Vec<Weak<File>>>,
    /// Does for a process that was killed what others do then.
    on_death: Option<OnDeath>,
    /// The history is over, for everybody.
    pub(super) all: bool,
}

impl Deaths {
    pub(super) fn has(&self, process: Option<u32>) -> bool {
        process.is_some_and(|process| self.dead.contains(&process))
    }

    pub(super) fn holds(&mut self, process: u32, lock: Weak<File>) {
        let locks = self.locks.entry(process).or_default();
        locks.retain(|l| l.strong_count() > 0);
        locks.push(lock);
    }
}

impl State {
    /// Whether a thread's process is to die at this point of its.
    pub(super) fn dies_at(&mut self, me: ThreadId) -> bool {
        let row = &self.rows[me];
        let Some(process) = row.process else { return false };
        let Some(fate) = self.deaths.fates.get_mut(&process) else { return false };
        if self.stop.is_some() || (fate.at_work && row.step.is_none()) {
            return false;
        }
        let due = fate.at == 0;
        fate.at = fate.at.saturating_sub(1);
        due
    }
}

impl Scheduler {
    /// From now on a process is to die.
    pub fn doom(&self, process: u32, fate: Fate) {
        self.state().deaths.fates.insert(process, fate);
    }

    /// Nobody is to die any more.
    pub fn spare_all(&self) {
        self.state().deaths.fates.clear();
    }

    /// What is to be done when a process has died: it is called on one of its threads, and must not wait for anything.
    pub fn on_death(&self, done: impl Fn(u32) + Send + Sync + 'static) {
        self.state().deaths.on_death = Some(Arc::new(done));
    }

    /// Whether a process was killed, or all is over: what is dropped of it later does nothing.
    pub fn is_dead(&self, process: u32) -> bool {
        let state = self.state();
        state.deaths.all || state.deaths.dead.contains(&process)
    }

    /// A call to a member begins.
    pub fn call_begins(&self) {
        let me = self.me();
        self.state().rows[me].call = Some(Call::InFlight);
    }

    /// The member has done it, or not. Where its process died meanwhile nobody is told.
    pub fn call_ends(&self) {
        let me = self.me();
        let call = self.state().rows[me].call.take();
        match call {
            Some(Call::InFlight) | None => {}
            Some(Call::Last) => self.end_process(me),
            Some(Call::Finishing(for_whom)) => {
                let seat = {
                    let mut state = self.state();
                    state.rows[me].status = Status::Dead;
                    state.current = for_whom;
                    state.rows[for_whom].seat.give();
                    Arc::clone(&state.rows[me].seat)
                };
                seat.sit();
                self.unwind();
            }
        }
    }

    /// A thread's process dies at this point, or when the member has done what the thread asks it for.
    pub(super) fn die(&self, me: ThreadId) {
        {
            let mut state = self.state();
            let fate = state.rows[me].process.and_then(|process| state.deaths.fates.get(&process).copied());
            let done = fate.map_or(0, |f| f.done);
            if state.rows[me].call == Some(Call::InFlight) && state.random.chance(done) {
                state.rows[me].call = Some(Call::Last);
                return;
            }
        }
        self.end_process(me);
    }

    /// Ends the process of the thread `me`, which has the baton.
    fn end_process(&self, me: ThreadId) {
        let Some(process) = self.state().rows[me].process else { return };
        let done = self.state().deaths.fates.remove(&process).map_or(0, |fate| fate.done);
        let count = self.state().rows.len();
        for id in (0..count).filter(|id| *id != me) {
            self.finish_call_of(me, id, process, done);
        }
        let (locks, on_death) = {
            let mut state = self.state();
            state.deaths.dead.insert(process);
            let state = &mut *state;
            let mut dead = BTreeSet::new();
            for (id, row) in state.rows.iter_mut().enumerate() {
                if row.process == Some(process) && row.status != Status::Finished {
                    row.status = Status::Dead;
                    dead.insert(id);
                    if let Some(step) = row.step {
                        *state.reached.entry(Reached::Died(step)).or_default() += 1;
                    }
                }
            }
            for row in &mut state.rows {
                if matches!(row.status, Status::Joining(id) if dead.contains(&id)) {
                    row.status = Status::Ready;
                }
            }
            Self::unblock(state);
            (state.deaths.locks.remove(&process).unwrap_or_default(), state.deaths.on_death.clone())
        };
        for lock in locks.iter().filter_map(Weak::upgrade) {
            _ = lock.unlock();
        }
        if let Some(on_death) = on_death {
            on_death(process);
        }
        let seat = {
            let mut state = self.state();
            let next = self.draw(&mut state);
            state.switches += 1;
            state.current = next;
            state.rows[next].seat.give();
            Arc::clone(&state.rows[me].seat)
        };
        seat.sit();
        self.unwind();
    }

    /// A member does what a dying thread has asked it for, or does not.
    fn finish_call_of(&self, me: ThreadId, id: ThreadId, process: u32, done: u64) {
        let seat = {
            let mut state = self.state();
            let row = &state.rows[id];
            let asked = row.process == Some(process) && !row.status.is_over() && row.call.is_some();
            if !asked || !state.random.chance(done) {
                return;
            }
            state.rows[id].call = Some(Call::Finishing(me));
            state.current = id;
            state.rows[id].seat.give();
            Arc::clone(&state.rows[me].seat)
        };
        seat.sit();
    }

    /// The history is over: what a thread that was killed has held is let go.
    fn unwind(&self) {
        if self.must_stop() && !thread::panicking() {
            resume_unwind(Box::new(Stopped));
        }
    }
}
