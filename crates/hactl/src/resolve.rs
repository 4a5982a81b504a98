//! `hactl resolve`: objects of one name that are not one, and which of them is to stay.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use ha_core::group::{Checked, Fate, Group, Named, Rival, Word};
use ha_core::names;
use ha_core::policy::health::State;
use ha_token::Rv;
use serde::Serialize;

use crate::adopt::explain_of;
use crate::context::{BadNews, Context, GOODBYE};
use crate::membership::the_only;
use crate::{Answer, output};

/// Which objects, and what becomes of them.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The member whose object stays; without it the conflicts are listed.
    #[arg(long, value_name = "MEMBER")]
    keep: Option<String>,
    /// The objects' label.
    #[arg(long, requires = "keep")]
    label: Option<String>,
    /// The objects' id, in hexadecimal digits.
    #[arg(long, value_name = "HEX", requires = "keep")]
    id: Option<Id>,
    /// Only says what would be destroyed.
    #[arg(long, requires = "keep")]
    dry_run: bool,
    /// Destroys without asking.
    #[arg(long, requires = "keep", conflicts_with = "dry_run")]
    yes: bool,
    /// The group's label, where there are several.
    #[arg(long, value_name = "LABEL")]
    group: Option<String>,
}

/// An id of an object.
#[derive(Clone)]
struct Id(Vec<u8>);

impl std::str::FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected two hexadecimal digits for each byte".to_owned();
        if text.is_empty() || !text.len().is_multiple_of(2) || !text.is_ascii() {
            return Err(wrong());
        }
        let byte = |at: usize| text.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
        (0..text.len()).step_by(2).map(byte).collect::<Option<_>>().map(Id).ok_or_else(wrong)
    }
}

#[derive(Serialize)]
struct Document {
    schema: u8,
    group: String,
    /// Whether anything was destroyed: a list, or a rehearsal, destroys nothing.
    done: bool,
    objects: Vec<ObjectDocument>,
}

#[derive(Serialize)]
struct ObjectDocument {
    member: String,
    class: String,
    id: String,
    label: String,
    fingerprint: Option<String>,
    /// Of a conflict that is listed: `different`; of one that is resolved: `stays`, `destroyed` (or would be), `refused`, `unclear`.
    fate: String,
}

/// Lists what is in conflict, or has one of each stay. Bad news: a conflict, or one that is left.
///
/// # Errors
/// The group, the member, the name; no answer where one is asked for.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result<Answer> {
    let label = the_only(&context.load()?.groups, arguments.group.as_deref())?;
    let named = Named {
        label: arguments.label.as_ref().map(|label| label.as_bytes().to_vec()),
        id: arguments.id.as_ref().map(|id| id.0.clone()),
    };
    if arguments.keep.is_some() && named == Named::default() {
        bail!("say which objects: --label, --id, or both");
    }
    let provider = context.running()?;
    let group = provider.groups().iter().find(|g| g.config.label == label).context("the group was there")?;
    let answer = match &arguments.keep {
        None => list(context, group),
        Some(keep) => resolve(context, group, &named, keep, arguments),
    };
    // Of a member that was not asked nobody knows.
    let states = group.status().members.into_iter();
    let away: Vec<_> = states.filter(|m| m.state != State::Up).map(|m| m.name).collect();
    provider.shutdown(GOODBYE);
    let mut answer = answer?;
    if answer == Answer::Well && arguments.keep.is_some() && is_still_different(context, &label, &named)? {
        eprintln!("hactl: other objects of that name are still in conflict: see `hactl resolve`");
        answer = Answer::BadNews;
    }
    if !away.is_empty() {
        eprintln!("hactl: not asked: {}", away.join(", "));
        answer = Answer::BadNews;
    }
    Ok(answer)
}

/// Whether objects of that name are in conflict for a program that starts now.
fn is_still_different(context: &Context, label: &str, named: &Named) -> Result<bool> {
    let provider = context.running()?;
    let group = provider.groups().iter().find(|g| g.config.label == label).context("the group was there")?;
    let checked = output::busy("looking at what is left".into(), || group.check(true))?;
    provider.shutdown(GOODBYE);
    let is_named = |c: &Checked| {
        named.label.as_ref().is_none_or(|label| *label == c.label)
            && named.id.as_ref().is_none_or(|id| *id == c.id)
    };
    Ok(checked.iter().any(|c| c.worst() == Word::Different && is_named(c)))
}

fn list(context: &Context, group: &Group) -> Result<Answer> {
    let checked = output::busy("proving every copy".into(), || group.check(true))?;
    let on = |c: &Checked| -> Vec<ObjectDocument> {
        let of = |(member, _): &(String, Word)| ObjectDocument {
            member: member.clone(),
            class: names::class(c.class),
            id: output::hex(&c.id),
            label: String::from_utf8_lossy(&c.label).into_owned(),
            // What the ledger knows is not what this member has.
            fingerprint: c.fingerprint.filter(|_| c.foreign).map(|f| output::hex(&f)),
            fate: "different".into(),
        };
        c.members.iter().filter(|(_, word)| *word == Word::Different).map(of).collect()
    };
    let objects: Vec<_> = checked.iter().flat_map(on).collect();
    let well = objects.is_empty();
    if !context.json {
        objects.iter().for_each(tell);
        match objects.len() {
            0 => println!("no conflict"),
            _ => println!(
                "of objects with one name which are not one, say which stays: `hactl resolve --keep MEMBER --label LABEL --id HEX`"
            ),
        }
    }
    finish(context, group, false, objects, well)
}

fn resolve(
    context: &Context,
    group: &Group,
    named: &Named,
    keep: &str,
    arguments: &Arguments,
) -> Result<Answer> {
    let look = |agreed: &[Rival]| {
        output::busy("comparing the members' objects".into(), || group.resolve_conflict(named, keep, agreed))
            .map_err(|rv| words_of(keep, rv))
    };
    let would_be = look(&[])?;
    if would_be.is_empty() {
        return Err(
            BadNews(format!("nothing was changed: member {keep:?} has no object of that name")).into()
        );
    }
    let goes = would_be.iter().filter(|rival| rival.fate == Fate::Goes).count();
    let done = goes > 0 && !arguments.dry_run;
    let rivals = if done {
        if !arguments.yes {
            is_wanted(&would_be)?;
        }
        // What has come since is not what was agreed to.
        let rivals = look(&would_be)?;
        output::busy("bringing the members up to date".into(), || group.sync(false))
            .map_err(|rv| words_of(keep, rv))?;
        rivals
    } else {
        would_be
    };
    let is_left = |rival: &Rival| match rival.fate {
        Fate::Stays => false,
        Fate::Goes => !done,
        Fate::Refused(_) | Fate::Unclear => true,
    };
    let well = !rivals.iter().any(is_left);
    let objects: Vec<_> = rivals.iter().map(|rival| document(rival, done)).collect();
    if !context.json {
        objects.iter().for_each(tell);
    }
    finish(context, group, done, objects, well)
}

/// Asks whether this is to be done.
fn is_wanted(rivals: &[Rival]) -> Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!("nothing was changed: say --yes to destroy, or --dry-run to see what would be");
    }
    eprintln!("these would be destroyed:");
    for rival in rivals.iter().filter(|rival| rival.fate == Fate::Goes) {
        let object = document(rival, false);
        eprintln!("  {}", line(&object));
    }
    eprint!("destroy them? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim().eq_ignore_ascii_case("y") { Ok(()) } else { bail!("nothing was changed") }
}

fn document(rival: &Rival, done: bool) -> ObjectDocument {
    let fate = match rival.fate {
        Fate::Stays => "stays".into(),
        Fate::Goes if done => "destroyed".into(),
        Fate::Goes => "would be destroyed".into(),
        Fate::Refused(rv) => format!("refused: {rv}"),
        Fate::Unclear => "unclear".into(),
    };
    ObjectDocument {
        member: rival.member.clone(),
        class: names::class(rival.class),
        id: output::hex(&rival.id),
        label: String::from_utf8_lossy(&rival.label).into_owned(),
        fingerprint: rival.fingerprint.map(|f| output::hex(&f)),
        fate,
    }
}

fn line(object: &ObjectDocument) -> String {
    let ObjectDocument { member, class, id, label, fingerprint, fate } = object;
    let digits = fingerprint.as_deref().map(|f| f.get(..16).unwrap_or(f)).unwrap_or("");
    format!("{class} {label:?} {id} on {member}, {fate} {digits}").trim_end().to_owned()
}

fn tell(object: &ObjectDocument) {
    println!("{}", line(object));
}

fn finish(
    context: &Context,
    group: &Group,
    done: bool,
    objects: Vec<ObjectDocument>,
    well: bool,
) -> Result<Answer> {
    if context.json {
        output::json(&Document { schema: 1, group: group.config.label.clone(), done, objects })?;
    }
    Ok(if well { Answer::Well } else { Answer::BadNews })
}

fn words_of(keep: &str, rv: Rv) -> anyhow::Error {
    match rv {
        Rv::KEY_CHANGED => anyhow!(BadNews(format!(
            "nothing was changed: what member {keep:?} has is not what the group knows under that name: keep the member that has that, or destroy the group's own object first"
        ))),
        rv => explain_of(keep, rv),
    }
}
