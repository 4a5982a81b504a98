//! The PIN that the use of one key wants (`CKA_ALWAYS_AUTHENTICATE`), in an operation and in a proof (guarantee G6).

use std::cell::Cell;
use std::sync::Arc;

use ha_token::{Function, Result, Rv, Ulong, UserType, ck};

use super::refused::{Before, REFUSED_BEFORE};
use super::{Group, Lease, Link, Member};
use crate::pin::{Pin, log_in};
use crate::policy::pin::{self, Answer};

/// What a member answers that cannot be asked for its own reasons: another one may serve, and nobody is suspected.
pub(crate) const NOT_HERE: Rv = Rv::FUNCTION_NOT_SUPPORTED;

/// What is known of a PIN for `CKU_CONTEXT_SPECIFIC`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// The application gave it, and no member has seen it yet.
    Given,
    /// The application gave it, and it is the one that it is logged in with.
    OfLogin,
    /// A member accepted it for this operation.
    Accepted,
}

impl Group {
    /// How a PIN for `CKU_CONTEXT_SPECIFIC` stands before a member has seen it.
    ///
    /// # Errors
    /// The answer of the member that refused it before.
    pub(crate) fn standing(&self, pin: Option<&Pin>) -> Result<Standing> {
        let Some(pin) = pin else { return Ok(Standing::Given) };
        if let Before::Refused(rv) = self.refused_before(UserType::ContextSpecific, pin) {
            self.reporter.refused(Function::Login, rv, REFUSED_BEFORE);
            return Err(rv);
        }
        Ok(match self.login.pin() {
            Some(login) if login == *pin => Standing::OfLogin,
            _ => Standing::Given,
        })
    }

    /// `C_Login` with `CKU_CONTEXT_SPECIFIC` in a backing session, with the member's own PIN where it has one. A PIN that
    /// is not known to be right goes to no member that has its own: that one could not judge it.
    ///
    /// Who may have counted it stands in `doubtful` from then on, a bit for each member, and is not sent it again.
    ///
    /// # Errors
    /// The member's refusal of a PIN that it was the first to see; otherwise an answer that lets another member serve.
    pub(crate) fn context_login(
        &self,
        lease: &Lease,
        pin: Option<&Pin>,
        standing: Standing,
        doubtful: &Cell<u32>,
    ) -> Result<()> {
        const USER: UserType = UserType::ContextSpecific;
        let (member, link) = (&*lease.member, &*lease.link);
        let own = link.own_pin();
        let sent = match (&own, pin) {
            (None, pin) => pin,
            (Some(own), Some(pin)) if standing != Standing::Given || **own == **pin => Some(own),
            (Some(_), _) => return Err(NOT_HERE),
        };
        let foreign = own.is_some();
        if sent.is_some_and(|p| self.refused_on(member, link, USER, &self.login.digest(p)).is_some()) {
            return Err(NOT_HERE);
        }
        let bit = 1 << member.index;
        if doubtful.get() & bit != 0 {
            return Err(NOT_HERE);
        }
        if self.is_last_try(link, USER)? {
            self.tell_last_try(member);
            return Err(NOT_HERE);
        }
        let answer = log_in(lease.token(), lease.session, USER, sent);
        link.pin_sent(&*self.world, answer);
        if answer.is_err_and(pin::may_have_counted) {
            doubtful.set(doubtful.get() | bit);
        }
        match pin::of_login(answer) {
            Answer::Accepted => Ok(()),
            Answer::WrongPin(rv) => {
                if let Some(sent) = sent {
                    self.refuse_on(member, link, USER, self.login.digest(sent), rv);
                }
                if standing == Standing::Accepted || (foreign && standing == Standing::OfLogin) {
                    tracing::error!(group = %self.config.label, member = member.name(), %rv,
                        "the member refused a PIN for the use of a key that another one accepts: it does not serve with such keys");
                    return Err(NOT_HERE);
                }
                if let Some(pin) = pin {
                    self.refuse(member, link, USER, pin, rv);
                }
                Err(rv)
            }
            Answer::NotJudged(Rv::PIN_LOCKED) => {
                tracing::error!(group = %self.config.label, member = member.name(), "the member's PIN is locked");
                Err(NOT_HERE)
            }
            Answer::AlreadyIn => Err(Rv::USER_ALREADY_LOGGED_IN),
            Answer::NotJudged(rv) | Answer::Refused(rv) | Answer::Failed(rv) => Err(rv),
        }
    }

    /// What the application is told when no member could be asked about its PIN for a key's use.
    pub(crate) fn context_answer(&self, rv: Rv) -> Rv {
        let last = |m: &Arc<Member>| {
            m.link().is_some_and(|l| self.is_last_try(&l, UserType::ContextSpecific) == Ok(true))
        };
        match rv {
            NOT_HERE if self.up().any(last) => Rv::PIN_LOCKED,
            NOT_HERE => Rv::PIN_INCORRECT,
            rv => rv,
        }
    }

    /// The PIN that a member's keys with `CKA_ALWAYS_AUTHENTICATE` want: the one it was logged in with.
    fn pin_of(&self, link: &Link) -> Option<Pin> {
        link.own_pin().or_else(|| self.login.pin())
    }

    /// The PIN that a proof on a member may use for a private key that wants a login for each use; none where the member
    /// would take one more wrong PIN for the last, or has refused it.
    pub(crate) fn proof_pin(&self, lease: &Lease, class: Ulong) -> Option<Pin> {
        let pin = self.pin_of(&lease.link).filter(|_| class == ck::CKO_PRIVATE_KEY)?;
        let digest = self.login.digest(&pin);
        let refused =
            self.refused_on(&lease.member, &lease.link, UserType::ContextSpecific, &digest).is_some();
        let sound = || self.is_last_try(&lease.link, UserType::ContextSpecific) == Ok(false);
        (!refused && sound()).then_some(pin)
    }

    /// A proof with this PIN ended with that answer: a PIN that was refused is not sent again.
    pub(crate) fn proof_ended(&self, lease: &Lease, pin: Option<&Pin>, rv: Rv) {
        if let (Some(pin), Answer::WrongPin(rv)) = (pin, pin::of_login(Err(rv))) {
            lease.link.pin_sent(&*self.world, Err(rv));
            let digest = self.login.digest(pin);
            self.refuse_on(&lease.member, &lease.link, UserType::ContextSpecific, digest, rv);
        }
    }
}
