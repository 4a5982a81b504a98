//! RSA key pairs that were made beforehand: making one takes seconds, and a simulation makes thousands.

use std::sync::{Arc, Mutex, PoisonError};

use super::der::{Reader, SEQUENCE};
use super::material::RsaKey;
use crate::random::Random;

/// PKCS#1 structures, one after the other.
const KEYS: [(usize, &[u8]); 2] =
    [(1024, include_bytes!("keys/rsa-1024.der")), (2048, include_bytes!("keys/rsa-2048.der"))];

/// Key pairs to hand out, each once before any is handed out again.
///
/// Tokens that share a pool never make the same key pair, until it is used up.
#[derive(Clone, Default)]
pub struct RsaPool {
    left: Arc<Mutex<[Vec<&'static [u8]>; 2]>>,
}

impl RsaPool {
    /// A key pair of that many bits, chosen by the generator; `None` for a size that the pool does not have.
    pub(super) fn draw(&self, bits: usize, random: &mut Random) -> Option<RsaKey> {
        let size = KEYS.iter().position(|k| k.0 == bits)?;
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let left = left.get_mut(size)?;
        if left.is_empty() {
            *left = all(KEYS.get(size)?.1);
        }
        let key = left.swap_remove(random.below(left.len() as u64) as usize);
        RsaKey::from_pkcs1(key)
    }
}

/// The contents of the structures in a file.
fn all(file: &'static [u8]) -> Vec<&'static [u8]> {
    let mut reader = Reader(file);
    std::iter::from_fn(|| reader.take(SEQUENCE)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_handed_out_twice_before_all_were() {
        let pool = RsaPool::default();
        let mut random = Random::new(7);
        let mut draw = || pool.draw(1024, &mut random).expect("a key").modulus;
        let first: std::collections::BTreeSet<Vec<u8>> = (0..8).map(|_| draw()).collect();
        assert_eq!(first.len(), 8);
        assert!(first.contains(&draw()));
    }
}
