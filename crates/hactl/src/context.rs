//! What every verb needs: the configuration, the PIN, a running group.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ha_core::config::{Config, PinSource};
use ha_core::group::Group;
use ha_core::provider::Provider;
use ha_token::{Rv, UserType};
use zeroize::Zeroizing;

/// The options that every verb takes.
pub(crate) struct Context {
    /// `--config`.
    pub(crate) config: Option<PathBuf>,
    /// `--json`.
    pub(crate) json: bool,
    /// `--pin-file`.
    pub(crate) pin_file: Option<PathBuf>,
}

impl Context {
    /// Reads the configuration.
    ///
    /// # Errors
    /// None found, or one that is not right.
    pub(crate) fn load(&self) -> Result<Config> {
        match &self.config {
            Some(path) => Ok(Config::from_file(path)?),
            None => match Config::load()? {
                Some(config) => Ok(config),
                None => bail!(
                    "no configuration found; name one with --config or $PKCS11_HA_CONF, or make one with `hactl init`"
                ),
            },
        }
    }

    /// The PIN from `--pin-file` or `$PKCS11_HA_PIN`, if one of them was given. Asks nobody.
    ///
    /// # Errors
    /// One was given and cannot be had.
    pub(crate) fn given_pin(&self) -> Result<Option<Zeroizing<Vec<u8>>>> {
        if let Some(path) = &self.pin_file {
            return Ok(Some(PinSource::File(path.clone()).resolve().context("--pin-file")?));
        }
        if std::env::var_os("PKCS11_HA_PIN").is_some() {
            return Ok(Some(PinSource::Env("PKCS11_HA_PIN".into()).resolve()?));
        }
        Ok(None)
    }

    /// The PIN: from `--pin-file`, `$PKCS11_HA_PIN`, or a prompt on a terminal.
    ///
    /// # Errors
    /// None of the three.
    pub(crate) fn pin(&self) -> Result<Zeroizing<Vec<u8>>> {
        if let Some(pin) = self.given_pin()? {
            return Ok(pin);
        }
        if std::io::stdin().is_terminal() {
            let pin =
                rpassword::prompt_password("PIN of the group: ").context("the PIN could not be read")?;
            return Ok(Zeroizing::new(pin.into_bytes()));
        }
        bail!("a PIN is needed: give --pin-file FILE, set PKCS11_HA_PIN, or run this on a terminal")
    }

    /// The PIN of a member's security officer: from the file, `$PKCS11_HA_SO_PIN`, or a prompt on a terminal.
    ///
    /// # Errors
    /// None of the three.
    pub(crate) fn so_pin(&self, file: Option<&Path>, member: &str) -> Result<Zeroizing<Vec<u8>>> {
        if let Some(path) = file {
            return PinSource::File(path.to_owned()).resolve().context("--so-pin-file");
        }
        if std::env::var_os("PKCS11_HA_SO_PIN").is_some() {
            return Ok(PinSource::Env("PKCS11_HA_SO_PIN".into()).resolve()?);
        }
        if std::io::stdin().is_terminal() {
            let pin =
                rpassword::prompt_password(format!("PIN of the security officer of member {member:?}: "))
                    .context("the PIN could not be read")?;
            return Ok(Zeroizing::new(pin.into_bytes()));
        }
        bail!(
            "the PIN of the security officer of member {member:?} is needed, who has to trust the new one: give --so-pin-file FILE, set PKCS11_HA_SO_PIN, or run this on a terminal"
        )
    }

    /// Starts the groups and logs in to each.
    ///
    /// # Errors
    /// The configuration, the PIN, or no member that answers.
    pub(crate) fn running(&self) -> Result<Provider> {
        let config = self.load()?;
        let pin = self.pin()?;
        let provider = Provider::for_operator(config)?;
        for group in provider.groups() {
            // What a verb changes is what it says; a login alone changes nothing.
            group.sync_by_hand();
            log_in(group, &pin)?;
        }
        Ok(provider)
    }
}

/// How long members are waited for when a group is not needed any more.
pub(crate) const GOODBYE: Duration = Duration::from_secs(5);

/// The first group of a provider, to be changed: logged in to, and brought up to date by nobody but the command.
///
/// # Errors
/// Its ledger cannot be written; the login.
pub(crate) fn to_change(provider: &Provider, pin: &[u8]) -> Result<Arc<Group>> {
    let group = provider.groups().first().context("the group did not start")?;
    if !group.may_change() {
        bail!(
            "nothing was changed: this user cannot write the group's ledger, or there is none that is right"
        );
    }
    group.sync_by_hand();
    log_in(group, pin)?;
    Ok(Arc::clone(group))
}

/// An error that is an answer all the same: exit status 1.
#[derive(Debug)]
pub(crate) struct BadNews(pub(crate) String);

impl std::fmt::Display for BadNews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadNews {}

/// Logs in to a group.
///
/// # Errors
/// In words that say what to do.
pub(crate) fn log_in(group: &Group, pin: &[u8]) -> Result<()> {
    if let Err(rv) = group.log_in(UserType::User, pin) {
        let mut why = format!("group {:?}: login answered {rv}", group.config.label);
        for member in group.status().members {
            if let Some(error) = member.connect_error {
                why.push_str(&format!("\n  member {:?}: {error}", member.name));
            }
        }
        if rv == Rv::DEVICE_ERROR {
            return Err(BadNews(why).into());
        }
        bail!(why);
    }
    Ok(())
}
