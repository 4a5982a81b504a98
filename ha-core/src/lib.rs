//! HA groups of PKCS#11 tokens: several member partitions combined into one HA Virtual Card Slot.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub use cryptoki;
pub use ha_token as token;

pub mod api;
mod bare;
pub mod config;
pub mod group;
mod log;
mod map;
pub mod names;
pub mod policy;
pub mod provider;
pub mod replica;
pub mod seam;
pub mod slot;
