//! The virtual slot: sessions, operations and objects by the rules of PKCS#11, over whichever members serve.
//!
//! [`VirtualSlot`] is itself a [`Token`]: what stands above (the C interface, the Rust API) cannot tell a group from
//! a single token, and neither can a test that gives both the same calls.

mod begin;
mod kept;
mod key_login;
mod keys;
mod mechanism;
mod messages;
mod objects;
mod operation;
mod replay;
mod run;
mod search;
mod session;
mod signed;
mod table;
mod token;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ha_token::{Function, Result, Rv, SessionHandle, Token, Ulong};

use crate::group::{Group, Lease, Need};
use kept::Runs;
use run::Call;
use session::SessionState;
use table::Sessions;

/// The HA Virtual Card Slot of one group.
pub struct VirtualSlot {
    /// The group behind it.
    pub(crate) group: Arc<Group>,
    sessions: Sessions,
    /// Open sessions in the low half; above them how often the last one was closed: one word, so that who closes the last
    /// one and who opens the next one agree about which login has ended.
    open: AtomicU64,
    open_ro: AtomicU32,
    /// How often the last session had been closed when the login of this epoch was made.
    login_of: AtomicU32,
    login_epoch: AtomicU64,
}

impl VirtualSlot {
    /// The slot of a group. `number` must be below `1 << SLOT_BITS`.
    pub fn new(group: Arc<Group>, number: Ulong) -> Self {
        VirtualSlot {
            group,
            sessions: Sessions::new(number),
            open: AtomicU64::new(0),
            open_ro: AtomicU32::new(0),
            login_of: AtomicU32::new(0),
            login_epoch: AtomicU64::new(0),
        }
    }

    /// Counts a session; answers whether it was the last one that closed. A read-only one is counted as such for as long
    /// as it is counted at all.
    fn count_session(&self, read_write: bool, opened: bool) -> bool {
        let step = |n: u64| match (opened, n as u32) {
            (true, _) => n + 1,
            (false, 1) => u64::from(((n >> 32) as u32).wrapping_add(1)) << 32,
            (false, _) => n - 1,
        };
        if !read_write && opened {
            self.open_ro.fetch_add(1, Ordering::SeqCst);
        }
        let before =
            self.open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| Some(step(n))).unwrap_or_default();
        if !read_write && !opened {
            self.open_ro.fetch_sub(1, Ordering::SeqCst);
        }
        !opened && before as u32 == 1
    }

    /// Open sessions, and how many of them are read-write.
    fn session_counts(&self) -> (u32, u32) {
        let read_only = self.open_ro.load(Ordering::SeqCst);
        let all = self.open.load(Ordering::SeqCst) as u32;
        (all, all.saturating_sub(read_only))
    }

    /// How often the last session was closed.
    fn endings(&self) -> u32 {
        (self.open.load(Ordering::SeqCst) >> 32) as u32
    }

    /// A PIN, which must be one where there is more than one member: a single one's protected authentication path may
    /// take it.
    fn pin<'a>(&self, function: Function, pin: Option<&'a [u8]>) -> Result<Option<&'a [u8]>> {
        if pin.is_none() && self.group.members.len() > 1 {
            let why = "a PIN must be given: a group of several members cannot use their own PIN pads";
            self.group.reporter.refused(function, Rv::ARGUMENTS_BAD, why);
            return Err(Rv::ARGUMENTS_BAD);
        }
        Ok(pin)
    }

    /// A call without objects or mechanism that any member answers.
    #[inline(always)]
    fn anywhere<T>(
        &self,
        session: SessionHandle,
        function: Function,
        mut f: impl FnMut(&dyn Token, SessionHandle) -> Result<T>,
    ) -> Result<T> {
        let session = self.session(session)?;
        // Random numbers may be drawn while another thread is busy in the session.
        let mut state = session.state_if_free();
        let _call = state.is_none().then(|| self.sessions.stateless(session.handle)).transpose()?;
        let mut tried = None;
        if let Some(state) = &mut state
            && let Some(lease) = state.kept.take_up(&self.group, &Need::default())
        {
            match f(lease.token(), lease.session) {
                Ok(value) => {
                    self.group.succeeded();
                    state.kept.rest();
                    return Ok(value);
                }
                Err(rv) => tried = state.kept.give_up().map(|lease| (lease, rv)),
            }
        }
        let answer = self.anywhere_else(state.as_deref_mut(), function, tried, &mut f);
        // Closed by another thread in the middle of it: that is then why.
        answer.map_err(|rv| self.session(session.handle).err().unwrap_or(rv))
    }

    #[inline(never)]
    fn anywhere_else<T>(
        &self,
        state: Option<&mut SessionState>,
        function: Function,
        tried: Option<(Lease, Rv)>,
        f: &mut dyn FnMut(&dyn Token, SessionHandle) -> Result<T>,
    ) -> Result<T> {
        let call = Call { function, need: Need::default(), skip: None };
        let (value, lease) = self.run_from(tried, &call, &mut |l| f(l.token(), l.session))?;
        if let Some(state) = state
            && let Runs::OnKept = state.kept.settle(lease, (0, 0))
        {
            state.kept.rest();
        }
        Ok(value)
    }
}
