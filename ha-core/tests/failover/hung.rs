//! A member does not answer: its server is stopped, so that calls to it hang.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ha_core::policy::health::State;
use ha_rig::Tokens;
use ha_token::{Attribute, Rv, Template, ck};

use super::load::{Done, Load, make_and_serve, wait_until};

const SOON: &str = "[group.recovery]\ninterval = \"50ms\"\nmax_interval = \"200ms\"";

/// Either of two members hangs under eight threads: nothing fails, nothing is wrong, and once it is known nobody waits for
/// it. What was measured is shown; how long it took is not judged here, where a busy machine may say anything.
#[test]
fn either_member_hangs_under_eight_threads_and_goes_on() {
    let tokens = Tokens::new(2);
    let (open, keys) = make_and_serve(&tokens, &format!("deadline = \"500ms\"\n{SOON}"));
    let group = &open.provider.groups()[0];
    let load = Load::start(&open, keys, 8);
    load.more(200);
    for victim in [0, 1] {
        let from = Instant::now();
        tokens.freeze(victim);
        wait_until("the victim is not used", || group.members.get(victim).unwrap().state() != State::Up);
        load.more(200);
        eprintln!("it hung for {:?}", from.elapsed());
        tokens.thaw(victim);
        wait_until("the victim is back", || group.members.get(victim).unwrap().state() == State::Up);
        load.more(200);
    }
    let done = load.end();
    show(&done);
    assert_eq!(done.failed, 0, "of {} operations", done.operations.len());
    assert!(open.provider.shutdown(Duration::from_secs(60)).is_empty());
}

/// The threads of this process that are lanes.
fn lanes() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("ha-lane")).count()
}

fn show(done: &Done) {
    let mut took: Vec<_> = done.operations.iter().map(|(from, to)| *to - *from).collect();
    took.sort_unstable();
    let mut ends: Vec<_> = done.operations.iter().map(|(_, to)| *to).collect();
    ends.sort_unstable();
    let pause = ends.windows(2).map(|w| w[1] - w[0]).max().unwrap_or_default();
    let p99 = took[took.len() * 99 / 100];
    let longest = took.last().copied().unwrap_or_default();
    eprintln!("{} operations, longest {longest:?}, p99 {p99:?}, longest pause {pause:?}", took.len());
}

/// It hangs for so long that it is connected anew, in a copy of its module that hangs as well.
#[test]
fn a_member_that_hangs_for_long_comes_back_by_itself() {
    let tokens = Tokens::new(2);
    let (open, keys) = make_and_serve(&tokens, &format!("deadline = \"200ms\"\n{SOON}"));
    let group = &open.provider.groups()[0];
    let load = Load::start(&open, keys, 4);
    load.more(100);
    tokens.freeze(0);
    wait_until("it is down", || group.members.get(0).unwrap().state() == State::Down);
    // Longer than calls get to leave a copy of its module.
    let from = Instant::now();
    wait_until("it hung for long", || from.elapsed() > Duration::from_secs(3));
    load.more(100);
    tokens.thaw(0);
    wait_until("it is back", || group.members.get(0).unwrap().state() == State::Up);
    tokens.freeze(1);
    wait_until("the other one is not used", || group.members.get(1).unwrap().state() != State::Up);
    load.more(100);
    tokens.thaw(1);
    wait_until("the other one is back", || group.members.get(1).unwrap().state() == State::Up);
    let done = load.end();
    show(&done);
    assert_eq!(done.failed, 0, "of {} operations", done.operations.len());
    assert!(open.provider.shutdown(Duration::from_secs(60)).is_empty());
}

/// With every member hung a call ends all the same, and once they are known to be down it ends without a call to them.
#[test]
fn all_members_hang_and_go_on() {
    let tokens = Tokens::new(2);
    let (open, _) = make_and_serve(&tokens, &format!("deadline = \"200ms\"\n{SOON}"));
    let group = &open.provider.groups()[0];
    let random = || open.slot.generate_random(open.session, &mut [0; 8]);
    random().unwrap();
    (0..2).for_each(|i| tokens.freeze(i));
    assert_eq!(random(), Err(Rv::DEVICE_ERROR));
    wait_until("both are down", || group.members.iter().all(|m| m.state() == State::Down));
    let served = group.served();
    assert_eq!(random(), Err(Rv::DEVICE_ERROR));
    assert_eq!(group.served(), served, "nobody was asked");
    (0..2).for_each(|i| tokens.thaw(i));
    wait_until("one is back", || random().is_ok());
    wait_until("both are back", || group.members.iter().all(|m| m.state() == State::Up));
    assert!(open.provider.shutdown(Duration::from_secs(60)).is_empty());
}

/// What hangs when the provider stops is named and left behind. When it returns, after the end, it meets nothing.
#[test]
fn what_hangs_at_the_end_is_left_behind_and_returns_to_nothing() {
    let tokens = Tokens::new(2);
    let (open, _) = make_and_serve(&tokens, &format!("deadline = \"200ms\"\nbalance = \"primary\"\n{SOON}"));
    open.slot.generate_random(open.session, &mut [0; 8]).unwrap();
    tokens.freeze(0);
    // On the other one, after the deadline of the first.
    open.slot.generate_random(open.session, &mut [0; 8]).unwrap();
    assert_eq!(open.provider.shutdown(Duration::from_millis(200)), ["a"]);
    let slot = Arc::clone(&open.slot);
    drop(open);
    tokens.thaw(0);
    // The runner gives each test a process of its own; in one with others their lanes end too.
    wait_until("no lane is left", || lanes() == 0);
    assert_eq!(slot.open_session(false), Err(Rv::CRYPTOKI_NOT_INITIALIZED));
}

/// An object is destroyed while a member hangs in just that call: it is gone there too when the member goes on.
#[test]
fn what_is_changed_while_a_member_hangs_is_changed_there_when_it_goes_on() {
    let tokens = Tokens::new(2);
    let (open, _) = make_and_serve(&tokens, &format!("deadline = \"200ms\"\nmin_copies = 1\n{SOON}"));
    let group = &open.provider.groups()[0];
    let data = |label: &str| -> Template {
        vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::bytes(ck::CKA_LABEL, label.as_bytes()),
        ]
    };
    let before = open.slot.create_object(open.session, &data("before")).unwrap();
    tokens.freeze(0);
    open.slot.destroy_object(open.session, before).unwrap();
    open.slot.create_object(open.session, &data("meanwhile")).unwrap();
    tokens.thaw(0);
    wait_until("it is back", || group.members.get(0).unwrap().state() == State::Up);
    let shown = |i| {
        let all = tokens.bare(i, &["--list-objects", "--type", "data"]);
        let mut labels: Vec<_> =
            ["before", "meanwhile"].into_iter().filter(|label| all.contains(label)).collect();
        labels.sort_unstable();
        labels
    };
    assert_eq!(shown(1), ["meanwhile"]);
    wait_until("the first has it too", || shown(0) == ["meanwhile"]);
    assert!(open.provider.shutdown(Duration::from_secs(60)).is_empty());
}

/// The copies of modules in this process: each is a file in memory.
fn copies() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let names = maps.lines().filter(|line| line.contains("memfd:") && line.contains("p11-kit-client"));
    let inodes: std::collections::BTreeSet<_> =
        names.filter_map(|line| line.split_whitespace().nth(4)).collect();
    inodes.len()
}

/// A copy of a module that was left behind, because a call hung in it, is finalised once nothing hangs in it any more: its
/// sessions, and the login in them, do not stay on the token.
#[test]
fn a_copy_that_was_left_behind_is_finalised_when_it_is_free() {
    let tokens = Tokens::new(2);
    let (open, _) = make_and_serve(&tokens, &format!("deadline = \"200ms\"\nbalance = \"primary\"\n{SOON}"));
    let group = &open.provider.groups()[0];
    wait_until("both are up", || group.members.iter().all(|m| m.state() == State::Up));
    assert_eq!(tokens.connections(0), 1);
    let before = copies();
    tokens.freeze(0);
    open.slot.generate_random(open.session, &mut [0; 8]).unwrap();
    wait_until("another copy is loaded", || copies() > before);
    tokens.thaw(0);
    wait_until("it is back", || group.members.get(0).unwrap().state() == State::Up);
    wait_until("one connection is left", || tokens.connections(0) == 1);
    open.slot.generate_random(open.session, &mut [0; 8]).unwrap();
    assert_eq!(group.members.get(0).unwrap().state(), State::Up);
    assert!(open.provider.shutdown(Duration::from_secs(60)).is_empty());
}
