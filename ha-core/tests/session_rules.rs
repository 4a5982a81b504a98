//! The session rules of the standard, kept by the virtual slot itself, and the members' own slots beside it.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use ha_core::config::Config;
use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_rig::{PIN, SO_PIN, Tokens};
use ha_token::{Attribute, Mechanism, ObjectHandle, OpKind, Output, Rv, Token, UserType, ck};

fn start(tokens: &Tokens) -> (Provider, Arc<dyn Token>) {
    let provider = Provider::from_config(Config::parse(&tokens.config(false, "")).unwrap()).unwrap();
    let slot = Arc::clone(provider.slot(0).unwrap());
    (provider, slot)
}

fn session_key(slot: &dyn Token, s: ha_token::SessionHandle) -> ObjectHandle {
    let template = vec![
        Attribute::ulong(ck::CKA_VALUE_LEN, 32),
        Attribute::bool(ck::CKA_ENCRYPT, true),
        Attribute::bool(ck::CKA_DECRYPT, true),
    ];
    slot.generate_key(s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &template).unwrap()
}

#[test]
fn states_follow_the_login_of_all_sessions() {
    let tokens = Tokens::new(2);
    let (_provider, slot) = start(&tokens);
    let (ro, rw) = (slot.open_session(false).unwrap(), slot.open_session(true).unwrap());
    let state = |s| slot.session_info(s).unwrap().state;
    assert_eq!((state(ro), state(rw)), (ck::CKS_RO_PUBLIC_SESSION, ck::CKS_RW_PUBLIC_SESSION));
    slot.login(ro, UserType::User, Some(PIN.as_bytes())).unwrap();
    assert_eq!((state(ro), state(rw)), (ck::CKS_RO_USER_FUNCTIONS, ck::CKS_RW_USER_FUNCTIONS));
    assert_eq!(slot.login(rw, UserType::So, Some(SO_PIN.as_bytes())), Err(Rv::SESSION_READ_ONLY_EXISTS));
    slot.close_session(ro).unwrap();
    assert_eq!(
        slot.login(rw, UserType::So, Some(SO_PIN.as_bytes())),
        Err(Rv::USER_ANOTHER_ALREADY_LOGGED_IN)
    );
    slot.logout(rw).unwrap();
    slot.login(rw, UserType::So, Some(SO_PIN.as_bytes())).unwrap();
    assert_eq!(state(rw), ck::CKS_RW_SO_FUNCTIONS);
    assert_eq!(slot.open_session(false), Err(Rv::SESSION_READ_WRITE_SO_EXISTS));
    slot.init_pin(rw, Some(b"5678")).unwrap();
    slot.logout(rw).unwrap();
    slot.login(rw, UserType::User, Some(b"5678")).unwrap();
    slot.set_pin(rw, Some(b"5678"), Some(PIN.as_bytes())).unwrap();
    slot.logout(rw).unwrap();
    for member in [0, 1] {
        assert!(!tokens.bare(member, &["-O"]).contains("error"), "the PIN is {PIN} again on member {member}");
    }
    // The last session that closes logs out.
    slot.login(rw, UserType::User, Some(PIN.as_bytes())).unwrap();
    slot.close_session(rw).unwrap();
    let again = slot.open_session(true).unwrap();
    assert_eq!(state(again), ck::CKS_RW_PUBLIC_SESSION);
}

#[test]
fn a_read_only_session_makes_no_token_object() {
    let tokens = Tokens::new(2);
    let (_provider, slot) = start(&tokens);
    let s = slot.open_session(false).unwrap();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    let template = vec![Attribute::bool(ck::CKA_TOKEN, true), Attribute::ulong(ck::CKA_VALUE_LEN, 32)];
    assert_eq!(
        slot.generate_key(s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &template),
        Err(Rv::SESSION_READ_ONLY)
    );
    session_key(&*slot, s);
}

#[test]
fn session_objects_go_with_their_session_and_handles_are_never_used_again() {
    let tokens = Tokens::new(2);
    let (_provider, slot) = start(&tokens);
    let keep = slot.open_session(true).unwrap();
    slot.login(keep, UserType::User, Some(PIN.as_bytes())).unwrap();
    let mut last = ObjectHandle(0);
    for _ in 0..20 {
        let s = slot.open_session(true).unwrap();
        let key = session_key(&*slot, s);
        assert!(key > last, "a handle is never used again");
        assert!(slot.get_attributes(keep, key, &[ck::CKA_CLASS]).is_ok(), "other sessions see it");
        slot.close_session(s).unwrap();
        assert_eq!(slot.get_attributes(keep, key, &[ck::CKA_CLASS]), Err(Rv::OBJECT_HANDLE_INVALID));
        assert_eq!(slot.session_info(s), Err(Rv::SESSION_HANDLE_INVALID));
        last = key;
    }
    for member in [0, 1] {
        assert!(!tokens.bare(member, &["-O"]).contains("Object"), "nothing was left on member {member}");
    }
}

#[test]
fn a_session_object_whose_destruction_is_refused_stays() {
    let tokens = Tokens::new(2);
    let (_provider, slot) = start(&tokens);
    let s = slot.open_session(true).unwrap();
    let data = |destroyable| {
        vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
            Attribute::bool(ck::CKA_PRIVATE, false),
            Attribute::bool(ck::CKA_DESTROYABLE, destroyable),
            Attribute::bytes(ck::CKA_VALUE, *b"here"),
        ]
    };
    let stays = slot.create_object(s, &data(false)).unwrap();
    assert_eq!(slot.destroy_object(s, stays), Err(Rv::ACTION_PROHIBITED));
    let value = slot.get_attributes(s, stays, &[ck::CKA_VALUE]).unwrap();
    assert_eq!(value[0].bytes(), Some(&b"here"[..]));
    let goes = slot.create_object(s, &data(true)).unwrap();
    slot.destroy_object(s, goes).unwrap();
    assert_eq!(slot.destroy_object(s, goes), Err(Rv::OBJECT_HANDLE_INVALID));
}

#[test]
fn a_session_object_goes_with_its_member() {
    let tokens = Tokens::new(2);
    (0..2).for_each(|i| tokens.serve(i));
    let manual = "balance = \"primary\"\n[group.recovery]\nmode = \"manual\"";
    let provider = Provider::from_config(Config::parse(&tokens.config(true, manual)).unwrap()).unwrap();
    let slot = provider.slot(0).unwrap();
    let s = slot.open_session(true).unwrap();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    let key = session_key(&**slot, s);
    tokens.kill(0);
    assert_eq!(slot.destroy_object(s, key), Ok(()));
    assert_eq!(slot.destroy_object(s, key), Err(Rv::OBJECT_HANDLE_INVALID));
}

#[test]
fn a_logout_ends_operations_and_private_handles() {
    let tokens = Tokens::new(2);
    let (_provider, slot) = start(&tokens);
    let s = slot.open_session(true).unwrap();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    let template = vec![
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::ulong(ck::CKA_VALUE_LEN, 32),
        Attribute::bool(ck::CKA_ENCRYPT, true),
    ];
    let key = slot.generate_key(s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &template).unwrap();
    slot.op_init(s, OpKind::Encrypt, Some(&mut Mechanism::plain(ck::CKM_AES_ECB)), key).unwrap();
    slot.logout(s).unwrap();
    let mut space = [0; 64];
    let mut out = Output::buffer(&mut space);
    assert_eq!(slot.op_one_shot(s, OpKind::Encrypt, &[0; 16], &mut out), Err(Rv::OPERATION_NOT_INITIALIZED));
    assert_eq!(
        slot.op_init(s, OpKind::Encrypt, Some(&mut Mechanism::plain(ck::CKM_AES_ECB)), key),
        Err(Rv::KEY_HANDLE_INVALID)
    );
}

#[test]
fn a_size_query_and_a_small_buffer_leave_the_operation_alive() {
    let tokens = Tokens::new(2);
    let (_provider, slot) = start(&tokens);
    let s = slot.open_session(true).unwrap();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    let key = session_key(&*slot, s);
    slot.op_init(s, OpKind::Encrypt, Some(&mut Mechanism::plain(ck::CKM_AES_ECB)), key).unwrap();
    assert_eq!(
        slot.op_init(s, OpKind::Encrypt, Some(&mut Mechanism::plain(ck::CKM_AES_ECB)), key),
        Err(Rv::OPERATION_ACTIVE)
    );
    let mut query = Output::query();
    slot.op_one_shot(s, OpKind::Encrypt, &[0; 16], &mut query).unwrap();
    assert_eq!(query.len(), 16);
    let mut short = [0; 15];
    let mut out = Output::buffer(&mut short);
    assert_eq!(slot.op_one_shot(s, OpKind::Encrypt, &[0; 16], &mut out), Err(Rv::BUFFER_TOO_SMALL));
    assert_eq!(out.len(), 16);
    let mut exact = [0; 16];
    let mut out = Output::buffer(&mut exact);
    slot.op_one_shot(s, OpKind::Encrypt, &[0; 16], &mut out).unwrap();
    assert_eq!(out.len(), 16);
}

#[test]
fn with_ha_only_off_the_members_slots_are_bare_slots() {
    let tokens = Tokens::new(2);
    let text = format!("ha_only = false\n{}", tokens.config(false, ""));
    let provider = Provider::from_config(Config::parse(&text).unwrap()).unwrap();
    let kinds: Vec<String> = provider.slots().iter().map(|s| s.slot_info().unwrap().description).collect();
    assert_eq!(kinds, ["HA Virtual Card Slot", "Net Token Slot", "Net Token Slot"]);
    let bare = provider.slot(2).unwrap();
    assert_eq!(bare.token_info().unwrap().label, "member-b");
    let s = bare.open_session(true).unwrap();
    assert_eq!(provider.session(s).unwrap().0, 2);
    bare.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    let template = vec![
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::ulong(ck::CKA_VALUE_LEN, 16),
        Attribute::bytes(ck::CKA_LABEL, *b"bare"),
    ];
    bare.generate_key(s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &template).unwrap();
    assert!(tokens.bare(1, &["-O"]).contains("bare") && !tokens.bare(0, &["-O"]).contains("bare"));
    let virtual_slot = provider.slot(0).unwrap();
    let s = virtual_slot.open_session(false).unwrap();
    assert_eq!(
        virtual_slot.session_info(s).unwrap().state,
        ck::CKS_RO_PUBLIC_SESSION,
        "a bare login is not the group's"
    );
}

#[test]
fn without_any_member_the_slot_is_empty_and_tells_when_its_token_appears() {
    let tokens = Tokens::new(2);
    let away: Vec<_> = (0..2).map(|i| tokens.path().join(format!("away-{i}"))).collect();
    for (i, away) in away.iter().enumerate() {
        std::fs::rename(tokens.store(i), away).unwrap();
    }
    let (provider, slot) = start(&tokens);
    assert_eq!(slot.slot_info().unwrap().flags & ck::CKF_TOKEN_PRESENT, 0);
    assert_eq!(slot.token_info().unwrap_err(), Rv::TOKEN_NOT_PRESENT);
    assert_eq!(slot.open_session(true), Err(Rv::TOKEN_NOT_PRESENT));
    assert_eq!(provider.wait_for_slot_event(false), Err(Rv::NO_EVENT));
    // The folder that SoftHSM may have made in its place goes.
    _ = std::fs::remove_dir_all(tokens.store(0));
    std::fs::rename(&away[0], tokens.store(0)).unwrap();
    assert_eq!(provider.wait_for_slot_event(true), Ok(0));
    assert_eq!(slot.token_info().unwrap().label, "ha1");
    assert!(provider.shutdown(Duration::from_secs(60)).is_empty());
    assert_eq!(provider.wait_for_slot_event(true), Err(Rv::CRYPTOKI_NOT_INITIALIZED));
}

#[test]
fn both_members_share_the_load_of_eight_threads() {
    let tokens = Tokens::new(2);
    let (provider, slot) = start(&tokens);
    let s = slot.open_session(true).unwrap();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    let template = vec![
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::ulong(ck::CKA_VALUE_LEN, 32),
        Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET),
        Attribute::bool(ck::CKA_SIGN, true),
    ];
    let key = slot.generate_key(s, &mut Mechanism::plain(ck::CKM_GENERIC_SECRET_KEY_GEN), &template).unwrap();
    let before = provider.groups()[0].served();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let s = slot.open_session(false).unwrap();
                for _ in 0..5000 {
                    slot.op_init(s, OpKind::Sign, Some(&mut Mechanism::plain(ck::CKM_SHA256_HMAC)), key)
                        .unwrap();
                    let mut space = [0; 32];
                    slot.op_one_shot(s, OpKind::Sign, b"data", &mut Output::buffer(&mut space)).unwrap();
                }
            });
        }
    });
    let shares: Vec<u64> =
        provider.groups()[0].served().iter().zip(before).map(|(now, then)| now - then).collect();
    let total: u64 = shares.iter().sum();
    assert!(total >= 40000, "{shares:?}");
    assert!(shares.iter().all(|s| *s * 10 >= total * 4), "each does 40 % at least: {shares:?}");
}

#[test]
fn a_part_of_a_mechanism_without_parts_is_the_applications_fault_not_the_members() {
    let tokens = Tokens::new(2);
    let (provider, slot) = start(&tokens);
    let s = slot.open_session(true).unwrap();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    let p256 = Attribute::bytes(ck::CKA_EC_PARAMS, [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]);
    let (_, key) = slot
        .generate_key_pair(
            s,
            &mut Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN),
            &vec![p256],
            &vec![Attribute::bool(ck::CKA_SIGN, true), Attribute::bool(ck::CKA_TOKEN, true)],
        )
        .unwrap();
    // More often than the retry budget would allow.
    for _ in 0..100 {
        slot.op_init(s, OpKind::Sign, Some(&mut Mechanism::plain(ck::CKM_ECDSA)), key).unwrap();
        let answer = slot.op_update(s, OpKind::Sign, &[7; 32], &mut Output::query());
        assert_eq!(answer, Err(Rv::OPERATION_NOT_INITIALIZED), "what SoftHSM says");
        for member in provider.groups()[0].status().members {
            assert_eq!(member.state, State::Up, "{}", member.name);
            assert!(member.last_fault.is_none(), "{}: {:?}", member.name, member.last_fault);
        }
    }
}

#[test]
fn digests_one_after_the_other_are_right_in_every_shape() {
    use sha2::Digest as _;
    let tokens = Tokens::new(2);
    let (provider, slot) = start(&tokens);
    let s = slot.open_session(false).unwrap();
    let begin =
        || slot.op_init(s, OpKind::Digest, Some(&mut Mechanism::plain(ck::CKM_SHA256)), ObjectHandle(0));
    for round in 0..300u32 {
        let data = round.to_be_bytes();
        let expected = sha2::Sha256::digest(data);
        let mut space = [0; 32];
        begin().unwrap();
        match round % 6 {
            0 => {}
            1 => {
                let mut query = Output::query();
                slot.op_one_shot(s, OpKind::Digest, &data, &mut query).unwrap();
                assert_eq!(query.len(), 32);
            }
            2 => {
                let mut small = Output::buffer(&mut space[..31]);
                assert_eq!(slot.op_one_shot(s, OpKind::Digest, &data, &mut small), Err(Rv::BUFFER_TOO_SMALL));
                assert_eq!(small.len(), 32);
            }
            3 => {
                for byte in data {
                    slot.op_update(s, OpKind::Digest, &[byte], &mut Output::query()).unwrap();
                }
                let mut out = Output::buffer(&mut space);
                slot.op_final(s, OpKind::Digest, &mut out).unwrap();
                assert_eq!(out.written(), &*expected);
                continue;
            }
            4 => {
                assert_eq!(begin(), Err(Rv::OPERATION_ACTIVE));
            }
            _ => {
                slot.op_init(s, OpKind::Digest, None, ObjectHandle(0)).unwrap();
                let answer = slot.op_one_shot(s, OpKind::Digest, &data, &mut Output::buffer(&mut space));
                assert_eq!(answer, Err(Rv::OPERATION_NOT_INITIALIZED), "it was cancelled");
                continue;
            }
        }
        let mut out = Output::buffer(&mut space);
        slot.op_one_shot(s, OpKind::Digest, &data, &mut out).unwrap();
        assert_eq!(out.written(), &*expected);
    }
    for member in provider.groups()[0].status().members {
        assert!(member.last_fault.is_none(), "{}: {:?}", member.name, member.last_fault);
    }
}
