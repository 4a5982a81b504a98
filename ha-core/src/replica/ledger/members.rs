//! What the ledger knows of the members: which token each is, and what it can do.

use ha_token::{MechanismInfo, Ulong};
use rusqlite::{OptionalExtension, params};

use super::marks::{is_lacked, joins, settle_gone};
use super::statements::Statements as _;
use super::{Ledger, LedgerError, ObjectRow, room};
use crate::seam::step;

fn known_group_keys(connection: &rusqlite::Connection) -> Result<Option<Vec<u8>>> {
    let sql = "SELECT value FROM meta WHERE key = 'group keys'";
    Ok(connection.first(sql, [], |r| r.get(0)).optional()?)
}

type Result<T> = std::result::Result<T, LedgerError>;

/// Added after the first ledgers were made; who does not know the tables does not miss them. `undecided`: the pending
/// changes that no member has made yet, and that may be taken back. `orphaned`: those that nobody has acknowledged, since who
/// announced them died at it.
pub(super) const ADDED: &str =
    "CREATE TABLE IF NOT EXISTS mechanisms (member TEXT PRIMARY KEY, list BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS undecided (number INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS orphaned (number INTEGER PRIMARY KEY);";

impl Ledger {
    /// The serial number of the token that is remembered as a member's.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn serial_of(&self, name: &str) -> Result<Option<String>> {
        let sql = "SELECT serial FROM member WHERE name = ?1";
        Ok(self.connection()?.first(sql, [name], |r| r.get(0)).optional()?)
    }

    /// Remembers which token is behind a member, the first time. Answers the serial number remembered before.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn remember_member(&self, name: &str, serial: &str) -> Result<Option<String>> {
        let connection = self.connection()?;
        let before =
            connection.first("SELECT serial FROM member WHERE name = ?1", [name], |r| r.get(0)).optional()?;
        if before.is_none() && !self.is_read_only() {
            room()?;
            connection.run("INSERT OR IGNORE INTO member (name, serial) VALUES (?1, ?2)", [name, serial])?;
            joins(&connection, name)?;
        }
        Ok(before)
    }

    /// What the group keys answer, remembered the first time, from then on the same.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn remember_group_keys(&self, fingerprint: &[u8]) -> Result<Vec<u8>> {
        let connection = self.connection()?;
        if !self.is_read_only() && known_group_keys(&connection)?.is_none() {
            room()?;
            let sql = "INSERT OR IGNORE INTO meta VALUES ('group keys', ?1)";
            if connection.run(sql, [fingerprint])? == 1 {
                step!(GroupKeysRemembered);
            }
        }
        Ok(known_group_keys(&connection)?.unwrap_or_else(|| fingerprint.to_vec()))
    }

    /// Whether the group has keys on a member: others are never made beside them.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn has_group_keys(&self) -> Result<bool> {
        Ok(known_group_keys(&*self.connection()?)?.is_some())
    }

    /// Every member's token was made anew: the group keys went with them.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn forget_group_keys(&self) -> Result<()> {
        self.writable()?.run("DELETE FROM meta WHERE key = 'group keys'", [])?;
        Ok(())
    }

    /// A member's token was made anew: it holds nothing, and may have another serial number.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn member_renewed(&self, name: &str) -> Result<()> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        transaction.run("DELETE FROM member WHERE name = ?1", [name])?;
        transaction.run("DELETE FROM pending WHERE member = ?1", [name])?;
        transaction.run("DELETE FROM copy WHERE member = ?1", [name])?;
        transaction.run("DELETE FROM refused WHERE member = ?1", [name])?;
        for table in ["mark", "untold", "lacked", "recalled", "mechanisms"] {
            transaction.run(&format!("DELETE FROM {table} WHERE member = ?1"), [name])?;
        }
        settle_gone(&transaction, None)?;
        Ok(transaction.commit()?)
    }

    /// A member lacks an object that it held, and is to be given it again.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] when the object was changed or destroyed since the row was read; else [`LedgerError`].
    pub fn copy_lost(&self, row: &ObjectRow, member: &str) -> Result<()> {
        let sql = "DELETE FROM copy WHERE object = ?1 AND member = ?2
                   AND EXISTS (SELECT 1 FROM object WHERE id = ?1 AND state = 2 AND version = ?3)";
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        if transaction.run(sql, params![row.id.0, member, row.version])? != 1 {
            return Err(LedgerError::Conflict);
        }
        is_lacked(&transaction, row.id, member)?;
        Ok(transaction.commit()?)
    }

    /// The mechanisms that a member's token had when it was connected the last time, sorted by type.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn mechanisms_of(&self, member: &str) -> Result<Option<Vec<(Ulong, MechanismInfo)>>> {
        let connection = self.connection()?;
        if !connection.has_table("mechanisms")? {
            return Ok(None);
        }
        let list: Option<Vec<u8>> = connection
            .first("SELECT list FROM mechanisms WHERE member = ?1", [member], |r| r.get(0))
            .optional()?;
        Ok(list.as_deref().and_then(decode))
    }

    /// Remembers the mechanisms of a member's token. Nothing is written where they are as they were, or nothing can be.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn remember_mechanisms(&self, member: &str, list: &[(Ulong, MechanismInfo)]) -> Result<()> {
        if self.is_read_only() || self.mechanisms_of(member)?.as_deref() == Some(list) {
            return Ok(());
        }
        let sql = "INSERT OR REPLACE INTO mechanisms (member, list) VALUES (?1, ?2)";
        self.writable()?.run(sql, params![member, encode(list)])?;
        Ok(())
    }
}

/// Four big-endian numbers for each.
fn encode(list: &[(Ulong, MechanismInfo)]) -> Vec<u8> {
    let numbers = list.iter().flat_map(|(kind, i)| [*kind, i.min_key_size, i.max_key_size, i.flags]);
    numbers.flat_map(|n| (n as u64).to_be_bytes()).collect()
}

/// `None` for what was not encoded here.
fn decode(bytes: &[u8]) -> Option<Vec<(Ulong, MechanismInfo)>> {
    let (rows, rest) = bytes.as_chunks::<32>();
    if !rest.is_empty() {
        return None;
    }
    let row = |row: &[u8; 32]| {
        let (numbers, _) = row.as_chunks::<8>();
        let mut numbers = numbers.iter().map(|n| u64::from_be_bytes(*n) as Ulong);
        let mut next = || numbers.next();
        let (kind, min_key_size, max_key_size, flags) = (next()?, next()?, next()?, next()?);
        Some((kind, MechanismInfo { min_key_size, max_key_size, flags }))
    };
    rows.iter().map(row).collect()
}
