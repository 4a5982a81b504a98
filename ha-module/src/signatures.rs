//! Signatures and MACs: made and verified.

use cryptoki_sys::{CK_BYTE, CK_MECHANISM, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG};
use ha_token::{ObjectHandle, OpKind};

use crate::crypto::{feed, init, last, one_shot};
use crate::guard::entry;
use crate::sessions::session;

entry! {
    /// `C_SignInit`.
    fn C_SignInit is SignInit(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    ) |caller, provider| {
        init(&caller, provider, handle, OpKind::Sign, mechanism, key)
    }

    /// `C_Sign`.
    fn C_Sign is Sign(
        handle: CK_SESSION_HANDLE,
        input: *mut CK_BYTE,
        input_len: CK_ULONG,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
    ) |caller, provider| {
        one_shot(&caller, provider, handle, OpKind::Sign, (input, input_len), (output, output_len))
    }

    /// `C_SignUpdate`.
    fn C_SignUpdate is SignUpdate(
        handle: CK_SESSION_HANDLE,
        part: *mut CK_BYTE,
        part_len: CK_ULONG,
    ) |caller, provider| {
        feed(&caller, provider, handle, OpKind::Sign, (part, part_len))
    }

    /// `C_SignFinal`.
    fn C_SignFinal is SignFinal(
        handle: CK_SESSION_HANDLE,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
    ) |caller, provider| {
        last(&caller, provider, handle, OpKind::Sign, (output, output_len))
    }

    /// `C_SignRecoverInit`.
    fn C_SignRecoverInit is SignRecoverInit(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    ) |caller, provider| {
        init(&caller, provider, handle, OpKind::SignRecover, mechanism, key)
    }

    /// `C_SignRecover`.
    fn C_SignRecover is SignRecover(
        handle: CK_SESSION_HANDLE,
        input: *mut CK_BYTE,
        input_len: CK_ULONG,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
    ) |caller, provider| {
        one_shot(&caller, provider, handle, OpKind::SignRecover, (input, input_len), (output, output_len))
    }

    /// `C_VerifyInit`.
    fn C_VerifyInit is VerifyInit(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    ) |caller, provider| {
        init(&caller, provider, handle, OpKind::Verify, mechanism, key)
    }

    /// `C_Verify`.
    fn C_Verify is Verify(
        handle: CK_SESSION_HANDLE,
        data: *mut CK_BYTE,
        data_len: CK_ULONG,
        signature: *mut CK_BYTE,
        signature_len: CK_ULONG,
    ) |caller, provider| {
        let data = caller.input(data, data_len)?;
        let signature = caller.input(signature, signature_len)?;
        let (token, session) = session(provider, handle)?;
        token.verify(session, data, signature)
    }

    /// `C_VerifyUpdate`.
    fn C_VerifyUpdate is VerifyUpdate(
        handle: CK_SESSION_HANDLE,
        part: *mut CK_BYTE,
        part_len: CK_ULONG,
    ) |caller, provider| {
        feed(&caller, provider, handle, OpKind::Verify, (part, part_len))
    }

    /// `C_VerifyFinal`.
    fn C_VerifyFinal is VerifyFinal(
        handle: CK_SESSION_HANDLE,
        signature: *mut CK_BYTE,
        len: CK_ULONG,
    ) |caller, provider| {
        let signature = caller.input(signature, len)?;
        let (token, session) = session(provider, handle)?;
        token.verify_final(session, signature)
    }

    /// `C_VerifyRecoverInit`.
    fn C_VerifyRecoverInit is VerifyRecoverInit(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    ) |caller, provider| {
        init(&caller, provider, handle, OpKind::VerifyRecover, mechanism, key)
    }

    /// `C_VerifyRecover`.
    fn C_VerifyRecover is VerifyRecover(
        handle: CK_SESSION_HANDLE,
        input: *mut CK_BYTE,
        input_len: CK_ULONG,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
    ) |caller, provider| {
        one_shot(&caller, provider, handle, OpKind::VerifyRecover, (input, input_len), (output, output_len))
    }

    /// `C_VerifySignatureInit`.
    fn C_VerifySignatureInit is VerifySignatureInit(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
        signature: *mut CK_BYTE,
        len: CK_ULONG,
    ) |caller, provider| {
        let key = ObjectHandle(key);
        if mechanism.is_null() {
            let (token, session) = session(provider, handle)?;
            return token.verify_signature_init(session, None, key, &[]);
        }
        let signature = caller.input(signature, len)?;
        caller.with_mechanism(mechanism, |mechanism| {
            let (token, session) = session(provider, handle)?;
            token.verify_signature_init(session, Some(mechanism), key, signature)
        })
    }

    /// `C_VerifySignature`.
    fn C_VerifySignature is VerifySignature(
        handle: CK_SESSION_HANDLE,
        data: *mut CK_BYTE,
        len: CK_ULONG,
    ) |caller, provider| {
        let data = caller.input(data, len)?;
        let (token, session) = session(provider, handle)?;
        token.verify_signature(session, data)
    }

    /// `C_VerifySignatureUpdate`.
    fn C_VerifySignatureUpdate is VerifySignatureUpdate(
        handle: CK_SESSION_HANDLE,
        part: *mut CK_BYTE,
        part_len: CK_ULONG,
    ) |caller, provider| {
        feed(&caller, provider, handle, OpKind::VerifySignature, (part, part_len))
    }

    /// `C_VerifySignatureFinal`.
    fn C_VerifySignatureFinal is VerifySignatureFinal(handle: CK_SESSION_HANDLE) |_caller, provider| {
        let (token, session) = session(provider, handle)?;
        token.verify_signature_final(session)
    }
}
