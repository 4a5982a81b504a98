//! A storm of bad calls on the real thing: threads that share sessions call every function with stale handles, NULL
//! pointers, absurd lengths and truncated parameters, on a group of two SoftHSM tokens, which crash on some of them
//! when asked directly. Nothing may crash or hang, and the key that was there before is there after, on both.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::{OsStr, c_void};
use std::ptr::null_mut;

use common::{alone, call};
use cryptoki_sys::*;
use ha_core::config::Config;
use ha_core::group::Word;
use ha_core::provider::Provider;
use ha_rig::{PIN, Tokens};
use ha_token::{Result, Rv};

const CONFIG: &str = "PKCS11_HA_CONF";
const CALLS: usize = 6000;
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// Numbers that are the same in each run (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len() as u64) as usize]
    }
}

fn open_session() -> CK_SESSION_HANDLE {
    let mut session = 0;
    call!(C_OpenSession(0, CKF_SERIAL_SESSION | CKF_RW_SESSION, null_mut(), None, &raw mut session)).unwrap();
    session
}

fn make_pair(session: CK_SESSION_HANDLE, id: u8, token: CK_BBOOL) -> (CK_OBJECT_HANDLE, CK_OBJECT_HANDLE) {
    let (mut token, mut id, mut params, mut yes) = (token, id, P256, CK_TRUE);
    let attribute = |type_, value: *mut c_void, len| CK_ATTRIBUTE { type_, pValue: value, ulValueLen: len };
    let mut public = [
        attribute(CKA_TOKEN, (&raw mut token).cast(), 1),
        attribute(CKA_ID, (&raw mut id).cast(), 1),
        attribute(CKA_EC_PARAMS, params.as_mut_ptr().cast(), 10),
    ];
    let mut private = [public[0], public[1], attribute(CKA_SIGN, (&raw mut yes).cast(), 1)];
    let mut mechanism = common::plain(CKM_EC_KEY_PAIR_GEN);
    let (mut a, mut b) = (0, 0);
    call!(C_GenerateKeyPair(
        session,
        &raw mut mechanism,
        public.as_mut_ptr(),
        3,
        private.as_mut_ptr(),
        3,
        &raw mut a,
        &raw mut b
    ))
    .unwrap();
    (a, b)
}

/// One bad, or good, call.
#[expect(clippy::too_many_lines, reason = "a table")]
fn strike(dice: &mut Dice, sessions: &[CK_SESSION_HANDLE], objects: &[CK_OBJECT_HANDLE]) -> Result<()> {
    let mut memory = [0u8; 1024];
    let mut data = [7u8; 64];
    let mut place: CK_ULONG = 0;
    let mut other: CK_ULONG = 0;
    let wild = [0, 1, CK_ULONG::MAX, CK_ULONG::MAX - 1, 1 << 31, 1 << 62];
    let session = if dice.roll(8) == 0 { dice.pick(&wild) } else { dice.pick(sessions) };
    let object = if dice.roll(4) == 0 { dice.pick(&wild) } else { dice.pick(objects) };
    // A pointer with a length that it has, or NULL, or a length that nothing has.
    let bytes = |dice: &mut Dice, at: *mut u8| match dice.roll(6) {
        0 => (null_mut(), 0),
        1 => (null_mut(), dice.pick(&[1, 32, CK_ULONG::MAX])),
        2 => (at, dice.pick(&[CK_ULONG::MAX, CK_ULONG::MAX >> 1, (CK_ULONG::MAX >> 1) + 1])),
        _ => (at, dice.roll(65)),
    };
    let (b, n) = bytes(dice, data.as_mut_ptr());
    let out = if dice.roll(4) == 0 { null_mut() } else { memory.as_mut_ptr() };
    let mut len = dice.pick(&[0, 1, 64, 1024]);
    let l = if dice.roll(8) == 0 { null_mut() } else { &raw mut len };
    let o = if dice.roll(8) == 0 { null_mut() } else { &raw mut place };
    // Zeros: what is a pointer in a parameter is NULL. Mostly of a wrong length.
    let mut parameter = [0u8; 256];
    let kinds = [
        CKM_ECDSA,
        CKM_ECDSA_SHA256,
        CKM_SHA256,
        CKM_SHA256_RSA_PKCS_PSS,
        CKM_RSA_PKCS_OAEP,
        CKM_AES_GCM,
        CKM_AES_CBC,
        CKM_AES_CBC_PAD,
        CKM_AES_CTR,
        CKM_AES_ECB,
        CKM_SHA256_HMAC,
        CKM_ECDH1_DERIVE,
        CKM_AES_KEY_GEN,
        CKM_AES_KEY_WRAP,
        CKM_EC_KEY_PAIR_GEN,
        CKM_VENDOR_DEFINED,
        CKM_DSA_PARAMETER_GEN,
        CK_ULONG::MAX,
    ];
    let mut mechanism = CK_MECHANISM {
        mechanism: dice.pick(&kinds),
        pParameter: if dice.roll(2) == 0 { null_mut() } else { parameter.as_mut_ptr().cast() },
        ulParameterLen: dice.pick(&[0, 0, 0, 1, 8, 16, 40, 48, 256]),
    };
    let m = if dice.roll(10) == 0 { null_mut() } else { &raw mut mechanism };
    let types = [
        CKA_CLASS,
        CKA_ID,
        CKA_LABEL,
        CKA_VALUE,
        CKA_VALUE_LEN,
        CKA_KEY_TYPE,
        CKA_TOKEN,
        CKA_MODULUS,
        CKA_WRAP_TEMPLATE,
        CKA_ALLOWED_MECHANISMS,
        CK_ULONG::MAX,
    ];
    let mut template = [CK_ATTRIBUTE { type_: 0, pValue: null_mut(), ulValueLen: 0 }; 3];
    for attribute in &mut template {
        let (at, len) = bytes(dice, parameter.as_mut_ptr());
        // Never a token object: the storm is about calls, and leaves the token as it was.
        let kind = dice.pick(&types);
        *attribute = CK_ATTRIBUTE {
            type_: kind,
            pValue: if kind == CKA_TOKEN { null_mut() } else { at.cast() },
            ulValueLen: len,
        };
    }
    let t = if dice.roll(8) == 0 { null_mut() } else { template.as_mut_ptr() };
    let count = dice.pick(&[0, 1, 3, CK_ULONG::MAX]);
    match dice.roll(46) {
        0 => call!(C_GetSessionInfo(session, null_mut())),
        1 => call!(C_GetAttributeValue(session, object, t, count)),
        2 => call!(C_SetAttributeValue(session, dice.pick(&wild), t, count)),
        3 => call!(C_FindObjectsInit(session, t, count)),
        4 => call!(C_FindObjects(session, o, dice.pick(&[0, 1]), l)),
        5 => call!(C_FindObjectsFinal(session)),
        6 => call!(C_CreateObject(session, t, count, o)),
        7 => call!(C_CopyObject(session, object, t, count, o)),
        8 => call!(C_DestroyObject(session, dice.pick(&wild))),
        9 => call!(C_GetObjectSize(session, object, o)),
        10 => call!(C_EncryptInit(session, m, object)),
        11 => call!(C_Encrypt(session, b, n, out, l)),
        12 => call!(C_EncryptUpdate(session, b, n, out, l)),
        13 => call!(C_EncryptFinal(session, out, l)),
        14 => call!(C_DecryptInit(session, m, object)),
        15 => call!(C_Decrypt(session, b, n, out, l)),
        16 => call!(C_DecryptUpdate(session, b, n, out, l)),
        17 => call!(C_DecryptFinal(session, out, l)),
        18 => call!(C_DigestInit(session, m)),
        19 => call!(C_Digest(session, b, n, out, l)),
        20 => call!(C_DigestUpdate(session, b, n)),
        21 => call!(C_DigestKey(session, object)),
        22 => call!(C_DigestFinal(session, out, l)),
        23 => call!(C_SignInit(session, m, object)),
        24 => call!(C_Sign(session, b, n, out, l)),
        25 => call!(C_SignUpdate(session, b, n)),
        26 => call!(C_SignFinal(session, out, l)),
        27 => call!(C_VerifyInit(session, m, object)),
        28 => call!(C_Verify(session, b, n, data.as_mut_ptr(), dice.pick(&[0, 1, 64, CK_ULONG::MAX]))),
        29 => call!(C_VerifyUpdate(session, b, n)),
        30 => call!(C_VerifyFinal(session, b, n)),
        31 => call!(C_SignRecoverInit(session, m, object)),
        32 => call!(C_VerifyRecover(session, b, n, out, l)),
        33 => call!(C_DigestEncryptUpdate(session, b, n, out, l)),
        34 => call!(C_DecryptVerifyUpdate(session, b, n, out, l)),
        35 => call!(C_GenerateKey(session, m, t, count, o)),
        36 => call!(C_GenerateKeyPair(session, m, t, count, t, count, o, &raw mut other)),
        37 => call!(C_WrapKey(session, m, object, object, out, l)),
        38 => call!(C_UnwrapKey(session, m, object, b, n, t, count, o)),
        39 => call!(C_DeriveKey(session, m, object, t, count, o)),
        40 => call!(C_GenerateRandom(session, b, n)),
        41 => call!(C_SessionCancel(session, dice.roll(1 << 20))),
        42 => call!(C_GetMechanismInfo(dice.pick(&wild), mechanism.mechanism, null_mut())),
        43 => call!(C_MessageEncryptInit(session, m, object)),
        44 => call!(C_EncryptMessage(session, null_mut(), n, b, n, b, n, out, l)),
        _ => {
            // A session that another thread uses, or one of its own.
            if dice.roll(4) == 0 { call!(C_CloseSession(session)) } else { Ok(()) }
        }
    }
}

#[test]
fn bad_calls_from_many_threads_hurt_nothing() {
    const NAME: &str = "bad_calls_from_many_threads_hurt_nothing";
    let tokens = std::env::var_os(CONFIG).is_none().then(|| Tokens::new(2));
    let conf = tokens.as_ref().map(|t| t.path().join("ha.toml"));
    if let (Some(tokens), Some(conf)) = (&tokens, &conf) {
        std::fs::write(conf, tokens.config(false, "")).unwrap();
    }
    if !alone(NAME, &[(CONFIG, conf.as_deref().map_or(OsStr::new(""), |c| c.as_os_str()))]) {
        let text = std::fs::read_to_string(conf.unwrap()).unwrap();
        let provider = Provider::from_config(Config::parse(&text).unwrap()).unwrap();
        let slot = provider.slot(0).unwrap();
        let session = slot.open_session(true).unwrap();
        slot.login(session, ha_token::UserType::User, Some(PIN.as_bytes())).unwrap();
        let words: Vec<Word> = provider.groups()[0].check(true).unwrap().iter().map(|c| c.worst()).collect();
        // More than the two: what was copied from a token object is one.
        assert!(words.len() >= 2 && words.iter().all(|w| *w == Word::Same), "{words:?}");
        return;
    }
    assert_eq!(call!(C_FindObjectsFinal(1)), Err(Rv::CRYPTOKI_NOT_INITIALIZED));
    call!(C_Initialize(null_mut())).unwrap();
    let first = open_session();
    let mut pin = PIN.as_bytes().to_vec();
    call!(C_Login(first, CKU_USER, pin.as_mut_ptr(), pin.len() as CK_ULONG)).unwrap();
    let (public, private) = make_pair(first, 1, CK_TRUE);
    let of_session = make_pair(first, 2, CK_FALSE);
    let objects = [public, private, of_session.0, of_session.1];
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            scope.spawn(move || {
                let mut dice = Dice(thread);
                let mut mine: Vec<CK_SESSION_HANDLE> = (0..4).map(|_| open_session()).collect();
                let mut refused = 0;
                for _ in 0..CALLS {
                    // The others' sessions have numbers near one's own.
                    let near = mine[0] ^ (dice.roll(64) << 11);
                    let shared = [mine[0], mine[1], mine[2], mine[3], near];
                    refused += usize::from(strike(&mut dice, &shared, &objects).is_err());
                    if dice.roll(50) == 0 {
                        let place = dice.roll(4) as usize;
                        mine[place] = open_session();
                    }
                }
                assert!(refused > CALLS / 4, "only {refused} calls were refused: that was no storm");
            });
        }
    });
    // Somebody may have closed the first one; then the login lives on as long as another is open.
    let session = open_session();
    let mut mechanism = common::plain(CKM_ECDSA);
    let (mut data, mut space, mut len) = ([7u8; 32], [0u8; 64], 64);
    call!(C_SignInit(session, &raw mut mechanism, private)).unwrap();
    call!(C_Sign(session, data.as_mut_ptr(), 32, space.as_mut_ptr(), &raw mut len)).unwrap();
    assert_eq!(len, 64);
    call!(C_Finalize(null_mut())).unwrap();
    assert_eq!(call!(C_CloseSession(session)), Err(Rv::CRYPTOKI_NOT_INITIALIZED));
}
