//! Objects that are called alike on one member: a key that nobody knows, another key in a copy's place, a copy that cannot be
//! asked (guarantees G3 and G4).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_rig::{Act, PIN, Tokens, Watch};
use ha_token::*;

use crate::open_group::Open;
use crate::setting::{all_up, failing, id, label, plain, yes};
use crate::watched::lose;

const FUNCTIONS: [Function; 6] = [
    Function::SignInit,
    Function::DigestInit,
    Function::CopyObject,
    Function::WrapKey,
    Function::EncryptInit,
    Function::VerifyInit,
];

/// A key that makes MACs, of this value.
fn mac_key(value: u8, more: &[Attribute]) -> Template {
    let mut template = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
        Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET),
        yes(ck::CKA_TOKEN),
        yes(ck::CKA_PRIVATE),
        yes(ck::CKA_SIGN),
        yes(ck::CKA_EXTRACTABLE),
        id(1),
        label(b"same"),
        Attribute::bytes(ck::CKA_VALUE, [value; 32]),
    ];
    template.extend_from_slice(more);
    template
}

fn mac(open: &Open, key: ObjectHandle) -> Result<Vec<u8>> {
    let mut mechanism = plain(ck::CKM_SHA256_HMAC);
    open.slot.op_init(open.s, OpKind::Sign, Some(&mut mechanism), key)?;
    let mut space = [0; 32];
    let mut out = Output::buffer(&mut space);
    open.slot.op_one_shot(open.s, OpKind::Sign, b"question", &mut out)?;
    Ok(out.written().to_vec())
}

/// Something on a token itself, behind the group's back.
fn behind<T>(watch: &Watch, f: impl FnOnce(&Arc<dyn Token>, SessionHandle) -> T) -> T {
    let token = watch.real();
    let s = token.open_session(true).unwrap();
    // SoftHSM's login is one for all sessions of the instance.
    match token.login(s, UserType::User, Some(PIN.as_bytes())) {
        Ok(()) | Err(Rv::USER_ALREADY_LOGGED_IN) => {}
        Err(rv) => panic!("{rv}"),
    }
    let value = f(&token, s);
    token.close_session(s).unwrap();
    value
}

fn handles(watch: &Watch, template: &Template) -> Vec<ObjectHandle> {
    behind(watch, |token, s| {
        token.find_objects_init(s, template).unwrap();
        let found = token.find_objects(s, 100).unwrap();
        token.find_objects_final(s).unwrap();
        found
    })
}

/// The second member is connected anew, and then alone.
fn only_b_anew(open: &Open, watches: &[Arc<Watch>]) {
    let group = &open.provider.groups()[0];
    lose(group, 1, &watches[1]);
    watches[1].dead.store(false, Ordering::Release);
    all_up(open);
    lose(group, 0, &watches[0]);
}

#[test]
fn a_key_that_was_taken_for_another_one_by_its_names_is_not_hidden_by_that() {
    let tokens = Tokens::new(2);
    let (open, watches) = failing(&tokens, "");
    let no = Attribute::bool(ck::CKA_VERIFY, false);
    let ours = open.slot.create_object(open.s, &mac_key(1, &[no])).unwrap();
    let answer = mac(&open, ours).unwrap();
    let strangers = mac_key(2, &[yes(ck::CKA_VERIFY)]);
    behind(&watches[1], |token, s| token.create_object(s, &strangers)).unwrap();
    only_b_anew(&open, &watches);
    // A search that our key does not fit.
    let narrow = vec![label(b"same"), yes(ck::CKA_VERIFY)];
    open.find(&narrow);
    assert_eq!(mac(&open, ours).as_ref(), Ok(&answer));
    let found = open.find(&narrow);
    assert!(found.len() == 1 && found[0] != ours, "{found:?}");
    assert_ne!(mac(&open, found[0]).unwrap(), answer);
    assert_eq!(mac(&open, ours), Ok(answer));
}

#[test]
fn another_key_in_the_place_of_a_copy_keeps_its_own_handle() {
    let tokens = Tokens::new(2);
    let (open, watches) = failing(&tokens, "");
    let names = vec![label(b"same")];
    let one = open.slot.create_object(open.s, &mac_key(1, &[])).unwrap();
    let copy = handles(&watches[1], &names);
    let other = open.slot.create_object(open.s, &mac_key(2, &[])).unwrap();
    let answer = mac(&open, other).unwrap();
    // One copy goes; as many objects as there should be are there all the same.
    behind(&watches[1], |token, s| {
        token.destroy_object(s, copy[0]).unwrap();
        let stranger = vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
            yes(ck::CKA_TOKEN),
            label(b"stranger"),
            Attribute::bytes(ck::CKA_VALUE, *b"x"),
        ];
        token.create_object(s, &stranger).unwrap();
    });
    only_b_anew(&open, &watches);
    assert!(mac(&open, one).is_err());
    assert_eq!(open.find(&names), [other]);
    assert_eq!(mac(&open, other), Ok(answer));
}

#[test]
fn a_copy_that_could_not_be_asked_for_a_moment_is_used_after_it() {
    let tokens = Tokens::new(2);
    let (open, watches) = failing(&tokens, "");
    let key = open.slot.create_object(open.s, &mac_key(1, &[])).unwrap();
    let answer = mac(&open, key).unwrap();
    only_b_anew(&open, &watches);
    for function in FUNCTIONS {
        watches[1].refuse(function, 100, Rv::FUNCTION_FAILED);
    }
    assert!(mac(&open, key).is_err());
    watches[1].clear();
    open.wait("the second member is up", |g| g.up().any(|m| m.index == 1));
    assert_eq!(mac(&open, key), Ok(answer));
}

#[test]
fn what_is_being_destroyed_elsewhere_is_not_asked_for_by_its_number_here() {
    let tokens = Tokens::new(2);
    let (open, watches) = failing(&tokens, "balance = \"primary\"");
    let key = open.slot.create_object(open.s, &mac_key(1, &[])).unwrap();
    mac(&open, key).unwrap();
    let (slot, first) = (Arc::clone(&open.slot), Arc::clone(&watches[0]));
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = Arc::clone(&asked);
    // The first member has destroyed its copy, and may have given its number to another object by now.
    watches[1].next(
        Function::DestroyObject,
        Act::First(Box::new(move || {
            first.calls();
            let s = slot.open_session(false).unwrap();
            _ = slot.op_init(s, OpKind::Sign, Some(&mut plain(ck::CKM_SHA256_HMAC)), key);
            told.lock().unwrap().extend(first.calls());
        })),
    );
    open.slot.destroy_object(open.s, key).unwrap();
    let asked = asked.lock().unwrap();
    assert!(!asked.is_empty() && !asked.contains(&Function::SignInit), "{asked:?}");
}
