//! The login that the application made, and what is remembered of PINs (guarantee G6).

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{MutexGuard, PoisonError, TryLockError};

use super::refused::{Digest, Refusals};
use crate::pin::Pin;
use crate::sync::Mutex;
use ha_member::Secret;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Who is logged in to the virtual token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    /// Nobody: public sessions.
    Nobody,
    /// The user.
    User,
    /// The security officer.
    So,
}

/// One connection's login as the user. What was seen while it is the same was all seen by the user, under the handles
/// that objects have now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Visit {
    /// The group's login.
    pub(super) epoch: u64,
    /// Of those that were made on the connection.
    pub(super) login: u64,
    /// How often the token was found to have lost its handles before.
    pub(super) losses: u64,
}

/// The virtual token's login state. Reading it takes no lock.
pub struct Login {
    who: AtomicU8,
    /// Whether the security officer is logged in, or is about to be.
    so: AtomicBool,
    /// Raised by every login and logout; each connection notes the epoch it has followed to.
    epoch: AtomicU64,
    /// How many logins were made: raised before anybody sees that one was.
    made: AtomicU64,
    pin: Mutex<Option<Pin>>,
    /// How often PINs had been set through the group when this one was given, or set.
    pins_set: AtomicU64,
    /// PINs that were refused: not sent again by us.
    pub(super) refused: Refusals,
    /// Keys the digests of PINs: what is remembered of them says nothing outside this process.
    key: Secret,
    turn: Mutex<()>,
}

/// Withdraws the announcement that the security officer is about to log in, unless he has.
pub(super) struct SoComes<'a>(&'a Login);

impl Drop for SoComes<'_> {
    fn drop(&mut self) {
        self.0.so.store(self.0.who() == Who::So, Ordering::SeqCst);
    }
}

impl Login {
    /// Nobody is logged in. `key` is random.
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Login {
            who: AtomicU8::new(0),
            so: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            made: AtomicU64::new(0),
            pin: Mutex::new(None),
            pins_set: AtomicU64::new(0),
            refused: Refusals::default(),
            key: Secret::new(key),
            turn: Mutex::new(()),
        }
    }

    /// Who is logged in.
    pub fn who(&self) -> Who {
        match self.who.load(Ordering::Acquire) {
            1 => Who::User,
            2 => Who::So,
            _ => Who::Nobody,
        }
    }

    /// The state's number.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The number of the login that whoever is logged in has made.
    pub(super) fn made(&self) -> u64 {
        self.made.load(Ordering::Acquire)
    }

    /// Held by whoever changes the state, from the check to the end: one login or logout at a time.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`turn`](Self::turn), for who cannot wait.
    pub(super) fn turn_if_free(&self) -> Option<MutexGuard<'_, ()>> {
        match self.turn.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Says that the security officer is about to log in: who opens a read-only session from here on waits and sees.
    pub(super) fn so_comes(&self) -> SoComes<'_> {
        self.so.store(true, Ordering::SeqCst);
        SoComes(self)
    }

    /// Whether the security officer is logged in, once a login of his that is under way has ended.
    pub(crate) fn so_is_in(&self) -> bool {
        if !self.so.load(Ordering::SeqCst) {
            return false;
        }
        let _ended = self.turn();
        self.who() == Who::So
    }

    /// The PIN of who is logged in.
    pub fn pin(&self) -> Option<Pin> {
        self.pin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// These bytes as a PIN of who is logged in, whose own is not kept twice.
    pub(crate) fn hold(&self, pin: &[u8]) -> Pin {
        match self.pin() {
            Some(login) if *login == *pin => login,
            login => Pin::new(pin, login.as_ref().map_or(&[], Pin::user_name)),
        }
    }

    /// Changes the state; answers the new epoch. The old PIN is let go.
    pub(super) fn set(&self, who: Who, pin: Option<Pin>) -> u64 {
        *self.pin.lock().unwrap_or_else(PoisonError::into_inner) = pin;
        self.made.fetch_add(u64::from(who != Who::Nobody), Ordering::AcqRel);
        self.who.store(
            match who {
                Who::Nobody => 0,
                Who::User => 1,
                Who::So => 2,
            },
            Ordering::Release,
        );
        self.so.store(who == Who::So, Ordering::SeqCst);
        self.epoch.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// After `C_SetPIN`: the login stays, the PIN is another. `None` leaves none to carry.
    pub(super) fn replace_pin(&self, pin: Option<Pin>) {
        *self.pin.lock().unwrap_or_else(PoisonError::into_inner) = pin;
    }

    /// How often PINs had been set through the group when this one was given, or set.
    pub(super) fn pins_set(&self) -> u64 {
        self.pins_set.load(Ordering::Acquire)
    }

    pub(super) fn note_pins_set(&self, count: u64) {
        self.pins_set.store(count, Ordering::Release);
    }

    /// What is remembered of a PIN, and of whose it is.
    pub(super) fn digest(&self, pin: &Pin) -> Digest {
        let length = (pin.len() as u64).to_be_bytes();
        let mac = Hmac::<Sha256>::new_from_slice(&self.key).map(|mac| {
            mac.chain_update(length).chain_update(&**pin).chain_update(pin.user_name()).finalize()
        });
        // A key of any length will do for HMAC.
        mac.map(|m| m.into_bytes().into()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_of_a_pin_means_nothing_under_another_key() {
        let (a, b) = (Login::new(&[1; 32]), Login::new(&[2; 32]));
        let pin = Pin::new(b"1234", b"");
        assert_eq!(a.digest(&pin), a.digest(&pin));
        assert_ne!(a.digest(&pin), a.digest(&Pin::new(b"1235", b"")));
        assert_ne!(a.digest(&pin), b.digest(&pin));
    }

    #[test]
    fn what_is_remembered_of_a_pin_is_one_named_users() {
        let login = Login::new(&[1; 32]);
        let anna = login.digest(&Pin::new(b"1234", b"anna"));
        for other in [Pin::new(b"1234", b"bert"), Pin::new(b"1234", b""), Pin::new(b"1234a", b"nna")] {
            assert_ne!(login.digest(&other), anna);
        }
    }
}
