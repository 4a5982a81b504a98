//! A token that had no room, and has some again.
#![allow(missing_docs, clippy::unwrap_used)]

mod watched;

use std::sync::Arc;

use ha_rig::{PIN, Tokens};
use ha_token::{Attribute, Function, Rv, Token, UserType, ck};
use watched::{start, wait};

/// Nothing else is written, and nobody asks for it.
#[test]
fn what_it_had_no_room_for_is_given_to_it_soon() {
    let tokens = Tokens::new(2);
    let group = "min_copies = 1\n[group.recovery]\ninterval = \"5ms\"\nmax_interval = \"1h\"";
    let (provider, members) = start(&tokens.config(false, group));
    let slot = Arc::clone(provider.slot(0).unwrap()) as Arc<dyn Token>;
    let s = slot.open_session(true).unwrap();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    members[1].refuse(Function::CreateObject, 3, Rv::DEVICE_MEMORY);
    let template = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bytes(ck::CKA_LABEL, b"late"),
    ];
    slot.create_object(s, &template).unwrap();
    wait(&provider.groups()[0], "it was refused three times", |_| members[1].waiting() == 0);
    wait(&provider.groups()[0], "every member holds the same", |group| {
        group.sync(true).unwrap().iter().all(|(_, left)| *left == Default::default())
    });
}
