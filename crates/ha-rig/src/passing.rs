//! A token in front of another one: every call goes through a hook, which may look at it, put it off, or answer in its
//! place.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use ha_token::{
    AttributeType, CombinedKind, ConnectError, Connector, Fetched, Function, Mechanism, MechanismInfo,
    MessageKind, ObjectHandle, OpKind, Output, Params, Result, Rv, SessionHandle, SessionInfo, SlotInfo,
    Template, Token, TokenInfo, Ulong, UserType,
};

/// The mechanism and key of each session's message-based signing.
pub type Signing = Mutex<HashMap<SessionHandle, (Mechanism, ObjectHandle)>>;

/// What happens to the calls of a token.
pub trait Hook: Send + Sync {
    /// Any call: `go` makes it.
    ///
    /// # Errors
    /// Its answer, or another one.
    fn call<T>(&self, function: Function, go: impl FnOnce() -> Result<T>) -> Result<T>;

    /// A call that sends a PIN is about to be made.
    fn sends(&self, _function: Function, _user: UserType, _pin: Option<&[u8]>) {}

    /// Where the token itself has no named users: the name under which `C_LoginUser` is a login of its user.
    fn user_name(&self) -> Option<&'static [u8]> {
        None
    }

    /// A session was opened.
    fn opened(&self, _session: SessionHandle) {}

    /// A session is to be closed.
    fn closes(&self, _session: SessionHandle) {}

    /// Where the token itself has no message-based functions: what is signed in which session, by its ordinary ones.
    fn signing(&self) -> Option<&Signing> {
        None
    }

    /// Whether `C_SignRecover` is done by `C_Sign`, where the token itself has none.
    fn recovers(&self) -> bool {
        false
    }

    /// The token has made this signature, of this input where it was given whole.
    fn signed(&self, _input: Option<&[u8]>, _signature: &mut [u8]) {}

    /// The token has begun an operation, and may have written into its parameter.
    fn began(&self, _params: &mut Params) {}

    /// The token has said this of itself.
    fn told(&self, _info: &mut TokenInfo) {}

    /// The token is to be connected: what the calls of this connection go through.
    ///
    /// # Errors
    /// Why it is not, in its place.
    fn connects(&self) -> std::result::Result<Self, ConnectError>
    where
        Self: Clone,
    {
        Ok(self.clone())
    }

    /// The token is connected.
    fn connected(&self, _real: &Arc<dyn Token>) {}

    /// Whether connecting it again may start over, where it can.
    fn reinitialises(&self) -> bool {
        true
    }
}

/// A connector whose tokens are behind a hook.
pub struct Hooked<C, H> {
    /// What connects them.
    pub real: C,
    /// What their calls go through.
    pub hook: H,
}

impl<C: Connector, H: Hook + Clone + 'static> Connector for Hooked<C, H> {
    fn connect(&self) -> std::result::Result<Arc<dyn Token>, ConnectError> {
        let hook = self.hook.connects()?;
        let real = self.real.connect()?;
        hook.connected(&real);
        Ok(Arc::new(Passing { real, hook }))
    }

    fn disconnect(&self) {
        self.real.disconnect();
    }

    fn hangs(&self) -> bool {
        self.real.hangs()
    }

    fn leavings(&self) -> Option<Box<dyn FnOnce() + Send>> {
        self.real.leavings()
    }

    fn reinitialises(&self) -> bool {
        self.real.reinitialises() && self.hook.reinitialises()
    }
}

/// A token behind a hook.
pub struct Passing<H> {
    /// The token.
    pub real: Arc<dyn Token>,
    /// The hook.
    pub hook: H,
}

macro_rules! passed_on {
    ($($function:expr => $name:ident($($a:ident: $t:ty),*) -> $r:ty;)*) => {
        $(fn $name(&self, $($a: $t),*) -> Result<$r> {
            self.hook.call($function, || self.real.$name($($a),*))
        })*
    };
}

impl<H: Hook> Passing<H> {
    /// A call that sends a PIN.
    fn send(
        &self,
        function: Function,
        user: UserType,
        pin: Option<&[u8]>,
        go: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.hook.sends(function, user, pin);
        self.hook.call(function, go)
    }

    /// What the token is asked for.
    fn real_kind(&self, kind: OpKind) -> OpKind {
        if kind == OpKind::SignRecover && self.hook.recovers() { OpKind::Sign } else { kind }
    }

    /// The hook sees a signature that was made.
    fn see_signature(&self, input: Option<&[u8]>, output: &mut Output<'_>) {
        let len = output.len();
        if let Some(signature) = output.space().and_then(|space| space.get_mut(..len)) {
            self.hook.signed(input, signature);
        }
    }

    /// The next message of a session's signing.
    fn sign_on(&self, signing: &Signing, s: SessionHandle, was_query: bool) -> Result<()> {
        if was_query {
            return Ok(());
        }
        let (mut mechanism, key) =
            signing.lock().unwrap().get(&s).cloned().ok_or(Rv::OPERATION_NOT_INITIALIZED)?;
        self.real.op_init(s, OpKind::Sign, Some(&mut mechanism), key)
    }
}

impl<H: Hook> Token for Passing<H> {
    fn token_info(&self) -> Result<TokenInfo> {
        self.hook.call(Function::GetTokenInfo, || {
            let mut info = self.real.token_info()?;
            self.hook.told(&mut info);
            Ok(info)
        })
    }

    fn login(&self, session: SessionHandle, user: UserType, pin: Option<&[u8]>) -> Result<()> {
        self.send(Function::Login, user, pin, || self.real.login(session, user, pin))
    }

    fn login_user(&self, s: SessionHandle, user: UserType, pin: Option<&[u8]>, name: &[u8]) -> Result<()> {
        self.send(Function::LoginUser, user, pin, || match self.hook.user_name() {
            None => self.real.login_user(s, user, pin, name),
            Some(known) if known == name => self.real.login(s, user, pin),
            Some(_) => Err(Rv::PIN_INCORRECT),
        })
    }

    fn init_token(&self, pin: Option<&[u8]>, label: &str) -> Result<()> {
        self.send(Function::InitToken, UserType::So, pin, || self.real.init_token(pin, label))
    }

    fn init_pin(&self, session: SessionHandle, pin: Option<&[u8]>) -> Result<()> {
        self.send(Function::InitPin, UserType::User, pin, || self.real.init_pin(session, pin))
    }

    fn set_pin(&self, session: SessionHandle, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<()> {
        self.send(Function::SetPin, UserType::User, old, || self.real.set_pin(session, old, new))
    }

    fn whole_objects(&self) -> Option<u64> {
        self.real.whole_objects()
    }

    fn await_whole_objects(&self) {
        self.real.await_whole_objects();
    }

    fn lasting(&self, calls: &mut dyn FnMut()) {
        self.real.lasting(calls);
    }

    fn open_session(&self, read_write: bool) -> Result<SessionHandle> {
        let opened = self.hook.call(Function::OpenSession, || self.real.open_session(read_write))?;
        self.hook.opened(opened);
        Ok(opened)
    }

    fn close_session(&self, s: SessionHandle) -> Result<()> {
        self.hook.closes(s);
        self.hook.call(Function::CloseSession, || self.real.close_session(s))
    }

    fn message_init(
        &self,
        s: SessionHandle,
        kind: MessageKind,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
    ) -> Result<()> {
        self.hook.call(kind.init(), || match (self.hook.signing(), mechanism) {
            (Some(signing), Some(mechanism)) => {
                self.real.op_init(s, OpKind::Sign, Some(mechanism), key)?;
                signing.lock().unwrap().insert(s, (mechanism.clone(), key));
                Ok(())
            }
            (_, mechanism) => self.real.message_init(s, kind, mechanism, key),
        })
    }

    fn message_one_shot(
        &self,
        s: SessionHandle,
        kind: MessageKind,
        params: &mut Params,
        associated: &[u8],
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.hook.call(kind.one_shot(), || match self.hook.signing() {
            Some(signing) => {
                self.real.op_one_shot(s, OpKind::Sign, input, output)?;
                self.see_signature(Some(input), output);
                self.sign_on(signing, s, output.is_query())
            }
            None => self.real.message_one_shot(s, kind, params, associated, input, output),
        })
    }

    fn message_begin(
        &self,
        s: SessionHandle,
        kind: MessageKind,
        params: &mut Params,
        associated: &[u8],
    ) -> Result<()> {
        self.hook.call(kind.begin(), || match self.hook.signing() {
            Some(_) => self.real.session_info(s).map(drop),
            None => self.real.message_begin(s, kind, params, associated),
        })
    }

    fn message_next(
        &self,
        s: SessionHandle,
        kind: MessageKind,
        params: &mut Params,
        input: &[u8],
        last: bool,
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.hook.call(kind.next(), || match self.hook.signing() {
            Some(signing) => {
                self.real.op_update(s, OpKind::Sign, input, &mut Output::query())?;
                if !last {
                    return Ok(());
                }
                self.real.op_final(s, OpKind::Sign, output)?;
                self.see_signature(None, output);
                self.sign_on(signing, s, output.is_query())
            }
            None => self.real.message_next(s, kind, params, input, last, output),
        })
    }

    fn message_final(&self, s: SessionHandle, kind: MessageKind) -> Result<()> {
        self.hook.call(kind.last(), || match self.hook.signing() {
            Some(signing) => {
                signing.lock().unwrap().remove(&s).ok_or(Rv::OPERATION_NOT_INITIALIZED)?;
                self.real.op_one_shot(s, OpKind::Sign, &[0; 32], &mut Output::buffer(&mut [0; 512]))
            }
            None => self.real.message_final(s, kind),
        })
    }

    fn op_init(
        &self,
        s: SessionHandle,
        kind: OpKind,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
    ) -> Result<()> {
        self.hook.call(kind.init(), || {
            let Some(mechanism) = mechanism else {
                return self.real.op_init(s, self.real_kind(kind), None, key);
            };
            self.real.op_init(s, self.real_kind(kind), Some(mechanism), key)?;
            self.hook.began(&mut mechanism.params);
            Ok(())
        })
    }

    fn op_one_shot(
        &self,
        s: SessionHandle,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.hook.call(kind.one_shot(), || {
            self.real.op_one_shot(s, self.real_kind(kind), input, output)?;
            if matches!(kind, OpKind::Sign | OpKind::SignRecover) {
                self.see_signature(Some(input), output);
            }
            Ok(())
        })
    }

    fn op_final(&self, s: SessionHandle, kind: OpKind, output: &mut Output<'_>) -> Result<()> {
        self.hook.call(kind.last(), || {
            self.real.op_final(s, kind, output)?;
            if kind == OpKind::Sign {
                self.see_signature(None, output);
            }
            Ok(())
        })
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
        kind.update() => op_update(s: SessionHandle, kind: OpKind, input: &[u8], output: &mut Output<'_>) -> ();
        Function::Verify => verify(s: SessionHandle, data: &[u8], signature: &[u8]) -> ();
        Function::VerifyFinal => verify_final(s: SessionHandle, signature: &[u8]) -> ();
        Function::DigestKey => digest_key(s: SessionHandle, key: ObjectHandle) -> ();
        kind.function() => combined_update(s: SessionHandle, kind: CombinedKind, input: &[u8], output: &mut Output<'_>) -> ();
        Function::VerifySignatureInit => verify_signature_init(s: SessionHandle, mechanism: Option<&mut Mechanism>, key: ObjectHandle, signature: &[u8]) -> ();
        Function::VerifySignature => verify_signature(s: SessionHandle, data: &[u8]) -> ();
        Function::VerifySignatureFinal => verify_signature_final(s: SessionHandle) -> ();
        kind.init() => message_mechanism(s: SessionHandle, kind: MessageKind) -> Ulong;
        Function::VerifyMessage => verify_message(s: SessionHandle, params: &mut Params, data: &[u8], signature: &[u8]) -> ();
        Function::VerifyMessageNext => verify_message_next(s: SessionHandle, params: &mut Params, data: &[u8], signature: Option<&[u8]>) -> ();
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
