//! The rules of one token, whichever member serves (guarantee G8).

use ha_rig::{PIN, SO_PIN, Tokens};
use ha_token::{Attribute, OpKind, Output, Rv, Template, UserType, ck};

use crate::open_group::{Open, private};
use crate::setting::{count, data, id, named, plain, secret, yes};

#[test]
fn rules_of_public_and_officers_sessions() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let (slot, s) = (&open.slot, open.s);
    let (_, key) = open.ec_pair(1).unwrap();
    let with = |name: &[u8], private: bool| {
        let mut template = data(name, b"v");
        template.push(Attribute::bool(ck::CKA_PRIVATE, private));
        template
    };
    let public = slot.create_object(s, &with(b"public", false)).unwrap();
    let ro = slot.open_session(false).unwrap();
    assert_eq!(slot.set_attributes(ro, public, &named(b"x")), Err(Rv::SESSION_READ_ONLY));
    assert_eq!(slot.copy_object(ro, public, &Template::new()), Err(Rv::SESSION_READ_ONLY));
    assert_eq!(slot.destroy_object(ro, public), Err(Rv::SESSION_READ_ONLY));
    slot.op_init(s, OpKind::Sign, Some(&mut plain(ck::CKM_ECDSA)), key).unwrap();
    slot.logout(s).unwrap();
    let signed = slot.op_one_shot(s, OpKind::Sign, &[7; 32], &mut Output::buffer(&mut [0; 64]));
    assert_eq!(signed, Err(Rv::OPERATION_NOT_INITIALIZED));
    slot.set_attributes(s, public, &named(b"renamed")).unwrap();
    assert_eq!(open.find(&named(b"renamed")), [public]);
    assert_eq!(slot.create_object(s, &with(b"p", true)), Err(Rv::USER_NOT_LOGGED_IN));
    let so = Some(SO_PIN.as_bytes());
    assert_eq!(slot.login(s, UserType::So, so), Err(Rv::SESSION_READ_ONLY_EXISTS));
    slot.close_session(ro).unwrap();
    slot.login(s, UserType::So, so).unwrap();
    assert_eq!(slot.open_session(false), Err(Rv::SESSION_READ_WRITE_SO_EXISTS));
    assert!(open.find(&private(1)).is_empty());
    assert_eq!(slot.create_object(s, &with(b"p", true)), Err(Rv::USER_NOT_LOGGED_IN));
    slot.destroy_object(s, public).unwrap();
    slot.logout(s).unwrap();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    assert_eq!(slot.get_attributes(s, key, &[ck::CKA_ID]).err(), Some(Rv::OBJECT_HANDLE_INVALID));
    assert_eq!(count(&tokens, "renamed"), [0, 0]);
    assert_eq!(open.find(&private(1)).len(), 1);
}

#[test]
fn never_session_keys_of_two_sessions_cannot_be_used_together() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "balance = \"round-robin\"");
    let slot = &open.slot;
    let (s1, s2) = (slot.open_session(true).unwrap(), slot.open_session(true).unwrap());
    let key = |s, usage| {
        let length = Attribute::ulong(ck::CKA_VALUE_LEN, 32);
        let template = vec![length, yes(usage), yes(ck::CKA_EXTRACTABLE)];
        slot.generate_key(s, &mut plain(ck::CKM_AES_KEY_GEN), &template).unwrap()
    };
    let (wrapping, wrapped) = (key(s1, ck::CKA_WRAP), key(s2, ck::CKA_ENCRYPT));
    let mut space = [0; 64];
    let mut out = Output::buffer(&mut space);
    let told = slot.wrap_key(s1, &mut plain(ck::CKM_AES_KEY_WRAP), wrapping, wrapped, &mut out);
    assert_eq!(told, Ok(()));
}

#[test]
fn never_what_is_told_of_a_key_does_not_find_it() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let template = secret(1, &[yes(ck::CKA_ENCRYPT)]);
    let key = open.slot.generate_key(open.s, &mut plain(ck::CKM_AES_KEY_GEN), &template).unwrap();
    let mut lost = Vec::new();
    for kind in
        [ck::CKA_LOCAL, ck::CKA_UNIQUE_ID, ck::CKA_KEY_GEN_MECHANISM, ck::CKA_VALUE_LEN, ck::CKA_CHECK_VALUE]
    {
        let told = open.slot.get_attributes(open.s, key, &[kind]).unwrap().remove(0);
        if let ha_token::Fetched::Value(value) = told
            && open.find(&vec![id(1), Attribute { kind, value }]) != [key]
        {
            lost.push(format!("{kind:#x}"));
        }
    }
    assert_eq!(lost, [""; 0]);
}
