//! wrapping.
