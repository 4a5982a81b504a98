//! Reading a ledger that another copy of this library in this process has open: from a copy of its files.
//!
//! Why not from the files themselves [`sole`](super::sole) tells. They are read without a lock, and what was opened for
//! it is never closed.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ha_member::ForkLock;
use tempfile::TempDir;

/// How often a copy is begun anew because somebody wrote meanwhile.
const TRIES: usize = 1000;
/// The write-ahead log's header: its two salts change when it is begun from the start.
const SALTS: std::ops::Range<usize> = 16..24;

/// Every file that was ever read: to close one would take away the locks that the other copy's SQLite has on it.
static OPEN: ForkLock<Vec<File>> = ForkLock::new(Vec::new());

/// A copy of the ledger at `path` in a folder of its own, with its place there. It is consistent, and does not change.
///
/// # Errors
/// The operating system's; `WouldBlock` when writers leave no moment to read in.
pub(super) fn copy(path: &Path) -> std::io::Result<(TempDir, PathBuf)> {
    let log_path = PathBuf::from(format!("{}-wal", path.display()));
    for _ in 0..TRIES {
        let (log_before, changed_before) = (read(&log_path)?, changed(path)?);
        let database = read(path)?.unwrap_or_default();
        let (log, changed_after) = (read(&log_path)?, changed(path)?);
        // What was written meanwhile is in the log's end, where SQLite looks at checksums; what went from the log into the
        // database meanwhile, or a log that was begun anew, makes it another try.
        let salts = |log: &Option<Vec<u8>>| log.as_ref().map(|l| l.get(SALTS).map(<[u8]>::to_vec));
        if changed_before != changed_after || salts(&log_before) != salts(&log) {
            continue;
        }
        let folder = tempfile::Builder::new().prefix("pkcs11-ha-").tempdir()?;
        let place = folder.path().join("copy.ledger");
        write(&place, &database)?;
        if let Some(log) = log {
            write(&folder.path().join("copy.ledger-wal"), &log)?;
        }
        return Ok((folder, place));
    }
    Err(std::io::Error::new(std::io::ErrorKind::WouldBlock, "it is written all the time"))
}

fn changed(path: &Path) -> std::io::Result<(SystemTime, u64)> {
    let meta = std::fs::metadata(path)?;
    Ok((meta.modified()?, meta.len()))
}

/// A file's bytes; `None` if it is not there.
fn read(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    let there = match std::fs::metadata(path) {
        Ok(meta) => (meta.dev(), meta.ino()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut open = OPEN.lock();
    let is_it = |file: &File| file.metadata().is_ok_and(|m| (m.dev(), m.ino()) == there);
    if !open.iter().any(is_it) {
        let file = File::open(path)?;
        open.push(file);
    }
    let Some(file) = open.iter().find(|f| is_it(f)) else { return Ok(None) };
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX)];
    let mut len = 0;
    while let Some(rest) = bytes.get_mut(len..).filter(|r| !r.is_empty()) {
        match file.read_at(rest, len as u64)? {
            0 => break,
            n => len += n,
        }
    }
    bytes.truncate(len);
    Ok(Some(bytes))
}

fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?.write_all(bytes)
}
