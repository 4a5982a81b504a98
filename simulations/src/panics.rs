//! Panics of simulated threads: they end the history, and are told with it.

use std::any::Any;
use std::cell::RefCell;

use crate::scheduler::Scheduler;

/// What unwinds a thread that is to go no further.
pub(crate) struct Stopped;

thread_local! {
    /// Where this thread panicked, until that is told.
    static PANICKED_AT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The words of a panic; `None` for our own stopping.
pub(crate) fn words(payload: &(dyn Any + Send)) -> Option<String> {
    if payload.is::<Stopped>() {
        return None;
    }
    let fixed = payload.downcast_ref::<&'static str>().map(|s| (*s).to_owned());
    let said =
        fixed.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".into());
    Some(match PANICKED_AT.take() {
        Some(place) => format!("{said} ({place})"),
        None => said,
    })
}

/// From now on a panic in a simulation is told with the history that it ends, and not beside it. One that makes the whole
/// process abort, because it came while another one was unwound, is told at once: nobody is left to tell it later.
pub fn tell_with_their_history() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let place = info.location().map(ToString::to_string);
        let history = Scheduler::history();
        if history.is_none() || PANICKED_AT.replace(place).is_some() {
            usual(info);
            if let Some(history) = history {
                eprintln!("this was {history}");
            }
        }
    }));
}
