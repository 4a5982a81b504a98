//! What other processes of this host have done: they write it to the ledger, and tell nobody.

use std::sync::atomic::Ordering;

use super::{Group, Member};
use crate::replica::ledger::{Ledger, LedgerError};

impl Group {
    /// Heeds what other processes have written to the ledger since it was last looked at. What they have destroyed is found
    /// no more, also on a member that they could not reach; a member that they could not give something is not believed when it does
    /// not find it.
    pub(crate) fn heed_others(&self) {
        let Some(ledger) = &self.ledger else { return };
        if let Err(error) = self.heed(ledger) {
            tracing::warn!(group = %self.config.label, %error, "what other processes have done cannot be read now");
        }
    }

    fn heed(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let version = ledger.version_of_others()?;
        if self.heeded.load(Ordering::Acquire) == version {
            return Ok(());
        }
        for id in ledger.destroyed()? {
            if let Some(object) = self.objects.by_id(id) {
                self.forget_object(&object);
            }
        }
        for member in &self.members {
            if ledger.owed_to(member.name())? > member.left.load(Ordering::Acquire) {
                self.falls_behind(member);
            }
        }
        // Only now: another thread that searches meanwhile heeds it for itself.
        self.heeded.store(version, Ordering::Release);
        Ok(())
    }

    /// What other processes leave that die is seen to by whoever lives, also if nobody uses it.
    pub(super) fn look_for_leavings(&self, member: &Member) {
        self.heed_others();
        if self.ledger.as_ref().is_some_and(|l| l.has_unfinished().unwrap_or(false)) {
            self.falls_behind(member);
        }
    }
}
