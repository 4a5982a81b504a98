//! Writing to a token that other processes write to, where its module does not see to that.
//!
//! SoftHSM counts a token's changes in a file, and lists the token's objects anew when the count is not the one that it
//! knows. What it writes itself raises the count, and the new one is what it knows: objects that another process has made
//! since the last look are not found until a third change comes. So the processes of a host take turns, by a file that
//! they share, and each has its module look before it writes where another one has written. The file holds a count too,
//! which tells that; whoever opens the token for himself and takes no turns is not noticed any better than by SoftHSM.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{FileExt, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::fork::{Gate, Held};
use crate::plain::open_plain;

/// How long a turn is waited for: one who has it for longer hangs in its module, or was stopped. It is waited for once.
const PATIENCE: Duration = Duration::from_millis(250);
/// The pause between two looks at another process's lock.
const PAUSE: Duration = Duration::from_millis(1);

/// The turns of one token's writers. They are the same for each connection of one connector.
#[derive(Debug)]
pub(crate) struct Writes {
    path: PathBuf,
    /// Of the file, where it is made.
    mode: u32,
    /// The turns of this process's threads.
    here: Gate,
    /// Whether the last turn was waited for in vain.
    is_stuck: AtomicBool,
    /// Whether the token is known to need no turns.
    is_needless: AtomicBool,
}

/// What one connection's module knows: the count when it last looked or wrote.
#[derive(Debug)]
pub(crate) struct Knowledge {
    writes: Arc<Writes>,
    count: Mutex<Option<u64>>,
}

/// A turn, until it is dropped.
pub(crate) struct Turn<'a> {
    /// Locked.
    file: File,
    /// Let go last.
    _here: Held<'a>,
}

/// Whether a token's module needs this, and that its threads are kept apart.
pub(crate) fn are_missed_by(manufacturer: &str) -> bool {
    manufacturer.starts_with("SoftHSM")
}

impl Writes {
    pub(crate) fn new(path: PathBuf, mode: u32) -> Arc<Self> {
        let (is_stuck, is_needless) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Writes { path, mode, here: Gate::new(), is_stuck, is_needless })
    }

    /// For a connection to a token of this make: `None` where it needs no turns.
    pub(crate) fn seen_by(self: &Arc<Self>, manufacturer: &str) -> Option<Knowledge> {
        let is_missed = are_missed_by(manufacturer);
        self.is_needless.store(!is_missed, Ordering::Relaxed);
        is_missed.then(|| Knowledge { writes: Arc::clone(self), count: Mutex::new(None) })
    }

    fn open(&self) -> Option<File> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true).mode(self.mode);
        // Opened each time: a forked child must not share what this process has locked.
        open_plain(&mut options, &self.path).ok()
    }

    /// A turn for what is no object: SoftHSM writes to the token's own file with each login, and who reads it meanwhile sees
    /// a token without a PIN, or none. `None` when the turn is not to be had: what it was for is done without.
    pub(crate) fn take(&self) -> Option<Turn<'_>> {
        if self.is_needless.load(Ordering::Relaxed) {
            return None;
        }
        let patience = if self.is_stuck.load(Ordering::Relaxed) { Duration::ZERO } else { PATIENCE };
        let turn = self.take_within(patience);
        self.is_stuck.store(turn.is_none(), Ordering::Relaxed);
        turn
    }

    fn take_within(&self, patience: Duration) -> Option<Turn<'_>> {
        let until = Instant::now() + patience;
        let here = self.here.acquire(patience)?;
        let file = self.open()?;
        loop {
            match file.try_lock() {
                Ok(()) => return Some(Turn { file, _here: here }),
                Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(PAUSE),
                Err(_) => return None,
            }
        }
    }
}

/// How often the token was written to; `None` where that cannot be told.
fn count(file: &File) -> Option<u64> {
    let mut count = [0; 8];
    match file.read_exact_at(&mut count, 0) {
        Ok(()) => Some(u64::from_le_bytes(count)),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Some(0),
        Err(_) => None,
    }
}

/// Counts a write that is about to be done: one that ends with its process is counted too.
fn count_one(file: &File, before: Option<u64>) -> Option<u64> {
    let count = before?.wrapping_add(1);
    file.write_all_at(&count.to_le_bytes(), 0).ok().map(|()| count)
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // In so many words: a child that was forked meanwhile has the file open too.
        _ = self.file.unlock();
    }
}

impl Knowledge {
    /// See [`Writes::take`].
    pub(crate) fn take(&self) -> Option<Turn<'_>> {
        self.writes.take()
    }

    /// The turn to write, for as long as the answer is kept. `look` has the module look at the token's objects, where
    /// another process may have written since this one did; it answers whether that was done.
    pub(crate) fn begin(&self, look: impl FnOnce() -> bool) -> Option<Turn<'_>> {
        let turn = self.writes.take();
        let mut seen = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = &turn {
            let count = count(&turn.file);
            let is_up_to_date = (count.is_some() && count == *seen) || look();
            *seen = count_one(&turn.file, count).filter(|_| is_up_to_date);
        } else {
            // Done without: the others look all the same, and so does this one the next time.
            look();
            if let Some(file) = self.writes.open() {
                count_one(&file, count(&file));
            }
            *seen = None;
        }
        turn
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const SOFTHSM: &str = "SoftHSM project";

    fn looks(seen: &Knowledge) -> bool {
        let mut looked = false;
        assert!(seen.begin(|| std::mem::replace(&mut looked, true) | true).is_some());
        looked
    }

    #[test]
    fn who_writes_after_another_one_looks_first() {
        let dir = tempfile::tempdir().unwrap();
        let new = || Writes::new(dir.path().join("writes"), 0o600).seen_by(SOFTHSM).unwrap();
        let (one, other) = (new(), new());
        assert!(looks(&one), "nobody knows what was there before");
        assert!(!looks(&one) && !looks(&one), "nobody else has written");
        assert!(looks(&other));
        assert!(looks(&one));
        assert!(!looks(&one));
        // What could not look has seen nothing.
        assert!(other.begin(|| false).is_some());
        assert!(looks(&other));
    }

    #[test]
    fn a_turn_is_one_writers_and_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("writes");
        let new = |path: &Path| Writes::new(path.to_owned(), 0o600).seen_by(SOFTHSM).unwrap();
        let (one, other) = (new(&path), new(&path));
        let turn = one.begin(|| true).unwrap();
        assert!(one.begin(|| true).is_none() && other.begin(|| true).is_none());
        drop(turn);
        assert!(other.begin(|| true).is_some() && one.begin(|| true).is_some());
        let nowhere = new(&dir.path().join("no folder").join("writes"));
        assert!(nowhere.begin(|| true).is_none() && nowhere.begin(|| true).is_none());
    }

    #[test]
    fn who_writes_without_a_turn_is_noticed_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let new = || Writes::new(dir.path().join("writes"), 0o600).seen_by(SOFTHSM).unwrap();
        let (one, stuck, third) = (new(), new(), new());
        assert!(looks(&one));
        let turn = one.begin(|| true).unwrap();
        let mut looked = false;
        assert!(stuck.begin(|| std::mem::replace(&mut looked, true) | true).is_none());
        assert!(looked, "it cannot know what the one with the turn writes");
        drop(turn);
        assert!(looks(&one) && looks(&stuck) && looks(&third));
    }

    #[test]
    fn other_tokens_need_no_turns() {
        let dir = tempfile::tempdir().unwrap();
        let writes = Writes::new(dir.path().join("writes"), 0o600);
        assert!(writes.take().is_some(), "it is not known yet");
        assert!(writes.seen_by("another").is_none());
        assert!(writes.take().is_none());
    }
}
