//! How a member fails at one call of an operation.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use ha_rig::Hook;
use ha_token::{Function, Result, Rv};

/// What happens at a call, and to those after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// The member is gone before it is made.
    GoneBefore,
    /// It is made, and the member is gone before it answers.
    GoneAfter,
    /// The member does not answer.
    Hangs,
    /// The member has lost the session.
    NoSession,
    /// The member answers with an error that says nothing, once.
    Vague,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fault::GoneBefore => "gone before",
            Fault::GoneAfter => "gone after",
            Fault::Hangs => "hangs",
            Fault::NoSession => "no session",
            Fault::Vague => "vague",
        })
    }
}

/// A member that fails as it is told. Clones are one.
#[derive(Clone, Default)]
pub(crate) struct Failing(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// Calls of operations so far.
    calls: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
enum State {
    #[default]
    Sound,
    /// At the call of this number.
    Armed(usize, Fault),
    Gone,
    Hung,
}

impl Failing {
    /// It fails so at the call of an operation of this number, from now on.
    pub(crate) fn arm(&self, step: usize, fault: Fault) {
        self.0.calls.store(0, Ordering::SeqCst);
        *self.0.state.lock().unwrap() = State::Armed(step, fault);
    }

    /// It is sound again. Answers whether it had failed, and the calls of operations since it was armed.
    pub(crate) fn heal(&self) -> (bool, usize) {
        let before = std::mem::take(&mut *self.0.state.lock().unwrap());
        self.0.changed.notify_all();
        (!matches!(before, State::Armed(..)), self.0.calls.swap(0, Ordering::SeqCst))
    }
}

/// Whether it is a call of an operation.
fn counts(function: Function) -> bool {
    use Function::*;
    matches!(
        function,
        SignInit
            | Sign
            | SignUpdate
            | SignFinal
            | VerifyInit
            | Verify
            | VerifyUpdate
            | VerifyFinal
            | EncryptInit
            | Encrypt
            | EncryptUpdate
            | EncryptFinal
            | DecryptInit
            | Decrypt
            | DecryptUpdate
            | DecryptFinal
            | DigestInit
            | Digest
            | DigestUpdate
            | DigestFinal
    )
}

impl Hook for Failing {
    fn call<T>(&self, function: Function, go: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut state = self.0.state.lock().unwrap();
        let is_at = |step| counts(function) && self.0.calls.fetch_add(1, Ordering::SeqCst) == step;
        match *state {
            State::Sound => _ = is_at(usize::MAX),
            State::Armed(step, fault) if is_at(step) => match fault {
                Fault::GoneBefore => *state = State::Gone,
                Fault::GoneAfter => {
                    *state = State::Gone;
                    drop(state);
                    _ = go();
                    return Err(Rv::DEVICE_REMOVED);
                }
                Fault::Hangs => *state = State::Hung,
                Fault::NoSession => {
                    *state = State::Sound;
                    return Err(Rv::SESSION_HANDLE_INVALID);
                }
                Fault::Vague => {
                    *state = State::Sound;
                    return Err(Rv::GENERAL_ERROR);
                }
            },
            State::Armed(..) | State::Gone | State::Hung => {}
        }
        while let State::Hung = *state {
            state = self.0.changed.wait(state).unwrap();
        }
        if let State::Gone = *state {
            return Err(Rv::DEVICE_REMOVED);
        }
        drop(state);
        go()
    }
}
