//! `libfaulty_token.so`: a PKCS#11 module that passes every call on to a real one and injects faults.
//!
//! `docs/faulty-token.md` says what it is for and how it is told what to do.
//!
//! | file | subject |
//! | --- | --- |
//! | `rule`, `calls` | one rule in its one-line language |
//! | `state` | which fault a call gets: pure |
//! | `kept` | where that is kept: here, or in a file that processes share |
//! | `config` | the configuration file |
//! | `module` | the real module, loaded once |
//! | `lists`, `shape` | one function of ours for each of the standard's; what their arguments are |
//! | `through` | one call's way |
//! | `outputs` | the caller's pointers, read and spoilt |
//! | `tracking`, `handles` | sessions, what is under way in them, and handles that were lost |
//! | `swaps` | one token in another's place; sessions that are lost |
//! | `pins` | a PIN counter that locks |
//! | `live` | what the calls of one process share |
//! | `control`, `commands` | the control socket, and what is said over it |
//! | `guard` | no panic crosses the C interface |
#![deny(missing_docs)]
#![allow(non_snake_case)] // the functions have the standard's names

#[cfg(all(panic = "abort", not(test)))]
compile_error!("libfaulty_token.so must unwind: a panic is answered with CKR_GENERAL_ERROR");

pub mod calls;
pub mod commands;
pub mod config;
mod control;
mod guard;
mod handles;
pub mod kept;
mod lists;
mod live;
mod module;
mod outputs;
mod pins;
pub mod rule;
pub mod shape;
pub mod state;
mod swaps;
mod through;
mod tracking;

pub use control::check as check_socket;
pub use lists::{C_GetFunctionList, C_GetInterface, C_GetInterfaceList};

/// One line for who runs the program, once however often it is tried again. A closed standard error is no reason to fail.
fn say(what: &str) {
    use std::io::Write as _;
    static LAST: std::sync::Mutex<String> = std::sync::Mutex::new(String::new());
    let mut last = LAST.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if *last == what {
        return;
    }
    what.clone_into(&mut last);
    let line = format!("faulty-token: {}\n", what.replace('\n', " "));
    _ = std::io::stderr().lock().write_all(line.as_bytes());
}
