//! Encryption, decryption, digests, dual-function calls and random numbers.

use cryptoki_sys::{CK_BYTE, CK_MECHANISM, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG};
use ha_core::provider::Provider;
use ha_token::{CombinedKind, ObjectHandle, OpKind, Output, Result, Token as _};

use crate::caller::Caller;
use crate::guard::entry;
use crate::sessions::{call_serving, session};

/// Input bytes as they come through the interface.
pub(crate) type Input = (*const CK_BYTE, CK_ULONG);
/// An output buffer with its length, as they come through the interface.
pub(crate) type Space = (*mut CK_BYTE, *mut CK_ULONG);

/// `C_XxxInit`; a NULL mechanism cancels.
#[inline(always)]
pub(crate) fn init(
    caller: &Caller,
    provider: &Provider,
    handle: CK_SESSION_HANDLE,
    kind: OpKind,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> Result<()> {
    let key = ObjectHandle(key);
    if mechanism.is_null() {
        let (token, session) = session(provider, handle)?;
        return token.op_init(session, kind, None, key);
    }
    caller.with_mechanism(mechanism, |mechanism| {
        call_serving!(provider, handle, op_init(kind, Some(mechanism), key))
    })
}

/// A whole operation in one call, with output.
#[inline(always)]
pub(crate) fn one_shot(
    caller: &Caller,
    provider: &Provider,
    handle: CK_SESSION_HANDLE,
    kind: OpKind,
    input: Input,
    space: Space,
) -> Result<()> {
    caller.transform(input, space, |input, output| {
        call_serving!(provider, handle, op_one_shot(kind, input, output))
    })
}

/// One part of an operation that answers with output.
fn update(
    caller: &Caller,
    provider: &Provider,
    handle: CK_SESSION_HANDLE,
    kind: OpKind,
    input: Input,
    space: Space,
) -> Result<()> {
    caller.transform(input, space, |input, output| {
        let (token, session) = session(provider, handle)?;
        token.op_update(session, kind, input, output)
    })
}

/// One part of an operation without output of its own.
pub(crate) fn feed(
    caller: &Caller,
    provider: &Provider,
    handle: CK_SESSION_HANDLE,
    kind: OpKind,
    (input, len): Input,
) -> Result<()> {
    let input = caller.input(input, len)?;
    let (token, session) = session(provider, handle)?;
    token.op_update(session, kind, input, &mut Output::query())
}

/// The end of an operation in parts.
pub(crate) fn last(
    caller: &Caller,
    provider: &Provider,
    handle: CK_SESSION_HANDLE,
    kind: OpKind,
    (buffer, len): Space,
) -> Result<()> {
    caller.output(buffer, len, |output| {
        let (token, session) = session(provider, handle)?;
        token.op_final(session, kind, output)
    })
}

/// One part of two operations.
fn combined(
    caller: &Caller,
    provider: &Provider,
    handle: CK_SESSION_HANDLE,
    kind: CombinedKind,
    input: Input,
    space: Space,
) -> Result<()> {
    caller.transform(input, space, |input, output| {
        let (token, session) = session(provider, handle)?;
        token.combined_update(session, kind, input, output)
    })
}

entry! {
    /// `C_EncryptInit`.
    fn C_EncryptInit is EncryptInit(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    ) |caller, provider| {
        init(&caller, provider, handle, OpKind::Encrypt, mechanism, key)
    }

    /// `C_Encrypt`.
    fn C_Encrypt is Encrypt(
        handle: CK_SESSION_HANDLE,
        input: *mut CK_BYTE,
        input_len: CK_ULONG,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
    ) |caller, provider| {
        one_shot(&caller, provider, handle, OpKind::Encrypt, (input, input_len), (output, output_len))
    }

    /// `C_EncryptUpdate`.
    fn C_EncryptUpdate is EncryptUpdate(
        handle: CK_SESSION_HANDLE,
        part: *mut CK_BYTE,
        part_len: CK_ULONG,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
    ) |caller, provider| {
        update(&caller, provider, handle, OpKind::Encrypt, (part, part_len), (output, output_len))
    }

    /// `C_EncryptFinal`.
    fn C_EncryptFinal is EncryptFinal(
        handle: CK_SESSION_HANDLE,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
    ) |caller, provider| {
        last(&caller, provider, handle, OpKind::Encrypt, (output, output_len))
    }

    /// `C_DecryptInit`.
    fn C_DecryptInit is DecryptInit(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    ) |caller, provider| {
        init(&caller, provider, handle, OpKind::Decrypt, mechanism, key)
    }

    /// `C_Decrypt`.
    fn C_Decrypt is Decrypt(
        handle: CK_SESSION_HANDLE,
        input: *mut CK_BYTE,
        input_len: CK_ULONG,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
    ) |caller, provider| {
        one_shot(&caller, provider, handle, OpKind::Decrypt, (input, input_len), (output, output_len))
    }

    /// `C_DecryptUpdate`.
    fn C_DecryptUpdate is DecryptUpdate(
        handle: CK_SESSION_HANDLE,
        part: *mut CK_BYTE,
        part_len: CK_ULONG,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
    ) |caller, provider| {
        update(&caller, provider, handle, OpKind::Decrypt, (part, part_len), (output, output_len))
    }

    /// `C_DecryptFinal`.
    fn C_DecryptFinal is DecryptFinal(
        handle: CK_SESSION_HANDLE,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
    ) |caller, provider| {
        last(&caller, provider, handle, OpKind::Decrypt, (output, output_len))
    }

    /// `C_DigestInit`.
    fn C_DigestInit is DigestInit(handle: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM) |caller, provider| {
        init(&caller, provider, handle, OpKind::Digest, mechanism, 0)
    }

    /// `C_Digest`.
    fn C_Digest is Digest(
        handle: CK_SESSION_HANDLE,
        input: *mut CK_BYTE,
        input_len: CK_ULONG,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
    ) |caller, provider| {
        one_shot(&caller, provider, handle, OpKind::Digest, (input, input_len), (output, output_len))
    }

    /// `C_DigestUpdate`.
    fn C_DigestUpdate is DigestUpdate(
        handle: CK_SESSION_HANDLE,
        part: *mut CK_BYTE,
        part_len: CK_ULONG,
    ) |caller, provider| {
        feed(&caller, provider, handle, OpKind::Digest, (part, part_len))
    }

    /// `C_DigestKey`.
    fn C_DigestKey is DigestKey(handle: CK_SESSION_HANDLE, key: CK_OBJECT_HANDLE) |_caller, provider| {
        let (token, session) = session(provider, handle)?;
        token.digest_key(session, ObjectHandle(key))
    }

    /// `C_DigestFinal`.
    fn C_DigestFinal is DigestFinal(
        handle: CK_SESSION_HANDLE,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
    ) |caller, provider| {
        last(&caller, provider, handle, OpKind::Digest, (output, output_len))
    }

    /// `C_DigestEncryptUpdate`.
    fn C_DigestEncryptUpdate is DigestEncryptUpdate(
        handle: CK_SESSION_HANDLE,
        part: *mut CK_BYTE,
        part_len: CK_ULONG,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
    ) |caller, provider| {
        let kind = CombinedKind::DigestEncrypt;
        combined(&caller, provider, handle, kind, (part, part_len), (output, output_len))
    }

    /// `C_DecryptDigestUpdate`.
    fn C_DecryptDigestUpdate is DecryptDigestUpdate(
        handle: CK_SESSION_HANDLE,
        part: *mut CK_BYTE,
        part_len: CK_ULONG,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
    ) |caller, provider| {
        let kind = CombinedKind::DecryptDigest;
        combined(&caller, provider, handle, kind, (part, part_len), (output, output_len))
    }

    /// `C_SignEncryptUpdate`.
    fn C_SignEncryptUpdate is SignEncryptUpdate(
        handle: CK_SESSION_HANDLE,
        part: *mut CK_BYTE,
        part_len: CK_ULONG,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
    ) |caller, provider| {
        let kind = CombinedKind::SignEncrypt;
        combined(&caller, provider, handle, kind, (part, part_len), (output, output_len))
    }

    /// `C_DecryptVerifyUpdate`.
    fn C_DecryptVerifyUpdate is DecryptVerifyUpdate(
        handle: CK_SESSION_HANDLE,
        part: *mut CK_BYTE,
        part_len: CK_ULONG,
        output: *mut CK_BYTE,
        output_len: *mut CK_ULONG,
    ) |caller, provider| {
        let kind = CombinedKind::DecryptVerify;
        combined(&caller, provider, handle, kind, (part, part_len), (output, output_len))
    }

    /// `C_SeedRandom`.
    fn C_SeedRandom is SeedRandom(
        handle: CK_SESSION_HANDLE,
        seed: *mut CK_BYTE,
        len: CK_ULONG,
    ) |caller, provider| {
        let seed = caller.input(seed, len)?;
        let (token, session) = session(provider, handle)?;
        token.seed_random(session, seed)
    }

    /// `C_GenerateRandom`.
    fn C_GenerateRandom is GenerateRandom(
        handle: CK_SESSION_HANDLE,
        random: *mut CK_BYTE,
        len: CK_ULONG,
    ) |caller, provider| {
        let random = caller.space(random, len)?;
        call_serving!(provider, handle, generate_random(random))
    }
}
