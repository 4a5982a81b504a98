//! The key replication check: each object by member, and whether the copies are the same key.

use std::collections::BTreeMap;
use std::sync::Arc;

use ha_token::{Attribute, Function, Result, Rv, Ulong, ck};

use super::identify::place;
use super::{Group, Lease, Object, Origin, Trust, Who};
use crate::policy::failure::Class;
use crate::replica::proof::{Known, Outcome};
use crate::replica::verifier::Verifier;

/// What a member has of an object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Word {
    /// The same object, as far as was asked for.
    Same,
    /// There, and not proven to be the same.
    Unproven,
    /// Not there.
    Missing,
    /// There, and another key.
    Different,
}

/// One object of a check.
#[derive(Clone, Debug)]
pub struct Checked {
    /// `CKA_CLASS`.
    pub class: Ulong,
    /// `CKA_KEY_TYPE`; all bits set where there is none.
    pub key_type: Ulong,
    /// `CKA_ID` (`CKA_APPLICATION` for data objects).
    pub id: Vec<u8>,
    /// `CKA_LABEL`.
    pub label: Vec<u8>,
    /// Digest of what identifies the key, where it is known.
    pub fingerprint: Option<[u8; 32]>,
    /// Whether the object can be brought to a member that lacks it.
    pub copyable: bool,
    /// Whether the ledger does not know it: it was there before the group, or was made behind its back.
    pub foreign: bool,
    /// By member, in the order of the file. A member that is not up is left out.
    pub members: Vec<(String, Word)>,
    /// Why a word is not `Same`, where there is more to say.
    pub reasons: Vec<String>,
}

impl Checked {
    /// The worst of the members' words.
    pub fn worst(&self) -> Word {
        self.members.iter().map(|m| m.1).max().unwrap_or(Word::Missing)
    }
}

impl Group {
    /// Compares the objects of every member that is up; with `prove` every copy is challenged. The user must be logged in.
    /// Objects are looked at one by one: memory grows with their number, nothing else. A member that fails meanwhile is
    /// left out from there on.
    ///
    /// # Errors
    /// `CKR_USER_NOT_LOGGED_IN`; `CKR_DEVICE_ERROR` when no member is up.
    pub fn check(&self, prove: bool) -> Result<Vec<Checked>> {
        if self.login.who() != Who::User {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        let mut leases = Vec::new();
        for member in self.up() {
            match self.sound_lease(member) {
                Ok(lease) => leases.push(lease),
                Err(rv) => {
                    if let Some(link) = member.link() {
                        self.failed(member, &link, Function::OpenSession, rv);
                    }
                }
            }
        }
        let mut objects: BTreeMap<Ulong, Arc<Object>> = BTreeMap::new();
        leases.retain(|lease| match self.objects_on(lease, &mut objects) {
            Ok(()) => true,
            Err(rv) => {
                self.failed(&lease.member, &lease.link, Function::FindObjects, rv);
                false
            }
        });
        // What the ledger knows and no member has would otherwise not be seen.
        if let Some(ledger) = &self.ledger {
            for row in ledger.objects().unwrap_or_default().into_iter().filter(|r| r.is_committed()) {
                if self.objects.by_id(row.id).is_none()
                    && let Some(object) = self.known(&row)
                {
                    objects.insert(object.handle.0, object);
                }
            }
        }
        let mut checked = Vec::new();
        for object in objects.values() {
            checked.extend(self.check_object(object, &mut leases, prove));
        }
        if leases.is_empty() {
            return Err(Rv::DEVICE_ERROR);
        }
        Ok(checked)
    }

    /// Adds the objects that a member holds.
    fn objects_on(&self, lease: &Lease, objects: &mut BTreeMap<Ulong, Arc<Object>>) -> Result<()> {
        for handle in lease.find(&vec![Attribute::bool(ck::CKA_TOKEN, true)])? {
            if let Some(object) = self.object_of(lease, handle)? {
                objects.insert(object.handle.0, object);
            }
        }
        Ok(())
    }

    fn check_object(&self, object: &Object, leases: &mut Vec<Lease>, prove: bool) -> Option<Checked> {
        let traits = object.traits();
        let row = match object.origin {
            Origin::Session(_) => return None,
            Origin::Foreign => None,
            Origin::Ledger(id) => self.ledger.as_ref().and_then(|l| l.object(id).ok().flatten()),
        };
        let mut verifier = row.as_ref().and_then(|r| r.verifier());
        let mut reasons = Vec::new();
        let mut members = Vec::new();
        leases.retain(|lease| {
            let word = if object.is_conflicted() {
                if object.lives_on(lease.member.index) { Word::Different } else { return true }
            } else {
                match self.word(object, lease, &mut verifier, prove) {
                    Ok((word, reason)) => {
                        reasons.extend(reason.map(|r| format!("{}: {r}", lease.member.name())));
                        word
                    }
                    Err(rv) => {
                        let class = self.failed(&lease.member, &lease.link, Function::FindObjects, rv);
                        if class == Class::Member || self.is_lost(&lease.member, &lease.link, class) {
                            return false;
                        }
                        if class == Class::Caller {
                            reasons.push(format!("{}: {rv}", lease.member.name()));
                        }
                        Word::Unproven
                    }
                }
            };
            members.push((lease.member.name().to_owned(), word));
            true
        });
        if object.is_conflicted() {
            reasons.push(
                "another object of the same class, label and id is a different one; neither is used".into(),
            );
        }
        let copyable = match &row {
            Some(row) => row.is_copyable(),
            None => self.is_foreign_copyable(object, leases),
        };
        Some(Checked {
            class: traits.class,
            key_type: traits.key_type,
            id: traits.id.to_vec(),
            label: traits.label.to_vec(),
            fingerprint: verifier.as_ref().map(Verifier::fingerprint),
            copyable,
            foreign: object.origin == Origin::Foreign,
            members,
            reasons,
        })
    }

    /// What one member has of an object.
    fn word(
        &self,
        object: &Object,
        lease: &Lease,
        verifier: &mut Option<Verifier>,
        prove: bool,
    ) -> Result<(Word, Option<String>)> {
        let traits = object.traits();
        let handle = match object.place(lease.member.index, lease.link.generation) {
            Some(p) => p.handle,
            None => match self.unclaimed(lease, object)? {
                Some(handle) => handle,
                None => return Ok((Word::Missing, None)),
            },
        };
        let secret = matches!(traits.class, ck::CKO_PRIVATE_KEY | ck::CKO_SECRET_KEY);
        if secret && !prove {
            let trust = object.place(lease.member.index, lease.link.generation).map(|p| p.trust);
            return Ok(match trust {
                Some(Trust::Proven) => (Word::Same, None),
                Some(Trust::Conflict) => (Word::Different, None),
                Some(Trust::Unproven) | None => (Word::Unproven, None),
            });
        }
        if verifier.is_none() {
            *verifier = self.make_verifier(lease, handle, traits.class, Known::default())?;
        }
        let Some(verifier) = verifier else {
            let alone = self.members.len() == 1;
            return Ok((
                if alone { Word::Same } else { Word::Unproven },
                Some("no challenge fits this object".into()),
            ));
        };
        Ok(match self.prove(lease, handle, traits.class, verifier)? {
            Outcome::Same => {
                self.take_over(lease, handle, object);
                (Word::Same, None)
            }
            Outcome::Different => {
                object.put(place(lease, handle, Trust::Conflict));
                self.reporter.conflict(lease.member.name(), &traits.label);
                (Word::Different, Some("it is another key".into()))
            }
            Outcome::Unproven(reason) => (Word::Unproven, Some(reason)),
        })
    }

    /// A member's object with an object's traits that is no other object's copy.
    fn unclaimed(&self, lease: &Lease, object: &Object) -> Result<Option<ha_token::ObjectHandle>> {
        if object.origin == Origin::Foreign {
            // A foreign object's copies were looked for when it was first seen.
            return Ok(None);
        }
        let traits = object.traits();
        Ok(self
            .with_traits(lease, &traits)?
            .into_iter()
            .find(|h| lease.link.virtual_of(*h).is_none_or(|v| v == object.handle.0)))
    }
}
