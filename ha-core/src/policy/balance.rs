//! Which member serves next: a plan from a snapshot.
//!
//! Every candidate is looked at: with at most 32 members a full scan is cheaper and better than two random choices.

/// How members are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Balance {
    /// The fewest outstanding operations, ties in turn.
    #[default]
    LeastBusy,
    /// Each in turn.
    RoundRobin,
    /// The first in the configuration.
    Primary,
}

/// The most members of a group.
pub const MAX_MEMBERS: usize = 32;

/// A member as the plan sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Up, and able to serve the operation.
    pub usable: bool,
    /// Serves only when no active member does.
    pub standby: bool,
    /// Has just come back, and stands aside in this turn for those that were here.
    pub aside: bool,
    /// Outstanding operations.
    pub load: u32,
    /// Its place in the configuration, which may be another one than its index where that has changed.
    pub place: u8,
}

/// Members in the order to try them. No allocation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    order: [u8; MAX_MEMBERS],
    len: u8,
    next: u8,
}

impl Plan {
    /// The members of another plan after those of this one, each once.
    pub fn and_then(mut self, other: Plan) -> Plan {
        for index in other {
            let len = usize::from(self.len);
            let is_there = self.order.iter().take(len).any(|i| usize::from(*i) == index);
            if !is_there && let Some(place) = self.order.get_mut(len) {
                *place = index as u8;
                self.len += 1;
            }
        }
        self
    }
}

impl Iterator for Plan {
    type Item = usize;

    /// The index of the next member to try.
    fn next(&mut self) -> Option<usize> {
        let index = self.order.get(usize::from(self.next)).filter(|_| self.next < self.len)?;
        self.next += 1;
        Some(usize::from(*index))
    }
}

/// Operations that stay where the one before them was, if the balance allows it, until a new plan is made: a member's
/// code and data stay in the processor's caches, and a plan costs more than a look.
pub const STAYS: u8 = 127;

/// Whether the next operation may stay with the member `mine` (its place, and how it is) where the one before it was,
/// without a new plan: no other one has less to do, or is to be preferred. Asked at most [`STAYS`] times in a row, so
/// that ties still go round.
#[inline(always)]
#[expect(
    clippy::explicit_counter_loop,
    reason = "on the way of every operation: an adapter is a call more here"
)]
pub fn may_stay(
    balance: Balance,
    mine: (usize, Candidate),
    candidates: impl Iterator<Item = Candidate>,
) -> bool {
    if balance == Balance::RoundRobin || !mine.1.usable {
        return false;
    }
    let mut index = 0;
    for c in candidates {
        let better = match balance {
            Balance::LeastBusy => (c.standby, c.aside, c.load) < (mine.1.standby, mine.1.aside, mine.1.load),
            Balance::Primary => (c.standby, c.aside, c.place) < (mine.1.standby, mine.1.aside, mine.1.place),
            Balance::RoundRobin => true,
        };
        if better && c.usable && index != mine.0 {
            return false;
        }
        index += 1;
    }
    true
}

/// Orders the usable candidates: active ones first, those that stand aside last among them, then standby ones, which are
/// there for when every active one fails during the call. `turn` is a counter; `preferred` comes first if it is usable
/// and not a standby behind active ones.
/// Candidates beyond [`MAX_MEMBERS`] are left out.
pub fn plan(balance: Balance, candidates: &[Candidate], turn: u64, preferred: Option<usize>) -> Plan {
    let candidates = candidates.get(..MAX_MEMBERS).unwrap_or(candidates);
    let mut plan = Plan { order: [0; MAX_MEMBERS], len: 0, next: 0 };
    let usable = candidates.iter().filter(|c| c.usable).count();
    if usable == 0 {
        return plan;
    }
    let start = (turn % usable as u64) as usize;
    let key = |index: usize, rank: usize| {
        let candidate = candidates.get(index);
        // The distance from whose turn it is, among the usable ones: a member that is down passes its turn on evenly.
        let distance = (rank + usable - start) % usable;
        let (load, tie) = match balance {
            Balance::LeastBusy => (candidate.map_or(0, |c| c.load), distance),
            Balance::RoundRobin => (0, distance),
            Balance::Primary => (0, candidate.map_or(0, |c| usize::from(c.place))),
        };
        (
            candidate.is_some_and(|c| c.standby),
            preferred != Some(index),
            candidate.is_some_and(|c| c.aside),
            load,
            tie,
        )
    };
    // Sorted in as they come: there are two or three of them most of the time. `ranks` goes along with `order`.
    let mut ranks = [0u8; MAX_MEMBERS];
    for (index, _) in candidates.iter().enumerate().filter(|(_, c)| c.usable) {
        let rank = usize::from(plan.len);
        let mine = key(index, rank);
        let sorted = plan.order.iter().zip(&ranks).take(rank);
        let place = sorted.take_while(|(i, r)| key(usize::from(**i), usize::from(**r)) <= mine).count();
        plan.order.copy_within(place..rank, place + 1);
        ranks.copy_within(place..rank, place + 1);
        if let (Some(i), Some(r)) = (plan.order.get_mut(place), ranks.get_mut(place)) {
            (*i, *r) = (index as u8, rank as u8);
        }
        plan.len += 1;
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let how = (any::<bool>(), any::<bool>(), any::<bool>(), 0u32..5);
        let places = Just((0..MAX_MEMBERS as u8).collect::<Vec<_>>()).prop_shuffle();
        (proptest::collection::vec(how, 0..=MAX_MEMBERS), places).prop_map(|(members, places)| {
            let members = members.into_iter().zip(places);
            members
                .map(|((usable, standby, aside, load), place)| Candidate {
                    usable,
                    standby,
                    aside,
                    load,
                    place,
                })
                .collect()
        })
    }

    fn balances() -> impl Strategy<Value = Balance> {
        prop_oneof![Just(Balance::LeastBusy), Just(Balance::RoundRobin), Just(Balance::Primary)]
    }

    proptest! {
        #[test]
        fn every_usable_member_once_and_no_other(c in candidates(), b in balances(), turn: u64, preferred in proptest::option::of(0usize..40)) {
            let mut named: Vec<usize> = plan(b, &c, turn, preferred).collect();
            named.sort_unstable();
            let usable: Vec<usize> = (0..c.len()).filter(|i| c[*i].usable).collect();
            prop_assert_eq!(named, usable);
        }

        #[test]
        fn no_standby_before_an_active_member(c in candidates(), b in balances(), turn: u64, preferred in proptest::option::of(0usize..40)) {
            let standbys: Vec<bool> = plan(b, &c, turn, preferred).map(|i| c[i].standby).collect();
            prop_assert!(standbys.is_sorted());
        }

        #[test]
        fn who_stands_aside_is_tried_after_those_that_do_not(c in candidates(), b in balances(), turn: u64) {
            let order: Vec<(bool, bool)> = plan(b, &c, turn, None).map(|i| (c[i].standby, c[i].aside)).collect();
            prop_assert!(order.is_sorted());
        }

        #[test]
        fn the_least_busy_active_member_is_picked(c in candidates(), turn: u64) {
            if let Some(pick) = plan(Balance::LeastBusy, &c, turn, None).next() {
                let alike = |x: &&Candidate| x.usable && (x.standby, x.aside) == (c[pick].standby, c[pick].aside);
                let best = c.iter().filter(alike).map(|x| x.load).min();
                prop_assert_eq!(Some(c[pick].load), best);
            }
        }

        #[test]
        fn the_first_of_the_configuration_is_picked_wherever_it_sits(c in candidates(), turn: u64) {
            let order: Vec<_> = plan(Balance::Primary, &c, turn, None).map(|i| (c[i].standby, c[i].aside, c[i].place)).collect();
            prop_assert!(order.is_sorted());
        }

        #[test]
        fn staying_is_never_worse_than_a_plan(c in candidates(), b in balances(), mine in 0usize..MAX_MEMBERS) {
            let Some(own) = c.get(mine) else { return Ok(()) };
            if may_stay(b, (mine, *own), c.iter().copied()) {
                let pick = plan(b, &c, 0, None).next().unwrap();
                prop_assert!(c[mine].usable);
                prop_assert_eq!((c[mine].standby, c[mine].aside), (c[pick].standby, c[pick].aside));
                match b {
                    Balance::Primary => prop_assert_eq!(mine, pick),
                    Balance::LeastBusy => prop_assert_eq!(c[mine].load, c[pick].load),
                    Balance::RoundRobin => prop_assert!(false, "each in turn"),
                }
            }
        }

        #[test]
        fn a_plan_that_puts_mine_first_lets_it_stay(c in candidates(), b in balances()) {
            // Ties apart, which staying decides for whoever is there.
            if b != Balance::RoundRobin && let Some(pick) = plan(b, &c, 0, None).next() {
                prop_assert!(may_stay(b, (pick, c[pick]), c.iter().copied()));
            }
        }

        #[test]
        fn who_is_alone_may_stay(load in 0u32..5, standby: bool) {
            let c = Candidate { usable: true, standby, aside: false, load, place: 0 };
            prop_assert!(may_stay(Balance::LeastBusy, (0, c), [c].into_iter()));
            prop_assert!(may_stay(Balance::Primary, (0, c), [c].into_iter()));
        }

        #[test]
        fn ties_are_broken_evenly(n in 1usize..=MAX_MEMBERS, start in 0u64..1000) {
            let c = vec![Candidate { usable: true, standby: false, aside: false, load: 3, place: 0 }; n];
            let mut picks = vec![0; n];
            for turn in start..start + 10 * n as u64 {
                picks[plan(Balance::LeastBusy, &c, turn, None).next().unwrap()] += 1;
            }
            prop_assert!(picks.iter().all(|p| *p == 10));
        }
    }
}
