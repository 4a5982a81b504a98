//! Members that join, leave and are replaced, on real SoftHSM: who is in the group holds every key, proven, and nothing is
//! lost when one leaves.

mod support;

use std::path::Path;

use ha_core::config::Config;
use ha_core::provider;
use ha_token::{Attribute, Mechanism, OpKind, Output, UserType, ck};
use serde_json::{Value, json};
use support::{Made, Ran, find, pair, signs};

/// A token is initialised again: it holds nothing, and has another serial number.
fn made_anew(made: &Made, name: &str) {
    made_anew_with(made, name, &made.pin());
}

fn made_anew_with(made: &Made, name: &str, pin: &[u8]) {
    let tokens = made.dir().join(format!("member-{name}"));
    std::fs::remove_dir_all(&tokens).unwrap();
    std::fs::create_dir(&tokens).unwrap();
    made.initialise(name, &made.dir().join(format!("member-{name}.conf")), pin);
}

/// Runs a verb that may need the security officer's PIN.
fn run(made: &Made, arguments: &[&str]) -> Ran {
    let mut command = support::command(arguments);
    command.arg("--config").arg(made.config()).arg("--pin-file").arg(made.dir().join("pin"));
    command.args(["--so-pin-file".as_ref(), made.dir().join("so-pin").as_os_str()]);
    support::finish(command)
}

fn joins(made: &Made, name: &str, verb: &[&str]) -> Ran {
    let env = format!("SOFTHSM2_CONF={}", made.dir().join(format!("member-{name}.conf")).display());
    let label = format!("member-{name}");
    let mut arguments = verb.to_vec();
    // A busy machine takes its time.
    arguments.extend([name, "--token", &label, "--env", &env, "--json", "--timeout", "600"]);
    run(made, &arguments)
}

/// A data object; two of these nothing tells apart.
fn data() -> ha_token::Template {
    vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bytes(ck::CKA_LABEL, "twins"),
        Attribute::bytes(ck::CKA_VALUE, "the same"),
    ]
}

fn state(made: &Made, member: usize) -> Value {
    made.run_without_pin(&["status", "--json"]).json()["groups"][0]["members"][member]["state"].clone()
}

fn names(made: &Made) -> Vec<String> {
    let config = Config::from_file(&made.config()).unwrap();
    config.groups[0].members.iter().map(|m| m.name.clone()).collect()
}

fn checked(made: &Made) -> Value {
    let ran = made.run(&["check", "--prove", "--json"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    ran.json()["groups"][0]["summary"].clone()
}

fn makes(made: &Made, keys: &[(&str, u8)]) {
    made.as_application(|slot, s| keys.iter().for_each(|(label, id)| _ = pair(slot, s, label, *id, false)));
}

#[test]
fn an_empty_token_joins_and_holds_every_key_proven() {
    let made = Made::with(2);
    makes(&made, &[("one", 1), ("two", 2)]);
    made.blank_token("c");
    let before = std::fs::read_to_string(made.config()).unwrap();
    let ran = joins(&made, "c", &["member", "add"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(ran.json()["joined"], json!({"member": "c", "proven": 4, "without": []}));
    assert_eq!((ran.json()["left"].clone(), ran.json()["restart"].clone()), (Value::Null, json!([])));
    assert_eq!(names(&made), ["a", "b", "c"]);
    assert!(std::fs::read_to_string(made.config()).unwrap().starts_with(before.trim_end()));
    assert!(signs(&made, 2, "one") && signs(&made, 2, "two"));
    assert_eq!(checked(&made), json!({"objects": 4, "same": 4, "missing": 0, "different": 0, "unproven": 0}));
    // It takes part from now on, also where the two first ones are gone.
    makes(&made, &[("three", 3)]);
    ["a", "b"].iter().for_each(|name| made.hide(name, true));
    assert!(signs(&made, 2, "three"));
    made.as_application(|slot, s| assert_eq!(find(slot, s, "one").len(), 2));
}

#[test]
fn who_cannot_join_leaves_the_configuration_as_it_was() {
    let made = Made::with(2);
    makes(&made, &[("one", 1)]);
    let before = std::fs::read_to_string(made.config()).unwrap();
    let refused = |ran: Ran, code: i32, words: &str| {
        assert_eq!(ran.code, code, "{} {}", ran.out, ran.err);
        assert!(ran.err.contains(words), "{}", ran.err);
        assert_eq!(std::fs::read_to_string(made.config()).unwrap(), before);
        let files = std::fs::read_dir(made.dir()).unwrap().map(|e| e.unwrap().file_name());
        assert!(!files.map(|f| f.into_string().unwrap()).any(|f| f.ends_with(".new")));
    };
    refused(joins(&made, "c", &["member", "add"]), 1, "member \"c\": ");
    refused(run(&made, &["member", "add", "a", "--token", "x"]), 2, "has a member \"a\"");
    refused(run(&made, &["member", "add", "c"]), 2, "token");
    refused(run(&made, &["member", "add", "c", "--token", "x", "--role", "boss"]), 2, "active");

    // One that holds a key of its own.
    let conf = made.blank_token("d");
    let config = before.clone() + &member_text(&made, "d", &conf);
    let apart = made.dir().join("apart.toml");
    std::fs::write(&apart, config.replace("ha1", "apart")).unwrap();
    let connector = provider::connector(&Config::from_file(&apart).unwrap().groups[0].members[2]);
    {
        use ha_token::Connector;
        let token = connector.connect().unwrap();
        let s = token.open_session(true).unwrap();
        token.login(s, UserType::User, Some(&made.pin())).unwrap();
        pair(&*token, s, "own", 9, true);
        drop(token);
        connector.disconnect();
    }
    refused(joins(&made, "d", &["member", "add"]), 2, "holds 2 objects that are none of the group's");
    // Emptied, as it was told, it joins, and leaves.
    made_anew(&made, "d");
    assert_eq!(joins(&made, "d", &["member", "add"]).code, 0);
    assert_eq!(made.run(&["member", "remove", "d"]).code, 0);
    assert_eq!(names(&made), ["a", "b"]);
    let before = std::fs::read_to_string(made.config()).unwrap();
    let refused = |ran: Ran, code: i32, words: &str| {
        assert_eq!(ran.code, code, "{} {}", ran.out, ran.err);
        assert!(ran.err.contains(words), "{}", ran.err);
        assert_eq!(std::fs::read_to_string(made.config()).unwrap(), before);
    };

    // A wrong PIN of the security officer is tried once.
    made.blank_token("e");
    let so_pin = std::fs::read(made.dir().join("so-pin")).unwrap();
    std::fs::write(made.dir().join("so-pin"), "00000000").unwrap();
    refused(joins(&made, "e", &["member", "add"]), 1, "security officer of \"a\"");
    std::fs::write(made.dir().join("so-pin"), so_pin).unwrap();
    let ran = joins(&made, "e", &["member", "add"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(names(&made), ["a", "b", "e"]);
}

fn member_text(made: &Made, name: &str, conf: &Path) -> String {
    let module = Config::from_file(&made.config()).unwrap().groups[0].members[0].module.display().to_string();
    format!(
        "\n[[group.member]]\nname = \"{name}\"\nmodule = \"{module}\"\ntoken = \"member-{name}\"\nenv = {{ SOFTHSM2_CONF = \"{}\" }}\n",
        conf.display()
    )
}

#[test]
fn a_dead_member_is_replaced_and_nothing_is_lost() {
    let made = Made::with(2);
    makes(&made, &[("one", 1), ("two", 2)]);
    made.hide("a", true);
    made.blank_token("n");
    let ran = joins(&made, "n", &["member", "replace", "a"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(ran.json()["joined"], json!({"member": "n", "proven": 4, "without": []}));
    assert_eq!(
        ran.json()["left"],
        json!({"member": "a", "destroyed": 0, "left": [], "lost": [], "foreign": []})
    );
    assert_eq!(names(&made), ["n", "b"]);
    assert!(signs(&made, 0, "one") && signs(&made, 0, "two"));
    // What is destroyed now does not come back with the old token: it cannot join as it is.
    made.as_application(|slot, s| {
        find(slot, s, "one").into_iter().for_each(|o| slot.destroy_object(s, o).unwrap());
    });
    made.hide("a", false);
    let ran = joins(&made, "a", &["member", "add"]);
    assert_eq!((ran.code, names(&made).len()), (2, 2), "{} {}", ran.out, ran.err);
    assert!(ran.err.contains("none of the group's"), "{}", ran.err);
    assert_eq!(checked(&made)["same"], 2);
}

#[test]
fn a_token_that_was_made_anew_is_given_everything_under_the_same_name() {
    let made = Made::with(2);
    makes(&made, &[("one", 1)]);
    made_anew(&made, "b");
    // By itself it is not believed.
    let status = made.run(&["status", "--json"]).json();
    assert_eq!(status["groups"][0]["members"][1]["state"], "quarantined", "{status}");
    let before = std::fs::read_to_string(made.config()).unwrap();
    let ran = run(&made, &["member", "replace", "b", "b", "--json"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(std::fs::read_to_string(made.config()).unwrap(), before);
    assert!(signs(&made, 1, "one"));
    assert_eq!(checked(&made), json!({"objects": 2, "same": 2, "missing": 0, "different": 0, "unproven": 0}));
}

#[test]
fn a_member_leaves_with_what_it_holds_of_the_group_destroyed() {
    let made = Made::with(3);
    makes(&made, &[("one", 1)]);
    made.as_application(|slot, s| (0..2).for_each(|_| _ = slot.create_object(s, &data()).unwrap()));
    made.on_member(2, |token, s| _ = pair(token, s, "foreign", 7, true));
    let config = std::fs::read_to_string(made.config()).unwrap();
    let ran = made.run(&["member", "remove", "c", "--destroy", "--json"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    let left = ran.json()["left"].clone();
    assert_eq!(
        (left["destroyed"].clone(), left["left"].clone(), left["lost"].clone()),
        (json!(4), json!([]), json!([]))
    );
    assert_eq!(left["foreign"].as_array().unwrap().len(), 2, "{left}");
    assert_eq!(names(&made), ["a", "b"]);
    assert_eq!(checked(&made)["same"], 4);
    // On the token itself only what was not the group's is left.
    std::fs::write(made.config(), config.replace("ha1", "other")).unwrap();
    made.on_member(2, |token, s| {
        token.find_objects_init(s, &vec![Attribute::bool(ck::CKA_TOKEN, true)]).unwrap();
        assert_eq!(token.find_objects(s, 100).unwrap().len(), 2);
        token.find_objects_final(s).unwrap();
        assert_eq!(find(token, s, "foreign").len(), 2);
    });
}

#[test]
fn what_only_the_leaving_member_holds_is_not_lost_by_mistake() {
    let made = Made::with(2);
    makes(&made, &[("one", 1)]);
    // The other one is dead: nothing proves that it holds them.
    made.hide("b", true);
    let before = std::fs::read_to_string(made.config()).unwrap();
    let ran = made.run(&["member", "remove", "a"]);
    assert_eq!(ran.code, 1, "{} {}", ran.out, ran.err);
    made.hide("b", false);
    assert_eq!(std::fs::read_to_string(made.config()).unwrap(), before);
    assert_eq!(state(&made, 0), "up", "it was taken out of use");
    let ran = made.run(&["member", "remove", "a"]);
    assert_eq!((ran.code, names(&made)), (0, vec!["b".to_owned()]), "{} {}", ran.out, ran.err);
    let ran = made.run(&["member", "remove", "b"]);
    assert_eq!((ran.code, names(&made).len()), (2, 1), "{} {}", ran.out, ran.err);
    assert_eq!(checked(&made)["same"], 2);
}

#[test]
fn a_key_that_stays_on_one_member_holds_it_back() {
    let made = Made::with(2);
    let text = std::fs::read_to_string(made.config()).unwrap();
    std::fs::write(
        made.config(),
        text.replace("label = \"ha1\"", "label = \"ha1\"\nnon_extractable = \"local\""),
    )
    .unwrap();
    makes(&made, &[("stays", 5)]);
    // Its private half is on one of them.
    let at = (0..2).find(|member| signs(&made, *member, "stays")).unwrap();
    let (leaving, other) = (["a", "b"][at], ["b", "a"][at]);
    let ran = made.run(&["member", "remove", leaving]);
    assert_eq!((ran.code, names(&made).len()), (1, 2), "{} {}", ran.out, ran.err);
    assert!(ran.err.contains("private-key \"stays\" 05"), "{}", ran.err);
    made.blank_token("n");
    let ran = joins(&made, "n", &["member", "add"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    let joined = ran.json()["joined"].clone();
    assert_eq!((joined["proven"].as_u64(), joined["without"].as_array().map(Vec::len)), (Some(1), Some(1)));
    let ran = made.run(&["member", "remove", leaving, "--lose", "--json"]);
    assert_eq!(ran.code, 1, "{} {}", ran.out, ran.err);
    assert_eq!(ran.json()["left"]["lost"], json!(["private-key \"stays\" 05"]));
    assert_eq!(names(&made), [other, "n"]);
}

#[test]
fn a_program_at_work_sees_nothing_of_a_replacement() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let made = Made::with(2);
    makes(&made, &[("one", 1)]);
    made.blank_token("n");
    let (works, over) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let program = scope.spawn(|| {
            made.as_application(|slot, s| {
                let private = Attribute::ulong(ck::CKA_CLASS, ck::CKO_PRIVATE_KEY);
                slot.find_objects_init(s, &vec![private]).unwrap();
                let key = slot.find_objects(s, 2).unwrap()[0];
                slot.find_objects_final(s).unwrap();
                while !over.load(Ordering::Acquire) {
                    slot.op_init(s, OpKind::Sign, Some(&mut Mechanism::plain(ck::CKM_ECDSA)), key).unwrap();
                    slot.op_one_shot(s, OpKind::Sign, &[1; 32], &mut Output::buffer(&mut [0; 64])).unwrap();
                    works.store(true, Ordering::Release);
                }
                // What it destroys is destroyed on the new member too.
                find(slot, s, "one").into_iter().for_each(|o| slot.destroy_object(s, o).unwrap());
            });
        });
        while !works.load(Ordering::Acquire) && !program.is_finished() {
            std::thread::yield_now();
        }
        let ran = joins(&made, "n", &["member", "replace", "a"]);
        over.store(true, Ordering::Release);
        assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
        assert_eq!(ran.json()["restart"], json!([]), "the program has taken it in");
        assert_eq!(ran.json()["joined"]["proven"], 2);
    });
    assert_eq!(names(&made), ["n", "b"]);
    assert_eq!(made.run(&["sync"]).code, 0);
    assert_eq!(checked(&made)["objects"], 0);
    assert!(!signs(&made, 0, "one"), "what was destroyed came with the new member");
}

#[test]
fn a_group_that_enrolled_itself_asks_for_no_security_officer() {
    let made = Made::with(2);
    // As if the two tokens had been there before the group: it has no keys yet.
    ["a", "b"].into_iter().for_each(|name| made_anew(&made, name));
    std::fs::remove_dir_all(made.dir().join("state")).unwrap();
    makes(&made, &[("one", 1)]);
    made.blank_token("c");
    std::fs::remove_file(made.dir().join("so-pin")).unwrap();
    std::fs::write(made.dir().join("so-pin"), "").unwrap();
    let ran = joins(&made, "c", &["member", "add"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(ran.json()["joined"], json!({"member": "c", "proven": 2, "without": []}));
    assert!(signs(&made, 2, "one"));
}

#[test]
fn a_member_is_given_another_role() {
    let made = Made::with(2);
    let role = |n: usize| {
        made.run_without_pin(&["status", "--json"]).json()["groups"][0]["members"][n]["role"].clone()
    };
    let ran = made.run_without_pin(&["member", "set", "a", "--role", "standby", "--json"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(
        ran.json(),
        json!({"schema": 1, "group": "ha1", "member": "a", "role": "standby", "restart": []})
    );
    assert_eq!((role(0), role(1)), (json!("standby"), json!("active")));
    let before = std::fs::read_to_string(made.config()).unwrap();
    let ran = made.run_without_pin(&["member", "set", "b", "--role", "standby"]);
    assert_eq!(
        (ran.code, std::fs::read_to_string(made.config()).unwrap()),
        (2, before),
        "{} {}",
        ran.out,
        ran.err
    );
    let ran = made.run_without_pin(&["member", "set", "a", "--role", "active"]);
    assert_eq!((ran.code, role(0)), (0, json!("active")), "{} {}", ran.out, ran.err);
}

#[test]
fn what_fails_brings_nothing_back_and_leaves_the_member_in_use() {
    let made = Made::with(2);
    makes(&made, &[("one", 1), ("two", 2)]);
    let destroyed = |label: &str| {
        made.hide("a", true);
        made.as_application(|slot, s| {
            find(slot, s, label).into_iter().for_each(|o| slot.destroy_object(s, o).unwrap());
        });
        made.hide("a", false);
    };
    let is_gone = |label: &str| {
        assert_eq!(state(&made, 0), "up");
        made.as_application(|slot, s| assert_eq!(find(slot, s, label).len(), 0));
        assert_eq!(made.run(&["sync"]).code, 0);
        made.on_member(0, |token, s| assert_eq!(find(token, s, label).len(), 0));
    };
    destroyed("one");
    let ran = run(&made, &["member", "replace", "a", "a"]);
    assert_eq!(ran.code, 2, "{} {}", ran.out, ran.err);
    assert!(ran.err.contains("is the one that it was"), "{}", ran.err);
    is_gone("one");
    destroyed("two");
    let ran = run(&made, &["member", "replace", "a", "n", "--token", "typo"]);
    assert_eq!(ran.code, 1, "{} {}", ran.out, ran.err);
    is_gone("two");
    // Neither with a wrong PIN of the security officer, which is asked for when the member is out of use.
    makes(&made, &[("three", 3)]);
    destroyed("three");
    made.blank_token("n");
    std::fs::write(made.dir().join("so-pin"), "00000000").unwrap();
    let ran = joins(&made, "n", &["member", "replace", "a"]);
    assert_eq!(ran.code, 1, "{} {}", ran.out, ran.err);
    assert_eq!(names(&made), ["a", "b"]);
    is_gone("three");
    makes(&made, &[("four", 4)]);
}

#[test]
fn keys_from_before_the_group_hold_up_nobody_and_are_told() {
    let made = Made::with(2);
    makes(&made, &[("one", 1)]);
    made.on_member(1, |token, s| _ = pair(token, s, "foreign", 7, true));
    made.blank_token("c");
    let ran = joins(&made, "c", &["member", "add"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(ran.json()["joined"], json!({"member": "c", "proven": 2, "without": []}));
    let ran = made.run(&["member", "remove", "b", "--json"]);
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(ran.json()["left"]["foreign"].as_array().unwrap().len(), 2, "{}", ran.out);
}

#[test]
fn a_member_joins_and_leaves_while_a_program_makes_keys() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let made = Made::with(2);
    makes(&made, &[("one", 1)]);
    made.blank_token("c");
    let (works, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let keys = std::thread::scope(|scope| {
        let program = scope.spawn(|| {
            made.as_application(|slot, s| {
                let mut keys = 0;
                while !over.load(Ordering::Acquire) {
                    pair(slot, s, "many", 9, false);
                    keys += 1;
                    works.store(true, Ordering::Release);
                    // More than a member that joins is given in that time.
                    std::thread::sleep(std::time::Duration::from_millis(300));
                }
                keys
            })
        });
        while !works.load(Ordering::Acquire) && !program.is_finished() {
            std::thread::yield_now();
        }
        let joined = joins(&made, "c", &["member", "add"]);
        let left = made.run(&["member", "remove", "c", "--timeout", "600"]);
        over.store(true, Ordering::Release);
        assert_eq!(joined.code, 0, "{} {}", joined.out, joined.err);
        assert_eq!(left.code, 0, "{} {}", left.out, left.err);
        program.join().unwrap()
    });
    assert_eq!(names(&made), ["a", "b"]);
    assert_eq!(checked(&made)["same"], 2 + 2 * keys);
}

#[test]
fn the_last_member_with_the_group_keys_does_not_leave() {
    let made = Made::with(2);
    makes(&made, &[("one", 1)]);
    made_anew(&made, "b");
    let so_pin = std::fs::read(made.dir().join("so-pin")).unwrap();
    std::fs::write(made.dir().join("so-pin"), "00000000").unwrap();
    assert_eq!(run(&made, &["member", "replace", "b", "b"]).code, 1);
    // All it holds could be gone: nothing but the keys tells.
    made.as_application(|slot, s| {
        find(slot, s, "one").into_iter().for_each(|o| slot.destroy_object(s, o).unwrap());
    });
    let ran = made.run(&["member", "remove", "a"]);
    assert_eq!((ran.code, names(&made).len()), (1, 2), "{} {}", ran.out, ran.err);
    assert!(ran.err.contains("has the group keys"), "{}", ran.err);
    std::fs::write(made.dir().join("so-pin"), so_pin).unwrap();
    let ran = run(&made, &["member", "replace", "b", "b"]);
    assert_eq!(ran.code, 0, "begun before, it goes on: {} {}", ran.out, ran.err);
    makes(&made, &[("two", 2)]);
    assert!(signs(&made, 1, "two"));
}

#[test]
fn a_token_that_refused_the_pin_is_not_sent_it_again() {
    let made = Made::with(2);
    makes(&made, &[("one", 1)]);
    made.blank_token("c");
    made_anew_with(&made, "c", b"another-one");
    let ran = joins(&made, "c", &["member", "add"]);
    assert_eq!(ran.code, 1, "{} {}", ran.out, ran.err);
    assert!(ran.err.contains("CKR_PIN_INCORRECT"), "{}", ran.err);
    let ran = joins(&made, "c", &["member", "add"]);
    assert!(ran.code > 0 && ran.err.contains("has counted a wrong PIN"), "{} {}", ran.out, ran.err);
    assert_eq!(names(&made), ["a", "b"]);
}

#[test]
fn a_member_does_not_leave_fewer_copies_than_the_group_wants() {
    let made = Made::with(3);
    made.hide("a", true);
    makes(&made, &[("one", 1)]);
    let ran = made.run(&["member", "remove", "c"]);
    assert_eq!((ran.code, names(&made).len()), (1, 3), "{} {}", ran.out, ran.err);
    assert!(ran.err.contains("private-key \"one\" 01"), "{}", ran.err);
    made.hide("a", false);
    let ran = made.run(&["member", "remove", "c"]);
    assert_eq!((ran.code, names(&made).len()), (0, 2), "{} {}", ran.out, ran.err);
    assert!(signs(&made, 0, "one") && signs(&made, 1, "one"));
}
