//! Destroying and changing token objects: on every member, and remembered for those that are away.

use std::sync::Arc;

use ha_token::{Function, Result, Rv, Template, TemplateExt, ck};

use super::{Group, Member, Object, Origin, Traits};
use crate::policy::failure::{Class, classify};
use crate::replica::ledger::Found;

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

    /// Changes attributes of a token object on every member that is up; the others change theirs when they come back.
    /// The change is durable before the first member makes it: from the first one that did it goes forward.
    ///
    /// # Errors
    /// The first member's refusal: nothing was changed then.
    pub(crate) fn set_everywhere(&self, object: &Arc<Object>, template: &Template) -> Result<()> {
        let ledger = self.ledger()?;
        let row = match object.origin {
            Origin::Ledger(id) => ledger.object(id).map_err(|e| self.ledger_failed(e))?,
            Origin::Foreign | Origin::Session(_) => None,
        };
        let holders: Vec<&Arc<Member>> = match (&row, object.origin) {
            (Some(row), _) => {
                self.members.iter().filter(|m| row.copies.iter().any(|c| c == m.name())).collect()
            }
            (None, Origin::Ledger(_)) => Vec::new(),
            (None, _) => self.members.iter().filter(|m| object.lives_on(m.index)).collect(),
        };
        let traits = changed(&object.traits(), template);
        let Some(row) = row else {
            self.set_on(&holders, object, template)?;
            object.set_traits(traits);
            return Ok(());
        };
        let mut kept = row.template.clone();
        for attribute in template {
            kept.set(attribute.clone());
        }
        let names: Vec<&str> = holders.iter().map(|m| m.name()).collect();
        let after = Found { ckaid: &traits.id, label: &traits.label, template: &kept };
        let pending =
            ledger.change_begin(row.id, &names, template, &after).map_err(|e| self.ledger_failed(e))?;
        match self.set_on(&holders, object, template) {
            Ok(made) => {
                let done: Vec<i64> = pending.iter().zip(made).filter(|(_, m)| *m).map(|(n, _)| *n).collect();
                if let Err(error) = ledger.done(&done) {
                    tracing::warn!(group = %self.config.label, %error, "a change was made, and the ledger could not note that it was: it is made again when the members are next brought up to date");
                }
                object.set_traits(traits);
                Ok(())
            }
            Err(rv) => {
                let before = Found { ckaid: &row.ckaid, label: &row.label, template: &row.template };
                ledger.change_rollback(row.id, &pending, &before).map_err(|e| self.ledger_failed(e))?;
                Err(rv)
            }
        }
    }

    /// Changes attributes on these members, as far as they are up. Answers which did.
    ///
    /// # Errors
    /// A member's answer, when none made the change.
    fn set_on(&self, holders: &[&Arc<Member>], object: &Object, template: &Template) -> Result<Vec<bool>> {
        let mut made = vec![false; holders.len()];
        let mut refused = Rv::DEVICE_ERROR;
        let mut changed = false;
        for (member, made) in holders.iter().zip(&mut made) {
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
                Ok(()) => (changed, *made) = (true, true),
                Err(rv) if !changed && classify(Function::SetAttributeValue, rv) == Class::Caller => {
                    return Err(rv);
                }
                Err(rv) => refused = rv,
            }
        }
        if changed { Ok(made) } else { Err(refused) }
    }
}

/// What an object is found by once the attributes are changed.
fn changed(traits: &Traits, template: &Template) -> Traits {
    let mut traits = traits.clone();
    let id = if traits.class == ck::CKO_DATA { ck::CKA_APPLICATION } else { ck::CKA_ID };
    if let Some(new) = template.get_bytes(id) {
        traits.id = new.into();
    }
    if let Some(new) = template.get_bytes(ck::CKA_LABEL) {
        traits.label = new.into();
    }
    traits
}
