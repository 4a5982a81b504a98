//! How often a PIN is sent to a member whose answers do not say whether they counted it as a wrong one (guarantee G6).
//!
//! A token may have a PIN of its own and say in general words that the group's was not right: sent again and again, it
//! locks it. It may as well be busy for a moment, as SoftHSM is while another process writes. So it is asked once more,
//! then once on each new connection, of which each is made later than the one before; after that no more until the
//! application logs in anew, and from then on once in each login, until it answers clearly. Where its token tells after
//! such an answer that it has counted a wrong PIN, and told of none before, that was a refusal.

/// In one login, on all connections.
pub const PER_LOGIN: u32 = 4;
/// Of these, on the connection that was the first to answer so. On any other: one.
pub const ON_THE_FIRST: u32 = 2;

/// What one member's vague answers leave open. Logins and connections are numbers that are not used twice.
#[derive(Clone, Copy, Default, Debug)]
pub struct Doubts {
    login: u64,
    connection: u64,
    /// Vague answers in this login, with those that may become some, and how many of them on this connection.
    sent: u32,
    here: u32,
    /// Whether the token told of wrong PINs before the first of them.
    counted: bool,
    /// An earlier login used up what it had, and no clear answer came since.
    wary: bool,
}

/// Whether a PIN may be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It may.
    Send,
    /// Not on this connection.
    NotHere,
    /// Not in this login.
    NotAgain,
}

impl Doubts {
    /// Whether the login's PIN may be sent on a connection.
    pub fn verdict(&self, login: u64, connection: u64) -> Verdict {
        if login != self.login {
            return Verdict::Send;
        }
        if self.is_used_up() {
            return Verdict::NotAgain;
        }
        let most = if self.sent == self.here { ON_THE_FIRST } else { 1 };
        if connection == self.connection && self.here >= most { Verdict::NotHere } else { Verdict::Send }
    }

    /// As [`verdict`](Self::verdict). One that may be sent counts from now on, since others may ask meanwhile. `counted`:
    /// whether the token tells of wrong PINs now.
    pub fn take(&mut self, login: u64, connection: u64, counted: bool) -> Verdict {
        let verdict = self.verdict(login, connection);
        if verdict == Verdict::Send {
            self.count(login, connection, counted);
        }
        verdict
    }

    /// Whether a vague answer in this login was a refusal, as the token tells now.
    pub fn was_refusal(&self, login: u64, counted: bool) -> bool {
        login == self.login && self.sent > 0 && counted && !self.counted
    }

    /// What was taken has not been counted on the member.
    pub fn give_back(&mut self, login: u64, connection: u64) {
        if login == self.login {
            self.sent = self.sent.saturating_sub(1);
            self.here = self.here.saturating_sub(u32::from(connection == self.connection));
        }
    }

    fn count(&mut self, login: u64, connection: u64, counted: bool) {
        if login != self.login {
            return self.begin(login, connection, counted);
        }
        if self.sent == 0 {
            self.counted = counted;
        }
        self.here = if connection == self.connection { self.here.saturating_add(1) } else { 1 };
        self.connection = connection;
        self.sent = self.sent.saturating_add(1);
    }

    /// It came when the application gave its PIN: with that the count begins, however often it has given it.
    /// `counted`: whether the token told of wrong PINs before.
    pub fn begin(&mut self, login: u64, connection: u64, counted: bool) {
        let wary = self.wary || self.is_used_up();
        *self = Doubts { login, connection, sent: 1, here: 1, counted, wary };
    }

    /// Whether the login that was answered so last has used up what it had.
    pub fn is_used_up(&self) -> bool {
        self.sent >= if self.wary { 1 } else { PER_LOGIN }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn what_is_sent_to_a_member_that_never_answers_clearly_is_bounded(
            steps in proptest::collection::vec((0u8..20, 0u8..6, any::<bool>()), 0..300)
        ) {
            let mut doubts = Doubts::default();
            let (mut login, mut connection) = (1, 1);
            let (mut sent, mut there) = (HashMap::<u64, u32>::new(), HashMap::<(u64, u64), u32>::new());
            for (new_login, new_connection, given) in steps {
                if new_login == 0 {
                    login += 1;
                    if given {
                        doubts.begin(login, connection, false);
                        (*sent.entry(login).or_default(), *there.entry((login, connection)).or_default()) = (1, 1);
                    }
                }
                connection += u64::from(new_connection == 0);
                if doubts.take(login, connection, false) == Verdict::Send {
                    *sent.entry(login).or_default() += 1;
                    *there.entry((login, connection)).or_default() += 1;
                }
            }
            prop_assert!(sent.values().all(|n| *n <= PER_LOGIN));
            prop_assert!(there.values().all(|n| *n <= ON_THE_FIRST));
            let full = sent.iter().filter(|(_, n)| **n == PER_LOGIN).map(|(login, _)| *login).min();
            prop_assert!(sent.iter().all(|(login, n)| full.is_none_or(|full| *login <= full) || *n == 1));
        }

        #[test]
        fn only_what_a_token_counts_after_it_was_sent_one_is_a_refusal(before: bool, now: bool, given: bool, back: bool) {
            let mut doubts = Doubts::default();
            prop_assert!(!doubts.was_refusal(1, now), "nothing was sent");
            if given { doubts.begin(1, 1, before) } else { _ = doubts.take(1, 1, before) }
            if back { doubts.give_back(1, 1) }
            prop_assert_eq!(doubts.was_refusal(1, now), now && !before && !back);
            prop_assert!(!doubts.was_refusal(2, now));
            _ = doubts.take(1, 2, now);
            prop_assert_eq!(doubts.was_refusal(1, true), if back { !now } else { !before });
        }

        #[test]
        fn a_login_is_sent_at_least_once_and_on_a_new_connection_again(used in 0u32..10, wary: bool) {
            let mut doubts = Doubts { login: 1, connection: 1, sent: used, here: used.min(2), counted: false, wary };
            prop_assert_eq!(doubts.verdict(2, 1), Verdict::Send);
            let wary = wary || doubts.is_used_up();
            prop_assert_eq!(doubts.take(2, 1, false), Verdict::Send);
            prop_assert_eq!(doubts.verdict(2, 2) == Verdict::Send, !wary);
            doubts.give_back(2, 1);
            prop_assert_eq!(doubts.verdict(2, 1), Verdict::Send);
            // What was not counted says nothing: the next login is worth no more than this one.
            doubts.begin(3, 1, false);
            prop_assert_eq!(doubts.is_used_up(), wary);
        }
    }
}
