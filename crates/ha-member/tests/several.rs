//! Several processes that write to one token: two private instances know as little of each other as those.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};

use ha_token::{Attribute, ObjectHandle, SessionHandle, Token, ck};
use support::{Store, connect, connector, find, login};

fn data(token: &dyn Token, session: SessionHandle, label: &str) -> ObjectHandle {
    let template = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bytes(ck::CKA_LABEL, label),
    ];
    token.create_object(session, &template).expect("made")
}

#[test]
fn what_another_one_wrote_just_before_is_found() {
    let store = Store::with(&["several"]);
    let turns = store.dir().join("turns");
    let connectors = [(); 2].map(|()| connector(&store, "several").taking_turns(turns.clone(), 0o600));
    let tokens = connectors.each_ref().map(connect);
    let [(one, here), (other, there)] = tokens.each_ref().map(|token| (&**token, login(&**token)));
    data(one, here, "first");
    data(other, there, "second");
    for (token, session) in [(one, here), (other, there)] {
        assert_eq!(find(token, session, "first").len(), 1);
        assert_eq!(find(token, session, "second").len(), 1);
    }
    let gone = find(one, here, "first");
    data(other, there, "third");
    one.destroy_object(here, gone[0]).expect("destroyed");
    assert_eq!(find(one, here, "third").len(), 1, "a destruction is a write too");
    assert_eq!(find(other, there, "first").len(), 0);
}

#[test]
fn what_one_thread_makes_is_not_spoilt_by_the_searches_of_another() {
    let store = Store::with(&["threads"]);
    let connector = connector(&store, "threads").taking_turns(store.dir().join("turns"), 0o600);
    let token = connect(&connector);
    let token = &*token;
    let session = login(token);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let search = || {
            let session = token.open_session(true).expect("a session");
            while !is_over.load(Ordering::Relaxed) {
                _ = find(token, session, "k");
            }
        };
        scope.spawn(search);
        let made: Vec<_> = (0..300).map(|_| secret(token, session)).collect();
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(made.iter().filter(|made| made.is_err()).count(), 0, "{made:?}");
    });
}

/// Makes a secret key, and destroys it.
fn secret(token: &dyn Token, session: SessionHandle) -> ha_token::Result<()> {
    let template = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
        Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_AES),
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bytes(ck::CKA_LABEL, *b"key"),
        Attribute::bytes(ck::CKA_VALUE, [7; 16]),
    ];
    let made = token.create_object(session, &template)?;
    token.destroy_object(session, made)
}
