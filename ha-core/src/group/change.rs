//! Destroying and changing token objects: on every member, and remembered for those that are away.

use std::sync::Arc;

use ha_token::{Function, Result, Rv, Template, TemplateExt, ck};

use super::{Group, Object, Origin};
use crate::policy::failure::Class;
use crate::replica::is_secret;
use crate::replica::ledger::ObjectRow;
use crate::replica::proof::{self, Outcome};

impl Group {
    /// Destroys a token object on every member that is up. With the first that did, the destruction is final: members
    /// that are away destroy theirs when they come back.
    ///
    /// # Errors
    /// The members' answers when none destroyed it: it is then as it was.
    pub(crate) fn destroy_everywhere(&self, object: &Arc<Object>) -> Result<()> {
        let id = match object.origin {
            Origin::Ledger(id) => Some(id),
            Origin::Foreign | Origin::Session(_) => None,
        };
        let ledger = self.ledger()?;
        if let Some(id) = id {
            ledger.destroy_begin(id).map_err(|e| self.ledger_failed(e))?;
        }
        let mut first = None;
        let mut refused = None;
        for member in self.up() {
            if id.is_none() && !object.lives_on(member.index) {
                continue;
            }
            let answer = self.lease(member).and_then(|lease| {
                let handle =
                    if id.is_some() { self.backing(&lease, object) } else { self.handle_of(&lease, object) };
                let answer = handle.and_then(|h| lease.token().destroy_object(lease.session, h));
                match answer {
                    Err(rv) => match self.failed(member, &lease.link, Function::DestroyObject, rv) {
                        // There, and not proven to be this object: it stays.
                        Class::Object if self.is_doubtful(&lease, object) => {
                            Err(Rv::KEY_FUNCTION_NOT_PERMITTED)
                        }
                        // Not there is as good as destroyed, on a member that is sound.
                        Class::Object => self
                            .looks_alive(&lease.link)
                            .inspect_err(|rv| self.blame(member, Function::DestroyObject, *rv)),
                        _ => Err(rv),
                    },
                    Ok(()) => Ok(()),
                }
            });
            match answer {
                Ok(()) => {
                    if let Some(id) = id {
                        if first.is_none() {
                            ledger.destroy_final(id).map_err(|e| self.ledger_failed(e))?;
                        }
                        ledger.acknowledge(id, member.name()).map_err(|e| self.ledger_failed(e))?;
                    }
                    first.get_or_insert(member.index);
                }
                Err(rv) => refused = Some(rv),
            }
        }
        match (first, refused) {
            (Some(_), _) => Ok(()),
            (None, refused) => {
                if let Some(id) = id {
                    ledger.destroy_rollback(id).map_err(|e| self.ledger_failed(e))?;
                }
                Err(refused.unwrap_or(Rv::DEVICE_ERROR))
            }
        }
    }

    fn is_doubtful(&self, lease: &super::Lease, object: &Object) -> bool {
        object
            .place(lease.member.index, lease.link.generation)
            .is_some_and(|p| p.trust == super::Trust::Conflict)
    }

    /// Refuses a change that takes away every way to prove a key: it would not be used again after a restart.
    fn stays_provable(&self, object: &Object, row: &ObjectRow, template: &Template) -> Result<()> {
        if !is_secret(row.class) || !template.iter().any(|a| proof::DECIDING.contains(&a.kind)) {
            return Ok(());
        }
        let Some(verifier) = row.verifier() else { return Ok(()) };
        for member in self.up().filter(|m| row.copies.iter().any(|c| c == m.name())) {
            let outcome = self.lease(member).and_then(|lease| {
                let handle = self.backing(&lease, object)?;
                self.challenge(&lease, |challenge| {
                    proof::prove_as_if(challenge, handle, row.class, &verifier, template)
                })
            });
            match outcome {
                Ok(Outcome::Unproven(reason)) => {
                    return Err(self.unprovable(Function::SetAttributeValue, &reason));
                }
                Ok(Outcome::Same | Outcome::Different) => return Ok(()),
                // Another member is asked; the change itself tells what is wrong here.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Changes attributes of a token object on every member that is up; the others change theirs when they come back.
    ///
    /// # Errors
    /// The first member's refusal: nothing was changed then. Once one member has changed, the change goes forward.
    pub(crate) fn set_everywhere(&self, object: &Arc<Object>, template: &Template) -> Result<()> {
        let id = match object.origin {
            Origin::Ledger(id) => Some(id),
            Origin::Foreign | Origin::Session(_) => None,
        };
        let ledger = self.ledger()?;
        let row = match id {
            Some(id) => ledger.object(id).map_err(|e| self.ledger_failed(e))?,
            None => None,
        };
        if let Some(row) = &row {
            self.stays_provable(object, row, template)?;
        }
        let holders: Vec<&str> = row.iter().flat_map(|r| &r.copies).map(String::as_str).collect();
        let mut changed = false;
        let mut refused = None;
        let mut behind = Vec::new();
        for member in &self.members {
            let holds =
                if id.is_some() { holders.contains(&member.name()) } else { object.lives_on(member.index) };
            if !holds {
                continue;
            }
            let answer = if member.is_up() {
                self.lease(member).and_then(|lease| {
                    let handle = self.backing(&lease, object)?;
                    lease.token().set_attributes(lease.session, handle, template).inspect_err(|rv| {
                        self.failed(member, &lease.link, Function::SetAttributeValue, *rv);
                    })
                })
            } else {
                Err(Rv::DEVICE_ERROR)
            };
            match answer {
                Ok(()) => changed = true,
                Err(rv)
                    if !changed
                        && crate::policy::failure::classify(Function::SetAttributeValue, rv)
                            == Class::Caller =>
                {
                    return Err(rv);
                }
                Err(rv) => {
                    refused = Some(rv);
                    behind.push(member.name());
                }
            }
        }
        if !changed {
            return Err(refused.unwrap_or(Rv::DEVICE_ERROR));
        }
        let mut traits = (*object.traits()).clone();
        if let Some(new) =
            template.get_bytes(if traits.class == ck::CKO_DATA { ck::CKA_APPLICATION } else { ck::CKA_ID })
        {
            traits.id = new.into();
        }
        if let Some(new) = template.get_bytes(ck::CKA_LABEL) {
            traits.label = new.into();
        }
        if let (Some(id), Some(row)) = (id, row) {
            let mut kept = row.template;
            for attribute in template {
                kept.set(attribute.clone());
            }
            for member in behind {
                ledger.pend(id, member, template).map_err(|e| self.ledger_failed(e))?;
            }
            ledger.update(id, &traits.id, &traits.label, &kept).map_err(|e| self.ledger_failed(e))?;
        }
        object.set_traits(traits);
        Ok(())
    }
}
