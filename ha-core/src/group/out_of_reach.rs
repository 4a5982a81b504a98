//! Objects that the group has, and of which no member that is up has a copy.
//!
//! A search tells of them: a program that does not find its key may make another one in its place; and a program that lists
//! what there is is told what the ledger says of them. Used they answer `CKR_DEVICE_ERROR`, until a member that holds them
//! is back.

use std::sync::Arc;

use ha_token::{Attribute, AttributeType, Fetched, Result, Rv, Template, TemplateExt, Ulong, ck};

use super::copies::row_traits;
use super::{Group, Object, Origin, Who};
use crate::replica::ledger::ObjectRow;

impl Group {
    /// Those that match a search, as the ledger has them; for a search that was answered by members that may lack some.
    ///
    /// # Errors
    /// `CKR_DEVICE_ERROR` where the ledger does not say whether one of them matches; `CKR_FUNCTION_FAILED` where it cannot
    /// be read.
    pub(crate) fn out_of_reach(&self, template: &Template) -> Result<Vec<Arc<Object>>> {
        let up = self.reach();
        let Some(ledger) = self.ledger.as_ref().filter(|_| up.len() < self.members.len()) else {
            return Ok(Vec::new());
        };
        let is_user = self.login.who() == Who::User;
        let mut found = Vec::new();
        for row in ledger.objects().map_err(|e| self.ledger_failed(e))? {
            if !is_out_of(&row, &up) || (row.private && !is_user) {
                continue;
            }
            match matches(&row, template) {
                Some(false) => continue,
                Some(true) => {}
                None => return Err(Rv::DEVICE_ERROR),
            }
            found.push(self.objects.add(Origin::Ledger(row.id), row_traits(&row), row.private, None));
        }
        Ok(found)
    }

    /// What the ledger says of these attributes of an object that is out of reach, while there is a member that serves;
    /// `None` where it does not say all of it.
    pub(crate) fn as_written(&self, object: &Object, types: &[AttributeType]) -> Option<Vec<Fetched>> {
        let Origin::Ledger(id) = object.origin else { return None };
        let up = self.reach();
        let row = self.ledger.as_ref().filter(|_| !up.is_empty())?.object(id).ok().flatten()?;
        if !is_out_of(&row, &up) {
            return None;
        }
        types.iter().map(|kind| written(&row, *kind)).collect()
    }

    /// The members that are up.
    fn reach(&self) -> Vec<&str> {
        self.up().map(|m| m.name()).collect()
    }
}

fn is_out_of(row: &ObjectRow, reach: &[&str]) -> bool {
    row.is_committed() && !row.copies.iter().any(|member| reach.contains(&member.as_str()))
}

/// Whether an object is what a search is for; `None` where only a member that holds it could say.
fn matches(row: &ObjectRow, template: &Template) -> Option<bool> {
    let mut is_sure = true;
    for wanted in template {
        match written(row, wanted.kind) {
            Some(answer) if answer.value() == Some(&wanted.value) => {}
            Some(_) => return Some(false),
            None => is_sure = false,
        }
    }
    is_sure.then_some(true)
}

/// What the ledger says of an attribute; `None` where it says nothing.
fn written(row: &ObjectRow, kind: AttributeType) -> Option<Fetched> {
    if let Some(value) = row.template.get(kind) {
        return Some(Fetched::Value(value.clone()));
    }
    let attribute = match kind {
        ck::CKA_UNIQUE_ID => Attribute::bytes(kind, row.id.to_string().into_bytes()),
        ck::CKA_TOKEN => Attribute::bool(kind, true),
        ck::CKA_PRIVATE => Attribute::bool(kind, row.private),
        ck::CKA_CLASS => Attribute::ulong(kind, row.class),
        ck::CKA_LABEL => Attribute::bytes(kind, &*row.label),
        ck::CKA_ID if has_id(row.class) => Attribute::bytes(kind, &*row.ckaid),
        ck::CKA_KEY_TYPE if is_key(row.class) => Attribute::ulong(kind, row.key_type),
        ck::CKA_ID | ck::CKA_KEY_TYPE => return Some(Fetched::Invalid),
        _ => return None,
    };
    Some(Fetched::Value(attribute.value))
}

fn is_key(class: Ulong) -> bool {
    matches!(class, ck::CKO_PUBLIC_KEY | ck::CKO_PRIVATE_KEY | ck::CKO_SECRET_KEY)
}

/// Of data objects and domain parameters the ledger keeps something else in its place.
fn has_id(class: Ulong) -> bool {
    is_key(class) || class == ck::CKO_CERTIFICATE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::ledger::{Intent, Ledger, ObjectId, Staged};

    fn a_row(class: Ulong, key_type: Ulong, ckaid: &[u8], label: &[u8], template: &Template) -> ObjectRow {
        let dir = tempfile::tempdir().unwrap();
        let ledger =
            Ledger::open(dir.path(), "g", std::time::Duration::from_secs(5), &mut |b| b.fill(1)).unwrap();
        let id = ObjectId([1; 16]);
        ledger.begin(&Intent { id, class }).unwrap();
        let staged = Staged {
            class,
            key_type,
            ckaid: ckaid.to_vec(),
            label: label.to_vec(),
            private: true,
            verifier: None,
            template: template.clone(),
            blob: None,
        };
        ledger.stage(id, &staged).unwrap();
        ledger.commit(&[(id, vec!["a".into()])]).unwrap();
        ledger.object(id).unwrap().unwrap()
    }

    #[test]
    fn what_the_ledger_says_matches_and_what_it_does_not_say_nobody_knows() {
        let kept = vec![Attribute::bool(ck::CKA_SIGN, true), Attribute::bytes(ck::CKA_LABEL, *b"key")];
        let row = a_row(ck::CKO_PRIVATE_KEY, ck::CKK_EC, b"id", b"key", &kept);
        let yes = [
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_PRIVATE_KEY),
            Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_EC),
            Attribute::bytes(ck::CKA_ID, *b"id"),
            Attribute::bytes(ck::CKA_LABEL, *b"key"),
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::bool(ck::CKA_PRIVATE, true),
            Attribute::bool(ck::CKA_SIGN, true),
        ];
        let no = [
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_PUBLIC_KEY),
            Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_RSA),
            Attribute::bytes(ck::CKA_ID, *b"other"),
            Attribute::bytes(ck::CKA_LABEL, *b""),
            Attribute::bool(ck::CKA_TOKEN, false),
            Attribute::bool(ck::CKA_PRIVATE, false),
            Attribute::bool(ck::CKA_SIGN, false),
            // Of no key's kind, or no number at all.
            Attribute::bytes(ck::CKA_CLASS, *b"?"),
        ];
        let unknown = Attribute::bytes(ck::CKA_MODULUS, [1; 8]);
        assert_eq!(matches(&row, &yes.to_vec()), Some(true));
        for attribute in no {
            let alone = vec![attribute.clone()];
            assert_eq!(matches(&row, &alone), Some(false));
            let mut with_others = yes.to_vec();
            with_others.extend([unknown.clone(), attribute]);
            assert_eq!(matches(&row, &with_others), Some(false));
        }
        assert_eq!(matches(&row, &vec![unknown]), None);
        let data = a_row(ck::CKO_DATA, 0, b"application", b"", &Vec::new());
        assert_eq!(matches(&data, &vec![Attribute::bytes(ck::CKA_ID, *b"application")]), Some(false));
    }
}
