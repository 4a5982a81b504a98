//! `hactl member add/replace/remove/set`: which tokens a group is made of, and what they are for.
//!
//! One that joins is empty, gets the group keys (in an enrolled group by its ceremony), then every key, and each is proven;
//! only then does the configuration name it. Of one that leaves every object is proven elsewhere; then it is taken out of use
//! everywhere; what it is yet to destroy is forgotten when the configuration names it no more. What is interrupted leaves the
//! configuration as it was, and is run again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use ha_core::board::{Board, Turn, What};
use ha_core::config::{Config, GroupConfig, MemberConfig, PinSource, Role};
use ha_core::group::{Checked, Group, Word};
use ha_core::policy::health::State;
use ha_core::provider::{Provider, connector, forget_member};
use ha_core::replica::{On, find_all};
use ha_core::seam::System;
use ha_token::{Attribute, Connector, Rv, UserType, ck};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::config_file::{Candidate, Edit, Editing};
use crate::context::{BadNews, Context, log_in};
use crate::new_member::NewMember;
use crate::{Answer, member, output};

/// How long members are waited for when this command ends.
const GOODBYE: Duration = Duration::from_secs(5);
/// How often a member is given what programs make meanwhile.
const ROUNDS: u32 = 5;
/// How many handles are fetched at once.
const BATCH: usize = 512;
/// How often a token is counted again that seems to hold what nobody knows: another process may be giving it something.
const COUNTS: u32 = 5;

/// How a change of the group is made.
#[derive(Args)]
pub(crate) struct How {
    /// The group's label, where there are several.
    #[arg(long, value_name = "LABEL")]
    group: Option<String>,
    /// How many seconds the running processes are waited for.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=86_400))]
    timeout: u64,
}

/// Who trusts a member that joins.
#[derive(Args)]
pub(crate) struct Trusting {
    /// A file with the PIN of the security officer who trusts it; else $PKCS11_HA_SO_PIN, else a prompt.
    #[arg(long, value_name = "FILE")]
    so_pin_file: Option<PathBuf>,
}

#[derive(Serialize)]
struct Document {
    schema: u8,
    group: String,
    /// Who has joined, and with how many objects proven there.
    joined: Option<Joined>,
    left: Option<Left>,
    /// Processes that use the group as it was until they start anew.
    restart: Vec<Restart>,
}

#[derive(Serialize)]
struct Joined {
    member: String,
    proven: usize,
    /// What is not on it, and why.
    without: Vec<String>,
}

#[derive(Serialize)]
struct Left {
    member: String,
    /// How many objects were destroyed on its token.
    destroyed: usize,
    /// What is still on it.
    left: Vec<String>,
    /// What no other member holds.
    lost: Vec<String>,
    /// What was on its token from before the group, and nowhere else: it is not shown any more.
    foreign: Vec<String>,
}

#[derive(Serialize)]
struct Restart {
    pid: u32,
    program: String,
}

/// One change of a group, in its turn among operators.
struct Work<'a> {
    context: &'a Context,
    config: Config,
    label: String,
    board: Board,
    turn: Turn,
    patience: Duration,
    pin: Zeroizing<Vec<u8>>,
}

/// What may be given up for a member to leave.
#[derive(Clone, Copy, Args)]
pub(crate) struct GivenUp {
    /// Also where a process goes on using the member.
    #[arg(long)]
    force: bool,
    /// Also what no other member holds.
    #[arg(long)]
    lose: bool,
}

/// Takes an empty token into the group.
///
/// # Errors
/// In words that say what to do; the configuration is as it was.
pub(crate) fn add(
    context: &Context,
    name: &str,
    new: &NewMember,
    trusting: &Trusting,
    how: &How,
) -> Result<Answer> {
    let (work, editing) = Work::begin(context, how, None)?;
    let group = work.group()?;
    if group.members.iter().any(|m| m.name == name) {
        bail!(
            "the group {:?} has a member {name:?}; `hactl member replace` gives it another token",
            work.label
        );
    }
    work.is_a_free_name(name)?;
    let joining = new.config(name, group)?;
    let (candidate, config) = work.candidate(&editing, &Edit::Add(&joining))?;
    let known = work.known_serial(name)?;
    work.is_fit(&joining, known.as_deref())?;
    let joined = work.join(config, name, trusting)?;
    candidate.put_in_place()?;
    work.tell(Some(joined), None)
}

/// Gives a member another token; the one that it had may be dead.
///
/// # Errors
/// As [`add`].
pub(crate) fn replace(
    context: &Context,
    old: &str,
    name: &str,
    new: &NewMember,
    trusting: &Trusting,
    how: &How,
    given_up: GivenUp,
) -> Result<Answer> {
    let (work, editing) = Work::begin(context, how, Some(old))?;
    let group = work.group()?;
    let before = group.members.iter().find(|m| m.name == old).context("it was there")?;
    if old == name {
        // Running processes go on with the token that their configuration names.
        if new.is_given() {
            bail!(
                "a member keeps its name only with the token that the configuration says, made anew; for another one give it another name"
            );
        }
        return work.made_anew(before, trusting, given_up);
    }
    if group.members.iter().any(|m| m.name == name) {
        bail!("the group {:?} has a member {name:?} already", work.label);
    }
    work.is_a_free_name(name)?;
    let joining = new.config(name, group)?;
    let (candidate, config) = work.candidate(&editing, &Edit::Replace(old, &joining))?;
    let (mut left, known) = work.is_spared(old, name, given_up)?;
    work.is_fit(&joining, known.as_deref())?;
    let joined = work.without(old, given_up, &mut left, |_| {
        let joined = work.join(config, name, trusting)?;
        candidate.put_in_place()?;
        Ok(joined)
    })?;
    work.forget(old)?;
    work.tell(Some(joined), Some(left))
}

/// Takes a member out of the group; with `destroy` also what its token holds of it.
///
/// # Errors
/// As [`add`].
pub(crate) fn remove(
    context: &Context,
    name: &str,
    how: &How,
    destroy: bool,
    given_up: GivenUp,
) -> Result<Answer> {
    let (work, editing) = Work::begin(context, how, Some(name))?;
    let (candidate, _) = work.candidate(&editing, &Edit::Remove(name))?;
    let (mut left, _) = work.is_spared(name, name, given_up)?;
    work.without(name, given_up, &mut left, |left| {
        if destroy {
            let taken = work.take_off(name)?;
            (left.destroyed, left.left) = (taken.destroyed, taken.left);
        }
        candidate.put_in_place()
    })?;
    work.forget(name)?;
    work.tell(None, Some(left))
}

#[derive(Serialize)]
struct SetDocument {
    schema: u8,
    group: String,
    member: String,
    role: String,
    restart: Vec<Restart>,
}

/// Gives a member another role in the configuration.
///
/// # Errors
/// No such member; a configuration that would not be right, as without an active member.
pub(crate) fn set(context: &Context, name: &str, label: Option<&str>, role: Role) -> Result<Answer> {
    let config = context.load()?;
    let label = member::the_group(&config.groups, label, name)?;
    let editing = Editing::begin(config.path.as_ref().context("the configuration has no file")?)?;
    let (board, _turn) = member::operate(&config, &label)?;
    editing.candidate(&label, &Edit::Role(name, role))?.0.put_in_place()?;
    let restart = restart(&board);
    let role = role.to_string();
    if context.json {
        let member = name.to_owned();
        output::json(&SetDocument { schema: 1, group: label, member, role, restart })?;
        return Ok(Answer::Well);
    }
    println!("member {name:?} is {role}");
    tell_restart(&restart);
    Ok(Answer::Well)
}

/// The processes that use the group, as it was.
fn restart(board: &Board) -> Vec<Restart> {
    board.processes().into_iter().map(|p| Restart { pid: p.pid, program: p.program }).collect()
}

fn tell_restart(processes: &[Restart]) {
    for process in processes {
        println!("  {} ({}) uses the group as it was until it starts anew", process.program, process.pid);
    }
}

impl<'a> Work<'a> {
    /// `member`: one that the group must have.
    fn begin(context: &'a Context, how: &How, member: Option<&str>) -> Result<(Work<'a>, Editing)> {
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

    fn group(&self) -> Result<&GroupConfig> {
        self.config.groups.iter().find(|g| g.label == self.label).context("the group was there")
    }

    /// No process may still have another member of this name: it would take that one for this.
    fn is_a_free_name(&self, name: &str) -> Result<()> {
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

    fn candidate<'e>(&self, editing: &'e Editing, edit: &Edit<'_>) -> Result<(Candidate<'e>, Config)> {
        let (candidate, mut config) = editing.candidate(&self.label, edit)?;
        // The file may be reached by a link from where its defaults are others.
        config.state_dir = self.config.state_dir.clone();
        Ok((candidate, config))
    }

    /// The group of a configuration, alone, and logged in to.
    fn start(&self, mut config: Config) -> Result<(Provider, Arc<Group>)> {
        config.groups.retain(|g| g.label == self.label);
        self.logged_in(Provider::for_operator(config)?)
    }

    fn logged_in(&self, provider: Provider) -> Result<(Provider, Arc<Group>)> {
        let group = provider.groups().first().context("the group did not start")?;
        if !group.may_change() {
            bail!(
                "nothing was changed: the ledger in {} cannot be written by this user",
                self.config.state_dir.display()
            );
        }
        group.sync_by_hand();
        log_in(group, &self.pin)?;
        let group = Arc::clone(group);
        Ok((provider, group))
    }

    fn wish(&self, member: &str, what: What) -> Result<u64> {
        member::ask(&self.board, &self.turn, member, what)
            .with_context(|| format!("a wish cannot be written to {}", self.config.state_dir.display()))
    }

    /// Runs `then` with the member out of use in every process; what fails puts it into use again.
    fn without<T>(
        &self,
        name: &str,
        given_up: GivenUp,
        left: &mut Left,
        then: impl FnOnce(&mut Left) -> Result<T>,
    ) -> Result<T> {
        let was_drained = self.board.wish(name).is_some_and(|w| w.drained);
        let number = self.wish(name, What::Drain)?;
        output::progress(self.context, &format!("taking member {name:?} out of use"));
        let done = self.is_unused(name, number, given_up, left).and_then(|()| then(left));
        if done.is_err() && !was_drained {
            self.wish(name, What::Resume)?;
        }
        done
    }

    fn is_unused(&self, name: &str, number: u64, given_up: GivenUp, left: &Left) -> Result<()> {
        let use_it = member::who_has_not(&self.board, name, What::Drain, number, self.patience);
        if !use_it.is_empty() && !given_up.force {
            let who: Vec<_> = use_it.iter().map(|p| format!("{} ({})", p.program, p.pid)).collect();
            return Err(bad(format!(
                "nothing was changed: the member is still used by {}; --force goes on all the same",
                who.join(", ")
            )));
        }
        // What was made since the others were asked.
        let mut rest = self.config.clone();
        for group in rest.groups.iter_mut().filter(|g| g.label == self.label) {
            group.members.retain(|m| m.name != name);
            group.min_copies = group.min_copies.min(group.members.len());
        }
        let (provider, group) = self.start(rest)?;
        let alone = group.held_by_nobody().map_err(answer)?;
        provider.shutdown(GOODBYE);
        if alone.len() > left.lost.len() && !given_up.lose {
            return Err(lost(name, &alone, &[]));
        }
        Ok(())
    }

    /// Whether the group can do without a member: others are up, hold its objects, proven, and the group keys. Answers what
    /// it would lose, and the serial number that is remembered for the `joining` one.
    fn is_spared(&self, name: &str, joining: &str, given_up: GivenUp) -> Result<(Left, Option<String>)> {
        if self.group()?.members.len() == 1 {
            bail!("nothing was changed: {name:?} is the only member; add another one first");
        }
        let (provider, group) = self.start(self.config.clone())?;
        if !group.up().any(|m| m.name() != name) {
            return Err(bad(format!("nothing was changed: no other member than {name:?} is up")));
        }
        let words = "bringing the members up to date";
        let done = output::busy(words.into(), || group.sync(false)).map_err(answer)?;
        let checked = output::busy("proving what they hold".into(), || group.check(true)).map_err(answer)?;
        let elsewhere = |c: &&Checked| c.members.iter().any(|(n, word)| n != name && *word == Word::Same);
        let (foreign, own): (Vec<_>, Vec<_>) =
            checked.iter().filter(|c| !elsewhere(c)).partition(|c| c.foreign);
        let alone: Vec<_> = own.into_iter().map(words_of).collect();
        if !alone.is_empty() && !given_up.lose {
            let why: Vec<_> = done.iter().flat_map(|(_, d)| d.left.clone()).collect();
            return Err(lost(name, &alone, &why));
        }
        if !group.keeps_its_keys_without(name).map_err(answer)? && !given_up.lose {
            return Err(bad(format!(
                "nothing was changed: no other member that is up has the group keys, and without {name:?} no key could be made or copied; --lose goes on all the same"
            )));
        }
        let serial = group.serial_of(joining).map_err(answer)?;
        provider.shutdown(GOODBYE);
        let foreign = foreign.into_iter().filter(|c| c.members.iter().any(|(n, _)| n == name)).map(words_of);
        let left = Left {
            member: name.to_owned(),
            destroyed: 0,
            left: Vec::new(),
            lost: alone,
            foreign: foreign.collect(),
        };
        Ok((left, serial))
    }

    /// The serial number of the token that the ledger remembers under a name. By the login that this takes the PIN is one that
    /// the group's members accept before a new token sees it.
    fn known_serial(&self, name: &str) -> Result<Option<String>> {
        let (provider, group) = self.start(self.config.clone())?;
        let serial = group.serial_of(name).map_err(answer);
        provider.shutdown(GOODBYE);
        serial
    }

    /// Whether a token may join: it is empty, or the one that an interrupted command has begun to fill. What the ledger says
    /// of another one of that name is forgotten.
    fn is_fit(&self, joining: &MemberConfig, known: Option<&str>) -> Result<()> {
        let (serial, objects) = self.look_at(joining)?;
        if known == Some(serial.as_str()) {
            return Ok(());
        }
        if objects > 0 {
            return Err(not_empty(&joining.name, objects));
        }
        match known {
            Some(_) => self.forget(&joining.name),
            None => Ok(()),
        }
    }

    /// The member's token was made anew.
    fn made_anew(&self, before: &MemberConfig, trusting: &Trusting, given_up: GivenUp) -> Result<Answer> {
        let name = before.name.as_str();
        let (left, known) = self.is_spared(name, name, given_up)?;
        let (serial, objects) = self.look_at(before)?;
        if known.as_deref() != Some(serial.as_str()) {
            if objects > 0 {
                return Err(not_empty(name, objects));
            }
            self.forget(name)?;
        } else if !self.is_begun(name)? {
            bail!("nothing was changed: the token of member {name:?} is the one that it was");
        }
        let joined = self.join(self.config.clone(), name, trusting)?;
        self.tell(Some(joined), Some(left))
    }

    /// Whether the member is yet to be given what the group has, as after a command that was interrupted.
    fn is_begun(&self, name: &str) -> Result<bool> {
        let (provider, group) = self.start(self.config.clone())?;
        let begun = group.owed_to(name).is_some_and(|owed| owed > 0) || group.enroller_of(name).is_some();
        provider.shutdown(GOODBYE);
        Ok(begun)
    }

    /// A token's serial number, and how many objects it has, by itself.
    fn look_at(&self, member: &MemberConfig) -> Result<(String, usize)> {
        let words = || format!("the configuration is as it was: member {:?}", member.name);
        let own = member.pin.as_ref().map(PinSource::resolve).transpose().with_context(words)?;
        let connector = connector(member);
        let token = connector.connect().map_err(|e| bad(format!("{}: {e}", words())))?;
        let look = || -> ha_token::Result<(String, usize)> {
            let serial = token.token_info()?.serial;
            let session = token.open_session(false)?;
            token.login(session, UserType::User, Some(own.as_deref().unwrap_or(&self.pin)))?;
            let on = On { token: &*token, session, mechanisms: &[] };
            let objects = find_all(on, &vec![Attribute::bool(ck::CKA_TOKEN, true)], BATCH)?.len();
            token.logout(session)?;
            token.close_session(session)?;
            Ok((serial, objects))
        };
        let looked = look().map_err(|rv| anyhow!(rv).context(words()));
        drop(token);
        connector.disconnect();
        looked
    }

    fn forget(&self, name: &str) -> Result<()> {
        forget_member(&self.config, self.group()?, name)
            .with_context(|| format!("the ledger could not forget what member {name:?} was"))
    }

    /// Through a group that heeds no wish: by that the member is out of use.
    fn take_off(&self, name: &str) -> Result<ha_core::group::TakenOff> {
        let mut config = self.config.clone();
        config.groups.retain(|g| g.label == self.label);
        let of = |g: &GroupConfig| {
            g.members.iter().map(|m| Box::new(connector(m)) as Box<dyn Connector>).collect()
        };
        let connectors = config.groups.iter().map(of).collect();
        let (provider, group) = self.logged_in(Provider::with_members(config, System::new(), connectors)?)?;
        is_up(&group, name)?;
        let words = format!("destroying what member {name:?} holds of the group");
        let taken = output::busy(words, || group.take_off(name)).map_err(answer);
        provider.shutdown(GOODBYE);
        taken
    }

    /// The member has every key, and each is proven.
    fn join(&self, config: Config, name: &str, trusting: &Trusting) -> Result<Joined> {
        if self.board.wish(name).is_some_and(|w| w.drained) {
            self.wish(name, What::Resume)?;
        }
        let (provider, group) = self.start(config)?;
        is_up(&group, name)?;
        self.is_empty(&group, name)?;
        if let Some(enroller) = group.enroller_of(name).map(|m| m.name().to_owned()) {
            let so_pin = self.context.so_pin(trusting.so_pin_file.as_deref(), &enroller)?;
            output::progress(
                self.context,
                &format!("enrolling member {name:?}, trusted by the security officer of {enroller:?}"),
            );
            group.log_out().map_err(answer)?;
            group.enrol_member(name, &enroller, &self.pin, &so_pin).map_err(|rv| {
                anyhow!(rv).context(format!(
                    "the member could not be enrolled; was that the PIN of the security officer of {enroller:?}?"
                ))
            })?;
            log_in(&group, &self.pin)?;
            is_up(&group, name)?;
        } else {
            group.give_keys_to(name);
        }
        let words = format!("giving member {name:?} what the group has");
        let (mut without, mut checked) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            let done =
                output::counted(&words, || group.owed_to(name), || group.sync(false)).map_err(answer)?;
            without = done.into_iter().filter(|(n, _)| n == name).flat_map(|(_, d)| d.left).collect();
            checked = output::busy("proving every copy".into(), || group.check(true)).map_err(answer)?;
            checked.retain(|c| !c.foreign);
            // Programs that do not know the member yet go on making keys.
            if on_it(&checked, name, Word::Missing).all(|c| !c.copyable) || round == ROUNDS {
                break;
            }
        }
        let wrong: Vec<_> = on_it(&checked, name, Word::Different)
            .chain(on_it(&checked, name, Word::Unproven))
            .map(words_of)
            .collect();
        let lacking: Vec<_> =
            on_it(&checked, name, Word::Missing).filter(|c| c.copyable).map(words_of).collect();
        if !wrong.is_empty() || !lacking.is_empty() {
            let lines: Vec<_> = wrong
                .iter()
                .map(|w| format!("\n  not proven: {w}"))
                .chain(lacking.iter().map(|w| format!("\n  missing: {w}")))
                .chain(without.iter().map(|l| format!("\n  left: {l}")))
                .collect();
            return Err(bad(format!(
                "the configuration is as it was: the member {name:?} does not hold all of the group{}",
                lines.concat()
            )));
        }
        let proven = on_it(&checked, name, Word::Same).count();
        provider.shutdown(GOODBYE);
        Ok(Joined { member: name.to_owned(), proven, without })
    }

    /// A token with keys of its own would have them shown in the group, and might bring back what was destroyed.
    fn is_empty(&self, group: &Group, name: &str) -> Result<()> {
        let mut strangers = 0;
        for _ in 0..COUNTS {
            strangers = group.strangers_on(name).map_err(answer)?;
            if strangers == 0 {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(not_empty(name, strangers))
    }

    fn tell(&self, joined: Option<Joined>, left: Option<Left>) -> Result<Answer> {
        let restart = restart(&self.board);
        let well = left.as_ref().is_none_or(|l| l.left.is_empty() && l.lost.is_empty());
        if self.context.json {
            output::json(&Document { schema: 1, group: self.label.clone(), joined, left, restart })?;
            return Ok(if well { Answer::Well } else { Answer::BadNews });
        }
        if let Some(Left { member, destroyed, left, lost, foreign }) = left {
            println!("member {member:?} has left the group; {destroyed} objects were destroyed on its token");
            left.iter().for_each(|line| println!("  still on it: {line}"));
            lost.iter().for_each(|line| println!("  on no member now: {line}"));
            foreign.iter().for_each(|line| println!("  from before the group, not shown any more: {line}"));
        }
        if let Some(Joined { member, proven, without }) = joined {
            println!("member {member:?} is in the group: {proven} objects are on it, each proven");
            without.iter().for_each(|line| println!("  without: {line}"));
        }
        tell_restart(&restart);
        Ok(if well { Answer::Well } else { Answer::BadNews })
    }
}

fn not_empty(name: &str, objects: usize) -> anyhow::Error {
    anyhow!(
        "nothing was changed: the token of member {name:?} holds {objects} objects that are none of the group's; only an empty token joins a group that has keys"
    )
}

fn lost(name: &str, objects: &[String], why: &[String]) -> anyhow::Error {
    let why: Vec<_> = why.iter().map(|line| format!("\n  {line}")).collect();
    bad(format!(
        "nothing was changed: no other member is proven to hold\n  {}\nand without {name:?} that would be lost; --lose goes on all the same{}",
        objects.join("\n  "),
        why.concat()
    ))
}

/// What a member's word is in a check.
fn on_it<'c>(checked: &'c [Checked], name: &str, word: Word) -> impl Iterator<Item = &'c Checked> {
    checked.iter().filter(move |c| c.members.iter().any(|(n, w)| n == name && *w == word))
}

fn bad(words: String) -> anyhow::Error {
    BadNews(words).into()
}

fn answer(rv: Rv) -> anyhow::Error {
    match rv {
        Rv::TOKEN_WRITE_PROTECTED => anyhow!("the ledger cannot be written by this user: nothing is changed"),
        rv => anyhow!(rv),
    }
}

fn is_up(group: &Group, name: &str) -> Result<()> {
    let status = group.status();
    let member = status.members.iter().find(|m| m.name == name).context("the member is not in the group")?;
    if member.state == State::Up {
        return Ok(());
    }
    let why = member.connect_error.as_deref().unwrap_or("no reason known");
    Err(bad(format!("the configuration is as it was: member {name:?} is {}: {why}", member.state)))
}

/// The label of the only group, or of the one that is named.
///
/// # Errors
/// There is no such one.
pub(crate) fn the_only(groups: &[GroupConfig], label: Option<&str>) -> Result<String> {
    let labels: BTreeMap<_, _> = groups.iter().map(|g| (g.label.as_str(), g)).collect();
    match (label, groups) {
        (Some(label), _) if labels.contains_key(label) => Ok(label.to_owned()),
        (Some(label), _) => bail!("there is no group {label:?}"),
        (None, [one]) => Ok(one.label.clone()),
        (None, _) => bail!("there are several groups: say which one with --group"),
    }
}

/// An object in words.
pub(crate) fn words_of(checked: &Checked) -> String {
    format!(
        "{} {:?} {}",
        ha_core::names::class(checked.class),
        String::from_utf8_lossy(&checked.label),
        output::hex(&checked.id)
    )
}
