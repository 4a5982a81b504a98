//! A token that writes down what it is asked and gives fixed answers.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ha_token::*;

/// The signature, ciphertext, digest and so on that every output function answers.
pub const OUTPUT: &[u8] = b"twelve bytes";
/// What the token says of itself, longer than its field and with a character across its end.
pub const LABEL: &str = "a label of thirty-one bytes, ok\u{e9}!";

/// See the module's text.
#[derive(Default)]
pub struct Recorder {
    slot: Ulong,
    sessions: Mutex<(Ulong, BTreeSet<Ulong>)>,
    calls: Mutex<Vec<String>>,
    quiet: AtomicBool,
}

impl Recorder {
    /// A token in the slot of this number.
    pub fn new(slot: Ulong) -> Self {
        Recorder { slot, ..Recorder::default() }
    }

    /// What was called since the last look.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.calls))
    }

    /// From here on nothing is written down, and so nothing allocated.
    pub fn be_quiet(&self) {
        self.quiet.store(true, Ordering::Relaxed);
    }

    fn note(&self, session: SessionHandle, call: fmt::Arguments<'_>) -> Result<()> {
        if !lock(&self.sessions).1.contains(&session.0) {
            return Err(Rv::SESSION_HANDLE_INVALID);
        }
        if !self.quiet.load(Ordering::Relaxed) {
            lock(&self.calls).push(call.to_string());
        }
        Ok(())
    }

    fn made(&self, session: SessionHandle, call: fmt::Arguments<'_>) -> Result<ObjectHandle> {
        self.note(session, call).map(|()| ObjectHandle(77))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kinds(template: &Template) -> String {
    template.iter().map(|a| format!("{:x}", a.kind)).collect::<Vec<_>>().join(",")
}

impl Token for Recorder {
    fn slot_info(&self) -> Result<SlotInfo> {
        Ok(SlotInfo {
            description: "a slot".into(),
            manufacturer: "m".into(),
            // Every second slot is empty.
            flags: if self.slot.is_multiple_of(2) { ck::CKF_TOKEN_PRESENT } else { 0 },
            hardware_version: Version { major: 1, minor: 2 },
            firmware_version: Version { major: 3, minor: 4 },
        })
    }
    fn token_info(&self) -> Result<TokenInfo> {
        if !self.slot.is_multiple_of(2) {
            return Err(Rv::TOKEN_NOT_PRESENT);
        }
        Ok(TokenInfo {
            label: LABEL.into(),
            manufacturer: "m".into(),
            model: "m".into(),
            serial: "0123456789abcdef".into(),
            flags: ck::CKF_TOKEN_INITIALIZED,
            max_session_count: 1,
            session_count: 2,
            max_rw_session_count: 3,
            rw_session_count: 4,
            max_pin_len: 5,
            min_pin_len: 6,
            total_public_memory: 7,
            free_public_memory: 8,
            total_private_memory: 9,
            free_private_memory: 10,
            hardware_version: Version { major: 1, minor: 2 },
            firmware_version: Version { major: 3, minor: 4 },
            utc_time: String::new(),
        })
    }
    fn mechanism_list(&self) -> Result<Vec<Ulong>> {
        Ok(vec![ck::CKM_SHA256, ck::CKM_ECDSA])
    }
    fn mechanism_info(&self, mechanism: Ulong) -> Result<MechanismInfo> {
        match mechanism {
            ck::CKM_ECDSA => Ok(MechanismInfo { min_key_size: 256, max_key_size: 521, flags: ck::CKF_SIGN }),
            _ => Err(Rv::MECHANISM_INVALID),
        }
    }
    fn init_token(&self, pin: Option<&[u8]>, label: &str) -> Result<()> {
        lock(&self.calls).push(format!("init_token {} {label:?}", pin.map_or(-1, |p| p.len() as i64)));
        Ok(())
    }
    fn init_pin(&self, session: SessionHandle, pin: Option<&[u8]>) -> Result<()> {
        self.note(session, format_args!("init_pin {:?}", pin.map(<[u8]>::len)))
    }
    fn set_pin(&self, session: SessionHandle, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<()> {
        self.note(session, format_args!("set_pin {:?} {:?}", old.map(<[u8]>::len), new.map(<[u8]>::len)))
    }
    fn open_session(&self, read_write: bool) -> Result<SessionHandle> {
        lock(&self.calls).push(format!("open_session {read_write}"));
        let mut sessions = lock(&self.sessions);
        sessions.0 += 1;
        let handle = sessions.0 << 10 | self.slot;
        sessions.1.insert(handle);
        Ok(SessionHandle(handle))
    }
    fn close_session(&self, session: SessionHandle) -> Result<()> {
        if lock(&self.sessions).1.remove(&session.0) { Ok(()) } else { Err(Rv::SESSION_HANDLE_INVALID) }
    }
    fn close_all_sessions(&self) -> Result<()> {
        lock(&self.sessions).1.clear();
        Ok(())
    }
    fn session_info(&self, session: SessionHandle) -> Result<SessionInfo> {
        self.note(session, format_args!("session_info"))?;
        Ok(SessionInfo { state: ck::CKS_RO_PUBLIC_SESSION, flags: ck::CKF_SERIAL_SESSION, device_error: 9 })
    }
    fn session_cancel(&self, session: SessionHandle, flags: Ulong) -> Result<()> {
        self.note(session, format_args!("session_cancel {flags:x}"))
    }
    fn session_validation_flags(&self, session: SessionHandle, kind: Ulong) -> Result<Ulong> {
        self.note(session, format_args!("session_validation_flags {kind}"))?;
        Ok(5)
    }
    fn login(&self, session: SessionHandle, user: UserType, pin: Option<&[u8]>) -> Result<()> {
        self.note(session, format_args!("login {user:?} {:?}", pin.map(<[u8]>::len)))
    }
    fn login_user(
        &self,
        session: SessionHandle,
        user: UserType,
        pin: Option<&[u8]>,
        name: &[u8],
    ) -> Result<()> {
        self.note(session, format_args!("login_user {user:?} {:?} {}", pin.map(<[u8]>::len), name.len()))
    }
    fn logout(&self, session: SessionHandle) -> Result<()> {
        self.note(session, format_args!("logout"))
    }
    fn create_object(&self, session: SessionHandle, template: &Template) -> Result<ObjectHandle> {
        self.made(session, format_args!("create_object {}", kinds(template)))
    }
    fn copy_object(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        template: &Template,
    ) -> Result<ObjectHandle> {
        self.made(session, format_args!("copy_object {} {}", object.0, kinds(template)))
    }
    fn destroy_object(&self, session: SessionHandle, object: ObjectHandle) -> Result<()> {
        self.note(session, format_args!("destroy_object {}", object.0))
    }
    fn object_size(&self, session: SessionHandle, object: ObjectHandle) -> Result<Ulong> {
        self.note(session, format_args!("object_size {}", object.0))?;
        Ok(42)
    }
    fn get_attributes(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        types: &[AttributeType],
    ) -> Result<Vec<Fetched>> {
        self.note(session, format_args!("get_attributes {} {}", object.0, types.len()))?;
        Ok(types
            .iter()
            .map(|kind| match *kind {
                ck::CKA_LABEL => Fetched::Value(Attribute::bytes(*kind, OUTPUT).value),
                ck::CKA_VALUE => Fetched::Sensitive,
                _ => Fetched::Invalid,
            })
            .collect())
    }
    fn set_attributes(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        template: &Template,
    ) -> Result<()> {
        self.note(session, format_args!("set_attributes {} {}", object.0, kinds(template)))
    }
    fn whole_objects(&self) -> Option<u64> {
        Some(0)
    }

    fn await_whole_objects(&self) {}

    fn find_objects_init(&self, session: SessionHandle, template: &Template) -> Result<()> {
        self.note(session, format_args!("find_objects_init {}", kinds(template)))
    }
    fn find_objects(&self, session: SessionHandle, max: usize) -> Result<Vec<ObjectHandle>> {
        self.note(session, format_args!("find_objects {max}"))?;
        Ok([7, 8, 9].into_iter().take(max).map(ObjectHandle).collect())
    }
    fn find_objects_final(&self, session: SessionHandle) -> Result<()> {
        self.note(session, format_args!("find_objects_final"))
    }
    fn op_init(
        &self,
        session: SessionHandle,
        kind: OpKind,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
    ) -> Result<()> {
        self.note(
            session,
            format_args!("op_init {kind:?} {:?} {}", mechanism.as_ref().map(|m| m.kind), key.0),
        )?;
        // A token that makes its own IV.
        if let Some(Mechanism { kind: ck::CKM_AES_CBC, params: Params::Bytes(iv) }) = mechanism {
            iv.fill(0xA5);
        }
        Ok(())
    }
    fn op_one_shot(
        &self,
        session: SessionHandle,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.note(session, format_args!("op_one_shot {kind:?} {}", input.len()))?;
        match kind {
            OpKind::Decrypt => output.write(&input.iter().rev().copied().collect::<Vec<_>>()),
            _ => output.write(OUTPUT),
        }
    }
    fn op_update(
        &self,
        session: SessionHandle,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.note(session, format_args!("op_update {kind:?} {}", input.len()))?;
        output.write(OUTPUT)
    }
    fn op_final(&self, session: SessionHandle, kind: OpKind, output: &mut Output<'_>) -> Result<()> {
        self.note(session, format_args!("op_final {kind:?}"))?;
        output.write(OUTPUT)
    }
    fn verify(&self, session: SessionHandle, data: &[u8], signature: &[u8]) -> Result<()> {
        self.note(session, format_args!("verify {} {}", data.len(), signature.len()))?;
        if signature == OUTPUT { Ok(()) } else { Err(Rv::SIGNATURE_INVALID) }
    }
    fn verify_final(&self, session: SessionHandle, signature: &[u8]) -> Result<()> {
        self.note(session, format_args!("verify_final {}", signature.len()))
    }
    fn digest_key(&self, session: SessionHandle, key: ObjectHandle) -> Result<()> {
        self.note(session, format_args!("digest_key {}", key.0))
    }
    fn combined_update(
        &self,
        session: SessionHandle,
        kind: CombinedKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.note(session, format_args!("combined_update {kind:?} {}", input.len()))?;
        output.write(OUTPUT)
    }
    fn verify_signature_init(
        &self,
        session: SessionHandle,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
        signature: &[u8],
    ) -> Result<()> {
        self.note(
            session,
            format_args!(
                "verify_signature_init {:?} {} {}",
                mechanism.map(|m| m.kind),
                key.0,
                signature.len()
            ),
        )
    }
    fn verify_signature(&self, session: SessionHandle, data: &[u8]) -> Result<()> {
        self.note(session, format_args!("verify_signature {}", data.len()))
    }
    fn verify_signature_final(&self, session: SessionHandle) -> Result<()> {
        self.note(session, format_args!("verify_signature_final"))
    }
    fn message_mechanism(&self, session: SessionHandle, _kind: MessageKind) -> Result<Ulong> {
        self.note(session, format_args!("message_mechanism"))?;
        Ok(ck::CKM_AES_ECB)
    }
    fn message_init(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
    ) -> Result<()> {
        self.note(session, format_args!("message_init {kind:?} {:?} {}", mechanism.map(|m| m.kind), key.0))
    }
    fn message_one_shot(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        _params: &mut Params,
        associated: &[u8],
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.note(session, format_args!("message_one_shot {kind:?} {} {}", associated.len(), input.len()))?;
        output.write(OUTPUT)
    }
    fn message_begin(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        _params: &mut Params,
        associated: &[u8],
    ) -> Result<()> {
        self.note(session, format_args!("message_begin {kind:?} {}", associated.len()))
    }
    fn message_next(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        _params: &mut Params,
        input: &[u8],
        last: bool,
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.note(session, format_args!("message_next {kind:?} {} {last}", input.len()))?;
        output.write(OUTPUT)
    }
    fn verify_message(
        &self,
        session: SessionHandle,
        _params: &mut Params,
        data: &[u8],
        signature: &[u8],
    ) -> Result<()> {
        self.note(session, format_args!("verify_message {} {}", data.len(), signature.len()))
    }
    fn verify_message_next(
        &self,
        session: SessionHandle,
        _params: &mut Params,
        data: &[u8],
        signature: Option<&[u8]>,
    ) -> Result<()> {
        self.note(
            session,
            format_args!("verify_message_next {} {:?}", data.len(), signature.map(<[u8]>::len)),
        )
    }
    fn message_final(&self, session: SessionHandle, kind: MessageKind) -> Result<()> {
        self.note(session, format_args!("message_final {kind:?}"))
    }
    fn generate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        template: &Template,
    ) -> Result<ObjectHandle> {
        self.made(session, format_args!("generate_key {:x} {}", mechanism.kind, kinds(template)))
    }
    fn generate_key_pair(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        public: &Template,
        private: &Template,
    ) -> Result<(ObjectHandle, ObjectHandle)> {
        self.note(
            session,
            format_args!("generate_key_pair {:x} {} {}", mechanism.kind, kinds(public), kinds(private)),
        )?;
        Ok((ObjectHandle(1), ObjectHandle(2)))
    }
    fn wrap_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        wrapping: ObjectHandle,
        key: ObjectHandle,
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.note(session, format_args!("wrap_key {:x} {} {}", mechanism.kind, wrapping.0, key.0))?;
        output.write(OUTPUT)
    }
    fn unwrap_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        unwrapping: ObjectHandle,
        wrapped: &[u8],
        template: &Template,
    ) -> Result<ObjectHandle> {
        self.made(
            session,
            format_args!(
                "unwrap_key {:x} {} {} {}",
                mechanism.kind,
                unwrapping.0,
                wrapped.len(),
                kinds(template)
            ),
        )
    }
    fn derive_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        base: ObjectHandle,
        template: &Template,
        want_handle: bool,
    ) -> Result<Option<ObjectHandle>> {
        self.note(
            session,
            format_args!("derive_key {:x} {} {} {want_handle}", mechanism.kind, base.0, kinds(template)),
        )?;
        Ok(want_handle.then_some(ObjectHandle(77)))
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
        self.note(
            session,
            format_args!(
                "wrap_key_authenticated {:x} {} {} {}",
                mechanism.kind,
                wrapping.0,
                key.0,
                associated.len()
            ),
        )?;
        output.write(OUTPUT)
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
        self.made(
            session,
            format_args!(
                "unwrap_key_authenticated {:x} {} {} {} {}",
                mechanism.kind,
                unwrapping.0,
                wrapped.len(),
                kinds(template),
                associated.len()
            ),
        )
    }
    fn encapsulate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        public: ObjectHandle,
        template: &Template,
        output: &mut Output<'_>,
    ) -> Result<Option<ObjectHandle>> {
        self.note(
            session,
            format_args!("encapsulate_key {:x} {} {}", mechanism.kind, public.0, kinds(template)),
        )?;
        output.write(OUTPUT)?;
        Ok((!output.is_query()).then_some(ObjectHandle(77)))
    }
    fn decapsulate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        private: ObjectHandle,
        template: &Template,
        ciphertext: &[u8],
    ) -> Result<ObjectHandle> {
        self.made(
            session,
            format_args!(
                "decapsulate_key {:x} {} {} {}",
                mechanism.kind,
                private.0,
                kinds(template),
                ciphertext.len()
            ),
        )
    }
    fn seed_random(&self, session: SessionHandle, seed: &[u8]) -> Result<()> {
        self.note(session, format_args!("seed_random {}", seed.len()))
    }
    fn generate_random(&self, session: SessionHandle, output: &mut [u8]) -> Result<()> {
        // A length that no buffer has, so that the suite can make the token itself fail.
        assert!(output.len() != 13, "the recorder panics at 13 bytes");
        self.note(session, format_args!("generate_random {}", output.len()))?;
        output.fill(4);
        Ok(())
    }
}
