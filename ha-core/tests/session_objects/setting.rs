//! A group of two SoftHSM tokens, seen from the test, and what is made in it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_core::policy::health::State;
use ha_rig::{PIN, Tokens, Watch};
use ha_token::*;

use crate::open_group::Open;
use crate::watched::{lose, start};

pub const REPLAY: &str = "session_objects = \"replay\"\nbalance = \"primary\"";

pub fn plain(kind: Ulong) -> Mechanism {
    Mechanism::plain(kind)
}

pub fn yes(kinds: &[Ulong]) -> Template {
    kinds.iter().map(|k| Attribute::bool(*k, true)).collect()
}

pub fn label(label: &str) -> Attribute {
    Attribute::bytes(ck::CKA_LABEL, label)
}

pub fn with(mut template: Template, more: &[Attribute]) -> Template {
    template.extend_from_slice(more);
    template
}

pub fn extractable(may: bool) -> Attribute {
    Attribute::bool(ck::CKA_EXTRACTABLE, may)
}

pub struct Setting {
    pub open: Open,
    pub watches: Vec<Arc<Watch>>,
}

impl Setting {
    pub fn new(tokens: &Tokens, group: &str) -> Self {
        _ = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::INFO)
            .with_test_writer()
            .try_init();
        let (provider, watches) = start(&tokens.config(false, group));
        let slot = Arc::clone(provider.slot(0).unwrap());
        let s = slot.open_session(true).unwrap();
        slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
        let setting = Setting { open: Open { provider, slot, s }, watches };
        // Group keys, as a group in use has them.
        setting.all_up();
        setting
    }

    pub fn slot(&self) -> &dyn Token {
        &*self.open.slot
    }

    pub fn s(&self) -> SessionHandle {
        self.open.s
    }

    /// From now on the member answers nothing but that it is dead; nobody knows yet.
    pub fn kill(&self, member: usize) {
        self.watches[member].dead.store(true, Ordering::Release);
    }

    /// It is back, on a new connection.
    pub fn back(&self, member: usize) {
        lose(&self.open.provider.groups()[0], member, &self.watches[member]);
        self.watches[member].dead.store(false, Ordering::Release);
        self.all_up();
    }

    pub fn all_up(&self) {
        self.open.wait("all up", |g| g.members.iter().all(|m| m.state() == State::Up));
    }

    pub fn generate(&self, kind: Ulong, template: &Template) -> ObjectHandle {
        self.slot().generate_key(self.s(), &mut plain(kind), template).unwrap()
    }

    pub fn aes(&self, more: &[Attribute]) -> ObjectHandle {
        let template = yes(&[ck::CKA_ENCRYPT, ck::CKA_DECRYPT, ck::CKA_SIGN]);
        self.generate(
            ck::CKM_AES_KEY_GEN,
            &with(with(template, &[Attribute::ulong(ck::CKA_VALUE_LEN, 32)]), more),
        )
    }

    pub fn pair(
        &self,
        kind: Ulong,
        public: &[Attribute],
        private: &[Attribute],
    ) -> (ObjectHandle, ObjectHandle) {
        self.slot()
            .generate_key_pair(self.s(), &mut plain(kind), &public.to_vec(), &private.to_vec())
            .unwrap()
    }

    pub fn create(&self, template: &Template) -> ObjectHandle {
        self.slot().create_object(self.s(), template).unwrap()
    }

    pub fn op(&self, kind: OpKind, mechanism: Ulong, key: ObjectHandle, input: &[u8]) -> Result<Vec<u8>> {
        self.slot().op_init(self.s(), kind, Some(&mut plain(mechanism)), key)?;
        let mut space = [0; 512];
        let mut out = Output::buffer(&mut space);
        self.slot().op_one_shot(self.s(), kind, input, &mut out)?;
        Ok(out.written().to_vec())
    }

    pub fn value(&self, object: ObjectHandle, kind: Ulong) -> Result<Vec<u8>> {
        let fetched = self.slot().get_attributes(self.s(), object, &[kind])?;
        Ok(fetched[0].bytes().unwrap_or_default().to_vec())
    }

    pub fn named(&self, name: &str) -> Vec<ObjectHandle> {
        self.open.find(&vec![label(name)])
    }
}

pub fn secret(value: &[u8], key_type: Ulong, name: &str) -> Template {
    let usage = yes(&[ck::CKA_SIGN, ck::CKA_ENCRYPT]);
    let is = [
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
        Attribute::ulong(ck::CKA_KEY_TYPE, key_type),
        Attribute::bytes(ck::CKA_VALUE, value),
        label(name),
    ];
    with(usage, &is)
}

pub fn data(private: bool, value: &[u8], name: &str) -> Template {
    vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bool(ck::CKA_PRIVATE, private),
        Attribute::bytes(ck::CKA_VALUE, value),
        label(name),
    ]
}

pub fn hmac_key(setting: &Setting, name: &str) -> ObjectHandle {
    let usage = yes(&[ck::CKA_SIGN, ck::CKA_VERIFY]);
    let is = [Attribute::ulong(ck::CKA_VALUE_LEN, 32), label(name)];
    setting.generate(ck::CKM_GENERIC_SECRET_KEY_GEN, &with(usage, &is))
}
