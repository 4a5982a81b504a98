//! Who serves: the ways to balance, and standby members, on real tokens.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use ha_core::config::Config;
use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_rig::{PIN, Tokens};
use ha_token::{Attribute, SessionHandle, Template, Token, UserType, ck};

struct Open {
    provider: Provider,
    slot: Arc<dyn Token>,
    session: SessionHandle,
}

fn open(config: &str) -> Open {
    let provider = Provider::from_config(Config::parse(config).unwrap()).unwrap();
    let slot = Arc::clone(provider.slot(0).unwrap());
    let session = slot.open_session(true).unwrap();
    slot.login(session, UserType::User, Some(PIN.as_bytes())).unwrap();
    Open { provider, slot, session }
}

impl Open {
    /// How many of `count` calls each member was asked to serve.
    fn served(&self, count: usize) -> Vec<u64> {
        let group = &self.provider.groups()[0];
        let before = group.served();
        for _ in 0..count {
            self.slot.generate_random(self.session, &mut [0; 8]).unwrap();
        }
        group.served().iter().zip(before).map(|(after, before)| after - before).collect()
    }

    fn state(&self, member: usize) -> State {
        self.provider.groups()[0].members.get(member).unwrap().state()
    }

    /// The test runner's own limit ends this if it never comes true.
    fn wait_for(&self, member: usize, up: bool) {
        while (self.state(member) == State::Up) != up {
            std::thread::yield_now();
        }
    }
}

fn all_to(member: usize, served: &[u64], count: u64) {
    assert!(served[member] >= count, "{served:?}");
    assert!(served.iter().enumerate().all(|(i, n)| i == member || *n == 0), "{served:?}");
}

#[test]
fn round_robin_goes_to_each_in_turn() {
    let tokens = Tokens::new(3);
    let group = open(&tokens.config(false, "balance = \"round-robin\""));
    assert_eq!(group.served(30), [10, 10, 10]);
}

#[test]
fn primary_is_the_first_that_is_up_and_again_when_it_is_back() {
    let tokens = Tokens::new(3);
    (0..3).for_each(|i| tokens.serve(i));
    let group = open(&tokens.config(true, "balance = \"primary\""));
    all_to(0, &group.served(20), 20);
    tokens.kill(0);
    // The first call finds out.
    group.served(1);
    group.wait_for(0, false);
    all_to(1, &group.served(20), 20);
    tokens.kill(1);
    group.served(1);
    group.wait_for(1, false);
    all_to(2, &group.served(20), 20);
    tokens.serve(0);
    group.wait_for(0, true);
    // It starts slowly.
    while !group.provider.groups()[0].serves_fully(group.provider.groups()[0].members.get(0).unwrap()) {
        std::thread::yield_now();
    }
    all_to(0, &group.served(20), 20);
    assert!(group.provider.shutdown(Duration::from_secs(60)).is_empty());
}

#[test]
fn a_standby_member_serves_while_no_active_one_is_up_and_stands_back() {
    let tokens = Tokens::new(3);
    (0..3).for_each(|i| tokens.serve(i));
    for balance in ["least-busy", "round-robin", "primary"] {
        // The standby comes first in the file: its place does not make it the primary one.
        let config = tokens
            .config(true, &format!("balance = {balance:?}"))
            .replace("name = \"a\"\n", "name = \"a\"\nrole = \"standby\"\n");
        let group = open(&config);
        let served = group.served(20);
        assert_eq!((served[0], served[1] + served[2]), (0, 20), "{balance}: {served:?}");

        tokens.kill(1);
        while group.state(1) == State::Up {
            group.served(1);
        }
        all_to(2, &group.served(20), 20);

        tokens.kill(2);
        group.served(1);
        group.wait_for(2, false);
        all_to(0, &group.served(20), 20);

        tokens.serve(1);
        group.wait_for(1, true);
        all_to(1, &group.served(20), 20);
        tokens.serve(2);
        group.wait_for(2, true);
        let served = group.served(20);
        assert_eq!(served[0], 0, "{balance}: {served:?}");
        assert!(group.provider.shutdown(Duration::from_secs(60)).is_empty());
    }
}

/// A standby member is asked for nothing while an active one is up: its keeper finds out that it died, not the call that
/// needs it.
#[test]
fn a_standby_member_that_dies_is_missed_before_it_is_needed() {
    let tokens = Tokens::new(2);
    (0..2).for_each(|i| tokens.serve(i));
    let config = tokens
        .config(true, "[group.recovery]\ninterval = \"5ms\"\nmax_interval = \"20ms\"")
        .replace("name = \"a\"\n", "name = \"a\"\nrole = \"standby\"\n");
    let group = open(&config);
    all_to(1, &group.served(20), 20);
    tokens.kill(0);
    group.wait_for(0, false);
    tokens.serve(0);
    group.wait_for(0, true);
    tokens.kill(1);
    // The first call finds out.
    assert_eq!(group.served(20)[0], 20);
    assert!(group.provider.shutdown(Duration::from_secs(60)).is_empty());
}

/// A session that owns session objects keeps a backing session open for them on one member, in which nothing runs.
#[test]
fn a_member_with_session_objects_is_not_taken_for_a_busy_one() {
    let tokens = Tokens::new(2);
    let group = open(&tokens.config(false, "balance = \"least-busy\""));
    let template: Template =
        vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA), Attribute::bool(ck::CKA_TOKEN, false)];
    group.slot.create_object(group.session, &template).unwrap();
    let served = group.served(1000);
    assert!(served.iter().all(|n| *n >= 400), "{served:?}");
}
