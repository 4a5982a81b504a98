//! The load: threads that sign and compute MACs, and verify every answer in software, outside the module.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ha_token::{
    Attribute, AttributeType, Mechanism, ObjectHandle, OpKind, Output, Result, Rv, SessionHandle, Token,
    Ulong, ck,
};
use hmac::{Hmac, KeyInit, Mac};
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use sha2::{Digest, Sha256};

use crate::objects::Objects;
use crate::plan::Draw;
use crate::record::{Answer, Kind, Operation};

/// P-256, as `CKA_EC_PARAMS` names it.
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// The marks of the three keys.
const EC: u8 = 1;
const RSA: u8 = 2;
const MAC: u8 = 3;
/// What a drill's keys are labelled, and what their identifiers and the labels of its data objects begin with.
pub(crate) const LABEL: &str = "pkcs11-ha drill";
/// How long a thread rests after a call that failed: who is refused at once does not ask as fast as it can.
const REST: Duration = Duration::from_millis(1);

/// The keys in use, and what verifies their answers.
pub struct Keys {
    /// What their identifiers begin with: an application that looks for keys by theirs does not find these.
    id: Vec<u8>,
    ec: (ObjectHandle, p256::ecdsa::VerifyingKey),
    rsa: (ObjectHandle, rsa::PublicKey),
    mac: (ObjectHandle, [u8; 32]),
}

fn flags(kinds: &[AttributeType]) -> Vec<Attribute> {
    kinds.iter().map(|k| Attribute::bool(*k, true)).collect()
}

fn read(
    slot: &dyn Token,
    s: SessionHandle,
    object: ObjectHandle,
    kinds: &[AttributeType],
) -> Result<Vec<Vec<u8>>> {
    let values = slot.get_attributes(s, object, kinds)?;
    values.iter().map(|v| v.bytes().map(<[u8]>::to_vec).ok_or(Rv::GENERAL_ERROR)).collect()
}

impl Keys {
    /// Makes them, as token objects that can be copied whatever the group's settings are.
    ///
    /// # Errors
    /// The token's answer; `CKR_GENERAL_ERROR` for a public key that is none.
    pub fn make(slot: &dyn Token, s: SessionHandle) -> Result<Keys> {
        let mut drawn = [0; 8];
        getrandom::fill(&mut drawn).map_err(|_| Rv::RANDOM_NO_RNG)?;
        let id = [LABEL.as_bytes(), &drawn].concat();
        let named = |kinds: &[AttributeType], key: u8| {
            let mut template = flags(kinds);
            template.extend([
                Attribute::bytes(ck::CKA_LABEL, LABEL.as_bytes()),
                Attribute::bytes(ck::CKA_ID, marked(&id, key)),
            ]);
            template
        };
        let private = [ck::CKA_TOKEN, ck::CKA_SIGN, ck::CKA_PRIVATE, ck::CKA_SENSITIVE, ck::CKA_EXTRACTABLE];
        let private = |key| named(&private, key);
        let public = |key| named(&[ck::CKA_TOKEN, ck::CKA_VERIFY], key);
        let mut ec_public = public(EC);
        ec_public.push(Attribute::bytes(ck::CKA_EC_PARAMS, P256));
        let mut how = Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN);
        let (ec_public, ec) = slot.generate_key_pair(s, &mut how, &ec_public, &private(EC))?;
        let point = read(slot, s, ec_public, &[ck::CKA_EC_POINT])?;
        let ec_key = ec_key(point.first().map_or(&[], Vec::as_slice)).ok_or(Rv::GENERAL_ERROR)?;

        let mut rsa_public = public(RSA);
        rsa_public.push(Attribute::ulong(ck::CKA_MODULUS_BITS, 2048));
        let mut how = Mechanism::plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN);
        let (rsa_public, rsa) = slot.generate_key_pair(s, &mut how, &rsa_public, &private(RSA))?;
        let parts = read(slot, s, rsa_public, &[ck::CKA_MODULUS, ck::CKA_PUBLIC_EXPONENT])?;
        let rsa_key = match &*parts {
            [modulus, exponent] => rsa_key(modulus, exponent).ok_or(Rv::GENERAL_ERROR)?,
            _ => return Err(Rv::GENERAL_ERROR),
        };

        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|_| Rv::RANDOM_NO_RNG)?;
        let mut template = private(MAC);
        template.extend([
            Attribute::bool(ck::CKA_VERIFY, true),
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
            Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET),
            Attribute::bytes(ck::CKA_VALUE, secret),
        ]);
        let mac = slot.create_object(s, &template)?;
        Ok(Keys { id, ec: (ec, ec_key), rsa: (rsa, rsa_key), mac: (mac, secret) })
    }

    /// The same keys as another slot over the same tokens names them.
    ///
    /// # Errors
    /// The slot's answer; `CKR_OBJECT_HANDLE_INVALID` where one is not there once.
    pub fn found_on(self, slot: &dyn Token, s: SessionHandle) -> Result<Keys> {
        let find = |key: u8, class: Ulong| {
            let id = Attribute::bytes(ck::CKA_ID, marked(&self.id, key));
            let wanted = vec![Attribute::ulong(ck::CKA_CLASS, class), id];
            slot.find_objects_init(s, &wanted)?;
            let found = slot.find_objects(s, 2)?;
            slot.find_objects_final(s)?;
            match *found {
                [one] => Ok(one),
                _ => Err(Rv::OBJECT_HANDLE_INVALID),
            }
        };
        let (ec, rsa) = (find(EC, ck::CKO_PRIVATE_KEY)?, find(RSA, ck::CKO_PRIVATE_KEY)?);
        let mac = find(MAC, ck::CKO_SECRET_KEY)?;
        let Keys { id, ec: (_, ec_key), rsa: (_, rsa_key), mac: (_, secret) } = self;
        Ok(Keys { id, ec: (ec, ec_key), rsa: (rsa, rsa_key), mac: (mac, secret) })
    }

    fn is_right(&self, kind: Kind, message: &[u8], answer: &[u8]) -> bool {
        match kind {
            Kind::Ecdsa => p256::ecdsa::Signature::from_slice(answer).is_ok_and(|signature| {
                self.ec.1.verify_prehash(&Sha256::digest(message), &signature).is_ok()
            }),
            Kind::Rsa | Kind::RsaParts => {
                let scheme = rsa::Pkcs1v15Sign::new::<rsa::sha2::Sha256>();
                self.rsa.1.verify(scheme, &Sha256::digest(message), answer).is_ok()
            }
            Kind::Data => false, // it is judged where it is read
            Kind::Hmac | Kind::HmacParts => Hmac::<Sha256>::new_from_slice(&self.mac.1)
                .is_ok_and(|mac| mac.chain_update(message).verify_slice(answer).is_ok()),
        }
    }
}

/// The identifier of one of the keys.
fn marked(id: &[u8], key: u8) -> Vec<u8> {
    [id, &[key]].concat()
}

/// From a point as `CKA_EC_POINT` has it.
fn ec_key(point: &[u8]) -> Option<p256::ecdsa::VerifyingKey> {
    // An octet string of 65 bytes.
    p256::ecdsa::VerifyingKey::from_sec1_bytes(point.strip_prefix(&[0x04, 0x41])?).ok()
}

fn rsa_key(modulus: &[u8], exponent: &[u8]) -> Option<rsa::PublicKey> {
    let number = |bytes: &[u8]| rsa::BoxedUint::from_be_slice_vartime(bytes);
    rsa::PublicKey::new(number(modulus), number(exponent)).ok()
}

/// Signs one part in one call, several as a multi-part operation.
fn sign(
    slot: &dyn Token,
    s: SessionHandle,
    mechanism: Ulong,
    key: ObjectHandle,
    parts: &[&[u8]],
) -> Result<Vec<u8>> {
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

/// The slot's answer for a message, cut into parts where the operation has several.
fn ask(
    slot: &dyn Token,
    s: SessionHandle,
    keys: &Keys,
    kind: Kind,
    message: &[u8],
    cut: usize,
) -> Result<Vec<u8>> {
    let (begin, end) = message.split_at(cut);
    match kind {
        Kind::Ecdsa => sign(slot, s, ck::CKM_ECDSA, keys.ec.0, &[&Sha256::digest(message)]),
        Kind::Rsa => sign(slot, s, ck::CKM_SHA256_RSA_PKCS, keys.rsa.0, &[message]),
        Kind::RsaParts => sign(slot, s, ck::CKM_SHA256_RSA_PKCS, keys.rsa.0, &[begin, end]),
        Kind::Data => Err(Rv::FUNCTION_NOT_SUPPORTED), // nothing is signed
        Kind::Hmac => sign(slot, s, ck::CKM_SHA256_HMAC, keys.mac.0, &[message]),
        Kind::HmacParts => sign(slot, s, ck::CKM_SHA256_HMAC, keys.mac.0, &[begin, end]),
    }
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Whether objects are made and destroyed, too.
    writes: AtomicBool,
    done: AtomicU64,
    failed: AtomicU64,
    wrong: AtomicU64,
}

/// What was done so far.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Count {
    /// Operations that ended.
    pub done: u64,
    /// Of these, those that were answered with an error.
    pub failed: u64,
    /// Those whose answer is not right.
    pub wrong: u64,
}

type Done = Arc<Mutex<Vec<Operation>>>;

/// Threads at work.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<(JoinHandle<()>, Done)>,
    objects: Vec<Arc<Mutex<Objects>>>,
    size: usize,
}

/// One operation of so many is about an object, where there are such.
const WRITES: usize = 16;

/// What one thread works with.
struct Worker {
    number: usize,
    objects: Arc<Mutex<Objects>>,
    slot: Arc<dyn Token>,
    session: SessionHandle,
    keys: Arc<Keys>,
    draw: Draw,
    began: Instant,
    done: Done,
}

impl Worker {
    fn work(mut self, shared: &Shared) {
        let mut number = 0u64;
        while !shared.stop.load(Ordering::Relaxed) {
            number += 1;
            let kind = match Kind::SIGNED.get(self.draw.below(Kind::SIGNED.len())) {
                _ if shared.writes.load(Ordering::Relaxed) && self.draw.below(WRITES) == 0 => Kind::Data,
                kind => kind.copied().unwrap_or(Kind::Ecdsa),
            };
            let message = format!("message {number} {:016x}", self.draw.number()).into_bytes();
            // No part is empty: p11-kit 0.24 carries none.
            let cut = 1 + self.draw.below(message.len() - 2);
            let begun = Instant::now();
            let (slot, s) = (&*self.slot, self.session);
            let (answer, took) = if kind == Kind::Data {
                let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
                (objects.one_more(slot, s, self.number), begun.elapsed())
            } else {
                let answer = ask(slot, s, &self.keys, kind, &message, cut);
                let took = begun.elapsed();
                (answer.map(|bytes| self.keys.is_right(kind, &message, &bytes)), took)
            };
            let answer = match answer {
                Ok(true) => Answer::Right,
                Ok(false) => Answer::Wrong,
                Err(rv) => Answer::Failed(rv),
            };
            match answer {
                Answer::Right => {}
                Answer::Wrong => _ = shared.wrong.fetch_add(1, Ordering::Relaxed),
                Answer::Failed(_) => _ = shared.failed.fetch_add(1, Ordering::Relaxed),
            }
            let operation = Operation { begun: begun - self.began, took, kind, answer };
            self.done.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
            shared.done.fetch_add(1, Ordering::Relaxed);
            if let Answer::Failed(_) = answer {
                std::thread::sleep(REST);
            }
        }
        // Where it cannot be closed the provider's end closes it.
        _ = self.slot.close_session(self.session);
    }
}

impl Load {
    /// Starts so many threads, each with a session of its own. Data objects get values of `size` bytes. Times are counted
    /// from `began`.
    ///
    /// # Errors
    /// A session cannot be opened, or a thread not started.
    pub fn start(
        slot: &Arc<dyn Token>,
        keys: Keys,
        threads: usize,
        seed: u64,
        size: usize,
        began: Instant,
    ) -> std::result::Result<Load, StartError> {
        let (keys, shared) = (Arc::new(keys), Arc::new(Shared::default()));
        let mut draw = Draw::new(!seed);
        let mut load = Load { shared, threads: Vec::new(), objects: Vec::new(), size };
        for i in 0..threads {
            let done = Done::default();
            let objects = Arc::new(Mutex::new(Objects::of_size(size)));
            load.objects.push(Arc::clone(&objects));
            let worker = Worker {
                number: i,
                objects,
                slot: Arc::clone(slot),
                session: slot.open_session(true)?,
                keys: Arc::clone(&keys),
                draw: Draw::new(draw.number()),
                began,
                done: Arc::clone(&done),
            };
            let shared = Arc::clone(&load.shared);
            let thread = std::thread::Builder::new().name(format!("drill-{i}"));
            load.threads.push((thread.spawn(move || worker.work(&shared))?, done));
        }
        Ok(load)
    }

    /// From now on objects are made and destroyed, or not any more.
    pub fn write(&self, writes: bool) {
        self.shared.writes.store(writes, Ordering::Relaxed);
    }

    /// What was done so far.
    pub fn count(&self) -> Count {
        Count {
            done: self.shared.done.load(Ordering::Relaxed),
            failed: self.shared.failed.load(Ordering::Relaxed),
            wrong: self.shared.wrong.load(Ordering::Relaxed),
        }
    }

    /// What was done since this was asked before, in no order.
    pub fn take(&self) -> Vec<Operation> {
        let taken = |done: &Done| std::mem::take(&mut *done.lock().unwrap_or_else(PoisonError::into_inner));
        self.threads.iter().flat_map(|(_, done)| taken(done)).collect()
    }

    /// Ends it: at most so long is waited for calls in flight. Answers what was not taken yet, and how many threads are in a
    /// call that does not end; and the objects of those that ended.
    pub fn end(mut self, patience: Duration) -> (Vec<Operation>, usize, Objects) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let until = Instant::now() + patience;
        while self.threads.iter().any(|(thread, _)| !thread.is_finished()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        let operations = self.take();
        let mut hung = 0;
        for (thread, _) in std::mem::take(&mut self.threads) {
            // One that panicked has done what it has done.
            hung += usize::from(!thread.is_finished() || thread.join().is_err());
        }
        let mut objects = Objects::of_size(self.size);
        // A thread that hangs in the making of one has the lock.
        for own in self.objects.iter().filter_map(|own| own.try_lock().ok()) {
            objects.add(own.clone());
        }
        (operations, hung, objects)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

/// Why the load could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No session.
    #[error("no session could be opened: {0}")]
    Session(#[from] Rv),
    /// No thread.
    #[error("no thread could be started: {0}")]
    Thread(#[from] std::io::Error),
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::signature::hazmat::PrehashSigner;

    use super::*;

    #[test]
    fn a_right_answer_is_right_and_any_other_one_is_not() {
        let own = p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
        let rsa = rsa_key(&[0xff; 256], &[1, 0, 1]).unwrap();
        let keys = Keys {
            id: Vec::new(),
            ec: (ObjectHandle(1), *own.verifying_key()),
            rsa: (ObjectHandle(2), rsa),
            mac: (ObjectHandle(3), [9; 32]),
        };
        let signature: p256::ecdsa::Signature = own.sign_prehash(&Sha256::digest(b"this")).unwrap();
        let mac =
            Hmac::<Sha256>::new_from_slice(&[9; 32]).unwrap().chain_update(b"this").finalize().into_bytes();
        for (kind, answer) in [
            (Kind::Ecdsa, signature.to_bytes().to_vec()),
            (Kind::Hmac, mac.to_vec()),
            (Kind::HmacParts, mac.to_vec()),
        ] {
            assert!(keys.is_right(kind, b"this", &answer));
            assert!(!keys.is_right(kind, b"that", &answer));
            assert!(!keys.is_right(kind, b"this", answer.get(1..).unwrap()));
            for i in 0..answer.len() {
                let mut other = answer.clone();
                other[i] ^= 1;
                assert!(!keys.is_right(kind, b"this", &other), "{kind:?} {i}");
            }
        }
        for answer in [&[] as &[u8], &[1; 256], &[0; 256]] {
            assert!(!keys.is_right(Kind::Rsa, b"this", answer));
        }
    }

    #[test]
    fn what_is_no_point_is_no_key() {
        for point in [&[] as &[u8], &[4, 65], &[4, 65, 4, 1], &[4; 67]] {
            assert!(ec_key(point).is_none());
        }
    }
}
