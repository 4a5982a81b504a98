//! Real tokens whose calls are written down, and answered otherwise where a test says so.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use ha_token::{
    AttributeType, CombinedKind, ConnectError, Connector, Fetched, Function, Mechanism, MechanismInfo,
    MessageKind, ObjectHandle, OpKind, Output, Params, Result, Rv, SessionHandle, SessionInfo, SlotInfo,
    Template, Token, TokenInfo, Ulong, UserType,
};

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
    /// Every call answers `CKR_DEVICE_ERROR` without reaching the token, and it cannot be connected.
    pub dead: AtomicBool,
    /// Dead from the call of this number on, if it is not 0.
    pub dies_after: AtomicUsize,
    /// The instance is shared with the host.
    pub shared: AtomicBool,
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

    fn send(&self, function: Function, user: UserType, pin: Option<&[u8]>) {
        self.sent.lock().unwrap().push((function, user, pin.map(<[u8]>::to_vec)));
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

/// The way to a member that is watched.
pub struct Watched {
    real: Box<dyn Connector>,
    watch: Arc<Watch>,
}

impl Watched {
    /// The way to a member, watched.
    pub fn new(real: impl Connector + 'static, watch: &Arc<Watch>) -> Self {
        Watched { real: Box::new(real), watch: Arc::clone(watch) }
    }
}

impl Connector for Watched {
    fn connect(&self) -> std::result::Result<Arc<dyn Token>, ConnectError> {
        let watch = &self.watch;
        watch.connects.fetch_add(1, Ordering::AcqRel);
        if let Some(error) = watch.errors.lock().unwrap().pop_front() {
            return Err(error);
        }
        if watch.dead.load(Ordering::Acquire) {
            let (path, function) = ("dead".into(), Function::Initialize);
            return Err(ConnectError::Call { path, function, rv: Rv::DEVICE_ERROR });
        }
        watch.sessions.lock().unwrap().clear();
        let real = self.real.connect()?;
        *watch.real.lock().unwrap() = Some(Arc::downgrade(&real));
        Ok(Arc::new(Seen { real, watch: Arc::clone(watch) }))
    }

    fn disconnect(&self) {
        self.real.disconnect();
    }

    fn hangs(&self) -> bool {
        self.real.hangs()
    }

    fn reinitialises(&self) -> bool {
        self.real.reinitialises() && !self.watch.shared.load(Ordering::Acquire)
    }
}

/// A token whose calls the test sees.
struct Seen {
    real: Arc<dyn Token>,
    watch: Arc<Watch>,
}

macro_rules! passed_on {
    ($($function:expr => $name:ident($($a:ident: $t:ty),*) -> $r:ty;)*) => {
        $(fn $name(&self, $($a: $t),*) -> Result<$r> {
            self.watch.call($function, || self.real.$name($($a),*))
        })*
    };
}

impl Token for Seen {
    fn token_info(&self) -> Result<TokenInfo> {
        self.watch.call(Function::GetTokenInfo, || {
            let mut info = self.real.token_info()?;
            info.flags |= self.watch.flags.load(Ordering::Acquire) as Ulong;
            Ok(info)
        })
    }

    fn login(&self, session: SessionHandle, user: UserType, pin: Option<&[u8]>) -> Result<()> {
        self.watch.send(Function::Login, user, pin);
        self.watch.call(Function::Login, || self.real.login(session, user, pin))
    }

    fn login_user(&self, s: SessionHandle, user: UserType, pin: Option<&[u8]>, name: &[u8]) -> Result<()> {
        self.watch.send(Function::LoginUser, user, pin);
        self.watch.call(Function::LoginUser, || self.real.login_user(s, user, pin, name))
    }

    fn init_token(&self, pin: Option<&[u8]>, label: &str) -> Result<()> {
        self.watch.send(Function::InitToken, UserType::So, pin);
        self.watch.call(Function::InitToken, || self.real.init_token(pin, label))
    }

    fn init_pin(&self, session: SessionHandle, pin: Option<&[u8]>) -> Result<()> {
        self.watch.send(Function::InitPin, UserType::User, pin);
        self.watch.call(Function::InitPin, || self.real.init_pin(session, pin))
    }

    fn set_pin(&self, session: SessionHandle, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<()> {
        self.watch.send(Function::SetPin, UserType::User, old);
        self.watch.call(Function::SetPin, || self.real.set_pin(session, old, new))
    }

    fn open_session(&self, read_write: bool) -> Result<SessionHandle> {
        let opened = self.watch.call(Function::OpenSession, || self.real.open_session(read_write))?;
        self.watch.sessions.lock().unwrap().insert(opened);
        Ok(opened)
    }

    fn close_session(&self, s: SessionHandle) -> Result<()> {
        self.watch.sessions.lock().unwrap().remove(&s);
        self.watch.call(Function::CloseSession, || self.real.close_session(s))
    }

    passed_on! {
        Function::GetSlotInfo => slot_info() -> SlotInfo;
        Function::GetMechanismList => mechanism_list() -> Vec<Ulong>;
        Function::GetMechanismInfo => mechanism_info(mechanism: Ulong) -> MechanismInfo;
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
