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
    Attribute, Mechanism, ObjectHandle, OpKind, Output, SessionHandle, Template, TemplateExt, Token,
    UserType, ck,
};
use simulations::token::{Device, Profile, RsaPool};

const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const PIN: &[u8] = b"1234";
const SO_PIN: &[u8] = b"12345678";

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

fn provider(devices: &[Device], state: &std::path::Path, group: &str) -> Provider {
    let mut text = format!(
        "state_dir = {state:?}\n[[group]]\nlabel = \"ha\"\ndeadline = \"off\"\n{group}\n[group.recovery]\ninterval = \"20ms\"\n"
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
        let devices = devices(profiles);
        let state = tempfile::tempdir().unwrap();
        let provider = provider(&devices, state.path(), "min_copies = 1");
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
    while g.provider.groups()[0].up().count() == 2 {
        g.sign(ck::CKM_ECDSA, ec.1, &[7; 32]);
    }
    g.devices[1].initialise(None);
    g.devices[1].find_token();
    g.wait(|group| group.members.iter().all(|m| m.state() == State::Up));
    assert_eq!((g.held(0), g.held(1)), (before.clone(), before));
    assert_eq!(g.words(), [Word::Same; 4]);
}

/// The group keys go to a member that the security officer of another one trusts, and to nobody else.
#[test]
fn a_ceremony_enrols_the_members() {
    let devices = devices(&[Profile::softhsm(), Profile::softhsm()]);
    let state = tempfile::tempdir().unwrap();
    let provider = provider(&devices, state.path(), "");
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
