//! Shutting down beside a member that hangs: it is named and left behind, and the process ends.
#![allow(missing_docs, clippy::unwrap_used)]

use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ha_core::config::Config;
use ha_core::provider::{Provider, connector};
use ha_core::seam::System;
use ha_member::ModuleConnector;
use ha_rig::{PIN, Tokens};
use ha_token::{ConnectError, Connector, Rv, SessionHandle, Token, UserType};

/// Runs a test in a process of its own, which must end; answers whether this is that process.
fn alone(name: &str) -> bool {
    const MARK: &str = "SHUTDOWN_ALONE";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(MARK, "")
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    false
}

/// Both members behind servers, the first of them serving, the user logged in.
fn start(tokens: &Tokens, more: &str) -> (Arc<Provider>, Arc<dyn Token>, SessionHandle) {
    (0..2).for_each(|i| tokens.serve(i));
    let config = more.to_owned() + &tokens.config(true, "balance = \"primary\"");
    let provider = Arc::new(Provider::from_config(Config::parse(&config).unwrap()).unwrap());
    let slot = Arc::clone(provider.slot(0).unwrap());
    let s = slot.open_session(true).unwrap();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    (provider, slot, s)
}

#[test]
fn a_call_that_hangs_is_left_behind_with_its_member_named() {
    if !alone("a_call_that_hangs_is_left_behind_with_its_member_named") {
        return;
    }
    let tokens = Tokens::new(2);
    let (provider, slot, s) = start(&tokens, "");
    tokens.freeze(0);
    std::thread::spawn(move || slot.generate_random(s, &mut [0; 8]));
    while provider.groups()[0].members.get(0).unwrap().load() == 0 {
        std::thread::yield_now();
    }
    assert_eq!(provider.shutdown(Duration::from_millis(200)), ["a"]);
    assert_eq!(provider.shutdown(Duration::ZERO), [""; 0], "it was said already");
    assert_eq!(provider.slot(0).unwrap().open_session(true), Err(Rv::CRYPTOKI_NOT_INITIALIZED));
}

#[test]
fn a_member_that_hangs_with_sessions_and_a_login_left_in_it_is_named_too() {
    if !alone("a_member_that_hangs_with_sessions_and_a_login_left_in_it_is_named_too") {
        return;
    }
    let tokens = Tokens::new(2);
    let (provider, slot, s) = start(&tokens, "ha_only = false\n");
    slot.generate_random(s, &mut [0; 8]).unwrap();
    slot.find_objects_init(s, &Vec::new()).unwrap();
    provider.slot(1).unwrap().open_session(true).unwrap();
    tokens.freeze(0);
    // Only p11-kit's client finalising asks the server.
    assert_eq!(provider.shutdown(Duration::ZERO), ["a"]);
}

/// A member whose `C_Finalize` never returns.
struct NeverLeaves(ModuleConnector);

impl Connector for NeverLeaves {
    fn connect(&self) -> Result<Arc<dyn Token>, ConnectError> {
        self.0.connect()
    }

    fn disconnect(&self) {
        loop {
            std::thread::park();
        }
    }

    fn reinitialises(&self) -> bool {
        true
    }
}

#[test]
fn a_member_that_hangs_in_its_own_end_is_named() {
    if !alone("a_member_that_hangs_in_its_own_end_is_named") {
        return;
    }
    let tokens = Tokens::new(2);
    let config = Config::parse(&tokens.config(false, "")).unwrap();
    let members = &config.groups[0].members;
    let (a, b) = (NeverLeaves(connector(&members[0])), connector(&members[1]));
    let connectors: Vec<Box<dyn Connector>> = vec![Box::new(a), Box::new(b)];
    let provider = Provider::with_members(config, System::new(), vec![connectors]).unwrap();
    assert_eq!(provider.shutdown(Duration::ZERO), ["a"]);
}

/// A member that is fine, and an earlier connection of which never lets itself be finalised.
struct Left(ModuleConnector, Mutex<Option<Sender<()>>>);

impl Connector for Left {
    fn connect(&self) -> Result<Arc<dyn Token>, ConnectError> {
        self.0.connect()
    }

    fn disconnect(&self) {
        self.0.disconnect();
    }

    fn leavings(&self) -> Option<Box<dyn FnOnce() + Send>> {
        let begun = self.1.lock().unwrap().take()?;
        Some(Box::new(move || {
            begun.send(()).unwrap();
            loop {
                std::thread::park();
            }
        }))
    }

    fn reinitialises(&self) -> bool {
        true
    }
}

#[test]
fn a_member_in_whose_leavings_something_hangs_is_used_all_the_same_and_named_at_the_end() {
    if !alone("a_member_in_whose_leavings_something_hangs_is_used_all_the_same_and_named_at_the_end") {
        return;
    }
    let tokens = Tokens::new(2);
    let config = Config::parse(&tokens.config(false, "balance = \"primary\"")).unwrap();
    let members = &config.groups[0].members;
    let (tell, told) = channel();
    let (a, b) = (Left(connector(&members[0]), Mutex::new(Some(tell))), connector(&members[1]));
    let connectors: Vec<Box<dyn Connector>> = vec![Box::new(a), Box::new(b)];
    let provider = Provider::with_members(config, System::new(), vec![connectors]).unwrap();
    told.recv().unwrap();
    let member = &provider.groups()[0].members.get(0).unwrap();
    while !member.is_up() {
        std::thread::yield_now();
    }
    let slot = provider.slot(0).unwrap();
    let s = slot.open_session(false).unwrap();
    slot.generate_random(s, &mut [0; 8]).unwrap();
    assert_eq!(provider.groups()[0].served(), [1, 0]);
    assert_eq!(provider.shutdown(Duration::from_secs(1)), ["a"]);
}

#[test]
fn where_nothing_hangs_nobody_is_named_and_calls_in_flight_end() {
    let tokens = Tokens::new(2);
    let (provider, slot, _) = start(&tokens, "ha_only = false\n");
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let slot = Arc::clone(&slot);
            std::thread::spawn(move || {
                let s = slot.open_session(false).unwrap();
                loop {
                    match slot.generate_random(s, &mut [0; 8]) {
                        Ok(()) => {}
                        Err(rv) => return rv,
                    }
                }
            })
        })
        .collect();
    while provider.groups()[0].served()[0] < 100 {
        std::thread::yield_now();
    }
    assert_eq!(provider.shutdown(Duration::from_secs(60)), [""; 0]);
    for caller in callers {
        assert_eq!(caller.join().unwrap(), Rv::SESSION_HANDLE_INVALID, "no call was cut off");
    }
}
