//! `hactl init` on real SoftHSM: what it makes, what it refuses, what it leaves when it fails.

mod support;

use std::path::Path;

use ha_token::{Attribute, Mechanism, Output, Rv, ck};
use serde_json::json;
use support::{Made, command, find, finish, hactl, keys, mode, pair};

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_first_group_in_one_command() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("new/group");
    let ran = hactl(&[
        "init",
        "--softhsm",
        "2",
        "--label",
        "first \"one\"",
        "--json",
        "--dir",
        dir.to_str().unwrap(),
    ]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let made = ran.json();
    assert_eq!(
        made["groups"],
        json!([{"label": "first \"one\"", "members": ["a", "b"], "enrolment": "ceremony"}])
    );
    assert_eq!(
        names(&dir),
        ["ha.toml", "member-a", "member-a.conf", "member-b", "member-b.conf", "pin", "so-pin", "state"]
    );
    assert_eq!(mode(&dir), 0o700);
    for file in ["ha.toml", "pin", "so-pin", "member-a.conf"] {
        assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
    }
    let pins = ["pin", "so-pin"].map(|f| std::fs::read_to_string(dir.join(f)).unwrap());
    assert!(pins[0] != pins[1] && pins.iter().all(|p| p.len() >= 8 && p.bytes().all(|b| b.is_ascii_digit())));
    for pin in &pins {
        assert!(!ran.out.contains(pin) && !ran.err.contains(pin), "a PIN was printed");
    }

    let config = dir.join("ha.toml");
    let config = config.to_str().unwrap();
    let checked = hactl(&["config", "check", "--json", "--config", config]);
    assert_eq!(checked.code, 0, "{}", checked.err);
    assert_eq!(checked.json()["groups"], json!([{"label": "first \"one\"", "members": ["a", "b"]}]));
    let slots = hactl(&["slot", "list", "--json", "--config", config]);
    assert_eq!(slots.code, 0, "{}", slots.err);
    let slots = slots.json();
    assert_eq!(slots["slots"].as_array().unwrap().len(), 1);
    assert_eq!(slots["slots"][0]["kind"], "HA Virtual Card Slot");
    assert_eq!(slots["slots"][0]["label"], "first \"one\"");
    assert_eq!(slots["slots"][0]["model"], "HA group");
}

#[test]
fn the_next_commands_are_printed_and_no_pin() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("it's here");
    let ran = hactl(&["init", "--softhsm", "1", "--dir", dir.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.out.contains("export PKCS11_HA_CONF=") && ran.out.contains("pkcs11-tool --module "),
        "{}",
        ran.out
    );
    // The line is one that a shell takes.
    let line = ran.out.lines().find(|l| l.contains("hactl status")).unwrap().replace("hactl status", "ls");
    let line = line.replace("--pin-file", "");
    assert!(
        std::process::Command::new("sh").args(["-c", &line]).output().unwrap().status.success(),
        "{line}"
    );
    for file in ["pin", "so-pin"] {
        let pin = std::fs::read_to_string(dir.join(file)).unwrap();
        assert!(!ran.out.contains(&pin) && !ran.err.contains(&pin));
    }
}

#[test]
fn a_given_pin_is_the_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("g");
    let mut command = command(&["init", "--softhsm", "2", "--dir", dir.to_str().unwrap()]);
    command.env("PKCS11_HA_PIN", "correct horse");
    let ran = finish(command);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(!ran.out.contains("correct horse") && !ran.err.contains("correct horse"));
    assert_eq!(std::fs::read(dir.join("pin")).unwrap(), b"correct horse");
    let mut command =
        support::command(&["status", "--json", "--config", dir.join("ha.toml").to_str().unwrap()]);
    command.env("PKCS11_HA_PIN", "correct horse");
    let status = finish(command);
    assert_eq!(status.code, 0, "{}", status.err);
    assert_eq!(status.json()["groups"][0]["members"][1]["in_sync"], true);
}

#[test]
fn the_ceremony_leaves_trusted_group_keys_on_every_member_and_nothing_else() {
    let made = Made::with(4);
    let status = made.run(&["status", "--json"]);
    assert_eq!(status.code, 0, "{}", status.err);
    assert_eq!(status.json()["groups"][0]["enrolment"], "ceremony");
    for number in 0..4 {
        made.on_member(number, |token, session| {
            assert!(find(token, session, "pkcs11-ha enrolment key").is_empty(), "member {number}");
            let group_keys = find(token, session, "pkcs11-ha group key");
            assert_eq!(group_keys.len(), 2, "member {number}");
            let wrapping = vec![
                Attribute::bool(ck::CKA_TOKEN, false),
                Attribute::ulong(ck::CKA_VALUE_LEN, 32),
                Attribute::bool(ck::CKA_WRAP, true),
                Attribute::bool(ck::CKA_DECRYPT, true),
            ];
            let wrapping =
                token.generate_key(session, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &wrapping).unwrap();
            for key in group_keys {
                // Who has the user PIN only can neither carry it away nor give it another use.
                let mut space = [0; 256];
                let stolen = token.wrap_key(
                    session,
                    &mut Mechanism::plain(ck::CKM_AES_KEY_WRAP),
                    wrapping,
                    key,
                    &mut Output::buffer(&mut space),
                );
                assert_eq!(stolen, Err(Rv::KEY_NOT_WRAPPABLE), "member {number}");
                let changed =
                    token.set_attributes(session, key, &vec![Attribute::bool(ck::CKA_DECRYPT, true)]);
                assert!(changed.is_err(), "member {number}");
            }
        });
    }
}

#[test]
fn a_key_made_afterwards_is_on_every_member_proven() {
    let made = Made::with(3);
    made.as_application(|token, session| {
        pair(token, session, "leaves", 1, true);
        pair(token, session, "stays", 2, false);
    });
    let check = made.run(&["check", "--prove", "--json"]);
    assert_eq!(check.code, 0, "{}\n{}", check.out, check.err);
    let check = check.json();
    assert_eq!(keys(&check), ["groups", "schema"]);
    let group = &check["groups"][0];
    assert_eq!(keys(group), ["label", "objects", "summary"]);
    assert_eq!(
        group["summary"],
        json!({"objects": 4, "same": 4, "missing": 0, "different": 0, "unproven": 0})
    );
    for object in group["objects"].as_array().unwrap() {
        assert_eq!(keys(object), ["class", "copyable", "fingerprint", "id", "key_type", "label", "members"]);
        assert_eq!(object["members"], json!({"a": "same", "b": "same", "c": "same"}));
        assert_eq!((&object["key_type"], &object["copyable"]), (&json!("EC"), &json!(true)));
        assert_eq!(object["fingerprint"].as_str().unwrap().len(), 64);
    }
    let status = made.run(&["status", "--json"]).json();
    for member in status["groups"][0]["members"].as_array().unwrap() {
        assert_eq!((&member["objects"], &member["in_sync"]), (&json!(4), &json!(true)));
    }
    for number in 0..3 {
        made.on_member(number, |token, session| {
            let extractable = |label: &str| {
                let private = find(token, session, label);
                let read = |h| token.get_attributes(session, h, &[ck::CKA_EXTRACTABLE]).unwrap();
                private.into_iter().any(|h| read(h)[0].bytes() == Some(&[1]))
            };
            assert!(extractable("leaves") && !extractable("stays"), "member {number}");
        });
    }
}

#[test]
fn a_folder_with_something_in_it_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine"), "x").unwrap();
    let ran = hactl(&["init", "--softhsm", "2", "--dir", folder.path().to_str().unwrap()]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("not empty"), "{}", ran.err);
    assert_eq!(names(folder.path()), ["mine"]);
}

#[test]
fn what_was_made_is_removed_when_it_fails() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (fresh, empty) = (folder.path().join("fresh"), folder.path().join("empty"));
    std::fs::create_dir(&empty).unwrap();
    std::fs::set_permissions(&empty, PermissionsExt::from_mode(0o755)).unwrap();
    for dir in [&fresh, &empty] {
        let mut command = command(&["init", "--softhsm", "2", "--dir", dir.to_str().unwrap()]);
        // Too short for SoftHSM, which says so when the first token is half made.
        command.env("PKCS11_HA_PIN", "123");
        let ran = finish(command);
        assert_eq!(ran.code, 2);
        assert!(ran.err.contains("4 to 255"), "{}", ran.err);
    }
    assert_eq!(names(folder.path()), ["empty"]);
    assert_eq!((names(&empty).len(), mode(&empty)), (0, 0o755));
}

#[test]
fn without_softhsm_the_package_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("g");
    let mut named = command(&["init", "--softhsm", "2", "--dir", dir.to_str().unwrap()]);
    named.env("SOFTHSM2_MODULE", "/nonexistent/libsofthsm2.so");
    let ran = finish(named);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("SOFTHSM2_MODULE") && ran.err.contains("softhsm2"), "{}", ran.err);
    assert!(!dir.exists());
    for wrong in [
        &["init", "--softhsm", "0", "--dir", "x"][..],
        &["init", "--softhsm", "33", "--dir", "x"],
        &["init", "--dir", "x"],
    ] {
        assert_eq!(hactl(wrong).code, 2);
    }
    let long = "l".repeat(33);
    assert_eq!(hactl(&["init", "--softhsm", "1", "--label", &long, "--dir", dir.to_str().unwrap()]).code, 2);
    assert!(!dir.exists());
}
