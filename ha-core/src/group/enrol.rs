//! The group keys on every member: found, made, and moved to a member that lacks them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_token::{Function, Result, Rv, UserType};

use super::{Group, Lease, Link, Member, Who};
use crate::mutants::wrong;
use crate::policy::failure::{Class, classify};
use crate::replica::group_key::{self, GroupKeys, NotMoved};
use crate::seam::step;

/// How often a member is given the group keys once more that fails vaguely.
const KEY_TRIES: u32 = 8;

impl Group {
    /// Sees to it that every one of these members has the group keys. Members that cannot be given them are taken off the
    /// list; the caller looks whether enough are left.
    ///
    /// # Errors
    /// When no member has the keys and none can make them; `CKR_DEVICE_ERROR` when fewer than `min_copies` are left.
    pub(crate) fn group_keys_everywhere(&self, writers: &mut Vec<Lease>) -> Result<()> {
        if writers.iter().all(|w| w.link.group_keys().is_some()) {
            return Ok(());
        }
        let hung: Vec<usize> = writers.iter().map(|w| w.link.hung()).collect();
        let _bootstrap = self.bootstrap.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Who has waited in vain with others for a member does not wait once more.
        let mut before = hung.iter();
        let all = writers.len();
        writers.retain(|w| before.next() == Some(&w.link.hung()) || wrong!(HungIsAskedAgain));
        self.share_group_keys(writers, (writers.len() < all).then_some(Rv::DEVICE_ERROR))
    }

    /// As [`group_keys_everywhere`](Self::group_keys_everywhere), by who holds the right to make and move them. `failed`: how
    /// one failed that is no longer asked.
    fn share_group_keys(&self, writers: &mut Vec<Lease>, mut failed: Option<Rv>) -> Result<()> {
        let group = self.ledger()?.identity().group;
        // Two processes that find no keys at once would each make their own.
        let _host = self.ledger()?.bootstrap_lock(&*self.world).map_err(|e| self.ledger_failed(e))?;
        writers.retain(|writer| match self.recall_group_keys(writer) {
            Ok(()) => true,
            Err(rv) => {
                let class = self.failed(&writer.member, &writer.link, Function::FindObjects, rv);
                tracing::warn!(group = %self.config.label, member = writer.member.name(), rv = %rv, ?class, "the group keys could not be looked for on the member: it is left out");
                failed = Some(rv);
                false
            }
        });
        if writers.iter().all(|w| w.link.group_keys().is_none()) {
            // One that could not be asked may have them.
            if let Some(rv) = failed {
                return Err(rv);
            }
            self.may_make_group_keys()?;
            tracing::warn!(group = %self.config.label,
                "the group enrols itself, without its members' security officers: whoever has the user PIN can get at the keys; `hactl init` enrols members with a ceremony");
            self.make_group_keys(writers, &group)?;
        }
        let mut kept = Vec::new();
        let all = std::mem::take(writers);
        for (n, writer) in all.iter().enumerate() {
            if writer.link.group_keys().is_some() || self.give_group_keys(&all, writer, &group) {
                kept.push(n);
            }
        }
        *writers = all.into_iter().enumerate().filter(|(n, _)| kept.contains(n)).map(|(_, w)| w).collect();
        if writers.len() < self.min_copies() {
            return Err(Rv::DEVICE_ERROR);
        }
        Ok(())
    }

    /// Makes the group keys on the first of these that can.
    fn make_group_keys(&self, writers: &[Lease], group: &[u8; 16]) -> Result<()> {
        let mut failed = Rv::DEVICE_ERROR;
        for first in writers {
            let rv = match self.make_group_keys_on(first, group) {
                Ok(()) => return Ok(()),
                Err(rv) => rv,
            };
            failed = rv;
            // Also put down to it, so that this is tried again without it.
            let may_be_next = match self.failed(&first.member, &first.link, Function::GenerateKey, rv) {
                // What makes no such keys, as a TPM, leaves it to the next one.
                Class::Caller => true,
                // As does one that cannot now, if none of them is left there, nor known to the ledger.
                Class::Ambiguous | Class::Capacity => {
                    group_key::clear(first.on(), group).is_ok()
                        && !self.ledger()?.has_group_keys().map_err(|e| self.ledger_failed(e))?
                }
                _ => false,
            };
            if !may_be_next {
                break;
            }
        }
        Err(failed)
    }

    fn make_group_keys_on(&self, first: &Lease, group: &[u8; 16]) -> Result<()> {
        let keys = group_key::create(first.on(), group, false)?;
        step!(GroupKeysMade);
        // They are there, and what fails once may be a matter of the moment.
        if self.recognise_group_keys(first, &keys).or_else(|_| self.recognise_group_keys(first, &keys))? {
            first.link.set_group_keys(Some(keys));
            Ok(())
        } else {
            Err(Rv::DEVICE_ERROR)
        }
    }

    /// Gives a member the group keys from one of these that has them; from the next one if that one fails. Answers whether
    /// it has them now; what fails is told, and put down to the member that failed.
    fn give_group_keys(&self, all: &[Lease], writer: &Lease, group: &[u8; 16]) -> bool {
        for source in all {
            let Some(keys) = source.link.group_keys() else { continue };
            if keys.enrolled {
                tracing::error!(group = %self.config.label, member = writer.member.name(), "the member has no group keys and cannot be given them without its security officer: it gets no new keys");
                return false;
            }
            let transfer = |keys: &GroupKeys| {
                group_key::begin_enrolment(writer.on())
                    .map_err(NotMoved::Receiver)
                    .and_then(|key| group_key::transfer(source.on(), keys, writer.on(), group, &key))
            };
            let mut moved = transfer(&keys);
            if let Err(NotMoved::Giver(rv)) = &moved
                && classify(Function::WrapKey, *rv) == Class::Object
                && !wrong!(LostGroupKeysBelieved)
            {
                // It has lost its handles since, and has them under others.
                source.link.set_group_keys(None);
                if self.recall_group_keys(source).is_ok()
                    && let Some(keys) = source.link.group_keys()
                {
                    moved = transfer(&keys);
                }
            }
            let (failed, function, rv) = match moved {
                Ok(there) => {
                    step!(GroupKeysGiven);
                    writer.link.set_group_keys(Some(there));
                    writer.member.key_tries.store(0, Ordering::Release);
                    if writer.member.lacks.load(Ordering::Acquire) {
                        writer.member.falls_behind();
                    }
                    return true;
                }
                Err(NotMoved::Giver(rv)) => (source, Function::WrapKey, rv),
                Err(NotMoved::Receiver(rv)) => (writer, Function::UnwrapKey, rv),
            };
            tracing::error!(group = %self.config.label, member = writer.member.name(), failed = failed.member.name(), rv = %rv, "the member could not be given the group keys");
            let class = self.failed(&failed.member, &failed.link, function, rv);
            if failed.member.index == writer.member.index {
                // It may be a matter of the moment: without the keys it lacks what is wrapped under them.
                let vague = class == Class::Ambiguous;
                if vague && writer.member.key_tries.fetch_add(1, Ordering::AcqRel) < KEY_TRIES {
                    writer.member.falls_behind();
                }
                return false;
            }
        }
        false
    }

    /// Looks for the group keys on a member that has just logged in. Without them it gets no new keys, and is asked again
    /// when one is made. Keys that are not the ones that the ledger knows are not used: a key may have been planted, or
    /// made by a ledger that was lost.
    pub(crate) fn recall_group_keys(&self, lease: &Lease) -> Result<()> {
        if lease.link.group_keys().is_none()
            && let Some(ledger) = &self.ledger
            && let Some(keys) = group_key::find(lease.on(), &ledger.identity().group)?
            && self.recognise_group_keys(lease, &keys)?
        {
            lease.link.set_group_keys(Some(keys));
        }
        Ok(())
    }

    /// Gives a member that has just logged in the group keys, if another one has them and may. What fails is logged, and
    /// tried again when a key is made.
    pub(crate) fn receive_group_keys(&self, member: &Arc<Member>, link: &Arc<Link>) {
        // Who holds it may be waiting for this member.
        let Ok(_bootstrap) = self.bootstrap.try_lock() else { return };
        let epoch = self.login.epoch();
        let ready = |l: &Arc<Link>| l.group_keys().is_some_and(|k| !k.enrolled) && l.has_followed(epoch);
        let givers = self.up().filter_map(|m| Some((m, m.link().filter(ready)?)));
        let mut leases: Vec<_> = givers.filter_map(|(m, link)| Lease::new(m, link).ok()).collect();
        if !leases.is_empty()
            && let Ok(lease) = Lease::new(member, Arc::clone(link))
        {
            leases.push(lease);
            // What it is is told in words already.
            _ = self.share_group_keys(&mut leases, None);
        }
    }

    /// A member has the group keys now: those that were brought up to date without them lack what is wrapped under them,
    /// and can be given both.
    pub(super) fn offer_group_keys(&self) {
        let wants = |m: &&Arc<Member>| {
            m.may_take.load(Ordering::Acquire) && m.link().is_some_and(|l| l.group_keys().is_none())
        };
        self.up().filter(wants).for_each(|member| member.falls_behind());
    }

    /// Whether these are the group's keys: those that were seen first.
    pub(super) fn recognise_group_keys(&self, lease: &Lease, keys: &GroupKeys) -> Result<bool> {
        let mut answers = Vec::new();
        for key in [keys.extractable, keys.non_extractable] {
            match group_key::fingerprint(lease.on(), key) {
                Ok(answer) => answers.extend(answer),
                // It can wrap nothing with them, as behind p11-kit: then it does not matter which they are.
                Err(rv) if matches!(classify(Function::WrapKey, rv), Class::Caller | Class::Ambiguous) => {
                    return Ok(true);
                }
                Err(rv) => return Err(rv),
            }
        }
        let known = self.ledger.as_ref().map(|l| l.remember_group_keys(&answers)).transpose();
        let known = known.map_err(|e| self.ledger_failed(e))?;
        let same = known.is_none_or(|known| known == answers);
        if !same {
            tracing::error!(group = %self.config.label, member = lease.member.name(),
                "the member has other group keys than the group: they are not used, and it gets no new keys; was a key planted there, or does its token belong to another group?");
        }
        Ok(same)
    }

    /// Refuses a second set of group keys: what is wrapped under the first could be given to no member of the second.
    fn may_make_group_keys(&self) -> Result<()> {
        if self.ledger()?.has_group_keys().map_err(|e| self.ledger_failed(e))? {
            self.reporter.refused(
                Function::GenerateKey,
                Rv::DEVICE_ERROR,
                "the group keys are on members that are not up now, and no other ones are made beside them",
            );
            return Err(Rv::DEVICE_ERROR);
        }
        Ok(())
    }

    /// The ceremony for fresh members: one gets the group keys, or has them; every other one is trusted by that one's
    /// security officer and given them. Nobody may be logged in; afterwards the user is not.
    ///
    /// # Errors
    /// The members' answers; what was made stays, and the ceremony can be run again. `CKR_ACTION_PROHIBITED` for a group
    /// that has enrolled itself: its keys are not trusted ones.
    pub fn enrol_with_ceremony(&self, user_pin: &[u8], so_pin: &[u8]) -> Result<()> {
        self.ceremony(user_pin, so_pin, &|_| true, &|_| true)
    }

    /// As [`enrol_with_ceremony`](Self::enrol_with_ceremony), for one member that joins, trusted by the security officer of
    /// `by` ([`enroller_of`](Self::enroller_of)): `so_pin` goes to no other member. Who else lacks the keys stays without.
    ///
    /// # Errors
    /// As [`enrol_with_ceremony`](Self::enrol_with_ceremony); `CKR_DEVICE_ERROR` where `by` is not up or has no keys.
    pub fn enrol_member(&self, member: &str, by: &str, user_pin: &[u8], so_pin: &[u8]) -> Result<()> {
        self.ceremony(user_pin, so_pin, &|m| m.name() == member, &|m| m.name() == by)
    }

    /// The member whose security officer has to trust one that joins: `None` where no ceremony is due, because the member
    /// has the group keys, the group has none yet, or enrolled itself. The user is logged in.
    pub fn enroller_of(&self, member: &str) -> Option<&Arc<Member>> {
        let keys = |m: &Arc<Member>| m.link().and_then(|link| link.group_keys());
        let lacks_them = self.up().any(|m| m.name() == member && keys(m).is_none());
        let enrolled = |m: &&Arc<Member>| m.name() != member && keys(m).is_some_and(|k| k.enrolled);
        lacks_them.then(|| self.members.iter().filter(|m| m.is_up()).find(enrolled)).flatten()
    }

    /// Gives a member that joins the keys of a group that enrolled itself; where a ceremony is due, or there are no keys yet,
    /// nothing. What fails is logged. The user is logged in.
    pub fn give_keys_to(&self, member: &str) {
        if let Some((member, link)) =
            self.up().find(|m| m.name() == member).and_then(|m| Some((m, m.link()?)))
            && link.group_keys().is_none()
        {
            self.receive_group_keys(member, &link);
        }
    }

    fn ceremony(
        &self,
        user_pin: &[u8],
        so_pin: &[u8],
        wanted: &dyn Fn(&Member) -> bool,
        may_trust: &dyn Fn(&Member) -> bool,
    ) -> Result<()> {
        if self.login.who() != Who::Nobody {
            return Err(Rv::USER_ALREADY_LOGGED_IN);
        }
        let _bootstrap = self.bootstrap.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _host = self.ledger()?.bootstrap_lock(&*self.world).map_err(|e| self.ledger_failed(e))?;
        self.log_in(UserType::User, user_pin)?;
        let done = self.enrol_all(so_pin, wanted, may_trust);
        let out = self.log_out();
        done.and(out)
    }

    fn enrol_all(
        &self,
        so_pin: &[u8],
        wanted: &dyn Fn(&Member) -> bool,
        may_trust: &dyn Fn(&Member) -> bool,
    ) -> Result<()> {
        let group = self.ledger()?.identity().group;
        let mut source = None;
        for member in self.members.iter().filter(|m| m.is_up() && may_trust(m)) {
            let lease = self.lease(member)?;
            if let Some(keys) = group_key::find(lease.on(), &group)?
                && self.recognise_group_keys(&lease, &keys)?
            {
                source = Some((member, keys));
                break;
            }
        }
        let (first, keys) = match source {
            Some((first, keys)) => (first, keys),
            None => {
                self.may_make_group_keys()?;
                let first = self.members.first().ok_or(Rv::DEVICE_ERROR)?;
                let lease = self.lease(first)?;
                let keys = group_key::create(lease.on(), &group, true)?;
                self.recognise_group_keys(&lease, &keys)?;
                (first, keys)
            }
        };
        if !keys.enrolled {
            tracing::error!(group = %self.config.label, "the group has enrolled itself before: its group keys are not trusted ones");
            return Err(Rv::ACTION_PROHIBITED);
        }
        for member in self.members.iter().filter(|m| m.index != first.index && wanted(m)) {
            self.enrol_one(first, member, &group, so_pin)?;
        }
        Ok(())
    }

    fn enrol_one(
        &self,
        first: &Arc<Member>,
        member: &Arc<Member>,
        group: &[u8; 16],
        so_pin: &[u8],
    ) -> Result<()> {
        let there = self.lease(member)?;
        if let Some(theirs) = group_key::find(there.on(), group)? {
            return self.same_keys(first, &there, &theirs, group);
        }
        let key = group_key::begin_enrolment(there.on())?;
        // The security officer's step wants nobody else logged in to the first member's token; the joining member stays
        // logged in, because its new pair is a session object of that login.
        let link = first.link().ok_or(Rv::DEVICE_ERROR)?;
        if self.is_last_try(&link, UserType::So)? {
            self.tell_last_try(first);
            return Err(Rv::PIN_LOCKED);
        }
        link.on_anchor(|anchor| link.token.logout(anchor))?;
        let trusted = group_key::trust(&*link.token, so_pin, &key);
        link.doubt_login();
        let back = self.follow(first, &link);
        trusted.and(back)?;
        let from = self.lease(first)?;
        // The logout made every private handle invalid: the keys are looked up again.
        let keys = group_key::find(from.on(), group)?.ok_or(Rv::KEY_HANDLE_INVALID)?;
        group_key::transfer(from.on(), &keys, there.on(), group, &key).map(drop).map_err(NotMoved::rv)
    }

    /// Whether a member that has group keys has the group's.
    fn same_keys(
        &self,
        first: &Arc<Member>,
        there: &Lease,
        theirs: &GroupKeys,
        group: &[u8; 16],
    ) -> Result<()> {
        let from = self.lease(first)?;
        let keys = group_key::find(from.on(), group)?.ok_or(Rv::KEY_HANDLE_INVALID)?;
        for (mine, other) in
            [(keys.extractable, theirs.extractable), (keys.non_extractable, theirs.non_extractable)]
        {
            if group_key::fingerprint(from.on(), mine)? != group_key::fingerprint(there.on(), other)? {
                tracing::error!(group = %self.config.label, member = there.member.name(), "the member has other group keys than the group");
                return Err(Rv::ENCRYPTED_DATA_INVALID);
            }
        }
        Ok(())
    }
}
