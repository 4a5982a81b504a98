//! Showing a module its environment variables without `setenv`.
//!
//! Modules are initialised again while the host's other threads call `getenv`, which `setenv` would make crash. So for each
//! name one buffer of [`CAPACITY`] bytes is put into the environment once, with `putenv`, and kept for ever; from then
//! on it is only rewritten in place, with atomic byte stores. What that is, plainly:
//!
//! - The environment is the process's: while a member is loaded or initialised, *every* thread sees its value, and so
//!   does a program started then.
//! - Before the value changes, the first byte of the name is replaced, so that a look-up meanwhile finds nothing instead
//!   of half a value. Who keeps the pointer that an earlier `getenv` gave sees the text change under it.
//! - Afterwards the host's own value is back; if it had none, the name stays hidden in this way, with an empty value.
//! - The one `putenv` for a new name can move the table of variables, as any `putenv` does.
//!
//! Members that share a name take turns. One that is stuck in `C_Initialize` loses its turn after [`LEASE`] to the next
//! in line; it is told so ([`Exposed::intact`]), and what it initialised is not trusted, as it may have read
//! another's value. So a hung member delays another's recovery by that much and no more.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::fork::{ForkLock, Gate, Held};

/// Bytes of a variable's buffer: name, `=`, value and the final NUL.
pub(crate) const CAPACITY: usize = 8192;

/// How long a turn can last while others wait.
pub(crate) const LEASE: Duration = Duration::from_secs(5);

/// In place of the name's first byte while it is hidden: in no variable's name.
const HIDDEN: u8 = 1;

/// Why variables cannot be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EnvironmentError {
    /// A name or value that no environment can hold; the name.
    Unusable(String),
    /// Others kept taking turns.
    Busy,
}

struct Variable {
    name: CString,
    gate: Gate,
    /// The text in the environment. Leaked, so that the environment's pointer to it stays good.
    buffer: &'static [AtomicU8; CAPACITY],
    /// The host's own value while ours is shown; the lock is held for each rewriting.
    host: ForkLock<Option<Vec<u8>>>,
}

static VARIABLES: ForkLock<BTreeMap<String, &'static Variable>> = ForkLock::new(BTreeMap::new());

/// Variables shown to a module, until dropped.
pub(crate) struct Exposed {
    turns: Vec<(&'static Variable, Held<'static>)>,
}

/// Shows the variables, once it is this caller's turn for all of them.
pub(crate) fn expose(env: &[(String, String)]) -> Result<Exposed, EnvironmentError> {
    // Sorted, so that two members with several names in common cannot wait for each other.
    let wanted: BTreeMap<&str, &str> = env.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let mut exposed = Exposed { turns: Vec::with_capacity(wanted.len()) };
    for (name, value) in wanted {
        let variable = variable(name, value)?;
        let turn = variable.gate.acquire_or_take_over(LEASE).ok_or(EnvironmentError::Busy)?;
        variable.show(value.as_bytes());
        exposed.turns.push((variable, turn));
    }
    Ok(exposed)
}

fn variable(name: &str, value: &str) -> Result<&'static Variable, EnvironmentError> {
    let unusable = || EnvironmentError::Unusable(name.to_owned());
    let fits = name.len() + value.len() + 2 <= CAPACITY;
    if name.is_empty() || name.contains('=') || value.contains('\0') || !fits {
        return Err(unusable());
    }
    let c_name = CString::new(name).map_err(|_| unusable())?;
    let mut variables = VARIABLES.lock();
    if let Some(known) = variables.get(name) {
        return Ok(known);
    }
    let buffer: &'static [AtomicU8; CAPACITY] = Box::leak(Box::new([const { AtomicU8::new(0) }; CAPACITY]));
    let text = name.bytes().chain([b'=']);
    for (place, byte) in buffer.iter().zip(text) {
        place.store(byte, Ordering::Relaxed);
    }
    let made: &'static Variable =
        Box::leak(Box::new(Variable { name: c_name, gate: Gate::new(), buffer, host: ForkLock::new(None) }));
    made.hide();
    variables.insert(name.to_owned(), made);
    Ok(made)
}

impl Variable {
    fn hide(&self) {
        self.buffer[0].store(HIDDEN, Ordering::Release);
    }

    fn write(&self, value: &[u8]) {
        self.hide();
        // The last byte is never written: whoever reads meanwhile comes to an end.
        let room = self.buffer.iter().skip(self.name.as_bytes().len() + 1);
        for (place, byte) in room.zip(value.iter().chain([&0])) {
            place.store(*byte, Ordering::Release);
        }
        if let Some(first) = self.name.as_bytes().first() {
            self.buffer[0].store(*first, Ordering::Release);
        }
    }

    /// What `getenv` finds: `Some(None)` if that is our buffer, `Some(value)` for the host's own, `None` for nothing.
    fn look_up(&self) -> Option<Option<Vec<u8>>> {
        // SAFETY: the name is a C string. The answer, if any, is a string that the environment holds.
        let found = unsafe { libc::getenv(self.name.as_ptr()) };
        if found.is_null() {
            return None;
        }
        let ours = self.buffer.as_ptr_range();
        if ours.contains(&found.cast_const().cast()) {
            return Some(None);
        }
        // SAFETY: `getenv` gave a NUL-terminated string; hosts do not free those under a running library.
        let value = unsafe { CStr::from_ptr(found) };
        Some(Some(value.to_bytes().to_vec()))
    }

    fn show(&self, value: &[u8]) {
        let mut host = self.host.lock();
        match self.look_up() {
            Some(Some(own)) => *host = Some(own), // not put yet, or the host has set it since
            Some(None) => {}                      // ours, holding the host's value, which is known
            None => *host = None,                 // hidden, or the host has removed it
        }
        self.write(value);
        if self.look_up() != Some(None) {
            // SAFETY: the buffer is NUL-terminated, is never freed, and has the form NAME=VALUE.
            let status = unsafe { libc::putenv(self.buffer.as_ptr().cast_mut().cast()) };
            if status != 0 {
                tracing::warn!("a module's environment variable could not be put: no memory");
            }
        }
    }

    fn restore(&self) {
        let host = self.host.lock();
        match &*host {
            Some(value) if self.name.as_bytes().len() + value.len() + 2 <= CAPACITY => self.write(value),
            Some(value) => {
                // Longer than the buffer: the host gets a variable of its own again.
                let mut text = self.name.as_bytes().to_vec();
                text.push(b'=');
                text.extend_from_slice(value);
                text.push(0);
                let text = Box::leak(text.into_boxed_slice());
                // SAFETY: NUL-terminated, leaked, of the form NAME=VALUE.
                unsafe { libc::putenv(text.as_mut_ptr().cast()) };
            }
            None => {
                self.hide();
                if let Some(first) = self.buffer.get(self.name.as_bytes().len() + 1) {
                    first.store(0, Ordering::Release); // children of the host inherit no member's value
                }
            }
        }
    }
}

impl Exposed {
    /// Whether the values stood all the time. If not, the module may have read another member's.
    pub(crate) fn intact(&self) -> bool {
        self.turns.iter().all(|(_, turn)| turn.still_mine())
    }
}

impl Drop for Exposed {
    fn drop(&mut self) {
        for (variable, turn) in &self.turns {
            if turn.still_mine() {
                variable.restore();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(name: &str, value: &str) -> Vec<(String, String)> {
        vec![(name.into(), value.into())]
    }

    /// Whether this test is alone in a process; if it is not, it is run so: other tests' threads look into the environment, and
    /// to put a new name there can move it.
    fn is_alone(name: &str) -> bool {
        const ALONE: &str = "HA_MEMBER_TEST_ALONE";
        if std::env::var_os(ALONE).is_some() {
            return true;
        }
        let me = std::env::current_exe().unwrap();
        let name = format!("environment::tests::{name}");
        let ran = std::process::Command::new(me).args(["--exact", &name]).env(ALONE, "1").output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
        false
    }

    #[test]
    fn shown_while_held_and_gone_afterwards() {
        if !is_alone("shown_while_held_and_gone_afterwards") {
            return;
        }
        let name = "HA_MEMBER_TEST_ABSENT";
        for value in ["one", "a longer value", "2"] {
            let shown = expose(&pairs(name, value)).expect("free");
            assert_eq!(std::env::var(name).as_deref(), Ok(value));
            assert!(shown.intact());
            drop(shown);
            assert!(std::env::var(name).is_err());
        }
    }

    #[test]
    fn the_hosts_value_comes_back() {
        if !is_alone("the_hosts_value_comes_back") {
            return;
        }
        let name = "HA_MEMBER_TEST_PRESENT";
        let host = c"HA_MEMBER_TEST_PRESENT=host";
        // SAFETY: a static string of the form NAME=VALUE, which nobody writes to.
        unsafe { libc::putenv(host.as_ptr().cast_mut()) };
        for value in ["member", "another member"] {
            drop(expose(&pairs(name, value)).map(|_e| assert_eq!(std::env::var(name).as_deref(), Ok(value))));
            assert_eq!(std::env::var(name).as_deref(), Ok("host"));
        }
    }

    #[test]
    fn boundary_pair_the_longest_value_and_one_byte_more() {
        if !is_alone("boundary_pair_the_longest_value_and_one_byte_more") {
            return;
        }
        let name = "HA_MEMBER_TEST_LONG";
        let room = CAPACITY - name.len() - 2;
        let exact = "x".repeat(room);
        let shown = expose(&pairs(name, &exact)).expect("fits");
        assert_eq!(std::env::var(name).as_deref(), Ok(exact.as_str()));
        drop(shown);
        let over = expose(&pairs(name, &"x".repeat(room + 1)));
        assert_eq!(over.err(), Some(EnvironmentError::Unusable(name.into())));
    }
}
