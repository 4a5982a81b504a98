//! What a service learns of its group: the members' state, a failover as it happens, and which member failed a call.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use ha_core::api::group::{Class, Events, GroupEvent, State};
use ha_core::api::{Group, Signer};
use ha_core::config::Config;
use ha_core::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use ha_core::error::{Error, RvError};
use ha_core::mechanism::Mechanism;
use ha_core::object::{Attribute, KeyType, ObjectClass};
use ha_core::session::{Session, UserType};
use ha_core::types::AuthPin;
use ha_rig::{PIN, Tokens};

fn is_shared<T: Clone + Send + Sync + 'static>() {}
fn is_send<T: Send + 'static>() {}

#[test]
fn what_may_cross_threads() {
    is_shared::<Group>();
    is_send::<Events>();
}

fn start(tokens: &Tokens, served: bool, group: &str) -> (Pkcs11, Group, Session) {
    let pkcs11 = Pkcs11::from_config(Config::parse(&tokens.config(served, group)).unwrap()).unwrap();
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    let group = pkcs11.group("ha1").unwrap().unwrap();
    let session = pkcs11.open_rw_session(group.slot()).unwrap();
    session.login(UserType::User, Some(&AuthPin::new(PIN.into()))).unwrap();
    (pkcs11, group, session)
}

/// Makes a MAC key, which p11-kit's server could not copy, and takes up the tokens through their servers.
fn served(tokens: &Tokens) -> (Pkcs11, Group, Session) {
    let (pkcs11, _, session) = start(tokens, false, "");
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(true),
        Attribute::Sign(true),
        Attribute::Label("mac".into()),
        Attribute::Value(vec![5; 32]),
    ];
    session.create_object(&template).unwrap();
    pkcs11.shutdown(Duration::from_secs(60)).unwrap();
    (0..2).for_each(|i| tokens.serve(i));
    start(tokens, true, "balance = \"primary\"\n[group.recovery]\nmode = \"manual\"")
}

#[test]
fn a_failover_is_seen_and_explained() {
    let tokens = Tokens::new(2);
    let (pkcs11, group, session) = served(&tokens);
    let states = |group: &Group| group.status().members.iter().map(|m| m.state).collect::<Vec<_>>();
    assert_eq!(states(&group), [State::Up, State::Up]);
    let mut events = group.events();
    let key = session.find_objects(&[Attribute::Label("mac".into())]).unwrap()[0];
    let mac = session.sign(&Mechanism::Sha256Hmac, key, b"data").unwrap();
    assert_eq!((events.try_next(), session.last_fault()), (None, None));

    tokens.kill(0);
    assert_eq!(session.sign(&Mechanism::Sha256Hmac, key, b"data").unwrap(), mac);
    let fault = session.last_fault().unwrap();
    assert_eq!((fault.member.as_str(), fault.class, fault.retried), ("a", Class::Member, true));
    let raw = ha_core::token::Rv(fault.rv);
    let mut seen = Vec::new();
    while !matches!(seen.last(), Some(GroupEvent::Moved { .. })) {
        seen.push(events.next().unwrap());
    }
    assert!(
        seen.iter().any(|e| matches!(e, GroupEvent::Fault { member, rv, .. } if member == "a" && *rv == raw)),
        "{seen:?}"
    );
    assert!(
        seen.iter().any(
            |e| matches!(e, GroupEvent::Member { member, from: State::Up, to, .. } if member == "a" && *to != State::Up)
        ),
        "{seen:?}"
    );
    let Some(GroupEvent::Moved { from, to, rv, .. }) = seen.last() else { panic!("{seen:?}") };
    assert_eq!((from.as_str(), to.as_str(), *rv), ("a", "b", raw));
    let status = group.status();
    assert_ne!(status.members[0].state, State::Up);
    assert_eq!(status.members[0].last_fault.as_ref().map(|f| f.class), Some(Class::Member));

    // With nobody left the call fails, and it is said who failed it.
    tokens.kill(1);
    let failed = session.sign(&Mechanism::Sha256Hmac, key, b"data");
    assert!(matches!(failed, Err(Error::Pkcs11(RvError::DeviceError, _))), "{failed:?}");
    let fault = session.last_fault().unwrap();
    assert_eq!((fault.member.as_str(), fault.class, fault.retried), ("b", Class::Member, false));

    // A listener in a thread of its own is let go by the end.
    let listener = std::thread::spawn(move || events.count());
    pkcs11.shutdown(Duration::from_secs(60)).unwrap();
    assert!(listener.join().unwrap() > 0);
    assert_eq!(group.events().next(), None);
    assert!(matches!(pkcs11.groups(), Err(Error::Pkcs11(RvError::CryptokiNotInitialized, _))));
}

#[test]
fn what_is_the_callers_own_mistake_is_nobodys_fault() {
    let tokens = Tokens::new(2);
    let (pkcs11, group, session) = start(&tokens, false, "");
    let key = session.generate_key(&Mechanism::AesKeyGen, &[Attribute::ValueLen(16.into())]).unwrap();
    assert!(session.sign(&Mechanism::Sha256Hmac, key, b"data").is_err());
    assert_eq!(session.last_fault(), None);
    assert_eq!(group.label(), "ha1");
    assert!(pkcs11.group("another").unwrap().is_none());
    assert_eq!(pkcs11.groups().unwrap().len(), 1);
}

#[test]
fn shutdown_drains_the_signers_and_names_what_hangs() {
    let tokens = Tokens::new(2);
    let (pkcs11, group, session) = served(&tokens);
    let signer =
        Signer::new(&pkcs11, group.slot(), &[Attribute::Label("mac".into())], &Mechanism::Sha256Hmac)
            .unwrap();
    signer.sign(b"data").unwrap();
    tokens.freeze(0);
    std::thread::spawn(move || signer.sign(b"data"));
    while group.status().members[0].load == 0 {
        std::thread::yield_now();
    }
    assert_eq!(pkcs11.shutdown(Duration::from_millis(100)).unwrap(), ["a"]);
    drop(session);
}
