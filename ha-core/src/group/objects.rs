//! Virtual objects: one for all copies of a key, with a handle that is never used again.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use crate::map::{Map, RandomState, map};
use ha_token::{ObjectHandle, Rv, SessionHandle, Ulong};
use hashbrown::HashTable;
use smallvec::SmallVec;

use super::{Link, Member};
use crate::mutants::wrong;
use crate::replica::ledger::ObjectId;
use crate::sync::Mutex;

/// What a virtual object stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A token object of the group's own, known to the ledger.
    Ledger(ObjectId),
    /// A token object that the ledger does not know.
    Foreign,
    /// A session object, gone with the virtual session that owns it.
    Session(SessionHandle),
}

/// How far a copy on one member may be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// Proven, or with nothing to be compared with: may be used.
    Proven,
    /// Matched by its attributes only: to be challenged before it is used or destroyed.
    Unproven,
    /// Failed its proof: never used.
    Conflict,
}

/// One copy, on one member, in one connection of that member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The member's index in the group.
    pub member: usize,
    /// The connection that the handle belongs to.
    pub generation: u64,
    /// The member's own handle.
    pub handle: ObjectHandle,
    /// Whether it may be used.
    pub trust: Trust,
}

/// What identifies an object on a token, apart from its value.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Traits {
    /// `CKA_CLASS`.
    pub class: Ulong,
    /// `CKA_KEY_TYPE`, for keys; `CKA_CERTIFICATE_TYPE` for certificates; else all bits set.
    pub key_type: Ulong,
    /// `CKA_ID`, empty if there is none.
    pub id: Box<[u8]>,
    /// `CKA_LABEL`, empty if there is none.
    pub label: Box<[u8]>,
}

/// A virtual object. All methods may be called from any thread.
pub struct Object {
    /// Its virtual handle.
    pub handle: ObjectHandle,
    /// What it stands for.
    pub origin: Origin,
    /// Whether `CKA_PRIVATE` is true: invisible without the user's login.
    pub private: bool,
    flags: AtomicU8,
    known: Mutex<Known>,
}

/// What is known of an object, in as few bytes as can be: there may be many objects.
struct Known {
    class: Ulong,
    key_type: Ulong,
    /// `CKA_ID`, and `CKA_LABEL` after it.
    names: Box<[u8]>,
    id_len: u32,
    /// Most objects are on two members.
    places: SmallVec<[PackedPlace; 2]>,
}

/// No connection's.
const NO_GENERATION: u64 = 0;

/// A [`Place`].
#[derive(Clone, Copy)]
struct PackedPlace {
    handle: ObjectHandle,
    generation: u32,
    member: u8,
    trust: Trust,
}

const CONFLICTED: u8 = 1;
const MOVES: u8 = 2;
const SEALED: u8 = 4;
const USED: u8 = 8;
const GONE: u8 = 16;

impl Known {
    fn new(traits: &Traits) -> Self {
        Known {
            class: traits.class,
            key_type: traits.key_type,
            names: [&*traits.id, &*traits.label].concat().into(),
            id_len: u32::try_from(traits.id.len()).unwrap_or(u32::MAX),
            places: SmallVec::new(),
        }
    }

    fn traits(&self) -> Traits {
        let (id, label) = self.names.split_at_checked(self.id_len as usize).unwrap_or((&self.names, &[]));
        Traits { class: self.class, key_type: self.key_type, id: id.into(), label: label.into() }
    }
}

impl PackedPlace {
    /// A group has at most 32 members, and a number of connections that 32 bits can count.
    fn new(place: Place) -> Self {
        PackedPlace {
            handle: place.handle,
            generation: place.generation as u32,
            member: place.member as u8,
            trust: place.trust,
        }
    }

    fn is_on(&self, member: usize) -> bool {
        usize::from(self.member) == member
    }

    fn unpack(&self) -> Place {
        Place {
            member: usize::from(self.member),
            generation: u64::from(self.generation),
            handle: self.handle,
            trust: self.trust,
        }
    }
}

impl Object {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its identifying attributes now.
    pub fn traits(&self) -> Arc<Traits> {
        Arc::new(self.known().traits())
    }

    /// After `C_SetAttributeValue` changed id or label.
    pub fn set_traits(&self, traits: Traits) {
        let mut known = self.known();
        let places = std::mem::take(&mut known.places);
        *known = Known { places, ..Known::new(&traits) };
    }

    /// The copy on a member in this connection of it, if it is known.
    pub fn place(&self, member: usize, generation: u64) -> Option<Place> {
        let known = self.known();
        let stale = wrong!(StaleHandle);
        let is_it = |p: &&PackedPlace| p.is_on(member) && (p.generation == generation as u32 || stale);
        let place = known.places.iter().find(is_it)?;
        Some(Place { member, generation, handle: place.handle, trust: place.trust })
    }

    /// Whether any member is known to have held a copy, in any connection.
    pub fn has_places(&self) -> bool {
        !self.known().places.is_empty()
    }

    /// Whether a member is known to have held a copy, in any connection.
    pub fn lives_on(&self, member: usize) -> bool {
        self.known().places.iter().any(|p| p.is_on(member))
    }

    /// The members that may be asked for it, as far as is known: a bit for each.
    #[inline]
    pub fn seats(&self) -> u32 {
        match self.origin {
            // A replicated object may be on a member where its handle is not known yet.
            Origin::Ledger(_) => u32::MAX,
            Origin::Foreign | Origin::Session(_) => {
                self.known().places.iter().fold(0, |seats, p| seats | 1u32 << p.member)
            }
        }
    }

    /// The members known to hold a copy.
    pub fn members(&self) -> Vec<usize> {
        self.known().places.iter().map(|p| usize::from(p.member)).collect()
    }

    /// Every copy that is known.
    pub(super) fn places(&self) -> Vec<Place> {
        self.known().places.iter().map(PackedPlace::unpack).collect()
    }

    /// Records the copy on a member, in place of an older one there.
    pub fn put(&self, place: Place) {
        let mut known = self.known();
        match known.places.iter_mut().find(|p| p.is_on(place.member)) {
            Some(p) => *p = PackedPlace::new(place),
            None => known.places.push(PackedPlace::new(place)),
        }
    }

    /// Forgets the copy on a member.
    pub fn forget(&self, member: usize) {
        self.known().places.retain(|p| !p.is_on(member));
    }

    /// The members with a copy of it in a connection that `f` picks, a bit for each.
    pub(super) fn seats_where(&self, f: impl Fn(usize, u64) -> bool) -> u32 {
        let known = self.known();
        let picked = known.places.iter().filter(|p| f(usize::from(p.member), u64::from(p.generation)));
        picked.fold(0, |seats, p| seats | 1u32 << p.member)
    }

    /// Forgets the copies that `f` picks by member and connection; answers them.
    pub(super) fn forget_where(&self, f: impl Fn(usize, u64) -> bool) -> Vec<Place> {
        let mut gone = Vec::new();
        self.known().places.retain(|p| {
            let goes = f(usize::from(p.member), u64::from(p.generation));
            if goes {
                gone.push(p.unpack());
            }
            !goes
        });
        gone
    }

    /// Forgets the copies on other members than this one; answers them.
    pub(crate) fn forget_others(&self, member: usize) -> Vec<Place> {
        self.forget_where(|m, _| m != member)
    }

    /// Forgets every copy; answers them.
    pub(super) fn take_places(&self) -> Vec<Place> {
        self.forget_where(|_, _| true)
    }

    /// Forgets a handle that the member no longer knows, so that it is looked up again. A copy that failed its proof
    /// stays remembered as such.
    pub(crate) fn forget_stale(&self, member: &Member, link: &Link) {
        if let Some(place) = self.place(member.index, link.generation)
            && place.trust != Trust::Conflict
        {
            match self.origin {
                Origin::Ledger(_) => self.forget(member.index),
                // Which member had it is known from this alone: only the handle is out of date.
                Origin::Foreign => self.put(Place { generation: NO_GENERATION, ..place }),
                // It is made again, where it can be.
                Origin::Session(_) if self.moves() => {
                    self.forget_where(|m, _| m == member.index).iter().for_each(|_| member.host_less());
                }
                // It has no other handle, and this one stays known as its own: another object may be given it.
                Origin::Session(_) => return,
            }
            link.unbind_of(place.handle, self.handle.0);
        }
    }

    /// Whether an object of the same class, label and id that is another key stands beside it: neither is served.
    pub fn is_conflicted(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & CONFLICTED != 0
    }

    /// Marks it as [conflicted](Self::is_conflicted).
    pub fn set_conflicted(&self) {
        self.flags.fetch_or(CONFLICTED, Ordering::Relaxed);
    }

    /// From now on it is not any more.
    pub(super) fn set_not_conflicted(&self) {
        self.flags.fetch_and(!CONFLICTED, Ordering::Relaxed);
    }

    /// Whether it was taken out of the table: its handles may be other objects' by now.
    pub(crate) fn is_taken_out(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & GONE != 0
    }

    /// Whether it is a session object that is made again on the member that takes over.
    #[inline]
    pub fn moves(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & MOVES != 0
    }

    /// From now on it [moves](Self::moves).
    pub(super) fn set_moves(&self) {
        self.flags.fetch_or(MOVES, Ordering::Relaxed);
    }

    /// From now on it stays where it is.
    pub(super) fn set_stays(&self) {
        self.flags.fetch_and(!MOVES, Ordering::Relaxed);
    }

    /// Whether its member could give it out wrapped and nobody is to know: a session key whose template said nothing
    /// about that, so that it can still become a token key on every member. To applications it cannot be extracted.
    pub fn is_sealed(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & SEALED != 0
    }

    /// Marks it as [sealed](Self::is_sealed).
    pub fn seal(&self) {
        self.flags.fetch_or(SEALED, Ordering::Relaxed);
    }

    /// Whether it was used: of an object that the ledger does not know it is remembered from then on what it answers.
    pub(crate) fn is_used(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & USED != 0
    }

    /// Marks it as [used](Self::is_used).
    pub(crate) fn set_used(&self) {
        self.flags.fetch_or(USED, Ordering::Relaxed);
    }
}

/// The group's virtual objects by handle and by ledger identity.
pub struct Objects {
    next: AtomicU64,
    by_handle: Map<Ulong, Arc<Object>>,
    /// The handles of ledger objects, found by their identities, which are kept in the objects alone. Asked when a
    /// member's object is seen for the first time, and not on the way of other calls.
    by_id: Mutex<HashTable<Ulong>>,
    hasher: RandomState,
    changes: AtomicU64,
}

impl Objects {
    /// An empty table. Handles start at 1: 0 is `CK_INVALID_HANDLE`.
    pub fn new() -> Self {
        Objects {
            next: AtomicU64::new(1),
            by_handle: map(),
            by_id: Mutex::default(),
            hasher: RandomState::default(),
            changes: AtomicU64::new(0),
        }
    }

    /// Attributes of objects were changed, or may have been: what a token has agreed to before it may refuse now.
    pub(crate) fn have_changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// How often [that](Self::have_changed) was.
    #[inline]
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Adds an object under a new handle; for a ledger object already there, answers that one.
    pub fn add(&self, origin: Origin, traits: Traits, private: bool, place: Option<Place>) -> Arc<Object> {
        if wrong!(ObjectHandleReused) && self.next.load(Ordering::Relaxed) > 3 {
            self.next.fetch_sub(2, Ordering::Relaxed);
        }
        let handle = self.next.fetch_add(1, Ordering::Relaxed) as Ulong;
        let mut known = Known::new(&traits);
        known.places.extend(place.map(PackedPlace::new));
        let object = Arc::new(Object {
            handle: ObjectHandle(handle),
            origin,
            private,
            flags: AtomicU8::new(0),
            known: Mutex::new(known),
        });
        let Origin::Ledger(id) = origin else {
            self.by_handle.pin().insert(handle, Arc::clone(&object));
            return object;
        };
        let mut ids = self.ids();
        if let Some(there) = self.named(&ids, id) {
            if let Some(place) = place {
                there.put(place);
            }
            return there;
        }
        // Into the map first, and out of it last: the table looks identities up there.
        self.by_handle.pin().insert(handle, Arc::clone(&object));
        ids.insert_unique(self.hasher.hash_one(id), handle, |h| self.hash(*h));
        object
    }

    fn ids(&self) -> MutexGuard<'_, HashTable<Ulong>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hash of the identity of a ledger object.
    fn hash(&self, handle: Ulong) -> u64 {
        match self.by_handle.pin().get(&handle).map(|o| o.origin) {
            Some(Origin::Ledger(id)) => self.hasher.hash_one(id),
            _ => 0,
        }
    }

    fn named(&self, ids: &HashTable<Ulong>, id: ObjectId) -> Option<Arc<Object>> {
        let objects = self.by_handle.pin();
        let is_it = |h: &Ulong| objects.get(h).is_some_and(|o| o.origin == Origin::Ledger(id));
        objects.get(ids.find(self.hasher.hash_one(id), is_it)?).cloned()
    }

    /// The object of a handle that the application gave.
    ///
    /// # Errors
    /// `CKR_OBJECT_HANDLE_INVALID`; a caller that means a key turns it into the code for that.
    pub fn get(&self, handle: ObjectHandle) -> Result<Arc<Object>, Rv> {
        self.by_handle.pin().get(&handle.0).cloned().ok_or(Rv::OBJECT_HANDLE_INVALID)
    }

    /// The object of a ledger identity, if it has been seen.
    pub fn by_id(&self, id: ObjectId) -> Option<Arc<Object>> {
        self.named(&self.ids(), id)
    }

    /// Takes an object out: its handle is invalid from now on and never given again. Whether it was in.
    pub fn remove(&self, object: &Object) -> bool {
        object.flags.fetch_or(GONE, Ordering::Relaxed);
        if let Origin::Ledger(id) = object.origin
            && let Ok(entry) = self.ids().find_entry(self.hasher.hash_one(id), |h| *h == object.handle.0)
        {
            entry.remove();
        }
        self.by_handle.pin().remove(&object.handle.0).is_some()
    }

    /// The session objects that a virtual session owns.
    pub fn select_session(&self, session: SessionHandle) -> Vec<Arc<Object>> {
        self.select(|o| o.origin == Origin::Session(session))
    }

    /// Every object that `f` picks, in the order of their handles.
    pub fn select(&self, f: impl Fn(&Object) -> bool) -> Vec<Arc<Object>> {
        let mut found: Vec<_> = self.by_handle.pin().values().filter(|o| f(o)).cloned().collect();
        found.sort_by_key(|o| o.handle);
        found
    }
}

impl Default for Objects {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_who_take_an_object_out_one_does() {
        let objects = Objects::new();
        let traits = Traits { class: 0, key_type: 0, id: Box::default(), label: Box::default() };
        let object = objects.add(Origin::Session(SessionHandle(1)), traits, false, None);
        assert!(objects.remove(&object) && !objects.remove(&object));
    }
}
