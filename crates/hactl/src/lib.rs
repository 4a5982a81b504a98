//! hactl.
