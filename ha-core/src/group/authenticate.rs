//! Logging in and out: one member is asked first, only an accepted PIN goes to the others (guarantee G6).

use std::sync::Arc;

use ha_token::{Function, Result, Rv, UserType, ck};
use zeroize::Zeroizing;

use super::{Group, Link, Member, Pin, Who};
use crate::policy::failure::{Class, classify};
use crate::policy::health::Event;

/// What follows from a member's answer to a login.
enum Verdict {
    Accepted,
    /// The PIN, or the user's state, was refused: never sent again.
    Refused(Rv),
    /// Something else is wrong with the member.
    Failed(Rv),
}

fn judge(answer: Result<()>) -> Verdict {
    match answer {
        Ok(()) | Err(Rv::USER_ALREADY_LOGGED_IN) => Verdict::Accepted,
        Err(rv) => match classify(Function::Login, rv) {
            Class::Caller => Verdict::Refused(rv),
            Class::Session
            | Class::Login
            | Class::Object
            | Class::Capacity
            | Class::Member
            | Class::Ambiguous => Verdict::Failed(rv),
        },
    }
}

impl Group {
    /// `C_Login` for the user or the security officer.
    ///
    /// # Errors
    /// The standard's codes for the state; the first asked member's refusal; `CKR_DEVICE_ERROR` when no member could be asked.
    pub fn log_in(&self, user: UserType, pin: &[u8]) -> Result<()> {
        let _turn = self.login.turn();
        let who = match user {
            UserType::So => Who::So,
            UserType::User => Who::User,
            UserType::ContextSpecific => return Err(Rv::OPERATION_NOT_INITIALIZED),
        };
        match self.login.who() {
            Who::Nobody => {}
            now if now == who => return Err(Rv::USER_ALREADY_LOGGED_IN),
            Who::User | Who::So => return Err(Rv::USER_ANOTHER_ALREADY_LOGGED_IN),
        }
        if self.login.was_refused(user, pin) {
            self.reporter.refused(
                Function::Login,
                Rv::PIN_INCORRECT,
                "this PIN was refused before and is not sent to a token again",
            );
            return Err(Rv::PIN_INCORRECT);
        }
        let accepted = self.ask_one(user, pin)?;
        self.login.forgive();
        let epoch = self.login.set(who, Some(Zeroizing::new(pin.to_vec())));
        if let Some(link) = self.members.get(accepted).and_then(|m| m.link()) {
            // This one is logged in already; marking it keeps the PIN from being sent twice.
            _ = link.follow(epoch, || Ok(()));
        }
        for member in self.members.iter().filter(|m| m.is_up()) {
            if let Some(link) = member.link()
                && let Err(rv) = self.follow_login(member, &link)
                && classify(Function::Login, rv) != Class::Caller
            {
                self.blame(member, Function::Login, rv);
            }
        }
        self.after_login();
        Ok(())
    }

    /// Sends the PIN to one member after the other until one accepts or refuses it; a member that cannot be asked is
    /// passed over. Answers the index of the one that accepted.
    fn ask_one(&self, user: UserType, pin: &[u8]) -> Result<usize> {
        let mut last_try_only = false;
        let mut pinned_only = true;
        for member in self.members.iter().filter(|m| m.is_up()) {
            if user == UserType::User
                && let Some(own) = self.own_pin(member)
                && own.as_slice() != pin
            {
                continue;
            }
            pinned_only = false;
            let Some(link) = member.link() else { continue };
            match self.is_last_try(&link, user) {
                Ok(false) => {}
                Ok(true) => {
                    tracing::error!(group = %self.config.label, member = member.name(),
                        "one more wrong PIN would lock this token: no PIN is sent to it; log in to it directly to clear its counter");
                    last_try_only = true;
                    continue;
                }
                Err(rv) => {
                    self.blame(member, Function::GetTokenInfo, rv);
                    continue;
                }
            }
            match judge(link.token.login(link.anchor(), user, Some(pin))) {
                Verdict::Accepted => return Ok(member.index),
                Verdict::Refused(rv) => {
                    self.login.refuse(user, pin);
                    return Err(rv);
                }
                Verdict::Failed(rv) => self.blame(member, Function::Login, rv),
            }
        }
        if last_try_only {
            return Err(Rv::PIN_LOCKED);
        }
        if pinned_only && self.up().next().is_some() {
            return Err(Rv::PIN_INCORRECT);
        }
        Err(Rv::DEVICE_ERROR)
    }

    pub(super) fn is_last_try(&self, link: &Link, user: UserType) -> Result<bool> {
        let flags = link.info_now(&*self.world)?.flags;
        Ok(match user {
            UserType::So => flags & ck::CKF_SO_PIN_FINAL_TRY != 0,
            UserType::User | UserType::ContextSpecific => flags & ck::CKF_USER_PIN_FINAL_TRY != 0,
        })
    }

    /// The PIN that the configuration gives this member.
    fn own_pin(&self, member: &Member) -> Option<Pin> {
        let source = member.config.pin.as_ref()?;
        match source.resolve() {
            Ok(pin) => Some(pin),
            Err(error) => {
                tracing::error!(group = %self.config.label, member = member.name(), %error, "the member's configured PIN cannot be had");
                None
            }
        }
    }

    /// Brings a connection's login to what the application's is now. A refused PIN quarantines the member: it is not
    /// sent again.
    ///
    /// # Errors
    /// The member's answer.
    pub(crate) fn follow_login(&self, member: &Arc<Member>, link: &Arc<Link>) -> Result<()> {
        let epoch = self.login.epoch();
        let who = self.login.who();
        link.follow(epoch, || match who {
            Who::Nobody => match link.token.logout(link.anchor()) {
                Ok(()) | Err(Rv::USER_NOT_LOGGED_IN) => Ok(()),
                Err(rv) => Err(rv),
            },
            Who::User | Who::So => {
                let user = if who == Who::So { UserType::So } else { UserType::User };
                let pin = match user {
                    UserType::User if member.config.pin.is_some() => {
                        self.own_pin(member).ok_or(Rv::PIN_INCORRECT)?
                    }
                    _ => self.login.pin().ok_or(Rv::USER_NOT_LOGGED_IN)?,
                };
                if self.is_last_try(link, user)? {
                    self.quarantine(member, Rv::PIN_INCORRECT);
                    return Err(Rv::PIN_INCORRECT);
                }
                match judge(link.token.login(link.anchor(), user, Some(&pin))) {
                    Verdict::Accepted => Ok(()),
                    Verdict::Refused(rv) => {
                        self.quarantine(member, rv);
                        Err(rv)
                    }
                    Verdict::Failed(rv) => Err(rv),
                }
            }
        })?;
        if who == Who::User {
            self.catch_up(member, link)?;
        }
        Ok(())
    }

    fn quarantine(&self, member: &Member, rv: Rv) {
        tracing::error!(group = %self.config.label, member = member.name(), rv = %rv,
            "the member does not accept the PIN that the group is logged in with: it is not used, and the PIN not sent to it again; \
             give it the same PIN, or a `pin` of its own in the configuration");
        self.health_event(member, Event::Quarantine);
    }

    /// `C_Logout`, on every member.
    ///
    /// # Errors
    /// `CKR_USER_NOT_LOGGED_IN`.
    pub fn log_out(&self) -> Result<()> {
        let _turn = self.login.turn();
        if self.login.who() == Who::Nobody {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        self.login.set(Who::Nobody, None);
        for object in self.objects.select(|o| o.private) {
            self.objects.remove(&object);
        }
        for member in &self.members {
            if let Some(link) = member.link() {
                let gone = |v| v == 0 || self.objects.get(ha_token::ObjectHandle(v)).is_err();
                link.unbind_where(gone);
                link.set_group_keys(None);
                if let Err(rv) = self.follow_login(member, &link) {
                    self.blame(member, Function::Logout, rv);
                }
            }
        }
        Ok(())
    }

    /// `C_SetPIN`: on every member, or on none. Every member must be up and have no PIN of its own.
    ///
    /// # Errors
    /// `CKR_ACTION_PROHIBITED` where a member has its own PIN, `CKR_DEVICE_ERROR` where one is not up, else the first member's refusal.
    pub fn change_pin(&self, old: &[u8], new: &[u8]) -> Result<()> {
        let _turn = self.login.turn();
        let links = self.all_links(Function::SetPin)?;
        let mut changed: Vec<&Arc<Link>> = Vec::new();
        for (member, link) in &links {
            if let Err(rv) = link.token.set_pin(link.anchor(), Some(old), Some(new)) {
                for link in &changed {
                    if let Err(rv) = link.token.set_pin(link.anchor(), Some(new), Some(old)) {
                        tracing::error!(group = %self.config.label, rv = %rv, "a member's PIN was changed and could not be changed back");
                    }
                }
                if classify(Function::SetPin, rv) != Class::Caller {
                    self.blame(member, Function::SetPin, rv);
                }
                return Err(rv);
            }
            changed.push(link);
        }
        if self.login.who() != Who::Nobody {
            self.login.replace_pin(Some(Zeroizing::new(new.to_vec())));
        } else {
            self.login.forgive();
        }
        Ok(())
    }

    /// `C_InitPIN`: on every member.
    ///
    /// # Errors
    /// As [`Group::change_pin`]; `CKR_USER_NOT_LOGGED_IN` unless the security officer is logged in.
    pub fn init_pin(&self, pin: &[u8]) -> Result<()> {
        let _turn = self.login.turn();
        if self.login.who() != Who::So {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        for (member, link) in self.all_links(Function::InitPin)? {
            if let Err(rv) = link.token.init_pin(link.anchor(), Some(pin)) {
                if classify(Function::InitPin, rv) != Class::Caller {
                    self.blame(member, Function::InitPin, rv);
                }
                return Err(rv);
            }
        }
        self.login.forgive();
        Ok(())
    }

    /// Every member's connection, logged in as the application is; refused where a PIN change could not reach all.
    fn all_links(&self, function: Function) -> Result<Vec<(&Arc<Member>, Arc<Link>)>> {
        let mut links = Vec::new();
        for member in &self.members {
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
            self.follow_login(member, &link)?;
            links.push((member, link));
        }
        Ok(links)
    }
}
