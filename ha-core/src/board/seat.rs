//! A process's file on the board: who it is, and how it sees each member.
//!
//! The file is its process's alone, which holds a lock on it (`flock`) for as long as it lives: a lock goes with the
//! process, however that ends, and is seen from other containers, whose process numbers say nothing here. Who reads takes
//! no more than a shared one, for a moment: had, the process is dead, and its file is removed. A forked child keeps its
//! parent's lock; so, where numbers can be compared, a process that is gone is gone whatever is locked. One whose file cannot be
//! read is there all the same: who counts on every process having done something must not take it for none.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use ha_member::open_plain;

use super::text;
use crate::policy::health::State;
use crate::policy::shared::Sight;
use crate::replica::ledger::{HostLock, is_file_of, namespace};

/// The file's extension.
pub(super) const EXTENSION: &str = "seat";
/// Names that are tried until one is free: those of seats of one process.
const MOST_SEATS: usize = 1000;
/// How often a file that is being written is read again.
const TRIES: usize = 3;

/// A process that uses the group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    /// Its number, in its own container.
    pub pid: u32,
    /// The file name of its program.
    pub program: String,
    /// When it began to use the group, since the Unix epoch.
    pub since: Duration,
    /// The name of its file, which no other one has.
    pub seat: String,
    /// The digest of the configuration by which it goes; `None` where it has none in a file, or says nothing.
    pub configuration: Option<String>,
    /// How it sees the members; empty where it has not said so yet, or its file cannot be read.
    pub members: Vec<Seen>,
}

/// What a process says of itself on the board.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sights {
    /// The digest of the configuration by which it goes.
    pub configuration: Option<String>,
    /// How it sees the members.
    pub members: Vec<Seen>,
}

/// How a process sees a member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The member's name.
    pub name: String,
    /// What its health is, and when it was and will be tried.
    pub sight: Sight,
    /// The last fault or why it cannot be connected, in words.
    pub fault: Option<String>,
    /// How long its last probe took.
    pub round_trip: Option<Duration>,
    /// The number of the last wish about it that was taken in.
    pub heeded: u64,
    /// Whether it is out of use, refused the user's PIN, and is not sent that again.
    pub refused: bool,
}

/// What tells a process from others, and from one that has its number later.
struct Identity {
    namespace: u64,
    start: u64,
}

/// The file of this process's use of a group; removed when dropped.
pub(super) struct Seat {
    lock: HostLock,
    path: PathBuf,
    /// Its first line, which does not change.
    header: String,
    /// What was last written, round trips left out.
    written: String,
    written_at: Duration,
}

impl Seat {
    /// Takes a seat: `base` is the path of the group's files without their extensions.
    ///
    /// # Errors
    /// No file can be made there.
    pub(super) fn take(base: &Path, mode: u32, since: Duration) -> Result<Seat, Error> {
        let pid = std::process::id();
        let namespace = namespace();
        for number in 0..MOST_SEATS {
            let path = beside(base, &format!("{namespace}-{pid}-{number}.{EXTENSION}"));
            let file = match OpenOptions::new().create_new(true).read(true).write(true).mode(mode).open(&path)
            {
                Ok(file) => file,
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            };
            // Until it is locked somebody may have taken it for a dead process's.
            let lock = match HostLock::take(file, File::try_lock) {
                Ok(lock) if is_file_of(lock.file(), &path) => lock,
                Ok(_) | Err((_, TryLockError::WouldBlock)) => continue,
                Err((_, TryLockError::Error(e))) => {
                    _ = std::fs::remove_file(&path);
                    return Err(e);
                }
            };
            let mut header = String::new();
            let start = start_of(pid).unwrap_or(0);
            let numbers =
                [pid.to_string(), namespace.to_string(), start.to_string(), since.as_secs().to_string()];
            let [pid, namespace, start, since] = numbers.each_ref().map(String::as_str);
            text::line(&mut header, &["process", pid, namespace, start, since, &program()]);
            return Ok(Seat { lock, path, header, written: String::new(), written_at: Duration::ZERO });
        }
        Err(Error::other("this process has too many seats"))
    }

    pub(super) fn is_ours(&self) -> bool {
        self.lock.is_ours()
    }

    /// The name of its file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its file is where others look: it may have been removed.
    pub(super) fn is_there(&self) -> bool {
        is_file_of(self.lock.file(), &self.path)
    }

    /// Goes on with the file opened anew.
    #[cfg(test)]
    pub(super) fn open_again(&mut self, may_write: bool) {
        let file = OpenOptions::new().read(true).write(may_write).open(&self.path).unwrap();
        self.lock = HostLock::take(file, |_| Ok(())).ok().unwrap();
    }

    /// Writes how the process sees the members: when that has changed, and round trips now and then. Answers whether
    /// something was written that matters to others.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn write(
        &mut self,
        sights: &Sights,
        now: Duration,
        now_and_then: Duration,
    ) -> Result<bool, Error> {
        let matters = rows(sights, false);
        let has_changed = matters != self.written;
        if !has_changed && now < self.written_at + now_and_then {
            return Ok(false);
        }
        let bytes = text::file(&format!("{}{}", self.header, rows(sights, true)));
        self.lock.file().write_all_at(&bytes, 0)?;
        (self.written, self.written_at) = (matters, now);
        Ok(has_changed)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // A forked child has its parent's; and where this one's was removed another one may have its name.
        if self.is_ours() && self.is_there() {
            _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The processes that have a seat, but for that of `mine`; the files of those that are gone are removed if `sweep`.
pub(super) fn read_all(base: &Path, mine: Option<&Path>, sweep: bool) -> Vec<Process> {
    let (Some(folder), Some(name)) = (base.parent(), base.file_name()) else { return Vec::new() };
    let prefix = format!("{}.", name.to_string_lossy());
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut processes = Vec::new();
    for entry in entries.flatten() {
        let (file_name, path) = (entry.file_name(), entry.path());
        let is_seat = file_name
            .to_str()
            .is_some_and(|n| n.starts_with(&prefix) && n.ends_with(&format!(".{EXTENSION}")));
        if !is_seat || mine == Some(path.as_path()) {
            continue;
        }
        let Ok(file) = open_plain(OpenOptions::new().read(true), &path) else { continue };
        let read = read(&file, &file_name);
        let life = life(&file, read.as_ref().map(|(process, identity)| (process.pid, identity)));
        match life {
            Life::Lives => {
                processes.push(read.map_or_else(|| unknown(&file, &file_name), |(process, _)| process))
            }
            Life::Over | Life::OverButLocked if sweep => remove(&file, &path, life),
            Life::Over | Life::OverButLocked => {}
        }
    }
    processes.sort_by_key(|p| (p.since, p.pid));
    processes
}

/// What has become of the process of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Lives,
    Over,
    /// A child of it has its lock.
    OverButLocked,
}

fn life(file: &File, of: Option<(u32, &Identity)>) -> Life {
    match file.try_lock_shared() {
        Ok(()) => {
            _ = file.unlock();
            return Life::Over;
        }
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(_)) => return Life::Lives,
    }
    // Processes of other users may be hidden from this one.
    let is_same_user = file.metadata().is_ok_and(|m| m.uid() == rustix::process::geteuid().as_raw());
    match of {
        Some((pid, identity))
            if is_same_user
                && identity.namespace == namespace()
                && identity.start != 0
                && start_of(pid) != Some(identity.start)
                && start_of(std::process::id()).is_some() =>
        {
            Life::OverButLocked
        }
        _ => Life::Lives,
    }
}

/// Removes the file of a process that is gone; not one that has got its name since it was opened: a process that ends its use
/// of a group and begins it again takes the name that it had.
fn remove(file: &File, path: &Path, life: Life) {
    // Nobody else removes it then, and who has made it and not locked it yet goes on to another name.
    let is_alone = file.try_lock().is_ok();
    if (is_alone || life == Life::OverButLocked)
        && is_file_of(file, path)
        && std::fs::remove_file(path).is_ok()
    {
        tracing::debug!(path = %path.display(), "a process had ended without leaving the group's board");
    }
    if is_alone {
        _ = file.unlock();
    }
}

/// A process of which no more is known than the name of its file.
fn unknown(file: &File, name: &OsStr) -> Process {
    let pid = name.to_str().and_then(|n| n.rsplit('-').nth(1)?.parse().ok()).unwrap_or(0);
    let written = file.metadata().and_then(|m| m.modified()).ok();
    let since = written.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let seat = name.to_string_lossy().into_owned();
    let program = "unknown".into();
    Process { pid, program, since, seat, configuration: None, members: Vec::new() }
}

fn read(file: &File, name: &OsStr) -> Option<(Process, Identity)> {
    for _ in 0..TRIES {
        let mut bytes = Vec::new();
        let mut from_start = ReadAt(file, 0).take(text::LONGEST as u64);
        from_start.read_to_end(&mut bytes).ok()?;
        if let Some(body) = text::body(&bytes) {
            return parse(body, name);
        }
    }
    None
}

/// A file from its start, whoever has read from it.
struct ReadAt<'a>(&'a File, u64);

impl Read for ReadAt<'_> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        let n = self.0.read_at(buf, self.1)?;
        self.1 += n as u64;
        Ok(n)
    }
}

fn parse(body: &str, name: &OsStr) -> Option<(Process, Identity)> {
    let mut lines = body.split_terminator('\n').map(text::fields).peekable();
    let first = lines.next()?;
    let [kind, pid, namespace, start, since, program] = first.as_slice() else { return None };
    if kind != "process" {
        return None;
    }
    let identity = Identity { namespace: namespace.parse().ok()?, start: start.parse().ok()? };
    // One of an older version does not say it.
    let configuration = lines.next_if(|fields| fields.first().is_some_and(|kind| kind == CONFIGURATION));
    let configuration = match configuration.as_deref() {
        Some([_, digest]) => Some(digest.clone()).filter(|digest| digest != NONE),
        Some(_) => return None,
        None => None,
    };
    let members = lines.map(|fields| seen(&fields)).collect::<Option<_>>()?;
    let since = Duration::from_secs(since.parse().ok()?);
    let (pid, program, seat) = (pid.parse().ok()?, program.clone(), name.to_string_lossy().into_owned());
    Some((Process { pid, program, since, seat, configuration, members }, identity))
}

/// What stands for a moment, or a configuration, that there is none of.
const NONE: &str = "-";
/// The line that says which configuration a process goes by.
const CONFIGURATION: &str = "configuration";

fn rows(sights: &Sights, with_round_trips: bool) -> String {
    let moment = |t: Option<Duration>| t.map_or(NONE.to_owned(), |t| t.as_micros().to_string());
    let mut out = String::new();
    text::line(&mut out, &[CONFIGURATION, sights.configuration.as_deref().unwrap_or(NONE)]);
    for member in &sights.members {
        let sight = &member.sight;
        let fields = [
            "member".to_owned(),
            member.name.clone(),
            sight.state.to_string(),
            moment(Some(sight.since)),
            moment(sight.tried),
            moment(sight.next),
            moment(sight.trying),
            sight.failures.to_string(),
            moment(member.round_trip.filter(|_| with_round_trips)),
            member.heeded.to_string(),
            text::word(member.refused).to_owned(),
            // Empty: there was none.
            member.fault.clone().unwrap_or_default(),
        ];
        text::line(&mut out, &fields.each_ref().map(String::as_str));
    }
    out
}

fn seen(fields: &[String]) -> Option<Seen> {
    let [kind, name, state, since, tried, next, trying, failures, round_trip, heeded, refused, fault] =
        fields
    else {
        return None;
    };
    let moment = |field: &str| match field {
        NONE => Some(None),
        field => Some(Some(Duration::from_micros(field.parse().ok()?))),
    };
    Some(Seen {
        name: name.clone(),
        sight: Sight {
            state: State::ALL.into_iter().find(|s| s.to_string() == *state && kind == "member")?,
            since: moment(since)??,
            tried: moment(tried)?,
            next: moment(next)?,
            trying: moment(trying)?,
            failures: failures.parse().ok()?,
        },
        fault: Some(fault.clone()).filter(|f| !f.is_empty()),
        round_trip: moment(round_trip)?,
        heeded: heeded.parse().ok()?,
        refused: text::is(refused)?,
    })
}

/// A file of the group.
pub(super) fn beside(base: &Path, ending: &str) -> PathBuf {
    let mut name = base.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

/// When a process was started, in the kernel's own count.
fn start_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn program() -> String {
    let exe = std::env::current_exe().ok();
    let name = exe.as_deref().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "unknown".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sees(state: State) -> Sights {
        let sight = Sight {
            state,
            since: Duration::from_secs(1),
            tried: Some(Duration::from_millis(1500)),
            next: None,
            trying: Some(Duration::from_micros(7)),
            failures: 3,
        };
        let seen = Seen {
            name: "a\tb".into(),
            sight,
            fault: Some("line\nline".into()),
            round_trip: Some(Duration::from_micros(40)),
            heeded: 9,
            refused: true,
        };
        Sights { configuration: Some("digest".into()), members: vec![seen] }
    }

    fn said(process: &Process) -> Sights {
        Sights { configuration: process.configuration.clone(), members: process.members.clone() }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_a_process_writes_others_read_and_nothing_is_left_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("g-1");
        let mut one = Seat::take(&base, 0o600, SECOND).unwrap();
        let mut two = Seat::take(&base, 0o600, SECOND * 2).unwrap();
        assert!(one.write(&sees(State::Down), SECOND, SECOND).unwrap());
        assert!(two.write(&sees(State::Up), SECOND, SECOND).unwrap());
        let others = read_all(&base, Some(one.path()), true);
        assert_eq!(others.len(), 1);
        assert_eq!((others[0].pid, others[0].since), (std::process::id(), SECOND * 2));
        assert_eq!(said(&others[0]), sees(State::Up));
        assert_eq!(read_all(&base, None, true).len(), 2);
        assert!(
            two.write(&sees(State::Drained), SECOND, SECOND).unwrap(),
            "a longer text, then a shorter one"
        );
        assert!(two.write(&sees(State::Up), SECOND, SECOND).unwrap());
        assert_eq!(read_all(&base, Some(one.path()), true).first().map(said), Some(sees(State::Up)));
        drop((one, two));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_process_of_an_older_version_says_nothing_of_its_configuration() {
        let sights = sees(State::Up);
        let text = format!("process\t7\t1\t2\t3\tprogram\n{}", rows(&sights, true));
        let of = |text: &str| parse(text, OsStr::new("seat")).map(|(process, _)| said(&process));
        assert_eq!(of(&text), Some(sights.clone()));
        let older = text.replace("configuration\tdigest\n", "");
        assert_eq!(of(&older), Some(Sights { configuration: None, ..sights }));
        assert_eq!(of(&text.replace("\tdigest", "\tdigest\tmore")), None);
    }

    #[test]
    fn round_trips_are_written_now_and_then_only_and_matter_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("g-1");
        let mut seat = Seat::take(&base, 0o600, SECOND).unwrap();
        let mut members = sees(State::Up);
        assert!(seat.write(&members, SECOND, SECOND).unwrap());
        members.members[0].round_trip = Some(SECOND);
        assert!(!seat.write(&members, SECOND + SECOND / 2, SECOND).unwrap());
        assert_eq!(read_all(&base, None, true).first().map(said), Some(sees(State::Up)));
        assert!(!seat.write(&members, SECOND * 2, SECOND).unwrap());
        assert_eq!(read_all(&base, None, true).first().map(said), Some(members));
    }

    #[test]
    fn the_file_of_a_dead_process_is_removed_and_that_of_one_that_lives_is_not_whatever_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("g-1");
        let seat = Seat::take(&base, 0o600, SECOND).unwrap();
        let dead = beside(&base, "1-1-0.seat");
        std::fs::write(&dead, "whatever").unwrap();
        let there = |sweep| {
            let processes = read_all(&base, None, sweep);
            assert!(processes.iter().all(|p| p.members.is_empty() && p.program == "unknown"));
            processes.iter().map(|p| p.pid).collect::<Vec<_>>()
        };
        let us = [std::process::id()];
        assert_eq!(there(false), us, "it has not said anything yet");
        assert!(dead.exists(), "who only looks removes nothing");
        assert_eq!(there(true), us);
        assert!(!dead.exists() && seat.path().exists());
        seat.lock.file().write_all_at(&[0xff; 300], 0).unwrap();
        assert_eq!(there(true), us);
        assert!(seat.path().exists(), "its process lives");
    }

    /// A process that ends its use of a group and begins it again has the same name; somebody may have looked meanwhile.
    #[test]
    fn who_removes_what_a_dead_process_left_does_not_remove_what_has_its_name_now() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("g-1");
        let before = Seat::take(&base, 0o600, SECOND).unwrap();
        let path = before.path().to_owned();
        let opened = File::open(&path).unwrap();
        drop(before);
        let now = Seat::take(&base, 0o600, SECOND).unwrap();
        assert_eq!(now.path(), path);
        let life = life(&opened, None);
        assert!(life == Life::Over);
        remove(&opened, &path, life);
        assert!(now.is_there());
    }

    #[test]
    fn pipes_and_links_that_look_like_seats_keep_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("g-1");
        let pipe = beside(&base, "1-1-0.seat");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let link = beside(&base, "1-2-0.seat");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).unwrap();
        std::fs::write(dir.path().join("elsewhere"), "").unwrap();
        assert_eq!(read_all(&base, None, true), []);
        assert!(dir.path().join("elsewhere").exists());
    }

    /// A forked child keeps the parent's lock when the parent is killed.
    #[test]
    fn a_process_that_is_gone_is_gone_whoever_has_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("g-1");
        let mut seat = Seat::take(&base, 0o600, SECOND).unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = child.id().to_string();
        child.wait().unwrap();
        seat.header = seat.header.replacen(&format!("\t{}\t", std::process::id()), &format!("\t{gone}\t"), 1);
        seat.write(&sees(State::Up), SECOND, SECOND).unwrap();
        assert_eq!(read_all(&base, None, true), []);
        assert!(!seat.path().exists());
    }
}
