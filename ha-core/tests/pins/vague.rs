//! Members that answer a login in words that do not say whether the PIN was counted as a wrong one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_core::policy::doubt::{ON_THE_FIRST, PER_LOGIN};
use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_rig::{Tokens, Watch};
use ha_token::*;

use crate::setting::{NO_THREADS, SOON, USER, all_up, open, pin};
use crate::watched::{lose_and_find, start, wait};

const VAGUE: [Rv; 6] = [
    Rv::FUNCTION_FAILED,
    Rv::GENERAL_ERROR,
    Rv::DEVICE_ERROR,
    Rv(0x8000_0001),
    Rv::HOST_MEMORY,
    Rv::ARGUMENTS_BAD,
];

/// How often a PIN was sent for a login since the last look.
fn logins(watch: &Watch) -> usize {
    watch.sent().iter().filter(|s| s.0 == Function::Login).count()
}

/// An application at work until it is so.
fn work_until(provider: &Provider, slot: &Arc<dyn Token>, what: &str, f: impl Fn() -> bool) {
    wait(&provider.groups()[0], what, |_| {
        let s = slot.open_session(true).unwrap();
        slot.generate_random(s, &mut [0; 8]).unwrap();
        slot.close_session(s).unwrap();
        f()
    });
}

fn looked_at_again(watch: &Watch) -> impl Fn() -> bool {
    let looks = watch.connects.load(Ordering::Acquire) + 5;
    move || watch.connects.load(Ordering::Acquire) >= looks
}

#[test]
fn a_member_that_never_says_what_it_thinks_of_the_pin_is_sent_it_a_few_times() {
    for rv in VAGUE {
        let tokens = Tokens::new(2);
        let (provider, members) = start(&tokens.config(false, SOON));
        let (slot, s) = open(&provider);
        let member = &provider.groups()[0].members.get(1).unwrap();
        members[1].refuse(Function::Login, 1000, rv);
        slot.login(s, USER, pin()).unwrap();
        let is_aside = || {
            let reason = member.connect_error().unwrap_or_default();
            member.state() == State::Quarantined && reason.contains("do not say")
        };
        work_until(&provider, &slot, "it is put aside", is_aside);
        work_until(&provider, &slot, "it was looked at again", looked_at_again(&members[1]));
        assert!(is_aside());
        assert_eq!(logins(&members[1]), PER_LOGIN as usize, "{rv}");
        // Each login of the application's is worth one more.
        for _ in 0..2 {
            slot.logout(s).unwrap();
            slot.login(s, USER, pin()).unwrap();
            work_until(&provider, &slot, "it is put aside again", is_aside);
            work_until(&provider, &slot, "it was looked at again", looked_at_again(&members[1]));
            assert_eq!(logins(&members[1]), 1, "{rv}");
        }
        members[1].clear();
        slot.logout(s).unwrap();
        slot.login(s, USER, pin()).unwrap();
        all_up(&provider);
    }
}

#[test]
fn a_moment_in_which_a_member_answers_vaguely_is_ridden_out_on_its_connection() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, SOON));
    let (slot, s) = open(&provider);
    for _ in 0..3 {
        let connects = members[1].connects.load(Ordering::Acquire);
        members[1].refuse(Function::Login, 1, Rv::GENERAL_ERROR);
        slot.login(s, USER, pin()).unwrap();
        all_up(&provider);
        assert_eq!(members[1].connects.load(Ordering::Acquire), connects);
        slot.logout(s).unwrap();
    }
}

#[test]
fn a_member_that_answers_vaguely_for_longer_comes_back_by_itself() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, SOON));
    let (slot, s) = open(&provider);
    for rv in [Rv::GENERAL_ERROR, Rv::DEVICE_ERROR] {
        members[1].refuse(Function::Login, PER_LOGIN as usize - 1, rv);
        slot.login(s, USER, pin()).unwrap();
        work_until(&provider, &slot, "it is back", || {
            members[1].waiting() == 0 && provider.groups()[0].up().count() == 2
        });
        slot.logout(s).unwrap();
    }
}

#[test]
fn a_member_whose_connection_is_dead_comes_back_however_often_it_dies() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, SOON));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    for _ in 0..=PER_LOGIN {
        lose_and_find(&provider.groups()[0], 1, &members[1]);
        all_up(&provider);
    }
    // Nothing was there that could have looked at the PIN.
    for _ in 0..=PER_LOGIN {
        members[1].refuse(Function::Login, 1, Rv::DEVICE_REMOVED);
        lose_and_find(&provider.groups()[0], 1, &members[1]);
        wait(&provider.groups()[0], "it was asked", |_| members[1].waiting() == 0);
        all_up(&provider);
    }
}

#[test]
fn without_threads_a_connection_that_was_answered_vaguely_is_not_asked_without_end() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, NO_THREADS));
    let (slot, s) = open(&provider);
    members[1].refuse(Function::Login, 1000, Rv::FUNCTION_FAILED);
    slot.login(s, USER, pin()).unwrap();
    drop(members[1].calls());
    let mut looks = 0;
    work_until(&provider, &slot, "it was looked at again", || true);
    while looks < 5 {
        work_until(&provider, &slot, "one more call", || true);
        looks += members[1].calls().iter().filter(|f| **f == Function::GetTokenInfo).count();
    }
    assert_eq!(logins(&members[1]), ON_THE_FIRST as usize);
    members[1].clear();
    slot.logout(s).unwrap();
    slot.login(s, USER, pin()).unwrap();
    work_until(&provider, &slot, "it is back", || provider.groups()[0].up().count() == 2);
}

#[test]
fn the_application_may_try_again_when_every_member_answered_vaguely() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, SOON));
    let (slot, s) = open(&provider);
    for _ in 0..2 * PER_LOGIN {
        members.iter().for_each(|m| m.refuse(Function::Login, 1, Rv::FUNCTION_FAILED));
        assert_eq!(slot.login(s, USER, pin()), Err(Rv::DEVICE_ERROR));
        assert_eq!([0, 1].map(|m| logins(&members[m])), [1, 1]);
        all_up(&provider);
    }
    slot.login(s, USER, pin()).unwrap();
    all_up(&provider);
}
