//! `hactl check [--prove]`: each object by member.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use ha_core::group::{Checked, Word};
use serde::Serialize;

use crate::context::Context;
use crate::report::{Kept, ReportFile};
use crate::{Answer, output};

#[derive(Serialize)]
struct Document {
    schema: u8,
    groups: Vec<GroupDocument>,
}

#[derive(Serialize)]
struct GroupDocument {
    label: String,
    objects: Vec<ObjectDocument>,
    summary: Summary,
}

#[derive(Serialize)]
struct ObjectDocument {
    class: String,
    key_type: String,
    id: String,
    label: String,
    fingerprint: String,
    copyable: bool,
    members: BTreeMap<String, &'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
}

/// How many objects there are, each under the worst of its members' words.
#[derive(Serialize, Default)]
pub(crate) struct Summary {
    pub(crate) objects: usize,
    pub(crate) same: usize,
    pub(crate) missing: usize,
    pub(crate) different: usize,
    pub(crate) unproven: usize,
}

impl Summary {
    pub(crate) fn of<'a>(objects: impl Iterator<Item = &'a Checked>) -> Self {
        let mut summary = Summary::default();
        for object in objects {
            summary.objects += 1;
            *match object.worst() {
                Word::Same => &mut summary.same,
                Word::Missing => &mut summary.missing,
                Word::Different => &mut summary.different,
                Word::Unproven => &mut summary.unproven,
            } += 1;
        }
        summary
    }
}

/// A word as documents have it.
pub(crate) fn word(word: Word) -> &'static str {
    match word {
        Word::Same => "same",
        Word::Missing => "missing",
        Word::Different => "different",
        Word::Unproven => "unproven",
    }
}

/// Checks every group. Bad news: anything missing or different, and with `prove` anything unproven; a report that could not
/// be written. Reports are of `prove` only.
pub(crate) fn run(context: &Context, prove: bool, reports: &[ReportFile]) -> Result<Answer> {
    reports.iter().try_for_each(ReportFile::may_be_written)?;
    let provider = context.running()?;
    let mut kept = Kept::new();
    let mut groups = Vec::new();
    let mut well = true;
    for group in provider.groups() {
        let checked = if reports.is_empty() {
            group.check(prove)?
        } else {
            let examination = group.examine()?;
            kept.add(group, &examination);
            examination.objects.into_iter().map(|one| one.object).collect()
        };
        well &= group.status().members.iter().all(|m| m.state == ha_core::policy::health::State::Up);
        groups.push(document(&group.config.label, &checked));
    }
    for group in &groups {
        well &= group.summary.missing == 0
            && group.summary.different == 0
            && (!prove || group.summary.unproven == 0);
    }
    if context.json {
        output::json(&Document { schema: 1, groups })?;
    } else {
        for group in &groups {
            print(group);
        }
    }
    // After the words, which are not to be lost where it cannot be written any more.
    if !reports.is_empty() {
        match kept.write(reports) {
            Ok(()) => reports.iter().for_each(|file| eprintln!("the report is {}", file.path().display())),
            Err(error) => {
                eprintln!("hactl: {error:#}");
                well = false;
            }
        }
    }
    provider.shutdown(Duration::from_secs(5));
    Ok(if well { Answer::Well } else { Answer::BadNews })
}

fn document(label: &str, checked: &[Checked]) -> GroupDocument {
    let mut sorted: Vec<&Checked> = checked.iter().collect();
    sorted.sort_by(|a, b| a.order().cmp(&b.order()));
    let objects = sorted
        .into_iter()
        .map(|c| ObjectDocument {
            class: ha_core::names::class(c.class),
            key_type: ha_core::names::key_type(c.class, c.key_type),
            id: output::hex(&c.id),
            label: String::from_utf8_lossy(&c.label).into_owned(),
            fingerprint: c.fingerprint.map(|f| output::hex(&f)).unwrap_or_default(),
            copyable: c.copyable,
            members: c.members.iter().map(|(name, w)| (name.clone(), word(*w))).collect(),
            reasons: c.reasons.clone(),
        })
        .collect();
    GroupDocument { label: label.to_owned(), objects, summary: Summary::of(checked.iter()) }
}

fn print(group: &GroupDocument) {
    let names: Vec<&str> = group
        .objects
        .iter()
        .flat_map(|o| o.members.keys().map(String::as_str))
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    let mut header = vec!["class", "type", "id", "label", "fingerprint"];
    header.extend(&names);
    let mut table = output::table(&header);
    for o in &group.objects {
        let mut row = vec![
            o.class.clone(),
            o.key_type.clone(),
            o.id.clone(),
            // What a label says a terminal does not obey.
            o.label.escape_debug().to_string(),
            o.fingerprint.chars().take(16).collect(),
        ];
        row.extend(names.iter().map(|n| o.members.get(*n).copied().unwrap_or("").to_owned()));
        table.add_row(row);
    }
    println!("group {:?}", group.label);
    if !group.objects.is_empty() {
        println!("{table}");
    }
    for o in &group.objects {
        for reason in &o.reasons {
            println!("  {} {:?} {}: {reason}", o.class, o.label, o.id);
        }
    }
    let s = &group.summary;
    println!(
        "{} objects: {} same, {} missing, {} different, {} unproven",
        s.objects, s.same, s.missing, s.different, s.unproven
    );
}
