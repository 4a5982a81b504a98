//! Destroying and changing token objects: on every member, and remembered for those that are away.

use std::sync::Arc;

use ha_token::{Attribute, AttributeType, Function, ObjectHandle, Result, Rv, Template, TemplateExt, ck};

use super::copies::{Copy, Trouble, row_traits};
use super::keeper::bits;
use super::matching::id_kind;
use super::{Group, Lease, Member, Object, Origin, Traits, Who};
use crate::mutants::wrong;
use crate::policy::failure::{Class, classify};
use crate::replica::is_secret;
use crate::replica::ledger::{Found, Ledger, LedgerError, ObjectRow, Staged};
use crate::replica::proof::{self, Known, Outcome};
use crate::replica::verifier::Verifier;
use crate::seam::step;

/// How often a change is tried when other processes change the same object at the same time.
const TRIES: u32 = 5;

/// How often an object is looked for once more in one change, because its member knows its handle no more.
const MOST_LOST: u32 = 3;

impl Group {
    /// Destroys a token object on every member that is up. With the first that did, the destruction is final: members
    /// that are away destroy theirs when they come back.
    ///
    /// # Errors
    /// The members' answers when none destroyed it: it is then as it was.
    pub(crate) fn destroy_everywhere(&self, object: &Arc<Object>) -> Result<()> {
        self.where_somebody_is(&mut || self.destroy_once(object))
    }

    fn destroy_once(&self, object: &Arc<Object>) -> Result<()> {
        let ledger = self.ledger()?;
        let Origin::Ledger(id) = object.origin else { return self.destroy_foreign(object) };
        let _at_work = self.at_work()?;
        let everybody: Vec<&str> = self.members.iter().map(|m| m.name()).collect();
        let row = ledger.destroy_begin(id, &everybody).map_err(|e| self.ledger_failed(e))?;
        let holds = |member: &Member| row.copies.iter().any(|c| c == member.name());
        // Who has it first: what another one lacks is no answer to the application.
        let (holders, others): (Vec<_>, Vec<_>) = self.up().partition(|m| holds(m));
        let (mut is_final, mut refused) = (false, Rv::DEVICE_ERROR);
        let mut uncertain = Vec::new();
        let mut acknowledged = Vec::new();
        let mut ledgers_fault = None;
        for member in holders.into_iter().chain(others) {
            // Where an earlier try has left it open who has it, everybody is asked; else it is their keepers' to look, who
            // may be giving it to them at this moment.
            if !holds(member) && (is_final || !row.copies.is_empty()) {
                continue;
            }
            match self.destroy_on(ledger, member, object, &row) {
                Ok(()) => {
                    let is_first = !std::mem::replace(&mut is_final, true);
                    step!(is_first => DestroyedOnFirst, DestroyedOnAnother);
                    let noted = if is_first { ledger.destroy_final(id) } else { Ok(()) };
                    if wrong!(DestructionCountsForAll) {
                        for member in self.members.iter() {
                            _ = ledger.acknowledge(id, member.name());
                        }
                    }
                    // It goes on where it can: what is not noted is found out when the member is next brought up to date.
                    let is_told = holds(member);
                    let told = if is_told { ledger.acknowledge(id, member.name()) } else { Ok(()) };
                    match noted.and(told) {
                        Ok(()) if is_told => acknowledged.push(member.index),
                        Ok(()) => {}
                        Err(error) => ledgers_fault = Some(error),
                    }
                }
                Err(rv) => {
                    refused = rv;
                    let forgotten = wrong!(UncertainDestructionForgotten);
                    if classify(Function::DestroyObject, rv) != Class::Caller && !forgotten {
                        uncertain.push(member);
                    }
                }
            }
        }
        if is_final {
            for member in self.members.iter().filter(|m| !acknowledged.contains(&m.index)) {
                member.falls_behind();
            }
            return ledgers_fault.map_or(Ok(()), |error| Err(self.ledger_failed(error)));
        }
        // A member whose answer says nothing may have destroyed its copy: it is looked for, and given again if need be.
        let copies: Vec<&str> = row
            .copies
            .iter()
            .map(String::as_str)
            .filter(|c| !uncertain.iter().any(|m| m.name() == *c))
            .collect();
        ledger.destroy_rollback(id, &copies).map_err(|e| self.ledger_failed(e))?;
        for member in uncertain {
            object.forget(member.index);
        }
        // Who lacks it may have been brought up to date while it was being destroyed.
        for member in self.members.iter().filter(|m| !copies.contains(&m.name())) {
            member.falls_behind();
        }
        Err(refused)
    }

    /// Destroys a member's copy, if it has one. Where that is not known it is an error.
    fn destroy_on(
        &self,
        ledger: &Ledger,
        member: &Arc<Member>,
        object: &Object,
        row: &ObjectRow,
    ) -> Result<()> {
        self.write_on(member, Function::DestroyObject, object, &mut |lease| {
            let found = self.find_copy(ledger, lease, row).map_err(|trouble| match trouble {
                Trouble::Member(rv) => rv,
                Trouble::Ledger(error) => self.ledger_failed(error),
            })?;
            match found {
                Copy::At(handle) => {
                    // A token may give its number to the next object at once.
                    object.forget(lease.member.index);
                    lease.token().destroy_object(lease.session, handle)?;
                    lease.link.unbind(handle);
                    Ok(())
                }
                // Not there is as good as destroyed.
                Copy::Absent => Ok(()),
                // There, and not proven to be this object: it stays.
                Copy::Unclear => Err(Rv::KEY_FUNCTION_NOT_PERMITTED),
            }
        })
    }

    /// Destroys an object that the ledger does not know, where it is. A member that was away, or failed, or where nobody
    /// has seen it yet, does not bring it back: once it is destroyed on one the ledger has it among the destroyed.
    fn destroy_foreign(&self, object: &Arc<Object>) -> Result<()> {
        let _at_work = self.at_work()?;
        let (mut done, mut refused) = (Vec::new(), Rv::DEVICE_ERROR);
        let mut known = None;
        for member in self.up().filter(|m| object.lives_on(m.index)) {
            let answer = self.write_on(member, Function::DestroyObject, object, &mut |lease| {
                let handle = self.backing(lease, object)?;
                if known.is_none() && self.members.len() > 1 {
                    known = Some(self.known_by(lease, object, handle)?);
                }
                lease.token().destroy_object(lease.session, handle)
            });
            match answer {
                Ok(()) => done.push(member.index),
                Err(rv) => refused = rv,
            }
        }
        if done.is_empty() {
            return Err(refused);
        }
        let others: Vec<_> = self.members.iter().filter(|m| !done.contains(&m.index)).collect();
        let Some(known) = known.filter(|_| !others.is_empty()) else { return Ok(()) };
        let Some(destroyed) = known else {
            tracing::warn!(group = %self.config.label, label = %String::from_utf8_lossy(&object.traits().label),
                "an object from before the group was destroyed that cannot be told from others of its name: a member that was away keeps its copy");
            return Ok(());
        };
        let (ledger, id) = (self.ledger()?, self.announce(destroyed.class)?);
        let names: Vec<String> = others.iter().map(|m| m.name().to_owned()).collect();
        let noted = ledger.stage(id, &destroyed).and_then(|()| ledger.abandon(id, &names));
        noted.map_err(|e| self.ledger_failed(e))?;
        others.iter().for_each(|member| member.falls_behind());
        Ok(())
    }

    /// What the copies of an object from before the group are known by on other members once it is destroyed; `None` where
    /// that is not enough to tell them from others: nothing can be asked of it, or it has an equal here.
    fn known_by(&self, lease: &Lease, object: &Object, handle: ObjectHandle) -> Result<Option<Staged>> {
        let traits = object.traits();
        let asked = || -> Result<Option<Verifier>> {
            let Some(verifier) = self.make_verifier(lease, handle, traits.class, Known::default())? else {
                return Ok(None);
            };
            for other in self.with_traits(lease, &traits)? {
                if other != handle && self.prove(lease, other, traits.class, &verifier)? != Outcome::Different
                {
                    return Ok(None);
                }
            }
            Ok(Some(verifier))
        };
        let verifier = match asked() {
            Ok(Some(verifier)) => verifier,
            Ok(None) => return Ok(None),
            Err(rv) => match classify(Function::Sign, rv) {
                Class::Session | Class::Member => return Err(rv),
                // What it does not answer to a challenge keeps nobody from destroying it.
                _ => return Ok(None),
            },
        };
        Ok(Some(Staged {
            class: traits.class,
            key_type: traits.key_type,
            ckaid: traits.id.to_vec(),
            label: traits.label.to_vec(),
            private: object.private,
            verifier: Some(verifier),
            template: Template::new(),
            blob: None,
        }))
    }

    /// Makes a change of an object on one member. A backing session, a login or a handle that is gone is no fault of the
    /// application's, nor of the member's: each is made again.
    ///
    /// # Errors
    /// The member's answer; its health knows of it.
    pub(crate) fn write_on<T>(
        &self,
        member: &Arc<Member>,
        function: Function,
        object: &Object,
        f: &mut dyn FnMut(&Lease) -> Result<T>,
    ) -> Result<T> {
        let (mut session, mut login, mut stale) = (false, false, 0);
        loop {
            // Where one session was lost the others of the pool are too.
            let leased = if session { self.sound_lease(member) } else { self.lease(member) };
            let mut lease = leased.map_err(|rv| match self.not_lent(member, rv) {
                Class::Capacity | Class::Ambiguous => rv,
                Class::Login if self.login.who() != Who::User => rv,
                // The virtual session and login are sound: these are no answers for the application.
                _ => Rv::DEVICE_ERROR,
            })?;
            let rv = match f(&lease) {
                Ok(value) => return Ok(value),
                Err(rv) => rv,
            };
            match self.failed(member, &lease.link, function, rv) {
                Class::Session if !std::mem::replace(&mut session, true) => lease.set_busy(true),
                Class::Login if self.login.who() != Who::Nobody && !std::mem::replace(&mut login, true) => {
                    lease.set_busy(true);
                    lease.link.doubt_login();
                }
                // They may be lost once more while the object is looked for.
                Class::Object if stale < MOST_LOST => {
                    stale += 1;
                    object.forget_stale(&lease.member, &lease.link);
                }
                // What is the user's alone is refused to the security officer, whose login has just been made again.
                Class::Login if self.login.who() == Who::So => return Err(rv),
                // The virtual session and login are sound: these are no answers for the application.
                Class::Session | Class::Login if self.login.who() != Who::Nobody => {
                    self.blame(member, function, rv);
                    return Err(Rv::DEVICE_ERROR);
                }
                Class::Member => {
                    // What hangs, or has failed so, may have left something in it.
                    lease.set_busy(true);
                    return Err(Rv::DEVICE_ERROR);
                }
                class if self.is_lost(member, &lease.link, class) => return Err(Rv::DEVICE_ERROR),
                _ => return Err(rv),
            }
        }
    }

    /// Refuses a change that takes away every way to prove a key: it would not be used again after a restart.
    fn stays_provable(&self, object: &Object, row: &ObjectRow, template: &Template) -> Result<()> {
        if !is_secret(row.class) || !template.iter().any(|a| proof::DECIDING.contains(&a.kind)) {
            return Ok(());
        }
        let Some(verifier) = row.verifier() else { return Ok(()) };
        for member in self.up().filter(|m| row.copies.iter().any(|c| c == m.name())) {
            let proof = self.lease(member).and_then(|lease| {
                let handle = self.backing(&lease, object)?;
                self.challenge(&lease, row.class, |challenge| {
                    proof::prove_as_if(challenge, handle, row.class, &verifier, template)
                })
            });
            match proof.map(|proof| proof.outcome) {
                Ok(Outcome::Unproven(reason)) => {
                    return Err(self.unprovable(Function::SetAttributeValue, &reason));
                }
                Ok(Outcome::Same | Outcome::Different) => return Ok(()),
                // Another member is asked; the change itself tells what is wrong here.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Changes attributes of a token object on every member that is up; the others change theirs when they come back.
    /// The change is durable before the first member makes it: from the first one that did it goes forward.
    ///
    /// # Errors
    /// The first member's refusal: nothing was changed then.
    pub(crate) fn set_everywhere(&self, object: &Arc<Object>, template: &Template) -> Result<()> {
        self.where_somebody_is(&mut || self.set_within(object, template, TRIES))
    }

    /// Makes a change once more where no member made it, and one that was found dead by it, or a moment ago, is back on a new
    /// connection. Each may come back, and fail again.
    fn where_somebody_is(&self, change: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let connections = || self.up().filter_map(|m| Some((m.index, m.link()?.generation)));
        let mut again = 0;
        loop {
            let before: Vec<_> = connections().collect();
            let answer = change();
            match answer {
                Err(rv) if classify(Function::DestroyObject, rv) != Class::Caller => {}
                answer => return answer,
            }
            let asked = bits(connections().filter(|now| before.contains(now)).map(|(index, _)| index));
            let may = again < self.members.len() && self.wait_for_return(1, asked);
            if !may || !self.may_retry(again == 0) {
                return answer;
            }
            again += 1;
        }
    }

    fn set_within(&self, object: &Arc<Object>, template: &Template, tries: u32) -> Result<()> {
        let ledger = self.ledger()?;
        let _at_work = self.at_work()?;
        let row = match object.origin {
            Origin::Ledger(id) => ledger.object(id).map_err(|e| self.ledger_failed(e))?,
            Origin::Foreign | Origin::Session(_) => None,
        };
        let holders: Vec<&Arc<Member>> = match (&row, object.origin) {
            (Some(row), _) => {
                self.members.iter().filter(|m| row.copies.iter().any(|c| c == m.name())).collect()
            }
            // Another process has destroyed it.
            (None, Origin::Ledger(_)) => return Err(Rv::OBJECT_HANDLE_INVALID),
            (None, _) => self.members.iter().filter(|m| object.lives_on(m.index)).collect(),
        };
        let before = row.as_ref().map_or_else(|| (*object.traits()).clone(), row_traits);
        let traits = changed(&before, template);
        let mut kept = row.as_ref().map_or_else(Template::new, |row| row.template.clone());
        for attribute in template {
            kept.set(attribute.clone());
        }
        self.vet_change(template, &traits, &kept)?;
        let Some(row) = row else {
            self.set_on(&holders, object, None, template).map_err(|(rv, _)| rv)?;
            object.set_traits(traits);
            return Ok(());
        };
        self.stays_provable(object, &row, template)?;
        // One that is not known to hold it may have a copy that nobody was told of, and would not be known by its new names.
        let all_told = |m: &Member| m.is_up() && self.login.who() == Who::User && !self.lacks_some(m);
        let others: Vec<&str> = match row.is_copyable() {
            true => self.members.iter().filter(|m| !all_told(m)).map(|m| m.name()).collect(),
            false => Vec::new(),
        };
        let there = holders.iter().filter(|m| m.is_up()).filter_map(|m| self.lease(m).ok());
        let blob = self.sealed(there, object, &row, &kept)?;
        let after = Found { ckaid: &traits.id, label: &traits.label, template: &kept, blob: blob.as_ref() };
        let announced = match ledger.change_begin(&row, &others, template, &after) {
            Ok(announced) => announced,
            // Changed by another process in between: what it did is built upon.
            Err(LedgerError::Conflict) if tries > 1 => return self.set_within(object, template, tries - 1),
            Err(error) => return Err(self.ledger_failed(error)),
        };
        let all: Vec<i64> = announced.iter().map(|(_, number)| *number).collect();
        let now = ledger.object(row.id).map_err(|e| self.ledger_failed(e))?;
        let (made, refused) = match self.set_on(
            &holders,
            object,
            now.as_ref().map(|now| (ledger, now)),
            template,
        ) {
            Ok(made) => (made, None),
            // A member may have made what no member takes back: it goes forward, whatever is answered.
            Err((rv, uncertain)) if !uncertain.is_empty() && is_one_way(template) => {
                tracing::warn!(group = %self.config.label, %rv, "whether a change that cannot be taken back was made is not known: every member is to make it");
                (vec![false; holders.len()], Some(rv))
            }
            Err((rv, uncertain)) => {
                // Who may have made the change makes it back.
                let back: Template = template.iter().filter_map(|a| was(&row, a.kind)).collect();
                let undo: Vec<&str> = uncertain.iter().map(|m| m.name()).collect();
                object.set_traits(before);
                let undone = ledger.change_rollback(&row, &all, &undo, &back);
                // What they are to make is written down by now; also by who was given a copy meanwhile.
                let given = self.members.iter().filter(|m| !holders.iter().any(|h| h.index == m.index));
                uncertain.into_iter().chain(given).for_each(|member| member.falls_behind());
                return match undone {
                    // Somebody else has changed it since, and with it what this would undo.
                    Ok(()) | Err(LedgerError::Conflict) => Err(rv),
                    Err(error) => Err(self.ledger_failed(error)),
                };
            }
        };
        let has_made =
            |name: &str| holders.iter().zip(&made).any(|(holder, made)| *made && holder.name() == name);
        let (done, left): (Vec<_>, Vec<_>) = announced.into_iter().partition(|(name, _)| has_made(name));
        let done: Vec<i64> = done.into_iter().map(|(_, number)| number).collect();
        if let Err(error) = ledger.change_decided(&all, &done) {
            tracing::warn!(group = %self.config.label, %error, "a change was made, and the ledger could not note that it was: it is made again when the members are next brought up to date");
        }
        object.set_traits(traits);
        for member in self.members.iter().filter(|m| left.iter().any(|(name, _)| name == m.name())) {
            member.falls_behind();
        }
        refused.map_or(Ok(()), Err)
    }

    /// Changes attributes on these members, as far as they are up. Answers which did.
    ///
    /// # Errors
    /// A member's answer, when none made the change.
    /// With the error come the members that may have made it all the same.
    fn set_on<'m>(
        &self,
        holders: &[&'m Arc<Member>],
        object: &Object,
        row: Option<(&Ledger, &ObjectRow)>,
        template: &Template,
    ) -> std::result::Result<Vec<bool>, (Rv, Vec<&'m Arc<Member>>)> {
        let mut made = vec![false; holders.len()];
        let mut refused = Rv::DEVICE_ERROR;
        let mut changed = false;
        let mut uncertain = Vec::new();
        for (member, made) in holders.iter().zip(&mut made) {
            if !member.is_up() {
                continue;
            }
            let mut tried = false;
            let answer = self.write_on(member, Function::SetAttributeValue, object, &mut |lease| {
                let handle = match row {
                    None => self.backing(lease, object)?,
                    // The member may know it by its names of before.
                    Some((ledger, row)) => match self.find_copy(ledger, lease, row) {
                        Ok(Copy::At(handle)) => handle,
                        // Nothing to change now: it is the member's to be brought up to date.
                        Ok(Copy::Absent | Copy::Unclear) => return Ok(false),
                        Err(Trouble::Member(rv)) => return Err(rv),
                        Err(Trouble::Ledger(error)) => return Err(self.ledger_failed(error)),
                    },
                };
                // A first try may have made it, and what cannot be taken back is refused the second time.
                let is_again = std::mem::replace(&mut tried, true);
                let wanted = if is_again { still_to_set(lease, handle, template)? } else { template.clone() };
                match wanted.is_empty() {
                    true => Ok(true),
                    false => lease.token().set_attributes(lease.session, handle, &wanted).map(|()| true),
                }
            });
            match answer {
                Ok(done) => {
                    step!(changed => ChangedOnAnother, ChangedOnFirst);
                    (changed, *made) = (changed || done, done);
                }
                Err(rv) if classify(Function::SetAttributeValue, rv) == Class::Caller => {
                    if !changed {
                        return Err((rv, uncertain));
                    }
                }
                Err(rv) => {
                    refused = rv;
                    uncertain.push(*member);
                }
            }
        }
        if changed { Ok(made) } else { Err((refused, uncertain)) }
    }
}

/// What of a change a member's copy does not have yet.
///
/// # Errors
/// The member's answer.
pub(super) fn still_to_set(lease: &Lease, handle: ObjectHandle, wanted: &Template) -> Result<Template> {
    let types: Vec<_> = wanted.iter().map(|a| a.kind).collect();
    let there = lease.on().read(handle, &types)?;
    Ok(wanted.iter().filter(|a| there.get(a.kind) != Some(&a.value)).cloned().collect())
}

/// Whether a change has something in it that no token takes back (PKCS#11 v3.2, sections 4.4, 4.9 and 4.10).
pub(super) fn is_one_way(template: &Template) -> bool {
    const ONCE_TRUE: [AttributeType; 2] = [ck::CKA_SENSITIVE, ck::CKA_WRAP_WITH_TRUSTED];
    const ONCE_FALSE: [AttributeType; 2] = [ck::CKA_EXTRACTABLE, ck::CKA_COPYABLE];
    template.iter().any(|a| match a.value.as_bool() {
        Some(true) => ONCE_TRUE.contains(&a.kind),
        Some(false) => ONCE_FALSE.contains(&a.kind),
        None => false,
    })
}

/// What the ledger knows of an attribute's value. Names it has also where the template that made the object has none.
fn was(row: &ObjectRow, kind: AttributeType) -> Option<Attribute> {
    let id = id_kind(row.class);
    let name = match kind {
        ck::CKA_LABEL => Some(&row.label),
        kind if kind == id => Some(&row.ckaid),
        _ => None,
    };
    let kept = row.template.iter().find(|a| a.kind == kind).cloned();
    kept.or_else(|| name.map(|name| Attribute::bytes(kind, &**name)))
}

/// What an object is found by once the attributes are changed.
pub(super) fn changed(traits: &Traits, template: &Template) -> Traits {
    let mut traits = traits.clone();
    let id = id_kind(traits.class);
    if let Some(new) = template.get_bytes(id) {
        traits.id = new.into();
    }
    if let Some(new) = template.get_bytes(ck::CKA_LABEL) {
        traits.label = new.into();
    }
    traits
}
