//! The seats themselves: a list that only grows.

use std::marker::PhantomData;
use std::ptr;

use super::outside::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, callers_barrier, closers_barrier};

/// Things that one thread may be in at once without taking a second seat.
const CELLS: usize = 6;

/// What one thread is in. Seats are never freed, and used again.
#[derive(Debug)]
#[repr(align(128))] // of one thread's own: no other's stores slow it down
pub(super) struct Seat {
    cells: [AtomicUsize; CELLS],
    taken: AtomicBool,
    next: AtomicPtr<Seat>,
}

/// A list of seats.
pub(super) struct Seats {
    pub(super) first: AtomicPtr<Seat>,
}

/// This thread is in something, until this is dropped.
#[derive(Debug)]
pub struct Stay {
    cell: &'static AtomicUsize,
    /// A seat that was taken for this stay alone.
    seat: Option<&'static Seat>,
    /// Seats are a thread's own.
    not_send: PhantomData<*const ()>,
}

impl Drop for Stay {
    #[inline(always)]
    fn drop(&mut self) {
        self.cell.store(0, Ordering::Release);
        if let Some(seat) = self.seat {
            seat.give_back();
        }
    }
}

impl Stay {
    #[inline(always)]
    fn new(cell: &'static AtomicUsize, seat: Option<&'static Seat>, what: usize) -> Stay {
        cell.store(what, Ordering::Relaxed);
        callers_barrier();
        Stay { cell, seat, not_send: PhantomData }
    }
}

impl Seat {
    /// Notes that its thread is in `what`; `None` when it is full.
    #[inline(always)]
    pub(super) fn enter(&'static self, what: usize) -> Option<Stay> {
        self.free().map(|cell| Stay::new(cell, None, what))
    }

    /// As [`enter`](Self::enter), with a seat that is given back when the stay ends.
    pub(super) fn enter_alone(&'static self, what: usize) -> Stay {
        let [cell, ..] = &self.cells;
        Stay::new(cell, Some(self), what)
    }

    /// The next who needs a seat may have it.
    pub(super) fn give_back(&self) {
        self.taken.store(false, Ordering::Release);
    }

    #[inline(always)]
    fn free(&'static self) -> Option<&'static AtomicUsize> {
        self.cells.iter().find(|c| c.load(Ordering::Relaxed) == 0)
    }
}

impl Seats {
    /// One that nobody has, or a new one.
    pub(super) fn take(&self) -> &'static Seat {
        let free = |s: &&Seat| !s.taken.swap(true, Ordering::AcqRel);
        if let Some(seat) = self.all().find(free) {
            return seat;
        }
        let seat: &'static Seat = Box::leak(Box::new(Seat {
            cells: Default::default(),
            taken: AtomicBool::new(true),
            next: AtomicPtr::default(),
        }));
        let put = |first| {
            seat.next.store(first, Ordering::Relaxed);
            Some(ptr::from_ref(seat).cast_mut())
        };
        // Never refused: `put` always has an answer.
        _ = self.first.fetch_update(Ordering::AcqRel, Ordering::Acquire, put);
        seat
    }

    /// How many are in `what`, which the caller has marked as closed before. `None` when that cannot be told.
    pub(super) fn count(&self, what: usize) -> Option<usize> {
        if !closers_barrier() {
            return None;
        }
        let cells = self.all().flat_map(|s| &s.cells);
        Some(cells.filter(|c| c.load(Ordering::Acquire) == what).count())
    }

    /// Nobody is in anything but who has this seat.
    pub(super) fn forget_all_but(&self, mine: Option<&'static Seat>) {
        for seat in self.all().filter(|s| !mine.is_some_and(|m| ptr::eq(m, *s))) {
            seat.cells.iter().for_each(|c| c.store(0, Ordering::Relaxed));
            seat.taken.store(false, Ordering::Relaxed);
        }
    }

    /// Every seat.
    pub(super) fn all(&self) -> impl Iterator<Item = &'static Seat> {
        let follow = |from: &AtomicPtr<Seat>| {
            // SAFETY: a seat is put into the list whole, and never freed.
            unsafe { from.load(Ordering::Acquire).as_ref() }
        };
        std::iter::successors(follow(&self.first), move |seat: &&'static Seat| follow(&seat.next))
    }
}
