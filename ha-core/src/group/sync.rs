//! Replicating by hand: what members lack of the group's own objects, and objects from before the group.

use std::collections::HashSet;
use std::sync::Arc;

use ha_token::{Attribute, Function, ObjectHandle, Result, Rv, Template, TemplateExt, ck};

use super::catch_up::{Extent, describe};
use super::identify::place;
use super::put::{How, Item};
use super::wrapped::{Copied, NotWrapped};
use super::{CaughtUp, Group, Lease, Member, Object, Origin, Trust, Who};
use crate::policy::failure::Class;
use crate::replica::ledger::{Intent, LedgerError, ObjectId, ObjectRow};
use crate::replica::proof::{Known, Outcome};
use crate::replica::verifier::Verifier;
use crate::replica::{is_secret, life};

/// What one object's adoption came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// `CKA_CLASS`.
    pub class: ha_token::Ulong,
    /// `CKA_ID`.
    pub id: Vec<u8>,
    /// `CKA_LABEL`.
    pub label: Vec<u8>,
    /// Why it is served from where it is, and not copied; `None`: it was, or would be, copied.
    pub why_not: Option<String>,
}

impl Group {
    /// Brings every member that is up to date: pending deletions and changes, then missing objects. With `dry` nothing is
    /// done, only counted. Answers by member's name.
    ///
    /// # Errors
    /// `CKR_USER_NOT_LOGGED_IN`.
    pub fn sync(&self, dry: bool) -> Result<Vec<(String, CaughtUp)>> {
        if self.login.who() != Who::User {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        let ledger = self.ledger()?;
        let mut done = Vec::new();
        for member in self.up() {
            let answer = self.lease(member).and_then(|lease| {
                self.recall_group_keys(&lease)?;
                self.warn_of_marker(&lease)?;
                let lost = self.lost(&lease)?;
                if !dry {
                    for row in &lost {
                        match ledger.copy_lost(row, member.name()) {
                            // Changed or destroyed meanwhile.
                            Ok(()) | Err(LedgerError::Conflict) => {}
                            Err(error) => return Err(self.ledger_failed(error)),
                        }
                    }
                }
                let mut done =
                    self.bring_up_to_date(&lease, if dry { Extent::Rehearsal } else { Extent::Whole })?;
                if dry {
                    let (copyable, stuck): (Vec<_>, Vec<_>) = lost.iter().partition(|r| r.is_copyable());
                    done.copied += copyable.len();
                    done.left.extend(
                        stuck.into_iter().map(|r| format!("{} is gone and cannot be copied", describe(r))),
                    );
                }
                Ok(done)
            });
            match answer {
                Ok(one) => done.push((member.name().to_owned(), one)),
                Err(rv) => {
                    self.blame(member, Function::CreateObject, rv);
                    done.push((
                        member.name().to_owned(),
                        CaughtUp { left: vec![rv.to_string()], ..CaughtUp::default() },
                    ));
                }
            }
        }
        Ok(done)
    }

    /// The objects that a member holds by the ledger, and does not: they were destroyed behind the group's back, or the
    /// token was set back.
    pub(super) fn lost(&self, lease: &Lease) -> Result<Vec<ObjectRow>> {
        // A lost SoftHSM token answers every search with nothing.
        self.looks_alive(&lease.member, &lease.link)?;
        // Read before the token is: what another process commits meanwhile may not have been there when it was searched.
        let mut rows = self.ledger()?.objects().map_err(|e| self.ledger_failed(e))?;
        let mut seen = HashSet::new();
        for handle in lease.find(&vec![Attribute::bool(ck::CKA_TOKEN, true)])? {
            if let Some(object) = self.object_of(lease, handle)?
                && let Origin::Ledger(id) = object.origin
            {
                seen.insert(id);
            }
        }
        rows.retain(|r| {
            r.is_committed() && !seen.contains(&r.id) && r.copies.iter().any(|c| c == lease.member.name())
        });
        // And what it has changed or destroyed may not have been known.
        let mut lost = Vec::new();
        for row in rows {
            let now = self.ledger()?.object(row.id).map_err(|e| self.ledger_failed(e))?;
            if now.is_some_and(|now| now.is_committed() && now.is_unchanged_since(&row)) {
                lost.push(row);
            }
        }
        Ok(lost)
    }

    /// Makes the objects that a member held before the group the group's own: each that can be copied is, proven, to
    /// every member. The others stay where they are and are served from there.
    ///
    /// # Errors
    /// `CKR_USER_NOT_LOGGED_IN`; `CKR_TOKEN_NOT_PRESENT` for a member that is not up; too few members; the ledger.
    pub fn adopt(&self, member: &str, dry: bool) -> Result<Vec<Adopted>> {
        if self.login.who() != Who::User {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        if !dry {
            // Before anything is asked of a member.
            self.ledger()?;
        }
        let from: Arc<Member> =
            self.up().find(|m| m.name() == member).cloned().ok_or(Rv::TOKEN_NOT_PRESENT)?;
        self.show_unknown(&from, dry)?;
        let mut writers = Vec::new();
        for member in self.up() {
            writers.push(self.lease(member)?);
        }
        if !dry {
            self.group_keys_everywhere(&mut writers)?;
        }
        let source = writers.iter().find(|w| w.member.index == from.index).ok_or(Rv::DEVICE_ERROR)?;
        let mut adopted = Vec::new();
        for handle in source.find(&vec![Attribute::bool(ck::CKA_TOKEN, true)])? {
            let Some(object) = self.object_of(source, handle)? else { continue };
            if object.origin != Origin::Foreign {
                continue;
            }
            let traits = object.traits();
            let why_not = match self.obstacle(source, &object, handle)? {
                Some(why) => Some(why),
                None if dry => None,
                None => match self.adopt_one(source, &writers, &object, handle) {
                    Ok(why_not) => why_not,
                    Err(rv)
                        if self.failed(&source.member, &source.link, Function::WrapKey, rv)
                            == Class::Member =>
                    {
                        return Err(rv);
                    }
                    Err(rv) => Some(format!("a member answered {rv}")),
                },
            };
            adopted.push(Adopted {
                class: traits.class,
                id: traits.id.to_vec(),
                label: traits.label.to_vec(),
                why_not,
            });
        }
        Ok(adopted)
    }

    /// Why an object from before the group cannot be copied.
    fn obstacle(&self, source: &Lease, object: &Object, handle: ObjectHandle) -> Result<Option<String>> {
        if object.is_conflicted() {
            return Ok(Some("another object of the same class, label and id is a different one".into()));
        }
        if !is_secret(object.traits().class) {
            return Ok(None);
        }
        let read = source.on().read(handle, &[ck::CKA_EXTRACTABLE, ck::CKA_WRAP_WITH_TRUSTED])?;
        if read.get_bool(ck::CKA_EXTRACTABLE) != Some(true) {
            return Ok(Some("the key may not be extracted (CKA_EXTRACTABLE is false)".into()));
        }
        if read.get_bool(ck::CKA_WRAP_WITH_TRUSTED) == Some(true) {
            return Ok(Some("the key may only be wrapped with a trusted key (CKA_WRAP_WITH_TRUSTED)".into()));
        }
        Ok(None)
    }

    pub(super) fn is_foreign_copyable(&self, object: &Object, leases: &[Lease]) -> bool {
        leases.iter().any(|lease| {
            object
                .place(lease.member.index, lease.link.generation)
                .is_some_and(|p| self.obstacle(lease, object, p.handle).is_ok_and(|o| o.is_none()))
        })
    }

    /// Adopts one object, or says why it is not adopted.
    fn adopt_one(
        &self,
        source: &Lease,
        writers: &[Lease],
        object: &Arc<Object>,
        handle: ObjectHandle,
    ) -> Result<Option<String>> {
        let ledger = self.ledger()?;
        let on = source.on();
        let traits = (*object.traits()).clone();
        let class = traits.class;
        let Some(verifier) = self.make_verifier(source, handle, class, Known::default())? else {
            return Ok(Some(
                "no challenge fits the key: its copies could not be told from other keys".into(),
            ));
        };
        // The one that is there must be found again by this, and so must those of other members.
        for writer in writers {
            if let Some(there) = object.place(writer.member.index, writer.link.generation)
                && let Some(why) = self.doubt(writer, there.handle, class, &verifier)?
            {
                return Ok(Some(why));
            }
        }
        let mut asked = on.read(handle, &[ck::CKA_SENSITIVE, ck::CKA_EXTRACTABLE, ck::CKA_PRIVATE])?;
        asked.extend(life::limits(on, handle)?);
        let (kept, how) = match class {
            ck::CKO_PUBLIC_KEY => {
                let kept = life::public_as_kept(on, handle, &Template::new())?;
                (kept.clone(), How::Create(kept))
            }
            class if is_secret(class) => {
                let kept = life::as_kept(on, handle, class, &asked)?;
                let length = on.read(handle, &[ck::CKA_VALUE_LEN])?.get_ulong(ck::CKA_VALUE_LEN);
                let copied = Copied { class, kept: &kept, length, verifier: Some(&verifier) };
                let blob = match self.wrap(source, handle, true, &copied) {
                    Ok(blob) => blob,
                    Err(NotWrapped::Cannot { .. }) => {
                        return Ok(Some("no wrapping mechanism of this token carries the key whole".into()));
                    }
                    Err(NotWrapped::Answered(rv)) => return Err(rv),
                };
                (kept, How::Unwrap(blob))
            }
            _ => {
                let kept = life::readable_as_kept(on, handle)?;
                (kept.clone(), How::Create(kept))
            }
        };
        let remembered = life::to_remember(on, handle, false)?;
        let id = ObjectId(self.nonce()?);
        let _at_work = self.at_work()?;
        ledger.begin(&Intent { id, class }).map_err(|e| self.ledger_failed(e))?;
        let item = Item { id, traits, kept, remembered, verifier: Some(verifier.clone()), how };
        let mut failed = self.stage(ledger, &item, object.private, None).err();
        let mut copies = Vec::new();
        let mut why_not = None;
        // Members that may hold a copy that nobody wants.
        let mut touched = Vec::new();
        for writer in writers {
            if failed.is_some() {
                break;
            }
            if let Some(there) = object.place(writer.member.index, writer.link.generation) {
                copies.push((writer, there.handle, false));
                continue;
            }
            touched.push(writer.member.name().to_owned());
            let made = self.put_one(writer, &item).and_then(|made| {
                match self.doubt(writer, made, class, &verifier) {
                    Ok(None) => Ok(made),
                    doubtful => {
                        writer.token().destroy_object(writer.session, made)?;
                        why_not = doubtful?;
                        Err(Rv::ENCRYPTED_DATA_INVALID)
                    }
                }
            });
            match made {
                Ok(made) => copies.push((writer, made, true)),
                Err(rv) => failed = Some(rv),
            }
        }
        let names: Vec<String> = copies.iter().map(|c| c.0.member.name().to_owned()).collect();
        if failed.is_none() && copies.len() >= self.min_copies() {
            failed = ledger.commit(&[(id, names)]).err().map(|e| self.ledger_failed(e));
        }
        if copies.len() < self.min_copies() || failed.is_some() {
            for (writer, made, fresh) in copies {
                if fresh {
                    // Where it fails the copy is found, and destroyed, when the member is next brought up to date.
                    _ = writer.token().destroy_object(writer.session, made);
                }
            }
            if let Err(error) = ledger.abandon(id, &touched)
                && !matches!(error, LedgerError::Conflict)
            {
                tracing::error!(group = %self.config.label, %error, "the ledger keeps an announcement that was given up");
            }
            for writer in writers.iter().filter(|w| touched.iter().any(|t| t == w.member.name())) {
                writer.member.falls_behind();
            }
            return match why_not {
                Some(why) => Ok(Some(why)),
                None => Err(failed.unwrap_or(Rv::DEVICE_ERROR)),
            };
        }
        for member in self.members.iter().filter(|m| !copies.iter().any(|c| c.0.member.index == m.index)) {
            member.falls_behind();
        }
        self.forget_object(object);
        let own = self.objects.add(Origin::Ledger(id), item.traits, object.private, None);
        for (writer, made, _) in copies {
            own.put(place(writer, made, Trust::Proven));
            writer.link.bind(made, own.handle.0);
        }
        Ok(None)
    }

    /// Why a member's copy is not to be believed; `None` for one that is proven.
    fn doubt(
        &self,
        lease: &Lease,
        handle: ObjectHandle,
        class: ha_token::Ulong,
        verifier: &Verifier,
    ) -> Result<Option<String>> {
        let name = lease.member.name();
        Ok(match self.prove(lease, handle, class, verifier)? {
            Outcome::Same => None,
            Outcome::Different => Some(format!("the copy on member {name} is another key")),
            Outcome::Unproven(reason) => {
                Some(format!("the copy on member {name} cannot be proven: {reason}"))
            }
        })
    }
}
