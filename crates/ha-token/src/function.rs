//! The names of the standard's functions.

use std::fmt;

macro_rules! functions {
    ($($name:ident = $c:literal,)*) => {
        /// A function of PKCS#11 v3.2's function list. Faults, log events and statistics name it.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        #[allow(missing_docs)] // each is the standard's function of the same name
        pub enum Function {
            $($name,)*
        }

        impl Function {
            /// Every function, in the order of the standard's list.
            pub const ALL: &'static [Function] = &[$(Function::$name,)*];

            /// The C name, for example `C_SignInit`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Function::$name => $c,)*
                }
            }
        }
    };
}

functions! {
    Initialize = "C_Initialize",
    Finalize = "C_Finalize",
    GetInfo = "C_GetInfo",
    GetFunctionList = "C_GetFunctionList",
    GetSlotList = "C_GetSlotList",
    GetSlotInfo = "C_GetSlotInfo",
    GetTokenInfo = "C_GetTokenInfo",
    GetMechanismList = "C_GetMechanismList",
    GetMechanismInfo = "C_GetMechanismInfo",
    InitToken = "C_InitToken",
    InitPin = "C_InitPIN",
    SetPin = "C_SetPIN",
    OpenSession = "C_OpenSession",
    CloseSession = "C_CloseSession",
    CloseAllSessions = "C_CloseAllSessions",
    GetSessionInfo = "C_GetSessionInfo",
    GetOperationState = "C_GetOperationState",
    SetOperationState = "C_SetOperationState",
    Login = "C_Login",
    Logout = "C_Logout",
    CreateObject = "C_CreateObject",
    CopyObject = "C_CopyObject",
    DestroyObject = "C_DestroyObject",
    GetObjectSize = "C_GetObjectSize",
    GetAttributeValue = "C_GetAttributeValue",
    SetAttributeValue = "C_SetAttributeValue",
    FindObjectsInit = "C_FindObjectsInit",
    FindObjects = "C_FindObjects",
    FindObjectsFinal = "C_FindObjectsFinal",
    EncryptInit = "C_EncryptInit",
    Encrypt = "C_Encrypt",
    EncryptUpdate = "C_EncryptUpdate",
    EncryptFinal = "C_EncryptFinal",
    DecryptInit = "C_DecryptInit",
    Decrypt = "C_Decrypt",
    DecryptUpdate = "C_DecryptUpdate",
    DecryptFinal = "C_DecryptFinal",
    DigestInit = "C_DigestInit",
    Digest = "C_Digest",
    DigestUpdate = "C_DigestUpdate",
    DigestKey = "C_DigestKey",
    DigestFinal = "C_DigestFinal",
    SignInit = "C_SignInit",
    Sign = "C_Sign",
    SignUpdate = "C_SignUpdate",
    SignFinal = "C_SignFinal",
    SignRecoverInit = "C_SignRecoverInit",
    SignRecover = "C_SignRecover",
    VerifyInit = "C_VerifyInit",
    Verify = "C_Verify",
    VerifyUpdate = "C_VerifyUpdate",
    VerifyFinal = "C_VerifyFinal",
    VerifyRecoverInit = "C_VerifyRecoverInit",
    VerifyRecover = "C_VerifyRecover",
    DigestEncryptUpdate = "C_DigestEncryptUpdate",
    DecryptDigestUpdate = "C_DecryptDigestUpdate",
    SignEncryptUpdate = "C_SignEncryptUpdate",
    DecryptVerifyUpdate = "C_DecryptVerifyUpdate",
    GenerateKey = "C_GenerateKey",
    GenerateKeyPair = "C_GenerateKeyPair",
    WrapKey = "C_WrapKey",
    UnwrapKey = "C_UnwrapKey",
    DeriveKey = "C_DeriveKey",
    SeedRandom = "C_SeedRandom",
    GenerateRandom = "C_GenerateRandom",
    GetFunctionStatus = "C_GetFunctionStatus",
    CancelFunction = "C_CancelFunction",
    WaitForSlotEvent = "C_WaitForSlotEvent",
    GetInterfaceList = "C_GetInterfaceList",
    GetInterface = "C_GetInterface",
    LoginUser = "C_LoginUser",
    SessionCancel = "C_SessionCancel",
    MessageEncryptInit = "C_MessageEncryptInit",
    EncryptMessage = "C_EncryptMessage",
    EncryptMessageBegin = "C_EncryptMessageBegin",
    EncryptMessageNext = "C_EncryptMessageNext",
    MessageEncryptFinal = "C_MessageEncryptFinal",
    MessageDecryptInit = "C_MessageDecryptInit",
    DecryptMessage = "C_DecryptMessage",
    DecryptMessageBegin = "C_DecryptMessageBegin",
    DecryptMessageNext = "C_DecryptMessageNext",
    MessageDecryptFinal = "C_MessageDecryptFinal",
    MessageSignInit = "C_MessageSignInit",
    SignMessage = "C_SignMessage",
    SignMessageBegin = "C_SignMessageBegin",
    SignMessageNext = "C_SignMessageNext",
    MessageSignFinal = "C_MessageSignFinal",
    MessageVerifyInit = "C_MessageVerifyInit",
    VerifyMessage = "C_VerifyMessage",
    VerifyMessageBegin = "C_VerifyMessageBegin",
    VerifyMessageNext = "C_VerifyMessageNext",
    MessageVerifyFinal = "C_MessageVerifyFinal",
    EncapsulateKey = "C_EncapsulateKey",
    DecapsulateKey = "C_DecapsulateKey",
    VerifySignatureInit = "C_VerifySignatureInit",
    VerifySignature = "C_VerifySignature",
    VerifySignatureUpdate = "C_VerifySignatureUpdate",
    VerifySignatureFinal = "C_VerifySignatureFinal",
    GetSessionValidationFlags = "C_GetSessionValidationFlags",
    AsyncComplete = "C_AsyncComplete",
    AsyncGetId = "C_AsyncGetID",
    AsyncJoin = "C_AsyncJoin",
    WrapKeyAuthenticated = "C_WrapKeyAuthenticated",
    UnwrapKeyAuthenticated = "C_UnwrapKeyAuthenticated",
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
