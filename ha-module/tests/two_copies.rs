//! A program that has the library linked in, and loads the module too: two copies with one configuration in one process.
//! The second one uses keys and leaves the ledger alone.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::alone;
use ha_core::config::Config;
use ha_core::context::{CInitializeArgs, CInitializeFlags};
use ha_core::cryptoki::context::Pkcs11 as Loaded;
use ha_core::error::{Error, RvError};
use ha_core::mechanism::Mechanism;
use ha_core::object::{Attribute, KeyType, ObjectClass};
use ha_core::session::UserType;
use ha_core::types::AuthPin;
use ha_rig::{PIN, Tokens};

fn args() -> CInitializeArgs {
    CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)
}

/// The shared object, beside this program or in the folder above.
fn module() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let folder = program.parent().unwrap();
    let places = [folder.join("libha_module.so"), folder.parent().unwrap().join("libha_module.so")];
    places.into_iter().find(|p| p.exists()).expect("libha_module.so is built with the tests")
}

fn mac_key(label: &str) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(true),
        Attribute::Sign(true),
        Attribute::Label(label.into()),
        Attribute::Value(vec![3; 32]),
    ]
}

/// A session of either library, logged in; a macro because the types are alike and not the same.
macro_rules! session {
    ($library:expr) => {{
        let slot = $library.get_slots_with_token().unwrap()[0];
        let session = $library.open_rw_session(slot).unwrap();
        session.login(UserType::User, Some(&AuthPin::new(PIN.into()))).unwrap();
        session
    }};
}

macro_rules! mac {
    ($session:expr, $label:expr) => {{
        let found = $session.find_objects(&[Attribute::Label($label.into())]).unwrap();
        assert_eq!(found.len(), 1, "{} is there once", $label);
        $session.sign(&Mechanism::Sha256Hmac, found[0], b"data").unwrap()
    }};
}

fn text(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}

#[test]
fn the_second_copy_uses_keys_and_leaves_the_ledger_alone() {
    let tokens = Tokens::new(2);
    let conf = tokens.path().join("ha.toml");
    let log = tokens.path().join("log");
    std::fs::write(
        &conf,
        tokens.config(false, "") + &format!("[log]\ntarget = \"file:{}\"\n", log.display()),
    )
    .unwrap();
    std::fs::set_permissions(&conf, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let environment: [(&str, &OsStr); 1] = [("PKCS11_HA_CONF", conf.as_os_str())];
    if !alone("the_second_copy_uses_keys_and_leaves_the_ledger_alone", &environment) {
        return;
    }
    // In the process of its own the configuration is the one that the first process made.
    let conf = PathBuf::from(std::env::var_os("PKCS11_HA_CONF").unwrap());
    let log = conf.with_file_name("log");
    let ours = ha_core::context::Pkcs11::from_config(Config::from_file(&conf).unwrap()).unwrap();
    ours.initialize(args()).unwrap();
    let session = session!(ours);
    session.create_object(&mac_key("first")).unwrap();
    let mac = mac!(session, "first");

    let theirs = Loaded::new(module()).unwrap();
    theirs.initialize(args()).unwrap();
    let said = text(&log);
    assert!(said.contains("another copy of this library in this process"), "{said}");
    let other = session!(theirs);
    assert_eq!(mac!(other, "first"), mac, "keys can be used");
    let refused = other.create_object(&mac_key("second"));
    assert!(matches!(refused, Err(Error::Pkcs11(RvError::TokenWriteProtected, _))), "{refused:?}");
    let handle = other.find_objects(&[Attribute::Label("first".into())]).unwrap()[0];
    assert!(other.destroy_object(handle).is_err());

    // The first one goes on, and another process is still kept from writing in between.
    session.create_object(&mac_key("third")).unwrap();
    assert_eq!(mac!(session, "third"), mac);
    drop(other);
    theirs.finalize().unwrap();
    session.create_object(&mac_key("fourth")).unwrap();

    // When the first has left, whoever comes next has the ledger.
    drop(session);
    assert!(ours.shutdown(Duration::from_secs(60)).unwrap().is_empty());
    let theirs = Loaded::new(module()).unwrap();
    theirs.initialize(args()).unwrap();
    let other = session!(theirs);
    for label in ["first", "third", "fourth"] {
        assert_eq!(mac!(other, label), mac);
    }
    other.create_object(&mac_key("fifth")).unwrap();
    // Now it is the linked one that comes second.
    let ours = ha_core::context::Pkcs11::from_config(Config::from_file(&conf).unwrap()).unwrap();
    ours.initialize(args()).unwrap();
    let session = session!(ours);
    assert_eq!(mac!(session, "fifth"), mac);
    assert!(session.create_object(&mac_key("sixth")).is_err());
    other.create_object(&mac_key("seventh")).unwrap();
}
