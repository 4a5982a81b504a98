//! The output-length convention (PKCS#11 v3.2, section 5.2), in one place.

use crate::{Result, Rv};

/// Where a function puts variable-length output, and how long that output is.
///
/// The standard lets a caller give no buffer, to learn the length (a *size query*), or a buffer that may be too
/// small. Afterwards [`len`](Output::len) is the number of bytes written, or, for a query and for
/// `CKR_BUFFER_TOO_SMALL`, the number of bytes needed. A size query is answered `Ok`.
#[derive(Debug)]
pub struct Output<'a> {
    buffer: Option<&'a mut [u8]>,
    len: usize,
}

impl<'a> Output<'a> {
    /// A size query: no buffer.
    pub fn query() -> Self {
        Output { buffer: None, len: 0 }
    }

    /// A buffer; at most `buffer.len()` bytes are written to its start.
    pub fn buffer(buffer: &'a mut [u8]) -> Self {
        Output { buffer: Some(buffer), len: 0 }
    }

    /// Whether this is a size query.
    pub fn is_query(&self) -> bool {
        self.buffer.is_none()
    }

    /// The bytes that fit, or `None` for a size query.
    pub fn capacity(&self) -> Option<usize> {
        self.buffer.as_ref().map(|b| b.len())
    }

    /// The bytes written or needed, as the last call left it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written and nothing is needed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes written by a call that answered `Ok`; empty for a size query.
    pub fn written(&self) -> &[u8] {
        match &self.buffer {
            Some(b) => b.get(..self.len).unwrap_or(&[]),
            None => &[],
        }
    }

    /// The buffer itself, for a token that writes to it directly; follow with [`Output::settle`].
    pub fn space(&mut self) -> Option<&mut [u8]> {
        self.buffer.as_deref_mut()
    }

    /// Borrows the same place anew, for one try of several.
    pub fn reborrow(&mut self) -> Output<'_> {
        Output { buffer: self.buffer.as_deref_mut(), len: 0 }
    }

    /// Records what a call that wrote directly answered: its result and the length it reported.
    ///
    /// A length above the capacity together with success is a broken token's: `CKR_GENERAL_ERROR`.
    pub fn settle(&mut self, result: Result<()>, len: usize) -> Result<()> {
        self.len = len;
        match (result, self.capacity()) {
            (Ok(()), Some(capacity)) if len > capacity => {
                self.len = 0;
                Err(Rv::GENERAL_ERROR)
            }
            (result, _) => result,
        }
    }

    /// Takes over the length of a reborrowed output after the call that used it.
    pub fn set_len(&mut self, len: usize) {
        self.len = len;
    }

    /// Answers with `bytes`, by the convention: copied if they fit, else `CKR_BUFFER_TOO_SMALL`, with the length
    /// needed in both.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.len = bytes.len();
        match &mut self.buffer {
            None => Ok(()),
            Some(b) => match b.get_mut(..bytes.len()) {
                Some(place) => {
                    place.copy_from_slice(bytes);
                    Ok(())
                }
                None => Err(Rv::BUFFER_TOO_SMALL),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_needs_and_writes_nothing() {
        let mut out = Output::query();
        assert_eq!(out.write(b"four"), Ok(()));
        assert_eq!((out.len(), out.written()), (4, &b""[..]));
    }

    #[test]
    fn boundary_pair_one_byte_short_and_exact() {
        let mut short = [0u8; 3];
        let mut out = Output::buffer(&mut short);
        assert_eq!(out.write(b"four"), Err(Rv::BUFFER_TOO_SMALL));
        assert_eq!(out.len(), 4);
        let mut exact = [0u8; 4];
        let mut out = Output::buffer(&mut exact);
        assert_eq!(out.write(b"four"), Ok(()));
        assert_eq!(out.written(), b"four");
    }

    #[test]
    fn a_token_that_claims_more_than_fits_is_not_believed() {
        let mut space = [0u8; 4];
        let mut out = Output::buffer(&mut space);
        assert_eq!(out.settle(Ok(()), 5), Err(Rv::GENERAL_ERROR));
        assert_eq!(out.written(), b"");
    }
}
