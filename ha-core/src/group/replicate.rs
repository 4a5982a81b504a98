//! A new token object on every member: announced, made once, copied, proven, committed, acknowledged.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_token::{Attribute, Function, ObjectHandle, Result, Rv, Template, TemplateExt, Ulong, ck};

use super::catch_up::Extent;
use super::change::changed;
use super::copies::row_traits;
use super::keeper::bits;
use super::put::{How, Item};
use super::wrapped::{Make, NotWrapped};
use super::{Group, Lease, Need, Object, Origin};
use crate::policy::failure::{Class, classify};
use crate::replica::ledger::{Intent, LedgerError, ObjectId, ObjectRow};
use crate::replica::proof::{self, Known};
use crate::replica::{is_secret, life};
use crate::seam::step;

/// How key pairs are made on one member: with a template of the private session key that is wanted.
pub(crate) type MakePair<'a> = &'a mut dyn FnMut(&Lease, &Template) -> Result<(ObjectHandle, ObjectHandle)>;

/// How often something is made again in one call, for each member: one may fail, be found out, and be back.
const MOST_TRIES: usize = 2;

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
        self.until_whole(|sources| self.replicate_key_once(function, need, asked, make, sources))
    }

    /// Makes something again, from the start, when the member it was made on failed in the middle of it, or one went down,
    /// and enough are up: a try that failed has left nothing that counts. `once` is given the members that it was made on
    /// before, adds the one it is made on now, and leaves those out. At most [`MOST_TRIES`] times for each member, as
    /// far as retries are to be had.
    fn until_whole<T>(&self, mut once: impl FnMut(&mut Vec<usize>) -> Result<T>) -> Result<T> {
        let mut sources = Vec::new();
        let mut tries = 0;
        // A member that failed is in order by now: it may be asked again once every other one was.
        let mut mended = false;
        loop {
            let (before, tried, visits) = (self.up().count(), sources.len(), self.visits());
            let falls = || self.members.iter().map(|m| m.falls.load(Ordering::Acquire)).sum::<u64>();
            let fallen = falls();
            tries += 1;
            match once(&mut sources) {
                Err(rv) if classify(Function::GenerateKey, rv) != Class::Caller => {
                    for member in self.up() {
                        mended |= self.look_at(member);
                    }
                    // A login or handles that were lost are there again, whoever found that out.
                    mended |= self.visits() != visits;
                    // So is one that went down and came back, whoever took it back.
                    mended |= falls() != fallen;
                    let now = self.up().count();
                    // One that was found dead may be back in a moment, and was not asked; or it has the group keys, which the
                    // others lack.
                    let asked = match sources.len() > tried {
                        true => bits(sources.iter().copied()),
                        false => bits(self.up().map(|m| m.index)),
                    };
                    let elsewhere = self.wait_for_return(1, asked);
                    let in_vain = now >= before && !elsewhere && !mended;
                    let too_often = tries > MOST_TRIES * self.members.len();
                    if in_vain
                        || too_often
                        // Those that were found dead may have been restarted while nobody used them.
                        || !self.wait_for_return(self.min_copies(), 0)
                        || !self.may_retry(tries == 1)
                    {
                        // The wrapping keys are the group's own, and so are its connections and sessions.
                        let ours = rv == Rv::WRAPPING_KEY_HANDLE_INVALID
                            || matches!(classify(Function::GenerateKey, rv), Class::Member | Class::Session);
                        return Err(if ours { Rv::DEVICE_ERROR } else { rv });
                    }
                    if !elsewhere {
                        sources.clear();
                        mended = false;
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
        sources: &mut Vec<usize>,
    ) -> Result<Arc<Object>> {
        let _at_work = self.at_work()?;
        let writers = self.key_writers(function, asked)?;
        let class = asked.get_ulong(ck::CKA_CLASS).unwrap_or(ck::CKO_SECRET_KEY);
        let id = self.announce(class)?;
        let generated = matches!(function, Function::GenerateKey);
        let as_made = self.to_make(asked);
        let made = self.make_once(function, need, &writers, sources, &mut |lease| make(lease, &as_made));
        let outcome = made.and_then(|(source, key)| {
            let item = self.item(id, source, key, class, asked, generated);
            let (mut item, key) = match item {
                Ok(item) => (item, key),
                Err(why) => {
                    source.on().discard(key);
                    is_uncopyable(why, writers.iter().any(|w| is_left(w, sources)))?;
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

    /// Makes a key pair by `make` and puts both halves on every member.
    ///
    /// # Errors
    /// As [`Group::replicate_key`].
    pub(crate) fn replicate_pair(
        &self,
        need: &Need<'_>,
        public: &Template,
        private: &Template,
        make: MakePair<'_>,
    ) -> Result<(Arc<Object>, Arc<Object>)> {
        let function = Function::GenerateKeyPair;
        // Both halves together are what can read out other keys.
        let asked: Template = public.iter().chain(private).cloned().collect();
        self.vet_usage(function, |kind| {
            asked.iter().any(|a| a.kind == kind && a.value.as_bool() == Some(true))
        })?;
        self.until_whole(|sources| {
            let _at_work = self.at_work()?;
            let writers = self.key_writers(function, private)?;
            let ids = [self.announce(ck::CKO_PUBLIC_KEY)?, self.announce(ck::CKO_PRIVATE_KEY)?];
            let outcome = self.put_pair(function, need, &writers, sources, ids, public, private, make);
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
        sources: &mut Vec<usize>,
        ids: [ObjectId; 2],
        public: &Template,
        private: &Template,
        make: MakePair<'_>,
    ) -> Result<(Arc<Object>, Arc<Object>)> {
        let as_made = self.to_make(private);
        let (source, mut pair) =
            self.make_once(function, need, writers, sources, &mut |lease| make(lease, &as_made))?;
        let on = source.on();
        let second = match self.item(ids[1], source, pair.1, ck::CKO_PRIVATE_KEY, private, true) {
            Ok(item) => Ok(item),
            Err(why) => is_uncopyable(why, writers.iter().any(|w| is_left(w, sources))).and_then(|()| {
                on.discard(pair.0);
                on.discard(pair.1);
                let mut make_again = |lease: &Lease, template: &Template| {
                    pair = make(lease, template)?;
                    Ok(pair.1)
                };
                let (id, class) = (ids[1], ck::CKO_PRIVATE_KEY);
                self.uncopyable(function, id, source, class, private, true, &mut make_again)
                    .map(|(item, _)| item)
            }),
        };
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
        self.until_whole(|sources| self.create_once(template, sources))
    }

    fn create_once(&self, template: &Template, sources: &mut Vec<usize>) -> Result<Arc<Object>> {
        let function = Function::CreateObject;
        let _at_work = self.at_work()?;
        let writers = self.writers(function)?;
        let class = template.get_ulong(ck::CKA_CLASS).ok_or(Rv::TEMPLATE_INCOMPLETE)?;
        let id = self.announce(class)?;
        let as_made = life::public_as_made(template);
        let outcome = self
            .make_once(function, &Need::default(), &writers, sources, &mut |lease| {
                lease.token().create_object(lease.session, &as_made)
            })
            .and_then(|(source, made)| {
                let on = source.on();
                let item = self.read_traits(on, made).and_then(|(traits, _, private)| {
                    // Where it was not said the token decides, and the group must know what.
                    let mut kept = template.clone();
                    kept.set(Attribute::bool(ck::CKA_PRIVATE, private));
                    Ok(Item {
                        id,
                        traits,
                        remembered: Template::new(),
                        verifier: self.make_verifier(source, made, class, Known::default())?,
                        how: How::Create(kept.clone()),
                        kept,
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
        self.until_whole(|_| self.copy_once(source, template))
    }

    fn copy_once(&self, source: &Arc<Object>, template: &Template) -> Result<Arc<Object>> {
        let function = Function::CopyObject;
        let Origin::Ledger(from) = source.origin else { return Err(Rv::OBJECT_HANDLE_INVALID) };
        let _at_work = self.at_work()?;
        let row = self
            .ledger()?
            .object(from)
            .map_err(|e| self.ledger_failed(e))?
            .ok_or(Rv::OBJECT_HANDLE_INVALID)?;
        // Another process may have named it otherwise since it was found here.
        let traits = changed(&row_traits(&row), template);
        self.vet_names(function, &traits.label, &traits.id)?;
        let verifier = row.verifier();
        let mut kept = row.template.clone();
        for attribute in template {
            kept.set(attribute.clone());
        }
        let writers =
            if is_secret(row.class) { self.key_writers(function, &kept)? } else { self.writers(function)? };
        self.give_source(&writers, &row);
        let staged_blob = match self.sealed(&writers, source, &row, &kept)? {
            None => row.blob.clone(),
            sealed => sealed,
        };
        let id = self.announce(row.class)?;
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

    /// Where fewer members than must have the copy have its source, the others are given it first.
    fn give_source(&self, writers: &[Lease], source: &ObjectRow) {
        let (have, lack): (Vec<&Lease>, Vec<&Lease>) =
            writers.iter().partition(|w| source.copies.iter().any(|member| member == w.member.name()));
        if have.len() >= self.min_copies() {
            return;
        }
        for writer in lack {
            // What goes wrong there the copy meets too.
            if let Err(rv) = self.catch_up(&writer.member, &writer.link, Extent::Whole) {
                tracing::debug!(group = %self.config.label, member = writer.member.name(), %rv, "the member was not given what is to be copied there");
            }
        }
    }

    /// Makes something on the first member that can, in the order of the plan; on none of `sources`, which it adds to.
    fn make_once<'w, T>(
        &self,
        function: Function,
        need: &Need<'_>,
        writers: &'w [Lease],
        sources: &mut Vec<usize>,
        make: &mut dyn FnMut(&Lease) -> Result<T>,
    ) -> Result<(&'w Lease, T)> {
        let mut last = Rv::DEVICE_ERROR;
        for index in self.plan(need) {
            if sources.contains(&index) {
                continue;
            }
            let Some(writer) = writers.iter().find(|w| w.member.index == index) else { continue };
            sources.push(index);
            match make(writer) {
                Ok(made) => {
                    step!(Made);
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

    pub(super) fn announce(&self, class: Ulong) -> Result<ObjectId> {
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
}

/// Whether something can still be made on this member: it was not yet.
fn is_left(writer: &Lease, sources: &[usize]) -> bool {
    writer.member.is_up() && !sources.contains(&writer.member.index)
}

/// A key that was not wrapped cannot be copied, unless that is only its member's trouble.
///
/// # Errors
/// The member's answer; also a vague one, where another member is `left` that can be asked.
fn is_uncopyable(why: NotWrapped, left: bool) -> Result<()> {
    match why {
        NotWrapped::Answered(rv) => Err(rv),
        NotWrapped::Cannot { vague: Some(rv) } if left => Err(rv),
        NotWrapped::Cannot { .. } => Ok(()),
    }
}
