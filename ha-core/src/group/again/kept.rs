//! What is kept of one session object, as plain data.

use std::sync::{Arc, MutexGuard, PoisonError};

use ha_member::Secret;
use ha_token::{Attribute, AttributeType, Template, TemplateExt, Ulong, Value, ck};
use zeroize::Zeroizing;

use super::{Again, Ciphertext, Kept, Source, Values};
use crate::replica::ledger::Blob;
use crate::replica::verifier::Verifier;
use crate::replica::{is_secret, life};
use crate::sync::Mutex;

/// What a secret takes up at least: pages of its own, which are locked.
const PAGE: usize = 4096;

impl Again {
    /// Of an object whose template has its value.
    pub(super) fn created(class: Ulong, whole: Template, told: Template) -> Self {
        let (template, values) = Values::split(class, whole);
        Again::of(class, None, template, Source::Values(Arc::new(values)), told)
    }

    /// Of a key that is unwrapped, and must answer so.
    pub(super) fn unwrapped(
        class: Ulong,
        verifier: Verifier,
        template: Template,
        blob: Blob,
        told: Template,
    ) -> Self {
        Again::of(class, Some(verifier), template, Source::Blob(Arc::new(Ciphertext(blob))), told)
    }

    /// Of a copy of this object, with this template, which has no value.
    pub(super) fn copied(&self, template: Template, told: Template) -> Self {
        let source = self.kept().source.clone();
        Again::of(self.class, self.verifier.clone(), template, source, told)
    }

    fn of(
        class: Ulong,
        verifier: Option<Verifier>,
        template: Template,
        source: Source,
        told: Template,
    ) -> Self {
        let kept = Kept { template, source, changes: 0, given_up: false };
        Again { class, verifier, told, kept: Mutex::new(kept) }
    }

    pub(super) fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// About how many bytes are kept.
    pub(super) fn size(&self) -> usize {
        self.kept().size() + self.size_of_told()
    }

    /// As much as that of it which never changes.
    pub(super) fn size_of_told(&self) -> usize {
        self.told.iter().map(size).sum()
    }
}

impl Kept {
    /// About how many bytes are kept.
    pub(super) fn size(&self) -> usize {
        let source = match &self.source {
            Source::Values(values) => values.bytes.as_ref().map_or(0, |b| b.len().next_multiple_of(PAGE)),
            Source::Blob(blob) => blob.0.bytes.len(),
        };
        source + self.template.iter().map(size).sum::<usize>()
    }

    /// The whole template. With a blob there is no value in it.
    pub(super) fn whole(&self) -> Template {
        let mut whole = self.template.clone();
        if let Source::Values(values) = &self.source {
            let bytes = values.bytes.as_deref().unwrap_or_default();
            for (at, kind, range) in &values.parts {
                let value = bytes.get(range.clone()).unwrap_or_default();
                // A copy's template may be shorter than the one that the value was in.
                whole.insert((*at).min(end(&whole)), Attribute::bytes(*kind, value));
            }
        }
        whole
    }

    /// The object was changed so.
    pub(super) fn change(&mut self, class: Ulong, changes: &[Attribute]) {
        self.changes += 1;
        match &self.source {
            Source::Blob(_) => changes.iter().for_each(|a| put(&mut self.template, a.clone())),
            Source::Values(_) => {
                let mut whole = self.whole();
                changes.iter().for_each(|a| put(&mut whole, a.clone()));
                let (template, values) = Values::split(class, whole);
                (self.template, self.source) = (template, Source::Values(Arc::new(values)));
            }
        }
    }
}

impl Values {
    /// Takes the secret values out of a template.
    fn split(class: Ulong, whole: Template) -> (Template, Self) {
        let private = whole.get_bool(ck::CKA_PRIVATE) != Some(false);
        let secret = |kind: AttributeType| match class {
            ck::CKO_DATA => private && kind == ck::CKA_VALUE,
            class => is_secret(class) && life::is_value(kind),
        };
        let mut bytes = Zeroizing::new(Vec::with_capacity(whole.iter().map(size).sum()));
        let (mut template, mut parts) = (Template::new(), Vec::new());
        for (at, attribute) in whole.into_iter().enumerate() {
            match &attribute.value {
                Value::Bytes(value) if secret(attribute.kind) => {
                    parts.push((at, attribute.kind, bytes.len()..bytes.len() + value.len()));
                    bytes.extend_from_slice(value);
                }
                _ => template.push(attribute),
            }
        }
        let bytes = (!parts.is_empty()).then(|| Secret::new(&bytes));
        (template, Values { bytes, parts })
    }
}

/// Puts an attribute in its place, or at the end.
pub(super) fn put(template: &mut Template, attribute: Attribute) {
    match template.iter_mut().find(|a| a.kind == attribute.kind) {
        Some(place) => *place = attribute,
        None => template.insert(end(template), attribute),
    }
}

/// The last place for one more attribute, ahead of `CKA_MODIFIABLE`: SoftHSM refuses what follows that.
fn end(template: &Template) -> usize {
    template.iter().position(|a| a.kind == ck::CKA_MODIFIABLE).unwrap_or(template.len())
}

fn size(attribute: &Attribute) -> usize {
    size_of::<Attribute>()
        + match &attribute.value {
            Value::Bytes(bytes) => bytes.len(),
            Value::Template(template) => template.iter().map(size).sum(),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret_key() -> Template {
        vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
            Attribute::bytes(ck::CKA_VALUE, *b"value"),
            Attribute::bytes(ck::CKA_LABEL, *b"label"),
            Attribute::bool(ck::CKA_MODIFIABLE, false),
        ]
    }

    #[test]
    fn a_template_comes_back_as_it_was_and_its_secret_is_kept_apart() {
        let again = Again::created(ck::CKO_SECRET_KEY, secret_key(), Template::new());
        assert!(again.kept().template.get(ck::CKA_VALUE).is_none());
        assert!(again.kept().whole() == secret_key());
    }

    #[test]
    fn the_value_of_a_copy_stands_ahead_of_what_must_be_last() {
        let mut long = secret_key();
        long.splice(1..1, (0..9).map(|n| Attribute::bool(ck::CKA_VENDOR_DEFINED + n, true)));
        let again = Again::created(ck::CKO_SECRET_KEY, long, Template::new());
        let short = vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
            Attribute::bool(ck::CKA_MODIFIABLE, false),
        ];
        let kinds: Vec<_> =
            again.copied(short, Template::new()).kept().whole().iter().map(|a| a.kind).collect();
        assert_eq!(kinds, [ck::CKA_CLASS, ck::CKA_VALUE, ck::CKA_MODIFIABLE]);
    }

    #[test]
    fn a_secret_counts_as_the_pages_that_it_takes_up_and_what_has_none_takes_up_none() {
        let secret = Again::created(ck::CKO_SECRET_KEY, secret_key(), Template::new());
        assert!(secret.size() >= PAGE);
        let public = vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
            Attribute::bool(ck::CKA_PRIVATE, false),
            Attribute::bytes(ck::CKA_VALUE, *b"value"),
        ];
        let public = Again::created(ck::CKO_DATA, public, Template::new());
        assert!(public.size() < PAGE);
        assert!(matches!(&public.kept().source, Source::Values(values) if values.bytes.is_none()));
    }

    #[test]
    fn what_is_changed_is_made_again_so_and_modifiable_stays_last() {
        let again = Again::created(ck::CKO_SECRET_KEY, secret_key(), Template::new());
        let changes = [Attribute::bytes(ck::CKA_LABEL, *b"other"), Attribute::bytes(ck::CKA_ID, [1])];
        again.kept().change(again.class, &changes);
        let whole = again.kept().whole();
        let kinds: Vec<_> = whole.iter().map(|a| a.kind).collect();
        assert_eq!(kinds, [ck::CKA_CLASS, ck::CKA_VALUE, ck::CKA_LABEL, ck::CKA_ID, ck::CKA_MODIFIABLE]);
        assert_eq!(whole.get_bytes(ck::CKA_LABEL), Some(&b"other"[..]));
        assert_eq!(whole.get_bytes(ck::CKA_VALUE), Some(&b"value"[..]));
    }

    #[test]
    fn the_value_of_a_private_data_object_is_a_secret_and_can_be_changed() {
        let data = |private| {
            vec![
                Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
                Attribute::bool(ck::CKA_PRIVATE, private),
                Attribute::bytes(ck::CKA_VALUE, *b"one"),
            ]
        };
        for private in [true, false] {
            let again = Again::created(ck::CKO_DATA, data(private), Template::new());
            assert_eq!(again.kept().template.get(ck::CKA_VALUE).is_none(), private);
            again.kept().change(again.class, &[Attribute::bytes(ck::CKA_VALUE, *b"another")]);
            assert_eq!(again.kept().whole().get_bytes(ck::CKA_VALUE), Some(&b"another"[..]));
        }
    }
}
