//! The login that the application made, and how it is carried to members (guarantee G6).

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ha_token::UserType;
use zeroize::Zeroizing;

/// A PIN, wiped when dropped. Never printed.
pub type Pin = Zeroizing<Vec<u8>>;

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

/// The virtual token's login state. Reading it takes no lock.
pub struct Login {
    who: AtomicU8,
    /// Raised by every login and logout; each connection notes the epoch it has followed to.
    epoch: AtomicU64,
    pin: Mutex<Option<Pin>>,
    /// PINs (digests of, salted by kind) that a member refused: not sent again by us.
    refused: Mutex<Vec<[u8; 32]>>,
    turn: Mutex<()>,
}

impl Login {
    /// Nobody is logged in.
    pub fn new() -> Self {
        Login {
            who: AtomicU8::new(0),
            epoch: AtomicU64::new(0),
            pin: Mutex::new(None),
            refused: Mutex::new(Vec::new()),
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

    /// Held by whoever changes the state, from the check to the end: one login or logout at a time.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the PIN of who is logged in.
    pub fn pin(&self) -> Option<Pin> {
        self.pin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the state; answers the new epoch. The old PIN is wiped.
    pub(super) fn set(&self, who: Who, pin: Option<Pin>) -> u64 {
        *self.pin.lock().unwrap_or_else(PoisonError::into_inner) = pin;
        self.who.store(
            match who {
                Who::Nobody => 0,
                Who::User => 1,
                Who::So => 2,
            },
            Ordering::Release,
        );
        self.epoch.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// After `C_SetPIN`: the login stays, the PIN is another. `None` leaves none to carry.
    pub(super) fn replace_pin(&self, pin: Option<Pin>) {
        *self.pin.lock().unwrap_or_else(PoisonError::into_inner) = pin;
        self.forgive();
    }

    /// Whether a member refused this PIN before.
    pub(super) fn was_refused(&self, user: UserType, pin: &[u8]) -> bool {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).contains(&digest(user, pin))
    }

    /// Remembers a refusal.
    pub(super) fn refuse(&self, user: UserType, pin: &[u8]) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = digest(user, pin);
        if !refused.contains(&digest) {
            refused.push(digest);
        }
    }

    /// Forgets all refusals: a PIN was accepted or changed.
    pub(super) fn forgive(&self) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Default for Login {
    fn default() -> Self {
        Self::new()
    }
}

fn digest(user: UserType, pin: &[u8]) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    let kind: u8 = match user {
        UserType::So => 0,
        UserType::User => 1,
        UserType::ContextSpecific => 2,
    };
    Sha256::new().chain_update([kind]).chain_update(pin).finalize().into()
}
