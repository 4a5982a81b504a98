//! The API with the names, methods and types of the `cryptoki` crate.
//!
//! The modules are cryptoki's, and stand at the top of this crate too: a service changes `use cryptoki::` to
//! `use ha_core::` and nothing else. What a program
//! only passes in or reads (mechanisms, attributes, handles, information, errors) is cryptoki's own and re-exported;
//! [`Pkcs11`] and [`Session`], which call a loaded module there, are ours and call the slots of a configuration.
//! Beside them is what cryptoki lacks: [`Group`] ([`Pkcs11::groups`]) with its state and its events,
//! [`Session::last_fault`], [`Key`], [`Signer`] and [`Pkcs11::shutdown`].
//!
//! A call that fails answers cryptoki's `Error::Pkcs11` with the return code and the C function that it stands for,
//! as it would through the C interface.

pub mod context;
mod convert;
pub mod group;
pub mod key;
pub mod session;
pub mod signer;

/// Slots and what is known about them and their tokens.
pub mod slot {
    pub use cryptoki::slot::*;
}

/// Objects, their handles and attributes.
pub mod object {
    pub use cryptoki::object::*;
}

/// Mechanisms and their parameters.
pub mod mechanism {
    pub use cryptoki::mechanism::*;
}

/// Errors and return codes.
pub mod error {
    pub use cryptoki::error::*;
}

/// PINs, numbers, dates and versions.
pub mod types {
    pub use cryptoki::types::*;
}

pub use context::Pkcs11;
pub use cryptoki::slot::Slot;
pub use group::Group;
pub use key::{Key, KeyError};
pub use session::Session;
pub use signer::Signer;
