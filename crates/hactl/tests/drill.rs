//! `hactl drill` on real tokens: its document, its exit status, and that nothing is left of it.

mod support;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Ran, command, finish, hactl, keys};

/// A drill whose folder for temporary files is its own.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        // As a drill has it where no place is said: on a disk members that nobody broke may miss deadlines.
        let in_memory = ha_rig::folder_in_memory("drill-place-", 128 << 20);
        Place { folder: in_memory.unwrap_or_else(|| tempfile::tempdir().expect("a folder")) }
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = command(&[&["drill"], arguments].concat());
        command.env("TMPDIR", self.folder.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        finish(self.command(arguments))
    }

    fn nothing_is_left(&self) {
        let left: Vec<_> = std::fs::read_dir(self.folder.path()).expect("the folder").collect();
        assert!(left.is_empty(), "{left:?}");
        let servers = servers(self.folder.path());
        assert!(servers.is_empty(), "{servers:?}");
    }
}

/// The command lines of the running p11-kit servers whose sockets are in this folder.
fn servers(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().expect("UTF-8");
    let processes = std::fs::read_dir("/proc").expect("/proc");
    let lines = processes.filter_map(|p| std::fs::read_to_string(p.ok()?.path().join("cmdline")).ok());
    lines.filter(|line| line.contains("p11-kit") && line.contains(folder)).collect()
}

fn all_is_well(ran: &Ran, scenario: &str) -> Value {
    assert_eq!(ran.code, 0, "{}\n{}", ran.out, ran.err);
    let document = ran.json();
    assert_eq!(
        keys(&document),
        [
            "failed",
            "failover_us",
            "max_us",
            "members",
            "operations",
            "p50_us",
            "p999_us",
            "p99_us",
            "recovery_us",
            "scenario",
            "schema",
            "seed",
            "wrong"
        ]
    );
    assert_eq!(document["scenario"], scenario);
    assert_eq!((&document["failed"], &document["wrong"]), (&0.into(), &0.into()));
    let number = |name: &str| document[name].as_u64().unwrap_or_else(|| panic!("{name}: {document}"));
    assert!(number("operations") > 0);
    let latencies = ["p50_us", "p99_us", "p999_us", "max_us"].map(number);
    assert!(latencies.is_sorted() && latencies[0] > 0, "{latencies:?}");
    // Both faults were noticed, and both members came back.
    number("failover_us");
    number("recovery_us");
    assert_eq!(keys(&document["members"]), ["a", "b"]);
    assert!(document["members"].as_object().unwrap().values().all(|n| n.as_u64().unwrap() > 0));
    document
}

#[test]
fn members_are_killed_and_nothing_fails_and_nothing_is_left() {
    let place = Place::new();
    let report = tempfile::tempdir().expect("a folder");
    let report = report.path().join("report.html");
    let ran = place.run(&[
        "kill",
        "--softhsm",
        "2",
        "--seconds",
        "4",
        "--seed",
        "7",
        "--json",
        "--report",
        report.to_str().unwrap(),
    ]);
    let document = all_is_well(&ran, "kill");
    assert_eq!(document["seed"], 7);
    for line in ["a is killed", "b is killed", "a is used again", "b is used again"] {
        assert!(ran.err.contains(line), "{line}: {}", ran.err);
    }
    let page = std::fs::read_to_string(report).expect("the report");
    assert!(page.contains("Failover drill: kill") && page.contains("<svg"), "{page}");
    assert!(page.contains(&format!("<b>{}</b><span>operations", document["operations"])), "{page}");
    place.nothing_is_left();
}

#[test]
fn members_hang_and_nothing_fails() {
    let place = Place::new();
    let ran = place.run(&["hang", "--softhsm", "2", "--seconds", "4", "--deadline", "300ms", "--json"]);
    all_is_well(&ran, "hang");
    place.nothing_is_left();
}

#[test]
fn a_slow_member_makes_few_operations_wait() {
    let place = Place::new();
    let ran = place.run(&["slow", "--softhsm", "2", "--seconds", "4", "--json"]);
    assert_eq!(ran.code, 0, "{}\n{}", ran.out, ran.err);
    let document = ran.json();
    assert_eq!((&document["failed"], &document["wrong"]), (&0.into(), &0.into()));
    assert!(ran.err.contains("a is slow") && ran.err.contains("b is as quick as before"), "{}", ran.err);
    // A slow server is stopped for fifty milliseconds at a time.
    assert!(document["p50_us"].as_u64().unwrap() < 50_000, "{document}");
    place.nothing_is_left();
}

#[test]
fn no_wrong_answer_is_handed_out() {
    let place = Place::new();
    let ran = place.run(&["wrong-answers", "--softhsm", "2", "--seconds", "4", "--json"]);
    all_is_well(&ran, "wrong-answers");
    for line in ["a is signing wrongly", "b is not used any more", "b signs rightly again"] {
        assert!(ran.err.contains(line), "{line}: {}", ran.err);
    }
    place.nothing_is_left();
}

#[test]
fn a_token_whose_pin_was_changed_is_not_locked() {
    let place = Place::new();
    let ran = place.run(&["wrong-pin", "--softhsm", "2", "--seconds", "4", "--json"]);
    all_is_well(&ran, "wrong-pin");
    for line in ["a is under another PIN", "b is not used any more", "b has its PIN again"] {
        assert!(ran.err.contains(line), "{line}: {}", ran.err);
    }
    place.nothing_is_left();
}

#[test]
fn a_member_on_a_full_disk_loses_nothing() {
    let place = Place::new();
    let ran = place.run(&["full-disk", "--softhsm", "2", "--seconds", "4", "--json"]);
    // On a busy machine the other member may miss a deadline just then, and nobody can write: that is told as it is.
    let document = ran.json();
    assert_eq!(document["wrong"], 0, "{}", ran.err);
    for line in ["a is on a full disk", "b is on a full disk", "every token has what it must have"] {
        assert!(ran.err.contains(line), "{line}: {}", ran.err);
    }
    place.nothing_is_left();
}

#[test]
fn where_every_member_is_down_calls_fail_and_that_is_counted_apart() {
    let place = Place::new();
    let ran = place.run(&["all-down", "--softhsm", "--seconds", "3", "--deadline", "300ms"]);
    assert_eq!(ran.code, 0, "{}\n{}", ran.out, ran.err);
    assert!(ran.out.contains("calls failed as they had to"), "{}", ran.out);
    place.nothing_is_left();
}

#[test]
fn what_cannot_be_drilled_is_a_usage_error() {
    let place = Place::new();
    let missing = place.folder.path().join("missing").join("report.html");
    let missing = missing.to_str().unwrap();
    for (arguments, word) in [
        (&["nonsense", "--softhsm", "2"] as &[&str], "lose-token"),
        (&["kill"], "no configuration"),
        (&["kill", "--group", "x"], "no configuration"),
        (&["kill", "--deadline", "1s"], "--softhsm"),
        (&["kill", "--softhsm", "2", "--i-know"], "--i-know"),
        (&["full-disk"], "--i-know"),
        (&["lose-token"], "--i-know"),
        (&["wrong-answers"], "--i-know"),
        (&["wrong-pin"], "--i-know"),
        (&["all"], "--i-know"),
        (&["kill", "--softhsm", "1"], "2..=4"),
        (&["kill", "--softhsm", "5"], "2..=4"),
        (&["kill", "--softhsm", "2", "--deadline", "soon"], "250ms"),
        (&["kill", "--softhsm", "2", "--deadline", "25h"], "at most a day"),
        (&["kill", "--softhsm", "2", "--seconds", "0"], "seconds"),
        (&["kill", "--softhsm", "2", "--report", missing], missing),
        (&["kill", "--softhsm", "2", "--report", place.folder.path().to_str().unwrap()], "--report"),
        (&[], "SCENARIO"),
    ] {
        let ran = place.run(arguments);
        assert_eq!(ran.code, 2, "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(word), "{arguments:?}: {}", ran.err);
        assert!(!ran.err.contains("making"), "found out before anything is made: {}", ran.err);
    }
    assert!(hactl(&["drill", "nonsense", "--json"]).json()["error"].is_string());
    place.nothing_is_left();
}

/// Runs one until this is told, then sends so many signals.
fn interrupted(place: &Place, told: &str, signals: usize) -> Ran {
    let arguments = ["hang", "--softhsm", "2", "--seconds", "600", "--json"];
    interrupted_once(place.command(&arguments), told, signals, || {})
}

/// The same, once this has returned too.
fn interrupted_once(
    mut command: std::process::Command,
    told: &str,
    signals: usize,
    also: impl FnOnce(),
) -> Ran {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("hactl runs");
    let mut lines = BufReader::new(child.stderr.take().expect("standard error"));
    let mut err = String::new();
    let mut until = |told: &str| {
        while !err.contains(told) {
            assert!(lines.read_line(&mut err).expect("a line") > 0, "{err}");
        }
    };
    until(told);
    also();
    for _ in 0..signals {
        kill_process(Pid::from_child(&child), Signal::INT).expect("sent");
        // Two that come at once are one.
        until("once more");
    }
    lines.read_to_string(&mut err).expect("the rest");
    let done = child.wait_with_output().expect("it ends");
    let out = String::from_utf8(done.stdout).expect("UTF-8");
    Ran { code: done.status.code().expect("no signal"), out, err }
}

#[test]
fn an_interruption_ends_it_with_the_figures_so_far() {
    let place = Place::new();
    let ran = interrupted(&place, "threads sign", 1);
    assert_eq!(ran.code, 130, "{}", ran.err);
    assert_eq!(ran.json()["failed"], 0);
    place.nothing_is_left();
}

#[test]
fn an_interruption_before_the_load_or_a_second_one_leaves_nothing_either() {
    let place = Place::new();
    for (told, signals) in [("making keys", 1), ("making 2", 2), ("threads sign", 2)] {
        let ran = interrupted(&place, told, signals);
        assert_eq!(ran.code, 130, "{told}: {}", ran.err);
        if signals == 1 {
            assert!(ran.json()["error"].is_string());
        }
        place.nothing_is_left();
    }
}

/// Puts a `p11-kit` first that starts no second server for a token, but does this.
fn with_servers_that_start_once(command: &mut std::process::Command, bin: &Path, instead: &str) {
    let script = format!(
        "#!/bin/sh\nseen={bin}/$(basename \"$4\")\nif [ -e \"$seen\" ]; then echo > {bin}/again; {instead}; fi\n\
         echo > \"$seen\"\nPATH=${{PATH#*:}} exec p11-kit \"$@\"\n",
        bin = bin.display(),
    );
    let path = bin.join("p11-kit");
    std::fs::write(&path, script).expect("a script");
    ha_rig::set_mode(&path, 0o700);
    let paths = std::env::var("PATH").expect("a path");
    command.env("PATH", format!("{}:{paths}", bin.display()));
}

#[test]
fn a_server_that_does_not_start_again_cuts_it_short_and_the_figures_stay() {
    let (place, bin) = (Place::new(), tempfile::tempdir().expect("a folder"));
    let arguments = ["kill", "--softhsm", "2", "--seconds", "4", "--json"];
    let mut command = place.command(&arguments);
    with_servers_that_start_once(&mut command, bin.path(), "exit 1");
    let ran = finish(command);
    assert_eq!(ran.code, 1, "{}\n{}", ran.out, ran.err);
    let document = ran.json();
    assert!(document["operations"].as_u64().unwrap() > 0 && document["failed"] == 0, "{document}");
    assert!(ran.err.contains("could not be mended"), "{}", ran.err);
    place.nothing_is_left();
}

#[test]
fn a_second_interruption_ends_it_at_once_while_a_server_starts() {
    let (place, bin) = (Place::new(), tempfile::tempdir().expect("a folder"));
    let mut command = place.command(&["restart-rolling", "--softhsm", "2", "--seconds", "4"]);
    with_servers_that_start_once(&mut command, bin.path(), "exec sleep 60");
    let again = bin.path().join("again");
    let mut began = None;
    let ran = interrupted_once(command, "is killed", 2, || {
        ha_rig::await_file(&again);
        began = Some(std::time::Instant::now());
    });
    assert_eq!(ran.code, 130, "{}", ran.err);
    // Nothing waited for the server: that ends by itself long after.
    assert!(began.expect("it was killed").elapsed().as_secs() < 25, "{}", ran.err);
    place.nothing_is_left();
}
