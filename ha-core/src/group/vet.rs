//! What an application may ask of an object: checked here before the ledger or a member is told of it, the same for what is
//! made, copied and changed.

use ha_token::{Attribute, Function, Result, Rv, Template, TemplateExt, Ulong, ck};

use super::Group;
use super::objects::Traits;
use crate::replica::{is_ours, life, proof};

impl Group {
    /// Refuses a template that says something twice: tokens take the first or the last of two. And one that is no yes or no
    /// where the group itself says what the members are told: no member would see it.
    ///
    /// # Errors
    /// `CKR_TEMPLATE_INCONSISTENT`, `CKR_ATTRIBUTE_VALUE_INVALID`.
    pub(crate) fn vet_template(&self, template: &Template) -> Result<()> {
        const OURS: [Ulong; 3] = [ck::CKA_TOKEN, ck::CKA_SENSITIVE, ck::CKA_EXTRACTABLE];
        let twice = |(i, a): (usize, &Attribute)| template.iter().take(i).any(|b| b.kind == a.kind);
        if template.iter().enumerate().any(twice) {
            return Err(Rv::TEMPLATE_INCONSISTENT);
        }
        match template.iter().any(|a| OURS.contains(&a.kind) && a.value.as_bool().is_none()) {
            true => Err(Rv::ATTRIBUTE_VALUE_INVALID),
            false => Ok(()),
        }
    }

    /// Refuses to call an object like one of the group's own.
    ///
    /// # Errors
    /// `CKR_ATTRIBUTE_VALUE_INVALID`.
    pub(crate) fn vet_names(&self, function: Function, label: &[u8], id: &[u8]) -> Result<()> {
        if !is_ours(label, id) {
            return Ok(());
        }
        let why = "the label is that of the group's own objects, which no application sees";
        self.reporter.refused(function, Rv::ATTRIBUTE_VALUE_INVALID, why);
        Err(Rv::ATTRIBUTE_VALUE_INVALID)
    }

    /// Refuses, or tells of, a key that may both wrap and decrypt.
    ///
    /// # Errors
    /// `CKR_TEMPLATE_INCONSISTENT`, where `strict_usage` is set.
    pub(super) fn vet_usage(&self, function: Function, may: impl Fn(Ulong) -> bool) -> Result<()> {
        if !(may(ck::CKA_WRAP) && may(ck::CKA_DECRYPT)) {
            return Ok(());
        }
        if self.config.strict_usage {
            let why = "a key that may wrap and decrypt reads out any other key (strict_usage)";
            self.reporter.refused(function, Rv::TEMPLATE_INCONSISTENT, why);
            return Err(Rv::TEMPLATE_INCONSISTENT);
        }
        tracing::warn!(group = %self.config.label, %function, "a key may both wrap and decrypt: whoever may use it can read out other keys");
        Ok(())
    }

    /// Refuses a change that may not be made: of what the object is, to the name of one of the group's own, or to a key that
    /// may do too much. `traits` and `kept` are what it would be afterwards.
    ///
    /// # Errors
    /// `CKR_ATTRIBUTE_READ_ONLY` for what the object is: its copies are proven by that, and what is secret of it must not
    /// come near the ledger; `CKR_ATTRIBUTE_TYPE_INVALID` for what only other types of keys have. As the other checks.
    pub(super) fn vet_change(&self, template: &Template, traits: &Traits, kept: &Template) -> Result<()> {
        let function = Function::SetAttributeValue;
        if let Some(content) = template.iter().find(|a| proof::is_content(traits.class, a.kind)) {
            return Err(match life::may_have(traits.key_type, content.kind) {
                true => Rv::ATTRIBUTE_READ_ONLY,
                false => Rv::ATTRIBUTE_TYPE_INVALID,
            });
        }
        self.vet_names(function, &traits.label, &traits.id)?;
        let gives = |a: &Attribute| {
            matches!(a.kind, ck::CKA_WRAP | ck::CKA_DECRYPT) && a.value.as_bool() == Some(true)
        };
        if template.iter().any(gives) {
            self.vet_usage(function, |kind| kept.get_bool(kind) == Some(true))?;
        }
        Ok(())
    }
}
