//! Keys on every member: made, proven, found, changed, destroyed; with a member away, with a token that was lost, with
//! objects from before the group (guarantees G1, G2 and G3).
#![allow(missing_docs, clippy::unwrap_used)]

mod open_group;

use std::sync::Arc;
use std::time::Duration;

use ha_core::config::Config;
use ha_core::group::Word;
use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_rig::{PIN, Tokens};
use ha_token::{Attribute, Fetched, Mechanism, OpKind, Output, Rv, Template, TemplateExt, UserType, ck};
use open_group::{Open, P256, private};

#[test]
fn every_kind_of_key_is_on_both_members_and_proven_after_a_restart() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    open.ec_pair(1).unwrap();
    let token = Attribute::bool(ck::CKA_TOKEN, true);
    let public = vec![
        token.clone(),
        Attribute::ulong(ck::CKA_MODULUS_BITS, 2048),
        Attribute::bool(ck::CKA_VERIFY, true),
    ];
    let private =
        vec![token.clone(), Attribute::bool(ck::CKA_SIGN, true), Attribute::bool(ck::CKA_EXTRACTABLE, true)];
    open.slot
        .generate_key_pair(open.s, &mut Mechanism::plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN), &public, &private)
        .unwrap();
    let secret =
        vec![token.clone(), Attribute::ulong(ck::CKA_VALUE_LEN, 32), Attribute::bool(ck::CKA_ENCRYPT, true)];
    open.slot.generate_key(open.s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &secret).unwrap();
    let mut mac = secret.clone();
    mac.set(Attribute::bool(ck::CKA_SIGN, true));
    mac.push(Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET));
    open.slot.generate_key(open.s, &mut Mechanism::plain(ck::CKM_GENERIC_SECRET_KEY_GEN), &mac).unwrap();
    let data = vec![
        token,
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bytes(ck::CKA_VALUE, *b"data"),
        Attribute::bytes(ck::CKA_LABEL, *b"d"),
    ];
    open.slot.create_object(open.s, &data).unwrap();
    assert_eq!(open.words(true), vec![Word::Same; 7]);
    drop(open);
    let again = Open::new(&tokens, "");
    assert_eq!(again.words(true), vec![Word::Same; 7]);
    assert_eq!(again.find(&Template::new()).len(), 7, "each object once, none of the group's own");
}

/// What Java does with every new key: `CKA_EXTRACTABLE` is not spoken of.
#[test]
fn a_session_object_becomes_a_token_object_on_every_member() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let (slot, s) = (&open.slot, open.s);
    let token = |id: u8| vec![Attribute::bool(ck::CKA_TOKEN, true), Attribute::bytes(ck::CKA_ID, [id])];
    let public = vec![Attribute::bytes(ck::CKA_EC_PARAMS, P256)];
    let mut generate = Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN);
    let (public, private) = slot.generate_key_pair(s, &mut generate, &public, &Vec::new()).unwrap();
    let secret = vec![Attribute::ulong(ck::CKA_VALUE_LEN, 32), Attribute::bool(ck::CKA_ENCRYPT, true)];
    let secret = slot.generate_key(s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &secret).unwrap();
    let data = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bytes(ck::CKA_VALUE, *b"data"),
        Attribute::bytes(ck::CKA_LABEL, *b"data"),
    ];
    let data = slot.create_object(s, &data).unwrap();

    let says = |object, kind| match &slot.get_attributes(s, object, &[kind]).unwrap()[0] {
        ha_token::Fetched::Value(value) => value.as_bytes().unwrap().to_vec(),
        other => panic!("{other:?}"),
    };
    let wrapping = [ck::CKA_WRAP, ck::CKA_UNWRAP].map(|k| Attribute::bool(k, true));
    let mut wrapping = wrapping.to_vec();
    wrapping.push(Attribute::ulong(ck::CKA_VALUE_LEN, 32));
    let wrapping = slot.generate_key(s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &wrapping).unwrap();
    for (key, id) in [(private, 1), (secret, 2)] {
        let kept = slot.copy_object(s, key, &token(id)).unwrap();
        let again = slot.copy_object(s, key, &Vec::new()).unwrap();
        // As on a bare token, whose default is that a key may not be extracted.
        for key in [key, again, kept] {
            assert_eq!(says(key, ck::CKA_EXTRACTABLE), [0]);
            let mut mechanism = Mechanism::plain(ck::CKM_AES_KEY_WRAP);
            let mut space = [0; 512];
            let wrapped = slot.wrap_key(s, &mut mechanism, wrapping, key, &mut Output::buffer(&mut space));
            assert_eq!(wrapped, Err(Rv::KEY_UNEXTRACTABLE));
            let open = vec![Attribute::bool(ck::CKA_EXTRACTABLE, true)];
            assert!(slot.set_attributes(s, key, &open).is_err());
            assert!(slot.copy_object(s, key, &open).is_err());
        }
    }
    for (object, id) in [(public, 3), (data, 4)] {
        let mut template = token(id);
        template.truncate(if object == data { 1 } else { 2 }); // data objects have no CKA_ID
        slot.copy_object(s, object, &template).unwrap();
    }
    // A key that may be extracted can be after it was copied, too.
    let open_key = vec![
        Attribute::ulong(ck::CKA_VALUE_LEN, 16),
        Attribute::bool(ck::CKA_EXTRACTABLE, true),
        Attribute::bool(ck::CKA_SENSITIVE, false),
    ];
    let open_key = slot.generate_key(s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &open_key).unwrap();
    let kept = slot.copy_object(s, open_key, &token(5)).unwrap();
    assert_eq!(says(kept, ck::CKA_EXTRACTABLE), [1]);
    assert_eq!(says(kept, ck::CKA_VALUE), says(open_key, ck::CKA_VALUE));
    assert_eq!(open.words(true), [Word::Same; 5]);
}

#[test]
fn domain_parameters_are_made_on_every_member() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let (slot, s) = (&open.slot, open.s);
    let mut generate = Mechanism::plain(ck::CKM_DSA_PARAMETER_GEN);
    let mut template = vec![Attribute::ulong(ck::CKA_PRIME_BITS, 1024)];
    slot.generate_key(s, &mut generate, &template).unwrap();
    template.extend([Attribute::bool(ck::CKA_TOKEN, true), Attribute::bytes(ck::CKA_LABEL, *b"dsa")]);
    slot.generate_key(s, &mut generate, &template).unwrap();
    assert_eq!(open.words(true), [Word::Same]);
}

#[test]
fn a_virtual_token_is_initialised_on_every_member_or_refused() {
    let tokens = Tokens::new(2);
    let so = Some(ha_rig::SO_PIN.as_bytes());
    {
        let open = Open::new(&tokens, "");
        open.ec_pair(1).unwrap();
        assert_eq!(open.slot.init_token(so, "new"), Err(Rv::SESSION_EXISTS));
        open.slot.close_all_sessions().unwrap();
        assert_eq!(open.slot.init_token(so, "new"), Err(Rv::ACTION_PROHIBITED));
    }
    let mut open = Open::new(&tokens, "init_token = \"all\"");
    open.slot.close_all_sessions().unwrap();
    assert_eq!(open.slot.init_token(Some(b"wrong pin"), "new"), Err(Rv::PIN_INCORRECT));
    open.s = open.slot.open_session(true).unwrap();
    open.slot.login(open.s, UserType::User, Some(PIN.as_bytes())).unwrap();
    assert_eq!(open.words(true), [Word::Same; 2]);
    assert!(open.sign(open.find(&private(1))[0]).is_ok());
    open.slot.close_all_sessions().unwrap();

    open.slot.init_token(so, "new").unwrap();
    open.s = open.slot.open_session(true).unwrap();
    let s = open.s;
    assert_eq!(open.slot.token_info().unwrap().label, "ha1");
    assert_eq!(open.slot.login(s, UserType::User, Some(PIN.as_bytes())), Err(Rv::USER_PIN_NOT_INITIALIZED));
    open.slot.login(s, UserType::So, so).unwrap();
    open.slot.init_pin(s, Some(b"another")).unwrap();
    open.slot.logout(s).unwrap();
    open.slot.login(s, UserType::User, Some(b"another")).unwrap();
    assert_eq!(open.find(&Vec::new()), []);
    open.ec_pair(2).unwrap();
    assert_eq!(open.words(true), [Word::Same; 2]);
    drop(open);

    // The new tokens are the members', also for who starts now.
    let provider = Provider::from_config(Config::parse(&tokens.config(false, "")).unwrap()).unwrap();
    let slot = Arc::clone(provider.slot(0).unwrap());
    let s = slot.open_session(true).unwrap();
    slot.login(s, UserType::User, Some(b"another")).unwrap();
    let again = Open { provider, slot, s };
    assert!(again.sign(again.find(&private(2))[0]).is_ok());
    assert_eq!(again.words(true), [Word::Same; 2]);
}

#[test]
fn too_few_members_refuse_a_key_and_leave_nothing() {
    let tokens = Tokens::new(2);
    drop(Open::new(&tokens, ""));
    std::fs::rename(tokens.store(1), tokens.path().join("away")).unwrap();
    let open = Open::new(&tokens, "");
    let before = tokens.bare(0, &["-O"]);
    assert_eq!(open.ec_pair(1).unwrap_err(), Rv::DEVICE_ERROR);
    assert_eq!(tokens.bare(0, &["-O"]), before);
}

#[test]
fn what_is_destroyed_and_changed_while_a_member_is_away_stays_so() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    open.ec_pair(1).unwrap();
    open.ec_pair(2).unwrap();
    drop(open);
    let away = tokens.path().join("away");
    std::fs::rename(tokens.store(1), &away).unwrap();
    let open = Open::new(&tokens, "");
    let doomed = open.find(&private(1));
    open.slot.destroy_object(open.s, doomed[0]).unwrap();
    let kept = open.find(&private(2));
    open.slot.set_attributes(open.s, kept[0], &vec![Attribute::bytes(ck::CKA_LABEL, *b"renamed")]).unwrap();
    drop(open);
    // The folder that SoftHSM may have made in its place goes.
    drop(std::fs::remove_dir_all(tokens.store(1)));
    std::fs::rename(&away, tokens.store(1)).unwrap();
    let open = Open::new(&tokens, "");
    open.wait("member b is up", |g| g.members.get(1).unwrap().state() == State::Up);
    assert!(open.find(&private(1)).is_empty());
    for member in [0, 1] {
        let there = tokens.bare(member, &["-O", "--type", "privkey"]);
        assert!(!there.contains("ID:         01\n"), "destroyed on member {member}: {there}");
        assert!(there.contains("label:      renamed"), "renamed on member {member}: {there}");
    }
    assert_eq!(open.words(true), vec![Word::Same; 3], "a public key, and a pair");
}

#[test]
fn a_token_that_is_lost_while_in_use_is_found_out_and_taken_back() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let (_, key) = open.ec_pair(1).unwrap();
    let away = tokens.path().join("away");
    std::fs::rename(tokens.store(0), &away).unwrap();
    for _ in 0..50 {
        open.sign(key).unwrap();
        assert_eq!(open.find(&private(1)), [key]);
    }
    open.wait("member a is found out", |g| g.members.get(0).unwrap().state() != State::Up);
    drop(std::fs::remove_dir_all(tokens.store(0)));
    std::fs::rename(&away, tokens.store(0)).unwrap();
    open.wait("member a is back", |g| g.members.get(0).unwrap().state() == State::Up);
    assert_eq!(open.words(true), vec![Word::Same; 2]);
}

#[test]
fn different_keys_of_one_name_are_reported_and_neither_is_used() {
    let tokens = Tokens::new(2);
    for member in [0, 1] {
        let made = tokens
            .bare(member, &["--keypairgen", "--key-type", "EC:prime256v1", "--id", "09", "--label", "twin"]);
        assert!(made.contains("Private Key Object"), "{made}");
    }
    let open = Open::new(&tokens, "");
    let (_, good) = open.ec_pair(1).unwrap();
    let twins = open.find(&private(9));
    assert_eq!(twins.len(), 2, "both are shown");
    for twin in twins {
        assert_eq!(open.sign(twin).unwrap_err(), Rv::KEY_FUNCTION_NOT_PERMITTED);
    }
    open.sign(good).unwrap();
    let words = open.words(true);
    assert_eq!(words.iter().filter(|w| **w == Word::Different).count(), 4, "{words:?}");
}

#[test]
fn keys_from_before_the_group_are_served_and_adopted() {
    let tokens = Tokens::new(2);
    let made = tokens.bare(
        0,
        &["--keypairgen", "--key-type", "EC:prime256v1", "--id", "09", "--label", "old", "--extractable"],
    );
    assert!(made.contains("Private Key Object"), "{made}");
    let made =
        tokens.bare(0, &["--keypairgen", "--key-type", "EC:prime256v1", "--id", "08", "--label", "stuck"]);
    assert!(made.contains("Private Key Object"), "{made}");
    let open = Open::new(&tokens, "");
    let key = open.find(&private(9));
    assert_eq!(key.len(), 1);
    open.sign(key[0]).unwrap();
    let adopted = open.provider.groups()[0].adopt("a", false).unwrap();
    let stuck: Vec<_> = adopted.iter().filter(|a| a.why_not.is_some()).map(|a| a.label.as_slice()).collect();
    assert_eq!(stuck, [b"stuck"], "{adopted:?}");
    assert!(tokens.bare(1, &["-O", "--type", "privkey"]).contains("label:      old"));
    let again = open.find(&private(9));
    open.sign(again[0]).unwrap();
    let words = open.words(true);
    assert_eq!(words.iter().filter(|w| **w == Word::Same).count(), 3, "{words:?}");
}

#[test]
fn a_key_that_cannot_be_wrapped_is_refused_or_goes_through_host_memory() {
    let edwards: &[u8] = b"\x13\x0cedwards25519";
    let pair = |open: &Open| {
        let public = vec![
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::bytes(ck::CKA_EC_PARAMS, edwards),
            Attribute::bool(ck::CKA_VERIFY, true),
        ];
        let private = vec![Attribute::bool(ck::CKA_TOKEN, true), Attribute::bool(ck::CKA_SIGN, true)];
        open.slot.generate_key_pair(
            open.s,
            &mut Mechanism::plain(ck::CKM_EC_EDWARDS_KEY_PAIR_GEN),
            &public,
            &private,
        )
    };
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    assert_eq!(pair(&open).unwrap_err(), Rv::KEY_NOT_WRAPPABLE);
    assert!(open.find(&Template::new()).is_empty(), "nothing is left");
    drop(open);
    let open = Open::new(&tokens, "uncopyable = \"host-memory\"");
    pair(&open).unwrap();
    assert_eq!(open.words(true), vec![Word::Same; 2]);
}

#[test]
fn a_key_that_stays_on_one_member_is_kept_as_it_was_asked_for() {
    let flag = Attribute::bool;
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "non_extractable = \"local\"\nuncopyable = \"local\"");
    let public = |params: &[u8]| {
        vec![
            flag(ck::CKA_TOKEN, true),
            flag(ck::CKA_VERIFY, true),
            Attribute::bytes(ck::CKA_EC_PARAMS, params),
        ]
    };
    let keeping =
        [flag(ck::CKA_TOKEN, true), flag(ck::CKA_MODIFIABLE, false), flag(ck::CKA_WRAP_WITH_TRUSTED, true)];
    let as_asked = |key, asked: &Template| {
        let kinds: Vec<_> = asked.iter().map(|a| a.kind).collect();
        let read = open.slot.get_attributes(open.s, key, &kinds).unwrap();
        for (there, asked) in read.iter().zip(asked) {
            assert_eq!(*there, Fetched::Value(asked.value.clone()), "{:#x}", asked.kind);
        }
    };
    const ED25519: &[u8] =
        &[0x13, 0x0c, b'e', b'd', b'w', b'a', b'r', b'd', b's', b'2', b'5', b'5', b'1', b'9'];
    let kinds = [(ck::CKM_EC_KEY_PAIR_GEN, P256, false), (ck::CKM_EC_EDWARDS_KEY_PAIR_GEN, ED25519, true)];
    for (mechanism, params, extractable) in kinds {
        let mut asked = keeping.to_vec();
        asked.extend(
            [ck::CKA_SIGN, ck::CKA_ALWAYS_AUTHENTICATE, ck::CKA_PRIVATE].map(|kind| flag(kind, true)),
        );
        asked.push(flag(ck::CKA_EXTRACTABLE, extractable));
        let mut generate = Mechanism::plain(mechanism);
        let (_, key) = open.slot.generate_key_pair(open.s, &mut generate, &public(params), &asked).unwrap();
        as_asked(key, &asked);
        // Without its login it does not sign.
        let sign = if extractable { ck::CKM_EDDSA } else { ck::CKM_ECDSA };
        open.slot.op_init(open.s, OpKind::Sign, Some(&mut Mechanism::plain(sign)), key).unwrap();
        let mut space = [0; 64];
        let answer = open.slot.op_one_shot(open.s, OpKind::Sign, &[7; 32], &mut Output::buffer(&mut space));
        assert_eq!(answer, Err(Rv::USER_NOT_LOGGED_IN));
    }
    // Also one whose value may be read.
    let open_to_all = vec![
        flag(ck::CKA_TOKEN, true),
        flag(ck::CKA_SIGN, true),
        flag(ck::CKA_SENSITIVE, false),
        flag(ck::CKA_EXTRACTABLE, true),
    ];
    let mut generate = Mechanism::plain(ck::CKM_EC_EDWARDS_KEY_PAIR_GEN);
    let (_, key) =
        open.slot.generate_key_pair(open.s, &mut generate, &public(ED25519), &open_to_all).unwrap();
    as_asked(key, &open_to_all);
    let mut asked = keeping.to_vec();
    asked.extend([ck::CKA_SIGN, ck::CKA_PRIVATE].map(|kind| flag(kind, true)));
    asked.push(flag(ck::CKA_EXTRACTABLE, false));
    asked.push(Attribute::ulong(ck::CKA_VALUE_LEN, 32));
    let mut generate = Mechanism::plain(ck::CKM_GENERIC_SECRET_KEY_GEN);
    let key = open.slot.generate_key(open.s, &mut generate, &asked).unwrap();
    as_asked(key, &asked);
    // What this token does not make so is not made otherwise.
    asked.push(flag(ck::CKA_COPYABLE, false));
    let before = open.find(&Template::new()).len();
    let answer = open.slot.generate_key(open.s, &mut generate, &asked);
    assert_eq!(answer.unwrap_err(), Rv::TEMPLATE_INCONSISTENT);
    assert_eq!(open.find(&Template::new()).len(), before);
}

#[test]
fn a_wrong_pin_is_sent_to_one_member_once() {
    let tokens = Tokens::new(2);
    let provider = Provider::from_config(Config::parse(&tokens.config(false, "")).unwrap()).unwrap();
    let slot = provider.slot(0).unwrap();
    let s = slot.open_session(true).unwrap();
    for _ in 0..3 {
        assert_eq!(slot.login(s, UserType::User, Some(b"9999")), Err(Rv::PIN_INCORRECT));
    }
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    assert_eq!(slot.login(s, UserType::User, Some(PIN.as_bytes())), Err(Rv::USER_ALREADY_LOGGED_IN));
    assert!(provider.shutdown(Duration::from_secs(60)).is_empty());
}

#[test]
fn two_members_that_are_one_token_are_found_out() {
    let tokens = Tokens::new(1);
    let listing = tokens.bare(0, &["-L"]);
    let serial = listing.lines().find_map(|l| l.trim().strip_prefix("serial num         : ")).unwrap();
    let member = format!("[[group.member]]\nmodule = {:?}\ninstance = \"shared\"\n", ha_rig::softhsm());
    let config = tokens.path().join("ha.toml");
    // One instance for both: two copies of SoftHSM in one process do not keep each other from a token's files.
    let text = format!(
        "state_dir = {:?}\n[[group]]\nlabel = \"ha1\"\ndeadline = \"off\"\n{member}name = \"a\"\ntoken = \"member-a\"\n{member}name = \"twin\"\nserial = {serial:?}\n",
        tokens.path().join("state")
    );
    std::fs::write(&config, text).unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["two_members_of_one_token", "--exact", "--ignored", "--nocapture"])
        .env("REPLICATION_CONFIG", &config)
        .env("SOFTHSM2_CONF", tokens.conf(0))
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}

#[test]
#[ignore = "the process of two_members_that_are_one_token: SoftHSM's configuration is in its environment"]
fn two_members_of_one_token() {
    let text = std::fs::read_to_string(std::env::var_os("REPLICATION_CONFIG").unwrap()).unwrap();
    let provider = Provider::from_config(Config::parse(&text).unwrap()).unwrap();
    let members = &provider.groups()[0].members;
    let states: Vec<State> = members.iter().map(|m| m.state()).collect();
    assert!(states.contains(&State::Quarantined) && states.contains(&State::Up), "{states:?}");
    let reason = members.iter().find_map(|m| m.connect_error()).unwrap();
    assert!(reason.contains("the same token as member"), "{reason}");
}

#[test]
fn without_a_ledger_keys_are_used_and_nothing_is_changed() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    open.ec_pair(1).unwrap();
    drop(open);
    // A file where the folder should be: as good as a disk that cannot be written, also for root.
    let text = tokens.config(false, "").replace("/state\"", "/a.conf\"");
    let open = Open::of(&text);
    let key = open.find(&private(1));
    open.sign(key[0]).unwrap();
    assert_eq!(open.ec_pair(2).unwrap_err(), Rv::TOKEN_WRITE_PROTECTED);
    assert_eq!(open.slot.destroy_object(open.s, key[0]), Err(Rv::TOKEN_WRITE_PROTECTED));
    assert_ne!(open.slot.token_info().unwrap().flags & ck::CKF_WRITE_PROTECTED, 0);
    open.sign(key[0]).unwrap();
}

#[test]
fn several_processes_at_once_enrol_a_fresh_group_once_and_lose_no_key() {
    let tokens = Tokens::new(2);
    let config = tokens.path().join("ha.toml");
    let soon = "[group.recovery]\ninterval = \"20ms\"\nmax_interval = \"200ms\"";
    std::fs::write(&config, tokens.config(false, soon)).unwrap();
    let children: Vec<_> = (1..=4)
        .map(|id| {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args(["one_of_several_processes", "--exact", "--ignored", "--nocapture"])
                .env("REPLICATION_CONFIG", &config)
                .env("REPLICATION_ID", format!("{id}"))
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut made = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        made += 1;
    }
    for member in [0, 1] {
        let there = tokens.bare(member, &["-O"]);
        assert_eq!(
            there.matches("pkcs11-ha group key").count(),
            2,
            "one set of group keys on member {member}"
        );
    }
    assert_eq!(
        Open::new(&tokens, "").words(true),
        vec![Word::Same; 2 * made],
        "what was acknowledged, and nothing else"
    );
}

#[test]
#[ignore = "one of the processes of several_processes_at_once"]
fn one_of_several_processes() {
    _ = tracing_subscriber::fmt().with_writer(std::io::stderr).try_init();
    let text = std::fs::read_to_string(std::env::var_os("REPLICATION_CONFIG").unwrap()).unwrap();
    let id = std::env::var("REPLICATION_ID").unwrap().parse().unwrap();
    let open = Open::of(&text);
    // While other processes write to its files SoftHSM answers errors now and then, and what looks like a wrong PIN or
    // another token; a member that is not up then comes back, at the latest with a new login, and until it has, a key is
    // refused.
    let group = &open.provider.groups()[0];
    while let Err(rv) = open.ec_pair(id) {
        assert_eq!(rv, Rv::DEVICE_ERROR);
        let aside = |g: &ha_core::group::Group| g.members.iter().any(|m| m.state() == State::Quarantined);
        open.wait("both members are up, or one is aside", |g| g.up().count() == 2 || aside(g));
        if aside(group) {
            eprintln!("aside: {:?}", group.status().members);
            open.slot.logout(open.s).unwrap();
            open.log_in();
        }
    }
}
