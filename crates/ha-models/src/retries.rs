//! The budget of retries: threads that come to a new window at once.

use std::time::Duration;

use loom::sync::Arc;
use loom::thread;

use crate::budget::Budget;

const FLOOR: usize = 10;

fn granted(budget: &Budget, second: u64, tries: usize) -> usize {
    (0..tries).filter(|_| budget.withdraw(Duration::from_secs(second), false)).count()
}

/// Two who find the last window used up both have what the new one gives.
pub fn the_floor_is_there_for_whoever_comes_to_a_new_window() {
    crate::play(3, || {
        let budget = Arc::new(Budget::new());
        assert_eq!(granted(&budget, 0, FLOOR + 1), FLOOR);
        let other = thread::spawn({
            let budget = Arc::clone(&budget);
            move || granted(&budget, 10, 1)
        });
        let mine = granted(&budget, 10, 1);
        assert_eq!(mine + other.join().unwrap(), 2);
        assert_eq!(granted(&budget, 10, FLOOR), FLOOR - 2);
    });
}

/// No window gives more than its own, whatever the one before has left.
pub fn no_window_gives_what_the_one_before_has_left() {
    crate::play(2, || {
        let budget = Arc::new(Budget::new());
        assert_eq!(granted(&budget, 0, 1), 1);
        let other = thread::spawn({
            let budget = Arc::clone(&budget);
            move || granted(&budget, 10, 2)
        });
        let mine = granted(&budget, 10, 2);
        let both = mine + other.join().unwrap();
        assert_eq!(both + granted(&budget, 10, FLOOR), FLOOR);
    });
}
