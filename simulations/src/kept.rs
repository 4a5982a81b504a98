//! Histories that broke a guarantee once, kept: each with what it meant, in a file that every run of the tests plays.
//!
//! A plan is kept and not its seed, because a seed means another plan as soon as plans are drawn differently.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::plan::Plan;

/// The form of the file that this version reads and writes.
const FORMAT: u32 = 1;

/// A kept history.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kept {
    format: u32,
    /// What was wrong.
    pub meaning: String,
    /// What happened.
    pub plan: Plan,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// It cannot be read at all.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A line is no history.
    #[error("{path}, line {line}: {reason}")]
    Line {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// Why.
        reason: String,
    },
}

/// Only what says which form the rest has.
#[derive(Deserialize)]
struct Form {
    format: u32,
}

/// The histories of a file, one a line.
///
/// # Errors
/// [`KeptError`], also for a file of another version.
pub fn read(path: &Path) -> Result<Vec<Kept>, KeptError> {
    let shown = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|source| KeptError::File { path: shown.clone(), source })?;
    let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    let read = lines.map(|(n, line)| {
        let wrong = |reason: String| KeptError::Line { path: shown.clone(), line: n + 1, reason };
        let form: Form = serde_json::from_str(line).map_err(|e| wrong(format!("no history: {e}")))?;
        if form.format != FORMAT {
            return Err(wrong(format!("its form is {}, and this version knows form {FORMAT}", form.format)));
        }
        serde_json::from_str(line).map_err(|e| wrong(format!("no history: {e}")))
    });
    read.collect()
}

/// Adds a history to a file.
///
/// # Errors
/// [`KeptError::File`].
pub fn add(path: &Path, meaning: &str, plan: &Plan) -> Result<(), KeptError> {
    let wrong = |source| KeptError::File { path: path.display().to_string(), source };
    let kept = Kept { format: FORMAT, meaning: meaning.into(), plan: plan.clone() };
    let line = serde_json::to_string(&kept).map_err(|e| wrong(e.into()))?;
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(wrong)?;
    writeln!(file, "{line}").map_err(wrong)
}
