//! New objects on every member: put there, proven, committed together, or taken away again.

use std::sync::Arc;

use ha_token::{Attribute, Function, ObjectHandle, Result, Rv, Template, TemplateExt, ck};

use super::identify::place;
use super::{Group, Lease, Object, Origin, Traits, Trust};
use crate::policy::failure::Class;
use crate::replica::is_secret;
use crate::replica::ledger::{Blob, ObjectId, Staged};
use crate::replica::proof::Outcome;
use crate::replica::verifier::Verifier;

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
            let blob = match &item.how {
                How::Unwrap(blob) => Some(blob.clone()),
                _ => blob.clone(),
            };
            let mut template: Template = item
                .kept
                .iter()
                .filter(|a| !is_secret(item.traits.class) || a.kind != ck::CKA_VALUE)
                .cloned()
                .collect();
            for attribute in &item.remembered {
                template.set(attribute.clone());
            }
            let staged = Staged {
                class: item.traits.class,
                key_type: item.traits.key_type,
                ckaid: item.traits.id.to_vec(),
                label: item.traits.label.to_vec(),
                private: item.kept.get_bool(ck::CKA_PRIVATE) == Some(true),
                verifier: item.verifier.clone(),
                template,
                blob,
            };
            ledger.stage(item.id, &staged).map_err(|e| self.ledger_failed(e))?;
        }
        let mut done: Vec<(&Lease, Vec<ObjectHandle>)> = Vec::new();
        let mut refused = None;
        let mut unproven = None;
        let local = items.iter().any(|i| matches!(i.how, How::KeepOn(..)));
        for writer in writers {
            if items.iter().any(|i| matches!(i.how, How::KeepOn(member, ..) if member != writer.member.index))
            {
                continue;
            }
            match self.put_on(writer, &items) {
                Ok(handles) => done.push((writer, handles)),
                Err(NotPut::Unproven(reason)) => {
                    tracing::warn!(group = %self.config.label, member = writer.member.name(), function = %function, reason, "a new copy cannot be proven: it is not kept");
                    unproven = Some(reason);
                }
                Err(NotPut::Answered(rv)) => {
                    let class = self.failed(&writer.member, &writer.link, function, rv);
                    tracing::warn!(group = %self.config.label, member = writer.member.name(), function = %function, rv = %rv, "a new object could not be put on a member");
                    if class == Class::Caller {
                        refused = Some(rv);
                    }
                }
            }
        }
        let wanted = if local { 1 } else { self.config.min_copies };
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
        if let Err(rv) = outcome {
            for (writer, handles) in done {
                for handle in handles {
                    if let Err(rv) = writer.token().destroy_object(writer.session, handle) {
                        tracing::error!(group = %self.config.label, member = writer.member.name(), rv = %rv, "a copy that was given up could not be destroyed");
                    }
                }
            }
            return Err(rv);
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

    /// A key that could not be told from another one later, and would then not be used: it is not made at all.
    pub(super) fn unprovable(&self, function: Function, reason: &str) -> Rv {
        let why = format!(
            "the copies of this key cannot be proven to be one key ({reason}); let it be used in a way that can be checked (CKA_SIGN, CKA_ENCRYPT, CKA_DECRYPT or CKA_DERIVE), or be copied (CKA_COPYABLE), or be extracted (CKA_EXTRACTABLE)"
        );
        self.reporter.refused(function, Rv::TEMPLATE_INCONSISTENT, &why);
        Rv::TEMPLATE_INCONSISTENT
    }

    /// Puts the items on one member; what was made there goes again if one fails.
    fn put_on(&self, writer: &Lease, items: &[Item]) -> std::result::Result<Vec<ObjectHandle>, NotPut> {
        let mut handles = Vec::new();
        for item in items {
            let made = self.put_one(writer, item).map_err(NotPut::from).and_then(|handle| {
                handles.push(handle);
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
                for handle in handles {
                    if let Err(rv) = writer.token().destroy_object(writer.session, handle) {
                        tracing::error!(group = %self.config.label, member = writer.member.name(), rv = %rv, "a copy that was given up could not be destroyed");
                    }
                }
                return Err(not_put);
            }
        }
        Ok(handles)
    }

    fn put_one(&self, writer: &Lease, item: &Item) -> Result<ObjectHandle> {
        match &item.how {
            How::Create(template) => writer.token().create_object(writer.session, template),
            How::Unwrap(blob) => self.unwrap_blob(writer, blob, &item.kept),
            How::Copy(source, template) => {
                let mut template = template.clone();
                template.set(Attribute::bool(ck::CKA_TOKEN, true));
                writer.token().copy_object(writer.session, self.backing(writer, source)?, &template)
            }
            How::KeepOn(_, key, kept) => {
                // CKA_SENSITIVE it has already, and may not be told again.
                let allowed = [
                    ck::CKA_TOKEN,
                    ck::CKA_PRIVATE,
                    ck::CKA_EXTRACTABLE,
                    ck::CKA_ID,
                    ck::CKA_LABEL,
                    ck::CKA_MODIFIABLE,
                ];
                let template: Template = kept.iter().filter(|a| allowed.contains(&a.kind)).cloned().collect();
                writer.token().copy_object(writer.session, *key, &template)
            }
        }
    }
}
