//! ha-rig.
