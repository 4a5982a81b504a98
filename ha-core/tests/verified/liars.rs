//! Members whose signatures are wrong by one bit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ha_core::group::GroupEvent;
use ha_core::policy::health::State;
use ha_rig::{Act, PIN, SO_PIN, Tokens};
use ha_token::{
    Attribute, CombinedKind, ConnectError, Function, Mechanism, MessageKind, OpKind, Output, Params, Rv,
    UserType, ck,
};

use crate::setting::*;
use crate::watched::wait;

const FOR_EVER: usize = usize::MAX;

/// The keys and mechanisms that most tests are made with: one of two kinds.
fn one_of(setting: &Setting, which: usize) -> (Key, Mechanism) {
    match which {
        0 => (setting.rsa(2048, true), plain(ck::CKM_SHA256_RSA_PKCS)),
        _ => (setting.ec(P256, true), plain(ck::CKM_ECDSA)),
    }
}

/// The first member is quarantined, and stays so however often the members are looked at; the second one serves.
fn quarantined(setting: &Setting, key: &Key, mechanism: &Mechanism) {
    let (group, first, second) = (setting.group(), &setting.members[0], &setting.members[1]);
    assert_eq!((setting.state(0), setting.state(1)), (State::Quarantined, State::Up));
    let reason = group.members.get(0).unwrap().connect_error().unwrap();
    assert!(reason.contains("wrong signature") && reason.contains("\"signer\" (id ab01)"), "{reason}");
    let connects = first.connects.load(Ordering::Acquire);
    let (_, looked_at) = (first.calls(), AtomicUsize::new(0));
    wait(group, "the other member was looked at some times", |_| {
        let probes = second.calls().iter().filter(|f| **f == Function::GetTokenInfo).count();
        looked_at.fetch_add(probes, Ordering::Relaxed) > 3
    });
    // Nor does a login bring it back: its PIN was never what was wrong with it.
    setting.slot.logout(setting.s).unwrap();
    setting.slot.login(setting.s, UserType::User, Some(PIN.as_bytes())).unwrap();
    let found = setting.find_one(ck::CKO_PRIVATE_KEY, 1);
    let key = Key { handle: found, ..key.clone() };
    for _ in 0..4 {
        let signature = setting.sign(mechanism, &key, MESSAGE).unwrap();
        assert!(key.made(mechanism.kind, &signature));
    }
    assert_eq!(setting.state(0), State::Quarantined);
    assert_eq!(first.connects.load(Ordering::Acquire), connects, "it was not connected again");
    let calls = first.calls();
    assert!(!calls.contains(&Function::SignInit), "it was used: {calls:?}");
}

#[test]
fn a_wrong_signature_is_made_again_elsewhere_and_its_member_is_quarantined() {
    for which in 0..2 {
        let tokens = Tokens::new(2);
        let setting = Setting::new(&tokens, ON);
        let (key, mechanism) = one_of(&setting, which);
        let events = setting.group().events();
        lie(&setting.members[0], FOR_EVER);
        let signature = setting.sign(&mechanism, &key, MESSAGE).unwrap();
        assert_eq!(lied(&setting.members[0]), 1, "the first member was asked first");
        assert!(key.made(mechanism.kind, &signature));
        let all: Vec<GroupEvent> = events.try_iter().collect();
        let says = |f: &dyn Fn(&GroupEvent) -> bool| all.iter().any(f);
        assert!(says(&|e| matches!(e, GroupEvent::WrongSignature { member, label, mechanism }
            if member == "a" && label == "signer" && mechanism.starts_with("CKM_"))));
        assert!(says(
            &|e| matches!(e, GroupEvent::Member { member, to: State::Quarantined, .. } if member == "a")
        ));
        assert!(says(&|e| matches!(e, GroupEvent::Moved { from, to, rv: Rv::WRONG_SIGNATURE, .. }
            if from == "a" && to == "b")));
        quarantined(&setting, &key, &mechanism);
        // Whoever operates it may want it back.
        lie(&setting.members[0], 0);
        assert!(!setting.group().recover("nobody") && setting.group().recover("a"));
        setting.all_up();
        assert_eq!(setting.group().members.get(0).unwrap().connect_error(), None);
    }
}

#[test]
fn parts_are_verified_too() {
    for mechanism in [
        plain(ck::CKM_SHA256_RSA_PKCS),
        pss(ck::CKM_SHA384_RSA_PKCS_PSS, ck::CKM_SHA384, ck::CKG_MGF1_SHA384, 48),
    ] {
        let tokens = Tokens::new(2);
        let setting = Setting::new(&tokens, ON);
        let key = setting.rsa(2048, true);
        let parts: Vec<&[u8]> = MESSAGE.chunks(5).collect();
        let right = setting.sign_parts(&mechanism, &key, &parts).unwrap();
        lie(&setting.members[0], FOR_EVER);
        let signature = setting.sign_parts(&mechanism, &key, &parts).unwrap();
        assert_eq!(lied(&setting.members[0]), 1);
        assert_eq!(setting.state(0), State::Quarantined);
        if mechanism.kind == ck::CKM_SHA256_RSA_PKCS {
            assert_eq!(signature, right, "the mechanism gives one signature only");
        } else {
            // Verified by the token itself.
            let public = setting.find_one(ck::CKO_PUBLIC_KEY, 1);
            let verify = &mut mechanism.clone();
            setting.slot.op_init(setting.s, OpKind::Verify, Some(verify), public).unwrap();
            setting.slot.verify(setting.s, MESSAGE, &signature).unwrap();
        }
    }
}

#[test]
fn what_cannot_be_fed_again_fails_and_convicts_only_where_the_software_has_seen_a_right_one() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, &format!("{ON}replay_limit = \"16B\"\n"));
    let key = setting.rsa(1024, true);
    let mechanism = plain(ck::CKM_SHA256_RSA_PKCS);
    let parts: Vec<&[u8]> = MESSAGE.chunks(8).collect();
    lie(&setting.members[0], 1);
    assert_eq!(setting.sign_parts(&mechanism, &key, &parts), Err(Rv::DEVICE_ERROR));
    setting.all_up();
    // A right one, and again a wrong one.
    assert!(key.made(mechanism.kind, &setting.sign_parts(&mechanism, &key, &parts).unwrap()));
    lie(&setting.members[0], 1);
    assert_eq!(setting.sign_parts(&mechanism, &key, &parts), Err(Rv::DEVICE_ERROR));
    assert_eq!((setting.state(0), setting.state(1)), (State::Quarantined, State::Up));
    assert!(key.made(mechanism.kind, &setting.sign_parts(&mechanism, &key, &parts).unwrap()));
}

#[test]
fn messages_are_verified_too() {
    const SIGN: MessageKind = MessageKind::Sign;
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, ON);
    setting.members.iter().for_each(|w| w.signs_messages.store(true, Ordering::Release));
    let (slot, s) = (&setting.slot, setting.s);
    let key = setting.rsa(1024, true);
    slot.message_init(s, SIGN, Some(&mut plain(ck::CKM_SHA256_RSA_PKCS)), key.handle).unwrap();
    lie(&setting.members[0], FOR_EVER);
    let message = || {
        let params = &mut Params::None;
        written(|out| slot.message_one_shot(s, SIGN, params, b"", MESSAGE, out))
    };
    assert!(key.made(ck::CKM_SHA256_RSA_PKCS, &message().unwrap()));
    assert_eq!((lied(&setting.members[0]), setting.state(0)), (1, State::Quarantined));
    // A message in parts goes on nowhere else: it is not handed out.
    let in_parts = || {
        slot.message_begin(s, SIGN, &mut Params::None, b"")?;
        let (first, last) = MESSAGE.split_at(10);
        slot.message_next(s, SIGN, &mut Params::None, first, false, &mut Output::query())?;
        written(|out| slot.message_next(s, SIGN, &mut Params::None, last, true, out))
    };
    assert!(key.made(ck::CKM_SHA256_RSA_PKCS, &in_parts().unwrap()));
    lie(&setting.members[1], 1);
    assert_eq!(in_parts(), Err(Rv::DEVICE_ERROR));
    assert_eq!(setting.state(1), State::Quarantined, "right ones were seen");
}

#[test]
fn signatures_with_recovery_are_verified_too() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, ON);
    setting.members.iter().for_each(|w| w.recovers.store(true, Ordering::Release));
    let key = setting.rsa(1024, true);
    let right = setting.sign(&plain(ck::CKM_RSA_PKCS), &key, MESSAGE).unwrap();
    lie(&setting.members[0], 1);
    let (slot, s) = (&setting.slot, setting.s);
    slot.op_init(s, OpKind::SignRecover, Some(&mut plain(ck::CKM_RSA_PKCS)), key.handle).unwrap();
    let signature = written(|out| slot.op_one_shot(s, OpKind::SignRecover, MESSAGE, out)).unwrap();
    assert_eq!((signature, setting.state(0)), (right, State::Quarantined));
}

#[test]
fn where_every_member_signs_wrongly_nothing_is_handed_out_and_nobody_is_convicted_for_it() {
    for which in 0..2 {
        let tokens = Tokens::new(2);
        let setting = Setting::new(&tokens, ON);
        let (key, mechanism) = one_of(&setting, which);
        let events = setting.group().events();
        setting.members.iter().for_each(|member| lie(member, FOR_EVER));
        assert_eq!(setting.sign(&mechanism, &key, MESSAGE), Err(Rv::DEVICE_ERROR));
        let mut who = told(&events);
        who.sort();
        who.dedup();
        assert_eq!(who, ["a", "b"], "both were asked");
        // It may have been the input: both are looked at, and used.
        setting.members.iter().for_each(|member| lie(member, 0));
        setting.all_up();
        assert!(key.made(mechanism.kind, &setting.sign(&mechanism, &key, MESSAGE).unwrap()));
    }
}

#[test]
fn where_right_ones_were_seen_every_liar_is_quarantined() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, ON);
    let (key, mechanism) = one_of(&setting, 0);
    setting.sign(&mechanism, &key, MESSAGE).unwrap();
    setting.members.iter().for_each(|member| lie(member, FOR_EVER));
    assert_eq!(setting.sign(&mechanism, &key, MESSAGE), Err(Rv::DEVICE_ERROR));
    assert_eq!((setting.state(0), setting.state(1)), (State::Quarantined, State::Quarantined));
}

#[test]
fn a_session_key_has_one_member_and_its_signatures_are_verified_too() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, ON);
    let (rsa, ec) = (setting.rsa(1024, false), setting.ec(P256, false));
    for (key, mechanism) in [(rsa, ck::CKM_SHA256_RSA_PKCS), (ec, ck::CKM_ECDSA)] {
        let mechanism = plain(mechanism);
        setting.members.iter().for_each(|member| lie(member, FOR_EVER));
        assert_eq!(setting.sign(&mechanism, &key, MESSAGE), Err(Rv::DEVICE_ERROR));
        setting.members.iter().for_each(|member| lie(member, 0));
        setting.all_up();
        assert!(key.made(mechanism.kind, &setting.sign(&mechanism, &key, MESSAGE).unwrap()));
    }
}

#[test]
fn a_pin_that_was_refused_before_brings_no_liar_back_when_it_is_given_anew() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, ON);
    let (slot, s) = (&setting.slot, setting.s);
    let key = setting.rsa(1024, true);
    slot.logout(s).unwrap();
    // The second member refuses the security officer's PIN, and comes back when nobody is logged in.
    setting.members[1].refuse(Function::Login, 1, Rv::PIN_INCORRECT);
    slot.login(s, UserType::So, Some(SO_PIN.as_bytes())).unwrap();
    wait(setting.group(), "it was refused", |g| g.members.get(1).unwrap().state() == State::Quarantined);
    slot.logout(s).unwrap();
    setting.all_up();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    let key = Key { handle: setting.find_one(ck::CKO_PRIVATE_KEY, 1), ..key };
    let mechanism = plain(ck::CKM_SHA256_RSA_PKCS);
    let first_fails = || setting.members[0].next(Function::SignInit, Act::Answer(Rv::DEVICE_ERROR));
    // The second one's copy is proven with its first use.
    first_fails();
    setting.sign(&mechanism, &key, MESSAGE).unwrap();
    setting.all_up();
    first_fails();
    lie(&setting.members[1], 1);
    assert!(setting.sign(&mechanism, &key, MESSAGE).is_ok_and(|s| key.made(mechanism.kind, &s)));
    assert_eq!((lied(&setting.members[1]), setting.state(1)), (1, State::Quarantined));
    slot.logout(s).unwrap();
    wait(setting.group(), "the first one is up", |g| g.members.get(0).unwrap().is_up());
    slot.login(s, UserType::So, Some(SO_PIN.as_bytes())).unwrap();
    assert_eq!(setting.state(1), State::Quarantined);
}

#[test]
fn what_is_signed_and_encrypted_in_one_is_verified_too() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, ON);
    let key = setting.rsa(1024, true);
    let mut secret = yes(&[ck::CKA_TOKEN, ck::CKA_ENCRYPT]);
    secret.push(Attribute::ulong(ck::CKA_VALUE_LEN, 32));
    let (slot, s) = (&setting.slot, setting.s);
    let aes = slot.generate_key(s, &mut plain(ck::CKM_AES_KEY_GEN), &secret).unwrap();
    lie(&setting.members[0], FOR_EVER);
    slot.op_init(s, OpKind::Encrypt, Some(&mut plain(ck::CKM_AES_ECB)), aes).unwrap();
    setting.begin(&plain(ck::CKM_SHA256_RSA_PKCS), &key);
    for part in MESSAGE.chunks(16) {
        let mut out = [0; 64];
        slot.combined_update(s, CombinedKind::SignEncrypt, part, &mut Output::buffer(&mut out)).unwrap();
    }
    slot.op_final(s, OpKind::Encrypt, &mut Output::buffer(&mut [0; 64])).unwrap();
    let signature = written(|out| slot.op_final(s, OpKind::Sign, out)).unwrap();
    assert!(key.made(ck::CKM_SHA256_RSA_PKCS, &signature));
    assert_eq!((lied(&setting.members[0]), setting.state(0)), (1, State::Quarantined));
}

#[test]
fn a_key_from_before_the_group_is_verified_with_what_it_was_proven_to_be() {
    let tokens = Tokens::new(2);
    tokens.bare(0, &["--keypairgen", "--key-type", "rsa:1024", "--id", "ab01", "--label", "signer"]);
    tokens.bare(0, &["--keypairgen", "--key-type", "EC:prime256v1", "--id", "ab02", "--label", "signer"]);
    let setting = Setting::new(&tokens, ON);
    let events = setting.group().events();
    for (id, mechanism) in [(1, ck::CKM_SHA256_RSA_PKCS), (2, ck::CKM_ECDSA)] {
        let (public, private) =
            (setting.find_one(ck::CKO_PUBLIC_KEY, id), setting.find_one(ck::CKO_PRIVATE_KEY, id));
        let key = setting.key_of(public, private);
        let mechanism = plain(mechanism);
        assert!(key.made(mechanism.kind, &setting.sign(&mechanism, &key, MESSAGE).unwrap()));
        assert_eq!(told(&events), [""; 0]);
        // Nobody else has it: where it is not convicted at once it is asked once more, if it is back in time.
        lie(&setting.members[0], 1);
        let again = setting.sign(&mechanism, &key, MESSAGE);
        assert_eq!(told(&events), ["a"]);
        match mechanism.kind {
            ck::CKM_SHA256_RSA_PKCS => {
                assert_eq!((again, setting.state(0)), (Err(Rv::DEVICE_ERROR), State::Quarantined));
            }
            kind => assert!(again.map_or_else(|rv| rv == Rv::DEVICE_ERROR, |s| key.made(kind, &s))),
        }
        setting.group().recover("a");
        setting.all_up();
    }
}

#[test]
fn who_signs_wrongly_from_the_first_is_found_out_by_what_the_key_says_of_itself() {
    let tokens = Tokens::new(2);
    tokens.bare(0, &["--keypairgen", "--key-type", "rsa:1024", "--id", "ab01", "--label", "signer"]);
    let setting = Setting::new(&tokens, ON);
    let (public, private) =
        (setting.find_one(ck::CKO_PUBLIC_KEY, 1), setting.find_one(ck::CKO_PRIVATE_KEY, 1));
    let before = setting.key_of(public, private);
    let mechanism = plain(ck::CKM_SHA256_RSA_PKCS);
    // A key from before the group, which proves nothing when it is used for the first time.
    lie(&setting.members[0], FOR_EVER);
    assert_eq!(setting.sign(&mechanism, &before, MESSAGE), Err(Rv::DEVICE_ERROR));
    // One of the group's, whose copies were told to be the same by what wraps them.
    setting.all_up();
    let made = setting.extractable_rsa(1024);
    lie(&setting.members[0], 0);
    setting.all_up();
    for key in [before, made] {
        assert!(key.made(mechanism.kind, &setting.sign(&mechanism, &key, MESSAGE).unwrap()));
        setting.members.iter().for_each(|member| lie(member, 1));
        match setting.sign(&mechanism, &key, MESSAGE) {
            Ok(signature) => assert!(key.made(mechanism.kind, &signature)),
            Err(rv) => assert_eq!(rv, Rv::DEVICE_ERROR),
        }
        assert_eq!(setting.state(0), State::Quarantined);
        setting.members.iter().for_each(|member| lie(member, 0));
        ["a", "b"].iter().for_each(|member| _ = setting.group().recover(member));
        setting.all_up();
    }
}

#[test]
fn a_conviction_outlasts_what_a_member_was_put_aside_for_before() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, &format!("{ON}deadline = \"off\"\n"));
    let (key, mechanism) = one_of(&setting, 0);
    assert!(key.made(mechanism.kind, &setting.sign(&mechanism, &key, MESSAGE).unwrap()));
    lie(&setting.members[0], 1);
    // While it signs it goes, and what comes back is no token yet.
    let (group, first) = (Arc::clone(setting.group()), Arc::clone(&setting.members[0]));
    let goes = move || {
        first.fail_to_connect(ConnectError::NotInitialised { path: "a".into(), wanted: "a".into() });
        first.dead.store(true, Ordering::Release);
        group.blame(group.members.get(0).unwrap(), Function::Sign, Rv::DEVICE_ERROR);
        wait(&group, "it is put aside", |g| g.members.get(0).unwrap().state() == State::Quarantined);
    };
    setting.members[0].next(Function::Sign, Act::First(Box::new(goes)));
    assert!(key.made(mechanism.kind, &setting.sign(&mechanism, &key, MESSAGE).unwrap()));
    assert_eq!(lied(&setting.members[0]), 1);
    setting.members[0].dead.store(false, Ordering::Release);
    quarantined(&setting, &key, &mechanism);
}

#[test]
fn threads_that_sign_at_once_are_given_right_signatures_only() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, ON);
    let (key, mechanism) = one_of(&setting, 1);
    lie(&setting.members[0], FOR_EVER);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let s = setting.slot.open_session(false).unwrap();
                for _ in 0..50 {
                    let mut begin = mechanism.clone();
                    setting.slot.op_init(s, OpKind::Sign, Some(&mut begin), key.handle).unwrap();
                    let sign = |out: &mut Output<'_>| setting.slot.op_one_shot(s, OpKind::Sign, MESSAGE, out);
                    assert!(key.made(mechanism.kind, &written(sign).unwrap()));
                }
            });
        }
    });
    assert_eq!((setting.state(0), setting.state(1)), (State::Quarantined, State::Up));
}

#[test]
fn size_queries_and_small_buffers_are_no_signatures() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, ON);
    let key = setting.rsa(1024, true);
    let mechanism = plain(ck::CKM_SHA256_RSA_PKCS);
    lie(&setting.members[0], 1);
    setting.begin(&mechanism, &key);
    let call = |out: &mut Output<'_>| setting.slot.op_one_shot(setting.s, OpKind::Sign, MESSAGE, out);
    let mut query = Output::query();
    call(&mut query).unwrap();
    assert_eq!(query.len(), 128);
    let mut space = [0; 127];
    let mut short = Output::buffer(&mut space);
    assert_eq!(call(&mut short), Err(Rv::BUFFER_TOO_SMALL));
    assert_eq!((short.len(), lied(&setting.members[0])), (128, 0));
    let signature = written(call).unwrap();
    assert!(key.made(mechanism.kind, &signature));
    assert_eq!((lied(&setting.members[0]), setting.state(0)), (1, State::Quarantined));
}

#[test]
fn the_callers_own_mistake_is_no_lie() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, ON);
    let key = setting.rsa(1024, true);
    let events = setting.group().events();
    // Longer than the padding leaves room for.
    assert!(setting.sign(&plain(ck::CKM_RSA_PKCS), &key, &[1; 118]).is_err());
    // No number below the modulus.
    assert!(setting.sign(&plain(ck::CKM_RSA_X_509), &key, &[0xff; 128]).is_err());
    assert_eq!(told(&events), [""; 0]);
    setting.all_up();
}

#[test]
fn without_the_setting_nothing_is_verified() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, "");
    let (key, mechanism) = one_of(&setting, 0);
    lie(&setting.members[0], FOR_EVER);
    let signature = setting.sign(&mechanism, &key, MESSAGE).unwrap();
    assert!(!key.made(mechanism.kind, &signature));
    assert_eq!(setting.state(0), State::Up);
}
