//! `hactl`: the operator's command for HA groups.
//!
//! Exit status: 0 all is well, 1 the answer is bad news, 2 usage or configuration error; 130 a drill that was interrupted.

mod adopt;
mod check;
mod config;
mod config_file;
mod context;
mod dissolve;
mod doctor;
mod drill;
mod import_luna;
mod init;
mod ledger;
mod member;
mod membership;
mod new_member;
mod output;
mod report;
mod resolve;
mod slots;
mod status;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ha_core::board::What;
use tracing_subscriber::filter::LevelFilter;

/// Operates HA groups of PKCS#11 tokens.
#[derive(Parser)]
#[command(name = "hactl", version, about, disable_help_subcommand = true)]
struct Cli {
    /// The configuration file; without it the usual search order.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One JSON document on standard output, and nothing else there.
    #[arg(long, global = true)]
    json: bool,
    /// A file that holds the PIN (readable by its owner only); else $PKCS11_HA_PIN, else a prompt.
    #[arg(long, global = true, value_name = "FILE")]
    pin_file: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Makes SoftHSM tokens and a working ha.toml in a folder: a first group in one command.
    Init {
        /// How many tokens.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=32))]
        softhsm: u8,
        /// The folder; it must be empty or not exist.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The group's label.
        #[arg(long, default_value = "ha1")]
        label: String,
    },
    /// Slots, as an application sees them.
    Slot {
        #[command(subcommand)]
        verb: SlotVerb,
    },
    /// The members' state.
    Status {
        /// Refresh every second, until interrupted.
        #[arg(long)]
        watch: bool,
    },
    /// Compares the objects of the members; with --prove, proves that copies are the same key.
    Check {
        /// Challenge every copy.
        #[arg(long)]
        prove: bool,
        /// Writes what every copy was asked and answered as one file, .html for people or .json for programs, so that others can
        /// verify it; may be given once for each.
        #[arg(long, value_name = "FILE", requires = "prove")]
        report: Vec<report::ReportFile>,
    },
    /// Lists objects of one name that are different on the members, or has one of them stay and destroys the others.
    Resolve(resolve::Arguments),
    /// Replicates what is missing, applies what is pending, then checks.
    Sync {
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
        /// Only destroy what this member's token holds and the group does not know: objects from before it, or made behind its
        /// back, and what came back with a token that was set back.
        #[arg(long, value_name = "MEMBER")]
        discard: Option<String>,
        /// The group's label, where several have a member of that name.
        #[arg(long, value_name = "LABEL", requires = "discard")]
        group: Option<String>,
    },
    /// Makes the keys that one member held before the group the group's own.
    Adopt {
        /// The member's name.
        member: String,
        /// The group's label, where several have a member of that name.
        #[arg(long, value_name = "LABEL")]
        group: Option<String>,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Ends a group: takes its own objects off the tokens and leaves plain tokens, with the applications' keys.
    Dissolve {
        /// The group's label, where there are several.
        #[arg(long, value_name = "LABEL")]
        group: Option<String>,
    },
    /// The ledger: what the group remembers on this host.
    Ledger {
        #[command(subcommand)]
        verb: LedgerVerb,
    },
    /// Takes members into the group and out of it; takes one out of use, and back, in every process that uses the group.
    Member {
        #[command(subcommand)]
        verb: MemberVerb,
    },
    /// The configuration file.
    Config {
        #[command(subcommand)]
        verb: ConfigVerb,
    },
    /// Practises failover under load, on the configured group or a throw-away one, and shows figures.
    Drill(drill::Arguments),
    /// Tries configuration, modules, tokens, PINs, permissions and versions, and says what to mend.
    Doctor,
}

#[derive(Subcommand)]
enum SlotVerb {
    /// Every slot an application sees, with its kind.
    List,
}

#[derive(Subcommand)]
enum MemberVerb {
    /// Takes an empty token into the group: enrolled, given every key, each proven; then the configuration names it.
    Add {
        /// The new member's name.
        name: String,
        #[command(flatten)]
        new: Box<new_member::NewMember>,
        #[command(flatten)]
        trusting: membership::Trusting,
        #[command(flatten)]
        how: membership::How,
    },
    /// Gives a member, which may be dead, another token: the new one joins in its place.
    Replace {
        /// The member that leaves.
        old: String,
        /// The name of the new one; the same for the token that the configuration names, made anew.
        name: String,
        #[command(flatten)]
        new: Box<new_member::NewMember>,
        #[command(flatten)]
        trusting: membership::Trusting,
        #[command(flatten)]
        how: membership::How,
        #[command(flatten)]
        given_up: membership::GivenUp,
    },
    /// Takes a member out of the group, once every object is proven on others.
    Remove {
        /// The member that leaves.
        name: String,
        /// Destroys what its token holds of the group.
        #[arg(long)]
        destroy: bool,
        #[command(flatten)]
        how: membership::How,
        #[command(flatten)]
        given_up: membership::GivenUp,
    },
    /// Changes what a member is for.
    Set {
        /// The member's name.
        name: String,
        /// active, or standby: used only when no active member is up.
        #[arg(long)]
        role: Role,
        #[command(flatten)]
        how: membership::How,
    },
    /// Takes a member out of use, for maintenance, until `resume`: calls under way end, and new ones go to the others.
    Drain {
        #[command(flatten)]
        arguments: member::Arguments,
        /// Also where no other member serves.
        #[arg(long)]
        force: bool,
    },
    /// Takes a drained member back: it is connected, brought up to date and used.
    Resume {
        #[command(flatten)]
        arguments: member::Arguments,
    },
    /// Has a member that is not up tried at once, also where `mode = "manual"`.
    Recover {
        #[command(flatten)]
        arguments: member::Arguments,
    },
}

#[derive(Subcommand)]
enum LedgerVerb {
    /// Writes the ledger into a new file, also while processes use the group.
    Backup {
        /// The file; none may be there.
        file: PathBuf,
        /// The group's label, where there are several.
        #[arg(long, value_name = "LABEL")]
        group: Option<String>,
    },
    /// Makes of a backup the group's ledger, once it was compared with every token.
    Restore {
        /// The backup.
        file: PathBuf,
        /// The group's label, where there are several.
        #[arg(long, value_name = "LABEL")]
        group: Option<String>,
        #[command(flatten)]
        how: BringingBack,
    },
    /// Makes the group's ledger, which was lost, of what its members' tokens have recorded, once it was compared with each.
    Rebuild {
        /// The group's label, where there are several.
        #[arg(long, value_name = "LABEL")]
        group: Option<String>,
        #[command(flatten)]
        how: BringingBack,
    },
}

/// What only an operator can tell of a ledger that comes back.
#[derive(clap::Args)]
struct BringingBack {
    /// What is gone from some tokens, and not from all.
    #[arg(long)]
    gone: Option<ledger::Gone>,
    /// Also where the group has a ledger.
    #[arg(long)]
    replace: bool,
}

impl From<BringingBack> for ledger::How {
    fn from(how: BringingBack) -> Self {
        ledger::How { gone: how.gone, replace: how.replace }
    }
}

/// What a member is for.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Role {
    Active,
    Standby,
}

impl From<Role> for ha_core::config::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Active => ha_core::config::Role::Active,
            Role::Standby => ha_core::config::Role::Standby,
        }
    }
}

#[derive(Subcommand)]
enum ConfigVerb {
    /// Is the file right?
    Check,
    /// Prints the ha.toml for the HA groups of a Luna client; what it leaves out is told on standard error.
    ImportLuna {
        /// The client's Chrystoki.conf.
        #[arg(value_name = "Chrystoki.conf")]
        file: PathBuf,
        /// The client's PKCS#11 library, where it is not the one that the file names.
        #[arg(long, value_name = "PATH")]
        module: Option<PathBuf>,
    },
}

/// What a verb answers: whether all is well.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Exit status 0.
    Well,
    /// Exit status 1.
    BadNews,
    /// Exit status 130: what a shell says of a program that was interrupted.
    Interrupted,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // What becomes of members that are broken on purpose a drill tells itself.
    let level = if matches!(cli.verb, Verb::Drill(_)) { LevelFilter::ERROR } else { LevelFilter::WARN };
    tracing_subscriber::fmt().with_max_level(level).with_target(false).with_writer(std::io::stderr).init();
    let context = context::Context { config: cli.config, json: cli.json, pin_file: cli.pin_file };
    let answer = match cli.verb {
        Verb::Init { softhsm, dir, label } => init::run(&context, softhsm, &dir, &label),
        Verb::Slot { verb: SlotVerb::List } => slots::list(&context),
        Verb::Status { watch } => status::run(&context, watch),
        Verb::Check { prove, report } => check::run(&context, prove, &report),
        Verb::Resolve(arguments) => resolve::run(&context, &arguments),
        Verb::Sync { dry_run, discard: Some(member), group } => {
            adopt::discard(&context, &member, group.as_deref(), dry_run)
        }
        Verb::Sync { dry_run, .. } => adopt::sync(&context, dry_run),
        Verb::Adopt { member, group, dry_run } => adopt::adopt(&context, &member, group.as_deref(), dry_run),
        Verb::Member { verb: MemberVerb::Set { name, role, how } } => {
            membership::set(&context, &name, &how, role.into())
        }
        Verb::Ledger { verb: LedgerVerb::Backup { file, group } } => {
            ledger::backup(&context, &file, group.as_deref())
        }
        Verb::Ledger { verb: LedgerVerb::Restore { file, group, how } } => {
            ledger::restore(&context, &file, group.as_deref(), how.into())
        }
        Verb::Ledger { verb: LedgerVerb::Rebuild { group, how } } => {
            ledger::rebuild(&context, group.as_deref(), how.into())
        }
        Verb::Dissolve { group } => dissolve::run(&context, group.as_deref()),
        Verb::Member { verb: MemberVerb::Add { name, new, trusting, how } } => {
            membership::add(&context, &name, &new, &trusting, &how)
        }
        Verb::Member { verb: MemberVerb::Replace { old, name, new, trusting, how, given_up } } => {
            membership::replace(&context, &old, &name, &new, &trusting, &how, given_up)
        }
        Verb::Member { verb: MemberVerb::Remove { name, destroy, how, given_up } } => {
            membership::remove(&context, &name, &how, destroy, given_up)
        }
        Verb::Member { verb: MemberVerb::Drain { arguments, force } } => {
            member::run(&context, What::Drain, &arguments, force)
        }
        Verb::Member { verb: MemberVerb::Resume { arguments } } => {
            member::run(&context, What::Resume, &arguments, false)
        }
        Verb::Member { verb: MemberVerb::Recover { arguments } } => {
            member::run(&context, What::Recover, &arguments, false)
        }
        Verb::Config { verb: ConfigVerb::Check } => config::check(&context),
        Verb::Config { verb: ConfigVerb::ImportLuna { file, module } } => {
            import_luna::run(&context, &file, module.as_deref())
        }
        Verb::Drill(arguments) => drill::run(&context, &arguments),
        Verb::Doctor => doctor::run(&context),
    };
    match answer {
        Ok(Answer::Well) => ExitCode::SUCCESS,
        Ok(Answer::BadNews) => ExitCode::from(1),
        Ok(Answer::Interrupted) => ExitCode::from(drill::INTERRUPTED),
        Err(error) => {
            // Whoever reads it may be gone.
            _ = writeln!(std::io::stderr().lock(), "hactl: {error:#}");
            if context.json {
                // A program reads one document, whatever came of it. Where that cannot be written the status says it.
                _ = output::json(&serde_json::json!({"schema": 1, "error": format!("{error:#}")}));
            }
            // What a token answered is news of the tokens; everything else is the caller's to mend.
            let news = error.is::<context::BadNews>() || error.is::<ha_token::Rv>();
            ExitCode::from(if news { 1 } else { 2 })
        }
    }
}
