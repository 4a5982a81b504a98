//! Changing PINs: on every member, or on none (guarantee G6: no PIN is guessed while that is found out).

use std::sync::Arc;

use ha_token::{Function, Result, Rv, UserType};

use super::authenticate::log_out;
use super::refused::{Before, REFUSED_BEFORE};
use super::{Group, Link, Member, Who};
use crate::mutants::wrong;
use crate::pin::log_in;
use crate::policy::failure::{Class, classify, outcome_unknown};
use crate::policy::pin::{self, Holds};

type Links<'a> = Vec<(&'a Arc<Member>, Arc<Link>)>;

impl Group {
    /// `C_SetPIN`: on every member, or on none. Every member must be up and have no PIN of its own. `None` leaves the PINs
    /// to a single member's protected authentication path.
    ///
    /// # Errors
    /// `CKR_ACTION_PROHIBITED` where a member has its own PIN, `CKR_DEVICE_ERROR` where one is not up, `CKR_PIN_LOCKED` where
    /// a wrong one would lock a token, else the first member's refusal.
    pub fn change_pin(&self, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<()> {
        let _turn = self.login.turn();
        let user = if self.login.who() == Who::So { UserType::So } else { UserType::User };
        let one = self.one_judge();
        if let Some(Before::Refused(rv)) = old.map(|p| self.refused_before(user, &self.login.hold(p))) {
            self.reporter.refused(Function::SetPin, rv, REFUSED_BEFORE);
            return Err(rv);
        }
        let links = self.all_links(Function::SetPin)?;
        // Which PIN a member has is not known before all is done: until then nobody else logs in to one.
        let held: Vec<Arc<Link>> = links.iter().map(|(_, link)| Arc::clone(link)).collect();
        let _turns: Vec<_> = held.iter().map(|link| link.login_turn()).collect();
        for (member, link) in &links {
            let is_last = self.is_last_try(link, user);
            if is_last.inspect_err(|rv| _ = self.failed(member, link, Function::GetTokenInfo, *rv))? {
                self.tell_last_try(member);
                return Err(Rv::PIN_LOCKED);
            }
        }
        let mut changed: Links<'_> = Vec::new();
        for (member, link) in links {
            let answer = link.with_pin(|anchor| link.token.set_pin(anchor, old, new));
            link.pin_sent(&*self.world, answer);
            let Err(rv) = answer else {
                changed.push((member, link));
                continue;
            };
            if outcome_unknown(Function::SetPin, rv) {
                match self.which_pin(member, &link, user, new) {
                    Holds::New => {
                        tracing::warn!(group = %self.config.label, member = member.name(), %rv, "the member's PIN was changed, whatever it answered");
                        changed.push((member, link));
                        continue;
                    }
                    Holds::Old => {}
                    Holds::Unknown => {
                        tracing::error!(group = %self.config.label, member = member.name(), %rv,
                            "whether the member's PIN was changed could not be found out; the other members keep the old PIN: see to it that this one has it");
                    }
                }
            }
            // Of the codes of PINs this one alone speaks of the old one.
            if let (Rv::PIN_INCORRECT, Some(old)) = (rv, old) {
                let old = self.login.hold(old);
                // Where others took it for theirs, this member has another one.
                match changed.is_empty() {
                    true => self.refuse(member, &link, user, &old, rv),
                    false => self.refuse_on(member, &link, user, self.login.digest(&old), rv),
                }
            }
            self.change_back(&changed, old, new);
            if classify(Function::SetPin, rv) != Class::Caller {
                self.blame(member, Function::SetPin, rv);
            }
            return Err(rv);
        }
        if self.login.who() != Who::Nobody {
            self.login.replace_pin(new.map(|p| self.login.hold(p)));
        }
        self.forgive_all(user);
        drop(one);
        Ok(())
    }

    fn change_back(&self, changed: &Links<'_>, old: Option<&[u8]>, new: Option<&[u8]>) {
        for (member, link) in changed.iter().rev() {
            let answer = link.with_pin(|anchor| link.token.set_pin(anchor, new, old));
            link.pin_sent(&*self.world, answer);
            match answer {
                Ok(()) => {}
                Err(rv) if outcome_unknown(Function::SetPin, rv) => {
                    tracing::error!(group = %self.config.label, member = member.name(), %rv,
                        "the member has the new PIN or the old one: it was to be changed back, as another member refused the new one, and its answer does not tell");
                }
                Err(rv) => {
                    tracing::error!(group = %self.config.label, member = member.name(), %rv,
                        "the member has the new PIN and the others have the old one: another member refused the new one, and this one's could not be changed back");
                }
            }
        }
    }

    /// Which PIN a member has whose answer to a change does not tell: one login with the new one shows it. The old one
    /// was right, so that following the group's login afterwards clears the counter of wrong ones. Whoever calls this has
    /// the connection's login turn.
    fn which_pin(&self, member: &Member, link: &Link, user: UserType, new: Option<&[u8]>) -> Holds {
        // While the change is still being made nothing tells, and the PIN would perhaps be a wrong one.
        if member.pending.left_writes() > 0 && !wrong!(LatePinTried) {
            return Holds::Unknown;
        }
        // A shared instance may be logged in for the host.
        let Some(new) = new.filter(|_| member.connector().reinitialises()) else { return Holds::Unknown };
        link.doubt_login();
        link.set_group_keys(None);
        if log_out(link).is_err() || self.is_last_try(link, user) != Ok(false) {
            return Holds::Unknown;
        }
        let trial = link.with_pin(|anchor| log_in(&*link.token, anchor, user, Some(&self.login.hold(new))));
        link.pin_sent(&*self.world, trial);
        let holds = pin::after_trial(pin::of_login(trial));
        // Should this fail, following the group's login logs out once more.
        _ = log_out(link);
        holds
    }

    /// `C_InitPIN`: on every member. The old PIN is not known, so that nothing can be changed back: what each member has is
    /// told.
    ///
    /// # Errors
    /// As [`Group::change_pin`]; `CKR_USER_NOT_LOGGED_IN` unless the security officer is logged in.
    pub fn init_pin(&self, pin: Option<&[u8]>) -> Result<()> {
        let _turn = self.login.turn();
        if self.login.who() != Who::So {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        let links = self.all_links(Function::InitPin)?;
        for (n, (member, link)) in links.iter().enumerate() {
            let set = || link.with_pin(|anchor| link.token.init_pin(anchor, pin));
            let answer = match set() {
                // Setting the same PIN once more guesses nothing, and shows whether it can be set.
                Err(rv) if outcome_unknown(Function::InitPin, rv) => set(),
                answer => answer,
            };
            // The token may have had no user PIN before.
            _ = link.info_now(&*self.world);
            let Err(rv) = answer else { continue };
            let unknown = outcome_unknown(Function::InitPin, rv);
            if n > 0 || unknown {
                for (m, (other, _)) in links.iter().enumerate() {
                    let has = match m.cmp(&n) {
                        std::cmp::Ordering::Less => "the new user PIN",
                        std::cmp::Ordering::Equal if unknown => "the new user PIN or the one from before",
                        _ => "the user PIN from before",
                    };
                    tracing::error!(group = %self.config.label, member = other.name(), %rv, has,
                        "the members have different user PINs now: set the PIN again");
                }
            }
            if classify(Function::InitPin, rv) != Class::Caller {
                self.blame(member, Function::InitPin, rv);
            }
            return Err(rv);
        }
        self.forgive_all(UserType::User);
        Ok(())
    }

    /// Every member's connection, logged in as the application is; refused where a PIN change could not reach all.
    fn all_links(&self, function: Function) -> Result<Links<'_>> {
        let mut links = Vec::new();
        for member in self.members.iter() {
            if member.config.pin.is_some() {
                let reason = format!("member {:?} has a PIN of its own in the configuration", member.name());
                self.reporter.refused(function, Rv::ACTION_PROHIBITED, &reason);
                return Err(Rv::ACTION_PROHIBITED);
            }
            let Some(link) = member.link().filter(|_| member.is_up()) else {
                let reason = format!(
                    "member {:?} is not up, and a PIN is changed on every member or on none",
                    member.name()
                );
                self.reporter.refused(function, Rv::DEVICE_ERROR, &reason);
                return Err(Rv::DEVICE_ERROR);
            };
            // What it holds, and who is giving it more, is nothing to its PIN.
            let followed = self.follow(member, &link);
            followed.inspect_err(|rv| _ = self.failed(member, &link, Function::Login, *rv))?;
            links.push((member, link));
        }
        Ok(links)
    }
}
