//! Where PINs go, and where they do not (guarantee G6), on real tokens that answer otherwise when told to.
#![allow(missing_docs, clippy::unwrap_used)]

mod watched;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_core::policy::health::State;
use ha_core::provider::{Provider, connector};
use ha_rig::{Act, PIN, SO_PIN, Tokens, Watch};
use ha_token::*;
use watched::{lose, lose_and_find, start, start_with, wait};

const USER: UserType = UserType::User;
const WRONG: &[u8] = b"9999";
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// Members that are in quarantine are looked at again without much ado.
const SOON: &str = "[group.recovery]\ninterval = \"5ms\"\nmax_interval = \"20ms\"";
const NO_THREADS: &str = "[group.recovery]\nmode = \"manual\"\ninterval = \"1ms\"";

fn open(provider: &Provider) -> (Arc<dyn Token>, SessionHandle) {
    let slot = Arc::clone(provider.slot(0).unwrap());
    let s = slot.open_session(true).unwrap();
    (slot, s)
}

fn pin() -> Option<&'static [u8]> {
    Some(PIN.as_bytes())
}

fn all_up(provider: &Provider) {
    wait(&provider.groups()[0], "every member is up", |g| g.up().count() == g.members.len());
}

/// How often this PIN was sent since the last look, for whatever.
fn times(watch: &Watch, pin: &[u8]) -> usize {
    watch.sent().iter().filter(|(_, _, p)| p.as_deref() == Some(pin)).count()
}

/// Changes a token's user PIN as another process would.
fn rotate(tokens: &Tokens, member: usize, old: &[u8], new: &[u8]) {
    let config = ha_core::config::Config::parse(&tokens.config(false, "")).unwrap();
    let other = connector(&config.groups[0].members[member]);
    let token = other.connect().unwrap();
    let s = token.open_session(true).unwrap();
    token.set_pin(s, Some(old), Some(new)).unwrap();
    other.disconnect();
}

/// The configuration with a line more for one member.
fn with_member_line(text: &str, name: &str, line: &str) -> String {
    let head = format!("name = \"{name}\"\n");
    assert!(text.contains(&head));
    text.replace(&head, &format!("{head}{line}\n"))
}

fn with_own_pin(tokens: &Tokens, text: &str, name: &str, pin: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let file = tokens.path().join(format!("pin-{name}"));
    std::fs::write(&file, pin).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    with_member_line(text, name, &format!("pin = {{ file = {file:?} }}"))
}

/// A pair whose private key wants a login for each use.
fn careful_pair(slot: &dyn Token, s: SessionHandle) -> ObjectHandle {
    let yes = |kind| Attribute::bool(kind, true);
    let public = vec![yes(ck::CKA_TOKEN), yes(ck::CKA_VERIFY), Attribute::bytes(ck::CKA_EC_PARAMS, P256)];
    let private =
        vec![yes(ck::CKA_TOKEN), yes(ck::CKA_PRIVATE), yes(ck::CKA_SIGN), yes(ck::CKA_ALWAYS_AUTHENTICATE)];
    let mut mechanism = Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN);
    slot.generate_key_pair(s, &mut mechanism, &public, &private).unwrap().1
}

fn begin(slot: &dyn Token, s: SessionHandle, kind: OpKind, mechanism: Ulong, key: ObjectHandle) {
    slot.op_init(s, kind, Some(&mut Mechanism::plain(mechanism)), key).unwrap();
}

fn finish(slot: &dyn Token, s: SessionHandle, kind: OpKind, input: &[u8]) -> Result<Vec<u8>> {
    let mut space = [0; 512];
    let mut out = Output::buffer(&mut space);
    slot.op_one_shot(s, kind, input, &mut out)?;
    Ok(out.written().to_vec())
}

// A member that is still logged in looks at no PIN.

#[test]
fn a_member_that_could_not_be_logged_out_does_not_take_any_pin_for_right() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    for member in &members {
        member.next(Function::Logout, Act::Answer(Rv::DEVICE_ERROR));
    }
    slot.logout(s).unwrap();
    all_up(&provider);
    members.iter().for_each(|m| drop(m.sent()));
    assert_eq!(slot.login(s, USER, Some(WRONG)), Err(Rv::PIN_INCORRECT));
    let sent: usize = members.iter().map(|m| times(m, WRONG)).sum();
    assert_eq!(sent, 1, "to one member");
    slot.login(s, USER, pin()).unwrap();
}

#[test]
fn a_logout_is_not_missed_by_a_member_that_is_coming_back() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    let group = &provider.groups()[0];
    lose(group, 0, &members[0]);
    let late = Arc::clone(&slot);
    // It is logged in again, and catching up.
    members[0].next(Function::FindObjectsInit, Act::First(Box::new(move || late.logout(s).unwrap())));
    members[0].dead.store(false, Ordering::Release);
    all_up(&provider);
    let real = members[0].real();
    let state = real.session_info(real.open_session(true).unwrap()).unwrap().state;
    assert_eq!(state, ck::CKS_RW_PUBLIC_SESSION, "it is logged out when it is up");
    members.iter().for_each(|m| drop(m.sent()));
    assert_eq!(slot.login(s, USER, Some(WRONG)), Err(Rv::PIN_INCORRECT));
    assert_eq!(times(&members[1], WRONG), 0);
    slot.login(s, USER, pin()).unwrap();
}

#[test]
fn the_hosts_login_to_a_shared_instance_says_nothing_of_a_pin_and_is_left_to_it() {
    let tokens = Tokens::new(2);
    let (provider, members) =
        start_with(&tokens.config(false, ""), |m| m[0].shared.store(true, Ordering::Release));
    let (slot, s) = open(&provider);
    let host = members[0].real();
    let hosts = host.open_session(true).unwrap();
    host.login(hosts, USER, pin()).unwrap();
    assert_eq!(slot.login(s, USER, Some(WRONG)), Err(Rv::PIN_INCORRECT), "the other one judges");
    slot.login(s, USER, pin()).unwrap();
    slot.logout(s).unwrap();
    assert_eq!(host.session_info(hosts).unwrap().state, ck::CKS_RW_USER_FUNCTIONS);
    // Once the host has logged out, the member judges, and is logged out with the group.
    host.logout(hosts).unwrap();
    slot.login(s, USER, pin()).unwrap();
    slot.logout(s).unwrap();
    assert_eq!(host.session_info(hosts).unwrap().state, ck::CKS_RW_PUBLIC_SESSION);
}

#[test]
fn where_only_the_host_could_judge_a_pin_nobody_does() {
    let tokens = Tokens::new(1);
    let (provider, members) =
        start_with(&tokens.config(false, ""), |m| m[0].shared.store(true, Ordering::Release));
    let (slot, s) = open(&provider);
    let host = members[0].real();
    let hosts = host.open_session(true).unwrap();
    host.login(hosts, USER, pin()).unwrap();
    for given in [WRONG, PIN.as_bytes()] {
        assert_eq!(slot.login(s, USER, Some(given)), Err(Rv::USER_ALREADY_LOGGED_IN));
        assert_eq!(slot.session_info(s).unwrap().state, ck::CKS_RW_PUBLIC_SESSION);
    }
}

// What is remembered.

#[test]
fn an_answer_that_does_not_speak_of_the_pin_is_not_held_against_it() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    for rv in [
        Rv::USER_PIN_NOT_INITIALIZED,
        Rv::SESSION_READ_ONLY_EXISTS,
        Rv::PIN_LOCKED,
        Rv::USER_TYPE_INVALID,
        Rv::USER_TOO_MANY_TYPES,
    ] {
        // What SoftHSM says while another process writes is asked for again, for a while.
        let times = if rv == Rv::USER_PIN_NOT_INITIALIZED { 7 } else { 1 };
        for member in &members {
            (0..times).for_each(|_| member.next(Function::Login, Act::Answer(rv)));
        }
        assert_eq!(slot.login(s, USER, pin()), Err(rv));
        slot.login(s, USER, pin()).unwrap();
        slot.logout(s).unwrap();
    }
    // Another user is logged in, and can be logged out.
    members[0].next(Function::Login, Act::Answer(Rv::USER_ANOTHER_ALREADY_LOGGED_IN));
    slot.login(s, USER, pin()).unwrap();
    slot.logout(s).unwrap();
    members[0].next(Function::Login, Act::Answer(Rv::FUNCTION_CANCELED));
    assert_eq!(slot.login(s, USER, pin()), Err(Rv::FUNCTION_CANCELED), "what the user does ends it");
    slot.login(s, USER, pin()).unwrap();
}

#[test]
fn a_refused_pin_is_answered_as_it_was_refused() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    members[0].next(Function::Login, Act::Answer(Rv::PIN_EXPIRED));
    for _ in 0..2 {
        assert_eq!(slot.login(s, USER, Some(WRONG)), Err(Rv::PIN_EXPIRED));
    }
    assert_eq!(times(&members[0], WRONG) + times(&members[1], WRONG), 1);
}

#[test]
fn a_member_whose_pin_is_locked_leaves_the_login_to_another_one() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    for _ in 0..2 {
        members[0].next(Function::Login, Act::Answer(Rv::PIN_LOCKED));
    }
    slot.login(s, USER, pin()).unwrap();
    assert_eq!(provider.groups()[0].members[0].state(), State::Quarantined);
    // Given anew, it may be sent again.
    slot.logout(s).unwrap();
    slot.login(s, USER, pin()).unwrap();
    all_up(&provider);
}

// Members with a PIN of their own.

#[test]
fn a_member_whose_own_pin_cannot_be_read_is_sent_no_other_one() {
    let tokens = Tokens::new(2);
    let text =
        with_member_line(&tokens.config(false, SOON), "a", "pin = { file = \"/nonexistent/pkcs11-ha/pin\" }");
    let (provider, members) = start(&text);
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    assert_eq!(members[0].sent(), []);
    assert_eq!(provider.groups()[0].members[0].state(), State::Quarantined);
    let reason = provider.groups()[0].members[0].connect_error().unwrap();
    assert!(reason.contains("configured `pin` cannot be had"), "{reason}");
}

#[test]
fn a_member_with_its_own_pin_gets_that_for_the_use_of_a_key_and_in_a_proof() {
    let own = "own-pin-of-a";
    let tokens = Tokens::new(2);
    rotate(&tokens, 0, PIN.as_bytes(), own.as_bytes());
    let text = with_own_pin(&tokens, &tokens.config(false, "balance = \"round-robin\""), "a", own);
    let (provider, members) = start(&text);
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    let key = careful_pair(&*slot, s);
    for n in 0..8 {
        // Of an operation that has begun on either member, and one that a member takes over.
        members.iter().for_each(|m| drop(m.calls()));
        begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
        slot.login(s, UserType::ContextSpecific, pin()).unwrap();
        if n % 2 == 1 {
            let there = members.iter().find(|m| m.calls().contains(&Function::SignInit)).unwrap();
            there.next(Function::Sign, Act::Answer(Rv::DEVICE_ERROR));
        }
        finish(&*slot, s, OpKind::Sign, &[7; 32]).unwrap();
        all_up(&provider);
    }
    let words = provider.groups()[0].check(true).unwrap();
    assert!(words.iter().all(|c| c.worst() == ha_core::group::Word::Same), "{words:?}");
    let sent = members[0].sent();
    let contexts = sent.iter().filter(|(_, user, _)| *user == UserType::ContextSpecific).count();
    assert!(contexts > 2, "{sent:?}");
    assert!(sent.iter().all(|(_, _, p)| p.as_deref() == Some(own.as_bytes())), "{sent:?}");
    assert!(members[1].sent().iter().all(|(_, _, p)| p.as_deref() == pin()));
    // What is not the login's is judged by the member that has no PIN of its own, once.
    for _ in 0..3 {
        begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
        assert_eq!(slot.login(s, UserType::ContextSpecific, Some(WRONG)), Err(Rv::PIN_INCORRECT));
        slot.op_init(s, OpKind::Sign, None, key).unwrap();
    }
    assert_eq!((times(&members[0], WRONG), times(&members[1], WRONG)), (0, 1));
}

// The last try.

#[test]
fn no_pin_is_sent_where_it_could_be_the_last_try() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    let key = careful_pair(&*slot, s);
    let last = |on: bool| {
        for member in &members {
            member.flags.store(if on { ck::CKF_USER_PIN_FINAL_TRY } else { 0 }, Ordering::Release);
            drop(member.sent());
        }
    };
    let none = || members.iter().all(|m| m.sent().is_empty());
    begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
    last(true);
    assert_eq!(slot.login(s, UserType::ContextSpecific, pin()), Err(Rv::PIN_LOCKED));
    assert_eq!(slot.set_pin(s, pin(), Some(b"5678")), Err(Rv::PIN_LOCKED));
    slot.logout(s).unwrap();
    assert_eq!(slot.login(s, USER, pin()), Err(Rv::PIN_LOCKED));
    assert!(none());
    last(false);
    slot.login(s, USER, pin()).unwrap();
}

// The login for a key's use.

#[test]
fn a_login_for_a_keys_use_goes_to_the_operation_that_was_started_last() {
    let tokens = Tokens::new(2);
    let (provider, _members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    let key = careful_pair(&*slot, s);
    let yes = |kind| Attribute::bool(kind, true);
    let secret = vec![Attribute::ulong(ck::CKA_VALUE_LEN, 32), yes(ck::CKA_ENCRYPT), yes(ck::CKA_DECRYPT)];
    let secret = slot.generate_key(s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &secret).unwrap();
    let public = vec![yes(ck::CKA_ENCRYPT), Attribute::ulong(ck::CKA_MODULUS_BITS, 2048)];
    let private = vec![yes(ck::CKA_DECRYPT), yes(ck::CKA_ALWAYS_AUTHENTICATE)];
    let mut generate = Mechanism::plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN);
    let (rsa_public, rsa) = slot.generate_key_pair(s, &mut generate, &public, &private).unwrap();
    begin(&*slot, s, OpKind::Encrypt, ck::CKM_RSA_PKCS, rsa_public);
    let sealed = finish(&*slot, s, OpKind::Encrypt, b"sealed").unwrap();

    // Both keys want a login: it is the later one's, in either order.
    begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
    begin(&*slot, s, OpKind::Decrypt, ck::CKM_RSA_PKCS, rsa);
    slot.login(s, UserType::ContextSpecific, pin()).unwrap();
    assert_eq!(finish(&*slot, s, OpKind::Decrypt, &sealed).unwrap(), b"sealed");
    slot.login(s, UserType::ContextSpecific, pin()).unwrap();
    finish(&*slot, s, OpKind::Sign, &[7; 32]).unwrap();
    // Of a later key that wants none it is not.
    begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
    begin(&*slot, s, OpKind::Encrypt, ck::CKM_AES_ECB, secret);
    slot.login(s, UserType::ContextSpecific, pin()).unwrap();
    finish(&*slot, s, OpKind::Sign, &[7; 32]).unwrap();
    finish(&*slot, s, OpKind::Encrypt, &[7; 16]).unwrap();
    assert_eq!(slot.login(s, UserType::ContextSpecific, pin()), Err(Rv::OPERATION_NOT_INITIALIZED));
}

#[test]
fn a_login_for_a_keys_use_survives_its_member_and_a_wrong_one_is_tried_once() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, "balance = \"primary\""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    let key = careful_pair(&*slot, s);
    begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
    members.iter().for_each(|m| drop(m.sent()));
    for _ in 0..3 {
        assert_eq!(slot.login(s, UserType::ContextSpecific, Some(WRONG)), Err(Rv::PIN_INCORRECT));
    }
    assert_eq!(times(&members[0], WRONG) + times(&members[1], WRONG), 1);
    // It is remembered over a login.
    slot.logout(s).unwrap();
    slot.login(s, USER, pin()).unwrap();
    let key = {
        let template = vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_PRIVATE_KEY)];
        slot.find_objects_init(s, &template).unwrap();
        let found = slot.find_objects(s, 10).unwrap();
        slot.find_objects_final(s).unwrap();
        assert_eq!((found.len(), found.contains(&key)), (1, false));
        found[0]
    };
    begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
    assert_eq!(slot.login(s, UserType::ContextSpecific, Some(WRONG)), Err(Rv::PIN_INCORRECT));
    assert_eq!(times(&members[0], WRONG) + times(&members[1], WRONG), 0);
    // The member that the operation began on dies before its login, and in between.
    members[0].dead.store(true, Ordering::Release);
    slot.login(s, UserType::ContextSpecific, pin()).unwrap();
    finish(&*slot, s, OpKind::Sign, &[7; 32]).unwrap();
    members[0].dead.store(false, Ordering::Release);
    all_up(&provider);
    begin(&*slot, s, OpKind::Sign, ck::CKM_ECDSA, key);
    slot.login(s, UserType::ContextSpecific, pin()).unwrap();
    members[0].dead.store(true, Ordering::Release);
    finish(&*slot, s, OpKind::Sign, &[7; 32]).unwrap();
    members[0].dead.store(false, Ordering::Release);
}

// Out of quarantine.

#[test]
fn a_pin_that_was_changed_elsewhere_brings_the_member_back_with_the_next_login() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, SOON));
    let (slot, s) = open(&provider);
    let group = &provider.groups()[0];
    slot.login(s, USER, pin()).unwrap();
    for member in [0, 1] {
        rotate(&tokens, member, PIN.as_bytes(), b"changed");
    }
    drop(members[1].sent());
    lose_and_find(group, 1, &members[1]);
    wait(group, "it refuses the PIN", |g| g.members[1].state() == State::Quarantined);
    // It is looked at again and again, and not sent the PIN.
    let looks = members[1].connects.load(Ordering::Acquire) + 5;
    wait(group, "it was looked at", |_| members[1].connects.load(Ordering::Acquire) >= looks);
    assert_eq!(group.members[1].state(), State::Quarantined);
    assert_eq!(times(&members[1], PIN.as_bytes()), 1, "and sent no PIN");
    slot.logout(s).unwrap();
    slot.login(s, USER, Some(b"changed")).unwrap();
    all_up(&provider);
    assert_eq!(times(&members[1], PIN.as_bytes()), 0);
}

#[test]
fn a_member_that_refused_the_pin_by_mistake_is_back_with_the_next_login() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    members[1].next(Function::Login, Act::Answer(Rv::PIN_INCORRECT));
    slot.login(s, USER, pin()).unwrap();
    assert_eq!(provider.groups()[0].members[1].state(), State::Quarantined);
    slot.logout(s).unwrap();
    slot.login(s, USER, pin()).unwrap();
    all_up(&provider);
    assert_eq!(times(&members[1], PIN.as_bytes()), 2);
}

#[test]
fn what_the_operator_mends_brings_the_member_back() {
    let tokens = Tokens::new(2);
    let path = || "module".to_owned();
    let (provider, members) = start_with(&tokens.config(false, SOON), |m| {
        for _ in 0..5 {
            m[0].fail_to_connect(ConnectError::NotInitialised { path: path(), wanted: "a".into() });
            m[1].fail_to_connect(ConnectError::Ambiguous {
                path: path(),
                wanted: "b".into(),
                count: 2,
                serials: String::new(),
            });
        }
    });
    let group = &provider.groups()[0];
    wait(group, "both are up", |g| g.up().count() == 2);
    assert!(members.iter().all(|m| m.connects.load(Ordering::Acquire) == 6));
}

#[test]
fn a_member_put_aside_by_a_login_is_looked_at_again_without_another_one() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, SOON));
    let (slot, s) = open(&provider);
    // SoftHSM says so for a moment while another process writes to the token.
    members[1].next(Function::Login, Act::Answer(Rv::USER_PIN_NOT_INITIALIZED));
    slot.login(s, USER, pin()).unwrap();
    all_up(&provider);
}

// Changing PINs.

#[test]
fn a_pin_change_that_happened_without_saying_so_is_found_out() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    members[1].next(Function::SetPin, Act::DoneAndAnswer(Rv::DEVICE_ERROR));
    slot.set_pin(s, pin(), Some(b"5678")).unwrap();
    careful_pair(&*slot, s);
    slot.logout(s).unwrap();
    slot.login(s, USER, Some(b"5678")).unwrap();
    all_up(&provider);
    for member in &members {
        assert!(times(member, b"5678") > 0);
    }
}

#[test]
fn a_pin_change_that_did_not_happen_is_undone_on_the_others() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    members[1].next(Function::SetPin, Act::Answer(Rv::DEVICE_ERROR));
    assert_eq!(slot.set_pin(s, pin(), Some(b"5678")), Err(Rv::DEVICE_ERROR));
    let tried = members[1].sent();
    let tried = tried.iter().filter(|(f, _, p)| *f == Function::Login && p.as_deref() == Some(b"5678"));
    assert_eq!(tried.count(), 1, "the new PIN is tried once");
    all_up(&provider);
    slot.logout(s).unwrap();
    slot.login(s, USER, pin()).unwrap();
    all_up(&provider);
    for member in [0, 1] {
        assert!(!tokens.bare(member, &["-O"]).contains("error"), "the PIN is {PIN} on member {member}");
    }
}

#[test]
fn a_wrong_old_pin_is_sent_once() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    for _ in 0..3 {
        assert_eq!(slot.set_pin(s, Some(WRONG), Some(b"5678")), Err(Rv::PIN_INCORRECT));
    }
    assert_eq!(times(&members[0], WRONG) + times(&members[1], WRONG), 1);
    slot.set_pin(s, pin(), Some(b"5678")).unwrap();
}

#[test]
fn a_first_pin_that_was_set_without_saying_so_is_set_again() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, UserType::So, Some(SO_PIN.as_bytes())).unwrap();
    members[1].next(Function::InitPin, Act::DoneAndAnswer(Rv::DEVICE_ERROR));
    slot.init_pin(s, Some(b"5678")).unwrap();
    slot.logout(s).unwrap();
    slot.login(s, USER, Some(b"5678")).unwrap();
    all_up(&provider);
    assert!(times(&members[1], b"5678") > 1);
}

// Without threads.

#[test]
fn without_threads_a_suspect_member_is_probed_by_who_calls() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, NO_THREADS));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    let group = &provider.groups()[0];
    for _ in 0..3 {
        group.blame(&group.members[0], Function::Sign, Rv::DEVICE_ERROR);
        members[0].next(Function::GetTokenInfo, Act::Answer(Rv::DEVICE_ERROR));
        assert_eq!(group.members[0].state(), State::Suspect);
        let mut random = [0; 8];
        while group.members[0].state() != State::Up {
            slot.generate_random(s, &mut random).unwrap();
        }
    }
}

// Several threads.

#[test]
fn who_opens_and_logs_in_is_not_logged_out_by_who_closes() {
    let tokens = Tokens::new(1);
    let (provider, _members) = start(&tokens.config(false, ""));
    let slot = Arc::clone(provider.slot(0).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let s = slot.open_session(true).unwrap();
                    let state = || slot.session_info(s).unwrap().state;
                    match slot.login(s, USER, pin()) {
                        Ok(()) | Err(Rv::USER_ALREADY_LOGGED_IN) => {}
                        Err(rv) => panic!("{rv}"),
                    }
                    assert_eq!(state(), ck::CKS_RW_USER_FUNCTIONS);
                    std::thread::yield_now();
                    assert_eq!(state(), ck::CKS_RW_USER_FUNCTIONS);
                    slot.close_session(s).unwrap();
                }
            });
        }
    });
    let s = slot.open_session(true).unwrap();
    assert_eq!(slot.session_info(s).unwrap().state, ck::CKS_RW_PUBLIC_SESSION);
}

#[test]
fn a_login_of_a_session_that_was_closed_meanwhile_is_no_other_sessions() {
    let tokens = Tokens::new(1);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    let other = Arc::clone(&slot);
    members[0].next(Function::Login, Act::First(Box::new(move || other.close_session(s).unwrap())));
    _ = slot.login(s, USER, pin());
    let s = slot.open_session(true).unwrap();
    assert_eq!(slot.session_info(s).unwrap().state, ck::CKS_RW_PUBLIC_SESSION);
    slot.login(s, USER, pin()).unwrap();
}

#[test]
fn no_read_only_session_is_open_while_the_security_officer_is_logged_in() {
    let tokens = Tokens::new(1);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    for _ in 0..20 {
        let (other, (told, started)) = (Arc::clone(&slot), std::sync::mpsc::channel());
        let opening = std::thread::spawn(move || {
            // When the login has reached the token.
            started.recv().unwrap();
            other.open_session(false)
        });
        let asked = move || {
            told.send(()).unwrap();
            (0..1000).for_each(|_| std::thread::yield_now());
        };
        members[0].next(Function::Login, Act::First(Box::new(asked)));
        slot.login(s, UserType::So, Some(SO_PIN.as_bytes())).unwrap();
        assert_eq!(opening.join().unwrap(), Err(Rv::SESSION_READ_WRITE_SO_EXISTS));
        slot.logout(s).unwrap();
    }
    let read_only = slot.open_session(false).unwrap();
    let refused = slot.login(s, UserType::So, Some(SO_PIN.as_bytes()));
    assert_eq!(refused, Err(Rv::SESSION_READ_ONLY_EXISTS));
    slot.close_session(read_only).unwrap();
    slot.login(s, UserType::So, Some(SO_PIN.as_bytes())).unwrap();
}

// No PIN at all.

#[test]
fn no_pin_is_a_single_members_business() {
    let tokens = Tokens::new(1);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    assert_eq!(slot.login(s, USER, None), Err(Rv::ARGUMENTS_BAD), "what SoftHSM says, which has no PIN pad");
    assert_eq!(members[0].sent(), [(Function::Login, USER, None)]);
    slot.login(s, USER, pin()).unwrap();
}

#[test]
fn several_members_want_a_pin_and_the_log_says_for_what() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, "init_token = \"all\""));
    let events = provider.groups()[0].events();
    let slot = Arc::clone(provider.slot(0).unwrap());
    let refused = || {
        events.try_iter().find_map(|e| match e {
            ha_core::group::GroupEvent::Refused { function, .. } => Some(function),
            _ => None,
        })
    };
    assert_eq!(slot.init_token(None, "ha1"), Err(Rv::ARGUMENTS_BAD));
    assert_eq!(refused(), Some(Function::InitToken));
    let s = slot.open_session(true).unwrap();
    assert_eq!(slot.login(s, USER, None), Err(Rv::ARGUMENTS_BAD));
    assert_eq!(refused(), Some(Function::Login));
    assert_eq!(slot.set_pin(s, pin(), None), Err(Rv::ARGUMENTS_BAD));
    assert_eq!(refused(), Some(Function::SetPin));
    slot.login(s, UserType::So, Some(SO_PIN.as_bytes())).unwrap();
    assert_eq!(slot.init_pin(s, None), Err(Rv::ARGUMENTS_BAD));
    assert_eq!(refused(), Some(Function::InitPin));
    assert!(members.iter().flat_map(|m| m.sent()).all(|(_, _, p)| p.is_some()));
}

#[test]
fn a_login_brings_each_member_up_to_date_once() {
    let tokens = Tokens::new(2);
    let (provider, members) = start(&tokens.config(false, ""));
    let (slot, s) = open(&provider);
    slot.login(s, USER, pin()).unwrap();
    careful_pair(&*slot, s);
    slot.logout(s).unwrap();
    members.iter().for_each(|m| drop(m.calls()));
    slot.login(s, USER, pin()).unwrap();
    let searches = |m: &Watch| m.calls().iter().filter(|f| **f == Function::FindObjectsInit).count();
    for member in &members {
        assert_eq!(searches(member), 3, "two for the group keys, and one that counts what is there");
    }
}
