//! Where a thread waits for the baton.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};

/// One thread's.
#[derive(Default)]
pub(crate) struct Seat {
    given: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Seat {
    pub(crate) fn sit(&self) {
        _ = self.thread.set(thread::current());
        while !self.given.swap(false, Ordering::SeqCst) {
            thread::park();
        }
    }

    pub(crate) fn give(&self) {
        // Sequentially consistent: either this sees the thread, or the thread sees this.
        self.given.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}
