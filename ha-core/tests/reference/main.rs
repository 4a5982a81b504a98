//! The virtual slot over two SoftHSM tokens against one bare SoftHSM token: the same calls are made on both, and their
//! answers compared. Members that are well must not be told from one token.
//!
//! Compared are return codes, attributes, what searches find, lengths, and bytes where nothing random is in them. A
//! signature with a key whose value is the same on both is verified by the other side, too.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::indexing_slicing)]

mod accepted;
mod both;
mod calls;
mod sketch;

use std::cell::RefCell;

use both::Both;
use calls::{Call, Data, Extra, How, Id, Kind, Pin};
use ha_token::{Attribute, Ulong, UserType, ck};
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use sketch::Sketch;

thread_local! {
    /// Kept from one sequence of calls to the next: tokens take longer to make than to empty.
    static KEPT: RefCell<Option<Both>> = const { RefCell::new(None) };
}

struct Compared;

impl StateMachineTest for Compared {
    type SystemUnderTest = Both;
    type Reference = Sketch;

    fn init_test(_: &Sketch) -> Both {
        let kept = KEPT.take();
        let mut both = match kept.and_then(Both::emptied) {
            Some(both) => both,
            None => Both::new().emptied().expect("new tokens are empty"),
        };
        both.start();
        both
    }

    fn apply(mut both: Both, _: &Sketch, call: Call) -> Both {
        if let Err(reason) = both.make(&call) {
            KEPT.set(Some(both));
            panic!("{reason}");
        }
        both
    }

    fn teardown(both: Both, _: Sketch) {
        KEPT.set(Some(both));
    }
}

/// With `PROPTEST_CASES` as many other sequences as that.
fn runner() -> TestRunner {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    let config = Config { failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    match cases {
        Some(cases) => TestRunner::new(Config { cases, ..config }),
        None => {
            let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
            TestRunner::new_with_rng(Config { cases: 64, ..config }, rng)
        }
    }
}

#[test]
fn a_group_answers_as_one_token() {
    let mut runner = runner();
    let config = runner.config().clone();
    let sequences = Sketch::sequential_strategy(1..60);
    let done = runner.run(&sequences, |(sketch, calls, seen)| {
        Compared::test_sequential(config.clone(), sketch, calls, seen);
        Ok(())
    });
    match done {
        Ok(()) => {}
        Err(TestError::Fail(reason, (_, calls, _))) => {
            let calls: String = calls.iter().map(|c| format!("    {c:?},\n")).collect();
            panic!("{reason}\n{calls}");
        }
        Err(error) => panic!("{error}"),
    }
}

/// The calls of a sequence that showed a fault, made shorter.
fn same(calls: &[Call]) {
    let mut both = Both::new().emptied().expect("new tokens are empty");
    both.start();
    for call in calls {
        if let Err(why) = both.make(call) {
            panic!("{why}");
        }
    }
}

fn extra(kind: Ulong, value: &[u8]) -> Extra {
    Extra(vec![Attribute::bytes(kind, value)])
}

/// `CKR_USER_NOT_LOGGED_IN` to the security officer was taken for a member's fault.
#[test]
fn what_is_the_users_is_refused_to_the_security_officer() {
    let create = |kind| Call::Create { id: 1, s: Sketch::FIRST, kind, extra: Extra::default() };
    same(&[
        Call::Logout(Sketch::FIRST),
        Call::Login { s: Sketch::FIRST, user: UserType::So, pin: Pin::So },
        create(Kind::Data),
        create(Kind::Aes(32)),
        Call::Info(Sketch::FIRST),
    ]);
}

/// A wrong key was told before a wrong session.
#[test]
fn a_wrong_session_is_told_before_a_wrong_key() {
    let (s, nothing) = (Id::MAX, Extra::default());
    same(&[
        Call::Derive { id: 1, s, base: Id::MAX, extra: nothing.clone() },
        Call::Unwrap { id: 2, s, by: Id::MAX, pad: true, kind: Kind::Aes(32), extra: nothing },
        Call::DigestKey { s, key: Id::MAX },
        Call::DigestKey { s: Sketch::FIRST, key: Id::MAX },
    ]);
}

/// `CKA_SENSITIVE` of two bytes was made one of one byte.
#[test]
fn what_the_group_says_for_itself_is_looked_at_first() {
    let (s, kind) = (Sketch::FIRST, Kind::Aes(32));
    for what in [ck::CKA_SENSITIVE, ck::CKA_EXTRACTABLE] {
        let mut on_token = extra(ck::CKA_TOKEN, &[1]);
        on_token.0.extend(extra(what, &[1, 0]).0);
        same(&[
            Call::Create { id: 1, s, kind, extra: extra(what, &[1, 0]) },
            Call::Create { id: 2, s, kind, extra: on_token.clone() },
            Call::Generate { id: 3, s, kind, extra: on_token },
        ]);
    }
}

/// A key that wants a login for each use, used without one, had its members blamed.
#[test]
fn the_use_of_a_key_that_wants_a_login_is_refused_without_one() {
    let (s, kind) = (Sketch::FIRST, Kind::RsaPrivate);
    let mut strict = extra(ck::CKA_ALWAYS_AUTHENTICATE, &[1]);
    for on_token in [false, true] {
        strict.0.push(Attribute::bool(ck::CKA_TOKEN, on_token));
        let (key, how, data) = (1, How::RsaSha256, Data(32));
        same(&[
            Call::Create { id: key, s, kind, extra: strict.clone() },
            Call::Sign { s, how, key, data, parts: false },
            Call::Sign { s, how, key, data, parts: true },
            Call::Info(s),
        ]);
        strict.0.pop();
    }
}

/// A session key that was asked to be no secret, and says that it may not be extracted, showed its value.
#[test]
fn what_may_not_be_extracted_cannot_be_read() {
    let s = Sketch::FIRST;
    for kind in [Kind::Aes(32), Kind::Generic(32)] {
        same(&[
            Call::Generate { id: 1, s, kind, extra: extra(ck::CKA_SENSITIVE, &[0]) },
            Call::Get { s, o: 1 },
        ]);
    }
    same(&[
        Call::Pair {
            public: 1,
            private: 2,
            s,
            kind: Kind::EcPrivate,
            extras: [Extra::default(), extra(ck::CKA_SENSITIVE, &[0])],
        },
        Call::Get { s, o: 2 },
    ]);
}

/// A copy that was not to be modified was refused.
#[test]
fn a_copy_may_be_one_that_is_not_to_be_modified() {
    let s = Sketch::FIRST;
    let fixed = extra(ck::CKA_MODIFIABLE, &[0]);
    same(&[
        Call::Create { id: 1, s, kind: Kind::Aes(32), extra: extra(ck::CKA_TOKEN, &[1]) },
        Call::Copy { id: 2, s, of: 1, extra: fixed },
        Call::Get { s, o: 2 },
        Call::Set { s, o: 2, extra: extra(ck::CKA_ID, &[7]) },
    ]);
}

/// A session key was found as one that may be extracted, which it says that it may not.
#[test]
fn a_session_key_is_found_by_what_it_says() {
    let s = Sketch::FIRST;
    let by = |kind, on: bool| Call::Find { s, by: extra(kind, &[on.into()]) };
    same(&[
        Call::Generate { id: 1, s, kind: Kind::Aes(32), extra: Extra::default() },
        Call::Get { s, o: 1 },
        by(ck::CKA_EXTRACTABLE, true),
        by(ck::CKA_EXTRACTABLE, false),
        by(ck::CKA_NEVER_EXTRACTABLE, true),
    ]);
}

/// A pair whose session half may not be changed or destroyed was refused, and the latter left its halves on the token.
#[test]
fn the_session_half_of_a_pair_may_be_what_it_is_asked_to_be() {
    let (s, kind) = (Sketch::FIRST, Kind::EcPrivate);
    let on_token = extra(ck::CKA_TOKEN, &[1]);
    for what in [ck::CKA_MODIFIABLE, ck::CKA_DESTROYABLE, ck::CKA_COPYABLE] {
        let half = extra(what, &[0]);
        for extras in [[half.clone(), on_token.clone()], [on_token.clone(), half]] {
            same(&[
                Call::Pair { public: 1, private: 2, s, kind, extras },
                Call::Get { s, o: 1 },
                Call::Get { s, o: 2 },
                Call::Find { s, by: Extra::default() },
                Call::Find { s, by: on_token.clone() },
            ]);
        }
    }
}
