//! Searching: one member's objects, and those known to live on another one only; each once.

use std::sync::Arc;

use ha_token::{Attribute, ObjectHandle, Result, Rv, SessionHandle, Template, TemplateExt, ck};

use super::VirtualSlot;
use super::run::Call;
use crate::group::{DIFFER, Lease, Need, Object, Origin, Visit, Who};
use crate::mutants::wrong;

/// How often a search is begun again because of what others do meanwhile.
const SEARCHES: usize = 32;

impl VirtualSlot {
    /// `C_FindObjectsInit`: the whole search is made here, so that a member that dies later takes nothing along.
    ///
    /// # Errors
    /// `CKR_OPERATION_ACTIVE`, the members' answers.
    pub(super) fn search(&self, session: SessionHandle, template: &Template) -> Result<()> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        if state.search.is_some() {
            return Err(Rv::OPERATION_ACTIVE);
        }
        state.search = Some(self.find_all(template)?.into_iter());
        Ok(())
    }

    fn find_all(&self, template: &Template) -> Result<Vec<ObjectHandle>> {
        let group = &*self.group;
        // What is not answered as a member has it is compared with that answer: what the ledger says, and what is said of a
        // session key that may be extracted by the group alone.
        let replays = group.replays_session_objects();
        let is_told = |kind| {
            DIFFER.contains(&kind)
                || matches!(kind, ck::CKA_EXTRACTABLE | ck::CKA_NEVER_EXTRACTABLE)
                || (replays && kind == ck::CKA_ALWAYS_SENSITIVE)
        };
        let (told, asked): (Template, Template) = template.iter().cloned().partition(|a| is_told(a.kind));
        group.heed_others();
        let mut failed = 0;
        let mut found = self.find_everywhere(&asked, &mut failed)?;
        for _ in 0..group.members.len() {
            if !found.1 || !replays {
                break;
            }
            found = self.find_everywhere(&asked, &mut failed)?;
        }
        let (mut found, _) = found;
        if !told.is_empty() {
            let types: Vec<_> = told.iter().map(|a| a.kind).collect();
            let mut matching = Vec::new();
            for object in found {
                let is = match self.fetch(&object, &types) {
                    // Destroyed since it was found.
                    Err(Rv::OBJECT_HANDLE_INVALID) => continue,
                    answer => answer?,
                };
                if is.iter().zip(&told).all(|(is, asked)| is.value() == Some(&asked.value)) {
                    matching.push(object);
                }
            }
            found = matching;
        }
        let mut found: Vec<_> = found.into_iter().map(|o| o.handle).collect();
        found.sort_unstable();
        if !wrong!(SearchGivesTwice) {
            found.dedup();
        }
        Ok(found)
    }

    /// What is found on one member, and what only others have; and whether a member was lost in the middle of it, so that
    /// there may be more by now: what is made again.
    /// Those that failed, a bit for each, are given nothing to look for alone.
    fn find_everywhere(&self, template: &Template, failed: &mut u32) -> Result<(Vec<Arc<Object>>, bool)> {
        let group = &*self.group;
        let call = Call { function: ha_token::Function::FindObjectsInit, need: Need::default(), skip: None };
        // One that has fallen behind may lack what the others have; by the end of the search it may have been given it.
        let (mut behind, mut up, failed_before) = (false, 0, *failed);
        let (mut found, lease) = self.run(&call, &mut |lease| {
            behind = group.lacks_some(&lease.member) && !wrong!(BehindSearchBelieved);
            up = group.seats_up();
            group.bring_session_objects(lease, *failed)?;
            for _ in 0..SEARCHES {
                let (found, visit) = self.find_on(lease, template)?;
                let is_in_doubt = found.iter().all(|o| matches!(o.origin, Origin::Session(_)));
                if !is_in_doubt || wrong!(EmptySearchBelieved) {
                    return Ok(found);
                }
                // A lost token finds no token object and says all is well. One that had lost its handles may have been
                // logged out when it was asked.
                group.looks_alive(&lease.member, &lease.link)?;
                if group.visit(&lease.link) == visit {
                    return Ok(found);
                }
            }
            Err(Rv::USER_NOT_LOGGED_IN)
        })?;
        let first = lease.member.index;
        let mut answered = 1 << first;
        drop(lease);
        for member in group.up().filter(|m| m.index != first && (behind || group.has_more(m))) {
            let more = self.on_one(member, &call, &mut |lease| self.find_on(lease, template));
            // A member that fails is left, and what only it has is not there; one that refuses the search has none of it.
            let which = if more.is_err() { &mut *failed } else { &mut answered };
            *which |= 1 << member.index;
            found.extend(more.map(|(found, _)| found).unwrap_or_default());
        }
        let is_of_tokens = template.get_bool(ck::CKA_TOKEN) == Some(true);
        for member in group.drained_hosts().filter(|m| m.index != first && !is_of_tokens) {
            // What else it has the others have, or it is out of use.
            let mut of_sessions = template.clone();
            of_sessions.set(Attribute::bool(ck::CKA_TOKEN, false));
            let more = self.on_one(member, &call, &mut |lease| self.find_on(lease, &of_sessions));
            found.extend(more.map(|(found, _)| found).unwrap_or_default());
        }
        if behind {
            found.extend(group.out_of_reach(template, answered)?);
        }
        let is_less = up & !group.seats_up() != 0 || *failed != failed_before;
        Ok((found, is_less || group.may_have_lost_some()))
    }

    /// The search on one member, within one login there. It is made again when something found is gone a moment later: it
    /// was destroyed, or the token has lost its login or its sessions, and with them its handles. Answers the login, too.
    fn find_on(&self, lease: &Lease, template: &Template) -> Result<(Vec<Arc<Object>>, Option<Visit>)> {
        let group = &*self.group;
        for _ in 0..SEARCHES {
            let visit = group.visit(&lease.link);
            let found = lease.find(template)?;
            let objects = match self.objects_of(lease, found) {
                Err(Rv::OBJECT_HANDLE_INVALID) => continue,
                answer => answer?,
            };
            // A token that has lost its login shows what is public, and says that all is well.
            if group.login.who() == Who::User
                && !objects.iter().any(|o| o.private && !matches!(o.origin, Origin::Session(_)))
                && lease.token().session_info(lease.session)?.state != ck::CKS_RW_USER_FUNCTIONS
            {
                return Err(Rv::USER_NOT_LOGGED_IN);
            }
            // A login that is doubted is another thread's to make again: it may have done so since.
            let is_known = visit.is_some() || group.login.who() != Who::User;
            if is_known && group.visit(&lease.link) == visit {
                return Ok((objects, visit));
            }
        }
        Err(Rv::OBJECT_HANDLE_INVALID)
    }

    fn objects_of(&self, lease: &Lease, found: Vec<ObjectHandle>) -> Result<Vec<Arc<Object>>> {
        let user = self.group.login.who() == Who::User;
        let see = |lease: &Lease, backing| self.group.object_seen(lease, backing);
        let mut objects = self.group.objects_among(lease, found, see)?;
        objects.retain(|object| user || !object.private);
        Ok(objects)
    }

    /// `C_FindObjects`.
    ///
    /// # Errors
    /// `CKR_OPERATION_NOT_INITIALIZED`.
    pub(super) fn found(&self, session: SessionHandle, max: usize) -> Result<Vec<ObjectHandle>> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        let rest = state.search.as_mut().ok_or(Rv::OPERATION_NOT_INITIALIZED)?;
        Ok(rest.by_ref().filter(|h| self.object(*h).is_ok()).take(max).collect())
    }

    /// `C_FindObjectsFinal`.
    ///
    /// # Errors
    /// `CKR_OPERATION_NOT_INITIALIZED`.
    pub(super) fn end_search(&self, session: SessionHandle) -> Result<()> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        state.search.take().map(drop).ok_or(Rv::OPERATION_NOT_INITIALIZED)
    }
}
