//! What a simulated token remembers: the durable half that outlives connections, and each process's volatile half.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ha_token::{ObjectHandle, Result, Rv, SessionHandle, Ulong, ck};

use super::object::Object;
use super::operation::Operation;
use super::pool::RsaPool;
use super::profile::Profile;
use crate::random::Random;

/// A device's profile and everything that changes.
pub(super) struct Shared {
    pub(super) profile: Profile,
    state: Mutex<State>,
}

/// Everything that changes.
pub(super) struct State {
    pub(super) store: Store,
    /// The processes that are, or were, connected: each copy of the module by itself.
    pub(super) processes: BTreeMap<u64, Process>,
}

/// What belongs to the device, whoever is connected.
pub(super) struct Store {
    pub(super) durable: Durable,
    /// The token's own, while another one is in its place.
    pub(super) own: Option<Durable>,
    /// False while the token's files are away.
    pub(super) present: bool,
    /// Whether objects of the token cannot be created.
    pub(super) full: bool,
    /// Whether nothing of the token can be written.
    pub(super) read_only: bool,
    pub(super) random: Random,
    pub(super) pool: RsaPool,
    /// Counts objects: no number is used again, not even after a restore.
    pub(super) last_object: u64,
    /// The number of the next process.
    pub(super) next_process: u32,
    /// The PINs that were accepted.
    pub(super) accepted: u64,
    /// How often which PIN was refused, by its SHA-256.
    pub(super) refused: BTreeMap<[u8; 32], u64>,
}

/// What is on the token's disk.
#[derive(Clone)]
pub(super) struct Durable {
    pub(super) label: String,
    pub(super) serial: String,
    pub(super) so_pin: [u8; 32],
    pub(super) user_pin: Option<[u8; 32]>,
    /// Wrong PINs since the last right one.
    pub(super) so_failures: u32,
    /// The same for the user's.
    pub(super) user_failures: u32,
    pub(super) objects: BTreeMap<u64, Object>,
}

/// Who is logged in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum User {
    So,
    User,
}

/// A connected process: what is gone when it ends or connects anew.
#[derive(Default)]
pub(super) struct Process {
    /// Which of its connections is the one that works; 0 for none.
    pub(super) generation: u64,
    /// How many connections it has made.
    pub(super) connections: u64,
    /// Whether the token was lost since it connected.
    pub(super) broken: bool,
    pub(super) login: Option<User>,
    pub(super) sessions: BTreeMap<Ulong, Session>,
    pub(super) objects: BTreeMap<u64, SessionObject>,
    handles: BTreeMap<Ulong, Place>,
    places: BTreeMap<Place, Ulong>,
    /// Session and object handles are numbered together, as SoftHSM does.
    last_handle: Ulong,
}

/// An open session.
#[derive(Default)]
pub(super) struct Session {
    pub(super) read_write: bool,
    /// At most one of any kind, searches among them, as on SoftHSM.
    pub(super) operation: Option<Operation>,
    /// Whether the operation, if there is one, waits for a context-specific login.
    pub(super) wants_login: bool,
}

/// A session's object.
pub(super) struct SessionObject {
    /// The session that it ends with.
    owner: Ulong,
    /// Whether it ends with the login: what was meant when it was made.
    private: bool,
    object: Object,
}

/// Where an object is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Place {
    Token(u64),
    Session(u64),
}

impl Shared {
    pub(super) fn new(profile: Profile, store: Store) -> Self {
        Shared { profile, state: Mutex::new(State { store, processes: BTreeMap::new() }) }
    }

    /// Never held across anything that waits.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one call of a process's connection.
    pub(super) fn call<T>(
        &self,
        process: u64,
        generation: u64,
        f: impl FnOnce(&mut Call<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut state = self.lock();
        let State { store, processes } = &mut *state;
        let sessions = processes.values().map(|p| p.sessions.len()).sum();
        match processes.get_mut(&process).filter(|p| p.generation == generation) {
            Some(own) => f(&mut Call { profile: &self.profile, store, own, sessions }),
            None => Err(Rv::CRYPTOKI_NOT_INITIALIZED),
        }
    }
}

impl Process {
    /// Forgets all that is volatile and counts a new connection.
    pub(super) fn begin(&mut self) -> u64 {
        let connections = self.connections + 1;
        *self = Process { generation: connections, connections, ..Process::default() };
        connections
    }

    /// Forgets all that is volatile; the connection works no longer.
    pub(super) fn end(&mut self) {
        *self = Process { connections: self.connections, ..Process::default() };
    }

    pub(super) fn next_handle(&mut self, profile: &Profile) -> Ulong {
        if profile.reuses_handles {
            let is_free = |n: &Ulong| !self.handles.contains_key(n) && !self.sessions.contains_key(n);
            return (1..).find(is_free).unwrap_or(Ulong::MAX);
        }
        self.last_handle += 1;
        self.last_handle
    }

    /// The handle of what is there: the one it has, or a new one.
    pub(super) fn handle(&mut self, profile: &Profile, place: Place) -> ObjectHandle {
        if let Some(handle) = self.places.get(&place) {
            return ObjectHandle(*handle);
        }
        let handle = self.next_handle(profile);
        self.places.insert(place, handle);
        self.handles.insert(handle, place);
        ObjectHandle(handle)
    }

    pub(super) fn place(&self, handle: ObjectHandle) -> Option<Place> {
        self.handles.get(&handle.0).copied()
    }

    fn forget_where(&mut self, gone: impl Fn(Place) -> bool) {
        self.handles.retain(|_, place| !gone(*place));
        self.places.retain(|place, _| !gone(*place));
    }

    /// Makes every object handle invalid.
    pub(super) fn drop_handles(&mut self) {
        self.forget_where(|_| true);
    }

    /// Closes one session, with its objects; the last one ends the login and makes every handle invalid.
    pub(super) fn close(&mut self, session: Ulong) -> Result<()> {
        self.sessions.remove(&session).ok_or(Rv::SESSION_HANDLE_INVALID)?;
        if self.sessions.is_empty() {
            self.close_all();
            return Ok(());
        }
        let gone: BTreeSet<u64> =
            self.objects.iter().filter(|o| o.1.owner == session).map(|o| *o.0).collect();
        self.objects.retain(|id, _| !gone.contains(id));
        self.forget_where(|place| matches!(place, Place::Session(id) if gone.contains(&id)));
        Ok(())
    }

    /// Closes every session.
    pub(super) fn close_all(&mut self) {
        self.sessions.clear();
        self.objects.clear();
        self.login = None;
        self.drop_handles();
    }

    /// Ends the login: private session objects are destroyed, and handles of private objects become invalid.
    pub(super) fn log_out(&mut self, durable: &Durable) {
        self.login = None;
        let private: BTreeSet<u64> = self.objects.iter().filter(|o| o.1.private).map(|o| *o.0).collect();
        self.forget_where(|place| match place {
            Place::Session(id) => private.contains(&id),
            Place::Token(id) => durable.objects.get(&id).is_none_or(Object::is_private),
        });
        self.objects.retain(|id, _| !private.contains(id));
    }
}

/// One call: the device and the process that calls.
pub(super) struct Call<'a> {
    pub(super) profile: &'a Profile,
    pub(super) store: &'a mut Store,
    pub(super) own: &'a mut Process,
    /// How many sessions are open in all processes.
    pub(super) sessions: usize,
}

impl Call<'_> {
    /// An open session.
    pub(super) fn session(&mut self, session: SessionHandle) -> Result<&mut Session> {
        self.own.sessions.get_mut(&session.0).ok_or(Rv::SESSION_HANDLE_INVALID)
    }

    /// Whether the session is one.
    pub(super) fn open(&self, session: SessionHandle) -> Result<()> {
        if self.own.sessions.contains_key(&session.0) { Ok(()) } else { Err(Rv::SESSION_HANDLE_INVALID) }
    }

    /// `CKS_RO_PUBLIC_SESSION` and so on.
    pub(super) fn state(&self, session: SessionHandle) -> Result<Ulong> {
        let session = self.own.sessions.get(&session.0).ok_or(Rv::SESSION_HANDLE_INVALID)?;
        Ok(match (self.own.login, session.read_write) {
            (Some(User::So), _) => ck::CKS_RW_SO_FUNCTIONS,
            (Some(User::User), true) => ck::CKS_RW_USER_FUNCTIONS,
            (Some(User::User), false) => ck::CKS_RO_USER_FUNCTIONS,
            (None, true) => ck::CKS_RW_PUBLIC_SESSION,
            (None, false) => ck::CKS_RO_PUBLIC_SESSION,
        })
    }

    /// Whether this session may look at an object.
    pub(super) fn may_read(&self, private: bool) -> Result<()> {
        if private && self.own.login != Some(User::User) { Err(Rv::USER_NOT_LOGGED_IN) } else { Ok(()) }
    }

    /// Whether this session may make or change an object.
    pub(super) fn may_write(&self, session: SessionHandle, on_token: bool, private: bool) -> Result<()> {
        let state = self.state(session)?;
        if on_token && matches!(state, ck::CKS_RO_PUBLIC_SESSION | ck::CKS_RO_USER_FUNCTIONS) {
            return Err(Rv::SESSION_READ_ONLY);
        }
        self.may_read(private)
    }

    /// Whether the token's files can be written.
    pub(super) fn may_store(&self) -> Result<()> {
        if self.own.broken || self.store.read_only { Err(Rv::GENERAL_ERROR) } else { Ok(()) }
    }

    /// What is there, unless it is gone.
    pub(super) fn at(&self, place: Place) -> Option<&Object> {
        match place {
            Place::Session(id) => self.own.objects.get(&id).map(|o| &o.object),
            Place::Token(id) => self.store.durable.objects.get(&id).filter(|_| !self.own.broken),
        }
    }

    /// The object of a handle.
    pub(super) fn object(&self, handle: ObjectHandle) -> Option<(Place, &Object)> {
        let place = self.own.place(handle)?;
        self.at(place).map(|object| (place, object))
    }

    /// The key of a handle, for use; `invalid` where there is none.
    pub(super) fn key(&self, handle: ObjectHandle, invalid: Rv) -> Result<&Object> {
        let (_, object) = self.object(handle).ok_or(invalid)?;
        self.may_read(object.is_private())?;
        Ok(object)
    }

    /// Every place where there is something, the token's first.
    pub(super) fn places(&self) -> Vec<Place> {
        let token =
            self.store.durable.objects.keys().filter(|_| !self.own.broken).map(|id| Place::Token(*id));
        token.chain(self.own.objects.keys().map(|id| Place::Session(*id))).collect()
    }

    /// Puts a new object on the token or in the session.
    pub(super) fn add(
        &mut self,
        session: SessionHandle,
        on_token: bool,
        private: bool,
        object: Object,
    ) -> Result<Place> {
        if on_token {
            self.may_store()?;
            if self.store.full {
                return Err(Rv::FUNCTION_FAILED);
            }
        }
        self.store.last_object += 1;
        let id = self.store.last_object;
        if on_token {
            self.store.durable.objects.insert(id, object);
            return Ok(Place::Token(id));
        }
        self.own.objects.insert(id, SessionObject { owner: session.0, private, object });
        Ok(Place::Session(id))
    }

    /// Puts another object in place of one.
    pub(super) fn replace(&mut self, place: Place, object: Object) -> Result<()> {
        match place {
            Place::Token(id) => {
                self.may_store()?;
                if self.store.full {
                    return Err(Rv::GENERAL_ERROR);
                }
                self.store.durable.objects.insert(id, object);
            }
            Place::Session(id) => {
                if let Some(there) = self.own.objects.get_mut(&id) {
                    there.object = object;
                }
            }
        }
        Ok(())
    }

    /// Takes an object away; its handle is invalid from then on.
    pub(super) fn remove(&mut self, place: Place) -> Result<()> {
        match place {
            Place::Token(id) => {
                self.may_store()?;
                self.store.durable.objects.remove(&id);
            }
            Place::Session(id) => _ = self.own.objects.remove(&id),
        }
        self.own.forget_where(|there| there == place);
        Ok(())
    }
}
