//! Where a PIN comes from: an environment variable, a file, or a command's output; never the configuration itself.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use zeroize::Zeroizing;

/// A source of a PIN. Holds no PIN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinSource {
    /// An environment variable's name.
    Env(String),
    /// A file that only its owner can read; a newline at its end is not part of the PIN.
    File(PathBuf),
    /// A program with its arguments; a newline at the end of its output is not part of the PIN.
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

/// Longest PIN that is read.
const LONGEST: u64 = 4096;

impl PinSource {
    /// Fetches the PIN.
    ///
    /// # Errors
    /// [`PinError`].
    pub fn resolve(&self) -> Result<Zeroizing<Vec<u8>>, PinError> {
        let mut pin = match self {
            PinSource::Env(name) => {
                let value = std::env::var_os(name).ok_or_else(|| PinError::Unset(name.clone()))?;
                Zeroizing::new(std::os::unix::ffi::OsStringExt::into_vec(value))
            }
            PinSource::File(path) => line(read(path)?),
            PinSource::Command(words) => line(run(words)?),
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

fn run(words: &[String]) -> Result<Zeroizing<Vec<u8>>, PinError> {
    let (program, arguments) = words.split_first().ok_or(PinError::Empty)?;
    let failed = |reason: String| PinError::Command { program: program.clone(), reason };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let mut pin = Zeroizing::new(Vec::with_capacity(LONGEST as usize));
    if let Some(out) = child.stdout.take() {
        out.take(LONGEST).read_to_end(&mut pin).map_err(|e| failed(e.to_string()))?;
    }
    let status = child.wait().map_err(|e| failed(e.to_string()))?;
    if !status.success() {
        return Err(failed(status.to_string()));
    }
    Ok(pin)
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
}
