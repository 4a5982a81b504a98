//! What other processes of this host have done: they write it to the ledger, and tell nobody.

use std::sync::atomic::Ordering;

use ha_token::ObjectHandle;

use super::change::{changed, is_one_way};
use super::copies::{Trouble, row_traits};
use super::{Group, Lease, Member, Object, Origin, Who};
use crate::mutants::wrong;
use crate::replica::ledger::{ByOthers, Found, Ledger, LedgerError, ObjectRow, Pending, State};

impl Group {
    /// Heeds what other processes have written to the ledger since it was last looked at. What they have destroyed is found
    /// no more, also on a member that they could not reach; a member that they could not give something is not believed when
    /// it does not find it.
    pub(crate) fn heed_others(&self) {
        let Some(ledger) = &self.ledger else { return };
        if wrong!(OthersNotHeeded) {
            return;
        }
        if let Err(error) = self.heed(ledger) {
            tracing::warn!(group = %self.config.label, %error, "what other processes have done cannot be read now");
        }
    }

    fn heed(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let destroyed = ledger.destroyed_by_others();
        let version = ledger.version_of_others()?;
        if self.heeded.load(Ordering::Acquire) == version && !matches!(destroyed, ByOthers::Something(_)) {
            return Ok(());
        }
        if destroyed != ByOthers::Nothing {
            // Known first: what another thread makes meanwhile has its row before it is known.
            let known = self.objects.select(|o| matches!(o.origin, Origin::Ledger(_)));
            let living = ledger.living()?;
            for object in known {
                if let Origin::Ledger(id) = object.origin
                    && !living.contains(&id)
                {
                    self.forget_object(&object);
                }
            }
            ledger.heeded(destroyed);
        }
        let is_user = self.login.who() == Who::User;
        for member in self.members.iter() {
            if !is_user {
                // Nothing can be given to it, and nothing private is looked for.
                member.lacks.store(ledger.lacks_public(member.name())?, Ordering::Release);
            } else if ledger.owed_to(member.name())? > member.left.load(Ordering::Acquire) {
                member.falls_behind();
            }
        }
        // Another process may have changed what a key may do.
        self.objects.have_changed();
        // Only now: another thread that searches meanwhile heeds it for itself.
        self.heeded.store(version, Ordering::Release);
        Ok(())
    }

    /// Heeds them if one has said that it destroyed something. Asked wherever the application uses a handle from before: no
    /// call to the kernel is made where nobody has.
    pub(crate) fn heed_destructions(&self) {
        let Some(ledger) = &self.ledger else { return };
        if matches!(ledger.destroyed_by_others(), ByOthers::Something(_)) {
            self.heed_others();
        }
    }

    /// Whether an object is destroyed, by whichever process: it is found and used no more then.
    pub(crate) fn is_gone(&self, object: &Object) -> bool {
        let (Some(ledger), Origin::Ledger(id)) = (&self.ledger, object.origin) else { return false };
        let is_gone = ledger.object(id).is_ok_and(|row| is_over(row.as_ref()));
        if is_gone {
            self.forget_object(object);
        }
        is_gone && !wrong!(GoneIsAskedFor)
    }

    /// What other processes leave that die is seen to by whoever lives, also if nobody uses it.
    pub(super) fn look_for_leavings(&self, member: &Member) {
        if wrong!(LeavingsNotSought) {
            return;
        }
        self.heed_others();
        if self.ledger.as_ref().is_some_and(|l| l.has_unfinished().unwrap_or(false)) {
            member.falls_behind();
        }
    }

    /// A change that a member refuses as the application's mistake, and that none is known to have made: who announced it
    /// has died before it could be told. The object is as its copy here is; answers whether that is so.
    pub(super) fn give_up_change(
        &self,
        ledger: &Ledger,
        lease: &Lease,
        handle: ObjectHandle,
        pending: &Pending,
        row: &ObjectRow,
    ) -> Result<bool, Trouble> {
        let kinds: Vec<_> = pending.template.iter().map(|a| a.kind).collect();
        // What some member may have made it cannot take back.
        if is_one_way(&pending.template) || wrong!(RefusedChangeStays) {
            return Ok(false);
        }
        let here = lease.on().read(handle, &kinds)?;
        let traits = changed(&row_traits(row), &here);
        let mut template = row.template.clone();
        template.retain(|a| !kinds.contains(&a.kind));
        template.extend(here);
        let found = Found { ckaid: &traits.id, label: &traits.label, template: &template, blob: None };
        let is_so = ledger.change_refused(row, &pending.template, &found)?;
        if is_so {
            tracing::warn!(group = %self.config.label, member = lease.member.name(), "a process died while it changed an object, and the change is refused: the object is as it was");
            if let Some(object) = self.objects.by_id(row.id) {
                object.set_traits(traits);
            }
        }
        Ok(is_so)
    }
}

/// Whether an object of this row is destroyed, for good: once every member has said so it has no row any more.
pub(super) fn is_over(row: Option<&ObjectRow>) -> bool {
    row.is_none_or(|row| row.state == State::Destroyed)
}
