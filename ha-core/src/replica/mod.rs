//! Copying keys, proving copies, the ledger, reconciling.

pub mod group_key;
pub mod ledger;
pub mod life;
pub mod proof;
pub mod verifier;
pub mod wrapping;
