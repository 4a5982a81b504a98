//! The groups' ledgers: opening the one that a configuration names, and what operators do with it beside the group.

use std::path::{Path, PathBuf};
use std::result::Result;
use std::time::Duration;

use ha_token::UserType;

use crate::config::{Config, GroupConfig};
use crate::replica::ledger::{self, Ledger, LedgerError};
use crate::seam::{System, World};

/// Longest that a process of this host is waited for at the ledger.
const LEDGER_WAIT: Duration = Duration::from_secs(10);

/// What the ledger knows of PINs that a member refused is forgotten, by its operator's word: each may be sent once more.
/// Processes that run have a memory of their own, which goes with
/// [`Board::ask_for`](crate::board::Board::ask_for). Without a ledger there is nothing to forget.
///
/// # Errors
/// The ledger cannot be written.
pub fn forget_refused_pins(config: &Config, group: &GroupConfig, member: &str) -> Result<(), LedgerError> {
    if !ledger::place(&config.state_dir, &group.label).is_some_and(|place| place.path.exists()) {
        return Ok(());
    }
    let Some(ledger) = open_ledger(&config.state_dir, group, &*System::new()) else { return Ok(()) };
    ledger.forget_refused(member, &[UserType::So, UserType::User, UserType::ContextSpecific])
}

/// The ledger of a group forgets which token is behind a member, and what it holds: it has left, or is to be another token.
/// What it was yet to destroy is not remembered any more.
///
/// # Errors
/// The ledger cannot be written.
pub fn forget_member(config: &Config, group: &GroupConfig, member: &str) -> Result<(), LedgerError> {
    match open_ledger(&config.state_dir, group, &*System::new()) {
        Some(ledger) => ledger.member_renewed(member),
        None => Err(LedgerError::ReadOnly),
    }
}

/// The ledger of a group that was dissolved is put aside: who starts with the configuration begins anew. Answers where it is.
///
/// # Errors
/// It cannot be written, or another process has it open.
pub fn retire_ledger(config: &Config, group: &GroupConfig) -> Result<PathBuf, LedgerError> {
    match open_ledger(&config.state_dir, group, &*System::new()) {
        Some(ledger) => ledger.retire("dissolved"),
        None => Err(LedgerError::ReadOnly),
    }
}

/// Where a group's ledger is, if it has one.
pub fn ledger_of(config: &Config, group: &GroupConfig) -> Option<PathBuf> {
    ledger::place(&config.state_dir, &group.label).map(|place| place.path).filter(|path| path.exists())
}

/// Writes the ledger of a group as it is now into a new file. Processes may go on using it.
///
/// # Errors
/// There is none, or the file is there already or cannot be made.
pub fn backup_ledger(config: &Config, group: &GroupConfig, to: &Path) -> Result<(), LedgerError> {
    let none = || LedgerError::Place {
        path: config.state_dir.clone(),
        reason: "the group has no ledger there that can be read".into(),
    };
    ledger_of(config, group).ok_or_else(none)?;
    open_ledger(&config.state_dir, group, &*System::new()).ok_or_else(none)?.backup(to)
}

/// The ledger of a group, opened; `None` where there is none, or it cannot be opened, which is logged.
pub fn open_present_ledger(config: &Config, group: &GroupConfig) -> Option<Ledger> {
    ledger_of(config, group)?;
    open_ledger(&config.state_dir, group, &*System::new())
}

/// The ledger that a group has in its configuration's state folder, made where there is none.
///
/// # Errors
/// It cannot be opened for writing, which is logged.
pub fn open_ledger_in(config: &Config, group: &GroupConfig) -> Result<Ledger, LedgerError> {
    let opened = open_ledger(&config.state_dir, group, &*System::new());
    opened.filter(|ledger| !ledger.is_read_only()).ok_or(LedgerError::ReadOnly)
}

/// The ledger that a group has in a folder of its own becomes the group's; the one that it has is put aside: the `present`
/// one, or a file that is none any more. Answers where that is.
///
/// # Errors
/// It cannot be written, or another process has one of them open: the group has the one that it had.
pub fn replace_ledger(
    config: &Config,
    group: &GroupConfig,
    dir: &Path,
    present: Option<Ledger>,
) -> Result<Option<PathBuf>, LedgerError> {
    let new = open_ledger(dir, group, &*System::new()).ok_or(LedgerError::ReadOnly)?;
    if let Some(present) = present {
        return present.give_way_to(new, "replaced").map(Some);
    }
    let put_aside = |path: PathBuf| {
        ledger::put_aside(&path, "replaced").map_err(|e| LedgerError::Place { path, reason: e.to_string() })
    };
    let aside = ledger_of(config, group).map(put_aside).transpose()?;
    new.move_to(&config.state_dir)?;
    Ok(aside)
}

/// Opens a group's ledger. Without one keys can be used and nothing is changed.
pub(super) fn open_ledger(dir: &Path, group: &GroupConfig, world: &dyn World) -> Option<Ledger> {
    let mut failed = false;
    let opened = Ledger::open(dir, &group.label, group.deadline.unwrap_or(LEDGER_WAIT), &mut |bytes| {
        failed |= world.random(bytes).is_err()
    });
    match opened {
        Ok(_) if failed => {
            tracing::error!(group = %group.label, "no random numbers for the ledger: nothing is created, changed or destroyed");
            None
        }
        Ok(ledger) => {
            if ledger.is_beside() {
                tracing::warn!(group = %group.label, dir = %dir.display(), "another copy of this library in this process has the ledger open (the program has it linked in and loads the module too): keys can be used as the ledger was at this moment, nothing is created, changed or destroyed here; use one of the two copies");
            } else if let Some(why) = ledger.why_read_only() {
                tracing::warn!(group = %group.label, dir = %dir.display(), why, "the ledger is another user's or cannot be written: until the next start keys can be used, and nothing is created, changed or destroyed");
            }
            Some(ledger)
        }
        Err(error) => {
            tracing::error!(group = %group.label, dir = %dir.display(), %error, "no ledger: until the next start keys can be used, and nothing is created, changed or destroyed");
            None
        }
    }
}
