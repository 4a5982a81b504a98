//! Bringing a member up to date: what was destroyed while it was away, what was changed, what was made.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use ha_token::{Function, ObjectHandle, Result, Rv};

use super::change::still_to_set;
use super::copies::{Copy, Trouble};
use super::give::Given;
use super::writers::open_lease;
use super::{Group, Lease, Link, Member, Object, Origin};
use crate::config::RecoveryMode;
use crate::mutants::wrong;
use crate::policy::failure::{Class, classify};
use crate::policy::health::Event;
use crate::replica::ledger::{Ledger, LedgerError, ObjectRow, Pending};
use crate::seam::step;

/// What catching up did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaughtUp {
    /// Objects destroyed because they were destroyed elsewhere.
    pub destroyed: usize,
    /// Changes of attributes made.
    pub changed: usize,
    /// Objects that were made here.
    pub copied: usize,
    /// What could not be done, in words.
    pub left: Vec<String>,
    /// Of those, what nothing can copy.
    pub uncopyable: usize,
    /// Whether all of it is to be tried again: another process was at it, the ledger could not be read, or it took too long
    /// for a login.
    pub undone: bool,
    /// Whether the token had no room for some of it: that is tried again soon.
    pub is_full: bool,
}

/// How far a member is brought up to date.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Extent {
    /// Not at all: what would be done is counted.
    Rehearsal,
    /// To the end.
    Whole,
    /// What is to be destroyed and changed; then what is missing, until this moment: the rest is its keeper's.
    Until(Duration),
}

/// How often a member is brought up to date in a row while more passes it by.
const ROUNDS: usize = 4;

/// How long a login brings each member up to date, where a keeper goes on with it.
const LOGIN_PATIENCE: Duration = Duration::from_secs(5);

/// What stands for an answer where a member's object may or may not be the one that is meant.
pub(super) const UNCLEAR: Rv = Rv::KEY_FUNCTION_NOT_PERMITTED;
const CANNOT_TELL: &str = ", and what is there cannot be proven to be it or another";

impl Group {
    /// After a login: what every member that is up may have missed. A program that ends soon does its part of it; one that
    /// goes on does not wait for all that a new token is to be given.
    pub(crate) fn after_login(&self) {
        let alone = self.alone.load(Ordering::Relaxed);
        for member in self.up() {
            let Some(link) = member.link() else { continue };
            let extent = if alone { Extent::Whole } else { Extent::Until(self.world.now() + LOGIN_PATIENCE) };
            if let Err(rv) = self.follow_login_to(member, &link, extent) {
                tracing::warn!(group = %self.config.label, member = member.name(), rv = %rv, "the member could not be brought up to date");
            }
            // What is left is its keeper's; where there is none, of calls that come later.
            let is_behind = self.is_behind(member);
            if is_behind || member.may_take.load(Ordering::Acquire) {
                member.wake.set();
            }
            if alone && is_behind {
                let until = self.world.now() + self.config.recovery.interval;
                *member.behind_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
            }
        }
    }

    /// Brings a connection up to date, in each login and whenever something has passed the member by: by one thread of one
    /// process of this host at a time, so that nothing is given twice. The user is logged in on it.
    ///
    /// # Errors
    /// The member's answers that say that it cannot be used.
    pub(crate) fn catch_up(&self, member: &Arc<Member>, link: &Arc<Link>, extent: Extent) -> Result<()> {
        let _one = match extent {
            _ if wrong!(CatchUpNotAlone) => None,
            Extent::Until(end) => match self.turn_to_catch_up(member, end) {
                Some(turn) => Some(turn),
                None => return Ok(()),
            },
            Extent::Whole | Extent::Rehearsal => {
                Some(member.catching_up.lock().unwrap_or_else(PoisonError::into_inner))
            }
        };
        // What passes it by meanwhile makes it another round; what goes on and on is left to its keeper.
        for _ in 0..ROUNDS {
            let owed = member.owed.load(Ordering::Acquire);
            // Who logs in next sees to it.
            let Some(visit) = self.visit(link) else { return Ok(()) };
            if link.is_caught_up(visit.epoch, owed) {
                return Ok(());
            }
            member.refuses_writes.store(false, Ordering::Release);
            // Not lent again: something may be left going on in it.
            let (lease, _) = open_lease(|| Lease::new(member, Arc::clone(link)))?;
            self.recall_group_keys(&lease)?;
            let by_hand = self.by_hand.load(Ordering::Acquire);
            if by_hand || lease.link.group_keys().is_none() {
                // Before anything is given to it.
                self.warn_of_marker(&lease)?;
            }
            if lease.link.group_keys().is_none() && !by_hand {
                self.receive_group_keys(member, link);
            }
            if !by_hand {
                // Until all of it was done; also when a logout ends it.
                member.lacks.store(true, Ordering::Release);
                let mut done = self.bring_up_to_date(&lease, extent)?;
                if done != CaughtUp::default() {
                    tracing::info!(group = %self.config.label, member = member.name(), destroyed = done.destroyed, changed = done.changed, copied = done.copied, left = done.left.len(), "brought up to date");
                }
                if done.undone && self.is_cut_off(extent) {
                    tracing::info!(group = %self.config.label, member = member.name(), "not all at once: nobody waits for the rest now");
                    return Ok(());
                }
                if self.take_stock(&lease)? || member.set_back.load(Ordering::Acquire) {
                    let lost = self.notice_lost(&lease, &|| self.is_cut_off(extent))?;
                    if lost.is_unfinished {
                        return Ok(());
                    }
                    if lost.is_owed {
                        tracing::warn!(group = %self.config.label, member = member.name(), "the token was emptied or set back: what it lost is copied there again");
                        member.owed.fetch_add(1, Ordering::AcqRel);
                        continue;
                    }
                    done.left.extend(lost.left);
                    self.believe_again(&lease)?;
                }
                for line in &done.left {
                    tracing::warn!(group = %self.config.label, member = member.name(), "not brought up to date: {line}");
                }
                // What it said that it cannot do may have been a fault of the moment.
                if !done.left.is_empty() && !wrong!(InabilityBelieved) {
                    link.set_ability(None);
                }
                member.lacks.store(!done.left.is_empty(), Ordering::Release);
                // What has passed it by since says so before this or after it.
                if member.owed.load(Ordering::Acquire) != owed {
                    member.lacks.store(true, Ordering::Release);
                }
                member.left.store(done.left.len(), Ordering::Release);
                member.may_take.store(done.left.len() > done.uncopyable, Ordering::Release);
                // What was refused for want of room, or in words that say nothing, as on a disk that cannot be written, is tried
                // again.
                if done.undone
                    || done.is_full
                    || (!done.left.is_empty() && member.refuses_writes.load(Ordering::Acquire))
                {
                    return Ok(());
                }
            }
            let owed = if wrong!(CaughtUpTooEarly) { member.owed.load(Ordering::Acquire) } else { owed };
            if self.visit(link) != Some(visit) {
                return Ok(());
            }
            link.set_caught_up(visit.epoch, owed);
            if link.group_keys().is_some() {
                self.offer_group_keys();
            }
            member.behind_tries.store(0, Ordering::Release);
        }
        Ok(())
    }

    /// Whether nobody waits any longer for a member to be brought up to date.
    fn is_cut_off(&self, extent: Extent) -> bool {
        self.is_stopping() || matches!(extent, Extent::Until(end) if self.world.now() >= end)
    }

    /// The turn to bring a member up to date, for a login: its keeper may have it, and goes on then with what the member is
    /// to be given. What it is to destroy and to change the login waits for, until `end`.
    fn turn_to_catch_up<'m>(&self, member: &'m Member, end: Duration) -> Option<MutexGuard<'m, ()>> {
        let pause = self.world.event();
        loop {
            match member.catching_up.try_lock() {
                Ok(turn) => return Some(turn),
                Err(TryLockError::Poisoned(turn)) => return Some(turn.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
            // What the ledger cannot say a login does not wait for.
            let is_to_change =
                self.ledger.as_ref().is_some_and(|l| l.is_to_change(member.name()).unwrap_or_default());
            if !is_to_change || self.is_stopping() || self.world.now() >= end {
                return None;
            }
            pause.wait(Some(Duration::from_millis(10)));
        }
    }

    /// Whether a member may lack what others have: a search that it answered says nothing of that.
    pub(crate) fn lacks_some(&self, member: &Member) -> bool {
        member.lacks.load(Ordering::Acquire) || self.is_behind(member)
    }

    /// Whether a member may not have been given yet an object that others have.
    pub(crate) fn may_lack(&self, member: &Member, object: &Object) -> bool {
        let is_known = || member.link().is_some_and(|l| object.place(member.index, l.generation).is_some());
        matches!(object.origin, Origin::Ledger(_)) && self.lacks_some(member) && !is_known()
    }

    /// Whether a member that is up is to be brought up to date again.
    pub(super) fn is_behind(&self, member: &Member) -> bool {
        self.login.who() == super::Who::User
            && !self.by_hand.load(Ordering::Acquire)
            && member.link().is_some_and(|link| {
                !link.is_caught_up(self.login.epoch(), member.owed.load(Ordering::Acquire))
            })
    }

    /// Brings a member that is up and has fallen behind up to date. One that refuses to write what others wrote is
    /// connected anew: SoftHSM goes on refusing after the cause is gone. Answers how long to wait before the next try.
    pub(super) fn catch_up_again(&self, member: &Arc<Member>) -> std::time::Duration {
        let tries = member.behind_tries.fetch_add(1, Ordering::AcqRel);
        let recovery = &self.config.recovery;
        let wait = recovery.interval.saturating_mul(1 << tries.min(16)).min(recovery.max_interval);
        let refused = member.refuses_writes.load(Ordering::Acquire);
        let Some(link) = member.link() else { return wait };
        if let Err(rv) = self.follow_login(member, &link) {
            let class = self.failed(member, &link, Function::FindObjects, rv);
            self.is_lost(member, &link, class);
        }
        let refuses = refused || member.refuses_writes.load(Ordering::Acquire);
        // Rarer and rarer: what a new connection does not mend another one may not either.
        let is_due = tries == 0 || tries.is_power_of_two();
        if refuses && is_due && recovery.mode == RecoveryMode::Auto && self.may_be_renewed(member) {
            self.health_event(member, Event::Renew);
        }
        wait
    }

    /// Whether nobody misses a member while it is connected anew: another one is up, and is not renewed itself. The only
    /// member of a group is missed for a moment, as it refuses writes.
    fn may_be_renewed(&self, member: &Member) -> bool {
        let serves = |other: &Arc<Member>| other.index != member.index && !self.is_behind(other);
        self.members.len() == 1 || self.up().any(serves) || wrong!(LastIsRenewed)
    }

    /// Whether the token holds more than the ledger says: only then do searches have to ask it too when another member
    /// was asked. Handles are counted, no object is read. Answers whether it holds less.
    fn take_stock(&self, lease: &Lease) -> Result<bool> {
        let Some(ledger) = &self.ledger else { return Ok(false) };
        let token = vec![ha_token::Attribute::bool(ha_token::ck::CKA_TOKEN, true)];
        let there = lease.find(&token)?.len();
        let ours = lease.link.own_objects();
        // A ledger that cannot say how many there should be may not know some.
        let known = ledger.count_on(lease.member.name());
        lease.member.set_foreign(known.as_ref().map_or(true, |known| there != known + ours));
        Ok(known.is_ok_and(|known| there < known + ours))
    }

    /// Deletions first, so that nothing dead is changed or counted; then changes; then what is missing. A ledger that
    /// cannot be read is no fault of the member's: what it could not say is left.
    ///
    /// # Errors
    /// The member's answers that say that it cannot be used.
    pub(crate) fn bring_up_to_date(&self, lease: &Lease, extent: Extent) -> Result<CaughtUp> {
        let mut done = CaughtUp::default();
        let Some(ledger) = &self.ledger else { return Ok(done) };
        if ledger.is_read_only() {
            self.warn_of_marker(lease)?;
            return Ok(done);
        }
        // The lock of the host is one among this process's threads, too.
        let alone = self.alone.load(Ordering::Relaxed).then(|| self.world.now() + LOGIN_PATIENCE);
        let give_up = || self.is_cut_off(extent) || alone.is_some_and(|end| self.world.now() >= end);
        let lock = || ledger.member_lock(lease.member.name(), &*self.world, &give_up);
        let _host = match (!wrong!(CatchUpNotAlone)).then(lock).transpose() {
            Ok(lock) => lock,
            Err(error) => {
                done.left.push(format!("another process does it: {error}"));
                done.undone = true;
                return Ok(done);
            }
        };
        let mut work = || {
            let seen = self.look_at_marker(ledger, lease, extent != Extent::Rehearsal)?;
            // It may not be the tokens' own.
            if ledger.is_read_only() {
                return Ok(());
            }
            self.work_through(ledger, lease, extent, &mut done)?;
            if extent != Extent::Rehearsal && !done.undone {
                done.undone = !self.mark(ledger, lease, &seen, &|| self.is_cut_off(extent))?;
            }
            Ok(())
        };
        match work() {
            Ok(()) => Ok(done),
            Err(Trouble::Member(rv)) => Err(rv),
            Err(Trouble::Ledger(error)) => {
                done.left.push(format!("what the ledger cannot say: {error}"));
                done.undone = true;
                Ok(done)
            }
        }
    }

    fn work_through(
        &self,
        ledger: &Ledger,
        lease: &Lease,
        extent: Extent,
        done: &mut CaughtUp,
    ) -> std::result::Result<(), Trouble> {
        let CaughtUp { destroyed, changed, copied, left, uncopyable, undone, is_full } = done;
        let dry = extent == Extent::Rehearsal;
        // No patience ends before what is destroyed and changed elsewhere is so here: the member serves meanwhile.
        let mut is_over = |may_be_left: bool| {
            *undone |= if may_be_left { self.is_cut_off(extent) } else { self.is_stopping() };
            *undone
        };
        let mut note = |answer: Result<bool>, count: &mut usize, what: String| -> Result<bool> {
            match answer {
                Ok(did) => {
                    *count += usize::from(did);
                    Ok(true)
                }
                Err(rv) => match classify(Function::CreateObject, rv) {
                    Class::Member | Class::Session | Class::Login => Err(rv),
                    class @ (Class::Caller | Class::Object | Class::Capacity | Class::Ambiguous) => {
                        if class == Class::Ambiguous {
                            lease.member.refuses_writes.store(true, Ordering::Release);
                        }
                        *is_full |= class == Class::Capacity && rv != Rv::FUNCTION_NOT_SUPPORTED;
                        left.push(format!("{what}: {rv}"));
                        Ok(false)
                    }
                },
            }
        };
        let name = lease.member.name();
        // Of what is being made or changed it is not known yet what this member is to have. Who died at it does not decide.
        if !dry && ledger.has_unfinished()? {
            self.settle();
        }
        for row in ledger.tombstones_for(name)? {
            if is_over(false) {
                return Ok(());
            }
            no_write_is_late(lease)?;
            if wrong!(TombstonesSkipped) {
                ledger.acknowledge(row.id, name)?;
                continue;
            }
            if dry {
                *destroyed += 1;
                continue;
            }
            let what = format!("{} is to be destroyed", describe(&row));
            let found = self.find_copy(ledger, lease, &row)?;
            let discarded = self.discard_half_made(lease, &row).map(|()| false);
            let is_clean = note(discarded, destroyed, what.clone())?;
            match found {
                Copy::At(handle) => {
                    // A token may give its number to the next object at once. Here it may be known as one from before the group.
                    let shown = lease.link.virtual_of(handle);
                    let shown = shown
                        .and_then(|virt| self.objects.get(ObjectHandle(virt)).ok())
                        .filter(|object| object.origin == Origin::Foreign);
                    for object in self.objects.by_id(row.id).into_iter().chain(shown) {
                        object.forget(lease.member.index);
                    }
                    let answer = lease.token().destroy_object(lease.session, handle);
                    step!(DestroyedLater);
                    self.may_be_stale(lease, &row, answer);
                    if note(answer.map(|()| true), destroyed, what)? {
                        lease.link.unbind(handle);
                        if is_clean {
                            ledger.acknowledge(row.id, name)?;
                        }
                    }
                }
                Copy::Absent if is_clean => ledger.acknowledge(row.id, name)?,
                Copy::Absent => {}
                // It stays hidden, and is looked at again.
                Copy::Unclear => _ = note(Err(UNCLEAR), destroyed, what + CANNOT_TELL)?,
            }
        }
        for pending in ledger.pending_for(name)? {
            if is_over(false) {
                return Ok(());
            }
            let Some(row) = ledger.object(pending.object)? else { continue };
            // What may be taken back is nobody's to make but who announced it.
            if ledger.is_undecided(row.id)? && !wrong!(UndecidedMade) {
                lease.member.owed.fetch_add(1, Ordering::AcqRel);
                continue;
            }
            // Who announced it may have made it here since the list was read, and another one after it.
            if !ledger.is_left_to(name, &pending)? && !wrong!(DoneIsMadeAgain) {
                continue;
            }
            if wrong!(PendingSkipped) {
                ledger.done(&[pending.number])?;
                continue;
            }
            if dry {
                *changed += 1;
                continue;
            }
            no_write_is_late(lease)?;
            let what = format!("{} is to be changed", describe(&row));
            match self.find_copy(ledger, lease, &row)? {
                Copy::At(handle) => {
                    let answer = Self::change_now(lease, handle, &pending, &row);
                    self.objects.have_changed();
                    step!(ChangedLater);
                    self.may_be_stale(lease, &row, answer);
                    if answer.is_err_and(|rv| classify(Function::SetAttributeValue, rv) == Class::Caller)
                        && self.give_up_change(ledger, lease, handle, &pending, &row)?
                    {
                        lease.member.owed.fetch_add(1, Ordering::AcqRel);
                        continue;
                    }
                    if note(answer.map(|()| true), changed, what)? {
                        // What is changed now goes before; the next round sees to what is left of this one.
                        if ledger.object(row.id)?.is_some_and(|now| now.is_unchanged_since(&row)) {
                            ledger.done(&[pending.number])?;
                        } else {
                            lease.member.owed.fetch_add(1, Ordering::AcqRel);
                        }
                    }
                }
                // It is given below, as it is by now.
                Copy::Absent => ledger.acknowledge(row.id, name)?,
                Copy::Unclear => _ = note(Err(UNCLEAR), changed, what + CANNOT_TELL)?,
            }
        }
        for row in ledger.missing_on(name)? {
            if wrong!(MissingSkipped) {
                break;
            }
            if is_over(true) {
                return Ok(());
            }
            let what = format!("{} is to be copied here", describe(&row));
            if dry {
                let answer = if row.is_copyable() { Ok(true) } else { Err(Rv::KEY_NOT_WRAPPABLE) };
                _ = note(answer, copied, what)?;
                continue;
            }
            // The list may be long, and much may have happened since it was made.
            let Some(row) = ledger.object(row.id)?.filter(|r| r.is_committed()) else { continue };
            *uncopyable += usize::from(!row.is_copyable());
            no_write_is_late(lease)?;
            let given = self.give(ledger, lease, &row)?;
            step!(CopiedLater);
            let made = match given {
                Ok(Given { made, .. }) => Ok(made),
                Err(rv) => Err(rv),
            };
            if note(made, copied, what)?
                && let Ok(given) = given
            {
                match ledger.add_copy(&row, name) {
                    Ok(()) => self.seen(lease, &row, given.handle),
                    // Destroyed or changed meanwhile: what was made of the old row goes, and the next round sees to the rest.
                    Err(LedgerError::Conflict) => {
                        if given.made {
                            lease.token().destroy_object(lease.session, given.handle)?;
                        }
                        lease.member.owed.fetch_add(1, Ordering::AcqRel);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// A handle that a token does not know any more is forgotten, so that the copy is looked for when this is tried again.
    fn may_be_stale(&self, lease: &Lease, row: &ObjectRow, answer: Result<()>) {
        if let Err(rv) = answer
            && classify(Function::DestroyObject, rv) == Class::Object
            && let Some(object) = self.objects.by_id(row.id)
        {
            object.forget_stale(&lease.member, &lease.link);
            lease.member.owed.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Makes a change that a member has missed: to what the attributes are by now, since a later change may have been made
    /// here already.
    fn change_now(
        lease: &Lease,
        handle: ha_token::ObjectHandle,
        pending: &Pending,
        row: &ObjectRow,
    ) -> Result<()> {
        let by_now = |missed: &ha_token::Attribute| {
            row.template.iter().find(|a| a.kind == missed.kind).unwrap_or(missed).clone()
        };
        let template: ha_token::Template = pending.template.iter().map(by_now).collect();
        // What it has already may be refused the second time.
        let template = still_to_set(lease, handle, &template)?;
        if template.is_empty() {
            Ok(())
        } else {
            lease.token().set_attributes(lease.session, handle, &template)
        }
    }
}

/// What is still being made on the member is not to be made once more beside it. Looked at after the row was read: who gave a
/// call up has left it behind first, and written down after that what the member is owed.
///
/// # Errors
/// [`Rv::NO_ANSWER`] while a change of before has not returned.
fn no_write_is_late(lease: &Lease) -> Result<()> {
    let late = lease.member.pending.left_writes() > 0 && !wrong!(LateWritesNotAwaited);
    if late { Err(Rv::NO_ANSWER) } else { Ok(()) }
}

pub(super) fn describe(row: &ObjectRow) -> String {
    format!("{} {:?}", crate::names::class(row.class), String::from_utf8_lossy(&row.label))
}
