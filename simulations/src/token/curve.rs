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

    /// Signs a digest, as RFC 6979 does.
    pub(super) fn sign(self, scalar: &[u8], digest: &[u8]) -> Option<Vec<u8>> {
        use p256::ecdsa::signature::hazmat::PrehashSigner;
        let (scalar, digest) = (self.widen(scalar), self.widen(digest));
        match self {
            Curve::P256 => {
                let key = p256::ecdsa::SigningKey::from_slice(&scalar).ok()?;
                let made: p256::ecdsa::Signature = key.sign_prehash(&digest).ok()?;
                Some(made.to_bytes().to_vec())
            }
            Curve::P384 => {
                let key = p384::ecdsa::SigningKey::from_slice(&scalar).ok()?;
                let made: p384::ecdsa::Signature = key.sign_prehash(&digest).ok()?;
                Some(made.to_bytes().to_vec())
            }
        }
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
