//! What limits a key limits every copy of it, however the copy came to be.
#![allow(missing_docs, clippy::unwrap_used)]

mod open_group;

use ha_core::group::Word;
use ha_rig::Tokens;
use ha_token::{Attribute, Mechanism, ObjectHandle, OpKind, Output, Rv, Template, Ulong, ck};
use open_group::{Open, P256};

fn mechanisms(list: &[Ulong]) -> Attribute {
    let bytes: Vec<u8> = list.iter().flat_map(|m| m.to_ne_bytes()).collect();
    Attribute::bytes(ck::CKA_ALLOWED_MECHANISMS, bytes)
}

fn may(open: &Open, key: ObjectHandle, mechanism: Ulong) -> Result<(), Rv> {
    open.slot.op_init(open.s, OpKind::Sign, Some(&mut Mechanism::plain(mechanism)), key)?;
    open.slot.op_one_shot(open.s, OpKind::Sign, &[7; 32], &mut Output::buffer(&mut [0; 512]))
}

/// A copy on each member says the same of itself: asked on the bare tokens.
fn same_everywhere(tokens: &Tokens, label: &str, lines: &[&str]) {
    for member in [0, 1] {
        let list = tokens.bare(member, &["--list-objects"]);
        assert!(list.contains(label), "{member}: {list}");
        for line in lines {
            assert!(list.contains(line), "{member}: {line}: {list}");
        }
    }
}

#[test]
fn keys_with_allowed_mechanisms_are_proven_and_used_after_a_restart() {
    let tokens = Tokens::new(2);
    let token = Attribute::bool(ck::CKA_TOKEN, true);
    let open = Open::new(&tokens, "");
    let public = |parameter: Attribute| vec![token.clone(), parameter, Attribute::bool(ck::CKA_VERIFY, true)];
    let private = |list: &[Ulong], id: u8| {
        vec![
            token.clone(),
            Attribute::bool(ck::CKA_SIGN, true),
            Attribute::bool(ck::CKA_DECRYPT, true),
            Attribute::bytes(ck::CKA_ID, [id]),
            mechanisms(list),
        ]
    };
    let pair = |kind, public: Template, private: Template| {
        open.slot.generate_key_pair(open.s, &mut Mechanism::plain(kind), &public, &private).unwrap()
    };
    pair(
        ck::CKM_RSA_PKCS_KEY_PAIR_GEN,
        public(Attribute::ulong(ck::CKA_MODULUS_BITS, 2048)),
        private(&[ck::CKM_SHA512_RSA_PKCS], 1),
    );
    pair(
        ck::CKM_EC_KEY_PAIR_GEN,
        public(Attribute::bytes(ck::CKA_EC_PARAMS, P256)),
        private(&[ck::CKM_ECDSA], 2),
    );
    let mut aes = private(&[ck::CKM_AES_CBC], 3);
    aes.retain(|a| a.kind != ck::CKA_SIGN);
    aes.push(Attribute::ulong(ck::CKA_VALUE_LEN, 32));
    open.slot.generate_key(open.s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &aes).unwrap();
    drop(open);
    let open = Open::new(&tokens, "");
    assert_eq!(open.words(true), [Word::Same; 5]);
    let find = |id: u8, class| {
        open.find(&vec![Attribute::ulong(ck::CKA_CLASS, class), Attribute::bytes(ck::CKA_ID, [id])])[0]
    };
    let rsa = find(1, ck::CKO_PRIVATE_KEY);
    // More often than one member would do alone.
    for _ in 0..300 {
        assert_eq!(may(&open, rsa, ck::CKM_SHA512_RSA_PKCS), Ok(()));
        assert_eq!(may(&open, rsa, ck::CKM_SHA256_RSA_PKCS), Err(Rv::MECHANISM_INVALID));
    }
    assert_eq!(may(&open, find(2, ck::CKO_PRIVATE_KEY), ck::CKM_ECDSA), Ok(()));
}

#[test]
fn a_copy_made_of_a_session_key_has_its_limits() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let template = vec![
        Attribute::ulong(ck::CKA_VALUE_LEN, 32),
        Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET),
        Attribute::bool(ck::CKA_SIGN, true),
        mechanisms(&[ck::CKM_SHA256_HMAC]),
    ];
    let key = open
        .slot
        .generate_key(open.s, &mut Mechanism::plain(ck::CKM_GENERIC_SECRET_KEY_GEN), &template)
        .unwrap();
    let asked = vec![Attribute::bool(ck::CKA_TOKEN, true), Attribute::bytes(ck::CKA_LABEL, *b"copied")];
    let copy = open.slot.copy_object(open.s, key, &asked).unwrap();
    let limits = open.slot.get_attributes(open.s, copy, &[ck::CKA_ALLOWED_MECHANISMS]).unwrap();
    assert_eq!(limits[0].value(), Some(&mechanisms(&[ck::CKM_SHA256_HMAC]).value));
    for _ in 0..300 {
        assert_eq!(may(&open, copy, ck::CKM_SHA256_HMAC), Ok(()));
        assert_eq!(may(&open, copy, ck::CKM_SHA512_HMAC), Err(Rv::MECHANISM_INVALID));
    }
    same_everywhere(&tokens, "copied", &[]);
}

#[test]
fn an_adopted_key_has_its_limits_on_every_member() {
    let tokens = Tokens::new(2);
    // Made on the first member alone, before there is a group.
    let alone = tokens.config(false, "min_copies = 1").replace("ha1", "before");
    let alone = alone.split("[[group.member]]").take(2).collect::<Vec<_>>().join("[[group.member]]");
    let before = Open::of(&alone.replace("state\"", "before\""));
    let template = vec![
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bytes(ck::CKA_LABEL, *b"limited"),
        Attribute::ulong(ck::CKA_VALUE_LEN, 32),
        Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET),
        Attribute::bool(ck::CKA_SIGN, true),
        Attribute::bool(ck::CKA_EXTRACTABLE, true),
        Attribute::bool(ck::CKA_DESTROYABLE, false),
        mechanisms(&[ck::CKM_SHA256_HMAC]),
    ];
    before
        .slot
        .generate_key(before.s, &mut Mechanism::plain(ck::CKM_GENERIC_SECRET_KEY_GEN), &template)
        .unwrap();
    drop(before);
    let open = Open::new(&tokens, "");
    let adopted = open.provider.groups()[0].adopt("a", false).unwrap();
    let one = adopted.iter().find(|a| a.label == b"limited").expect("it is there");
    assert_eq!(one.why_not, None);
    let key = open.find(&vec![Attribute::bytes(ck::CKA_LABEL, *b"limited")])[0];
    for _ in 0..300 {
        assert_eq!(may(&open, key, ck::CKM_SHA256_HMAC), Ok(()));
        assert_eq!(may(&open, key, ck::CKM_SHA512_HMAC), Err(Rv::MECHANISM_INVALID));
    }
    assert_eq!(open.slot.destroy_object(open.s, key), Err(Rv::ACTION_PROHIBITED));
}
