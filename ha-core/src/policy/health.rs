//! A member's health: a machine without a clock.
//!
//! ```text
//!              failed call                  probe failed,
//!        ┌──────────────────► suspect ──── or connecting failed ──► down ◄────────────┐
//!        │                       │                                   │  probes back   │
//!        up ◄────────────────────┘                                   │  off, jittered │
//!        ▲      probe succeeded                                      ▼                │
//!        └───────────────── caught up ◄──────────────────────── syncing ──────────────┘
//!                                                                         failed
//!   any state ── refused PIN, wrong token,
//!                wrong signature ───────────► quarantined ── recover ──► down
//!                                                  └── connected at last ──► syncing
//!   any state ── by the operator ───────────► drained ────── resume ───► down
//!   suspect   ── wanted back by the operator ─────────────────────────► down, and connected at once
//! ```
//!
//! A member that goes down soon after it came up flaps: it is held down longer each time, and forgiven when it stays up.
//! For as long it starts slowly, when it has come back.
//! One in quarantine is looked at again at the longest interval, because what is wrong with it may be mended outside:
//! unless nothing can be, or nothing that looking would show.
//!
//! Where nobody takes members back by themselves a suspect one stays suspect: it is probed slower and slower, and used
//! again when it answers on the connection that it has.

use std::fmt;
use std::time::Duration;

use super::failure::Class;

/// Where a member stands. The words are those of `hactl status`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum State {
    /// Serves.
    Up,
    /// Failed, and is being probed; not used meanwhile.
    Suspect,
    /// Not used until a connection succeeds.
    Down,
    /// Connected, and brought up to date.
    Syncing,
    /// Not to be used until a person has looked: refused PIN, wrong token, wrong signatures.
    Quarantined,
    /// Taken out by the operator.
    Drained,
}

impl State {
    /// Every state.
    pub const ALL: [State; 6] =
        [State::Up, State::Suspect, State::Down, State::Syncing, State::Quarantined, State::Drained];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Up => "up",
            State::Suspect => "suspect",
            State::Down => "down",
            State::Syncing => "syncing",
            State::Quarantined => "quarantined",
            State::Drained => "drained",
        })
    }
}

/// What happened to a member.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Event {
    /// A call failed with an answer of this class.
    CallFailed(Class),
    /// It answered, and holds what it must hold.
    ProbeSucceeded,
    /// It did not; or it could not be connected.
    ProbeFailed,
    /// It answers, and refuses to write what others write: it is to be connected anew.
    Renew,
    /// A new connection was made.
    Connected,
    /// What it missed has been brought to it.
    CaughtUp,
    /// Its PIN was refused, another token is behind it, or it signs wrongly.
    Quarantine(Until),
    /// The operator takes it out.
    Drain,
    /// The operator, or the application with a new PIN, wants it back.
    Recover,
}

/// How long a quarantine lasts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Until {
    /// Until the member can be connected and logged in: it is looked at again now and then.
    Mended,
    /// Until somebody wants it back: looking again would show the same.
    Wanted,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Event::CallFailed(_) => "a call failed",
            Event::ProbeSucceeded => "it answers",
            Event::ProbeFailed => "it does not answer",
            Event::Renew => "it refuses what others write, and is connected anew",
            Event::Connected => "it was connected",
            Event::CaughtUp => "it is up to date",
            Event::Quarantine(Until::Mended) => {
                "it may not be used as it is, and is looked at again now and then"
            }
            Event::Quarantine(Until::Wanted) => "it may not be used until somebody has looked",
            Event::Drain => "the operator took it out",
            Event::Recover => "it is wanted back",
        })
    }
}

/// A change of state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Transition {
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// What caused it.
    pub cause: Event,
}

/// The recovery settings of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Before the first probe of a member that is down.
    pub interval: Duration,
    /// The longest time between probes.
    pub max_interval: Duration,
    /// Whether members that are down are connected again without being asked for.
    pub takes_back: bool,
}

impl Settings {
    /// How long a member that has come back starts slowly, and flaps if it goes down.
    pub fn trial(&self) -> Duration {
        self.interval.saturating_mul(TRIAL_INTERVALS)
    }
}

/// The machine of one member.
#[derive(Clone, Debug)]
pub struct Health {
    settings: Settings,
    state: State,
    failures: u32,
    flaps: u32,
    up_since: Duration,
    /// When the slow start after its last return ends.
    slow_until: Option<Duration>,
    /// When it was last up, if it is not.
    up_until: Option<Duration>,
    next_probe: Option<Duration>,
    /// When a suspect member may be probed at the earliest, where it stays suspect.
    rested: Duration,
    /// Wanted back, and not tried since: a try that was under way by then may have met what is mended.
    wanted: bool,
}

/// For so many probe intervals a member that has come up is on trial.
const TRIAL_INTERVALS: u32 = 10;
/// Doublings at most.
const MAX_SHIFT: u32 = 16;

impl Health {
    /// Down, to be connected at once.
    pub fn new(settings: Settings) -> Self {
        Health {
            settings,
            state: State::Down,
            failures: 0,
            flaps: 0,
            up_since: Duration::ZERO,
            slow_until: None,
            up_until: None,
            next_probe: Some(Duration::ZERO),
            rested: Duration::ZERO,
            wanted: false,
        }
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// When a member that is not used is to be tried again: a suspect one probed, any other one connected.
    pub fn next_probe(&self) -> Option<Duration> {
        match self.state {
            State::Down | State::Suspect | State::Quarantined => self.next_probe,
            State::Up | State::Syncing | State::Drained => None,
        }
    }

    /// When it was last up, if it is not and was.
    pub fn up_until(&self) -> Option<Duration> {
        self.up_until
    }

    /// When its slow start ends, or has ended; `None` for one that was not away.
    pub fn slow_until(&self) -> Option<Duration> {
        self.slow_until
    }

    /// Whether it comes and goes, and is held down for that.
    pub fn flaps(&self) -> bool {
        self.flaps > 1
    }

    /// Tries in a row that were in vain, as far as they make the next one wait.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Others of this host have tried a member that is down so often in vain.
    pub fn heed_failures(&mut self, failures: u32) {
        if self.state == State::Down {
            self.failures = self.failures.max(failures.min(MAX_SHIFT));
        }
    }

    /// Whether it is in quarantine until somebody wants it back.
    pub fn waits_for_somebody(&self) -> bool {
        self.state == State::Quarantined && self.next_probe.is_none()
    }

    /// Whether it is worth while to wait for a member: it was up until not longer ago than `patience`, and is being tried. Who
    /// waits for one that was found dead longer ago would wait in every call.
    pub fn may_return(&self, now: Duration, patience: Duration) -> bool {
        let is_tried = match self.state {
            State::Suspect | State::Syncing => true,
            State::Down => self.next_probe.is_some_and(|at| at <= now),
            State::Up | State::Quarantined | State::Drained => false,
        };
        is_tried && self.up_until.is_some_and(|at| now.saturating_sub(at) < patience)
    }

    /// Takes an event in; answers the change of state, if there is one. `random` spreads probes.
    pub fn on(&mut self, event: Event, now: Duration, random: u64) -> Option<Transition> {
        let from = self.state;
        if from == State::Up {
            self.up_until = Some(now);
        }
        let to = match (from, event) {
            (State::Drained, Event::Quarantine(_)) => State::Drained,
            (_, Event::Quarantine(_)) => State::Quarantined,
            (_, Event::Drain) => State::Drained,
            (State::Drained | State::Quarantined | State::Down | State::Suspect, Event::Recover) => {
                State::Down
            }
            (State::Up, Event::CallFailed(Class::Member)) => State::Suspect,
            (State::Suspect, Event::ProbeSucceeded) => State::Up,
            (State::Suspect, Event::ProbeFailed) if !self.settings.takes_back => State::Suspect,
            (State::Up | State::Suspect | State::Syncing | State::Down, Event::ProbeFailed) => State::Down,
            (State::Up, Event::Renew) if self.settings.takes_back => State::Down,
            (State::Down | State::Suspect, Event::Connected) => State::Syncing,
            (State::Quarantined, Event::Connected) if self.next_probe.is_some() => State::Syncing,
            (State::Syncing, Event::CaughtUp) => State::Up,
            (State::Syncing, Event::CallFailed(Class::Member)) => State::Down,
            (state, _) => state,
        };
        self.wanted |= event == Event::Recover && to == State::Down;
        match (from, to) {
            (State::Down | State::Syncing, State::Down)
                if event == Event::ProbeFailed && std::mem::take(&mut self.wanted) =>
            {
                self.next_probe = Some(now);
            }
            (State::Down, State::Down) if event == Event::Recover => {
                self.failures = 0;
                self.next_probe = Some(now);
            }
            (_, State::Down) if matches!(event, Event::Recover | Event::Renew) => self.next_probe = Some(now),
            (_, State::Down) if event == Event::ProbeFailed || from != to => {
                if from == State::Up || from == State::Suspect {
                    self.flaps = if now.saturating_sub(self.up_since) < self.settings.trial() {
                        self.flaps.saturating_add(1)
                    } else {
                        0
                    };
                    self.failures = self.flaps.saturating_sub(2);
                }
                // What was restarted while nobody used it is there again when it is found dead.
                let at_once = from == State::Suspect && self.flaps <= 1;
                let wait = if at_once { Duration::ZERO } else { self.back_off(random) };
                self.next_probe = Some(now + wait);
                self.failures = self.failures.saturating_add(u32::from(!at_once));
            }
            // What only somebody who looked may end is not ended because a PIN was refused besides.
            (State::Quarantined, State::Quarantined) if self.next_probe.is_none() => {}
            (_, State::Quarantined) => match event {
                Event::Quarantine(Until::Wanted) => self.next_probe = None,
                Event::Quarantine(Until::Mended) => self.next_probe = Some(now + self.slowest(random)),
                Event::ProbeFailed if self.next_probe.is_some() => {
                    self.next_probe = Some(now + self.slowest(random));
                }
                _ => {}
            },
            (State::Suspect, State::Suspect) if event == Event::ProbeFailed => {
                self.next_probe = Some(now + self.back_off(random));
                self.failures = self.failures.saturating_add(1);
            }
            (State::Up, State::Suspect) if self.settings.takes_back => self.next_probe = Some(now),
            (State::Up, State::Suspect) => self.next_probe = Some(now.max(self.rested)),
            (State::Suspect, State::Up) => {
                self.failures = 0;
                self.rested = now + self.back_off(random);
            }
            (State::Syncing, State::Up) => {
                self.failures = 0;
                self.wanted = false;
                self.up_since = now;
                self.slow_until = self.up_until.map(|_| now + self.settings.trial());
            }
            _ => {}
        }
        self.state = to;
        (from != to).then_some(Transition { from, to, cause: event })
    }

    fn slowest(&self, random: u64) -> Duration {
        spread(self.settings.max_interval, random)
    }

    /// The interval, doubled for each failure, at most the longest one, up to a fifth shorter by chance.
    fn back_off(&self, random: u64) -> Duration {
        let doubled = self.settings.interval.saturating_mul(1 << self.failures.min(MAX_SHIFT));
        spread(doubled.min(self.settings.max_interval), random)
    }
}

/// Up to a fifth shorter by chance, so that members do not come back all at once.
fn spread(time: Duration, random: u64) -> Duration {
    time - time.mul_f64((random % 1000) as f64 / 5000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SETTINGS: Settings = Settings {
        interval: Duration::from_secs(1),
        max_interval: Duration::from_secs(60),
        takes_back: true,
    };
    const BY_HAND: Settings = Settings { takes_back: false, ..SETTINGS };

    fn events() -> impl Strategy<Value = Vec<(Event, u64, u64)>> {
        let event = prop_oneof![
            Just(Event::CallFailed(Class::Member)),
            Just(Event::CallFailed(Class::Caller)),
            Just(Event::CallFailed(Class::Ambiguous)),
            Just(Event::ProbeSucceeded),
            Just(Event::ProbeFailed),
            Just(Event::Connected),
            Just(Event::CaughtUp),
            Just(Event::Quarantine(Until::Mended)),
            Just(Event::Quarantine(Until::Wanted)),
            Just(Event::Drain),
            Just(Event::Recover),
        ];
        proptest::collection::vec((event, 0u64..100_000, any::<u64>()), 0..60)
    }

    proptest! {
        #[test]
        fn nobody_waits_for_a_member_that_has_been_down_for_long(history in events(), patience in 1u64..5_000) {
            let mut health = Health::new(SETTINGS);
            let mut now = Duration::ZERO;
            let mut last_up = None;
            let patience = Duration::from_millis(patience);
            for (event, step, random) in history {
                now += Duration::from_millis(step / 50);
                if health.state() == State::Up {
                    last_up = Some(now);
                }
                health.on(event, now, random);
                if health.may_return(now, patience) {
                    prop_assert!(last_up.is_some_and(|at| now - at < patience));
                    prop_assert!(health.state() != State::Up);
                }
            }
        }

        #[test]
        fn up_again_only_by_catching_up_or_a_good_probe_of_a_suspect(history in events()) {
            let mut health = Health::new(SETTINGS);
            let mut now = Duration::ZERO;
            for (event, ms, random) in history {
                now += Duration::from_millis(ms);
                if let Some(t) = health.on(event, now, random)
                    && t.to == State::Up
                {
                    prop_assert!(matches!((t.from, t.cause), (State::Syncing, Event::CaughtUp) | (State::Suspect, Event::ProbeSucceeded)));
                }
            }
        }

        #[test]
        fn a_quarantined_member_comes_out_only_when_connected_or_wanted_back(history in events()) {
            let mut health = Health::new(SETTINGS);
            let mut until = Until::Mended;
            for (event, _, random) in history {
                if let Event::Quarantine(now) = event
                    && health.state() != State::Drained
                    && !health.waits_for_somebody()
                {
                    until = now;
                }
                if let Some(t) = health.on(event, Duration::ZERO, random)
                    && t.from == State::Quarantined
                {
                    let mended = t.cause == Event::Connected && until == Until::Mended;
                    prop_assert!(mended || matches!(t.cause, Event::Recover | Event::Drain));
                }
            }
        }

        #[test]
        fn a_quarantined_member_is_looked_at_again_at_the_longest_interval(history in events()) {
            let mut health = Health::new(SETTINGS);
            let mut now = Duration::ZERO;
            for (event, ms, random) in history {
                now += Duration::from_millis(ms);
                let waits = health.waits_for_somebody();
                health.on(event, now, random);
                prop_assert!(!waits || health.state() != State::Quarantined || health.waits_for_somebody());
                if health.state() == State::Quarantined && event == Event::Quarantine(Until::Mended) && !waits {
                    let after = health.next_probe().unwrap() - now;
                    prop_assert!(after <= SETTINGS.max_interval && after >= SETTINGS.max_interval.mul_f64(0.8));
                }
            }
        }

        #[test]
        fn only_the_operator_brings_a_drained_member_back(history in events()) {
            let mut health = Health::new(SETTINGS);
            for (event, _, random) in history {
                if let Some(t) = health.on(event, Duration::ZERO, random)
                    && t.from == State::Drained
                {
                    prop_assert_eq!(t.cause, Event::Recover);
                }
            }
        }

        #[test]
        fn where_none_is_taken_back_a_suspect_member_is_probed_at_most_once_an_interval(history in events()) {
            let mut health = Health::new(BY_HAND);
            let (mut now, mut last) = (Duration::ZERO, None);
            for (event, ms, random) in history {
                now += Duration::from_millis(ms);
                // Who looks asks the machine, and tells it what came of it.
                let probe = matches!(event, Event::ProbeSucceeded | Event::ProbeFailed);
                let due = health.state() == State::Suspect && health.next_probe().is_some_and(|at| at <= now);
                if probe && health.state() == State::Suspect {
                    if !due {
                        continue;
                    }
                    if let Some(last) = last {
                        prop_assert!(now >= last + BY_HAND.interval.mul_f64(0.8));
                    }
                    last = Some(now);
                }
                if let Some(t) = health.on(event, now, random)
                    && (t.from == State::Syncing || t.to == State::Down)
                {
                    last = None; // another connection
                }
            }
        }

        #[test]
        fn a_member_that_is_down_is_tried_again_in_bounded_time(history in events()) {
            let mut health = Health::new(SETTINGS);
            let mut now = Duration::ZERO;
            for (event, ms, random) in history {
                now += Duration::from_millis(ms);
                let changed = health.on(event, now, random).is_some();
                if health.state() == State::Down && (changed || event == Event::ProbeFailed) {
                    let at = health.next_probe().unwrap();
                    prop_assert!(at <= now + SETTINGS.max_interval);
                }
            }
        }
    }

    #[test]
    fn where_none_is_taken_back_a_suspect_member_stays_suspect_and_is_probed_slower() {
        let mut health = Health::new(BY_HAND);
        health.on(Event::Connected, Duration::ZERO, 0);
        health.on(Event::CaughtUp, Duration::ZERO, 0);
        health.on(Event::CallFailed(Class::Member), Duration::ZERO, 0);
        assert_eq!(health.next_probe(), Some(Duration::ZERO), "at once, the first time");
        for wait in [1, 2, 4] {
            health.on(Event::ProbeFailed, Duration::ZERO, 0);
            assert_eq!(health.state(), State::Suspect);
            assert_eq!(health.next_probe(), Some(Duration::from_secs(wait)));
        }
        health.on(Event::ProbeSucceeded, Duration::ZERO, 0);
        assert_eq!(health.state(), State::Up);
    }

    #[test]
    fn probes_back_off_to_the_longest_interval() {
        let mut health = Health::new(SETTINGS);
        let waits: Vec<u64> = (0..8)
            .map(|_| {
                health.on(Event::ProbeFailed, Duration::ZERO, 0);
                health.next_probe().unwrap().as_secs()
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn a_try_that_had_begun_when_it_was_wanted_back_is_not_all_that_comes_of_it() {
        let mut health = Health::new(SETTINGS);
        health.on(Event::ProbeFailed, Duration::ZERO, 0);
        let now = Duration::from_millis(10);
        health.on(Event::Recover, now, 0);
        for next in [now, now + Duration::from_secs(1)] {
            health.on(Event::ProbeFailed, now, 0);
            assert_eq!(health.next_probe(), Some(next));
        }
    }

    #[test]
    fn who_comes_back_starts_slowly_and_who_comes_first_does_not() {
        let mut health = Health::new(SETTINGS);
        let up = |health: &mut Health, now| {
            health.on(Event::Connected, now, 0);
            health.on(Event::CaughtUp, now, 0);
        };
        up(&mut health, Duration::ZERO);
        assert_eq!(health.slow_until(), None);
        // It was the way to it that failed for a moment: the connection is as it was.
        health.on(Event::CallFailed(Class::Member), Duration::from_secs(3), 0);
        health.on(Event::ProbeSucceeded, Duration::from_secs(3), 0);
        assert_eq!(health.slow_until(), None);
        health.on(Event::ProbeFailed, Duration::from_secs(4), 0);
        up(&mut health, Duration::from_secs(5));
        assert_eq!(health.slow_until(), Some(Duration::from_secs(5) + SETTINGS.trial()));
    }

    #[test]
    fn a_member_that_flaps_is_held_down_longer() {
        let mut health = Health::new(SETTINGS);
        let mut waits = Vec::new();
        for _ in 0..4 {
            health.on(Event::Connected, Duration::ZERO, 0);
            health.on(Event::CaughtUp, Duration::ZERO, 0);
            health.on(Event::CallFailed(Class::Member), Duration::ZERO, 0);
            health.on(Event::ProbeFailed, Duration::ZERO, 0);
            waits.push(health.next_probe().unwrap().as_secs());
        }
        assert_eq!(waits, [0, 1, 2, 4]);
    }
}
