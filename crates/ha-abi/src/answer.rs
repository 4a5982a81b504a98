//! The caller's side of `C_GetAttributeValue`: section 5.7.5 to the letter.

use ha_token::ck::{CK_ATTRIBUTE, CK_UNAVAILABLE_INFORMATION};
use ha_token::{Fetched, Result, Rv, Template, Value};

use crate::slice::{load, store};
use crate::write::ulong;

/// Serves a caller's template from fetched values, one for each of its attributes, in order.
///
/// A null `pValue` gets the length. A value longer than the space gets `CK_UNAVAILABLE_INFORMATION`, and so do sensitive and
/// missing ones. Every other attribute is served whatever happens to one. A nested template gets its types, and its inner
/// values by the same rules.
///
/// # Errors
/// The call's result: `ATTRIBUTE_SENSITIVE`, else `ATTRIBUTE_TYPE_INVALID`, else `BUFFER_TOO_SMALL`.
///
/// # Safety
/// `template` points at `fetched.len()` attributes, each with a `pValue` that is null or points at `ulValueLen` writable bytes;
/// likewise inside the space for nested templates.
pub unsafe fn answer_attributes(template: *mut CK_ATTRIBUTE, fetched: &[Fetched]) -> Result<()> {
    let mut fits = true;
    if template.is_null() && !fetched.is_empty() {
        return Err(Rv::ARGUMENTS_BAD);
    }
    for (i, answer) in fetched.iter().enumerate() {
        let slot = template.wrapping_add(i);
        match answer {
            // SAFETY: the caller's promise for this attribute.
            Fetched::Value(value) => fits &= unsafe { serve(slot, value) },
            // SAFETY: the attribute is there and writable.
            Fetched::Sensitive | Fetched::Invalid => unsafe { set_len(slot, CK_UNAVAILABLE_INFORMATION) },
        }
    }
    Fetched::outcome(fetched)?;
    if fits { Ok(()) } else { Err(Rv::BUFFER_TOO_SMALL) }
}

/// Serves one attribute; false if something did not fit.
///
/// # Safety
/// `slot` points at an attribute as [`answer_attributes`] asks.
unsafe fn serve(slot: *mut CK_ATTRIBUTE, value: &Value) -> bool {
    // SAFETY: there by the caller's promise.
    let asked: CK_ATTRIBUTE = unsafe { load(slot.cast_const().cast(), 0) };
    let need = match value {
        Value::Bytes(bytes) => bytes.len(),
        Value::Template(inner) => inner.len() * size_of::<CK_ATTRIBUTE>(),
    };
    if !asked.pValue.is_null() {
        // A length left over from an earlier answer (`CK_UNAVAILABLE_INFORMATION`) is not room for everything.
        let room = if asked.ulValueLen == CK_UNAVAILABLE_INFORMATION { 0 } else { asked.ulValueLen };
        if room < ulong(need) {
            // SAFETY: the attribute is writable.
            unsafe { set_len(slot, CK_UNAVAILABLE_INFORMATION) };
            return false;
        }
        let fits = match value {
            Value::Bytes(bytes) => {
                // SAFETY: the space has room for them, and is the caller's, so apart from ours.
                unsafe { asked.pValue.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), need) };
                true
            }
            // SAFETY: the space has room for the attributes, initialised by the caller as the standard demands.
            Value::Template(inner) => unsafe { serve_template(asked.pValue.cast(), inner) },
        };
        // SAFETY: the attribute is writable.
        unsafe { set_len(slot, ulong(need)) };
        return fits;
    }
    // SAFETY: the attribute is writable.
    unsafe { set_len(slot, ulong(need)) };
    true
}

/// Serves a nested template.
///
/// # Safety
/// `slots` points at as many attributes as `inner` has, as [`answer_attributes`] asks.
unsafe fn serve_template(slots: *mut CK_ATTRIBUTE, inner: &Template) -> bool {
    let mut fits = true;
    for (i, attribute) in inner.iter().enumerate() {
        let slot = slots.wrapping_add(i);
        // SAFETY: the attribute is there and writable; the type is ignored on input and set on output.
        unsafe { store(slot.cast(), std::mem::offset_of!(CK_ATTRIBUTE, type_), attribute.kind) };
        // SAFETY: the caller's promise for this attribute.
        fits &= unsafe { serve(slot, &attribute.value) };
    }
    fits
}

/// Sets an attribute's `ulValueLen`.
///
/// # Safety
/// `slot` points at a writable attribute.
unsafe fn set_len(slot: *mut CK_ATTRIBUTE, len: ha_token::Ulong) {
    // SAFETY: within the attribute.
    unsafe { store(slot.cast(), std::mem::offset_of!(CK_ATTRIBUTE, ulValueLen), len) }
}
