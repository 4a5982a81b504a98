//! An object of each kind, made in each way, before its member is gone and after.

use ha_core::group::Origin;
use ha_core::replica::verifier::Verifier;
use ha_rig::Tokens;
use ha_token::*;
use sha2::Digest;

use crate::open_group::P256;
use crate::setting::*;

fn ecdh(point: &[u8]) -> Mechanism {
    let field = |name, value| Field { name, value };
    Mechanism {
        kind: ck::CKM_ECDH1_DERIVE,
        params: Params::Struct(Box::new(StructParams {
            layout: "CK_ECDH1_DERIVE_PARAMS",
            fields: vec![
                field("kdf", FieldValue::Ulong(ck::CKD_NULL)),
                field("pSharedData", FieldValue::Bytes(None)),
                field("pPublicData", FieldValue::Bytes(Some(point.to_vec()))),
            ],
        })),
    }
}

type Ask = Box<dyn Fn(&Setting) -> Result<Vec<u8>>>;

/// What is asked of an object, again and again.
enum Asked {
    /// An answer that is always the same.
    Same(Ask),
    /// A signature of this key.
    Signature(ObjectHandle, Box<Verifier>),
}

struct Case {
    name: &'static str,
    object: ObjectHandle,
    asked: Asked,
}

fn op(name: &'static str, kind: OpKind, mechanism: Ulong, object: ObjectHandle) -> Case {
    Case { name, object, asked: Asked::Same(Box::new(move |s| s.op(kind, mechanism, object, &[7; 32]))) }
}

fn ecb(name: &'static str, key: ObjectHandle) -> Case {
    op(name, OpKind::Encrypt, ck::CKM_AES_ECB, key)
}

fn mac(name: &'static str, key: ObjectHandle) -> Case {
    op(name, OpKind::Sign, ck::CKM_SHA256_HMAC, key)
}

fn read(name: &'static str, object: ObjectHandle, kind: Ulong) -> Case {
    Case { name, object, asked: Asked::Same(Box::new(move |s| s.value(object, kind))) }
}

/// An object of each kind, named by its case.
fn every_kind(setting: &Setting) -> Vec<Case> {
    let (slot, s) = (setting.slot(), setting.s());
    let sensitive = |may| Attribute::bool(ck::CKA_SENSITIVE, may);
    let length = |n| Attribute::ulong(ck::CKA_VALUE_LEN, n);
    let mut cases = vec![
        ecb("aes", setting.aes(&[label("aes")])),
        ecb("aes, not extractable", setting.aes(&[label("aes, not extractable"), extractable(false)])),
        read(
            "aes, readable",
            setting.aes(&[label("aes, readable"), extractable(true), sensitive(false)]),
            ck::CKA_VALUE,
        ),
        ecb("created aes", setting.create(&secret(&[5; 16], ck::CKK_AES, "created aes"))),
        mac(
            "created secret of an odd length",
            setting.create(&secret(&[5; 37], ck::CKK_GENERIC_SECRET, "created secret of an odd length")),
        ),
        read("data", setting.create(&data(false, b"data", "data")), ck::CKA_VALUE),
        read("private data", setting.create(&data(true, b"private", "private data")), ck::CKA_VALUE),
    ];
    let hmac = yes(&[ck::CKA_SIGN, ck::CKA_VERIFY]);
    cases.push(mac(
        "generic",
        setting
            .generate(ck::CKM_GENERIC_SECRET_KEY_GEN, &with(hmac.clone(), &[length(32), label("generic")])),
    ));
    // Pairs.
    for (name, public_name, more) in [
        ("ec", "ec, public", vec![]),
        ("ec, not extractable", "ec, not extractable, public", vec![extractable(false)]),
    ] {
        let public =
            with(yes(&[ck::CKA_VERIFY]), &[Attribute::bytes(ck::CKA_EC_PARAMS, P256), label(public_name)]);
        let private = with(with(yes(&[ck::CKA_SIGN]), &[label(name)]), &more);
        let (public, private) = setting.pair(ck::CKM_EC_KEY_PAIR_GEN, &public, &private);
        let point = setting.value(public, ck::CKA_EC_POINT).unwrap();
        let verifier = Verifier::from_public(ck::CKK_EC, None, None, Some(P256), Some(&point)).unwrap();
        cases.push(read(public_name, public, ck::CKA_EC_POINT));
        cases.push(Case { name, object: private, asked: Asked::Signature(private, Box::new(verifier)) });
    }
    let public = with(yes(&[ck::CKA_VERIFY]), &[Attribute::ulong(ck::CKA_MODULUS_BITS, 2048)]);
    let private = with(yes(&[ck::CKA_SIGN, ck::CKA_DECRYPT]), &[label("rsa")]);
    let (_, private) = setting.pair(ck::CKM_RSA_PKCS_KEY_PAIR_GEN, &public, &private);
    cases.push(op("rsa", OpKind::Sign, ck::CKM_SHA256_RSA_PKCS, private));
    // Derived.
    let public = vec![Attribute::bytes(ck::CKA_EC_PARAMS, P256)];
    let (public, private) = setting.pair(ck::CKM_EC_KEY_PAIR_GEN, &public, &yes(&[ck::CKA_DERIVE]));
    let point = setting.value(public, ck::CKA_EC_POINT).unwrap();
    for (name, more) in [
        ("derived", vec![]),
        ("derived, extractable", vec![extractable(true)]),
        ("derived, not extractable", vec![extractable(false)]),
    ] {
        let is = [
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
            Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET),
            length(32),
            label(name),
        ];
        let template = with(with(hmac.clone(), &is), &more);
        let key = slot.derive_key(s, &mut ecdh(&point), private, &template, true).unwrap().unwrap();
        cases.push(mac(name, key));
    }
    // Unwrapped.
    let wrapping = setting.generate(
        ck::CKM_AES_KEY_GEN,
        &with(yes(&[ck::CKA_WRAP, ck::CKA_UNWRAP]), &[length(32), label("wrapping")]),
    );
    let wrapped = setting.create(&with(secret(&[9; 32], ck::CKK_AES, "wrapped"), &[extractable(true)]));
    let mut space = [0; 64];
    let mut out = Output::buffer(&mut space);
    slot.wrap_key(s, &mut plain(ck::CKM_AES_KEY_WRAP), wrapping, wrapped, &mut out).unwrap();
    for (name, more) in [("unwrapped", vec![]), ("unwrapped, extractable", vec![extractable(true)])] {
        let template = with(
            secret(&[], ck::CKK_AES, name).into_iter().filter(|a| a.kind != ck::CKA_VALUE).collect(),
            &more,
        );
        let mechanism = &mut plain(ck::CKM_AES_KEY_WRAP);
        cases.push(ecb(name, slot.unwrap_key(s, mechanism, wrapping, out.written(), &template).unwrap()));
    }
    // Copied.
    let token = setting.aes(&[Attribute::bool(ck::CKA_TOKEN, true), label("on the token")]);
    let session = |name| vec![Attribute::bool(ck::CKA_TOKEN, false), label(name)];
    let copy = |source, name| slot.copy_object(s, source, &session(name)).unwrap();
    let first = (cases[0].object, cases[3].object, cases[6].object);
    cases.push(ecb("copy of a token key", copy(token, "copy of a token key")));
    cases.push(ecb("copy of a session key", copy(first.0, "copy of a session key")));
    cases.push(ecb("copy of what was created", copy(first.1, "copy of what was created")));
    cases.push(read("copy of data", copy(first.2, "copy of data"), ck::CKA_VALUE));
    slot.destroy_object(s, token).unwrap();
    cases
}

fn answers(setting: &Setting, cases: &[Case]) -> Vec<Vec<u8>> {
    let told = [
        ck::CKA_LABEL,
        ck::CKA_PRIVATE,
        ck::CKA_SENSITIVE,
        ck::CKA_EXTRACTABLE,
        ck::CKA_LOCAL,
        ck::CKA_ALWAYS_SENSITIVE,
        ck::CKA_NEVER_EXTRACTABLE,
        ck::CKA_VALUE_LEN,
        ck::CKA_CHECK_VALUE,
        ck::CKA_KEY_GEN_MECHANISM,
        ck::CKA_SIGN,
        ck::CKA_ENCRYPT,
        ck::CKA_DECRYPT,
        ck::CKA_WRAP,
        ck::CKA_DERIVE,
        ck::CKA_MODIFIABLE,
        ck::CKA_COPYABLE,
    ];
    let mut all = Vec::new();
    for case in cases {
        let answer = match &case.asked {
            Asked::Same(f) => f(setting).unwrap_or_else(|rv| panic!("{}: {rv}", case.name)),
            Asked::Signature(key, verifier) => {
                let digest = sha2::Sha256::digest(b"message");
                let signature = setting.op(OpKind::Sign, ck::CKM_ECDSA, *key, &digest);
                let signature = signature.unwrap_or_else(|rv| panic!("{}: {rv}", case.name));
                assert_eq!(verifier.check_signature(b"message", &signature), Some(true), "{}", case.name);
                Vec::new()
            }
        };
        let attributes = setting.slot().get_attributes(setting.s(), case.object, &told).unwrap();
        let attributes = attributes.iter().flat_map(|f| [f.bytes().unwrap_or(b"?"), b"/"].concat());
        all.push(answer.into_iter().chain(*b"|").chain(attributes).collect());
    }
    all
}

fn same(cases: &[Case], before: &[Vec<u8>], after: &[Vec<u8>]) {
    for ((case, before), after) in cases.iter().zip(before).zip(after) {
        assert_eq!(String::from_utf8_lossy(before), String::from_utf8_lossy(after), "{}", case.name);
    }
}

#[test]
fn every_kind_goes_on_on_the_other_member_and_back_again() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, REPLAY);
    let cases = every_kind(&setting);
    let before = answers(&setting, &cases);
    setting.kill(0);
    same(&cases, &before, &answers(&setting, &cases));
    for case in &cases {
        assert_eq!(setting.named(case.name), [case.object], "{}", case.name);
    }
    setting.back(0);
    same(&cases, &before, &answers(&setting, &cases));
    setting.kill(1);
    same(&cases, &before, &answers(&setting, &cases));
    setting.back(1);
    for case in &cases {
        assert_eq!(setting.named(case.name), [case.object], "{}", case.name);
    }
    // Nothing is left with the session.
    setting.slot().close_session(setting.s()).unwrap();
    let left = setting.open.provider.groups()[0].objects.select(|o| matches!(o.origin, Origin::Session(_)));
    assert!(left.is_empty());
}
