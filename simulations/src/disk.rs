//! The disk that the ledger is on, and what becomes of the files there.
//!
//! That it is full is told to the core at each write (`Turns::disk_is_full`). Everything else is done to the files: between
//! two lives of the process, or under it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use crate::plan::{End, Op};

/// What a log ends with that was being written when the power went: the beginning of a frame.
const TORN: [u8; 100] = [0xa5; 100];

/// The ledger's files at one moment.
type Files = BTreeMap<OsString, Vec<u8>>;

/// The folder of the group's state, in one history.
pub struct Disk {
    folder: PathBuf,
    /// Operations of the application in this life of the process.
    operations: AtomicUsize,
    /// Before which of them the files are copied.
    copied_at: AtomicUsize,
    copy: Mutex<Option<Files>>,
}

impl Disk {
    /// A disk whose folder is made by who first needs it.
    pub fn new(folder: PathBuf) -> Self {
        Disk {
            folder,
            operations: AtomicUsize::new(0),
            copied_at: AtomicUsize::new(usize::MAX),
            copy: Mutex::default(),
        }
    }

    /// A life of the process begins that will end so.
    pub fn begin_life(&self, threads: &[Vec<Op>], end: End) {
        let all: usize = threads.iter().map(Vec::len).sum();
        let at = match end {
            End::Old { after } => all * usize::from(after) / 256,
            End::Kept | End::Torn | End::Gone => usize::MAX,
        };
        self.operations.store(0, Ordering::Release);
        self.copied_at.store(at, Ordering::Release);
    }

    /// An operation of the application begins.
    pub fn operation_begins(&self) {
        if self.operations.fetch_add(1, Ordering::AcqRel) == self.copied_at.load(Ordering::Acquire) {
            self.keep();
        }
    }

    /// Keeps the files as they are. No thread is in the middle of a transaction: none hands its turn on in one.
    pub fn keep(&self) {
        let files = self.read();
        *self.copy.lock().unwrap_or_else(PoisonError::into_inner) = Some(files);
    }

    /// The process has ended, and this becomes of its files. Answers whether they tell less than they did.
    pub fn end_life(&self, end: End) -> bool {
        let copy = self.copy.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (end, copy) {
            (End::Kept, _) | (End::Torn | End::Old { .. }, None) => false,
            (End::Torn, Some(mut files)) => {
                let log = files.iter_mut().find(|(name, _)| is_log(name));
                log.into_iter().for_each(|(_, bytes)| bytes.extend(TORN));
                self.put(&files);
                false
            }
            (End::Old { .. }, Some(files)) => {
                self.put(&files);
                true
            }
            (End::Gone, _) => {
                self.remove();
                true
            }
        }
    }

    /// The file beside a group's ledger in which processes tell each other what they destroy cannot be had: a folder has its name.
    pub fn silence(&self, group: &str) {
        let digest: String = Sha256::digest(group).iter().take(4).map(|b| format!("{b:02x}")).collect();
        let made = std::fs::create_dir_all(self.folder.join(format!("{group}-{digest}.word")));
        made.expect("a folder can be made where nothing is yet");
    }

    /// The folder goes, whoever has files in it open.
    pub fn remove(&self) {
        _ = std::fs::remove_dir_all(&self.folder);
    }

    fn put(&self, files: &Files) {
        self.remove();
        std::fs::create_dir(&self.folder).expect("the folder can be made again");
        for (name, bytes) in files {
            std::fs::write(self.folder.join(name), bytes).expect("a file that was there can be there again");
        }
    }

    fn read(&self) -> Files {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let files = entries.map(|e| (e.file_name(), e.path())).filter(|(name, _)| is_durable(name));
        files.filter_map(|(name, path)| Some((name, std::fs::read(path).ok()?))).collect()
    }
}

/// Locks, and the memory that connections share, mean nothing to the next process.
fn is_durable(name: &OsString) -> bool {
    Path::new(name).extension().is_some_and(|e| e == "ledger") || is_log(name)
}

fn is_log(name: &OsString) -> bool {
    Path::new(name).extension().is_some_and(|e| e == "ledger-wal")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (tempfile::TempDir, Disk) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("state");
        std::fs::create_dir(&folder).unwrap();
        for (name, bytes) in
            [("g.ledger", "one"), ("g.ledger-wal", "two"), ("g.lock", ""), ("g.ledger-shm", "x")]
        {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
        (dir, Disk::new(folder))
    }

    fn found(disk: &Disk, name: &str) -> Option<Vec<u8>> {
        std::fs::read(disk.folder.join(name)).ok()
    }

    #[test]
    fn an_old_copy_is_of_the_moment_that_was_drawn() {
        let (_dir, disk) = disk();
        disk.begin_life(&[vec![Op::Shared; 2], vec![Op::Shared; 2]], End::Old { after: 128 });
        for n in 0..4 {
            std::fs::write(disk.folder.join("g.ledger"), [n]).unwrap();
            disk.operation_begins();
        }
        assert!(disk.end_life(End::Old { after: 128 }));
        assert_eq!(found(&disk, "g.ledger"), Some(vec![2]));
        assert_eq!(found(&disk, "g.lock"), None);
    }

    #[test]
    fn what_was_synced_is_there_when_the_power_was_gone() {
        let (_dir, disk) = disk();
        disk.begin_life(&[], End::Torn);
        disk.keep();
        std::fs::remove_file(disk.folder.join("g.ledger-wal")).unwrap();
        assert!(!disk.end_life(End::Torn));
        assert_eq!(found(&disk, "g.ledger"), Some(b"one".to_vec()));
        assert!(found(&disk, "g.ledger-wal").unwrap().starts_with(b"two\xa5"));
        assert_eq!(found(&disk, "g.ledger-shm"), None);
        assert!(disk.end_life(End::Gone) && !disk.folder.exists());
    }
}
