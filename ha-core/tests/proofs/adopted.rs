//! Keys from before the group: adopted with a proof, or not, and said why.

use std::time::Duration;

use ha_core::replica::ledger::Ledger;
use ha_rig::Tokens;
use ha_token::{Attribute, Mechanism, OpKind, Template, TemplateExt, ck};

use crate::group::{Bare, Open};

const P192: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x01];

fn template(id: u8) -> Template {
    vec![
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bytes(ck::CKA_ID, [id]),
        Attribute::bool(ck::CKA_EXTRACTABLE, true),
    ]
}

#[test]
fn adopted_keys_are_proven_after_a_restart_and_others_say_why_not() {
    let tokens = Tokens::new(2);
    let bare = Bare::new(&tokens, 0);
    let (token, s) = (&bare.token, bare.s);
    // A derive-only key on a curve that only the token knows, without its public key.
    let mut private = template(1);
    private.push(Attribute::bool(ck::CKA_SIGN, false));
    private.push(Attribute::bool(ck::CKA_DERIVE, true));
    let mut pair = Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN);
    token
        .generate_key_pair(s, &mut pair, &vec![Attribute::bytes(ck::CKA_EC_PARAMS, P192)], &private)
        .unwrap();
    // A secret that may do nothing, and one that signs.
    for (id, sign) in [(2, false), (3, true)] {
        let mut secret = template(id);
        secret.push(Attribute::ulong(ck::CKA_VALUE_LEN, 32));
        for usage in [ck::CKA_ENCRYPT, ck::CKA_DECRYPT, ck::CKA_VERIFY] {
            secret.push(Attribute::bool(usage, false));
        }
        secret.push(Attribute::bool(ck::CKA_SIGN, sign));
        token.generate_key(s, &mut Mechanism::plain(ck::CKM_GENERIC_SECRET_KEY_GEN), &secret).unwrap();
    }
    // One that wrapping would pad, and does not say so.
    let mut short = template(4);
    short.set(Attribute::bool(ck::CKA_SIGN, true));
    bare.unwrapped(&[7; 20], &short);
    drop(bare);

    let open = Open::new(&tokens, "");
    let adopted = open.provider.groups()[0].adopt("a", false).unwrap();
    let left: Vec<_> =
        adopted.iter().filter_map(|a| Some((a.id.as_slice(), a.why_not.as_deref()?))).collect();
    assert_eq!(left, [(&[4][..], "no wrapping mechanism of this token carries the key whole")]);
    assert_eq!(open.left_behind(), 0);
    drop(open);
    let open = Open::new(&tokens, "");
    for _ in 0..2 {
        let key = open.one(ck::CKO_SECRET_KEY, &[3]);
        open.operate(OpKind::Sign, ck::CKM_SHA256_HMAC, key, b"data").unwrap();
    }
    for (class, id) in [(ck::CKO_PRIVATE_KEY, 1), (ck::CKO_SECRET_KEY, 2), (ck::CKO_SECRET_KEY, 3)] {
        let key = open.one(class, &[id]);
        open.slot.copy_object(open.s, key, &vec![Attribute::bool(ck::CKA_TOKEN, false)]).unwrap();
        open.slot.destroy_object(open.s, key).unwrap();
    }
    drop(open);
    assert_eq!(Bare::new(&tokens, 0).objects(), 1, "the one that was not adopted stays");
    assert_eq!(Bare::new(&tokens, 1).objects(), 0);
}

#[test]
fn the_value_of_an_adopted_private_object_is_on_the_members_and_not_in_the_ledger() {
    let tokens = Tokens::new(2);
    let bare = Bare::new(&tokens, 0);
    let data = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bool(ck::CKA_PRIVATE, true),
        Attribute::bytes(ck::CKA_VALUE, *b"nobody else's"),
    ];
    bare.token.create_object(bare.s, &data).unwrap();
    drop(bare);

    let open = Open::new(&tokens, "");
    let adopted = open.provider.groups()[0].adopt("a", false).unwrap();
    assert!(adopted.iter().all(|a| a.why_not.is_none()), "{adopted:?}");
    drop(open);
    let ledger = Ledger::open(&tokens.state(), "ha1", Duration::from_secs(5), &mut |_| ()).unwrap();
    let rows = ledger.objects().unwrap();
    assert_eq!(rows.len(), 1);
    assert!(rows.iter().all(|row| row.template.get(ck::CKA_VALUE).is_none()));
    for member in 0..2 {
        let bare = Bare::new(&tokens, member);
        bare.token.find_objects_init(bare.s, &data).unwrap();
        assert_eq!(bare.token.find_objects(bare.s, 10).unwrap().len(), 1, "member {member}");
    }
}
