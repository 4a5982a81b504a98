//! Members with a PIN of their own are sent no other one.

use ha_core::policy::health::State;
use ha_rig::{Act, PIN, Tokens};
use ha_token::*;

use crate::setting::{
    SOON, USER, WRONG, all_up, begin, careful_pair, finish, open, pin, rotate, times, with_member_line,
    with_own_pin,
};
use crate::watched::start;

#[test]
fn a_member_whose_own_pin_cannot_be_read_is_sent_no_other_one() {
    let tokens = Tokens::new(2);
    let text =
        with_member_line(&tokens.config(false, SOON), "a", "pin = { file = \"/nonexistent/pkcs11-ha/pin\" }");
    let (provider, members) = start(&text);
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    assert_eq!(members[0].sent(), []);
    assert_eq!(provider.groups()[0].members.get(0).unwrap().state(), State::Quarantined);
    let reason = provider.groups()[0].members.get(0).unwrap().connect_error().unwrap();
    assert!(reason.contains("configured `pin` cannot be had"), "{reason}");
}

#[test]
fn a_member_with_its_own_pin_gets_that_for_the_use_of_a_key_and_in_a_proof() {
    let own = "own-pin-of-a";
    let tokens = Tokens::new(2);
    rotate(&tokens, 0, PIN.as_bytes(), own.as_bytes());
    let text = with_own_pin(&tokens, &tokens.config(false, "balance = \"round-robin\""), "a", own);
    let (provider, members) = start(&text);
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    let key = careful_pair(&*slot, s);
    for n in 0..8 {
        // Of an operation that has begun on either member, and one that a member takes over.
        members.iter().for_each(|m| drop(m.calls()));
        begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
        slot.login(s, UserType::ContextSpecific, pin()).unwrap();
        if n % 2 == 1 {
            let there = members.iter().find(|m| m.calls().contains(&Function::SignInit)).unwrap();
            there.next(Function::Sign, Act::Answer(Rv::DEVICE_ERROR));
        }
        finish(&*slot, s, OpKind::Sign, &[7; 32]).unwrap();
        all_up(&provider);
    }
    let words = provider.groups()[0].check(true).unwrap();
    assert!(words.iter().all(|c| c.worst() == ha_core::group::Word::Same), "{words:?}");
    let sent = members[0].sent();
    let contexts = sent.iter().filter(|(_, user, _)| *user == UserType::ContextSpecific).count();
    assert!(contexts > 2, "{sent:?}");
    assert!(sent.iter().all(|(_, _, p)| p.as_deref() == Some(own.as_bytes())), "{sent:?}");
    assert!(members[1].sent().iter().all(|(_, _, p)| p.as_deref() == pin()));
    // What is not the login's is judged by the member that has no PIN of its own, once.
    for _ in 0..3 {
        begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
        assert_eq!(slot.login(s, UserType::ContextSpecific, Some(WRONG)), Err(Rv::PIN_INCORRECT));
        slot.op_init(s, OpKind::Sign, None, key).unwrap();
    }
    assert_eq!((times(&members[0], WRONG), times(&members[1], WRONG)), (0, 1));
}
