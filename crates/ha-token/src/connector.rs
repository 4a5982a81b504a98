//! How a member's token is reached, and reached again after it failed.

use std::sync::Arc;

use crate::{Function, Rv, Token};

/// The way to one member's token: a module instance and which of its tokens is meant.
///
/// [`Connector::connect`] may be called again and again: each call initialises the module's instance anew where it
/// can (a private one), which is what brings back a lost SoftHSM token or a restarted p11-kit server. The token
/// handed out before then answers `CKR_CRYPTOKI_NOT_INITIALIZED`.
pub trait Connector: Send + Sync {
    /// Initialises the instance (again) and finds the token.
    ///
    /// May block for as long as the module does; the caller runs it on a thread of its own.
    ///
    /// # Errors
    /// [`ConnectError`] says what an operator can do about it.
    fn connect(&self) -> Result<Arc<dyn Token>, ConnectError>;

    /// Finalises the instance, if it is ours alone, once no call is in it. Idempotent.
    fn disconnect(&self);

    /// After [`Connector::disconnect`]: whether a call is still in the module, which was then not finalised.
    fn hangs(&self) -> bool {
        false
    }

    /// What is still to be done about earlier connections, if anything is: to finalise what was left because calls hung in it,
    /// and is free now. May block as long as a module does, beside everything else here; the caller runs it on a thread of
    /// its own.
    fn leavings(&self) -> Option<Box<dyn FnOnce() + Send>> {
        None
    }

    /// Whether another `connect` really starts over (a private instance), or can only look again (a shared one).
    fn reinitialises(&self) -> bool;
}

/// Which token of a module is meant: every field that is set must match.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub struct Selector {
    /// The token's label, without padding.
    pub label: Option<String>,
    /// Its serial number, without padding.
    pub serial: Option<String>,
    /// Its manufacturer, without padding.
    pub manufacturer: Option<String>,
    /// Its model, without padding.
    pub model: Option<String>,
    /// The slot's number.
    pub slot_id: Option<crate::Ulong>,
}

/// Why a member could not be connected. Each text says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The file cannot be loaded.
    #[error(
        "{path}: cannot be loaded as a PKCS#11 module: {reason}; check the path and the file's permissions"
    )]
    Load {
        /// The module.
        path: String,
        /// The loader's words.
        reason: String,
    },
    /// The module is this library, directly or through a proxy.
    #[error(
        "{path} leads back to pkcs11-ha itself; a member must be the token's own module, not this one or a proxy that shows it"
    )]
    Itself {
        /// The module.
        path: String,
    },
    /// The module was loaded, and a call to it while connecting failed.
    #[error("{path}: {function} answered {rv}; is the token's service running and its configuration right?")]
    Call {
        /// The module.
        path: String,
        /// The function.
        function: Function,
        /// Its answer.
        rv: Rv,
    },
    /// No token of the module matches. It may appear later.
    #[error(
        "{path}: no token matches {wanted}; present: {present}; is it plugged in, and the label or serial right?"
    )]
    NoToken {
        /// The module.
        path: String,
        /// The selector in words.
        wanted: String,
        /// The tokens seen, in words.
        present: String,
    },
    /// More than one token matches.
    #[error("{path}: {count} tokens match {wanted}; name one by `serial` (seen: {serials})")]
    Ambiguous {
        /// The module.
        path: String,
        /// The selector in words.
        wanted: String,
        /// How many.
        count: usize,
        /// Their serial numbers.
        serials: String,
    },
    /// The token is there and was never initialised.
    #[error(
        "{path}: the token {wanted} is not initialised; initialise it (for example with `pkcs11-tool --init-token`) and set its user PIN"
    )]
    NotInitialised {
        /// The module.
        path: String,
        /// The selector in words.
        wanted: String,
    },
}
