//! What is not made again: for its size, for want of room, or because nothing may be; and who is not held up by that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use ha_rig::{Act, Tokens};
use ha_token::*;

use crate::open_group::Open;
use crate::setting::*;

#[test]
fn what_grows_too_large_is_kept_no_more_and_goes_on_where_it_is() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, REPLAY);
    let (slot, s) = (setting.slot(), setting.s());
    let large = |len: usize| vec![Attribute::bytes(ck::CKA_ID, vec![7; len])];
    let create = |name| setting.create(&secret(&[3; 32], ck::CKK_GENERIC_SECRET, name));
    let (kept, grown) = (create("kept"), create("grown"));
    slot.set_attributes(s, kept, &large(50_000)).unwrap();
    slot.set_attributes(s, grown, &large(70_000)).unwrap();
    let mac = |key| setting.op(OpKind::Sign, ck::CKM_SHA256_HMAC, key, b"x");
    let before = mac(kept);
    assert_eq!(mac(grown), before);
    setting.kill(0);
    assert_eq!(mac(kept), before);
    assert!(mac(grown).is_err());
    assert_eq!((setting.named("kept"), setting.named("grown")), (vec![kept], vec![]));
}

#[test]
fn a_member_without_room_for_session_objects_is_searched_all_the_same() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, REPLAY);
    let token = setting.aes(&[Attribute::bool(ck::CKA_TOKEN, true), label("token")]);
    let objects = [0, 1].map(|_| setting.create(&data(false, b"value", "session")));
    setting.kill(0);
    setting.watches[1].refuse(Function::CreateObject, 2, Rv::DEVICE_MEMORY);
    assert_eq!(setting.named("token"), [token]);
    assert_eq!(setting.watches[1].waiting(), 0);
    // Now there is.
    assert_eq!(setting.named("session"), objects);
    setting.slot().destroy_object(setting.s(), token).unwrap();
}

#[test]
fn who_hangs_on_one_member_keeps_nobody_from_another() {
    let tokens = Tokens::new(3);
    let setting =
        Setting::new(&tokens, "session_objects = \"replay\"\nbalance = \"least-busy\"\ndeadline = \"off\"");
    let objects = [b"one", b"two"].map(|value| setting.create(&data(false, value, "session")));
    let group = &setting.open.provider.groups()[0];
    let home = group.objects.get(objects[0]).unwrap().members()[0];
    setting.kill(home);
    // The first who makes one again hangs in it.
    let (hangs, (go_on, may_go_on)) = (Arc::new(AtomicBool::new(false)), std::sync::mpsc::channel::<()>());
    let may_go_on = Arc::new(Mutex::new(may_go_on));
    for other in (0..3).filter(|m| *m != home) {
        let (hangs, may_go_on) = (Arc::clone(&hangs), Arc::clone(&may_go_on));
        let hang = move || {
            if !hangs.swap(true, Ordering::AcqRel) {
                _ = may_go_on.lock().unwrap().recv();
            }
        };
        setting.watches[other].next(Function::CreateObject, Act::First(Box::new(hang)));
    }
    let value = |object| {
        let s = setting.slot().open_session(true).unwrap();
        let fetched = setting.slot().get_attributes(s, object, &[ck::CKA_VALUE]).unwrap();
        setting.slot().close_session(s).unwrap();
        fetched[0].bytes().unwrap().to_vec()
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| value(objects[0]));
        setting.open.wait("the first one hangs", |_| hangs.load(Ordering::Acquire));
        assert_eq!(value(objects[1]), b"two");
        assert!(!first.is_finished());
        go_on.send(()).unwrap();
        assert_eq!(first.join().unwrap(), b"one");
    });
}

#[test]
fn what_cannot_be_made_again_is_lost_with_its_member() {
    let tokens = Tokens::new(2);
    // p11-kit's servers carry no key wrapping: what was given with its value can be made again there, and only that.
    (0..2).for_each(|i| tokens.serve(i));
    let open = Open::of(&tokens.config(true, REPLAY));
    let (slot, s) = (&open.slot, open.s);
    let mac = |key| {
        slot.op_init(s, OpKind::Sign, Some(&mut plain(ck::CKM_SHA256_HMAC)), key)?;
        let mut space = [0; 64];
        let mut out = Output::buffer(&mut space);
        slot.op_one_shot(s, OpKind::Sign, b"x", &mut out)?;
        Ok::<_, Rv>(out.written().to_vec())
    };
    let template = with(yes(&[ck::CKA_ENCRYPT]), &[Attribute::ulong(ck::CKA_VALUE_LEN, 32), label("made")]);
    let made = slot.generate_key(s, &mut plain(ck::CKM_AES_KEY_GEN), &template).unwrap();
    let created = slot.create_object(s, &secret(&[5; 32], ck::CKK_GENERIC_SECRET, "created")).unwrap();
    let before = mac(created).unwrap();
    tokens.kill(0);
    assert_eq!(mac(created).unwrap(), before);
    let lost = slot.op_init(s, OpKind::Encrypt, Some(&mut plain(ck::CKM_AES_ECB)), made);
    assert!(matches!(lost, Err(Rv::DEVICE_ERROR | Rv::KEY_HANDLE_INVALID)), "{lost:?}");
    assert_eq!(open.find(&vec![label("created")]), [created]);
    assert_eq!(open.find(&vec![label("made")]), []);
}

#[test]
fn with_local_it_is_lost_with_its_member_and_costs_nothing() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, "balance = \"primary\"");
    let key = hmac_key(&setting, "key");
    let all = setting.watches[0].calls();
    assert!(!all.contains(&Function::WrapKey), "{all:?}");
    assert_eq!(all.iter().filter(|f| **f == Function::GenerateKey).count(), 1, "{all:?}");
    setting.op(OpKind::Sign, ck::CKM_SHA256_HMAC, key, b"x").unwrap();
    setting.kill(0);
    let lost = setting.op(OpKind::Sign, ck::CKM_SHA256_HMAC, key, b"x");
    assert!(matches!(lost, Err(Rv::DEVICE_ERROR | Rv::KEY_HANDLE_INVALID)), "{lost:?}");
    assert_eq!(setting.named("key"), []);
}
