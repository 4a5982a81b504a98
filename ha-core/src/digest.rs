//! A short digest of what is only to be told from others of its kind: no secret, and no proof.

use sha2::{Digest, Sha256};

/// The first eight bytes of the SHA-256 of `bytes`, in hexadecimal digits.
pub(crate) fn short(bytes: &[u8]) -> String {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    digest.iter().take(8).map(|b| format!("{b:02x}")).collect()
}
