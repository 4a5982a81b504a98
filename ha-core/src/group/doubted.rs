//! Logins that members answer vaguely: the PIN is not sent again and again (guarantee G6).

use ha_token::{Result, Rv, UserType};

use super::{Group, Link, Member};
use crate::pin::Pin;
use crate::policy::doubt::{Doubts, Verdict};
use crate::policy::pin::{self, Answer};

impl Group {
    /// Sends a PIN that another member has accepted, unless it could be the last try.
    pub(super) fn send_accepted(
        &self,
        member: &Member,
        link: &Link,
        user: UserType,
        pin: Option<&Pin>,
    ) -> Result<Answer> {
        let counted = pin::counted(user, link.info_now(&*self.world)?.flags);
        let (login, connection) = (self.login.made(), link.generation);
        if member.doubts().was_refusal(login, counted.any) {
            return Ok(Answer::WrongPin(Rv::PIN_INCORRECT));
        }
        if counted.last {
            self.put_aside(
                member,
                "one more wrong PIN would lock its token, so that none is sent to it; log in to it directly to clear its counter".into(),
            );
            return Err(Rv::PIN_INCORRECT);
        }
        // Its own statement: the lock is not held while it is put aside.
        let verdict = member.doubts().take(login, connection, counted.any);
        if verdict != Verdict::Send {
            self.put_aside_if_never(member, verdict);
            return Err(Rv::DEVICE_ERROR);
        }
        let answer = self.ask(member, link, user, pin);
        let mut doubts = member.doubts();
        match answer {
            Answer::Accepted | Answer::WrongPin(_) => *doubts = Doubts::default(),
            Answer::Failed(rv) | Answer::Refused(rv) if pin::may_have_counted(rv) => {}
            Answer::AlreadyIn | Answer::NotJudged(_) | Answer::Refused(_) | Answer::Failed(_) => {
                doubts.give_back(login, connection);
            }
        }
        Ok(answer)
    }

    /// A member answered the application's own login; `counted`: whether its token told of wrong PINs before. A vague
    /// answer after which it tells of some is a refusal.
    pub(super) fn judged(
        &self,
        member: &Member,
        link: &Link,
        user: UserType,
        counted: bool,
        answer: Answer,
    ) -> Answer {
        let vague = |rv| pin::may_have_counted(rv) && rv != Rv::NO_ANSWER;
        // One that hangs is not asked what it counts: that would be one more deadline.
        let tells = || link.info_now(&*self.world).is_ok_and(|info| pin::counted(user, info.flags).any);
        let answer = match answer {
            Answer::Failed(rv) | Answer::Refused(rv) if vague(rv) && !counted && tells() => {
                Answer::WrongPin(Rv::PIN_INCORRECT)
            }
            answer => answer,
        };
        let mut doubts = member.doubts();
        match answer {
            Answer::Accepted | Answer::WrongPin(_) => *doubts = Doubts::default(),
            // Whoever else accepts the PIN makes it the next login.
            Answer::Failed(rv) | Answer::Refused(rv) if pin::may_have_counted(rv) => {
                doubts.begin(self.login.made() + 1, link.generation, counted);
            }
            Answer::AlreadyIn | Answer::NotJudged(_) | Answer::Refused(_) | Answer::Failed(_) => {}
        }
        answer
    }

    /// Whether the login's PIN may be sent on a connection, as far as vague answers go. Where not in this login at all the
    /// member is put aside.
    pub(super) fn verdict(&self, member: &Member, link: &Link) -> Verdict {
        let verdict = member.doubts().verdict(self.login.made(), link.generation);
        self.put_aside_if_never(member, verdict);
        verdict
    }

    fn put_aside_if_never(&self, member: &Member, verdict: Verdict) {
        if verdict == Verdict::NotAgain {
            self.put_aside(
                member,
                "its answers to the login do not say whether it takes the PIN for a wrong one, which is not sent to it again; see what is wrong with the token, then log in anew".into(),
            );
        }
    }
}
