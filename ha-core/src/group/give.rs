//! Giving a member a copy of what it lacks: from the ledger where that can be, else from another member.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_token::{Function, ObjectHandle, Result, Rv, Template, TemplateExt, ck};

use super::catch_up::UNCLEAR;
use super::copies::{Copy, Trouble, row_traits};
use super::{Group, Lease};
use crate::mutants::wrong;
use crate::policy::failure::Class;
use crate::replica::ledger::{Ledger, ObjectRow};
use crate::replica::life;
use crate::replica::proof::Outcome;

/// A copy that a member has now.
#[derive(Clone, Copy)]
pub(super) struct Given {
    /// Where.
    pub(super) handle: ObjectHandle,
    /// Whether it was made, or found there.
    pub(super) made: bool,
}

impl Group {
    /// Gives a member an object that it lacks, proven.
    pub(super) fn give(
        &self,
        ledger: &Ledger,
        lease: &Lease,
        row: &ObjectRow,
    ) -> std::result::Result<Result<Given>, Trouble> {
        let found = if wrong!(GivenTwice) { Copy::Absent } else { self.find_copy(ledger, lease, row)? };
        Ok(match found {
            Copy::At(handle) => Ok(Given { handle, made: false }),
            Copy::Absent => {
                let untried = ledger.is_untried(row)?;
                self.make_copy(lease, row, untried).map(|handle| Given { handle, made: true })
            }
            Copy::Unclear => Err(UNCLEAR),
        })
    }

    /// Makes a copy as the ledger has the object. What is `untried` may be a change that every member refuses, and who
    /// announced it may have died before it was told: it is tried on a session object, since SoftHSM keeps half of a token
    /// object that it refuses.
    fn make_copy(&self, lease: &Lease, row: &ObjectRow, untried: bool) -> Result<ObjectHandle> {
        let mut template = life::of_copy(&row.template);
        match &row.blob {
            Some(_) if lease.link.group_keys().is_none() => return Err(Rv::KEY_NOT_WRAPPABLE),
            Some(_) => {}
            None if crate::replica::is_secret(row.class) => return Err(Rv::KEY_NOT_WRAPPABLE),
            // The value of a private object is on the members and nowhere else.
            None if row.class == ck::CKO_DATA && template.get(ck::CKA_VALUE).is_none() => {
                template.extend(self.value_elsewhere(lease, row)?);
            }
            None => {}
        }
        let make = |template: &Template| match &row.blob {
            Some(blob) => self.unwrap_blob(lease, blob, template),
            None => lease.token().create_object(lease.session, template),
        };
        if untried && !wrong!(UndecidedNotTried) {
            let trial = make(&life::public_as_made(&template))?;
            lease.on().discard(trial);
        }
        let handle = make(&template)?;
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
        Ok(handle)
    }

    /// An object's value, from another member that holds it. One that fails at that is at fault itself, not the one that
    /// it is for, and the next one is asked.
    fn value_elsewhere(&self, lease: &Lease, row: &ObjectRow) -> Result<Template> {
        let holders =
            self.up().filter(|m| m.index != lease.member.index && row.copies.iter().any(|c| c == m.name()));
        for member in holders {
            // Not brought up to date for this: two members would wait for each other.
            let Some(link) = member.link().filter(|l| l.has_followed(self.login.epoch())) else { continue };
            let answer = Lease::new(member, Arc::clone(&link)).and_then(|mut there| {
                let answer = self.value_on(&there, row);
                there.set_busy(answer.is_err());
                answer
            });
            match answer {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                Err(rv) => {
                    let class = self.failed(member, &link, Function::GetAttributeValue, rv);
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
        Err(Rv::KEY_NOT_WRAPPABLE)
    }

    /// An object's value, if this member holds it, proven.
    fn value_on(&self, there: &Lease, row: &ObjectRow) -> Result<Option<Template>> {
        let Some(verifier) = row.verifier() else { return Ok(None) };
        for handle in self.with_traits(there, &row_traits(row))? {
            if self.prove(there, handle, row.class, &verifier)? == Outcome::Same {
                return there.on().read(handle, &[ck::CKA_VALUE]).map(Some);
            }
        }
        Ok(None)
    }

    pub(super) fn seen(&self, lease: &Lease, row: &ObjectRow, handle: ObjectHandle) {
        if let Some(object) = self.objects.by_id(row.id) {
            self.take_over(lease, handle, &object);
        }
    }
}
