//! The caller's pointers: what a call names and asks for, and what is done to what it was answered.
//!
//! Everything here trusts a caller as far as the standard lets a module do: a pointer that is not NULL points at what the
//! function's description says. Nothing is touched but where a fault is.

use std::cell::OnceCell;
use std::slice;

use cryptoki_sys as ck;
use ha_token::{Function, Ulong};

use crate::rule::Length;
use crate::shape::{self, Role};

/// The pointers of one call, for as long as it lasts.
pub(crate) struct Pointers<'a> {
    function: Function,
    words: &'a [usize],
    /// How much room the caller has said there is.
    room: usize,
    /// The same of each attribute that is read out, where that will be needed.
    rooms: OnceCell<Vec<usize>>,
}

/// An array of the caller's; `None` where it cannot be one, which is for the module to refuse.
///
/// # Safety
/// If it can be an array it is one, and nobody else uses it meanwhile.
unsafe fn array<'p, T>(start: *mut T, count: usize) -> Option<&'p mut [T]> {
    let bytes = count.checked_mul(size_of::<T>())?;
    let is_one = isize::try_from(bytes).is_ok() && start.is_aligned() && !start.is_null();
    // SAFETY: this function's own condition, and not larger than any array.
    is_one.then(|| unsafe { slice::from_raw_parts_mut(start, count) })
}

impl<'a> Pointers<'a> {
    /// Of a call that is about to be made.
    pub(crate) fn new(function: Function, words: &'a [usize]) -> Self {
        let mut pointers = Pointers { function, words, room: 0, rooms: OnceCell::new() };
        pointers.room = match (pointers.at::<ck::CK_ULONG>(Role::OutputLen), pointers.word(Role::Max)) {
            // SAFETY: a length that the caller has set.
            (Some(len), _) => unsafe { len.read() as usize },
            (None, Some(max)) => max,
            (None, None) => pointers.word(Role::Count).unwrap_or(0),
        };
        pointers
    }

    fn word(&self, role: Role) -> Option<usize> {
        shape::place(self.function, role).and_then(|i| self.words.get(i)).copied()
    }

    /// Where a pointer leads that is there and not NULL.
    fn at<T>(&self, role: Role) -> Option<*mut T> {
        let pointer = std::ptr::with_exposed_provenance_mut::<T>(self.word(role)?);
        (!pointer.is_null()).then_some(pointer)
    }

    /// Whether the call asks only how long its output will be.
    pub(crate) fn is_query(&self) -> bool {
        match self.word(Role::Output).or_else(|| self.word(Role::List)) {
            Some(output) => output == 0,
            None => self.asks_lengths_only(),
        }
    }

    /// Whether no attribute has a place for its value. No more of them is looked at than there is until one has: the module
    /// may refuse the call for another reason, and look at none.
    fn asks_lengths_only(&self) -> bool {
        let Some(attributes) = self.at::<ck::CK_ATTRIBUTE>(Role::Attributes) else { return false };
        let has_no_place = |i| {
            // SAFETY: one of as many as the caller says, and all before it were looked at.
            unsafe { attributes.wrapping_add(i).read() }.pValue.is_null()
        };
        self.room > 0 && (0..self.room).all(has_no_place)
    }

    /// Remembers how much room there is for each attribute: the call writes over it.
    pub(crate) fn keep_rooms(&self) {
        let rooms = self.change_attributes(|all| all.iter().map(|one| one.ulValueLen as usize).collect());
        _ = self.rooms.set(rooms.unwrap_or_default());
    }

    fn room_of(&self, attribute: usize) -> usize {
        self.rooms.get().and_then(|rooms| rooms.get(attribute)).copied().unwrap_or(0)
    }

    /// The mechanism that is named.
    pub(crate) fn mechanism(&self) -> Option<Ulong> {
        if let Some(kind) = self.word(Role::MechanismType) {
            return Some(kind as Ulong);
        }
        let mechanism = self.at::<ck::CK_MECHANISM>(Role::Mechanism)?;
        // SAFETY: a mechanism.
        Some(unsafe { (*mechanism).mechanism })
    }

    /// Whether the caller has said that no threads may be made.
    pub(crate) fn forbids_threads(&self) -> bool {
        // SAFETY: the arguments of `C_Initialize`.
        let flags = self.at::<ck::CK_C_INITIALIZE_ARGS>(Role::InitArgs).map(|args| unsafe { (*args).flags });
        flags.is_some_and(|flags| flags & ck::CKF_LIBRARY_CANT_CREATE_OS_THREADS != 0)
    }

    /// The session that was opened.
    pub(crate) fn opened(&self) -> Option<Ulong> {
        // SAFETY: written by the call.
        self.at::<ck::CK_SESSION_HANDLE>(Role::NewSession).map(|session| unsafe { session.read() })
    }

    /// Tells the caller its own number of a session that was opened.
    pub(crate) fn show_sessions(&self, mut shown: impl FnMut(Ulong) -> Ulong) {
        if let Some(session) = self.at::<ck::CK_SESSION_HANDLE>(Role::NewSession) {
            // SAFETY: written by the call.
            let real = unsafe { session.read() };
            // SAFETY: the caller's place for it.
            unsafe { session.write(shown(real)) };
        }
    }

    /// Tells the caller its own numbers of objects that were made or found.
    pub(crate) fn show_objects(&self, mut shown: impl FnMut(Ulong) -> Ulong) {
        if self.is_query() {
            return;
        }
        let places = shape::roles(self.function).iter().zip(self.words);
        for (_, word) in places.filter(|(role, word)| **role == Role::NewObject && **word != 0) {
            let object = std::ptr::with_exposed_provenance_mut::<ck::CK_OBJECT_HANDLE>(*word);
            // SAFETY: written by the call.
            let real = unsafe { object.read() };
            // SAFETY: the caller's place for it.
            unsafe { object.write(shown(real)) };
        }
        let found = self.at::<ck::CK_OBJECT_HANDLE>(Role::Found);
        let count = self.at::<ck::CK_ULONG>(Role::FoundCount);
        if let (Some(found), Some(count)) = (found, count) {
            // SAFETY: written by the call.
            let count = unsafe { count.read() } as usize;
            // SAFETY: so many were written, where there is room for `room`.
            let found = unsafe { array(found, count.min(self.room)) };
            found.into_iter().flatten().for_each(|object| *object = shown(*object));
        }
    }

    /// Tells the caller the slot that it knows a session's by.
    pub(crate) fn show_slot(&self, shown: impl FnOnce(Ulong) -> Ulong) {
        if let Some(info) = self.at::<ck::CK_SESSION_INFO>(Role::SessionInfo) {
            // SAFETY: written by the call.
            let info = unsafe { &mut *info };
            info.slotID = shown(info.slotID);
        }
    }

    /// Whether something was told of a token.
    pub(crate) fn tell_of_a_token(&self) -> bool {
        self.at::<ck::CK_TOKEN_INFO>(Role::TokenInfo).is_some()
    }

    /// Changes what was told of a token.
    pub(crate) fn change_token_info(&self, change: impl FnOnce(&mut ck::CK_TOKEN_INFO)) {
        if let Some(info) = self.at(Role::TokenInfo) {
            // SAFETY: written by the call.
            change(unsafe { &mut *info });
        }
    }

    /// There is no token in the slots of which something was told.
    pub(crate) fn take_tokens(&self) {
        if let Some(info) = self.at::<ck::CK_SLOT_INFO>(Role::SlotInfo) {
            // SAFETY: written by the call.
            unsafe { (*info).flags &= !ck::CKF_TOKEN_PRESENT };
        }
        if self.word(Role::Present).is_some_and(|present| present != 0)
            && let Some(count) = self.at::<ck::CK_ULONG>(Role::OutputLen)
        {
            // SAFETY: the caller's place for the count.
            unsafe { count.write(0) };
        }
    }

    /// Changes the bytes that were written.
    fn change_output(&self, change: impl FnOnce(&mut [u8])) {
        let written = match self.at::<u8>(Role::Fill) {
            Some(fill) => Some((fill, self.room)),
            None => self.at::<u8>(Role::Output).zip(self.at::<ck::CK_ULONG>(Role::OutputLen)).map(
                // SAFETY: written by the call.
                |(output, len)| (output, unsafe { len.read() } as usize),
            ),
        };
        let Some((output, len)) = written else { return };
        // SAFETY: so many were written, where there is room for `room`.
        if let Some(bytes) = unsafe { array(output, len.min(self.room)) } {
            change(bytes);
        }
    }

    /// Looks at the attributes that are read out, or changes them; `None` for any other call.
    fn change_attributes<T>(&self, change: impl FnOnce(&mut [ck::CK_ATTRIBUTE]) -> T) -> Option<T> {
        let attributes = self.at::<ck::CK_ATTRIBUTE>(Role::Attributes)?;
        // SAFETY: as many as the caller says.
        unsafe { array(attributes, self.room) }.map(change)
    }

    /// Makes another signature of it, of the same form. In the middle begins the second half of those that have two,
    /// whichever end their numbers begin at; and of a number as large as a modulus it is too small a change to leave the
    /// range.
    pub(crate) fn wrong_signature(&self) {
        self.change_output(|signature| {
            let middle = signature.len() / 2;
            if let Some(byte) = signature.get_mut(middle) {
                *byte ^= 1;
            }
        });
    }

    /// Changes one bit, at random.
    pub(crate) fn corrupt(&self, random: u64) {
        self.change_output(|output| flip(output, random));
        _ = self.change_attributes(|attributes| {
            // What a module says that it wrote where there is no room for it was not written, or not there.
            let is_written = |(i, one): &(usize, &ck::CK_ATTRIBUTE)| {
                let len = one.ulValueLen as usize;
                !one.pValue.is_null() && len != 0 && len <= self.room_of(*i) && !has_pointers(one.type_)
            };
            let written: Vec<_> = attributes.iter().enumerate().filter(is_written).collect();
            let count = written.len().max(1) as u64;
            if let Some((_, attribute)) = written.get((random % count) as usize) {
                let (value, len) = (attribute.pValue.cast::<u8>(), attribute.ulValueLen as usize);
                // SAFETY: so many bytes were written there, and there was room for them.
                if let Some(value) = unsafe { array(value, len) } {
                    flip(value, random / count);
                }
            }
        });
    }

    /// Tells a length that cannot be.
    pub(crate) fn wrong_length(&self, length: Length) {
        let wrong = |room: usize| match length {
            Length::More => (room as ck::CK_ULONG).wrapping_add(1),
            Length::Huge => ck::CK_ULONG::MAX / 2,
            Length::Unavailable => ck::CK_UNAVAILABLE_INFORMATION,
            Length::Zero => 0,
        };
        for role in [Role::OutputLen, Role::FoundCount] {
            if let Some(len) = self.at::<ck::CK_ULONG>(role) {
                // SAFETY: the caller's place for it.
                let told = unsafe { len.read() } as usize;
                let room = if self.is_query() { told } else { self.room };
                // SAFETY: as above.
                unsafe { len.write(wrong(room)) };
            }
        }
        _ = self.change_attributes(|attributes| {
            for (i, attribute) in attributes.iter_mut().enumerate() {
                let asked = attribute.pValue.is_null();
                attribute.ulValueLen =
                    wrong(if asked { attribute.ulValueLen as usize } else { self.room_of(i) });
            }
        });
    }
}

/// Whether an attribute's value is an array of attributes, whose pointers are the caller's own.
fn has_pointers(kind: ck::CK_ATTRIBUTE_TYPE) -> bool {
    kind & ck::CKF_ARRAY_ATTRIBUTE != 0 && kind != ck::CKA_ALLOWED_MECHANISMS
}

fn flip(bytes: &mut [u8], random: u64) {
    if bytes.is_empty() {
        return;
    }
    let bit = random % (bytes.len() as u64 * 8);
    if let Some(byte) = bytes.get_mut((bit / 8) as usize) {
        *byte ^= 1 << (bit % 8);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A call of `C_Sign` that was answered with `bytes`, of a caller with that much room.
    fn signed(bytes: &mut [u8], len: &mut ck::CK_ULONG, f: impl FnOnce(&Pointers<'_>)) {
        let words =
            [1, 0, 0, bytes.as_mut_ptr().expose_provenance(), std::ptr::from_mut(len).expose_provenance()];
        f(&Pointers::new(Function::Sign, &words));
    }

    #[test]
    fn an_impossible_length_is_told_and_no_byte_is_touched() {
        for (length, told) in [
            (Length::More, 9),
            (Length::Huge, ck::CK_ULONG::MAX / 2),
            (Length::Unavailable, ck::CK_UNAVAILABLE_INFORMATION),
            (Length::Zero, 0),
        ] {
            let (mut bytes, mut len) = ([7; 8], 8);
            signed(&mut bytes, &mut len, |pointers| pointers.wrong_length(length));
            assert_eq!((bytes, len), ([7; 8], told));
        }
    }

    #[test]
    fn the_attributes_of_a_search_for_lengths_are_a_query() {
        let mut value = [0u8; 4];
        let mut attribute =
            ck::CK_ATTRIBUTE { type_: ck::CKA_LABEL, pValue: std::ptr::null_mut(), ulValueLen: 0 };
        let query = |attribute: &mut ck::CK_ATTRIBUTE| {
            let words = [1, 2, std::ptr::from_mut(attribute).expose_provenance(), 1];
            Pointers::new(Function::GetAttributeValue, &words).is_query()
        };
        assert!(query(&mut attribute));
        attribute.pValue = value.as_mut_ptr().cast();
        assert!(!query(&mut attribute));
    }

    /// A call of `C_GetAttributeValue` with these attributes, which the module answers as `answer` says.
    fn told(attributes: &mut [ck::CK_ATTRIBUTE], answer: &[ck::CK_ULONG], f: impl FnOnce(&Pointers<'_>)) {
        let (start, count) = (attributes.as_mut_ptr(), attributes.len());
        let words = [1, 2, start.expose_provenance(), count];
        let pointers = Pointers::new(Function::GetAttributeValue, &words);
        pointers.keep_rooms();
        pointers.change_attributes(|all| {
            all.iter_mut().zip(answer).for_each(|(one, len)| one.ulValueLen = *len);
        });
        f(&pointers);
    }

    fn attribute(kind: ck::CK_ATTRIBUTE_TYPE, value: &mut [u8]) -> ck::CK_ATTRIBUTE {
        ck::CK_ATTRIBUTE {
            type_: kind,
            pValue: value.as_mut_ptr().cast(),
            ulValueLen: value.len() as ck::CK_ULONG,
        }
    }

    #[test]
    fn nothing_is_touched_past_the_room_whatever_the_module_says_that_it_wrote() {
        for random in 0..200 {
            let mut bytes = [7; 32];
            let (value, behind) = bytes.split_at_mut(8);
            // It says 16 bytes, where there is room for 8.
            told(&mut [attribute(ck::CKA_LABEL, value)], &[16], |pointers| pointers.corrupt(random));
            assert_eq!((&*value, &*behind), (&[7; 8][..], &[7; 24][..]));
        }
    }

    #[test]
    fn pointers_inside_a_value_are_left_alone() {
        for random in 0..200 {
            let (mut template, mut label) = ([7; 24], [7; 4]);
            let kinds = [ck::CKA_WRAP_TEMPLATE, ck::CKA_LABEL];
            let mut both = [attribute(kinds[0], &mut template), attribute(kinds[1], &mut label)];
            told(&mut both, &[24, 4], |pointers| pointers.corrupt(random));
            assert!(template == [7; 24] && label != [7; 4]);
        }
    }

    #[test]
    fn one_more_of_an_attribute_is_one_more_than_there_was_room_for() {
        let mut value = [7; 32];
        let mut one = [attribute(ck::CKA_LABEL, &mut value)];
        told(&mut one, &[4], |pointers| pointers.wrong_length(Length::More));
        assert_eq!(one[0].ulValueLen, 33);
        one[0].pValue = std::ptr::null_mut();
        told(&mut one, &[4], |pointers| pointers.wrong_length(Length::More));
        assert_eq!(one[0].ulValueLen, 5, "of one that was asked for its length");
    }

    #[test]
    fn a_count_that_cannot_be_is_left_to_the_module() {
        let mut value = [0u8; 4];
        let mut one = attribute(ck::CKA_LABEL, &mut value);
        for count in [usize::MAX, isize::MAX as usize, 1 << 40] {
            let words = [1, 2, std::ptr::from_mut(&mut one).expose_provenance(), count];
            assert!(!Pointers::new(Function::GetAttributeValue, &words).is_query());
        }
        for count in [usize::MAX, isize::MAX as usize] {
            let words = [1, 2, std::ptr::from_mut(&mut one).expose_provenance(), count];
            let pointers = Pointers::new(Function::GetAttributeValue, &words);
            pointers.keep_rooms();
            pointers.corrupt(3);
            pointers.wrong_length(Length::More);
            let fill = [1, value.as_mut_ptr().expose_provenance(), usize::MAX];
            Pointers::new(Function::GenerateRandom, &fill).corrupt(3);
        }
        assert_eq!((value, one.ulValueLen), ([0; 4], 4));
    }

    proptest! {
        /// One bit of what was written differs after either fault; what is behind it stays.
        #[test]
        fn one_bit_is_changed_within_what_was_written(
            mut bytes in proptest::collection::vec(any::<u8>(), 1..80), random in any::<u64>(), signature in any::<bool>(),
        ) {
            let before = bytes.clone();
            let written = bytes.len().div_ceil(2);
            let mut len = written as ck::CK_ULONG;
            signed(&mut bytes, &mut len, |pointers| {
                if signature { pointers.wrong_signature() } else { pointers.corrupt(random) }
            });
            let changed: u32 = bytes.iter().zip(&before).map(|(a, b)| (a ^ b).count_ones()).sum();
            prop_assert_eq!(changed, 1);
            prop_assert_eq!(&bytes[written..], &before[written..]);
        }
    }
}
