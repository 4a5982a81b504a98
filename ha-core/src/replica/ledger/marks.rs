//! How far destruction has come on each member, by the markers on their tokens, and what was destroyed by then.
//!
//! What every member has destroyed is no object any more, but remembered with the epoch of the first
//! [marker](crate::replica::marker) that is later than that: a token that is set back to a time when it had the object says an
//! earlier one, and is to destroy it once more.

use std::collections::HashMap;

use ha_token::{Template, ck};
use rusqlite::{Connection, OptionalExtension, params};

use super::statements::Statements as _;
use super::{Ledger, LedgerError, ObjectId, ObjectRow, codec};
use crate::mutants::wrong;
use crate::seam::step;

type Result<T> = std::result::Result<T, LedgerError>;

/// Added after the first ledgers were made; who does not know the tables forgets what every member has destroyed. `altered`: the
/// objects that were made, changed or destroyed, with such an epoch, and those of a change and of a new name. `again`, `recalled`: what a member is
/// to change and to destroy that may have done so before. `untold`: since when one without a marker may have missed anything. `lacked`: what one
/// was said to hold and is not any more.
pub(super) const ADDED: &str = "CREATE TABLE IF NOT EXISTS mark (
    member TEXT PRIMARY KEY, begun INTEGER NOT NULL, written INTEGER NOT NULL, set_back INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS settled (
    id BLOB PRIMARY KEY, class INTEGER NOT NULL, key_type INTEGER NOT NULL, ckaid BLOB NOT NULL, label BLOB NOT NULL,
    private INTEGER NOT NULL, verifier BLOB NOT NULL, template BLOB NOT NULL, epoch INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS settled_epoch ON settled (epoch);
CREATE TABLE IF NOT EXISTS altered (
    object BLOB PRIMARY KEY, epoch INTEGER NOT NULL, changed INTEGER NOT NULL, named INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS altered_epoch ON altered (epoch);
CREATE TABLE IF NOT EXISTS again (number INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS recalled (object BLOB NOT NULL, member TEXT NOT NULL, PRIMARY KEY (object, member)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS untold (member TEXT PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lacked (object BLOB NOT NULL, member TEXT NOT NULL, PRIMARY KEY (object, member)) WITHOUT ROWID;";

/// What the ledger knows of a member's marker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// The latest epoch that was written on the token.
    pub written: u64,
    /// The latest that was about to be, and may be there.
    pub begun: u64,
    /// Whether the token was set back, and what is on it and the ledger does not know is believed to be from before that.
    pub set_back: bool,
    /// Where no marker was ever written: since when the member may have missed what was done.
    pub untold: u64,
}

fn epoch(connection: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT value FROM meta WHERE key = 'epoch'";
    Ok(connection.first(sql, [], |r| r.get::<_, i64>(0)).optional()?.unwrap_or_default() as u64)
}

/// The first epoch of this ledger's: what older markers stand for is another one's.
fn since(connection: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT value FROM meta WHERE key = 'since'";
    Ok(connection.first(sql, [], |r| r.get::<_, i64>(0)).optional()?.unwrap_or_default() as u64)
}

fn set_epoch(connection: &Connection, epoch: u64) -> rusqlite::Result<()> {
    connection.run("INSERT OR REPLACE INTO meta VALUES ('epoch', ?1)", [epoch as i64]).map(drop)
}

/// Destroyed objects that nobody holds any more, this one or all of them, are none, and remembered. Of what nothing can be
/// proven nothing would be found again.
pub(super) fn settle_gone(connection: &Connection, id: Option<ObjectId>) -> Result<()> {
    // One is found by its key.
    let which = if id.is_some() { "id = ?1" } else { "?1 IS NULL" };
    let gone =
        format!("state = 4 AND {which} AND NOT EXISTS (SELECT 1 FROM copy WHERE copy.object = object.id)");
    let id = id.map(|id| id.0);
    if !wrong!(SettledForgotten) {
        let sql = format!(
            "INSERT OR IGNORE INTO settled SELECT id, class, key_type, ckaid, label, private, verifier, template, ?2
             FROM object WHERE {gone} AND verifier IS NOT NULL"
        );
        connection.run(&sql, params![id, epoch(connection)? as i64 + 1])?;
    }
    connection
        .run(&format!("DELETE FROM blob WHERE object IN (SELECT id FROM object WHERE {gone})"), [id])?;
    connection.run(&format!("DELETE FROM object WHERE {gone}"), [id])?;
    Ok(())
}

/// A member made a change: markers that are later than this say so.
pub(super) fn altered(connection: &Connection, number: i64) -> Result<()> {
    if connection.run("DELETE FROM again WHERE number = ?1", [number])? == 1 {
        return Ok(());
    }
    let sql = "SELECT object, template FROM pending WHERE number = ?1";
    let pending = connection.first(sql, [number], |r| Ok((r.get::<_, Vec<u8>>(0)?, r.get::<_, Vec<u8>>(1)?)));
    let Some((object, template)) = pending.optional()? else { return Ok(()) };
    let is_name = |kind| matches!(kind, ck::CKA_ID | ck::CKA_LABEL | ck::CKA_APPLICATION);
    let names = codec::decode(&template).unwrap_or_default().iter().any(|a| is_name(a.kind));
    note(connection, &object, if names { What::Named } else { What::Changed })
}

/// A member holds a destroyed object no more: the same.
pub(super) fn destroyed(connection: &Connection, id: ObjectId, member: &str) -> Result<()> {
    let recalled = "DELETE FROM recalled WHERE object = ?1 AND member = ?2";
    if connection.run(recalled, params![id.0, member])? == 1 {
        return Ok(());
    }
    note(connection, &id.0, What::Destroyed)
}

/// What was done to an object.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Made,
    Changed,
    Named,
    Destroyed,
}

/// Something was done to an object: markers that are later than this say so.
pub(super) fn note(connection: &Connection, object: &[u8], what: What) -> Result<()> {
    let sql = "INSERT INTO altered (object, epoch, changed, named) VALUES (?1, ?2, ?3, ?4)
               ON CONFLICT (object) DO UPDATE SET
               epoch = excluded.epoch, changed = max(changed, excluded.changed), named = max(named, excluded.named)";
    let later = epoch(connection)? as i64 + 1;
    let if_so = |is_so| if is_so { later } else { 0 };
    let (changed, named) = (if_so(matches!(what, What::Changed | What::Named)), if_so(what == What::Named));
    connection.run(sql, params![object, later, changed, named])?;
    Ok(())
}

/// The epoch that is later than all that was done.
const LATEST: &str = "SELECT max(epoch) FROM (SELECT max(epoch) AS epoch FROM settled UNION ALL SELECT max(epoch) FROM altered)";

/// A member joins: what was destroyed before it never held.
pub(super) fn joins(connection: &Connection, member: &str) -> Result<()> {
    // A restored ledger may not know for how long it has been there.
    let sql = "INSERT OR IGNORE INTO mark (member, begun, written)
               SELECT ?1, ?2, 0 WHERE NOT EXISTS (SELECT 1 FROM meta WHERE key = 'restored')";
    if connection.run(sql, params![member, epoch(connection)? as i64])? == 1 {
        set_untold(connection, member)?;
    }
    Ok(())
}

/// What was done by now a member has not missed.
fn set_untold(connection: &Connection, member: &str) -> Result<()> {
    let sql = "INSERT OR REPLACE INTO untold SELECT member, begun FROM mark WHERE member = ?1";
    connection.run(sql, [member])?;
    Ok(())
}

/// A member is not said to hold an object any more. Its token may be put back to when it did, and the object was called
/// otherwise.
pub(super) fn is_lacked(connection: &Connection, id: ObjectId, member: &str) -> Result<()> {
    connection.run("INSERT OR IGNORE INTO lacked VALUES (?1, ?2)", params![id.0, member])?;
    Ok(())
}

/// What is recorded beside markers up to this epoch is another ledger's, or this one's of before it was made anew.
pub(super) fn begins_after(connection: &Connection, found: u64) -> Result<()> {
    let since = since(connection)?.max(found + 1);
    connection.run("INSERT OR REPLACE INTO meta VALUES ('since', ?1)", [since as i64])?;
    if epoch(connection)? < since {
        set_epoch(connection, since)?;
    }
    Ok(())
}

/// The changes that a member is to make all the same, since nobody takes them back: of each object with their numbers.
fn to_make_all_the_same(
    connection: &Connection,
    member: &str,
) -> Result<HashMap<ObjectId, Vec<(i64, Template)>>> {
    let mut statement = connection.prepare_cached(
        "SELECT object, number, template FROM pending WHERE member = ?1
         AND number NOT IN (SELECT number FROM undecided) AND number NOT IN (SELECT number FROM orphaned)",
    )?;
    let mut to_make: HashMap<ObjectId, Vec<(i64, Template)>> = HashMap::new();
    for change in statement.query_map([member], |r| Ok((r.get(0)?, r.get(1)?, r.get::<_, Vec<u8>>(2)?)))? {
        let (object, number, template) = change?;
        let template = codec::decode(&template).unwrap_or_default();
        to_make.entry(ObjectId(object)).or_default().push((number, template));
    }
    Ok(to_make)
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

    /// Whether any token has a marker of this ledger's: one that was begun when another was missed is nobody's.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn is_known_to_tokens(&self) -> Result<bool> {
        let connection = self.connection()?;
        let sql = "SELECT EXISTS (SELECT 1 FROM mark WHERE written > 0)";
        Ok(connection.has_table("mark")? && connection.first(sql, [], |r| r.get(0))?)
    }

    /// What is known of a member's marker; `None` where none was ever written by this ledger.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn mark_of(&self, member: &str) -> Result<Option<Mark>> {
        let connection = self.connection()?;
        // The last that was added.
        if !connection.has_table("untold")? {
            return Ok(None);
        }
        let sql = "SELECT written, begun, set_back, coalesce((SELECT epoch FROM untold WHERE untold.member = mark.member), 0)
                   FROM mark WHERE member = ?1";
        let mark = |r: &rusqlite::Row<'_>| {
            Ok(Mark {
                written: r.get::<_, i64>(0)? as u64,
                begun: r.get::<_, i64>(1)? as u64,
                set_back: r.get(2)?,
                untold: r.get::<_, i64>(3)? as u64,
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
        let settled: Option<i64> = transaction.first(LATEST, [], |r| r.get(0))?;
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

    /// The same as [`mark_of`](Self::mark_of), with what was written on its token under another name: the member was called
    /// otherwise for a while. Not under those of `others`, which are other tokens, whatever serial numbers they have.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn mark_of_token(&self, member: &str, others: &[&str]) -> Result<Option<Mark>> {
        let Some(mut mark) = self.mark_of(member)? else { return Ok(None) };
        let connection = self.connection()?;
        let mut statement = connection.prepare_cached(
            "SELECT name, written, begun FROM member JOIN mark ON mark.member = name
             WHERE name <> ?1 AND serial = (SELECT serial FROM member WHERE name = ?1)",
        )?;
        let rows = statement.query_map([member], |r| {
            Ok((r.get::<_, String>(0)?, r.get::<_, i64>(1)? as u64, r.get::<_, i64>(2)? as u64))
        })?;
        for row in rows {
            let (name, written, begun) = row?;
            if !others.contains(&name.as_str()) {
                (mark.written, mark.begun) = (mark.written.max(written), mark.begun.max(begun));
            }
        }
        Ok(Some(mark))
    }

    /// A member is up to date, and its token takes no marker that says so.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn takes_no_marker(&self, member: &str) -> Result<()> {
        set_untold(&*self.writable()?, member)
    }

    /// A token has this group's marker and the ledger, which was restored, knows nothing of it: what it says is believed, and
    /// what is recorded there is to be written anew.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn mark_found(&self, member: &str, found: u64) -> Result<()> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        begins_after(&transaction, found)?;
        transaction
            .run("INSERT OR REPLACE INTO mark VALUES (?1, ?2, ?2, 0)", params![member, found as i64])?;
        Ok(transaction.commit()?)
    }

    /// A member's token was set back: nothing unknown on it is believed to be new.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn was_set_back(&self, member: &str) -> Result<()> {
        self.writable()?.run("UPDATE mark SET set_back = 1 WHERE member = ?1", [member])?;
        Ok(())
    }

    /// What a member may have missed whose marker says `epoch`: it may hold what was destroyed since, and is to set once more
    /// what was changed since, by what `once_more` says of an object.
    ///
    /// # Errors
    /// [`LedgerError`]: nothing is noted then, and the marker still tells of it.
    pub fn may_have_missed(
        &self,
        member: &str,
        epoch: u64,
        once_more: &dyn Fn(&ObjectRow) -> Template,
    ) -> Result<()> {
        let since = epoch as i64;
        if self.connection()?.first(LATEST, [], |r| r.get::<_, Option<i64>>(0))? <= Some(since) {
            return Ok(());
        }
        let columns = "id, class, key_type, ckaid, label, private, verifier, template";
        let back = format!(
            "INSERT OR IGNORE INTO object ({columns}, state) SELECT {columns}, 4 FROM settled WHERE epoch > ?1"
        );
        // Of what is destroyed, what the member said to hold no more since.
        let gone = "SELECT id, ?2 FROM object WHERE state = 4 AND id NOT IN (SELECT object FROM copy WHERE member = ?2)
                    AND (id IN (SELECT object FROM altered WHERE epoch > ?1) OR id IN (SELECT id FROM settled WHERE epoch > ?1))";
        {
            let mut connection = self.writable()?;
            let transaction = connection.transaction()?;
            transaction.run("DELETE FROM again WHERE number NOT IN (SELECT number FROM pending)", [])?;
            transaction.run("DELETE FROM recalled WHERE member = ?1 AND object NOT IN (SELECT object FROM copy WHERE member = ?1)", [member])?;
            transaction.run(
                "DELETE FROM lacked WHERE member = ?1 AND object NOT IN (SELECT id FROM object)",
                [member],
            )?;
            transaction.run(&back, [since])?;
            for table in ["recalled", "copy"] {
                transaction.run(&format!("INSERT OR IGNORE INTO {table} {gone}"), params![since, member])?;
            }
            transaction.commit()?;
        }
        // What is being destroyed may be destroyed before it is looked for here, and may come to stay.
        let altered = "(o.state IN (2, 3) AND o.id IN (SELECT object FROM altered WHERE changed > ?1)
                        AND o.id IN (SELECT object FROM copy WHERE member = ?2 UNION SELECT object FROM lacked WHERE member = ?2))
                       OR (o.state = 4 AND o.id IN (SELECT object FROM altered WHERE named > ?1)
                        AND o.id IN (SELECT object FROM copy WHERE member = ?2))";
        let rows = self.select(altered, params![since, member])?;
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        let mut to_make = to_make_all_the_same(&transaction, member)?;
        for row in rows {
            let mut change = once_more(&row);
            // What it is to change all the same it changes with that, and not twice: of objects that are alike each is looked
            // for under its names of before for as long as it is to change them.
            if let Some((number, mut template)) = to_make.get_mut(&row.id).and_then(|changes| {
                change.retain(|a| !changes.iter().flat_map(|(_, t)| t).any(|b| a.kind == b.kind));
                changes.pop()
            }) {
                template.extend(change);
                let sql = "UPDATE pending SET template = ?2 WHERE number = ?1";
                transaction.run(sql, params![number, codec::encode(&template)])?;
                continue;
            }
            let sql =
                "INSERT INTO pending (member, object, template) SELECT ?1, id, ?3 FROM object WHERE id = ?2";
            if transaction.run(sql, params![member, row.id.0, codec::encode(&change)])? == 1 {
                transaction.run("INSERT INTO again VALUES (?1)", [transaction.last_insert_rowid()])?;
            }
        }
        transaction.commit()?;
        step!(MissedNoted);
        Ok(())
    }

    /// Whether what is recorded beside a marker of this epoch was recorded by this ledger.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn has_recorded(&self, epoch: u64) -> Result<bool> {
        Ok(epoch >= since(&*self.connection()?)?)
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
        let sql = format!(
            "SELECT max(coalesce(({LATEST}), 0), coalesce((SELECT value FROM meta WHERE key = 'epoch'), 1))
             > coalesce((SELECT written FROM mark WHERE member = ?1), 0)"
        );
        let is_due: bool = self.connection()?.first(&sql, [member], |r| r.get(0))?;
        Ok(is_due && self.has_begun()?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ha_token::{Attribute, AttributeType};

    use super::super::tests::{committed, staged};
    use super::super::{Found, Intent};
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

    fn names(row: &ObjectRow) -> Template {
        vec![Attribute::bytes(ck::CKA_LABEL, row.label.clone())]
    }

    #[test]
    fn a_member_whose_marker_is_older_destroys_and_changes_once_more() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path());
        gone(&ledger, 1);
        mark(&ledger, "a");
        let second = gone(&ledger, 2);
        let live = ObjectId([3; 16]);
        ledger.begin(&Intent { id: live, class: 3 }).unwrap();
        ledger.stage(live, &staged(b"k")).unwrap();
        ledger.commit(&[(live, vec!["a".into(), "b".into()])]).unwrap();
        let row = ledger.object(live).unwrap().unwrap();
        let change = vec![Attribute::bytes(ck::CKA_LABEL, *b"new")];
        let found = Found { ckaid: &row.ckaid, label: b"new", template: &row.template, blob: None };
        let announced = ledger.change_begin(&row, &[], &change, &found).unwrap();
        let numbers: Vec<i64> = announced.iter().map(|(_, number)| *number).collect();
        ledger.change_decided(&numbers, &numbers).unwrap();
        assert_eq!((mark(&ledger, "a"), mark(&ledger, "b")), (2, 2));

        ledger.may_have_missed("a", 2, &names).unwrap();
        assert!(
            ledger.tombstones_for("a").unwrap().is_empty() && ledger.pending_for("a").unwrap().is_empty()
        );
        ledger.may_have_missed("a", 1, &names).unwrap();
        let to_destroy = ledger.tombstones_for("a").unwrap();
        assert_eq!(to_destroy.iter().map(|row| row.id).collect::<Vec<_>>(), [second]);
        let pending = ledger.pending_for("a").unwrap();
        assert_eq!(pending.iter().map(|p| p.object).collect::<Vec<_>>(), [live]);
        // Done once more, which is no news to the other member.
        ledger.acknowledge(second, "a").unwrap();
        ledger.done(&[pending[0].number]).unwrap();
        assert_eq!(ledger.object(second).unwrap(), None);
        assert!(!ledger.is_to_be_marked("b").unwrap());
        // From before any marker.
        ledger.may_have_missed("b", 0, &names).unwrap();
        assert_eq!(ledger.tombstones_for("b").unwrap().len(), 2);
    }

    /// An object that both members hold, made before the epoch that both say.
    fn marked(ledger: &Ledger, n: u8) -> ObjectId {
        let id = committed(ledger, n, &["a", "b"]);
        for member in ["a", "b"] {
            mark(ledger, member);
        }
        id
    }

    /// The object has another label from now on, on each member.
    fn rename(ledger: &Ledger, id: ObjectId) {
        let numbers = change(ledger, id, ck::CKA_LABEL);
        ledger.change_decided(&numbers, &numbers).unwrap();
    }

    /// A change is announced, of which the members' are answered.
    fn change(ledger: &Ledger, id: ObjectId, kind: AttributeType) -> Vec<i64> {
        let row = ledger.object(id).unwrap().unwrap();
        let template = vec![Attribute::bytes(kind, *b"new")];
        let label = if kind == ck::CKA_LABEL { b"new" } else { &*row.label };
        let found = Found { ckaid: &row.ckaid, label, template: &row.template, blob: None };
        let announced = ledger.change_begin(&row, &[], &template, &found).unwrap();
        announced.into_iter().map(|(_, number)| number).collect()
    }

    /// The kinds of attributes that a member is to set of an object, in each change.
    fn to_set(ledger: &Ledger, id: ObjectId, member: &str) -> Vec<Vec<AttributeType>> {
        let pending = ledger.pending_of(id, member).unwrap();
        pending.iter().map(|change| change.iter().map(|a| a.kind).collect()).collect()
    }

    #[test]
    fn what_is_being_destroyed_is_looked_for_under_its_name_of_before_too() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path());
        let (id, taken_back) = (marked(&ledger, 1), marked(&ledger, 2));
        for one in [id, taken_back] {
            rename(&ledger, one);
            ledger.destroy_begin(one, &["a", "b"]).unwrap();
        }
        ledger.may_have_missed("b", 1, &names).unwrap();
        ledger.destroy_final(id).unwrap();
        assert_eq!(to_set(&ledger, id, "b"), [[ck::CKA_LABEL]]);
        ledger.destroy_rollback(taken_back, &["a", "b"]).unwrap();
        let left = ledger.pending_for("b").unwrap();
        assert_eq!(left.iter().map(|pending| pending.object).collect::<Vec<_>>(), [taken_back]);
    }

    #[test]
    fn what_a_member_is_to_change_all_the_same_stands_for_no_other_change() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path());
        let id = marked(&ledger, 1);
        rename(&ledger, id);
        // Of this change it is not known yet whether it is taken back.
        change(&ledger, id, ck::CKA_LABEL);
        let subject = change(&ledger, id, ck::CKA_SUBJECT);
        ledger.change_decided(&subject, &[]).unwrap();
        for _ in 0..2 {
            ledger.may_have_missed("b", 1, &names).unwrap();
            let expected = [vec![ck::CKA_LABEL], vec![ck::CKA_SUBJECT, ck::CKA_LABEL]];
            assert_eq!(to_set(&ledger, id, "b"), expected, "and not once more for each connection");
        }
    }

    #[test]
    fn what_a_member_is_said_to_lack_it_may_have_under_its_name_of_before() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path());
        let (unsure, absent, lost, given) =
            (marked(&ledger, 1), marked(&ledger, 2), marked(&ledger, 3), marked(&ledger, 4));
        for id in [unsure, absent, lost, given] {
            rename(&ledger, id);
        }
        ledger.destroy_begin(unsure, &["a", "b"]).unwrap();
        ledger.destroy_rollback(unsure, &["a"]).unwrap();
        ledger.acknowledge(absent, "b").unwrap();
        for id in [lost, given] {
            ledger.copy_lost(&ledger.object(id).unwrap().unwrap(), "b").unwrap();
        }
        ledger.add_copy(&ledger.object(given).unwrap().unwrap(), "b").unwrap();
        // It never had this one.
        committed(&ledger, 5, &["a"]);
        ledger.may_have_missed("b", 1, &names).unwrap();
        for id in [unsure, absent, lost, given] {
            assert_eq!(to_set(&ledger, id, "b"), [[ck::CKA_LABEL]], "{id:?}");
        }
        assert_eq!(ledger.pending_for("b").unwrap().len(), 4);
    }

    #[test]
    fn what_was_written_on_a_token_under_another_name_counts() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path());
        let serial = ledger.serial_of("a").unwrap().unwrap();
        ledger.remember_member("z", &serial).unwrap();
        marked(&ledger, 1);
        gone(&ledger, 2);
        mark(&ledger, "z");
        let epochs = |name, others: &[&str]| {
            let mark = ledger.mark_of_token(name, others).unwrap().unwrap();
            (mark.written, mark.begun)
        };
        let own = ledger.mark_of("a").unwrap().unwrap();
        let called_so = ledger.mark_of("z").unwrap().unwrap();
        assert!(called_so.written > own.written);
        assert_eq!(epochs("a", &["a", "b"]), (called_so.written, called_so.begun));
        assert_eq!(epochs("a", &["a", "b", "z"]), (own.written, own.begun), "that is another token");
        let other = ledger.mark_of("b").unwrap().unwrap();
        assert_eq!(epochs("b", &[]), (other.written, other.begun));
    }

    #[test]
    fn a_marker_that_was_begun_only_does_not_say_what_its_member_has_done() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path());
        marked(&ledger, 1);
        ledger.remember_member("c", "c").unwrap();
        gone(&ledger, 2);
        let untold = |ledger: &Ledger| ledger.mark_of("c").unwrap().unwrap().untold;
        assert_eq!(untold(&ledger), 1, "as it joined");
        assert_eq!(ledger.mark_begun("c").unwrap(), 2);
        assert_eq!(untold(&ledger), 1);
        ledger.takes_no_marker("c").unwrap();
        assert_eq!(untold(&ledger), 2);
        ledger.member_renewed("c").unwrap();
        assert_eq!(ledger.mark_of("c").unwrap(), None);
    }

    #[test]
    fn a_restored_ledger_goes_on_from_what_the_tokens_say() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path());
        ledger.mark_found("a", 5).unwrap();
        ledger.mark_found("b", 3).unwrap();
        assert!(!ledger.has_recorded(5).unwrap());
        gone(&ledger, 1);
        assert!(ledger.is_to_be_marked("a").unwrap() && ledger.is_to_be_marked("b").unwrap());
        assert_eq!((mark(&ledger, "a"), mark(&ledger, "b")), (7, 7));
        assert!(ledger.has_recorded(6).unwrap());
    }
}
