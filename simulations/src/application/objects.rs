//! How an object is made, and what it answers.

use ha_core::replica::verifier::Verifier;
use ha_token::*;
use sha2::{Digest as _, Sha256};

use super::{Application, QUESTION, Step};
use crate::model::{Proof, Standing, Thing};
use crate::plan::Kind;

const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

fn names(thing: &Thing) -> Template {
    let mut names = vec![Attribute::bytes(ck::CKA_LABEL, thing.label.as_bytes())];
    // Data objects have no CKA_ID (section 4.5).
    if thing.kind != Kind::Data {
        names.push(Attribute::bytes(ck::CKA_ID, thing.ids[0].clone()));
    }
    names
}

impl Application<'_> {
    /// Makes an object, or the two keys of a pair, of which `things` has one at least: answers their handles.
    pub(super) fn create(&self, things: &[Thing], token: bool) -> Step<Vec<ObjectHandle>> {
        let (slot, s) = (&self.slot, self.session);
        let thing = &things[0];
        let template = |flags: &[AttributeType], own: &[Attribute]| {
            let flags = flags.iter().map(|f| Attribute::bool(*f, true));
            let mut template: Template = flags.chain(own.iter().cloned()).collect();
            template.push(Attribute::bool(ck::CKA_TOKEN, token));
            template.extend(names(thing));
            template
        };
        let made = match thing.kind {
            Kind::Ec | Kind::Rsa => {
                let (mechanism, own) = match thing.kind {
                    Kind::Ec => (ck::CKM_EC_KEY_PAIR_GEN, Attribute::bytes(ck::CKA_EC_PARAMS, P256)),
                    _ => (ck::CKM_RSA_PKCS_KEY_PAIR_GEN, Attribute::ulong(ck::CKA_MODULUS_BITS, 1024)),
                };
                let public = template(Thing { public: true, ..thing.clone() }.flags(), &[own]);
                let private = template(thing.flags(), &[]);
                let made = slot.generate_key_pair(s, &mut Mechanism::plain(mechanism), &public, &private);
                let (public, private) = self.at("C_GenerateKeyPair", made)?;
                vec![private, public]
            }
            Kind::Mac | Kind::Aes => {
                let (mechanism, kind) = match thing.kind {
                    Kind::Mac => (ck::CKM_GENERIC_SECRET_KEY_GEN, ck::CKK_GENERIC_SECRET),
                    _ => (ck::CKM_AES_KEY_GEN, ck::CKK_AES),
                };
                let own = [Attribute::ulong(ck::CKA_KEY_TYPE, kind), Attribute::ulong(ck::CKA_VALUE_LEN, 32)];
                let template = template(thing.flags(), &own);
                let made = slot.generate_key(s, &mut Mechanism::plain(mechanism), &template);
                vec![self.at("C_GenerateKey", made)?]
            }
            Kind::Data | Kind::Certificate => {
                let mut own = vec![
                    Attribute::ulong(ck::CKA_CLASS, thing.class()),
                    Attribute::bytes(ck::CKA_VALUE, thing.content()),
                ];
                if thing.kind == Kind::Certificate {
                    own.push(Attribute::ulong(ck::CKA_CERTIFICATE_TYPE, ck::CKC_X_509));
                    own.push(Attribute::bytes(ck::CKA_SUBJECT, thing.label.as_bytes()));
                }
                let made = slot.create_object(s, &template(thing.flags(), &own));
                vec![self.at("C_CreateObject", made)?]
            }
        };
        made.iter().for_each(|handle| self.stage.new_object(self.process, *handle));
        Ok(made)
    }

    /// What an object must answer from now on: a private key's signatures fit its public key, which is the last of a
    /// pair's handles; what is not a key is what was given; of another one it is what it answers now.
    pub(super) fn prove(
        &self,
        thing: &Thing,
        handle: ObjectHandle,
        public: Option<ObjectHandle>,
    ) -> Step<Proof> {
        match (thing.kind, public) {
            (Kind::Ec | Kind::Rsa, Some(public)) if !thing.public => {
                let verifier = self.verifier(thing.kind, public);
                Ok(Proof::Public(self.at("C_GetAttributeValue", verifier)?))
            }
            (Kind::Data | Kind::Certificate, _) => Ok(Proof::Answer(thing.content())),
            _ => Ok(Proof::Answer(self.answer(thing, handle, false)?)),
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
    pub(super) fn answer(&self, thing: &Thing, handle: ObjectHandle, parts: bool) -> Step<Vec<u8>> {
        let _operation = self.stage.operation(self.process);
        let (op, mut mechanism, input) = match thing.kind {
            Kind::Ec if thing.public => return self.read(handle, ck::CKA_EC_POINT),
            Kind::Rsa if thing.public => return self.read(handle, ck::CKA_MODULUS),
            Kind::Ec => (OpKind::Sign, Mechanism::plain(ck::CKM_ECDSA), Sha256::digest(QUESTION).to_vec()),
            Kind::Rsa => (OpKind::Sign, Mechanism::plain(ck::CKM_SHA256_RSA_PKCS), QUESTION.to_vec()),
            Kind::Mac => (OpKind::Sign, Mechanism::plain(ck::CKM_SHA256_HMAC), QUESTION.to_vec()),
            Kind::Aes => {
                let mechanism =
                    Mechanism { kind: ck::CKM_AES_CBC_PAD, params: Params::Bytes(vec![7; 16].into()) };
                (OpKind::Encrypt, mechanism, QUESTION.to_vec())
            }
            Kind::Data | Kind::Certificate => return self.read(handle, ck::CKA_VALUE),
        };
        let (slot, s) = (&self.slot, self.session);
        self.at("C_XxxInit", slot.op_init(s, op, Some(&mut mechanism), handle))?;
        let mut space = [0u8; 512];
        if !parts || thing.kind == Kind::Ec {
            let mut out = Output::buffer(&mut space);
            self.at("C_Xxx", slot.op_one_shot(s, op, &input, &mut out))?;
            return Ok(out.written().to_vec());
        }
        let mut all = Vec::new();
        for part in input.chunks(24) {
            let mut out = if op == OpKind::Encrypt { Output::buffer(&mut space) } else { Output::query() };
            self.at("C_XxxUpdate", slot.op_update(s, op, part, &mut out))?;
            all.extend_from_slice(out.written());
        }
        let mut out = Output::buffer(&mut space);
        self.at("C_XxxFinal", slot.op_final(s, op, &mut out))?;
        all.extend_from_slice(out.written());
        Ok(all)
    }

    fn read(&self, handle: ObjectHandle, kind: AttributeType) -> Step<Vec<u8>> {
        let read = self.slot.get_attributes(self.session, handle, &[kind]);
        let read = self.at("C_GetAttributeValue", read)?;
        Ok(read[0].bytes().unwrap_or_default().to_vec())
    }

    /// Uses an object and compares its answer with what it must be.
    pub(super) fn ask(&self, thing: &Thing, parts: bool) -> Step<()> {
        let Some(handle) = self.handle(thing)? else { return Ok(()) };
        // Where its first use failed, this one is the first.
        let proof = match &thing.proof {
            Some(proof) => proof.clone(),
            None => {
                let public = match self.stage.model.public_of(thing) {
                    Some(public) if public.standing == Standing::There => match self.handle(&public)? {
                        None => return Ok(()),
                        found => found,
                    },
                    _ => None,
                };
                let proof = self.prove(thing, handle, public)?;
                self.stage.model.update(thing, |t| t.proof = Some(proof.clone()));
                proof
            }
        };
        let thread = self.stage.scheduler.name();
        let lied = || self.stage.lines.iter().map(|line| line.lied_to(&thread)).collect::<Vec<_>>();
        let before = lied();
        let answer = self.answer(thing, handle, parts)?;
        let right = match proof {
            Proof::Public(verifier) => verifier.check_signature(QUESTION, &answer) == Some(true),
            Proof::Answer(expected) => expected == answer,
        };
        if !right {
            self.stage.broken("G3", format!("{} answered what another key would", thing.name()));
        }
        for (member, (before, after)) in before.into_iter().zip(lied()).enumerate() {
            if after > before && !self.stage.is_quarantined(self.process, member) {
                let how = format!("member {member} signed wrongly, and is not kept out of use");
                self.stage.broken("G3", how);
            }
        }
        Ok(())
    }
}
