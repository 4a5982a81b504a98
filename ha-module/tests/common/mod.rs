//! What the tests of the C interface share: the list, a token that records its calls, and one turn at a time, as the
//! library has one state for the whole process.
#![allow(dead_code, unused_imports, unreachable_pub, clippy::unwrap_used)]

pub mod recorder;

use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cryptoki_sys::*;
use ha_core::provider::Provider;
use ha_token::{Rv, Token};

pub use recorder::{OUTPUT, Recorder};

static TURN: Mutex<()> = Mutex::new(());

/// The newest list, as an application gets it.
pub fn list() -> &'static CK_FUNCTION_LIST_3_2 {
    let mut interface: *mut CK_INTERFACE = null_mut();
    // SAFETY: NULL means the default.
    let rv = unsafe { ha_module::C_GetInterface(null_mut(), null_mut(), &raw mut interface, 0) };
    assert_eq!(rv, CKR_OK);
    // SAFETY: a static of the library.
    let list = unsafe { *interface }.pFunctionList;
    // SAFETY: the same, and the default interface is the newest.
    unsafe { &*list.cast::<CK_FUNCTION_LIST_3_2>() }
}

/// The list's name of a code, for messages.
pub fn rv(code: CK_RV) -> Result<(), Rv> {
    Rv::check(code)
}

/// Calls a function of the list.
macro_rules! call {
    ($f:ident($($arg:expr),* $(,)?)) => {{
        let function = $crate::common::list().$f.unwrap();
        // SAFETY: each test gives what PKCS#11 says, or what the library promises to survive.
        $crate::common::rv(unsafe { function($($arg),*) })
    }};
}

pub(crate) use call;

/// The library without a provider, for this test alone.
pub fn turn() -> MutexGuard<'static, ()> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = call!(C_Finalize(null_mut()));
    turn
}

/// The library running over recorders, for this test alone: slots 0 and 2 with a token, slot 1 empty.
pub struct Fixture {
    pub token: Arc<Recorder>,
    pub session: CK_SESSION_HANDLE,
    _turn: MutexGuard<'static, ()>,
}

pub fn fixture() -> Fixture {
    let turn = turn();
    let slots: Vec<Arc<Recorder>> = (0..3).map(|n| Arc::new(Recorder::new(n))).collect();
    let token = slots[2].clone();
    ha_module::install(Provider::from_slots(slots.into_iter().map(|s| s as Arc<dyn Token>).collect()))
        .unwrap();
    let mut session = 0;
    let flags = CKF_SERIAL_SESSION | CKF_RW_SESSION;
    call!(C_OpenSession(2, flags, null_mut(), None, &raw mut session)).unwrap();
    token.calls();
    Fixture { token, session, _turn: turn }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = call!(C_Finalize(null_mut()));
    }
}

impl Fixture {
    /// The one call that reached the token since the last look.
    #[track_caller]
    pub fn saw(&self, expected: &str) {
        assert_eq!(self.token.calls(), [expected]);
    }

    /// That nothing reached the token.
    #[track_caller]
    pub fn saw_nothing(&self) {
        assert_eq!(self.token.calls(), [""; 0]);
    }
}

/// A mechanism without parameter.
pub fn plain(mechanism: CK_MECHANISM_TYPE) -> CK_MECHANISM {
    CK_MECHANISM { mechanism, pParameter: null_mut(), ulParameterLen: 0 }
}

/// Runs the body of the test `name` in a process of its own, started from its first line; answers whether this is it.
pub fn alone(name: &str, environment: &[(&str, &std::ffi::OsStr)]) -> bool {
    ha_rig::is_alone(name) || {
        let alone = ha_rig::Alone::new(name);
        environment.iter().fold(alone, |alone, (name, value)| alone.env(name, value)).run();
        false
    }
}
