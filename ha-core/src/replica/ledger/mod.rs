//! The ledger: what the group must remember, on this host, in one SQLite file for each group.
//!
//! It knows each object of the group's own by a random identity, with a verifier, the template of its copies, the
//! wrapped blob that late members get it from, and who holds it; destroyed objects, until every member that held them
//! has said so; and changes that a member which was away has yet to make. No secret value is ever in it.
//!
//! Several processes of one host share the file. Each method is one transaction; waiting for another process is bounded.

mod backup;
mod beside;
mod codec;
mod connection;
mod destructions;
#[cfg(test)]
mod golden;
mod host;
mod leavings;
mod marks;
mod members;
mod objects;
mod open;
mod records;
mod refused;
mod retired;
mod sole;
mod statements;
#[cfg(test)]
mod tests;

pub use destructions::ByOthers;
pub use host::HostLock;
pub(crate) use host::{is_file_of, namespace};
pub use marks::Mark;
pub use objects::Found;
pub(crate) use open::{place, writes};
pub use records::Record;
pub(crate) use refused::Refused;
pub(crate) use retired::put_aside;

use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;

use ha_token::{Template, Ulong};

use connection::{Kept, Used};
use destructions::Destructions;

use super::verifier::Verifier;

/// What identifies an object of the group, whatever its handles, label and id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub [u8; 16]);

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why the ledger did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The folder or file cannot be used.
    #[error("{path}: {reason}")]
    Place {
        /// Which.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The file was made by a newer version of this library.
    #[error(
        "{path}: its format is {found}, and this version knows formats up to {known}; use the version that made it"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest known.
        known: i64,
    },
    /// It is another user's or another copy's of this library, or cannot be written: nothing is changed.
    #[error(
        "the ledger can only be read here: it is another user's, open in another copy of this library in this process, on a disk that cannot be written, or not the one that the tokens know"
    )]
    ReadOnly,
    /// The object is not in the state that the change needs: another process was faster.
    #[error("another process changed the object first")]
    Conflict,
    /// SQLite's words: full disk, lock not had in time, corrupt file.
    #[error("the ledger answers: {0}")]
    Database(#[from] rusqlite::Error),
}

/// What never changes about a ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The group's identity: part of the group keys' `CKA_ID`.
    pub group: [u8; 16],
    /// The ledger's own.
    pub ledger: [u8; 16],
    /// The virtual token's serial number: 16 hex digits.
    pub serial: String,
}

/// Where an object is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Meant to be made; no member may have a token object of it yet.
    Intent = 0,
    /// Verifier and blob are durable; members may have copies.
    Staged = 1,
    /// Acknowledged to the application.
    Committed = 2,
    /// Meant to be destroyed; no member has said that it did.
    Destroying = 3,
    /// Destroyed on one member at least, or given up while it was made: never to come back.
    Destroyed = 4,
}

/// A wrapped key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Blob {
    /// The wrapping mechanism.
    pub format: Ulong,
    /// Whether it is under the group key for extractable keys.
    pub extractable: bool,
    /// The wrapped key.
    pub bytes: Vec<u8>,
}

/// A new object, as it is announced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Intent {
    /// Its identity.
    pub id: ObjectId,
    /// `CKA_CLASS`.
    pub class: Ulong,
}

/// What identifies an object's copies on tokens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Staged {
    /// `CKA_CLASS`: what was made may be of another class than the announcement supposed (a copy takes its source's).
    pub class: Ulong,
    /// `CKA_KEY_TYPE`, or what stands for it.
    pub key_type: Ulong,
    /// `CKA_ID`, or what stands for it.
    pub ckaid: Vec<u8>,
    /// `CKA_LABEL`.
    pub label: Vec<u8>,
    /// `CKA_PRIVATE`.
    pub private: bool,
    /// What a copy must answer.
    pub verifier: Option<Verifier>,
    /// What a copy is made from, and what is answered in its place; no secret value.
    pub template: Template,
    /// The wrapped key.
    pub blob: Option<Blob>,
}

/// An object as the ledger has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectRow {
    /// Its identity.
    pub id: ObjectId,
    /// Where it is in its life.
    pub state: State,
    /// `CKA_CLASS`.
    pub class: Ulong,
    /// `CKA_KEY_TYPE`, or what stands for it.
    pub key_type: Ulong,
    /// `CKA_ID`, or what stands for it.
    pub ckaid: Vec<u8>,
    /// `CKA_LABEL`.
    pub label: Vec<u8>,
    /// `CKA_PRIVATE`.
    pub private: bool,
    /// See [`Staged::template`].
    pub template: Template,
    /// The wrapped key.
    pub blob: Option<Blob>,
    /// The members that hold it; of a destroyed object those that have not said that they destroyed it.
    pub copies: Vec<String>,
    /// Counts its changes.
    version: i64,
    verifier: Option<Vec<u8>>,
}

impl ObjectRow {
    /// What a copy must answer.
    pub fn verifier(&self) -> Option<Verifier> {
        self.verifier.as_deref().and_then(Verifier::from_bytes)
    }

    /// Whether nothing has changed it since it was read as `before`.
    pub fn is_unchanged_since(&self, before: &ObjectRow) -> bool {
        self.version == before.version
    }

    /// Whether it is to be used.
    pub fn is_committed(&self) -> bool {
        self.state == State::Committed
    }

    /// Whether it must never come back.
    pub fn is_destroyed(&self) -> bool {
        matches!(self.state, State::Destroyed | State::Destroying)
    }

    /// Whether a member that lacks it can be given it.
    pub fn is_copyable(&self) -> bool {
        self.blob.is_some() || !super::is_secret(self.class)
    }
}

/// A change that a member has yet to make.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pending {
    /// Its number.
    pub number: i64,
    /// The object.
    pub object: ObjectId,
    /// The attributes to set.
    pub template: Template,
}

/// The ledger of one group. All methods may be called from any thread.
pub struct Ledger {
    connection: Kept,
    identity: Identity,
    /// Why nothing is written, if nothing is.
    read_only: OnceLock<String>,
    path: PathBuf,
    wait: std::time::Duration,
    /// After the connection, here and below: given up when that is closed.
    _sole: Option<std::sync::Arc<sole::Sole>>,
    /// Whether a copy is read in place of the file.
    beside: bool,
    /// What processes tell each other of destructions, where they can.
    destructions: Option<Destructions>,
}

impl Ledger {
    /// What never changes about it.
    pub fn identity(&self) -> Identity {
        self.identity.clone()
    }

    /// Whether changes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only.get().is_some()
    }

    /// Why changes are refused, in words, if they are.
    pub fn why_read_only(&self) -> Option<&str> {
        self.read_only.get().map(String::as_str)
    }

    /// From now on changes are refused, until the ledger is opened anew.
    pub fn refuse_changes(&self, why: String) {
        _ = self.read_only.set(why);
    }

    /// Whether this is a copy of the ledger as it was when it was opened, because another copy of this library in this
    /// process has it open.
    pub fn is_beside(&self) -> bool {
        self.beside
    }

    fn connection(&self) -> Result<Used<'_>, LedgerError> {
        self.connection.take().ok_or_else(|| LedgerError::Place {
            path: self.path.clone(),
            reason: "the process that this one was forked from has opened it: a forked process begins anew"
                .into(),
        })
    }

    fn writable(&self) -> Result<Used<'_>, LedgerError> {
        if self.is_read_only() {
            return Err(LedgerError::ReadOnly);
        }
        room()?;
        self.connection()
    }
}

/// Before each write: the disk of a simulation may be full. It answers as SQLite does, and no part of a change is there.
fn room() -> Result<(), LedgerError> {
    #[cfg(feature = "simulation")]
    if crate::seam::turns::disk_is_full() {
        let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
        return Err(rusqlite::Error::SqliteFailure(full, None).into());
    }
    Ok(())
}
