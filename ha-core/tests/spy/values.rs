//! No key value ever passes through our hands.
//!
//! What is found is told apart by its bytes: throw-away keys, with which mechanisms are tried and group keys compared, have
//! fixed ones.

use ha_core::group::Word;
use ha_token::{Attribute, Mechanism, OpKind, Output, ck};

use crate::{Spied, spied};

const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const ED25519: &[u8] = b"\x13\x0cedwards25519";

/// Attributes that hold a secret or private key's value, as the spy names them.
const VALUES: [&str; 8] = [
    "CKA_VALUE",
    "CKA_PRIVATE_EXPONENT",
    "CKA_PRIME_1",
    "CKA_PRIME_2",
    "CKA_EXPONENT_1",
    "CKA_EXPONENT_2",
    "CKA_COEFFICIENT",
    "CKA_SEED",
];

impl Spied {
    /// Every value of such an attribute that is in the members' records, but for throw-away keys'.
    fn values(self) -> Vec<(String, Vec<u8>)> {
        let records = self.records();
        assert!(records.iter().all(|r| r.contains("C_UnwrapKey")));
        records.iter().flat_map(|r| values(r)).filter(|(_, v)| !is_throw_away(v)).collect()
    }
}

/// Whether a value is one of ours that everybody may know: one repeated byte, which one wrapping mechanism pads with
/// zeros, or a text.
fn is_throw_away(value: &[u8]) -> bool {
    let end = value.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    value[..end].iter().all(|b| [0x5a, 0xa5].contains(b)) || value == b"pkcs11-ha fingerprint of a group"
}

/// The attributes in a record whose value the spy shows.
fn values(record: &str) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<(String, Vec<u8>)> = Vec::new();
    let mut within = false;
    for line in record.lines() {
        let line = line.trim_start();
        let word = line.split_whitespace().next().unwrap_or_default();
        if word.starts_with("CKA_") {
            within = VALUES.contains(&word);
            if within {
                found.push((word.to_owned(), Vec::new()));
            }
        } else if within && word.len() == 8 && word.bytes().all(|b| b.is_ascii_hexdigit()) {
            // An offset, sixteen bytes, and the same as text.
            let bytes = line.get(10..58.min(line.len())).unwrap_or_default().split_whitespace();
            let bytes = bytes.map_while(|b| u8::from_str_radix(b, 16).ok());
            found.last_mut().unwrap().1.extend(bytes);
        } else {
            within = false;
        }
    }
    found.retain(|(_, value)| !value.is_empty());
    found
}

fn token(id: u8) -> Vec<Attribute> {
    vec![Attribute::bool(ck::CKA_TOKEN, true), Attribute::bytes(ck::CKA_ID, [id])]
}

fn with(id: u8, more: &[Attribute]) -> Vec<Attribute> {
    token(id).into_iter().chain(more.iter().cloned()).collect()
}

#[test]
fn keys_are_made_copied_proven_and_used_without_a_value_being_seen() {
    let group = spied("");
    let (slot, s) = (&group.slot, group.s);
    let plain = |kind| Mechanism::plain(kind);
    let rsa =
        [Attribute::ulong(ck::CKA_MODULUS_BITS, 2048), Attribute::bytes(ck::CKA_PUBLIC_EXPONENT, [1, 0, 1])];
    let signs = [Attribute::bool(ck::CKA_SIGN, true)];
    let ec = [Attribute::bytes(ck::CKA_EC_PARAMS, P256)];
    slot.generate_key_pair(s, &mut plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN), &with(1, &rsa), &with(1, &signs))
        .unwrap();
    let open = [signs[0].clone(), Attribute::bool(ck::CKA_EXTRACTABLE, true)];
    let pair = slot
        .generate_key_pair(s, &mut plain(ck::CKM_EC_KEY_PAIR_GEN), &with(2, &ec), &with(2, &open))
        .unwrap();
    let length = [Attribute::ulong(ck::CKA_VALUE_LEN, 32)];
    slot.generate_key(s, &mut plain(ck::CKM_AES_KEY_GEN), &with(3, &length)).unwrap();
    slot.generate_key(
        s,
        &mut plain(ck::CKM_GENERIC_SECRET_KEY_GEN),
        &with(4, &[length[0].clone(), signs[0].clone()]),
    )
    .unwrap();
    // A session key that becomes a token key.
    let (_, private) =
        slot.generate_key_pair(s, &mut plain(ck::CKM_EC_KEY_PAIR_GEN), &ec.to_vec(), &Vec::new()).unwrap();
    slot.copy_object(s, private, &token(5)).unwrap();

    slot.op_init(s, OpKind::Sign, Some(&mut plain(ck::CKM_ECDSA)), pair.1).unwrap();
    let mut space = [0; 64];
    slot.op_one_shot(s, OpKind::Sign, &[7; 32], &mut Output::buffer(&mut space)).unwrap();
    let checked = group.provider.groups()[0].check(true).unwrap();
    assert!(checked.len() == 7 && checked.iter().all(|c| c.worst() == Word::Same));
    slot.destroy_object(s, pair.1).unwrap();
    assert_eq!(group.values(), []);
}

/// What the application gives us goes to one member once, and from there wrapped.
#[test]
fn an_imported_key_is_given_to_one_member() {
    let group = spied("");
    let value: Vec<u8> = (1..=32).collect();
    let key = with(
        1,
        &[
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
            Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_AES),
            Attribute::bytes(ck::CKA_VALUE, value.as_slice()),
        ],
    );
    group.slot.create_object(group.s, &key).unwrap();
    assert_eq!(group.values(), [("CKA_VALUE".to_owned(), value)]);
}

/// The control: where the operator allows it a value does pass, and is found.
#[test]
fn host_memory_is_seen() {
    let group = spied("uncopyable = \"host-memory\"");
    let params = [Attribute::bytes(ck::CKA_EC_PARAMS, ED25519)];
    group
        .slot
        .generate_key_pair(
            group.s,
            &mut Mechanism::plain(ck::CKM_EC_EDWARDS_KEY_PAIR_GEN),
            &with(1, &params),
            &with(1, &[Attribute::bool(ck::CKA_SIGN, true)]),
        )
        .unwrap();
    let values = group.values();
    assert!(values.len() >= 3 && values.iter().all(|v| v == &values[0]), "read once, created twice");
    assert_eq!(values[0].1.len(), 32);
}
