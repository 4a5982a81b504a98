//! A bare token and a group side by side, each with its own handles for the same things.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use ha_core::config::Config;
use ha_core::provider::{Provider, connector};
use ha_rig::shown::{READ, printed, shown};
use ha_rig::{PIN, Tokens};
use ha_token::{
    Attribute, Connector as _, Field, FieldValue, Mechanism, ObjectHandle, OpKind, Output, Params, Result,
    SessionHandle, StructParams, Template, Token, UserType, ck,
};

use crate::accepted::{self, Then};
use crate::calls::{Call, Data, Extra, How, Id, Kind, Pin, Room, Signature};
use crate::sketch::{Sketch, each_once};

/// A handle that neither gives in all the tests.
const NOBODY: ck::CK_ULONG = 0x7fff_fff0;

/// What is unwrapped where nothing was wrapped.
const NO_BLOB: [u8; 40] = [3; 40];

const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const ED25519: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];

/// One of the two.
struct Side {
    token: Arc<dyn Token>,
    sessions: BTreeMap<Id, SessionHandle>,
    objects: BTreeMap<Id, ObjectHandle>,
    /// What the search of a session has found so far.
    found: BTreeMap<Id, Vec<ObjectHandle>>,
    /// The last signature of a pair or a secret key, over some data.
    signatures: BTreeMap<(Id, u8, usize), Vec<u8>>,
    blob: Vec<u8>,
}

impl Side {
    fn new(token: Arc<dyn Token>) -> Self {
        Side {
            token,
            sessions: BTreeMap::new(),
            objects: BTreeMap::new(),
            found: BTreeMap::new(),
            signatures: BTreeMap::new(),
            blob: NO_BLOB.to_vec(),
        }
    }

    fn session(&self, id: Id) -> SessionHandle {
        self.sessions.get(&id).copied().unwrap_or(SessionHandle(NOBODY))
    }

    fn object(&self, id: Id) -> ObjectHandle {
        self.objects.get(&id).copied().unwrap_or(ObjectHandle(NOBODY))
    }

    /// Everything there is, in a session that is open already.
    fn find(&self, s: SessionHandle, template: &Template) -> Result<Vec<ObjectHandle>> {
        self.token.find_objects_init(s, template)?;
        let found = self.token.find_objects(s, 1000);
        self.token.find_objects_final(s)?;
        found
    }

    /// What an object is called, by its label.
    fn id(&self, s: SessionHandle, o: ObjectHandle) -> Option<Id> {
        let read = self.token.get_attributes(s, o, &[ck::CKA_LABEL]).ok()?;
        let label = String::from_utf8(read[0].bytes()?.to_vec()).ok()?;
        label.split('.').next()?.strip_prefix('o')?.parse().ok()
    }

    /// Takes the handles that objects have now: a SoftHSM token gives private ones new handles with each login.
    fn look_again(&mut self) {
        let Ok(s) = self.token.open_session(true) else { return };
        for o in self.find(s, &Template::new()).unwrap_or_default() {
            if let Some(place) = self.id(s, o).and_then(|id| self.objects.get_mut(&id)) {
                *place = o;
            }
        }
        self.token.close_session(s).unwrap();
    }

    /// Nothing is left on it but a session with a user logged in. Says whether that was so.
    fn empty(&mut self) -> bool {
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
struct Values {
    ec: Template,
    ec_public: Template,
    rsa: Template,
    rsa_public: Template,
}

impl Values {
    fn new(token: &dyn Token) -> Self {
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
        let numbers = [
            ck::CKA_MODULUS,
            ck::CKA_PUBLIC_EXPONENT,
            ck::CKA_PRIVATE_EXPONENT,
            ck::CKA_PRIME_1,
            ck::CKA_PRIME_2,
            ck::CKA_EXPONENT_1,
            ck::CKA_EXPONENT_2,
            ck::CKA_COEFFICIENT,
        ];
        let values = Values {
            ec: read(ec, &[ck::CKA_EC_PARAMS, ck::CKA_VALUE]),
            ec_public: read(ec_public, &[ck::CKA_EC_PARAMS, ck::CKA_EC_POINT]),
            rsa: read(rsa, &numbers),
            rsa_public: read(rsa_public, &numbers[..2]),
        };
        token.close_all_sessions().unwrap();
        values
    }

    fn of(&self, kind: Kind) -> Template {
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

pub struct Both {
    /// The bare one first.
    sides: [Side; 2],
    values: Values,
    /// Keys whose value is the same on both, and the pair or secret key that a key belongs to.
    equal: BTreeSet<Id>,
    pairs: BTreeMap<Id, Id>,
    /// Whether the operation of a session gives the same bytes on both.
    exact: BTreeMap<(Id, OpKind), bool>,
    blob_is_equal: bool,
    /// Whether something may go on in a session.
    begun: bool,
    /// What follows would differ for a reason that is known.
    ended: bool,
    /// The calls, and how the group answered them.
    told: String,
    provider: Provider,
    _rigs: [Tokens; 2],
}

impl Both {
    pub fn new() -> Self {
        let rigs = [Tokens::in_memory(1), Tokens::in_memory(2)];
        let alone = Config::parse(&rigs[0].config(false, "")).unwrap();
        let bare = connector(&alone.groups[0].members[0]).connect().unwrap();
        let provider = Provider::from_config(Config::parse(&rigs[1].config(false, "")).unwrap()).unwrap();
        let slot = Arc::clone(provider.slot(0).unwrap());
        Both {
            values: Values::new(&*bare),
            sides: [Side::new(bare), Side::new(slot)],
            equal: BTreeSet::new(),
            pairs: BTreeMap::new(),
            exact: BTreeMap::new(),
            blob_is_equal: false,
            begun: false,
            ended: false,
            told: String::new(),
            provider,
            _rigs: rigs,
        }
    }

    /// Nothing is left on the tokens; `None` where that cannot be had, with another PIN or what may not be destroyed.
    pub fn emptied(mut self) -> Option<Self> {
        self.equal.clear();
        self.pairs.clear();
        self.exact.clear();
        self.begun = false;
        self.ended = false;
        self.told.clear();
        let is_empty = self.faults().next().is_none() && self.sides.iter_mut().all(Side::empty);
        is_empty.then_some(self)
    }

    /// What every sequence begins with.
    pub fn start(&mut self) {
        for call in [
            Call::Open { id: Sketch::FIRST, read_write: true },
            Call::Login { s: Sketch::FIRST, user: UserType::User, pin: Pin::User },
        ] {
            self.make(&call).unwrap();
        }
    }

    /// Makes a call on both, and compares.
    pub fn make(&mut self, call: &Call) -> std::result::Result<(), String> {
        if self.ended {
            return Ok(());
        }
        let who = self.who();
        let before = self.sides.each_ref().map(|s| s.objects.clone());
        let [theirs, ours] = [0, 1].map(|side| match self.play(side, call) {
            Ok(answer) => format!("ok {answer}"),
            Err(rv) => format!("{rv}"),
        });
        let name = format!("{call:?} as {who}");
        writeln!(self.told, "{name} -> {ours}").unwrap();
        self.settle(call, theirs.starts_with("ok") && ours.starts_with("ok"));
        // SoftHSM goes on with an operation of a mechanism without parts that was given one.
        if let Call::Update { s, kind, .. } | Call::Final { s, kind, .. } = call
            && ["OPERATION_NOT_INIT", "FUNCTION_NOT_SUPP"].iter().any(|w| theirs.contains(w))
            && self.exact.contains_key(&(*s, *kind))
        {
            self.ended = true;
        }
        if theirs == ours || (matches!(call, Call::Get { .. }) && attributes_may_differ(&theirs, &ours)) {
            return self.check_members();
        }
        match accepted::answers(&name, &theirs, &ours) {
            None => Err(format!("{name}:\n bare  {theirs}\n group {ours}\nafter\n{}", self.told)),
            Some(Then::GoOn) => Ok(()),
            Some(Then::End) => {
                self.ended = true;
                Ok(())
            }
            Some(Then::TakeBack) => {
                self.take_back(call, before);
                Ok(())
            }
        }
    }

    /// Who is logged in.
    fn who(&self) -> &'static str {
        let bare = &self.sides[0];
        let state = bare.sessions.values().find_map(|s| bare.token.session_info(*s).ok()).map(|i| i.state);
        match state {
            Some(ck::CKS_RO_USER_FUNCTIONS | ck::CKS_RW_USER_FUNCTIONS) => "user",
            Some(ck::CKS_RW_SO_FUNCTIONS) => "so",
            _ => "nobody",
        }
    }

    fn faults(&self) -> impl Iterator<Item = String> {
        let members = self.provider.groups()[0].status().members;
        members.into_iter().filter_map(|m| m.last_fault.map(|fault| format!("{}: {fault:?}", m.name)))
    }

    /// Members that are well and are asked what one token is asked are never blamed.
    fn check_members(&mut self) -> std::result::Result<(), String> {
        let fault = self.faults().next();
        match fault {
            // SoftHSM may not find anything any more while there is what is left of a session object that it could not make.
            Some(fault) if fault.contains("FindObjectsInit, rv: CKR_GENERAL_ERROR") => {
                self.ended = true;
                Ok(())
            }
            Some(fault) => Err(format!("{fault}\nafter\n{}", self.told)),
            None => Ok(()),
        }
    }

    fn take_back(&mut self, call: &Call, before: [BTreeMap<Id, ObjectHandle>; 2]) {
        for (side, before) in self.sides.iter_mut().zip(before) {
            let new: Vec<Id> = side.objects.keys().filter(|id| !before.contains_key(id)).copied().collect();
            for id in new {
                let s = side.sessions.values().next().copied().unwrap_or(SessionHandle(NOBODY));
                self.ended |= side.token.destroy_object(s, side.object(id)).is_err();
                side.objects.remove(&id);
            }
        }
        match call {
            Call::Begin { s, kind, .. } => {
                let ours = &self.sides[1];
                self.ended |= ours.token.session_cancel(ours.session(*s), kind.flag()).is_err();
            }
            Call::FindInit { s, .. } => {
                let ours = &self.sides[1];
                self.ended |= ours.token.find_objects_final(ours.session(*s)).is_err();
            }
            _ => {}
        }
    }

    /// Notes what is the same on both.
    fn settle(&mut self, call: &Call, done: bool) {
        if !done {
            return;
        }
        match call {
            Call::Create { id, kind, .. } => {
                self.equal.insert(*id);
                let pair = match kind {
                    Kind::EcPublic | Kind::EcPrivate => Id::MAX - 1,
                    Kind::RsaPublic | Kind::RsaPrivate => Id::MAX - 2,
                    _ => *id,
                };
                self.pairs.insert(*id, pair);
            }
            Call::Generate { id, .. } | Call::Derive { id, .. } => {
                self.pairs.insert(*id, *id);
            }
            Call::Pair { public, private, .. } => {
                self.pairs.extend([(*public, *private), (*private, *private)]);
            }
            Call::Copy { id, of, .. } => {
                if self.equal.contains(of) {
                    self.equal.insert(*id);
                }
                let pair = self.pairs.get(of).copied().unwrap_or(*of);
                self.pairs.insert(*id, pair);
            }
            Call::Wrap { by, key, room: Room::Bytes(_), .. } => {
                self.blob_is_equal = self.equal.contains(by) && self.equal.contains(key);
            }
            Call::Unwrap { id, by, .. } => {
                if self.blob_is_equal && self.equal.contains(by) {
                    self.equal.insert(*id);
                }
                self.pairs.insert(*id, *id);
            }
            Call::Begin { s, kind, how, key } => {
                let by_chance = !how.is_exact() || (*kind == OpKind::Encrypt && *how == How::Rsa);
                let exact = *kind == OpKind::Digest || !by_chance && self.equal.contains(key);
                self.exact.insert((*s, *kind), exact);
                self.begun = true;
            }
            Call::FindInit { .. } => self.begun = true,
            // A logout ends what goes on in a session here, and not on SoftHSM.
            Call::Logout(_) => self.ended = self.begun,
            // All handles are new on SoftHSM when there was no session.
            Call::Open { .. } => self.sides.iter_mut().for_each(Side::look_again),
            Call::DigestKey { s, key } if !self.equal.contains(key) => {
                self.exact.insert((*s, OpKind::Digest), false);
            }
            Call::Login { user: UserType::User | UserType::So, .. } => {
                self.sides.iter_mut().for_each(Side::look_again);
            }
            _ => {}
        }
        if let Call::Derive { id, base, .. } = call
            && self.equal.contains(base)
        {
            self.equal.insert(*id);
        }
    }

    /// The bytes of a signature on one side.
    fn signature(&self, side: usize, key: Id, how: How, data: Data, which: Signature) -> Vec<u8> {
        let pair = self.pairs.get(&key).copied().unwrap_or(key);
        let place = (pair, how as u8, data.0);
        let from = if which == Signature::Others && self.equal.contains(&key) { 1 - side } else { side };
        let mut bytes = match which {
            Signature::Junk(n) => return vec![5; n],
            _ => self.sides[from].signatures.get(&place).cloned().unwrap_or(vec![5; 64]),
        };
        if which == Signature::Spoiled
            && let Some(byte) = bytes.get_mut(10)
        {
            *byte ^= 1;
        }
        bytes
    }

    /// Makes a call on one side. What it answers is printed without what chance is in.
    fn play(&mut self, at: usize, call: &Call) -> Result<String> {
        let token = Arc::clone(&self.sides[at].token);
        let side = &self.sides[at];
        let t = &*token;
        let session = |s: &Id| side.session(*s);
        let object = |o: &Id| side.object(*o);
        let none = || Ok(String::new());
        match call {
            Call::Open { id, read_write } => {
                let s = t.open_session(*read_write)?;
                self.sides[at].sessions.insert(*id, s);
                none()
            }
            Call::Close(s) => {
                t.close_session(session(s))?;
                none()
            }
            Call::CloseAll => {
                t.close_all_sessions()?;
                none()
            }
            Call::Info(s) => {
                let info = t.session_info(session(s))?;
                Ok(format!("{info:?}"))
            }
            Call::Login { s, user, pin } => {
                t.login(session(s), *user, Some(pin.bytes()))?;
                none()
            }
            Call::Logout(s) => {
                t.logout(session(s))?;
                none()
            }
            Call::InitPin { s, pin } => {
                t.init_pin(session(s), Some(pin.bytes()))?;
                none()
            }
            Call::SetPin { s, old, new } => {
                t.set_pin(session(s), Some(old.bytes()), Some(new.bytes()))?;
                none()
            }
            Call::Random { s, count } => {
                t.generate_random(session(s), &mut vec![0; usize::from(*count)])?;
                none()
            }
            Call::Seed(s) => {
                t.seed_random(session(s), &[7; 8])?;
                none()
            }
            Call::State(s) => {
                let info = t.session_info(session(s))?;
                Ok(format!("{}", info.state))
            }
            Call::Create { id, s, kind, extra } => {
                let template = named(*id, [self.values.of(*kind), extra.0.clone()].concat());
                let made = t.create_object(session(s), &template)?;
                self.sides[at].objects.insert(*id, made);
                none()
            }
            Call::Generate { id, s, kind, extra } => {
                let (mechanism, length) = match kind {
                    Kind::Aes(n) => (ck::CKM_AES_KEY_GEN, *n),
                    Kind::Generic(n) => (ck::CKM_GENERIC_SECRET_KEY_GEN, *n),
                    _ => (0x7777_7777, 0),
                };
                let template = named(
                    *id,
                    [vec![Attribute::ulong(ck::CKA_VALUE_LEN, length.into())], extra.0.clone()].concat(),
                );
                let made = t.generate_key(session(s), &mut Mechanism::plain(mechanism), &template)?;
                self.sides[at].objects.insert(*id, made);
                none()
            }
            Call::Pair { public, private, s, kind, extras: [a, b] } => {
                let (mechanism, base) = match kind {
                    Kind::Ed => {
                        (ck::CKM_EC_EDWARDS_KEY_PAIR_GEN, Attribute::bytes(ck::CKA_EC_PARAMS, ED25519))
                    }
                    Kind::RsaPrivate => {
                        (ck::CKM_RSA_PKCS_KEY_PAIR_GEN, Attribute::ulong(ck::CKA_MODULUS_BITS, 1024))
                    }
                    _ => (ck::CKM_EC_KEY_PAIR_GEN, Attribute::bytes(ck::CKA_EC_PARAMS, P256)),
                };
                let a = named(*public, [vec![base], a.0.clone()].concat());
                let b = named(*private, b.0.clone());
                let made = t.generate_key_pair(session(s), &mut Mechanism::plain(mechanism), &a, &b)?;
                self.sides[at].objects.extend([(*public, made.0), (*private, made.1)]);
                none()
            }
            Call::Copy { id, s, of, extra } => {
                let made = t.copy_object(session(s), object(of), &named(*id, extra.0.clone()))?;
                self.sides[at].objects.insert(*id, made);
                none()
            }
            Call::Destroy { s, o } => {
                t.destroy_object(session(s), object(o))?;
                none()
            }
            Call::Size { s, o } => Ok(t.object_size(session(s), object(o))?.to_string()),
            Call::Get { s, o } => {
                let read = t.get_attributes(session(s), object(o), &READ)?;
                Ok(printed(&read, self.equal.contains(o)))
            }
            Call::Set { s, o, extra } => {
                t.set_attributes(session(s), object(o), &extra.0)?;
                none()
            }
            Call::Rename { s, o } => {
                let label = Attribute::bytes(ck::CKA_LABEL, format!("o{o}.again"));
                t.set_attributes(session(s), object(o), &vec![label])?;
                none()
            }
            Call::Find { s, by: Extra(template) } => {
                let s = session(s);
                t.find_objects_init(s, template)?;
                let found = t.find_objects(s, 1000)?;
                t.find_objects_final(s)?;
                self.found(at, s, &found)
            }
            Call::FindInit { s, by: Extra(template) } => {
                t.find_objects_init(session(s), template)?;
                self.sides[at].found.insert(*s, Vec::new());
                none()
            }
            Call::FindNext { s, most } => {
                let found = t.find_objects(session(s), *most)?;
                self.sides[at].found.entry(*s).or_default().extend(found);
                // Which come first, and whether what was destroyed meanwhile still comes, is each token's own affair.
                none()
            }
            Call::FindFinal { s } => {
                t.find_objects_final(session(s))?;
                none()
            }
            Call::Begin { s, kind, how, key } => {
                let key = if *kind == OpKind::Digest { ObjectHandle(0) } else { object(key) };
                t.op_init(session(s), *kind, Some(&mut how.mechanism()), key)?;
                none()
            }
            Call::Cancel { s, kind } => {
                t.op_init(session(s), *kind, None, ObjectHandle(0))?;
                none()
            }
            Call::CancelAll { s } => {
                t.session_cancel(session(s), OpKind::ALL.iter().fold(0, |all, k| all | k.flag()))?;
                none()
            }
            Call::OneShot { s, kind: OpKind::Verify, data, .. } => {
                t.verify(session(s), &data.bytes(), &[5; 64])?;
                none()
            }
            Call::Final { s, kind: OpKind::Verify, .. } => {
                t.verify_final(session(s), &[5; 64])?;
                none()
            }
            Call::OneShot { s, kind, data, room } => {
                let exact = self.exact.get(&(*s, *kind)).is_some_and(|e| *e);
                let s = session(s);
                in_room(*room, exact, |out| t.op_one_shot(s, *kind, &data.bytes(), out))
            }
            Call::Update { s, kind, data, room } => {
                let exact = self.exact.get(&(*s, *kind)).is_some_and(|e| *e);
                let s = session(s);
                in_room(*room, exact, |out| t.op_update(s, *kind, &data.bytes(), out))
            }
            Call::Final { s, kind, room } => {
                let exact = self.exact.get(&(*s, *kind)).is_some_and(|e| *e);
                let s = session(s);
                in_room(*room, exact, |out| t.op_final(s, *kind, out))
            }
            Call::Verify { s, data, signature } => {
                let signature = self.signature(at, Id::MAX, How::Hmac, *data, *signature);
                t.verify(self.sides[at].session(*s), &data.bytes(), &signature)?;
                none()
            }
            Call::VerifyFinal { s, signature } => {
                let signature = self.signature(at, Id::MAX, How::Hmac, Data(32), *signature);
                t.verify_final(self.sides[at].session(*s), &signature)?;
                none()
            }
            Call::DigestKey { s, key } => {
                t.digest_key(session(s), object(key))?;
                none()
            }
            Call::Sign { s, how, key, data, parts } => {
                let s = session(s);
                t.op_init(s, OpKind::Sign, Some(&mut how.mechanism()), object(key))?;
                let mut space = [0; 512];
                let mut out = Output::buffer(&mut space);
                if *parts {
                    feed(&data.bytes(), |part| t.op_update(s, OpKind::Sign, part, &mut Output::query()))?;
                    t.op_final(s, OpKind::Sign, &mut out)?;
                } else {
                    t.op_one_shot(s, OpKind::Sign, &data.bytes(), &mut out)?;
                }
                let made = out.written().to_vec();
                let pair = self.pairs.get(key).copied().unwrap_or(*key);
                let exact = how.is_exact() && self.equal.contains(key);
                let text = shown(&made, exact);
                self.sides[at].signatures.insert((pair, *how as u8, data.0), made);
                Ok(text)
            }
            Call::Check { s, how, key, data, signature, parts } => {
                let signature = self.signature(at, *key, *how, *data, *signature);
                let (s, key) = (self.sides[at].session(*s), self.sides[at].object(*key));
                t.op_init(s, OpKind::Verify, Some(&mut how.mechanism()), key)?;
                if *parts {
                    feed(&data.bytes(), |part| t.op_update(s, OpKind::Verify, part, &mut Output::query()))?;
                    t.verify_final(s, &signature)?;
                } else {
                    t.verify(s, &data.bytes(), &signature)?;
                }
                none()
            }
            Call::Wrap { s, by, key, pad, room } => {
                let (s, with, wrapped) = (session(s), object(by), object(key));
                let exact = self.equal.contains(by) && self.equal.contains(key);
                let mut space = vec![0; if let Room::Bytes(n) = room { *n } else { 0 }];
                let mut out = if *room == Room::Query { Output::query() } else { Output::buffer(&mut space) };
                let done = t.wrap_key(s, &mut wrapping(*pad), with, wrapped, &mut out);
                let (len, made) = (out.len(), out.written().to_vec());
                done?;
                let text = shown(&made, exact);
                if *room != Room::Query {
                    self.sides[at].blob = made;
                }
                Ok(format!("{len} {text}"))
            }
            Call::Unwrap { id, s, by, pad, kind, extra } => {
                let template = named(*id, [kind.class(), extra.0.clone()].concat());
                let made =
                    t.unwrap_key(session(s), &mut wrapping(*pad), object(by), &side.blob, &template)?;
                self.sides[at].objects.insert(*id, made);
                none()
            }
            Call::Derive { id, s, base, extra } => {
                let template = named(*id, [Kind::Generic(0).class(), extra.0.clone()].concat());
                let fields = vec![Field { name: "pData", value: FieldValue::Bytes(Some(vec![6; 32])) }];
                let params = Params::Struct(Box::new(StructParams {
                    layout: "CK_KEY_DERIVATION_STRING_DATA",
                    fields,
                }));
                let mut mechanism = Mechanism { kind: ck::CKM_AES_ECB_ENCRYPT_DATA, params };
                let made = t.derive_key(session(s), &mut mechanism, object(base), &template, true)?;
                self.sides[at].objects.extend(made.map(|made| (*id, made)));
                none()
            }
        }
    }

    /// What was found, by what it is called.
    fn found(&self, at: usize, s: SessionHandle, found: &[ObjectHandle]) -> Result<String> {
        let side = &self.sides[at];
        let ids = found.iter().map(|o| side.id(s, *o));
        // SoftHSM shows what is left of objects that it could not make; a group does not.
        let is_made = |id: &Option<Id>| id.is_some_and(|id| side.objects.contains_key(&id));
        let mut ids: Vec<Option<Id>> = ids.filter(|id| at == 1 || is_made(id)).collect();
        ids.sort();
        Ok(format!("{ids:?}"))
    }
}

/// A template with the label that tells what the object is called.
fn named(id: Id, template: Template) -> Template {
    each_once([vec![Attribute::bytes(ck::CKA_LABEL, format!("o{id}"))], template].concat())
}

fn wrapping(pad: bool) -> Mechanism {
    Mechanism::plain(if pad { ck::CKM_AES_KEY_WRAP_PAD } else { ck::CKM_AES_KEY_WRAP })
}

fn feed(data: &[u8], mut part: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    data.chunks(data.len().div_ceil(2).max(1)).try_for_each(&mut part)
}

/// The length, and where the call has answered well the bytes if chance is not in them.
fn in_room(room: Room, exact: bool, call: impl FnOnce(&mut Output<'_>) -> Result<()>) -> Result<String> {
    let mut space = vec![0; if let Room::Bytes(n) = room { n } else { 0 }];
    let mut out = if room == Room::Query { Output::query() } else { Output::buffer(&mut space) };
    let answer = call(&mut out);
    let code = answer.err().map_or("done".into(), |rv| rv.to_string());
    Ok(format!("{code} {} {}", out.len(), shown(out.written(), exact)))
}

/// Whether only such attributes differ as may.
fn attributes_may_differ(theirs: &str, ours: &str) -> bool {
    let read = |text: &str| -> Option<BTreeMap<String, String>> {
        let pairs = text.strip_prefix("ok ")?.split_whitespace();
        Some(pairs.filter_map(|p| p.split_once(':')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    };
    let (Some(theirs), Some(ours)) = (read(theirs), read(ours)) else { return false };
    let kinds: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
    kinds.into_iter().all(|kind| {
        let (t, o) = (theirs.get(kind).map_or("", |v| v), ours.get(kind).map_or("", |v| v));
        t == o || accepted::attribute(kind, t, o)
    })
}
