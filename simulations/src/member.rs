//! A member as the core sees it: a simulated token behind calls that may go wrong.
//!
//! Every call is a place where another thread may go on, takes some virtual time, and is met by the faults that are on at
//! this moment. Which faults are on, and when, is the plan's business; here is what they do to a call.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ha_core::seam::turns::Turns as _;
use ha_rig::{Hook, Passing};
use ha_token::{ConnectError, Connector, Function, Result, Rv, Token, UserType};

use crate::application::is_question;
use crate::random::Random;
use crate::scheduler::{EventId, Scheduler};

/// Of the MACs that are made here none is longer.
const LONGEST_MAC: usize = 32;

/// What goes wrong with one member's calls, for every process alike.
pub struct Line {
    /// The member's number.
    pub index: usize,
    scheduler: Arc<Scheduler>,
    state: Mutex<LineState>,
}

struct LineState {
    random: Random,
    faults: Faults,
    /// Counts the member's deaths: connections from before one stay dead.
    life: u64,
    calls: BTreeMap<Function, u64>,
    faulted: BTreeMap<(Function, Rv), u64>,
    logins: Vec<Attempt>,
    refused: Vec<Refused>,
    /// The threads that hang in a call, and what each waits for.
    hanging: Vec<(String, EventId)>,
    /// The threads that are in a slow call.
    slow: Vec<String>,
    /// See [`Line::untold`].
    untold: BTreeMap<u32, usize>,
    /// How often somebody found it dead.
    found_dead: u64,
    /// How often it gave a wrong signature to a thread.
    lied: BTreeMap<String, usize>,
}

/// An operation with a key that a member did not begin.
#[derive(Clone, Debug)]
pub struct Refused {
    /// When.
    pub at: Duration,
    /// The thread that asked.
    pub thread: String,
}

/// What is wrong with a member's calls now.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Every call answers `CKR_DEVICE_ERROR`, and no connection can be made.
    pub dead: bool,
    /// How many of 1000 calls fail before anything is done.
    pub before: u64,
    /// How many of 1000 calls are done and answered with an error.
    pub after: u64,
    /// What they answer.
    pub answers: Vec<Rv>,
    /// The functions that fail so; all of them where none is named.
    pub only: Vec<Function>,
    /// What each call takes longer.
    pub slow: Duration,
    /// Calls do not return for as long as this is on.
    pub hangs: bool,
    /// How many of 1000 signatures are wrong by one bit.
    pub lies: u64,
}

impl Faults {
    fn meet(&self, function: Function) -> bool {
        self.only.is_empty() || self.only.contains(&function)
    }
}

/// A PIN that was sent to a member, whatever became of it there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Who was to be logged in.
    pub user: UserType,
    /// The PIN.
    pub pin: Vec<u8>,
}

impl Line {
    /// A member that works.
    pub fn new(scheduler: &Arc<Scheduler>, index: usize, random: Random) -> Arc<Self> {
        let state = LineState {
            random,
            faults: Faults::default(),
            life: 0,
            calls: BTreeMap::new(),
            faulted: BTreeMap::new(),
            logins: Vec::new(),
            refused: Vec::new(),
            hanging: Vec::new(),
            slow: Vec::new(),
            untold: BTreeMap::new(),
            found_dead: 0,
            lied: BTreeMap::new(),
        };
        Arc::new(Line { index, scheduler: Arc::clone(scheduler), state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, LineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what goes wrong from now on.
    pub fn set(&self, faults: Faults) {
        let mut state = self.state();
        if faults.dead && !state.faults.dead {
            state.life += 1;
        }
        state.faults = faults;
        let released = if state.faults.hangs { Vec::new() } else { std::mem::take(&mut state.hanging) };
        drop(state);
        released.into_iter().for_each(|(_, event)| self.scheduler.set(event));
    }

    /// How often somebody found it dead.
    pub fn found_dead(&self) -> u64 {
        self.state().found_dead
    }

    /// How often it gave a wrong signature to a thread.
    pub fn lied_to(&self, thread: &str) -> usize {
        self.state().lied.get(thread).copied().unwrap_or_default()
    }

    /// The threads that hang in a call, or take long for one.
    pub fn hanging(&self) -> Vec<String> {
        let state = self.state();
        state.hanging.iter().map(|(thread, _)| thread).chain(&state.slow).cloned().collect()
    }

    /// The sessions that a process's connection opened and was not told of: nobody can close them.
    pub fn untold(&self, process: u32) -> usize {
        self.state().untold.get(&process).copied().unwrap_or(0)
    }

    /// Waits for as long as calls hang.
    fn hang(&self) {
        loop {
            let event = {
                let mut state = self.state();
                if !state.faults.hangs {
                    return;
                }
                let event = self.scheduler.new_event();
                state.hanging.push((self.scheduler.name(), event));
                event
            };
            self.scheduler.wait(event, None);
        }
    }

    /// Calls of each function so far.
    pub fn calls(&self) -> BTreeMap<Function, u64> {
        self.state().calls.clone()
    }

    /// How often each function was answered with each error that no token gave.
    pub fn faulted(&self) -> BTreeMap<(Function, Rv), u64> {
        self.state().faulted.clone()
    }

    /// The PINs sent since the last look.
    pub fn take_logins(&self) -> Vec<Attempt> {
        std::mem::take(&mut self.state().logins)
    }

    /// The operations that were not begun.
    pub fn refused(&self) -> Vec<Refused> {
        self.state().refused.clone()
    }

    fn trace(&self, process: u32, function: Function, answer: &dyn std::fmt::Display) {
        let who = self.scheduler.name();
        self.scheduler.trace.add(
            self.scheduler.now(),
            &who,
            format_args!("{process} member {} {function} {answer}", self.index),
        );
    }

    /// What happens to a call of a connection made in `life`. A process that was killed calls nobody.
    fn call<T>(
        &self,
        process: u32,
        life: u64,
        function: Function,
        go: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if self.scheduler.is_dead(process) {
            return Err(Rv::DEVICE_ERROR);
        }
        self.scheduler.call_begins();
        let answer = self.met(process, life, function, go);
        self.scheduler.call_ends();
        answer
    }

    fn met<T>(
        &self,
        process: u32,
        life: u64,
        function: Function,
        go: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.scheduler.point();
        self.hang();
        let (fault, takes) = {
            let mut state = self.state();
            *state.calls.entry(function).or_default() += 1;
            state.found_dead += u64::from(state.faults.dead || life != state.life);
            let LineState { random, faults, life: now, .. } = &mut *state;
            let takes = (Duration::from_micros(20 + random.below(400)), faults.slow);
            let fault = if faults.dead || life != *now {
                Some((false, Rv::DEVICE_ERROR))
            } else if faults.answers.is_empty() || !faults.meet(function) {
                None
            } else if random.chance(faults.before) {
                Some((false, *random.pick(&faults.answers)))
            } else if random.chance(faults.after) {
                Some((true, *random.pick(&faults.answers)))
            } else {
                None
            };
            (fault, takes)
        };
        let (takes, slow) = takes;
        self.scheduler.pass(takes);
        if !slow.is_zero() {
            // Who does not wait for it goes on meanwhile.
            let name = self.scheduler.name();
            self.state().slow.push(name.clone());
            self.scheduler.sleep(slow);
            let mut state = self.state();
            let place = state.slow.iter().position(|thread| *thread == name);
            place.map(|place| state.slow.swap_remove(place));
        }
        let answer = match fault {
            None => go(),
            Some((done, rv)) => {
                *self.state().faulted.entry((function, rv)).or_default() += 1;
                // The answer is lost, whatever it was.
                if done && go().is_ok() && function == Function::OpenSession {
                    *self.state().untold.entry(process).or_default() += 1;
                }
                Err(rv)
            }
        };
        if answer.is_err() && matches!(function, Function::SignInit | Function::EncryptInit) {
            let refused = Refused { at: self.scheduler.now(), thread: self.scheduler.caller() };
            self.state().refused.push(refused);
        }
        match (&answer, fault) {
            (Ok(_), _) => self.trace(process, function, &"ok"),
            (Err(rv), None) => self.trace(process, function, rv),
            (Err(rv), Some((done, _))) => {
                let word = if done { "done, and answered" } else { "not done, answered" };
                self.trace(process, function, &format_args!("{word} {rv}"));
            }
        }
        answer
    }
}

/// One process's way to a member.
pub struct LineConnector {
    /// The faults.
    pub line: Arc<Line>,
    /// The token's own connector.
    pub real: Box<dyn Connector>,
    /// The process.
    pub process: u32,
    /// Raised by each `connect` and `disconnect`: who is overtaken makes nothing.
    pub attempt: AtomicU64,
}

impl Connector for LineConnector {
    fn connect(&self) -> std::result::Result<Arc<dyn Token>, ConnectError> {
        let line = &self.line;
        let attempt = self.attempt.fetch_add(1, Ordering::Relaxed) + 1;
        let error = |rv| ConnectError::Call {
            path: format!("member {}", line.index),
            function: Function::Initialize,
            rv,
        };
        if line.scheduler.is_dead(self.process) {
            return Err(error(Rv::DEVICE_ERROR));
        }
        line.scheduler.point();
        line.hang();
        line.scheduler.pass(Duration::from_millis(1));
        let (life, dead) = {
            let mut state = line.state();
            state.found_dead += u64::from(state.faults.dead);
            let failed = {
                let LineState { random, faults, .. } = &mut *state;
                let fails = !faults.answers.is_empty() && faults.meet(Function::Initialize);
                faults.dead || (fails && random.chance(faults.before))
            };
            (state.life, failed)
        };
        if dead {
            line.trace(self.process, Function::Initialize, &"fails");
            return Err(error(Rv::DEVICE_ERROR));
        }
        if self.attempt.load(Ordering::Relaxed) != attempt {
            line.trace(self.process, Function::Initialize, &"was overtaken");
            return Err(error(Rv::CANT_LOCK));
        }
        let real = self.real.connect()?;
        line.state().untold.remove(&self.process);
        line.trace(self.process, Function::Initialize, &"ok");
        let hook = OnLine { line: Arc::clone(line), process: self.process, life };
        Ok(Arc::new(Passing { real, hook }))
    }

    fn disconnect(&self) {
        self.attempt.fetch_add(1, Ordering::Relaxed);
        self.real.disconnect();
    }

    fn reinitialises(&self) -> bool {
        true
    }
}

/// A connection of one process to a member.
struct OnLine {
    line: Arc<Line>,
    process: u32,
    life: u64,
}

impl Hook for OnLine {
    fn call<T>(&self, function: Function, go: impl FnOnce() -> Result<T>) -> Result<T> {
        self.line.call(self.process, self.life, function, go)
    }

    fn signed(&self, input: Option<&[u8]>, signature: &mut [u8]) {
        // A challenge that is answered wrongly shows another key; and nobody can verify a MAC.
        if signature.len() <= LONGEST_MAC || input.is_some_and(|input| !is_question(input)) {
            return;
        }
        let lies = {
            let mut state = self.line.state();
            let LineState { random, faults, .. } = &mut *state;
            faults.lies > 0 && random.chance(faults.lies)
        };
        if lies {
            let at = signature.len() / 2 + 1;
            signature[at] ^= 0x10;
            let thread = self.line.scheduler.caller();
            self.line.trace(self.process, Function::Sign, &"is wrong");
            *self.line.state().lied.entry(thread).or_default() += 1;
        }
    }

    fn sends(&self, _function: Function, user: UserType, pin: Option<&[u8]>) {
        self.line.state().logins.push(Attempt { user, pin: pin.unwrap_or_default().to_vec() });
    }
}
