//! A caller's memory: byte slices, and single words at any alignment.

use ha_token::ck::CK_ULONG;
use ha_token::{Result, Rv, Ulong};

/// The longest memory a program can have: no 64-bit processor gives a program more than 56 bits of addresses. A longer
/// length is a mistake that a token would run into, and crash.
const LONGEST: usize = if usize::BITS >= 64 { 1 << 56 } else { isize::MAX as usize };

/// A caller's bytes: (null, 0) is empty.
///
/// # Errors
/// `ARGUMENTS_BAD` for null with a length, or a length that no memory has (beyond 2^56 bytes, or `isize::MAX` on 32-bit machines).
///
/// # Safety
/// `p` is null, or points at `len` bytes that stay readable and unchanged for `'a`.
pub unsafe fn slice<'a>(p: *const u8, len: CK_ULONG) -> Result<&'a [u8]> {
    let len = checked(p.is_null(), len)?;
    if len == 0 {
        return Ok(&[]);
    }
    // SAFETY: not null, at most `isize::MAX` bytes, and readable by the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(p, len) })
}

/// A caller's buffer: (null, 0) is empty.
///
/// # Errors
/// As [`slice()`].
///
/// # Safety
/// `p` is null, or points at `len` initialised bytes that nobody else touches for `'a`.
pub unsafe fn slice_mut<'a>(p: *mut u8, len: CK_ULONG) -> Result<&'a mut [u8]> {
    let len = checked(p.is_null(), len)?;
    if len == 0 {
        return Ok(&mut []);
    }
    // SAFETY: not null, at most `isize::MAX` bytes, and ours alone by the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts_mut(p, len) })
}

fn checked(null: bool, len: CK_ULONG) -> Result<usize> {
    match usize::try_from(len) {
        Ok(n) if n <= LONGEST && !(null && n > 0) => Ok(n),
        _ => Err(Rv::ARGUMENTS_BAD),
    }
}

/// Reads a `T` at `base + offset`, whatever its alignment.
///
/// # Safety
/// That memory is readable and holds a valid `T`.
pub(crate) unsafe fn load<T: Copy>(base: *const u8, offset: usize) -> T {
    let at = base.wrapping_add(offset).cast::<T>();
    // SAFETY: readable and valid by the caller's promise.
    unsafe { at.read_unaligned() }
}

/// Writes a `T` at `base + offset`, whatever its alignment.
///
/// # Safety
/// That memory is writable.
pub(crate) unsafe fn store<T: Copy>(base: *mut u8, offset: usize, value: T) {
    let at = base.wrapping_add(offset).cast::<T>();
    // SAFETY: writable by the caller's promise.
    unsafe { at.write_unaligned(value) }
}

/// Writes a `CK_ULONG` where it differs from what is there: a caller's structure may be in read-only memory.
///
/// # Safety
/// That memory is readable, and writable where it may have to change.
pub(crate) unsafe fn store_if_changed(base: *mut u8, offset: usize, value: Ulong) {
    // SAFETY: readable by the caller's promise.
    let old: Ulong = unsafe { load(base, offset) };
    if old != value {
        // SAFETY: writable by the caller's promise, as it has to change.
        unsafe { store(base, offset, value) }
    }
}

/// Copies bytes over a caller's where they differ: an IV that no token changes may be in read-only memory.
///
/// # Safety
/// `to` points at `from.len()` readable bytes, writable where they may have to change.
pub(crate) unsafe fn copy_if_changed(to: *mut u8, from: &[u8]) {
    if from.is_empty() {
        return;
    }
    let same = {
        // SAFETY: readable by the caller's promise; the borrow ends before anything is written.
        let old = unsafe { std::slice::from_raw_parts(to.cast_const(), from.len()) };
        old == from
    };
    if !same {
        // SAFETY: writable by the caller's promise; `from` is our own memory, so they do not overlap.
        unsafe { to.copy_from_nonoverlapping(from.as_ptr(), from.len()) }
    }
}

/// Copies `len` bytes out of foreign memory.
///
/// # Safety
/// `from` is not null when `len > 0`, and points at `len` readable bytes; `len` is at most `isize::MAX`.
pub(crate) unsafe fn copy_out(from: *const u8, len: usize) -> Vec<u8> {
    if len == 0 {
        return Vec::new();
    }
    // SAFETY: by the caller's promise; the borrow ends with this statement.
    unsafe { std::slice::from_raw_parts(from, len) }.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_empty_only_with_length_zero() {
        // SAFETY: null pointers are what is checked.
        let empty = unsafe { slice(std::ptr::null(), 0) };
        assert_eq!(empty, Ok(&[][..]));
        // SAFETY: as above.
        assert_eq!(unsafe { slice(std::ptr::null(), 1) }, Err(Rv::ARGUMENTS_BAD));
        // SAFETY: as above.
        assert_eq!(unsafe { slice_mut(std::ptr::null_mut(), 1) }, Err(Rv::ARGUMENTS_BAD));
    }

    #[test]
    fn lengths_end_where_memory_does() {
        let byte = 0u8;
        // SAFETY: refused before the pointer is used.
        assert_eq!(unsafe { slice(&raw const byte, isize::MAX as CK_ULONG) }, Err(Rv::ARGUMENTS_BAD));
        // SAFETY: refused before the pointer is used.
        assert_eq!(unsafe { slice(&raw const byte, isize::MAX as CK_ULONG + 1) }, Err(Rv::ARGUMENTS_BAD));
        // SAFETY: one byte is there.
        assert_eq!(unsafe { slice(&raw const byte, 1) }, Ok(&[0][..]));
    }
}
