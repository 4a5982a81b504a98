//! A member that joins: its token is empty, it is enrolled, given every key, and each is proven.

use std::time::Duration;

use anyhow::{Result, anyhow};
use ha_core::board::What;
use ha_core::config::{Config, MemberConfig};
use ha_core::group::{Checked, Group, Word};

use super::work::{Work, answer, bad, is_up};
use super::{Joined, Trusting, words_of};
use crate::context::{GOODBYE, log_in};
use crate::output;

/// How often a member is given what programs make meanwhile.
const ROUNDS: u32 = 5;
/// How often a token is counted again that seems to hold what nobody knows: another process may be giving it something.
const COUNTS: u32 = 5;

impl Work<'_> {
    /// Whether a token may join: it is empty, or the one that an interrupted command has begun to fill. What the ledger says
    /// of another one of that name is forgotten.
    pub(super) fn is_fit(&self, joining: &MemberConfig, known: Option<&str>) -> Result<()> {
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

    /// The member has every key, and each is proven.
    pub(super) fn join(&self, config: Config, name: &str, trusting: &Trusting) -> Result<Joined> {
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
        // Programs that do not know the member yet go on making keys: what it lacks twice is lacking.
        let mut lacking: Option<Vec<Checked>> = None;
        for _ in 0..ROUNDS {
            let done =
                output::counted(&words, || group.owed_to(name), || group.sync(false)).map_err(answer)?;
            without = done.into_iter().filter(|(n, _)| n == name).flat_map(|(_, d)| d.left).collect();
            checked = output::busy("proving every copy".into(), || group.check(true)).map_err(answer)?;
            checked.retain(|c| !c.foreign);
            let now = on_it(&checked, name, Word::Missing).filter(|c| c.copyable);
            let was_lacking =
                |c: &&Checked| lacking.as_ref().is_none_or(|before| before.iter().any(|b| is_one(b, c)));
            let still = now.clone().filter(was_lacking).count();
            lacking = Some(now.cloned().collect());
            if still == 0 {
                lacking = None;
                break;
            }
        }
        let wrong: Vec<_> = on_it(&checked, name, Word::Different)
            .chain(on_it(&checked, name, Word::Unproven))
            .map(words_of)
            .collect();
        let lacking: Vec<_> = lacking.iter().flatten().map(words_of).collect();
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
}

/// A token that holds what is none of the group's.
pub(super) fn not_empty(name: &str, objects: usize) -> anyhow::Error {
    anyhow!(
        "nothing was changed: the token of member {name:?} holds {objects} objects that are none of the group's; only an empty token joins a group that has keys"
    )
}

/// Whether two checks speak of one object, as far as they tell.
fn is_one(one: &Checked, other: &Checked) -> bool {
    let all = |c: &Checked| (c.class, c.id.clone(), c.label.clone(), c.fingerprint);
    all(one) == all(other)
}

/// What a member's word is in a check.
fn on_it<'c>(checked: &'c [Checked], name: &str, word: Word) -> impl Iterator<Item = &'c Checked> + Clone {
    checked.iter().filter(move |c| c.members.iter().any(|(n, w)| n == name && *w == word))
}
