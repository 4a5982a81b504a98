//! Several processes that write to one token: two private instances know as little of each other as those.

mod support;

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
