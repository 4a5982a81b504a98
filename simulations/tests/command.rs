//! The command line: what is wrong is said and answered with 2, what went wrong with 1, an interruption with 130.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

fn simulate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_simulate")).args(arguments).output().unwrap()
}

/// The exit status, and all that was said.
fn said(output: &Output) -> (i32, String) {
    let all = [&*output.stdout, &*output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8(all).unwrap())
}

#[test]
fn a_wrong_command_line_is_answered_with_2_and_a_reason() {
    let wrong: &[(&[&str], &str)] = &[
        (&["--seeds", "0"], "0 is not in 1.."),
        (&["--seeds", "many"], "invalid digit"),
        (&["--jobs", "0"], "0 is not in 1.."),
        (&["--from", "18446744073709551615", "--seeds", "2"], "there are no 2 seeds from"),
        (
            &["--scenario", "weather"],
            "possible values: everything, calm, deaths, errors, lost-state, no-room, restarts, flaps",
        ),
        (&["--scenario"], "a value is required"),
        (&["--time", "5"], "is no time"),
        (&["--time", "18446744073709551615h"], "is too long a time"),
        (&["--seed", "1", "--seeds", "2"], "cannot be used with"),
        (&["--seed", "1", "--time", "5s"], "cannot be used with"),
        (&["--seed", "1", "--require-coverage"], "cannot be used with"),
        (&["--replay", "kept.jsonl", "--seed", "1"], "cannot be used with"),
        (&["--replay", "kept.jsonl", "--keep", "kept.jsonl"], "cannot be used with"),
        (&["--seed", "1", "--whole", "--keep", "x", "--meaning", "y"], "cannot be used with"),
        (&["--whole"], "--seed <SEED>"),
        (&["--seed", "1", "--keep", "x"], "--meaning <MEANING>"),
        (&["--seed", "1", "--meaning", "x"], "--keep <FILE>"),
        (&["--named", "x"], if cfg!(feature = "mutants") { "--mutants" } else { "unexpected argument" }),
        (&["--faster"], "unexpected argument"),
        (&["--replay", "/nowhere/kept.jsonl"], "/nowhere/kept.jsonl: No such file"),
    ];
    for (arguments, reason) in wrong {
        let (status, text) = said(&simulate(arguments));
        assert!(status == 2 && text.contains(reason), "{arguments:?}: {status}\n{text}");
    }
}

#[cfg(feature = "mutants")]
#[test]
fn a_seeded_bug_that_there_is_not_is_answered_with_2_and_those_that_there_are() {
    let wrong: &[&[&str]] = &[&["--mutants", "--named", "nothing"], &["--mutant", "Nothing", "--seed", "1"]];
    for arguments in wrong {
        let (status, text) = said(&simulate(arguments));
        assert!(status == 2 && text.contains("AcknowledgedOnOneCopy"), "{arguments:?}: {status}\n{text}");
    }
    let (status, text) = said(&simulate(&["--mutants", "--seed", "1"]));
    assert!(status == 2 && text.contains("cannot be used with"), "{status}\n{text}");
}

#[cfg(feature = "mutants")]
#[test]
fn a_seeded_bug_is_caught_and_its_seed_is_said() {
    let (status, text) = said(&simulate(&["--mutants", "--named", "WrongPinGoesOn", "--seeds", "200"]));
    assert!(status == 0 && text.contains("1 seeded bugs, 0 not caught, 0 that ended"), "{status}\n{text}");
    // Played alone it is said how it is played again.
    let (status, text) = said(&simulate(&["--mutant", "WrongPinGoesOn", "--seeds", "200"]));
    let replays = text.lines().find_map(|l| l.strip_prefix("    cargo xtask mutants ")).unwrap();
    assert!(status == 1 && replays.starts_with("--mutant WrongPinGoesOn --seed "), "{status}\n{text}");
    let again: Vec<&str> = replays.split(' ').collect();
    assert_eq!(said(&simulate(&again)).0, 1, "{replays}");
}

/// Histories are kept so that what they showed shows again: in one or the other order of their threads' turns, for the one
/// that it was seen in is another one after the next change of the core.
#[cfg(feature = "mutants")]
#[test]
fn kept_histories_catch_what_they_were_kept_for() {
    let kept = include_str!("../kept.jsonl");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("orders.jsonl");
    for (mutant, seed) in [("LostOwnerKept", 91), ("InabilityBelieved", 16435), ("RenamedTwinTaken", 991)] {
        let is_it = |line: &&str| line.contains(&format!(r#""seed":{seed},"#));
        let line = kept.lines().find(is_it).unwrap();
        let order =
            |n| line.replace(&format!(r#""seed":{seed},"#), &format!(r#""seed":{},"#, seed + 1000 * n));
        std::fs::write(&file, (0..24).map(|n| order(n) + "\n").collect::<String>()).unwrap();
        let path = file.to_str().unwrap();
        assert_eq!(said(&simulate(&["--mutant", mutant, "--replay", path])).0, 1, "{mutant}");
        assert_eq!(said(&simulate(&["--replay", path])).0, 0, "without {mutant}");
    }
}

#[test]
fn help_says_the_scenarios_and_the_exit_statuses() {
    let (status, text) = said(&simulate(&["--help"]));
    for word in ["lost-state", "Exit status: 0", "130 interrupted", "--require-coverage"] {
        assert!(status == 0 && text.contains(word), "{word}: {status}\n{text}");
    }
}

#[test]
fn a_file_of_kept_histories_that_is_wrong_is_answered_with_2_and_the_line() {
    let kept = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/kept.jsonl")).unwrap();
    let line = kept.lines().find(|l| l.contains("\"Sessions\"")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("spoiled.jsonl");
    let wrong = [
        ("\"format\":1", "\"format\":2", "its form is 2, and this version knows form 1"),
        ("\"format\":1,", "", "missing field `format`"),
        ("\"format\":1,", "\"format\":1,\"shape\":3,", "unknown field `shape`"),
        ("\"gentle\"", "\"kind\":3,\"gentle\"", "unknown field `kind`"),
        ("\"lasts\":", "\"length\":1,\"lasts\":", "unknown field `length`"),
        ("\"secs\":", "\"hours\":1,\"secs\":", "unknown field `hours`"),
        ("\"Sessions\"", "\"Earthquake\"", "unknown variant `Earthquake`"),
        ("\"members\":2", "\"members\":-2", "invalid value"),
        ("\"members\":2", "\"members\":0", "its plan asks for a wrong group"),
        ("\"min_copies\":2", "\"min_copies\":3", "its plan asks for a wrong group"),
        ("\"least-busy\"", "\"fastest\"", "its plan asks for a wrong group"),
        ("\"member\":0", "\"member\":2", "is of member 2, and there are 2"),
        ("\"secs\":0", "\"secs\":100000", "takes longer than a day"),
        (
            "\"fault\":\"Sessions\"",
            "\"fault\":{\"Err\":{\"before\":1001,\"after\":0,\"answers\":[48]}}",
            "more than 1000 of 1000 calls",
        ),
        (
            "\"fault\":\"Sessions\"",
            "\"fault\":{\"Lie\":{\"of\":1001}}",
            "more than 1000 of 1000 signatures wrong",
        ),
        ("\"fault\":\"Sessions\"", "\"fault\":{\"Lie\":{\"of\":1000}}", "nobody verifies them"),
        (
            "\"fault\":\"Sessions\"",
            "\"fault\":{\"Err\":{\"before\":10,\"after\":0,\"answers\":[0]}}",
            "has CKR_OK for an error",
        ),
        (
            "\"fault\":\"Sessions\"",
            "\"fault\":{\"Flap\":{\"dead\":{\"secs\":0,\"nanos\":1},\"alive\":{\"secs\":0,\"nanos\":0}}}",
            "comes and goes more than 1000 times",
        ),
        ("]}}", "", ": EOF while parsing a list"),
    ];
    for (right, spoiled, reason) in wrong {
        assert!(line.contains(right), "{right} is in the line that is spoiled");
        std::fs::write(&file, format!("{line}\n{}\n", line.replace(right, spoiled))).unwrap();
        let (status, text) = said(&simulate(&["--replay", file.to_str().unwrap()]));
        let place = format!("{}, line 2: ", file.display());
        assert!(
            status == 2 && text.contains(&place) && text.contains(reason) && !text.contains(" at line "),
            "{spoiled:?}: {status}\n{text}"
        );
    }
}

#[test]
fn nothing_is_kept_where_nothing_went_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kept.jsonl");
    let keep = ["--scenario", "calm", "--seed", "1", "--keep", file.to_str().unwrap(), "--meaning", "none"];
    let (status, text) = said(&simulate(&keep));
    assert!(status == 2 && text.contains("nothing was kept") && !file.exists(), "{status}\n{text}");
}

#[test]
fn what_no_seed_reached_is_named_and_is_a_failure_where_it_is_required() {
    let run = ["--scenario", "calm", "--seeds", "2"];
    let (status, text) = said(&simulate(&run));
    assert!(status == 0 && text.contains("2 seeds from 0 on, calm") && text.contains(" rows of"), "{text}");
    let (status, text) = said(&simulate(&[&run[..], &["--require-coverage"]].concat()));
    let missing = text.split("no seed reached:\n").nth(1).unwrap();
    assert!(status == 1 && missing.contains("CKR_PIN_TOO_WEAK is Caller"), "{status}\n{text}");
    assert!(!missing.contains("syncing to up"), "every member came up in these: {missing}");
    assert!(text.contains("syncing to up: it is up to date"), "the report has every row: {text}");
}

#[test]
fn a_time_alone_is_as_many_seeds_as_begin_within_it() {
    let (status, text) = said(&simulate(&["--scenario", "calm", "--time", "0s"]));
    assert!(
        status == 0 && text.contains("all seeds from 0 on, calm") && text.contains("\n0 histories"),
        "{text}"
    );
    let (status, text) = said(&simulate(&["--scenario", "calm", "--time", "1h", "--seeds", "1"]));
    assert!(
        status == 0 && text.contains("1 seeds from 0 on, calm") && text.contains("\n1 histories"),
        "{text}"
    );
}

#[test]
fn an_interrupted_run_shows_its_figures_and_is_answered_with_130() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_simulate"))
        .args(["--scenario", "calm", "--seeds", "1000000000", "--jobs", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    // Said when an interruption is looked for, and before the first history.
    out.read_line(&mut text).unwrap();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    out.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{text}");
    assert!(text.contains(" histories in ") && text.contains("interrupted: the figures are of"), "{text}");
}
