//! Searches and writes of one module's threads, kept apart where its searches spoil what other threads write.
//!
//! SoftHSM's search reads every object of a token anew, also one that another thread is making: what it has of it by then
//! takes the place of what the other one has, and the making fails (`CKR_GENERAL_ERROR`, `CKR_TEMPLATE_INCONSISTENT`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long the one waits for the other: one that takes longer makes a key, or hangs. It is waited for once.
const PATIENCE: Duration = Duration::from_secs(2);
/// The pause between two looks; a search is shorter.
const PAUSE: Duration = Duration::from_micros(100);

/// One writer, in the word that counts both; below are the searches.
const WRITER: u64 = 1 << 32;
const SEARCHES: u64 = WRITER - 1;

/// Who searches and who writes, of one connection.
#[derive(Debug)]
pub(crate) struct Searches {
    patience: Duration,
    /// No lock: one that a forked child inherits would stay locked there.
    state: AtomicU64,
    /// Whether a search has waited for those who write in vain, and a write for those who search.
    is_given_up: AtomicBool,
    are_given_up: AtomicBool,
}

/// A search, until it is dropped.
pub(crate) struct Searching<'a>(&'a Searches);

/// A write, until it is dropped.
pub(crate) struct Writing<'a>(&'a Searches);

impl Default for Searches {
    fn default() -> Self {
        Searches::new(PATIENCE)
    }
}

impl Searches {
    fn new(patience: Duration) -> Self {
        Searches {
            patience,
            state: AtomicU64::new(0),
            is_given_up: AtomicBool::new(false),
            are_given_up: AtomicBool::new(false),
        }
    }

    /// A search begins, when nobody writes.
    pub(crate) fn search(&self) -> Searching<'_> {
        let begun = Instant::now();
        let mut seen = self.state.load(Ordering::SeqCst);
        loop {
            let may = seen < WRITER || self.is_given_up.load(Ordering::SeqCst);
            if !may && begun.elapsed() < self.patience {
                std::thread::sleep(PAUSE);
                seen = self.state.load(Ordering::SeqCst);
                continue;
            }
            match self.state.compare_exchange(seen, seen + 1, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        if seen >= WRITER {
            self.is_given_up.store(true, Ordering::SeqCst);
        }
        Searching(self)
    }

    /// A write begins, when nobody searches: those who come from now on wait for it.
    pub(crate) fn write(&self) -> Writing<'_> {
        self.state.fetch_add(WRITER, Ordering::SeqCst);
        let begun = Instant::now();
        while self.state.load(Ordering::SeqCst) & SEARCHES > 0 && !self.are_given_up.load(Ordering::SeqCst) {
            if begun.elapsed() >= self.patience {
                self.are_given_up.store(true, Ordering::SeqCst);
            }
            std::thread::sleep(PAUSE);
        }
        Writing(self)
    }
}

impl Drop for Searching<'_> {
    fn drop(&mut self) {
        if self.0.state.fetch_sub(1, Ordering::SeqCst) & SEARCHES == 1 {
            self.0.are_given_up.store(false, Ordering::SeqCst);
        }
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if self.0.state.fetch_sub(WRITER, Ordering::SeqCst) < 2 * WRITER {
            self.0.is_given_up.store(false, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_waits_for_the_other() {
        let searches = Searches::default();
        let one = searches.search();
        let another = searches.search();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| drop(searches.write()));
            while searches.state.load(Ordering::SeqCst) < WRITER {
                std::thread::yield_now();
            }
            let later = scope.spawn(|| drop(searches.search()));
            drop((one, another));
            writer.join().unwrap();
            later.join().unwrap();
        });
        assert_eq!(searches.state.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn nobody_is_waited_for_for_ever_and_only_once() {
        let searches = Searches::new(Duration::from_millis(50));
        let hanging = searches.write();
        drop(searches.search());
        assert!(searches.is_given_up.load(Ordering::SeqCst));
        let second = searches.write();
        drop(hanging);
        assert!(searches.is_given_up.load(Ordering::SeqCst), "one still writes");
        drop(second);
        assert!(!searches.is_given_up.load(Ordering::SeqCst));
        let search = searches.search();
        drop(searches.write());
        assert!(searches.are_given_up.load(Ordering::SeqCst));
        drop(search);
        assert!(!searches.are_given_up.load(Ordering::SeqCst));
        assert_eq!(searches.state.load(Ordering::SeqCst), 0);
    }
}
