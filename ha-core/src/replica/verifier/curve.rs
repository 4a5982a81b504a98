//! Elliptic curves that are computed with here: signatures checked, public keys recovered, secrets agreed on.

use std::borrow::Cow;

use p256::elliptic_curve::sec1::ToSec1Point;

use super::{Digested, Stream};

/// A curve that is computed with here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Curve {
    P256,
    P384,
    P521,
    K256,
    Brainpool256,
    Brainpool384,
}

impl Curve {
    /// By `CKA_EC_PARAMS`: the object identifiers, as DER.
    pub(crate) fn of(params: &[u8]) -> Option<Self> {
        match params {
            [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07] => Some(Curve::P256),
            [0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22] => Some(Curve::P384),
            [0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23] => Some(Curve::P521),
            [0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a] => Some(Curve::K256),
            [0x06, 0x09, 0x2b, 0x24, 0x03, 0x03, 0x02, 0x08, 0x01, 0x01, 0x07] => Some(Curve::Brainpool256),
            [0x06, 0x09, 0x2b, 0x24, 0x03, 0x03, 0x02, 0x08, 0x01, 0x01, 0x0b] => Some(Curve::Brainpool384),
            _ => None,
        }
    }

    /// The digest that fits the curve's order.
    pub(crate) fn digested(self) -> Digested {
        match self {
            Curve::P256 | Curve::K256 | Curve::Brainpool256 => Digested::Sha256,
            Curve::P384 | Curve::Brainpool384 => Digested::Sha384,
            Curve::P521 => Digested::Sha512,
        }
    }

    /// That of a message.
    pub(crate) fn digest(self, message: &[u8]) -> Vec<u8> {
        self.digested().of(message)
    }
}

/// Calls a macro with the curve's type and the length of its field's elements.
macro_rules! on_curve {
    ($curve:expr, $do:ident) => {
        match $curve {
            Curve::P256 => $do!(p256::NistP256, 32),
            Curve::P384 => $do!(p384::NistP384, 48),
            Curve::P521 => $do!(p521::NistP521, 66),
            Curve::K256 => $do!(k256::Secp256k1, 32),
            Curve::Brainpool256 => $do!(bp256::BrainpoolP256r1, 32),
            Curve::Brainpool384 => $do!(bp384::BrainpoolP384r1, 48),
        }
    };
}

impl Curve {
    /// How long an uncompressed point of it is.
    pub(super) fn point_len(self) -> usize {
        macro_rules! len {
            ($curve:ty, $len:expr) => {
                1 + 2 * $len
            };
        }
        on_curve!(self, len)
    }
}

/// The first bits of a digest, as many as the curve's order has (FIPS 186-5, section 6.4.2). The crates take whole bytes,
/// of which P-521's order has none at its end.
pub(super) fn first_bits(curve: Curve, digest: &[u8]) -> Cow<'_, [u8]> {
    match (curve, digest.split_at_checked(66)) {
        (Curve::P521, Some((first, _))) => {
            let before = std::iter::once(&0).chain(first);
            before.zip(first).map(|(high, low)| high << 1 | low >> 7).collect()
        }
        _ => digest.into(),
    }
}

/// Whether these bytes are a point of the curve that can be a public key, compressed or not as SEC 1 writes one.
pub(super) fn is_point(curve: Curve, point: &[u8]) -> bool {
    macro_rules! is_point {
        ($curve:ty, $len:expr) => {
            ecdsa::VerifyingKey::<$curve>::from_sec1_bytes(point).is_ok()
        };
    }
    // The crates know a form without the sign, too, of which two points are possible.
    matches!(point, [2..=4, ..]) && on_curve!(curve, is_point)
}

/// r and s, each as long as the curve's numbers are: leading zeros may be missing of both. `None` for what is no signature.
fn whole(signature: &[u8], len: usize) -> Option<Vec<u8>> {
    let (r, s) = signature.split_at_checked(signature.len() / 2).filter(|(r, s)| r.len() == s.len())?;
    let zeros = vec![0; len.checked_sub(r.len())?];
    Some([zeros.as_slice(), r, &zeros, s].concat())
}

/// Whether an ECDSA signature, r and s of equal length, is the key's over a digest, as much of that as fits the curve.
pub(super) fn check(curve: Curve, point: &[u8], digest: &[u8], signature: &[u8]) -> bool {
    let digest = first_bits(curve, digest);
    use ecdsa::signature::hazmat::PrehashVerifier;
    macro_rules! check {
        ($curve:ty, $len:expr) => {{
            let key = ecdsa::VerifyingKey::<$curve>::from_sec1_bytes(point).ok();
            // A token does not choose the lower s; secp256k1's crate takes no other.
            let signature =
                whole(signature, $len).and_then(|s| ecdsa::Signature::<$curve>::from_slice(&s).ok());
            let signature = signature.map(|s| s.normalize_s());
            key.zip(signature).is_some_and(|(k, s)| k.verify_prehash(&digest, &s).is_ok())
        }};
    }
    on_curve!(curve, check)
}

/// The public points whose keys may have made an ECDSA signature: few, and the true one among them.
pub(crate) fn possible_points(params: &[u8], message: &[u8], signature: &[u8]) -> Vec<Vec<u8>> {
    let Some(curve) = Curve::of(params) else { return Vec::new() };
    let digest = curve.digest(message);
    macro_rules! recover {
        ($curve:ty, $len:expr) => {{
            let Ok(signature) = ecdsa::Signature::<$curve>::from_slice(signature) else { return Vec::new() };
            let signature = signature.normalize_s();
            (0..4)
                .filter_map(ecdsa::RecoveryId::from_byte)
                .filter_map(|id| {
                    ecdsa::VerifyingKey::<$curve>::recover_from_prehash(&digest, &signature, id).ok()
                })
                .map(|key| key.to_sec1_point(false).as_bytes().to_vec())
                .collect()
        }};
    }
    on_curve!(curve, recover)
}

/// A throw-away key's public point, its private number, and the secret that it and the point's key agree on.
pub(super) fn agree(curve: Curve, point: &[u8], seed: &mut Stream) -> Option<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    macro_rules! agree {
        ($curve:ty, $len:expr) => {{
            let mut scalar = [0u8; $len];
            seed.fill(&mut scalar);
            // Below the order of every curve here.
            if let Some(first) = scalar.first_mut() {
                *first = 0;
            }
            let mine = p256::elliptic_curve::SecretKey::<$curve>::from_slice(&scalar).ok()?;
            let theirs = p256::elliptic_curve::PublicKey::<$curve>::from_sec1_bytes(point).ok()?;
            let shared =
                p256::elliptic_curve::ecdh::diffie_hellman(mine.to_nonzero_scalar(), theirs.as_affine());
            let public = mine.public_key().to_sec1_point(false);
            Some((public.as_bytes().to_vec(), scalar.to_vec(), shared.raw_secret_bytes().to_vec()))
        }};
    }
    on_curve!(curve, agree)
}
