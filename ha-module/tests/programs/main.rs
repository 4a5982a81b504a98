//! Real programs on the built module: each gives the same answers through the slot, a group of two SoftHSM tokens, as on
//! one bare SoftHSM token. What honestly differs is asserted as exactly that, and told in `docs/programs.md`.
#![allow(clippy::unwrap_used)]

mod gnutls;
mod harness;
mod java;
mod knot;
mod nss;
mod opendnssec;
mod openssl;
mod pkcs11_tool;
mod ssh;
