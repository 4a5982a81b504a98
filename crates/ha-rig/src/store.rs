//! SoftHSM's folders of tokens, each with a configuration of its own.

use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::{PIN, SO_PIN};

/// A folder of tokens and the configuration that names it.
pub struct Store {
    conf: PathBuf,
    tokens: PathBuf,
    /// Removed with the store, where it is the store's own.
    own: Option<TempDir>,
}

impl Store {
    /// One in a folder of its own, with an initialised token for each label.
    ///
    /// # Panics
    /// When SoftHSM cannot be had.
    pub fn with(labels: &[&str]) -> Self {
        let own = tempfile::tempdir().unwrap();
        let mut store = Store::named(own.path(), "a");
        store.own = Some(own);
        labels.iter().for_each(|label| store.add(label));
        store
    }

    /// An empty one in a folder that is there: `NAME.conf` and `tokens-NAME`.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn named(dir: &Path, name: &str) -> Self {
        Store::try_named(dir, name).unwrap()
    }

    /// As [`named`](Self::named).
    ///
    /// # Errors
    /// It cannot be written.
    pub fn try_named(dir: &Path, name: &str) -> Result<Self> {
        let store = Store {
            conf: dir.join(format!("{name}.conf")),
            tokens: dir.join(format!("tokens-{name}")),
            own: None,
        };
        std::fs::create_dir(&store.tokens)?;
        let tokens = store.tokens.display();
        let conf =
            format!("directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n");
        std::fs::write(&store.conf, conf)?;
        Ok(store)
    }

    /// Makes a token in it.
    ///
    /// # Panics
    /// When SoftHSM cannot be had.
    pub fn add(&self, label: &str) {
        self.try_add(label).unwrap();
    }

    /// As [`add`](Self::add).
    ///
    /// # Errors
    /// SoftHSM cannot be had, or makes none.
    pub fn try_add(&self, label: &str) -> Result<()> {
        let made = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", label, "--so-pin", SO_PIN, "--pin", PIN])
            .env("SOFTHSM2_CONF", &self.conf)
            .output()
            .map_err(|e| {
                Error::other(format!(
                    "softhsm2-util cannot be run ({e}): install the Debian package softhsm2"
                ))
            })?;
        if made.status.success() {
            Ok(())
        } else {
            Err(Error::other(format!("softhsm2-util makes no token: {made:?}")))
        }
    }

    /// The configuration.
    pub fn conf(&self) -> &Path {
        &self.conf
    }

    /// The folder that holds the tokens.
    pub fn tokens(&self) -> &Path {
        &self.tokens
    }

    /// The folder of both.
    ///
    /// # Panics
    /// Never.
    pub fn dir(&self) -> &Path {
        self.conf.parent().unwrap()
    }
}

/// Takes a folder of tokens away: whoever looks for it from here on finds an empty one in its place.
///
/// # Panics
/// When it is away already.
pub fn hide(tokens: &Path) {
    try_hide(tokens).unwrap();
}

/// As [`hide`].
///
/// # Errors
/// It is away already, or cannot be moved.
pub(crate) fn try_hide(tokens: &Path) -> Result<()> {
    std::fs::rename(tokens, away(tokens))?;
    std::fs::create_dir(tokens)
}

/// Brings a hidden folder back.
///
/// # Panics
/// When it is not hidden.
pub fn restore(tokens: &Path) {
    try_restore(tokens).unwrap();
}

/// As [`restore`].
///
/// # Errors
/// It is not hidden, or cannot be moved.
pub(crate) fn try_restore(tokens: &Path) -> Result<()> {
    std::fs::remove_dir_all(tokens)?;
    std::fs::rename(away(tokens), tokens)
}

fn away(tokens: &Path) -> PathBuf {
    let name = tokens.file_name().unwrap().to_str().unwrap();
    tokens.with_file_name(format!("away-{name}"))
}
