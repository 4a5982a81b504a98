//! Memory for secrets: locked against being swapped out, left out of core dumps, wiped when it is given back.

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Once;

use zeroize::{Zeroize, Zeroizing};

/// A few secret bytes: a PIN, a key. Pages of their own hold them, so that locking and unlocking one never touches
/// another; a forked child finds zeros there. Never printed.
pub struct Secret(Place);

enum Place {
    Pages(Pages),
    /// The system gave no pages: better a PIN that may be swapped out than no login.
    Heap(Zeroizing<Vec<u8>>),
}

struct Pages {
    start: NonNull<u8>,
    mapped: usize,
    len: usize,
}

// SAFETY: the pages belong to this value alone and are only read while it is shared.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Secret {
    /// Keeps a copy of these bytes. Where the process may lock no more memory that is told once, in the log.
    pub fn new(bytes: &[u8]) -> Self {
        match Pages::map(bytes) {
            Ok(pages) => Secret(Place::Pages(pages)),
            Err(error) => {
                warn(&error);
                Secret(Place::Heap(Zeroizing::new(bytes.to_vec())))
            }
        }
    }
}

fn warn(error: &std::io::Error) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing::warn!(%error, "PINs in memory may be swapped out or dumped: the process may lock no more memory; raise its limit (ulimit -l, LimitMEMLOCK=)");
    });
}

impl Pages {
    fn map(bytes: &[u8]) -> std::io::Result<Self> {
        let mapped = bytes.len().max(1);
        // SAFETY: a new private mapping, at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        let start = match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => start,
            _ => return Err(std::io::Error::last_os_error()),
        };
        let mut pages = Pages { start, mapped, len: bytes.len() };
        // SAFETY: the mapping above, whole.
        let mut kept = unsafe { libc::mlock(start.as_ptr().cast(), mapped) };
        for advice in [libc::MADV_DONTDUMP, libc::MADV_WIPEONFORK] {
            // SAFETY: as above; neither piece of advice changes what this process reads.
            kept |= unsafe { libc::madvise(start.as_ptr().cast(), mapped, advice) };
        }
        if kept != 0 {
            warn(&std::io::Error::last_os_error());
        }
        pages.bytes().copy_from_slice(bytes);
        Ok(pages)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes of the mapping, which is writable, initialised by the kernel and borrowed with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.bytes().zeroize();
        // SAFETY: the mapping is this value's own, and nobody borrows it any more. That also unlocks it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.mapped) };
    }
}

impl Deref for Secret {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            // SAFETY: as in `bytes`, and nobody writes while `self` is borrowed.
            Place::Pages(p) => unsafe { std::slice::from_raw_parts(p.start.as_ptr(), p.len) },
            Place::Heap(bytes) => bytes,
        }
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's flags of the mapping that holds an address; empty if none does.
    fn flags(address: usize) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut here = false;
        for line in smaps.lines() {
            let first = line.split(' ').next().unwrap_or_default();
            if let Some((from, to)) = first.split_once('-') {
                let number = |s| usize::from_str_radix(s, 16).unwrap();
                here = (number(from)..number(to)).contains(&address);
            } else if here && let Some(flags) = line.strip_prefix("VmFlags: ") {
                return flags.to_owned();
            }
        }
        String::new()
    }

    #[test]
    fn a_secret_is_locked_and_not_dumped() {
        let secret = Secret::new(b"1234");
        assert_eq!(&*secret, b"1234");
        assert_eq!(format!("{secret:?}"), "Secret");
        let there = flags(secret.as_ptr() as usize);
        for flag in ["lo", "dd", "wf"] {
            assert!(there.split(' ').any(|f| f == flag), "{flag}: {there}");
        }
    }

    #[test]
    fn an_empty_secret_is_one_too() {
        assert_eq!(&*Secret::new(b""), b"");
    }
}
