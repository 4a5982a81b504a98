//! Message-based operations (3.0): the per-message parameter, and which C function does what.

use std::ffi::c_void;

use cryptoki_sys as ck;
use ha_abi::RawParams;
use ha_token::{MessageKind, ObjectHandle, Output, Params, Result, Rv, SessionHandle, Ulong};

use crate::calls::{input, invoke, output};
use crate::instance::{Call, ulong};

/// Hands a per-message parameter to `call`, and what the token wrote into it back.
pub(crate) fn with_params<T>(
    params: &mut Params,
    call: impl FnOnce(*mut c_void, Ulong) -> Result<T>,
) -> Result<T> {
    let mut raw = RawParams::new(params)?;
    let len = raw.len();
    let answer = call(raw.as_mut_ptr(), len)?;
    raw.update(params);
    Ok(answer)
}

/// `C_MessageXxxInit`; a NULL mechanism cancels.
pub(crate) fn init(
    call: &Call<'_>,
    session: SessionHandle,
    kind: MessageKind,
    mechanism: *mut ck::CK_MECHANISM,
    key: ObjectHandle,
) -> Result<()> {
    match kind {
        MessageKind::Encrypt => invoke!(*call, C_MessageEncryptInit, session.0, mechanism, key.0),
        MessageKind::Decrypt => invoke!(*call, C_MessageDecryptInit, session.0, mechanism, key.0),
        MessageKind::Sign => invoke!(*call, C_MessageSignInit, session.0, mechanism, key.0),
        MessageKind::Verify => invoke!(*call, C_MessageVerifyInit, session.0, mechanism, key.0),
    }
}

/// `C_MessageXxxFinal`.
pub(crate) fn last(call: &Call<'_>, session: SessionHandle, kind: MessageKind) -> Result<()> {
    match kind {
        MessageKind::Encrypt => invoke!(*call, C_MessageEncryptFinal, session.0),
        MessageKind::Decrypt => invoke!(*call, C_MessageDecryptFinal, session.0),
        MessageKind::Sign => invoke!(*call, C_MessageSignFinal, session.0),
        MessageKind::Verify => invoke!(*call, C_MessageVerifyFinal, session.0),
    }
}

/// `C_EncryptMessage`, `C_DecryptMessage`, `C_SignMessage`.
pub(crate) fn one_shot(
    call: &Call<'_>,
    session: SessionHandle,
    kind: MessageKind,
    params: &mut Params,
    associated: &[u8],
    data: &[u8],
    out: &mut Output<'_>,
) -> Result<()> {
    let function = match kind {
        MessageKind::Encrypt => call.C_EncryptMessage,
        MessageKind::Decrypt => call.C_DecryptMessage,
        MessageKind::Sign => {
            return with_params(params, |param, param_len| {
                output(out, |place, len| {
                    invoke!(
                        *call,
                        C_SignMessage,
                        session.0,
                        param,
                        param_len,
                        input(data),
                        ulong(data.len()),
                        place,
                        len,
                    )
                })
            });
        }
        MessageKind::Verify => return Err(Rv::ARGUMENTS_BAD), // has no output
    };
    let function = function.ok_or(Rv::FUNCTION_NOT_SUPPORTED)?;
    with_params(params, |param, param_len| {
        output(out, |place, len| {
            // SAFETY: the standard's arguments; each pointer is to live memory of the length beside it.
            Rv::check(unsafe {
                function(
                    session.0,
                    param,
                    param_len,
                    input(associated),
                    ulong(associated.len()),
                    input(data),
                    ulong(data.len()),
                    place,
                    len,
                )
            })
        })
    })
}

/// `C_XxxMessageBegin`.
pub(crate) fn begin(
    call: &Call<'_>,
    session: SessionHandle,
    kind: MessageKind,
    params: &mut Params,
    associated: &[u8],
) -> Result<()> {
    let (data, len) = (input(associated), ulong(associated.len()));
    with_params(params, |param, param_len| match kind {
        MessageKind::Encrypt => {
            invoke!(*call, C_EncryptMessageBegin, session.0, param, param_len, data, len)
        }
        MessageKind::Decrypt => {
            invoke!(*call, C_DecryptMessageBegin, session.0, param, param_len, data, len)
        }
        MessageKind::Sign => invoke!(*call, C_SignMessageBegin, session.0, param, param_len),
        MessageKind::Verify => invoke!(*call, C_VerifyMessageBegin, session.0, param, param_len),
    })
}

/// `C_EncryptMessageNext`, `C_DecryptMessageNext`, `C_SignMessageNext`.
pub(crate) fn next(
    call: &Call<'_>,
    session: SessionHandle,
    kind: MessageKind,
    params: &mut Params,
    part: &[u8],
    last: bool,
    out: &mut Output<'_>,
) -> Result<()> {
    let (data, data_len) = (input(part), ulong(part.len()));
    let flags = if last { ck::CKF_END_OF_MESSAGE } else { 0 };
    with_params(params, |param, param_len| match kind {
        MessageKind::Encrypt => output(out, |place, len| {
            invoke!(
                *call,
                C_EncryptMessageNext,
                session.0,
                param,
                param_len,
                data,
                data_len,
                place,
                len,
                flags
            )
        }),
        MessageKind::Decrypt => output(out, |place, len| {
            invoke!(
                *call,
                C_DecryptMessageNext,
                session.0,
                param,
                param_len,
                data,
                data_len,
                place,
                len,
                flags
            )
        }),
        MessageKind::Sign if last => output(out, |place, len| {
            invoke!(*call, C_SignMessageNext, session.0, param, param_len, data, data_len, place, len)
        }),
        MessageKind::Sign => {
            let none = std::ptr::null_mut(); // no place for the length: more parts follow
            let null = std::ptr::null_mut();
            invoke!(*call, C_SignMessageNext, session.0, param, param_len, data, data_len, null, none)
        }
        MessageKind::Verify => Err(Rv::ARGUMENTS_BAD), // has no output
    })
}
