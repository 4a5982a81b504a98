//! What each argument of each function is: where a call's session, mechanism, handles and outputs are.

use ha_token::Function;

/// What an argument is, as far as faults are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Nothing that is looked at.
    Plain,
    /// `CK_C_INITIALIZE_ARGS *`.
    InitArgs,
    /// A slot.
    Slot,
    /// Whether slots without a token are left out.
    Present,
    /// `CK_SLOT_INFO *`, which is written.
    SlotInfo,
    /// `CK_TOKEN_INFO *`, which is written.
    TokenInfo,
    /// `CK_SESSION_INFO *`, which is written.
    SessionInfo,
    /// A session.
    Session,
    /// Where a new session's handle is written.
    NewSession,
    /// `CK_USER_TYPE`.
    User,
    /// `CK_MECHANISM *`, which may be NULL.
    Mechanism,
    /// `CK_MECHANISM_TYPE`.
    MechanismType,
    /// An object that is no key in this call.
    Object,
    /// A key; 0 is none.
    Key,
    /// A key that wraps.
    WrappingKey,
    /// A key that unwraps.
    UnwrappingKey,
    /// Where a new object's handle is written, or NULL.
    NewObject,
    /// An array of handles that is written.
    Found,
    /// An array of other numbers that is written: slots, mechanisms.
    List,
    /// Where bytes are written, or NULL to ask how many.
    Output,
    /// Where bytes are written, as many as the next argument says.
    Fill,
    /// The length or count of an output, in and out.
    OutputLen,
    /// The most handles that may be written.
    Max,
    /// How many were written.
    FoundCount,
    /// Attributes that are read out.
    Attributes,
    /// How many attributes there are.
    Count,
}

macro_rules! shapes {
    ($($c:ident is $function:ident($($role:ident),*);)*) => {
        /// Each function's arguments, in the order of [`Function::ALL`].
        pub(crate) const SHAPES: [(Function, &[Role]); Function::ALL.len()] =
            [$((Function::$function, &[$(Role::$role),*]),)*];

        /// Calls `$then!` with every function of the standard's lists: its C name, ours, and its arguments.
        macro_rules! every_function {
            ($then:ident) => { $then! { $($c is $function($($role),*);)* } };
        }
        pub(crate) use every_function;
    };
}

shapes! {
    C_Initialize is Initialize(InitArgs);
    C_Finalize is Finalize(Plain);
    C_GetInfo is GetInfo(Plain);
    C_GetFunctionList is GetFunctionList(Plain);
    C_GetSlotList is GetSlotList(Present, List, OutputLen);
    C_GetSlotInfo is GetSlotInfo(Slot, SlotInfo);
    C_GetTokenInfo is GetTokenInfo(Slot, TokenInfo);
    C_GetMechanismList is GetMechanismList(Slot, List, OutputLen);
    C_GetMechanismInfo is GetMechanismInfo(Slot, MechanismType, Plain);
    C_InitToken is InitToken(Slot, Plain, Plain, Plain);
    C_InitPIN is InitPin(Session, Plain, Plain);
    C_SetPIN is SetPin(Session, Plain, Plain, Plain, Plain);
    C_OpenSession is OpenSession(Slot, Plain, Plain, Plain, NewSession);
    C_CloseSession is CloseSession(Session);
    C_CloseAllSessions is CloseAllSessions(Slot);
    C_GetSessionInfo is GetSessionInfo(Session, SessionInfo);
    C_GetOperationState is GetOperationState(Session, Output, OutputLen);
    C_SetOperationState is SetOperationState(Session, Plain, Plain, Key, Key);
    C_Login is Login(Session, User, Plain, Plain);
    C_Logout is Logout(Session);
    C_CreateObject is CreateObject(Session, Plain, Plain, NewObject);
    C_CopyObject is CopyObject(Session, Object, Plain, Plain, NewObject);
    C_DestroyObject is DestroyObject(Session, Object);
    C_GetObjectSize is GetObjectSize(Session, Object, Plain);
    C_GetAttributeValue is GetAttributeValue(Session, Object, Attributes, Count);
    C_SetAttributeValue is SetAttributeValue(Session, Object, Plain, Plain);
    C_FindObjectsInit is FindObjectsInit(Session, Plain, Plain);
    C_FindObjects is FindObjects(Session, Found, Max, FoundCount);
    C_FindObjectsFinal is FindObjectsFinal(Session);
    C_EncryptInit is EncryptInit(Session, Mechanism, Key);
    C_Encrypt is Encrypt(Session, Plain, Plain, Output, OutputLen);
    C_EncryptUpdate is EncryptUpdate(Session, Plain, Plain, Output, OutputLen);
    C_EncryptFinal is EncryptFinal(Session, Output, OutputLen);
    C_DecryptInit is DecryptInit(Session, Mechanism, Key);
    C_Decrypt is Decrypt(Session, Plain, Plain, Output, OutputLen);
    C_DecryptUpdate is DecryptUpdate(Session, Plain, Plain, Output, OutputLen);
    C_DecryptFinal is DecryptFinal(Session, Output, OutputLen);
    C_DigestInit is DigestInit(Session, Mechanism);
    C_Digest is Digest(Session, Plain, Plain, Output, OutputLen);
    C_DigestUpdate is DigestUpdate(Session, Plain, Plain);
    C_DigestKey is DigestKey(Session, Key);
    C_DigestFinal is DigestFinal(Session, Output, OutputLen);
    C_SignInit is SignInit(Session, Mechanism, Key);
    C_Sign is Sign(Session, Plain, Plain, Output, OutputLen);
    C_SignUpdate is SignUpdate(Session, Plain, Plain);
    C_SignFinal is SignFinal(Session, Output, OutputLen);
    C_SignRecoverInit is SignRecoverInit(Session, Mechanism, Key);
    C_SignRecover is SignRecover(Session, Plain, Plain, Output, OutputLen);
    C_VerifyInit is VerifyInit(Session, Mechanism, Key);
    C_Verify is Verify(Session, Plain, Plain, Plain, Plain);
    C_VerifyUpdate is VerifyUpdate(Session, Plain, Plain);
    C_VerifyFinal is VerifyFinal(Session, Plain, Plain);
    C_VerifyRecoverInit is VerifyRecoverInit(Session, Mechanism, Key);
    C_VerifyRecover is VerifyRecover(Session, Plain, Plain, Output, OutputLen);
    C_DigestEncryptUpdate is DigestEncryptUpdate(Session, Plain, Plain, Output, OutputLen);
    C_DecryptDigestUpdate is DecryptDigestUpdate(Session, Plain, Plain, Output, OutputLen);
    C_SignEncryptUpdate is SignEncryptUpdate(Session, Plain, Plain, Output, OutputLen);
    C_DecryptVerifyUpdate is DecryptVerifyUpdate(Session, Plain, Plain, Output, OutputLen);
    C_GenerateKey is GenerateKey(Session, Mechanism, Plain, Plain, NewObject);
    C_GenerateKeyPair is GenerateKeyPair(Session, Mechanism, Plain, Plain, Plain, Plain, NewObject, NewObject);
    C_WrapKey is WrapKey(Session, Mechanism, WrappingKey, Key, Output, OutputLen);
    C_UnwrapKey is UnwrapKey(Session, Mechanism, UnwrappingKey, Plain, Plain, Plain, Plain, NewObject);
    C_DeriveKey is DeriveKey(Session, Mechanism, Key, Plain, Plain, NewObject);
    C_SeedRandom is SeedRandom(Session, Plain, Plain);
    C_GenerateRandom is GenerateRandom(Session, Fill, Count);
    C_GetFunctionStatus is GetFunctionStatus(Session);
    C_CancelFunction is CancelFunction(Session);
    C_WaitForSlotEvent is WaitForSlotEvent(Plain, Plain, Plain);
    C_GetInterfaceList is GetInterfaceList(Plain, Plain);
    C_GetInterface is GetInterface(Plain, Plain, Plain, Plain);
    C_LoginUser is LoginUser(Session, User, Plain, Plain, Plain, Plain);
    C_SessionCancel is SessionCancel(Session, Plain);
    C_MessageEncryptInit is MessageEncryptInit(Session, Mechanism, Key);
    C_EncryptMessage is EncryptMessage(Session, Plain, Plain, Plain, Plain, Plain, Plain, Output, OutputLen);
    C_EncryptMessageBegin is EncryptMessageBegin(Session, Plain, Plain, Plain, Plain);
    C_EncryptMessageNext is EncryptMessageNext(Session, Plain, Plain, Plain, Plain, Output, OutputLen, Plain);
    C_MessageEncryptFinal is MessageEncryptFinal(Session);
    C_MessageDecryptInit is MessageDecryptInit(Session, Mechanism, Key);
    C_DecryptMessage is DecryptMessage(Session, Plain, Plain, Plain, Plain, Plain, Plain, Output, OutputLen);
    C_DecryptMessageBegin is DecryptMessageBegin(Session, Plain, Plain, Plain, Plain);
    C_DecryptMessageNext is DecryptMessageNext(Session, Plain, Plain, Plain, Plain, Output, OutputLen, Plain);
    C_MessageDecryptFinal is MessageDecryptFinal(Session);
    C_MessageSignInit is MessageSignInit(Session, Mechanism, Key);
    C_SignMessage is SignMessage(Session, Plain, Plain, Plain, Plain, Output, OutputLen);
    C_SignMessageBegin is SignMessageBegin(Session, Plain, Plain);
    C_SignMessageNext is SignMessageNext(Session, Plain, Plain, Plain, Plain, Output, OutputLen);
    C_MessageSignFinal is MessageSignFinal(Session);
    C_MessageVerifyInit is MessageVerifyInit(Session, Mechanism, Key);
    C_VerifyMessage is VerifyMessage(Session, Plain, Plain, Plain, Plain, Plain, Plain);
    C_VerifyMessageBegin is VerifyMessageBegin(Session, Plain, Plain);
    C_VerifyMessageNext is VerifyMessageNext(Session, Plain, Plain, Plain, Plain, Plain, Plain);
    C_MessageVerifyFinal is MessageVerifyFinal(Session);
    C_EncapsulateKey is EncapsulateKey(Session, Mechanism, Key, Plain, Plain, Output, OutputLen, NewObject);
    C_DecapsulateKey is DecapsulateKey(Session, Mechanism, Key, Plain, Plain, Plain, Plain, NewObject);
    C_VerifySignatureInit is VerifySignatureInit(Session, Mechanism, Key, Plain, Plain);
    C_VerifySignature is VerifySignature(Session, Plain, Plain);
    C_VerifySignatureUpdate is VerifySignatureUpdate(Session, Plain, Plain);
    C_VerifySignatureFinal is VerifySignatureFinal(Session);
    C_GetSessionValidationFlags is GetSessionValidationFlags(Session, Plain, Plain);
    C_AsyncComplete is AsyncComplete(Session, Plain, Plain);
    C_AsyncGetID is AsyncGetId(Session, Plain, Plain);
    C_AsyncJoin is AsyncJoin(Session, Plain, Plain, Plain, Plain);
    C_WrapKeyAuthenticated is WrapKeyAuthenticated(Session, Mechanism, WrappingKey, Key, Plain, Plain, Output, OutputLen);
    C_UnwrapKeyAuthenticated is UnwrapKeyAuthenticated(Session, Mechanism, UnwrappingKey, Plain, Plain, Plain, Plain, Plain, Plain, NewObject);
}

const _: () = {
    let mut i = 0;
    while i < SHAPES.len() {
        assert!(SHAPES[i].0 as usize == i && Function::ALL[i] as usize == i);
        i += 1;
    }
};

/// What the function's arguments are.
pub(crate) fn roles(function: Function) -> &'static [Role] {
    SHAPES.get(function as usize).map_or(&[], |(_, roles)| roles)
}

/// The place of the first argument with this role.
pub(crate) fn place(function: Function, role: Role) -> Option<usize> {
    roles(function).iter().position(|r| *r == role)
}

/// Whether a function writes bytes of its own making.
pub fn has_output(function: Function) -> bool {
    roles(function).iter().any(|r| matches!(r, Role::Output | Role::Fill | Role::Attributes))
}

/// Whether a function tells a length or a count.
pub fn has_length(function: Function) -> bool {
    roles(function).iter().any(|r| matches!(r, Role::OutputLen | Role::FoundCount | Role::Attributes))
}

/// Whether a function may give a signature.
pub const fn signs(function: Function) -> bool {
    matches!(
        function,
        Function::Sign
            | Function::SignFinal
            | Function::SignRecover
            | Function::SignMessage
            | Function::SignMessageNext
    )
}

/// The kinds of operation that a session may have open, one of each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Operation {
    Encrypt,
    Decrypt,
    Digest,
    Sign,
    SignRecover,
    Verify,
    VerifyRecover,
    MessageEncrypt,
    MessageDecrypt,
    MessageSign,
    MessageVerify,
}

/// The operations that a call begins or goes on with.
pub(crate) fn operations(function: Function) -> &'static [Operation] {
    use Function as F;
    use Operation as O;
    match function {
        F::EncryptInit | F::Encrypt | F::EncryptUpdate | F::EncryptFinal => &[O::Encrypt],
        F::DecryptInit | F::Decrypt | F::DecryptUpdate | F::DecryptFinal => &[O::Decrypt],
        F::DigestInit | F::Digest | F::DigestUpdate | F::DigestKey | F::DigestFinal => &[O::Digest],
        F::SignInit | F::Sign | F::SignUpdate | F::SignFinal => &[O::Sign],
        F::SignRecoverInit | F::SignRecover => &[O::SignRecover],
        F::VerifyInit
        | F::Verify
        | F::VerifyUpdate
        | F::VerifyFinal
        | F::VerifySignatureInit
        | F::VerifySignature
        | F::VerifySignatureUpdate
        | F::VerifySignatureFinal => &[O::Verify],
        F::VerifyRecoverInit | F::VerifyRecover => &[O::VerifyRecover],
        F::DigestEncryptUpdate => &[O::Digest, O::Encrypt],
        F::DecryptDigestUpdate => &[O::Decrypt, O::Digest],
        F::SignEncryptUpdate => &[O::Sign, O::Encrypt],
        F::DecryptVerifyUpdate => &[O::Decrypt, O::Verify],
        F::MessageEncryptInit
        | F::EncryptMessage
        | F::EncryptMessageBegin
        | F::EncryptMessageNext
        | F::MessageEncryptFinal => &[O::MessageEncrypt],
        F::MessageDecryptInit
        | F::DecryptMessage
        | F::DecryptMessageBegin
        | F::DecryptMessageNext
        | F::MessageDecryptFinal => &[O::MessageDecrypt],
        F::MessageSignInit
        | F::SignMessage
        | F::SignMessageBegin
        | F::SignMessageNext
        | F::MessageSignFinal => &[O::MessageSign],
        F::MessageVerifyInit
        | F::VerifyMessage
        | F::VerifyMessageBegin
        | F::VerifyMessageNext
        | F::MessageVerifyFinal => &[O::MessageVerify],
        _ => &[],
    }
}

/// Whether a call begins an operation, rather than goes on with one.
pub(crate) fn begins(function: Function) -> bool {
    !operations(function).is_empty() && place(function, Role::Mechanism).is_some()
}
