//! A load of signatures and MACs by several threads, each verified, each with its time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ha_core::config::Config;
use ha_core::provider::Provider;
use ha_core::replica::verifier::Verifier;
use ha_rig::{PIN, Tokens};
use ha_token::{Attribute, Mechanism, ObjectHandle, OpKind, Output, SessionHandle, Token, UserType, ck};
use sha2::Digest;

const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

pub(crate) struct Keys {
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

/// One operation of the `n`-th kind; panics when an answer is wrong.
fn operation(slot: &dyn Token, s: SessionHandle, keys: &Keys, n: usize) -> ha_token::Result<()> {
    let message = format!("message {n}").into_bytes();
    match n % 4 {
        0 => {
            let digest = sha2::Sha256::digest(&message).to_vec();
            let signature = sign(slot, s, ck::CKM_ECDSA, keys.ec.0, &[&digest])?;
            assert_eq!(
                keys.ec.1.check_signature(&message, &signature),
                Some(true),
                "a wrong ECDSA signature"
            );
        }
        1 => {
            let (a, b) = message.split_at(3);
            let signature = sign(slot, s, ck::CKM_SHA256_RSA_PKCS, keys.rsa.0, &[a, b])?;
            assert_eq!(keys.rsa.1.check_signature(&message, &signature), Some(true), "a wrong RSA signature");
        }
        2 => {
            let mac = sign(slot, s, ck::CKM_SHA256_HMAC, keys.mac, &[b"mac this"])?;
            assert_eq!(mac, keys.mac_answer, "a wrong MAC");
        }
        _ => {
            let mac = sign(slot, s, ck::CKM_SHA256_HMAC, keys.mac, &[b"mac", b" ", b"this"])?;
            assert_eq!(mac, keys.mac_answer, "a wrong MAC of parts");
        }
    }
    Ok(())
}

/// A slot with the user logged in.
pub(crate) struct Open {
    pub(crate) provider: Arc<Provider>,
    pub(crate) slot: Arc<dyn Token>,
    pub(crate) session: SessionHandle,
}

fn open(config: &str) -> Open {
    let provider = Arc::new(Provider::from_config(Config::parse(config).unwrap()).unwrap());
    let slot = Arc::clone(provider.slot(0).unwrap());
    let session = slot.open_session(true).unwrap();
    slot.login(session, UserType::User, Some(PIN.as_bytes())).unwrap();
    Open { provider, slot, session }
}

/// Keys on every token, which are then served by processes of their own, with these lines for the group.
pub(crate) fn make_and_serve(tokens: &Tokens, group: &str) -> (Open, Keys) {
    // What the log says is shown when the test fails.
    _ = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::INFO)
        .with_test_writer()
        .try_init();
    // p11-kit 0.24 carries no key-wrapping mechanism to its server: keys are made directly, then used through it.
    let direct = open(&tokens.config(false, ""));
    let mut keys = make_keys(&*direct.slot, direct.session);
    direct.provider.shutdown(Duration::from_secs(60));
    (0..tokens.count()).for_each(|i| tokens.serve(i));
    let served = open(&tokens.config(true, group));
    let (slot, s) = (&served.slot, served.session);
    for (id, handle) in [(1, &mut keys.ec.0), (2, &mut keys.rsa.0), (3, &mut keys.mac)] {
        let class = if id == 3 { ck::CKO_SECRET_KEY } else { ck::CKO_PRIVATE_KEY };
        let wanted = vec![Attribute::ulong(ck::CKA_CLASS, class), Attribute::bytes(ck::CKA_ID, [id])];
        slot.find_objects_init(s, &wanted).unwrap();
        let found = slot.find_objects(s, 10).unwrap();
        slot.find_objects_final(s).unwrap();
        assert_eq!(found.len(), 1, "key {id} is found once");
        *handle = found[0];
    }
    (served, keys)
}

/// The test runner's own limit ends this if it never comes true.
pub(crate) fn wait_until(what: &str, f: impl Fn() -> bool) {
    while !f() {
        std::thread::yield_now();
    }
    eprintln!("seen: {what}");
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    count: AtomicUsize,
    done: Mutex<Done>,
}

/// What was done.
#[derive(Default)]
pub(crate) struct Done {
    /// When each began and ended.
    pub(crate) operations: Vec<(Instant, Instant)>,
    pub(crate) failed: usize,
}

/// Threads at work.
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(open: &Open, keys: Keys, threads: usize) -> Self {
        let (keys, shared) = (Arc::new(keys), Arc::new(Shared::default()));
        let threads = (0..threads)
            .map(|first| {
                let (slot, keys, shared) = (Arc::clone(&open.slot), Arc::clone(&keys), Arc::clone(&shared));
                std::thread::spawn(move || {
                    let s = slot.open_session(false).unwrap();
                    let mut n = first;
                    while !shared.stop.load(Ordering::Relaxed) {
                        let began = Instant::now();
                        let answer = operation(&*slot, s, &keys, n);
                        let mut done = shared.done.lock().unwrap();
                        done.operations.push((began, Instant::now()));
                        if let Err(rv) = answer {
                            eprintln!("failed: {rv}");
                            done.failed += 1;
                        }
                        drop(done);
                        shared.count.fetch_add(1, Ordering::Relaxed);
                        n += 1;
                    }
                })
            })
            .collect();
        Load { shared, threads }
    }

    /// Waits for so many more operations.
    pub(crate) fn more(&self, count: usize) {
        let target = self.shared.count.load(Ordering::Relaxed) + count;
        wait_until("more operations", || self.shared.count.load(Ordering::Relaxed) >= target);
    }

    pub(crate) fn end(self) -> Done {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        std::mem::take(&mut *self.shared.done.lock().unwrap())
    }
}
