//! `hactl ledger backup/restore/rebuild`: the ledger's life beyond this host's disk.
//!
//! A backup is older than the tokens, which know what happened since, and so may be what a token has recorded. A ledger that
//! is made of either is compared with all of them in a folder of its own, and takes its place only then: what no token holds
//! is forgotten, and what only some hold an operator decides.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use ha_core::config::{Config, GroupConfig};
use ha_core::group::{Group, Partly, Whereabouts};
use ha_core::policy::health::State;
use ha_core::provider::{
    Provider, backup_ledger, ledger_of, open_ledger_in, open_present_ledger, replace_ledger,
};
use ha_core::replica::ledger::Ledger;
use serde::Serialize;
use serde_json::json;

use crate::context::{BadNews, Context, GOODBYE, log_in, to_change};
use crate::{Answer, member, membership, output};

/// What became of an object that some tokens hold and others, which held it when the backup was made, do not.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Gone {
    /// It was destroyed since: it is destroyed on the others too.
    Destroyed,
    /// Those that do not hold it lost it: they are given it again.
    Lost,
}

#[derive(Serialize)]
struct Document {
    schema: u8,
    group: String,
    /// Where the ledger is that was there before.
    before: Option<String>,
    /// How many objects it knows that are on tokens.
    objects: usize,
    /// What no token holds any more.
    forgotten: Vec<String>,
    /// What some tokens still hold, and are to destroy.
    to_destroy: Vec<String>,
    /// What some tokens lost, and are to be given.
    to_give: Vec<String>,
    /// What cannot be told of some token.
    unclear: Vec<String>,
}

/// Writes the ledger into a new file.
///
/// # Errors
/// No such group, no ledger; a file that is there already, or cannot be made.
pub(crate) fn backup(context: &Context, file: &Path, label: Option<&str>) -> Result<Answer> {
    let config = context.load()?;
    let group = the_group(&config, label)?;
    backup_ledger(&config, group, file)?;
    let bytes = std::fs::metadata(file)?.len();
    if context.json {
        output::json(&json!({"schema": 1, "group": group.label, "file": file, "bytes": bytes}))?;
    } else {
        println!("the ledger of group {:?} is in {} ({bytes} bytes)", group.label, file.display());
    }
    Ok(Answer::Well)
}

/// Makes of a backup the group's ledger.
///
/// # Errors
/// In words that say what to do; the group has the ledger then that it had.
pub(crate) fn restore(context: &Context, file: &Path, label: Option<&str>, how: How) -> Result<Answer> {
    bring_back(context, label, how, &|making| {
        Ledger::from_backup(file, making.apart, &making.group.label, making.present)
            .context("nothing was changed")
    })
}

/// Makes of what the members' tokens have recorded the group's ledger.
///
/// # Errors
/// As [`restore`].
pub(crate) fn rebuild(context: &Context, label: Option<&str>, how: How) -> Result<Answer> {
    bring_back(context, label, how, &make_of_records)
}

fn make_of_records(making: &Making<'_>) -> Result<()> {
    let reading = tempfile::Builder::new().prefix(APART).tempdir_in(&making.config.state_dir)?;
    let mut config = making.config.clone();
    (config.groups, config.state_dir) = (vec![making.group.clone()], reading.path().to_owned());
    let place = open_ledger_in(&config, making.group).context("nothing was changed")?;
    // A PIN that was refused is not sent once more.
    making.present.map(|present| place.take_over(present)).transpose()?;
    drop(place);
    let provider = Provider::for_operator(config)?;
    let group = provider.groups().first().context("the group did not start")?;
    group.to_be_rebuilt();
    log_in(group, making.pin)?;
    all_up(group)?;
    let recorded = output::busy("reading what the tokens have recorded".into(), || group.recorded());
    let recorded = recorded.map_err(|e| BadNews(format!("nothing was changed: {e}")))?;
    provider.shutdown(GOODBYE);
    if recorded.damaged > 0 {
        tracing::warn!(
            member = recorded.member,
            damaged = recorded.damaged,
            "some of what the token has recorded cannot be read: objects of it are shown as from before the group"
        );
    }
    let (marker, apart) = (&recorded.marker, making.apart);
    let label = &making.group.label;
    Ledger::from_records(apart, label, &marker.identity, marker.epoch, &recorded.behind, &recorded.records)?;
    let mut config = making.config.clone();
    apart.clone_into(&mut config.state_dir);
    let made = open_ledger_in(&config, making.group).context("nothing was changed")?;
    making.present.map(|present| made.take_over(present)).transpose()?;
    Ok(())
}

/// What becomes of what only an operator can tell.
#[derive(Clone, Copy)]
pub(crate) struct How {
    /// What is gone from some tokens, and not from all.
    pub(crate) gone: Option<Gone>,
    /// Whether a ledger that is there is put aside.
    pub(crate) replace: bool,
}

/// What a ledger is made with.
struct Making<'a> {
    config: &'a Config,
    group: &'a GroupConfig,
    pin: &'a [u8],
    /// Where it is made.
    apart: &'a Path,
    /// The one that is there.
    present: Option<&'a Ledger>,
}

fn bring_back(
    context: &Context,
    label: Option<&str>,
    How { gone, replace }: How,
    make: &dyn Fn(&Making<'_>) -> Result<()>,
) -> Result<Answer> {
    let config = context.load()?;
    let group = the_group(&config, label)?.clone();
    let pin = context.pin()?;
    let dir = config.state_dir.display();
    if !config.state_dir.exists() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&config.state_dir)
            .with_context(|| dir.to_string())?;
    }
    let (board, _turn) = member::operate(&config, &group.label)?;
    member::is_unused(&board)?;
    remove_forsaken(&config.state_dir);
    let present = open_present_ledger(&config, &group);
    let version = |present: &Ledger| present.version_of_others();
    let before = present.as_ref().map(version).transpose()?;
    // One that was made when the lost one was missed knows nothing.
    let is_new = |present: &Ledger| present.has_begun().is_ok_and(|begun| !begun);
    if !replace
        && !present.as_ref().is_some_and(is_new)
        && let Some(there) = ledger_of(&config, &group)
    {
        let what = match present {
            Some(_) => {
                "knows what the new one may not; --replace goes on, and keeps what it knows to be destroyed"
            }
            // It may be of a newer version, or held by a process that is stuck.
            None => {
                "cannot be opened, for the reason above; --replace puts it aside, and nothing of it is kept"
            }
        };
        return Err(BadNews(format!(
            "nothing was changed: the group has a ledger, {}, which {what}",
            there.display()
        ))
        .into());
    }
    let apart = tempfile::Builder::new()
        .prefix(APART)
        .tempdir_in(&config.state_dir)
        .with_context(|| format!("nothing was changed: {dir} cannot be written"))?;
    make(&Making {
        config: &config,
        group: &group,
        pin: &pin,
        apart: apart.path(),
        present: present.as_ref(),
    })?;
    let objects = compare(&config, &group, apart.path(), present.as_ref(), &pin, gone)?;
    member::is_unused(&board)?;
    if present.as_ref().map(version).transpose()? != before {
        return Err(BadNews(
            "nothing was changed: a process has used the group meanwhile; run this again".into(),
        )
        .into());
    }
    let before = replace_ledger(&config, &group, apart.path(), present)
        .with_context(|| format!("the new ledger could not be put into {dir}"))?;

    let words = |wanted: &dyn Fn(&&Whereabouts) -> bool| -> Vec<String> {
        objects.iter().filter(wanted).map(|s| s.object.clone()).collect()
    };
    let partly = |how: Gone| words(&|s| s.is_partly_gone() && gone == Some(how));
    let is_nowhere = |s: &Whereabouts| s.on.is_empty() && s.unclear.is_empty() && !s.was_destroyed;
    let document = Document {
        schema: 1,
        group: group.label.clone(),
        before: before.map(|p| p.display().to_string()),
        objects: objects.iter().filter(|s| !is_nowhere(s) && !s.was_destroyed).count(),
        forgotten: words(&|s| is_nowhere(s)),
        to_destroy: partly(Gone::Destroyed),
        to_give: partly(Gone::Lost),
        unclear: words(&|s| !s.unclear.is_empty()),
    };
    if context.json {
        output::json(&document)?;
    } else {
        print(&document);
    }
    Ok(if document.unclear.is_empty() { Answer::Well } else { Answer::BadNews })
}

/// What the folder of a ledger that is compared is called.
const APART: &str = "restoring-";

/// What commands left that were ended: none other goes on in this one's turn.
fn remove_forsaken(dir: &Path) {
    let left = std::fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in left.filter(|e| e.file_name().to_string_lossy().starts_with(APART)) {
        _ = std::fs::remove_dir_all(entry.path());
    }
}

fn the_group<'a>(config: &'a Config, label: Option<&str>) -> Result<&'a GroupConfig> {
    let label = membership::the_only(&config.groups, label)?;
    config.groups.iter().find(|g| g.label == label).context("the group was there")
}

/// Compares the ledger in a folder of its own with the tokens, and has it say what they hold.
fn compare(
    config: &Config,
    group: &GroupConfig,
    apart: &Path,
    present: Option<&Ledger>,
    pin: &[u8],
    gone: Option<Gone>,
) -> Result<Vec<Whereabouts>> {
    let mut config = config.clone();
    config.groups = vec![group.clone()];
    config.state_dir = apart.to_owned();
    if ledger_of(&config, group).is_none() {
        bail!("nothing was changed: the folder {} cannot hold a ledger", apart.display());
    }
    let restored = open_present_ledger(&config, group).map(|l| l.identity());
    if let (Some(present), Some(restored)) = (present, &restored)
        && present.identity().group != restored.group
        && present.is_known_to_tokens()?
    {
        bail!("nothing was changed: it is another group's ledger");
    }
    let provider = Provider::for_operator(config)?;
    let running = to_change(&provider, pin)?;
    all_up(&running)?;
    if !running.keeps_its_keys_without("")? {
        bail!(
            "nothing was changed: no token has the group keys that the ledger knows: it is another group's, or the tokens were made anew"
        );
    }
    let objects = output::busy("comparing the ledger with the tokens".into(), || running.compare_restored())?;
    let partly: Vec<_> = objects
        .iter()
        .filter(|s| s.is_partly_gone())
        .map(|s| match s.was_destroyed {
            true => format!("\n  {}: destroyed before, and on {}", s.object, s.on.join(", ")),
            false => {
                format!("\n  {}: on {}, and not on {}", s.object, s.on.join(", "), s.gone_from.join(", "))
            }
        })
        .collect();
    let how = match gone {
        None if !partly.is_empty() => {
            return Err(BadNews(format!(
                "nothing was changed: of these only some tokens hold what the ledger knows{}\nwhat was destroyed since: --gone destroyed; what tokens lost, or have again: --gone lost",
                partly.concat()
            ))
            .into());
        }
        Some(Gone::Destroyed) => Partly::Destroyed,
        Some(Gone::Lost) | None => Partly::Lost,
    };
    running.accept_restored(&objects, how)?;
    provider.shutdown(GOODBYE);
    Ok(objects)
}

/// Whether every token can be asked.
fn all_up(group: &Group) -> Result<()> {
    let away: Vec<_> = group
        .status()
        .members
        .into_iter()
        .filter(|m| m.state != State::Up)
        .map(|m| format!("\n  {} is {}: {}", m.name, m.state, m.connect_error.unwrap_or_default()))
        .collect();
    if away.is_empty() {
        return Ok(());
    }
    Err(BadNews(format!(
        "nothing was changed: every token has to be asked what it holds; take out of the configuration what is dead{}",
        away.concat()
    ))
    .into())
}

fn print(document: &Document) {
    println!(
        "group {:?} has the new ledger, of {} objects that are on its tokens",
        document.group, document.objects
    );
    if let Some(before) = &document.before {
        println!("  the one that it had is put aside as {before}");
    }
    for (what, objects) in [
        ("on no token any more, forgotten", &document.forgotten),
        ("to be destroyed where it still is", &document.to_destroy),
        ("to be given again to who lost it", &document.to_give),
        ("not proven on some token", &document.unclear),
    ] {
        objects.iter().for_each(|object| println!("  {what}: {object}"));
    }
    println!(
        "now `hactl sync`, then `hactl check --prove`; what is not in it is shown as from before the group: `hactl adopt`"
    );
}
