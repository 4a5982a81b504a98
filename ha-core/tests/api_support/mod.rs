//! SoftHSM tokens in a folder of their own, and a configuration that makes a group of them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian puts SoftHSM.
pub(crate) const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";
/// Every token's user PIN.
pub(crate) const USER_PIN: &str = "648219";
const SO_PIN: &str = "31415926";

/// A folder with initialised tokens, removed when dropped.
pub(crate) struct Tokens {
    dir: tempfile::TempDir,
}

impl Tokens {
    /// Makes a token of each name.
    pub(crate) fn new(names: &[&str]) -> Self {
        let tokens = Tokens { dir: tempfile::tempdir().expect("a folder") };
        for name in names {
            std::fs::create_dir(tokens.dir.path().join(name)).expect("a token's folder");
            let conf = format!(
                "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
                tokens.dir.path().join(name).display()
            );
            std::fs::write(tokens.softhsm_conf(name), conf).expect("softhsm2.conf");
            let made = Command::new("softhsm2-util")
                .env("SOFTHSM2_CONF", tokens.softhsm_conf(name))
                .args(["--init-token", "--free", "--label", name, "--pin", USER_PIN, "--so-pin", SO_PIN])
                .output()
                .expect("softhsm2-util");
            assert!(made.status.success(), "softhsm2-util: {}", String::from_utf8_lossy(&made.stderr));
        }
        tokens
    }

    /// SoftHSM's configuration for one token.
    pub(crate) fn softhsm_conf(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.conf"))
    }

    /// A `ha.toml` with one group of these tokens.
    pub(crate) fn ha_toml_of(&self, names: &[&str]) -> PathBuf {
        let path = self.dir.path().join("ha.toml");
        let mut text =
            format!("state_dir = {:?}\n\n[[group]]\nlabel = \"group\"\n", self.dir.path().join("state"));
        for name in names {
            text += &format!(
                "\n[[group.member]]\nmodule = {SOFTHSM:?}\ntoken = {name:?}\ninstance = \"private\"\nenv = {{ SOFTHSM2_CONF = {:?} }}\n",
                self.softhsm_conf(name)
            );
        }
        write_private(&path, &text);
        path
    }
}

/// Configurations that others may write are refused, whatever the umask here.
fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).expect("ha.toml");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("its mode");
}
