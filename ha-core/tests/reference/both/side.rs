//! One of the two, with its own handles; and the values of keys that both are given.

use std::collections::BTreeMap;
use std::sync::Arc;

use ha_rig::{PIN, RSA_PARTS};
use ha_token::{Attribute, Mechanism, ObjectHandle, Result, SessionHandle, Template, Token, UserType, ck};

use super::P256;
use crate::calls::{Id, Kind};

/// A handle that neither gives in all the tests.
pub(super) const NOBODY: ck::CK_ULONG = 0x7fff_fff0;

/// What is unwrapped where nothing was wrapped.
const NO_BLOB: [u8; 40] = [3; 40];

/// One of the two.
pub(super) struct Side {
    pub(super) token: Arc<dyn Token>,
    pub(super) sessions: BTreeMap<Id, SessionHandle>,
    pub(super) objects: BTreeMap<Id, ObjectHandle>,
    /// What the search of a session has found so far.
    pub(super) found: BTreeMap<Id, Vec<ObjectHandle>>,
    /// The last signature of a pair or a secret key, over some data.
    pub(super) signatures: BTreeMap<(Id, u8, usize), Vec<u8>>,
    pub(super) blob: Vec<u8>,
}

impl Side {
    pub(super) fn new(token: Arc<dyn Token>) -> Self {
        Side {
            token,
            sessions: BTreeMap::new(),
            objects: BTreeMap::new(),
            found: BTreeMap::new(),
            signatures: BTreeMap::new(),
            blob: NO_BLOB.to_vec(),
        }
    }

    pub(super) fn session(&self, id: Id) -> SessionHandle {
        self.sessions.get(&id).copied().unwrap_or(SessionHandle(NOBODY))
    }

    pub(super) fn object(&self, id: Id) -> ObjectHandle {
        self.objects.get(&id).copied().unwrap_or(ObjectHandle(NOBODY))
    }

    /// Everything there is, in a session that is open already.
    pub(super) fn find(&self, s: SessionHandle, template: &Template) -> Result<Vec<ObjectHandle>> {
        self.token.find_objects_init(s, template)?;
        let found = self.token.find_objects(s, 1000);
        self.token.find_objects_final(s)?;
        found
    }

    /// What an object is called, by its label.
    pub(super) fn id(&self, s: SessionHandle, o: ObjectHandle) -> Option<Id> {
        let read = self.token.get_attributes(s, o, &[ck::CKA_LABEL]).ok()?;
        let label = String::from_utf8(read[0].bytes()?.to_vec()).ok()?;
        label.split('.').next()?.strip_prefix('o')?.parse().ok()
    }

    /// Takes the handles that objects have now: a SoftHSM token gives private ones new handles with each login.
    pub(super) fn look_again(&mut self) {
        let Ok(s) = self.token.open_session(true) else { return };
        for o in self.find(s, &Template::new()).unwrap_or_default() {
            if let Some(place) = self.id(s, o).and_then(|id| self.objects.get_mut(&id)) {
                *place = o;
            }
        }
        self.token.close_session(s).unwrap();
    }

    /// Nothing is left on it but a session with a user logged in. Says whether that was so.
    pub(super) fn empty(&mut self) -> bool {
        self.sessions.clear();
        self.objects.clear();
        self.found.clear();
        self.signatures.clear();
        self.blob = NO_BLOB.to_vec();
        self.token.close_all_sessions().unwrap();
        let s = self.token.open_session(true).unwrap();
        if self.token.login(s, UserType::User, Some(PIN.as_bytes())).is_err() {
            return false;
        }
        for o in self.find(s, &Template::new()).unwrap() {
            // A search after all of them says what was refused.
            _ = self.token.destroy_object(s, o);
        }
        let is_empty = self.find(s, &Template::new()).unwrap().is_empty();
        self.token.close_all_sessions().unwrap();
        is_empty
    }
}

/// Values that keys are made of.
pub(super) struct Values {
    pub(super) ec: Template,
    pub(super) ec_public: Template,
    pub(super) rsa: Template,
    pub(super) rsa_public: Template,
}

impl Values {
    pub(super) fn new(token: &dyn Token) -> Self {
        let s = token.open_session(true).unwrap();
        token.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
        let open =
            vec![Attribute::bool(ck::CKA_SENSITIVE, false), Attribute::bool(ck::CKA_EXTRACTABLE, true)];
        let read = |o, kinds: &[ck::CK_ATTRIBUTE_TYPE]| -> Template {
            let read = token.get_attributes(s, o, kinds).unwrap();
            kinds.iter().zip(read).map(|(k, v)| Attribute::bytes(*k, v.bytes().unwrap())).collect()
        };
        let pair = |mechanism, public| {
            token.generate_key_pair(s, &mut Mechanism::plain(mechanism), &public, &open).unwrap()
        };
        let curve = vec![Attribute::bytes(ck::CKA_EC_PARAMS, P256)];
        let (ec_public, ec) = pair(ck::CKM_EC_KEY_PAIR_GEN, curve);
        let bits = vec![Attribute::ulong(ck::CKA_MODULUS_BITS, 1024)];
        let (rsa_public, rsa) = pair(ck::CKM_RSA_PKCS_KEY_PAIR_GEN, bits);
        let values = Values {
            ec: read(ec, &[ck::CKA_EC_PARAMS, ck::CKA_VALUE]),
            ec_public: read(ec_public, &[ck::CKA_EC_PARAMS, ck::CKA_EC_POINT]),
            rsa: read(rsa, &RSA_PARTS),
            rsa_public: read(rsa_public, &RSA_PARTS[..2]),
        };
        token.close_all_sessions().unwrap();
        values
    }

    pub(super) fn of(&self, kind: Kind) -> Template {
        let value = |n: u8| vec![Attribute::bytes(ck::CKA_VALUE, (0..n).map(|i| i ^ n).collect::<Vec<u8>>())];
        let value = match kind {
            Kind::Data | Kind::Nothing => value(9),
            Kind::Certificate => [vec![Attribute::bytes(ck::CKA_SUBJECT, *b"subject")], value(30)].concat(),
            Kind::Aes(n) | Kind::Generic(n) => value(n),
            Kind::EcPublic => self.ec_public.clone(),
            Kind::EcPrivate => self.ec.clone(),
            Kind::RsaPublic => self.rsa_public.clone(),
            Kind::RsaPrivate => self.rsa.clone(),
            Kind::Ed => Template::new(),
        };
        [kind.class(), value].concat()
    }
}
