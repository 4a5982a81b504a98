//! The end of the process. `exit` runs the modules' destructors, and OpenSSL's, while other threads go on: a thread of
//! ours that is inside a module then crashes a program that has done its work. So whoever has such threads is told first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use crate::fork::{ForkLock, fork_generation};

/// Somebody with threads that call modules.
pub trait Ending: Send + Sync {
    /// The process ends: lets no thread of its own into a module any more, and waits for those that are in one, not for
    /// ever. Calls of the application's may follow.
    fn ending(&self);
}

struct Told {
    who: Weak<dyn Ending>,
    /// A forked child has the parent's threads no more.
    generation: u64,
}

static TOLD: ForkLock<Vec<Told>> = ForkLock::new(Vec::new());

/// Has `who` told before the destructors of the modules run that are initialised by now.
pub fn before_exit(who: &Arc<impl Ending + 'static>) {
    let who: Weak<dyn Ending> = Arc::<_>::downgrade(who) as Weak<dyn Ending>;
    let mut told = TOLD.lock();
    told.retain(|t| t.who.strong_count() > 0);
    told.push(Told { who, generation: fork_generation() });
}

/// Puts the telling before what a module has registered for the exit: handlers run in the opposite order. Once for each
/// copy of a module, when it is first initialised.
pub(crate) fn tell_before(armed: &AtomicBool) {
    if !armed.swap(true, Ordering::AcqRel) {
        // SAFETY: the handler lives as long as the process: this library is never unloaded. Without memory for one more
        // it is as it was.
        unsafe { libc::atexit(tell) };
    }
}

extern "C" fn tell() {
    // A call from one of those threads cannot wait for itself.
    if crate::instance::is_inside() {
        return;
    }
    let all: Vec<_> = {
        let told = TOLD.lock();
        let ours = told.iter().filter(|t| t.generation == fork_generation());
        ours.filter_map(|t| t.who.upgrade()).collect()
    };
    for who in &all {
        who.ending();
    }
    // Their destructors are for those who finalise; here they would run in the middle of the end.
    all.into_iter().for_each(std::mem::forget);
}
