//! A group that ends, on real SoftHSM: plain tokens are left, with every key of the applications and nothing of ours.

mod support;

use ha_token::{Attribute, ck};
use serde_json::json;
use support::{Made, find, pair, signs};

/// How many objects a member's own token shows who logs in to it.
fn holds(made: &Made, member: usize) -> usize {
    made.on_member(member, |token, s| {
        token.find_objects_init(s, &vec![Attribute::bool(ck::CKA_TOKEN, true)]).unwrap();
        let found = token.find_objects(s, 100).unwrap().len();
        token.find_objects_final(s).unwrap();
        found
    })
}

#[test]
fn plain_tokens_are_left_with_every_key_and_nothing_that_was_destroyed() {
    let made = Made::with(2);
    made.as_application(|slot, s| ["one", "two"].into_iter().for_each(|l| _ = pair(slot, s, l, 1, false)));
    // One member is away while a key is destroyed.
    made.hide("b", true);
    made.as_application(|slot, s| {
        find(slot, s, "two").into_iter().for_each(|o| slot.destroy_object(s, o).unwrap());
    });
    let ran = made.run(&["dissolve"]);
    assert_eq!(ran.code, 1, "{} {}", ran.out, ran.err);
    assert!(ran.err.contains("not up: b"), "{}", ran.err);
    assert_eq!(holds(&made, 0), 6, "the group's own objects are there: nothing was changed");
    made.hide("b", false);

    let ran = made.run(&["dissolve", "--json"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(
        ran.json()["members"],
        json!([{"name": "a", "objects": 2, "without": []}, {"name": "b", "objects": 2, "without": []}])
    );
    assert!(std::path::Path::new(ran.json()["ledger"].as_str().unwrap()).exists());
    for member in 0..2 {
        assert_eq!(holds(&made, member), 2, "of {member}");
        assert!(signs(&made, member, "one"));
    }
    // Who starts with the configuration again has a new group, to which all of that is from before.
    let synced = made.run(&["sync", "--json"]).json();
    assert_eq!(synced["groups"][0]["foreign"].as_array().unwrap().len(), 2, "{synced}");
}

#[test]
fn a_group_in_use_is_not_dissolved() {
    let made = Made::with(2);
    made.as_application(|slot, s| {
        pair(slot, s, "one", 1, false);
        let ran = made.run(&["dissolve"]);
        assert_eq!(ran.code, 1, "{} {}", ran.out, ran.err);
        assert!(ran.err.contains("is used by"), "{}", ran.err);
        pair(slot, s, "two", 2, false);
    });
    assert_eq!(made.run(&["check", "--prove"]).code, 0);
}
