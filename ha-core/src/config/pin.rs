//! Where a PIN comes from: an environment variable, a file, or a command's output; never the configuration itself.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use zeroize::Zeroizing;

/// A source of a PIN. Holds no PIN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinSource {
    /// An environment variable's name.
    Env(String),
    /// A file that only its owner can read; a newline at its end is not part of the PIN.
    File(PathBuf),
    /// A program with its arguments; a newline at the end of its output is not part of the PIN. It runs in a process group
    /// of its own, without input, and is killed with that group when it has not ended in time: after [`COMMAND_LIMIT`],
    /// or the group's `deadline` where that is longer.
    Command(Vec<String>),
}

/// Why a PIN could not be had. No text holds any part of a PIN.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The variable is not set.
    #[error("the environment variable {0} is not set")]
    Unset(String),
    /// The file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's words.
        source: std::io::Error,
    },
    /// Others can read the file.
    #[error("{path}: readable by others (mode {mode:o}); run `chmod 600` on it")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The command failed.
    #[error("the command {program:?} failed: {reason}")]
    Command {
        /// The program.
        program: String,
        /// Why.
        reason: String,
    },
    /// Nothing came.
    #[error("the PIN is empty")]
    Empty,
}

/// How long a command may take, where nothing else is said.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// Longest PIN that is read.
const LONGEST: u64 = 4096;

impl PinSource {
    /// Fetches the PIN.
    ///
    /// # Errors
    /// [`PinError`].
    pub fn resolve(&self) -> Result<Zeroizing<Vec<u8>>, PinError> {
        self.resolve_within(COMMAND_LIMIT)
    }

    /// As [`resolve`](Self::resolve); a command may take as long as `limit`.
    ///
    /// # Errors
    /// [`PinError`].
    pub fn resolve_within(&self, limit: Duration) -> Result<Zeroizing<Vec<u8>>, PinError> {
        let mut pin = match self {
            PinSource::Env(name) => {
                let value = std::env::var_os(name).ok_or_else(|| PinError::Unset(name.clone()))?;
                Zeroizing::new(std::os::unix::ffi::OsStringExt::into_vec(value))
            }
            PinSource::File(path) => line(read(path)?),
            PinSource::Command(words) => line(run(words, limit)?),
        };
        if pin.is_empty() {
            return Err(PinError::Empty);
        }
        Ok(std::mem::take(&mut pin))
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, PinError> {
    let failed = |source| PinError::File { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(PinError::Exposed { path: path.to_owned(), mode });
    }
    let mut pin = Zeroizing::new(Vec::with_capacity(LONGEST as usize));
    file.take(LONGEST).read_to_end(&mut pin).map_err(failed)?;
    Ok(pin)
}

fn run(words: &[String], limit: Duration) -> Result<Zeroizing<Vec<u8>>, PinError> {
    let (program, arguments) = words.split_first().ok_or(PinError::Empty)?;
    let failed = |reason: String| PinError::Command { program: program.clone(), reason };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let answer = match (child.stdout.take(), Pid::from_raw(child.id().cast_signed())) {
        (Some(out), Some(pid)) => output(out, pid, limit),
        _ => Err("it has no output".into()),
    };
    let pin = match answer {
        Ok(pin) => pin,
        Err(reason) => {
            kill_group(child);
            return Err(failed(reason));
        }
    };
    let status = child.wait().map_err(|e| failed(e.to_string()))?;
    if !status.success() {
        return Err(failed(status.to_string()));
    }
    Ok(pin)
}

/// What a process has written when it has ended. It is not reaped here, so that its number stays its own.
#[expect(
    clippy::disallowed_methods,
    reason = "a program of the operator's is run and waited for, which no simulation has"
)]
fn output(out: ChildStdout, pid: Pid, limit: Duration) -> Result<Zeroizing<Vec<u8>>, String> {
    let (sender, answer) = mpsc::sync_channel(1);
    let read = move || {
        let mut pin = Zeroizing::new(Vec::with_capacity(LONGEST as usize));
        let read = out.take(LONGEST).read_to_end(&mut pin);
        // Where that fails the process is waited for all the same.
        _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        _ = sender.send(read.map(|_| pin).map_err(|e| e.to_string()));
    };
    // Not to be waited for: something that left the process group may hold the output open for ever.
    std::thread::Builder::new().name("ha-pin".into()).spawn(read).map_err(|e| e.to_string())?;
    answer
        .recv_timeout(limit)
        .unwrap_or_else(|_| Err(format!("it did not end within {limit:?} and is killed")))
}

/// Kills a command that was not reaped yet, with what it has started.
#[expect(
    clippy::disallowed_methods,
    reason = "a program of the operator's is run and waited for, which no simulation has"
)]
fn kill_group(mut child: Child) {
    let killed = Pid::from_raw(child.id().cast_signed()).map(|pid| kill_process_group(pid, Signal::KILL));
    if let Some(Err(error)) = killed {
        tracing::warn!(%error, "a command that was to give a PIN could not be killed");
    }
    // Not to be waited for: one that runs as another user cannot be killed.
    _ = std::thread::Builder::new().name("ha-pin".into()).spawn(move || child.wait());
}

fn line(mut pin: Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    while matches!(pin.last(), Some(b'\n' | b'\r')) {
        pin.pop();
    }
    pin
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_that_others_can_read_is_refused_and_its_content_not_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pin");
        std::fs::write(&path, "geheim\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let error = PinSource::File(path.clone()).resolve().unwrap_err();
        assert!(matches!(error, PinError::Exposed { mode: 0o644, .. }));
        assert!(!error.to_string().contains("geheim"));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(PinSource::File(path).resolve().unwrap().as_slice(), b"geheim");
    }

    #[test]
    fn a_command_gives_its_first_output_or_its_failure() {
        let words = |w: &[&str]| PinSource::Command(w.iter().map(|s| s.to_string()).collect());
        assert_eq!(words(&["echo", "1234"]).resolve().unwrap().as_slice(), b"1234");
        assert!(matches!(words(&["false"]).resolve(), Err(PinError::Command { .. })));
        assert!(matches!(words(&["true"]).resolve(), Err(PinError::Empty)));
    }

    #[test]
    fn a_command_that_does_not_end_is_killed_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("started");
        let script = format!("sleep 1000 & echo $! > {0:?}.new; mv {0:?}.new {0:?}; wait", file);
        let source = PinSource::Command(["sh", "-c", &script].map(String::from).to_vec());
        let mut limit = Duration::from_millis(100);
        // On a busy machine it may take longer until it has come so far.
        let started = loop {
            let error = source.resolve_within(limit).unwrap_err();
            assert!(error.to_string().contains("did not end within"), "{error}");
            match std::fs::read_to_string(&file) {
                Ok(pid) => break pid,
                Err(_) => limit *= 2,
            }
        };
        let stat = format!("/proc/{}/stat", started.trim());
        let alive =
            || std::fs::read_to_string(&stat).is_ok_and(|s| s.contains("(sleep)") && !s.contains(") Z "));
        while alive() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_command_that_ends_its_output_and_goes_on_is_not_waited_for_without_end() {
        let words = ["sh", "-c", "echo 1234; exec >&-; exec sleep 1000"].map(String::from).to_vec();
        let error = PinSource::Command(words).resolve_within(Duration::from_millis(100)).unwrap_err();
        assert!(!error.to_string().contains("1234"), "{error}");
        assert!(error.to_string().contains("did not end within"), "{error}");
    }
}
