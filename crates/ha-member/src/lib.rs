//! ha-member.
