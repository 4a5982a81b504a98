//! SoftHSM's folders of tokens, each with a configuration of its own.

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
        let store = Store {
            conf: dir.join(format!("{name}.conf")),
            tokens: dir.join(format!("tokens-{name}")),
            own: None,
        };
        std::fs::create_dir(&store.tokens).unwrap();
        let tokens = store.tokens.display();
        let conf =
            format!("directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n");
        std::fs::write(&store.conf, conf).unwrap();
        store
    }

    /// Makes a token in it.
    ///
    /// # Panics
    /// When SoftHSM cannot be had.
    pub fn add(&self, label: &str) {
        let made = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", label, "--so-pin", SO_PIN, "--pin", PIN])
            .env("SOFTHSM2_CONF", &self.conf)
            .output()
            .expect("softhsm2-util runs: install the Debian package softhsm2");
        assert!(made.status.success(), "{made:?}");
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
    std::fs::rename(tokens, away(tokens)).unwrap();
    std::fs::create_dir(tokens).unwrap();
}

/// Brings a hidden folder back.
///
/// # Panics
/// When it is not hidden.
pub fn restore(tokens: &Path) {
    std::fs::remove_dir_all(tokens).unwrap();
    std::fs::rename(away(tokens), tokens).unwrap();
}

fn away(tokens: &Path) -> PathBuf {
    let name = tokens.file_name().unwrap().to_str().unwrap();
    tokens.with_file_name(format!("away-{name}"))
}
