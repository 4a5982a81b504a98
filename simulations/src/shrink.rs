//! A history that broke a guarantee, made as short as it can be: operations and faults are left out for as long as the
//! same guarantee breaks.

use std::sync::Arc;

use crate::history::{Ended, play};
use crate::plan::Plan;
use crate::pool::Pool;

/// The shortest plan found, with its end, and how many were played for it. `most` bounds those.
pub fn shrink(plan: &Plan, guarantee: &str, pool: &Arc<Pool>, most: usize) -> (Plan, Ended, usize) {
    let broken = |plan: &Plan| {
        let ended = play(plan, pool, true);
        let same = ended.broken.as_ref().is_some_and(|(g, _)| g == guarantee);
        same.then_some(ended)
    };
    let mut best = plan.clone();
    let mut end = play(plan, pool, true);
    let mut played = 1;
    let mut size = best.len().div_ceil(2);
    while size > 0 && played < most {
        let mut from = 0;
        let mut smaller = false;
        while from < best.len() && played < most {
            let shorter = best.without(from..(from + size).min(best.len()));
            played += 1;
            match broken(&shorter) {
                Some(ended) => (best, end, smaller) = (shorter, ended, true),
                None => from += size,
            }
        }
        if !smaller || size > 1 {
            size /= 2;
        }
    }
    (best, end, played)
}
