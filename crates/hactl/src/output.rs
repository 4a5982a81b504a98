//! Tables for people, JSON for programs.

use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use anyhow::Result;
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::context::Context;

/// How often long work is looked at.
const STEP: Duration = Duration::from_millis(200);
/// How many lines tell of it where there is no terminal.
const LINES: usize = 10;

/// A table in the house style.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(header.to_vec());
    table
}

/// Prints one JSON document.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{}", serde_json::to_string(value)?)?;
    Ok(())
}

/// Says on standard error what is being done.
pub(crate) fn progress(context: &Context, text: &str) {
    if !context.json {
        eprintln!("{text}");
    }
}

/// Runs long work: a spinner on a terminal, a plain line elsewhere. Both on standard error.
pub(crate) fn busy<T>(text: String, work: impl FnOnce() -> T) -> T {
    if !std::io::stderr().is_terminal() {
        eprintln!("{text}");
        return work();
    }
    let spinner = indicatif::ProgressBar::new_spinner().with_message(text);
    spinner.enable_steady_tick(Duration::from_millis(100));
    let done = work();
    spinner.finish_and_clear();
    done
}

/// Runs long work of which `left` says from time to time how much of it is left: a bar on a terminal, plain lines elsewhere.
/// Both on standard error.
pub(crate) fn counted<T: Send>(
    text: &str,
    left: impl Fn() -> Option<usize>,
    work: impl FnOnce() -> T + Send,
) -> T {
    let all = left().unwrap_or(0);
    let bar = std::io::stderr().is_terminal().then(|| {
        let style = indicatif::ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} ({eta})");
        let bar = indicatif::ProgressBar::new(all as u64).with_message(text.to_owned());
        bar.with_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()))
    });
    let mut told = 0;
    if bar.is_none() {
        eprintln!("{text}: {all} objects");
    }
    let tell = |told: &mut usize| {
        let Some(done) = left().map(|left| all.saturating_sub(left)) else { return };
        match &bar {
            Some(bar) => bar.set_position(done as u64),
            None if all > 0 && done * LINES / all > *told => {
                *told = done * LINES / all;
                eprintln!("{text}: {done} of {all}");
            }
            None => {}
        }
    };
    std::thread::scope(|scope| {
        let (ended, end) = std::sync::mpsc::channel::<()>();
        let worker = scope.spawn(move || {
            // Dropped at the end, also of a panic.
            let _ended = ended;
            work()
        });
        while end.recv_timeout(STEP) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            tell(&mut told);
        }
        if let Some(bar) = &bar {
            bar.finish_and_clear();
        }
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Bytes as hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
