//! Who takes part in making or destroying token objects: the ledger, if it can be written, sessions on enough members, and
//! what the settings let be made.

use std::sync::Arc;

use ha_token::{Function, Result, Rv, SessionInfo, Template, TemplateExt, ck};

use super::{Group, Lease, Member, Who};
use crate::config::NonExtractable;
use crate::replica::ledger::{HostLock, Ledger, LedgerError};
use crate::replica::life;

/// Sessions of a pool that may be gone before the member is at fault: more than a pool holds.
const MOST_STALE: usize = 200;

impl Group {
    /// Sessions on every member that is up, if there are enough of them, and a ledger that can be written.
    pub(super) fn writers(&self, function: Function) -> Result<Vec<Lease>> {
        self.ledger()?;
        let mut writers = self.those_up(function);
        if writers.len() < self.min_copies() {
            // What is held would keep others waiting.
            writers.clear();
            self.wait_for_return(self.min_copies(), 0);
            writers = self.those_up(function);
        }
        if writers.len() < self.min_copies() {
            let missing: Vec<_> = self
                .members
                .iter()
                .filter(|m| !writers.iter().any(|w| w.member.index == m.index))
                .map(|m| m.name())
                .collect();
            let why = format!(
                "min_copies is {} and {} members are up; missing: {}",
                self.min_copies(),
                writers.len(),
                missing.join(", ")
            );
            self.reporter.refused(function, Rv::DEVICE_ERROR, &why);
            return Err(Rv::DEVICE_ERROR);
        }
        Ok(writers)
    }

    /// Sessions on the members that are up.
    pub(super) fn those_up(&self, function: Function) -> Vec<Lease> {
        let mut writers = Vec::new();
        for member in self.up() {
            match self.sound_lease(member) {
                Ok(lease) => writers.push(lease),
                Err(rv) => {
                    if let Some(link) = member.link() {
                        self.failed(member, &link, function, rv);
                    }
                }
            }
        }
        writers
    }

    /// A backing session that is open and logged in as it should be, by the member's own word: what is made in it cannot
    /// simply be made again elsewhere. It is closed afterwards, so that no session object outlives what it was made for.
    pub(super) fn sound_lease(&self, member: &Arc<Member>) -> Result<Lease> {
        for doubted in [false, true] {
            let (lease, info) = open_lease(|| self.lease(member))?;
            let user = info.state == ck::CKS_RW_USER_FUNCTIONS;
            if user == (self.login.who() == Who::User) {
                return Ok(lease);
            }
            if !doubted {
                lease.link.doubt_login();
            }
        }
        Err(Rv::DEVICE_ERROR)
    }

    /// A backing session that is open, by the member's own word, to be lent again afterwards.
    ///
    /// # Errors
    /// As [`Group::lease`].
    pub(crate) fn open_lease(&self, member: &Arc<Member>) -> Result<Lease> {
        let (mut lease, _) = open_lease(|| self.lease(member))?;
        lease.set_busy(false);
        Ok(lease)
    }

    /// As [`Group::writers`], for keys: with the user logged in, the group keys there, and the settings' say.
    pub(super) fn key_writers(&self, function: Function, asked: &Template) -> Result<Vec<Lease>> {
        if self.login.who() != Who::User {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        self.vet_usage(function, |kind| asked.get_bool(kind) == Some(true))?;
        if self.config.non_extractable == NonExtractable::Refuse && !life::may_be_extracted(asked) {
            self.reporter.refused(function, Rv::TEMPLATE_INCONSISTENT, "non_extractable = \"refuse\"");
            return Err(Rv::TEMPLATE_INCONSISTENT);
        }
        let mut writers = self.writers(function)?;
        self.group_keys_everywhere(&mut writers)?;
        Ok(writers)
    }

    /// Held while something is made or destroyed: whoever finds nobody at work may settle what was left half done.
    pub(super) fn at_work(&self) -> Result<HostLock> {
        self.ledger()?.at_work(&*self.world).map_err(|e| self.ledger_failed(e))
    }

    /// The ledger, where there is one that can be written.
    ///
    /// # Errors
    /// `CKR_TOKEN_WRITE_PROTECTED`.
    pub(crate) fn ledger(&self) -> Result<&Ledger> {
        match &self.ledger {
            Some(ledger) if !ledger.is_read_only() => Ok(ledger),
            _ => {
                self.reporter.refused(
                    Function::CreateObject,
                    Rv::TOKEN_WRITE_PROTECTED,
                    "there is no ledger that can be written: nothing is created, changed or destroyed",
                );
                Err(Rv::TOKEN_WRITE_PROTECTED)
            }
        }
    }

    /// The ledger did not take a change.
    pub(crate) fn ledger_failed(&self, error: LedgerError) -> Rv {
        tracing::error!(group = %self.config.label, %error, "the ledger did not take a change: it is not made");
        match error {
            LedgerError::ReadOnly => Rv::TOKEN_WRITE_PROTECTED,
            LedgerError::Conflict => Rv::OBJECT_HANDLE_INVALID,
            LedgerError::Place { .. } | LedgerError::Newer { .. } | LedgerError::Database(_) => {
                Rv::FUNCTION_FAILED
            }
        }
    }
}

/// A backing session that is open, by the member's own word. It is closed afterwards, not lent again.
///
/// # Errors
/// The member's answer; `CKR_SESSION_HANDLE_INVALID` where every session that `lend` lends is gone.
pub(super) fn open_lease(lend: impl Fn() -> Result<Lease>) -> Result<(Lease, SessionInfo)> {
    for _ in 0..MOST_STALE {
        let mut lease = lend()?;
        lease.set_busy(true);
        match lease.token().session_info(lease.session) {
            Ok(info) => return Ok((lease, info)),
            // Gone behind our back, as others of the pool may be.
            Err(Rv::SESSION_HANDLE_INVALID | Rv::SESSION_CLOSED) => {}
            Err(rv) => return Err(rv),
        }
    }
    Err(Rv::SESSION_HANDLE_INVALID)
}
