//! A configuration that changes while the group is running: who is named in it joins, who is not leaves, without a restart.
//!
//! One keeper at a time looks, once in [`TICK`] at most. A member that joins is a member that was away: it is connected,
//! caught up and proven before it serves. One that leaves is drained, and its module let go when nothing is under way
//! on it and no session object is left there alone. What would leave nobody to serve waits until another one is up: then the
//! configuration is taken in again. What else of the file has changed holds from the next start.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use ha_token::Connector;

use super::stop::say_goodbye;
use super::{Group, Link, Member, Object, Origin};
use crate::config::{GroupConfig, MemberConfig, Role};
use crate::mutants::wrong;
use crate::policy::balance::MAX_MEMBERS;
use crate::policy::health::{self, Event, Health, State};
use crate::sync::Mutex;

/// How often the configuration is looked at, at most; and what a member that leaves still does.
const TICK: Duration = Duration::from_secs(1);

/// Where a running group's configuration is. All methods may be called from any thread.
pub trait ConfigSource: Send + Sync {
    /// What the configuration says, if that is not what it said when this was last asked. One that cannot be read, or is not
    /// right, is as if it had not changed; that is logged.
    fn news(&self) -> Option<News>;
    /// The way to a member that it names.
    fn connector(&self, member: &MemberConfig) -> Box<dyn Connector>;
}

/// What a configuration says of a group now.
#[derive(Clone, Debug, PartialEq)]
pub struct News {
    /// A digest of the whole of it.
    pub digest: String,
    /// The group; `None`: it is named no more.
    pub group: Option<GroupConfig>,
}

/// What a group knows of its configuration.
pub(super) struct Configured {
    /// `None`: it does not change.
    source: Option<Box<dyn ConfigSource>>,
    /// When it is looked at next, in microseconds.
    next: AtomicU64,
    /// When it is next looked whether members that have left can be let go of, where no keeper does that.
    parts: AtomicU64,
    /// What was found and is to be taken in. Held while that goes on: whoever finds it held goes on without.
    found: Mutex<Option<Found>>,
    /// The digest of what was taken in last.
    digest: Mutex<Option<String>>,
    /// Of now: with another number of members it may be another one.
    min_copies: AtomicUsize,
}

/// A configuration that is to be taken in.
struct Found {
    news: News,
    /// When it was found.
    since: Duration,
    /// Whether it was told what it waits for.
    is_told: AtomicBool,
}

impl Configured {
    pub(super) fn new(
        min_copies: usize,
        digest: Option<String>,
        source: Option<Box<dyn ConfigSource>>,
    ) -> Self {
        Configured {
            source,
            next: AtomicU64::new(0),
            parts: AtomicU64::new(0),
            found: Mutex::default(),
            digest: Mutex::new(digest),
            min_copies: AtomicUsize::new(min_copies),
        }
    }

    /// Whether anybody has to look.
    pub(super) fn changes(&self) -> bool {
        self.source.is_some()
    }

    /// What was found; `None` while another thread is at it.
    fn found(&self) -> Option<MutexGuard<'_, Option<Found>>> {
        match self.found.try_lock() {
            Ok(found) => Some(found),
            Err(TryLockError::Poisoned(found)) => Some(found.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Group {
    /// Copies that a new token object must have before its creation is acknowledged, by the configuration of now.
    pub fn min_copies(&self) -> usize {
        self.configured.min_copies.load(Ordering::Acquire)
    }

    /// The digest of the configuration that this process goes by, where it has one.
    pub(super) fn configuration(&self) -> Option<String> {
        self.configured.digest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it is time to look whether the configuration has changed.
    pub(super) fn is_configuration_due(&self) -> bool {
        let next = Duration::from_micros(self.configured.next.load(Ordering::Relaxed));
        self.configured.changes() && self.world.now() >= next
    }

    /// Looks whether the configuration has changed, if it is time to. Answers whether there is something to be
    /// [taken in](Self::reconfigure).
    pub(super) fn has_new_configuration(&self) -> bool {
        let Some(source) = self.configured.source.as_ref().filter(|_| self.is_configuration_due()) else {
            return false;
        };
        let Some(mut found) = self.configured.found() else { return false };
        let now = self.world.now();
        self.configured.next.store((now + TICK).as_micros() as u64, Ordering::Relaxed);
        if let Some(news) = source.news() {
            *found = Some(Found { news, since: now, is_told: AtomicBool::new(false) });
        }
        found.is_some()
    }

    /// Takes in a configuration that has changed, if there is one, as far as that can be done now. `keepers`: this group, to
    /// start a keeper for who joins; without, who joins is connected on this thread.
    pub(super) fn reconfigure(&self, keepers: Option<&Arc<Self>>) {
        let Some(source) = &self.configured.source else { return };
        // Held to the end: of two configurations the later one is taken in later.
        let Some(mut held) = self.configured.found() else { return };
        let Some(found) = held.take() else { return };
        let label = &self.config.label;
        let Some(wanted) = &found.news.group else {
            tracing::warn!(group = %label, "the configuration names the group no more: it goes on as it was until the process ends");
            return;
        };
        if !self.take_in_members(wanted, &found, &**source, keepers) {
            *held = Some(found);
            return;
        }
        if !is_same_otherwise(&self.config, wanted) {
            tracing::info!(group = %label, "what else has changed of the group's configuration holds from the next start");
        }
        let digest = found.news.digest;
        *self.configured.digest.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest);
        drop(held);
        self.show_anew();
    }

    /// Answers whether all of it was taken in.
    fn take_in_members(
        &self,
        wanted: &GroupConfig,
        found: &Found,
        source: &dyn ConfigSource,
        keepers: Option<&Arc<Self>>,
    ) -> bool {
        let now: Vec<_> = self.members.iter().cloned().collect();
        let asked = changes(now.iter().map(|m| (m.index, &m.config)), &wanted.members);
        // Before somebody leaves: that may change the ledger.
        self.want_copies(self.min_copies().min(wanted.min_copies));
        let joining = || {
            asked.iter().filter_map(|change| match change {
                Change::Joins(place) => wanted.members.get(*place).map(|config| (*place, config)),
                Change::Leaves(_) | Change::Stays { .. } => None,
            })
        };
        // Two members of one name, or of one token, are there one after the other.
        let has_place =
            |config: &MemberConfig| !self.members.iter().any(|m| takes_the_place(config, &m.config));
        let is_in = |config: &MemberConfig| self.members.iter().any(|m| m.config == *config);
        let join_who_has_place = || {
            let free = joining().filter(|(_, config)| !is_in(config) && has_place(config));
            let joined = free.map(|(place, config)| {
                self.joins(config, place, source.connector(config), keepers).map_err(|why| {
                    format!("member {:?} cannot be taken in: {why}; start the process anew", config.name)
                })
            });
            joined.collect::<Result<Vec<()>, String>>().err()
        };
        let mut waits = join_who_has_place();
        for change in &asked {
            match change {
                Change::Stays { seat, place, role } => {
                    now.iter().filter(|m| m.index == *seat).for_each(|m| self.stays_as(m, *place, *role));
                }
                // Not where nobody can come in its place.
                Change::Leaves(seat) if waits.is_none() => {
                    for member in now.iter().filter(|m| m.index == *seat) {
                        if self.may_leave(member, &wanted.members) {
                            self.leaves(member);
                            waits = join_who_has_place();
                        } else {
                            waits = Some(format!(
                                "member {:?} is used until another one is up, although it is named no more",
                                member.name()
                            ));
                        }
                    }
                }
                Change::Leaves(_) | Change::Joins(_) => {}
            }
        }
        if let Some((_, config)) = joining().find(|(_, config)| !is_in(config)) {
            waits.get_or_insert_with(|| format!("member {:?} waits for who is in its place", config.name));
        }
        // Nobody can make keys if as many are wanted as are not there yet.
        let is_awaited = self.members.iter().any(|m| m.state() != State::Drained && !m.was_up());
        let has_time = self.world.now() < found.since + self.config.recovery.max_interval;
        let rises_later = self.min_copies() < wanted.min_copies && is_awaited && has_time;
        if !rises_later {
            self.want_copies(wanted.min_copies);
        }
        if let Some(why) = &waits
            && !found.is_told.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(group = %self.config.label, why, "the changed configuration is not taken in whole yet");
        }
        waits.is_none() && !rises_later
    }

    fn want_copies(&self, min_copies: usize) {
        self.configured.min_copies.store(min_copies, Ordering::Release);
    }

    /// Whether somebody serves when this member does not, or nobody does anyway.
    fn may_leave(&self, member: &Member, wanted: &[MemberConfig]) -> bool {
        let is_waited_for = || wanted.iter().any(|w| takes_the_place(w, &member.config));
        let is_alone = || self.members.iter().all(|m| m.index == member.index);
        // Nobody could sit down in its place.
        if self.members.next() >= MAX_MEMBERS && is_waited_for() {
            return false;
        }
        !member.is_up() || self.up().any(|m| m.index != member.index) || (is_alone() && is_waited_for())
    }

    fn leaves(&self, member: &Arc<Member>) {
        self.reporter.left(member.name());
        if member.state() != State::Drained {
            self.health_event(member, Event::Drain);
        }
        member.leave();
        member.wake.set();
    }

    fn stays_as(&self, member: &Member, place: usize, role: Role) {
        if member.is_standby() != (role == Role::Standby) {
            tracing::info!(group = %self.config.label, member = member.name(), %role, "the member has another role");
        }
        member.stands_as(place, role);
    }

    /// Gives a member a seat, and somebody who looks after it.
    fn joins(
        &self,
        config: &MemberConfig,
        place: usize,
        connector: Box<dyn Connector>,
        keepers: Option<&Arc<Self>>,
    ) -> Result<(), String> {
        let seat = self.members.next();
        if seat >= MAX_MEMBERS {
            return Err(format!("{MAX_MEMBERS} members have joined and left since it began"));
        }
        let health = Health::new(health::Settings::from(&self.config.recovery));
        let member = Arc::new(Member::new(seat, config.clone(), connector, health, self.world.event()));
        member.stands_as(place, config.role);
        if !self.members.seat(Arc::clone(&member)) {
            return Err("its seat is taken".into());
        }
        self.reporter.joined(member.name());
        self.recall_mechanisms_of(&member);
        self.heed_earlier_wish(&member);
        match keepers {
            None if member.state() == State::Drained => {}
            None => self.connect(&member),
            Some(group) => {
                let started = group.keep_in_thread(&member, |group, member| group.connect_first(member));
                started.map_err(|error| {
                    member.leave();
                    // Each try takes a seat.
                    let again = self.world.now() + self.config.recovery.max_interval;
                    self.configured.next.store(again.as_micros() as u64, Ordering::Relaxed);
                    error.to_string()
                })?;
            }
        }
        Ok(())
    }

    /// Whether it is time to look, where no keeper does, whether members that have left can be let go of.
    pub(super) fn is_due_to_part(&self) -> bool {
        let now = self.world.now();
        let is_due = now >= Duration::from_micros(self.configured.parts.load(Ordering::Relaxed));
        if is_due {
            self.configured.parts.store((now + TICK).as_micros() as u64, Ordering::Relaxed);
        }
        is_due && self.configured.changes()
    }

    /// The end of a member that has left, on its keeper's thread. If the group is stopped meanwhile that sees to it.
    pub(super) fn part_with(&self, member: &Arc<Member>) {
        while !self.is_stopping() && !self.is_let_go(member) {
            member.wake.wait(Some(TICK));
        }
    }

    /// Lets go of the module of a member that has left, once nothing is under way on it and no session object would be lost
    /// with it. Answers whether it is gone.
    pub(super) fn is_let_go(&self, member: &Member) -> bool {
        let _one = match member.connecting.try_lock() {
            Ok(one) => one,
            Err(TryLockError::Poisoned(one)) => one.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let is_on_it =
            |o: &Object| matches!(o.origin, Origin::Session(_)) && !o.moves() && o.lives_on(member.index);
        let is_needed = |link: &Link| {
            let hosts = || !self.objects.select(is_on_it).is_empty() && !wrong!(LeaverTakesSessionObjects);
            member.load() > 0 || link.hangs() || hosts()
        };
        let link = member.link();
        if link.as_ref().is_some_and(|link| is_needed(link)) {
            return false;
        }
        // The token may be another member's by now, in one instance with it.
        let is_anothers = link.is_some_and(|link| self.twin(member, &link).is_some());
        say_goodbye(member, member.logged_in.load(Ordering::Acquire) && !is_anothers);
        true
    }
}

/// Whether two configurations of a group differ in its members at most, and what follows from their number.
fn is_same_otherwise(before: &GroupConfig, after: &GroupConfig) -> bool {
    let after =
        GroupConfig { members: before.members.clone(), min_copies: before.min_copies, ..after.clone() };
    *before == after
}

/// Whether a member that joins has the name or the token of one that is there.
fn takes_the_place(joins: &MemberConfig, there: &MemberConfig) -> bool {
    let token = |m: &MemberConfig| (m.module.clone(), m.selector.clone(), m.env.clone());
    joins.name == there.name || token(joins) == token(there)
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
