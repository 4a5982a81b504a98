//! The report for people: one HTML file that needs nothing else.
//!
//! Labels, names and what tokens say of themselves are others' text: whatever is not this file's own markup goes through
//! [`text`].

use std::collections::BTreeSet;
use std::io::{Result, Write};

use ha_page::{Columns, END, beginning, escaped, table, table_of_markup};

use super::document::{Copy, Document, Group, Object};
use super::proof::Proof;

const STYLE: &str = "h3{font-size:1em;margin:1.8em 0 .2em;padding-top:.5em;border-top:2px solid #ddd}\
h4{font-size:.95em;margin:.8em 0 .1em}a{color:inherit}\
.same{color:#2c7a30}.different,.missing{color:#c00000;font-weight:600}.unproven{color:#a86400;font-weight:600}\
pre,td.bytes,td.bytes code{font:12px/1.45 ui-monospace,monospace}pre{background:#f6f6f6;padding:.5em .7em;overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere}\
table.proof{width:100%;table-layout:fixed}table.proof td:first-child{width:9.5em;color:#666;vertical-align:top}td.bytes{overflow-wrap:anywhere}\
@media print{h3,h4{break-after:avoid}pre{background:none;border:1px solid #ddd}}";

/// Writes it.
///
/// # Errors
/// Those of the writer.
pub(super) fn write(out: &mut impl Write, document: &Document) -> Result<()> {
    let labels: Vec<String> = document.groups.iter().map(|g| format!("\"{}\"", shown(&g.label))).collect();
    let title = format!("Key replication check of {}", labels.join(", "));
    out.write_all(beginning(&title, STYLE, document.well, &shown(&document.verdict)).as_bytes())?;
    let about = [
        ["begun", &document.begun],
        ["ended", &document.ended],
        ["by", &format!("{} {}", document.program, document.version)],
    ];
    let about = about.map(|row| row.map(str::to_owned).to_vec());
    writeln!(out, "{}", table(Columns::Words, &["check", ""], about.into_iter()))?;
    for (at, group) in document.groups.iter().enumerate() {
        overview(out, at, group)?;
    }
    how(out, document)?;
    for (at, group) in document.groups.iter().enumerate() {
        writeln!(out, "<h2>What each member of group {} answered</h2>", quoted(&group.label))?;
        for (number, object) in group.objects.iter().enumerate() {
            writeln!(out, "<section id=\"{}\">", anchor(at, number))?;
            evidence(out, object)?;
            writeln!(out, "</section>")?;
        }
    }
    out.write_all(END.as_bytes())
}

/// Others' text as markup.
fn text(text: &str) -> String {
    escaped(&shown(text))
}

/// Others' text, which cannot seem to be another one: what is not seen, or turns the direction of what follows, is written as
/// its number.
fn shown(text: &str) -> String {
    let seen = |c: char| match c {
        '"' | '\'' | '\\' => c.to_string(),
        c => c.escape_debug().to_string(),
    };
    text.chars().map(seen).collect()
}

fn quoted(label: &str) -> String {
    format!("<bdi>&quot;{}&quot;</bdi>", text(label))
}

fn anchor(group: usize, object: usize) -> String {
    format!("o{group}-{object}")
}

fn overview(out: &mut impl Write, at: usize, group: &Group) -> Result<()> {
    writeln!(out, "<h2>Group {}</h2>", quoted(&group.label))?;
    let members = group.members.iter().map(|member| {
        let token = |f: fn(&super::document::Token) -> &String| {
            member.token.as_ref().map(|token| shown(f(token))).unwrap_or_default()
        };
        vec![
            shown(&member.name),
            if member.token.is_some() { "yes" } else { "no" }.to_owned(),
            member.state.clone(),
            token(|t| &t.label),
            token(|t| &t.serial),
            token(|t| &t.model),
            token(|t| &t.manufacturer),
            token(|t| &t.firmware),
        ]
    });
    let header = ["member", "asked", "state", "token", "serial number", "model", "manufacturer", "firmware"];
    writeln!(out, "{}", table(Columns::Words, &header, members))?;
    let s = &group.summary;
    writeln!(
        out,
        "<p>{} objects: {} same, {} missing, {} different, {} unproven.</p>",
        s.objects, s.same, s.missing, s.different, s.unproven
    )?;
    let names: Vec<&str> = group.members.iter().map(|m| m.name.as_str()).collect();
    let escaped_names: Vec<String> = names.iter().map(|name| shown(name)).collect();
    let mut header = vec!["class", "type", "id", "label", "fingerprint"];
    header.extend(escaped_names.iter().map(String::as_str));
    let rows = group.objects.iter().enumerate().map(|(number, object)| {
        let mut row = vec![
            format!("<a href=\"#{}\">{}</a>", anchor(at, number), text(&object.class)),
            text(&object.key_type),
            format!("<code>{}</code>", text(&object.id)),
            format!("<bdi>{}</bdi>", text(&object.label)),
            match object.fingerprint.get(..16) {
                Some(begin) => format!("<code>{}</code>", text(begin)),
                None => String::new(),
            },
        ];
        row.extend(names.iter().map(|name| {
            let copy = object.copies.iter().find(|copy| copy.member == *name);
            copy.map_or_else(
                || if object.conflict { "" } else { "not asked" }.to_owned(),
                |copy| word(copy.word),
            )
        }));
        row
    });
    if group.objects.is_empty() {
        return Ok(());
    }
    writeln!(out, "{}", table_of_markup(Columns::Words, &header, rows))
}

fn word(word: &str) -> String {
    format!("<span class=\"{word}\">{word}</span>")
}

fn how(out: &mut impl Write, document: &Document) -> Result<()> {
    writeln!(out, "<h2>How to verify it</h2>\n<p>{}</p>", escaped(document.how_to_verify))?;
    let proofs = document.groups.iter().flat_map(|g| &g.objects).flat_map(|o| &o.copies);
    let commands: BTreeSet<(&str, &str)> = proofs
        .filter_map(|c| c.proof.as_ref())
        .filter_map(|p| Some((p.kind, p.verify.as_deref()?)))
        .collect();
    writeln!(out, "<p>For example, with the digits copied from below:</p>\n<pre>{}</pre>", escaped(EXAMPLE))?;
    let rows = document.kinds.iter().map(|(kind, what)| {
        let mut commands = commands.iter().filter(|(of, _)| of == kind).map(|(_, command)| *command);
        let first = commands.next().unwrap_or_default();
        let code = commands.fold(format!("<code>{}</code>", escaped(first)), |all, command| {
            format!("{all}<br><code>{}</code>", escaped(command))
        });
        vec![escaped(kind), format!("{}<br>{code}", escaped(what))]
    });
    let kinds = table_of_markup(Columns::Words, &["kind of proof", "what it is, and the command"], rows);
    writeln!(out, "{kinds}\n<h2>What this shows, and what it does not</h2>\n<ul>")?;
    for limit in document.limits {
        writeln!(out, "<li>{}</li>", escaped(limit))?;
    }
    writeln!(out, "</ul>")
}

const EXAMPLE: &str =
    "cat > key.pem                                # paste the object's public key, then Ctrl-D
echo 706b63733131… | xxd -r -p > challenge
echo 3045022100ab… | xxd -r -p > signature   # and so on for each row of the proof
openssl dgst -sha256 -verify key.pem -signature signature challenge
Verified OK";

fn evidence(out: &mut impl Write, object: &Object) -> Result<()> {
    writeln!(
        out,
        "<h3>{} {} {}, id <code>{}</code></h3>",
        text(&object.class),
        text(&object.key_type),
        quoted(&object.label),
        text(&object.id)
    )?;
    let mut facts = Vec::new();
    if !object.fingerprint.is_empty() {
        facts.push(format!("fingerprint <code>{}</code>", text(&object.fingerprint)));
    }
    if !object.copyable {
        facts.push("cannot be copied to another member".to_owned());
    }
    if object.conflict {
        facts.push(
            "another object of the same class, label and id is a different one, so neither is used; what follows is what this one answers, verified with its own key"
                .to_owned(),
        );
    }
    if !object.not_asked.is_empty() {
        let names: Vec<String> = object.not_asked.iter().map(|name| text(name)).collect();
        facts.push(format!("not asked: {}", names.join(", ")));
    }
    if !facts.is_empty() {
        writeln!(out, "<p class=\"key\">{}</p>", facts.join("; "))?;
    }
    if let Some(key) = &object.public_key {
        writeln!(out, "<pre>{}</pre>", escaped(key.trim_end()))?;
    }
    object.copies.iter().try_for_each(|copy| testimony(out, copy))
}

fn testimony(out: &mut impl Write, copy: &Copy) -> Result<()> {
    let reason = copy.reason.as_ref().map(|reason| format!(" ({})", text(reason))).unwrap_or_default();
    writeln!(
        out,
        "<h4>{}, token {}, serial number <code>{}</code>: {}{reason}</h4>",
        text(&copy.member),
        quoted(&copy.token),
        text(&copy.serial),
        word(copy.word)
    )?;
    let Some(proof) = &copy.proof else { return Ok(()) };
    writeln!(out, "<table class=\"proof\">")?;
    for (name, value) in rows(proof) {
        writeln!(out, "<tr><td>{name}</td><td class=\"bytes\">{}</td></tr>", escaped(&value))?;
    }
    writeln!(out, "</table>")
}

/// A proof's fields, named as in JSON.
fn rows(proof: &Proof) -> impl Iterator<Item = (&'static str, String)> {
    let mut kind = proof.kind.to_owned();
    if let Some(mechanism) = &proof.mechanism {
        kind = format!("{kind}, {mechanism}");
    }
    if proof.by_session_copy {
        kind.push_str(", by a session object copied from the key");
    }
    let fields = [
        ("time", Some(proof.time.clone())),
        ("kind", Some(kind)),
        ("challenge", proof.challenge.clone()),
        ("answer", proof.answer.clone()),
        ("expected", proof.expected.clone()),
        ("digest", proof.digest.map(str::to_owned)),
        ("signature", proof.signature.clone()),
        ("block", proof.block.clone()),
        ("throw_away_key", proof.throw_away_key.clone()),
        ("verify", proof.verify.clone()),
    ];
    fields.into_iter().filter_map(|(name, value)| Some((name, value?)))
}
