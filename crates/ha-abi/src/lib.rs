//! PKCS#11 C structures to plain data and back.
//!
//! A caller's mechanisms and templates are copied deep, with every length checked before it is used; the
//! answers are written back where the caller wants them; and the same data is laid out in C form again to
//! call a module. Parameter structures are described by tables (`layouts`), and one engine reads and one
//! writes them all, so that adding a structure adds a table entry and no code.
//!
//! What can be checked is checked. A pointer that is not null and does not point at what the call says is
//! beyond any check: that is what the `unsafe` of the functions stands for.
#![deny(missing_docs)]

mod answer;
mod arena;
mod cryptoki;
mod fetch;
mod layout;
mod layouts;
mod mechanism;
mod mechanisms;
mod read;
mod slice;
mod template;
mod write;

#[cfg(test)]
mod attribute_tests;
#[cfg(test)]
mod tests;

pub use answer::answer_attributes;
pub use cryptoki::{from_cryptoki_attribute, from_cryptoki_mechanism, object_handle, to_cryptoki_attribute};
pub use fetch::fetch_attributes;
pub use mechanism::{
    RawMechanism, RawParams, read_mechanism, read_message_params, write_back_mechanism,
    write_back_message_params,
};
pub use slice::{slice, slice_mut};
pub use template::{RawTemplate, attribute_types, read_template};

/// The longest single value, and the longest sum of all values of one call, that is copied: 64 MiB.
const MAX_BYTES: usize = 64 << 20;
/// The most attributes and list elements that one call may have, nested ones included.
const MAX_ITEMS: usize = 4096;
/// How deep templates, structures and mechanisms may nest.
const MAX_DEPTH: usize = 4;
