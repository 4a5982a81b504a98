//! The open sessions: a table whose rows are used again, under handles that are not.
//!
//! A look-up takes no lock and counts no reference, because rows live as long as the slot. What makes that safe is that
//! a row says which handle it has now, and is asked again under its lock.
//!
//! A handle is, from the lowest bits: the slot's number, whether the session is read-write, the row's place, and how
//! often the row was used. A row whose count is used up is not used again.

use std::sync::{PoisonError, TryLockError};

use ha_token::{Result, Rv, SessionHandle, Ulong};

use super::session::SessionState;
use crate::mutants::wrong;
use crate::numbers::SLOT_BITS;
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering, fence};

const PLACE_BITS: u32 = (Ulong::BITS - SLOT_BITS - 1) / 2;
const READ_WRITE: Ulong = 1 << SLOT_BITS;
const PLACE_SHIFT: u32 = SLOT_BITS + 1;
const COUNT_SHIFT: u32 = PLACE_SHIFT + PLACE_BITS;
const LAST_COUNT: Ulong = (1 << (Ulong::BITS - COUNT_SHIFT)) - 1;

/// A place for a session.
struct Row {
    /// The session's handle; 0 when there is none.
    handle: AtomicUsize,
    state: Mutex<SessionState>,
}

/// A slot's sessions. All methods may be called from any thread.
pub(super) struct Sessions {
    slot: Ulong,
    rows: boxcar::Vec<Row>,
    /// Rows without a session, as their next handles.
    free: Mutex<Vec<Ulong>>,
    /// Calls in sessions that do without the session's state.
    stateless: AtomicUsize,
}

/// A call that goes on in a session without its state: another call may have that meanwhile.
pub(super) struct Stateless<'a>(&'a AtomicUsize);

impl Drop for Stateless<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An open session, or one that was open at the look-up: [`Session::state`] tells.
#[derive(Clone, Copy)]
pub(super) struct Session<'a> {
    row: &'a Row,
    /// Its handle.
    pub handle: SessionHandle,
}

impl Sessions {
    /// No sessions yet, of the slot of this number, which must be below `1 << SLOT_BITS`.
    pub(super) fn new(slot: Ulong) -> Self {
        Sessions { slot, rows: boxcar::Vec::new(), free: Mutex::default(), stateless: AtomicUsize::new(0) }
    }

    /// The open session of a handle.
    ///
    /// # Errors
    /// `CKR_SESSION_HANDLE_INVALID`.
    #[inline]
    pub(super) fn get(&self, handle: SessionHandle) -> Result<Session<'_>> {
        let place = (handle.0 >> PLACE_SHIFT) & ((1 << PLACE_BITS) - 1);
        match self.rows.get(place as usize) {
            Some(row) if row.has(handle) => Ok(Session { row, handle }),
            _ => Err(Rv::SESSION_HANDLE_INVALID),
        }
    }

    /// Opens a session.
    ///
    /// # Errors
    /// `CKR_SESSION_COUNT` when no handle is left.
    pub(super) fn open(&self, read_write: bool) -> Result<SessionHandle> {
        let free = self.free().pop();
        let handle = match free {
            Some(handle) => handle,
            None => {
                let row = Row { handle: AtomicUsize::new(0), state: Mutex::default() };
                let place = self.rows.push(row) as Ulong;
                if place >> PLACE_BITS != 0 {
                    return Err(Rv::SESSION_COUNT);
                }
                1 << COUNT_SHIFT | place << PLACE_SHIFT | self.slot
            }
        };
        let handle = if read_write { handle | READ_WRITE } else { handle };
        let place = (handle >> PLACE_SHIFT) & ((1 << PLACE_BITS) - 1);
        let row = self.rows.get(place as usize).ok_or(Rv::SESSION_COUNT)?;
        row.handle.store(handle as usize, Ordering::Release);
        Ok(SessionHandle(handle))
    }

    /// Closes a session, for the first who asks; `end` is given what went on in it, once the call that uses it at this
    /// moment is over.
    ///
    /// # Errors
    /// `CKR_SESSION_HANDLE_INVALID`.
    pub(super) fn close(
        &self,
        handle: SessionHandle,
        end: impl FnOnce(&Session<'_>, SessionState),
    ) -> Result<()> {
        let session = self.get(handle)?;
        if wrong!(SessionSurvives) {
            return Ok(());
        }
        let ours =
            session.row.handle.compare_exchange(handle.0 as usize, 0, Ordering::AcqRel, Ordering::Relaxed);
        if ours.is_err() {
            return Err(Rv::SESSION_HANDLE_INVALID);
        }
        let state = std::mem::take(&mut *session.row.lock());
        end(&session, state);
        if handle.0 >> COUNT_SHIFT < LAST_COUNT {
            let next = if wrong!(SessionHandleReused) { 0 } else { 1 << COUNT_SHIFT };
            self.free().push((handle.0 & !READ_WRITE) + next);
        }
        Ok(())
    }

    /// Begins a call in a session that does without its state.
    ///
    /// # Errors
    /// `CKR_SESSION_HANDLE_INVALID`, also when the session was closed in the meantime.
    pub(super) fn stateless(&self, handle: SessionHandle) -> Result<Stateless<'_>> {
        self.stateless.fetch_add(1, Ordering::SeqCst);
        let call = Stateless(&self.stateless);
        // Either this call sees that the session was closed, or who closed it sees this call.
        fence(Ordering::SeqCst);
        self.get(handle).map(|_| call)
    }

    /// Whether a [`stateless`](Self::stateless) call goes on.
    pub(super) fn has_stateless(&self) -> bool {
        fence(Ordering::SeqCst);
        self.stateless.load(Ordering::SeqCst) > 0
    }

    /// As [`close`](Self::close), unless a call uses the session at this moment. Answers whether it is closed now.
    pub(super) fn close_if_free(
        &self,
        handle: SessionHandle,
        end: impl FnOnce(&Session<'_>, SessionState),
    ) -> bool {
        let Ok(session) = self.get(handle) else { return true };
        let mut state = match session.row.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let ours =
            session.row.handle.compare_exchange(handle.0 as usize, 0, Ordering::AcqRel, Ordering::Relaxed);
        if ours.is_ok() {
            let taken = std::mem::take(&mut *state);
            drop(state);
            end(&session, taken);
        }
        true
    }

    /// The handles of all open sessions.
    pub(super) fn handles(&self) -> Vec<SessionHandle> {
        let handles = self.rows.iter().map(|(_, row)| row.handle.load(Ordering::Acquire) as Ulong);
        handles.filter(|h| *h != 0).map(SessionHandle).collect()
    }

    fn free(&self) -> MutexGuard<'_, Vec<Ulong>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Row {
    #[inline]
    fn has(&self, handle: SessionHandle) -> bool {
        // A number that was never given out is no handle: 0 marks a row without a session.
        self.handle.load(Ordering::Acquire) == handle.0 as usize && handle.0 != 0
    }

    #[inline]
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

impl<'a> Session<'a> {
    /// Opened with `CKF_RW_SESSION`.
    pub(super) fn is_read_write(&self) -> bool {
        self.handle.0 & READ_WRITE != 0
    }

    /// The state, for one call.
    ///
    /// # Errors
    /// `CKR_SESSION_HANDLE_INVALID` when the session was closed while the caller waited.
    #[inline(always)]
    pub(super) fn state(&self) -> Result<MutexGuard<'a, SessionState>> {
        let state = self.row.lock();
        if self.row.has(self.handle) { Ok(state) } else { Err(Rv::SESSION_HANDLE_INVALID) }
    }

    /// The state, unless another call has it.
    #[inline]
    pub(super) fn state_if_free(&self) -> Option<MutexGuard<'a, SessionState>> {
        self.row.state.try_lock().ok().filter(|_| self.row.has(self.handle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Opens and closes as told, and keeps a list of what must be open.
        #[test]
        fn handles_are_never_used_again_and_closed_ones_are_refused(steps in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<prop::sample::Index>()), 1..200)) {
            let sessions = Sessions::new(7);
            let (mut open, mut seen) = (Vec::new(), std::collections::HashSet::new());
            for (opens, read_write, which) in steps {
                if opens || open.is_empty() {
                    let handle = sessions.open(read_write).unwrap();
                    prop_assert!(seen.insert(handle), "given out before");
                    prop_assert_eq!(handle.0 & ((1 << SLOT_BITS) - 1), 7);
                    prop_assert_eq!(sessions.get(handle).unwrap().is_read_write(), read_write);
                    open.push(handle);
                } else {
                    let handle = open.swap_remove(which.index(open.len()));
                    let held = sessions.get(handle).unwrap();
                    sessions.close(handle, |_, _| ()).unwrap();
                    prop_assert_eq!(held.state().err(), Some(Rv::SESSION_HANDLE_INVALID));
                    prop_assert_eq!(sessions.close(handle, |_, _| ()).err(), Some(Rv::SESSION_HANDLE_INVALID));
                }
                let mut now = sessions.handles();
                now.sort();
                open.sort();
                prop_assert_eq!(&now, &open);
            }
        }

        #[test]
        fn no_number_that_was_not_given_out_is_a_session(number: Ulong) {
            let sessions = Sessions::new(0);
            prop_assert!(sessions.get(SessionHandle(0)).is_err());
            let handle = sessions.open(true).unwrap();
            prop_assert_eq!(sessions.get(SessionHandle(number)).is_ok(), number == handle.0);
            sessions.close(handle, |_, _| ()).unwrap();
            prop_assert!(sessions.get(SessionHandle(0)).is_err());
        }
    }

    #[test]
    fn a_row_whose_count_is_used_up_is_left() {
        let sessions = Sessions::new(0);
        let first = sessions.open(false).unwrap();
        sessions.close(first, |_, _| ()).unwrap();
        let last = LAST_COUNT << COUNT_SHIFT;
        *sessions.free() = vec![last];
        assert_eq!(sessions.open(false), Ok(SessionHandle(last)));
        sessions.close(SessionHandle(last), |_, _| ()).unwrap();
        assert_eq!(sessions.open(false), Ok(SessionHandle(1 << COUNT_SHIFT | 1 << PLACE_SHIFT)));
    }
}
