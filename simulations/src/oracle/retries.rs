//! G7: what a process tries again is bounded in each window of time, not over a history: hours of rest allow no storm.

use std::time::Duration;

use crate::member::Refused;
use crate::stage::{Operation, Stage};

/// Retries that any window may have. A window of the group's begins when it likes: two may meet in one of ours.
const FLOOR: usize = 2 * 10;
const WINDOW: Duration = Duration::from_secs(10);
/// Of the calls of a long time, so many fifths are kept for later at the most.
const KEPT: usize = 100;

/// No window has more retries than the calls in it pay for, and a bounded number from before.
pub(super) fn bounded(stage: &Stage) {
    let refused: Vec<Vec<Refused>> = stage.lines.iter().map(|l| l.refused()).collect();
    let operations = stage.operations();
    for (process, calls) in stage.calls() {
        let its = operations.iter().filter(|o| o.process == process);
        let mut paid: Vec<Duration> = its.flat_map(|o| further(o, &refused)).collect();
        paid.sort_unstable();
        if let Err(how) = judge(&paid, &calls) {
            stage.broken("G7", format!("process {process}: {how}"));
        }
    }
}

/// When an operation was tried again beyond its first retry. What is made again at once on the same member, in a fresh
/// session, is one try.
fn further(operation: &Operation, refused: &[Vec<Refused>]) -> Vec<Duration> {
    let mut met: Vec<(Duration, usize)> = Vec::new();
    for (member, refused) in refused.iter().enumerate() {
        let within =
            |r: &&Refused| r.thread == operation.thread && operation.from <= r.at && r.at <= operation.until;
        met.extend(refused.iter().filter(within).map(|r| (r.at, member)));
    }
    met.sort_unstable();
    met.dedup_by_key(|(_, member)| *member);
    met.into_iter().skip(2).map(|(at, _)| at).collect()
}

fn judge(paid: &[Duration], calls: &[Duration]) -> Result<(), String> {
    for (n, from) in paid.iter().enumerate() {
        let until = *from + WINDOW;
        let retries = paid[n..].iter().take_while(|at| **at < until).count();
        let before = calls.partition_point(|at| at < from);
        let within = calls.partition_point(|at| *at < until) - before;
        let most = FLOOR + within / 5 + (before / 5).min(KEPT);
        if retries > most {
            return Err(format!("{retries} retries in ten seconds, from {from:?} on, of {within} calls"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn hours_of_rest_allow_no_storm() {
        let calls: Vec<_> = (0..50).map(|n| ms(3_600_000 + n)).collect();
        let storm: Vec<_> = (0..31).map(|n| ms(3_600_000 + n)).collect();
        assert!(judge(&storm, &calls).is_err());
        assert_eq!(judge(&storm[..30], &calls), Ok(()));
        let slow: Vec<_> = (0..31).map(|n| ms(3_600_000 + 1000 * n)).collect();
        assert_eq!(judge(&slow, &calls), Ok(()));
    }

    #[test]
    fn a_retry_on_a_third_member_is_a_further_one() {
        let refused = |at| Refused { at: ms(at), thread: "app0".into() };
        let operation = Operation { process: 1, thread: "app0".into(), from: ms(10), until: ms(20) };
        let other = Refused { at: ms(14), thread: "app1".into() };
        // Twice on the first, as a fresh session is tried; what others meet, and what was before, is not its.
        let met = [vec![refused(9), refused(11), refused(12)], vec![refused(13), other], vec![refused(15)]];
        assert_eq!(further(&operation, &met), [ms(15)]);
    }
}
