//! The C interface of PKCS#11 over [`ha_core::provider::Provider`].
//!
//! Pointers are checked, panics contained and slices handed on; nothing is decided here. The function lists are in
//! `lists`; what an application's pointers mean is in `caller`; what runs between `C_Initialize` and `C_Finalize` in
//! `state`. The cdylib exports [`C_GetFunctionList`], [`C_GetInterfaceList`] and [`C_GetInterface`] and nothing else;
//! the rlib is for tests and benchmarks.
#![deny(missing_docs)]
#![allow(non_snake_case)] // the functions have the standard's names

#[cfg(all(panic = "abort", not(test)))]
compile_error!(
    "libha_module.so must unwind: a panic is answered with CKR_GENERAL_ERROR, never with the host's death"
);

mod caller;
mod crypto;
mod general;
mod guard;
mod keys;
mod lists;
mod messages;
mod objects;
mod sessions;
mod signatures;
mod state;
mod text;

pub use lists::{C_GetFunctionList, C_GetInterface, C_GetInterfaceList};

/// Puts a provider in place of what `C_Initialize` would start, for tests and benchmarks.
///
/// # Errors
/// `CKR_CRYPTOKI_ALREADY_INITIALIZED`.
#[doc(hidden)]
pub fn install(provider: ha_core::provider::Provider) -> ha_token::Result<()> {
    state::initialize(|| Ok(provider))
}
