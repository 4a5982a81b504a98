//! What was acknowledged, by label.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use p256::ecdsa::{Signature, VerifyingKey};

use crate::bare::{Half, Shown};
use crate::program::MESSAGE;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Pair,
    Secret,
    Data,
}

/// What is known of a label's objects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// They are there.
    There,
    /// They are not.
    Gone,
    /// They were being made: all of them are there, or none.
    Made,
    /// They were being destroyed, one after the other: any of them may be there.
    Destroyed,
    /// It was being given the other label: it has one of the two.
    Named(String),
}

#[derive(Clone, Debug)]
pub(crate) struct Thing {
    pub(crate) kind: Kind,
    pub(crate) state: State,
    /// What it answers: a pair's point, a secret key's MAC, a data object's value. Empty where it was not told.
    pub(crate) answer: Vec<u8>,
    /// Whether a program is at it.
    pub(crate) busy: bool,
    /// Whether it was counted since it went: from then on the tokens are looked at, and programs count it now and then.
    pub(crate) counted: bool,
}

/// Everything that was ever made, or may have been.
#[derive(Default)]
pub(crate) struct Noted {
    pub(crate) things: BTreeMap<String, Thing>,
}

/// Whether an answer is that of the thing.
pub(crate) fn fits(kind: Kind, noted: &[u8], answer: &[u8]) -> bool {
    match kind {
        _ if noted.is_empty() => true,
        Kind::Secret | Kind::Data => noted == answer,
        Kind::Pair => verifies(noted, answer),
    }
}

/// `point` is `CKA_EC_POINT`: an octet string around the point.
fn verifies(point: &[u8], signature: &[u8]) -> bool {
    let key = point.strip_prefix(&[0x04, 0x41]).and_then(|p| VerifyingKey::from_sec1_bytes(p).ok());
    match (key, Signature::from_slice(signature)) {
        (Some(key), Ok(signature)) => key.verify_prehash(MESSAGE, &signature).is_ok(),
        _ => false,
    }
}

impl Noted {
    /// The labels that are known to be there, and nobody is at.
    pub(crate) fn free(&self, wanted: impl Fn(&Thing) -> bool) -> Vec<String> {
        let free = |t: &Thing| !t.busy && wanted(t);
        self.things.iter().filter(|(_, t)| free(t)).map(|(label, _)| label.clone()).collect()
    }

    /// Compares with what all tokens show, which have to show the same. What was not known is known from here on.
    pub(crate) fn settle(&mut self, tokens: &[BTreeMap<String, Vec<Shown>>]) -> Result<()> {
        let [first, others @ ..] = tokens else { bail!("no token") };
        for (i, other) in others.iter().enumerate() {
            let differs = first.keys().chain(other.keys()).find(|l| halves(first, l) != halves(other, l));
            if let Some(label) = differs {
                let (a, b) = (halves(first, label), halves(other, label));
                bail!("{label}: the first token has {a:?} and number {} has {b:?}", i + 2);
            }
        }
        if let Some(orphan) = first.keys().find(|label| !self.things.contains_key(*label)) {
            bail!("{orphan} is nobody's: {:?}", halves(first, orphan));
        }
        let there = |label: &str| halves(first, label);
        let mut known = BTreeMap::new();
        for (label, thing) in &self.things {
            let found = there(label);
            let whole: &[Half] = match thing.kind {
                Kind::Pair => &[Half::Private, Half::Public],
                Kind::Secret | Kind::Data => &[Half::Only],
            };
            let state = match &thing.state {
                State::There if found == whole => State::There,
                State::There => bail!("{label} was acknowledged, and {found:?} of it is there"),
                State::Gone if found.is_empty() => State::Gone,
                State::Gone => bail!("{label} is gone, and {found:?} of it is there"),
                State::Made | State::Named(_) | State::Destroyed if found == whole => State::There,
                State::Made | State::Named(_) | State::Destroyed if found.is_empty() => State::Gone,
                State::Destroyed if found.iter().all(|f| whole.contains(f)) && found.len() == 1 => {
                    State::Destroyed
                }
                _ => bail!("{label} was under way ({:?}), and {found:?} of it is there", thing.state),
            };
            if let State::Named(other) = &thing.state
                && found.is_empty() == there(other).is_empty()
            {
                bail!("{label} was being named {other}: {found:?} and {:?} are there", there(other));
            }
            for shown in tokens.iter().filter_map(|t| t.get(label)).flatten() {
                if shown.half != Half::Public && !fits(thing.kind, &thing.answer, &shown.answer) {
                    bail!("{label} answers otherwise than it did");
                }
            }
            known.insert(label.clone(), state);
        }
        for (label, state) in known {
            if let Some(thing) = self.things.get_mut(&label) {
                thing.state = state;
            }
        }
        Ok(())
    }
}

fn halves(shown: &BTreeMap<String, Vec<Shown>>, label: &str) -> Vec<Half> {
    let mut halves: Vec<Half> = shown.get(label).into_iter().flatten().map(|s| s.half).collect();
    halves.sort_unstable();
    halves
}
