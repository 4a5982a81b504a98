//! Attacks on the guarantees, on real tokens whose calls can be made to fail before or after they took effect.
#![allow(missing_docs, clippy::unwrap_used)]

mod open_group;
mod wrapped;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ha_core::config::Config;
use ha_core::group::Origin;
use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_rig::{PIN, SO_PIN, Tokens};
use ha_token::{
    Attribute, CombinedKind, Mechanism, ObjectHandle, OpKind, Output, Result, Rv, Template, Ulong, UserType,
    ck,
};
use open_group::{Open, private};
use wrapped::{Faults, When};

const SECRET: Ulong = ck::CKO_SECRET_KEY;

/// A group over members that can be made to fail, logged in.
fn failing(tokens: &Tokens, group: &str) -> (Open, Vec<Arc<Faults>>) {
    failing_of(&tokens.config(false, group))
}

fn failing_of(text: &str) -> (Open, Vec<Arc<Faults>>) {
    let (provider, faults) = wrapped::provider_of(text);
    let slot = Arc::clone(provider.slot(0).unwrap());
    let s = slot.open_session(true).unwrap();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    (Open { provider, slot, s }, faults)
}

fn yes(kind: Ulong) -> Attribute {
    Attribute::bool(kind, true)
}

fn id(n: u8) -> Attribute {
    Attribute::bytes(ck::CKA_ID, [n])
}

fn label(label: &[u8]) -> Attribute {
    Attribute::bytes(ck::CKA_LABEL, label)
}

fn named(name: &[u8]) -> Template {
    vec![label(name)]
}

fn data(name: &[u8], value: &[u8]) -> Template {
    vec![
        yes(ck::CKA_TOKEN),
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        label(name),
        Attribute::bytes(ck::CKA_VALUE, value),
    ]
}

fn secret(n: u8, more: &[Attribute]) -> Template {
    let mut template = vec![yes(ck::CKA_TOKEN), Attribute::ulong(ck::CKA_VALUE_LEN, 32), id(n)];
    template.extend_from_slice(more);
    template
}

fn plain(kind: Ulong) -> Mechanism {
    Mechanism::plain(kind)
}

/// How many objects of the bare tokens pkcs11-tool lists under this label.
fn count(tokens: &Tokens, name: &str) -> [usize; 2] {
    [0, 1].map(|member| {
        let list = tokens.bare(member, &["--list-objects"]);
        let labels = list.lines().filter_map(|l| l.trim().strip_prefix("label:"));
        labels.filter(|l| l.trim().trim_matches('\'') == name).count()
    })
}

/// How many private keys of this id are on the bare tokens.
fn keys(tokens: &Tokens, n: u8) -> [usize; 2] {
    let line = format!("ID:         {n:02x}");
    [0, 1].map(|i| tokens.bare(i, &["--list-objects", "--type", "privkey"]).matches(&line).count())
}

/// Objects that are served and that the ledger does not know.
fn foreign(open: &Open) -> usize {
    open.provider.groups()[0].objects.select(|o| o.origin == Origin::Foreign).len()
}

fn all_up(open: &Open) {
    open.wait("all up", |g| g.members.iter().all(|m| m.state() == State::Up));
}

/// All that an operator can do: restarts, logins, every member up, and `sync`.
fn heal(tokens: &Tokens) -> Open {
    for _ in 0..2 {
        let open = Open::new(tokens, "");
        all_up(&open);
        open.provider.groups()[0].sync(false).unwrap();
    }
    Open::new(tokens, "")
}

/// Runs a test's second half in a process of its own; `None` in that process.
fn child(name: &str, what: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env("ATTACK_CHILD", what);
    command
}

fn key(open: &Open, class: Ulong, n: u8) -> Result<ObjectHandle> {
    let (slot, s) = (&open.slot, open.s);
    slot.find_objects_init(s, &vec![Attribute::ulong(ck::CKA_CLASS, class), id(n)])?;
    let found = slot.find_objects(s, 10)?;
    slot.find_objects_final(s)?;
    assert_eq!(found.len(), 1, "key {n}");
    Ok(found[0])
}

/// In parts, each after a size query.
fn parts(open: &Open, kind: OpKind, mechanism: Ulong, key: ObjectHandle, parts: &[&[u8]]) -> Result<Vec<u8>> {
    let (slot, s) = (&open.slot, open.s);
    slot.op_init(s, kind, Some(&mut plain(mechanism)), key)?;
    let (mut all, mut space) = (Vec::new(), [0; 512]);
    for part in parts {
        slot.op_update(s, kind, part, &mut Output::query())?;
        if kind == OpKind::Encrypt {
            let mut out = Output::buffer(&mut space);
            slot.op_update(s, kind, part, &mut out)?;
            all.extend_from_slice(out.written());
        }
    }
    slot.op_final(s, kind, &mut Output::query())?;
    let mut out = Output::buffer(&mut space);
    slot.op_final(s, kind, &mut out)?;
    all.extend_from_slice(out.written());
    Ok(all)
}

fn wrapped_key(open: &Open) -> Result<(ObjectHandle, Vec<u8>)> {
    let (wrapping, wrapped) = (key(open, SECRET, 2)?, key(open, SECRET, 1)?);
    let mut space = [0; 64];
    let mut out = Output::buffer(&mut space);
    let mut mechanism = plain(ck::CKM_AES_KEY_WRAP);
    open.slot.wrap_key(open.s, &mut mechanism, wrapping, wrapped, &mut Output::query())?;
    open.slot.wrap_key(open.s, &mut mechanism, wrapping, wrapped, &mut out)?;
    Ok((wrapping, out.written().to_vec()))
}

type Act = fn(&Open) -> Result<Vec<u8>>;

const ACTS: [(&str, Act); 9] = [
    ("encrypt", |o| {
        parts(o, OpKind::Encrypt, ck::CKM_AES_ECB, key(o, SECRET, 1)?, &[&[1; 16], &[2; 32], &[3; 16]])
    }),
    ("mac", |o| parts(o, OpKind::Sign, ck::CKM_SHA256_HMAC, key(o, SECRET, 3)?, &[b"one", b"two", b"three"])),
    ("digest", |o| parts(o, OpKind::Digest, ck::CKM_SHA256, ObjectHandle(0), &[b"one", b"two", b"three"])),
    ("rsa", |o| {
        let key = key(o, ck::CKO_PRIVATE_KEY, 4)?;
        parts(o, OpKind::Sign, ck::CKM_SHA256_RSA_PKCS, key, &[b"one", b"two"])
    }),
    ("wrap", |o| Ok(wrapped_key(o)?.1)),
    ("one shot, asked for its size, with too little space", |o| {
        let (slot, s) = (&o.slot, o.s);
        slot.op_init(s, OpKind::Sign, Some(&mut plain(ck::CKM_SHA256_HMAC)), key(o, SECRET, 3)?)?;
        let (mut query, mut space) = (Output::query(), [0; 64]);
        slot.op_one_shot(s, OpKind::Sign, b"one", &mut query)?;
        assert_eq!(query.len(), 32);
        let small = slot.op_one_shot(s, OpKind::Sign, b"one", &mut Output::buffer(&mut space[..5]));
        assert_eq!(small, Err(Rv::BUFFER_TOO_SMALL));
        let mut out = Output::buffer(&mut space);
        slot.op_one_shot(s, OpKind::Sign, b"one", &mut out)?;
        Ok(out.written().to_vec())
    }),
    ("digest and encrypt at once", |o| {
        let (slot, s, encrypting) = (&o.slot, o.s, key(o, SECRET, 1)?);
        slot.op_init(s, OpKind::Encrypt, Some(&mut plain(ck::CKM_AES_ECB)), encrypting)?;
        slot.op_init(s, OpKind::Digest, Some(&mut plain(ck::CKM_SHA256)), ObjectHandle(0))?;
        let (mut all, mut space) = (Vec::new(), [0; 64]);
        for n in 0..2 {
            let mut out = Output::buffer(&mut space);
            slot.combined_update(s, CombinedKind::DigestEncrypt, &[n; 32], &mut out)?;
            all.extend_from_slice(out.written());
        }
        for kind in [OpKind::Digest, OpKind::Encrypt] {
            let mut out = Output::buffer(&mut space);
            slot.op_final(s, kind, &mut out)?;
            all.extend_from_slice(out.written());
        }
        Ok(all)
    }),
    ("verify", |o| {
        let (slot, s, key) = (&o.slot, o.s, key(o, SECRET, 3)?);
        let mac = parts(o, OpKind::Sign, ck::CKM_SHA256_HMAC, key, &[b"one"])?;
        slot.op_init(s, OpKind::Verify, Some(&mut plain(ck::CKM_SHA256_HMAC)), key)?;
        slot.op_update(s, OpKind::Verify, b"on", &mut Output::query())?;
        slot.op_update(s, OpKind::Verify, b"e", &mut Output::query())?;
        slot.verify_final(s, &mac)?;
        Ok(mac)
    }),
    ("attributes, size and random numbers", |o| {
        let key = key(o, SECRET, 1)?;
        o.slot.generate_random(o.s, &mut [0; 8])?;
        o.slot.seed_random(o.s, &[1; 8])?;
        o.slot.object_size(o.s, key)?;
        let told = o.slot.get_attributes(o.s, key, &[ck::CKA_VALUE_LEN, ck::CKA_ID])?;
        Ok(told[0].bytes().unwrap().to_vec())
    }),
];

#[test]
fn the_first_member_dies_at_every_call_to_it() {
    let tokens = Tokens::in_memory(2);
    {
        let o = Open::new(&tokens, "");
        let aes = |template| o.slot.generate_key(o.s, &mut plain(ck::CKM_AES_KEY_GEN), &template).unwrap();
        aes(secret(1, &[yes(ck::CKA_ENCRYPT), yes(ck::CKA_EXTRACTABLE)]));
        aes(secret(2, &[yes(ck::CKA_WRAP), yes(ck::CKA_UNWRAP)]));
        let mac = secret(3, &[yes(ck::CKA_SIGN), yes(ck::CKA_VERIFY)]);
        o.slot.generate_key(o.s, &mut plain(ck::CKM_GENERIC_SECRET_KEY_GEN), &mac).unwrap();
        let public = vec![yes(ck::CKA_TOKEN), Attribute::ulong(ck::CKA_MODULUS_BITS, 1024), id(4)];
        let private = vec![yes(ck::CKA_TOKEN), yes(ck::CKA_SIGN), yes(ck::CKA_PRIVATE), id(4)];
        let mut generate = plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN);
        o.slot.generate_key_pair(o.s, &mut generate, &public, &private).unwrap();
    }
    for (what, act) in ACTS {
        let right = act(&Open::new(&tokens, "")).unwrap();
        for n in 1.. {
            let (open, faults) = failing(&tokens, "balance = \"primary\"");
            faults[0].dies_after.store(n, Ordering::SeqCst);
            assert_eq!(act(&open).as_ref(), Ok(&right), "{what}, dead at call {n}");
            if !faults[0].dead.load(Ordering::SeqCst) {
                assert!(n > 3);
                break;
            }
        }
    }
}

#[test]
fn tokens_that_changed_places_are_not_used() {
    let tokens = Tokens::labelled(&["same", "same"]);
    Open::new(&tokens, "").ec_pair(1).unwrap();
    let (a, b) = (tokens.store(0), tokens.store(1));
    let aside = a.with_extension("aside");
    for (from, to) in [(&a, &aside), (&b, &a), (&aside, &b)] {
        std::fs::rename(from, to).unwrap();
    }
    let provider = Provider::from_config(Config::parse(&tokens.config(false, "")).unwrap()).unwrap();
    let states: Vec<_> = provider.groups()[0].members.iter().map(|m| m.state()).collect();
    assert_eq!(states, [State::Quarantined; 2]);
}

#[test]
fn a_public_key_that_was_replaced_on_one_member_verifies_nothing() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let (_, key) = open.ec_pair(1).unwrap();
    let signature = open.sign(key).unwrap();
    drop(open);
    tokens.bare(0, &["--delete-object", "--type", "pubkey", "--id", "01"]);
    tokens.bare(0, &["--keypairgen", "--key-type", "EC:prime256v1", "--id", "01", "--label", "key"]);
    tokens.bare(0, &["--delete-object", "--type", "privkey", "--id", "01"]);
    let open = Open::new(&tokens, "balance = \"round-robin\"");
    let public = vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_PUBLIC_KEY), id(1)];
    let public = open.find(&public);
    assert_eq!(public.len(), 1);
    for _ in 0..6 {
        open.slot.op_init(open.s, OpKind::Verify, Some(&mut plain(ck::CKM_ECDSA)), public[0]).unwrap();
        assert_eq!(open.slot.verify(open.s, &[7; 32], &signature), Ok(()));
    }
}

#[test]
fn rules_of_public_and_officers_sessions() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let (slot, s) = (&open.slot, open.s);
    let (_, key) = open.ec_pair(1).unwrap();
    let with = |name: &[u8], private: bool| {
        let mut template = data(name, b"v");
        template.push(Attribute::bool(ck::CKA_PRIVATE, private));
        template
    };
    let public = slot.create_object(s, &with(b"public", false)).unwrap();
    let ro = slot.open_session(false).unwrap();
    assert_eq!(slot.set_attributes(ro, public, &named(b"x")), Err(Rv::SESSION_READ_ONLY));
    assert_eq!(slot.copy_object(ro, public, &Template::new()), Err(Rv::SESSION_READ_ONLY));
    assert_eq!(slot.destroy_object(ro, public), Err(Rv::SESSION_READ_ONLY));
    slot.op_init(s, OpKind::Sign, Some(&mut plain(ck::CKM_ECDSA)), key).unwrap();
    slot.logout(s).unwrap();
    let signed = slot.op_one_shot(s, OpKind::Sign, &[7; 32], &mut Output::buffer(&mut [0; 64]));
    assert_eq!(signed, Err(Rv::OPERATION_NOT_INITIALIZED));
    slot.set_attributes(s, public, &named(b"renamed")).unwrap();
    assert_eq!(open.find(&named(b"renamed")), [public]);
    assert_eq!(slot.create_object(s, &with(b"p", true)), Err(Rv::USER_NOT_LOGGED_IN));
    let so = Some(SO_PIN.as_bytes());
    assert_eq!(slot.login(s, UserType::So, so), Err(Rv::SESSION_READ_ONLY_EXISTS));
    slot.close_session(ro).unwrap();
    slot.login(s, UserType::So, so).unwrap();
    assert_eq!(slot.open_session(false), Err(Rv::SESSION_READ_WRITE_SO_EXISTS));
    assert!(open.find(&private(1)).is_empty());
    assert_eq!(slot.create_object(s, &with(b"p", true)), Err(Rv::USER_NOT_LOGGED_IN));
    slot.destroy_object(s, public).unwrap();
    slot.logout(s).unwrap();
    slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    assert_eq!(slot.get_attributes(s, key, &[ck::CKA_ID]).err(), Some(Rv::OBJECT_HANDLE_INVALID));
    assert_eq!(count(&tokens, "renamed"), [0, 0]);
    assert_eq!(open.find(&private(1)).len(), 1);
}

/// Dies in the middle of a call to a member.
#[test]
fn child_that_dies() {
    let Ok(text) = std::env::var("ATTACK_CHILD") else { return };
    let (call, text) = text.split_once('\n').unwrap();
    let (at, text) = text.split_once('\n').unwrap();
    let at: usize = at.parse().unwrap();
    let (open, faults) = failing_of(text);
    // Seen on both members.
    let seen: Vec<_> = (0..4).flat_map(|_| open.find(&private(1))).collect();
    let key = seen[0];
    let call = if call == "destroy_object" { "destroy_object" } else { "set_attributes" };
    let when = if at.is_multiple_of(2) { When::Before } else { When::After };
    faults[at / 2].hook(call, when, || std::process::abort());
    _ = match call {
        "destroy_object" => open.slot.destroy_object(open.s, key),
        _ => open.slot.set_attributes(open.s, key, &named(b"renamed")),
    };
}

fn dies_in(tokens: &Tokens, call: &str, at: usize) {
    // Searched for in turn, so that the key is known on both members.
    let text = tokens.config(false, "balance = \"round-robin\"");
    let ended = child("child_that_dies", &format!("{call}\n{at}\n{text}")).output().unwrap();
    assert!(!ended.status.success(), "at {at}: {ended:?}");
}

#[test]
fn a_process_dies_in_the_middle_of_a_rename() {
    if std::env::var_os("ATTACK_CHILD").is_some() {
        return;
    }
    for at in 0..4 {
        let tokens = Tokens::in_memory(2);
        Open::new(&tokens, "").ec_pair(1).unwrap();
        dies_in(&tokens, "set_attributes", at);
        let open = heal(&tokens);
        assert_eq!((keys(&tokens, 1), foreign(&open)), ([1, 1], 0), "{at}");
        let key = open.find(&private(1))[0];
        open.sign(key).unwrap();
        open.slot.destroy_object(open.s, key).unwrap();
        assert_eq!(keys(&tokens, 1), [0, 0], "{at}");
    }
}

#[test]
fn threads_beside_a_member_that_comes_and_goes_neither_hang_nor_leave_sessions() {
    let tokens = Tokens::in_memory(2);
    Open::new(&tokens, "").ec_pair(1).unwrap();
    let group = "min_copies = 1\n[group.recovery]\ninterval = \"20ms\"\nmax_interval = \"100ms\"\n";
    let (open, faults) = failing(&tokens, group);
    let until = Instant::now() + Duration::from_secs(5);
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let slot = &open.slot;
    std::thread::scope(|scope| {
        for t in 0..5u8 {
            let (stop, done) = (&stop, &done);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let s = slot.open_session(true).unwrap();
                    match slot.login(s, UserType::User, Some(PIN.as_bytes())) {
                        Ok(()) | Err(Rv::USER_ALREADY_LOGGED_IN | Rv::DEVICE_ERROR) => {}
                        // SoftHSM says so while its folder goes.
                        Err(Rv::PIN_INCORRECT) => {}
                        Err(rv) => panic!("{rv}"),
                    }
                    // What is asked is right or an error; what a lost member does to writes is not looked at here.
                    _ = slot.create_object(s, &data(&[b't', t], b"v"));
                    let template = vec![Attribute::ulong(ck::CKA_VALUE_LEN, 16), yes(ck::CKA_ENCRYPT)];
                    _ = slot.generate_key(s, &mut plain(ck::CKM_AES_KEY_GEN), &template);
                    _ = slot.generate_random(s, &mut [0; 8]);
                    if t == 0 {
                        _ = slot.logout(s);
                    }
                    slot.close_session(s).unwrap();
                    assert_eq!(slot.session_info(s).err(), Some(Rv::SESSION_HANDLE_INVALID));
                    assert_eq!(slot.generate_random(s, &mut [0; 8]), Err(Rv::SESSION_HANDLE_INVALID));
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for member in [0, 1].into_iter().cycle() {
            if Instant::now() > until {
                break;
            }
            tokens.hide(member);
            std::thread::sleep(Duration::from_millis(300));
            tokens.restore(member);
            std::thread::sleep(Duration::from_millis(300));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(done.load(Ordering::Relaxed) > 100);
    all_up(&open);
    slot.close_all_sessions().unwrap();
    assert_eq!(slot.token_info().unwrap().session_count, 0);
    open.wait("nothing is under way", |g| g.members.iter().all(|m| m.load() == 0));
    for (member, faults) in open.provider.groups()[0].members.iter().zip(&faults) {
        let open = faults.sessions.lock().unwrap().len();
        assert!(open < 20, "{open} sessions of {} are more than the pool's", member.name());
    }
}

// --- Defects: each of these fails.

/// All objects that are called so, seen, of a group that has just been started.
fn same_named(tokens: &Tokens, group: &str, how_many: u8) -> (Open, Vec<ObjectHandle>) {
    {
        let open = Open::new(tokens, "");
        for n in 0..how_many {
            open.slot.create_object(open.s, &data(b"same", &[n])).unwrap();
        }
    }
    let open = Open::new(tokens, group);
    let all = open.find(&named(b"same"));
    assert_eq!(all.len(), usize::from(how_many));
    (open, all)
}

fn value(open: &Open, object: ObjectHandle, kind: Ulong) -> Vec<u8> {
    open.slot.get_attributes(open.s, object, &[kind]).unwrap()[0].bytes().unwrap().to_vec()
}

#[test]
fn never_a_search_by_value_gives_another_key_of_the_same_names() {
    let tokens = Tokens::new(2);
    let points: Vec<_> = {
        let open = Open::new(&tokens, "");
        (0..6).map(|_| value(&open, open.ec_pair(1).unwrap().0, ck::CKA_EC_POINT)).collect()
    };
    let open = Open::new(&tokens, "");
    for point in &points {
        let of_it = vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_PUBLIC_KEY),
            Attribute::bytes(ck::CKA_EC_POINT, &**point),
        ];
        let found = open.find(&of_it);
        assert_eq!(found.len(), 1);
        assert!(value(&open, found[0], ck::CKA_EC_POINT) == *point, "asked for one key, given another");
    }
}

#[test]
fn never_attributes_are_told_of_another_key_of_the_same_names() {
    let tokens = Tokens::new(2);
    let may_sign = |sign| vec![label(b"same"), Attribute::bool(ck::CKA_SIGN, sign)];
    {
        let open = Open::new(&tokens, "");
        for n in 0..6 {
            let mut template = may_sign(n % 2 == 0);
            let more = [
                Attribute::bool(ck::CKA_ENCRYPT, true),
                yes(ck::CKA_TOKEN),
                Attribute::ulong(ck::CKA_VALUE_LEN, 32),
            ];
            template.extend(more);
            open.slot.generate_key(open.s, &mut plain(ck::CKM_AES_KEY_GEN), &template).unwrap();
        }
    }
    let open = Open::new(&tokens, "balance = \"round-robin\"");
    for sign in [true, false] {
        for found in open.find(&may_sign(sign)) {
            for _ in 0..2 {
                assert_eq!(value(&open, found, ck::CKA_SIGN), [u8::from(sign)], "of those found with {sign}");
            }
        }
    }
}

#[test]
fn never_destroyed_objects_of_one_name_stay_and_cannot_be_destroyed_any_more() {
    let tokens = Tokens::new(2);
    let (open, all) = same_named(&tokens, "", 6);
    for object in all {
        assert_eq!(open.slot.destroy_object(open.s, object), Ok(()));
        open.find(&named(b"same"));
    }
    assert_eq!((open.find(&named(b"same")).len(), count(&tokens, "same")), (0, [0, 0]));
}

#[test]
fn never_a_rename_misses_the_member_where_the_object_was_not_seen_yet() {
    let tokens = Tokens::new(2);
    Open::new(&tokens, "").ec_pair(1).unwrap();
    let open = Open::new(&tokens, "balance = \"round-robin\"");
    let key = open.find(&private(1));
    open.slot.set_attributes(open.s, key[0], &named(b"renamed")).unwrap();
    for _ in 0..6 {
        assert_eq!(open.find(&private(1)), key, "one key");
    }
    drop(open);
    assert_eq!((foreign(&heal(&tokens)), keys(&tokens, 1)), (0, [1, 1]));
}

#[test]
fn never_a_rename_says_invalid_handle_when_a_member_dies() {
    let tokens = Tokens::new(2);
    Open::new(&tokens, "").ec_pair(1).unwrap();
    let (open, faults) = failing(&tokens, "balance = \"primary\"");
    let key = open.find(&private(1))[0];
    faults[0].dead.store(true, Ordering::SeqCst);
    assert_eq!(open.slot.set_attributes(open.s, key, &named(b"renamed")), Ok(()));
}

#[test]
fn never_two_searches_at_once_make_two_objects_of_one_key() {
    let tokens = Tokens::new(2);
    Open::new(&tokens, "").ec_pair(1).unwrap();
    let (open, faults) = failing(&tokens, "balance = \"primary\"");
    let slot = Arc::clone(&open.slot);
    let (tell, told) = std::sync::mpsc::channel();
    // Another thread's search, while this one reads what it has found.
    faults[0].hook("get_attributes", When::After, move || {
        let s = slot.open_session(false).unwrap();
        slot.find_objects_init(s, &private(1)).unwrap();
        tell.send(slot.find_objects(s, 10).unwrap()).unwrap();
        slot.close_session(s).unwrap();
    });
    let one = open.find(&private(1));
    let other = told.recv().unwrap();
    eprintln!("one {one:?}, other {other:?}, foreign {}", foreign(&open));
    // As the other thread has it.
    assert_eq!(open.slot.destroy_object(open.s, other[0]), Ok(()));
    assert_eq!((open.find(&private(1)), keys(&tokens, 1)), (vec![], [0, 0]), "told that it is destroyed");
}

#[test]
fn never_a_planted_key_makes_destruction_miss_both_members_and_use_fail() {
    let tokens = Tokens::new(2);
    Open::new(&tokens, "").ec_pair(7).unwrap();
    for _ in 0..5 {
        tokens.bare(0, &["--keypairgen", "--key-type", "EC:prime256v1", "--id", "07", "--label", "key"]);
    }
    let open = Open::new(&tokens, "balance = \"primary\"");
    open.find(&private(7));
    let objects = &open.provider.groups()[0].objects;
    let ours = |o: &ha_core::group::Object| {
        matches!(o.origin, Origin::Ledger(_)) && o.traits().class == ck::CKO_PRIVATE_KEY
    };
    let own = objects.select(ours)[0].handle;
    let signs = open.sign(own).map(|_| ());
    let destroyed = open.slot.destroy_object(open.s, own);
    assert_eq!((signs, destroyed, keys(&tokens, 7)), (Ok(()), Ok(()), [5, 0]));
}

#[test]
fn never_an_object_that_is_destroyed_while_it_is_given_to_a_member_stays_there() {
    let tokens = Tokens::new(2);
    let (open, faults) = failing(&tokens, "balance = \"primary\"\nmin_copies = 1");
    let (tell, told) = std::sync::mpsc::channel();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let later = Arc::clone(&faults[1]);
    // The second time it is the keeper, which gives the member what it lacks.
    faults[1].hook("create_object", When::Before, move || {
        later.hook("create_object", When::Before, move || {
            tell.send(()).unwrap();
            _ = gone.recv_timeout(Duration::from_secs(5));
        });
    });
    faults[1].add("create_object", When::Before, Rv::FUNCTION_FAILED);
    let object = open.slot.create_object(open.s, &data(b"d", b"v")).unwrap();
    told.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(open.slot.destroy_object(open.s, object), Ok(()));
    go.send(()).unwrap();
    drop(open);
    let open = heal(&tokens);
    assert_eq!(
        (count(&tokens, "d"), open.find(&named(b"d")).len()),
        ([0, 0], 0),
        "told that it is destroyed"
    );
}

#[test]
fn never_a_rename_that_took_effect_and_was_refused_leaves_two_objects() {
    let tokens = Tokens::new(2);
    let (open, faults) = failing(&tokens, "");
    let object = open.slot.create_object(open.s, &data(b"old", b"v")).unwrap();
    faults[0].add("set_attributes", When::After, Rv::DEVICE_ERROR);
    faults[1].add("set_attributes", When::Before, Rv::DEVICE_ERROR);
    assert_eq!(open.slot.set_attributes(open.s, object, &named(b"new")), Err(Rv::DEVICE_ERROR));
    drop(open);
    let open = heal(&tokens);
    let all = open.find(&Template::new()).len();
    assert_eq!(
        (all, foreign(&open)),
        (1, 0),
        "old {:?} new {:?}",
        count(&tokens, "old"),
        count(&tokens, "new")
    );
}

#[test]
fn never_an_acknowledged_object_is_not_found_while_a_member_refuses_to_write() {
    let tokens = Tokens::new(3);
    let (open, faults) = failing(&tokens, "balance = \"round-robin\"");
    for call in ["create_object", "unwrap_key"] {
        faults[2].add_times(call, 0, 1000, When::Before, Rv::FUNCTION_FAILED);
    }
    for n in 0..20 {
        open.slot.create_object(open.s, &data(&[n], &[n])).unwrap();
        for search in 0..6 {
            assert_eq!(open.find(&named(&[n])).len(), 1, "object {n}, search {search}");
        }
    }
}

#[test]
fn never_a_wrong_pin_is_accepted_after_a_logout_that_a_member_failed() {
    let tokens = Tokens::new(2);
    let (open, faults) = failing(&tokens, "");
    faults[0].add("logout", When::Before, Rv::DEVICE_ERROR);
    open.slot.logout(open.s).unwrap();
    all_up(&open);
    let told = open.slot.login(open.s, UserType::User, Some(b"wrong"));
    assert_eq!(told, Err(Rv::PIN_INCORRECT));
}

#[test]
fn never_a_login_ends_when_another_thread_closes_its_session() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let slot = &open.slot;
    slot.close_all_sessions().unwrap();
    let until = Instant::now() + Duration::from_secs(3);
    let lost = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while Instant::now() < until && lost.load(Ordering::Relaxed) == 0 {
                    let s = slot.open_session(true).unwrap();
                    let told = slot.login(s, UserType::User, Some(PIN.as_bytes()));
                    assert!(matches!(told, Ok(()) | Err(Rv::USER_ALREADY_LOGGED_IN)), "{told:?}");
                    // Nobody logs out, and this session is open.
                    if slot.session_info(s).unwrap().state != ck::CKS_RW_USER_FUNCTIONS {
                        lost.fetch_add(1, Ordering::Relaxed);
                    }
                    slot.close_session(s).unwrap();
                }
            });
        }
    });
    assert_eq!(lost.load(Ordering::Relaxed), 0);
}

#[test]
fn never_one_failed_trial_makes_every_key_unwrappable() {
    let tokens = Tokens::new(2);
    Open::new(&tokens, "").ec_pair(1).unwrap();
    let (open, faults) = failing(&tokens, "balance = \"primary\"");
    // The token is out of memory for a moment, in which the first key is made.
    faults[0].add_times("unwrap_key", 0, 8, When::Before, Rv::DEVICE_MEMORY);
    _ = open.ec_pair(2);
    faults[0].clear();
    assert_eq!(open.ec_pair(3).err(), None);
}

#[test]
fn never_a_key_is_not_made_when_the_member_that_made_it_dies_and_enough_others_are_up() {
    let tokens = Tokens::new(3);
    let (open, faults) = failing(&tokens, "balance = \"primary\"\nmin_copies = 2");
    open.ec_pair(1).unwrap();
    let first = Arc::clone(&faults[0]);
    faults[0].hook("wrap_key", When::Before, move || first.dead.store(true, Ordering::SeqCst));
    assert_eq!(open.ec_pair(2).err(), None);
}

#[test]
fn never_a_session_key_is_not_made_when_its_member_dies_right_after_making_it() {
    let tokens = Tokens::new(2);
    let (open, faults) = failing(&tokens, "balance = \"primary\"");
    let first = Arc::clone(&faults[0]);
    faults[0].hook("generate_key", When::After, move || first.dead.store(true, Ordering::SeqCst));
    let template = vec![Attribute::ulong(ck::CKA_VALUE_LEN, 32), yes(ck::CKA_ENCRYPT)];
    let made = open.slot.generate_key(open.s, &mut plain(ck::CKM_AES_KEY_GEN), &template);
    assert_eq!(made.err(), None);
}

#[test]
fn never_a_template_that_says_token_twice_makes_an_orphan_on_one_member() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let mut template = data(b"twice", b"v");
    template[0] = Attribute::bool(ck::CKA_TOKEN, false);
    template.push(yes(ck::CKA_TOKEN));
    let told = open.slot.create_object(open.s, &template);
    drop(open);
    let there = count(&tokens, "twice");
    assert!(there == [0, 0] || there == [1, 1], "told {told:?}, there {there:?}");
}

#[test]
fn never_an_object_that_is_called_like_the_groups_keys_is_acknowledged_and_never_seen() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let name = b"pkcs11-ha group key";
    if open.slot.create_object(open.s, &data(name, b"v")).is_ok() {
        drop(open);
        assert_eq!(Open::new(&tokens, "").find(&named(name)).len(), 1);
    }
}

#[test]
fn never_copies_of_one_key_and_name_take_each_others_attributes() {
    let tokens = Tokens::new(2);
    let may = |extracted| vec![id(1), Attribute::bool(ck::CKA_EXTRACTABLE, extracted)];
    {
        let open = Open::new(&tokens, "");
        let template = secret(1, &[yes(ck::CKA_ENCRYPT), yes(ck::CKA_EXTRACTABLE)]);
        let key = open.slot.generate_key(open.s, &mut plain(ck::CKM_AES_KEY_GEN), &template).unwrap();
        for _ in 0..3 {
            let sealed = vec![Attribute::bool(ck::CKA_EXTRACTABLE, false)];
            open.slot.copy_object(open.s, key, &sealed).unwrap();
        }
    }
    for _ in 0..3 {
        let open = Open::new(&tokens, "balance = \"round-robin\"");
        for _ in 0..4 {
            let found = open.find(&may(true));
            assert_eq!(found.len(), 1);
            assert_eq!(value(&open, found[0], ck::CKA_EXTRACTABLE), [1]);
        }
    }
}

#[test]
fn never_session_keys_of_two_sessions_cannot_be_used_together() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "balance = \"round-robin\"");
    let slot = &open.slot;
    let (s1, s2) = (slot.open_session(true).unwrap(), slot.open_session(true).unwrap());
    let key = |s, usage| {
        let length = Attribute::ulong(ck::CKA_VALUE_LEN, 32);
        let template = vec![length, yes(usage), yes(ck::CKA_EXTRACTABLE)];
        slot.generate_key(s, &mut plain(ck::CKM_AES_KEY_GEN), &template).unwrap()
    };
    let (wrapping, wrapped) = (key(s1, ck::CKA_WRAP), key(s2, ck::CKA_ENCRYPT));
    let mut space = [0; 64];
    let mut out = Output::buffer(&mut space);
    let told = slot.wrap_key(s1, &mut plain(ck::CKM_AES_KEY_WRAP), wrapping, wrapped, &mut out);
    assert_eq!(told, Ok(()));
}

#[test]
fn never_what_is_told_of_a_key_does_not_find_it() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let template = secret(1, &[yes(ck::CKA_ENCRYPT)]);
    let key = open.slot.generate_key(open.s, &mut plain(ck::CKM_AES_KEY_GEN), &template).unwrap();
    let mut lost = Vec::new();
    for kind in
        [ck::CKA_LOCAL, ck::CKA_UNIQUE_ID, ck::CKA_KEY_GEN_MECHANISM, ck::CKA_VALUE_LEN, ck::CKA_CHECK_VALUE]
    {
        let told = open.slot.get_attributes(open.s, key, &[kind]).unwrap().remove(0);
        if let ha_token::Fetched::Value(value) = told
            && open.find(&vec![id(1), Attribute { kind, value }]) != [key]
        {
            lost.push(format!("{kind:#x}"));
        }
    }
    assert_eq!(lost, [""; 0]);
}

#[test]
fn never_a_process_dies_in_a_destruction_and_the_key_is_lost_and_stays_for_ever() {
    if std::env::var_os("ATTACK_CHILD").is_some() {
        return;
    }
    // At 0 before the first member destroyed it, at 1 after that.
    for at in 0..2 {
        let tokens = Tokens::in_memory(2);
        Open::new(&tokens, "").ec_pair(1).unwrap();
        dies_in(&tokens, "destroy_object", at);
        let open = heal(&tokens);
        let (seen, there) = (open.find(&private(1)).len(), keys(&tokens, 1));
        assert!((seen, there) == (0, [0, 0]) || (seen, there) == (1, [1, 1]), "{at}: {seen} seen, {there:?}");
    }
}
