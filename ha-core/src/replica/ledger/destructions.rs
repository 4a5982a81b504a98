//! What processes tell each other at once: that something was destroyed. The rest is read when there is reason to.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use ha_member::SharedWord;

use super::Ledger;

/// The number of destructions that were told, and how many of them were heeded here.
pub(super) struct Destructions {
    word: SharedWord,
    heeded: AtomicU64,
}

impl Destructions {
    /// `None` where the file beside the ledger cannot be had: what others destroy is found out with the next search.
    pub(super) fn open(path: &Path) -> Option<Destructions> {
        let path = path.with_extension("word");
        match SharedWord::open(&path) {
            // What is known is read after this.
            Ok(word) => Some(Destructions { heeded: AtomicU64::new(word.get()), word }),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "this file cannot be used: what another process destroys is found out with the next search only");
                None
            }
        }
    }
}

/// What others may have destroyed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ByOthers {
    /// It is not told here.
    Unknown,
    /// Nothing since it was last heeded.
    Nothing,
    /// Something, until the number was this.
    Something(u64),
}

impl Ledger {
    /// Whether a process of this host has told that it destroyed something.
    pub fn destroyed_by_others(&self) -> ByOthers {
        let Some(destructions) = &self.destructions else { return ByOthers::Unknown };
        let now = destructions.word.get();
        if now == destructions.heeded.load(Ordering::Acquire) {
            ByOthers::Nothing
        } else {
            ByOthers::Something(now)
        }
    }

    /// What was told is known here.
    pub fn heeded(&self, what: ByOthers) {
        if let (Some(destructions), ByOthers::Something(now)) = (&self.destructions, what) {
            // Also a smaller one: the file may have been replaced.
            destructions.heeded.store(now, Ordering::Release);
        }
    }

    /// This process has destroyed something, and knows it.
    pub(super) fn tell_destroyed(&self) {
        let Some(destructions) = &self.destructions else { return };
        let before = destructions.word.raise();
        // Unless others have told what was not heeded yet.
        _ = destructions.heeded.compare_exchange(before, before + 1, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// What a dead process left is destroyed now: who knows an object of it is to look, here too.
    pub(super) fn tell_settled(&self) {
        if let Some(destructions) = &self.destructions {
            destructions.word.raise();
        }
    }
}
