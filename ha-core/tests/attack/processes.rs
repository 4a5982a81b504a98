//! A process dies in the middle of a call to a member: the next one finishes or undoes it (guarantees G1 and G2).

use std::process::Command;

use ha_rig::{Act, Tokens};
use ha_token::{Function, Rv};

use crate::open_group::{Open, private};
use crate::setting::{failing_of, foreign, heal, keys, named};

/// Runs a test's second half in a process of its own; `None` in that process.
fn child(name: &str, what: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env("ATTACK_CHILD", what);
    command
}

/// Dies in the middle of a call to a member.
#[test]
fn child_that_dies() {
    let Ok(text) = std::env::var("ATTACK_CHILD") else { return };
    let (call, text) = text.split_once('\n').unwrap();
    let (at, text) = text.split_once('\n').unwrap();
    let at: usize = at.parse().unwrap();
    let (open, watches) = failing_of(text);
    // Seen on both members.
    let seen: Vec<_> = (0..4).flat_map(|_| open.find(&private(1))).collect();
    let key = seen[0];
    let end = Box::new(|| std::process::abort());
    let act = if at.is_multiple_of(2) { Act::First(end) } else { Act::Then(end) };
    let destroys = call == "destroy_object";
    let function = if destroys { Function::DestroyObject } else { Function::SetAttributeValue };
    watches[at / 2].next(function, act);
    _ = if destroys {
        open.slot.destroy_object(open.s, key)
    } else {
        open.slot.set_attributes(open.s, key, &named(b"renamed"))
    };
}

fn dies_in(tokens: &Tokens, call: &str, at: usize) {
    // Searched for in turn, so that the key is known on both members.
    let text = tokens.config(false, "balance = \"round-robin\"");
    let ended = child("processes::child_that_dies", &format!("{call}\n{at}\n{text}")).output().unwrap();
    assert!(!ended.status.success(), "at {at}: {ended:?}");
}

#[test]
fn a_process_dies_in_the_middle_of_a_rename() {
    if std::env::var_os("ATTACK_CHILD").is_some() {
        return;
    }
    for at in 0..4 {
        let tokens = Tokens::in_memory(2);
        Open::new(&tokens, "").ec_pair(1).unwrap();
        dies_in(&tokens, "set_attributes", at);
        let open = heal(&tokens);
        assert_eq!((keys(&tokens, 1), foreign(&open)), ([1, 1], 0), "{at}");
        let key = open.find(&private(1))[0];
        open.sign(key).unwrap();
        open.slot.destroy_object(open.s, key).unwrap();
        assert_eq!(keys(&tokens, 1), [0, 0], "{at}");
    }
}

#[test]
fn never_a_process_dies_in_a_destruction_and_the_key_is_lost_and_stays_for_ever() {
    if std::env::var_os("ATTACK_CHILD").is_some() {
        return;
    }
    // At 0 before the first member destroyed it, at 1 after that.
    for at in 0..2 {
        let tokens = Tokens::in_memory(2);
        Open::new(&tokens, "").ec_pair(1).unwrap();
        dies_in(&tokens, "destroy_object", at);
        let open = heal(&tokens);
        let (seen, there) = (open.find(&private(1)).len(), keys(&tokens, 1));
        assert!((seen, there) == (0, [0, 0]) || (seen, there) == (1, [1, 1]), "{at}: {seen} seen, {there:?}");
    }
}

/// Destroys the key of its group, and cannot on the second member.
#[test]
fn child_that_destroys_on_one_member() {
    let Ok(text) = std::env::var("ATTACK_CHILD") else { return };
    let (open, watches) = failing_of(&text);
    let key = open.find(&private(1))[0];
    watches[1].refuse(Function::DestroyObject, 1_000_000, Rv::DEVICE_ERROR);
    open.slot.destroy_object(open.s, key).unwrap();
    // Before a member that comes back is told of it.
    std::process::exit(0);
}

#[test]
fn never_a_handle_serves_what_another_process_has_destroyed() {
    if std::env::var_os("ATTACK_CHILD").is_some() {
        return;
    }
    // The next signature is the first member's turn, or the second one's, which still has the key.
    for before in 4..6 {
        let tokens = Tokens::in_memory(2);
        let group = "balance = \"round-robin\"";
        let open = Open::new(&tokens, group);
        open.ec_pair(1).unwrap();
        let key = open.find(&private(1))[0];
        (0..before).for_each(|_| drop(open.sign(key).unwrap()));
        let text = tokens.config(false, group);
        let ended = child("processes::child_that_destroys_on_one_member", &text).output().unwrap();
        assert!(ended.status.success(), "{ended:?}");
        for _ in 0..4 {
            let answer = open.sign(key);
            let is_gone = matches!(answer, Err(Rv::KEY_HANDLE_INVALID | Rv::OBJECT_HANDLE_INVALID));
            assert!(is_gone, "{before}: {answer:?}");
        }
    }
}
