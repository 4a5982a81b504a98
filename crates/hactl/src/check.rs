//! `hactl check [--prove]`: each object by member.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use ha_core::group::{Checked, Word};
use serde::Serialize;

use crate::context::Context;
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

#[derive(Serialize, Default)]
struct Summary {
    objects: usize,
    same: usize,
    missing: usize,
    different: usize,
    unproven: usize,
}

fn word(word: Word) -> &'static str {
    match word {
        Word::Same => "same",
        Word::Missing => "missing",
        Word::Different => "different",
        Word::Unproven => "unproven",
    }
}

/// Checks every group. Bad news: anything missing or different, and with `prove` anything unproven.
pub(crate) fn run(context: &Context, prove: bool) -> Result<Answer> {
    let provider = context.running()?;
    let mut groups = Vec::new();
    let mut well = true;
    for group in provider.groups() {
        let checked = group.check(prove)?;
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
    provider.shutdown(Duration::from_secs(5));
    Ok(if well { Answer::Well } else { Answer::BadNews })
}

fn document(label: &str, checked: &[Checked]) -> GroupDocument {
    let mut summary = Summary { objects: checked.len(), ..Summary::default() };
    let mut sorted: Vec<&Checked> = checked.iter().collect();
    sorted.sort_by(|a, b| (&a.label, &a.id, a.class).cmp(&(&b.label, &b.id, b.class)));
    let objects = sorted
        .into_iter()
        .map(|c| {
            match c.worst() {
                Word::Same => summary.same += 1,
                Word::Missing => summary.missing += 1,
                Word::Different => summary.different += 1,
                Word::Unproven => summary.unproven += 1,
            }
            ObjectDocument {
                class: ha_core::names::class(c.class),
                key_type: ha_core::names::key_type(c.class, c.key_type),
                id: output::hex(&c.id),
                label: String::from_utf8_lossy(&c.label).into_owned(),
                fingerprint: c.fingerprint.map(|f| output::hex(&f)).unwrap_or_default(),
                copyable: c.copyable,
                members: c.members.iter().map(|(name, w)| (name.clone(), word(*w))).collect(),
                reasons: c.reasons.clone(),
            }
        })
        .collect();
    GroupDocument { label: label.to_owned(), objects, summary }
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
            o.label.clone(),
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
