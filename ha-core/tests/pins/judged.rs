//! What a PIN is judged by: no member that is still logged in, none that would be locked, and none twice.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_core::policy::health::State;
use ha_rig::{Act, PIN, Tokens};
use ha_token::*;

use crate::setting::{USER, WRONG, all_up, begin, careful_pair, open, pin, times};
use crate::watched::{lose, start, start_with};

#[test]
fn a_member_that_could_not_be_logged_out_does_not_take_any_pin_for_right() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    for member in &members {
        member.next(Function::Logout, Act::Answer(Rv::DEVICE_ERROR));
    }
    slot.logout(s).unwrap();
    all_up(&provider);
    members.iter().for_each(|m| drop(m.sent()));
    assert_eq!(slot.login(s, USER, Some(WRONG)), Err(Rv::PIN_INCORRECT));
    let sent: usize = members.iter().map(|m| times(m, WRONG)).sum();
    assert_eq!(sent, 1, "to one member");
    slot.login(s, USER, pin()).unwrap();
}

#[test]
fn a_logout_is_not_missed_by_a_member_that_is_coming_back() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    let group = &provider.groups()[0];
    lose(group, 0, &members[0]);
    let late = Arc::clone(&slot);
    // It is logged in again, and catching up.
    members[0].next(Function::FindObjectsInit, Act::First(Box::new(move || late.logout(s).unwrap())));
    members[0].dead.store(false, Ordering::Release);
    all_up(&provider);
    let real = members[0].real();
    let state = real.session_info(real.open_session(true).unwrap()).unwrap().state;
    assert_eq!(state, ck::CKS_RW_PUBLIC_SESSION, "it is logged out when it is up");
    members.iter().for_each(|m| drop(m.sent()));
    assert_eq!(slot.login(s, USER, Some(WRONG)), Err(Rv::PIN_INCORRECT));
    assert_eq!(times(&members[1], WRONG), 0);
    slot.login(s, USER, pin()).unwrap();
}

#[test]
fn the_hosts_login_to_a_shared_instance_says_nothing_of_a_pin_and_is_left_to_it() {
    let tokens = Tokens::new(2);
    let (provider, members) =
        start_with(&tokens.config(false, ""), |m| m[0].shared.store(true, Ordering::Release));
    let (slot, s) = open(&provider);
    let host = members[0].real();
    let hosts = host.open_session(true).unwrap();
    host.login(hosts, USER, pin()).unwrap();
    assert_eq!(slot.login(s, USER, Some(WRONG)), Err(Rv::PIN_INCORRECT), "the other one judges");
    slot.login(s, USER, pin()).unwrap();
    slot.logout(s).unwrap();
    assert_eq!(host.session_info(hosts).unwrap().state, ck::CKS_RW_USER_FUNCTIONS);
    // Once the host has logged out, the member judges, and is logged out with the group.
    host.logout(hosts).unwrap();
    slot.login(s, USER, pin()).unwrap();
    slot.logout(s).unwrap();
    assert_eq!(host.session_info(hosts).unwrap().state, ck::CKS_RW_PUBLIC_SESSION);
}

#[test]
fn where_only_the_host_could_judge_a_pin_nobody_does() {
    let tokens = Tokens::new(1);
    let (provider, members) =
        start_with(&tokens.config(false, ""), |m| m[0].shared.store(true, Ordering::Release));
    let (slot, s) = open(&provider);
    let host = members[0].real();
    let hosts = host.open_session(true).unwrap();
    host.login(hosts, USER, pin()).unwrap();
    for given in [WRONG, PIN.as_bytes()] {
        assert_eq!(slot.login(s, USER, Some(given)), Err(Rv::USER_ALREADY_LOGGED_IN));
        assert_eq!(slot.session_info(s).unwrap().state, ck::CKS_RW_PUBLIC_SESSION);
    }
}

#[test]
fn an_answer_that_does_not_speak_of_the_pin_is_not_held_against_it() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    for rv in [
        Rv::USER_PIN_NOT_INITIALIZED,
        Rv::SESSION_READ_ONLY_EXISTS,
        Rv::PIN_LOCKED,
        Rv::USER_TYPE_INVALID,
        Rv::USER_TOO_MANY_TYPES,
    ] {
        // What SoftHSM says while another process writes is asked for again, for a while.
        let times = if rv == Rv::USER_PIN_NOT_INITIALIZED { 7 } else { 1 };
        for member in &members {
            (0..times).for_each(|_| member.next(Function::Login, Act::Answer(rv)));
        }
        assert_eq!(slot.login(s, USER, pin()), Err(rv));
        slot.login(s, USER, pin()).unwrap();
        slot.logout(s).unwrap();
    }
    // Another user is logged in, and can be logged out.
    members[0].next(Function::Login, Act::Answer(Rv::USER_ANOTHER_ALREADY_LOGGED_IN));
    slot.login(s, USER, pin()).unwrap();
    slot.logout(s).unwrap();
    members[0].next(Function::Login, Act::Answer(Rv::FUNCTION_CANCELED));
    assert_eq!(slot.login(s, USER, pin()), Err(Rv::FUNCTION_CANCELED), "what the user does ends it");
    slot.login(s, USER, pin()).unwrap();
}

#[test]
fn a_refused_pin_is_answered_as_it_was_refused() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    members[0].next(Function::Login, Act::Answer(Rv::PIN_EXPIRED));
    for _ in 0..2 {
        assert_eq!(slot.login(s, USER, Some(WRONG)), Err(Rv::PIN_EXPIRED));
    }
    assert_eq!(times(&members[0], WRONG) + times(&members[1], WRONG), 1);
}

#[test]
fn a_member_whose_pin_is_locked_leaves_the_login_to_another_one() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    for _ in 0..2 {
        members[0].next(Function::Login, Act::Answer(Rv::PIN_LOCKED));
    }
    slot.login(s, USER, pin()).unwrap();
    assert_eq!(provider.groups()[0].members.get(0).unwrap().state(), State::Quarantined);
    // Given anew, it may be sent again.
    slot.logout(s).unwrap();
    slot.login(s, USER, pin()).unwrap();
    all_up(&provider);
}

#[test]
fn no_pin_is_sent_where_it_could_be_the_last_try() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    let key = careful_pair(&*slot, s);
    let last = |on: bool| {
        for member in &members {
            member.flags.store(if on { ck::CKF_USER_PIN_FINAL_TRY } else { 0 }, Ordering::Release);
            drop(member.sent());
        }
    };
    let none = || members.iter().all(|m| m.sent().is_empty());
    begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
    last(true);
    assert_eq!(slot.login(s, UserType::ContextSpecific, pin()), Err(Rv::PIN_LOCKED));
    assert_eq!(slot.set_pin(s, pin(), Some(b"5678")), Err(Rv::PIN_LOCKED));
    slot.logout(s).unwrap();
    assert_eq!(slot.login(s, USER, pin()), Err(Rv::PIN_LOCKED));
    assert!(none());
    last(false);
    slot.login(s, USER, pin()).unwrap();
}

#[test]
fn what_tokens_say_of_their_pins_is_told_without_a_call_to_them() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, "balance = \"primary\""));
    let (slot, s) = open(&provider);
    let low = |slot: &dyn Token| slot.token_info().unwrap().flags & ck::CKF_USER_PIN_COUNT_LOW != 0;
    members.iter().for_each(|m| drop(m.calls()));
    assert!(!low(&*slot));
    assert!(members.iter().all(|m| m.calls().is_empty()));
    assert_eq!(slot.login(s, USER, Some(WRONG)), Err(Rv::PIN_INCORRECT));
    assert!(low(&*slot));
    slot.login(s, USER, pin()).unwrap();
    assert!(!low(&*slot));
    assert_eq!(slot.set_pin(s, Some(WRONG), Some(b"5678")), Err(Rv::PIN_INCORRECT));
    assert!(low(&*slot));
    slot.set_pin(s, pin(), Some(b"5678")).unwrap();
    assert!(!low(&*slot));
}
