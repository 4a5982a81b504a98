//! Private and shared instances, connecting again, and what an operator is told.

mod support;

use std::sync::mpsc;

use ha_member::{Instance, ModuleConnector, tokens};
use ha_token::{ConnectError, Connector, Rv, Selector, ck};
use support::{
    Signal, Store, aes_key, by_label, config, connect, connector, find, login, remote, serve, token_label,
};

#[test]
fn two_private_instances_are_independent() {
    let (one, two) = (Store::with(&["same"]), Store::with(&["same"]));
    let (a, b) = (connector(&one, "same"), connector(&two, "same"));
    let (ta, tb) = (connect(&a), connect(&b));
    assert_ne!(ta.token_info().expect("a").serial, tb.token_info().expect("b").serial);
    let (_, sb) = (login(&*ta), login(&*tb));
    a.disconnect();
    assert_eq!(ta.token_info(), Err(Rv::CRYPTOKI_NOT_INITIALIZED));
    aes_key(&*tb, sb, true, "still here");
    a.disconnect(); // idempotent
    assert_eq!(token_label(&*connect(&a)), "same");
    assert_eq!(find(&*tb, sb, "still here").len(), 1);
    assert!(a.reinitialises());
}

#[test]
fn a_token_directory_that_went_away_and_came_back_needs_connecting_again() {
    let store = Store::with(&["lost"]);
    let connector = connector(&store, "lost");
    let token = connect(&connector);
    let session = login(&*token);
    aes_key(&*token, session, true, "kept");
    let away = store.dir().join("away");
    std::fs::rename(store.tokens(), &away).expect("moved");
    assert!(token.token_info().is_err());
    assert!(connector.connect().is_err());
    std::fs::rename(&away, store.tokens()).expect("moved back");
    let again = connect(&connector);
    assert_eq!(token.token_info(), Err(Rv::CRYPTOKI_NOT_INITIALIZED), "the old token is closed");
    let session = login(&*again);
    assert_eq!(find(&*again, session, "kept").len(), 1);
}

#[test]
fn selectors_find_or_say_why_not() {
    let store = Store::with(&["one", "two", "two"]);
    let with = |selector| ModuleConnector::new(config(&store, selector)).connect();
    let error = |selector| with(selector).map(|_| ()).expect_err("no match");
    let seen = tokens(&config(&store, Selector::default())).expect("tokens");
    assert_eq!(seen.len(), 4, "three, and SoftHSM's free slot");
    let all: Vec<_> = seen.iter().filter_map(|(slot, _, t)| Some((*slot, t.clone()?))).collect();
    let (_, one) = all.iter().find(|(_, t)| t.label == "one").expect("one");
    let (free, _) = all.iter().find(|(_, t)| t.flags & ck::CKF_TOKEN_INITIALIZED == 0).expect("free slot");

    assert_eq!(token_label(&*with(by_label("one  ")).expect("padding does not count")), "one");
    let serial = Selector { serial: Some(one.serial.clone()), ..Selector::default() };
    assert_eq!(token_label(&*with(serial.clone()).expect("by serial")), "one");
    let both = Selector { label: Some("two".into()), ..serial };
    assert!(matches!(error(both), ConnectError::NoToken { .. }));
    match error(by_label("three")) {
        ConnectError::NoToken { wanted, present, .. } => {
            assert!(wanted.contains("three") && present.contains("one") && present.contains("two"));
        }
        other => panic!("{other}"),
    }
    assert!(matches!(error(by_label("two")), ConnectError::Ambiguous { count: 2, .. }));
    let free = Selector { slot_id: Some(*free), ..Selector::default() };
    assert!(matches!(error(free), ConnectError::NotInitialised { .. }));
    assert!(matches!(error(Selector::default()), ConnectError::Ambiguous { count: 3, .. }));
}

#[test]
fn files_that_are_no_modules_are_refused() {
    let store = Store::with(&[]);
    let mut config = config(&store, by_label("x"));
    for path in ["/nowhere/module.so", "/etc/passwd"] {
        for instance in [Instance::Private, Instance::Shared, Instance::Auto] {
            (config.path, config.instance) = (path.into(), instance);
            let error = ModuleConnector::new(config.clone()).connect().map(|_| ()).expect_err("refused");
            assert!(matches!(error, ConnectError::Load { .. }), "{error}");
        }
    }
    config.path = std::env::current_exe().expect("this test, which has the library inside");
    let error = ModuleConnector::new(config).connect().map(|_| ()).expect_err("refused");
    assert!(matches!(error, ConnectError::Itself { .. }), "{error}");
}

#[test]
fn two_servers_and_one_that_dies_and_returns() {
    let (one, two) = (Store::with(&["remote-1"]), Store::with(&["remote-2"]));
    let (first, second) = (serve(&one, "remote-1"), serve(&two, "remote-2"));
    let a = ModuleConnector::new(remote(&first, "remote-1"));
    let b = ModuleConnector::new(remote(&second, "remote-2"));
    let (ta, tb) = (connect(&a), connect(&b));
    assert_eq!((token_label(&*ta), token_label(&*tb)), ("remote-1".into(), "remote-2".into()));
    let session = login(&*ta);
    aes_key(&*ta, session, true, "survives");
    drop(first);
    assert_eq!(ta.session_info(session), Err(Rv::DEVICE_ERROR));
    assert!(matches!(a.connect().map(|_| ()), Err(ConnectError::NoToken { .. } | ConnectError::Call { .. })));
    let _again = serve(&one, "remote-1");
    let ta = connect(&a);
    let session = login(&*ta);
    assert_eq!(find(&*ta, session, "survives").len(), 1);
    assert_eq!(token_label(&*tb), "remote-2");
}

#[test]
fn a_stopped_server_is_had_back_when_it_goes_on() {
    let store = Store::with(&["stopped"]);
    let server = serve(&store, "stopped");
    let connector = ModuleConnector::new(remote(&server, "stopped"));
    let token = connect(&connector);
    server.signal(Signal::STOP);
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| token.token_info());
        let tries: Vec<_> = (0..2).map(|_| scope.spawn(|| connector.connect().map(|_| ()))).collect();
        server.signal(Signal::CONT);
        let _late = hung.join().expect("no crash");
        for one in tries {
            let _overtaken = one.join().expect("no crash");
        }
    });
    assert_eq!(token_label(&*connect(&connector)), "stopped");
    assert_eq!(token.token_info(), Err(Rv::CRYPTOKI_NOT_INITIALIZED));
}

#[test]
fn calls_in_flight_end_before_the_instance_does() {
    let store = Store::with(&["busy"]);
    let connector = connector(&store, "busy");
    for _ in 0..5 {
        let token = connect(&connector);
        let (first, wait) = mpsc::channel();
        let worker = std::thread::spawn(move || {
            let session = token.open_session(false).expect("a session");
            let mut random = [0; 64];
            first.send(()).expect("listens");
            loop {
                if let Err(rv) = token.generate_random(session, &mut random) {
                    return rv;
                }
            }
        });
        wait.recv().expect("calls are under way");
        let next = connect(&connector);
        assert_eq!(worker.join().expect("no crash"), Rv::CRYPTOKI_NOT_INITIALIZED);
        assert_eq!(token_label(&*next), "busy");
    }
}

#[test]
fn many_members_connect_at_once() {
    let stores: Vec<Store> = (0..4).map(|_| Store::with(&["crowd"])).collect();
    std::thread::scope(|scope| {
        for store in &stores {
            scope.spawn(|| {
                let connector = connector(store, "crowd");
                let serial = connect(&connector).token_info().expect("information").serial;
                for _ in 0..10 {
                    assert_eq!(connect(&connector).token_info().expect("information").serial, serial);
                }
            });
        }
    });
}

#[test]
fn nothing_secret_is_shown() {
    let mut config = config(&Store::with(&[]), by_label("x"));
    config.env.push(("TOKEN_PIN".into(), "hunter2".into()));
    let connector = ModuleConnector::new(config.clone());
    let shown = format!("{config:?} {connector:?}");
    assert!(shown.contains("TOKEN_PIN") && !shown.contains("hunter2"));
}
