//! The calls of the seam against a real SoftHSM token.

mod support;

use ha_token::{
    Attribute, Fetched, Field, FieldValue, Mechanism, MessageKind, ObjectHandle, OpKind, Output, Params, Rv,
    StructParams, Value, ck,
};
use support::{Store, aes_key, connect, connector, find, login, token_label};

const P256: [u8; 10] = [0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07];

#[test]
fn generate_find_wrap_unwrap_and_the_keys_are_one() {
    let store = Store::with(&["calls"]);
    let token = connect(&connector(&store, "calls"));
    assert_eq!(token_label(&*token), "calls");
    assert!(token.mechanism_list().expect("mechanisms").contains(&ck::CKM_AES_KEY_WRAP));
    let session = login(&*token);
    let wrapper = aes_key(&*token, session, false, "wrapper");
    let key = aes_key(&*token, session, true, "key");
    assert_eq!(find(&*token, session, "key"), [key]);

    let mut wrapping = Mechanism::plain(ck::CKM_AES_KEY_WRAP);
    let mut size = Output::query();
    token.wrap_key(session, &mut wrapping, wrapper, key, &mut size).expect("size");
    let mut blob = vec![0; size.len()];
    let mut out = Output::buffer(&mut blob);
    token.wrap_key(session, &mut wrapping, wrapper, key, &mut out).expect("wraps");
    assert_eq!(out.len(), 40);
    let template = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
        Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_AES),
        Attribute::bool(ck::CKA_TOKEN, false),
        Attribute::bool(ck::CKA_ENCRYPT, true),
        Attribute::bool(ck::CKA_EXTRACTABLE, false),
        Attribute::bool(ck::CKA_SENSITIVE, true),
    ];
    let copy = token.unwrap_key(session, &mut wrapping, wrapper, &blob, &template).expect("unwraps");

    let encrypt = |key| {
        let mut iv = Mechanism::bytes(ck::CKM_AES_CBC_PAD, &[7; 16]);
        token.op_init(session, OpKind::Encrypt, Some(&mut iv), key).expect("init");
        let mut text = [0; 64];
        let mut out = Output::buffer(&mut text);
        token.op_one_shot(session, OpKind::Encrypt, b"the same text", &mut out).expect("encrypts");
        out.written().to_vec()
    };
    assert_eq!(encrypt(key), encrypt(copy));

    let fetched = token.get_attributes(session, key, &[ck::CKA_LABEL, ck::CKA_VALUE, ck::CKA_MODULUS]);
    let fetched = fetched.expect("attributes");
    assert_eq!(fetched[0].bytes(), Some(&b"key"[..]));
    assert_eq!(fetched[1..], [Fetched::Sensitive, Fetched::Invalid]);

    token.set_attributes(session, key, &vec![Attribute::bytes(ck::CKA_LABEL, "renamed")]).expect("renames");
    token.destroy_object(session, key).expect("destroys");
    assert!(find(&*token, session, "renamed").is_empty());
    token.logout(session).expect("logs out");
    token.close_session(session).expect("closes");
    assert_eq!(token.session_info(session).err(), Some(Rv::SESSION_HANDLE_INVALID));
}

#[test]
fn sign_in_one_and_in_parts_verify_and_refuse() {
    let store = Store::with(&["sign"]);
    let token = connect(&connector(&store, "sign"));
    let session = login(&*token);
    let public = vec![Attribute::bytes(ck::CKA_EC_PARAMS, P256), Attribute::bool(ck::CKA_VERIFY, true)];
    let private = vec![Attribute::bool(ck::CKA_SIGN, true), Attribute::bool(ck::CKA_TOKEN, false)];
    let mut generate = Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN);
    let (public, private) =
        token.generate_key_pair(session, &mut generate, &public, &private).expect("a pair");

    let mut ecdsa = Mechanism::plain(ck::CKM_ECDSA);
    token.op_init(session, OpKind::Sign, Some(&mut ecdsa), private).expect("init");
    let mut short = [0; 10];
    let mut out = Output::buffer(&mut short);
    assert_eq!(token.op_one_shot(session, OpKind::Sign, &[1; 32], &mut out), Err(Rv::BUFFER_TOO_SMALL));
    assert_eq!(out.len(), 64, "what it needs, and the operation goes on");
    let mut signature = [0; 64];
    token.op_one_shot(session, OpKind::Sign, &[1; 32], &mut Output::buffer(&mut signature)).expect("signs");

    let verify = |data: &[u8]| {
        token.op_init(session, OpKind::Verify, Some(&mut Mechanism::plain(ck::CKM_ECDSA)), public)?;
        token.verify(session, data, &signature)
    };
    assert_eq!(verify(&[1; 32]), Ok(()));
    assert_eq!(verify(&[2; 32]), Err(Rv::SIGNATURE_INVALID));
    let none = token.op_init(session, OpKind::Sign, Some(&mut ecdsa), ObjectHandle(9999));
    assert_eq!(none, Err(Rv::OBJECT_HANDLE_INVALID)); // SoftHSM's word, unchanged

    let mut sha = Mechanism::plain(ck::CKM_SHA256);
    let nothing = ObjectHandle(0);
    token.op_init(session, OpKind::Digest, Some(&mut sha), nothing).expect("init");
    let (mut whole, mut parts) = ([0; 32], [0; 32]);
    token.op_one_shot(session, OpKind::Digest, b"ab", &mut Output::buffer(&mut whole)).expect("digests");
    token.op_init(session, OpKind::Digest, Some(&mut sha), nothing).expect("init");
    for part in [&b"a"[..], b"b"] {
        token.op_update(session, OpKind::Digest, part, &mut Output::query()).expect("feeds");
    }
    token.op_final(session, OpKind::Digest, &mut Output::buffer(&mut parts)).expect("ends");
    assert_eq!(whole, parts);
}

#[test]
fn empty_slices_and_absent_functions_are_answered_not_crashed_on() {
    let store = Store::with(&["empty"]);
    let token = connect(&connector(&store, "empty"));
    let session = login(&*token);
    let mut sha = Mechanism::plain(ck::CKM_SHA256);
    token.op_init(session, OpKind::Digest, Some(&mut sha), ObjectHandle(0)).expect("init");
    let mut digest = [0; 32];
    token.op_one_shot(session, OpKind::Digest, b"", &mut Output::buffer(&mut digest)).expect("of nothing");
    assert_eq!(digest[..4], [0xE3, 0xB0, 0xC4, 0x42]);
    assert_eq!(token.generate_random(session, &mut []), Ok(()));
    let mut random = [0; 32];
    token.generate_random(session, &mut random).expect("random");
    assert_ne!(random, [0; 32]);
    token.find_objects_init(session, &vec![]).expect("everything");
    assert_eq!(token.find_objects(session, 0), Ok(vec![]));
    token.find_objects_final(session).expect("ends");
    // 2.40 has no such functions, and their fields are not read from its shorter list.
    assert_eq!(token.session_cancel(session, ck::CKF_SIGN), Err(Rv::FUNCTION_NOT_SUPPORTED));
    let mut gcm = Mechanism::plain(ck::CKM_AES_GCM);
    let begun = token.message_init(session, MessageKind::Encrypt, Some(&mut gcm), ObjectHandle(1));
    assert_eq!(begun, Err(Rv::FUNCTION_NOT_SUPPORTED));
    assert_eq!(token.message_mechanism(session, MessageKind::Encrypt), Err(Rv::OPERATION_NOT_INITIALIZED));
    assert_eq!(token.op_init(session, OpKind::Sign, None, ObjectHandle(0)), Err(Rv::ARGUMENTS_BAD));
    assert_eq!(token.login(session, ha_token::UserType::User, Some(b"")), Err(Rv::USER_ALREADY_LOGGED_IN));
}

#[test]
fn data_objects_come_back_byte_for_byte() {
    let store = Store::with(&["data"]);
    let token = connect(&connector(&store, "data"));
    let session = login(&*token);
    let value: Vec<u8> = (0..=255).collect();
    let template = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bytes(ck::CKA_VALUE, value.clone()),
    ];
    let object = token.create_object(session, &template).expect("creates");
    let copy = token.copy_object(session, object, &vec![]).expect("copies");
    let read = token.get_attributes(session, copy, &[ck::CKA_VALUE]).expect("reads");
    assert_eq!(read, [Fetched::Value(Value::Bytes(value.into()))]);
}

#[test]
fn parameters_with_pointers_and_nested_templates_reach_the_token() {
    let store = Store::with(&["deep"]);
    let token = connect(&connector(&store, "deep"));
    let session = login(&*token);
    let pair = || {
        let public = vec![Attribute::bytes(ck::CKA_EC_PARAMS, P256)];
        let private = vec![Attribute::bool(ck::CKA_DERIVE, true), Attribute::bool(ck::CKA_TOKEN, false)];
        let mut generate = Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN);
        let (public, private) =
            token.generate_key_pair(session, &mut generate, &public, &private).expect("a pair");
        let point = token.get_attributes(session, public, &[ck::CKA_EC_POINT]).expect("a point");
        (point[0].bytes().expect("a value").to_vec(), private)
    };
    let ((point_a, private_a), (point_b, private_b)) = (pair(), pair());
    let agree = |private, point: &[u8]| {
        let field = |name, value| Field { name, value };
        let fields = vec![
            field("kdf", FieldValue::Ulong(ck::CKD_NULL)),
            field("pSharedData", FieldValue::Bytes(None)),
            field("pPublicData", FieldValue::Bytes(Some(point.to_vec()))),
        ];
        let params = StructParams { layout: "CK_ECDH1_DERIVE_PARAMS", fields };
        let mut ecdh = Mechanism { kind: ck::CKM_ECDH1_DERIVE, params: Params::Struct(Box::new(params)) };
        let template = vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
            Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET),
            Attribute::ulong(ck::CKA_VALUE_LEN, 32),
            Attribute::bool(ck::CKA_SENSITIVE, false),
            Attribute::bool(ck::CKA_EXTRACTABLE, true),
        ];
        let key = token.derive_key(session, &mut ecdh, private, &template, true).expect("derives");
        let value = token.get_attributes(session, key.expect("a handle"), &[ck::CKA_VALUE]).expect("a value");
        value[0].bytes().expect("shown").to_vec()
    };
    let secret = agree(private_a, &point_b);
    assert_eq!((secret.len(), &secret), (32, &agree(private_b, &point_a)));

    let inner = vec![Attribute::bool(ck::CKA_SENSITIVE, true), Attribute::bool(ck::CKA_EXTRACTABLE, false)];
    let template = vec![
        Attribute::ulong(ck::CKA_VALUE_LEN, 32),
        Attribute::bool(ck::CKA_UNWRAP, true),
        Attribute::template(ck::CKA_UNWRAP_TEMPLATE, inner.clone()),
    ];
    let mut generate = Mechanism::plain(ck::CKM_AES_KEY_GEN);
    let key = token.generate_key(session, &mut generate, &template).expect("a key");
    let read = token.get_attributes(session, key, &[ck::CKA_UNWRAP_TEMPLATE]).expect("reads");
    match read[0].value() {
        Some(Value::Template(seen)) => {
            assert!(seen.len() == 2 && inner.iter().all(|a| seen.contains(a)), "{seen:?}");
        }
        other => panic!("{other:?}"),
    }
}
