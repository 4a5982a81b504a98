//! The application: threads that use the virtual slot as programs do, and judge every answer.

use std::sync::Arc;
use std::time::Duration;

use ha_core::replica::verifier::Verifier;
use ha_token::*;
use sha2::{Digest as _, Sha256};

use crate::history::Stage;
use crate::model::{Failed, Proof, Standing, Thing};
use crate::plan::{Kind, Op};

const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const QUESTION: &[u8] = b"the question that each secret key is asked, of several blocks";

/// One thread of the application, in one life of its process.
pub struct Application<'a> {
    /// What it plays on.
    pub stage: &'a Stage,
    /// The virtual slot.
    pub slot: Arc<dyn Token>,
    /// Its number.
    pub me: usize,
    /// Its session.
    pub session: SessionHandle,
}

type Step<T> = std::result::Result<T, Failed>;

fn at<T>(step: &'static str, answer: Result<T>) -> Step<T> {
    answer.map_err(|rv| Failed { step, rv })
}

impl Application<'_> {
    /// Does one thing.
    pub fn act(&mut self, op: &Op) {
        self.stage.say(format_args!("{op:?}"));
        match *op {
            Op::Make(kind) => self.make(kind),
            Op::Session(kind) => self.session_object(kind),
            Op::Use(n) => self.with(n, |a, t| a.ask(t, false)),
            Op::Parts(n) => self.with(n, |a, t| a.ask(t, true)),
            Op::Shared => self.shared(),
            Op::Find(n) => self.find(n),
            Op::FindAll => self.find_all(),
            Op::Change(n) => self.change(n),
            Op::Destroy(n) => self.destroy(n),
            Op::UseGone(n) => self.use_gone(n),
            Op::Reopen => self.reopen(),
            Op::Digest => self.digest(),
            Op::Pause(ms) => self.stage.scheduler.sleep(Duration::from_millis(ms.into())),
        }
    }

    /// What a failed call means: nothing, where the members gave cause for it.
    fn failed(&self, what: &str, failed: &Failed) {
        self.stage.say(format_args!("{what}: {} answered {}", failed.step, failed.rv));
        if self.stage.must_succeed() {
            self.stage.broken(
                "G4",
                format!(
                    "{what}: {} answered {} while a member that can serve was up",
                    failed.step, failed.rv
                ),
            );
        }
    }

    fn make(&self, kind: Kind) {
        let thing = self.stage.model.make(kind, self.me);
        let wanted = self.stage.model.get(thing);
        let copies = self.stage.copies_can_be_had();
        match self.create(&wanted, true) {
            Ok((handle, proof)) => {
                {
                    let mut things = self.stage.model.things();
                    things[thing].proof = Some(proof);
                    things[thing].handle = Some(handle);
                }
                self.stage.model.set(thing, Standing::There);
                self.stage.acknowledged(thing);
            }
            Err(failed) => {
                self.stage.model.set(thing, Standing::Unknown);
                if copies && self.stage.copies_can_be_had() {
                    self.failed("make", &failed);
                } else {
                    self.stage.say(format_args!("make: {} answered {}", failed.step, failed.rv));
                }
            }
        }
    }

    fn names(thing: &Thing) -> Vec<Attribute> {
        let mut names = vec![Attribute::bytes(ck::CKA_LABEL, thing.label.as_bytes())];
        // Data objects have no CKA_ID (section 4.5).
        if thing.kind != Kind::Data {
            names.push(Attribute::bytes(ck::CKA_ID, thing.ids[0].clone()));
        }
        names
    }

    /// Makes an object, and asks it what it will be asked again.
    fn create(&self, thing: &Thing, token: bool) -> Step<(ObjectHandle, Proof)> {
        let (slot, s) = (&self.slot, self.session);
        let token = Attribute::bool(ck::CKA_TOKEN, token);
        let yes = |kinds: &[Ulong]| kinds.iter().map(|k| Attribute::bool(*k, true)).collect::<Vec<_>>();
        let named = |mut template: Vec<Attribute>| {
            template.push(token.clone());
            template.extend(Self::names(thing));
            template
        };
        match thing.kind {
            Kind::Ec | Kind::Rsa => {
                let (mechanism, own) = match thing.kind {
                    Kind::Ec => (ck::CKM_EC_KEY_PAIR_GEN, Attribute::bytes(ck::CKA_EC_PARAMS, P256)),
                    _ => (ck::CKM_RSA_PKCS_KEY_PAIR_GEN, Attribute::ulong(ck::CKA_MODULUS_BITS, 1024)),
                };
                let mut public = named(yes(&[ck::CKA_VERIFY]));
                public.push(own);
                let private = named(yes(&[ck::CKA_SIGN, ck::CKA_PRIVATE]));
                let made = slot.generate_key_pair(s, &mut Mechanism::plain(mechanism), &public, &private);
                let (public, private) = at("C_GenerateKeyPair", made)?;
                self.stage.new_object(public);
                self.stage.new_object(private);
                let verifier = at("C_GetAttributeValue", self.verifier(thing.kind, public))?;
                Ok((private, Proof::Public(verifier)))
            }
            Kind::Mac | Kind::Aes => {
                let (mechanism, usage, kind) = match thing.kind {
                    Kind::Mac => (ck::CKM_GENERIC_SECRET_KEY_GEN, ck::CKA_SIGN, ck::CKK_GENERIC_SECRET),
                    _ => (ck::CKM_AES_KEY_GEN, ck::CKA_ENCRYPT, ck::CKK_AES),
                };
                let mut template = named(yes(&[usage]));
                template.push(Attribute::ulong(ck::CKA_KEY_TYPE, kind));
                template.push(Attribute::ulong(ck::CKA_VALUE_LEN, 32));
                let key =
                    at("C_GenerateKey", slot.generate_key(s, &mut Mechanism::plain(mechanism), &template))?;
                self.stage.new_object(key);
                let answer = self.answer(thing.kind, key, false)?;
                Ok((key, Proof::Answer(answer)))
            }
            Kind::Data => {
                let value = format!("the value of {}", thing.label).into_bytes();
                let mut template = named(Vec::new());
                template.push(Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA));
                template.push(Attribute::bytes(ck::CKA_VALUE, value.clone()));
                let object = at("C_CreateObject", slot.create_object(s, &template))?;
                self.stage.new_object(object);
                Ok((object, Proof::Answer(value)))
            }
        }
    }

    fn verifier(&self, kind: Kind, public: ObjectHandle) -> Result<Verifier> {
        let read = |types: &[AttributeType]| self.slot.get_attributes(self.session, public, types);
        let verifier = match kind {
            Kind::Ec => {
                let parts = read(&[ck::CKA_EC_POINT])?;
                Verifier::from_public(ck::CKK_EC, None, None, Some(P256), parts[0].bytes())
            }
            _ => {
                let parts = read(&[ck::CKA_MODULUS, ck::CKA_PUBLIC_EXPONENT])?;
                Verifier::from_public(ck::CKK_RSA, parts[0].bytes(), parts[1].bytes(), None, None)
            }
        };
        verifier.ok_or_else(|| self.stage.broken("G3", "a public key without its parts".into()))
    }

    /// What an object answers to the question.
    fn answer(&self, kind: Kind, handle: ObjectHandle, parts: bool) -> Step<Vec<u8>> {
        let (slot, s) = (&self.slot, self.session);
        let (op, mut mechanism, input) = match kind {
            Kind::Ec => (OpKind::Sign, Mechanism::plain(ck::CKM_ECDSA), Sha256::digest(QUESTION).to_vec()),
            Kind::Rsa => (OpKind::Sign, Mechanism::plain(ck::CKM_SHA256_RSA_PKCS), QUESTION.to_vec()),
            Kind::Mac => (OpKind::Sign, Mechanism::plain(ck::CKM_SHA256_HMAC), QUESTION.to_vec()),
            Kind::Aes => {
                let mechanism =
                    Mechanism { kind: ck::CKM_AES_CBC_PAD, params: Params::Bytes(vec![7; 16].into()) };
                (OpKind::Encrypt, mechanism, QUESTION.to_vec())
            }
            Kind::Data => {
                let read = slot.get_attributes(s, handle, &[ck::CKA_VALUE]);
                return Ok(at("C_GetAttributeValue", read)?[0].bytes().unwrap_or_default().to_vec());
            }
        };
        self.stage.begun.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        at("C_XxxInit", slot.op_init(s, op, Some(&mut mechanism), handle))?;
        let mut space = [0u8; 512];
        if !parts || kind == Kind::Ec {
            let mut out = Output::buffer(&mut space);
            at("C_Xxx", slot.op_one_shot(s, op, &input, &mut out))?;
            return Ok(out.written().to_vec());
        }
        let mut all = Vec::new();
        for part in input.chunks(24) {
            let mut out = if op == OpKind::Encrypt { Output::buffer(&mut space) } else { Output::query() };
            at("C_XxxUpdate", slot.op_update(s, op, part, &mut out))?;
            all.extend_from_slice(out.written());
        }
        let mut out = Output::buffer(&mut space);
        at("C_XxxFinal", slot.op_final(s, op, &mut out))?;
        all.extend_from_slice(out.written());
        Ok(all)
    }

    /// Uses an object and compares its answer with what it must be.
    fn ask(&self, thing: &Thing, parts: bool) -> Step<()> {
        let Some(handle) = self.handle(thing)? else { return Ok(()) };
        let answer = self.answer(thing.kind, handle, parts)?;
        let right = match &thing.proof {
            Some(Proof::Public(verifier)) => verifier.check_signature(QUESTION, &answer) == Some(true),
            Some(Proof::Answer(expected)) => *expected == answer,
            None => true,
        };
        if !right {
            self.stage.broken("G3", format!("{} answered what another key would", thing.label));
        }
        Ok(())
    }

    /// The object's handle, looked for where it was made in an earlier life.
    fn handle(&self, thing: &Thing) -> Step<Option<ObjectHandle>> {
        if thing.handle.is_some() {
            return Ok(thing.handle);
        }
        let found = self.search(&self.named(thing))?;
        Ok(found.first().copied())
    }

    fn named(&self, thing: &Thing) -> Template {
        let class = match thing.kind {
            Kind::Ec | Kind::Rsa => ck::CKO_PRIVATE_KEY,
            Kind::Mac | Kind::Aes => ck::CKO_SECRET_KEY,
            Kind::Data => ck::CKO_DATA,
        };
        vec![Attribute::ulong(ck::CKA_CLASS, class), Attribute::bytes(ck::CKA_LABEL, thing.label.as_bytes())]
    }

    fn search(&self, template: &Template) -> Step<Vec<ObjectHandle>> {
        let (slot, s) = (&self.slot, self.session);
        at("C_FindObjectsInit", slot.find_objects_init(s, template))?;
        let mut all = Vec::new();
        loop {
            let found = at("C_FindObjects", slot.find_objects(s, 7))?;
            if found.is_empty() {
                break;
            }
            all.extend(found);
        }
        at("C_FindObjectsFinal", slot.find_objects_final(s))?;
        Ok(all)
    }

    /// Does something with an object that is there, and stays there while it is done.
    fn with(&self, n: u8, f: impl FnOnce(&Self, &Thing) -> Step<()>) {
        let Some(thing) = self.stage.model.choose(self.me, n, Standing::There) else { return };
        let before = self.stage.model.get(thing);
        if let Err(failed) = f(self, &before) {
            self.failed(&format!("use of {}", before.label), &failed);
        }
    }

    fn shared(&self) {
        let Some(thing) = self.stage.model.choose(usize::MAX, 0, Standing::There) else { return };
        let thing = self.stage.model.get(thing);
        if let Err(failed) = self.ask(&thing, false) {
            self.failed("use of the shared key", &failed);
        }
    }

    fn find(&self, n: u8) {
        self.with(n, |a, thing| {
            let found = a.search(&a.named(thing))?;
            if found.len() != 1 && a.stage.must_succeed() {
                a.stage.broken("G1", format!("{} is found {} times", thing.label, found.len()));
            }
            if found.len() > 1 {
                a.stage.broken("G8", format!("{} is found {} times", thing.label, found.len()));
            }
            Ok(())
        });
    }

    fn find_all(&self) {
        let before: Vec<(Standing, u64)> =
            self.stage.model.things().iter().map(|t| (t.standing, t.version)).collect();
        let found = match self.search(&Vec::new()) {
            Ok(found) => found,
            Err(failed) => return self.failed("a search", &failed),
        };
        let mut sorted = found.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() != found.len() {
            self.stage.broken("G8", "a search gave an object twice".into());
        }
        let things = self.stage.model.things().clone();
        for (thing, (standing, version)) in things.iter().zip(before) {
            let Some(handle) = thing.handle.filter(|_| thing.version == version) else { continue };
            let there = found.contains(&handle);
            match standing {
                Standing::There if !there && self.stage.must_succeed() => {
                    let found: Vec<_> = found.iter().map(|h| h.0).collect();
                    let (label, handle) = (&thing.label, handle.0);
                    self.stage
                        .broken("G1", format!("{label} ({handle}) is there and was not found ({found:?})"));
                }
                Standing::Gone if there => {
                    self.stage.broken("G2", format!("{} is gone and was found", thing.label));
                }
                _ => {}
            }
        }
    }

    fn change(&self, n: u8) {
        let Some(thing) = self.stage.model.choose(self.me, n, Standing::There) else { return };
        let before = self.stage.model.get(thing);
        let id = vec![2, n, before.version as u8, self.me as u8];
        let changed = self.handle(&before).and_then(|handle| {
            let Some(handle) = handle else { return Ok(()) };
            let template = vec![Attribute::bytes(ck::CKA_ID, id.clone())];
            if before.kind == Kind::Data {
                return Ok(());
            }
            at("C_SetAttributeValue", self.slot.set_attributes(self.session, handle, &template))
        });
        let ids = &mut self.stage.model.things()[thing].ids;
        match &changed {
            Ok(()) if before.kind != Kind::Data => *ids = vec![id],
            Ok(()) => {}
            Err(_) => ids.push(id),
        }
        if let Err(failed) = changed {
            self.failed(&format!("change of {}", before.label), &failed);
        }
    }

    fn destroy(&self, n: u8) {
        let Some(thing) = self.stage.model.choose(self.me, n, Standing::There) else { return };
        let before = self.stage.model.get(thing);
        let handle = match self.handle(&before) {
            Ok(Some(handle)) => handle,
            Ok(None) => return,
            Err(failed) => return self.failed(&format!("search of {}", before.label), &failed),
        };
        self.stage.model.set(thing, Standing::Leaving);
        match self.slot.destroy_object(self.session, handle) {
            Ok(()) => {
                self.stage.model.things()[thing].handle = Some(handle);
                self.stage.model.set(thing, Standing::Gone);
            }
            Err(rv) => {
                self.stage.model.set(thing, Standing::Unknown);
                self.failed(
                    &format!("destruction of {}", before.label),
                    &Failed { step: "C_DestroyObject", rv },
                );
            }
        }
    }

    fn use_gone(&self, n: u8) {
        let Some(thing) = self.stage.model.choose(self.me, n, Standing::Gone) else { return };
        let thing = self.stage.model.get(thing);
        if let Some(handle) = thing.handle
            && self.answer(thing.kind, handle, false).is_ok()
        {
            self.stage.broken("G2", format!("{} is gone and was used", thing.label));
        }
        match self.search(&self.named(&thing)) {
            Ok(found) if !found.is_empty() => {
                self.stage.broken("G2", format!("{} is gone and was found by its label", thing.label));
            }
            _ => {}
        }
    }

    fn session_object(&self, kind: Kind) {
        let things = self.stage.model.things().len();
        let thing = Thing {
            label: format!("session-{}-{things}", self.me),
            kind,
            owner: self.me,
            standing: Standing::There,
            version: 0,
            proof: None,
            handle: None,
            ids: vec![vec![3, self.me as u8]],
        };
        // Session objects are on one member, and gone when that is.
        let Ok((handle, proof)) = self.create(&thing, false) else { return };
        let thing = Thing { handle: Some(handle), proof: Some(proof), ..thing };
        if self.ask(&thing, false).is_ok() {
            _ = self.slot.destroy_object(self.session, handle);
        }
    }

    fn reopen(&mut self) {
        if let Err(rv) = self.slot.close_session(self.session) {
            self.failed("C_CloseSession", &Failed { step: "C_CloseSession", rv });
        }
        if self.slot.session_info(self.session).is_ok() {
            self.stage.broken("G3", "a session that was closed is open".into());
        }
        match self.slot.open_session(true) {
            Ok(session) => {
                self.stage.new_session(session);
                self.session = session;
            }
            Err(rv) => self.stage.broken("G4", format!("C_OpenSession answered {rv}")),
        }
    }

    fn digest(&self) {
        let mut space = [0u8; 64];
        let mut out = Output::buffer(&mut space);
        let mut mechanism = Mechanism::plain(ck::CKM_SHA256);
        let (slot, s) = (&self.slot, self.session);
        let done = at("C_DigestInit", slot.op_init(s, OpKind::Digest, Some(&mut mechanism), ObjectHandle(0)))
            .and_then(|()| at("C_Digest", slot.op_one_shot(s, OpKind::Digest, QUESTION, &mut out)));
        match done {
            Ok(()) if out.written() != Sha256::digest(QUESTION).as_slice() => {
                self.stage.broken("G3", "a wrong digest".into());
            }
            Ok(()) => {}
            Err(failed) => self.failed("a digest", &failed),
        }
        if let Err(rv) = slot.generate_random(s, &mut space) {
            self.failed("random bytes", &Failed { step: "C_GenerateRandom", rv });
        }
    }

    /// Waits until the slot serves, at most so long.
    pub fn wait_for_service(&self, longest: Duration) {
        let until = self.stage.scheduler.now() + longest;
        let serves = || {
            self.slot.generate_random(self.session, &mut [0; 8]).is_ok()
                && self.search(&vec![Attribute::bool(ck::CKA_TOKEN, true)]).is_ok()
        };
        while !serves() {
            if self.stage.scheduler.now() >= until {
                self.stage
                    .broken("G4", format!("nothing is served for {longest:?} although a member is well"));
            }
            self.stage.scheduler.sleep(Duration::from_millis(100));
        }
    }

    /// Asks each object that is there, when everything is well: the end of a history.
    pub fn ask_all(&self) {
        let things = self.stage.model.things().clone();
        for thing in things.iter().filter(|t| t.standing == Standing::There) {
            if let Err(failed) = self.ask(thing, false) {
                self.failed(&format!("use of {} at the end", thing.label), &failed);
            }
        }
    }
}
