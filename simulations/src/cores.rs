//! A core of its own for each history that is played at once: its threads run one at a time, and to wake the next one costs
//! less where it is woken.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Keeps this thread, and those that it will start, to one of the cores that it may use: `nth` tells which. Where the system
/// does not allow it they run wherever there is room.
pub(crate) fn keep_to(nth: usize) {
    let Ok(all) = sched_getaffinity(None) else { return };
    let may: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|n| all.is_set(*n)).collect();
    let Some(core) = may.get(nth % may.len().max(1)) else { return };
    let mut one = CpuSet::new();
    one.set(*core);
    _ = sched_setaffinity(None, &one);
}
