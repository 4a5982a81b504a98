//! A group of two members, one of them faulty: the application sees no error, and every signature verifies.
//!
//! Here and not with `ha-core`'s own tests, as cargo builds a package's shared library for that package's tests only.
#![allow(missing_docs, clippy::unwrap_used)]

mod pair;
mod pins;

use std::time::Duration;

use ha_core::board::{Process, What};
use ha_core::policy::health::State;
use ha_rig::{PIN, Server, p11_kit_client};
use pair::{Pair, SOON};

/// What a member does wrong in any of its calls, and is found out by its answer.
#[test]
fn errors_are_answered_by_the_other_member() {
    for rule in [
        "@crypto error CKR_DEVICE_ERROR",
        "C_Sign error CKR_DEVICE_ERROR probability=0.3",
        "C_SignInit,C_Sign error CKR_GENERAL_ERROR",
        "@sign error CKR_FUNCTION_FAILED done",
        "* error CKR_DEVICE_REMOVED",
        "C_SignInit error CKR_DEVICE_MEMORY probability=0.5",
        "* token-gone",
    ] {
        let pair = Pair::new("balance = \"primary\"");
        pair.sign(5);
        assert!(pair.told("count").contains("C_Sign "), "the faulty one serves");
        pair.tell(&format!("add {rule}"));
        pair.sign(40);
        assert!(!pair.told("list").contains("hit 0"), "{rule}: {}", pair.told("list"));
        pair.tell("clear");
        pair.await_up();
        pair.served_by_the_faulty_one();
    }
}

#[test]
fn what_is_lost_is_found_again() {
    for rule in [
        "C_SignInit lose-handles probability=0.5",
        "C_Sign lose-handles probability=0.5",
        "C_SignInit lose-sessions probability=0.5",
        "C_Sign lose-sessions probability=0.5",
        "C_SignInit lose-login probability=0.5",
        "C_SignInit lose-login count=1",
    ] {
        let pair = Pair::new("balance = \"primary\"");
        pair.sign(5);
        pair.tell(&format!("add {rule}"));
        pair.tell("add C_OpenSession,C_Login error CKR_SESSION_COUNT probability=0.2");
        pair.sign(60);
        assert!(!pair.told("list").split("; ").next().unwrap().contains("hit 0"), "{}", pair.told("list"));
        pair.tell("clear");
        pair.await_up();
        pair.served_by_the_faulty_one();
    }
}

/// A token counts the wrong PINs that it is sent, and locks itself after some. Its operator wants it back in each process that
/// had its PIN refused.
#[test]
fn a_refused_pin_is_sent_again_by_one_process_of_several() {
    let pair = Pair::new("");
    let others = [0; 4].map(|_| pair.again("", &pair.direct()));
    let groups = || others.iter().map(|p| p.group()).chain([pair.group()]);
    let all = |state| groups().all(|g| g.members.get(0).unwrap().state() == state);
    let wait = |what: &dyn Fn() -> bool| {
        while !what() {
            std::thread::yield_now();
        }
    };
    // Counts logins.
    pair.tell("add C_Login delay 1ms");
    let logins = || {
        let said = pair.told("list");
        let seen = said.split_once("(seen ").and_then(|(_, rest)| rest.split_once(','));
        seen.unwrap_or_else(|| panic!("{said}")).0.parse::<usize>().unwrap()
    };
    pair.change_pin(PIN, "98765");
    pair.tell("add * token-gone");
    // A suspect one would go on with its connection.
    wait(&|| all(State::Down));
    pair.tell("clear 2");
    wait(&|| {
        all(State::Quarantined)
            && groups().all(|g| {
                g.members.get(0).unwrap().connect_error().is_some_and(|e| e.contains("CKR_PIN_INCORRECT"))
            })
    });
    let refused = logins();

    let recover = || {
        let number = pair.wish(What::Recover);
        wait(&|| {
            let processes = pair.group().processes();
            let has_done = |p: &Process| {
                let seen = &p.members[0];
                seen.heeded == number && seen.sight.trying.is_none() && seen.sight.state != State::Syncing
            };
            processes.len() == 5 && processes.iter().all(has_done)
        });
    };
    for n in 1..=3 {
        recover();
        assert!(all(State::Quarantined));
        assert_eq!(logins(), refused + n, "by one of them, and the others keep theirs");
    }
    pair.change_pin("98765", PIN);
    recover();
    wait(&|| all(State::Up));
}

/// A group that waits for half a second and looks again at once. The key was made without such haste.
fn hasty() -> Pair {
    let made = Pair::new("");
    assert!(made.open.provider.shutdown(Duration::from_secs(60)).is_empty());
    made.again(&format!("balance = \"primary\"\ndeadline = \"500ms\"\n{SOON}"), &made.direct())
}

#[test]
fn a_member_that_hangs_is_waited_for_once_and_taken_back_when_it_is_released() {
    let pair = hasty();
    pair.sign(5);
    for rule in ["C_Sign hang", "C_SignInit hang count=3", "* hang"] {
        pair.tell(&format!("add {rule}"));
        pair.sign(20);
        assert!(!pair.told("list").contains("hit 0"), "{rule}: {}", pair.told("list"));
        pair.tell("clear");
        pair.tell("release");
        pair.await_up();
        pair.served_by_the_faulty_one();
    }
}

#[test]
fn a_member_that_is_slow_is_used_until_it_is_slower_than_the_deadline() {
    let pair = hasty();
    // The first use of a key is preceded by its proof.
    pair.sign(1);
    pair.tell("add C_Sign delay 20ms");
    pair.sign(5);
    assert!(pair.told("list").contains("hit 5"), "{}", pair.told("list"));
    pair.tell("clear");
    pair.tell("add C_Sign delay 2s");
    pair.sign(20);
    pair.tell("clear");
    pair.await_up();
    pair.served_by_the_faulty_one();
}

/// Nothing can be written on one member, as with a full disk, or what is written is not acknowledged: keys are made on the
/// other, and both are brought to the same when it is over.
#[test]
fn keys_are_made_while_a_member_fails_at_writing() {
    for rule in [
        "@write error CKR_FUNCTION_FAILED",
        "@write error CKR_DEVICE_MEMORY probability=0.5",
        "C_UnwrapKey error CKR_DEVICE_ERROR done",
        "C_UnwrapKey,C_CreateObject error CKR_DEVICE_ERROR done count=1",
        "C_GenerateKeyPair error CKR_GENERAL_ERROR done",
    ] {
        let pair = Pair::new("balance = \"primary\"\nmin_copies = 1");
        pair.sign(2);
        pair.tell(&format!("add {rule}"));
        for id in [2, 3] {
            pair.open.make_key(&[id]).unwrap_or_else(|rv| panic!("{rule}: {rv}"));
        }
        assert!(!pair.told("list").contains("hit 0"), "{rule}: {}", pair.told("list"));
        pair.tell("clear");
        pair.await_up();
        while !pair.all_the_same() {
            pair.sign(1);
        }
        assert_eq!(pair.objects(), 6, "{rule}");
    }
}

/// Both members in one process, each behind a faulty token of its own: now one fails and now the other.
#[test]
fn both_members_are_faulty_in_turn() {
    let (pair, other) = Pair::both("balance = \"round-robin\"");
    for _ in 0..3 {
        pair.tell("add @sign error CKR_DEVICE_ERROR");
        pair.sign(20);
        assert!(!pair.told("list").contains("hit 0"));
        assert_eq!(pair::told(&other, "list"), "ok", "the rules of one are not the other's");
        pair.tell("clear");
        pair.await_up();
        assert!(pair::told(&other, "add @sign error CKR_DEVICE_ERROR").starts_with("ok"));
        pair.sign(20);
        assert!(!pair::told(&other, "list").contains("hit 0"));
        assert!(pair::told(&other, "clear").starts_with("ok"));
        pair.await_up();
    }
}

/// The token behind the slot is another one: no signature is made with its keys.
#[test]
fn another_token_in_its_place_is_not_used() {
    for fault in ["swap-token", "swap-store"] {
        let pair = Pair::new("balance = \"primary\"");
        pair.sign(5);
        pair.tell(&format!("add C_Sign {fault} member-a stranger"));
        pair.sign(40);
        pair.tell("clear");
        pair.await_up();
        pair.sign(20);
    }
}

/// A process that serves a member dies in the middle of a signature, again and again.
#[test]
fn a_member_dies_in_the_middle_of_a_call() {
    // Keys are made directly: p11-kit 0.24 carries no key-wrapping mechanism.
    let pair = Pair::new("");
    pair.sign(2);
    assert!(pair.open.provider.shutdown(Duration::from_secs(60)).is_empty());
    let pipe = pair.tokens.path().join("a.pipe");
    let conf = pair.tokens.conf(0);
    let env = [("FAULTY_TOKEN_CONF", pair.conf.as_path()), ("SOFTHSM2_CONF", conf.as_path())];
    let server = Server::of(&pair::library(), &env, "member-a", &pipe).unwrap();
    let member = format!(
        "module = {:?}\ntoken = \"member-a\"\nenv = {{ P11_KIT_SERVER_ADDRESS = {:?} }}",
        p11_kit_client(),
        server.address()
    );
    let served = pair.again(&format!("balance = \"primary\"\n{SOON}"), &member);
    served.sign(5);
    assert!(served.told("count").contains("C_Sign "), "the faulty one serves");
    for rule in ["C_Sign die count=3", "C_SignInit die done count=3", "C_Sign die probability=0.3 count=5"] {
        served.tell(&format!("add {rule}"));
        while !served.told("list").contains(&format!("hit {}", rule.chars().last().unwrap())) {
            served.sign(5);
        }
        served.tell("clear");
        served.await_up();
        served.served_by_the_faulty_one();
    }
}
