//! What one process shares between its calls. A forked child begins anew, whatever its parent's threads held.

use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use ha_token::Function;

use crate::commands::Counts;
use crate::control::{self, Control};
use crate::kept::Kept;
use crate::module::Module;
use crate::tracking::Tracking;

/// One process's state.
pub(crate) struct Live {
    generation: u64,
    pub(crate) kept: Kept,
    tracking: Mutex<Tracking>,
    counts: [AtomicU64; Function::ALL.len()],
    control: Mutex<Option<Control>>,
}

static GENERATION: AtomicU64 = AtomicU64::new(0);
static LIVE: AtomicPtr<Live> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::SeqCst);
    control::in_child();
}

/// This process's.
pub(crate) fn live(module: &'static Module) -> &'static Live {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        // SAFETY: the handler stores to atomics and closes descriptors, which the child of a threaded process may.
        let status = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        if status != 0 {
            crate::say("forks cannot be noticed: no memory");
        }
    });
    let generation = GENERATION.load(Ordering::SeqCst);
    let found = LIVE.load(Ordering::Acquire);
    // SAFETY: NULL, or leaked below.
    if let Some(live) = unsafe { found.as_ref() }
        && live.generation == generation
    {
        return live;
    }
    let made = Box::into_raw(Box::new(Live {
        generation,
        kept: Kept::new(module.script.clone(), module.config.socket.as_deref()),
        tracking: Mutex::default(),
        counts: [const { AtomicU64::new(0) }; Function::ALL.len()],
        control: Mutex::default(),
    }));
    // The parent's is left as it is: a thread that does not exist here may have been in it.
    let live = match LIVE.compare_exchange(found, made, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => made,
        Err(other) => {
            // SAFETY: made above, and nobody has seen it.
            drop(unsafe { Box::from_raw(made) });
            other
        }
    };
    // SAFETY: it is never freed.
    unsafe { &*live }
}

impl Live {
    /// What is known of sessions and handles. Never held while a call is in the module.
    pub(crate) fn tracking(&self) -> MutexGuard<'_, Tracking> {
        self.tracking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count(&self, function: Function) {
        if let Some(count) = self.counts.get(function as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        std::array::from_fn(|i| self.counts.get(i).map_or(0, |count| count.load(Ordering::Relaxed)))
    }

    /// Begins to listen, if a socket is configured.
    pub(crate) fn listen(&'static self, module: &Module) -> Result<(), String> {
        let Some(socket) = &module.config.socket else { return Ok(()) };
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        if control.is_none() {
            *control = Some(Control::start(socket, self)?);
        }
        Ok(())
    }

    /// Listens no more.
    pub(crate) fn unlisten(&self) {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(control) = control {
            control.stop();
        }
    }
}
