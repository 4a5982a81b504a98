//! One connection to a member's token: its pooled backing sessions, its login, its handles.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError, RwLockWriteGuard};
use std::time::Duration;

use crate::map::RandomState;
use crossbeam::queue::{ArrayQueue, SegQueue};
use ha_token::{
    MechanismInfo, ObjectHandle, Result, Rv, SessionHandle, SessionInfo, Token, TokenInfo, Ulong, ck,
};

use crate::lanes::Lanes;
use crate::mutants::wrong;
use crate::pin::Pin;
use crate::policy::pin::{self, Answer};
use crate::replica::group_key::GroupKeys;
use crate::replica::wrapping::WrapAbility;
use crate::replica::{On, mechanisms_of, supports};
use crate::seam::World;
use crate::sync::{Mutex, RwLock};

/// Idle backing sessions kept open for each connection; more are closed when they come back.
const POOL: usize = 128;

/// How a connection's calls are made.
pub(super) enum Calls {
    /// On the thread that wants them, for as long as they take.
    Direct(Arc<dyn Token>),
    /// With a deadline.
    OnLanes(Arc<Lanes>),
}

/// One connection: from one initialisation of the member's module to the next.
pub struct Link {
    /// The token. Answers `CKR_CRYPTOKI_NOT_INITIALIZED` once a newer connection was made.
    pub token: Arc<dyn Token>,
    /// What its calls are made on, where they have a deadline.
    lanes: Option<Arc<Lanes>>,
    /// The token, for who looks after the member: also where it is busy.
    watched: Arc<dyn Token>,
    /// Counts the group's connections: no two have the same.
    pub generation: u64,
    /// What the token said of itself when it was connected.
    pub info: TokenInfo,
    /// Its flags when it was last asked.
    flags: AtomicUsize,
    /// The token's mechanisms, sorted by type.
    pub mechanisms: Vec<(Ulong, MechanismInfo)>,
    /// Keeps the token's login alive: some tokens log out when their last session closes.
    anchor: AtomicUsize,
    pool: ArrayQueue<SessionHandle>,
    /// Every session that was opened and not closed.
    open: Mutex<HashSet<SessionHandle>>,
    /// The group is being stopped: no session is closed any more by who gives it back.
    ending: AtomicBool,
    /// Sessions that are to be closed: those that came back since, and those whose closing failed.
    left: SegQueue<SessionHandle>,
    /// Sessions that rest with their borrowers, and how many of those there may be.
    kept: AtomicUsize,
    most_kept: AtomicUsize,
    /// The group's login epoch that this connection has followed to.
    login_epoch: AtomicU64,
    login_turn: Mutex<()>,
    /// How often its login was made or undone.
    logins: AtomicU64,
    /// How often it was found to have lost its handles.
    losses: AtomicU64,
    /// How often it seemed to have lost something, and how often it had when it was last asked for its session objects.
    shaken: AtomicU64,
    asked_shaken: AtomicU64,
    /// What it was last brought up to date with: the login's epoch, and what its member was owed then, which is written
    /// first. No epoch before that.
    caught_up_in: AtomicU64,
    caught_up_with: AtomicU64,
    /// The PIN it is logged in with, where that is the member's own and not the application's.
    own_pin: Mutex<Option<Pin>>,
    /// Held while it is found out what an object seen for the first time is.
    pub(super) identifying: Mutex<()>,
    /// Virtual handle by backing handle; 0 for an object of our own, which no application sees.
    handles: RwLock<HashMap<Ulong, Ulong, RandomState>>,
    /// This connection's handles of the group keys, once found or made.
    group_keys: Mutex<Option<Arc<GroupKeys>>>,
    /// How many markers the token holds, as far as was looked.
    markers: AtomicUsize,
    /// Whether it took none.
    refuses_markers: AtomicBool,
    /// Whether it was asked on this connection what it may have missed.
    looked_at: AtomicBool,
    /// What can be wrapped here, once tried.
    ability: Mutex<Option<Arc<WrapAbility>>>,
}

impl Link {
    /// Opens the anchor session and reads what does not change while connected.
    ///
    /// # Errors
    /// The member's answer.
    pub(super) fn open(calls: Calls, generation: u64, world: &dyn World) -> Result<Self> {
        let (token, watched, lanes) = match calls {
            Calls::Direct(token) => (Arc::clone(&token), token, None),
            Calls::OnLanes(lanes) => {
                let watched = Arc::new(lanes.for_keeper());
                (Arc::clone(&lanes) as Arc<dyn Token>, watched as Arc<dyn Token>, Some(lanes))
            }
        };
        let info = settled_info(&*token, world)?;
        let mechanisms = mechanisms_of(&*token)?;
        let anchor = token.open_session(true)?;
        Ok(Link {
            token,
            lanes,
            watched,
            generation,
            mechanisms,
            anchor: AtomicUsize::new(anchor.0 as usize),
            pool: ArrayQueue::new(POOL),
            open: Mutex::new(HashSet::from([anchor])),
            ending: AtomicBool::new(false),
            left: SegQueue::new(),
            kept: AtomicUsize::new(0),
            most_kept: AtomicUsize::new(
                most_kept(info.max_session_count).min(most_kept(info.max_rw_session_count)),
            ),
            flags: AtomicUsize::new(info.flags as usize),
            info,
            login_epoch: AtomicU64::new(0),
            login_turn: Mutex::new(()),
            logins: AtomicU64::new(0),
            losses: AtomicU64::new(0),
            shaken: AtomicU64::new(0),
            asked_shaken: AtomicU64::new(0),
            caught_up_in: AtomicU64::new(u64::MAX),
            caught_up_with: AtomicU64::new(0),
            identifying: Mutex::default(),
            handles: RwLock::default(),
            own_pin: Mutex::default(),
            group_keys: Mutex::new(None),
            markers: AtomicUsize::new(0),
            refuses_markers: AtomicBool::new(false),
            looked_at: AtomicBool::new(false),
            ability: Mutex::new(None),
        })
    }

    /// The last call was made: the lanes end.
    pub(super) fn end_lanes(&self) {
        if let Some(lanes) = &self.lanes {
            lanes.end();
        }
    }

    /// Whether a call was left behind that has not returned.
    pub(super) fn hangs(&self) -> bool {
        self.lanes.as_ref().is_some_and(|lanes| lanes.has_left_some())
    }

    /// The token, for who looks after the member.
    pub(super) fn watched(&self) -> &dyn Token {
        &*self.watched
    }

    /// How many of its calls were left behind, those that have returned since too.
    pub(super) fn hung(&self) -> usize {
        self.lanes.as_ref().map_or(0, |lanes| lanes.hung())
    }

    /// Takes a lock that others may hold while they call the member. Who has waited in vain with them does not wait
    /// once more.
    ///
    /// # Errors
    /// [`Rv::NO_ANSWER`] when a call was left behind meanwhile.
    pub(super) fn behind<'a, T>(&self, lock: &'a Mutex<T>) -> Result<MutexGuard<'a, T>> {
        let hung = self.hung();
        let held = lock.lock().unwrap_or_else(PoisonError::into_inner);
        if self.hung() == hung || wrong!(HungIsAskedAgain) { Ok(held) } else { Err(Rv::NO_ANSWER) }
    }

    /// A session of this connection, for the procedures of `replica`.
    pub(super) fn on(&self, session: SessionHandle) -> On<'_> {
        On { token: &*self.token, session, mechanisms: &self.mechanisms }
    }

    /// Whether the token has the mechanism, for the operation that `flag` names (0: for any).
    pub fn supports(&self, mechanism: Ulong, flag: Ulong) -> bool {
        supports(&self.mechanisms, mechanism, flag)
    }

    /// A backing session: an idle one, or a new one. Read-write always; read-only is the virtual slot's business.
    pub(super) fn take_session(&self) -> Result<SessionHandle> {
        match self.pool.pop() {
            Some(session) => Ok(session),
            None => self.open_session().inspect_err(|rv| {
                if *rv == Rv::SESSION_COUNT {
                    self.most_kept.store(0, Ordering::Relaxed);
                }
            }),
        }
    }

    fn open_session(&self) -> Result<SessionHandle> {
        let session = self.token.open_session(true)?;
        if !self.all_open().insert(session) {
            // The token has lost that one, and uses its number again: so it may those that are idle. None of them is
            // closed, for it may be somebody's by now.
            while let Some(idle) = self.pool.pop() {
                if idle != session {
                    self.all_open().remove(&idle);
                }
            }
        }
        Ok(session)
    }

    fn all_open(&self) -> MutexGuard<'_, HashSet<SessionHandle>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets one more session rest with its borrower, if it can be spared.
    pub(super) fn keep_one(&self) -> bool {
        let most = self.most_kept.load(Ordering::Relaxed);
        self.kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < most).then_some(n + 1)).is_ok()
    }

    /// A session that rested comes back, or is closed.
    pub(super) fn let_one_go(&self) {
        self.kept.fetch_sub(1, Ordering::Relaxed);
    }

    /// Gives back a session in which nothing is going on.
    pub(super) fn give_session(&self, session: SessionHandle) {
        if let Err(session) = self.pool.push(session) {
            self.close_session(session);
        }
    }

    /// From now on sessions that come back are kept: closing them would be a call, and the member may hang.
    pub(super) fn end(&self) {
        self.ending.store(true, Ordering::Release);
    }

    /// Closes every session, also those that are lent: for a module that goes on when this connection has ended.
    pub(super) fn close_all(&self) {
        let open = std::mem::take(&mut *self.all_open());
        for session in open {
            _ = self.close(session);
        }
    }

    /// Closes every session, and logs out: for a module that goes on in somebody else's hands.
    pub(super) fn undo(&self, logged_in: bool) {
        if logged_in && let Err(rv) = self.token.logout(self.anchor()) {
            tracing::debug!(%rv, "a member could not be logged out");
        }
        self.close_all();
    }

    /// Closes a session that must not be lent again.
    pub(super) fn close_session(&self, session: SessionHandle) {
        if self.ending.load(Ordering::Acquire) {
            self.left.push(session);
            return;
        }
        if wrong!(SessionsLeak) {
            return;
        }
        if !self.close(session) {
            if self.left.len() < POOL {
                self.left.push(session);
            }
        } else if let Some(other) = self.left.pop()
            && !self.close(other)
        {
            self.left.push(other);
        }
    }

    /// Whether the session is closed now.
    fn close(&self, session: SessionHandle) -> bool {
        match self.token.close_session(session) {
            Ok(()) => self.is_closed(session),
            Err(rv @ (Rv::SESSION_HANDLE_INVALID | Rv::SESSION_CLOSED)) => {
                tracing::debug!(%rv, "a backing session was closed already");
                self.is_closed(session)
            }
            Err(rv) => {
                tracing::debug!(%rv, "a backing session could not be closed");
                false
            }
        }
    }

    fn is_closed(&self, session: SessionHandle) -> bool {
        self.all_open().remove(&session);
        true
    }

    /// The session that is never lent.
    pub fn anchor(&self) -> SessionHandle {
        SessionHandle(self.anchor.load(Ordering::Acquire) as Ulong)
    }

    /// Makes a call with a PIN in the session that is never lent, once: where the session goes during the call the PIN was
    /// looked at perhaps, or changed. So it is looked at before, whether the token has lost it.
    ///
    /// # Errors
    /// The member's answer.
    pub fn with_pin<T>(&self, call: impl FnOnce(SessionHandle) -> Result<T>) -> Result<T> {
        self.on_anchor(|anchor| self.token.session_info(anchor))?;
        call(self.anchor())
    }

    /// Makes a call in the session that is never lent. Should the token have lost it, as it may lose any session, another
    /// one takes its place, and the call is made there.
    ///
    /// # Errors
    /// The member's answer.
    pub fn on_anchor<T>(&self, mut call: impl FnMut(SessionHandle) -> Result<T>) -> Result<T> {
        let anchor = self.anchor();
        match call(anchor) {
            Err(Rv::SESSION_HANDLE_INVALID | Rv::SESSION_CLOSED) => {
                self.is_shaken();
                let new = self.open_session()?;
                let (old, replaced) = (anchor.0 as usize, new.0 as usize);
                if self.anchor.compare_exchange(old, replaced, Ordering::AcqRel, Ordering::Acquire).is_err() {
                    // Another thread was quicker.
                    self.close_session(new);
                } else if let Some(lanes) = &self.lanes {
                    // It may not be lost, but stuck in a call.
                    lanes.close_when_it_returns(anchor);
                }
                call(self.anchor())
            }
            answer => answer,
        }
    }

    /// Whether this connection's login is what the group's `epoch` says.
    pub(super) fn has_followed(&self, epoch: u64) -> bool {
        self.login_epoch.load(Ordering::Acquire) == epoch
    }

    /// How often its login was made or undone.
    pub(super) fn logins(&self) -> u64 {
        self.logins.load(Ordering::Acquire)
    }

    /// How often it was found to have lost its handles.
    pub(super) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    /// The token has lost a session, its login, or a handle.
    pub(super) fn is_shaken(&self) {
        self.shaken.fetch_add(1, Ordering::AcqRel);
    }

    /// How often it was, if it was since [`has_been_asked`](Self::has_been_asked).
    pub(super) fn shaken(&self) -> Option<u64> {
        let shaken = self.shaken.load(Ordering::Acquire);
        (shaken != self.asked_shaken.load(Ordering::Acquire)).then_some(shaken)
    }

    /// It was asked for what it may have lost by then.
    pub(super) fn has_been_asked(&self, shaken: u64) {
        self.asked_shaken.store(shaken, Ordering::Release);
    }

    /// The token has lost its handles; it has them again, others.
    pub(super) fn has_new_handles(&self) {
        self.losses.fetch_add(1, Ordering::AcqRel);
    }

    /// Marks the login as out of date, to be made again.
    pub fn doubt_login(&self) {
        self.login_epoch.store(u64::MAX, Ordering::Release);
    }

    /// Whether its login is to be made again.
    pub(super) fn is_login_doubted(&self) -> bool {
        self.login_epoch.load(Ordering::Acquire) == u64::MAX
    }

    /// Whether it was brought up to date in this login, with all that its member was owed.
    pub(super) fn is_caught_up(&self, epoch: u64, owed: u64) -> bool {
        self.caught_up_in.load(Ordering::Acquire) == epoch
            && self.caught_up_with.load(Ordering::Acquire) == owed
    }

    /// It was.
    pub(super) fn set_caught_up(&self, epoch: u64, owed: u64) {
        self.caught_up_with.store(owed, Ordering::Release);
        self.caught_up_in.store(epoch, Ordering::Release);
    }

    /// Held by whoever makes or undoes this connection's login: one thread at a time.
    pub(super) fn login_turn(&self) -> MutexGuard<'_, ()> {
        self.login_turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It was logged in already when the group's login was made, by `set`, which answers its epoch: nobody is to find the
    /// one without the other, and send the PIN again.
    pub(super) fn lead(&self, set: impl FnOnce() -> u64) {
        let _turn = self.login_turn();
        self.logins.fetch_add(1, Ordering::AcqRel);
        self.login_epoch.store(set(), Ordering::Release);
    }

    /// Runs `change` unless this connection follows the epoch already; one thread at a time.
    pub(super) fn follow(
        &self,
        epoch: impl FnOnce() -> u64,
        change: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let _turn = self.behind(&self.login_turn)?;
        let epoch = epoch();
        if self.has_followed(epoch) {
            return Ok(());
        }
        self.logins.fetch_add(1, Ordering::AcqRel);
        change()?;
        self.login_epoch.store(epoch, Ordering::Release);
        Ok(())
    }

    /// The member's own PIN, while it is logged in with that.
    pub(super) fn own_pin(&self) -> Option<Pin> {
        self.own_pin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_own_pin(&self, pin: Option<Pin>) {
        *self.own_pin.lock().unwrap_or_else(PoisonError::into_inner) = pin;
    }

    /// The virtual handle that a backing handle was given; `Some(0)` for an object of our own.
    pub fn virtual_of(&self, backing: ObjectHandle) -> Option<Ulong> {
        self.handles.read().unwrap_or_else(PoisonError::into_inner).get(&backing.0).copied()
    }

    fn handles(&self) -> RwLockWriteGuard<'_, HashMap<Ulong, Ulong, RandomState>> {
        self.handles.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what a backing handle stands for; 0 hides it.
    pub fn bind(&self, backing: ObjectHandle, virtual_handle: Ulong) {
        self.handles().insert(backing.0, virtual_handle);
    }

    /// Forgets a backing handle: tokens may use a number again.
    pub fn unbind(&self, backing: ObjectHandle) {
        self.handles().remove(&backing.0);
    }

    /// Forgets a backing handle, unless it stands for something else by now.
    pub(crate) fn unbind_of(&self, backing: ObjectHandle, virtual_handle: Ulong) {
        let mut handles = self.handles();
        if handles.get(&backing.0) == Some(&virtual_handle) {
            handles.remove(&backing.0);
        }
    }

    /// Forgets every backing handle that `f` picks by its virtual one.
    pub fn unbind_where(&self, f: impl Fn(Ulong) -> bool) {
        self.handles().retain(|_, v| !f(*v));
    }

    /// The group keys here, once they were made or found.
    pub fn group_keys(&self) -> Option<Arc<GroupKeys>> {
        self.group_keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers the group keys.
    pub fn set_group_keys(&self, keys: Option<GroupKeys>) {
        *self.group_keys.lock().unwrap_or_else(PoisonError::into_inner) = keys.map(Arc::new);
    }

    /// How many of the token's objects are the group's own, and nobody's who counts keys: as far as they were looked for.
    pub fn own_objects(&self) -> usize {
        self.markers.load(Ordering::Acquire) + if self.group_keys().is_some() { 2 } else { 0 }
    }

    /// Whether it is not known yet on this connection what its token may have missed: it may have been set back before it.
    pub(super) fn is_new(&self) -> bool {
        !self.looked_at.load(Ordering::Acquire)
    }

    /// That is known now.
    pub(super) fn was_looked_at(&self) {
        self.looked_at.store(true, Ordering::Release);
    }

    /// Whether the token took no marker.
    pub(super) fn refuses_markers(&self) -> bool {
        self.refuses_markers.load(Ordering::Acquire)
    }

    /// It took none: not asked again on this connection.
    pub(super) fn refuse_markers(&self) {
        self.refuses_markers.store(true, Ordering::Release);
    }

    /// Remembers how many markers it holds.
    pub(super) fn set_markers(&self, markers: usize) {
        self.markers.store(markers, Ordering::Release);
    }

    /// What can be wrapped here, if it was tried.
    pub fn ability(&self) -> Option<Arc<WrapAbility>> {
        self.ability.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers what can be wrapped here; `None`: it is tried again.
    pub fn set_ability(&self, ability: Option<Arc<WrapAbility>>) {
        *self.ability.lock().unwrap_or_else(PoisonError::into_inner) = ability;
    }

    /// What the token says of itself now.
    ///
    /// # Errors
    /// The member's answer.
    pub fn info_now(&self, world: &dyn World) -> Result<TokenInfo> {
        Ok(self.noted(settled_info(&*self.token, world)?))
    }

    fn noted(&self, info: TokenInfo) -> TokenInfo {
        self.flags.store(info.flags as usize, Ordering::Relaxed);
        info
    }

    /// The token's flags as it last told them. No call.
    pub(super) fn flags(&self) -> Ulong {
        self.flags.load(Ordering::Relaxed) as Ulong
    }

    /// A PIN was sent to the token, and answered so: what it says of its PINs is read again where that may have changed it.
    pub(super) fn pin_sent(&self, world: &dyn World, answer: Result<()>) {
        let tells = match pin::of_login(answer) {
            Answer::Accepted => self.flags() & ABOUT_PINS != 0,
            Answer::WrongPin(_) | Answer::NotJudged(_) => true,
            Answer::AlreadyIn | Answer::Refused(_) | Answer::Failed(_) => false,
        };
        if tells {
            // Should it not say now, what it said last stands until it is next asked.
            _ = self.info_now(world);
        }
    }

    /// Whether the token is still the one that was connected, and answers: how its first session is.
    ///
    /// # Errors
    /// The member's answer; `CKR_TOKEN_NOT_RECOGNIZED` if another token is behind the slot now.
    pub fn probe(&self, world: &dyn World) -> Result<SessionInfo> {
        let now = self.noted(settled_info(&*self.watched, world)?);
        if now.serial != self.info.serial {
            return Err(Rv::TOKEN_NOT_RECOGNIZED);
        }
        self.on_anchor(|anchor| self.watched.session_info(anchor))
    }
}

/// What a token says of its PINs, section 3.2.
pub(super) const ABOUT_PINS: Ulong = ck::CKF_USER_PIN_COUNT_LOW
    | ck::CKF_USER_PIN_FINAL_TRY
    | ck::CKF_USER_PIN_LOCKED
    | ck::CKF_USER_PIN_TO_BE_CHANGED
    | ck::CKF_SO_PIN_COUNT_LOW
    | ck::CKF_SO_PIN_FINAL_TRY
    | ck::CKF_SO_PIN_LOCKED
    | ck::CKF_SO_PIN_TO_BE_CHANGED;

/// How many of a token's sessions may rest with their borrowers: the rest must do for everybody else.
fn most_kept(token_has: Ulong) -> usize {
    match token_has {
        ck::CK_EFFECTIVELY_INFINITE | ck::CK_UNAVAILABLE_INFORMATION => POOL / 2,
        n => usize::try_from(n / 4).unwrap_or(POOL).min(POOL / 2),
    }
}

/// Pauses before a token that could not say what it is is asked again.
pub(super) const PAUSES: [Duration; 6] = [
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(40),
];

/// `C_GetTokenInfo`, asked again while the token cannot say what it is: SoftHSM answers `CKR_GENERAL_ERROR`, or success
/// and an empty token, for a moment while another process logs in to it; and for ever when the token is lost.
fn settled_info(token: &dyn Token, world: &dyn World) -> Result<TokenInfo> {
    let ask = || match token.token_info() {
        Ok(info) if info.flags & ck::CKF_TOKEN_INITIALIZED == 0 => Err(Rv::TOKEN_NOT_RECOGNIZED),
        answer => answer,
    };
    for pause in PAUSES {
        match ask() {
            Err(Rv::GENERAL_ERROR | Rv::TOKEN_NOT_RECOGNIZED) => _ = world.event().wait(Some(pause)),
            answer => return answer,
        }
    }
    ask()
}
