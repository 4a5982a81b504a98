//! Plays a plan on a group under load, records what happens and tells of it.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ha_core::config::RecoveryMode;
use ha_core::group::Group;
use ha_core::policy::health::State;

use crate::held::Held;
use crate::listener::{Heard, Listener};
use crate::load::Load;
use crate::plan::{How, Part, Scenario, Step};
use crate::record::{Fault, Played, Record, Sample};
use crate::run::{Drill, LOOK, Pulse, Tick, Told, away, behind, served_since};
use crate::verdict::shown;

/// How often it is told how it is going.
const TICK: Duration = Duration::from_millis(100);
/// How often it is looked whether the members hold the same.
const COMPARE: Duration = Duration::from_millis(200);
/// How long they must do so: longer than a member's keeper waits between two tries.
const CALM: Duration = Duration::from_millis(2500);
/// Over how many ticks the throughput is told.
const RECENT: usize = 10;
/// How long it is waited until a restart is found out: a member that nobody uses, as one on standby, is asked only now and
/// then.
const FOUND_OUT: Duration = Duration::from_secs(5);
/// After this time it is known of a moment who was broken, and used.
const SETTLED: Duration = Duration::from_secs(1);

impl Record {
    /// Notes what was heard.
    pub(crate) fn hear(&mut self, heard: Heard) {
        self.changes.extend(heard.changes);
        self.missed += heard.missed;
    }
}

/// A drill that is going on.
pub(crate) struct Stage<'a> {
    drill: &'a Drill,
    group: &'a Arc<Group>,
    load: &'a Load,
    listener: &'a Listener,
    tell: &'a mut dyn FnMut(Told),
    began: Instant,
    about: Duration,
    scenario: Scenario,
    /// What each member had served before.
    before: Vec<u64>,
    /// How many changes were told.
    told: usize,
    ticked: Duration,
    /// What was done by when, lately.
    recent: Vec<Moment>,
    record: Record,
}

/// The plan is not followed further: interrupted, or cut short.
struct Stopped;

impl<'a> Stage<'a> {
    pub(crate) fn new(
        drill: &'a Drill,
        group: &'a Arc<Group>,
        load: &'a Load,
        listener: &'a Listener,
        tell: &'a mut dyn FnMut(Told),
        began: Instant,
        record: Record,
    ) -> Self {
        Stage {
            drill,
            group,
            load,
            listener,
            tell,
            began,
            about: Duration::ZERO,
            scenario: record.scenario,
            before: group.served(),
            told: 0,
            ticked: Duration::ZERO,
            recent: Vec::new(),
            record,
        }
    }

    /// Plays it, as far as it goes.
    pub(crate) fn play(&mut self, parts: &[Part]) {
        let steps = parts.iter().flat_map(|p| &p.steps);
        self.about = steps.map(|s| if let Step::Go(time) = s { *time } else { Duration::ZERO }).sum();
        for part in parts {
            self.scenario = part.scenario;
            let from = self.began.elapsed();
            self.record.played.push(Played { scenario: part.scenario, from, to: from });
            self.load.write(part.scenario == Scenario::FullDisk);
            let played = part.steps.iter().try_for_each(|step| self.step(step));
            self.load.write(false);
            if let Some(last) = self.record.played.last_mut() {
                last.to = self.began.elapsed();
            }
            if played.is_err() {
                break;
            }
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), Stopped> {
        match step {
            Step::Go(time) => {
                let until = Instant::now() + *time;
                self.wait(|_| Instant::now() >= until)
            }
            Step::Break(members, how) => members.iter().try_for_each(|member| self.break_down(*member, *how)),
            Step::Mend(members, how) => members.iter().try_for_each(|member| self.mend(*member, *how)),
            Step::Same => self.same(),
            Step::Back => {
                // Who was restarted is used until that is found out, and only then connected anew: the next one is not to be
                // broken meanwhile.
                let until = Instant::now() + FOUND_OUT;
                self.wait(|stage| stage.record.all_found_out() || Instant::now() >= until)?;
                let until = Instant::now() + self.drill.options.patience;
                let still = RefCell::new(Vec::new());
                // What is said is what was seen at the last look: a moment later it may be otherwise.
                self.wait(|stage| {
                    *still.borrow_mut() = away(stage.group);
                    still.borrow().is_empty() || Instant::now() >= until
                })?;
                let still = still.into_inner();
                if still.is_empty() {
                    return Ok(());
                }
                let patience = shown(self.drill.options.patience);
                Err(self.cut(format!("{} was not used again within {patience}", still.join(", "))))
            }
        }
    }

    /// Waits until nothing is missing or pending on any member, and they are all used and stay so: one that has refused to
    /// write may yet be connected anew when it has everything, and the next one is not to be broken then.
    fn same(&mut self) -> Result<(), Stopped> {
        self.load.write(false);
        let until = Instant::now() + self.drill.options.patience;
        let mut calm = (Instant::now(), 0);
        loop {
            let next = Instant::now() + COMPARE;
            let behind = behind(self.group);
            let changes = self.record.changes.len();
            if !behind.is_empty() || changes != calm.1 {
                calm = (Instant::now(), changes);
            } else if calm.0.elapsed() >= CALM {
                self.line("every member holds the same".into());
                self.load.write(true);
                return Ok(());
            }
            if Instant::now() >= until {
                let patience = shown(self.drill.options.patience);
                // None may be at this moment where one is again and again.
                let what = match &*behind {
                    [] => "the members did not come to rest".into(),
                    behind => format!("{} was not up to date", behind.join(", ")),
                };
                return Err(self.cut(format!("{what} within {patience}")));
            }
            self.wait(|_| Instant::now() >= next)?;
        }
    }

    fn break_down(&mut self, member: usize, how: How) -> Result<(), Stopped> {
        let (scenario, from) = (self.scenario, self.began.elapsed());
        self.play_refusals(member, how, true);
        if let Err(error) = self.drill.ground().break_down(member, how, self.drill.options.deadline) {
            return Err(self.cut(format!("{} could not be {how}: {error}", self.name(member))));
        }
        self.record.faults.push(Fault { scenario, member, how, from, to: None });
        self.line(format!("{} is {how}", self.name(member)));
        Ok(())
    }

    fn mend(&mut self, member: usize, how: How) -> Result<(), Stopped> {
        if let Err(error) = self.drill.ground().mend(member, how) {
            return Err(self.cut(format!("{} could not be mended: {error}", self.name(member))));
        }
        let now = self.began.elapsed();
        let faults = &mut self.record.faults;
        if let Some(fault) = faults.iter_mut().rev().find(|f| f.member == member && f.to.is_none()) {
            fault.to = Some(now);
        }
        let what = match how {
            How::Killed => "is started again",
            How::Hung => "goes on",
            How::Lost => "has its token again",
            How::Full => "has room on its disk again",
            How::Slow => "is as quick as before",
            How::Lying => "signs rightly again, and is wanted back",
            How::Locked => "has its PIN again, and is wanted back",
        };
        self.want_back(member, how);
        self.line(format!("{} {what}", self.name(member)));
        Ok(())
    }

    /// The plan is not followed further, and the record says why.
    fn cut(&mut self, why: String) -> Stopped {
        self.line(format!("the drill is cut short: {why}"));
        self.record.cut_short = Some(why);
        Stopped
    }

    /// On a configured group no token refuses a PIN: other processes are not to hear that one did.
    fn play_refusals(&self, member: usize, how: How, played: bool) {
        if how == How::Locked && self.record.group.is_some() {
            self.group.play_refusals(&self.name(member), played);
        }
    }

    /// What a member's operator does who has seen to it, where nobody else lets it back in.
    fn want_back(&self, member: usize, how: How) {
        self.play_refusals(member, how, false);
        if matches!(how, How::Lying | How::Locked) || self.group.config.recovery.mode == RecoveryMode::Manual
        {
            self.group.recover(&self.name(member));
        }
    }

    /// Lets go on what is stopped, where the plan did not come to that: calls that hang can end then. What stays when the
    /// drill has ended is mended, whatever it is. Answers what was recorded, and what each member had served before.
    pub(crate) fn end(mut self) -> (Record, Vec<u64>) {
        self.record.lasted = self.began.elapsed();
        let stays = self.record.group.is_some();
        let holds = |f: &&Fault| f.to.is_none() && (stays || matches!(f.how, How::Hung | How::Slow));
        for fault in self.record.faults.iter().filter(holds) {
            // Where it is gone there is nothing that hangs.
            _ = self.drill.ground().mend(fault.member, fault.how);
            if stays {
                self.want_back(fault.member, fault.how);
            }
        }
        (self.record, self.before)
    }

    fn name(&self, member: usize) -> String {
        self.group.members.get(member).map_or_else(String::new, |m| m.name().to_owned())
    }

    fn line(&mut self, text: String) {
        (self.tell)(Told::Line(Some(self.began.elapsed()), text));
    }

    fn wait(&mut self, is_over: impl Fn(&Self) -> bool) -> Result<(), Stopped> {
        loop {
            self.look();
            if self.drill.is_interrupted() {
                return Err(Stopped);
            }
            if is_over(self) {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
    }

    fn look(&mut self) {
        self.record.hear(self.listener.take());
        while let Some(change) = self.record.changes.get(self.told).copied() {
            self.told += 1;
            let since = |from: Option<Duration>| from.map(|from| shown(change.at.saturating_sub(from)));
            let fault = self.record.faults.iter().rev().find(|f| f.member == change.member);
            let text = match (change.from, change.to) {
                (State::Up, _) => since(fault.map(|f| f.from)).map_or_else(
                    || "is not used".into(),
                    |time| format!("is not used any more, {time} after it broke"),
                ),
                (_, State::Up) => since(fault.and_then(|f| f.to)).map_or_else(
                    || "is used".into(),
                    |time| format!("is used again, {time} after it was mended"),
                ),
                _ => continue,
            };
            let text = format!("{} {text}", self.name(change.member));
            (self.tell)(Told::Line(Some(change.at), text));
        }
        let now = self.began.elapsed();
        if self.record.samples.are_due(now) {
            self.sample();
        }
        if now - self.ticked >= TICK {
            self.ticked = now;
            self.record.tally.add(self.load.take());
            self.record.settle(now.saturating_sub(SETTLED));
            self.tick();
        }
    }

    fn sample(&mut self) {
        let served = served_since(&self.before, self.group);
        self.record.samples.push(Sample { at: self.began.elapsed(), served, held: Held::now() });
    }

    fn tick(&mut self) {
        let (at, count) = (self.began.elapsed(), self.load.count());
        let now = Moment { at, done: count.done, served: self.group.served() };
        self.recent.push(now);
        if self.recent.len() > RECENT {
            self.recent.remove(0);
        }
        let (Some(first), Some(last)) = (self.recent.first(), self.recent.last()) else { return };
        let per_second = |before: u64, after: u64| match last.at.saturating_sub(first.at).as_secs_f64() {
            seconds if seconds > 0.0 => (after.saturating_sub(before) as f64 / seconds) as u64,
            _ => 0,
        };
        let members = self.group.members.iter().zip(first.served.iter().zip(&last.served));
        let members = members.map(|(member, (before, after))| Pulse {
            name: member.name().to_owned(),
            is_up: member.is_up(),
            per_second: per_second(*before, *after),
            round_trip: member.round_trip(),
        });
        let tick = Tick {
            at,
            about: self.about,
            scenario: self.scenario,
            count,
            per_second: per_second(first.done, last.done),
            members: members.collect(),
        };
        (self.tell)(Told::Tick(tick));
    }
}

/// What was done by then.
struct Moment {
    at: Duration,
    done: u64,
    /// By member.
    served: Vec<u64>,
}
