//! The seam between an HA group and its members.
//!
//! Everything above this crate speaks PKCS#11 as plain Rust data: no raw pointers, no global state, no
//! `unsafe`. The trait [`Token`] is one slot with its token; the real one (crate `ha-member`) speaks to a
//! loaded module, the virtual slot of `ha-core` implements the same trait over several of them, and the
//! simulation has one with software cryptography. Nothing above the seam knows which it has.
//!
//! Names and semantics are those of PKCS#11 v3.2; a method's documentation names the C functions it stands for.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub use cryptoki_sys as ck;

mod attribute;
mod connector;
mod function;
mod info;
mod mechanism;
mod mechanism_names;
mod output;
mod rv;
mod token;

pub use attribute::{Attribute, AttributeType, Fetched, Template, TemplateExt, Value};
pub use connector::{ConnectError, Connector, Selector};
pub use function::Function;
pub use info::{LibraryInfo, MechanismInfo, SessionInfo, SlotInfo, TokenInfo, Version, unpad};
pub use mechanism::{Field, FieldValue, Mechanism, Params, StructParams};
pub use mechanism_names::{MECHANISM_NAMES, mechanism_by_name, mechanism_name};
pub use output::Output;
pub use rv::Rv;
pub use token::{CombinedKind, MessageKind, ObjectHandle, OpKind, SessionHandle, Token, UserType};

/// `CK_ULONG`: the width of every number that crosses the PKCS#11 interface on this platform.
pub type Ulong = cryptoki_sys::CK_ULONG;

/// What a call to a token answers: a value, or the member's own return code, unchanged.
pub type Result<T> = std::result::Result<T, Rv>;
