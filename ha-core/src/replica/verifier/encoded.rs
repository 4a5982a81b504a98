//! Public keys and signatures as other software reads them: DER (RFC 5280, RFC 5480, RFC 5915).

use der::asn1::{AnyRef, BitStringRef, ObjectIdentifier, UintRef};
use der::pem::LineEnding;
use der::{Decode as _, Encode as _, Tag, Tagged as _};
use rsa::traits::PublicKeyParts as _;
use spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

use super::{Verifier, rsa_key};

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const DSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10040.4.1");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

impl Verifier {
    /// The public key as a DER `SubjectPublicKeyInfo`. `None` for what is, or has, no public key, and for one that cannot
    /// be written so.
    pub fn public_key_info(&self) -> Option<Vec<u8>> {
        match self {
            Verifier::Rsa { modulus, exponent } => {
                info(RSA, Some(AnyRef::NULL), &numbers(&[modulus, exponent])?)
            }
            Verifier::Ec { params, point } => {
                // Some tokens name a curve with a text, which nobody else reads.
                let named = AnyRef::from_der(params)
                    .ok()
                    .filter(|p| matches!(p.tag(), Tag::ObjectIdentifier | Tag::Sequence))?;
                info(EC, Some(named), point)
            }
            Verifier::Ed25519 { point } => info(ED25519, None, point),
            Verifier::Dsa { numbers: [prime, subprime, base, value] } => {
                let domain = numbers(&[prime, subprime, base])?;
                let value = UintRef::new(value).ok()?.to_der().ok()?;
                info(DSA, Some(AnyRef::from_der(&domain).ok()?), &value)
            }
            Verifier::Several(all) => all.iter().find_map(Verifier::public_key_info),
            Verifier::Agreement { .. }
            | Verifier::Wrapped { .. }
            | Verifier::Secret { .. }
            | Verifier::Content { .. } => None,
        }
    }

    /// The same as PEM.
    pub fn public_key_pem(&self) -> Option<String> {
        der::pem::encode_string("PUBLIC KEY", LineEnding::LF, &self.public_key_info()?).ok()
    }

    /// A signature that a token made, as other software takes it: of ECDSA and DSA, whose halves a token gives one after the
    /// other, as DER; of RSA with the zeros that some tokens leave out. `None` for what is no signature of such a key.
    pub fn portable_signature(&self, signature: &[u8]) -> Option<Vec<u8>> {
        match self {
            Verifier::Rsa { modulus, exponent } => {
                let missing = rsa_key(modulus, exponent)?.size().checked_sub(signature.len())?;
                Some([vec![0; missing].as_slice(), signature].concat())
            }
            Verifier::Ec { .. } | Verifier::Dsa { .. } => {
                let (r, s) = signature.split_at_checked(signature.len() / 2)?;
                if r.is_empty() || r.len() != s.len() { None } else { numbers(&[r, s]) }
            }
            Verifier::Ed25519 { .. } => Some(signature.to_vec()),
            Verifier::Several(all) => all.iter().find_map(|one| one.portable_signature(signature)),
            Verifier::Agreement { .. }
            | Verifier::Wrapped { .. }
            | Verifier::Secret { .. }
            | Verifier::Content { .. } => None,
        }
    }
}

/// A private key on a named curve as a DER `ECPrivateKey`: of a throw-away pair only.
pub(super) fn ec_private_key(params: &[u8], scalar: &[u8], point: &[u8]) -> Option<Vec<u8>> {
    let curve = ObjectIdentifier::from_der(params).ok()?;
    let key = sec1::EcPrivateKey {
        private_key: scalar,
        parameters: Some(sec1::EcParameters::NamedCurve(curve)),
        public_key: Some(point),
    };
    key.to_der().ok()
}

/// A sequence of numbers, each of which is big-endian and not negative.
fn numbers(numbers: &[&[u8]]) -> Option<Vec<u8>> {
    numbers.iter().map(|n| UintRef::new(n)).collect::<Result<Vec<_>, _>>().ok()?.to_der().ok()
}

fn info(kind: ObjectIdentifier, parameters: Option<AnyRef<'_>>, key: &[u8]) -> Option<Vec<u8>> {
    let algorithm = AlgorithmIdentifierRef { oid: kind, parameters };
    let key = BitStringRef::from_bytes(key).ok()?;
    SubjectPublicKeyInfoRef { algorithm, subject_public_key: key }.to_der().ok()
}

#[cfg(test)]
mod tests {
    use super::super::Stream;
    use super::*;
    use rsa::pkcs8::{DecodePublicKey as _, EncodePublicKey as _};

    const P256: [u8; 10] = [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];

    #[test]
    fn public_keys_are_read_by_others() {
        let pair = rsa::PrivateKey::new(&mut Stream::new(&[7; 32]), 1024).unwrap().to_public_key();
        let rsa = Verifier::Rsa { modulus: pair.n().to_be_bytes().to_vec(), exponent: vec![1, 0, 1] };
        assert_eq!(rsa.public_key_info().unwrap(), pair.to_public_key_der().unwrap().as_bytes());
        let read = rsa::PublicKey::from_public_key_pem(&rsa.public_key_pem().unwrap()).unwrap();
        assert_eq!(read, pair);

        let key = p256::ecdsa::SigningKey::from_slice(&[3; 32]).unwrap();
        let point = key.verifying_key().to_sec1_point(false).as_bytes().to_vec();
        let ec = Verifier::Ec { params: P256.to_vec(), point: point.clone() };
        let info = ec.public_key_info().unwrap();
        let read = SubjectPublicKeyInfoRef::from_der(&info).unwrap();
        assert_eq!(read.algorithm.oids().unwrap().1.unwrap().to_string(), "1.2.840.10045.3.1.7");
        assert_eq!(read.subject_public_key.as_bytes().unwrap(), point);
        // The nearest to a secret that may be with it.
        let several = Verifier::of(vec![Verifier::Content { digest: vec![1] }, ec]).unwrap();
        assert_eq!(several.public_key_info(), Some(info));

        let text = Verifier::Ec { params: b"\x13\x0aprime256v1".to_vec(), point };
        assert_eq!(text.public_key_info(), None);
        assert_eq!(Verifier::Content { digest: vec![1] }.public_key_pem(), None);
    }

    #[test]
    fn signatures_are_taken_by_others() {
        let ec = Verifier::Ec { params: P256.to_vec(), point: vec![4] };
        assert_eq!(ec.portable_signature(&[0, 1, 0x80, 2]), Some(vec![0x30, 8, 2, 1, 1, 2, 3, 0, 0x80, 2]));
        assert_eq!(ec.portable_signature(&[1, 2, 3]), None);
        assert_eq!(ec.portable_signature(&[]), None);
        let pair = rsa::PrivateKey::new(&mut Stream::new(&[7; 32]), 1024).unwrap().to_public_key();
        let rsa = Verifier::Rsa { modulus: pair.n().to_be_bytes().to_vec(), exponent: vec![1, 0, 1] };
        let whole = rsa.portable_signature(&[9; 127]).unwrap();
        assert_eq!((whole.len(), whole[0]), (128, 0));
        assert_eq!(rsa.portable_signature(&[9; 129]), None);
    }
}
