//! Groups whose members can be made to fail, templates, and what is on the bare tokens.

use std::sync::Arc;

use ha_core::group::Origin;
use ha_core::policy::health::State;
use ha_rig::{PIN, Tokens, Watch};
use ha_token::{Attribute, Mechanism, ObjectHandle, Template, Ulong, UserType, ck};

use crate::open_group::Open;
use crate::watched::start;

/// A group over members that can be made to fail, logged in.
pub fn failing(tokens: &Tokens, group: &str) -> (Open, Vec<Arc<Watch>>) {
    failing_of(&tokens.config(false, group))
}

pub fn failing_of(text: &str) -> (Open, Vec<Arc<Watch>>) {
    let (provider, watches) = start(text);
    let slot = Arc::clone(provider.slot(0).unwrap());
    let s = slot.open_session(true).unwrap();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    (Open { provider, slot, s }, watches)
}

pub fn yes(kind: Ulong) -> Attribute {
    Attribute::bool(kind, true)
}

pub fn id(n: u8) -> Attribute {
    Attribute::bytes(ck::CKA_ID, [n])
}

pub fn label(label: &[u8]) -> Attribute {
    Attribute::bytes(ck::CKA_LABEL, label)
}

pub fn named(name: &[u8]) -> Template {
    vec![label(name)]
}

pub fn data(name: &[u8], value: &[u8]) -> Template {
    vec![
        yes(ck::CKA_TOKEN),
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        label(name),
        Attribute::bytes(ck::CKA_VALUE, value),
    ]
}

pub fn secret(n: u8, more: &[Attribute]) -> Template {
    let mut template = vec![yes(ck::CKA_TOKEN), Attribute::ulong(ck::CKA_VALUE_LEN, 32), id(n)];
    template.extend_from_slice(more);
    template
}

pub fn plain(kind: Ulong) -> Mechanism {
    Mechanism::plain(kind)
}

/// How many objects of the bare tokens pkcs11-tool lists under this label.
pub fn count(tokens: &Tokens, name: &str) -> [usize; 2] {
    [0, 1].map(|member| {
        let list = tokens.bare(member, &["--list-objects"]);
        let labels = list.lines().filter_map(|l| l.trim().strip_prefix("label:"));
        labels.filter(|l| l.trim().trim_matches('\'') == name).count()
    })
}

/// How many private keys of this id are on the bare tokens.
pub fn keys(tokens: &Tokens, n: u8) -> [usize; 2] {
    let line = format!("ID:         {n:02x}");
    [0, 1].map(|i| tokens.bare(i, &["--list-objects", "--type", "privkey"]).matches(&line).count())
}

/// Objects that are served and that the ledger does not know.
pub fn foreign(open: &Open) -> usize {
    open.provider.groups()[0].objects.select(|o| o.origin == Origin::Foreign).len()
}

pub fn all_up(open: &Open) {
    open.wait("all up", |g| g.members.iter().all(|m| m.state() == State::Up));
}

/// All that an operator can do: restarts, logins, every member up, and `sync`.
pub fn heal(tokens: &Tokens) -> Open {
    for _ in 0..2 {
        let open = Open::new(tokens, "");
        all_up(&open);
        open.provider.groups()[0].sync(false).unwrap();
    }
    Open::new(tokens, "")
}

pub fn value(open: &Open, object: ObjectHandle, kind: Ulong) -> Vec<u8> {
    open.slot.get_attributes(open.s, object, &[kind]).unwrap()[0].bytes().unwrap().to_vec()
}

/// All objects that are called so, seen, of a group that has just been started.
pub fn same_named(tokens: &Tokens, group: &str, how_many: u8) -> (Open, Vec<ObjectHandle>) {
    {
        let open = Open::new(tokens, "");
        for n in 0..how_many {
            open.slot.create_object(open.s, &data(b"same", &[n])).unwrap();
        }
    }
    let open = Open::new(tokens, group);
    let all = open.find(&named(b"same"));
    assert_eq!(all.len(), usize::from(how_many));
    (open, all)
}
