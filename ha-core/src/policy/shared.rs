//! What the processes of a host learn of a member that is down, shared: when one of them tries it next.
//!
//! ```text
//! one process tries ──────────── its next try ─┐ half an interval for the others, by lot ┐ then it is its own turn
//!        found dead                            └──────────── one of them tries ──────────┘
//! ```
//!
//! Each process has a schedule of its own ([`Health`](super::health::Health)). While another one has tried the member later
//! than this one, and says when it will do so again, this one waits for that; the turn goes round by lot, so that a process
//! that cannot reach a member which others can is not the one that tries for all. That another one has it up is a reason to
//! try at once. What is said never keeps a process from its first try after it has lost the member, nor longer than the
//! longest interval for each that takes turns; and nobody is believed who had lost it long before this process did.
//!
//! A PIN that the member refused is sent once more where its operator wants it back, and its token counts wrong ones: so of
//! all that had theirs refused one sends it first, and where that is in vain the others keep theirs ([`send_again`]).

use std::time::Duration;

use super::health::{Settings, State};

/// How another process of the host sees a member. Times are the host's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sight {
    /// Its health there.
    pub state: State,
    /// Since when.
    pub since: Duration,
    /// When it was last tried there, in vain or not.
    pub tried: Option<Duration>,
    /// When it will be.
    pub next: Option<Duration>,
    /// Since when it is being tried, if it is.
    pub trying: Option<Duration>,
    /// Tries in a row that were in vain.
    pub failures: u32,
}

/// What this process knows of the member itself. Times are the host's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Own {
    /// When its own schedule tries next.
    pub due: Duration,
    /// When it last tried.
    pub tried: Option<Duration>,
    /// When it last had the member up, if it had.
    pub up_until: Option<Duration>,
    /// Whether the member comes and goes, and is held down for that.
    pub flaps: bool,
    /// What sets this process apart in a draw.
    pub lot: u64,
}

/// What is to be done about a member that is down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// When it is tried. Not later than the own schedule and half an interval, or the longest interval for each process
    /// that takes turns, after the last own try.
    pub at: Duration,
    /// Tries in a row that were in vain, on the host.
    pub failures: u32,
}

/// When a member that is down is tried by this process, as others see it.
pub fn plan(own: &Own, others: &[Sight], now: Duration, settings: &Settings) -> Plan {
    let alone = Plan { at: own.due, failures: 0 };
    // Nobody's word stands for the first try after it was lost.
    let Some(tried) = own.tried.filter(|t| own.up_until.is_none_or(|up| *t >= up)) else { return alone };
    let is_back = |s: &Sight| s.state == State::Up && (tried..=now).contains(&s.since) && s.since > tried;
    if !own.flaps && others.iter().any(is_back) {
        return Plan { at: own.due.min(now), ..alone };
    }
    let down: Vec<&Sight> = others.iter().filter(|s| is_believed(s, own, settings)).collect();
    if down.is_empty() {
        return alone;
    }
    let failures = down.iter().map(|s| s.failures).max().unwrap_or(0);
    let wait = down.iter().filter_map(|s| {
        let being = s.trying.filter(|t| (tried..=now).contains(t)).map(|t| t + settings.max_interval);
        let done = s.tried.filter(|t| *t > tried && *t <= now).zip(s.next).map(|(t, next)| {
            let next = next.min(t + settings.max_interval);
            next + part_of(settings.interval / 2, own.lot ^ t.as_micros() as u64)
        });
        being.max(done)
    });
    let at = match wait.max() {
        Some(until) => {
            let turns = u32::try_from(down.len()).unwrap_or(u32::MAX).saturating_add(1);
            let limit = tried + settings.max_interval.saturating_mul(turns);
            own.due.max(until.min(limit))
        }
        // This process tried last: it is another one's turn, if there is one that takes it.
        None => own.due + settings.interval / 2,
    };
    Plan { at, failures }
}

/// What another process of the host has done about an operator's wish that a member be taken back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asker {
    /// Whether it has taken the wish in.
    pub heeded: bool,
    /// Whether it has put the member aside, had its PIN refused, and does not send it: until it is its turn, or again since.
    pub refused: bool,
    /// Since when it tries the member, if it does. In the host's time.
    pub trying: Option<Duration>,
    /// Whether its turn is before this process's.
    pub is_first: bool,
}

/// Whether a PIN that a member refused is sent to it once more, as its operator wishes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Again {
    /// It is this process's turn.
    Send,
    /// It is another one's.
    Wait,
    /// Another one has sent its own in vain.
    Keep,
}

/// Whether this process, which had its PIN refused, sends it again. `since` is when it saw the wish; a process that does not
/// get on is waited for no longer than `patience`.
pub fn send_again(others: &[Asker], since: Duration, now: Duration, patience: Duration) -> Again {
    let in_vain = |o: &Asker| o.heeded && o.refused;
    // One that was refused looks at the member again and again, and sends nothing.
    let is_at_it = |o: &Asker| match o.trying {
        Some(trying) if !o.refused => now < trying + patience,
        _ => o.refused && o.is_first && now < since + patience,
    };
    if others.iter().any(in_vain) {
        Again::Keep
    } else if others.iter().any(is_at_it) {
        Again::Wait
    } else {
        Again::Send
    }
}

/// Whether a process that has the member down may know what this one knows: not one that had lost it long before, and may
/// be alone with that.
fn is_believed(sight: &Sight, own: &Own, settings: &Settings) -> bool {
    sight.state == State::Down && own.up_until.is_none_or(|up| sight.since + settings.max_interval >= up)
}

/// A part of a time that is always the same for one lot.
fn part_of(time: Duration, lot: u64) -> Duration {
    // SplitMix64's last steps.
    let mut x = lot.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    time.mul_f64((x % 1000) as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::super::health::{Event, Health};
    use super::*;
    use crate::policy::failure::Class;
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);
    const SETTINGS: Settings =
        Settings { interval: S, max_interval: Duration::from_secs(60), takes_back: true };

    fn down(since: u64, tried: u64, next: u64) -> Sight {
        let (tried, next) = (Some(S * tried as u32), Some(S * next as u32));
        Sight { state: State::Down, since: S * since as u32, tried, next, trying: None, failures: 2 }
    }

    fn own(due: u64, tried: u64) -> Own {
        Own { due: S * due as u32, tried: Some(S * tried as u32), up_until: None, flaps: false, lot: 1 }
    }

    fn sights() -> impl Strategy<Value = Vec<Sight>> {
        let moment = || (0u64..400).prop_map(Duration::from_secs);
        let maybe = || proptest::option::of((0u64..400).prop_map(Duration::from_secs));
        let state = proptest::sample::select(State::ALL.to_vec());
        let sight = (state, moment(), maybe(), maybe(), maybe(), 0u32..20).prop_map(
            |(state, since, tried, next, trying, failures)| Sight {
                state,
                since,
                tried,
                next,
                trying,
                failures,
            },
        );
        proptest::collection::vec(sight, 0..8)
    }

    proptest! {
        #[test]
        fn never_later_than_the_own_schedule_or_a_longest_interval_for_each(
            others in sights(), due in 0u64..400, tried in 0u64..400, now in 0u64..400, lot: u64,
            up_until in proptest::option::of(0u64..400),
        ) {
            let up_until = up_until.map(Duration::from_secs);
            let own = Own { lot, up_until, ..own(due, tried) };
            let at = plan(&own, &others, Duration::from_secs(now), &SETTINGS).at;
            let turns = others.len() as u32 + 1;
            prop_assert!(at <= (own.due + SETTINGS.interval / 2).max(S * tried as u32 + SETTINGS.max_interval * turns));
            // And never before its own turn, unless somebody has it up.
            let is_up = others.iter().any(|s| s.state == State::Up);
            prop_assert!(at >= own.due || is_up);
        }

        #[test]
        fn the_first_try_after_it_was_lost_is_when_the_own_schedule_says(others in sights(), now in 0u64..400, lost in 11u64..400) {
            for tried in [None, Some(S * 10)] {
                let own = Own { tried, up_until: Some(Duration::from_secs(lost)), ..own(lost, 0) };
                prop_assert_eq!(plan(&own, &others, Duration::from_secs(now), &SETTINGS).at, own.due);
            }
        }

        /// Processes with a board that each sees at once: how often all of them try one member that stays dead.
        #[test]
        fn a_dead_member_is_tried_about_once_an_interval_by_all_of_them(
            count in 1usize..10, longest in 1u32..20, seed: u64,
        ) {
            let settings = Settings { max_interval: S * longest, ..SETTINGS };
            let end = S * 600;
            let mut random = seed;
            let mut draw = || { random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); random >> 20 };
            // Each finds it dead at about the same moment, and has tried once.
            let mut machines: Vec<(Health, Own, Sight)> = (0..count).map(|_| {
                let mut health = Health::new(settings);
                health.on(Event::Connected, Duration::ZERO, draw());
                health.on(Event::CaughtUp, Duration::ZERO, draw());
                let lost = S * 100 + Duration::from_millis(draw() % 500);
                health.on(Event::CallFailed(Class::Member), lost, draw());
                health.on(Event::ProbeFailed, lost, draw());
                health.on(Event::ProbeFailed, lost, draw());
                let own = Own { due: health.next_probe().unwrap(), tried: Some(lost), up_until: Some(lost), flaps: false, lot: draw() };
                let sight = Sight { state: State::Down, since: lost, tried: Some(lost), next: health.next_probe(), trying: None, failures: health.failures() };
                (health, own, sight)
            }).collect();
            let mut tries = vec![Vec::new(); count];
            let mut now = S * 101;
            while now < end {
                let plans: Vec<Plan> = (0..count).map(|i| {
                    let others: Vec<Sight> = machines.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, m)| m.2.clone()).collect();
                    plan(&machines[i].1, &others, now, &settings)
                }).collect();
                let Some(next) = (0..count).min_by_key(|i| plans[*i].at) else { break };
                now = now.max(plans[next].at);
                let random = draw();
                let (health, own, sight) = &mut machines[next];
                health.heed_failures(plans[next].failures);
                health.on(Event::ProbeFailed, now, random);
                (own.due, own.tried) = (health.next_probe().unwrap(), Some(now));
                (sight.tried, sight.next, sight.failures) = (Some(now), health.next_probe(), health.failures());
                tries[next].push(now);
            }
            let all: usize = tries.iter().map(Vec::len).sum();
            // What one alone does at most: it grows to the longest interval, a fifth shorter by chance. Each of the others adds
            // what it is owed after all of their turns.
            let span = (end - S * 100).as_secs_f64();
            let one = 6.0 + span / (f64::from(longest) * 0.8);
            let owed = span / f64::from(longest) + count as f64;
            prop_assert!(all as f64 <= one + owed, "{all} tries of {count}, longest {longest}: {one} + {owed}");
            // Nobody is left out.
            let each = S * longest * (count as u32 + 1) + S * 2;
            for mine in &tries {
                for gap in mine.windows(2) {
                    prop_assert!(gap[1] - gap[0] <= each);
                }
            }
        }
    }

    #[test]
    fn who_found_it_dead_later_is_waited_for_and_then_half_an_interval_by_lot() {
        let at = plan(&own(20, 10), &[down(10, 19, 25)], S * 20, &SETTINGS).at;
        assert!((S * 25..S * 25 + S / 2).contains(&at), "{at:?}");
        // It says nothing that this process does not know.
        assert_eq!(plan(&own(20, 19), &[down(10, 18, 19)], S * 20, &SETTINGS).at, S * 20 + S / 2);
        assert_eq!(plan(&own(20, 19), &[], S * 20, &SETTINGS).at, S * 20);
        // It promises more than there is.
        let at = plan(&own(20, 10), &[down(10, 19, 4000)], S * 20, &SETTINGS).at;
        assert!(at <= S * 80, "{at:?}");
    }

    #[test]
    fn who_tries_now_is_waited_for() {
        let trying = Sight { trying: Some(S * 19), ..down(10, 5, 18) };
        assert_eq!(plan(&own(20, 10), std::slice::from_ref(&trying), S * 20, &SETTINGS).at, S * 79);
        // Not for ever: it may be stopped, or hang.
        assert_eq!(plan(&own(20, 10), &[trying], S * 90, &SETTINGS).at, S * 79);
    }

    #[test]
    fn one_that_is_up_elsewhere_is_tried_at_once_and_once_only() {
        let up = |since| Sight { state: State::Up, ..down(since, since, 0) };
        assert_eq!(plan(&own(60, 10), &[up(20)], S * 21, &SETTINGS).at, S * 21);
        assert_eq!(plan(&own(60, 20), &[up(20)], S * 21, &SETTINGS).at, S * 60, "it was tried since");
        assert_eq!(plan(&Own { flaps: true, ..own(60, 10) }, &[up(20)], S * 21, &SETTINGS).at, S * 60);
        assert_eq!(plan(&own(60, 10), &[up(500)], S * 21, &SETTINGS).at, S * 60, "a clock that is not ours");
    }

    /// It may do so without a pause, where the machine is slow.
    #[test]
    fn who_looks_at_the_member_again_and_keeps_its_pin_is_not_waited_for() {
        let looks = Asker { heeded: false, refused: true, trying: Some(S * 9), is_first: false };
        assert_eq!(send_again(&[looks], S * 8, S * 9, S * 5), Again::Send);
        let refused_again = Asker { heeded: true, ..looks };
        assert_eq!(send_again(&[refused_again], S * 8, S * 9, S * 5), Again::Keep);
        let first = Asker { is_first: true, ..looks };
        assert_eq!(send_again(&[first], S * 8, S * 12, S * 5), Again::Wait);
        assert_eq!(send_again(&[first], S * 8, S * 13, S * 5), Again::Send);
    }

    /// Processes that each have their PIN refused, look in any order and at any time, and are stopped for ever or not.
    #[test]
    fn a_refused_pin_is_sent_by_one_process_and_by_the_next_when_it_was_accepted() {
        proptest!(|(count in 1usize..7, accepts: bool, stopped in 0usize..8, looks in proptest::collection::vec((0usize..7, 1u64..9), 1..200))| {
            let patience = S * 5;
            let mut all = vec![Asker { heeded: false, refused: true, trying: None, is_first: false }; count];
            let (mut sent, mut now) = (0, Duration::ZERO);
            let mut stopped_at_it = false;
            for (who, ms) in looks {
                now += Duration::from_millis(ms);
                let who = who % count;
                if who == stopped {
                    // It gets as far as beginning.
                    if all[who].heeded { stopped_at_it = true; continue }
                } else if all[who].trying.is_some() {
                    all[who] = Asker { refused: !accepts, trying: None, ..all[who] };
                    continue;
                } else if all[who].heeded {
                    continue;
                }
                let others: Vec<_> = (0..count).filter(|i| *i != who).map(|i| Asker { is_first: i < who, ..all[i] }).collect();
                match send_again(&others, Duration::ZERO, now, patience) {
                    Again::Send => { sent += 1; all[who] = Asker { heeded: true, refused: false, trying: Some(now), ..all[who] } }
                    Again::Keep => all[who].heeded = true,
                    Again::Wait => {}
                }
                prop_assert!(all.iter().filter(|a| a.trying.is_some()).count() <= 1 || stopped_at_it);
            }
            prop_assert!(accepts || sent <= 1 || stopped_at_it);
        });
        let stuck = Asker { heeded: false, refused: true, trying: None, is_first: true };
        for other in [stuck, Asker { heeded: true, refused: false, trying: Some(S), is_first: false }] {
            assert_eq!(send_again(&[other], S, S * 5, S * 5), Again::Wait);
            assert_eq!(send_again(&[other], S, S * 6, S * 5), Again::Send, "it does not get on");
        }
    }

    #[test]
    fn who_had_lost_it_long_before_is_not_believed() {
        let own = Own { up_until: Some(S * 100), ..own(102, 101) };
        assert_eq!(plan(&own, &[down(10, 101, 150)], S * 102, &SETTINGS).at, S * 102);
        assert!(
            plan(&own, &[Sight { tried: Some(S * 101 + S / 2), ..down(99, 0, 150) }], S * 102, &SETTINGS).at
                > S * 140
        );
    }
}
