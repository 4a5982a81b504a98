//! Reading the file: every key known, every value checked, every error with its place and what was expected.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ha_token::{Selector, Ulong};
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use super::types::*;
use super::{PinSource, Surroundings, uri};
use crate::policy::balance::{Balance, MAX_MEMBERS};

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
    #[error("{path}: {message}")]
    Wrong {
        /// The file.
        path: String,
        /// Line, key, and what was expected.
        message: String,
    },
}

/// Largest file that is read.
const LARGEST: u64 = 1 << 20;

impl Config {
    pub(super) fn read(path: &Path, surroundings: &Surroundings) -> Result<Config, ConfigError> {
        let failed = |source| ConfigError::Read { path: path.to_owned(), source };
        let meta = std::fs::metadata(path).map_err(failed)?;
        if meta.mode() & 0o002 != 0 {
            return Err(ConfigError::Writable { path: path.to_owned(), mode: meta.mode() & 0o7777 });
        }
        if meta.len() > LARGEST {
            return Err(failed(std::io::Error::other("larger than a configuration can be (1 MiB)")));
        }
        let bytes = std::fs::read(path).map_err(failed)?;
        let wrong = |message: String| ConfigError::Wrong { path: path.display().to_string(), message };
        let text = String::from_utf8(bytes).map_err(|e| {
            let line =
                1 + e.as_bytes().iter().take(e.utf8_error().valid_up_to()).filter(|b| **b == b'\n').count();
            wrong(format!("line {line}: not UTF-8"))
        })?;
        Self::parse_in(&text, Some(path), surroundings).map_err(wrong)
    }

    /// Reads a configuration's text.
    ///
    /// # Errors
    /// [`ConfigError::Wrong`].
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        Self::parse_in(text, None, &Surroundings::of_process())
            .map_err(|message| ConfigError::Wrong { path: "configuration".into(), message })
    }

    fn parse_in(text: &str, path: Option<&Path>, surroundings: &Surroundings) -> Result<Config, String> {
        let file: File = toml::from_str(text).map_err(|e| {
            let line = e
                .span()
                .map(|s| 1 + text.get(..s.start).unwrap_or(text).bytes().filter(|b| *b == b'\n').count());
            // What stands there is not repeated: it may be a PIN where none should be. Serde names the key itself.
            let place = line.map(|l| format!("line {l}: ")).unwrap_or_default();
            format!("{place}{}", e.message().trim_end())
        })?;
        let mut labels = HashSet::new();
        let groups = file.group.into_iter().map(RawGroup::check).collect::<Result<Vec<_>, _>>()?;
        for group in &groups {
            if !labels.insert(group.label.clone()) {
                return Err(format!(
                    "group {:?} stands twice; every group needs a label of its own",
                    group.label
                ));
            }
        }
        Ok(Config {
            path: path.map(Path::to_owned),
            ha_only: file.ha_only,
            state_dir: file.state_dir.unwrap_or_else(|| surroundings.state_dir(path)),
            log: Log {
                level: file.log.level.unwrap_or(LogLevel::Warn),
                target: file.log.target.map_or(LogTarget::Stderr, |t| t.0),
                format: file.log.format.unwrap_or(LogFormat::Text),
            },
            groups,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default = "yes")]
    ha_only: bool,
    state_dir: Option<PathBuf>,
    #[serde(default)]
    log: RawLog,
    #[serde(default)]
    group: Vec<RawGroup>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLog {
    level: Option<LogLevel>,
    target: Option<RawTarget>,
    format: Option<LogFormat>,
}

struct RawTarget(LogTarget);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    label: String,
    #[serde(default)]
    balance: RawBalance,
    deadline: Option<RawDuration>,
    generate_deadline: Option<RawDuration>,
    min_copies: Option<usize>,
    #[serde(default = "escrow")]
    non_extractable: NonExtractable,
    #[serde(default = "refuse")]
    uncopyable: Uncopyable,
    #[serde(default = "local")]
    session_objects: SessionObjects,
    replay_limit: Option<RawSize>,
    #[serde(default)]
    verify_signatures: bool,
    #[serde(default)]
    strict_usage: bool,
    #[serde(default = "refuse_init")]
    init_token: InitToken,
    #[serde(default)]
    vendor_mechanisms: Vec<RawMechanism>,
    #[serde(default)]
    recovery: RawRecovery,
    #[serde(default)]
    member: Vec<RawMember>,
}

fn escrow() -> NonExtractable {
    NonExtractable::Escrow
}

fn refuse() -> Uncopyable {
    Uncopyable::Refuse
}

fn local() -> SessionObjects {
    SessionObjects::Local
}

fn refuse_init() -> InitToken {
    InitToken::Refuse
}

#[derive(Deserialize, Default)]
enum RawBalance {
    #[default]
    #[serde(rename = "least-busy")]
    LeastBusy,
    #[serde(rename = "round-robin")]
    RoundRobin,
    #[serde(rename = "primary")]
    Primary,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawRecovery {
    mode: Option<RecoveryMode>,
    interval: Option<RawDuration>,
    max_interval: Option<RawDuration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMember {
    name: Option<String>,
    module: PathBuf,
    token: Option<String>,
    serial: Option<String>,
    uri: Option<String>,
    role: Option<Role>,
    instance: Option<InstanceMode>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "pin")]
    pin: Option<RawPin>,
    fingerprint: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPin {
    env: Option<String>,
    file: Option<PathBuf>,
    command: Option<RawCommand>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawCommand {
    Words(Vec<String>),
    Line(String),
}

/// Reads `pin`, and never repeats what stands there: it may be the PIN itself.
fn pin<'de, D: Deserializer<'de>>(d: D) -> Result<Option<RawPin>, D::Error> {
    struct Source;
    impl<'de> Visitor<'de> for Source {
        type Value = RawPin;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("exactly one of { env = … }, { file = … }, { command = … }")
        }

        fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<RawPin, A::Error> {
            // Serde's own words would repeat a value of the wrong type.
            RawPin::deserialize(de::value::MapAccessDeserializer::new(map)).map_err(|_| {
                de::Error::invalid_value(de::Unexpected::Other("something that is not shown"), &self)
            })
        }

        fn visit_str<E: de::Error>(self, _: &str) -> Result<RawPin, E> {
            Err(de::Error::invalid_type(de::Unexpected::Other("a value that is not shown"), &self))
        }

        fn visit_i64<E: de::Error>(self, _: i64) -> Result<RawPin, E> {
            self.visit_str("")
        }

        fn visit_u64<E: de::Error>(self, _: u64) -> Result<RawPin, E> {
            self.visit_str("")
        }

        fn visit_f64<E: de::Error>(self, _: f64) -> Result<RawPin, E> {
            self.visit_str("")
        }

        fn visit_bool<E: de::Error>(self, _: bool) -> Result<RawPin, E> {
            self.visit_str("")
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, _: A) -> Result<RawPin, A::Error> {
            self.visit_str("")
        }
    }
    d.deserialize_any(Source).map(Some)
}

/// A duration, or "off".
struct RawDuration(Option<Duration>);
struct RawSize(usize);
struct RawMechanism(Ulong);

/// Reads a string by a function that says what it expects.
struct Text<T>(&'static str, fn(&str) -> Option<T>);

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.1)(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for RawDuration {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_str(Text("a duration such as \"250ms\", \"10s\", \"2m\", or \"off\"", duration))
            .map(RawDuration)
    }
}

impl<'de> Deserialize<'de> for RawSize {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_str(Text("a size such as \"512KiB\", \"1MiB\" or \"4096\"", size)).map(RawSize)
    }
}

impl<'de> Deserialize<'de> for RawTarget {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_str(Text("\"stderr\", \"journal\", \"syslog\" or \"file:/path\"", target))
            .map(RawTarget)
    }
}

impl<'de> Deserialize<'de> for RawMechanism {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ulong::deserialize(d).and_then(|n| {
            if n >= ha_token::ck::CKM_VENDOR_DEFINED {
                Ok(RawMechanism(n))
            } else {
                Err(de::Error::invalid_value(
                    de::Unexpected::Unsigned(n),
                    &"a vendor mechanism's number, 0x80000000 or above",
                ))
            }
        })
    }
}

fn duration(text: &str) -> Option<Option<Duration>> {
    if text == "off" {
        return Some(None);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let ms = match unit {
        "ms" => number,
        "s" => number.checked_mul(1000)?,
        "m" => number.checked_mul(60_000)?,
        "h" => number.checked_mul(3_600_000)?,
        _ => return None,
    };
    // A day is longer than anybody waits; what is above it is a slip of the pen. Nothing is done in no time either.
    (1..=86_400_000).contains(&ms).then(|| Some(Duration::from_millis(ms)))
}

fn size(text: &str) -> Option<usize> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: usize = number.parse().ok()?;
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor)
}

fn target(text: &str) -> Option<LogTarget> {
    match text {
        "stderr" => Some(LogTarget::Stderr),
        "journal" => Some(LogTarget::Journal),
        "syslog" => Some(LogTarget::Syslog),
        _ => text.strip_prefix("file:").filter(|p| p.starts_with('/')).map(|p| LogTarget::File(p.into())),
    }
}

impl RawGroup {
    fn check(self) -> Result<GroupConfig, String> {
        let label = self.label;
        if label.is_empty() || label.len() > 32 {
            return Err(format!("group {label:?}: a label has 1 to 32 bytes, this one {}", label.len()));
        }
        let at = |message: String| format!("group {label:?}: {message}");
        let members =
            self.member.into_iter().map(RawMember::check).collect::<Result<Vec<_>, _>>().map_err(at)?;
        if members.is_empty() || members.len() > MAX_MEMBERS {
            return Err(at(format!(
                "a group has 1 to {MAX_MEMBERS} members ([[group.member]]), this one {}",
                members.len()
            )));
        }
        for (i, m) in members.iter().enumerate() {
            for other in members.iter().take(i) {
                if m.name == other.name {
                    return Err(at(format!(
                        "member {:?} stands twice; give each a `name` of its own",
                        m.name
                    )));
                }
                if m.module == other.module && m.selector == other.selector && m.env == other.env {
                    return Err(at(format!("members {:?} and {:?} are the same token", other.name, m.name)));
                }
            }
        }
        if members.iter().all(|m| m.role == Role::Standby) {
            return Err(at("every member is a standby; at least one must be active".into()));
        }
        let min_copies = self.min_copies.unwrap_or(if members.len() == 1 { 1 } else { 2 });
        if min_copies == 0 || min_copies > members.len() {
            return Err(at(format!(
                "min_copies is {min_copies}; from 1 to the number of members ({}) was expected",
                members.len()
            )));
        }
        let recovery = Recovery {
            mode: self.recovery.mode.unwrap_or(RecoveryMode::Auto),
            interval: always(self.recovery.interval, "interval", Duration::from_secs(1)).map_err(at)?,
            max_interval: always(self.recovery.max_interval, "max_interval", Duration::from_secs(60))
                .map_err(at)?,
        };
        if recovery.interval > recovery.max_interval {
            return Err(at("recovery.interval is longer than recovery.max_interval".into()));
        }
        Ok(GroupConfig {
            balance: match self.balance {
                RawBalance::LeastBusy => Balance::LeastBusy,
                RawBalance::RoundRobin => Balance::RoundRobin,
                RawBalance::Primary => Balance::Primary,
            },
            deadline: self.deadline.map_or(Some(Duration::from_secs(10)), |d| d.0),
            generate_deadline: self.generate_deadline.map_or(Some(Duration::from_secs(120)), |d| d.0),
            min_copies,
            non_extractable: self.non_extractable,
            uncopyable: self.uncopyable,
            session_objects: self.session_objects,
            replay_limit: self.replay_limit.map_or(1 << 20, |s| s.0),
            verify_signatures: self.verify_signatures,
            strict_usage: self.strict_usage,
            init_token: self.init_token,
            vendor_mechanisms: self.vendor_mechanisms.into_iter().map(|m| m.0).collect(),
            recovery,
            members,
            label,
        })
    }
}

fn always(value: Option<RawDuration>, key: &str, default: Duration) -> Result<Duration, String> {
    match value {
        None => Ok(default),
        Some(RawDuration(Some(d))) => Ok(d),
        Some(RawDuration(None)) => {
            Err(format!("recovery.{key} cannot be \"off\"; mode = \"manual\" turns recovery off"))
        }
    }
}

impl RawMember {
    fn check(self) -> Result<MemberConfig, String> {
        let selector = match (self.token, self.serial, self.uri) {
            (Some(label), None, None) => Selector { label: Some(label), ..Selector::default() },
            (None, Some(serial), None) => Selector { serial: Some(serial), ..Selector::default() },
            (None, None, Some(uri)) => uri::selector(&uri).map_err(|e| format!("uri: {e}"))?,
            _ => {
                return Err(format!(
                    "a member of {} names its token by exactly one of token, serial and uri",
                    self.module.display()
                ));
            }
        };
        let name = self
            .name
            .or_else(|| selector.label.clone())
            .or_else(|| selector.serial.clone())
            .unwrap_or_default();
        if selector.label.as_deref() == Some("") || selector.serial.as_deref() == Some("") {
            return Err(format!("a member of {} names an empty token or serial", self.module.display()));
        }
        if name.is_empty() {
            return Err("a member needs a `name` where its token has no label".into());
        }
        let at = |message: &str| format!("member {name:?}: {message}");
        let instance = self.instance.unwrap_or(InstanceMode::Auto);
        if instance == InstanceMode::Shared && !self.env.is_empty() {
            return Err(at("`env` needs an instance of its own; it cannot stand with instance = \"shared\""));
        }
        if self.env.iter().any(|(k, v)| k.is_empty() || k.contains(['=', '\0']) || v.contains('\0')) {
            return Err(at("a name in `env` is not a variable's name, or a value holds a NUL"));
        }
        let pin = match self.pin {
            None => None,
            Some(RawPin { env: Some(name), file: None, command: None }) => Some(PinSource::Env(name)),
            Some(RawPin { env: None, file: Some(path), command: None }) => Some(PinSource::File(path)),
            Some(RawPin { env: None, file: None, command: Some(command) }) => {
                Some(PinSource::Command(match command {
                    RawCommand::Words(words) => words,
                    RawCommand::Line(line) => line.split_whitespace().map(str::to_owned).collect(),
                }))
            }
            Some(_) => return Err(at("`pin` is exactly one of { env = … }, { file = … }, { command = … }")),
        };
        if let Some(fingerprint) = &self.fingerprint
            && !fingerprint
                .strip_prefix("sha256:")
                .is_some_and(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            return Err(at("`fingerprint` is \"sha256:\" and 64 hex digits"));
        }
        Ok(MemberConfig {
            module: self.module,
            selector,
            role: self.role.unwrap_or(Role::Active),
            instance,
            env: self.env,
            pin,
            fingerprint: self.fingerprint,
            name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MEMBER: &str = "[[group.member]]\nmodule = \"/m.so\"\ntoken = \"t\"\n";

    fn group(lines: &str) -> String {
        format!("[[group]]\nlabel = \"g\"\n{lines}\n{MEMBER}")
    }

    fn error(text: &str) -> String {
        Config::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let config = Config::parse(&group("")).unwrap();
        let g = config.groups.first().unwrap();
        assert!(config.ha_only && g.balance == Balance::LeastBusy && g.min_copies == 1);
        assert_eq!(
            (g.deadline, g.generate_deadline),
            (Some(Duration::from_secs(10)), Some(Duration::from_secs(120)))
        );
        assert_eq!(
            (g.replay_limit, g.recovery.interval, g.recovery.max_interval),
            (1 << 20, Duration::from_secs(1), Duration::from_secs(60))
        );
        assert_eq!(g.members.first().unwrap().name, "t");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (lines, parts) in [
            ("balanced = \"primary\"", &["line 3", "balanced"][..]),
            ("balance = \"fastest\"", &["line 3", "least-busy"]),
            ("deadline = \"10\"", &["line 3", "250ms"]),
            ("deadline = 10", &["line 3", "250ms"]),
            ("replay_limit = \"1MB\"", &["line 3", "1MiB"]),
            ("min_copies = 3", &["min_copies", "number of members"]),
            ("vendor_mechanisms = [1]", &["line 3", "0x80000000"]),
            ("recovery = { interval = \"2m\", max_interval = \"1m\" }", &["recovery.interval"]),
        ] {
            let error = error(&group(lines));
            assert!(parts.iter().all(|p| error.contains(p)), "{lines}: {error}");
        }
    }

    #[test]
    fn a_pin_that_stands_in_the_file_is_refused_and_not_repeated() {
        for pin in [
            "\"geheim47\"",
            "4711471147",
            "[\"geheim47\"]",
            "{ value = \"geheim47\" }",
            "47.114711",
            "\"geheim47",
        ] {
            let error = error(&format!("{}pin = {pin}\n", group("")));
            assert!(!error.contains("geheim") && !error.contains("4711"), "{pin}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            drop(Config::parse(&text));
        }

        #[test]
        fn no_value_panics(key in "[a-z_]{1,20}", value in "\\PC{0,40}") {
            drop(Config::parse(&group(&format!("{key} = {value}"))));
        }
    }
}
