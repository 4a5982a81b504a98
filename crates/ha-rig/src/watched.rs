//! Real tokens whose calls are written down, and answered otherwise where a test says so.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use ha_token::{
    ConnectError, Function, Params, Result, Rv, SessionHandle, Token, TokenInfo, Ulong, UserType,
};

use crate::passing::{Hook, Signing};

/// What happens at the next call of a function.
pub enum Act {
    /// It answers this, and does nothing.
    Answer(Rv),
    /// It does what it should, and answers this.
    DoneAndAnswer(Rv),
    /// Something else happens first.
    First(Box<dyn FnOnce() + Send>),
    /// Something else happens after it was done, and before it answers.
    Then(Box<dyn FnOnce() + Send>),
    /// Something else happens in its place, and says what it answers.
    Instead(Box<dyn FnOnce() -> Rv + Send>),
}

/// A PIN that was sent.
pub type Sent = (Function, UserType, Option<Vec<u8>>);

/// One member, seen from the test.
#[derive(Default)]
pub struct Watch {
    acts: Mutex<VecDeque<(Function, Act)>>,
    sent: Mutex<Vec<Sent>>,
    calls: Mutex<Vec<Function>>,
    errors: Mutex<VecDeque<ConnectError>>,
    sessions: Mutex<HashSet<SessionHandle>>,
    /// Flags that the token shows besides its own.
    pub flags: AtomicU64,
    /// Flags that it does not show, whatever the token says.
    pub hidden_flags: AtomicU64,
    /// Every call answers `CKR_DEVICE_ERROR` without reaching the token, and it cannot be connected.
    pub dead: AtomicBool,
    /// Dead from the call of this number on, if it is not 0.
    pub dies_after: AtomicUsize,
    /// The instance is shared with the host.
    pub shared: AtomicBool,
    /// The name under which `C_LoginUser` is a login of the token's user; without it that is the token's own affair.
    pub user_name: Mutex<Option<&'static [u8]>>,
    /// It signs messages (`C_MessageSignInit` and the like) by the token's ordinary functions.
    pub signs_messages: AtomicBool,
    signing: Signing,
    /// It signs with recovery by the token's ordinary functions.
    pub recovers: AtomicBool,
    /// It puts an initialisation vector of its own in place of a parameter that is bytes.
    pub makes_up: AtomicBool,
    /// How many of its next signatures are wrong by one bit.
    pub lies: AtomicUsize,
    /// How many were.
    pub lied: AtomicUsize,
    /// How often it was to be connected.
    pub connects: AtomicUsize,
    /// No longer than its connection lives.
    real: Mutex<Option<Weak<dyn Token>>>,
}

impl Watch {
    /// What happens at the function's next call for which nothing was said yet.
    pub fn next(&self, function: Function, act: Act) {
        self.acts.lock().unwrap().push_back((function, act));
    }

    /// The next calls of the function, that many, answer this and do nothing.
    pub fn refuse(&self, function: Function, times: usize, rv: Rv) {
        (0..times).for_each(|_| self.next(function, Act::Answer(rv)));
    }

    /// How much of what was to happen has not happened yet.
    pub fn waiting(&self) -> usize {
        self.acts.lock().unwrap().len()
    }

    /// Nothing is to happen any more.
    pub fn clear(&self) {
        self.acts.lock().unwrap().clear();
    }

    /// The next connection fails so.
    pub fn fail_to_connect(&self, error: ConnectError) {
        self.errors.lock().unwrap().push_back(error);
    }

    /// The PINs sent since the last look.
    pub fn sent(&self) -> Vec<Sent> {
        std::mem::take(&mut *self.sent.lock().unwrap())
    }

    /// The calls made since the last look.
    pub fn calls(&self) -> Vec<Function> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    /// How many sessions of this connection are open.
    pub fn sessions(&self) -> usize {
        self.sessions.lock().unwrap().len()
    }

    /// The token itself, as the host uses it.
    ///
    /// # Panics
    /// When it is not connected.
    pub fn real(&self) -> Arc<dyn Token> {
        self.real.lock().unwrap().as_ref().and_then(Weak::upgrade).unwrap()
    }

    fn is_dead(&self) -> bool {
        let one_less = |left: usize| left.checked_sub(1);
        if self.dies_after.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less) == Ok(1) {
            self.dead.store(true, Ordering::Release);
        }
        self.dead.load(Ordering::Acquire)
    }

    fn call<T>(&self, function: Function, go: impl FnOnce() -> Result<T>) -> Result<T> {
        self.calls.lock().unwrap().push(function);
        if self.is_dead() {
            return Err(Rv::DEVICE_ERROR);
        }
        let act = {
            let mut acts = self.acts.lock().unwrap();
            let at = acts.iter().position(|(f, _)| *f == function);
            at.and_then(|at| acts.remove(at)).map(|(_, act)| act)
        };
        match act {
            None => go(),
            Some(Act::Answer(rv)) => Err(rv),
            Some(Act::DoneAndAnswer(rv)) => go().and(Err(rv)),
            Some(Act::First(first)) => {
                first();
                go()
            }
            Some(Act::Then(then)) => {
                let answer = go();
                then();
                answer
            }
            Some(Act::Instead(instead)) => Err(instead()),
        }
    }
}

impl Hook for Arc<Watch> {
    fn call<T>(&self, function: Function, go: impl FnOnce() -> Result<T>) -> Result<T> {
        Watch::call(self, function, go)
    }

    fn sends(&self, function: Function, user: UserType, pin: Option<&[u8]>) {
        self.sent.lock().unwrap().push((function, user, pin.map(<[u8]>::to_vec)));
    }

    fn user_name(&self) -> Option<&'static [u8]> {
        *self.user_name.lock().unwrap()
    }

    fn opened(&self, session: SessionHandle) {
        self.sessions.lock().unwrap().insert(session);
    }

    fn closes(&self, session: SessionHandle) {
        self.sessions.lock().unwrap().remove(&session);
    }

    fn signing(&self) -> Option<&Signing> {
        self.signs_messages.load(Ordering::Acquire).then_some(&self.signing)
    }

    fn began(&self, params: &mut Params) {
        if let Params::Bytes(bytes) = params
            && self.makes_up.load(Ordering::Acquire)
        {
            bytes.fill(0x5a);
        }
    }

    fn recovers(&self) -> bool {
        self.recovers.load(Ordering::Acquire)
    }

    fn signed(&self, _input: Option<&[u8]>, signature: &mut [u8]) {
        let one_less = |left: usize| left.checked_sub(1);
        if self.lies.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).is_ok() {
            // Anywhere but in the first bytes, which decide whether it is below the modulus or the order at all.
            let at = signature.len() / 2 + 1;
            signature.get_mut(at).into_iter().for_each(|byte| *byte ^= 0x10);
            self.lied.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn told(&self, info: &mut TokenInfo) {
        info.flags &= !(self.hidden_flags.load(Ordering::Acquire) as Ulong);
        info.flags |= self.flags.load(Ordering::Acquire) as Ulong;
    }

    fn connects(&self) -> std::result::Result<Self, ConnectError> {
        self.connects.fetch_add(1, Ordering::AcqRel);
        if let Some(error) = self.errors.lock().unwrap().pop_front() {
            return Err(error);
        }
        if self.dead.load(Ordering::Acquire) {
            let (path, function) = ("dead".into(), Function::Initialize);
            return Err(ConnectError::Call { path, function, rv: Rv::DEVICE_ERROR });
        }
        self.sessions.lock().unwrap().clear();
        Ok(Arc::clone(self))
    }

    fn connected(&self, real: &Arc<dyn Token>) {
        *self.real.lock().unwrap() = Some(Arc::downgrade(real));
    }

    fn reinitialises(&self) -> bool {
        !self.shared.load(Ordering::Acquire)
    }
}
