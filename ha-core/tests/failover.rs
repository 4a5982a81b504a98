//! A member dies under load and comes back: no call fails, no answer is wrong (guarantees G3 and G4).
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ha_core::config::Config;
use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_core::replica::verifier::Verifier;
use ha_rig::{PIN, Tokens};
use ha_token::{Attribute, Mechanism, ObjectHandle, OpKind, Output, SessionHandle, Token, UserType, ck};

const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

struct Keys {
    ec: (ObjectHandle, Verifier),
    rsa: (ObjectHandle, Verifier),
    mac: ObjectHandle,
    mac_answer: Vec<u8>,
}

fn usage(kinds: &[u64]) -> Vec<Attribute> {
    kinds.iter().map(|k| Attribute::bool(*k, true)).collect()
}

fn make_keys(slot: &dyn Token, s: SessionHandle) -> Keys {
    let token = Attribute::bool(ck::CKA_TOKEN, true);
    let mut public = usage(&[ck::CKA_TOKEN, ck::CKA_VERIFY]);
    public.push(Attribute::bytes(ck::CKA_EC_PARAMS, P256));
    let mut private = usage(&[ck::CKA_TOKEN, ck::CKA_SIGN, ck::CKA_PRIVATE]);
    private.push(Attribute::bytes(ck::CKA_ID, [1]));
    let (p, ec) =
        slot.generate_key_pair(s, &mut Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN), &public, &private).unwrap();
    let point = slot.get_attributes(s, p, &[ck::CKA_EC_POINT]).unwrap()[0].bytes().unwrap().to_vec();
    let ec_verifier = Verifier::from_public(ck::CKK_EC, None, None, Some(P256), Some(&point)).unwrap();
    let mut public = usage(&[ck::CKA_TOKEN, ck::CKA_VERIFY]);
    public.push(Attribute::ulong(ck::CKA_MODULUS_BITS, 2048));
    private.pop();
    private.push(Attribute::bytes(ck::CKA_ID, [2]));
    let (p, rsa) = slot
        .generate_key_pair(s, &mut Mechanism::plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN), &public, &private)
        .unwrap();
    let parts = slot.get_attributes(s, p, &[ck::CKA_MODULUS, ck::CKA_PUBLIC_EXPONENT]).unwrap();
    let rsa_verifier =
        Verifier::from_public(ck::CKK_RSA, parts[0].bytes(), parts[1].bytes(), None, None).unwrap();
    let mut secret = usage(&[ck::CKA_SIGN, ck::CKA_VERIFY]);
    secret.extend([
        token,
        Attribute::ulong(ck::CKA_VALUE_LEN, 32),
        Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET),
        Attribute::bytes(ck::CKA_ID, [3]),
    ]);
    let mac = slot.generate_key(s, &mut Mechanism::plain(ck::CKM_GENERIC_SECRET_KEY_GEN), &secret).unwrap();
    let mac_answer = sign(slot, s, ck::CKM_SHA256_HMAC, mac, &[b"mac this"]).unwrap();
    Keys { ec: (ec, ec_verifier), rsa: (rsa, rsa_verifier), mac, mac_answer }
}

/// Signs one part in one call, several as a multi-part operation.
fn sign(
    slot: &dyn Token,
    s: SessionHandle,
    mechanism: u64,
    key: ObjectHandle,
    parts: &[&[u8]],
) -> ha_token::Result<Vec<u8>> {
    slot.op_init(s, OpKind::Sign, Some(&mut Mechanism::plain(mechanism)), key)?;
    let mut space = [0u8; 512];
    let mut out = Output::buffer(&mut space);
    match parts {
        [one] => slot.op_one_shot(s, OpKind::Sign, one, &mut out)?,
        parts => {
            for part in parts {
                slot.op_update(s, OpKind::Sign, part, &mut Output::query())?;
            }
            slot.op_final(s, OpKind::Sign, &mut out)?;
        }
    }
    Ok(out.written().to_vec())
}

/// One round of every kind of operation; panics when an answer is wrong, answers what failed.
fn round(slot: &dyn Token, s: SessionHandle, keys: &Keys, n: usize) -> ha_token::Result<usize> {
    let message = format!("message {n}").into_bytes();
    use sha2::Digest;
    let digest = sha2::Sha256::digest(&message).to_vec();
    let signature = sign(slot, s, ck::CKM_ECDSA, keys.ec.0, &[&digest])?;
    assert_eq!(keys.ec.1.check_signature(&message, &signature), Some(true), "a wrong ECDSA signature");
    let (a, b) = message.split_at(3);
    let signature = sign(slot, s, ck::CKM_SHA256_RSA_PKCS, keys.rsa.0, &[a, b])?;
    assert_eq!(keys.rsa.1.check_signature(&message, &signature), Some(true), "a wrong RSA signature");
    let mac = sign(slot, s, ck::CKM_SHA256_HMAC, keys.mac, &[b"mac this"])?;
    assert_eq!(mac, keys.mac_answer, "a wrong MAC");
    let mac = sign(slot, s, ck::CKM_SHA256_HMAC, keys.mac, &[b"mac", b" ", b"this"])?;
    assert_eq!(mac, keys.mac_answer, "a wrong MAC of parts");
    Ok(4)
}

fn open(tokens: &Tokens, served: bool) -> (Arc<Provider>, Arc<dyn Token>, SessionHandle) {
    let provider =
        Arc::new(Provider::from_config(Config::parse(&tokens.config(served, "")).unwrap()).unwrap());
    let slot = Arc::clone(provider.slot(0).unwrap());
    let s = slot.open_session(true).unwrap();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    (provider, slot, s)
}

fn wait_until(what: &str, f: impl Fn() -> bool) {
    // The test runner's own limit ends this if it never comes true.
    while !f() {
        std::thread::yield_now();
    }
    eprintln!("seen: {what}");
}

#[test]
fn either_member_dies_under_eight_threads_and_comes_back() {
    // What the log says is shown when the test fails.
    _ = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::INFO)
        .with_test_writer()
        .try_init();
    let tokens = Tokens::new(2);
    let (provider, slot, s) = open(&tokens, false);
    let mut keys = make_keys(&*slot, s);
    provider.shutdown(std::time::Duration::from_secs(60));
    // p11-kit 0.24 carries no key-wrapping mechanism to its server: keys are made directly, then used through it.
    tokens.serve(0);
    tokens.serve(1);
    let (provider, slot, s) = open(&tokens, true);
    for (id, handle) in [(1, &mut keys.ec.0), (2, &mut keys.rsa.0), (3, &mut keys.mac)] {
        let class = if id == 3 { ck::CKO_SECRET_KEY } else { ck::CKO_PRIVATE_KEY };
        slot.find_objects_init(
            s,
            &vec![Attribute::ulong(ck::CKA_CLASS, class), Attribute::bytes(ck::CKA_ID, [id])],
        )
        .unwrap();
        let found = slot.find_objects(s, 10).unwrap();
        slot.find_objects_final(s).unwrap();
        assert_eq!(found.len(), 1, "key {id} is found once");
        *handle = found[0];
    }
    let keys = Arc::new(keys);
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let failed = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..8)
        .map(|t| {
            let (slot, keys, stop, done, failed) = (
                Arc::clone(&slot),
                Arc::clone(&keys),
                Arc::clone(&stop),
                Arc::clone(&done),
                Arc::clone(&failed),
            );
            std::thread::spawn(move || {
                let s = slot.open_session(false).unwrap();
                let mut n = t;
                while !stop.load(Ordering::Relaxed) {
                    match round(&*slot, s, &keys, n) {
                        Ok(count) => drop(done.fetch_add(count, Ordering::Relaxed)),
                        Err(rv) => {
                            eprintln!("failed: {rv}");
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    n += 8;
                }
            })
        })
        .collect();
    let more = |count: usize| {
        let target = done.load(Ordering::Relaxed) + count;
        wait_until("more operations", || done.load(Ordering::Relaxed) >= target);
    };
    let group = &provider.groups()[0];
    more(200);
    for victim in [0, 1] {
        tokens.kill(victim);
        wait_until("the victim is not used", || group.members[victim].state() != State::Up);
        more(200);
        tokens.serve(victim);
        wait_until("the victim is back", || group.members[victim].state() == State::Up);
        more(200);
    }
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(failed.load(Ordering::Relaxed), 0, "of {} operations", done.load(Ordering::Relaxed));
    assert!(provider.shutdown(std::time::Duration::from_secs(60)).is_empty());
}
