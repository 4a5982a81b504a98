//! AES: its modes and key wraps, and CMAC.

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes_kw::{AesKw, AesKwp, InnerInit};

/// Bytes of a block.
pub(super) const BLOCK: usize = 16;

/// An AES key of any of the three lengths.
pub(super) enum Aes {
    A128(aes::Aes128),
    A192(aes::Aes192),
    A256(aes::Aes256),
}

macro_rules! each {
    ($self:expr, $cipher:ident => $body:expr) => {
        match $self {
            Aes::A128($cipher) => $body,
            Aes::A192($cipher) => $body,
            Aes::A256($cipher) => $body,
        }
    };
}

impl Aes {
    /// `None` for a length that AES does not have.
    pub(super) fn new(key: &[u8]) -> Option<Self> {
        match key.len() {
            16 => aes::Aes128::new_from_slice(key).ok().map(Aes::A128),
            24 => aes::Aes192::new_from_slice(key).ok().map(Aes::A192),
            32 => aes::Aes256::new_from_slice(key).ok().map(Aes::A256),
            _ => None,
        }
    }

    /// One block.
    pub(super) fn encrypt(&self, block: &[u8; BLOCK]) -> [u8; BLOCK] {
        let mut out = Array::from(*block);
        each!(self, c => c.encrypt_block(&mut out));
        out.into()
    }

    /// One block.
    pub(super) fn decrypt(&self, block: &[u8; BLOCK]) -> [u8; BLOCK] {
        let mut out = Array::from(*block);
        each!(self, c => c.decrypt_block(&mut out));
        out.into()
    }

    /// RFC 3394, of a multiple of eight bytes.
    pub(super) fn wrap(&self, data: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0; data.len() + 8];
        each!(self, c => AesKw::inner_init(c.clone()).wrap_key(data, &mut out).ok().map(<[u8]>::to_vec))
    }

    /// RFC 3394.
    pub(super) fn unwrap(&self, data: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0; data.len().checked_sub(8)?];
        each!(self, c => AesKw::inner_init(c.clone()).unwrap_key(data, &mut out).ok().map(<[u8]>::to_vec))
    }

    /// RFC 5649.
    pub(super) fn wrap_padded(&self, data: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0; data.len().next_multiple_of(8) + 8];
        each!(self, c => AesKwp::inner_init(c.clone()).wrap_key(data, &mut out).ok().map(<[u8]>::to_vec))
    }

    /// RFC 5649.
    pub(super) fn unwrap_padded(&self, data: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0; data.len().checked_sub(8)?];
        each!(self, c => AesKwp::inner_init(c.clone()).unwrap_key(data, &mut out).ok().map(<[u8]>::to_vec))
    }

    /// CMAC (SP 800-38B).
    pub(super) fn cmac(&self, data: &[u8]) -> [u8; BLOCK] {
        let first = double(self.encrypt(&[0; BLOCK]));
        let whole = !data.is_empty() && data.len().is_multiple_of(BLOCK);
        let (mut last, subkey) = ([0; BLOCK], if whole { first } else { double(first) });
        let start = if whole { data.len() - BLOCK } else { data.len() / BLOCK * BLOCK };
        let (body, tail) = data.split_at(start);
        last.iter_mut().zip(tail.iter().chain(&[0x80])).for_each(|(to, from)| *to = *from);
        let mut state = [0; BLOCK];
        for block in blocks(body) {
            state = self.encrypt(&xor(state, block));
        }
        self.encrypt(&xor(xor(state, last), subkey))
    }
}

/// Doubling in the field of CMAC.
fn double(block: [u8; BLOCK]) -> [u8; BLOCK] {
    let number = u128::from_be_bytes(block);
    ((number << 1) ^ if number >> 127 == 1 { 0x87 } else { 0 }).to_be_bytes()
}

fn xor(a: [u8; BLOCK], b: [u8; BLOCK]) -> [u8; BLOCK] {
    (u128::from_ne_bytes(a) ^ u128::from_ne_bytes(b)).to_ne_bytes()
}

/// The whole blocks of the data.
pub(super) fn blocks(data: &[u8]) -> impl Iterator<Item = [u8; BLOCK]> + '_ {
    data.chunks_exact(BLOCK).filter_map(|b| b.try_into().ok())
}

/// Blocks enciphered or deciphered one after the other, chained where there is an initialisation vector.
pub(super) struct Chain {
    pub(super) key: Aes,
    pub(super) iv: Option<[u8; BLOCK]>,
    pub(super) encrypting: bool,
}

impl Chain {
    /// The next whole blocks.
    pub(super) fn run(&mut self, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(data.len());
        for block in blocks(data) {
            let done = match (self.encrypting, self.iv) {
                (true, None) => self.key.encrypt(&block),
                (false, None) => self.key.decrypt(&block),
                (true, Some(iv)) => self.key.encrypt(&xor(iv, block)),
                (false, Some(iv)) => xor(self.key.decrypt(&block), iv),
            };
            if self.iv.is_some() {
                self.iv = Some(if self.encrypting { done } else { block });
            }
            out.extend(done);
        }
        out
    }
}

/// With PKCS#7 padding.
pub(super) fn pad(data: &[u8]) -> Vec<u8> {
    let count = BLOCK - data.len() % BLOCK;
    [data, &vec![count as u8; count]].concat()
}

/// Without PKCS#7 padding; `None` where there is none.
pub(super) fn unpad(data: &[u8]) -> Option<&[u8]> {
    let count = usize::from(*data.last()?);
    let start = data.len().checked_sub(count)?;
    let right = (1..=BLOCK).contains(&count) && data.get(start..)?.iter().all(|b| usize::from(*b) == count);
    if right { data.get(..start) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cmac_as_in_rfc_4493() {
        let key = 0x2b7e1516_28aed2a6_abf71588_09cf4f3cu128.to_be_bytes();
        let aes = Aes::new(&key).expect("a key");
        let message = 0x6bc1bee2_2e409f96_e93d7e11_7393172au128.to_be_bytes();
        assert_eq!(aes.cmac(b""), 0xbb1d6929_e9593728_7fa37d12_9b756746u128.to_be_bytes());
        assert_eq!(aes.cmac(&message), 0x070a16b4_6b4d4144_f79bdd9d_d04a287cu128.to_be_bytes());
    }

    #[test]
    fn padding_is_taken_off_as_it_was_put_on() {
        for length in 0..40 {
            let data = vec![7; length];
            assert_eq!(unpad(&pad(&data)), Some(data.as_slice()));
        }
        assert_eq!(unpad(&[1; 15].map(|_| 0)), None);
        assert_eq!(unpad(&[]), None);
    }
}
