//! What a drill records: operations, changes of health, faults. Every time is counted from the beginning of the load.

use std::time::Duration;

use ha_core::policy::health::State;
use ha_token::Rv;

use crate::held::Held;
use crate::plan::{How, Scenario};
use crate::run::Options;
use crate::tally::Tally;

/// What is asked of the slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// An ECDSA signature with P-256.
    Ecdsa,
    /// An RSA-2048 signature in one call.
    Rsa,
    /// The same of several parts.
    RsaParts,
    /// An HMAC in one call.
    Hmac,
    /// The same of several parts.
    HmacParts,
    /// A data object that is made and read, and one that is destroyed.
    Data,
}

impl Kind {
    /// Every one.
    pub const ALL: [Kind; 6] =
        [Kind::Ecdsa, Kind::Rsa, Kind::RsaParts, Kind::Hmac, Kind::HmacParts, Kind::Data];
    /// Those that are answered with a signature or a MAC.
    pub const SIGNED: [Kind; 5] = [Kind::Ecdsa, Kind::Rsa, Kind::RsaParts, Kind::Hmac, Kind::HmacParts];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ecdsa => "ECDSA P-256",
            Kind::Rsa => "RSA-2048",
            Kind::RsaParts => "RSA-2048, in parts",
            Kind::Hmac => "HMAC",
            Kind::HmacParts => "HMAC, in parts",
            Kind::Data => "data object",
        }
    }
}

/// How an operation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// With an answer that was verified.
    Right,
    /// With one that is not right.
    Wrong,
    /// With an error.
    Failed(Rv),
}

/// One operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// When it was asked for.
    pub begun: Duration,
    /// How long it took.
    pub took: Duration,
    /// What it was.
    pub kind: Kind,
    /// How it ended.
    pub answer: Answer,
}

impl Operation {
    pub(crate) fn ended(&self) -> Duration {
        self.begun + self.took
    }
}

/// A change of a member's health, as the group told it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// When.
    pub at: Duration,
    /// Whose.
    pub member: usize,
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
}

/// A fault of one member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The scenario that it is a part of.
    pub scenario: Scenario,
    /// Whose.
    pub member: usize,
    /// What was done.
    pub how: How,
    /// When it began.
    pub from: Duration,
    /// When it ended; `None` where the drill ended first.
    pub to: Option<Duration>,
}

/// When a scenario was played.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Played {
    /// Which.
    pub scenario: Scenario,
    /// From when.
    pub from: Duration,
    /// Until when.
    pub to: Duration,
}

/// What each member had served at a moment, since the beginning, and what this process held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sample {
    /// When.
    pub at: Duration,
    /// By member.
    pub served: Vec<u64>,
    /// What this process held, where the system tells.
    pub held: Option<Held>,
}

/// What the members had served at moments not too close to each other, and not too many of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Samples {
    all: Vec<Sample>,
    apart: Duration,
}

/// So far apart are the first samples.
const APART: Duration = Duration::from_millis(100);
/// Where there would be more, every second one goes.
const MOST_SAMPLES: usize = 2000;

impl Default for Samples {
    fn default() -> Self {
        Samples { all: Vec::new(), apart: APART }
    }
}

impl Samples {
    /// Whether one is due at this moment.
    pub fn are_due(&self, at: Duration) -> bool {
        self.all.last().is_none_or(|s| at.saturating_sub(s.at) >= self.apart)
    }

    /// Adds one.
    pub fn push(&mut self, sample: Sample) {
        if self.all.len() >= MOST_SAMPLES {
            let mut is_kept = false;
            self.all.retain(|_| {
                is_kept = !is_kept;
                is_kept
            });
            self.apart *= 2;
        }
        self.all.push(sample);
    }
}

impl std::ops::Deref for Samples {
    type Target = [Sample];
    fn deref(&self) -> &[Sample] {
        &self.all
    }
}

/// Everything that a drill recorded.
#[derive(Clone, PartialEq, Debug)]
pub struct Record {
    /// What was asked for.
    pub scenario: Scenario,
    /// Of the plan and the load.
    pub seed: u64,
    /// How long each scenario was to last.
    pub length: Duration,
    /// Threads of the load.
    pub threads: usize,
    /// How long a call waits for a member.
    pub deadline: Option<Duration>,
    /// The configured group; `None`: a throw-away one.
    pub group: Option<String>,
    /// The members' names.
    pub members: Vec<String>,
    /// How long the load lasted.
    pub lasted: Duration,
    /// What was played.
    pub played: Vec<Played>,
    /// What was done.
    pub tally: Tally,
    /// In order.
    pub changes: Vec<Change>,
    /// In the order in which they began.
    pub faults: Vec<Fault>,
    /// In order; the last one is of the end.
    pub samples: Samples,
    /// Members that were not up at the end.
    pub away: Vec<String>,
    /// Threads of the load, and members, that were in a call that did not end.
    pub hung: usize,
    /// Whether somebody ended the drill before its time.
    pub interrupted: bool,
    /// Why the plan was not played to its end otherwise, in words.
    pub cut_short: Option<String>,
    /// How many objects that were made, and not destroyed, were looked for on every token in the end.
    pub kept: usize,
    /// What was wrong with them, in words.
    pub astray: Vec<String>,
    /// How many events of the group did not reach the drill: changes of health may be among them.
    pub missed: u64,
    /// What is left on a configured group of the drill's own objects, in words.
    pub left: Option<String>,
}

impl Record {
    /// Of a drill that begins.
    pub fn new(options: &Options, group: Option<String>, members: Vec<String>) -> Self {
        let Options { scenario, length, threads, seed, deadline, .. } = *options;
        Record {
            scenario,
            seed,
            length,
            threads,
            deadline,
            group,
            members,
            lasted: Duration::ZERO,
            played: Vec::new(),
            tally: Tally::default(),
            changes: Vec::new(),
            faults: Vec::new(),
            samples: Samples::default(),
            away: Vec::new(),
            hung: 0,
            interrupted: false,
            cut_short: None,
            kept: 0,
            astray: Vec::new(),
            missed: 0,
            left: None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    pub(crate) fn operation(begun: u64, took: u64, answer: Answer) -> Operation {
        Operation { begun: ms(begun), took: ms(took), kind: Kind::Rsa, answer }
    }

    pub(crate) fn change(at: u64, member: usize, from: State, to: State) -> Change {
        Change { at: ms(at), member, from, to }
    }

    pub(crate) fn fault(member: usize, from: u64, to: Option<u64>) -> Fault {
        let (scenario, how) = (Scenario::Kill, How::Killed);
        Fault { scenario, member, how, from: ms(from), to: to.map(ms) }
    }

    /// Two members; a right answer each ten milliseconds for a second.
    pub(crate) fn record() -> Record {
        let options = Options {
            scenario: Scenario::Kill,
            members: 2,
            length: ms(1000),
            threads: 1,
            seed: 5,
            deadline: Some(ms(300)),
            patience: ms(1000),
        };
        let mut record = Record::new(&options, None, vec!["a".into(), "b".into()]);
        record.lasted = ms(1000);
        record.played.push(Played { scenario: Scenario::Kill, from: ms(0), to: ms(1000) });
        record.samples.push(Sample { at: ms(0), served: vec![0, 0], held: None });
        record.samples.push(Sample { at: ms(1000), served: vec![60, 41], held: None });
        done(&mut record, (0..100).map(|i| operation(i * 10, 2, Answer::Right)));
        record
    }

    /// These were done besides.
    pub(crate) fn done(record: &mut Record, operations: impl IntoIterator<Item = Operation>) {
        record.tally.add(operations);
        record.settle(Duration::MAX);
    }

    #[test]
    fn samples_of_a_day_are_not_many_and_are_of_the_whole_day() {
        let mut samples = Samples::default();
        for n in 0..864_000 {
            if samples.are_due(ms(n * 100)) {
                samples.push(Sample { at: ms(n * 100), served: vec![n], held: None });
            }
        }
        assert!((MOST_SAMPLES / 2..=MOST_SAMPLES).contains(&samples.len()));
        let apart = samples.apart;
        assert!(samples.windows(2).all(|w| w[1].at - w[0].at <= apart), "{apart:?}");
        assert_eq!(samples[0].at, ms(0));
        assert!(samples.last().unwrap().at > ms(86_000_000));
    }

    /// The first member is killed, noticed and back.
    pub(crate) fn with_a_fault() -> Record {
        let mut record = record();
        record.faults.push(fault(0, 200, Some(400)));
        record.changes.extend([
            change(205, 0, State::Up, State::Suspect),
            change(206, 0, State::Suspect, State::Down),
            change(440, 0, State::Down, State::Syncing),
            change(450, 0, State::Syncing, State::Up),
        ]);
        record
    }
}
