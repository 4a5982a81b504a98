//! `session_objects = "replay"`: a session object goes on when its member is gone, under the same handle, as the same key;
//! and what has ended stays so.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "../open_group/mod.rs"]
mod open_group;
#[path = "../watched/mod.rs"]
mod watched;

mod bounds;
mod kinds;
mod setting;

use std::sync::atomic::Ordering;

use ha_rig::{Act, PIN, Tokens};
use ha_token::*;
use open_group::P256;
use setting::*;

/// A MAC of these parts; before the part of this number the member is killed.
fn mac_in_parts(setting: &Setting, key: ObjectHandle, parts: &[&[u8]], kill: Option<usize>) -> Vec<u8> {
    let (slot, s) = (setting.slot(), setting.s());
    slot.op_init(s, OpKind::Sign, Some(&mut plain(ck::CKM_SHA256_HMAC)), key).unwrap();
    for (n, part) in parts.iter().enumerate() {
        if kill == Some(n) {
            setting.kill(0);
        }
        slot.op_update(s, OpKind::Sign, part, &mut Output::query()).unwrap();
    }
    if kill == Some(parts.len()) {
        setting.kill(0);
    }
    let mut space = [0; 64];
    let mut out = Output::buffer(&mut space);
    slot.op_final(s, OpKind::Sign, &mut out).unwrap();
    out.written().to_vec()
}

#[test]
fn an_operation_in_parts_moves_with_its_key() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, REPLAY);
    let parts: [&[u8]; 3] = [b"one", b"two", b"three"];
    for kill in 0..=parts.len() {
        let key = hmac_key(&setting, "mac");
        let before = mac_in_parts(&setting, key, &parts, None);
        assert_eq!(mac_in_parts(&setting, key, &parts, Some(kill)), before, "killed before part {kill}");
        // A digest of the key, begun on a member that dies.
        setting.back(0);
        setting.slot().destroy_object(setting.s(), key).unwrap();
    }
}

#[test]
fn a_digest_of_a_key_goes_on_with_the_key_made_again_in_the_middle_of_it() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, REPLAY);
    let (slot, s) = (setting.slot(), setting.s());
    let key = hmac_key(&setting, "digested");
    let digest = |kill: bool| {
        slot.op_init(s, OpKind::Digest, Some(&mut plain(ck::CKM_SHA256)), ObjectHandle(0)).unwrap();
        slot.op_update(s, OpKind::Digest, b"before", &mut Output::query()).unwrap();
        if kill {
            setting.kill(0);
        }
        slot.digest_key(s, key).unwrap();
        let mut space = [0; 64];
        let mut out = Output::buffer(&mut space);
        slot.op_final(s, OpKind::Digest, &mut out).unwrap();
        out.written().to_vec()
    };
    let before = digest(false);
    assert_eq!(digest(true), before);
    assert_eq!(digest(false), before);
}

#[test]
fn what_was_changed_stays_changed_and_what_was_destroyed_destroyed() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, REPLAY);
    let (slot, s) = (setting.slot(), setting.s());
    let (made, created) = (hmac_key(&setting, "made"), setting.create(&data(false, b"value", "created")));
    let (gone, gone_later) =
        (hmac_key(&setting, "gone"), setting.create(&data(false, b"gone", "gone later")));
    slot.set_attributes(s, made, &vec![label("made and changed")]).unwrap();
    slot.set_attributes(s, created, &vec![label("created and changed")]).unwrap();
    slot.destroy_object(s, gone).unwrap();
    setting.kill(0);
    // Nobody makes it again to destroy it.
    slot.destroy_object(s, gone_later).unwrap();
    assert_eq!(setting.named("made and changed"), [made]);
    assert_eq!(setting.named("created and changed"), [created]);
    assert_eq!(setting.value(created, ck::CKA_VALUE).unwrap(), b"value");
    slot.set_attributes(s, made, &vec![label("made and changed twice")]).unwrap();
    setting.back(0);
    setting.kill(1);
    assert_eq!(setting.named("made and changed twice"), [made]);
    for name in ["made", "created", "gone", "gone later", "made and changed"] {
        assert_eq!(setting.named(name), [], "{name}");
    }
    for gone in [gone, gone_later] {
        assert_eq!(setting.value(gone, ck::CKA_LABEL), Err(Rv::OBJECT_HANDLE_INVALID));
        assert_eq!(slot.destroy_object(s, gone), Err(Rv::OBJECT_HANDLE_INVALID));
    }
}

#[test]
fn a_member_that_answers_again_on_its_old_connection_shows_nothing_twice_and_nothing_old() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, REPLAY);
    let (slot, s) = (setting.slot(), setting.s());
    let (key, other) = (hmac_key(&setting, "key"), hmac_key(&setting, "other"));
    let before = setting.op(OpKind::Sign, ck::CKM_SHA256_HMAC, key, b"x").unwrap();
    // One call fails: the key moves, and what was made first is still on the first member.
    setting.watches[0].next(Function::SignInit, Act::Answer(Rv::DEVICE_ERROR));
    assert_eq!(setting.op(OpKind::Sign, ck::CKM_SHA256_HMAC, key, b"x").unwrap(), before);
    setting.all_up();
    assert_eq!(setting.named("key"), [key]);
    slot.set_attributes(s, key, &vec![label("changed")]).unwrap();
    assert_eq!((setting.named("key"), setting.named("changed")), (vec![], vec![key]));
    assert_eq!(setting.named("other"), [other]);
    for _ in 0..8 {
        assert_eq!(setting.op(OpKind::Sign, ck::CKM_SHA256_HMAC, key, b"x").unwrap(), before);
    }
    assert_eq!(setting.named("changed"), [key]);
    slot.destroy_object(s, key).unwrap();
    assert_eq!((setting.named("key"), setting.named("changed")), (vec![], vec![]));
    assert_eq!(setting.open.find(&Template::new()), [other]);
}

#[test]
fn a_member_that_loses_its_sessions_is_given_its_objects_again() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, REPLAY);
    let key = hmac_key(&setting, "key");
    let before = setting.op(OpKind::Sign, ck::CKM_SHA256_HMAC, key, b"x").unwrap();
    for _ in 0..2 {
        setting.watches[0].real().close_all_sessions().unwrap();
        assert_eq!(setting.op(OpKind::Sign, ck::CKM_SHA256_HMAC, key, b"x").unwrap(), before);
        assert_eq!(setting.named("key"), [key]);
    }
}

#[test]
fn a_logout_ends_what_is_private_and_a_session_what_is_its_own() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, REPLAY);
    let (slot, s) = (setting.slot(), setting.s());
    let mine = slot.open_session(true).unwrap();
    let (private, public) = (
        setting.create(&data(true, b"private", "private")),
        setting.create(&data(false, b"public", "public")),
    );
    let own = slot.create_object(mine, &data(false, b"own", "own")).unwrap();
    let own_key =
        slot.create_object(mine, &with(secret(&[3; 32], ck::CKK_GENERIC_SECRET, "own key"), &[])).unwrap();
    setting.kill(0);
    // Another session uses it first: it goes with its own all the same.
    let before = setting.op(OpKind::Sign, ck::CKM_SHA256_HMAC, own_key, b"x").unwrap();
    assert_eq!(before.len(), 32);
    assert_eq!(setting.value(own, ck::CKA_VALUE).unwrap(), b"own");
    let there = setting.watches[1].sessions();
    slot.close_session(mine).unwrap();
    assert!(setting.watches[1].sessions() < there, "what owned it is closed");
    for gone in [own, own_key] {
        assert_eq!(setting.value(gone, ck::CKA_LABEL), Err(Rv::OBJECT_HANDLE_INVALID));
    }
    slot.logout(s).unwrap();
    assert_eq!(setting.value(private, ck::CKA_VALUE), Err(Rv::OBJECT_HANDLE_INVALID));
    assert_eq!(setting.value(public, ck::CKA_VALUE).unwrap(), b"public");
    setting.back(0);
    setting.kill(1);
    assert_eq!(setting.value(public, ck::CKA_VALUE).unwrap(), b"public");
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    assert_eq!(setting.open.find(&Template::new()), [public]);
}

#[test]
fn objects_on_two_members_are_used_together() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, REPLAY);
    let (slot, s) = (setting.slot(), setting.s());
    let length = Attribute::ulong(ck::CKA_VALUE_LEN, 32);
    let wrapping =
        setting.generate(ck::CKM_AES_KEY_GEN, &with(yes(&[ck::CKA_WRAP, ck::CKA_UNWRAP]), &[length]));
    setting.kill(0);
    // A key of its own, on the other member.
    let wrapped = setting.create(&with(secret(&[9; 32], ck::CKK_AES, "wrapped"), &[extractable(true)]));
    setting.back(0);
    let mut space = [0; 64];
    let mut out = Output::buffer(&mut space);
    slot.wrap_key(s, &mut plain(ck::CKM_AES_KEY_WRAP), wrapping, wrapped, &mut out).unwrap();
    let first = out.written().to_vec();
    setting.kill(1);
    let mut out = Output::buffer(&mut space);
    slot.wrap_key(s, &mut plain(ck::CKM_AES_KEY_WRAP), wrapping, wrapped, &mut out).unwrap();
    assert_eq!(out.written(), first);
    assert_eq!(setting.named("wrapped"), [wrapped]);
}

#[test]
fn a_session_key_that_moved_becomes_a_token_key() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, REPLAY);
    let key = hmac_key(&setting, "session");
    let before = setting.op(OpKind::Sign, ck::CKM_SHA256_HMAC, key, b"x").unwrap();
    setting.kill(0);
    assert_eq!(setting.op(OpKind::Sign, ck::CKM_SHA256_HMAC, key, b"x").unwrap(), before);
    setting.back(0);
    let template = vec![Attribute::bool(ck::CKA_TOKEN, true), label("token")];
    let token = setting.slot().copy_object(setting.s(), key, &template).unwrap();
    assert_eq!(setting.op(OpKind::Sign, ck::CKM_SHA256_HMAC, token, b"x").unwrap(), before);
    setting.slot().destroy_object(setting.s(), token).unwrap();
}

#[test]
fn what_is_made_again_and_does_not_prove_to_be_the_key_is_not_used() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, REPLAY);
    let public = with(yes(&[ck::CKA_VERIFY]), &[Attribute::bytes(ck::CKA_EC_PARAMS, P256)]);
    let (_, key) =
        setting.pair(ck::CKM_EC_KEY_PAIR_GEN, &public, &with(yes(&[ck::CKA_SIGN]), &[label("key")]));
    let sign = || setting.op(OpKind::Sign, ck::CKM_ECDSA, key, &[7; 32]);
    sign().unwrap();
    setting.kill(0);
    // Its answer to the challenge is wrong, as another key's would be.
    let liar = &setting.watches[1];
    liar.lies.store(usize::MAX, Ordering::Release);
    assert_eq!(sign(), Err(Rv::KEY_HANDLE_INVALID));
    assert!(liar.lied.load(Ordering::Acquire) > 0);
    assert!(setting.named("key").is_empty());
    liar.lies.store(0, Ordering::Release);
    sign().unwrap();
    assert_eq!(setting.named("key"), [key]);
}

#[test]
fn a_copy_may_be_no_more_elsewhere_than_where_it_was_made() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, REPLAY);
    let (slot, s) = (setting.slot(), setting.s());
    // What a copy has of what it was copied from.
    let fixed = [Attribute::bool(ck::CKA_DESTROYABLE, true), Attribute::bool(ck::CKA_MODIFIABLE, false)];
    let public = with(vec![Attribute::bytes(ck::CKA_EC_PARAMS, P256)], &fixed);
    let (public, _) = setting.pair(ck::CKM_EC_KEY_PAIR_GEN, &public, &yes(&[ck::CKA_SIGN]));
    let data = setting.create(&with(data(false, b"value", "data"), &fixed));
    let secret = with(secret(&[3; 32], ck::CKK_GENERIC_SECRET, "secret"), &fixed);
    let secret = setting.create(&secret);
    let copies = [public, data, secret].map(|source| slot.copy_object(s, source, &Template::new()).unwrap());
    let told = || {
        copies.map(|copy| {
            let modifiable = setting.value(copy, ck::CKA_MODIFIABLE).unwrap();
            (modifiable, slot.set_attributes(s, copy, &vec![label("another")]).is_ok())
        })
    };
    let before = told();
    assert!(before.iter().all(|(modifiable, changed)| *modifiable == [0] && !changed), "{before:?}");
    setting.kill(0);
    assert_eq!(told(), before);
}

#[test]
fn a_destroyed_key_is_on_no_member_any_more() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, REPLAY);
    let (slot, s) = (setting.slot(), setting.s());
    let there = |member: usize| -> usize {
        let real = setting.watches[member].real();
        let session = real.open_session(true).unwrap();
        let all = ["key", "changed"].map(|name| {
            real.find_objects_init(session, &vec![label(name)]).unwrap();
            let found = real.find_objects(session, 10).unwrap().len();
            real.find_objects_final(session).unwrap();
            found
        });
        real.close_session(session).unwrap();
        all.iter().sum()
    };
    let key = hmac_key(&setting, "key");
    let mac = || setting.op(OpKind::Sign, ck::CKM_SHA256_HMAC, key, b"x").unwrap();
    // One call fails: the key is on both members then.
    let moves = || {
        setting.watches[0].next(Function::SignInit, Act::Answer(Rv::DEVICE_ERROR));
        mac();
        setting.all_up();
    };
    mac();
    moves();
    assert_eq!((there(0), there(1)), (1, 1));
    // What is out of date is of no use to anybody.
    slot.set_attributes(s, key, &vec![label("changed")]).unwrap();
    assert_eq!(there(0) + there(1), 1);
    mac();
    moves();
    slot.destroy_object(s, key).unwrap();
    assert_eq!((there(0), there(1)), (0, 0));
}
