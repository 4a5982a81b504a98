//! New objects on every member: put there, proven, committed together, or taken away again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_token::{
    Attribute, AttributeType, Function, ObjectHandle, Result, Rv, Template, TemplateExt, Ulong, ck,
};

use super::identify::place;
use super::{Group, Lease, Member, Object, Origin, Traits, Trust};
use crate::mutants::wrong;
use crate::policy::failure::{Class, classify};
use crate::replica::ledger::{Blob, Ledger, LedgerError, ObjectId, Staged};
use crate::replica::life;
use crate::replica::proof::Outcome;
use crate::replica::verifier::Verifier;
use crate::seam::step;

/// How a copy is made on a member.
pub(super) enum How {
    /// Unwrapped from the blob, under a group key.
    Unwrap(Blob),
    /// Created from this template (which may hold a secret value: it is wiped, and never stored).
    Create(Template),
    /// Copied from another of the group's objects.
    Copy(Arc<Object>, Template),
    /// Copied from the session object that was made, on its own member only.
    KeepOn(usize, ObjectHandle, Template),
}

/// One object to be put on the members.
pub(super) struct Item {
    pub(super) id: ObjectId,
    pub(super) traits: Traits,
    /// What every copy is.
    pub(super) kept: Template,
    /// What is answered in place of the members.
    pub(super) remembered: Template,
    pub(super) verifier: Option<Verifier>,
    pub(super) how: How,
}

/// Whether the ledger may hold an attribute: no secret value is ever in it, nor the value of a private object.
fn may_be_stored(class: Ulong, private: bool, kind: AttributeType) -> bool {
    match kind {
        ck::CKA_VALUE => match class {
            ck::CKO_CERTIFICATE | ck::CKO_PUBLIC_KEY | ck::CKO_DOMAIN_PARAMETERS => true,
            ck::CKO_DATA => !private,
            _ => false,
        },
        ck::CKA_SEED => false,
        _ => true,
    }
}

/// Why a member did not take an object.
enum NotPut {
    /// It answered so.
    Answered(Rv),
    /// It took it, and the copy could not be proven for this reason.
    Unproven(String),
}

impl From<Rv> for NotPut {
    fn from(rv: Rv) -> Self {
        NotPut::Answered(rv)
    }
}

impl Group {
    pub(super) fn put(
        &self,
        function: Function,
        writers: &[Lease],
        items: Vec<Item>,
    ) -> Result<Vec<Arc<Object>>> {
        self.put_with(function, writers, items, None)
    }

    /// Puts the items on every writer, proves each copy, and commits them together.
    pub(super) fn put_with(
        &self,
        function: Function,
        writers: &[Lease],
        items: Vec<Item>,
        blob: Option<Blob>,
    ) -> Result<Vec<Arc<Object>>> {
        let ledger = self.ledger()?;
        if items.iter().any(|i| i.verifier.is_none()) {
            return Err(self.unprovable(function, "no challenge fits it"));
        }
        for item in &items {
            let private = item.kept.get_bool(ck::CKA_PRIVATE) == Some(true);
            self.stage(ledger, item, private, blob.clone())?;
        }
        let mut done: Vec<(&Lease, Vec<ObjectHandle>)> = Vec::new();
        let mut refused = None;
        let mut unproven = None;
        // Members that may hold a copy that nobody wants.
        let mut touched: Vec<&Lease> = Vec::new();
        let mut refuse_writes: Vec<&Lease> = Vec::new();
        let local = items.iter().any(|i| matches!(i.how, How::KeepOn(..)));
        for writer in writers {
            if items.iter().any(|i| matches!(i.how, How::KeepOn(member, ..) if member != writer.member.index))
            {
                continue;
            }
            if wrong!(AcknowledgedOnOneCopy) && !done.is_empty() {
                break;
            }
            match self.put_on(writer, &items) {
                Ok(handles) => {
                    step!(done.is_empty() => CopiedOnFirst, CopiedOnAnother);
                    done.push((writer, handles));
                }
                Err((NotPut::Unproven(reason), clean)) => {
                    if !clean {
                        touched.push(writer);
                    }
                    tracing::warn!(group = %self.config.label, member = writer.member.name(), function = %function, reason, "a new copy cannot be proven: it is not kept");
                    unproven = Some(reason);
                }
                Err((NotPut::Answered(rv), clean)) => {
                    let class = self.failed(&writer.member, &writer.link, function, rv);
                    let label =
                        items.first().map(|i| String::from_utf8_lossy(&i.traits.label)).unwrap_or_default();
                    tracing::warn!(group = %self.config.label, member = writer.member.name(), function = %function, rv = %rv, %label, "a new object could not be put on a member");
                    match class {
                        Class::Caller => refused = Some(rv),
                        Class::Ambiguous => refuse_writes.push(writer),
                        _ => {}
                    }
                    // What did not answer may have done what it was asked.
                    if !clean || class != Class::Caller {
                        touched.push(writer);
                    }
                }
            }
        }
        // Who has left the group meanwhile has no copy of its own any more.
        let (gone, done): (Vec<_>, Vec<_>) = done.into_iter().partition(|(w, _)| w.member.has_left());
        gone.iter().for_each(|(writer, handles)| _ = self.take_back(writer, handles));
        let wanted = if local || wrong!(AcknowledgedOnOneCopy) { 1 } else { self.min_copies() };
        let outcome = if done.len() < wanted {
            Err(match (refused, unproven) {
                (Some(rv), _) => rv,
                (None, Some(reason)) => self.unprovable(function, &reason),
                (None, None) => Rv::DEVICE_ERROR,
            })
        } else {
            let copies: Vec<String> = done.iter().map(|(w, _)| w.member.name().to_owned()).collect();
            let committed: Vec<_> = items.iter().map(|i| (i.id, copies.clone())).collect();
            ledger.commit(&committed).map_err(|e| self.ledger_failed(e))
        };
        // What the others wrote, this one refused in words that say nothing: it is connected anew.
        if !done.is_empty() {
            for writer in refuse_writes {
                writer.member.refuses_writes.store(true, Ordering::Release);
                writer.member.falls_behind();
            }
        }
        if let Err(rv) = outcome {
            touched.extend(done.iter().filter(|(w, handles)| !self.take_back(w, handles)).map(|(w, _)| *w));
            self.give_up_on(&items, &touched);
            return Err(rv);
        }
        // Those that could not, and those that were not there or on their way when the writers were counted.
        let passed = |m: &&Arc<Member>| !done.iter().any(|(w, _)| w.member.index == m.index);
        for member in self.members.iter().filter(passed).filter(|_| !local) {
            member.falls_behind();
        }
        let mut objects = Vec::new();
        for (n, item) in items.iter().enumerate() {
            let private = item.kept.get_bool(ck::CKA_PRIVATE) == Some(true);
            let object = self.objects.add(Origin::Ledger(item.id), item.traits.clone(), private, None);
            for (writer, handles) in &done {
                if let Some(handle) = handles.get(n) {
                    object.put(place(writer, *handle, Trust::Proven));
                    writer.link.bind(*handle, object.handle.0);
                }
            }
            objects.push(object);
        }
        Ok(objects)
    }

    /// Tells the ledger what an announced object is to be. `blob`: for one that is not unwrapped from its own.
    pub(super) fn stage(
        &self,
        ledger: &Ledger,
        item: &Item,
        private: bool,
        blob: Option<Blob>,
    ) -> Result<()> {
        let blob = match &item.how {
            How::Unwrap(blob) => Some(blob.clone()),
            _ => blob,
        };
        let mut template: Template =
            item.kept.iter().filter(|a| may_be_stored(item.traits.class, private, a.kind)).cloned().collect();
        for attribute in &item.remembered {
            template.set(attribute.clone());
        }
        let staged = Staged {
            class: item.traits.class,
            key_type: item.traits.key_type,
            ckaid: item.traits.id.to_vec(),
            label: item.traits.label.to_vec(),
            private,
            verifier: item.verifier.clone(),
            template,
            blob,
        };
        ledger.stage(item.id, &staged).map_err(|e| self.ledger_failed(e))
    }

    /// Destroys copies that are given up; false if one may be left.
    fn take_back(&self, writer: &Lease, handles: &[ObjectHandle]) -> bool {
        let mut clean = true;
        if wrong!(TakeBackForgotten) {
            return clean;
        }
        for handle in handles {
            if let Err(rv) = writer.token().destroy_object(writer.session, *handle) {
                clean = false;
                tracing::error!(group = %self.config.label, member = writer.member.name(), rv = %rv, "a copy that was given up could not be destroyed now: it is hidden, and destroyed when the member is next brought up to date");
            }
        }
        clean
    }

    /// The items are given up: what may be left of them on members is destroyed when it is found.
    fn give_up_on(&self, items: &[Item], touched: &[&Lease]) {
        let names: Vec<String> = touched.iter().map(|w| w.member.name().to_owned()).collect();
        for item in items.iter().filter(|_| !wrong!(GivenUpForgotten)) {
            if let Some(ledger) = &self.ledger
                && let Err(error) = ledger.abandon(item.id, &names)
                && !matches!(error, LedgerError::Conflict)
            {
                tracing::error!(group = %self.config.label, %error, "the ledger keeps an announcement that was given up");
            }
        }
        touched.iter().for_each(|w| w.member.falls_behind());
    }

    /// A key that could not be told from another one later, and would then not be used: it is not made at all.
    pub(super) fn unprovable(&self, function: Function, reason: &str) -> Rv {
        let why = format!(
            "the copies of this key cannot be proven to be one key ({reason}); let it be used in a way that can be checked (CKA_SIGN, CKA_ENCRYPT, CKA_DECRYPT or CKA_DERIVE), or be copied (CKA_COPYABLE), or be extracted (CKA_EXTRACTABLE)"
        );
        self.reporter.refused(function, Rv::TEMPLATE_INCONSISTENT, &why);
        Rv::TEMPLATE_INCONSISTENT
    }

    /// Puts the items on one member; what was made there goes again if one fails. With the failure it answers whether all
    /// that is known to have been made is gone.
    fn put_on(
        &self,
        writer: &Lease,
        items: &[Item],
    ) -> std::result::Result<Vec<ObjectHandle>, (NotPut, bool)> {
        let mut handles = Vec::new();
        for item in items {
            let made = self.put_one(writer, item).map_err(NotPut::from).and_then(|handle| {
                handles.push(handle);
                if matches!(item.how, How::KeepOn(..)) {
                    self.keep_as_asked(writer, handle, &item.kept)?;
                }
                let outcome = match &item.verifier {
                    Some(verifier) => self.prove(writer, handle, item.traits.class, verifier)?,
                    None => Outcome::Unproven("no challenge fits it".into()),
                };
                match outcome {
                    Outcome::Same => Ok(()),
                    Outcome::Different => {
                        self.reporter.conflict(writer.member.name(), &item.traits.label);
                        Err(NotPut::Answered(Rv::DEVICE_ERROR))
                    }
                    Outcome::Unproven(reason) => Err(NotPut::Unproven(reason)),
                }
            });
            if let Err(not_put) = made {
                return Err((not_put, self.take_back(writer, &handles)));
            }
        }
        Ok(handles)
    }

    /// The copy of a key that was made to stay: what a token is told of it only now, and whether it is then as it was asked
    /// for. Other keys are unwrapped with all of that.
    ///
    /// # Errors
    /// The member's answer; `CKR_TEMPLATE_INCONSISTENT` where it is not.
    fn keep_as_asked(&self, writer: &Lease, handle: ObjectHandle, kept: &Template) -> Result<()> {
        if kept.get_bool(ck::CKA_COPYABLE) == Some(false) {
            let template = vec![Attribute::bool(ck::CKA_COPYABLE, false)];
            // SoftHSM takes that in no other call than the one that makes the key.
            if let Err(rv) = writer.token().set_attributes(writer.session, handle, &template)
                && classify(Function::SetAttributeValue, rv) != Class::Caller
            {
                return Err(rv);
            }
        }
        if life::has_flags(writer.on(), handle, kept)? {
            return Ok(());
        }
        let why = "the member that makes the key, and is to keep it, does not make it as it was asked for";
        self.reporter.refused(Function::CopyObject, Rv::TEMPLATE_INCONSISTENT, why);
        Err(Rv::TEMPLATE_INCONSISTENT)
    }

    /// Makes one copy; it is yet to be proven.
    pub(super) fn put_one(&self, writer: &Lease, item: &Item) -> Result<ObjectHandle> {
        match &item.how {
            How::Create(template) => writer.token().create_object(writer.session, template),
            How::Unwrap(blob) => self.unwrap_blob(writer, blob, &item.kept),
            How::Copy(source, template) => {
                let source = self.backing(writer, source)?;
                copy_in_two_steps(writer, source, template, &item.kept)
            }
            How::KeepOn(_, key, kept) => {
                writer.token().copy_object(writer.session, *key, &life::as_stays(kept))
            }
        }
    }
}

/// Makes a copy on the token of a copy in the session. What SoftHSM keeps of one that it did not end, because the process died,
/// has the names of what it was made of: those of the copy, by which it is found again, and not those of the source.
fn copy_in_two_steps(
    writer: &Lease,
    source: ObjectHandle,
    template: &Template,
    kept: &Template,
) -> Result<ObjectHandle> {
    let (token, session) = (writer.token(), writer.session);
    let directly = || {
        // The source is the token's, and so is its copy: one that may not be modified takes no attribute at all.
        let copied: Template = template.iter().filter(|a| a.kind != ck::CKA_TOKEN).cloned().collect();
        token.copy_object(session, source, &copied)
    };
    // It would be there until the session is closed.
    if kept.get_bool(ck::CKA_DESTROYABLE) == Some(false) && template.get(ck::CKA_DESTROYABLE).is_none() {
        return directly();
    }
    let (first, last) = life::in_two_steps(template);
    let passing = match token.copy_object(session, source, &first) {
        // A token may take no such object in a session, and the application is told what it says of the copy itself.
        Err(rv) if matches!(classify(Function::CopyObject, rv), Class::Caller | Class::Ambiguous) => {
            return directly();
        }
        answer => answer?,
    };
    // No other thread is to take it for what somebody left.
    writer.link.bind(passing, 0);
    // What may be left of a copy that failed nobody would look for once another one is made.
    let made = token.copy_object(session, passing, &last);
    writer.on().discard(passing);
    writer.link.unbind(passing);
    made
}
