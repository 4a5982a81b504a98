//! What the pieces of `ha-core` find as `crate::sync`, and those of `ha-member` as `outside`: loom's.

use std::cell::Cell;
use std::sync::{LockResult, TryLockResult};

pub(crate) use loom::sync::MutexGuard;
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// Loom's, with the method that it lacks: no model panics while it holds one and goes on.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        self.0.lock()
    }

    pub(crate) fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        self.0.try_lock()
    }

    pub(crate) fn clear_poison(&self) {}
}

thread_local! {
    /// Loom's threads are all of one thread of the system.
    static WITHOUT: Cell<bool> = const { Cell::new(false) };
}

/// No barrier holds, until this is dropped.
pub(crate) struct Without(());

impl Without {
    pub(crate) fn new() -> Self {
        WITHOUT.set(true);
        Without(())
    }
}

impl Drop for Without {
    fn drop(&mut self) {
        WITHOUT.set(false);
    }
}

pub(crate) fn fence(order: Ordering) {
    if !WITHOUT.get() {
        loom::sync::atomic::fence(order);
    }
}
