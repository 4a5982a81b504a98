//! How many retries there may be (guarantee G7: no amplification).
//!
//! A maximum count per call bounds one call and not the sum: when a token fails for everybody, three tries each are
//! three times the load on what is left, at the worst moment. A budget bounds the sum: retries may be a fifth of the
//! calls, and a floor of ten in each ten seconds lets a quiet program retry at all. The first retry of a call on a
//! healthy member is never refused: it is what failover is, and costs at most one call more for each.

use std::time::Duration;

use crate::mutants::wrong;
use crate::sync::{AtomicI64, AtomicU64, Ordering};

/// Thousandths of a retry that each call pays in.
const PER_CALL: i64 = 200;
/// The cost of a retry, in the same unit.
const RETRY: i64 = 1000;
/// The most that is kept: a long quiet time does not buy a storm.
const CEILING: i64 = 100 * RETRY;
/// Retries that are always there in each window.
const FLOOR: u64 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// A budget of retries. Lock-free; all methods may be called from any thread.
#[derive(Debug)]
pub struct Budget {
    balance: AtomicI64,
    /// The number of the window that the floor was last granted in, and below [`LEFT_BITS`] what is left of it: one word, so
    /// that of several who come to a new window at once none has what another one has had, or nothing.
    floor: AtomicU64,
}

const LEFT_BITS: u32 = 8;

impl Budget {
    /// An empty balance and a full floor.
    pub fn new() -> Self {
        Budget { balance: AtomicI64::new(0), floor: AtomicU64::new(0) }
    }

    /// A call was made.
    pub fn deposit(&self) {
        if self.balance.load(Ordering::Relaxed) < CEILING {
            self.balance.fetch_add(PER_CALL, Ordering::Relaxed);
        }
    }

    /// Whether a retry may be made at `now`; it is paid for if so. `first_on_healthy` is always granted.
    pub fn withdraw(&self, now: Duration, first_on_healthy: bool) -> bool {
        if wrong!(BudgetIgnored) {
            return true;
        }
        self.of_the_balance() || self.of_the_floor(now) || first_on_healthy
    }

    fn of_the_balance(&self) -> bool {
        let paid = |balance| (balance >= RETRY).then_some(balance - RETRY);
        self.balance.fetch_update(Ordering::AcqRel, Ordering::Acquire, paid).is_ok()
    }

    fn of_the_floor(&self, now: Duration) -> bool {
        let window = now.as_secs() / WINDOW.as_secs() + 1;
        let paid = |floor: u64| {
            // Who has read the clock before others have come to a new window takes of that one's.
            let (last, left) = (floor >> LEFT_BITS, floor & ((1 << LEFT_BITS) - 1));
            let left = if last < window { FLOOR } else { left };
            Some(last.max(window) << LEFT_BITS | left.checked_sub(1)?)
        };
        self.floor.fetch_update(Ordering::AcqRel, Ordering::Acquire, paid).is_ok()
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn further_retries_are_bounded(calls in 0u64..2000, seconds in 0u64..60, tries in 0usize..2000) {
            let budget = Budget::new();
            for _ in 0..calls {
                budget.deposit();
            }
            let granted = (0..tries).filter(|_| budget.withdraw(Duration::from_secs(seconds), false)).count() as u64;
            prop_assert!(granted <= calls / 5 + 10);
            prop_assert!(granted >= (tries as u64).min(10));
        }

        #[test]
        fn a_first_retry_is_never_refused(calls in 0u64..20, tries in 1usize..200) {
            let budget = Budget::new();
            for _ in 0..calls {
                budget.deposit();
            }
            for _ in 0..tries {
                prop_assert!(budget.withdraw(Duration::ZERO, true));
            }
        }
    }

    #[test]
    fn the_floor_comes_back_with_the_next_window() {
        let budget = Budget::new();
        let at = |s| Duration::from_secs(s);
        assert_eq!((0..20).filter(|_| budget.withdraw(at(1), false)).count(), 10);
        assert!(!budget.withdraw(at(9), false));
        assert!(budget.withdraw(at(10), false));
    }
}
