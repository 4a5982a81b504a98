//! How many retries there may be (guarantee G7: no amplification).
//!
//! A maximum count per call bounds one call and not the sum: when a token fails for everybody, three tries each are
//! three times the load on what is left, at the worst moment. A budget bounds the sum: retries may be a fifth of the
//! calls, and a floor of ten in each ten seconds lets a quiet program retry at all. The first retry of a call on a
//! healthy member is never refused: it is what failover is, and costs at most one call more for each.

use crate::mutants::wrong;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// Thousandths of a retry that each call pays in.
const PER_CALL: i64 = 200;
/// The cost of a retry, in the same unit.
const RETRY: i64 = 1000;
/// The most that is kept: a long quiet time does not buy a storm.
const CEILING: i64 = 100 * RETRY;
/// Retries that are always there in each window.
const FLOOR: i64 = 10 * RETRY;
const WINDOW: Duration = Duration::from_secs(10);

/// A budget of retries. Lock-free; all methods may be called from any thread.
#[derive(Debug)]
pub struct Budget {
    balance: AtomicI64,
    /// Number of the window that the floor was last granted in.
    window: AtomicU64,
    floor: AtomicI64,
}

impl Budget {
    /// An empty balance and a full floor.
    pub fn new() -> Self {
        Budget { balance: AtomicI64::new(0), window: AtomicU64::new(0), floor: AtomicI64::new(FLOOR) }
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
        let window = now.as_secs() / WINDOW.as_secs() + 1;
        if self.window.fetch_max(window, Ordering::AcqRel) < window {
            self.floor.store(FLOOR, Ordering::Release);
        }
        take(&self.balance) || take(&self.floor) || first_on_healthy
    }
}

fn take(from: &AtomicI64) -> bool {
    from.fetch_update(Ordering::AcqRel, Ordering::Acquire, |b| (b >= RETRY).then_some(b - RETRY)).is_ok()
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
