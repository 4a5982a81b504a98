//! The trait [`Token`]: one slot and its token.

use cryptoki_sys as ck;

use crate::{
    AttributeType, Fetched, Function, Mechanism, MechanismInfo, Output, Params, Result, SessionInfo,
    SlotInfo, Template, TokenInfo, Ulong,
};

/// `CK_SESSION_HANDLE`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SessionHandle(pub Ulong);

/// `CK_OBJECT_HANDLE`; 0 is `CK_INVALID_HANDLE`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct ObjectHandle(pub Ulong);

/// `CK_USER_TYPE`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum UserType {
    /// `CKU_SO`.
    So,
    /// `CKU_USER`.
    User,
    /// `CKU_CONTEXT_SPECIFIC`.
    ContextSpecific,
}

impl UserType {
    /// The standard's number of it.
    pub fn number(self) -> Ulong {
        match self {
            UserType::So => crate::ck::CKU_SO,
            UserType::User => crate::ck::CKU_USER,
            UserType::ContextSpecific => crate::ck::CKU_CONTEXT_SPECIFIC,
        }
    }
}

/// The kinds of operation that are started with a mechanism and kept in a session; at most one of each kind.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[allow(missing_docs)] // each is the standard's operation of the same name
pub enum OpKind {
    Encrypt,
    Decrypt,
    Digest,
    Sign,
    SignRecover,
    Verify,
    VerifyRecover,
    /// `C_VerifySignatureInit` (3.2): the signature is given at the start.
    VerifySignature,
}

/// The dual-function calls (section 5.16).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)] // each is the standard's function of the same name
pub enum CombinedKind {
    DigestEncrypt,
    DecryptDigest,
    SignEncrypt,
    DecryptVerify,
}

/// The message-based operations (sections 5.9, 5.11, 5.14, 5.16).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[allow(missing_docs)] // each is the standard's operation of the same name
pub enum MessageKind {
    Encrypt,
    Decrypt,
    Sign,
    Verify,
}

impl OpKind {
    /// Every kind.
    pub const ALL: [OpKind; 8] = [
        OpKind::Encrypt,
        OpKind::Decrypt,
        OpKind::Digest,
        OpKind::Sign,
        OpKind::SignRecover,
        OpKind::Verify,
        OpKind::VerifyRecover,
        OpKind::VerifySignature,
    ];

    /// The function that starts it.
    pub const fn init(self) -> Function {
        match self {
            OpKind::Encrypt => Function::EncryptInit,
            OpKind::Decrypt => Function::DecryptInit,
            OpKind::Digest => Function::DigestInit,
            OpKind::Sign => Function::SignInit,
            OpKind::SignRecover => Function::SignRecoverInit,
            OpKind::Verify => Function::VerifyInit,
            OpKind::VerifyRecover => Function::VerifyRecoverInit,
            OpKind::VerifySignature => Function::VerifySignatureInit,
        }
    }

    /// The function that does it in one call.
    pub const fn one_shot(self) -> Function {
        match self {
            OpKind::Encrypt => Function::Encrypt,
            OpKind::Decrypt => Function::Decrypt,
            OpKind::Digest => Function::Digest,
            OpKind::Sign => Function::Sign,
            OpKind::SignRecover => Function::SignRecover,
            OpKind::Verify => Function::Verify,
            OpKind::VerifyRecover => Function::VerifyRecover,
            OpKind::VerifySignature => Function::VerifySignature,
        }
    }

    /// The function that feeds a part; the recover kinds have none and answer their one-shot function.
    pub const fn update(self) -> Function {
        match self {
            OpKind::Encrypt => Function::EncryptUpdate,
            OpKind::Decrypt => Function::DecryptUpdate,
            OpKind::Digest => Function::DigestUpdate,
            OpKind::Sign => Function::SignUpdate,
            OpKind::Verify => Function::VerifyUpdate,
            OpKind::VerifySignature => Function::VerifySignatureUpdate,
            OpKind::SignRecover => Function::SignRecover,
            OpKind::VerifyRecover => Function::VerifyRecover,
        }
    }

    /// The function that ends a multi-part operation; the recover kinds have none and answer their one-shot function.
    pub const fn last(self) -> Function {
        match self {
            OpKind::Encrypt => Function::EncryptFinal,
            OpKind::Decrypt => Function::DecryptFinal,
            OpKind::Digest => Function::DigestFinal,
            OpKind::Sign => Function::SignFinal,
            OpKind::Verify => Function::VerifyFinal,
            OpKind::VerifySignature => Function::VerifySignatureFinal,
            OpKind::SignRecover => Function::SignRecover,
            OpKind::VerifyRecover => Function::VerifyRecover,
        }
    }

    /// The flag that names the kind in mechanism information and in `C_SessionCancel`.
    pub const fn flag(self) -> Ulong {
        match self {
            OpKind::Encrypt => ck::CKF_ENCRYPT,
            OpKind::Decrypt => ck::CKF_DECRYPT,
            OpKind::Digest => ck::CKF_DIGEST,
            OpKind::Sign => ck::CKF_SIGN,
            OpKind::SignRecover => ck::CKF_SIGN_RECOVER,
            OpKind::Verify | OpKind::VerifySignature => ck::CKF_VERIFY,
            OpKind::VerifyRecover => ck::CKF_VERIFY_RECOVER,
        }
    }
}

impl CombinedKind {
    /// The C function.
    pub const fn function(self) -> Function {
        match self {
            CombinedKind::DigestEncrypt => Function::DigestEncryptUpdate,
            CombinedKind::DecryptDigest => Function::DecryptDigestUpdate,
            CombinedKind::SignEncrypt => Function::SignEncryptUpdate,
            CombinedKind::DecryptVerify => Function::DecryptVerifyUpdate,
        }
    }
}

impl MessageKind {
    /// The function that starts it.
    pub const fn init(self) -> Function {
        match self {
            MessageKind::Encrypt => Function::MessageEncryptInit,
            MessageKind::Decrypt => Function::MessageDecryptInit,
            MessageKind::Sign => Function::MessageSignInit,
            MessageKind::Verify => Function::MessageVerifyInit,
        }
    }

    /// The function for one whole message.
    pub const fn one_shot(self) -> Function {
        match self {
            MessageKind::Encrypt => Function::EncryptMessage,
            MessageKind::Decrypt => Function::DecryptMessage,
            MessageKind::Sign => Function::SignMessage,
            MessageKind::Verify => Function::VerifyMessage,
        }
    }

    /// The function that begins a message in parts.
    pub const fn begin(self) -> Function {
        match self {
            MessageKind::Encrypt => Function::EncryptMessageBegin,
            MessageKind::Decrypt => Function::DecryptMessageBegin,
            MessageKind::Sign => Function::SignMessageBegin,
            MessageKind::Verify => Function::VerifyMessageBegin,
        }
    }

    /// The function for a part.
    pub const fn next(self) -> Function {
        match self {
            MessageKind::Encrypt => Function::EncryptMessageNext,
            MessageKind::Decrypt => Function::DecryptMessageNext,
            MessageKind::Sign => Function::SignMessageNext,
            MessageKind::Verify => Function::VerifyMessageNext,
        }
    }

    /// The function that ends it.
    pub const fn last(self) -> Function {
        match self {
            MessageKind::Encrypt => Function::MessageEncryptFinal,
            MessageKind::Decrypt => Function::MessageDecryptFinal,
            MessageKind::Sign => Function::MessageSignFinal,
            MessageKind::Verify => Function::MessageVerifyFinal,
        }
    }
}

/// One slot and its token, as PKCS#11 v3.2 describes them.
///
/// Every method, but for two, is one call of the C function that its first line names, with that function's answer: an
/// `Err` is the member's return code. Methods may be called from any thread; what the standard says of two threads in one
/// session holds here too. A function that the module does not have answers `CKR_FUNCTION_NOT_SUPPORTED`.
pub trait Token: Send + Sync {
    /// `C_GetSlotInfo`.
    fn slot_info(&self) -> Result<SlotInfo>;
    /// `C_GetTokenInfo`.
    fn token_info(&self) -> Result<TokenInfo>;
    /// `C_GetMechanismList`.
    fn mechanism_list(&self) -> Result<Vec<Ulong>>;
    /// `C_GetMechanismInfo`.
    fn mechanism_info(&self, mechanism: Ulong) -> Result<MechanismInfo>;
    /// `C_InitToken`; `pin` `None` is NULL (protected authentication path); `label` at most 32 bytes.
    fn init_token(&self, pin: Option<&[u8]>, label: &str) -> Result<()>;
    /// `C_InitPIN`.
    fn init_pin(&self, session: SessionHandle, pin: Option<&[u8]>) -> Result<()>;
    /// `C_SetPIN`.
    fn set_pin(&self, session: SessionHandle, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<()>;

    /// `C_OpenSession`, read-write or read-only, without callback.
    fn open_session(&self, read_write: bool) -> Result<SessionHandle>;
    /// `C_CloseSession`.
    fn close_session(&self, session: SessionHandle) -> Result<()>;
    /// `C_CloseAllSessions`.
    fn close_all_sessions(&self) -> Result<()>;
    /// `C_GetSessionInfo`.
    fn session_info(&self, session: SessionHandle) -> Result<SessionInfo>;
    /// `C_SessionCancel` (3.0).
    fn session_cancel(&self, session: SessionHandle, flags: Ulong) -> Result<()>;
    /// `C_GetSessionValidationFlags` (3.2).
    fn session_validation_flags(&self, session: SessionHandle, kind: Ulong) -> Result<Ulong>;
    /// `C_Login`.
    fn login(&self, session: SessionHandle, user: UserType, pin: Option<&[u8]>) -> Result<()>;
    /// `C_LoginUser` (3.0).
    fn login_user(
        &self,
        session: SessionHandle,
        user: UserType,
        pin: Option<&[u8]>,
        name: &[u8],
    ) -> Result<()>;
    /// `C_Logout`.
    fn logout(&self, session: SessionHandle) -> Result<()>;

    /// `C_CreateObject`.
    fn create_object(&self, session: SessionHandle, template: &Template) -> Result<ObjectHandle>;
    /// `C_CopyObject`.
    fn copy_object(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        template: &Template,
    ) -> Result<ObjectHandle>;
    /// `C_DestroyObject`.
    fn destroy_object(&self, session: SessionHandle, object: ObjectHandle) -> Result<()>;
    /// `C_GetObjectSize`.
    fn object_size(&self, session: SessionHandle, object: ObjectHandle) -> Result<Ulong>;
    /// `C_GetAttributeValue`: one answer for each type, in order. `Err` is for the call as a whole only; what a single
    /// attribute is refused for is in its [`Fetched`].
    fn get_attributes(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        types: &[AttributeType],
    ) -> Result<Vec<Fetched>>;
    /// `C_SetAttributeValue`.
    fn set_attributes(&self, session: SessionHandle, object: ObjectHandle, template: &Template)
    -> Result<()>;
    /// No function of the standard's: `None` while a thread of this process makes an object, and else how many were begun
    /// to be made. A search in the meantime may have found one with values missing, or still its original's. Always the
    /// same of a token that shows an object when it is whole.
    fn whole_objects(&self) -> Option<u64>;
    /// No function of the standard's: waits until the objects that are being made are whole: a quarter of a second
    /// at most.
    fn await_whole_objects(&self);
    /// No function of the standard's: makes calls that see each other through. Where the connection is ended in the middle
    /// of them, the rest is let in all the same: who makes something too late can take it back. Nothing is let in where it
    /// has ended before. By default `calls` is just made, once, as by whoever implements this.
    fn lasting(&self, calls: &mut dyn FnMut()) {
        calls();
    }
    /// `C_FindObjectsInit`.
    fn find_objects_init(&self, session: SessionHandle, template: &Template) -> Result<()>;
    /// `C_FindObjects`: at most `max` handles.
    fn find_objects(&self, session: SessionHandle, max: usize) -> Result<Vec<ObjectHandle>>;
    /// `C_FindObjectsFinal`.
    fn find_objects_final(&self, session: SessionHandle) -> Result<()>;

    /// `C_EncryptInit`, `C_DecryptInit`, `C_DigestInit` (key is 0), `C_SignInit`, `C_SignRecoverInit`, `C_VerifyInit`,
    /// `C_VerifyRecoverInit`. `None` cancels the operation (3.0, section 5.8.1). A token that writes into the
    /// parameter (its own IV) leaves the result in `mechanism`.
    fn op_init(
        &self,
        session: SessionHandle,
        kind: OpKind,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
    ) -> Result<()>;
    /// `C_Encrypt`, `C_Decrypt`, `C_Digest`, `C_Sign`, `C_SignRecover`, `C_VerifyRecover` (input: the signature).
    fn op_one_shot(
        &self,
        session: SessionHandle,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()>;
    /// `C_XxxInit` with a mechanism without a parameter and, where that succeeds, `C_Xxx`: two calls of the module, in one
    /// of this trait for who saves something that way.
    fn op_at_once(
        &self,
        session: SessionHandle,
        kind: OpKind,
        mechanism: Ulong,
        key: ObjectHandle,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.op_init(session, kind, Some(&mut Mechanism::plain(mechanism)), key)?;
        self.op_one_shot(session, kind, input, output)
    }
    /// `C_EncryptUpdate`, `C_DecryptUpdate`; and, with the output left alone, `C_DigestUpdate`, `C_SignUpdate`,
    /// `C_VerifyUpdate`, `C_VerifySignatureUpdate`.
    fn op_update(
        &self,
        session: SessionHandle,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()>;
    /// `C_EncryptFinal`, `C_DecryptFinal`, `C_DigestFinal`, `C_SignFinal`.
    fn op_final(&self, session: SessionHandle, kind: OpKind, output: &mut Output<'_>) -> Result<()>;
    /// `C_Verify`.
    fn verify(&self, session: SessionHandle, data: &[u8], signature: &[u8]) -> Result<()>;
    /// `C_VerifyFinal`.
    fn verify_final(&self, session: SessionHandle, signature: &[u8]) -> Result<()>;
    /// `C_DigestKey`.
    fn digest_key(&self, session: SessionHandle, key: ObjectHandle) -> Result<()>;
    /// `C_DigestEncryptUpdate`, `C_DecryptDigestUpdate`, `C_SignEncryptUpdate`, `C_DecryptVerifyUpdate`.
    fn combined_update(
        &self,
        session: SessionHandle,
        kind: CombinedKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()>;
    /// `C_VerifySignatureInit` (3.2).
    fn verify_signature_init(
        &self,
        session: SessionHandle,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
        signature: &[u8],
    ) -> Result<()>;
    /// `C_VerifySignature` (3.2).
    fn verify_signature(&self, session: SessionHandle, data: &[u8]) -> Result<()>;
    /// `C_VerifySignatureFinal` (3.2).
    fn verify_signature_final(&self, session: SessionHandle) -> Result<()>;

    /// The mechanism that the session's message-based operation of this kind was started with: what a caller needs to
    /// read the per-message parameter. `CKR_OPERATION_NOT_INITIALIZED` without one. Calls no member.
    fn message_mechanism(&self, session: SessionHandle, kind: MessageKind) -> Result<Ulong>;
    /// `C_MessageEncryptInit` and its like (3.0). `None` cancels.
    fn message_init(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
    ) -> Result<()>;
    /// `C_EncryptMessage`, `C_DecryptMessage` (with `associated`), `C_SignMessage` (without). What the token writes
    /// into the parameter (IV, tag) is in `params` afterwards.
    fn message_one_shot(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        params: &mut Params,
        associated: &[u8],
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()>;
    /// `C_EncryptMessageBegin`, `C_DecryptMessageBegin` (with `associated`), `C_SignMessageBegin`, `C_VerifyMessageBegin`.
    fn message_begin(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        params: &mut Params,
        associated: &[u8],
    ) -> Result<()>;
    /// `C_EncryptMessageNext`, `C_DecryptMessageNext` (`last` sets `CKF_END_OF_MESSAGE`); `C_SignMessageNext`, where
    /// `last` means that the signature is asked for (with a size query then allowed).
    fn message_next(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        params: &mut Params,
        input: &[u8],
        last: bool,
        output: &mut Output<'_>,
    ) -> Result<()>;
    /// `C_VerifyMessage`.
    fn verify_message(
        &self,
        session: SessionHandle,
        params: &mut Params,
        data: &[u8],
        signature: &[u8],
    ) -> Result<()>;
    /// `C_VerifyMessageNext`; the signature is given with the last part only.
    fn verify_message_next(
        &self,
        session: SessionHandle,
        params: &mut Params,
        data: &[u8],
        signature: Option<&[u8]>,
    ) -> Result<()>;
    /// `C_MessageEncryptFinal` and its like.
    fn message_final(&self, session: SessionHandle, kind: MessageKind) -> Result<()>;

    /// `C_GenerateKey`.
    fn generate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        template: &Template,
    ) -> Result<ObjectHandle>;
    /// `C_GenerateKeyPair`: public, then private.
    fn generate_key_pair(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        public: &Template,
        private: &Template,
    ) -> Result<(ObjectHandle, ObjectHandle)>;
    /// `C_WrapKey`.
    fn wrap_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        wrapping: ObjectHandle,
        key: ObjectHandle,
        output: &mut Output<'_>,
    ) -> Result<()>;
    /// `C_UnwrapKey`.
    fn unwrap_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        unwrapping: ObjectHandle,
        wrapped: &[u8],
        template: &Template,
    ) -> Result<ObjectHandle>;
    /// `C_DeriveKey`. `None` when `want_handle` is false (mechanisms that answer in their parameter only); handles made there are
    /// in the mechanism's [`FieldValue::OutputHandles`](crate::FieldValue).
    fn derive_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        base: ObjectHandle,
        template: &Template,
        want_handle: bool,
    ) -> Result<Option<ObjectHandle>>;
    /// `C_WrapKeyAuthenticated` (3.2).
    fn wrap_key_authenticated(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        wrapping: ObjectHandle,
        key: ObjectHandle,
        associated: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()>;
    /// `C_UnwrapKeyAuthenticated` (3.2).
    fn unwrap_key_authenticated(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        unwrapping: ObjectHandle,
        wrapped: &[u8],
        template: &Template,
        associated: &[u8],
    ) -> Result<ObjectHandle>;
    /// `C_EncapsulateKey` (3.2): the ciphertext goes to `output`; no key is made for a size query (`None`).
    fn encapsulate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        public: ObjectHandle,
        template: &Template,
        output: &mut Output<'_>,
    ) -> Result<Option<ObjectHandle>>;
    /// `C_DecapsulateKey` (3.2).
    fn decapsulate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        private: ObjectHandle,
        template: &Template,
        ciphertext: &[u8],
    ) -> Result<ObjectHandle>;

    /// `C_SeedRandom`.
    fn seed_random(&self, session: SessionHandle, seed: &[u8]) -> Result<()>;
    /// `C_GenerateRandom`: fills `output`.
    fn generate_random(&self, session: SessionHandle, output: &mut [u8]) -> Result<()>;
}
