//! `hactl`'s other verbs on a real group, and their documents as the contract has them.

mod support;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};
use support::{Made, command, find, finish, hactl, keys, mode, pair};

fn member<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["groups"][0]["members"].as_array().unwrap().iter().find(|m| m["name"] == name).unwrap()
}

#[test]
fn status_has_the_contracts_fields_with_and_without_a_pin() {
    let made = Made::with(2);
    let blind = made.run_without_pin(&["status", "--json"]);
    assert_eq!(blind.code, 0, "{}", blind.err);
    let blind = blind.json();
    assert_eq!(keys(&blind), ["groups", "schema"]);
    assert_eq!(keys(&blind["groups"][0]), ["label", "members", "processes"]);
    let a = member(&blind, "a");
    assert_eq!(keys(a), ["in_sync", "last_fault", "name", "objects", "role", "rtt_us", "state"]);
    assert_eq!((&a["state"], &a["role"], &a["last_fault"]), (&json!("up"), &json!("active"), &Value::Null));
    assert_eq!((&a["objects"], &a["in_sync"]), (&Value::Null, &Value::Null));
    assert!(a["rtt_us"].is_u64());

    let seeing = made.run(&["status", "--json"]).json();
    assert_eq!(keys(member(&seeing, "b")), keys(a));
    assert_eq!(
        (&member(&seeing, "b")["objects"], &member(&seeing, "b")["in_sync"]),
        (&json!(0), &json!(true))
    );
    let people = made.run(&["status"]);
    assert!(people.out.contains("security officers"), "{}", people.out);
}

#[test]
fn a_member_that_is_away_is_bad_news_and_is_brought_up_to_date_by_sync() {
    let made = Made::with(3);
    made.as_application(|token, session| {
        pair(token, session, "one", 1, true);
    });
    made.hide("b", true);
    let status = made.run(&["status", "--json"]);
    assert_eq!(status.code, 1);
    let status = status.json();
    assert_eq!(member(&status, "b")["state"], "down");
    assert!(member(&status, "b")["last_fault"].as_str().unwrap().contains("member-b"));
    assert_eq!(
        (&member(&status, "b")["objects"], &member(&status, "b")["in_sync"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(member(&status, "a")["in_sync"], true);
    assert_eq!(made.run(&["check"]).code, 1);
    made.as_application(|token, session| {
        pair(token, session, "two", 2, false);
        for object in find(token, session, "one") {
            token.destroy_object(session, object).unwrap();
        }
    });

    made.hide("b", false);
    let behind = made.run(&["status", "--json"]);
    assert_eq!(behind.code, 1);
    assert_eq!(member(&behind.json(), "b")["in_sync"], false);
    for _ in 0..2 {
        // A rehearsal, twice: the first has changed nothing.
        let dry = made.run(&["sync", "--dry-run", "--json"]);
        assert_eq!(dry.code, 1, "{}", dry.err);
        let to_do = dry.json();
        assert_eq!(to_do["dry_run"], true);
        assert_eq!(
            *member(&to_do, "b"),
            json!({"name": "b", "destroyed": 2, "changed": 0, "copied": 2, "left": []})
        );
        assert_eq!(
            *member(&to_do, "a"),
            json!({"name": "a", "destroyed": 0, "changed": 0, "copied": 0, "left": []})
        );
    }
    let done = made.run(&["sync", "--json"]);
    assert_eq!(done.code, 0, "{}\n{}", done.out, done.err);
    assert_eq!(
        *member(&done.json(), "b"),
        json!({"name": "b", "destroyed": 2, "changed": 0, "copied": 2, "left": []})
    );
    made.on_member(1, |token, session| {
        assert!(find(token, session, "one").is_empty());
        assert_eq!(find(token, session, "two").len(), 2);
    });
    let check = made.run(&["check", "--prove", "--json"]);
    assert_eq!(check.code, 0, "{}", check.out);
    assert_eq!(check.json()["groups"][0]["summary"]["same"], 2);
}

#[test]
fn what_was_destroyed_behind_the_groups_back_is_missing_until_sync() {
    let made = Made::with(2);
    made.as_application(|token, session| {
        pair(token, session, "k", 1, false);
    });
    made.on_member(0, |token, session| {
        for object in find(token, session, "k") {
            token.destroy_object(session, object).unwrap();
        }
    });
    let check = made.run(&["check", "--json"]);
    assert_eq!(check.code, 1);
    assert_eq!(check.json()["groups"][0]["summary"]["missing"], 2);
    assert_eq!(member(&made.run(&["status", "--json"]).json(), "a")["in_sync"], false);
    let sync = made.run(&["sync"]);
    assert_eq!(sync.code, 0, "{}\n{}", sync.out, sync.err);
    assert!(sync.out.contains("a: 0 destroyed, 0 changed, 2 copied"), "{}", sync.out);
    let check = made.run(&["check", "--prove", "--json"]);
    assert_eq!(check.code, 0, "{}", check.out);
    assert_eq!(
        check.json()["groups"][0]["summary"],
        json!({"objects": 2, "same": 2, "missing": 0, "different": 0, "unproven": 0})
    );
}

#[test]
fn adopting_copies_what_can_be_copied_and_says_why_the_rest_stays() {
    let made = Made::with(2);
    made.on_member(1, |token, session| {
        pair(token, session, "old", 1, true);
        pair(token, session, "stuck", 2, false);
    });
    let sync = made.run(&["sync"]);
    assert_eq!(sync.code, 1);
    assert!(sync.out.contains("hactl adopt b") && sync.out.contains("\"old\""), "{}", sync.out);
    assert_eq!(made.run(&["sync", "--json"]).json()["groups"][0]["foreign"].as_array().unwrap().len(), 4);

    for dry in [true, false] {
        let mut arguments = vec!["adopt", "b", "--json"];
        if dry {
            arguments.push("--dry-run");
        }
        let ran = made.run(&arguments);
        assert_eq!(ran.code, 1, "{}", ran.err);
        let document = ran.json();
        assert_eq!(
            (&document["adopted"], &document["left"], &document["dry_run"]),
            (&json!(3), &json!(1), &json!(dry))
        );
        let stuck = document["objects"].as_array().unwrap().iter().find(|o| o["adopted"] == false).unwrap();
        assert_eq!((&stuck["class"], &stuck["label"]), (&json!("private-key"), &json!("stuck")));
        assert!(stuck["why_not"].as_str().unwrap().contains("CKA_EXTRACTABLE"));
        let there = made.on_member(0, |token, session| find(token, session, "old").len());
        assert_eq!(there, if dry { 0 } else { 2 });
    }
    let check = made.run(&["check", "--prove", "--json"]).json();
    for object in check["groups"][0]["objects"].as_array().unwrap() {
        let stays = object["label"] == "stuck" && object["class"] == "private-key";
        assert_eq!(object["members"], json!({"a": if stays { "missing" } else { "same" }, "b": "same"}));
    }
    let nobody = made.run(&["adopt", "z"]);
    assert_eq!(nobody.code, 2);
    assert!(nobody.err.contains("there are: a, b"), "{}", nobody.err);
    made.hide("b", true);
    assert_eq!(made.run(&["adopt", "b"]).code, 1);
}

#[test]
fn two_different_keys_of_one_name_are_different() {
    let made = Made::with(2);
    for number in [0, 1] {
        made.on_member(number, |token, session| {
            pair(token, session, "twin", 1, true);
        });
    }
    let check = made.run(&["check", "--prove", "--json"]);
    assert_eq!(check.code, 1);
    let check = check.json();
    assert!(check["groups"][0]["summary"]["different"].as_u64().unwrap() >= 2, "{check}");
    assert_eq!(check["groups"][0]["summary"]["same"], 0);
}

#[test]
fn doctor_finds_a_healthy_group_healthy_and_writes_nothing() {
    let made = Made::with(2);
    let ran = made.run(&["doctor"]);
    assert_eq!(ran.code, 0, "{}\n{}", ran.out, ran.err);
    assert!(
        ran.out.contains("✓ ha1/a: login") && ran.out.contains("AES_KEY_WRAP") && !ran.out.contains('✗'),
        "{}",
        ran.out
    );
    std::fs::remove_dir_all(made.dir().join("state")).unwrap();
    let fresh = made.run_without_pin(&["doctor", "--json"]);
    assert_eq!(fresh.code, 0, "{}", fresh.err);
    let fresh = fresh.json();
    assert_eq!((&fresh["failed"], &fresh["warnings"]), (&json!(0), &json!(1)));
    assert!(!made.dir().join("state").exists());
}

#[test]
fn doctor_says_what_to_mend() {
    use std::os::unix::fs::PermissionsExt;
    let made = Made::with(2);
    made.hide("b", true);
    std::fs::set_permissions(made.dir().join("state"), PermissionsExt::from_mode(0o777)).unwrap();
    let ran = made.run(&["doctor", "--json"]);
    assert_eq!(ran.code, 1);
    let document = ran.json();
    let failed = |subject: &str| {
        let lines = document["lines"].as_array().unwrap();
        let line = lines
            .iter()
            .find(|l| l["finding"] == "fail" && l["subject"] == subject)
            .unwrap_or_else(|| panic!("{document}"));
        assert!(line["mend"].is_string());
        line["text"].as_str().unwrap().to_owned()
    };
    assert!(failed("state").contains("others can write"));
    assert!(failed("ha1/b").contains("member-b"));
    assert_eq!(document["failed"], 2);

    std::fs::write(made.config(), "[[group]]\nlabel = \"x\"\ncolour = \"red\"\n").unwrap();
    let broken = made.run(&["doctor"]);
    assert_eq!(broken.code, 1);
    assert!(broken.out.contains("colour"), "{}", broken.out);
}

#[test]
fn doctor_gives_a_refused_pin_to_one_token_only() {
    let made = Made::with(2);
    let mut command = command(&["doctor", "--json", "--config", made.config().to_str().unwrap()]);
    command.env("PKCS11_HA_PIN", "wrong-pin-4711");
    let ran = finish(command);
    assert_eq!(ran.code, 1);
    assert!(!ran.out.contains("4711") && !ran.err.contains("4711"));
    let document = ran.json();
    let refused = document["lines"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|l| l["text"].as_str().unwrap().contains("CKR_PIN_INCORRECT"))
        .count();
    assert_eq!(refused, 1);
    // SoftHSM marks the tokens that a wrong PIN was tried on.
    let after = made.run_without_pin(&["doctor", "--json"]).json();
    let marked: Vec<_> = after["lines"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|l| l["finding"] == "warn")
        .map(|l| l["subject"].as_str().unwrap())
        .collect();
    assert_eq!(marked, ["ha1/a"]);
}

#[test]
fn usage_and_configuration_errors_are_two() {
    let made = Made::with(1);
    let config = made.config();
    let config = config.to_str().unwrap();
    assert_eq!(hactl(&["status", "--config", "/nonexistent/ha.toml"]).code, 2);
    assert_eq!(hactl(&["nonsense"]).code, 2);
    // A program reads one document, whatever came of it.
    let told = hactl(&["status", "--json", "--config", "/nonexistent/ha.toml"]);
    let document: serde_json::Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!((told.code, &document["schema"]), (2, &1.into()));
    assert!(document["error"].as_str().unwrap().contains("/nonexistent/ha.toml"), "{document}");
    assert_eq!(hactl(&["status", "--watch", "--json", "--config", config]).code, 2);
    let no_pin = hactl(&["check", "--config", config]);
    assert_eq!(no_pin.code, 2);
    assert!(no_pin.err.contains("--pin-file"), "{}", no_pin.err);
    // Never an argument's value.
    assert_eq!(hactl(&["check", "--pin", "1234", "--config", config]).code, 2);

    let pin = made.dir().join("pin");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&pin, PermissionsExt::from_mode(0o640)).unwrap();
    assert_eq!(mode(&pin), 0o640);
    let exposed = made.run(&["status"]);
    assert_eq!(exposed.code, 2);
    assert!(exposed.err.contains("chmod 600"), "{}", exposed.err);

    let mut wrong = command(&["check", "--config", config]);
    wrong.env("PKCS11_HA_PIN", "wrong-pin-4711");
    let wrong = finish(wrong);
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("CKR_PIN_INCORRECT") && !wrong.err.contains("4711"), "{}", wrong.err);
}

#[test]
fn with_no_member_up_the_answer_is_bad_news() {
    let made = Made::with(1);
    made.hide("a", true);
    for verb in [&["status", "--json"][..], &["check"], &["sync"], &["slot", "list", "--json"]] {
        let ran = made.run(verb);
        assert_eq!(ran.code, 1, "{verb:?}: {}", ran.err);
    }
}

#[test]
fn watching_goes_on_and_sees_a_member_that_comes_back() {
    let made = Made::with(2);
    made.hide("b", true);
    let mut command =
        command(&["status", "--watch", "--config", made.config().to_str().unwrap(), "--pin-file"]);
    command.arg(made.dir().join("pin")).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut state_of_b = || lines.find(|l| l.trim_start().starts_with("b ")).unwrap();
    assert!(state_of_b().contains("down"));
    made.hide("b", false);
    while !state_of_b().contains(" up ") {}
    assert!(state_of_b().contains("yes"));
    child.kill().unwrap();
    child.wait().unwrap();
}
