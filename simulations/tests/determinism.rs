//! A seed decides everything: a history that is played twice is the same, in one process and in another one.
#![allow(missing_docs, clippy::unwrap_used)]

use std::process::Command;

use simulations::history::play;
use simulations::plan::Plan;
use simulations::pool::Pool;
use simulations::run::differs;
use simulations::scenario::Scenario;

#[test]
fn a_history_that_is_played_twice_is_the_same() {
    let pool = Pool::new();
    for seed in (0..12).map(|n| 7 * n) {
        let plan = Plan::new(seed);
        let first = play(&plan, &pool, true);
        // Where the threads come from, and how many there are already, decides nothing.
        assert_eq!(differs(&plan, &first, &Pool::new()), None, "seed {seed}");
    }
}

#[test]
fn a_history_with_processes_that_are_killed_is_the_same_too() {
    let pool = Pool::new();
    let mut died = 0;
    for seed in 0..10 {
        let plan = Plan::of(Scenario::Crashes, seed);
        let first = play(&plan, &pool, true);
        died += first.lines.matches(" is killed\n").count();
        assert_eq!(differs(&plan, &first, &Pool::new()), None, "seed {seed}");
    }
    assert!(died >= 5, "{died} processes were killed");
}

#[test]
fn what_differs_is_said() {
    let pool = Pool::new();
    let (one, other) = (Plan::new(1), Plan::new(2));
    let first = play(&one, &pool, true);
    let how = differs(&other, &first, &pool).unwrap();
    assert!(how.contains(&format!("trace {:016x}", first.hash)) && how.contains("from here on:"), "{how}");
}

#[test]
fn another_process_plays_the_same_history() {
    let played = |seed: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_simulate")).args(["--seed", seed]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for seed in ["3", "60", "111"] {
        let first = played(seed);
        assert!(first.contains("; trace ") || first.contains("\ntrace "), "{first}");
        assert_eq!(played(seed), first);
    }
}
