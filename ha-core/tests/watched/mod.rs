//! A group over members that are watched, and that go and come back as the test wants.
#![allow(missing_docs, dead_code, unreachable_pub, clippy::unwrap_used)] // each test uses a part of it

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_core::config::Config;
use ha_core::group::Group;
use ha_core::policy::health::State;
use ha_core::provider::{Provider, connector};
use ha_core::seam::System;
use ha_rig::{Hooked, Watch};
use ha_token::{Connector, Function, Rv};

/// A provider over watched members.
pub fn start(text: &str) -> (Provider, Vec<Arc<Watch>>) {
    start_with(text, |_| {})
}

/// As [`start`]; the members are prepared before anybody connects them.
pub fn start_with(text: &str, prepare: impl Fn(&[Arc<Watch>])) -> (Provider, Vec<Arc<Watch>>) {
    // What a test that fails saw is shown with it.
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_test_writer();
    _ = log.try_init();
    let config = Config::parse(text).unwrap();
    let members = &config.groups[0].members;
    let watches: Vec<Arc<Watch>> = members.iter().map(|_| Arc::default()).collect();
    prepare(&watches);
    let connectors = members.iter().zip(&watches).map(|(m, watch)| {
        Box::new(Hooked { real: connector(m), hook: Arc::clone(watch) }) as Box<dyn Connector>
    });
    let connectors = vec![connectors.collect()];
    (Provider::with_members(config, System::new(), connectors).unwrap(), watches)
}

/// Waits for something that must come; the test runner's own limit ends it otherwise.
pub fn wait(group: &Group, what: &str, f: impl Fn(&Group) -> bool) {
    while !f(group) {
        std::thread::yield_now();
    }
    eprintln!("seen: {what}");
}

/// Takes a member away, and brings it back on a new connection.
pub fn lose_and_find(group: &Group, member: usize, watch: &Watch) {
    lose(group, member, watch);
    watch.dead.store(false, Ordering::Release);
}

/// Takes a member away until it is found out.
pub fn lose(group: &Group, member: usize, watch: &Watch) {
    watch.dead.store(true, Ordering::Release);
    group.blame(group.members.get(member).unwrap(), Function::Sign, Rv::DEVICE_ERROR);
    wait(group, "it is down", |g| {
        !matches!(g.members.get(member).unwrap().state(), State::Up | State::Suspect)
    });
}
