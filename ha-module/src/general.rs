//! The library, its slots and tokens: everything that needs no session.

use cryptoki_sys::{
    CK_BBOOL, CK_C_INITIALIZE_ARGS, CK_FLAGS, CK_INFO, CK_MECHANISM_INFO, CK_MECHANISM_TYPE, CK_RV,
    CK_SESSION_HANDLE, CK_SLOT_ID, CK_SLOT_INFO, CK_TOKEN_INFO, CK_ULONG, CK_UTF8CHAR, CK_VERSION,
    CKF_DONT_BLOCK, CKF_LIBRARY_CANT_CREATE_OS_THREADS, CKF_OS_LOCKING_OK, CKF_TOKEN_PRESENT,
};
use ha_core::provider::{Provider, StartOptions};
use ha_token::{Function, Result, Rv, Version, unpad};
use std::ffi::c_void;

use crate::caller::{Caller, ulong};
use crate::guard::{contained, entry};
use crate::state;
use crate::text::padded;

/// The bytes of a token's label in `C_InitToken`, which is not terminated.
const LABEL_LEN: CK_ULONG = 32;

/// `C_Initialize`.
///
/// # Safety
/// `args` is NULL or points to a `CK_C_INITIALIZE_ARGS`.
pub(crate) unsafe extern "C" fn C_Initialize(args: *mut c_void) -> CK_RV {
    contained(Function::Initialize, |_| {
        // SAFETY: this function's own condition.
        let caller = unsafe { Caller::trusted() };
        let options = start_options(caller.value(args.cast()))?;
        state::initialize(|| Provider::from_environment(options).map_err(|error| error.rv()))
    })
}

/// `C_Finalize`.
pub(crate) unsafe extern "C" fn C_Finalize(reserved: *mut c_void) -> CK_RV {
    contained(Function::Finalize, |here| {
        state::with(here, |_| if reserved.is_null() { Ok(()) } else { Err(Rv::ARGUMENTS_BAD) })?;
        state::finalize()
    })
}

/// `C_WaitForSlotEvent`. Apart from the others, because stopping ends it where it waits for them.
///
/// # Safety
/// `slot` is NULL or writable.
pub(crate) unsafe extern "C" fn C_WaitForSlotEvent(
    flags: CK_FLAGS,
    slot: *mut CK_SLOT_ID,
    reserved: *mut c_void,
) -> CK_RV {
    contained(Function::WaitForSlotEvent, |here| {
        // SAFETY: this function's own condition.
        let caller = unsafe { Caller::trusted() };
        state::with(here, |_| if reserved.is_null() { Ok(()) } else { Err(Rv::ARGUMENTS_BAD) })?;
        let place = caller.place(slot)?;
        place.put(state::wait_for_slot_event(here, flags & CKF_DONT_BLOCK == 0)?);
        Ok(())
    })
}

/// What the arguments of `C_Initialize` allow (section 5.4.1).
fn start_options(args: Option<CK_C_INITIALIZE_ARGS>) -> Result<StartOptions> {
    let Some(args) = args else { return Ok(StartOptions { may_create_threads: true }) };
    if !args.pReserved.is_null() {
        return Err(Rv::ARGUMENTS_BAD);
    }
    let callbacks = [
        args.CreateMutex.is_some(),
        args.DestroyMutex.is_some(),
        args.LockMutex.is_some(),
        args.UnlockMutex.is_some(),
    ];
    match (callbacks.contains(&true), callbacks.contains(&false)) {
        (true, true) => Err(Rv::ARGUMENTS_BAD),
        (true, false) if args.flags & CKF_OS_LOCKING_OK == 0 => Err(Rv::CANT_LOCK),
        _ => Ok(StartOptions { may_create_threads: args.flags & CKF_LIBRARY_CANT_CREATE_OS_THREADS == 0 }),
    }
}

entry! {
    /// `C_GetInfo`.
    fn C_GetInfo is GetInfo(info: *mut CK_INFO) |caller, _provider| {
        let ours = Provider::info();
        caller.place(info)?.put(CK_INFO {
            cryptokiVersion: version(ours.cryptoki_version),
            manufacturerID: padded(&ours.manufacturer),
            flags: 0,
            libraryDescription: padded(&ours.description),
            libraryVersion: version(ours.library_version),
        });
        Ok(())
    }

    /// `C_GetSlotList`.
    fn C_GetSlotList is GetSlotList(
        token_present: CK_BBOOL,
        list: *mut CK_SLOT_ID,
        count: *mut CK_ULONG,
    ) |caller, provider| {
        caller.place(count)?;
        let present = |token: &std::sync::Arc<dyn ha_token::Token>| {
            token.slot_info().is_ok_and(|info| info.flags & CKF_TOKEN_PRESENT != 0)
        };
        let slots = provider.slots().iter().enumerate();
        let wanted = slots.filter(|(_, token)| token_present == 0 || present(token));
        let ids: Vec<CK_SLOT_ID> = wanted.map(|(id, _)| ulong(id)).collect();
        caller.list(&ids, list, count)
    }

    /// `C_GetSlotInfo`.
    fn C_GetSlotInfo is GetSlotInfo(slot: CK_SLOT_ID, info: *mut CK_SLOT_INFO) |caller, provider| {
        let place = caller.place(info)?;
        let ours = provider.slot(slot)?.slot_info()?;
        place.put(CK_SLOT_INFO {
            slotDescription: padded(&ours.description),
            manufacturerID: padded(&ours.manufacturer),
            flags: ours.flags,
            hardwareVersion: version(ours.hardware_version),
            firmwareVersion: version(ours.firmware_version),
        });
        Ok(())
    }

    /// `C_GetTokenInfo`.
    fn C_GetTokenInfo is GetTokenInfo(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) |caller, provider| {
        let place = caller.place(info)?;
        let ours = provider.slot(slot)?.token_info()?;
        place.put(CK_TOKEN_INFO {
            label: padded(&ours.label),
            manufacturerID: padded(&ours.manufacturer),
            model: padded(&ours.model),
            serialNumber: padded(&ours.serial),
            flags: ours.flags,
            ulMaxSessionCount: ours.max_session_count,
            ulSessionCount: ours.session_count,
            ulMaxRwSessionCount: ours.max_rw_session_count,
            ulRwSessionCount: ours.rw_session_count,
            ulMaxPinLen: ours.max_pin_len,
            ulMinPinLen: ours.min_pin_len,
            ulTotalPublicMemory: ours.total_public_memory,
            ulFreePublicMemory: ours.free_public_memory,
            ulTotalPrivateMemory: ours.total_private_memory,
            ulFreePrivateMemory: ours.free_private_memory,
            hardwareVersion: version(ours.hardware_version),
            firmwareVersion: version(ours.firmware_version),
            utcTime: padded(&ours.utc_time),
        });
        Ok(())
    }

    /// `C_GetMechanismList`.
    fn C_GetMechanismList is GetMechanismList(
        slot: CK_SLOT_ID,
        list: *mut CK_MECHANISM_TYPE,
        count: *mut CK_ULONG,
    ) |caller, provider| {
        caller.place(count)?;
        let mechanisms = provider.slot(slot)?.mechanism_list()?;
        caller.list(&mechanisms, list, count)
    }

    /// `C_GetMechanismInfo`.
    fn C_GetMechanismInfo is GetMechanismInfo(
        slot: CK_SLOT_ID,
        mechanism: CK_MECHANISM_TYPE,
        info: *mut CK_MECHANISM_INFO,
    ) |caller, provider| {
        let place = caller.place(info)?;
        let ours = provider.slot(slot)?.mechanism_info(mechanism)?;
        place.put(CK_MECHANISM_INFO {
            ulMinKeySize: ours.min_key_size,
            ulMaxKeySize: ours.max_key_size,
            flags: ours.flags,
        });
        Ok(())
    }

    /// `C_InitToken`.
    fn C_InitToken is InitToken(
        slot: CK_SLOT_ID,
        pin: *mut CK_UTF8CHAR,
        pin_len: CK_ULONG,
        label: *mut CK_UTF8CHAR,
    ) |caller, provider| {
        let pin = caller.optional(pin, pin_len)?;
        let label = caller.input(label, LABEL_LEN)?;
        std::str::from_utf8(label).map_err(|_| Rv::ARGUMENTS_BAD)?;
        provider.slot(slot)?.init_token(pin, &unpad(label))
    }

    /// `C_CloseAllSessions`.
    fn C_CloseAllSessions is CloseAllSessions(slot: CK_SLOT_ID) |_caller, provider| {
        provider.slot(slot)?.close_all_sessions()
    }

    /// `C_GetFunctionStatus`: a relic, refused as the standard says (section 5.20).
    fn C_GetFunctionStatus is GetFunctionStatus(_session: CK_SESSION_HANDLE) |_caller, _provider| {
        Err(Rv::FUNCTION_NOT_PARALLEL)
    }

    /// `C_CancelFunction`: a relic, refused as the standard says (section 5.20).
    fn C_CancelFunction is CancelFunction(_session: CK_SESSION_HANDLE) |_caller, _provider| {
        Err(Rv::FUNCTION_NOT_PARALLEL)
    }
}

fn version(version: Version) -> CK_VERSION {
    CK_VERSION { major: version.major, minor: version.minor }
}
