//! What the ledger knows of PINs that were refused, so that nobody sends them again. No PIN can be read from it, and of one
//! that some member takes for right nothing is there.

use ha_token::UserType;
use rusqlite::{Connection, OptionalExtension, params};

use super::statements::Statements as _;
use super::{Ledger, LedgerError};
use crate::pin::KeptDigest;

type Result<T> = std::result::Result<T, LedgerError>;

/// Added after the first ledgers were made; who does not know the table does not miss it. `pin` is null where another
/// member takes the PIN for right.
pub(super) const ADDED: &str = "CREATE TABLE IF NOT EXISTS refused (
    number INTEGER PRIMARY KEY AUTOINCREMENT, user INTEGER NOT NULL, member TEXT NOT NULL, counted INTEGER NOT NULL,
    salt BLOB, pin BLOB, UNIQUE (user, member, pin));";

/// Adds what ledgers made before it lack: how often PINs had been set when the refused one was given.
pub(super) fn add_since(connection: &Connection) -> rusqlite::Result<()> {
    let sql = "SELECT 1 FROM pragma_table_info('refused') WHERE name = 'since'";
    if connection.first(sql, [], |_| Ok(())).optional()?.is_none() {
        connection.run("ALTER TABLE refused ADD COLUMN since INTEGER NOT NULL DEFAULT 0", [])?;
    }
    Ok(())
}

/// How many PINs are kept at most for one user: of more the oldest is forgotten, so that comparing stays bounded.
const MOST: u32 = 16;

/// A member's refusal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Refused {
    /// The member.
    pub(crate) member: String,
    /// Whether its token said then that it had counted wrong PINs.
    pub(crate) counted: bool,
    /// The PIN, unless another member takes it for right.
    pub(crate) pin: Option<KeptDigest>,
    /// How often a PIN of this user's had been set when it was given.
    pub(crate) since: u64,
}

fn pins_set(connection: &Connection, user: UserType) -> rusqlite::Result<u64> {
    let sql = "SELECT value FROM meta WHERE key = ?1";
    let kept: Option<[u8; 8]> = connection.first(sql, [pins_key(user)], |r| r.get(0)).optional()?;
    Ok(kept.map_or(0, u64::from_be_bytes))
}

fn pins_key(user: UserType) -> String {
    format!("pins set {}", user_number(user))
}

/// As SQLite takes it.
fn user_number(user: UserType) -> i64 {
    user.number() as i64
}

impl Ledger {
    /// What members refused for a user, the last first.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub(crate) fn refused(&self, user: UserType) -> Result<Vec<Refused>> {
        let connection = self.connection()?;
        if !connection.has_table("refused")? {
            return Ok(Vec::new());
        }
        let sql =
            "SELECT member, counted, salt, pin, since FROM refused WHERE user = ?1 ORDER BY number DESC";
        let mut statement = connection.prepare_cached(sql)?;
        let rows = statement.query_map([user_number(user)], |row| {
            let (salt, pin): (Option<[u8; 16]>, Option<[u8; 32]>) = (row.get(2)?, row.get(3)?);
            let pin = salt.zip(pin).map(|(salt, digest)| KeptDigest { salt, digest });
            let since = row.get::<_, i64>(4)?.cast_unsigned();
            Ok(Refused { member: row.get(0)?, counted: row.get(1)?, pin, since })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The salt of what is there; `None` where nothing is.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub(crate) fn refused_salt(&self) -> Result<Option<[u8; 16]>> {
        let sql = "SELECT salt FROM refused WHERE salt IS NOT NULL LIMIT 1";
        Ok(self.connection()?.first(sql, [], |r| r.get(0)).optional()?)
    }

    /// How often a PIN of this user's was set through the group, by whatever process.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub(crate) fn pins_set(&self, user: UserType) -> Result<u64> {
        Ok(pins_set(&*self.connection()?, user)?)
    }

    /// A PIN of this user's was set through the group. Answers how often that happened.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub(crate) fn pin_was_set(&self, user: UserType) -> Result<u64> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        let now = pins_set(&transaction, user)? + 1;
        let sql = "INSERT OR REPLACE INTO meta VALUES (?1, ?2)";
        transaction.run(sql, params![pins_key(user), now.to_be_bytes()])?;
        transaction.commit()?;
        Ok(now)
    }

    /// Remembers a refusal. `since`: how often a PIN had been set when the one that was refused was given.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub(crate) fn remember_refused(
        &self,
        user: UserType,
        member: &str,
        counted: bool,
        pin: Option<KeptDigest>,
        since: u64,
    ) -> Result<()> {
        let mut connection = self.writable()?;
        let transaction = connection.transaction()?;
        // Of nulls no two are the same, so that the table's own rule does not see them.
        transaction.run(
            "DELETE FROM refused WHERE user = ?1 AND member = ?2 AND pin IS ?3 AND (pin IS NOT NULL OR since = ?4)",
            params![user_number(user), member, pin.map(|p| p.digest), since.cast_signed()],
        )?;
        transaction.run(
            "INSERT INTO refused (user, member, counted, salt, pin, since) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                user_number(user),
                member,
                counted,
                pin.map(|p| p.salt),
                pin.map(|p| p.digest),
                since.cast_signed()
            ],
        )?;
        transaction.run(
            "DELETE FROM refused WHERE user = ?1 AND pin IS NOT NULL AND number NOT IN
             (SELECT number FROM refused WHERE user = ?1 AND pin IS NOT NULL ORDER BY number DESC LIMIT ?2)",
            params![user_number(user), MOST],
        )?;
        Ok(transaction.commit()?)
    }

    /// Forgets what a member refused for these users. Nothing is written where nothing is there.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn forget_refused(&self, member: &str, users: &[UserType]) -> Result<()> {
        let connection = self.writable()?;
        for user in users {
            let sql = "SELECT 1 FROM refused WHERE user = ?1 AND member = ?2 LIMIT 1";
            if connection.first(sql, params![user_number(*user), member], |_| Ok(())).optional()?.is_some() {
                let sql = "DELETE FROM refused WHERE user = ?1 AND member = ?2";
                connection.run(sql, params![user_number(*user), member])?;
            }
        }
        Ok(())
    }
}
