//! The groups behind the slots: how their members are, and what happens in them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Receiver;
use cryptoki::context::Function;
use cryptoki::error::Result;
use cryptoki::slot::Slot;
use ha_token::Ulong;

pub use crate::group::{Fault, GroupEvent, GroupStatus, LastFault, MemberStatus};
pub use crate::policy::failure::Class;
pub use crate::policy::health::State;

use super::context::Pkcs11;
use super::convert::OrError;

/// A group of members behind one slot: what an operator would ask about it.
///
/// A cheap handle: clones are the same group, and may be used from any thread. It is of one start of the instance and
/// keeps nothing running: after `finalize` or `shutdown` it tells what was known at the end, and its events have ended.
#[derive(Clone)]
pub struct Group {
    group: Arc<crate::group::Group>,
    slot: Slot,
}

impl Group {
    /// The label of the virtual token.
    pub fn label(&self) -> &str {
        &self.group.config.label
    }

    /// The group's slot.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// The state of every member at this moment, in the order of the configuration. No member is asked.
    pub fn status(&self) -> GroupStatus {
        self.group.status()
    }

    /// What happens in the group from now on: every change of a member's health, every fault, failover, conflict and
    /// refusal, for this receiver alone.
    pub fn events(&self) -> Events {
        Events { receiver: self.group.events() }
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("label", &self.label())
            .field("slot", &self.slot)
            .finish_non_exhaustive()
    }
}

/// What happens in a group, in order, for one receiver.
///
/// As an iterator it waits for the next event, and ends when the instance is finalised. Up to 1024 events are kept for a
/// receiver that does not look; those that come while it is that far behind are not told to it, but for how many they were
/// ([`GroupEvent::Missed`]). It may be sent to another thread.
pub struct Events {
    receiver: Receiver<GroupEvent>,
}

impl Events {
    /// The next event, if there is one already.
    pub fn try_next(&mut self) -> Option<GroupEvent> {
        self.receiver.try_recv().ok()
    }

    /// The next event, waited for at most this long. `None` also when there will be no more.
    #[expect(clippy::disallowed_methods, reason = "it is the application that waits, as long as it says")]
    pub fn next_within(&mut self, limit: Duration) -> Option<GroupEvent> {
        self.receiver.recv_timeout(limit).ok()
    }
}

impl Iterator for Events {
    type Item = GroupEvent;

    #[expect(clippy::disallowed_methods, reason = "it is the application that waits")]
    fn next(&mut self) -> Option<GroupEvent> {
        self.receiver.recv().ok()
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("waiting", &self.receiver.len()).finish()
    }
}

impl Pkcs11 {
    /// Every group, in the order of the configuration, which is that of their slots.
    ///
    /// # Errors
    /// `CKR_CRYPTOKI_NOT_INITIALIZED`.
    pub fn groups(&self) -> Result<Vec<Group>> {
        let function = Function::GetSlotList;
        let running = self.running(function)?;
        let groups = running.provider().or_error(function)?.groups();
        (0..)
            .zip(groups)
            .map(|(id, group): (Ulong, _)| Ok(Group { group: Arc::clone(group), slot: Slot::try_from(id)? }))
            .collect()
    }

    /// The group of this label, if the configuration has one.
    ///
    /// # Errors
    /// As [`Pkcs11::groups`].
    pub fn group(&self, label: &str) -> Result<Option<Group>> {
        Ok(self.groups()?.into_iter().find(|group| group.label() == label))
    }
}
