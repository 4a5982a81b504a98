//! A PIN and whose it is, for as long as it may have to be given to a member again.

use std::ops::Deref;
use std::sync::Arc;

use ha_member::Secret;
use ha_token::{Result, SessionHandle, Token, UserType};

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
