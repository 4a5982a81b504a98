//! HA groups of PKCS#11 tokens: several member partitions combined into one HA Virtual Card Slot.
//!
//! A program of the `cryptoki` crate writes `ha_core` where it wrote `cryptoki`: [`context`], [`session`], [`slot`] and the
//! rest have the same names in them. Where it gave [`context::Pkcs11::new`] a module's path it gives a configuration's.
//! [`api`] has the same, and what cryptoki does not have. The other modules are the library's own layers, which the
//! loaded module, the operator's command and simulations stand on.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
// What the outside gives comes through `seam`: clippy.toml lists what would pass it by.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub use cryptoki;
pub use ha_token as token;

pub use api::{context, error, mechanism, object, session, slot, types};

pub mod api;
mod bare;
pub mod board;
pub mod config;
mod digest;
pub mod group;
mod lanes;
mod log;
mod map;
pub mod mutants;
pub mod names;
mod numbers;
mod pin;
pub mod policy;
pub mod provider;
pub mod replica;
pub mod seam;
mod sync;
// The layer `slot`: at the top of the crate that name is cryptoki's.
#[path = "slot/mod.rs"]
pub mod virtual_slot;
