//! Who is in what: calls in flight, told without an atomic read-modify-write on their way.
//!
//! A call notes what it is about to use, by a plain store into a seat of its thread, and then looks whether that is
//! still open. Who closes a thing marks it closed first, then makes every thread's stores visible, and then looks into
//! all seats. So either the call sees the mark, or the closer sees the call. The barrier between the call's store and
//! its look costs nothing: the closer makes the other threads run one by `membarrier`(2). Where the kernel has none,
//! both sides use fences.

mod seats;

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr;
use std::sync::Once;

use crate::fork::fork_generation;
use outside::{AtomicBool, AtomicPtr, Ordering};
pub use seats::Stay;
use seats::{Seat, Seats};

/// What seats are made of. `crates/ha-models` has others in its place, which play every order of events.
mod outside {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};

    use super::{BY_KERNEL, kernel};

    /// Between a caller's note and its look.
    #[inline(always)]
    pub(super) fn callers_barrier() {
        if BY_KERNEL.load(Ordering::Relaxed) {
            std::sync::atomic::compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }

    /// Between a closer's mark and its look; false if that could not be done.
    pub(super) fn closers_barrier() -> bool {
        fence(Ordering::SeqCst);
        !BY_KERNEL.load(Ordering::Relaxed) || kernel::barrier()
    }
}

/// Every seat there is.
static SEATS: Seats = Seats { first: AtomicPtr::new(ptr::null_mut()) };

/// Whether the kernel runs barriers on other threads for us.
static BY_KERNEL: AtomicBool = AtomicBool::new(false);

/// This thread's seat, given back when the thread ends.
struct Mine(Cell<Option<&'static Seat>>);

thread_local! {
    static MINE: Mine = const { Mine(Cell::new(None)) };
}

impl Drop for Mine {
    fn drop(&mut self) {
        if let Some(seat) = self.0.take() {
            seat.give_back();
        }
    }
}

/// This thread, as one that notes what it is in.
#[derive(Clone, Copy, Debug)]
pub struct Here {
    seat: &'static Seat,
    /// Seats are a thread's own.
    not_send: PhantomData<*const ()>,
}

/// This thread. `None` where its storage is gone, as in exit handlers.
#[inline(always)]
pub fn here() -> Option<Here> {
    let seat = match MINE.try_with(|m| m.0.get()) {
        Ok(Some(seat)) => seat,
        Ok(None) => first_here()?,
        Err(_) => return None,
    };
    Some(Here { seat, not_send: PhantomData })
}

/// The first time in a thread.
#[cold]
#[inline(never)]
fn first_here() -> Option<&'static Seat> {
    let seat = take();
    // Set, so that the seat is given back when the thread ends.
    MINE.try_with(|m| m.0.set(Some(seat))).ok().map(|()| seat)
}

impl Here {
    /// Notes that this thread is in `what`: an address that is not used for anything else, and not 0. Whether that is
    /// still open has to be looked at after this.
    #[inline(always)]
    pub fn enter(self, what: usize) -> Stay {
        match self.seat.enter(what) {
            Some(stay) => stay,
            None => enter_alone(what),
        }
    }
}

/// As [`Here::enter`], also where this thread's storage is gone.
#[inline(always)]
pub fn enter(what: usize) -> Stay {
    match here() {
        Some(here) => here.enter(what),
        None => enter_alone(what),
    }
}

/// Takes a seat for one stay: where the thread's own is full, or it has none.
#[cold]
#[inline(never)]
fn enter_alone(what: usize) -> Stay {
    take().enter_alone(what)
}

/// How many are in `what`, which the caller has marked as closed before: none of them, and none but them, has found it
/// open. `None` when that cannot be told.
pub fn count(what: usize) -> Option<usize> {
    SEATS.count(what)
}

/// In a child of `fork`: the parent's other threads are in nothing here. Stores to atomics only.
pub(crate) fn forget_other_threads() {
    let mine = MINE.try_with(|m| m.0.get()).ok().flatten();
    SEATS.forget_all_but(mine);
}

/// A seat that nobody has.
fn take() -> &'static Seat {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        // Seats have to be told of forks.
        fork_generation();
        BY_KERNEL.store(kernel::register(), Ordering::Relaxed);
    });
    SEATS.take()
}

#[cfg(all(target_os = "linux", not(miri)))]
mod kernel {
    fn membarrier(command: libc::c_int) -> bool {
        // SAFETY: the call takes numbers, and touches no memory.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
    }

    /// Asks for barriers; false where there are none.
    pub(super) fn register() -> bool {
        membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
    }

    /// A barrier on every running thread of this process; false if that could not be done.
    pub(super) fn barrier() -> bool {
        membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)
            || (register() && membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED))
            || membarrier(libc::MEMBARRIER_CMD_GLOBAL)
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
mod kernel {
    pub(super) fn register() -> bool {
        false
    }

    pub(super) fn barrier() -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn stays_are_counted_by_what_they_are_in() {
        let (a, b) = (Box::new(0u8), Box::new(0u8));
        let (a, b) = (ptr::from_ref(&*a) as usize, ptr::from_ref(&*b) as usize);
        let first = enter(a);
        let others: Vec<Stay> = (0..20).map(|_| enter(b)).collect();
        assert_eq!((count(a), count(b)), (Some(1), Some(20)));
        drop(first);
        assert_eq!((count(a), count(b)), (Some(0), Some(20)));
        drop(others);
        assert_eq!(count(b), Some(0));
    }

    /// Closers and callers race: a caller that found the thing open is always seen, and what it did is too.
    #[test]
    fn nobody_is_in_what_was_closed_and_is_empty() {
        const ROUNDS: usize = 300;
        struct Thing {
            closed: AtomicBool,
            inside: AtomicUsize,
        }
        for _ in 0..ROUNDS {
            let thing = Thing { closed: AtomicBool::new(false), inside: AtomicUsize::new(0) };
            let what = ptr::from_ref(&thing) as usize;
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        loop {
                            let stay = enter(what);
                            if thing.closed.load(Ordering::Acquire) {
                                break;
                            }
                            thing.inside.store(1, Ordering::Relaxed);
                            std::hint::spin_loop();
                            drop(stay);
                        }
                    });
                }
                scope.spawn(|| {
                    std::thread::yield_now();
                    thing.closed.store(true, Ordering::SeqCst);
                    while count(what) != Some(0) {
                        std::thread::yield_now();
                    }
                    thing.inside.store(0, Ordering::Relaxed);
                    for _ in 0..100 {
                        assert_eq!(thing.inside.load(Ordering::Relaxed), 0, "somebody is still in it");
                        std::hint::spin_loop();
                    }
                });
            });
        }
    }

    #[test]
    fn a_thread_that_ended_gives_its_seat_back() {
        let what = ptr::from_ref(&SEATS) as usize;
        for _ in 0..50 {
            std::thread::spawn(move || drop(enter(what))).join().unwrap();
        }
        let all = SEATS.all().count();
        // Other tests' threads have some too.
        assert!(all < 50, "{all} seats");
        assert_eq!(count(what), Some(0));
    }
}
