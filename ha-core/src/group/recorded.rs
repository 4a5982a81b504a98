//! What the members' tokens know of a group whose ledger is lost.

use std::sync::atomic::Ordering;

use ha_token::{Result, Rv};

use super::{Group, Who};
use crate::replica::ledger::Record;
use crate::replica::marker::{self, Marker};
use crate::replica::records;

/// What a group's ledger is to be made of.
pub struct Recorded {
    /// The member whose token knows most.
    pub member: String,
    /// What its marker says.
    pub marker: Marker,
    /// The members whose markers are older: they were away, or were set back.
    pub behind: Vec<String>,
    /// What it has recorded of each object.
    pub records: Vec<Record>,
    /// How many of the data objects that records are kept in cannot be read: what they held is not known.
    pub damaged: usize,
}

/// Why the tokens say nothing of a group.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRecorded {
    /// A member's answer.
    #[error("member {member:?} answered {rv}")]
    Answered {
        /// Which member.
        member: String,
        /// Its answer.
        rv: Rv,
    },
    /// No token has a marker with records.
    #[error("no token that is up has records of a group")]
    Nowhere,
    /// They are of several groups, or ledgers.
    #[error("the tokens belong to different groups: {0}")]
    Several(String),
}

impl Group {
    /// The ledger that this was started with is none: the tokens are only to be read. Said before the login.
    pub fn to_be_rebuilt(&self) {
        self.sync_by_hand();
        self.is_to_be_rebuilt.store(true, Ordering::Release);
    }

    /// What the members that are up have recorded of the group: by the one whose marker is the latest. Nothing is written. The
    /// user is logged in.
    ///
    /// # Errors
    /// [`NotRecorded`].
    pub fn recorded(&self) -> std::result::Result<Recorded, NotRecorded> {
        let answered = |member: &str, rv| NotRecorded::Answered { member: member.to_owned(), rv };
        let mut found: Vec<(String, Marker)> = Vec::new();
        for member in self.up() {
            let of_member = |rv| answered(member.name(), rv);
            let markers = self.marker_of(member.name()).map_err(of_member)?;
            found.extend(markers.map(|marker| (member.name().to_owned(), marker)));
        }
        if let [(_, first), rest @ ..] = found.as_slice()
            && rest.iter().any(|(_, other)| other.identity != first.identity)
        {
            let whose = |(member, marker): &(String, Marker)| format!("{member} to {:?}", marker.label);
            return Err(NotRecorded::Several(found.iter().map(whose).collect::<Vec<_>>().join(", ")));
        }
        let epochs: Vec<_> = found.iter().map(|(member, marker)| (member.clone(), marker.epoch)).collect();
        let with_records = found.into_iter().filter(|(_, marker)| marker.record_bits.is_some());
        let (member, marker) =
            with_records.max_by_key(|(_, marker)| marker.epoch).ok_or(NotRecorded::Nowhere)?;
        let read = self.records_on(&member, marker.record_bits.unwrap_or(0));
        let read = read.map_err(|rv| answered(&member, rv))?;
        let is_behind = |name: &str| !epochs.iter().any(|(n, epoch)| n == name && *epoch == marker.epoch);
        let behind = self.up().map(|m| m.name().to_owned()).filter(|name| is_behind(name)).collect();
        Ok(Recorded { member, marker, behind, records: read.records, damaged: read.damaged })
    }

    fn marker_of(&self, member: &str) -> Result<Option<Marker>> {
        if self.login.who() != Who::User {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        let member = self.up().find(|m| m.name() == member).ok_or(Rv::TOKEN_NOT_PRESENT)?;
        Ok(marker::find(self.sound_lease(member)?.on())?.latest)
    }

    fn records_on(&self, member: &str, bits: u8) -> Result<records::Records> {
        let member = self.up().find(|m| m.name() == member).ok_or(Rv::TOKEN_NOT_PRESENT)?;
        records::read(self.sound_lease(member)?.on(), bits)
    }
}
