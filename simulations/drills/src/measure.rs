//! Figures from what was recorded: latencies, what the group made of each fault, what was expected to fail. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use ha_core::policy::health::State;
use hdrhistogram::Histogram;

use crate::plan::Scenario;
use crate::record::{Answer, Change, Fault, Kind, Operation, Played, Record};

/// A fault, and what the group made of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Course {
    /// The fault.
    pub fault: Fault,
    /// From its beginning until the group did not use the member; `None` where it went on using it, or did not use it already.
    pub noticed: Option<Duration>,
    /// From its end until the member was used again; `None` where it was used all the time, or broke again before.
    pub back: Option<Duration>,
}

/// The figures of a drill, or of one scenario in it.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Of which scenario.
    pub scenario: Scenario,
    /// Operations, without those that were expected to fail.
    pub operations: u64,
    /// Answered with an error that was not expected.
    pub failed: u64,
    /// Answered wrongly.
    pub wrong: u64,
    /// Failed while every member was broken, as they had to.
    pub expected: u64,
    /// The longest of these.
    pub expected_longest: Option<Duration>,
    /// Latencies of `operations`, in microseconds.
    pub latencies: Histogram<u64>,
    /// The longest time to notice.
    pub failover: Option<Duration>,
    /// The longest time to come back.
    pub recovery: Option<Duration>,
    /// The longest time in which no operation succeeded, outside of what was expected.
    pub pause: Duration,
    /// Errors that were not expected.
    pub errors: BTreeMap<String, u64>,
}

impl Figures {
    /// A percentile of the latencies in microseconds; 0 where there are none.
    pub fn percentile(&self, percent: f64) -> u64 {
        self.latencies.value_at_quantile(percent / 100.0)
    }
}

/// What happened in equal pieces of the time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bins {
    /// How long each piece is.
    pub width: Duration,
    /// Operations that ended well in it.
    pub right: Vec<u64>,
    /// Operations that did not, unexpectedly.
    pub bad: Vec<u64>,
    /// Of those that began in it.
    pub latencies: Vec<Option<Spread>>,
}

/// Latencies of a piece, in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spread {
    /// The median.
    pub median: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The longest.
    pub longest: u64,
}

/// In about so many pieces, none shorter than this.
const BINS: u128 = 160;
const LEAST_BIN_MS: u64 = 50;

fn spread(mut values: Vec<u64>) -> Option<Spread> {
    values.sort_unstable();
    let at = |percent: usize| {
        values.get((values.len() * percent / 100).min(values.len().checked_sub(1)?)).copied()
    };
    Some(Spread { median: at(50)?, p99: at(99)?, longest: at(100)? })
}

/// Exact to a thousandth.
const DIGITS: u8 = 3;
/// Longer latencies count as this long: an hour.
const LONGEST_US: u64 = 3_600_000_000;

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// An empty histogram of microseconds.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, DIGITS).expect("a histogram can have these bounds")
}

impl Record {
    /// What became of each fault.
    pub fn courses(&self) -> Vec<Course> {
        self.faults.iter().enumerate().map(|(i, fault)| self.course(i, fault)).collect()
    }

    fn course(&self, i: usize, fault: &Fault) -> Course {
        // Until the member is broken again.
        let next = self.faults.iter().skip(i + 1).find(|f| f.member == fault.member);
        let until = next.map_or(Duration::MAX, |f| f.from);
        let mut changes = self.changes.iter().filter(|c| c.member == fault.member);
        let was_up =
            changes.clone().take_while(|c| c.at < fault.from).last().is_none_or(|c| c.to == State::Up);
        let during = |c: &&Change| c.at >= fault.from && c.at < until;
        let left = changes.clone().filter(during).find(|c| c.from == State::Up);
        let noticed = left.filter(|_| was_up).map(|c| c.at - fault.from);
        let has_left = left.is_some() || !was_up;
        let back = fault.to.filter(|_| has_left).and_then(|to| {
            let before = changes.clone().take_while(|c| c.at < to).last();
            if before.is_some_and(|c| c.to == State::Up && c.at >= fault.from) {
                return Some(Duration::ZERO);
            }
            changes.find(|c| c.at >= to && c.at < until && c.to == State::Up).map(|c| c.at - to)
        });
        Course { fault: *fault, noticed, back }
    }

    /// When every member was broken: until the first one was used again. Calls fail then, as they must.
    pub fn windows(&self) -> Vec<(Duration, Duration)> {
        let mut edges: Vec<(Duration, bool)> = Vec::new();
        for fault in &self.faults {
            edges.push((fault.from, true));
            edges.extend(fault.to.map(|to| (to, false)));
        }
        edges.sort_unstable();
        let (mut broken, mut windows, mut from) = (0, Vec::new(), None);
        for (at, breaks) in edges {
            if breaks {
                broken += 1;
                if broken == self.members.len() {
                    from = Some(at);
                }
            } else {
                broken -= 1;
                if let Some(from) = from.take() {
                    windows.push((from, self.someone_is_back(at)));
                }
            }
        }
        windows.extend(from.map(|from| (from, Duration::MAX)));
        windows
    }

    /// When the first member was used again after this moment: at once, if one was used all the time.
    fn someone_is_back(&self, after: Duration) -> Duration {
        let mut up = vec![true; self.members.len()];
        for change in &self.changes {
            if change.at > after {
                if up.contains(&true) {
                    break;
                }
                if change.to == State::Up {
                    return change.at;
                }
            }
            if let Some(up) = up.get_mut(change.member) {
                *up = change.to == State::Up;
            }
        }
        if up.contains(&true) { after } else { Duration::MAX }
    }

    /// The figures of everything.
    pub fn figures(&self) -> Figures {
        self.figures_of(&Played { scenario: self.scenario, from: Duration::ZERO, to: Duration::MAX })
    }

    /// The figures of each scenario that was played.
    pub fn by_scenario(&self) -> Vec<Figures> {
        let mut played = self.played.clone();
        // What was begun as the load was being started or ended is the first one's or the last one's.
        if let Some(first) = played.first_mut() {
            first.from = Duration::ZERO;
        }
        if let Some(last) = played.last_mut() {
            last.to = Duration::MAX;
        }
        played.iter().map(|played| self.figures_of(played)).collect()
    }

    fn figures_of(&self, played: &Played) -> Figures {
        let windows = self.windows();
        let mut figures = Figures {
            scenario: played.scenario,
            operations: 0,
            failed: 0,
            wrong: 0,
            expected: 0,
            expected_longest: None,
            latencies: histogram(),
            failover: None,
            recovery: None,
            pause: Duration::ZERO,
            errors: BTreeMap::new(),
        };
        let mut successes = Vec::new();
        for operation in self.operations.iter().filter(|o| o.begun >= played.from && o.begun < played.to) {
            if is_expected(&windows, operation) {
                figures.expected += 1;
                figures.expected_longest = figures.expected_longest.max(Some(operation.took));
                continue;
            }
            figures.operations += 1;
            figures.latencies.saturating_record(micros(operation.took).max(1));
            match operation.answer {
                Answer::Right => successes.push(operation.ended()),
                Answer::Wrong => figures.wrong += 1,
                Answer::Failed(rv) => {
                    figures.failed += 1;
                    *figures.errors.entry(rv.to_string()).or_default() += 1;
                }
            }
        }
        successes.sort_unstable();
        figures.pause = successes
            .windows(2)
            .filter_map(|w| if let [a, b] = w { Some((*a, *b)) } else { None })
            .filter(|(a, b)| !windows.iter().any(|(from, to)| a <= to && b >= from))
            .map(|(a, b)| b - a)
            .max()
            .unwrap_or_default();
        let courses = self.courses();
        let of_it = || courses.iter().filter(|c| c.fault.from >= played.from && c.fault.from < played.to);
        figures.failover = of_it().filter_map(|c| c.noticed).max();
        figures.recovery = of_it().filter_map(|c| c.back).max();
        figures
    }

    /// The latencies of each kind of operation, in microseconds, without those that were expected to fail.
    pub fn by_kind(&self) -> Vec<(Kind, Histogram<u64>)> {
        let windows = self.windows();
        let of = |kind: Kind| {
            let mut latencies = histogram();
            for operation in self.operations.iter().filter(|o| o.kind == kind && !is_expected(&windows, o)) {
                latencies.saturating_record(micros(operation.took).max(1));
            }
            (kind, latencies)
        };
        Kind::ALL.into_iter().map(of).collect()
    }

    /// What happened in each of equal pieces of the time.
    pub fn bins(&self) -> Bins {
        let tens = self.lasted.as_millis() / BINS / 10;
        let width = Duration::from_millis(u64::try_from(tens * 10).unwrap_or(u64::MAX).max(LEAST_BIN_MS));
        let count = usize::try_from(self.lasted.as_micros().div_ceil(width.as_micros())).unwrap_or(0).max(1);
        let place = |at: Duration| usize::try_from(at.as_micros() / width.as_micros()).unwrap_or(usize::MAX);
        let windows = self.windows();
        let mut right = vec![0; count];
        let mut bad = vec![0; count];
        let mut latencies: Vec<Vec<u64>> = vec![Vec::new(); count];
        for operation in &self.operations {
            if is_expected(&windows, operation) {
                continue;
            }
            let which = if operation.answer == Answer::Right { &mut right } else { &mut bad };
            if let Some(n) = which.get_mut(place(operation.ended())) {
                *n += 1;
            }
            // A long one is seen where it began: there something was amiss.
            if let Some(l) = latencies.get_mut(place(operation.begun)) {
                l.push(micros(operation.took).max(1));
            }
        }
        let latencies = latencies.into_iter().map(spread).collect();
        Bins { width, right, bad, latencies }
    }

    /// When each member was not used, from when to when.
    pub fn unused(&self) -> Vec<(usize, Duration, Duration)> {
        let mut since = vec![None; self.members.len()];
        let mut unused = Vec::new();
        for change in &self.changes {
            let Some(since) = since.get_mut(change.member) else { continue };
            match (change.to, *since) {
                (State::Up, Some(from)) => {
                    unused.push((change.member, from, change.at));
                    *since = None;
                }
                (to, None) if to != State::Up && change.at < self.lasted => *since = Some(change.at),
                _ => {}
            }
        }
        let still = since.into_iter().enumerate();
        unused.extend(still.filter_map(|(member, from)| Some((member, from?, self.lasted))));
        unused
    }

    /// Operations served by each member.
    pub fn served(&self) -> BTreeMap<String, u64> {
        let of = |i: usize| self.samples.last().and_then(|s| s.served.get(i)).copied().unwrap_or(0);
        self.members.iter().enumerate().map(|(i, name)| (name.clone(), of(i))).collect()
    }
}

/// Whether an operation failed as it had to.
fn is_expected(windows: &[(Duration, Duration)], operation: &Operation) -> bool {
    matches!(operation.answer, Answer::Failed(_))
        && windows.iter().any(|(from, to)| operation.begun <= *to && operation.ended() >= *from)
}

#[cfg(test)]
mod tests {
    use ha_token::Rv;

    use super::*;
    use crate::record::tests::{change, fault, ms, operation, record, with_a_fault};

    /// Both are broken from 500 to 600, and back at 640 and 660.
    fn with_all_down() -> Record {
        let mut record = with_a_fault();
        record.faults.extend([fault(0, 500, Some(600)), fault(1, 500, Some(601))]);
        record.changes.extend([
            change(503, 0, State::Up, State::Suspect),
            change(504, 1, State::Up, State::Suspect),
            change(640, 1, State::Syncing, State::Up),
            change(660, 0, State::Syncing, State::Up),
        ]);
        record
    }

    #[test]
    fn a_fault_is_noticed_and_over() {
        let record = with_a_fault();
        let [course] = &*record.courses() else { panic!("one fault") };
        assert_eq!((course.noticed, course.back), (Some(ms(5)), Some(ms(50))));
        let figures = record.figures();
        assert_eq!((figures.failover, figures.recovery), (Some(ms(5)), Some(ms(50))));
        assert_eq!(record.unused(), [(0, ms(205), ms(450))]);
        assert_eq!(record.windows(), []);
        assert!(record.is_well());
    }

    #[test]
    fn what_is_not_noticed_has_no_times() {
        let mut record = record();
        record.faults.push(fault(1, 200, Some(210)));
        let figures = record.figures();
        assert_eq!((figures.failover, figures.recovery), (None, None));
    }

    #[test]
    fn who_breaks_again_before_it_is_back_is_noticed_once_and_back_once() {
        let mut record = record();
        record.faults.extend([fault(0, 100, Some(200)), fault(0, 220, Some(300))]);
        record
            .changes
            .extend([change(101, 0, State::Up, State::Suspect), change(350, 0, State::Syncing, State::Up)]);
        let times: Vec<_> = record.courses().iter().map(|c| (c.noticed, c.back)).collect();
        assert_eq!(times, [(Some(ms(1)), None), (None, Some(ms(50)))]);
    }

    #[test]
    fn who_is_used_again_before_it_is_said_to_be_mended_took_no_time() {
        let mut record = record();
        record.faults.push(fault(0, 100, Some(200)));
        record
            .changes
            .extend([change(101, 0, State::Up, State::Suspect), change(199, 0, State::Syncing, State::Up)]);
        assert_eq!(record.figures().recovery, Some(ms(0)));
    }

    #[test]
    fn failures_are_expected_until_the_first_member_is_back_and_no_longer() {
        let mut record = with_all_down();
        assert_eq!(record.windows(), [(ms(500), ms(640))]);
        record.operations.extend([
            operation(495, 10, Answer::Failed(Rv::DEVICE_ERROR)),
            operation(510, 30, Answer::Failed(Rv::DEVICE_ERROR)),
            operation(639, 1, Answer::Failed(Rv::DEVICE_ERROR)),
        ]);
        let figures = record.figures();
        assert_eq!((figures.failed, figures.expected), (0, 3));
        assert_eq!(figures.expected_longest, Some(ms(30)));
        assert_eq!(figures.operations, 100);
        assert!(record.is_well());
        for (begun, answer) in
            [(641, Answer::Failed(Rv::DEVICE_ERROR)), (490, Answer::Failed(Rv::DEVICE_ERROR))]
        {
            let mut record = record.clone();
            record.operations.push(operation(begun, 2, answer));
            assert_eq!(record.figures().failed, 1, "{begun}");
            assert!(!record.is_well());
        }
        // A wrong answer never is.
        record.operations.push(operation(550, 2, Answer::Wrong));
        assert_eq!(record.figures().wrong, 1);
        assert!(!record.is_well());
    }

    #[test]
    fn where_nobody_is_back_it_is_expected_until_the_end() {
        let mut record = with_all_down();
        record.changes.truncate(6);
        assert_eq!(record.windows(), [(ms(500), Duration::MAX)]);
        record.faults.iter_mut().skip(1).for_each(|f| f.to = None);
        assert_eq!(record.windows(), [(ms(500), Duration::MAX)]);
    }

    #[test]
    fn one_broken_member_excuses_no_failure() {
        let mut record = with_a_fault();
        record.operations.push(operation(300, 5, Answer::Failed(Rv::DEVICE_ERROR)));
        assert_eq!(record.figures().failed, 1);
        assert_eq!(record.figures().errors.values().sum::<u64>(), 1);
        assert!(record.verdict().contains("1 of 101 operations failed"), "{}", record.verdict());
    }

    #[test]
    fn percentiles_pauses_and_pieces() {
        let mut record = record();
        record.operations.push(operation(995, 500, Answer::Right));
        let figures = record.figures();
        assert_eq!(figures.percentile(50.0), 2000);
        let longest = figures.latencies.max();
        assert!((500_000..501_000).contains(&longest), "{longest}");
        assert_eq!(figures.pause, ms(1495 - 992));
        let bins = record.bins();
        assert_eq!((bins.width, bins.right.len()), (ms(50), 20));
        assert_eq!(bins.right.iter().sum::<u64>(), 100);
        assert_eq!(bins.latencies[0], Some(Spread { median: 2000, p99: 2000, longest: 2000 }));
        let last = Spread { median: 2000, p99: 500_000, longest: 500_000 };
        assert_eq!(bins.latencies[19], Some(last));
    }

    #[test]
    fn scenarios_have_figures_of_their_own_that_add_up() {
        let mut record = with_a_fault();
        record.scenario = Scenario::All;
        let played = |scenario, from, to| Played { scenario, from: ms(from), to: ms(to) };
        record.played = vec![played(Scenario::Kill, 3, 500), played(Scenario::Hang, 500, 980)];
        let [kill, hang] = &*record.by_scenario() else { panic!("two scenarios") };
        assert_eq!((kill.operations, hang.operations), (50, 50));
        assert_eq!((kill.failover, hang.failover), (Some(ms(5)), None));
    }
}
