//! The fault table: what a member's answer means for the call, for the member, and for a retry.
//!
//! One table for every `CK_RV` that PKCS#11 v3.2 names; a reader can hold it against the standard. Numbers that the
//! standard does not define are ambiguous.

use crate::mutants::wrong;
#[cfg(feature = "simulation")]
use crate::seam::turns;
use ha_token::{Function, Rv};

/// What an answer is taken for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Class {
    /// The caller's own mistake: returned as it is, no retry.
    Caller,
    /// The backing session is gone: once more on a fresh one, then as [`Class::Member`].
    Session,
    /// The backing session is not logged in while the virtual one is: log in again once, then as [`Class::Member`].
    Login,
    /// The backing handle is stale: resolve the object again once, then another member, and no suspicion unless this one has
    /// lost its token.
    Object,
    /// No session, no memory: another member, no suspicion.
    Capacity,
    /// The member is at fault: another member, and this one is probed.
    Member,
    /// May be either: one other member is asked; the same answer is the caller's.
    Ambiguous,
}

/// Takes an answer apart. `CKR_OK` is no answer to ask about and counts as the caller's.
pub fn classify(function: Function, rv: Rv) -> Class {
    let class = row(function, rv);
    #[cfg(feature = "simulation")]
    turns::reached(turns::Reached::Fault(rv, class));
    class
}

fn row(function: Function, rv: Rv) -> Class {
    use Class::*;
    match rv {
        Rv::USER_NOT_LOGGED_IN if wrong!(LoginLostIsCallers) => Caller,
        Rv::DEVICE_ERROR if wrong!(DeviceErrorIsCallers) => Caller,
        Rv::NO_ANSWER if wrong!(NoAnswerIsCallers) => Caller,
        Rv::SESSION_HANDLE_INVALID if wrong!(SessionLostIsCallers) => Caller,
        Rv::ATTRIBUTE_TYPE_INVALID | Rv::DATA_LEN_RANGE if wrong!(CallersIsMembers) => Member,
        // What was given: data, mechanism, template, key, permission.
        Rv::ARGUMENTS_BAD
        | Rv::ATTRIBUTE_READ_ONLY
        | Rv::ATTRIBUTE_SENSITIVE
        | Rv::ATTRIBUTE_TYPE_INVALID
        | Rv::ATTRIBUTE_VALUE_INVALID
        | Rv::ACTION_PROHIBITED
        | Rv::DATA_INVALID
        | Rv::DATA_LEN_RANGE
        | Rv::ENCRYPTED_DATA_INVALID
        | Rv::ENCRYPTED_DATA_LEN_RANGE
        | Rv::AEAD_DECRYPT_FAILED
        | Rv::FUNCTION_NOT_PARALLEL
        | Rv::KEY_SIZE_RANGE
        | Rv::KEY_TYPE_INCONSISTENT
        | Rv::KEY_NOT_NEEDED
        | Rv::KEY_CHANGED
        | Rv::KEY_NEEDED
        | Rv::KEY_INDIGESTIBLE
        | Rv::KEY_FUNCTION_NOT_PERMITTED
        | Rv::KEY_NOT_WRAPPABLE
        | Rv::KEY_UNEXTRACTABLE
        | Rv::MECHANISM_INVALID
        | Rv::MECHANISM_PARAM_INVALID
        | Rv::SIGNATURE_INVALID
        | Rv::SIGNATURE_LEN_RANGE
        | Rv::TEMPLATE_INCOMPLETE
        | Rv::TEMPLATE_INCONSISTENT
        | Rv::UNWRAPPING_KEY_SIZE_RANGE
        | Rv::UNWRAPPING_KEY_TYPE_INCONSISTENT
        | Rv::WRAPPED_KEY_INVALID
        | Rv::WRAPPED_KEY_LEN_RANGE
        | Rv::WRAPPING_KEY_SIZE_RANGE
        | Rv::WRAPPING_KEY_TYPE_INCONSISTENT
        | Rv::RANDOM_SEED_NOT_SUPPORTED
        | Rv::RANDOM_NO_RNG
        | Rv::DOMAIN_PARAMS_INVALID
        | Rv::CURVE_NOT_SUPPORTED
        | Rv::BUFFER_TOO_SMALL
        | Rv::SAVED_STATE_INVALID
        | Rv::INFORMATION_SENSITIVE
        | Rv::STATE_UNSAVEABLE
        | Rv::EXCEEDED_MAX_ITERATIONS
        | Rv::PIN_TOO_WEAK
        | Rv::PUBLIC_KEY_INVALID
        | Rv::FUNCTION_REJECTED
        | Rv::KEY_EXHAUSTED
        | Rv::PARAMETER_SET_NOT_SUPPORTED
        | Rv::OPERATION_NOT_VALIDATED
        | Rv::NO_EVENT
        | Rv::CANCEL
        | Rv::FUNCTION_CANCELED
        | Rv::OPERATION_CANCEL_FAILED
        | Rv::SESSION_PARALLEL_NOT_SUPPORTED
        | Rv::SESSION_ASYNC_NOT_SUPPORTED
        | Rv::SESSION_EXISTS
        | Rv::SESSION_READ_ONLY_EXISTS
        | Rv::SESSION_READ_WRITE_SO_EXISTS
        | Rv::NEED_TO_CREATE_THREADS
        | Rv::CANT_LOCK
        | Rv::CRYPTOKI_ALREADY_INITIALIZED
        | Rv::PENDING => Caller,
        // The PIN and the user: the caller's, and never tried again.
        Rv::PIN_INCORRECT
        | Rv::PIN_INVALID
        | Rv::PIN_LEN_RANGE
        | Rv::PIN_EXPIRED
        | Rv::PIN_LOCKED
        | Rv::USER_ALREADY_LOGGED_IN
        | Rv::USER_PIN_NOT_INITIALIZED
        | Rv::USER_TYPE_INVALID
        | Rv::USER_ANOTHER_ALREADY_LOGGED_IN
        | Rv::USER_TOO_MANY_TYPES
        | Rv::NEW_PIN_MODE
        | Rv::NEXT_OTP => Caller,
        Rv::USER_NOT_LOGGED_IN => match function {
            // These want a login of their own kind, which is the caller's business.
            Function::InitPin | Function::SetPin | Function::Logout => Caller,
            _ => Login,
        },
        // Our backing session, not the caller's: the virtual slot answers for those itself.
        Rv::SESSION_CLOSED
        | Rv::SESSION_HANDLE_INVALID
        | Rv::SESSION_READ_ONLY
        | Rv::OPERATION_ACTIVE
        | Rv::OPERATION_NOT_INITIALIZED => Session,
        // Only handles that were valid when they were last seen are passed on.
        Rv::OBJECT_HANDLE_INVALID
        | Rv::KEY_HANDLE_INVALID
        | Rv::UNWRAPPING_KEY_HANDLE_INVALID
        | Rv::WRAPPING_KEY_HANDLE_INVALID => Object,
        // Another member may have the function; if none has, this is the answer.
        Rv::FUNCTION_NOT_SUPPORTED => Capacity,
        Rv::HOST_MEMORY
        | Rv::DEVICE_MEMORY
        | Rv::SESSION_COUNT
        | Rv::TOKEN_RESOURCE_EXCEEDED
        | Rv::SEED_RANDOM_REQUIRED => Capacity,
        Rv::DEVICE_ERROR
        | Rv::DEVICE_REMOVED
        | Rv::TOKEN_NOT_PRESENT
        | Rv::TOKEN_NOT_RECOGNIZED
        | Rv::TOKEN_NOT_INITIALIZED
        | Rv::SLOT_ID_INVALID
        | Rv::CRYPTOKI_NOT_INITIALIZED
        | Rv::LIBRARY_LOAD_FAILED
        | Rv::FIPS_SELF_TEST_FAILED
        | Rv::MUTEX_BAD
        | Rv::MUTEX_NOT_LOCKED
        | Rv::NO_ANSWER
        | Rv::WRONG_SIGNATURE => Member,
        // A token gone read-only cannot be told from one that never took writes.
        Rv::TOKEN_WRITE_PROTECTED => Ambiguous,
        Rv::GENERAL_ERROR | Rv::FUNCTION_FAILED => Ambiguous,
        Rv::VENDOR_DEFINED => Ambiguous,
        Rv(ha_token::ck::CKR_OK) => Caller,
        Rv(_) => Ambiguous,
    }
}

/// What an answer of [`Class::Session`] means when a fresh backing session gives it again: a member that loses sessions
/// as soon as they are made is at fault, but "no operation" and the like are how some tokens refuse what the mechanism
/// cannot do (SoftHSM says so for a part of a mechanism without parts).
pub fn on_fresh_session(rv: Rv) -> Class {
    let class = match rv {
        Rv::OPERATION_NOT_INITIALIZED | Rv::OPERATION_ACTIVE | Rv::SESSION_READ_ONLY => Class::Ambiguous,
        _ => Class::Member,
    };
    #[cfg(feature = "simulation")]
    turns::reached(turns::Reached::Fresh(rv, class));
    class
}

/// Whether the function creates or changes what is on a token, so that making the call twice may have two effects.
pub fn is_write(function: Function) -> bool {
    matches!(
        function,
        Function::InitToken
            | Function::InitPin
            | Function::SetPin
            | Function::CreateObject
            | Function::CopyObject
            | Function::DestroyObject
            | Function::SetAttributeValue
            | Function::GenerateKey
            | Function::GenerateKeyPair
            | Function::UnwrapKey
            | Function::UnwrapKeyAuthenticated
            | Function::DeriveKey
            | Function::EncapsulateKey
            | Function::DecapsulateKey
    )
}

/// Whether a failed call may have had its effect all the same.
pub fn outcome_unknown(function: Function, rv: Rv) -> bool {
    // CKR_SESSION_CLOSED says that the session went during the call.
    is_write(function)
        && (rv == Rv::SESSION_CLOSED || matches!(row(function, rv), Class::Member | Class::Ambiguous))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table in words, row by row: every code that the standard names has a row here.
    const ROWS: &str = include_str!("fault_table.txt");

    #[test]
    fn every_code_has_its_row_and_its_class() {
        let mut rows: std::collections::BTreeMap<&str, &str> =
            ROWS.lines().filter_map(|l| l.split_once(' ')).collect();
        for rv in Rv::ALL {
            let name = rv.name().unwrap();
            let class = rows.remove(name).unwrap_or_else(|| panic!("{name} has no row"));
            assert_eq!(format!("{:?}", classify(Function::Sign, *rv)), class.trim(), "{name}");
        }
        assert!(rows.is_empty(), "rows of no code: {rows:?}");
    }

    #[test]
    fn what_a_fresh_session_says_again_is_not_always_the_members_fault() {
        for rv in Rv::ALL.iter().filter(|rv| classify(Function::Sign, **rv) == Class::Session) {
            let lost = matches!(*rv, Rv::SESSION_CLOSED | Rv::SESSION_HANDLE_INVALID);
            let expected = if lost { Class::Member } else { Class::Ambiguous };
            assert_eq!(on_fresh_session(*rv), expected, "{rv}");
        }
    }

    #[test]
    fn what_the_standard_does_not_define_is_ambiguous() {
        for number in [4, 0x7fff_ffff, 0x8000_0001, u64::MAX] {
            assert_eq!(classify(Function::Sign, Rv(number as _)), Class::Ambiguous);
        }
    }

    #[test]
    fn a_write_that_failed_vaguely_may_have_been_made() {
        assert!(outcome_unknown(Function::GenerateKey, Rv::DEVICE_ERROR));
        assert!(outcome_unknown(Function::GenerateKey, Rv::SESSION_CLOSED));
        assert!(!outcome_unknown(Function::GenerateKey, Rv::TEMPLATE_INCONSISTENT));
        assert!(!outcome_unknown(Function::Sign, Rv::DEVICE_ERROR));
    }
}
