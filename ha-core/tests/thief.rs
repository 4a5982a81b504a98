//! A thief with the user PIN and the ledger, on a bare token of an enrolled group: no key that may not be extracted comes
//! out (guarantee G9).
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use ha_core::config::Config;
use ha_core::group::Word;
use ha_core::provider::{Provider, connector};
use ha_core::replica::ledger::{Blob, Ledger};
use ha_rig::{PIN, SO_PIN, Tokens};
use ha_token::{
    Attribute, Connector, Mechanism, ObjectHandle, Output, Rv, SessionHandle, Template, Token, UserType, ck,
};

fn find(token: &dyn Token, s: SessionHandle, template: &Template) -> Vec<ObjectHandle> {
    token.find_objects_init(s, template).unwrap();
    let found = token.find_objects(s, 100).unwrap();
    token.find_objects_final(s).unwrap();
    found
}

#[test]
fn pin_and_ledger_together_give_no_key_away() {
    let tokens = Tokens::new(2);
    let config = Config::parse(&tokens.config(false, "")).unwrap();
    let provider = Provider::from_config(config.clone()).unwrap();
    provider.groups()[0].enrol_with_ceremony(PIN.as_bytes(), SO_PIN.as_bytes()).unwrap();
    let slot = provider.slot(0).unwrap();
    let s = slot.open_session(true).unwrap();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    let generate = |extractable| {
        let template = vec![
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::ulong(ck::CKA_VALUE_LEN, 32),
            Attribute::bool(ck::CKA_ENCRYPT, true),
            Attribute::bool(ck::CKA_SENSITIVE, true),
            Attribute::bool(ck::CKA_EXTRACTABLE, extractable),
        ];
        slot.generate_key(s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &template).unwrap()
    };
    // From the start, since it was told, and a copy that is less than what it was copied from.
    generate(false);
    let sealed = vec![Attribute::bool(ck::CKA_EXTRACTABLE, false)];
    slot.set_attributes(s, generate(true), &sealed).unwrap();
    let whole = generate(true);
    slot.copy_object(s, whole, &sealed).unwrap();
    slot.destroy_object(s, whole).unwrap();
    let words = provider.groups()[0].check(true).unwrap();
    assert!(words.len() == 3 && words.iter().all(|c| c.worst() == Word::Same), "{words:?}");
    provider.shutdown(Duration::from_secs(60));
    drop(provider);

    let ledger = Ledger::open(&config.state_dir, "ha1", Duration::from_secs(5), &mut |_| ()).unwrap();
    let blobs: Vec<Blob> = ledger.objects().unwrap().into_iter().filter_map(|row| row.blob).collect();
    assert_eq!(blobs.len(), 3);
    let thief = connector(&config.groups[0].members[0]);
    let token = thief.connect().unwrap();
    let s = token.open_session(true).unwrap();
    token.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    let group_keys = find(&*token, s, &vec![Attribute::bytes(ck::CKA_LABEL, *b"pkcs11-ha group key")]);
    assert_eq!(group_keys.len(), 2);

    for blob in &blobs {
        no_way_round(&*token, s, &group_keys, blob);
    }
}

/// Whatever the thief does with a blob, it is no key that may be extracted.
fn no_way_round(token: &dyn Token, s: SessionHandle, group_keys: &[ObjectHandle], blob: &Blob) {
    // The control: under the right key and as it must be, the blob is a key.
    let as_it_must_be = |sensitive, extractable| {
        vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
            Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_AES),
            Attribute::bool(ck::CKA_TOKEN, false),
            Attribute::bool(ck::CKA_SENSITIVE, sensitive),
            Attribute::bool(ck::CKA_EXTRACTABLE, extractable),
        ]
    };
    let unwrap = |key, template: &Template| {
        token.unwrap_key(s, &mut Mechanism::plain(blob.format), key, &blob.bytes, template)
    };
    let opened = group_keys.iter().filter(|k| unwrap(**k, &as_it_must_be(true, false)).is_ok()).count();
    assert_eq!(opened, 1, "one of the two keys opens the blob");
    for key in group_keys {
        for (sensitive, extractable) in [(false, true), (false, false), (true, true)] {
            assert!(
                unwrap(*key, &as_it_must_be(sensitive, extractable)).is_err(),
                "sensitive {sensitive}, extractable {extractable}"
            );
        }
        let silent: Template = as_it_must_be(true, false).into_iter().take(3).collect();
        assert!(unwrap(*key, &silent).is_err(), "silence is not a way round");
        // A key of the thief's own may not carry a group key away, and a group key learns nothing new.
        let own = vec![
            Attribute::ulong(ck::CKA_VALUE_LEN, 32),
            Attribute::bool(ck::CKA_WRAP, true),
            Attribute::bool(ck::CKA_DECRYPT, true),
        ];
        let own = token.generate_key(s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &own).unwrap();
        let mut space = [0; 256];
        let wrapped = token.wrap_key(
            s,
            &mut Mechanism::plain(ck::CKM_AES_KEY_WRAP),
            own,
            *key,
            &mut Output::buffer(&mut space),
        );
        assert_eq!(wrapped, Err(Rv::KEY_NOT_WRAPPABLE));
        assert!(token.set_attributes(s, *key, &vec![Attribute::bool(ck::CKA_DECRYPT, true)]).is_err());
        assert!(token.copy_object(s, *key, &vec![Attribute::bool(ck::CKA_DECRYPT, true)]).is_err());
        assert!(token.get_attributes(s, *key, &[ck::CKA_VALUE]).unwrap()[0].value().is_none());
    }
}
