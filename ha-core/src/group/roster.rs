//! The members that a group has: each in a seat that it keeps, whoever joins or leaves while the group is running.
//!
//! What stands for a member elsewhere, a bit or a number, is its seat's number. A seat is never given to another member: what
//! is still known of one that has left is not taken for somebody else's.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::Member;
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
