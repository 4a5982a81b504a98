//! Connecting a member's module without being held by it: its initialisation may hang as any call may.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ha_token::{ConnectError, Function, Rv, Token};

use super::{Group, Member};
use crate::sync::Mutex;

/// How long a module's initialisation is waited for before it is tried anew: many objects, or a slow way to the token, take
/// their time.
const INITIALISE_PATIENCE: Duration = Duration::from_secs(60);

/// What becomes of a module's initialisation on a thread of its own.
enum Initialising {
    Awaited,
    Done(Result<Arc<dyn Token>, ConnectError>),
    /// Nobody waits any more.
    Left,
}

impl Group {
    /// One try to connect a member that an application's call waits for: made by its keeper, since it may hang, and waited
    /// for until the deadline. Where there is none it is made here.
    pub(crate) fn connect_for_call(&self, member: &Arc<Member>) {
        let Some(deadline) = self.config.deadline.filter(|_| !self.alone.load(Ordering::Relaxed)) else {
            return self.connect(member);
        };
        let until = self.world.now() + deadline;
        let before = member.asked_done.load(Ordering::Acquire);
        member.asked_for.store(true, Ordering::Release);
        member.wake.set();
        let pause = self.world.event();
        while member.asked_done.load(Ordering::Acquire) == before
            && self.world.now() < until
            && !self.is_stopping()
        {
            pause.wait(Some(Duration::from_millis(1)));
        }
    }

    /// The module's initialisation and what comes with it. With a deadline it is made on a thread of its own, which is left
    /// behind when it takes too long: the next try overtakes it.
    ///
    /// # Errors
    /// The connector's; `CKR_FUNCTION_FAILED` when it took too long.
    pub(super) fn connect_in_time(&self, member: &Arc<Member>) -> Result<Arc<dyn Token>, ConnectError> {
        if self.config.deadline.is_none() || self.alone.load(Ordering::Relaxed) {
            return member.connector().connect();
        }
        let slot = Arc::new(Mutex::new(Initialising::Awaited));
        let body = {
            let (member, slot) = (Arc::clone(member), Arc::clone(&slot));
            move || {
                let answer = member.connector().connect();
                let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
                if matches!(*slot, Initialising::Left) {
                    member.pending.left_one_returns(None);
                } else {
                    *slot = Initialising::Done(answer);
                }
                drop(slot);
                member.wake.set();
            }
        };
        let failed = |rv| ConnectError::Call {
            path: member.config.module.display().to_string(),
            function: Function::Initialize,
            rv,
        };
        match self.world.spawn(&format!("ha-init-{}", member.name()), Box::new(body)) {
            Ok(thread) => self.lanes.add_thread(thread),
            Err(error) => {
                tracing::warn!(group = %self.config.label, member = member.name(), %error, "no thread could be started to connect the member");
                return Err(failed(Rv::HOST_MEMORY));
            }
        }
        let until = self.world.now() + INITIALISE_PATIENCE;
        loop {
            {
                let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
                let now = self.world.now();
                match std::mem::replace(&mut *slot, Initialising::Left) {
                    Initialising::Done(answer) => return answer,
                    _ if now < until && !self.is_stopping() => *slot = Initialising::Awaited,
                    _ => {
                        member.pending.is_left(None);
                        return Err(failed(Rv::FUNCTION_FAILED));
                    }
                }
            }
            member.wake.wait(Some(until.saturating_sub(self.world.now())));
        }
    }
}
