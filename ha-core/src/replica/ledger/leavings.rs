//! What processes leave that die at work, and what is owed to members by whoever sees it.

use std::collections::HashSet;

use ha_token::Template;
use rusqlite::params;

use super::objects::{Found, found_as};
use super::statements::Statements as _;
use super::{Ledger, LedgerError, ObjectId, ObjectRow, Pending, codec};
use crate::seam::step;

type Result<T> = std::result::Result<T, LedgerError>;

impl Ledger {
    /// Whether something is being made, changed or destroyed, or was by who died at it.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn has_unfinished(&self) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM object WHERE state IN (0, 1, 3)) OR EXISTS (SELECT 1 FROM undecided)";
        Ok(self.connection()?.first(sql, [], |r| r.get(0))?)
    }

    /// Changes whenever another process, or another connection of this one, writes to the ledger.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn version_of_others(&self) -> Result<i64> {
        Ok(self.connection()?.first("PRAGMA data_version", [], |r| r.get(0))?)
    }

    /// The objects that are not destroyed: those that are being made as well.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn living(&self) -> Result<HashSet<ObjectId>> {
        let connection = self.connection()?;
        let mut statement = connection.prepare_cached("SELECT id FROM object WHERE state <> 4")?;
        let rows = statement.query_map([], |r| r.get::<_, [u8; 16]>(0))?;
        Ok(rows.map(|id| id.map(ObjectId)).collect::<rusqlite::Result<_>>()?)
    }

    /// Whether a member is yet to destroy or to change something.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn is_to_change(&self, member: &str) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM copy c JOIN object o ON o.id = c.object WHERE c.member = ?1 AND o.state = 4)
            OR EXISTS (SELECT 1 FROM pending p JOIN object o ON o.id = p.object
               WHERE p.member = ?1 AND o.state = 2 AND p.number NOT IN (SELECT number FROM undecided))";
        Ok(self.connection()?.first(sql, [member], |r| r.get(0))?)
    }

    /// Whether a member lacks something that is public.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn lacks_public(&self, member: &str) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM object WHERE state = 2 AND private = 0
            AND id NOT IN (SELECT object FROM copy WHERE member = ?1))";
        Ok(self.connection()?.first(sql, [member], |r| r.get(0))?)
    }

    /// How much a member is yet to destroy, to change and to be given; without what is not decided.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn owed_to(&self, member: &str) -> Result<usize> {
        let sql = "SELECT (SELECT count(*) FROM copy c JOIN object o ON o.id = c.object WHERE c.member = ?1 AND o.state = 4)
            + (SELECT count(*) FROM pending p JOIN object o ON o.id = p.object
               WHERE p.member = ?1 AND o.state = 2 AND p.number NOT IN (SELECT number FROM undecided))
            + (SELECT count(*) FROM object WHERE state = 2 AND id NOT IN (SELECT object FROM copy WHERE member = ?1))";
        let owed: i64 = self.connection()?.first(sql, [member], |r| r.get(0))?;
        Ok(usize::try_from(owed).unwrap_or(0))
    }

    /// What is neither acknowledged nor destroyed is to be taken off these members, if it is on them.
    pub(super) fn give_up_unfinished(&self, members: &[&str]) -> Result<usize> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        let unfinished = "SELECT id FROM object WHERE state IN (1, 3)";
        for member in members {
            let sql =
                format!("INSERT OR IGNORE INTO copy SELECT id, ?1 FROM object WHERE id IN ({unfinished})");
            transaction.run(&sql, [member])?;
        }
        transaction.run(&format!("DELETE FROM blob WHERE object IN ({unfinished})"), [])?;
        // Of what was only announced no member has anything.
        let announced = transaction.run("DELETE FROM object WHERE state = 0", [])?;
        let sql = "UPDATE object SET state = 4, version = version + 1 WHERE state IN (1, 3)";
        let settled = transaction.run(sql, [])?;
        // A change goes forward: some member may have made it. That nobody has vouched for it is remembered.
        let gone = "DELETE FROM orphaned WHERE number NOT IN (SELECT number FROM pending)";
        transaction.run(gone, [])?;
        transaction.run("INSERT OR IGNORE INTO orphaned SELECT number FROM undecided", [])?;
        let changes = transaction.run("DELETE FROM undecided", [])?;
        transaction.commit()?;
        if settled > 0 {
            self.tell_settled();
        }
        Ok(announced + settled + changes)
    }

    /// Whether a change still is a member's to make: who announced it has decided, and did not make it there.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn is_left_to(&self, member: &str, pending: &Pending) -> Result<bool> {
        // A number that is free may be given to the next change.
        let sql = "SELECT EXISTS (SELECT 1 FROM pending WHERE number = ?1 AND member = ?2 AND object = ?3 AND template = ?4)
            AND NOT EXISTS (SELECT 1 FROM undecided WHERE number = ?1)";
        let values = params![pending.number, member, pending.object.0, codec::encode(&pending.template)];
        Ok(self.connection()?.first(sql, values, |r| r.get(0))?)
    }

    /// Whether a row may say what no member has taken yet: some member is yet to change the object; or it has changed since
    /// the row was read, perhaps because a change was taken back that the row has.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn is_untried(&self, row: &ObjectRow) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM pending WHERE object = ?1)
            OR NOT EXISTS (SELECT 1 FROM object WHERE id = ?1 AND version = ?2)";
        Ok(self.connection()?.first(sql, params![row.id.0, row.version], |r| r.get(0))?)
    }

    /// A change is refused. Where it was announced by who died at it, and every member that holds the object is yet to make
    /// it, so that none is known to have made it, nobody is to make it any more, and the object is found as `found` says.
    /// Answers whether that is so. One that was acknowledged is not given up, nor what takes a change back.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] when the object was changed or destroyed since `row` was read; else [`LedgerError`].
    pub fn change_refused(&self, row: &ObjectRow, change: &Template, found: &Found<'_>) -> Result<bool> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        let change = codec::encode(change);
        let made = "SELECT EXISTS (SELECT 1 FROM copy c WHERE c.object = ?1 AND NOT EXISTS
            (SELECT 1 FROM pending p JOIN orphaned USING (number)
             WHERE p.object = ?1 AND p.member = c.member AND p.template = ?2))";
        if transaction.first(made, params![row.id.0, change], |r| r.get(0))? {
            return Ok(false);
        }
        found_as(&transaction, row.id, row.version, found)?;
        let sql = "DELETE FROM pending WHERE object = ?1 AND template = ?2 AND number IN (SELECT number FROM orphaned)";
        transaction.run(sql, params![row.id.0, change])?;
        transaction.commit()?;
        step!(ChangeTakenBack);
        Ok(true)
    }
}
