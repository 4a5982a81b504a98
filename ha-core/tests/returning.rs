//! A member that was away: what was destroyed, renamed and made meanwhile, and nothing else (guarantees G1 and G2).
#![allow(missing_docs, clippy::unwrap_used)]

mod open_group;
mod watched;

use std::sync::atomic::{AtomicBool, Ordering};

use ha_core::config::Config;
use ha_core::group::Word;
use ha_core::policy::health::State;
use ha_core::provider::connector;
use ha_rig::{PIN, Tokens};
use ha_token::{Attribute, Connector, Function, ObjectHandle, Rv, Template, UserType, ck};
use open_group::{Open, private};

fn data(label: &[u8], value: &[u8]) -> Template {
    vec![
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bytes(ck::CKA_LABEL, label),
        Attribute::bytes(ck::CKA_VALUE, value),
    ]
}

fn named(label: &[u8]) -> Template {
    vec![Attribute::bytes(ck::CKA_LABEL, label)]
}

fn destroy(open: &Open, label: &[u8]) {
    for object in open.find(&named(label)) {
        open.slot.destroy_object(open.s, object).unwrap();
    }
}

fn member_is(open: &Open, member: usize, state: State) {
    open.wait(&format!("member {member} is {state}"), |g| g.members.get(member).unwrap().state() == state);
}

/// Takes member b's token away, while nobody has it open.
fn without_b(tokens: &Tokens, f: impl FnOnce(&Open)) {
    tokens.hide(1);
    let open = Open::new(tokens, "min_copies = 1");
    f(&open);
    drop(open);
    tokens.restore(1);
}

/// How many objects of a bare token pkcs11-tool lists under this label.
fn count(tokens: &Tokens, member: usize, label: &str) -> usize {
    let list = tokens.bare(member, &["--list-objects"]);
    let labels = list.lines().filter_map(|l| l.trim().strip_prefix("label:"));
    labels.filter(|l| l.trim().trim_matches('\'') == label).count()
}

#[test]
fn of_objects_with_one_content_only_the_destroyed_one_goes() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    for label in [b"first", b"other"] {
        open.slot.create_object(open.s, &data(label, b"the same")).unwrap();
    }
    drop(open);
    without_b(&tokens, |open| destroy(open, b"first"));
    // Back, and seen by a process that has not looked at the objects yet: the first one's tombstone is applied.
    drop(Open::new(&tokens, ""));
    // Once more, as if the process had ended before it could say that it was: there is no first one any more.
    without_b(&tokens, |open| {
        open.slot.create_object(open.s, &data(b"first", b"the same")).unwrap();
        destroy(open, b"first");
    });
    let open = Open::new(&tokens, "");
    for member in [0, 1] {
        assert_eq!((count(&tokens, member, "first"), count(&tokens, member, "other")), (0, 1), "{member}");
    }
    assert_eq!(open.words(true), [Word::Same]);
}

#[test]
fn of_twins_one_goes() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    for _ in 0..2 {
        open.slot.create_object(open.s, &data(b"twin", b"the same")).unwrap();
    }
    assert_eq!(open.find(&named(b"twin")).len(), 2);
    drop(open);
    without_b(&tokens, |open| {
        let twin = open.find(&named(b"twin"))[0];
        open.slot.destroy_object(open.s, twin).unwrap();
    });
    for _ in 0..2 {
        let open = Open::new(&tokens, "");
        assert_eq!(open.find(&named(b"twin")).len(), 1);
        assert_eq!((count(&tokens, 0, "twin"), count(&tokens, 1, "twin")), (1, 1));
    }
}

#[test]
fn what_was_renamed_and_then_destroyed_is_found_under_its_old_name() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    open.ec_pair(1).unwrap();
    open.ec_pair(2).unwrap();
    drop(open);
    without_b(&tokens, |open| {
        for object in open.find(&vec![Attribute::bytes(ck::CKA_ID, [1])]) {
            open.slot.set_attributes(open.s, object, &named(b"renamed")).unwrap();
        }
        destroy(open, b"renamed");
        assert!(open.find(&private(1)).is_empty());
    });
    let open = Open::new(&tokens, "");
    assert!(open.find(&private(1)).is_empty());
    assert_eq!(open.words(true), [Word::Same; 2]);
    for member in [0, 1] {
        let list = tokens.bare(member, &["--list-objects"]);
        assert_eq!(list.matches("ID:         01\n").count(), 0, "{list}");
        assert_eq!(list.matches("ID:         02\n").count(), 2, "{list}");
    }
}

#[test]
fn what_another_process_renamed_is_destroyed_on_every_member() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "balance = \"primary\"");
    open.ec_pair(1).unwrap();
    drop(open);
    // Seen on the first member only: on the other one nothing is known of it yet.
    let one = Open::new(&tokens, "balance = \"primary\"");
    let keys: Vec<ObjectHandle> = one.find(&vec![Attribute::bytes(ck::CKA_ID, [1])]);
    assert_eq!(keys.len(), 2);
    let two = Open::new(&tokens, "");
    for object in two.find(&vec![Attribute::bytes(ck::CKA_ID, [1])]) {
        two.slot.set_attributes(two.s, object, &named(b"renamed")).unwrap();
    }
    drop(two);
    for key in keys {
        one.slot.destroy_object(one.s, key).unwrap();
    }
    for member in [0, 1] {
        assert_eq!(count(&tokens, member, "renamed"), 0);
    }
}

#[test]
fn a_key_is_given_once_however_many_threads_use_the_member_that_returns() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "min_copies = 1");
    open.ec_pair(1).unwrap();
    tokens.hide(1);
    // Found out by whoever uses it next.
    while open.provider.groups()[0].members.get(1).unwrap().state() == State::Up {
        let key = open.find(&private(1))[0];
        open.sign(key).unwrap();
    }
    open.ec_pair(2).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let s = open.slot.open_session(false).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    open.slot.generate_random(s, &mut [0; 8]).unwrap();
                }
            });
        }
        tokens.restore(1);
        member_is(&open, 1, State::Up);
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(open.words(true), [Word::Same; 4]);
    for member in [0, 1] {
        assert_eq!(count(&tokens, member, "key"), 4);
    }
}

#[test]
fn what_may_not_be_destroyed_stays_whole() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let mut template = data(b"stays", b"value");
    template.push(Attribute::bool(ck::CKA_DESTROYABLE, false));
    let object = open.slot.create_object(open.s, &template).unwrap();
    assert_eq!(open.slot.destroy_object(open.s, object), Err(Rv::ACTION_PROHIBITED));
    assert_eq!(open.find(&named(b"stays")), [object]);
    assert_eq!(open.words(true), [Word::Same]);
}

#[test]
fn no_second_set_of_group_keys_is_made_while_the_first_is_away() {
    let tokens = Tokens::new(2);
    tokens.hide(1);
    let open = Open::new(&tokens, "min_copies = 1");
    open.ec_pair(1).unwrap();
    drop(open);
    tokens.restore(1);
    tokens.hide(0);
    let open = Open::new(&tokens, "min_copies = 1");
    assert_eq!(open.ec_pair(2), Err(Rv::DEVICE_ERROR), "the group keys are on the other member");
    drop(open);
    tokens.restore(0);
    let open = Open::new(&tokens, "min_copies = 1");
    open.ec_pair(3).unwrap();
    assert_eq!(
        open.words(true),
        [Word::Same; 4],
        "the member that came later was given the keys of the group and key 1"
    );
}

#[test]
fn the_value_of_a_private_object_is_on_the_members_and_not_in_the_ledger() {
    let tokens = Tokens::new(2);
    let mut template = data(b"secret", b"what nobody else may read");
    template.push(Attribute::bool(ck::CKA_PRIVATE, true));
    without_b(&tokens, |open| _ = open.slot.create_object(open.s, &template).unwrap());
    let open = Open::new(&tokens, "");
    member_is(&open, 1, State::Up);
    assert_eq!(open.words(true), [Word::Same]);
    assert_eq!((count(&tokens, 0, "secret"), count(&tokens, 1, "secret")), (1, 1));
    drop(open);
    for file in std::fs::read_dir(tokens.path().join("state")).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(25).any(|w| w == b"what nobody else may read"));
    }
}

#[test]
fn a_key_from_before_the_group_is_not_taken_for_another_one_of_its_name() {
    let tokens = Tokens::new(2);
    let make =
        || tokens.bare(0, &["--keypairgen", "--key-type", "EC:prime256v1", "--id", "07", "--label", "old"]);
    make();
    let open = Open::new(&tokens, "");
    let key = open.find(&private(7))[0];
    open.sign(key).unwrap();
    // The member is connected anew, and the key behind its name is another one by then.
    tokens.hide(0);
    while open.provider.groups()[0].members.get(0).unwrap().state() == State::Up {
        drop(open.sign(key));
    }
    tokens.restore(0);
    for kind in ["privkey", "pubkey"] {
        tokens.bare(0, &["--delete-object", "--type", kind, "--id", "07"]);
    }
    make();
    member_is(&open, 0, State::Up);
    assert_eq!(open.sign(key), Err(Rv::KEY_HANDLE_INVALID));
    assert!(open.slot.destroy_object(open.s, key).is_err());
    assert!(tokens.bare(0, &["--list-objects", "--type", "privkey"]).contains("old"));
}

#[test]
fn a_key_from_before_the_group_is_used_again_when_its_member_is_back() {
    let tokens = Tokens::new(2);
    tokens.bare(0, &["--keypairgen", "--key-type", "EC:prime256v1", "--id", "07", "--label", "old"]);
    let open = Open::new(&tokens, "");
    let key = open.find(&private(7))[0];
    open.sign(key).unwrap();
    tokens.hide(0);
    while open.provider.groups()[0].members.get(0).unwrap().state() == State::Up {
        drop(open.sign(key));
    }
    tokens.restore(0);
    member_is(&open, 0, State::Up);
    open.sign(key).unwrap();
}

/// Makes objects on a member's token that no group knows of.
fn put_before(tokens: &Tokens, member: usize, objects: &[Template]) {
    let config = Config::parse(&tokens.config(false, "")).unwrap();
    let before = connector(&config.groups[0].members[member]);
    let token = before.connect().unwrap();
    let s = token.open_session(true).unwrap();
    token.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    objects.iter().for_each(|object| _ = token.create_object(s, object).unwrap());
    before.disconnect();
}

#[test]
fn of_equals_from_before_the_group_the_one_that_is_not_destroyed_stays_everywhere() {
    let tokens = Tokens::new(2);
    put_before(&tokens, 0, &[data(b"old", b"twice"), data(b"old", b"twice")]);
    put_before(&tokens, 1, &[data(b"old", b"twice")]);
    let open = Open::new(&tokens, "");
    let group = &open.provider.groups()[0];
    let on_a_alone = |h: &ObjectHandle| {
        let object = group.objects.get(*h).unwrap();
        object.place(1, group.members.get(1).unwrap().link().unwrap().generation).is_none()
    };
    open.wait("both are found, and one of them on b", |_| {
        let found = open.find(&named(b"old"));
        found.len() == 2 && found.iter().filter(|h| on_a_alone(h)).count() == 1
    });
    let alone = open.find(&named(b"old")).into_iter().find(on_a_alone).unwrap();
    open.slot.destroy_object(open.s, alone).unwrap();
    assert_eq!(group.sync(false).unwrap().iter().map(|(_, done)| done.destroyed).sum::<usize>(), 0);
    assert_eq!((count(&tokens, 0, "old"), count(&tokens, 1, "old")), (1, 1));
}

#[test]
fn what_was_there_before_the_group_and_is_destroyed_does_not_come_back_with_a_member() {
    let tokens = Tokens::new(2);
    let mut key = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
        Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET),
        Attribute::bytes(ck::CKA_LABEL, *b"old"),
        Attribute::bytes(ck::CKA_VALUE, [7; 32]),
    ];
    key.extend([ck::CKA_TOKEN, ck::CKA_SIGN, ck::CKA_SENSITIVE].map(|kind| Attribute::bool(kind, true)));
    (0..2).for_each(|member| put_before(&tokens, member, &[key.clone(), data(b"old", b"as well")]));
    without_b(&tokens, |open| {
        assert_eq!(open.find(&named(b"old")).len(), 2);
        destroy(open, b"old");
    });
    assert_eq!((count(&tokens, 0, "old"), count(&tokens, 1, "old")), (0, 2));
    let open = Open::new(&tokens, "");
    member_is(&open, 1, State::Up);
    assert!(open.find(&named(b"old")).is_empty());
    drop(open);
    assert_eq!(count(&tokens, 1, "old"), 0);
}

#[test]
fn what_was_there_before_the_group_and_one_member_kept_does_not_stay_there() {
    let tokens = Tokens::new(2);
    let value = tokens.path().join("value");
    std::fs::write(&value, [7; 32]).unwrap();
    let import = ["--write-object", value.to_str().unwrap(), "--label", "old", "--type", "data"];
    (0..2).for_each(|member| drop(tokens.bare(member, &import)));
    let (provider, watches) = watched::start(&tokens.config(false, ""));
    let open = Open::on(provider);
    let [object] = open.find(&named(b"old"))[..] else { panic!("one object") };
    watches[1].refuse(Function::DestroyObject, 1, Rv::GENERAL_ERROR);
    open.slot.destroy_object(open.s, object).unwrap();
    open.wait("it is on no member", |_| (0..2).all(|member| count(&tokens, member, "old") == 0));
    assert!(open.find(&named(b"old")).is_empty());
}
