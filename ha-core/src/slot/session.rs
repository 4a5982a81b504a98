//! A virtual session: its flags, its operations, its search, and the backing sessions that own its session objects.

use std::sync::{Arc, Mutex, MutexGuard};

use ha_token::{ObjectHandle, OpKind, Result, Rv, SessionHandle, Ulong, ck};

use super::VirtualSlot;
use super::messages::MessageOperation;
use super::operation::Operation;
use crate::group::{Group, Lease, Member, Need, Origin, Who};

/// A session as the application sees it. Costs no member a call until it is used.
pub(super) struct VirtualSession {
    /// Its handle.
    pub handle: SessionHandle,
    /// Opened with `CKF_RW_SESSION`.
    pub read_write: bool,
    state: Mutex<SessionState>,
}

/// A backing session that rests between two operations of one virtual session, which so need no plan and no pool.
struct Kept {
    lease: Lease,
    /// Operations that may still stay here before a plan is made again.
    stays: u8,
    /// The mechanism and flag that were last found to be there.
    fits: (Ulong, Ulong),
}

/// What goes on in a session. One call at a time has it.
#[derive(Default)]
pub(super) struct SessionState {
    /// Set by `C_CloseSession`: whoever waited for the lock finds the session gone.
    closed: bool,
    /// At most one of each kind.
    operations: Vec<Operation>,
    /// The message-based operation of each kind.
    pub messages: [Option<MessageOperation>; 4],
    /// The handles that a search in progress has not given out yet.
    pub search: Option<std::vec::IntoIter<ObjectHandle>>,
    /// The backing session of the last operation, kept for the next one.
    kept: Option<Kept>,
    /// Backing sessions, one a member, that live as long as this session and own its session objects.
    owners: Vec<Lease>,
}

impl SessionState {
    /// The operation of a kind.
    ///
    /// # Errors
    /// `CKR_OPERATION_NOT_INITIALIZED`.
    pub(super) fn operation(&mut self, kind: OpKind) -> Result<&mut Operation> {
        self.operations.iter_mut().find(|o| o.kind() == kind).ok_or(Rv::OPERATION_NOT_INITIALIZED)
    }

    /// Adds an operation of a kind that has none.
    pub(super) fn start(&mut self, operation: Operation) {
        self.operations.push(operation);
    }

    /// Takes the operation of a kind out, if there is one.
    pub(super) fn take(&mut self, kind: OpKind) -> Option<Operation> {
        let at = self.operations.iter().position(|o| o.kind() == kind)?;
        Some(self.operations.swap_remove(at))
    }

    /// The lease that was kept, if the next operation may stay on it.
    pub(super) fn stay(&mut self, group: &Group, need: &Need<'_>) -> Option<(Lease, u8)> {
        let kept = self.kept.take()?;
        let fits = need.mechanism.is_some_and(|m| m == kept.fits);
        let stays = kept.stays.checked_sub(1)?;
        let mut lease = kept.lease;
        group.may_stay(&lease, need, fits).then(|| {
            lease.resume();
            (lease, stays)
        })
    }

    /// Keeps the lease of an operation that has ended for the next one, or gives it back.
    pub(super) fn keep(&mut self, mut lease: Lease, stays: u8, fits: (Ulong, Ulong)) {
        if self.kept.is_none() && lease.rest() {
            self.kept = Some(Kept { lease, stays, fits });
        }
    }

    /// Ends everything that goes on, and lets go of the backing sessions of it.
    fn cancel_all(&mut self) {
        self.kept = None;
        self.operations.clear();
        self.messages = Default::default();
        self.search = None;
    }

    /// The member that this session already works on, so that its next operation can stay there.
    pub(super) fn home(&self) -> Option<usize> {
        // Session objects can be used together on one member only.
        let owner = self.owners.first().map(|l| l.member.index);
        owner.or_else(|| self.operations.iter().find_map(|o| o.member()))
    }
}

impl VirtualSession {
    /// The state, for one call.
    ///
    /// # Errors
    /// `CKR_SESSION_HANDLE_INVALID` when the session was closed while the caller waited.
    pub(super) fn state(&self) -> Result<MutexGuard<'_, SessionState>> {
        let state = self.lock();
        if state.closed { Err(Rv::SESSION_HANDLE_INVALID) } else { Ok(state) }
    }

    /// The state, unless another call has it.
    pub(super) fn state_if_free(&self) -> Option<MutexGuard<'_, SessionState>> {
        self.state.try_lock().ok().filter(|s| !s.closed)
    }

    fn lock(&self) -> MutexGuard<'_, SessionState> {
        self.state.lock().unwrap_or_else(|poisoned| {
            // A call was contained in the middle of an operation: whatever went on is over.
            let mut state = poisoned.into_inner();
            state.cancel_all();
            self.state.clear_poison();
            state
        })
    }
}

impl VirtualSlot {
    /// The open session of a handle.
    ///
    /// # Errors
    /// `CKR_SESSION_HANDLE_INVALID`.
    pub(super) fn session(&self, handle: SessionHandle) -> Result<Arc<VirtualSession>> {
        self.sessions.pin().get(&handle.0).cloned().ok_or(Rv::SESSION_HANDLE_INVALID)
    }

    /// `C_OpenSession`.
    ///
    /// # Errors
    /// `CKR_TOKEN_NOT_PRESENT` before any member was seen; `CKR_SESSION_READ_WRITE_SO_EXISTS` for a read-only session
    /// while the security officer is logged in.
    pub(super) fn open(&self, read_write: bool) -> Result<SessionHandle> {
        if !self.group.is_present() {
            return Err(Rv::TOKEN_NOT_PRESENT);
        }
        if !read_write && self.group.login.who() == Who::So {
            return Err(Rv::SESSION_READ_WRITE_SO_EXISTS);
        }
        let handle = self.next_session_handle();
        let session = Arc::new(VirtualSession { handle, read_write, state: Mutex::default() });
        self.count_session(read_write, true);
        self.sessions.pin().insert(handle.0, session);
        Ok(handle)
    }

    /// `C_CloseSession`. The last one that closes logs out (section 5.6.7).
    ///
    /// # Errors
    /// `CKR_SESSION_HANDLE_INVALID`.
    pub(super) fn close(&self, handle: SessionHandle) -> Result<()> {
        let session = self.sessions.pin().remove(&handle.0).cloned().ok_or(Rv::SESSION_HANDLE_INVALID)?;
        self.count_session(session.read_write, false);
        self.end(&session);
        if self.session_counts().0 == 0 && self.group.login.who() != Who::Nobody {
            _ = self.log_out_everywhere();
        }
        Ok(())
    }

    /// `C_CloseAllSessions`.
    pub(super) fn close_all(&self) {
        let all: Vec<_> = self.sessions.pin().values().map(|s| s.handle).collect();
        for handle in all {
            // Another thread may have closed it in between, which is what is wanted.
            _ = self.close(handle);
        }
    }

    fn end(&self, session: &VirtualSession) {
        let owners = {
            let mut state = session.lock();
            state.closed = true;
            state.cancel_all();
            std::mem::take(&mut state.owners)
        };
        for object in self.group.objects.select_session(session.handle) {
            self.drop_object(&object);
        }
        for mut owner in owners {
            owner.set_busy(true); // closed, not lent again: the token destroys the session's objects with it
        }
    }

    /// Logs out on every member and ends what a logout ends: every operation and search, every private handle
    /// (section 5.6.9).
    ///
    /// # Errors
    /// `CKR_USER_NOT_LOGGED_IN`.
    pub(super) fn log_out_everywhere(&self) -> Result<()> {
        if self.group.login.who() == Who::Nobody {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        let sessions: Vec<_> = self.sessions.pin().values().cloned().collect();
        for session in sessions {
            session.lock().cancel_all();
        }
        self.group.log_out()
    }

    /// `C_GetSessionInfo`: the state by section 3.3.
    pub(super) fn state_of(&self, session: &VirtualSession) -> Ulong {
        match (self.group.login.who(), session.read_write) {
            (Who::Nobody, false) => ck::CKS_RO_PUBLIC_SESSION,
            (Who::Nobody, true) => ck::CKS_RW_PUBLIC_SESSION,
            (Who::User, false) => ck::CKS_RO_USER_FUNCTIONS,
            (Who::User, true) => ck::CKS_RW_USER_FUNCTIONS,
            (Who::So, _) => ck::CKS_RW_SO_FUNCTIONS,
        }
    }

    /// The backing session on a member that owns this session's objects there, opened if need be.
    ///
    /// # Errors
    /// The member's answer to `C_OpenSession`.
    pub(super) fn owner(
        &self,
        state: &mut SessionState,
        member: &Arc<Member>,
        generation: u64,
    ) -> Result<SessionHandle> {
        if let Some(lease) =
            state.owners.iter().find(|l| l.member.index == member.index && l.link.generation == generation)
        {
            return Ok(lease.session);
        }
        // An owner of an earlier connection owns nothing any more.
        state.owners.retain(|l| l.member.index != member.index);
        let lease = self.group.lease(member)?;
        let session = lease.session;
        state.owners.push(lease);
        Ok(session)
    }

    /// Takes an object out of the table and out of every connection's look-up.
    pub(super) fn drop_object(&self, object: &crate::group::Object) {
        self.group.objects.remove(object);
        let session_object = matches!(object.origin, Origin::Session(_));
        for index in object.members() {
            if let Some(member) = self.group.members.get(index) {
                if session_object {
                    self.group.host_less(member);
                }
                if let Some(link) = member.link()
                    && let Some(place) = object.place(index, link.generation)
                {
                    link.unbind(place.handle);
                }
            }
        }
    }
}
