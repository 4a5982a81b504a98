//! Every function reaches the token's right method with what the application gave, and its answer comes back by the
//! standard's conventions.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::c_void;
use std::ptr::null_mut;

use common::{OUTPUT, call, fixture, plain, recorder};
use cryptoki_sys::*;
use ha_token::{Result, Rv};

/// The bytes as the interface wants them: it takes pointers to `mut` also for what it only reads.
fn p(bytes: &[u8]) -> *mut u8 {
    bytes.as_ptr().cast_mut()
}

const N: CK_ULONG = OUTPUT.len() as CK_ULONG;
const DATA: &[u8] = b"abcde";
const LEN: CK_ULONG = DATA.len() as CK_ULONG;

/// Walks a function through the output convention: length only, one byte short, exact, no place for the length.
#[track_caller]
fn convention(mut call: impl FnMut(*mut u8, *mut CK_ULONG) -> Result<()>) {
    let mut len = 99;
    assert_eq!(call(null_mut(), &raw mut len), Ok(()));
    assert_eq!(len, N, "a size query");
    let mut buffer = [0u8; 32];
    len = N - 1;
    assert_eq!(call(buffer.as_mut_ptr(), &raw mut len), Err(Rv::BUFFER_TOO_SMALL));
    assert_eq!((len, buffer), (N, [0u8; 32]), "one byte short");
    assert_eq!(call(buffer.as_mut_ptr(), &raw mut len), Ok(()));
    assert_eq!((len, &buffer[..OUTPUT.len()]), (N, OUTPUT), "exact");
    assert_eq!(call(buffer.as_mut_ptr(), null_mut()), Err(Rv::ARGUMENTS_BAD));
    len = CK_ULONG::MAX;
    assert_eq!(call(buffer.as_mut_ptr(), &raw mut len), Err(Rv::ARGUMENTS_BAD));
    assert_eq!(len, CK_ULONG::MAX, "left alone by an error");
}

macro_rules! inits {
    ($f:expr, $($name:ident $kind:literal),*) => {$(
        let mut mechanism = plain(CKM_ECDSA);
        call!($name($f.session, &raw mut mechanism, 7)).unwrap();
        $f.saw(&format!("op_init {} Some({CKM_ECDSA}) 7", $kind));
        call!($name($f.session, null_mut(), 7)).unwrap();
        $f.saw(&format!("op_init {} None 7", $kind));
    )*};
}

macro_rules! outputs {
    ($f:expr, $($name:ident $call:literal),*) => {$(
        convention(|buffer, len| call!($name($f.session, p(DATA), LEN, buffer, len)));
        assert_eq!($f.token.calls(), [format!("{} 5", $call), format!("{} 5", $call), format!("{} 5", $call)]);
    )*};
}

macro_rules! finals {
    ($f:expr, $($name:ident $kind:literal),*) => {$(
        convention(|buffer, len| call!($name($f.session, buffer, len)));
        assert_eq!($f.token.calls(), [format!("op_final {}", $kind), format!("op_final {}", $kind), format!("op_final {}", $kind)]);
    )*};
}

macro_rules! feeds {
    ($f:expr, $($name:ident $kind:literal),*) => {$(
        call!($name($f.session, p(DATA), LEN)).unwrap();
        $f.saw(&format!("op_update {} 5", $kind));
        call!($name($f.session, null_mut(), 0)).unwrap();
        $f.saw(&format!("op_update {} 0", $kind));
        assert_eq!(call!($name($f.session, null_mut(), 1)), Err(Rv::ARGUMENTS_BAD));
    )*};
}

#[test]
fn operations_reach_their_kind() {
    let f = fixture();
    inits!(
        f, C_EncryptInit "Encrypt", C_DecryptInit "Decrypt", C_SignInit "Sign",
        C_SignRecoverInit "SignRecover", C_VerifyInit "Verify", C_VerifyRecoverInit "VerifyRecover"
    );
    let mut mechanism = plain(CKM_SHA256);
    call!(C_DigestInit(f.session, &raw mut mechanism)).unwrap();
    f.saw(&format!("op_init Digest Some({CKM_SHA256}) 0"));
    call!(C_DigestInit(f.session, null_mut())).unwrap();
    f.saw("op_init Digest None 0");
    outputs!(
        f, C_Encrypt "op_one_shot Encrypt", C_Digest "op_one_shot Digest", C_Sign "op_one_shot Sign",
        C_SignRecover "op_one_shot SignRecover", C_VerifyRecover "op_one_shot VerifyRecover",
        C_EncryptUpdate "op_update Encrypt", C_DecryptUpdate "op_update Decrypt",
        C_DigestEncryptUpdate "combined_update DigestEncrypt", C_DecryptDigestUpdate "combined_update DecryptDigest",
        C_SignEncryptUpdate "combined_update SignEncrypt", C_DecryptVerifyUpdate "combined_update DecryptVerify"
    );
    finals!(f, C_EncryptFinal "Encrypt", C_DecryptFinal "Decrypt", C_DigestFinal "Digest", C_SignFinal "Sign");
    feeds!(
        f, C_DigestUpdate "Digest", C_SignUpdate "Sign", C_VerifyUpdate "Verify",
        C_VerifySignatureUpdate "VerifySignature"
    );
    call!(C_DigestKey(f.session, 8)).unwrap();
    f.saw("digest_key 8");
}

#[test]
fn verification_takes_the_signature_where_the_standard_says() {
    let f = fixture();
    call!(C_Verify(f.session, p(DATA), LEN, p(OUTPUT), N)).unwrap();
    f.saw("verify 5 12");
    assert_eq!(call!(C_Verify(f.session, p(DATA), LEN, p(DATA), LEN)), Err(Rv::SIGNATURE_INVALID));
    f.saw("verify 5 5");
    call!(C_VerifyFinal(f.session, p(OUTPUT), N)).unwrap();
    f.saw("verify_final 12");
    let mut mechanism = plain(CKM_ECDSA);
    call!(C_VerifySignatureInit(f.session, &raw mut mechanism, 3, p(OUTPUT), N)).unwrap();
    f.saw(&format!("verify_signature_init Some({CKM_ECDSA}) 3 12"));
    call!(C_VerifySignatureInit(f.session, null_mut(), 3, null_mut(), 0)).unwrap();
    f.saw("verify_signature_init None 3 0");
    call!(C_VerifySignature(f.session, p(DATA), LEN)).unwrap();
    f.saw("verify_signature 5");
    call!(C_VerifySignatureFinal(f.session)).unwrap();
    f.saw("verify_signature_final");
}

#[test]
fn input_and_output_may_be_the_same_memory() {
    let f = fixture();
    let mut place = *b"abcdefgh........";
    let mut len = 8;
    call!(C_Decrypt(f.session, place.as_mut_ptr(), 8, place.as_mut_ptr(), &raw mut len)).unwrap();
    assert_eq!((len, &place), (8, b"hgfedcba........"));
    // The output one byte further.
    let next = place.as_mut_ptr().wrapping_add(1);
    call!(C_Decrypt(f.session, place.as_mut_ptr(), 8, next, &raw mut len)).unwrap();
    assert_eq!(&place, b"habcdefgh.......");
}

#[test]
fn a_parameter_is_written_only_if_the_token_changed_it() {
    let f = fixture();
    let mut iv = [0u8; 16];
    let mut mechanism =
        CK_MECHANISM { mechanism: CKM_AES_CBC, pParameter: iv.as_mut_ptr().cast(), ulParameterLen: 16 };
    call!(C_EncryptInit(f.session, &raw mut mechanism, 7)).unwrap();
    assert_eq!(iv, [0xA5; 16]);
    // In memory that cannot be written: the same bytes once more.
    static READ_ONLY: [u8; 16] = [0xA5; 16];
    mechanism.pParameter = (&raw const READ_ONLY).cast_mut().cast();
    call!(C_EncryptInit(f.session, &raw mut mechanism, 7)).unwrap();
}

#[test]
fn messages_carry_parameter_associated_data_and_the_end() {
    let f = fixture();
    macro_rules! frame {
        ($($init:ident $last:ident $kind:literal),*) => {$(
            let mut mechanism = plain(CKM_AES_ECB);
            call!($init(f.session, &raw mut mechanism, 7)).unwrap();
            f.saw(&format!("message_init {} Some({CKM_AES_ECB}) 7", $kind));
            call!($init(f.session, null_mut(), 0)).unwrap();
            f.saw(&format!("message_init {} None 0", $kind));
            call!($last(f.session)).unwrap();
            f.saw(&format!("message_final {}", $kind));
        )*};
    }
    frame!(
        C_MessageEncryptInit C_MessageEncryptFinal "Encrypt", C_MessageDecryptInit C_MessageDecryptFinal "Decrypt",
        C_MessageSignInit C_MessageSignFinal "Sign", C_MessageVerifyInit C_MessageVerifyFinal "Verify"
    );
    let none: *mut c_void = null_mut();
    let aad = b"AAD";
    macro_rules! cipher {
        ($($one:ident $begin:ident $next:ident $kind:literal),*) => {$(
            convention(|b, len| call!($one(f.session, none, 0, p(aad), 3, p(DATA), LEN, b, len)));
            assert_eq!(f.token.calls()[1], format!("message_one_shot {} 3 5", $kind));
            call!($begin(f.session, none, 0, p(aad), 3)).unwrap();
            assert_eq!(f.token.calls()[1], format!("message_begin {} 3", $kind));
            for (flags, last) in [(0, false), (CKF_END_OF_MESSAGE, true)] {
                convention(|b, len| call!($next(f.session, none, 0, p(DATA), LEN, b, len, flags)));
                assert_eq!(f.token.calls()[1], format!("message_next {} 5 {last}", $kind));
            }
        )*};
    }
    cipher!(
        C_EncryptMessage C_EncryptMessageBegin C_EncryptMessageNext "Encrypt",
        C_DecryptMessage C_DecryptMessageBegin C_DecryptMessageNext "Decrypt"
    );
    convention(|b, len| call!(C_SignMessage(f.session, none, 0, p(DATA), LEN, b, len)));
    assert_eq!(f.token.calls()[1], "message_one_shot Sign 0 5");
    call!(C_SignMessageBegin(f.session, none, 0)).unwrap();
    assert_eq!(f.token.calls()[1], "message_begin Sign 0");
    call!(C_SignMessageNext(f.session, none, 0, p(DATA), LEN, null_mut(), null_mut())).unwrap();
    assert_eq!(f.token.calls()[1], "message_next Sign 5 false");
    let mut len = 0;
    call!(C_SignMessageNext(f.session, none, 0, p(DATA), LEN, null_mut(), &raw mut len)).unwrap();
    assert_eq!((f.token.calls()[1].as_str(), len), ("message_next Sign 5 true", N));
    call!(C_VerifyMessage(f.session, none, 0, p(DATA), LEN, p(OUTPUT), N)).unwrap();
    assert_eq!(f.token.calls()[1], "verify_message 5 12");
    call!(C_VerifyMessageBegin(f.session, none, 0)).unwrap();
    assert_eq!(f.token.calls()[1], "message_begin Verify 0");
    call!(C_VerifyMessageNext(f.session, none, 0, p(DATA), LEN, null_mut(), 0)).unwrap();
    assert_eq!(f.token.calls()[1], "verify_message_next 5 None");
    call!(C_VerifyMessageNext(f.session, none, 0, p(DATA), LEN, p(OUTPUT), N)).unwrap();
    assert_eq!(f.token.calls()[1], "verify_message_next 5 Some(12)");
}

#[test]
fn keys_are_made_wrapped_and_derived() {
    let f = fixture();
    let mut label = *b"name";
    let mut template = [CK_ATTRIBUTE { type_: CKA_LABEL, pValue: label.as_mut_ptr().cast(), ulValueLen: 4 }];
    let t = template.as_mut_ptr();
    let mut mechanism = plain(CKM_AES_KEY_GEN);
    let m = &raw mut mechanism;
    let (mut key, mut other) = (0, 0);
    call!(C_GenerateKey(f.session, m, t, 1, &raw mut key)).unwrap();
    assert_eq!(key, 77);
    f.saw("generate_key 1080 3");
    call!(C_GenerateKeyPair(f.session, m, t, 1, null_mut(), 0, &raw mut key, &raw mut other)).unwrap();
    assert_eq!((key, other), (1, 2));
    f.saw("generate_key_pair 1080 3 ");
    convention(|b, len| call!(C_WrapKey(f.session, m, 5, 6, b, len)));
    assert_eq!(f.token.calls()[0], "wrap_key 1080 5 6");
    convention(|b, len| call!(C_WrapKeyAuthenticated(f.session, m, 5, 6, p(DATA), LEN, b, len)));
    assert_eq!(f.token.calls()[0], "wrap_key_authenticated 1080 5 6 5");
    call!(C_UnwrapKey(f.session, m, 5, p(OUTPUT), N, t, 1, &raw mut key)).unwrap();
    assert_eq!(key, 77);
    f.saw("unwrap_key 1080 5 12 3");
    call!(C_UnwrapKeyAuthenticated(f.session, m, 5, p(OUTPUT), N, t, 1, p(DATA), LEN, &raw mut other))
        .unwrap();
    assert_eq!(other, 77);
    f.saw("unwrap_key_authenticated 1080 5 12 3 5");
    key = 0;
    call!(C_DeriveKey(f.session, m, 5, t, 1, &raw mut key)).unwrap();
    assert_eq!(key, 77);
    f.saw("derive_key 1080 5 3 true");
    call!(C_DeriveKey(f.session, m, 5, t, 1, null_mut())).unwrap();
    f.saw("derive_key 1080 5 3 false");
    key = 0;
    convention(|b, len| call!(C_EncapsulateKey(f.session, m, 5, t, 1, b, len, &raw mut key)));
    assert_eq!(f.token.calls()[0], "encapsulate_key 1080 5 3");
    assert_eq!(key, 77);
    let mut len = 99;
    call!(C_EncapsulateKey(f.session, m, 5, t, 1, null_mut(), &raw mut len, null_mut())).unwrap();
    assert_eq!(len, N);
    f.token.calls();
    let mut space = [0u8; 32];
    let blind = call!(C_EncapsulateKey(f.session, m, 5, t, 1, space.as_mut_ptr(), &raw mut len, null_mut()));
    assert_eq!(blind, Err(Rv::ARGUMENTS_BAD));
    f.saw_nothing();
    call!(C_DecapsulateKey(f.session, m, 5, t, 1, p(OUTPUT), N, &raw mut other)).unwrap();
    f.saw("decapsulate_key 1080 5 3 12");
}

#[test]
fn sessions_logins_and_pins() {
    let f = fixture();
    let mut session = 0;
    let mut open = |flags| call!(C_OpenSession(2, flags, null_mut(), None, &raw mut session));
    assert_eq!(open(CKF_RW_SESSION), Err(Rv::SESSION_PARALLEL_NOT_SUPPORTED));
    assert_eq!(open(CKF_SERIAL_SESSION | CKF_ASYNC_SESSION), Err(Rv::SESSION_ASYNC_NOT_SUPPORTED));
    f.saw_nothing();
    assert_eq!(open(CKF_SERIAL_SESSION), Ok(()));
    f.saw("open_session false");
    assert_eq!(open(CKF_SERIAL_SESSION | CKF_RW_SESSION), Ok(()));
    f.saw("open_session true");
    assert_eq!(
        call!(C_OpenSession(2, CKF_SERIAL_SESSION, null_mut(), None, null_mut())),
        Err(Rv::ARGUMENTS_BAD)
    );
    let mut info = CK_SESSION_INFO { slotID: 9, state: 9, flags: 0, ulDeviceError: 0 };
    call!(C_GetSessionInfo(session, &raw mut info)).unwrap();
    assert_eq!((info.slotID, info.state, info.ulDeviceError), (2, CKS_RO_PUBLIC_SESSION, 9));
    call!(C_CloseSession(session)).unwrap();
    assert_eq!(call!(C_CloseSession(session)), Err(Rv::SESSION_HANDLE_INVALID));
    f.token.calls();
    for (user, name) in [(CKU_SO, "So"), (CKU_USER, "User"), (CKU_CONTEXT_SPECIFIC, "ContextSpecific")] {
        call!(C_Login(f.session, user, p(DATA), LEN)).unwrap();
        f.saw(&format!("login {name} Some(5)"));
    }
    assert_eq!(call!(C_Login(f.session, 3, p(DATA), LEN)), Err(Rv::USER_TYPE_INVALID));
    assert_eq!(call!(C_LoginUser(f.session, 99, p(DATA), LEN, null_mut(), 0)), Err(Rv::USER_TYPE_INVALID));
    f.saw_nothing();
    for len in [0, 4] {
        call!(C_Login(f.session, CKU_USER, null_mut(), len)).unwrap();
        f.saw("login User None");
    }
    call!(C_Login(f.session, CKU_USER, p(DATA), 0)).unwrap();
    f.saw("login User Some(0)");
    call!(C_LoginUser(f.session, CKU_USER, p(DATA), LEN, p(b"me"), 2)).unwrap();
    f.saw("login_user User Some(5) 2");
    call!(C_Logout(f.session)).unwrap();
    f.saw("logout");
    call!(C_InitPIN(f.session, p(DATA), LEN)).unwrap();
    f.saw("init_pin Some(5)");
    call!(C_SetPIN(f.session, p(DATA), LEN, null_mut(), 0)).unwrap();
    f.saw("set_pin Some(5) None");
    call!(C_SessionCancel(f.session, CKF_SIGN)).unwrap();
    f.saw("session_cancel 800");
    let mut flags = 0;
    call!(C_GetSessionValidationFlags(f.session, 1, &raw mut flags)).unwrap();
    assert_eq!(flags, 5);
    f.saw("session_validation_flags 1");
}

#[test]
fn what_is_refused_is_refused_after_the_session_was_looked_at() {
    let f = fixture();
    let mut len = 4;
    let name = p(b"C_Sign\0");
    macro_rules! refused {
        ($($name:ident($($arg:expr),*) => $rv:ident),* $(,)?) => {$(
            assert_eq!(call!($name(f.session, $($arg),*)), Err(Rv::$rv));
            f.saw("session_info");
            assert_eq!(call!($name(f.session ^ 1 << 40, $($arg),*)), Err(Rv::SESSION_HANDLE_INVALID));
            f.saw_nothing();
        )*};
    }
    refused! {
        C_GetOperationState(null_mut(), &raw mut len) => STATE_UNSAVEABLE,
        C_SetOperationState(p(DATA), LEN, 0, 0) => STATE_UNSAVEABLE,
        C_AsyncComplete(name, null_mut()) => OPERATION_NOT_INITIALIZED,
        C_AsyncGetID(name, &raw mut len) => OPERATION_NOT_INITIALIZED,
        C_AsyncJoin(name, 5, null_mut(), 0) => SAVED_STATE_INVALID,
    }
    assert_eq!(len, 4);
}

#[test]
fn slots_tokens_and_mechanisms() {
    let f = fixture();
    let mut count = 99;
    for (present, expected) in [(0, &[0, 1, 2][..]), (1, &[0, 2][..])] {
        call!(C_GetSlotList(present, null_mut(), &raw mut count)).unwrap();
        assert_eq!(count as usize, expected.len());
        let mut slots = [9; 4];
        count -= 1;
        let short = call!(C_GetSlotList(present, slots.as_mut_ptr(), &raw mut count));
        assert_eq!((short, count as usize, slots), (Err(Rv::BUFFER_TOO_SMALL), expected.len(), [9; 4]));
        count = 4;
        call!(C_GetSlotList(present, slots.as_mut_ptr(), &raw mut count)).unwrap();
        assert_eq!(&slots[..count as usize], expected);
    }
    // SAFETY: numbers and bytes only.
    let mut slot: CK_SLOT_INFO = unsafe { std::mem::zeroed() };
    call!(C_GetSlotInfo(2, &raw mut slot)).unwrap();
    assert_eq!((&slot.slotDescription[..8], slot.slotDescription[63]), (&b"a slot  "[..], b' '));
    assert_eq!(
        (slot.flags, slot.hardwareVersion.minor, slot.firmwareVersion.major),
        (CKF_TOKEN_PRESENT, 2, 3)
    );
    // SAFETY: numbers and bytes only.
    let mut token: CK_TOKEN_INFO = unsafe { std::mem::zeroed() };
    call!(C_GetTokenInfo(2, &raw mut token)).unwrap();
    let cut = recorder::LABEL.char_indices().map(|(i, _)| i).take_while(|i| *i <= 32).last().unwrap();
    assert_eq!(&token.label[..cut], &recorder::LABEL.as_bytes()[..cut]);
    assert!(token.label[cut..].iter().all(|b| *b == b' '));
    assert_eq!((&token.serialNumber, token.utcTime), (b"0123456789abcdef", [b' '; 16]));
    let numbers =
        [token.ulMaxSessionCount, token.ulSessionCount, token.ulMaxRwSessionCount, token.ulRwSessionCount];
    assert_eq!(numbers, [1, 2, 3, 4]);
    let numbers = [token.ulMaxPinLen, token.ulMinPinLen, token.ulTotalPublicMemory, token.ulFreePublicMemory];
    assert_eq!(numbers, [5, 6, 7, 8]);
    assert_eq!([token.ulTotalPrivateMemory, token.ulFreePrivateMemory], [9, 10]);
    assert_eq!(call!(C_GetTokenInfo(1, &raw mut token)), Err(Rv::TOKEN_NOT_PRESENT));
    assert_eq!(call!(C_GetTokenInfo(3, &raw mut token)), Err(Rv::SLOT_ID_INVALID));
    let mut mechanisms = [0; 2];
    call!(C_GetMechanismList(2, null_mut(), &raw mut count)).unwrap();
    assert_eq!(count, 2);
    call!(C_GetMechanismList(2, mechanisms.as_mut_ptr(), &raw mut count)).unwrap();
    assert_eq!(mechanisms, [CKM_SHA256, CKM_ECDSA]);
    let mut info = CK_MECHANISM_INFO { ulMinKeySize: 0, ulMaxKeySize: 0, flags: 0 };
    call!(C_GetMechanismInfo(2, CKM_ECDSA, &raw mut info)).unwrap();
    assert_eq!((info.ulMinKeySize, info.ulMaxKeySize, info.flags), (256, 521, CKF_SIGN));
    assert_eq!(call!(C_GetMechanismInfo(2, 1, &raw mut info)), Err(Rv::MECHANISM_INVALID));
    let label = b"a token                         ";
    call!(C_InitToken(2, p(DATA), LEN, p(label))).unwrap();
    f.saw("init_token 5 \"a token\"");
    assert_eq!(call!(C_InitToken(2, p(DATA), LEN, p(&[0xFF; 32]))), Err(Rv::ARGUMENTS_BAD));
    assert_eq!(call!(C_InitToken(2, p(DATA), LEN, null_mut())), Err(Rv::ARGUMENTS_BAD));
    call!(C_CloseAllSessions(2)).unwrap();
    assert_eq!(call!(C_Logout(f.session)), Err(Rv::SESSION_HANDLE_INVALID));
}

#[test]
fn objects_and_their_attributes() {
    let f = fixture();
    let mut label = *b"................";
    let attribute =
        |type_, value: *mut u8, len| CK_ATTRIBUTE { type_, pValue: value.cast(), ulValueLen: len };
    let mut template = [attribute(CKA_LABEL, label.as_mut_ptr(), 4)];
    let t = template.as_mut_ptr();
    let mut object = 0;
    call!(C_CreateObject(f.session, t, 1, &raw mut object)).unwrap();
    assert_eq!(object, 77);
    f.saw("create_object 3");
    call!(C_CopyObject(f.session, 5, t, 1, &raw mut object)).unwrap();
    f.saw("copy_object 5 3");
    call!(C_DestroyObject(f.session, 5)).unwrap();
    f.saw("destroy_object 5");
    let mut size = 0;
    call!(C_GetObjectSize(f.session, 5, &raw mut size)).unwrap();
    assert_eq!(size, 42);
    f.saw("object_size 5");
    call!(C_SetAttributeValue(f.session, 5, t, 1)).unwrap();
    f.saw("set_attributes 5 3");
    let p16 = label.as_mut_ptr();
    let mut ask = [attribute(CKA_LABEL, p16, 16), attribute(CKA_VALUE, p16, 16), attribute(CKA_ID, p16, 16)];
    let get = call!(C_GetAttributeValue(f.session, 5, ask.as_mut_ptr(), 3));
    assert_eq!(get, Err(Rv::ATTRIBUTE_SENSITIVE));
    assert_eq!(ask.map(|a| a.ulValueLen), [N, CK_UNAVAILABLE_INFORMATION, CK_UNAVAILABLE_INFORMATION]);
    assert_eq!(&label[..OUTPUT.len()], OUTPUT);
    let mut ask = [attribute(CKA_LABEL, null_mut(), 0)];
    call!(C_GetAttributeValue(f.session, 5, ask.as_mut_ptr(), 1)).unwrap();
    assert_eq!(ask[0].ulValueLen, N);
    f.token.calls();
    call!(C_FindObjectsInit(f.session, null_mut(), 0)).unwrap();
    f.saw("find_objects_init ");
    let mut found = [0; 4];
    let mut count = 99;
    call!(C_FindObjects(f.session, found.as_mut_ptr(), 2, &raw mut count)).unwrap();
    assert_eq!((found, count), ([7, 8, 0, 0], 2));
    f.saw("find_objects 2");
    call!(C_FindObjects(f.session, found.as_mut_ptr(), 4, &raw mut count)).unwrap();
    assert_eq!((found, count), ([7, 8, 9, 0], 3));
    f.token.calls();
    assert_eq!(call!(C_FindObjects(f.session, null_mut(), 4, &raw mut count)), Err(Rv::ARGUMENTS_BAD));
    assert_eq!(call!(C_FindObjects(f.session, found.as_mut_ptr(), 4, null_mut())), Err(Rv::ARGUMENTS_BAD));
    f.saw_nothing();
    call!(C_FindObjectsFinal(f.session)).unwrap();
    f.saw("find_objects_final");
}

#[test]
fn random_numbers_and_a_token_that_panics() {
    let f = fixture();
    let mut random = [0u8; 16];
    call!(C_GenerateRandom(f.session, random.as_mut_ptr(), 16)).unwrap();
    assert_eq!(random, [4; 16]);
    call!(C_GenerateRandom(f.session, null_mut(), 0)).unwrap();
    call!(C_SeedRandom(f.session, p(DATA), LEN)).unwrap();
    assert_eq!(f.token.calls(), ["generate_random 16", "generate_random 0", "seed_random 5"]);
    assert_eq!(call!(C_GenerateRandom(f.session, random.as_mut_ptr(), 13)), Err(Rv::GENERAL_ERROR));
    // And nothing is left behind by it.
    assert_eq!(call!(C_GenerateRandom(f.session, random.as_mut_ptr(), 12)), Ok(()));
}

#[test]
fn waiting_for_a_slot_checks_its_arguments() {
    let _f = fixture();
    let mut slot = 0;
    let reserved: *mut c_void = (&raw mut slot).cast();
    assert_eq!(call!(C_WaitForSlotEvent(CKF_DONT_BLOCK, &raw mut slot, reserved)), Err(Rv::ARGUMENTS_BAD));
    assert_eq!(call!(C_WaitForSlotEvent(CKF_DONT_BLOCK, null_mut(), null_mut())), Err(Rv::ARGUMENTS_BAD));
    assert_eq!(call!(C_WaitForSlotEvent(CKF_DONT_BLOCK, &raw mut slot, null_mut())), Err(Rv::NO_EVENT));
}
