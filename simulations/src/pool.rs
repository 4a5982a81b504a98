//! Threads of the operating system that are used again: starting one costs more than a simulated thread's whole life.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

type Job = Box<dyn FnOnce() + Send>;

/// Threads that wait for something to run.
#[derive(Default)]
pub struct Pool {
    idle: Mutex<Vec<Sender<Job>>>,
}

impl Pool {
    /// No threads yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Runs `job` on a thread that has nothing to do, or on a new one.
    ///
    /// # Panics
    /// Where the operating system gives no thread.
    pub fn run(self: &Arc<Self>, job: Job) {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let sender = idle.unwrap_or_else(|| self.start());
        sender.send(job).expect("a thread of the pool waits for jobs");
    }

    fn start(self: &Arc<Self>) -> Sender<Job> {
        let (sender, jobs) = channel::<Job>();
        let (pool, again) = (Arc::downgrade(self), sender.clone());
        let body = move || {
            let again = again;
            while let Ok(job) = jobs.recv() {
                job();
                let Some(pool) = pool.upgrade() else { return };
                pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(again.clone());
            }
        };
        std::thread::Builder::new().name("simulated".into()).spawn(body).expect("a thread can be had");
        sender
    }
}
