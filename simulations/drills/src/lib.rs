//! Failover drills: a throw-away group of SoftHSM tokens, each behind a p11-kit server of its own, works under load while its
//! members are killed, stopped and lose their tokens.
//!
//! The [`plan`] of a scenario says what is done when; the [`rig`] does it; the [`load`] asks the group's slot for signatures
//! and MACs meanwhile, and verifies each in software. What is recorded ([`record`]) gives figures ([`measure`]), those a
//! [`verdict`], and all of it a [`report`]. [`Drill`] conducts it.
#![forbid(unsafe_code)]

mod charts;
pub mod load;
pub mod measure;
pub mod plan;
pub mod record;
pub mod report;
pub mod rig;
mod run;
pub mod verdict;

pub use run::{Drill, DrillError, Handle, Options, Tick, Told};
