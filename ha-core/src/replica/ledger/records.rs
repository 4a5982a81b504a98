//! What the ledger knows of each object, as it is kept on the members too, and a ledger made of that.

use std::path::Path;
use std::time::Duration;

use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::marks::begins_after;
use super::statements::Statements as _;
use super::{Identity, Ledger, LedgerError, ObjectId, ObjectRow, codec};
use crate::replica::records::Bucket;

type Result<T> = std::result::Result<T, LedgerError>;

/// What a host cannot afford to lose of an object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Its identity.
    pub id: [u8; 16],
    /// Whether it is destroyed, and some member has yet to say that it did.
    pub destroyed: bool,
    /// `CKA_CLASS`.
    pub class: u64,
    /// `CKA_KEY_TYPE`, or what stands for it.
    pub key_type: u64,
    /// `CKA_ID`, or what stands for it.
    pub ckaid: Vec<u8>,
    /// `CKA_LABEL`.
    pub label: Vec<u8>,
    /// `CKA_PRIVATE`.
    pub private: bool,
    /// What a copy must answer.
    pub verifier: Option<Vec<u8>>,
    /// What a copy is made from; no secret value.
    pub template: Vec<u8>,
    /// The wrapped key: its mechanism, whether it is under the group key for extractable keys, and the key.
    pub blob: Option<(u64, bool, Vec<u8>)>,
    /// The members that hold it, or have yet to destroy it.
    pub copies: Vec<String>,
}

impl From<ObjectRow> for Record {
    fn from(row: ObjectRow) -> Record {
        Record {
            id: row.id.0,
            // One whose destruction is announced may yet stay.
            destroyed: row.state == super::State::Destroyed,
            class: row.class as u64,
            key_type: row.key_type as u64,
            ckaid: row.ckaid,
            label: row.label,
            private: row.private,
            verifier: row.verifier,
            template: codec::encode(&row.template),
            blob: row.blob.map(|blob| (blob.format as u64, blob.extractable, blob.bytes)),
            copies: row.copies,
        }
    }
}

impl Ledger {
    /// How many objects are recorded: all but those that are being made.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn count_recorded(&self) -> Result<usize> {
        let sql = "SELECT count(*) FROM object WHERE state >= 2";
        let count: i64 = self.connection()?.first(sql, [], |r| r.get(0))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// The objects that were made, changed or destroyed since a marker of this epoch was written.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn altered_since(&self, epoch: u64) -> Result<Vec<ObjectId>> {
        let connection = self.connection()?;
        let mut statement = connection.prepare_cached("SELECT object FROM altered WHERE epoch > ?1")?;
        let rows = statement.query_map([epoch as i64], |r| r.get::<_, [u8; 16]>(0))?;
        Ok(rows.map(|id| id.map(ObjectId)).collect::<rusqlite::Result<_>>()?)
    }

    /// What is to be recorded of the objects of a bucket.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn records_of(&self, bucket: Bucket) -> Result<Vec<Record>> {
        let (first, last) = bucket.range();
        let rows = self.select("o.state >= 2 AND o.id BETWEEN ?1 AND ?2", params![first, last])?;
        Ok(rows.into_iter().map(Record::from).collect())
    }

    /// Makes of records the ledger that a group of this label has in `dir`, where there is none. `epoch`: of the marker beside
    /// them. It is yet to be compared with the tokens.
    ///
    /// # Errors
    /// [`LedgerError::Place`] where a ledger is there, or none can be; else [`LedgerError`].
    pub fn from_records(
        dir: &Path,
        group: &str,
        identity: &Identity,
        epoch: u64,
        behind: &[String],
        records: &[Record],
    ) -> Result<()> {
        let path = dir.join(super::open::file_name(group));
        if path.exists() {
            return Err(LedgerError::Place { path, reason: "a ledger is there".into() });
        }
        let ledger = Ledger::open(dir, group, Duration::ZERO, &mut |bytes| bytes.fill(0))?;
        let mut connection = ledger.writable()?;
        let transaction = connection.transaction()?;
        let set = "INSERT OR REPLACE INTO meta VALUES (?1, ?2)";
        transaction.run(set, params!["group", identity.group])?;
        transaction.run(set, params!["ledger", identity.ledger])?;
        transaction.run(set, params!["serial", identity.serial.as_bytes()])?;
        for member in behind {
            let sql = "INSERT INTO mark (member, begun, written, set_back) VALUES (?1, ?2, 0, 1)";
            transaction.run(sql, params![member, epoch as i64])?;
        }
        begins_after(&transaction, epoch)?;
        for record in records {
            // Members whose markers are older may have missed any of it.
            let sql = "INSERT OR REPLACE INTO altered VALUES (?1, ?2, ?2, ?2)";
            transaction.run(sql, params![record.id, epoch as i64])?;
            let sql = "INSERT OR IGNORE INTO object (id, state, class, key_type, ckaid, label, private, verifier, template)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
            let state = if record.destroyed { super::State::Destroyed } else { super::State::Committed };
            transaction.run(
                sql,
                params![
                    record.id,
                    state as i64,
                    record.class as i64,
                    record.key_type as i64,
                    record.ckaid,
                    record.label,
                    record.private,
                    record.verifier,
                    record.template
                ],
            )?;
            if let Some((format, extractable, bytes)) = record.blob.as_ref().filter(|_| !record.destroyed) {
                let sql =
                    "INSERT OR IGNORE INTO blob (object, format, extractable, bytes) VALUES (?1, ?2, ?3, ?4)";
                transaction.run(sql, params![record.id, *format as i64, extractable, bytes])?;
            }
            for member in &record.copies {
                transaction.run("INSERT OR IGNORE INTO copy VALUES (?1, ?2)", params![record.id, member])?;
            }
        }
        Ok(transaction.commit()?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{committed, open_in};
    use super::*;
    use crate::replica::ledger::State;

    #[test]
    fn a_ledger_is_made_of_what_another_one_knew() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ledger = open_in(dir.path()).unwrap();
        let (one, two) = (committed(&ledger, 1, &["a", "b"]), committed(&ledger, 200, &["a", "b"]));
        ledger.destroy_begin(two, &[]).unwrap();
        ledger.destroy_final(two).unwrap();
        ledger.acknowledge(two, "a").unwrap();
        assert_eq!(ledger.count_recorded().unwrap(), 2);
        let records: Vec<_> = Bucket::all(2).flat_map(|b| ledger.records_of(b).unwrap()).collect();
        assert_eq!(records.len(), 2);
        Ledger::from_records(other.path(), "g", &ledger.identity(), 4, &["b".into()], &records).unwrap();
        assert!(
            Ledger::from_records(other.path(), "g", &ledger.identity(), 4, &["b".into()], &records).is_err()
        );
        let made = open_in(other.path()).unwrap();
        assert_eq!(made.identity(), ledger.identity());
        let (was, is) = (ledger.object(one).unwrap().unwrap(), made.object(one).unwrap().unwrap());
        assert_eq!((is.blob, is.template, is.copies), (was.blob, was.template, was.copies));
        assert_eq!((is.state, is.verifier), (State::Committed, was.verifier));
        assert_eq!(made.tombstones_for("b").unwrap().len(), 1);
        assert!(made.tombstones_for("a").unwrap().is_empty());
        assert!(made.mark_of("b").unwrap().is_some_and(|mark| mark.set_back));
    }

    #[test]
    fn what_was_made_changed_or_destroyed_is_to_be_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open_in(dir.path()).unwrap();
        let one = committed(&ledger, 1, &["a"]);
        assert_eq!(ledger.altered_since(0).unwrap(), [one]);
        let epoch = ledger.mark_begun("a").unwrap();
        assert!(ledger.altered_since(epoch).unwrap().is_empty());
        let two = committed(&ledger, 2, &["a"]);
        assert_eq!(ledger.altered_since(epoch).unwrap(), [two]);
        assert!(ledger.is_to_be_marked("a").unwrap());
    }
}
