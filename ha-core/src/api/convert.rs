//! Between cryptoki's types and ours: errors, information, templates and mechanisms.

use cryptoki::context::{Function, Info};
use cryptoki::error::{Error, Result, RvError};
use cryptoki::mechanism::{Mechanism, MessageParam};
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::{SessionInfo, UserType};
use cryptoki::slot::{Slot, SlotInfo, TokenInfo};
use ha_token::ck::{CK_INFO, CK_MECHANISM_INFO, CK_SESSION_INFO, CK_SLOT_INFO, CK_TOKEN_INFO, CK_VERSION};
use ha_token::{Output, Rv, Template, Version};

/// The length that the first try of an unknown output has room for beyond the input's: signatures and wrapped keys of
/// every classical algorithm fit.
const FIRST_ROOM: usize = 1024;
/// How often an output is given more room before the token's word is no longer believed.
const MAX_TRIES: usize = 4;

/// cryptoki's error for a return code.
pub(super) fn error(rv: Rv, function: Function) -> Error {
    match cryptoki::error::Rv::from(rv.0) {
        cryptoki::error::Rv::Error(e) => Error::Pkcs11(e, function),
        // `Rv` is never CKR_OK; a token that claims so all the same has not done what it was asked for.
        cryptoki::error::Rv::Ok => Error::Pkcs11(RvError::GeneralError, function),
    }
}

/// Turns a token's answer into cryptoki's.
pub(super) trait OrError<T> {
    /// The value, or cryptoki's error that names `function`.
    fn or_error(self, function: Function) -> Result<T>;
}

impl<T> OrError<T> for ha_token::Result<T> {
    fn or_error(self, function: Function) -> Result<T> {
        self.map_err(|rv| error(rv, function))
    }
}

/// Runs a call with variable-length output: one try with room for `input` bytes and [`FIRST_ROOM`] more, and another
/// with as much as `CKR_BUFFER_TOO_SMALL` asked for. That code ends no operation, so this answers what cryptoki's
/// size query and call do, mostly in one call.
pub(super) fn collect(
    input: usize,
    mut call: impl FnMut(&mut Output<'_>) -> ha_token::Result<()>,
) -> ha_token::Result<Vec<u8>> {
    let mut room = input.saturating_add(FIRST_ROOM);
    for _ in 0..MAX_TRIES {
        let mut bytes = vec![0; room];
        let mut output = Output::buffer(&mut bytes);
        let answer = call(&mut output);
        let len = output.len();
        match answer {
            Ok(()) => {
                bytes.truncate(len);
                bytes.shrink_to_fit();
                return Ok(bytes);
            }
            Err(Rv::BUFFER_TOO_SMALL) if len > room => room = len,
            Err(rv) => return Err(rv),
        }
    }
    Err(Rv::BUFFER_TOO_SMALL)
}

/// A template.
pub(super) fn template(attributes: &[Attribute]) -> Template {
    attributes.iter().map(ha_abi::from_cryptoki_attribute).collect()
}

/// A mechanism, copied deep.
pub(super) fn mechanism(mechanism: &Mechanism<'_>, function: Function) -> Result<ha_token::Mechanism> {
    ha_abi::from_cryptoki_mechanism(mechanism).or_error(function)
}

/// A message's parameter as the mechanism that has the same one.
pub(super) fn message_mechanism<'a>(param: &MessageParam<'a>) -> Mechanism<'a> {
    match param {
        MessageParam::AesGcmMessage(gcm) => Mechanism::AesGcmMessage(*gcm),
    }
}

/// A handle of ours as cryptoki's.
pub(super) fn to_handle(handle: ha_token::ObjectHandle) -> ObjectHandle {
    ha_abi::object_handle(handle)
}

/// A handle of cryptoki's as ours.
pub(super) fn from_handle(handle: ObjectHandle) -> ha_token::ObjectHandle {
    ha_token::ObjectHandle(handle.handle())
}

/// A user type; a vendor's is known to no member.
pub(super) fn user(user: UserType) -> ha_token::Result<ha_token::UserType> {
    match user {
        UserType::So => Ok(ha_token::UserType::So),
        UserType::User => Ok(ha_token::UserType::User),
        UserType::ContextSpecific => Ok(ha_token::UserType::ContextSpecific),
        UserType::VendorExtension(_) => Err(Rv::USER_TYPE_INVALID),
    }
}

/// `CK_INFO`.
pub(super) fn library_info(info: &ha_token::LibraryInfo) -> Result<Info> {
    Info::try_from(CK_INFO {
        cryptokiVersion: version(info.cryptoki_version),
        manufacturerID: pad(&info.manufacturer),
        flags: 0,
        libraryDescription: pad(&info.description),
        libraryVersion: version(info.library_version),
    })
}

/// `CK_SLOT_INFO`.
pub(super) fn slot_info(info: &ha_token::SlotInfo) -> SlotInfo {
    SlotInfo::from(CK_SLOT_INFO {
        slotDescription: pad(&info.description),
        manufacturerID: pad(&info.manufacturer),
        flags: info.flags,
        hardwareVersion: version(info.hardware_version),
        firmwareVersion: version(info.firmware_version),
    })
}

/// `CK_TOKEN_INFO`.
pub(super) fn token_info(info: &ha_token::TokenInfo) -> Result<TokenInfo> {
    TokenInfo::try_from(CK_TOKEN_INFO {
        label: pad(&info.label),
        manufacturerID: pad(&info.manufacturer),
        model: pad(&info.model),
        serialNumber: pad(&info.serial),
        flags: info.flags,
        ulMaxSessionCount: info.max_session_count,
        ulSessionCount: info.session_count,
        ulMaxRwSessionCount: info.max_rw_session_count,
        ulRwSessionCount: info.rw_session_count,
        ulMaxPinLen: info.max_pin_len,
        ulMinPinLen: info.min_pin_len,
        ulTotalPublicMemory: info.total_public_memory,
        ulFreePublicMemory: info.free_public_memory,
        ulTotalPrivateMemory: info.total_private_memory,
        ulFreePrivateMemory: info.free_private_memory,
        hardwareVersion: version(info.hardware_version),
        firmwareVersion: version(info.firmware_version),
        utcTime: pad(&info.utc_time),
    })
}

/// `CK_SESSION_INFO`.
pub(super) fn session_info(slot: Slot, info: ha_token::SessionInfo) -> Result<SessionInfo> {
    SessionInfo::try_from(CK_SESSION_INFO {
        slotID: slot.into(),
        state: info.state,
        flags: info.flags,
        ulDeviceError: info.device_error,
    })
}

/// `CK_MECHANISM_INFO`.
pub(super) fn mechanism_info(info: ha_token::MechanismInfo) -> cryptoki::mechanism::MechanismInfo {
    CK_MECHANISM_INFO { ulMinKeySize: info.min_key_size, ulMaxKeySize: info.max_key_size, flags: info.flags }
        .into()
}

/// As much of `text` as `max` bytes hold, whole characters only.
pub(super) fn fit(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    text.get(..end).unwrap_or("")
}

/// A blank-padded field.
fn pad<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    let text = fit(text, N).as_bytes();
    for (place, byte) in field.iter_mut().zip(text) {
        *place = *byte;
    }
    field
}

fn version(v: Version) -> CK_VERSION {
    CK_VERSION { major: v.major, minor: v.minor }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token that needs `need` bytes and says so, as PKCS#11 wants it.
    fn answer(need: usize, calls: &mut usize, output: &mut Output<'_>) -> ha_token::Result<()> {
        *calls += 1;
        output.write(&vec![7; need])
    }

    #[test]
    fn output_that_fits_takes_one_call() {
        let mut calls = 0;
        let bytes = collect(16, |o| answer(16 + FIRST_ROOM, &mut calls, o));
        assert_eq!((bytes.map(|b| b.len()), calls), (Ok(16 + FIRST_ROOM), 1));
    }

    #[test]
    fn output_one_byte_longer_takes_two_calls() {
        let mut calls = 0;
        let bytes = collect(16, |o| answer(17 + FIRST_ROOM, &mut calls, o));
        assert_eq!((bytes.map(|b| b.len()), calls), (Ok(17 + FIRST_ROOM), 2));
    }

    #[test]
    fn a_token_that_always_wants_more_is_left() {
        let mut calls = 0;
        let bytes = collect(0, |o| {
            calls += 1;
            let more = o.capacity().unwrap_or(0) + 1;
            o.settle(Err(Rv::BUFFER_TOO_SMALL), more)
        });
        assert_eq!((bytes, calls), (Err(Rv::BUFFER_TOO_SMALL), MAX_TRIES));
    }

    #[test]
    fn labels_are_cut_between_characters() {
        assert_eq!(fit("añb", 2), "a");
        assert_eq!(fit("añb", 3), "añ");
        assert_eq!(pad::<4>("añb"), [b'a', 0xC3, 0xB1, b'b']);
        assert_eq!(pad::<2>("añb"), *b"a ");
    }

    #[test]
    fn codes_keep_their_function() {
        assert!(matches!(
            error(Rv::PIN_INCORRECT, Function::Login),
            Error::Pkcs11(RvError::PinIncorrect, Function::Login)
        ));
    }
}
