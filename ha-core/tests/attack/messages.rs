//! Message-based operations go through faults as the others do (guarantee G4).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_rig::{Act, PIN, Tokens, Watch};
use ha_token::{Attribute, Function, MessageKind, ObjectHandle, Output, Params, Result, Rv, UserType, ck};

use crate::open_group::Open;
use crate::setting::{all_up, failing, plain, secret, yes};

const SIGN: MessageKind = MessageKind::Sign;

/// Members that sign messages, the first one first, and a key.
fn signing(tokens: &Tokens) -> (Open, Vec<Arc<Watch>>, ObjectHandle) {
    let (open, watches) = failing(tokens, "balance = \"primary\"");
    watches.iter().for_each(|w| w.signs_messages.store(true, Ordering::Release));
    let template = secret(1, &[yes(ck::CKA_SIGN), yes(ck::CKA_VERIFY)]);
    let mut generate = plain(ck::CKM_GENERIC_SECRET_KEY_GEN);
    let key = open.slot.generate_key(open.s, &mut generate, &template).unwrap();
    open.slot.message_init(open.s, SIGN, Some(&mut plain(ck::CKM_SHA256_HMAC)), key).unwrap();
    (open, watches, key)
}

fn message(open: &Open) -> Result<Vec<u8>> {
    let mut space = [0; 512];
    let mut out = Output::buffer(&mut space);
    open.slot.message_one_shot(open.s, SIGN, &mut Params::None, b"", &[7; 32], &mut out)?;
    Ok(out.written().to_vec())
}

#[test]
fn what_a_fresh_session_mends_is_mended_on_the_only_member() {
    let tokens = Tokens::new(1);
    let (open, watches, _) = signing(&tokens);
    let right = message(&open).unwrap();
    for rv in [
        Rv::SESSION_HANDLE_INVALID,
        Rv::SESSION_CLOSED,
        Rv::USER_NOT_LOGGED_IN,
        Rv::KEY_HANDLE_INVALID,
        Rv::OBJECT_HANDLE_INVALID,
    ] {
        watches[0].next(Function::SignMessage, Act::Answer(rv));
        assert_eq!(message(&open).as_ref(), Ok(&right), "{rv}");
        assert_eq!((watches[0].waiting(), open.provider.groups()[0].up().count()), (0, 1), "{rv}");
    }
    // All of them at once, as when the token was restarted behind our back.
    watches[0].real().close_all_sessions().unwrap();
    assert_eq!(message(&open).as_ref(), Ok(&right));
    // The application's own mistake ends nothing.
    watches[0].next(Function::SignMessage, Act::Answer(Rv::DATA_LEN_RANGE));
    assert_eq!(message(&open), Err(Rv::DATA_LEN_RANGE));
    assert_eq!(message(&open).as_ref(), Ok(&right));
    open.slot.message_final(open.s, SIGN).unwrap();
    assert_eq!(message(&open), Err(Rv::OPERATION_NOT_INITIALIZED));
}

#[test]
fn another_member_goes_on_between_messages_and_not_within_one() {
    let tokens = Tokens::new(2);
    let (open, watches, key) = signing(&tokens);
    let right = message(&open).unwrap();
    for rv in [Rv::DEVICE_ERROR, Rv::GENERAL_ERROR, Rv::DEVICE_MEMORY] {
        watches[0].next(Function::SignMessage, Act::Answer(rv));
        assert_eq!(message(&open).as_ref(), Ok(&right), "{rv}");
        open.slot.message_final(open.s, SIGN).unwrap();
        all_up(&open);
        open.slot.message_init(open.s, SIGN, Some(&mut plain(ck::CKM_SHA256_HMAC)), key).unwrap();
    }
    let (slot, s) = (&open.slot, open.s);
    // Nothing of the message is fed yet when its beginning fails.
    watches[0].next(Function::SignMessageBegin, Act::Answer(Rv::DEVICE_ERROR));
    slot.message_begin(s, SIGN, &mut Params::None, b"").unwrap();
    let next =
        |last, out: &mut Output<'_>| slot.message_next(s, SIGN, &mut Params::None, &[7; 16], last, out);
    next(false, &mut Output::query()).unwrap();
    watches[1].next(Function::SignMessageNext, Act::Answer(Rv::DEVICE_ERROR));
    assert_eq!(next(true, &mut Output::buffer(&mut [0; 64])), Err(Rv::DEVICE_ERROR));
    assert_eq!(message(&open), Err(Rv::OPERATION_NOT_INITIALIZED));
}

#[test]
fn a_login_for_the_use_of_a_key_is_for_its_messages_too_and_goes_with_them() {
    let tokens = Tokens::new(2);
    let (open, watches, _) = signing(&tokens);
    let (slot, s) = (&open.slot, open.s);
    slot.message_final(s, SIGN).unwrap();
    let public = vec![yes(ck::CKA_TOKEN), yes(ck::CKA_VERIFY), Attribute::bytes(ck::CKA_EC_PARAMS, P256)];
    let private =
        vec![yes(ck::CKA_TOKEN), yes(ck::CKA_PRIVATE), yes(ck::CKA_SIGN), yes(ck::CKA_ALWAYS_AUTHENTICATE)];
    let mut generate = plain(ck::CKM_EC_KEY_PAIR_GEN);
    let key = slot.generate_key_pair(s, &mut generate, &public, &private).unwrap().1;
    slot.message_init(s, SIGN, Some(&mut plain(ck::CKM_ECDSA)), key).unwrap();
    slot.login(s, UserType::ContextSpecific, Some(PIN.as_bytes())).unwrap();
    watches[0].dead.store(true, Ordering::Release);
    assert_eq!(message(&open).map(|m| m.len()), Ok(64));
}

const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
