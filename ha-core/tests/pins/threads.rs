//! Logins, logouts and sessions of several threads.

use std::sync::Arc;

use ha_rig::{Act, SO_PIN, Tokens};
use ha_token::*;

use crate::setting::{USER, open, pin};
use crate::watched::start;

#[test]
fn who_opens_and_logs_in_is_not_logged_out_by_who_closes() {
    let tokens = Tokens::new(1);
    let (provider, _members) = start(&tokens.config(false, ""));
    let slot = Arc::clone(provider.slot(0).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let s = slot.open_session(true).unwrap();
                    let state = || slot.session_info(s).unwrap().state;
                    match slot.login(s, USER, pin()) {
                        Ok(()) | Err(Rv::USER_ALREADY_LOGGED_IN) => {}
                        Err(rv) => panic!("{rv}"),
                    }
                    assert_eq!(state(), ck::CKS_RW_USER_FUNCTIONS);
                    std::thread::yield_now();
                    assert_eq!(state(), ck::CKS_RW_USER_FUNCTIONS);
                    slot.close_session(s).unwrap();
                }
            });
        }
    });
    let s = slot.open_session(true).unwrap();
    assert_eq!(slot.session_info(s).unwrap().state, ck::CKS_RW_PUBLIC_SESSION);
}

#[test]
fn a_login_of_a_session_that_was_closed_meanwhile_is_no_other_sessions() {
    let tokens = Tokens::new(1);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    let other = Arc::clone(&slot);
    members[0].next(Function::Login, Act::First(Box::new(move || other.close_session(s).unwrap())));
    _ = slot.login(s, USER, pin());
    let s = slot.open_session(true).unwrap();
    assert_eq!(slot.session_info(s).unwrap().state, ck::CKS_RW_PUBLIC_SESSION);
    slot.login(s, USER, pin()).unwrap();
}

#[test]
fn no_read_only_session_is_open_while_the_security_officer_is_logged_in() {
    let tokens = Tokens::new(1);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    for _ in 0..20 {
        let (other, (told, started)) = (Arc::clone(&slot), std::sync::mpsc::channel());
        let opening = std::thread::spawn(move || {
            // When the login has reached the token.
            started.recv().unwrap();
            other.open_session(false)
        });
        let asked = move || {
            told.send(()).unwrap();
            (0..1000).for_each(|_| std::thread::yield_now());
        };
        members[0].next(Function::Login, Act::First(Box::new(asked)));
        slot.login(s, UserType::So, Some(SO_PIN.as_bytes())).unwrap();
        assert_eq!(opening.join().unwrap(), Err(Rv::SESSION_READ_WRITE_SO_EXISTS));
        slot.logout(s).unwrap();
    }
    let read_only = slot.open_session(false).unwrap();
    let refused = slot.login(s, UserType::So, Some(SO_PIN.as_bytes()));
    assert_eq!(refused, Err(Rv::SESSION_READ_ONLY_EXISTS));
    slot.close_session(read_only).unwrap();
    slot.login(s, UserType::So, Some(SO_PIN.as_bytes())).unwrap();
}
