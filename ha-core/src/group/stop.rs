//! Stopping: calls in flight are waited for, members are finalised, and what hangs is left behind.
//!
//! No call to a member is made on the thread that stops the group, where threads may be made: a member that hangs
//! would hold it. A backing session is not closed one by one, nor a login undone, where the member's own `C_Finalize`
//! does it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{Group, Member, Who};
use crate::policy::health::State;
use crate::seam::Thread;

/// Members' goodbyes under way.
pub(crate) struct Parting {
    /// Every member that is left behind already, by its seat.
    hung: Vec<usize>,
    under_way: Vec<(usize, Box<dyn Thread>)>,
}

impl Group {
    /// From now on nothing new is begun: keepers end, and what is given back to a member's connection costs no call.
    pub(crate) fn begin_stop(&self) {
        self.stopping.store(true, Ordering::Release);
        for member in self.members.seats() {
            if let Some(link) = member.link() {
                link.end();
            }
            member.wake.set();
        }
    }

    /// Whether a call to a member is in flight, or a keeper at work: one whose member is down may be in its
    /// initialisation, which is not waited for.
    pub(crate) fn is_busy(&self) -> bool {
        let keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_at_work = |(seat, keeper): &(usize, Box<dyn Thread>)| {
            !keeper.is_finished() && self.members.get(*seat).is_some_and(|m| m.state() != State::Down)
        };
        self.members.seats().any(|m| m.load() > 0) || keepers.iter().any(is_at_work)
    }

    /// Finalises every member in which nothing hangs, each on a thread of its own where there may be threads.
    pub(crate) fn part(&self) -> Parting {
        let logged_in = self.login.who() != Who::Nobody;
        // The PIN is wiped also where a call hangs.
        self.login.set(Who::Nobody, None);
        self.forget_session_objects();
        let mut parting = Parting { hung: Vec::new(), under_way: Vec::new() };
        let threads = !self.keepers.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        for member in self.members.seats() {
            if member.load() > 0 || member.link().is_some_and(|link| link.hangs()) {
                parting.hung.push(member.index);
                continue;
            }
            let goodbye = {
                let member = Arc::clone(member);
                move || say_goodbye(&member, logged_in)
            };
            if !threads {
                goodbye();
                continue;
            }
            match self.world.spawn(&format!("ha-stop-{}", member.name()), Box::new(goodbye)) {
                Ok(thread) => parting.under_way.push((member.index, thread)),
                Err(error) => {
                    tracing::warn!(group = %self.config.label, member = member.name(), %error,
                        "the member is not finalised: no thread could be started for it");
                    parting.hung.push(member.index);
                }
            }
        }
        parting
    }

    /// Waits for the goodbyes. Answers the names of the members that are left behind.
    pub(crate) fn parted(&self, parting: Parting, until: Duration) -> Vec<String> {
        let Parting { mut hung, under_way } = parting;
        // No more of them from now on: see `keep_in_thread`.
        let keepers = std::mem::take(&mut *self.keepers.lock().unwrap_or_else(PoisonError::into_inner));
        let pause = self.world.event();
        let mut wait = |index, thread: Box<dyn Thread>| {
            while !hung.contains(&index) && !thread.is_finished() && self.world.now() < until {
                pause.wait(Some(Duration::from_millis(1)));
            }
            if thread.is_finished() {
                thread.join();
            } else {
                hung.push(index);
            }
        };
        keepers.into_iter().chain(under_way).for_each(|(index, thread)| wait(index, thread));
        // Now that no keeper begins another one.
        for member in self.members.seats() {
            let tidying = member.tidying.lock().unwrap_or_else(PoisonError::into_inner).take();
            tidying.into_iter().for_each(|thread| wait(member.index, thread));
        }
        if let Some(board) = &self.board {
            board.leave();
        }
        self.lanes.end(&*self.world, until, || self.members.seats().map(|m| m.pending.left()).sum());
        self.reporter.end();
        let hangs =
            |m: &&Arc<Member>| hung.contains(&m.index) || m.connector().hangs() || m.pending.left() > 0;
        let left = self.members.seats().filter(hangs);
        left.map(|member| {
            tracing::warn!(group = %self.config.label, member = member.name(),
                "a call to the member did not return in time; it is left behind");
            member.set_link(None);
            member.name().to_owned()
        })
        .collect()
    }
}

/// Finalises a member's module; where that is not ours to do, undoes what was done in it.
pub(super) fn say_goodbye(member: &Member, logged_in: bool) {
    if let Some(link) = member.link()
        && !member.connector().reinitialises()
    {
        link.undo(logged_in);
    }
    member.set_link(None);
    member.connector().disconnect();
}
