//! Logging in and out: one member is asked first, only an accepted PIN goes to the others (guarantee G6).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ha_token::{Function, Result, Rv, UserType};

use super::catch_up::Extent;
use super::changed_pins::has_own_pin;
use super::link::PAUSES;
use super::login::Visit;
use super::refused::{Before, Digest, REFUSED_BEFORE, Refusal};
use super::{Group, Link, Member, Who};
use crate::config::{COMMAND_LIMIT, RecoveryMode};
use crate::mutants::wrong;
use crate::pin::{Pin, log_in};
use crate::policy::doubt::Verdict;
use crate::policy::failure::{Class, classify};
use crate::policy::health::{Event, State, Until};
use crate::policy::pin::{self, Answer, Counted};

/// Before a member that answered a login vaguely is asked once more.
const MOMENT: Duration = Duration::from_millis(40);

/// Where a PIN that may be sent to a member comes from.
struct Sendable {
    pin: Option<Pin>,
    /// The configuration's, not the application's.
    own: bool,
}

impl Group {
    /// `C_Login` for the user or the security officer.
    ///
    /// # Errors
    /// The standard's codes for the state; the first asked member's refusal; `CKR_DEVICE_ERROR` when no member could be asked.
    pub fn log_in(&self, user: UserType, pin: &[u8]) -> Result<()> {
        self.log_in_when(user, Some(Pin::new(pin, b"")), &|| Ok(()))
    }

    /// As [`log_in`](Self::log_in), if `ready` says so once no other login or logout is under way. `None` leaves the PIN
    /// to a single member's protected authentication path.
    ///
    /// # Errors
    /// As [`log_in`](Self::log_in); those of `ready`.
    pub(crate) fn log_in_when(
        &self,
        user: UserType,
        pin: Option<Pin>,
        ready: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let who = match user {
            UserType::So => Who::So,
            UserType::User => Who::User,
            UserType::ContextSpecific => return Err(Rv::OPERATION_NOT_INITIALIZED),
        };
        let _turn = self.login.turn();
        let _coming = (who == Who::So).then(|| self.login.so_comes());
        ready()?;
        match self.login.who() {
            Who::Nobody => {}
            now if now == who && self.is_of(pin.as_ref()) => return Err(Rv::USER_ALREADY_LOGGED_IN),
            Who::User | Who::So => return Err(Rv::USER_ANOTHER_ALREADY_LOGGED_IN),
        }
        let one = self.one_judge();
        self.note_pins_set(user);
        let fresh = match pin.as_ref().map(|p| self.refused_before(user, p)) {
            Some(Before::Refused(rv)) => {
                self.reporter.refused(Function::Login, rv, REFUSED_BEFORE);
                return Err(rv);
            }
            Some(Before::Over(member)) => Some(member),
            Some(Before::Nothing) | None => None,
        };
        self.look_after();
        let fresh = match fresh {
            Some(member) => {
                // Its instance may not know the PIN that it has now.
                if self.may_hold_an_old_pin(member, user) && self.is_idle(member) {
                    self.connect_for_pin(member);
                }
                Some(member)
            }
            None => pin.as_ref().and_then(|p| self.see_changed_pins(user, &self.login.digest(p))),
        };
        let (accepted, judge) = self.ask_one(user, pin.as_ref(), fresh)?;
        drop(one);
        let changed = fresh.is_some_and(|fresh| Arc::ptr_eq(fresh, accepted));
        if changed {
            accepted.refused.forget(user);
        }
        judge.lead(|| self.login.set(who, pin));
        for member in self.members.iter() {
            if Arc::ptr_eq(member, accepted) {
                continue;
            }
            self.given_anew(member, user);
            self.carry(member, user, changed);
        }
        if who == Who::User {
            self.after_login();
        }
        Ok(())
    }

    /// Whether who is logged in has the name that this PIN was given with.
    pub(crate) fn is_of(&self, pin: Option<&Pin>) -> bool {
        let login = self.login.pin();
        login.as_ref().map_or(&[][..], Pin::user_name) == pin.map_or(&[][..], Pin::user_name)
    }

    /// Logs a member in with the PIN that another one has accepted. Where PINs were changed elsewhere its instance may not
    /// know of it: it is connected anew, before if that ends nothing, else only if it refuses the PIN.
    fn carry(&self, member: &Arc<Member>, user: UserType, changed: bool) {
        // One that has just been connected may have followed already.
        let ahead = |link: &Arc<Link>| member.is_up() && !link.has_followed(self.login.epoch());
        let Some(link) = member.link().filter(ahead) else { return };
        let may_hold_old = changed && self.may_hold_an_old_pin(member, user);
        if may_hold_old && self.is_idle(member) {
            self.connect_for_pin(member);
        } else if let Err(rv) = self.follow(member, &link) {
            if may_hold_old && matches!(pin::of_login(Err(rv)), Answer::WrongPin(_)) {
                self.forget_refused_on(member, user);
                self.look_again(member);
            } else if classify(Function::Login, rv) != Class::Caller {
                self.blame(member, Function::Login, rv);
            }
        }
    }

    /// The application has given its PIN anew, and a member has accepted it: one that was put aside because it refused
    /// another one, or because its PIN was locked, may be asked; and one that can tell that its count was cleared since.
    fn given_anew(&self, member: &Arc<Member>, user: UserType) {
        let digest = self.login.pin().map(|p| self.login.digest(&p));
        let own = has_own_pin(member, user);
        // A token whose PIN is locked looks at none.
        let another = |d: &Digest, r: &Refusal| digest != Some(*d) || r.rv == Rv::PIN_LOCKED;
        let tells = digest.and_then(|d| member.refused.answer(user, &d)).is_some_and(|r| r.counted);
        let refused = !own && (member.refused.forget_where(user, another) || tells);
        if refused || member.doubts().is_used_up() {
            self.look_again(member);
        }
    }

    /// A member that was put aside for its PIN is connected anew.
    fn look_again(&self, member: &Arc<Member>) {
        if member.state() != State::Quarantined {
            return;
        }
        // A PIN is not what it was put aside for.
        if member.health().waits_for_somebody() {
            return;
        }
        self.health_event(member, Event::Recover);
        if self.config.recovery.mode == RecoveryMode::Manual {
            // Nobody else would do it.
            self.connect_for_call(member);
        }
    }

    /// Sends the PIN to one member after the other until one accepts or refuses it; a member that cannot judge it is
    /// passed over. Answers the one that accepted, and in which connection. `fresh` is asked first.
    fn ask_one<'a>(
        &'a self,
        user: UserType,
        pin: Option<&Pin>,
        fresh: Option<&'a Arc<Member>>,
    ) -> Result<(&'a Arc<Member>, Arc<Link>)> {
        let digest = pin.map(|p| self.login.digest(p));
        let mut passed = None;
        let mut refused_before = None;
        let (mut skipped, mut tried) = (false, false);
        let is_fresh = |m: &Arc<Member>| fresh.is_some_and(|fresh| Arc::ptr_eq(fresh, m));
        let others = self.members.iter().filter(|m| !is_fresh(m));
        for member in fresh.into_iter().chain(others).filter(|m| m.is_up()) {
            match self.own_pin(member, user) {
                Ok(Some(own)) if pin.is_some_and(|p| **p != *own) => {
                    skipped = true;
                    continue;
                }
                Ok(_) => {}
                Err(()) => {
                    tried = true;
                    continue;
                }
            }
            tried = true;
            let Some(link) = member.link() else { continue };
            if let Some(rv) = digest.and_then(|d| self.refused_on(member, &link, user, &d)) {
                refused_before.get_or_insert(rv);
                continue;
            }
            match self.judge(member, &link, user, pin) {
                Answer::Accepted => {
                    self.logged_in(member, &link, user, pin);
                    return Ok((member, link));
                }
                Answer::WrongPin(rv) => {
                    match (pin, digest) {
                        // It had another PIN than the rest, and may still have: should the application insist, one of
                        // those is to judge, and no token has seen the PIN twice.
                        (Some(_), Some(digest)) if is_fresh(member) => {
                            self.refuse_on(member, &link, user, digest, rv);
                        }
                        (Some(pin), _) => self.refuse(member, &link, user, pin, rv),
                        (None, _) => {}
                    }
                    if wrong!(WrongPinGoesOn) {
                        passed = Some(rv);
                        continue;
                    }
                    return Err(rv);
                }
                Answer::Refused(rv) => return Err(rv),
                Answer::AlreadyIn => {
                    tracing::warn!(group = %self.config.label, member = member.name(),
                        "somebody else in this process is logged in to the member's module: the member cannot tell whether the PIN is right");
                    passed.get_or_insert(Rv::USER_ALREADY_LOGGED_IN);
                }
                Answer::NotJudged(rv) => _ = passed.get_or_insert(rv),
                Answer::Failed(rv) => self.blame(member, Function::Login, rv),
            }
        }
        if let Some(rv) = passed {
            return Err(rv);
        }
        if let Some(rv) = refused_before.filter(|_| self.members.iter().all(|m| m.is_up())) {
            return Err(rv);
        }
        if skipped && !tried {
            return Err(Rv::PIN_INCORRECT);
        }
        Err(Rv::DEVICE_ERROR)
    }

    /// Sends a PIN to a member to which nobody is logged in: otherwise it would not look at the PIN.
    fn judge(&self, member: &Member, link: &Link, user: UserType, pin: Option<&Pin>) -> Answer {
        if let Err(rv) = self.follow(member, link) {
            return Answer::Failed(rv);
        }
        match link.info_now(&*self.world).map(|info| pin::counted(user, info.flags)) {
            Ok(Counted { last: false, any }) => {
                let answer = match self.ask(member, link, user, pin) {
                    // In an instance of our own it is we who are, after a logout that failed.
                    Answer::AlreadyIn if member.connector().reinitialises() => match log_out(link) {
                        Ok(()) => self.ask(member, link, user, pin),
                        Err(rv) => Answer::Failed(rv),
                    },
                    answer => answer,
                };
                self.judged(member, link, user, any, answer)
            }
            Ok(Counted { last: true, .. }) => {
                self.tell_last_try(member);
                Answer::NotJudged(Rv::PIN_LOCKED)
            }
            Err(rv) => Answer::Failed(rv),
        }
    }

    /// `C_Login` on a member. In an instance of our own it is we who were logged in as another user; we log out first.
    /// SoftHSM takes a token for one without a PIN, and looks at none, for a moment while another process writes to it.
    pub(super) fn ask(&self, member: &Member, link: &Link, user: UserType, pin: Option<&Pin>) -> Answer {
        if wrong!(PinLogged) {
            tracing::debug!(pin = ?pin.map(|p| String::from_utf8_lossy(p)), "logs in");
        }
        let once = || {
            let answer = link.with_pin(|anchor| log_in(&*link.token, anchor, user, pin));
            link.pin_sent(&*self.world, answer);
            pin::of_login(answer)
        };
        let login = || {
            for pause in PAUSES {
                match once() {
                    Answer::NotJudged(Rv::USER_PIN_NOT_INITIALIZED) => {
                        _ = self.world.event().wait(Some(pause));
                    }
                    answer => return answer,
                }
            }
            once()
        };
        match login() {
            Answer::NotJudged(Rv::USER_ANOTHER_ALREADY_LOGGED_IN) if member.connector().reinitialises() => {
                match log_out(link) {
                    Ok(()) => login(),
                    Err(rv) => Answer::Failed(rv),
                }
            }
            answer => answer,
        }
    }

    pub(super) fn tell_last_try(&self, member: &Member) {
        tracing::error!(group = %self.config.label, member = member.name(),
            "one more wrong PIN would lock this token: no PIN is sent to it; log in to it directly to clear its counter");
    }

    pub(super) fn is_last_try(&self, link: &Link, user: UserType) -> Result<bool> {
        Ok(pin::counted(user, link.info_now(&*self.world)?.flags).last)
    }

    /// The PIN that the configuration gives this member; the error, when it cannot be had, is told here.
    fn own_pin(&self, member: &Member, user: UserType) -> std::result::Result<Option<Pin>, ()> {
        let Some(source) = member.config.pin.as_ref().filter(|_| user == UserType::User) else {
            return Ok(None);
        };
        let limit = self.config.deadline.map_or(COMMAND_LIMIT, |d| d.max(COMMAND_LIMIT));
        match source.resolve_within(limit) {
            Ok(pin) => Ok(Some(self.login.hold(&pin))),
            Err(error) => {
                tracing::error!(group = %self.config.label, member = member.name(), %error,
                    "the member's configured PIN cannot be had: the member is left out, and sent no other one");
                Err(())
            }
        }
    }

    /// The one PIN that a member may be sent to follow the application's login: its own, where it has one.
    fn pin_for(&self, member: &Member, user: UserType) -> Result<Sendable> {
        match self.own_pin(member, user) {
            Ok(Some(own)) => Ok(Sendable { pin: Some(own), own: true }),
            // After a login without a PIN there is nothing to follow with.
            Ok(None) => match self.login.pin() {
                Some(pin) => Ok(Sendable { pin: Some(pin), own: false }),
                None => Err(Rv::USER_NOT_LOGGED_IN),
            },
            Err(()) => Err(Rv::PIN_INCORRECT),
        }
    }

    /// A member accepted a PIN.
    fn logged_in(&self, member: &Member, link: &Link, user: UserType, pin: Option<&Pin>) {
        member.logged_in.store(true, Ordering::Release);
        self.accepted_on(member, user);
        self.note_own_pin(member, link, user, pin);
    }

    /// Notes with which PIN a member is logged in, where that is not the application's.
    fn note_own_pin(&self, member: &Member, link: &Link, user: UserType, pin: Option<&Pin>) {
        let own = has_own_pin(member, user);
        link.set_own_pin(pin.filter(|_| own).cloned());
    }

    /// Brings a connection's login to what the application's is now, and the member up to date if that logged it in. A
    /// refused PIN puts the member aside: it is not sent again.
    ///
    /// # Errors
    /// The member's answer.
    pub(crate) fn follow_login(&self, member: &Arc<Member>, link: &Arc<Link>) -> Result<()> {
        self.follow_login_to(member, link, Extent::Whole)
    }

    /// As [`follow_login`](Self::follow_login), where the member may not be brought up to date to the end.
    ///
    /// # Errors
    /// The member's answer.
    pub(super) fn follow_login_to(
        &self,
        member: &Arc<Member>,
        link: &Arc<Link>,
        extent: Extent,
    ) -> Result<()> {
        self.follow(member, link)?;
        if self.login.who() == Who::User {
            self.catch_up(member, link, extent)?;
        }
        Ok(())
    }

    /// The user's login on a connection, if it is made there.
    pub(crate) fn visit(&self, link: &Link) -> Option<Visit> {
        let visit = Visit { login: link.logins(), losses: link.losses(), epoch: self.login.epoch() };
        (self.login.who() == Who::User && link.has_followed(visit.epoch)).then_some(visit)
    }

    /// The user's login on each connection of a member that is up.
    pub(super) fn visits(&self) -> Vec<(u64, Option<Visit>)> {
        self.up().filter_map(|m| m.link()).map(|link| (link.generation, self.visit(&link))).collect()
    }

    /// As [`follow_login`](Self::follow_login), without bringing the member up to date.
    ///
    /// # Errors
    /// The member's answer.
    pub(super) fn follow(&self, member: &Member, link: &Link) -> Result<()> {
        link.follow(
            || self.login.epoch(),
            || match self.login.who() {
                Who::Nobody => self.leave(member, link),
                Who::User => self.enter(member, link, UserType::User),
                Who::So => self.enter(member, link, UserType::So),
            },
        )
    }

    fn leave(&self, member: &Member, link: &Link) -> Result<()> {
        link.set_own_pin(None);
        // The host is not logged out of an instance that is shared with it.
        if member.logged_in.load(Ordering::Acquire) || member.connector().reinitialises() {
            log_out(link)?;
        }
        // Handles of private objects went with the login, whoever looked them up last.
        link.set_group_keys(None);
        member.logged_in.store(false, Ordering::Release);
        Ok(())
    }

    /// Logs a member in as the application is: with a PIN that a member accepted.
    fn enter(&self, member: &Member, link: &Link, user: UserType) -> Result<()> {
        let Sendable { pin, own } = match self.pin_for(member, user) {
            Ok(sendable) => sendable,
            Err(rv @ Rv::PIN_INCORRECT) => {
                self.put_aside(member, "its configured `pin` cannot be had".into());
                return Err(rv);
            }
            Err(rv) => return Err(rv),
        };
        let digest = pin.as_ref().map(|p| self.login.digest(p));
        let whose = if own { "its configured `pin`" } else { "the PIN that the group is logged in with" };
        if let Some(rv) = digest.and_then(|d| self.refused_on(member, link, user, &d)) {
            self.put_aside(member, refusal(whose, rv));
            return Err(rv);
        }
        let mut answer = self.send_accepted(member, link, user, pin.as_ref())?;
        if let Answer::Failed(rv) = answer
            && classify(Function::Login, rv) == Class::Ambiguous
            && self.verdict(member, link) == Verdict::Send
        {
            // SoftHSM says so for a moment while another process writes.
            _ = self.world.event().wait(Some(MOMENT));
            answer = self.send_accepted(member, link, user, pin.as_ref())?;
        }
        match answer {
            Answer::Accepted => {
                if link.is_login_doubted() {
                    self.handles_went(member, link);
                }
                self.logged_in(member, link, user, pin.as_ref());
            }
            // What is followed is a PIN that was verified elsewhere.
            Answer::AlreadyIn => self.note_own_pin(member, link, user, pin.as_ref()),
            Answer::WrongPin(rv) | Answer::NotJudged(rv @ Rv::PIN_LOCKED) => {
                if let Some(digest) = digest {
                    self.refuse_on(member, link, user, digest, rv);
                }
                self.put_aside(member, refusal(whose, rv));
                return Err(rv);
            }
            Answer::NotJudged(rv) | Answer::Refused(rv) => {
                self.put_aside(member, format!("it answered {rv} to the login"));
                return Err(rv);
            }
            Answer::Failed(rv) => {
                // Should that have been the last time it is put aside.
                self.verdict(member, link);
                return Err(rv);
            }
        }
        Ok(())
    }

    /// Takes a member that cannot be logged in out of use, until it can be.
    pub(super) fn put_aside(&self, member: &Member, reason: String) {
        if member.connect_error().as_deref() != Some(&reason) {
            tracing::error!(group = %self.config.label, member = member.name(), reason, "member is not used");
        }
        member.set_connect_error(Some(reason));
        self.health_event(member, Event::Quarantine(Until::Mended));
    }

    /// `C_Logout`, on every member.
    ///
    /// # Errors
    /// `CKR_USER_NOT_LOGGED_IN`.
    pub fn log_out(&self) -> Result<()> {
        self.log_out_when(&|| true)
    }

    /// As [`log_out`](Self::log_out), if `due` says so once no other login or logout is under way.
    ///
    /// # Errors
    /// `CKR_USER_NOT_LOGGED_IN`.
    pub(crate) fn log_out_when(&self, due: &dyn Fn() -> bool) -> Result<()> {
        let _turn = self.login.turn();
        if self.login.who() == Who::Nobody {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        if due() {
            self.log_out_now();
        }
        Ok(())
    }

    /// Logs out on every member. Whoever calls this has the turn.
    pub(crate) fn log_out_now(&self) {
        self.login.set(Who::Nobody, None);
        for object in self.objects.select(|o| o.private) {
            self.forget_object(&object);
        }
        // Also where one that has left still has session objects.
        for member in self.members.seats() {
            if let Some(link) = member.link() {
                let gone = |v| v == 0 || self.objects.get(ha_token::ObjectHandle(v)).is_err();
                link.unbind_where(gone);
                link.set_group_keys(None);
                if let Err(rv) = self.follow(member, &link) {
                    self.blame(member, Function::Logout, rv);
                }
            }
        }
    }
}

/// `C_Logout` on a member, whoever was logged in.
pub(super) fn log_out(link: &Link) -> Result<()> {
    match link.on_anchor(|anchor| link.token.logout(anchor)) {
        Ok(()) | Err(Rv::USER_NOT_LOGGED_IN) => Ok(()),
        Err(rv) => Err(rv),
    }
}

fn refusal(whose: &str, rv: Rv) -> String {
    format!(
        "it answered {rv} to {whose}, which is not sent to it again; give it the group's PIN, or its right one as `pin` in the configuration, then run `hactl member recover`, which also happens by itself where the token tells that wrong PINs are no longer counted"
    )
}
