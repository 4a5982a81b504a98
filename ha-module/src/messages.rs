//! Message-based operations: many messages under one key, each with a parameter of its own.

use std::ffi::c_void;

use cryptoki_sys::{
    CK_BYTE, CK_FLAGS, CK_MECHANISM, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG, CKF_END_OF_MESSAGE,
};
use ha_core::provider::Provider;
use ha_token::{MessageKind, ObjectHandle, Output, Params, Result, SessionHandle, Token};

use crate::caller::Caller;
use crate::crypto::{Input, Space};
use crate::guard::entry;
use crate::sessions::session;

/// A message's parameter as it comes through the interface.
type Parameter = (*mut c_void, CK_ULONG);

/// `C_MessageXxxInit`; a NULL mechanism cancels.
fn init(
    caller: &Caller,
    provider: &Provider,
    handle: CK_SESSION_HANDLE,
    kind: MessageKind,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> Result<()> {
    let key = ObjectHandle(key);
    if mechanism.is_null() {
        let (token, session) = session(provider, handle)?;
        return token.message_init(session, kind, None, key);
    }
    caller.with_mechanism(mechanism, |mechanism| {
        let (token, session) = session(provider, handle)?;
        token.message_init(session, kind, Some(mechanism), key)
    })
}

/// Runs `body` with the message's parameter, whose structure the session's mechanism decides.
fn with_params(
    caller: &Caller,
    provider: &Provider,
    handle: CK_SESSION_HANDLE,
    kind: MessageKind,
    parameter: Parameter,
    body: impl FnOnce(&dyn Token, SessionHandle, &mut Params) -> Result<()>,
) -> Result<()> {
    let (token, session) = session(provider, handle)?;
    let mechanism = token.message_mechanism(session, kind)?;
    caller.with_message_params(mechanism, parameter, |params| body(&**token, session, params))
}

/// One whole message, with output.
fn one_shot(
    caller: &Caller,
    provider: &Provider,
    handle: CK_SESSION_HANDLE,
    kind: MessageKind,
    parameter: Parameter,
    (associated, associated_len): Input,
    (input, space): (Input, Space),
) -> Result<()> {
    let associated = caller.input(associated, associated_len)?;
    caller.transform(input, space, |input, output| {
        with_params(caller, provider, handle, kind, parameter, |token, session, params| {
            token.message_one_shot(session, kind, params, associated, input, output)
        })
    })
}

/// The beginning of a message in parts.
fn begin(
    caller: &Caller,
    provider: &Provider,
    handle: CK_SESSION_HANDLE,
    kind: MessageKind,
    parameter: Parameter,
    (associated, associated_len): Input,
) -> Result<()> {
    let associated = caller.input(associated, associated_len)?;
    with_params(caller, provider, handle, kind, parameter, |token, session, params| {
        token.message_begin(session, kind, params, associated)
    })
}

/// One part of a message, with output.
fn next(
    caller: &Caller,
    provider: &Provider,
    handle: CK_SESSION_HANDLE,
    kind: MessageKind,
    parameter: Parameter,
    last: bool,
    (input, space): (Input, Space),
) -> Result<()> {
    caller.transform(input, space, |input, output| {
        with_params(caller, provider, handle, kind, parameter, |token, session, params| {
            token.message_next(session, kind, params, input, last, output)
        })
    })
}

/// The end of a message-based operation.
fn last(provider: &Provider, handle: CK_SESSION_HANDLE, kind: MessageKind) -> Result<()> {
    let (token, session) = session(provider, handle)?;
    token.message_final(session, kind)
}

entry! {
    /// `C_MessageEncryptInit`.
    fn C_MessageEncryptInit is MessageEncryptInit(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    ) |caller, provider| {
        init(&caller, provider, handle, MessageKind::Encrypt, mechanism, key)
    }

    /// `C_EncryptMessage`.
    fn C_EncryptMessage is EncryptMessage(
        handle: CK_SESSION_HANDLE,
        parameter: *mut c_void,
        parameter_len: CK_ULONG,
        associated: *mut CK_BYTE,
        associated_len: CK_ULONG,
        input: *mut CK_BYTE,
        input_len: CK_ULONG,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
    ) |caller, provider| {
        let parameter = (parameter, parameter_len);
        let associated: Input = (associated, associated_len);
        let data: (Input, Space) = ((input, input_len), (output, output_len));
        one_shot(&caller, provider, handle, MessageKind::Encrypt, parameter, associated, data)
    }

    /// `C_EncryptMessageBegin`.
    fn C_EncryptMessageBegin is EncryptMessageBegin(
        handle: CK_SESSION_HANDLE,
        parameter: *mut c_void,
        parameter_len: CK_ULONG,
        associated: *mut CK_BYTE,
        associated_len: CK_ULONG,
    ) |caller, provider| {
        let parameter = (parameter, parameter_len);
        begin(&caller, provider, handle, MessageKind::Encrypt, parameter, (associated, associated_len))
    }

    /// `C_EncryptMessageNext`.
    fn C_EncryptMessageNext is EncryptMessageNext(
        handle: CK_SESSION_HANDLE,
        parameter: *mut c_void,
        parameter_len: CK_ULONG,
        part: *mut CK_BYTE,
        part_len: CK_ULONG,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
        flags: CK_FLAGS,
    ) |caller, provider| {
        let parameter = (parameter, parameter_len);
        let end = flags & CKF_END_OF_MESSAGE != 0;
        let data: (Input, Space) = ((part, part_len), (output, output_len));
        next(&caller, provider, handle, MessageKind::Encrypt, parameter, end, data)
    }

    /// `C_MessageEncryptFinal`.
    fn C_MessageEncryptFinal is MessageEncryptFinal(handle: CK_SESSION_HANDLE) |_caller, provider| {
        last(provider, handle, MessageKind::Encrypt)
    }

    /// `C_MessageDecryptInit`.
    fn C_MessageDecryptInit is MessageDecryptInit(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    ) |caller, provider| {
        init(&caller, provider, handle, MessageKind::Decrypt, mechanism, key)
    }

    /// `C_DecryptMessage`.
    fn C_DecryptMessage is DecryptMessage(
        handle: CK_SESSION_HANDLE,
        parameter: *mut c_void,
        parameter_len: CK_ULONG,
        associated: *mut CK_BYTE,
        associated_len: CK_ULONG,
        input: *mut CK_BYTE,
        input_len: CK_ULONG,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
    ) |caller, provider| {
        let parameter = (parameter, parameter_len);
        let associated: Input = (associated, associated_len);
        let data: (Input, Space) = ((input, input_len), (output, output_len));
        one_shot(&caller, provider, handle, MessageKind::Decrypt, parameter, associated, data)
    }

    /// `C_DecryptMessageBegin`.
    fn C_DecryptMessageBegin is DecryptMessageBegin(
        handle: CK_SESSION_HANDLE,
        parameter: *mut c_void,
        parameter_len: CK_ULONG,
        associated: *mut CK_BYTE,
        associated_len: CK_ULONG,
    ) |caller, provider| {
        let parameter = (parameter, parameter_len);
        begin(&caller, provider, handle, MessageKind::Decrypt, parameter, (associated, associated_len))
    }

    /// `C_DecryptMessageNext`.
    fn C_DecryptMessageNext is DecryptMessageNext(
        handle: CK_SESSION_HANDLE,
        parameter: *mut c_void,
        parameter_len: CK_ULONG,
        part: *mut CK_BYTE,
        part_len: CK_ULONG,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
        flags: CK_FLAGS,
    ) |caller, provider| {
        let parameter = (parameter, parameter_len);
        let end = flags & CKF_END_OF_MESSAGE != 0;
        let data: (Input, Space) = ((part, part_len), (output, output_len));
        next(&caller, provider, handle, MessageKind::Decrypt, parameter, end, data)
    }

    /// `C_MessageDecryptFinal`.
    fn C_MessageDecryptFinal is MessageDecryptFinal(handle: CK_SESSION_HANDLE) |_caller, provider| {
        last(provider, handle, MessageKind::Decrypt)
    }

    /// `C_MessageSignInit`.
    fn C_MessageSignInit is MessageSignInit(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    ) |caller, provider| {
        init(&caller, provider, handle, MessageKind::Sign, mechanism, key)
    }

    /// `C_SignMessage`.
    fn C_SignMessage is SignMessage(
        handle: CK_SESSION_HANDLE,
        parameter: *mut c_void,
        parameter_len: CK_ULONG,
        data: *mut CK_BYTE,
        data_len: CK_ULONG,
        signature: *mut CK_BYTE,
        signature_len: *mut CK_ULONG,
    ) |caller, provider| {
        let parameter = (parameter, parameter_len);
        let none: Input = (std::ptr::null(), 0);
        let data: (Input, Space) = ((data, data_len), (signature, signature_len));
        one_shot(&caller, provider, handle, MessageKind::Sign, parameter, none, data)
    }

    /// `C_SignMessageBegin`.
    fn C_SignMessageBegin is SignMessageBegin(
        handle: CK_SESSION_HANDLE,
        parameter: *mut c_void,
        parameter_len: CK_ULONG,
    ) |caller, provider| {
        let none: Input = (std::ptr::null(), 0);
        begin(&caller, provider, handle, MessageKind::Sign, (parameter, parameter_len), none)
    }

    /// `C_SignMessageNext`. Without a place for the signature's length, more parts follow.
    fn C_SignMessageNext is SignMessageNext(
        handle: CK_SESSION_HANDLE,
        parameter: *mut c_void,
        parameter_len: CK_ULONG,
        part: *mut CK_BYTE,
        part_len: CK_ULONG,
        signature: *mut CK_BYTE,
        signature_len: *mut CK_ULONG,
    ) |caller, provider| {
        let parameter = (parameter, parameter_len);
        let kind = MessageKind::Sign;
        if !signature_len.is_null() {
            let data: (Input, Space) = ((part, part_len), (signature, signature_len));
            return next(&caller, provider, handle, kind, parameter, true, data);
        }
        let part = caller.input(part, part_len)?;
        with_params(&caller, provider, handle, kind, parameter, |token, session, params| {
            token.message_next(session, kind, params, part, false, &mut Output::query())
        })
    }

    /// `C_MessageSignFinal`.
    fn C_MessageSignFinal is MessageSignFinal(handle: CK_SESSION_HANDLE) |_caller, provider| {
        last(provider, handle, MessageKind::Sign)
    }

    /// `C_MessageVerifyInit`.
    fn C_MessageVerifyInit is MessageVerifyInit(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    ) |caller, provider| {
        init(&caller, provider, handle, MessageKind::Verify, mechanism, key)
    }

    /// `C_VerifyMessage`.
    fn C_VerifyMessage is VerifyMessage(
        handle: CK_SESSION_HANDLE,
        parameter: *mut c_void,
        parameter_len: CK_ULONG,
        data: *mut CK_BYTE,
        data_len: CK_ULONG,
        signature: *mut CK_BYTE,
        signature_len: CK_ULONG,
    ) |caller, provider| {
        let data = caller.input(data, data_len)?;
        let signature = caller.input(signature, signature_len)?;
        let parameter = (parameter, parameter_len);
        with_params(&caller, provider, handle, MessageKind::Verify, parameter, |token, session, params| {
            token.verify_message(session, params, data, signature)
        })
    }

    /// `C_VerifyMessageBegin`.
    fn C_VerifyMessageBegin is VerifyMessageBegin(
        handle: CK_SESSION_HANDLE,
        parameter: *mut c_void,
        parameter_len: CK_ULONG,
    ) |caller, provider| {
        let none: Input = (std::ptr::null(), 0);
        begin(&caller, provider, handle, MessageKind::Verify, (parameter, parameter_len), none)
    }

    /// `C_VerifyMessageNext`. Without a signature, more parts follow.
    fn C_VerifyMessageNext is VerifyMessageNext(
        handle: CK_SESSION_HANDLE,
        parameter: *mut c_void,
        parameter_len: CK_ULONG,
        part: *mut CK_BYTE,
        part_len: CK_ULONG,
        signature: *mut CK_BYTE,
        signature_len: CK_ULONG,
    ) |caller, provider| {
        let part = caller.input(part, part_len)?;
        let signature = caller.optional(signature, signature_len)?;
        let parameter = (parameter, parameter_len);
        with_params(&caller, provider, handle, MessageKind::Verify, parameter, |token, session, params| {
            token.verify_message_next(session, params, part, signature)
        })
    }

    /// `C_MessageVerifyFinal`.
    fn C_MessageVerifyFinal is MessageVerifyFinal(handle: CK_SESSION_HANDLE) |_caller, provider| {
        last(provider, handle, MessageKind::Verify)
    }
}
