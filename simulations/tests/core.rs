//! The real core over simulated tokens: keys of every kind on both members, a member lost and taken back, every object the
//! same afterwards.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;

use ha_core::config::Config;
use ha_core::group::Word;
use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_core::seam::System;
use ha_token::{
    Attribute, Mechanism, ObjectHandle, OpKind, Output, Rv, SessionHandle, Template, TemplateExt, Token,
    UserType, ck,
};
use simulations::token::{Device, Profile, RsaPool};

const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const PIN: &[u8] = b"1234";
const SO_PIN: &[u8] = b"12345678";
/// Members are back soon.
const INTERVAL: &str = "interval = \"20ms\"";

struct Group {
    devices: Vec<Device>,
    provider: Provider,
    slot: Arc<dyn Token>,
    s: SessionHandle,
    _state: tempfile::TempDir,
}

fn devices(profiles: &[Profile]) -> Vec<Device> {
    let pool = RsaPool::default();
    let one = |(i, profile): (usize, &Profile)| {
        let label = format!("member-{i}");
        let serial = format!("{:016x}", i + 1);
        Device::with_pool(profile.clone(), &label, &serial, SO_PIN, PIN, i as u64 + 1, &pool)
    };
    profiles.iter().enumerate().map(one).collect()
}

fn provider(devices: &[Device], state: &std::path::Path, group: &str, recovery: &str) -> Provider {
    let mut text = format!(
        "state_dir = {state:?}\n[[group]]\nlabel = \"ha\"\ndeadline = \"off\"\n{group}\n[group.recovery]\n{recovery}\n"
    );
    for i in 0..devices.len() {
        text.push_str(&format!(
            "[[group.member]]\nname = \"m{i}\"\nmodule = \"/simulated\"\ntoken = \"member-{i}\"\n"
        ));
    }
    let connectors = devices.iter().map(Device::connector).collect();
    Provider::with_members(Config::parse(&text).unwrap(), System::new(), vec![connectors]).unwrap()
}

impl Group {
    fn new(profiles: &[Profile]) -> Self {
        Group::with(profiles, "")
    }

    fn with(profiles: &[Profile], settings: &str) -> Self {
        Group::recovering(INTERVAL, profiles, settings)
    }

    fn recovering(recovery: &str, profiles: &[Profile], settings: &str) -> Self {
        let devices = devices(profiles);
        let state = tempfile::tempdir().unwrap();
        let settings = format!("min_copies = 1\n{settings}");
        let provider = provider(&devices, state.path(), &settings, recovery);
        let slot = Arc::clone(provider.slot(0).unwrap());
        let s = slot.open_session(true).unwrap();
        let group = Group { devices, provider, slot, s, _state: state };
        group.wait(|g| g.up().count() == profiles.len());
        group.slot.login(s, UserType::User, Some(PIN)).unwrap();
        group
    }

    fn wait(&self, seen: impl Fn(&ha_core::group::Group) -> bool) {
        while !seen(&self.provider.groups()[0]) {
            std::thread::yield_now();
        }
    }

    fn pair(
        &self,
        mechanism: ck::CK_MECHANISM_TYPE,
        public: Attribute,
        id: u8,
    ) -> (ObjectHandle, ObjectHandle) {
        let common = [Attribute::bool(ck::CKA_TOKEN, true), Attribute::bytes(ck::CKA_ID, [id])];
        let mut public = vec![public, Attribute::bool(ck::CKA_VERIFY, true)];
        public.extend(common.clone());
        let mut private = vec![Attribute::bool(ck::CKA_SIGN, true), Attribute::bool(ck::CKA_PRIVATE, true)];
        private.extend(common);
        self.slot.generate_key_pair(self.s, &mut Mechanism::plain(mechanism), &public, &private).unwrap()
    }

    fn secret(&self, mechanism: ck::CK_MECHANISM_TYPE, usage: ck::CK_ATTRIBUTE_TYPE, id: u8) -> ObjectHandle {
        let template = vec![
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::bytes(ck::CKA_ID, [id]),
            Attribute::ulong(ck::CKA_VALUE_LEN, 32),
            Attribute::bool(usage, true),
        ];
        self.slot.generate_key(self.s, &mut Mechanism::plain(mechanism), &template).unwrap()
    }

    fn data(&self, label: &[u8]) -> ObjectHandle {
        let template = vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::bytes(ck::CKA_LABEL, label),
            Attribute::bytes(ck::CKA_VALUE, *b"some data"),
        ];
        self.slot.create_object(self.s, &template).unwrap()
    }

    fn sign(&self, mechanism: ck::CK_MECHANISM_TYPE, key: ObjectHandle, data: &[u8]) -> Vec<u8> {
        let (slot, s) = (&self.slot, self.s);
        slot.op_init(s, OpKind::Sign, Some(&mut Mechanism::plain(mechanism)), key).unwrap();
        let mut space = [0; 512];
        let mut out = Output::buffer(&mut space);
        slot.op_one_shot(s, OpKind::Sign, data, &mut out).unwrap();
        out.written().to_vec()
    }

    fn verifies(
        &self,
        mechanism: ck::CK_MECHANISM_TYPE,
        key: ObjectHandle,
        data: &[u8],
        signature: &[u8],
    ) -> bool {
        self.slot.op_init(self.s, OpKind::Verify, Some(&mut Mechanism::plain(mechanism)), key).unwrap();
        self.slot.verify(self.s, data, signature).is_ok()
    }

    fn words(&self) -> Vec<Word> {
        self.provider.groups()[0].check(true).unwrap().iter().map(|c| c.worst()).collect()
    }

    /// The objects of the application on a device, by what they are.
    fn held(&self, device: usize) -> Vec<(ck::CK_OBJECT_CLASS, Vec<u8>, Vec<u8>)> {
        let ours = |label: &[u8]| label.starts_with(b"pkcs11-ha");
        let all = self.devices[device].inspect().into_iter();
        let mut held: Vec<_> = all.filter(|o| !ours(&o.label)).map(|o| (o.class, o.id, o.material)).collect();
        held.sort();
        held
    }
}

fn lives_a_life(profiles: &[Profile]) {
    let g = Group::new(profiles);
    let ec = g.pair(ck::CKM_EC_KEY_PAIR_GEN, Attribute::bytes(ck::CKA_EC_PARAMS, P256), 1);
    let rsa = g.pair(ck::CKM_RSA_PKCS_KEY_PAIR_GEN, Attribute::ulong(ck::CKA_MODULUS_BITS, 2048), 2);
    g.secret(ck::CKM_AES_KEY_GEN, ck::CKA_ENCRYPT, 3);
    let mac = g.secret(ck::CKM_GENERIC_SECRET_KEY_GEN, ck::CKA_SIGN, 4);
    let data = g.data(b"kept");
    assert_eq!(g.words(), [Word::Same; 7]);
    assert_eq!(g.held(0), g.held(1));
    assert_eq!(g.held(0).len(), 7);

    for (mechanism, pair, digest) in
        [(ck::CKM_ECDSA, ec, &[7; 32][..]), (ck::CKM_SHA256_RSA_PKCS, rsa, b"a message")]
    {
        let signature = g.sign(mechanism, pair.1, digest);
        assert!(g.verifies(mechanism, pair.0, digest, &signature));
        assert!(!g.verifies(mechanism, pair.0, &[8; 32], &signature));
    }
    assert_eq!(g.sign(ck::CKM_SHA256_HMAC, mac, b"m"), g.sign(ck::CKM_SHA256_HMAC, mac, b"m"));

    g.slot.destroy_object(g.s, data).unwrap();
    assert_eq!((g.held(0).len(), g.held(1).len()), (6, 6));

    // A lost token looks healthy until somebody wants something of it.
    g.devices[1].lose_token();
    for _ in 0..8 {
        let signature = g.sign(ck::CKM_ECDSA, ec.1, &[7; 32]);
        assert!(g.verifies(ck::CKM_ECDSA, ec.0, &[7; 32], &signature));
    }
    g.wait(|group| group.up().count() == 1);
    g.secret(ck::CKM_AES_KEY_GEN, ck::CKA_ENCRYPT, 5);
    assert_eq!(g.held(1).len(), 6, "what is away gets nothing");
    g.devices[1].find_token();
    g.wait(|group| group.members.iter().all(|m| m.state() == State::Up));
    assert_eq!(g.words(), [Word::Same; 7]);
    assert_eq!(g.held(0), g.held(1));
    let attempts = g.devices.iter().map(|d| d.login_attempts().refused.len());
    assert_eq!(attempts.sum::<usize>(), 0);
}

#[test]
fn two_softhsm_tokens_hold_equal_keys_through_a_loss() {
    lives_a_life(&[Profile::softhsm(), Profile::softhsm()]);
}

#[test]
fn two_kryoptic_tokens_hold_equal_keys_through_a_loss() {
    lives_a_life(&[Profile::kryoptic(), Profile::kryoptic()]);
}

#[test]
fn tokens_of_two_makes_hold_equal_keys_through_a_loss() {
    lives_a_life(&[Profile::kryoptic(), Profile::softhsm()]);
}

#[test]
fn a_token_that_was_made_anew_is_given_what_another_one_holds() {
    let g = Group::new(&[Profile::softhsm(), Profile::softhsm()]);
    let ec = g.pair(ck::CKM_EC_KEY_PAIR_GEN, Attribute::bytes(ck::CKA_EC_PARAMS, P256), 1);
    g.secret(ck::CKM_AES_KEY_GEN, ck::CKA_ENCRYPT, 2);
    g.data(b"kept");
    let gone = g.data(b"gone");
    g.slot.destroy_object(g.s, gone).unwrap();
    let before = g.held(0);
    g.devices[1].lose_token();
    // The other one may be suspect for a moment.
    while g.provider.groups()[0].members.get(1).unwrap().is_up() {
        g.sign(ck::CKM_ECDSA, ec.1, &[7; 32]);
    }
    g.devices[1].initialise(None);
    g.devices[1].find_token();
    g.wait(|group| group.members.iter().all(|m| m.state() == State::Up));
    assert_eq!((g.held(0), g.held(1)), (before.clone(), before));
    assert_eq!(g.words(), [Word::Same; 4]);
}

/// A login that was lost and made again leaves the member able to give the group keys.
#[test]
fn a_member_that_had_lost_its_login_gives_another_one_what_that_has_lost() {
    let g = Group::new(&[Profile::softhsm(), Profile::softhsm()]);
    let ec = g.pair(ck::CKM_EC_KEY_PAIR_GEN, Attribute::bytes(ck::CKA_EC_PARAMS, P256), 1);
    g.secret(ck::CKM_AES_KEY_GEN, ck::CKA_ENCRYPT, 2);
    let before = g.held(0);
    let accepted = g.devices[0].login_attempts().accepted;
    g.devices[0].drop_sessions();
    while g.devices[0].login_attempts().accepted == accepted {
        g.sign(ck::CKM_ECDSA, ec.1, &[7; 32]);
    }
    g.devices[1].lose_token();
    // The other one may be suspect for a moment.
    while g.provider.groups()[0].members.get(1).unwrap().is_up() {
        g.sign(ck::CKM_ECDSA, ec.1, &[7; 32]);
    }
    g.devices[1].initialise(None);
    g.devices[1].find_token();
    g.wait(|group| group.members.iter().all(|m| m.state() == State::Up));
    assert_eq!((g.held(0), g.held(1)), (before.clone(), before));
}

/// How many of so many signatures each member makes.
fn shares(g: &Group, key: ObjectHandle, signatures: usize) -> Vec<u64> {
    let served = || g.provider.groups()[0].served();
    let before = served();
    for _ in 0..signatures {
        g.sign(ck::CKM_ECDSA, key, &[7; 32]);
    }
    served().iter().zip(before).map(|(after, before)| after - before).collect()
}

fn goes_and_comes_back(g: &Group, key: ObjectHandle) {
    g.devices[1].lose_token();
    // The other one may be suspect for a moment.
    while g.provider.groups()[0].members.get(1).unwrap().is_up() {
        g.sign(ck::CKM_ECDSA, key, &[7; 32]);
    }
    g.devices[1].find_token();
    assert!(g.provider.groups()[0].recover("m1"));
    g.wait(|group| group.up().count() == 2);
}

#[test]
fn a_member_that_has_just_come_back_serves_little_at_first() {
    let slow = Group::recovering(
        "interval = \"1h\"\nmax_interval = \"1h\"",
        &[Profile::softhsm(), Profile::softhsm()],
        "",
    );
    let ec = slow.pair(ck::CKM_EC_KEY_PAIR_GEN, Attribute::bytes(ck::CKA_EC_PARAMS, P256), 1).1;
    let fair = shares(&slow, ec, 512);
    assert!(fair[1] >= 128, "{fair:?} before it was away");
    goes_and_comes_back(&slow, ec);
    // Of turns, and in each second one it would have come first: an eighth of ten hours is not over soon.
    let little = shares(&slow, ec, 512);
    assert!((16..=80).contains(&little[1]), "{little:?} when it has just come back");
    // Where nobody else can it serves all of it.
    slow.devices[0].lose_token();
    while slow.provider.groups()[0].members.get(0).unwrap().is_up() {
        slow.sign(ck::CKM_ECDSA, ec, &[7; 32]);
    }
    assert_eq!(shares(&slow, ec, 8)[1], 8);
}

#[test]
fn a_member_that_has_been_back_for_a_while_serves_its_whole_share() {
    let g = Group::new(&[Profile::softhsm(), Profile::softhsm()]);
    let ec = g.pair(ck::CKM_EC_KEY_PAIR_GEN, Attribute::bytes(ck::CKA_EC_PARAMS, P256), 1).1;
    goes_and_comes_back(&g, ec);
    while shares(&g, ec, 512)[1] < 200 {}
}

/// The group keys go to a member that the security officer of another one trusts, and to nobody else.
#[test]
fn a_ceremony_enrols_the_members() {
    let devices = devices(&[Profile::softhsm(), Profile::softhsm()]);
    let state = tempfile::tempdir().unwrap();
    let provider = provider(&devices, state.path(), "", INTERVAL);
    let group = &provider.groups()[0];
    while group.up().count() < 2 {
        std::thread::yield_now();
    }
    group.enrol_with_ceremony(PIN, SO_PIN).unwrap();
    let keys = |d: &Device| -> Vec<_> {
        let all = d.inspect().into_iter().filter(|o| o.class == ck::CKO_SECRET_KEY);
        all.map(|o| (o.material, o.attributes.get_bool(ck::CKA_WRAP_WITH_TRUSTED))).collect()
    };
    assert_eq!(keys(&devices[0]).len(), 2);
    assert_eq!(keys(&devices[0]), keys(&devices[1]));
    assert!(keys(&devices[0]).iter().all(|k| k.1 == Some(true)));
    let left = devices.iter().flat_map(Device::inspect).filter(|o| o.class == ck::CKO_PUBLIC_KEY);
    assert_eq!(left.count(), 0, "the carriers are gone");
}

#[test]
fn what_a_session_makes_ends_with_it() {
    let g = Group::new(&[Profile::softhsm(), Profile::softhsm()]);
    let template: Template =
        vec![Attribute::ulong(ck::CKA_VALUE_LEN, 16), Attribute::bool(ck::CKA_ENCRYPT, true)];
    assert!(template.get(ck::CKA_TOKEN).is_none());
    g.slot.generate_key(g.s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &template).unwrap();
    assert!(g.held(0).is_empty() && g.held(1).is_empty());
    g.slot.close_session(g.s).unwrap();
    drop(g.provider);
    assert!(g.devices.iter().all(|d| d.sessions_open() == 0), "a process that ended has no sessions");
}

/// A token that has lost its sessions has lost their objects, and may give their numbers to others.
#[test]
fn a_handle_that_a_token_gives_again_is_not_taken_for_what_had_it_before() {
    for replay in [false, true] {
        let profile = Profile { reuses_handles: true, ..Profile::softhsm() };
        let settings = if replay { "session_objects = \"replay\"" } else { "" };
        let g = Group::with(&[profile], settings);
        let make = |value: u8| {
            let template = vec![
                Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
                Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET),
                Attribute::bool(ck::CKA_SIGN, true),
                Attribute::bytes(ck::CKA_VALUE, [value; 32]),
            ];
            g.slot.create_object(g.s, &template).unwrap()
        };
        let mac = |key| {
            let hmac = &mut Mechanism::plain(ck::CKM_SHA256_HMAC);
            g.slot.op_init(g.s, OpKind::Sign, Some(hmac), key)?;
            let mut space = [0; 32];
            g.slot.op_one_shot(g.s, OpKind::Sign, b"m", &mut Output::buffer(&mut space))?;
            Ok::<_, Rv>(space)
        };
        let first: Vec<_> = (0..4).map(make).collect();
        let before: Vec<_> = first.iter().map(|key| mac(*key).unwrap()).collect();
        g.devices[0].drop_sessions();
        // As many as there are numbers to be given again.
        let others: Vec<_> = (4..32).map(make).collect();
        for (n, key) in first.into_iter().enumerate() {
            match mac(key) {
                Ok(now) => assert!(replay && now == before[n], "another key's, replay: {replay}"),
                Err(rv) => {
                    let is_lost = matches!(rv, Rv::KEY_HANDLE_INVALID | Rv::DEVICE_ERROR);
                    assert!(!replay && is_lost, "{rv}, replay: {replay}");
                }
            }
        }
        let all: Vec<_> = others.iter().map(|key| mac(*key).unwrap()).collect();
        let distinct: std::collections::BTreeSet<_> = all.iter().chain(&before).collect();
        assert_eq!(distinct.len(), 32);
    }
}

/// A token may give the number of a handle that went with its sessions to another object: no key is used by it.
#[test]
fn a_key_is_proven_anew_where_its_member_uses_the_numbers_of_lost_handles_again() {
    let profile = Profile { reuses_handles: true, ..Profile::softhsm() };
    let g = Group::with(&[profile], "");
    let keys: Vec<_> = (1..7).map(|id| g.secret(ck::CKM_GENERIC_SECRET_KEY_GEN, ck::CKA_SIGN, id)).collect();
    let before: Vec<_> = keys.iter().map(|k| g.sign(ck::CKM_SHA256_HMAC, *k, b"m")).collect();
    for lose in [Device::drop_logins, Device::drop_sessions, Device::drop_handles, Device::drop_sessions] {
        lose(&g.devices[0]);
        g.slot.find_objects_init(g.s, &Template::new()).unwrap();
        g.slot.find_objects(g.s, 100).unwrap();
        g.slot.find_objects_final(g.s).unwrap();
        for (key, mac) in keys.iter().zip(&before) {
            assert_eq!(g.sign(ck::CKM_SHA256_HMAC, *key, b"m"), *mac);
        }
    }
}
