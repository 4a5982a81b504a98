//! A new token object on every member: announced, made once, copied, proven, committed, acknowledged.

use std::sync::Arc;

use ha_token::{Attribute, Function, Mechanism, ObjectHandle, Result, Rv, Template, TemplateExt, Ulong, ck};

use super::put::{How, Item};
use super::{Group, Lease, Member, Need, Object, Origin, Who};
use crate::config::{NonExtractable, Uncopyable};
use crate::policy::failure::{Class, classify};
use crate::replica::ledger::{Blob, Intent, LedgerError, ObjectId};
use crate::replica::proof::{self, Known, Outcome};
use crate::replica::verifier::Verifier;
use crate::replica::{life, wrapping};

/// A key that is to be wrapped for its copies.
pub(super) struct Copied<'a> {
    pub(super) class: ha_token::Ulong,
    /// What every copy is.
    pub(super) kept: &'a Template,
    /// `CKA_VALUE_LEN` of a secret key; 0 on some tokens for what was unwrapped.
    pub(super) length: Option<ha_token::Ulong>,
    pub(super) verifier: Option<&'a Verifier>,
}

/// Sessions of a pool that may be gone before the member is at fault: more than a pool holds.
const MOST_STALE: usize = 200;

/// How keys are made on one member: with a template of the session object that is wanted.
pub(crate) type Make<'a> = &'a mut dyn FnMut(&Lease, &Template) -> Result<ObjectHandle>;

impl Group {
    /// Makes a secret or private token key by `make` and puts it on every member.
    ///
    /// # Errors
    /// The caller's mistakes as a member put them; `CKR_DEVICE_ERROR` when too few members took it: nothing is left then.
    pub(crate) fn replicate_key(
        &self,
        function: Function,
        need: &Need<'_>,
        asked: &Template,
        make: Make<'_>,
    ) -> Result<Arc<Object>> {
        self.until_whole(|| self.replicate_key_once(function, need, asked, make))
    }

    /// Makes something again, from the start, when a member went down in the middle of it and enough others are up: a try
    /// that failed has left nothing that counts.
    fn until_whole<T>(&self, mut once: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            let before = self.up().count();
            match once() {
                Err(rv) if classify(Function::GenerateKey, rv) != Class::Caller => {
                    for member in self.up() {
                        if let Some(link) = member.link()
                            && let Err(dead) = self.looks_alive(&link)
                        {
                            self.blame(member, Function::GetTokenInfo, dead);
                        }
                    }
                    let now = self.up().count();
                    if now >= before || now < self.config.min_copies {
                        return Err(rv);
                    }
                }
                answer => return answer,
            }
        }
    }

    fn replicate_key_once(
        &self,
        function: Function,
        need: &Need<'_>,
        asked: &Template,
        make: Make<'_>,
    ) -> Result<Arc<Object>> {
        let _at_work = self.at_work()?;
        let writers = self.key_writers(function, asked)?;
        let class = asked.get_ulong(ck::CKA_CLASS).unwrap_or(ck::CKO_SECRET_KEY);
        let id = self.announce(class)?;
        let generated = matches!(function, Function::GenerateKey);
        let made = self.make_once(function, need, &writers, &mut |lease| make(lease, &life::as_made(asked)));
        let outcome = made.and_then(|(source, key)| {
            let item = self.item(id, source, key, class, asked, generated);
            let (mut item, key) = match item {
                Ok(item) => (item, key),
                Err(rv) => {
                    source.on().discard(key);
                    if rv != Rv::KEY_NOT_WRAPPABLE {
                        return Err(rv);
                    }
                    self.uncopyable(function, id, source, class, asked, generated, make)?
                }
            };
            let made = self
                .add_verifier(source, key, &mut item, None)
                .and_then(|()| self.put(function, &writers, vec![item]));
            source.on().discard(key);
            made
        });
        match outcome {
            Ok(mut objects) => objects.pop().ok_or(Rv::GENERAL_ERROR),
            Err(rv) => {
                self.give_up(id);
                Err(rv)
            }
        }
    }

    /// Makes a key pair and puts both halves on every member.
    ///
    /// # Errors
    /// As [`Group::replicate_key`].
    pub(crate) fn replicate_pair(
        &self,
        need: &Need<'_>,
        mechanism: &mut Mechanism,
        public: &Template,
        private: &Template,
    ) -> Result<(Arc<Object>, Arc<Object>)> {
        let function = Function::GenerateKeyPair;
        // Both halves together are what can read out other keys.
        let asked: Template = public.iter().chain(private).cloned().collect();
        self.vet_usage(function, |kind| {
            asked.iter().any(|a| a.kind == kind && a.value.as_bool() == Some(true))
        })?;
        self.until_whole(|| {
            let _at_work = self.at_work()?;
            let writers = self.key_writers(function, private)?;
            let ids = [self.announce(ck::CKO_PUBLIC_KEY)?, self.announce(ck::CKO_PRIVATE_KEY)?];
            let outcome = self.put_pair(function, need, &writers, ids, mechanism, public, private);
            if outcome.is_err() {
                ids.into_iter().for_each(|id| self.give_up(id));
            }
            outcome
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn put_pair(
        &self,
        function: Function,
        need: &Need<'_>,
        writers: &[Lease],
        ids: [ObjectId; 2],
        mechanism: &mut Mechanism,
        public: &Template,
        private: &Template,
    ) -> Result<(Arc<Object>, Arc<Object>)> {
        let make = |lease: &Lease, mechanism: &mut Mechanism, private: &Template| {
            lease.token().generate_key_pair(lease.session, mechanism, &life::public_as_made(public), private)
        };
        let (source, mut pair) = self.make_once(function, need, writers, &mut |lease| {
            make(lease, mechanism, &life::as_made(private))
        })?;
        let on = source.on();
        let mut second = self.item(ids[1], source, pair.1, ck::CKO_PRIVATE_KEY, private, true);
        if second.as_ref().err() == Some(&Rv::KEY_NOT_WRAPPABLE) {
            on.discard(pair.0);
            on.discard(pair.1);
            second = self
                .uncopyable(
                    function,
                    ids[1],
                    source,
                    ck::CKO_PRIVATE_KEY,
                    private,
                    true,
                    &mut |lease, template| {
                        pair = make(lease, mechanism, template)?;
                        Ok(pair.1)
                    },
                )
                .map(|(item, _)| item);
        }
        let finished = second.and_then(|mut second| {
            let kept = life::public_as_kept(on, pair.0, public)?;
            let known = proof::public_part(&kept);
            self.add_verifier(source, pair.1, &mut second, known.as_ref())?;
            let verifier = self.make_verifier(source, pair.0, ck::CKO_PUBLIC_KEY, Known::default())?;
            let first = Item {
                id: ids[0],
                traits: self.read_traits(on, pair.0)?.0,
                remembered: life::to_remember(on, pair.0, true)?,
                verifier,
                how: How::Create(kept.clone()),
                kept,
            };
            let first = match &second.how {
                How::KeepOn(member, _, _) => {
                    Item { how: How::KeepOn(*member, pair.0, first.kept.clone()), ..first }
                }
                _ => first,
            };
            self.put(function, writers, vec![first, second])
        });
        on.discard(pair.0);
        on.discard(pair.1);
        let mut objects = finished?.into_iter();
        objects.next().zip(objects.next()).ok_or(Rv::GENERAL_ERROR)
    }

    /// Creates a public token object (public key, certificate, data, parameters) on every member.
    ///
    /// # Errors
    /// As [`Group::replicate_key`].
    pub(crate) fn create_everywhere(&self, template: &Template) -> Result<Arc<Object>> {
        let function = Function::CreateObject;
        let _at_work = self.at_work()?;
        let writers = self.writers(function)?;
        let class = template.get_ulong(ck::CKA_CLASS).ok_or(Rv::TEMPLATE_INCOMPLETE)?;
        let id = self.announce(class)?;
        let as_made = life::public_as_made(template);
        let outcome = self
            .make_once(function, &Need::default(), &writers, &mut |lease| {
                lease.token().create_object(lease.session, &as_made)
            })
            .and_then(|(source, made)| {
                let on = source.on();
                let item = self.read_traits(on, made).and_then(|(traits, _, _)| {
                    Ok(Item {
                        id,
                        traits,
                        kept: template.clone(),
                        remembered: Template::new(),
                        verifier: self.make_verifier(source, made, class, Known::default())?,
                        how: How::Create(template.clone()),
                    })
                });
                on.discard(made);
                self.put(function, &writers, vec![item?])
            });
        match outcome {
            Ok(mut objects) => objects.pop().ok_or(Rv::GENERAL_ERROR),
            Err(rv) => {
                self.give_up(id);
                Err(rv)
            }
        }
    }

    /// `C_CopyObject` of one of the group's token objects to another one.
    ///
    /// # Errors
    /// As [`Group::replicate_key`].
    pub(crate) fn copy_everywhere(&self, source: &Arc<Object>, template: &Template) -> Result<Arc<Object>> {
        let function = Function::CopyObject;
        let Origin::Ledger(from) = source.origin else { return Err(Rv::OBJECT_HANDLE_INVALID) };
        let _at_work = self.at_work()?;
        let writers = self.writers(function)?;
        let row = self
            .ledger()?
            .object(from)
            .map_err(|e| self.ledger_failed(e))?
            .ok_or(Rv::OBJECT_HANDLE_INVALID)?;
        let mut traits = (*source.traits()).clone();
        if let Some(id) = template.get_bytes(ck::CKA_ID) {
            traits.id = id.into();
        }
        if let Some(label) = template.get_bytes(ck::CKA_LABEL) {
            traits.label = label.into();
        }
        let verifier = row.verifier();
        let mut kept = row.template.clone();
        for attribute in template {
            kept.set(attribute.clone());
        }
        let id = self.announce(row.class)?;
        let staged_blob = row.blob.clone();
        let item = Item {
            id,
            traits,
            kept,
            remembered: Template::new(),
            verifier,
            how: How::Copy(Arc::clone(source), template.clone()),
        };
        match self.put_with(function, &writers, vec![item], staged_blob) {
            Ok(mut objects) => objects.pop().ok_or(Rv::GENERAL_ERROR),
            Err(rv) => {
                self.give_up(id);
                Err(rv)
            }
        }
    }

    /// What one made key becomes.
    ///
    /// # Errors
    /// `CKR_KEY_NOT_WRAPPABLE` when no wrapping mechanism copies it.
    fn item(
        &self,
        id: ObjectId,
        source: &Lease,
        key: ObjectHandle,
        class: ha_token::Ulong,
        asked: &Template,
        generated: bool,
    ) -> Result<Item> {
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
        if !extractable && self.config.non_extractable == NonExtractable::Local {
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

    /// Wraps a key under a group key by the first mechanism that carries it whole.
    ///
    /// # Errors
    /// `CKR_KEY_NOT_WRAPPABLE` when none does; the member's answers.
    pub(super) fn wrap(
        &self,
        source: &Lease,
        key: ObjectHandle,
        extractable: bool,
        copied: &Copied<'_>,
    ) -> Result<Blob> {
        let keys = source.link.group_keys().ok_or(Rv::DEVICE_ERROR)?;
        let ability = self.ability(source)?;
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
                Err(rv) if matches!(classify(Function::WrapKey, rv), Class::Caller | Class::Ambiguous) => {}
                Err(rv) => return Err(rv),
            }
        }
        Err(Rv::KEY_NOT_WRAPPABLE)
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
    fn add_verifier(
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
    fn uncopyable(
        &self,
        function: Function,
        id: ObjectId,
        source: &Lease,
        class: ha_token::Ulong,
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
            Uncopyable::Local => {}
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

    /// Unwraps a blob as a token object.
    ///
    /// # Errors
    /// The member's answer; `CKR_KEY_NOT_WRAPPABLE` when it lacks the mechanism.
    pub(crate) fn unwrap_blob(&self, writer: &Lease, blob: &Blob, kept: &Template) -> Result<ObjectHandle> {
        let keys = writer.link.group_keys().ok_or(Rv::DEVICE_ERROR)?;
        if !self.ability(writer)?.has(blob.format) {
            return Err(Rv::KEY_NOT_WRAPPABLE);
        }
        wrapping::unwrap(writer.on(), keys.for_key(blob.extractable), &blob.bytes, blob.format, kept)
    }

    /// What a member can wrap, tried once for each connection.
    pub(crate) fn ability(&self, lease: &Lease) -> Result<Arc<wrapping::WrapAbility>> {
        match lease.link.ability() {
            Some(ability) => Ok(ability),
            None => Ok(lease.link.set_ability(wrapping::WrapAbility::probe(lease.on())?)),
        }
    }

    /// Makes something on the first member that can, in the order of the plan.
    fn make_once<'w, T>(
        &self,
        function: Function,
        need: &Need<'_>,
        writers: &'w [Lease],
        make: &mut dyn FnMut(&Lease) -> Result<T>,
    ) -> Result<(&'w Lease, T)> {
        let mut last = Rv::DEVICE_ERROR;
        for index in self.plan(need) {
            let Some(writer) = writers.iter().find(|w| w.member.index == index) else { continue };
            match make(writer) {
                Ok(made) => {
                    self.succeeded();
                    return Ok((writer, made));
                }
                Err(rv) => {
                    if self.failed(&writer.member, &writer.link, function, rv) == Class::Caller {
                        return Err(rv);
                    }
                    last = rv;
                }
            }
        }
        Err(last)
    }

    /// Sessions on every member that is up, if there are enough of them, and a ledger that can be written.
    fn writers(&self, function: Function) -> Result<Vec<Lease>> {
        self.ledger()?;
        let mut writers = Vec::new();
        for member in self.up() {
            match self.sound_lease(member) {
                Ok(lease) => writers.push(lease),
                Err(rv) => {
                    if let Some(link) = member.link() {
                        self.failed(member, &link, function, rv);
                    }
                }
            }
        }
        if writers.len() < self.config.min_copies {
            let missing: Vec<_> = self
                .members
                .iter()
                .filter(|m| !writers.iter().any(|w| w.member.index == m.index))
                .map(|m| m.name())
                .collect();
            let why = format!(
                "min_copies is {} and {} members are up; missing: {}",
                self.config.min_copies,
                writers.len(),
                missing.join(", ")
            );
            self.reporter.refused(function, Rv::DEVICE_ERROR, &why);
            return Err(Rv::DEVICE_ERROR);
        }
        Ok(writers)
    }

    /// A backing session that is open and logged in as it should be, by the member's own word: what is made in it cannot
    /// simply be made again elsewhere. It is closed afterwards, so that no session object outlives what it was made for.
    fn sound_lease(&self, member: &Arc<Member>) -> Result<Lease> {
        let mut doubted = false;
        for _ in 0..MOST_STALE {
            let mut lease = self.lease(member)?;
            lease.set_busy(true);
            let user = match lease.token().session_info(lease.session) {
                Ok(info) => info.state == ck::CKS_RW_USER_FUNCTIONS,
                // Gone behind our back, as others of the pool may be.
                Err(Rv::SESSION_HANDLE_INVALID | Rv::SESSION_CLOSED) => continue,
                Err(rv) => return Err(rv),
            };
            if user == (self.login.who() == Who::User) {
                return Ok(lease);
            }
            if std::mem::replace(&mut doubted, true) {
                break;
            }
            lease.link.doubt_login();
        }
        Err(Rv::DEVICE_ERROR)
    }

    /// As [`Group::writers`], for keys: with the user logged in, the group keys there, and the settings' say.
    fn key_writers(&self, function: Function, asked: &Template) -> Result<Vec<Lease>> {
        if self.login.who() != Who::User {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        self.vet_usage(function, |kind| asked.get_bool(kind) == Some(true))?;
        if self.config.non_extractable == NonExtractable::Refuse && !life::may_be_extracted(asked) {
            self.reporter.refused(function, Rv::TEMPLATE_INCONSISTENT, "non_extractable = \"refuse\"");
            return Err(Rv::TEMPLATE_INCONSISTENT);
        }
        let mut writers = self.writers(function)?;
        self.group_keys_everywhere(&mut writers)?;
        Ok(writers)
    }

    /// Refuses, or tells of, a key that may both wrap and decrypt.
    fn vet_usage(&self, function: Function, asks_for: impl Fn(Ulong) -> bool) -> Result<()> {
        if !(asks_for(ck::CKA_WRAP) && asks_for(ck::CKA_DECRYPT)) {
            return Ok(());
        }
        if self.config.strict_usage {
            self.reporter.refused(
                function,
                Rv::TEMPLATE_INCONSISTENT,
                "a key that may wrap and decrypt reads out any other key (strict_usage)",
            );
            return Err(Rv::TEMPLATE_INCONSISTENT);
        }
        tracing::warn!(group = %self.config.label, "a key is made that may both wrap and decrypt: whoever may use it can read out other keys");
        Ok(())
    }

    /// Held while something is made or destroyed: whoever finds nobody at work may settle what was left half done.
    pub(super) fn at_work(&self) -> Result<std::fs::File> {
        self.ledger()?.at_work(&*self.world).map_err(|e| self.ledger_failed(e))
    }

    fn announce(&self, class: ha_token::Ulong) -> Result<ObjectId> {
        let id = ObjectId(self.nonce()?);
        self.ledger()?.begin(&Intent { id, class }).map_err(|e| self.ledger_failed(e))?;
        Ok(id)
    }

    /// Nothing was put on a member, or what may be left there is announced already: the announcement goes.
    fn give_up(&self, id: ObjectId) {
        if let Some(ledger) = &self.ledger
            && let Err(error) = ledger.abandon(id, &[])
            && !matches!(error, LedgerError::Conflict)
        {
            tracing::error!(group = %self.config.label, %error, "the ledger keeps an announcement that was given up");
        }
    }

    /// The ledger, where there is one that can be written.
    ///
    /// # Errors
    /// `CKR_TOKEN_WRITE_PROTECTED`.
    pub(crate) fn ledger(&self) -> Result<&crate::replica::ledger::Ledger> {
        match &self.ledger {
            Some(ledger) if !ledger.is_read_only() => Ok(ledger),
            _ => {
                self.reporter.refused(
                    Function::CreateObject,
                    Rv::TOKEN_WRITE_PROTECTED,
                    "there is no ledger that can be written: nothing is created, changed or destroyed",
                );
                Err(Rv::TOKEN_WRITE_PROTECTED)
            }
        }
    }

    /// The ledger did not take a change.
    pub(crate) fn ledger_failed(&self, error: LedgerError) -> Rv {
        tracing::error!(group = %self.config.label, %error, "the ledger did not take a change: it is not made");
        match error {
            LedgerError::ReadOnly => Rv::TOKEN_WRITE_PROTECTED,
            LedgerError::Conflict => Rv::OBJECT_HANDLE_INVALID,
            LedgerError::Place { .. } | LedgerError::Newer { .. } | LedgerError::Database(_) => {
                Rv::FUNCTION_FAILED
            }
        }
    }
}
