//! The real [`Token`]: one C call for each method.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cryptoki_sys as ck;
use ha_token::{
    AttributeType, CombinedKind, Fetched, Mechanism, MechanismInfo, MessageKind, ObjectHandle, OpKind,
    Output, Params, Result, Rv, SessionHandle, SessionInfo, SlotInfo, Template, Token, TokenInfo, Ulong,
    UserType,
};

use crate::calls::{self, input, invoke, output, pin};
use crate::instance::{Call, Life, ulong};
use crate::makings::Makings;
use crate::messages;
use crate::operations::{self, made, make, with_mechanism, with_template};
use crate::searches::{Searches, Writing};
use crate::writes::{Knowledge, Turn};

type Messages = BTreeMap<(SessionHandle, MessageKind), Ulong>;

/// A token of a loaded module, for one life of its instance.
pub(crate) struct RealToken {
    life: Arc<Life>,
    slot: Ulong,
    /// The mechanisms of message-based operations.
    messages: Mutex<Messages>,
    /// How many those are, so that closing a session need not take the lock.
    message_count: AtomicUsize,
    /// The objects that are being made.
    makings: Makings,
    /// What is known of other processes' writes.
    knowledge: Option<Knowledge>,
    /// The connection's threads that search, and that write, where they are to be kept apart.
    searches: Option<Searches>,
}

/// A write, until it is dropped: apart from this connection's searches, and in turn with other processes.
struct Write<'a> {
    _alone: Writing<'a>,
    _turn: Option<Turn<'a>>,
}

impl fmt::Debug for RealToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RealToken").field("slot", &self.slot).finish_non_exhaustive()
    }
}

impl RealToken {
    /// `knowledge` where those who write take turns, `searches` where those who search are kept from them.
    pub(crate) fn new(
        life: Arc<Life>,
        slot: Ulong,
        knowledge: Option<Knowledge>,
        searches: Option<Searches>,
    ) -> Self {
        RealToken {
            life,
            slot,
            messages: Mutex::default(),
            message_count: AtomicUsize::new(0),
            makings: Makings::default(),
            knowledge,
            searches,
        }
    }

    /// The turn to write, if there are turns. Taken before the module is entered: some are entered by one thread at a time.
    fn turn(&self) -> Option<Write<'_>> {
        let searches = self.searches.as_ref()?;
        let turn = self.knowledge.as_ref().and_then(|knowledge| knowledge.begin(|| self.looks()));
        Some(Write { _alone: searches.write(), _turn: turn })
    }

    /// The turn to write to the token itself, if there are turns.
    fn turn_at_token(&self) -> Option<Turn<'_>> {
        self.knowledge.as_ref()?.take()
    }

    /// The turn to make an object of these templates. A session object is no write, and what does not say which it is may
    /// be a copy of a token object.
    fn turn_to_make(&self, templates: &[&Template]) -> Option<Write<'_>> {
        self.searches.as_ref()?;
        let is_session_object = |template: &&Template| {
            template.iter().any(|a| a.kind == ck::CKA_TOKEN && a.value.as_bool() == Some(false))
        };
        if templates.iter().all(is_session_object) { None } else { self.turn() }
    }

    /// The turn to destroy an object, unless it is a session object.
    fn turn_to_destroy(&self, session: SessionHandle, object: ObjectHandle) -> Option<Write<'_>> {
        self.searches.as_ref()?;
        let fetched = self.get_attributes(session, object, &[ck::CKA_TOKEN]);
        let is_session_object = |f: &Fetched| matches!(f, Fetched::Value(v) if v.as_bool() == Some(false));
        if fetched.is_ok_and(|all| all.iter().any(is_session_object)) { None } else { self.turn() }
    }

    /// Has the module look at the token's objects, by a search for none. In a session of its own: an application's may be
    /// in the middle of a search.
    fn looks(&self) -> bool {
        let none = vec![ha_token::Attribute::ulong(ck::CKA_CLASS, ck::CKO_VENDOR_DEFINED | 0x4841)];
        let Ok(session) = self.open_session(true) else { return false };
        let looked = self.find_objects_init(session, &none).is_ok();
        _ = self.close_session(session);
        looked
    }

    #[inline(always)]
    fn enter(&self) -> Result<Call<'_>> {
        self.life.enter()
    }

    fn change_messages(&self, change: impl FnOnce(&mut Messages)) {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut messages);
        self.message_count.store(messages.len(), Ordering::Release);
    }

    fn forget_messages(&self, session: SessionHandle) {
        if self.message_count.load(Ordering::Acquire) != 0 {
            self.change_messages(|m| m.retain(|(s, _), _| *s != session));
        }
    }

    /// Whether a NULL mechanism cancels: 2.x modules were never promised one, and some crash.
    fn cancels(call: &Call<'_>) -> Result<()> {
        if call.version().major >= 3 { Ok(()) } else { Err(Rv::ARGUMENTS_BAD) }
    }

    /// `C_Encrypt` or one like it.
    #[inline(always)]
    fn transform(
        function: operations::Transform,
        session: SessionHandle,
        data: &[u8],
        out: &mut Output<'_>,
    ) -> Result<()> {
        let function = function.ok_or(Rv::FUNCTION_NOT_SUPPORTED)?;
        output(out, |place, len| {
            // SAFETY: the input is live and as long as said; the output is NULL or writable for `*len` bytes.
            Rv::check(unsafe { function(session.0, input(data), ulong(data.len()), place, len) })
        })
    }
}

impl Drop for RealToken {
    fn drop(&mut self) {
        self.life.close(); // a shared instance is finalised when nobody can call it any more
    }
}

impl Token for RealToken {
    fn slot_info(&self) -> Result<SlotInfo> {
        calls::slot_info(&self.enter()?, self.slot)
    }

    fn token_info(&self) -> Result<TokenInfo> {
        calls::token_info(&self.enter()?, self.slot)
    }

    fn mechanism_list(&self) -> Result<Vec<Ulong>> {
        let call = self.enter()?;
        calls::list(|list, count| invoke!(call, C_GetMechanismList, self.slot, list, count))
    }

    fn mechanism_info(&self, mechanism: Ulong) -> Result<MechanismInfo> {
        let call = self.enter()?;
        let mut info = ck::CK_MECHANISM_INFO::default();
        invoke!(call, C_GetMechanismInfo, self.slot, mechanism, &mut info)?;
        Ok(MechanismInfo {
            min_key_size: info.ulMinKeySize,
            max_key_size: info.ulMaxKeySize,
            flags: info.flags,
        })
    }

    fn init_token(&self, so_pin: Option<&[u8]>, label: &str) -> Result<()> {
        let _turn = self.turn_at_token();
        let call = self.enter()?;
        let mut padded = [b' '; 32];
        let place = padded.get_mut(..label.len()).ok_or(Rv::ARGUMENTS_BAD)?;
        place.copy_from_slice(label.as_bytes());
        let (so_pin, len) = pin(so_pin);
        invoke!(call, C_InitToken, self.slot, so_pin, len, padded.as_mut_ptr())
    }

    fn init_pin(&self, session: SessionHandle, new: Option<&[u8]>) -> Result<()> {
        let _turn = self.turn_at_token();
        let (new, len) = pin(new);
        invoke!(self.enter()?, C_InitPIN, session.0, new, len)
    }

    fn set_pin(&self, session: SessionHandle, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<()> {
        let _turn = self.turn_at_token();
        let ((old, old_len), (new, new_len)) = (pin(old), pin(new));
        invoke!(self.enter()?, C_SetPIN, session.0, old, old_len, new, new_len)
    }

    fn open_session(&self, read_write: bool) -> Result<SessionHandle> {
        let call = self.enter()?;
        let flags = ck::CKF_SERIAL_SESSION | if read_write { ck::CKF_RW_SESSION } else { 0 };
        let mut session = ck::CK_INVALID_HANDLE;
        invoke!(call, C_OpenSession, self.slot, flags, std::ptr::null_mut(), None, &mut session)?;
        Ok(SessionHandle(session))
    }

    fn close_session(&self, session: SessionHandle) -> Result<()> {
        let call = self.enter()?;
        self.forget_messages(session);
        invoke!(call, C_CloseSession, session.0)
    }

    fn close_all_sessions(&self) -> Result<()> {
        let call = self.enter()?;
        self.change_messages(Messages::clear);
        invoke!(call, C_CloseAllSessions, self.slot)
    }

    fn session_info(&self, session: SessionHandle) -> Result<SessionInfo> {
        let call = self.enter()?;
        let mut info = ck::CK_SESSION_INFO::default();
        invoke!(call, C_GetSessionInfo, session.0, &mut info)?;
        Ok(SessionInfo { state: info.state, flags: info.flags, device_error: info.ulDeviceError })
    }

    fn session_cancel(&self, session: SessionHandle, flags: Ulong) -> Result<()> {
        let call = self.enter()?;
        invoke!(call, C_SessionCancel, session.0, flags)?;
        if self.message_count.load(Ordering::Acquire) != 0 {
            let cancelled = |kind| {
                flags
                    & match kind {
                        MessageKind::Encrypt => ck::CKF_MESSAGE_ENCRYPT,
                        MessageKind::Decrypt => ck::CKF_MESSAGE_DECRYPT,
                        MessageKind::Sign => ck::CKF_MESSAGE_SIGN,
                        MessageKind::Verify => ck::CKF_MESSAGE_VERIFY,
                    }
                    != 0
            };
            self.change_messages(|m| m.retain(|(s, kind), _| *s != session || !cancelled(*kind)));
        }
        Ok(())
    }

    fn session_validation_flags(&self, session: SessionHandle, kind: Ulong) -> Result<Ulong> {
        let call = self.enter()?;
        let mut flags = 0;
        invoke!(call, C_GetSessionValidationFlags, session.0, kind, &mut flags)?;
        Ok(flags)
    }

    fn login(&self, session: SessionHandle, who: UserType, secret: Option<&[u8]>) -> Result<()> {
        let _turn = self.turn_at_token();
        let (secret, len) = pin(secret);
        invoke!(self.enter()?, C_Login, session.0, who.number(), secret, len)
    }

    fn login_user(
        &self,
        session: SessionHandle,
        who: UserType,
        secret: Option<&[u8]>,
        name: &[u8],
    ) -> Result<()> {
        let _turn = self.turn_at_token();
        let (secret, len) = pin(secret);
        invoke!(
            self.enter()?,
            C_LoginUser,
            session.0,
            who.number(),
            secret,
            len,
            input(name),
            ulong(name.len())
        )
    }

    fn logout(&self, session: SessionHandle) -> Result<()> {
        invoke!(self.enter()?, C_Logout, session.0)
    }

    fn create_object(&self, session: SessionHandle, template: &Template) -> Result<ObjectHandle> {
        let _turn = self.turn_to_make(&[template]);
        let call = self.enter()?;
        with_template(template, |attributes, count| {
            made(&self.makings, |object| invoke!(call, C_CreateObject, session.0, attributes, count, object))
        })
    }

    fn copy_object(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        template: &Template,
    ) -> Result<ObjectHandle> {
        let _turn = self.turn_to_make(&[template]);
        let call = self.enter()?;
        with_template(template, |attributes, count| {
            made(&self.makings, |copy| {
                invoke!(call, C_CopyObject, session.0, object.0, attributes, count, copy)
            })
        })
    }

    fn destroy_object(&self, session: SessionHandle, object: ObjectHandle) -> Result<()> {
        let _turn = self.turn_to_destroy(session, object);
        invoke!(self.enter()?, C_DestroyObject, session.0, object.0)
    }

    fn object_size(&self, session: SessionHandle, object: ObjectHandle) -> Result<Ulong> {
        let call = self.enter()?;
        let mut size = 0;
        invoke!(call, C_GetObjectSize, session.0, object.0, &mut size)?;
        Ok(size)
    }

    fn get_attributes(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        types: &[AttributeType],
    ) -> Result<Vec<Fetched>> {
        let call = self.enter()?;
        let mut fetch = |attributes, count| match invoke!(
            call,
            C_GetAttributeValue,
            session.0,
            object.0,
            attributes,
            count
        ) {
            Ok(()) => ck::CKR_OK,
            Err(rv) => rv.0,
        };
        ha_abi::fetch_attributes(&mut fetch, types)
    }

    fn set_attributes(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        template: &Template,
    ) -> Result<()> {
        let _alone = self.searches.as_ref().map(|searches| searches.write());
        let call = self.enter()?;
        with_template(template, |attributes, count| {
            invoke!(call, C_SetAttributeValue, session.0, object.0, attributes, count)
        })
    }

    fn whole_objects(&self) -> Option<u64> {
        self.makings.are_over()
    }

    fn await_whole_objects(&self) {
        self.makings.wait();
    }

    fn lasting(&self, calls: &mut dyn FnMut()) {
        self.life.last_through(calls);
    }

    fn find_objects_init(&self, session: SessionHandle, template: &Template) -> Result<()> {
        let _search = self.searches.as_ref().map(|searches| searches.search());
        let call = self.enter()?;
        with_template(template, |attributes, count| {
            invoke!(call, C_FindObjectsInit, session.0, attributes, count)
        })
    }

    fn find_objects(&self, session: SessionHandle, max: usize) -> Result<Vec<ObjectHandle>> {
        let call = self.enter()?;
        let room = max.min(1 << 16); // "at most": a caller that wants more asks again
        let mut found = vec![ck::CK_INVALID_HANDLE; room.max(1)];
        let mut count = 0;
        invoke!(call, C_FindObjects, session.0, found.as_mut_ptr(), ulong(room), &mut count)?;
        found.truncate(usize::try_from(count).unwrap_or(0).min(room));
        Ok(found.into_iter().map(ObjectHandle).collect())
    }

    fn find_objects_final(&self, session: SessionHandle) -> Result<()> {
        invoke!(self.enter()?, C_FindObjectsFinal, session.0)
    }

    fn op_init(
        &self,
        session: SessionHandle,
        kind: OpKind,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
    ) -> Result<()> {
        let call = self.enter()?;
        let Some(mechanism) = mechanism else {
            Self::cancels(&call)?;
            return operations::init(&call, session, kind, std::ptr::null_mut(), key);
        };
        with_mechanism(mechanism, |raw| operations::init(&call, session, kind, raw, key))
    }

    fn op_one_shot(
        &self,
        session: SessionHandle,
        kind: OpKind,
        data: &[u8],
        out: &mut Output<'_>,
    ) -> Result<()> {
        let call = self.enter()?;
        Self::transform(operations::one_shot(&call, kind), session, data, out)
    }

    fn op_at_once(
        &self,
        session: SessionHandle,
        kind: OpKind,
        mechanism: Ulong,
        key: ObjectHandle,
        data: &[u8],
        out: &mut Output<'_>,
    ) -> Result<()> {
        let call = self.enter()?;
        let mut plain = ck::CK_MECHANISM { mechanism, pParameter: std::ptr::null_mut(), ulParameterLen: 0 };
        operations::init(&call, session, kind, &mut plain, key)?;
        Self::transform(operations::one_shot(&call, kind), session, data, out)
    }

    fn op_update(
        &self,
        session: SessionHandle,
        kind: OpKind,
        data: &[u8],
        out: &mut Output<'_>,
    ) -> Result<()> {
        let call = self.enter()?;
        if let OpKind::Encrypt | OpKind::Decrypt = kind {
            return Self::transform(operations::update(&call, kind), session, data, out);
        }
        let feed = operations::feed(&call, kind).ok_or(Rv::FUNCTION_NOT_SUPPORTED)?;
        // SAFETY: the input is live and as long as said.
        Rv::check(unsafe { feed(session.0, input(data), ulong(data.len())) })
    }

    fn op_final(&self, session: SessionHandle, kind: OpKind, out: &mut Output<'_>) -> Result<()> {
        let call = self.enter()?;
        let last = operations::last(&call, kind).ok_or(Rv::FUNCTION_NOT_SUPPORTED)?;
        output(out, |place, len| {
            // SAFETY: the output is NULL or writable for `*len` bytes.
            Rv::check(unsafe { last(session.0, place, len) })
        })
    }

    fn verify(&self, session: SessionHandle, data: &[u8], signature: &[u8]) -> Result<()> {
        let (data, data_len) = (input(data), ulong(data.len()));
        let (signature, len) = (input(signature), ulong(signature.len()));
        invoke!(self.enter()?, C_Verify, session.0, data, data_len, signature, len)
    }

    fn verify_final(&self, session: SessionHandle, signature: &[u8]) -> Result<()> {
        invoke!(self.enter()?, C_VerifyFinal, session.0, input(signature), ulong(signature.len()))
    }

    fn digest_key(&self, session: SessionHandle, key: ObjectHandle) -> Result<()> {
        invoke!(self.enter()?, C_DigestKey, session.0, key.0)
    }

    fn combined_update(
        &self,
        session: SessionHandle,
        kind: CombinedKind,
        data: &[u8],
        out: &mut Output<'_>,
    ) -> Result<()> {
        let call = self.enter()?;
        Self::transform(operations::combined(&call, kind), session, data, out)
    }

    fn verify_signature_init(
        &self,
        session: SessionHandle,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
        signature: &[u8],
    ) -> Result<()> {
        let call = self.enter()?;
        let (place, len) = (input(signature), ulong(signature.len()));
        match mechanism {
            Some(m) => with_mechanism(m, |raw| {
                invoke!(call, C_VerifySignatureInit, session.0, raw, key.0, place, len)
            }),
            None => invoke!(call, C_VerifySignatureInit, session.0, std::ptr::null_mut(), key.0, place, len),
        }
    }

    fn verify_signature(&self, session: SessionHandle, data: &[u8]) -> Result<()> {
        invoke!(self.enter()?, C_VerifySignature, session.0, input(data), ulong(data.len()))
    }

    fn verify_signature_final(&self, session: SessionHandle) -> Result<()> {
        invoke!(self.enter()?, C_VerifySignatureFinal, session.0)
    }

    fn message_mechanism(&self, session: SessionHandle, kind: MessageKind) -> Result<Ulong> {
        let _call = self.enter()?; // not in a forked child, nor after the instance's end
        let messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.get(&(session, kind)).copied().ok_or(Rv::OPERATION_NOT_INITIALIZED)
    }

    fn message_init(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
    ) -> Result<()> {
        let call = self.enter()?;
        match mechanism {
            Some(m) => {
                let number = m.kind;
                with_mechanism(m, |raw| messages::init(&call, session, kind, raw, key))?;
                self.change_messages(|all| _ = all.insert((session, kind), number));
            }
            None => {
                messages::init(&call, session, kind, std::ptr::null_mut(), key)?;
                self.change_messages(|all| _ = all.remove(&(session, kind)));
            }
        }
        Ok(())
    }

    fn message_one_shot(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        params: &mut Params,
        associated: &[u8],
        data: &[u8],
        out: &mut Output<'_>,
    ) -> Result<()> {
        messages::one_shot(&self.enter()?, session, kind, params, associated, data, out)
    }

    fn message_begin(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        params: &mut Params,
        associated: &[u8],
    ) -> Result<()> {
        messages::begin(&self.enter()?, session, kind, params, associated)
    }

    fn message_next(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        params: &mut Params,
        part: &[u8],
        last: bool,
        out: &mut Output<'_>,
    ) -> Result<()> {
        messages::next(&self.enter()?, session, kind, params, part, last, out)
    }

    fn verify_message(
        &self,
        session: SessionHandle,
        params: &mut Params,
        data: &[u8],
        signature: &[u8],
    ) -> Result<()> {
        let call = self.enter()?;
        let (data, data_len) = (input(data), ulong(data.len()));
        let (signature, len) = (input(signature), ulong(signature.len()));
        messages::with_params(params, |param, param_len| {
            invoke!(call, C_VerifyMessage, session.0, param, param_len, data, data_len, signature, len)
        })
    }

    fn verify_message_next(
        &self,
        session: SessionHandle,
        params: &mut Params,
        data: &[u8],
        signature: Option<&[u8]>,
    ) -> Result<()> {
        let call = self.enter()?;
        let (data, data_len) = (input(data), ulong(data.len()));
        let (signature, len) = pin(signature); // NULL without one, likewise
        messages::with_params(params, |param, param_len| {
            invoke!(call, C_VerifyMessageNext, session.0, param, param_len, data, data_len, signature, len)
        })
    }

    fn message_final(&self, session: SessionHandle, kind: MessageKind) -> Result<()> {
        let call = self.enter()?;
        messages::last(&call, session, kind)?;
        self.change_messages(|all| _ = all.remove(&(session, kind)));
        Ok(())
    }

    fn generate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        template: &Template,
    ) -> Result<ObjectHandle> {
        let _turn = self.turn_to_make(&[template]);
        let call = self.enter()?;
        make(&self.makings, mechanism, template, |raw, t, n, key| {
            invoke!(call, C_GenerateKey, session.0, raw, t, n, key)
        })
    }

    fn generate_key_pair(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        public: &Template,
        private: &Template,
    ) -> Result<(ObjectHandle, ObjectHandle)> {
        let _turn = self.turn_to_make(&[public, private]);
        let call = self.enter()?;
        let mut other = ck::CK_INVALID_HANDLE;
        let second = &raw mut other;
        let first = make(&self.makings, mechanism, public, |raw, t, n, first| {
            with_template(private, |u, m| {
                invoke!(call, C_GenerateKeyPair, session.0, raw, t, n, u, m, first, second)
            })
        })?;
        Ok((first, ObjectHandle(other)))
    }

    fn wrap_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        wrapping: ObjectHandle,
        key: ObjectHandle,
        out: &mut Output<'_>,
    ) -> Result<()> {
        let call = self.enter()?;
        with_mechanism(mechanism, |raw| {
            output(out, |to, len| invoke!(call, C_WrapKey, session.0, raw, wrapping.0, key.0, to, len))
        })
    }

    fn unwrap_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        unwrapping: ObjectHandle,
        wrapped: &[u8],
        template: &Template,
    ) -> Result<ObjectHandle> {
        let _turn = self.turn_to_make(&[template]);
        let call = self.enter()?;
        let (blob, len) = (input(wrapped), ulong(wrapped.len()));
        make(&self.makings, mechanism, template, |raw, t, n, key| {
            invoke!(call, C_UnwrapKey, session.0, raw, unwrapping.0, blob, len, t, n, key)
        })
    }

    fn derive_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        base: ObjectHandle,
        template: &Template,
        want_handle: bool,
    ) -> Result<Option<ObjectHandle>> {
        let _turn = self.turn_to_make(&[template]);
        let call = self.enter()?;
        let key = make(&self.makings, mechanism, template, |raw, t, n, key| {
            let key = if want_handle { key } else { std::ptr::null_mut() };
            invoke!(call, C_DeriveKey, session.0, raw, base.0, t, n, key)
        })?;
        Ok(want_handle.then_some(key))
    }

    fn wrap_key_authenticated(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        wrapping: ObjectHandle,
        key: ObjectHandle,
        associated: &[u8],
        out: &mut Output<'_>,
    ) -> Result<()> {
        let call = self.enter()?;
        let (aad, aad_len) = (input(associated), ulong(associated.len()));
        let (by, key) = (wrapping.0, key.0);
        with_mechanism(mechanism, |raw| {
            output(out, |to, len| {
                invoke!(call, C_WrapKeyAuthenticated, session.0, raw, by, key, aad, aad_len, to, len)
            })
        })
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
        let _turn = self.turn_to_make(&[template]);
        let call = self.enter()?;
        let (blob, len) = (input(wrapped), ulong(wrapped.len()));
        let (aad, aad_len) = (input(associated), ulong(associated.len()));
        let (s, by) = (session.0, unwrapping.0);
        make(&self.makings, mechanism, template, |raw, t, n, key| {
            invoke!(call, C_UnwrapKeyAuthenticated, s, raw, by, blob, len, t, n, aad, aad_len, key)
        })
    }

    fn encapsulate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        public: ObjectHandle,
        template: &Template,
        out: &mut Output<'_>,
    ) -> Result<Option<ObjectHandle>> {
        let _turn = self.turn_to_make(&[template]);
        let call = self.enter()?;
        let query = out.is_query();
        let key = make(&self.makings, mechanism, template, |raw, t, n, key| {
            output(out, |to, len| {
                invoke!(call, C_EncapsulateKey, session.0, raw, public.0, t, n, to, len, key)
            })
        })?;
        Ok((!query).then_some(key))
    }

    fn decapsulate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        private: ObjectHandle,
        template: &Template,
        ciphertext: &[u8],
    ) -> Result<ObjectHandle> {
        let _turn = self.turn_to_make(&[template]);
        let call = self.enter()?;
        let (text, len) = (input(ciphertext), ulong(ciphertext.len()));
        make(&self.makings, mechanism, template, |raw, t, n, key| {
            invoke!(call, C_DecapsulateKey, session.0, raw, private.0, t, n, text, len, key)
        })
    }

    fn seed_random(&self, session: SessionHandle, seed: &[u8]) -> Result<()> {
        invoke!(self.enter()?, C_SeedRandom, session.0, input(seed), ulong(seed.len()))
    }

    fn generate_random(&self, session: SessionHandle, space: &mut [u8]) -> Result<()> {
        let call = self.enter()?;
        if space.is_empty() {
            return Ok(());
        }
        invoke!(call, C_GenerateRandom, session.0, space.as_mut_ptr(), ulong(space.len()))
    }
}
