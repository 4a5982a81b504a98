//! Which of a member's objects a virtual one is: what a call may use there, proven (guarantee G3).

use ha_token::{AttributeType, ObjectHandle, Result, Rv, ck};

use super::copies::{Copy, Trouble, changes_names, row_traits};
use super::identify::place;
use super::others::is_over;
use super::{Group, Lease, Link, Member, Object, Origin, Place, Trust};
use crate::replica::PUBLIC_VALUE;
use crate::replica::ledger::{Ledger, ObjectRow};
use crate::replica::proof::{Known, Outcome};

impl Group {
    /// A member's handle of an object, proven: what a call may use.
    ///
    /// # Errors
    /// `CKR_OBJECT_HANDLE_INVALID` when the member has no copy that may be used; the member's answers.
    pub(crate) fn backing(&self, lease: &Lease, object: &Object) -> Result<ObjectHandle> {
        if object.is_conflicted() && self.is_still_in_conflict(object) {
            return Err(Rv::KEY_FUNCTION_NOT_PERMITTED);
        }
        if object.is_taken_out() {
            return Err(Rv::OBJECT_HANDLE_INVALID);
        }
        match object.place(lease.member.index, lease.link.generation) {
            Some(Place { trust: Trust::Proven, handle, .. }) => {
                if object.origin == Origin::Foreign && !object.is_used() {
                    self.learn(lease, object, handle);
                }
                Ok(handle)
            }
            Some(Place { trust: Trust::Conflict, .. }) => Err(Rv::OBJECT_HANDLE_INVALID),
            Some(Place { trust: Trust::Unproven, handle, .. }) => self.resolve(lease, object, Some(handle)),
            None => self.resolve(lease, object, None),
        }
    }

    /// A member's handle of an object for reading these attributes: a proof is not needed for what is no key's value.
    ///
    /// # Errors
    /// As [`Group::backing`].
    pub(crate) fn handle_to_read(
        &self,
        lease: &Lease,
        object: &Object,
        types: &[AttributeType],
    ) -> Result<ObjectHandle> {
        match object.place(lease.member.index, lease.link.generation) {
            Some(Place { trust: Trust::Unproven, handle, .. }) if tells_value(types) => {
                self.resolve(lease, object, Some(handle))
            }
            Some(Place { trust: Trust::Proven | Trust::Unproven, handle, .. }) => Ok(handle),
            Some(Place { trust: Trust::Conflict, .. }) => Err(Rv::OBJECT_HANDLE_INVALID),
            None => self.resolve(lease, object, None),
        }
    }

    /// A foreign object is used for the first time: what it answers is remembered, so that it is known again when the
    /// member was connected anew.
    #[cold]
    fn learn(&self, lease: &Lease, object: &Object, handle: ObjectHandle) {
        // Where the member cannot be asked now, the call that wants it fails for the same reason.
        if let Ok(verifier) = self.make_verifier(lease, handle, object.traits().class, Known::default()) {
            if let Some(verifier) = verifier {
                self.foreign_verifiers().insert(object.handle, verifier);
            }
            object.set_used();
        }
    }

    /// Finds an object on a member by its traits and proves it. `likely` is tried first.
    fn resolve(&self, lease: &Lease, object: &Object, likely: Option<ObjectHandle>) -> Result<ObjectHandle> {
        let mut traits = object.traits();
        let mut own_row = None;
        let verifier = match object.origin {
            Origin::Session(_) => return self.make_again(lease, object),
            Origin::Ledger(id) => {
                let row = self.ledger.as_ref().and_then(|l| l.object(id).ok().flatten());
                // Another process may have destroyed it.
                if is_over(row.as_ref()) {
                    return Err(Rv::OBJECT_HANDLE_INVALID);
                }
                // Another process may have changed its names.
                if let Some(row) = &row
                    && *traits != row_traits(row)
                {
                    object.set_traits(row_traits(row));
                    traits = object.traits();
                }
                own_row = row;
                own_row.as_ref().and_then(ObjectRow::verifier)
            }
            Origin::Foreign => self.foreign_verifiers().get(&object.handle).cloned(),
        };
        let mut another = None;
        let candidates: Vec<ObjectHandle> = likely
            .into_iter()
            .chain(self.with_traits(lease, &traits)?.into_iter().filter(|h| Some(*h) != likely))
            .collect();
        let is_alone = candidates.len() == 1;
        let mut best: Option<(usize, ObjectHandle)> = None;
        for handle in candidates {
            let owner = lease.link.virtual_of(handle).filter(|h| *h != object.handle.0);
            if owner.is_some_and(|h| {
                self.objects.get(ObjectHandle(h)).is_ok_and(|o| {
                    // What nobody vouched for does not keep a key of the group's own from being found.
                    (object.origin == Origin::Foreign || matches!(o.origin, Origin::Ledger(_)))
                        && lease.holds_proven(&o, handle)
                })
            }) {
                continue;
            }
            let outcome = match (&verifier, object.origin) {
                (Some(verifier), _) => self.prove(lease, handle, traits.class, verifier)?,
                // Nothing but its names was ever told of it, and nothing else has them.
                (None, Origin::Foreign) if is_alone && !object.is_used() => Outcome::Same,
                (None, Origin::Foreign) => Outcome::Unproven(
                    "the member was connected anew, and may hold another object of its name".into(),
                ),
                (None, _) => Outcome::Unproven("the ledger holds no verifier".into()),
            };
            match outcome {
                Outcome::Same => {
                    // Copies of one key under one name differ in what they may do.
                    let differs = match &own_row {
                        Some(row) if !is_alone => self.differences(lease, handle, row)?,
                        _ => 0,
                    };
                    if best.is_none_or(|(least, _)| differs < least) {
                        best = Some((differs, handle));
                    }
                    if differs == 0 {
                        break;
                    }
                }
                Outcome::Different => another = Some(handle),
                Outcome::Unproven(reason) => {
                    tracing::warn!(group = %self.config.label, member = lease.member.name(), label = %String::from_utf8_lossy(&traits.label), reason,
                        "a copy cannot be proven: it is not used");
                }
            }
        }
        if let Some((_, handle)) = best {
            self.take_over(lease, handle, object);
            return Ok(handle);
        }
        if let (Some(row), Some(ledger)) = (&own_row, &self.ledger)
            && let Some(handle) = self.called_as_before(ledger, lease, row)?
        {
            self.take_over(lease, handle, object);
            return Ok(handle);
        }
        if let Some(handle) = another {
            object.put(place(lease, handle, Trust::Conflict));
            self.reporter.conflict(lease.member.name(), &traits.label);
        }
        Err(Rv::OBJECT_HANDLE_INVALID)
    }

    /// A member's copy under the names of before, where it has yet to be told of new ones.
    fn called_as_before(
        &self,
        ledger: &Ledger,
        lease: &Lease,
        row: &ObjectRow,
    ) -> Result<Option<ObjectHandle>> {
        let pending = ledger.pending_of(row.id, lease.member.name());
        if !pending.is_ok_and(|pending| pending.iter().any(changes_names)) {
            return Ok(None);
        }
        match self.find_copy(ledger, lease, row) {
            Ok(Copy::At(handle)) => Ok(Some(handle)),
            Ok(Copy::Absent | Copy::Unclear) => Ok(None),
            Err(Trouble::Member(rv)) => Err(rv),
            Err(Trouble::Ledger(error)) => Err(self.ledger_failed(error)),
        }
    }

    /// A member has lost its login, and handles with it, whose numbers it may use again for other objects: every key is
    /// looked for and proven anew before it is used there.
    pub(super) fn handles_went(&self, member: &Member, link: &Link) {
        // The group keys stay known: who looks for them finds out where they are now, and what they wrap is proven.
        link.has_new_handles();
        let there = |o: &Object| {
            !matches!(o.origin, Origin::Session(_)) && o.place(member.index, link.generation).is_some()
        };
        for object in self.objects.select(there) {
            object.forget_stale(member, link);
        }
        // Our own objects too; a session object has no other handle.
        link.unbind_where(|v| v == 0);
    }

    /// A member's object is this one, proven; whatever was taken for it by its names has it no more.
    pub(super) fn take_over(&self, lease: &Lease, handle: ObjectHandle, object: &Object) {
        if let Some(other) = lease.link.virtual_of(handle).filter(|v| *v != 0 && *v != object.handle.0)
            && let Ok(other) = self.objects.get(ObjectHandle(other))
        {
            other.forget(lease.member.index);
            if other.origin == Origin::Foreign && other.members().is_empty() {
                self.forget_object(&other);
            }
        }
        self.forget_other(lease, handle, object);
        object.put(place(lease, handle, Trust::Proven));
        lease.link.bind(handle, object.handle.0);
    }

    /// Another handle that was taken for an object by its names is looked at anew.
    pub(super) fn forget_other(&self, lease: &Lease, handle: ObjectHandle, object: &Object) {
        if let Some(before) = object.place(lease.member.index, lease.link.generation)
            && before.handle != handle
        {
            lease.link.unbind(before.handle);
        }
    }
}

/// Whether these attributes tell what key or content an object is.
fn tells_value(types: &[AttributeType]) -> bool {
    const CONTENT: [AttributeType; 4] =
        [ck::CKA_PUBLIC_KEY_INFO, ck::CKA_SUBJECT, ck::CKA_ISSUER, ck::CKA_SERIAL_NUMBER];
    types.iter().any(|t| PUBLIC_VALUE.contains(t) || CONTENT.contains(t))
}
