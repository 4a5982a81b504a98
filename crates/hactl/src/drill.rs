//! `hactl drill`: failover practised under load, on the configured group or on a throw-away one of SoftHSM tokens.

use std::fs::OpenOptions;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use ha_core::config;
use ha_core::seam::{System, World};
use ha_drills::plan::Scenario;
use ha_drills::record::Record;
use ha_drills::tally::Figures;
use ha_drills::verdict::shown;
use ha_drills::{Configured, Drill, DrillError, Handle, Interruption, Options, Tick, Told, report};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::context::Context;
use crate::{Answer, output};

/// Exit status of a drill that was interrupted.
pub(crate) const INTERRUPTED: u8 = 130;

/// How long a call waits for a member of a throw-away group, where nothing else is said.
const DEADLINE: Duration = Duration::from_secs(1);

/// How long a member is waited for that was mended.
const COMING_BACK: Duration = Duration::from_secs(60);

/// What is drilled, and how.
#[derive(Args)]
pub(crate) struct Arguments {
    /// kill, hang, flap, restart-rolling, lose-token, slow, full-disk, wrong-answers, wrong-pin, all-down, or all of them one after the other.
    scenario: String,
    /// On a throw-away group of 2 to 4 SoftHSM tokens (2 where no number is said), each behind a p11-kit server of its own; without this on the configured group.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u8).range(2..=4))]
    softhsm: Option<u8>,
    /// Which configured group, where there are several.
    #[arg(long, value_name = "LABEL", conflicts_with = "softhsm")]
    group: Option<String>,
    /// Plays on the configured group also what may leave something there: lose-token, full-disk, wrong-answers, wrong-pin, all.
    #[arg(long, conflicts_with = "softhsm")]
    i_know: bool,
    /// How long each scenario lasts, waiting for members not counted.
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// How many threads sign and verify.
    #[arg(long, value_name = "T", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Decides who goes first and when, and what is signed; without it one is drawn.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How long a call waits for a member of a throw-away group: a duration as in the configuration (1s), or off.
    #[arg(long, value_name = "D", requires = "softhsm", value_parser = deadline)]
    deadline: Option<Deadline>,
    /// Writes the figures and charts as one HTML file.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

/// A deadline; `None` is "off".
#[derive(Clone, Copy)]
struct Deadline(Option<Duration>);

fn deadline(text: &str) -> Result<Deadline, String> {
    config::duration(text).map(Deadline).ok_or_else(|| format!("expected {}", config::DURATION))
}

/// Plays a scenario. Bad news: an operation that failed where none should, a wrong answer, a member that does not come back.
///
/// # Errors
/// The command line; tokens or servers that cannot be had.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result<Answer> {
    let scenario: Scenario = arguments.scenario.parse()?;
    if let Some(path) = &arguments.report {
        may_be_written(path)?;
    }
    if arguments.softhsm.is_none() && scenario.is_destructive() && !arguments.i_know {
        bail!(
            "{scenario} may leave something on the configured group where it is killed (see docs/drills.md): say --i-know to play it all the same, or --softhsm N for a throw-away group of N tokens"
        );
    }
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => drawn()?,
    };
    let options = Options {
        scenario,
        members: arguments.softhsm.unwrap_or(0).into(),
        length: Duration::from_secs(arguments.seconds.into()),
        threads: arguments.threads.into(),
        seed,
        deadline: arguments.deadline.map_or(Some(DEADLINE), |Deadline(deadline)| deadline),
        patience: COMING_BACK,
    };
    let drill = match arguments.softhsm {
        Some(_) => Drill::new(options),
        None => {
            let config = context.load()?;
            let pin = context.pin()?;
            Drill::on(Configured::new(config, arguments.group.as_deref(), pin)?, options)?
        }
    };
    end_on_interruption(drill.handle())?;
    let mut shower = Shower::new();
    shower.line(None, &format!("drill {scenario}, seed {seed}"));
    let played = drill.run(&mut |told| shower.show(told));
    shower.end();
    let record = match played {
        Ok(record) => record,
        Err(DrillError::Interrupted) => {
            tell(&format!("hactl: {}", DrillError::Interrupted));
            if context.json {
                output::json(&json!({"schema": 1, "error": DrillError::Interrupted.to_string()}))?;
            }
            return Ok(Answer::Interrupted);
        }
        // There was no drill, and so is no news of it: what is in its way is to be mended first.
        Err(error) => return Err(error.into()),
    };
    let shown = if context.json {
        output::json(&record.document())
    } else {
        std::io::stdout().lock().write_all(text(&record).as_bytes()).map_err(anyhow::Error::from)
    };
    // After the figures, which are not to be lost where it cannot be written any more; and also where nobody reads those.
    let is_reported = match &arguments.report {
        Some(path) => write_report(path, &record),
        None => true,
    };
    shown.context("the figures cannot be written")?;
    Ok(match (record.interrupted, record.is_well() && is_reported) {
        (true, _) => Answer::Interrupted,
        (false, true) => Answer::Well,
        (false, false) => Answer::BadNews,
    })
}

/// Found out before an hour's drill, not after it. What is there already is left as it is.
fn may_be_written(path: &Path) -> Result<()> {
    // A link that leads to nothing is there, too.
    let is_new = std::fs::symlink_metadata(path).is_err();
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
        Ok(()) => tell(&format!("the report is {}", path.display())),
        Err(error) => tell(&format!("hactl: --report {}: {error:#}", path.display())),
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
    ctrlc::set_handler(move || match handle.interrupt() {
        Interruption::Ends => {
            tell("the drill ends with the figures so far; interrupt it once more to end it at once");
        }
        Interruption::Hurries => tell(
            "only the drill's own objects are still removed; interrupt it once more to leave them to the next drill",
        ),
        // Not by the process's own end: what modules do there crashes the threads that are in them.
        Interruption::Ended => signal_hook::low_level::exit(INTERRUPTED.into()),
    })
    .context("an interruption could not remove what a drill makes")
}

/// Says a line on standard error. Whoever read that may have been interrupted with the drill: it goes on without.
fn tell(line: &str) {
    _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// So often it is said how it is going, where there is no bar.
const WORD: Duration = Duration::from_secs(10);

/// Shows what goes on, on standard error: a bar on a terminal, plain lines elsewhere.
struct Shower {
    bar: Option<ProgressBar>,
    /// When it was last said how it is going.
    told: Duration,
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
        Shower { bar, told: Duration::ZERO }
    }

    fn line(&self, at: Option<Duration>, text: &str) {
        let text = match at {
            Some(at) => format!("{:7.2} s  {text}", at.as_secs_f64()),
            None => text.to_owned(),
        };
        match &self.bar {
            Some(bar) => bar.println(text),
            None => tell(&text),
        }
    }

    fn show(&mut self, told: Told) {
        match (told, &self.bar) {
            (Told::Line(at, text), _) => self.line(at, &text),
            (Told::Tick(tick), Some(bar)) => {
                bar.set_length(tick.about.as_millis() as u64);
                bar.set_position(tick.at.min(tick.about).as_millis() as u64);
                bar.set_message(state(&tick));
            }
            (Told::Tick(tick), None) if tick.at.saturating_sub(self.told) >= WORD => {
                self.told = tick.at;
                self.line(Some(tick.at), &state(&tick));
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
    for member in &tick.members {
        let (name, is_up) = (&member.name, if member.is_up { "" } else { " not used" });
        let round_trip = member.round_trip.map(|time| format!(" {}", shown(time))).unwrap_or_default();
        text.push_str(&format!("; {name}{is_up} {}/s{round_trip}", member.per_second));
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
    let held = record.held().map(|course| format!("held: {}\n", course.words())).unwrap_or_default();
    format!("{table}\nserved: {}\n{held}{}\n", served.join(", "), record.verdict())
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
