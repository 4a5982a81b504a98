//! The three lists and the interfaces, as an application negotiates them; and every function before `C_Initialize` and
//! with nothing but zeros.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::CStr;
use std::ptr::null_mut;

use common::{fixture, list, turn};
use cryptoki_sys::*;
use ha_token::{Function, Rv};

/// Calls a function with zeros only.
type Zeros = fn(&CK_FUNCTION_LIST_3_2) -> CK_RV;

/// A zero of any argument's type.
fn z<T>() -> T {
    // SAFETY: used for the interface's arguments only, each of which is a number, a pointer or an optional function.
    unsafe { std::mem::zeroed() }
}

macro_rules! table {
    ($($name:ident($($zero:ident),*),)*) => {
        /// Every function of the newest list.
        const TABLE: &[(&str, Zeros)] = &[$((stringify!($name), |list| {
            let function = list.$name.unwrap();
            // SAFETY: NULL and zero are what the library promises to survive.
            unsafe { function($($zero()),*) }
        }),)*];
    };
}

table! {
    C_Initialize(z),
    C_Finalize(z),
    C_GetInfo(z),
    C_GetFunctionList(z),
    C_GetSlotList(z, z, z),
    C_GetSlotInfo(z, z),
    C_GetTokenInfo(z, z),
    C_GetMechanismList(z, z, z),
    C_GetMechanismInfo(z, z, z),
    C_InitToken(z, z, z, z),
    C_InitPIN(z, z, z),
    C_SetPIN(z, z, z, z, z),
    C_OpenSession(z, z, z, z, z),
    C_CloseSession(z),
    C_CloseAllSessions(z),
    C_GetSessionInfo(z, z),
    C_GetOperationState(z, z, z),
    C_SetOperationState(z, z, z, z, z),
    C_Login(z, z, z, z),
    C_Logout(z),
    C_CreateObject(z, z, z, z),
    C_CopyObject(z, z, z, z, z),
    C_DestroyObject(z, z),
    C_GetObjectSize(z, z, z),
    C_GetAttributeValue(z, z, z, z),
    C_SetAttributeValue(z, z, z, z),
    C_FindObjectsInit(z, z, z),
    C_FindObjects(z, z, z, z),
    C_FindObjectsFinal(z),
    C_EncryptInit(z, z, z),
    C_Encrypt(z, z, z, z, z),
    C_EncryptUpdate(z, z, z, z, z),
    C_EncryptFinal(z, z, z),
    C_DecryptInit(z, z, z),
    C_Decrypt(z, z, z, z, z),
    C_DecryptUpdate(z, z, z, z, z),
    C_DecryptFinal(z, z, z),
    C_DigestInit(z, z),
    C_Digest(z, z, z, z, z),
    C_DigestUpdate(z, z, z),
    C_DigestKey(z, z),
    C_DigestFinal(z, z, z),
    C_SignInit(z, z, z),
    C_Sign(z, z, z, z, z),
    C_SignUpdate(z, z, z),
    C_SignFinal(z, z, z),
    C_SignRecoverInit(z, z, z),
    C_SignRecover(z, z, z, z, z),
    C_VerifyInit(z, z, z),
    C_Verify(z, z, z, z, z),
    C_VerifyUpdate(z, z, z),
    C_VerifyFinal(z, z, z),
    C_VerifyRecoverInit(z, z, z),
    C_VerifyRecover(z, z, z, z, z),
    C_DigestEncryptUpdate(z, z, z, z, z),
    C_DecryptDigestUpdate(z, z, z, z, z),
    C_SignEncryptUpdate(z, z, z, z, z),
    C_DecryptVerifyUpdate(z, z, z, z, z),
    C_GenerateKey(z, z, z, z, z),
    C_GenerateKeyPair(z, z, z, z, z, z, z, z),
    C_WrapKey(z, z, z, z, z, z),
    C_UnwrapKey(z, z, z, z, z, z, z, z),
    C_DeriveKey(z, z, z, z, z, z),
    C_SeedRandom(z, z, z),
    C_GenerateRandom(z, z, z),
    C_GetFunctionStatus(z),
    C_CancelFunction(z),
    C_WaitForSlotEvent(z, z, z),
    C_GetInterfaceList(z, z),
    C_GetInterface(z, z, z, z),
    C_LoginUser(z, z, z, z, z, z),
    C_SessionCancel(z, z),
    C_MessageEncryptInit(z, z, z),
    C_EncryptMessage(z, z, z, z, z, z, z, z, z),
    C_EncryptMessageBegin(z, z, z, z, z),
    C_EncryptMessageNext(z, z, z, z, z, z, z, z),
    C_MessageEncryptFinal(z),
    C_MessageDecryptInit(z, z, z),
    C_DecryptMessage(z, z, z, z, z, z, z, z, z),
    C_DecryptMessageBegin(z, z, z, z, z),
    C_DecryptMessageNext(z, z, z, z, z, z, z, z),
    C_MessageDecryptFinal(z),
    C_MessageSignInit(z, z, z),
    C_SignMessage(z, z, z, z, z, z, z),
    C_SignMessageBegin(z, z, z),
    C_SignMessageNext(z, z, z, z, z, z, z),
    C_MessageSignFinal(z),
    C_MessageVerifyInit(z, z, z),
    C_VerifyMessage(z, z, z, z, z, z, z),
    C_VerifyMessageBegin(z, z, z),
    C_VerifyMessageNext(z, z, z, z, z, z, z),
    C_MessageVerifyFinal(z),
    C_EncapsulateKey(z, z, z, z, z, z, z, z),
    C_DecapsulateKey(z, z, z, z, z, z, z, z),
    C_VerifySignatureInit(z, z, z, z, z),
    C_VerifySignature(z, z, z),
    C_VerifySignatureUpdate(z, z, z),
    C_VerifySignatureFinal(z),
    C_GetSessionValidationFlags(z, z, z),
    C_AsyncComplete(z, z, z),
    C_AsyncGetID(z, z, z),
    C_AsyncJoin(z, z, z, z, z),
    C_WrapKeyAuthenticated(z, z, z, z, z, z, z, z),
    C_UnwrapKeyAuthenticated(z, z, z, z, z, z, z, z, z, z),
}

/// The functions that work without `C_Initialize`.
const ALWAYS: [&str; 4] = ["C_Initialize", "C_GetFunctionList", "C_GetInterfaceList", "C_GetInterface"];

#[test]
fn the_table_of_these_tests_has_every_function() {
    let names: Vec<&str> = TABLE.iter().map(|row| row.0).collect();
    let all: Vec<&str> = Function::ALL.iter().map(|f| f.name()).collect();
    assert_eq!(names, all);
}

#[test]
fn the_documentation_has_one_row_for_every_function() {
    let text = include_str!("../../docs/functions.md");
    let rows: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .collect();
    let all: Vec<&str> = Function::ALL.iter().map(|f| f.name()).collect();
    assert_eq!(rows, all);
}

#[test]
fn before_initialize_every_function_says_so_and_looks_at_no_pointer() {
    let _turn = turn();
    for (name, call) in TABLE {
        if !ALWAYS.contains(name) {
            assert_eq!(Rv(call(list())), Rv::CRYPTOKI_NOT_INITIALIZED, "{name}");
        }
    }
}

#[test]
fn zeros_crash_nothing_and_succeed_only_where_there_is_nothing_to_refuse() {
    let _fixture = fixture();
    for (name, call) in TABLE {
        if matches!(*name, "C_Initialize" | "C_Finalize") {
            continue;
        }
        let rv = Rv(call(list()));
        let expected: &[Rv] = match *name {
            "C_GetFunctionStatus" | "C_CancelFunction" => &[Rv::FUNCTION_NOT_PARALLEL],
            "C_CloseAllSessions" => &[Rv(CKR_OK)],
            // A NULL that means something gets as far as session 0, which is not open.
            _ => &[Rv::ARGUMENTS_BAD, Rv::SESSION_HANDLE_INVALID],
        };
        assert!(expected.contains(&rv), "{name} answered {rv}");
    }
}

#[test]
fn the_oldest_list_is_the_start_of_the_newest() {
    let mut oldest: *mut CK_FUNCTION_LIST = null_mut();
    // SAFETY: a place for the list.
    let rv = unsafe { ha_module::C_GetFunctionList(&raw mut oldest) };
    assert_eq!(rv, CKR_OK);
    // SAFETY: a static of the library.
    let oldest = unsafe { &*oldest };
    assert_eq!((oldest.version.major, oldest.version.minor), (2, 40));
    let mut name = c"PKCS 11".to_bytes_with_nul().to_vec();
    let mut version = CK_VERSION { major: 2, minor: 40 };
    let mut found: *mut CK_INTERFACE = null_mut();
    // SAFETY: everything is there.
    let rv = unsafe { ha_module::C_GetInterface(name.as_mut_ptr(), &raw mut version, &raw mut found, 0) };
    assert_eq!(rv, CKR_OK);
    // SAFETY: a static of the library.
    assert!(std::ptr::eq(unsafe { (*found).pFunctionList }.cast(), oldest));
    // SAFETY: NULL is what is checked.
    let rv = unsafe { ha_module::C_GetFunctionList(null_mut()) };
    assert_eq!(rv, CKR_ARGUMENTS_BAD);
}

/// Asks for an interface and answers the version of its list.
fn ask(name: Option<&CStr>, version: Option<(u8, u8)>, flags: CK_FLAGS) -> Result<(u8, u8), Rv> {
    let mut version = version.map(|(major, minor)| CK_VERSION { major, minor });
    let mut found: *mut CK_INTERFACE = null_mut();
    // SAFETY: what is not NULL is there.
    let rv = unsafe {
        ha_module::C_GetInterface(
            name.map_or(null_mut(), |n| n.as_ptr().cast_mut().cast()),
            version.as_mut().map_or(null_mut(), |v| &raw mut *v),
            &raw mut found,
            flags,
        )
    };
    Rv::check(rv)?;
    // SAFETY: a static of the library.
    let interface = unsafe { *found };
    // SAFETY: the name ends with a NUL.
    let name = unsafe { CStr::from_ptr(interface.pInterfaceName.cast()) };
    assert_eq!(name, c"PKCS 11");
    // SAFETY: every list begins with its version.
    let version = unsafe { *interface.pFunctionList.cast::<CK_VERSION>() };
    Ok((version.major, version.minor))
}

#[test]
fn interfaces_are_found_by_name_version_and_flags() {
    assert_eq!(ask(None, None, 0), Ok((3, 2)));
    assert_eq!(ask(Some(c"PKCS 11"), None, 0), Ok((3, 2)));
    for version in [(3, 2), (3, 0), (2, 40)] {
        assert_eq!(ask(None, Some(version), 0), Ok(version));
        assert_eq!(ask(Some(c"PKCS 11"), Some(version), 0), Ok(version));
    }
    for version in [(3, 1), (2, 20), (0, 0), (255, 255)] {
        assert_eq!(ask(None, Some(version), 0), Err(Rv::ARGUMENTS_BAD), "{version:?}");
    }
    for name in [c"", c"PKCS 1", c"PKCS 111", c"pkcs 11", c"Vendor NSS Module Interface"] {
        assert_eq!(ask(Some(name), None, 0), Err(Rv::ARGUMENTS_BAD), "{name:?}");
    }
    assert_eq!(ask(None, None, CKF_INTERFACE_FORK_SAFE), Err(Rv::ARGUMENTS_BAD));
    // SAFETY: NULL is what is checked.
    let rv = unsafe { ha_module::C_GetInterface(null_mut(), null_mut(), null_mut(), 0) };
    assert_eq!(rv, CKR_ARGUMENTS_BAD);
}

#[test]
fn the_list_of_interfaces_follows_the_convention() {
    let mut count = 99;
    // SAFETY: a count without a list.
    let rv = unsafe { ha_module::C_GetInterfaceList(null_mut(), &raw mut count) };
    assert_eq!((rv, count), (CKR_OK, 3));
    let mut interfaces = [z::<CK_INTERFACE>(); 4];
    count = 2;
    // SAFETY: more space than is claimed.
    let rv = unsafe { ha_module::C_GetInterfaceList(interfaces.as_mut_ptr(), &raw mut count) };
    assert_eq!((rv, count), (CKR_BUFFER_TOO_SMALL, 3));
    assert!(interfaces[0].pFunctionList.is_null());
    count = 4;
    // SAFETY: four places.
    let rv = unsafe { ha_module::C_GetInterfaceList(interfaces.as_mut_ptr(), &raw mut count) };
    assert_eq!((rv, count), (CKR_OK, 3));
    assert!(interfaces[3].pFunctionList.is_null());
    // SAFETY: each list begins with its version.
    let versions = [0, 1, 2].map(|i| unsafe { *interfaces[i].pFunctionList.cast::<CK_VERSION>() });
    assert_eq!(versions.map(|v| (v.major, v.minor)), [(3, 2), (3, 0), (2, 40)]);
}
