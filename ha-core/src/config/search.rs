//! Where the configuration file is looked for.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{Config, ConfigError};

/// The system-wide file.
const SYSTEM: &str = "/etc/pkcs11-ha/ha.toml";

/// What of the process's surroundings decides which file is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// `$PKCS11_HA_CONF`.
    pub named: Option<OsString>,
    /// `$XDG_CONFIG_HOME`.
    pub config_home: Option<OsString>,
    /// `$XDG_STATE_HOME`.
    pub state_home: Option<OsString>,
    /// `$HOME`.
    pub home: Option<OsString>,
    /// Whether the effective user is root.
    pub root: bool,
    /// Whether the process runs with more rights than its caller has (set-uid, capabilities).
    pub secure: bool,
}

impl Surroundings {
    /// Of this process.
    pub fn of_process() -> Self {
        let set = |name| std::env::var_os(name).filter(|v| !v.is_empty());
        Surroundings {
            named: set("PKCS11_HA_CONF"),
            config_home: set("XDG_CONFIG_HOME"),
            state_home: set("XDG_STATE_HOME"),
            home: set("HOME"),
            root: rustix::process::geteuid().is_root(),
            secure: is_secure(),
        }
    }

    /// The file that was named, which must be there; else the others in order, the first that is there.
    fn candidates(&self) -> (Option<PathBuf>, Vec<PathBuf>) {
        let mut others = Vec::new();
        if !self.secure {
            if let Some(named) = &self.named {
                return (Some(named.into()), others);
            }
            if !self.root {
                let home = self
                    .config_home
                    .as_ref()
                    .map(PathBuf::from)
                    .or_else(|| Some(Path::new(self.home.as_ref()?).join(".config")));
                others.extend(home.map(|h| h.join("pkcs11-ha/ha.toml")));
            }
        }
        others.push(SYSTEM.into());
        (None, others)
    }

    /// Where the ledger is when the file at `config` does not say.
    pub(super) fn state_dir(&self, config: Option<&Path>) -> PathBuf {
        if config.is_some_and(|c| c.starts_with("/etc")) {
            return "/var/lib/pkcs11-ha".into();
        }
        let home = self
            .state_home
            .as_ref()
            .map(PathBuf::from)
            .or_else(|| Some(Path::new(self.home.as_ref()?).join(".local/state")));
        home.map_or_else(|| "/var/lib/pkcs11-ha".into(), |h| h.join("pkcs11-ha"))
    }
}

/// `AT_SECURE` of the auxiliary vector: the kernel's own word on whether the environment can be trusted.
fn is_secure() -> bool {
    const AT_SECURE: usize = 23;
    const WORD: usize = size_of::<usize>();
    // Without the vector to read (no /proc) the users tell.
    let Ok(vector) = std::fs::read("/proc/self/auxv") else {
        return rustix::process::geteuid() != rustix::process::getuid()
            || rustix::process::getegid() != rustix::process::getgid();
    };
    let word = |bytes: &[u8]| bytes.try_into().map(usize::from_ne_bytes).unwrap_or(0);
    vector.chunks_exact(2 * WORD).any(|pair| {
        let (kind, value) = pair.split_at(WORD);
        word(kind) == AT_SECURE && word(value) != 0
    })
}

impl Config {
    /// Looks for the configuration and reads it: `$PKCS11_HA_CONF`, the user's own file (not for root), the system's; in
    /// a set-uid process the last only. `None` when there is none at all.
    ///
    /// # Errors
    /// A file that was named and is not there, or one that is there and not right.
    pub fn load() -> Result<Option<Config>, ConfigError> {
        Self::load_in(&Surroundings::of_process())
    }

    /// As [`Config::load`], in given surroundings.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_in(surroundings: &Surroundings) -> Result<Option<Config>, ConfigError> {
        let (named, others) = surroundings.candidates();
        if let Some(path) = named {
            return Self::read(&path, surroundings).map(Some);
        }
        for path in others {
            match Self::read(&path, surroundings) {
                Err(ConfigError::Read { source, .. })
                    if matches!(
                        source.kind(),
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                    ) => {}
                other => return other.map(Some),
            }
        }
        Ok(None)
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn from_file(path: &Path) -> Result<Config, ConfigError> {
        Self::read(path, &Surroundings::of_process())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: &str = "[[group]]\nlabel=\"g\"\n[[group.member]]\nmodule=\"/m\"\ntoken=\"t\"\n";

    #[test]
    fn a_named_file_must_be_there_and_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let user = dir.path().join("pkcs11-ha");
        std::fs::create_dir(&user).unwrap();
        std::fs::write(user.join("ha.toml"), GROUP).unwrap();
        let mut s = Surroundings { config_home: Some(dir.path().into()), ..Surroundings::default() };
        assert_eq!(Config::load_in(&s).unwrap().unwrap().path.unwrap(), user.join("ha.toml"));
        s.named = Some(dir.path().join("absent.toml").into());
        assert!(matches!(Config::load_in(&s), Err(ConfigError::Read { .. })));
    }

    #[test]
    fn root_and_set_uid_processes_do_not_read_a_users_file() {
        let s = Surroundings { home: Some("/h".into()), ..Surroundings::default() };
        assert_eq!(s.candidates().1, [PathBuf::from("/h/.config/pkcs11-ha/ha.toml"), SYSTEM.into()]);
        assert_eq!(Surroundings { root: true, ..s.clone() }.candidates().1, [PathBuf::from(SYSTEM)]);
        let secure = Surroundings { secure: true, named: Some("/x".into()), ..s };
        assert_eq!(secure.candidates(), (None, vec![SYSTEM.into()]));
    }

    #[test]
    fn state_goes_with_the_file() {
        let s = Surroundings { home: Some("/h".into()), ..Surroundings::default() };
        assert_eq!(s.state_dir(Some(Path::new("/etc/pkcs11-ha/ha.toml"))), Path::new("/var/lib/pkcs11-ha"));
        assert_eq!(s.state_dir(Some(Path::new("/x/ha.toml"))), Path::new("/h/.local/state/pkcs11-ha"));
    }
}
