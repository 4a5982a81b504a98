//! An operation that was just made is begun once more with its first call: what the application sees is the same.
#![allow(missing_docs, clippy::unwrap_used)]

mod watched;

use std::sync::Arc;

use ha_core::provider::Provider;
use ha_rig::{Act, PIN, Tokens, Watch};
use ha_token::{
    Attribute, Function, Mechanism, ObjectHandle, OpKind, Output, Result, Rv, SessionHandle, Token, UserType,
    ck,
};

use watched::start;

const KIND: OpKind = OpKind::Encrypt;

struct Rig {
    slot: Arc<dyn Token>,
    s: SessionHandle,
    key: ObjectHandle,
    members: Vec<Arc<Watch>>,
    _provider: Provider,
    _tokens: Tokens,
}

/// With a key that has just enciphered.
fn rig(deadline: &str) -> Rig {
    let tokens = Tokens::new(2);
    let group = format!("balance = \"primary\"\ndeadline = {deadline:?}");
    let (provider, members) = start(&tokens.config(false, &group));
    let slot = Arc::clone(provider.slot(0).unwrap()) as Arc<dyn Token>;
    let s = slot.open_session(true).unwrap();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    let template = vec![
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::ulong(ck::CKA_VALUE_LEN, 32),
        Attribute::bool(ck::CKA_ENCRYPT, true),
    ];
    let key = slot.generate_key(s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &template).unwrap();
    let rig = Rig { slot, s, key, members, _provider: provider, _tokens: tokens };
    rig.begin().unwrap();
    rig.encipher().unwrap();
    rig.seen();
    rig
}

impl Rig {
    fn begin(&self) -> Result<()> {
        self.slot.op_init(self.s, KIND, Some(&mut Mechanism::plain(ck::CKM_AES_ECB)), self.key)
    }

    fn encipher(&self) -> Result<Vec<u8>> {
        let mut space = [0; 64];
        let mut out = Output::buffer(&mut space);
        self.slot.op_one_shot(self.s, KIND, &[7; 16], &mut out)?;
        Ok(out.written().to_vec())
    }

    /// The calls of operations since the last look.
    fn seen(&self) -> Vec<Function> {
        let of_operations =
            [Function::EncryptInit, Function::Encrypt, Function::EncryptUpdate, Function::EncryptFinal];
        let calls = self.members.iter().flat_map(|member| member.calls());
        calls.filter(|function| of_operations.contains(function)).collect()
    }
}

#[test]
fn its_member_sees_both_calls_with_the_first() {
    for deadline in ["off", "10s"] {
        let rig = rig(deadline);
        let mut all = Vec::new();
        for _ in 0..3 {
            rig.begin().unwrap();
            assert_eq!(rig.seen(), []);
            assert_eq!(rig.begin(), Err(Rv::OPERATION_ACTIVE));
            all.push(rig.encipher().unwrap());
            assert_eq!(rig.seen(), [Function::EncryptInit, Function::Encrypt]);
            assert_eq!(rig.encipher(), Err(Rv::OPERATION_NOT_INITIALIZED));
        }
        assert!(all.iter().all(|one| *one == all[0]));
    }
}

#[test]
fn it_is_asked_for_its_length_and_given_too_little_room() {
    for deadline in ["off", "10s"] {
        let rig = rig(deadline);
        rig.begin().unwrap();
        let mut query = Output::query();
        rig.slot.op_one_shot(rig.s, KIND, &[7; 16], &mut query).unwrap();
        assert_eq!(query.len(), 16);
        rig.encipher().unwrap();
        rig.begin().unwrap();
        let mut short = [0; 15];
        let answer = rig.slot.op_one_shot(rig.s, KIND, &[7; 16], &mut Output::buffer(&mut short));
        assert_eq!(answer, Err(Rv::BUFFER_TOO_SMALL));
        rig.encipher().unwrap();
        assert_eq!(rig.encipher(), Err(Rv::OPERATION_NOT_INITIALIZED));
    }
}

#[test]
fn it_goes_on_in_parts_or_is_cancelled() {
    let rig = rig("off");
    let whole = {
        rig.begin().unwrap();
        rig.encipher().unwrap()
    };
    rig.begin().unwrap();
    let mut space = [0; 64];
    let mut out = Output::buffer(&mut space);
    rig.slot.op_update(rig.s, KIND, &[7; 16], &mut out).unwrap();
    assert_eq!(out.written(), whole);
    rig.slot.op_final(rig.s, KIND, &mut Output::buffer(&mut [])).unwrap();
    rig.begin().unwrap();
    rig.encipher().unwrap();
    rig.begin().unwrap();
    rig.slot.op_init(rig.s, KIND, None, ObjectHandle(0)).unwrap();
    assert_eq!(rig.encipher(), Err(Rv::OPERATION_NOT_INITIALIZED));
    rig.begin().unwrap();
    rig.slot.logout(rig.s).unwrap();
    assert_eq!(rig.encipher(), Err(Rv::OPERATION_NOT_INITIALIZED));
    assert_eq!(rig.begin(), Err(Rv::KEY_HANDLE_INVALID));
}

/// What its token says now is not what it said before.
#[test]
fn a_key_that_was_changed_is_asked_for_at_once() {
    let rig = rig("off");
    let to = |may| {
        let template = vec![Attribute::bool(ck::CKA_ENCRYPT, may)];
        rig.slot.set_attributes(rig.s, rig.key, &template).unwrap();
    };
    to(false);
    assert_eq!(rig.begin(), Err(Rv::KEY_FUNCTION_NOT_PERMITTED));
    to(true);
    rig.begin().unwrap();
    assert_eq!(rig.seen(), [Function::EncryptInit, Function::EncryptInit]);
    rig.encipher().unwrap();
}

#[test]
fn what_nobody_here_has_changed_is_told_with_its_only_call_and_then_at_once() {
    let rig = rig("off");
    let refused = Rv::KEY_FUNCTION_NOT_PERMITTED;
    rig.members[0].next(Function::EncryptInit, Act::Answer(refused));
    rig.begin().unwrap();
    assert_eq!(rig.encipher(), Err(refused));
    rig.members[0].next(Function::EncryptInit, Act::Answer(refused));
    assert_eq!(rig.begin(), Err(refused));
}

#[test]
fn a_member_that_fails_to_begin_it_in_parts_is_left_at_once() {
    let rig = rig("off");
    rig.begin().unwrap();
    rig.members[0].next(Function::EncryptInit, Act::Answer(Rv::DEVICE_ERROR));
    let mut space = [0; 64];
    rig.slot.op_update(rig.s, KIND, &[7; 16], &mut Output::buffer(&mut space)).unwrap();
    assert_eq!(rig.seen(), [Function::EncryptInit, Function::EncryptInit, Function::EncryptUpdate]);
}

/// Its token may give the number of its handle to another key.
#[test]
fn a_key_that_is_destroyed_before_its_only_call_is_not_used() {
    let rig = rig("off");
    rig.begin().unwrap();
    rig.slot.destroy_object(rig.s, rig.key).unwrap();
    assert_eq!(rig.encipher(), Err(Rv::KEY_HANDLE_INVALID));
    assert_eq!(rig.encipher(), Err(Rv::OPERATION_NOT_INITIALIZED));
    assert_eq!(rig.seen(), []);
    assert_eq!(rig.begin(), Err(Rv::KEY_HANDLE_INVALID));
}
