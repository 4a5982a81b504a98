//! Making, wrapping and unwrapping keys.
//!
//! What makes a token key runs on one member and then follows a new key's life (`group::replicate`); what makes a
//! session key runs on one member and stays there.

use std::sync::Arc;

use ha_token::{
    Attribute, Function, Mechanism, ObjectHandle, Output, Result, Rv, SessionHandle, Template, TemplateExt,
    Ulong, ck,
};

use super::VirtualSlot;
use super::mechanism::Tie;
use super::run::Call;
use crate::group::{Again, Lease, Made, Need, Object};
use crate::replica::life;

/// How a single key is made in a session with a template.
type Make<'a> = &'a mut dyn FnMut(&Lease, SessionHandle, &mut Mechanism, &Template) -> Result<ObjectHandle>;

impl VirtualSlot {
    /// Makes one key by `make`, as a session key or as a token key on every member.
    fn make_key(
        &self,
        session: SessionHandle,
        (function, flag): (Function, Ulong),
        mechanism: &mut Mechanism,
        keys: &[ObjectHandle],
        template: &Template,
        make: Make<'_>,
    ) -> Result<ObjectHandle> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        self.vet(mechanism)?;
        self.may_create(&session, template)?;
        let mut held = self.inner_objects(mechanism)?;
        for key in keys {
            held.push(self.key(*key)?);
        }
        let need = Need {
            mechanism: Some((mechanism.kind, flag)),
            object: None,
            others: &held,
            preferred: self.home(&mut state),
        };
        let mut tie = Tie::new(mechanism.is_opaque());
        if template.get_bool(ck::CKA_TOKEN) == Some(true) {
            let made = self.group.replicate_key(function, &need, template, &mut |lease, local| {
                let mut here = self.localised(lease, mechanism)?;
                tie.on(lease, || make(lease, lease.session, &mut here, local))
            });
            return made.map(|o| o.handle).map_err(|rv| tie.answer(function, rv));
        }
        let call = Call { function, need, skip: None };
        let mut written = None;
        let is_key = function == Function::GenerateKey && !makes_parameters(mechanism.kind);
        let sealed = if is_key { life::as_sealed(template) } else { None };
        let replays = self.group.replays_session_objects() && !mechanism.is_opaque();
        let generated = function == Function::GenerateKey;
        let mut again = None;
        let object = self.make_session_object(&session, &mut state, &call, &mut |lease, owner| {
            let template = sealed.as_ref().unwrap_or(template);
            let mut make = |template: &Template| {
                let mut here = self.localised(lease, mechanism)?;
                let key = tie.on(lease, || make(lease, owner, &mut here, template))?;
                written = Some(here);
                Ok(Made { key, public: None })
            };
            if !replays {
                return Ok(make(template)?.key);
            }
            let (made, taken) = self.group.make_to_move(lease, owner, template, generated, &mut make)?;
            again = taken;
            Ok(made.key)
        });
        let object = object.map_err(|rv| tie.answer(function, rv))?;
        if let Some(again) = again {
            self.group.remember_session_object(&object, again);
        }
        if sealed.is_some() {
            object.seal();
        }
        if let Some(here) = written
            && held.len() == keys.len()
        {
            *mechanism = here;
        }
        Ok(object.handle)
    }

    /// Makes domain parameters, which are nobody's secret, as a token object on every member.
    fn generate_parameters(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        template: &Template,
    ) -> Result<ObjectHandle> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        self.may_create(&session, template)?;
        let need = Need {
            mechanism: Some((mechanism.kind, ck::CKF_GENERATE)),
            preferred: self.home(&mut state),
            ..Need::default()
        };
        let call = Call { function: Function::GenerateKey, need, skip: None };
        let (mut kept, _) = self.run(&call, &mut |lease| {
            let as_made = life::public_as_made(template);
            let made = lease.token().generate_key(lease.session, mechanism, &as_made)?;
            let kept = life::readable_as_kept(lease.on(), made);
            lease.on().discard(made);
            kept
        })?;
        template.iter().filter(|a| a.kind != ck::CKA_PRIME_BITS).for_each(|a| kept.set(a.clone()));
        Ok(self.group.create_everywhere(&kept)?.handle)
    }

    /// `C_GenerateKey`.
    pub(super) fn generate(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        template: &Template,
    ) -> Result<ObjectHandle> {
        if makes_parameters(mechanism.kind) && template.get_bool(ck::CKA_TOKEN) == Some(true) {
            return self.generate_parameters(session, mechanism, template);
        }
        self.make_key(
            session,
            (Function::GenerateKey, ck::CKF_GENERATE),
            mechanism,
            &[],
            template,
            &mut |l, s, m, t| l.token().generate_key(s, m, t),
        )
    }

    /// `C_UnwrapKey`.
    pub(super) fn unwrap(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        key: ObjectHandle,
        wrapped: &[u8],
        template: &Template,
    ) -> Result<ObjectHandle> {
        self.session(session)?;
        let unwrapping = self.object(key).map_err(|_| Rv::UNWRAPPING_KEY_HANDLE_INVALID)?;
        self.make_key(
            session,
            (Function::UnwrapKey, ck::CKF_UNWRAP),
            mechanism,
            &[key],
            template,
            &mut |l, s, m, t| l.token().unwrap_key(s, m, self.group.backing(l, &unwrapping)?, wrapped, t),
        )
    }

    /// `C_UnwrapKeyAuthenticated`.
    pub(super) fn unwrap_authenticated(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        key: ObjectHandle,
        wrapped: &[u8],
        template: &Template,
        associated: &[u8],
    ) -> Result<ObjectHandle> {
        self.session(session)?;
        let unwrapping = self.object(key).map_err(|_| Rv::UNWRAPPING_KEY_HANDLE_INVALID)?;
        self.make_key(
            session,
            (Function::UnwrapKeyAuthenticated, ck::CKF_UNWRAP),
            mechanism,
            &[key],
            template,
            &mut |l, s, m, t| {
                l.token().unwrap_key_authenticated(
                    s,
                    m,
                    self.group.backing(l, &unwrapping)?,
                    wrapped,
                    t,
                    associated,
                )
            },
        )
    }

    /// `C_DecapsulateKey`.
    pub(super) fn decapsulate(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        key: ObjectHandle,
        template: &Template,
        ciphertext: &[u8],
    ) -> Result<ObjectHandle> {
        self.session(session)?;
        let private = self.key(key)?;
        self.make_key(
            session,
            (Function::DecapsulateKey, ck::CKF_DECAPSULATE),
            mechanism,
            &[key],
            template,
            &mut |l, s, m, t| {
                l.token().decapsulate_key(s, m, self.group.backing(l, &private)?, t, ciphertext)
            },
        )
    }

    /// `C_EncapsulateKey`.
    pub(super) fn encapsulate(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        key: ObjectHandle,
        template: &Template,
        output: &mut Output<'_>,
    ) -> Result<Option<ObjectHandle>> {
        self.session(session)?;
        let public = self.key(key)?;
        if output.is_query() {
            let _call = self.sessions.stateless(session)?;
            self.vet(mechanism)?;
            let mut tie = Tie::new(mechanism.is_opaque());
            let call = Call {
                function: Function::EncapsulateKey,
                need: Need {
                    mechanism: Some((mechanism.kind, ck::CKF_ENCAPSULATE)),
                    object: Some(&public),
                    others: &[],
                    preferred: None,
                },
                skip: None,
            };
            let asked = self.run(&call, &mut |l| {
                let mut here = self.localised(l, mechanism)?;
                let mut out = Output::query();
                let key = self.group.backing(l, &public)?;
                tie.on(l, || l.token().encapsulate_key(l.session, &mut here, key, template, &mut out))?;
                output.set_len(out.len());
                Ok(())
            });
            return asked.map(|_| None).map_err(|rv| tie.answer(call.function, rv));
        }
        self.make_key(
            session,
            (Function::EncapsulateKey, ck::CKF_ENCAPSULATE),
            mechanism,
            &[key],
            template,
            &mut |l, s, m, t| {
                let mut out = output.reborrow();
                let answer = l.token().encapsulate_key(s, m, self.group.backing(l, &public)?, t, &mut out);
                let len = out.len();
                output.set_len(len);
                answer?.ok_or(Rv::GENERAL_ERROR)
            },
        )
        .map(Some)
    }

    /// `C_DeriveKey`. Without a handle wanted the keys are in the mechanism's parameter: session keys of this session.
    pub(super) fn derive(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        base: ObjectHandle,
        template: &Template,
        want_handle: bool,
    ) -> Result<Option<ObjectHandle>> {
        self.session(session)?;
        let key = self.key(base)?;
        let has_outputs = {
            let mut any = false;
            if let ha_token::Params::Struct(s) = &mut mechanism.params {
                s.translate_outputs(&mut |h| {
                    any = true;
                    Ok(h)
                })?;
            }
            any
        };
        if want_handle && !has_outputs {
            return self
                .make_key(
                    session,
                    (Function::DeriveKey, ck::CKF_DERIVE),
                    mechanism,
                    &[base],
                    template,
                    &mut |l, s, m, t| {
                        l.token()
                            .derive_key(s, m, self.group.backing(l, &key)?, t, true)?
                            .ok_or(Rv::GENERAL_ERROR)
                    },
                )
                .map(Some);
        }
        if template.get_bool(ck::CKA_TOKEN) == Some(true) {
            let why = "a derivation that makes several keys at once makes session keys only";
            self.group.reporter.refused(Function::DeriveKey, Rv::TEMPLATE_INCONSISTENT, why);
            return Err(Rv::TEMPLATE_INCONSISTENT);
        }
        let session = self.session(session)?;
        let mut state = session.state()?;
        self.vet(mechanism)?;
        let mut held = self.inner_objects(mechanism)?;
        held.push(key);
        let need = Need {
            mechanism: Some((mechanism.kind, ck::CKF_DERIVE)),
            object: None,
            others: &held,
            preferred: self.home(&mut state),
        };
        let call = Call { function: Function::DeriveKey, need, skip: None };
        let mut tie = Tie::new(mechanism.is_opaque());
        let derived = self.run(&call, &mut |lease| {
            let mut here = self.localised(lease, mechanism)?;
            let base = self.group.backing(lease, held.last().ok_or(Rv::KEY_HANDLE_INVALID)?)?;
            self.own_objects(&session, &mut state, lease, |owner| {
                let made = tie
                    .on(lease, || lease.token().derive_key(owner, &mut here, base, template, want_handle))?;
                let mut all: Vec<ObjectHandle> = made.into_iter().collect();
                if let ha_token::Params::Struct(s) = &mut here.params {
                    s.translate_outputs(&mut |h| {
                        all.extend(Some(h).filter(|h| h.0 != 0));
                        Ok(h)
                    })?;
                }
                let again = self.taken_of(lease, &all, &Template::new());
                let again = again.inspect_err(|_| all.iter().for_each(|key| lease.on().discard(*key)))?;
                Ok((all, (made.is_some(), here, again)))
            })
        });
        let ((objects, (has_own, mut here, again)), _) =
            derived.map_err(|rv| tie.answer(call.function, rv))?;
        for (object, again) in objects.iter().zip(again) {
            if let Some(again) = again {
                self.group.remember_session_object(object, again);
            }
        }
        let mut handles = objects.iter().map(|o| o.handle);
        let made = if has_own { handles.next() } else { None };
        if let ha_token::Params::Struct(s) = &mut here.params {
            s.translate_outputs(&mut |h| {
                if h.0 == 0 { Ok(h) } else { handles.next().ok_or(Rv::GENERAL_ERROR) }
            })?;
        }
        if held.len() == 1 {
            *mechanism = here;
        } else if let (ha_token::Params::Struct(out), ha_token::Params::Struct(here)) =
            (&mut mechanism.params, here.params)
        {
            out.take_outputs(*here);
        }
        Ok(made)
    }

    /// `C_GenerateKeyPair`. Both keys are token keys or both are session keys, or the public one alone is a session key.
    pub(super) fn generate_pair(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        public: &Template,
        private: &Template,
    ) -> Result<(ObjectHandle, ObjectHandle)> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        self.vet(mechanism)?;
        self.may_create(&session, public)?;
        self.may_create(&session, private)?;
        let need = Need {
            mechanism: Some((mechanism.kind, ck::CKF_GENERATE_KEY_PAIR)),
            object: None,
            others: &[],
            preferred: self.home(&mut state),
        };
        let is_token = |t: &Template| t.get_bool(ck::CKA_TOKEN) == Some(true);
        match (is_token(public), is_token(private)) {
            (true, true) => {
                let (public, private) = self.token_pair(&need, mechanism, public, private)?;
                Ok((public.handle, private.handle))
            }
            (false, false) => {
                let sealed = life::as_sealed(private);
                let call = Call { function: Function::GenerateKeyPair, need, skip: None };
                let mut tie = Tie::new(mechanism.is_opaque());
                let private = sealed.as_ref().unwrap_or(private);
                let replays = self.group.replays_session_objects() && !mechanism.is_opaque();
                let made = self.run(&call, &mut |lease| {
                    self.own_objects(&session, &mut state, lease, |owner| {
                        let token = lease.token();
                        let mut make = |private: &Template| {
                            let make = || token.generate_key_pair(owner, mechanism, public, private);
                            tie.on(lease, make)
                        };
                        if !replays {
                            return make(private).map(|(a, b)| (vec![a, b], Vec::new()));
                        }
                        let mut make = |private: &Template| {
                            make(private).map(|(public, key)| Made { key, public: Some(public) })
                        };
                        let (made, again) =
                            self.group.make_to_move(lease, owner, private, true, &mut make)?;
                        let all = vec![made.public.ok_or(Rv::GENERAL_ERROR)?, made.key];
                        let halves = self.taken_of(lease, all.get(..1).unwrap_or_default(), public);
                        let mut halves =
                            halves.inspect_err(|_| all.iter().for_each(|half| lease.on().discard(*half)))?;
                        halves.push(again);
                        Ok((all, halves))
                    })
                });
                let ((pair, again), lease) = made.map_err(|rv| tie.answer(call.function, rv))?;
                let [a, b] = &*pair else { return Err(Rv::GENERAL_ERROR) };
                for (object, again) in pair.iter().zip(again) {
                    if let Some(again) = again {
                        self.group.remember_session_object(object, again);
                    }
                }
                if self.group.config.verify_signatures {
                    self.group.learn_half(&lease, a, b);
                }
                if sealed.is_some() {
                    b.seal();
                }
                Ok((a.handle, b.handle))
            }
            (one, _) => {
                // One half on the token and one in the session: the pair is made as token objects, and the half that
                // was asked for in the session is copied there and its token copies destroyed. What would forbid that
                // the copy alone is told, and what no copy can be told makes it fail.
                const FORBID: [Ulong; 2] = [ck::CKA_MODIFIABLE, ck::CKA_DESTROYABLE];
                let as_token = |t: &Template| {
                    let mut on_token = t.clone();
                    if !is_token(t) {
                        on_token.retain(|a| !FORBID.contains(&a.kind));
                    }
                    on_token.set(Attribute::bool(ck::CKA_TOKEN, true));
                    on_token
                };
                let (a, b) = self.token_pair(&need, mechanism, &as_token(public), &as_token(private))?;
                drop(state);
                let half = if one { &b } else { &a };
                let mut template = vec![Attribute::bool(ck::CKA_TOKEN, false)];
                let asked = if one { private } else { public };
                template.extend(asked.iter().filter(|a| FORBID.contains(&a.kind)).cloned());
                let copied = self.copy(session.handle, half.handle, &template);
                let destroy = |key| self.group.destroy_everywhere(key).inspect(|()| self.drop_object(key));
                let made = destroy(half).and(copied);
                if made.is_err() {
                    // All or nothing, as far as that can be had; the first error is told.
                    if let Ok(copied) = copied {
                        _ = self.destroy(session.handle, copied);
                    }
                    _ = destroy(if one { &a } else { &b });
                }
                made.map(|copied| if one { (a.handle, copied) } else { (copied, b.handle) })
            }
        }
    }

    /// What can be kept of each of some session objects as it is, where it has just been made: all or none.
    fn taken_of(
        &self,
        lease: &Lease,
        objects: &[ObjectHandle],
        asked: &Template,
    ) -> Result<Vec<Option<Again>>> {
        if !self.group.replays_session_objects() {
            return Ok(Vec::new());
        }
        objects.iter().map(|object| self.group.taken_of(lease, *object, asked)).collect()
    }

    /// Makes a pair of token keys on every member.
    fn token_pair(
        &self,
        need: &Need<'_>,
        mechanism: &mut Mechanism,
        public: &Template,
        private: &Template,
    ) -> Result<(Arc<Object>, Arc<Object>)> {
        let mut tie = Tie::new(mechanism.is_opaque());
        let made_as = life::public_as_made(public);
        let pair = self.group.replicate_pair(need, public, private, &mut |lease, private| {
            let (token, s) = (lease.token(), lease.session);
            tie.on(lease, || token.generate_key_pair(s, mechanism, &made_as, private))
        });
        pair.map_err(|rv| tie.answer(Function::GenerateKeyPair, rv))
    }

    /// `C_WrapKey`, and with `associated` `C_WrapKeyAuthenticated`.
    pub(super) fn wrap(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        wrapping: ObjectHandle,
        key: ObjectHandle,
        associated: Option<&[u8]>,
        output: &mut Output<'_>,
    ) -> Result<()> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        self.vet(mechanism)?;
        let wrapping = self.object(wrapping).map_err(|_| Rv::WRAPPING_KEY_HANDLE_INVALID)?;
        let key = self.key(key)?;
        if key.is_sealed() {
            return Err(Rv::KEY_UNEXTRACTABLE);
        }
        let mut held = self.inner_objects(mechanism)?;
        held.extend([wrapping.clone(), key.clone()]);
        let need = Need {
            mechanism: Some((mechanism.kind, ck::CKF_WRAP)),
            object: None,
            others: &held,
            preferred: state.home(),
        };
        let function = if associated.is_some() { Function::WrapKeyAuthenticated } else { Function::WrapKey };
        let call = Call { function, need, skip: None };
        let mut tie = Tie::new(mechanism.is_opaque());
        let wrapped = self.run(&call, &mut |lease| {
            let mut here = self.localised(lease, mechanism)?;
            let (w, k) = (self.group.backing(lease, &wrapping)?, self.group.backing(lease, &key)?);
            let (token, s) = (lease.token(), lease.session);
            let mut out = output.reborrow();
            let answer = tie.on(lease, || match associated {
                None => token.wrap_key(s, &mut here, w, k, &mut out),
                Some(aad) => token.wrap_key_authenticated(s, &mut here, w, k, aad, &mut out),
            });
            let len = out.len();
            output.set_len(len);
            answer?;
            Ok(here)
        });
        let (here, _) = wrapped.map_err(|rv| tie.answer(call.function, rv))?;
        if held.len() == 2 {
            *mechanism = here;
        }
        Ok(())
    }
}

/// Whether `C_GenerateKey` with this mechanism makes domain parameters and no key: those of DSA and Diffie-Hellman
/// (section 6.2 and 6.4, `CKM_xxx_PARAMETER_GEN`).
fn makes_parameters(mechanism: ha_token::Ulong) -> bool {
    (ck::CKM_DSA_PARAMETER_GEN..=ck::CKM_DSA_FIPS_G_GEN).contains(&mechanism)
}
