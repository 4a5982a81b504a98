//! `hactl drill` on a configured group of real tokens: what it refuses, what it uses, and that nothing of it is left there.

mod support;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Stdio};

use ha_token::{Attribute, SessionHandle, Token, ck};
use rustix::process::{Pid, Signal, kill_process};
use support::{Made, Ran, command, finish, pair};

/// What the objects of a drill are labelled, or their labels begin with.
const LABEL: &[u8] = b"pkcs11-ha drill";

/// A group with a key of an application's own.
fn group(members: u8) -> Made {
    let made = Made::with(members);
    made.as_application(|token, s| pair(token, s, "mine", 1, true));
    made
}

fn drill(made: &Made, arguments: &[&str]) -> std::process::Command {
    let mut command = command(&[&["drill"], arguments].concat());
    command.arg("--config").arg(made.config()).arg("--pin-file").arg(made.dir().join("pin"));
    command
}

fn labels(token: &dyn Token, s: SessionHandle) -> Vec<Vec<u8>> {
    token.find_objects_init(s, &vec![Attribute::bool(ck::CKA_TOKEN, true)]).unwrap();
    let found = token.find_objects(s, 1000).unwrap();
    token.find_objects_final(s).unwrap();
    let label = |object| token.get_attributes(s, object, &[ck::CKA_LABEL]).unwrap();
    found.into_iter().filter_map(|object| Some(label(object).first()?.bytes()?.to_vec())).collect()
}

/// The application's key is there and the drill's are not, on every member and for applications.
fn nothing_is_left(made: &Made, members: usize) {
    let is_clean = |labels: Vec<Vec<u8>>, mine: usize| {
        assert!(!labels.iter().any(|label| label.starts_with(LABEL)), "{labels:?}");
        assert_eq!(labels.iter().filter(|label| *label == b"mine").count(), mine, "{labels:?}");
    };
    for member in 0..members {
        is_clean(made.on_member(member, labels), 2);
    }
    is_clean(made.as_application(labels), 2);
    let ran = made.run(&["check", "--prove", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(ran.json()["groups"][0]["summary"]["objects"], 2, "{}", ran.out);
}

fn is_well(ran: &Ran, members: usize) {
    assert_eq!(ran.code, 0, "{}\n{}", ran.out, ran.err);
    let document = ran.json();
    assert_eq!((&document["failed"], &document["wrong"]), (&0.into(), &0.into()));
    assert!(document["operations"].as_u64().unwrap() > 0, "{document}");
    assert_eq!(document["members"].as_object().unwrap().len(), members);
}

#[test]
fn members_are_broken_in_front_of_their_modules_and_only_keys_of_its_own_are_used() {
    let made = group(2);
    let report = made.dir().join("report.html");
    let arguments = ["--seconds", "3", "--seed", "5", "--json", "--report", report.to_str().unwrap()];
    for (scenario, lines) in [
        ("kill", ["a is killed", "b is used again"]),
        ("hang", ["a is hung", "b goes on"]),
        ("slow", ["a is slow", "b is as quick as before"]),
        ("restart-rolling", ["a is killed", "b is started again"]),
    ] {
        let ran = finish(drill(&made, &[&[scenario], &arguments[..]].concat()));
        is_well(&ran, 2);
        for line in lines {
            assert!(ran.err.contains(line), "{line}: {}", ran.err);
        }
        let page = std::fs::read_to_string(&report).expect("the report");
        assert!(page.contains("2 members of the group ha1"), "{scenario}");
        assert!(page.contains(&format!("hactl drill {scenario} --seconds 3")), "{scenario}");
        nothing_is_left(&made, 2);
    }
}

#[test]
fn what_may_leave_something_is_played_where_one_says_that_one_knows() {
    let made = group(3);
    for scenario in ["lose-token", "full-disk", "wrong-answers", "wrong-pin"] {
        let arguments = [scenario, "--seconds", "4", "--json"];
        let refused = finish(drill(&made, &arguments));
        assert_eq!(refused.code, 2, "{}", refused.err);
        assert!(refused.err.contains("--i-know") && !refused.err.contains("looking"), "{}", refused.err);
        is_well(&finish(drill(&made, &[&arguments[..], &["--i-know"]].concat())), 3);
        nothing_is_left(&made, 3);
    }
}

#[test]
fn what_cannot_be_drilled_is_said_before_anything_is_made() {
    let made = group(2);
    let missing = made.dir().join("missing").join("report.html");
    for (arguments, word) in [
        (&["nonsense"] as &[&str], "lose-token"),
        (&["kill", "--group", "other"], "ha1"),
        (&["kill", "--report", missing.to_str().unwrap()], "it cannot be written"),
        (&["full-disk", "--i-know"], "min_copies"),
        (&["all", "--i-know"], "min_copies"),
    ] {
        let ran = finish(drill(&made, arguments));
        assert_eq!(ran.code, 2, "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(word) && !ran.err.contains("looking"), "{arguments:?}: {}", ran.err);
    }
    let without_pin = made.run_without_pin(&["drill", "kill"]);
    assert_eq!(without_pin.code, 2, "{}", without_pin.err);
    assert!(without_pin.err.contains("--pin-file"), "{}", without_pin.err);
    let wrong = made.dir().join("wrong");
    std::fs::write(&wrong, "0000").unwrap();
    ha_rig::set_mode(&wrong, 0o600);
    let mut with_wrong =
        command(&["drill", "kill", "--config", made.config().to_str().unwrap(), "--pin-file"]);
    with_wrong.arg(&wrong);
    let ran = finish(with_wrong);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("CKR_PIN_INCORRECT"), "{}", ran.err);
    nothing_is_left(&made, 2);
}

#[test]
fn a_group_that_is_down_or_drained_is_not_drilled() {
    let made = group(2);
    let refused = |words: &[&str]| {
        let ran = finish(drill(&made, &["kill", "--json"]));
        assert_eq!(ran.code, 2, "{}", ran.err);
        for word in words {
            assert!(ran.err.contains(word), "{word}: {}", ran.err);
        }
        assert!(ran.json()["error"].is_string() && !ran.err.contains("making keys"), "{}", ran.err);
    };
    made.hide("b", true);
    refused(&["not every member is up", "member b is"]);
    made.hide("a", true);
    refused(&["member a is", "member b is"]);
    made.hide("a", false);
    made.hide("b", false);
    assert_eq!(made.run(&["member", "drain", "b"]).code, 0);
    refused(&["member b is drained"]);
    assert_eq!(made.run(&["member", "resume", "b"]).code, 0);
    nothing_is_left(&made, 2);
}

struct Running {
    child: Child,
    lines: BufReader<ChildStderr>,
    err: String,
}

impl Running {
    fn start(mut command: std::process::Command) -> Running {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("hactl runs");
        let lines = BufReader::new(child.stderr.take().expect("standard error"));
        Running { child, lines, err: String::new() }
    }

    fn until(&mut self, told: &str) {
        while !self.err.contains(told) {
            assert!(self.lines.read_line(&mut self.err).expect("a line") > 0, "{told}: {}", self.err);
        }
    }

    fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("sent");
    }

    fn end(mut self) -> (Option<i32>, String, String) {
        self.lines.read_to_string(&mut self.err).expect("the rest");
        let done = self.child.wait_with_output().expect("it ends");
        (done.status.code(), String::from_utf8(done.stdout).expect("UTF-8"), self.err)
    }
}

#[test]
fn an_interruption_leaves_nothing_on_the_group() {
    let made = group(2);
    for (told, signals) in [
        ("looking at", &[Signal::INT] as &[Signal]),
        ("making keys", &[Signal::INT]),
        ("threads sign", &[Signal::TERM]),
        ("is hung", &[Signal::INT, Signal::INT]),
    ] {
        let mut running = Running::start(drill(&made, &["hang", "--seconds", "60"]));
        running.until(told);
        for signal in signals {
            running.send(*signal);
            running.until("once more");
        }
        let (code, out, err) = running.end();
        assert_eq!(code, Some(130), "{told}: {out}\n{err}");
        nothing_is_left(&made, 2);
    }
}

#[test]
fn where_nobody_reads_what_it_says_it_removes_its_keys_all_the_same() {
    let made = group(2);
    let mut running = Running::start(drill(&made, &["kill", "--seconds", "60"]));
    running.until("is killed");
    // As `hactl drill … 2>&1 | tee FILE` when both are interrupted.
    let Running { mut child, lines, .. } = running;
    drop((lines, child.stdout.take()));
    kill_process(Pid::from_child(&child), Signal::INT).expect("sent");
    let status = child.wait().expect("it ends");
    assert!(matches!(status.code(), Some(2 | 130)), "{status:?}");
    nothing_is_left(&made, 2);
}

#[test]
fn one_drill_at_a_time_and_the_next_removes_what_a_killed_one_left() {
    let made = group(2);
    let mut running = Running::start(drill(&made, &["kill", "--seconds", "60"]));
    running.until("threads sign");
    let ran = finish(drill(&made, &["kill"]));
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("another drill is going on"), "{}", ran.err);
    running.send(Signal::KILL);
    running.end();
    let ours = |labels: Vec<Vec<u8>>| labels.iter().filter(|label| label.starts_with(LABEL)).count();
    assert_eq!(ours(made.as_application(labels)), 5, "two pairs and a secret key");
    let ran = finish(drill(&made, &["kill", "--seconds", "1", "--json"]));
    is_well(&ran, 2);
    assert!(ran.err.contains("5 objects of an earlier drill are removed"), "{}", ran.err);
    nothing_is_left(&made, 2);
}
