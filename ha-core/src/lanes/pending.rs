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

/// Those that may change the token, by number; without those that were given up.
#[derive(Default)]
struct Writes {
    last: u64,
    under_way: Vec<Write>,
    /// Of these, those whose callers do not wait any more.
    left: Vec<Write>,
}

/// One call that may change the token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Write(u64);

impl Pending {
    fn all_writes(&self) -> MutexGuard<'_, Writes> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that may change its token, without those that were given up.
    pub(crate) fn writes(&self) -> usize {
        self.all_writes().under_way.len()
    }

    /// Those of them whose callers do not wait any more.
    pub(crate) fn left_writes(&self) -> usize {
        self.all_writes().left.len()
    }

    /// Those that may change its token, and that nobody waits for any more, are given up.
    pub(crate) fn give_up_writes(&self) {
        let mut writes = self.all_writes();
        let left = std::mem::take(&mut writes.left);
        writes.under_way.retain(|write| !left.contains(write));
    }

    /// All that nobody waits for any more.
    pub(crate) fn left(&self) -> usize {
        self.left.load(Ordering::Acquire)
    }

    pub(super) fn write_begins(&self) -> Write {
        let mut writes = self.all_writes();
        writes.last += 1;
        let write = Write(writes.last);
        writes.under_way.push(write);
        write
    }

    /// Nobody waits for a call any more.
    pub(crate) fn is_left(&self, write: Option<Write>) {
        self.left.fetch_add(1, Ordering::AcqRel);
        if let Some(write) = write {
            self.all_writes().left.push(write);
        }
    }

    /// A call has returned, of which nobody waits any more.
    pub(crate) fn left_one_returns(&self, write: Option<Write>) {
        if let Some(write) = write {
            self.all_writes().left.retain(|other| *other != write);
        }
        self.left.fetch_sub(1, Ordering::AcqRel);
    }

    /// A call was made. Answers whether it was given up meanwhile.
    pub(super) fn write_ends(&self, write: Option<Write>) -> bool {
        let Some(write) = write else { return false };
        let mut writes = self.all_writes();
        let before = writes.under_way.len();
        writes.under_way.retain(|other| *other != write);
        writes.under_way.len() == before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_up_counts_no_more_whatever_returns_since() {
        let pending = Pending::default();
        let counts = || (pending.writes(), pending.left_writes(), pending.left());
        let (awaited, lost) = (Some(pending.write_begins()), Some(pending.write_begins()));
        pending.is_left(lost);
        assert_eq!(counts(), (2, 1, 1));
        pending.give_up_writes();
        assert_eq!(counts(), (1, 0, 1), "one of them is waited for");
        for _ in 0..3 {
            let write = Some(pending.write_begins());
            assert_eq!(counts(), (2, 0, 1));
            assert!(!pending.write_ends(write));
            assert_eq!(counts(), (1, 0, 1));
        }
        pending.is_left(awaited);
        assert!(pending.write_ends(lost), "it was given up");
        pending.left_one_returns(lost);
        assert_eq!(counts(), (1, 1, 1));
        assert!(!pending.write_ends(awaited));
        pending.left_one_returns(awaited);
        assert_eq!(counts(), (0, 0, 0));
    }
}
