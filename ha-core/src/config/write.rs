//! Writing a configuration as the file that says it.

use std::fmt::Write;
use std::path::Path;

use ha_token::Selector;
use toml_writer::{ToTomlKey, ToTomlValue, TomlKeyBuilder, TomlStringBuilder};

use super::parse::ConfigError;
use super::types::*;
use super::values::{balance_text, duration_text, size_text};
use super::{PinSource, uri};

impl Config {
    /// The file's text. What is as it would be without being said is left out, the state folder apart.
    ///
    /// # Errors
    /// [`ConfigError`] for a configuration that no file can say, or that would be refused.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        let mut out = String::new();
        // Only paths can fail here; what else no file can say is found by reading it back.
        self.write(&mut out).ok_or(ConfigError::Unsayable)?;
        let read = Config::parse(&out)?;
        if read == (Config { path: None, digest: None, ..self.clone() }) {
            Ok(out)
        } else {
            Err(ConfigError::Unsayable)
        }
    }

    fn write(&self, out: &mut String) -> Option<()> {
        let mut top = Table(out);
        top.unless(self.ha_only, "ha_only", "false");
        top.text("state_dir", path(&self.state_dir)?);
        if self.log != Log::default() {
            let mut table = Table::open(out, "[log]");
            table.unless(self.log.level == LogLevel::Warn, "level", quoted(&self.log.level.to_string()));
            match &self.log.target {
                LogTarget::Stderr => {}
                LogTarget::Journal => table.text("target", "journal"),
                LogTarget::Syslog => table.text("target", "syslog"),
                LogTarget::File(file) => table.text("target", &format!("file:{}", path(file)?)),
            }
            table.unless(self.log.format == LogFormat::Text, "format", quoted(&self.log.format.to_string()));
        }
        self.groups.iter().try_for_each(|group| group.write(out))
    }
}

impl GroupConfig {
    fn write(&self, out: &mut String) -> Option<()> {
        // What is as it is here goes without saying.
        let default = GroupConfig::new(&self.label, self.members.clone());
        let mut table = Table::open(out, "[[group]]");
        table.text("label", &self.label);
        let mut word = |key, value: String, default: String| {
            table.unless(value == default, key, quoted(&value));
        };
        word("balance", balance_text(self.balance).into(), balance_text(default.balance).into());
        word("deadline", duration_text(self.deadline), duration_text(default.deadline));
        word(
            "generate_deadline",
            duration_text(self.generate_deadline),
            duration_text(default.generate_deadline),
        );
        word("non_extractable", self.non_extractable.to_string(), default.non_extractable.to_string());
        word("uncopyable", self.uncopyable.to_string(), default.uncopyable.to_string());
        word("session_objects", self.session_objects.to_string(), default.session_objects.to_string());
        word("replay_limit", size_text(self.replay_limit), size_text(default.replay_limit));
        word("init_token", self.init_token.to_string(), default.init_token.to_string());
        table.unless(self.min_copies == default.min_copies, "min_copies", self.min_copies.to_string());
        table.unless(!self.verify_signatures, "verify_signatures", "true");
        table.unless(!self.strict_usage, "strict_usage", "true");
        let mechanisms: Vec<_> = self.vendor_mechanisms.iter().map(|m| format!("{m:#x}")).collect();
        table.unless(mechanisms.is_empty(), "vendor_mechanisms", format!("[{}]", mechanisms.join(", ")));
        let (own, usual) = (self.recovery, default.recovery);
        if own != usual {
            let mut table = Table::open(out, "[group.recovery]");
            table.unless(own.mode == usual.mode, "mode", quoted(&own.mode.to_string()));
            let mut duration = |key, own, usual| {
                table.unless(own == usual, key, quoted(&duration_text(Some(own))));
            };
            duration("interval", own.interval, usual.interval);
            duration("max_interval", own.max_interval, usual.max_interval);
        }
        self.members.iter().try_for_each(|member| member.write(out))
    }
}

impl MemberConfig {
    /// Its table, `[[group.member]]`, as a file has it.
    ///
    /// # Errors
    /// [`ConfigError::Unsayable`] for a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        let mut out = String::new();
        self.write(&mut out).ok_or(ConfigError::Unsayable)?;
        Ok(out)
    }

    fn write(&self, out: &mut String) -> Option<()> {
        let mut table = Table::open(out, "[[group.member]]");
        table.text("name", &self.name);
        table.text("module", path(&self.module)?);
        match &self.selector {
            Selector { label: Some(l), serial: None, manufacturer: None, model: None, slot_id: None } => {
                table.text("token", l);
            }
            Selector { label: None, serial: Some(s), manufacturer: None, model: None, slot_id: None } => {
                table.text("serial", s);
            }
            other => table.text("uri", &uri::of(other)),
        }
        table.unless(self.role == Role::Active, "role", quoted(&self.role.to_string()));
        table.unless(self.instance == InstanceMode::Auto, "instance", quoted(&self.instance.to_string()));
        let env: Vec<_> = self.env.iter().map(|(k, v)| format!("{} = {}", key(k), quoted(v))).collect();
        table.unless(env.is_empty(), "env", format!("{{ {} }}", env.join(", ")));
        let pin = match &self.pin {
            None => None,
            Some(PinSource::Env(name)) => Some(format!("env = {}", quoted(name))),
            Some(PinSource::File(file)) => Some(format!("file = {}", quoted(path(file)?))),
            Some(PinSource::Command(words)) => {
                let words: Vec<_> = words.iter().map(|w| quoted(w)).collect();
                Some(format!("command = [{}]", words.join(", ")))
            }
        };
        if let Some(pin) = pin {
            table.line("pin", &format!("{{ {pin} }}"));
        }
        if let Some(fingerprint) = &self.fingerprint {
            table.text("fingerprint", fingerprint);
        }
        Some(())
    }
}

/// Lines of a table.
struct Table<'a>(&'a mut String);

impl<'a> Table<'a> {
    fn open(out: &'a mut String, header: &str) -> Self {
        // Writing to a String cannot fail, here and below.
        _ = write!(out, "\n{header}\n");
        Table(out)
    }

    fn line(&mut self, key: &str, value: &str) {
        _ = writeln!(self.0, "{key} = {value}");
    }

    fn text(&mut self, key: &str, value: &str) {
        self.line(key, &quoted(value));
    }

    fn unless(&mut self, default: bool, key: &str, value: impl AsRef<str>) {
        if !default {
            self.line(key, value.as_ref());
        }
    }
}

fn quoted(text: &str) -> String {
    TomlStringBuilder::new(text).as_basic().to_toml_value()
}

fn key(name: &str) -> String {
    TomlKeyBuilder::new(name)
        .as_unquoted()
        .map_or_else(|| TomlKeyBuilder::new(name).as_basic().to_toml_key(), |bare| bare.to_toml_key())
}

fn path(path: &Path) -> Option<&str> {
    path.to_str()
}
