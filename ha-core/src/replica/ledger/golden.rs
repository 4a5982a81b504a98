//! The ledger's format as it is kept: a ledger of the first form is read, and has then what one of today has; and what one of
//! today has is written down, so that no change of it goes unnoticed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ha_token::{Attribute, ck};
use rusqlite::Connection;

use super::tests::{open_in, staged};
use super::*;

/// A ledger as the first version left it: an object that both members hold and one of them is to change, a tombstone, an
/// intent.
const FIRST: &str = include_str!("golden/first.sql");
/// The tables of today, by name.
const TODAY: &str = include_str!("golden/today.sql");
/// What operators are told of them.
const DOCUMENTED: &str = include_str!("../../../../docs/ledger.md");

fn path(dir: &std::path::Path) -> PathBuf {
    place(dir, "g").expect("a place").path
}

/// Tables and indexes, by name.
fn schema(connection: &Connection) -> BTreeMap<String, String> {
    let mut all = connection
        .prepare("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite%'")
        .unwrap();
    all.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().map(Result::unwrap).collect()
}

#[test]
fn a_ledger_of_the_first_form_is_read_and_has_then_all_that_one_of_today_has() {
    let dir = tempfile::tempdir().unwrap();
    let made = Connection::open(path(dir.path())).unwrap();
    made.execute_batch(FIRST).unwrap();
    drop(made);
    let ledger = open_in(dir.path()).unwrap();
    assert!(!ledger.is_read_only(), "{:?}", ledger.why_read_only());
    assert_eq!(ledger.identity().serial, "0303030303030303");
    assert_eq!(ledger.serial_of("a").unwrap().as_deref(), Some("serial of a"));
    let row = ledger.object(ObjectId([1; 16])).unwrap().unwrap();
    let as_it_was = staged(b"k");
    assert!(row.is_committed());
    assert_eq!(
        (row.verifier(), row.template.clone(), row.blob.clone()),
        (as_it_was.verifier, as_it_was.template, as_it_was.blob)
    );
    assert_eq!(row.copies, ["a", "b"]);
    let [pending] = &ledger.pending_for("b").unwrap()[..] else { panic!("one change") };
    assert_eq!(pending.template, vec![Attribute::bytes(ck::CKA_LABEL, *b"new")]);
    let tombstones = ledger.tombstones_for("b").unwrap();
    assert_eq!(tombstones.iter().map(|row| row.id).collect::<Vec<_>>(), [ObjectId([2; 16])]);
    assert!(ledger.has_unfinished().unwrap(), "what was announced");
    // And it goes on from there.
    ledger.acknowledge(ObjectId([2; 16]), "b").unwrap();
    assert!(ledger.tombstones_for("b").unwrap().is_empty());
    assert_eq!(schema(&ledger.connection().unwrap()), schema(&fresh()));
}

/// A ledger that was made just now, as SQLite sees it.
fn fresh() -> Connection {
    let dir = tempfile::tempdir().unwrap();
    drop(open_in(dir.path()).unwrap());
    let file = Connection::open(path(dir.path())).unwrap();
    // In memory: the folder goes.
    let copy = Connection::open_in_memory().unwrap();
    schema(&file)
        .values()
        .filter(|sql| sql.starts_with("CREATE TABLE"))
        .for_each(|sql| copy.execute_batch(sql).unwrap());
    schema(&file)
        .values()
        .filter(|sql| sql.starts_with("CREATE INDEX"))
        .for_each(|sql| copy.execute_batch(sql).unwrap());
    copy
}

#[test]
fn the_tables_are_those_that_are_written_down() {
    let expected: Vec<&str> = TODAY.split_terminator(";\n").collect();
    let found: Vec<String> = schema(&fresh()).into_values().collect();
    assert_eq!(
        found, expected,
        "change golden/today.sql and docs/ledger.md with it; a ledger of before must still be read"
    );
}

#[test]
fn every_table_and_column_is_documented() {
    let ledger = fresh();
    for (name, sql) in schema(&ledger).iter().filter(|(_, sql)| sql.starts_with("CREATE TABLE")) {
        assert!(DOCUMENTED.contains(&format!("`{name}`")), "{name}: {sql}");
        let mut columns = ledger.prepare("SELECT name FROM pragma_table_info(?1)").unwrap();
        for column in columns.query_map([name], |r| r.get::<_, String>(0)).unwrap().map(Result::unwrap) {
            assert!(DOCUMENTED.contains(&format!("`{column}`")), "{name}.{column}");
        }
    }
}
