//! The configuration: a TOML file that `FAULTY_TOKEN_CONF` names.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::rule::Rule;
use crate::state::State;

/// Names the configuration.
pub const VARIABLE: &str = "FAULTY_TOKEN_CONF";

/// What the file says.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// The real module.
    pub module: PathBuf,
    /// Whether it is loaded as a copy with variables of its own.
    pub private: bool,
    /// The control socket.
    pub socket: Option<PathBuf>,
    /// What random numbers begin with.
    pub seed: Option<u64>,
    /// The script.
    pub rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    module: PathBuf,
    #[serde(default)]
    instance: Instance,
    socket: Option<PathBuf>,
    seed: Option<u32>,
    #[serde(default)]
    rules: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum Instance {
    #[default]
    Private,
    Shared,
}

impl Config {
    /// Reads the file that the environment names.
    ///
    /// # Errors
    /// What is wrong, in words, with the file's name.
    pub fn load() -> Result<Config, String> {
        // SAFETY: it looks a number up.
        if unsafe { libc::getauxval(libc::AT_SECURE) } != 0 {
            return Err("refused in a set-uid process: what it loads is not for its caller to say".into());
        }
        let path = std::env::var_os(VARIABLE)
            .map(PathBuf::from)
            .ok_or_else(|| format!("{VARIABLE} is not set: it names the configuration"))?;
        Config::read(&path).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn read(path: &Path) -> Result<Config, String> {
        let unread = |error: std::io::Error| format!("cannot be read: {error}");
        // The file that is read is the one that is looked at.
        let mut file = std::fs::File::open(path).map_err(unread)?;
        if file.metadata().map_err(unread)?.mode() & 0o002 != 0 {
            return Err("others may write to it, and it names a library that is loaded: chmod o-w".into());
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(unread)?;
        Config::parse(&text)
    }

    /// The state that the script begins with.
    ///
    /// # Errors
    /// There is no seed, and no random number can be had.
    pub fn script(&self) -> Result<State, String> {
        let script = State::new(&self.rules, self.seed.unwrap_or(0));
        match self.seed {
            Some(_) => Ok(script),
            None => Ok(script.drawn(getrandom::u64().map_err(|e| format!("no random number: {e}"))?)),
        }
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &str) -> Result<Config, String> {
        let file: File = toml::from_str(text).map_err(|error| match error.span() {
            Some(span) => {
                let line = text.get(..span.start).unwrap_or(text).matches('\n').count() + 1;
                format!("line {line}: {}", error.message())
            }
            None => error.message().to_owned(),
        })?;
        let rule = |(i, text): (usize, &String)| {
            Rule::parse(text).map_err(|error| format!("rule {} ({text:?}): {error}", i + 1))
        };
        Ok(Config {
            module: file.module,
            private: matches!(file.instance, Instance::Private),
            socket: file.socket,
            seed: file.seed.map(u64::from),
            rules: file.rules.iter().enumerate().map(rule).collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_with_everything_and_one_with_the_least() {
        let least = Config::parse("module = \"/m.so\"").unwrap();
        assert!(least.private && least.rules.is_empty() && least.socket.is_none() && least.seed.is_none());
        let all = Config::parse(
            "module = \"/m.so\"\ninstance = \"shared\"\nsocket = \"/s\"\nseed = 3\nrules = [\"C_Sign hang\"]",
        );
        let all = all.unwrap();
        assert_eq!((all.private, all.socket, all.seed), (false, Some("/s".into()), Some(3)));
        assert_eq!(all.rules, [Rule::parse("C_Sign hang").unwrap()]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, reason) in [
            ("", "module"),
            ("module = \"/m\"\nmodul = 1", "modul"),
            ("module = \"/m\"\ninstance = \"auto\"", "private"),
            ("module = \"/m\"\nseed = -1", "line 2"),
            ("module = \"/m\"\nrules = [\"C_Sign hang\", \"C_Sign hangs\"]", "rule 2"),
            ("module = \"/m\"\nmodule =", "line 2"),
        ] {
            let error = Config::parse(text).expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("faulty.toml");
        assert!(Config::read(&path).unwrap_err().contains("cannot be read"));
        std::fs::write(&path, "module = \"/m.so\"").unwrap();
        for (mode, refused) in [(0o644, false), (0o666, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Config::read(&path).is_err(), refused, "{mode:o}");
        }
    }
}
