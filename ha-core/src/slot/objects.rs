//! Objects: creating, copying, destroying, and their attributes.

use std::sync::Arc;

use ha_token::{
    Attribute, AttributeType, Fetched, Function, ObjectHandle, Result, Rv, SessionHandle, Template,
    TemplateExt, Ulong, Value, ck,
};

use super::VirtualSlot;
use super::run::Call;
use super::session::SessionState;
use super::table::Session;
use crate::group::{Lease, Need, Object, Origin, Place, Traits, Trust, Who};
use crate::policy::failure::Class;
use crate::policy::health::State;
use crate::replica::{is_secret, life};

impl VirtualSlot {
    /// The checks of section 4.4 and 5.6 that need no member: token objects want a read-write session, private ones the
    /// user's login.
    pub(super) fn may_create(&self, session: &Session<'_>, template: &Template) -> Result<()> {
        if template.get_bool(ck::CKA_TOKEN) == Some(true) && !session.is_read_write() {
            return Err(Rv::SESSION_READ_ONLY);
        }
        if template.get_bool(ck::CKA_PRIVATE) == Some(true) && self.group.login.who() != Who::User {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        self.group.vet_template(template)?;
        let named = |kind| template.get_bytes(kind).unwrap_or(&[]);
        // A data object has the other one in its place.
        [ck::CKA_ID, ck::CKA_APPLICATION]
            .into_iter()
            .try_for_each(|id| self.group.vet_names(Function::CreateObject, named(ck::CKA_LABEL), named(id)))
    }

    /// Where a new object of a session is best: where this session works, or else where there are session objects, so that
    /// they can be used together.
    pub(super) fn home(&self, state: &mut SessionState) -> Option<usize> {
        state.home().or_else(|| self.group.session_home())
    }

    /// `C_CreateObject`.
    ///
    /// # Errors
    /// The standard's codes for session and template, the members' answers, `CKR_DEVICE_ERROR` when too few members are up.
    pub(super) fn create(&self, session: SessionHandle, template: &Template) -> Result<ObjectHandle> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        self.may_create(&session, template)?;
        if template.get_bool(ck::CKA_TOKEN) != Some(true) {
            let need = Need { preferred: self.home(&mut state), ..Need::default() };
            let call = Call { function: Function::CreateObject, need, skip: None };
            let mut again = None;
            let object = self.make_session_object(&session, &mut state, &call, &mut |lease, owner| {
                let made = lease.token().create_object(owner, template)?;
                if self.group.replays_session_objects() {
                    let taken = self.group.taken_of_created(lease, made, template);
                    again = taken.inspect_err(|_| lease.on().discard(made))?;
                }
                Ok(made)
            })?;
            if let Some(again) = again {
                self.group.remember_session_object(&object, again);
            }
            return Ok(object.handle);
        }
        let made = match template.get_ulong(ck::CKA_CLASS) {
            Some(ck::CKO_SECRET_KEY | ck::CKO_PRIVATE_KEY) => self.group.replicate_key(
                Function::CreateObject,
                &Need::default(),
                template,
                &mut |lease, local| lease.token().create_object(lease.session, local),
            )?,
            _ => self.group.create_everywhere(template)?,
        };
        Ok(made.handle)
    }

    /// Makes one session object on one member, owned by a backing session that lives as long as this one.
    pub(super) fn make_session_object(
        &self,
        session: &Session<'_>,
        state: &mut SessionState,
        call: &Call<'_>,
        f: &mut dyn FnMut(&Lease, SessionHandle) -> Result<ObjectHandle>,
    ) -> Result<Arc<Object>> {
        let ((objects, ()), _) = self.run(call, &mut |lease| {
            self.own_objects(session, state, lease, |owner| Ok((vec![f(lease, owner)?], ())))
        })?;
        objects.into_iter().next().ok_or(Rv::GENERAL_ERROR)
    }

    /// Runs what makes session objects on a member, in the backing session there that owns those of this session and lives
    /// as long: each is given its virtual handle. They are looked at where they were made: a member that dies in between
    /// takes them with it, and they are made elsewhere.
    pub(super) fn own_objects<T>(
        &self,
        session: &Session<'_>,
        state: &mut SessionState,
        lease: &Lease,
        make: impl FnOnce(SessionHandle) -> Result<(Vec<ObjectHandle>, T)>,
    ) -> Result<(Vec<Arc<Object>>, T)> {
        let owner = self.owner(state, &lease.member, lease.link.generation)?;
        let (handles, more) = make(owner).inspect_err(|rv| {
            // The member has lost it, and what it owned: the next try has another one.
            if matches!(*rv, Rv::SESSION_HANDLE_INVALID | Rv::SESSION_CLOSED) {
                state.lose_owner(&lease.member);
            }
        })?;
        let traits =
            handles.iter().map(|h| self.group.read_traits(lease.on(), *h)).collect::<Result<Vec<_>>>();
        let traits = traits.inspect_err(|_| handles.iter().for_each(|h| lease.on().discard(*h)))?;
        let adopt = |(handle, (traits, _, private)): (&ObjectHandle, (Traits, _, _))| {
            let place = Place {
                member: lease.member.index,
                generation: lease.link.generation,
                handle: *handle,
                trust: Trust::Proven,
            };
            let object =
                self.group.objects.add(Origin::Session(session.handle), traits, private, Some(place));
            self.group.now_is(lease, *handle, &object);
            self.group.host_more(&lease.member);
            object
        };
        Ok((handles.iter().zip(traits).map(adopt).collect(), more))
    }

    /// `C_CopyObject`.
    ///
    /// # Errors
    /// As [`VirtualSlot::create`].
    pub(super) fn copy(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        template: &Template,
    ) -> Result<ObjectHandle> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        let source = self.object(object)?;
        self.may_create(&session, template)?;
        let token = template.get_bool(ck::CKA_TOKEN).unwrap_or(!matches!(source.origin, Origin::Session(_)));
        if token && !session.is_read_write() {
            return Err(Rv::SESSION_READ_ONLY);
        }
        if source.is_sealed() && template.get_bool(ck::CKA_EXTRACTABLE) == Some(true) {
            return Err(Rv::ATTRIBUTE_READ_ONLY);
        }
        let need =
            Need { mechanism: None, object: Some(&source), others: &[], preferred: self.home(&mut state) };
        if !token {
            let call = Call { function: Function::CopyObject, need, skip: None };
            let mut again = None;
            let copy = self.make_session_object(&session, &mut state, &call, &mut |lease, owner| {
                let made = lease.token().copy_object(owner, self.group.backing(lease, &source)?, template)?;
                if self.group.replays_session_objects() {
                    let taken = self.group.taken_of_copy(lease, made, &source, template);
                    again = taken.inspect_err(|_| lease.on().discard(made))?;
                }
                Ok(made)
            })?;
            if let Some(again) = again {
                self.group.remember_session_object(&copy, again);
            }
            if source.is_sealed() && template.get(ck::CKA_EXTRACTABLE).is_none() {
                copy.seal();
            }
            return Ok(copy.handle);
        }
        if matches!(source.origin, Origin::Ledger(_)) {
            return Ok(self.group.copy_everywhere(&source, template)?.handle);
        }
        if !is_secret(source.traits().class) {
            let call = Call { function: Function::CopyObject, need, skip: None };
            let (mut whole, _) = self.run(&call, &mut |lease| {
                let there = self.group.backing(lease, &source)?;
                if source.traits().class == ck::CKO_PUBLIC_KEY {
                    life::public_as_kept(lease.on(), there, template)
                } else {
                    life::readable_as_kept(lease.on(), there)
                }
            })?;
            template.iter().for_each(|a| whole.set(a.clone()));
            return Ok(self.group.create_everywhere(&whole)?.handle);
        }
        // What the template does not change the copy has from its source (section 5.7.3).
        let mut asked = template.clone();
        let secrecy = [ck::CKA_SENSITIVE, ck::CKA_EXTRACTABLE, ck::CKA_WRAP_WITH_TRUSTED];
        for (kind, answer) in secrecy.iter().zip(self.fetch(&source, &secrecy)?) {
            if let Fetched::Value(value) = answer
                && asked.get(*kind).is_none()
            {
                asked.push(Attribute { kind: *kind, value });
            }
        }
        let call = Call { function: Function::CopyObject, need, skip: None };
        let (limits, _) =
            self.run(&call, &mut |lease| life::limits(lease.on(), self.group.backing(lease, &source)?))?;
        for limit in limits {
            if asked.get(limit.kind).is_none() {
                asked.push(limit);
            }
        }
        let need =
            Need { mechanism: None, object: Some(&source), others: &[], preferred: self.home(&mut state) };
        let made = self.group.replicate_key(Function::CopyObject, &need, &asked, &mut |lease, local| {
            // Only what the caller changes goes into the copy; the rest follows the source.
            let mut changed: Template =
                local.iter().filter(|a| template.get(a.kind).is_some()).cloned().collect();
            changed.set(Attribute::bool(ck::CKA_TOKEN, false));
            lease.token().copy_object(lease.session, self.group.backing(lease, &source)?, &changed)
        })?;
        Ok(made.handle)
    }

    /// `C_DestroyObject`: on every member; for one that is away it is remembered.
    ///
    /// # Errors
    /// `CKR_SESSION_READ_ONLY`, `CKR_OBJECT_HANDLE_INVALID`, the members' answers.
    pub(super) fn destroy(&self, session: SessionHandle, object: ObjectHandle) -> Result<()> {
        let session = self.session(session)?;
        let _state = session.state()?;
        let object = self.object(object)?;
        if let Origin::Session(_) = object.origin {
            if object.moves() && self.group.is_gone_already(&object) {
                self.drop_object(&object);
                return Ok(());
            }
            let call = Call {
                function: Function::DestroyObject,
                need: Need { mechanism: None, object: Some(&object), others: &[], preferred: None },
                skip: None,
            };
            let answer = self.run(&call, &mut |lease| {
                lease.token().destroy_object(lease.session, self.group.backing(lease, &object)?)
            });
            return match answer {
                Ok((_, lease)) => {
                    // A member that answers again may have one too.
                    let others = object.forget_others(lease.member.index);
                    self.drop_object(&object);
                    self.group.discard_copies(&object, others);
                    Ok(())
                }
                Err(rv @ Rv::OBJECT_HANDLE_INVALID) => {
                    self.drop_object(&object);
                    Err(rv)
                }
                // A session object whose connection is gone is gone as well; with any other answer it is still there.
                Err(_) if !self.is_there(&object) => {
                    self.drop_object(&object);
                    Ok(())
                }
                Err(rv) => Err(rv),
            };
        }
        if !session.is_read_write() {
            return Err(Rv::SESSION_READ_ONLY);
        }
        self.group.destroy_everywhere(&object)?;
        self.drop_object(&object);
        Ok(())
    }

    /// Whether the connection in which a session object was made still is its member's.
    fn is_there(&self, object: &Object) -> bool {
        object.members().into_iter().filter_map(|i| self.group.members.get(i)).any(|member| {
            (member.is_up() || member.state() == State::Drained)
                && member.link().is_some_and(|link| object.place(member.index, link.generation).is_some())
        })
    }

    /// `C_GetObjectSize`.
    ///
    /// # Errors
    /// `CKR_OBJECT_HANDLE_INVALID`, the members' answers.
    pub(super) fn size(&self, session: SessionHandle, object: ObjectHandle) -> Result<Ulong> {
        let _call = self.sessions.stateless(session)?;
        let object = self.object(object)?;
        let call = Call {
            function: Function::GetObjectSize,
            need: Need { mechanism: None, object: Some(&object), others: &[], preferred: None },
            skip: None,
        };
        let (size, _) = self.run(&call, &mut |lease| {
            lease.token().object_size(lease.session, self.group.handle_to_read(lease, &object, &[])?)
        })?;
        Ok(size)
    }

    /// `C_GetAttributeValue`. What must differ between copies is answered from the ledger (guarantee G8).
    ///
    /// # Errors
    /// `CKR_OBJECT_HANDLE_INVALID`, the members' answers.
    pub(super) fn attributes(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        types: &[AttributeType],
    ) -> Result<Vec<Fetched>> {
        let _call = self.sessions.stateless(session)?;
        let object = self.object(object)?;
        self.fetch(&object, types)
    }

    pub(super) fn fetch(&self, object: &Object, types: &[AttributeType]) -> Result<Vec<Fetched>> {
        let call = Call {
            function: Function::GetAttributeValue,
            need: Need { mechanism: None, object: Some(object), others: &[], preferred: None },
            skip: None,
        };
        // Not each member for what none has shown.
        if !object.has_places()
            && let Some(written) = self.group.as_written(object, types)
        {
            return Ok(written);
        }
        let read = self.run(&call, &mut |lease| {
            lease.token().get_attributes(
                lease.session,
                self.group.handle_to_read(lease, object, types)?,
                types,
            )
        });
        let mut fetched = match read {
            Ok((fetched, _)) => fetched,
            Err(Rv::DEVICE_ERROR) => self.group.as_written(object, types).ok_or(Rv::DEVICE_ERROR)?,
            Err(rv) => return Err(rv),
        };
        if let Some(told) = self.group.told_of(object, types) {
            for (kind, answer) in types.iter().zip(&mut fetched) {
                if let Some(value) = told.get(*kind) {
                    *answer = Fetched::Value(value.clone());
                }
            }
        }
        if object.is_sealed() {
            for (kind, answer) in types.iter().zip(&mut fetched) {
                if matches!(*kind, ck::CKA_EXTRACTABLE | ck::CKA_NEVER_EXTRACTABLE) {
                    let never = *kind == ck::CKA_NEVER_EXTRACTABLE;
                    *answer = Fetched::Value(Attribute::bool(*kind, never).value);
                }
            }
        }
        if let Origin::Ledger(id) = object.origin
            && let Some(remembered) = self.group.remembered(id, types)
        {
            for (kind, answer) in types.iter().zip(&mut fetched) {
                if let Some(value) = remembered.get(*kind) {
                    *answer = Fetched::Value(Value::clone(value));
                }
            }
        }
        Ok(fetched)
    }

    /// `C_SetAttributeValue`: on every member; for one that is away it is remembered.
    ///
    /// # Errors
    /// `CKR_SESSION_READ_ONLY`, `CKR_OBJECT_HANDLE_INVALID`, the members' answers.
    pub(super) fn set(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        template: &Template,
    ) -> Result<()> {
        let answer = self.set_one(session, object, template);
        // Whatever was answered: it may have been made on a member.
        self.group.objects.have_changed();
        answer
    }

    fn set_one(&self, session: SessionHandle, object: ObjectHandle, template: &Template) -> Result<()> {
        let session = self.session(session)?;
        let object = self.object(object)?;
        self.group.vet_template(template)?;
        if let Origin::Session(_) = object.origin {
            if object.is_sealed() && template.get_bool(ck::CKA_EXTRACTABLE) == Some(true) {
                return Err(Rv::ATTRIBUTE_READ_ONLY);
            }
            let need = Need { mechanism: None, object: Some(&object), others: &[], preferred: None };
            let call = Call { function: Function::SetAttributeValue, need, skip: None };
            let (_, lease) = self.run(&call, &mut |lease| {
                lease.token().set_attributes(lease.session, self.group.backing(lease, &object)?, template)
            })?;
            self.group.session_object_changed(&lease, &object, template);
            return Ok(());
        }
        if !session.is_read_write() {
            return Err(Rv::SESSION_READ_ONLY);
        }
        self.group.set_everywhere(&object, template)
    }

    /// `C_SeedRandom`: every member that is up gets the seed; one that takes it is enough.
    ///
    /// # Errors
    /// The last member's answer when none took it.
    pub(super) fn seed(&self, session: SessionHandle, seed: &[u8]) -> Result<()> {
        let _call = self.sessions.stateless(session)?;
        let mut answer = Err(Rv::DEVICE_ERROR);
        for member in self.group.up() {
            let lent = self.group.lease(member).inspect_err(|rv| _ = self.group.not_lent(member, *rv));
            let one = lent.and_then(|lease| {
                let answer = lease.token().seed_random(lease.session, seed);
                if let Err(rv) = answer
                    && self.group.failed(member, &lease.link, Function::SeedRandom, rv) != Class::Caller
                {
                    return Err(Rv::DEVICE_ERROR);
                }
                answer
            });
            if answer.is_err() {
                answer = one;
            }
        }
        answer.map_err(Rv::told)
    }
}
