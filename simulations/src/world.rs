//! The outside of a simulated process: its clock, its randomness, its threads and its events are the scheduler's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ha_core::seam::{Event, Thread, World};

use crate::random::Random;
use crate::scheduler::{EventId, Scheduler, ThreadId};

/// The world of one simulated process.
pub struct SimWorld {
    scheduler: Arc<Scheduler>,
    random: Mutex<Random>,
    process: u32,
}

impl SimWorld {
    /// The world of the process of this number.
    pub fn new(scheduler: &Arc<Scheduler>, random: Random, process: u32) -> Arc<Self> {
        Arc::new(SimWorld { scheduler: Arc::clone(scheduler), random: Mutex::new(random), process })
    }
}

struct SimThread(Arc<Scheduler>, ThreadId);

impl Thread for SimThread {
    fn is_finished(&self) -> bool {
        self.0.is_finished(self.1)
    }

    fn join(self: Box<Self>) {
        self.0.join(self.1);
    }
}

struct SimEvent(Arc<Scheduler>, EventId);

impl Event for SimEvent {
    fn set(&self) {
        self.0.set(self.1);
    }

    fn wait(&self, limit: Option<Duration>) -> bool {
        self.0.wait(self.1, limit)
    }
}

impl World for SimWorld {
    fn now(&self) -> Duration {
        self.scheduler.now()
    }

    fn wall_clock(&self) -> Duration {
        // Some day in 2026: only people read it.
        Duration::from_secs(1_790_000_000) + self.scheduler.now()
    }

    fn random(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).fill(bytes);
        Ok(())
    }

    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> std::io::Result<Box<dyn Thread>> {
        let name = format!("{}:{name}", self.process);
        let id = self.scheduler.spawn_in(Some(self.process), &name, body);
        Ok(Box::new(SimThread(Arc::clone(&self.scheduler), id)))
    }

    fn event(&self) -> Arc<dyn Event> {
        Arc::new(SimEvent(Arc::clone(&self.scheduler), self.scheduler.new_event()))
    }
}
