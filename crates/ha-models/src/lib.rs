//! The smallest pieces of locking, in every order of events that loom finds, and in every value that a load may see.
//!
//! The pieces are the source files of `ha-core` and `ha-member` themselves, with loom's atomics and locks under the names
//! by which they ask for them: nothing that is built for use knows of it. Where a piece has a barrier, its model is also
//! played without: a model that does not fail then shows nothing.

mod mutants;
mod sync;

#[path = "../../../ha-core/src/numbers.rs"]
#[allow(dead_code)]
mod numbers;

#[path = "../../../ha-core/src/policy/budget.rs"]
#[allow(missing_docs, unreachable_pub, dead_code)]
mod budget;

pub mod presence;
pub mod retries;
pub mod slot;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Plays a model: every order of events with so many preemptions at most, which is where all known faults of this size
/// show, and what ends within seconds.
fn play(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// How a model fails where no barrier holds, if it does.
pub fn without_barriers(model: impl FnOnce()) -> Option<String> {
    let _without = sync::Without::new();
    let why = catch_unwind(AssertUnwindSafe(model)).err()?;
    Some(why.downcast_ref::<String>().map_or_else(|| "for no reason that is text".into(), Clone::clone))
}
