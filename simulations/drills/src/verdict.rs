//! What came of a drill: the contract's document, and one sentence.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::record::Record;
use crate::tally::micros;

/// The contract's document of a drill.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Document {
    schema: u8,
    scenario: &'static str,
    seed: u64,
    operations: u64,
    failed: u64,
    wrong: u64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
    failover_us: Option<u64>,
    recovery_us: Option<u64>,
    members: BTreeMap<String, u64>,
}

impl Record {
    /// Whether nothing hung, failed or went wrong unexpectedly, every member came back, and the plan was played and seen
    /// to its end.
    pub fn is_well(&self) -> bool {
        let figures = self.figures();
        let is_whole = self.cut_short.is_none() && self.missed == 0 && self.astray.is_empty();
        let is_clean = figures.failed == 0 && figures.wrong == 0 && self.away.is_empty() && self.hung == 0;
        // Where nothing was done nothing was seen.
        is_whole && is_clean && self.left.is_none() && (figures.operations > 0 || self.interrupted)
    }

    /// The contract's document.
    pub fn document(&self) -> Document {
        let figures = self.figures();
        Document {
            schema: 1,
            scenario: self.scenario.name(),
            seed: self.seed,
            operations: figures.operations,
            failed: figures.failed,
            wrong: figures.wrong,
            p50_us: figures.percentile(50.0),
            p99_us: figures.percentile(99.0),
            p999_us: figures.percentile(99.9),
            max_us: figures.latencies.max(),
            failover_us: figures.failover.map(micros),
            recovery_us: figures.recovery.map(micros),
            members: self.served(),
        }
    }

    /// What came of it, in one sentence.
    pub fn verdict(&self) -> String {
        let figures = self.figures();
        let mut bad = Vec::new();
        if figures.failed > 0 {
            bad.push(format!("{} of {} operations failed", figures.failed, figures.operations));
        }
        if figures.wrong > 0 {
            bad.push(format!("{} answers were wrong", figures.wrong));
        }
        if !self.away.is_empty() {
            bad.push(format!("not every member came back ({})", self.away.join(", ")));
        }
        if self.hung > 0 {
            bad.push(format!("{} calls did not end", self.hung));
        }
        if figures.operations == 0 && !self.interrupted {
            bad.push("no operation was done".into());
        }
        bad.extend(self.astray.iter().cloned());
        bad.extend(self.left.iter().cloned());
        if let Some(why) = &self.cut_short {
            bad.push(format!("the drill was cut short: {why}"));
        }
        if self.missed > 0 {
            let words = "changes of the members' health were missed: what failed as it had to is not known";
            bad.push(format!("{} {words}", self.missed));
        }
        let ended = if self.interrupted { "Interrupted before its end: " } else { "" };
        if !bad.is_empty() {
            return format!("{ended}{}.", bad.join(", "));
        }
        let mut good = format!(
            "{ended}{} operations, none failed and no answer was wrong, through {} fault{}",
            figures.operations,
            self.faults.len(),
            if self.faults.len() == 1 { "" } else { "s" }
        );
        if figures.expected > 0 {
            let longest = figures.expected_longest.map(shown).unwrap_or_default();
            good.push_str(&format!(
                "; while every member was broken {} calls failed as they had to, each within {longest}",
                figures.expected
            ));
        }
        if let Some(percent) = self.served_while_slow() {
            good.push_str(&format!("; who was slow served {percent} % meanwhile"));
        }
        if self.kept > 0 {
            good.push_str(&format!("; the {} objects that were kept are on every member", self.kept));
        }
        if !self.interrupted {
            good.push_str("; every member came back");
        }
        good.push('.');
        good
    }
}

/// A time for people.
pub fn shown(time: Duration) -> String {
    let us = micros(time);
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{ms, record, with_a_fault};

    #[test]
    fn the_document_is_the_contracts() {
        let document = serde_json::to_value(with_a_fault().document()).unwrap();
        let wanted = serde_json::json!({
            "schema": 1, "scenario": "kill", "seed": 5, "operations": 100, "failed": 0, "wrong": 0,
            "p50_us": 2000, "p99_us": 2000, "p999_us": 2000, "max_us": 2000,
            "failover_us": 5000, "recovery_us": 50_000, "members": {"a": 60, "b": 41},
        });
        assert_eq!(document, wanted);
        let document = serde_json::to_value(record().document()).unwrap();
        assert!(document["failover_us"].is_null() && document["recovery_us"].is_null());
    }

    #[test]
    fn what_is_bad_is_said() {
        let mut record = with_a_fault();
        assert!(record.verdict().contains("none failed") && record.verdict().contains("1 fault"));
        record.away.push("b".into());
        record.hung = 2;
        record.interrupted = true;
        let verdict = record.verdict();
        assert!(verdict.starts_with("Interrupted") && verdict.contains("(b)") && verdict.contains("2 calls"));
        assert!(!record.is_well());
    }

    #[test]
    fn a_plan_that_was_cut_short_and_health_that_was_missed_are_bad_also_where_nothing_failed() {
        let mut record = with_a_fault();
        record.cut_short = Some("a is lost".into());
        assert!(
            !record.is_well() && record.verdict().contains("cut short: a is lost"),
            "{}",
            record.verdict()
        );
        let mut record = with_a_fault();
        record.astray.push("a: 1 objects are missing".into());
        assert!(!record.is_well() && record.verdict().contains("are missing"), "{}", record.verdict());
        let mut record = with_a_fault();
        record.missed = 2;
        assert!(!record.is_well() && record.verdict().contains("2 changes"), "{}", record.verdict());
    }

    #[test]
    fn a_drill_in_which_nothing_was_done_or_something_is_left_is_bad_news() {
        let mut idle = record();
        idle.tally = crate::tally::Tally::default();
        assert!(!idle.is_well() && idle.verdict().contains("no operation was done"), "{}", idle.verdict());
        idle.interrupted = true;
        assert!(idle.is_well(), "{}", idle.verdict());
        let mut record = record();
        record.left = Some("3 objects of the drill could not be removed".into());
        assert!(!record.is_well() && record.verdict().contains("3 objects"), "{}", record.verdict());
    }

    #[test]
    fn times_are_shown_in_their_unit() {
        assert_eq!([ms(0), ms(2), ms(2500)].map(shown), ["0 µs", "2.0 ms", "2.50 s"]);
    }
}
