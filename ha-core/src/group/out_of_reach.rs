//! Objects that the group has, and of which no member that is up has a copy.
//!
//! A search tells of them: a program that does not find its key may make another one in its place; and a program that lists
//! what there is is told what the ledger says of them. Used they answer `CKR_DEVICE_ERROR`, until a member that holds them
//! is back.

use std::sync::Arc;

use ha_token::{Attribute, AttributeType, Fetched, Result, Rv, Template, TemplateExt, Ulong, ck};

use super::{Group, Member, Object, Origin, Who};
use crate::replica::ledger::ObjectRow;
use crate::replica::life;

impl Group {
    /// Those that match a search, as the ledger has them. The members that have `answered` it, a bit for each, have none of
    /// them.
    ///
    /// # Errors
    /// `CKR_DEVICE_ERROR` where one of them is called as the search says, and the ledger does not say whether it matches;
    /// `CKR_FUNCTION_FAILED` where it cannot be read.
    pub(crate) fn out_of_reach(&self, template: &Template, answered: u32) -> Result<Vec<Arc<Object>>> {
        // One that is only read may be older than the members are.
        let Some(ledger) = self.ledger.as_ref().filter(|l| !l.is_read_only()) else { return Ok(Vec::new()) };
        let (asked, others): (Vec<&Arc<Member>>, Vec<_>) =
            self.members.iter().partition(|m| answered >> m.index & 1 == 1);
        let (asked, others) = (names(&asked), names(&others));
        if others.is_empty() {
            return Ok(Vec::new());
        }
        let is_user = self.login.who() == Who::User;
        let mut found = Vec::new();
        for row in ledger.on_none_of(&asked).map_err(|e| self.ledger_failed(e))? {
            if !is_out_of(&row, &asked, &others) || (row.private && !is_user) {
                continue;
            }
            match matches(&row, template) {
                Some(false) => continue,
                Some(true) => {}
                None if is_called(template) => return Err(Rv::DEVICE_ERROR),
                None => continue,
            }
            found.extend(self.known(&row));
        }
        Ok(found)
    }

    /// What the ledger says of these attributes of an object that is out of reach, while there is a member that serves;
    /// `None` where it does not say all of it.
    pub(crate) fn as_written(&self, object: &Object, types: &[AttributeType]) -> Option<Vec<Fetched>> {
        let Origin::Ledger(id) = object.origin else { return None };
        let (up, others): (Vec<&Arc<Member>>, Vec<_>) = self.members.iter().partition(|m| m.is_up());
        let (up, others) = (names(&up), names(&others));
        let is_told = !up.is_empty() && !others.is_empty();
        let ledger = self.ledger.as_ref().filter(|l| is_told && !l.is_read_only())?;
        let row = ledger.object(id).ok().flatten().filter(|row| is_out_of(row, &up, &others))?;
        types.iter().map(|kind| written(&row, *kind)).collect()
    }
}

fn names<'m>(members: &[&'m Arc<Member>]) -> Vec<&'m str> {
    members.iter().map(|m| m.name()).collect()
}

/// Whether an object is on none of these members, and on one of the others.
fn is_out_of(row: &ObjectRow, reach: &[&str], others: &[&str]) -> bool {
    let is_on = |names: &[&str]| row.copies.iter().any(|member| names.contains(&member.as_str()));
    row.is_committed() && !is_on(reach) && is_on(others)
}

/// Whether a search is for something by its name.
fn is_called(template: &Template) -> bool {
    template.iter().any(|a| matches!(a.kind, ck::CKA_ID | ck::CKA_LABEL))
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
        ck::CKA_APPLICATION if row.class == ck::CKO_DATA => Attribute::bytes(kind, &*row.ckaid),
        ck::CKA_ID | ck::CKA_KEY_TYPE | ck::CKA_APPLICATION => return Some(Fetched::Invalid),
        _ if is_key(row.class) && !life::may_have(row.key_type, kind) => return Some(Fetched::Invalid),
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
        let unknown = Attribute::bytes(ck::CKA_SUBJECT, [1; 8]);
        assert_eq!(matches(&row, &yes.to_vec()), Some(true));
        for attribute in no {
            let alone = vec![attribute.clone()];
            assert_eq!(matches(&row, &alone), Some(false));
            let mut with_others = yes.to_vec();
            with_others.extend([unknown.clone(), attribute]);
            assert_eq!(matches(&row, &with_others), Some(false));
        }
        assert_eq!(matches(&row, &vec![unknown]), None);
        // No key on a curve has one.
        assert_eq!(matches(&row, &vec![Attribute::bytes(ck::CKA_MODULUS, [1; 8])]), Some(false));
        let data = a_row(ck::CKO_DATA, 0, b"application", b"", &Vec::new());
        assert_eq!(matches(&data, &vec![Attribute::bytes(ck::CKA_ID, *b"application")]), Some(false));
    }
}
