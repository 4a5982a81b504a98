//! What runs between `C_Initialize` and `C_Finalize`.
//!
//! Calls read one pointer, without a lock. Starting and stopping exclude each other through one atomic word and not a
//! mutex, because a child of `fork` must find neither held by a thread that it does not have.

use std::cell::Cell;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use ha_core::provider::Provider;
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

static RUNNING: ArcSwapOption<Running> = ArcSwapOption::const_empty();

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

/// Runs `body` on the provider.
///
/// # Errors
/// `CKR_CRYPTOKI_NOT_INITIALIZED`, or the body's.
pub(crate) fn with<T>(body: impl FnOnce(&Provider) -> Result<T>) -> Result<T> {
    let running = RUNNING.load();
    match running.as_deref() {
        Some(r) if r.generation == fork_generation() => body(&r.provider),
        _ => Err(Rv::CRYPTOKI_NOT_INITIALIZED),
    }
}

/// Waits for a slot event; [`finalize`] ends the wait.
///
/// # Errors
/// Those of [`Provider::wait_for_slot_event`].
pub(crate) fn wait_for_slot_event(block: bool) -> Result<Ulong> {
    let running = RUNNING.load_full().filter(|r| r.generation == fork_generation());
    let running = running.ok_or(Rv::CRYPTOKI_NOT_INITIALIZED)?;
    let _waiting = Waiting::enter(&running.waiting);
    running.provider.wait_for_slot_event(block)
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
    if let Some(parents) = RUNNING.swap(None) {
        // Its threads, sessions and locks are the parent's: not even its destructor may touch them.
        mem::forget(parents);
    }
    let provider = start()?;
    RUNNING.store(Some(Arc::new(Running { provider, generation, waiting: AtomicUsize::new(0) })));
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
    let Some(running) = RUNNING.swap(None) else { return Err(Rv::CRYPTOKI_NOT_INITIALIZED) };
    // After a swap every call in flight owns a count of its own, and no new one can come.
    let end = Instant::now() + PATIENCE;
    while Arc::strong_count(&running) > 1 + running.waiting.load(Ordering::Acquire) && Instant::now() < end {
        thread::sleep(PAUSE);
    }
    running.provider.shutdown(PATIENCE);
    Ok(())
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
