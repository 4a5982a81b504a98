//! Calls without a PIN; what a login with one brings about.

use std::sync::Arc;

use ha_rig::{SO_PIN, Tokens, Watch};
use ha_token::*;

use crate::setting::{USER, careful_pair, open, pin};
use crate::watched::start;

#[test]
fn no_pin_is_a_single_members_business() {
    let tokens = Tokens::new(1);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    assert_eq!(slot.login(s, USER, None), Err(Rv::ARGUMENTS_BAD), "what SoftHSM says, which has no PIN pad");
    assert_eq!(members[0].sent(), [(Function::Login, USER, None)]);
    slot.login(s, USER, pin()).unwrap();
}

#[test]
fn several_members_want_a_pin_and_the_log_says_for_what() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, "init_token = \"all\""));
    let events = provider.groups()[0].events();
    let slot = Arc::clone(provider.slot(0).unwrap());
    let refused = || {
        events.try_iter().find_map(|e| match e {
            ha_core::group::GroupEvent::Refused { function, .. } => Some(function),
            _ => None,
        })
    };
    assert_eq!(slot.init_token(None, "ha1"), Err(Rv::ARGUMENTS_BAD));
    assert_eq!(refused(), Some(Function::InitToken));
    let s = slot.open_session(true).unwrap();
    assert_eq!(slot.login(s, USER, None), Err(Rv::ARGUMENTS_BAD));
    assert_eq!(refused(), Some(Function::Login));
    assert_eq!(slot.set_pin(s, pin(), None), Err(Rv::ARGUMENTS_BAD));
    assert_eq!(refused(), Some(Function::SetPin));
    slot.login(s, UserType::So, Some(SO_PIN.as_bytes())).unwrap();
    assert_eq!(slot.init_pin(s, None), Err(Rv::ARGUMENTS_BAD));
    assert_eq!(refused(), Some(Function::InitPin));
    assert!(members.iter().flat_map(|m| m.sent()).all(|(_, _, p)| p.is_some()));
}

#[test]
fn a_login_brings_each_member_up_to_date_once() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    careful_pair(&*slot, s);
    slot.logout(s).unwrap();
    // The markers are written.
    slot.login(s, USER, pin()).unwrap();
    slot.logout(s).unwrap();
    members.iter().for_each(|m| drop(m.calls()));
    slot.login(s, USER, pin()).unwrap();
    let searches = |m: &Watch| m.calls().iter().filter(|f| **f == Function::FindObjectsInit).count();
    for member in &members {
        let why =
            "two for the group keys, one for the marker, and two that count what is ours and what is there";
        assert_eq!(searches(member), 5, "{why}");
    }
}
