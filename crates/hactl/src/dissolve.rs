//! `hactl dissolve`: the group ends, and plain tokens are left that work without it.
//!
//! Every token is brought up to date first, so that each holds what can be copied and nothing that was destroyed; then the group
//! keys go, and the ledger is put aside. The keys of applications stay where they are. What was interrupted is run again.

use anyhow::{Context as _, Result};
use ha_core::group::Word;
use ha_core::policy::health::State;
use ha_core::provider::{Provider, retire_ledger};
use serde::Serialize;

use crate::context::{BadNews, Context, GOODBYE, to_change};
use crate::{Answer, member, membership, output};

#[derive(Serialize)]
struct Document {
    schema: u8,
    group: String,
    /// Where the ledger is now.
    ledger: String,
    members: Vec<Plain>,
}

/// A token that is nobody's member any more.
#[derive(Serialize)]
struct Plain {
    name: String,
    objects: usize,
    /// Objects that others hold, and this token does not.
    without: Vec<String>,
}

/// Dissolves a group.
///
/// # Errors
/// Processes that use it, members that are not up, what a member is yet to be told; nothing was changed then. What a token
/// does not give up.
pub(crate) fn run(context: &Context, label: Option<&str>) -> Result<Answer> {
    let mut config = context.load()?;
    let label = membership::the_only(&config.groups, label)?;
    config.groups.retain(|g| g.label == label);
    let settings = config.groups.first().cloned().context("the group was there")?;
    let pin = context.pin()?;
    let (board, _turn) = member::operate(&config, &label)?;
    member::is_unused(&board)?;
    let provider = Provider::for_operator(config.clone())?;
    let group = to_change(&provider, &pin)?;
    let status = group.status();
    let away: Vec<_> =
        status.members.iter().filter(|m| m.state != State::Up).map(|m| m.name.as_str()).collect();
    if !away.is_empty() {
        return Err(BadNews(format!(
            "nothing was changed: not up: {}; the group's own objects would stay on them. `hactl member remove` takes out what is dead",
            away.join(", ")
        ))
        .into());
    }
    let done =
        output::busy(format!("group {label:?}: bringing every token up to date"), || group.sync(false))?;
    let untold: Vec<_> = done.iter().filter(|(_, d)| d.left.len() > d.uncopyable).collect();
    if !untold.is_empty() {
        let lines: Vec<_> = untold
            .iter()
            .flat_map(|(name, d)| d.left.iter().map(move |line| format!("\n  {name}: {line}")))
            .collect();
        return Err(BadNews(format!(
            "nothing was changed: what tokens are yet to be told:{}",
            lines.concat()
        ))
        .into());
    }
    let checked = output::busy("proving what each token holds".into(), || group.check(true))?;
    if let Some(different) = checked.iter().find(|c| c.worst() == Word::Different) {
        return Err(BadNews(format!(
            "nothing was changed: {} is not the same on every token; `hactl check --prove` says more",
            membership::words_of(different)
        ))
        .into());
    }
    let names: Vec<String> = group.members.iter().map(|m| m.name().to_owned()).collect();
    for name in &names {
        group.take_keys_off(name).with_context(|| {
            format!("member {name:?} did not give up its group keys; run this again when it does")
        })?;
    }
    let plain = |name: &String| {
        let has = |word: Word| {
            checked.iter().filter(move |c| c.members.iter().any(|(n, w)| n == name && *w == word))
        };
        Plain {
            name: name.clone(),
            objects: has(Word::Same).chain(has(Word::Unproven)).count(),
            without: has(Word::Missing).map(membership::words_of).collect(),
        }
    };
    let members: Vec<_> = names.iter().map(plain).collect();
    provider.shutdown(GOODBYE);
    drop((group, provider));
    let ledger = retire_ledger(&config, &settings)
        .context("the tokens are plain ones now, and the ledger could not be put aside; run this again")?;
    let document = Document { schema: 1, group: label, ledger: ledger.display().to_string(), members };
    if context.json {
        output::json(&document)?;
    } else {
        print(&document);
    }
    Ok(Answer::Well)
}

fn print(document: &Document) {
    println!("group {:?} is dissolved; its ledger is put aside as {}", document.group, document.ledger);
    for member in &document.members {
        println!("  token of member {:?}: {} objects", member.name, member.objects);
        member.without.iter().for_each(|line| println!("    without {line}"));
    }
    println!(
        "programs use the tokens' own modules now; a program that starts with this configuration makes a new group of them"
    );
}
