//! What a run reached of the core's tables: each row of the fault table, each change of a member's health, and each step
//! of the protocols at which a process was killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use ha_core::policy::failure::{Class, classify, on_fresh_session};
use ha_core::policy::health::{Event, Health, Settings, State, Transition, Until};
use ha_core::seam::turns::{Reached, Step};
use ha_token::{Function, Rv};

use crate::scenario::Scenario;

/// What can happen to a member in most histories. Not the operator's taking a member out, nor a module that is this library
/// itself, which is quarantined until somebody wants it back, nor that somebody wants a suspect one back: histories have none. A member that signs wrongly is too,
/// and is up or suspect before that.
const EVENTS: [Event; 8] = [
    Event::CallFailed(Class::Member),
    Event::ProbeSucceeded,
    Event::ProbeFailed,
    Event::Renew,
    Event::Connected,
    Event::CaughtUp,
    Event::Quarantine(Until::Mended),
    Event::Recover,
];

/// Every row that there is. The core's own functions say which: there is no second table to keep.
pub fn rows() -> BTreeSet<Reached> {
    let mut rows = BTreeSet::new();
    for rv in Rv::ALL {
        for function in Function::ALL {
            let class = classify(*function, *rv);
            rows.insert(Reached::Fault(*rv, class));
            if class == Class::Session {
                rows.insert(Reached::Fresh(*rv, on_fresh_session(*rv)));
            }
        }
    }
    rows.extend(changes().into_iter().map(Reached::Health));
    rows.extend(Step::ALL.iter().copied().map(Reached::Died));
    rows
}

/// Every change of health that the events can cause, found by trying each in each state.
fn changes() -> BTreeSet<Transition> {
    let second = Duration::from_secs(1);
    let mut changes = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut next = vec![Health::new(Settings { interval: second, max_interval: second, takes_back: true })];
    while let Some(health) = next.pop() {
        if seen.insert(health.state()) {
            for event in EVENTS {
                let mut after = health.clone();
                let wanted = |t: &Transition| (t.from, t.cause) == (State::Suspect, Event::Recover);
                changes.extend(after.on(event, second, 0).filter(|t| !wanted(t)));
                next.push(after);
            }
        }
    }
    changes
}

/// What was reached, and how often.
#[derive(Clone, Debug, Default)]
pub struct Coverage(BTreeMap<Reached, u64>);

impl Coverage {
    /// Adds what one history reached.
    pub fn add(&mut self, reached: &BTreeMap<Reached, u64>) {
        for (what, n) in reached {
            *self.0.entry(*what).or_default() += n;
        }
    }

    /// The rows that were never reached, in words; without those that nothing can reach yet.
    pub fn missing(&self) -> Vec<String> {
        let owed = |row: &Reached| matches!(row, Reached::Died(_)) && Scenario::Crashes.is_owed();
        rows().into_iter().filter(|row| !self.0.contains_key(row) && !owed(row)).map(words).collect()
    }

    /// How many rows were reached, and how many there are.
    pub fn count(&self) -> (usize, usize) {
        let rows = rows();
        (rows.iter().filter(|row| self.0.contains_key(row)).count(), rows.len())
    }
}

/// A line for each row, with how often it was reached.
impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in rows() {
            writeln!(f, "{:>12}  {}", self.0.get(&row).copied().unwrap_or_default(), words(row))?;
        }
        Ok(())
    }
}

fn words(row: Reached) -> String {
    match row {
        Reached::Fault(rv, class) => format!("{rv} is {class:?}"),
        Reached::Fresh(rv, class) => format!("{rv}, again on a fresh session, is {class:?}"),
        Reached::Died(step) => format!("a process died after the step {step:?}"),
        Reached::Health(t) => format!("{} to {}: {}", t.from, t.to, t.cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_and_every_state_has_a_row() {
        let rows = rows();
        for rv in Rv::ALL {
            assert!(rows.iter().any(|r| matches!(r, Reached::Fault(row, _) if row == rv)), "{rv}");
        }
        for state in [State::Up, State::Suspect, State::Down, State::Syncing, State::Quarantined] {
            assert!(
                rows.iter().any(|r| matches!(r, Reached::Health(t) if t.from == state))
                    && rows.iter().any(|r| matches!(r, Reached::Health(t) if t.to == state)),
                "{state}"
            );
        }
    }

    #[test]
    fn what_was_not_reached_is_named() {
        let mut coverage = Coverage::default();
        let row = Reached::Fault(Rv::DEVICE_ERROR, Class::Member);
        coverage.add(&BTreeMap::from([(row, 3)]));
        let missing = coverage.missing();
        let owed = if Scenario::Crashes.is_owed() { Step::ALL.len() } else { 0 };
        assert_eq!(coverage.count(), (1, missing.len() + owed + 1));
        assert!(missing.contains(&"CKR_DEVICE_REMOVED is Member".to_owned()), "{missing:?}");
        assert!(coverage.to_string().contains("           3  CKR_DEVICE_ERROR is Member\n"), "{coverage}");
    }
}
