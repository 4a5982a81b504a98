//! A configuration that changes while the group is running: who is named in it joins, who is not leaves, without a restart.
//!
//! One keeper at a time looks, once in [`TICK`] at most. A member that joins is a member that was away: it is connected,
//! caught up and proven before it serves. One that leaves is drained at once, and its module let go when nothing is under way
//! on it and no session object is left there alone. What else of the file has changed holds from the next start.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, TryLockError};
use std::time::Duration;

use ha_token::Connector;

use super::roster::{Change, changes};
use super::stop::say_goodbye;
use super::{Group, Link, Member, Object, Origin, Who};
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
    /// What was found and is to be taken in.
    found: Mutex<Option<News>>,
    /// The digest of what was taken in last.
    digest: Mutex<Option<String>>,
    /// Of now: with another number of members it may be another one.
    min_copies: AtomicUsize,
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
            found: Mutex::default(),
            digest: Mutex::new(digest),
            min_copies: AtomicUsize::new(min_copies),
        }
    }

    /// Whether anybody has to look.
    pub(super) fn changes(&self) -> bool {
        self.source.is_some()
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

    /// Looks whether the configuration has changed, if it is time to. Answers whether there is something to be
    /// [taken in](Self::reconfigure).
    pub(super) fn has_new_configuration(&self) -> bool {
        let Some(source) = &self.configured.source else { return false };
        let now = self.world.now();
        let mut found = match self.configured.found.try_lock() {
            Ok(found) => found,
            Err(TryLockError::Poisoned(found)) => found.into_inner(),
            // Another thread looks.
            Err(TryLockError::WouldBlock) => return false,
        };
        if now >= Duration::from_micros(self.configured.next.load(Ordering::Relaxed)) {
            let next = (now + TICK).as_micros() as u64;
            self.configured.next.store(next, Ordering::Relaxed);
            if let Some(news) = source.news() {
                *found = Some(news);
            }
        }
        found.is_some()
    }

    /// Takes in a configuration that has changed, if there is one. `keepers`: this group, to start a keeper for who joins;
    /// without, who joins is connected on this thread.
    pub(super) fn reconfigure(&self, keepers: Option<&Arc<Self>>) {
        let Some(source) = &self.configured.source else { return };
        // Held to the end: of two configurations the later one is taken in later.
        let mut found = match self.configured.found.try_lock() {
            Ok(found) => found,
            Err(TryLockError::Poisoned(found)) => found.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let Some(news) = found.take() else { return };
        let label = &self.config.label;
        let Some(wanted) = news.group else {
            tracing::warn!(group = %label, "the configuration names the group no more: it goes on as it was until the process ends");
            return;
        };
        let now: Vec<_> = self.members.iter().cloned().collect();
        let mut is_whole = true;
        for change in changes(now.iter().map(|m| (m.index, &m.config)), &wanted.members) {
            match change {
                Change::Leaves(seat) => now.iter().filter(|m| m.index == seat).for_each(|m| self.leaves(m)),
                Change::Stays { seat, place, role } => {
                    now.iter().filter(|m| m.index == seat).for_each(|m| self.stays_as(m, place, role));
                }
                Change::Joins(place) => {
                    let Some(config) = wanted.members.get(place) else { continue };
                    is_whole &= self.joins(config, place, source.connector(config), keepers);
                }
            }
        }
        self.configured.min_copies.store(wanted.min_copies, Ordering::Release);
        if !is_same_otherwise(&self.config, &wanted) {
            tracing::info!(group = %label, "what else has changed of the group's configuration holds from the next start");
        }
        if is_whole {
            *self.configured.digest.lock().unwrap_or_else(PoisonError::into_inner) = Some(news.digest);
        }
        drop(found);
        self.show_anew();
    }

    fn leaves(&self, member: &Arc<Member>) {
        self.reporter.left(member.name());
        if member.state() != State::Drained {
            self.health_event(member, Event::Drain);
        }
        member.leave();
        // What it refused says nothing of the others.
        self.forget_refused_by(member);
        member.wake.set();
    }

    fn stays_as(&self, member: &Member, place: usize, role: Role) {
        if member.is_standby() != (role == Role::Standby) {
            tracing::info!(group = %self.config.label, member = member.name(), %role, "the member has another role");
        }
        member.stands_as(place, role);
    }

    /// Answers whether the member has a seat, and somebody who looks after it.
    fn joins(
        &self,
        config: &MemberConfig,
        place: usize,
        connector: Box<dyn Connector>,
        keepers: Option<&Arc<Self>>,
    ) -> bool {
        let (label, name, seat) = (&self.config.label, &config.name, self.members.next());
        let restart = |why: String| {
            tracing::error!(group = %label, member = %name, why, "the configuration names a member that this process cannot take in: start it anew");
            false
        };
        if seat >= MAX_MEMBERS {
            return restart(format!("{MAX_MEMBERS} members have joined and left since it began"));
        }
        let health = Health::new(health::Settings::from(&self.config.recovery));
        let member = Arc::new(Member::new(seat, config.clone(), connector, health, self.world.event()));
        member.stands_as(place, config.role);
        if !self.members.seat(Arc::clone(&member)) {
            return restart("its seat is taken".into());
        }
        self.reporter.joined(name);
        self.recall_mechanisms_of(&member);
        self.heed_earlier_wish(&member);
        match keepers {
            None if member.state() == State::Drained => {}
            None => self.connect(&member),
            Some(group) => {
                if let Err(error) = group.keep_in_thread(&member, |group, member| group.connect_first(member))
                {
                    member.leave();
                    return restart(error.to_string());
                }
            }
        }
        true
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
        let is_on_it =
            |o: &Object| matches!(o.origin, Origin::Session(_)) && !o.moves() && o.lives_on(member.index);
        let is_needed = |link: Arc<Link>| {
            let hosts = || !self.objects.select(is_on_it).is_empty() && !wrong!(LeaverTakesSessionObjects);
            member.load() > 0 || link.hangs() || hosts()
        };
        if member.link().is_some_and(is_needed) {
            return false;
        }
        say_goodbye(member, self.login.who() != Who::Nobody);
        true
    }
}

/// Whether two configurations of a group differ in its members at most, and what follows from their number.
fn is_same_otherwise(before: &GroupConfig, after: &GroupConfig) -> bool {
    let after =
        GroupConfig { members: before.members.clone(), min_copies: before.min_copies, ..after.clone() };
    *before == after
}
