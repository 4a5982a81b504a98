//! `C_InitToken` on the virtual slot: every member's token made anew, and the ledger with them.

use std::sync::Arc;

use ha_token::{Function, Result, Rv, UserType};

use super::{Group, Link, Member, Origin};
use crate::config::InitToken;
use crate::policy::failure::{Class, classify};

impl Group {
    /// `C_InitToken`, by the group's `init_token` setting. The tokens keep their labels, by which the configuration knows
    /// them, and the virtual token keeps the group's. With the first member's success everything of the group is
    /// destroyed for good: a member that then fails destroys its copies when it comes back.
    ///
    /// # Errors
    /// `CKR_ACTION_PROHIBITED` where the group forbids it; `CKR_DEVICE_ERROR` unless every member is up; the first member's
    /// refusal, after which nothing has changed: a wrong PIN is sent to one member only.
    pub(crate) fn initialise(&self, pin: Option<&[u8]>) -> Result<()> {
        if self.config.init_token == InitToken::Refuse {
            let why = "it would wipe every copy of every key; init_token = \"all\" allows it";
            self.reporter.refused(Function::InitToken, Rv::ACTION_PROHIBITED, why);
            return Err(Rv::ACTION_PROHIBITED);
        }
        let _turn = self.login.turn();
        let ledger = self.ledger()?;
        let mut links: Vec<(&Arc<Member>, Arc<Link>)> = Vec::new();
        for member in self.members.iter() {
            let Some(link) = member.link().filter(|_| member.is_up()) else {
                let why = format!("member {:?} is not up, and its copies would stay", member.name());
                self.reporter.refused(Function::InitToken, Rv::DEVICE_ERROR, &why);
                return Err(Rv::DEVICE_ERROR);
            };
            links.push((member, link));
        }
        let mut failed = None;
        for (index, (member, link)) in links.into_iter().enumerate() {
            let answer = self.initialise_one(&link, pin);
            if answer.is_ok() {
                if index == 0 {
                    self.forget_everything()?;
                }
                let renewed = ledger.member_renewed(member.name());
                renewed.map_err(|e| self.ledger_failed(e))?;
            }
            // Its sessions are gone, and its serial number may be another one.
            self.connect_for_call(member);
            if let Err(rv) = answer {
                if classify(Function::InitToken, rv) != Class::Caller {
                    self.blame(member, Function::InitToken, rv);
                }
                if index == 0 {
                    return Err(rv);
                }
                tracing::error!(group = %self.config.label, member = member.name(), %rv,
                    "the member could not be initialised as the others were; what it holds of the group is destroyed when it can be");
                failed = Some(rv);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn initialise_one(&self, link: &Link, pin: Option<&[u8]>) -> Result<()> {
        if self.is_last_try(link, UserType::So)? {
            return Err(Rv::PIN_LOCKED);
        }
        link.token.close_all_sessions()?;
        let answer = link.token.init_token(pin, &link.info.label);
        link.pin_sent(&*self.world, answer);
        answer
    }

    /// Every token object is destroyed, on members that cannot be asked too.
    fn forget_everything(&self) -> Result<()> {
        let ledger = self.ledger()?;
        ledger.forget_group_keys().map_err(|e| self.ledger_failed(e))?;
        for row in ledger.objects().map_err(|e| self.ledger_failed(e))? {
            if row.is_committed() {
                let destroyed = ledger.destroy_begin(row.id, &[]).and_then(|_| ledger.destroy_final(row.id));
                destroyed.map_err(|e| self.ledger_failed(e))?;
            }
        }
        for object in self.objects.select(|o| !matches!(o.origin, Origin::Session(_))) {
            self.forget_object(&object);
        }
        Ok(())
    }
}
