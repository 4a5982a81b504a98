//! Mechanisms and per-message parameters: the calls for callers, and the owned C forms for modules.

use std::ffi::c_void;

use ha_token::ck::{CK_MECHANISM, CK_MECHANISM_TYPE, CK_ULONG};
use ha_token::{Mechanism, Params, Result, Rv};

use crate::arena::Arena;
use crate::mechanisms::{message_shape, shape};
use crate::read::{Budget, read_params, write_back_params};
use crate::slice::load;
use crate::write::{take_params, write_params};

/// Deep copy of a `CK_MECHANISM`.
///
/// # Errors
/// `ARGUMENTS_BAD` for a null pointer; `MECHANISM_PARAM_INVALID` for a parameter that is not its mechanism's: a length
/// that is no layout's, null with a length, lengths or counts beyond 64 MiB and 4096 in all.
///
/// # Safety
/// `mechanism` is null or points at a `CK_MECHANISM` whose pointers, where not null, point at what the standard says.
#[inline]
pub unsafe fn read_mechanism(mechanism: *const CK_MECHANISM) -> Result<Mechanism> {
    if mechanism.is_null() {
        return Err(Rv::ARGUMENTS_BAD);
    }
    // SAFETY: not null, and a mechanism by the caller's promise.
    let raw: CK_MECHANISM = unsafe { load(mechanism.cast(), 0) };
    if raw.pParameter.is_null() && raw.ulParameterLen == 0 {
        return Ok(Mechanism::plain(raw.mechanism));
    }
    // SAFETY: the caller's promise for what the mechanism points at.
    unsafe { read_with_parameter(raw) }
}

/// # Safety
/// As for [`read_mechanism`].
#[inline(never)]
unsafe fn read_with_parameter(raw: CK_MECHANISM) -> Result<Mechanism> {
    let shape = shape(raw.mechanism);
    // SAFETY: the caller's promise for what the mechanism points at.
    let params =
        unsafe { read_params(&shape, raw.pParameter.cast(), raw.ulParameterLen, 0, &mut Budget::new()) }?;
    Ok(Mechanism { kind: raw.mechanism, params })
}

/// Copies what the token wrote (outputs, handles, changed IVs) into the structure that [`read_mechanism`] read.
/// Memory whose contents would stay the same is not written: it may be read-only.
///
/// # Safety
/// `caller` is what `mechanism` was read from, unchanged since; what a token may write there is writable.
pub unsafe fn write_back_mechanism(mechanism: &Mechanism, caller: *mut CK_MECHANISM) {
    if caller.is_null() || matches!(mechanism.params, Params::None) {
        return;
    }
    // SAFETY: not null, and a mechanism by the caller's promise.
    let raw: CK_MECHANISM = unsafe { load(caller.cast_const().cast(), 0) };
    let shape = shape(raw.mechanism);
    // SAFETY: the caller's promise.
    unsafe { write_back_params(&shape, &mechanism.params, raw.pParameter.cast(), raw.ulParameterLen) }
}

/// Deep copy of a per-message parameter (`C_EncryptMessage` and its kin), whose layout the mechanism says.
///
/// # Errors
/// `MECHANISM_PARAM_INVALID` as for [`read_mechanism`].
///
/// # Safety
/// `parameter` is null or points at `len` bytes, a structure whose pointers point at what the standard says.
pub unsafe fn read_message_params(
    mechanism: CK_MECHANISM_TYPE,
    parameter: *const c_void,
    len: CK_ULONG,
) -> Result<Params> {
    // SAFETY: the caller's promise.
    unsafe { read_params(&message_shape(mechanism), parameter.cast(), len, 0, &mut Budget::new()) }
}

/// Copies what the token wrote (IV, tag) into the parameter that [`read_message_params`] read.
///
/// # Safety
/// `parameter` is what `params` was read from, unchanged since; what a token may write there is writable.
pub unsafe fn write_back_message_params(
    mechanism: CK_MECHANISM_TYPE,
    params: &Params,
    parameter: *mut c_void,
    len: CK_ULONG,
) {
    // SAFETY: the caller's promise.
    unsafe { write_back_params(&message_shape(mechanism), params, parameter.cast(), len) }
}

/// A [`Mechanism`] in C form, to call a module with. Its pointers stay good while it lives, also when it is moved;
/// its memory is wiped when it is dropped. Allocates nothing without a parameter.
pub struct RawMechanism {
    raw: CK_MECHANISM,
    arena: Arena,
}

// SAFETY: the pointer in it points into the arena, which it owns.
unsafe impl Send for RawMechanism {}

impl RawMechanism {
    /// Lays the mechanism out.
    ///
    /// # Errors
    /// `MECHANISM_PARAM_INVALID` for a structure whose fields are not its layout's, or whose lengths disagree.
    pub fn new(mechanism: &Mechanism) -> Result<Self> {
        let mut arena = Arena::new();
        let (parameter, len) = write_params(&mechanism.params, &mut arena, 0)?;
        let raw =
            CK_MECHANISM { mechanism: mechanism.kind, pParameter: parameter.cast(), ulParameterLen: len };
        Ok(RawMechanism { raw, arena })
    }

    /// What a module is called with; good while the value is neither moved nor dropped.
    pub fn as_mut_ptr(&mut self) -> *mut CK_MECHANISM {
        &raw mut self.raw
    }

    /// Takes what the module wrote into the mechanism that this was made from.
    pub fn update(&self, into: &mut Mechanism) {
        let raw = self.raw;
        take_params(&mut into.params, raw.pParameter.cast_const().cast(), raw.ulParameterLen, &self.arena);
    }
}

/// A per-message parameter in C form; as [`RawMechanism`].
pub struct RawParams {
    parameter: *mut u8,
    len: CK_ULONG,
    arena: Arena,
}

// SAFETY: the pointer in it points into the arena, which it owns.
unsafe impl Send for RawParams {}

impl RawParams {
    /// Lays the parameter out.
    ///
    /// # Errors
    /// As [`RawMechanism::new`].
    pub fn new(params: &Params) -> Result<Self> {
        let mut arena = Arena::new();
        let (parameter, len) = write_params(params, &mut arena, 0)?;
        Ok(RawParams { parameter, len, arena })
    }

    /// What a module is called with, null for no parameter; good while the value lives.
    pub fn as_mut_ptr(&mut self) -> *mut c_void {
        self.parameter.cast()
    }

    /// Its length in bytes.
    pub fn len(&self) -> CK_ULONG {
        self.len
    }

    /// Whether there is no parameter.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes what the module wrote into the parameter that this was made from.
    pub fn update(&self, into: &mut Params) {
        take_params(into, self.parameter, self.len, &self.arena);
    }
}
