//! One loaded copy of a module: initialising and finalising it, and the calls in flight.

use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cryptoki_sys as ck;
use ha_token::{ConnectError, Function, Rv, Ulong};

use crate::environment::{self, EnvironmentError};
use crate::fork::{ForkLock, Gate, fork_generation};
use crate::loader::{self, Functions};
use crate::presence::{self, Stay};

/// How long calls get to leave an instance before it is given up.
pub(crate) const LEAVE: Duration = Duration::from_secs(2);

/// One set of a module's static variables.
#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) functions: Functions,
    /// Serialises `C_Initialize` and `C_Finalize`.
    pub(crate) gate: Gate,
    /// Whether `C_Initialize` succeeded here, rather than in the host's hands.
    initialised: AtomicBool,
    /// Whether the end of the process is told before its destructors run.
    armed: AtomicBool,
    /// Every life that may still have a call in the module.
    lives: ForkLock<Vec<Arc<Life>>>,
    generation: u64,
    /// Held by the one call that may be in the module, where it takes one at a time.
    turn: Option<Mutex<()>>,
}

/// The time between two initialisations: what a handed-out token refers to.
#[derive(Debug)]
pub(crate) struct Life {
    copy: Arc<Copy>,
    closed: AtomicBool,
}

/// A call in flight.
pub(crate) struct Call<'a> {
    life: &'a Life,
    _stay: Stay,
    _turn: Option<MutexGuard<'a, ()>>,
}

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    /// The life that this thread's calls may go on in to their end, by its address.
    static THROUGH: Cell<usize> = const { Cell::new(0) };
}

/// Whether this thread is inside a member's loading or `C_Initialize`.
///
/// A provider that finds itself initialised then has been reached through one of its own members (p11-kit's proxy
/// loads every configured module) and must answer at once, without connecting anything.
pub fn inside_member() -> bool {
    INSIDE.with(Cell::get)
}

/// As [`inside_member`], also when the thread's storage is gone.
pub(crate) fn is_inside() -> bool {
    INSIDE.try_with(Cell::get).unwrap_or(false)
}

/// Marks this thread as being inside a member, until dropped.
struct Inside(bool);

impl Inside {
    fn enter() -> Self {
        Inside(INSIDE.with(|i| i.replace(true)))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.with(|i| i.set(self.0));
    }
}

impl Copy {
    /// Loads a copy, or the shared instance, with `env` shown.
    pub(crate) fn load(
        path: &Path,
        private: bool,
        env: &[(String, String)],
    ) -> Result<Arc<Copy>, ConnectError> {
        let _inside = Inside::enter();
        let shown =
            environment::expose(env).map_err(|e| environment_error(path, Function::GetFunctionList, &e))?;
        let object = if private { loader::load_private(path) } else { loader::load_shared(path) }?;
        let functions = object.functions(path)?;
        if !shown.intact() {
            return Err(environment_error(path, Function::GetFunctionList, &EnvironmentError::Busy));
        }
        Ok(Arc::new(Copy {
            functions,
            gate: Gate::new(),
            initialised: AtomicBool::new(false),
            armed: AtomicBool::new(false),
            lives: ForkLock::new(Vec::new()),
            generation: fork_generation(),
            turn: one_at_a_time(path).then(Mutex::default),
        }))
    }

    /// Whether this process, and not the one it was forked from, loaded it.
    pub(crate) fn is_ours(&self) -> bool {
        self.generation == fork_generation()
    }

    /// Whether no call is in it.
    pub(crate) fn is_idle(&self) -> bool {
        self.lives.lock().iter().all(|life| !life.is_in_use())
    }

    /// Waits, for at most `wait`, until no call of a closed life is in it.
    pub(crate) fn wait_idle(&self, wait: Duration) -> bool {
        let start = Instant::now();
        loop {
            if self.is_idle() {
                return true;
            }
            if start.elapsed() >= wait {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether a life of it is still in use.
    pub(crate) fn is_used(&self) -> bool {
        self.lives.lock().iter().any(|life| !life.is_closed())
    }

    /// Whether it is initialised and nobody uses it, and no call is in it any more.
    pub(crate) fn is_left(&self) -> bool {
        self.initialised.load(Ordering::Acquire) && self.is_ours() && !self.is_used() && self.is_idle()
    }

    /// `C_Initialize`; for a `shared` instance only if neither we nor the host have done it. The caller holds the gate.
    pub(crate) fn initialise(
        &self,
        path: &Path,
        env: &[(String, String)],
        shared: bool,
    ) -> Result<(), ConnectError> {
        let failed =
            |rv| ConnectError::Call { path: path.display().to_string(), function: Function::Initialize, rv };
        // Asked, not tried: a second `C_Initialize` beside the host's first crashes some modules.
        if shared && self.slot_list_answer() != Err(Rv::CRYPTOKI_NOT_INITIALIZED) {
            return Ok(());
        }
        let _inside = Inside::enter();
        let initialise = self.functions.C_Initialize.ok_or_else(|| failed(Rv::FUNCTION_NOT_SUPPORTED))?;
        let shown =
            environment::expose(env).map_err(|e| environment_error(path, Function::Initialize, &e))?;
        let mut args = ck::CK_C_INITIALIZE_ARGS {
            CreateMutex: None,
            DestroyMutex: None,
            LockMutex: None,
            UnlockMutex: None,
            flags: ck::CKF_OS_LOCKING_OK,
            pReserved: std::ptr::null_mut(),
        };
        // SAFETY: the arguments live through the call; the gate keeps every other initialisation out.
        let rv = unsafe { initialise((&raw mut args).cast()) };
        crate::exit::tell_before(&self.armed);
        let intact = shown.intact();
        drop(shown);
        match Rv::check(rv) {
            Ok(()) => {
                self.initialised.store(true, Ordering::Release);
                if intact {
                    return Ok(());
                }
                self.finalise();
                Err(failed(Rv::CANT_LOCK))
            }
            Err(Rv::CRYPTOKI_ALREADY_INITIALIZED) => {
                if !shared {
                    let path = path.display();
                    tracing::warn!(%path, "this module's private copies share their state: it cannot be initialised alone");
                }
                Ok(()) // whoever did it finalises it
            }
            // What it answers for another one's variables says nothing about it.
            Err(_) if !intact => Err(failed(Rv::CANT_LOCK)),
            Err(rv) => Err(failed(rv)),
        }
    }

    fn slot_list_answer(&self) -> Result<(), Rv> {
        let list = self.functions.C_GetSlotList.ok_or(Rv::FUNCTION_NOT_SUPPORTED)?;
        let mut count = 0;
        // SAFETY: a size query; allowed, and refused, before `C_Initialize`.
        Rv::check(unsafe { list(ck::CK_TRUE, std::ptr::null_mut(), &mut count) })
    }

    /// `C_Finalize`, if this crate initialised it. The caller holds the gate, and no call is in it.
    pub(crate) fn finalise(&self) {
        if !self.initialised.swap(false, Ordering::AcqRel) || !self.is_ours() {
            return;
        }
        let _inside = Inside::enter();
        if let Some(finalise) = self.functions.C_Finalize {
            // SAFETY: the argument must be NULL; the gate is held and no call of ours is inside.
            let rv = unsafe { finalise(std::ptr::null_mut()) };
            if let Err(rv) = Rv::check(rv) {
                tracing::debug!(%rv, "a member's C_Finalize failed");
            }
        }
    }

    /// Begins a life.
    pub(crate) fn live(self: &Arc<Self>) -> Arc<Life> {
        let life = Arc::new(Life { copy: Arc::clone(self), closed: AtomicBool::new(false) });
        let mut lives = self.lives.lock();
        lives.retain(|l| !l.is_closed() || l.is_in_use());
        lives.push(Arc::clone(&life));
        life
    }
}

impl Life {
    /// Lets a call in.
    #[inline(always)]
    pub(crate) fn enter(&self) -> Result<Call<'_>, Rv> {
        if !self.copy.is_ours() {
            return Err(Rv::CRYPTOKI_NOT_INITIALIZED);
        }
        let stay = presence::enter(self.address());
        if self.is_closed() && !self.lasts() {
            return Err(Rv::CRYPTOKI_NOT_INITIALIZED);
        }
        let turn = match &self.copy.turn {
            None => None,
            Some(turn) => Some(self.take_turn(turn)?),
        };
        Ok(Call { life: self, _stay: stay, _turn: turn })
    }

    #[inline(never)]
    fn take_turn<'a>(&self, turn: &'a Mutex<()>) -> Result<MutexGuard<'a, ()>, Rv> {
        let turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have been closed while this call waited.
        if self.is_closed() && !self.lasts() { Err(Rv::CRYPTOKI_NOT_INITIALIZED) } else { Ok(turn) }
    }

    /// Makes calls that are let in to their end, if the first one is: until then the copy is in use, so that it is not
    /// finalised.
    pub(crate) fn last_through(&self, calls: &mut dyn FnMut()) {
        let _stay = presence::enter(self.address());
        if self.is_closed() {
            return calls();
        }
        struct Before(usize);
        impl Drop for Before {
            fn drop(&mut self) {
                THROUGH.set(self.0);
            }
        }
        let _before = Before(THROUGH.replace(self.address()));
        calls();
    }

    /// Whether this thread is in the middle of such calls.
    #[cold]
    fn lasts(&self) -> bool {
        THROUGH.try_with(Cell::get) == Ok(self.address())
    }

    /// Lets no further call in.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether a call may be in it, of a life that is closed.
    fn is_in_use(&self) -> bool {
        presence::count(self.address()) != Some(0)
    }

    /// What calls in it are known by.
    fn address(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }
}

impl std::ops::Deref for Call<'_> {
    type Target = Functions;
    fn deref(&self) -> &Functions {
        &self.life.copy.functions
    }
}

/// Whether a module takes one call at a time. p11-kit's client has one connection, which serves one call at a time
/// anyway; and when its server dies, of several threads that wait in it some wait for ever (0.24).
fn one_at_a_time(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().contains("p11-kit-client"))
}

fn environment_error(path: &Path, function: Function, error: &EnvironmentError) -> ConnectError {
    match error {
        EnvironmentError::Unusable(name) => loader::load_error(
            path,
            format!("its environment variable {name} cannot be set: bad name, or too long"),
        ),
        EnvironmentError::Busy => {
            ConnectError::Call { path: path.display().to_string(), function, rv: Rv::CANT_LOCK }
        }
    }
}

/// The length of a slice as it crosses the interface.
pub(crate) fn ulong(len: usize) -> Ulong {
    Ulong::try_from(len).unwrap_or(Ulong::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connector_reached_from_inside_a_member_refuses() {
        use ha_token::{Connector, Selector};
        let connector = crate::ModuleConnector::new(crate::ModuleConfig {
            path: "/usr/lib/softhsm/libsofthsm2.so".into(),
            instance: crate::Instance::Private,
            env: Vec::new(),
            selector: Selector::default(),
        });
        let outer = Inside::enter();
        drop(Inside::enter());
        assert!(inside_member(), "an inner end does not end the outer one");
        let answer = connector.connect().map(|_| ());
        assert!(matches!(answer, Err(ConnectError::Itself { .. })));
        drop(outer);
        assert!(!inside_member());
    }
}
