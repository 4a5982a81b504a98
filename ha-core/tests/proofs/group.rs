//! A group of two SoftHSM tokens, and a member's token without the group.

use std::sync::Arc;

use ha_core::config::Config;
use ha_core::group::Word;
use ha_core::provider::{Provider, connector};
use ha_rig::{PIN, Tokens};
use ha_token::{
    Attribute, Connector, Mechanism, ObjectHandle, OpKind, Output, Result, SessionHandle, Template,
    TemplateExt, Token, Ulong, UserType, ck,
};

pub(crate) struct Open {
    pub(crate) provider: Provider,
    pub(crate) slot: Arc<dyn Token>,
    pub(crate) s: SessionHandle,
}

impl Open {
    pub(crate) fn new(tokens: &Tokens, group: &str) -> Self {
        let provider = Provider::from_config(Config::parse(&tokens.config(false, group)).unwrap()).unwrap();
        let slot = Arc::clone(provider.slot(0).unwrap());
        let s = slot.open_session(true).unwrap();
        slot.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
        Open { provider, slot, s }
    }

    pub(crate) fn find(&self, template: &Template) -> Vec<ObjectHandle> {
        found(&*self.slot, self.s, template)
    }

    pub(crate) fn one(&self, class: Ulong, id: &[u8]) -> ObjectHandle {
        let found =
            self.find(&vec![Attribute::ulong(ck::CKA_CLASS, class), Attribute::bytes(ck::CKA_ID, id)]);
        assert_eq!(found.len(), 1, "{id:?}");
        found[0]
    }

    /// The worst word of every object, by id, and what was said of those that are not the same. What is the same was shown
    /// to be by each member.
    pub(crate) fn doubts(&self) -> Vec<(Vec<u8>, Word, Vec<String>)> {
        let examined = self.provider.groups()[0].examine().unwrap();
        for one in &examined.objects {
            assert_eq!(one.object.worst(), one.copies.iter().map(|c| c.word).max().unwrap());
            for copy in one.copies.iter().filter(|c| c.word == Word::Same) {
                assert!(copy.shown.is_some(), "{one:?}");
            }
        }
        let checked = examined.objects.into_iter().map(|one| one.object);
        let doubtful = checked.filter(|c| c.worst() != Word::Same);
        doubtful.map(|c| (c.id.clone(), c.worst(), c.reasons)).collect()
    }

    /// Session objects that were left behind on the members, the application's own not counted.
    pub(crate) fn left_behind(&self) -> usize {
        let mut count = 0;
        for member in self.provider.groups()[0].members.iter() {
            let link = member.link().unwrap();
            let session = vec![Attribute::bool(ck::CKA_TOKEN, false)];
            let there = found(&*link.token, link.anchor(), &session);
            count += there.into_iter().filter(|h| link.virtual_of(*h).is_none()).count();
        }
        count
    }

    pub(crate) fn value(&self, object: ObjectHandle, kind: Ulong) -> Vec<u8> {
        self.slot.get_attributes(self.s, object, &[kind]).unwrap()[0].bytes().unwrap().to_vec()
    }

    pub(crate) fn operate(
        &self,
        kind: OpKind,
        mechanism: Ulong,
        key: ObjectHandle,
        input: &[u8],
    ) -> Result<Vec<u8>> {
        self.slot.op_init(self.s, kind, Some(&mut Mechanism::plain(mechanism)), key)?;
        let mut space = [0; 1024];
        let mut out = Output::buffer(&mut space);
        self.slot.op_one_shot(self.s, kind, input, &mut out)?;
        Ok(out.written().to_vec())
    }
}

fn found(token: &dyn Token, s: SessionHandle, template: &Template) -> Vec<ObjectHandle> {
    token.find_objects_init(s, template).unwrap();
    let mut all = Vec::new();
    loop {
        let some = token.find_objects(s, 100).unwrap();
        if some.is_empty() {
            break;
        }
        all.extend(some);
    }
    token.find_objects_final(s).unwrap();
    all
}

/// A member's token, reached without the group.
pub(crate) struct Bare {
    pub(crate) token: Arc<dyn Token>,
    pub(crate) s: SessionHandle,
}

impl Bare {
    pub(crate) fn new(tokens: &Tokens, member: usize) -> Self {
        let config = Config::parse(&tokens.config(false, "")).unwrap();
        let token = connector(&config.groups[0].members[member]).connect().unwrap();
        let s = token.open_session(true).unwrap();
        token.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
        Bare { token, s }
    }

    pub(crate) fn find(&self, template: &Template) -> Vec<ObjectHandle> {
        found(&*self.token, self.s, template)
    }

    /// Objects on the token that are not the group's own.
    pub(crate) fn objects(&self) -> usize {
        let ours = [
            Attribute::bytes(ck::CKA_LABEL, *b"pkcs11-ha group key"),
            Attribute::bytes(ck::CKA_APPLICATION, *b"pkcs11-ha"),
        ];
        let ours = ours.map(|called| self.find(&vec![called]).len());
        self.find(&Template::new()).len() - ours.iter().sum::<usize>()
    }

    /// A secret as a token object that was unwrapped, so that it does not say its length.
    pub(crate) fn unwrapped(&self, value: &[u8], template: &Template) -> ObjectHandle {
        let public = vec![Attribute::ulong(ck::CKA_MODULUS_BITS, 2048), Attribute::bool(ck::CKA_WRAP, true)];
        let private = vec![Attribute::bool(ck::CKA_UNWRAP, true)];
        let mut generate = Mechanism::plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN);
        let (public, private) =
            self.token.generate_key_pair(self.s, &mut generate, &public, &private).unwrap();
        let mut known = vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
            Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET),
            Attribute::bool(ck::CKA_EXTRACTABLE, true),
        ];
        known.push(Attribute::bytes(ck::CKA_VALUE, value));
        let known = self.token.create_object(self.s, &known).unwrap();
        let mut space = [0; 512];
        let mut out = Output::buffer(&mut space);
        let mut pkcs = Mechanism::plain(ck::CKM_RSA_PKCS);
        self.token.wrap_key(self.s, &mut pkcs, public, known, &mut out).unwrap();
        let mut whole = vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
            Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET),
            Attribute::bool(ck::CKA_TOKEN, true),
        ];
        template.iter().for_each(|a| whole.set(a.clone()));
        let made = self.token.unwrap_key(self.s, &mut pkcs, private, out.written(), &whole).unwrap();
        for gone in [public, private, known] {
            self.token.destroy_object(self.s, gone).unwrap();
        }
        let length = self.token.get_attributes(self.s, made, &[ck::CKA_VALUE_LEN]).unwrap();
        assert!(length[0].bytes().unwrap().iter().all(|b| *b == 0), "it does not say its length");
        made
    }
}
