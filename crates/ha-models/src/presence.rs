//! Who is in what: a caller and a closer never miss each other.

#[path = "../../ha-member/src/presence/seats.rs"]
#[allow(missing_docs, unreachable_pub, dead_code)]
mod seats;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use outside::{AtomicBool, AtomicPtr, Ordering};
use seats::Seats;

/// What seats are made of here. The kernel's barrier runs on every thread of the process at some moment of the closer's
/// call, which is at least what a fence on each side is; the caller's own is none for the processor then, and in its place
/// stands the one that the kernel ran on it.
mod outside {
    pub(super) use crate::sync::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};

    pub(super) fn callers_barrier() {
        fence(Ordering::SeqCst);
    }

    pub(super) fn closers_barrier() -> bool {
        fence(Ordering::SeqCst);
        true
    }
}

const WHAT: usize = 1;

/// What is entered and closed.
struct Thing {
    seats: Seats,
    closed: AtomicBool,
    /// Loom finds two who are at it at once, or who do not see what the other has done.
    inside: UnsafeCell<u32>,
}

impl Thing {
    fn new() -> Arc<Self> {
        let seats = Seats { first: AtomicPtr::new(std::ptr::null_mut()) };
        Arc::new(Thing { seats, closed: AtomicBool::new(false), inside: UnsafeCell::new(0) })
    }

    fn touch(&self) {
        self.inside.with_mut(|inside| {
            // SAFETY: loom ends the model where another thread is at it.
            unsafe { *inside += 1 }
        });
    }

    /// One call, in a seat of its thread.
    fn call(&self) {
        let seat = self.seats.take();
        let stay = seat.enter(WHAT).expect("a seat that was taken is empty");
        if !self.closed.load(Ordering::Acquire) {
            self.touch();
        }
        drop(stay);
        seat.give_back();
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        if self.seats.count(WHAT) == Some(0) {
            self.touch();
        }
    }
}

/// Who closes a thing and finds nobody in it has it alone, and sees what was done there.
pub fn who_finds_nobody_inside_has_it_alone() {
    crate::play(3, || {
        let thing = Thing::new();
        let caller = thread::spawn({
            let thing = Arc::clone(&thing);
            move || thing.call()
        });
        thing.close();
        caller.join().unwrap();
    });
}

/// The same, where the thread that comes has the seat of one that went.
pub fn a_seat_that_is_used_again_tells_of_its_new_thread() {
    crate::play(2, || {
        let thing = Thing::new();
        // Left as by a thread that ended.
        thing.seats.take().give_back();
        let caller = thread::spawn({
            let thing = Arc::clone(&thing);
            move || {
                thing.seats.take().enter_alone(WHAT);
                thing.call();
            }
        });
        thing.close();
        caller.join().unwrap();
        assert_eq!(thing.seats.all().count(), 1);
    });
}

/// Two threads that take seats at once have two, and who looks sees both.
pub fn no_seat_is_had_twice_and_none_is_lost() {
    crate::play(2, || {
        let thing = Thing::new();
        thing.seats.take().give_back();
        let other = thread::spawn({
            let thing = Arc::clone(&thing);
            move || std::mem::forget(thing.seats.take().enter_alone(WHAT))
        });
        std::mem::forget(thing.seats.take().enter_alone(WHAT));
        other.join().unwrap();
        assert_eq!(thing.seats.count(WHAT), Some(2));
    });
}
