//! The table of sessions: calls that go on while their session is closed, and handles of rows that are used again.

#[path = "../../../ha-core/src/slot/table.rs"]
#[allow(missing_docs, unreachable_pub, dead_code)]
mod table;

use ha_token::{Rv, SessionHandle};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use table::Sessions;

mod session {
    /// What goes on in a session: here, whose it is.
    #[derive(Default)]
    pub(super) struct SessionState {
        pub of: Option<super::SessionHandle>,
    }

    impl SessionState {
        pub(super) fn cancel_all(&mut self) {
            self.of = None;
        }
    }
}

fn sessions() -> Arc<Sessions> {
    Arc::new(Sessions::new(1))
}

fn open(sessions: &Sessions) -> SessionHandle {
    let handle = sessions.open(true).unwrap();
    sessions.get(handle).unwrap().state().unwrap().of = Some(handle);
    handle
}

/// Who closes a session and finds no call that does without its state is alone.
pub fn a_call_without_the_state_sees_the_closing_or_is_seen() {
    crate::play(3, || {
        let sessions = sessions();
        let handle = open(&sessions);
        let inside = Arc::new(UnsafeCell::new(0u32));
        let touch = |inside: &UnsafeCell<u32>| {
            inside.with_mut(|inside| {
                // SAFETY: loom ends the model where another thread is at it.
                unsafe { *inside += 1 }
            });
        };
        let caller = thread::spawn({
            let (sessions, inside) = (Arc::clone(&sessions), Arc::clone(&inside));
            move || {
                let call = sessions.stateless(handle);
                if call.is_ok() {
                    touch(&inside);
                }
            }
        });
        sessions.close(handle, |_, _| ()).unwrap();
        if !sessions.has_stateless() {
            touch(&inside);
        }
        caller.join().unwrap();
    });
}

/// A call has the state of the session that it asked for, or none: never that of the next one in the same row.
pub fn nobody_has_the_state_of_the_next_session() {
    crate::play(3, || {
        let sessions = sessions();
        let handle = open(&sessions);
        let caller = thread::spawn({
            let sessions = Arc::clone(&sessions);
            move || {
                if let Ok(state) = sessions.get(handle).and_then(|s| s.state()) {
                    assert_eq!(state.of, Some(handle));
                }
            }
        });
        sessions.close(handle, |session, _| assert_eq!(session.handle, handle)).unwrap();
        assert_ne!(open(&sessions), handle);
        caller.join().unwrap();
        assert_eq!(sessions.get(handle).err(), Some(Rv::SESSION_HANDLE_INVALID));
    });
}

/// Of two who close a session one does it, with what went on in it.
pub fn a_session_is_closed_once() {
    crate::play(3, || {
        let sessions = sessions();
        let handle = open(&sessions);
        let close = move |sessions: &Sessions| {
            let mut whose = None;
            let closed = sessions.close(handle, |_, state| whose = state.of).is_ok();
            assert_eq!(whose.is_some(), closed, "who closes it has what went on in it");
            usize::from(closed)
        };
        let other = thread::spawn({
            let sessions = Arc::clone(&sessions);
            move || close(&sessions)
        });
        let mine = close(&sessions);
        assert_eq!(mine + other.join().unwrap(), 1);
        assert!(sessions.handles().is_empty());
    });
}
