//! `hactl member add/replace/remove/set`: which tokens a group is made of, and what they are for.
//!
//! One that joins is empty, gets the group keys (in an enrolled group by its ceremony), then every key, and each is proven;
//! only then does the configuration name it. Of one that leaves every object is proven elsewhere; then it is taken out of use
//! everywhere; what it is yet to destroy is forgotten when the configuration names it no more. What is interrupted leaves the
//! configuration as it was, and is run again.

mod joining;
mod leaving;
mod work;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use ha_core::board::{Board, What};
use ha_core::config::{GroupConfig, MemberConfig, Role};
use ha_core::group::Checked;
use serde::Serialize;

use crate::config_file::{Edit, Editing};
use crate::context::Context;
use crate::new_member::NewMember;
use crate::{Answer, member, output};
use joining::not_empty;
use leaving::Spared;
use work::Work;

/// The pause between two looks at what the processes say.
const PAUSE: Duration = Duration::from_millis(50);

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
    /// Processes that go on with the group as it was: they did not take in the changed configuration in time.
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
    let digest = config.digest.clone();
    let joined = work.join(config, name, trusting)?;
    candidate.put_in_place()?;
    work.tell(work.taken_in(digest, None), Some(joined), None)
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
    let digest = config.digest.clone();
    let spared = work.is_spared(old, name, given_up)?;
    work.is_fit(&joining, spared.known.as_deref())?;
    let joined = work.without(old, given_up, || {
        let joined = work.join(config, name, trusting)?;
        candidate.put_in_place()?;
        Ok(joined)
    })?;
    let restart = work.taken_in(digest, Some(old));
    work.tell(restart, Some(joined), Some(spared.left))
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
    let (candidate, without) = work.candidate(&editing, &Edit::Remove(name))?;
    let mut left = work.is_spared(name, name, given_up)?.left;
    work.without(name, given_up, || {
        if destroy {
            let taken = work.take_off(name)?;
            (left.destroyed, left.left) = (taken.destroyed, taken.left);
        }
        candidate.put_in_place()
    })?;
    let restart = work.taken_in(without.digest, Some(name));
    work.tell(restart, None, Some(left))
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
pub(crate) fn set(context: &Context, name: &str, how: &How, role: Role) -> Result<Answer> {
    let config = context.load()?;
    let label = member::the_group(&config.groups, how.group.as_deref(), name)?;
    let editing = Editing::begin(config.path.as_ref().context("the configuration has no file")?)?;
    let (board, _turn) = member::operate(&config, &label)?;
    let (candidate, changed) = editing.candidate(&label, &Edit::Role(name, role))?;
    candidate.put_in_place()?;
    let restart = who_goes_on_as_before(&board, changed.digest, Duration::from_secs(how.timeout));
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

/// The processes that do not go by the configuration of this digest, after they have had time to take it in.
fn who_goes_on_as_before(board: &Board, digest: Option<String>, patience: Duration) -> Vec<Restart> {
    board.raise();
    let until = Instant::now() + patience;
    loop {
        let mut others = board.processes();
        others.retain(|p| p.configuration != digest);
        if others.is_empty() || Instant::now() >= until {
            return others.into_iter().map(|p| Restart { pid: p.pid, program: p.program }).collect();
        }
        std::thread::sleep(PAUSE);
    }
}

fn tell_restart(processes: &[Restart]) {
    for process in processes {
        println!(
            "  {} ({}) has not taken in the changed configuration: it uses the group as it was, until it does or starts anew",
            process.program, process.pid
        );
    }
}

impl<'a> Work<'a> {
    /// The member's token was made anew.
    fn made_anew(&self, before: &MemberConfig, trusting: &Trusting, given_up: GivenUp) -> Result<Answer> {
        let name = before.name.as_str();
        let Spared { left, known, is_owed } = self.is_spared(name, name, given_up)?;
        let (serial, objects) = self.look_at(before)?;
        if known.as_deref() != Some(serial.as_str()) {
            if objects > 0 {
                return Err(not_empty(name, objects));
            }
            self.forget(name)?;
        } else if !is_owed {
            bail!("nothing was changed: the token of member {name:?} is the one that it was");
        }
        let joined = self.join(self.config.clone(), name, trusting)?;
        let restart = self.taken_in(self.config.digest.clone(), None);
        self.tell(restart, Some(joined), Some(left))
    }

    /// The processes that have not taken in the changed configuration, after they have had time to. Whoever `left` is forgotten
    /// then: a process that has it still may write of it.
    fn taken_in(&self, digest: Option<String>, left: Option<&str>) -> Vec<Restart> {
        let restart = who_goes_on_as_before(&self.board, digest, self.patience);
        let Some(name) = left else { return restart };
        // The configuration is in place: what goes wrong now undoes nothing.
        if let Err(error) = self.forget(name) {
            eprintln!("hactl: {error:#}: a token that takes this name may be refused until it is");
        }
        // One that is named so later is not taken for drained.
        if restart.is_empty()
            && self.board.wish(name).is_some_and(|wish| wish.drained)
            && let Err(error) = self.wish(name, What::Resume)
        {
            eprintln!("hactl: {error:#}: `hactl member resume {name}` before that name is used again");
        }
        restart
    }

    fn tell(&self, restart: Vec<Restart>, joined: Option<Joined>, left: Option<Left>) -> Result<Answer> {
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
