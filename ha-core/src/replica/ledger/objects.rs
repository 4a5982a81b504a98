//! The ledger's contents: objects from intent to destruction, pending changes.

use ha_token::{Template, Ulong};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::marks::{What, altered, destroyed, is_lacked, note, settle_gone};
use super::statements::Statements as _;
use super::{Blob, Intent, Ledger, LedgerError, ObjectId, ObjectRow, Pending, Staged, State, codec};
use crate::mutants::wrong;
use crate::seam::step;

type Result<T> = std::result::Result<T, LedgerError>;

const COLUMNS: &str = "o.id, o.state, o.class, o.key_type, o.ckaid, o.label, o.private, o.verifier, o.template, b.format, b.extractable, b.bytes,
    (SELECT group_concat(c.member, char(10)) FROM copy c WHERE c.object = o.id), o.version";
const FROM: &str = "object o LEFT JOIN blob b ON b.object = o.id";

/// `CK_ULONG`s are stored as SQLite's signed integers, bit for bit.
fn stored(n: Ulong) -> i64 {
    n as i64
}

fn row(r: &Row<'_>) -> rusqlite::Result<ObjectRow> {
    let id: Vec<u8> = r.get(0)?;
    let format: Option<i64> = r.get(9)?;
    let blob = match format {
        None => None,
        Some(format) => Some(Blob { format: format as Ulong, extractable: r.get(10)?, bytes: r.get(11)? }),
    };
    let copies: Option<String> = r.get(12)?;
    let template: Vec<u8> = r.get(8)?;
    Ok(ObjectRow {
        id: ObjectId(id.try_into().unwrap_or_default()),
        state: match r.get::<_, i64>(1)? {
            0 => State::Intent,
            1 => State::Staged,
            2 => State::Committed,
            3 => State::Destroying,
            _ => State::Destroyed,
        },
        class: r.get::<_, i64>(2)? as Ulong,
        key_type: r.get::<_, i64>(3)? as Ulong,
        ckaid: r.get(4)?,
        label: r.get(5)?,
        private: r.get(6)?,
        verifier: r.get(7)?,
        template: codec::decode(&template).unwrap_or_default(),
        blob,
        copies: copies.map(|c| c.split('\n').map(str::to_owned).collect()).unwrap_or_default(),
        version: r.get(13)?,
    })
}

/// Moves an object from one of `from` to `to`; a compare-and-set.
fn change(connection: &Connection, id: ObjectId, from: &[State], to: State) -> Result<()> {
    let allowed: String = from.iter().map(|s| (*s as i64).to_string()).collect::<Vec<_>>().join(",");
    let sql =
        format!("UPDATE object SET state = ?2, version = version + 1 WHERE id = ?1 AND state IN ({allowed})");
    if connection.run(&sql, params![id.0, to as i64])? == 1 { Ok(()) } else { Err(LedgerError::Conflict) }
}

impl Ledger {
    /// Announces an object, before any member is touched.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn begin(&self, intent: &Intent) -> Result<()> {
        let sql = "INSERT INTO object (id, state, class) VALUES (?1, ?2, ?3)";
        self.writable()?.run(sql, params![intent.id.0, State::Intent as i64, stored(intent.class)])?;
        step!(Announced);
        Ok(())
    }

    /// Makes durable what a copy is made from and must answer, before the first copy is made.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn stage(&self, id: ObjectId, staged: &Staged) -> Result<()> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        change(&transaction, id, &[State::Intent], State::Staged)?;
        transaction.run(
            "UPDATE object SET key_type = ?2, ckaid = ?3, label = ?4, private = ?5, verifier = ?6, template = ?7, class = ?8 WHERE id = ?1",
            params![
                id.0,
                stored(staged.key_type),
                staged.ckaid,
                staged.label,
                staged.private,
                staged.verifier.as_ref().map(|v| v.to_bytes()),
                codec::encode(&staged.template),
                stored(staged.class)
            ],
        )?;
        if let Some(blob) = &staged.blob {
            transaction.run(
                "INSERT INTO blob (object, format, extractable, bytes) VALUES (?1, ?2, ?3, ?4)",
                params![id.0, stored(blob.format), blob.extractable, blob.bytes],
            )?;
        }
        transaction.commit()?;
        step!(Staged);
        Ok(())
    }

    /// The objects are acknowledged: all of them, or none. `copies`: for each the members that hold it, proven.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] when another process gave one up; else [`LedgerError`].
    pub fn commit(&self, objects: &[(ObjectId, Vec<String>)]) -> Result<()> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        for (id, copies) in objects {
            change(&transaction, *id, &[State::Staged], State::Committed)?;
            note(&transaction, &id.0, What::Made)?;
            for member in copies {
                transaction.run("INSERT OR IGNORE INTO copy VALUES (?1, ?2)", params![id.0, member])?;
            }
        }
        transaction.commit()?;
        step!(Committed);
        Ok(())
    }

    /// Gives up an object that was not committed: from now on it is destroyed, to be taken off the members that may have
    /// been touched.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn abandon(&self, id: ObjectId, touched: &[String]) -> Result<()> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        change(&transaction, id, &[State::Intent, State::Staged], State::Destroyed)?;
        transaction.run("DELETE FROM blob WHERE object = ?1", [id.0])?;
        for member in touched {
            transaction.run("INSERT OR IGNORE INTO copy VALUES (?1, ?2)", params![id.0, member])?;
        }
        // No token had it at any time.
        if touched.is_empty() {
            transaction.run("DELETE FROM object WHERE id = ?1", [id.0])?;
        }
        transaction.commit()?;
        self.tell_destroyed();
        step!(Abandoned);
        Ok(())
    }

    /// Announces a destruction, before the first member is touched. Every one of `members` is to say that it has no copy,
    /// also those that are not known to have one: a copy may have been made whose making failed in name only. Answers the
    /// object as it was, in the version that it has now.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] when another process destroyed it.
    pub fn destroy_begin(&self, id: ObjectId, members: &[&str]) -> Result<ObjectRow> {
        let before = self.object(id)?.ok_or(LedgerError::Conflict)?;
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        change(&transaction, id, &[State::Committed], State::Destroying)?;
        for member in members {
            transaction.run("INSERT OR IGNORE INTO copy VALUES (?1, ?2)", params![id.0, member])?;
        }
        transaction.commit()?;
        step!(DestructionAnnounced);
        Ok(ObjectRow { version: before.version + 1, ..before })
    }

    /// The first member has destroyed it: it never comes back.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn destroy_final(&self, id: ObjectId) -> Result<()> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        change(&transaction, id, &[State::Destroying], State::Destroyed)?;
        transaction.run("DELETE FROM blob WHERE object = ?1", [id.0])?;
        transaction.commit()?;
        self.tell_destroyed();
        step!(Tombstoned);
        Ok(())
    }

    /// No member destroyed it: it is as it was, on the members in `copies`.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn destroy_rollback(&self, id: ObjectId, copies: &[&str]) -> Result<()> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        change(&transaction, id, &[State::Destroying], State::Committed)?;
        for member in holders_of(&transaction, id)?.iter().filter(|holder| !copies.contains(&holder.as_str()))
        {
            is_lacked(&transaction, id, member)?;
        }
        transaction.run("DELETE FROM copy WHERE object = ?1", [id.0])?;
        for member in copies {
            transaction.run("INSERT INTO copy VALUES (?1, ?2)", params![id.0, member])?;
        }
        transaction.commit()?;
        step!(DestructionTakenBack);
        Ok(())
    }

    /// A member no longer holds an object, nor has anything to change in it. Once every one has said so of a destroyed
    /// object it is none any more.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn acknowledge(&self, id: ObjectId, member: &str) -> Result<()> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        let sql = "DELETE FROM copy WHERE object = ?1 AND member = ?2
                   AND EXISTS (SELECT 1 FROM object WHERE id = ?1 AND state = 4)";
        if transaction.run(sql, params![id.0, member])? == 1 {
            destroyed(&transaction, id, member)?;
        }
        if transaction.run("DELETE FROM copy WHERE object = ?1 AND member = ?2", params![id.0, member])? == 1
        {
            is_lacked(&transaction, id, member)?;
        }
        if wrong!(TombstoneDroppedEarly) {
            transaction.run("DELETE FROM copy WHERE object = ?1", params![id.0])?;
        }
        transaction.run("DELETE FROM pending WHERE object = ?1 AND member = ?2", params![id.0, member])?;
        settle_gone(&transaction, Some(id))?;
        transaction.commit()?;
        step!(Acknowledged);
        Ok(())
    }

    /// The destroyed objects that a member may still hold.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn tombstones_for(&self, member: &str) -> Result<Vec<ObjectRow>> {
        self.select("o.state = 4 AND o.id IN (SELECT object FROM copy WHERE member = ?1)", params![member])
    }

    /// Of the destroyed objects of a kind that a member may still hold, those that it was to change before.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn changed_tombstones_for(
        &self,
        member: &str,
        class: Ulong,
        key_type: Ulong,
    ) -> Result<Vec<ObjectRow>> {
        self.select(
            "o.state = 4 AND o.class = ?2 AND o.key_type = ?3
             AND o.id IN (SELECT object FROM pending WHERE member = ?1)
             AND o.id IN (SELECT object FROM copy WHERE member = ?1)",
            params![member, stored(class), stored(key_type)],
        )
    }

    /// The committed objects that a member lacks.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn missing_on(&self, member: &str) -> Result<Vec<ObjectRow>> {
        self.select(
            "o.state = 2 AND o.id NOT IN (SELECT object FROM copy WHERE member = ?1)",
            params![member],
        )
    }

    /// A member has been given a copy of an object as `row` has it, proven.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] when the object was changed or destroyed since the row was read: the copy must go.
    pub fn add_copy(&self, row: &ObjectRow, member: &str) -> Result<()> {
        let sql = "INSERT OR IGNORE INTO copy SELECT id, ?2 FROM object WHERE id = ?1 AND state = 2 AND version = ?3";
        let connection = self.writable()?;
        if connection.run(sql, params![row.id.0, member, row.version])? == 1 {
            let sql = "DELETE FROM lacked WHERE object = ?1 AND member = ?2";
            connection.run(sql, params![row.id.0, member])?;
        }
        let there = "SELECT 1 FROM copy c JOIN object o ON o.id = c.object
                     WHERE o.id = ?1 AND c.member = ?2 AND o.state = 2 AND o.version = ?3";
        let there = connection.first(there, params![row.id.0, member, row.version], |_| Ok(())).optional()?;
        step!(CopyNoted);
        there.ok_or(LedgerError::Conflict)
    }

    /// Announces a change of attributes, before the first member makes it: from now on copies are made and found as `after`
    /// says. It is for whoever holds a copy at this moment, and for `others`. Once it is [decided](Self::change_decided) who
    /// has not made the change is to make it later. Answers the members and the numbers of their pending changes.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] when the object was changed or destroyed since `before` was read; else [`LedgerError`].
    pub fn change_begin(
        &self,
        before: &ObjectRow,
        others: &[&str],
        change: &Template,
        after: &Found<'_>,
    ) -> Result<Vec<(String, i64)>> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        found_as(&transaction, before.id, before.version, after)?;
        // Read here: a copy that was given since `before` was read has missed the change.
        let mut members = holders_of(&transaction, before.id)?;
        members.extend(others.iter().map(|o| (*o).to_owned()));
        members.sort();
        members.dedup();
        let mut announced = Vec::new();
        for member in members {
            let sql = "INSERT INTO pending (member, object, template) VALUES (?1, ?2, ?3)";
            transaction.run(sql, params![member, before.id.0, codec::encode(change)])?;
            let number = transaction.last_insert_rowid();
            transaction.run("INSERT INTO undecided VALUES (?1)", [number])?;
            announced.push((member, number));
        }
        transaction.commit()?;
        step!(ChangeAnnounced);
        Ok(announced)
    }

    /// A member has made an announced change: it is not taken back any more. Of its `numbers` those are `done` whose members
    /// have made it; the others are to make it.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn change_decided(&self, numbers: &[i64], done: &[i64]) -> Result<()> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        for number in numbers {
            transaction.run("DELETE FROM undecided WHERE number = ?1", [number])?;
        }
        made(&transaction, done)?;
        transaction.commit()?;
        step!(ChangeDecided);
        Ok(())
    }

    /// Whether a change of an object is announced that may be taken back.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn is_undecided(&self, id: ObjectId) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM pending JOIN undecided USING (number) WHERE object = ?1)";
        Ok(self.connection()?.first(sql, [id.0], |r| r.get(0))?)
    }

    /// No member is known to have made the change: the object is as it was, and those in `undo`, which may have made it,
    /// and those that were given a copy since, which has it, are to set what it was before.
    ///
    /// # Errors
    /// As [`Ledger::change_begin`].
    pub fn change_rollback(
        &self,
        before: &ObjectRow,
        numbers: &[i64],
        undo: &[&str],
        back: &Template,
    ) -> Result<()> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        let found = Found {
            ckaid: &before.ckaid,
            label: &before.label,
            template: &before.template,
            blob: before.blob.as_ref(),
        };
        found_as(&transaction, before.id, before.version + 1, &found)?;
        made(&transaction, numbers)?;
        let holders = holders_of(&transaction, before.id)?;
        let given = holders.iter().filter(|h| !before.copies.contains(h)).map(String::as_str);
        // Of what was not known before there is nothing to set back.
        for member in undo.iter().copied().chain(given).filter(|_| !back.is_empty()) {
            let sql = "INSERT INTO pending (member, object, template) VALUES (?1, ?2, ?3)";
            transaction.run(sql, params![member, before.id.0, codec::encode(back)])?;
        }
        transaction.commit()?;
        step!(ChangeTakenBack);
        Ok(())
    }

    /// The changes that a member has yet to make, oldest first; also those that may be taken back.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn pending_for(&self, member: &str) -> Result<Vec<Pending>> {
        let connection = self.connection()?;
        let mut statement = connection.prepare_cached(
            "SELECT p.number, p.object, p.template FROM pending p JOIN object o ON o.id = p.object
             WHERE p.member = ?1 AND o.state = 2 ORDER BY p.number",
        )?;
        let rows = statement.query_map([member], |r| {
            let id: Vec<u8> = r.get(1)?;
            let template: Vec<u8> = r.get(2)?;
            Ok(Pending {
                number: r.get(0)?,
                object: ObjectId(id.try_into().unwrap_or_default()),
                template: codec::decode(&template).unwrap_or_default(),
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The changes that a member has yet to make to one object, destroyed or not.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn pending_of(&self, id: ObjectId, member: &str) -> Result<Vec<Template>> {
        let connection = self.connection()?;
        let mut statement = connection.prepare_cached(
            "SELECT template FROM pending WHERE object = ?1 AND member = ?2 ORDER BY number",
        )?;
        let rows = statement.query_map(params![id.0, member], |r| r.get::<_, Vec<u8>>(0))?;
        rows.map(|r| Ok(codec::decode(&r?).unwrap_or_default())).collect()
    }

    /// Pending changes were made.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn done(&self, numbers: &[i64]) -> Result<()> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        made(&transaction, numbers)?;
        transaction.commit()?;
        step!(ChangeNoted);
        Ok(())
    }

    /// One object.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn object(&self, id: ObjectId) -> Result<Option<ObjectRow>> {
        Ok(self.select("o.id = ?1", params![id.0])?.pop())
    }

    /// Every object, destroyed ones too.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn objects(&self) -> Result<Vec<ObjectRow>> {
        self.select("1", params![])
    }

    /// The committed objects that none of these members has.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn on_none_of(&self, members: &[&str]) -> Result<Vec<ObjectRow>> {
        let places = vec!["?"; members.len()].join(", ");
        let condition =
            format!("o.state = 2 AND o.id NOT IN (SELECT object FROM copy WHERE member IN ({places}))");
        let values: Vec<&dyn rusqlite::ToSql> = members.iter().map(|m| m as &dyn rusqlite::ToSql).collect();
        self.select(&condition, &values)
    }

    /// How many objects a member holds, as far as the ledger knows.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn count_on(&self, member: &str) -> Result<usize> {
        let sql = "SELECT count(*) FROM copy c JOIN object o ON o.id = c.object WHERE c.member = ?1 AND o.state = 2";
        let count: i64 = self.connection()?.first(sql, [member], |r| r.get(0))?;
        Ok(count as usize)
    }

    /// The objects, staged, committed or destroyed, that a token object with these attributes may be a copy of.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn find(&self, class: Ulong, key_type: Ulong, ckaid: &[u8], label: &[u8]) -> Result<Vec<ObjectRow>> {
        self.select(
            "o.class = ?1 AND o.key_type = ?2 AND o.ckaid = ?3 AND o.label = ?4 AND o.state >= 1",
            params![stored(class), stored(key_type), ckaid, label],
        )
    }

    pub(super) fn select(&self, condition: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<ObjectRow>> {
        let connection = self.connection()?;
        let mut statement =
            connection.prepare_cached(&format!("SELECT {COLUMNS} FROM {FROM} WHERE {condition}"))?;
        let rows = statement.query_map(values, row)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

/// What an object's copies are made from, and what they are found by.
pub struct Found<'a> {
    /// `CKA_ID`, or what stands for it.
    pub ckaid: &'a [u8],
    /// `CKA_LABEL`.
    pub label: &'a [u8],
    /// See [`Staged::template`].
    pub template: &'a Template,
    /// The blob that takes the place of the one before.
    pub blob: Option<&'a Blob>,
}

fn holders_of(transaction: &Transaction<'_>, id: ObjectId) -> Result<Vec<String>> {
    let mut statement = transaction.prepare_cached("SELECT member FROM copy WHERE object = ?1")?;
    let holders = statement.query_map([id.0], |r| r.get(0))?;
    Ok(holders.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn found_as(connection: &Connection, id: ObjectId, version: i64, found: &Found<'_>) -> Result<()> {
    let sql = "UPDATE object SET ckaid = ?2, label = ?3, template = ?4, version = version + 1
               WHERE id = ?1 AND state = 2 AND version = ?5";
    let values = params![id.0, found.ckaid, found.label, codec::encode(found.template), version];
    if connection.run(sql, values)? != 1 {
        return Err(LedgerError::Conflict);
    }
    if let Some(blob) = found.blob {
        let sql = "UPDATE blob SET format = ?2, extractable = ?3, bytes = ?4 WHERE object = ?1";
        connection.run(sql, params![id.0, stored(blob.format), blob.extractable, blob.bytes])?;
    }
    Ok(())
}

fn made(connection: &Connection, numbers: &[i64]) -> Result<()> {
    for number in numbers {
        altered(connection, *number)?;
        connection.run("DELETE FROM pending WHERE number = ?1", [number])?;
        connection.run("DELETE FROM undecided WHERE number = ?1", [number])?;
        connection.run("DELETE FROM orphaned WHERE number = ?1", [number])?;
    }
    Ok(())
}
