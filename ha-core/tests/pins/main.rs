//! Where PINs go, and where they do not (guarantee G6), on real tokens that answer otherwise when told to.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "../watched/mod.rs"]
mod watched;

mod changing;
mod elsewhere;
mod judged;
mod key_use;
mod named;
mod no_pin;
mod own_pin;
mod restarts;
mod returning;
mod setting;
mod threads;
mod vague;
