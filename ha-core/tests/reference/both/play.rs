//! One call on one side.

use std::sync::Arc;

use ha_rig::shown::{READ, printed, shown};
use ha_token::{
    Attribute, Field, FieldValue, Mechanism, ObjectHandle, OpKind, Output, Params, Result, SessionHandle,
    StructParams, Template, ck,
};

use super::{Both, ED25519, P256};
use crate::calls::{Call, Data, Extra, How, Id, Kind, Room};
use crate::sketch::each_once;

impl Both {
    /// Makes a call on one side. What it answers is printed without what chance is in.
    pub(super) fn play(&mut self, at: usize, call: &Call) -> Result<String> {
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
