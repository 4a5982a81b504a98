//! `hactl init`: SoftHSM tokens, a configuration and an enrolled group, in a folder of their own.
//!
//! No PIN is ever on a command line: the tokens are made through their module, in this process.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use ha_core::config::{Config, GroupConfig, Log, MemberConfig};
use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_core::seam::{System, World};
use ha_member::{Instance, ModuleConfig, ModuleConnector};
use ha_token::{Connector, Selector, UserType};
use serde_json::json;
use zeroize::Zeroizing;

use crate::context::Context;
use crate::{Answer, output};

/// Where SoftHSM's packages put its module.
const PLACES: [&str; 5] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];
/// Digits of a PIN that is made here.
const DIGITS: usize = 12;

type Pin = Zeroizing<Vec<u8>>;

/// Makes the folder; what was made is removed again if anything fails.
///
/// # Errors
/// What failed, in words that say what to do.
pub(crate) fn run(context: &Context, count: u8, dir: &Path, label: &str) -> Result<Answer> {
    if label.is_empty() || label.len() > 32 {
        bail!("--label: a token's label has 1 to 32 bytes, and this one has {}", label.len());
    }
    let module = find_module()?;
    let given = context.given_pin()?;
    let folder = Folder::make(dir)?;
    let made = fill(context, &folder.path, &module, count, label, given)?;
    folder.keep();
    made.print(context)?;
    Ok(Answer::Well)
}

/// The folder, removed when dropped unless it is kept.
struct Folder {
    path: PathBuf,
    /// The mode of a folder that was there before.
    before: Option<Permissions>,
    kept: bool,
}

impl Folder {
    fn make(dir: &Path) -> Result<Folder> {
        let words = || format!("--dir {}", dir.display());
        let mut before = None;
        match fs::read_dir(dir) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    bail!("{}: not empty; name a folder that is empty or does not exist", words());
                }
                before = Some(fs::metadata(dir).with_context(words)?.permissions());
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
                    fs::create_dir_all(parent).with_context(words)?;
                }
                DirBuilder::new().mode(0o700).create(dir).with_context(words)?;
            }
            Err(e) => return Err(e).with_context(words),
        }
        let mut folder = Folder { path: dir.to_owned(), before, kept: false };
        fs::set_permissions(dir, Permissions::from_mode(0o700)).with_context(words)?;
        folder.path = dir.canonicalize().with_context(words)?;
        match folder.path.to_str() {
            // SoftHSM's configuration has no way to quote these.
            Some(text) if !text.contains(|c: char| c.is_control() || c == '#') => Ok(folder),
            _ => bail!(
                "{}: SoftHSM's configuration cannot name such a folder (control characters, #, not UTF-8)",
                words()
            ),
        }
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let removed = match &self.before {
            None => fs::remove_dir_all(&self.path),
            Some(mode) => empty(&self.path).and_then(|()| fs::set_permissions(&self.path, mode.clone())),
        };
        if let Err(error) = removed {
            eprintln!("hactl: {} could not be removed again: {error}", self.path.display());
        }
    }
}

fn empty(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?
        } else {
            fs::remove_file(entry.path())?
        }
    }
    Ok(())
}

/// What was made.
struct Made {
    dir: PathBuf,
    config: PathBuf,
    label: String,
    members: Vec<String>,
}

fn fill(
    context: &Context,
    dir: &Path,
    module: &Path,
    count: u8,
    label: &str,
    given: Option<Pin>,
) -> Result<Made> {
    let world = System::new();
    let pin = match given {
        Some(pin) => pin,
        None => digits(&*world)?,
    };
    let so_pin = digits(&*world)?;
    write_private(&dir.join("pin"), &pin)?;
    write_private(&dir.join("so-pin"), &so_pin)?;
    let members: Vec<String> = (0..count).map(letters).collect();
    for name in &members {
        output::progress(context, &format!("making the token member-{name}"));
        make_token(dir, module, name, &so_pin, &pin).with_context(|| format!("member {name:?}"))?;
    }
    let config = dir.join("ha.toml");
    write_private(&config, ha_toml(dir, module, label, &members)?.as_bytes())?;
    output::progress(context, "enrolling the members");
    enrol(&config, &pin, &so_pin)?;
    Ok(Made { dir: dir.to_owned(), config, label: label.to_owned(), members })
}

/// One SoftHSM token in a folder of its own.
fn make_token(dir: &Path, module: &Path, name: &str, so_pin: &[u8], pin: &[u8]) -> Result<()> {
    let tokens = dir.join(format!("member-{name}"));
    DirBuilder::new().mode(0o700).create(&tokens)?;
    let conf = softhsm_conf(dir, name);
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        tokens.display()
    );
    write_private(&conf, text.as_bytes())?;
    let connector = ModuleConnector::new(ModuleConfig {
        path: module.to_owned(),
        instance: Instance::Private,
        env: vec![("SOFTHSM2_CONF".into(), conf.display().to_string())],
        selector: Selector::default(),
    });
    let token = connector.connect_blank()?;
    let made = || -> ha_token::Result<()> {
        token.init_token(Some(so_pin), &format!("member-{name}"))?;
        let session = token.open_session(true)?;
        token.login(session, UserType::So, Some(so_pin))?;
        token.init_pin(session, Some(pin))?;
        token.logout(session)?;
        token.close_session(session)
    };
    let made = made();
    connector.disconnect();
    made.map_err(|rv| match rv {
        ha_token::Rv::PIN_LEN_RANGE => {
            anyhow!("SoftHSM takes PINs of 4 to 255 bytes, and the given one is not ({rv})")
        }
        rv => anyhow!("SoftHSM answered {rv} while the token was made"),
    })
}

/// Starts the group and gives every member the group keys, trusted by the first one's security officer.
fn enrol(config: &Path, pin: &[u8], so_pin: &[u8]) -> Result<()> {
    let provider = Provider::from_config(Config::from_file(config)?)?;
    for group in provider.groups() {
        let status = group.status();
        let away: Vec<String> = status
            .members
            .iter()
            .filter(|m| m.state != State::Up)
            .map(|m| {
                format!(
                    "member {:?} is {}: {}",
                    m.name,
                    m.state,
                    m.connect_error.as_deref().unwrap_or("no reason known")
                )
            })
            .collect();
        if !away.is_empty() {
            bail!("the new group does not come up: {}", away.join("; "));
        }
        group
            .enrol_with_ceremony(pin, so_pin)
            .map_err(|rv| anyhow!("the members could not be enrolled: {rv}"))?;
    }
    let hung = provider.shutdown(Duration::from_secs(5));
    if hung.is_empty() { Ok(()) } else { bail!("members did not end in time: {}", hung.join(", ")) }
}

fn softhsm_conf(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("member-{name}.conf"))
}

fn ha_toml(dir: &Path, module: &Path, label: &str, members: &[String]) -> Result<String> {
    let member = |name: &String| -> Result<MemberConfig> {
        let conf = softhsm_conf(dir, name);
        let conf = conf.to_str().with_context(|| format!("{}: not UTF-8", conf.display()))?;
        Ok(MemberConfig {
            name: name.clone(),
            env: [("SOFTHSM2_CONF".into(), conf.into())].into(),
            ..MemberConfig::new(
                module,
                Selector { label: Some(format!("member-{name}")), ..Selector::default() },
            )
        })
    };
    let config = Config {
        path: None,
        digest: None,
        ha_only: true,
        state_dir: dir.join("state"),
        log: Log::default(),
        groups: vec![GroupConfig::new(label, members.iter().map(member).collect::<Result<_>>()?)],
    };
    let head = "# Made by `hactl init`. A test group: all of its members' keys are files on this disk.";
    Ok(format!("{head}\n{}", config.to_toml()?))
}

fn find_module() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("SOFTHSM2_MODULE").filter(|v| !v.is_empty()) {
        let named = PathBuf::from(named);
        if !named.is_file() {
            bail!("$SOFTHSM2_MODULE: {} is not there", named.display());
        }
        return Ok(named.canonicalize()?);
    }
    PLACES.iter().map(PathBuf::from).find(|p| p.is_file()).with_context(|| {
        "libsofthsm2.so is not there; install SoftHSM (`apt install softhsm2`, `dnf install softhsm`), or name its module in $SOFTHSM2_MODULE"
    })
}

/// The names of members: a, b, … z, aa, ab, …
fn letters(n: u8) -> String {
    let letter = |n: u8| char::from(b'a' + n % 26);
    if n < 26 { letter(n).to_string() } else { format!("{}{}", letter(n / 26 - 1), letter(n)) }
}

/// A PIN of random digits.
fn digits(world: &dyn World) -> Result<Pin> {
    let mut pin = Zeroizing::new(Vec::with_capacity(DIGITS));
    let mut byte = [0u8];
    while pin.len() < DIGITS {
        world.random(&mut byte).context("no random numbers")?;
        // 250 is the largest multiple of ten in a byte: above it digits would not be equally likely.
        if byte[0] < 250 {
            pin.push(b'0' + byte[0] % 10);
        }
    }
    Ok(pin)
}

/// Writes a new file that only its owner can read.
fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let words = || path.display().to_string();
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).with_context(words)?;
    file.write_all(content).with_context(words)
}

impl Made {
    fn print(&self, context: &Context) -> Result<()> {
        let (pin, so_pin) = (self.dir.join("pin"), self.dir.join("so-pin"));
        if context.json {
            return output::json(&json!({
                "schema": 1,
                "dir": self.dir,
                "config": self.config,
                "pin_file": pin,
                "so_pin_file": so_pin,
                "groups": [{"label": self.label, "members": self.members, "enrolment": "ceremony"}],
            }));
        }
        let (config, pin, so_pin) = (word(&self.config), word(&pin), word(&so_pin));
        println!(
            "group {:?} with members {}: tokens made, members enrolled",
            self.label,
            self.members.join(", ")
        );
        println!("  configuration       {config}");
        println!("  user PIN            {pin}");
        println!("  security officer's  {so_pin}");
        println!("\nTry:");
        println!("  export PKCS11_HA_CONF={config}");
        println!("  hactl status --pin-file {pin}");
        println!("  export PIN=$(cat {pin})");
        let module = word(&provider_module());
        println!(
            "  pkcs11-tool --module {module} --login --pin env:PIN --keypairgen --key-type EC:prime256v1 --id 01 --label first"
        );
        println!("  pkcs11-tool --module {module} --login --pin env:PIN --list-objects");
        println!("  hactl check --prove --pin-file {pin}");
        Ok(())
    }
}

/// Our own provider, where it can be found beside this program.
fn provider_module() -> PathBuf {
    const NAME: &str = "libha_module.so";
    let beside = || {
        let exe = std::env::current_exe().ok()?;
        let bin = exe.parent()?;
        [bin.join(NAME), bin.join("../lib").join(NAME), bin.join("../lib/pkcs11").join(NAME)]
            .into_iter()
            .find(|p| p.is_file())
    };
    beside().unwrap_or_else(|| NAME.into())
}

/// A path as a word of a shell's command.
fn word(path: &Path) -> String {
    let text = path.display().to_string();
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c)) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_named_by_letters_without_repeating() {
        assert_eq!([0, 1, 25, 26, 27].map(letters), ["a", "b", "z", "aa", "ab"]);
    }

    #[test]
    fn a_made_pin_is_digits_and_two_differ() {
        let world = System::new();
        let (one, two) = (digits(&*world).unwrap(), digits(&*world).unwrap());
        assert!(one.len() == DIGITS && one.iter().all(u8::is_ascii_digit));
        assert_ne!(one, two);
    }

    #[test]
    fn a_folder_that_is_not_kept_leaves_nothing() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("x y'z");
        let folder = Folder::make(&dir).unwrap();
        fs::write(dir.join("f"), "").unwrap();
        drop(folder);
        assert!(!dir.exists());
        fs::create_dir(&dir).unwrap();
        let folder = Folder::make(&dir).unwrap();
        fs::write(dir.join("f"), "").unwrap();
        drop(folder);
        assert!(dir.exists() && fs::read_dir(&dir).unwrap().next().is_none());
        assert_eq!(word(Path::new("/x y'z")), "'/x y'\\''z'");
    }
}
