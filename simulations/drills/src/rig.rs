//! The throw-away group: tokens in a temporary folder, each behind a server that can be broken.

use std::io::{Error, ErrorKind, Result};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ha_rig::Tokens;

use crate::plan::How;

/// How often a folder is removed that is there again.
const REMOVALS: usize = 20;

/// The tokens and their servers. All methods may be called from any thread; after [`Rig::remove`] there is nothing any more,
/// and nothing is made.
#[derive(Default)]
pub struct Rig {
    tokens: Mutex<There>,
}

#[derive(Default)]
enum There {
    #[default]
    NotYet,
    Made(Tokens),
    Removed,
}

impl Rig {
    fn lock(&self) -> MutexGuard<'_, There> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, f: impl FnOnce(&Tokens) -> Result<T>) -> Result<T> {
        match &*self.lock() {
            There::Made(tokens) => f(tokens),
            There::NotYet | There::Removed => Err(Error::new(ErrorKind::NotFound, "the tokens are gone")),
        }
    }

    /// Makes so many tokens in a new folder, served by nobody yet.
    ///
    /// # Errors
    /// What is missing, in words that say what to install.
    pub fn make(&self, count: usize) -> Result<()> {
        let mut there = self.lock();
        if let There::NotYet = *there {
            let dir = tempfile::Builder::new().prefix("hactl-drill-").tempdir()?;
            *there = There::Made(Tokens::try_in(dir, count)?);
        }
        Ok(())
    }

    /// The group's configuration, with these lines in it: over the servers, or over the tokens directly.
    ///
    /// # Errors
    /// There are no tokens.
    pub fn config(&self, served: bool, lines: &str) -> Result<String> {
        self.with(|tokens| Ok(tokens.config_of(served, lines)))
    }

    /// Starts the server of a token.
    ///
    /// # Errors
    /// It cannot be started; there are no tokens.
    pub fn serve(&self, member: usize) -> Result<()> {
        self.with(|tokens| tokens.try_serve(member))
    }

    /// Breaks a member.
    ///
    /// # Errors
    /// What the system says; there are no tokens.
    pub fn break_down(&self, member: usize, how: How) -> Result<()> {
        self.with(|tokens| match how {
            How::Killed => {
                tokens.kill(member);
                Ok(())
            }
            How::Hung => {
                tokens.freeze(member);
                Ok(())
            }
            How::Lost => tokens.try_hide(member),
        })
    }

    /// Mends a member that was broken so.
    ///
    /// # Errors
    /// What the system says; there are no tokens.
    pub fn mend(&self, member: usize, how: How) -> Result<()> {
        self.with(|tokens| match how {
            How::Killed => tokens.try_serve(member),
            How::Hung => {
                tokens.thaw(member);
                Ok(())
            }
            How::Lost => tokens.try_restore(member),
        })
    }

    /// Kills every server and removes the folder; answers its path if it is still there.
    pub fn remove(&self) -> Option<PathBuf> {
        let mut there = self.lock();
        let There::Made(tokens) = std::mem::replace(&mut *there, There::Removed) else { return None };
        let path = tokens.path().to_owned();
        drop(tokens);
        // Who still works with the ledger may have made a file while the others were removed.
        for _ in 0..REMOVALS {
            if !path.exists() {
                return None;
            }
            _ = std::fs::remove_dir_all(&path);
            std::thread::sleep(Duration::from_millis(10));
        }
        path.exists().then_some(path)
    }
}
