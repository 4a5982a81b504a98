//! Locks: the standard library's. In a simulation, whose threads take turns, each is a place where another thread may
//! go on, and one that is not free is waited for by letting the others go on. What takes its atomics from here, too, is
//! played in every order of events by `crates/ha-models`.

pub(crate) use std::sync::MutexGuard;
pub(crate) use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering, fence};

#[cfg(not(feature = "simulation"))]
pub(crate) use std::sync::{Mutex, RwLock};

#[cfg(feature = "simulation")]
pub(crate) use in_turns::{Mutex, RwLock};

#[cfg(feature = "simulation")]
mod in_turns {
    use std::sync::{LockResult, MutexGuard, RwLockReadGuard, RwLockWriteGuard, TryLockError, TryLockResult};

    use crate::seam::turns;

    /// Tries until it is free, and lets others go on before each time; a thread that takes no turns waits as ever.
    pub(super) fn taken<G>(
        mut attempt: impl FnMut() -> TryLockResult<G>,
        wait: impl FnOnce() -> LockResult<G>,
    ) -> LockResult<G> {
        if !turns::are_taken() {
            return wait();
        }
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
            taken(|| self.0.try_lock(), || self.0.lock())
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
            taken(|| self.0.try_read(), || self.0.read())
        }

        pub(crate) fn write(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
            taken(|| self.0.try_write(), || self.0.write())
        }
    }
}

#[cfg(all(test, feature = "simulation"))]
mod tests {
    use std::cell::RefCell;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex, MutexGuard};

    use super::in_turns::taken;
    use crate::seam::turns::{Reached, Step, Turns, take_part};

    thread_local! {
        static HELD: RefCell<Option<MutexGuard<'static, ()>>> = const { RefCell::new(None) };
    }

    /// Lets go of what is held when somebody waits for it.
    #[derive(Default)]
    struct LetsGo(AtomicU32);

    impl Turns for LetsGo {
        fn point(&self) {}

        fn blocked(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
            HELD.take();
        }

        fn reached(&self, _: Reached) {}

        fn step(&self, _: Option<Step>) {}

        fn holds(&self, _: std::sync::Weak<std::fs::File>) {}
    }

    #[test]
    fn a_thread_that_takes_turns_tries_again_and_any_other_one_waits_in_the_lock() {
        static LOCK: Mutex<()> = Mutex::new(());
        let tries = AtomicU32::new(0);
        let attempt = || {
            tries.fetch_add(1, Ordering::Relaxed);
            LOCK.try_lock()
        };
        drop(taken(attempt, || LOCK.lock()));
        assert_eq!(tries.load(Ordering::Relaxed), 0, "nothing is tried where the lock itself can wait");

        let turns = Arc::new(LetsGo::default());
        HELD.set(Some(LOCK.lock().unwrap()));
        take_part(Some(turns.clone()));
        drop(taken(attempt, || unreachable!("the lock is held by this thread")));
        take_part(None);
        assert_eq!((tries.load(Ordering::Relaxed), turns.0.load(Ordering::Relaxed)), (2, 1));
    }
}
