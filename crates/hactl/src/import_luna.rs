//! `hactl config import-luna`: the `ha.toml` for the HA groups of a Luna client's `Chrystoki.conf`.
//!
//! That file has sections `NAME = { KEY = VALUE; … }`. Four of them are of use here: `Chrystoki2` names the library,
//! `VirtualToken` the groups with their members' serial numbers, `HASynchronize` and `HAConfiguration` how they are run. Keys
//! are found in any case, as files with both `reconnAtt` and `ReconnAtt` are about. What cannot be carried over is told in a
//! note that names the setting, so that nobody finds out later; what is wrong is told with its line. Values of other sections
//! are never shown: a client of a cloud service keeps a secret there.

use std::collections::BTreeMap;
use std::fmt;
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

/// What is wrong with the file, and on which line, where one can be told.
#[derive(Debug, PartialEq, Eq)]
struct Mistake {
    line: Option<usize>,
    message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Mistake {}

type Read<T> = std::result::Result<T, Mistake>;

fn at(line: usize, message: impl Into<String>) -> Mistake {
    Mistake { line: Some(line), message: message.into() }
}

fn of_file(message: impl Into<String>) -> Mistake {
    Mistake { line: None, message: message.into() }
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

/// A setting of a section.
struct Setting<'a> {
    line: usize,
    key: &'a str,
    value: &'a str,
}

/// Settings that have a value, by their keys in lower case.
type Settings<'s, 'a> = BTreeMap<String, &'s Setting<'a>>;

/// A section, and the line that it begins on.
struct Section<'a> {
    line: usize,
    name: &'a str,
    settings: Vec<Setting<'a>>,
}

impl<'a> Section<'a> {
    fn by_key(&self) -> Read<Settings<'_, 'a>> {
        let mut settings = Settings::new();
        for setting in self.settings.iter().filter(|s| !s.value.is_empty()) {
            if let Some(before) = settings.insert(setting.key.to_ascii_lowercase(), setting) {
                return Err(at(setting.line, format!("{} stands on line {} too", setting.key, before.line)));
            }
        }
        Ok(settings)
    }
}

/// The sections, in the order of the file.
struct Document<'a>(Vec<Section<'a>>);

impl<'a> Document<'a> {
    fn read(text: &'a str) -> Read<Self> {
        let mut reader = Reader { rest: text, line: 1 };
        let mut sections = Vec::new();
        loop {
            reader.skip();
            if reader.rest.is_empty() {
                return Ok(Document(sections));
            }
            sections.push(reader.section()?);
        }
    }

    /// The section of this name, if there is one.
    fn section(&self, name: &str) -> Read<Option<&Section<'a>>> {
        let mut named = self.0.iter().filter(|s| s.name.eq_ignore_ascii_case(name));
        let first = named.next();
        match (first, named.next()) {
            (Some(first), Some(second)) => {
                Err(at(second.line, format!("the section {name} begins on line {} too", first.line)))
            }
            _ => Ok(first),
        }
    }
}

/// The file as text.
fn text(bytes: &[u8]) -> Read<&str> {
    let line = |n: usize| 1 + bytes.iter().take(n).filter(|b| **b == b'\n').count();
    let text =
        str::from_utf8(bytes).map_err(|e| at(line(e.valid_up_to()), "not UTF-8: this is no text file"))?;
    // Neither could be shown without harm: a control character of a key would act on the terminal.
    if let Some(n) = text.find(|c: char| c.is_control() && !"\t\r\n".contains(c)) {
        return Err(at(line(n), "a control character: this is no text file"));
    }
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// The longest name of a section or a key: what is longer is another kind of file, and is not to be repeated.
const NAME: usize = 100;
/// What ends a name.
const ENDS: [char; 5] = ['=', '{', '}', ';', '\n'];

/// What is left of the text.
struct Reader<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Reader<'a> {
    /// Takes the first `len` bytes.
    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(len).unwrap_or((self.rest, ""));
        self.line += taken.matches('\n').count();
        self.rest = rest;
        taken
    }

    /// Takes a sign, if it comes next.
    fn took(&mut self, sign: char) -> bool {
        let comes = self.rest.starts_with(sign);
        if comes {
            self.take(sign.len_utf8());
        }
        comes
    }

    /// Passes over blanks, comments, and a `;` that ends nothing.
    fn skip(&mut self) {
        loop {
            let said = self.rest.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
            self.take(self.rest.len() - said.len());
            if !(said.starts_with('#') || said.starts_with("//")) {
                return;
            }
            self.take(said.find('\n').unwrap_or(said.len()));
        }
    }

    /// Takes a name and the `=` after it.
    fn name(&mut self) -> Option<&'a str> {
        let name = self.take(self.rest.find(ENDS).unwrap_or(self.rest.len())).trim();
        (!name.is_empty() && name.len() <= NAME && self.took('=')).then_some(name)
    }

    fn section(&mut self) -> Read<Section<'a>> {
        let line = self.line;
        if self.rest.starts_with('[') {
            return Err(at(
                line,
                "this is the form of a crystoki.ini, which Windows clients have; a Chrystoki.conf was expected",
            ));
        }
        if self.rest.starts_with('}') {
            return Err(at(line, "a } that ends no section"));
        }
        let Some(name) = self.name() else { return Err(at(line, "a section, NAME = { … }, was expected")) };
        self.skip();
        if !self.took('{') {
            return Err(at(line, format!("{name} stands in no section: a {{ was expected after it")));
        }
        let mut settings = Vec::new();
        loop {
            self.skip();
            if self.took('}') {
                return Ok(Section { line, name, settings });
            }
            if self.rest.is_empty() {
                return Err(at(line, format!("the section {name} does not end: a }} was expected")));
            }
            settings.push(self.setting(name, line)?);
        }
    }

    fn setting(&mut self, section: &str, began: usize) -> Read<Setting<'a>> {
        let line = self.line;
        let Some(key) = self.name() else {
            return Err(at(line, format!("a setting, KEY = VALUE;, was expected in the section {section}")));
        };
        let value = self.value().ok_or_else(|| {
            let section = format!("{section}, which begins on line {began}");
            at(
                line,
                format!(
                    "{key}: a value and a ; were expected; or is a }} missing, for the section {section}?"
                ),
            )
        })?;
        Ok(Setting { line, key, value })
    }

    /// Takes a value and the `;` after it. A list may go on in the next line after a comma.
    fn value(&mut self) -> Option<&'a str> {
        let mut end = 0;
        loop {
            end += self.rest.get(end..)?.find([';', '\n'])?;
            let value = self.rest.get(..end)?;
            if value.trim_start().starts_with('{') {
                return None;
            }
            if self.rest.get(end..)?.starts_with(';') {
                self.take(end + 1);
                return Some(unquoted(value.trim()));
            }
            if !value.trim_end().ends_with(',') {
                return None;
            }
            end += 1;
        }
    }
}

fn unquoted(value: &str) -> &str {
    let inner = |quote| value.strip_prefix(quote)?.strip_suffix(quote).map(str::trim);
    inner('"').or_else(|| inner('\'')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With what such files were seen to have: comments of both kinds, a name with a blank, an empty value, no blanks around a
    /// `=`, a section on one line, quotes, a list over two lines.
    const FILE: &str = "\u{feff}# of a client\r
Chrystoki2 = {\r
   LibUNIX = /usr/lib/libCryptoki2.so;\r
   LibUNIX64 = /usr/safenet/lunaclient/lib/libCryptoki2_64.so;\r
}
Luna = { DefaultTimeOut=500000; PEDTimeout1 = 100000; }
LunaSA Client = {
   ServerName00 = hsm1.example;
   ServerHtl00 = ;
}
REST = {
   AuthTokenClientSecret = not-to-be-shown;
   Url = https://cloud.example/x;
};
VirtualToken = {
   VirtualToken01Members = 1238700701510; // the serial numbers
   VirtualToken00Label = myHAgroup;       // the label
   VirtualToken00SN = 1154438865287;
   VirtualToken00Members = 154438865287,
                           1238700701509, 1238700701508;
   VirtualToken01Label = 'second group';
   VirtualTokenActiveRecovery = activeEnhanced;
   VirtualToken02Label = ;
}
HASynchronize = {
   myHAgroup = 1;
}
HAConfiguration = {
   HAOnly = 1;
   ReconnAtt = -1;
   AutoReconnectInterval = 120;
   haLogStatus = enabled;
   haLogPath = /tmp/halog;
   logLen = 262144;
   failover_on_deactivation = 1;
   myHAgroupStandbyMembers = 1238700701508;
}
";

    fn imported(text: &str) -> Imported {
        import(text.as_bytes(), None).unwrap_or_else(|e| panic!("{e}"))
    }

    fn mistake(text: &str) -> String {
        import(text.as_bytes(), None).expect_err("a mistake").to_string()
    }

    /// A file with these settings, the groups' on line 2 and HAConfiguration's on line 3.
    fn file(groups: &str, configuration: &str) -> String {
        format!(
            "Chrystoki2 = {{ LibUNIX64 = /l.so; }}\nVirtualToken = {{ {groups} }}\nHAConfiguration = {{ {configuration} }}\n"
        )
    }

    const GROUP: &str = "VirtualToken00Label = g; VirtualToken00Members = 1, 2;";

    fn notes(groups: &str, configuration: &str) -> Vec<String> {
        imported(&file(groups, configuration)).notes
    }

    /// The one note about a setting.
    fn note(about: &str, notes: &[String]) -> String {
        let found: Vec<_> = notes.iter().filter(|n| n.contains(about)).collect();
        assert_eq!(found.len(), 1, "{about}: {notes:?}");
        found[0].clone()
    }

    #[test]
    fn a_whole_file_is_carried_over() {
        let Imported { config, notes } = imported(FILE);
        assert!(config.ha_only);
        let [first, second] = config.groups.as_slice() else { panic!("{config:?}") };
        assert_eq!((first.label.as_str(), second.label.as_str()), ("myHAgroup", "second group"));
        let members: Vec<_> = first.members.iter().map(|m| (m.name.as_str(), m.role)).collect();
        assert_eq!(
            members,
            [
                ("154438865287", Role::Active),
                ("1238700701509", Role::Active),
                ("1238700701508", Role::Standby)
            ]
        );
        for member in first.members.iter().chain(&second.members) {
            assert_eq!(member.selector.serial.as_deref(), Some(member.name.as_str()));
            assert_eq!(member.module, Path::new("/usr/safenet/lunaclient/lib/libCryptoki2_64.so"));
        }
        assert_eq!((first.min_copies, second.min_copies), (2, 1));
        for group in &config.groups {
            assert_eq!(group.recovery.mode, RecoveryMode::Auto);
            assert_eq!(group.recovery.interval, Duration::from_secs(1));
            assert_eq!(group.recovery.max_interval, Duration::from_secs(120));
        }
        for about in [
            "HAOnly = 1: ",
            "VirtualToken00SN: ",
            "AutoReconnectInterval: ",
            "haLogPath, haLogStatus, logLen: ",
            "failover_on_deactivation",
            "myHAgroupStandbyMembers: role",
        ] {
            note(about, &notes);
        }
        assert_eq!(notes.len(), 6, "{notes:?}");
        assert!(!format!("{notes:?}").contains("not-to-be-shown"));
        // What is printed can be read, and means the same.
        let read = Config::parse(&config.to_toml().unwrap()).unwrap();
        assert_eq!(read, config);
    }

    #[test]
    fn the_library_is_the_wider_one_unless_another_is_named() {
        let module = |chrystoki2: &str, given: Option<&str>| {
            let text = format!("{chrystoki2}\nVirtualToken = {{ {GROUP} }}");
            import(text.as_bytes(), given.map(Path::new))
                .map(|i| (i.config.groups[0].members[0].module.display().to_string(), i.notes))
                .map_err(|e| e.to_string())
        };
        let both = "Chrystoki2 = { LibUNIX = /32.so; LibUNIX64 = /64.so; }";
        assert_eq!(module(both, None).unwrap().0, "/64.so");
        assert_eq!(module("Chrystoki2 = { LibUNIX = /32.so; LibUNIX64 = ; }", None).unwrap().0, "/32.so");
        assert_eq!(module(both, Some("/own.so")).unwrap().0, "/own.so");
        assert_eq!(module("", Some("/own.so")).unwrap().0, "/own.so");
        assert!(module("", None).unwrap_err().contains("--module"));
        assert!(
            module("\nChrystoki2 = { LibNT = cryptoki.dll; }", None).unwrap_err().starts_with("line 2: ")
        );
        let (path, notes) = module("Chrystoki2 = { LibUNIX64 = libs/64/libcklog2.so; }", None).unwrap();
        assert_eq!(path, "libs/64/libcklog2.so");
        note("LibUNIX64: this is the client's logging library", &notes);
        note("is a relative path", &notes);
    }

    #[test]
    fn ha_only_is_off_where_the_file_does_not_say() {
        for (configuration, on) in [("", false), ("HAOnly = 0;", false), ("haonly=1;", true)] {
            let Imported { config, notes } = imported(&file(GROUP, configuration));
            assert_eq!(config.ha_only, on, "{configuration}");
            assert_eq!(note("HAOnly", &notes).contains("hides"), on);
        }
        assert_eq!(mistake(&file(GROUP, "HAOnly = yes;")), "line 3: HAOnly: 0 or 1 was expected");
    }

    #[test]
    fn no_tries_are_manual_recovery_and_some_are_without_end() {
        let mode = |configuration: &str| imported(&file(GROUP, configuration)).config.groups[0].recovery.mode;
        assert_eq!(mode("reconnAtt = 0;"), RecoveryMode::Manual);
        assert_eq!(mode("reconnAtt = -1;"), RecoveryMode::Auto);
        assert_eq!(mode("reconnAtt = 500;"), RecoveryMode::Auto);
        assert_eq!(mode(""), RecoveryMode::Auto);
        assert!(!notes(GROUP, "reconnAtt = -1;").iter().any(|n| n.contains("reconnAtt")));
        note("reconnAtt: the tries do not end", &notes(GROUP, "reconnAtt = 500;"));
        note("reconnAtt is not there", &notes(GROUP, ""));
        for wrong in ["-2", "x", "1.5"] {
            assert!(
                mistake(&file(GROUP, &format!("reconnAtt = {wrong};"))).starts_with("line 3: reconnAtt: ")
            );
        }
    }

    #[test]
    fn an_interval_is_the_longest_between_tries() {
        let longest = |seconds: &str| {
            let text = file(GROUP, &format!("AutoReconnectInterval = {seconds};"));
            imported(&text).config.groups[0].recovery.max_interval.as_secs()
        };
        assert_eq!(longest("1"), 1);
        assert_eq!(longest("1200"), 1200);
        for out_of_range in ["0", "86401"] {
            assert_eq!(longest(out_of_range), 60);
            let text = format!("AutoReconnectInterval = {out_of_range};");
            note("AutoReconnectInterval: left out", &notes(GROUP, &text));
        }
        for text in ["AutoReconnectInterval = -1;", "AutoReconnectInterval = 1m;"] {
            assert!(mistake(&file(GROUP, text)).starts_with("line 3: AutoReconnectInterval: "));
        }
    }

    #[test]
    fn standbys_are_told_by_their_groups_label() {
        let groups = format!("{GROUP} VirtualToken01Label = h; VirtualToken01Members = 3;");
        let Imported { config, notes } = imported(&file(&groups, "gStandbyMembers = 2, 4;"));
        let members: Vec<_> = config.groups[0].members.iter().map(|m| (m.name.as_str(), m.role)).collect();
        assert_eq!(members, [("1", Role::Active), ("2", Role::Standby), ("4", Role::Standby)]);
        note("4 is not in VirtualToken00Members", &notes);
        let of = |configuration: &str| mistake(&file(&groups, configuration));
        assert_eq!(of("gStandbyMembers = 3;"), "line 3: gStandbyMembers: 3 is a member of another group");
        assert!(
            of("hStandbyMembers = 3;")
                .starts_with("line 2: VirtualToken01Members: every member is a standby")
        );
        assert!(of("gStandbyMembers = <none>;").contains("no serial number"));
        let notes = self::notes(&groups, "iStandbyMembers = 9;");
        note("iStandbyMembers: left out", &notes);
    }

    #[test]
    fn what_has_no_equivalent_is_named() {
        let more = "HASynchronize = { g = 0; other = 1; }\nHARecovery = { g = 1; }\n";
        let groups = format!("{GROUP} VirtualTokenActiveRecovery = activeBasic; VirtualToken00Standby = 2;");
        let text = file(&groups, "haLogStatus = disabled; haLogPath = /x;") + more;
        let Imported { notes, .. } = imported(&text);
        for about in [
            "HASynchronize: g = 0",
            "HASynchronize: other",
            "HARecovery: ",
            "VirtualTokenActiveRecovery: ",
            "VirtualToken00Standby is left out",
        ] {
            note(about, &notes);
        }
        assert!(!notes.iter().any(|n| n.contains("haLog")), "what is off is missed by nobody: {notes:?}");
        let wrong = file(GROUP, "") + "HASynchronize = { g = maybe; }\n";
        assert_eq!(mistake(&wrong), "line 4: HASynchronize: g: 0 or 1 was expected");
    }

    #[test]
    fn wrong_groups_are_told_with_their_line() {
        let long = "x".repeat(33);
        for (groups, expected) in [
            ("", "line 2: VirtualToken: it has no group"),
            ("VirtualToken00SN = 12;", "line 2: VirtualToken: it has no group"),
            (
                "VirtualToken00Label = g;",
                "line 2: VirtualToken00Label: this group has no members (VirtualToken00Members)",
            ),
            (
                "VirtualToken00Label = g; VirtualToken00Members = ,;",
                "line 2: VirtualToken00Members: this group has no members",
            ),
            (
                "VirtualToken03Members = 1;",
                "line 2: VirtualToken03Members: this group has no label (VirtualToken03Label)",
            ),
            (
                "VirtualToken00Label = g; VirtualToken00Members = 1,\n2, 1;",
                "line 2: VirtualToken00Members: 1 stands on line 2 already; a partition can be one member of one group",
            ),
            (
                "VirtualToken00Label = g; VirtualToken00Members = 1;\nVirtualToken01Label = h;\nVirtualToken01Members = 1;",
                "line 4: VirtualToken01Members: 1 stands on line 2 already; a partition can be one member of one group",
            ),
            (
                "VirtualToken00Label = g; VirtualToken00Members = 1, hsm-2;",
                "line 2: VirtualToken00Members: number 2 of the list is no serial number, which has 1 to 16 digits",
            ),
            (
                "VirtualToken00Label = g; VirtualToken00Members = 12345678901234567;",
                "line 2: VirtualToken00Members: number 1 of the list is no serial number, which has 1 to 16 digits",
            ),
            (
                "VirtualToken00Label = g; VirtualToken00Members = 1;\nVirtualToken01Label = g; VirtualToken01Members = 2;",
                "line 3: VirtualToken01Label: the group of line 2 has this label too",
            ),
            (
                "VirtualToken00Label = g;\nvirtualtoken00label = h; VirtualToken00Members = 1;",
                "line 3: virtualtoken00label stands on line 2 too",
            ),
            (
                &format!("VirtualToken00Label = {long}; VirtualToken00Members = 1;"),
                "line 2: VirtualToken00Label: a label of 1 to 32 bytes on one line was expected",
            ),
        ] {
            assert_eq!(mistake(&file(groups, "")), expected, "{groups}");
        }
        let many: Vec<_> = (1..=MAX_MEMBERS + 1).map(|n| n.to_string()).collect();
        let groups = format!("VirtualToken00Label = g; VirtualToken00Members = {};", many.join(","));
        assert!(mistake(&file(&groups, "")).contains("33 members; a group here has at most 32"));
    }

    #[test]
    fn what_is_no_such_file_is_told_with_its_line() {
        for (text, expected) in [
            ("", "not a Chrystoki.conf: it has neither a section Chrystoki2 nor VirtualToken"),
            ("A = { b = c; }", "not a Chrystoki.conf: it has neither a section Chrystoki2 nor VirtualToken"),
            (
                "Chrystoki2 = { LibUNIX64 = /l.so; }",
                "it has no section VirtualToken: this client has no HA group",
            ),
            (
                "[Chrystoki2]\nLibNT=cryptoki.dll\n",
                "line 1: this is the form of a crystoki.ini, which Windows clients have; a Chrystoki.conf was expected",
            ),
            ("\n\nhello\n", "line 3: a section, NAME = { … }, was expected"),
            ("a = 1;\n", "line 1: a stands in no section: a { was expected after it"),
            ("A = {\n b = c;\n}\n}\n", "line 4: a } that ends no section"),
            ("\nA = {\n b = c;\n", "line 2: the section A does not end: a } was expected"),
            (
                "A = {\n b = c;\nB = {\n d = e;\n}\n",
                "line 3: B: a value and a ; were expected; or is a } missing, for the section A, which begins on line 1?",
            ),
            (
                "A = {\n b = secret\n c = d;\n}\n",
                "line 2: b: a value and a ; were expected; or is a } missing, for the section A, which begins on line 1?",
            ),
            ("A = {\n secret\n}\n", "line 2: a setting, KEY = VALUE;, was expected in the section A"),
            (
                "VirtualToken = { }\nVIRTUALTOKEN = { }",
                "line 2: the section VirtualToken begins on line 1 too",
            ),
        ] {
            assert_eq!(mistake(text), expected, "{text}");
        }
        let of = |bytes: &[u8]| import(bytes, None).expect_err("a mistake").to_string();
        assert_eq!(of(b"A = {\n\xff\n}"), "line 2: not UTF-8: this is no text file");
        assert_eq!(of(b"\x7fELF\x02\x01\x01\0"), "line 1: a control character: this is no text file");
        assert_eq!(of(b"A = {\n\x1b[2J = 1;\n}"), "line 2: a control character: this is no text file");
        // Whatever is that long is not shown.
        let long = "x".repeat(NAME + 1);
        assert!(!mistake(&format!("A = {{ {long} = 1; }}")).contains(&long));
    }

    /// No file makes it panic, and what it prints can be read.
    #[test]
    fn damaged_files_are_told_or_read() {
        let check = |bytes: &[u8]| {
            if let Ok(Imported { config, .. }) = import(bytes, None) {
                config.to_toml().unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(bytes)));
            }
        };
        let whole = FILE.as_bytes();
        for n in 0..whole.len() {
            let (before, after) = (&whole[..n], &whole[n + 1..]);
            check(before);
            check(&[before, after].concat());
            for other in *b"{};=,\n\0/\xff1" {
                check(&[before, &[other], after].concat());
            }
        }
    }

    #[test]
    fn the_head_is_comments_whatever_the_files_name() {
        for name in ["/etc/Chrystoki.conf", "a\nha_only = false\n\u{1b}[2J"] {
            assert!(head(Path::new(name)).lines().all(|line| line.starts_with('#')), "{name:?}");
            assert!(!head(Path::new(name)).contains('\u{1b}'));
        }
    }
}
