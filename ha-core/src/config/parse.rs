//! Reading the file: every key known, every value checked, every error with its place and what was expected.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ha_token::{Selector, Ulong};

use super::reader::{self, Field, Mistake, Place, Result, Section, line_of};
use super::types::*;
use super::values::{self, BALANCES, DURATION, SIZE, TARGET};
use super::{PinSource, Surroundings, uri};
use crate::policy::balance::MAX_MEMBERS;

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's words.
        source: std::io::Error,
    },
    /// Others could change it.
    #[error(
        "{path}: writable by others (mode {mode:o}); whoever can write it chooses the modules that are loaded: run `chmod o-w` on it"
    )]
    Writable {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is not what it should be.
    #[error("{path}: {mistake}")]
    Wrong {
        /// The file.
        path: String,
        /// Line, key, and what was expected.
        mistake: Mistake,
    },
    /// It cannot be written as a file.
    #[error(
        "the file cannot say this configuration: a path in it is not UTF-8, or a duration is not of whole milliseconds, or a member is told from others by nothing that the file knows"
    )]
    Unsayable,
}

/// Largest file that is read.
const LARGEST: u64 = 1 << 20;

impl Config {
    pub(crate) fn read(path: &Path, surroundings: &Surroundings) -> std::result::Result<Config, ConfigError> {
        let failed = |source| ConfigError::Read { path: path.to_owned(), source };
        let meta = std::fs::metadata(path).map_err(failed)?;
        if meta.mode() & 0o002 != 0 {
            return Err(ConfigError::Writable { path: path.to_owned(), mode: meta.mode() & 0o7777 });
        }
        if meta.len() > LARGEST {
            return Err(failed(std::io::Error::other("larger than a configuration can be (1 MiB)")));
        }
        let bytes = std::fs::read(path).map_err(failed)?;
        Self::parse_bytes(&bytes, Some(path), surroundings)
            .map(|config| Config { digest: Some(crate::digest::short(&bytes)), ..config })
            .map_err(|mistake| ConfigError::Wrong { path: path.display().to_string(), mistake })
    }

    /// Reads a configuration's text.
    ///
    /// # Errors
    /// [`ConfigError::Wrong`].
    pub fn parse(text: &str) -> std::result::Result<Config, ConfigError> {
        parse_in(text, None, &Surroundings::of_process())
            .map_err(|mistake| ConfigError::Wrong { path: "configuration".into(), mistake })
    }

    pub(super) fn parse_bytes(
        bytes: &[u8],
        path: Option<&Path>,
        surroundings: &Surroundings,
    ) -> Result<Config> {
        let text = str::from_utf8(bytes).map_err(|e| Mistake {
            line: line_of(bytes, e.valid_up_to()),
            key: String::new(),
            message: "not UTF-8".into(),
        })?;
        parse_in(text, path, surroundings)
    }
}

fn parse_in(text: &str, path: Option<&Path>, surroundings: &Surroundings) -> Result<Config> {
    let mut file = reader::read(text, &["ha_only", "state_dir", "log", "group"])?;
    let ha_only = file.take("ha_only").map_or(Ok(true), Field::flag)?;
    let state_dir = file.take("state_dir").map(|f| f.text("the path of a folder", a_path)).transpose()?;
    let log = file.take("log").map_or(Ok(Log::default()), log)?;
    let mut groups: Vec<GroupConfig> = Vec::new();
    let mut lines = Vec::new();
    for field in file.take("group").map_or(Ok(Vec::new()), |f| f.list("tables [[group]]"))? {
        let (label, group) = group(field)?;
        if let Some(before) = groups.iter().position(|g| g.label == group.label) {
            return Err(stands_twice(&label, lines.get(before)));
        }
        lines.push(label.line());
        groups.push(group);
    }
    Ok(Config {
        path: path.map(Path::to_owned),
        digest: None,
        ha_only,
        state_dir: state_dir.unwrap_or_else(|| surroundings.state_dir(path)),
        log,
        groups,
    })
}

fn stands_twice(place: &Place<'_>, before: Option<&usize>) -> Mistake {
    let line = before.copied().unwrap_or_default();
    place.mistake(format!("stands on line {line} too; one that no other has was expected"))
}

fn log(field: Field<'_>) -> Result<Log> {
    let mut section = field.section("a table [log]", &["level", "target", "format"])?;
    let default = Log::default();
    Ok(Log {
        level: word(&mut section, "level", LogLevel::WORDS, LogLevel::from_word, default.level)?,
        target: section.take("target").map_or(Ok(default.target), |f| f.text(TARGET, values::target))?,
        format: word(&mut section, "format", LogFormat::WORDS, LogFormat::from_word, default.format)?,
    })
}

/// A key whose value is one of a few words.
fn word<T>(
    section: &mut Section<'_>,
    key: &str,
    words: &[&str],
    read: fn(&str) -> Option<T>,
    default: T,
) -> Result<T> {
    section.take(key).map_or(Ok(default), |f| f.word(words, read))
}

const GROUP: [&str; 15] = [
    "label",
    "balance",
    "deadline",
    "generate_deadline",
    "min_copies",
    "non_extractable",
    "uncopyable",
    "session_objects",
    "replay_limit",
    "verify_signatures",
    "strict_usage",
    "init_token",
    "vendor_mechanisms",
    "recovery",
    "member",
];

/// A group, and the place of its label.
fn group<'a>(field: Field<'a>) -> Result<(Place<'a>, GroupConfig)> {
    let mut s = field.section("a table [[group]]", &GROUP)?;
    let (place, label) = label(&mut s)?;
    let (members, place_of_members) = members(&mut s)?;
    if members.iter().all(|m| m.role == Role::Standby) {
        return Err(
            place_of_members.mistake("every member is a standby; one active member at least was expected")
        );
    }
    let mut g = GroupConfig::new(&label, members);
    let n = g.members.len();
    let copies = format!("a number from 1 to that of the members, {n},");
    let mechanisms = "a list of vendor mechanisms' numbers, 0x80000000 or above,";
    g.balance = word(&mut s, "balance", &BALANCES, values::balance, g.balance)?;
    g.deadline = deadline(&mut s, "deadline", g.deadline)?;
    g.generate_deadline = deadline(&mut s, "generate_deadline", g.generate_deadline)?;
    g.min_copies = s.take("min_copies").map_or(Ok(g.min_copies), |f| {
        f.number(&copies, |c| usize::try_from(c).ok().filter(|c| (1..=n).contains(c)))
    })?;
    g.non_extractable =
        word(&mut s, "non_extractable", NonExtractable::WORDS, NonExtractable::from_word, g.non_extractable)?;
    g.uncopyable = word(&mut s, "uncopyable", Uncopyable::WORDS, Uncopyable::from_word, g.uncopyable)?;
    g.session_objects =
        word(&mut s, "session_objects", SessionObjects::WORDS, SessionObjects::from_word, g.session_objects)?;
    g.replay_limit = s.take("replay_limit").map_or(Ok(g.replay_limit), |f| f.text(SIZE, values::size))?;
    g.verify_signatures = s.take("verify_signatures").map_or(Ok(g.verify_signatures), Field::flag)?;
    g.strict_usage = s.take("strict_usage").map_or(Ok(g.strict_usage), Field::flag)?;
    g.init_token = word(&mut s, "init_token", InitToken::WORDS, InitToken::from_word, g.init_token)?;
    if let Some(field) = s.take("vendor_mechanisms") {
        let numbers = field.list(mechanisms)?.into_iter().map(|f| f.number(mechanisms, vendor_mechanism));
        g.vendor_mechanisms = numbers.collect::<Result<_>>()?;
    }
    g.recovery = recovery(&mut s)?;
    Ok((place, g))
}

fn label<'a>(section: &mut Section<'a>) -> Result<(Place<'a>, String)> {
    let expected = "the virtual token's label, 1 to 32 bytes without control characters,";
    let Some(field) = section.take("label") else {
        return Err(section
            .place
            .absent("label")
            .mistake(format!("it is not there; {expected} was expected")));
    };
    let place = field.place.clone();
    let label = field.text(expected, |t| (t.len() <= 32 && is_name(t)).then(|| t.to_owned()))?;
    Ok((place, label))
}

/// What can be shown on a line of its own, and be a thread's name.
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_control)
}

fn a_path(text: &str) -> Option<PathBuf> {
    (!text.is_empty() && !text.contains('\0')).then(|| text.into())
}

fn vendor_mechanism(n: u64) -> Option<Ulong> {
    Ulong::try_from(n).ok().filter(|n| *n >= ha_token::ck::CKM_VENDOR_DEFINED)
}

fn deadline(section: &mut Section<'_>, key: &str, default: Option<Duration>) -> Result<Option<Duration>> {
    section.take(key).map_or(Ok(default), |f| f.text(DURATION, values::duration))
}

fn recovery(section: &mut Section<'_>) -> Result<Recovery> {
    let mut recovery = Recovery::default();
    let Some(field) = section.take("recovery") else { return Ok(recovery) };
    let mut s = field.section("a table [group.recovery]", &["mode", "interval", "max_interval"])?;
    recovery.mode = word(&mut s, "mode", RecoveryMode::WORDS, RecoveryMode::from_word, recovery.mode)?;
    let mut place = s.place.clone();
    for (key, value) in [("interval", &mut recovery.interval), ("max_interval", &mut recovery.max_interval)] {
        let Some(field) = s.take(key) else { continue };
        place = field.place.clone();
        let expected =
            "a duration such as \"250ms\", \"10s\" or \"2m\" (mode = \"manual\" turns recovery off)";
        *value = field.text(expected, |t| values::duration(t).flatten())?;
    }
    if recovery.interval > recovery.max_interval {
        return Err(place.expected("an interval no longer than max_interval"));
    }
    Ok(recovery)
}

/// The members, and where they stand.
fn members<'a>(section: &mut Section<'a>) -> Result<(Vec<MemberConfig>, Place<'a>)> {
    let expected = format!("tables [[group.member]], 1 to {MAX_MEMBERS} of them,");
    let Some(field) = section.take("member") else {
        return Err(section
            .place
            .absent("member")
            .mistake(format!("there is none; {expected} were expected")));
    };
    let place = field.place.clone();
    let fields = field.list(&expected)?;
    if fields.is_empty() || fields.len() > MAX_MEMBERS {
        return Err(place.expected(expected));
    }
    let mut members: Vec<MemberConfig> = Vec::new();
    let mut lines = Vec::new();
    for field in fields {
        let place = field.place.clone();
        let (named, member) = member(field)?;
        for (other, line) in members.iter().zip(&lines) {
            if other.name == member.name {
                return Err(stands_twice(&named, Some(line)));
            }
            if other.module == member.module && other.selector == member.selector && other.env == member.env {
                return Err(place.mistake(format!(
                    "the same token as the member of line {line}; another token was expected"
                )));
            }
        }
        lines.push(named.line());
        members.push(member);
    }
    Ok((members, place))
}

const MEMBER: [&str; 10] =
    ["name", "module", "token", "serial", "uri", "role", "instance", "env", "pin", "fingerprint"];
const SELECTORS: &str = "exactly one of token, serial and uri";

/// A member, and the place that names it.
fn member<'a>(field: Field<'a>) -> Result<(Place<'a>, MemberConfig)> {
    let mut s = field.section("a table [[group.member]]", &MEMBER)?;
    let module = match s.take("module") {
        Some(field) => field.text("the path of a PKCS#11 module", a_path)?,
        None => {
            return Err(s
                .place
                .absent("module")
                .mistake("it is not there; the path of a PKCS#11 module was expected"));
        }
    };
    let (mut place, selector) = selector(&mut s)?;
    let name = match s.take("name") {
        Some(field) => {
            place = field.place.clone();
            field.text("a name without control characters", |t| is_name(t).then(|| t.to_owned()))?
        }
        None => {
            selector.label.clone().or_else(|| selector.serial.clone()).filter(|n| is_name(n)).ok_or_else(
                || s.place.absent("name").expected("a name, as the token has no label that can be one,"),
            )?
        }
    };
    let mut m = MemberConfig { name, ..MemberConfig::new(module, selector) };
    m.role = word(&mut s, "role", Role::WORDS, Role::from_word, m.role)?;
    m.instance = word(&mut s, "instance", InstanceMode::WORDS, InstanceMode::from_word, m.instance)?;
    if let Some(field) = s.take("env") {
        let place = field.place.clone();
        m.env = environment(field)?;
        if m.instance == InstanceMode::Shared && !m.env.is_empty() {
            return Err(place.mistake(
                "it needs an instance of its own; instance = \"auto\" or \"private\" was expected",
            ));
        }
    }
    m.pin = s.take("pin").map(pin).transpose()?;
    let expected = "\"sha256:\" and 64 hex digits";
    let fingerprint = |t: &str| is_fingerprint(t).then(|| t.to_owned());
    m.fingerprint = s.take("fingerprint").map(|f| f.text(expected, fingerprint)).transpose()?;
    Ok((place, m))
}

fn selector<'a>(section: &mut Section<'a>) -> Result<(Place<'a>, Selector)> {
    let mut given = ["token", "serial", "uri"].into_iter().filter_map(|k| Some((k, section.take(k)?)));
    let (first, second) = (given.next(), given.next());
    drop(given);
    let Some((key, field)) = first else { return Err(section.place.expected(SELECTORS)) };
    if let Some((_, field)) = second {
        return Err(field.place.expected(SELECTORS));
    }
    let place = field.place.clone();
    let filled = |t: &str| (!t.is_empty()).then(|| t.to_owned());
    let selector = match key {
        "token" => Selector { label: Some(field.text("a token's label", filled)?), ..Selector::default() },
        "serial" => {
            Selector { serial: Some(field.text("a token's serial number", filled)?), ..Selector::default() }
        }
        _ => {
            let expected = "a PKCS#11 URI such as \"pkcs11:token=member-a\"";
            let uri = field.text(expected, |t| Some(uri::selector(t)))?;
            uri.map_err(|why| place.mistake(format!("{why}; {expected} was expected")))?
        }
    };
    Ok((place, selector))
}

fn environment(field: Field<'_>) -> Result<BTreeMap<String, String>> {
    let section = field.map("a table of variables, { NAME = \"value\" },")?;
    section
        .rest()
        .map(|(name, field)| {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(field.place.expected("a variable's name, without = and NUL,"));
            }
            let value = field.text("a string without NUL", |t| (!t.contains('\0')).then(|| t.to_owned()))?;
            Ok((name, value))
        })
        .collect()
}

/// `pin`: never the PIN itself.
fn pin(field: Field<'_>) -> Result<PinSource> {
    let expected = "exactly one of { env = … }, { file = … }, { command = … }, and no PIN itself,";
    let place = field.place.clone();
    // Not `section`: it would name an unknown key, which may be the PIN.
    let [(key, field)] =
        field.map(expected)?.rest().collect::<Vec<_>>().try_into().map_err(|_| place.expected(expected))?;
    let wrong = || place.expected(expected);
    let filled = |t: &str| (!t.is_empty() && !t.contains('\0')).then(|| t.to_owned());
    match key.as_str() {
        "env" => field.text("", filled).map(PinSource::Env).map_err(|_| wrong()),
        "file" => field.text("", a_path).map(PinSource::File).map_err(|_| wrong()),
        "command" => {
            let words = if field.is_text() {
                field.text("", |t| Some(t.split_whitespace().map(str::to_owned).collect::<Vec<_>>()))?
            } else {
                let words = field.list("").map_err(|_| wrong())?;
                words
                    .into_iter()
                    .map(|f| f.text("", |t| Some(t.to_owned())))
                    .collect::<Result<_>>()
                    .map_err(|_| wrong())?
            };
            if words.first().is_none_or(String::is_empty) || words.iter().any(|w| w.contains('\0')) {
                return Err(place.expected("command: a program and its arguments"));
            }
            Ok(PinSource::Command(words))
        }
        _ => Err(wrong()),
    }
}

fn is_fingerprint(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit()))
}
