//! What a lane's call reads and writes: copies that are the lane's own, wiped when they go.

use ha_member::Secret;
use ha_token::{Output, Result, Rv};
use zeroize::Zeroizing;

/// Room for output at first, besides as much as the input: nearly nothing gives more, and what does is asked again. Of more
/// than a kilobyte the allocator makes much more ado.
const LIKELY: usize = 512;

/// The same, of a call without input: a wrapped key, a ciphertext, all that was held back so far.
const LIKELY_OF_NOTHING: usize = 4096;

/// A copy of what a call reads.
pub(super) fn copy(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(bytes.to_vec())
}

/// A copy of a PIN, in memory that is not swapped out: the call that has it may hang for long.
pub(super) fn copy_pin(pin: Option<&[u8]>) -> Option<Secret> {
    pin.map(Secret::new)
}

/// A place for a call's output, as large as its caller's.
pub(super) struct Space {
    /// `None`: a size query.
    capacity: Option<usize>,
    likely: usize,
}

/// What a call has put out.
pub(super) struct Filled {
    answer: Result<()>,
    len: usize,
    bytes: Zeroizing<Vec<u8>>,
}

impl Space {
    /// As large as the caller's, for a call with so much input.
    pub(super) fn like(output: &Output<'_>, input: usize) -> Self {
        let likely = if input == 0 { LIKELY_OF_NOTHING } else { LIKELY.saturating_add(input) };
        Space { capacity: output.capacity(), likely }
    }

    /// Makes a call with it. One that needs more than was likely is made once more: it has done nothing yet (section 5.2).
    pub(super) fn fill(&self, mut call: impl FnMut(&mut Output<'_>) -> Result<()>) -> Filled {
        let mut with_room = |room: Option<usize>| {
            let mut bytes = Zeroizing::new(vec![0; room.unwrap_or(0)]);
            let (answer, len) = {
                let mut out = match room {
                    Some(_) => Output::buffer(&mut bytes),
                    None => Output::query(),
                };
                (call(&mut out), out.len())
            };
            Filled { answer, len, bytes }
        };
        let filled = with_room(self.capacity.map(|c| c.min(self.likely)));
        match (filled.answer, self.capacity) {
            (Err(Rv::BUFFER_TOO_SMALL), Some(capacity))
                if self.likely < filled.len && filled.len <= capacity =>
            {
                with_room(Some(filled.len))
            }
            _ => filled,
        }
    }
}

impl Filled {
    /// Hands the output on to the caller's place.
    ///
    /// # Errors
    /// The call's answer.
    pub(super) fn give(self, output: &mut Output<'_>) -> Result<()> {
        if self.answer.is_ok()
            && let Some(space) = output.space()
        {
            let written = self.bytes.get(..self.len).unwrap_or(&[]);
            match space.get_mut(..written.len()) {
                Some(place) => place.copy_from_slice(written),
                None => return output.settle(Err(Rv::GENERAL_ERROR), 0),
            }
        }
        output.settle(self.answer, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(capacity: Option<usize>, gives: usize) -> (Result<()>, usize, Vec<u8>) {
        let bytes = vec![7; gives];
        let mut room = vec![0; capacity.unwrap_or(0)];
        let mut output = if capacity.is_some() { Output::buffer(&mut room) } else { Output::query() };
        let filled = Space::like(&output, 1).fill(|out| out.write(&bytes));
        let answer = filled.give(&mut output);
        (answer, output.len(), output.written().to_vec())
    }

    #[test]
    fn the_callers_place_gets_what_it_would_have_got() {
        for gives in [0, 1, LIKELY, LIKELY + 1, LIKELY + 2, 3 * LIKELY] {
            assert_eq!(through(None, gives), (Ok(()), gives, vec![]), "a query of {gives}");
            assert_eq!(through(Some(gives), gives), (Ok(()), gives, vec![7; gives]), "exactly {gives}");
            assert_eq!(through(Some(gives + 9), gives), (Ok(()), gives, vec![7; gives]), "more than {gives}");
            if gives > 0 {
                let (answer, len, _) = through(Some(gives - 1), gives);
                assert_eq!((answer, len), (Err(Rv::BUFFER_TOO_SMALL), gives), "one less than {gives}");
            }
        }
    }
}
