//! Where the state is kept: in this process, or in a file that all processes of one token share.
//!
//! A server makes a process for each of its clients, a program is run again and again: to all of them it is one token,
//! whose faults are counted together and last until they are cleared. So with a control socket the state is in a file
//! beside it, which each call locks, reads and, where something changed, writes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::state::State;

/// The state, wherever it is.
#[derive(Debug)]
pub struct Kept {
    /// What it begins with.
    script: State,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Here(Mutex<State>),
    /// With what was last seen in it: read again only where it has changed.
    File(PathBuf, Mutex<Option<Seen>>),
}

/// The file's text and what it says.
#[derive(Debug)]
struct Seen(String, State);

impl Kept {
    /// In this process, or beside the socket.
    pub fn new(script: State, socket: Option<&Path>) -> Kept {
        let place = match socket {
            None => Place::Here(Mutex::new(script.clone())),
            Some(socket) => Place::File(beside(socket, "state"), Mutex::default()),
        };
        Kept { script, place }
    }

    /// The state as it was in the beginning.
    pub fn script(&self) -> &State {
        &self.script
    }

    /// Has `f` look at the state and change it, alone.
    ///
    /// # Errors
    /// The file cannot be opened, read or written.
    pub fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> io::Result<T> {
        match &self.place {
            Place::Here(state) => Ok(f(&mut state.lock().unwrap_or_else(PoisonError::into_inner))),
            Place::File(path, seen) => in_file(path, Some(&self.script), seen, f),
        }
    }
}

/// Has `f` change the state beside a socket that no process listens to.
///
/// # Errors
/// There is none, or it cannot be read or written.
pub fn change(socket: &Path, f: impl FnOnce(&mut State) -> String) -> io::Result<String> {
    in_file(&beside(socket, "state"), None, &Mutex::default(), f)
}

/// A file beside the socket.
pub(crate) fn beside(socket: &Path, what: &str) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".");
    name.push(what);
    name.into()
}

/// Opens a file beside the socket that is this user's own.
pub(crate) fn open_own(path: &Path, create: bool) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)?;
    let owner = file.metadata()?.uid();
    if owner != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!("{} belongs to user {owner}", path.display())));
    }
    Ok(file)
}

/// A file that is locked, until this is dropped: by a word of its own, as a child that was forked meanwhile has the same open
/// file, and would keep the lock for as long as it lives.
struct Locked(File);

impl Locked {
    fn new(file: File) -> io::Result<Locked> {
        while let Err(error) = flock(&file, FlockOperation::LockExclusive) {
            if error != rustix::io::Errno::INTR {
                return Err(error.into());
            }
        }
        Ok(Locked(file))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Where it fails the end of the file does it, but for such a child.
        _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Opened anew each time: a lock belongs to an open file, and threads are to wait for each other, too.
fn in_file<T>(
    path: &Path,
    script: Option<&State>,
    seen: &Mutex<Option<Seen>>,
    f: impl FnOnce(&mut State) -> T,
) -> io::Result<T> {
    let locked = Locked::new(open_own(path, script.is_some())?)?;
    let mut file = &locked.0;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let stored = match seen.take() {
        Some(Seen(before, state)) if before == text => Some(state),
        _ => State::read(&text),
    };
    let before = match (stored, script) {
        (Some(stored), Some(script)) if stored.began_as(script) => stored,
        (Some(stored), None) => stored,
        // Nothing yet, or what another script began.
        (_, Some(script)) => {
            text.clear();
            script.clone()
        }
        (None, None) => return Err(io::Error::other(format!("{} is not to be understood", path.display()))),
    };
    let mut state = before.clone();
    let answer = f(&mut state);
    if state != before || text.is_empty() {
        text = state.write();
        file.rewind()?;
        // In one piece, and with an end of its own: who is killed here leaves no half of it.
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)?;
    }
    *seen = Some(Seen(text, state));
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::Rule;

    #[test]
    fn a_file_is_one_state_for_all_and_another_script_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let script = |seed| State::new(&[Rule::parse("C_Sign hang").unwrap()], seed);
        assert!(change(&socket, |_| String::new()).is_err(), "nobody was there yet");
        let (one, two) = (Kept::new(script(1), Some(&socket)), Kept::new(script(1), Some(&socket)));
        one.with(|state| state.clear(None)).unwrap();
        assert_eq!(two.with(|state| state.rules().len()).unwrap(), 0);
        two.with(|state| state.release()).unwrap();
        assert_eq!(one.with(|state| state.released()).unwrap(), 1);
        assert_eq!(change(&socket, |state| state.released().to_string()).unwrap(), "1");
        let other = Kept::new(script(2), Some(&socket));
        assert_eq!(other.with(|state| (state.rules().len(), state.released())).unwrap(), (1, 0));
        let mode = std::fs::metadata(beside(&socket, "state")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn without_a_socket_each_is_alone() {
        let (one, two) = (Kept::new(State::new(&[], 1), None), Kept::new(State::new(&[], 1), None));
        one.with(|state| state.release()).unwrap();
        assert_eq!(two.with(|state| state.released()).unwrap(), 0);
    }

    #[test]
    fn a_link_to_elsewhere_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, target) = (dir.path().join("s"), dir.path().join("precious"));
        std::fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, beside(&socket, "state")).unwrap();
        let kept = Kept::new(State::new(&[], 1), Some(&socket));
        assert!(kept.with(|_| ()).is_err());
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
    }

    #[test]
    fn a_child_that_was_forked_in_the_middle_keeps_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::new(State::new(&[], 1), Some(&dir.path().join("s")));
        let path = beside(&dir.path().join("s"), "state");
        // What such a child has: the same open file.
        let same = kept.with(|_| {
            let mut open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            let own = open.find(|fd| std::fs::read_link(fd.path()).is_ok_and(|file| file == path)).unwrap();
            let number: i32 = own.file_name().to_str().unwrap().parse().unwrap();
            // SAFETY: the state's file, which is open as long as this is looked at.
            let own = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
            rustix::io::dup(own).unwrap()
        });
        let again = File::open(&path).unwrap();
        assert_eq!(flock(&again, FlockOperation::NonBlockingLockExclusive), Ok(()));
        drop(same);
    }

    #[test]
    fn many_at_once_lose_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::new(State::new(&[], 1), Some(&dir.path().join("s")));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| kept.with(|state| state.release()).unwrap()));
            }
        });
        assert_eq!(kept.with(|state| state.released()).unwrap(), 200);
    }
}
