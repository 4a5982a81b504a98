//! Pure decisions: plain values, a clock reading and a random number in, a decision out. No I/O, no locks, no threads.

pub mod balance;
pub mod budget;
pub mod doubt;
pub mod failure;
pub mod health;
pub mod liar;
pub mod marker;
pub mod pin;
pub mod shared;
pub mod slow_start;
pub(crate) mod width;
