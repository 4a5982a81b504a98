//! The programs from outside: started, told what to do, killed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// No call takes so long: one that does hangs.
const HANGS: Duration = Duration::from_secs(180);

/// A program that runs.
pub(crate) struct Running {
    child: Child,
    /// `None` once it is to end.
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
    told: Arc<Told>,
}

/// What all programs were told, and what came of it, with the time since the start.
pub(crate) struct Told {
    since: Instant,
    lines: Mutex<Vec<String>>,
}

impl Told {
    pub(crate) fn new() -> Arc<Told> {
        Arc::new(Told { since: Instant::now(), lines: Mutex::default() })
    }

    fn note(&self, pid: u32, what: &str) {
        let line = format!("{:?} {pid} {what}", self.since.elapsed());
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// All of it, a line each.
    pub(crate) fn all(&self) -> String {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }
}

/// What came of a line.
pub(crate) enum Answer {
    /// It was done, with this.
    Ok(Vec<u8>),
    /// It was killed before it could answer.
    Killed,
}

impl Running {
    /// Starts one. It is not ready yet.
    pub(crate) fn start(config: &Path, told: &Arc<Told>) -> Result<Running> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--program")
            .arg(config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().context("no way from it")?);
        Ok(Running { child, to, from, told: Arc::clone(told) })
    }

    /// Waits until it has logged in.
    pub(crate) fn ready(&mut self) -> Result<()> {
        match self.line()? {
            Some(line) if line == "ready" => Ok(()),
            Some(other) => bail!("a program begins with {other:?}"),
            None => bail!("a program ended while it started"),
        }
    }

    /// Has it do something, and kills it after so long.
    pub(crate) fn tell(&mut self, line: &str, killed: Option<Duration>) -> Result<Answer> {
        let pid = self.child.id();
        self.told.note(pid, line);
        let to = self.to.as_mut().context("no way to it")?;
        to.write_all(format!("{line}\n").as_bytes()).context("a program has ended by itself")?;
        self.kill_after(killed)?;
        let answer = self.line()?;
        let came = answer.as_deref().map_or("-", |a| a.split(' ').next().unwrap_or(a));
        self.told.note(pid, &format!("{line}: {came}{}", if killed.is_some() { ", killed" } else { "" }));
        match answer.as_deref() {
            None if killed.is_some() => Ok(Answer::Killed),
            None => bail!("a program ended while it was to {line}"),
            Some(answer) => match answer.split_once(' ') {
                Some(("ok", digits)) => Ok(Answer::Ok(bytes(digits))),
                _ => bail!("{line}: {answer}"),
            },
        }
    }

    /// Lets it end by itself.
    pub(crate) fn end(mut self) -> Result<()> {
        drop(self.to.take());
        let status = self.child.wait()?;
        if !status.success() {
            bail!("a program ended with {status}");
        }
        Ok(())
    }

    fn kill_after(&mut self, killed: Option<Duration>) -> Result<()> {
        if let Some(after) = killed {
            std::thread::sleep(after);
            self.child.kill()?;
            self.child.wait()?;
        }
        Ok(())
    }

    /// The next line that it wrote whole; `None` when it has ended.
    fn line(&mut self) -> Result<Option<String>> {
        if self.from.buffer().is_empty() {
            let patience = Timespec { tv_sec: HANGS.as_secs() as _, tv_nsec: 0 };
            let mut there = [PollFd::new(self.from.get_ref(), PollFlags::IN)];
            if poll(&mut there, Some(&patience))? == 0 {
                bail!("a program hangs: process {}", self.child.id());
            }
        }
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        Ok(line.strip_suffix('\n').map(str::to_owned))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn bytes(digits: &str) -> Vec<u8> {
    digits.as_bytes().chunks(2).filter_map(|c| u8::from_str_radix(str::from_utf8(c).ok()?, 16).ok()).collect()
}
