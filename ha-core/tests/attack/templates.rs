//! What an application may ask of an object: the same for what is made, copied and changed; and none of what is secret of
//! it comes near the ledger (guarantees G1 and G9).

use ha_core::group::Word;
use ha_rig::Tokens;
use ha_token::{Attribute, ObjectHandle, Rv, ck};

use crate::open_group::{Open, private};
use crate::setting::{data, label, named, plain, secret, yes};

const GROUP_KEY: &[u8] = b"pkcs11-ha group key";
const ENROLMENT_KEY: &[u8] = b"pkcs11-ha enrolment key";

/// Whether the files that the group keeps hold these bytes now.
fn in_state(tokens: &Tokens, bytes: &[u8]) -> bool {
    let dir = std::fs::read_dir(tokens.path().join("state")).unwrap();
    dir.filter_map(|f| std::fs::read(f.unwrap().path()).ok())
        .any(|file| file.windows(bytes.len()).any(|w| w == bytes))
}

fn wrap_key(open: &Open, n: u8) -> ObjectHandle {
    let template = secret(n, &[yes(ck::CKA_WRAP), yes(ck::CKA_ENCRYPT), yes(ck::CKA_PRIVATE)]);
    open.slot.generate_key(open.s, &mut plain(ck::CKM_AES_KEY_GEN), &template).unwrap()
}

#[test]
fn never_a_key_is_renamed_out_of_sight() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let (_, key) = open.ec_pair(1).unwrap();
    let refused = Err(Rv::ATTRIBUTE_VALUE_INVALID);
    assert_eq!(open.slot.set_attributes(open.s, key, &named(ENROLMENT_KEY)), refused);
    let id = Attribute::bytes(ck::CKA_ID, [7; 17]);
    open.slot.set_attributes(open.s, key, &vec![id.clone()]).unwrap();
    assert_eq!(open.slot.set_attributes(open.s, key, &named(GROUP_KEY)), refused, "with the id that it has");
    assert_eq!(open.slot.copy_object(open.s, key, &named(GROUP_KEY)), Err(Rv::ATTRIBUTE_VALUE_INVALID));
    drop(open);
    let open = Open::new(&tokens, "");
    assert_eq!(open.find(&vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_PRIVATE_KEY), id]).len(), 1);
    assert_eq!(open.words(true), [Word::Same; 2]);
}

#[test]
fn never_a_change_that_says_something_twice_parts_ledger_and_token() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let (_, key) = open.ec_pair(1).unwrap();
    let twice = vec![label(b"one"), label(b"two")];
    assert_eq!(open.slot.set_attributes(open.s, key, &twice), Err(Rv::TEMPLATE_INCONSISTENT));
    drop(open);
    let open = Open::new(&tokens, "");
    assert_eq!(open.words(true), [Word::Same; 2]);
    assert!(open.sign(open.find(&private(1))[0]).is_ok());
}

#[test]
fn never_a_key_that_wraps_learns_to_decrypt() {
    let tokens = Tokens::new(2);
    let decrypts = vec![yes(ck::CKA_DECRYPT)];
    let open = Open::new(&tokens, "strict_usage = true");
    let key = wrap_key(&open, 1);
    assert_eq!(open.slot.set_attributes(open.s, key, &decrypts), Err(Rv::TEMPLATE_INCONSISTENT));
    assert_eq!(open.slot.copy_object(open.s, key, &decrypts), Err(Rv::TEMPLATE_INCONSISTENT));
    drop(open);
    let open = Open::new(&tokens, "");
    let key = open.find(&vec![Attribute::bytes(ck::CKA_ID, [1])])[0];
    open.slot.set_attributes(open.s, key, &decrypts).unwrap();
    assert_eq!(open.words(true), [Word::Same]);
}

#[test]
fn never_a_value_that_is_to_be_set_comes_near_the_ledger() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let mut template = data(b"plain", b"before");
    template.push(yes(ck::CKA_PRIVATE));
    let object = open.slot.create_object(open.s, &template).unwrap();
    let (_, key) = open.ec_pair(1).unwrap();
    let sets = [
        (object, ck::CKA_VALUE, b"value of an object"),
        (key, ck::CKA_VALUE, b"the key's own value"[1..].try_into().unwrap()),
        (key, ck::CKA_PRIVATE_EXPONENT, b"a private exponent"),
        (key, ck::CKA_PRIME_1, b"the first of primes"[1..].try_into().unwrap()),
    ];
    for (object, kind, value) in sets {
        let template = vec![Attribute::bytes(kind, *value)];
        let refused = match kind {
            ck::CKA_VALUE => Rv::ATTRIBUTE_READ_ONLY,
            // No part of such a key.
            _ => Rv::ATTRIBUTE_TYPE_INVALID,
        };
        assert_eq!(open.slot.set_attributes(open.s, object, &template), Err(refused));
        assert!(!in_state(&tokens, value), "{kind:#x}");
    }
    assert_eq!(open.words(true), [Word::Same; 3]);
}

#[test]
fn never_an_object_that_the_token_makes_private_is_in_the_ledger() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let value = b"what only the user may read";
    let object = open.slot.create_object(open.s, &data(b"silent", value)).unwrap();
    let told = open.slot.get_attributes(open.s, object, &[ck::CKA_PRIVATE]).unwrap();
    assert_eq!(told[0].bytes(), Some(&[1][..]), "SoftHSM's default");
    assert!(!in_state(&tokens, value));
    open.slot.logout(open.s).unwrap();
    assert_eq!(open.find(&named(b"silent")), []);
    open.log_in();
    assert_eq!(open.find(&named(b"silent")).len(), 1);
    assert_eq!(open.words(true), [Word::Same]);
}

#[test]
fn never_a_key_that_was_sealed_while_a_member_was_away_is_missing_there() {
    let tokens = Tokens::new(2);
    let group = "min_copies = 1";
    // The group keys are on both.
    Open::new(&tokens, group).ec_pair(1).unwrap();
    tokens.hide(1);
    let open = Open::new(&tokens, group);
    let template = secret(2, &[yes(ck::CKA_ENCRYPT), yes(ck::CKA_EXTRACTABLE)]);
    let key = open.slot.generate_key(open.s, &mut plain(ck::CKM_AES_KEY_GEN), &template).unwrap();
    open.slot.set_attributes(open.s, key, &vec![Attribute::bool(ck::CKA_EXTRACTABLE, false)]).unwrap();
    drop(open);
    tokens.restore(1);
    let open = Open::new(&tokens, group);
    open.wait("it is on both", |g| {
        g.check(true).is_ok_and(|all| all.len() == 3 && all.iter().all(|c| c.worst() == Word::Same))
    });
    let key = open.find(&vec![Attribute::bytes(ck::CKA_ID, [2])])[0];
    let told = open.slot.get_attributes(open.s, key, &[ck::CKA_EXTRACTABLE]).unwrap();
    assert_eq!(told[0].bytes(), Some(&[0][..]));
}
