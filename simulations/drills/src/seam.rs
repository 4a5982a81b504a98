//! Faults between the group and a member's module: what a member does wrong there nobody but this drill's group sees.
//!
//! The member itself, its token, and every other program that uses them are left alone.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ha_rig::Hook;
use ha_token::{ConnectError, Function, Result, Rv};

use crate::plan::How;

/// The shortest signature that is made wrong: the load's MACs are shorter.
const LONG: usize = 64;
/// What is said to be the module of a member that cannot be connected.
const NAME: &str = "the drill";

/// What stands between the group and one member. Its clones are of the same member; each is one connection's.
#[derive(Clone, Default)]
pub(crate) struct Seam {
    shared: Arc<Shared>,
    /// The number of the connection.
    number: u64,
}

#[derive(Default)]
struct Shared {
    now: Mutex<Now>,
    mended: Condvar,
}

#[derive(Default)]
struct Now {
    how: Option<How>,
    /// How long each call to a slow member takes besides.
    halt: Duration,
    /// How many connections there were.
    connections: u64,
    /// So many of them are dead: a member that comes back is connected anew.
    dead: u64,
    /// How many calls hang.
    waiting: usize,
}

/// What becomes of a call.
enum Fate {
    Made,
    After(Duration),
    Answered(Rv),
}

impl Seam {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.shared.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Breaks the member.
    pub(crate) fn break_down(&self, how: How, halt: Duration) {
        let mut now = self.now();
        now.how = Some(how);
        now.halt = halt;
        if matches!(how, How::Killed | How::Lost | How::Locked) {
            now.dead = now.connections;
        }
    }

    /// Mends it: calls that hang in it end.
    pub(crate) fn mend(&self) {
        let mut now = self.now();
        // Sessions that were opened under another PIN are not logged in.
        if now.how == Some(How::Locked) {
            now.dead = now.connections;
        }
        now.how = None;
        drop(now);
        self.shared.mended.notify_all();
    }

    /// Waits while the member hangs; answers whether it did.
    fn hung(&self) -> bool {
        let mut now = self.now();
        let hangs = now.how == Some(How::Hung);
        now.waiting += usize::from(hangs);
        while now.how == Some(How::Hung) {
            now = self.shared.mended.wait(now).unwrap_or_else(PoisonError::into_inner);
        }
        now.waiting -= usize::from(hangs);
        hangs
    }

    fn fate(&self, function: Function) -> Fate {
        // Whoever waited for its answer is gone, or is better served elsewhere: the call is not made late.
        if self.hung() {
            return Fate::Answered(Rv::DEVICE_ERROR);
        }
        let now = self.now();
        match now.how {
            _ if self.number <= now.dead && self.number > 0 => Fate::Answered(Rv::DEVICE_ERROR),
            Some(How::Lost) => Fate::Answered(Rv::DEVICE_REMOVED),
            Some(How::Killed) => Fate::Answered(Rv::DEVICE_ERROR),
            Some(How::Slow) => Fate::After(now.halt),
            Some(How::Full) if writes(function) => Fate::Answered(Rv::DEVICE_MEMORY),
            // It is not sent: the token's counter of wrong ones is left as it is.
            Some(How::Locked) if matches!(function, Function::Login | Function::LoginUser) => {
                Fate::Answered(Rv::PIN_INCORRECT)
            }
            Some(How::Hung | How::Full | How::Lying | How::Locked) | None => Fate::Made,
        }
    }
}

/// Whether a function may put something on a token.
fn writes(function: Function) -> bool {
    matches!(
        function,
        Function::CreateObject
            | Function::CopyObject
            | Function::SetAttributeValue
            | Function::GenerateKey
            | Function::GenerateKeyPair
            | Function::UnwrapKey
            | Function::DeriveKey
    )
}

impl Hook for Seam {
    fn call<T>(&self, function: Function, go: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.fate(function) {
            Fate::Made => go(),
            Fate::After(time) => {
                std::thread::sleep(time);
                go()
            }
            Fate::Answered(rv) => Err(rv),
        }
    }

    /// MACs stay as they are, since nobody but a token can verify them.
    fn signed(&self, _input: Option<&[u8]>, signature: &mut [u8]) {
        if signature.len() >= LONG
            && self.now().how == Some(How::Lying)
            && let Some(last) = signature.last_mut()
        {
            *last ^= 1;
        }
    }

    fn connects(&self) -> std::result::Result<Self, ConnectError> {
        self.hung();
        let mut now = self.now();
        match now.how {
            Some(How::Killed) => {
                let function = Function::Initialize;
                Err(ConnectError::Call { path: NAME.into(), function, rv: Rv::DEVICE_ERROR })
            }
            Some(How::Lost) => {
                let (wanted, present) = ("the member's".into(), "none".into());
                Err(ConnectError::NoToken { path: NAME.into(), wanted, present })
            }
            _ => {
                now.connections += 1;
                Ok(Seam { shared: Arc::clone(&self.shared), number: now.connections })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(seam: &Seam, function: Function) -> Result<()> {
        seam.call(function, || Ok(()))
    }

    #[test]
    fn who_is_killed_answers_again_on_a_new_connection_only() {
        for how in [How::Killed, How::Lost] {
            let member = Seam::default();
            let first = member.connects().unwrap();
            assert_eq!(call(&first, Function::Sign), Ok(()));
            member.break_down(how, Duration::ZERO);
            assert!(call(&first, Function::Sign).is_err() && member.connects().is_err(), "{how}");
            member.mend();
            assert!(call(&first, Function::Sign).is_err(), "{how}");
            assert_eq!(call(&member.connects().unwrap(), Function::Sign), Ok(()));
        }
    }

    #[test]
    fn who_hangs_answers_once_it_goes_on_and_makes_no_call_late() {
        let member = Seam::default();
        let connection = member.connects().unwrap();
        member.break_down(How::Hung, Duration::ZERO);
        std::thread::scope(|scope| {
            let late = scope.spawn(|| connection.call(Function::Sign, || -> Result<()> { panic!("made") }));
            let connects = scope.spawn(|| member.connects().is_ok());
            while member.now().waiting < 2 {
                std::thread::yield_now();
            }
            member.mend();
            assert_eq!(late.join().unwrap(), Err(Rv::DEVICE_ERROR));
            assert!(connects.join().unwrap());
        });
        assert_eq!(call(&connection, Function::Sign), Ok(()));
    }

    #[test]
    fn a_full_disk_refuses_what_is_written_and_nothing_else() {
        let member = Seam::default();
        let connection = member.connects().unwrap();
        member.break_down(How::Full, Duration::ZERO);
        assert_eq!(call(&connection, Function::CreateObject), Err(Rv::DEVICE_MEMORY));
        for function in [Function::Sign, Function::FindObjects, Function::DestroyObject, Function::Login] {
            assert_eq!(call(&connection, function), Ok(()), "{function}");
        }
    }

    #[test]
    fn under_another_pin_no_login_is_sent() {
        let member = Seam::default();
        let before = member.connects().unwrap();
        member.break_down(How::Locked, Duration::ZERO);
        assert_eq!(call(&before, Function::Sign), Err(Rv::DEVICE_ERROR));
        let connection = member.connects().unwrap();
        let sent = connection.call(Function::Login, || -> Result<()> { panic!("sent") });
        assert_eq!((sent, call(&connection, Function::GetTokenInfo)), (Err(Rv::PIN_INCORRECT), Ok(())));
        member.mend();
        assert_eq!(call(&member.connects().unwrap(), Function::Login), Ok(()));
    }

    #[test]
    fn who_lies_makes_signatures_wrong_and_macs_right() {
        let member = Seam::default();
        member.break_down(How::Lying, Duration::ZERO);
        for (len, wrong) in [(32, false), (64, true), (256, true)] {
            let mut signature = vec![7; len];
            member.signed(None, &mut signature);
            assert_eq!(signature != vec![7; len], wrong, "{len}");
        }
        member.mend();
        let mut signature = [7; 64];
        member.signed(None, &mut signature);
        assert_eq!(signature, [7; 64]);
    }
}
