//! What was destroyed stays destroyed, and what was renamed is one object (guarantee G2).

use std::sync::Arc;
use std::time::Duration;

use ha_rig::{Act, Tokens};
use ha_token::{Function, Rv, Template};

use crate::open_group::{Open, private};
use crate::setting::{count, data, failing, foreign, heal, keys, named, same_named};

#[test]
fn never_destroyed_objects_of_one_name_stay_and_cannot_be_destroyed_any_more() {
    let tokens = Tokens::new(2);
    let (open, all) = same_named(&tokens, "", 6);
    for object in all {
        assert_eq!(open.slot.destroy_object(open.s, object), Ok(()));
        open.find(&named(b"same"));
    }
    assert_eq!((open.find(&named(b"same")).len(), count(&tokens, "same")), (0, [0, 0]));
}

#[test]
fn never_two_searches_at_once_make_two_objects_of_one_key() {
    let tokens = Tokens::new(2);
    Open::new(&tokens, "").ec_pair(1).unwrap();
    let (open, watches) = failing(&tokens, "balance = \"primary\"");
    let slot = Arc::clone(&open.slot);
    let (tell, told) = std::sync::mpsc::channel();
    // Another thread's search, while this one reads what it has found.
    let search = move || {
        let s = slot.open_session(false).unwrap();
        slot.find_objects_init(s, &private(1)).unwrap();
        tell.send(slot.find_objects(s, 10).unwrap()).unwrap();
        slot.close_session(s).unwrap();
    };
    watches[0].next(Function::GetAttributeValue, Act::Then(Box::new(search)));
    let one = open.find(&private(1));
    let other = told.recv().unwrap();
    eprintln!("one {one:?}, other {other:?}, foreign {}", foreign(&open));
    // As the other thread has it.
    assert_eq!(open.slot.destroy_object(open.s, other[0]), Ok(()));
    assert_eq!((open.find(&private(1)), keys(&tokens, 1)), (vec![], [0, 0]), "told that it is destroyed");
}

#[test]
fn never_an_object_that_is_destroyed_while_it_is_given_to_a_member_stays_there() {
    let tokens = Tokens::new(2);
    let (open, watches) = failing(&tokens, "balance = \"primary\"\nmin_copies = 1");
    let (tell, told) = std::sync::mpsc::channel();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let later = Arc::clone(&watches[1]);
    let wait = move || {
        tell.send(()).unwrap();
        _ = gone.recv_timeout(Duration::from_secs(5));
    };
    // The second time it is the keeper, which gives the member what it lacks.
    let refuse = move || {
        later.next(Function::CreateObject, Act::First(Box::new(wait)));
        Rv::FUNCTION_FAILED
    };
    watches[1].next(Function::CreateObject, Act::Instead(Box::new(refuse)));
    let object = open.slot.create_object(open.s, &data(b"d", b"v")).unwrap();
    told.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(open.slot.destroy_object(open.s, object), Ok(()));
    go.send(()).unwrap();
    drop(open);
    let open = heal(&tokens);
    assert_eq!(
        (count(&tokens, "d"), open.find(&named(b"d")).len()),
        ([0, 0], 0),
        "told that it is destroyed"
    );
}

#[test]
fn never_a_rename_that_took_effect_and_was_refused_leaves_two_objects() {
    let tokens = Tokens::new(2);
    let (open, watches) = failing(&tokens, "");
    let object = open.slot.create_object(open.s, &data(b"old", b"v")).unwrap();
    watches[0].next(Function::SetAttributeValue, Act::DoneAndAnswer(Rv::DEVICE_ERROR));
    watches[1].next(Function::SetAttributeValue, Act::Answer(Rv::DEVICE_ERROR));
    // A member that is back soon enough makes it in the same call.
    let answer = open.slot.set_attributes(open.s, object, &named(b"new"));
    assert!(matches!(answer, Ok(()) | Err(Rv::DEVICE_ERROR)), "{answer:?}");
    drop(open);
    let open = heal(&tokens);
    if answer.is_ok() {
        assert_eq!((count(&tokens, "old"), count(&tokens, "new")), ([0, 0], [1, 1]));
    }
    let all = open.find(&Template::new()).len();
    assert_eq!(
        (all, foreign(&open)),
        (1, 0),
        "old {:?} new {:?}",
        count(&tokens, "old"),
        count(&tokens, "new")
    );
}
