//! No other key stands for the one that was asked for (guarantee G3).

use ha_core::config::Config;
use ha_core::group::Origin;
use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_rig::Tokens;
use ha_token::{Attribute, OpKind, ck};

use crate::open_group::{Open, private};
use crate::setting::{id, keys, label, plain, secret, value, yes};

#[test]
fn tokens_that_changed_places_are_not_used() {
    let tokens = Tokens::labelled(&["same", "same"]);
    Open::new(&tokens, "").ec_pair(1).unwrap();
    let (a, b) = (tokens.store(0), tokens.store(1));
    let aside = a.with_extension("aside");
    for (from, to) in [(&a, &aside), (&b, &a), (&aside, &b)] {
        std::fs::rename(from, to).unwrap();
    }
    let provider = Provider::from_config(Config::parse(&tokens.config(false, "")).unwrap()).unwrap();
    let states: Vec<_> = provider.groups()[0].members.iter().map(|m| m.state()).collect();
    assert_eq!(states, [State::Quarantined; 2]);
}

#[test]
fn a_public_key_that_was_replaced_on_one_member_verifies_nothing() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let (_, key) = open.ec_pair(1).unwrap();
    let signature = open.sign(key).unwrap();
    drop(open);
    tokens.bare(0, &["--delete-object", "--type", "pubkey", "--id", "01"]);
    tokens.bare(0, &["--keypairgen", "--key-type", "EC:prime256v1", "--id", "01", "--label", "key"]);
    tokens.bare(0, &["--delete-object", "--type", "privkey", "--id", "01"]);
    let open = Open::new(&tokens, "balance = \"round-robin\"");
    let public = vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_PUBLIC_KEY), id(1)];
    let public = open.find(&public);
    assert_eq!(public.len(), 1);
    for _ in 0..6 {
        open.slot.op_init(open.s, OpKind::Verify, Some(&mut plain(ck::CKM_ECDSA)), public[0]).unwrap();
        assert_eq!(open.slot.verify(open.s, &[7; 32], &signature), Ok(()));
    }
}

#[test]
fn never_a_search_by_value_gives_another_key_of_the_same_names() {
    let tokens = Tokens::new(2);
    let points: Vec<_> = {
        let open = Open::new(&tokens, "");
        (0..6).map(|_| value(&open, open.ec_pair(1).unwrap().0, ck::CKA_EC_POINT)).collect()
    };
    let open = Open::new(&tokens, "");
    for point in &points {
        let of_it = vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_PUBLIC_KEY),
            Attribute::bytes(ck::CKA_EC_POINT, &**point),
        ];
        let found = open.find(&of_it);
        assert_eq!(found.len(), 1);
        assert!(value(&open, found[0], ck::CKA_EC_POINT) == *point, "asked for one key, given another");
    }
}

#[test]
fn never_attributes_are_told_of_another_key_of_the_same_names() {
    let tokens = Tokens::new(2);
    let may_sign = |sign| vec![label(b"same"), Attribute::bool(ck::CKA_SIGN, sign)];
    {
        let open = Open::new(&tokens, "");
        for n in 0..6 {
            let mut template = may_sign(n % 2 == 0);
            let more = [
                Attribute::bool(ck::CKA_ENCRYPT, true),
                yes(ck::CKA_TOKEN),
                Attribute::ulong(ck::CKA_VALUE_LEN, 32),
            ];
            template.extend(more);
            open.slot.generate_key(open.s, &mut plain(ck::CKM_AES_KEY_GEN), &template).unwrap();
        }
    }
    let open = Open::new(&tokens, "balance = \"round-robin\"");
    for sign in [true, false] {
        for found in open.find(&may_sign(sign)) {
            for _ in 0..2 {
                assert_eq!(value(&open, found, ck::CKA_SIGN), [u8::from(sign)], "of those found with {sign}");
            }
        }
    }
}

#[test]
fn never_a_planted_key_makes_destruction_miss_both_members_and_use_fail() {
    let tokens = Tokens::new(2);
    Open::new(&tokens, "").ec_pair(7).unwrap();
    for _ in 0..5 {
        tokens.bare(0, &["--keypairgen", "--key-type", "EC:prime256v1", "--id", "07", "--label", "key"]);
    }
    let open = Open::new(&tokens, "balance = \"primary\"");
    open.find(&private(7));
    let objects = &open.provider.groups()[0].objects;
    let ours = |o: &ha_core::group::Object| {
        matches!(o.origin, Origin::Ledger(_)) && o.traits().class == ck::CKO_PRIVATE_KEY
    };
    let own = objects.select(ours)[0].handle;
    let signs = open.sign(own).map(|_| ());
    let destroyed = open.slot.destroy_object(open.s, own);
    assert_eq!((signs, destroyed, keys(&tokens, 7)), (Ok(()), Ok(()), [5, 0]));
}

#[test]
fn never_copies_of_one_key_and_name_take_each_others_attributes() {
    let tokens = Tokens::new(2);
    let may = |extracted| vec![id(1), Attribute::bool(ck::CKA_EXTRACTABLE, extracted)];
    {
        let open = Open::new(&tokens, "");
        let template = secret(1, &[yes(ck::CKA_ENCRYPT), yes(ck::CKA_EXTRACTABLE)]);
        let key = open.slot.generate_key(open.s, &mut plain(ck::CKM_AES_KEY_GEN), &template).unwrap();
        for _ in 0..3 {
            let sealed = vec![Attribute::bool(ck::CKA_EXTRACTABLE, false)];
            open.slot.copy_object(open.s, key, &sealed).unwrap();
        }
    }
    for _ in 0..3 {
        let open = Open::new(&tokens, "balance = \"round-robin\"");
        for _ in 0..4 {
            let found = open.find(&may(true));
            assert_eq!(found.len(), 1);
            assert_eq!(value(&open, found[0], ck::CKA_EXTRACTABLE), [1]);
        }
    }
}
