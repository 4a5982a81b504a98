//! Several of them in one process, starting and ending, and what is refused.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;

use ha_member::ModuleConnector;
use ha_rig::Store;
use ha_token::{ConnectError, Connector as _, Rv, ck};

use crate::bench::{Bench, LABEL, config, configure, library};

#[test]
fn two_in_one_process_have_a_module_and_rules_each() {
    let (one, two) = (Bench::new(&["C_Digest error CKR_DEVICE_ERROR"]), Bench::new(&[]));
    let serial = |bench: &Bench| bench.token.token_info().unwrap().serial;
    assert_ne!(serial(&one), serial(&two));
    two.ec();
    assert_eq!(one.find(ck::CKO_PRIVATE_KEY).unwrap(), []);
    assert_eq!(two.find(ck::CKO_PRIVATE_KEY).unwrap().len(), 1);
    assert_eq!((one.digest(), two.digest().map(|d| d.len())), (Err(Rv::DEVICE_ERROR), Ok(32)));
    one.connector.disconnect();
    two.digest().unwrap();
    assert_eq!(two.say("count").matches("C_Digest 2").count(), 1, "{}", two.say("count"));
}

#[test]
fn the_socket_is_there_from_initialize_to_finalize_and_rules_outlive_it() {
    let bench = Bench::new(&[]);
    let mode = std::fs::symlink_metadata(&bench.socket).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(bench.say("add C_Digest error CKR_DEVICE_ERROR"), "ok 1");
    assert!(bench.say("add C_Digest").starts_with("error "));
    bench.connector.disconnect();
    assert!(!bench.socket.exists());
    let token = bench.connector.connect().unwrap();
    let s = token.open_session(true).unwrap();
    let again = Bench { token, s, ..bench };
    assert_eq!(again.digest(), Err(Rv::DEVICE_ERROR));
    assert_eq!(again.say("reset"), "ok");
    again.digest().unwrap();
}

#[test]
fn one_client_that_says_nothing_keeps_nobody_waiting() {
    let bench = Bench::new(&[]);
    let mut silent = UnixStream::connect(&bench.socket).unwrap();
    silent.write_all(b"li").unwrap();
    assert_eq!(bench.say("list"), "ok");
    silent.write_all(b"st\nhelp\n").unwrap();
    let mut text = [0; 5];
    silent.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"ok\nok");
    let mut endless = UnixStream::connect(&bench.socket).unwrap();
    // Cut off in the end, whatever part of it was written.
    _ = (0..100).try_for_each(|_| endless.write_all(&[b'x'; 4096]));
    assert_eq!(bench.say("list"), "ok");
}

/// Two with one socket are one token: what is said to one holds for both, and when one ends the other answers.
#[test]
fn those_with_one_socket_share_their_rules() {
    let one = Bench::new(&[]);
    let conf = one.store.dir().join("faulty.toml");
    let connector = ModuleConnector::new(config(&one.store, &conf, LABEL));
    let token = connector.connect().unwrap();
    let random = || {
        let s = token.open_session(false).unwrap();
        token.generate_random(s, &mut [0; 8])
    };
    random().unwrap();
    assert_eq!(one.say("add C_GenerateRandom error CKR_DEVICE_ERROR count=2"), "ok 1");
    assert_eq!(random(), Err(Rv::DEVICE_ERROR));
    assert_eq!(one.token.generate_random(one.s, &mut [0; 8]), Err(Rv::DEVICE_ERROR));
    random().unwrap();
    one.connector.disconnect();
    while !one.socket.exists() {
        std::thread::yield_now();
    }
    assert!(one.told("hit 2"), "the other one answers");
}

#[test]
fn what_is_wrong_is_refused() {
    let store = Store::with(&[LABEL]);
    let connect = |conf: &std::path::Path| {
        ModuleConnector::new(config(&store, conf, LABEL)).connect().map(drop).map_err(|e| match e {
            ConnectError::Call { rv, .. } => rv,
            other => panic!("{other}"),
        })
    };
    let general = Err(Rv::GENERAL_ERROR);
    assert_eq!(connect(&store.dir().join("absent.toml")), general);
    assert_eq!(connect(&configure(&store, "", &["C_Sign explode"])), general);
    assert_eq!(connect(&configure(&store, "unknown = 1", &[])), general);
    connect(&configure(&store, "", &[])).unwrap();

    // Itself, under another name.
    let copy = store.dir().join("copy.so");
    std::fs::copy(library(), &copy).unwrap();
    let conf = store.dir().join("itself.toml");
    std::fs::write(&conf, format!("module = {copy:?}")).unwrap();
    ha_rig::set_mode(&conf, 0o600);
    assert_eq!(connect(&conf), general);

    // A folder in which others may write.
    let folder = store.dir().join("open");
    std::fs::create_dir(&folder).unwrap();
    let conf = configure(&store, &format!("socket = {:?}", folder.join("s")), &[]);
    for (mode, expected) in [(0o777, general), (0o1777, general), (0o755, Ok(()))] {
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(connect(&conf), expected, "{mode:o}");
    }
}
