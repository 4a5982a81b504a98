//! The members' markers: a token that was set back contributes nothing unknown, one of another group is not used, and a ledger
//! that is not the tokens' own changes nothing.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use ha_token::{Attribute, AttributeType, Function, ObjectHandle, Result, Rv, Template, ck};

use super::copies::{Trouble, changes_names};
use super::matching::{Match, id_kind};
use super::{Group, Lease, Member, Traits, Who};
use crate::mutants::wrong;
use crate::policy::failure::{Class, classify};
use crate::policy::marker::{Follows, Known, Look, Said, Verdict, follows, has_all_until, judge};
use crate::replica::is_ours;
use crate::replica::ledger::{Ledger, LedgerError, ObjectRow};
use crate::replica::marker::{self, Marker, Markers};
use crate::replica::proof::Outcome;
use crate::replica::records::{self, Bucket};
use crate::seam::step;

/// What was unknown on a member's token, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discarded {
    /// What was destroyed, or would be.
    pub destroyed: Vec<String>,
    /// What could not be, and why.
    pub left: Vec<String>,
}

/// What a member's token said of itself.
pub(super) struct Seen {
    markers: Markers,
    /// Whether it was found now that the token was set back.
    is_set_back: bool,
    /// Whether who wrote it did not come to the end.
    is_unfinished: bool,
}

/// A member's marker: what was read, and what it tells.
struct Read {
    markers: Markers,
    known: Option<Known>,
    said: Option<Said>,
    verdict: Verdict,
}

/// Why a ledger changes nothing.
const PUT_BACK: &str = "the token knows of later changes than the ledger, which was put back to an older state: keys can be used, and nothing is created, changed or destroyed; `hactl ledger rebuild --replace` makes it anew of what the tokens know";
/// The same.
const BEGUN_ANEW: &str = "the token belongs to a group by another ledger, which was lost, or is another host's: keys can be used, and nothing is created, changed or destroyed; bring that ledger back with `hactl ledger restore`, or make it anew with `hactl ledger rebuild`";

/// What may have been changed of an object, besides its names.
const CHANGEABLE: [AttributeType; 16] = [
    ck::CKA_SUBJECT,
    ck::CKA_START_DATE,
    ck::CKA_END_DATE,
    ck::CKA_ENCRYPT,
    ck::CKA_DECRYPT,
    ck::CKA_SIGN,
    ck::CKA_VERIFY,
    ck::CKA_SIGN_RECOVER,
    ck::CKA_VERIFY_RECOVER,
    ck::CKA_WRAP,
    ck::CKA_UNWRAP,
    ck::CKA_DERIVE,
    ck::CKA_SENSITIVE,
    ck::CKA_EXTRACTABLE,
    ck::CKA_WRAP_WITH_TRUSTED,
    ck::CKA_COPYABLE,
];

/// What a member that was set back is to set once more, where it has it otherwise.
fn once_more(row: &ObjectRow) -> Template {
    let names =
        [Attribute::bytes(id_kind(row.class), &*row.ckaid), Attribute::bytes(ck::CKA_LABEL, &*row.label)];
    let kept = row.template.iter().filter(|a| CHANGEABLE.contains(&a.kind)).cloned();
    names.into_iter().chain(kept).collect()
}

impl Group {
    /// Reads a member's marker, before anything is done on its token: one of another group is not used, and a ledger that is
    /// not the tokens' own changes nothing. To `note` in the ledger that a token was set back whoever calls this has the
    /// member's lock on this host: another process may be writing the marker.
    ///
    /// # Errors
    /// [`Trouble`]; `CKR_TOKEN_NOT_RECOGNIZED` for a token of another group.
    pub(super) fn look_at_marker(
        &self,
        ledger: &Ledger,
        lease: &Lease,
        note: bool,
    ) -> std::result::Result<Seen, Trouble> {
        if self.is_to_be_rebuilt.load(Ordering::Acquire) {
            return Ok(Seen { markers: Markers::default(), is_set_back: false, is_unfinished: false });
        }
        let (member, name) = (&lease.member, lease.member.name());
        let Read { markers, known, said, verdict } = self.read_marker(ledger, lease)?;
        let is_known_to_tokens = verdict == Verdict::AnotherLedgers && ledger.is_known_to_tokens()?;
        let look = Look { note, is_read_only: ledger.is_read_only(), is_known_to_tokens };
        let follows = follows(verdict, known, said, look);
        let epoch = said.map_or(0, |said| said.epoch);
        match follows {
            Follows::Nothing => {}
            Follows::LedgerWasPutBack => self.refuse_changes(ledger, name, PUT_BACK),
            Follows::LedgerIsNew => self.refuse_changes(ledger, name, BEGUN_ANEW),
            Follows::PutAside => return Err(self.is_anothers(member, &markers)),
            Follows::NoteSetBack => self.note_set_back(ledger, member)?,
            Follows::NoteFound => ledger.mark_found(name, epoch)?,
            Follows::NoteWritten => ledger.mark_written(name, epoch)?,
        }
        let is_set_back = follows == Follows::NoteSetBack;
        if note && !ledger.is_read_only() && (is_set_back || lease.link.is_new()) {
            ledger.may_have_missed(name, has_all_until(known, said), &once_more)?;
            lease.link.was_looked_at();
        }
        Ok(Seen { markers, is_set_back, is_unfinished: follows == Follows::NoteWritten })
    }

    /// What a member's marker and the ledger say of it, and what that tells.
    fn read_marker(&self, ledger: &Ledger, lease: &Lease) -> std::result::Result<Read, Trouble> {
        let member = &lease.member;
        let visit = self.visit(&lease.link);
        // Before the ledger: who writes it has announced it there first.
        let markers = marker::find(lease.on())?;
        lease.link.set_markers(records::all(lease.on())?.len());
        let others: Vec<&str> =
            self.members.iter().map(|m| m.name()).filter(|n| *n != member.name()).collect();
        let mark = ledger.mark_of_token(member.name(), &others)?;
        member.set_back.store(mark.is_some_and(|m| m.set_back), Ordering::Release);
        let known = mark.map(|m| Known { written: m.written, begun: m.begun, untold: m.untold });
        let identity = ledger.identity();
        let said = markers.latest.as_ref().map(|said| Said {
            is_ours: said.identity.group == identity.group && said.identity.ledger == identity.ledger,
            epoch: said.epoch,
        });
        let verdict = if wrong!(MarkerNotRead) { Verdict::New } else { judge(known, said) };
        if verdict == Verdict::SetBack {
            // A lost SoftHSM token finds nothing and says that all is well, as does one that has lost its login.
            self.looks_alive(member, &lease.link)?;
            let is_in = lease.token().session_info(lease.session)?.state == ck::CKS_RW_USER_FUNCTIONS;
            if !is_in || visit.is_none() || self.visit(&lease.link) != visit {
                return Err(Trouble::Member(Rv::USER_NOT_LOGGED_IN));
            }
        }
        Ok(Read { markers, known, said, verdict })
    }

    fn note_set_back(&self, ledger: &Ledger, member: &Member) -> std::result::Result<(), LedgerError> {
        tracing::error!(group = %self.config.label, member = member.name(),
            "the token was set back to an older state, or made anew: what is on it and the ledger does not know is not shown");
        ledger.was_set_back(member.name())?;
        member.set_back.store(true, Ordering::Release);
        Ok(())
    }

    fn is_anothers(&self, member: &Member, markers: &Markers) -> Trouble {
        let whose = markers.latest.as_ref().map_or("", |said| &said.label);
        self.put_aside(member, format!(
            "its token belongs to the group {whose:?} by another ledger; put the right token back, or empty this one and run `hactl member replace`"
        ));
        Trouble::Member(Rv::TOKEN_NOT_RECOGNIZED)
    }

    /// As [`look_at_marker`](Self::look_at_marker), where nothing is noted.
    ///
    /// # Errors
    /// The member's answer; `CKR_TOKEN_NOT_RECOGNIZED` for a token of another group.
    pub(super) fn warn_of_marker(&self, lease: &Lease) -> Result<()> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        match self.look_at_marker(ledger, lease, false) {
            Ok(_) => Ok(()),
            Err(Trouble::Member(rv)) => Err(rv),
            // Who reads keys only goes on.
            Err(Trouble::Ledger(error)) => {
                tracing::warn!(group = %self.config.label, member = lease.member.name(), %error, "the ledger cannot say what the member's marker was");
                Ok(())
            }
        }
    }

    fn refuse_changes(&self, ledger: &Ledger, member: &str, why: &str) {
        tracing::error!(group = %self.config.label, member, "{why}");
        ledger.refuse_changes(format!("{member}: {why}"));
    }

    /// Writes a member's marker anew, where that is due, and before it the records of what was done since the one before. A
    /// token that takes none has none. Answers whether that came to its end before it was cut off.
    ///
    /// # Errors
    /// [`Trouble`], of what says that the member cannot be used.
    pub(super) fn mark(
        &self,
        ledger: &Ledger,
        lease: &Lease,
        seen: &Seen,
        is_cut_off: &dyn Fn() -> bool,
    ) -> std::result::Result<bool, Trouble> {
        let name = lease.member.name();
        let said = seen.markers.latest.as_ref();
        let members: Vec<String> = self.members.in_order().map(|m| m.name().to_owned()).collect();
        let is_outdated = seen.is_set_back || said.is_some_and(|said| said.members != members);
        let is_due = ledger.is_to_be_marked(name)? || is_outdated || seen.markers.handles.len() > 1;
        if !is_due || lease.link.refuses_markers() || !ledger.has_begun()? {
            return Ok(true);
        }
        match self.write_marker(ledger, lease, seen, members, is_cut_off) {
            Err(Trouble::Member(rv)) => match classify(Function::CreateObject, rv) {
                Class::Member | Class::Session | Class::Login => Err(Trouble::Member(rv)),
                Class::Caller | Class::Object | Class::Capacity | Class::Ambiguous => {
                    tracing::debug!(group = %self.config.label, member = name, %rv, "the marker cannot be written");
                    lease.link.refuse_markers();
                    ledger.takes_no_marker(name)?;
                    lease.link.set_markers(records::all(lease.on())?.len());
                    Ok(true)
                }
            },
            answer => answer,
        }
    }

    fn write_marker(
        &self,
        ledger: &Ledger,
        lease: &Lease,
        seen: &Seen,
        members: Vec<String>,
        is_cut_off: &dyn Fn() -> bool,
    ) -> std::result::Result<bool, Trouble> {
        let (on, name) = (lease.on(), lease.member.name());
        let epoch = ledger.mark_begun(name)?;
        // What was recorded on the token is as old as its marker.
        let said = seen.markers.latest.as_ref().filter(|_| !seen.is_set_back);
        let before = match said {
            Some(said) if ledger.has_recorded(said.epoch)? => Some(said),
            _ => None,
        };
        let bits_before = before.and_then(|before| before.record_bits);
        let bits = records::bits_for(ledger.count_recorded()?, bits_before.unwrap_or(0));
        let is_shared_out_so = bits_before == Some(bits);
        let buckets: BTreeSet<Bucket> = match before {
            Some(before) if is_shared_out_so => {
                ledger.altered_since(before.epoch)?.into_iter().map(|id| Bucket::of(id, bits)).collect()
            }
            _ => Bucket::all(bits).collect(),
        };
        for bucket in buckets {
            if is_cut_off() {
                return Ok(false);
            }
            records::write(on, bucket, epoch, ledger.records_of(bucket)?)?;
            step!(Recorded);
        }
        let identity = ledger.identity();
        let label = self.config.label.clone();
        let marker = Marker { identity, epoch, label, members, record_bits: Some(bits) };
        marker::write(on, &marker, &seen.markers)?;
        step!(Marked);
        if !is_shared_out_so || seen.is_unfinished {
            records::clear_others(on, bits)?;
        }
        lease.link.set_markers(records::all(on)?.len());
        ledger.mark_written(name, epoch)?;
        Ok(true)
    }

    /// After a token that was set back was given what it lacks: where nothing unknown is on it, it counts like any other.
    ///
    /// # Errors
    /// The member's answer.
    pub(super) fn believe_again(&self, lease: &Lease) -> Result<()> {
        let name = lease.member.name();
        let Some(ledger) = self.ledger.as_ref().filter(|l| !l.is_read_only()) else { return Ok(()) };
        if !lease.member.set_back.load(Ordering::Acquire) {
            return Ok(());
        }
        let unknown = self.unknown_on(lease)?;
        if unknown.is_empty() {
            return self.trust_token(ledger, &lease.member);
        }
        tracing::warn!(group = %self.config.label, member = name, unknown = unknown.len(),
            "the token was set back, and holds what the ledger does not know: it is not shown; `hactl sync --discard` destroys it, `hactl adopt` takes it");
        Ok(())
    }

    /// What is unknown on a member's token is new, by its operator's word, or because nothing is.
    ///
    /// # Errors
    /// The ledger's.
    fn trust_token(&self, ledger: &Ledger, member: &Member) -> Result<()> {
        ledger.is_believed_again(member.name()).map_err(|e| self.ledger_failed(e))?;
        member.set_back.store(false, Ordering::Release);
        Ok(())
    }

    /// Whether a member's marker is to be written anew, which nobody has asked for.
    pub(super) fn is_mark_due(&self, member: &Member) -> bool {
        let may = |ledger: &&Ledger| self.login.who() == Who::User && !ledger.is_read_only();
        let takes_one = member.link().is_some_and(|link| !link.refuses_markers());
        let by_hand = self.by_hand.load(Ordering::Acquire);
        let ledger = self.ledger.as_ref().filter(may);
        takes_one && !by_hand && ledger.is_some_and(|l| l.is_to_be_marked(member.name()).unwrap_or(false))
    }

    /// What is unknown on a member's token is its operator's to take into the group: from now on it is shown.
    ///
    /// # Errors
    /// The ledger's.
    pub(super) fn show_unknown(&self, member: &Member, dry: bool) -> Result<()> {
        if dry {
            member.set_back.store(false, Ordering::Release);
            return Ok(());
        }
        self.trust_token(self.ledger()?, member)
    }

    /// Destroys what a member's token holds and the ledger does not know: what was made before the group, or behind its back,
    /// and what came back with a token that was set back. With `dry` nothing is done. The user is logged in.
    ///
    /// # Errors
    /// `CKR_USER_NOT_LOGGED_IN`; `CKR_TOKEN_NOT_PRESENT` for a member that is not up; the ledger's; the member's answers that
    /// say that it cannot be used. What was destroyed by then is.
    pub fn discard(&self, member: &str, dry: bool) -> Result<Discarded> {
        if self.login.who() != Who::User {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        let ledger = self.ledger()?;
        let member = self.up().find(|m| m.name() == member).ok_or(Rv::TOKEN_NOT_PRESENT)?;
        let lease = self.sound_lease(member)?;
        let lock = ledger.member_lock(member.name(), &*self.world, &|| false);
        let _host = lock.map_err(|e| self.ledger_failed(e))?;
        let mut discarded = Discarded::default();
        for (handle, traits) in self.unknown_on(&lease)? {
            let what =
                format!("{} {:?}", crate::names::class(traits.class), String::from_utf8_lossy(&traits.label));
            if !self.is_surely_none(ledger, &lease, handle, &traits)? {
                discarded.left.push(format!(
                    "{what}: it cannot be told from an object of the group; `hactl sync` first"
                ));
                continue;
            }
            let answer = if dry { Ok(()) } else { lease.token().destroy_object(lease.session, handle) };
            match answer {
                Ok(()) => discarded.destroyed.push(what),
                Err(rv) if classify(Function::DestroyObject, rv) == Class::Member => return Err(rv),
                Err(rv) => discarded.left.push(format!("{what}: {rv}")),
            }
            if !dry && let Some(known) = lease.link.virtual_of(handle) {
                lease.link.unbind(handle);
                if let Ok(object) = self.objects.get(ObjectHandle(known)) {
                    object.forget(member.index);
                }
            }
        }
        if !dry && discarded.left.is_empty() {
            self.trust_token(ledger, member)?;
        }
        Ok(discarded)
    }

    /// Whether a member's object is none of the group's, whatever it is called: of those with its names each is proven to be
    /// another one, and none has another name here.
    fn is_surely_none(
        &self,
        ledger: &Ledger,
        lease: &Lease,
        handle: ObjectHandle,
        traits: &Traits,
    ) -> Result<bool> {
        let failed = |e| self.ledger_failed(e);
        let pending = ledger.pending_for(lease.member.name()).map_err(failed)?;
        if pending.iter().any(|p| changes_names(&p.template)) {
            return Ok(false);
        }
        let rows = ledger.find(traits.class, traits.key_type, &traits.id, &traits.label).map_err(failed)?;
        for row in rows.iter().filter(|row| !row.is_destroyed()) {
            let Some(verifier) = row.verifier() else { return Ok(false) };
            if self.prove(lease, handle, traits.class, &verifier)? != Outcome::Different {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The token objects of a member that the ledger does not know.
    ///
    /// # Errors
    /// The member's answer.
    pub(super) fn unknown_on(&self, lease: &Lease) -> Result<Vec<(ObjectHandle, Traits)>> {
        let token = vec![Attribute::bool(ck::CKA_TOKEN, true)];
        let mut unknown = Vec::new();
        for handle in lease.find(&token)? {
            let read = match self.read_whole(lease.on(), handle) {
                Err(Rv::OBJECT_HANDLE_INVALID) => continue,
                read => read?,
            };
            let Some((traits, ..)) = read.filter(|(t, ..)| !is_ours(&t.label, &t.id)) else { continue };
            if matches!(self.match_row(lease, handle, &traits)?, Match::Foreign) {
                unknown.push((handle, traits));
            }
        }
        Ok(unknown)
    }
}
