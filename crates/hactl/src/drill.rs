//! `hactl drill`: failover practised under load, on a throw-away group of SoftHSM tokens.

use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use ha_core::seam::{System, World};
use ha_drills::measure::Figures;
use ha_drills::plan::Scenario;
use ha_drills::record::Record;
use ha_drills::verdict::shown;
use ha_drills::{Drill, DrillError, Handle, Options, Tick, Told, report};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::context::{BadNews, Context};
use crate::{Answer, output};

/// Exit status of a drill that was interrupted.
pub(crate) const INTERRUPTED: u8 = 130;

/// What is drilled, and how.
#[derive(Args)]
pub(crate) struct Arguments {
    /// kill, hang, flap, restart-rolling, lose-token, all-down, or all of them one after the other.
    scenario: String,
    /// On a throw-away group of 2 to 4 SoftHSM tokens (2 where no number is said), each behind a p11-kit server of its own.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u8).range(2..=4))]
    softhsm: Option<u8>,
    /// How long each scenario lasts, waiting for members not counted.
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// How many threads sign and verify.
    #[arg(long, value_name = "T", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Decides who goes first and when, and what is signed; without it one is drawn.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How long a call waits for one member: a duration as in the configuration, or off.
    #[arg(long, value_name = "D", default_value = "1s", value_parser = deadline)]
    deadline: Deadline,
    /// Writes the figures and charts as one HTML file.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

/// A deadline; `None` is "off".
#[derive(Clone, Copy)]
struct Deadline(Option<Duration>);

fn deadline(text: &str) -> Result<Deadline, String> {
    if text == "off" {
        return Ok(Deadline(None));
    }
    let unit = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let number = number.parse::<u32>().ok().filter(|n| *n > 0).map(u64::from);
    let time = match (number, unit) {
        (Some(n), "ms") => Duration::from_millis(n),
        (Some(n), "s") => Duration::from_secs(n),
        (Some(n), "m") => Duration::from_secs(n * 60),
        _ => Duration::MAX,
    };
    if time <= Duration::from_secs(3600) {
        Ok(Deadline(Some(time)))
    } else {
        Err("expected a duration such as 300ms, 10s or 2m (at most an hour), or off".into())
    }
}

/// Plays a scenario. Bad news: an operation that failed where none should, a wrong answer, a member that does not come back.
///
/// # Errors
/// The command line; tokens or servers that cannot be had.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result<Answer> {
    let scenario: Scenario = arguments.scenario.parse()?;
    let Some(members) = arguments.softhsm else {
        bail!(
            "a drill against a configured group is not there yet: say --softhsm N for a throw-away group of N tokens (2 to 4)"
        );
    };
    if let Some(path) = &arguments.report {
        may_be_written(path)?;
    }
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => drawn()?,
    };
    let drill = Drill::new(Options {
        scenario,
        members: members.into(),
        length: Duration::from_secs(arguments.seconds.into()),
        threads: arguments.threads.into(),
        seed,
        deadline: arguments.deadline.0,
    });
    end_on_interruption(drill.handle())?;
    let shower = Shower::new();
    shower.line(None, &format!("drill {scenario}, seed {seed}"));
    let played = drill.run(&mut |told| shower.show(told));
    shower.end();
    let record = match played {
        Ok(record) => record,
        Err(DrillError::Interrupted) => {
            eprintln!("hactl: {}", DrillError::Interrupted);
            if context.json {
                output::json(&json!({"schema": 1, "error": DrillError::Interrupted.to_string()}))?;
            }
            return Ok(Answer::Interrupted);
        }
        // A group that cannot be used is news of the group; the rest is the machine's to mend.
        Err(error @ (DrillError::Call(..) | DrillError::NotUp(_))) => {
            return Err(BadNews(error.to_string()).into());
        }
        Err(error) => return Err(error.into()),
    };
    if context.json {
        output::json(&record.document())?;
    } else {
        print!("{}", text(&record));
    }
    // After the figures, which are not to be lost where it cannot be written any more.
    let is_reported = match &arguments.report {
        Some(path) => write_report(path, &record),
        None => true,
    };
    Ok(match (record.interrupted, record.is_well() && is_reported) {
        (true, _) => Answer::Interrupted,
        (false, true) => Answer::Well,
        (false, false) => Answer::BadNews,
    })
}

/// Found out before an hour's drill, not after it. What is there already is left as it is.
fn may_be_written(path: &Path) -> Result<()> {
    let is_new = !path.exists();
    let words = || format!("--report {}: it cannot be written", path.display());
    OpenOptions::new().create(true).append(true).open(path).with_context(words)?;
    if is_new {
        std::fs::remove_file(path).with_context(words)?;
    }
    Ok(())
}

fn write_report(path: &Path, record: &Record) -> bool {
    let written =
        report::html(record).map_err(anyhow::Error::from).and_then(|page| Ok(std::fs::write(path, page)?));
    match &written {
        Ok(()) => eprintln!("the report is {}", path.display()),
        Err(error) => eprintln!("hactl: --report {}: {error:#}", path.display()),
    }
    written.is_ok()
}

/// Short enough to be typed again.
fn drawn() -> Result<u64> {
    let mut bytes = [0; 4];
    System::new().random(&mut bytes).map_err(|error| anyhow!("no random numbers: {error}"))?;
    Ok(u32::from_ne_bytes(bytes).into())
}

fn end_on_interruption(handle: Handle) -> Result<()> {
    ctrlc::set_handler(move || {
        if handle.interrupt() {
            std::process::exit(INTERRUPTED.into());
        }
        eprintln!("the drill ends with the figures so far; interrupt it once more to end it at once");
    })
    .context("an interruption could not remove what a drill makes")
}

/// Shows what goes on, on standard error: a bar on a terminal, plain lines elsewhere.
struct Shower {
    bar: Option<ProgressBar>,
}

impl Shower {
    fn new() -> Shower {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(1);
            if let Ok(style) = ProgressStyle::with_template("{elapsed} {bar:30} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Shower { bar }
    }

    fn line(&self, at: Option<Duration>, text: &str) {
        let text = match at {
            Some(at) => format!("{:7.2} s  {text}", at.as_secs_f64()),
            None => text.to_owned(),
        };
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    fn show(&self, told: Told) {
        match (told, &self.bar) {
            (Told::Line(at, text), _) => self.line(at, &text),
            (Told::Tick(tick), Some(bar)) => {
                bar.set_length(tick.about.as_millis() as u64);
                bar.set_position(tick.at.min(tick.about).as_millis() as u64);
                bar.set_message(state(&tick));
            }
            (Told::Tick(_), None) => {}
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn state(tick: &Tick) -> String {
    let mut text = format!("{}: {} operations, {}/s", tick.scenario, tick.count.done, tick.per_second);
    if tick.count.failed > 0 {
        text.push_str(&format!(", {} failed", tick.count.failed));
    }
    if tick.count.wrong > 0 {
        text.push_str(&format!(", {} WRONG", tick.count.wrong));
    }
    if !tick.away.is_empty() {
        text.push_str(&format!(", not used: {}", tick.away.join(" ")));
    }
    text
}

fn text(record: &Record) -> String {
    let mut table = output::table(&[
        "scenario",
        "operations",
        "failed",
        "wrong",
        "expected",
        "p50",
        "p99",
        "p99.9",
        "max",
        "failover",
        "recovery",
    ]);
    let each = record.by_scenario();
    each.iter().for_each(|figures| _ = table.add_row(row(figures)));
    if each.len() > 1 {
        table.add_row(row(&record.figures()));
    }
    let served: Vec<_> = record.served().iter().map(|(name, count)| format!("{name} {count}")).collect();
    format!("{table}\nserved: {}\n{}\n", served.join(", "), record.verdict())
}

fn row(figures: &Figures) -> Vec<String> {
    let time = |time: Option<Duration>| time.map(shown).unwrap_or_default();
    let us = |us: u64| shown(Duration::from_micros(us));
    vec![
        figures.scenario.to_string(),
        figures.operations.to_string(),
        figures.failed.to_string(),
        figures.wrong.to_string(),
        figures.expected.to_string(),
        us(figures.percentile(50.0)),
        us(figures.percentile(99.0)),
        us(figures.percentile(99.9)),
        us(figures.latencies.max()),
        time(figures.failover),
        time(figures.recovery),
    ]
}
