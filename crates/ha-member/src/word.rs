//! [`SharedWord`]: a number in a file that the processes of a host see at once, without a call to the kernel.

use std::fs::OpenOptions;
use std::io::{Error, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

use crate::plain::open_plain;

/// A number that every process that has opened the same file reads and raises. May be used from any thread, and on both
/// sides of a fork.
pub struct SharedWord(MmapRaw);

impl SharedWord {
    /// Opens the file, or makes it, readable by its owner only. Nobody may make it shorter while it is open: as with all
    /// mapped memory, who reads it then is ended by the kernel (`SIGBUS`).
    ///
    /// # Errors
    /// Where it cannot be made, written or mapped.
    pub fn open(path: &Path) -> Result<SharedWord, Error> {
        let mut file = open_plain(OpenOptions::new().read(true).append(true).create(true).mode(0o600), path)?;
        // Written, because a hole could not be filled on a full disk; at the end, because another process may do the same
        // and have raised the number already.
        if file.metadata()?.len() < 8 {
            file.write_all(&[0; 8])?;
        }
        Ok(SharedWord(MmapOptions::new().len(8).map_raw(&file)?))
    }

    fn word(&self) -> &AtomicU64 {
        let word = self.0.as_mut_ptr().cast::<u64>();
        // SAFETY: the mapping is readable, writable, page-aligned, 8 bytes long and lives as long as `self`; it is only ever
        // read and written through atomics of this size, by every process.
        unsafe { AtomicU64::from_ptr(word) }
    }

    /// The number. What was written before it was raised to this, in whichever process, is seen by who reads it.
    pub fn get(&self) -> u64 {
        self.word().load(Ordering::Acquire)
    }

    /// Raises the number by one; answers what it was.
    pub fn raise(&self) -> u64 {
        self.word().fetch_add(1, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_raises_another_sees() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("word");
        let (one, other) = (SharedWord::open(&path).unwrap(), SharedWord::open(&path).unwrap());
        assert_eq!((one.get(), other.get()), (0, 0));
        assert_eq!(one.raise(), 0);
        assert_eq!((one.get(), other.get()), (1, 1));
        drop((one, other));
        assert_eq!(SharedWord::open(&path).unwrap().get(), 1);
    }

    #[test]
    fn one_that_is_short_is_made_whole_and_a_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("word");
        std::fs::write(&path, [0; 3]).unwrap();
        SharedWord::open(&path).unwrap().raise();
        assert_eq!(SharedWord::open(&path).unwrap().get(), 1);
        assert!(SharedWord::open(dir.path()).is_err());
    }
}
