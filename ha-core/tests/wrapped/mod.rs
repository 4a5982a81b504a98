//! Members whose tokens are real, and answer as the test wants: a call fails before it took effect, or after it, or something
//! happens while it is made.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)] // each test uses a part of it

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ha_core::config::Config;
use ha_core::provider::{Provider, connector};
use ha_core::seam::System;
use ha_member::ModuleConnector;
use ha_rig::Tokens;
use ha_token::*;

/// When a call fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// It never reached the token.
    Before,
    /// The token did it, and the answer was lost.
    After,
}

/// Calls of this name fail, that often, after so many that do not.
#[derive(Clone, Debug)]
pub struct Fault {
    pub call: &'static str,
    pub skip: usize,
    pub times: usize,
    pub when: When,
    pub rv: Rv,
}

type Hook = Box<dyn FnOnce() + Send>;

/// What goes wrong on one member, and what was seen of it.
#[derive(Default)]
pub struct Faults {
    plan: Mutex<Vec<Fault>>,
    hooks: Mutex<Vec<(&'static str, When, Hook)>>,
    /// Every call answers `CKR_DEVICE_ERROR` without reaching the token.
    pub dead: AtomicBool,
    /// Dead after so many more calls, if it is not 0.
    pub dies_after: AtomicUsize,
    pub hit: AtomicUsize,
    pub sessions: Mutex<HashSet<SessionHandle>>,
    /// What the token answered to `C_Login`.
    pub logins: Mutex<Vec<Result<()>>>,
}

impl Faults {
    pub fn add(&self, call: &'static str, when: When, rv: Rv) {
        self.add_times(call, 0, 1, when, rv);
    }

    pub fn add_times(&self, call: &'static str, skip: usize, times: usize, when: When, rv: Rv) {
        self.plan.lock().unwrap().push(Fault { call, skip, times, when, rv });
    }

    /// Done once, in the middle of the next call of this name.
    pub fn hook(&self, call: &'static str, when: When, f: impl FnOnce() + Send + 'static) {
        self.hooks.lock().unwrap().push((call, when, Box::new(f)));
    }

    pub fn clear(&self) {
        self.plan.lock().unwrap().clear();
        self.dead.store(false, Ordering::SeqCst);
        self.dies_after.store(0, Ordering::SeqCst);
    }

    fn strikes(&self, call: &str) -> Option<(When, Rv)> {
        let mut plan = self.plan.lock().unwrap();
        let fault = plan.iter_mut().find(|f| f.call == call && f.times > 0)?;
        if fault.skip > 0 {
            fault.skip -= 1;
            return None;
        }
        fault.times -= 1;
        self.hit.fetch_add(1, Ordering::SeqCst);
        Some((fault.when, fault.rv))
    }

    fn happens(&self, call: &str, when: When) {
        let hook = {
            let mut hooks = self.hooks.lock().unwrap();
            hooks.iter().position(|h| h.0 == call && h.1 == when).map(|at| hooks.remove(at).2)
        };
        if let Some(hook) = hook {
            hook();
        }
    }

    pub fn around<T>(&self, call: &str, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let left = self.dies_after.load(Ordering::SeqCst);
        if left > 0 {
            self.dies_after.store(left - 1, Ordering::SeqCst);
            if left == 1 {
                self.dead.store(true, Ordering::SeqCst);
            }
        }
        if self.dead.load(Ordering::SeqCst) {
            return Err(Rv::DEVICE_ERROR);
        }
        self.happens(call, When::Before);
        let strikes = self.strikes(call);
        if let Some((When::Before, rv)) = strikes {
            return Err(rv);
        }
        let answer = f();
        self.happens(call, When::After);
        match strikes {
            Some((When::After, rv)) if answer.is_ok() => Err(rv),
            _ => answer,
        }
    }
}

/// A member that can be made to fail.
pub struct Failing {
    real: ModuleConnector,
    faults: Arc<Faults>,
}

impl Connector for Failing {
    fn connect(&self) -> std::result::Result<Arc<dyn Token>, ConnectError> {
        if self.faults.dead.load(Ordering::SeqCst) {
            return Err(ConnectError::Call {
                path: "dead".into(),
                function: Function::Initialize,
                rv: Rv::DEVICE_ERROR,
            });
        }
        self.faults.sessions.lock().unwrap().clear();
        Ok(Arc::new(Wrapped { real: self.real.connect()?, faults: Arc::clone(&self.faults) }))
    }
    fn disconnect(&self) {
        self.real.disconnect();
    }
    fn hangs(&self) -> bool {
        self.real.hangs()
    }
    fn reinitialises(&self) -> bool {
        self.real.reinitialises()
    }
}

pub struct Wrapped {
    real: Arc<dyn Token>,
    faults: Arc<Faults>,
}

#[rustfmt::skip]
impl Token for Wrapped {
    fn slot_info(&self) -> Result<SlotInfo> { self.faults.around("slot_info", || self.real.slot_info()) }
    fn token_info(&self) -> Result<TokenInfo> { self.faults.around("token_info", || self.real.token_info()) }
    fn mechanism_list(&self) -> Result<Vec<Ulong>> { self.faults.around("mechanism_list", || self.real.mechanism_list()) }
    fn mechanism_info(&self, mechanism: Ulong) -> Result<MechanismInfo> { self.faults.around("mechanism_info", || self.real.mechanism_info(mechanism)) }
    fn init_token(&self, pin: Option<&[u8]>, label: &str) -> Result<()> { self.faults.around("init_token", || self.real.init_token(pin, label)) }
    fn init_pin(&self, session: SessionHandle, pin: Option<&[u8]>) -> Result<()> { self.faults.around("init_pin", || self.real.init_pin(session, pin)) }
    fn set_pin(&self, session: SessionHandle, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<()> { self.faults.around("set_pin", || self.real.set_pin(session, old, new)) }
    fn open_session(&self, read_write: bool) -> Result<SessionHandle> {
        let opened = self.faults.around("open_session", || self.real.open_session(read_write))?;
        self.faults.sessions.lock().unwrap().insert(opened);
        Ok(opened)
    }
    fn close_session(&self, session: SessionHandle) -> Result<()> {
        self.faults.sessions.lock().unwrap().remove(&session);
        self.faults.around("close_session", || self.real.close_session(session))
    }
    fn close_all_sessions(&self) -> Result<()> { self.faults.around("close_all_sessions", || self.real.close_all_sessions()) }
    fn session_info(&self, session: SessionHandle) -> Result<SessionInfo> { self.faults.around("session_info", || self.real.session_info(session)) }
    fn session_cancel(&self, session: SessionHandle, flags: Ulong) -> Result<()> { self.faults.around("session_cancel", || self.real.session_cancel(session, flags)) }
    fn session_validation_flags(&self, session: SessionHandle, kind: Ulong) -> Result<Ulong> { self.faults.around("session_validation_flags", || self.real.session_validation_flags(session, kind)) }
    fn login(&self, session: SessionHandle, user: UserType, pin: Option<&[u8]>) -> Result<()> { self.faults.around("login", || {
            let answer = self.real.login(session, user, pin);
            self.faults.logins.lock().unwrap().push(answer);
            answer
        }) }
    fn login_user(&self, session: SessionHandle, user: UserType, pin: Option<&[u8]>, name: &[u8]) -> Result<()> { self.faults.around("login_user", || self.real.login_user(session, user, pin, name)) }
    fn logout(&self, session: SessionHandle) -> Result<()> { self.faults.around("logout", || self.real.logout(session)) }
    fn create_object(&self, session: SessionHandle, template: &Template) -> Result<ObjectHandle> { self.faults.around("create_object", || self.real.create_object(session, template)) }
    fn copy_object(&self, session: SessionHandle, object: ObjectHandle, template: &Template) -> Result<ObjectHandle> { self.faults.around("copy_object", || self.real.copy_object(session, object, template)) }
    fn destroy_object(&self, session: SessionHandle, object: ObjectHandle) -> Result<()> { self.faults.around("destroy_object", || self.real.destroy_object(session, object)) }
    fn object_size(&self, session: SessionHandle, object: ObjectHandle) -> Result<Ulong> { self.faults.around("object_size", || self.real.object_size(session, object)) }
    fn get_attributes(&self, session: SessionHandle, object: ObjectHandle, types: &[AttributeType]) -> Result<Vec<Fetched>> { self.faults.around("get_attributes", || self.real.get_attributes(session, object, types)) }
    fn set_attributes(&self, session: SessionHandle, object: ObjectHandle, template: &Template) -> Result<()> { self.faults.around("set_attributes", || self.real.set_attributes(session, object, template)) }
    fn find_objects_init(&self, session: SessionHandle, template: &Template) -> Result<()> { self.faults.around("find_objects_init", || self.real.find_objects_init(session, template)) }
    fn find_objects(&self, session: SessionHandle, max: usize) -> Result<Vec<ObjectHandle>> { self.faults.around("find_objects", || self.real.find_objects(session, max)) }
    fn find_objects_final(&self, session: SessionHandle) -> Result<()> { self.faults.around("find_objects_final", || self.real.find_objects_final(session)) }
    fn op_init(&self, session: SessionHandle, kind: OpKind, mechanism: Option<&mut Mechanism>, key: ObjectHandle) -> Result<()> { self.faults.around("op_init", || self.real.op_init(session, kind, mechanism, key)) }
    fn op_one_shot(&self, session: SessionHandle, kind: OpKind, input: &[u8], output: &mut Output<'_>) -> Result<()> { self.faults.around("op_one_shot", || self.real.op_one_shot(session, kind, input, output)) }
    fn op_update(&self, session: SessionHandle, kind: OpKind, input: &[u8], output: &mut Output<'_>) -> Result<()> { self.faults.around("op_update", || self.real.op_update(session, kind, input, output)) }
    fn op_final(&self, session: SessionHandle, kind: OpKind, output: &mut Output<'_>) -> Result<()> { self.faults.around("op_final", || self.real.op_final(session, kind, output)) }
    fn verify(&self, session: SessionHandle, data: &[u8], signature: &[u8]) -> Result<()> { self.faults.around("verify", || self.real.verify(session, data, signature)) }
    fn verify_final(&self, session: SessionHandle, signature: &[u8]) -> Result<()> { self.faults.around("verify_final", || self.real.verify_final(session, signature)) }
    fn digest_key(&self, session: SessionHandle, key: ObjectHandle) -> Result<()> { self.faults.around("digest_key", || self.real.digest_key(session, key)) }
    fn combined_update(&self, session: SessionHandle, kind: CombinedKind, input: &[u8], output: &mut Output<'_>) -> Result<()> { self.faults.around("combined_update", || self.real.combined_update(session, kind, input, output)) }
    fn verify_signature_init(&self, session: SessionHandle, mechanism: Option<&mut Mechanism>, key: ObjectHandle, signature: &[u8]) -> Result<()> { self.faults.around("verify_signature_init", || self.real.verify_signature_init(session, mechanism, key, signature)) }
    fn verify_signature(&self, session: SessionHandle, data: &[u8]) -> Result<()> { self.faults.around("verify_signature", || self.real.verify_signature(session, data)) }
    fn verify_signature_final(&self, session: SessionHandle) -> Result<()> { self.faults.around("verify_signature_final", || self.real.verify_signature_final(session)) }
    fn message_mechanism(&self, session: SessionHandle, kind: MessageKind) -> Result<Ulong> { self.faults.around("message_mechanism", || self.real.message_mechanism(session, kind)) }
    fn message_init(&self, session: SessionHandle, kind: MessageKind, mechanism: Option<&mut Mechanism>, key: ObjectHandle) -> Result<()> { self.faults.around("message_init", || self.real.message_init(session, kind, mechanism, key)) }
    fn message_one_shot(&self, session: SessionHandle, kind: MessageKind, params: &mut Params, associated: &[u8], input: &[u8], output: &mut Output<'_>) -> Result<()> { self.faults.around("message_one_shot", || self.real.message_one_shot(session, kind, params, associated, input, output)) }
    fn message_begin(&self, session: SessionHandle, kind: MessageKind, params: &mut Params, associated: &[u8]) -> Result<()> { self.faults.around("message_begin", || self.real.message_begin(session, kind, params, associated)) }
    fn message_next(&self, session: SessionHandle, kind: MessageKind, params: &mut Params, input: &[u8], last: bool, output: &mut Output<'_>) -> Result<()> { self.faults.around("message_next", || self.real.message_next(session, kind, params, input, last, output)) }
    fn verify_message(&self, session: SessionHandle, params: &mut Params, data: &[u8], signature: &[u8]) -> Result<()> { self.faults.around("verify_message", || self.real.verify_message(session, params, data, signature)) }
    fn verify_message_next(&self, session: SessionHandle, params: &mut Params, data: &[u8], signature: Option<&[u8]>) -> Result<()> { self.faults.around("verify_message_next", || self.real.verify_message_next(session, params, data, signature)) }
    fn message_final(&self, session: SessionHandle, kind: MessageKind) -> Result<()> { self.faults.around("message_final", || self.real.message_final(session, kind)) }
    fn generate_key(&self, session: SessionHandle, mechanism: &mut Mechanism, template: &Template) -> Result<ObjectHandle> { self.faults.around("generate_key", || self.real.generate_key(session, mechanism, template)) }
    fn generate_key_pair(&self, session: SessionHandle, mechanism: &mut Mechanism, public: &Template, private: &Template) -> Result<(ObjectHandle, ObjectHandle)> { self.faults.around("generate_key_pair", || self.real.generate_key_pair(session, mechanism, public, private)) }
    fn wrap_key(&self, session: SessionHandle, mechanism: &mut Mechanism, wrapping: ObjectHandle, key: ObjectHandle, output: &mut Output<'_>) -> Result<()> { self.faults.around("wrap_key", || self.real.wrap_key(session, mechanism, wrapping, key, output)) }
    fn unwrap_key(&self, session: SessionHandle, mechanism: &mut Mechanism, unwrapping: ObjectHandle, wrapped: &[u8], template: &Template) -> Result<ObjectHandle> { self.faults.around("unwrap_key", || self.real.unwrap_key(session, mechanism, unwrapping, wrapped, template)) }
    fn derive_key(&self, session: SessionHandle, mechanism: &mut Mechanism, base: ObjectHandle, template: &Template, want_handle: bool) -> Result<Option<ObjectHandle>> { self.faults.around("derive_key", || self.real.derive_key(session, mechanism, base, template, want_handle)) }
    fn wrap_key_authenticated(&self, session: SessionHandle, mechanism: &mut Mechanism, wrapping: ObjectHandle, key: ObjectHandle, associated: &[u8], output: &mut Output<'_>) -> Result<()> { self.faults.around("wrap_key_authenticated", || self.real.wrap_key_authenticated(session, mechanism, wrapping, key, associated, output)) }
    fn unwrap_key_authenticated(&self, session: SessionHandle, mechanism: &mut Mechanism, unwrapping: ObjectHandle, wrapped: &[u8], template: &Template, associated: &[u8]) -> Result<ObjectHandle> { self.faults.around("unwrap_key_authenticated", || self.real.unwrap_key_authenticated(session, mechanism, unwrapping, wrapped, template, associated)) }
    fn encapsulate_key(&self, session: SessionHandle, mechanism: &mut Mechanism, public: ObjectHandle, template: &Template, output: &mut Output<'_>) -> Result<Option<ObjectHandle>> { self.faults.around("encapsulate_key", || self.real.encapsulate_key(session, mechanism, public, template, output)) }
    fn decapsulate_key(&self, session: SessionHandle, mechanism: &mut Mechanism, private: ObjectHandle, template: &Template, ciphertext: &[u8]) -> Result<ObjectHandle> { self.faults.around("decapsulate_key", || self.real.decapsulate_key(session, mechanism, private, template, ciphertext)) }
    fn seed_random(&self, session: SessionHandle, seed: &[u8]) -> Result<()> { self.faults.around("seed_random", || self.real.seed_random(session, seed)) }
    fn generate_random(&self, session: SessionHandle, output: &mut [u8]) -> Result<()> { self.faults.around("generate_random", || self.real.generate_random(session, output)) }
}

/// A group over members that can be made to fail.
pub fn provider(tokens: &Tokens, group: &str) -> (Provider, Vec<Arc<Faults>>) {
    provider_of(&tokens.config(false, group))
}

/// As [`provider`], from the configuration's text.
pub fn provider_of(text: &str) -> (Provider, Vec<Arc<Faults>>) {
    let config = Config::parse(text).unwrap();
    let mut faults = Vec::new();
    let connectors = config.groups[0].members.iter().map(|m| {
        let f = Arc::new(Faults::default());
        faults.push(Arc::clone(&f));
        Box::new(Failing { real: connector(m), faults: f }) as Box<dyn Connector>
    });
    let connectors = vec![connectors.collect()];
    (Provider::with_members(config, System::new(), connectors).unwrap(), faults)
}
