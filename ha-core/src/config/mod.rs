//! The configuration file: where it is looked for, what it says, whether it is right.

mod effect;
mod parse;
mod pin;
mod reader;
mod search;
#[cfg(test)]
mod tests;
mod types;
mod uri;
mod values;
mod write;

pub use effect::WithoutEffect;
pub use parse::ConfigError;
pub use pin::{COMMAND_LIMIT, PinError, PinSource};
pub use reader::Mistake;
pub use search::Surroundings;
pub use types::{
    Config, GroupConfig, InitToken, InstanceMode, Log, LogFormat, LogLevel, LogTarget, MemberConfig,
    NonExtractable, Recovery, RecoveryMode, Role, SessionObjects, Uncopyable,
};
pub use values::{DURATION, duration};
