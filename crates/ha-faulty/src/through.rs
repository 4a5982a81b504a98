//! One call's way through: what is decided of it, what happens before it, the module's own answer, what is done to that.

use std::time::Duration;

use cryptoki_sys::{self as ck, CK_RV};
use ha_token::{Function, Rv, Ulong};

use crate::handles::Handles;
use crate::live::{Live, live};
use crate::module::{self, Module};
use crate::outputs::Pointers;
use crate::rule::Fault;
use crate::shape::{self, Role};
use crate::state::{Call, Verdict};
use crate::swaps;
use crate::tracking::Swap;

/// How often a call that hangs looks whether it was released: by any process, so there is nothing to wait for.
const LOOK: Duration = Duration::from_millis(10);

/// The module's own function, with arguments as numbers.
pub(crate) type Real<'a> = &'a dyn Fn(&Module, &[usize]) -> CK_RV;

/// A call under way.
pub(crate) struct Passage<'a> {
    pub(crate) module: &'static Module,
    pub(crate) live: &'static Live,
    pub(crate) function: Function,
    /// The caller's arguments.
    words: &'a [usize],
    pub(crate) pointers: Pointers<'a>,
}

/// Makes a call, with what the rules say of it.
pub(crate) fn through(function: Function, words: &[usize], real: Real<'_>) -> CK_RV {
    // Lists are handed out by a module that is loaded.
    let Some(module) = module::loaded() else { return Rv::GENERAL_ERROR.0 };
    let live = live(module);
    live.count(function);
    let pointers = Pointers::new(function, words);
    let passage = Passage { module, live, function, words, pointers };
    match passage.decide() {
        Ok(verdict) => match passage.make(&verdict, real) {
            Ok(()) => ck::CKR_OK,
            Err(rv) => rv.0,
        },
        Err(error) => {
            crate::say(&format!("the state cannot be kept: {error}"));
            Rv::GENERAL_ERROR.0
        }
    }
}

impl Passage<'_> {
    fn decide(&self) -> std::io::Result<Verdict> {
        let mechanisms: Vec<Ulong> = match self.pointers.mechanism() {
            Some(mechanism) => vec![mechanism],
            None => {
                let tracking = self.live.tracking();
                let session = self.word(Role::Session).and_then(|s| tracking.session_handles.real(s));
                session.map_or_else(Vec::new, |s| tracking.mechanisms(s, shape::operations(self.function)))
            }
        };
        let call = Call { function: self.function, mechanisms: &mechanisms, query: self.pointers.is_query() };
        self.live.kept.with(|state| state.decide(&call))
    }

    /// The caller's argument with this role.
    pub(crate) fn word(&self, role: Role) -> Option<Ulong> {
        shape::place(self.function, role).and_then(|i| self.words.get(i)).map(|word| *word as Ulong)
    }

    /// The module's own handle of the call's session.
    pub(crate) fn real_session(&self) -> Option<Ulong> {
        self.word(Role::Session).and_then(|shown| self.live.tracking().session_handles.real(shown))
    }

    fn make(&self, verdict: &Verdict, real: Real<'_>) -> Result<(), Rv> {
        swaps::align(self.module, self.live, verdict.swapped.as_ref());
        for fault in &verdict.before {
            self.before(fault, verdict.released);
        }
        match verdict.settled {
            Some(Fault::Error { rv, done: false }) => {
                self.end_operation(rv);
                self.judge(verdict, Err(rv))?;
                return Err(rv);
            }
            Some(Fault::Die { done: false }) => die(),
            _ => {}
        }
        if verdict.gone
            && let Some(rv) = self.gone()
        {
            return Err(rv);
        }
        if matches!(verdict.settled, Some(Fault::Corrupt | Fault::Lengths(_))) {
            self.pointers.keep_rooms();
        }
        let locked = self.is_locked(verdict)?;
        let answer = if locked { Err(Rv::PIN_LOCKED) } else { self.call(real) };
        if let Some(Fault::Die { done: true }) = verdict.settled {
            die();
        }
        let answer = match verdict.settled {
            Some(Fault::Error { rv, done: true }) => {
                self.end_operation(rv);
                Err(rv)
            }
            _ => answer,
        };
        if !locked {
            self.judge(verdict, answer)?;
        }
        if answer.is_ok() {
            self.spoil(verdict)?;
            self.flag(verdict)?;
        }
        answer
    }

    /// What happens to a call and leaves its answer open.
    fn before(&self, fault: &Fault, released: u64) {
        match fault {
            Fault::Delay(time) => std::thread::sleep(*time),
            Fault::Hang => {
                // What cannot be read cannot say that it is over.
                while self.live.kept.with(|state| state.released()).is_ok_and(|now| now == released) {
                    std::thread::sleep(LOOK);
                }
            }
            Fault::LoseHandles => self.live.tracking().object_handles.lose(),
            Fault::LoseSessions => swaps::lose_sessions(self.module, self.live),
            Fault::LoseLogin => {
                let sessions = self.live.tracking().one_of_each_slot();
                if let Some(logout) = self.module.real().C_Logout {
                    for session in sessions {
                        // SAFETY: a number; what it means is for the module to say.
                        unsafe { logout(session) };
                    }
                }
            }
            _ => {}
        }
    }

    /// What is answered when there is no token; `None` where that makes no difference.
    fn gone(&self) -> Option<Rv> {
        match self.function {
            Function::Initialize | Function::Finalize | Function::GetInfo => return None,
            Function::WaitForSlotEvent | Function::GetSlotInfo | Function::GetSlotList => return None,
            _ => {}
        }
        if self.word(Role::Slot).is_some() {
            return Some(Rv::TOKEN_NOT_PRESENT);
        }
        // Taking a token away closes its sessions.
        swaps::lose_sessions(self.module, self.live);
        Some(Rv::DEVICE_REMOVED)
    }

    /// Calls the module, with its own handles and slots in the place of the caller's, and the other way round after.
    fn call(&self, real: Real<'_>) -> Result<(), Rv> {
        let words = self.translated()?;
        let _inside = Inside { passage: self, session: self.real_word(&words, Role::Session) };
        Rv::check(real(self.module, &words))?;
        match self.function {
            Function::Initialize if !self.pointers.forbids_threads() => self.listen()?,
            Function::Finalize => self.live.unlisten(),
            _ => {}
        }
        self.note(&words);
        Ok(())
    }

    /// The module's argument with this role.
    fn real_word(&self, real: &[usize], role: Role) -> Option<Ulong> {
        shape::place(self.function, role).and_then(|i| real.get(i)).map(|word| *word as Ulong)
    }

    /// Begins to listen. Where that cannot be, the module is not left initialised either.
    fn listen(&self) -> Result<(), Rv> {
        self.live.listen(self.module).map_err(|error| {
            crate::say(&error);
            if let Some(finalize) = self.module.real().C_Finalize {
                // SAFETY: the argument must be NULL.
                unsafe { finalize(std::ptr::null_mut()) };
            }
            Rv::GENERAL_ERROR
        })
    }

    fn translated(&self) -> Result<Vec<usize>, Rv> {
        let mut tracking = self.live.tracking();
        let handle = |handles: &Handles, word: usize, invalid: Rv| match word {
            0 => Ok(0),
            word => handles.real(word as Ulong).map(|real| real as usize).ok_or(invalid),
        };
        let objects = &tracking.object_handles;
        let one = |(role, word): (&Role, &usize)| match role {
            Role::Slot => Ok(tracking.real_slot(*word as Ulong) as usize),
            Role::Session => handle(&tracking.session_handles, *word, Rv::SESSION_HANDLE_INVALID),
            Role::Object => handle(objects, *word, Rv::OBJECT_HANDLE_INVALID),
            Role::Key => handle(objects, *word, Rv::KEY_HANDLE_INVALID),
            Role::WrappingKey => handle(objects, *word, Rv::WRAPPING_KEY_HANDLE_INVALID),
            Role::UnwrappingKey => handle(objects, *word, Rv::UNWRAPPING_KEY_HANDLE_INVALID),
            _ => Ok(*word),
        };
        let words: Vec<usize> =
            shape::roles(self.function).iter().zip(self.words).map(one).collect::<Result<_, _>>()?;
        // Under the same lock: it is not lost in between.
        if let Some(session) = self.real_word(&words, Role::Session) {
            tracking.enters(session);
        }
        Ok(words)
    }

    /// Takes note of what a call has changed, and tells the caller its own numbers.
    fn note(&self, real: &[usize]) {
        let real = |role| self.real_word(real, role);
        let mut tracking = self.live.tracking();
        match self.function {
            Function::OpenSession => {
                if let (Some(slot), Some(opened)) = (real(Role::Slot), self.pointers.opened()) {
                    tracking.opened(opened, slot);
                }
            }
            Function::CloseSession => {
                if let Some(session) = real(Role::Session) {
                    tracking.closed(session);
                }
            }
            Function::DestroyObject => {
                if let Some(object) = real(Role::Object) {
                    tracking.object_handles.forget(object);
                }
            }
            Function::CloseAllSessions => tracking.closed_all(real(Role::Slot)),
            Function::Finalize => {
                tracking.closed_all(None);
                tracking.swap = None;
            }
            function if shape::begins(function) => {
                if let (Some(session), Some(mechanism)) = (real(Role::Session), self.pointers.mechanism()) {
                    for operation in shape::operations(function) {
                        tracking.began(session, *operation, mechanism);
                    }
                }
            }
            _ => {}
        }
        let known = &mut *tracking;
        self.pointers.show_sessions(|session| known.session_handles.shown(session));
        self.pointers.show_objects(|object| known.object_handles.shown(object));
        self.pointers.show_slot(|slot| known.shown_slot(slot));
        let identity = match &known.swap {
            Some(Swap { what, slots: Some((own, _)) }) if what.identity_kept => Some(*own),
            _ => None,
        };
        drop(tracking);
        if let Some(own) = identity.filter(|own| self.word(Role::Slot) == Some(*own)) {
            swaps::keep_identity(self.module, own, &self.pointers);
        }
    }

    /// What ends an operation for the caller ends it in the module: an error answer does, if the module gives it.
    fn end_operation(&self, rv: Rv) {
        if rv == Rv::BUFFER_TOO_SMALL || shape::begins(self.function) {
            return;
        }
        if let Some(session) = self.real_session() {
            for operation in shape::operations(self.function) {
                swaps::end(self.module.real(), session, *operation);
            }
        }
    }

    /// Does to the output what was decided.
    fn spoil(&self, verdict: &Verdict) -> Result<(), Rv> {
        match &verdict.settled {
            Some(Fault::WrongSignature) => self.pointers.wrong_signature(),
            Some(Fault::Corrupt) => {
                let random = self.kept(|state| state.random())?;
                self.pointers.corrupt(random);
            }
            Some(Fault::Lengths(length)) => self.pointers.wrong_length(*length),
            _ => {}
        }
        Ok(())
    }

    /// Has `f` look at the state and change it.
    pub(crate) fn kept<T>(&self, f: impl FnOnce(&mut crate::state::State) -> T) -> Result<T, Rv> {
        self.live.kept.with(f).map_err(|error| {
            crate::say(&format!("the state cannot be kept: {error}"));
            Rv::GENERAL_ERROR
        })
    }
}

/// A call that is in a session of the module's, until this is dropped.
struct Inside<'p, 'a> {
    passage: &'p Passage<'a>,
    session: Option<Ulong>,
}

impl Drop for Inside<'_, '_> {
    fn drop(&mut self) {
        let Some(session) = self.session else { return };
        let is_lost = self.passage.live.tracking().leaves(session);
        if is_lost {
            swaps::close(self.passage.module, session);
        }
    }
}

/// As `kill -9` does it.
fn die() -> ! {
    _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}
