//! A member's own slot, shown beside the virtual one (`ha_only = false`): the bare token, nothing added.
//!
//! It has a connection of its own, so that what an application does on it (a login, an open operation) does not reach
//! the group. Only session handles are translated: they must name the slot.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use ha_token::{
    AttributeType, CombinedKind, Connector, Fetched, Mechanism, MechanismInfo, MessageKind, ObjectHandle,
    OpKind, Output, Params, Result, Rv, SessionHandle, SessionInfo, SlotInfo, Template, Token, TokenInfo,
    Ulong, UserType, Version, ck,
};

use crate::map::{Map, map};
use crate::numbers::{LIBRARY_VERSION, SLOT_BITS};
use crate::sync::Mutex;

/// One member's own slot.
pub(crate) struct BareSlot {
    name: String,
    connector: Arc<dyn Connector>,
    number: Ulong,
    token: Mutex<Option<Arc<dyn Token>>>,
    sessions: Map<Ulong, (Arc<dyn Token>, SessionHandle)>,
    next_session: AtomicU64,
}

impl BareSlot {
    /// The slot of a member, connected when it is first asked for.
    pub(crate) fn new(name: String, connector: Arc<dyn Connector>, number: Ulong) -> Self {
        BareSlot {
            name,
            connector,
            number,
            token: Mutex::new(None),
            sessions: map(),
            next_session: AtomicU64::new(1),
        }
    }

    /// The token, connected again if it was lost and no session is open.
    fn token(&self) -> Result<Arc<dyn Token>> {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(token) = &*token
            && (!self.sessions.pin().is_empty() || token.token_info().is_ok())
        {
            return Ok(Arc::clone(token));
        }
        let fresh = self.connector.connect().map_err(|error| {
            tracing::warn!(member = self.name, %error, "the member's own slot has no token");
            Rv::TOKEN_NOT_PRESENT
        })?;
        *token = Some(Arc::clone(&fresh));
        Ok(fresh)
    }

    /// For the end of the process's use of it: closes what is open where the module goes on in other hands, and
    /// finalises it.
    pub(crate) fn end(&self) {
        if !self.connector.reinitialises() {
            _ = self.close_all_sessions();
        }
        self.connector.disconnect();
    }

    fn lookup(&self, session: SessionHandle) -> Result<(Arc<dyn Token>, SessionHandle)> {
        self.sessions.pin().get(&session.0).cloned().ok_or(Rv::SESSION_HANDLE_INVALID)
    }
}

impl Token for BareSlot {
    fn slot_info(&self) -> Result<SlotInfo> {
        let present = if self.token().is_ok() { ck::CKF_TOKEN_PRESENT } else { 0 };
        Ok(SlotInfo {
            description: "Net Token Slot".into(),
            manufacturer: "pkcs11-ha".into(),
            flags: ck::CKF_REMOVABLE_DEVICE | present,
            hardware_version: Version::default(),
            firmware_version: LIBRARY_VERSION,
        })
    }

    fn token_info(&self) -> Result<TokenInfo> {
        self.token()?.token_info()
    }

    fn mechanism_list(&self) -> Result<Vec<Ulong>> {
        self.token()?.mechanism_list()
    }

    fn mechanism_info(&self, mechanism: Ulong) -> Result<MechanismInfo> {
        self.token()?.mechanism_info(mechanism)
    }

    fn init_token(&self, _pin: Option<&[u8]>, _label: &str) -> Result<()> {
        // The group's other connection to this token has sessions open: the token itself would say the same.
        Err(Rv::SESSION_EXISTS)
    }

    fn open_session(&self, read_write: bool) -> Result<SessionHandle> {
        let token = self.token()?;
        let backing = token.open_session(read_write)?;
        let handle = (self.next_session.fetch_add(1, Ordering::Relaxed) as Ulong) << SLOT_BITS | self.number;
        self.sessions.pin().insert(handle, (token, backing));
        Ok(SessionHandle(handle))
    }

    fn close_session(&self, session: SessionHandle) -> Result<()> {
        let (token, backing) =
            self.sessions.pin().remove(&session.0).cloned().ok_or(Rv::SESSION_HANDLE_INVALID)?;
        token.close_session(backing)
    }

    fn close_all_sessions(&self) -> Result<()> {
        let all: Vec<_> = self.sessions.pin().keys().copied().collect();
        for session in all {
            // Another thread may have closed it in between.
            _ = self.close_session(SessionHandle(session));
        }
        Ok(())
    }

    fn init_pin(&self, session: SessionHandle, pin: Option<&[u8]>) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.init_pin(backing, pin)
    }

    fn set_pin(&self, session: SessionHandle, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.set_pin(backing, old, new)
    }

    fn session_info(&self, session: SessionHandle) -> Result<SessionInfo> {
        let (token, backing) = self.lookup(session)?;
        token.session_info(backing)
    }

    fn session_cancel(&self, session: SessionHandle, flags: Ulong) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.session_cancel(backing, flags)
    }

    fn session_validation_flags(&self, session: SessionHandle, kind: Ulong) -> Result<Ulong> {
        let (token, backing) = self.lookup(session)?;
        token.session_validation_flags(backing, kind)
    }

    fn login(&self, session: SessionHandle, user: UserType, pin: Option<&[u8]>) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.login(backing, user, pin)
    }

    fn login_user(
        &self,
        session: SessionHandle,
        user: UserType,
        pin: Option<&[u8]>,
        name: &[u8],
    ) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.login_user(backing, user, pin, name)
    }

    fn logout(&self, session: SessionHandle) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.logout(backing)
    }

    fn create_object(&self, session: SessionHandle, template: &Template) -> Result<ObjectHandle> {
        let (token, backing) = self.lookup(session)?;
        token.create_object(backing, template)
    }

    fn copy_object(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        template: &Template,
    ) -> Result<ObjectHandle> {
        let (token, backing) = self.lookup(session)?;
        token.copy_object(backing, object, template)
    }

    fn destroy_object(&self, session: SessionHandle, object: ObjectHandle) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.destroy_object(backing, object)
    }

    fn object_size(&self, session: SessionHandle, object: ObjectHandle) -> Result<Ulong> {
        let (token, backing) = self.lookup(session)?;
        token.object_size(backing, object)
    }

    fn get_attributes(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        types: &[AttributeType],
    ) -> Result<Vec<Fetched>> {
        let (token, backing) = self.lookup(session)?;
        token.get_attributes(backing, object, types)
    }

    fn set_attributes(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        template: &Template,
    ) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.set_attributes(backing, object, template)
    }

    fn whole_objects(&self) -> Option<u64> {
        self.token().ok()?.whole_objects()
    }

    fn await_whole_objects(&self) {
        if let Ok(token) = self.token() {
            token.await_whole_objects();
        }
    }

    fn find_objects_init(&self, session: SessionHandle, template: &Template) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.find_objects_init(backing, template)
    }

    fn find_objects(&self, session: SessionHandle, max: usize) -> Result<Vec<ObjectHandle>> {
        let (token, backing) = self.lookup(session)?;
        token.find_objects(backing, max)
    }

    fn find_objects_final(&self, session: SessionHandle) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.find_objects_final(backing)
    }

    fn op_init(
        &self,
        session: SessionHandle,
        kind: OpKind,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
    ) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.op_init(backing, kind, mechanism, key)
    }

    fn op_one_shot(
        &self,
        session: SessionHandle,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.op_one_shot(backing, kind, input, output)
    }

    fn op_update(
        &self,
        session: SessionHandle,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.op_update(backing, kind, input, output)
    }

    fn op_final(&self, session: SessionHandle, kind: OpKind, output: &mut Output<'_>) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.op_final(backing, kind, output)
    }

    fn verify(&self, session: SessionHandle, data: &[u8], signature: &[u8]) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.verify(backing, data, signature)
    }

    fn verify_final(&self, session: SessionHandle, signature: &[u8]) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.verify_final(backing, signature)
    }

    fn digest_key(&self, session: SessionHandle, key: ObjectHandle) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.digest_key(backing, key)
    }

    fn combined_update(
        &self,
        session: SessionHandle,
        kind: CombinedKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.combined_update(backing, kind, input, output)
    }

    fn verify_signature_init(
        &self,
        session: SessionHandle,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
        signature: &[u8],
    ) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.verify_signature_init(backing, mechanism, key, signature)
    }

    fn verify_signature(&self, session: SessionHandle, data: &[u8]) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.verify_signature(backing, data)
    }

    fn verify_signature_final(&self, session: SessionHandle) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.verify_signature_final(backing)
    }

    fn message_mechanism(&self, session: SessionHandle, kind: MessageKind) -> Result<Ulong> {
        let (token, backing) = self.lookup(session)?;
        token.message_mechanism(backing, kind)
    }

    fn message_init(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
    ) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.message_init(backing, kind, mechanism, key)
    }

    fn message_one_shot(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        params: &mut Params,
        associated: &[u8],
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.message_one_shot(backing, kind, params, associated, input, output)
    }

    fn message_begin(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        params: &mut Params,
        associated: &[u8],
    ) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.message_begin(backing, kind, params, associated)
    }

    fn message_next(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        params: &mut Params,
        input: &[u8],
        last: bool,
        output: &mut Output<'_>,
    ) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.message_next(backing, kind, params, input, last, output)
    }

    fn verify_message(
        &self,
        session: SessionHandle,
        params: &mut Params,
        data: &[u8],
        signature: &[u8],
    ) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.verify_message(backing, params, data, signature)
    }

    fn verify_message_next(
        &self,
        session: SessionHandle,
        params: &mut Params,
        data: &[u8],
        signature: Option<&[u8]>,
    ) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.verify_message_next(backing, params, data, signature)
    }

    fn message_final(&self, session: SessionHandle, kind: MessageKind) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.message_final(backing, kind)
    }

    fn generate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        template: &Template,
    ) -> Result<ObjectHandle> {
        let (token, backing) = self.lookup(session)?;
        token.generate_key(backing, mechanism, template)
    }

    fn generate_key_pair(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        public: &Template,
        private: &Template,
    ) -> Result<(ObjectHandle, ObjectHandle)> {
        let (token, backing) = self.lookup(session)?;
        token.generate_key_pair(backing, mechanism, public, private)
    }

    fn wrap_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        wrapping: ObjectHandle,
        key: ObjectHandle,
        output: &mut Output<'_>,
    ) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.wrap_key(backing, mechanism, wrapping, key, output)
    }

    fn unwrap_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        unwrapping: ObjectHandle,
        wrapped: &[u8],
        template: &Template,
    ) -> Result<ObjectHandle> {
        let (token, backing) = self.lookup(session)?;
        token.unwrap_key(backing, mechanism, unwrapping, wrapped, template)
    }

    fn derive_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        base: ObjectHandle,
        template: &Template,
        want_handle: bool,
    ) -> Result<Option<ObjectHandle>> {
        let (token, backing) = self.lookup(session)?;
        token.derive_key(backing, mechanism, base, template, want_handle)
    }

    fn wrap_key_authenticated(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        wrapping: ObjectHandle,
        key: ObjectHandle,
        associated: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.wrap_key_authenticated(backing, mechanism, wrapping, key, associated, output)
    }

    fn unwrap_key_authenticated(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        unwrapping: ObjectHandle,
        wrapped: &[u8],
        template: &Template,
        associated: &[u8],
    ) -> Result<ObjectHandle> {
        let (token, backing) = self.lookup(session)?;
        token.unwrap_key_authenticated(backing, mechanism, unwrapping, wrapped, template, associated)
    }

    fn encapsulate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        public: ObjectHandle,
        template: &Template,
        output: &mut Output<'_>,
    ) -> Result<Option<ObjectHandle>> {
        let (token, backing) = self.lookup(session)?;
        token.encapsulate_key(backing, mechanism, public, template, output)
    }

    fn decapsulate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        private: ObjectHandle,
        template: &Template,
        ciphertext: &[u8],
    ) -> Result<ObjectHandle> {
        let (token, backing) = self.lookup(session)?;
        token.decapsulate_key(backing, mechanism, private, template, ciphertext)
    }

    fn seed_random(&self, session: SessionHandle, seed: &[u8]) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.seed_random(backing, seed)
    }

    fn generate_random(&self, session: SessionHandle, output: &mut [u8]) -> Result<()> {
        let (token, backing) = self.lookup(session)?;
        token.generate_random(backing, output)
    }
}
