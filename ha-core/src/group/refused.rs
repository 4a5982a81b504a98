//! PINs that were refused: not sent again by this process, nor by any other of the host, also after a restart (guarantee
//! G6).
//!
//! In memory they are digests under a key that goes with the process. In the ledger a PIN that the application gave and the
//! first member refused is a salted digest that is slow to make; of one that another member takes for right nothing is
//! kept but that this one refused it, and how often a PIN had been set through the group when it was given: only processes
//! whose PIN is from the same time heed that. A refusal is over when its member accepts a PIN, when a PIN is set through the
//! group, when an operator wants the member back, and when its token, which said that a wrong PIN was counted, says so no
//! more: whoever cleared the count gave a right one. Of that last a process that was itself refused takes no notice.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use ha_token::{Rv, UserType};

use super::{Group, Link, Member, Who};
use crate::mutants::wrong;
use crate::pin::{KeptDigest, Pin};
use crate::policy::pin;
use crate::replica::ledger::{HostLock, LedgerError, Refused};
use crate::sync::Mutex;

/// Why a call with such a PIN goes to no token.
pub(super) const REFUSED_BEFORE: &str = "this PIN was refused before and is not sent to a token again; if it is right now, run `hactl member recover` for the member that refused it";

/// What is remembered of a PIN.
pub(super) type Digest = [u8; 32];

/// How a PIN was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    /// The answer.
    pub(super) rv: Rv,
    /// The member, by its place in the group.
    pub(super) by: usize,
    /// Whether its token said then that wrong PINs were counted.
    pub(super) counted: bool,
}

/// PINs that were refused, as keyed digests.
#[derive(Default)]
pub(super) struct Refusals(Mutex<Vec<(UserType, Digest, Refusal)>>);

impl Refusals {
    /// How this PIN was refused, if it was.
    pub(super) fn answer(&self, user: UserType, digest: &Digest) -> Option<Refusal> {
        self.lock().iter().find(|(u, d, _)| *u == user && (d == digest || wrong!(RefusedForAll))).map(|r| r.2)
    }

    /// Whether any PIN was refused for a user.
    pub(super) fn has(&self, user: UserType) -> bool {
        self.lock().iter().any(|r| r.0 == user)
    }

    pub(super) fn remember(&self, user: UserType, digest: Digest, refusal: Refusal) {
        if self.answer(user, &digest).is_none() {
            self.lock().push((user, digest, refusal));
        }
    }

    /// Forgets what was refused for a user.
    pub(super) fn forget(&self, user: UserType) {
        self.lock().retain(|(u, _, _)| *u != user);
    }

    /// Forgets of that what a rule picks; answers whether there was anything.
    pub(super) fn forget_where(&self, user: UserType, picks: impl Fn(&Digest, &Refusal) -> bool) -> bool {
        let mut refused = self.lock();
        let before = refused.len();
        refused.retain(|(u, d, r)| *u != user || !picks(d, r));
        refused.len() != before
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(UserType, Digest, Refusal)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who may be logged in.
const ALL: [UserType; 3] = [UserType::So, UserType::User, UserType::ContextSpecific];

/// What is known of a PIN before it is sent.
pub(super) enum Before<'a> {
    /// Nothing against it.
    Nothing,
    /// It was refused, and is not sent again.
    Refused(Rv),
    /// This member refused it, or another one, and something has happened since.
    Over(&'a Arc<Member>),
}

impl Group {
    /// Whether a PIN that the application gives was refused before, by this process's members or on behalf of another.
    pub(super) fn refused_before(&self, user: UserType, pin: &Pin) -> Before<'_> {
        let digest = self.login.digest(pin);
        if let Some(refusal) = self.login.refused.answer(user, &digest) {
            return Before::Refused(refusal.rv);
        }
        let Some(kept) = self.kept_of(user, pin) else {
            let changed = |m: &&Arc<Member>| {
                user != UserType::ContextSpecific && m.is_up() && m.pin_changed.swap(false, Ordering::AcqRel)
            };
            return self.members.iter().find(changed).map_or(Before::Nothing, Before::Over);
        };
        let by = self.members.get(kept.by);
        match by.and_then(|member| Some((member, member.link()?))) {
            Some((member, link)) if self.is_over(&link, user, kept.counted) => {
                self.forget_kept(member, &[user]);
                Before::Over(member)
            }
            _ => {
                self.login.refused.remember(user, digest, kept);
                Before::Refused(kept.rv)
            }
        }
    }

    /// A member refused a PIN that the application gave, and that no other one is known to take for right.
    pub(super) fn refuse(&self, member: &Member, link: &Link, user: UserType, pin: &Pin, rv: Rv) {
        let counted = has_counted(link, user);
        self.login.refused.remember(user, self.login.digest(pin), Refusal { rv, by: member.index, counted });
        self.write_down(member, user, Some(pin), rv, counted);
    }

    /// A member refused a PIN that another one takes for right, or that is its own.
    pub(super) fn refuse_on(&self, member: &Member, link: &Link, user: UserType, digest: Digest, rv: Rv) {
        let counted = has_counted(link, user);
        member.refused.remember(user, digest, Refusal { rv, by: member.index, counted });
        self.write_down(member, user, None, rv, counted);
    }

    /// How a member refused a PIN that it would be sent to follow the application's login, if that still stands.
    pub(super) fn refused_on(
        &self,
        member: &Member,
        link: &Link,
        user: UserType,
        digest: &Digest,
    ) -> Option<Rv> {
        let (rv, counted) = match member.refused.answer(user, digest) {
            Some(refusal) => (refusal.rv, refusal.counted),
            // It was another one that it refused; and of a login for a key's use nothing is written down.
            None if member.refused.has(user) || user == UserType::ContextSpecific => return None,
            None => (Rv::PIN_INCORRECT, self.kept_on(member, user)?),
        };
        if !self.is_over(link, user, counted) {
            // Also what another process was answered: who wants the member back has the PIN sent by one of all that know.
            member.refused.remember(user, *digest, Refusal { rv, by: member.index, counted });
            return Some(rv);
        }
        member.refused.forget_where(user, |d, _| d == digest);
        self.forget_kept(member, &[user]);
        None
    }

    /// A member accepted a PIN, and has cleared its count.
    pub(super) fn accepted_on(&self, member: &Member, user: UserType) {
        let by = member.index;
        self.login.refused.forget_where(user, |_, refusal| refusal.by == by);
        self.forget_kept(member, &[user]);
    }

    /// A member refused what its instance did not know to be its token's PIN.
    pub(super) fn forget_refused_on(&self, member: &Member, user: UserType) {
        member.refused.forget(user);
        self.forget_kept(member, &[user]);
    }

    /// What a member refused says nothing any more, by its operator's word.
    pub(super) fn forget_refused_by(&self, member: &Member) {
        let by = member.index;
        for user in ALL {
            if self.login.refused.forget_where(user, |_, refusal| refusal.by == by) {
                member.pin_changed.store(true, Ordering::Release);
            }
            member.refused.forget(user);
        }
        self.forget_kept(member, &ALL);
    }

    /// Notes how often a user's PIN was set through the group, before one is given.
    pub(super) fn note_pins_set(&self, user: UserType) {
        let Some(ledger) = &self.ledger else { return };
        match ledger.pins_set(user) {
            Ok(count) => self.login.note_pins_set(count),
            Err(error) => self.not_kept(&error),
        }
    }

    /// A user has another PIN now: what was refused before says nothing any more; and what is yet to be refused to a process
    /// that has the old one is for those to heed that have it too.
    pub(super) fn forgive_all(&self, user: UserType) {
        let who = if user == UserType::So { Who::So } else { Who::User };
        if let Some(ledger) = self.ledger.as_ref().filter(|l| !l.is_read_only()) {
            match ledger.pin_was_set(user) {
                Ok(count) if self.login.who() == who => self.login.note_pins_set(count),
                Ok(_) => {}
                Err(error) => self.not_kept(&error),
            }
        }
        let users = [user, UserType::ContextSpecific];
        for kind in users {
            self.login.refused.forget(kind);
            self.members.iter().for_each(|m| m.refused.forget(kind));
        }
        self.members.iter().for_each(|m| self.forget_kept(m, &users));
    }

    /// From now on, or no longer, a member's refusals are played in this process, as a drill does: they are remembered here, and
    /// no other process hears of them. False where there is no member of this name.
    pub fn play_refusals(&self, member: &str, played: bool) -> bool {
        let found = self.members.iter().find(|m| m.name() == member);
        found.is_some_and(|m| {
            m.plays_refusals.store(played, Ordering::Release);
            true
        })
    }

    /// Held while a member judges a PIN that may be a wrong one: whoever comes next on this host sees what came of it. Who
    /// has waited for too long does not wait for it; nor is there anything to see without a ledger.
    pub(super) fn one_judge(&self) -> Option<HostLock> {
        let ledger = self.ledger.as_ref().filter(|l| !l.is_read_only())?;
        let lock = ledger.pin_lock(&*self.world);
        lock.inspect_err(|error| {
            tracing::warn!(group = %self.config.label, %error,
                "another process is logging in, and is not waited for any longer");
        })
        .ok()
    }

    /// Whether a refusal is over, by what the token says now of the wrong PINs that it has counted.
    fn is_over(&self, link: &Link, user: UserType, counted: bool) -> bool {
        let now = || link.info_now(&*self.world).map(|info| pin::counted(user, info.flags).any);
        // What a key's use wants is a PIN that the application has just given: nobody else clears its count.
        counted && user != UserType::ContextSpecific && now().is_ok_and(|now| pin::is_over(counted, now))
    }

    fn kept_of(&self, user: UserType, pin: &Pin) -> Option<Refusal> {
        let ledger = self.ledger.as_ref().filter(|_| user != UserType::ContextSpecific)?;
        let rows = ledger.refused(user).inspect_err(|e| self.not_kept(e)).ok()?;
        let mut made: Option<KeptDigest> = None;
        rows.iter().find_map(|row| {
            let kept = row.pin?;
            let by = self.members.iter().find(|m| m.name() == row.member)?.index;
            if made.is_none_or(|m| m.salt != kept.salt) {
                made = pin.kept(kept.salt);
            }
            let refusal = Refusal { rv: Rv::PIN_INCORRECT, by, counted: row.counted };
            (made == Some(kept)).then_some(refusal)
        })
    }

    /// Whether a member refused what another one took for right, and whether its token said then that it had counted it.
    fn kept_on(&self, member: &Member, user: UserType) -> Option<bool> {
        let rows = self.ledger.as_ref()?.refused(user).inspect_err(|e| self.not_kept(e)).ok()?;
        // It may have refused a PIN that was set since, or the one of before to a process that has that still.
        let since = self.login.pins_set();
        let same = |row: &&Refused| row.pin.is_none() && row.since == since && row.member == member.name();
        rows.iter().find(same).map(|row| row.counted)
    }

    fn write_down(&self, member: &Member, user: UserType, pin: Option<&Pin>, rv: Rv, counted: bool) {
        // What else there is to say of a PIN counts on no token; and before one for a key's use comes a login.
        if rv != Rv::PIN_INCORRECT || user == UserType::ContextSpecific {
            return;
        }
        // Its token has seen none.
        if member.plays_refusals.load(Ordering::Acquire) {
            return;
        }
        let Some(ledger) = self.ledger.as_ref().filter(|l| !l.is_read_only()) else { return };
        let kept = ledger.refused_salt().and_then(|salt| {
            let mut new = [0; 16];
            let salt = match salt {
                Some(salt) => salt,
                None if self.world.random(&mut new).is_ok() => new,
                // Without a salt nothing is written down.
                None => return Ok(()),
            };
            let (name, since) = (member.name(), self.login.pins_set());
            match pin.map(|p| p.kept(salt)) {
                Some(None) => Ok(()),
                Some(Some(kept)) => ledger.remember_refused(user, name, counted, Some(kept), since),
                None => ledger.remember_refused(user, name, counted, None, since),
            }
        });
        _ = kept.inspect_err(|e| self.not_kept(e));
    }

    fn forget_kept(&self, member: &Member, users: &[UserType]) {
        let Some(ledger) = self.ledger.as_ref().filter(|l| !l.is_read_only()) else { return };
        _ = ledger.forget_refused(member.name(), users).inspect_err(|e| self.not_kept(e));
    }

    fn not_kept(&self, error: &LedgerError) {
        tracing::warn!(group = %self.config.label, %error,
            "which PINs were refused is known to this process alone: the ledger cannot be used for it");
    }
}

/// Whether a token tells, after it was sent a PIN, that it has counted wrong ones.
fn has_counted(link: &Link, user: UserType) -> bool {
    pin::counted(user, link.flags()).any
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_users_and_keeps_its_answer() {
        let refused = Refusals::default();
        let (a, b) = ([1; 32], [2; 32]);
        let of = |rv, by| Refusal { rv, by, counted: true };
        refused.remember(UserType::User, a, of(Rv::PIN_EXPIRED, 0));
        refused.remember(UserType::ContextSpecific, b, of(Rv::PIN_INCORRECT, 1));
        assert_eq!(refused.answer(UserType::User, &a), Some(of(Rv::PIN_EXPIRED, 0)));
        assert_eq!(refused.answer(UserType::So, &a), None);
        assert_eq!(refused.answer(UserType::User, &b), None);
        assert!(!refused.forget_where(UserType::User, |_, r| r.by == 1));
        assert!(refused.has(UserType::User));
        refused.forget(UserType::User);
        assert_eq!(refused.answer(UserType::User, &a), None);
        assert!(refused.forget_where(UserType::ContextSpecific, |d, r| *d == b && r.by == 1));
        assert!(!refused.has(UserType::ContextSpecific));
    }
}
