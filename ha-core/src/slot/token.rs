//! The slot as a [`Token`]: one method for each C call, and what the virtual token says of itself.

use ha_token::{
    AttributeType, CombinedKind, Fetched, Function, Mechanism, MechanismInfo, MessageKind, ObjectHandle,
    OpKind, Output, Params, Result, Rv, SessionHandle, SessionInfo, SlotInfo, Template, Token, TokenInfo,
    Ulong, UserType, Version, ck,
};

use super::VirtualSlot;
use super::signed::{Input, Signed};
use crate::group::Who;
use crate::numbers::LIBRARY_VERSION;

impl Token for VirtualSlot {
    fn slot_info(&self) -> Result<SlotInfo> {
        Ok(SlotInfo {
            description: "HA Virtual Card Slot".into(),
            manufacturer: "pkcs11-ha".into(),
            flags: ck::CKF_REMOVABLE_DEVICE | if self.group.is_present() { ck::CKF_TOKEN_PRESENT } else { 0 },
            hardware_version: Version::default(),
            firmware_version: LIBRARY_VERSION,
        })
    }

    fn token_info(&self) -> Result<TokenInfo> {
        if !self.group.is_present() {
            return Err(Rv::TOKEN_NOT_PRESENT);
        }
        let (all, rw) = self.session_counts();
        let (min_pin_len, max_pin_len) = self.group.pin_lengths();
        Ok(TokenInfo {
            label: self.group.config.label.clone(),
            manufacturer: "pkcs11-ha".into(),
            model: "HA group".into(),
            serial: self.group.serial(),
            flags: self.group.token_flags(),
            max_session_count: ck::CK_EFFECTIVELY_INFINITE,
            session_count: all.into(),
            max_rw_session_count: ck::CK_EFFECTIVELY_INFINITE,
            rw_session_count: rw.into(),
            max_pin_len,
            min_pin_len,
            total_public_memory: ck::CK_UNAVAILABLE_INFORMATION,
            free_public_memory: ck::CK_UNAVAILABLE_INFORMATION,
            total_private_memory: ck::CK_UNAVAILABLE_INFORMATION,
            free_private_memory: ck::CK_UNAVAILABLE_INFORMATION,
            hardware_version: Version::default(),
            firmware_version: LIBRARY_VERSION,
            utc_time: String::new(),
        })
    }

    fn mechanism_list(&self) -> Result<Vec<Ulong>> {
        if !self.group.is_present() {
            return Err(Rv::TOKEN_NOT_PRESENT);
        }
        Ok(self.group.mechanisms().into_iter().map(|m| m.0).collect())
    }

    fn mechanism_info(&self, mechanism: Ulong) -> Result<MechanismInfo> {
        if !self.group.is_present() {
            return Err(Rv::TOKEN_NOT_PRESENT);
        }
        self.group
            .mechanisms()
            .into_iter()
            .find(|m| m.0 == mechanism)
            .map(|m| m.1)
            .ok_or(Rv::MECHANISM_INVALID)
    }

    fn init_token(&self, pin: Option<&[u8]>, _label: &str) -> Result<()> {
        if self.session_counts().0 > 0 {
            return Err(Rv::SESSION_EXISTS);
        }
        self.group.initialise(self.pin(Function::InitToken, pin)?).map_err(Rv::told)
    }

    fn init_pin(&self, session: SessionHandle, pin: Option<&[u8]>) -> Result<()> {
        let _call = self.sessions.stateless(session)?;
        if self.group.login.who() != Who::So {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        self.group.init_pin(self.pin(Function::InitPin, pin)?).map_err(Rv::told)
    }

    fn set_pin(&self, session: SessionHandle, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<()> {
        let _call = self.sessions.stateless(session)?;
        if !self.session(session)?.is_read_write() {
            return Err(Rv::SESSION_READ_ONLY);
        }
        let (old, new) = (self.pin(Function::SetPin, old)?, self.pin(Function::SetPin, new)?);
        self.group.change_pin(old, new).map_err(Rv::told)
    }

    fn open_session(&self, read_write: bool) -> Result<SessionHandle> {
        self.open(read_write)
    }

    fn close_session(&self, session: SessionHandle) -> Result<()> {
        self.close(session)
    }

    fn close_all_sessions(&self) -> Result<()> {
        self.close_all();
        Ok(())
    }

    fn session_info(&self, session: SessionHandle) -> Result<SessionInfo> {
        let session = self.session(session)?;
        let rw = if session.is_read_write() { ck::CKF_RW_SESSION } else { 0 };
        Ok(SessionInfo {
            state: self.state_of(&session),
            flags: ck::CKF_SERIAL_SESSION | rw,
            device_error: 0,
        })
    }

    fn session_cancel(&self, session: SessionHandle, flags: Ulong) -> Result<()> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        for kind in OpKind::ALL {
            if flags & kind.flag() != 0 {
                state.cancel(kind);
            }
        }
        let messages =
            [ck::CKF_MESSAGE_ENCRYPT, ck::CKF_MESSAGE_DECRYPT, ck::CKF_MESSAGE_SIGN, ck::CKF_MESSAGE_VERIFY];
        for (place, flag) in state.messages.iter_mut().zip(messages) {
            if flags & flag != 0 {
                *place = None;
            }
        }
        if flags & ck::CKF_FIND_OBJECTS != 0 {
            state.search = None;
        }
        Ok(())
    }

    fn session_validation_flags(&self, session: SessionHandle, kind: Ulong) -> Result<Ulong> {
        self.anywhere(session, Function::GetSessionValidationFlags, |t, s| {
            t.session_validation_flags(s, kind)
        })
    }

    fn login(&self, session: SessionHandle, user: UserType, pin: Option<&[u8]>) -> Result<()> {
        self.login_as(Function::Login, session, user, pin, b"")
    }

    fn login_user(
        &self,
        session: SessionHandle,
        user: UserType,
        pin: Option<&[u8]>,
        name: &[u8],
    ) -> Result<()> {
        // Without a name this is C_Login (section 5.6.9).
        self.login_as(Function::LoginUser, session, user, pin, name)
    }

    fn logout(&self, session: SessionHandle) -> Result<()> {
        let _call = self.sessions.stateless(session)?;
        self.log_out_everywhere()
    }

    fn create_object(&self, session: SessionHandle, template: &Template) -> Result<ObjectHandle> {
        self.create(session, template)
    }

    fn copy_object(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        template: &Template,
    ) -> Result<ObjectHandle> {
        self.copy(session, object, template)
    }

    fn destroy_object(&self, session: SessionHandle, object: ObjectHandle) -> Result<()> {
        self.destroy(session, object)
    }

    fn object_size(&self, session: SessionHandle, object: ObjectHandle) -> Result<Ulong> {
        self.size(session, object)
    }

    fn get_attributes(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        types: &[AttributeType],
    ) -> Result<Vec<Fetched>> {
        self.attributes(session, object, types)
    }

    fn set_attributes(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        template: &Template,
    ) -> Result<()> {
        self.set(session, object, template)
    }

    fn whole_objects(&self) -> Option<u64> {
        Some(0)
    }

    fn await_whole_objects(&self) {}

    fn find_objects_init(&self, session: SessionHandle, template: &Template) -> Result<()> {
        self.search(session, template)
    }

    fn find_objects(&self, session: SessionHandle, max: usize) -> Result<Vec<ObjectHandle>> {
        self.found(session, max)
    }

    fn find_objects_final(&self, session: SessionHandle) -> Result<()> {
        self.end_search(session)
    }

    #[inline(never)]
    fn op_init(
        &self,
        session: SessionHandle,
        kind: OpKind,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
    ) -> Result<()> {
        self.begin(session, kind, mechanism, key, &[])
    }

    #[inline(never)]
    fn op_one_shot(
        &self,
        session: SessionHandle,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.one_shot(session, kind, input, output)
    }

    fn op_update(
        &self,
        session: SessionHandle,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.update(session, kind, input, output)
    }

    fn op_final(&self, session: SessionHandle, kind: OpKind, output: &mut Output<'_>) -> Result<()> {
        self.finish(session, kind, output)
    }

    fn verify(&self, session: SessionHandle, data: &[u8], signature: &[u8]) -> Result<()> {
        self.conclude(session, OpKind::Verify, Function::Verify, &mut |t, s| t.verify(s, data, signature))
    }

    fn verify_final(&self, session: SessionHandle, signature: &[u8]) -> Result<()> {
        self.conclude(session, OpKind::Verify, Function::VerifyFinal, &mut |t, s| {
            t.verify_final(s, signature)
        })
    }

    fn digest_key(&self, session: SessionHandle, key: ObjectHandle) -> Result<()> {
        self.digest_key_step(session, key)
    }

    fn combined_update(
        &self,
        session: SessionHandle,
        kind: CombinedKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.combined(session, kind, input, output)
    }

    fn verify_signature_init(
        &self,
        session: SessionHandle,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
        signature: &[u8],
    ) -> Result<()> {
        self.begin(session, OpKind::VerifySignature, mechanism, key, signature)
    }

    fn verify_signature(&self, session: SessionHandle, data: &[u8]) -> Result<()> {
        self.conclude(session, OpKind::VerifySignature, Function::VerifySignature, &mut |t, s| {
            t.verify_signature(s, data)
        })
    }

    fn verify_signature_final(&self, session: SessionHandle) -> Result<()> {
        self.conclude(session, OpKind::VerifySignature, Function::VerifySignatureFinal, &mut |t, s| {
            t.verify_signature_final(s)
        })
    }

    fn message_mechanism(&self, session: SessionHandle, kind: MessageKind) -> Result<Ulong> {
        self.mechanism_of_messages(session, kind)
    }

    fn message_init(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
    ) -> Result<()> {
        self.begin_messages(session, kind, mechanism, key)
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
        self.message(session, kind, kind.one_shot(), (false, true), params, &mut |l, p, signed| {
            into(output, |out| {
                l.token().message_one_shot(l.session, kind, p, associated, input, out)?;
                self.vouch(signed, l, kind.one_shot(), Input::Whole(input), out)
            })
        })
    }

    fn message_begin(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        params: &mut Params,
        associated: &[u8],
    ) -> Result<()> {
        self.message(session, kind, kind.begin(), (true, false), params, &mut |l, p, signed| {
            l.token().message_begin(l.session, kind, p, associated)?;
            signed.into_iter().for_each(Signed::begin);
            Ok(())
        })
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
        let ends = last && !(output.is_query() && kind != MessageKind::Verify);
        self.message(session, kind, kind.next(), (true, ends), params, &mut |l, p, signed| {
            into(output, |out| {
                l.token().message_next(l.session, kind, p, input, last, out)?;
                match signed {
                    Some(signed) if !last => {
                        signed.hear(input);
                        Ok(())
                    }
                    signed => self.vouch(signed, l, kind.next(), Input::Parts(input, None), out),
                }
            })
        })
    }

    fn verify_message(
        &self,
        session: SessionHandle,
        params: &mut Params,
        data: &[u8],
        signature: &[u8],
    ) -> Result<()> {
        let kind = MessageKind::Verify;
        self.message(session, kind, kind.one_shot(), (false, true), params, &mut |l, p, _| {
            l.token().verify_message(l.session, p, data, signature)
        })
    }

    fn verify_message_next(
        &self,
        session: SessionHandle,
        params: &mut Params,
        data: &[u8],
        signature: Option<&[u8]>,
    ) -> Result<()> {
        let kind = MessageKind::Verify;
        self.message(session, kind, kind.next(), (true, signature.is_some()), params, &mut |l, p, _| {
            l.token().verify_message_next(l.session, p, data, signature)
        })
    }

    fn message_final(&self, session: SessionHandle, kind: MessageKind) -> Result<()> {
        self.end_messages(session, kind)
    }

    fn generate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        template: &Template,
    ) -> Result<ObjectHandle> {
        self.generate(session, mechanism, template)
    }

    fn generate_key_pair(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        public: &Template,
        private: &Template,
    ) -> Result<(ObjectHandle, ObjectHandle)> {
        self.generate_pair(session, mechanism, public, private)
    }

    fn wrap_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        wrapping: ObjectHandle,
        key: ObjectHandle,
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.wrap(session, mechanism, wrapping, key, None, output)
    }

    fn unwrap_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        unwrapping: ObjectHandle,
        wrapped: &[u8],
        template: &Template,
    ) -> Result<ObjectHandle> {
        self.unwrap(session, mechanism, unwrapping, wrapped, template)
    }

    fn derive_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        base: ObjectHandle,
        template: &Template,
        want_handle: bool,
    ) -> Result<Option<ObjectHandle>> {
        self.derive(session, mechanism, base, template, want_handle)
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
        self.wrap(session, mechanism, wrapping, key, Some(associated), output)
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
        self.unwrap_authenticated(session, mechanism, unwrapping, wrapped, template, associated)
    }

    fn encapsulate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        public: ObjectHandle,
        template: &Template,
        output: &mut Output<'_>,
    ) -> Result<Option<ObjectHandle>> {
        self.encapsulate(session, mechanism, public, template, output)
    }

    fn decapsulate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        private: ObjectHandle,
        template: &Template,
        ciphertext: &[u8],
    ) -> Result<ObjectHandle> {
        self.decapsulate(session, mechanism, private, template, ciphertext)
    }

    fn seed_random(&self, session: SessionHandle, seed: &[u8]) -> Result<()> {
        self.seed(session, seed)
    }

    #[inline(never)]
    fn generate_random(&self, session: SessionHandle, output: &mut [u8]) -> Result<()> {
        self.anywhere(session, Function::GenerateRandom, |t, s| t.generate_random(s, output))
    }
}

/// Lends the caller's output to one try and takes over its length.
fn into(output: &mut Output<'_>, f: impl FnOnce(&mut Output<'_>) -> Result<()>) -> Result<()> {
    let (answer, len) = {
        let mut out = output.reborrow();
        let answer = f(&mut out);
        (answer, out.len())
    };
    output.set_len(len);
    answer
}
