//! ha-module.
