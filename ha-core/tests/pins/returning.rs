//! A member that was put aside for its PIN, or is suspect, comes back when its reason is gone.

use std::sync::atomic::Ordering;

use ha_core::policy::health::State;
use ha_rig::{Act, PIN, Tokens};
use ha_token::*;

use crate::setting::{NO_THREADS, SOON, USER, all_up, open, pin, rotate, times};
use crate::watched::{lose_and_find, start, start_with, wait};

#[test]
fn a_pin_that_was_changed_elsewhere_brings_the_member_back_with_the_next_login() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, SOON));
    let (slot, s) = open(&provider);
    let group = &provider.groups()[0];
    slot.login(s, USER, pin()).unwrap();
    for member in [0, 1] {
        rotate(&tokens, member, PIN.as_bytes(), b"changed");
    }
    drop(members[1].sent());
    lose_and_find(group, 1, &members[1]);
    wait(group, "it refuses the PIN", |g| g.members.get(1).unwrap().state() == State::Quarantined);
    // It is looked at again and again, and not sent the PIN.
    let looks = members[1].connects.load(Ordering::Acquire) + 5;
    wait(group, "it was looked at", |_| members[1].connects.load(Ordering::Acquire) >= looks);
    assert_eq!(group.members.get(1).unwrap().state(), State::Quarantined);
    assert_eq!(times(&members[1], PIN.as_bytes()), 1, "and sent no PIN");
    slot.logout(s).unwrap();
    slot.login(s, USER, Some(b"changed")).unwrap();
    all_up(&provider);
    assert_eq!(times(&members[1], PIN.as_bytes()), 0);
}

#[test]
fn a_member_that_refused_the_pin_and_tells_of_no_count_is_back_when_its_operator_says_so() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    members[1].next(Function::Login, Act::Answer(Rv::PIN_INCORRECT));
    slot.login(s, USER, pin()).unwrap();
    let group = &provider.groups()[0];
    for _ in 0..3 {
        assert_eq!(group.members.get(1).unwrap().state(), State::Quarantined);
        slot.logout(s).unwrap();
        slot.login(s, USER, pin()).unwrap();
    }
    assert_eq!(times(&members[1], PIN.as_bytes()), 1, "however often the application logs in");
    assert!(group.recover(group.members.get(1).unwrap().name()));
    all_up(&provider);
    assert_eq!(times(&members[1], PIN.as_bytes()), 1);
}

#[test]
fn what_the_operator_mends_brings_the_member_back() {
    let tokens = Tokens::new(2);
    let path = || "module".to_owned();
    let (provider, members) = start_with(&tokens.config(false, SOON), |m| {
        for _ in 0..5 {
            m[0].fail_to_connect(ConnectError::NotInitialised { path: path(), wanted: "a".into() });
            m[1].fail_to_connect(ConnectError::Ambiguous {
                path: path(),
                wanted: "b".into(),
                count: 2,
                serials: String::new(),
            });
        }
    });
    let group = &provider.groups()[0];
    wait(group, "both are up", |g| g.up().count() == 2);
    assert!(members.iter().all(|m| m.connects.load(Ordering::Acquire) == 6));
}

#[test]
fn a_member_put_aside_by_a_login_is_looked_at_again_without_another_one() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, SOON));
    let (slot, s) = open(&provider);
    // SoftHSM says so for a moment while another process writes to the token.
    members[1].next(Function::Login, Act::Answer(Rv::USER_PIN_NOT_INITIALIZED));
    slot.login(s, USER, pin()).unwrap();
    all_up(&provider);
}

#[test]
fn without_threads_a_suspect_member_is_probed_by_who_calls() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, NO_THREADS));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    let group = &provider.groups()[0];
    for _ in 0..3 {
        group.blame(group.members.get(0).unwrap(), Function::Sign, Rv::DEVICE_ERROR);
        members[0].next(Function::GetTokenInfo, Act::Answer(Rv::DEVICE_ERROR));
        assert_eq!(group.members.get(0).unwrap().state(), State::Suspect);
        let mut random = [0; 8];
        while group.members.get(0).unwrap().state() != State::Up {
            slot.generate_random(s, &mut random).unwrap();
        }
    }
}

#[test]
fn a_suspect_that_has_lost_nothing_but_its_login_is_logged_in_to_and_not_connected_anew() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    // With the group keys a member can tell that it sees nothing.
    crate::setting::careful_pair(&*slot, s);
    let connects = members[1].connects.load(Ordering::Acquire);
    let group = &provider.groups()[0];
    drop(members[1].sent());
    members[1].real().close_all_sessions().unwrap();
    group.blame(group.members.get(1).unwrap(), Function::Sign, Rv::DEVICE_ERROR);
    all_up(&provider);
    assert_eq!(times(&members[1], PIN.as_bytes()), 1);
    assert_eq!(members[1].connects.load(Ordering::Acquire), connects);
}
