//! Calls from exit handlers, where OpenSSL's engines and many libraries clean up: the thread's own storage, which
//! Rust's libraries lean on, is gone by then.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;
use std::ptr::null_mut;

use common::call;
use cryptoki_sys::*;
use ha_rig::{PIN, Tokens};

const NAME: &str = "an_exit_handler_is_served";
const INNER: &str = "PKCS11_HA_TEST_INNER";

/// What the exit handler answers with when every call was right.
const SERVED: i32 = 42;

extern "C" fn clean_up() {
    let mut session = 0;
    let flags = CKF_SERIAL_SESSION;
    let answers = [
        call!(C_OpenSession(0, flags, null_mut(), None, &raw mut session)),
        call!(C_CloseSession(session)),
        call!(C_CloseAllSessions(0)),
        call!(C_Finalize(null_mut())),
    ];
    let served = answers == [Ok(()); 4];
    if !served {
        eprintln!("in the exit handler: {answers:?}");
    }
    // SAFETY: ends the process here.
    unsafe { libc::_exit(if served { SERVED } else { 1 }) }
}

#[test]
fn an_exit_handler_is_served() {
    if std::env::var_os(INNER).is_none() {
        let tokens = Tokens::new(2);
        let conf = tokens.path().join("ha.toml");
        std::fs::write(&conf, tokens.config(false, "")).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([NAME, "--exact", "--nocapture", "--test-threads=1"]);
        let output = command.env(INNER, "1").env("PKCS11_HA_CONF", &conf).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(SERVED), "{said}");
        assert!(!said.contains("panicked"), "{said}");
        return;
    }
    call!(C_Initialize(null_mut())).unwrap();
    let mut session = 0;
    call!(C_OpenSession(0, CKF_SERIAL_SESSION, null_mut(), None, &raw mut session)).unwrap();
    let mut pin = PIN.as_bytes().to_vec();
    call!(C_Login(session, CKU_USER, pin.as_mut_ptr(), pin.len() as CK_ULONG)).unwrap();
    // SAFETY: the handler ends the process.
    assert_eq!(unsafe { libc::atexit(clean_up) }, 0);
    std::process::exit(0);
}

/// Programs that never finalise are many. Members that are away are being connected then, again and again, and their
/// modules' destructors run.
#[test]
fn an_exit_while_members_are_connected_crashes_nothing() {
    const NAME: &str = "an_exit_while_members_are_connected_crashes_nothing";
    const CONFIG: &str = "PKCS11_HA_CONF";
    if std::env::var_os(INNER).is_some_and(|inner| inner == NAME) {
        call!(C_Initialize(null_mut())).unwrap();
        // Each ends at another moment of the keepers' work.
        let turns: u32 = std::env::var("TURNS").unwrap().parse().unwrap();
        for _ in 0..turns {
            let mut session = 0;
            call!(C_OpenSession(0, CKF_SERIAL_SESSION, null_mut(), None, &raw mut session)).unwrap();
            let mut random = [0; 32];
            call!(C_GenerateRandom(session, random.as_mut_ptr(), 32)).unwrap();
            call!(C_CloseSession(session)).unwrap();
        }
        std::process::exit(SERVED);
    }
    let tokens = Tokens::new(3);
    let config = "[group.recovery]\ninterval = \"1ms\"\nmax_interval = \"1ms\"\n";
    let conf = tokens.write_config(&tokens.config(false, config));
    tokens.hide(1);
    tokens.hide(2);
    for turn in 0..40 {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([NAME, "--exact", "--nocapture", "--test-threads=1"]);
        command.env(INNER, NAME).env(CONFIG, &conf).env("TURNS", (turn * 25).to_string());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(SERVED), "turn {turn}: {:?}\n{said}", output.status);
    }
}
