//! A key that cannot be proven is refused, said so, and leaves nothing.

use std::time::Duration;

use ha_core::config::Config;
use ha_core::group::GroupEvent;
use ha_core::replica::ledger::Ledger;
use ha_rig::Tokens;
use ha_token::{Attribute, AttributeType, Mechanism, Rv, Template, TemplateExt, ck};

use crate::group::{Bare, Open};

#[test]
fn a_key_that_cannot_be_proven_is_refused_and_leaves_nothing() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let events = open.provider.groups()[0].events();
    let public = vec![Attribute::bool(ck::CKA_TOKEN, true), Attribute::ulong(ck::CKA_MODULUS_BITS, 1024)];
    // It may do nothing, and nothing may be made of it.
    let private = vec![
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bool(ck::CKA_SIGN, false),
        Attribute::bool(ck::CKA_DECRYPT, false),
        Attribute::bool(ck::CKA_UNWRAP, false),
        Attribute::bool(ck::CKA_EXTRACTABLE, false),
        Attribute::bool(ck::CKA_COPYABLE, false),
    ];
    let mut generate = Mechanism::plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN);
    let refused = open.slot.generate_key_pair(open.s, &mut generate, &public, &private);
    assert_eq!(refused, Err(Rv::TEMPLATE_INCONSISTENT));
    let said = events.try_iter().find_map(|e| match e {
        GroupEvent::Refused { rv: Rv::TEMPLATE_INCONSISTENT, reason, .. } => Some(reason),
        _ => None,
    });
    let said = said.expect("it is said why");
    assert!(said.contains("CKA_SIGN") && said.contains("CKA_COPYABLE"), "{said}");
    assert_eq!(open.left_behind(), 0);
    assert!(open.find(&Vec::new()).is_empty());
    // Either of these is enough.
    for enough in [ck::CKA_COPYABLE, ck::CKA_EXTRACTABLE, ck::CKA_UNWRAP] {
        let mut private = private.clone();
        private.set(Attribute::bool(enough, true));
        let made = open.slot.generate_key_pair(open.s, &mut generate, &public, &private);
        assert!(made.is_ok(), "{enough:x}: {made:?}");
    }
    assert_eq!(open.doubts(), []);
    for object in open.find(&Vec::new()) {
        open.slot.destroy_object(open.s, object).unwrap();
    }
    drop(open);
    for member in [0, 1] {
        assert_eq!(Bare::new(&tokens, member).objects(), 0, "nothing is left on member {member}");
    }
    // Until each token's marker is later than that.
    drop(Open::new(&tokens, ""));
    let state = Config::parse(&tokens.config(false, "")).unwrap().state_dir;
    let ledger = Ledger::open(&state, "ha1", Duration::from_secs(5), &mut |_| ()).unwrap();
    assert_eq!(ledger.objects().unwrap().len(), 0, "nothing is left in the ledger");
}

/// With the key on one member only the same holds.
#[test]
fn a_key_on_one_member_is_proven_or_refused_too() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "non_extractable = \"local\"");
    let public = vec![Attribute::bool(ck::CKA_TOKEN, true), Attribute::ulong(ck::CKA_MODULUS_BITS, 1024)];
    let mut private = vec![
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bytes(ck::CKA_ID, [1]),
        Attribute::bool(ck::CKA_SIGN, true),
        Attribute::bool(ck::CKA_EXTRACTABLE, false),
    ];
    let mut generate = Mechanism::plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN);
    open.slot.generate_key_pair(open.s, &mut generate, &public, &private).unwrap();
    private.set(Attribute::bytes(ck::CKA_ID, [2]));
    for no in [ck::CKA_SIGN, ck::CKA_DECRYPT, ck::CKA_UNWRAP, ck::CKA_COPYABLE] {
        private.set(Attribute::bool(no, false));
    }
    let refused = open.slot.generate_key_pair(open.s, &mut generate, &public, &private);
    assert_eq!(refused, Err(Rv::TEMPLATE_INCONSISTENT));
    assert_eq!(open.left_behind(), 0);
    drop(open);
    let open = Open::new(&tokens, "non_extractable = \"local\"");
    let key = open.one(ck::CKO_PRIVATE_KEY, &[1]);
    for _ in 0..2 {
        open.operate(ha_token::OpKind::Sign, ck::CKM_SHA256_RSA_PKCS, key, b"data").unwrap();
    }
}

#[test]
fn the_last_way_to_prove_a_key_is_not_taken_away() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let (slot, s) = (&open.slot, open.s);
    let public = vec![Attribute::bool(ck::CKA_TOKEN, true), Attribute::ulong(ck::CKA_MODULUS_BITS, 1024)];
    let mut private = vec![
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bytes(ck::CKA_ID, [1]),
        Attribute::bool(ck::CKA_SIGN, true),
        Attribute::bool(ck::CKA_UNWRAP, true),
        Attribute::bool(ck::CKA_DECRYPT, false),
        Attribute::bool(ck::CKA_EXTRACTABLE, false),
    ];
    let mut generate = Mechanism::plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN);
    let (_, key) = slot.generate_key_pair(s, &mut generate, &public, &private).unwrap();
    let set = |key, kind, to| slot.set_attributes(s, key, &vec![Attribute::bool(kind, to)]);
    // What may be copied may be proven by a copy that signs.
    set(key, ck::CKA_SIGN, false).unwrap();
    set(key, ck::CKA_UNWRAP, false).unwrap();
    assert_eq!(set(key, ck::CKA_COPYABLE, false), Err(Rv::TEMPLATE_INCONSISTENT));
    private.set(Attribute::bytes(ck::CKA_ID, [2]));
    private.push(Attribute::bool(ck::CKA_COPYABLE, false));
    let (_, key) = slot.generate_key_pair(s, &mut generate, &public, &private).unwrap();
    set(key, ck::CKA_UNWRAP, false).unwrap();
    assert_eq!(set(key, ck::CKA_SIGN, false), Err(Rv::TEMPLATE_INCONSISTENT));
    assert_eq!(open.doubts(), []);
    assert_eq!(open.left_behind(), 0);
    drop(open);
    let open = Open::new(&tokens, "");
    let key = open.one(ck::CKO_PRIVATE_KEY, &[2]);
    open.operate(ha_token::OpKind::Sign, ck::CKM_SHA256_RSA_PKCS, key, b"data").unwrap();
}

/// A DSA key says nothing of its public key, which may be there already.
#[test]
fn an_imported_dsa_key_is_proven_by_the_public_key_beside_it() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let (slot, s) = (&open.slot, open.s);
    let bits = vec![Attribute::ulong(ck::CKA_PRIME_BITS, 1024)];
    let domain = slot.generate_key(s, &mut Mechanism::plain(ck::CKM_DSA_PARAMETER_GEN), &bits).unwrap();
    let numbers = [ck::CKA_PRIME, ck::CKA_SUBPRIME, ck::CKA_BASE];
    let part = |object, kind| Attribute::bytes(kind, open.value(object, kind));
    let domain: Template = numbers.iter().map(|n| part(domain, *n)).collect();
    let readable =
        vec![Attribute::bool(ck::CKA_SENSITIVE, false), Attribute::bool(ck::CKA_EXTRACTABLE, true)];
    let mut generate = Mechanism::plain(ck::CKM_DSA_KEY_PAIR_GEN);
    let pair = slot.generate_key_pair(s, &mut generate, &domain, &readable).unwrap();
    let object = |class, key, id: u8| {
        let mut template = vec![
            Attribute::ulong(ck::CKA_CLASS, class),
            Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_DSA),
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::bytes(ck::CKA_ID, [id]),
            part(key, ck::CKA_VALUE),
        ];
        template.extend(domain.iter().cloned());
        slot.create_object(s, &template)
    };
    assert_eq!(object(ck::CKO_PRIVATE_KEY, pair.1, 1), Err(Rv::TEMPLATE_INCONSISTENT));
    object(ck::CKO_PUBLIC_KEY, pair.0, 2).unwrap();
    // Another public key of this id does not do.
    let other = slot.generate_key_pair(s, &mut generate, &domain, &readable).unwrap();
    object(ck::CKO_PUBLIC_KEY, other.0, 3).unwrap();
    assert_eq!(object(ck::CKO_PRIVATE_KEY, pair.1, 3), Err(Rv::TEMPLATE_INCONSISTENT));
    object(ck::CKO_PRIVATE_KEY, pair.1, 2).unwrap();
    assert_eq!(open.doubts(), []);
    assert_eq!(open.left_behind(), 0);
    drop(open);
    let open = Open::new(&tokens, "");
    let key = open.one(ck::CKO_PRIVATE_KEY, &[2]);
    for _ in 0..2 {
        open.operate(ha_token::OpKind::Sign, ck::CKM_DSA, key, &[7; 20]).unwrap();
    }
}

/// Keys that no mechanism wraps go through this process's memory, and are proven all the same.
#[test]
fn keys_that_go_through_host_memory_are_proven_or_refused() {
    let group = "uncopyable = \"host-memory\"";
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, group);
    let mut generate = Mechanism::plain(ck::CKM_EC_EDWARDS_KEY_PAIR_GEN);
    let pair = |params: &[u8], id: u8, usage: Option<AttributeType>| {
        let public = vec![
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::bytes(ck::CKA_ID, [id]),
            Attribute::bytes(ck::CKA_EC_PARAMS, params),
        ];
        let mut private = vec![Attribute::bool(ck::CKA_TOKEN, true), Attribute::bytes(ck::CKA_ID, [id])];
        for kind in [ck::CKA_SIGN, ck::CKA_DERIVE] {
            private.push(Attribute::bool(kind, usage == Some(kind)));
        }
        (public, private)
    };
    let (ed25519, x25519): (&[u8], &[u8]) = (b"\x13\x0cedwards25519", b"\x13\x0acurve25519");
    let mut make = |params, id, usage| {
        let (public, private) = pair(params, id, usage);
        open.slot.generate_key_pair(open.s, &mut generate, &public, &private)
    };
    make(ed25519, 1, Some(ck::CKA_SIGN)).unwrap();
    make(ed25519, 2, None).unwrap();
    let refused = make(x25519, 3, Some(ck::CKA_DERIVE));
    assert_eq!(refused, Err(Rv::TEMPLATE_INCONSISTENT));
    assert_eq!(open.left_behind(), 0);
    assert_eq!(open.doubts(), []);
    drop(open);
    let open = Open::new(&tokens, group);
    for id in [1, 2] {
        let key = open.one(ck::CKO_PRIVATE_KEY, &[id]);
        open.slot.copy_object(open.s, key, &vec![Attribute::bool(ck::CKA_TOKEN, false)]).unwrap();
        open.slot.destroy_object(open.s, key).unwrap();
    }
    assert_eq!(open.left_behind(), 0);
}
