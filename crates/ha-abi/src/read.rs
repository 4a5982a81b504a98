//! The engine that reads a caller's parameter structures, and the one that writes answers back into them.

use ha_token::ck::{self, CK_MECHANISM, CK_ULONG};
use ha_token::{Field, FieldValue, Mechanism, ObjectHandle, Params, Result, Rv, StructParams, Ulong};

use crate::layout::{Kind, Layout, Len};
use crate::layouts::{derive, symmetric};
use crate::mechanisms::Shape;
use crate::slice::{copy_if_changed, copy_out, load, store_if_changed};
use crate::template::read_attributes;
use crate::{MAX_BYTES, MAX_DEPTH, MAX_ITEMS};

/// What one call may still copy: hostile nesting must not multiply.
pub(crate) struct Budget {
    bytes: usize,
    items: usize,
}

impl Budget {
    /// A whole call's.
    pub(crate) const fn new() -> Self {
        Budget { bytes: MAX_BYTES, items: MAX_ITEMS }
    }

    /// Takes so many bytes, or refuses.
    pub(crate) fn bytes(&mut self, n: usize) -> Option<()> {
        self.bytes = self.bytes.checked_sub(n)?;
        Some(())
    }

    /// Takes so many attributes or elements, or refuses.
    pub(crate) fn items(&mut self, n: usize) -> Option<()> {
        self.items = self.items.checked_sub(n)?;
        Some(())
    }
}

const BAD: Rv = Rv::MECHANISM_PARAM_INVALID;

/// Reads a mechanism's parameter.
///
/// # Safety
/// `parameter` is null or points at `len` readable bytes, and what the structure there points at is readable for
/// the lengths it gives.
pub(crate) unsafe fn read_params(
    shape: &Shape,
    parameter: *const u8,
    len: CK_ULONG,
    depth: usize,
    budget: &mut Budget,
) -> Result<Params> {
    let len = usize::try_from(len).map_err(|_| BAD)?;
    if len == 0 {
        return Ok(Params::None);
    }
    if parameter.is_null() {
        return Err(BAD);
    }
    let layout = match shape {
        Shape::Plain(size) if *size != len => return Err(BAD),
        Shape::Bytes | Shape::Plain(_) => None,
        Shape::StructOrBytes(layout) => Some(*layout).filter(|l| l.size == len),
        Shape::Structs(all) => Some(*all.iter().find(|l| l.size == len).ok_or(BAD)?),
    };
    let Some(layout) = layout else {
        budget.bytes(len).ok_or(BAD)?;
        // SAFETY: not null, and readable for `len` by the caller's promise; the budget bounds the length.
        return Ok(Params::Bytes(unsafe { copy_out(parameter, len) }.into_boxed_slice()));
    };
    // SAFETY: the structure's whole size is readable, as `len` is that size.
    let layout = unsafe { resolve(layout, parameter) };
    // SAFETY: the same, and the caller's promise for what it points at.
    let s = unsafe { read_struct(layout, parameter, std::ptr::null(), depth, budget) }?;
    Ok(Params::Struct(Box::new(s)))
}

/// Tells structures of the same size apart that share a mechanism.
///
/// # Safety
/// `base` points at `layout.size` readable bytes.
pub(crate) unsafe fn resolve(layout: &'static Layout, base: *const u8) -> &'static Layout {
    if std::ptr::eq(layout, &symmetric::GCM) {
        // `CK_GCM_MESSAGE_PARAMS` in place of `CK_GCM_PARAMS`: a generator's small number where the pointer to the
        // additional data would be, and a pointer where its length would be. As `CK_GCM_PARAMS` it is invalid.
        // SAFETY: within the structure.
        let generator: usize = unsafe { load(base, std::mem::offset_of!(ck::CK_GCM_PARAMS, pAAD)) };
        // SAFETY: within the structure.
        let tag: CK_ULONG = unsafe { load(base, std::mem::offset_of!(ck::CK_GCM_PARAMS, ulAADLen)) };
        let pointer = usize::try_from(tag).map_or(true, |n| n > MAX_BYTES);
        if generator <= ck::CKG_GENERATE_COUNTER_XOR as usize && (generator != 0 || pointer) {
            return &symmetric::GCM_MESSAGE;
        }
    } else if std::ptr::eq(layout, &derive::PBKD2) {
        // The older structure of the same size has a pointer to the password's length.
        // SAFETY: within the structure.
        let len: CK_ULONG =
            unsafe { load(base, std::mem::offset_of!(ck::CK_PKCS5_PBKD2_PARAMS2, ulPasswordLen)) };
        if usize::try_from(len).map_or(true, |n| n > MAX_BYTES) {
            return &derive::PBKD2_OLD;
        }
    }
    layout
}

/// Reads one structure.
///
/// # Safety
/// `base` points at `layout.size` readable bytes, `outer` is null or points at the structure that points here;
/// what they point at is readable for the lengths they give.
pub(crate) unsafe fn read_struct(
    layout: &'static Layout,
    base: *const u8,
    outer: *const u8,
    depth: usize,
    budget: &mut Budget,
) -> Result<StructParams> {
    if depth > MAX_DEPTH {
        return Err(BAD);
    }
    budget.items(1).ok_or(BAD)?;
    let mut fields = Vec::with_capacity(layout.fields.len());
    for spec in layout.fields {
        // SAFETY: the field lies within the structure; the rest is the caller's promise.
        let value = unsafe { read_field(&spec.kind, base, spec.offset, outer, depth, budget) }?;
        fields.push(Field { name: spec.name, value });
    }
    Ok(StructParams { layout: layout.name, fields })
}

/// Reads the field at `offset`.
///
/// # Safety
/// As [`read_struct`]; the field lies within the structure.
unsafe fn read_field(
    kind: &Kind,
    base: *const u8,
    offset: usize,
    outer: *const u8,
    depth: usize,
    budget: &mut Budget,
) -> Result<FieldValue> {
    // SAFETY: used only for kinds that are a word or a pointer at this offset.
    let word = || unsafe { load::<Ulong>(base, offset) };
    // SAFETY: as above.
    let pointer = || unsafe { load::<*const u8>(base, offset) };
    Ok(match kind {
        Kind::Ulong => FieldValue::Ulong(word()),
        // SAFETY: within the structure.
        Kind::Byte => FieldValue::Byte(unsafe { load(base, offset) }),
        // SAFETY: within the structure.
        Kind::Inline(n) => FieldValue::Inline(unsafe { copy_out(base.wrapping_add(offset), *n) }),
        Kind::Handle => FieldValue::Handle(ObjectHandle(word())),
        Kind::OutputHandle => FieldValue::OutputHandles(vec![ObjectHandle(word())]),
        Kind::OutputHandlePtr => {
            let p = pointer();
            FieldValue::OutputHandles(if p.is_null() {
                Vec::new()
            } else {
                // SAFETY: points at one handle by the caller's promise.
                vec![ObjectHandle(unsafe { load(p, 0) })]
            })
        }
        // SAFETY: within the structure, and the caller's promise.
        Kind::Bytes(len) => FieldValue::Bytes(unsafe { read_bytes(*len, pointer(), base, outer, budget) }?),
        // SAFETY: as above.
        Kind::Output(len) => FieldValue::Output(unsafe { read_bytes(*len, pointer(), base, outer, budget) }?),
        Kind::Struct(inner) => {
            let at = base.wrapping_add(offset);
            // SAFETY: the inner structure lies within this one.
            let s = unsafe { read_struct(inner, at, base, depth + 1, budget) }?;
            FieldValue::Struct(Some(Box::new(s)))
        }
        Kind::StructPtr(inner) => {
            let p = pointer();
            if p.is_null() {
                return Ok(FieldValue::Struct(None));
            }
            // SAFETY: points at such a structure by the caller's promise.
            let s = unsafe { read_struct(inner, p, base, depth + 1, budget) }?;
            FieldValue::Struct(Some(Box::new(s)))
        }
        Kind::List { count, item } => {
            // SAFETY: the count lies within the structure.
            let n = usize::try_from(unsafe { load::<Ulong>(base, *count) }).map_err(|_| BAD)?;
            let p = pointer();
            if n > MAX_ITEMS || (n > 0 && p.is_null()) {
                return Err(BAD);
            }
            let mut list = Vec::new();
            for i in 0..n {
                // SAFETY: the array has `n` elements by the caller's promise.
                list.push(unsafe {
                    read_struct(item, p.wrapping_add(i * item.size), base, depth + 1, budget)
                }?);
            }
            FieldValue::List(list)
        }
        Kind::Mechanism => {
            let p = pointer();
            if p.is_null() {
                return Ok(FieldValue::Mechanism(None));
            }
            // SAFETY: points at a mechanism by the caller's promise.
            let inner = unsafe { read_inner(p.cast(), depth + 1, budget) }?;
            FieldValue::Mechanism(Some(Box::new(inner)))
        }
        Kind::Template { count } => {
            // SAFETY: the count lies within the structure.
            let n = unsafe { load::<Ulong>(base, *count) };
            // SAFETY: the array has `n` attributes by the caller's promise.
            let template = unsafe { read_attributes(pointer().cast(), n, 0, budget) }.map_err(|_| BAD)?;
            FieldValue::Template(template)
        }
        Kind::PrfValue { tag, len } => {
            // SAFETY: the type lies within the structure.
            let tag = unsafe { load::<Ulong>(base, *tag) };
            if tag == ck::CK_SP800_108_KEY_HANDLE {
                // SAFETY: the length lies within the structure.
                let len = unsafe { load::<Ulong>(base, *len) };
                if pointer().is_null() || usize::try_from(len) != Ok(size_of::<Ulong>()) {
                    return Err(BAD);
                }
                // SAFETY: points at a handle, whose length was checked.
                FieldValue::Handle(ObjectHandle(unsafe { load(pointer(), 0) }))
            } else {
                // SAFETY: as for `Kind::Bytes`.
                FieldValue::Bytes(unsafe { read_bytes(Len::Own(*len), pointer(), base, outer, budget) }?)
            }
        }
    })
}

/// A mechanism inside a parameter.
///
/// # Safety
/// As [`read_params`], for a mechanism that is there.
unsafe fn read_inner(mechanism: *const CK_MECHANISM, depth: usize, budget: &mut Budget) -> Result<Mechanism> {
    if depth > MAX_DEPTH {
        return Err(BAD);
    }
    // SAFETY: there by the caller's promise.
    let m: CK_MECHANISM = unsafe { load(mechanism.cast(), 0) };
    let shape = crate::mechanisms::shape(m.mechanism);
    // SAFETY: the caller's promise holds for what the mechanism points at.
    let params = unsafe { read_params(&shape, m.pParameter.cast(), m.ulParameterLen, depth, budget) }?;
    Ok(Mechanism { kind: m.mechanism, params })
}

/// How many bytes a pointer points at.
///
/// # Safety
/// `base` points at a structure that has the length where `len` says, `outer` as in [`read_struct`].
pub(crate) unsafe fn length(len: Len, base: *const u8, outer: *const u8) -> Result<usize> {
    let bits = |n: Ulong| usize::try_from(n.div_ceil(8)).map_err(|_| BAD);
    match len {
        Len::Own(at) | Len::Listed(at) => {
            // SAFETY: within the structure.
            usize::try_from(unsafe { load::<Ulong>(base, at) }).map_err(|_| BAD)
        }
        // SAFETY: within the structure.
        Len::Bits(at) => bits(unsafe { load(base, at) }),
        Len::OuterBits(_) if outer.is_null() => Err(BAD),
        // SAFETY: within the outer structure.
        Len::OuterBits(at) => bits(unsafe { load(outer, at) }),
        Len::Indirect(at) => {
            // SAFETY: within the structure.
            let p: *const u8 = unsafe { load(base, at) };
            if p.is_null() {
                return Ok(0);
            }
            // SAFETY: points at a length by the caller's promise.
            usize::try_from(unsafe { load::<Ulong>(p, 0) }).map_err(|_| BAD)
        }
        Len::Fixed(n) => Ok(n),
        Len::Terminated | Len::Unknown => Err(BAD),
    }
}

/// Reads what a pointer points at.
///
/// # Safety
/// As [`read_struct`].
unsafe fn read_bytes(
    len: Len,
    p: *const u8,
    base: *const u8,
    outer: *const u8,
    budget: &mut Budget,
) -> Result<Option<Vec<u8>>> {
    if p.is_null() {
        return match len {
            Len::Own(_) | Len::Indirect(_) => {
                // SAFETY: as promised.
                if unsafe { length(len, base, outer) }? == 0 { Ok(None) } else { Err(BAD) }
            }
            _ => Ok(None),
        };
    }
    let n = if let Len::Terminated = len {
        let mut n = 0usize;
        loop {
            if n == MAX_ITEMS {
                return Err(BAD);
            }
            // SAFETY: not beyond the zero byte, which is there by the caller's promise.
            let byte: u8 = unsafe { load(p, n) };
            if byte == 0 {
                break n;
            }
            n += 1;
        }
    } else {
        // SAFETY: as promised.
        unsafe { length(len, base, outer) }?
    };
    budget.bytes(n).ok_or(BAD)?;
    // SAFETY: not null, readable for `n` by the caller's promise; the budget bounds `n`.
    Ok(Some(unsafe { copy_out(p, n) }))
}

/// Writes what a token wrote back into the caller's parameter.
///
/// # Safety
/// `parameter` is what [`read_params`] read `params` from, unchanged since, and its outputs are writable.
pub(crate) unsafe fn write_back_params(shape: &Shape, params: &Params, parameter: *mut u8, len: CK_ULONG) {
    let Ok(len) = usize::try_from(len) else { return };
    if parameter.is_null() {
        return;
    }
    match params {
        Params::None => {}
        Params::Bytes(bytes) if bytes.len() == len => {
            // SAFETY: the parameter has that length.
            unsafe { copy_if_changed(parameter, bytes) }
        }
        Params::Bytes(_) => {}
        Params::Struct(s) => {
            let found = match shape {
                Shape::Structs(all) => all.iter().copied().find(|l| l.size == len),
                Shape::StructOrBytes(l) => Some(*l).filter(|l| l.size == len),
                Shape::Bytes | Shape::Plain(_) => None,
            };
            let Some(layout) = found else { return };
            // SAFETY: the parameter has the layout's size.
            let layout = unsafe { resolve(layout, parameter) };
            if layout.name == s.layout {
                // SAFETY: the caller's promise.
                unsafe { write_back_struct(layout, s, parameter, std::ptr::null()) }
            }
        }
    }
}

/// Writes the outputs of one structure back.
///
/// # Safety
/// As [`write_back_params`], for the structure at `base`.
unsafe fn write_back_struct(layout: &Layout, s: &StructParams, base: *mut u8, outer: *const u8) {
    for spec in layout.fields {
        let Some(value) = s.field(spec.name) else { continue };
        // SAFETY: used only for kinds that are a pointer at this offset.
        let pointer = || unsafe { load::<*mut u8>(base, spec.offset) };
        match (&spec.kind, value) {
            (Kind::Output(len), FieldValue::Output(Some(bytes))) => {
                let p = pointer();
                // SAFETY: the structure is unchanged since it was read.
                let Ok(room) = (unsafe { length(*len, base, outer) }) else { continue };
                let n = bytes.len().min(room);
                let (false, Some(bytes)) = (p.is_null(), bytes.get(..n)) else { continue };
                // SAFETY: the caller's buffer has `room` bytes.
                unsafe { copy_if_changed(p, bytes) };
                if let Len::Indirect(at) = len {
                    // SAFETY: within the structure.
                    let p: *mut u8 = unsafe { load(base, *at) };
                    if !p.is_null() {
                        // SAFETY: points at the length that was read.
                        unsafe { store_if_changed(p, 0, n as Ulong) };
                    }
                }
            }
            (Kind::OutputHandle, FieldValue::OutputHandles(handles)) => {
                if let Some(h) = handles.first() {
                    // SAFETY: within the structure.
                    unsafe { store_if_changed(base, spec.offset, h.0) }
                }
            }
            (Kind::OutputHandlePtr, FieldValue::OutputHandles(handles)) => {
                let p = pointer();
                if let (Some(h), false) = (handles.first(), p.is_null()) {
                    // SAFETY: points at one handle.
                    unsafe { store_if_changed(p, 0, h.0) }
                }
            }
            (Kind::Struct(inner), FieldValue::Struct(Some(s))) => {
                // SAFETY: the inner structure lies within this one.
                unsafe { write_back_struct(inner, s, base.wrapping_add(spec.offset), base) }
            }
            (Kind::StructPtr(inner), FieldValue::Struct(Some(s))) => {
                let p = pointer();
                if !p.is_null() {
                    // SAFETY: points at the structure that was read.
                    unsafe { write_back_struct(inner, s, p, base) }
                }
            }
            (Kind::List { count, item }, FieldValue::List(list)) => {
                let p = pointer();
                // SAFETY: the count lies within the structure.
                let n = usize::try_from(unsafe { load::<Ulong>(base, *count) }).unwrap_or(0);
                if p.is_null() {
                    continue;
                }
                for (i, s) in list.iter().take(n).enumerate() {
                    // SAFETY: the array has `n` elements.
                    unsafe { write_back_struct(item, s, p.wrapping_add(i * item.size), base) }
                }
            }
            (Kind::Mechanism, FieldValue::Mechanism(Some(m))) => {
                let p = pointer();
                if p.is_null() {
                    continue;
                }
                // SAFETY: points at the mechanism that was read.
                let raw: CK_MECHANISM = unsafe { load(p, 0) };
                let shape = crate::mechanisms::shape(raw.mechanism);
                // SAFETY: the caller's promise holds for what it points at.
                unsafe {
                    write_back_params(&shape, &m.params, raw.pParameter.cast(), raw.ulParameterLen);
                }
            }
            _ => {}
        }
    }
}
