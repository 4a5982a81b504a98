//! A group of real tokens, open and logged in to, as an application has it.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)] // each test file uses a part of it

use std::sync::Arc;

use ha_core::config::Config;
use ha_core::group::Word;
use ha_core::provider::Provider;
use ha_rig::{PIN, Tokens};
use ha_token::{
    Attribute, Mechanism, ObjectHandle, OpKind, Output, Rv, SessionHandle, Template, Token, UserType, ck,
};

pub const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

pub struct Open {
    pub provider: Provider,
    pub slot: Arc<dyn Token>,
    pub s: SessionHandle,
}

impl Open {
    pub fn new(tokens: &Tokens, group: &str) -> Self {
        Self::of(&tokens.config(false, group))
    }

    pub fn of(text: &str) -> Self {
        Self::on(Provider::from_config(Config::parse(text).unwrap()).unwrap())
    }

    pub fn on(provider: Provider) -> Self {
        let slot = Arc::clone(provider.slot(0).unwrap());
        let s = slot.open_session(true).unwrap();
        let open = Open { provider, slot, s };
        open.log_in();
        open
    }

    pub fn log_in(&self) {
        // No member can be asked for a moment when other processes write to all of their files.
        while let Err(rv) = self.slot.login(self.s, UserType::User, Some(PIN.as_bytes())) {
            assert_eq!(rv, Rv::DEVICE_ERROR);
            self.wait("a member is up", |g| g.up().next().is_some());
        }
    }

    pub fn ec_pair(&self, id: u8) -> ha_token::Result<(ObjectHandle, ObjectHandle)> {
        let public = vec![
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::bytes(ck::CKA_EC_PARAMS, P256),
            Attribute::bool(ck::CKA_VERIFY, true),
            Attribute::bytes(ck::CKA_ID, [id]),
            Attribute::bytes(ck::CKA_LABEL, *b"key"),
        ];
        let private = vec![
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::bool(ck::CKA_PRIVATE, true),
            Attribute::bool(ck::CKA_SIGN, true),
            Attribute::bytes(ck::CKA_ID, [id]),
            Attribute::bytes(ck::CKA_LABEL, *b"key"),
        ];
        self.slot.generate_key_pair(self.s, &mut Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN), &public, &private)
    }

    pub fn find(&self, template: &Template) -> Vec<ObjectHandle> {
        self.slot.find_objects_init(self.s, template).unwrap();
        let found = self.slot.find_objects(self.s, 1000).unwrap();
        self.slot.find_objects_final(self.s).unwrap();
        found
    }

    pub fn sign(&self, key: ObjectHandle) -> ha_token::Result<Vec<u8>> {
        self.slot.op_init(self.s, OpKind::Sign, Some(&mut Mechanism::plain(ck::CKM_ECDSA)), key)?;
        let mut space = [0; 256];
        let mut out = Output::buffer(&mut space);
        self.slot.op_one_shot(self.s, OpKind::Sign, &[7; 32], &mut out)?;
        Ok(out.written().to_vec())
    }

    pub fn words(&self, prove: bool) -> Vec<Word> {
        self.provider.groups()[0].check(prove).unwrap().iter().map(|c| c.worst()).collect()
    }

    pub fn wait(&self, what: &str, f: impl Fn(&ha_core::group::Group) -> bool) {
        let group = &self.provider.groups()[0];
        while !f(group) {
            std::thread::yield_now();
        }
        eprintln!("seen: {what}");
    }
}

pub fn private(id: u8) -> Template {
    vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_PRIVATE_KEY), Attribute::bytes(ck::CKA_ID, [id])]
}
