//! What every verb needs: the configuration, the PIN, a running group.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use ha_core::config::{Config, PinSource};
use ha_core::group::Group;
use ha_core::provider::Provider;
use ha_token::UserType;
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
                None => bail!("no configuration found; name one with --config or $PKCS11_HA_CONF, or make one with `hactl init`"),
            },
        }
    }

    /// The PIN: from `--pin-file`, `$PKCS11_HA_PIN`, or a prompt on a terminal.
    ///
    /// # Errors
    /// None of the three.
    pub(crate) fn pin(&self) -> Result<Zeroizing<Vec<u8>>> {
        if let Some(path) = &self.pin_file {
            return PinSource::File(path.clone()).resolve().with_context(|| format!("--pin-file {}", path.display()));
        }
        if std::env::var_os("PKCS11_HA_PIN").is_some() {
            return Ok(PinSource::Env("PKCS11_HA_PIN".into()).resolve()?);
        }
        if std::io::stdin().is_terminal() {
            let pin = rpassword::prompt_password("PIN of the group: ").context("the PIN could not be read")?;
            return Ok(Zeroizing::new(pin.into_bytes()));
        }
        bail!("a PIN is needed: give --pin-file FILE, set PKCS11_HA_PIN, or run this on a terminal")
    }

    /// Starts the groups and logs in to each.
    ///
    /// # Errors
    /// The configuration, the PIN, or no member that answers.
    pub(crate) fn running(&self) -> Result<Provider> {
        let config = self.load()?;
        let pin = self.pin()?;
        let provider = Provider::from_config(config)?;
        for group in provider.groups() {
            log_in(group, &pin)?;
        }
        Ok(provider)
    }
}

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
        bail!(why);
    }
    Ok(())
}
