//! What surrounds every function: panics are contained, and most functions need a running provider.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use cryptoki_sys::{CK_RV, CKR_OK};
use ha_core::provider::Provider;
use ha_member::presence::{self, Here};
use ha_token::{Function, Result, Rv};

use crate::state;

/// A call that another thread makes while its own waits for it.
struct Lent<T>(T);

// SAFETY: only `elsewhere` makes one, and its thread does nothing until the other has ended. The values are pointers of
// the application's, which PKCS#11 binds to no thread, and what is on the waiting thread's stack.
unsafe impl<T> Send for Lent<T> {}

/// Runs a function's body on this thread; a panic in it becomes `CKR_GENERAL_ERROR`.
///
/// Nothing of ours is left half-changed behind a panic that a later call could see: what calls share is replaced as a
/// whole (see `state`) or belongs to `ha-core`, whose locks recover from poisoning.
// Every frame between the application and a token costs a return, and those are dear after a token's system calls.
#[inline(always)]
fn caught(function: Function, body: impl FnOnce() -> Result<()>) -> CK_RV {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => CKR_OK,
        Ok(Err(rv)) => rv.told().0,
        Err(payload) => {
            report(function, payload);
            Rv::GENERAL_ERROR.0
        }
    }
}

/// Runs the body of a function that needs no running provider.
pub(crate) fn contained(function: Function, body: impl FnOnce(Here) -> Result<()>) -> CK_RV {
    match presence::here() {
        Some(here) => caught(function, || body(here)),
        None => {
            let mut body = Some(body);
            elsewhere(&mut || match (presence::here(), body.take()) {
                (Some(here), Some(body)) => caught(function, || body(here)),
                _ => Rv::GENERAL_ERROR.0,
            })
        }
    }
}

/// Runs the body of a function that needs `C_Initialize` to have been called in this process.
#[inline(always)]
pub(crate) fn running(function: Function, here: Here, body: impl FnOnce(&Provider) -> Result<()>) -> CK_RV {
    caught(function, || state::with(here, body))
}

/// Makes a call on a thread of its own: exit handlers, where libraries like to clean up, run after this thread's
/// storage is gone, and the maps of sessions and objects need it. `CKR_HOST_MEMORY` where no thread can be had.
#[cold]
#[inline(never)]
pub(crate) fn elsewhere(call: &mut dyn FnMut() -> CK_RV) -> CK_RV {
    let mut answer = Rv::HOST_MEMORY.0;
    let lent = Lent((call, &mut answer));
    let run = move || {
        // The whole of it is moved in, not its parts.
        let Lent((call, answer)) = { lent };
        *answer = call();
    };
    // It ends with the scope.
    thread::scope(|scope| _ = thread::Builder::new().spawn_scoped(scope, run));
    answer
}

/// Logs a panic. Only a text that was fixed at compile time is repeated: a formatted one may hold a caller's data.
#[cold]
fn report(function: Function, payload: Box<dyn Any + Send>) {
    let text = payload.downcast_ref::<&'static str>().copied().unwrap_or("(formatted text left out)");
    let logged =
        catch_unwind(|| tracing::error!(%function, panic = text, "a bug in pkcs11-ha was contained"));
    // Dropping what a panic carries may panic again, and this was the last place to catch it.
    std::mem::forget(payload);
    std::mem::forget(logged);
}

/// Defines functions of the C interface. Inside the body, the first name between the bars is what the application's
/// pointers are read through, the second the running provider.
macro_rules! entry {
    ($(
        $(#[$doc:meta])*
        fn $name:ident is $function:ident($($arg:ident: $type:ty),* $(,)?) |$caller:ident, $provider:ident| $body:block
    )*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// The pointers are what PKCS#11 says of this function.
        pub(crate) unsafe extern "C" fn $name($($arg: $type),*) -> cryptoki_sys::CK_RV {
            let Some(here) = ha_member::presence::here() else {
                // SAFETY: this function's own condition; the caller waits for it.
                return $crate::guard::elsewhere(&mut || unsafe { $name($($arg),*) });
            };
            $crate::guard::running(ha_token::Function::$function, here, |$provider| {
                // SAFETY: this function's own condition.
                let $caller = unsafe { $crate::caller::Caller::trusted() };
                $body
            })
        }
    )*};
}
pub(crate) use entry;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_general_error_and_nothing_worse() {
        assert_eq!(contained(Function::Sign, |_| panic!("in a test")), Rv::GENERAL_ERROR.0);
        assert_eq!(contained(Function::Sign, |_| Err(Rv::DEVICE_ERROR)), Rv::DEVICE_ERROR.0);
        assert_eq!(contained(Function::Sign, |_| Ok(())), CKR_OK);
    }

    #[test]
    fn what_a_panic_carries_may_panic_too() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("in a drop");
            }
        }
        let body = |_: Here| std::panic::panic_any(Bomb);
        assert_eq!(contained(Function::Sign, body), Rv::GENERAL_ERROR.0);
    }
}
