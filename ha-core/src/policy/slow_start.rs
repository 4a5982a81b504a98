//! How much a member serves that has just come back: little at first, evenly more, and in the end what it would.
//!
//! One that was away may be cold, be restored in a hurry, or fall over again under the first load; what it breaks then is
//! little. No operation waits for it, and where no other member can serve it serves all of them.

use std::time::Duration;

/// All of what balancing would give a member.
pub const WHOLE: u8 = 128;

/// The share at the moment of the return.
const FIRST: u8 = WHOLE / 8;

/// The share of a member whose slow start of this length ends then: from an eighth to [`WHOLE`].
pub fn share(now: Duration, ends: Duration, length: Duration) -> u8 {
    let left = ends.saturating_sub(now).min(length);
    if left.is_zero() {
        return WHOLE;
    }
    let to_come = (u128::from(WHOLE - FIRST) * left.as_nanos()).div_ceil(length.as_nanos());
    WHOLE - to_come as u8
}

/// Whether a member with this share stands aside in this turn. The turns in which it does are spread evenly.
pub fn stands_aside(share: u8, turn: u64) -> bool {
    // Multiples of the golden ratio: any few turns in a row lie evenly between 0 and `WHOLE`.
    let place = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 57;
    place >= u64::from(share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    proptest! {
        #[test]
        fn the_share_grows_from_the_first_to_the_whole(length in 1u64..100_000, a in 0u64..200_000, b in 0u64..200_000) {
            let at = |t| share(ms(t), ms(length), ms(length));
            let (a, b) = (a.min(b), a.max(b));
            prop_assert!(at(a) <= at(b));
            prop_assert_eq!(at(0), FIRST);
            prop_assert_eq!(at(length), WHOLE);
            prop_assert!((FIRST..=WHOLE).contains(&at(a)));
        }

        #[test]
        fn it_takes_part_in_as_many_turns_as_its_share_says(share in 0u8..=WHOLE, start: u64) {
            let turns = u64::from(WHOLE);
            let taken = (start..start.saturating_add(turns)).filter(|t| !stands_aside(share, *t)).count();
            let asked = (u64::MAX - start).min(turns) as usize;
            let fair = asked * usize::from(share) / usize::from(WHOLE);
            prop_assert!(taken.abs_diff(fair) <= 3, "{} of {} turns at a share of {}", taken, asked, share);
        }
    }

    #[test]
    fn a_length_of_nothing_is_no_slow_start() {
        assert_eq!(share(ms(5), ms(5), Duration::ZERO), WHOLE);
        assert_eq!(share(ms(0), ms(5), Duration::ZERO), WHOLE);
    }
}
