//! The one real token: a member's PKCS#11 module, loaded, initialised and called through its C functions.
//!
//! | file | subject |
//! | --- | --- |
//! | `fork` | noticing a fork; locks that a forked child can still take |
//! | [`whole`] | work that a fork waits for |
//! | `exit` | telling those with threads in modules that the process ends |
//! | `presence` | who is in what: calls in flight |
//! | `environment` | showing a module its environment without `setenv` |
//! | `loader` | modules, refusing ourselves; how they are loaded is crate `ha-loader` |
//! | `instance` | one loaded copy: initialise, finalise, calls in flight |
//! | `search` | which token of an instance a selector means |
//! | `connector` | [`ModuleConnector`]: connecting again and again |
//! | `calls` | how slices, PINs and outputs cross the C interface; calls without a session |
//! | `operations`, `messages` | which C function does what, for each kind of operation |
//! | `secret` | [`Secret`]: memory for PINs |
//! | `word` | [`SharedWord`]: what the processes of a host tell each other |
//! | `makings`, `searches`, `writes` | what other threads, and other processes, are making |
//! | `token` | one C call for each method of [`ha_token::Token`] |
//!
//! Modules are never unloaded: a hung call may return into one at any time. Everything here may block for as long as
//! the module does, except where a bounded wait is named.
#![deny(missing_docs)]

mod calls;
mod connector;
mod environment;
mod exit;
mod fork;
mod instance;
mod loader;
mod makings;
mod messages;
mod operations;
mod plain;
pub mod presence;
mod search;
mod searches;
mod secret;
mod token;
pub mod whole;
mod word;
mod writes;

pub use connector::{Instance, ModuleConfig, ModuleConnector, tokens};
pub use exit::{Ending, before_exit};
pub use fork::{ForkGuard, ForkLock, fork_generation};
pub use instance::inside_member;
pub use plain::open_plain;
pub use secret::Secret;
pub use word::SharedWord;
