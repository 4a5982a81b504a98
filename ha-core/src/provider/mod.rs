//! The provider: every slot that an application sees, for one configuration.

mod connectors;
mod ledgers;
mod source;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, unbounded};
use ha_member::ModuleConnector;
use ha_token::{Connector, LibraryInfo, Result, Rv, SessionHandle, Token, Ulong, Version};

pub use connectors::connector;
pub use ledgers::{
    backup_ledger, forget_member, forget_refused_pins, ledger_of, open_ledger_in, open_present_ledger,
    replace_ledger, retire_ledger,
};

use crate::bare::BareSlot;
use crate::board::{Board, Part};
use connectors::shared_connector;
use ledgers::open_ledger;
use source::FileSource;

use crate::config::{Config, ConfigError, RecoveryMode};
use crate::group::{ConfigSource, Group};
use crate::numbers::{LIBRARY_VERSION, SLOT_BITS};
use crate::seam::{System, Thread, World};
use crate::virtual_slot::VirtualSlot;

/// Longest that members get to be finalised once no call is in flight, where the caller's patience is shorter.
const GOODBYE: Duration = Duration::from_secs(3);

/// One configured instance: the groups' virtual slots, then the members' own slots where they are shown.
///
/// No global state: several may live in one process. All methods may be called from any thread.
pub struct Provider {
    groups: Vec<Arc<Group>>,
    /// The groups' slots, which are the first ones.
    virtual_slots: Vec<Arc<VirtualSlot>>,
    slots: Vec<Arc<dyn Token>>,
    events: Receiver<Ulong>,
    /// Kept for the slots to tell of themselves; dropped at shutdown, which ends every wait.
    tell: arc_swap::ArcSwapOption<Sender<Ulong>>,
    /// The members' own slots, with their names.
    bare: Vec<(String, Arc<BareSlot>)>,
    /// Slots made elsewhere.
    others: Vec<Arc<dyn Token>>,
    world: Arc<dyn World>,
    /// Whether threads may be made.
    threads: bool,
    stopped: AtomicBool,
}

/// What a group has of the outside.
pub struct Outside {
    /// The ways to its members, in the order of the configuration.
    pub connectors: Vec<Box<dyn Connector>>,
    /// Where it is looked whether its configuration has changed; `None`: it does not.
    pub source: Option<Box<dyn ConfigSource>>,
}

/// What the host allows a provider to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartOptions {
    /// False for `CKF_LIBRARY_CANT_CREATE_OS_THREADS`.
    pub may_create_threads: bool,
}

/// Why a provider could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is not right.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Threads are needed and not allowed.
    #[error(
        "group {group:?}: threads are needed and the application does not allow them; set deadline = \"off\" and [group.recovery] mode = \"manual\""
    )]
    NeedsThreads {
        /// The group's label.
        group: String,
    },
    /// The operating system refused a thread.
    #[error("group {group:?}: no thread could be started: {source}")]
    Thread {
        /// The group's label.
        group: String,
        /// The operating system's words.
        source: std::io::Error,
    },
    /// More slots than session handles can name.
    #[error("{0} slots are configured and {max} can be served", max = 1u64 << SLOT_BITS)]
    TooManySlots(usize),
}

impl StartError {
    /// The code `C_Initialize` answers.
    pub fn rv(&self) -> Rv {
        match self {
            StartError::Config(_) | StartError::Thread { .. } | StartError::TooManySlots(_) => {
                Rv::GENERAL_ERROR
            }
            StartError::NeedsThreads { .. } => Rv::NEED_TO_CREATE_THREADS,
        }
    }
}

impl Provider {
    /// Finds and reads the configuration (the search order is in the operators' documentation), sets up its log and
    /// starts. No file at all: a provider without slots.
    ///
    /// # Errors
    /// [`StartError`], already logged.
    pub fn from_environment(options: StartOptions) -> std::result::Result<Self, StartError> {
        let started = match Config::load() {
            Ok(None) => Ok(Self::from_slots(Vec::new())),
            Ok(Some(config)) => {
                crate::log::install(&config.log);
                Self::start(config, options)
            }
            Err(error) => {
                crate::log::install(&crate::config::Log::default());
                Err(error.into())
            }
        };
        if let Err(error) = &started {
            tracing::error!(%error, "pkcs11-ha cannot start");
        }
        started
    }

    /// Starts the groups of a configuration.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn from_config(config: Config) -> std::result::Result<Self, StartError> {
        Self::start(config, StartOptions { may_create_threads: true })
    }

    /// The same for who looks and operates: other processes of this host do not see this one as a user of the groups.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn for_operator(config: Config) -> std::result::Result<Self, StartError> {
        Self::start_as(config, StartOptions { may_create_threads: true }, Part::Operator)
    }

    pub(crate) fn start(config: Config, options: StartOptions) -> std::result::Result<Self, StartError> {
        Self::start_as(config, options, Part::User)
    }

    fn start_as(config: Config, options: StartOptions, part: Part) -> std::result::Result<Self, StartError> {
        let world = System::new();
        // An operator's command goes by the configuration that it has.
        let sources = if part == Part::User { FileSource::of(&config) } else { Vec::new() };
        let mut sources = sources.into_iter();
        let outside = config.groups.iter().map(|group| {
            let to = |m| Box::new(shared_connector(&config.state_dir, group, m)) as Box<dyn Connector>;
            let source = sources.next().flatten().map(|source| Box::new(source) as Box<dyn ConfigSource>);
            Outside { connectors: group.members.iter().map(to).collect(), source }
        });
        let outside = outside.collect();
        let bare: Vec<_> = if config.ha_only {
            Vec::new()
        } else {
            config
                .groups
                .iter()
                .flat_map(|g| g.members.iter().map(move |m| (g, m)))
                .map(|(g, m)| (m.name.clone(), Arc::new(shared_connector(&config.state_dir, g, m))))
                .collect()
        };
        let provider = Self::assemble(config, options, world, outside, bare, Some(part))?;
        provider.groups.iter().for_each(ha_member::before_exit);
        Ok(provider)
    }

    /// Starts the groups of a configuration over members and a world given from outside: for simulations. Nothing is shared
    /// with other processes of the host but the ledger.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn with_members(
        config: Config,
        world: Arc<dyn World>,
        connectors: Vec<Vec<Box<dyn Connector>>>,
    ) -> std::result::Result<Self, StartError> {
        let outside = connectors.into_iter().map(|connectors| Outside { connectors, source: None });
        Self::with_outside(config, world, outside.collect())
    }

    /// The same, of groups whose configuration may change.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn with_outside(
        config: Config,
        world: Arc<dyn World>,
        outside: Vec<Outside>,
    ) -> std::result::Result<Self, StartError> {
        Self::assemble(config, StartOptions { may_create_threads: true }, world, outside, Vec::new(), None)
    }

    fn assemble(
        config: Config,
        options: StartOptions,
        world: Arc<dyn World>,
        outside: Vec<Outside>,
        bare: Vec<(String, Arc<ModuleConnector>)>,
        part: Option<Part>,
    ) -> std::result::Result<Self, StartError> {
        let total = config.groups.len() + bare.len();
        if total > 1 << SLOT_BITS {
            return Err(StartError::TooManySlots(total));
        }
        warn_of_what_has_no_effect(&config);
        let (tell, events) = unbounded();
        let mut groups = Vec::new();
        let mut slots: Vec<Arc<dyn Token>> = Vec::new();
        let mut virtual_slots = Vec::new();
        for (group_config, outside) in config.groups.into_iter().zip(outside) {
            let threads = group_config.recovery.mode == RecoveryMode::Auto || group_config.deadline.is_some();
            let label = group_config.label.clone();
            if threads && !options.may_create_threads {
                return Err(StartError::NeedsThreads { group: label });
            }
            let ledger = open_ledger(&config.state_dir, &group_config, &*world);
            let board =
                part.and_then(|part| Board::open(&config.state_dir, &label, part, world.wall_clock()));
            let Outside { connectors, source } = outside;
            let configuration = (config.digest.clone(), source);
            let group =
                Group::new(group_config, connectors, ledger, board, Arc::clone(&world), configuration);
            let number = slots.len() as Ulong;
            let slot = Arc::new(VirtualSlot::new(Arc::clone(&group), number));
            virtual_slots.push(Arc::clone(&slot));
            slots.push(slot);
            group.start(threads).map_err(|source| StartError::Thread { group: label, source })?;
            let teller = tell.clone();
            // A token that is there when the start ends is seen in the list of slots, and has not appeared since.
            _ = group.when_present(move || _ = teller.send(number));
            groups.push(group);
        }
        let mut bare_slots = Vec::new();
        for (name, connector) in bare {
            let slot = Arc::new(BareSlot::new(name.clone(), connector, slots.len() as Ulong));
            bare_slots.push((name, Arc::clone(&slot)));
            slots.push(slot);
        }
        Ok(Provider {
            groups,
            virtual_slots,
            slots,
            events,
            tell: arc_swap::ArcSwapOption::new(Some(Arc::new(tell))),
            bare: bare_slots,
            others: Vec::new(),
            world,
            threads: options.may_create_threads,
            stopped: AtomicBool::new(false),
        })
    }

    /// A provider over slots made elsewhere.
    pub fn from_slots(slots: Vec<Arc<dyn Token>>) -> Self {
        let (tell, events) = unbounded();
        Provider {
            groups: Vec::new(),
            virtual_slots: Vec::new(),
            others: slots.clone(),
            slots,
            events,
            tell: arc_swap::ArcSwapOption::new(Some(Arc::new(tell))),
            bare: Vec::new(),
            world: System::new(),
            threads: true,
            stopped: AtomicBool::new(false),
        }
    }

    /// What `C_GetInfo` answers.
    pub fn info() -> LibraryInfo {
        LibraryInfo {
            cryptoki_version: Version { major: 3, minor: 2 },
            manufacturer: "pkcs11-ha".into(),
            description: "HA group virtual slot".into(),
            library_version: LIBRARY_VERSION,
        }
    }

    /// The groups in the order of the configuration.
    pub fn groups(&self) -> &[Arc<Group>] {
        &self.groups
    }

    /// The slots in order; the position is the slot's number.
    pub fn slots(&self) -> &[Arc<dyn Token>] {
        &self.slots
    }

    /// One slot.
    ///
    /// # Errors
    /// `CKR_SLOT_ID_INVALID`.
    pub fn slot(&self, id: Ulong) -> Result<&Arc<dyn Token>> {
        usize::try_from(id).ok().and_then(|i| self.slots.get(i)).ok_or(Rv::SLOT_ID_INVALID)
    }

    /// The slot that a session handle belongs to, with its number. Whether the session is open its token knows.
    ///
    /// # Errors
    /// `CKR_SESSION_HANDLE_INVALID` when it can be no slot's.
    pub fn session(&self, session: SessionHandle) -> Result<(Ulong, &Arc<dyn Token>)> {
        let id = session.0 & ((1 << SLOT_BITS) - 1);
        let slot = self.slot(id).map_err(|_| Rv::SESSION_HANDLE_INVALID)?;
        Ok((id, slot))
    }

    /// As [`session`](Self::session), with virtual slots told apart: what is called with every signature is called on
    /// them directly.
    ///
    /// # Errors
    /// As [`session`](Self::session).
    #[inline]
    pub fn serving(&self, session: SessionHandle) -> Result<Serving<'_>> {
        let id = session.0 & ((1 << SLOT_BITS) - 1);
        match usize::try_from(id).ok().and_then(|i| self.virtual_slots.get(i)) {
            Some(slot) => Ok(Serving::Virtual(slot)),
            None => self.session(session).map(|(_, token)| Serving::Other(&**token)),
        }
    }

    /// `C_WaitForSlotEvent`: the slot where a token appeared.
    ///
    /// # Errors
    /// `CKR_NO_EVENT` at once if `block` is false and nothing happened; `CKR_CRYPTOKI_NOT_INITIALIZED` when the provider
    /// is shut down while waiting.
    #[expect(
        clippy::disallowed_methods,
        reason = "it is the application that waits, for its own call's answer"
    )]
    pub fn wait_for_slot_event(&self, block: bool) -> Result<Ulong> {
        if !block {
            return self.events.try_recv().map_err(|_| Rv::NO_EVENT);
        }
        match self.events.recv() {
            Ok(STOP) | Err(_) => {
                // Passed on: there may be others waiting.
                if let Some(tell) = &*self.tell.load() {
                    _ = tell.send(STOP);
                }
                Err(Rv::CRYPTOKI_NOT_INITIALIZED)
            }
            Ok(slot) => Ok(slot),
        }
    }

    /// Stops: waits of slot events end, sessions are closed, keepers' threads are joined, members finalised. At most
    /// `patience` is waited for calls in flight; then, for members to finalise, what is left of it, and at least three
    /// seconds, or the longest deadline if that is less. Answers the names of the members in which something hangs: they are
    /// left behind, with the threads that are in them. Idempotent: a second call answers nothing. May be called from any
    /// thread.
    pub fn shutdown(&self, patience: Duration) -> Vec<String> {
        if self.stopped.swap(true, Ordering::AcqRel) {
            return Vec::new();
        }
        if let Some(tell) = &*self.tell.load() {
            _ = tell.send(STOP);
        }
        let until = self.world.now() + patience;
        self.groups.iter().for_each(|g| g.begin_stop());
        self.drain(until);
        let parting: Vec<_> = self.groups.iter().map(|g| g.part()).collect();
        let bare: Vec<_> = self.bare.iter().map(|(name, slot)| (name, self.part_with(slot))).collect();
        for slot in &self.others {
            _ = slot.close_all_sessions();
        }
        let until = until.max(self.world.now() + self.goodbye());
        let mut hung: Vec<String> =
            self.groups.iter().zip(parting).flat_map(|(g, p)| g.parted(p, until)).collect();
        let pause = self.world.event();
        for (name, thread) in bare {
            let Some(thread) = thread else { continue };
            while !thread.is_finished() && self.world.now() < until {
                pause.wait(Some(PAUSE));
            }
            if thread.is_finished() {
                thread.join();
            } else if !hung.contains(name) {
                tracing::warn!(
                    member = name,
                    "a call in the member's own slot did not return in time; it is left behind"
                );
                hung.push(name.clone());
            }
        }
        hung
    }

    /// How long members may take to finalise: no longer than for any other call.
    fn goodbye(&self) -> Duration {
        let deadlines = self.groups.iter().map(|group| group.config.deadline.unwrap_or(GOODBYE));
        deadlines.max().unwrap_or(GOODBYE).min(GOODBYE)
    }

    /// The process was killed: it ends without a shutdown, and what is dropped of it later does nothing.
    #[cfg(feature = "simulation")]
    pub fn forsake(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Closes the virtual sessions as their calls end, and waits for what else is in flight.
    fn drain(&self, until: Duration) {
        let pause = self.world.event();
        loop {
            // Every slot's turn: `any` would stop at the first.
            let open = self.virtual_slots.iter().filter(|slot| !slot.close_free()).count();
            let busy = open > 0 || self.groups.iter().any(|g| g.is_busy());
            if !busy || self.world.now() >= until {
                return;
            }
            pause.wait(Some(PAUSE));
        }
    }

    /// Ends a member's own slot, on a thread of its own where there may be threads.
    fn part_with(&self, slot: &Arc<BareSlot>) -> Option<Box<dyn Thread>> {
        if self.threads {
            let ends = Arc::clone(slot);
            let thread = self.world.spawn("ha-stop-slot", Box::new(move || ends.end()));
            return thread
                .inspect_err(|error| tracing::warn!(%error, "a member's own slot is not finalised"))
                .ok();
        }
        slot.end();
        None
    }
}

/// A session's slot.
pub enum Serving<'a> {
    /// A group's virtual slot.
    Virtual(&'a VirtualSlot),
    /// A member's own slot, or one made elsewhere.
    Other(&'a dyn Token),
}

/// The pause between two looks at something that another thread is about to end.
const PAUSE: Duration = Duration::from_millis(1);

/// Told in place of a slot's number when the provider stops.
const STOP: Ulong = Ulong::MAX;

impl Drop for Provider {
    fn drop(&mut self) {
        self.shutdown(Duration::from_secs(5));
    }
}

/// A setting that is silently not kept is worse than one that does not exist.
fn warn_of_what_has_no_effect(config: &Config) {
    let file = config.path.as_ref().map(|p| p.display().to_string());
    for without in config.without_effect() {
        tracing::warn!(
            file,
            group = without.group,
            member = without.member,
            key = without.key,
            consequence = without.consequence,
            "a setting has no effect in this version"
        );
    }
}
