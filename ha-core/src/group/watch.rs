//! What a caller's own call met on its way: kept by the thread that makes it, for as long as it asked for that.
//!
//! A call is balanced and made again on the thread that the application called on, so nothing has to be handed through
//! the layers; where nobody asked, nothing is kept.

use std::cell::RefCell;

use ha_token::{Function, Rv, Ulong};

use crate::policy::failure::Class;

/// A call to a member that failed on behalf of a session's call, whether the session's call succeeded in the end or not.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastFault {
    /// The member.
    pub member: String,
    /// The function that was called.
    pub function: Function,
    /// The member's answer, a `CK_RV`, as it gave it.
    pub rv: Ulong,
    /// What that was taken for.
    pub class: Class,
    /// Whether the call was made once more, on this member or another one.
    pub retried: bool,
}

enum Watch {
    Off,
    On(Option<LastFault>),
}

thread_local! {
    static WATCH: RefCell<Watch> = const { RefCell::new(Watch::Off) };
}

/// Replaces what this thread keeps; answers what it kept. Nothing is kept while the thread ends.
fn replace(watch: Watch) -> Watch {
    WATCH.try_with(|w| w.replace(watch)).unwrap_or(Watch::Off)
}

/// Makes a call; answers with its value the last fault that it met.
pub(crate) fn watched<T>(call: impl FnOnce() -> T) -> (T, Option<LastFault>) {
    /// Also when the call panics.
    struct Off;
    impl Drop for Off {
        fn drop(&mut self) {
            replace(Watch::Off);
        }
    }
    replace(Watch::On(None));
    let _off = Off;
    let value = call();
    match replace(Watch::Off) {
        Watch::On(fault) => (value, fault),
        Watch::Off => (value, None),
    }
}

fn note(f: impl FnOnce(&mut Option<LastFault>)) {
    _ = WATCH.try_with(|watch| match &mut *watch.borrow_mut() {
        Watch::On(fault) => f(fault),
        Watch::Off => {}
    });
}

/// A call to a member failed.
pub(super) fn failed(member: &str, function: Function, rv: Rv, class: Class) {
    note(|fault| {
        *fault = Some(LastFault { member: member.to_owned(), function, rv: rv.0, class, retried: false });
    });
}

/// A failure was put down to a member.
pub(super) fn blamed(member: &str, function: Function, rv: Rv) {
    note(|fault| match fault {
        // What was asked of it to find out is not what the caller's call met.
        Some(fault) if fault.member == member => fault.class = Class::Member,
        Some(_) => {}
        None => {
            let (member, class) = (member.to_owned(), Class::Member);
            *fault = Some(LastFault { member, function, rv: rv.0, class, retried: false });
        }
    });
}

/// The call is made once more.
pub(crate) fn retried() {
    note(|fault| {
        if let Some(fault) = fault {
            fault.retried = true;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_fault_is_kept_with_what_followed() {
        let ((), fault) = watched(|| {
            failed("a", Function::Sign, Rv::GENERAL_ERROR, Class::Ambiguous);
            retried();
            blamed("a", Function::Sign, Rv::GENERAL_ERROR);
            blamed("b", Function::GetTokenInfo, Rv::DEVICE_ERROR);
        });
        let fault = fault.unwrap();
        assert_eq!(
            (fault.member.as_str(), fault.function, fault.rv),
            ("a", Function::Sign, Rv::GENERAL_ERROR.0)
        );
        assert_eq!((fault.class, fault.retried), (Class::Member, true));
    }

    #[test]
    fn what_nobody_asked_about_is_not_kept() {
        failed("a", Function::Sign, Rv::DEVICE_ERROR, Class::Member);
        let before = std::panic::catch_unwind(|| watched(|| -> () { panic!("contained") }));
        assert!(before.is_err());
        failed("b", Function::Sign, Rv::DEVICE_ERROR, Class::Member);
        assert_eq!(watched(|| ()).1, None);
    }
}
