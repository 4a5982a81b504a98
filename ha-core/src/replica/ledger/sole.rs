//! One copy of this library in a process has a ledger open, and no other.
//!
//! A program may have the library linked in and load it as a PKCS#11 module too: two copies, each with an SQLite of its
//! own. SQLite's locks are POSIX locks, which belong to the process: what one copy unlocks, and every descriptor of the
//! file that it closes, takes the other one's locks away, and other processes then write into what it reads. So the copy
//! that comes second must not let its SQLite near the file, not even for reading; it reads a copy (`beside`).
//!
//! The copies share nothing but the process, and find each other by a file beside the ledger that is named after it:
//! whoever has the ledger open holds a lock of the kind that belongs to an open file (`flock`), which two copies cannot
//! both hold. It goes with the process, however that ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use ha_member::{ForkLock, open_plain};

use super::LedgerError;
use super::host::{HostLock, is_file_of, namespace};

/// The file's extension.
const EXTENSION: &str = "inuse";

/// What this copy holds: one for each ledger, shared by everything that opens it here.
static HELD: ForkLock<Vec<(PathBuf, Weak<Sole>)>> = ForkLock::new(Vec::new());

/// The right to have a ledger open in this process.
pub(super) struct Sole {
    lock: HostLock,
    path: PathBuf,
}

/// Whether this copy may open a ledger.
pub(super) enum Claim {
    /// It may, as long as this is kept. `None` where no file can be made beside the ledger: then nobody in this process
    /// writes to it either.
    Ours(Option<Arc<Sole>>),
    /// Another copy of this library in this process has it open.
    Taken,
}

/// Takes the right to open the ledger at `path`, whose folder exists.
///
/// # Errors
/// [`LedgerError::Place`] when that cannot be found out.
pub(super) fn claim(path: &Path) -> Result<Claim, LedgerError> {
    let place = |reason: String| LedgerError::Place { path: path.to_owned(), reason };
    let mut held = HELD.lock();
    held.retain(|(_, sole)| sole.strong_count() > 0);
    let path = claim_file(path).map_err(|e| place(e.to_string()))?;
    let ours = held.iter().filter(|(p, _)| *p == path).find_map(|(_, sole)| sole.upgrade());
    // After a fork the parent's is there too: not this process's.
    if let Some(sole) = ours.filter(|s| s.lock.is_ours()) {
        return Ok(Claim::Ours(Some(sole)));
    }
    loop {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true).mode(0o600);
        let opened = open_plain(&mut options, &path);
        let file = match opened {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
                return Ok(Claim::Ours(None));
            }
            Err(e) => return Err(place(e.to_string())),
        };
        let lock = match HostLock::take(file, File::try_lock) {
            Ok(lock) => lock,
            Err((_, TryLockError::WouldBlock)) => return Ok(Claim::Taken),
            Err((_, TryLockError::Error(e))) => return Err(place(e.to_string())),
        };
        // It may have been removed by who had it before, between the opening and the lock.
        if !is_file_of(lock.file(), &path) {
            continue;
        }
        remove_forsaken(&path);
        let sole = Arc::new(Sole { lock, path: path.clone() });
        held.push((path, Arc::downgrade(&sole)));
        return Ok(Claim::Ours(Some(sole)));
    }
}

impl Drop for Sole {
    fn drop(&mut self) {
        if self.lock.is_ours() {
            // Removed while it is locked: nobody else takes it for his then. What stays behind is used again, or removed.
            _ = std::fs::remove_file(&self.path);
        }
    }
}

/// `<ledger>.<pid namespace>-<pid>.inuse`: a number alone may be that of a process in another container.
fn claim_file(ledger: &Path) -> std::io::Result<PathBuf> {
    let folder = ledger.parent().unwrap_or(Path::new(".")).canonicalize()?;
    let name = ledger.file_stem().unwrap_or_default().to_string_lossy();
    Ok(folder.join(format!("{name}.{}-{}.{EXTENSION}", namespace(), std::process::id())))
}

/// Removes what processes of this namespace left that ended without a chance to.
fn remove_forsaken(mine: &Path) {
    let Some(name) = mine.file_name().and_then(|n| n.to_str()) else { return };
    let own = format!("{}.{EXTENSION}", std::process::id());
    let (Some(prefix), Some(folder)) = (name.strip_suffix(&own), mine.parent()) else { return };
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let other = entry.file_name();
        let pid = other
            .to_str()
            .and_then(|n| n.strip_prefix(prefix))
            .and_then(|n| n.strip_suffix(&format!(".{EXTENSION}")))
            .and_then(|n| n.parse::<u32>().ok());
        let Some(pid) = pid.filter(|p| !Path::new("/proc").join(p.to_string()).exists()) else { continue };
        // A process whose folder cannot be seen holds the lock all the same.
        if let Ok(file) = open_plain(OpenOptions::new().read(true), &entry.path())
            && file.try_lock().is_ok()
            && std::fs::remove_file(entry.path()).is_ok()
        {
            tracing::debug!(pid, "a process had ended without closing the ledger");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_copy_shares_its_right_and_another_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("g-1.ledger");
        let ours = || match claim(&ledger).unwrap() {
            Claim::Ours(sole) => sole.unwrap(),
            Claim::Taken => panic!("taken"),
        };
        let (one, two) = (ours(), ours());
        assert!(Arc::ptr_eq(&one, &two));
        // What another copy does: it opens the file for itself.
        let other = File::open(&one.path).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        let path = one.path.clone();
        drop(one);
        assert!(path.exists());
        drop(two);
        assert!(!path.exists());
        drop(ours());
        let elsewhere = File::create(&path).unwrap();
        elsewhere.try_lock().unwrap();
        assert!(matches!(claim(&ledger), Ok(Claim::Taken)));
    }

    #[test]
    fn what_a_dead_process_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("g-1.ledger");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = dir.path().join(format!("g-1.{}-{}.{EXTENSION}", namespace(), child.id()));
        child.wait().unwrap();
        let parent = dir.path().join(format!("g-1.{}-1.{EXTENSION}", namespace()));
        let others = dir.path().join(format!("g-2.{}-{}.{EXTENSION}", namespace(), child.id()));
        for path in [&dead, &parent, &others] {
            File::create(path).unwrap();
        }
        let _claim = claim(&ledger).unwrap();
        assert!(!dead.exists(), "its process is gone");
        assert!(parent.exists(), "its process lives");
        assert!(others.exists(), "another ledger's");
    }
}
