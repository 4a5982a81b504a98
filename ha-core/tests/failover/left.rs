//! Calls that are left behind: what hangs in a member that answers otherwise, and what becomes of what returns too late.

use std::process::Command;
use std::sync::Arc;

use ha_core::config::{Config, InstanceMode};
use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_core::seam::System;
use ha_member::ModuleConnector;
use ha_rig::{Gate, Hooked, PIN, Tokens};
use ha_token::{
    Attribute, Connector, Function, Mechanism, ObjectHandle, Rv, SessionHandle, Template, TemplateExt, Token,
    UserType, ck,
};

use super::load::{make_and_serve, wait_until};

const SOON: &str = "[group.recovery]\ninterval = \"50ms\"\nmax_interval = \"200ms\"";

/// A group over tokens, each behind a gate.
struct Group {
    provider: Arc<Provider>,
    slot: Arc<dyn Token>,
    session: SessionHandle,
    gates: Vec<Gate>,
    _tokens: Option<Tokens>,
}

impl Group {
    fn member(&self, index: usize) -> &Arc<ha_core::group::Member> {
        self.provider.groups()[0].members.get(index).unwrap()
    }

    fn log_in(&self) {
        self.slot.login(self.session, UserType::User, Some(PIN.as_bytes())).unwrap();
    }

    fn is_up(&self, index: usize) -> bool {
        self.member(index).state() == State::Up
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.gates.iter().for_each(Gate::open);
    }
}

fn gated(tokens: Tokens, group: &str) -> Group {
    let config = Config::parse(&tokens.config(false, group)).unwrap();
    gated_as(config, Some(tokens))
}

fn gated_as(config: Config, tokens: Option<Tokens>) -> Group {
    let members = &config.groups[0].members;
    let gates: Vec<Gate> = members.iter().map(|_| Gate::default()).collect();
    let gated = |(member, gate): (_, &Gate)| -> Box<dyn Connector> {
        let real: ModuleConnector = ha_core::provider::connector(member);
        Box::new(Hooked { real, hook: gate.clone() })
    };
    let connectors = members.iter().zip(&gates).map(gated).collect();
    let provider = Arc::new(Provider::with_members(config, System::new(), vec![connectors]).unwrap());
    let slot = Arc::clone(provider.slot(0).unwrap()) as Arc<dyn Token>;
    let session = slot.open_session(true).unwrap();
    let group = Group { provider, slot, session, gates, _tokens: tokens };
    wait_until("all are up", || (0..group.gates.len()).all(|index| group.is_up(index)));
    group
}

fn session_key() -> Template {
    vec![Attribute::ulong(ck::CKA_VALUE_LEN, 32), Attribute::bool(ck::CKA_TOKEN, false)]
}

fn make_key(slot: &dyn Token, session: SessionHandle) -> ha_token::Result<ObjectHandle> {
    slot.generate_key(session, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &session_key())
}

/// Everybody who uses what hangs would wait a deadline otherwise, again and again.
#[test]
fn a_member_that_hangs_in_one_function_is_not_taken_back_while_it_does() {
    let group = gated(Tokens::new(2), &format!("deadline = \"1s\"\nbalance = \"primary\"\n{SOON}"));
    let before = group.member(0).link().unwrap().generation;
    group.gates[0].shut_to(&[Function::GenerateRandom]);
    group.slot.generate_random(group.session, &mut [0; 8]).unwrap();
    wait_until("it is used again", || group.is_up(0));
    assert_ne!(group.member(0).link().unwrap().generation, before, "it was connected anew");
}

/// What is slow but for a moment is not connected anew.
#[test]
fn a_member_whose_late_call_returns_goes_on_as_it_was() {
    let group = gated(Tokens::new(2), "deadline = \"3s\"\nbalance = \"primary\"\n");
    let before = group.member(0).link().unwrap().generation;
    group.gates[0].shut_to(&[Function::GenerateRandom]);
    group.slot.generate_random(group.session, &mut [0; 8]).unwrap();
    assert!(!group.is_up(0));
    group.gates[0].open();
    wait_until("it is used again", || group.is_up(0));
    assert_eq!(group.member(0).link().unwrap().generation, before);
}

/// One error beside a key that takes its time.
#[test]
fn a_change_that_somebody_waits_for_keeps_no_member_out() {
    let group = gated(Tokens::new(1), &format!("deadline = \"2s\"\ngenerate_deadline = \"off\"\n{SOON}"));
    group.log_in();
    group.gates[0].shut_to(&[Function::GenerateKey]);
    let (slot, session) = (Arc::clone(&group.slot), group.slot.open_session(true).unwrap());
    let key = std::thread::spawn(move || make_key(&*slot, session).map(drop));
    wait_until("a key is being made", || group.gates[0].begun(Function::GenerateKey) == 1);
    let member = group.member(0);
    group.provider.groups()[0].blame(member, Function::Sign, Rv::DEVICE_ERROR);
    wait_until("it is used again", || group.is_up(0));
    assert_eq!(group.gates[0].returned(Function::GenerateKey), 0);
    group.gates[0].open();
    assert_eq!(key.join().unwrap(), Ok(()));
}

/// Which PIN the token has nothing tells while its change is under way.
#[test]
fn no_pin_is_tried_while_its_change_is_being_made() {
    let group = gated(Tokens::new(2), &format!("deadline = \"2s\"\n{SOON}"));
    group.log_in();
    let logins = || group.gates[1].begun(Function::Login);
    let before = logins();
    group.gates[1].shut_to(&[Function::SetPin, Function::Initialize]);
    let answer = group.slot.set_pin(group.session, Some(PIN.as_bytes()), Some(b"99887766"));
    assert_eq!(answer, Err(Rv::DEVICE_ERROR), "in the standard's words");
    assert_eq!(logins(), before);
    assert_eq!(group.gates[0].begun(Function::SetPin), 2, "the other one has its old PIN again");
}

/// Threads that want a login made again on a member that hangs wait for it once, not one after the other.
#[test]
fn who_waits_with_others_for_a_login_waits_once() {
    let group = gated(
        Tokens::new(2),
        "deadline = \"1s\"\nbalance = \"primary\"\n[group.recovery]\nmode = \"manual\"\n",
    );
    group.log_in();
    let sessions: Vec<_> = (0..8).map(|_| group.slot.open_session(false).unwrap()).collect();
    let logins = || group.gates[0].begun(Function::Login);
    let before = logins();
    group.member(0).link().unwrap().doubt_login();
    group.gates[0].shut_to(&[Function::Login, Function::Logout]);
    let threads: Vec<_> = sessions
        .into_iter()
        .map(|session| {
            let slot = Arc::clone(&group.slot);
            std::thread::spawn(move || slot.generate_random(session, &mut [0; 8]))
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), Ok(()));
    }
    let asked = logins() - before + group.gates[0].begun(Function::Logout);
    assert!(asked <= 2, "it was asked {asked} times");
}

/// Threads that make the first keys of a group wait for a member that hangs once, not one after the other.
#[test]
fn who_waits_with_others_for_the_group_keys_waits_once() {
    let group = gated(
        Tokens::new(2),
        "deadline = \"1s\"\nbalance = \"primary\"\nmin_copies = 1\n[group.recovery]\nmode = \"manual\"\n",
    );
    group.log_in();
    let sessions: Vec<_> = (0..8).map(|_| group.slot.open_session(true).unwrap()).collect();
    let looks = || group.gates[1].begun(Function::FindObjectsInit);
    let before = looks();
    group.gates[1].shut_to(&[Function::FindObjectsInit]);
    let all = Arc::new(std::sync::Barrier::new(sessions.len()));
    let threads: Vec<_> = sessions
        .into_iter()
        .map(|session| {
            let (slot, all) = (Arc::clone(&group.slot), Arc::clone(&all));
            std::thread::spawn(move || {
                all.wait();
                let mut template = session_key();
                template.set(Attribute::bool(ck::CKA_TOKEN, true));
                template.push(Attribute::bool(ck::CKA_ENCRYPT, true));
                slot.generate_key(session, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &template).map(drop)
            })
        })
        .collect();
    for thread in threads {
        // It may have group keys already: none are made beside them.
        assert_eq!(thread.join().unwrap(), Err(Rv::DEVICE_ERROR));
    }
    // Whoever began before it was found out waits with the first one.
    assert!(looks() - before <= 2, "it was asked {} times", looks() - before);
}

/// A member that is put aside for its PIN is connected anew when another PIN comes; it may hang in that.
#[test]
fn a_login_is_not_held_by_a_member_that_is_put_aside_and_hangs() {
    let tokens = Tokens::new(2);
    let (open, _) = make_and_serve(&tokens, &format!("deadline = \"2s\"\n{SOON}"));
    let (group, slot, session) = (&open.provider.groups()[0], &open.slot, open.session);
    slot.logout(session).unwrap();
    // Its server would not know of it otherwise.
    tokens.kill(1);
    tokens.bare(1, &["--change-pin", "--new-pin", "87654321"]);
    tokens.serve(1);
    wait_until("b is missed", || group.members.get(1).unwrap().state() != State::Up);
    wait_until("both are up", || group.members.iter().all(|m| m.state() == State::Up));
    slot.login(session, UserType::User, Some(PIN.as_bytes())).unwrap();
    wait_until("b is put aside", || group.members.get(1).unwrap().state() == State::Quarantined);
    slot.logout(session).unwrap();
    tokens.freeze(1);
    // The test's own end is the limit: it must come back while the member hangs.
    _ = slot.login(session, UserType::User, Some(b"87654321"));
    tokens.thaw(1);
}

/// It refuses what it lacks, and is connected anew for that: but not while nobody else serves (guarantee G4).
#[test]
fn a_member_that_refuses_writes_is_not_connected_anew_while_it_alone_serves() {
    let group = gated(
        Tokens::new(2),
        "deadline = \"off\"\nmin_copies = 1\n[group.recovery]\ninterval = \"1ms\"\nmax_interval = \"2ms\"",
    );
    group.log_in();
    let data: Template = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bytes(ck::CKA_VALUE, *b"destroyed on b alone"),
    ];
    let object = group.slot.create_object(group.session, &data).unwrap();
    group.gates[0].fails(&[(Function::DestroyObject, Rv::GENERAL_ERROR)]);
    group.slot.destroy_object(group.session, object).unwrap();
    let generation = || group.member(0).link().map(|link| link.generation);
    let first = generation();
    wait_until("it was connected anew", || group.is_up(0) && generation() != first);
    group.gates[1].fails(&[(Function::GetTokenInfo, Rv::DEVICE_ERROR)]);
    group.provider.groups()[0].blame(group.member(1), Function::Sign, Rv::DEVICE_ERROR);
    wait_until("the other one is down", || group.member(1).state() == State::Down);
    wait_until("it is up", || group.is_up(0));
    let (last, tries) = (generation(), group.gates[0].begun(Function::DestroyObject));
    // The more tries there were, the rarer a new connection is made.
    wait_until("it was tried", || group.gates[0].begun(Function::DestroyObject) > 2 * tries + 20);
    assert_eq!(generation(), last);
}

/// In an instance that others go on using a connection's sessions would stay open.
#[test]
fn a_connection_that_is_replaced_leaves_no_session_in_a_shared_instance() {
    const NAME: &str = "left::a_connection_that_is_replaced_leaves_no_session_in_a_shared_instance";
    // The process's one instance has the process's environment, which the tests beside this one
    // change while they load their members.
    let Ok(text) = std::env::var("LEFT_CONFIG") else {
        let tokens = Tokens::new(1);
        let mut inner = Command::new(std::env::current_exe().unwrap());
        inner.args([NAME, "--exact", "--nocapture"]).env("SOFTHSM2_CONF", tokens.conf(0));
        let text = tokens.config(false, &format!("deadline = \"2s\"\n{SOON}"));
        let inner = inner.env("LEFT_CONFIG", text).output().unwrap();
        assert!(inner.status.success(), "{}", String::from_utf8_lossy(&inner.stderr));
        return;
    };
    let mut config = Config::parse(&text).unwrap();
    for member in &mut config.groups[0].members {
        member.instance = InstanceMode::Shared;
        member.env.clear();
    }
    let group = gated_as(config, None);
    let open = || {
        let token = Arc::clone(&group.member(0).link().unwrap().token);
        (1..400).filter(|handle| token.session_info(SessionHandle(*handle)).is_ok()).count()
    };
    let sessions: Vec<_> = (0..10).map(|_| group.slot.open_session(false).unwrap()).collect();
    let use_all = || {
        for session in &sessions {
            group.slot.generate_random(*session, &mut [0; 8]).unwrap();
        }
        open()
    };
    let before = use_all();
    for _ in 0..3 {
        let generation = group.member(0).link().unwrap().generation;
        group.gates[0].fails(&[(Function::GetTokenInfo, Rv::DEVICE_ERROR)]);
        group.provider.groups()[0].blame(group.member(0), Function::Sign, Rv::DEVICE_ERROR);
        wait_until("it is down", || group.member(0).state() == State::Down);
        group.gates[0].fails(&[]);
        wait_until("it is connected anew", || {
            group.is_up(0) && group.member(0).link().is_some_and(|link| link.generation != generation)
        });
        assert_eq!(use_all(), before);
    }
}

/// The modules of a process that ends go with it: what was left behind in one is waited for.
#[test]
fn an_exit_while_a_call_that_was_left_behind_is_in_a_module_crashes_nothing() {
    const NAME: &str = "left::an_exit_while_a_call_that_was_left_behind_is_in_a_module_crashes_nothing";
    if let Ok(text) = std::env::var("LEFT_CONFIG") {
        let provider = Provider::from_config(Config::parse(&text).unwrap()).unwrap();
        let slot = Arc::clone(provider.slot(0).unwrap());
        let session = slot.open_session(true).unwrap();
        slot.login(session, UserType::User, Some(PIN.as_bytes())).unwrap();
        let public =
            vec![Attribute::ulong(ck::CKA_MODULUS_BITS, 2048), Attribute::bool(ck::CKA_TOKEN, false)];
        let mut mechanism = Mechanism::plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN);
        let made = slot.generate_key_pair(session, &mut mechanism, &public, &Template::new());
        assert_eq!(made.map(drop), Err(Rv::DEVICE_ERROR), "it takes longer than 2 ms");
        std::mem::forget(provider);
        std::process::exit(42);
    }
    let ended: Vec<_> = (0..8)
        .map(|_| {
            let tokens = Tokens::new(2);
            let text =
                tokens.config(false, &format!("deadline = \"5s\"\ngenerate_deadline = \"2ms\"\n{SOON}"));
            let mut inner = Command::new(std::env::current_exe().unwrap());
            let inner =
                inner.args([NAME, "--exact", "--nocapture"]).env("LEFT_CONFIG", &text).output().unwrap();
            (inner.status.code(), String::from_utf8_lossy(&inner.stderr).into_owned())
        })
        .collect();
    for (code, said) in ended {
        assert_eq!(code, Some(42), "{said}");
    }
}
