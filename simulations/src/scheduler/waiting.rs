//! What a thread waits for: an event, a moment, or another thread's end.

use std::thread;
use std::time::Duration;

use super::{EventId, Row, Scheduler, Status, ThreadId};

impl Scheduler {
    /// A new event, not set.
    pub fn new_event(&self) -> EventId {
        let mut state = self.state();
        let id = state.set.len() as EventId;
        state.set.insert(id, false);
        id
    }

    /// Sets an event.
    pub fn set(&self, event: EventId) {
        {
            let mut state = self.state();
            state.set.insert(event, true);
            for row in &mut state.rows {
                if matches!(row.status, Status::Waiting { event: Some(e), .. } if e == event) {
                    row.status = Status::Ready;
                }
            }
        }
        if Self::is_here() {
            self.point_of(self.me());
        }
    }

    /// Waits for an event, at most until `limit` has passed; answers whether it was set, and resets it.
    pub fn wait(&self, event: EventId, limit: Option<Duration>) -> bool {
        let me = self.me();
        let until = limit.map(|l| self.now() + l);
        loop {
            {
                let mut state = self.state();
                if state.set.insert(event, false) == Some(true) {
                    return true;
                }
                if until.is_some_and(|u| u <= state.now) {
                    return false;
                }
                if thread::panicking() {
                    // What is unwound waits for nothing any more, and lets the others get on with theirs.
                    state.now += limit.unwrap_or_default();
                    state.rows[me].status = Status::Ready;
                    drop(state);
                    self.hand_on(me);
                    return false;
                }
                state.rows[me].status = Status::Waiting { event: Some(event), until };
                Self::unblock(&mut state);
            }
            self.hand_on(me);
        }
    }

    /// Waits for a while.
    pub fn sleep(&self, time: Duration) {
        let me = self.me();
        {
            let mut state = self.state();
            if state.rows[me].is_last_call() {
                return;
            }
            let until = Some(state.now + time);
            state.rows[me].status = Status::Waiting { event: None, until };
            Self::unblock(&mut state);
        }
        self.hand_on(me);
    }

    /// Whether a thread has ended.
    pub fn is_finished(&self, id: ThreadId) -> bool {
        self.state().rows[id].status.is_over()
    }

    /// The names of the threads of a process that have not ended, without the one that asks.
    pub fn running(&self, process: u32) -> Vec<String> {
        let me = self.me();
        let state = self.state();
        let running =
            |(id, r): &(usize, &Row)| *id != me && !r.status.is_over() && r.process == Some(process);
        state.rows.iter().enumerate().filter(running).map(|(_, r)| r.name.clone()).collect()
    }

    /// Waits until a thread has ended, by itself or with its process.
    pub fn join(&self, id: ThreadId) {
        let me = self.me();
        loop {
            {
                let mut state = self.state();
                if state.rows[id].status.is_over() {
                    return;
                }
                state.rows[me].status = Status::Joining(id);
                Self::unblock(&mut state);
            }
            self.hand_on(me);
        }
    }
}
