//! How far destruction has come on each member, by the markers on their tokens, and what was destroyed by then.
//!
//! What every member has destroyed is no object any more, but remembered with the epoch of the first
//! [marker](crate::replica::marker) that is later than that: a token that is set back to a time when it had the object says an
//! earlier one, and is to destroy it once more.

use ha_token::Template;
use rusqlite::{Connection, OptionalExtension, params};

use super::statements::Statements as _;
use super::{Ledger, LedgerError, ObjectId, ObjectRow, codec};
use crate::mutants::wrong;
use crate::seam::step;

type Result<T> = std::result::Result<T, LedgerError>;

/// Added after the first ledgers were made; who does not know the tables forgets what every member has destroyed.
pub(super) const ADDED: &str = "CREATE TABLE IF NOT EXISTS mark (
    member TEXT PRIMARY KEY, begun INTEGER NOT NULL, written INTEGER NOT NULL, set_back INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS settled (
    id BLOB PRIMARY KEY, class INTEGER NOT NULL, key_type INTEGER NOT NULL, ckaid BLOB NOT NULL, label BLOB NOT NULL,
    private INTEGER NOT NULL, verifier BLOB NOT NULL, template BLOB NOT NULL, epoch INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS settled_epoch ON settled (epoch);";

/// What the ledger knows of a member's marker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// The latest epoch that was written on the token.
    pub written: u64,
    /// The latest that was about to be, and may be there.
    pub begun: u64,
    /// Whether the token was set back, and what is on it and the ledger does not know is believed to be from before that.
    pub set_back: bool,
}

fn epoch(connection: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT value FROM meta WHERE key = 'epoch'";
    Ok(connection.first(sql, [], |r| r.get::<_, i64>(0)).optional()?.unwrap_or_default() as u64)
}

fn set_epoch(connection: &Connection, epoch: u64) -> rusqlite::Result<()> {
    connection.run("INSERT OR REPLACE INTO meta VALUES ('epoch', ?1)", [epoch as i64]).map(drop)
}

/// Destroyed objects that nobody holds any more, this one or all of them, are none, and remembered. Of what nothing can be
/// proven nothing would be found again.
pub(super) fn settle_gone(connection: &Connection, id: Option<ObjectId>) -> Result<()> {
    let gone = "state = 4 AND (?1 IS NULL OR id = ?1) AND NOT EXISTS (SELECT 1 FROM copy WHERE copy.object = object.id)";
    let id = id.map(|id| id.0);
    if !wrong!(SettledForgotten) {
        let sql = format!(
            "INSERT OR REPLACE INTO settled SELECT id, class, key_type, ckaid, label, private, verifier, template, ?2
             FROM object WHERE {gone} AND verifier IS NOT NULL"
        );
        connection.run(&sql, params![id, epoch(connection)? as i64 + 1])?;
    }
    connection
        .run(&format!("DELETE FROM blob WHERE object IN (SELECT id FROM object WHERE {gone})"), [id])?;
    connection.run(&format!("DELETE FROM object WHERE {gone}"), [id])?;
    Ok(())
}

impl Ledger {
    /// Whether anything of the group's own is, or was, on any token: before that no marker is written.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn has_begun(&self) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM object) OR EXISTS (SELECT 1 FROM settled)
             OR EXISTS (SELECT 1 FROM meta WHERE key = 'group keys')";
        Ok(self.connection()?.first(sql, [], |r| r.get(0))?)
    }

    /// What is known of a member's marker; `None` where none was ever written by this ledger.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn mark_of(&self, member: &str) -> Result<Option<Mark>> {
        let connection = self.connection()?;
        if !connection.has_table("mark")? {
            return Ok(None);
        }
        let sql = "SELECT written, begun, set_back FROM mark WHERE member = ?1";
        let mark = |r: &rusqlite::Row<'_>| {
            Ok(Mark {
                written: r.get::<_, i64>(0)? as u64,
                begun: r.get::<_, i64>(1)? as u64,
                set_back: r.get(2)?,
            })
        };
        Ok(connection.first(sql, [member], mark).optional()?)
    }

    /// The epoch that a member's marker is to say: a later one than before where something was destroyed everywhere since.
    /// From now on it may be on the token.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn mark_begun(&self, member: &str) -> Result<u64> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        let mut now = epoch(&transaction)?;
        let later = "SELECT max(epoch) FROM settled";
        let settled: Option<i64> = transaction.first(later, [], |r| r.get(0))?;
        // The first marker says 1: nothing less was ever written.
        if let Some(later) = settled.map(|s| s as u64).into_iter().chain([1]).max().filter(|e| *e > now) {
            now = later;
            set_epoch(&transaction, now)?;
        }
        let sql = "INSERT INTO mark (member, begun, written) VALUES (?1, ?2, 0)
                   ON CONFLICT (member) DO UPDATE SET begun = max(begun, excluded.begun)";
        transaction.run(sql, params![member, now as i64])?;
        transaction.commit()?;
        step!(MarkAnnounced);
        Ok(now)
    }

    /// A member's marker says this epoch.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn mark_written(&self, member: &str, epoch: u64) -> Result<()> {
        let sql = "UPDATE mark SET written = max(written, ?2), begun = max(begun, ?2) WHERE member = ?1";
        self.writable()?.run(sql, params![member, epoch as i64])?;
        step!(MarkNoted);
        Ok(())
    }

    /// A token has this group's marker and the ledger, which was restored, knows nothing of it: what it says is believed.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn mark_found(&self, member: &str, found: u64) -> Result<()> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        if epoch(&transaction)? < found {
            set_epoch(&transaction, found)?;
        }
        transaction
            .run("INSERT OR REPLACE INTO mark VALUES (?1, ?2, ?2, 0)", params![member, found as i64])?;
        Ok(transaction.commit()?)
    }

    /// A member's token was set back to when its marker said `epoch`: it may hold again whatever was destroyed since, may have
    /// missed any change (what it is to set once more says `again`), and nothing unknown on it is believed to be new.
    ///
    /// # Errors
    /// [`LedgerError`]; the marker still tells of it then.
    pub fn was_set_back(
        &self,
        member: &str,
        epoch: u64,
        again: &dyn Fn(&ObjectRow) -> Template,
    ) -> Result<()> {
        {
            let mut connection = self.writable()?;
            let transaction = connection.transaction()?;
            transaction.run("UPDATE mark SET set_back = 1 WHERE member = ?1", [member])?;
            let since = epoch as i64;
            let columns = "id, class, key_type, ckaid, label, private, verifier, template";
            let back = format!(
                "INSERT OR IGNORE INTO object ({columns}, state) SELECT {columns}, 4 FROM settled WHERE epoch > ?1"
            );
            transaction.run(&back, [since])?;
            transaction.run("DELETE FROM settled WHERE epoch > ?1", [since])?;
            transaction
                .run("INSERT OR IGNORE INTO copy SELECT id, ?1 FROM object WHERE state = 4", [member])?;
            transaction.commit()?;
        }
        let rows = self.objects()?;
        let is_there = |row: &&ObjectRow| {
            row.is_destroyed() || (row.is_committed() && row.copies.iter().any(|c| c == member))
        };
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        for row in rows.iter().filter(is_there) {
            let sql =
                "INSERT INTO pending (member, object, template) SELECT ?1, id, ?3 FROM object WHERE id = ?2";
            transaction.run(sql, params![member, row.id.0, codec::encode(&again(row))])?;
        }
        transaction.commit()?;
        step!(SetBackNoted);
        Ok(())
    }

    /// Nothing unknown is on a member's token, or its operator has seen to it: what is found there from now on is new.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn is_believed_again(&self, member: &str) -> Result<()> {
        self.writable()?.run("UPDATE mark SET set_back = 0 WHERE member = ?1", [member])?;
        Ok(())
    }

    /// Whether a member's marker is to be written: there is none yet, or something was destroyed everywhere since.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn is_to_be_marked(&self, member: &str) -> Result<bool> {
        let sql = "SELECT coalesce((SELECT max(epoch) FROM settled), (SELECT value FROM meta WHERE key = 'epoch'), 1)
                   > coalesce((SELECT written FROM mark WHERE member = ?1), 0)";
        let is_due: bool = self.connection()?.first(sql, [member], |r| r.get(0))?;
        Ok(is_due && self.has_begun()?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ha_token::{Attribute, ck};

    use super::super::Intent;
    use super::super::tests::staged;
    use super::*;

    fn open(dir: &std::path::Path) -> Ledger {
        let ledger = Ledger::open(dir, "g", Duration::ZERO, &mut |bytes| bytes.fill(7)).unwrap();
        for member in ["a", "b"] {
            ledger.remember_member(member, member).unwrap();
        }
        ledger
    }

    /// An object that was given up, and that each member has taken off.
    fn gone(ledger: &Ledger, n: u8) -> ObjectId {
        let id = ObjectId([n; 16]);
        ledger.begin(&Intent { id, class: 3 }).unwrap();
        ledger.stage(id, &staged(&[n])).unwrap();
        ledger.abandon(id, &["a".to_owned(), "b".to_owned()]).unwrap();
        for member in ["a", "b"] {
            ledger.acknowledge(id, member).unwrap();
        }
        id
    }

    fn mark(ledger: &Ledger, member: &str) -> u64 {
        let epoch = ledger.mark_begun(member).unwrap();
        ledger.mark_written(member, epoch).unwrap();
        epoch
    }

    #[test]
    fn what_is_destroyed_everywhere_is_none_and_the_next_marker_is_later() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path());
        assert!(!ledger.is_to_be_marked("a").unwrap(), "nothing is on any token");
        let first = gone(&ledger, 1);
        assert_eq!(ledger.object(first).unwrap(), None);
        assert!(ledger.has_begun().unwrap() && ledger.is_to_be_marked("a").unwrap());
        assert_eq!((mark(&ledger, "a"), mark(&ledger, "b")), (1, 1));
        assert!(!ledger.is_to_be_marked("a").unwrap());
        gone(&ledger, 2);
        assert!(ledger.is_to_be_marked("a").unwrap());
        assert_eq!((mark(&ledger, "a"), mark(&ledger, "b")), (2, 2));
    }

    #[test]
    fn a_member_that_was_set_back_destroys_what_was_destroyed_since() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path());
        let names = |row: &ObjectRow| vec![Attribute::bytes(ck::CKA_LABEL, row.label.clone())];
        gone(&ledger, 1);
        mark(&ledger, "a");
        let second = gone(&ledger, 2);
        mark(&ledger, "a");
        ledger.was_set_back("a", 1, &names).unwrap();
        let to_destroy = ledger.tombstones_for("a").unwrap();
        assert_eq!(to_destroy.iter().map(|row| row.id).collect::<Vec<_>>(), [second]);
        assert_eq!(ledger.pending_of(second, "a").unwrap().len(), 1, "it may be called otherwise there");
        assert!(ledger.mark_of("a").unwrap().unwrap().set_back);
        ledger.acknowledge(second, "a").unwrap();
        ledger.is_believed_again("a").unwrap();
        assert!(!ledger.mark_of("a").unwrap().unwrap().set_back);
        assert_eq!(ledger.object(second).unwrap(), None);
        // From before any marker.
        ledger.was_set_back("a", 0, &names).unwrap();
        assert_eq!(ledger.tombstones_for("a").unwrap().len(), 2);
    }

    #[test]
    fn a_restored_ledger_goes_on_from_what_the_tokens_say() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path());
        ledger.mark_found("a", 5).unwrap();
        gone(&ledger, 1);
        assert_eq!(mark(&ledger, "a"), 6);
    }
}
