//! What was acknowledged is there, on every member (guarantee G1).

use std::sync::Arc;

use ha_core::group::Word;
use ha_rig::{Act, PIN, Tokens};
use ha_token::{Attribute, Function, Rv, UserType, ck};

use crate::open_group::{Open, private};
use crate::setting::{count, data, failing_of, foreign, heal, keys, named, yes};
use crate::watched::start;

#[test]
fn never_a_rename_misses_the_member_where_the_object_was_not_seen_yet() {
    let tokens = Tokens::new(2);
    Open::new(&tokens, "").ec_pair(1).unwrap();
    let open = Open::new(&tokens, "balance = \"round-robin\"");
    let key = open.find(&private(1));
    open.slot.set_attributes(open.s, key[0], &named(b"renamed")).unwrap();
    for _ in 0..6 {
        assert_eq!(open.find(&private(1)), key, "one key");
    }
    drop(open);
    assert_eq!((foreign(&heal(&tokens)), keys(&tokens, 1)), (0, [1, 1]));
}

#[test]
fn never_an_acknowledged_object_is_not_found_while_a_member_refuses_to_write() {
    let tokens = Tokens::new(3);
    // Each in a process of its own: a copy of SoftHSM that is initialised anew, as the refusing one is, makes others beside
    // it refuse what is right.
    (0..3).for_each(|i| tokens.serve(i));
    let (open, watches) = failing_of(&tokens.config(true, "balance = \"round-robin\""));
    for call in [Function::CreateObject, Function::UnwrapKey] {
        watches[2].refuse(call, 1000, Rv::FUNCTION_FAILED);
    }
    for n in 0..20 {
        open.slot.create_object(open.s, &data(&[n], &[n])).unwrap();
        for search in 0..6 {
            assert_eq!(open.find(&named(&[n])).len(), 1, "object {n}, search {search}");
        }
    }
}

#[test]
fn never_a_member_that_came_up_before_the_one_with_the_group_keys_goes_without_keys() {
    let tokens = Tokens::new(2);
    let group = "min_copies = 1";
    tokens.hide(1);
    Open::new(&tokens, group).ec_pair(1).unwrap();
    tokens.restore(1);
    let (provider, watches) = start(&tokens.config(false, group));
    let slot = Arc::clone(provider.slot(0).unwrap());
    let s = slot.open_session(true).unwrap();
    // The member that holds the group keys finds them only after the other one was brought up to date without.
    let (b, group) = (Arc::clone(&watches[1]), Arc::clone(&provider.groups()[0]));
    watches[0].next(
        Function::FindObjectsInit,
        Act::First(Box::new(move || {
            // Its keeper looks at it anew.
            group.blame(group.members.get(1).unwrap(), Function::Sign, Rv::DEVICE_ERROR);
            while !b.calls().contains(&Function::CreateObject) {
                std::thread::yield_now();
            }
            while group.members.get(1).unwrap().load() > 0 {
                std::thread::yield_now();
            }
        })),
    );
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    let open = Open { provider, slot, s };
    // Two copies of SoftHSM in one process crash now and then where both are worked hard while keys are wrapped: it is
    // asked for proofs only once its keepers are done with it.
    open.wait("both have it", |g| {
        let all = g.check(false).unwrap_or_default();
        all.len() == 2 && all.iter().all(|c| c.members.iter().all(|(_, word)| *word != Word::Missing))
    });
    let checked = open.provider.groups()[0].check(true).unwrap();
    assert!(checked.iter().all(|c| c.worst() == Word::Same), "{checked:?}");
}

#[test]
fn never_a_template_that_says_token_twice_makes_an_orphan_on_one_member() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let mut template = data(b"twice", b"v");
    template[0] = Attribute::bool(ck::CKA_TOKEN, false);
    template.push(yes(ck::CKA_TOKEN));
    let told = open.slot.create_object(open.s, &template);
    drop(open);
    let there = count(&tokens, "twice");
    assert!(there == [0, 0] || there == [1, 1], "told {told:?}, there {there:?}");
}

#[test]
fn never_an_object_that_is_called_like_the_groups_keys_is_acknowledged_and_never_seen() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let name = b"pkcs11-ha group key";
    if open.slot.create_object(open.s, &data(name, b"v")).is_ok() {
        drop(open);
        assert_eq!(Open::new(&tokens, "").find(&named(name)).len(), 1);
    }
}
