//! What a multi-part operation was fed, kept so that another member can take it over.

use ha_token::{ObjectHandle, Result, Rv};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// One step of a multi-part operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step<'a> {
    /// `C_XxxUpdate` with this input.
    Update(&'a [u8]),
    /// `C_DigestKey` with this virtual handle.
    Key(ObjectHandle),
}

#[derive(Clone, Copy)]
enum Mark {
    Update(usize),
    Key(ObjectHandle),
}

/// The steps so far, up to a limit, and a digest of the output that they gave.
///
/// Output already handed out is not handed out again: after a replay the regenerated output must have the same length
/// and digest, which [`Replay::same_output`] checks.
#[derive(Default)]
pub(super) struct Replay {
    /// It may be a secret: what is let go of is wiped.
    input: Zeroizing<Vec<u8>>,
    marks: Vec<Mark>,
    overflowed: bool,
    output: Option<Sha256>,
    output_len: usize,
}

impl Replay {
    /// Whether any step was taken.
    pub(super) fn is_empty(&self) -> bool {
        self.marks.is_empty() && !self.overflowed
    }

    /// Whether everything that was fed is still known.
    pub(super) fn is_whole(&self) -> bool {
        !self.overflowed
    }

    /// Records a step that a member took, with the output it gave. Input beyond `limit` bytes in all is not kept.
    pub(super) fn record(&mut self, step: Step<'_>, output: &[u8], limit: usize) {
        if !output.is_empty() {
            self.output.get_or_insert_default().update(output);
            self.output_len += output.len();
        }
        if self.overflowed {
            return;
        }
        match step {
            Step::Key(key) => self.marks.push(Mark::Key(key)),
            Step::Update(input) if self.input.len() + input.len() > limit => {
                self.overflowed = true;
                self.input = Zeroizing::default();
                self.marks = Vec::new();
            }
            Step::Update(input) => {
                let len = self.input.len() + input.len();
                if len > self.input.capacity() {
                    let mut larger = Zeroizing::new(Vec::with_capacity(len.next_power_of_two()));
                    larger.extend_from_slice(&self.input);
                    self.input = larger;
                }
                self.input.extend_from_slice(input);
                self.marks.push(Mark::Update(input.len()));
            }
        }
    }

    /// The steps in order.
    pub(super) fn steps(&self) -> impl Iterator<Item = Step<'_>> {
        let mut rest = self.input.as_slice();
        self.marks.iter().map(move |mark| match *mark {
            Mark::Key(key) => Step::Key(key),
            Mark::Update(len) => {
                let (part, after) = rest.split_at_checked(len).unwrap_or((rest, &[]));
                rest = after;
                Step::Update(part)
            }
        })
    }

    /// The input of all steps, which must be whole.
    pub(super) fn input(&self) -> Zeroizing<Vec<u8>> {
        self.input.clone()
    }

    /// Whether a replay gave what was handed out already.
    ///
    /// # Errors
    /// `CKR_DEVICE_ERROR` if not: the operation cannot go on elsewhere.
    pub(super) fn same_output(&self, again: Sha256, len: usize) -> Result<()> {
        let same = match &self.output {
            None => len == 0,
            Some(before) => len == self.output_len && before.clone().finalize() == again.finalize(),
        };
        if same { Ok(()) } else { Err(Rv::DEVICE_ERROR) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn steps_come_back_as_they_were_fed(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..10)) {
            let mut replay = Replay::default();
            for p in &parts {
                replay.record(Step::Update(p), &[], 400);
            }
            let again: Vec<Vec<u8>> = replay.steps().map(|s| match s { Step::Update(p) => p.to_vec(), Step::Key(_) => unreachable!() }).collect();
            prop_assert_eq!(again, parts);
        }

        #[test]
        fn output_must_be_the_same(a in proptest::collection::vec(any::<u8>(), 0..64), b in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut replay = Replay::default();
            replay.record(Step::Update(b"x"), &a, 10);
            let again = Sha256::new().chain_update(&b);
            prop_assert_eq!(replay.same_output(again, b.len()).is_ok(), a == b);
        }
    }

    #[test]
    fn exactly_the_limit_is_kept_and_one_byte_more_is_not() {
        let mut replay = Replay::default();
        replay.record(Step::Update(b"four"), &[], 4);
        assert!(replay.is_whole());
        replay.record(Step::Update(b"."), &[], 4);
        assert!(!replay.is_whole() && !replay.is_empty());
    }
}
