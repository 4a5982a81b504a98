//! Where failure is practised: deterministic simulation of the real core, and drills.
//!
//! What it stands on is there: `ha_core::seam::World` (time, randomness, threads), `ha_core::provider::Provider::with_members`
//! (members given from outside) and `ha_token::Token` (members themselves).
#![forbid(unsafe_code)]

pub mod token;
