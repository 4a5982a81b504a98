//! A member that leaves: nothing is lost without it, and nobody uses it any more.

use anyhow::{Result, bail};
use ha_core::board::What;
use ha_core::config::GroupConfig;
use ha_core::group::{Checked, TakenOff, Word};
use ha_core::provider::{Provider, connector};
use ha_core::seam::System;
use ha_token::Connector;

use super::work::{Work, answer, bad, is_up};
use super::{GivenUp, Left, words_of};
use crate::context::{GOODBYE, to_change};
use crate::{member, output};

/// What is known of a member that may leave.
pub(super) struct Spared {
    /// What the group loses.
    pub(super) left: Left,
    /// The serial number that is remembered for the member that takes its place.
    pub(super) known: Option<String>,
    /// Whether that one is yet to be given something, as after a command that was interrupted.
    pub(super) is_owed: bool,
}

impl Work<'_> {
    /// Runs `then` with the member out of use in every process; what fails puts it into use again.
    pub(super) fn without<T>(
        &self,
        name: &str,
        given_up: GivenUp,
        then: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let was_drained = self.board.wish(name).is_some_and(|w| w.drained);
        let number = self.wish(name, What::Drain)?;
        output::progress(self.context, &format!("taking member {name:?} out of use"));
        let done = self.is_unused(name, number, given_up).and_then(|()| then());
        if done.is_err() && !was_drained {
            self.wish(name, What::Resume)?;
        }
        done
    }

    fn is_unused(&self, name: &str, number: u64, given_up: GivenUp) -> Result<()> {
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
        if !alone.is_empty() && !given_up.lose {
            return Err(lost(name, &alone, &[]));
        }
        Ok(())
    }

    /// Whether the group can do without a member: others are up, hold its objects, proven, and the group keys. `joining` is to
    /// take its place.
    pub(super) fn is_spared(&self, name: &str, joining: &str, given_up: GivenUp) -> Result<Spared> {
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
        let group_config = self.group()?;
        let wanted = group_config.min_copies.min(group_config.members.len() - 1);
        // What the member itself does not hold, or nothing can copy, is no fewer without it.
        let elsewhere = |c: &&Checked| {
            let (here, others): (Vec<_>, Vec<_>) =
                c.members.iter().filter(|(_, word)| *word == Word::Same).partition(|(n, _)| n == name);
            others.len() >= if c.copyable && !here.is_empty() { wanted } else { 1 }
        };
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
        let known = group.serial_of(joining).map_err(answer)?;
        let is_owed =
            group.owed_to(joining).is_some_and(|owed| owed > 0) || group.enroller_of(joining).is_some();
        provider.shutdown(GOODBYE);
        let foreign = foreign.into_iter().filter(|c| c.members.iter().any(|(n, _)| n == name)).map(words_of);
        let left = Left {
            member: name.to_owned(),
            destroyed: 0,
            left: Vec::new(),
            lost: alone,
            foreign: foreign.collect(),
        };
        Ok(Spared { left, known, is_owed })
    }

    /// Through a group that heeds no wish: by that the member is out of use.
    pub(super) fn take_off(&self, name: &str) -> Result<TakenOff> {
        let mut config = self.config.clone();
        config.groups.retain(|g| g.label == self.label);
        let of = |g: &GroupConfig| {
            g.members.iter().map(|m| Box::new(connector(m)) as Box<dyn Connector>).collect()
        };
        let connectors = config.groups.iter().map(of).collect();
        let provider = Provider::with_members(config, System::new(), connectors)?;
        let group = to_change(&provider, &self.pin)?;
        is_up(&group, name)?;
        let words = format!("destroying what member {name:?} holds of the group");
        let taken = output::busy(words, || group.take_off(name)).map_err(answer);
        provider.shutdown(GOODBYE);
        taken
    }
}

fn lost(name: &str, objects: &[String], why: &[String]) -> anyhow::Error {
    let why: Vec<_> = why.iter().map(|line| format!("\n  {line}")).collect();
    bad(format!(
        "nothing was changed: too few other members are proven to hold\n  {}\nand without {name:?} that could be lost; --lose goes on all the same{}",
        objects.join("\n  "),
        why.concat()
    ))
}
