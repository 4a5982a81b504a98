//! Objects that are being made: some tokens show them to other threads' searches before they are whole.
//!
//! SoftHSM makes an object, and then gives it one attribute after the other: a copy has its original's name and class for
//! a moment, and no value. Asked to use such a key it crashes.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// No object is half made for so long: a call that takes longer computes its key, or hangs.
const HALF_MADE: Duration = Duration::from_millis(250);

/// The calls under way that make an object.
#[derive(Default)]
pub(crate) struct Makings {
    state: Mutex<State>,
    over: Condvar,
}

#[derive(Default)]
struct State {
    begun: u64,
    under_way: BTreeSet<u64>,
    waiting: usize,
}

/// One such call.
pub(crate) struct Making<'a>(&'a Makings, u64);

impl Makings {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call begins.
    pub(crate) fn begin(&self) -> Making<'_> {
        let mut state = self.state();
        state.begun += 1;
        let number = state.begun;
        state.under_way.insert(number);
        Making(self, number)
    }

    /// `None` while one is under way; how many there were so far.
    pub(crate) fn are_over(&self) -> Option<u64> {
        let state = self.state();
        state.under_way.is_empty().then_some(state.begun)
    }

    /// Waits until those that are under way are over, or [`HALF_MADE`] is.
    pub(crate) fn wait(&self) {
        let mut state = self.state();
        let last = state.begun;
        let is_going_on = |state: &mut State| state.under_way.first().is_some_and(|first| *first <= last);
        state.waiting += 1;
        let waited = self.over.wait_timeout_while(state, HALF_MADE, is_going_on);
        waited.unwrap_or_else(PoisonError::into_inner).0.waiting -= 1;
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.under_way.remove(&self.1);
        if state.waiting != 0 {
            self.0.over.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until_waited_for(makings: &Makings, waiting: usize) {
        while makings.state().waiting != waiting {
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_was_begun_before_is_waited_for_and_nothing_else() {
        let makings = Makings::default();
        makings.wait();
        assert_eq!(makings.are_over(), Some(0));
        std::thread::scope(|scope| {
            let (first, second) = (makings.begin(), makings.begin());
            let number = second.1;
            let makings = &makings;
            let waiter = scope.spawn(move || {
                makings.wait();
                makings.state().under_way.contains(&number)
            });
            until_waited_for(makings, 1);
            let third = makings.begin();
            drop(first);
            drop(second);
            assert!(!waiter.join().unwrap());
            drop(third);
        });
        // One that computes is not waited for for ever.
        let computing = makings.begin();
        makings.wait();
        assert_eq!(makings.are_over(), None);
        drop(computing);
        assert_eq!(makings.are_over(), Some(4));
    }
}
