//! `cargo xtask simulate` and `cargo xtask mutants` hand everything on to the simulation, and are answered by it.
#![allow(missing_docs, clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

/// What cargo would be asked, by one that says it and ends with 77.
fn asked(arguments: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let cargo = dir.path().join("cargo");
    std::fs::write(&cargo, "#!/bin/sh\necho \"$@\"\nexit 77\n").unwrap();
    std::fs::set_permissions(&cargo, std::fs::Permissions::from_mode(0o755)).unwrap();
    let xtask =
        Command::new(env!("CARGO_BIN_EXE_xtask")).args(arguments).env("CARGO", &cargo).output().unwrap();
    assert_eq!(xtask.status.code(), Some(77), "the exit status is the simulation's");
    String::from_utf8(xtask.stdout).unwrap()
}

#[test]
fn the_simulation_is_given_its_arguments_help_among_them() {
    let run = "run --quiet --profile simulation --package simulations";
    for arguments in [&["--help"][..], &["-h"], &["--seeds", "5", "--scenario", "calm"], &[]] {
        let rest: String = arguments.iter().map(|a| format!(" {a}")).collect();
        assert_eq!(asked(&[&["simulate"], arguments].concat()), format!("{run} --{rest}\n"));
        assert_eq!(
            asked(&[&["mutants"], arguments].concat()),
            format!("{run} --features mutants -- --mutants{rest}\n")
        );
    }
}

#[test]
fn one_seeded_bug_alone_is_played_and_not_every_one() {
    let asked = asked(&["mutants", "--mutant", "StaleHandle", "--seed", "7"]);
    assert!(asked.ends_with("--features mutants -- --mutant StaleHandle --seed 7\n"), "{asked}");
}
