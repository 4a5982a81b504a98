//! What of a challenge is signed.

use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};

/// What of a message is signed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Digested {
    /// The message itself (Ed25519).
    Whole,
    /// Its SHA-224.
    Sha224,
    /// Its SHA-256.
    Sha256,
    /// Its SHA-384.
    Sha384,
    /// Its SHA-512.
    Sha512,
    /// The first twenty bytes of its SHA-256: they fit the order of every curve and group in use.
    Sha256Begin,
}

impl Digested {
    /// That of a message.
    pub fn of(self, message: &[u8]) -> Vec<u8> {
        match self {
            Digested::Whole => message.to_vec(),
            Digested::Sha224 => Sha224::digest(message).to_vec(),
            Digested::Sha256 => Sha256::digest(message).to_vec(),
            Digested::Sha384 => Sha384::digest(message).to_vec(),
            Digested::Sha512 => Sha512::digest(message).to_vec(),
            Digested::Sha256Begin => Sha256::digest(message).iter().take(20).copied().collect(),
        }
    }
}
