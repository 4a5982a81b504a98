//! By what a member's object is matched to the ledger's: class, key type, id and label, read and searched for; and where
//! those leave a choice, the proof, and then the flags.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use ha_token::{Attribute, AttributeType, ObjectHandle, Result, Rv, Template, TemplateExt, Ulong, ck};

use super::copies::{changes_names, row_traits};
use super::{Group, Lease, Place, Traits, Trust};
use crate::mutants::wrong;
use crate::replica::ledger::{ObjectId, ObjectRow, State};
use crate::replica::proof::{Known, Outcome};
use crate::replica::verifier::Verifier;

/// `CKA_KEY_TYPE` of what has none.
pub(super) const NO_TYPE: Ulong = Ulong::MAX;
/// Which of the ledger's objects a member's object is.
pub(super) enum Match {
    /// One of the ledger's, by its names or proven.
    Row(Box<ObjectRow>, Trust),
    /// One that was destroyed, by its names or proven.
    Destroyed,
    /// By its names one that is being destroyed: it stays if every member refuses that.
    Dying,
    /// None of the ledger's.
    Foreign,
}

/// The attribute that stands beside the label in an object's name.
pub(super) fn id_kind(class: Ulong) -> AttributeType {
    if class == ck::CKO_DATA { ck::CKA_APPLICATION } else { ck::CKA_ID }
}

/// What a token's objects of a class, and of a key type where they have one, are found by.
pub(super) fn of_kind(class: Ulong, key_type: Ulong) -> Template {
    let mut template = vec![Attribute::ulong(ck::CKA_CLASS, class), Attribute::bool(ck::CKA_TOKEN, true)];
    if key_type != NO_TYPE && !matches!(class, ck::CKO_CERTIFICATE | ck::CKO_DATA) {
        template.push(Attribute::ulong(ck::CKA_KEY_TYPE, key_type));
    }
    template
}

/// What a token's objects of these names are found by: an empty one cannot be searched for everywhere.
pub(super) fn called(traits: &Traits) -> Template {
    let mut template = of_kind(traits.class, traits.key_type);
    if traits.class == ck::CKO_DATA || !traits.id.is_empty() {
        template.push(Attribute::bytes(id_kind(traits.class), &*traits.id));
    }
    if !traits.label.is_empty() {
        template.push(Attribute::bytes(ck::CKA_LABEL, &*traits.label));
    }
    template
}

/// Whether a member's object that is called so may be called as in `wanted` once these changes are made to it: what none of
/// them changes it has already.
fn may_be_called<'a>(
    traits: &Traits,
    wanted: &Traits,
    changes: impl Iterator<Item = &'a Template> + Clone,
) -> bool {
    let id = id_kind(wanted.class);
    let is_changed = |kind| changes.clone().any(|change| change.get(kind).is_some());
    wanted.class == traits.class
        && wanted.key_type == traits.key_type
        && (wanted.id == traits.id || is_changed(id))
        && (wanted.label == traits.label || is_changed(ck::CKA_LABEL))
}

impl Group {
    /// A member's token objects with these traits.
    pub(crate) fn with_traits(&self, lease: &Lease, traits: &Traits) -> Result<Vec<ObjectHandle>> {
        let mut found = Vec::new();
        for handle in lease.find(&called(traits))? {
            // An empty id or label cannot be searched for on every token.
            if self.read_whole(lease.on(), handle)?.is_some_and(|(there, ..)| there == *traits) {
                found.push(handle);
            }
        }
        Ok(found)
    }

    /// Whether a member's object is one that was destroyed, and was called otherwise before: the member has yet to be told
    /// of either.
    fn was_destroyed(&self, lease: &Lease, backing: ObjectHandle, traits: &Traits) -> Result<bool> {
        let (Some(ledger), name) = (&self.ledger, lease.member.name()) else { return Ok(false) };
        let dead = ledger.changed_tombstones_for(name, traits.class, traits.key_type);
        for row in dead.unwrap_or_default() {
            if let Some(verifier) = row.verifier()
                && self.prove(lease, backing, traits.class, &verifier)? == Outcome::Same
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where an object is on a member, if the token still knows it there: one that lost its login, and was logged in to
    /// again, gives its private objects other handles.
    fn place_still(
        &self,
        lease: &Lease,
        row: &ObjectRow,
        seen: ObjectHandle,
        traits: &Traits,
    ) -> Result<Option<Place>> {
        let (index, generation) = (lease.member.index, lease.link.generation);
        let Some(object) = self.objects.by_id(row.id) else { return Ok(None) };
        let Some(place) = object.place(index, generation) else { return Ok(None) };
        if place.handle == seen || place.trust == Trust::Conflict {
            return Ok(Some(place));
        }
        let gone = match self.read_traits(lease.on(), place.handle) {
            Ok((there, ..)) => there != *traits,
            Err(Rv::OBJECT_HANDLE_INVALID) => true,
            Err(rv) => return Err(rv),
        };
        if gone {
            object.forget_stale(&lease.member, &lease.link);
        }
        Ok(object.place(index, generation))
    }

    /// Of these the one that a member's object proves to be, and how many flags it has otherwise: copies of one key under one
    /// name differ in what they may do. `own` is what the object answers.
    fn best_fit(
        &self,
        lease: &Lease,
        backing: ObjectHandle,
        own: Option<&Verifier>,
        rows: Vec<ObjectRow>,
    ) -> Result<Option<(usize, ObjectRow)>> {
        let mut best: Option<(usize, ObjectRow)> = None;
        for row in rows {
            let Some(verifier) = row.verifier() else { continue };
            let same = match own {
                Some(own) if own.is_identity() && verifier.is_identity() => *own == verifier,
                _ => self.prove(lease, backing, row.class, &verifier)? == Outcome::Same,
            };
            if !same {
                continue;
            }
            let differs = self.differences(lease, backing, &row)?;
            if best.as_ref().is_none_or(|(least, _)| differs < *least) {
                best = Some((differs, row));
            }
            if differs == 0 {
                break;
            }
        }
        Ok(best)
    }

    /// Which of the ledger's objects a member's object is. Where its names leave no other choice they are believed until it
    /// is used; where they do, it is asked.
    pub(super) fn match_row(&self, lease: &Lease, backing: ObjectHandle, traits: &Traits) -> Result<Match> {
        let Some(ledger) = &self.ledger else { return Ok(Match::Foreign) };
        let name = lease.member.name();
        let unreadable = |error| {
            tracing::warn!(group = %self.config.label, %error, "the ledger cannot be read: the object counts as foreign");
            Match::Foreign
        };
        let rows = match ledger.find(traits.class, traits.key_type, &traits.id, &traits.label) {
            Ok(rows) => rows,
            Err(error) => return Ok(unreadable(error)),
        };
        let (dead, mut live): (Vec<_>, Vec<_>) = rows.into_iter().partition(ObjectRow::is_destroyed);
        // Looked at once: another thread may be writing down what it has just made.
        let mut places: HashMap<ObjectId, Place> = HashMap::new();
        for row in &live {
            // Where there is but one it is believed by its names; of several those that are free are asked first.
            let place = if live.len() == 1 {
                self.place_still(lease, row, backing, traits)?
            } else {
                let object = self.objects.by_id(row.id);
                object.and_then(|o| o.place(lease.member.index, lease.link.generation))
            };
            if let Some(place) = place {
                places.insert(row.id, place);
            }
        }
        let place_of = |row: &ObjectRow| places.get(&row.id);
        // Another thread has just said so, and has yet to write down what the handle stands for.
        let held = live.iter().enumerate().find_map(|(at, row)| {
            let place = place_of(row).filter(|p| p.handle == backing && p.trust != Trust::Conflict);
            place.map(|place| (at, place.trust))
        });
        if let Some((at, trust)) = held {
            return Ok(Match::Row(Box::new(live.swap_remove(at)), trust));
        }
        // On a token that was set back it may be what was destroyed, and another one has its names.
        if let [only] = live.as_slice()
            && place_of(only).is_none()
            && !lease.member.set_back.load(Ordering::Acquire)
        {
            return Ok(live.pop().map_or(Match::Foreign, |row| Match::Row(Box::new(row), Trust::Unproven)));
        }
        if live.is_empty() {
            // It may be called as it was before a change that this member has yet to make.
            let waiting = match ledger.pending_for(name) {
                Ok(waiting) => waiting,
                Err(error) => return Ok(unreadable(error)),
            };
            let named_on = |row: &ObjectRow| {
                let changes = waiting.iter().filter(|p| p.object == row.id).map(|p| &p.template);
                may_be_called(traits, &row_traits(row), changes) || wrong!(RenamedTwinTaken)
            };
            for pending in waiting.iter().filter(|p| changes_names(&p.template)) {
                let row = ledger.object(pending.object).ok().flatten();
                // What is destroyed, and still has that name here, goes before one of the same value.
                let is_dead = |row: &ObjectRow| {
                    let twins = dead.iter().filter(|dead| dead.verifier() == row.verifier());
                    twins.flat_map(|dead| &dead.copies).any(|c| c == name) && !wrong!(RenamedTwinTaken)
                };
                live.extend(row.filter(|row| named_on(row) && !is_dead(row)));
            }
        }
        let best = if live.is_empty() {
            None
        } else {
            // A public key, or the digest of a content, tells at once; other answers are compared one by one.
            let own = self.make_verifier(lease, backing, traits.class, Known::default())?;
            let is_placed = |row: &ObjectRow| place_of(row).is_some_and(|p| p.trust == Trust::Proven);
            let (placed, free): (Vec<_>, Vec<_>) = live.into_iter().partition(is_placed);
            match self.best_fit(lease, backing, own.as_ref(), free)? {
                Some((0, row)) => Some(row),
                best => {
                    // The token may know some of those no more.
                    let mut freed = Vec::new();
                    for row in placed {
                        let may_be = best.as_ref().is_none_or(|(_, best)| best.verifier() == row.verifier());
                        if may_be && self.place_still(lease, &row, backing, traits)?.is_none() {
                            freed.push(row);
                        }
                    }
                    let other = self.best_fit(lease, backing, own.as_ref(), freed)?;
                    best.into_iter().chain(other).min_by_key(|(differs, _)| *differs).map(|(_, row)| row)
                }
            }
        };
        if best.is_none() && self.was_destroyed(lease, backing, traits)? {
            return Ok(Match::Destroyed);
        }
        Ok(match best {
            Some(row) => Match::Row(Box::new(row), Trust::Proven),
            None => {
                let here = || dead.iter().filter(|r| r.copies.iter().any(|c| c == name));
                match here().next() {
                    None => Match::Foreign,
                    Some(_) if here().any(|row| row.state == State::Destroying) => Match::Dying,
                    Some(_) => Match::Destroyed,
                }
            }
        })
    }

    /// How many names and flags of an object are not as the ledger has them, those apart that this member has yet to change.
    pub(super) fn differences(&self, lease: &Lease, handle: ObjectHandle, row: &ObjectRow) -> Result<usize> {
        let waiting = self.ledger.as_ref().and_then(|l| l.pending_of(row.id, lease.member.name()).ok());
        let waiting: Vec<AttributeType> = waiting.iter().flatten().flatten().map(|a| a.kind).collect();
        let id = id_kind(row.class);
        let names = [Attribute::bytes(id, &*row.ckaid), Attribute::bytes(ck::CKA_LABEL, &*row.label)];
        let is_name = |kind| names.iter().any(|name| name.kind == kind);
        let flags = row.template.iter().filter(|a| a.value.as_bool().is_some() && !is_name(a.kind));
        let expected: Vec<&Attribute> =
            names.iter().chain(flags).filter(|a| !waiting.contains(&a.kind)).collect();
        let types: Vec<AttributeType> = expected.iter().map(|a| a.kind).collect();
        let read = lease.on().read(handle, &types)?;
        Ok(expected.iter().filter(|a| read.get(a.kind).is_some_and(|there| *there != a.value)).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_change_leaves_as_it_was_tells_keys_of_one_value_apart() {
        let called = |id: &[u8], label: &[u8]| Traits {
            class: ck::CKO_PUBLIC_KEY,
            key_type: ck::CKK_RSA,
            id: id.into(),
            label: label.into(),
        };
        let wanted = called(b"new", b"one");
        let to_id = vec![Attribute::bytes(ck::CKA_ID, *b"new")];
        let to_label = vec![Attribute::bytes(ck::CKA_LABEL, *b"one")];
        let may =
            |traits: &Traits, changes: &[&Template]| may_be_called(traits, &wanted, changes.iter().copied());
        assert!(may(&called(b"old", b"one"), &[&to_id]));
        assert!(!may(&called(b"old", b"two"), &[&to_id]), "its label was not changed");
        assert!(may(&called(b"old", b"two"), &[&to_id, &to_label]));
        assert!(!may(&called(b"old", b"two"), &[&to_label]), "nor its id");
        let other = Traits { key_type: ck::CKK_EC, ..called(b"old", b"one") };
        assert!(!may(&other, &[&to_id]));
    }
}
