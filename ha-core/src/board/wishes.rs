//! What operators want of members: that one is drained, or tried at once. A file of the board, replaced whole by each
//! wish, so that it outlives every process and is read without a lock.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use ha_member::open_plain;

use super::text;
use crate::replica::ledger::HostLock;

/// What an operator wants of a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// It is not to be used, until `Resume`.
    Drain,
    /// It may be used again.
    Resume,
    /// One that is not up is to be tried at once.
    Recover,
}

/// The last wish about a member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wish {
    /// The member's name.
    pub member: String,
    /// Raised with each wish about any member, so that no number means two wishes.
    pub number: u64,
    /// Whether the member is drained.
    pub drained: bool,
    /// Whether the last wish was that it is tried at once.
    pub recover: bool,
}

/// The wishes in a file, by member. None where there is no file.
///
/// # Errors
/// It cannot be read, or is damaged.
pub(super) fn read(path: &Path) -> Result<Vec<Wish>, Error> {
    let file = match open_plain(OpenOptions::new().read(true), path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    file.take(text::LONGEST as u64).read_to_end(&mut bytes)?;
    let damaged = || {
        let path = path.display();
        Error::new(
            ErrorKind::InvalidData,
            format!("{path} is damaged, or of another version of this program"),
        )
    };
    let body = text::body(&bytes).ok_or_else(damaged)?;
    let wish = |line: &str| {
        let fields = text::fields(line);
        let [member, number, drained, recover] = fields.as_slice() else { return None };
        let (member, number) = (member.clone(), number.parse().ok()?);
        Some(Wish { member, number, drained: text::is(drained)?, recover: text::is(recover)? })
    };
    body.split_terminator('\n').map(|line| wish(line).ok_or_else(damaged)).collect()
}

/// The right to write wishes: one operator's of the host at a time. What is read while it is held is so until it is let go.
pub struct Turn(#[expect(dead_code, reason = "held")] HostLock);

/// Takes the right to write wishes into the file of this path.
///
/// # Errors
/// `WouldBlock` while another operator has it; what the operating system says.
pub(super) fn turn(path: &Path, mode: u32) -> Result<Turn, Error> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(mode);
    let lock = open_plain(&mut options, &path.with_extension("wishes-lock"))?;
    HostLock::take(lock, File::try_lock).map(Turn).map_err(|(_, error)| match error {
        TryLockError::WouldBlock => {
            Error::new(ErrorKind::WouldBlock, "another operator's command is at it, or was stopped in it")
        }
        TryLockError::Error(error) => error,
    })
}

/// Writes a wish down, durably; answers its number. `now` is the wall clock's time.
///
/// # Errors
/// The files cannot be read or written.
pub(super) fn write(
    path: &Path,
    mode: u32,
    _turn: &Turn,
    (member, what): (&str, What),
    now: Duration,
) -> Result<u64, Error> {
    let mut wishes = read(path)?;
    // Not from one on: where the file was removed, processes that run would take a new wish for one that they have heeded.
    let last = wishes.iter().map(|w| w.number).max().unwrap_or(0);
    let number = last.saturating_add(1).max(now.as_micros() as u64);
    let before = wishes.iter().position(|w| w.member == member).map(|at| wishes.swap_remove(at));
    let drained = match what {
        What::Drain => true,
        What::Resume => false,
        What::Recover => before.is_some_and(|w| w.drained),
    };
    wishes.push(Wish { member: member.to_owned(), number, drained, recover: what == What::Recover });
    wishes.sort_by(|a, b| a.member.cmp(&b.member));
    let mut body = String::new();
    for wish in &wishes {
        let fields =
            [&wish.member, &wish.number.to_string(), text::word(wish.drained), text::word(wish.recover)];
        text::line(&mut body, &fields);
    }
    let new = path.with_extension("wishes-new");
    _ = std::fs::remove_file(&new);
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&new)?;
    file.write_all(&text::file(&body))?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    // The name is durable with its folder. It holds already, so that it is no error where that cannot be had.
    let folder = path.parent().unwrap_or(Path::new("."));
    if let Err(error) = File::open(folder).and_then(|f| f.sync_all()) {
        tracing::warn!(path = %folder.display(), %error, "what operators want of members may not outlive the host's end");
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_wish_about_a_member_holds_and_numbers_are_never_used_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.wishes");
        assert_eq!(read(&path).unwrap(), []);
        let steps =
            [("a", What::Drain), ("b\t\n", What::Drain), ("a", What::Recover), ("b\t\n", What::Resume)];
        let turn = turn(&path, 0o600).unwrap();
        let numbers = steps.map(|wish| write(&path, 0o600, &turn, wish, Duration::ZERO).unwrap());
        assert_eq!(numbers, [1, 2, 3, 4]);
        let wish =
            |member: &str, number, drained, recover| Wish { member: member.into(), number, drained, recover };
        assert_eq!(read(&path).unwrap(), [wish("a", 3, true, true), wish("b\t\n", 4, false, false)]);
    }

    #[test]
    fn where_the_file_was_removed_no_number_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.wishes");
        let turn = turn(&path, 0o600).unwrap();
        let drain = |now| write(&path, 0o600, &turn, ("a", What::Drain), Duration::from_secs(now)).unwrap();
        let (one, two, three) = (drain(7), drain(7), drain(5));
        assert!(one < two && two < three, "also when the clock stands, or is set back");
        std::fs::remove_file(&path).unwrap();
        assert!(three < drain(8));
    }

    #[test]
    fn one_operator_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.wishes");
        let one = turn(&path, 0o600).unwrap();
        assert_eq!(turn(&path, 0o600).err().map(|e| e.kind()), Some(ErrorKind::WouldBlock));
        drop(one);
        assert!(turn(&path, 0o600).is_ok());
    }

    #[test]
    fn what_is_no_file_or_far_too_long_is_not_waited_for_nor_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.wishes");
        let pipe = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(pipe.success() && read(&path).is_err());
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(read(&path).is_err());
        std::fs::remove_file(&path).unwrap();
        // A hole of a terabyte costs nothing on the disk.
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn what_is_damaged_is_told_and_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.wishes");
        std::fs::write(&path, "garbage").unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), ErrorKind::InvalidData);
        let turn = turn(&path, 0o600).unwrap();
        let written = write(&path, 0o600, &turn, ("a", What::Drain), Duration::ZERO);
        assert_eq!(written.unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(std::fs::read(&path).unwrap(), b"garbage");
    }
}
