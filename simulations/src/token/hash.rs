//! Digests and MACs.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Digest;

/// A hash function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    /// The digest of the data.
    pub(super) fn digest(self, data: &[u8]) -> Vec<u8> {
        match self {
            Hash::Sha1 => sha1::Sha1::digest(data).to_vec(),
            Hash::Sha224 => sha2::Sha224::digest(data).to_vec(),
            Hash::Sha256 => sha2::Sha256::digest(data).to_vec(),
            Hash::Sha384 => sha2::Sha384::digest(data).to_vec(),
            Hash::Sha512 => sha2::Sha512::digest(data).to_vec(),
        }
    }

    /// How many bytes a digest has.
    pub(super) fn size(self) -> usize {
        match self {
            Hash::Sha1 => 20,
            Hash::Sha224 => 28,
            Hash::Sha256 => 32,
            Hash::Sha384 => 48,
            Hash::Sha512 => 64,
        }
    }

    /// The HMAC of the data.
    pub(super) fn hmac(self, key: &[u8], data: &[u8]) -> Vec<u8> {
        macro_rules! with {
            ($hash:ty) => {
                // An HMAC takes a key of any length.
                Hmac::<$hash>::new_from_slice(key)
                    .map(|mac| mac.chain_update(data).finalize().into_bytes().to_vec())
                    .unwrap_or_default()
            };
        }
        match self {
            Hash::Sha1 => with!(sha1::Sha1),
            Hash::Sha224 => with!(sha2::Sha224),
            Hash::Sha256 => with!(sha2::Sha256),
            Hash::Sha384 => with!(sha2::Sha384),
            Hash::Sha512 => with!(sha2::Sha512),
        }
    }

    /// The digest wrapped as PKCS#1 v1.5 signs it (RFC 8017, section 9.2).
    pub(super) fn info(self, digest: &[u8]) -> Vec<u8> {
        let prefix: &[u8] = match self {
            Hash::Sha1 => {
                &[0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a, 0x05, 0x00, 0x04]
            }
            Hash::Sha224 => &sha2_info(0x2d, 4),
            Hash::Sha256 => &sha2_info(0x31, 1),
            Hash::Sha384 => &sha2_info(0x41, 2),
            Hash::Sha512 => &sha2_info(0x51, 3),
        };
        [prefix, &[digest.len() as u8], digest].concat()
    }
}

/// What the four SHA-2 functions' structures begin with.
const fn sha2_info(length: u8, last: u8) -> [u8; 18] {
    [
        0x30, length, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, last, 0x05,
        0x00, 0x04,
    ]
}
