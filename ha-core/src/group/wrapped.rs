//! What a made key becomes: wrapped under a group key for its copies, or what the settings say of a key that cannot be.

use std::borrow::Borrow;
use std::sync::Arc;

use ha_token::{Attribute, Function, ObjectHandle, Result, Rv, Template, TemplateExt, Ulong, ck};

use super::put::{How, Item};
use super::{Group, Lease, Object};
use crate::config::{NonExtractable, Uncopyable};
use crate::policy::failure::{Class, classify};
use crate::replica::ledger::{Blob, ObjectId, ObjectRow};
use crate::replica::proof::{Known, Outcome};
use crate::replica::verifier::Verifier;
use crate::replica::{On, life, wrapping};

/// A key that is to be wrapped for its copies.
pub(super) struct Copied<'a> {
    pub(super) class: Ulong,
    /// What every copy is.
    pub(super) kept: &'a Template,
    /// `CKA_VALUE_LEN` of a secret key; 0 on some tokens for what was unwrapped.
    pub(super) length: Option<Ulong>,
    pub(super) verifier: Option<&'a Verifier>,
}

/// How keys are made on one member: with a template of the session object that is wanted.
pub(crate) type Make<'a> = &'a mut dyn FnMut(&Lease, &Template) -> Result<ObjectHandle>;

/// Why a key was not wrapped.
pub(super) enum NotWrapped {
    /// No wrapping mechanism of the member's copies it, by words that say so; or by others, which it may answer in trouble.
    Cannot {
        /// The last of those.
        vague: Option<Rv>,
    },
    /// The member's answer.
    Answered(Rv),
}

impl From<Rv> for NotWrapped {
    fn from(rv: Rv) -> Self {
        NotWrapped::Answered(rv)
    }
}

impl Group {
    /// What one made key becomes.
    ///
    /// # Errors
    /// [`NotWrapped`].
    pub(super) fn item(
        &self,
        id: ObjectId,
        source: &Lease,
        key: ObjectHandle,
        class: Ulong,
        asked: &Template,
        generated: bool,
    ) -> std::result::Result<Item, NotWrapped> {
        let on = source.on();
        let class = on.read(key, &[ck::CKA_CLASS])?.get_ulong(ck::CKA_CLASS).unwrap_or(class);
        let traits = self.read_traits(on, key)?.0;
        let kept = life::as_kept(on, key, class, asked)?;
        let remembered = life::to_remember(on, key, generated)?;
        let extractable = life::may_be_extracted(asked);
        let item = |verifier, how| Item {
            id,
            traits: traits.clone(),
            kept: kept.clone(),
            remembered: remembered.clone(),
            verifier,
            how,
        };
        if self.is_to_stay(asked) {
            return Ok(item(None, How::KeepOn(source.member.index, key, kept.clone())));
        }
        let length = remembered.get_ulong(ck::CKA_VALUE_LEN).filter(|_| class == ck::CKO_SECRET_KEY);
        let verifier = match class {
            ck::CKO_SECRET_KEY => {
                self.make_verifier(source, key, class, Known { public: None, kept: Some(&kept) })?
            }
            _ => None,
        };
        let copied = Copied { class, kept: &kept, length, verifier: verifier.as_ref() };
        let blob = self.wrap(source, key, extractable, &copied)?;
        Ok(item(verifier, How::Unwrap(blob)))
    }

    /// Whether a key stays on the member that makes it, as the group's `non_extractable` setting says.
    fn is_to_stay(&self, asked: &Template) -> bool {
        !life::may_be_extracted(asked) && self.config.non_extractable == NonExtractable::Local
    }

    /// The template of the session object that a secret or private key is made as.
    pub(super) fn to_make(&self, asked: &Template) -> Template {
        if self.is_to_stay(asked) { life::as_made_to_stay(asked) } else { life::as_made(asked) }
    }

    /// Wraps a key under a group key by the first mechanism that carries it whole.
    ///
    /// # Errors
    /// [`NotWrapped`].
    pub(super) fn wrap(
        &self,
        source: &Lease,
        key: ObjectHandle,
        extractable: bool,
        copied: &Copied<'_>,
    ) -> std::result::Result<Blob, NotWrapped> {
        let keys = source.link.group_keys().ok_or(Rv::DEVICE_ERROR)?;
        let ability = self.ability(source)?;
        // What it did not tell when it was tried it may be able to.
        let mut vague = (!ability.is_certain()).then_some(Rv::FUNCTION_FAILED);
        for format in ability.formats(copied.length.map(|l| l as usize)) {
            match wrapping::wrap(source.on(), keys.for_key(extractable), key, format.mechanism) {
                Ok(bytes) => {
                    let blob = Blob { format: format.mechanism, extractable, bytes };
                    // Copies of wrapped keys do not say their length on SoftHSM: it may be one that is padded.
                    let doubtful = copied.class == ck::CKO_SECRET_KEY
                        && !format.exact
                        && copied.length.is_none_or(|l| l == 0);
                    if !doubtful || self.comes_back(source, &blob, copied)? {
                        return Ok(blob);
                    }
                }
                Err(rv) => match classify(Function::WrapKey, rv) {
                    Class::Caller => {}
                    Class::Ambiguous => vague = Some(rv),
                    _ => return Err(rv.into()),
                },
            }
        }
        Err(NotWrapped::Cannot { vague })
    }

    /// The blob of a key that may not be extracted any more, under the group key that gives no extractable copies; `None`
    /// where it stays the one it has. It is wrapped on the first of the members that does it, while the key still may be.
    ///
    /// # Errors
    /// The last member's answer, `CKR_DEVICE_ERROR` where there is none: the key is left as it is.
    pub(super) fn sealed<L: Borrow<Lease>>(
        &self,
        holders: impl IntoIterator<Item = L>,
        key: &Object,
        row: &ObjectRow,
        kept: &Template,
    ) -> Result<Option<Blob>> {
        if row.blob.as_ref().is_none_or(|b| !b.extractable) || life::may_be_extracted(kept) {
            return Ok(None);
        }
        let length = kept.get_ulong(ck::CKA_VALUE_LEN).filter(|_| row.class == ck::CKO_SECRET_KEY);
        let (kept, verifier) = (life::of_copy(kept), row.verifier());
        let copied = Copied { class: row.class, kept: &kept, length, verifier: verifier.as_ref() };
        let mut answer = Rv::DEVICE_ERROR;
        for holder in holders {
            let holder = holder.borrow();
            let handle = self.backing(holder, key).map_err(NotWrapped::from);
            match handle.and_then(|handle| self.wrap(holder, handle, false, &copied)) {
                Ok(blob) => return Ok(Some(blob)),
                Err(NotWrapped::Cannot { .. }) => answer = Rv::KEY_NOT_WRAPPABLE,
                Err(NotWrapped::Answered(rv)) => answer = rv,
            }
        }
        let why = "the key could not be wrapped anew, as one that may not be extracted";
        self.reporter.refused(Function::WrapKey, answer, why);
        Err(answer)
    }

    /// Whether a blob gives the key that was wrapped: it is tried.
    fn comes_back(&self, source: &Lease, blob: &Blob, copied: &Copied<'_>) -> Result<bool> {
        // Without a verifier the key is refused for that.
        let Some(verifier) = copied.verifier else { return Ok(true) };
        let mut template = copied.kept.clone();
        template.set(Attribute::bool(ck::CKA_TOKEN, false));
        let back = self.unwrap_blob(source, blob, &template)?;
        let outcome = self.prove(source, back, copied.class, verifier);
        source.on().discard(back);
        Ok(outcome? == Outcome::Same)
    }

    /// Adds what the copies must answer, where the item has not got it yet.
    pub(super) fn add_verifier(
        &self,
        source: &Lease,
        key: ObjectHandle,
        item: &mut Item,
        public: Option<&Verifier>,
    ) -> Result<()> {
        if item.verifier.is_none() {
            let known = Known { public, kept: Some(&item.kept) };
            item.verifier = self.make_verifier(source, key, item.traits.class, known)?;
        }
        Ok(())
    }

    /// A key that cannot be wrapped, by the group's `uncopyable` setting.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn uncopyable(
        &self,
        function: Function,
        id: ObjectId,
        source: &Lease,
        class: Ulong,
        asked: &Template,
        generated: bool,
        make: Make<'_>,
    ) -> Result<(Item, ObjectHandle)> {
        let on = source.on();
        let mut template = life::as_made(asked);
        match self.config.uncopyable {
            Uncopyable::Refuse => {
                let why = "no wrapping mechanism of this token copies such a key; uncopyable = \"host-memory\" or \"local\" allows it";
                self.reporter.refused(function, Rv::KEY_NOT_WRAPPABLE, why);
                return Err(Rv::KEY_NOT_WRAPPABLE);
            }
            Uncopyable::HostMemory => template.set(Attribute::bool(ck::CKA_SENSITIVE, false)),
            Uncopyable::Local => template = life::as_made_to_stay(asked),
        }
        let key = make(source, &template)?;
        let item = || -> Result<Item> {
            let class = on.read(key, &[ck::CKA_CLASS])?.get_ulong(ck::CKA_CLASS).unwrap_or(class);
            let kept = life::as_kept(on, key, class, asked)?;
            let how = match self.config.uncopyable {
                Uncopyable::HostMemory => How::Create(life::with_value(on, key, &kept)?),
                Uncopyable::Local | Uncopyable::Refuse => How::KeepOn(source.member.index, key, kept.clone()),
            };
            Ok(Item {
                id,
                traits: self.read_traits(on, key)?.0,
                verifier: None,
                remembered: life::to_remember(on, key, generated)?,
                kept,
                how,
            })
        };
        match item() {
            Ok(item) => Ok((item, key)),
            Err(rv) => {
                on.discard(key);
                Err(rv)
            }
        }
    }

    /// Unwraps a blob as this template says.
    ///
    /// # Errors
    /// The member's answer; `CKR_KEY_NOT_WRAPPABLE` when it lacks the mechanism, `CKR_FUNCTION_FAILED` when it did not tell.
    pub(crate) fn unwrap_blob(&self, writer: &Lease, blob: &Blob, kept: &Template) -> Result<ObjectHandle> {
        self.unwrap_blob_in(writer, writer.on(), blob, kept)
    }

    /// As [`unwrap_blob`](Self::unwrap_blob), in this session of the same connection.
    pub(super) fn unwrap_blob_in(
        &self,
        writer: &Lease,
        on: On<'_>,
        blob: &Blob,
        kept: &Template,
    ) -> Result<ObjectHandle> {
        let keys = writer.link.group_keys().ok_or(Rv::DEVICE_ERROR)?;
        let ability = self.ability(writer)?;
        let unable = || if ability.is_certain() { Rv::KEY_NOT_WRAPPABLE } else { Rv::FUNCTION_FAILED };
        let format = ability.unwraps(blob.format).ok_or_else(unable)?;
        wrapping::unwrap(on, keys.for_key(blob.extractable), &blob.bytes, format, kept)
    }

    /// What a member can wrap, tried once for each connection, and again where an answer did not tell.
    pub(crate) fn ability(&self, lease: &Lease) -> Result<Arc<wrapping::WrapAbility>> {
        match lease.link.ability() {
            Some(ability) => Ok(ability),
            None => {
                let ability = Arc::new(wrapping::WrapAbility::probe(lease.on())?);
                if ability.is_certain() {
                    lease.link.set_ability(Some(Arc::clone(&ability)));
                }
                Ok(ability)
            }
        }
    }
}
