//! The notice board: what the processes of a host tell each other of a group's members, in files beside the ledger.
//!
//! | file | what it says | who writes it |
//! | --- | --- | --- |
//! | `….seat` | how one process sees the members | that process, and nobody else |
//! | `….wishes` | what operators want of members | `hactl`, replaced whole |
//! | `….board` | a number, raised with each change of the others; mapped, so that it is read without a call to the kernel | all |
//!
//! Nobody waits for anybody here: no process takes a lock that another one needs, so one that is stopped, or a file that is
//! damaged, holds up nobody. (Operators take turns with each other.) Nothing here is the ledger's: it works where the ledger
//! is read-only or locked. Who cannot write here goes on alone. What stands here says *when* a member is tried, never that
//! one may be used.

mod seat;
mod text;
mod wishes;

use std::io::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ha_member::SharedWord;

pub use seat::{Process, Seen, Sights};
pub use wishes::{Turn, What, Wish};

use crate::replica::ledger;
use seat::Seat;

/// How a process takes part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// It uses the group: others see it.
    User,
    /// It looks, and operates.
    Operator,
}

/// A group's board, as one process has it.
pub struct Board {
    base: PathBuf,
    mode: u32,
    since: Duration,
    /// `None`: nothing may be written here, and what changes is not noticed.
    word: Option<SharedWord>,
    seat: Mutex<Option<Seat>>,
    /// The wishes, and the number under which they were read.
    wishes: Mutex<Vec<Wish>>,
    read_at: AtomicU64,
    /// When this process last said how it sees the members, in microseconds of the host's time.
    shown_at: AtomicU64,
    /// Whether what it had to say then could not be written.
    is_unsaid: AtomicBool,
    /// Whether it was told that the wishes cannot be read; that the seat cannot be written.
    told_unreadable: AtomicBool,
    told_unwritable: AtomicBool,
}

impl Board {
    /// Opens the board of a group in the state folder. `None`: there is no such folder, or one that is not fit to be shared.
    /// What cannot be written is not made; nothing of that is an error. `since` is the wall clock's time.
    pub fn open(dir: &Path, group: &str, part: Part, since: Duration) -> Option<Board> {
        let place = ledger::place(dir, group)?;
        let base = place.path.with_extension("");
        let word = if place.is_ours {
            SharedWord::open(&seat::beside(&base, "board"))
                .inspect_err(|error| {
                    tracing::debug!(group, %error, "nothing is shared with other processes of this host");
                })
                .ok()
        } else {
            None
        };
        let seat = match part {
            Part::User if word.is_some() => Seat::take(&base, place.mode, since)
                .inspect_err(|error| {
                    tracing::debug!(group, %error, "other processes of this host do not see this one");
                })
                .ok(),
            _ => None,
        };
        if part == Part::User && word.is_some() {
            // Nobody else might look for long: a program that ends without a word leaves its file.
            seat::read_all(&base, None, true);
        }
        let board = Board {
            base,
            mode: place.mode,
            since,
            read_at: AtomicU64::new(word.as_ref().map_or(0, SharedWord::get)),
            word,
            shown_at: AtomicU64::new(0),
            is_unsaid: AtomicBool::new(false),
            seat: Mutex::new(seat),
            wishes: Mutex::default(),
            told_unreadable: AtomicBool::new(false),
            told_unwritable: AtomicBool::new(false),
        };
        if !board.read_wishes() {
            board.read_at.store(board.number().wrapping_sub(1), Ordering::Release);
        }
        Some(board)
    }

    /// Whether wishes can be written here.
    pub fn is_writable(&self) -> bool {
        self.word.is_some()
    }

    /// A number that is another one when something has changed.
    pub(crate) fn number(&self) -> u64 {
        self.word.as_ref().map_or(0, SharedWord::get)
    }

    /// The last wish about a member, if there was one.
    pub fn wish(&self, member: &str) -> Option<Wish> {
        let now = self.number();
        // Who is told of a change a moment later reads again; so does who could not read.
        if self.read_at.load(Ordering::Acquire) != now && self.read_wishes() {
            self.read_at.store(now, Ordering::Release);
        }
        let wishes = self.wishes.lock().unwrap_or_else(PoisonError::into_inner);
        wishes.iter().find(|w| w.member == member).cloned()
    }

    /// What cannot be read changes nothing: what was wished before holds. Answers whether it could be.
    fn read_wishes(&self) -> bool {
        match wishes::read(&self.wishes_file()) {
            Ok(read) => {
                *self.wishes.lock().unwrap_or_else(PoisonError::into_inner) = read;
                self.told_unreadable.store(false, Ordering::Relaxed);
                true
            }
            Err(error) => {
                if !self.told_unreadable.swap(true, Ordering::Relaxed) {
                    tracing::warn!(path = %self.wishes_file().display(), %error, "what operators want of members cannot be read");
                }
                false
            }
        }
    }

    fn wishes_file(&self) -> PathBuf {
        seat::beside(&self.base, "wishes")
    }

    /// The right to wish something, one operator's at a time: what is read while it is held is so until it is let go.
    ///
    /// # Errors
    /// `WouldBlock` while another operator has it; nothing can be written here.
    pub fn turn(&self) -> Result<Turn, Error> {
        self.writable()?;
        wishes::turn(&self.wishes_file(), self.mode)
    }

    /// Writes down what an operator wants; answers the wish's number. `now` is the wall clock's time.
    ///
    /// # Errors
    /// It cannot be written; `InvalidData` when what was wished before cannot be read.
    pub fn ask_for(&self, turn: &Turn, member: &str, what: What, now: Duration) -> Result<u64, Error> {
        let word = self.writable()?;
        let number = wishes::write(&self.wishes_file(), self.mode, turn, (member, what), now)?;
        word.raise();
        Ok(number)
    }

    /// Those who have the board open look at what has changed beside it, too: the configuration.
    pub fn raise(&self) {
        _ = self.word.as_ref().map(SharedWord::raise);
    }

    fn writable(&self) -> Result<&SharedWord, Error> {
        let why = "the state folder cannot be written";
        self.word.as_ref().ok_or_else(|| Error::new(std::io::ErrorKind::PermissionDenied, why))
    }

    /// The processes that use the group, this one too.
    pub fn processes(&self) -> Vec<Process> {
        seat::read_all(&self.base, None, self.is_writable())
    }

    /// The others.
    pub(crate) fn others(&self) -> Vec<Process> {
        let mine = {
            let seat = self.seat.lock().unwrap_or_else(PoisonError::into_inner);
            seat.as_ref().map(|s| s.path().to_owned())
        };
        seat::read_all(&self.base, mine.as_deref(), self.is_writable())
    }

    /// When it is a process's turn in what the processes do one after the other because of a wish: the lowest is the first.
    /// Another one is with each wish; `None`: this process's.
    pub(crate) fn draw(&self, process: Option<&Process>, wish: u64) -> String {
        let mine = || {
            let seat = self.seat.lock().unwrap_or_else(PoisonError::into_inner);
            seat.as_ref().and_then(|s| s.path().file_name().map(|n| n.to_string_lossy().into_owned()))
        };
        let seat = process.map(|p| p.seat.clone()).or_else(mine).unwrap_or_default();
        crate::digest::short(format!("{wish} {seat}").as_bytes())
    }

    /// Says how this process sees the members, where that has changed. `now` is the host's time; what changes all the time
    /// is said after `now_and_then`.
    pub(crate) fn show(&self, now: Duration, now_and_then: Duration, sights: impl FnOnce() -> Sights) {
        let mut seat = self.seat.lock().unwrap_or_else(PoisonError::into_inner);
        // A forked child has its parent's.
        let Some(seat) = seat.as_mut().filter(|s| s.is_ours()) else { return };
        // Files of which nobody knows what they are good for are cleared away here and there.
        if !seat.is_there()
            && let Ok(another) = Seat::take(&self.base, self.mode, self.since)
        {
            *seat = another;
        }
        self.shown_at.store(now.as_micros() as u64, Ordering::Relaxed);
        match seat.write(&sights(), now, now_and_then) {
            Ok(is_new) => {
                self.is_unsaid.store(false, Ordering::Relaxed);
                if is_new {
                    _ = self.word.as_ref().map(SharedWord::raise);
                }
            }
            Err(error) => {
                self.is_unsaid.store(true, Ordering::Relaxed);
                if !self.told_unwritable.swap(true, Ordering::Relaxed) {
                    tracing::debug!(path = %seat.path().display(), %error, "other processes are not told how members are");
                }
            }
        }
    }

    /// Whether something is to be read again that could not be read, or after a `moment` to be said again.
    pub(crate) fn has_left_some(&self, now: Duration, moment: Duration) -> bool {
        self.read_at.load(Ordering::Acquire) != self.number()
            || (self.is_unsaid.load(Ordering::Relaxed) && self.is_due(now, moment, moment))
    }

    /// Whether it is time to say again what changes all the time, which is said `now_and_then`; or, after a `moment`, what
    /// could not be written. `now` is the host's time.
    pub(crate) fn is_due(&self, now: Duration, now_and_then: Duration, moment: Duration) -> bool {
        let wait = if self.is_unsaid.load(Ordering::Relaxed) { moment } else { now_and_then };
        now >= Duration::from_micros(self.shown_at.load(Ordering::Relaxed)) + wait
    }

    /// This process does not use the group any more.
    pub(crate) fn leave(&self) {
        self.give_back(self.seat.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// The process ends, by whichever of its threads: what another one is just writing is left to who looks next.
    pub(crate) fn leave_at_exit(&self) {
        if let Ok(mut seat) = self.seat.try_lock() {
            self.give_back(seat.take());
        }
    }

    fn give_back(&self, seat: Option<Seat>) {
        if seat.is_some_and(|s| s.is_ours()) {
            _ = self.word.as_ref().map(SharedWord::raise);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_seen_by_who_has_the_board_open_and_by_who_opens_it_later() {
        let dir = tempfile::tempdir().unwrap();
        let open = |part| Board::open(dir.path(), "g", part, Duration::ZERO).unwrap();
        let (user, operator) = (open(Part::User), open(Part::Operator));
        assert_eq!(user.wish("a"), None);
        let before = user.number();
        let turn = operator.turn().unwrap();
        let number = operator.ask_for(&turn, "a", What::Drain, Duration::ZERO).unwrap();
        assert_ne!(user.number(), before);
        for board in [&user, &open(Part::User)] {
            let wish = board.wish("a").unwrap();
            assert_eq!((wish.number, wish.drained, board.wish("b")), (number, true, None));
        }
        assert_eq!(operator.processes()[0].program, "unknown", "it has said nothing yet");
        user.show(Duration::ZERO, Duration::ZERO, Sights::default);
        assert_eq!((operator.processes().len(), user.others().len()), (1, 0));
        assert_ne!(operator.processes()[0].program, "unknown");
        user.leave();
        assert_eq!(operator.processes(), []);
    }

    #[test]
    fn where_there_is_no_folder_or_one_that_others_can_write_there_is_no_board() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let open = |dir: &Path| Board::open(dir, "g", Part::User, Duration::ZERO);
        assert!(open(&dir.path().join("none")).is_none());
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        assert!(open(dir.path()).is_none());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_seat_that_was_cleared_away_is_taken_anew_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let user = Board::open(dir.path(), "g", Part::User, Duration::ZERO).unwrap();
        let show = || user.show(Duration::ZERO, Duration::ZERO, Sights::default);
        show();
        let seats = || {
            let files = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
            files.filter(|p| p.extension().is_some_and(|e| e == seat::EXTENSION)).collect::<Vec<_>>()
        };
        seats().iter().for_each(|path| std::fs::remove_file(path).unwrap());
        assert_eq!(user.processes(), []);
        show();
        let there: Vec<_> = user.processes().iter().map(|p| p.pid).collect();
        assert_eq!(there, [std::process::id()]);
        user.leave();
        assert!(seats().is_empty());
    }

    #[test]
    fn who_begins_to_use_the_group_removes_what_others_left_that_are_dead() {
        let dir = tempfile::tempdir().unwrap();
        let open = |part| Board::open(dir.path(), "g", part, Duration::ZERO).unwrap();
        let dead = seat::beside(&open(Part::Operator).base, "1-1-0.seat");
        std::fs::write(&dead, "").unwrap();
        let user = open(Part::User);
        assert!(!dead.exists());
        user.leave_at_exit();
        assert_eq!(open(Part::Operator).processes(), []);
    }

    /// As where the process has no descriptor left for a moment: nothing is on the board that was not there before.
    #[test]
    fn a_wish_that_could_not_be_read_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let open = |part| Board::open(dir.path(), "g", part, Duration::ZERO).unwrap();
        let (user, operator) = (open(Part::User), open(Part::Operator));
        let turn = operator.turn().unwrap();
        operator.ask_for(&turn, "a", What::Drain, Duration::ZERO).unwrap();
        let (file, aside) = (user.wishes_file(), dir.path().join("aside"));
        std::fs::rename(&file, &aside).unwrap();
        std::fs::create_dir(&file).unwrap();
        let late = open(Part::User);
        for board in [&user, &late] {
            assert_eq!(board.wish("a"), None);
        }
        std::fs::remove_dir(&file).unwrap();
        std::fs::rename(&aside, &file).unwrap();
        for board in [&user, &late] {
            assert!(board.wish("a").unwrap().drained);
        }
    }

    #[test]
    fn what_could_not_be_said_is_said_soon() {
        let dir = tempfile::tempdir().unwrap();
        let user = Board::open(dir.path(), "g", Part::User, Duration::ZERO).unwrap();
        let (moment, rarely) = (Duration::from_secs(1), Duration::from_secs(60));
        let show = |now| user.show(now, rarely, Sights::default);
        let may_write = |may| user.seat.lock().unwrap().as_mut().unwrap().open_again(may);
        let mut now = Duration::from_secs(100);
        show(now);
        assert!(!user.is_due(now + moment, rarely, moment));
        may_write(false);
        now += rarely;
        show(now);
        assert!(user.is_due(now + moment, rarely, moment) && !user.is_due(now, rarely, moment));
        may_write(true);
        show(now + moment);
        assert!(!user.is_due(now + moment * 2, rarely, moment));
    }

    #[test]
    fn damaged_wishes_leave_what_was_wished_before() {
        let dir = tempfile::tempdir().unwrap();
        let open = |part| Board::open(dir.path(), "g", part, Duration::ZERO).unwrap();
        let (user, operator) = (open(Part::User), open(Part::Operator));
        let turn = operator.turn().unwrap();
        let ask_for = |what| operator.ask_for(&turn, "a", what, Duration::ZERO);
        ask_for(What::Drain).unwrap();
        assert!(user.wish("a").unwrap().drained);
        std::fs::write(user.wishes_file(), "garbage").unwrap();
        operator.word.as_ref().unwrap().raise();
        assert!(user.wish("a").unwrap().drained);
        assert!(ask_for(What::Resume).is_err());
        assert_eq!(open(Part::User).wish("a"), None);
    }
}
