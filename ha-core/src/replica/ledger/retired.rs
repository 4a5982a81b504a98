//! The end of a ledger: its group was dissolved, or another one takes its place.

use std::path::{Path, PathBuf};

use super::{Ledger, LedgerError};

impl Ledger {
    /// Closes it for good, and puts its file aside, with this extension. Answers where that is.
    ///
    /// # Errors
    /// [`LedgerError::Place`] while another process has it open; else [`LedgerError`].
    pub fn retire(self, extension: &str) -> Result<PathBuf, LedgerError> {
        let place = |reason: String| LedgerError::Place { path: self.path.clone(), reason };
        self.make_one_file()?;
        let aside = aside(&self.path, extension);
        std::fs::rename(&self.path, &aside).map_err(|e| place(e.to_string()))?;
        Ok(aside)
    }

    /// Another one, made in a folder of the same file system, takes its place in one step; its own file is put aside, with
    /// this extension. Answers where that is.
    ///
    /// # Errors
    /// [`LedgerError::Place`] while another process has one of them open; else [`LedgerError`]: it is as it was.
    pub fn give_way_to(self, new: Ledger, extension: &str) -> Result<PathBuf, LedgerError> {
        let place = |e: std::io::Error| LedgerError::Place { path: self.path.clone(), reason: e.to_string() };
        new.make_one_file()?;
        self.make_one_file()?;
        let aside = aside(&self.path, extension);
        let mode = std::fs::metadata(&self.path).map_err(place)?.permissions();
        std::fs::set_permissions(&new.path, mode).map_err(place)?;
        // Where the file system has no second names.
        if std::fs::hard_link(&self.path, &aside).is_err() {
            std::fs::copy(&self.path, &aside).map_err(place)?;
        }
        std::fs::rename(&new.path, &self.path)
            .map_err(place)
            .inspect_err(|_| _ = std::fs::remove_file(&aside))?;
        Ok(aside)
    }

    /// Closes it, and puts its file into another folder of the same file system, where no other one may be.
    ///
    /// # Errors
    /// [`LedgerError::Place`] while another process has it open, and where one is there; else [`LedgerError`].
    pub fn move_to(self, dir: &Path) -> Result<(), LedgerError> {
        self.make_one_file()?;
        let to = dir.join(self.path.file_name().unwrap_or_default());
        let place = |e: std::io::Error| LedgerError::Place { path: to.clone(), reason: e.to_string() };
        // Made first, since a new name would take the place of one that somebody has begun meanwhile.
        std::fs::OpenOptions::new().write(true).create_new(true).open(&to).map_err(place)?;
        std::fs::rename(&self.path, &to).map_err(place).inspect_err(|_| _ = std::fs::remove_file(&to))
    }

    /// Its journal is taken in: the file is all of it.
    fn make_one_file(&self) -> Result<(), LedgerError> {
        // Can be done by the only one that has it open.
        let connection = self.writable()?;
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "DELETE", |r| r.get(0))?;
        match mode.as_str() {
            "delete" => Ok(()),
            _ => Err(LedgerError::Place {
                path: self.path.clone(),
                reason: "another process has it open".into(),
            }),
        }
    }
}

/// A free name beside a ledger, with this extension.
fn aside(path: &Path, extension: &str) -> PathBuf {
    let free = (0u32..).map(|n| match n {
        0 => path.with_extension(extension),
        n => path.with_extension(format!("{extension}-{n}")),
    });
    free.into_iter().find(|p| !p.exists()).unwrap_or_else(|| path.with_extension(extension))
}

/// Puts a file aside that is no ledger any more, and its journals with it. Answers where it is.
///
/// # Errors
/// The operating system's.
pub(crate) fn put_aside(path: &Path, extension: &str) -> std::io::Result<PathBuf> {
    let aside = aside(path, extension);
    let beside = |path: &Path, word: &str| PathBuf::from(format!("{}-{word}", path.display()));
    for word in ["wal", "shm"] {
        match std::fs::rename(beside(path, word), beside(&aside, word)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    std::fs::rename(path, &aside)?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn open(dir: &std::path::Path) -> Ledger {
        Ledger::open(dir, "g", Duration::ZERO, &mut |bytes| bytes.fill(7)).unwrap()
    }

    #[test]
    fn a_ledger_that_is_retired_makes_room_for_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path());
        first.remember_member("a", "1").unwrap();
        let aside = first.retire("dissolved").unwrap();
        let second = open(dir.path());
        assert_eq!(second.remember_member("a", "2").unwrap(), None);
        let other = second.retire("dissolved").unwrap();
        assert!(aside.exists() && other.exists() && aside != other);
        let ledgers = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
        assert_eq!(ledgers.filter(|p| p.to_string_lossy().contains(".ledger")).count(), 0);
    }

    #[test]
    fn one_that_somebody_else_has_open_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (open(dir.path()), open(dir.path()));
        let path = one.path.clone();
        assert!(one.retire("dissolved").is_err());
        assert!(path.exists());
        assert_eq!(other.remember_member("a", "1").unwrap(), None);
    }
}
