//! A real and a simulated token side by side, each with its own handles for the same things.

use std::sync::Arc;

use ha_core::config::Config;
use ha_rig::Tokens;
use ha_rig::shown::{READ, plain, printed, shown};
use ha_token::{
    Attribute, Connector, Field, FieldValue, Mechanism, ObjectHandle, OpKind, Output, Params, Result, Rv,
    SessionHandle, StructParams, Template, Token, UserType, Value, ck,
};
use simulations::token::{Device, Profile};

use super::calls::{Call, P256};
use super::mechanisms::{crypt_mechanism, run, sign_mechanism, wrap_mechanism};

const PIN: &[u8] = b"1234";
const SO_PIN: &[u8] = b"12345678";

/// A handle that neither gives in all the tests.
const NOBODY: ck::CK_ULONG = 0x7fff_fff0;

/// The same thing on both.
#[derive(Clone)]
struct Object {
    on: [ObjectHandle; 2],
    class: ck::CK_OBJECT_CLASS,
    key_type: ck::CK_KEY_TYPE,
    /// Whether its value is the same on both.
    equal: bool,
}

#[derive(Clone)]
struct Blob {
    on: [Vec<u8>; 2],
    equal: bool,
}

impl Object {
    fn sort(&self) -> (ck::CK_OBJECT_CLASS, ck::CK_KEY_TYPE) {
        (self.class, self.key_type)
    }
}

/// What an answer was, as it is printed and compared.
type Answers = (String, String);

pub(crate) struct Both {
    tokens: [Arc<dyn Token>; 2],
    sessions: Vec<[SessionHandle; 2]>,
    objects: Vec<Object>,
    blobs: Vec<Blob>,
    rig: Tokens,
    device: Device,
    connectors: [Box<dyn Connector>; 2],
}

impl Both {
    pub(crate) fn new() -> Self {
        let rig = Tokens::in_memory(1);
        let config = Config::parse(&rig.config(false, "")).unwrap();
        let real = ha_core::provider::connector(&config.groups[0].members[0]);
        let device = Device::new(Profile::softhsm(), "member-a", "0000000000000001", SO_PIN, PIN, 1);
        let ours = device.connector();
        let tokens = [real.connect().unwrap(), ours.connect().unwrap()];
        Both {
            tokens,
            sessions: Vec::new(),
            objects: Vec::new(),
            blobs: Vec::new(),
            rig,
            device,
            connectors: [Box::new(real), ours],
        }
    }

    /// Takes both tokens' files away.
    pub(crate) fn lose(&self) {
        self.rig.hide(0);
        self.device.lose_token();
    }

    /// Puts them back.
    pub(crate) fn find(&self) {
        self.rig.restore(0);
        self.device.find_token();
    }

    /// Connects both anew: nothing but the tokens' objects is left.
    pub(crate) fn connect(&mut self) {
        self.tokens = self.connectors.each_ref().map(|c| c.connect().unwrap());
        self.sessions.clear();
        self.objects.clear();
    }

    /// What the tokens say of themselves.
    pub(crate) fn info(&self) -> Answers {
        self.unit(|_, t| t.token_info())
    }

    /// Both as new, with a user logged in and a few keys.
    pub(crate) fn start(&mut self) {
        self.objects.clear();
        self.blobs.clear();
        self.sessions.clear();
        for token in &self.tokens {
            token.close_all_sessions().unwrap();
            token.init_token(Some(SO_PIN), "member-a").unwrap();
            let s = token.open_session(true).unwrap();
            token.login(s, UserType::So, Some(SO_PIN)).unwrap();
            token.init_pin(s, Some(PIN)).unwrap();
            token.close_session(s).unwrap();
        }
        self.make(&Call::Open(true));
        self.make(&Call::Login(0, false, true));
        let on = |kinds: &[ck::CK_ATTRIBUTE_TYPE]| -> Template {
            kinds.iter().map(|k| Attribute::bool(*k, true)).collect()
        };
        let mut aes = vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
            Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_AES),
            Attribute::bytes(ck::CKA_VALUE, [9; 32]),
            Attribute::bool(ck::CKA_SENSITIVE, false),
        ];
        aes.extend(on(&[ck::CKA_WRAP, ck::CKA_UNWRAP, ck::CKA_EXTRACTABLE, ck::CKA_DERIVE]));
        self.make(&Call::Create(0, aes));
        let open = on(&[ck::CKA_EXTRACTABLE, ck::CKA_DERIVE, ck::CKA_TOKEN]);
        let curve = vec![Attribute::bytes(ck::CKA_EC_PARAMS, P256)];
        self.make(&Call::Pair(0, ck::CKM_EC_KEY_PAIR_GEN, curve, open.clone()));
        let bits = vec![Attribute::ulong(ck::CKA_MODULUS_BITS, 1024)];
        self.make(&Call::Pair(0, ck::CKM_RSA_PKCS_KEY_PAIR_GEN, bits, on(&[ck::CKA_EXTRACTABLE])));
        assert_eq!(self.objects.len(), 5);
    }

    fn session(&self, n: u8) -> [SessionHandle; 2] {
        let n = usize::from(n) % (self.sessions.len() + 1);
        // Most calls are made in the first one, which is there the longest; a few in one that there is not.
        let wrong = [SessionHandle(NOBODY); 2];
        *self.sessions.get(n).or(self.sessions.first()).unwrap_or(&wrong)
    }

    fn object(&self, n: u8) -> Object {
        let n = usize::from(n) % (self.objects.len() + 1);
        let wrong = Object { on: [ObjectHandle(NOBODY); 2], class: 0, key_type: 0, equal: false };
        self.objects.get(n).cloned().unwrap_or(wrong)
    }

    /// Runs something on each and prints the answers.
    fn each<T>(
        &self,
        mut run: impl FnMut(usize, &dyn Token) -> Result<T>,
        print: impl Fn(&T) -> String,
    ) -> ([Result<T>; 2], Answers) {
        let answers = [run(0, &*self.tokens[0]), run(1, &*self.tokens[1])];
        let text = answers.each_ref().map(|a| match a {
            Ok(value) => format!("ok {}", print(value)),
            Err(rv) => format!("{rv}"),
        });
        let [theirs, ours] = text;
        (answers, (theirs, ours))
    }

    fn unit<T>(&self, mut run: impl FnMut(usize, &dyn Token) -> Result<T>) -> Answers {
        self.each(|i, t| run(i, t).map(drop), |()| String::new()).1
    }

    /// Remembers what both made.
    fn made(&mut self, answers: [Result<ObjectHandle>; 2], equal: bool) {
        if let [Ok(theirs), Ok(ours)] = answers {
            let types = [ck::CKA_CLASS, ck::CKA_KEY_TYPE];
            let s = self.session(0)[1];
            let read = self.tokens[1].get_attributes(s, ours, &types).unwrap_or_default();
            let number =
                |i: usize| read.get(i).and_then(|f| f.value()).and_then(Value::as_ulong).unwrap_or(0x999);
            self.objects.push(Object { on: [theirs, ours], class: number(0), key_type: number(1), equal });
        }
    }

    /// Makes a call on both.
    pub(crate) fn make(&mut self, call: &Call) -> Answers {
        match call {
            Call::Open(read_write) => {
                let (answers, text) = self.each(|_, t| t.open_session(*read_write), |_| String::new());
                if let [Ok(theirs), Ok(ours)] = answers {
                    self.sessions.push([theirs, ours]);
                }
                text
            }
            Call::Close(n) => {
                let s = self.session(*n);
                self.sessions.retain(|one| *one != s);
                self.unit(|i, t| t.close_session(s[i]))
            }
            Call::CloseAll => {
                self.sessions.clear();
                let text = self.unit(|_, t| t.close_all_sessions());
                self.make(&Call::Open(true));
                text
            }
            Call::Info(n) => {
                let s = self.session(*n);
                self.each(|i, t| t.session_info(s[i]), |info| format!("{info:?}")).1
            }
            Call::Login(n, so, right) => {
                let s = self.session(*n);
                let user = if *so { UserType::So } else { UserType::User };
                let pin = if *so { SO_PIN } else { PIN };
                let pin = if *right { pin } else { b"wrong" };
                self.unit(|i, t| t.login(s[i], user, Some(pin)))
            }
            Call::Context(n, right) => {
                let s = self.session(*n);
                let pin = if *right { PIN } else { b"wrong" };
                self.unit(|i, t| t.login(s[i], UserType::ContextSpecific, Some(pin)))
            }
            Call::Logout(n) => {
                let s = self.session(*n);
                self.unit(|i, t| t.logout(s[i]))
            }
            Call::InitPin(n, pin) => {
                let s = self.session(*n);
                self.unit(|i, t| t.init_pin(s[i], Some(pin)))
            }
            Call::SetPin(n, right, pin) => {
                let s = self.session(*n);
                let old = if *right { PIN } else { b"wrong" };
                self.unit(|i, t| t.set_pin(s[i], Some(old), Some(pin)))
            }
            Call::Create(n, template) => {
                let s = self.session(*n);
                let (answers, text) = self.each(|i, t| t.create_object(s[i], template), |_| String::new());
                self.made(answers, true);
                text
            }
            Call::Generate(n, mechanism, template) => {
                let s = self.session(*n);
                let make = |i: usize, t: &dyn Token| {
                    t.generate_key(s[i], &mut Mechanism::plain(*mechanism), template)
                };
                let (answers, text) = self.each(make, |_| String::new());
                self.made(answers, false);
                text
            }
            Call::Pair(n, mechanism, public, private) => {
                let s = self.session(*n);
                let make = |i: usize, t: &dyn Token| {
                    t.generate_key_pair(s[i], &mut Mechanism::plain(*mechanism), public, private)
                };
                let (answers, text) = self.each(make, |_| String::new());
                self.made(answers.map(|a| a.map(|pair| pair.0)), false);
                self.made(answers.map(|a| a.map(|pair| pair.1)), false);
                text
            }
            Call::Copy(n, o, template) => {
                let (s, o) = (self.session(*n), self.object(*o));
                let (answers, text) =
                    self.each(|i, t| t.copy_object(s[i], o.on[i], template), |_| String::new());
                self.made(answers, o.equal);
                text
            }
            Call::Destroy(n, o) => {
                let (s, o) = (self.session(*n), self.object(*o));
                self.unit(|i, t| t.destroy_object(s[i], o.on[i]))
            }
            Call::Size(n, o) => {
                let (s, o) = (self.session(*n), self.object(*o));
                self.each(|i, t| t.object_size(s[i], o.on[i]), |size| size.to_string()).1
            }
            Call::Get(n, o) => {
                let (s, o) = (self.session(*n), self.object(*o));
                let get = |i: usize, t: &dyn Token| t.get_attributes(s[i], o.on[i], &READ);
                self.each(get, |read| printed(read, o.equal)).1
            }
            Call::Set(n, o, template) => {
                let (s, o) = (self.session(*n), self.object(*o));
                self.unit(|i, t| t.set_attributes(s[i], o.on[i], template))
            }
            Call::Find(n, template) => {
                let s = self.session(*n);
                let find = |i: usize, t: &dyn Token| {
                    t.find_objects_init(s[i], template)?;
                    let found = t.find_objects(s[i], 1000)?;
                    t.find_objects_final(s[i])?;
                    let known = |h: &ObjectHandle| self.objects.iter().position(|o| o.on[i] == *h);
                    let mut known: Vec<usize> = found.iter().filter_map(known).collect();
                    known.sort();
                    Ok((found.len(), known))
                };
                self.each(find, |found| format!("{found:?}")).1
            }
            Call::Begin(n, m, o) => {
                let (s, o) = (self.session(*n), self.object(*o));
                let (kind, mechanism) = match (m % 2 == 0, sign_mechanism(*m, o.sort())) {
                    (_, None) => (OpKind::Encrypt, ck::CKM_AES_ECB),
                    (true, Some(mechanism)) => (OpKind::Sign, mechanism),
                    (false, Some(mechanism)) => (OpKind::Verify, mechanism),
                };
                self.unit(|i, t| t.op_init(s[i], kind, Some(&mut Mechanism::plain(mechanism)), o.on[i]))
            }
            Call::Sized(n, query, room) => {
                let s = self.session(*n);
                let kinds = [OpKind::Sign, OpKind::Encrypt, OpKind::Decrypt, OpKind::Digest];
                let kind = kinds[usize::from(*room) % kinds.len()];
                let ask = |i: usize, t: &dyn Token| {
                    let mut space = vec![0; usize::from(*room)];
                    let mut out = if *query { Output::query() } else { Output::buffer(&mut space) };
                    let answer = t.op_one_shot(s[i], kind, &[3; 32], &mut out);
                    Ok(format!("{} {}", plain(answer), out.len()))
                };
                self.each(ask, String::clone).1
            }
            Call::Recover(n) => {
                let s = self.session(*n);
                let key = self.object(1);
                let begin = |i: usize, t: &dyn Token| {
                    let mut mechanism = Mechanism::plain(ck::CKM_RSA_PKCS);
                    t.op_init(s[i], OpKind::SignRecover, Some(&mut mechanism), key.on[i])
                };
                self.unit(begin)
            }
            Call::Random(n, count) => {
                let s = self.session(*n);
                self.unit(|i, t| t.generate_random(s[i], &mut vec![0; usize::from(*count) + 1]))
            }
            _ => self.use_keys(call),
        }
    }

    fn use_keys(&mut self, call: &Call) -> Answers {
        match call {
            Call::Sign { session, mechanism, key, data, parts } => {
                let (s, key) = (self.session(*session), self.object(*key));
                let Some(kind) = sign_mechanism(*mechanism, key.sort()) else { return skipped() };
                let sign = |i: usize, t: &dyn Token| {
                    t.op_init(s[i], OpKind::Sign, Some(&mut Mechanism::plain(kind)), key.on[i])?;
                    run(t, s[i], OpKind::Sign, data, *parts)
                };
                // ECDSA is random there; the rest is not, and equal where the keys are.
                let exact = key.equal && key.key_type != ck::CKK_EC;
                self.each(sign, |made| shown(made, exact)).1
            }
            Call::Verify { session, mechanism, key, data, length } => {
                let (s, key) = (self.session(*session), self.object(*key));
                let Some(kind) = sign_mechanism(*mechanism, key.sort()) else { return skipped() };
                let lengths = [64, 128, 32, usize::from(*length)];
                let signature = vec![5; lengths[usize::from(*length) % 4].max(1)];
                self.unit(|i, t| {
                    t.op_init(s[i], OpKind::Verify, Some(&mut Mechanism::plain(kind)), key.on[i])?;
                    t.verify(s[i], data, &signature)
                })
            }
            Call::Round { session, mechanism, pair, data, spoil } => {
                let s = self.session(*session);
                let pairs: Vec<(Object, Object)> = self
                    .objects
                    .windows(2)
                    .filter(|w| w[0].class == ck::CKO_PUBLIC_KEY && w[1].class == ck::CKO_PRIVATE_KEY)
                    .filter(|w| w[0].key_type == w[1].key_type && !w[0].equal)
                    .map(|w| (w[0].clone(), w[1].clone()))
                    .collect();
                let Some((public, private)) = pairs.get(usize::from(*pair) % pairs.len().max(1)) else {
                    return skipped();
                };
                let Some(kind) = sign_mechanism(*mechanism, private.sort()) else { return skipped() };
                self.unit(|i, t| {
                    t.op_init(s[i], OpKind::Sign, Some(&mut Mechanism::plain(kind)), private.on[i])?;
                    let mut made = run(t, s[i], OpKind::Sign, data, false)?;
                    made[10] ^= u8::from(*spoil);
                    t.op_init(s[i], OpKind::Verify, Some(&mut Mechanism::plain(kind)), public.on[i])?;
                    t.verify(s[i], data, &made)
                })
            }
            Call::Crypt { session, mechanism, key, data, parts, encrypt } => {
                let (s, key) = (self.session(*session), self.object(*key));
                let Some(with) = crypt_mechanism(*mechanism, key.sort()) else { return skipped() };
                let kind = if *encrypt { OpKind::Encrypt } else { OpKind::Decrypt };
                let crypt = |i: usize, t: &dyn Token| {
                    t.op_init(s[i], kind, Some(&mut with.clone()), key.on[i])?;
                    run(t, s[i], kind, data, *parts)
                };
                let exact = key.equal && key.key_type == ck::CKK_AES;
                self.each(crypt, |made| shown(made, exact)).1
            }
            Call::Digest(n, mechanism, data, key) => {
                let s = self.session(*n);
                let key = key.map(|k| self.object(k));
                let exact = key.as_ref().is_none_or(|k| k.equal);
                let digest = |i: usize, t: &dyn Token| {
                    t.op_init(
                        s[i],
                        OpKind::Digest,
                        Some(&mut Mechanism::plain(*mechanism)),
                        ObjectHandle(0),
                    )?;
                    let keyed = key.as_ref().map(|key| plain(t.digest_key(s[i], key.on[i])));
                    let made = run(t, s[i], OpKind::Digest, data, key.is_some());
                    Ok(format!("{keyed:?} {:?}", made.map(|m| shown(&m, exact))))
                };
                self.each(digest, String::clone).1
            }
            Call::Wrap(n, mechanism, by, key) => {
                let (s, by, key) = (self.session(*n), self.object(*by), self.object(*key));
                let with = wrap_mechanism(*mechanism);
                let wrap = |i: usize, t: &dyn Token| {
                    let mut space = vec![0; 4096];
                    let mut out = Output::buffer(&mut space);
                    t.wrap_key(s[i], &mut with.clone(), by.on[i], key.on[i], &mut out)?;
                    Ok(out.written().to_vec())
                };
                let equal = by.equal && key.equal && by.key_type == ck::CKK_AES;
                let (answers, text) = self.each(wrap, |made| match key.key_type {
                    // The numbers in it may be shorter by chance.
                    ck::CKK_RSA => String::new(),
                    _ => shown(made, equal),
                });
                if let [Ok(theirs), Ok(ours)] = answers {
                    self.blobs.push(Blob { on: [theirs, ours], equal });
                }
                text
            }
            Call::Unwrap { session, mechanism, by, blob, spoil, template } => {
                let (s, by) = (self.session(*session), self.object(*by));
                let Some(blob) = self.blobs.get(usize::from(*blob) % self.blobs.len().max(1)).cloned() else {
                    return skipped();
                };
                let with = wrap_mechanism(*mechanism);
                let unwrap = |i: usize, t: &dyn Token| {
                    let mut bytes = blob.on[i].clone();
                    bytes[3] ^= u8::from(*spoil);
                    t.unwrap_key(s[i], &mut with.clone(), by.on[i], &bytes, template)
                };
                let (answers, text) = self.each(unwrap, |_| String::new());
                self.made(answers, blob.equal && by.equal);
                text
            }
            Call::Derive(n, mechanism, base, peer, template) => {
                let (s, base, peer) = (self.session(*n), self.object(*base), self.object(*peer));
                let field = |name, value| Field { name, value };
                let derive = |i: usize, t: &dyn Token| {
                    let (kind, layout, fields) = match mechanism % 3 {
                        0 => {
                            let read = t.get_attributes(s[i], peer.on[i], &[ck::CKA_EC_POINT])?;
                            let point = read[0].bytes().map(<[u8]>::to_vec).filter(|p| !p.is_empty());
                            let Some(point) = point else { return Err(Rv::CANCEL) };
                            let fields = vec![
                                field("kdf", FieldValue::Ulong(ck::CKD_NULL)),
                                field("pSharedData", FieldValue::Bytes(None)),
                                field("pPublicData", FieldValue::Bytes(Some(point))),
                            ];
                            (ck::CKM_ECDH1_DERIVE, "CK_ECDH1_DERIVE_PARAMS", fields)
                        }
                        1 => {
                            let fields = vec![field("pData", FieldValue::Bytes(Some(vec![6; 32])))];
                            (ck::CKM_AES_ECB_ENCRYPT_DATA, "CK_KEY_DERIVATION_STRING_DATA", fields)
                        }
                        _ => {
                            let fields = vec![
                                field("iv", FieldValue::Inline(vec![8; 16])),
                                field("pData", FieldValue::Bytes(Some(vec![6; 32]))),
                            ];
                            (ck::CKM_AES_CBC_ENCRYPT_DATA, "CK_AES_CBC_ENCRYPT_DATA_PARAMS", fields)
                        }
                    };
                    let params = Params::Struct(Box::new(StructParams { layout, fields }));
                    let made =
                        t.derive_key(s[i], &mut Mechanism { kind, params }, base.on[i], template, true)?;
                    made.ok_or(Rv::GENERAL_ERROR)
                };
                let (answers, text) = self.each(derive, |_| String::new());
                self.made(answers, base.equal && (mechanism % 3 != 0));
                text
            }
            _ => skipped(),
        }
    }
}

fn skipped() -> Answers {
    ("skipped".into(), "skipped".into())
}
