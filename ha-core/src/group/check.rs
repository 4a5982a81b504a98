//! The key replication check: each object by member, and whether the copies are the same key.

use std::collections::BTreeMap;
use std::sync::Arc;

use ha_token::{Attribute, Function, Result, Rv, Ulong, ck};

use super::examined::{Asked, Checked, Examination, Examined, Shown, Testimony, Word};
use super::identify::place;
use super::{Group, Lease, Object, Origin, Trust, Who};
use crate::policy::failure::Class;
use crate::replica::proof::{Known, Outcome, Proof};
use crate::replica::verifier::Verifier;

/// How far a check goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// What is known of copies is believed.
    Known,
    /// Every copy is challenged.
    Proven,
    /// And what it answers is kept.
    Kept,
}

impl Group {
    /// Compares the objects of every member that is up; with `prove` every copy is challenged. The user must be logged in.
    /// Objects are looked at one by one: memory grows with their number, nothing else. A member that fails meanwhile is
    /// left out from there on.
    ///
    /// # Errors
    /// `CKR_USER_NOT_LOGGED_IN`; `CKR_DEVICE_ERROR` when no member is up.
    pub fn check(&self, prove: bool) -> Result<Vec<Checked>> {
        let mut leases = self.leases_to_check()?;
        let depth = if prove { Depth::Proven } else { Depth::Known };
        let mut checked = Vec::new();
        self.look(&mut leases, depth, &mut |examined| checked.push(examined.object))?;
        Ok(checked)
    }

    /// As [`check`](Self::check) with `prove`, and keeps what each copy was asked and answered: some hundred bytes for each.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn examine(&self) -> Result<Examination> {
        let mut leases = self.leases_to_check()?;
        let asked = leases.iter().map(Asked::on).collect();
        let mut objects = Vec::new();
        self.look(&mut leases, Depth::Kept, &mut |examined| objects.push(examined))?;
        Ok(Examination { asked, objects })
    }

    /// A session on each member that is up.
    fn leases_to_check(&self) -> Result<Vec<Lease>> {
        if self.login.who() != Who::User {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        let mut leases = Vec::new();
        for member in self.up() {
            match self.sound_lease(member) {
                Ok(lease) => leases.push(lease),
                Err(rv) => {
                    if let Some(link) = member.link() {
                        self.failed(member, &link, Function::OpenSession, rv);
                    }
                }
            }
        }
        Ok(leases)
    }

    /// Looks at each object in turn.
    fn look(&self, leases: &mut Vec<Lease>, depth: Depth, tell: &mut dyn FnMut(Examined)) -> Result<()> {
        let mut objects: BTreeMap<Ulong, Arc<Object>> = BTreeMap::new();
        leases.retain(|lease| match self.objects_on(lease, &mut objects) {
            Ok(()) => true,
            Err(rv) => {
                self.failed(&lease.member, &lease.link, Function::FindObjects, rv);
                false
            }
        });
        // What the ledger knows and no member has would otherwise not be seen.
        if let Some(ledger) = &self.ledger {
            for row in ledger.objects().unwrap_or_default().into_iter().filter(|r| r.is_committed()) {
                if self.objects.by_id(row.id).is_none()
                    && let Some(object) = self.known(&row)
                {
                    objects.insert(object.handle.0, object);
                }
            }
        }
        for object in objects.values() {
            if let Some(examined) = self.check_object(object, leases, depth) {
                tell(examined);
            }
        }
        if leases.is_empty() {
            return Err(Rv::DEVICE_ERROR);
        }
        Ok(())
    }

    /// Adds the objects that a member holds.
    fn objects_on(&self, lease: &Lease, objects: &mut BTreeMap<Ulong, Arc<Object>>) -> Result<()> {
        let found = lease.find(&vec![Attribute::bool(ck::CKA_TOKEN, true)])?;
        let there = self.objects_among(lease, found, |lease, handle| self.object_of(lease, handle))?;
        objects.extend(there.into_iter().map(|object| (object.handle.0, object)));
        Ok(())
    }

    fn check_object(&self, object: &Object, leases: &mut Vec<Lease>, depth: Depth) -> Option<Examined> {
        let traits = object.traits();
        let row = match object.origin {
            Origin::Session(_) => return None,
            Origin::Foreign => None,
            Origin::Ledger(id) => self.ledger.as_ref().and_then(|l| l.object(id).ok().flatten()),
        };
        let conflicted = object.is_conflicted();
        let mut verifier = row.as_ref().and_then(|r| r.verifier());
        // What tells a conflicted object is not what its copy had to answer.
        let mut own = None;
        let mut copies = Vec::new();
        leases.retain(|lease| {
            let said = if conflicted {
                if !object.lives_on(lease.member.index) {
                    return true;
                }
                let shown =
                    if depth == Depth::Known { None } else { self.own_answer(object, lease, &mut own) };
                let shown = shown.filter(|_| depth == Depth::Kept);
                Said { word: Word::Different, reason: None, shown }
            } else {
                match self.word(object, lease, &mut verifier, depth) {
                    Ok(said) => said,
                    Err(rv) => {
                        let class = self.failed(&lease.member, &lease.link, Function::FindObjects, rv);
                        if class == Class::Member || self.is_lost(&lease.member, &lease.link, class) {
                            return false;
                        }
                        let reason = (class == Class::Caller).then(|| rv.to_string());
                        Said { word: Word::Unproven, reason, shown: None }
                    }
                }
            };
            copies.push(said.of(lease.member.name()));
            true
        });
        let told = |copy: &Testimony| copy.reason.as_ref().map(|reason| format!("{}: {reason}", copy.member));
        let mut reasons: Vec<String> = copies.iter().filter_map(told).collect();
        if conflicted {
            reasons.push(
                "another object of the same class, label and id is a different one; neither is used".into(),
            );
        }
        let copyable = match &row {
            Some(row) => row.is_copyable(),
            None => self.is_foreign_copyable(object, leases),
        };
        let object = Checked {
            class: traits.class,
            key_type: traits.key_type,
            id: traits.id.to_vec(),
            label: traits.label.to_vec(),
            fingerprint: own.as_ref().or(verifier.as_ref()).map(Verifier::fingerprint),
            copyable,
            foreign: object.origin == Origin::Foreign,
            members: copies.iter().map(|copy| (copy.member.clone(), copy.word)).collect(),
            reasons,
        };
        Some(Examined { object, verifier: own.or(verifier), conflicted, copies })
    }

    /// What one member has of an object.
    fn word(
        &self,
        object: &Object,
        lease: &Lease,
        verifier: &mut Option<Verifier>,
        depth: Depth,
    ) -> Result<Said> {
        let traits = object.traits();
        let handle = match object.place(lease.member.index, lease.link.generation) {
            Some(p) => p.handle,
            None => match self.unclaimed(lease, object)? {
                Some(handle) => handle,
                None => return Ok(Word::Missing.into()),
            },
        };
        let secret = matches!(traits.class, ck::CKO_PRIVATE_KEY | ck::CKO_SECRET_KEY);
        if secret && depth == Depth::Known {
            let trust = object.place(lease.member.index, lease.link.generation).map(|p| p.trust);
            return Ok(match trust {
                Some(Trust::Proven) => Word::Same.into(),
                Some(Trust::Conflict) => Word::Different.into(),
                Some(Trust::Unproven) | None => Word::Unproven.into(),
            });
        }
        if verifier.is_none() {
            *verifier = self.make_verifier(lease, handle, traits.class, Known::default())?;
        }
        let Some(verifier) = verifier else {
            let alone = self.members.len() == 1;
            let word = if alone { Word::Same } else { Word::Unproven };
            return Ok(Said { word, reason: Some("no challenge fits this object".into()), shown: None });
        };
        let Proof { outcome, evidence } = self.proof(lease, handle, traits.class, verifier)?;
        // The time of the answer, before anything else is done.
        let shown = match evidence {
            Some(evidence) if depth == Depth::Kept => Some(Shown { at: self.world.wall_clock(), evidence }),
            _ => None,
        };
        let (word, reason) = match outcome {
            Outcome::Same => {
                self.take_over(lease, handle, object);
                (Word::Same, None)
            }
            Outcome::Different => {
                object.put(place(lease, handle, Trust::Conflict));
                self.reporter.conflict(lease.member.name(), &traits.label);
                (Word::Different, Some("it is another key".into()))
            }
            Outcome::Unproven(reason) => (Word::Unproven, Some(reason)),
        };
        Ok(Said { word, reason, shown })
    }

    /// What a copy that is not used answers of itself, and what it answered that by: it was told apart when it was found.
    fn own_answer(&self, object: &Object, lease: &Lease, own: &mut Option<Verifier>) -> Option<Shown> {
        let class = object.traits().class;
        let handle = object.place(lease.member.index, lease.link.generation)?.handle;
        let answer = || -> Result<_> {
            // Of two copies the second is asked what the first one answered.
            let verifier = match &*own {
                Some(verifier) => Some(verifier.clone()),
                None => self.make_verifier(lease, handle, class, Known::default())?,
            };
            let Some(verifier) = verifier else { return Ok(None) };
            let evidence = self.proof(lease, handle, class, &verifier)?.evidence;
            Ok(evidence.map(|evidence| (verifier, Shown { at: self.world.wall_clock(), evidence })))
        };
        match answer() {
            Ok(answer) => answer.map(|(verifier, shown)| {
                *own = Some(verifier);
                shown
            }),
            Err(rv) => {
                self.failed(&lease.member, &lease.link, Function::FindObjects, rv);
                None
            }
        }
    }

    /// A member's object with an object's traits that is no other object's copy.
    fn unclaimed(&self, lease: &Lease, object: &Object) -> Result<Option<ha_token::ObjectHandle>> {
        if object.origin == Origin::Foreign {
            // A foreign object's copies were looked for when it was first seen.
            return Ok(None);
        }
        let traits = object.traits();
        Ok(self
            .with_traits(lease, &traits)?
            .into_iter()
            .find(|h| lease.link.virtual_of(*h).is_none_or(|v| v == object.handle.0)))
    }
}

/// What was found of one copy.
struct Said {
    word: Word,
    reason: Option<String>,
    shown: Option<Shown>,
}

impl From<Word> for Said {
    fn from(word: Word) -> Self {
        Said { word, reason: None, shown: None }
    }
}

impl Said {
    fn of(self, member: &str) -> Testimony {
        Testimony { member: member.to_owned(), word: self.word, reason: self.reason, shown: self.shown }
    }
}

impl Asked {
    fn on(lease: &Lease) -> Self {
        Asked { member: lease.member.name().to_owned(), token: lease.link.info.clone() }
    }
}
