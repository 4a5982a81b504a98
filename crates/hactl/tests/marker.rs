//! Tokens and ledgers that were put back to an older state, swapped, or taken for one's own by a second host, on real SoftHSM:
//! nothing that was destroyed comes back, and nobody changes what is not his.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use ha_core::config::Config;
use ha_core::provider::forget_member;
use ha_token::{Attribute, Rv, ck};
use support::{Made, find, pair};

fn makes(made: &Made, keys: &[(&str, u8)]) {
    made.as_application(|slot, s| keys.iter().for_each(|(label, id)| _ = pair(slot, s, label, *id, false)));
}

fn destroys(made: &Made, label: &str) {
    made.as_application(|slot, s| {
        find(slot, s, label).into_iter().for_each(|o| slot.destroy_object(s, o).unwrap());
    });
}

/// How many objects of a label an application sees.
fn sees(made: &Made, label: &str) -> usize {
    made.as_application(|slot, s| find(slot, s, label).len())
}

/// How many a member holds.
fn holds(made: &Made, member: usize, label: &str) -> usize {
    made.on_member(member, |token, s| find(token, s, label).len())
}

fn copy(from: &Path, to: &Path) {
    _ = std::fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

fn member(made: &Made, name: &str) -> PathBuf {
    made.dir().join(format!("member-{name}"))
}

/// One login more: what a member has yet to do and to be told.
fn rest(made: &Made) {
    made.as_application(|_, _| ());
}

const MARKER: &str = "pkcs11-ha marker";

#[test]
fn a_token_that_was_set_back_brings_nothing_back_and_is_given_what_it_lacks() {
    let made = Made::with(2);
    let aside = made.dir().join("aside");
    rest(&made);
    makes(&made, &[("one", 1), ("two", 2), ("was", 4)]);
    rest(&made);
    assert_eq!([holds(&made, 0, MARKER), holds(&made, 1, MARKER)], [1, 1]);
    assert_eq!(sees(&made, MARKER), 0);
    for label in [MARKER, "pkcs11-ha record 0/000"] {
        let like_ours = vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::bytes(ck::CKA_LABEL, label),
            Attribute::bytes(ck::CKA_APPLICATION, *b"pkcs11-ha"),
        ];
        let made = made.as_application(|slot, s| slot.create_object(s, &like_ours));
        assert_eq!(made, Err(Rv::ATTRIBUTE_VALUE_INVALID), "nobody makes one");
    }
    copy(&member(&made, "b"), &aside);
    destroys(&made, "two");
    made.as_application(|slot, s| {
        for object in find(slot, s, "was") {
            slot.set_attributes(s, object, &vec![Attribute::bytes(ck::CKA_LABEL, *b"is")]).unwrap();
        }
    });
    // As many objects as before.
    makes(&made, &[("three", 3)]);
    rest(&made);
    copy(&aside, &member(&made, "b"));
    assert_eq!(holds(&made, 1, "two"), 2);

    let all = ["one", "two", "three", "was", "is"];
    assert_eq!(all.map(|label| sees(&made, label)), [2, 0, 2, 0, 2]);
    for member in 0..2 {
        assert_eq!(all.map(|label| holds(&made, member, label)), [2, 0, 2, 0, 2], "member {member}");
    }
    assert_eq!(made.run(&["check", "--prove"]).code, 0);
    made.on_member(1, |token, s| _ = pair(token, s, "new", 5, false));
    assert_eq!(sees(&made, "new"), 2, "nothing unknown was on it, and what is by now is new");
}

/// A token with a key that the group does not know, set back.
fn set_back_with_a_stray() -> Made {
    let made = Made::with(2);
    let aside = made.dir().join("aside");
    makes(&made, &[("one", 1)]);
    rest(&made);
    made.on_member(1, |token, s| _ = pair(token, s, "stray", 2, true));
    assert_eq!(sees(&made, "stray"), 2);
    copy(&member(&made, "b"), &aside);
    makes(&made, &[("two", 3)]);
    destroys(&made, "two");
    rest(&made);
    copy(&aside, &member(&made, "b"));
    made
}

#[test]
fn what_is_unknown_on_a_token_that_was_set_back_is_its_operators_to_destroy() {
    let made = set_back_with_a_stray();
    // It may be what somebody destroyed there.
    assert_eq!(["one", "stray"].map(|label| sees(&made, label)), [2, 0]);
    assert_eq!(sees(&made, "stray"), 0, "and not at the next login either");
    let ran = made.run(&["sync", "--discard", "b", "--dry-run", "--json"]);
    assert_eq!((ran.code, ran.json()["destroyed"].as_array().unwrap().len()), (1, 2), "{}", ran.out);
    assert_eq!(holds(&made, 1, "stray"), 2);
    assert_eq!(made.run(&["sync", "--discard", "b"]).code, 0);
    assert_eq!(["one", "stray"].map(|label| holds(&made, 1, label)), [2, 0]);
    assert_eq!(made.run(&["check", "--prove"]).code, 0);
    // From now on what is unknown there is new.
    made.on_member(1, |token, s| _ = pair(token, s, "new", 5, false));
    assert_eq!(sees(&made, "new"), 2);
}

#[test]
fn what_is_unknown_on_a_token_that_was_set_back_is_its_operators_to_take() {
    let made = set_back_with_a_stray();
    assert_eq!(sees(&made, "stray"), 0);
    let ran = made.run(&["adopt", "b", "--json"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!((sees(&made, "stray"), holds(&made, 0, "stray")), (2, 2));
}

#[test]
fn a_second_host_with_a_ledger_of_its_own_changes_nothing() {
    let made = Made::with(2);
    makes(&made, &[("one", 1)]);
    rest(&made);
    let state = made.dir().join("state");
    let aside = made.dir().join("aside");
    std::fs::rename(&state, &aside).unwrap();
    made.as_application(|slot, s| {
        let [private, public] = find(slot, s, "one")[..] else { panic!("both halves are served") };
        let answers = [private, public].map(|object| slot.destroy_object(s, object));
        assert_eq!(answers, [Err(Rv::TOKEN_WRITE_PROTECTED); 2]);
        let key = [private, public].into_iter().find(|o| {
            let mut mechanism = ha_token::Mechanism::plain(ck::CKM_ECDSA);
            slot.op_init(s, ha_token::OpKind::Sign, Some(&mut mechanism), *o).is_ok()
        });
        let mut space = [0; 64];
        let mut out = ha_token::Output::buffer(&mut space);
        assert!(key.is_some() && slot.op_one_shot(s, ha_token::OpKind::Sign, &[1; 32], &mut out).is_ok());
    });
    for verb in [&["adopt", "a"][..], &["sync"], &["sync", "--discard", "a"], &["dissolve"]] {
        let ran = made.run(verb);
        assert_ne!(ran.code, 0, "{verb:?}: {}", ran.out);
        assert!(ran.err.contains("by another ledger"), "{verb:?}: {}", ran.err);
    }
    assert_eq!([holds(&made, 0, "one"), holds(&made, 1, "one")], [2, 2]);
    // The one whose tokens they are goes on.
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::rename(&aside, &state).unwrap();
    destroys(&made, "one");
    assert_eq!([holds(&made, 0, "one"), holds(&made, 1, "one")], [0, 0]);
}

#[test]
fn a_ledger_that_was_put_back_to_an_older_state_changes_nothing_until_it_is_compared() {
    let made = Made::with(2);
    let (state, aside) = (made.dir().join("state"), made.dir().join("aside"));
    makes(&made, &[("one", 1), ("two", 2)]);
    rest(&made);
    copy(&state, &aside);
    destroys(&made, "two");
    rest(&made);
    makes(&made, &[("three", 3)]);
    copy(&aside, &state);
    made.as_application(|slot, s| {
        assert_eq!(find(slot, s, "one").len(), 2);
        for object in find(slot, s, "three").into_iter().chain(find(slot, s, "one")) {
            assert_eq!(slot.destroy_object(s, object), Err(Rv::TOKEN_WRITE_PROTECTED));
        }
    });
    assert_eq!(["one", "two", "three"].map(|label| holds(&made, 0, label)), [2, 0, 2]);

    let ran = made.run(&["ledger", "rebuild", "--replace"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(made.run(&["sync"]).code, 0);
    destroys(&made, "one");
    assert_eq!(["one", "two", "three"].map(|label| holds(&made, 1, label)), [0, 0, 2]);
}

#[test]
fn a_token_of_another_group_is_not_used() {
    let made = Made::with(2);
    let other = Made::with_pin_of(&made, 2);
    for group in [&made, &other] {
        makes(group, &[("one", 1)]);
        rest(group);
    }
    copy(&member(&other, "b"), &member(&made, "b"));
    // The ledger remembers another serial number; one that forgot it is not deceived either.
    let config = Config::from_file(&made.config()).unwrap();
    forget_member(&config, &config.groups[0], "b").unwrap();
    let before = holds(&other, 1, "one");
    let ran = made.run(&["status", "--json"]);
    assert_eq!(ran.json()["groups"][0]["members"][1]["state"], "quarantined", "{}", ran.out);
    assert!(
        ran.out.contains("belongs to the group") || ran.err.contains("belongs to the group"),
        "{}",
        ran.err
    );
    assert_eq!(sees(&made, "one"), 2, "of the other member's");
    destroys(&made, "one");
    assert_eq!((holds(&made, 0, "one"), holds(&made, 1, "one")), (0, before));
}
