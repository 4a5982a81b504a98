//! A verifier as the ledger keeps it: a tag, and fields that each have their length before them.

use ha_token::Ulong;

use super::{SecretMethod, Verifier};

/// The ledger's mark of [`Verifier::Several`].
const SEVERAL: u8 = 9;

impl Verifier {
    /// For the ledger.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let (tag, fields): (u8, Vec<Vec<u8>>) = match self {
            Verifier::Rsa { modulus, exponent } => (1, vec![modulus.clone(), exponent.clone()]),
            Verifier::Ec { params, point } => (2, vec![params.clone(), point.clone()]),
            Verifier::Ed25519 { point } => (3, vec![point.clone()]),
            Verifier::Secret { method, length, nonce, answer } => {
                let (code, mechanism) = method.code();
                let numbers = [
                    vec![code],
                    (mechanism as u64).to_be_bytes().to_vec(),
                    (*length as u64).to_be_bytes().to_vec(),
                ]
                .concat();
                (4, vec![numbers, nonce.clone(), answer.clone()])
            }
            Verifier::Content { digest } => (5, vec![digest.clone()]),
            Verifier::Dsa { numbers } => (6, numbers.to_vec()),
            Verifier::Agreement { mechanism, peer, digest } => {
                (7, vec![(*mechanism as u64).to_be_bytes().to_vec(), peer.clone(), digest.clone()])
            }
            Verifier::Wrapped { mechanism, digest } => {
                (8, vec![(*mechanism as u64).to_be_bytes().to_vec(), digest.clone()])
            }
            Verifier::Several(all) => (SEVERAL, all.iter().map(Verifier::to_bytes).collect()),
        };
        out.push(tag);
        for field in fields {
            out.extend_from_slice(&(field.len() as u32).to_be_bytes());
            out.extend_from_slice(&field);
        }
        out
    }

    /// From the ledger; `None` for what is not a verifier.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (tag, mut rest) = bytes.split_first()?;
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let (len, after) = rest.split_first_chunk::<4>()?;
            let (field, after) = after.split_at_checked(u32::from_be_bytes(*len) as usize)?;
            fields.push(field.to_vec());
            rest = after;
        }
        if tag == &SEVERAL {
            // One level only: what was written here is never deeper.
            let inner =
                fields.iter().map(|f| if f.first() == Some(&SEVERAL) { None } else { Self::from_bytes(f) });
            return inner.collect::<Option<Vec<_>>>().map(Verifier::Several);
        }
        let number = |field: Option<Vec<u8>>| Some(u64::from_be_bytes(field?.try_into().ok()?) as Ulong);
        let mut fields = fields.into_iter();
        let verifier = match tag {
            1 => Verifier::Rsa { modulus: fields.next()?, exponent: fields.next()? },
            2 => Verifier::Ec { params: fields.next()?, point: fields.next()? },
            3 => Verifier::Ed25519 { point: fields.next()? },
            4 => {
                let numbers = fields.next()?;
                let (code, numbers) = numbers.split_first()?;
                let (mechanism, length) = numbers.split_first_chunk::<8>()?;
                let length = u64::from_be_bytes(length.try_into().ok()?);
                let method = SecretMethod::from_code(*code, u64::from_be_bytes(*mechanism) as Ulong)?;
                Verifier::Secret {
                    method,
                    length: length as Ulong,
                    nonce: fields.next()?,
                    answer: fields.next()?,
                }
            }
            5 => Verifier::Content { digest: fields.next()? },
            6 => Verifier::Dsa { numbers: [fields.next()?, fields.next()?, fields.next()?, fields.next()?] },
            7 => Verifier::Agreement {
                mechanism: number(fields.next())?,
                peer: fields.next()?,
                digest: fields.next()?,
            },
            8 => Verifier::Wrapped { mechanism: number(fields.next())?, digest: fields.next()? },
            _ => return None,
        };
        fields.next().is_none().then_some(verifier)
    }
}

impl SecretMethod {
    pub(super) fn code(self) -> (u8, Ulong) {
        match self {
            SecretMethod::Mac(m) => (0, m),
            SecretMethod::Encrypt(m) => (1, m),
            SecretMethod::Decrypt(m) => (2, m),
            SecretMethod::Wrap(m) => (3, m),
            SecretMethod::Sign(m) => (4, m),
            SecretMethod::Digest(m) => (5, m),
            SecretMethod::Derive(m) => (6, m),
        }
    }

    fn from_code(code: u8, m: Ulong) -> Option<Self> {
        Some(match code {
            0 => SecretMethod::Mac(m),
            1 => SecretMethod::Encrypt(m),
            2 => SecretMethod::Decrypt(m),
            3 => SecretMethod::Wrap(m),
            4 => SecretMethod::Sign(m),
            5 => SecretMethod::Digest(m),
            6 => SecretMethod::Derive(m),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..80)
    }

    proptest! {
        #[test]
        fn the_ledger_form_round_trips(a in bytes(), b in bytes(), m: u32, length: u32, kind in 0..9) {
            let verifier = match kind {
                0 => Verifier::Rsa { modulus: a, exponent: b },
                1 => Verifier::Ec { params: a, point: b },
                2 => Verifier::Ed25519 { point: a },
                3 => Verifier::Dsa { numbers: [a.clone(), b, Vec::new(), a] },
                4 => Verifier::Agreement { mechanism: m.into(), peer: a, digest: b },
                5 => Verifier::Wrapped { mechanism: m.into(), digest: a },
                6 => Verifier::Several(vec![Verifier::Content { digest: a }, Verifier::Ed25519 { point: b }]),
                7 => Verifier::Secret { method: SecretMethod::Wrap(m.into()), length: length.into(), nonce: a, answer: b },
                _ => Verifier::Content { digest: a },
            };
            prop_assert_eq!(Verifier::from_bytes(&verifier.to_bytes()), Some(verifier));
        }

        #[test]
        fn no_bytes_panic(a in bytes()) {
            drop(Verifier::from_bytes(&a));
        }
    }
}
