//! A PIN and whose it is, for as long as it may have to be given to a member again.

use std::ops::Deref;
use std::sync::Arc;

use argon2::{Algorithm, Argon2, AssociatedData, ParamsBuilder, Version};
use ha_member::Secret;
use ha_token::{Result, SessionHandle, Token, UserType};
use sha2::{Digest as _, Sha256};

/// Memory, in KiB, and passes of Argon2id: the least that OWASP recommends. A simulation has no thief.
const COST: (u32, u32) = if cfg!(feature = "simulation") { (8, 1) } else { (19 * 1024, 2) };

/// What may be written down of a PIN: salted, and slow to make, so that trying all PINs takes long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct KeptDigest {
    /// Random.
    pub(crate) salt: [u8; 16],
    /// Argon2id of the PIN, with the user's name.
    pub(crate) digest: [u8; 32],
}

/// A PIN, in locked memory that is wiped when the last who has it lets go. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Pin {
    secret: Arc<Secret>,
    /// The user's name, where one was given with it (`C_LoginUser`).
    user_name: Option<Arc<[u8]>>,
}

impl Pin {
    /// A copy of these bytes; `user_name` is empty where no name is given.
    pub(crate) fn new(pin: &[u8], user_name: &[u8]) -> Self {
        Pin {
            secret: Arc::new(Secret::new(pin)),
            user_name: (!user_name.is_empty()).then(|| user_name.into()),
        }
    }

    /// What may be written down of it; `None` where there is no memory to make it in.
    pub(crate) fn kept(&self, salt: [u8; 16]) -> Option<KeptDigest> {
        let name = AssociatedData::new(&Sha256::digest(self.user_name())).ok()?;
        let (memory, passes) = COST;
        let params = ParamsBuilder::new().m_cost(memory).t_cost(passes).p_cost(1).data(name).build().ok()?;
        let mut digest = [0; 32];
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon.hash_password_into(self, &salt, &mut digest).ok()?;
        Some(KeptDigest { salt, digest })
    }

    /// The name of the user whose it is; empty where none was given.
    pub(crate) fn user_name(&self) -> &[u8] {
        self.user_name.as_deref().unwrap_or_default()
    }
}

impl Deref for Pin {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.secret
    }
}

/// `C_Login`, or `C_LoginUser` where the PIN is a named user's. `None` leaves the PIN to the token's protected
/// authentication path.
///
/// # Errors
/// The token's answer.
pub(crate) fn log_in(
    token: &dyn Token,
    session: SessionHandle,
    user: UserType,
    pin: Option<&Pin>,
) -> Result<()> {
    match pin {
        Some(pin) if !pin.user_name().is_empty() => {
            token.login_user(session, user, Some(pin), pin.user_name())
        }
        pin => token.login(session, user, pin.map(|p| &**p)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_of_a_pin_is_its_own_its_users_and_its_salts() {
        let kept = |pin: &str, name: &str, salt| Pin::new(pin.as_bytes(), name.as_bytes()).kept([salt; 16]);
        let one = kept("1234", "anna", 1).unwrap();
        assert_eq!(kept("1234", "anna", 1), Some(one));
        for other in [kept("1235", "anna", 1), kept("1234", "bert", 1), kept("1234", "", 1)] {
            assert_ne!(other.unwrap().digest, one.digest);
        }
        assert_ne!(kept("1234", "anna", 2).unwrap().digest, one.digest);
        // No PIN is none: the standard allows empty ones.
        assert!(kept("", "", 1).is_some());
    }
}
