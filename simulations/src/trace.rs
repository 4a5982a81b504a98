//! What happened in a history: a hash of all of it always, and its lines where somebody wants to read them.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A history's trace.
#[derive(Default)]
pub struct Trace {
    /// Which history it is of, for who reads of it.
    pub(crate) name: String,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    hash: u64,
    lines: Option<String>,
    log: String,
    closed: bool,
}

impl Trace {
    /// An empty one; `readable` keeps the lines too.
    pub fn new(readable: bool) -> Self {
        let lines = readable.then(String::new);
        let inner = Inner { hash: 0xcbf2_9ce4_8422_2325, lines, ..Inner::default() };
        Trace { name: String::new(), inner: Mutex::new(inner) }
    }

    /// The same, of a history with a name.
    pub fn named(self, name: String) -> Self {
        Trace { name, ..self }
    }

    /// From now on nothing is added.
    pub fn close(&self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
    }

    /// Adds what `who` did at a moment.
    pub fn add(&self, at: Duration, who: &str, what: std::fmt::Arguments<'_>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.closed {
            return;
        }
        let start = inner.hash;
        let mut hasher = Hasher(start);
        _ = writeln!(hasher, "{} {who} {what}", at.as_nanos());
        inner.hash = hasher.0;
        if let Some(lines) = &mut inner.lines {
            _ = writeln!(lines, "{:>12.6} {who:<10} {what}", at.as_secs_f64());
        }
    }

    /// Adds a line of the core's log, which is read and not hashed.
    pub fn note(&self, at: Duration, who: &str, what: &str) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.closed {
            return;
        }
        if let Some(lines) = &mut inner.lines {
            _ = writeln!(lines, "{:>12.6} {who:<10}   log: {what}", at.as_secs_f64());
        }
        inner.log.push_str(what);
        inner.log.push('\n');
    }

    /// What the core has logged so far.
    pub fn log(&self) -> String {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).log.clone()
    }

    /// The hash of everything so far.
    pub fn hash(&self) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).hash
    }

    /// The lines so far, if they are kept.
    pub fn lines(&self) -> String {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).lines.clone().unwrap_or_default()
    }
}

/// FNV-1a over what is written.
struct Hasher(u64);

impl std::fmt::Write for Hasher {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        Ok(())
    }
}
