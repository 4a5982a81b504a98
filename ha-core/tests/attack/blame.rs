//! A fault is put down to the member that failed, and to no other one that had to do with it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ha_core::config::Config;
use ha_core::group::Word;
use ha_core::policy::health::State;
use ha_core::replica::ledger::Ledger;
use ha_rig::{Act, Tokens};
use ha_token::{Function, Rv, ck};

use crate::setting::{count, data, failing, yes};
use crate::watched::lose;

#[test]
fn a_value_is_had_from_the_next_holder_when_the_first_one_dies_and_its_fault_is_its_own() {
    let tokens = Tokens::new(3);
    let (open, watches) = failing(&tokens, "balance = \"primary\"");
    let group = &open.provider.groups()[0];
    lose(group, 2, &watches[2]);
    let mut private = data(b"private", b"value");
    private.push(yes(ck::CKA_PRIVATE));
    open.slot.create_object(open.s, &private).unwrap();
    let before = group.members.get(2).unwrap().last_fault();
    let first = Arc::clone(&watches[0]);
    watches[2].next(Function::Login, Act::Then(Box::new(move || first.dead.store(true, Ordering::Release))));
    watches[2].dead.store(false, Ordering::Release);
    open.wait("c is back", |g| g.members.get(2).unwrap().state() == State::Up);
    assert_eq!(group.members.get(2).unwrap().last_fault(), before);
    assert!(group.members.get(0).unwrap().last_fault().is_some());
    open.wait("a is found out", |g| g.members.get(0).unwrap().state() == State::Down);
    let checked = group.check(true).unwrap();
    let words: Vec<_> = checked.iter().flat_map(|c| &c.members).map(|(m, w)| (&**m, *w)).collect();
    assert_eq!(words, [("b", Word::Same), ("c", Word::Same)]);
}

#[test]
fn who_cannot_give_the_group_keys_is_blamed_and_not_who_was_to_have_them() {
    let tokens = Tokens::new(2);
    let (open, watches) = failing(&tokens, "balance = \"primary\"");
    // Two by which it is known what they are, and the first that is to carry one.
    for _ in 0..2 {
        watches[0].next(Function::WrapKey, Act::First(Box::new(|| ())));
    }
    watches[0].next(Function::WrapKey, Act::Answer(Rv::DEVICE_ERROR));
    // It is back in a moment, which may be soon enough.
    assert!(matches!(open.ec_pair(1), Ok(_) | Err(Rv::DEVICE_ERROR)));
    assert_eq!(watches[0].waiting(), 0);
    let members = &open.provider.groups()[0].members;
    let faults = [0, 1].map(|m| members.get(m).unwrap().last_fault().map(|f| (f.function, f.rv)));
    assert_eq!(faults, [Some((Function::WrapKey, Rv::DEVICE_ERROR)), None]);
}

#[test]
fn the_group_keys_are_had_from_the_next_member_when_the_first_one_cannot_give_them() {
    let tokens = Tokens::new(3);
    let (open, watches) = failing(&tokens, "balance = \"primary\"");
    let group = &open.provider.groups()[0];
    lose(group, 2, &watches[2]);
    open.ec_pair(1).unwrap();
    watches[0].refuse(Function::WrapKey, 1, Rv::DEVICE_ERROR);
    watches[2].dead.store(false, Ordering::Release);
    open.wait("all up", |g| g.members.iter().all(|m| m.state() == State::Up));
    assert_eq!(watches[0].waiting(), 0);
    assert_eq!(open.words(true), [Word::Same; 2]);
}

#[test]
fn a_check_goes_on_without_the_member_that_fails_meanwhile() {
    let tokens = Tokens::new(2);
    let (open, watches) = failing(&tokens, "balance = \"primary\"");
    open.ec_pair(1).unwrap();
    let group = &open.provider.groups()[0];
    for function in [Function::FindObjects, Function::SignInit] {
        open.wait("all up", |g| g.members.iter().all(|m| m.state() == State::Up));
        watches[1].next(function, Act::Answer(Rv::DEVICE_ERROR));
        let checked = group.check(true).unwrap();
        assert_eq!((checked.len(), watches[1].waiting()), (2, 0), "{function}");
        assert!(checked.iter().all(|c| c.worst() == Word::Same), "{function}: {checked:?}");
        assert!(checked.iter().any(|c| c.members.len() == 1), "{function}: {checked:?}");
        assert_eq!(group.members.get(1).unwrap().last_fault().map(|f| f.rv), Some(Rv::DEVICE_ERROR));
    }
}

#[test]
fn what_was_adopted_and_not_committed_is_taken_back() {
    let tokens = Tokens::new(2);
    let value = tokens.path().join("value");
    std::fs::write(&value, b"content").unwrap();
    let write =
        ["--write-object", value.to_str().unwrap(), "--type", "data", "--label", "plant", "--private"];
    tokens.bare(0, &write);
    let (open, watches) = failing(&tokens, "");
    // The group keys are there already.
    open.ec_pair(1).unwrap();
    let config = Config::parse(&tokens.config(false, "")).unwrap();
    // Another process takes the announcement for one that was left behind.
    let abandon = move || {
        let ledger = Ledger::open(&config.state_dir, "ha1", Duration::from_secs(5), &mut |_| ()).unwrap();
        let staged = ledger.objects().unwrap().into_iter().find(|r| !r.is_committed()).unwrap();
        ledger.abandon(staged.id, &[]).unwrap();
    };
    watches[1].next(Function::CreateObject, Act::Then(Box::new(abandon)));
    let adopted = open.provider.groups()[0].adopt("a", false).unwrap();
    assert_eq!(watches[1].waiting(), 0);
    assert!(adopted.iter().all(|a| a.why_not.is_some()), "{adopted:?}");
    assert_eq!(count(&tokens, "plant"), [1, 0]);
}
