//! What the group says of itself: the virtual token's information for applications, the members' state for operators.

use std::time::Duration;

use ha_token::{Ulong, ck};

use super::link::ABOUT_PINS;
use super::{Fault, Group, Member};
use crate::policy::health::State;

/// A group's state at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group's label.
    pub label: String,
    /// Its members, in the order of the file.
    pub members: Vec<MemberStatus>,
}

/// A member's state at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Its health.
    pub state: State,
    /// Whether it serves only when no active member is up.
    pub standby: bool,
    /// The last fault put down to it.
    pub last_fault: Option<Fault>,
    /// Why it could not be connected the last time.
    pub connect_error: Option<String>,
    /// How long the last probe took.
    pub round_trip: Option<Duration>,
    /// Operations at this moment.
    pub load: u32,
}

impl Group {
    /// The state of every member now.
    pub fn status(&self) -> GroupStatus {
        GroupStatus {
            label: self.config.label.clone(),
            members: self.members.in_order().map(|m| m.status()).collect(),
        }
    }

    /// Whether objects can be created, changed and destroyed here: there is a ledger, and it can be written.
    pub fn may_change(&self) -> bool {
        self.ledger.as_ref().is_some_and(|l| !l.is_read_only())
    }

    /// Operations that each member has been asked to serve since the start, in the order of the file.
    pub fn served(&self) -> Vec<u64> {
        self.members.in_order().map(|m| m.served()).collect()
    }

    /// A channel of what happens from now on.
    pub fn events(&self) -> crossbeam::channel::Receiver<super::GroupEvent> {
        self.reporter.listen(|_| true)
    }

    /// A channel of the members' health from now on: no other event takes a place in it.
    pub fn health_events(&self) -> crossbeam::channel::Receiver<super::GroupEvent> {
        self.reporter.listen(|event| matches!(event, super::GroupEvent::Member { .. }))
    }

    /// The virtual token's serial number: made with the ledger, the same whoever joins or leaves.
    pub(crate) fn serial(&self) -> String {
        match &self.ledger {
            Some(ledger) => ledger.identity().serial,
            // Without a ledger at least the same label has the same number.
            None => crate::digest::short(self.config.label.as_bytes()),
        }
    }

    /// The shortest and longest PIN that every connected member takes.
    pub(crate) fn pin_lengths(&self) -> (Ulong, Ulong) {
        let links: Vec<_> = self.members.iter().filter_map(|m| m.link()).collect();
        let known = |n: Ulong| n != ck::CK_UNAVAILABLE_INFORMATION && n != 0;
        let min = links.iter().map(|l| l.info.min_pin_len).filter(|n| known(*n)).max().unwrap_or(4);
        let max = links.iter().map(|l| l.info.max_pin_len).filter(|n| known(*n)).min().unwrap_or(255);
        (min, max)
    }

    /// The virtual token's flags (section 3.2): what every connected member has; what matters to a PIN if any member says it.
    /// As they told it when they were last asked: in a login, when a PIN was sent or set, in a probe. None is called.
    pub(crate) fn token_flags(&self) -> Ulong {
        const COMMON: Ulong =
            ck::CKF_RNG | ck::CKF_LOGIN_REQUIRED | ck::CKF_USER_PIN_INITIALIZED | ck::CKF_TOKEN_INITIALIZED;
        let mut common = COMMON;
        let mut any = 0;
        for member in self.members.iter() {
            if let Some(link) = member.link() {
                common &= link.flags();
                any |= link.flags() & ABOUT_PINS;
            }
        }
        let ledger = match &self.ledger {
            Some(ledger) if !ledger.is_read_only() => 0,
            _ => ck::CKF_WRITE_PROTECTED,
        };
        common | any | ledger
    }
}

impl Member {
    /// Its state now.
    pub fn status(&self) -> MemberStatus {
        MemberStatus {
            name: self.name().to_owned(),
            state: self.state(),
            standby: self.is_standby(),
            last_fault: self.last_fault(),
            connect_error: self.connect_error(),
            round_trip: self.round_trip(),
            load: self.load(),
        }
    }
}
