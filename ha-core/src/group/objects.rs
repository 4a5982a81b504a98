//! Virtual objects: one for all copies of a key, with a handle that is never used again.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::map::{Map, map};
use ha_token::{ObjectHandle, Rv, SessionHandle, Ulong};

use crate::replica::ledger::ObjectId;

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
    traits: Mutex<Arc<Traits>>,
    places: Mutex<Vec<Place>>,
    flags: AtomicU8,
}

const CONFLICTED: u8 = 1;
const SEALED: u8 = 2;

impl Object {
    /// Its identifying attributes now.
    pub fn traits(&self) -> Arc<Traits> {
        Arc::clone(&self.traits.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// After `C_SetAttributeValue` changed id or label.
    pub fn set_traits(&self, traits: Traits) {
        *self.traits.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(traits);
    }

    /// The copy on a member in this connection of it, if it is known.
    pub fn place(&self, member: usize, generation: u64) -> Option<Place> {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.iter().find(|p| p.member == member && p.generation == generation).copied()
    }

    /// Whether a member is known to have held a copy, in any connection.
    pub fn lives_on(&self, member: usize) -> bool {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|p| p.member == member)
    }

    /// The members known to hold a copy.
    pub fn members(&self) -> Vec<usize> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|p| p.member).collect()
    }

    /// Records the copy on a member, in place of an older one there.
    pub fn put(&self, place: Place) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        match places.iter_mut().find(|p| p.member == place.member) {
            Some(p) => *p = place,
            None => {
                places.reserve_exact(1);
                places.push(place);
            }
        }
    }

    /// Forgets the copy on a member.
    pub fn forget(&self, member: usize) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).retain(|p| p.member != member);
    }

    /// Whether an object of the same class, label and id that is another key stands beside it: neither is served.
    pub fn is_conflicted(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & CONFLICTED != 0
    }

    /// Marks it as [conflicted](Self::is_conflicted).
    pub fn set_conflicted(&self) {
        self.flags.fetch_or(CONFLICTED, Ordering::Relaxed);
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
}

/// The group's virtual objects by handle and by ledger identity.
pub struct Objects {
    next: AtomicU64,
    by_handle: Map<Ulong, Arc<Object>>,
    by_id: Map<ObjectId, Ulong>,
}

impl Objects {
    /// An empty table. Handles start at 1: 0 is `CK_INVALID_HANDLE`.
    pub fn new() -> Self {
        Objects { next: AtomicU64::new(1), by_handle: map(), by_id: map() }
    }

    /// Adds an object under a new handle; for a ledger object already there, answers that one.
    pub fn add(&self, origin: Origin, traits: Traits, private: bool, place: Option<Place>) -> Arc<Object> {
        let handle = self.next.fetch_add(1, Ordering::Relaxed) as Ulong;
        let object = Arc::new(Object {
            handle: ObjectHandle(handle),
            origin,
            private,
            traits: Mutex::new(Arc::new(traits)),
            places: Mutex::new(place.into_iter().collect()),
            flags: AtomicU8::new(0),
        });
        self.by_handle.pin().insert(handle, Arc::clone(&object));
        if let Origin::Ledger(id) = origin {
            let ids = self.by_id.pin();
            let first = *ids.get_or_insert(id, handle);
            if first != handle {
                self.by_handle.pin().remove(&handle);
                if let Some(there) = self.by_handle.pin().get(&first) {
                    if let Some(place) = place {
                        there.put(place);
                    }
                    return Arc::clone(there);
                }
            }
        }
        object
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
        let handle = *self.by_id.pin().get(&id)?;
        self.by_handle.pin().get(&handle).cloned()
    }

    /// Takes an object out: its handle is invalid from now on and never given again.
    pub fn remove(&self, object: &Object) {
        self.by_handle.pin().remove(&object.handle.0);
        if let Origin::Ledger(id) = object.origin {
            let ids = self.by_id.pin();
            if ids.get(&id) == Some(&object.handle.0) {
                ids.remove(&id);
            }
        }
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
