//! Locks: the standard library's. In a simulation, whose threads take turns, each is a place where another thread may
//! go on, and one that is not free is waited for by letting the others go on.

#[cfg(not(feature = "simulation"))]
pub(crate) use std::sync::{Mutex, RwLock};

#[cfg(feature = "simulation")]
pub(crate) use in_turns::{Mutex, RwLock};

#[cfg(feature = "simulation")]
mod in_turns {
    use std::sync::{LockResult, MutexGuard, RwLockReadGuard, RwLockWriteGuard, TryLockError, TryLockResult};

    use crate::seam::turns;

    /// Tries until it is free, and lets others go on before each time.
    fn taken<G>(mut attempt: impl FnMut() -> TryLockResult<G>) -> LockResult<G> {
        turns::point();
        loop {
            match attempt() {
                Ok(guard) => return Ok(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Err(poisoned),
                Err(TryLockError::WouldBlock) => turns::blocked(),
            }
        }
    }

    /// [`std::sync::Mutex`].
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) const fn new(value: T) -> Self {
            Mutex(std::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
            taken(|| self.0.try_lock())
        }

        pub(crate) fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
            turns::point();
            self.0.try_lock()
        }

        pub(crate) fn clear_poison(&self) {
            self.0.clear_poison();
        }
    }

    /// [`std::sync::RwLock`].
    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(std::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn read(&self) -> LockResult<RwLockReadGuard<'_, T>> {
            taken(|| self.0.try_read())
        }

        pub(crate) fn write(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
            taken(|| self.0.try_write())
        }
    }
}
