//! A key whose only holder is down: it is found and told of, and used again by its handle when the holder is back.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;

use ha_core::config::Config;
use ha_core::provider::Provider;
use ha_rig::{PIN, Tokens};
use ha_token::{
    Attribute, Mechanism, ObjectHandle, OpKind, Output, Result, Rv, SessionHandle, Template, Token, UserType,
    ck,
};

const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

fn start(tokens: &Tokens) -> (Provider, Arc<dyn Token>, SessionHandle) {
    let group = "min_copies = 1\n[group.recovery]\ninterval = \"20ms\"\nmax_interval = \"100ms\"";
    let provider = Provider::from_config(Config::parse(&tokens.config(false, group)).unwrap()).unwrap();
    let slot = Arc::clone(provider.slot(0).unwrap());
    let s = slot.open_session(true).unwrap();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    (provider, slot, s)
}

fn find(slot: &dyn Token, s: SessionHandle, template: &Template) -> Result<Vec<ObjectHandle>> {
    slot.find_objects_init(s, template)?;
    let found = slot.find_objects(s, 100)?;
    slot.find_objects_final(s)?;
    Ok(found)
}

fn sign(slot: &dyn Token, s: SessionHandle, key: ObjectHandle) -> Result<()> {
    slot.op_init(s, OpKind::Sign, Some(&mut Mechanism::plain(ck::CKM_ECDSA)), key)?;
    slot.op_one_shot(s, OpKind::Sign, &[7; 32], &mut Output::buffer(&mut [0; 64]))
}

#[test]
fn a_key_whose_holder_is_down_is_found_and_used_when_it_is_back() {
    let tokens = Tokens::new(2);
    let of_token = Attribute::bool(ck::CKA_TOKEN, true);
    let named = Attribute::bytes(ck::CKA_LABEL, *b"key");
    tokens.hide(1);
    {
        let (_provider, slot, s) = start(&tokens);
        let public = vec![of_token.clone(), named.clone(), Attribute::bytes(ck::CKA_EC_PARAMS, P256)];
        let private = vec![of_token.clone(), named.clone(), Attribute::bool(ck::CKA_SIGN, true)];
        let mut kind = Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN);
        slot.generate_key_pair(s, &mut kind, &public, &private).unwrap();
    }
    tokens.hide(0);
    tokens.restore(1);
    let (_provider, slot, s) = start(&tokens);
    let private = Attribute::ulong(ck::CKA_CLASS, ck::CKO_PRIVATE_KEY);
    let keys = find(&*slot, s, &vec![private.clone(), named.clone()]).unwrap();
    assert_eq!(keys.len(), 1);
    assert_eq!(find(&*slot, s, &vec![named.clone()]).unwrap().len(), 2);
    assert_eq!(find(&*slot, s, &vec![private.clone(), Attribute::bool(ck::CKA_SIGN, false)]), Ok(vec![]));
    let read = slot.get_attributes(s, keys[0], &[ck::CKA_LABEL, ck::CKA_KEY_TYPE]).unwrap();
    assert_eq!(read[0].bytes(), Some(&b"key"[..]));
    assert_eq!(read[1].value().and_then(|v| v.as_ulong()), Some(ck::CKK_EC));
    // What only its holder knows, and what only its holder can do.
    assert_eq!(slot.get_attributes(s, keys[0], &[ck::CKA_ALLOWED_MECHANISMS]), Err(Rv::DEVICE_ERROR));
    assert_eq!(sign(&*slot, s, keys[0]), Err(Rv::DEVICE_ERROR));
    // Who is not logged in does not learn of it.
    slot.logout(s).unwrap();
    assert_eq!(find(&*slot, s, &vec![private.clone()]), Ok(vec![]));
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    assert_eq!(find(&*slot, s, &vec![private.clone()]).unwrap().len(), 1);

    let keys = find(&*slot, s, &vec![private.clone()]).unwrap();
    tokens.restore(0);
    while sign(&*slot, s, keys[0]).is_err() {
        std::thread::yield_now();
    }
    assert_eq!(find(&*slot, s, &vec![private]).unwrap(), keys);
}
