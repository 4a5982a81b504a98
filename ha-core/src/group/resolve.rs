//! Objects of one name that are not one: which of them stays is an operator's choice, and the others are destroyed.
//!
//! What the ledger knows stays, and is what a member's copy must be; where it knows none, what the chosen member has stays.
//! Only what is proven to be another object goes: what cannot be told apart is left.

use ha_token::{Attribute, Function, ObjectHandle, Result, Rv, Ulong, ck};

use super::copies::row_traits;
use super::{Group, Lease, Object, Place, Traits, Who};
use crate::policy::failure::{Class, classify};
use crate::replica::is_ours;
use crate::replica::ledger::Ledger;
use crate::replica::proof::{Known, Outcome};
use crate::replica::verifier::Verifier;

/// What an operator calls the objects that are not one: by label, by id, or by both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// `CKA_LABEL`.
    pub label: Option<Vec<u8>>,
    /// `CKA_ID`; `CKA_APPLICATION` of data objects.
    pub id: Option<Vec<u8>>,
}

/// What becomes of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is what stays, or the same.
    Stays,
    /// It is another one: it was destroyed, or would be.
    Goes,
    /// It is another one, and could not be destroyed: the member's answer.
    Refused(Rv),
    /// It cannot be told whether it is another one: it is left.
    Unclear,
}

/// One object of that name on one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    /// The member.
    pub member: String,
    /// `CKA_CLASS`.
    pub class: Ulong,
    /// `CKA_ID`; `CKA_APPLICATION` of data objects.
    pub id: Vec<u8>,
    /// `CKA_LABEL`.
    pub label: Vec<u8>,
    /// Digest of what identifies it, where it has a public part or content: a secret key answers each challenge otherwise.
    pub fingerprint: Option<[u8; 32]>,
    /// What becomes of it.
    pub fate: Fate,
    /// Its handle, in this connection of the member.
    handle: (u64, ObjectHandle),
}

/// An object that was found on a member.
struct Found<'l> {
    lease: &'l Lease,
    handle: ObjectHandle,
    traits: Traits,
}

impl Group {
    /// Of the objects of a name tells those on other members that are proven to be other ones than what `keep` has, and destroys
    /// those of them that are among `agreed`: as an earlier call has told them. The user is logged in. Answers all objects of that
    /// name on the members that are up; empty where `keep` has none of them.
    ///
    /// # Errors
    /// `CKR_USER_NOT_LOGGED_IN`; `CKR_ARGUMENTS_BAD` for a name that says nothing; `CKR_TOKEN_NOT_PRESENT` where `keep` is not up;
    /// `CKR_KEY_CHANGED` where what it has is not what the ledger knows; the ledger's; the members' answers that say that one
    /// cannot be used. What was destroyed by then is.
    pub fn resolve_conflict(&self, named: &Named, keep: &str, agreed: &[Rival]) -> Result<Vec<Rival>> {
        if self.login.who() != Who::User {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        let ledger = self.ledger()?;
        let mut wanted = vec![Attribute::bool(ck::CKA_TOKEN, true)];
        wanted.extend(named.label.iter().map(|label| Attribute::bytes(ck::CKA_LABEL, label.clone())));
        if *named == Named::default() {
            return Err(Rv::ARGUMENTS_BAD);
        }
        let is_named =
            |t: &Traits| named.id.as_ref().is_none_or(|id| **id == *t.id) && !is_ours(&t.label, &t.id);
        let mut leases = Vec::new();
        for member in self.up() {
            leases.push(self.sound_lease(member)?);
        }
        let mut found = Vec::new();
        for lease in &leases {
            for handle in lease.find(&wanted)? {
                let read = self.read_whole(lease.on(), handle)?;
                let traits = read.map(|(traits, ..)| traits).filter(is_named);
                found.extend(traits.map(|traits| Found { lease, handle, traits }));
            }
        }
        if !leases.iter().any(|lease| lease.member.name() == keep) {
            return Err(Rv::TOKEN_NOT_PRESENT);
        }
        let mut rivals = Vec::new();
        let mut names: Vec<&Traits> = Vec::new();
        for Found { traits, .. } in &found {
            if !names.contains(&traits) {
                names.push(traits);
            }
        }
        for traits in names {
            let called: Vec<&Found<'_>> = found.iter().filter(|f| f.traits == *traits).collect();
            let kept: Vec<&Found<'_>> =
                called.iter().copied().filter(|f| f.lease.member.name() == keep).collect();
            if kept.is_empty() {
                continue;
            }
            let stays = self.what_stays(ledger, traits, &kept)?;
            for one in called {
                let mut rival = self.judge_rival(one, &stays, keep)?;
                if rival.fate == Fate::Goes && agreed.contains(&rival) {
                    rival.fate = self.destroy_rival(ledger, one.lease, one.handle)?;
                }
                rivals.push(rival);
            }
        }
        Ok(rivals)
    }

    /// What the objects of these names have to answer to stay: what the ledger knows, and what is kept besides. `None` for one
    /// that cannot be asked.
    fn what_stays(
        &self,
        ledger: &Ledger,
        traits: &Traits,
        kept: &[&Found<'_>],
    ) -> Result<Vec<Option<Verifier>>> {
        let rows = ledger
            .find(traits.class, traits.key_type, &traits.id, &traits.label)
            .map_err(|e| self.ledger_failed(e))?;
        let rows = rows.iter().filter(|row| !row.is_destroyed() && row_traits(row) == *traits);
        let mut stays: Vec<Option<Verifier>> = rows.map(|row| row.verifier()).collect();
        let is_known = !stays.is_empty();
        let mut has_it = !is_known;
        for one in kept {
            if is_known && self.told_apart(one, &stays)? == Some(false) {
                has_it = true;
                continue;
            }
            stays.push(self.make_verifier(one.lease, one.handle, traits.class, Known::default())?);
        }
        if has_it { Ok(stays) } else { Err(Rv::KEY_CHANGED) }
    }

    /// Whether an object is another one than each that stays; `None` where that cannot be told.
    fn told_apart(&self, one: &Found<'_>, stays: &[Option<Verifier>]) -> Result<Option<bool>> {
        let mut is_clear = !stays.is_empty();
        for verifier in stays {
            let outcome = match verifier {
                Some(verifier) => self.prove(one.lease, one.handle, one.traits.class, verifier)?,
                None => Outcome::Unproven(String::new()),
            };
            match outcome {
                Outcome::Same => return Ok(Some(false)),
                Outcome::Different => {}
                Outcome::Unproven(_) => is_clear = false,
            }
        }
        Ok(is_clear.then_some(true))
    }

    fn judge_rival(&self, one: &Found<'_>, stays: &[Option<Verifier>], keep: &str) -> Result<Rival> {
        let Found { lease, handle, traits } = one;
        let own = self.make_verifier(lease, *handle, traits.class, Known::default())?;
        let fate = match self.told_apart(one, stays)? {
            _ if lease.member.name() == keep => Fate::Stays,
            Some(false) => Fate::Stays,
            Some(true) => Fate::Goes,
            None => Fate::Unclear,
        };
        Ok(Rival {
            member: lease.member.name().to_owned(),
            class: traits.class,
            id: traits.id.to_vec(),
            label: traits.label.to_vec(),
            fingerprint: own.as_ref().filter(|v| v.is_identity()).map(Verifier::fingerprint),
            fate,
            handle: (lease.link.generation, *handle),
        })
    }

    /// Whether another object still stands beside one that is in conflict: an operator may have destroyed it since. Each is looked
    /// for where it was seen.
    pub(super) fn is_still_in_conflict(&self, object: &Object) -> bool {
        let traits = object.traits();
        let is_rival = |o: &Object| o.is_conflicted() && o.handle != object.handle && o.traits() == traits;
        let is_there = |place: Place| {
            let Some(member) = self.members.get(place.member).filter(|m| !m.has_left()) else { return false };
            // Where it cannot be looked for it may be.
            let Ok(lease) = self.lease(member) else { return true };
            if !member.is_in(place.generation) {
                return true;
            }
            match self.read_traits(lease.on(), place.handle) {
                Ok((there, ..)) => there == *traits,
                // A token that has lost its login, or itself, shows nothing.
                Err(Rv::OBJECT_HANDLE_INVALID) => {
                    let session = lease.token().session_info(lease.session);
                    let is_in = session.is_ok_and(|s| s.state == ck::CKS_RW_USER_FUNCTIONS);
                    !is_in || self.looks_alive(member, &lease.link).is_err()
                }
                Err(_) => true,
            }
        };
        let rivals = self.objects.select(is_rival);
        let is_one_there = rivals.iter().flat_map(|rival| rival.places()).any(is_there);
        if !is_one_there {
            object.set_not_conflicted();
        }
        is_one_there
    }

    fn destroy_rival(&self, ledger: &Ledger, lease: &Lease, handle: ObjectHandle) -> Result<Fate> {
        let member = &lease.member;
        let lock = ledger.member_lock(member.name(), &*self.world, &|| false);
        let _host = lock.map_err(|e| self.ledger_failed(e))?;
        match lease.token().destroy_object(lease.session, handle) {
            Ok(()) => {}
            Err(rv) if classify(Function::DestroyObject, rv) == Class::Member => return Err(rv),
            Err(rv) => return Ok(Fate::Refused(rv)),
        }
        let known =
            lease.link.virtual_of(handle).and_then(|known| self.objects.get(ObjectHandle(known)).ok());
        lease.link.unbind(handle);
        if let Some(object) = known {
            object.forget(member.index);
        }
        // What it should have it is given when it is next brought up to date.
        member.falls_behind();
        Ok(Fate::Goes)
    }
}
