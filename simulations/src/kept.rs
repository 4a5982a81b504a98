//! Histories that broke a guarantee once, kept: each with what it meant, in a file that every run of the tests plays.
//!
//! A plan is kept and not its seed, because a seed means another plan as soon as plans are drawn differently.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use ha_token::{Rv, ck};
use serde::{Deserialize, Serialize};

use crate::named::config;
use crate::plan::{Fault, Kind, Plan};

/// The form of the file that this version reads and writes.
const FORMAT: u32 = 1;

/// No trouble lasts longer: more is a file that was spoiled.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// A kept history.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
        let form: Form = serde_json::from_str(line).map_err(|e| wrong(no_history(&e)))?;
        if form.format != FORMAT {
            return Err(wrong(format!("its form is {}, and this version knows form {FORMAT}", form.format)));
        }
        let kept: Kept = serde_json::from_str(line).map_err(|e| wrong(no_history(&e)))?;
        check(&kept.plan).map_err(wrong)?;
        Ok(kept)
    });
    read.collect()
}

/// Why a line is none. It is the only one that the reader of JSON is given: its number there says nothing.
fn no_history(error: &serde_json::Error) -> String {
    let all = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let why = all.strip_suffix(&place).unwrap_or(&all);
    format!("no history, at column {}: {why}", error.column())
}

/// Whether a plan is one that could have been drawn, as far as playing it needs that.
fn check(plan: &Plan) -> Result<(), String> {
    config(plan, Path::new("/"), None).map_err(|e| format!("its plan asks for a wrong group: {e}"))?;
    if plan.lives.is_empty() {
        return Err("its plan has no life".into());
    }
    if plan.beside.iter().any(Vec::is_empty) {
        return Err("a program of its plan has no life".into());
    }
    if plan.rest.is_some_and(|rest| rest > LONGEST) {
        return Err("its plan gives more than a day to come to rest".into());
    }
    if plan.before.iter().any(|b| b.member >= plan.members || !matches!(b.kind, Kind::Mac | Kind::Aes)) {
        return Err("what was there before its plan is of no member, or no secret key".into());
    }
    for (n, kill) in plan.kills.iter().enumerate() {
        if plan.programs().nth(kill.program).is_none_or(|lives| kill.life >= lives.len()) {
            return Err(format!("death {} of its plan is of a process that there is not", n + 1));
        }
        if kill.done > 1000 {
            return Err(format!("death {} of its plan has more than 1000 of 1000 calls done", n + 1));
        }
    }
    for (n, trouble) in plan.troubles.iter().enumerate() {
        let wrong = |what: &str| Err(format!("trouble {} of its plan {what}", n + 1));
        if trouble.member >= plan.members {
            return wrong(&format!("is of member {}, and there are {}", trouble.member, plan.members));
        }
        if trouble.after > LONGEST || trouble.lasts > LONGEST {
            return wrong("takes longer than a day");
        }
        match &trouble.fault {
            Fault::Leaves if config(plan, Path::new("/"), Some(trouble.member)).is_err() => {
                return wrong("leaves fewer members than copies are asked for");
            }
            Fault::Err { before, after, .. } if *before > 1000 || *after > 1000 => {
                return wrong("is to befall more than 1000 of 1000 calls");
            }
            Fault::Lie { of } if *of > 1000 => {
                return wrong("makes more than 1000 of 1000 signatures wrong");
            }
            Fault::Lie { .. } if !plan.verify => {
                return wrong("makes wrong signatures, and nobody verifies them");
            }
            Fault::Err { answers, .. } if answers.contains(&Rv(ck::CKR_OK)) => {
                return wrong("has CKR_OK for an error");
            }
            Fault::Slow(time) | Fault::Refuse(time) if *time > LONGEST => {
                return wrong("takes longer than a day");
            }
            Fault::Flap { dead, alive } if dead.max(alive) > &LONGEST => {
                return wrong("takes longer than a day");
            }
            Fault::Flap { dead, alive } if trouble.lasts > (*dead + *alive) * 1000 => {
                return wrong("comes and goes more than 1000 times");
            }
            _ => {}
        }
    }
    Ok(())
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
