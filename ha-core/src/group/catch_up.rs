//! Bringing a member up to date: what was destroyed while it was away, what was changed, what was made.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_token::{Function, Result, Rv};

use super::identify::place;
use super::{Group, Lease, Link, Member, Origin, Traits, Trust};
use crate::policy::failure::{Class, classify};
use crate::replica::ledger::ObjectRow;
use crate::replica::proof::Outcome;

/// What catching up did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaughtUp {
    /// Objects destroyed because they were destroyed elsewhere.
    pub destroyed: usize,
    /// Changes of attributes made.
    pub changed: usize,
    /// Objects that were made here.
    pub copied: usize,
    /// What could not be done, in words.
    pub left: Vec<String>,
}

impl Group {
    /// After a login: what every member that is up may have missed.
    pub(crate) fn after_login(&self) {
        for member in self.up() {
            if let Some(link) = member.link()
                && let Err(rv) = self.catch_up(member, &link)
            {
                tracing::warn!(group = %self.config.label, member = member.name(), rv = %rv, "the member could not be brought up to date");
            }
        }
    }

    /// Brings a connection up to date. The user is logged in on it.
    ///
    /// # Errors
    /// The member's answers that say that it cannot be used.
    pub(crate) fn catch_up(&self, member: &Arc<Member>, link: &Arc<Link>) -> Result<()> {
        let lease = Lease::new(member, Arc::clone(link))?;
        self.recall_group_keys(&lease)?;
        if self.by_hand.load(Ordering::Acquire) {
            return Ok(());
        }
        let done = self.bring_up_to_date(&lease, false)?;
        if done != CaughtUp::default() {
            tracing::info!(group = %self.config.label, member = member.name(), destroyed = done.destroyed, changed = done.changed, copied = done.copied, left = done.left.len(), "brought up to date");
        }
        for line in done.left {
            tracing::warn!(group = %self.config.label, member = member.name(), "not brought up to date: {line}");
        }
        self.take_stock(&lease)?;
        Ok(())
    }

    /// Whether the token holds more than the ledger says: only then do searches have to ask it too when another member
    /// was asked. Handles are counted, no object is read.
    fn take_stock(&self, lease: &Lease) -> Result<()> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        let token = vec![ha_token::Attribute::bool(ha_token::ck::CKA_TOKEN, true)];
        let there = crate::replica::find_all(lease.on(), &token, 512)?.len();
        let group_keys = if lease.link.group_keys().is_some() { 2 } else { 0 };
        let known = ledger.count_on(lease.member.name()).map_err(|e| self.ledger_failed(e))? + group_keys;
        lease.member.set_foreign(there != known);
        Ok(())
    }

    /// Deletions first, so that nothing dead is changed or counted; then changes; then what is missing.
    ///
    /// # Errors
    /// The member's answers that say that it cannot be used.
    pub(crate) fn bring_up_to_date(&self, lease: &Lease, dry: bool) -> Result<CaughtUp> {
        let mut done = CaughtUp::default();
        let Some(ledger) = self.ledger.as_ref().filter(|l| !l.is_read_only()) else { return Ok(done) };
        let name = lease.member.name();
        let mut note = |answer: Result<bool>, count: &mut usize, what: String| -> Result<bool> {
            match answer {
                Ok(did) => {
                    *count += usize::from(did);
                    Ok(true)
                }
                Err(rv) => match classify(Function::CreateObject, rv) {
                    Class::Member | Class::Session | Class::Login => Err(rv),
                    Class::Caller | Class::Object | Class::Capacity | Class::Ambiguous => {
                        done.left.push(format!("{what}: {rv}"));
                        Ok(false)
                    }
                },
            }
        };
        let (mut destroyed, mut changed, mut copied) = (0, 0, 0);
        for row in ledger.tombstones_for(name).map_err(|e| self.ledger_failed(e))? {
            if dry {
                destroyed += 1;
            } else if note(
                self.bury(lease, &row),
                &mut destroyed,
                format!("{} is to be destroyed", describe(&row)),
            )? {
                ledger.acknowledge(row.id, name).map_err(|e| self.ledger_failed(e))?;
            }
        }
        for pending in ledger.pending_for(name).map_err(|e| self.ledger_failed(e))? {
            let Some(row) = ledger.object(pending.object).map_err(|e| self.ledger_failed(e))? else {
                continue;
            };
            if dry {
                changed += 1;
                continue;
            }
            let answer =
                self.find_copy(lease, &row, Some(&pending.template)).and_then(|handle| match handle {
                    Some(handle) => {
                        lease.token().set_attributes(lease.session, handle, &pending.template).map(|()| true)
                    }
                    None => Ok(false),
                });
            if note(answer, &mut changed, format!("{} is to be changed", describe(&row)))? {
                ledger.done(pending.number).map_err(|e| self.ledger_failed(e))?;
            }
        }
        for row in ledger.missing_on(name).map_err(|e| self.ledger_failed(e))? {
            if dry {
                let answer = if row.is_copyable() { Ok(true) } else { Err(Rv::KEY_NOT_WRAPPABLE) };
                _ = note(answer, &mut copied, format!("{} is to be copied here", describe(&row)))?;
            } else if note(
                self.give(lease, &row),
                &mut copied,
                format!("{} is to be copied here", describe(&row)),
            )? {
                ledger.add_copy(row.id, name).map_err(|e| self.ledger_failed(e))?;
            }
        }
        done.destroyed = destroyed;
        done.changed = changed;
        done.copied = copied;
        Ok(done)
    }

    /// Destroys what a member still holds of a destroyed object: only what answers as that object.
    fn bury(&self, lease: &Lease, row: &ObjectRow) -> Result<bool> {
        match self.find_copy(lease, row, None)? {
            Some(handle) => {
                lease.token().destroy_object(lease.session, handle)?;
                lease.link.unbind(handle);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// A member's copy of an object, proven. `changes` may have been made to it already.
    fn find_copy(
        &self,
        lease: &Lease,
        row: &ObjectRow,
        changes: Option<&ha_token::Template>,
    ) -> Result<Option<ha_token::ObjectHandle>> {
        let _ = changes;
        if let Some(place) =
            self.objects.by_id(row.id).and_then(|o| o.place(lease.member.index, lease.link.generation))
            && place.trust == Trust::Proven
        {
            return Ok(Some(place.handle));
        }
        let Some(verifier) = row.verifier() else { return Ok(None) };
        // An id or label that was changed elsewhere is still the old one here: class and proof decide.
        let class = vec![
            ha_token::Attribute::ulong(ha_token::ck::CKA_CLASS, row.class),
            ha_token::Attribute::bool(ha_token::ck::CKA_TOKEN, true),
        ];
        let mut candidates = self.with_traits(lease, &traits(row))?;
        if candidates.is_empty() {
            candidates = crate::replica::find_all(lease.on(), &class, 256)?;
        }
        for handle in candidates {
            let bound = lease.link.virtual_of(handle).filter(|v| *v != 0);
            let other = bound
                .and_then(|v| self.objects.get(ha_token::ObjectHandle(v)).ok())
                .is_some_and(|o| o.origin != Origin::Ledger(row.id));
            if !other && self.prove(lease, handle, row.class, &verifier)? == Outcome::Same {
                return Ok(Some(handle));
            }
        }
        Ok(None)
    }

    /// Gives a member an object that it lacks, proven.
    fn give(&self, lease: &Lease, row: &ObjectRow) -> Result<bool> {
        if let Some(handle) = self.find_copy(lease, row, None)? {
            self.seen(lease, row, handle);
            return Ok(false);
        }
        let secret = crate::replica::is_secret(row.class);
        let handle = match &row.blob {
            Some(blob) => self.unwrap_blob(lease, blob, &kept(row))?,
            None if secret => return Err(Rv::KEY_NOT_WRAPPABLE),
            None => lease.token().create_object(lease.session, &kept(row))?,
        };
        let outcome = match row.verifier() {
            None => Ok(Outcome::Unproven("the ledger holds no verifier".into())),
            Some(verifier) => self.prove(lease, handle, row.class, &verifier),
        };
        if outcome != Ok(Outcome::Same) {
            lease.token().destroy_object(lease.session, handle)?;
        }
        match outcome? {
            Outcome::Same => {}
            Outcome::Different => {
                self.reporter.conflict(lease.member.name(), &row.label);
                return Err(Rv::ENCRYPTED_DATA_INVALID);
            }
            Outcome::Unproven(reason) => {
                tracing::warn!(group = %self.config.label, member = lease.member.name(), label = %String::from_utf8_lossy(&row.label), reason,
                    "a copy cannot be proven: it is not kept");
                return Err(Rv::KEY_FUNCTION_NOT_PERMITTED);
            }
        }
        self.seen(lease, row, handle);
        Ok(true)
    }

    fn seen(&self, lease: &Lease, row: &ObjectRow, handle: ha_token::ObjectHandle) {
        if let Some(object) = self.objects.by_id(row.id) {
            object.put(place(lease, handle, Trust::Proven));
            lease.link.bind(handle, object.handle.0);
        }
    }
}

fn traits(row: &ObjectRow) -> Traits {
    Traits {
        class: row.class,
        key_type: row.key_type,
        id: row.ckaid.clone().into(),
        label: row.label.clone().into(),
    }
}

/// The template of a copy: without what is only answered in its place.
fn kept(row: &ObjectRow) -> ha_token::Template {
    use ha_token::ck;
    let answered = [ck::CKA_LOCAL, ck::CKA_KEY_GEN_MECHANISM, ck::CKA_VALUE_LEN, ck::CKA_CHECK_VALUE];
    row.template.iter().filter(|a| !answered.contains(&a.kind)).cloned().collect()
}

pub(super) fn describe(row: &ObjectRow) -> String {
    format!("{} {:?}", crate::names::class(row.class), String::from_utf8_lossy(&row.label))
}
