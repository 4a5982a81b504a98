//! The application's programs: each runs as one process after another, from its start to its shutdown or its death.
//!
//! Where processes are killed, all that one does is done by threads of its own, which stop with it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ha_core::group::ConfigSource;
use ha_core::policy::health::State;
use ha_core::provider::{Outside, Provider};
use ha_token::*;

use super::{PIN, WRONG};
use crate::application::Application;
use crate::model::Owner;
use crate::named::{Source, config, connector};
use crate::oracle;
use crate::plan::{End, Kind, Op};
use crate::random::Random;
use crate::scheduler::Fate;
use crate::stage::Stage;
use crate::world::SimWorld;

/// How long a shutdown may wait for what is in flight.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that has started, with somebody logged in.
#[derive(Clone)]
pub(super) struct Process {
    pub(super) number: u32,
    pub(super) slot: Arc<dyn Token>,
    provider: Arc<Provider>,
    session: SessionHandle,
}

impl Process {
    /// What nobody in particular does in it.
    pub(super) fn application<'a>(&self, stage: &'a Stage) -> Application<'a> {
        let slot = Arc::clone(&self.slot);
        Application { stage, process: self.number, slot, me: Owner::SHARED, session: self.session }
    }

    /// Its operator has looked at the members that signed wrongly, and wants them back.
    pub(super) fn take_back_liars(&self) {
        let group = &self.provider.groups()[0];
        for member in group.members.iter().filter(|m| m.state() == State::Quarantined) {
            group.recover(member.name());
        }
    }

    /// Guarantee G5: a process ends whole, and soon. What hangs in a member is left behind, where there is a deadline, and
    /// nothing else.
    pub(super) fn stop(&self, stage: &Stage) {
        let began = stage.scheduler.now();
        let in_a_member = || match stage.plan.deadline {
            Some(_) => stage.lines.iter().flat_map(|line| line.hanging()).collect(),
            None => BTreeSet::new(),
        };
        let mut left = in_a_member();
        let hanging = self.provider.shutdown(stage.plan.deadline.unwrap_or(PATIENCE));
        left.extend(in_a_member());
        if !hanging.is_empty() && left.is_empty() {
            stage.broken("G5", format!("shutting down, {hanging:?} hang"));
        }
        // What was left behind may have returned by now, and be on its way out.
        let of = |name: &str, member: &str| {
            [format!(":ha-lane-{member}"), format!(":ha-{member}")].iter().any(|its| name.ends_with(its))
        };
        let is_left = |name: &String| left.contains(name) || hanging.iter().any(|member| of(name, member));
        let running: Vec<_> =
            stage.scheduler.running(self.number).into_iter().filter(|name| !is_left(name)).collect();
        if !running.is_empty() {
            stage.broken("G5", format!("{running:?} go on after the shutdown"));
        }
        let took = stage.scheduler.now() - began;
        // For the calls in flight, and for the members' own ends.
        let most = stage.plan.deadline.map_or(PATIENCE, |d| 2 * d + Duration::from_millis(10));
        if took > most {
            stage.broken("G5", format!("the shutdown took {took:?}"));
        }
        oracle::when_ended(stage, self.number, &hanging);
    }
}

/// A program, in whatever process it runs as.
pub(super) struct Program {
    stage: Arc<Stage>,
    dir: PathBuf,
    number: usize,
    random: Random,
    process: Option<Process>,
}

impl Program {
    pub(super) fn new(stage: &Arc<Stage>, dir: &Path, number: usize, random: &mut Random) -> Self {
        Program {
            stage: Arc::clone(stage),
            dir: dir.to_owned(),
            number,
            random: random.clone(),
            process: None,
        }
    }

    /// Its first process starts; that of the first program makes what every thread uses.
    pub(super) fn begin(&mut self) {
        let is_first = self.number == 0;
        self.start(Some(0), move |stage, process| {
            if is_first && stage.plan.wrong_pin {
                wrong_pin(stage, process.number, &process.slot);
            }
        });
        if is_first {
            self.within("main", |stage, process| process.application(stage).act(&Op::Make(Kind::Mac)));
        }
    }

    /// Its lives, to the end of what the threads of the last one do.
    pub(super) fn live(&mut self) {
        let lives = self.stage.plan.programs().nth(self.number).cloned().unwrap_or_default();
        for (life, threads) in lives.iter().enumerate() {
            if life > 0 {
                self.within("end", |stage, process| {
                    process.application(stage).close();
                    stage.all_closed(process.number, &process.slot);
                    process.stop(stage);
                });
                let end = self.end(life - 1);
                if end == End::Torn {
                    // All that it has done is synced by now.
                    self.stage.disk.keep();
                }
                // A process that has ended holds nothing any more when the next one begins.
                if let Some(Process { number, slot, provider, .. }) = self.process.take() {
                    drop((slot, provider));
                    self.stage.ended(number);
                }
                self.stage.begin_life(end);
                self.start(Some(life), |_, _| {});
            }
            self.stage.disk.begin_life(threads, self.end(life));
            self.work(life, lives.len(), threads);
        }
    }

    /// Whether a process of it runs.
    pub(super) fn lives(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !self.stage.scheduler.is_dead(process.number))
    }

    /// The process that is left when nobody is killed any more; a new one, where the last was.
    pub(super) fn remains(mut self) -> Process {
        if !self.lives() {
            self.process = None;
            self.start(None, |_, _| {});
        }
        self.process.take().expect("a process that nobody kills starts")
    }

    /// What becomes of the ledger when a life of the program ends: where there are several it is kept.
    fn end(&self, life: usize) -> End {
        if self.number == 0 { self.stage.plan.end(life) } else { End::Kept }
    }

    fn kills(&self) -> bool {
        !self.stage.plan.kills.is_empty()
    }

    /// Starts a process, and logs somebody in in it: in this life of the program, or after all of them.
    fn start(&mut self, life: Option<usize>, before_login: impl FnOnce(&Stage, &Started) + Send + 'static) {
        let stage = Arc::clone(&self.stage);
        let number = stage.new_process();
        let kill = stage.plan.kills.iter().find(|k| k.program == self.number && Some(k.life) == life);
        if let Some(kill) = kill {
            let fate = Fate { at: kill.at, at_work: kill.at_work, done: kill.done.into() };
            stage.scheduler.doom(number, fate);
        }
        let world = SimWorld::new(&stage.scheduler, self.random.part("world"), number);
        let dir = self.dir.clone();
        let body = move |stage: &Arc<Stage>| {
            let provider = provider(stage, &dir, world, number);
            let started = Started { number, slot: Arc::clone(&provider.slots()[0]) };
            before_login(stage, &started);
            let session = log_in(stage, number, &started.slot);
            Process { number, slot: started.slot, provider, session }
        };
        self.process = self.on_its_own(number, "main", body);
    }

    /// Does something in the process, if there is one; if that is killed meanwhile there is none.
    fn within(&mut self, name: &str, body: impl FnOnce(&Arc<Stage>, &Process) + Send + 'static) {
        if let Some(process) = self.process.take() {
            let again = process.clone();
            let done = self.on_its_own(process.number, name, move |stage| body(stage, &again));
            self.process = done.map(|()| process);
        }
    }

    /// Does something on a thread of a process, where it may be killed: none is the answer then.
    fn on_its_own<T: Send + 'static>(
        &self,
        process: u32,
        name: &str,
        body: impl FnOnce(&Arc<Stage>) -> T + Send + 'static,
    ) -> Option<T> {
        if !self.kills() {
            return Some(body(&self.stage));
        }
        let answer = Arc::new(Mutex::new(None));
        let (stage, told) = (Arc::clone(&self.stage), Arc::clone(&answer));
        let body = move || {
            let done = body(&stage);
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        };
        let scheduler = &self.stage.scheduler;
        scheduler.join(scheduler.spawn_in(Some(process), &format!("{process}:{name}"), Box::new(body)));
        let answer = answer.lock().unwrap_or_else(PoisonError::into_inner).take();
        // It may have been killed when this was done.
        answer.filter(|_| !scheduler.is_dead(process))
    }

    /// What the threads of the process do, in one of so many lives.
    fn work(&mut self, life: usize, lives: usize, threads: &[Vec<Op>]) {
        let Some(process) = &self.process else { return };
        let scheduler = &self.stage.scheduler;
        let alone = !self.kills() && self.stage.plan.beside.is_empty();
        let workers: Vec<_> = threads
            .iter()
            .enumerate()
            .map(|(thread, ops)| {
                let (stage, slot, ops) = (Arc::clone(&self.stage), Arc::clone(&process.slot), ops.clone());
                let (number, me) = (process.number, Owner { program: self.number, thread });
                let body = move || {
                    let session = log_in(&stage, number, &slot);
                    let mut application = Application { stage: &stage, process: number, slot, me, session };
                    let parts = stage.plan.troubles.len() + 1;
                    for (n, op) in ops.iter().enumerate() {
                        if stage.plan.spread {
                            stage.await_troubles((life * ops.len() + n) * parts / (lives * ops.len()));
                        }
                        application.act(op);
                    }
                    application.close();
                };
                let name = if alone { format!("app{thread}") } else { format!("{number}:app{thread}") };
                scheduler.spawn_in(Some(number), &name, Box::new(body))
            })
            .collect();
        workers.into_iter().for_each(|w| scheduler.join(w));
        if scheduler.is_dead(process.number) {
            self.process = None;
        }
    }
}

/// A process in which nobody is logged in yet.
struct Started {
    number: u32,
    slot: Arc<dyn Token>,
}

fn provider(stage: &Arc<Stage>, dir: &Path, world: Arc<SimWorld>, process: u32) -> Arc<Provider> {
    // Read before the process knows that it may change.
    let (changes, without) = stage.named();
    let members = (0..stage.plan.members).filter(|i| Some(*i) != without);
    let connectors = members.map(|i| connector(stage, i, process, 0)).collect();
    let config = config(&stage.plan, dir, without).expect("plans are drawn so, and kept ones are looked at");
    let changing = stage.plan.changes_members();
    let source =
        || Box::new(Source::new(Arc::downgrade(stage), dir, process, changes)) as Box<dyn ConfigSource>;
    let outside = Outside { connectors, source: changing.then(source) };
    let provider = Provider::with_outside(config, world, vec![outside]);
    let provider = Arc::new(provider.expect("the provider starts, whatever its members do"));
    stage.started(process, &provider);
    provider
}

/// Opens a session and logs in, as often as it takes in trouble.
fn log_in(stage: &Stage, process: u32, slot: &Arc<dyn Token>) -> SessionHandle {
    loop {
        let session = match slot.open_session(true) {
            Ok(session) => {
                stage.new_session(process, session);
                session
            }
            // No member was seen yet.
            Err(Rv::TOKEN_NOT_PRESENT) if !stage.can_log_in() => {
                stage.scheduler.sleep(Duration::from_millis(500));
                continue;
            }
            Err(rv) => stage.broken("G4", format!("C_OpenSession answered {rv}")),
        };
        match slot.login(session, UserType::User, Some(PIN.as_bytes())) {
            Ok(()) | Err(Rv::USER_ALREADY_LOGGED_IN) => return session,
            Err(rv) if stage.can_log_in() => {
                stage.broken("G6", format!("C_Login answered the right PIN with {rv}"));
            }
            Err(rv) => {
                stage.say(format_args!("C_Login answered {rv}"));
                _ = slot.close_session(session);
                stage.scheduler.sleep(Duration::from_millis(500));
            }
        }
    }
}

/// Guarantee G6: a PIN that is refused was sent once, to one member, and is not sent again.
fn wrong_pin(stage: &Stage, process: u32, slot: &Arc<dyn Token>) {
    let Ok(session) = slot.open_session(true) else { return };
    stage.new_session(process, session);
    for _ in 0..2 {
        match slot.login(session, UserType::User, Some(WRONG.as_bytes())) {
            Err(Rv::PIN_INCORRECT) => {}
            answer => stage.broken("G6", format!("a wrong PIN was answered with {answer:?}")),
        }
    }
    let sent: usize =
        stage.lines.iter().flat_map(|l| l.take_logins()).filter(|a| a.pin == WRONG.as_bytes()).count();
    if sent != 1 {
        stage.broken("G6", format!("a wrong PIN was sent {sent} times"));
    }
    _ = slot.close_session(session);
}
