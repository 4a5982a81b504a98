//! Faults that hold from one call on.

use ha_rig::{PIN, SO_PIN};
use ha_token::{Connector as _, Rv, Token, UserType, ck};

use crate::bench::{Bench, From, LABEL};

const BOTH: [From; 2] = [From::Script, From::Socket];

#[test]
fn a_token_is_gone_and_comes_back() {
    for from in BOTH {
        let bench = Bench::ruled(from, "C_Digest token-gone after=1");
        bench.digest().unwrap();
        assert_eq!(bench.digest(), Err(Rv::DEVICE_REMOVED));
        let present = |token: &dyn Token| token.slot_info().unwrap().flags & ck::CKF_TOKEN_PRESENT != 0;
        assert!(!present(&*bench.token));
        assert_eq!(bench.token.token_info().map(drop), Err(Rv::TOKEN_NOT_PRESENT));
        assert_eq!(bench.token.open_session(false), Err(Rv::TOKEN_NOT_PRESENT));
        assert!(bench.connector.connect().is_err(), "no slot has a token");
        // Nobody listens now; the next connection does as is left for it.
        faulty_token::kept::change(&bench.socket, |state| state.clear(Some(1)).to_string()).unwrap();
        let token = bench.connector.connect().unwrap();
        assert!(present(&*token));
        token.open_session(false).unwrap();
    }
}

#[test]
fn another_tokens_objects_are_behind_the_same_name() {
    for (fault, label) in [("swap-store", LABEL), ("swap-token", "other one")] {
        let bench = Bench::with(&[LABEL, "other one"], &[]);
        let (_, key) = bench.ec();
        let info = bench.token.token_info().unwrap();
        assert_eq!(bench.say(&format!("add C_Digest {fault} {LABEL} \"other one\"")), "ok 1");
        bench.digest().map_err(|rv| assert_eq!(rv, Rv::SESSION_HANDLE_INVALID)).unwrap_or_default();
        let swapped = bench.token.token_info().unwrap();
        assert_eq!(swapped.label, label);
        assert_eq!(swapped.serial == info.serial, label == LABEL);
        let s = bench.token.open_session(true).unwrap();
        bench.token.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
        let there = Bench { s, token: bench.token.clone(), ..bench };
        assert_eq!(there.find(ck::CKO_PRIVATE_KEY).unwrap(), [], "of {fault}");
        assert_eq!(there.sign(ck::CKM_ECDSA, key), Err(Rv::KEY_HANDLE_INVALID));
        there.ec();
        assert_eq!(there.say("clear"), "ok 1");
        assert_eq!(there.token.token_info().unwrap().serial, info.serial);
        let s = there.token.open_session(true).unwrap();
        let back = Bench { s, token: there.token.clone(), ..there };
        back.login().unwrap();
        assert_eq!(back.find(ck::CKO_PRIVATE_KEY).unwrap().len(), 1);
    }
}

#[test]
fn a_swap_in_the_script_holds_from_the_start() {
    let bench = Bench::with(&[LABEL, "other"], &["* swap-store faulty other"]);
    bench.ec();
    assert_eq!(bench.say("clear"), "ok 1");
    let s = bench.token.open_session(true).unwrap();
    let own = Bench { s, token: bench.token.clone(), ..bench };
    own.login().unwrap();
    assert_eq!(own.find(ck::CKO_PRIVATE_KEY).unwrap(), [], "it was made on the other");
}

#[test]
fn a_pin_is_locked_after_so_many_wrong_ones() {
    for from in BOTH {
        let bench = Bench::ruled(from, "* lock-pin 3");
        bench.token.logout(bench.s).unwrap();
        let try_pin = |pin: &str| bench.token.login(bench.s, UserType::User, Some(pin.as_bytes()));
        let flags = || {
            bench.token.token_info().unwrap().flags
                & (ck::CKF_USER_PIN_COUNT_LOW | ck::CKF_USER_PIN_FINAL_TRY | ck::CKF_USER_PIN_LOCKED)
        };
        assert_eq!(flags(), 0);
        assert_eq!(try_pin("wrong"), Err(Rv::PIN_INCORRECT));
        assert_eq!(flags(), ck::CKF_USER_PIN_COUNT_LOW);
        try_pin(PIN).unwrap();
        assert_eq!(flags(), 0, "a right one begins anew");
        bench.token.logout(bench.s).unwrap();
        assert_eq!((try_pin("wrong"), try_pin("wrong")), (Err(Rv::PIN_INCORRECT), Err(Rv::PIN_INCORRECT)));
        assert_eq!(flags(), ck::CKF_USER_PIN_COUNT_LOW | ck::CKF_USER_PIN_FINAL_TRY);
        assert_eq!(try_pin("wrong"), Err(Rv::PIN_INCORRECT));
        assert_eq!(flags(), ck::CKF_USER_PIN_COUNT_LOW | ck::CKF_USER_PIN_LOCKED);
        assert_eq!(try_pin(PIN), Err(Rv::PIN_LOCKED), "the right one, too");
        // Nor is it open to a new connection.
        let token = bench.connector.connect().unwrap();
        let s = token.open_session(true).unwrap();
        assert_eq!(token.login(s, UserType::User, Some(PIN.as_bytes())), Err(Rv::PIN_LOCKED));
        // The security officer opens it.
        token.login(s, UserType::So, Some(SO_PIN.as_bytes())).unwrap();
        token.init_pin(s, Some(b"4321")).unwrap();
        token.logout(s).unwrap();
        token.login(s, UserType::User, Some(b"4321")).unwrap();
    }
}

/// A PIN that a rule calls wrong is one that was tried.
#[test]
fn a_right_pin_that_is_called_wrong_counts() {
    let bench = Bench::new(&["* lock-pin 2", "C_Login error CKR_PIN_INCORRECT after=1 count=2"]);
    bench.token.logout(bench.s).unwrap();
    assert_eq!((bench.login(), bench.login()), (Err(Rv::PIN_INCORRECT), Err(Rv::PIN_INCORRECT)));
    assert_eq!(bench.login(), Err(Rv::PIN_LOCKED));
}

/// `C_InitToken` is given the security officer's PIN, and a token that is made anew has no user's.
#[test]
fn the_pin_that_makes_a_token_anew_counts_and_opens_the_users() {
    let bench = Bench::new(&["* lock-pin 2"]);
    bench.token.logout(bench.s).unwrap();
    let wrong = || bench.token.login(bench.s, UserType::User, Some(b"wrong"));
    assert_eq!((wrong(), wrong()), (Err(Rv::PIN_INCORRECT), Err(Rv::PIN_INCORRECT)));
    assert_eq!(bench.login(), Err(Rv::PIN_LOCKED));
    bench.token.close_all_sessions().unwrap();
    let make = |pin: &str| bench.token.init_token(Some(pin.as_bytes()), LABEL);
    assert_eq!(make("wrong"), Err(Rv::PIN_INCORRECT));
    make(SO_PIN).unwrap();
    let locked = ck::CKF_USER_PIN_LOCKED | ck::CKF_SO_PIN_COUNT_LOW;
    assert_eq!(bench.token.token_info().unwrap().flags & locked, 0);
    assert_eq!((make("wrong"), make("wrong")), (Err(Rv::PIN_INCORRECT), Err(Rv::PIN_INCORRECT)));
    assert_eq!(make(SO_PIN), Err(Rv::PIN_LOCKED));
}
