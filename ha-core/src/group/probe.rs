//! Whether a member still is what it was: asked of suspect ones and of idle ones, and after answers that leave it open.

use std::sync::Arc;
use std::time::Duration;

use ha_token::{Function, Rv, ck};

use super::writers::open_lease;
use super::{Group, Lease, Link, Member, Who};
use crate::mutants::wrong;
use crate::policy::failure::{Class, classify};
use crate::policy::health::Event;
use crate::replica::group_key;

impl Group {
    /// Asks a suspect member whether it still is what it was.
    pub(super) fn probe(&self, member: &Arc<Member>) {
        let started = self.world.now();
        let alive = member.link().ok_or(Rv::DEVICE_ERROR).and_then(|link| {
            match self.looks_alive(member, &link) {
                // All that it has lost is its login: what it holds is seen with that.
                Err(Rv::USER_NOT_LOGGED_IN) => {
                    self.follow(member, &link)?;
                    self.looks_alive(member, &link)?;
                }
                answer => answer?,
            }
            member.set_round_trip(self.world.now().saturating_sub(started));
            self.wait_for_what_hangs(member, &link)?;
            Ok(link)
        });
        let answer = match alive {
            // One that cannot be logged in is not up: the next who used it would find the same.
            Ok(link) => self.follow(member, &link).map_err(|rv| (Function::Login, rv)),
            Err(rv) => Err((Function::GetTokenInfo, rv)),
        };
        match answer {
            Ok(()) => self.health_event(member, Event::ProbeSucceeded),
            Err((function, rv)) => {
                self.note(member, function, rv);
                self.health_event(member, Event::ProbeFailed);
            }
        }
    }

    /// Waits for calls that were left behind in a member that answers: it may hang in one function only, and would cost each
    /// who uses that a deadline. They may take once more as long as they had.
    ///
    /// # Errors
    /// [`Rv::NO_ANSWER`] when one has not returned: the member is to be connected anew.
    fn wait_for_what_hangs(&self, member: &Member, link: &Link) -> Result<(), Rv> {
        let until = self.world.now() + self.config.deadline.unwrap_or_default();
        while link.hangs() && !self.is_stopping() && !wrong!(HangingTakenBack) {
            let now = self.world.now();
            if now >= until {
                return Err(Rv::NO_ANSWER);
            }
            // Not told of each.
            member.wake.wait(Some((until - now).min(Duration::from_millis(100))));
        }
        Ok(())
    }

    /// Asks a member that is up whether it still is what it was; one that is not is blamed. Answers whether it has lost its
    /// login, which is made again when it is next used.
    pub(super) fn look_at(&self, member: &Arc<Member>) -> bool {
        let Some(link) = member.link() else { return false };
        match self.looks_alive(member, &link) {
            Ok(()) => false,
            Err(Rv::USER_NOT_LOGGED_IN) => true,
            // Busy it is.
            Err(rv) if classify(Function::GetTokenInfo, rv) == Class::Capacity => false,
            Err(dead) => {
                self.blame_on(member, &link, Function::GetTokenInfo, dead);
                false
            }
        }
    }

    /// Whether the token answers and holds what it must hold: a lost SoftHSM token looks healthy otherwise. One that has
    /// lost its handles while nobody used it is alive: the group keys are found again, and what was seen before is of
    /// another [`visit`](Group::visit).
    ///
    /// # Errors
    /// The member's answer; `CKR_USER_NOT_LOGGED_IN` when it has lost its login, which is made again when it is next used;
    /// `CKR_DEVICE_REMOVED` when an object that must be there is not.
    pub(crate) fn looks_alive(&self, member: &Arc<Member>, link: &Arc<Link>) -> Result<(), Rv> {
        let anchor = link.probe(&*self.world)?;
        if wrong!(LostTokenBelieved) || self.login.who() != Who::User {
            return Ok(());
        }
        let class = [ck::CKA_CLASS];
        let sees = |key| {
            link.on_anchor(|anchor| link.watched().get_attributes(anchor, key, &class).map(drop)).is_ok()
        };
        match link.group_keys() {
            Some(keys) if !sees(keys.extractable) => self.finds_itself(member, link),
            // Another process may have made the keys since the login, so that they are not known here.
            None if anchor.state != ck::CKS_RW_USER_FUNCTIONS => {
                link.doubt_login();
                Err(Rv::USER_NOT_LOGGED_IN)
            }
            _ => Ok(()),
        }
    }

    /// A token does not know the group keys by their handles: it has lost its login, or its handles, or itself.
    ///
    /// # Errors
    /// `CKR_USER_NOT_LOGGED_IN` where it is the first, and `CKR_DEVICE_REMOVED` where it is the last; the member's answers.
    fn finds_itself(&self, member: &Arc<Member>, link: &Arc<Link>) -> Result<(), Rv> {
        let anchor = link.on_anchor(|anchor| link.watched().session_info(anchor))?;
        if anchor.state != ck::CKS_RW_USER_FUNCTIONS {
            // What was not seen meanwhile may be there.
            link.doubt_login();
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        let ledger = self.ledger.as_ref().ok_or(Rv::DEVICE_REMOVED)?;
        // The sessions of its pool went with the handles perhaps.
        let (lease, _) = open_lease(|| Lease::new(member, Arc::clone(link)))?;
        match group_key::find(lease.on(), &ledger.identity().group)? {
            Some(keys) if self.recognise_group_keys(&lease, &keys)? => {
                link.set_group_keys(Some(keys));
                link.has_new_handles();
                Ok(())
            }
            _ => Err(Rv::DEVICE_REMOVED),
        }
    }

    /// Whether a member that answered with an error of this class has lost its token, as SoftHSM may: it answers so, and
    /// looks healthy otherwise. It is then blamed.
    pub(crate) fn is_lost(&self, member: &Arc<Member>, link: &Arc<Link>, class: Class) -> bool {
        let dead = match class {
            Class::Object | Class::Ambiguous => self.looks_alive(member, link).err(),
            Class::Caller | Class::Session | Class::Login | Class::Capacity | Class::Member => None,
        };
        if let Some(dead) = dead {
            self.blame_on(member, link, Function::GetTokenInfo, dead);
        }
        dead.is_some()
    }

    /// What it is taken for that a member gave no backing session; its health knows of it.
    pub(crate) fn not_lent(&self, member: &Arc<Member>, rv: Rv) -> Class {
        let Some(link) = member.link() else { return Class::Member };
        match self.failed(member, &link, Function::OpenSession, rv) {
            Class::Caller => Class::Member,
            class if self.is_lost(member, &link, class) => Class::Member,
            class => class,
        }
    }
}
