//! What an application's pointers mean: the only place where they are read and written.

use std::marker::PhantomData;
use std::ptr::NonNull;

use cryptoki_sys::{CK_ATTRIBUTE, CK_MECHANISM, CK_ULONG};
use ha_token::{AttributeType, Fetched, Mechanism, Output, Params, Result, Rv, Template, Ulong};
use zeroize::Zeroizing;

/// One call by an application, whose pointers may be believed while it lasts.
///
/// Its methods take pointers and are safe, because whoever makes a `Caller` answers for every pointer given to it.
/// NULL, absurd lengths and unaligned pointers are still dealt with.
pub(crate) struct Caller(());

/// Where a result goes: a pointer that is not NULL.
pub(crate) struct Place<'a, T> {
    pointer: NonNull<T>,
    call: PhantomData<&'a Caller>,
}

impl Caller {
    /// Believes the application.
    ///
    /// # Safety
    /// Until this value is dropped, every pointer given to a method is NULL, or valid for what the method says, for as
    /// many elements as are given with it, and no other thread changes what it points to. Memory for output is given to
    /// a method once, and does not overlap other arguments except where the standard allows it.
    pub(crate) unsafe fn trusted() -> Self {
        Caller(())
    }

    /// Input bytes; NULL is allowed if there are none.
    ///
    /// # Errors
    /// `CKR_ARGUMENTS_BAD`, here and below, for what the standard does not allow.
    pub(crate) fn input(&self, bytes: *const u8, len: CK_ULONG) -> Result<&[u8]> {
        // SAFETY: readable for `len` bytes, as promised to `trusted`.
        unsafe { ha_abi::slice(bytes, len) }
    }

    /// Bytes where NULL means that there is no value, whatever the length says: a PIN.
    pub(crate) fn optional(&self, bytes: *const u8, len: CK_ULONG) -> Result<Option<&[u8]>> {
        if bytes.is_null() { Ok(None) } else { self.input(bytes, len).map(Some) }
    }

    /// Space for exactly `len` bytes.
    #[expect(clippy::mut_from_ref, reason = "the memory is the application's and not this value's")]
    pub(crate) fn space(&self, bytes: *mut u8, len: CK_ULONG) -> Result<&mut [u8]> {
        // SAFETY: writable for `len` bytes, as promised to `trusted`.
        unsafe { ha_abi::slice_mut(bytes, len) }
    }

    /// A place for one result.
    pub(crate) fn place<T>(&self, pointer: *mut T) -> Result<Place<'_, T>> {
        let pointer = NonNull::new(pointer).ok_or(Rv::ARGUMENTS_BAD)?;
        Ok(Place { pointer, call: PhantomData })
    }

    /// One value, or `None` for NULL.
    pub(crate) fn value<T: Copy>(&self, pointer: *const T) -> Option<T> {
        // SAFETY: readable, as promised to `trusted`; alignment is not asked for.
        NonNull::new(pointer.cast_mut()).map(|p| unsafe { p.as_ptr().read_unaligned() })
    }

    /// Whether the text that ends with a NUL is `expected`. Reads no further than they agree.
    pub(crate) fn is_text(&self, mut text: *const u8, expected: &std::ffi::CStr) -> bool {
        for byte in expected.to_bytes_with_nul() {
            if self.value(text) != Some(*byte) {
                return false;
            }
            text = text.wrapping_add(1);
        }
        true
    }

    /// Variable-length output by the standard's convention (section 5.2): `len` is read as the space there is, and set
    /// when `body` answers `Ok` or `CKR_BUFFER_TOO_SMALL`.
    #[inline(always)]
    pub(crate) fn output(
        &self,
        buffer: *mut u8,
        len: *mut CK_ULONG,
        body: impl FnOnce(&mut Output<'_>) -> Result<()>,
    ) -> Result<()> {
        let space = self.value(len).ok_or(Rv::ARGUMENTS_BAD)?;
        let mut output = match NonNull::new(buffer) {
            None => Output::query(),
            Some(buffer) => Output::buffer(self.space(buffer.as_ptr(), space)?),
        };
        let result = body(&mut output);
        if matches!(result, Ok(()) | Err(Rv::BUFFER_TOO_SMALL)) {
            self.place(len)?.put(ulong(output.len()));
        }
        result
    }

    /// Input and output that may be the same memory, which the standard allows: the input is then copied first.
    #[inline(always)]
    pub(crate) fn transform(
        &self,
        (input, input_len): (*const u8, CK_ULONG),
        (buffer, len): (*mut u8, *mut CK_ULONG),
        body: impl FnOnce(&[u8], &mut Output<'_>) -> Result<()>,
    ) -> Result<()> {
        let space = self.value(len).ok_or(Rv::ARGUMENTS_BAD)?;
        let mut bytes = self.input(input, input_len)?;
        let copy;
        if !buffer.is_null() && overlap((input, input_len), (buffer, space)) {
            copy = Zeroizing::new(bytes.to_vec());
            bytes = &copy;
        }
        self.output(buffer, len, |output| body(bytes, output))
    }

    /// A list by the standard's convention: `count` is read as the elements there is space for, and set to how many
    /// there are.
    pub(crate) fn list<T: Copy>(&self, items: &[T], list: *mut T, count: *mut CK_ULONG) -> Result<()> {
        let space = self.value(count).ok_or(Rv::ARGUMENTS_BAD)?;
        let total = ulong(items.len());
        self.place(count)?.put(total);
        if list.is_null() {
            return Ok(());
        }
        if space < total {
            return Err(Rv::BUFFER_TOO_SMALL);
        }
        self.array(items, list)
    }

    /// Writes an array that is known to fit.
    pub(crate) fn array<T: Copy>(&self, items: &[T], mut array: *mut T) -> Result<()> {
        for item in items {
            self.place(array)?.put(*item);
            array = array.wrapping_add(1);
        }
        Ok(())
    }

    /// The mechanism that a function demands.
    pub(crate) fn mechanism(&self, mechanism: *const CK_MECHANISM) -> Result<Mechanism> {
        if mechanism.is_null() {
            return Err(Rv::ARGUMENTS_BAD);
        }
        // SAFETY: a mechanism with its parameter, as promised to `trusted`.
        unsafe { ha_abi::read_mechanism(mechanism) }
    }

    /// Runs `body` on the mechanism, and writes back what it changed in the parameter. What is unchanged is not
    /// written: it may be in memory that cannot be. Allocates nothing where there is no parameter.
    #[inline(always)]
    pub(crate) fn with_mechanism<T>(
        &self,
        mechanism: *mut CK_MECHANISM,
        body: impl FnOnce(&mut Mechanism) -> Result<T>,
    ) -> Result<T> {
        let mut ours = self.mechanism(mechanism)?;
        let answer = body(&mut ours)?;
        if !matches!(ours.params, Params::None) {
            // SAFETY: the structure that `ours` was read from, writable where the mechanism has outputs.
            unsafe { ha_abi::write_back_mechanism(&ours, mechanism) };
        }
        Ok(answer)
    }

    /// As [`Caller::with_mechanism`], for the parameter of one message under the mechanism `kind`.
    pub(crate) fn with_message_params<T>(
        &self,
        kind: Ulong,
        (params, len): (*mut std::ffi::c_void, CK_ULONG),
        body: impl FnOnce(&mut Params) -> Result<T>,
    ) -> Result<T> {
        // SAFETY: the parameter of a message with its length, as promised to `trusted`.
        let mut ours = unsafe { ha_abi::read_message_params(kind, params, len) }?;
        let answer = body(&mut ours)?;
        if !matches!(ours, Params::None) {
            // SAFETY: the structure that `ours` was read from, writable where the mechanism has outputs.
            unsafe { ha_abi::write_back_message_params(kind, &ours, params, len) };
        }
        Ok(answer)
    }

    /// A template.
    pub(crate) fn template(&self, attributes: *const CK_ATTRIBUTE, count: CK_ULONG) -> Result<Template> {
        // SAFETY: `count` attributes with their values, as promised to `trusted`.
        unsafe { ha_abi::read_template(attributes, count) }
    }

    /// The types that a template asks for; values are not read.
    pub(crate) fn types(
        &self,
        attributes: *const CK_ATTRIBUTE,
        count: CK_ULONG,
    ) -> Result<Vec<AttributeType>> {
        // SAFETY: `count` attributes, as promised to `trusted`.
        unsafe { ha_abi::attribute_types(attributes, count) }
    }

    /// Answers a template by the convention of `C_GetAttributeValue`: one answer for each of the types asked for.
    pub(crate) fn answer(&self, attributes: *mut CK_ATTRIBUTE, answers: &[Fetched]) -> Result<()> {
        // SAFETY: as many attributes as `types` read, writable with their values, as promised to `trusted`.
        unsafe { ha_abi::answer_attributes(attributes, answers) }
    }
}

impl<T> Place<'_, T> {
    /// Writes the result.
    pub(crate) fn put(self, value: T) {
        // SAFETY: writable, as promised to `trusted` by whoever made the `Caller` of this place.
        unsafe { self.pointer.as_ptr().write_unaligned(value) }
    }
}

/// A length as a `CK_ULONG`; no length in memory is too large for one where both have the same width.
pub(crate) fn ulong(len: usize) -> CK_ULONG {
    CK_ULONG::try_from(len).unwrap_or(CK_ULONG::MAX)
}

/// Whether two pieces of memory share a byte. Compared as addresses: the pieces need not be of one allocation.
fn overlap(a: (*const u8, CK_ULONG), b: (*mut u8, CK_ULONG)) -> bool {
    let (a, a_len) = (a.0.addr() as u128, u128::from(a.1));
    let (b, b_len) = (b.0.addr() as u128, u128::from(b.1));
    a < b + b_len && b < a + a_len
}
