//! Statements that a connection parses once.

use rusqlite::{Connection, Params, Result, Row};

/// As many as the ledger has, and some.
pub(super) const KINDS: usize = 64;

/// What a statement is asked for.
pub(super) trait Statements {
    /// Runs it; answers how many rows it wrote.
    fn run(&self, sql: &str, values: impl Params) -> Result<usize>;

    /// Its first row.
    fn first<T>(&self, sql: &str, values: impl Params, f: impl FnOnce(&Row<'_>) -> Result<T>) -> Result<T>;

    /// Whether there is a table of this name: a ledger that can only be read may be from before one that was added.
    fn has_table(&self, name: &str) -> Result<bool> {
        let sql = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?1";
        self.first(sql, [name], |row| row.get(0)).map(|count: u32| count > 0)
    }
}

impl Statements for Connection {
    fn run(&self, sql: &str, values: impl Params) -> Result<usize> {
        self.prepare_cached(sql)?.execute(values)
    }

    fn first<T>(&self, sql: &str, values: impl Params, f: impl FnOnce(&Row<'_>) -> Result<T>) -> Result<T> {
        self.prepare_cached(sql)?.query_row(values, f)
    }
}
