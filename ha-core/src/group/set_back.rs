//! A member that came back with less than it held: its token was initialised anew, or set back to an older state.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_token::{Function, Result};

use super::catch_up::describe;
use super::copies::{Copy, Trouble};
use super::{Group, Lease};
use crate::mutants::wrong;
use crate::policy::failure::Class;
use crate::replica::ledger::{Ledger, LedgerError, ObjectRow};

/// What a member lacks that it holds by the ledger.
#[derive(Default)]
pub(super) struct Lost {
    /// Whether it is to be given some of it.
    pub(super) is_owed: bool,
    /// Whether there was no time to look at all of it.
    pub(super) is_unfinished: bool,
    /// What no other member is known to hold, in words.
    pub(super) left: Vec<String>,
}

impl Group {
    /// Finds out what a member lost, and writes down that it lacks what another member holds, until it `is_over`.
    ///
    /// Where none does nothing is said to be lacking: the ledger itself may be older than the tokens, and its object one
    /// that was destroyed since, on all of them.
    ///
    /// # Errors
    /// The member's answers that say that it cannot be used.
    pub(super) fn notice_lost(&self, lease: &Lease, is_over: &dyn Fn() -> bool) -> Result<Lost> {
        let mut lost = Lost::default();
        let Some(ledger) = self.ledger.as_ref().filter(|l| !l.is_read_only()) else { return Ok(lost) };
        if wrong!(EmptiedBelieved) {
            return Ok(lost);
        }
        for row in self.lost(lease)? {
            if is_over() {
                lost.is_unfinished = true;
                break;
            }
            let noted = match self.is_held_elsewhere(ledger, lease, &row) {
                Ok(true) => {
                    // By a handle from before it would be found again, and not be given.
                    if let Some(object) = self.objects.by_id(row.id) {
                        object.forget(lease.member.index);
                    }
                    ledger.copy_lost(&row, lease.member.name())
                }
                Ok(false) => {
                    lost.left
                        .push(format!("{} is gone from here, and on no other member now", describe(&row)));
                    continue;
                }
                Err(error) => Err(error),
            };
            match noted {
                // Changed or destroyed meanwhile: another look tells.
                Ok(()) | Err(LedgerError::Conflict) => lost.is_owed = true,
                Err(error) => lost.left.push(format!("what the ledger cannot say: {error}")),
            }
        }
        Ok(lost)
    }

    /// Whether another member that is up holds an object, proven. One that fails at that is at fault itself.
    fn is_held_elsewhere(
        &self,
        ledger: &Ledger,
        lease: &Lease,
        row: &ObjectRow,
    ) -> std::result::Result<bool, LedgerError> {
        let holders =
            self.up().filter(|m| m.index != lease.member.index && row.copies.iter().any(|c| c == m.name()));
        for member in holders {
            // Not brought up to date for this: two members would wait for each other.
            let Some(link) = member.link().filter(|l| l.has_followed(self.login.epoch())) else { continue };
            let answer = match Lease::new(member, Arc::clone(&link)) {
                Ok(mut there) => {
                    let answer = self.find_copy(ledger, &there, row);
                    there.set_busy(answer.is_err());
                    answer
                }
                Err(rv) => Err(Trouble::Member(rv)),
            };
            match answer {
                Ok(Copy::At(_)) => return Ok(true),
                Ok(Copy::Absent | Copy::Unclear) => {}
                Err(Trouble::Ledger(error)) => return Err(error),
                Err(Trouble::Member(rv)) => {
                    let class = self.failed(member, &link, Function::FindObjects, rv);
                    if class == Class::Login {
                        link.doubt_login();
                    }
                    self.is_lost(member, &link, class);
                    // It may be a matter of a moment: the next round asks again.
                    if class != Class::Caller {
                        lease.member.owed.fetch_add(1, Ordering::AcqRel);
                    }
                }
            }
        }
        Ok(false)
    }
}
