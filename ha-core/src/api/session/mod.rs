//! Sessions: [`Session`] with the methods of cryptoki's.

mod keys;
mod messages;
mod objects;
mod operations;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::Arc;

use cryptoki::context::Function;
use cryptoki::error::Result;
use cryptoki::slot::Slot;
use cryptoki::types::{AuthPin, RawAuthPin};
use ha_token::ck::{CK_FLAGS, CK_SESSION_HANDLE};
use ha_token::{SessionHandle, Token};
use secrecy::ExposeSecret;

pub use cryptoki::session::{SessionInfo, SessionState, UserType, ValidationFlagsType};
pub use objects::ObjectHandleIterator;

use super::context::Running;
use super::convert::{self, OrError};
use crate::group::{LastFault, watch};

/// A session with a slot's token. Dropping it closes it, unless it was opened by a `…_no_drop` method.
///
/// As cryptoki's it is `Send` and not `Sync`: PKCS#11 has one operation of each kind in a session, so a thread has a
/// session of its own. Many are cheap: a session of a virtual slot costs its members nothing until it is used.
///
/// Where a method's errors are not listed they are the C function's of the same name, as the token gave them, and
/// `CKR_CRYPTOKI_NOT_INITIALIZED` after `finalize`.
pub struct Session {
    running: Arc<Running>,
    token: Arc<dyn Token>,
    slot: Slot,
    handle: SessionHandle,
    close_on_drop: bool,
    /// A `Cell`, which also keeps the type from being `Sync`.
    closed: Cell<bool>,
    last_fault: RefCell<Option<LastFault>>,
}

impl Session {
    /// A session that was just opened.
    pub(super) fn new(
        running: Arc<Running>,
        token: Arc<dyn Token>,
        slot: Slot,
        handle: SessionHandle,
        close_on_drop: bool,
    ) -> Self {
        Session {
            running,
            token,
            slot,
            handle,
            close_on_drop,
            closed: Cell::new(false),
            last_fault: RefCell::new(None),
        }
    }

    /// One call of the token with this session's handle.
    fn call<T>(
        &self,
        function: Function,
        call: impl FnOnce(&dyn Token, SessionHandle) -> ha_token::Result<T>,
    ) -> Result<T> {
        self.raw(call).or_error(function)
    }

    /// As `call`, with the plain return code.
    pub(super) fn raw<T>(
        &self,
        call: impl FnOnce(&dyn Token, SessionHandle) -> ha_token::Result<T>,
    ) -> ha_token::Result<T> {
        self.running.provider()?;
        let (answer, fault) = watch::watched(|| call(self.token.as_ref(), self.handle));
        if fault.is_some() {
            self.last_fault.replace(fault);
        }
        answer
    }

    /// The last fault of a member that a call of this session met, whether the call was answered by another member or
    /// failed: which member, its own return code, what that was taken for, and whether the call was made again. `None`
    /// if there was none. An error that is the caller's own mistake is no fault; nor is there any on a member's own slot.
    pub fn last_fault(&self) -> Option<LastFault> {
        self.last_fault.borrow().clone()
    }

    /// The start of the instance that the session belongs to: it is of no use after a `finalize`.
    pub(super) fn running(&self) -> &Arc<Running> {
        &self.running
    }

    /// Closes the session.
    ///
    /// # Errors
    /// `CKR_SESSION_HANDLE_INVALID` when it was closed otherwise.
    pub fn close(self) -> Result<()> {
        self.close_inner().or_error(Function::CloseSession)
    }

    fn close_inner(&self) -> ha_token::Result<()> {
        // Once only, whatever the answer: a second try could meet another session of the same number.
        if self.closed.replace(true) {
            return Ok(());
        }
        self.raw(|token, session| token.close_session(session))
    }

    /// The session's number.
    pub fn handle(&self) -> CK_SESSION_HANDLE {
        self.handle.0
    }

    /// Logs in the token, for every session of this instance with it. `None` asks for the token's own PIN pad.
    ///
    /// # Errors
    /// `CKR_PIN_INCORRECT` and so on; `CKR_ARGUMENTS_BAD` for `None` where a group has more than one member.
    pub fn login(&self, user_type: UserType, pin: Option<&AuthPin>) -> Result<()> {
        self.login_bytes(user_type, pin.map(|p| p.expose_secret().as_bytes()))
    }

    /// As [`Session::login`], with a PIN that need not be UTF-8.
    ///
    /// # Errors
    /// As [`Session::login`].
    pub fn login_with_raw(&self, user_type: UserType, pin: &RawAuthPin) -> Result<()> {
        self.login_bytes(user_type, Some(pin.expose_secret()))
    }

    fn login_bytes(&self, user: UserType, pin: Option<&[u8]>) -> Result<()> {
        self.call(Function::Login, |token, session| token.login(session, convert::user(user)?, pin))
    }

    /// Logs out, for every session of this instance with the token.
    ///
    /// # Errors
    /// `CKR_USER_NOT_LOGGED_IN`.
    pub fn logout(&self) -> Result<()> {
        self.call(Function::Logout, |token, session| token.logout(session))
    }

    /// The session's slot, state and flags.
    ///
    /// # Errors
    /// `CKR_SESSION_HANDLE_INVALID`.
    pub fn get_session_info(&self) -> Result<SessionInfo> {
        let info = self.call(Function::GetSessionInfo, |token, session| token.session_info(session))?;
        convert::session_info(self.slot, info)
    }

    /// Sets the user's PIN as security officer, on every member.
    ///
    /// # Errors
    /// `CKR_USER_NOT_LOGGED_IN` unless the SO is logged in, and the token's own.
    pub fn init_pin(&self, pin: &AuthPin) -> Result<()> {
        let pin = pin.expose_secret().as_bytes();
        self.call(Function::InitPIN, |token, session| token.init_pin(session, Some(pin)))
    }

    /// Changes the PIN of who is logged in, or else the user's, on every member.
    ///
    /// # Errors
    /// `CKR_PIN_INCORRECT`, and the token's own.
    pub fn set_pin(&self, old_pin: &AuthPin, new_pin: &AuthPin) -> Result<()> {
        let (old, new) = (old_pin.expose_secret().as_bytes(), new_pin.expose_secret().as_bytes());
        self.call(Function::SetPIN, |token, session| token.set_pin(session, Some(old), Some(new)))
    }

    /// The session's validation flags of this type (3.2).
    ///
    /// # Errors
    /// `CKR_FUNCTION_NOT_SUPPORTED` where the members are older.
    pub fn get_validation_flags(&self, flags_type: ValidationFlagsType) -> Result<CK_FLAGS> {
        self.call(Function::GetSessionValidationFlags, |token, session| {
            token.session_validation_flags(session, flags_type.into())
        })
    }

    /// Fills the slice with the token's random bytes.
    ///
    /// # Errors
    /// `CKR_RANDOM_NO_RNG`.
    pub fn generate_random_slice(&self, random_data: &mut [u8]) -> Result<()> {
        self.call(Function::GenerateRandom, |token, session| token.generate_random(session, random_data))
    }

    /// `random_len` of the token's random bytes.
    ///
    /// # Errors
    /// `CKR_RANDOM_NO_RNG`.
    pub fn generate_random_vec(&self, random_len: u32) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(random_len)?];
        self.generate_random_slice(&mut bytes)?;
        Ok(bytes)
    }

    /// Mixes `seed` into the token's random number generator.
    ///
    /// # Errors
    /// `CKR_RANDOM_SEED_NOT_SUPPORTED`.
    pub fn seed_random(&self, seed: &[u8]) -> Result<()> {
        self.call(Function::SeedRandom, |token, session| token.seed_random(session, seed))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.close_on_drop || self.closed.get() {
            return;
        }
        match self.close_inner() {
            // Closed with all others, by finalisation or on purpose.
            Ok(())
            | Err(
                ha_token::Rv::SESSION_CLOSED
                | ha_token::Rv::SESSION_HANDLE_INVALID
                | ha_token::Rv::CRYPTOKI_NOT_INITIALIZED,
            ) => {}
            Err(rv) => tracing::error!(session = self.handle.0, %rv, "a session could not be closed"),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("handle", &self.handle.0)
            .field("slot", &self.slot)
            .field("close_on_drop", &self.close_on_drop)
            .field("closed", &self.closed.get())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.handle.0)
    }
}

impl fmt::LowerHex for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.handle.0)
    }
}

impl fmt::UpperHex for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}", self.handle.0)
    }
}
