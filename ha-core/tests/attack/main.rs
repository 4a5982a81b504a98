//! Attacks on the guarantees, on real tokens whose calls can be made to fail before or after they took effect.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "../open_group/mod.rs"]
mod open_group;
#[path = "../watched/mod.rs"]
mod watched;

mod blame;
mod durability;
mod dying;
mod messages;
mod namesakes;
mod one_token;
mod pins;
mod processes;
mod right_key;
mod setting;
mod storm;
mod templates;
mod zombies;
