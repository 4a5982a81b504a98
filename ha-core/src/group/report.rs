//! What happens in a group, told to people and programs: log events that do not flood, and a channel of events.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use ha_token::{Function, Rv};

use crate::policy::failure::Class;
use crate::policy::health::State;

/// Events kept for a receiver that does not read; the oldest unread ones stay, newer ones are dropped.
const BACKLOG: usize = 1024;
/// The same fault of the same member is logged once in this time, with the count of those in between.
const QUIET: Duration = Duration::from_secs(5);

/// Something that happened in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupEvent {
    /// A member's health changed.
    Member {
        /// The member.
        member: String,
        /// Before.
        from: State,
        /// After.
        to: State,
        /// Why, in words.
        cause: String,
    },
    /// A call to a member failed and was put down to the member.
    Fault {
        /// The member.
        member: String,
        /// The function.
        function: Function,
        /// What the member answered.
        rv: Rv,
        /// What that was taken for.
        class: Class,
    },
    /// A copy on a member is not the key it should be.
    Conflict {
        /// The member.
        member: String,
        /// The object's label.
        label: String,
    },
    /// Something was refused that the application asked for.
    Refused {
        /// The function.
        function: Function,
        /// What was answered.
        rv: Rv,
        /// Why.
        reason: String,
    },
}

/// A fault that is the same as another: member, function, answer.
type Repeated = (String, Function, Rv);

/// Tells the log and whoever listens.
pub struct Reporter {
    group: String,
    listeners: Mutex<Vec<Sender<GroupEvent>>>,
    /// When each fault was last logged, and how often it has come since.
    recent: Mutex<HashMap<Repeated, (Duration, u64)>>,
}

impl Reporter {
    /// For the group of this label.
    pub fn new(group: &str) -> Self {
        Reporter { group: group.to_owned(), listeners: Mutex::default(), recent: Mutex::default() }
    }

    /// A channel that gets every event from now on.
    pub fn listen(&self) -> Receiver<GroupEvent> {
        let (sender, receiver) = bounded(BACKLOG);
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }

    fn tell(&self, event: &GroupEvent) {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|s| !matches!(s.try_send(event.clone()), Err(TrySendError::Disconnected(_))));
    }

    /// A member's health changed.
    pub fn transition(&self, member: &str, from: State, to: State, cause: &str) {
        match to {
            State::Up => tracing::info!(group = %self.group, member, %from, %to, cause, "member is up"),
            State::Syncing => {
                tracing::info!(group = %self.group, member, %from, %to, cause, "member is catching up")
            }
            _ => tracing::warn!(group = %self.group, member, %from, %to, cause, "member is not used"),
        }
        self.tell(&GroupEvent::Member { member: member.to_owned(), from, to, cause: cause.to_owned() });
    }

    /// A call to a member failed and was put down to the member.
    pub fn fault(&self, now: Duration, member: &str, function: Function, rv: Rv, class: Class) {
        let event = GroupEvent::Fault { member: member.to_owned(), function, rv, class };
        self.tell(&event);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = recent.entry((member.to_owned(), function, rv));
        let suppressed = match entry {
            std::collections::hash_map::Entry::Occupied(mut e) => {
                let (last, count) = e.get_mut();
                if now.saturating_sub(*last) < QUIET {
                    *count += 1;
                    return;
                }
                let suppressed = *count;
                *e.get_mut() = (now, 0);
                suppressed
            }
            std::collections::hash_map::Entry::Vacant(e) => {
                e.insert((now, 0));
                0
            }
        };
        tracing::warn!(group = %self.group, member, function = %function, rv = %rv, class = ?class, suppressed,
            "a call to a member failed; it goes to another one if one can serve it");
    }

    /// A copy is not the key it should be.
    pub fn conflict(&self, member: &str, label: &[u8]) {
        let label = String::from_utf8_lossy(label).into_owned();
        tracing::error!(group = %self.group, member, label, "the copy on this member is another key: it is not used there; see `hactl check --prove`");
        self.tell(&GroupEvent::Conflict { member: member.to_owned(), label });
    }

    /// Something the application asked for was refused by the group itself.
    pub fn refused(&self, function: Function, rv: Rv, reason: &str) {
        tracing::warn!(group = %self.group, function = %function, rv = %rv, reason, "refused");
        self.tell(&GroupEvent::Refused { function, rv, reason: reason.to_owned() });
    }
}
