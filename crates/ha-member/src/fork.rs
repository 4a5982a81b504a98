//! Noticing a fork, and locks that stay usable in a forked child.
//!
//! A child has only the thread that forked. A lock that another thread of the parent held then is held for ever by
//! nobody, so locks here carry the fork generation of their holder, and one of an older generation counts as free.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::whole;

static GENERATION: AtomicU64 = AtomicU64::new(1);
static REGISTERED: Once = Once::new();

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::SeqCst);
    whole::in_child();
    crate::presence::forget_other_threads();
}

/// A number that stays the same in one process and differs in a forked child.
///
/// The first call registers the handler; forks before that are not told apart, nor are children made by a raw `clone`
/// without the C library. Costs one atomic load.
pub fn fork_generation() -> u64 {
    REGISTERED.call_once(|| {
        // SAFETY: what runs in the child only stores to atomics and to flags of its thread, which is allowed in the child of a
        // threaded process; what runs before takes no lock.
        let status = unsafe {
            libc::pthread_atfork(Some(whole::before_fork), Some(whole::after_fork), Some(in_child))
        };
        if status != 0 {
            tracing::warn!(status, "forks cannot be noticed: pthread_atfork failed");
        }
    });
    GENERATION.load(Ordering::Relaxed)
}

/// A lock without data, taken with a bounded wait and given back by dropping [`Held`].
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// 0 when free, else the holder's ticket: its fork generation in the upper 16 bits, a running number below.
    holder: AtomicU64,
}

/// The proof that a [`Gate`] was taken.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    gate: &'a Gate,
    ticket: u64,
}

const GENERATION_SHIFT: u32 = 48;
const PAUSE: Duration = Duration::from_millis(2);
/// How long one that will soon be free is waited for without a pause.
const BRIEFLY: Duration = Duration::from_micros(500);

fn ticket() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed) & ((1 << GENERATION_SHIFT) - 1);
    (fork_generation() << GENERATION_SHIFT) | number
}

fn of_this_process(ticket: u64) -> bool {
    ticket >> GENERATION_SHIFT == fork_generation() & 0xFFFF
}

impl Gate {
    /// A free one.
    pub(crate) const fn new() -> Self {
        Gate { holder: AtomicU64::new(0) }
    }

    fn try_acquire(&self) -> Result<(Held<'_>, bool), u64> {
        let ticket = ticket();
        let seen = self.holder.load(Ordering::Acquire);
        if seen != 0 && of_this_process(seen) {
            return Err(seen);
        }
        match self.holder.compare_exchange(seen, ticket, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok((Held { gate: self, ticket }, seen != 0)),
            Err(other) => Err(other),
        }
    }

    /// Takes it, waiting for at most `wait`.
    pub(crate) fn acquire(&self, wait: Duration) -> Option<Held<'_>> {
        let start = Instant::now();
        loop {
            match self.try_acquire() {
                Ok((held, _)) => return Some(held),
                Err(_) if start.elapsed() >= wait => return None,
                Err(_) if start.elapsed() < BRIEFLY => std::thread::yield_now(),
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Takes it, if need be from a holder that has had it for longer than `lease`; that one then finds
    /// [`Held::still_mine`] false. `None` after four leases, when holders keep changing.
    pub(crate) fn acquire_or_take_over(&self, lease: Duration) -> Option<Held<'_>> {
        let start = Instant::now();
        let mut watched = (0, start);
        loop {
            let seen = match self.try_acquire() {
                Ok((held, _)) => return Some(held),
                Err(seen) => seen,
            };
            if seen != watched.0 {
                watched = (seen, Instant::now());
            } else if seen != 0 && watched.1.elapsed() >= lease {
                let ticket = ticket();
                if self.holder.compare_exchange(seen, ticket, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                    return Some(Held { gate: self, ticket });
                }
            }
            if start.elapsed() >= lease.saturating_mul(4) {
                return None;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Held<'_> {
    /// Whether nobody took it over meanwhile.
    pub(crate) fn still_mine(&self) -> bool {
        self.gate.holder.load(Ordering::Acquire) == self.ticket
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Fails, rightly, when it was taken over.
        let _ = self.gate.holder.compare_exchange(self.ticket, 0, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// Data behind a lock for short, non-blocking work. A child forked while it was held finds fresh data in it.
#[derive(Debug, Default)]
pub struct ForkLock<T> {
    gate: Gate,
    data: UnsafeCell<T>,
}

// SAFETY: `lock` hands out the data to one thread at a time, so sending the data is all that sharing needs.
unsafe impl<T: Send> Sync for ForkLock<T> {}

impl<T: Default> ForkLock<T> {
    /// Around `data`.
    pub const fn new(data: T) -> Self {
        ForkLock { gate: Gate::new(), data: UnsafeCell::new(data) }
    }

    /// Waits for its turn.
    pub fn lock(&self) -> ForkGuard<'_, T> {
        let mut tries = 0u32;
        loop {
            match self.gate.try_acquire() {
                Ok((held, torn)) => {
                    if torn {
                        // A thread that does not exist here was changing it: neither read nor dropped.
                        // SAFETY: the gate is ours, so nobody else refers to the data; `write` reads nothing.
                        unsafe { self.data.get().write(T::default()) };
                    }
                    return ForkGuard { lock: self, _held: held };
                }
                Err(_) => {
                    tries += 1;
                    if tries < 64 { std::hint::spin_loop() } else { std::thread::yield_now() }
                }
            }
        }
    }
}

/// Access to the data of a [`ForkLock`].
#[derive(Debug)]
pub struct ForkGuard<'a, T> {
    lock: &'a ForkLock<T>,
    _held: Held<'a>,
}

impl<T> Deref for ForkGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the gate, so no other reference exists but those borrowed from the guard.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for ForkGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the guard is borrowed mutably.
        unsafe { &mut *self.lock.data.get() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_had_by_one_and_a_waiter_gives_up() {
        let gate = Gate::new();
        let held = gate.acquire(Duration::ZERO).expect("free");
        assert!(gate.acquire(Duration::ZERO).is_none());
        assert!(held.still_mine());
        drop(held);
        assert!(gate.acquire(Duration::ZERO).is_some());
    }

    #[test]
    fn who_holds_past_the_lease_loses_it_and_knows() {
        let gate = Gate::new();
        let slow = gate.acquire(Duration::ZERO).expect("free");
        let taker = gate.acquire_or_take_over(Duration::from_millis(10)).expect("taken over");
        assert!(!slow.still_mine());
        assert!(taker.still_mine());
        drop(slow);
        assert!(taker.still_mine(), "the loser's release must not free it");
    }

    #[test]
    fn what_a_vanished_thread_held_is_free_and_fresh() {
        let lock = ForkLock::new(vec![1, 2, 3]);
        std::mem::forget(lock.lock());
        let older = ((fork_generation() + 1) << GENERATION_SHIFT) | 1;
        lock.gate.holder.store(older, Ordering::SeqCst); // as if another generation had it
        assert!(lock.lock().is_empty());
    }
}
