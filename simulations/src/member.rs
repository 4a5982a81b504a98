//! A member as the core sees it: a simulated token behind calls that may go wrong.
//!
//! Every call is a place where another thread may go on, takes some virtual time, and is met by the faults that are on at
//! this moment. What a fault is, and when it is on, is the `nemesis`' business; here is what it does to a call.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ha_core::seam::turns::Turns as _;
use ha_token::*;

use crate::random::Random;
use crate::scheduler::Scheduler;

/// What goes wrong with one member's calls, for every process alike.
pub struct Line {
    /// The member's number.
    pub index: usize,
    scheduler: Arc<Scheduler>,
    state: Mutex<LineState>,
}

struct LineState {
    random: Random,
    faults: Faults,
    /// Counts the member's deaths: connections from before one stay dead.
    life: u64,
    calls: BTreeMap<Function, u64>,
    faulted: BTreeMap<(Function, Rv), u64>,
    logins: Vec<Attempt>,
}

/// What is wrong with a member's calls now.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Every call answers `CKR_DEVICE_ERROR`, and no connection can be made.
    pub dead: bool,
    /// How many of 1000 calls fail before anything is done.
    pub before: u64,
    /// How many of 1000 calls are done and answered with an error.
    pub after: u64,
    /// What they answer.
    pub answers: Vec<Rv>,
    /// What each call takes longer.
    pub slow: Duration,
}

/// A PIN that was sent to a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Who was to be logged in.
    pub user: UserType,
    /// The PIN.
    pub pin: Vec<u8>,
    /// What the token answered, whatever became of the answer.
    pub answer: std::result::Result<(), Rv>,
}

impl Line {
    /// A member that works.
    pub fn new(scheduler: &Arc<Scheduler>, index: usize, random: Random) -> Arc<Self> {
        let state = LineState {
            random,
            faults: Faults::default(),
            life: 0,
            calls: BTreeMap::new(),
            faulted: BTreeMap::new(),
            logins: Vec::new(),
        };
        Arc::new(Line { index, scheduler: Arc::clone(scheduler), state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, LineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what goes wrong from now on.
    pub fn set(&self, faults: Faults) {
        let mut state = self.state();
        if faults.dead && !state.faults.dead {
            state.life += 1;
        }
        state.faults = faults;
    }

    /// Whether nothing is wrong.
    pub fn is_well(&self) -> bool {
        let state = self.state();
        !state.faults.dead && state.faults.before == 0 && state.faults.after == 0
    }

    /// Calls of each function so far.
    pub fn calls(&self) -> BTreeMap<Function, u64> {
        self.state().calls.clone()
    }

    /// How often each function was answered with each error that no token gave.
    pub fn faulted(&self) -> BTreeMap<(Function, Rv), u64> {
        self.state().faulted.clone()
    }

    /// The PINs sent since the last look.
    pub fn take_logins(&self) -> Vec<Attempt> {
        std::mem::take(&mut self.state().logins)
    }

    fn trace(&self, process: u32, function: Function, answer: &dyn std::fmt::Display) {
        let who = self.scheduler.name();
        self.scheduler.trace.add(
            self.scheduler.now(),
            &who,
            format_args!("{process} member {} {function} {answer}", self.index),
        );
    }

    /// What happens to a call of a connection made in `life`.
    fn call<T>(
        &self,
        process: u32,
        life: u64,
        function: Function,
        go: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.scheduler.point();
        if self.scheduler.is_dead(process) {
            return Err(Rv::DEVICE_ERROR);
        }
        let (fault, takes) = {
            let mut state = self.state();
            *state.calls.entry(function).or_default() += 1;
            let LineState { random, faults, life: now, .. } = &mut *state;
            let takes = Duration::from_micros(20 + random.below(400)) + faults.slow;
            let fault = if faults.dead || life != *now {
                Some((false, Rv::DEVICE_ERROR))
            } else if faults.answers.is_empty() {
                None
            } else if random.chance(faults.before) {
                Some((false, *random.pick(&faults.answers)))
            } else if random.chance(faults.after) {
                Some((true, *random.pick(&faults.answers)))
            } else {
                None
            };
            (fault, takes)
        };
        self.scheduler.pass(takes);
        let answer = match fault {
            None => go(),
            Some((done, rv)) => {
                *self.state().faulted.entry((function, rv)).or_default() += 1;
                if done {
                    // The answer is lost, whatever it was.
                    drop(go());
                }
                Err(rv)
            }
        };
        match (&answer, fault) {
            (Ok(_), _) => self.trace(process, function, &"ok"),
            (Err(rv), None) => self.trace(process, function, rv),
            (Err(rv), Some((done, _))) => {
                let word = if done { "done, and answered" } else { "not done, answered" };
                self.trace(process, function, &format_args!("{word} {rv}"));
            }
        }
        answer
    }
}

/// One process's way to a member.
pub struct LineConnector {
    /// The faults.
    pub line: Arc<Line>,
    /// The token's own connector.
    pub real: Box<dyn Connector>,
    /// The process.
    pub process: u32,
}

impl Connector for LineConnector {
    fn connect(&self) -> std::result::Result<Arc<dyn Token>, ConnectError> {
        let line = &self.line;
        line.scheduler.point();
        line.scheduler.pass(Duration::from_millis(1));
        let error = |rv| ConnectError::Call {
            path: format!("member {}", line.index),
            function: Function::Initialize,
            rv,
        };
        let (life, dead) = {
            let mut state = line.state();
            let failed = {
                let LineState { random, faults, .. } = &mut *state;
                faults.dead || (!faults.answers.is_empty() && random.chance(faults.before))
            };
            (state.life, failed)
        };
        if dead || line.scheduler.is_dead(self.process) {
            line.trace(self.process, Function::Initialize, &"fails");
            return Err(error(Rv::DEVICE_ERROR));
        }
        let real = self.real.connect()?;
        line.trace(self.process, Function::Initialize, &"ok");
        Ok(Arc::new(LineToken { line: Arc::clone(line), real, process: self.process, life }))
    }

    fn disconnect(&self) {
        self.real.disconnect();
    }

    fn reinitialises(&self) -> bool {
        true
    }
}

struct LineToken {
    line: Arc<Line>,
    real: Arc<dyn Token>,
    process: u32,
    life: u64,
}

impl LineToken {
    fn call<T>(&self, function: Function, go: impl FnOnce() -> Result<T>) -> Result<T> {
        self.line.call(self.process, self.life, function, go)
    }

    fn send(
        &self,
        function: Function,
        user: UserType,
        pin: Option<&[u8]>,
        go: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.call(function, || {
            let answer = go();
            let attempt = Attempt { user, pin: pin.unwrap_or_default().to_vec(), answer };
            self.line.state().logins.push(attempt);
            answer
        })
    }
}

macro_rules! passed_on {
    ($($function:expr => $name:ident($($a:ident: $t:ty),*) -> $r:ty;)*) => {
        $(fn $name(&self, $($a: $t),*) -> Result<$r> {
            self.call($function, || self.real.$name($($a),*))
        })*
    };
}

impl Token for LineToken {
    fn login(&self, session: SessionHandle, user: UserType, pin: Option<&[u8]>) -> Result<()> {
        self.send(Function::Login, user, pin, || self.real.login(session, user, pin))
    }

    fn login_user(&self, s: SessionHandle, user: UserType, pin: Option<&[u8]>, name: &[u8]) -> Result<()> {
        self.send(Function::LoginUser, user, pin, || self.real.login_user(s, user, pin, name))
    }

    fn set_pin(&self, session: SessionHandle, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<()> {
        self.send(Function::SetPin, UserType::User, old, || self.real.set_pin(session, old, new))
    }

    passed_on! {
        Function::GetTokenInfo => token_info() -> TokenInfo;
        Function::InitToken => init_token(pin: Option<&[u8]>, label: &str) -> ();
        Function::InitPin => init_pin(session: SessionHandle, pin: Option<&[u8]>) -> ();
        Function::GetSlotInfo => slot_info() -> SlotInfo;
        Function::GetMechanismList => mechanism_list() -> Vec<Ulong>;
        Function::GetMechanismInfo => mechanism_info(mechanism: Ulong) -> MechanismInfo;
        Function::OpenSession => open_session(read_write: bool) -> SessionHandle;
        Function::CloseSession => close_session(s: SessionHandle) -> ();
        Function::CloseAllSessions => close_all_sessions() -> ();
        Function::GetSessionInfo => session_info(s: SessionHandle) -> SessionInfo;
        Function::SessionCancel => session_cancel(s: SessionHandle, flags: Ulong) -> ();
        Function::GetSessionValidationFlags => session_validation_flags(s: SessionHandle, kind: Ulong) -> Ulong;
        Function::Logout => logout(s: SessionHandle) -> ();
        Function::CreateObject => create_object(s: SessionHandle, template: &Template) -> ObjectHandle;
        Function::CopyObject => copy_object(s: SessionHandle, o: ObjectHandle, template: &Template) -> ObjectHandle;
        Function::DestroyObject => destroy_object(s: SessionHandle, o: ObjectHandle) -> ();
        Function::GetObjectSize => object_size(s: SessionHandle, o: ObjectHandle) -> Ulong;
        Function::GetAttributeValue => get_attributes(s: SessionHandle, o: ObjectHandle, types: &[AttributeType]) -> Vec<Fetched>;
        Function::SetAttributeValue => set_attributes(s: SessionHandle, o: ObjectHandle, template: &Template) -> ();
        Function::FindObjectsInit => find_objects_init(s: SessionHandle, template: &Template) -> ();
        Function::FindObjects => find_objects(s: SessionHandle, max: usize) -> Vec<ObjectHandle>;
        Function::FindObjectsFinal => find_objects_final(s: SessionHandle) -> ();
        kind.init() => op_init(s: SessionHandle, kind: OpKind, mechanism: Option<&mut Mechanism>, key: ObjectHandle) -> ();
        kind.one_shot() => op_one_shot(s: SessionHandle, kind: OpKind, input: &[u8], output: &mut Output<'_>) -> ();
        kind.update() => op_update(s: SessionHandle, kind: OpKind, input: &[u8], output: &mut Output<'_>) -> ();
        kind.last() => op_final(s: SessionHandle, kind: OpKind, output: &mut Output<'_>) -> ();
        Function::Verify => verify(s: SessionHandle, data: &[u8], signature: &[u8]) -> ();
        Function::VerifyFinal => verify_final(s: SessionHandle, signature: &[u8]) -> ();
        Function::DigestKey => digest_key(s: SessionHandle, key: ObjectHandle) -> ();
        kind.function() => combined_update(s: SessionHandle, kind: CombinedKind, input: &[u8], output: &mut Output<'_>) -> ();
        Function::VerifySignatureInit => verify_signature_init(s: SessionHandle, mechanism: Option<&mut Mechanism>, key: ObjectHandle, signature: &[u8]) -> ();
        Function::VerifySignature => verify_signature(s: SessionHandle, data: &[u8]) -> ();
        Function::VerifySignatureFinal => verify_signature_final(s: SessionHandle) -> ();
        kind.init() => message_mechanism(s: SessionHandle, kind: MessageKind) -> Ulong;
        kind.init() => message_init(s: SessionHandle, kind: MessageKind, mechanism: Option<&mut Mechanism>, key: ObjectHandle) -> ();
        kind.one_shot() => message_one_shot(s: SessionHandle, kind: MessageKind, params: &mut Params, associated: &[u8], input: &[u8], output: &mut Output<'_>) -> ();
        kind.begin() => message_begin(s: SessionHandle, kind: MessageKind, params: &mut Params, associated: &[u8]) -> ();
        kind.next() => message_next(s: SessionHandle, kind: MessageKind, params: &mut Params, input: &[u8], last: bool, output: &mut Output<'_>) -> ();
        Function::VerifyMessage => verify_message(s: SessionHandle, params: &mut Params, data: &[u8], signature: &[u8]) -> ();
        Function::VerifyMessageNext => verify_message_next(s: SessionHandle, params: &mut Params, data: &[u8], signature: Option<&[u8]>) -> ();
        kind.last() => message_final(s: SessionHandle, kind: MessageKind) -> ();
        Function::GenerateKey => generate_key(s: SessionHandle, mechanism: &mut Mechanism, template: &Template) -> ObjectHandle;
        Function::GenerateKeyPair => generate_key_pair(s: SessionHandle, mechanism: &mut Mechanism, public: &Template, private: &Template) -> (ObjectHandle, ObjectHandle);
        Function::WrapKey => wrap_key(s: SessionHandle, mechanism: &mut Mechanism, wrapping: ObjectHandle, key: ObjectHandle, output: &mut Output<'_>) -> ();
        Function::UnwrapKey => unwrap_key(s: SessionHandle, mechanism: &mut Mechanism, unwrapping: ObjectHandle, wrapped: &[u8], template: &Template) -> ObjectHandle;
        Function::DeriveKey => derive_key(s: SessionHandle, mechanism: &mut Mechanism, base: ObjectHandle, template: &Template, want: bool) -> Option<ObjectHandle>;
        Function::WrapKeyAuthenticated => wrap_key_authenticated(s: SessionHandle, mechanism: &mut Mechanism, wrapping: ObjectHandle, key: ObjectHandle, associated: &[u8], output: &mut Output<'_>) -> ();
        Function::UnwrapKeyAuthenticated => unwrap_key_authenticated(s: SessionHandle, mechanism: &mut Mechanism, unwrapping: ObjectHandle, wrapped: &[u8], template: &Template, associated: &[u8]) -> ObjectHandle;
        Function::EncapsulateKey => encapsulate_key(s: SessionHandle, mechanism: &mut Mechanism, public: ObjectHandle, template: &Template, output: &mut Output<'_>) -> Option<ObjectHandle>;
        Function::DecapsulateKey => decapsulate_key(s: SessionHandle, mechanism: &mut Mechanism, private: ObjectHandle, template: &Template, ciphertext: &[u8]) -> ObjectHandle;
        Function::SeedRandom => seed_random(s: SessionHandle, seed: &[u8]) -> ();
        Function::GenerateRandom => generate_random(s: SessionHandle, output: &mut [u8]) -> ();
    }
}
