//! What is kept of a session object is taken when it is made: its template where that has the value, else its blob and
//! what it answers to a challenge.

use ha_token::{
    Attribute, AttributeType, Function, ObjectHandle, Result, Rv, SessionHandle, Template, TemplateExt, ck,
};

use super::Again;
use super::kept::put;
use crate::config::NonExtractable;
use crate::group::wrapped::{Copied, NotWrapped};
use crate::group::{Group, Lease, Object, Origin, Who};
use crate::policy::failure::{Class, classify};
use crate::replica::ledger::Blob;
use crate::replica::proof::{self, Known, Outcome};
use crate::replica::verifier::Verifier;
use crate::replica::{On, PUBLIC_VALUE, is_secret, life};

/// What may differ when an object is made again.
const TOLD: [AttributeType; 8] = [
    ck::CKA_UNIQUE_ID,
    ck::CKA_LOCAL,
    ck::CKA_CHECK_VALUE,
    ck::CKA_VALUE_LEN,
    ck::CKA_KEY_GEN_MECHANISM,
    ck::CKA_VALUE_BITS,
    ck::CKA_ALWAYS_SENSITIVE,
    ck::CKA_NEVER_EXTRACTABLE,
];

/// What says that a key's blob is to be taken of another key.
const NOT_EXTRACTABLE: &str = "it may not be extracted";

/// A key that was made in a session, with its public half where that was made with it.
#[derive(Clone, Copy)]
pub(crate) struct Made {
    pub(crate) key: ObjectHandle,
    pub(crate) public: Option<ObjectHandle>,
}

impl Made {
    fn discard(self, on: On<'_>) {
        std::iter::once(self.key).chain(self.public).for_each(|handle| on.discard(handle));
    }
}

/// How a key is made, in the session that is to own it, with this template.
pub(crate) type MakeHere<'a> = &'a mut dyn FnMut(&Template) -> Result<Made>;

/// Why nothing is kept of an object.
enum NotKept {
    /// It cannot be: it stays where it is, and this is said.
    Why(&'static str),
    /// The member's answer: it is made on another one.
    Member(Rv),
}

impl From<Rv> for NotKept {
    fn from(rv: Rv) -> Self {
        match classify(Function::WrapKey, rv) {
            Class::Caller | Class::Ambiguous | Class::Capacity => {
                NotKept::Why("a member refuses what it takes to make such an object again")
            }
            Class::Session | Class::Login | Class::Object | Class::Member => NotKept::Member(rv),
        }
    }
}

impl From<NotWrapped> for NotKept {
    fn from(not: NotWrapped) -> Self {
        match not {
            NotWrapped::Cannot { .. } => NotKept::Why("no wrapping mechanism of a member copies such a key"),
            NotWrapped::Answered(rv) => rv.into(),
        }
    }
}

type Kept<T> = std::result::Result<T, NotKept>;

impl Group {
    /// Makes a session key, or a pair, so that it can be made again: as it was asked for, and wrapped; or, where it may not
    /// be extracted, by the life of a token key. Where it cannot be done the key is made as it was asked for, and stays.
    /// `make` makes it in `owner`.
    ///
    /// # Errors
    /// The member's answer.
    pub(crate) fn make_to_move(
        &self,
        lease: &Lease,
        owner: SessionHandle,
        asked: &Template,
        generated: bool,
        make: MakeHere<'_>,
    ) -> Result<(Made, Option<Again>)> {
        let forbids = asked.get_bool(ck::CKA_EXTRACTABLE) == Some(false)
            || asked.get_bool(ck::CKA_WRAP_WITH_TRUSTED) == Some(true);
        let mut by_life = forbids;
        let mut made = None;
        if !by_life {
            let as_asked = make(asked)?;
            match self.taken(lease, as_asked, asked, generated) {
                Ok(again) => return Ok((as_asked, Some(again))),
                Err(NotKept::Why(NOT_EXTRACTABLE)) => {
                    as_asked.discard(lease.on());
                    by_life = true;
                }
                Err(NotKept::Why(why)) => {
                    self.stays(why);
                    made = Some(as_asked);
                }
                Err(NotKept::Member(rv)) => {
                    as_asked.discard(lease.on());
                    return Err(self.keys_doubted(lease, rv));
                }
            }
        }
        if by_life {
            match self.made_by_life(lease, owner, asked, generated, make) {
                Ok((made, again)) => return Ok((made, Some(again))),
                Err(NotKept::Why(why)) => self.stays(why),
                Err(NotKept::Member(rv)) => return Err(self.keys_doubted(lease, rv)),
            }
        }
        match made {
            Some(made) => Ok((made, None)),
            None => Ok((make(asked)?, None)),
        }
    }

    /// A member's answer; the group keys are looked for anew where that says that their handles are out of date.
    fn keys_doubted(&self, lease: &Lease, rv: Rv) -> Rv {
        if matches!(rv, Rv::WRAPPING_KEY_HANDLE_INVALID | Rv::UNWRAPPING_KEY_HANDLE_INVALID) {
            lease.link.set_group_keys(None);
        }
        rv
    }

    /// What is kept of an object that an application gave the value of.
    ///
    /// # Errors
    /// The member's answer.
    pub(crate) fn taken_of_created(
        &self,
        lease: &Lease,
        object: ObjectHandle,
        template: &Template,
    ) -> Result<Option<Again>> {
        self.or_stays(created(lease.on(), object, template))
    }

    /// What is kept of an object that was made without a value given, if it can be.
    ///
    /// # Errors
    /// The member's answer.
    pub(crate) fn taken_of(
        &self,
        lease: &Lease,
        object: ObjectHandle,
        asked: &Template,
    ) -> Result<Option<Again>> {
        let made = Made { key: object, public: None };
        self.or_stays(self.taken(lease, made, asked, false))
    }

    /// What is kept of a session object that was copied from another object with this template, if it can be.
    ///
    /// # Errors
    /// The member's answer.
    pub(crate) fn taken_of_copy(
        &self,
        lease: &Lease,
        copy: ObjectHandle,
        source: &Object,
        template: &Template,
    ) -> Result<Option<Again>> {
        self.or_stays(self.copied(lease, copy, source, template))
    }

    fn or_stays(&self, kept: Kept<Again>) -> Result<Option<Again>> {
        match kept {
            Ok(again) => Ok(Some(again)),
            Err(NotKept::Why(why)) => {
                self.stays(why);
                Ok(None)
            }
            Err(NotKept::Member(rv)) => Err(rv),
        }
    }

    fn copied(&self, lease: &Lease, copy: ObjectHandle, source: &Object, template: &Template) -> Kept<Again> {
        let (on, class) = (lease.on(), source.traits().class);
        let known = match source.origin {
            _ if !is_secret(class) => None,
            Origin::Session(_) => self.again.record(source).map(|again| (Some(again), None)),
            Origin::Ledger(id) => {
                let row = self.ledger.as_ref().and_then(|l| l.object(id).ok().flatten());
                row.and_then(|row| Some((None, Some((row.verifier()?, row.blob?)))))
            }
            Origin::Foreign => None,
        };
        let Some(known) = known else {
            return self.taken(lease, Made { key: copy, public: None }, template, false);
        };
        // Where no key can be wrapped, what limits one may not be readable either: p11-kit carries no template.
        self.can_wrap(lease)?;
        let kept = kept_as_it_is(on, copy, class, template)?;
        let told = told(on, copy)?;
        match known {
            (Some(again), _) => Ok(again.copied(kept, told)),
            (None, Some((verifier, blob))) => Ok(Again::unwrapped(class, verifier, kept, blob, told)),
            (None, None) => Err(NotKept::Why(NOT_EXTRACTABLE)),
        }
    }

    /// What is kept of an object as it is.
    fn taken(&self, lease: &Lease, made: Made, asked: &Template, generated: bool) -> Kept<Again> {
        let (on, key) = (lease.on(), made.key);
        let class = on.read(key, &[ck::CKA_CLASS])?.get_ulong(ck::CKA_CLASS).ok_or(Rv::DEVICE_ERROR)?;
        let mut told = told(on, key)?;
        if !is_secret(class) {
            let mut whole = match class {
                ck::CKO_PUBLIC_KEY => life::public_as_kept(on, key, asked)?,
                _ => life::readable_as_kept(on, key)?,
            };
            whole.set(Attribute::bool(ck::CKA_TOKEN, false));
            for attribute in asked.iter().filter(|a| !life::is_value(a.kind)) {
                if whole.get(attribute.kind).is_none() {
                    put(&mut whole, attribute.clone());
                }
            }
            // A copy has these of what it was copied from.
            for attribute in life::permissions(on, key)? {
                if whole.get(attribute.kind).is_none() {
                    put(&mut whole, attribute);
                }
            }
            return Ok(Again::created(class, whole, told));
        }
        self.can_wrap(lease)?;
        let kept = kept_as_it_is(on, key, class, asked)?;
        if !life::may_be_extracted(&kept) {
            return Err(NotKept::Why(NOT_EXTRACTABLE));
        }
        if generated {
            told.set(Attribute::bool(ck::CKA_LOCAL, true));
        }
        let (verifier, blob) = self.blob_of(lease, made, class, &kept, &told)?;
        Ok(Again::unwrapped(class, verifier, kept, blob, told))
    }

    /// Makes a key as one that may be extracted, wraps it, and unwraps it in `owner` as it was asked for.
    fn made_by_life(
        &self,
        lease: &Lease,
        owner: SessionHandle,
        asked: &Template,
        generated: bool,
        make: MakeHere<'_>,
    ) -> Kept<(Made, Again)> {
        if self.config.non_extractable != NonExtractable::Escrow {
            return Err(NotKept::Why("it may not be extracted, and non_extractable is not \"escrow\""));
        }
        self.can_wrap(lease)?;
        let made = make(&life::as_made(asked))?;
        let unwrapped = self.unwrapped_as_asked(lease, owner, made, asked, generated);
        lease.on().discard(made.key);
        match unwrapped {
            Ok((key, again)) => Ok((Made { key, ..made }, again)),
            Err(not) => {
                made.public.into_iter().for_each(|public| lease.on().discard(public));
                Err(not)
            }
        }
    }

    fn unwrapped_as_asked(
        &self,
        lease: &Lease,
        owner: SessionHandle,
        made: Made,
        asked: &Template,
        generated: bool,
    ) -> Kept<(ObjectHandle, Again)> {
        let on = lease.on();
        let class = on.read(made.key, &[ck::CKA_CLASS])?.get_ulong(ck::CKA_CLASS).ok_or(Rv::DEVICE_ERROR)?;
        let mut kept = life::as_kept(on, made.key, class, asked)?;
        kept.set(Attribute::bool(ck::CKA_TOKEN, false));
        // What it was derived from or unwrapped with may have limited it.
        for limit in life::limits(on, made.key)? {
            if kept.get(limit.kind).is_none() {
                put(&mut kept, limit);
            }
        }
        let mut tells = life::to_remember(on, made.key, generated)?;
        let (verifier, blob) = self.blob_of(lease, made, class, &kept, &tells)?;
        let key = self.unwrap_blob_in(lease, lease.link.on(owner), &blob, &kept)?;
        let proven = self.prove(lease, key, class, &verifier);
        if proven != Ok(Outcome::Same) {
            on.discard(key);
            proven?;
            return Err(NotKept::Why("what is unwrapped cannot be proven to be the same key"));
        }
        for attribute in told(on, key).inspect_err(|_| on.discard(key))? {
            if tells.get(attribute.kind).is_none() {
                tells.push(attribute);
            }
        }
        Ok((key, Again::unwrapped(class, verifier, kept, blob, tells)))
    }

    /// What a key answers to a challenge, and the key wrapped.
    fn blob_of(
        &self,
        lease: &Lease,
        made: Made,
        class: ha_token::Ulong,
        kept: &Template,
        told: &Template,
    ) -> Kept<(Verifier, Blob)> {
        let public = match made.public {
            None => None,
            Some(public) => {
                let types: Vec<_> = [ck::CKA_KEY_TYPE].into_iter().chain(PUBLIC_VALUE).collect();
                proof::public_part(&lease.on().read(public, &types)?)
            }
        };
        let known = Known { public: public.as_ref(), kept: Some(kept) };
        let verifier = self.make_verifier(lease, made.key, class, known)?;
        let verifier = verifier.ok_or(NotKept::Why("no challenge proves that it is the same key"))?;
        let length = told.get_ulong(ck::CKA_VALUE_LEN).filter(|_| class == ck::CKO_SECRET_KEY);
        let copied = Copied { class, kept, length, verifier: Some(&verifier) };
        let blob = self.wrap(lease, made.key, life::may_be_extracted(kept), &copied)?;
        Ok((verifier, blob))
    }

    /// Sees to it that a member has the group keys and can wrap with them.
    fn can_wrap(&self, lease: &Lease) -> Kept<()> {
        if self.login.who() != Who::User {
            return Err(NotKept::Why("the user is not logged in, and the group keys are the user's"));
        }
        if self.ability(lease)?.formats(None).next().is_none() {
            return Err(NotKept::Why("a member has no wrapping mechanism"));
        }
        let visit = self.visit(&lease.link);
        if lease.link.group_keys().is_none() {
            self.recall_group_keys(lease)?;
        }
        let may_write = self.ledger.as_ref().is_some_and(|l| !l.is_read_only());
        if lease.link.group_keys().is_none() && may_write {
            let mut writers = self.those_up(Function::GenerateKey);
            // Whoever has them now has them, and for the others they are looked for again.
            _ = self.group_keys_everywhere(&mut writers);
        }
        match lease.link.group_keys() {
            Some(_) => Ok(()),
            // A token that is lost has none, and session keys all the same.
            None if self.is_lost(&lease.member, &lease.link, Class::Object) => {
                Err(NotKept::Member(Rv::DEVICE_ERROR))
            }
            // Without the login, which is made again by now, they were not seen.
            None if visit.is_none() || self.visit(&lease.link) != visit => {
                Err(NotKept::Member(Rv::USER_NOT_LOGGED_IN))
            }
            None => Err(NotKept::Why("there are no group keys")),
        }
    }
}

/// The template of a key that may be made again as it is now, with what the token decided of it.
fn kept_as_it_is(
    on: On<'_>,
    key: ObjectHandle,
    class: ha_token::Ulong,
    asked: &Template,
) -> Result<Template> {
    let mut whole = asked.clone();
    let protection = on.read(key, &[ck::CKA_SENSITIVE, ck::CKA_EXTRACTABLE])?;
    protection.iter().for_each(|a| whole.set(a.clone()));
    for limit in life::limits(on, key)? {
        if whole.get(limit.kind).is_none() {
            whole.push(limit);
        }
    }
    let mut kept = life::as_kept(on, key, class, &whole)?;
    kept.set(Attribute::bool(ck::CKA_TOKEN, false));
    // Also what can neither be read nor extracted, and need not be sensitive for that.
    protection.into_iter().for_each(|a| kept.set(a));
    Ok(kept)
}

fn told(on: On<'_>, object: ObjectHandle) -> Result<Template> {
    let mut told = on.read(object, &TOLD)?;
    told.retain(|a| a.value.as_bytes().is_none_or(|b| !b.is_empty()));
    Ok(told)
}

fn created(on: On<'_>, object: ObjectHandle, template: &Template) -> Kept<Again> {
    let class = template.get_ulong(ck::CKA_CLASS).unwrap_or(ck::CKO_DATA);
    let mut whole = template.clone();
    // What was left to the token is to be the same on another one.
    for attribute in on.read(object, &life::flags(class))? {
        if whole.get(attribute.kind).is_none() {
            put(&mut whole, attribute);
        }
    }
    Ok(Again::created(class, whole, told(on, object)?))
}
