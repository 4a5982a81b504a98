//! A process's way to a simulated token, and the token as it has it: the two traits of the seam.

use std::sync::Arc;

use ha_token::{
    AttributeType, CombinedKind, ConnectError, Connector, Fetched, Mechanism, MechanismInfo, MessageKind,
    ObjectHandle, OpKind, Output, Params, Result, Rv, SessionHandle, SessionInfo, SlotInfo, Template, Token,
    TokenInfo, Ulong, UserType,
};

use super::state::{Call, Shared};

/// One process's connector to a device.
pub(super) struct DeviceConnector {
    shared: Arc<Shared>,
    process: u64,
}

impl DeviceConnector {
    pub(super) fn new(shared: Arc<Shared>, process: u64) -> Self {
        DeviceConnector { shared, process }
    }
}

impl Connector for DeviceConnector {
    fn connect(&self) -> std::result::Result<Arc<dyn Token>, ConnectError> {
        let mut state = self.shared.lock();
        let present = state.store.present;
        let wanted = format!("label {:?}", state.store.durable.label);
        let process = state.processes.entry(self.process).or_default();
        // The instance is initialised in any case; only then is the token looked for.
        let generation = process.begin();
        if !present {
            process.end();
            return Err(ConnectError::NoToken { path: "simulated".into(), wanted, present: "none".into() });
        }
        Ok(Arc::new(Connection { shared: Arc::clone(&self.shared), process: self.process, generation }))
    }

    fn disconnect(&self) {
        if let Some(process) = self.shared.lock().processes.get_mut(&self.process) {
            process.end();
        }
    }

    fn reinitialises(&self) -> bool {
        true
    }
}

impl Drop for DeviceConnector {
    fn drop(&mut self) {
        self.shared.lock().processes.remove(&self.process);
    }
}

/// The token, from one connection to the next.
struct Connection {
    shared: Arc<Shared>,
    process: u64,
    generation: u64,
}

impl Connection {
    fn call<T>(&self, f: impl FnOnce(&mut Call<'_>) -> Result<T>) -> Result<T> {
        self.shared.call(self.process, self.generation, f)
    }

    /// What this token has no function for.
    fn without<T>(&self) -> Result<T> {
        self.call(|_| Err(Rv::FUNCTION_NOT_SUPPORTED))
    }
}

impl Token for Connection {
    fn slot_info(&self) -> Result<SlotInfo> {
        self.call(|c| c.slot_info())
    }

    fn token_info(&self) -> Result<TokenInfo> {
        self.call(|c| c.token_info())
    }

    fn mechanism_list(&self) -> Result<Vec<Ulong>> {
        self.call(|c| Ok(c.profile.mechanisms.iter().map(|m| m.kind).collect()))
    }

    fn mechanism_info(&self, mechanism: Ulong) -> Result<MechanismInfo> {
        self.call(|c| c.profile.mechanism(mechanism).ok_or(Rv::MECHANISM_INVALID))
    }

    fn init_token(&self, pin: Option<&[u8]>, label: &str) -> Result<()> {
        self.call(|c| c.init_token(pin, label))
    }

    fn init_pin(&self, session: SessionHandle, pin: Option<&[u8]>) -> Result<()> {
        self.call(|c| c.init_pin(session, pin))
    }

    fn set_pin(&self, session: SessionHandle, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<()> {
        self.call(|c| c.set_pin(session, old, new))
    }

    fn open_session(&self, read_write: bool) -> Result<SessionHandle> {
        self.call(|c| c.open_session(read_write))
    }

    fn close_session(&self, session: SessionHandle) -> Result<()> {
        self.call(|c| c.own.close(session.0))
    }

    fn close_all_sessions(&self) -> Result<()> {
        self.call(|c| {
            c.own.close_all();
            Ok(())
        })
    }

    fn session_info(&self, session: SessionHandle) -> Result<SessionInfo> {
        self.call(|c| c.session_info(session))
    }

    fn session_cancel(&self, session: SessionHandle, flags: Ulong) -> Result<()> {
        self.call(|c| c.session_cancel(session, flags))
    }

    fn session_validation_flags(&self, _: SessionHandle, _: Ulong) -> Result<Ulong> {
        self.without()
    }

    fn login(&self, session: SessionHandle, user: UserType, pin: Option<&[u8]>) -> Result<()> {
        self.call(|c| c.login(session, user, pin))
    }

    fn login_user(&self, session: SessionHandle, user: UserType, pin: Option<&[u8]>, _: &[u8]) -> Result<()> {
        self.call(|c| c.login_user(session, user, pin))
    }

    fn logout(&self, session: SessionHandle) -> Result<()> {
        self.call(|c| c.logout(session))
    }

    fn create_object(&self, session: SessionHandle, template: &Template) -> Result<ObjectHandle> {
        self.call(|c| c.create_object(session, template))
    }

    fn copy_object(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        template: &Template,
    ) -> Result<ObjectHandle> {
        self.call(|c| c.copy_object(session, object, template))
    }

    fn destroy_object(&self, session: SessionHandle, object: ObjectHandle) -> Result<()> {
        self.call(|c| c.destroy_object(session, object))
    }

    fn object_size(&self, session: SessionHandle, object: ObjectHandle) -> Result<Ulong> {
        self.call(|c| c.object_size(session, object))
    }

    fn get_attributes(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        types: &[AttributeType],
    ) -> Result<Vec<Fetched>> {
        self.call(|c| c.get_attributes(session, object, types))
    }

    fn set_attributes(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        template: &Template,
    ) -> Result<()> {
        self.call(|c| c.set_attributes(session, object, template))
    }

    fn whole_objects(&self) -> Option<u64> {
        Some(0)
    }

    fn await_whole_objects(&self) {}

    fn find_objects_init(&self, session: SessionHandle, template: &Template) -> Result<()> {
        self.call(|c| c.find_objects_init(session, template))
    }

    fn find_objects(&self, session: SessionHandle, max: usize) -> Result<Vec<ObjectHandle>> {
        self.call(|c| c.find_objects(session, max))
    }

    fn find_objects_final(&self, session: SessionHandle) -> Result<()> {
        self.call(|c| c.find_objects_final(session))
    }

    fn op_init(
        &self,
        session: SessionHandle,
        kind: OpKind,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
    ) -> Result<()> {
        self.call(|c| c.op_init(session, kind, mechanism.as_deref(), key))
    }

    fn op_one_shot(
        &self,
        session: SessionHandle,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.call(|c| c.op_one_shot(session, kind, input, output))
    }

    fn op_update(
        &self,
        session: SessionHandle,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.call(|c| c.op_update(session, kind, input, output))
    }

    fn op_final(&self, session: SessionHandle, kind: OpKind, output: &mut Output<'_>) -> Result<()> {
        self.call(|c| c.op_final(session, kind, output))
    }

    fn verify(&self, session: SessionHandle, data: &[u8], signature: &[u8]) -> Result<()> {
        self.call(|c| c.verify(session, Some(data), signature))
    }

    fn verify_final(&self, session: SessionHandle, signature: &[u8]) -> Result<()> {
        self.call(|c| c.verify(session, None, signature))
    }

    fn digest_key(&self, session: SessionHandle, key: ObjectHandle) -> Result<()> {
        self.call(|c| c.digest_key(session, key))
    }

    fn combined_update(
        &self,
        session: SessionHandle,
        kind: CombinedKind,
        _: &[u8],
        _: &mut Output<'_>,
    ) -> Result<()> {
        self.call(|c| c.combined_update(session, kind))
    }

    fn verify_signature_init(
        &self,
        _: SessionHandle,
        _: Option<&mut Mechanism>,
        _: ObjectHandle,
        _: &[u8],
    ) -> Result<()> {
        self.without()
    }

    fn verify_signature(&self, _: SessionHandle, _: &[u8]) -> Result<()> {
        self.without()
    }

    fn verify_signature_final(&self, _: SessionHandle) -> Result<()> {
        self.without()
    }

    fn message_mechanism(&self, _: SessionHandle, _: MessageKind) -> Result<Ulong> {
        self.call(|_| Err(Rv::OPERATION_NOT_INITIALIZED))
    }

    fn message_init(
        &self,
        _: SessionHandle,
        _: MessageKind,
        _: Option<&mut Mechanism>,
        _: ObjectHandle,
    ) -> Result<()> {
        self.without()
    }

    fn message_one_shot(
        &self,
        _: SessionHandle,
        _: MessageKind,
        _: &mut Params,
        _: &[u8],
        _: &[u8],
        _: &mut Output<'_>,
    ) -> Result<()> {
        self.without()
    }

    fn message_begin(&self, _: SessionHandle, _: MessageKind, _: &mut Params, _: &[u8]) -> Result<()> {
        self.without()
    }

    fn message_next(
        &self,
        _: SessionHandle,
        _: MessageKind,
        _: &mut Params,
        _: &[u8],
        _: bool,
        _: &mut Output<'_>,
    ) -> Result<()> {
        self.without()
    }

    fn verify_message(&self, _: SessionHandle, _: &mut Params, _: &[u8], _: &[u8]) -> Result<()> {
        self.without()
    }

    fn verify_message_next(
        &self,
        _: SessionHandle,
        _: &mut Params,
        _: &[u8],
        _: Option<&[u8]>,
    ) -> Result<()> {
        self.without()
    }

    fn message_final(&self, _: SessionHandle, _: MessageKind) -> Result<()> {
        self.without()
    }

    fn generate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        template: &Template,
    ) -> Result<ObjectHandle> {
        self.call(|c| c.generate_key(session, mechanism, template))
    }

    fn generate_key_pair(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        public: &Template,
        private: &Template,
    ) -> Result<(ObjectHandle, ObjectHandle)> {
        self.call(|c| c.generate_key_pair(session, mechanism, public, private))
    }

    fn wrap_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        wrapping: ObjectHandle,
        key: ObjectHandle,
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.call(|c| c.wrap_key(session, mechanism, wrapping, key, output))
    }

    fn unwrap_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        unwrapping: ObjectHandle,
        wrapped: &[u8],
        template: &Template,
    ) -> Result<ObjectHandle> {
        self.call(|c| c.unwrap_key(session, mechanism, unwrapping, wrapped, template))
    }

    fn derive_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        base: ObjectHandle,
        template: &Template,
        want_handle: bool,
    ) -> Result<Option<ObjectHandle>> {
        self.call(|c| {
            if !want_handle {
                return Err(Rv::ARGUMENTS_BAD);
            }
            c.derive_key(session, mechanism, base, template).map(Some)
        })
    }

    fn wrap_key_authenticated(
        &self,
        _: SessionHandle,
        _: &mut Mechanism,
        _: ObjectHandle,
        _: ObjectHandle,
        _: &[u8],
        _: &mut Output<'_>,
    ) -> Result<()> {
        self.without()
    }

    fn unwrap_key_authenticated(
        &self,
        _: SessionHandle,
        _: &mut Mechanism,
        _: ObjectHandle,
        _: &[u8],
        _: &Template,
        _: &[u8],
    ) -> Result<ObjectHandle> {
        self.without()
    }

    fn encapsulate_key(
        &self,
        _: SessionHandle,
        _: &mut Mechanism,
        _: ObjectHandle,
        _: &Template,
        _: &mut Output<'_>,
    ) -> Result<Option<ObjectHandle>> {
        self.without()
    }

    fn decapsulate_key(
        &self,
        _: SessionHandle,
        _: &mut Mechanism,
        _: ObjectHandle,
        _: &Template,
        _: &[u8],
    ) -> Result<ObjectHandle> {
        self.without()
    }

    fn seed_random(&self, session: SessionHandle, _: &[u8]) -> Result<()> {
        // Taken and not used: the stream is the device's.
        self.call(|c| c.open(session))
    }

    fn generate_random(&self, session: SessionHandle, output: &mut [u8]) -> Result<()> {
        self.call(|c| {
            c.open(session)?;
            c.store.random.fill(output);
            Ok(())
        })
    }
}
