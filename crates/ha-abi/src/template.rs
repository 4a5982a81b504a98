//! Templates: a caller's copied deep, and ours in C form.

use ha_token::ck::{CK_ATTRIBUTE, CK_ULONG};
use ha_token::{Attribute, AttributeType, Result, Rv, Template};

use crate::arena::Arena;
use crate::read::Budget;
use crate::slice::{copy_out, load};
use crate::write::{ulong, write_template};
use crate::{MAX_DEPTH, MAX_ITEMS};

/// Deep copy of a caller's template, nested ones included.
///
/// # Errors
/// `ARGUMENTS_BAD` for null with a count, or more than 4096 attributes in all; `ATTRIBUTE_VALUE_INVALID` for a value that is
/// null with a length, too long (64 MiB in all), or a nested template of a broken length or too deep.
///
/// # Safety
/// `template` is null or points at `count` attributes; their values, where not null, point at that many bytes.
pub unsafe fn read_template(template: *const CK_ATTRIBUTE, count: CK_ULONG) -> Result<Template> {
    // SAFETY: the caller's promise.
    unsafe { read_attributes(template, count, 0, &mut Budget::new()) }
}

/// As [`read_template`], at this depth of nesting.
///
/// # Safety
/// As [`read_template`].
pub(crate) unsafe fn read_attributes(
    template: *const CK_ATTRIBUTE,
    count: CK_ULONG,
    depth: usize,
    budget: &mut Budget,
) -> Result<Template> {
    let count = checked_count(template, count)?;
    budget.items(count).ok_or(Rv::ARGUMENTS_BAD)?;
    let mut all = Vec::with_capacity(count);
    for i in 0..count {
        // SAFETY: the array has `count` attributes.
        let raw: CK_ATTRIBUTE = unsafe { load(template.cast(), i * size_of::<CK_ATTRIBUTE>()) };
        let len = usize::try_from(raw.ulValueLen).map_err(|_| Rv::ATTRIBUTE_VALUE_INVALID)?;
        budget.bytes(len).ok_or(Rv::ATTRIBUTE_VALUE_INVALID)?;
        if raw.pValue.is_null() && len > 0 {
            return Err(Rv::ATTRIBUTE_VALUE_INVALID);
        }
        all.push(if Attribute::is_template(raw.type_) {
            if len % size_of::<CK_ATTRIBUTE>() != 0 || depth >= MAX_DEPTH {
                return Err(Rv::ATTRIBUTE_VALUE_INVALID);
            }
            let inner = ulong(len / size_of::<CK_ATTRIBUTE>());
            // SAFETY: the value is that many attributes by the caller's promise.
            let value = unsafe { read_attributes(raw.pValue.cast(), inner, depth + 1, budget) }?;
            Attribute::template(raw.type_, value)
        } else {
            // SAFETY: not null when there is a length, readable by the caller's promise, bounded by the budget.
            Attribute::bytes(raw.type_, unsafe { copy_out(raw.pValue.cast_const().cast(), len) })
        });
    }
    Ok(all)
}

fn checked_count(template: *const CK_ATTRIBUTE, count: CK_ULONG) -> Result<usize> {
    match usize::try_from(count) {
        Ok(n) if n <= MAX_ITEMS && !(n > 0 && template.is_null()) => Ok(n),
        _ => Err(Rv::ARGUMENTS_BAD),
    }
}

/// The types in a caller's template for `C_GetAttributeValue`.
///
/// # Errors
/// `ARGUMENTS_BAD` for null with a count, or more than 4096 attributes.
///
/// # Safety
/// `template` is null or points at `count` attributes.
pub unsafe fn attribute_types(template: *const CK_ATTRIBUTE, count: CK_ULONG) -> Result<Vec<AttributeType>> {
    let count = checked_count(template, count)?;
    let at = |i| i * size_of::<CK_ATTRIBUTE>();
    // SAFETY: the array has `count` attributes.
    Ok((0..count).map(|i| unsafe { load::<CK_ATTRIBUTE>(template.cast(), at(i)) }.type_).collect())
}

/// A [`Template`] in C form, to call a module with. Its pointers stay good while it lives, also when it is moved; its
/// memory is wiped when it is dropped.
pub struct RawTemplate {
    array: *mut CK_ATTRIBUTE,
    len: CK_ULONG,
    /// Owns what `array` points at.
    _arena: Arena,
}

// SAFETY: the pointer in it points into the arena, which it owns.
unsafe impl Send for RawTemplate {}

impl RawTemplate {
    /// Lays the template out.
    pub fn new(template: &Template) -> Self {
        let mut arena = Arena::new();
        // Lengths beyond the address space cannot be in memory already, so laying out does not fail.
        match write_template(template, &mut arena) {
            Some(array) => RawTemplate { array, len: ulong(template.len()), _arena: arena },
            None => RawTemplate { array: std::ptr::null_mut(), len: 0, _arena: arena },
        }
    }

    /// What a module is called with; good while the value lives.
    pub fn as_mut_ptr(&mut self) -> *mut CK_ATTRIBUTE {
        self.array
    }

    /// How many attributes.
    pub fn len(&self) -> CK_ULONG {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
