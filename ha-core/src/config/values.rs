//! The file's own kinds of values: durations, sizes, the log's target, the balance; read and written.

use std::time::Duration;

use super::types::LogTarget;
use crate::policy::balance::Balance;

/// What a duration is, in words for who wrote another thing.
pub const DURATION: &str = "a duration such as \"250ms\", \"10s\", \"2m\" (at most a day), or \"off\"";
pub(super) const SIZE: &str = "a size such as \"512KiB\", \"1MiB\" or \"4096\"";
pub(super) const TARGET: &str = "\"stderr\", \"journal\", \"syslog\" or \"file:/path\"";
pub(super) const BALANCES: [&str; 3] = ["least-busy", "round-robin", "primary"];

/// A duration as the file has it: `None` where it is none, `Some(None)` for "off".
pub fn duration(text: &str) -> Option<Option<Duration>> {
    if text == "off" {
        return Some(None);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let ms = match unit {
        "ms" => number,
        "s" => number.checked_mul(1000)?,
        "m" => number.checked_mul(60_000)?,
        "h" => number.checked_mul(3_600_000)?,
        _ => return None,
    };
    // A day is longer than anybody waits; what is above it is a slip of the pen. Nothing is done in no time either.
    (1..=86_400_000).contains(&ms).then(|| Some(Duration::from_millis(ms)))
}

/// In the largest unit that says it exactly.
pub(super) fn duration_text(duration: Option<Duration>) -> String {
    let Some(duration) = duration else { return "off".into() };
    let ms = duration.as_millis();
    for (unit, length) in [("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
        if ms.is_multiple_of(length) {
            return format!("{}{unit}", ms / length);
        }
    }
    format!("{ms}ms")
}

/// A number of bytes.
pub(super) fn size(text: &str) -> Option<usize> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: usize = number.parse().ok()?;
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// In the largest unit that says it exactly.
pub(super) fn size_text(size: usize) -> String {
    for (unit, length) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if size != 0 && size.is_multiple_of(length) {
            return format!("{}{unit}", size / length);
        }
    }
    size.to_string()
}

/// Where the log goes.
pub(super) fn target(text: &str) -> Option<LogTarget> {
    match text {
        "stderr" => Some(LogTarget::Stderr),
        "journal" => Some(LogTarget::Journal),
        "syslog" => Some(LogTarget::Syslog),
        _ => text.strip_prefix("file:").filter(|p| p.starts_with('/')).map(|p| LogTarget::File(p.into())),
    }
}

/// How members are chosen.
pub(super) fn balance(word: &str) -> Option<Balance> {
    match word {
        "least-busy" => Some(Balance::LeastBusy),
        "round-robin" => Some(Balance::RoundRobin),
        "primary" => Some(Balance::Primary),
        _ => None,
    }
}

pub(super) fn balance_text(balance: Balance) -> &'static str {
    match balance {
        Balance::LeastBusy => "least-busy",
        Balance::RoundRobin => "round-robin",
        Balance::Primary => "primary",
    }
}
