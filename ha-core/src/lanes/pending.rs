//! A member's calls that have not returned, on the lanes of all of its connections.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{MutexGuard, PoisonError};

use crate::sync::Mutex;

/// How many there are.
#[derive(Default)]
pub(crate) struct Pending {
    /// Those that nobody waits for any more.
    left: AtomicUsize,
    writes: Mutex<Writes>,
}

/// Those that may change the token.
#[derive(Default)]
struct Writes {
    /// Raised when those of before are given up: they count no more.
    age: u64,
    under_way: usize,
    /// Of these, those whose callers do not wait any more.
    left: usize,
}

/// One call that may change the token. It knows when it began.
#[derive(Clone, Copy)]
pub(super) struct Write {
    age: u64,
}

impl Pending {
    fn all_writes(&self) -> MutexGuard<'_, Writes> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that may change its token, without those that were given up.
    pub(crate) fn writes(&self) -> usize {
        self.all_writes().under_way
    }

    /// Those of them whose callers do not wait any more.
    pub(crate) fn left_writes(&self) -> usize {
        self.all_writes().left
    }

    /// Those that may change its token and have not returned are given up.
    pub(crate) fn give_up_writes(&self) {
        let mut writes = self.all_writes();
        *writes = Writes { age: writes.age + 1, under_way: 0, left: 0 };
    }

    /// All that nobody waits for any more.
    pub(crate) fn left(&self) -> usize {
        self.left.load(Ordering::Acquire)
    }

    pub(super) fn write_begins(&self) -> Write {
        let mut writes = self.all_writes();
        writes.under_way += 1;
        Write { age: writes.age }
    }

    /// Nobody waits for a call any more.
    pub(super) fn is_left(&self, write: Option<Write>) {
        self.left.fetch_add(1, Ordering::AcqRel);
        self.if_counts(write, |writes| writes.left += 1);
    }

    /// A call has returned, of which nobody waits any more.
    pub(super) fn left_one_returns(&self, write: Option<Write>) {
        self.if_counts(write, |writes| writes.left -= 1);
        self.left.fetch_sub(1, Ordering::AcqRel);
    }

    pub(super) fn write_ends(&self, write: Option<Write>) {
        self.if_counts(write, |writes| writes.under_way -= 1);
    }

    fn if_counts(&self, write: Option<Write>, change: impl FnOnce(&mut Writes)) {
        let Some(write) = write else { return };
        let mut writes = self.all_writes();
        if writes.age == write.age {
            change(&mut writes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_up_counts_no_more_whatever_returns_since() {
        let pending = Pending::default();
        let lost = Some(pending.write_begins());
        pending.is_left(lost);
        assert_eq!((pending.writes(), pending.left_writes(), pending.left()), (1, 1, 1));
        pending.give_up_writes();
        assert_eq!((pending.writes(), pending.left_writes(), pending.left()), (0, 0, 1));
        for _ in 0..3 {
            let write = Some(pending.write_begins());
            assert_eq!((pending.writes(), pending.left_writes()), (1, 0));
            pending.write_ends(write);
            assert_eq!((pending.writes(), pending.left_writes()), (0, 0));
        }
        let late = Some(pending.write_begins());
        pending.is_left(late);
        pending.write_ends(lost);
        pending.left_one_returns(lost);
        assert_eq!((pending.writes(), pending.left_writes(), pending.left()), (1, 1, 1));
        pending.write_ends(late);
        pending.left_one_returns(late);
        assert_eq!((pending.writes(), pending.left_writes(), pending.left()), (0, 0, 0));
    }
}
