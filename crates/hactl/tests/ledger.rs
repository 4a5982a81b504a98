//! The ledger lost, and restored from a backup that is older than the tokens, on real SoftHSM: no key is lost by it, nothing that
//! was destroyed comes back, and what cannot be told is asked.

mod support;

use std::path::PathBuf;

use ha_core::config::Config;
use ha_core::provider::Provider;
use ha_token::{Attribute, ck};
use serde_json::json;
use support::{Made, find, hactl, mode, pair, signs};

fn makes(made: &Made, keys: &[(&str, u8)]) {
    made.as_application(|slot, s| keys.iter().for_each(|(label, id)| _ = pair(slot, s, label, *id, false)));
}

fn destroys(made: &Made, label: &str) {
    made.as_application(|slot, s| {
        find(slot, s, label).into_iter().for_each(|o| slot.destroy_object(s, o).unwrap());
    });
}

fn backup(made: &Made) -> PathBuf {
    let file = made.dir().join("backup");
    let ran = made.run_without_pin(&["ledger", "backup", file.to_str().unwrap(), "--json"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(mode(&file), 0o600);
    file
}

/// Where each of a member's keys of a label is: how many objects of it a member holds.
fn holds(made: &Made, member: usize, label: &str) -> usize {
    made.on_member(member, |token, s| find(token, s, label).len())
}

fn state(made: &Made) -> PathBuf {
    made.dir().join("state")
}

#[test]
fn a_lost_ledger_is_restored_and_a_new_member_is_given_what_cannot_be_extracted() {
    let made = Made::with(2);
    makes(&made, &[("one", 1), ("two", 2)]);
    let file = backup(&made);
    let ran = made.run_without_pin(&["ledger", "backup", file.to_str().unwrap()]);
    assert_eq!(ran.code, 2, "a backup was written over: {}", ran.out);
    makes(&made, &[("three", 3)]);
    destroys(&made, "two");
    std::fs::remove_dir_all(state(&made)).unwrap();

    let ran = made.run(&["ledger", "restore", file.to_str().unwrap(), "--json"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    let restored = ran.json();
    assert_eq!((restored["objects"].clone(), restored["before"].clone()), (json!(2), json!(null)));
    assert_eq!(restored["forgotten"].as_array().unwrap().len(), 2, "{restored}");
    assert_eq!(made.run(&["sync"]).code, 0);
    for member in 0..2 {
        assert_eq!(["one", "two", "three"].map(|label| holds(&made, member, label)), [2, 0, 2]);
    }
    let checked = made.run(&["check", "--prove", "--json"]).json();
    assert_eq!(checked["groups"][0]["summary"]["same"], 4, "{checked}");
    // What the ledger is for: the key is given to a token that lost it, although it cannot be extracted.
    made.on_member(1, |token, s| {
        find(token, s, "one").into_iter().for_each(|o| token.destroy_object(s, o).unwrap());
    });
    assert_eq!(made.run(&["sync"]).code, 0);
    assert!(signs(&made, 1, "one"));
}

#[test]
fn what_only_some_tokens_hold_is_asked_and_does_not_come_back() {
    let made = Made::with(2);
    makes(&made, &[("one", 1), ("two", 2)]);
    let file = backup(&made);
    // One member is away when the key is destroyed, and the ledger that knows of it is lost.
    made.hide("b", true);
    destroys(&made, "two");
    made.hide("b", false);
    let path = file.to_str().unwrap();
    let ran = made.run(&["ledger", "restore", path]);
    assert_eq!(ran.code, 1, "{} {}", ran.out, ran.err);
    assert!(ran.err.contains("--replace"), "{}", ran.err);
    let ledger = std::fs::read_dir(state(&made)).unwrap().map(|e| e.unwrap().path());
    let ledger = ledger.into_iter().find(|p| p.extension().is_some_and(|e| e == "ledger")).unwrap();
    std::fs::write(&ledger, "damaged").unwrap();
    // What cannot be opened may be of a newer version: it is not put aside without a word.
    let ran = made.run(&["ledger", "restore", path]);
    assert_eq!(ran.code, 1, "{} {}", ran.out, ran.err);
    assert!(ran.err.contains("cannot be opened"), "{}", ran.err);
    let ran = made.run(&["ledger", "restore", path, "--replace"]);
    assert_eq!(ran.code, 1, "{} {}", ran.out, ran.err);
    assert!(ran.err.contains("\"two\"") && ran.err.contains("on b, and not on a"), "{}", ran.err);
    assert!(!ran.err.contains("\"one\""), "{}", ran.err);
    assert_eq!(holds(&made, 0, "two"), 0);

    let ran = made.run(&["ledger", "restore", path, "--replace", "--gone", "destroyed", "--json"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(ran.json()["to_destroy"].as_array().unwrap().len(), 2, "{}", ran.out);
    assert!(std::path::Path::new(ran.json()["before"].as_str().unwrap()).exists());
    assert_eq!(made.run(&["sync"]).code, 0);
    assert_eq!([holds(&made, 0, "two"), holds(&made, 1, "two")], [0, 0]);
    assert_eq!([holds(&made, 0, "one"), holds(&made, 1, "one")], [2, 2]);
    assert_eq!(made.run(&["check", "--prove"]).code, 0);
    let left = std::fs::read_dir(state(&made)).unwrap();
    assert!(!left.into_iter().any(|e| e.unwrap().file_name().to_string_lossy().starts_with("restoring-")));
}

#[test]
fn what_a_token_lost_is_given_to_it_again() {
    let made = Made::with(2);
    makes(&made, &[("one", 1)]);
    let file = backup(&made);
    std::fs::remove_dir_all(state(&made)).unwrap();
    made.on_member(0, |token, s| {
        find(token, s, "one").into_iter().for_each(|o| token.destroy_object(s, o).unwrap());
    });
    let ran = made.run(&["ledger", "restore", file.to_str().unwrap(), "--gone", "lost", "--json"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(ran.json()["to_give"].as_array().unwrap().len(), 2, "{}", ran.out);
    assert_eq!(made.run(&["sync"]).code, 0);
    assert!(signs(&made, 0, "one") && signs(&made, 1, "one"));
}

#[test]
fn what_is_no_backup_and_what_cannot_be_compared_changes_nothing() {
    let made = Made::with(2);
    makes(&made, &[("one", 1)]);
    let file = backup(&made);
    let files = || {
        let mut files: Vec<_> = std::fs::read_dir(state(&made)).unwrap().map(|e| e.unwrap().path()).collect();
        files.retain(|p| p.extension().is_some_and(|e| e == "ledger" || e == "replaced") || p.is_dir());
        files
    };
    let before = files();
    let whole = std::fs::read(&file).unwrap();
    let refused = |code: i32, words: &str| {
        let ran = made.run(&["ledger", "restore", "--replace", file.to_str().unwrap()]);
        assert_eq!(ran.code, code, "{} {}", ran.out, ran.err);
        assert!(ran.err.contains("nothing was changed") && ran.err.contains(words), "{}", ran.err);
        assert_eq!(files(), before);
    };
    std::fs::write(&file, "not a ledger").unwrap();
    refused(2, "it is no ledger, or is damaged");
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    refused(2, "it is no ledger, or is damaged");
    std::fs::write(&file, "").unwrap();
    refused(2, "it is no ledger, or is damaged");
    std::fs::write(&file, &whole).unwrap();
    made.hide("b", true);
    refused(1, "b is down");
    made.hide("b", false);
    made.as_application(|_, _| refused(1, "the group is used by"));
    let config = made.config();
    let ran = hactl(&["ledger", "backup", "/nonexistent/x", "--config", config.to_str().unwrap()]);
    assert_eq!(ran.code, 2, "{} {}", ran.out, ran.err);
    assert_eq!(made.run(&["check", "--prove"]).code, 0);
}

#[test]
fn what_the_present_ledger_knows_to_be_destroyed_stays_so() {
    let made = Made::with(2);
    makes(&made, &[("one", 1), ("two", 2)]);
    let file = backup(&made);
    makes(&made, &[("three", 3)]);
    made.hide("b", true);
    ["two", "three"].into_iter().for_each(|label| destroys(&made, label));
    made.hide("b", false);
    let ran = made.run(&["ledger", "restore", "--replace", file.to_str().unwrap(), "--gone", "destroyed"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(made.run(&["sync"]).code, 0);
    for member in 0..2 {
        assert_eq!(["one", "two", "three"].map(|label| holds(&made, member, label)), [2, 0, 0], "{member}");
    }
}

#[test]
fn what_was_given_to_a_member_since_and_destroyed_elsewhere_is_asked() {
    let made = Made::with(2);
    let text = std::fs::read_to_string(made.config()).unwrap();
    std::fs::write(made.config(), text.replace("label = \"ha1\"", "label = \"ha1\"\nmin_copies = 1"))
        .unwrap();
    made.hide("b", true);
    makes(&made, &[("one", 1)]);
    let file = backup(&made);
    made.hide("b", false);
    assert_eq!(made.run(&["sync"]).code, 0);
    made.hide("a", true);
    destroys(&made, "one");
    made.hide("a", false);
    std::fs::remove_dir_all(state(&made)).unwrap();
    let path = file.to_str().unwrap();
    let ran = made.run(&["ledger", "restore", path]);
    assert_eq!(ran.code, 1, "{} {}", ran.out, ran.err);
    assert!(ran.err.contains("on a, and not on b"), "{}", ran.err);
    assert_eq!(made.run(&["ledger", "restore", path, "--gone", "destroyed"]).code, 0);
    assert_eq!(made.run(&["sync"]).code, 0);
    assert_eq!([0, 1].map(|member| holds(&made, member, "one")), [0, 0]);
}

#[test]
fn what_was_destroyed_before_and_is_there_again_is_asked() {
    use ha_token::{Attribute, ck};
    let made = Made::with(2);
    let again = || {
        let template = vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::bytes(ck::CKA_LABEL, "data"),
            Attribute::bytes(ck::CKA_VALUE, "the same"),
        ];
        made.as_application(|slot, s| _ = slot.create_object(s, &template).unwrap());
    };
    again();
    made.hide("b", true);
    destroys(&made, "data");
    let file = backup(&made);
    made.hide("b", false);
    assert_eq!(made.run(&["sync"]).code, 0);
    again();
    std::fs::remove_dir_all(state(&made)).unwrap();
    let path = file.to_str().unwrap();
    let ran = made.run(&["ledger", "restore", path]);
    assert_eq!(ran.code, 1, "{} {}", ran.out, ran.err);
    assert!(ran.err.contains("destroyed before, and on b"), "{}", ran.err);
    assert_eq!(made.run(&["ledger", "restore", path, "--gone", "lost"]).code, 0);
    made.run(&["sync"]);
    assert_eq!([0, 1].map(|member| holds(&made, member, "data")), [1, 1]);
}

#[test]
fn the_backup_of_another_group_is_refused() {
    let (made, other) = (Made::with(2), Made::with(2));
    makes(&made, &[("one", 1)]);
    makes(&other, &[("two", 2)]);
    let file = backup(&other);
    let path = file.to_str().unwrap();
    for arguments in [vec!["ledger", "restore", path, "--replace"], vec!["ledger", "restore", path]] {
        let ran = made.run(&arguments);
        assert!(ran.code > 0 && ran.err.contains("nothing was changed"), "{} {}", ran.out, ran.err);
    }
    assert_eq!(made.run(&["check", "--prove"]).code, 0);
}

/// One login more: the members are told, and record, what was done before.
fn rest(made: &Made) {
    made.as_application(|_, _| ());
}

fn serial(made: &Made) -> String {
    made.as_application(|slot, _| slot.token_info().unwrap().serial)
}

#[test]
fn a_lost_ledger_is_made_anew_of_what_the_tokens_have_recorded() {
    let made = Made::with(2);
    makes(&made, &[("one", 1), ("two", 2)]);
    rest(&made);
    destroys(&made, "two");
    let before = serial(&made);
    std::fs::remove_dir_all(state(&made)).unwrap();
    // Somebody misses it, and begins another one.
    made.as_application(|slot, s| {
        let object = find(slot, s, "one")[0];
        assert_eq!(slot.destroy_object(s, object), Err(ha_token::Rv::TOKEN_WRITE_PROTECTED));
    });

    let ran = made.run(&["ledger", "rebuild", "--json"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(ran.json()["objects"], json!(2), "{}", ran.out);
    assert!(!ran.err.contains("ERROR"), "{}", ran.err);
    assert_eq!(made.run(&["sync"]).code, 0);
    let checked = made.run(&["check", "--prove", "--json"]).json();
    assert_eq!(
        checked["groups"][0]["summary"],
        json!({"objects": 2, "same": 2, "missing": 0, "different": 0, "unproven": 0})
    );
    assert_eq!(serial(&made), before, "of the virtual token");
    // A key that cannot be extracted is given to a token that lost it.
    made.on_member(1, |token, s| {
        find(token, s, "one").into_iter().for_each(|o| token.destroy_object(s, o).unwrap());
    });
    assert_eq!(made.run(&["sync"]).code, 0);
    assert!(signs(&made, 1, "one"));
    destroys(&made, "one");
    assert_eq!([holds(&made, 0, "one"), holds(&made, 1, "one")], [0, 0]);
}

#[test]
fn one_token_is_enough_for_that_when_the_host_is_gone_too() {
    let made = Made::with(2);
    makes(&made, &[("one", 1), ("two", 2)]);
    rest(&made);
    std::fs::remove_dir_all(state(&made)).unwrap();
    made.hide("a", true);
    let ran = made.run(&["ledger", "rebuild"]);
    assert_eq!(ran.code, 1, "{} {}", ran.out, ran.err);
    assert!(ran.err.contains("a is "), "{}", ran.err);
    let text = std::fs::read_to_string(made.config()).unwrap();
    let (head, members) = text.split_once("[[group.member]]").unwrap();
    let other = members.split_once("[[group.member]]").unwrap().1;
    std::fs::write(made.config(), format!("{head}[[group.member]]{other}")).unwrap();
    let ran = made.run(&["ledger", "rebuild", "--json"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(ran.json()["objects"], json!(4), "{}", ran.out);
    assert_eq!(made.run(&["check", "--prove"]).code, 0);
    destroys(&made, "two");
    made.as_application(|slot, s| assert_eq!(find(slot, s, "one").len(), 2));
}

#[test]
fn what_a_member_had_yet_to_destroy_is_not_forgotten_with_the_ledger() {
    let made = Made::with(2);
    makes(&made, &[("one", 1), ("two", 2)]);
    rest(&made);
    made.hide("b", true);
    destroys(&made, "two");
    rest(&made);
    made.hide("b", false);
    std::fs::remove_dir_all(state(&made)).unwrap();
    let ran = made.run(&["ledger", "rebuild"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(made.run(&["sync"]).code, 0);
    assert_eq!(["one", "two"].map(|label| holds(&made, 1, label)), [2, 0]);
}

#[test]
fn a_token_that_was_set_back_when_the_ledger_was_lost_brings_nothing_back_and_takes_nothing_away() {
    let made = Made::with(2);
    let (b, aside) = (made.dir().join("member-b"), made.dir().join("aside"));
    makes(&made, &[("one", 1), ("two", 2)]);
    rest(&made);
    let copy = |from: &PathBuf, to: &PathBuf| {
        _ = std::fs::remove_dir_all(to);
        assert!(std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    };
    copy(&b, &aside);
    // Destroyed, and another one made under its names; one that the old token has not seen; and one destroyed for good.
    destroys(&made, "one");
    destroys(&made, "two");
    makes(&made, &[("one", 1), ("three", 3)]);
    rest(&made);
    let point = |member| made.on_member(member, |token, s| ec_point(token, s, "one"));
    let right = point(0);
    copy(&aside, &b);
    assert_ne!(point(1), right);
    std::fs::remove_dir_all(state(&made)).unwrap();
    for gone in [
        &["ledger", "rebuild", "--json"][..],
        &["ledger", "rebuild", "--replace", "--gone", "destroyed", "--json"],
    ] {
        let ran = made.run(gone);
        assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
        assert_eq!(ran.json()["to_destroy"], json!([]), "{}", ran.out);
    }
    assert_eq!(made.run(&["sync"]).code, 0);
    made.as_application(|slot, s| {
        assert_eq!(["one", "two", "three"].map(|label| find(slot, s, label).len()), [2, 0, 2]);
        assert_eq!(ec_point(slot, s, "one"), right);
    });
    assert_eq!(made.run(&["check", "--prove"]).code, 0);
    assert_eq!(made.run(&["sync", "--discard", "b"]).code, 0);
    assert_eq!(["one", "two", "three"].map(|label| holds(&made, 1, label)), [2, 0, 2]);
    assert_eq!(point(1), right);
}

fn ec_point(token: &dyn ha_token::Token, s: ha_token::SessionHandle, label: &str) -> Vec<u8> {
    let read = |o| token.get_attributes(s, o, &[ha_token::ck::CKA_EC_POINT]).unwrap();
    let mut points = find(token, s, label).into_iter().filter_map(|o| read(o)[0].bytes().map(<[u8]>::to_vec));
    points.find(|point| !point.is_empty()).unwrap()
}

#[test]
fn a_ledger_that_was_begun_without_a_login_when_the_right_one_was_missed_is_no_obstacle() {
    let made = Made::with(2);
    makes(&made, &[("one", 1)]);
    rest(&made);
    std::fs::remove_dir_all(state(&made)).unwrap();
    let provider = Provider::from_config(Config::from_file(&made.config()).unwrap()).unwrap();
    let slot = std::sync::Arc::clone(&provider.slots()[0]);
    let s = slot.open_session(true).unwrap();
    let public = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bool(ck::CKA_PRIVATE, false),
        Attribute::bytes(ck::CKA_LABEL, *b"public"),
    ];
    slot.create_object(s, &public).unwrap();
    drop(slot);
    provider.shutdown(std::time::Duration::from_secs(5));
    drop(provider);
    made.as_application(|slot, s| assert_eq!(find(slot, s, "one").len(), 2, "keys are served"));
    assert_eq!(made.run(&["ledger", "rebuild"]).code, 1);
    let ran = made.run(&["ledger", "rebuild", "--replace"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    destroys(&made, "one");
}
