//! What is known of the caller's sessions: their slots, what is under way in them, and which handles are good.

use std::collections::HashMap;

use ha_token::Ulong;

use crate::handles::Handles;
use crate::shape::Operation;
use crate::state::Swapped;

/// One process's dealings with the module.
#[derive(Debug, Default)]
pub(crate) struct Tracking {
    /// By the module's own handle.
    sessions: HashMap<Ulong, Session>,
    /// Those that are lost while calls are in them: a module may not bear that a session is closed under a call.
    leaving: HashMap<Ulong, Session>,
    pub(crate) session_handles: Handles,
    pub(crate) object_handles: Handles,
    /// The token that another one stands in for now, and the slots of both.
    pub(crate) swap: Option<Swap>,
}

/// A swap that is in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Swap {
    pub(crate) what: Swapped,
    /// The slot whose token is stood in for, and that of the one that does; `None` where one was not found.
    pub(crate) slots: Option<(Ulong, Ulong)>,
}

#[derive(Debug)]
struct Session {
    /// The module's own.
    slot: Ulong,
    mechanisms: HashMap<Operation, Ulong>,
    /// How many calls are in it.
    calls: usize,
}

impl Tracking {
    /// A session was opened.
    pub(crate) fn opened(&mut self, real: Ulong, slot: Ulong) {
        self.sessions.insert(real, Session { slot, mechanisms: HashMap::new(), calls: 0 });
    }

    /// A call goes into a session.
    pub(crate) fn enters(&mut self, real: Ulong) {
        if let Some(session) = self.sessions.get_mut(&real) {
            session.calls += 1;
        }
    }

    /// A call has come back from a session. Answers whether that was lost meanwhile, and is to be closed now.
    pub(crate) fn leaves(&mut self, real: Ulong) -> bool {
        if let Some(session) = self.leaving.get_mut(&real) {
            session.calls = session.calls.saturating_sub(1);
            return session.calls == 0 && self.leaving.remove(&real).is_some();
        }
        if let Some(session) = self.sessions.get_mut(&real) {
            session.calls = session.calls.saturating_sub(1);
        }
        false
    }

    /// A session was closed.
    pub(crate) fn closed(&mut self, real: Ulong) {
        if self.leaving.remove(&real).is_none() {
            self.sessions.remove(&real);
            self.session_handles.forget(real);
        }
    }

    /// Every session with this slot was closed, or every one there is.
    pub(crate) fn closed_all(&mut self, slot: Option<Ulong>) {
        let of_slot = |s: &Session| slot.is_none_or(|slot| slot == s.slot);
        self.leaving.retain(|_, s| !of_slot(s));
        let closed: Vec<Ulong> =
            self.sessions.iter().filter(|(_, s)| of_slot(s)).map(|(real, _)| *real).collect();
        closed.into_iter().for_each(|real| self.closed(real));
    }

    /// The module's slot of a session.
    pub(crate) fn slot(&self, real: Ulong) -> Option<Ulong> {
        self.sessions.get(&real).map(|session| session.slot)
    }

    /// An operation was begun.
    pub(crate) fn began(&mut self, real: Ulong, operation: Operation, mechanism: Ulong) {
        if let Some(session) = self.sessions.get_mut(&real) {
            session.mechanisms.insert(operation, mechanism);
        }
    }

    /// The mechanisms with which these operations were begun.
    pub(crate) fn mechanisms(&self, real: Ulong, operations: &[Operation]) -> Vec<Ulong> {
        let session = self.sessions.get(&real);
        operations.iter().filter_map(|o| session?.mechanisms.get(o).copied()).collect()
    }

    /// One session of each slot that has any.
    pub(crate) fn one_of_each_slot(&self) -> Vec<Ulong> {
        let by_slot: HashMap<Ulong, Ulong> = self.sessions.iter().map(|(real, s)| (s.slot, *real)).collect();
        by_slot.into_values().collect()
    }

    /// Forgets every session and answers which are to be closed: all in which no call is. The others are closed by their
    /// last calls.
    pub(crate) fn lose_sessions(&mut self) -> Vec<Ulong> {
        self.session_handles.lose();
        let (busy, idle): (Vec<_>, Vec<_>) = self.sessions.drain().partition(|(_, s)| s.calls > 0);
        self.leaving.extend(busy);
        idle.into_iter().map(|(real, _)| real).collect()
    }

    /// The module's slot that is meant by one of the caller's.
    pub(crate) fn real_slot(&self, shown: Ulong) -> Ulong {
        match &self.swap {
            Some(Swap { slots: Some((own, other)), .. }) if *own == shown => *other,
            _ => shown,
        }
    }

    /// What the caller is told in place of a session's slot.
    pub(crate) fn shown_slot(&self, real: Ulong) -> Ulong {
        match &self.swap {
            Some(Swap { slots: Some((own, other)), .. }) if *other == real => *own,
            _ => real,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_known_by_slot_and_by_what_is_under_way() {
        let mut tracking = Tracking::default();
        tracking.opened(1, 7);
        tracking.opened(2, 8);
        tracking.began(1, Operation::Sign, 99);
        assert_eq!(tracking.mechanisms(1, &[Operation::Sign, Operation::Encrypt]), [99]);
        assert_eq!(tracking.mechanisms(2, &[Operation::Sign]), []);
        assert_eq!((tracking.slot(1), tracking.slot(3)), (Some(7), None));
        tracking.closed_all(Some(7));
        assert_eq!((tracking.slot(1), tracking.slot(2)), (None, Some(8)));
        tracking.opened(1, 7);
        assert_eq!(tracking.mechanisms(1, &[Operation::Sign]), [], "of a new session with an old number");
        let mut lost = tracking.lose_sessions();
        lost.sort_unstable();
        assert_eq!((lost, tracking.slot(2)), (vec![1, 2], None));
        assert_eq!(tracking.session_handles.real(1), None);
    }

    #[test]
    fn a_lost_session_is_closed_by_the_last_call_in_it() {
        let mut tracking = Tracking::default();
        for session in [1, 2, 3] {
            tracking.opened(session, 7);
        }
        [1, 1, 2].into_iter().for_each(|session| tracking.enters(session));
        assert!(!tracking.leaves(2));
        tracking.enters(3);
        let mut idle = tracking.lose_sessions();
        idle.sort_unstable();
        assert_eq!(idle, [2]);
        assert_eq!((tracking.leaves(1), tracking.leaves(1), tracking.leaves(1)), (false, true, false));
        // It was the call that closed it.
        tracking.closed(3);
        assert!(!tracking.leaves(3));
    }

    #[test]
    fn a_session_that_closed_itself_takes_no_other_one_with_it() {
        let mut tracking = Tracking::default();
        tracking.opened(1, 7);
        tracking.enters(1);
        assert_eq!(tracking.lose_sessions(), []);
        tracking.closed_all(Some(7));
        tracking.opened(1, 7);
        assert!(!tracking.leaves(1));
        assert_eq!(tracking.slot(1), Some(7));
    }

    #[test]
    fn a_swapped_slot_leads_to_the_other_and_back() {
        let mut tracking = Tracking::default();
        let what = Swapped { token: "a".into(), other: "b".into(), identity_kept: true };
        tracking.swap = Some(Swap { what, slots: Some((3, 5)) });
        assert_eq!((tracking.real_slot(3), tracking.real_slot(5), tracking.real_slot(9)), (5, 5, 9));
        assert_eq!((tracking.shown_slot(5), tracking.shown_slot(9)), (3, 9));
    }
}
