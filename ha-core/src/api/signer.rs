//! Signing from any thread: a key, a mechanism and a pool of sessions.

use std::fmt;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use crossbeam::queue::ArrayQueue;
use cryptoki::context::Function;
use cryptoki::error::Result;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::slot::Slot;
use ha_token::{OpKind, Rv};

use super::context::Pkcs11;
use super::convert::{self, OrError, from_handle};
use super::key::{Key, KeyError};
use super::session::Session;

/// The most sessions that are kept open while nobody signs.
const IDLE_SESSIONS: usize = 64;

/// Signs with one key and one mechanism, from as many threads as like to.
///
/// Clones share the key and the sessions. A call takes a session of its own for as long as it lasts, so nothing waits
/// for anything but the group's members. There is no future in it: in async code call it inside `spawn_blocking`.
///
/// The token must be logged in, by the program, in any session of the same instance; the signer keeps one session
/// open, so the login lasts as long as the signer does.
#[derive(Clone)]
pub struct Signer {
    shared: Arc<Shared>,
}

struct Shared {
    client: Pkcs11,
    slot: Slot,
    attributes: Vec<Attribute>,
    mechanism: ha_token::Mechanism,
    key: ArcSwap<Key>,
    idle: ArrayQueue<Session>,
    /// Never used, and open as long as the signer is: closing a token's last session would log it out.
    _anchor: Mutex<Session>,
}

impl Signer {
    /// A signer with the one private or secret key of the slot's token that has these attributes and `CKA_SIGN`.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn new(
        client: &Pkcs11,
        slot: Slot,
        attributes: &[Attribute],
        mechanism: &Mechanism<'_>,
    ) -> std::result::Result<Self, KeyError> {
        let mut attributes = attributes.to_vec();
        attributes.push(Attribute::Sign(true));
        let mechanism = convert::mechanism(mechanism, Function::SignInit)?;
        let session = client.open_ro_session(slot)?;
        let key = Key::find(&session, &attributes)?;
        let shared = Shared {
            client: client.clone(),
            slot,
            attributes,
            mechanism,
            key: ArcSwap::from_pointee(key),
            idle: ArrayQueue::new(IDLE_SESSIONS),
            _anchor: Mutex::new(session),
        };
        Ok(Signer { shared: Arc::new(shared) })
    }

    /// The key.
    pub fn key(&self) -> Arc<Key> {
        self.shared.key.load_full()
    }

    /// The signature of `data`. Safe to call from many threads at once.
    ///
    /// A handle that a logout made invalid is looked up again, once, by the attributes.
    ///
    /// # Errors
    /// [`KeyError::Token`] with the error of `C_SignInit` or `C_Sign`; the others when the key had to be looked up again.
    pub fn sign(&self, data: &[u8]) -> std::result::Result<Vec<u8>, KeyError> {
        let shared = &*self.shared;
        let session = shared.take()?;
        let mut init = shared.init(&session, shared.key.load().handle());
        if matches!(init, Err(Rv::KEY_HANDLE_INVALID | Rv::OBJECT_HANDLE_INVALID)) {
            let key = Key::find(&session, &shared.attributes)?;
            let handle = key.handle();
            shared.key.store(Arc::new(key));
            init = shared.init(&session, handle);
        }
        init.or_error(Function::SignInit)?;
        let signature = convert::collect(data.len(), |output| {
            session.raw(|token, s| token.op_one_shot(s, OpKind::Sign, data, output))
        })
        .or_error(Function::Sign)?;
        // Only after success: a session that failed may have an operation left open, and is dropped instead.
        shared.put_back(session);
        Ok(signature)
    }
}

impl Shared {
    fn take(&self) -> Result<Session> {
        match self.idle.pop() {
            Some(session) => Ok(session),
            None => self.client.open_ro_session(self.slot),
        }
    }

    /// Keeps the session for the next call; one too many is closed.
    fn put_back(&self, session: Session) {
        drop(self.idle.push(session));
    }

    fn init(&self, session: &Session, key: ObjectHandle) -> ha_token::Result<()> {
        let mut mechanism = self.mechanism.clone();
        session.raw(|token, s| token.op_init(s, OpKind::Sign, Some(&mut mechanism), from_handle(key)))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("slot", &self.shared.slot)
            .field("key", &self.shared.key.load())
            .field("idle_sessions", &self.shared.idle.len())
            .finish_non_exhaustive()
    }
}
