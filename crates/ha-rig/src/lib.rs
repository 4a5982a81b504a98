//! The test rig: real SoftHSM tokens, each in a folder of its own, reached directly, with every call watched, or through
//! a p11-kit server that can be killed; tests in processes of their own; waiting. What goes wrong here panics: it is for
//! tests, and for drills, which use what begins with `try_`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod gate;
mod passing;
mod places;
mod process;
mod server;
pub mod shown;
mod store;
mod tokens;
mod wait;
mod watched;

use ha_token::{AttributeType, ck};

pub use gate::Gate;
pub use passing::{Hook, Hooked, Passing, Signing};
pub use places::{find_p11_kit_client, find_softhsm, folder_in_memory, p11_kit_client, softhsm};
pub use process::{Alone, another_user, can_mount, give_to, is_alone, is_root, limit_files, set_mode};
pub use server::{Server, Signal};
pub use store::{Store, hide, restore};
pub use tokens::{Tokens, name};
pub use wait::await_file;
pub use watched::{Act, Sent, Watch};

/// The user PIN of every token.
pub const PIN: &str = "1234";
/// The security officer's PIN of every token.
pub const SO_PIN: &str = "12345678";

/// Where an RSA private key's parts are kept, in the order of PKCS#1; the public key has the first two.
pub const RSA_PARTS: [AttributeType; 8] = [
    ck::CKA_MODULUS,
    ck::CKA_PUBLIC_EXPONENT,
    ck::CKA_PRIVATE_EXPONENT,
    ck::CKA_PRIME_1,
    ck::CKA_PRIME_2,
    ck::CKA_EXPONENT_1,
    ck::CKA_EXPONENT_2,
    ck::CKA_COEFFICIENT,
];
