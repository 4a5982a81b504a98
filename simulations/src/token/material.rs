//! Keys as cryptography wants them: read from objects, used, and encoded for travel.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use ha_rig::RSA_PARTS;
use ha_token::{Attribute, Template, Ulong, ck};
use rsa::BoxedUint;
use rsa::traits::PublicKeyParts;

use super::curve::Curve;
use super::der::{INTEGER, OCTETS, OID, Reader, SEQUENCE, element, trim, unsigned};
use super::hash::Hash;
use super::object::Object;
use crate::random::Random;

const OID_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const OID_EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const OID_ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const ED25519: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];
/// The same by name, which is what SoftHSM says of a private key, whatever it was asked for.
const ED25519_NAME: &[u8] = b"\x13\x0cedwards25519";

/// How a private key signs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scheme {
    /// PKCS#1 v1.5, of the data as it is or of its digest.
    RsaPkcs(Option<Hash>),
    /// Of the data as it is or of its digest.
    Ecdsa(Option<Hash>),
    Eddsa,
}

/// How data is enciphered with RSA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Padding {
    Pkcs,
    /// With this digest, in the mask as well.
    Oaep(Hash),
}

/// The parts of an RSA key, without zeros in front.
pub(super) struct RsaKey {
    pub(super) modulus: Vec<u8>,
    pub(super) exponent: Vec<u8>,
    /// Private exponent, primes, their exponents, coefficient; nothing for a public key.
    private: Vec<Vec<u8>>,
}

fn number(bytes: &[u8]) -> BoxedUint {
    BoxedUint::from_be_slice_vartime(bytes)
}

/// What was enciphered with a public key.
struct Enciphered {
    modulus: Vec<u8>,
    padding: Padding,
    sealed: Vec<u8>,
    data: Vec<u8>,
}

/// What was enciphered of late, whatever the history: to decipher it again was a fifth of a history's time, and only gives
/// what is known.
static ENCIPHERED: Mutex<VecDeque<Enciphered>> = Mutex::new(VecDeque::new());

/// Histories that run side by side encipher a few each before they decipher them.
const MOST_ENCIPHERED: usize = 64;

impl RsaKey {
    /// From the content of a PKCS#1 private key.
    pub(super) fn from_pkcs1(content: &[u8]) -> Option<Self> {
        let mut reader = Reader(content);
        reader.number()?;
        let mut next = || reader.number().map(<[u8]>::to_vec);
        Some(RsaKey {
            modulus: next()?,
            exponent: next()?,
            private: (0..6).map(|_| next()).collect::<Option<_>>()?,
        })
    }

    fn of(object: &Object) -> Option<Self> {
        let mut parts = RSA_PARTS.iter().map(|kind| trim(object.bytes(*kind)).to_vec());
        let key = RsaKey {
            modulus: parts.next()?,
            exponent: parts.next()?,
            private: if object.class() == ck::CKO_PRIVATE_KEY { parts.collect() } else { Vec::new() },
        };
        (!key.modulus.is_empty()).then_some(key)
    }

    fn attributes(&self) -> Template {
        let values = [&self.modulus, &self.exponent].into_iter().chain(&self.private);
        RSA_PARTS.iter().zip(values).map(|(kind, value)| Attribute::bytes(*kind, value.as_slice())).collect()
    }

    /// How many bytes the modulus has.
    pub(super) fn size(&self) -> usize {
        self.modulus.len()
    }

    fn public(&self) -> Option<rsa::PublicKey> {
        rsa::PublicKey::new(number(&self.modulus), number(&self.exponent)).ok()
    }

    fn secret(&self) -> Option<rsa::PrivateKey> {
        let [d, primes @ ..] = self.private.as_slice() else { return None };
        let primes: Vec<BoxedUint> =
            primes.iter().take(2).filter(|p| !p.is_empty()).map(|p| number(p)).collect();
        let primes = if primes.len() == 2 { primes } else { Vec::new() };
        rsa::PrivateKey::from_components(number(&self.modulus), number(&self.exponent), number(d), primes)
            .ok()
    }

    fn padded(&self, number: &BoxedUint) -> Vec<u8> {
        let bytes = number.to_be_bytes();
        let bytes = trim(&bytes);
        [vec![0; self.size().saturating_sub(bytes.len())].as_slice(), bytes].concat()
    }

    /// The public operation on one block.
    fn raise(&self, block: &[u8]) -> Option<Vec<u8>> {
        let key = self.public()?;
        let block = BoxedUint::from_be_slice(block, key.n_bits_precision()).ok()?;
        if block >= **key.n() {
            return None;
        }
        rsa::hazmat::rsa_encrypt(&key, &block).ok().map(|out| self.padded(&out))
    }

    /// The private operation on one block.
    fn lower(&self, block: &[u8]) -> Option<Vec<u8>> {
        let key = self.secret()?;
        let block = BoxedUint::from_be_slice(block, key.n_bits_precision()).ok()?;
        rsa::hazmat::rsa_decrypt::<Random>(None, &key, &block).ok().map(|out| self.padded(&out))
    }

    /// What a PKCS#1 v1.5 signature of this is made of.
    fn block(&self, content: &[u8]) -> Option<Vec<u8>> {
        let fill = self.size().checked_sub(content.len() + 3).filter(|n| *n >= 8)?;
        Some([&[0, 1], vec![0xff; fill].as_slice(), &[0], content].concat())
    }

    /// Enciphers with the public key.
    pub(super) fn encrypt(&self, padding: Padding, data: &[u8], random: &mut Random) -> Option<Vec<u8>> {
        let sealed = self.encipher(padding, data, random)?;
        let mut lately = ENCIPHERED.lock().unwrap_or_else(PoisonError::into_inner);
        if lately.len() == MOST_ENCIPHERED {
            lately.pop_front();
        }
        lately.push_back(Enciphered {
            modulus: self.modulus.clone(),
            padding,
            sealed: sealed.clone(),
            data: data.to_vec(),
        });
        Some(sealed)
    }

    fn encipher(&self, padding: Padding, data: &[u8], random: &mut Random) -> Option<Vec<u8>> {
        match padding {
            Padding::Pkcs => {
                let fill = self.size().checked_sub(data.len() + 3).filter(|n| *n >= 8)?;
                let mut noise = random.bytes(fill);
                noise.iter_mut().filter(|b| **b == 0).for_each(|b| *b = 1);
                self.raise(&[&[0, 2], noise.as_slice(), &[0], data].concat())
            }
            Padding::Oaep(hash) => {
                let key = self.public()?;
                match hash {
                    Hash::Sha1 => key.oaep_encrypt_with_rng::<sha1::Sha1, _>(random, data),
                    Hash::Sha224 => key.oaep_encrypt_with_rng::<sha2::Sha224, _>(random, data),
                    Hash::Sha256 => key.oaep_encrypt_with_rng::<sha2::Sha256, _>(random, data),
                    Hash::Sha384 => key.oaep_encrypt_with_rng::<sha2::Sha384, _>(random, data),
                    Hash::Sha512 => key.oaep_encrypt_with_rng::<sha2::Sha512, _>(random, data),
                }
                .ok()
            }
        }
    }

    /// Deciphers with the private key; `None` for what was not enciphered for it.
    pub(super) fn decrypt(&self, padding: Padding, data: &[u8]) -> Option<Vec<u8>> {
        if data.len() != self.size() || self.private.is_empty() {
            return None;
        }
        {
            let lately = ENCIPHERED.lock().unwrap_or_else(PoisonError::into_inner);
            let same =
                |e: &&Enciphered| e.sealed == data && e.modulus == self.modulus && e.padding == padding;
            if let Some(known) = lately.iter().rev().find(same) {
                return Some(known.data.clone());
            }
        }
        self.decipher(padding, data)
    }

    fn decipher(&self, padding: Padding, data: &[u8]) -> Option<Vec<u8>> {
        match padding {
            Padding::Pkcs => {
                let block = self.lower(data)?;
                let rest = block.strip_prefix(&[0, 2])?;
                let end = rest.iter().position(|b| *b == 0).filter(|n| *n >= 8)?;
                rest.get(end + 1..).map(<[u8]>::to_vec)
            }
            Padding::Oaep(hash) => {
                let key = self.secret()?;
                match hash {
                    Hash::Sha1 => key.oaep_decrypt::<sha1::Sha1>(data),
                    Hash::Sha224 => key.oaep_decrypt::<sha2::Sha224>(data),
                    Hash::Sha256 => key.oaep_decrypt::<sha2::Sha256>(data),
                    Hash::Sha384 => key.oaep_decrypt::<sha2::Sha384>(data),
                    Hash::Sha512 => key.oaep_decrypt::<sha2::Sha512>(data),
                }
                .ok()
            }
        }
    }
}

/// The point that a DER octet string holds, or the bytes themselves where they are none.
pub(super) fn bare_point(bytes: &[u8]) -> &[u8] {
    let mut reader = Reader(bytes);
    match reader.take(OCTETS) {
        Some(point) if reader.0.is_empty() => point,
        _ => bytes,
    }
}

/// A key of a pair.
pub(super) enum Key {
    /// Public or private.
    Rsa(RsaKey),
    /// The point is computed when it is wanted of a private key, and the scalar is empty in a public one.
    Ec {
        curve: Curve,
        scalar: Vec<u8>,
        point: Vec<u8>,
    },
    Ed25519 {
        seed: Option<[u8; 32]>,
        point: [u8; 32],
    },
}

impl Key {
    /// The key that a public or private key object holds; `None` for one that cannot be computed with.
    pub(super) fn of(object: &Object) -> Option<Self> {
        let private = object.class() == ck::CKO_PRIVATE_KEY;
        let params = object.bytes(ck::CKA_EC_PARAMS);
        match object.key_type() {
            ck::CKK_RSA => RsaKey::of(object).map(Key::Rsa),
            ck::CKK_EC if private => Key::of_scalar(Curve::of(params)?, object.bytes(ck::CKA_VALUE)),
            ck::CKK_EC => Some(Key::Ec {
                curve: Curve::of(params)?,
                scalar: Vec::new(),
                point: bare_point(object.bytes(ck::CKA_EC_POINT)).to_vec(),
            }),
            ck::CKK_EC_EDWARDS if private => Key::of_seed(object.bytes(ck::CKA_VALUE).try_into().ok()?),
            ck::CKK_EC_EDWARDS => {
                let point = bare_point(object.bytes(ck::CKA_EC_POINT)).try_into().ok()?;
                Some(Key::Ed25519 { seed: None, point })
            }
            _ => None,
        }
    }

    fn of_scalar(curve: Curve, scalar: &[u8]) -> Option<Self> {
        let scalar = curve.is_scalar(scalar).then(|| trim(scalar).to_vec())?;
        Some(Key::Ec { curve, scalar, point: Vec::new() })
    }

    fn of_seed(seed: [u8; 32]) -> Option<Self> {
        let point = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key().to_bytes();
        Some(Key::Ed25519 { seed: Some(seed), point })
    }

    /// A new private key on the curve that the parameters name.
    pub(super) fn generate(params: &[u8], random: &mut Random) -> Option<Self> {
        if matches!(params, ED25519 | ED25519_NAME) {
            let mut seed = [0; 32];
            random.fill(&mut seed);
            return Key::of_seed(seed);
        }
        let curve = Curve::of(params)?;
        // Nearly every number of that width is a scalar.
        (0..64).find_map(|_| Key::of_scalar(curve, &random.bytes(curve.size())))
    }

    /// The attributes that hold a private key's value.
    pub(super) fn private_attributes(&self) -> Template {
        match self {
            Key::Rsa(key) => key.attributes(),
            Key::Ec { curve, scalar, .. } => vec![
                Attribute::bytes(ck::CKA_EC_PARAMS, curve.params()),
                Attribute::bytes(ck::CKA_VALUE, scalar.as_slice()),
            ],
            Key::Ed25519 { seed, .. } => vec![
                Attribute::bytes(ck::CKA_EC_PARAMS, ED25519_NAME),
                Attribute::bytes(ck::CKA_VALUE, seed.unwrap_or_default()),
            ],
        }
    }

    /// The attributes that hold a public key's value, beyond what it is generated from.
    pub(super) fn public_attributes(&self) -> Template {
        match self {
            Key::Rsa(key) => vec![
                Attribute::bytes(ck::CKA_MODULUS, key.modulus.as_slice()),
                Attribute::bytes(ck::CKA_PUBLIC_EXPONENT, key.exponent.as_slice()),
            ],
            Key::Ec { .. } => vec![Attribute::bytes(ck::CKA_EC_POINT, element(OCTETS, &self.identity()))],
            Key::Ed25519 { point, .. } => vec![Attribute::bytes(ck::CKA_EC_POINT, element(OCTETS, point))],
        }
    }

    /// What identifies the pair: the modulus, or the bare public point.
    pub(super) fn identity(&self) -> Vec<u8> {
        match self {
            Key::Rsa(key) => key.modulus.clone(),
            Key::Ec { curve, scalar, point } if point.is_empty() => curve.point(scalar).unwrap_or_default(),
            Key::Ec { point, .. } => point.clone(),
            Key::Ed25519 { point, .. } => point.to_vec(),
        }
    }

    /// `CKA_KEY_TYPE`.
    pub(super) fn key_type(&self) -> Ulong {
        match self {
            Key::Rsa(_) => ck::CKK_RSA,
            Key::Ec { .. } => ck::CKK_EC,
            Key::Ed25519 { .. } => ck::CKK_EC_EDWARDS,
        }
    }

    /// How many bytes its signatures have.
    pub(super) fn signature_len(&self) -> usize {
        match self {
            Key::Rsa(key) => key.size(),
            Key::Ec { curve, .. } => 2 * curve.size(),
            Key::Ed25519 { .. } => 64,
        }
    }

    /// Signs; `None` for data that cannot be signed so. ECDSA is that of RFC 6979.
    pub(super) fn sign(&self, scheme: Scheme, data: &[u8]) -> Option<Vec<u8>> {
        match (self, scheme) {
            (Key::Rsa(key), Scheme::RsaPkcs(hash)) => key.lower(&key.block(&content(hash, data))?),
            (Key::Ec { curve, scalar, .. }, Scheme::Ecdsa(hash)) => curve.sign(scalar, &digest(hash, data)),
            (Key::Ed25519 { seed, .. }, Scheme::Eddsa) => {
                use ed25519_dalek::Signer;
                Some(ed25519_dalek::SigningKey::from_bytes(seed.as_ref()?).sign(data).to_bytes().to_vec())
            }
            _ => None,
        }
    }

    /// Whether the signature is the key's.
    pub(super) fn verify(&self, scheme: Scheme, data: &[u8], signature: &[u8]) -> bool {
        match (self, scheme) {
            (Key::Rsa(key), Scheme::RsaPkcs(hash)) => {
                let block = key.block(&content(hash, data));
                block.is_some() && key.raise(signature) == block
            }
            (Key::Ec { curve, point, .. }, Scheme::Ecdsa(hash)) => {
                curve.verify(point, &digest(hash, data), signature).is_some()
            }
            (Key::Ed25519 { point, .. }, Scheme::Eddsa) => {
                let key = ed25519_dalek::VerifyingKey::from_bytes(point);
                let signature = ed25519_dalek::Signature::from_slice(signature);
                matches!((key, signature), (Ok(k), Ok(s)) if ed25519_dalek::Verifier::verify(&k, data, &s).is_ok())
            }
            _ => false,
        }
    }

    /// As PKCS#8 (RFC 5208, RFC 5915, RFC 8410).
    pub(super) fn encode(&self) -> Vec<u8> {
        let (algorithm, key) = match self {
            Key::Rsa(key) => {
                let values = [&key.modulus, &key.exponent].into_iter().chain(&key.private);
                let numbers: Vec<u8> = values.flat_map(|v| unsigned(v)).collect();
                let algorithm = [element(OID, OID_RSA), vec![0x05, 0x00]].concat();
                (algorithm, element(SEQUENCE, &[unsigned(&[0]), numbers].concat()))
            }
            Key::Ec { curve, scalar, .. } => {
                // Without the public point, which SoftHSM does not keep with a private key.
                let parts = [element(INTEGER, &[1]), element(OCTETS, &curve.widen(scalar))];
                let algorithm = [element(OID, OID_EC), curve.params().to_vec()].concat();
                (algorithm, element(SEQUENCE, &parts.concat()))
            }
            Key::Ed25519 { seed, .. } => {
                (element(OID, OID_ED25519), element(OCTETS, &seed.unwrap_or_default()))
            }
        };
        let parts = [unsigned(&[0]), element(SEQUENCE, &algorithm), element(OCTETS, &key)];
        element(SEQUENCE, &parts.concat())
    }

    /// From PKCS#8. What follows the structure is padding.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut whole = Reader(Reader(bytes).take(SEQUENCE)?);
        whole.number()?;
        let mut algorithm = Reader(whole.take(SEQUENCE)?);
        let key = whole.take(OCTETS)?;
        match algorithm.take(OID)? {
            OID_RSA => RsaKey::from_pkcs1(Reader(key).take(SEQUENCE)?).map(Key::Rsa),
            OID_EC => {
                let curve = Curve::of(algorithm.0)?;
                let mut inner = Reader(Reader(key).take(SEQUENCE)?);
                inner.number()?;
                Key::of_scalar(curve, inner.take(OCTETS)?)
            }
            OID_ED25519 => Key::of_seed(Reader(key).take(OCTETS)?.try_into().ok()?),
            _ => None,
        }
    }
}

fn content(hash: Option<Hash>, data: &[u8]) -> Vec<u8> {
    hash.map_or_else(|| data.to_vec(), |h| h.info(&h.digest(data)))
}

fn digest(hash: Option<Hash>, data: &[u8]) -> Vec<u8> {
    hash.map_or_else(|| data.to_vec(), |h| h.digest(data))
}

#[cfg(test)]
mod tests {
    use super::super::curve::{P256, P384};
    use super::*;

    #[test]
    fn keys_come_back_from_their_encoding() {
        let mut random = Random::new(3);
        let rsa = super::super::pool::RsaPool::default().draw(1024, &mut random).map(Key::Rsa);
        let keys = [
            rsa,
            Key::generate(P256, &mut random),
            Key::generate(P384, &mut random),
            Key::generate(ED25519, &mut random),
        ];
        for key in keys {
            let key = key.expect("a key");
            let back = Key::decode(&key.encode()).expect("the key");
            assert_eq!(back.identity(), key.identity());
            let scheme = match key {
                Key::Rsa(_) => Scheme::RsaPkcs(Some(Hash::Sha256)),
                Key::Ec { .. } => Scheme::Ecdsa(None),
                Key::Ed25519 { .. } => Scheme::Eddsa,
            };
            let signature = back.sign(scheme, b"message").expect("a signature");
            assert_eq!(signature.len(), key.signature_len());
            let key = match key {
                Key::Ec { curve, scalar, .. } => {
                    let point = curve.point(&scalar).expect("a point");
                    Key::Ec { curve, scalar: Vec::new(), point }
                }
                key => key,
            };
            assert!(key.verify(scheme, b"message", &signature));
            assert!(!key.verify(scheme, b"another", &signature));
        }
    }

    #[test]
    fn what_rsa_enciphers_it_deciphers_and_nothing_else() {
        let mut random = Random::new(4);
        let key = super::super::pool::RsaPool::default().draw(1024, &mut random).expect("a key");
        for padding in [Padding::Pkcs, Padding::Oaep(Hash::Sha1), Padding::Oaep(Hash::Sha256)] {
            let mut sealed = key.encrypt(padding, b"secret", &mut random).expect("sealed");
            assert_eq!(key.decipher(padding, &sealed).as_deref(), Some(&b"secret"[..]));
            assert_eq!(key.decrypt(padding, &sealed).as_deref(), Some(&b"secret"[..]));
            sealed[70] ^= 1;
            assert_ne!(key.decrypt(padding, &sealed).as_deref(), Some(&b"secret"[..]));
        }
    }
}
