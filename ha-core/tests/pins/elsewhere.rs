//! PINs that were changed elsewhere: who judges the new one, and what goes on meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_rig::{Act, PIN, Tokens, Watch};
use ha_token::*;

use crate::setting::{USER, WRONG, all_up, open, pin, rotate, times};
use crate::watched::{lose_and_find, start};

const CHANGED: &[u8] = b"changed";

/// A public object of a session.
fn session_object(slot: &dyn Token, s: SessionHandle) -> ObjectHandle {
    let template = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bool(ck::CKA_TOKEN, false),
        Attribute::bool(ck::CKA_PRIVATE, false),
        Attribute::bytes(ck::CKA_VALUE, *b"x"),
    ];
    slot.create_object(s, &template).unwrap()
}

fn lives(slot: &dyn Token, s: SessionHandle, object: ObjectHandle) -> bool {
    slot.get_attributes(s, object, &[ck::CKA_VALUE]).is_ok()
}

/// Two members, of which the second refuses the PIN that the group was logged in with: its own is [`CHANGED`]. Nobody is
/// logged in any more.
fn second_put_aside(tokens: &Tokens) -> (Provider, Vec<Arc<Watch>>, Arc<dyn Token>, SessionHandle) {
    rotate(tokens, 1, PIN.as_bytes(), CHANGED);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    assert_eq!(provider.groups()[0].members.get(1).unwrap().state(), State::Quarantined);
    slot.logout(s).unwrap();
    members.iter().for_each(|m| drop(m.sent()));
    (provider, members, slot, s)
}

#[test]
fn a_wrong_pin_ends_nothing_on_the_members_that_serve() {
    let tokens = Tokens::new(2);
    let (provider, members, slot, s) = second_put_aside(&tokens);
    let object = session_object(&*slot, s);
    let connects = members[0].connects.load(Ordering::Acquire);
    let sent = || [0, 1].map(|m| times(&members[m], WRONG));
    assert_eq!(slot.login(s, USER, Some(WRONG)), Err(Rv::PIN_INCORRECT));
    assert_eq!(sent(), [0, 1], "the one that was connected anew judges");
    // That one is known to have another PIN than the rest: its word does not bind them.
    assert_eq!(slot.login(s, USER, Some(WRONG)), Err(Rv::PIN_INCORRECT));
    assert_eq!(sent(), [1, 0]);
    assert_eq!(slot.login(s, USER, Some(WRONG)), Err(Rv::PIN_INCORRECT));
    assert_eq!(sent(), [0, 0], "to no token twice");
    assert!(lives(&*slot, s, object));
    slot.login(s, USER, pin()).unwrap();
    assert!(lives(&*slot, s, object));
    assert_eq!(members[0].connects.load(Ordering::Acquire), connects);
    drop(provider);
}

#[test]
fn a_member_that_does_not_know_of_the_change_yet_is_connected_anew_when_it_refuses_the_pin() {
    let tokens = Tokens::new(2);
    let (provider, members, slot, s) = second_put_aside(&tokens);
    rotate(&tokens, 0, PIN.as_bytes(), CHANGED);
    session_object(&*slot, s);
    slot.login(s, USER, Some(CHANGED)).unwrap();
    all_up(&provider);
    assert_eq!([0, 1].map(|m| times(&members[m], CHANGED)), [2, 1]);
}

#[test]
fn a_member_that_nobody_uses_is_connected_anew_before_it_is_sent_a_changed_pin() {
    let tokens = Tokens::new(2);
    let (provider, members, slot, s) = second_put_aside(&tokens);
    rotate(&tokens, 0, PIN.as_bytes(), CHANGED);
    slot.login(s, USER, Some(CHANGED)).unwrap();
    all_up(&provider);
    assert_eq!([0, 1].map(|m| times(&members[m], CHANGED)), [1, 1]);
    // The matter is over: the next login connects nobody.
    let connects = || [0, 1].map(|m: usize| members[m].connects.load(Ordering::Acquire));
    let before = connects();
    slot.logout(s).unwrap();
    slot.login(s, USER, Some(CHANGED)).unwrap();
    assert_eq!(connects(), before);
}

#[test]
fn a_member_with_session_objects_that_knows_of_the_change_keeps_its_connection() {
    let tokens = Tokens::new(2);
    let (provider, members, slot, s) = second_put_aside(&tokens);
    rotate(&tokens, 0, PIN.as_bytes(), CHANGED);
    lose_and_find(&provider.groups()[0], 0, &members[0]);
    while !provider.groups()[0].members.get(0).unwrap().is_up() {
        std::thread::yield_now();
    }
    let object = session_object(&*slot, s);
    slot.login(s, USER, Some(CHANGED)).unwrap();
    all_up(&provider);
    assert!(lives(&*slot, s, object));
    assert_eq!([0, 1].map(|m| times(&members[m], CHANGED)), [1, 1]);
}

#[test]
fn a_call_waits_for_the_only_member_that_is_connected_anew_for_a_pin() {
    let tokens = Tokens::new(1);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    assert_eq!(slot.login(s, USER, Some(WRONG)), Err(Rv::PIN_INCORRECT));
    let group = &provider.groups()[0];
    assert!(group.recover(group.members.get(0).unwrap().name()));
    let (other, (tell, told)) = (Arc::clone(&slot), std::sync::mpsc::channel());
    let another_calls = move || {
        let calls = std::thread::spawn(move || {
            let s = other.open_session(false).unwrap();
            other.generate_random(s, &mut [0; 8])
        });
        (0..1000).take_while(|_| !calls.is_finished()).for_each(|_| std::thread::yield_now());
        tell.send(calls).unwrap();
    };
    let connects = members[0].connects.load(Ordering::Acquire);
    members[0].next(Function::OpenSession, Act::First(Box::new(another_calls)));
    slot.login(s, USER, pin()).unwrap();
    assert_eq!(members[0].connects.load(Ordering::Acquire), connects + 1);
    assert_eq!(told.recv().unwrap().join().unwrap(), Ok(()));
}

#[test]
fn a_mistyped_old_pin_is_no_sign_that_pins_were_changed_elsewhere() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    assert_eq!(slot.set_pin(s, Some(WRONG), Some(CHANGED)), Err(Rv::PIN_INCORRECT));
    slot.logout(s).unwrap();
    let connects = || [0, 1].map(|m| members[m].connects.load(Ordering::Acquire));
    let before = connects();
    slot.login(s, USER, pin()).unwrap();
    all_up(&provider);
    assert_eq!(connects(), before);
}
