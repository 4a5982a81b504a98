//! The function lists and interfaces, and the three functions that hand them out.

use std::ffi::CStr;
use std::ptr;

use cryptoki_sys::{
    CK_FLAGS, CK_FUNCTION_LIST, CK_FUNCTION_LIST_3_0, CK_FUNCTION_LIST_3_2, CK_INTERFACE, CK_RV, CK_ULONG,
    CK_UTF8CHAR, CK_VERSION,
};
use ha_token::{Function, Rv};

use crate::caller::Caller;
use crate::guard::contained;
use crate::{crypto, general, keys, messages, objects, sessions, signatures};

/// The one name of interface there is.
const NAME: &CStr = c"PKCS 11";

/// Makes the three lists from one, which names each function with its module: a structure cannot leave a field out,
/// so none can miss a function.
macro_rules! lists {
    (
        2.40 { $($old:ident in $old_module:tt;)* }
        3.0 { $($mid:ident in $mid_module:tt;)* }
        3.2 { $($new:ident in $new_module:tt;)* }
    ) => {
        /// Version 2.40: what `C_GetFunctionList` answers.
        static LIST_2_40: CK_FUNCTION_LIST = CK_FUNCTION_LIST {
            version: CK_VERSION { major: 2, minor: 40 },
            $($old: Some($old_module::$old),)*
        };

        /// Version 3.0.
        static LIST_3_0: CK_FUNCTION_LIST_3_0 = CK_FUNCTION_LIST_3_0 {
            version: CK_VERSION { major: 3, minor: 0 },
            $($old: Some($old_module::$old),)*
            $($mid: Some($mid_module::$mid),)*
        };

        /// Version 3.2.
        static LIST_3_2: CK_FUNCTION_LIST_3_2 = CK_FUNCTION_LIST_3_2 {
            version: CK_VERSION { major: 3, minor: 2 },
            $($old: Some($old_module::$old),)*
            $($mid: Some($mid_module::$mid),)*
            $($new: Some($new_module::$new),)*
        };
    };
}

lists! {
    2.40 {
        C_Initialize in general;
        C_Finalize in general;
        C_GetInfo in general;
        C_GetFunctionList in self;
        C_GetSlotList in general;
        C_GetSlotInfo in general;
        C_GetTokenInfo in general;
        C_GetMechanismList in general;
        C_GetMechanismInfo in general;
        C_InitToken in general;
        C_InitPIN in sessions;
        C_SetPIN in sessions;
        C_OpenSession in sessions;
        C_CloseSession in sessions;
        C_CloseAllSessions in general;
        C_GetSessionInfo in sessions;
        C_GetOperationState in sessions;
        C_SetOperationState in sessions;
        C_Login in sessions;
        C_Logout in sessions;
        C_CreateObject in objects;
        C_CopyObject in objects;
        C_DestroyObject in objects;
        C_GetObjectSize in objects;
        C_GetAttributeValue in objects;
        C_SetAttributeValue in objects;
        C_FindObjectsInit in objects;
        C_FindObjects in objects;
        C_FindObjectsFinal in objects;
        C_EncryptInit in crypto;
        C_Encrypt in crypto;
        C_EncryptUpdate in crypto;
        C_EncryptFinal in crypto;
        C_DecryptInit in crypto;
        C_Decrypt in crypto;
        C_DecryptUpdate in crypto;
        C_DecryptFinal in crypto;
        C_DigestInit in crypto;
        C_Digest in crypto;
        C_DigestUpdate in crypto;
        C_DigestKey in crypto;
        C_DigestFinal in crypto;
        C_SignInit in signatures;
        C_Sign in signatures;
        C_SignUpdate in signatures;
        C_SignFinal in signatures;
        C_SignRecoverInit in signatures;
        C_SignRecover in signatures;
        C_VerifyInit in signatures;
        C_Verify in signatures;
        C_VerifyUpdate in signatures;
        C_VerifyFinal in signatures;
        C_VerifyRecoverInit in signatures;
        C_VerifyRecover in signatures;
        C_DigestEncryptUpdate in crypto;
        C_DecryptDigestUpdate in crypto;
        C_SignEncryptUpdate in crypto;
        C_DecryptVerifyUpdate in crypto;
        C_GenerateKey in keys;
        C_GenerateKeyPair in keys;
        C_WrapKey in keys;
        C_UnwrapKey in keys;
        C_DeriveKey in keys;
        C_SeedRandom in crypto;
        C_GenerateRandom in crypto;
        C_GetFunctionStatus in general;
        C_CancelFunction in general;
        C_WaitForSlotEvent in general;
    }
    3.0 {
        C_GetInterfaceList in self;
        C_GetInterface in self;
        C_LoginUser in sessions;
        C_SessionCancel in sessions;
        C_MessageEncryptInit in messages;
        C_EncryptMessage in messages;
        C_EncryptMessageBegin in messages;
        C_EncryptMessageNext in messages;
        C_MessageEncryptFinal in messages;
        C_MessageDecryptInit in messages;
        C_DecryptMessage in messages;
        C_DecryptMessageBegin in messages;
        C_DecryptMessageNext in messages;
        C_MessageDecryptFinal in messages;
        C_MessageSignInit in messages;
        C_SignMessage in messages;
        C_SignMessageBegin in messages;
        C_SignMessageNext in messages;
        C_MessageSignFinal in messages;
        C_MessageVerifyInit in messages;
        C_VerifyMessage in messages;
        C_VerifyMessageBegin in messages;
        C_VerifyMessageNext in messages;
        C_MessageVerifyFinal in messages;
    }
    3.2 {
        C_EncapsulateKey in keys;
        C_DecapsulateKey in keys;
        C_VerifySignatureInit in signatures;
        C_VerifySignature in signatures;
        C_VerifySignatureUpdate in signatures;
        C_VerifySignatureFinal in signatures;
        C_GetSessionValidationFlags in sessions;
        C_AsyncComplete in sessions;
        C_AsyncGetID in sessions;
        C_AsyncJoin in sessions;
        C_WrapKeyAuthenticated in keys;
        C_UnwrapKeyAuthenticated in keys;
    }
}

/// The interfaces, newest first.
struct Interfaces([CK_INTERFACE; 3]);

// SAFETY: the pointers are to immutable statics, which every thread may read.
unsafe impl Sync for Interfaces {}

static INTERFACES: Interfaces = Interfaces([
    interface(ptr::from_ref(&LIST_3_2).cast_mut().cast()),
    interface(ptr::from_ref(&LIST_3_0).cast_mut().cast()),
    interface(ptr::from_ref(&LIST_2_40).cast_mut().cast()),
]);

/// The versions of [`INTERFACES`], in its order.
static VERSIONS: [CK_VERSION; 3] = [LIST_3_2.version, LIST_3_0.version, LIST_2_40.version];

const fn interface(list: *mut std::ffi::c_void) -> CK_INTERFACE {
    CK_INTERFACE { pInterfaceName: NAME.as_ptr().cast_mut().cast(), pFunctionList: list, flags: 0 }
}

/// `C_GetFunctionList`: the list of version 2.40, which is all that its type can hold. Works before `C_Initialize`.
///
/// # Safety
/// `list` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    contained(Function::GetFunctionList, |_| {
        // SAFETY: this function's own condition.
        let caller = unsafe { Caller::trusted() };
        caller.place(list)?.put(ptr::from_ref(&LIST_2_40).cast_mut());
        Ok(())
    })
}

/// `C_GetInterfaceList`: every interface, the newest first. Works before `C_Initialize`.
///
/// # Safety
/// `count` is NULL, or readable and writable; `list` is NULL, or writable for as many interfaces as `count` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetInterfaceList(list: *mut CK_INTERFACE, count: *mut CK_ULONG) -> CK_RV {
    contained(Function::GetInterfaceList, |_| {
        // SAFETY: this function's own condition.
        let caller = unsafe { Caller::trusted() };
        caller.list(&INTERFACES.0, list, count)
    })
}

/// `C_GetInterface`: the newest interface of this name, version and flags; what is NULL does not matter. Works before
/// `C_Initialize`.
///
/// # Safety
/// `name` is NULL or ends with a NUL; `version` is NULL or readable; `found` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetInterface(
    name: *mut CK_UTF8CHAR,
    version: *mut CK_VERSION,
    found: *mut *mut CK_INTERFACE,
    flags: CK_FLAGS,
) -> CK_RV {
    contained(Function::GetInterface, |_| {
        // SAFETY: this function's own condition.
        let caller = unsafe { Caller::trusted() };
        let place = caller.place(found)?;
        if !name.is_null() && !caller.is_text(name, NAME) {
            return Err(Rv::ARGUMENTS_BAD);
        }
        let wanted = caller.value(version);
        let mut interfaces = INTERFACES.0.iter().zip(&VERSIONS);
        let suits = |interface: &CK_INTERFACE, is: &CK_VERSION| {
            wanted.is_none_or(|v| (v.major, v.minor) == (is.major, is.minor))
                && interface.flags & flags == flags
        };
        let (interface, _) = interfaces.find(|(i, v)| suits(i, v)).ok_or(Rv::ARGUMENTS_BAD)?;
        place.put(ptr::from_ref(interface).cast_mut());
        Ok(())
    })
}
