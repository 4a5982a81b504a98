//! Calls with a deadline: each is made by a thread of ours, a lane, and whoever asked for it waits for it so long and no
//! longer (guarantee G5).
//!
//! PKCS#11 knows no way to end a call that hangs. So a lane owns every byte that its call reads or writes, and a call
//! whose deadline has passed is left behind with its lane: it touches nobody's memory when it returns. What it made then is
//! taken back: a session, a session object, and a token object that its group does not wait for any more. Of what it may have
//! changed on the token [`Lanes`] tells the group.
//!
//! Two kinds of calls are made without a deadline. A vendor's parameter that nobody here can read may point into its caller's
//! memory: an operation with one is made on its caller's thread. And where a person is to type the PIN at the token, nobody
//! can say how long that takes.

mod late;
mod owned;
mod pending;
mod pool;
#[cfg(test)]
mod tests;
mod token;

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use ha_token::{Function, Result, Rv, SessionHandle, Token};

use crate::mutants::wrong;
use crate::policy::failure::is_write;
use crate::seam::World;
#[cfg(feature = "simulation")]
use crate::seam::turns;
use crate::sync::Mutex;
pub(crate) use pending::Pending;
use pending::Write;
pub(crate) use pool::AllLanes;
use pool::Pool;

/// How long calls to a member are waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Deadlines {
    /// Every call but those that follow.
    pub(crate) call: Duration,
    /// Calls that make keys, and the one that makes a token; `None`: as long as they take.
    pub(crate) generate: Option<Duration>,
}

/// A member's token, whose calls are waited for until their deadline: then they are answered [`Rv::NO_ANSWER`].
pub(crate) struct Lanes {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    deadlines: Deadlines,
    /// For who looks after the member: there is a lane for it also where others wait for one.
    spare: bool,
}

/// A call that is to be made.
#[derive(Clone, Copy)]
struct Asked {
    function: Function,
    /// In which session, if in one.
    session: Option<SessionHandle>,
    /// On its caller's thread, and for as long as it takes.
    here: bool,
    /// A person types a PIN meanwhile.
    by_hand: bool,
}

impl Asked {
    fn new(function: Function, session: Option<SessionHandle>) -> Self {
        Asked { function, session, here: false, by_hand: false }
    }
}

/// What a call that was left behind still has to do with.
struct Shared {
    token: Arc<dyn Token>,
    /// The sessions in which calls hang.
    stuck: Mutex<HashMap<SessionHandle, Stuck>>,
    /// The operations, by what began them, whose parameter nobody here can read, and how many there are.
    opaque: Mutex<HashSet<(SessionHandle, Function)>>,
    opaque_count: AtomicUsize,
    /// Calls that were left behind and have not returned.
    left: AtomicUsize,
    /// Those, and all before them.
    hung: AtomicUsize,
    pending: Arc<Pending>,
    /// A call that may have changed the token has returned, when nobody waited for it any more.
    changed_late: Box<dyn Fn() + Send + Sync>,
}

/// A session in which calls hang.
#[derive(Default)]
struct Stuck {
    calls: usize,
    /// It is to be closed when the last of them returns.
    close: bool,
}

/// Where a call's answer goes.
enum Place<T> {
    /// Somebody waits for it.
    Awaited,
    /// Here it is; `None`: the call panicked.
    Given(Option<T>),
    /// Nobody waits any more.
    Left,
}

impl Lanes {
    /// The token's calls, on lanes of their own, which are started as they are needed and are among `all`. `name` is what
    /// their threads are called; `changed_late` is called on a lane when a call that may have changed the token returns too
    /// late.
    pub(crate) fn new(
        token: Arc<dyn Token>,
        (world, all): (Arc<dyn World>, Arc<AllLanes>),
        name: String,
        deadlines: Deadlines,
        pending: Arc<Pending>,
        changed_late: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        let shared = Shared {
            token,
            stuck: Mutex::default(),
            opaque: Mutex::default(),
            opaque_count: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            hung: AtomicUsize::new(0),
            pending,
            changed_late,
        };
        Lanes { shared: Arc::new(shared), pool: Pool::new(world, all, name), deadlines, spare: false }
    }

    /// The same token and the same lanes, for who looks after the member.
    pub(crate) fn for_keeper(&self) -> Self {
        let (shared, pool) = (Arc::clone(&self.shared), Arc::clone(&self.pool));
        Lanes { shared, pool, deadlines: self.deadlines, spare: true }
    }

    /// How many calls were left behind, those that have returned since too.
    pub(crate) fn hung(&self) -> usize {
        self.shared.hung.load(Ordering::Acquire)
    }

    /// The lanes end, those in which a call is when that returns. Calls made after this are answered
    /// `CKR_CRYPTOKI_NOT_INITIALIZED`.
    pub(crate) fn end(&self) {
        self.pool.end();
    }

    /// Whether a call was left behind that has not returned.
    pub(crate) fn has_left_some(&self) -> bool {
        self.shared.left.load(Ordering::Acquire) > 0
    }

    /// A session that is used no more: if a call hangs in it, it is closed when that returns. Answers whether one does.
    pub(crate) fn close_when_it_returns(&self, session: SessionHandle) -> bool {
        self.shared.if_stuck(session, |stuck| stuck.close = true)
    }

    /// How long a call is waited for.
    fn limit(&self, asked: Asked) -> Option<Duration> {
        match asked.function {
            _ if asked.by_hand => None,
            Function::GenerateKey | Function::GenerateKeyPair | Function::InitToken => {
                self.deadlines.generate
            }
            _ if wrong!(DeadlineIgnored) => None,
            _ => Some(self.deadlines.call),
        }
    }

    /// A call in no session.
    fn look<T: Send + 'static>(
        &self,
        function: Function,
        go: impl FnOnce(&dyn Token) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.call(Asked::new(function, None), go, |_, _, _| {})
    }

    /// A call in a session.
    fn within<T: Send + 'static>(
        &self,
        function: Function,
        session: SessionHandle,
        go: impl FnOnce(&dyn Token) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.call(Asked::new(function, Some(session)), go, |_, _, _| {})
    }

    /// Makes a call on a lane. `too_late` is given what it answered when nobody waits for it any more, and whether its group
    /// does not either.
    ///
    /// # Errors
    /// Its answer; [`Rv::NO_ANSWER`] past the deadline; `CKR_SESSION_HANDLE_INVALID` while another call hangs in the session,
    /// whose operation this one would meet.
    fn call<T: Send + 'static>(
        &self,
        asked: Asked,
        go: impl FnOnce(&dyn Token) -> Result<T> + Send + 'static,
        too_late: impl FnOnce(&dyn Token, T, bool) + Send + 'static,
    ) -> Result<T> {
        let Asked { function, session, .. } = asked;
        if session.is_some_and(|session| self.shared.if_stuck(session, |_| {})) && !wrong!(StuckSessionUsed) {
            return Err(Rv::SESSION_HANDLE_INVALID);
        }
        let begin_write = || is_write(function).then(|| self.shared.pending.write_begins());
        if asked.here {
            let write = begin_write();
            let answer = go(&*self.shared.token);
            self.shared.pending.write_ends(write);
            return answer;
        }
        let world = &self.pool.world;
        let began = world.now();
        let until = self.limit(asked).map(|limit| began + limit);
        let place = Arc::new(Mutex::new(Place::Awaited));
        let write = begin_write();
        #[cfg(feature = "simulation")]
        let who = turns::who();
        let job = {
            let (shared, place) = (Arc::clone(&self.shared), Arc::clone(&place));
            let whole = Arc::clone(&shared);
            let job = move || {
                #[cfg(feature = "simulation")]
                turns::acts_for(who);
                // A panic is the token's own, and its lane is not to be lost by it.
                let answer = catch_unwind(AssertUnwindSafe(|| go(&*shared.token))).ok();
                let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
                let given_up = shared.pending.write_ends(write);
                if matches!(*place, Place::Left) {
                    drop(place);
                    // Nor by one in what is to be put right after it.
                    _ = catch_unwind(AssertUnwindSafe(|| {
                        if let Some(Ok(value)) = answer {
                            too_late(&*shared.token, value, given_up);
                        }
                        shared.close_if_wanted(session);
                    }));
                    shared.returned(write);
                    return true;
                }
                *place = Place::Given(answer);
                false
            };
            Box::new(move || if write.is_some() { through(&*whole.token, job) } else { job() })
        };
        let ticket = match self.pool.submit(job, began, until, self.spare) {
            Ok(ticket) => ticket,
            Err(rv) => {
                self.shared.pending.write_ends(write);
                return Err(rv);
            }
        };
        let told = self.pool.wait_for(&ticket, until);
        if let Some(rv) = self.pool.withdraw(&ticket) {
            self.shared.pending.write_ends(write);
            return Err(rv);
        }
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *place, Place::Left) {
            Place::Given(answer) => {
                drop(place);
                // One that is about to be told is not to be told of another call.
                if told {
                    self.pool.give_back(ticket);
                }
                self.pool.answered(world.now().saturating_sub(began));
                answer.unwrap_or(Err(Rv::FUNCTION_FAILED))
            }
            // Its deadline has passed, or its lanes have ended.
            Place::Awaited | Place::Left => {
                // Before the call can return, and look.
                self.shared.leave(session, write);
                self.pool.hang(&ticket);
                Err(Rv::NO_ANSWER)
            }
        }
    }

    /// Closes a session, unless that would be waited for in vain.
    fn close(&self, session: SessionHandle) -> Result<()> {
        self.ends(session);
        if self.close_when_it_returns(session) {
            return Ok(());
        }
        if self.pool.hangs() {
            return Err(Rv::NO_ANSWER);
        }
        self.within(Function::CloseSession, session, move |token| token.close_session(session))
    }

    /// An operation is begun, by this function: on its caller's thread or not. Answers the call that begins it.
    fn begins(&self, function: Function, session: SessionHandle, is_opaque: bool) -> Asked {
        let shared = &self.shared;
        if is_opaque || shared.opaque_count.load(Ordering::Acquire) > 0 {
            let mut all = shared.opaque.lock().unwrap_or_else(PoisonError::into_inner);
            match is_opaque {
                true => _ = all.insert((session, function)),
                false => _ = all.remove(&(session, function)),
            }
            shared.opaque_count.store(all.len(), Ordering::Release);
        }
        Asked { here: is_opaque, ..Asked::new(function, Some(session)) }
    }

    /// A call of an operation that was begun by another function.
    fn goes_on(&self, function: Function, session: SessionHandle, begun_by: &[Function]) -> Asked {
        let here = self.shared.opaque_count.load(Ordering::Acquire) > 0 && {
            let all = self.shared.opaque.lock().unwrap_or_else(PoisonError::into_inner);
            begun_by.iter().any(|init| all.contains(&(session, *init)))
        };
        Asked { here, ..Asked::new(function, Some(session)) }
    }

    /// The session is closed: nothing goes on in it.
    fn ends(&self, session: SessionHandle) {
        if self.shared.opaque_count.load(Ordering::Acquire) > 0 {
            let mut all = self.shared.opaque.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|(other, _)| *other != session);
            self.shared.opaque_count.store(all.len(), Ordering::Release);
        }
    }
}

/// Makes a call and what comes after it, also where its connection ends meanwhile.
fn through<T: Default>(token: &dyn Token, calls: impl FnOnce() -> T) -> T {
    let (mut calls, mut answer) = (Some(calls), T::default());
    token.lasting(&mut || {
        if let Some(calls) = calls.take() {
            answer = calls();
        }
    });
    answer
}

impl Shared {
    fn stuck(&self) -> MutexGuard<'_, HashMap<SessionHandle, Stuck>> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call is left behind.
    fn leave(&self, session: Option<SessionHandle>, write: Option<Write>) {
        self.pending.is_left(write);
        if let Some(session) = session {
            self.stuck().entry(session).or_default().calls += 1;
        }
        self.left.fetch_add(1, Ordering::AcqRel);
        self.hung.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether a call hangs in a session; if so `f` is told.
    fn if_stuck(&self, session: SessionHandle, f: impl FnOnce(&mut Stuck)) -> bool {
        // Nearly always, and without the lock.
        if self.left.load(Ordering::Acquire) == 0 {
            return false;
        }
        self.stuck().get_mut(&session).map(f).is_some()
    }

    /// A call that was left behind in a session has returned.
    fn close_if_wanted(&self, session: Option<SessionHandle>) {
        if let Some(session) = session
            && self.is_to_be_closed(session)
            && let Err(rv) = self.token.close_session(session)
        {
            tracing::debug!(%rv, "a backing session in which a call hung could not be closed");
        }
    }

    /// A call that was left behind has returned, and what it made is taken back.
    fn returned(&self, write: Option<Write>) {
        self.left.fetch_sub(1, Ordering::AcqRel);
        self.pending.left_one_returns(write);
        if write.is_some() && !wrong!(LateChangeUntold) {
            (self.changed_late)();
        }
    }

    /// One of the calls that hung in a session has returned: whether it was the last, and the session is to be closed.
    fn is_to_be_closed(&self, session: SessionHandle) -> bool {
        let mut all = self.stuck();
        let Some(stuck) = all.get_mut(&session) else { return false };
        stuck.calls -= 1;
        if stuck.calls > 0 {
            return false;
        }
        all.remove(&session).is_some_and(|stuck| stuck.close)
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        if !self.spare {
            self.pool.end();
        }
    }
}
