//! Sessions, logins and PINs.

use std::ffi::c_void;
use std::sync::Arc;

use cryptoki_sys::{
    CK_ASYNC_DATA, CK_BYTE, CK_FLAGS, CK_NOTIFY, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_SESSION_INFO,
    CK_SESSION_VALIDATION_FLAGS_TYPE, CK_SLOT_ID, CK_ULONG, CK_USER_TYPE, CK_UTF8CHAR, CKF_ASYNC_SESSION,
    CKF_RW_SESSION, CKF_SERIAL_SESSION, CKU_CONTEXT_SPECIFIC, CKU_SO, CKU_USER,
};
use ha_core::provider::Provider;
use ha_token::{Result, Rv, SessionHandle, Token, UserType};

use crate::guard::entry;

/// The token that a session belongs to, and the handle as that token knows it.
pub(crate) fn session(
    provider: &Provider,
    handle: CK_SESSION_HANDLE,
) -> Result<(&Arc<dyn Token>, SessionHandle)> {
    let handle = SessionHandle(handle);
    provider.session(handle).map(|(_, token)| (token, handle))
}

/// Makes a call on the token that a session belongs to; a virtual slot's is called directly, without a look-up of the
/// method, which matters for what is called with every signature.
macro_rules! call_serving {
    ($provider:expr, $handle:expr, $method:ident($($argument:expr),* $(,)?)) => {{
        let session = ha_token::SessionHandle($handle);
        match $provider.serving(session)? {
            ha_core::provider::Serving::Virtual(slot) => slot.$method(session, $($argument),*),
            ha_core::provider::Serving::Other(token) => token.$method(session, $($argument),*),
        }
    }};
}
pub(crate) use call_serving;

/// As [`session`], for functions that never reach the token: the session must be open.
fn open_session(provider: &Provider, handle: CK_SESSION_HANDLE) -> Result<()> {
    let (token, session) = session(provider, handle)?;
    token.session_info(session).map(|_| ())
}

fn user_type(user: CK_USER_TYPE) -> Result<UserType> {
    match user {
        CKU_SO => Ok(UserType::So),
        CKU_USER => Ok(UserType::User),
        CKU_CONTEXT_SPECIFIC => Ok(UserType::ContextSpecific),
        _ => Err(Rv::USER_TYPE_INVALID),
    }
}

entry! {
    /// `C_OpenSession`. The callback is not kept: it is optional to the library, and nothing here calls back.
    fn C_OpenSession is OpenSession(
        slot: CK_SLOT_ID,
        flags: CK_FLAGS,
        _application: *mut c_void,
        _notify: CK_NOTIFY,
        handle: *mut CK_SESSION_HANDLE,
    ) |caller, provider| {
        let place = caller.place(handle)?;
        let token = provider.slot(slot)?;
        if flags & CKF_SERIAL_SESSION == 0 {
            return Err(Rv::SESSION_PARALLEL_NOT_SUPPORTED);
        }
        if flags & CKF_ASYNC_SESSION != 0 {
            return Err(Rv::SESSION_ASYNC_NOT_SUPPORTED);
        }
        place.put(token.open_session(flags & CKF_RW_SESSION != 0)?.0);
        Ok(())
    }

    /// `C_CloseSession`.
    fn C_CloseSession is CloseSession(handle: CK_SESSION_HANDLE) |_caller, provider| {
        let (token, session) = session(provider, handle)?;
        token.close_session(session)
    }

    /// `C_GetSessionInfo`.
    fn C_GetSessionInfo is GetSessionInfo(
        handle: CK_SESSION_HANDLE,
        info: *mut CK_SESSION_INFO,
    ) |caller, provider| {
        let place = caller.place(info)?;
        let handle = SessionHandle(handle);
        let (slot, token) = provider.session(handle)?;
        let ours = token.session_info(handle)?;
        place.put(CK_SESSION_INFO {
            slotID: slot,
            state: ours.state,
            flags: ours.flags,
            ulDeviceError: ours.device_error,
        });
        Ok(())
    }

    /// `C_SessionCancel`.
    fn C_SessionCancel is SessionCancel(handle: CK_SESSION_HANDLE, flags: CK_FLAGS) |_caller, provider| {
        let (token, session) = session(provider, handle)?;
        token.session_cancel(session, flags)
    }

    /// `C_GetSessionValidationFlags`.
    fn C_GetSessionValidationFlags is GetSessionValidationFlags(
        handle: CK_SESSION_HANDLE,
        kind: CK_SESSION_VALIDATION_FLAGS_TYPE,
        flags: *mut CK_FLAGS,
    ) |caller, provider| {
        let place = caller.place(flags)?;
        let (token, session) = session(provider, handle)?;
        place.put(token.session_validation_flags(session, kind)?);
        Ok(())
    }

    /// `C_GetOperationState`: one member's state means nothing to another.
    fn C_GetOperationState is GetOperationState(
        handle: CK_SESSION_HANDLE,
        _state: *mut CK_BYTE,
        len: *mut CK_ULONG,
    ) |caller, provider| {
        caller.place(len)?;
        open_session(provider, handle)?;
        Err(Rv::STATE_UNSAVEABLE)
    }

    /// `C_SetOperationState`: refused, as there is no state that this library gave out.
    fn C_SetOperationState is SetOperationState(
        handle: CK_SESSION_HANDLE,
        state: *mut CK_BYTE,
        len: CK_ULONG,
        _encryption_key: CK_OBJECT_HANDLE,
        _authentication_key: CK_OBJECT_HANDLE,
    ) |caller, provider| {
        caller.input(state, len)?;
        open_session(provider, handle)?;
        Err(Rv::STATE_UNSAVEABLE)
    }

    /// `C_Login`.
    fn C_Login is Login(
        handle: CK_SESSION_HANDLE,
        user: CK_USER_TYPE,
        pin: *mut CK_UTF8CHAR,
        pin_len: CK_ULONG,
    ) |caller, provider| {
        let pin = caller.optional(pin, pin_len)?;
        let (token, session) = session(provider, handle)?;
        token.login(session, user_type(user)?, pin)
    }

    /// `C_LoginUser`.
    fn C_LoginUser is LoginUser(
        handle: CK_SESSION_HANDLE,
        user: CK_USER_TYPE,
        pin: *mut CK_UTF8CHAR,
        pin_len: CK_ULONG,
        name: *mut CK_UTF8CHAR,
        name_len: CK_ULONG,
    ) |caller, provider| {
        let pin = caller.optional(pin, pin_len)?;
        let name = caller.input(name, name_len)?;
        let (token, session) = session(provider, handle)?;
        token.login_user(session, user_type(user)?, pin, name)
    }

    /// `C_Logout`.
    fn C_Logout is Logout(handle: CK_SESSION_HANDLE) |_caller, provider| {
        let (token, session) = session(provider, handle)?;
        token.logout(session)
    }

    /// `C_InitPIN`.
    fn C_InitPIN is InitPin(
        handle: CK_SESSION_HANDLE,
        pin: *mut CK_UTF8CHAR,
        pin_len: CK_ULONG,
    ) |caller, provider| {
        let pin = caller.optional(pin, pin_len)?;
        let (token, session) = session(provider, handle)?;
        token.init_pin(session, pin)
    }

    /// `C_SetPIN`.
    fn C_SetPIN is SetPin(
        handle: CK_SESSION_HANDLE,
        old: *mut CK_UTF8CHAR,
        old_len: CK_ULONG,
        new: *mut CK_UTF8CHAR,
        new_len: CK_ULONG,
    ) |caller, provider| {
        let old = caller.optional(old, old_len)?;
        let new = caller.optional(new, new_len)?;
        let (token, session) = session(provider, handle)?;
        token.set_pin(session, old, new)
    }

    /// `C_AsyncComplete`: no session here is asynchronous, so no function has anything to complete.
    fn C_AsyncComplete is AsyncComplete(
        handle: CK_SESSION_HANDLE,
        function: *mut CK_UTF8CHAR,
        _result: *mut CK_ASYNC_DATA,
    ) |caller, provider| {
        caller.place(function)?;
        open_session(provider, handle)?;
        Err(Rv::OPERATION_NOT_INITIALIZED)
    }

    /// `C_AsyncGetID`: no function here is performing an asynchronous operation.
    fn C_AsyncGetID is AsyncGetId(
        handle: CK_SESSION_HANDLE,
        function: *mut CK_UTF8CHAR,
        id: *mut CK_ULONG,
    ) |caller, provider| {
        caller.place(function)?;
        caller.place(id)?;
        open_session(provider, handle)?;
        Err(Rv::OPERATION_NOT_INITIALIZED)
    }

    /// `C_AsyncJoin`: no identifier can have come from here.
    fn C_AsyncJoin is AsyncJoin(
        handle: CK_SESSION_HANDLE,
        function: *mut CK_UTF8CHAR,
        _id: CK_ULONG,
        _data: *mut CK_BYTE,
        _len: CK_ULONG,
    ) |caller, provider| {
        caller.place(function)?;
        open_session(provider, handle)?;
        Err(Rv::SAVED_STATE_INVALID)
    }
}
