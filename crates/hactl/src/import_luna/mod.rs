//! `hactl config import-luna`: the `ha.toml` for the HA groups of a Luna client's `Chrystoki.conf`.
//!
//! That file has sections `NAME = { KEY = VALUE; … }`. Four of them are of use here: `Chrystoki2` names the library,
//! `VirtualToken` the groups with their members' serial numbers, `HASynchronize` and `HAConfiguration` how they are run. What
//! cannot be carried over is told in a note that names the setting, so that nobody finds out later. Values of other sections
//! are never shown: a client of a cloud service keeps a secret there.

mod file;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ha_core::config::{Config, GroupConfig, Log, MemberConfig, Recovery, RecoveryMode, Role};
use ha_core::policy::balance::MAX_MEMBERS;
use ha_token::Selector;
use serde_json::json;

use crate::context::Context;
use crate::{Answer, output};
use file::{Document, Mistake, Read, Section, Setting, Settings, at, of_file, text};

/// The largest file that is read: real ones have a few kilobytes.
const LARGEST: u64 = 1 << 20;
/// Bytes of a token's label, and of its serial number, in `CK_TOKEN_INFO`.
const LABEL: usize = 32;
const SERIAL: usize = 16;
/// The longest interval that `ha.toml` takes, in seconds.
const LONGEST: u64 = 86_400;

/// Prints the `ha.toml`, and the notes on standard error; with `--json` both in one document.
///
/// # Errors
/// A file that cannot be read, or that is not a `Chrystoki.conf` with an HA group.
pub(crate) fn run(context: &Context, file: &Path, module: Option<&Path>) -> Result<Answer> {
    let place = || file.display().to_string();
    let bytes = read(file).with_context(place)?;
    let Imported { config, notes } = import(&bytes, module).with_context(place)?;
    let toml = config.to_toml().context("the groups cannot be said in an ha.toml")?;
    let toml = format!("{}{toml}", head(file));
    if context.json {
        output::json(&json!({"schema": 1, "toml": toml, "notes": notes}))?;
        return Ok(Answer::Well);
    }
    std::io::stdout().lock().write_all(toml.as_bytes())?;
    let mut err = std::io::stderr().lock();
    for note in notes {
        // Whoever reads it may be gone.
        _ = writeln!(err, "note: {note}");
    }
    Ok(Answer::Well)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than is read tells a file that is too large, whatever its length says (a device has none).
    File::open(file)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        bail!("larger than a Chrystoki.conf can be (1 MiB)");
    }
    Ok(bytes)
}

fn head(file: &Path) -> String {
    // Debug writes a name with a line break in it on one line: what follows the break would be no comment.
    format!(
        "# Made by `hactl config import-luna` from {file:?}; docs/luna.md says what is different.\n\
         # state_dir is as for a file in /etc/pkcs11-ha: take it out where the file is elsewhere.\n"
    )
}

/// What the file says in our words, and what could not be said so.
#[derive(Debug)]
struct Imported {
    config: Config,
    notes: Vec<String>,
}

fn import(bytes: &[u8], module: Option<&Path>) -> Read<Imported> {
    let file = Document::read(text(bytes)?)?;
    let mut notes = Vec::new();
    let Some(tokens) = file.section("VirtualToken")? else {
        return Err(of_file(if file.section("Chrystoki2")?.is_some() {
            "it has no section VirtualToken: this client has no HA group"
        } else {
            "not a Chrystoki.conf: it has neither a section Chrystoki2 nor VirtualToken"
        }));
    };
    let module = match module {
        Some(path) => path.to_owned(),
        None => library(file.section("Chrystoki2")?, &mut notes)?,
    };
    if module.is_relative() {
        notes.push(format!(
            "the module {module:?} is a relative path: each program looks for it in the folder that it runs in; --module names another one"
        ));
    }
    let mut groups = groups(tokens, &mut notes)?;
    let (ha_only, recovery) = how_they_are_run(file.section("HAConfiguration")?, &mut groups, &mut notes)?;
    if let Some(section) = file.section("HASynchronize")? {
        synchronization(section, &groups, &mut notes)?;
    }
    if file.section("HARecovery")?.is_some_and(|section| !section.settings.is_empty()) {
        notes.push("HARecovery: left out; [group.recovery] says how members are taken back".into());
    }
    let groups = groups.iter().map(|g| Ok(GroupConfig { recovery, ..g.config(&module)? }));
    let config = Config {
        path: None,
        digest: None,
        ha_only,
        // The file that the client's HA groups come from is the whole host's, and so is this.
        state_dir: "/var/lib/pkcs11-ha".into(),
        log: Log::default(),
        groups: groups.collect::<Read<_>>()?,
    };
    Ok(Imported { config, notes })
}

/// The library that the client's programs load: `LibUNIX64`, else `LibUNIX`.
fn library(section: Option<&Section<'_>>, notes: &mut Vec<String>) -> Read<PathBuf> {
    let settings = section.map(Section::by_key).transpose()?.unwrap_or_default();
    let Some(setting) = settings.get("libunix64").or_else(|| settings.get("libunix")) else {
        let message = "Chrystoki2 names no library (LibUNIX64): name it with --module";
        return Err(Mistake { line: section.map(|s| s.line), message: message.into() });
    };
    let path = PathBuf::from(setting.value);
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    if name.contains("cklog") {
        notes.push(format!(
            "{}: this is the client's logging library, which passes calls on to that of the section CkLog2; --module names that one",
            setting.key
        ));
    }
    Ok(path)
}

/// A group of the section `VirtualToken`.
struct Group<'a> {
    label: &'a str,
    /// The setting that has its members.
    members_key: &'a str,
    /// Where that stands.
    line: usize,
    members: Vec<(&'a str, Role)>,
}

impl Group<'_> {
    fn has(&self, serial: &str) -> bool {
        self.members.iter().any(|(s, _)| *s == serial)
    }

    fn config(&self, module: &Path) -> Read<GroupConfig> {
        let (key, line) = (self.members_key, self.line);
        if self.members.len() > MAX_MEMBERS {
            return Err(at(
                line,
                format!("{key}: {} members; a group here has at most {MAX_MEMBERS}", self.members.len()),
            ));
        }
        if self.members.iter().all(|(_, role)| *role == Role::Standby) {
            return Err(at(
                line,
                format!("{key}: every member is a standby; a group here needs an active one"),
            ));
        }
        let members = self.members.iter().map(|(serial, role)| {
            // The name is the serial number, which lunacm and vtl show; the instance is the default one, a copy of the
            // library for each member: a Luna client that lost its connection is to be initialised anew, and with one
            // instance for all of them that would take the others' sessions.
            let selector = Selector { serial: Some((*serial).to_owned()), ..Selector::default() };
            MemberConfig { role: *role, ..MemberConfig::new(module, selector) }
        });
        Ok(GroupConfig::new(self.label, members.collect()))
    }
}

/// The settings of one group, as far as they are there.
#[derive(Default)]
struct Draft<'s, 'a> {
    label: Option<&'s Setting<'a>>,
    members: Option<&'s Setting<'a>>,
    serial: Option<&'s Setting<'a>>,
}

fn groups<'a>(section: &Section<'a>, notes: &mut Vec<String>) -> Read<Vec<Group<'a>>> {
    let mut drafts: BTreeMap<u32, Draft<'_, 'a>> = BTreeMap::new();
    for (key, setting) in section.by_key()? {
        let numbered = key.strip_prefix("virtualtoken").and_then(|key| {
            let (number, name) = key.split_at(key.find(|c: char| !c.is_ascii_digit())?);
            Some((number.parse().ok()?, name.to_owned()))
        });
        match numbered.as_ref().map(|(number, name)| (*number, name.as_str())) {
            Some((number, "label")) => drafts.entry(number).or_default().label = Some(setting),
            Some((number, "members")) => drafts.entry(number).or_default().members = Some(setting),
            Some((number, "sn")) => drafts.entry(number).or_default().serial = Some(setting),
            None if key == "virtualtokenactiverecovery" => {
                // With activeEnhanced sessions and logins outlive the loss of every member, as they do here.
                if !setting.value.eq_ignore_ascii_case("activeEnhanced") {
                    notes.push(format!(
                        "{}: left out; sessions and logins go on here when members return, as with activeEnhanced",
                        setting.key
                    ));
                }
            }
            _ => notes.push(unknown(section, setting)),
        }
    }
    let mut groups: Vec<Group<'a>> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut labels: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, Draft { label, members, serial }) in drafts {
        let (label, members) = match (label, members) {
            (Some(label), Some(members)) => (label, members),
            (Some(label), None) => {
                return Err(at(
                    label.line,
                    format!("{}: this group has no members (VirtualToken{number:02}Members)", label.key),
                ));
            }
            (None, Some(members)) => {
                return Err(at(
                    members.line,
                    format!("{}: this group has no label (VirtualToken{number:02}Label)", members.key),
                ));
            }
            // What is left of a group that was deleted.
            (None, None) => continue,
        };
        if label.value.len() > LABEL || label.value.contains(char::is_control) {
            return Err(at(
                label.line,
                format!("{}: a label of 1 to {LABEL} bytes on one line was expected", label.key),
            ));
        }
        if let Some(before) = labels.insert(label.value, label.line) {
            return Err(at(
                label.line,
                format!("{}: the group of line {before} has this label too", label.key),
            ));
        }
        let serials = serials(members)?;
        if serials.is_empty() {
            return Err(at(members.line, format!("{}: this group has no members", members.key)));
        }
        for member in &serials {
            if let Some(before) = places.insert(member, members.line) {
                return Err(at(
                    members.line,
                    format!(
                        "{}: {member} stands on line {before} already; a partition can be one member of one group",
                        members.key
                    ),
                ));
            }
        }
        if let Some(serial) = serial {
            notes.push(format!(
                "{}: left out; the group's serial number is another one here: programs that look for the token by it need the label",
                serial.key
            ));
        }
        groups.push(Group {
            label: label.value,
            members_key: members.key,
            line: members.line,
            members: serials.into_iter().map(|serial| (serial, Role::Active)).collect(),
        });
    }
    if groups.is_empty() {
        return Err(at(section.line, "VirtualToken: it has no group"));
    }
    Ok(groups)
}

/// The serial numbers of a list.
fn serials<'a>(setting: &Setting<'a>) -> Read<Vec<&'a str>> {
    let listed = setting.value.split(',').map(str::trim).enumerate().filter(|(_, serial)| !serial.is_empty());
    let mut serials = Vec::new();
    for (n, serial) in listed {
        if serial.len() > SERIAL || !serial.bytes().all(|b| b.is_ascii_digit()) {
            return Err(at(
                setting.line,
                format!(
                    "{}: number {} of the list is no serial number, which has 1 to {SERIAL} digits",
                    setting.key,
                    n + 1
                ),
            ));
        }
        serials.push(serial);
    }
    Ok(serials)
}

/// `HAConfiguration`: whether only groups are listed, how members are taken back; and which of them are standbys.
fn how_they_are_run<'a>(
    section: Option<&Section<'a>>,
    groups: &mut [Group<'a>],
    notes: &mut Vec<String>,
) -> Read<(bool, Recovery)> {
    let settings = section.map(Section::by_key).transpose()?.unwrap_or_default();
    let ha_only = match settings.get("haonly").map(|s| (s, s.value)) {
        Some((_, "1")) => true,
        Some((_, "0")) | None => false,
        Some((s, _)) => return Err(at(s.line, format!("{}: 0 or 1 was expected", s.key))),
    };
    notes.push(if ha_only {
        "HAOnly = 1: with it the Luna library hides the members from pkcs11-ha as from every program. Set it to 0, or give each \
         member a Chrystoki.conf of its own that has 0: env = { ChrystokiConfigurationPath = \"its folder\" }"
            .into()
    } else {
        "HAOnly is not 1: as a Luna client does, ha_only = false lists members too; but groups come first here, so slots have other \
         numbers"
            .into()
    });
    let recovery = recovery(&settings, notes)?;
    let Some(section) = section else { return Ok((ha_only, recovery)) };
    let mut logs = Vec::new();
    for (key, setting) in settings {
        match key.as_str() {
            "haonly" | "reconnatt" | "autoreconnectinterval" => {}
            "halogstatus" | "halogpath" | "loglen" | "halogtostdout" => logs.push((key, setting)),
            key if key.ends_with(STANDBY) => standbys(setting, groups, notes)?,
            _ => notes.push(unknown(section, setting)),
        }
    }
    let off =
        |(key, s): &(String, &Setting<'_>)| key == "halogstatus" && s.value.eq_ignore_ascii_case("disabled");
    if !logs.is_empty() && !logs.iter().any(off) {
        let keys: Vec<_> = logs.iter().map(|(_, s)| s.key).collect();
        notes.push(format!(
            "{}: left out; what becomes of members is in our log, and [log] says where",
            keys.join(", ")
        ));
    }
    Ok((ha_only, recovery))
}

/// How the key of a group's standbys ends, after the group's label.
const STANDBY: &str = "standbymembers";

/// Makes the members of the list standbys of the group that the key begins with.
fn standbys<'a>(setting: &Setting<'a>, groups: &mut [Group<'a>], notes: &mut Vec<String>) -> Read<()> {
    let key = setting.key;
    let label = key.get(..key.len() - STANDBY.len()).unwrap_or_default();
    let Some(place) = groups.iter().position(|g| g.label == label) else {
        notes.push(format!("{key}: left out; no group has the label {label:?}"));
        return Ok(());
    };
    for serial in serials(setting)? {
        let elsewhere = groups.iter().enumerate().any(|(n, g)| n != place && g.has(serial));
        let Some(group) = groups.get_mut(place).filter(|_| !elsewhere) else {
            return Err(at(setting.line, format!("{key}: {serial} is a member of another group")));
        };
        match group.members.iter_mut().find(|(s, _)| *s == serial) {
            Some((_, role)) => *role = Role::Standby,
            None => {
                notes.push(format!("{key}: {serial} is not in {}; it was made a member", group.members_key));
                group.members.push((serial, Role::Standby));
            }
        }
    }
    notes.push(format!("{key}: role = \"standby\"; compare with what `hagroup listgroups` of lunacm shows"));
    Ok(())
}

/// How members that failed are taken back.
fn recovery(settings: &Settings<'_, '_>, notes: &mut Vec<String>) -> Read<Recovery> {
    let mut recovery = Recovery::default();
    match settings.get("reconnatt") {
        // What a client does then differs: with some versions it tries for ever, with others not at all.
        None => notes.push(
            "reconnAtt is not there: members are taken back by themselves here (mode = \"auto\" in [group.recovery])".into(),
        ),
        Some(setting) => match setting.value.parse::<i64>() {
            Ok(-1) => {}
            Ok(0) => recovery.mode = RecoveryMode::Manual,
            Ok(1..) => notes.push(format!(
                "{}: the tries do not end here as they do after a number of them; mode = \"manual\" in [group.recovery] makes none",
                setting.key
            )),
            _ => return Err(at(setting.line, format!("{}: -1, 0 or a number of tries was expected", setting.key))),
        },
    }
    if let Some(setting) = settings.get("autoreconnectinterval") {
        match setting.value.parse::<u64>() {
            Ok(seconds @ 1..=LONGEST) => {
                // Not as the first interval too: a client waits so long because its tries hold up a program's calls, which
                // ours do not; and a member that is back after a moment would be missed for all of that time.
                recovery.max_interval = Duration::from_secs(seconds);
                notes.push(format!(
                    "{}: this is max_interval; the first try is made after interval (1s), the next ones more and more rarely",
                    setting.key
                ));
            }
            Ok(_) => {
                notes.push(format!("{}: left out; an interval here has 1 to {LONGEST} seconds", setting.key))
            }
            Err(_) => {
                return Err(at(setting.line, format!("{}: a number of seconds was expected", setting.key)));
            }
        }
    }
    Ok(recovery)
}

/// `HASynchronize`: whether a group's objects are copied to all of its members.
fn synchronization(section: &Section<'_>, groups: &[Group<'_>], notes: &mut Vec<String>) -> Read<()> {
    for setting in &section.settings {
        let label = setting.key;
        if !groups.iter().any(|g| g.label == label) {
            notes.push(format!("HASynchronize: {label} is left out; no group has this label"));
            continue;
        }
        match setting.value {
            "1" => {}
            "0" => notes.push(format!(
                "HASynchronize: {label} = 0 is left out; what is made in a group is copied to all of its members here"
            )),
            _ => return Err(at(setting.line, format!("HASynchronize: {label}: 0 or 1 was expected"))),
        }
    }
    Ok(())
}

fn unknown(section: &Section<'_>, setting: &Setting<'_>) -> String {
    format!("{}: {} is left out; this command does not know it", section.name, setting.key)
}

#[cfg(test)]
mod tests;
