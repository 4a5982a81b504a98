//! The test rig: real SoftHSM tokens, each in a folder of its own, reached directly, with every call watched, or through
//! a p11-kit server that can be killed; tests in processes of their own; waiting. What goes wrong here panics: it is for
//! tests only.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod passing;
mod places;
mod process;
mod server;
pub mod shown;
mod store;
mod tokens;
mod wait;
mod watched;

pub use passing::{Hook, Passing, Signing};
pub use places::{p11_kit_client, softhsm};
pub use process::{Alone, another_user, can_mount, give_to, is_alone, is_root, limit_files, set_mode};
pub use server::{Server, Signal};
pub use store::{Store, hide, restore};
pub use tokens::{Tokens, name};
pub use wait::await_file;
pub use watched::{Act, Sent, Watch, Watched};

/// The user PIN of every token.
pub const PIN: &str = "1234";
/// The security officer's PIN of every token.
pub const SO_PIN: &str = "12345678";
