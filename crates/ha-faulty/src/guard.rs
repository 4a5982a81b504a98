//! No panic crosses the C interface.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cryptoki_sys::CK_RV;
use ha_token::Rv;

/// Runs a function's body; a panic in it is answered with `CKR_GENERAL_ERROR`.
///
/// What calls share is behind locks whose poison is ignored, and each change under one is whole.
pub(crate) fn contained(body: impl FnOnce() -> CK_RV) -> CK_RV {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(rv) => rv,
        Err(payload) => {
            // Dropping what a panic carries may panic again, and this is the last place to catch it.
            std::mem::forget(payload);
            Rv::GENERAL_ERROR.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_general_error() {
        assert_eq!(contained(|| panic!("in a test")), Rv::GENERAL_ERROR.0);
        assert_eq!(contained(|| 0x30), 0x30);
    }
}
