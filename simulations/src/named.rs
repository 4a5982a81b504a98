//! The configuration that the processes of a history have: which members it names now.

use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ha_core::config::{Config, ConfigError, MemberConfig};
use ha_core::group::{ConfigSource, News};
use ha_token::Connector;

use crate::member::LineConnector;
use crate::plan::Plan;
use crate::stage::Stage;

/// The configuration that a plan is played under, its state in `dir`: without one of its members, perhaps.
///
/// # Errors
/// Where the plan asks for what no group can have.
pub(crate) fn config(plan: &Plan, dir: &Path, without: Option<usize>) -> Result<Config, ConfigError> {
    let deadline = plan.deadline.map_or_else(|| "off".to_owned(), |d| format!("{}ms", d.as_millis()));
    let mut text = format!(
        "state_dir = {:?}\n[[group]]\nlabel = \"ha1\"\ndeadline = {deadline:?}\nbalance = {:?}\nmin_copies = {}\n\
         verify_signatures = {}\nsession_objects = {:?}\n[group.recovery]\ninterval = \"1s\"\nmax_interval = \"5s\"\n",
        dir.join("state"),
        plan.balance,
        plan.min_copies,
        plan.verify,
        if plan.replay { "replay" } else { "local" }
    );
    for i in (0..plan.members).filter(|i| Some(*i) != without) {
        text +=
            &format!("[[group.member]]\nname = \"m{i}\"\nmodule = \"/simulated\"\ntoken = \"member-{i}\"\n");
    }
    Config::parse(&text)
}

/// The way to a member's token, in a process: by a copy of the module of its own.
pub(crate) fn connector(stage: &Stage, member: usize, process: u32, copy: u32) -> Box<dyn Connector> {
    let (line, real) = (stage.lines[member].clone(), stage.devices[member].copy_of(process, copy));
    Box::new(LineConnector { line, real, process, attempt: AtomicU64::new(0) })
}

/// The configuration as one process sees it change.
pub(crate) struct Source {
    stage: Weak<Stage>,
    dir: PathBuf,
    process: u32,
    /// How often it had changed when it was last looked at.
    seen: AtomicU64,
    /// Ways to members that it was asked for.
    copies: AtomicU32,
}

impl Source {
    /// What the process has read so far is `seen`.
    pub(crate) fn new(stage: Weak<Stage>, dir: &Path, process: u32, seen: u64) -> Self {
        Source { stage, dir: dir.to_owned(), process, seen: AtomicU64::new(seen), copies: AtomicU32::new(0) }
    }
}

impl ConfigSource for Source {
    fn news(&self) -> Option<News> {
        let stage = self.stage.upgrade()?;
        let (changes, without) = stage.named();
        if self.seen.swap(changes, Ordering::Relaxed) == changes {
            return None;
        }
        let config = config(&stage.plan, &self.dir, without).ok()?;
        Some(News { digest: changes.to_string(), group: config.groups.into_iter().next() })
    }

    fn connector(&self, member: &MemberConfig) -> Box<dyn Connector> {
        let stage = self.stage.upgrade().expect("a process looks at it while its history goes on");
        let number = member.name.trim_start_matches('m').parse().expect("members are numbered");
        connector(&stage, number, self.process, self.copies.fetch_add(1, Ordering::Relaxed) + 1)
    }
}
