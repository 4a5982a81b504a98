//! The software side of the proof that copies are one key: what a copy must answer to be believed.
//!
//! Nothing here calls a token, and nothing secret is kept: a verifier is a public key, or a nonce with the answer that
//! the right key gives.

mod curve;
mod digested;
mod encoded;
mod signature;
mod stored;

use ha_token::{Attribute, AttributeType, Params, Template, Ulong, ck};
use rsa::traits::PublicKeyParts as _;
use sha2::{Digest, Sha256};

pub(crate) use curve::{Curve, possible_points};
pub use digested::Digested;
use signature::Hash;
pub(crate) use signature::{Hasher, Judgement, PublicKey, Scheme};

/// Stands before every nonce that is signed, so that a proof's signature is good for nothing else.
const DOMAIN: &[u8] = b"pkcs11-ha proof v1\0";

/// What a copy of a key must answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verifier {
    /// An RSA public key.
    Rsa {
        /// Big-endian.
        modulus: Vec<u8>,
        /// Big-endian.
        exponent: Vec<u8>,
    },
    /// A public key on a Weierstrass curve.
    Ec {
        /// `CKA_EC_PARAMS`.
        params: Vec<u8>,
        /// The point, uncompressed, without an OCTET STRING around it.
        point: Vec<u8>,
    },
    /// An Ed25519 public key.
    Ed25519 {
        /// The point.
        point: Vec<u8>,
    },
    /// A DSA public key, each number as the token has it. It is not computed with here: the token verifies.
    Dsa {
        /// `CKA_PRIME`, `CKA_SUBPRIME`, `CKA_BASE`, `CKA_VALUE`.
        numbers: [Vec<u8>; 4],
    },
    /// A private key, by the secret that it and a throw-away peer agree on.
    Agreement {
        /// The mechanism.
        mechanism: Ulong,
        /// The peer's public value, as the mechanism takes it.
        peer: Vec<u8>,
        /// SHA-256 of the secret's last bytes.
        digest: Vec<u8>,
    },
    /// A key that may be extracted, by what wrapping it under the group key gives with a deterministic mechanism.
    Wrapped {
        /// The mechanism.
        mechanism: Ulong,
        /// SHA-256 of the wrapped key.
        digest: Vec<u8>,
    },
    /// A secret key, by one answer of it.
    Secret {
        /// What the key is made to do.
        method: SecretMethod,
        /// Bytes of the key; 0 where the token does not say.
        length: Ulong,
        /// What it was given.
        nonce: Vec<u8>,
        /// What it answered.
        answer: Vec<u8>,
    },
    /// An object whose content can be read.
    Content {
        /// SHA-256 of it.
        digest: Vec<u8>,
    },
    /// Several verifiers of one key: the first that shows something is believed. Members differ in what they can be
    /// asked, and a key's uses may be taken away later.
    Several(Vec<Verifier>),
}

/// How a secret key is challenged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SecretMethod {
    /// A MAC over the nonce, by this mechanism.
    Mac(Ulong),
    /// The nonce encrypted as one block, by this mechanism.
    Encrypt(Ulong),
    /// The nonce decrypted as one block, by this mechanism.
    Decrypt(Ulong),
    /// A throw-away key with the nonce's value wrapped, by this deterministic mechanism.
    Wrap(Ulong),
    /// The nonce signed, by this deterministic mechanism: for a private key whose public part is not to be had.
    Sign(Ulong),
    /// The nonce and the key's value digested (`C_DigestKey`), by this mechanism: it tells every value from every other.
    Digest(Ulong),
    /// The nonce encrypted as a throw-away key derived from this one, by this mechanism.
    Derive(Ulong),
}

impl SecretMethod {
    /// The mechanism.
    pub fn mechanism(self) -> Ulong {
        self.code().1
    }

    /// The attribute that allows it; `None` for what every key may do.
    pub fn usage(self) -> Option<AttributeType> {
        Some(match self {
            SecretMethod::Mac(_) | SecretMethod::Sign(_) => ck::CKA_SIGN,
            SecretMethod::Encrypt(_) => ck::CKA_ENCRYPT,
            SecretMethod::Decrypt(_) => ck::CKA_DECRYPT,
            SecretMethod::Wrap(_) => ck::CKA_WRAP,
            SecretMethod::Derive(_) => ck::CKA_DERIVE,
            SecretMethod::Digest(_) => return None,
        })
    }

    /// What it is given for a nonce.
    pub fn question(self, nonce: &[u8; 32]) -> Vec<u8> {
        match self {
            SecretMethod::Mac(_) | SecretMethod::Sign(_) | SecretMethod::Digest(_) => {
                challenge_message(nonce)
            }
            SecretMethod::Encrypt(_)
            | SecretMethod::Decrypt(_)
            | SecretMethod::Wrap(_)
            | SecretMethod::Derive(_) => nonce.to_vec(),
        }
    }

    /// Whether equal answers mean equal keys. An HMAC's key may be padded with zeros, or digested, and answers the same.
    pub fn is_exact(self) -> bool {
        match self {
            SecretMethod::Mac(m) => matches!(m, ck::CKM_AES_CMAC | ck::CKM_DES3_CMAC),
            _ => true,
        }
    }
}

/// The message that is signed for a nonce.
pub fn challenge_message(nonce: &[u8; 32]) -> Vec<u8> {
    [DOMAIN, nonce].concat()
}

/// DER: Ed25519's object identifier, and the printable name that some tokens use.
const ED25519: [&[u8]; 2] = [&[0x06, 0x03, 0x2b, 0x65, 0x70], b"\x13\x0cedwards25519"];

impl Verifier {
    /// From a DSA public key's attributes: `CKA_PRIME`, `CKA_SUBPRIME`, `CKA_BASE`, `CKA_VALUE`.
    pub fn from_dsa(numbers: [Option<&[u8]>; 4]) -> Option<Self> {
        let [Some(p), Some(q), Some(g), Some(y)] = numbers else { return None };
        Some(Verifier::Dsa { numbers: [unsigned(p)?, unsigned(q)?, unsigned(g)?, unsigned(y)?] })
    }

    /// From what was found of one key; `None` for nothing.
    pub fn of(mut found: Vec<Verifier>) -> Option<Self> {
        if found.len() > 1 { Some(Verifier::Several(found)) } else { found.pop() }
    }

    /// The public key as a throw-away object, for a token that is to verify with it.
    pub fn public_object(&self) -> Option<Template> {
        let mut template = vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_PUBLIC_KEY),
            Attribute::bool(ck::CKA_TOKEN, false),
            Attribute::bool(ck::CKA_PRIVATE, false),
            Attribute::bool(ck::CKA_VERIFY, true),
        ];
        match self {
            Verifier::Ec { params, point } => {
                template.push(Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_EC));
                template.push(Attribute::bytes(ck::CKA_EC_PARAMS, params.as_slice()));
                template.push(Attribute::bytes(ck::CKA_EC_POINT, octet_string(point)?));
            }
            Verifier::Dsa { numbers: [prime, subprime, base, value] } => {
                template.push(Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_DSA));
                template.push(Attribute::bytes(ck::CKA_PRIME, prime.as_slice()));
                template.push(Attribute::bytes(ck::CKA_SUBPRIME, subprime.as_slice()));
                template.push(Attribute::bytes(ck::CKA_BASE, base.as_slice()));
                template.push(Attribute::bytes(ck::CKA_VALUE, value.as_slice()));
            }
            _ => return None,
        }
        Some(template)
    }

    /// From a public key's attributes. `CKA_EC_POINT` may or may not be wrapped in an OCTET STRING.
    pub fn from_public(
        key_type: Ulong,
        modulus: Option<&[u8]>,
        exponent: Option<&[u8]>,
        params: Option<&[u8]>,
        point: Option<&[u8]>,
    ) -> Option<Self> {
        match key_type {
            ck::CKK_RSA => {
                Some(Verifier::Rsa { modulus: unsigned(modulus?)?, exponent: unsigned(exponent?)? })
            }
            ck::CKK_EC => {
                let (params, point) = (params?.to_vec(), point?);
                let point = point_of(point, Curve::of(&params).map(Curve::point_len)).to_vec();
                Some(Verifier::Ec { params, point })
            }
            ck::CKK_EC_EDWARDS if params.is_none_or(|p| ED25519.contains(&p)) => {
                let point = point_of(point?, Some(32)).to_vec();
                (point.len() == 32).then_some(Verifier::Ed25519 { point })
            }
            _ => None,
        }
    }

    /// Of readable content.
    pub fn of_content<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut digest = Sha256::new();
        for part in parts {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        Verifier::Content { digest: digest.finalize().to_vec() }
    }

    /// What `check` shows: the same for all copies of one key. For a secret key it tells one proof from another only.
    pub fn fingerprint(&self) -> [u8; 32] {
        match self {
            Verifier::Content { digest } => {
                digest.as_slice().try_into().unwrap_or_else(|_| Sha256::digest(digest).into())
            }
            other => Sha256::digest(other.to_bytes()).into(),
        }
    }

    /// Whether it is what the object is, and not one of many answers that it gives: two of these can be compared.
    pub fn is_identity(&self) -> bool {
        matches!(
            self,
            Verifier::Rsa { .. } | Verifier::Ec { .. } | Verifier::Ed25519 { .. } | Verifier::Content { .. }
        )
    }

    /// Whether `signature` is this key's over `message`, made by this mechanism. `None` for a mechanism or a key that cannot
    /// be computed with here, which says nothing of the signature.
    pub fn check_signature_by(&self, mechanism: Ulong, message: &[u8], signature: &[u8]) -> Option<bool> {
        match Scheme::of(mechanism, &Params::None) {
            Some(scheme) if scheme.hash().is_some() => self.check_by(scheme, message, signature),
            _ => self.check_signature(message, signature),
        }
    }

    /// Whether `signature` is this key's over `message`. RSA: PKCS#1 v1.5 with SHA-256. EC: r and s of equal length over
    /// the digest that fits the curve. Ed25519: over the message itself. `None` for a key that cannot be computed with
    /// here, which says nothing of the signature.
    pub fn check_signature(&self, message: &[u8], signature: &[u8]) -> Option<bool> {
        match self {
            Verifier::Rsa { .. } => self.check_by(Scheme::Pkcs1(Some(Hash::Sha256)), message, signature),
            Verifier::Ec { params, .. } => {
                self.check_by(Scheme::Ecdsa(None), &Curve::of(params)?.digest(message), signature)
            }
            Verifier::Ed25519 { .. } => self.check_by(Scheme::Ed25519, message, signature),
            Verifier::Dsa { .. }
            | Verifier::Agreement { .. }
            | Verifier::Wrapped { .. }
            | Verifier::Secret { .. }
            | Verifier::Content { .. }
            | Verifier::Several(_) => None,
        }
    }

    fn check_by(&self, scheme: Scheme, message: &[u8], signature: &[u8]) -> Option<bool> {
        if matches!(self, Verifier::Several(_)) {
            return None;
        }
        match PublicKey::of(self)?.judge(scheme, message, signature) {
            Judgement::Right => Some(true),
            Judgement::Wrong => Some(false),
            Judgement::CannotTell => None,
        }
    }

    /// Encrypts a challenge to an RSA key (PKCS#1 v1.5), its padding drawn from `seed`. `None` for another key, and for one
    /// that is too short.
    pub fn encrypt_challenge(&self, seed: &[u8; 32], plain: &[u8]) -> Option<Sealed> {
        let Verifier::Rsa { modulus, exponent } = self else { return None };
        let key = rsa_key(modulus, exponent)?;
        let block = padded(key.size(), &mut Stream::new(seed), plain)?;
        let sealed = rsa::hazmat::rsa_encrypt(&key, &rsa::BoxedUint::from_be_slice_vartime(&block)).ok()?;
        // A number, which may have fewer bytes or more than the modulus.
        let sealed = sealed.to_be_bytes();
        let extra = sealed.len().saturating_sub(key.size());
        let missing = key.size().saturating_sub(sealed.len());
        let sealed = [vec![0; missing].as_slice(), sealed.get(extra..)?].concat();
        Some(Sealed { block, sealed })
    }

    /// A key agreement of this key with a throw-away one. `None` for a key that cannot be computed with here.
    pub fn agree(&self, seed: &[u8; 32]) -> Option<Agreed> {
        let Verifier::Ec { params, point } = self else { return None };
        let (peer, scalar, secret) = curve::agree(Curve::of(params)?, point, &mut Stream::new(seed))?;
        let throw_away = encoded::ec_private_key(params, &scalar, &peer)?;
        Some(Agreed { peer, throw_away, secret })
    }
}

/// A challenge that only the private key opens.
pub struct Sealed {
    /// What was encrypted: the challenge with its padding, as long as the modulus (RFC 8017, section 7.2.1).
    pub block: Vec<u8>,
    /// That, encrypted.
    pub sealed: Vec<u8>,
}

/// A key agreement with a throw-away key.
pub struct Agreed {
    /// The throw-away key's public point.
    pub peer: Vec<u8>,
    /// The throw-away pair, as a DER `ECPrivateKey`.
    pub throw_away: Vec<u8>,
    /// The secret that must come out.
    pub secret: Vec<u8>,
}

/// A message with the padding of PKCS#1 v1.5 for encryption. The crate that does the rest keeps its own to itself, and with
/// it anybody can encrypt the same again.
fn padded(size: usize, stream: &mut Stream, message: &[u8]) -> Option<Vec<u8>> {
    let length = size.checked_sub(message.len() + 3).filter(|length| *length >= 8)?;
    let mut padding = vec![0; length];
    stream.fill(&mut padding);
    for byte in &mut padding {
        while *byte == 0 {
            stream.fill(std::slice::from_mut(byte));
        }
    }
    Some([&[0, 2], padding.as_slice(), &[0], message].concat())
}

fn rsa_key(modulus: &[u8], exponent: &[u8]) -> Option<rsa::PublicKey> {
    let number = |bytes: &[u8]| rsa::BoxedUint::from_be_slice_vartime(bytes);
    // From what a SHA-256 signature needs: whether a key is strong enough is not the question here.
    rsa::PublicKey::new_with_size_limits(number(modulus), number(exponent), 512..=16384).ok()
}

/// A number without leading zeros; `None` for zero.
fn unsigned(bytes: &[u8]) -> Option<Vec<u8>> {
    let start = bytes.iter().position(|b| *b != 0)?;
    bytes.get(start..).map(<[u8]>::to_vec)
}

/// The DER OCTET STRING that PKCS#11 wants around a point; `None` for what is longer than any point.
fn octet_string(point: &[u8]) -> Option<Vec<u8>> {
    let length = u8::try_from(point.len()).ok()?;
    let head: &[u8] = if length < 0x80 { &[0x04, length] } else { &[0x04, 0x81, length] };
    Some([head, point].concat())
}

/// The point itself, which may or may not be wrapped: one of this length is not, whatever it begins with.
fn point_of(point: &[u8], length: Option<usize>) -> &[u8] {
    if Some(point.len()) == length { point } else { bare_point(point) }
}

/// The point itself, out of the DER OCTET STRING that PKCS#11 wants around it.
pub(crate) fn bare_point(point: &[u8]) -> &[u8] {
    match point {
        [0x04, 0x81, len, rest @ ..] if usize::from(*len) == rest.len() => rest,
        [0x04, len, rest @ ..] if *len < 0x80 && usize::from(*len) == rest.len() => rest,
        _ => point,
    }
}

/// Bytes drawn from a seed: padding and throw-away keys of challenges, which the seed's maker alone can foresee.
struct Stream {
    seed: [u8; 32],
    counter: u64,
}

impl Stream {
    fn new(seed: &[u8; 32]) -> Self {
        Stream { seed: *seed, counter: 0 }
    }

    fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(32) {
            let block =
                Sha256::new().chain_update(self.seed).chain_update(self.counter.to_be_bytes()).finalize();
            self.counter += 1;
            for (to, from) in chunk.iter_mut().zip(block) {
                *to = from;
            }
        }
    }
}

impl rsa::rand_core::TryRng for Stream {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes);
        Ok(u32::from_ne_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        Ok(u64::from_ne_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        self.fill(out);
        Ok(())
    }
}

impl rsa::rand_core::TryCryptoRng for Stream {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_point_that_looks_like_a_wrapped_one_is_bare() {
        const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
        // Its first byte is 4, as always, and its second one, by chance, the number of those that follow.
        let bare = (1..u8::MAX).flat_map(|a| (0..u8::MAX).map(move |b| (a, b))).find_map(|(a, b)| {
            let mut scalar = [1; 32];
            (scalar[0], scalar[1]) = (a, b);
            let key = p256::ecdsa::SigningKey::from_slice(&scalar).unwrap();
            let point = key.verifying_key().to_sec1_point(false).as_bytes().to_vec();
            (usize::from(point[1]) + 2 == point.len()).then_some(point)
        });
        let bare = bare.unwrap();
        let wrapped = [&[4, 65], bare.as_slice()].concat();
        for given in [&bare, &wrapped] {
            let verifier = Verifier::from_public(ck::CKK_EC, None, None, Some(P256), Some(given));
            assert_eq!(verifier, Some(Verifier::Ec { params: P256.to_vec(), point: bare.clone() }));
        }
        let bare = [&[4, 30], [7; 30].as_slice()].concat();
        for given in [&bare, &[&[4, 32], bare.as_slice()].concat()] {
            let verifier = Verifier::from_public(ck::CKK_EC_EDWARDS, None, None, None, Some(given));
            assert_eq!(verifier, Some(Verifier::Ed25519 { point: bare.clone() }));
        }
    }

    #[test]
    fn a_signature_of_the_key_is_believed_and_of_no_other_message() {
        use p521::ecdsa::signature::hazmat::PrehashSigner;
        let params = vec![0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23];
        let mut scalar = [7u8; 66];
        scalar[0] = 0;
        let key = p521::ecdsa::SigningKey::from_slice(&scalar).unwrap();
        let point = key.verifying_key().to_sec1_point(false).as_bytes().to_vec();
        let wrapped = [&[0x04, 0x81, point.len() as u8], point.as_slice()].concat();
        let verifier = Verifier::from_public(ck::CKK_EC, None, None, Some(&params), Some(&wrapped)).unwrap();
        let message = challenge_message(&[1; 32]);
        let signature: p521::ecdsa::Signature = key.sign_prehash(&sha2::Sha512::digest(&message)).unwrap();
        assert_eq!(verifier.check_signature(&message, &signature.to_bytes()), Some(true));
        assert_eq!(
            verifier.check_signature(&challenge_message(&[2; 32]), &signature.to_bytes()),
            Some(false)
        );
        let agreed = verifier.agree(&[9; 32]).unwrap();
        let peer = p521::PublicKey::from_sec1_bytes(&agreed.peer).unwrap();
        let mine = p521::SecretKey::from_slice(&scalar).unwrap();
        assert_eq!(
            p521::ecdh::diffie_hellman(mine.to_nonzero_scalar(), peer.as_affine())
                .raw_secret_bytes()
                .to_vec(),
            agreed.secret
        );
    }

    #[test]
    fn a_sealed_challenge_is_opened_by_its_key_alone() {
        // Of the second length a block is a bit shorter than its bytes.
        for bits in [1024, 1025] {
            let pair = rsa::PrivateKey::new(&mut Stream::new(&[7; 32]), bits).unwrap();
            let verifier = Verifier::Rsa {
                modulus: unsigned(&pair.n().to_be_bytes()).unwrap(),
                exponent: unsigned(&pair.e().to_be_bytes()).unwrap(),
            };
            for seed in 0..20 {
                let Sealed { block, sealed } = verifier.encrypt_challenge(&[seed; 32], b"nonce").unwrap();
                assert_eq!((block.len(), sealed.len()), (pair.size(), pair.size()));
                assert_eq!(pair.decrypt(rsa::Pkcs1v15Encrypt, &sealed).unwrap(), b"nonce");
            }
            assert!(verifier.encrypt_challenge(&[1; 32], &[1; 119]).is_none(), "no room for the padding");
        }
    }
}
