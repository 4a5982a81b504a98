//! Signing from any thread: a key, a mechanism and a pool of sessions.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use crossbeam::queue::ArrayQueue;
use cryptoki::context::Function;
use cryptoki::error::Result;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::Attribute;
use cryptoki::slot::Slot;
use ha_token::{OpKind, Rv};

use super::context::{Pkcs11, Running};
use super::convert::{self, OrError, from_handle};
use super::key::{Key, KeyError};
use super::session::Session;
use crate::sync::Mutex;

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
    found: ArcSwap<Found>,
    idle: ArrayQueue<Session>,
}

/// The key, as found in one session.
struct Found {
    key: Arc<Key>,
    /// Handles are of one start of the instance: after another they may be another key's.
    running: Arc<Running>,
    /// Never used, and open as long as the key is: closing a token's last session would log it out.
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
        let found = Found::look(client.open_ro_session(slot)?, &attributes)?;
        let shared = Shared {
            client: client.clone(),
            slot,
            attributes,
            mechanism,
            found: ArcSwap::from_pointee(found),
            idle: ArrayQueue::new(IDLE_SESSIONS),
        };
        Ok(Signer { shared: Arc::new(shared) })
    }

    /// The key.
    pub fn key(&self) -> Arc<Key> {
        Arc::clone(&self.shared.found.load().key)
    }

    /// The signature of `data`. Safe to call from many threads at once.
    ///
    /// The key is looked up again, once, by the attributes, when a logout or a new start of the instance made its
    /// handle invalid.
    ///
    /// # Errors
    /// [`KeyError::Token`] with the error of `C_SignInit` or `C_Sign`; the others when the key had to be looked up again.
    pub fn sign(&self, data: &[u8]) -> std::result::Result<Vec<u8>, KeyError> {
        let shared = &*self.shared;
        let session = shared.take()?;
        let found = shared.found.load();
        let mut init = if Arc::ptr_eq(&found.running, session.running()) {
            shared.init(&session, &found.key)
        } else {
            Err(Rv::KEY_HANDLE_INVALID)
        };
        if matches!(init, Err(Rv::KEY_HANDLE_INVALID | Rv::OBJECT_HANDLE_INVALID)) {
            let found = Found::look(shared.client.open_ro_session(shared.slot)?, &shared.attributes)?;
            // Of the same start as `session`, unless the instance is started anew just now; then the call fails.
            init = shared.init(&session, &found.key);
            shared.found.store(Arc::new(found));
        }
        init.or_error(Function::SignInit)?;
        let signature = convert::collect(data.len(), |output| {
            session.raw(|token, s| token.op_one_shot(s, OpKind::Sign, data, output))
        })
        .or_error(Function::Sign)?;
        // Only after success: a session that failed may have an operation left open, and is dropped instead.
        drop(shared.idle.push(session));
        Ok(signature)
    }
}

impl Found {
    fn look(session: Session, attributes: &[Attribute]) -> std::result::Result<Self, KeyError> {
        let key = Arc::new(Key::find(&session, attributes)?);
        Ok(Found { key, running: Arc::clone(session.running()), _anchor: Mutex::new(session) })
    }
}

impl Shared {
    fn take(&self) -> Result<Session> {
        while let Some(session) = self.idle.pop() {
            if session.running().provider().is_ok() {
                return Ok(session);
            }
        }
        self.client.open_ro_session(self.slot)
    }

    fn init(&self, session: &Session, key: &Key) -> ha_token::Result<()> {
        let mut mechanism = self.mechanism.clone();
        let key = from_handle(key.handle());
        session.raw(|token, s| token.op_init(s, OpKind::Sign, Some(&mut mechanism), key))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("slot", &self.shared.slot)
            .field("key", &self.shared.found.load().key)
            .field("idle_sessions", &self.shared.idle.len())
            .finish_non_exhaustive()
    }
}
