//! The `cryptoki` crate's mechanisms, attributes and handles into ours, and attributes back.

use std::ffi::c_void;

use cryptoki::mechanism::Mechanism as TheirMechanism;
use cryptoki::object::{
    Attribute as TheirAttribute, AttributeType as TheirType, ObjectHandle as TheirHandle,
};
use ha_token::ck::{self, CK_ATTRIBUTE, CK_MECHANISM};
use ha_token::{Attribute, AttributeType, Mechanism, Result, Value};

use crate::mechanism::{read_mechanism, read_message_params};
use crate::slice::copy_out;
use crate::write::ulong;

/// A mechanism of the `cryptoki` crate.
///
/// # Errors
/// `MECHANISM_PARAM_INVALID` for a vendor's parameter beyond 64 MiB; the crate's own are well formed.
pub fn from_cryptoki_mechanism(m: &TheirMechanism<'_>) -> Result<Mechanism> {
    let raw = CK_MECHANISM::from(m);
    if let TheirMechanism::AesGcmMessage(_) = m {
        // The same type and size as for `CK_GCM_PARAMS`; here we know which one it is.
        // SAFETY: the crate made the structure, and borrows what it points at for as long as `m`.
        let params = unsafe { read_message_params(raw.mechanism, raw.pParameter, raw.ulParameterLen) }?;
        return Ok(Mechanism { kind: raw.mechanism, params });
    }
    // SAFETY: as above.
    unsafe { read_mechanism(&raw const raw) }
}

/// An attribute of the `cryptoki` crate.
pub fn from_cryptoki_attribute(a: &TheirAttribute) -> Attribute {
    let raw = CK_ATTRIBUTE::from(a);
    let len = if raw.pValue.is_null() { 0 } else { usize::try_from(raw.ulValueLen).unwrap_or(0) };
    // SAFETY: the crate points at the value inside `a`, which is borrowed, and that long.
    Attribute::bytes(raw.type_, unsafe { copy_out(raw.pValue.cast_const().cast(), len) })
}

/// The `cryptoki` crate's form of an attribute. A type that it does not know becomes its `VendorDefined`; `None` for
/// templates, and for values that its types cannot hold.
pub fn to_cryptoki_attribute(kind: AttributeType, value: &Value) -> Option<TheirAttribute> {
    let bytes = value.as_bytes()?;
    let Ok(known) = TheirType::try_from(kind) else {
        return Some(TheirAttribute::VendorDefined((TheirType::VendorDefined(kind), bytes.to_vec())));
    };
    // The crate reads these two without looking at the length.
    let readable = match known {
        TheirType::StartDate | TheirType::EndDate => {
            bytes.is_empty() || bytes.len() == size_of::<ck::CK_DATE>()
        }
        TheirType::ValidationVersion => bytes.len() == size_of::<ck::CK_VERSION>(),
        _ => true,
    };
    if !readable {
        return None;
    }
    let pointer = bytes.as_ptr().cast_mut().cast::<c_void>();
    let raw = CK_ATTRIBUTE { type_: kind, pValue: pointer, ulValueLen: ulong(bytes.len()) };
    TheirAttribute::try_from(raw).ok()
}

/// The `cryptoki` crate's form of an object handle.
pub fn object_handle(h: ha_token::ObjectHandle) -> TheirHandle {
    // SAFETY: a handle is a number; the function is marked unsafe only because handles can be made up, and a token
    // answers a made-up one with an error.
    unsafe { TheirHandle::new_from_raw(h.0) }
}
