//! What surrounds every function: panics are contained, and most functions need a running provider.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use cryptoki_sys::{CK_RV, CKR_OK};
use ha_core::provider::Provider;
use ha_token::{Function, Result, Rv};

use crate::state;

/// Runs a function's body; a panic in it becomes `CKR_GENERAL_ERROR`.
///
/// Nothing of ours is left half-changed behind a panic that a later call could see: what calls share is replaced as a
/// whole (see `state`) or belongs to `ha-core`, whose locks recover from poisoning.
pub(crate) fn contained(function: Function, body: impl FnOnce() -> Result<()>) -> CK_RV {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => CKR_OK,
        Ok(Err(rv)) => rv.0,
        Err(payload) => {
            report(function, payload);
            Rv::GENERAL_ERROR.0
        }
    }
}

/// Runs the body of a function that needs `C_Initialize` to have been called in this process.
pub(crate) fn running(function: Function, body: impl FnOnce(&Provider) -> Result<()>) -> CK_RV {
    contained(function, || state::with(body))
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
            $crate::guard::running(ha_token::Function::$function, |$provider| {
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
        assert_eq!(contained(Function::Sign, || panic!("in a test")), Rv::GENERAL_ERROR.0);
        assert_eq!(contained(Function::Sign, || Err(Rv::DEVICE_ERROR)), Rv::DEVICE_ERROR.0);
        assert_eq!(contained(Function::Sign, || Ok(())), CKR_OK);
    }

    #[test]
    fn what_a_panic_carries_may_panic_too() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("in a drop");
            }
        }
        let body = || std::panic::panic_any(Bomb);
        assert_eq!(contained(Function::Sign, body), Rv::GENERAL_ERROR.0);
    }
}
