//! The simulated token: a software token with real cryptography that follows from a seed and the calls that are made.
//!
//! A [`Device`] is the token as a thing. A process reaches it through a [`Device::connector`], over and over again: each
//! connection starts with no sessions, no login and no handles, and finds the token objects as they are. How it answers
//! is what its [`Profile`] says; `simulations/tests/softhsm.rs` compares that with a real SoftHSM.
//!
//! What a member of a group may suffer is a method of [`Device`]; none of it happens by itself.

mod aes;
mod connection;
mod curve;
mod der;
mod device;
mod hash;
mod keys;
mod login;
mod material;
mod object;
mod objects;
mod operation;
mod pool;
mod profile;
mod rules;
mod start;
mod state;
mod wrap;

pub use device::{Device, Inspected, LoginAttempts, PinState, Snapshot};
pub use pool::RsaPool;
pub use profile::{Profile, Supported};
