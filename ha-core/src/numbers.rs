//! Numbers that the slots and the provider above them agree on.

use ha_token::Version;

/// Bits of a session handle that name the slot.
pub(crate) const SLOT_BITS: u32 = 10;
/// This library's version, as PKCS#11 tells it.
pub(crate) const LIBRARY_VERSION: Version = Version { major: 0, minor: 1 };
