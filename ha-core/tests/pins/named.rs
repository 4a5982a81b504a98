//! `C_LoginUser`: a named user's PIN goes where the name is known, with the name.

use ha_core::policy::health::State;
use ha_rig::{Tokens, Watch};
use ha_token::*;

use crate::setting::{SOON, USER, WRONG, all_up, begin, careful_pair, finish, open, pin};
use crate::watched::{lose_and_find, start, wait};

const NAME: &[u8] = b"anna";

fn knows_anna(member: &Watch) {
    *member.user_name.lock().unwrap() = Some(NAME);
}

/// What was sent since the last look, by function and user.
fn sent(member: &Watch) -> Vec<(Function, UserType)> {
    member.sent().into_iter().map(|(function, user, _)| (function, user)).collect()
}

#[test]
fn a_named_user_is_logged_in_by_name_on_every_member_and_again_on_one_that_returns() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, SOON));
    members.iter().for_each(|m| knows_anna(m));
    let (slot, s) = open(&provider);
    slot.login_user(s, USER, pin(), NAME).unwrap();
    for member in &members {
        assert_eq!(sent(member), [(Function::LoginUser, USER)]);
    }
    assert_eq!(slot.login_user(s, USER, pin(), NAME), Err(Rv::USER_ALREADY_LOGGED_IN));
    assert_eq!(slot.login_user(s, USER, pin(), b"bert"), Err(Rv::USER_ANOTHER_ALREADY_LOGGED_IN));
    assert_eq!(slot.login(s, USER, pin()), Err(Rv::USER_ANOTHER_ALREADY_LOGGED_IN));
    let key = careful_pair(&*slot, s);
    members.iter().for_each(|m| drop(m.sent()));
    lose_and_find(&provider.groups()[0], 1, &members[1]);
    all_up(&provider);
    assert!(sent(&members[1]).contains(&(Function::LoginUser, USER)));

    // The use of a key is the same user's, named or not.
    for name in [b"".as_slice(), NAME] {
        begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
        assert_eq!(
            slot.login_user(s, UserType::ContextSpecific, pin(), b"bert"),
            Err(Rv::USER_ANOTHER_ALREADY_LOGGED_IN)
        );
        slot.login_user(s, UserType::ContextSpecific, pin(), name).unwrap();
        finish(&*slot, s, OpKind::Sign, &[7; 32]).unwrap();
    }
    for member in &members {
        assert!(sent(member).iter().all(|(function, _)| *function == Function::LoginUser));
    }
}

#[test]
fn a_pin_that_was_refused_to_one_name_may_be_anothers() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    members.iter().for_each(|m| knows_anna(m));
    let (slot, s) = open(&provider);
    for _ in 0..3 {
        assert_eq!(slot.login_user(s, USER, pin(), b"bert"), Err(Rv::PIN_INCORRECT));
        assert_eq!(slot.login_user(s, USER, Some(WRONG), NAME), Err(Rv::PIN_INCORRECT));
    }
    let asked: usize = members.iter().map(|m| sent(m).len()).sum();
    assert_eq!(asked, 2, "each was refused once, and not sent again");
    slot.login_user(s, USER, pin(), NAME).unwrap();
    assert_eq!(slot.login_user(s, USER, None, NAME), Err(Rv::ARGUMENTS_BAD));
}

#[test]
fn tokens_that_have_no_named_users_say_so_and_stay_in_use() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, SOON));
    let (slot, s) = open(&provider);
    assert_eq!(slot.login_user(s, USER, pin(), NAME), Err(Rv::FUNCTION_NOT_SUPPORTED));
    all_up(&provider);
    // Where one member has them, that one serves.
    knows_anna(&members[1]);
    slot.login_user(s, USER, pin(), NAME).unwrap();
    wait(&provider.groups()[0], "the other is put aside", |g| {
        g.members.get(0).unwrap().state() == State::Quarantined
    });
    slot.generate_random(s, &mut [0; 8]).unwrap();
    // A name no longer, and it is asked again.
    slot.logout(s).unwrap();
    slot.login(s, USER, pin()).unwrap();
    all_up(&provider);
}
