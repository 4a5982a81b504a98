//! Locks among the processes of a host, each a file beside the ledger.
//!
//! They are of the kind that belongs to an open file (`flock`), so that they go with the process, however that ends. A
//! forked child has the file open too: a lock is let go in so many words, not by closing, or the child would keep it.

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use ha_member::fork_generation;

/// A lock that is held; let go when dropped, by the process that took it.
pub struct HostLock {
    file: Arc<File>,
    generation: u64,
}

impl HostLock {
    /// Takes the lock on an open file by one of [`File`]'s ways to try that.
    ///
    /// # Errors
    /// As `lock`.
    pub(crate) fn take(
        file: File,
        lock: impl Fn(&File) -> Result<(), TryLockError>,
    ) -> Result<Self, (File, TryLockError)> {
        match lock(&file) {
            Ok(()) => Ok(HostLock { file: Arc::new(file), generation: fork_generation() }),
            Err(error) => Err((file, error)),
        }
    }

    /// Whether this process took it: a forked child inherits it, and must leave it alone.
    pub(crate) fn is_ours(&self) -> bool {
        self.generation == fork_generation()
    }

    /// It is this process's alone, and ends with it: a simulation, whose processes are one, has to be told.
    pub(super) fn of_this_process(self) -> Self {
        #[cfg(feature = "simulation")]
        crate::seam::turns::holds(&self.file);
        self
    }

    /// The file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for HostLock {
    fn drop(&mut self) {
        if self.is_ours() {
            _ = self.file.unlock();
        }
        #[cfg(feature = "simulation")]
        crate::seam::turns::step(None);
    }
}

/// Whether an open file is the one of this name: it may have been removed since, and another one made.
pub(crate) fn is_file_of(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// The namespace of this process's number.
pub(crate) fn namespace() -> u64 {
    // Without /proc there are no containers to tell apart.
    std::fs::metadata("/proc/self/ns/pid").map_or(0, |m| m.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_was_let_go_is_not_kept_by_who_has_the_file_open_too() {
        let dir = tempfile::tempdir().unwrap();
        let open = || File::create(dir.path().join("lock")).unwrap();
        let held = HostLock::take(open(), File::try_lock).ok().unwrap();
        // What a forked child has.
        let child = held.file().try_clone().unwrap();
        assert!(HostLock::take(open(), File::try_lock).is_err());
        drop(held);
        assert!(HostLock::take(open(), File::try_lock).is_ok());
        drop(child);
    }

    #[test]
    fn what_another_process_took_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let open = || File::create(dir.path().join("lock")).unwrap();
        let file = open();
        file.try_lock().unwrap();
        let parents = HostLock {
            file: Arc::new(file.try_clone().unwrap()),
            generation: fork_generation().wrapping_sub(1),
        };
        drop(parents);
        assert!(HostLock::take(open(), File::try_lock).is_err());
    }
}
