//! What goes on in a virtual session: its operations, its search, and the backing sessions that own its objects.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_token::{Function, MessageKind, ObjectHandle, OpKind, Result, Rv, SessionHandle, Ulong, UserType, ck};

use super::VirtualSlot;
use super::kept::{Begun, Keep, Runs};
use super::messages::MessageOperation;
use super::operation::{Operation, Running};
use super::table::Session;
use crate::group::{Lease, Member, Object, Who};
use crate::mutants::wrong;
use crate::pin::Pin;

/// An operation of a session.
#[derive(Clone, Copy)]
pub(super) enum Active {
    Operation(OpKind),
    Messages(MessageKind),
}

/// An operation without a parameter that its first call starts. Each that is made in one call is one call to a member then:
/// where that is made by another thread, as with a deadline, half of the changes of threads are saved.
pub(super) struct Late {
    pub kind: OpKind,
    pub mechanism: Ulong,
    pub key: Option<Arc<Object>>,
    /// As an operation's.
    pub number: u32,
}

/// What goes on in a session. One call at a time has it.
#[derive(Default)]
pub(super) struct SessionState {
    /// At most one of each kind.
    operations: Vec<Operation>,
    /// An operation that no member has been asked to start yet: its first call does that.
    late: Option<Late>,
    /// Operations started since the session was opened.
    started: u32,
    /// The message-based operation of each kind.
    pub messages: [Option<MessageOperation>; 4],
    /// The handles that a search in progress has not given out yet.
    pub search: Option<std::vec::IntoIter<ObjectHandle>>,
    /// The backing session of the last operation, kept for the next one.
    pub kept: Keep,
    /// Whether there may be session objects of it.
    owns: bool,
    /// Backing sessions, one a member, that live as long as this session and own its session objects.
    owners: Vec<Lease>,
}

impl SessionState {
    /// Whether an operation of a kind is active.
    pub(super) fn is_active(&self, kind: OpKind) -> bool {
        self.operations.iter().any(|o| o.kind() == kind) || self.has_late(kind)
    }

    fn has_late(&self, kind: OpKind) -> bool {
        self.late.as_ref().is_some_and(|late| late.kind == kind)
    }

    /// Adds an operation that its first call starts, if the token has just agreed to begin the same, and nothing has changed
    /// since. Gives the key back if not.
    #[inline(always)]
    pub(super) fn add_late(
        &mut self,
        what: Begun,
        key: Option<Arc<Object>>,
    ) -> std::result::Result<(), Option<Arc<Object>>> {
        if self.late.is_some() || !self.kept.would_begin(what) {
            return Err(key);
        }
        self.started = self.started.wrapping_add(1);
        self.late = Some(Late { kind: what.kind, mechanism: what.mechanism, key, number: self.started });
        Ok(())
    }

    /// Takes the operation of a kind out that is to be started with this call.
    #[inline(always)]
    pub(super) fn take_late(&mut self, kind: OpKind) -> Option<Late> {
        self.late.take_if(|late| late.kind == kind)
    }

    /// What was left for its first call is an operation like others.
    fn add_what_is_late(&mut self) {
        if let Some(late) = self.late.take() {
            self.add_late_one(Operation::late(late, Runs::NotYet));
        }
    }

    /// Adds an operation that was counted when it was left for its first call.
    pub(super) fn add_late_one(&mut self, operation: Operation) {
        self.operations.push(operation);
    }

    /// The operation of a kind, with where it runs.
    ///
    /// # Errors
    /// `CKR_OPERATION_NOT_INITIALIZED`.
    #[inline]
    pub(super) fn operation(&mut self, kind: OpKind) -> Result<Running<'_>> {
        if self.has_late(kind) {
            self.add_what_is_late();
        }
        let op =
            self.operations.iter_mut().find(|o| o.kind() == kind).ok_or(Rv::OPERATION_NOT_INITIALIZED)?;
        Ok(Running { op, kept: &mut self.kept })
    }

    /// Adds an operation of a kind that has none.
    #[inline]
    pub(super) fn add(&mut self, mut operation: Operation) {
        self.started = self.started.wrapping_add(1);
        operation.number = self.started;
        self.operations.push(operation);
    }

    /// The message-based operation of a kind.
    ///
    /// # Errors
    /// `CKR_OPERATION_NOT_INITIALIZED`.
    pub(super) fn messages(&mut self, kind: MessageKind) -> Result<&mut MessageOperation> {
        let place = self.messages.get_mut(kind as usize).and_then(Option::as_mut);
        place.ok_or(Rv::OPERATION_NOT_INITIALIZED)
    }

    /// Adds a message-based operation of a kind that has none.
    pub(super) fn add_messages(&mut self, mut operation: MessageOperation) {
        self.started = self.started.wrapping_add(1);
        operation.number = self.started;
        if let Some(place) = self.messages.get_mut(operation.kind as usize) {
            *place = Some(operation);
        }
    }

    /// The active operations with a key that `f` picks, the one that was started last first.
    pub(super) fn latest(&mut self, f: impl Fn(&Object) -> bool) -> Vec<Active> {
        self.add_what_is_late();
        let operations =
            self.operations.iter().map(|o| (o.number, o.key.as_deref(), Active::Operation(o.kind())));
        let messages = self.messages.iter().flatten();
        let messages = messages.map(|m| (m.number, Some(&*m.key), Active::Messages(m.kind)));
        let mut picked: Vec<_> =
            operations.chain(messages).filter(|(_, key, _)| key.is_some_and(&f)).collect();
        picked.sort_by_key(|(number, ..)| self.started.wrapping_sub(*number));
        picked.into_iter().map(|(.., active)| active).collect()
    }

    /// Takes an operation out that its member has ended with its last answer, or that was never started. Its backing
    /// session is kept for the next one, or given back.
    #[inline(always)]
    pub(super) fn end(&mut self, kind: OpKind) {
        let Some(at) = self.operations.iter().position(|o| o.kind() == kind) else { return };
        match self.operations.get_mut(at) {
            Some(Operation { runs: Runs::OnKept, .. }) => self.kept.rest(),
            Some(op) => {
                // Should the member not have ended it, its next start says so, and goes to a fresh session.
                if let Runs::On(lease) = std::mem::replace(&mut op.runs, Runs::Nowhere)
                    && let Runs::OnKept = self.kept.settle(lease, op.mechanism_and_flag())
                {
                    self.kept.rest();
                }
            }
            None => {}
        }
        self.remove(at);
    }

    /// A member has lost the backing session that owned this session's objects there.
    pub(super) fn lose_owner(&mut self, member: &Member) {
        if wrong!(LostOwnerKept) {
            return;
        }
        for mut owner in self.owners.extract_if(.., |o| o.member.index == member.index) {
            owner.set_busy(true); // not lent again
        }
    }

    /// Takes an operation out that its member still has, with its backing session.
    pub(super) fn cancel(&mut self, kind: OpKind) {
        self.take_late(kind);
        if let Some(at) = self.operations.iter().position(|o| o.kind() == kind) {
            if let Some(Operation { runs: Runs::OnKept, .. }) = self.operations.get(at) {
                self.kept.discard();
            }
            self.remove(at);
        }
    }

    #[inline]
    fn remove(&mut self, at: usize) {
        if let Some(last) = self.operations.len().checked_sub(1) {
            self.operations.swap(at, last);
            self.operations.truncate(last); // dropped where it is
        }
    }

    /// Ends everything that goes on, and lets go of the backing sessions of it.
    pub(super) fn cancel_all(&mut self) {
        self.kept.discard();
        self.operations.clear();
        self.late = None;
        self.messages = Default::default();
        self.search = None;
    }

    /// The member that this session already works on, so that its next operation can stay there.
    pub(super) fn home(&mut self) -> Option<usize> {
        // Session objects can be used together on one member only.
        if let Some(owner) = self.owners.first() {
            return Some(owner.member.index);
        }
        match self.kept.in_use() {
            Some(lease) => Some(lease.member.index),
            None => {
                let messages = self.messages.iter().flatten();
                let own = self.operations.iter().find_map(Operation::own_member);
                own.or_else(|| messages.into_iter().find_map(MessageOperation::own_member))
            }
        }
    }
}

impl VirtualSlot {
    /// The open session of a handle.
    ///
    /// # Errors
    /// `CKR_SESSION_HANDLE_INVALID`.
    #[inline]
    pub(super) fn session(&self, handle: SessionHandle) -> Result<Session<'_>> {
        self.sessions.get(handle)
    }

    /// `C_OpenSession`.
    ///
    /// # Errors
    /// `CKR_TOKEN_NOT_PRESENT` before any member was seen; `CKR_SESSION_READ_WRITE_SO_EXISTS` for a read-only session
    /// while the security officer is logged in; `CKR_CRYPTOKI_NOT_INITIALIZED` once the group is being stopped.
    pub(super) fn open(&self, read_write: bool) -> Result<SessionHandle> {
        if self.group.is_stopping() {
            return Err(Rv::CRYPTOKI_NOT_INITIALIZED);
        }
        if !self.group.is_present() {
            return Err(Rv::TOKEN_NOT_PRESENT);
        }
        // Counted first: a login of the security officer that does not see this session is seen here.
        self.count_session(read_write, true);
        let opened = if !read_write && self.group.login.so_is_in() && !self.is_login_over(false) {
            Err(Rv::SESSION_READ_WRITE_SO_EXISTS)
        } else {
            self.end_login(false);
            self.sessions.open(read_write)
        };
        if opened.is_err() {
            self.session_closed(read_write);
        }
        opened
    }

    fn session_closed(&self, read_write: bool) {
        if self.count_session(read_write, false) {
            self.end_login(true);
        }
    }

    /// Logs out if the last session that the login was made for has closed: by whoever comes first, the thread that closed
    /// it or one that opens the next session, so that no new session has the login of old ones.
    fn end_login(&self, closed: bool) {
        if self.is_login_over(closed) {
            // Another thread may have been quicker.
            _ = self.group.log_out_when(&|| self.is_login_over(closed));
        }
    }

    /// Whether the login was made for sessions that are all closed. One that was made without a session ends when the last
    /// one closes.
    fn is_login_over(&self, closed: bool) -> bool {
        let login = &self.group.login;
        if login.who() == Who::Nobody {
            return false;
        }
        match self.login_epoch.load(Ordering::SeqCst) == login.epoch() {
            true => self.login_of.load(Ordering::SeqCst) != self.endings(),
            false => closed && self.session_counts().0 == 0,
        }
    }

    /// `C_Login`, and `C_LoginUser` where a name is given.
    ///
    /// # Errors
    /// As [`Group::log_in`](crate::group::Group::log_in); `CKR_SESSION_READ_ONLY_EXISTS`; `CKR_ARGUMENTS_BAD` for a name
    /// without a PIN; `CKR_USER_ANOTHER_ALREADY_LOGGED_IN` for the use of a key as another user than who is logged in.
    pub(super) fn login_as(
        &self,
        function: Function,
        session: SessionHandle,
        user: UserType,
        pin: Option<&[u8]>,
        name: &[u8],
    ) -> Result<()> {
        let _call = self.sessions.stateless(session)?;
        let pin = self.pin(function, pin)?.map(|pin| Pin::new(pin, name));
        if pin.is_none() && !name.is_empty() {
            let why = "a named user needs a PIN: it is not left to a PIN pad";
            self.group.reporter.refused(function, Rv::ARGUMENTS_BAD, why);
            return Err(Rv::ARGUMENTS_BAD);
        }
        match user {
            UserType::ContextSpecific => self.context_login(session, pin),
            UserType::So | UserType::User => self.log_in(session, user, pin),
        }
    }

    /// `C_Login` as the user or the security officer.
    ///
    /// # Errors
    /// As [`Group::log_in`](crate::group::Group::log_in); `CKR_SESSION_READ_ONLY_EXISTS`.
    pub(super) fn log_in(&self, session: SessionHandle, user: UserType, pin: Option<Pin>) -> Result<()> {
        let group = &self.group;
        let done = group.log_in_when(user, pin, &|| {
            self.session(session)?;
            if self.is_login_over(false) {
                group.log_out_now();
            }
            let (all, read_write) = self.session_counts();
            if user == UserType::So && all > read_write {
                return Err(Rv::SESSION_READ_ONLY_EXISTS);
            }
            if group.login.who() == Who::Nobody {
                self.login_of.store(self.endings(), Ordering::SeqCst);
                self.login_epoch.store(group.login.epoch() + 1, Ordering::SeqCst);
            }
            Ok(())
        });
        // The session may have been closed, as the last one, while the token was asked.
        self.end_login(false);
        done
    }

    /// `C_CloseSession`. The last one that closes logs out (section 5.6.7).
    ///
    /// # Errors
    /// `CKR_SESSION_HANDLE_INVALID`.
    pub(super) fn close(&self, handle: SessionHandle) -> Result<()> {
        self.sessions.close(handle, |session, state| {
            self.end_all(session.handle, state);
            self.session_closed(session.is_read_write());
        })
    }

    /// `C_CloseAllSessions`.
    pub(super) fn close_all(&self) {
        for handle in self.sessions.handles() {
            // Another thread may have closed it in between, which is what is wanted.
            _ = self.close(handle);
        }
    }

    /// For the end of the group: closes every session that no call uses at this moment, without a call to a member. The
    /// members' own end takes their sessions, objects and logins with it. Answers whether none is left, nor a call of one.
    pub(crate) fn close_free(&self) -> bool {
        let closed = self.sessions.handles().into_iter().fold(true, |all, handle| {
            let closed = self.sessions.close_if_free(handle, |session, mut state| {
                self.count_session(session.is_read_write(), false);
                state.cancel_all();
                self.group.session_left(session.handle);
            });
            all && closed
        });
        closed && !self.sessions.has_stateless()
    }

    fn end_all(&self, session: SessionHandle, mut state: SessionState) {
        state.cancel_all();
        // Only a session that owned something has to be looked for among the objects.
        if !state.owns {
            return;
        }
        for object in self.group.objects.select_session(session) {
            self.drop_object(&object);
        }
        for owner in &mut state.owners {
            owner.set_busy(true); // closed, not lent again: the token destroys the session's objects with it
        }
        self.group.session_closed(session);
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
        for handle in self.sessions.handles() {
            if let Ok(mut state) = self.session(handle).and_then(|s| s.state()) {
                state.cancel_all();
            }
        }
        self.group.log_out()
    }

    /// `C_GetSessionInfo`: the state by section 3.3.
    pub(super) fn state_of(&self, session: &Session<'_>) -> Ulong {
        match (self.group.login.who(), session.is_read_write()) {
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
        state.owns = true;
        // An owner of an earlier connection owns nothing any more.
        state.owners.retain(|l| l.member.index != member.index);
        let mut lease = self.group.lease(member)?;
        lease.own();
        let session = lease.session;
        state.owners.push(lease);
        Ok(session)
    }

    /// Takes an object out of the table and out of every connection's look-up.
    pub(super) fn drop_object(&self, object: &crate::group::Object) {
        self.group.forget_object(object);
        for index in object.members() {
            if let Some(link) = self.group.members.get(index).and_then(|m| m.link())
                && let Some(place) = object.place(index, link.generation)
            {
                link.unbind_of(place.handle, object.handle.0);
            }
        }
    }
}
