//! One change of a group: what is needed for it, and held while it goes on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use ha_core::board::{Board, Turn, What};
use ha_core::config::{Config, GroupConfig, MemberConfig, PinSource};
use ha_core::group::Group;
use ha_core::policy::health::State;
use ha_core::provider::{Provider, connector, forget_member};
use ha_core::replica::{On, find_all};
use ha_token::{Attribute, Connector, Rv, UserType, ck};
use zeroize::Zeroizing;

use super::{How, the_only};
use crate::config_file::{Candidate, Edit, Editing};
use crate::context::{BadNews, Context, GOODBYE, to_change};
use crate::member;

/// How many handles are fetched at once.
const BATCH: usize = 512;

/// One change of a group, in its turn among operators.
pub(super) struct Work<'a> {
    pub(super) context: &'a Context,
    pub(super) config: Config,
    pub(super) label: String,
    pub(super) board: Board,
    pub(super) turn: Turn,
    pub(super) patience: Duration,
    pub(super) pin: Zeroizing<Vec<u8>>,
}

impl<'a> Work<'a> {
    /// `member`: one that the group must have.
    pub(super) fn begin(
        context: &'a Context,
        how: &How,
        member: Option<&str>,
    ) -> Result<(Work<'a>, Editing)> {
        let path = context.load()?.path.context("the configuration has no file")?;
        let editing = Editing::begin(&path)?;
        // As it is now that nobody else changes it.
        let config = context.load()?;
        let label = match member {
            Some(member) => member::the_group(&config.groups, how.group.as_deref(), member)?,
            None => the_only(&config.groups, how.group.as_deref())?,
        };
        let pin = context.pin()?;
        let (board, turn) = member::operate(&config, &label)?;
        let patience = Duration::from_secs(how.timeout);
        Ok((Work { context, config, label, board, turn, patience, pin }, editing))
    }

    pub(super) fn group(&self) -> Result<&GroupConfig> {
        self.config.groups.iter().find(|g| g.label == self.label).context("the group was there")
    }

    /// No process may still have another member of this name: it would take that one for this.
    pub(super) fn is_a_free_name(&self, name: &str) -> Result<()> {
        let has = |p: &ha_core::board::Process| p.members.iter().any(|m| m.name == name);
        if let Some(process) = self.board.processes().into_iter().find(has) {
            bail!(
                "the process {} ({}) still uses a member {name:?} from before: start it anew, or take another name",
                process.pid,
                process.program
            );
        }
        Ok(())
    }

    pub(super) fn candidate<'e>(
        &self,
        editing: &'e Editing,
        edit: &Edit<'_>,
    ) -> Result<(Candidate<'e>, Config)> {
        let (candidate, mut config) = editing.candidate(&self.label, edit)?;
        // The file may be reached by a link from where its defaults are others.
        config.state_dir = self.config.state_dir.clone();
        Ok((candidate, config))
    }

    /// The group of a configuration, alone, and logged in to.
    pub(super) fn start(&self, mut config: Config) -> Result<(Provider, Arc<Group>)> {
        config.groups.retain(|g| g.label == self.label);
        let provider = Provider::for_operator(config)?;
        let group = to_change(&provider, &self.pin)?;
        Ok((provider, group))
    }

    pub(super) fn wish(&self, member: &str, what: What) -> Result<u64> {
        member::ask(&self.board, &self.turn, member, what)
            .with_context(|| format!("a wish cannot be written to {}", self.config.state_dir.display()))
    }

    /// The serial number of the token that the ledger remembers under a name. By the login that this takes the PIN is one that
    /// the group's members accept before a new token sees it.
    pub(super) fn known_serial(&self, name: &str) -> Result<Option<String>> {
        let (provider, group) = self.start(self.config.clone())?;
        let serial = group.serial_of(name).map_err(answer);
        provider.shutdown(GOODBYE);
        serial
    }

    /// A token's serial number, and how many objects it has, by itself.
    pub(super) fn look_at(&self, member: &MemberConfig) -> Result<(String, usize)> {
        let words = || format!("the configuration is as it was: member {:?}", member.name);
        let own = member.pin.as_ref().map(PinSource::resolve).transpose().with_context(words)?;
        let connector = connector(member);
        let token = connector.connect().map_err(|e| bad(format!("{}: {e}", words())))?;
        let look = || -> ha_token::Result<Option<(String, usize)>> {
            let info = token.token_info()?;
            // A PIN that may be wrong is not sent to it again.
            if info.flags & (ck::CKF_USER_PIN_COUNT_LOW | ck::CKF_USER_PIN_FINAL_TRY) != 0 {
                return Ok(None);
            }
            let session = token.open_session(false)?;
            token.login(session, UserType::User, Some(own.as_deref().unwrap_or(&self.pin)))?;
            let on = On { token: &*token, session, mechanisms: &[] };
            let objects = find_all(on, &vec![Attribute::bool(ck::CKA_TOKEN, true)], BATCH)?.len();
            token.logout(session)?;
            token.close_session(session)?;
            Ok(Some((info.serial, objects)))
        };
        let looked = look().map_err(|rv| anyhow!(rv).context(words()));
        drop(token);
        connector.disconnect();
        looked?.with_context(|| {
            format!(
                "{}: its token has counted a wrong PIN, and is not sent another one; log in to it with its own tools first, and see whether its PIN is the group's",
                words()
            )
        })
    }

    pub(super) fn forget(&self, name: &str) -> Result<()> {
        forget_member(&self.config, self.group()?, name)
            .with_context(|| format!("the ledger could not forget what member {name:?} was"))
    }
}

pub(super) fn bad(words: String) -> anyhow::Error {
    BadNews(words).into()
}

pub(super) fn answer(rv: Rv) -> anyhow::Error {
    match rv {
        Rv::TOKEN_WRITE_PROTECTED => anyhow!("the ledger cannot be written by this user: nothing is changed"),
        rv => anyhow!(rv),
    }
}

pub(super) fn is_up(group: &Group, name: &str) -> Result<()> {
    let status = group.status();
    let member = status.members.iter().find(|m| m.name == name).context("the member is not in the group")?;
    if member.state == State::Up {
        return Ok(());
    }
    let why = member.connect_error.as_deref().unwrap_or("no reason known");
    Err(bad(format!("the configuration is as it was: member {name:?} is {}: {why}", member.state)))
}
