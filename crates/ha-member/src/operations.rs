//! Which C function does what, for each kind of operation, and how a mechanism is handed over.

use cryptoki_sys as ck;
use ha_abi::{RawMechanism, RawTemplate};
use ha_token::{
    CombinedKind, Mechanism, ObjectHandle, OpKind, Params, Result, SessionHandle, Template, Ulong,
};

use crate::calls::invoke;
use crate::instance::Call;
use crate::makings::Makings;

/// The type of `C_Encrypt`, `C_EncryptUpdate` and everything like them.
pub(crate) type Transform = ck::CK_C_Encrypt;

/// Hands a mechanism to `call`, and what the token wrote into it back. Allocates nothing without a parameter.
#[inline(always)]
pub(crate) fn with_mechanism<T>(
    mechanism: &mut Mechanism,
    call: impl FnOnce(*mut ck::CK_MECHANISM) -> Result<T>,
) -> Result<T> {
    let mut plain =
        ck::CK_MECHANISM { mechanism: mechanism.kind, pParameter: std::ptr::null_mut(), ulParameterLen: 0 };
    let mut raw = match mechanism.params {
        Params::None => None,
        _ => Some(RawMechanism::new(mechanism)?),
    };
    let answer = call(raw.as_mut().map_or(&raw mut plain, RawMechanism::as_mut_ptr))?;
    if let Some(raw) = &raw {
        raw.update(mechanism);
    }
    Ok(answer)
}

/// Hands a template to `call`.
pub(crate) fn with_template<T>(
    template: &Template,
    call: impl FnOnce(*mut ck::CK_ATTRIBUTE, Ulong) -> Result<T>,
) -> Result<T> {
    let mut raw = RawTemplate::new(template);
    let len = raw.len();
    call(raw.as_mut_ptr(), len)
}

/// A new object's handle.
pub(crate) fn made(makings: &Makings, call: impl FnOnce(*mut Ulong) -> Result<()>) -> Result<ObjectHandle> {
    let _making = makings.begin();
    let mut handle = ck::CK_INVALID_HANDLE;
    call(&mut handle)?;
    Ok(ObjectHandle(handle))
}

/// Hands a mechanism, a template and a place for a new object's handle to `call`.
pub(crate) fn make(
    makings: &Makings,
    mechanism: &mut Mechanism,
    template: &Template,
    call: impl FnOnce(*mut ck::CK_MECHANISM, *mut ck::CK_ATTRIBUTE, Ulong, *mut Ulong) -> Result<()>,
) -> Result<ObjectHandle> {
    with_mechanism(mechanism, |raw| {
        with_template(template, |attributes, count| {
            made(makings, |object| call(raw, attributes, count, object))
        })
    })
}

/// `C_XxxInit`; a NULL mechanism cancels.
#[inline(always)] // a frame less on the way back from the token
pub(crate) fn init(
    call: &Call<'_>,
    session: SessionHandle,
    kind: OpKind,
    mechanism: *mut ck::CK_MECHANISM,
    key: ObjectHandle,
) -> Result<()> {
    match kind {
        OpKind::Encrypt => invoke!(*call, C_EncryptInit, session.0, mechanism, key.0),
        OpKind::Decrypt => invoke!(*call, C_DecryptInit, session.0, mechanism, key.0),
        OpKind::Digest => invoke!(*call, C_DigestInit, session.0, mechanism),
        OpKind::Sign => invoke!(*call, C_SignInit, session.0, mechanism, key.0),
        OpKind::SignRecover => invoke!(*call, C_SignRecoverInit, session.0, mechanism, key.0),
        OpKind::Verify => invoke!(*call, C_VerifyInit, session.0, mechanism, key.0),
        OpKind::VerifyRecover => invoke!(*call, C_VerifyRecoverInit, session.0, mechanism, key.0),
        OpKind::VerifySignature => Err(ha_token::Rv::ARGUMENTS_BAD), // needs its signature
    }
}

/// The one-shot function, for the kinds that have an output.
#[inline(always)]
pub(crate) fn one_shot(call: &Call<'_>, kind: OpKind) -> Transform {
    match kind {
        OpKind::Encrypt => call.C_Encrypt,
        OpKind::Decrypt => call.C_Decrypt,
        OpKind::Digest => call.C_Digest,
        OpKind::Sign => call.C_Sign,
        OpKind::SignRecover => call.C_SignRecover,
        OpKind::VerifyRecover => call.C_VerifyRecover,
        OpKind::Verify | OpKind::VerifySignature => None,
    }
}

/// The dual function.
pub(crate) fn combined(call: &Call<'_>, kind: CombinedKind) -> Transform {
    match kind {
        CombinedKind::DigestEncrypt => call.C_DigestEncryptUpdate,
        CombinedKind::DecryptDigest => call.C_DecryptDigestUpdate,
        CombinedKind::SignEncrypt => call.C_SignEncryptUpdate,
        CombinedKind::DecryptVerify => call.C_DecryptVerifyUpdate,
    }
}

/// The update function of the kinds with an output.
pub(crate) fn update(call: &Call<'_>, kind: OpKind) -> Transform {
    match kind {
        OpKind::Encrypt => call.C_EncryptUpdate,
        OpKind::Decrypt => call.C_DecryptUpdate,
        _ => None,
    }
}

/// The update function of the kinds that only take data in.
pub(crate) fn feed(call: &Call<'_>, kind: OpKind) -> ck::CK_C_DigestUpdate {
    match kind {
        OpKind::Digest => call.C_DigestUpdate,
        OpKind::Sign => call.C_SignUpdate,
        OpKind::Verify => call.C_VerifyUpdate,
        OpKind::VerifySignature => call.C_VerifySignatureUpdate,
        _ => None,
    }
}

/// The final function of the kinds with an output.
pub(crate) fn last(call: &Call<'_>, kind: OpKind) -> ck::CK_C_DigestFinal {
    match kind {
        OpKind::Encrypt => call.C_EncryptFinal,
        OpKind::Decrypt => call.C_DecryptFinal,
        OpKind::Digest => call.C_DigestFinal,
        OpKind::Sign => call.C_SignFinal,
        _ => None,
    }
}
