//! The members that a group has: each in a seat that it keeps, whoever joins or leaves while the group is running; and what
//! a changed configuration asks for.
//!
//! What stands for a member elsewhere, a bit or a number, is its seat's number. A seat is never given to another member: what
//! is still known of one that has left is not taken for somebody else's.

use std::ops::Index;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::Member;
use crate::config::{MemberConfig, Role};
use crate::policy::balance::MAX_MEMBERS;

/// The members of a group in the order of their seats. Reading takes no lock.
pub struct Roster {
    seats: [OnceLock<Arc<Member>>; MAX_MEMBERS],
    taken: AtomicUsize,
}

impl Roster {
    /// The first members, each in the seat that is its index.
    pub(super) fn new(members: impl Iterator<Item = Arc<Member>>) -> Self {
        let roster = Roster { seats: [const { OnceLock::new() }; MAX_MEMBERS], taken: AtomicUsize::new(0) };
        for member in members {
            roster.seat(member);
        }
        roster
    }

    /// Gives a member the seat that is its index, the next free one. Members are seated by one thread at a time. Answers whether
    /// there was one.
    pub(super) fn seat(&self, member: Arc<Member>) -> bool {
        let next = self.next();
        let is_seated =
            member.index == next && self.seats.get(next).is_some_and(|seat| seat.set(member).is_ok());
        if is_seated {
            self.taken.store(next + 1, Ordering::Release);
        }
        is_seated
    }

    /// The number of the next free seat; [`MAX_MEMBERS`]: there is none.
    pub(super) fn next(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }

    /// Everybody who ever had a seat, also those that have left: the position is the seat's number.
    #[inline]
    pub(super) fn seats(&self) -> impl Iterator<Item = &Arc<Member>> + Clone {
        self.seats.iter().map_while(OnceLock::get)
    }

    /// The members of now.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Member>> + Clone {
        self.seats().filter(|member| !member.has_left())
    }

    /// The same in the order of the file.
    pub fn in_order(&self) -> impl Iterator<Item = &Arc<Member>> {
        let mut members: Vec<_> = self.iter().collect();
        members.sort_by_key(|member| member.place());
        members.into_iter()
    }

    /// How many members there are now.
    #[expect(clippy::len_without_is_empty, reason = "a group has members")]
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// The first member of now.
    pub fn first(&self) -> Option<&Arc<Member>> {
        self.iter().next()
    }

    /// Who has or had a seat.
    #[inline]
    pub fn get(&self, seat: usize) -> Option<&Arc<Member>> {
        self.seats.get(seat)?.get()
    }
}

impl Index<usize> for Roster {
    type Output = Arc<Member>;

    /// Who has or had a seat.
    ///
    /// # Panics
    /// Nobody ever had it.
    fn index(&self, seat: usize) -> &Arc<Member> {
        match self.get(seat) {
            Some(member) => member,
            None => panic!("no member has seat {seat}"),
        }
    }
}

/// What a changed configuration asks of the members that there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The member of this seat leaves.
    Leaves(usize),
    /// The one at this place of the file joins.
    Joins(usize),
    /// The member of a seat stays: its place in the file, and what it is for.
    Stays {
        /// Whose.
        seat: usize,
        /// Its place in the file from now on.
        place: usize,
        /// Active or standby.
        role: Role,
    },
}

/// What is to be done for the members of now, by their seats, to be those of a configuration: first who leaves. A member whose
/// token, module, surroundings or PIN are said otherwise is another one; one that has another place or role is not.
pub(super) fn changes<'a>(
    now: impl Iterator<Item = (usize, &'a MemberConfig)> + Clone,
    wanted: &[MemberConfig],
) -> Vec<Change> {
    let is_same = |a: &MemberConfig, b: &MemberConfig| *a == MemberConfig { role: a.role, ..b.clone() };
    let gone = now.clone().filter(|(_, m)| !wanted.iter().any(|w| is_same(m, w)));
    let leaves = gone.map(|(seat, _)| Change::Leaves(seat));
    let others = wanted.iter().enumerate().map(|(place, w)| match now.clone().find(|(_, m)| is_same(m, w)) {
        Some((seat, _)) => Change::Stays { seat, place, role: w.role },
        None => Change::Joins(place),
    });
    leaves.chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ha_token::Selector;

    fn member(name: &str) -> MemberConfig {
        let selector = Selector { label: Some(name.into()), ..Selector::default() };
        MemberConfig::new("/m.so", selector)
    }

    fn asked(now: &[(usize, MemberConfig)], wanted: &[MemberConfig]) -> Vec<Change> {
        changes(now.iter().map(|(seat, m)| (*seat, m)), wanted)
    }

    #[test]
    fn who_is_named_no_more_leaves_and_who_is_named_joins() {
        let now = [(0, member("a")), (3, member("b"))];
        let stays = |seat, place| Change::Stays { seat, place, role: Role::Active };
        assert_eq!(asked(&now, &[member("a"), member("b")]), [stays(0, 0), stays(3, 1)]);
        assert_eq!(asked(&now, &[member("b")]), [Change::Leaves(0), stays(3, 0)]);
        // Another one in the first one's place.
        let wanted = [member("c"), member("b")];
        assert_eq!(asked(&now, &wanted), [Change::Leaves(0), Change::Joins(0), stays(3, 1)]);
    }

    #[test]
    fn another_role_is_the_same_member_and_another_token_is_not() {
        let now = [(0, member("a"))];
        let standby = MemberConfig { role: Role::Standby, ..member("a") };
        assert_eq!(asked(&now, &[standby]), [Change::Stays { seat: 0, place: 0, role: Role::Standby }]);
        let mut elsewhere = member("a");
        elsewhere.selector = Selector { serial: Some("1".into()), ..Selector::default() };
        assert_eq!(asked(&now, &[elsewhere]), [Change::Leaves(0), Change::Joins(0)]);
    }
}
