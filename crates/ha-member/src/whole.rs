//! Work that a fork must not fall into: its state would be half done in the child, where nobody goes on with it.
//!
//! A thread says so with [`Whole`], and a fork of another thread waits until nobody does such work: not for ever, because
//! it is the program's. The child of one that could not wait is told by [`was_torn`].

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::fork::fork_generation;

/// How long a fork waits.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(1);

/// Threads at such work.
static AT_WORK: AtomicUsize = AtomicUsize::new(0);
/// Forks that wait, or are being done.
static FORKS: AtomicUsize = AtomicUsize::new(0);
/// Whether this process, or one that it comes from, was forked while another thread was at work.
static TORN: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// How deep this thread is in such work.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
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
                AT_WORK.fetch_add(1, Ordering::SeqCst);
                if FORKS.load(Ordering::SeqCst) == 0 {
                    break;
                }
                AT_WORK.fetch_sub(1, Ordering::SeqCst);
                std::thread::sleep(PAUSE);
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
            AT_WORK.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Whether this process was forked in the middle of such work, or one that it comes from was.
pub fn was_torn() -> bool {
    TORN.load(Ordering::SeqCst)
}

/// This thread's part of those at work. A thread that is ending is at no work.
fn own() -> usize {
    DEPTH.try_with(Cell::get).map_or(0, |d| usize::from(d > 0))
}

/// Before a fork, on the thread that forks.
pub(crate) extern "C" fn before_fork() {
    FORKS.fetch_add(1, Ordering::SeqCst);
    let begun = Instant::now();
    while AT_WORK.load(Ordering::SeqCst) > own() && begun.elapsed() < PATIENCE {
        std::thread::sleep(PAUSE);
    }
}

/// After it, in the process that forked.
pub(crate) extern "C" fn after_fork() {
    FORKS.fetch_sub(1, Ordering::SeqCst);
}

/// After it, in the child: of its parent's threads there is the one that forked. What that one is in the middle of is
/// half done too, if it is the child's to go on.
pub(crate) fn in_child() {
    if AT_WORK.swap(own(), Ordering::SeqCst) > 0 {
        TORN.store(true, Ordering::SeqCst);
    }
    FORKS.store(0, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_fork_waits_for_others_and_new_work_for_the_fork() {
        let (at_work, is_at_work) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            let _whole = Whole::begin();
            let _within = Whole::begin();
            at_work.send(()).unwrap();
            _ = ended.recv();
        });
        is_at_work.recv().unwrap();
        let (forked, has_forked) = mpsc::channel();
        let fork = std::thread::spawn(move || {
            before_fork();
            forked.send(AT_WORK.load(Ordering::SeqCst)).unwrap();
            after_fork();
        });
        while FORKS.load(Ordering::SeqCst) == 0 {
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
