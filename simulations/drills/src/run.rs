//! Conducts a drill: makes the group and the load, has the plan played, and removes everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ha_core::config::Config;
use ha_core::group::Group;
use ha_core::provider::{Provider, StartError, connector};
use ha_core::seam::System;
use ha_rig::{Hooked, PIN};
use ha_token::{Connector, Rv, SessionHandle, Token, UserType};

use crate::configured::{Configured, Own, words};
use crate::ground::Ground;
use crate::held::Held;
use crate::listener::Listener;
use crate::load::{self, Count, Keys, Load};
use crate::objects::{LARGE, Objects, SMALL};
use crate::plan::{Scenario, Settings, plan};
use crate::record::{Record, Sample};
use crate::rig::Rig;
use crate::seam::Seam;
use crate::stage::Stage;

/// How often it is looked whether something has come about.
pub(crate) const LOOK: Duration = Duration::from_millis(10);
/// How long every member is waited for before the drill.
pub(crate) const COMING_UP: Duration = Duration::from_secs(60);
/// How long calls in flight are waited for at the end, besides the deadlines.
pub(crate) const ENDING: Duration = Duration::from_secs(15);
/// Members are probed soon here: a drill is short.
const RECOVERY: &str = "[group.recovery]\ninterval = \"200ms\"\nmax_interval = \"2s\"";

/// What is drilled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// What goes wrong.
    pub scenario: Scenario,
    /// How many tokens.
    pub members: usize,
    /// How long each scenario is to last.
    pub length: Duration,
    /// How many threads ask.
    pub threads: usize,
    /// Of the plan and the load.
    pub seed: u64,
    /// How long a call waits for one member; `None`: as long as it takes.
    pub deadline: Option<Duration>,
    /// How long a member is waited for that was mended.
    pub patience: Duration,
}

/// What is told while it goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// Something happened; when, if the load has begun.
    Line(Option<Duration>, String),
    /// How it is going.
    Tick(Tick),
}

/// How it is going.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tick {
    /// How long the load has lasted.
    pub at: Duration,
    /// About how long it is going to.
    pub about: Duration,
    /// What is played.
    pub scenario: Scenario,
    /// What was done.
    pub count: Count,
    /// Operations a second, lately.
    pub per_second: u64,
    /// Each member.
    pub members: Vec<Pulse>,
}

/// How a member is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pulse {
    /// Its name.
    pub name: String,
    /// Whether it is used.
    pub is_up: bool,
    /// Operations that it was asked for a second, lately.
    pub per_second: u64,
    /// How long its last probe took.
    pub round_trip: Option<Duration>,
}

/// Why there was no drill.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DrillError {
    /// Tokens or servers.
    #[error("the tokens: {0}")]
    Rig(#[from] std::io::Error),
    /// The group.
    #[error("the group: {0}")]
    Group(#[from] StartError),
    /// The group's configuration.
    #[error("the group's configuration: {0}")]
    Config(#[from] ha_core::config::ConfigError),
    /// A call before the load.
    #[error("{0}: {1}")]
    Call(&'static str, Rv),
    /// Not every member is up, or nothing can be made on them.
    #[error("not every member is up before the drill: {0}")]
    Down(String),
    /// What is asked for cannot be drilled.
    #[error("{0}")]
    Refused(String),
    /// What earlier drills have left on the group.
    #[error("{0}")]
    Left(String),
    /// The load.
    #[error(transparent)]
    Load(#[from] load::StartError),
    /// Somebody ended it before the load began.
    #[error("interrupted before the load began")]
    Interrupted,
}

/// Ends a drill from elsewhere.
#[derive(Clone)]
pub struct Handle {
    ground: Arc<Ground>,
    /// How often it was to end.
    interrupted: Arc<AtomicUsize>,
}

/// What becomes of an interruption.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interruption {
    /// The drill ends with the figures so far.
    Ends,
    /// It waits for nothing any more but the removal of what it made on a configured group.
    Hurries,
    /// What could be removed here and now was: the process should end at once.
    Ended,
}

impl Handle {
    /// The drill is to end: the first time with the figures so far. The next time its servers and its folder are removed
    /// here and now; a drill of a configured group still removes its objects then, and ends at once the third time.
    pub fn interrupt(&self) -> Interruption {
        match self.interrupted.fetch_add(1, Ordering::Relaxed) + 1 {
            1 => Interruption::Ends,
            times if times < self.ground.patience() => Interruption::Hurries,
            _ => {
                self.ground.remove();
                Interruption::Ended
            }
        }
    }
}

/// A drill.
pub struct Drill {
    pub(crate) options: Options,
    configured: Option<Configured>,
    handle: Handle,
}

impl Drill {
    /// One that has not begun, on a throw-away group.
    pub fn new(options: Options) -> Self {
        Drill::of(options, None, Ground::Own(Rig::default()))
    }

    /// One that has not begun, on a configured group, which says itself how many members it has and how long calls wait for
    /// them.
    ///
    /// # Errors
    /// [`DrillError::Refused`]: the scenario cannot be played there.
    pub fn on(configured: Configured, options: Options) -> Result<Self, DrillError> {
        configured.suits(options.scenario)?;
        let members = configured.members();
        let patience = options.patience + configured.comes_back_within();
        let options = Options { members, deadline: configured.deadline(), patience, ..options };
        let seams = (0..members).map(|_| Seam::default()).collect();
        Ok(Drill::of(options, Some(configured), Ground::Configured(seams)))
    }

    fn of(options: Options, configured: Option<Configured>, ground: Ground) -> Self {
        Drill {
            options,
            configured,
            handle: Handle { ground: Arc::new(ground), interrupted: Arc::default() },
        }
    }

    /// What ends it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    pub(crate) fn ground(&self) -> &Ground {
        &self.handle.ground
    }

    fn interruptions(&self) -> usize {
        self.handle.interrupted.load(Ordering::Relaxed)
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        self.interruptions() > 0
    }

    /// Makes the group, plays the scenario, removes everything.
    ///
    /// # Errors
    /// There could be no drill. What went wrong in it is in the record.
    pub fn run(&self, tell: &mut dyn FnMut(Told)) -> Result<Record, DrillError> {
        let removed = Removed(self.ground());
        let record = match (&self.configured, self.ground()) {
            (Some(configured), Ground::Configured(seams)) => self.play_on(configured, seams, tell),
            (_, Ground::Own(rig)) => self.make_and_play(rig, tell),
            (None, Ground::Configured(_)) => Err(DrillError::Refused("no group".into())),
        };
        drop(removed);
        match record {
            // What was being made fails too where an interruption reaches it.
            Err(_) if self.is_interrupted() => Err(DrillError::Interrupted),
            other => other,
        }
    }

    /// Waits until there are none of these any more, for so long at most, and for no more interruptions than so many;
    /// answers those that there still are.
    fn await_none(&self, patience: Duration, but: usize, these: impl Fn() -> Vec<String>) -> Vec<String> {
        let until = Instant::now() + patience;
        loop {
            let left = these();
            if left.is_empty() || Instant::now() >= until || self.interruptions() > but {
                return left;
            }
            std::thread::sleep(LOOK * 10);
        }
    }

    fn go_on(&self) -> Result<(), DrillError> {
        if self.is_interrupted() { Err(DrillError::Interrupted) } else { Ok(()) }
    }

    fn make_and_play(&self, rig: &Rig, tell: &mut dyn FnMut(Told)) -> Result<Record, DrillError> {
        let options = &self.options;
        let mut line = |text: String| tell(Told::Line(None, text));
        line(format!("making {} SoftHSM tokens in a temporary folder", options.members));
        rig.make(options.members, room(options))?;
        self.go_on()?;
        line("making keys on them, directly".into());
        // p11-kit 0.24 carries no key wrapping to its server: keys are made first, then used through it.
        let direct = Open::new(&rig.config(false, "deadline = \"off\"")?)?;
        let keys =
            Keys::make(&*direct.slot, direct.session).map_err(|rv| DrillError::Call("making keys", rv))?;
        direct.provider.shutdown(ENDING);
        drop(direct);
        self.go_on()?;
        line(format!("starting {} p11-kit servers, and the group over them", options.members));
        for member in 0..options.members {
            rig.serve(member)?;
        }
        let deadline = options.deadline.map_or_else(|| "off".into(), |d| format!("{}ms", d.as_millis()));
        let verify = format!("verify_signatures = {}\n", options.scenario.verifies());
        let lines = format!("deadline = \"{deadline}\"\nmin_copies = 1\n{verify}{RECOVERY}");
        let served = Open::behind(&rig.config(true, &lines)?, &rig.seams(options.members))?;
        let keys = keys
            .found_on(&*served.slot, served.session)
            .map_err(|rv| DrillError::Call("looking for the keys", rv))?;
        served.await_members(self)?;
        let mut over = self.play(&served, keys, LARGE, tell)?;
        over.stop(&served);
        let config = Config::parse(&rig.config(false, "deadline = \"off\"")?)?;
        over.look_at_every_token(&connectors(&config), tell);
        Ok(over.record)
    }

    /// On a configured group, with keys of the drill's own.
    fn play_on(
        &self,
        configured: &Configured,
        seams: &[Seam],
        tell: &mut dyn FnMut(Told),
    ) -> Result<Record, DrillError> {
        let mut line = |text: String| tell(Told::Line(None, text));
        line(format!("looking at group {:?}", configured.label()));
        let lock = configured.look(&|| self.is_interrupted())?;
        self.go_on()?;
        let open = Open::of(configured.start(seams, self.options.scenario.verifies())?, configured.pin())?;
        open.await_members(self)?;
        let own = Own::new(&open.slot, open.session, lock);
        match own.remove().map_err(DrillError::Left)? {
            0 => {}
            count => line(format!("{count} objects of an earlier drill are removed")),
        }
        line("making keys of the drill's own".into());
        let keys = Keys::make(&*open.slot, open.session).map_err(|rv| DrillError::Call("making keys", rv))?;
        self.go_on()?;
        let mut over = self.play(&open, keys, SMALL, tell)?;
        let group = open.group()?;
        self.await_none(ENDING * 2, 1, || away(group));
        over.look_at_every_token(&connectors(configured.config()), tell);
        tell(Told::Line(None, "removing the drill's own objects".into()));
        over.record.left = own.end().err();
        // Also from a member that was away, or was found dead only with that.
        let late = self.await_none(ENDING * 2, 1, || behind(group));
        if !late.is_empty() {
            let words = "still to be brought up to date, and may hold objects of the drill until the group is used again";
            tell(Told::Line(None, format!("{}: {words}", late.join(", "))));
        }
        over.stop(&open);
        Ok(over.record)
    }

    /// Plays the plan, until the load has ended.
    fn play(
        &self,
        open: &Open,
        keys: Keys,
        size: usize,
        tell: &mut dyn FnMut(Told),
    ) -> Result<Over, DrillError> {
        let Options { scenario, members, length, threads, seed, deadline, .. } = self.options;
        let parts = plan(scenario, &Settings { members, length, deadline, seed });
        let began = Instant::now();
        let group = open.group()?;
        let listener = Listener::new(group, began)?;
        let load = Load::start(&open.slot, keys, threads, seed, size, began)?;
        tell(Told::Line(Some(Duration::ZERO), format!("{threads} threads sign and verify")));
        let names = group.members.iter().map(|m| m.name().to_owned()).collect();
        let label = self.configured.as_ref().map(|configured| configured.label().to_owned());
        let record = Record::new(&self.options, label, names);
        let mut stage = Stage::new(self, group, &load, &listener, tell, began, record);
        stage.play(&parts);
        let (mut record, before) = stage.end();
        let patience = deadline.map_or(Duration::ZERO, |d| d * (members as u32 + 1)) + ENDING;
        let (operations, hung, objects) = load.end(patience);
        let (served, held) = (served_since(&before, group), Held::now());
        record.samples.push(Sample { at: record.lasted, served, held });
        record.hung = hung;
        record.tally.add(operations);
        record.interrupted = self.is_interrupted();
        if !record.interrupted {
            // One that was restarted may have been found dead only now.
            self.await_none(self.options.patience, 0, || away(group));
            record.away = away(group);
        }
        Ok(Over { record, objects, listener })
    }
}

/// A drill whose load has ended.
struct Over {
    record: Record,
    objects: Objects,
    listener: Listener,
}

impl Over {
    /// Looks at every token by itself, for what must be there.
    fn look_at_every_token(&mut self, members: &[(String, Box<dyn Connector>)], tell: &mut dyn FnMut(Told)) {
        let record = &mut self.record;
        // What was cut short was not waited for until every member had everything.
        if self.objects.count() == 0 || record.interrupted || record.cut_short.is_some() {
            return;
        }
        record.kept = self.objects.count();
        record.astray = self.objects.compare(members);
        let words = match record.astray.len() {
            0 => "every token has what it must have".to_owned(),
            _ => record.astray.join(", "),
        };
        tell(Told::Line(None, words));
    }

    /// Stops the group.
    fn stop(&mut self, open: &Open) {
        let record = &mut self.record;
        let left = open.provider.shutdown(if record.interrupted { ENDING / 5 } else { ENDING });
        record.hung += if record.interrupted { 0 } else { left.len() };
        record.hear(self.listener.end());
        record.settle(Duration::MAX);
    }
}

/// A provider with these between its group and the group's members. Other processes of this host do not see what becomes of
/// them.
///
/// # Errors
/// It cannot be started.
pub(crate) fn provider_behind(config: Config, seams: &[Seam]) -> Result<Provider, DrillError> {
    let members = config.groups.iter().flat_map(|group| &group.members);
    let connectors = members.zip(seams).map(|(member, seam)| {
        Box::new(Hooked { real: connector(member), hook: seam.clone() }) as Box<dyn Connector>
    });
    let connectors = vec![connectors.collect()];
    Ok(Provider::with_members(config, System::new(), connectors)?)
}

/// The ways to the tokens of a configuration's members, with their names.
fn connectors(config: &Config) -> Vec<(String, Box<dyn Connector>)> {
    let members = config.groups.iter().flat_map(|group| &group.members);
    members.map(|m| (m.name.clone(), Box::new(connector(m)) as Box<dyn Connector>)).collect()
}

/// How much room the tokens of a throw-away group and its ledger take at most, in bytes. SoftHSM leaves what it could not
/// write whole.
fn room(options: &Options) -> u64 {
    const LEAST: u64 = 64 << 20;
    const FULL_SECOND: u64 = 1 << 20;
    LEAST + if options.scenario.writes() { options.length.as_secs() * FULL_SECOND } else { 0 }
}

/// What each member has served besides.
pub(crate) fn served_since(before: &[u64], group: &Group) -> Vec<u64> {
    group.served().iter().zip(before).map(|(now, before)| now - before).collect()
}

/// The members that are not used, or lack something that others have, or hold what was destroyed.
pub(crate) fn behind(group: &Group) -> Vec<String> {
    let done = group.sync(true).unwrap_or_default();
    let is_even = |name: &str| done.iter().any(|(own, left)| own == name && *left == Default::default());
    let members = group.members.iter().filter(|m| !m.is_up() || !is_even(m.name()));
    members.map(|m| m.name().to_owned()).collect()
}

/// The members that are not used.
pub(crate) fn away(group: &Group) -> Vec<String> {
    group.members.iter().filter(|m| !m.is_up()).map(|m| m.name().to_owned()).collect()
}

/// Removes everything, also when something panics.
struct Removed<'a>(&'a Ground);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0.remove() {
            eprintln!("{} could not be removed", path.display());
        }
    }
}

/// A slot with the user logged in.
struct Open {
    provider: Provider,
    slot: Arc<dyn Token>,
    session: SessionHandle,
}

impl Open {
    fn new(config: &str) -> Result<Open, DrillError> {
        Open::of(Provider::from_config(Config::parse(config)?)?, PIN.as_bytes())
    }

    /// With these between the group and its members.
    fn behind(config: &str, seams: &[Seam]) -> Result<Open, DrillError> {
        Open::of(provider_behind(Config::parse(config)?, seams)?, PIN.as_bytes())
    }

    fn of(provider: Provider, pin: &[u8]) -> Result<Open, DrillError> {
        let call = |what| move |rv| DrillError::Call(what, rv);
        let slot = Arc::clone(provider.slot(0).map_err(call("the slot"))?);
        let session = slot.open_session(true).map_err(call("opening a session"))?;
        slot.login(session, UserType::User, Some(pin)).map_err(call("the login"))?;
        Ok(Open { provider, slot, session })
    }

    fn group(&self) -> Result<&Arc<Group>, DrillError> {
        self.provider.groups().first().ok_or(DrillError::Call("the group", Rv::SLOT_ID_INVALID))
    }

    fn await_members(&self, drill: &Drill) -> Result<(), DrillError> {
        let group = self.group()?;
        let until = Instant::now() + COMING_UP;
        while let Some(member) = group.members.iter().find(|m| !m.is_up()) {
            drill.go_on()?;
            if Instant::now() > until {
                return Err(DrillError::Down(words(&member.status())));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::How;

    #[test]
    fn a_member_that_does_not_come_back_cuts_the_drill_short_and_the_figures_stay() {
        let drill = Drill::new(Options {
            scenario: Scenario::Hang,
            members: 2,
            length: Duration::from_secs(2),
            threads: 2,
            seed: 1,
            deadline: Some(Duration::from_millis(300)),
            patience: Duration::from_secs(2),
        });
        let mut lost = Vec::new();
        let record = drill.run(&mut |told| {
            if let Told::Line(_, line) = told
                && let Some(name) = line.strip_suffix(" is hung")
            {
                // What goes on has no token any more.
                let member = usize::from(name != "a");
                drill.ground().break_down(member, How::Lost, None).unwrap();
                lost.push(name.to_owned());
            }
        });
        let record = record.unwrap();
        assert_eq!(lost.len(), 1, "the plan is not followed further");
        assert_eq!(record.away, lost);
        let why = record.cut_short.clone().unwrap();
        assert!(why.starts_with(&lost[0]) && why.contains("not used again within 2.00 s"), "{why}");
        assert!(!record.is_well() && record.verdict().contains("cut short"), "{}", record.verdict());
        let figures = record.figures();
        assert!(figures.operations > 0 && figures.failed == 0, "{figures:?}");
    }
}
