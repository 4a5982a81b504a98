//! Work that a fork must not fall into: its state would be half done in the child, where nobody goes on with it.
//!
//! A thread says so with [`Whole`], and a fork of another thread waits until nobody does such work: not for ever, because
//! it is the program's. The child of one that could not wait is told by [`was_torn`].

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::fork::fork_generation;

/// How long a fork waits.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(1);

/// The threads at such work, and above them ([`FORK`]) the forks that wait or are being done: one word, so that a child
/// never sees a thread that only looked.
static STATE: AtomicU64 = AtomicU64::new(0);
const FORK: u64 = 1 << 32;
const THREADS: u64 = FORK - 1;
/// Whether this process, or one that it comes from, was forked while another thread was at work.
static TORN: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// How deep this thread is in such work.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// Whether this thread is between the handlers of a fork: others' handlers may lead back here.
    static FORKS_HERE: Cell<bool> = const { Cell::new(false) };
}

/// Work that no fork falls into, until this is dropped, on the thread that began it. A thread may begin it again within.
#[derive(Debug)]
pub struct Whole(PhantomData<*const ()>);

impl Whole {
    /// Begins. Waits while another thread forks.
    pub fn begin() -> Self {
        // The handlers are there once it has been asked.
        fork_generation();
        let depth = DEPTH.get();
        if depth == 0 {
            loop {
                let seen = STATE.load(Ordering::SeqCst);
                if seen >= FORK && !FORKS_HERE.get() {
                    std::thread::sleep(PAUSE);
                } else if STATE.compare_exchange(seen, seen + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                    break;
                }
            }
        }
        DEPTH.set(depth + 1);
        Whole(PhantomData)
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        let depth = DEPTH.get() - 1;
        DEPTH.set(depth);
        if depth == 0 {
            STATE.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Whether this process was forked in the middle of such work, or one that it comes from was.
pub fn was_torn() -> bool {
    TORN.load(Ordering::SeqCst)
}

/// How many are at work.
fn at_work() -> u64 {
    STATE.load(Ordering::SeqCst) & THREADS
}

/// This thread's part of those. A thread that is ending is at no work.
fn own() -> u64 {
    DEPTH.try_with(Cell::get).map_or(0, |d| u64::from(d > 0))
}

fn forks_here(yes: bool) {
    _ = FORKS_HERE.try_with(|f| f.set(yes));
}

/// Before a fork, on the thread that forks.
pub(crate) extern "C" fn before_fork() {
    STATE.fetch_add(FORK, Ordering::SeqCst);
    forks_here(true);
    let begun = Instant::now();
    while at_work() > own() && begun.elapsed() < PATIENCE {
        std::thread::sleep(PAUSE);
    }
}

/// After it, in the process that forked.
pub(crate) extern "C" fn after_fork() {
    forks_here(false);
    STATE.fetch_sub(FORK, Ordering::SeqCst);
}

/// After it, in the child: of its parent's threads there is the one that forked. What that one is in the middle of is
/// half done too, if it is the child's to go on.
pub(crate) fn in_child() {
    forks_here(false);
    if STATE.swap(own(), Ordering::SeqCst) & THREADS != 0 {
        TORN.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_fork_waits_for_others_and_new_work_for_the_fork() {
        let (begun, has_begun) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            let _whole = Whole::begin();
            let _within = Whole::begin();
            begun.send(()).unwrap();
            _ = ended.recv();
        });
        has_begun.recv().unwrap();
        let (forked, has_forked) = mpsc::channel();
        let fork = std::thread::spawn(move || {
            before_fork();
            forked.send(at_work()).unwrap();
            after_fork();
        });
        while STATE.load(Ordering::SeqCst) < FORK {
            std::thread::yield_now();
        }
        assert!(has_forked.try_recv().is_err(), "the fork did not wait");
        drop(end);
        assert_eq!(has_forked.recv(), Ok(0));
        other.join().unwrap();
        fork.join().unwrap();
        drop(Whole::begin());
        assert!(!was_torn());
    }
}
