//! Programs that run while the group changes: they take in who joins and leave out who leaves, on real SoftHSM, and no call
//! of theirs fails.

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ha_core::config::Config;
use ha_core::group::{Group, GroupEvent};
use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_token::{Attribute, Mechanism, ObjectHandle, OpKind, Output, SessionHandle, Token, UserType, ck};
use serde_json::json;
use support::{Made, Ran, find, pair, signs};

/// Longer than anything takes here on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A program that has the group's slot open, and is logged in.
struct Program {
    provider: Provider,
    session: SessionHandle,
}

impl Program {
    fn begin(made: &Made) -> Program {
        let provider = Provider::from_config(Config::from_file(&made.config()).unwrap()).unwrap();
        let slot = &provider.slots()[0];
        let session = slot.open_session(true).unwrap();
        slot.login(session, UserType::User, Some(&made.pin())).unwrap();
        Program { provider, session }
    }

    fn slot(&self) -> &dyn Token {
        &*self.provider.slots()[0]
    }

    fn group(&self) -> &Arc<Group> {
        &self.provider.groups()[0]
    }

    fn signs(&self, key: ObjectHandle) {
        let mut ecdsa = Mechanism::plain(ck::CKM_ECDSA);
        self.slot().op_init(self.session, OpKind::Sign, Some(&mut ecdsa), key).unwrap();
        let mut signature = [0; 64];
        self.slot()
            .op_one_shot(self.session, OpKind::Sign, &[1; 32], &mut Output::buffer(&mut signature))
            .unwrap();
    }

    /// Goes on signing until something is so.
    fn signs_until(&self, key: ObjectHandle, what: &str, mut is_so: impl FnMut(&Group) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !is_so(self.group()) {
            self.signs(key);
            assert!(Instant::now() < until, "not in {PATIENCE:?}: {what}; {:?}", self.group().status());
        }
    }

    fn members(&self) -> Vec<String> {
        self.group().status().members.into_iter().map(|m| m.name).collect()
    }

    /// How much a member has served.
    fn served(&self, name: &str) -> u64 {
        let at = self.members().iter().position(|m| m == name).unwrap();
        self.group().served()[at]
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        assert!(self.provider.shutdown(Duration::from_secs(5)).is_empty());
    }
}

fn is_up(group: &Group, name: &str) -> bool {
    group.status().members.iter().any(|m| m.name == name && m.state == State::Up)
}

fn has(group: &Group, name: &str) -> bool {
    group.status().members.iter().any(|m| m.name == name)
}

fn key(program: &Program, label: &str, id: u8) -> ObjectHandle {
    pair(program.slot(), program.session, label, id, false).1
}

/// Runs a verb with the PINs of the user and the security officer, and time enough.
fn run(made: &Made, arguments: &[&str]) -> Ran {
    let mut command = support::command(arguments);
    command.arg("--config").arg(made.config()).arg("--pin-file").arg(made.dir().join("pin"));
    let ran = support::finish(command);
    assert_eq!(ran.code, 0, "{arguments:?}: {} {}", ran.out, ran.err);
    ran
}

/// Runs the verb that takes in the token of a member, which is empty.
fn joins(made: &Made, name: &str, verb: &[&str]) -> Ran {
    let env = format!("SOFTHSM2_CONF={}", conf(made, name).display());
    let (label, so_pin) = (format!("member-{name}"), made.dir().join("so-pin"));
    let mut arguments = verb.to_vec();
    arguments.extend([name, "--token", &label, "--env", &env, "--json", "--timeout", "120"]);
    arguments.extend(["--so-pin-file", so_pin.to_str().unwrap()]);
    run(made, &arguments)
}

fn conf(made: &Made, name: &str) -> PathBuf {
    made.dir().join(format!("member-{name}.conf"))
}

#[test]
fn who_joins_serves_and_is_given_what_is_made_and_who_leaves_is_let_go() {
    let made = Made::with(2);
    made.blank_token("c");
    let program = Program::begin(&made);
    let events = program.group().events();
    let one = key(&program, "one", 1);

    let ran = joins(&made, "c", &["member", "add"]);
    assert_eq!(ran.json()["restart"], json!([]), "the program has taken it in");
    program.signs_until(one, "c is up", |g| is_up(g, "c"));
    program.signs_until(one, "c signs", |_| program.served("c") > 50);
    assert!(events.try_iter().any(|e| e == GroupEvent::Joined { member: "c".into() }));
    let two = key(&program, "two", 2);
    assert!(signs(&made, 2, "two"), "what is made is made there too");

    // Alone it serves what was made before it came, too.
    ["a", "b"].iter().for_each(|name| made.hide(name, true));
    program.signs_until(one, "a and b are missed", |g| !is_up(g, "a") && !is_up(g, "b"));
    program.signs(two);
    ["a", "b"].iter().for_each(|name| made.hide(name, false));
    program.signs_until(two, "a and b are back", |g| is_up(g, "a") && is_up(g, "b"));

    let ran = run(&made, &["member", "remove", "a", "--json", "--timeout", "120"]);
    assert_eq!(ran.json()["restart"], json!([]));
    program.signs_until(one, "a is gone", |g| !has(g, "a"));
    assert_eq!(program.members(), ["b", "c"]);
    // Nothing of the one that left is needed any more.
    std::fs::remove_dir_all(made.dir().join("member-a")).unwrap();
    (0..20).for_each(|_| program.signs(one));
    let found = find(program.slot(), program.session, "one");
    assert_eq!(found.len(), 2);
    found.into_iter().for_each(|o| program.slot().destroy_object(program.session, o).unwrap());
    key(&program, "three", 3);
    drop(program);
    let ran = run(&made, &["check", "--prove", "--json"]);
    assert_eq!(ran.json()["groups"][0]["summary"]["same"], 4, "{}", ran.out);
    assert_eq!(made.processes(), []);
}

#[test]
fn the_one_that_takes_a_members_place_is_the_first_then() {
    let made = Made::with(2);
    let text = std::fs::read_to_string(made.config()).unwrap();
    let primary = text.replace("label = \"ha1\"", "label = \"ha1\"\nbalance = \"primary\"");
    std::fs::write(made.config(), primary).unwrap();
    made.blank_token("n");
    let program = Program::begin(&made);
    let one = key(&program, "one", 1);
    made.hide("a", true);
    program.signs_until(one, "a is missed", |g| !is_up(g, "a"));

    let ran = joins(&made, "n", &["member", "replace", "a"]);
    assert_eq!(ran.json()["restart"], json!([]));
    program.signs_until(one, "n is up", |g| is_up(g, "n") && !has(g, "a"));
    assert_eq!(program.members(), ["n", "b"]);
    program.signs_until(one, "n serves", |_| program.served("n") > 50);
    program.signs_until(one, "n serves fully", |g| g.members.iter().all(|m| g.serves_fully(m)));
    let before = program.served("b");
    (0..50).for_each(|_| program.signs(one));
    assert_eq!(program.served("b"), before, "it is the first of the file");

    // And the other way round, by its role.
    run(&made, &["member", "set", "n", "--role", "standby", "--timeout", "120"]);
    program.signs_until(one, "b serves", |_| program.served("b") > before + 50);
    let before = program.served("n");
    (0..50).for_each(|_| program.signs(one));
    assert_eq!(program.served("n"), before, "it is a standby member");
}

#[test]
fn a_session_object_keeps_the_member_that_it_is_on_until_it_goes() {
    let made = Made::with(2);
    let program = Program::begin(&made);
    let template = vec![
        Attribute::bytes(ck::CKA_LABEL, "session"),
        Attribute::ulong(ck::CKA_VALUE_LEN, 32),
        Attribute::bool(ck::CKA_SENSITIVE, false),
        Attribute::bool(ck::CKA_EXTRACTABLE, true),
    ];
    let mut aes = Mechanism::plain(ck::CKM_AES_KEY_GEN);
    // One for each member: they take turns.
    let keys: Vec<_> =
        (0..4).map(|_| program.slot().generate_key(program.session, &mut aes, &template).unwrap()).collect();
    let values = || -> Vec<_> {
        let value = |k: &ObjectHandle| program.slot().get_attributes(program.session, *k, &[ck::CKA_VALUE]);
        keys.iter().map(value).map(Result::unwrap).collect()
    };
    let before = values();
    let one = key(&program, "one", 1);
    let ran = run(&made, &["member", "remove", "b", "--json", "--timeout", "120"]);
    assert_eq!(ran.json()["restart"], json!([]));
    program.signs_until(one, "b is gone", |g| !has(g, "b"));
    assert_eq!(values(), before);
    assert_eq!(find(program.slot(), program.session, "session"), keys);
    keys.iter().for_each(|k| program.slot().destroy_object(program.session, *k).unwrap());
}

#[test]
fn what_is_edited_by_hand_holds_too_and_a_group_of_one_makes_keys_by_itself() {
    let made = Made::with(2);
    let program = Program::begin(&made);
    let one = key(&program, "one", 1);
    let text = std::fs::read_to_string(made.config()).unwrap();
    let at = text.rfind("[[group.member]]").unwrap();
    let digest = || made.processes()[0].configuration.clone();
    let whole = digest();
    assert!(whole.is_some());
    std::fs::write(made.config(), &text[..at]).unwrap();
    program.signs_until(one, "b is gone", |g| !has(g, "b"));
    program.signs_until(one, "others see it", |_| digest() != whole);
    assert_eq!(program.group().min_copies(), 1);
    let two = key(&program, "two", 2);
    std::fs::write(made.config(), &text).unwrap();
    program.signs_until(two, "b is back", |g| is_up(g, "b"));
    program.signs_until(two, "two copies are wanted again", |g| g.min_copies() == 2);
    assert_eq!(program.members().len(), 2);
    program.signs_until(two, "b has it", |_| program.served("b") > 10);
    drop(program);
    assert!(signs(&made, 1, "two"), "what was made without it is there");
}

#[test]
fn where_no_thread_looks_after_the_members_the_calls_do() {
    let made = Made::with(2);
    let text = std::fs::read_to_string(made.config()).unwrap();
    let alone = text
        .replace("label = \"ha1\"", "label = \"ha1\"\ndeadline = \"off\"\nrecovery = { mode = \"manual\" }");
    std::fs::write(made.config(), alone).unwrap();
    made.blank_token("c");
    let program = Program::begin(&made);
    let one = key(&program, "one", 1);
    std::thread::scope(|scope| {
        let joined = scope.spawn(|| joins(&made, "c", &["member", "add"]));
        program.signs_until(one, "c serves", |g| has(g, "c") && program.served("c") > 10);
        assert_eq!(joined.join().unwrap().json()["restart"], json!([]));
        let left = scope.spawn(|| run(&made, &["member", "remove", "a", "--json", "--timeout", "120"]));
        program.signs_until(one, "a is gone", |g| !has(g, "a"));
        assert_eq!(left.join().unwrap().json()["restart"], json!([]));
    });
}

#[test]
fn members_that_are_all_said_otherwise_change_one_after_the_other() {
    let made = Made::with(2);
    let program = Program::begin(&made);
    let one = key(&program, "one", 1);
    // Each has another PIN source: the same tokens, and other members.
    let text = std::fs::read_to_string(made.config()).unwrap();
    let pin = format!("pin = {{ file = \"{}\" }}\nenv = ", made.dir().join("pin").display());
    std::fs::write(made.config(), text.replace("env = ", &pin)).unwrap();
    let digest = Config::from_file(&made.config()).unwrap().digest;
    // No call fails meanwhile.
    program.signs_until(one, "it is taken in", |_| made.processes()[0].configuration == digest);
    program.signs_until(one, "both are up", |g| is_up(g, "a") && is_up(g, "b"));
    assert_eq!(program.members(), ["a", "b"]);
    assert!(program.group().members.iter().all(|m| m.config.pin.is_some()));
    key(&program, "two", 2);
    drop(program);
    assert_eq!(made.run(&["check", "--prove"]).code, 0);
}

#[test]
fn who_is_named_no_more_serves_until_another_one_does() {
    let made = Made::with(1);
    made.blank_token("n");
    let program = Program::begin(&made);
    let one = key(&program, "one", 1);
    // By hand, and the other token is away: whoever edits a file does not look.
    let text = std::fs::read_to_string(made.config()).unwrap();
    made.hide("n", true);
    std::fs::write(
        made.config(),
        text.replace("member-a", "member-n").replace("name = \"a\"", "name = \"n\""),
    )
    .unwrap();
    program.signs_until(one, "n is known", |g| has(g, "n"));
    (0..50).for_each(|_| program.signs(one));
    assert!(is_up(program.group(), "a"));
    std::fs::write(made.config(), &text).unwrap();
    program.signs_until(one, "n is gone", |g| !has(g, "n"));
    assert_eq!(program.members(), ["a"]);
}

#[test]
fn a_member_that_is_called_otherwise_for_a_while_is_the_token_that_it_was() {
    let made = Made::with(2);
    let program = Program::begin(&made);
    let one = key(&program, "one", 1);
    let text = std::fs::read_to_string(made.config()).unwrap();
    std::fs::write(made.config(), text.replace("name = \"a\"", "name = \"z\"")).unwrap();
    program.signs_until(one, "it is z", |g| is_up(g, "z") && !has(g, "a"));
    key(&program, "two", 2);
    find(program.slot(), program.session, "one")
        .into_iter()
        .for_each(|o| program.slot().destroy_object(program.session, o).unwrap());
    let two = key(&program, "three", 3);
    // What the token's marker says by now was written under that name.
    drop(program);
    let program = Program::begin(&made);
    let three = find(program.slot(), program.session, "three");
    assert_eq!(three.len(), 2, "{two:?}");
    let three = three.into_iter().find(|o| is_private(&program, *o)).unwrap();
    std::fs::write(made.config(), &text).unwrap();
    program.signs_until(three, "it is a", |g| is_up(g, "a") && !has(g, "z"));
    key(&program, "four", 4);
    drop(program);
    let program = Program::begin(&made);
    key(&program, "five", 5);
    assert_eq!(find(program.slot(), program.session, "one").len(), 0);
    drop(program);
    let ran = made.run(&["check", "--prove", "--json"]);
    assert_eq!((ran.code, ran.json()["groups"][0]["summary"]["same"].clone()), (0, json!(8)), "{}", ran.out);
}

fn is_private(program: &Program, object: ObjectHandle) -> bool {
    let class = program.slot().get_attributes(program.session, object, &[ck::CKA_CLASS]).unwrap();
    class[0].value().and_then(ha_token::Value::as_ulong) == Some(ck::CKO_PRIVATE_KEY)
}
