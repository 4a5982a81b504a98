//! The engine that lays parameters out in C form, and the one that takes a module's answers out of it.

use ha_token::ck::{self, CK_ATTRIBUTE, CK_MECHANISM, CK_ULONG};
use ha_token::{
    FieldValue, Mechanism, ObjectHandle, Params, Result, Rv, StructParams, Template, Ulong, Value,
};

use crate::arena::Arena;
use crate::layout::{FieldSpec, Kind, Layout, Len};
use crate::layouts::by_name;
use crate::read::length;
use crate::slice::{copy_out, load, store};
use crate::{MAX_BYTES, MAX_DEPTH};

const BAD: Rv = Rv::MECHANISM_PARAM_INVALID;

/// A `usize` as the interface's number: as wide on every platform but 64-bit Windows, where lengths are capped.
pub(crate) fn ulong(n: usize) -> Ulong {
    Ulong::try_from(n).unwrap_or(Ulong::MAX)
}

/// Lays a parameter out: where it is, and its length.
pub(crate) fn write_params(params: &Params, arena: &mut Arena, depth: usize) -> Result<(*mut u8, CK_ULONG)> {
    match params {
        Params::None => Ok((std::ptr::null_mut(), 0)),
        Params::Bytes(bytes) if bytes.is_empty() => Ok((std::ptr::null_mut(), 0)),
        Params::Bytes(bytes) => Ok((arena.copy(bytes).ok_or(BAD)?, ulong(bytes.len()))),
        Params::Struct(s) => {
            let layout = by_name(s.layout).ok_or(BAD)?;
            let base = arena.alloc(layout.size).ok_or(BAD)?;
            // SAFETY: the block has the layout's size.
            unsafe { write_struct(layout, s, base, std::ptr::null(), arena, depth) }?;
            Ok((base, ulong(layout.size)))
        }
    }
}

/// Fills one structure.
///
/// # Safety
/// `base` points at `layout.size` zeroed bytes of the arena; `outer` is null or the structure that points here.
unsafe fn write_struct(
    layout: &Layout,
    s: &StructParams,
    base: *mut u8,
    outer: *const u8,
    arena: &mut Arena,
    depth: usize,
) -> Result<()> {
    if depth > MAX_DEPTH || s.layout != layout.name {
        return Err(BAD);
    }
    // Numbers first: the lengths of some pointers are numbers declared after them.
    for spec in layout.fields {
        if let (Kind::Ulong, Some(FieldValue::Ulong(n))) = (&spec.kind, s.field(spec.name)) {
            // SAFETY: within the structure.
            unsafe { store(base, spec.offset, *n) }
        }
    }
    for spec in layout.fields {
        let value = s.field(spec.name).ok_or(BAD)?;
        // SAFETY: the field lies within the structure.
        unsafe { write_field(spec, value, base, outer, arena, depth) }?;
    }
    Ok(())
}

/// Fills one field.
///
/// # Safety
/// As [`write_struct`]; the field belongs to its layout.
unsafe fn write_field(
    spec: &FieldSpec,
    value: &FieldValue,
    base: *mut u8,
    outer: *const u8,
    arena: &mut Arena,
    depth: usize,
) -> Result<()> {
    let at = spec.offset;
    match (&spec.kind, value) {
        (Kind::Ulong, FieldValue::Ulong(_)) => Ok(()), // written before
        // SAFETY: within the structure.
        (Kind::Byte, FieldValue::Byte(b)) => unsafe { put(base, at, *b) },
        (Kind::Inline(n), FieldValue::Inline(bytes)) if bytes.len() == *n => {
            // SAFETY: `n` bytes within the structure; `bytes` lies outside the arena.
            unsafe { base.wrapping_add(at).copy_from_nonoverlapping(bytes.as_ptr(), *n) };
            Ok(())
        }
        // SAFETY: within the structure.
        (Kind::Handle, FieldValue::Handle(h)) => unsafe { put(base, at, h.0) },
        (Kind::Bytes(len), FieldValue::Bytes(bytes)) | (Kind::Output(len), FieldValue::Output(bytes)) => {
            // SAFETY: within the structure.
            unsafe { write_bytes(*len, bytes.as_deref(), base, at, outer, arena) }
        }
        (Kind::OutputHandle, FieldValue::OutputHandles(handles)) => {
            // SAFETY: within the structure.
            unsafe { put(base, at, handles.first().map_or(0, |h| h.0)) }
        }
        (Kind::OutputHandlePtr, FieldValue::OutputHandles(handles)) => {
            let Some(h) = handles.first() else { return Ok(()) };
            let p = arena.copy(&h.0.to_ne_bytes()).ok_or(BAD)?;
            // SAFETY: within the structure.
            unsafe { put(base, at, p) }
        }
        (Kind::Struct(inner), FieldValue::Struct(Some(s))) => {
            // SAFETY: the inner structure lies within this one.
            unsafe { write_struct(inner, s, base.wrapping_add(at), base, arena, depth + 1) }
        }
        (Kind::StructPtr(_), FieldValue::Struct(None)) | (Kind::Mechanism, FieldValue::Mechanism(None)) => {
            Ok(())
        }
        (Kind::StructPtr(inner), FieldValue::Struct(Some(s))) => {
            let p = arena.alloc(inner.size).ok_or(BAD)?;
            // SAFETY: the block has the layout's size.
            unsafe { write_struct(inner, s, p, base, arena, depth + 1) }?;
            // SAFETY: within the structure.
            unsafe { put(base, at, p) }
        }
        (Kind::List { count, item }, FieldValue::List(list)) => {
            // SAFETY: the count lies within the structure.
            unsafe { store(base, *count, ulong(list.len())) };
            if list.is_empty() {
                return Ok(());
            }
            let p = arena.alloc(list.len().checked_mul(item.size).ok_or(BAD)?).ok_or(BAD)?;
            for (i, s) in list.iter().enumerate() {
                // SAFETY: the block has room for every element.
                unsafe { write_struct(item, s, p.wrapping_add(i * item.size), base, arena, depth + 1) }?;
            }
            // SAFETY: within the structure.
            unsafe { put(base, at, p) }
        }
        (Kind::Mechanism, FieldValue::Mechanism(Some(m))) => {
            if depth >= MAX_DEPTH {
                return Err(BAD);
            }
            let (parameter, len) = write_params(&m.params, arena, depth + 1)?;
            let raw = CK_MECHANISM { mechanism: m.kind, pParameter: parameter.cast(), ulParameterLen: len };
            let p = arena.alloc(size_of::<CK_MECHANISM>()).ok_or(BAD)?;
            // SAFETY: the block has that size.
            unsafe { store(p, 0, raw) };
            // SAFETY: within the structure.
            unsafe { put(base, at, p) }
        }
        (Kind::Template { count }, FieldValue::Template(template)) => {
            // SAFETY: the count lies within the structure.
            unsafe { store(base, *count, ulong(template.len())) };
            let p = write_template(template, arena).ok_or(BAD)?;
            // SAFETY: within the structure.
            unsafe { put(base, at, p) }
        }
        (Kind::PrfValue { tag, len }, value) => {
            // SAFETY: the type lies within the structure, and is written.
            let tag: Ulong = unsafe { load(base, *tag) };
            match value {
                FieldValue::Handle(h) if tag == ck::CK_SP800_108_KEY_HANDLE => {
                    let bytes = h.0.to_ne_bytes();
                    // SAFETY: within the structure.
                    unsafe { write_bytes(Len::Own(*len), Some(&bytes), base, at, outer, arena) }
                }
                FieldValue::Bytes(bytes) if tag != ck::CK_SP800_108_KEY_HANDLE => {
                    // SAFETY: within the structure.
                    unsafe { write_bytes(Len::Own(*len), bytes.as_deref(), base, at, outer, arena) }
                }
                _ => Err(BAD),
            }
        }
        _ => Err(BAD),
    }
}

/// A `store` that ends a field's arm.
///
/// # Safety
/// As `store`.
unsafe fn put<T: Copy>(base: *mut u8, at: usize, value: T) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { store(base, at, value) };
    Ok(())
}

/// Puts bytes into the arena, their address at `at`, and their length where it belongs.
///
/// # Safety
/// As [`write_field`].
unsafe fn write_bytes(
    len: Len,
    bytes: Option<&[u8]>,
    base: *mut u8,
    at: usize,
    outer: *const u8,
    arena: &mut Arena,
) -> Result<()> {
    let n = bytes.map_or(0, <[u8]>::len);
    if n > MAX_BYTES {
        return Err(BAD);
    }
    match len {
        Len::Own(place) => {
            // SAFETY: within the structure.
            let old: Ulong = unsafe { load(base, place) };
            if old != 0 && old != ulong(n) {
                return Err(BAD); // two pointers share this length
            }
            // SAFETY: within the structure.
            unsafe { store(base, place, ulong(n)) }
        }
        Len::Indirect(place) => {
            let p = arena.copy(&ulong(n).to_ne_bytes()).ok_or(BAD)?;
            // SAFETY: within the structure.
            unsafe { store(base, place, p) }
        }
        Len::Listed(_) | Len::Bits(_) | Len::OuterBits(_) | Len::Fixed(_) => {
            // A module would read or write what the numbers say, so the bytes must be as many.
            // SAFETY: within the structure.
            if bytes.is_some() && unsafe { length(len, base, outer) }? != n {
                return Err(BAD);
            }
        }
        Len::Terminated => {
            let Some(bytes) = bytes else { return Ok(()) };
            let p = arena.copy(&[bytes, &[0]].concat()).ok_or(BAD)?;
            // SAFETY: within the structure.
            return unsafe { put(base, at, p) };
        }
        Len::Unknown if bytes.is_some() => return Err(BAD),
        Len::Unknown => {}
    }
    if let Some(bytes) = bytes {
        let p = arena.copy(bytes).ok_or(BAD)?;
        // SAFETY: within the structure.
        unsafe { store(base, at, p) }
    }
    Ok(())
}

/// Lays a template out; nested ones too. `None` where no memory is that large.
pub(crate) fn write_template(template: &Template, arena: &mut Arena) -> Option<*mut CK_ATTRIBUTE> {
    let size = size_of::<CK_ATTRIBUTE>();
    let array = arena.alloc(template.len().checked_mul(size)?)?;
    for (i, attribute) in template.iter().enumerate() {
        let (p, len) = match &attribute.value {
            Value::Bytes(bytes) => (arena.copy(bytes)?, bytes.len()),
            Value::Template(inner) => (write_template(inner, arena)?.cast(), inner.len() * size),
        };
        let raw = CK_ATTRIBUTE { type_: attribute.kind, pValue: p.cast(), ulValueLen: ulong(len) };
        // SAFETY: the block has room for every attribute.
        unsafe { store(array, i * size, raw) }
    }
    Some(array.cast())
}

/// Takes what a module wrote out of the C form.
pub(crate) fn take_params(params: &mut Params, base: *const u8, len: CK_ULONG, arena: &Arena) {
    let Some((base, room)) = arena.block(base) else { return };
    match params {
        Params::None => {}
        Params::Bytes(bytes) => {
            if bytes.len() <= room && ulong(bytes.len()) == len {
                // SAFETY: the block has that many bytes, initialised.
                let new = unsafe { copy_out(base, bytes.len()) };
                bytes.copy_from_slice(&new);
            }
        }
        Params::Struct(s) => {
            if let Some(layout) = by_name(s.layout).filter(|l| l.size <= room) {
                // SAFETY: the block has the layout's size.
                unsafe { take_struct(layout, s, base, arena) }
            }
        }
    }
}

/// Takes the outputs of one structure.
///
/// # Safety
/// `base` points at `layout.size` bytes of the arena.
unsafe fn take_struct(layout: &Layout, s: &mut StructParams, base: *const u8, arena: &Arena) {
    for spec in layout.fields {
        let Some(value) = s.field_mut(spec.name) else { continue };
        // SAFETY: used only for kinds that are a pointer at this offset.
        let pointer = || arena.block(unsafe { load::<*const u8>(base, spec.offset) });
        match (&spec.kind, value) {
            (Kind::Output(len), FieldValue::Output(Some(bytes))) => {
                let Some((p, room)) = pointer() else { continue };
                let mut n = bytes.len();
                if let Len::Indirect(at) = len {
                    // SAFETY: within the structure.
                    if let Some((p, _)) = arena.block(unsafe { load(base, *at) }) {
                        // SAFETY: the block holds a length.
                        n = usize::try_from(unsafe { load::<Ulong>(p, 0) }).map_or(n, |new| new.min(n));
                    }
                }
                // SAFETY: the block has `room` bytes, initialised.
                *bytes = unsafe { copy_out(p, n.min(room)) };
            }
            (Kind::OutputHandle, FieldValue::OutputHandles(handles)) => {
                // SAFETY: within the structure.
                *handles = vec![ObjectHandle(unsafe { load(base, spec.offset) })];
            }
            (Kind::OutputHandlePtr, FieldValue::OutputHandles(handles)) => {
                if let Some((p, _)) = pointer() {
                    // SAFETY: the block holds a handle.
                    *handles = vec![ObjectHandle(unsafe { load(p, 0) })];
                }
            }
            (Kind::Struct(inner), FieldValue::Struct(Some(s))) => {
                // SAFETY: the inner structure lies within this one.
                unsafe { take_struct(inner, s, base.wrapping_add(spec.offset), arena) }
            }
            (Kind::StructPtr(inner), FieldValue::Struct(Some(s))) => {
                if let Some((p, _)) = pointer().filter(|(_, room)| *room >= inner.size) {
                    // SAFETY: the block has the layout's size.
                    unsafe { take_struct(inner, s, p, arena) }
                }
            }
            (Kind::List { item, .. }, FieldValue::List(list)) => {
                let Some((p, room)) = pointer() else { continue };
                for (i, s) in list.iter_mut().enumerate().take(room / item.size) {
                    // SAFETY: the block has room for this element.
                    unsafe { take_struct(item, s, p.wrapping_add(i * item.size), arena) }
                }
            }
            (Kind::Mechanism, FieldValue::Mechanism(Some(m))) => {
                let whole = |(_, room): &(*mut u8, usize)| *room >= size_of::<CK_MECHANISM>();
                if let Some((p, _)) = pointer().filter(whole) {
                    // SAFETY: the block holds a mechanism.
                    let raw: CK_MECHANISM = unsafe { load(p, 0) };
                    let Mechanism { params, .. } = m.as_mut();
                    take_params(params, raw.pParameter.cast(), raw.ulParameterLen, arena);
                }
            }
            _ => {}
        }
    }
}
