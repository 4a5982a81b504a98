//! The throw-away group: tokens in a temporary folder, each behind a server that can be broken.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Error, ErrorKind, Result};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ha_core::config::Config;
use ha_core::provider::connector;
use ha_rig::{PIN, Signal, Tokens, folder_in_memory};
use ha_token::{Connector as _, Rv, Token, UserType, ck};
use tempfile::TempDir;

use crate::plan::{FULL, How};
use crate::seam::Seam;

/// How long a slow member is stopped at a time, at most, and which part of that it works in between.
const HALT: Duration = Duration::from_millis(50);
const WORKS: u32 = 5;

/// How long a slow member is stopped at a time: a part of what calls wait for it.
pub(crate) fn halt(deadline: Option<Duration>) -> Duration {
    deadline.map_or(HALT, |d| HALT.min(d / 5))
}

/// How often a folder is removed that is there again.
const REMOVALS: usize = 20;

/// The tokens and their servers. All methods may be called from any thread; after [`Rig::remove`] there is nothing any more,
/// and nothing is made. Nothing that may take long is done under a lock: [`Rig::remove`] is done at once.
#[derive(Default)]
pub struct Rig {
    tokens: Mutex<There>,
    /// What makes members slow.
    slow: Mutex<BTreeMap<usize, Limping>>,
    /// What makes members' signatures wrong.
    seams: Mutex<Vec<Seam>>,
    /// Held while everything is removed: who wants that too, and then ends the process, waits for it.
    removing: Mutex<()>,
}

/// The PIN that a token has while it is under another one.
const OTHER_PIN: &str = "2718281828";

/// A thread that makes a member slow until it is asked to end.
struct Limping {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
enum There {
    #[default]
    NotYet,
    /// Being made in this folder.
    Begun(PathBuf),
    Made(Arc<Tokens>),
    Removed,
}

impl Rig {
    fn lock(&self) -> MutexGuard<'_, There> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, f: impl FnOnce(&Arc<Tokens>) -> Result<T>) -> Result<T> {
        let tokens = match &*self.lock() {
            There::Made(tokens) => Arc::clone(tokens),
            _ => return Err(gone()),
        };
        f(&tokens)
    }

    /// Makes so many tokens in a new folder with so much room, in bytes, served by nobody yet.
    ///
    /// # Errors
    /// What is missing, in words that say what to install; they were made before, or removed meanwhile.
    pub fn make(&self, count: usize, room: u64) -> Result<()> {
        let dir = {
            let mut there = self.lock();
            let There::NotYet = *there else { return Err(gone()) };
            let dir = folder(std::env::var_os("TMPDIR"), room)?;
            *there = There::Begun(dir.path().to_owned());
            dir
        };
        let tokens = Tokens::try_in(dir, count)?;
        let mut there = self.lock();
        if let There::Removed = *there {
            return Err(gone());
        }
        *there = There::Made(Arc::new(tokens));
        Ok(())
    }

    /// The group's configuration, with these lines in it: over the servers, or over the tokens directly.
    ///
    /// # Errors
    /// There are no tokens.
    pub fn config(&self, served: bool, lines: &str) -> Result<String> {
        self.with(|tokens| Ok(tokens.config_of(served, lines)))
    }

    /// What stands between the group and each of so many members.
    pub(crate) fn seams(&self, count: usize) -> Vec<Seam> {
        let mut seams = self.seams.lock().unwrap_or_else(PoisonError::into_inner);
        *seams = (0..count).map(|_| Seam::default()).collect();
        seams.clone()
    }

    fn seam(&self, member: usize) -> Result<Seam> {
        let seams = self.seams.lock().unwrap_or_else(PoisonError::into_inner);
        seams.get(member).cloned().ok_or_else(gone)
    }

    /// Changes a token's PIN behind everybody's back, and has it served by a server that knows of it.
    fn change_pin(tokens: &Tokens, member: usize, from: &str, to: &str) -> Result<()> {
        tokens.kill(member);
        let config = Config::parse(&tokens.config_of(false, "deadline = \"off\"")).map_err(Error::other)?;
        let direct = config.groups.first().and_then(|group| group.members.get(member));
        let direct = connector(direct.ok_or_else(gone)?);
        let changed = direct.connect().map_err(Error::other).and_then(|token| {
            set_pin(&*token, from, to).map_err(|rv| Error::other(format!("its PIN cannot be changed: {rv}")))
        });
        direct.disconnect();
        changed?;
        tokens.try_serve(member)
    }

    /// Starts the server of a token.
    ///
    /// # Errors
    /// It cannot be started; there are no tokens.
    pub fn serve(&self, member: usize) -> Result<()> {
        self.with(|tokens| tokens.try_serve(member))
    }

    /// Breaks a member. One that is slow keeps calls that wait so long waiting for a part of that.
    ///
    /// # Errors
    /// What the system says; there are no tokens.
    pub fn break_down(&self, member: usize, how: How, deadline: Option<Duration>) -> Result<()> {
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
            How::Full => tokens.limit_files(member, Some(FULL)),
            How::Lying => {
                self.seam(member)?.break_down(how, Duration::ZERO);
                Ok(())
            }
            How::Locked => Self::change_pin(tokens, member, PIN, OTHER_PIN),
            How::Slow => {
                let halt = halt(deadline);
                let ends = Arc::new(AtomicBool::new(false));
                let (tokens, asked) = (Arc::clone(tokens), Arc::clone(&ends));
                let limp = move || limp(&tokens, member, halt, &asked);
                let thread = std::thread::Builder::new().name("drill-slow".into()).spawn(limp)?;
                let mut slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner);
                slow.insert(member, Limping { ends, thread });
                Ok(())
            }
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
            How::Full => tokens.limit_files(member, None),
            How::Lying => {
                self.seam(member)?.mend();
                Ok(())
            }
            How::Locked => Self::change_pin(tokens, member, OTHER_PIN, PIN),
            How::Slow => {
                let slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner).remove(&member);
                if let Some(Limping { ends, thread }) = slow {
                    ends.store(true, Ordering::Relaxed);
                    // It goes on at the end of its turn.
                    _ = thread.join();
                }
                Ok(())
            }
        })
    }

    /// Kills every server, also one that is just being started, and removes the folder; answers its path if it is still
    /// there.
    pub fn remove(&self) -> Option<PathBuf> {
        let _one = self.removing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *self.lock(), There::Removed);
        let path = match before {
            There::NotYet | There::Removed => return None,
            There::Begun(path) => path,
            There::Made(tokens) => {
                tokens.end();
                tokens.path().to_owned()
            }
        };
        // Who still works with the ledger, or makes tokens, may have made a file while the others were removed.
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

/// A new folder: in memory, but where another place for such was asked for, or there is no room. On a disk that others use
/// SoftHSM was seen to wait for seconds to write an object anew: calls then miss their deadlines on members that nobody
/// broke, and while the other one cannot write nothing is left to serve.
fn folder(asked: Option<OsString>, room: u64) -> Result<TempDir> {
    const PREFIX: &str = "hactl-drill-";
    let in_memory = if asked.is_none() { folder_in_memory(PREFIX, room) } else { None };
    match in_memory {
        Some(dir) => Ok(dir),
        None => tempfile::Builder::new().prefix(PREFIX).tempdir(),
    }
}

/// # Errors
/// The token's answer; `CKR_PIN_LOCKED` where so many wrong ones were sent that one more would lock it.
fn set_pin(token: &dyn Token, from: &str, to: &str) -> ha_token::Result<()> {
    if token.token_info()?.flags & (ck::CKF_USER_PIN_FINAL_TRY | ck::CKF_USER_PIN_LOCKED) != 0 {
        return Err(Rv::PIN_LOCKED);
    }
    let session = token.open_session(true)?;
    token.login(session, UserType::User, Some(from.as_bytes()))?;
    token.set_pin(session, Some(from.as_bytes()), Some(to.as_bytes()))?;
    token.close_session(session)
}

/// Stops a member's server again and again, until it is asked to end or the server is gone.
fn limp(tokens: &Tokens, member: usize, halt: Duration, ends: &AtomicBool) {
    while !ends.load(Ordering::Relaxed) && tokens.signal(member, Signal::STOP) {
        std::thread::sleep(halt);
        tokens.signal(member, Signal::CONT);
        std::thread::sleep(halt / WORKS);
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::NotFound, "the tokens are gone")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tokens_are_in_memory_unless_another_place_was_asked_for_or_there_is_no_room() {
        let is_in_memory = |asked: Option<&str>, room| {
            let folder = folder(asked.map(OsString::from), room).unwrap();
            folder.path().starts_with("/dev/shm")
        };
        let can_be = folder_in_memory("probe-", 1).is_some();
        assert_eq!(is_in_memory(None, 1), can_be);
        // Where that itself is in memory it cannot be told.
        if !std::env::temp_dir().starts_with("/dev/shm") {
            assert!(!is_in_memory(None, u64::MAX));
            assert!(!is_in_memory(Some("said"), 1));
        }
    }
}
