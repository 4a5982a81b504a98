//! group_key.
