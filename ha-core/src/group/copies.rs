//! A member's copy of an object that the ledger knows: found by what it is called, believed when it is proven.

use std::cmp::Ordering;
use std::sync::Arc;

use ha_token::{ObjectHandle, Result, Rv, Template, TemplateExt, ck};

use super::login::Visit;
use super::matching::{NO_TYPE, of_kind};
use super::{Group, Lease, Object, Origin, Traits, Trust, Who};
use crate::mutants::wrong;
use crate::replica::is_ours;
use crate::replica::ledger::{Ledger, LedgerError, ObjectRow, State};
use crate::replica::proof::Outcome;

/// What a member has of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Copy {
    /// It has it, here, proven.
    At(ObjectHandle),
    /// It has nothing that could be it.
    Absent,
    /// It has something that may be it, and neither could be shown.
    Unclear,
}

/// What a search that found nothing says.
enum Nothing {
    /// It is not there.
    IsThere,
    /// Nothing: the token's login or its handles were lost, and made again by now.
    WasSeen,
    /// Nothing: the user is not logged in.
    CanBeSeen,
}

/// Whose a member's objects of one name are, where another one is looked for.
enum Claim {
    /// Nobody's that is known.
    Nobody,
    /// These have that name too, and may not be here: a proof tells them apart.
    Namesakes(Vec<ObjectRow>),
    /// Each is another's.
    Others,
    /// One with the same value has that name, and is in this state: no proof tells it apart.
    Twin(State),
}

/// How often a member is searched again in one call, because it had lost its login.
const SEARCHES: u32 = 3;

/// Why a copy could not be looked for.
pub(super) enum Trouble {
    /// The member's answer.
    Member(ha_token::Rv),
    /// The ledger's.
    Ledger(LedgerError),
}

impl From<ha_token::Rv> for Trouble {
    fn from(rv: ha_token::Rv) -> Self {
        Trouble::Member(rv)
    }
}

impl From<LedgerError> for Trouble {
    fn from(error: LedgerError) -> Self {
        Trouble::Ledger(error)
    }
}

impl Group {
    /// Looks for a member's copy of an object.
    ///
    /// # Errors
    /// [`Trouble`].
    pub(super) fn find_copy(
        &self,
        ledger: &Ledger,
        lease: &Lease,
        row: &ObjectRow,
    ) -> std::result::Result<Copy, Trouble> {
        if let Some(handle) = self.known_handle(lease, row) {
            return Ok(Copy::At(handle));
        }
        for _ in 0..SEARCHES {
            if let Some(copy) = self.look_for_copy(ledger, lease, row)? {
                return Ok(copy);
            }
        }
        Ok(Copy::Unclear)
    }

    /// One search; `None` if it is to be made again.
    fn look_for_copy(
        &self,
        ledger: &Ledger,
        lease: &Lease,
        row: &ObjectRow,
    ) -> std::result::Result<Option<Copy>, Trouble> {
        let visit = self.visit(&lease.link);
        let name = lease.member.name();
        // A change that this member has yet to make may be of the names: here it is called as before. Asked before it is
        // searched: who makes it meanwhile takes it off the list.
        let is_called_otherwise = ledger.pending_of(row.id, name)?.iter().any(changes_names);
        let called_so = self.with_traits(lease, &row_traits(row))?;
        let (mut same, mut unclear) = self.prove_each(lease, row, &called_so)?;
        let mut by_flags = false;
        if same.len() > 1 {
            // Copies of one key under one name differ in what they may do.
            let mut alike = Vec::new();
            for handle in &same {
                if self.differences(lease, *handle, row)? == 0 {
                    alike.push(*handle);
                }
            }
            if !alike.is_empty() {
                (same, by_flags) = (alike, true);
            }
        }
        // Copies of one key may have one name: of those that cannot be told apart each live object has its own. Searched
        // before this is asked: what is found and is of an object that is being made was announced by then.
        let (mut twins, mut on_their_way) = (0, 0);
        if !same.is_empty() {
            for other in ledger.find(row.class, row.key_type, &row.ckaid, &row.label)? {
                let is_twin =
                    other.verifier() == row.verifier() && !(by_flags && differ_in_flags(row, &other));
                if other.id == row.id || !is_twin {
                    continue;
                }
                match self.known_handle(lease, &other) {
                    // It became known since the search.
                    Some(handle) => same.retain(|h| *h != handle),
                    None if other.is_committed() && is_on(&other, name) => twins += 1,
                    None => on_their_way += usize::from(other.state == State::Staged),
                }
            }
        }
        // What this member was never said to hold may all be another's that is being made.
        if (row.is_committed() && is_on(row, name)) || wrong!(OnTheirWayTaken) {
            on_their_way = 0;
        }
        let spare = twins + on_their_way;
        match same.get(spare) {
            Some(handle) => return Ok(Some(Copy::At(*handle))),
            None => unclear |= same.len() > twins,
        }
        if is_called_otherwise {
            // Of its kind only: a challenge says nothing of a key of another type.
            let key_type = if wrong!(AnyTypeIsCandidate) { NO_TYPE } else { row.key_type };
            let alike = of_kind(row.class, key_type);
            let mut by_names: Vec<(Traits, Vec<ObjectHandle>)> = Vec::new();
            for handle in lease.find(&alike)? {
                if called_so.contains(&handle) || self.stands_for_another(lease, row, handle) {
                    continue;
                }
                let Some((traits, ..)) = self.read_whole(lease.on(), handle)? else { continue };
                // The group keys are no application's, and answer few challenges.
                if is_ours(&traits.label, &traits.id) {
                    continue;
                }
                match by_names.iter_mut().find(|(names, _)| *names == traits) {
                    Some((_, handles)) => handles.push(handle),
                    None => by_names.push((traits, vec![handle])),
                }
            }
            let (mut candidates, mut namesakes, mut doubtful) = (Vec::new(), Vec::new(), Vec::new());
            for (traits, handles) in by_names {
                match self.claim(ledger, lease, row, &traits, handles.len())? {
                    Claim::Nobody => candidates.extend(handles),
                    Claim::Namesakes(others) => namesakes.push((handles, others)),
                    Claim::Twin(State::Staged) => doubtful.extend(handles),
                    Claim::Twin(_) | Claim::Others => {}
                }
            }
            let (same, others) = self.prove_each(lease, row, &candidates)?;
            let is_there = !same.is_empty();
            // Of what other objects may be too only a proof tells.
            let found = match self.among_renamed(ledger, lease, row, same)? {
                Some(handle) => Some(handle),
                None if is_there => None,
                None => self.among_namesakes(lease, row, &namesakes)?,
            };
            if let Some(handle) = found {
                return Ok(Some(Copy::At(handle)));
            }
            unclear |= others || !self.prove_each(lease, row, &doubtful)?.0.is_empty();
        }
        if unclear {
            return Ok(Some(Copy::Unclear));
        }
        match self.nothing_found(lease, row, visit)? {
            Nothing::WasSeen => return Ok(None),
            Nothing::CanBeSeen => return Ok(Some(Copy::Unclear)),
            Nothing::IsThere => {}
        }
        // What has another name by now was looked for under the wrong one; what is destroyed is not renamed any more.
        let is_as_it_was = |now: ObjectRow| now.is_unchanged_since(row) || wrong!(RenamedIsAbsent);
        if !row.is_committed() || ledger.object(row.id)?.is_none_or(is_as_it_was) {
            return Ok(Some(Copy::Absent));
        }
        lease.member.falls_behind();
        Ok(Some(Copy::Unclear))
    }

    /// What it says that nothing was found on a member: a session without the user's login sees no private object, and a
    /// lost SoftHSM token shows none at all; both say that all is well. `visit` is the user's login when the search began.
    fn nothing_found(&self, lease: &Lease, row: &ObjectRow, visit: Option<Visit>) -> Result<Nothing> {
        if row.private {
            let info = lease.token().session_info(lease.session)?;
            let logged_in = matches!(info.state, ck::CKS_RW_USER_FUNCTIONS | ck::CKS_RO_USER_FUNCTIONS);
            if !logged_in && self.login.who() == Who::User {
                // The token has lost its login: it is made again, and the question asked again.
                lease.link.doubt_login();
                return Err(Rv::USER_NOT_LOGGED_IN);
            }
            if !logged_in {
                return Ok(Nothing::CanBeSeen);
            }
        }
        self.looks_alive(&lease.member, &lease.link)?;
        Ok(match self.visit(&lease.link) {
            now if now != visit && !wrong!(OtherVisitBelieved) => Nothing::WasSeen,
            None if row.private => Nothing::CanBeSeen,
            _ => Nothing::IsThere,
        })
    }

    /// Where an object's copy is here, if that is known.
    fn known_handle(&self, lease: &Lease, row: &ObjectRow) -> Option<ObjectHandle> {
        let place = self.objects.by_id(row.id)?.place(lease.member.index, lease.link.generation)?;
        (place.trust == Trust::Proven).then_some(place.handle)
    }

    /// What other objects of the group these `there` objects of a member, all of these names, may be. One that was destroyed
    /// counts as long as this member may hold it: who destroys it there knows it by the same handle.
    fn claim(
        &self,
        ledger: &Ledger,
        lease: &Lease,
        row: &ObjectRow,
        traits: &Traits,
        there: usize,
    ) -> std::result::Result<Claim, Trouble> {
        let name = lease.member.name();
        let may_be = |other: &ObjectRow| match other.state {
            State::Intent => false,
            State::Staged | State::Committed => true,
            State::Destroying | State::Destroyed => is_on(other, name) && !wrong!(DyingIsCandidate),
        };
        let mut others = ledger.find(traits.class, traits.key_type, &traits.id, &traits.label)?;
        others.retain(|other| other.id != row.id && may_be(other));
        // One that is being made may have none here yet, which leaves it open; any other one settles it.
        let twins = others.iter().filter(|other| other.verifier() == row.verifier());
        if let Some(state) = twins.map(|twin| twin.state).max_by_key(|state| *state != State::Staged) {
            return Ok(Claim::Twin(state));
        }
        let mut certain = 0;
        for other in others.iter().filter(|other| other.is_committed() && is_on(other, name)) {
            let is_called_so = !ledger.pending_of(other.id, name)?.iter().any(changes_names);
            // Those whose handle is known are not among these.
            certain += usize::from(is_called_so && self.known_handle(lease, other).is_none());
        }
        Ok(match (others.is_empty(), there <= certain) {
            (true, _) => Claim::Nobody,
            (false, false) => Claim::Namesakes(others),
            (false, true) => Claim::Others,
        })
    }

    /// The object, if it is among those that others may be: it proves to be it, and to be none of the others.
    fn among_namesakes(
        &self,
        lease: &Lease,
        row: &ObjectRow,
        namesakes: &[(Vec<ObjectHandle>, Vec<ObjectRow>)],
    ) -> Result<Option<ObjectHandle>> {
        for (handles, others) in namesakes {
            for handle in self.prove_each(lease, row, handles)?.0 {
                let mut is_another = false;
                // Two imported with one value were challenged each with its own nonce.
                for verifier in others.iter().filter_map(ObjectRow::verifier).filter(|v| !v.is_identity()) {
                    is_another |= self.prove(lease, handle, row.class, &verifier)? == Outcome::Same;
                }
                if !is_another {
                    return Ok(Some(handle));
                }
            }
        }
        Ok(None)
    }

    /// The object, among these that all prove to be it and have names of before: another one of the same value may be renamed
    /// as well. They are told apart by what their changes leave as it was; of those that are alike each has its own.
    fn among_renamed(
        &self,
        ledger: &Ledger,
        lease: &Lease,
        row: &ObjectRow,
        mut same: Vec<ObjectHandle>,
    ) -> std::result::Result<Option<ObjectHandle>, Trouble> {
        let name = lease.member.name();
        let mut twins: Vec<ObjectRow> = Vec::new();
        for pending in ledger.pending_for(name)?.iter().filter(|p| p.object != row.id && !same.is_empty()) {
            if !changes_names(&pending.template) || twins.iter().any(|twin| twin.id == pending.object) {
                continue;
            }
            let Some(twin) = ledger.object(pending.object)? else { continue };
            let is_twin = twin.class == row.class && twin.verifier() == row.verifier() && is_on(&twin, name);
            if is_twin && self.known_handle(lease, &twin).is_none() && !wrong!(RenamedTwinTaken) {
                twins.push(twin);
            }
        }
        let mut alike = 0;
        for twin in &twins {
            let (mut left, mut may_be_either) = (Vec::new(), false);
            for handle in same {
                let to_twin = self.differences(lease, handle, twin)?;
                match to_twin.cmp(&self.differences(lease, handle, row)?) {
                    Ordering::Less => continue,
                    Ordering::Equal => may_be_either = true,
                    Ordering::Greater => {}
                }
                left.push(handle);
            }
            same = left;
            alike += usize::from(may_be_either);
        }
        Ok(same.get(alike).copied())
    }

    fn stands_for_another(&self, lease: &Lease, row: &ObjectRow, handle: ObjectHandle) -> bool {
        lease
            .link
            .virtual_of(handle)
            .filter(|v| *v != 0)
            .and_then(|v| self.objects.get(ObjectHandle(v)).ok())
            .is_some_and(|o: Arc<Object>| {
                // What nobody vouched for does not keep a key of the group's own from being found.
                matches!(o.origin, Origin::Ledger(id) if id != row.id) && lease.holds_proven(&o, handle)
            })
    }

    /// Those that prove to be the object; and whether there are some of which neither could be shown.
    fn prove_each(
        &self,
        lease: &Lease,
        row: &ObjectRow,
        candidates: &[ObjectHandle],
    ) -> Result<(Vec<ObjectHandle>, bool)> {
        let (mut same, mut unclear) = (Vec::new(), false);
        let verifier = row.verifier();
        for handle in candidates.iter().copied().filter(|h| !self.stands_for_another(lease, row, *h)) {
            let outcome = match &verifier {
                Some(verifier) => self.prove(lease, handle, row.class, verifier)?,
                None => Outcome::Unproven("the ledger holds no verifier".into()),
            };
            match outcome {
                Outcome::Same => same.push(handle),
                Outcome::Different => {}
                Outcome::Unproven(_) => unclear = true,
            }
        }
        Ok((same, unclear))
    }
}

/// Whether two objects may do different things.
fn differ_in_flags(one: &ObjectRow, other: &ObjectRow) -> bool {
    let mut flags = one.template.iter().filter(|a| a.value.as_bool().is_some());
    flags.any(|flag| other.template.get(flag.kind) != Some(&flag.value))
}

fn is_on(row: &ObjectRow, member: &str) -> bool {
    row.copies.iter().any(|c| c == member)
}

pub(super) fn changes_names(template: &Template) -> bool {
    [ck::CKA_ID, ck::CKA_LABEL, ck::CKA_APPLICATION].iter().any(|kind| template.get(*kind).is_some())
}

/// What an object of the ledger is found by.
pub(super) fn row_traits(row: &ObjectRow) -> Traits {
    Traits {
        class: row.class,
        key_type: row.key_type,
        id: row.ckaid.clone().into(),
        label: row.label.clone().into(),
    }
}
