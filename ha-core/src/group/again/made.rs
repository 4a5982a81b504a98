//! A session object is made again on a member that has no copy of it, when it is used, read or searched for there.

use std::sync::Arc;

use ha_token::{Function, ObjectHandle, Result, Rv, Template, ck};

use super::{Again, Source};
use crate::group::identify::place;
use crate::group::{Group, Lease, Object, Origin, Trust, Who};
use crate::mutants::wrong;
use crate::policy::failure::{Class, classify};
use crate::replica::proof::Outcome;

/// How often it is begun again because the object is changed meanwhile.
const TRIES: usize = 16;

impl Group {
    /// Makes a session object again on a member that has no copy of it, by whoever comes first.
    ///
    /// # Errors
    /// `CKR_OBJECT_HANDLE_INVALID` for one that cannot be made again there; the member's answers.
    pub(in crate::group) fn make_again(&self, lease: &Lease, object: &Object) -> Result<ObjectHandle> {
        let Origin::Session(session) = object.origin else { return Err(Rv::OBJECT_HANDLE_INVALID) };
        let again = self.again.record(object).ok_or(Rv::OBJECT_HANDLE_INVALID)?;
        let owners = self.again.all_owners().get(&session).cloned().ok_or(Rv::OBJECT_HANDLE_INVALID)?;
        let owner = owners.on.get(lease.member.index).ok_or(Rv::OBJECT_HANDLE_INVALID)?;
        let mut owner = lease.link.behind(owner)?;
        if owners.is_closed() {
            return Err(Rv::OBJECT_HANDLE_INVALID);
        }
        for _ in 0..TRIES {
            // Another thread may have been quicker.
            if let Some(there) = object.place(lease.member.index, lease.link.generation) {
                return Ok(there.handle);
            }
            let (template, source, changes) = {
                let kept = again.kept();
                if kept.given_up {
                    return Err(Rv::OBJECT_HANDLE_INVALID);
                }
                (kept.whole(), kept.source.clone(), kept.changes)
            };
            let handle = self.make_in_owner(lease, &mut owner, object, &again, &template, &source)?;
            let kept = again.kept();
            if kept.changes != changes {
                drop(kept);
                lease.on().discard(handle);
                continue;
            }
            if !object.lives_on(lease.member.index) {
                self.host_more(&lease.member);
            }
            self.now_is(lease, handle, object);
            object.put(place(lease, handle, Trust::Proven));
            drop(kept);
            for gone in object.forget_where(|member, generation| {
                self.members.get(member).is_none_or(|m| !m.is_in(generation))
            }) {
                self.left_behind(object, gone);
            }
            if self.objects.get(object.handle).is_err() {
                // Destroyed, closed or logged out meanwhile.
                object.take_places().into_iter().for_each(|place| self.left_behind(object, place));
                lease.link.unbind_of(handle, object.handle.0);
                lease.on().discard(handle);
                return Err(Rv::OBJECT_HANDLE_INVALID);
            }
            tracing::info!(group = %self.config.label, member = lease.member.name(), object = object.handle.0,
                "a session object was made again");
            return Ok(handle);
        }
        Err(Rv::DEVICE_ERROR)
    }

    /// Makes it in the backing session there that owns what is made again of its virtual session.
    fn make_in_owner(
        &self,
        lease: &Lease,
        place: &mut Option<Lease>,
        object: &Object,
        again: &Again,
        template: &Template,
        source: &Source,
    ) -> Result<ObjectHandle> {
        let (mut session, mut keys) = (false, false);
        loop {
            let owner = owner_there(lease, place)?;
            let made = self.make_from(owner, template, source).and_then(|handle| {
                let proven = self.is_it(owner, handle, again);
                if !matches!(proven, Ok(true)) {
                    owner.on().discard(handle);
                }
                Ok(proven?.then_some(handle))
            });
            let rv = match made {
                Ok(Some(handle)) => return Ok(handle),
                // Told already.
                Ok(None) => return Err(Rv::OBJECT_HANDLE_INVALID),
                Err(rv) => rv,
            };
            match classify(Function::CreateObject, rv) {
                // What it owned is gone with it.
                Class::Session if !std::mem::replace(&mut session, true) => {
                    if let Some(mut lost) = place.take() {
                        lost.set_busy(true);
                    }
                }
                // The group keys have other handles since a login was lost.
                Class::Object if !std::mem::replace(&mut keys, true) => {
                    owner.link.set_group_keys(None);
                    self.recall_group_keys(owner)?;
                }
                Class::Session | Class::Login | Class::Capacity | Class::Member => return Err(rv),
                Class::Caller | Class::Object | Class::Ambiguous => {
                    let why = format!(
                        "the session object {:?} cannot be made again on member {}, which answers {rv}",
                        String::from_utf8_lossy(&object.traits().label),
                        lease.member.name()
                    );
                    self.reporter.refused(Function::CreateObject, Rv::OBJECT_HANDLE_INVALID, &why);
                    return Err(Rv::OBJECT_HANDLE_INVALID);
                }
            }
        }
    }

    fn make_from(&self, owner: &Lease, template: &Template, source: &Source) -> Result<ObjectHandle> {
        match source {
            Source::Values(_) => owner.token().create_object(owner.session, template),
            Source::Blob(blob) => {
                if owner.link.group_keys().is_none() {
                    self.recall_group_keys(owner)?;
                    if owner.link.group_keys().is_none() {
                        return Err(Rv::KEY_NOT_WRAPPABLE);
                    }
                }
                self.unwrap_blob(owner, &blob.0, template)
            }
        }
    }

    /// Whether what was made is the object, proven (guarantee G3).
    fn is_it(&self, owner: &Lease, handle: ObjectHandle, again: &Again) -> Result<bool> {
        let Some(verifier) = &again.verifier else {
            return Ok(true);
        };
        let label = || self.read_traits(owner.on(), handle).map(|(traits, ..)| traits.label);
        match self.prove(owner, handle, again.class, verifier)? {
            Outcome::Same => Ok(true),
            Outcome::Different => {
                self.reporter.conflict(owner.member.name(), &label()?);
                Ok(false)
            }
            Outcome::Unproven(reason) => {
                tracing::warn!(group = %self.config.label, member = owner.member.name(), reason,
                    "a session object that was made again cannot be proven: it is not used");
                Ok(false)
            }
        }
    }

    /// Before a search on a member: the session objects that are on no member any more, or on one of `but` only (a bit for
    /// each), are made again there.
    ///
    /// # Errors
    /// The member's answer, where it is the member's.
    pub(crate) fn bring_session_objects(&self, lease: &Lease, but: u32) -> Result<()> {
        if !self.replays_session_objects() || wrong!(SessionObjectNotSought) {
            return Ok(());
        }
        let mut handles: Vec<ObjectHandle> = self.again.records().keys().copied().collect();
        handles.sort_unstable();
        let is_shown = |o: &Arc<Object>| !o.private || self.login.who() == Who::User;
        let objects = handles.into_iter().filter_map(|h| self.objects.get(h).ok()).filter(is_shown);
        let objects: Vec<Arc<Object>> = objects.collect();
        self.forget_lost(&objects);
        for object in objects {
            if self.live_seats(&object) & !but != 0 {
                continue;
            }
            match self.make_again(lease, &object) {
                // It cannot be made again here, which was told; or it is gone.
                Ok(_) | Err(Rv::OBJECT_HANDLE_INVALID) => {}
                // A member that has no room for them has room for a search all the same.
                Err(rv) if classify(Function::CreateObject, rv) == Class::Capacity => {
                    self.stays("a member has no room for it");
                }
                Err(rv) => return Err(rv),
            }
        }
        Ok(())
    }

    /// Whether a member seems to have lost something, and was not asked for its session objects since.
    pub(crate) fn may_have_lost_some(&self) -> bool {
        self.up().filter_map(|m| m.link()).any(|link| link.shaken().is_some())
    }

    /// Members that seem to have lost something are asked for the session objects that they had: with a session, a login or
    /// their handles those may be gone.
    fn forget_lost(&self, objects: &[Arc<Object>]) {
        for member in self.up() {
            let Some(link) = member.link() else { continue };
            let Some(shaken) = link.shaken() else { continue };
            let there = |o: &&Arc<Object>| o.place(member.index, link.generation).is_some();
            if !objects.iter().any(|o| there(&o)) {
                link.has_been_asked(shaken);
                continue;
            }
            let asked = self.sound_lease(member).and_then(|lease| {
                for object in objects.iter().filter(there) {
                    let place = object.place(member.index, lease.link.generation);
                    let Some(place) = place.filter(|_| lease.link.generation == link.generation) else {
                        continue;
                    };
                    match lease.on().read(place.handle, &[ck::CKA_CLASS]) {
                        Err(Rv::OBJECT_HANDLE_INVALID) => {
                            let gone = object.forget_where(|m, _| m == member.index);
                            gone.into_iter().for_each(|place| self.left_behind(object, place));
                        }
                        answer => _ = answer?,
                    }
                }
                Ok(())
            });
            match asked {
                Ok(()) => link.has_been_asked(shaken),
                Err(rv) => _ = self.failed(member, &link, Function::GetAttributeValue, rv),
            }
        }
    }
}

/// The backing session in this connection that owns what is made again of a virtual session, opened if need be.
fn owner_there<'a>(lease: &Lease, place: &'a mut Option<Lease>) -> Result<&'a Lease> {
    // One of an earlier connection owns nothing any more.
    let there = place.take().filter(|owner| owner.link.generation == lease.link.generation);
    Ok(place.insert(match there {
        Some(owner) => owner,
        None => {
            let mut owner = Lease::new(&lease.member, Arc::clone(&lease.link))?;
            owner.own();
            owner
        }
    }))
}
