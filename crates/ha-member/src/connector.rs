//! Connecting a member's token, and connecting it again after it failed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ha_token::{ConnectError, Connector, Function, Rv, Selector, SlotInfo, Token, TokenInfo, Ulong};

use crate::fork::{ForkLock, Held};
use crate::instance::{Copy, LEAVE, Life, inside_member};
use crate::search::{self, Seen};
use crate::searches::Searches;
use crate::token::RealToken;
use crate::writes::{Writes, are_missed_by};

/// Copies of its module that one connector may have: all but one are hung.
const COPIES: usize = 8;

/// Whether a member has its module for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Instance {
    /// A copy for this member alone, with its own lock, environment and initialisation.
    Private,
    /// The process's one instance of the file, which others (the host too) may use.
    Shared,
    /// Private, or shared with a warning where a copy cannot be loaded.
    #[default]
    Auto,
}

/// Where a member's token is.
#[derive(Clone, PartialEq, Eq)]
pub struct ModuleConfig {
    /// The PKCS#11 module.
    pub path: PathBuf,
    /// Whose instance of it.
    pub instance: Instance,
    /// Variables shown while it is loaded and initialised; at most 8 KiB each, the name included.
    pub env: Vec<(String, String)>,
    /// Which of its tokens.
    pub selector: Selector,
}

impl fmt::Debug for ModuleConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.env.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("ModuleConfig")
            .field("path", &self.path)
            .field("instance", &self.instance)
            .field("env", &names) // values may be secrets
            .field("selector", &self.selector)
            .finish()
    }
}

/// The [`Connector`] of a module: loads it at the first [`connect`](Connector::connect).
///
/// For a private instance each `connect` closes the token given out before, waits two seconds for its calls to
/// leave, finalises and initialises. Where a call, or an earlier `connect`, hangs in the copy, the copy is left alone
/// and another one is loaded; with eight of them hung, `CKR_CANT_LOCK` is answered until one comes back. What is left alone so
/// keeps its sessions and its login until its [`leavings`](Connector::leavings) are seen to, or it is used again. A shared
/// instance is initialised if nobody has, and finalised with the last connector that uses it, if we initialised it.
///
/// In a forked child private instances are loaded anew; a shared one is taken in whatever state the fork left it.
///
/// Dropping a connector calls no module: its token goes on working, and what was initialised stays so.
#[derive(Debug)]
pub struct ModuleConnector {
    config: ModuleConfig,
    /// The turns of those who write to the token.
    writes: Option<Arc<Writes>>,
    state: ForkLock<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Raised by each `connect` and `disconnect`: who is overtaken gives up what it made.
    attempt: u64,
    life: Option<Arc<Life>>,
    /// Private copies, the newest last.
    copies: Vec<Arc<Copy>>,
    /// The instance that is shared instead.
    shared: Option<Arc<Copy>>,
}

static SHARED: ForkLock<BTreeMap<PathBuf, Arc<Copy>>> = ForkLock::new(BTreeMap::new());

impl ModuleConnector {
    /// A connector that has loaded nothing yet.
    pub fn new(config: ModuleConfig) -> Self {
        ModuleConnector { config, writes: None, state: ForkLock::new(State::default()) }
    }

    /// The same, for a token that other processes of this host write to: they name the same file, which is made when it is
    /// first needed, with this mode. Where the module would miss what another one has just written, writers take turns by it.
    #[must_use]
    pub fn taking_turns(mut self, file: PathBuf, mode: u32) -> Self {
        self.writes = Some(Writes::new(file, mode));
        self
    }

    fn token(&self, life: &Arc<Life>, slot: Ulong, seen: &[Seen]) -> Arc<dyn Token> {
        let info = seen.iter().find(|(s, _, _)| *s == slot).and_then(|(_, _, info)| info.as_ref().ok());
        let written =
            self.writes.as_ref().zip(info).and_then(|(writes, info)| writes.seen_by(&info.manufacturer));
        let searches = info.is_some_and(|info| are_missed_by(&info.manufacturer)).then(Searches::default);
        Arc::new(RealToken::new(Arc::clone(life), slot, written, searches))
    }

    fn path(&self) -> &Path {
        &self.config.path
    }

    /// As [`Connector::connect`], to the first token that was never initialised: for making tokens. The selector is not
    /// looked at.
    ///
    /// # Errors
    /// As [`Connector::connect`]; [`ConnectError::NoToken`] when every token is initialised.
    pub fn connect_blank(&self) -> Result<Arc<dyn Token>, ConnectError> {
        self.establish(|config, life, seen| {
            let slot = search::blank(seen, &config.path)?;
            Ok(self.token(life, slot, seen))
        })
    }

    fn busy(&self) -> ConnectError {
        ConnectError::Call {
            path: self.path().display().to_string(),
            function: Function::Initialize,
            rv: Rv::CANT_LOCK,
        }
    }

    /// Overtakes what went before: its token answers `CKR_CRYPTOKI_NOT_INITIALIZED` from now on.
    fn begin(&self) -> (u64, Vec<Arc<Copy>>, Option<Arc<Copy>>) {
        let mut state = self.state.lock();
        state.attempt += 1;
        if let Some(life) = state.life.take() {
            life.close();
        }
        state.copies.retain(|copy| copy.is_ours());
        state.shared.take_if(|copy| !copy.is_ours());
        (state.attempt, state.copies.clone(), state.shared.clone())
    }

    /// Connects, and gives what `f` makes of the tokens seen.
    fn establish<T>(
        &self,
        f: impl FnOnce(&ModuleConfig, &Arc<Life>, &[Seen]) -> Result<T, ConnectError>,
    ) -> Result<T, ConnectError> {
        if inside_member() {
            return Err(ConnectError::Itself { path: self.path().display().to_string() });
        }
        let (attempt, copies, shared) = self.begin();
        let copy = match (shared, self.config.instance) {
            (Some(copy), _) => copy,
            (None, Instance::Shared) => self.share(attempt)?,
            (None, Instance::Private) => return self.start_private(attempt, &copies, f),
            (None, Instance::Auto) => match self.private(attempt, &copies) {
                Ok(copy) => return self.start(attempt, &copy, true, f),
                Err(ConnectError::Load { reason, .. }) if copies.is_empty() => {
                    let copy = self.share(attempt)?;
                    let path = self.path().display();
                    tracing::warn!(%path, %reason, "no private instance: this member shares the process's one");
                    copy
                }
                Err(e) => return Err(e),
            },
        };
        self.start(attempt, &copy, false, f)
    }

    fn start_private<T>(
        &self,
        attempt: u64,
        copies: &[Arc<Copy>],
        f: impl FnOnce(&ModuleConfig, &Arc<Life>, &[Seen]) -> Result<T, ConnectError>,
    ) -> Result<T, ConnectError> {
        let copy = self.private(attempt, copies)?;
        self.start(attempt, &copy, true, f)
    }

    /// A private copy in which nothing hangs: one that is there, else another.
    fn private(&self, attempt: u64, copies: &[Arc<Copy>]) -> Result<Arc<Copy>, ConnectError> {
        let mut wait = LEAVE;
        for copy in copies.iter().rev() {
            if free(copy, wait).is_some() {
                return Ok(Arc::clone(copy));
            }
            wait = Duration::ZERO; // older ones have had their time
        }
        if copies.len() >= COPIES {
            return Err(self.busy());
        }
        if !copies.is_empty() {
            tracing::warn!(path = %self.path().display(), hung = copies.len(), "calls hang in this member's module: another copy is loaded");
        }
        let copy = Copy::load(self.path(), true, &self.config.env)?;
        let mut state = self.state.lock();
        if state.attempt == attempt || state.copies.len() < COPIES {
            state.copies.push(Arc::clone(&copy));
        }
        Ok(copy)
    }

    /// The process's one instance of the file.
    fn share(&self, attempt: u64) -> Result<Arc<Copy>, ConnectError> {
        let key = std::fs::canonicalize(self.path()).unwrap_or_else(|_| self.path().to_owned());
        let known = SHARED.lock().get(&key).filter(|copy| copy.is_ours()).cloned();
        let copy = match known {
            Some(copy) => copy,
            None => {
                let loaded = Copy::load(self.path(), false, &self.config.env)?;
                let mut registry = SHARED.lock();
                registry.retain(|_, copy| copy.is_ours());
                // Another connector may have been quicker: one record for one instance.
                Arc::clone(registry.entry(key).or_insert(loaded))
            }
        };
        let mut state = self.state.lock();
        if state.attempt == attempt {
            state.shared = Some(Arc::clone(&copy));
        }
        Ok(copy)
    }

    /// Initialises the copy, looks at its tokens and begins a life.
    fn start<T>(
        &self,
        attempt: u64,
        copy: &Arc<Copy>,
        private: bool,
        f: impl FnOnce(&ModuleConfig, &Arc<Life>, &[Seen]) -> Result<T, ConnectError>,
    ) -> Result<T, ConnectError> {
        let _gate =
            if private { free(copy, LEAVE) } else { copy.gate.acquire(LEAVE) }.ok_or_else(|| self.busy())?;
        if private {
            copy.finalise();
        }
        let _turn = self.writes.as_ref().and_then(|writes| writes.take());
        copy.initialise(self.path(), &self.config.env, !private)?;
        let life = copy.live();
        let answer = self.look(&life).and_then(|seen| f(&self.config, &life, &seen));
        let answer = answer.and_then(|value| {
            let mut state = self.state.lock();
            if state.attempt != attempt {
                return Err(self.busy()); // overtaken while this hung
            }
            state.life = Some(Arc::clone(&life));
            Ok(value)
        });
        if answer.is_err() {
            life.close();
            if !copy.is_used() && copy.is_idle() {
                copy.finalise();
            }
        }
        answer
    }

    fn look(&self, life: &Life) -> Result<Vec<Seen>, ConnectError> {
        let call = life.enter().map_err(|rv| ConnectError::Call {
            path: self.path().display().to_string(),
            function: Function::GetInfo,
            rv,
        })?;
        search::look(&call, self.path())
    }
}

/// The copy's gate, once it is free and the calls of closed lives have left it.
fn free(copy: &Copy, wait: Duration) -> Option<Held<'_>> {
    let held = copy.gate.acquire(wait)?;
    copy.wait_idle(wait).then_some(held)
}

impl Connector for ModuleConnector {
    fn connect(&self) -> Result<Arc<dyn Token>, ConnectError> {
        self.establish(|config, life, seen| {
            let slot = search::choose(seen, &config.selector, &config.path)?;
            Ok(self.token(life, slot, seen))
        })
    }

    fn disconnect(&self) {
        let (_, copies, shared) = self.begin();
        let mut wait = LEAVE;
        for copy in copies.iter().rev() {
            if let Some(_gate) = free(copy, wait) {
                copy.finalise();
            }
            wait = Duration::ZERO;
        }
        if let Some(copy) = shared
            && let Some(_gate) = copy.gate.acquire(LEAVE)
            && !copy.is_used()
            && copy.wait_idle(LEAVE)
        {
            copy.finalise();
        }
    }

    fn hangs(&self) -> bool {
        let state = self.state.lock();
        state.life.is_none() && state.copies.iter().any(|copy| !copy.is_idle())
    }

    fn leavings(&self) -> Option<Box<dyn FnOnce() + Send>> {
        let mut left = {
            let state = self.state.lock();
            if state.copies.len() < 2 {
                return None;
            }
            state.copies.clone()
        };
        left.retain(|copy| copy.is_left());
        if left.is_empty() {
            return None;
        }
        Some(Box::new(move || {
            for copy in left {
                // Nobody finalises what is just being connected: that holds the gate until it is in use.
                if let Some(_gate) = copy.gate.acquire(Duration::ZERO)
                    && copy.is_left()
                {
                    copy.finalise();
                }
            }
        }))
    }

    fn reinitialises(&self) -> bool {
        self.config.instance != Instance::Shared && self.state.lock().shared.is_none()
    }
}

/// Every slot of the module that has a token, with the token where it tells about itself; then finalises.
///
/// The selector is not looked at.
///
/// # Errors
/// As [`Connector::connect`], about loading and initialising.
pub fn tokens(config: &ModuleConfig) -> Result<Vec<(Ulong, SlotInfo, Option<TokenInfo>)>, ConnectError> {
    let connector = ModuleConnector::new(config.clone());
    let seen = connector.establish(|_, _, seen| {
        Ok(seen.iter().map(|(slot, info, token)| (*slot, info.clone(), token.clone().ok())).collect())
    });
    connector.disconnect();
    seen
}
