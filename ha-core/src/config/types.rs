//! The configuration as the rest of the library sees it: checked, with every default filled in.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::PinSource;
use crate::policy::balance::Balance;
use crate::policy::health::Settings;
use ha_token::{Selector, Ulong};

/// A whole configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The file it was read from.
    pub path: Option<PathBuf>,
    /// A digest of its text.
    pub digest: Option<String>,
    /// Only virtual slots; else every member's own slot too.
    pub ha_only: bool,
    /// Where the ledgers are.
    pub state_dir: PathBuf,
    /// The log.
    pub log: Log,
    /// The groups, in the order of the file.
    pub groups: Vec<GroupConfig>,
}

/// The `[log]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least level that is written.
    pub level: LogLevel,
    /// Where to.
    pub target: LogTarget,
    /// How.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Log { level: LogLevel::Warn, target: LogTarget::Stderr, format: LogFormat::Text }
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$vdoc])* $variant,)*
        }

        impl $name {
            /// The words of the file, in order.
            pub(super) const WORDS: &[&str] = &[$($word,)*];

            /// What a word of the file means.
            pub(super) fn from_word(word: &str) -> Option<Self> {
                match word {
                    $($word => Some($name::$variant),)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $($name::$variant => $word,)* })
            }
        }
    };
}

words! {
    /// Levels of the log.
    LogLevel {
        /// Errors only.
        Error = "error",
        /// And warnings.
        Warn = "warn",
        /// And what an operator may want to know.
        Info = "info",
        /// And what a developer may want to know.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

words! {
    /// How a log line looks.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

/// Where the log goes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum LogTarget {
    /// Standard error.
    #[default]
    Stderr,
    /// The systemd journal.
    Journal,
    /// The local syslog daemon.
    Syslog,
    /// A file, opened again when it was moved away.
    File(PathBuf),
}

words! {
    /// How a key asked for with `CKA_EXTRACTABLE` false is replicated.
    NonExtractable {
        /// Under the group key whose unwrap template forbids extraction.
        Escrow = "escrow",
        /// Not at all: the request is refused.
        Refuse = "refuse",
        /// Not at all: the key stays on one member.
        Local = "local",
    }
}

words! {
    /// What is done with a token key that no wrapping mechanism here can copy.
    Uncopyable {
        /// The request is refused.
        Refuse = "refuse",
        /// The key stays on one member.
        Local = "local",
        /// It is copied through this process's memory.
        HostMemory = "host-memory",
    }
}

words! {
    /// What becomes of session objects when their member fails.
    SessionObjects {
        /// They are lost with it.
        Local = "local",
        /// They are made again on the member that takes over.
        Replay = "replay",
    }
}

words! {
    /// What `C_InitToken` on the virtual slot does.
    InitToken {
        /// It is refused.
        Refuse = "refuse",
        /// It wipes every member.
        All = "all",
    }
}

words! {
    /// How a failed member comes back.
    RecoveryMode {
        /// It is probed in the background.
        Auto = "auto",
        /// When the operator says so.
        Manual = "manual",
    }
}

words! {
    /// Whether a member serves always, or when no active one is up.
    Role {
        /// Always.
        Active = "active",
        /// When no active one is up.
        Standby = "standby",
    }
}

words! {
    /// Whether a member has a copy of its module for itself.
    InstanceMode {
        /// A private copy, or the shared one with a warning where none can be had.
        Auto = "auto",
        /// A private copy, or an error.
        Private = "private",
        /// The one instance of that path.
        Shared = "shared",
    }
}

/// One `[[group]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupConfig {
    /// The virtual token's label, at most 32 bytes.
    pub label: String,
    /// How members are chosen.
    pub balance: Balance,
    /// Longest that a call waits for one member; `None`: calls are made on the caller's own thread.
    pub deadline: Option<Duration>,
    /// The same for making keys.
    pub generate_deadline: Option<Duration>,
    /// Copies that a new token object must have before its creation is acknowledged.
    pub min_copies: usize,
    /// Keys that may not be extracted.
    pub non_extractable: NonExtractable,
    /// Keys that cannot be wrapped.
    pub uncopyable: Uncopyable,
    /// Session objects and failover.
    pub session_objects: SessionObjects,
    /// Input bytes of a multi-part operation kept for a failover.
    pub replay_limit: usize,
    /// Every signature is verified before it is handed out.
    pub verify_signatures: bool,
    /// Templates that ask for both wrapping and decrypting are refused.
    pub strict_usage: bool,
    /// `C_InitToken`.
    pub init_token: InitToken,
    /// Vendor mechanisms whose parameter may pass unread.
    pub vendor_mechanisms: Vec<Ulong>,
    /// `[group.recovery]`.
    pub recovery: Recovery,
    /// The members, in the order of the file.
    pub members: Vec<MemberConfig>,
}

impl GroupConfig {
    /// A group with these members, and all else as it is where the file is silent.
    pub fn new(label: &str, members: Vec<MemberConfig>) -> Self {
        GroupConfig {
            label: label.into(),
            balance: Balance::LeastBusy,
            deadline: Some(Duration::from_secs(10)),
            generate_deadline: Some(Duration::from_secs(120)),
            min_copies: members.len().min(2),
            non_extractable: NonExtractable::Escrow,
            uncopyable: Uncopyable::Refuse,
            session_objects: SessionObjects::Local,
            replay_limit: 1 << 20,
            verify_signatures: false,
            strict_usage: false,
            init_token: InitToken::Refuse,
            vendor_mechanisms: Vec::new(),
            recovery: Recovery::default(),
            members,
        }
    }
}

/// `[group.recovery]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Who decides.
    pub mode: RecoveryMode,
    /// Before the first probe.
    pub interval: Duration,
    /// The longest time between probes.
    pub max_interval: Duration,
}

impl Default for Recovery {
    fn default() -> Self {
        Recovery {
            mode: RecoveryMode::Auto,
            interval: Duration::from_secs(1),
            max_interval: Duration::from_secs(60),
        }
    }
}

impl From<&Recovery> for Settings {
    fn from(r: &Recovery) -> Self {
        Settings {
            interval: r.interval,
            max_interval: r.max_interval,
            takes_back: r.mode == RecoveryMode::Auto,
        }
    }
}

/// One `[[group.member]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberConfig {
    /// Unique in the group.
    pub name: String,
    /// The PKCS#11 module.
    pub module: PathBuf,
    /// Which of its tokens.
    pub selector: Selector,
    /// Active or standby.
    pub role: Role,
    /// Private or shared.
    pub instance: InstanceMode,
    /// What a private instance sees in its environment.
    pub env: BTreeMap<String, String>,
    /// The member's own PIN, where it differs from the application's.
    pub pin: Option<PinSource>,
    /// Pins the member's enrolment key.
    pub fingerprint: Option<String>,
}

impl MemberConfig {
    /// A member with this token, and all else as it is where the file is silent.
    pub fn new(module: impl Into<PathBuf>, selector: Selector) -> Self {
        MemberConfig {
            name: selector.label.clone().or_else(|| selector.serial.clone()).unwrap_or_default(),
            module: module.into(),
            selector,
            role: Role::Active,
            instance: InstanceMode::Auto,
            env: BTreeMap::new(),
            pin: None,
            fingerprint: None,
        }
    }
}
