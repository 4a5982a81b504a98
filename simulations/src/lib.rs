//! Where failure is practised: deterministic simulation of the real core.
//!
//! A seed decides a [`plan`]: what an application's threads do, and what goes wrong with the members meanwhile. A
//! [`history`] plays it on the real core: its threads take turns by the [`scheduler`], its clock and randomness are the
//! seed's ([`world`]), its members are software tokens ([`token`]) behind lines that fail ([`member`]). The
//! [`application`] judges every answer by the [`model`], and the [`oracle`] looks at the tokens. A history that went wrong
//! is made short ([`shrink`]).
#![forbid(unsafe_code)]

pub mod application;
mod before;
mod cores;
pub mod coverage;
pub mod disk;
pub mod history;
pub mod kept;
pub mod log;
pub mod member;
pub mod model;
mod named;
pub mod oracle;
pub mod panics;
pub mod plan;
pub mod pool;
pub mod random;
pub mod run;
pub mod scenario;
pub mod scheduler;
mod seat;
pub mod shrink;
pub mod stage;
pub mod token;
pub mod trace;
mod trouble;
pub mod world;
