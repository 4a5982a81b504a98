//! Different objects of one name, planted on real SoftHSM tokens: listed with who has what, and resolved as the operator says.

mod support;

use ha_token::{Attribute, Mechanism, ObjectHandle, OpKind, Output, Rv, SessionHandle, Token, ck};
use serde_json::{Value, json};
use support::{Made, find, pair, signs};

/// Member, class and fate of each object.
fn fates(document: &Value) -> Vec<String> {
    let of = |o: &Value| format!("{} {} {}", o["member"], o["class"], o["fate"]).replace('"', "");
    let mut fates: Vec<_> = document["objects"].as_array().unwrap().iter().map(of).collect();
    fates.sort_unstable();
    fates
}

fn destroyed(token: &dyn Token, s: SessionHandle, objects: Vec<ObjectHandle>) {
    objects.into_iter().for_each(|o| token.destroy_object(s, o).unwrap());
}

#[test]
fn of_two_keys_from_before_the_group_the_chosen_one_stays() {
    let made = Made::with(2);
    for member in 0..2 {
        made.on_member(member, |token, s| _ = pair(token, s, "twin", 9, true));
    }
    let listed = made.run(&["resolve", "--json"]);
    assert_eq!(listed.code, 1, "{} {}", listed.out, listed.err);
    let both = [
        "a private-key different",
        "a public-key different",
        "b private-key different",
        "b public-key different",
    ];
    assert_eq!(fates(&listed.json()), both);
    let prints: std::collections::BTreeSet<_> =
        listed.json()["objects"].as_array().unwrap().iter().map(|o| o["fingerprint"].to_string()).collect();
    assert_eq!(prints.len(), 2, "each member's own: {}", listed.out);

    let named = ["resolve", "--keep", "a", "--label", "twin", "--id", "09", "--json"];
    let rehearsed = made.run(&[&named[..], &["--dry-run"]].concat());
    let would_be = [
        "a private-key stays",
        "a public-key stays",
        "b private-key would be destroyed",
        "b public-key would be destroyed",
    ];
    assert_eq!((rehearsed.code, fates(&rehearsed.json())), (1, would_be.map(str::to_owned).to_vec()));
    let unasked = made.run(&named);
    assert_eq!(unasked.code, 2, "{} {}", unasked.out, unasked.err);
    assert!(unasked.err.contains("--yes"), "{}", unasked.err);
    assert!(signs(&made, 0, "twin") && signs(&made, 1, "twin"), "nothing was done");

    let done = made.run(&[&named[..], &["--yes"]].concat());
    let fate =
        ["a private-key stays", "a public-key stays", "b private-key destroyed", "b public-key destroyed"];
    assert_eq!((done.code, fates(&done.json())), (0, fate.map(str::to_owned).to_vec()), "{}", done.err);
    assert_eq!(done.json()["done"], true);
    assert!(signs(&made, 0, "twin") && !signs(&made, 1, "twin"));
    assert_eq!(made.run(&["resolve"]).code, 0);
    made.as_application(|slot, s| assert_eq!(find(slot, s, "twin").len(), 2, "it is shown again"));
}

#[test]
fn what_the_group_knows_stays_and_is_given_to_who_had_another_one() {
    let made = Made::with(2);
    made.as_application(|slot, s| {
        pair(slot, s, "swapped", 1, false);
        pair(slot, s, "whole", 2, false);
    });
    made.on_member(1, |token, s| {
        destroyed(token, s, find(token, s, "swapped"));
        pair(token, s, "swapped", 1, false);
    });
    let named = ["--label", "swapped", "--yes", "--json"];
    let wrong = made.run(&[&["resolve", "--keep", "b"], &named[..]].concat());
    assert_eq!(wrong.code, 1, "{} {}", wrong.out, wrong.err);
    assert!(wrong.err.contains("not what the group knows"), "{}", wrong.err);
    let right = made.run(&[&["resolve", "--keep", "a"], &named[..]].concat());
    let fate =
        ["a private-key stays", "a public-key stays", "b private-key destroyed", "b public-key destroyed"];
    assert_eq!((right.code, fates(&right.json())), (0, fate.map(str::to_owned).to_vec()), "{}", right.err);
    let checked = made.run(&["check", "--prove", "--json"]);
    assert_eq!(
        checked.json()["groups"][0]["summary"],
        json!({"objects": 4, "same": 4, "missing": 0, "different": 0, "unproven": 0})
    );
    // Of what is the same everywhere nothing goes.
    let same = made.run(&["resolve", "--keep", "a", "--label", "whole", "--yes", "--json"]);
    assert_eq!((same.code, same.json()["done"].clone()), (0, json!(false)), "{}", same.err);
    assert!(signs(&made, 1, "whole"));
}

/// A secret key with this value, behind the group's back.
fn secret(made: &Made, member: usize, label: &str, value: u8) {
    planted(made, member, label, value, true);
}

fn planted(made: &Made, member: usize, label: &str, value: u8, private: bool) {
    made.on_member(member, |token, s| {
        let template = vec![
            Attribute::bool(ck::CKA_PRIVATE, private),
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
            Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_AES),
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::bytes(ck::CKA_LABEL, label),
            Attribute::bytes(ck::CKA_ID, [5]),
            Attribute::bytes(ck::CKA_VALUE, [value; 32]),
            Attribute::bool(ck::CKA_ENCRYPT, true),
        ];
        token.create_object(s, &template).unwrap();
    });
}

fn count(made: &Made, member: usize, label: &str) -> usize {
    made.on_member(member, |token, s| find(token, s, label).len())
}

#[test]
fn secret_keys_are_told_apart_and_what_is_the_same_as_one_that_is_kept_stays() {
    let made = Made::with(2);
    made.as_application(|slot, s| {
        let template = vec![
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::bytes(ck::CKA_LABEL, "both"),
            Attribute::bytes(ck::CKA_ID, [5]),
            Attribute::ulong(ck::CKA_VALUE_LEN, 32),
            Attribute::bool(ck::CKA_ENCRYPT, true),
        ];
        slot.generate_key(s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &template).unwrap();
    });
    for (member, label, value) in
        [(0, "twin", 1), (1, "twin", 2), (0, "both", 7), (1, "both", 7), (1, "both", 8)]
    {
        secret(&made, member, label, value);
    }
    let ran = made.run(&["resolve", "--keep", "b", "--label", "twin", "--yes", "--json"]);
    assert_eq!(
        (ran.code, count(&made, 0, "twin"), count(&made, 1, "twin")),
        (0, 0, 1),
        "{} {}",
        ran.out,
        ran.err
    );
    // The group's own, and one that both have: only the third one goes.
    let ran = made.run(&["resolve", "--keep", "a", "--label", "both", "--yes", "--json"]);
    assert_eq!((count(&made, 0, "both"), count(&made, 1, "both")), (2, 2), "{} {}", ran.out, ran.err);
    let fates = fates(&ran.json());
    assert_eq!(fates.iter().filter(|f| f.ends_with("destroyed")).count(), 1, "{fates:?}");
}

#[test]
fn a_program_that_has_met_a_conflict_goes_on_when_it_is_resolved() {
    let made = Made::with(2);
    for member in 0..2 {
        made.on_member(member, |token, s| _ = pair(token, s, "twin", 9, true));
    }
    made.as_application(|slot, s| {
        let sign = |key| {
            slot.op_init(s, OpKind::Sign, Some(&mut Mechanism::plain(ck::CKM_ECDSA)), key)?;
            slot.op_one_shot(s, OpKind::Sign, &[1; 32], &mut Output::buffer(&mut [0; 64]))
        };
        let private = |label| {
            let class = Attribute::ulong(ck::CKA_CLASS, ck::CKO_PRIVATE_KEY);
            slot.find_objects_init(s, &vec![class, Attribute::bytes(ck::CKA_LABEL, label)]).unwrap();
            let found = slot.find_objects(s, 9).unwrap();
            slot.find_objects_final(s).unwrap();
            found
        };
        let twins = private("twin");
        assert!(twins.iter().all(|key| sign(*key) == Err(Rv::KEY_FUNCTION_NOT_PERMITTED)), "{twins:?}");
        assert_eq!(made.run(&["resolve", "--keep", "a", "--label", "twin", "--yes"]).code, 0);
        let works = twins.iter().filter(|key| sign(**key).is_ok()).count();
        assert_eq!((works, private("twin").len()), (1, 1));
    });
}

#[test]
fn what_has_the_names_of_the_groups_own_is_seen_at_the_first_look() {
    let made = Made::with(2);
    // Which of two the token shows first is its own affair, and differs.
    let labels: Vec<String> = (0..8).map(|n| format!("own {n}")).collect();
    made.as_application(|slot, s| {
        for label in &labels {
            let template = vec![
                Attribute::bool(ck::CKA_TOKEN, true),
                Attribute::bool(ck::CKA_PRIVATE, false),
                Attribute::bytes(ck::CKA_LABEL, label.as_bytes()),
                Attribute::bytes(ck::CKA_ID, [5]),
                Attribute::ulong(ck::CKA_VALUE_LEN, 32),
                Attribute::bool(ck::CKA_ENCRYPT, true),
            ];
            slot.generate_key(s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &template).unwrap();
        }
    });
    labels.iter().for_each(|label| planted(&made, 0, label, 1, false));
    let ran = made.run(&["check", "--prove", "--json"]);
    assert_eq!(ran.json()["groups"][0]["summary"]["objects"], 16, "{}", ran.out);
    made.as_application(|slot, s| {
        labels.iter().for_each(|label| assert_eq!(find(slot, s, label).len(), 2, "{label}"));
    });
}

#[test]
fn a_member_that_is_away_is_not_taken_for_resolved() {
    let made = Made::with(2);
    secret(&made, 0, "twin", 1);
    secret(&made, 1, "twin", 2);
    made.hide("b", true);
    let ran = made.run(&["resolve", "--keep", "a", "--label", "twin", "--yes"]);
    assert_eq!(ran.code, 1, "{} {}", ran.out, ran.err);
    assert!(ran.err.contains("not asked: b"), "{}", ran.err);
    made.hide("b", false);
    assert_eq!(count(&made, 1, "twin"), 1);
}

#[test]
fn what_is_not_said_right_changes_nothing() {
    let made = Made::with(2);
    made.as_application(|slot, s| _ = pair(slot, s, "one", 1, false));
    for (arguments, code, words) in [
        (vec!["--label", "one"], 2, "--keep"),
        (vec!["--keep", "a"], 2, "--label"),
        (vec!["--keep", "a", "--id", "0g"], 2, "hexadecimal"),
        (vec!["--keep", "a", "--id", ""], 2, "hexadecimal"),
        (vec!["--keep", "c", "--label", "one"], 1, "member \"c\" is not up"),
        (vec!["--keep", "a", "--label", "none"], 1, "no object of that name"),
        (vec!["--keep", "a", "--label", "one", "--yes", "--dry-run"], 2, "--dry-run"),
        (vec!["--group", "other"], 2, "there is no group"),
    ] {
        let ran = made.run(&[&["resolve"], &arguments[..]].concat());
        assert_eq!(ran.code, code, "{arguments:?}: {} {}", ran.out, ran.err);
        assert!(ran.err.contains(words), "{arguments:?}: {}", ran.err);
    }
    assert_eq!(made.run(&["check", "--prove"]).code, 0);
}
