//! The connection to the ledger's file, and what a fork must not do to it.
//!
//! SQLite remembers for the whole process what it has locked, and a forked child inherits that memory without the locks:
//! it would take none of its own for a file that it opens beside an inherited connection. So a fork waits while anybody
//! is in SQLite ([`Whole`]), the parent's connections answer nothing in the child, and they are closed before the child
//! opens its own: closing takes no lock of the parent away, because those belong to a process.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, MutexGuard, PoisonError, TryLockError, Weak};

use ha_member::whole::{Whole, was_torn};
use ha_member::{ForkLock, fork_generation};
use rusqlite::Connection;
use rusqlite::config::DbConfig;

use crate::sync::Mutex;

/// Those of this process, and with them those that it has inherited.
static ALL: ForkLock<Vec<(u64, Weak<Mutex<Connection>>)>> = ForkLock::new(Vec::new());

/// A connection, for one thread at a time of the process that opened it.
pub(super) struct Kept {
    /// `None` only while it is dropped.
    connection: Option<Arc<Mutex<Connection>>>,
    generation: u64,
}

/// A connection in use. Forks wait for it.
pub(super) struct Used<'a> {
    connection: MutexGuard<'a, Connection>,
    _whole: Whole,
}

impl Kept {
    pub(super) fn new(connection: Connection) -> Self {
        let _whole = Whole::begin();
        let connection = Arc::new(Mutex::new(connection));
        let mut all = ALL.lock();
        all.retain(|(_, one)| one.strong_count() > 0);
        all.push((fork_generation(), Arc::downgrade(&connection)));
        Kept { connection: Some(connection), generation: fork_generation() }
    }

    /// For this thread alone; `None` in a process that was forked from the one that opened it.
    pub(super) fn take(&self) -> Option<Used<'_>> {
        let whole = Whole::begin();
        let connection = self.connection.as_ref().filter(|_| self.generation == fork_generation())?;
        let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Used { connection, _whole: whole })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let connection = self.connection.take();
        if self.generation == fork_generation() {
            let _whole = Whole::begin();
            drop(connection);
        } else {
            // The parent's: closed before this process opens one, and not before.
            std::mem::forget(connection);
        }
    }
}

impl Deref for Used<'_> {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Used<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

/// Closes what this process has inherited, before it opens anything. False where that is not possible: what the parent
/// had in hand when it forked is half done here for good.
pub(super) fn close_inherited() -> Result<bool, rusqlite::Error> {
    if was_torn() {
        return Ok(false);
    }
    let is_inherited = |(generation, _): &(u64, _)| *generation != fork_generation();
    let inherited: Vec<_> = ALL.lock().iter().filter(|one| is_inherited(one)).cloned().collect();
    for connection in inherited.iter().filter_map(|(_, one)| one.upgrade()) {
        let mut connection = match connection.try_lock() {
            Ok(connection) => connection,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        // Its journal is the parent's, and stays.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        *connection = Connection::open_in_memory()?;
    }
    // Only now: what could not be closed keeps the next one from opening anything, too.
    ALL.lock().retain(|one| !is_inherited(one));
    Ok(true)
}
