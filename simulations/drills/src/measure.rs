//! Figures from what was recorded: what the group made of each fault, and when failures were expected. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use ha_core::policy::health::State;

use crate::held::Holding;
use crate::plan::How;
use crate::record::{Change, Fault, Played, Record};
use crate::tally::{Figures, Window};

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
        let was_up = self.was_up(fault);
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

    /// Whether the member was used when it was broken.
    fn was_up(&self, fault: &Fault) -> bool {
        let before =
            self.changes.iter().filter(|c| c.member == fault.member).take_while(|c| c.at < fault.from);
        before.last().is_none_or(|c| c.to == State::Up)
    }

    /// Whether every member whose connection a fault has ended was found to be away since its last one.
    pub fn all_found_out(&self) -> bool {
        let ends = |how| matches!(how, How::Killed | How::Lost | How::Locked);
        let is_last =
            |i: usize, fault: &Fault| !self.faults.iter().skip(i + 1).any(|f| f.member == fault.member);
        let faults = self.faults.iter().enumerate().filter(|(i, f)| ends(f.how) && is_last(*i, f));
        faults.into_iter().all(|(_, fault)| {
            let left = |c: &Change| c.member == fault.member && c.at >= fault.from && c.from == State::Up;
            !self.was_up(fault) || self.changes.iter().any(left)
        })
    }

    /// When every member was broken: until the first one was used again. Calls fail then, as they must.
    pub fn windows(&self) -> Vec<Window> {
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

    /// Counts what was done, as far as it had ended by then. What is not counted yet is in no figure.
    pub fn settle(&mut self, until: Duration) {
        let windows = self.windows();
        self.tally.settle(until, &self.played, &windows);
    }

    /// The figures of everything.
    pub fn figures(&self) -> Figures {
        self.with_courses(self.tally.figures(self.scenario), Duration::ZERO, Duration::MAX)
    }

    /// The figures of each scenario that was played.
    pub fn by_scenario(&self) -> Vec<Figures> {
        let figures = |(place, played): (usize, &Played)| {
            self.with_courses(self.tally.part(place, played.scenario), played.from, played.to)
        };
        self.played.iter().enumerate().map(figures).collect()
    }

    fn with_courses(&self, mut figures: Figures, from: Duration, to: Duration) -> Figures {
        let courses = self.courses();
        let of_it = || courses.iter().filter(|c| c.fault.from >= from && c.fault.from < to);
        figures.failover = of_it().filter_map(|c| c.noticed).max();
        figures.recovery = of_it().filter_map(|c| c.back).max();
        figures
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

    /// Which part of what was served, in percent, members served while they were slow; `None` where none was for long.
    pub fn served_while_slow(&self) -> Option<u64> {
        let (mut own, mut all) = (0, 0);
        for fault in self.faults.iter().filter(|f| f.how == How::Slow) {
            let to = fault.to.unwrap_or(Duration::MAX);
            for pair in self.samples.windows(2) {
                let [before, after] = pair else { continue };
                if before.at < fault.from || after.at > to {
                    continue;
                }
                let served = after.served.iter().zip(&before.served).map(|(a, b)| a.saturating_sub(*b));
                for (member, count) in served.enumerate() {
                    all += count;
                    own += if member == fault.member { count } else { 0 };
                }
            }
        }
        (own * 100).checked_div(all)
    }

    /// What this process held while the load was on; `None` where the system does not tell.
    pub fn held(&self) -> Option<Holding> {
        let known: Vec<_> = self.samples.iter().filter_map(|s| Some((s.at, s.held?))).collect();
        Holding::of(&known, self.lasted)
    }

    /// Operations served by each member.
    pub fn served(&self) -> BTreeMap<String, u64> {
        let of = |i: usize| self.samples.last().and_then(|s| s.served.get(i)).copied().unwrap_or(0);
        self.members.iter().enumerate().map(|(i, name)| (name.clone(), of(i))).collect()
    }
}

#[cfg(test)]
mod tests {
    use ha_token::Rv;

    use super::*;
    use crate::plan::Scenario;
    use crate::record::tests::{change, done, fault, ms, operation, record, with_a_fault};
    use crate::record::{Answer, Sample, Samples};
    use crate::tally::{Spread, Tally};

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
    fn who_was_restarted_is_found_out_once_it_was_not_used() {
        let mut record = record();
        assert!(record.all_found_out());
        record.faults.push(fault(0, 200, Some(201)));
        assert!(!record.all_found_out());
        record.changes.push(change(205, 0, State::Up, State::Suspect));
        assert!(record.all_found_out());
        // It is not back when it is broken again.
        record.faults.push(fault(0, 220, Some(221)));
        assert!(record.all_found_out());
        record.changes.push(change(240, 0, State::Syncing, State::Up));
        record.faults.push(fault(0, 300, Some(301)));
        assert!(!record.all_found_out());
        record.faults.push(Fault { how: How::Slow, ..fault(1, 400, None) });
        record.changes.push(change(305, 0, State::Up, State::Suspect));
        assert!(record.all_found_out(), "one that is slow is used all the time");
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
        done(
            &mut record,
            [
                operation(495, 10, Answer::Failed(Rv::DEVICE_ERROR)),
                operation(510, 30, Answer::Failed(Rv::DEVICE_ERROR)),
                operation(639, 1, Answer::Failed(Rv::DEVICE_ERROR)),
            ],
        );
        let figures = record.figures();
        assert_eq!((figures.failed, figures.expected), (0, 3));
        assert_eq!(figures.expected_longest, Some(ms(30)));
        assert_eq!(figures.operations, 100);
        assert!(record.is_well());
        for (begun, answer) in
            [(641, Answer::Failed(Rv::DEVICE_ERROR)), (490, Answer::Failed(Rv::DEVICE_ERROR))]
        {
            let mut record = record.clone();
            done(&mut record, [operation(begun, 2, answer)]);
            assert_eq!(record.figures().failed, 1, "{begun}");
            assert!(!record.is_well());
        }
        // A wrong answer never is.
        done(&mut record, [operation(550, 2, Answer::Wrong)]);
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
        done(&mut record, [operation(300, 5, Answer::Failed(Rv::DEVICE_ERROR))]);
        assert_eq!(record.figures().failed, 1);
        assert_eq!(record.figures().errors.values().sum::<u64>(), 1);
        assert!(record.verdict().contains("1 of 101 operations failed"), "{}", record.verdict());
    }

    #[test]
    fn percentiles_pauses_and_pieces() {
        let mut record = record();
        done(&mut record, [operation(995, 500, Answer::Right)]);
        let figures = record.figures();
        assert_eq!(figures.percentile(50.0), 2000);
        let longest = figures.latencies.max();
        assert!((500_000..501_000).contains(&longest), "{longest}");
        assert_eq!(figures.pause, ms(1495 - 992));
        let bins = record.tally.bins(record.lasted);
        assert_eq!((bins.width, bins.right.len()), (ms(50), 20));
        assert_eq!(bins.right.iter().sum::<u64>(), 100);
        assert_eq!(bins.latencies[0], Some(Spread { median: 2000, p99: 2000, longest: 2000 }));
        let last = bins.latencies[19].unwrap();
        assert_eq!((last.p99, last.longest), (500_000, 500_000));
        assert!((2000..2020).contains(&last.median), "exact to a hundredth: {last:?}");
    }

    #[test]
    fn scenarios_have_figures_of_their_own_that_add_up() {
        let mut record = with_a_fault();
        record.scenario = Scenario::All;
        let played = |scenario, from, to| Played { scenario, from: ms(from), to: ms(to) };
        record.played = vec![played(Scenario::Kill, 3, 500), played(Scenario::Hang, 500, 980)];
        record.tally = Tally::default();
        done(&mut record, (0..100).map(|i| operation(i * 10, 2, Answer::Right)));
        let [kill, hang] = &*record.by_scenario() else { panic!("two scenarios") };
        assert_eq!((kill.operations, hang.operations), (50, 50));
        assert_eq!((kill.failover, hang.failover), (Some(ms(5)), None));
    }

    #[test]
    fn what_a_slow_member_served_is_counted_while_it_was_slow() {
        let mut record = record();
        assert_eq!(record.served_while_slow(), None);
        record.samples = Samples::default();
        for (at, served) in
            [(0, [0, 0]), (100, [50, 50]), (200, [60, 140]), (300, [65, 235]), (400, [115, 285])]
        {
            record.samples.push(Sample { at: ms(at), served: served.to_vec(), held: None });
        }
        record.faults.push(Fault { how: How::Slow, ..fault(0, 90, Some(310)) });
        assert_eq!(record.served_while_slow(), Some(7), "15 of 200");
        assert!(record.verdict().contains("served 7 %"), "{}", record.verdict());
    }
}
