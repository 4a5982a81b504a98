//! Failover drills: a throw-away group of SoftHSM tokens, each behind a p11-kit server of its own, works under load while its
//! members are killed, stopped, slowed down, and lose their tokens or the room on their disks; or a [configured](Configured)
//! group, whose members are broken in front of their modules.
//!
//! The [`plan`] of a scenario says what is done when; the [`rig`] does it, or a seam before each member; the [`load`] asks the group's slot for signatures
//! and MACs meanwhile, and verifies each in software; and where disks are full, to keep [`objects`]. What was done is counted ([`tally`]), and with what else is recorded
//! ([`record`], also what this process [`held`]) gives figures ([`measure`]), those a [`verdict`], and all of it a [`report`]. [`Drill`] conducts it.
#![forbid(unsafe_code)]

mod charts;
mod configured;
mod ground;
pub mod held;
mod listener;
pub mod load;
pub mod measure;
pub mod objects;
pub mod plan;
pub mod record;
pub mod report;
pub mod rig;
mod run;
mod seam;
mod stage;
pub mod tally;
pub mod verdict;

pub use configured::Configured;
pub use run::{Drill, DrillError, Handle, Interruption, Options, Pulse, Tick, Told};
