//! Slot, token, session, mechanism and library information as plain data.

use crate::Ulong;

/// `CK_VERSION`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, PartialOrd, Ord)]
pub struct Version {
    /// Integer part.
    pub major: u8,
    /// Hundredths.
    pub minor: u8,
}

/// `CK_INFO`, text without its blank padding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LibraryInfo {
    /// Version of the PKCS#11 interface.
    pub cryptoki_version: Version,
    /// Who made the module.
    pub manufacturer: String,
    /// What it is.
    pub description: String,
    /// Its own version.
    pub library_version: Version,
}

/// `CK_SLOT_INFO`, text without its blank padding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotInfo {
    /// At most 64 bytes.
    pub description: String,
    /// At most 32 bytes.
    pub manufacturer: String,
    /// `CKF_TOKEN_PRESENT` and so on.
    pub flags: Ulong,
    /// Of the hardware.
    pub hardware_version: Version,
    /// Of the firmware.
    pub firmware_version: Version,
}

/// `CK_TOKEN_INFO`, text without its blank padding; counts as the token gave them, with
/// `CK_UNAVAILABLE_INFORMATION` and `CK_EFFECTIVELY_INFINITE` unchanged.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // the fields of CK_TOKEN_INFO (section 3.2)
pub struct TokenInfo {
    pub label: String,
    pub manufacturer: String,
    pub model: String,
    pub serial: String,
    pub flags: Ulong,
    pub max_session_count: Ulong,
    pub session_count: Ulong,
    pub max_rw_session_count: Ulong,
    pub rw_session_count: Ulong,
    pub max_pin_len: Ulong,
    pub min_pin_len: Ulong,
    pub total_public_memory: Ulong,
    pub free_public_memory: Ulong,
    pub total_private_memory: Ulong,
    pub free_private_memory: Ulong,
    pub hardware_version: Version,
    pub firmware_version: Version,
    /// 16 characters, `YYYYMMDDhhmmssxx`, or empty.
    pub utc_time: String,
}

/// `CK_SESSION_INFO` without the slot, which the caller knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionInfo {
    /// `CKS_RO_PUBLIC_SESSION` and so on.
    pub state: Ulong,
    /// `CKF_RW_SESSION`, `CKF_SERIAL_SESSION`.
    pub flags: Ulong,
    /// The token's own error code.
    pub device_error: Ulong,
}

/// `CK_MECHANISM_INFO`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MechanismInfo {
    /// In bits or bytes, by mechanism.
    pub min_key_size: Ulong,
    /// In bits or bytes, by mechanism.
    pub max_key_size: Ulong,
    /// `CKF_SIGN` and so on.
    pub flags: Ulong,
}

/// The text of a fixed-width field: blanks and NULs at its end taken off, invalid UTF-8 replaced.
pub fn unpad(field: &[u8]) -> String {
    let end = field.iter().rposition(|b| *b != b' ' && *b != 0).map_or(0, |p| p + 1);
    String::from_utf8_lossy(field.get(..end).unwrap_or(&[])).into_owned()
}
