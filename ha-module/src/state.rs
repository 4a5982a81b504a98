//! What runs between `C_Initialize` and `C_Finalize`.
//!
//! Calls read one pointer, without a lock, and note that they use what it points to. Starting and stopping exclude each other through one atomic word and not a
//! mutex, because a child of `fork` must find neither held by a thread that it does not have.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ha_core::provider::Provider;
use ha_member::presence::{self, Here, Stay};
use ha_member::{fork_generation, inside_member};
use ha_token::{Result, Rv, Ulong};

/// How long `C_Finalize` waits for other threads' calls, and again for the provider to stop.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long one thread waits for another's `C_Initialize` or `C_Finalize`.
const CHANGE_PATIENCE: Duration = Duration::from_secs(60);

/// The pause between two looks at something that another thread is about to change.
const PAUSE: Duration = Duration::from_millis(1);

struct Running {
    provider: Provider,
    /// The process that started it, as [`fork_generation`] numbers them.
    generation: u64,
    /// Calls blocked in `C_WaitForSlotEvent`, which only stopping the provider ends.
    waiting: AtomicUsize,
}

/// Made from a box by [`initialize`], and taken out before it is given up.
static RUNNING: AtomicPtr<Running> = AtomicPtr::new(ptr::null_mut());

/// The phase in the two lowest bits, the generation it is of above them.
static PHASE: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whether this thread is inside `C_Initialize` or `C_Finalize`: a member's module may lead back here.
    static CHANGING_HERE: Cell<bool> = const { Cell::new(false) };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Stopped = 0,
    Changing = 1,
    Started = 2,
}

/// The use of what runs, by one call.
struct Use<'a> {
    running: &'a Running,
    _stay: Stay,
}

/// Notes that this thread uses what runs in this process. `here` is the thread.
///
/// # Errors
/// `CKR_CRYPTOKI_NOT_INITIALIZED`.
#[inline(always)]
fn enter<'a>(here: Here) -> Result<Use<'a>> {
    let mut seen = RUNNING.load(Ordering::Acquire);
    loop {
        if seen.is_null() {
            return Err(Rv::CRYPTOKI_NOT_INITIALIZED);
        }
        let stay = here.enter(seen as usize);
        let now = RUNNING.load(Ordering::Acquire);
        if now == seen {
            // SAFETY: it was still there after this thread had noted that it uses it, and who takes it out gives it up
            // only when no thread does (`finalize`); the reference is not used beyond the note.
            let running = unsafe { &*seen };
            if running.generation != fork_generation() {
                return Err(Rv::CRYPTOKI_NOT_INITIALIZED);
            }
            return Ok(Use { running, _stay: stay });
        }
        seen = now;
    }
}

/// Runs `body` on the provider. `here` is this thread.
///
/// # Errors
/// `CKR_CRYPTOKI_NOT_INITIALIZED`, or the body's.
#[inline(always)]
pub(crate) fn with<T>(here: Here, body: impl FnOnce(&Provider) -> Result<T>) -> Result<T> {
    let used = enter(here)?;
    body(&used.running.provider)
}

/// Waits for a slot event; [`finalize`] ends the wait.
///
/// # Errors
/// Those of [`Provider::wait_for_slot_event`].
pub(crate) fn wait_for_slot_event(here: Here, block: bool) -> Result<Ulong> {
    let used = enter(here)?;
    let _waiting = Waiting::enter(&used.running.waiting);
    used.running.provider.wait_for_slot_event(block)
}

/// Starts what `start` answers.
///
/// # Errors
/// `CKR_CRYPTOKI_ALREADY_INITIALIZED`, or those of `start`; nothing is then changed. `CKR_FUNCTION_FAILED` to a member's
/// module that leads back here: p11-kit's proxy then goes on without us.
pub(crate) fn initialize(start: impl FnOnce() -> Result<Provider>) -> Result<()> {
    not_from_a_member()?;
    let generation = fork_generation();
    let mut change = Change::begin(generation, Phase::Stopped).ok_or(Rv::CRYPTOKI_ALREADY_INITIALIZED)?;
    // What a parent process left belongs to its threads: not even its destructor may touch their sessions and locks.
    RUNNING.store(ptr::null_mut(), Ordering::SeqCst);
    let provider = start()?;
    let running = Box::new(Running { provider, generation, waiting: AtomicUsize::new(0) });
    RUNNING.store(Box::into_raw(running), Ordering::SeqCst);
    change.leads_to = Phase::Started;
    Ok(())
}

/// Stops. Calls of other threads are waited for, but not for ever.
///
/// # Errors
/// `CKR_CRYPTOKI_NOT_INITIALIZED`; `CKR_FUNCTION_FAILED` as for [`initialize`].
pub(crate) fn finalize() -> Result<()> {
    not_from_a_member()?;
    let mut change = Change::begin(fork_generation(), Phase::Started).ok_or(Rv::CRYPTOKI_NOT_INITIALIZED)?;
    // From here on, also if something panics.
    change.leads_to = Phase::Stopped;
    let taken = RUNNING.swap(ptr::null_mut(), Ordering::SeqCst);
    if taken.is_null() {
        return Err(Rv::CRYPTOKI_NOT_INITIALIZED);
    }
    {
        // SAFETY: `initialize` made it from a box, and nobody else gives it up: this call has taken it out.
        let running = unsafe { &*taken };
        wait_for_users(taken, || running.waiting.load(Ordering::Acquire));
        running.provider.shutdown(PATIENCE);
    }
    if wait_for_users(taken, || 0) {
        // SAFETY: as above, and nobody uses it: it was taken out before the last user was looked for.
        drop(unsafe { Box::from_raw(taken) });
    } else {
        tracing::warn!("a call hangs in a member: what it uses is left behind");
    }
    Ok(())
}

/// Waits until no more than `but` calls use what was taken out; false if that takes too long.
fn wait_for_users(taken: *mut Running, but: impl Fn() -> usize) -> bool {
    let end = Instant::now() + PATIENCE;
    while presence::count(taken as usize).is_none_or(|users| users > but()) {
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(PAUSE);
    }
    true
}

/// Refuses what a member's module asks of us while it is being loaded or initialised: it may be what we wait for.
fn not_from_a_member() -> Result<()> {
    if inside_member() {
        tracing::warn!(
            "a member's module leads back to pkcs11-ha; it is answered as if this library were broken"
        );
        return Err(Rv::FUNCTION_FAILED);
    }
    Ok(())
}

/// Counts one blocked call for as long as it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The right to start or stop, which one thread has at a time. Dropped, it is given back.
struct Change {
    generation: u64,
    leads_to: Phase,
}

impl Change {
    /// Waits for another thread's change to end, then takes the right if the phase is `from`.
    ///
    /// `None` when the phase is another, when the change under way is this thread's own, and when it takes too long:
    /// it may be waiting for a member whose module has led back here.
    fn begin(generation: u64, from: Phase) -> Option<Change> {
        if CHANGING_HERE.get() {
            return None;
        }
        let end = Instant::now() + CHANGE_PATIENCE;
        loop {
            let seen = PHASE.load(Ordering::Acquire);
            match phase_of(seen, generation) {
                Phase::Changing if Instant::now() < end => thread::sleep(PAUSE),
                phase if phase != from => return None,
                _ => {
                    let taken = word(generation, Phase::Changing);
                    if PHASE.compare_exchange(seen, taken, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                        CHANGING_HERE.set(true);
                        return Some(Change { generation, leads_to: from });
                    }
                }
            }
        }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        CHANGING_HERE.set(false);
        PHASE.store(word(self.generation, self.leads_to), Ordering::Release);
    }
}

fn word(generation: u64, phase: Phase) -> u64 {
    generation << 2 | phase as u64
}

/// The phase that `word` says, as seen in `generation`: what a parent process did counts for nothing.
fn phase_of(word: u64, generation: u64) -> Phase {
    match (word >> 2 == generation, word & 3) {
        (true, 1) => Phase::Changing,
        (true, 2) => Phase::Started,
        _ => Phase::Stopped,
    }
}
