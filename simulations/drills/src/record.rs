//! What a drill records: operations, changes of health, faults. Every time is counted from the beginning of the load.

use std::time::Duration;

use ha_core::policy::health::State;
use ha_token::Rv;

use crate::plan::{How, Scenario};

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
}

impl Kind {
    /// Every one.
    pub const ALL: [Kind; 5] = [Kind::Ecdsa, Kind::Rsa, Kind::RsaParts, Kind::Hmac, Kind::HmacParts];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ecdsa => "ECDSA P-256",
            Kind::Rsa => "RSA-2048",
            Kind::RsaParts => "RSA-2048, in parts",
            Kind::Hmac => "HMAC",
            Kind::HmacParts => "HMAC, in parts",
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

/// What each member had served at a moment, since the beginning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sample {
    /// When.
    pub at: Duration,
    /// By member.
    pub served: Vec<u64>,
}

/// Everything that a drill recorded.
#[derive(Clone, PartialEq, Eq, Debug)]
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
    /// The members' names.
    pub members: Vec<String>,
    /// How long the load lasted.
    pub lasted: Duration,
    /// What was played.
    pub played: Vec<Played>,
    /// In the order in which they were begun.
    pub operations: Vec<Operation>,
    /// In order.
    pub changes: Vec<Change>,
    /// In the order in which they began.
    pub faults: Vec<Fault>,
    /// In order; the last one is of the end.
    pub samples: Vec<Sample>,
    /// Members that were not up at the end.
    pub away: Vec<String>,
    /// Threads of the load, and members, that were in a call that did not end.
    pub hung: usize,
    /// Whether somebody ended the drill before its time.
    pub interrupted: bool,
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
        Record {
            scenario: Scenario::Kill,
            seed: 5,
            length: ms(1000),
            threads: 1,
            deadline: Some(ms(300)),
            members: vec!["a".into(), "b".into()],
            lasted: ms(1000),
            played: vec![Played { scenario: Scenario::Kill, from: ms(0), to: ms(1000) }],
            operations: (0..100).map(|i| operation(i * 10, 2, Answer::Right)).collect(),
            changes: Vec::new(),
            faults: Vec::new(),
            samples: vec![
                Sample { at: ms(0), served: vec![0, 0] },
                Sample { at: ms(1000), served: vec![60, 41] },
            ],
            away: Vec::new(),
            hung: 0,
            interrupted: false,
        }
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
