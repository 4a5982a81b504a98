//! Calls without a session, and how slices, PINs and outputs cross the C interface.

use std::sync::atomic::AtomicU8;

use cryptoki_sys as ck;
use ha_token::{LibraryInfo, Output, Result, Rv, SlotInfo, TokenInfo, Ulong, Version, unpad};

use crate::instance::{Call, ulong};

/// Calls a function of the list through a [`Call`]; one that the module does not have is not supported.
macro_rules! invoke {
    ($call:expr, $function:ident $(, $argument:expr)* $(,)?) => {{
        let call: &$crate::instance::Call<'_> = &$call;
        match call.$function {
            // SAFETY: the module's own function, called with its standard's arguments: every pointer below is NULL where
            // the standard allows it, or points to live memory of the length passed beside it.
            Some(function) => ha_token::Rv::check(unsafe { function($($argument),*) }),
            None => Err(ha_token::Rv::FUNCTION_NOT_SUPPORTED),
        }
    }};
}
pub(crate) use invoke;

/// Where empty slices point: some modules crash on NULL, and Rust's own empty slices point nowhere.
static NOTHING: AtomicU8 = AtomicU8::new(0);

/// A slice's address, never NULL. The module only reads there.
pub(crate) fn input(bytes: &[u8]) -> *mut u8 {
    if bytes.is_empty() { NOTHING.as_ptr() } else { bytes.as_ptr().cast_mut() }
}

/// A PIN's address and length; NULL for the protected authentication path.
pub(crate) fn pin(pin: Option<&[u8]>) -> (*mut u8, Ulong) {
    pin.map_or((std::ptr::null_mut(), 0), |p| (input(p), ulong(p.len())))
}

/// One call that follows the output-length convention.
///
/// A module that says `CKR_BUFFER_TOO_SMALL` without saying how much it needs is asked once more, with a size query.
#[inline]
pub(crate) fn output(
    output: &mut Output<'_>,
    mut call: impl FnMut(*mut u8, *mut Ulong) -> Result<()>,
) -> Result<()> {
    let (place, capacity) = match output.space() {
        Some([]) => (NOTHING.as_ptr(), 0),
        Some(buffer) => (buffer.as_mut_ptr(), buffer.len()),
        None => (std::ptr::null_mut(), 0),
    };
    let mut len = ulong(capacity);
    let result = call(place, &mut len);
    let told = usize::try_from(len).ok().filter(|_| len != ck::CK_UNAVAILABLE_INFORMATION);
    let needed = match (result, told) {
        (Ok(()), Some(told)) => told,
        (Ok(()), None) => return output.settle(Err(Rv::GENERAL_ERROR), 0),
        (Err(Rv::BUFFER_TOO_SMALL), Some(told)) if told > capacity => told,
        (Err(Rv::BUFFER_TOO_SMALL), _) if !place.is_null() => {
            let mut len = 0;
            let asked = call(std::ptr::null_mut(), &mut len);
            asked.ok().and_then(|()| usize::try_from(len).ok()).unwrap_or(0)
        }
        (Err(_), _) => 0,
    };
    output.settle(result, needed)
}

/// A list by the two-call convention, asked again while it grows.
pub(crate) fn list(mut call: impl FnMut(*mut Ulong, *mut Ulong) -> Result<()>) -> Result<Vec<Ulong>> {
    for _ in 0..8 {
        let mut count = 0;
        call(std::ptr::null_mut(), &mut count)?;
        let room = usize::try_from(count).unwrap_or(0).min(1 << 20);
        let mut items = vec![0; room.max(1)];
        let mut count = ulong(room);
        match call(items.as_mut_ptr(), &mut count) {
            Ok(()) => {
                items.truncate(usize::try_from(count).unwrap_or(0).min(room));
                return Ok(items);
            }
            Err(Rv::BUFFER_TOO_SMALL) => {}
            Err(rv) => return Err(rv),
        }
    }
    Err(Rv::BUFFER_TOO_SMALL)
}

/// `C_GetInfo`.
pub(crate) fn library_info(call: &Call<'_>) -> Result<LibraryInfo> {
    let mut info = ck::CK_INFO::default();
    invoke!(*call, C_GetInfo, &mut info)?;
    Ok(LibraryInfo {
        cryptoki_version: version(info.cryptokiVersion),
        manufacturer: unpad(&info.manufacturerID),
        description: unpad(&info.libraryDescription),
        library_version: version(info.libraryVersion),
    })
}

/// `C_GetSlotList`, slots with a token only.
pub(crate) fn slots(call: &Call<'_>) -> Result<Vec<Ulong>> {
    list(|slots, count| invoke!(*call, C_GetSlotList, ck::CK_TRUE, slots, count))
}

/// `C_GetSlotInfo`.
pub(crate) fn slot_info(call: &Call<'_>, slot: Ulong) -> Result<SlotInfo> {
    let mut info = ck::CK_SLOT_INFO::default();
    invoke!(*call, C_GetSlotInfo, slot, &mut info)?;
    Ok(SlotInfo {
        description: unpad(&info.slotDescription),
        manufacturer: unpad(&info.manufacturerID),
        flags: info.flags,
        hardware_version: version(info.hardwareVersion),
        firmware_version: version(info.firmwareVersion),
    })
}

/// `C_GetTokenInfo`.
pub(crate) fn token_info(call: &Call<'_>, slot: Ulong) -> Result<TokenInfo> {
    let mut info = ck::CK_TOKEN_INFO::default();
    invoke!(*call, C_GetTokenInfo, slot, &mut info)?;
    Ok(TokenInfo {
        label: unpad(&info.label),
        manufacturer: unpad(&info.manufacturerID),
        model: unpad(&info.model),
        serial: unpad(&info.serialNumber),
        flags: info.flags,
        max_session_count: info.ulMaxSessionCount,
        session_count: info.ulSessionCount,
        max_rw_session_count: info.ulMaxRwSessionCount,
        rw_session_count: info.ulRwSessionCount,
        max_pin_len: info.ulMaxPinLen,
        min_pin_len: info.ulMinPinLen,
        total_public_memory: info.ulTotalPublicMemory,
        free_public_memory: info.ulFreePublicMemory,
        total_private_memory: info.ulTotalPrivateMemory,
        free_private_memory: info.ulFreePrivateMemory,
        hardware_version: version(info.hardwareVersion),
        firmware_version: version(info.firmwareVersion),
        utc_time: unpad(&info.utcTime),
    })
}

fn version(v: ck::CK_VERSION) -> Version {
    Version { major: v.major, minor: v.minor }
}
