//! Bad input: stale and invented handles, absurd lengths, truncated parameters, hostile templates, odd addresses. Nothing
//! of it may crash, reach the token, or change what the caller did not offer.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::c_void;
use std::ptr::null_mut;

use common::{Fixture, OUTPUT, call, fixture, plain};
use cryptoki_sys::*;
use ha_token::{Result, Rv};

/// Every function that takes a session, with arguments that are right but for the session.
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_session_function(session: CK_SESSION_HANDLE) -> Vec<(&'static str, Result<()>)> {
    let mut bytes = [7u8; 32];
    let b = bytes.as_mut_ptr();
    let mut len: CK_ULONG = 32;
    let l = &raw mut len;
    let (mut one, mut two) = (0, 0);
    let (o, o2) = (&raw mut one, &raw mut two);
    let mut mechanism = plain(CKM_ECDSA);
    let m = &raw mut mechanism;
    let mut attribute = CK_ATTRIBUTE { type_: CKA_LABEL, pValue: b.cast(), ulValueLen: 4 };
    let t = &raw mut attribute;
    let mut info = CK_SESSION_INFO { slotID: 0, state: 0, flags: 0, ulDeviceError: 0 };
    let n: *mut c_void = null_mut();
    let name = c"C_Sign".as_ptr().cast_mut().cast();
    macro_rules! table {
        ($($name:ident($($arg:expr),*);)*) => {
            vec![$((stringify!($name), {
                // SAFETY: `l` points to the length above; a call may have changed it.
                unsafe { l.write(32) };
                call!($name(session, $($arg),*))
            }),)*]
        };
    }
    let answers = table! {
        C_InitPIN(b, 4);
        C_SetPIN(b, 4, b, 4);
        C_CloseSession();
        C_GetSessionInfo(&raw mut info);
        C_GetOperationState(b, l);
        C_SetOperationState(b, 4, 0, 0);
        C_Login(CKU_USER, b, 4);
        C_Logout();
        C_CreateObject(t, 1, o);
        C_CopyObject(1, t, 1, o);
        C_DestroyObject(1);
        C_GetObjectSize(1, o);
        C_GetAttributeValue(1, t, 1);
        C_SetAttributeValue(1, t, 1);
        C_FindObjectsInit(t, 1);
        C_FindObjects(o, 1, l);
        C_FindObjectsFinal();
        C_EncryptInit(m, 1);
        C_Encrypt(b, 4, b, l);
        C_EncryptUpdate(b, 4, b, l);
        C_EncryptFinal(b, l);
        C_DecryptInit(m, 1);
        C_Decrypt(b, 4, b, l);
        C_DecryptUpdate(b, 4, b, l);
        C_DecryptFinal(b, l);
        C_DigestInit(m);
        C_Digest(b, 4, b, l);
        C_DigestUpdate(b, 4);
        C_DigestKey(1);
        C_DigestFinal(b, l);
        C_SignInit(m, 1);
        C_Sign(b, 4, b, l);
        C_SignUpdate(b, 4);
        C_SignFinal(b, l);
        C_SignRecoverInit(m, 1);
        C_SignRecover(b, 4, b, l);
        C_VerifyInit(m, 1);
        C_Verify(b, 4, b, 4);
        C_VerifyUpdate(b, 4);
        C_VerifyFinal(b, 4);
        C_VerifyRecoverInit(m, 1);
        C_VerifyRecover(b, 4, b, l);
        C_DigestEncryptUpdate(b, 4, b, l);
        C_DecryptDigestUpdate(b, 4, b, l);
        C_SignEncryptUpdate(b, 4, b, l);
        C_DecryptVerifyUpdate(b, 4, b, l);
        C_GenerateKey(m, t, 1, o);
        C_GenerateKeyPair(m, t, 1, t, 1, o, o2);
        C_WrapKey(m, 1, 1, b, l);
        C_UnwrapKey(m, 1, b, 4, t, 1, o);
        C_DeriveKey(m, 1, t, 1, o);
        C_SeedRandom(b, 4);
        C_GenerateRandom(b, 4);
        C_LoginUser(CKU_USER, b, 4, b, 4);
        C_SessionCancel(CKF_SIGN);
        C_MessageEncryptInit(m, 1);
        C_EncryptMessage(n, 0, b, 4, b, 4, b, l);
        C_EncryptMessageBegin(n, 0, b, 4);
        C_EncryptMessageNext(n, 0, b, 4, b, l, 0);
        C_MessageEncryptFinal();
        C_MessageDecryptInit(m, 1);
        C_DecryptMessage(n, 0, b, 4, b, 4, b, l);
        C_DecryptMessageBegin(n, 0, b, 4);
        C_DecryptMessageNext(n, 0, b, 4, b, l, 0);
        C_MessageDecryptFinal();
        C_MessageSignInit(m, 1);
        C_SignMessage(n, 0, b, 4, b, l);
        C_SignMessageBegin(n, 0);
        C_SignMessageNext(n, 0, b, 4, b, l);
        C_MessageSignFinal();
        C_MessageVerifyInit(m, 1);
        C_VerifyMessage(n, 0, b, 4, b, 4);
        C_VerifyMessageBegin(n, 0);
        C_VerifyMessageNext(n, 0, b, 4, b, 4);
        C_MessageVerifyFinal();
        C_EncapsulateKey(m, 1, t, 1, b, l, o);
        C_DecapsulateKey(m, 1, t, 1, b, 4, o);
        C_VerifySignatureInit(m, 1, b, 4);
        C_VerifySignature(b, 4);
        C_VerifySignatureUpdate(b, 4);
        C_VerifySignatureFinal();
        C_GetSessionValidationFlags(1, o);
        C_AsyncComplete(name, null_mut());
        C_AsyncGetID(name, o);
        C_AsyncJoin(name, 0, b, 4);
        C_WrapKeyAuthenticated(m, 1, 1, b, 4, b, l);
        C_UnwrapKeyAuthenticated(m, 1, b, 4, t, 1, b, 4, o);
    };
    let refused = answers.iter().all(|(_, answer)| *answer == Err(Rv::SESSION_HANDLE_INVALID));
    if refused {
        assert_eq!((bytes, one, two), ([7u8; 32], 0, 0), "a refused call wrote something");
    }
    answers
}

#[test]
fn stale_and_invented_sessions_are_refused_by_every_function() {
    let f = fixture();
    let mut closed = 0;
    call!(C_OpenSession(2, CKF_SERIAL_SESSION, null_mut(), None, &raw mut closed)).unwrap();
    call!(C_CloseSession(closed)).unwrap();
    f.token.calls();
    let other_slot = f.session & !1023;
    let no_slot = f.session | 1023;
    for session in [0, 1, 2, closed, other_slot, no_slot, f.session ^ (1 << 63), CK_ULONG::MAX] {
        for (name, answer) in every_session_function(session) {
            assert_eq!(answer, Err(Rv::SESSION_HANDLE_INVALID), "{name} with session {session:#x}");
        }
        f.saw_nothing();
    }
    // The table's other arguments are right: with a good session none is refused for its handle or its pointers.
    let mut session = f.session;
    for (name, answer) in every_session_function(session) {
        if name == "C_CloseSession" {
            assert_eq!(answer, Ok(()));
            break;
        }
        assert!(!matches!(answer, Err(Rv::SESSION_HANDLE_INVALID | Rv::ARGUMENTS_BAD)), "{name}: {answer:?}");
    }
    call!(C_OpenSession(2, CKF_SERIAL_SESSION, null_mut(), None, &raw mut session)).unwrap();
}

#[test]
fn invented_slots_are_refused() {
    let _f = fixture();
    for slot in [3, 1 << 10, 1 << 32, CK_ULONG::MAX - 1, CK_ULONG::MAX] {
        let (mut count, mut session, mut label) = (0, 0, [b' '; 32]);
        // SAFETY: numbers and bytes only.
        let (mut info, mut token): (CK_SLOT_INFO, CK_TOKEN_INFO) = unsafe { std::mem::zeroed() };
        let mut mechanism = CK_MECHANISM_INFO { ulMinKeySize: 0, ulMaxKeySize: 0, flags: 0 };
        let answers = [
            call!(C_GetSlotInfo(slot, &raw mut info)),
            call!(C_GetTokenInfo(slot, &raw mut token)),
            call!(C_GetMechanismList(slot, null_mut(), &raw mut count)),
            call!(C_GetMechanismInfo(slot, CKM_ECDSA, &raw mut mechanism)),
            call!(C_InitToken(slot, label.as_mut_ptr(), 4, label.as_mut_ptr())),
            call!(C_OpenSession(slot, CKF_SERIAL_SESSION, null_mut(), None, &raw mut session)),
            call!(C_CloseAllSessions(slot)),
        ];
        assert_eq!(answers, [Err(Rv::SLOT_ID_INVALID); 7], "slot {slot:#x}");
    }
}

#[test]
fn absurd_lengths_are_refused_before_the_token_sees_them() {
    let f = fixture();
    let s = f.session;
    let mut bytes = [7u8; 16];
    let b = bytes.as_mut_ptr();
    let mut len = 16;
    let l = &raw mut len;
    let mut object = 0;
    let o = &raw mut object;
    let mut mechanism = plain(CKM_ECDSA);
    let m = &raw mut mechanism;
    let mut attribute = CK_ATTRIBUTE { type_: CKA_LABEL, pValue: b.cast(), ulValueLen: 4 };
    let t = &raw mut attribute;
    let n: *mut c_void = null_mut();
    for bad in [CK_ULONG::MAX, CK_ULONG::MAX - 15, 1 << 63] {
        macro_rules! refused {
            ($($name:ident($($arg:expr),*);)*) => {$(
                assert_eq!(call!($name(s, $($arg),*)), Err(Rv::ARGUMENTS_BAD), stringify!($name));
                f.saw_nothing();
            )*};
        }
        refused! {
            C_InitPIN(b, bad);
            C_SetPIN(b, bad, b, 4);
            C_SetPIN(b, 4, b, bad);
            C_Login(CKU_USER, b, bad);
            C_LoginUser(CKU_USER, b, 4, b, bad);
            C_CreateObject(t, bad, o);
            C_CopyObject(1, t, bad, o);
            C_GetAttributeValue(1, t, bad);
            C_SetAttributeValue(1, t, bad);
            C_FindObjectsInit(t, bad);
            C_Encrypt(b, bad, b, l);
            C_DecryptUpdate(b, bad, b, l);
            C_Digest(b, bad, b, l);
            C_DigestUpdate(b, bad);
            C_Sign(b, bad, b, l);
            C_SignUpdate(b, bad);
            C_Verify(b, bad, b, 4);
            C_Verify(b, 4, b, bad);
            C_VerifyFinal(b, bad);
            C_VerifyRecover(b, bad, b, l);
            C_DigestEncryptUpdate(b, bad, b, l);
            C_GenerateKey(m, t, bad, o);
            C_GenerateKeyPair(m, t, 1, t, bad, o, o);
            C_UnwrapKey(m, 1, b, bad, t, 1, o);
            C_DeriveKey(m, 1, t, bad, o);
            C_SeedRandom(b, bad);
            C_GenerateRandom(b, bad);
            C_EncryptMessage(n, 0, b, bad, b, 4, b, l);
            C_EncryptMessage(n, 0, b, 4, b, bad, b, l);
            C_EncryptMessageBegin(n, 0, b, bad);
            C_VerifyMessage(n, 0, b, bad, b, 4);
            C_VerifySignatureInit(m, 1, b, bad);
            C_DecapsulateKey(m, 1, t, 1, b, bad, o);
            C_WrapKeyAuthenticated(m, 1, 1, b, bad, b, l);
            C_UnwrapKeyAuthenticated(m, 1, b, 4, t, 1, b, bad, o);
        }
        // As the length of an output buffer.
        len = bad;
        refused! {
            C_Encrypt(b, 4, b, l);
            C_EncryptFinal(b, l);
            C_Sign(b, 4, b, l);
            C_WrapKey(m, 1, 1, b, l);
            C_EncapsulateKey(m, 1, t, 1, b, l, o);
        }
        assert_eq!(len, bad);
        len = 16;
    }
    // "As many as there are" is a number too.
    let mut found = [0; 3];
    call!(C_FindObjects(s, found.as_mut_ptr(), CK_ULONG::MAX, l)).unwrap();
    assert_eq!((found, len), ([7, 8, 9], 3));
    assert_eq!(bytes, [7; 16]);
}

/// Starts signing with this mechanism and exactly these bytes as its parameter.
fn sign_init(
    f: &Fixture,
    mechanism: CK_MECHANISM_TYPE,
    parameter: &mut [u8],
    claimed: CK_ULONG,
) -> Result<()> {
    let mut mechanism =
        CK_MECHANISM { mechanism, pParameter: parameter.as_mut_ptr().cast(), ulParameterLen: claimed };
    call!(C_SignInit(f.session, &raw mut mechanism, 1))
}

#[test]
fn truncated_parameters_are_refused() {
    let f = fixture();
    let known = [
        (CKM_RSA_PKCS_PSS, size_of::<CK_RSA_PKCS_PSS_PARAMS>()),
        (CKM_RSA_PKCS_OAEP, size_of::<CK_RSA_PKCS_OAEP_PARAMS>()),
        (CKM_AES_GCM, size_of::<CK_GCM_PARAMS>()),
        (CKM_AES_CCM, size_of::<CK_CCM_PARAMS>()),
        (CKM_ECDH1_DERIVE, size_of::<CK_ECDH1_DERIVE_PARAMS>()),
        (CKM_HKDF_DERIVE, size_of::<CK_HKDF_PARAMS>()),
        (CKM_PKCS5_PBKD2, size_of::<CK_PKCS5_PBKD2_PARAMS2>()),
        (CKM_SP800_108_COUNTER_KDF, size_of::<CK_SP800_108_KDF_PARAMS>()),
    ];
    for (mechanism, size) in known {
        for len in 1..size {
            // Of exactly this size, so that a tool that watches memory sees any byte read beyond it.
            let mut parameter = vec![0u8; len];
            let answer = sign_init(&f, mechanism, &mut parameter, len as CK_ULONG);
            let refused = matches!(answer, Err(Rv::MECHANISM_PARAM_INVALID | Rv::ARGUMENTS_BAD));
            assert!(refused, "mechanism {mechanism:#x} with {len} of {size} bytes: {answer:?}");
            f.saw_nothing();
        }
        let mut nothing =
            CK_MECHANISM { mechanism, pParameter: null_mut(), ulParameterLen: size as CK_ULONG };
        let answer = call!(C_SignInit(f.session, &raw mut nothing, 1));
        assert!(matches!(answer, Err(Rv::MECHANISM_PARAM_INVALID | Rv::ARGUMENTS_BAD)), "{mechanism:#x}");
        // Absurd inner lengths.
        let mut parameter = vec![0xFFu8; size];
        let answer = sign_init(&f, mechanism, &mut parameter, CK_ULONG::MAX);
        assert!(matches!(answer, Err(Rv::MECHANISM_PARAM_INVALID | Rv::ARGUMENTS_BAD)), "{mechanism:#x}");
        f.saw_nothing();
    }
}

#[test]
fn inner_pointers_and_lengths_of_parameters_are_checked() {
    let f = fixture();
    let mut iv = [0u8; 12];
    let good = CK_GCM_PARAMS {
        pIv: iv.as_mut_ptr(),
        ulIvLen: 12,
        ulIvBits: 96,
        pAAD: null_mut(),
        ulAADLen: 0,
        ulTagBits: 128,
    };
    let encrypt = |mut params: CK_GCM_PARAMS| {
        let mut mechanism = CK_MECHANISM {
            mechanism: CKM_AES_GCM,
            pParameter: (&raw mut params).cast(),
            ulParameterLen: size_of::<CK_GCM_PARAMS>() as CK_ULONG,
        };
        call!(C_EncryptInit(f.session, &raw mut mechanism, 1))
    };
    assert_eq!(encrypt(good), Ok(()));
    f.token.calls();
    let bad = [
        CK_GCM_PARAMS { pIv: null_mut(), ..good },
        CK_GCM_PARAMS { ulIvLen: CK_ULONG::MAX, ..good },
        CK_GCM_PARAMS { ulAADLen: 1, ..good },
        CK_GCM_PARAMS { pAAD: iv.as_mut_ptr(), ulAADLen: 1 << 63, ..good },
    ];
    for params in bad {
        let answer = encrypt(params);
        assert!(matches!(answer, Err(Rv::MECHANISM_PARAM_INVALID | Rv::ARGUMENTS_BAD)), "{answer:?}");
        f.saw_nothing();
    }
}

#[test]
fn hostile_templates_are_refused() {
    let f = fixture();
    let mut object = 0;
    let mut bytes = [7u8; 8];
    let attribute = |type_, value: *mut c_void, len| CK_ATTRIBUTE { type_, pValue: value, ulValueLen: len };
    let b = bytes.as_mut_ptr().cast();
    let size = size_of::<CK_ATTRIBUTE>() as CK_ULONG;
    let mut inner = [attribute(CKA_LABEL, b, CK_ULONG::MAX)];
    let i = inner.as_mut_ptr().cast();
    let hostile = [
        attribute(CKA_LABEL, null_mut(), 1),
        attribute(CKA_LABEL, b, CK_ULONG::MAX),
        attribute(CKA_LABEL, b, 1 << 63),
        attribute(CKA_WRAP_TEMPLATE, null_mut(), size),
        attribute(CKA_WRAP_TEMPLATE, i, size - 1),
        attribute(CKA_WRAP_TEMPLATE, i, size),
        attribute(CKA_UNWRAP_TEMPLATE, i, CK_ULONG::MAX),
        attribute(CKA_UNWRAP_TEMPLATE, i, CK_ULONG::MAX / size * size),
    ];
    for mut one in hostile {
        let answer = call!(C_CreateObject(f.session, &raw mut one, 1, &raw mut object));
        assert!(answer.is_err(), "{one:?}");
        f.saw_nothing();
    }
    // A template that contains itself ends somewhere.
    let mut own = attribute(CKA_WRAP_TEMPLATE, null_mut(), size);
    own.pValue = (&raw mut own).cast();
    let answer = call!(C_CreateObject(f.session, &raw mut own, 1, &raw mut object));
    assert!(answer.is_err());
    let none = call!(C_CreateObject(f.session, null_mut(), 1, &raw mut object));
    assert_eq!(none, Err(Rv::ARGUMENTS_BAD));
    f.saw_nothing();
    assert_eq!(object, 0);
}

#[test]
fn results_go_to_odd_addresses_too() {
    let f = fixture();
    let mut memory = [0u64; 8];
    let odd = memory.as_mut_ptr().cast::<u8>().wrapping_add(1);
    call!(C_OpenSession(2, CKF_SERIAL_SESSION, null_mut(), None, odd.cast())).unwrap();
    call!(C_GetObjectSize(f.session, 1, odd.cast())).unwrap();
    // SAFETY: inside `memory`.
    assert_eq!(unsafe { odd.cast::<CK_ULONG>().read_unaligned() }, 42);
    let mut buffer = [0u8; 16];
    // SAFETY: inside `memory`.
    unsafe { odd.cast::<CK_ULONG>().write_unaligned(16) };
    call!(C_Sign(f.session, buffer.as_mut_ptr(), 4, buffer.as_mut_ptr(), odd.cast())).unwrap();
    assert_eq!(&buffer[..OUTPUT.len()], OUTPUT);
}
