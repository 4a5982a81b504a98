//! `verify_signatures = true`: a signature that is not the key's is never handed out, and who makes such signatures is not
//! used again; and whatever a token signs rightly is handed out, by every mechanism.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../watched/mod.rs"]
mod watched;

mod liars;
mod mechanisms;
mod setting;
