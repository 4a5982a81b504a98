//! The keeper: one thread for each member that connects it, probes it when it is suspect, and takes it back.
//!
//! Members do not wait for each other here: a module that hangs while it is initialised holds up its own keeper only.

use std::sync::atomic::Ordering;
use std::sync::{Arc, TryLockError};
use std::time::Duration;

use ha_token::{ConnectError, Function, Rv, Token};

use super::link::Calls;
use super::{Fault, Group, Link, Member, Who};
use crate::config::RecoveryMode;
use crate::lanes::{Deadlines, Lanes};
use crate::mutants::wrong;
use crate::policy::failure::Class;
use crate::policy::health::{Event, State, Until};

/// How long a call waits for members that it has found dead and that are connected anew.
const RETURN_PATIENCE: Duration = Duration::from_secs(1);

/// A member that is up is looked at after the longest interval. After so many of them what other processes have left is
/// looked for, and one that goes on refusing some of what it lacks is asked once more.
const LOOKING_INTERVALS: u32 = 10;

/// How long a member that answers again is kept out by a change of before that has not returned.
const WRITE_PATIENCE: Duration = Duration::from_secs(60);

/// How long a start waits for the members' first answers. A member that takes longer is taken in when it answers.
const START_PATIENCE: Duration = Duration::from_secs(10);

impl Group {
    /// Connects every member, on its keeper's thread, and waits for their first answers. With `threads` false the
    /// members are connected on this thread, once, and no keeper is started.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(self: &Arc<Self>, threads: bool) -> std::io::Result<()> {
        self.settle();
        self.heed_earlier_wishes();
        if !threads {
            self.alone.store(true, Ordering::Release);
            for member in self.members.iter().filter(|m| m.state() != State::Drained) {
                self.connect(member);
            }
            return Ok(());
        }
        let first = self.world.event();
        let members: Vec<_> = self.members.iter().cloned().collect();
        let (sender, answers) = crossbeam::channel::bounded(members.len());
        for member in &members {
            let (sender, first) = (sender.clone(), Arc::clone(&first));
            self.keep_in_thread(member, move |group, member| {
                group.connect_first(member);
                _ = sender.send(());
                first.set();
            })?;
        }
        let began = self.world.now();
        while answers.len() < members.len() {
            let now = self.world.now();
            // Without any member there is nothing to go on with.
            let patience = match self.config.deadline {
                Some(deadline) if self.up().next().is_some() => deadline.min(START_PATIENCE),
                _ => START_PATIENCE,
            };
            let until = began + patience;
            if now >= until {
                tracing::warn!(group = %self.config.label, "some members have not answered yet; they are taken in when they do");
                break;
            }
            first.wait(Some(until - now));
        }
        Ok(())
    }

    /// Starts a member's keeper, which does `first` before all else.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(super) fn keep_in_thread(
        self: &Arc<Self>,
        member: &Arc<Member>,
        first: impl FnOnce(&Group, &Arc<Member>) + Send + 'static,
    ) -> std::io::Result<()> {
        let (group, keeps) = (Arc::clone(self), Arc::clone(member));
        let keeper = move || {
            first(&group, &keeps);
            group.keep(&keeps);
        };
        let mut keepers = self.keepers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Who stops the group takes the keepers under this lock, once.
        if self.is_stopping() {
            return Err(std::io::Error::other("the group is being stopped"));
        }
        keepers.push((member.index, self.world.spawn(&format!("ha-{}", member.name()), Box::new(keeper))?));
        Ok(())
    }

    /// Settles what processes have left that died while they made or destroyed something.
    pub(super) fn settle(&self) {
        let Some(ledger) = self.ledger.as_ref().filter(|l| !l.is_read_only()) else { return };
        let members: Vec<&str> = self.members.iter().map(|m| m.name()).collect();
        match ledger.settle(&members) {
            Ok(0) => {}
            Ok(left) => {
                tracing::warn!(group = %self.config.label, left, "a process died while it made, changed or destroyed something: what was not acknowledged is destroyed, and a change is made");
                // Also those that were just brought up to date: it was not known then.
                if !wrong!(SettledUntold) {
                    self.members.iter().for_each(|m| m.falls_behind());
                }
            }
            Err(error) => {
                tracing::warn!(group = %self.config.label, %error, "what was left half done cannot be settled now");
            }
        }
    }

    fn keep(self: &Arc<Self>, member: &Arc<Member>) {
        // The longest intervals in which it was up and nothing was to be done.
        let mut quiet: u32 = 0;
        // Those since it refused something that it may take another time.
        let mut since: u32 = 0;
        while !self.is_stopping() {
            self.reconfigure(Some(self));
            if member.has_left() {
                return self.part_with(member);
            }
            self.share(member);
            if self.connect_if_asked(member) {
                continue;
            }
            self.tidy(member);
            let now = self.world.now();
            let due = {
                let health = member.health();
                (health.state(), health.next_probe())
            };
            match due {
                (State::Up, _) if self.is_behind(member) => {
                    let wait = self.catch_up_again(member);
                    if member.is_up() && self.is_behind(member) {
                        self.rest_at(member, Some(wait));
                    }
                }
                (State::Suspect, Some(at)) if at <= now => self.probe(member),
                (State::Suspect, Some(at)) => _ = self.rest_at(member, Some(at - now)),
                (State::Down | State::Quarantined, Some(at))
                    if self.config.recovery.mode == RecoveryMode::Auto =>
                {
                    let at = if due.0 == State::Down { self.considering_others(member, at) } else { at };
                    if at <= now {
                        self.connect(member);
                    } else {
                        self.rest_at(member, Some(at - now));
                    }
                }
                (State::Up, _) => {
                    if !self.rest_at(member, Some(self.config.recovery.max_interval)) {
                        quiet += 1;
                        // One that nobody uses, as a standby member, is missed only when the others are gone.
                        if !wrong!(IdleNotProbed) {
                            self.look_at(member);
                        }
                        since = if member.may_take.load(Ordering::Acquire) { since + 1 } else { 0 };
                        if is_tried_again(since) || self.is_mark_due(member) {
                            member.falls_behind();
                        } else if since == 0 && quiet.is_multiple_of(LOOKING_INTERVALS) {
                            self.look_for_leavings(member);
                        }
                    }
                }
                _ => {
                    self.rest_at(member, None);
                }
            }
        }
    }

    /// Sees to what earlier connections have left, on a thread of its own: that may hang as those did.
    fn tidy(&self, member: &Arc<Member>) {
        let Some(leavings) = member.connector().leavings() else { return };
        let mut tidying = member.tidying.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if tidying.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        match self.world.spawn(&format!("ha-tidy-{}", member.name()), leavings) {
            Ok(thread) => *tidying = Some(thread),
            // There is a next time.
            Err(error) => {
                tracing::debug!(member = member.name(), %error, "no thread to finalise what was left behind");
            }
        }
    }

    /// Does a keeper's work where there is none: probes the suspect members that are due, on the caller's thread.
    pub(super) fn look_after(&self) {
        if !self.alone.load(Ordering::Relaxed) {
            return;
        }
        if self.has_new_configuration() {
            self.reconfigure(None);
        }
        if self.is_due_to_part() {
            let has_left = |m: &&Arc<Member>| m.has_left() && m.link().is_some();
            self.members.seats().filter(has_left).for_each(|m| _ = self.is_let_go(m));
        }
        self.heed_wishes_alone();
        for member in self.members.iter().filter(|m| m.is_up() && self.is_behind(m)) {
            // Another caller is at it, or it is not to be tried again yet: that may wait for another process.
            let mut until = match member.behind_until.try_lock() {
                Ok(until) => until,
                Err(TryLockError::Poisoned(until)) => until.into_inner(),
                Err(TryLockError::WouldBlock) => continue,
            };
            if self.world.now() >= *until && member.catching_up.try_lock().is_ok() {
                let wait = self.catch_up_again(member);
                *until = if self.is_behind(member) { self.world.now() + wait } else { Duration::ZERO };
            }
        }
        for member in self.members.iter().filter(|m| m.state() == State::Suspect) {
            // One caller probes; the others go on with the members that are up.
            let _one = match member.connecting.try_lock() {
                Ok(one) => one,
                Err(TryLockError::Poisoned(one)) => one.into_inner(),
                Err(TryLockError::WouldBlock) => continue,
            };
            let due = member.health().next_probe().is_some_and(|at| at <= self.world.now());
            if due {
                self.probe(member);
            }
        }
    }

    /// Waits for members that were found dead a moment ago and are connected anew at once: they may have been restarted
    /// while nobody used them; and for one that is up and is connected anew all the same, for a PIN that was changed, whoever
    /// looks after it. Ends when so many are up, when no more can be for now, and [`RETURN_PATIENCE`] after they were; answers
    /// whether so many are up. Those of `but`, a bit for each, do not count.
    pub(crate) fn wait_for_return(&self, enough: usize, but: u32) -> bool {
        let counts = |member: &&Arc<Member>| but >> member.index & 1 == 0;
        let is_back = |member: &&Arc<Member>| member.link().is_some();
        let are_enough = || self.up().filter(counts).filter(is_back).count() >= enough;
        let is_on_its_way = |member: &Arc<Member>| member.is_up() && !is_back(&member);
        let nobody_looks =
            self.alone.load(Ordering::Relaxed) || self.config.recovery.mode != RecoveryMode::Auto;
        if nobody_looks && !self.members.iter().filter(counts).any(is_on_its_way) {
            return false;
        }
        let patience = self.config.deadline.map_or(RETURN_PATIENCE, |d| d.min(RETURN_PATIENCE));
        let until = self.world.now() + patience;
        let pause = self.world.event();
        loop {
            if are_enough() {
                return true;
            }
            let now = self.world.now();
            let soon = |member: &Arc<Member>| {
                if is_on_its_way(member) || nobody_looks {
                    return is_on_its_way(member);
                }
                let health = member.health();
                // Read only now: it may have gone down since the clock was read for this round.
                health.may_return(self.world.now(), patience)
            };
            if now >= until || self.is_stopping() || !self.members.iter().filter(counts).any(soon) {
                // One may have come up since it was counted.
                return are_enough();
            }
            pause.wait(Some(Duration::from_millis(1)));
        }
    }

    pub(super) fn note(&self, member: &Member, function: Function, rv: Rv) {
        member.set_fault(Fault { function, rv, class: Class::Member, at: self.world.wall_clock() });
    }

    /// The first tries, before the start goes on without the member: SoftHSM does not see a token for a moment while
    /// another process writes to it.
    pub(super) fn connect_first(&self, member: &Arc<Member>) {
        if member.state() == State::Drained {
            return;
        }
        self.connect(member);
        for pause in [Duration::from_millis(20), Duration::from_millis(60)] {
            // Nothing that is wrong for good, and nothing that was taken in.
            if member.health().next_probe().is_none() || self.is_stopping() {
                return;
            }
            self.world.event().wait(Some(pause));
            self.connect(member);
        }
    }

    /// One try to connect a member: initialise, find the token, log in, catch up, use.
    pub(crate) fn connect(&self, member: &Arc<Member>) {
        self.trying(member, || self.connect_once(member));
    }

    fn connect_once(&self, member: &Arc<Member>) {
        let _one = member.connecting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(link) = member.link() {
            // In a shared instance they would stay.
            if !member.connector().reinitialises() && !link.hangs() {
                link.close_all();
            }
            link.end_lanes();
        }
        member.set_link(None);
        let token = match self.connect_in_time(member) {
            Ok(token) => token,
            Err(error) => {
                if member.connect_error().as_deref() != Some(&error.to_string()) {
                    tracing::warn!(group = %self.config.label, member = member.name(), %error, "member cannot be connected");
                }
                member.set_connect_error(Some(error.to_string()));
                let event = match error {
                    ConnectError::Itself { .. } => Event::Quarantine(Until::Wanted),
                    // Mended by the operator, at the token; and what SoftHSM shows for a moment while another process
                    // writes.
                    ConnectError::Ambiguous { .. } | ConnectError::NotInitialised { .. } => {
                        Event::Quarantine(Until::Mended)
                    }
                    ConnectError::Load { .. } | ConnectError::Call { .. } | ConnectError::NoToken { .. } => {
                        Event::ProbeFailed
                    }
                };
                self.health_event(member, event);
                return;
            }
        };
        if self.is_stopping() {
            member.connector().disconnect();
            return;
        }
        let calls = self.calls_of(member, token);
        let link = match Link::open(calls, self.next_generation(), &*self.world) {
            Ok(link) => Arc::new(link),
            Err(rv) => {
                self.note(member, Function::OpenSession, rv);
                member.set_connect_error(Some(format!(
                    "the token was found, and answered {rv} when it was asked about itself"
                )));
                self.health_event(member, Event::ProbeFailed);
                return;
            }
        };
        if let Err(reason) = self.recognise(member, &link) {
            self.put_aside(member, reason);
            return;
        }
        self.forget_login_without_pin();
        // Before anything else is said of it: a member that is in quarantine because of its PIN stays there.
        if let Err(rv) = self.follow(member, &link) {
            self.note(member, Function::Login, rv);
            self.health_event(member, Event::ProbeFailed);
            return;
        }
        self.wait_for_writes(member);
        member.set_connect_error(None);
        member.key_tries.store(0, Ordering::Release);
        self.health_event(member, Event::Connected);
        if let Err(rv) = self.follow_login(member, &link) {
            self.note(member, Function::Login, rv);
            self.health_event(member, Event::ProbeFailed);
            return;
        }
        if let Err(reason) = self.take_in(member, &link) {
            self.put_aside(member, reason);
            return;
        }
        // A logout while it caught up did not see this connection.
        if let Err(rv) = self.follow(member, &link) {
            self.note(member, Function::Login, rv);
            self.health_event(member, Event::ProbeFailed);
            return;
        }
        // Without a login nothing can be given to it: searches for what is public go to the others, too.
        if self.login.who() != Who::User
            && let Some(ledger) = &self.ledger
        {
            let lacks = ledger.lacks_public(member.name()).unwrap_or(true);
            member.lacks.store(lacks, Ordering::Release);
        }
        self.health_event(member, Event::CaughtUp);
        self.appeared();
    }

    /// Waits for calls of before that may still change the member's token: what it holds is not known until they have
    /// returned, and what they make nobody would look for. Nobody begins any more while it is not up.
    pub(super) fn wait_for_writes(&self, member: &Member) {
        let until = self.world.now() + WRITE_PATIENCE;
        // Whose connection has ended wait no longer, and are about to say so.
        while member.pending.writes() > 0 && !self.is_stopping() && !wrong!(LateWritesNotAwaited) {
            let now = self.world.now();
            if now >= until {
                member.pending.give_up_writes();
                tracing::warn!(group = %self.config.label, member = member.name(), "a change on the member's token has not returned, and is not waited for any longer; `hactl check` shows what became of it");
                return;
            }
            // Not told of each.
            member.wake.wait(Some((until - now).min(Duration::from_millis(100))));
        }
    }

    /// How the calls of a new connection are made: with a deadline, if there is one.
    fn calls_of(&self, member: &Arc<Member>, token: Arc<dyn Token>) -> Calls {
        let Some(call) = self.config.deadline else { return Calls::Direct(token) };
        let deadlines = Deadlines { call, generate: self.config.generate_deadline };
        let name = format!("ha-lane-{}", member.name());
        let pending = Arc::clone(&member.pending);
        let member = Arc::downgrade(member);
        let changed_late = move || {
            if let Some(member) = member.upgrade() {
                member.falls_behind();
            }
        };
        let outside = (Arc::clone(&self.world), Arc::clone(&self.lanes));
        Calls::OnLanes(Arc::new(Lanes::new(token, outside, name, deadlines, pending, Box::new(changed_late))))
    }

    /// A login without a PIN, on a single member's own PIN pad, cannot be made again for the application: with the
    /// connection that it was made on it has ended.
    fn forget_login_without_pin(&self) {
        if self.login.who() == Who::Nobody || self.login.pin().is_some() {
            return;
        }
        // A login under way may be waiting for this member: the next try to connect it sees what became of that.
        let Some(_turn) = self.login.turn_if_free() else { return };
        if self.login.who() != Who::Nobody && self.login.pin().is_none() {
            tracing::warn!(group = %self.config.label, "the login without a PIN ended with the member's connection: the application must log in anew");
            self.log_out_now();
        }
    }

    /// Whether the token may be this member: nobody else's, and the one that was there before.
    fn recognise(&self, member: &Member, link: &Link) -> Result<(), String> {
        if let Some(twin) = self.twin(member, link) {
            return Err(same_token(twin, link));
        }
        let Some(ledger) = &self.ledger else { return Ok(()) };
        match ledger.remember_member(member.name(), &link.info.serial) {
            Ok(None) => Ok(()),
            Ok(Some(before)) if before == link.info.serial => Ok(()),
            Ok(Some(before)) => Err(format!(
                "the token behind it has serial {} and had {before}; put the right token back, or give the member another name in the configuration",
                link.info.serial
            )),
            Err(error) => {
                tracing::warn!(member = member.name(), %error, "the ledger cannot remember the member's token");
                Ok(())
            }
        }
    }

    /// Makes a connection the member's. Two members of one token may be connected at the same moment: one of them is
    /// taken in, and the other finds it there.
    fn take_in(&self, member: &Member, link: &Arc<Link>) -> Result<(), String> {
        let _one = self.taking_in.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match self.twin(member, link) {
            Some(twin) => Err(same_token(twin, link)),
            None => {
                self.learn_mechanisms(member, link);
                member.set_link(Some(Arc::clone(link)));
                Ok(())
            }
        }
    }

    /// Remembers what a member's token can do, for as long as it is away and for the next start without it.
    fn learn_mechanisms(&self, member: &Member, link: &Link) {
        member.set_mechanisms(link.mechanisms.clone());
        if let Some(ledger) = &self.ledger
            && let Err(error) = ledger.remember_mechanisms(member.name(), &link.mechanisms)
        {
            tracing::warn!(group = %self.config.label, member = member.name(), %error, "the ledger cannot remember the member's mechanisms");
        }
    }

    /// What the members' tokens could do when they were last connected.
    pub(super) fn recall_mechanisms(&self) {
        self.members.iter().for_each(|member| self.recall_mechanisms_of(member));
    }

    /// The same of one.
    pub(super) fn recall_mechanisms_of(&self, member: &Member) {
        let Some(ledger) = &self.ledger else { return };
        match ledger.mechanisms_of(member.name()) {
            Ok(Some(list)) => member.set_mechanisms(list),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(group = %self.config.label, member = member.name(), %error, "the ledger cannot say what the member's mechanisms were");
            }
        }
    }

    /// Another member that is connected to the same token.
    pub(super) fn twin(&self, member: &Member, link: &Link) -> Option<&Arc<Member>> {
        let token = |l: &Link| {
            (l.info.serial.clone(), l.info.label.clone(), l.info.manufacturer.clone(), l.info.model.clone())
        };
        self.members.iter().find(|other| {
            other.index != member.index && other.link().is_some_and(|l| token(&l) == token(link))
        })
    }
}

/// These members, a bit for each, as [`Group::wait_for_return`] wants them.
pub(super) fn bits(members: impl IntoIterator<Item = usize>) -> u32 {
    members.into_iter().fold(0, |all, index| all | 1 << index)
}

/// Whether a member that refused something so many longest intervals ago, and may have done so for a moment, is asked for it
/// once more: rarer and rarer.
fn is_tried_again(since: u32) -> bool {
    since > 0
        && (since.is_multiple_of(LOOKING_INTERVALS) || (since < LOOKING_INTERVALS && since.is_power_of_two()))
}

fn same_token(twin: &Member, link: &Link) -> String {
    format!(
        "it is the same token as member {:?} (label {:?}, serial {}); name another token, or take one of the two out of the group",
        twin.name(),
        link.info.label,
        link.info.serial
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_for_a_moment_is_tried_again_soon_and_then_rarely() {
        let tried: Vec<u32> = (0..=40).filter(|since| is_tried_again(*since)).collect();
        assert_eq!(tried, [1, 2, 4, 8, 10, 20, 30, 40]);
    }
}
