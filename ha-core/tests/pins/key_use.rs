//! The login for a key's use: which operation it is for, and who is sent its PIN.

use std::sync::atomic::Ordering;

use ha_rig::{Act, Tokens};
use ha_token::*;

use crate::setting::{USER, WRONG, all_up, begin, careful_pair, finish, open, pin, times};
use crate::watched::start;

#[test]
fn a_login_for_a_keys_use_goes_to_the_operation_that_was_started_last() {
    let tokens = Tokens::new(2);
    let (provider, _members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    let key = careful_pair(&*slot, s);
    let yes = |kind| Attribute::bool(kind, true);
    let secret = vec![Attribute::ulong(ck::CKA_VALUE_LEN, 32), yes(ck::CKA_ENCRYPT), yes(ck::CKA_DECRYPT)];
    let secret = slot.generate_key(s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &secret).unwrap();
    let public = vec![yes(ck::CKA_ENCRYPT), Attribute::ulong(ck::CKA_MODULUS_BITS, 2048)];
    let private = vec![yes(ck::CKA_DECRYPT), yes(ck::CKA_ALWAYS_AUTHENTICATE)];
    let mut generate = Mechanism::plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN);
    let (rsa_public, rsa) = slot.generate_key_pair(s, &mut generate, &public, &private).unwrap();
    begin(&*slot, s, OpKind::Encrypt, ck::CKM_RSA_PKCS, rsa_public);
    let sealed = finish(&*slot, s, OpKind::Encrypt, b"sealed").unwrap();

    // Both keys want a login: it is the later one's, in either order.
    begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
    begin(&*slot, s, OpKind::Decrypt, ck::CKM_RSA_PKCS, rsa);
    slot.login(s, UserType::ContextSpecific, pin()).unwrap();
    assert_eq!(finish(&*slot, s, OpKind::Decrypt, &sealed).unwrap(), b"sealed");
    slot.login(s, UserType::ContextSpecific, pin()).unwrap();
    finish(&*slot, s, OpKind::Sign, &[7; 32]).unwrap();
    // Of a later key that wants none it is not.
    begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
    begin(&*slot, s, OpKind::Encrypt, ck::CKM_AES_ECB, secret);
    slot.login(s, UserType::ContextSpecific, pin()).unwrap();
    finish(&*slot, s, OpKind::Sign, &[7; 32]).unwrap();
    finish(&*slot, s, OpKind::Encrypt, &[7; 16]).unwrap();
    assert_eq!(slot.login(s, UserType::ContextSpecific, pin()), Err(Rv::OPERATION_NOT_INITIALIZED));
}

#[test]
fn a_login_for_a_keys_use_survives_its_member_and_a_wrong_one_is_tried_once() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, "balance = \"primary\""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    let key = careful_pair(&*slot, s);
    begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
    members.iter().for_each(|m| drop(m.sent()));
    for _ in 0..3 {
        assert_eq!(slot.login(s, UserType::ContextSpecific, Some(WRONG)), Err(Rv::PIN_INCORRECT));
    }
    assert_eq!(times(&members[0], WRONG) + times(&members[1], WRONG), 1);
    // It is remembered over a login.
    slot.logout(s).unwrap();
    slot.login(s, USER, pin()).unwrap();
    let key = {
        let template = vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_PRIVATE_KEY)];
        slot.find_objects_init(s, &template).unwrap();
        let found = slot.find_objects(s, 10).unwrap();
        slot.find_objects_final(s).unwrap();
        assert_eq!((found.len(), found.contains(&key)), (1, false));
        found[0]
    };
    begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
    assert_eq!(slot.login(s, UserType::ContextSpecific, Some(WRONG)), Err(Rv::PIN_INCORRECT));
    assert_eq!(times(&members[0], WRONG) + times(&members[1], WRONG), 0);
    // The member that the operation began on dies before its login, and in between.
    members[0].dead.store(true, Ordering::Release);
    slot.login(s, UserType::ContextSpecific, pin()).unwrap();
    finish(&*slot, s, OpKind::Sign, &[7; 32]).unwrap();
    members[0].dead.store(false, Ordering::Release);
    all_up(&provider);
    begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
    slot.login(s, UserType::ContextSpecific, pin()).unwrap();
    members[0].dead.store(true, Ordering::Release);
    finish(&*slot, s, OpKind::Sign, &[7; 32]).unwrap();
    members[0].dead.store(false, Ordering::Release);
}

#[test]
fn a_pin_for_a_keys_use_that_may_have_been_counted_is_not_sent_again() {
    for rv in [Rv::GENERAL_ERROR, Rv::DEVICE_ERROR, Rv::SESSION_CLOSED, Rv(0x8000_0001)] {
        let tokens = Tokens::new(2);
        let (provider, members) = start(&tokens.config(false, "balance = \"primary\""));
        let (slot, s) = open(&provider);
        slot.login(s, USER, pin()).unwrap();
        let key = careful_pair(&*slot, s);
        begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
        members[1].dead.store(true, Ordering::Release);
        members[0].refuse(Function::Login, 1, rv);
        members.iter().for_each(|m| drop(m.sent()));
        // What came of it nobody knows: it is not called wrong.
        let answer = slot.login(s, UserType::ContextSpecific, Some(WRONG));
        assert!(matches!(answer, Err(e) if e != Rv::PIN_INCORRECT), "{rv}: {answer:?}");
        assert_eq!(times(&members[0], WRONG), 1, "{rv}");
        members[1].dead.store(false, Ordering::Release);
        all_up(&provider);
        // The operation waits for its login still.
        slot.login(s, UserType::ContextSpecific, pin()).unwrap();
        finish(&*slot, s, OpKind::Sign, &[7; 32]).unwrap();
    }
}

#[test]
fn a_pin_for_a_keys_use_is_sent_where_the_login_was_lost() {
    let tokens = Tokens::new(1);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    let key = careful_pair(&*slot, s);
    begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
    members[0].refuse(Function::Login, 1, Rv::USER_NOT_LOGGED_IN);
    slot.login(s, UserType::ContextSpecific, pin()).unwrap();
    finish(&*slot, s, OpKind::Sign, &[7; 32]).unwrap();
    // As where it failed before it was sent one.
    begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
    members[0].next(Function::GetTokenInfo, Act::Answer(Rv::DEVICE_ERROR));
    slot.login(s, UserType::ContextSpecific, pin()).unwrap();
    finish(&*slot, s, OpKind::Sign, &[7; 32]).unwrap();
}
