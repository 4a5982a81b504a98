//! PINs are changed on every member, or on none.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use ha_rig::{Act, PIN, SO_PIN, Tokens};
use ha_token::*;

use crate::setting::{USER, WRONG, all_up, careful_pair, open, pin, times};
use crate::watched::start;

#[test]
fn a_pin_change_that_happened_without_saying_so_is_found_out() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    members[1].next(Function::SetPin, Act::DoneAndAnswer(Rv::DEVICE_ERROR));
    slot.set_pin(s, pin(), Some(b"5678")).unwrap();
    careful_pair(&*slot, s);
    slot.logout(s).unwrap();
    slot.login(s, USER, Some(b"5678")).unwrap();
    all_up(&provider);
    for member in &members {
        assert!(times(member, b"5678") > 0);
    }
}

#[test]
fn a_pin_change_that_did_not_happen_is_undone_on_the_others() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    members[1].next(Function::SetPin, Act::Answer(Rv::DEVICE_ERROR));
    assert_eq!(slot.set_pin(s, pin(), Some(b"5678")), Err(Rv::DEVICE_ERROR));
    let tried = members[1].sent();
    let tried = tried.iter().filter(|(f, _, p)| *f == Function::Login && p.as_deref() == Some(b"5678"));
    assert_eq!(tried.count(), 1, "the new PIN is tried once");
    all_up(&provider);
    slot.logout(s).unwrap();
    slot.login(s, USER, pin()).unwrap();
    all_up(&provider);
    for member in [0, 1] {
        assert!(!tokens.bare(member, &["-O"]).contains("error"), "the PIN is {PIN} on member {member}");
    }
}

#[test]
fn nobody_logs_in_with_the_old_pin_while_it_is_found_out_which_one_a_member_has() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    let group = Arc::clone(&provider.groups()[0]);
    let (tell, other) = mpsc::channel();
    let another_asks = move || {
        let lends = std::thread::spawn(move || group.lease(group.members.get(1).unwrap()).map(drop));
        (0..1000).take_while(|_| !lends.is_finished()).for_each(|_| std::thread::yield_now());
        tell.send(lends).unwrap();
    };
    members.iter().for_each(|m| drop(m.sent()));
    members[1].next(Function::SetPin, Act::DoneAndAnswer(Rv::DEVICE_ERROR));
    // It is logged out, for the new PIN to be tried.
    members[1].next(Function::Logout, Act::Then(Box::new(another_asks)));
    slot.set_pin(s, pin(), Some(b"5678")).unwrap();
    other.recv().unwrap().join().unwrap().unwrap();
    let old = |s: &ha_rig::Sent| s.0 == Function::Login && s.2.as_deref() == pin();
    assert!(!members[1].sent().iter().any(old), "it was not sent the old PIN");
    all_up(&provider);
}

#[test]
fn a_wrong_old_pin_is_sent_once() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    for _ in 0..3 {
        assert_eq!(slot.set_pin(s, Some(WRONG), Some(b"5678")), Err(Rv::PIN_INCORRECT));
    }
    assert_eq!(times(&members[0], WRONG) + times(&members[1], WRONG), 1);
    slot.set_pin(s, pin(), Some(b"5678")).unwrap();
}

#[test]
fn a_first_pin_that_was_set_without_saying_so_is_set_again() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, UserType::So, Some(SO_PIN.as_bytes())).unwrap();
    members[1].next(Function::InitPin, Act::DoneAndAnswer(Rv::DEVICE_ERROR));
    slot.init_pin(s, Some(b"5678")).unwrap();
    slot.logout(s).unwrap();
    slot.login(s, USER, Some(b"5678")).unwrap();
    all_up(&provider);
    assert!(times(&members[1], b"5678") > 1);
}

#[test]
fn a_pin_change_whose_session_went_with_it_is_not_asked_for_again() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    members[0].next(Function::SetPin, Act::DoneAndAnswer(Rv::SESSION_CLOSED));
    slot.set_pin(s, pin(), Some(b"5678")).unwrap();
    slot.logout(s).unwrap();
    slot.login(s, USER, Some(b"5678")).unwrap();
    all_up(&provider);
    assert!(members.iter().all(|m| times(m, b"5678") > 0));
}

#[test]
fn a_pin_whose_session_went_in_the_login_is_not_sent_in_another_one() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    members.iter().for_each(|m| drop(m.sent()));
    members[0].refuse(Function::Login, 1, Rv::SESSION_CLOSED);
    assert_eq!(slot.login(s, USER, Some(WRONG)), Err(Rv::PIN_INCORRECT));
    assert_eq!((times(&members[0], WRONG), times(&members[1], WRONG)), (1, 1));
    // One that had gone before is found out before the PIN is sent.
    for member in &members {
        member.next(Function::GetSessionInfo, Act::Answer(Rv::SESSION_CLOSED));
        drop(member.sent());
    }
    slot.login(s, USER, pin()).unwrap();
    all_up(&provider);
    assert!(members.iter().all(|m| times(m, pin().unwrap()) == 1));
}

#[test]
fn a_pin_change_does_not_wait_for_who_gives_a_member_what_it_lacks() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, "balance = \"primary\"\nmin_copies = 1"));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    let ((tell, told), (go, gone)) = (mpsc::channel(), mpsc::channel::<()>());
    let waits = move || {
        tell.send(()).unwrap();
        // So long that nobody takes it for the moment that a change takes.
        _ = gone.recv_timeout(Duration::from_secs(20));
    };
    members[1].next(Function::CreateObject, Act::Answer(Rv::ATTRIBUTE_VALUE_INVALID));
    members[1].next(Function::CreateObject, Act::First(Box::new(waits)));
    let data = vec![
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bytes(ck::CKA_VALUE, *b"given later"),
    ];
    slot.create_object(s, &data).unwrap();
    told.recv().unwrap();
    slot.set_pin(s, pin(), Some(b"5678")).unwrap();
    go.send(()).expect("the keeper is at it still");
    slot.logout(s).unwrap();
    slot.login(s, USER, Some(b"5678")).unwrap();
    all_up(&provider);
}
