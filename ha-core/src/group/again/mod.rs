//! Session objects that are made again on the member that takes over (`session_objects = "replay"`): what is kept of
//! each, for as long as it lives.
//!
//! Of a key whose value no application gave, its blob: a ciphertext. Of what was created, the template; a value in it that
//! is a secret is in locked memory.

mod kept;
mod made;
mod taken;

pub(crate) use taken::Made;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use ha_member::Secret;
use ha_token::{Attribute, AttributeType, ObjectHandle, SessionHandle, Template, Ulong};
use zeroize::Zeroize;

use super::{Group, Lease, Object, Origin, Place};
use crate::config::SessionObjects;
use crate::mutants::wrong;
use crate::policy::balance::MAX_MEMBERS;
use crate::replica::ledger::Blob;
use crate::replica::verifier::Verifier;
use crate::sync::Mutex;

/// What is kept of one object, at most, ...
const MOST_OF_ONE: usize = 64 << 10;
/// ... and of all of a group.
const MOST_OF_ALL: usize = 16 << 20;

/// Why an object stays where it is that is over one of these.
const TOO_LARGE: &str = "it is too large, or all of them are";

/// All that is needed to make a session object again.
pub(crate) struct Again {
    class: Ulong,
    /// What it must answer; `None` where its value is given.
    verifier: Option<Verifier>,
    /// What differs when it is made again: answered as it was at first.
    told: Template,
    kept: Mutex<Kept>,
}

/// What changes with the object.
struct Kept {
    /// Without its secret values.
    template: Template,
    source: Source,
    /// Counts its changes.
    changes: u64,
    /// It has become too large: nothing of it is kept any more.
    given_up: bool,
}

/// Where the value comes from.
#[derive(Clone)]
enum Source {
    /// The template has it, with these.
    Values(Arc<Values>),
    /// It is unwrapped.
    Blob(Arc<Ciphertext>),
}

/// Secret values of a template, each with its place in it.
struct Values {
    /// `None` where there are none: each secret has a page of its own.
    bytes: Option<Secret>,
    parts: Vec<(usize, AttributeType, Range<usize>)>,
}

/// A wrapped key, wiped when it is let go of.
struct Ciphertext(Blob);

impl Drop for Ciphertext {
    fn drop(&mut self) {
        self.0.bytes.zeroize();
    }
}

/// The backing sessions that own what was made again of one virtual session: one for each member, by its index, behind a lock
/// that is held while something is made there. Who waits for a member that hangs keeps nobody from another one.
struct Owners {
    /// The virtual session is closed.
    closed: AtomicBool,
    on: Box<[Mutex<Option<Lease>>]>,
}

impl Owners {
    fn new() -> Self {
        // Members may join meanwhile.
        Owners { closed: AtomicBool::new(false), on: (0..MAX_MEMBERS).map(|_| Mutex::default()).collect() }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// What is kept of a group's session objects. Nothing, where they stay on their members.
#[derive(Default)]
pub(super) struct Agains {
    records: Mutex<HashMap<ObjectHandle, Arc<Again>>>,
    owners: Mutex<HashMap<SessionHandle, Arc<Owners>>>,
    bytes: AtomicUsize,
    /// Why some objects are lost with their member: told once each.
    told: Mutex<HashSet<&'static str>>,
}

impl Agains {
    fn records(&self) -> MutexGuard<'_, HashMap<ObjectHandle, Arc<Again>>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_owners(&self) -> MutexGuard<'_, HashMap<SessionHandle, Arc<Owners>>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, object: &Object) -> Option<Arc<Again>> {
        if !object.moves() {
            return None;
        }
        self.records().get(&object.handle).cloned()
    }

    /// An object is no more: nothing of it is kept.
    pub(super) fn forget(&self, object: &Object) {
        if object.moves() {
            let gone = self.records().remove(&object.handle);
            if let Some(gone) = gone {
                self.bytes.fetch_sub(gone.size(), Ordering::Relaxed);
            }
        }
    }
}

impl Group {
    /// Whether session objects are made again on the member that takes over.
    pub(crate) fn replays_session_objects(&self) -> bool {
        self.config.session_objects == SessionObjects::Replay
    }

    /// From now on a session object can be made again.
    pub(crate) fn remember_session_object(&self, object: &Object, again: Again) {
        let Origin::Session(session) = object.origin else { return };
        let size = again.size();
        let all = self.again.bytes.fetch_add(size, Ordering::Relaxed) + size;
        if size > MOST_OF_ONE || all > MOST_OF_ALL {
            self.again.bytes.fetch_sub(size, Ordering::Relaxed);
            self.stays(TOO_LARGE);
            return;
        }
        self.again.all_owners().entry(session).or_insert_with(|| Arc::new(Owners::new()));
        self.again.records().insert(object.handle, Arc::new(again));
        object.set_moves();
        // Who takes it out of the table forgets what is kept of it, before this or after.
        if self.objects.get(object.handle).is_err() {
            self.again.forget(object);
        }
    }

    /// A virtual session is closed: what was made again of it goes with the sessions that own it.
    pub(crate) fn session_closed(&self, session: SessionHandle) {
        if !self.replays_session_objects() {
            return;
        }
        let Some(owners) = self.again.all_owners().remove(&session) else { return };
        owners.closed.store(true, Ordering::Release);
        for owner in &owners.on {
            // Who makes something in it is waited for; who comes later sees that it is closed.
            let owner = owner.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(mut owner) = owner {
                owner.set_busy(true); // closed, not lent again: the token destroys the session's objects with it
            }
        }
    }

    /// The same at the end of the group, without a call to a member.
    pub(crate) fn session_left(&self, session: SessionHandle) {
        if self.replays_session_objects() {
            drop(self.again.all_owners().remove(&session));
        }
    }

    /// The group ends: nothing is kept of any.
    pub(super) fn forget_session_objects(&self) {
        if self.replays_session_objects() {
            self.again.records().clear();
        }
    }

    /// An object is lost with its member, although it was wanted otherwise: said once for each reason.
    fn stays(&self, why: &'static str) {
        let is_new = self.again.told.lock().unwrap_or_else(PoisonError::into_inner).insert(why);
        if is_new {
            tracing::warn!(group = %self.config.label, why,
                "session_objects = \"replay\": a session object cannot be made again elsewhere, and is lost with its member");
        }
    }

    /// What is answered of a session object in place of its member, among these types.
    pub(crate) fn told_of(&self, object: &Object, types: &[AttributeType]) -> Option<Template> {
        let again = self.again.record(object)?;
        Some(again.told.iter().filter(|a| types.contains(&a.kind)).cloned().collect())
    }

    /// Whether nothing forbids that a session object is destroyed, and there is no copy that a member would have to be
    /// told of.
    pub(crate) fn is_gone_already(&self, object: &Object) -> bool {
        !self.is_live(object)
            && self.again.record(object).is_some_and(|again| {
                let kept = again.kept();
                let may = ha_token::TemplateExt::get_bool(&kept.template, ha_token::ck::CKA_DESTROYABLE);
                may != Some(false)
            })
    }

    /// Whether a session object is on a member that is up, in its connection of now.
    pub(super) fn is_live(&self, object: &Object) -> bool {
        self.live_seats(object) != 0
    }

    /// The members that are up and have a session object in their connections of now, a bit for each.
    pub(super) fn live_seats(&self, object: &Object) -> u32 {
        object.seats_where(|member, generation| {
            self.members.get(member).is_some_and(|m| m.is_up() && m.is_in(generation))
        })
    }

    /// An attribute of a session object was changed on this member: what is made again is so too, and what is elsewhere is
    /// out of date.
    pub(crate) fn session_object_changed(&self, lease: &Lease, object: &Object, changes: &[Attribute]) {
        let Some(again) = self.again.record(object) else { return };
        let mut kept = again.kept();
        let before = kept.size();
        if !wrong!(SessionObjectStaysStale) {
            kept.change(again.class, changes);
        }
        let (after, told) = (kept.size(), again.size_of_told());
        self.again.bytes.fetch_add(after, Ordering::Relaxed);
        let all = self.again.bytes.fetch_sub(before, Ordering::Relaxed) - before;
        kept.given_up = after + told > MOST_OF_ONE || (after > before && all > MOST_OF_ALL);
        let given_up = kept.given_up;
        let elsewhere = object.forget_others(lease.member.index);
        drop(kept);
        if given_up {
            self.stays(TOO_LARGE);
            self.again.forget(object);
            object.set_stays();
        }
        self.discard_copies(object, elsewhere);
    }

    /// Copies of a session object are used no more, and destroyed where they can be: a member that is gone has taken its own
    /// with it, or lets go of it with the session.
    pub(crate) fn discard_copies(&self, object: &Object, places: Vec<Place>) {
        for place in places {
            let Some(member) = self.members.get(place.member) else { continue };
            // The token may have given the handle to another object since.
            let is_its = member.link().is_some_and(|link| {
                link.generation == place.generation && link.virtual_of(place.handle) == Some(object.handle.0)
            });
            self.left_behind(object, place);
            if is_its
                && member.is_up()
                && let Ok(lease) = self.lease(member)
                && lease.link.generation == place.generation
            {
                lease.on().discard(place.handle);
            }
        }
    }

    /// A copy of a session object is used no more: no search shows it, and it goes with its session.
    pub(super) fn left_behind(&self, object: &Object, place: Place) {
        let Some(member) = self.members.get(place.member) else { return };
        self.host_less(member);
        if let Some(link) = member.link()
            && link.generation == place.generation
        {
            link.unbind_of(place.handle, object.handle.0);
        }
    }

    /// A member has given this handle to a session object that it has just made. What had it before is not there any more, and
    /// its handle is not to be taken for this one: the token has lost it, with a session or a login perhaps, and uses its number
    /// again.
    pub(crate) fn now_is(&self, lease: &Lease, handle: ObjectHandle, object: &Object) {
        if let Some(before) = lease.link.virtual_of(handle).filter(|v| *v != object.handle.0)
            && let Ok(before) = self.objects.get(ObjectHandle(before))
            && before.place(lease.member.index, lease.link.generation).is_some_and(|p| p.handle == handle)
        {
            match before.origin {
                Origin::Session(_) => {
                    let gone = before.forget_where(|m, _| m == lease.member.index);
                    gone.iter().for_each(|_| self.host_less(&lease.member));
                }
                Origin::Ledger(_) | Origin::Foreign => before.forget_stale(&lease.member, &lease.link),
            }
        }
        lease.link.bind(handle, object.handle.0);
    }
}
