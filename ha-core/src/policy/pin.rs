//! What a member's answer to a login says of the PIN, and what follows (guarantee G6).

use ha_token::{Function, Result, Rv, Ulong, UserType, ck};

use super::failure::{Class, classify};

/// A member's answer to `C_Login`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The PIN is right.
    Accepted,
    /// The user is logged in there already: the PIN was not looked at.
    AlreadyIn,
    /// The PIN is not to be sent again.
    WrongPin(Rv),
    /// The member's own state forbids a login, whatever the PIN: another member may judge it.
    NotJudged(Rv),
    /// Something the caller did; it says nothing of the PIN.
    Refused(Rv),
    /// The member failed.
    Failed(Rv),
}

/// Takes an answer to `C_Login` apart.
pub fn of_login(answer: Result<()>) -> Answer {
    match answer {
        Ok(()) => Answer::Accepted,
        Err(Rv::USER_ALREADY_LOGGED_IN) => Answer::AlreadyIn,
        Err(rv @ (Rv::PIN_INCORRECT | Rv::PIN_INVALID | Rv::PIN_LEN_RANGE | Rv::PIN_EXPIRED)) => {
            Answer::WrongPin(rv)
        }
        Err(
            rv @ (Rv::PIN_LOCKED
            | Rv::USER_PIN_NOT_INITIALIZED
            | Rv::USER_ANOTHER_ALREADY_LOGGED_IN
            | Rv::USER_TOO_MANY_TYPES
            | Rv::USER_TYPE_INVALID
            // `C_LoginUser`, which most tokens do not have.
            | Rv::FUNCTION_NOT_SUPPORTED
            | Rv::SESSION_READ_ONLY_EXISTS),
        ) => Answer::NotJudged(rv),
        Err(rv) => match classify(Function::Login, rv) {
            Class::Caller => Answer::Refused(rv),
            Class::Session
            | Class::Login
            | Class::Object
            | Class::Capacity
            | Class::Member
            | Class::Ambiguous => Answer::Failed(rv),
        },
    }
}

/// Whether a PIN may have been counted as a wrong one by a member that failed the login so, or put it down to the caller.
pub fn may_have_counted(rv: Rv) -> bool {
    !matches!(
        rv,
        // Nothing was there that could have looked at it.
        Rv::CRYPTOKI_NOT_INITIALIZED
            | Rv::LIBRARY_LOAD_FAILED
            | Rv::SLOT_ID_INVALID
            | Rv::DEVICE_REMOVED
            | Rv::TOKEN_NOT_PRESENT
            | Rv::TOKEN_NOT_RECOGNIZED
            | Rv::TOKEN_NOT_INITIALIZED
            // The session was not one to log in with. One that was closed may have been closed after that.
            | Rv::SESSION_COUNT
            | Rv::SESSION_HANDLE_INVALID
            | Rv::SESSION_READ_ONLY
            | Rv::USER_NOT_LOGGED_IN
            | Rv::OPERATION_ACTIVE
            | Rv::OPERATION_NOT_INITIALIZED
    )
}

/// What a token says of the wrong PINs that it has counted for a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counted {
    /// There were some since the last right one.
    pub any: bool,
    /// One more locks it.
    pub last: bool,
}

/// Reads a token's flags, section 3.2. Many tokens never set them.
pub fn counted(user: UserType, flags: Ulong) -> Counted {
    let (low, last, locked) = match user {
        UserType::So => (ck::CKF_SO_PIN_COUNT_LOW, ck::CKF_SO_PIN_FINAL_TRY, ck::CKF_SO_PIN_LOCKED),
        UserType::User | UserType::ContextSpecific => {
            (ck::CKF_USER_PIN_COUNT_LOW, ck::CKF_USER_PIN_FINAL_TRY, ck::CKF_USER_PIN_LOCKED)
        }
    };
    Counted { any: flags & (low | last | locked) != 0, last: flags & last != 0 }
}

/// Whether a refused PIN may be sent to its token again: what that had counted `then` it has not `now`, so that somebody
/// has given it a right one or a new one. A token that says nothing of its count says nothing of this either.
pub fn is_over(then: bool, now: bool) -> bool {
    then && !now
}

/// Which PIN a member has after a change whose outcome is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holds {
    /// The new one.
    New,
    /// The old one.
    Old,
    /// That could not be found out.
    Unknown,
}

/// What one login with the new PIN, on a member where nobody is logged in, shows.
pub fn after_trial(answer: Answer) -> Holds {
    match answer {
        Answer::Accepted | Answer::WrongPin(Rv::PIN_EXPIRED) => Holds::New,
        Answer::WrongPin(_) => Holds::Old,
        Answer::AlreadyIn | Answer::NotJudged(_) | Answer::Refused(_) | Answer::Failed(_) => Holds::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn codes() -> impl Strategy<Value = Rv> {
        prop_oneof![
            proptest::sample::select(Rv::ALL),
            any::<ha_token::Ulong>().prop_filter("CKR_OK is no error", |n| *n != 0).prop_map(Rv)
        ]
    }

    proptest! {
        #[test]
        fn only_success_is_an_accepted_pin(rv in codes()) {
            prop_assert_ne!(of_login(Err(rv)), Answer::Accepted);
        }

        #[test]
        fn only_what_speaks_of_the_pin_makes_it_a_wrong_one(rv in codes()) {
            let wrong = matches!(of_login(Err(rv)), Answer::WrongPin(_));
            prop_assert_eq!(wrong, rv.name().is_some_and(|n| n.starts_with("CKR_PIN_")) && !matches!(rv, Rv::PIN_LOCKED | Rv::PIN_TOO_WEAK));
        }

        #[test]
        fn only_what_is_not_the_callers_is_put_down_to_the_member(rv in codes()) {
            let failed = matches!(of_login(Err(rv)), Answer::Failed(_));
            // That a token has no named users is no fault of its.
            let cannot = rv == Rv::FUNCTION_NOT_SUPPORTED;
            prop_assert_eq!(failed, classify(Function::Login, rv) != Class::Caller && !cannot);
        }

        #[test]
        fn what_is_not_known_to_be_harmless_may_have_counted(rv in codes()) {
            if matches!(classify(Function::Login, rv), Class::Ambiguous) || rv == Rv::DEVICE_ERROR {
                prop_assert!(may_have_counted(rv));
            }
            if !may_have_counted(rv) {
                prop_assert!(matches!(of_login(Err(rv)), Answer::Failed(_)));
            }
        }

        #[test]
        fn a_refusal_is_over_only_when_a_count_was_cleared(then in any::<Ulong>(), now in any::<Ulong>()) {
            for user in [UserType::So, UserType::User, UserType::ContextSpecific] {
                let (then, now) = (counted(user, then), counted(user, now));
                prop_assert!(then.any || !then.last);
                prop_assert_eq!(is_over(then.any, now.any), then.any && !now.any);
            }
            // What is said of one user's count is not said of another's.
            let other = now & !(ck::CKF_USER_PIN_COUNT_LOW | ck::CKF_USER_PIN_FINAL_TRY | ck::CKF_USER_PIN_LOCKED);
            prop_assert!(!counted(UserType::User, other).any);
        }

        #[test]
        fn a_trial_that_did_not_look_at_the_pin_shows_nothing(rv in codes()) {
            let answer = of_login(Err(rv));
            prop_assert_eq!(after_trial(answer) == Holds::Unknown, !matches!(answer, Answer::WrongPin(_)));
        }
    }
}
