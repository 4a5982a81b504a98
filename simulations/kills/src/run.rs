//! Rounds: programs work and are killed; then all of them end, a new one starts, and the tokens are compared with what was
//! acknowledged.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ha_rig::Tokens;
use indicatif::{ProgressBar, ProgressStyle};

use crate::bare;
use crate::noted::{Kind, Noted, State, Thing, fits};
use crate::pen::{Answer, Running, Told};

/// What is asked for.
pub(crate) struct Options {
    pub(crate) kills: u64,
    pub(crate) programs: usize,
    pub(crate) copies: bool,
    pub(crate) seed: u64,
}

/// Kills in a round, for each program.
const ROUND: u64 = 6;
/// A program dies within this time of being told something.
const AT_MOST: Duration = Duration::from_millis(60);
/// All must be settled after this.
const REST: Duration = Duration::from_secs(120);
/// The pause between two looks at the tokens.
const PAUSE: Duration = Duration::from_millis(100);
/// More than this are not made any more.
const FULL: usize = 150;

struct Run<'a> {
    tokens: &'a Tokens,
    config: &'a Path,
    copies: bool,
    noted: Mutex<Noted>,
    made: AtomicU64,
    calls: AtomicU64,
    told: Arc<Told>,
}

/// Kills so many, and compares after each round.
pub(crate) fn run(options: &Options) -> Result<()> {
    let tokens = Tokens::try_in(tempfile::tempdir()?, 2)?;
    let config = tokens.write_config(&tokens.config(false, ""));
    let run = Run {
        tokens: &tokens,
        config: &config,
        copies: options.copies,
        noted: Mutex::default(),
        made: AtomicU64::new(0),
        calls: AtomicU64::new(0),
        told: Told::new(),
    };
    println!("kills {} of {} programs, seed {}", options.kills, options.programs, options.seed);
    let bar = ProgressBar::new(options.kills)
        .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} kills, {msg}")?);
    let mut random = fastrand::Rng::with_seed(options.seed);
    let mut done = 0;
    while done < options.kills {
        let round = options.kills.saturating_sub(done).min(ROUND * options.programs as u64);
        let of_each = round.div_ceil(options.programs as u64);
        let outcome = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..options.programs)
                .map(|_| {
                    let mut random = random.fork();
                    let run = &run;
                    scope.spawn(move || run.work(&mut random, of_each))
                })
                .collect();
            let ends = threads.into_iter().map(|t| t.join().unwrap_or_else(|_| bail!("a thread panicked")));
            ends.collect::<Vec<_>>().into_iter().collect::<Result<()>>()
        });
        done += of_each * options.programs as u64;
        bar.set_position(done.min(options.kills));
        let outcome = outcome.and_then(|()| run.rest());
        if let Err(error) = outcome {
            let kept = keep(&tokens, &run.told);
            return Err(
                error.context(format!("after {done} kills, seed {}; all of it is in {kept}", options.seed))
            );
        }
        let things = run.noted().things.len();
        let calls = run.calls.load(Ordering::Relaxed);
        bar.set_message(format!("{things} labels, {calls} calls"));
        if bar.is_hidden() && done % (10 * round) == 0 {
            println!("{done} of {} kills, {things} labels, {calls} calls", options.kills);
        }
    }
    bar.finish();
    let noted = run.noted();
    let there = noted.things.values().filter(|t| t.state == State::There).count();
    println!(
        "{done} kills, {} calls: {} labels were made or may have been, {there} of them are there; nothing was lost, nothing came back, nothing is left over",
        run.calls.load(Ordering::Relaxed),
        noted.things.len(),
    );
    Ok(())
}

/// Leaves the tokens, the ledger and what the programs were told where they can be looked at.
fn keep(tokens: &Tokens, told: &Told) -> String {
    let place = std::env::temp_dir().join(format!("kills-{}", std::process::id()));
    let copied = std::process::Command::new("cp").arg("-a").arg(tokens.path()).arg(&place).status();
    if copied.is_ok_and(|s| s.success()) && std::fs::write(place.join("told"), told.all()).is_ok() {
        place.display().to_string()
    } else {
        "no place: it cannot be copied".into()
    }
}

impl Run<'_> {
    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One program after the other works, and is killed.
    fn work(&self, random: &mut fastrand::Rng, kills: u64) -> Result<()> {
        let mut done = 0;
        while done < kills {
            let mut running = Running::start(self.config, &self.told)?;
            // Not before it is logged in: SoftHSM writes the token's own file anew at each login, and who is killed at that
            // leaves no token.
            running.ready()?;
            loop {
                let killed = (random.u8(..4) == 0).then(|| AT_MOST.mul_f64(random.f64()));
                self.step(&mut running, random, killed)?;
                if killed.is_some() {
                    done += 1;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Has a program do something, and notes what came of it.
    fn step(
        &self,
        running: &mut Running,
        random: &mut fastrand::Rng,
        killed: Option<Duration>,
    ) -> Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let there =
            |kinds: &'static [Kind]| move |t: &Thing| t.state == State::There && kinds.contains(&t.kind);
        const ALL: &[Kind] = &[Kind::Pair, Kind::Secret, Kind::Data];
        let many = self.noted().free(there(ALL)).len();
        match random.u8(..16) {
            0..=4 if many < FULL => self.make(running, random, killed),
            0..=7 => match self.take(random, there(ALL)) {
                Some((label, thing)) => self.destroy(running, &label, thing, killed),
                None => self.make(running, random, killed),
            },
            8..=9 if self.copies => match self.take(random, there(&[Kind::Secret, Kind::Data])) {
                Some((label, thing)) => self.copy(running, &label, thing, killed),
                None => self.make(running, random, killed),
            },
            8..=11 => match self.take(random, there(&[Kind::Secret, Kind::Data])) {
                Some((label, thing)) => self.name(running, &label, thing, killed),
                None => self.make(running, random, killed),
            },
            12..=13 => match self.take(random, there(ALL)) {
                Some((label, thing)) => {
                    let answer = running.tell(&format!("use {label}"), killed)?;
                    if let Answer::Ok(answer) = answer
                        && !fits(thing.kind, &thing.answer, &answer)
                    {
                        bail!("{label} answers otherwise than it did");
                    }
                    self.put(label, thing);
                    Ok(())
                }
                None => self.make(running, random, killed),
            },
            _ => match self.take(random, |t| matches!(t.state, State::There | State::Gone)) {
                Some((label, thing)) => {
                    let expected = match (&thing.state, thing.kind) {
                        (State::Gone, _) => 0,
                        (_, Kind::Pair) => 2,
                        _ => 1,
                    };
                    if let Answer::Ok(count) = running.tell(&format!("count {label}"), killed)?
                        && count != [expected]
                    {
                        bail!("{count:?} objects of {label} are found, and not {expected}");
                    }
                    self.put(label, thing);
                    Ok(())
                }
                None => self.make(running, random, killed),
            },
        }
    }

    fn label(&self) -> String {
        format!("l{}", self.made.fetch_add(1, Ordering::Relaxed))
    }

    /// One that nobody is at, for this program alone.
    fn take(&self, random: &mut fastrand::Rng, wanted: impl Fn(&Thing) -> bool) -> Option<(String, Thing)> {
        let mut noted = self.noted();
        let label = random.choice(noted.free(wanted))?;
        let thing = noted.things.get_mut(&label)?;
        thing.busy = true;
        Some((label, thing.clone()))
    }

    fn put(&self, label: String, thing: Thing) {
        self.noted().things.insert(label, Thing { busy: false, ..thing });
    }

    fn make(
        &self,
        running: &mut Running,
        random: &mut fastrand::Rng,
        killed: Option<Duration>,
    ) -> Result<()> {
        let (kind, verb) = match random.u8(..3) {
            0 => (Kind::Pair, "pair"),
            1 => (Kind::Secret, "secret"),
            _ => (Kind::Data, "data"),
        };
        let label = self.label();
        let new = |state, answer| Thing { kind, state, answer, busy: false, counted: false };
        self.put(label.clone(), Thing { busy: true, ..new(State::Made, Vec::new()) });
        let thing = match running.tell(&format!("{verb} {label}"), killed)? {
            Answer::Ok(answer) => new(State::There, answer),
            Answer::Killed => new(State::Made, Vec::new()),
        };
        self.put(label, thing);
        Ok(())
    }

    fn destroy(
        &self,
        running: &mut Running,
        label: &str,
        thing: Thing,
        killed: Option<Duration>,
    ) -> Result<()> {
        let state = match running.tell(&format!("destroy {label}"), killed)? {
            Answer::Ok(_) => State::Gone,
            Answer::Killed => State::Destroyed,
        };
        self.put(label.to_owned(), Thing { state, ..thing });
        Ok(())
    }

    fn copy(&self, running: &mut Running, label: &str, thing: Thing, killed: Option<Duration>) -> Result<()> {
        let new = self.label();
        self.put(new.clone(), Thing { state: State::Made, ..thing.clone() });
        let state = match running.tell(&format!("copy {label} {new}"), killed)? {
            Answer::Ok(_) => State::There,
            Answer::Killed => State::Made,
        };
        self.put(new, Thing { state, ..thing.clone() });
        self.put(label.to_owned(), thing);
        Ok(())
    }

    fn name(&self, running: &mut Running, label: &str, thing: Thing, killed: Option<Duration>) -> Result<()> {
        let new = self.label();
        self.put(new.clone(), Thing { state: State::Named(label.to_owned()), ..thing.clone() });
        let (old_state, new_state) = match running.tell(&format!("name {label} {new}"), killed)? {
            Answer::Ok(_) => (State::Gone, State::There),
            Answer::Killed => (State::Named(new.clone()), State::Named(label.to_owned())),
        };
        self.put(new, Thing { state: new_state, ..thing.clone() });
        self.put(label.to_owned(), Thing { state: old_state, ..thing });
        Ok(())
    }

    /// A new program starts, and everything comes to rest by itself.
    fn rest(&self) -> Result<()> {
        let mut running = Running::start(self.config, &self.told)?;
        running.ready()?;
        let until = Instant::now() + REST;
        loop {
            let tokens: Vec<_> =
                (0..self.tokens.count()).map(|i| bare::shown(self.tokens, i)).collect::<Result<_>>()?;
            match self.noted().settle(&tokens) {
                Ok(()) => break,
                Err(error) if Instant::now() >= until => return Err(error),
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
        // What was half destroyed is the application's to destroy.
        let halves = self.noted().free(|t| t.state == State::Destroyed);
        for label in halves {
            running.tell(&format!("destroy {label}"), None)?;
            if let Some(thing) = self.noted().things.get_mut(&label) {
                thing.state = State::Gone;
            }
        }
        let labels: Vec<_> = {
            let mut noted = self.noted();
            let things = noted.things.iter_mut().filter(|(_, t)| !t.counted);
            things
                .map(|(l, t)| {
                    t.counted = t.state == State::Gone;
                    (l.clone(), t.clone())
                })
                .collect()
        };
        let mut all = 0;
        for (label, thing) in labels {
            let of_one = if thing.kind == Kind::Pair { 2 } else { 1 };
            let expected = if thing.state == State::There { of_one } else { 0 };
            all += usize::from(expected);
            match running.tell(&format!("count {label}"), None)? {
                Answer::Ok(count) if count == [expected] => {}
                Answer::Ok(count) => {
                    bail!("at rest {count:?} objects of {label} are found, and not {expected}")
                }
                Answer::Killed => bail!("it was not killed"),
            }
        }
        match running.tell("all", None)? {
            Answer::Ok(count) if count == all.to_string().into_bytes() => {}
            Answer::Ok(count) => {
                bail!("{} objects are found, and not {all}", String::from_utf8_lossy(&count))
            }
            Answer::Killed => bail!("it was not killed"),
        }
        running.tell("check", None).context("at rest")?;
        running.end()
    }
}
