//! What the API has beside cryptoki's, on SoftHSM: keys found by attributes, a signer for many threads, several
//! instances in one process, shutting down.

use std::time::Duration;

use ha_core::api::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use ha_core::api::error::{Error, RvError};
use ha_core::api::mechanism::Mechanism;
use ha_core::api::object::{Attribute, KeyType, ObjectClass};
use ha_core::api::session::{Session, UserType};
use ha_core::api::slot::Slot;
use ha_core::api::types::AuthPin;
use ha_core::api::{Key, KeyError, Signer};
use ha_core::config::Config;
use ha_rig::{PIN, Tokens};

/// Makes sure of what the documentation promises of a type; a promise broken does not compile.
fn is_send<T: Send>() {}
fn is_shared<T: Clone + Send + Sync + 'static>() {}

#[test]
fn what_may_cross_threads() {
    is_send::<Session>();
    is_shared::<Pkcs11>();
    is_shared::<Signer>();
    is_shared::<Key>();
}

fn start(tokens: &Tokens) -> (Pkcs11, Slot) {
    let config = Config::parse(&tokens.config_of(false, "")).expect("the configuration");
    let pkcs11 = Pkcs11::from_config(config).expect("an instance");
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).expect("initialize");
    let slot = pkcs11.get_slots_with_token().expect("slots")[0];
    (pkcs11, slot)
}

fn log_in(pkcs11: &Pkcs11, slot: Slot) -> Session {
    let session = pkcs11.open_rw_session(slot).expect("a session");
    session.login(UserType::User, Some(&AuthPin::new(PIN.into()))).expect("login");
    session
}

fn hmac_key(session: &Session, label: &str, byte: u8) {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(true),
        Attribute::Sign(true),
        Attribute::Verify(true),
        Attribute::Label(label.into()),
        Attribute::Id(vec![byte]),
        Attribute::Value(vec![byte; 32]),
    ];
    session.create_object(&template).expect("a key");
}

#[test]
fn a_key_that_is_not_the_only_one_is_not_taken() {
    let tokens = Tokens::new(2);
    let (pkcs11, slot) = start(&tokens);
    let session = log_in(&pkcs11, slot);
    hmac_key(&session, "twice", 1);
    hmac_key(&session, "twice", 2);
    let label = Attribute::Label("twice".into());
    let two = Key::find(&session, std::slice::from_ref(&label));
    assert!(matches!(two, Err(KeyError::Ambiguous { count: 2 })), "{two:?}");
    let none = Key::find(&session, &[Attribute::Label("never".into())]);
    assert!(matches!(none, Err(KeyError::NotFound)), "{none:?}");
    let one = Key::find_secret(&session, &[label.clone(), Attribute::Id(vec![2])]).expect("one key");
    assert_eq!((one.id(), one.label(), one.key_type()), (&[2][..], "twice", KeyType::GENERIC_SECRET));
    assert_eq!(one.class(), ObjectClass::SECRET_KEY);
    let refused = Key::find_private(&session, &[label.clone(), Attribute::Id(vec![2])]);
    assert!(matches!(refused, Err(KeyError::NotFound)), "{refused:?}");
    let refused = Signer::new(&pkcs11, slot, &[label], &Mechanism::Sha256Hmac);
    assert!(matches!(refused, Err(KeyError::Ambiguous { count: 2 })), "{refused:?}");
}

#[test]
fn a_signer_signs_the_same_in_every_thread_and_keeps_the_login() {
    let tokens = Tokens::new(2);
    let (pkcs11, slot) = start(&tokens);
    let session = log_in(&pkcs11, slot);
    hmac_key(&session, "mac", 7);
    let label = [Attribute::Label("mac".into())];
    let signer = Signer::new(&pkcs11, slot, &label, &Mechanism::Sha256Hmac).expect("a signer");
    let expected = session.sign(&Mechanism::Sha256Hmac, signer.key().handle(), b"data").expect("a MAC");
    // The program's only session goes; the login stays as long as the signer does.
    session.close().expect("close");
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let signer = signer.clone();
            std::thread::spawn(move || {
                (0..50).map(|_| signer.sign(b"data").expect("a MAC")).collect::<Vec<_>>()
            })
        })
        .collect();
    for worker in workers {
        for mac in worker.join().expect("no panic") {
            assert_eq!(mac, expected);
        }
    }
}

#[test]
fn a_signer_finds_its_key_again_after_logout_and_login() {
    let tokens = Tokens::new(2);
    let (pkcs11, slot) = start(&tokens);
    let session = log_in(&pkcs11, slot);
    hmac_key(&session, "again", 9);
    let label = [Attribute::Label("again".into())];
    let signer = Signer::new(&pkcs11, slot, &label, &Mechanism::Sha256Hmac).expect("a signer");
    let before = signer.sign(b"data").expect("a MAC");
    session.logout().expect("logout");
    assert!(signer.sign(b"data").is_err());
    session.login(UserType::User, Some(&AuthPin::new(PIN.into()))).expect("login");
    assert_eq!(signer.sign(b"data").expect("a MAC"), before);
}

#[test]
fn a_signer_lives_on_through_another_start() {
    let tokens = Tokens::new(2);
    let (pkcs11, slot) = start(&tokens);
    let session = log_in(&pkcs11, slot);
    hmac_key(&session, "other", 3);
    hmac_key(&session, "mine", 4);
    let label = [Attribute::Label("mine".into())];
    let signer = Signer::new(&pkcs11, slot, &label, &Mechanism::Sha256Hmac).expect("a signer");
    let before = signer.sign(b"data").expect("a MAC");
    pkcs11.clone().finalize().expect("finalize");
    assert!(signer.sign(b"data").is_err());
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).expect("initialize again");
    let session = log_in(&pkcs11, slot);
    // A search the other way round gives the handles in another order.
    session.find_objects(&[Attribute::Label("other".into())]).expect("search");
    assert_eq!(signer.sign(b"data").expect("a MAC"), before);
}

#[test]
fn instances_in_one_process_know_nothing_of_each_other() {
    let (first, second) = (Tokens::new(2), Tokens::new(2));
    let ((one, slot_one), (two, slot_two)) = (start(&first), start(&second));
    let (session_one, session_two) = (log_in(&one, slot_one), log_in(&two, slot_two));
    hmac_key(&session_one, "mine", 1);
    let label = [Attribute::Label("mine".into())];
    assert_eq!(session_one.find_objects(&label).expect("search").len(), 1);
    assert_eq!(session_two.find_objects(&label).expect("search").len(), 0);
    assert_eq!(one.shutdown(Duration::from_secs(5)).expect("shutdown"), Vec::<String>::new());
    assert!(!one.is_initialized());
    let gone = session_one.find_objects(&label);
    assert!(matches!(gone, Err(Error::Pkcs11(RvError::CryptokiNotInitialized, _))), "{gone:?}");
    assert_eq!(session_two.find_objects(&label).expect("the other lives").len(), 0);
}

#[test]
fn a_session_of_before_is_not_one_of_after() {
    let tokens = Tokens::new(2);
    let (pkcs11, slot) = start(&tokens);
    let old = log_in(&pkcs11, slot);
    pkcs11.clone().finalize().expect("finalize");
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).expect("initialize again");
    let new = log_in(&pkcs11, slot);
    let answer = old.get_session_info();
    assert!(matches!(answer, Err(Error::Pkcs11(RvError::CryptokiNotInitialized, _))), "{answer:?}");
    // Dropping it must not close the new session, which may have the same number.
    drop(old);
    new.get_session_info().expect("the new session is open");
}

#[test]
fn a_wrong_configuration_is_told_by_initialize() {
    let args = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
    let missing = Pkcs11::new("/nonexistent/ha.toml").expect("nothing is read yet").initialize(args);
    assert!(matches!(missing, Err(Error::Pkcs11(RvError::GeneralError, _))), "{missing:?}");
}
