//! The library's context: [`Pkcs11`], one configuration that is started and stopped.

mod slots;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use cryptoki::error::Result;
use ha_token::Rv;
use ha_token::ck::{CK_C_INITIALIZE_ARGS, CKF_LIBRARY_CANT_CREATE_OS_THREADS};

pub use cryptoki::context::{CInitializeArgs, CInitializeFlags, Function, Info};

use super::convert::{self, OrError};
use crate::config::Config;
use crate::provider::{Provider, StartError, StartOptions};
use crate::sync::Mutex;

/// How long `finalize`, and the last clone's drop, wait for calls that are in flight.
const PATIENCE: Duration = Duration::from_secs(10);

/// One instance of the library: the groups of one configuration, each a slot.
///
/// Clones are the same instance. Nothing is global: several instances, of different configurations, live side by side
/// in one process. An instance that is dropped with its last session while initialised is finalised.
#[derive(Clone)]
pub struct Pkcs11 {
    instance: Arc<Instance>,
}

/// Where the configuration comes from.
enum Source {
    /// Given by the program.
    Given(Box<Config>),
    /// This file.
    File(PathBuf),
    /// The search order of the provider.
    Environment,
}

struct Instance {
    source: Source,
    running: ArcSwapOption<Running>,
    /// Held while starting, so that of two `initialize` calls one is told that it came second.
    starting: Mutex<()>,
}

/// What is there between `initialize` and `finalize`. Sessions hold it too: one that was opened before a `finalize`
/// can never act on what a later `initialize` made.
pub(super) struct Running {
    provider: Provider,
    stopped: AtomicBool,
}

impl Running {
    /// The provider, while it is not stopped.
    pub(super) fn provider(&self) -> ha_token::Result<&Provider> {
        if self.stopped.load(Ordering::Acquire) {
            Err(Rv::CRYPTOKI_NOT_INITIALIZED)
        } else {
            Ok(&self.provider)
        }
    }

    /// Stops the provider and answers what hung; `None` when it was stopped already.
    fn stop(&self, patience: Duration) -> Option<Vec<String>> {
        let first = !self.stopped.swap(true, Ordering::AcqRel);
        first.then(|| self.provider.shutdown(patience))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop(PATIENCE);
    }
}

impl Pkcs11 {
    /// An instance of a configuration that the program has made or read. [`Pkcs11::initialize`] starts it.
    ///
    /// # Errors
    /// None today; a configuration that cannot be started is told by [`Pkcs11::initialize`].
    pub fn from_config(config: Config) -> Result<Self> {
        Ok(Self::of(Source::Given(Box::new(config))))
    }

    /// An instance of the configuration in this file (`ha.toml`). The file is read by [`Pkcs11::initialize`].
    ///
    /// # Errors
    /// None today; cryptoki's signature, which loads a module here.
    pub fn new<P>(filename: P) -> Result<Self>
    where
        P: AsRef<Path>,
    {
        Ok(Self::of(Source::File(filename.as_ref().to_owned())))
    }

    /// An instance of the configuration that the module itself would find: `$PKCS11_HA_CONF`, the user's file, the
    /// system's. The file is looked for by [`Pkcs11::initialize`].
    ///
    /// # Errors
    /// None today; cryptoki's signature.
    pub fn new_from_self() -> Result<Self> {
        Ok(Self::of(Source::Environment))
    }

    fn of(source: Source) -> Self {
        Pkcs11 {
            instance: Arc::new(Instance {
                source,
                running: ArcSwapOption::empty(),
                starting: Mutex::new(()),
            }),
        }
    }

    /// Reads the configuration and starts.
    ///
    /// # Errors
    /// `CKR_CRYPTOKI_ALREADY_INITIALIZED`; `CKR_ARGUMENTS_BAD` for a reserved pointer;
    /// `CKR_NEED_TO_CREATE_THREADS` where the configuration needs threads and `init_args` forbids them;
    /// `CKR_GENERAL_ERROR` for a wrong configuration, which the log explains.
    pub fn initialize(&self, init_args: CInitializeArgs) -> Result<()> {
        self.start(init_args).or_error(Function::Initialize)
    }

    fn start(&self, init_args: CInitializeArgs) -> ha_token::Result<()> {
        let args = CK_C_INITIALIZE_ARGS::from(init_args);
        if !args.pReserved.is_null() {
            return Err(Rv::ARGUMENTS_BAD);
        }
        let options =
            StartOptions { may_create_threads: args.flags & CKF_LIBRARY_CANT_CREATE_OS_THREADS == 0 };
        let _starting = self.instance.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.instance.running.load().is_some() {
            return Err(Rv::CRYPTOKI_ALREADY_INITIALIZED);
        }
        let provider = self.instance.source.start(options)?;
        let running = Running { provider, stopped: AtomicBool::new(false) };
        self.instance.running.store(Some(Arc::new(running)));
        Ok(())
    }

    /// Stops: calls in flight are waited for, for some seconds, and every session is closed. Other clones and sessions
    /// answer `CKR_CRYPTOKI_NOT_INITIALIZED` from then on.
    ///
    /// # Errors
    /// `CKR_CRYPTOKI_NOT_INITIALIZED`.
    pub fn finalize(self) -> Result<()> {
        for member in self.shutdown(PATIENCE)? {
            tracing::warn!(%member, "a member still hangs after finalisation and is left behind");
        }
        Ok(())
    }

    /// As [`Pkcs11::finalize`], waiting for calls in flight for at most `patience`. Answers the names of the members
    /// that still hang and are left behind.
    ///
    /// # Errors
    /// `CKR_CRYPTOKI_NOT_INITIALIZED`.
    pub fn shutdown(&self, patience: Duration) -> Result<Vec<String>> {
        self.instance
            .running
            .swap(None)
            .and_then(|running| running.stop(patience))
            .ok_or_else(|| convert::error(Rv::CRYPTOKI_NOT_INITIALIZED, Function::Finalize))
    }

    /// Whether it is initialised.
    pub fn is_initialized(&self) -> bool {
        self.instance.running.load().is_some()
    }

    /// What `C_GetInfo` answers.
    ///
    /// # Errors
    /// `CKR_CRYPTOKI_NOT_INITIALIZED`.
    pub fn get_library_info(&self) -> Result<Info> {
        self.running(Function::GetInfo)?;
        convert::library_info(&Provider::info())
    }

    /// Whether the function is in the function list: every one of PKCS#11 3.2 is. One that is refused on purpose, or
    /// that no member can do, answers so when it is called.
    pub fn is_fn_supported(&self, _function: Function) -> bool {
        true
    }

    /// What is running.
    pub(super) fn running(&self, function: Function) -> Result<Arc<Running>> {
        self.instance
            .running
            .load_full()
            .ok_or_else(|| convert::error(Rv::CRYPTOKI_NOT_INITIALIZED, function))
    }
}

impl Source {
    fn start(&self, options: StartOptions) -> ha_token::Result<Provider> {
        match self {
            Source::Given(config) => logged(Provider::start((**config).clone(), options)),
            Source::File(path) => {
                let config = Config::from_file(path).map_err(StartError::Config);
                logged(config.and_then(|config| Provider::start(config, options)))
            }
            Source::Environment => Provider::from_environment(options).map_err(|e| e.rv()),
        }
    }
}

/// The log has the whole story; a return code tells little of it.
fn logged(started: std::result::Result<Provider, StartError>) -> ha_token::Result<Provider> {
    started.map_err(|error| {
        tracing::error!(%error, "pkcs11-ha cannot start");
        error.rv()
    })
}

impl fmt::Debug for Pkcs11 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source: &dyn fmt::Debug = match &self.instance.source {
            Source::Given(_) => &"given",
            Source::File(path) => path,
            Source::Environment => &"environment",
        };
        f.debug_struct("Pkcs11")
            .field("configuration", source)
            .field("initialized", &self.is_initialized())
            .finish()
    }
}
