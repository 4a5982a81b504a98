//! Opening the ledger: the folder, the file, its format, its identity.

use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ha_member::whole::Whole;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use sha2::{Digest, Sha256};

use super::connection::{Kept, close_inherited};
use super::destructions::Destructions;
use super::host::HostLock;
use super::sole::{self, Claim, Sole};
use super::statements::KINDS;
use super::{Identity, Ledger, LedgerError, beside};
use crate::seam::World;

/// Why a second copy of this library changes nothing.
const BESIDE: &str = "another copy of this library in this process has it open";

/// The format that this version writes.
pub(super) const FORMAT: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE member (name TEXT PRIMARY KEY, serial TEXT NOT NULL, mac BLOB) WITHOUT ROWID;
CREATE TABLE object (
    id BLOB PRIMARY KEY, state INTEGER NOT NULL, class INTEGER NOT NULL, key_type INTEGER NOT NULL DEFAULT 0,
    ckaid BLOB NOT NULL DEFAULT x'', label BLOB NOT NULL DEFAULT x'', private INTEGER NOT NULL DEFAULT 0,
    verifier BLOB, template BLOB NOT NULL DEFAULT x'', version INTEGER NOT NULL DEFAULT 1, mac BLOB
) WITHOUT ROWID;
CREATE INDEX object_traits ON object (class, ckaid, label);
CREATE TABLE copy (object BLOB NOT NULL, member TEXT NOT NULL, PRIMARY KEY (object, member)) WITHOUT ROWID;
CREATE TABLE blob (object BLOB PRIMARY KEY, format INTEGER NOT NULL, extractable INTEGER NOT NULL, bytes BLOB NOT NULL, mac BLOB) WITHOUT ROWID;
CREATE TABLE pending (number INTEGER PRIMARY KEY AUTOINCREMENT, member TEXT NOT NULL, object BLOB NOT NULL, template BLOB NOT NULL, mac BLOB);
";

impl Ledger {
    /// Opens, or makes, the ledger of a group in the state folder. `wait` bounds how long another process is waited for;
    /// `random` fills bytes for identities.
    ///
    /// # Errors
    /// [`LedgerError`]. Where the file is there and only cannot be written, it is opened for reading.
    pub fn open(
        dir: &Path,
        group: &str,
        wait: Duration,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Ledger, LedgerError> {
        let place = |reason: String| LedgerError::Place { path: dir.to_owned(), reason };
        let _whole = Whole::begin();
        if !close_inherited()? {
            return Err(place(
                "the process that this one was forked from was writing a ledger at that moment, for too long to be waited for; start the program anew".into(),
            ));
        }
        if !dir.exists() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(|e| place(format!("the folder cannot be made: {e}")))?;
        }
        let meta = std::fs::metadata(dir).map_err(|e| place(e.to_string()))?;
        if !meta.is_dir() {
            return Err(place("it is not a folder".into()));
        }
        let shared = is_shared(&meta);
        if is_open_to_others(&meta) {
            let mode = meta.mode() & 0o7777;
            return Err(place(format!("others can write it (mode {mode:o}); run `chmod 700` on it")));
        }
        let path = dir.join(file_name(group));
        let me = rustix::process::geteuid().as_raw();
        let owner = std::fs::metadata(&path).map_or(meta.uid(), |m| m.uid());
        let sole = match sole::claim(&path)? {
            Claim::Ours(sole) => sole,
            Claim::Taken => return Self::connect_beside(&path, wait),
        };
        if owner != me && !shared {
            if !path.exists() {
                return Err(place(format!(
                    "the folder belongs to uid {owner}, and this runs as uid {me}; the group has no ledger in it yet"
                )));
            }
            let why = format!("it belongs to uid {owner}, and this runs as uid {me}");
            return Self::connect_for_reading(&path, wait, why, sole);
        }
        let failed = match Self::connect(&path, wait, random, sole.clone()) {
            Err(LedgerError::Database(e)) if is_unwritable(&e) && path.exists() => LedgerError::Database(e),
            Err(LedgerError::Place { path, reason }) if path.exists() => LedgerError::Place { path, reason },
            other => return other,
        };
        // What cannot be written may be readable. Where it is not even that, or was never made, the first words count.
        Self::connect_for_reading(&path, wait, failed.to_string(), sole).map_err(|error| match error {
            LedgerError::Newer { found: 1.., .. } => error,
            _ => failed,
        })
    }

    fn connect(
        path: &Path,
        wait: Duration,
        random: &mut dyn FnMut(&mut [u8]),
        sole: Option<Arc<Sole>>,
    ) -> Result<Ledger, LedgerError> {
        // Made here with its mode, so that it is never open to others for a moment. One that is there is not opened: to
        // close it again would take away the locks of a connection that this process has to it.
        let made = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
        match made {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(LedgerError::Place { path: path.to_owned(), reason: e.to_string() });
            }
            _ => {}
        }
        let mut connection = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        connection.busy_timeout(wait)?;
        // Of several processes that open a new file at once one makes the change; the others are told that it is busy, and
        // find it made.
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => {}
            other => other?,
        }
        connection.pragma_update(None, "synchronous", "FULL")?;
        // What is deleted, as the blob of a destroyed key, is not left in free pages.
        connection.pragma_update(None, "secure_delete", true)?;
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        match format(&transaction)? {
            0 => {
                transaction.execute_batch(SCHEMA)?;
                for key in ["group", "ledger"] {
                    let mut id = [0u8; 16];
                    random(&mut id);
                    transaction.execute("INSERT INTO meta VALUES (?1, ?2)", (key, id))?;
                }
                let mut serial = [0u8; 8];
                random(&mut serial);
                let serial: String = serial.iter().map(|b| format!("{b:02x}")).collect();
                transaction.execute("INSERT INTO meta VALUES ('serial', ?1)", (serial.into_bytes(),))?;
                transaction.pragma_update(None, "user_version", FORMAT)?;
            }
            FORMAT => {}
            found => return Err(LedgerError::Newer { path: path.to_owned(), found, known: FORMAT }),
        }
        transaction.execute_batch(super::members::ADDED)?;
        transaction.execute_batch(super::marks::ADDED)?;
        transaction.execute_batch(super::refused::ADDED)?;
        super::refused::add_since(&transaction)?;
        transaction.commit()?;
        let mut ledger = Self::with(connection, path, wait, None, sole)?;
        ledger.destructions = Destructions::open(path);
        Ok(ledger)
    }

    /// A file that this process may not write. SQLite writes beside one that it only reads: so, unless somebody has it
    /// open now, a copy in memory is read.
    fn connect_for_reading(
        path: &Path,
        wait: Duration,
        why: String,
        sole: Option<Arc<Sole>>,
    ) -> Result<Ledger, LedgerError> {
        let journal = path.with_extension("ledger-wal");
        let connection = if std::fs::metadata(journal).is_ok_and(|m| m.len() > 0) {
            Connection::open_with_flags(
                path,
                OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            )?
        } else {
            copy_in_memory(path)?
        };
        connection.busy_timeout(wait)?;
        let found = format(&connection)?;
        if found != FORMAT {
            return Err(LedgerError::Newer { path: path.to_owned(), found, known: FORMAT });
        }
        Self::with(connection, path, wait, Some(why), sole)
    }

    /// While another copy of this library in this process has it open.
    fn connect_beside(path: &Path, wait: Duration) -> Result<Ledger, LedgerError> {
        let (folder, copy) = beside::copy(path)
            .map_err(|e| LedgerError::Place { path: path.to_owned(), reason: e.to_string() })?;
        {
            // Its log is taken into the copy, which is then read from memory: nothing of it stays on a disk.
            let merge = Connection::open_with_flags(
                &copy,
                OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            )?;
            merge.pragma_query_value(None, "wal_checkpoint", |_| Ok(()))?;
            merge.pragma_update(None, "journal_mode", "DELETE")?;
        }
        let connection = copy_in_memory(&copy)?;
        drop(folder);
        let found = format(&connection)?;
        if found != FORMAT {
            return Err(LedgerError::Newer { path: path.to_owned(), found, known: FORMAT });
        }
        let mut ledger = Self::with(connection, path, wait, Some(BESIDE.into()), None)?;
        ledger.beside = true;
        Ok(ledger)
    }

    fn with(
        connection: Connection,
        path: &Path,
        wait: Duration,
        read_only: Option<String>,
        sole: Option<Arc<Sole>>,
    ) -> Result<Ledger, LedgerError> {
        // Otherwise each statement is planned anew for the values that it is given.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        connection.set_prepared_statement_cache_capacity(KINDS);
        let get = |key: &str| -> Result<Vec<u8>, LedgerError> {
            connection
                .query_row("SELECT value FROM meta WHERE key = ?1", [key], |r| r.get(0))
                .optional()?
                .ok_or_else(|| LedgerError::Place {
                    path: path.to_owned(),
                    reason: format!("it is not a ledger: it has no {key}"),
                })
        };
        let broken =
            |_| LedgerError::Place { path: PathBuf::from(path), reason: "its identity is damaged".into() };
        let identity = Identity {
            group: get("group")?.try_into().map_err(broken)?,
            ledger: get("ledger")?.try_into().map_err(broken)?,
            serial: String::from_utf8_lossy(&get("serial")?).into_owned(),
        };
        Ok(Ledger {
            connection: Kept::new(connection),
            identity,
            read_only: read_only.map(OnceLock::from).unwrap_or_default(),
            path: path.to_owned(),
            wait,
            _sole: sole,
            beside: false,
            destructions: None,
        })
    }
}

impl Ledger {
    /// Held by the one process of this host that makes or moves group keys; let go when dropped.
    ///
    /// # Errors
    /// [`LedgerError::Place`] when another process does not let go in time.
    pub fn bootstrap_lock(&self, world: &dyn World) -> Result<HostLock, LedgerError> {
        self.host_lock("lock", "has been making group keys for too long", world, &|| false)
    }

    /// Held by the one process of this host that brings a member up to date; let go when dropped. Waited for until
    /// `give_up` says so, if that is sooner than locks are waited for.
    ///
    /// # Errors
    /// [`LedgerError::Place`] when another process does not let go in time.
    pub fn member_lock(
        &self,
        member: &str,
        world: &dyn World,
        give_up: &dyn Fn() -> bool,
    ) -> Result<HostLock, LedgerError> {
        let extension = format!("{}.lock", short_digest(member));
        self.host_lock(&extension, "has been bringing the member up to date for too long", world, give_up)
    }

    /// Held by the one process of this host that has a member judge a PIN; let go when dropped.
    ///
    /// # Errors
    /// [`LedgerError::Place`] when another process does not let go in time.
    pub(crate) fn pin_lock(&self, world: &dyn World) -> Result<HostLock, LedgerError> {
        self.host_lock("pin.lock", "has been logging in for too long", world, &|| false)
    }

    /// Held while something is made or destroyed, by as many as there are; let go when dropped, or when the process dies.
    ///
    /// # Errors
    /// [`LedgerError::Place`] when another process settles for too long.
    pub fn at_work(&self, world: &dyn World) -> Result<HostLock, LedgerError> {
        let why = "has been settling what others left for too long";
        self.lock_on_host("work.lock", File::try_lock_shared, why, world, &|| false)
    }

    /// Settles what processes have left that died at work: what was not acknowledged is destroyed. While anybody is at work
    /// nothing is settled. Answers how much that was.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn settle(&self, members: &[&str]) -> Result<usize, LedgerError> {
        let Ok(alone) = HostLock::take(self.lock_file("work.lock")?, File::try_lock) else { return Ok(0) };
        let _alone = alone.of_this_process();
        self.give_up_unfinished(members)
    }

    fn lock_file(&self, extension: &str) -> Result<File, LedgerError> {
        let place = |reason: String| LedgerError::Place { path: self.path.clone(), reason };
        let mut options = std::fs::OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        ha_member::open_plain(&mut options, &self.path.with_extension(extension))
            .map_err(|e| place(e.to_string()))
    }

    fn host_lock(
        &self,
        extension: &str,
        why: &str,
        world: &dyn World,
        give_up: &dyn Fn() -> bool,
    ) -> Result<HostLock, LedgerError> {
        self.lock_on_host(extension, File::try_lock, why, world, give_up)
    }

    /// Tries again and again, because a lock of this kind cannot be waited for with a limit.
    fn lock_on_host(
        &self,
        extension: &str,
        lock: impl Fn(&File) -> Result<(), TryLockError>,
        why: &str,
        world: &dyn World,
        give_up: &dyn Fn() -> bool,
    ) -> Result<HostLock, LedgerError> {
        let place = |reason: String| LedgerError::Place { path: self.path.clone(), reason };
        let mut file = self.lock_file(extension)?;
        let until = world.now() + self.wait;
        let pause = world.event();
        loop {
            match HostLock::take(file, &lock) {
                Ok(held) => return Ok(held.of_this_process()),
                Err((_, TryLockError::Error(e))) => return Err(place(e.to_string())),
                Err((_, TryLockError::WouldBlock)) if world.now() >= until || give_up() => {
                    return Err(place(format!("another process {why}")));
                }
                Err((same, TryLockError::WouldBlock)) => file = same,
            }
            pause.wait(Some(Duration::from_millis(10)));
        }
    }
}

/// Where a group's files are, for what is not the ledger's.
pub(crate) struct Place {
    /// The ledger's.
    pub(crate) path: PathBuf,
    /// Whether this process may write there: as another user than the ledger's owner it only reads.
    pub(crate) is_ours: bool,
    /// The mode of new files that the processes which share the folder read.
    pub(crate) mode: u32,
}

/// The place of a group's files; `None` without a folder that the ledger would be opened in.
pub(crate) fn place(dir: &Path, group: &str) -> Option<Place> {
    let meta = std::fs::metadata(dir).ok().filter(|m| m.is_dir() && !is_open_to_others(m))?;
    let path = dir.join(file_name(group));
    let owner = std::fs::metadata(&path).map_or(meta.uid(), |m| m.uid());
    let is_ours = owner == rustix::process::geteuid().as_raw() || is_shared(&meta);
    let mode = if is_shared(&meta) { 0o660 } else { 0o600 };
    Some(Place { path, is_ours, mode })
}

/// By which file the processes of a host take turns to write to a member's token.
pub(crate) fn writes(dir: &Path, group: &str, member: &str) -> PathBuf {
    dir.join(file_name(group)).with_extension(format!("{}.writes", short_digest(member)))
}

/// Group-writable only in the shape that shares it on purpose: set-group-id, nothing for others.
fn is_shared(meta: &std::fs::Metadata) -> bool {
    meta.mode() & 0o2007 == 0o2000
}

fn is_open_to_others(meta: &std::fs::Metadata) -> bool {
    meta.mode() & 0o002 != 0 || (meta.mode() & 0o020 != 0 && !is_shared(meta))
}

fn copy_in_memory(path: &Path) -> Result<Connection, LedgerError> {
    let mut bytes = std::fs::read(path)
        .map_err(|e| LedgerError::Place { path: path.to_owned(), reason: e.to_string() })?;
    // The header's words for a journal in a file of its own, which there is none of in memory.
    if let Some(journal) = bytes.get_mut(18..20) {
        journal.fill(1);
    }
    let mut connection = Connection::open_in_memory()?;
    connection.deserialize_read_exact("main", bytes.as_slice(), bytes.len(), true)?;
    Ok(connection)
}

/// The format that a file says it has.
pub(super) fn format(connection: &Connection) -> Result<i64, rusqlite::Error> {
    connection.pragma_query_value(None, "user_version", |r| r.get(0))
}

fn is_unwritable(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, DiskFull, PermissionDenied, ReadOnly};
    error
        .sqlite_error_code()
        .is_some_and(|c| matches!(c, ReadOnly | CannotOpen | PermissionDenied | DiskFull))
}

/// The label made fit for a file's name, with a digest so that two labels never share a file.
pub(super) fn file_name(group: &str) -> String {
    let plain: String = group
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' })
        .collect();
    format!("{plain}-{}.ledger", short_digest(group))
}

fn short_digest(text: &str) -> String {
    let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    digest.iter().take(4).map(|b| format!("{b:02x}")).collect()
}
