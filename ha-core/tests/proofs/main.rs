//! Every key that is acknowledged can be proven again after a restart, whatever it may be used for and however it was made;
//! what cannot be proven is refused and leaves nothing (guarantees G1 and G3).
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod adopted;
mod group;
mod kinds;
mod padded;
mod refused;
