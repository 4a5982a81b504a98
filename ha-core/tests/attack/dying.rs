//! A member dies in the middle: the call is answered as if it had not (guarantee G4).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_rig::{Act, Tokens};
use ha_token::{
    Attribute, CombinedKind, Function, Mechanism, ObjectHandle, OpKind, Output, Params, Result, Rv, Ulong, ck,
};

use crate::open_group::{Open, private};
use crate::setting::{all_up, failing, id, named, plain, secret, yes};

const SECRET: Ulong = ck::CKO_SECRET_KEY;

fn key(open: &Open, class: Ulong, n: u8) -> Result<ObjectHandle> {
    let (slot, s) = (&open.slot, open.s);
    slot.find_objects_init(s, &vec![Attribute::ulong(ck::CKA_CLASS, class), id(n)])?;
    let found = slot.find_objects(s, 10)?;
    slot.find_objects_final(s)?;
    assert_eq!(found.len(), 1, "key {n}");
    Ok(found[0])
}

/// In parts, each after a size query.
fn parts(open: &Open, kind: OpKind, mechanism: Ulong, key: ObjectHandle, parts: &[&[u8]]) -> Result<Vec<u8>> {
    let (slot, s) = (&open.slot, open.s);
    slot.op_init(s, kind, Some(&mut plain(mechanism)), key)?;
    let (mut all, mut space) = (Vec::new(), [0; 512]);
    for part in parts {
        slot.op_update(s, kind, part, &mut Output::query())?;
        if kind == OpKind::Encrypt {
            let mut out = Output::buffer(&mut space);
            slot.op_update(s, kind, part, &mut out)?;
            all.extend_from_slice(out.written());
        }
    }
    slot.op_final(s, kind, &mut Output::query())?;
    let mut out = Output::buffer(&mut space);
    slot.op_final(s, kind, &mut out)?;
    all.extend_from_slice(out.written());
    Ok(all)
}

fn wrapped_key(open: &Open) -> Result<(ObjectHandle, Vec<u8>)> {
    let (wrapping, wrapped) = (key(open, SECRET, 2)?, key(open, SECRET, 1)?);
    let mut space = [0; 64];
    let mut out = Output::buffer(&mut space);
    let mut mechanism = plain(ck::CKM_AES_KEY_WRAP);
    open.slot.wrap_key(open.s, &mut mechanism, wrapping, wrapped, &mut Output::query())?;
    open.slot.wrap_key(open.s, &mut mechanism, wrapping, wrapped, &mut out)?;
    Ok((wrapping, out.written().to_vec()))
}

type Work = fn(&Open) -> Result<Vec<u8>>;

const WORKS: [(&str, Work); 9] = [
    ("encrypt", |o| {
        parts(o, OpKind::Encrypt, ck::CKM_AES_ECB, key(o, SECRET, 1)?, &[&[1; 16], &[2; 32], &[3; 16]])
    }),
    ("mac", |o| parts(o, OpKind::Sign, ck::CKM_SHA256_HMAC, key(o, SECRET, 3)?, &[b"one", b"two", b"three"])),
    ("digest", |o| parts(o, OpKind::Digest, ck::CKM_SHA256, ObjectHandle(0), &[b"one", b"two", b"three"])),
    ("rsa", |o| {
        let key = key(o, ck::CKO_PRIVATE_KEY, 4)?;
        parts(o, OpKind::Sign, ck::CKM_SHA256_RSA_PKCS, key, &[b"one", b"two"])
    }),
    ("wrap", |o| Ok(wrapped_key(o)?.1)),
    ("one shot, asked for its size, with too little space", |o| {
        let (slot, s) = (&o.slot, o.s);
        slot.op_init(s, OpKind::Sign, Some(&mut plain(ck::CKM_SHA256_HMAC)), key(o, SECRET, 3)?)?;
        let (mut query, mut space) = (Output::query(), [0; 64]);
        slot.op_one_shot(s, OpKind::Sign, b"one", &mut query)?;
        assert_eq!(query.len(), 32);
        let small = slot.op_one_shot(s, OpKind::Sign, b"one", &mut Output::buffer(&mut space[..5]));
        assert_eq!(small, Err(Rv::BUFFER_TOO_SMALL));
        let mut out = Output::buffer(&mut space);
        slot.op_one_shot(s, OpKind::Sign, b"one", &mut out)?;
        Ok(out.written().to_vec())
    }),
    ("digest and encrypt at once", |o| {
        let (slot, s, encrypting) = (&o.slot, o.s, key(o, SECRET, 1)?);
        slot.op_init(s, OpKind::Encrypt, Some(&mut plain(ck::CKM_AES_ECB)), encrypting)?;
        slot.op_init(s, OpKind::Digest, Some(&mut plain(ck::CKM_SHA256)), ObjectHandle(0))?;
        let (mut all, mut space) = (Vec::new(), [0; 64]);
        for n in 0..2 {
            let mut out = Output::buffer(&mut space);
            slot.combined_update(s, CombinedKind::DigestEncrypt, &[n; 32], &mut out)?;
            all.extend_from_slice(out.written());
        }
        for kind in [OpKind::Digest, OpKind::Encrypt] {
            let mut out = Output::buffer(&mut space);
            slot.op_final(s, kind, &mut out)?;
            all.extend_from_slice(out.written());
        }
        Ok(all)
    }),
    ("verify", |o| {
        let (slot, s, key) = (&o.slot, o.s, key(o, SECRET, 3)?);
        let mac = parts(o, OpKind::Sign, ck::CKM_SHA256_HMAC, key, &[b"one"])?;
        slot.op_init(s, OpKind::Verify, Some(&mut plain(ck::CKM_SHA256_HMAC)), key)?;
        slot.op_update(s, OpKind::Verify, b"on", &mut Output::query())?;
        slot.op_update(s, OpKind::Verify, b"e", &mut Output::query())?;
        slot.verify_final(s, &mac)?;
        Ok(mac)
    }),
    ("attributes, size and random numbers", |o| {
        let key = key(o, SECRET, 1)?;
        o.slot.generate_random(o.s, &mut [0; 8])?;
        o.slot.seed_random(o.s, &[1; 8])?;
        o.slot.object_size(o.s, key)?;
        let told = o.slot.get_attributes(o.s, key, &[ck::CKA_VALUE_LEN, ck::CKA_ID])?;
        Ok(told[0].bytes().unwrap().to_vec())
    }),
];

#[test]
fn the_first_member_dies_at_every_call_to_it() {
    let tokens = Tokens::in_memory(2);
    {
        let o = Open::new(&tokens, "");
        let aes = |template| o.slot.generate_key(o.s, &mut plain(ck::CKM_AES_KEY_GEN), &template).unwrap();
        aes(secret(1, &[yes(ck::CKA_ENCRYPT), yes(ck::CKA_EXTRACTABLE)]));
        aes(secret(2, &[yes(ck::CKA_WRAP), yes(ck::CKA_UNWRAP)]));
        let mac = secret(3, &[yes(ck::CKA_SIGN), yes(ck::CKA_VERIFY)]);
        o.slot.generate_key(o.s, &mut plain(ck::CKM_GENERIC_SECRET_KEY_GEN), &mac).unwrap();
        let public = vec![yes(ck::CKA_TOKEN), Attribute::ulong(ck::CKA_MODULUS_BITS, 1024), id(4)];
        let private = vec![yes(ck::CKA_TOKEN), yes(ck::CKA_SIGN), yes(ck::CKA_PRIVATE), id(4)];
        let mut generate = plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN);
        o.slot.generate_key_pair(o.s, &mut generate, &public, &private).unwrap();
    }
    for (what, work) in WORKS {
        let right = work(&Open::new(&tokens, "")).unwrap();
        for n in 1.. {
            let (open, watches) = failing(&tokens, "balance = \"primary\"");
            watches[0].dies_after.store(n, Ordering::SeqCst);
            assert_eq!(work(&open).as_ref(), Ok(&right), "{what}, dead at call {n}");
            if !watches[0].dead.load(Ordering::SeqCst) {
                assert!(n > 3);
                break;
            }
        }
    }
}

#[test]
fn never_a_rename_says_invalid_handle_when_a_member_dies() {
    let tokens = Tokens::new(2);
    Open::new(&tokens, "").ec_pair(1).unwrap();
    let (open, watches) = failing(&tokens, "balance = \"primary\"");
    let key = open.find(&private(1))[0];
    watches[0].dead.store(true, Ordering::SeqCst);
    assert_eq!(open.slot.set_attributes(open.s, key, &named(b"renamed")), Ok(()));
}

#[test]
fn never_one_failed_trial_makes_every_key_unwrappable() {
    let tokens = Tokens::new(2);
    Open::new(&tokens, "").ec_pair(1).unwrap();
    for (n, rv) in [(2, Rv::DEVICE_MEMORY), (4, Rv::GENERAL_ERROR), (6, Rv::FUNCTION_FAILED)] {
        let (open, watches) = failing(&tokens, "balance = \"primary\"");
        // The token is out of memory for a moment, in which the first key is made.
        watches[0].refuse(Function::UnwrapKey, 8, rv);
        _ = open.ec_pair(n);
        watches[0].clear();
        assert_eq!(open.ec_pair(n + 1).err(), None, "{rv}");
    }
}

#[test]
fn never_a_key_is_not_made_when_the_member_that_made_it_dies_and_enough_others_are_up() {
    let tokens = Tokens::new(3);
    let (open, watches) = failing(&tokens, "balance = \"primary\"\nmin_copies = 2");
    open.ec_pair(1).unwrap();
    let first = Arc::clone(&watches[0]);
    watches[0]
        .next(Function::WrapKey, Act::First(Box::new(move || first.dead.store(true, Ordering::SeqCst))));
    assert_eq!(open.ec_pair(2).err(), None);
}

#[test]
fn never_a_session_key_is_not_made_when_its_member_dies_right_after_making_it() {
    let tokens = Tokens::new(2);
    let (open, watches) = failing(&tokens, "balance = \"primary\"");
    let first = Arc::clone(&watches[0]);
    watches[0]
        .next(Function::GenerateKey, Act::Then(Box::new(move || first.dead.store(true, Ordering::SeqCst))));
    let template = vec![Attribute::ulong(ck::CKA_VALUE_LEN, 32), yes(ck::CKA_ENCRYPT)];
    let made = open.slot.generate_key(open.s, &mut plain(ck::CKM_AES_KEY_GEN), &template);
    assert_eq!(made.err(), None);
}

#[test]
fn what_nobody_here_can_read_is_tried_on_one_member() {
    let tokens = Tokens::new(2);
    let (open, watches) = failing(&tokens, "balance = \"primary\"\nvendor_mechanisms = [0x80000123]");
    let (slot, s) = (&open.slot, open.s);
    let aes = secret(1, &[yes(ck::CKA_WRAP), yes(ck::CKA_SIGN), yes(ck::CKA_EXTRACTABLE)]);
    let key = slot.generate_key(s, &mut plain(ck::CKM_AES_KEY_GEN), &aes).unwrap();
    let opaque =
        || Mechanism { kind: 0x8000_0123, params: Params::Bytes(b"opaque".to_vec().into_boxed_slice()) };
    let generate = |token: bool| {
        let template = vec![Attribute::bool(ck::CKA_TOKEN, token), Attribute::ulong(ck::CKA_VALUE_LEN, 32)];
        slot.generate_key(s, &mut opaque(), &template).map(drop)
    };
    let pair = |token: bool| {
        let half = vec![Attribute::bool(ck::CKA_TOKEN, token)];
        slot.generate_key_pair(s, &mut opaque(), &half, &half).map(drop)
    };
    let mut space = [0; 64];
    type Try<'a> = (Function, Box<dyn FnMut() -> Result<()> + 'a>);
    let tries: [Try<'_>; 6] = [
        (Function::SignInit, Box::new(|| slot.op_init(s, OpKind::Sign, Some(&mut opaque()), key))),
        (
            Function::WrapKey,
            Box::new(|| slot.wrap_key(s, &mut opaque(), key, key, &mut Output::buffer(&mut space))),
        ),
        (Function::GenerateKey, Box::new(|| generate(false))),
        (Function::GenerateKey, Box::new(|| generate(true))),
        (Function::GenerateKeyPair, Box::new(|| pair(false))),
        (Function::GenerateKeyPair, Box::new(|| pair(true))),
    ];
    for (function, mut call) in tries {
        all_up(&open);
        watches.iter().for_each(|w| drop(w.calls()));
        watches[0].next(function, Act::Answer(Rv::DEVICE_ERROR));
        assert_eq!(call(), Err(Rv::DEVICE_ERROR), "{function}");
        let asked = watches.iter().map(|w| w.calls().iter().filter(|f| **f == function).count());
        assert_eq!(asked.collect::<Vec<_>>(), [1, 0], "{function}");
    }
}
