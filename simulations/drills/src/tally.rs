//! Counts what was done as it is done: a drill of a day takes no more memory than one of a minute. Pure.
//!
//! Whether a failure was expected is known some time after it, when it is known which members were broken, and used,
//! meanwhile. So operations rest until they are settled.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::plan::Scenario;
use crate::record::{Answer, Kind, Operation, Played};

/// From when to when every member was broken.
pub type Window = (Duration, Duration);

/// The figures of a drill, or of one scenario in it.
#[derive(Clone, PartialEq, Debug)]
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
    /// Those of nothing.
    pub fn none(scenario: Scenario) -> Figures {
        Figures {
            scenario,
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
        }
    }

    /// A percentile of the latencies in microseconds; 0 where there are none.
    pub fn percentile(&self, percent: f64) -> u64 {
        self.latencies.value_at_quantile(percent / 100.0)
    }

    fn count(&mut self, operation: &Operation) {
        self.operations += 1;
        self.latencies.saturating_record(micros(operation.took).max(1));
        match operation.answer {
            Answer::Right => {}
            Answer::Wrong => self.wrong += 1,
            Answer::Failed(rv) => {
                self.failed += 1;
                *self.errors.entry(rv.to_string()).or_default() += 1;
            }
        }
    }

    fn add(&mut self, other: &Figures) {
        self.operations += other.operations;
        self.failed += other.failed;
        self.wrong += other.wrong;
        self.expected += other.expected;
        self.expected_longest = self.expected_longest.max(other.expected_longest);
        // Their bounds are the same.
        _ = self.latencies.add(&other.latencies);
        self.pause = self.pause.max(other.pause);
        for (rv, count) in &other.errors {
            *self.errors.entry(rv.clone()).or_default() += count;
        }
    }
}

/// Exact to a thousandth.
const DIGITS: u8 = 3;
/// What is drawn is exact to a hundredth: there are many pieces, and each has a histogram.
const DRAWN_DIGITS: u8 = 2;
/// Longer latencies count as this long: an hour.
const LONGEST_US: u64 = 3_600_000_000;

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// An empty histogram of microseconds.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, DIGITS).expect("a histogram can have these bounds")
}

/// Latencies of a piece of the time, in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spread {
    /// The median.
    pub median: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The longest.
    pub longest: u64,
}

/// What happened in a piece of the time.
#[derive(Clone, PartialEq, Debug)]
struct Piece {
    right: u64,
    bad: u64,
    /// Of those that began in it.
    latencies: Histogram<u32>,
    /// The histogram knows about how long.
    longest: u64,
}

impl Piece {
    fn new() -> Piece {
        let latencies = Histogram::new(DRAWN_DIGITS).expect("a histogram can be as exact as this");
        Piece { right: 0, bad: 0, latencies, longest: 0 }
    }

    fn add(&mut self, other: &Piece) {
        self.right += other.right;
        self.bad += other.bad;
        // It grows as it has to.
        _ = self.latencies.add(&other.latencies);
        self.longest = self.longest.max(other.longest);
    }

    fn spread(&self) -> Option<Spread> {
        let at = |quantile| self.latencies.value_at_quantile(quantile).min(self.longest);
        let spread = || Spread { median: at(0.5), p99: at(0.99), longest: self.longest };
        (!self.latencies.is_empty()).then(spread)
    }
}

/// The whole time in equal pieces.
#[derive(Clone, PartialEq, Debug)]
struct Pieces {
    width: Duration,
    all: Vec<Piece>,
}

/// The first pieces are so long.
const WIDTH: Duration = Duration::from_millis(50);
/// Where there would be more pieces, each two become one.
const MOST_PIECES: usize = 320;

impl Pieces {
    fn at(&mut self, at: Duration) -> &mut Piece {
        let mut place = at.as_micros() / self.width.as_micros();
        while place >= MOST_PIECES as u128 {
            self.width *= 2;
            let halved = self.all.chunks(2).map(|two| {
                let mut one = Piece::new();
                two.iter().for_each(|piece| one.add(piece));
                one
            });
            self.all = halved.collect();
            place = at.as_micros() / self.width.as_micros();
        }
        let place = place as usize;
        if self.all.len() <= place {
            self.all.resize_with(place + 1, Piece::new);
        }
        &mut self.all[place]
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

/// What was done.
#[derive(Clone, PartialEq, Debug)]
pub struct Tally {
    /// Not settled yet.
    resting: Vec<Operation>,
    /// By the place of what was played.
    parts: Vec<Figures>,
    kinds: [Histogram<u64>; Kind::ALL.len()],
    pieces: Pieces,
    /// When an operation last succeeded.
    last: Option<Duration>,
}

impl Default for Tally {
    fn default() -> Self {
        Tally {
            resting: Vec::new(),
            parts: Vec::new(),
            kinds: std::array::from_fn(|_| histogram()),
            pieces: Pieces { width: WIDTH, all: Vec::new() },
            last: None,
        }
    }
}

impl Tally {
    /// Takes operations to be settled later.
    pub fn add(&mut self, operations: impl IntoIterator<Item = Operation>) {
        self.resting.extend(operations);
    }

    /// Counts the operations that had ended by then. What was played and when every member was broken must be known up to
    /// that moment.
    pub fn settle(&mut self, until: Duration, played: &[Played], windows: &[Window]) {
        let mut over: Vec<Operation> = self.resting.extract_if(.., |o| o.ended() <= until).collect();
        over.sort_unstable_by_key(Operation::ended);
        for operation in over {
            // What was begun as the load was being started is the first one's.
            let part = played.iter().rposition(|p| p.from <= operation.begun).unwrap_or(0);
            while self.parts.len() <= part {
                let scenario = played.get(self.parts.len()).map_or(Scenario::All, |p| p.scenario);
                self.parts.push(Figures::none(scenario));
            }
            self.count(part, &operation, windows);
        }
    }

    fn count(&mut self, part: usize, operation: &Operation, windows: &[Window]) {
        let figures = &mut self.parts[part];
        if is_expected(windows, operation) {
            figures.expected += 1;
            figures.expected_longest = figures.expected_longest.max(Some(operation.took));
            return;
        }
        figures.count(operation);
        let (ended, took) = (operation.ended(), micros(operation.took).max(1));
        let is_right = operation.answer == Answer::Right;
        if is_right {
            if let Some(last) = self.last
                && ended > last
                && !windows.iter().any(|(from, to)| last <= *to && ended >= *from)
            {
                figures.pause = figures.pause.max(ended - last);
            }
            self.last = self.last.max(Some(ended));
        }
        if let Some(kind) = Kind::ALL.iter().position(|k| *k == operation.kind) {
            self.kinds[kind].saturating_record(took);
        }
        let piece = self.pieces.at(ended);
        *(if is_right { &mut piece.right } else { &mut piece.bad }) += 1;
        // A long one is seen where it began: there something was amiss.
        let piece = self.pieces.at(operation.begun);
        // It grows as it has to.
        _ = piece.latencies.record(took);
        piece.longest = piece.longest.max(took);
    }

    /// The figures of all that is settled; how members failed and came back is not in them.
    pub fn figures(&self, scenario: Scenario) -> Figures {
        let mut all = Figures::none(scenario);
        self.parts.iter().for_each(|part| all.add(part));
        all
    }

    /// As [`figures`](Self::figures), of what was played at this place.
    pub fn part(&self, place: usize, scenario: Scenario) -> Figures {
        self.parts.get(place).cloned().unwrap_or_else(|| Figures::none(scenario))
    }

    /// The latencies of each kind of operation, in microseconds, without those that were expected to fail.
    pub fn by_kind(&self) -> impl Iterator<Item = (Kind, &Histogram<u64>)> {
        Kind::ALL.into_iter().zip(&self.kinds)
    }

    /// What happened in each of equal pieces of so long a time.
    pub fn bins(&self, lasted: Duration) -> Bins {
        let width = self.pieces.width;
        let count = usize::try_from(lasted.as_micros().div_ceil(width.as_micros())).unwrap_or(0);
        let none = Piece::new();
        let pieces =
            || self.pieces.all.iter().chain(std::iter::repeat(&none)).take(count.clamp(1, MOST_PIECES));
        Bins {
            width,
            right: pieces().map(|p| p.right).collect(),
            bad: pieces().map(|p| p.bad).collect(),
            latencies: pieces().map(Piece::spread).collect(),
        }
    }
}

/// Whether an operation failed as it had to.
fn is_expected(windows: &[Window], operation: &Operation) -> bool {
    matches!(operation.answer, Answer::Failed(_))
        && windows.iter().any(|(from, to)| operation.begun <= *to && operation.ended() >= *from)
}

#[cfg(test)]
mod tests {
    use ha_token::Rv;

    use super::*;
    use crate::record::tests::{ms, operation};

    const FAILED: Answer = Answer::Failed(Rv::DEVICE_ERROR);

    fn played() -> Vec<Played> {
        vec![Played { scenario: Scenario::Kill, from: ms(0), to: ms(0) }]
    }

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let mut tally = Tally::default();
        tally.add((1..=100).map(|n| operation(0, n, Answer::Right)));
        tally.settle(Duration::MAX, &played(), &[]);
        let spread = tally.bins(ms(1000)).latencies[0].unwrap();
        // The longest of a hundred is above ninety-nine of them.
        assert!((99_000..=99_990).contains(&spread.p99), "{spread:?}");
        assert!((50_000..=50_500).contains(&spread.median), "{spread:?}");
        assert_eq!(spread.longest, 100_000);
        assert!((99_000..=99_100).contains(&tally.figures(Scenario::Kill).percentile(99.0)));
    }

    #[test]
    fn a_day_takes_no_more_room_than_a_minute() {
        let mut tally = Tally::default();
        let (day, step) = (86_400_000, 500);
        for at in (0..day).step_by(step) {
            tally.add([operation(at, 2 + at % 7, Answer::Right), operation(at, 3, FAILED)]);
            tally.settle(ms(at), &played(), &[]);
            assert!(tally.resting.len() <= 4 && tally.pieces.all.len() <= MOST_PIECES);
        }
        tally.settle(Duration::MAX, &played(), &[]);
        let figures = tally.figures(Scenario::Kill);
        let each = day / step as u64;
        assert_eq!((figures.operations, figures.failed), (2 * each, each));
        assert!((8000..8008).contains(&figures.latencies.max()));
        let bins = tally.bins(ms(day));
        assert_eq!(bins.right.iter().sum::<u64>(), each);
        assert_eq!(bins.bad.iter().sum::<u64>(), each);
        assert!(bins.right.len() > MOST_PIECES / 2, "{}", bins.right.len());
        let whole = &bins.right[..bins.right.len() - 1];
        assert!(whole.iter().all(|n| n.abs_diff(whole[0]) <= 1), "{whole:?}");
    }

    #[test]
    fn what_ends_later_rests_until_then() {
        let mut tally = Tally::default();
        tally.add([operation(0, 100, FAILED), operation(0, 900, FAILED)]);
        // Broken from here on, as far as it is known.
        tally.settle(ms(500), &played(), &[]);
        assert_eq!(tally.figures(Scenario::Kill).failed, 1);
        tally.settle(ms(1000), &played(), &[(ms(600), Duration::MAX)]);
        let figures = tally.figures(Scenario::Kill);
        assert_eq!((figures.failed, figures.expected, figures.expected_longest), (1, 1, Some(ms(900))));
    }

    #[test]
    fn settled_in_steps_is_as_settled_at_once() {
        let operations: Vec<_> = (0..400u64)
            .map(|n| operation(n * 7, 1 + n * 37 % 90, if n % 5 == 0 { FAILED } else { Answer::Right }))
            .collect();
        let windows = [(ms(700), ms(900))];
        let mut at_once = Tally::default();
        at_once.add(operations.clone());
        at_once.settle(Duration::MAX, &played(), &windows);
        let mut in_steps = Tally::default();
        for at in (0..3000).step_by(100) {
            in_steps
                .add(operations.iter().filter(|o| o.ended() > ms(at) && o.ended() <= ms(at + 100)).copied());
            in_steps.settle(ms(at + 50), &played(), &windows);
        }
        in_steps.settle(Duration::MAX, &played(), &windows);
        assert_eq!(at_once, in_steps);
        assert!(at_once.figures(Scenario::Kill).expected > 0);
    }
}
