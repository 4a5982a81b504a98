//! `hactl sync` and `hactl adopt`: replicating by hand.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ha_core::group::{CaughtUp, Group, Origin, Word};
use ha_core::names;
use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_token::Rv;
use serde::Serialize;

use crate::context::{BadNews, Context};
use crate::{Answer, output};

#[derive(Serialize)]
struct SyncDocument {
    schema: u8,
    dry_run: bool,
    groups: Vec<SyncGroup>,
}

#[derive(Serialize)]
struct SyncGroup {
    label: String,
    members: Vec<SyncMember>,
    /// Objects from before the group, which only `adopt` copies.
    foreign: Vec<ForeignDocument>,
    /// Of the check afterwards.
    missing: usize,
    different: usize,
    #[serde(skip)]
    away: Vec<String>,
}

#[derive(Serialize)]
struct SyncMember {
    name: String,
    destroyed: usize,
    changed: usize,
    copied: usize,
    left: Vec<String>,
}

#[derive(Serialize)]
struct ForeignDocument {
    class: String,
    id: String,
    label: String,
    members: Vec<String>,
}

/// Brings every member up to date, then checks. Bad news: anything that is left, missing or different, a member that is
/// not up, and with `dry` anything that there is to do.
///
/// # Errors
/// The configuration, the PIN; what makes all of it impossible.
pub(crate) fn sync(context: &Context, dry: bool) -> Result<Answer> {
    let provider = context.running()?;
    let mut groups = Vec::new();
    for group in provider.groups() {
        let label = &group.config.label;
        let words = if dry {
            format!("group {label:?}: looking at what there is to do")
        } else {
            format!("group {label:?}: bringing the members up to date")
        };
        let done = output::busy(words, || group.sync(dry)).map_err(explain)?;
        let checked = output::busy(format!("group {label:?}: checking"), || group.check(false))?;
        let count = |word| checked.iter().filter(|c| c.worst() == word).count();
        groups.push(SyncGroup {
            label: label.clone(),
            members: done.into_iter().map(|(name, d)| member(name, d)).collect(),
            foreign: foreign(group),
            missing: count(Word::Missing),
            different: count(Word::Different),
            away: group
                .status()
                .members
                .into_iter()
                .filter(|m| m.state != State::Up)
                .map(|m| m.name)
                .collect(),
        });
    }
    let idle =
        |m: &SyncMember| m.left.is_empty() && (!dry || (m.destroyed, m.changed, m.copied) == (0, 0, 0));
    let well = groups
        .iter()
        .all(|g| g.away.is_empty() && g.missing == 0 && g.different == 0 && g.members.iter().all(idle));
    if context.json {
        output::json(&SyncDocument { schema: 1, dry_run: dry, groups })?;
    } else {
        groups.iter().for_each(|g| print_sync(g, dry));
    }
    provider.shutdown(Duration::from_secs(5));
    Ok(if well { Answer::Well } else { Answer::BadNews })
}

fn member(name: String, done: CaughtUp) -> SyncMember {
    SyncMember {
        name,
        destroyed: done.destroyed,
        changed: done.changed,
        copied: done.copied,
        left: done.left,
    }
}

/// What a check has seen and the ledger does not know.
fn foreign(group: &Group) -> Vec<ForeignDocument> {
    let objects = group.objects.select(|o| o.origin == Origin::Foreign);
    let name = |i: usize| group.members.get(i).map(|m| m.name().to_owned());
    let document = |o: &std::sync::Arc<ha_core::group::Object>| {
        let traits = o.traits();
        ForeignDocument {
            class: names::class(traits.class),
            id: output::hex(&traits.id),
            label: String::from_utf8_lossy(&traits.label).into_owned(),
            members: o.members().into_iter().filter_map(name).collect(),
        }
    };
    objects.iter().map(document).collect()
}

fn print_sync(group: &SyncGroup, dry: bool) {
    println!("group {:?}", group.label);
    let would = if dry { "to do: " } else { "" };
    for m in &group.members {
        println!(
            "  {}: {would}{} destroyed, {} changed, {} copied",
            m.name, m.destroyed, m.changed, m.copied
        );
        for line in &m.left {
            println!("    left: {line}");
        }
    }
    for name in &group.away {
        println!("  {name}: not up; what it lacks is brought to it when it is back");
    }
    if !group.foreign.is_empty() {
        println!("  from before the group, served from where they are and not copied:");
        for o in &group.foreign {
            println!("    {} {:?} {} on {}", o.class, o.label, o.id, o.members.join(", "));
        }
        let members: std::collections::BTreeSet<_> = group.foreign.iter().flat_map(|o| &o.members).collect();
        for member in members {
            println!(
                "    `hactl adopt {member}` makes those of {member} the group's own, where they can be copied"
            );
        }
    }
    println!("  then missing somewhere: {}, different: {}", group.missing, group.different);
}

#[derive(Serialize)]
struct AdoptDocument {
    schema: u8,
    group: String,
    member: String,
    dry_run: bool,
    objects: Vec<AdoptedDocument>,
    adopted: usize,
    left: usize,
}

#[derive(Serialize)]
struct AdoptedDocument {
    class: String,
    id: String,
    label: String,
    adopted: bool,
    why_not: Option<String>,
}

/// Makes one member's objects from before the group the group's own. Bad news: any that stays where it is.
///
/// # Errors
/// The configuration, the PIN, no such member; what makes all of it impossible.
pub(crate) fn adopt(context: &Context, member: &str, label: Option<&str>, dry: bool) -> Result<Answer> {
    let (provider, group) = running_with(context, member, label)?;
    let words = format!(
        "group {:?}: {} the objects of member {member:?}",
        group.config.label,
        if dry { "looking at" } else { "adopting" }
    );
    let adopted = output::busy(words, || group.adopt(member, dry)).map_err(|rv| explain_of(member, rv))?;
    let objects: Vec<_> = adopted
        .into_iter()
        .map(|a| AdoptedDocument {
            class: names::class(a.class),
            id: output::hex(&a.id),
            label: String::from_utf8_lossy(&a.label).into_owned(),
            adopted: a.why_not.is_none(),
            why_not: a.why_not,
        })
        .collect();
    let left = objects.iter().filter(|o| !o.adopted).count();
    let document = AdoptDocument {
        schema: 1,
        group: group.config.label.clone(),
        member: member.to_owned(),
        dry_run: dry,
        adopted: objects.len() - left,
        left,
        objects,
    };
    if context.json {
        output::json(&document)?;
    } else {
        print_adopted(&document);
    }
    provider.shutdown(Duration::from_secs(5));
    Ok(if left == 0 { Answer::Well } else { Answer::BadNews })
}

fn print_adopted(document: &AdoptDocument) {
    let done = if document.dry_run { "would be adopted" } else { "adopted" };
    for o in &document.objects {
        let what = o.why_not.as_deref().map_or(done.to_owned(), |why| format!("stays where it is: {why}"));
        println!("{} {:?} {}: {what}", o.class, o.label, o.id);
    }
    println!("{} {done}, {} stay on {} only", document.adopted, document.left, document.member);
}

#[derive(Serialize)]
struct DiscardDocument {
    schema: u8,
    group: String,
    member: String,
    dry_run: bool,
    destroyed: Vec<String>,
    left: Vec<String>,
}

/// Destroys what a member's token holds and the group does not know. Bad news: any that stays, and with `dry` any.
///
/// # Errors
/// As [`adopt`].
pub(crate) fn discard(context: &Context, member: &str, label: Option<&str>, dry: bool) -> Result<Answer> {
    let (provider, group) = running_with(context, member, label)?;
    let words = format!("group {:?}: looking for what is unknown on member {member:?}", group.config.label);
    let done = output::busy(words, || group.discard(member, dry)).map_err(|rv| explain_of(member, rv))?;
    let document = DiscardDocument {
        schema: 1,
        group: group.config.label.clone(),
        member: member.to_owned(),
        dry_run: dry,
        destroyed: done.destroyed,
        left: done.left,
    };
    let well = document.left.is_empty() && (!dry || document.destroyed.is_empty());
    if context.json {
        output::json(&document)?;
    } else {
        let did = if dry { "would be destroyed" } else { "destroyed" };
        document.destroyed.iter().for_each(|what| println!("{what}: {did}"));
        document.left.iter().for_each(|what| println!("{what}"));
        println!("{} {did}, {} left", document.destroyed.len(), document.left.len());
    }
    provider.shutdown(Duration::from_secs(5));
    Ok(if well { Answer::Well } else { Answer::BadNews })
}

/// The running group that has a member of this name.
fn running_with(context: &Context, member: &str, label: Option<&str>) -> Result<(Provider, Arc<Group>)> {
    let config = context.load()?;
    let candidates: Vec<usize> = config
        .groups
        .iter()
        .enumerate()
        .filter(|(_, g)| label.is_none_or(|l| l == g.label) && g.members.iter().any(|m| m.name == member))
        .map(|(n, _)| n)
        .collect();
    let place = match candidates.as_slice() {
        [one] => *one,
        [] => {
            let names: Vec<_> =
                config.groups.iter().flat_map(|g| &g.members).map(|m| m.name.as_str()).collect();
            bail!("no group has a member {member:?}; there are: {}", names.join(", "));
        }
        _ => bail!("several groups have a member {member:?}; name one with --group"),
    };
    let provider = context.running()?;
    let group = provider.groups().get(place).cloned().context("the configuration changed meanwhile")?;
    Ok((provider, group))
}

pub(crate) fn explain_of(member: &str, rv: Rv) -> anyhow::Error {
    match rv {
        Rv::TOKEN_NOT_PRESENT => {
            BadNews(format!("member {member:?} is not up; `hactl status` and `hactl doctor` say why")).into()
        }
        rv => explain(rv),
    }
}

/// A refusal of the group itself in words.
fn explain(rv: Rv) -> anyhow::Error {
    match rv {
        Rv::TOKEN_WRITE_PROTECTED => anyhow::anyhow!(
            "the group's ledger is another user's, or cannot be written: nothing is changed; run this as the user that the application runs as"
        ),
        rv => rv.into(),
    }
}
