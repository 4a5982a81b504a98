//! The two curves of ECDSA and of key agreement.

/// `CKA_EC_PARAMS` of P-256.
pub(super) const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// `CKA_EC_PARAMS` of P-384.
pub(super) const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];

/// A curve of ECDSA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Curve {
    P256,
    P384,
}

impl Curve {
    /// By `CKA_EC_PARAMS`.
    pub(super) fn of(params: &[u8]) -> Option<Self> {
        match params {
            P256 => Some(Curve::P256),
            P384 => Some(Curve::P384),
            _ => None,
        }
    }

    pub(super) fn params(self) -> &'static [u8] {
        match self {
            Curve::P256 => P256,
            Curve::P384 => P384,
        }
    }

    /// Bytes of a coordinate.
    pub(super) fn size(self) -> usize {
        match self {
            Curve::P256 => 32,
            Curve::P384 => 48,
        }
    }

    /// At the width of a coordinate: a scalar with its zeros in front, a digest as the number that ECDSA takes.
    pub(super) fn widen(self, bytes: &[u8]) -> Vec<u8> {
        [vec![0; self.size().saturating_sub(bytes.len())].as_slice(), bytes].concat()
    }

    /// The uncompressed public point of a private scalar.
    pub(super) fn point(self, scalar: &[u8]) -> Option<Vec<u8>> {
        use p256::elliptic_curve::sec1::ToSec1Point;
        let scalar = self.widen(scalar);
        match self {
            Curve::P256 => p256::SecretKey::from_slice(&scalar)
                .ok()
                .map(|k| k.public_key().to_sec1_point(false).as_bytes().to_vec()),
            Curve::P384 => p384::SecretKey::from_slice(&scalar)
                .ok()
                .map(|k| k.public_key().to_sec1_point(false).as_bytes().to_vec()),
        }
    }

    /// Whether the number is a private key of the curve.
    pub(super) fn is_scalar(self, scalar: &[u8]) -> bool {
        let scalar = self.widen(scalar);
        match self {
            Curve::P256 => p256::SecretKey::from_slice(&scalar).is_ok(),
            Curve::P384 => p384::SecretKey::from_slice(&scalar).is_ok(),
        }
    }

    /// Signs a digest, as RFC 6979 does. Below the types that would first compute the public point, every time.
    pub(super) fn sign(self, scalar: &[u8], digest: &[u8]) -> Option<Vec<u8>> {
        use ecdsa::hazmat::sign_prehashed_rfc6979 as sign;
        let (scalar, digest) = (self.widen(scalar), self.widen(digest));
        Some(match self {
            Curve::P256 => {
                let key = p256::SecretKey::from_slice(&scalar).ok()?.to_nonzero_scalar();
                sign::<p256::NistP256, sha2::Sha256>(&key, &digest, &[]).0.to_bytes().to_vec()
            }
            Curve::P384 => {
                let key = p384::SecretKey::from_slice(&scalar).ok()?.to_nonzero_scalar();
                sign::<p384::NistP384, sha2::Sha384>(&key, &digest, &[]).0.to_bytes().to_vec()
            }
        })
    }

    /// Whether the signature is of the digest.
    pub(super) fn verify(self, point: &[u8], digest: &[u8], signature: &[u8]) -> Option<()> {
        use p256::ecdsa::signature::hazmat::PrehashVerifier;
        let digest = self.widen(digest);
        match self {
            Curve::P256 => {
                let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?;
                key.verify_prehash(&digest, &p256::ecdsa::Signature::from_slice(signature).ok()?).ok()
            }
            Curve::P384 => {
                let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?;
                key.verify_prehash(&digest, &p384::ecdsa::Signature::from_slice(signature).ok()?).ok()
            }
        }
    }

    /// The x coordinate that the scalar and another's point agree on.
    pub(super) fn agree(self, scalar: &[u8], point: &[u8]) -> Option<Vec<u8>> {
        let scalar = self.widen(scalar);
        match self {
            Curve::P256 => {
                let (key, peer) =
                    (p256::SecretKey::from_slice(&scalar), p256::PublicKey::from_sec1_bytes(point));
                Some(key.ok()?.diffie_hellman(&peer.ok()?).raw_secret_bytes().to_vec())
            }
            Curve::P384 => {
                let (key, peer) =
                    (p384::SecretKey::from_slice(&scalar), p384::PublicKey::from_sec1_bytes(point));
                Some(key.ok()?.diffie_hellman(&peer.ok()?).raw_secret_bytes().to_vec())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_as_in_rfc_6979() {
        let number = |text: &str| -> Vec<u8> {
            let byte = |i: usize| text.get(2 * i..2 * i + 2).and_then(|b| u8::from_str_radix(b, 16).ok());
            (0..text.len() / 2).filter_map(byte).collect()
        };
        let key = number("C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721");
        let digest = super::super::hash::Hash::Sha256.digest(b"sample");
        let signature = [
            number("EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716"),
            number("F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8"),
        ]
        .concat();
        assert_eq!(Curve::P256.sign(&key, &digest), Some(signature));
    }
}
