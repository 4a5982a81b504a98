//! A search meets the copies that other threads are making: `SoftHSM` shows them before they are whole, with their
//! originals' names and no values, and crashes where such a key is used.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};

use ha_core::config::Config;
use ha_core::provider::Provider;
use ha_rig::{Alone, PIN, Tokens, is_alone};
use ha_token::{Attribute, Mechanism, ObjectHandle, Rv, SessionHandle, Token, UserType, ck};

const SEARCHES: usize = 400;
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// One token, so that all of it is asked of one module.
fn search_while_others_copy(deadline: &str) {
    let tokens = Tokens::new(1);
    let config = tokens.config(false, &format!("deadline = {deadline:?}"));
    let provider = Provider::from_config(Config::parse(&config).unwrap()).unwrap();
    let slot: &dyn Token = &**provider.slot(0).unwrap();
    let session = || slot.open_session(true).unwrap();
    let s = session();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    let named = Attribute::bytes(ck::CKA_LABEL, *b"original");
    let of_token = Attribute::bool(ck::CKA_TOKEN, true);
    let public = vec![of_token.clone(), named.clone(), Attribute::bytes(ck::CKA_EC_PARAMS, P256)];
    let private = vec![of_token.clone(), named.clone(), Attribute::bool(ck::CKA_SIGN, true)];
    let mut kind = Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN);
    let (public, private) = slot.generate_key_pair(s, &mut kind, &public, &private).unwrap();
    let mut own = vec![public, private];
    own.sort_unstable();

    let is_over = AtomicBool::new(false);
    let copy = |s: SessionHandle, original: ObjectHandle| {
        while !is_over.load(Ordering::Relaxed) {
            let changes =
                vec![Attribute::bool(ck::CKA_TOKEN, false), Attribute::bytes(ck::CKA_LABEL, *b"copy")];
            let made = slot.copy_object(s, original, &changes).unwrap();
            slot.destroy_object(s, made).unwrap();
        }
    };
    let (copy, is_over) = (&copy, &is_over);
    std::thread::scope(|scope| {
        for original in [private, private, public] {
            let s = session();
            scope.spawn(move || copy(s, original));
        }
        let look = || {
            slot.find_objects_init(s, &vec![of_token.clone(), named.clone()])?;
            let found = slot.find_objects(s, 100)?;
            slot.find_objects_final(s)?;
            Ok::<_, Rv>(found)
        };
        let answers: Vec<_> = (0..SEARCHES).map(|_| look()).collect();
        is_over.store(true, Ordering::Relaxed);
        for answer in answers {
            assert_eq!(answer.as_ref(), Ok(&own));
        }
    });
}

#[test]
fn a_search_gives_nothing_that_is_half_made() {
    const NAME: &str = "a_search_gives_nothing_that_is_half_made";
    if !is_alone(NAME) {
        Alone::new(NAME).run();
        return;
    }
    for deadline in ["off", "10s"] {
        search_while_others_copy(deadline);
    }
}
