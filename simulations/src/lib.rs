//! simulations.
