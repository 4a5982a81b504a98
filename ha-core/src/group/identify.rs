//! Which virtual object a member's object is; which of a member's objects a virtual one is says `backing`.
//!
//! A member's objects are matched to the ledger's by what they are called, and are believed only when their proof
//! succeeded: never by label or id alone (guarantee G3).

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use ha_token::{Attribute, AttributeType, Function, ObjectHandle, Result, Rv, Template, Ulong, ck};

use super::copies::row_traits;
use super::matching::Match;
use super::{Group, Lease, Member, Object, Origin, Place, Traits, Trust};
use crate::policy::health::State;
use crate::replica::is_ours;
use crate::replica::ledger::{ObjectId, ObjectRow};
use crate::replica::proof::{self, Challenge, Known, Outcome, Proof};
use crate::replica::verifier::Verifier;

impl Group {
    /// As [`object_seen`](Self::object_seen); `None` also for one that is gone by now.
    ///
    /// # Errors
    /// The member's answer.
    pub(crate) fn object_of(&self, lease: &Lease, backing: ObjectHandle) -> Result<Option<Arc<Object>>> {
        match self.object_seen(lease, backing) {
            Err(Rv::OBJECT_HANDLE_INVALID) => Ok(None),
            answer => answer,
        }
    }

    /// The virtual objects that these objects of a member are, as [`object_seen`](Self::object_seen) or
    /// [`object_of`](Self::object_of) says of each. One with the names of the group's own is taken for that until another one
    /// proves to be it: then it is looked at once more.
    ///
    /// # Errors
    /// As those.
    pub(crate) fn objects_among(
        &self,
        lease: &Lease,
        found: Vec<ObjectHandle>,
        see: impl Fn(&Lease, ObjectHandle) -> Result<Option<Arc<Object>>>,
    ) -> Result<Vec<Arc<Object>>> {
        let mut seen = Vec::with_capacity(found.len());
        for backing in found {
            seen.extend(see(lease, backing)?.map(|object| (backing, object)));
        }
        let mut objects = Vec::with_capacity(seen.len());
        for (backing, object) in seen {
            if lease.link.virtual_of(backing) == Some(object.handle.0) {
                objects.push(object);
            } else {
                objects.extend(see(lease, backing)?);
            }
        }
        Ok(objects)
    }

    /// The virtual object that a member's object is; `None` for one that no application sees.
    ///
    /// # Errors
    /// The member's answer; `CKR_OBJECT_HANDLE_INVALID` for one that was destroyed since it was found, or whose handle
    /// the token has changed.
    pub(crate) fn object_seen(&self, lease: &Lease, backing: ObjectHandle) -> Result<Option<Arc<Object>>> {
        match lease.link.virtual_of(backing) {
            Some(0) => return Ok(None),
            Some(handle) => match self.objects.get(ObjectHandle(handle)) {
                Ok(object) => return Ok(Some(object)),
                // Taken out by a logout, and visible again.
                Err(_) => lease.link.unbind(backing),
            },
            None => {}
        }
        loop {
            if let ControlFlow::Break(object) = self.identify(lease, backing)? {
                return Ok(object);
            }
        }
    }

    /// Reads what a member's object is called, and says what it is; goes on where it was renamed in between.
    fn identify(&self, lease: &Lease, backing: ObjectHandle) -> Result<ControlFlow<Option<Arc<Object>>>> {
        let Some((traits, token, private)) = self.read_whole(lease.on(), backing)? else {
            return Ok(ControlFlow::Break(None));
        };
        if !token {
            // Somebody else's session object, or a throw-away of a proof: handles of these are used again.
            return Ok(ControlFlow::Break(None));
        }
        if is_ours(&traits.label, &traits.id) {
            lease.link.bind(backing, 0);
            return Ok(ControlFlow::Break(None));
        }
        // Of two threads that see it for the first time one says what it is.
        let _one = lease.link.behind(&lease.link.identifying)?;
        match lease.link.virtual_of(backing) {
            Some(0) => return Ok(ControlFlow::Break(None)),
            Some(handle) => {
                if let Ok(object) = self.objects.get(ObjectHandle(handle)) {
                    return Ok(ControlFlow::Break(Some(object)));
                }
            }
            None => {}
        }
        let object = match self.match_row(lease, backing, &traits)? {
            Match::Row(row, trust) => {
                let Some(object) = self.known(&row) else { return Ok(ControlFlow::Break(None)) };
                self.forget_other(lease, backing, &object);
                object.put(place(lease, backing, trust));
                object
            }
            // The ledger may have been asked for a name that is no longer the object's.
            Match::Destroyed | Match::Dying | Match::Foreign
                if self.read_traits(lease.on(), backing)?.0 != traits =>
            {
                return Ok(ControlFlow::Continue(()));
            }
            Match::Destroyed => {
                lease.link.bind(backing, 0);
                return Ok(ControlFlow::Break(None));
            }
            // It may yet stay: every member may refuse that.
            Match::Dying => return Ok(ControlFlow::Break(None)),
            // It may be from before it was destroyed here.
            Match::Foreign if lease.member.set_back.load(Ordering::Acquire) => {
                return Ok(ControlFlow::Break(None));
            }
            // It is being made, or whoever made it died.
            Match::Foreign if self.has_no_value(lease, backing, &traits) => {
                return Ok(ControlFlow::Break(None));
            }
            Match::Foreign => self.foreign(lease, backing, traits, private)?,
        };
        lease.link.bind(backing, object.handle.0);
        Ok(ControlFlow::Break(Some(object)))
    }

    /// The virtual object of a row; `None` where it was destroyed since the row was read, and the object may have been taken
    /// out already.
    pub(super) fn known(&self, row: &ObjectRow) -> Option<Arc<Object>> {
        let object = self.objects.add(Origin::Ledger(row.id), row_traits(row), row.private, None);
        (object.has_places() || !self.is_gone(&object)).then_some(object)
    }

    /// An object that the ledger does not know: one with its equals on other members, or alone, or in conflict.
    fn foreign(
        &self,
        lease: &Lease,
        backing: ObjectHandle,
        traits: Traits,
        private: bool,
    ) -> Result<Arc<Object>> {
        let here = place(lease, backing, Trust::Proven);
        let object = self.objects.add(Origin::Foreign, traits.clone(), private, Some(here));
        lease.link.bind(backing, object.handle.0);
        lease.member.set_foreign(true);
        let mut verifier = None;
        for member in self.up().filter(|m| m.index != lease.member.index) {
            let Ok(there) = self.lease(member) else { continue };
            // What goes wrong on the other member is its own: the object is served from here, and compared when it is seen
            // there.
            let trouble = |rv| _ = self.failed(member, &there.link, Function::FindObjects, rv);
            let others = match self.with_traits(&there, &traits) {
                Ok(others) => others,
                Err(rv) => {
                    trouble(rv);
                    continue;
                }
            };
            for other in others {
                let known = there.link.virtual_of(other).and_then(|h| self.objects.get(ObjectHandle(h)).ok());
                if known.as_ref().is_some_and(|o| {
                    o.origin != Origin::Foreign
                        || o.place(lease.member.index, lease.link.generation).is_some()
                }) {
                    continue;
                }
                // One of the group's own is not for this one to be compared with.
                if known.is_none() {
                    match self.match_row(&there, other, &traits) {
                        Ok(Match::Foreign) if !member.set_back.load(Ordering::Acquire) => {}
                        Ok(Match::Foreign | Match::Row(..) | Match::Destroyed | Match::Dying) => continue,
                        Err(rv) => {
                            trouble(rv);
                            break;
                        }
                    }
                }
                if verifier.is_none() {
                    verifier = Some(self.make_verifier(lease, backing, traits.class, Known::default())?);
                }
                let outcome = match &verifier {
                    Some(Some(verifier)) => match self.prove(&there, other, traits.class, verifier) {
                        Ok(outcome) => outcome,
                        Err(rv) => {
                            trouble(rv);
                            break;
                        }
                    },
                    _ => Outcome::Unproven("no challenge fits this key".into()),
                };
                match outcome {
                    Outcome::Same => {
                        // Two threads may find each other's at once: the one that was here first stays.
                        let _one = self.joining.lock().unwrap_or_else(PoisonError::into_inner);
                        let is_in = |o: &Object| self.objects.get(o.handle).is_ok();
                        if let Some(known) = known.filter(|k| is_in(k)) {
                            if known.handle.0 < object.handle.0 {
                                self.forget_object(&object);
                                known.put(here);
                                lease.link.bind(backing, known.handle.0);
                                return Ok(known);
                            }
                            self.forget_object(&known);
                        }
                        object.put(place(&there, other, Trust::Proven));
                        there.link.bind(other, object.handle.0);
                        break;
                    }
                    Outcome::Different => {
                        let rival = known.unwrap_or_else(|| {
                            let rival = self.objects.add(
                                Origin::Foreign,
                                traits.clone(),
                                private,
                                Some(place(&there, other, Trust::Proven)),
                            );
                            there.link.bind(other, rival.handle.0);
                            member.set_foreign(true);
                            rival
                        });
                        rival.set_conflicted();
                        object.set_conflicted();
                        self.reporter.conflict(member.name(), &traits.label);
                    }
                    Outcome::Unproven(reason) => {
                        tracing::warn!(group = %self.config.label, member = member.name(), label = %String::from_utf8_lossy(&traits.label), reason,
                            "objects of the same label and id on two members cannot be compared: both are shown");
                    }
                }
            }
        }
        Ok(object)
    }

    /// An object is taken out: nothing of it is remembered, and it is counted no more where it was alone. Of two threads
    /// that take it out one does.
    pub(crate) fn forget_object(&self, object: &Object) {
        if !self.objects.remove(object) {
            return;
        }
        self.public_halves.pin().remove(&object.handle);
        self.again.forget(object);
        match object.origin {
            Origin::Ledger(_) => {}
            Origin::Foreign => _ = self.foreign_verifiers().remove(&object.handle),
            Origin::Session(_) if object.moves() => {
                object.take_places().into_iter().for_each(|place| self.left_behind(object, place));
            }
            Origin::Session(_) => {
                for member in object.members().into_iter().filter_map(|m| self.members.get(m)) {
                    self.host_less(member);
                }
            }
        }
    }

    pub(super) fn foreign_verifiers(&self) -> MutexGuard<'_, HashMap<ObjectHandle, Verifier>> {
        self.foreign_verifiers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Challenges one copy.
    ///
    /// # Errors
    /// The member's answer.
    pub(crate) fn prove(
        &self,
        lease: &Lease,
        handle: ObjectHandle,
        class: Ulong,
        verifier: &Verifier,
    ) -> Result<Outcome> {
        Ok(self.proof(lease, handle, class, verifier)?.outcome)
    }

    /// As [`prove`](Self::prove), with what it was shown by.
    ///
    /// # Errors
    /// The member's answer.
    pub(super) fn proof(
        &self,
        lease: &Lease,
        handle: ObjectHandle,
        class: Ulong,
        verifier: &Verifier,
    ) -> Result<Proof> {
        self.challenge(lease, class, |challenge| proof::prove(challenge, handle, class, verifier))
    }

    /// What copies of an object must answer, as it is on one member; `None` when nothing can be asked of it.
    ///
    /// # Errors
    /// The member's answer.
    pub(crate) fn make_verifier(
        &self,
        lease: &Lease,
        handle: ObjectHandle,
        class: Ulong,
        known: Known<'_>,
    ) -> Result<Option<Verifier>> {
        self.challenge(lease, class, |challenge| proof::make_verifier(challenge, handle, class, known))
    }

    /// Challenges an object of this class, with the PIN that its use may want on this member.
    pub(super) fn challenge<T>(
        &self,
        lease: &Lease,
        class: Ulong,
        f: impl FnOnce(Challenge<'_>) -> Result<T>,
    ) -> Result<T> {
        let pin = self.proof_pin(lease, class);
        f(Challenge {
            on: lease.on(),
            nonce: self.nonce()?,
            pin: pin.as_ref(),
            group_key: lease.link.group_keys().map(|k| k.extractable),
        })
        .inspect_err(|rv| self.proof_ended(lease, pin.as_ref(), *rv))
    }

    /// Whether a search has to ask this member too: it has objects that no other member has, or may have.
    pub(crate) fn has_more(&self, member: &Member) -> bool {
        member.alone.load(Ordering::Relaxed) > 0 || member.foreign.load(Ordering::Relaxed)
    }

    /// The members that are taken out and have session objects that no other member has: those are still used there.
    pub(crate) fn drained_hosts(&self) -> impl Iterator<Item = &Arc<Member>> {
        let hosts = |m: &&Arc<Member>| {
            m.state() == State::Drained && m.alone.load(Ordering::Relaxed) > 0 && m.link().is_some()
        };
        self.members.seats().filter(hosts)
    }

    /// The member that is up and has the most session objects, if there are any.
    pub(crate) fn session_home(&self) -> Option<usize> {
        let hosts = self.up().map(|m| (m.alone.load(Ordering::Relaxed), m.index));
        hosts.filter(|(objects, _)| *objects > 0).max_by_key(|(objects, _)| *objects).map(|(_, index)| index)
    }

    /// A member hosts one more object that no other member has.
    pub(crate) fn host_more(&self, member: &Member) {
        member.alone.fetch_add(1, Ordering::Relaxed);
    }

    /// One of those went.
    pub(crate) fn host_less(&self, member: &Member) {
        member.host_less();
    }

    /// What the ledger answers in place of a member, among these types.
    pub(crate) fn remembered(&self, id: ObjectId, types: &[AttributeType]) -> Option<Template> {
        if !types.iter().any(|t| DIFFER.contains(t)) {
            return None;
        }
        let row = self.ledger.as_ref()?.object(id).ok().flatten()?;
        let mut answers: Template = row.template.into_iter().filter(|a| DIFFER.contains(&a.kind)).collect();
        answers.push(Attribute::bytes(ck::CKA_UNIQUE_ID, id.to_string().into_bytes()));
        Some(answers)
    }
}

/// What differs between the copies of an object, and is answered from the ledger (guarantee G8).
pub(crate) const DIFFER: [AttributeType; 6] = [
    ck::CKA_UNIQUE_ID,
    ck::CKA_LOCAL,
    ck::CKA_CHECK_VALUE,
    ck::CKA_VALUE_LEN,
    ck::CKA_KEY_GEN_MECHANISM,
    ck::CKA_VALUE_BITS,
];

pub(super) fn place(lease: &Lease, handle: ObjectHandle, trust: Trust) -> Place {
    Place { member: lease.member.index, generation: lease.link.generation, handle, trust }
}
