//! Whether a signature is a key's: any mechanism that is computed with here, over a message, or over its digest where the
//! message came in parts.

use ha_token::{Params, Ulong, ck};
use rsa::BoxedUint;
use rsa::pss::{Signature, VerifyingKey};
use rsa::signature::hazmat::PrehashVerifier as _;
use rsa::traits::PublicKeyParts as _;
use sha2::Digest as _;

use super::curve::{self, Curve};
use super::{Verifier, rsa_key};

macro_rules! hashes {
    ($($name:ident: $type:ty, $mechanism:ident, $mgf:ident;)*) => {
        /// A digest that signatures are made over.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Hash {
            $($name,)*
        }

        /// A digest of what has been heard so far.
        #[derive(Clone)]
        pub(crate) enum Hasher {
            $($name($type),)*
        }

        impl Hash {
            #[cfg(test)]
            const ALL: &[Hash] = &[$(Hash::$name,)*];

            /// By its own mechanism, as parameters name it.
            fn of(mechanism: Ulong) -> Option<Self> {
                match mechanism {
                    $(ck::$mechanism => Some(Hash::$name),)*
                    _ => None,
                }
            }

            /// The mask generation function of PSS that uses it.
            fn mgf(self) -> Ulong {
                match self {
                    $(Hash::$name => ck::$mgf,)*
                }
            }

            /// Nothing heard yet.
            pub(crate) fn start(self) -> Hasher {
                match self {
                    $(Hash::$name => Hasher::$name(<$type>::new()),)*
                }
            }
        }

        impl Hasher {
            /// Hears one part more.
            pub(crate) fn hear(&mut self, part: &[u8]) {
                match self {
                    $(Hasher::$name(hasher) => hasher.update(part),)*
                }
            }

            /// The digest of all that was heard.
            pub(crate) fn finish(self) -> Vec<u8> {
                match self {
                    $(Hasher::$name(hasher) => hasher.finalize().to_vec(),)*
                }
            }
        }

        /// Calls a macro with the digest's type.
        macro_rules! by_hash {
            ($hash:expr, $do:ident) => {
                match $hash {
                    $(Hash::$name => $do!($type),)*
                }
            };
        }
    };
}

hashes! {
    Sha1: sha1::Sha1, CKM_SHA_1, CKG_MGF1_SHA1;
    Sha224: sha2::Sha224, CKM_SHA224, CKG_MGF1_SHA224;
    Sha256: sha2::Sha256, CKM_SHA256, CKG_MGF1_SHA256;
    Sha384: sha2::Sha384, CKM_SHA384, CKG_MGF1_SHA384;
    Sha512: sha2::Sha512, CKM_SHA512, CKG_MGF1_SHA512;
    Sha3Of224: sha3::Sha3_224, CKM_SHA3_224, CKG_MGF1_SHA3_224;
    Sha3Of256: sha3::Sha3_256, CKM_SHA3_256, CKG_MGF1_SHA3_256;
    Sha3Of384: sha3::Sha3_384, CKM_SHA3_384, CKG_MGF1_SHA3_384;
    Sha3Of512: sha3::Sha3_512, CKM_SHA3_512, CKG_MGF1_SHA3_512;
}

impl Hash {
    /// The digest of a message.
    fn digest(self, message: &[u8]) -> Vec<u8> {
        let mut hasher = self.start();
        hasher.hear(message);
        hasher.finish()
    }
}

/// How a signature is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scheme {
    /// PKCS#1 v1.5 of a message's digest; without a digest of the input as it is, which ought to be a `DigestInfo`.
    Pkcs1(Option<Hash>),
    /// PSS of a message.
    Pss(Hash),
    /// PSS of a message's digest.
    PssOfDigest(Hash),
    /// The private operation of RSA and nothing else.
    RawRsa,
    /// ECDSA of a message's digest; without a digest of the input as it is, as much of it as fits the curve.
    Ecdsa(Option<Hash>),
    /// Pure Ed25519.
    Ed25519,
}

impl Scheme {
    /// By mechanism and parameter; `None` for what is not computed with here.
    pub(crate) fn of(mechanism: Ulong, params: &Params) -> Option<Self> {
        use Hash::*;
        Some(match mechanism {
            ck::CKM_RSA_PKCS => Scheme::Pkcs1(None),
            ck::CKM_SHA1_RSA_PKCS => Scheme::Pkcs1(Some(Sha1)),
            ck::CKM_SHA224_RSA_PKCS => Scheme::Pkcs1(Some(Sha224)),
            ck::CKM_SHA256_RSA_PKCS => Scheme::Pkcs1(Some(Sha256)),
            ck::CKM_SHA384_RSA_PKCS => Scheme::Pkcs1(Some(Sha384)),
            ck::CKM_SHA512_RSA_PKCS => Scheme::Pkcs1(Some(Sha512)),
            ck::CKM_SHA3_224_RSA_PKCS => Scheme::Pkcs1(Some(Sha3Of224)),
            ck::CKM_SHA3_256_RSA_PKCS => Scheme::Pkcs1(Some(Sha3Of256)),
            ck::CKM_SHA3_384_RSA_PKCS => Scheme::Pkcs1(Some(Sha3Of384)),
            ck::CKM_SHA3_512_RSA_PKCS => Scheme::Pkcs1(Some(Sha3Of512)),
            ck::CKM_RSA_X_509 => Scheme::RawRsa,
            ck::CKM_RSA_PKCS_PSS => Scheme::PssOfDigest(pss_hash(params)?),
            ck::CKM_SHA1_RSA_PKCS_PSS => pss(Sha1, params)?,
            ck::CKM_SHA224_RSA_PKCS_PSS => pss(Sha224, params)?,
            ck::CKM_SHA256_RSA_PKCS_PSS => pss(Sha256, params)?,
            ck::CKM_SHA384_RSA_PKCS_PSS => pss(Sha384, params)?,
            ck::CKM_SHA512_RSA_PKCS_PSS => pss(Sha512, params)?,
            ck::CKM_SHA3_224_RSA_PKCS_PSS => pss(Sha3Of224, params)?,
            ck::CKM_SHA3_256_RSA_PKCS_PSS => pss(Sha3Of256, params)?,
            ck::CKM_SHA3_384_RSA_PKCS_PSS => pss(Sha3Of384, params)?,
            ck::CKM_SHA3_512_RSA_PKCS_PSS => pss(Sha3Of512, params)?,
            ck::CKM_ECDSA => Scheme::Ecdsa(None),
            ck::CKM_ECDSA_SHA1 => Scheme::Ecdsa(Some(Sha1)),
            ck::CKM_ECDSA_SHA224 => Scheme::Ecdsa(Some(Sha224)),
            ck::CKM_ECDSA_SHA256 => Scheme::Ecdsa(Some(Sha256)),
            ck::CKM_ECDSA_SHA384 => Scheme::Ecdsa(Some(Sha384)),
            ck::CKM_ECDSA_SHA512 => Scheme::Ecdsa(Some(Sha512)),
            ck::CKM_ECDSA_SHA3_224 => Scheme::Ecdsa(Some(Sha3Of224)),
            ck::CKM_ECDSA_SHA3_256 => Scheme::Ecdsa(Some(Sha3Of256)),
            ck::CKM_ECDSA_SHA3_384 => Scheme::Ecdsa(Some(Sha3Of384)),
            ck::CKM_ECDSA_SHA3_512 => Scheme::Ecdsa(Some(Sha3Of512)),
            // With a parameter, also one without a context, it is Ed25519ctx or Ed25519ph, which is another signature;
            // and not every token heeds it.
            ck::CKM_EDDSA if *params == Params::None => Scheme::Ed25519,
            _ => return None,
        })
    }

    /// What a message is digested with before it is signed; `None` where the input itself is.
    pub(crate) fn hash(self) -> Option<Hash> {
        match self {
            Scheme::Pkcs1(hash) | Scheme::Ecdsa(hash) => hash,
            Scheme::Pss(hash) => Some(hash),
            Scheme::PssOfDigest(_) | Scheme::RawRsa | Scheme::Ed25519 => None,
        }
    }

    /// A number below 64, for a scheme that signs any message whatever: there is a right signature for each input.
    pub(crate) fn number(self) -> Option<u32> {
        match self {
            Scheme::Pkcs1(Some(hash)) => Some(hash as u32),
            Scheme::Pss(hash) => Some(16 + hash as u32),
            Scheme::Ecdsa(Some(hash)) => Some(32 + hash as u32),
            Scheme::Ed25519 => Some(48),
            Scheme::Pkcs1(None) | Scheme::PssOfDigest(_) | Scheme::RawRsa | Scheme::Ecdsa(None) => None,
        }
    }
}

fn pss(hash: Hash, params: &Params) -> Option<Scheme> {
    (pss_hash(params)? == hash).then_some(Scheme::Pss(hash))
}

/// The digest in `CK_RSA_PKCS_PSS_PARAMS`, where the mask is generated with the same.
fn pss_hash(params: &Params) -> Option<Hash> {
    const LEN: usize = size_of::<Ulong>();
    let Params::Bytes(bytes) = params else { return None };
    let (hash, rest) = bytes.split_first_chunk::<LEN>()?;
    let (mgf, _salt_len) = rest.split_first_chunk::<LEN>()?;
    let hash = Hash::of(Ulong::from_ne_bytes(*hash))?;
    (hash.mgf() == Ulong::from_ne_bytes(*mgf)).then_some(hash)
}

/// What was found of a signature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Judgement {
    /// It is the key's, over this input.
    Right,
    /// It is not.
    Wrong,
    /// It cannot be computed here.
    CannotTell,
}

impl From<bool> for Judgement {
    fn from(right: bool) -> Self {
        if right { Judgement::Right } else { Judgement::Wrong }
    }
}

/// A public key, ready to be computed with.
pub(crate) enum PublicKey {
    Rsa(Box<rsa::PublicKey>),
    Ec { curve: Curve, point: Vec<u8> },
    Ed25519(ed25519_dalek::VerifyingKey),
}

impl PublicKey {
    /// Whether a verifier is, or has, a public key, whether or not that can be computed with here.
    pub(crate) fn is_in(verifier: &Verifier) -> bool {
        match verifier {
            Verifier::Rsa { .. } | Verifier::Ec { .. } | Verifier::Ed25519 { .. } | Verifier::Dsa { .. } => {
                true
            }
            Verifier::Several(all) => all.iter().any(PublicKey::is_in),
            Verifier::Agreement { .. }
            | Verifier::Wrapped { .. }
            | Verifier::Secret { .. }
            | Verifier::Content { .. } => false,
        }
    }

    /// The one in a verifier, if there is one that can be computed with here.
    pub(crate) fn of(verifier: &Verifier) -> Option<Self> {
        match verifier {
            Verifier::Rsa { modulus, exponent } => {
                Some(PublicKey::Rsa(Box::new(rsa_key(modulus, exponent)?)))
            }
            Verifier::Ec { params, point } => {
                // By what is no point of the curve every signature would be wrong.
                let curve = Curve::of(params).filter(|curve| curve::is_point(*curve, point))?;
                Some(PublicKey::Ec { curve, point: point.clone() })
            }
            Verifier::Ed25519 { point } => {
                let point = point.as_slice().try_into().ok()?;
                ed25519_dalek::VerifyingKey::from_bytes(point).ok().map(PublicKey::Ed25519)
            }
            Verifier::Several(all) => all.iter().find_map(PublicKey::of),
            Verifier::Dsa { .. }
            | Verifier::Agreement { .. }
            | Verifier::Wrapped { .. }
            | Verifier::Secret { .. }
            | Verifier::Content { .. } => None,
        }
    }

    /// Judges a signature over a whole message.
    pub(crate) fn judge(&self, scheme: Scheme, message: &[u8], signature: &[u8]) -> Judgement {
        match scheme.hash() {
            Some(hash) => self.judge_digest(scheme, &hash.digest(message), signature),
            None => self.judge_digest(scheme, message, signature),
        }
    }

    /// The same by the message's digest, where the scheme [digests](Scheme::hash) it.
    ///
    /// Leading zeros may be missing, as some tokens leave them out: whose signature it is does not change with that. Nor
    /// does it with the length of the salt of PSS.
    pub(crate) fn judge_digest(&self, scheme: Scheme, digest: &[u8], signature: &[u8]) -> Judgement {
        match (self, scheme) {
            (PublicKey::Ec { curve, point }, Scheme::Ecdsa(_)) => {
                curve::check(*curve, point, digest, signature).into()
            }
            (PublicKey::Ed25519(key), Scheme::Ed25519) => {
                let signature = ed25519_dalek::Signature::from_slice(signature);
                signature.is_ok_and(|s| key.verify_strict(digest, &s).is_ok()).into()
            }
            (
                PublicKey::Rsa(key),
                Scheme::Pkcs1(_) | Scheme::Pss(_) | Scheme::PssOfDigest(_) | Scheme::RawRsa,
            ) => {
                let Some(missing) = key.size().checked_sub(signature.len()) else { return Judgement::Wrong };
                let signature = [vec![0; missing].as_slice(), signature].concat();
                judge_rsa(key, scheme, digest, &signature)
            }
            // Not the key's type: what a member made of that nobody can say.
            _ => Judgement::CannotTell,
        }
    }
}

fn judge_rsa(key: &rsa::PublicKey, scheme: Scheme, digest: &[u8], signature: &[u8]) -> Judgement {
    match scheme {
        Scheme::Pkcs1(hash) => {
            macro_rules! prefixed {
                ($hash:ty) => {
                    rsa::Pkcs1v15Sign::new::<$hash>()
                };
            }
            let scheme = match hash {
                Some(hash) => by_hash!(hash, prefixed),
                None => rsa::Pkcs1v15Sign::new_unprefixed(),
            };
            key.verify(scheme, digest, signature).is_ok().into()
        }
        Scheme::Pss(hash) | Scheme::PssOfDigest(hash) => {
            macro_rules! verify {
                ($hash:ty) => {{
                    // Without a length of its own the crate takes no signature of more than 8192 bits.
                    let signature = Signature::from_bytes_with_max_len(signature, key.size());
                    let key = VerifyingKey::<$hash>::new_with_auto_salt_len(key.clone());
                    signature.is_ok_and(|s| key.verify_prehash(digest, &s).is_ok())
                }};
            }
            by_hash!(hash, verify).into()
        }
        Scheme::RawRsa => judge_raw_rsa(key, digest, signature),
        Scheme::Ecdsa(_) | Scheme::Ed25519 => Judgement::CannotTell,
    }
}

fn judge_raw_rsa(key: &rsa::PublicKey, input: &[u8], signature: &[u8]) -> Judgement {
    let (n, input) = (key.n(), BoxedUint::from_be_slice_vartime(input));
    // No number that the key can sign: whatever the member has made of it.
    if input >= *n.as_ref() {
        return Judgement::CannotTell;
    }
    let Ok(signature) = BoxedUint::from_be_slice(signature, n.bits_precision()) else {
        return Judgement::Wrong;
    };
    if signature >= *n.as_ref() {
        return Judgement::Wrong;
    }
    match rsa::hazmat::rsa_encrypt(key, &signature) {
        Ok(opened) => (opened == input).into(),
        Err(_) => Judgement::CannotTell,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Stream;
    use super::*;
    use ha_token::{Field, FieldValue, StructParams};
    use rsa::traits::PrivateKeyParts as _;

    const MESSAGE: &[u8] = b"what was signed";

    fn rsa_pair(bits: usize) -> (rsa::PrivateKey, PublicKey) {
        let private = rsa::PrivateKey::new(&mut Stream::new(&[7; 32]), bits).unwrap();
        assert_eq!(private.primes().len(), 2);
        let public = PublicKey::Rsa(Box::new(private.to_public_key()));
        (private, public)
    }

    /// Right as it is, and wrong with any one bit of it changed, or of the message.
    fn only_as_it_is(key: &PublicKey, scheme: Scheme, message: &[u8], signature: &[u8]) {
        assert_eq!(key.judge(scheme, message, signature), Judgement::Right, "{scheme:?}");
        for at in [0, signature.len() / 3, signature.len() - 1] {
            let mut other = signature.to_vec();
            other[at] ^= 4;
            assert_eq!(key.judge(scheme, message, &other), Judgement::Wrong, "{scheme:?}, byte {at}");
        }
        let mut other = message.to_vec();
        other[1] ^= 1;
        assert_eq!(key.judge(scheme, &other, signature), Judgement::Wrong, "{scheme:?}");
        let (short, long) = (&signature[..signature.len() - 1], [signature, &[0]].concat());
        assert_eq!(key.judge(scheme, message, short), Judgement::Wrong, "{scheme:?}");
        assert_eq!(key.judge(scheme, message, &long), Judgement::Wrong, "{scheme:?}");
        assert_eq!(key.judge(scheme, message, &[]), Judgement::Wrong, "{scheme:?}");
        if let Some(hash) = scheme.hash() {
            let mut parts = hash.start();
            message.chunks(4).for_each(|part| parts.hear(part));
            assert_eq!(key.judge_digest(scheme, &parts.finish(), signature), Judgement::Right, "{scheme:?}");
        }
    }

    #[test]
    fn rsa_with_each_digest() {
        // Of the second one's length the encoded message of PSS is a byte shorter than the modulus.
        for bits in [1088, 1089] {
            let (private, public) = rsa_pair(bits);
            for hash in Hash::ALL.iter().copied() {
                let digest = hash.digest(MESSAGE);
                macro_rules! pkcs1 {
                    ($hash:ty) => {
                        rsa::Pkcs1v15Sign::new::<$hash>()
                    };
                }
                let signature = private.sign(by_hash!(hash, pkcs1), &digest).unwrap();
                only_as_it_is(&public, Scheme::Pkcs1(Some(hash)), MESSAGE, &signature);
                macro_rules! pss {
                    ($hash:ty) => {
                        // As the digest is long, and another length: whose it is does not change with that.
                        [<$hash>::output_size(), 3].map(|salt| {
                            use rsa::signature::SignatureEncoding as _;
                            use rsa::signature::hazmat::RandomizedPrehashSigner as _;
                            let key = rsa::pss::SigningKey::<$hash>::new_with_salt_len(private.clone(), salt);
                            key.sign_prehash_with_rng(&mut Stream::new(&[1; 32]), &digest).unwrap().to_vec()
                        })
                    };
                }
                for signature in by_hash!(hash, pss) {
                    only_as_it_is(&public, Scheme::Pss(hash), MESSAGE, &signature);
                    let scheme = Scheme::PssOfDigest(hash);
                    assert_eq!(public.judge(scheme, &digest, &signature), Judgement::Right);
                    assert_eq!(public.judge(scheme, MESSAGE, &signature), Judgement::Wrong);
                }
            }
            let signature = private.sign(rsa::Pkcs1v15Sign::new_unprefixed(), MESSAGE).unwrap();
            only_as_it_is(&public, Scheme::Pkcs1(None), MESSAGE, &signature);
        }
    }

    #[test]
    fn rsa_keys_of_any_length_with_each_padding() {
        // Of many primes: two that are long enough take long to find.
        let primes = (0..9).flat_map(|seed| {
            let part = rsa::PrivateKey::new(&mut Stream::new(&[seed; 32]), 1024).unwrap();
            part.primes().iter().map(|p| p.as_ref().clone()).collect::<Vec<_>>()
        });
        let private = rsa::PrivateKey::from_primes(primes.collect(), 65537u64.into()).unwrap();
        assert!(private.n().bit_width() > 8192);
        let n = private.n().to_be_bytes();
        let verifier = Verifier::from_public(ck::CKK_RSA, Some(&n), Some(&[1, 0, 1]), None, None).unwrap();
        let public = PublicKey::of(&verifier).unwrap();
        let digest = Hash::Sha256.digest(MESSAGE);
        let signature = private.sign(rsa::Pkcs1v15Sign::new::<sha2::Sha256>(), &digest).unwrap();
        only_as_it_is(&public, Scheme::Pkcs1(Some(Hash::Sha256)), MESSAGE, &signature);
        let signature = {
            use rsa::signature::SignatureEncoding as _;
            use rsa::signature::hazmat::RandomizedPrehashSigner as _;
            let key = rsa::pss::SigningKey::<sha2::Sha256>::new(private);
            key.sign_prehash_with_rng(&mut Stream::new(&[1; 32]), &digest).unwrap().to_vec()
        };
        only_as_it_is(&public, Scheme::Pss(Hash::Sha256), MESSAGE, &signature);
    }

    #[test]
    fn numbers_that_are_no_key_are_not_computed_with() {
        let rsa = |modulus: &[u8], exponent: &[u8]| {
            PublicKey::of(&Verifier::Rsa { modulus: modulus.to_vec(), exponent: exponent.to_vec() }).is_some()
        };
        let odd = [vec![0xc0; 127], vec![1]].concat();
        assert!(rsa(&odd, &[3]) && rsa(&odd, &[1, 0xff, 0xff, 0xff, 0xff]));
        for (modulus, exponent) in [
            (&[][..], &[3][..]),
            (&[0], &[3]),
            (&odd, &[]),
            (&odd, &[0]),
            (&odd, &[1]),
            (&odd, &[2]),
            (&odd, &odd),
            (&odd, &[3, 0, 0, 0, 1]),
            (&[0xc0; 128], &[3]),
            (&[1; 63], &[3]),
            (&[0xff; 2049], &[3]),
            (&[0xff; 1 << 20], &[3]),
        ] {
            assert!(!rsa(modulus, exponent), "{} bytes, {exponent:?}", modulus.len());
        }
    }

    #[test]
    fn what_is_no_point_of_the_curve_is_not_computed_with() {
        const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
        let key = |point: &[u8]| {
            PublicKey::of(&Verifier::from_public(ck::CKK_EC, None, None, Some(P256), Some(point))?)
        };
        let private = ecdsa::SigningKey::<p256::NistP256>::from_slice(&[7; 32]).unwrap();
        let point = private.verifying_key().to_sec1_point(false).as_bytes().to_vec();
        let mut off = point.clone();
        off[64] ^= 1;
        let (hybrid, longer) = ([&[6], &point[1..]].concat(), [point.clone(), vec![0; 32]].concat());
        let compact = [&[5], &point[1..33]].concat();
        for wrong in [&off, &hybrid, &compact, &longer, &point[1..].to_vec(), &vec![0], &vec![], &vec![4; 65]]
        {
            assert!(key(wrong).is_none(), "{wrong:?}");
        }
        let compressed = private.verifying_key().to_sec1_point(true).as_bytes().to_vec();
        for right in [point.clone(), [vec![4, 65], point].concat(), compressed] {
            let key = key(&right).unwrap();
            let digest = Hash::Sha256.digest(MESSAGE);
            let d = private.as_nonzero_scalar();
            let (signature, _) =
                ecdsa::hazmat::sign_prehashed_rfc6979::<p256::NistP256, sha2::Sha256>(d, &digest, b"");
            only_as_it_is(&key, Scheme::Ecdsa(Some(Hash::Sha256)), MESSAGE, &signature.to_vec());
        }
    }

    #[test]
    fn rsa_without_padding() {
        let (private, public) = rsa_pair(1024);
        let sign = |input: &[u8]| {
            let input = BoxedUint::from_be_slice(input, private.n().bits_precision()).unwrap();
            let signed = rsa::hazmat::rsa_decrypt::<Stream>(None, &private, &input).unwrap();
            signed.to_be_bytes().to_vec()
        };
        let input = [&[0; 40], MESSAGE, &[9; 60]].concat();
        only_as_it_is(&public, Scheme::RawRsa, &input, &sign(&input));
        // Shorter input is the same number.
        assert_eq!(public.judge(Scheme::RawRsa, &input[40..], &sign(&input)), Judgement::Right);
        // Of nothing it is that of zero.
        assert_eq!(public.judge(Scheme::RawRsa, &[], &[0; 128]), Judgement::Right);
        assert_eq!(public.judge(Scheme::RawRsa, &[], &sign(&input)), Judgement::Wrong);
        // What is no number below the modulus has no signature.
        assert_eq!(public.judge(Scheme::RawRsa, &[0xff; 128], &sign(&input)), Judgement::CannotTell);
        assert_eq!(public.judge(Scheme::RawRsa, &input, &[0xff; 128]), Judgement::Wrong);
    }

    #[test]
    fn ecdsa_on_each_curve() {
        macro_rules! on {
            ($curve:ident, $type:ty, $len:expr) => {{
                let mut scalar = [7u8; $len];
                scalar[0] = 0;
                let private = ecdsa::SigningKey::<$type>::from_slice(&scalar).unwrap();
                let point = private.verifying_key().to_sec1_point(false).as_bytes().to_vec();
                let public = PublicKey::Ec { curve: Curve::$curve, point };
                let sign = |digest: &[u8]| -> Vec<u8> {
                    let (d, digest) =
                        (private.as_nonzero_scalar(), &curve::first_bits(Curve::$curve, digest));
                    ecdsa::hazmat::sign_prehashed_rfc6979::<$type, sha2::Sha256>(d, digest, b"").0.to_vec()
                };
                for hash in Hash::ALL.iter().copied() {
                    only_as_it_is(&public, Scheme::Ecdsa(Some(hash)), MESSAGE, &sign(&hash.digest(MESSAGE)));
                }
                // Less than the order is long, and more.
                for input in [vec![5; 4], vec![6; $len], vec![7; $len + 30]] {
                    only_as_it_is(&public, Scheme::Ecdsa(None), &input, &sign(&input));
                }
            }};
        }
        on!(P256, p256::NistP256, 32);
        on!(P384, p384::NistP384, 48);
        on!(P521, p521::NistP521, 66);
        on!(K256, k256::Secp256k1, 32);
        on!(Brainpool256, bp256::BrainpoolP256r1, 32);
        on!(Brainpool384, bp384::BrainpoolP384r1, 48);
    }

    #[test]
    fn of_a_long_digest_the_first_bits_count_on_p521() {
        let digest = [vec![0x80], vec![0; 64], vec![0x80, 0xff]].concat();
        let first = curve::first_bits(Curve::P521, &digest);
        assert_eq!((first.len(), &first[..2], &first[64..]), (66, &[1, 0][..], &[0, 1][..]));
        assert_eq!(*curve::first_bits(Curve::P521, &digest[..65]), digest[..65]);
        assert_eq!(*curve::first_bits(Curve::P384, &digest), digest);
    }

    #[test]
    fn ed25519() {
        use ed25519_dalek::Signer as _;
        let private = ed25519_dalek::SigningKey::from_bytes(&[3; 32]);
        let public = PublicKey::Ed25519(private.verifying_key());
        only_as_it_is(&public, Scheme::Ed25519, MESSAGE, &private.sign(MESSAGE).to_bytes());
    }

    #[test]
    fn what_does_not_fit_the_key_is_left_open() {
        let (_, rsa) = rsa_pair(1024);
        let ed25519 = PublicKey::Ed25519(ed25519_dalek::SigningKey::from_bytes(&[3; 32]).verifying_key());
        for (key, scheme) in
            [(&rsa, Scheme::Ecdsa(None)), (&rsa, Scheme::Ed25519), (&ed25519, Scheme::RawRsa)]
        {
            assert_eq!(key.judge(scheme, MESSAGE, &[1; 64]), Judgement::CannotTell);
        }
    }

    fn pss_params(hash: Ulong, mgf: Ulong) -> Params {
        Params::Bytes([hash, mgf, 20].into_iter().flat_map(Ulong::to_ne_bytes).collect())
    }

    #[test]
    fn parameters_that_mean_something_else_are_not_computed_with() {
        let of = |mechanism, params| Scheme::of(mechanism, &params);
        let (sha256, mgf256) = (ck::CKM_SHA256, ck::CKG_MGF1_SHA256);
        assert_eq!(
            of(ck::CKM_RSA_PKCS_PSS, pss_params(sha256, mgf256)),
            Some(Scheme::PssOfDigest(Hash::Sha256))
        );
        assert_eq!(
            of(ck::CKM_SHA256_RSA_PKCS_PSS, pss_params(sha256, mgf256)),
            Some(Scheme::Pss(Hash::Sha256))
        );
        assert_eq!(of(ck::CKM_RSA_PKCS_PSS, pss_params(sha256, ck::CKG_MGF1_SHA1)), None);
        assert_eq!(of(ck::CKM_SHA1_RSA_PKCS_PSS, pss_params(sha256, mgf256)), None);
        assert_eq!(of(ck::CKM_RSA_PKCS_PSS, Params::None), None);
        assert_eq!(of(ck::CKM_RSA_PKCS_PSS, Params::Bytes([1; 9].into())), None);
        let eddsa = |flag, context: &[u8]| {
            let field = |name, value| Field { name, value };
            let fields = vec![
                field("phFlag", FieldValue::Byte(flag)),
                field("pContextData", FieldValue::Bytes(Some(context.to_vec()))),
            ];
            Params::Struct(Box::new(StructParams { layout: "CK_EDDSA_PARAMS", fields }))
        };
        assert_eq!(of(ck::CKM_EDDSA, Params::None), Some(Scheme::Ed25519));
        assert_eq!(of(ck::CKM_EDDSA, eddsa(0, b"")), None, "Ed25519ctx, where the token heeds it");
        assert_eq!(of(ck::CKM_EDDSA, eddsa(1, b"")), None);
        assert_eq!(of(ck::CKM_EDDSA, eddsa(0, b"context")), None);
        assert_eq!(of(ck::CKM_SHA256_HMAC, Params::None), None);
    }

    #[test]
    fn schemes_that_sign_any_message_have_numbers_of_their_own() {
        let by_hash = |scheme: fn(Hash) -> Scheme| Hash::ALL.iter().map(move |hash| scheme(*hash));
        let all = by_hash(|h| Scheme::Pkcs1(Some(h)))
            .chain(by_hash(Scheme::Pss))
            .chain(by_hash(|h| Scheme::Ecdsa(Some(h))))
            .chain([Scheme::Ed25519]);
        let numbers: Vec<u32> = all.map(|scheme| scheme.number().unwrap()).collect();
        assert!(numbers.iter().all(|n| *n < 64));
        let distinct: std::collections::BTreeSet<_> = numbers.iter().collect();
        assert_eq!(distinct.len(), numbers.len());
        assert_eq!(Scheme::Pkcs1(None).number(), None);
    }
}
