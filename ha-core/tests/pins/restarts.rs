//! PINs that were refused, when the program starts again: a service that starts for ever with a wrong one locks nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ha_core::config::Config;
use ha_core::policy::health::State;
use ha_core::provider::{Provider, forget_refused_pins};
use ha_rig::{Act, PIN, Tokens, Watch};
use ha_token::*;

use crate::setting::{SOON, USER, WRONG, all_up, open, pin, renew, rotate, times};
use crate::watched::{start, start_with, wait};

/// What a token says of its user PIN's count.
const COUNT: Ulong = ck::CKF_USER_PIN_COUNT_LOW | ck::CKF_USER_PIN_FINAL_TRY;

/// The program starts, logs in with these PINs, logs out where it could, and ends. Answers what it was told, and how often
/// each PIN was sent to each member.
fn a_run<const N: usize>(text: &str, pins: [&[u8]; N], quiet: bool) -> [(Result<()>, [usize; 2]); N] {
    let (provider, members) = start_with(text, |members| hide(members, quiet));
    let (slot, s) = open(&provider);
    let told = pins.map(|given| {
        let answer = slot.login(s, USER, Some(given));
        if answer.is_ok() {
            slot.logout(s).unwrap();
        }
        (answer, [0, 1].map(|m: usize| times(&members[m], given)))
    });
    provider.shutdown(Duration::from_secs(10));
    told
}

/// Tokens of many makes say nothing of what they count.
fn hide(members: &[Arc<Watch>], quiet: bool) {
    let hidden = if quiet { COUNT as u64 } else { 0 };
    members.iter().for_each(|m| m.hidden_flags.store(hidden, Ordering::Release));
}

const REFUSED: Result<()> = Err(Rv::PIN_INCORRECT);

#[test]
fn a_service_that_starts_for_ever_with_a_wrong_pin_has_sent_it_once() {
    for quiet in [false, true] {
        let tokens = Tokens::new(2);
        let text = tokens.config(false, "");
        assert_eq!(a_run(&text, [WRONG], quiet), [(REFUSED, [1, 0])]);
        for _ in 0..2 {
            assert_eq!(a_run(&text, [WRONG, WRONG], quiet), [(REFUSED, [0, 0]); 2]);
        }
        assert_eq!(a_run(&text, [b"9998", WRONG], quiet), [(REFUSED, [1, 0]), (REFUSED, [0, 0])]);
        // A right one is not held up, and clears the count: what was refused before may be tried once more.
        let [right, wrong] = a_run(&text, [PIN.as_bytes(), WRONG], quiet);
        assert_eq!((right.0, wrong), (Ok(()), (REFUSED, [1, 0])));
    }
}

#[test]
fn a_refusal_that_a_drill_plays_is_remembered_by_its_process_alone() {
    let tokens = Tokens::new(2);
    let text = tokens.config(false, "");
    let (provider, members) = start(&text);
    let (slot, s) = open(&provider);
    assert!(provider.groups()[0].play_refusals(provider.groups()[0].members.get(0).unwrap().name(), true));
    for sent in [1, 0] {
        assert_eq!(slot.login(s, USER, Some(WRONG)), REFUSED);
        assert_eq!(times(&members[0], WRONG), sent);
    }
    provider.shutdown(Duration::from_secs(10));
    assert_eq!(a_run(&text, [WRONG], false), [(REFUSED, [1, 0])]);
    assert_eq!(a_run(&text, [WRONG], false), [(REFUSED, [0, 0])]);
}

#[test]
fn what_was_wrong_is_tried_again_when_the_token_counts_wrong_pins_no_more() {
    let tokens = Tokens::new(2);
    let text = tokens.config(false, "");
    assert_eq!(a_run(&text, [b"changed"], false), [(REFUSED, [1, 0])]);
    // The token is given the PIN that the program has: with other means.
    rotate(&tokens, 0, PIN.as_bytes(), b"changed");
    rotate(&tokens, 1, PIN.as_bytes(), b"changed");
    assert_eq!(a_run(&text, [b"changed"], false), [(Ok(()), [1, 1])]);
    // A process that was refused itself does not ask again for that.
    let (provider, members) = start(&text);
    let (slot, s) = open(&provider);
    assert_eq!(slot.login(s, USER, pin()), REFUSED);
    rotate(&tokens, 0, b"changed", PIN.as_bytes());
    rotate(&tokens, 1, b"changed", PIN.as_bytes());
    members.iter().for_each(|m| drop(m.sent()));
    assert_eq!(slot.login(s, USER, pin()), REFUSED);
    assert_eq!(times(&members[0], PIN.as_bytes()), 0);
    let group = &provider.groups()[0];
    group.members.iter().for_each(|m| assert!(group.recover(m.name())));
    all_up(&provider);
    slot.login(s, USER, pin()).unwrap();
    all_up(&provider);
    assert_eq!(times(&members[0], PIN.as_bytes()), 1);
}

#[test]
fn a_token_that_tells_nothing_is_sent_a_refused_pin_again_when_its_operator_says_so() {
    let tokens = Tokens::new(2);
    let text = tokens.config(false, "");
    assert_eq!(a_run(&text, [b"changed"], true), [(REFUSED, [1, 0])]);
    rotate(&tokens, 0, PIN.as_bytes(), b"changed");
    rotate(&tokens, 1, PIN.as_bytes(), b"changed");
    assert_eq!(a_run(&text, [b"changed"], true), [(REFUSED, [0, 0])]);
    let config = Config::parse(&text).unwrap();
    let group = &config.groups[0];
    forget_refused_pins(&config, group, &group.members[1].name).unwrap();
    assert_eq!(a_run(&text, [b"changed"], true), [(REFUSED, [0, 0])], "another member's operator said so");
    forget_refused_pins(&config, group, &group.members[0].name).unwrap();
    assert_eq!(a_run(&text, [b"changed"], true), [(Ok(()), [1, 1])]);
}

#[test]
fn a_member_that_has_another_pin_than_the_group_is_sent_the_groups_once_by_however_many_runs() {
    for quiet in [false, true] {
        let tokens = Tokens::new(2);
        let text = tokens.config(false, SOON);
        rotate(&tokens, 1, PIN.as_bytes(), b"changed");
        assert_eq!(
            a_run(&text, [PIN.as_bytes(), PIN.as_bytes()], quiet),
            [(Ok(()), [1, 1]), (Ok(()), [1, 0])]
        );
        let (provider, members) = start_with(&text, |members| hide(members, quiet));
        let (slot, s) = open(&provider);
        slot.login(s, USER, pin()).unwrap();
        let group = &provider.groups()[0];
        let is_aside = || group.members.get(1).unwrap().state() == State::Quarantined;
        assert!(is_aside());
        let looks = members[1].connects.load(Ordering::Acquire) + 5;
        wait(group, "it was looked at", |_| members[1].connects.load(Ordering::Acquire) >= looks);
        assert_eq!((is_aside(), times(&members[1], PIN.as_bytes())), (true, 0));
        renew(&tokens, 1, PIN.as_bytes());
        if quiet {
            assert!(group.recover(group.members.get(1).unwrap().name()));
        }
        // Its token has seen a right PIN since, and is sent this one.
        all_up(&provider);
        assert_eq!(times(&members[1], PIN.as_bytes()), 1);
    }
}

#[test]
fn a_pin_that_was_set_through_the_group_makes_everything_before_it_void() {
    let tokens = Tokens::new(2);
    let text = tokens.config(false, "");
    assert_eq!(a_run(&text, [b"changed"], true), [(REFUSED, [1, 0])]);
    let (provider, _) = start(&text);
    let (slot, s) = open(&provider);
    assert_eq!(slot.set_pin(s, Some(WRONG), Some(b"9998")), REFUSED);
    assert_eq!(slot.set_pin(s, Some(b"changed"), Some(b"9998")), REFUSED);
    slot.set_pin(s, pin(), Some(b"changed")).unwrap();
    provider.shutdown(Duration::from_secs(10));
    assert_eq!(a_run(&text, [b"changed"], true), [(Ok(()), [1, 1])]);
}

/// A process's connections are made anew, and with them its login, which is refused.
fn made_anew(provider: &Provider, watches: &[Arc<Watch>], slot: &dyn Token, s: SessionHandle) {
    let group = &provider.groups()[0];
    for (member, watch) in group.members.iter().zip(watches) {
        watch.dead.store(true, Ordering::Release);
        wait(group, "it is found dead", |_| {
            _ = slot.generate_random(s, &mut [0; 8]);
            member.state() == State::Down
        });
        watch.dead.store(false, Ordering::Release);
        wait(group, "it is put aside", |_| member.state() == State::Quarantined);
    }
}

#[test]
fn a_process_that_has_the_old_pin_does_not_speak_against_the_new_one() {
    let tokens = Tokens::new(2);
    let text = tokens.config(false, SOON);
    let quiet = |members: &[Arc<Watch>]| hide(members, true);
    let (old, its_members) = start_with(&text, quiet);
    let (slot, s) = open(&old);
    slot.login(s, USER, pin()).unwrap();
    let late = Box::new(start_with(&text, quiet));
    let (slot_of_late, lates) = open(&late.0);
    slot_of_late.login(lates, USER, pin()).unwrap();
    let (provider, _) = start_with(&text, quiet);
    let (other, theirs) = open(&provider);
    other.login(theirs, USER, pin()).unwrap();
    other.set_pin(theirs, pin(), Some(b"changed")).unwrap();
    made_anew(&old, &its_members, &*slot, s);
    // It speaks to who has the old one too: no token is sent it by each of them.
    let (_, of_late) = late.as_ref();
    of_late.iter().for_each(|m| drop(m.sent()));
    made_anew(&late.0, of_late, &**late.0.slot(0).unwrap(), lates);
    assert_eq!([0, 1].map(|m: usize| times(&of_late[m], PIN.as_bytes())), [0, 0]);
    assert_eq!(a_run(&text, [b"changed"], true), [(Ok(()), [1, 1])]);
}

#[test]
fn a_refusal_in_words_that_say_nothing_is_one_where_the_token_has_counted_it() {
    for vague in [Rv::GENERAL_ERROR, Rv::DEVICE_ERROR, Rv(0x8000_0001)] {
        let tokens = Tokens::new(2);
        let text = tokens.config(false, "");
        let (provider, members) = start(&text);
        let (slot, s) = open(&provider);
        members[0].next(Function::Login, Act::DoneAndAnswer(vague));
        assert_eq!(slot.login(s, USER, Some(WRONG)), REFUSED, "{vague}");
        assert_eq!(slot.login(s, USER, Some(WRONG)), REFUSED);
        assert_eq!([0, 1].map(|m: usize| times(&members[m], WRONG)), [1, 0]);
        provider.shutdown(Duration::from_secs(10));
        assert_eq!(a_run(&text, [WRONG], false), [(REFUSED, [0, 0])]);
        // A member whose PIN differs, and that says so in such words.
        rotate(&tokens, 1, PIN.as_bytes(), b"changed");
        let (provider, members) = start(&text);
        let (slot, s) = open(&provider);
        members[1].next(Function::Login, Act::DoneAndAnswer(vague));
        slot.login(s, USER, pin()).unwrap();
        wait(&provider.groups()[0], "it is put aside", |g| {
            g.members.get(1).unwrap().state() == State::Quarantined
        });
        assert_eq!(times(&members[1], PIN.as_bytes()), 1, "{vague}");
    }
}
