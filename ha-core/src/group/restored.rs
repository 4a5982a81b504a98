//! A ledger that was restored from a backup, compared with the tokens, which know what happened since.

use std::collections::HashSet;

use ha_token::{Result, Rv};

use super::catch_up::describe;
use super::copies::{Copy, Trouble};
use super::{Group, Lease, Who};
use crate::replica::ledger::{LedgerError, ObjectId};

/// An object that the restored ledger knows, and where it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whereabouts {
    id: ObjectId,
    /// Whether it was destroyed when the backup was made, and some member had yet to do that.
    pub was_destroyed: bool,
    /// The object in words.
    pub object: String,
    /// The members whose tokens hold it, proven.
    pub on: Vec<String>,
    /// Those that do not, and held it when the backup was made, or could have been given it since.
    pub gone_from: Vec<String>,
    /// Those of which it cannot be told.
    pub unclear: Vec<String>,
}

/// What becomes of an object that some tokens still hold and others do not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partly {
    /// It was destroyed since, while the others were away: it is destroyed there too.
    Destroyed,
    /// The others lost it: it is theirs again.
    Lost,
}

impl Whereabouts {
    /// Whether only an operator can say whether it was destroyed or lost: of what was destroyed, whether it was made again.
    pub fn is_partly_gone(&self) -> bool {
        !self.on.is_empty() && (self.was_destroyed || !self.gone_from.is_empty())
    }
}

impl Group {
    /// Where each object of the ledger is. Every member is up and the user logged in. Nothing is changed.
    ///
    /// # Errors
    /// `CKR_USER_NOT_LOGGED_IN`; `CKR_TOKEN_NOT_PRESENT` while a member is not up; the ledger's; the members' answers.
    pub fn compare_restored(&self) -> Result<Vec<Whereabouts>> {
        if self.login.who() != Who::User {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        if self.up().count() != self.members.len() {
            return Err(Rv::TOKEN_NOT_PRESENT);
        }
        let ledger = self.ledger()?;
        let leases = self.up().map(|m| self.sound_lease(m)).collect::<Result<Vec<Lease>>>()?;
        let rows = ledger.objects().map_err(|e| self.ledger_failed(e))?;
        let mut behind = HashSet::new();
        for lease in &leases {
            let mark = ledger.mark_of(lease.member.name()).map_err(|e| self.ledger_failed(e))?;
            if mark.is_some_and(|mark| mark.set_back) {
                behind.insert(lease.member.name().to_owned());
            }
        }
        let mut objects = Vec::new();
        for row in rows.iter().filter(|r| r.is_committed() || r.is_destroyed()) {
            let mut one = Whereabouts {
                id: row.id,
                was_destroyed: row.is_destroyed(),
                object: describe(row),
                on: Vec::new(),
                gone_from: Vec::new(),
                unclear: Vec::new(),
            };
            // Of what is destroyed only those matter that have yet to do it.
            let asked =
                |lease: &&Lease| row.is_committed() || row.copies.iter().any(|c| c == lease.member.name());
            for lease in leases.iter().filter(asked) {
                let name = lease.member.name().to_owned();
                let held = row.copies.contains(&name);
                // What one lacks that was away or set back tells nothing, nor what it has of what is destroyed.
                let is_behind = behind.contains(&name);
                match self.find_copy(ledger, lease, row) {
                    Ok(Copy::At(_)) if is_behind && row.is_destroyed() => {}
                    Ok(Copy::Absent) if is_behind => {}
                    Ok(Copy::At(_)) => one.on.push(name),
                    Ok(Copy::Absent) if held || row.is_copyable() => one.gone_from.push(name),
                    Ok(Copy::Absent) => {}
                    Ok(Copy::Unclear) => one.unclear.push(name),
                    Err(Trouble::Member(rv)) => return Err(rv),
                    Err(Trouble::Ledger(error)) => return Err(self.ledger_failed(error)),
                }
            }
            objects.push(one);
        }
        Ok(objects)
    }

    /// The ledger says what the tokens hold: an object that none holds is forgotten, and of one that is partly gone `partly`
    /// says what becomes. Nothing is done on a token; what is destroyed is so by the next `sync`.
    ///
    /// # Errors
    /// The ledger's.
    pub fn accept_restored(&self, objects: &[Whereabouts], partly: Partly) -> Result<()> {
        let ledger = self.ledger()?;
        let accept = |one: &Whereabouts| -> std::result::Result<(), LedgerError> {
            if one.was_destroyed {
                // What was made again since is not known: it is shown where it is.
                let is_another = one.is_partly_gone() && partly == Partly::Lost;
                return if is_another { ledger.forget(one.id) } else { Ok(()) };
            }
            if one.on.is_empty() && one.unclear.is_empty() {
                return ledger.forget(one.id);
            }
            let holders: Vec<&str> = one.on.iter().chain(&one.unclear).map(String::as_str).collect();
            ledger.held_by(one.id, &holders)?;
            if one.is_partly_gone() && partly == Partly::Destroyed {
                ledger.destroy_begin(one.id, &[])?;
                ledger.destroy_final(one.id)?;
            }
            Ok(())
        };
        objects.iter().try_for_each(accept).map_err(|e| self.ledger_failed(e))
    }
}
