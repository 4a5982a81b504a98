//! The end of a ledger: its group was dissolved.

use std::path::PathBuf;

use super::{Ledger, LedgerError};

/// What a ledger is called that was put aside.
const EXTENSION: &str = "dissolved";

impl Ledger {
    /// Closes it for good, and puts its file aside. Answers where that is.
    ///
    /// # Errors
    /// [`LedgerError::Place`] while another process has it open; else [`LedgerError`].
    pub fn retire(self) -> Result<PathBuf, LedgerError> {
        let place = |reason: String| LedgerError::Place { path: self.path.clone(), reason };
        {
            let connection = self.writable()?;
            // Also takes its journal in, and can be done by the only one that has it open.
            let mode: String =
                connection.pragma_update_and_check(None, "journal_mode", "DELETE", |r| r.get(0))?;
            if mode != "delete" {
                return Err(place("another process has it open".into()));
            }
        }
        let free = (0u32..).map(|n| match n {
            0 => self.path.with_extension(EXTENSION),
            n => self.path.with_extension(format!("{EXTENSION}-{n}")),
        });
        let aside =
            free.into_iter().find(|p| !p.exists()).unwrap_or_else(|| self.path.with_extension(EXTENSION));
        std::fs::rename(&self.path, &aside).map_err(|e| place(e.to_string()))?;
        Ok(aside)
    }
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
        let aside = first.retire().unwrap();
        let second = open(dir.path());
        assert_eq!(second.remember_member("a", "2").unwrap(), None);
        let other = second.retire().unwrap();
        assert!(aside.exists() && other.exists() && aside != other);
        let ledgers = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
        assert_eq!(ledgers.filter(|p| p.to_string_lossy().contains(".ledger")).count(), 0);
    }

    #[test]
    fn one_that_somebody_else_has_open_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (open(dir.path()), open(dir.path()));
        let path = one.path.clone();
        assert!(one.retire().is_err());
        assert!(path.exists());
        assert_eq!(other.remember_member("a", "1").unwrap(), None);
    }
}
