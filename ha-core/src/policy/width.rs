//! How many lanes of a member are at work at a time.
//!
//! Each change of threads costs some microseconds of a core. Where calls keep the cores busy, as those to a token in software
//! do, more lanes than cores only add to that: a lane that has made a call makes the next one that waits. Where calls wait for
//! something else, as those over a network do, all are wanted at once. Which it is a few calls show, whose threads' time on a
//! core is looked at.

use std::time::Duration;

/// A lane whose call has lasted so long is not counted: it may well wait for something, or hang.
pub(crate) const STALL: Duration = Duration::from_millis(4);

/// Of every so many calls of a lane one is looked at.
pub(crate) const EVERY: u32 = 16;

/// The part of the cores, in thousandths, which a member's lanes keep busy where more of them would be of no use. A token in
/// software that serves one caller at a time keeps one busy; twenty thousand calls a second over a network a fifth of one.
const BUSY: u64 = 250;

/// How much of the cores a member's calls keep busy, as the last ones that were looked at showed: in thousandths of one core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Use(pub(crate) u64);

impl Use {
    /// Before any call was looked at: as a token in software.
    pub(crate) const UNKNOWN: Use = Use(u64::MAX / 16);

    /// One of so many lanes at work has made a call that took so long, and so much of it on a core.
    pub(crate) fn seen(self, working: usize, took: Duration, on_core: Duration) -> Use {
        let took = took.max(on_core).as_nanos().max(1);
        let share = u64::try_from(on_core.as_nanos() * 1000 / took).unwrap_or(1000);
        let seen = share.saturating_mul(u64::try_from(working).unwrap_or(u64::MAX));
        if self == Self::UNKNOWN {
            return Use(seen);
        }
        Use(self.0 / 8 * 7 + self.0 % 8 * 7 / 8 + seen / 8)
    }

    /// Whether calls wait for cores, and for nothing else.
    fn is_of_cores(self, cores: usize) -> bool {
        // One core is soon as busy as that.
        self.0 >= BUSY.saturating_mul(u64::try_from(cores.max(2)).unwrap_or(u64::MAX))
    }
}

/// Whether one lane more is to be at work, where so many are ([`STALL`]) and calls wait.
pub(crate) fn one_more(working: usize, cores: usize, used: Use) -> bool {
    working < cores.max(1) || !used.is_of_cores(cores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MICRO: Duration = Duration::from_micros(1);

    /// The member's use after many calls like this one.
    fn settled(working: usize, took: Duration, on_core: Duration) -> Use {
        (0..100).fold(Use::UNKNOWN, |used, _| used.seen(working, took, on_core))
    }

    proptest! {
        #[test]
        fn somebody_is_always_at_work(cores in 0usize..300, used in any::<u64>()) {
            prop_assert!(one_more(0, cores, Use(used)));
        }

        #[test]
        fn a_use_is_what_was_seen(working in 0usize..70, took in 1u32..1_000_000, share in 0u32..=1000) {
            let took = MICRO * took;
            let used = settled(working, took, took * share / 1000).0;
            let seen = working as u64 * u64::from(share);
            prop_assert!(used <= seen && used + 16 * working as u64 + 8 >= seen, "{used} of {seen}");
        }
    }

    #[test]
    fn a_token_in_software_has_a_lane_for_each_core() {
        for (working, on_core) in [(2, 40), (2, 15), (64, 2)] {
            let used = settled(working, MICRO * 40, MICRO * on_core);
            assert!(one_more(1, 2, used));
            assert!(!one_more(2, 2, used), "{working} at work, {on_core} of 40 µs on a core");
        }
        assert!(!one_more(2, 2, Use::UNKNOWN));
    }

    #[test]
    fn a_token_behind_a_network_has_as_many_as_there_are_calls() {
        for (working, took) in [(2, 500), (16, 1000), (64, 5000)] {
            let used = settled(working, MICRO * took, MICRO * 20);
            for cores in [1, 2, 16] {
                assert!(
                    one_more(63, cores, used),
                    "{working} at work, 20 of {took} µs on one of {cores} cores"
                );
            }
        }
    }
}
