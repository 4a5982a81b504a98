//! Members that join and leave, and the end of the group: what of the group's own would be nowhere, what is taken off tokens,
//! and that the ledger forgets a member.

use ha_token::{Attribute, Result, Rv, ck};

use super::catch_up::describe;
use super::copies::{Copy, Trouble};
use super::{Group, Who};
use crate::replica::{group_key, marker, records};

/// What was taken off a member's token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TakenOff {
    /// How many of the group's objects were destroyed there.
    pub destroyed: usize,
    /// What is still there, and why, in words.
    pub left: Vec<String>,
}

impl Group {
    /// What of the group's own objects no member of this configuration holds by the ledger, in words.
    ///
    /// # Errors
    /// `CKR_TOKEN_WRITE_PROTECTED` without a ledger that can be written, `CKR_FUNCTION_FAILED` where it cannot be read.
    pub fn held_by_nobody(&self) -> Result<Vec<String>> {
        let members: Vec<&str> = self.members.iter().map(|m| m.name()).collect();
        let rows = self.ledger()?.on_none_of(&members).map_err(|e| self.ledger_failed(e))?;
        Ok(rows.iter().map(describe).collect())
    }

    /// The serial number of the token that the ledger remembers as a member's, of this configuration or not.
    ///
    /// # Errors
    /// The ledger's.
    pub fn serial_of(&self, member: &str) -> Result<Option<String>> {
        self.ledger()?.serial_of(member).map_err(|e| self.ledger_failed(e))
    }

    /// Whether a member that is up has the group keys when this one is gone, or the group has none.
    ///
    /// # Errors
    /// The ledger's.
    pub fn keeps_its_keys_without(&self, member: &str) -> Result<bool> {
        let has = self.ledger()?.has_group_keys().map_err(|e| self.ledger_failed(e))?;
        let others = self.up().filter(|m| m.name() != member);
        Ok(!has || others.filter_map(|m| m.link()).any(|link| link.group_keys().is_some()))
    }

    /// How many token objects a member holds that are none of the group's: those from before, of another group, or that
    /// nobody knows.
    ///
    /// # Errors
    /// `CKR_TOKEN_NOT_PRESENT` for a member that is not up; the ledger's; the member's answers.
    pub fn strangers_on(&self, member: &str) -> Result<usize> {
        let ledger = self.ledger()?;
        let member = self.up().find(|m| m.name() == member).ok_or(Rv::TOKEN_NOT_PRESENT)?;
        let lease = self.sound_lease(member)?;
        let there = lease.find(&vec![Attribute::bool(ck::CKA_TOKEN, true)])?.len();
        let keys = group_key::count(lease.on(), &ledger.identity().group)?;
        let markers = records::all(lease.on())?.len();
        // Read after the token was: another process may be giving it something.
        let known = ledger.count_on(member.name()).map_err(|e| self.ledger_failed(e))?;
        Ok(there.saturating_sub(known + keys + markers))
    }

    /// How much a member is yet to destroy, to change and to be given by the ledger; `None` where that cannot be said.
    pub fn owed_to(&self, member: &str) -> Option<usize> {
        self.ledger.as_ref()?.owed_to(member).ok()
    }

    /// Destroys what a member's token holds of the group: the copies of its objects, then the group keys. What else is on
    /// the token is left alone. Whoever calls this has made sure that other members hold the objects, and that no process
    /// uses the member.
    ///
    /// # Errors
    /// `CKR_USER_NOT_LOGGED_IN`; `CKR_TOKEN_NOT_PRESENT` for a member that is not up; the ledger's; the member's answers that
    /// say that it cannot be used. What was destroyed by then is.
    pub fn take_off(&self, member: &str) -> Result<TakenOff> {
        if self.login.who() != Who::User {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        let ledger = self.ledger()?;
        let member = self.up().find(|m| m.name() == member).ok_or(Rv::TOKEN_NOT_PRESENT)?;
        let lease = self.sound_lease(member)?;
        let mut taken = TakenOff::default();
        let rows = ledger.objects().map_err(|e| self.ledger_failed(e))?;
        for row in rows.iter().filter(|r| r.copies.iter().any(|c| c == member.name())) {
            let found = self.find_copy(ledger, &lease, row).map_err(|trouble| match trouble {
                Trouble::Member(rv) => rv,
                Trouble::Ledger(error) => self.ledger_failed(error),
            })?;
            match found {
                Copy::At(handle) => match lease.token().destroy_object(lease.session, handle) {
                    Ok(()) => {
                        taken.destroyed += 1;
                        // Of two that nothing tells apart the other one is looked for as what is left.
                        ledger.acknowledge(row.id, member.name()).map_err(|e| self.ledger_failed(e))?;
                    }
                    Err(rv) => taken.left.push(format!("{}: {rv}", describe(row))),
                },
                Copy::Absent => {}
                Copy::Unclear => taken
                    .left
                    .push(format!("{}: what is there cannot be proven to be it or another", describe(row))),
            }
        }
        marker::clear(lease.on())?;
        group_key::clear(lease.on(), &ledger.identity().group)?;
        Ok(taken)
    }

    /// Destroys the marker and the group keys on a member's token: the group is being dissolved, and its objects stay where they are.
    ///
    /// # Errors
    /// `CKR_TOKEN_NOT_PRESENT` for a member that is not up; the member's answers: some may be left.
    pub fn take_keys_off(&self, member: &str) -> Result<()> {
        let group = self.ledger()?.identity().group;
        let member = self.up().find(|m| m.name() == member).ok_or(Rv::TOKEN_NOT_PRESENT)?;
        let lease = self.sound_lease(member)?;
        if let Some(link) = member.link() {
            link.set_group_keys(None);
        }
        marker::clear(lease.on())?;
        group_key::clear(lease.on(), &group)
    }
}
