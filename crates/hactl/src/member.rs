//! `hactl member drain/resume/recover NAME`: what an operator wants of a member, told to every process that uses the
//! group, and what each of them then sees.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use ha_core::board::{Board, Part, Process, Seen, Turn, What};
use ha_core::config::{Config, GroupConfig};
use ha_core::policy::health::State;
use ha_core::provider::{Provider, forget_refused_pins};
use serde::Serialize;

use crate::context::{BadNews, Context};
use crate::{Answer, output};

/// A day: nobody waits for longer.
const LONGEST: u64 = 86_400;

/// How long another operator's command is waited for: it may be connecting members that do not answer.
const OTHERS_TURN: Duration = Duration::from_secs(30);

/// Which member, and how long to wait.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The member's name.
    member: String,
    /// The group's label, where several have a member of that name.
    #[arg(long, value_name = "LABEL")]
    group: Option<String>,
    /// How many seconds the running processes are waited for.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=LONGEST))]
    timeout: u64,
}

#[derive(Serialize)]
struct Document {
    schema: u8,
    group: String,
    member: String,
    wish: &'static str,
    done: bool,
    processes: Vec<ProcessDocument>,
}

#[derive(Serialize)]
struct ProcessDocument {
    pid: u32,
    program: String,
    state: String,
    done: bool,
    fault: Option<String>,
}

/// Has a member drained, taken back or tried by every process. Bad news: not all of them did.
///
/// # Errors
/// No such member, no state folder that can be written; the last member that serves, unless `force`.
pub(crate) fn run(context: &Context, what: What, arguments: &Arguments, force: bool) -> Result<Answer> {
    let config = context.load()?;
    let member = &arguments.member;
    let label = the_group(&config.groups, arguments.group.as_deref(), member)?;
    let dir = config.state_dir.display().to_string();
    // Two that take a member out at once would each leave the other's to serve.
    let (board, turn) = operate(&config, &label)?;
    if what == What::Recover && board.wish(member).is_some_and(|w| w.drained) {
        bail!("the member {member:?} is drained: `hactl member resume {member}` takes it back");
    }
    if what == What::Recover
        && let Some(group) = config.groups.iter().find(|g| g.label == label)
    {
        forget_refused_pins(&config, group, member)
            .context("nothing was changed: the PINs that the member refused cannot be forgotten")?;
    }
    let consequence = if what == What::Drain && !force { without(config, &label, member)? } else { None };
    let number = ask(&board, &turn, member, what)
        .with_context(|| format!("nothing was changed: the wish cannot be written to {dir}"))?;
    drop(turn);
    let processes = wait(&board, member, what, number, Duration::from_secs(arguments.timeout));

    let documents: Vec<_> = processes.iter().map(|p| document(p, member, what, number)).collect();
    let done = documents.iter().all(|p| p.done);
    if context.json {
        let wish = word(what);
        let (group, member) = (label, member.clone());
        output::json(&Document { schema: 1, group, member, wish, done, processes: documents })?;
    } else {
        tell(member, what, &documents);
        if let Some(consequence) = consequence {
            println!("{consequence}");
        }
    }
    Ok(if done { Answer::Well } else { Answer::BadNews })
}

/// The board of a group, and this operator's turn on it, once others have had theirs.
///
/// # Errors
/// No state folder that can be written; another operator does not end.
pub(crate) fn operate(config: &Config, label: &str) -> Result<(Board, Turn)> {
    let dir = config.state_dir.display();
    let board = Board::open(&config.state_dir, label, Part::Operator, Duration::ZERO)
        .with_context(|| format!("nothing was changed: {dir} is no state folder, or others can write it"))?;
    let owner = std::fs::metadata(&config.state_dir).map_or(0, |m| m.uid());
    let me = rustix::process::geteuid().as_raw();
    if !board.is_writable() && owner != me {
        bail!("nothing is changed: {dir} belongs to uid {owner}, and this runs as uid {me}");
    }
    let turn =
        turn(&board).with_context(|| format!("nothing was changed: {dir} cannot be had for the wish"))?;
    Ok((board, turn))
}

/// No process may use the group.
///
/// # Errors
/// Those that do.
pub(crate) fn is_unused(board: &Board) -> Result<()> {
    let users: Vec<_> = board.processes().into_iter().map(|p| format!("{} ({})", p.program, p.pid)).collect();
    if users.is_empty() {
        return Ok(());
    }
    Err(BadNews(format!("nothing was changed: the group is used by {}", users.join(", "))).into())
}

/// Writes down what is wanted of a member; answers the wish's number.
///
/// # Errors
/// It cannot be written.
pub(crate) fn ask(board: &Board, turn: &Turn, member: &str, what: What) -> std::io::Result<u64> {
    board.ask_for(turn, member, what, SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// The processes that have not done what was wanted, after those that need time have had it.
pub(crate) fn who_has_not(
    board: &Board,
    member: &str,
    what: What,
    number: u64,
    patience: Duration,
) -> Vec<Process> {
    let mut processes = wait(board, member, what, number, patience);
    processes.retain(|p| !document(p, member, what, number).done);
    processes
}

fn turn(board: &Board) -> std::io::Result<Turn> {
    let until = Instant::now() + OTHERS_TURN;
    loop {
        match board.turn() {
            Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(50));
            }
            answer => return answer,
        }
    }
}

/// The label of the group that has the member.
///
/// # Errors
/// None has it, or several.
pub(crate) fn the_group(groups: &[GroupConfig], label: Option<&str>, member: &str) -> Result<String> {
    let named = |g: &&GroupConfig| label.is_none_or(|l| *l == g.label);
    let groups: Vec<_> = groups.iter().filter(named).collect();
    let has = |g: &&&GroupConfig| g.members.iter().any(|m| m.name == member);
    let found: Vec<_> = groups.iter().filter(has).collect();
    match found.as_slice() {
        [one] => Ok(one.label.clone()),
        [] => {
            let there: Vec<_> = groups.iter().flat_map(|g| &g.members).map(|m| m.name.as_str()).collect();
            bail!("there is no member {member:?}; there are: {}", there.join(", "))
        }
        _ => bail!("several groups have a member {member:?}: say which with --group"),
    }
}

/// What a group is without a member: as this process sees it, which looks for itself, and as each one does that uses it.
/// Answers what cannot be done then.
///
/// # Errors
/// Nothing serves.
fn without(config: Config, label: &str, member: &str) -> Result<Option<String>> {
    let provider = Provider::for_operator(config)?;
    let Some(group) = provider.groups().iter().find(|g| g.config.label == label) else {
        bail!("the group {label:?} did not start");
    };
    let refuse = |who: String| {
        Err(BadNews(format!(
            "nothing was changed: {who} no member up but {member:?}, and nothing would serve; --force drains it all the same"
        ))
        .into())
    };
    let left = group.up().filter(|m| m.name() != member).count();
    if left == 0 {
        return refuse("there is".into());
    }
    for process in group.processes() {
        let is_up = |m: &&Seen| m.sight.state == State::Up;
        let (this, others): (Vec<&Seen>, Vec<&Seen>) =
            process.members.iter().filter(is_up).partition(|m| m.name == member);
        if !this.is_empty() && others.is_empty() {
            return refuse(format!("the process {} ({}) has", process.pid, process.program));
        }
    }
    let wanted = group.config.min_copies;
    let consequence = (left < wanted as usize).then(|| {
        format!("no token object can be made until it is resumed: min_copies is {wanted}, and other members that are up: {left}")
    });
    provider.shutdown(Duration::from_secs(2));
    Ok(consequence)
}

/// Waits until every process that uses the group has done what is wanted, or has tried.
fn wait(board: &Board, member: &str, what: What, number: u64, patience: Duration) -> Vec<Process> {
    let until = Instant::now() + patience;
    loop {
        let processes = board.processes();
        let is_over = |p: &Process| {
            // It may have begun before there was such a member; of one that says nothing nothing is known.
            let Some(seen) = p.members.iter().find(|m| m.name == member) else {
                return !p.members.is_empty();
            };
            let is_moving = seen.sight.trying.is_some() || seen.sight.state == State::Syncing;
            seen.heeded >= number && (is_done(seen.sight.state, what) || !is_moving)
        };
        if processes.iter().all(is_over) || Instant::now() >= until {
            return processes;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is_done(state: State, what: What) -> bool {
    match what {
        What::Drain => state == State::Drained,
        What::Resume | What::Recover => state == State::Up,
    }
}

fn word(what: What) -> &'static str {
    match what {
        What::Drain => "drain",
        What::Resume => "resume",
        What::Recover => "recover",
    }
}

fn document(process: &Process, member: &str, what: What, number: u64) -> ProcessDocument {
    let seen = process.members.iter().find(|m| m.name == member);
    let is_not_its = seen.is_none() && !process.members.is_empty();
    let done = seen.is_some_and(|s| s.heeded >= number && is_done(s.sight.state, what))
        || (is_not_its && what == What::Drain);
    ProcessDocument {
        pid: process.pid,
        program: process.program.clone(),
        state: seen.map_or_else(
            || if is_not_its { "not used" } else { "unknown" }.into(),
            |s| s.sight.state.to_string(),
        ),
        done,
        fault: seen.filter(|_| !done).and_then(|s| s.fault.clone()),
    }
}

fn tell(member: &str, what: What, processes: &[ProcessDocument]) {
    if processes.is_empty() {
        println!(
            "no process uses the group now; {}",
            match what {
                What::Drain => format!("who starts leaves {member} out"),
                What::Resume => format!("who starts uses {member}"),
                What::Recover => "who starts tries every member".into(),
            }
        );
        return;
    }
    for process in processes {
        let (pid, program, state) = (process.pid, &process.program, &process.state);
        let mark = if process.done { "✓" } else { "✗" };
        let fault = process.fault.as_ref().map(|f| format!(": {f}")).unwrap_or_default();
        println!("{mark} {program} ({pid}): {member} is {state}{fault}");
    }
}
