//! The group keys on every member: found, made, and moved to a member that lacks them.

use ha_token::{Result, Rv};

use super::{Group, Lease, Member, Who};
use crate::policy::failure::{Class, classify};
use crate::replica::group_key::{self, GroupKeys};

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
        let _bootstrap = self.bootstrap.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let group = self.ledger()?.identity().group;
        // Two processes that find no keys at once would each make their own.
        let _host = self.ledger()?.bootstrap_lock(&*self.world).map_err(|e| self.ledger_failed(e))?;
        let mut source: Option<(usize, GroupKeys)> = None;
        for (n, writer) in writers.iter().enumerate() {
            if let Some(keys) = group_key::find(writer.on(), &group)? {
                writer.link.set_group_keys(Some(keys));
                source.get_or_insert((n, keys));
            }
        }
        let (from, keys) = match source {
            Some(source) => source,
            None => {
                let first = writers.first().ok_or(Rv::DEVICE_ERROR)?;
                tracing::warn!(group = %self.config.label,
                    "the group enrols itself, without its members' security officers: whoever has the user PIN can get at the keys; `hactl init` and `hactl member add` enrol members with a ceremony");
                let keys = group_key::create(first.on(), &group, false)?;
                first.link.set_group_keys(Some(keys));
                (0, keys)
            }
        };
        let mut kept = Vec::new();
        let all = std::mem::take(writers);
        for n in 0..all.len() {
            let (Some(writer), Some(source)) = (all.get(n), all.get(from)) else { continue };
            if writer.link.group_keys().is_some() {
                kept.push(n);
                continue;
            }
            if keys.enrolled {
                tracing::error!(group = %self.config.label, member = writer.member.name(), "the member has no group keys and cannot be given them without its security officer: it gets no new keys");
                continue;
            }
            let moved = group_key::begin_enrolment(writer.on())
                .and_then(|key| group_key::transfer(source.on(), &keys, writer.on(), &group, &key));
            match moved {
                Ok(there) => {
                    writer.link.set_group_keys(Some(there));
                    kept.push(n);
                }
                Err(rv) => {
                    tracing::error!(group = %self.config.label, member = writer.member.name(), rv = %rv, "the member could not be given the group keys");
                    if classify(ha_token::Function::UnwrapKey, rv) == Class::Member {
                        self.blame(&writer.member, ha_token::Function::UnwrapKey, rv);
                    }
                }
            }
        }
        *writers = all.into_iter().enumerate().filter(|(n, _)| kept.contains(n)).map(|(_, w)| w).collect();
        if writers.len() < self.config.min_copies {
            return Err(Rv::DEVICE_ERROR);
        }
        Ok(())
    }

    /// Looks for the group keys on a member that has just logged in. Without them it gets no new keys, and is asked again
    /// when one is made.
    pub(crate) fn recall_group_keys(&self, lease: &Lease) -> Result<()> {
        if lease.link.group_keys().is_none()
            && let Some(ledger) = &self.ledger
        {
            lease.link.set_group_keys(group_key::find(lease.on(), &ledger.identity().group)?);
        }
        Ok(())
    }

    /// The ceremony for fresh members: the first gets the group keys, every other one is trusted by the first's security
    /// officer and given them. Nobody may be logged in; afterwards the user is not.
    ///
    /// # Errors
    /// The members' answers; what was made stays, and the ceremony can be run again.
    pub fn enrol_with_ceremony(&self, user_pin: &[u8], so_pin: &[u8]) -> Result<()> {
        if self.login.who() != Who::Nobody {
            return Err(Rv::USER_ALREADY_LOGGED_IN);
        }
        let group = self.ledger()?.identity().group;
        let mut members = self.members.iter();
        let first = members.next().ok_or(Rv::DEVICE_ERROR)?;
        self.log_in(ha_token::UserType::User, user_pin)?;
        let keys = {
            let lease = self.lease(first)?;
            match group_key::find(lease.on(), &group)? {
                Some(keys) => keys,
                None => group_key::create(lease.on(), &group, true)?,
            }
        };
        for member in members {
            self.enrol_one(first, &keys, member, &group, user_pin, so_pin)?;
        }
        if self.login.who() == Who::User {
            self.log_out()?;
        }
        Ok(())
    }

    fn enrol_one(
        &self,
        first: &std::sync::Arc<Member>,
        keys: &GroupKeys,
        member: &std::sync::Arc<Member>,
        group: &[u8; 16],
        user_pin: &[u8],
        so_pin: &[u8],
    ) -> Result<()> {
        let there = self.lease(member)?;
        if group_key::find(there.on(), group)?.is_some() {
            return Ok(());
        }
        let key = group_key::begin_enrolment(there.on())?;
        // The security officer's step wants nobody else logged in to the first member's token; the joining member stays
        // logged in, because its new pair is a session object of that login.
        let link = first.link().ok_or(Rv::DEVICE_ERROR)?;
        link.token.logout(link.anchor())?;
        let trusted = group_key::trust(&*link.token, so_pin, &key);
        let back = link.token.login(link.anchor(), ha_token::UserType::User, Some(user_pin));
        trusted.and(back)?;
        let from = self.lease(first)?;
        // The logout made every private handle invalid: the keys are looked up again.
        let keys = group_key::find(from.on(), group)?.unwrap_or(*keys);
        group_key::transfer(from.on(), &keys, there.on(), group, &key).map(drop)
    }
}
