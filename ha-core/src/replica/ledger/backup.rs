//! A copy of the ledger in a file of its own, and a ledger made of such a file.
//!
//! A backup is older than the tokens. What was only begun when it was made may have been acknowledged since, or undone: it
//! is forgotten, and found as an object that the ledger does not know. What it knows is compared with the tokens before it
//! counts ([`Group::compare_restored`](crate::group::Group::compare_restored)).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ha_member::whole::Whole;
use rusqlite::{Connection, OpenFlags, params};

use super::open::{FORMAT, file_name, format};
use super::statements::Statements as _;
use super::{Ledger, LedgerError, ObjectId};

type Result<T> = std::result::Result<T, LedgerError>;

/// What was not settled when the backup was made. A change goes forward, as where its process died. The tokens' markers may
/// be later by now.
const BEGUN: &str = "DELETE FROM blob WHERE object IN (SELECT id FROM object WHERE state IN (0, 1));
DELETE FROM copy WHERE object IN (SELECT id FROM object WHERE state IN (0, 1));
DELETE FROM object WHERE state IN (0, 1);
UPDATE object SET state = 2, version = version + 1 WHERE state = 3;
INSERT OR IGNORE INTO orphaned SELECT number FROM undecided;
DELETE FROM undecided;
DELETE FROM mark;
DELETE FROM untold;
INSERT OR REPLACE INTO meta VALUES ('restored', 1);";

/// What the ledger that is there knows to be destroyed, and nothing else can tell. Both have the columns of one format, in one
/// order.
const DESTROYED: &str = "DELETE FROM blob WHERE object IN (SELECT id FROM present.object WHERE state IN (3, 4));
DELETE FROM copy WHERE object IN (SELECT id FROM present.object WHERE state IN (3, 4));
INSERT OR REPLACE INTO object SELECT * FROM present.object WHERE state IN (3, 4);
UPDATE object SET state = 4 WHERE state = 3;
INSERT INTO copy SELECT * FROM present.copy WHERE object IN (SELECT id FROM present.object WHERE state IN (3, 4));
UPDATE object SET state = 4 WHERE id IN (SELECT id FROM present.settled);
DELETE FROM blob WHERE object IN (SELECT id FROM object WHERE state = 4);
INSERT OR REPLACE INTO settled SELECT * FROM present.settled WHERE id NOT IN (SELECT id FROM object);";

/// And which PINs were refused.
const REFUSED: &str = "DELETE FROM refused;
INSERT INTO refused SELECT * FROM present.refused;
INSERT OR REPLACE INTO meta SELECT * FROM present.meta WHERE key LIKE 'pins set%';";

impl Ledger {
    /// Writes the ledger as it is at this moment into a new file, which only this user can read. Others may go on writing
    /// to the ledger.
    ///
    /// # Errors
    /// [`LedgerError::Place`] for a file that is there already, or cannot be made; else [`LedgerError`]: no file is left.
    pub fn backup(&self, to: &Path) -> Result<()> {
        let place = |e: std::io::Error| LedgerError::Place { path: to.to_owned(), reason: e.to_string() };
        // Made here with its mode: SQLite writes into an empty file as into none.
        let file = new_file(to).map_err(place)?;
        let write = || {
            let name = to.to_str().ok_or_else(|| LedgerError::Place {
                path: to.to_owned(),
                reason: "its name is not UTF-8".into(),
            })?;
            self.connection()?.execute("VACUUM INTO ?1", [name])?;
            file.sync_all().map_err(place)
        };
        write().inspect_err(|_| _ = std::fs::remove_file(to))
    }

    /// Makes of a backup the ledger that a group of this label has in `dir`, where there is none. It is yet to be compared
    /// with the tokens. What the `present` one knows of destructions and of refused PINs is taken over.
    ///
    /// # Errors
    /// [`LedgerError::Place`] for a file that is no ledger, is damaged or cannot be read, and where a ledger is there;
    /// [`LedgerError::Newer`] for one that a newer version made; else [`LedgerError`].
    pub fn from_backup(from: &Path, dir: &Path, group: &str, present: Option<&Ledger>) -> Result<()> {
        // As for every connection: a fork waits for it.
        let _whole = Whole::begin();
        let path = dir.join(file_name(group));
        let place = |reason: String| LedgerError::Place { path: from.to_owned(), reason };
        let mut source = File::open(from).map_err(|e| place(e.to_string()))?;
        let mut file =
            new_file(&path).map_err(|e| LedgerError::Place { path: path.clone(), reason: e.to_string() })?;
        let make = || {
            std::io::copy(&mut source, &mut file).map_err(|e| place(e.to_string()))?;
            drop(file);
            let mut connection = Connection::open_with_flags(
                &path,
                OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            )?;
            let damaged = |e: rusqlite::Error| place(format!("it is no ledger, or is damaged: {e}"));
            let found = format(&connection).map_err(damaged)?;
            if found > FORMAT {
                return Err(LedgerError::Newer { path: from.to_owned(), found, known: FORMAT });
            }
            let sound: String =
                connection.pragma_query_value(None, "integrity_check", |r| r.get(0)).map_err(damaged)?;
            if found != FORMAT || sound != "ok" {
                return Err(place(format!("it is no ledger, or is damaged: {sound}")));
            }
            if let Some(present) = present {
                attach(&connection, present)?;
            }
            let transaction = connection.transaction()?;
            transaction.execute_batch(super::members::ADDED)?;
            transaction.execute_batch(super::marks::ADDED)?;
            transaction.execute_batch(super::refused::ADDED)?;
            super::refused::add_since(&transaction)?;
            transaction.execute_batch(BEGUN).map_err(damaged)?;
            if present.is_some() {
                transaction.execute_batch(DESTROYED)?;
                transaction.execute_batch(REFUSED)?;
            }
            Ok(transaction.commit()?)
        };
        make().inspect_err(|_| _ = std::fs::remove_file(&path))
    }

    /// Takes over what the ledger that is there knows and nothing else can tell: which PINs were refused, and, where it is the
    /// same group's, what is destroyed.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn take_over(&self, present: &Ledger) -> Result<()> {
        let mut connection = self.writable()?;
        attach(&connection, present)?;
        let transaction = connection.transaction()?;
        if present.identity.group == self.identity.group {
            transaction.execute_batch(DESTROYED)?;
        }
        transaction.execute_batch(REFUSED)?;
        transaction.commit()?;
        Ok(connection.execute_batch("DETACH present")?)
    }

    /// Who holds an object by the tokens' own word.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn held_by(&self, id: ObjectId, members: &[&str]) -> Result<()> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        transaction.run("DELETE FROM copy WHERE object = ?1", [id.0])?;
        for member in members {
            transaction.run("INSERT INTO copy VALUES (?1, ?2)", params![id.0, member])?;
        }
        Ok(transaction.commit()?)
    }

    /// An object that no token holds is none: without a trace of it.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn forget(&self, id: ObjectId) -> Result<()> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        for table in ["blob", "copy", "pending"] {
            transaction.run(&format!("DELETE FROM {table} WHERE object = ?1"), [id.0])?;
        }
        transaction.run("DELETE FROM object WHERE id = ?1", [id.0])?;
        Ok(transaction.commit()?)
    }
}

fn attach(connection: &Connection, present: &Ledger) -> Result<()> {
    let path = &present.path;
    let name = path
        .to_str()
        .ok_or_else(|| LedgerError::Place { path: path.clone(), reason: "its name is not UTF-8".into() })?;
    Ok(connection.execute("ATTACH ?1 AS present", [name]).map(drop)?)
}

fn new_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}
