//! `hactl status [--watch]`: the members' state.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use ha_core::board::Process;
use ha_core::group::{Group, Member, MemberStatus};
use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_core::replica::find_all;
use ha_token::{Attribute, Function, Rv, ck};
use serde::Serialize;

use crate::context::{self, Context};
use crate::{Answer, output};

/// How long a member is waited for where the configuration sets no deadline.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct Document {
    schema: u8,
    groups: Vec<GroupDocument>,
}

#[derive(Serialize)]
struct GroupDocument {
    label: String,
    /// `ceremony` or `self`, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    enrolment: Option<&'static str>,
    members: Vec<MemberDocument>,
    /// Those of this host that use the group, with what each sees.
    processes: Vec<ProcessDocument>,
}

#[derive(Serialize)]
struct ProcessDocument {
    pid: u32,
    program: String,
    /// In seconds since the Unix epoch.
    since: u64,
    members: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct MemberDocument {
    name: String,
    state: String,
    role: &'static str,
    last_fault: Option<String>,
    rtt_us: Option<u64>,
    objects: Option<usize>,
    in_sync: Option<bool>,
}

/// Shows every group. Bad news: a member that is not up, or not in sync.
///
/// # Errors
/// The configuration; a PIN that was given and is refused.
pub(crate) fn run(context: &Context, watch: bool) -> Result<Answer> {
    if watch && context.json {
        bail!(
            "--watch is for people and --json for programs, which gets one document: leave one of them out"
        );
    }
    let config = context.load()?;
    let pin = context.given_pin()?;
    let provider = Provider::for_operator(config)?;
    for group in provider.groups() {
        group.sync_by_hand();
        if let Some(pin) = &pin
            && group.up().next().is_some()
        {
            context::log_in(group, pin)?;
        }
    }
    let answer = if watch { watch_groups(&provider)? } else { once(context, &provider, pin.is_some())? };
    provider.shutdown(Duration::from_secs(2));
    Ok(answer)
}

fn once(context: &Context, provider: &Provider, with_pin: bool) -> Result<Answer> {
    let groups: Vec<_> = provider.groups().iter().map(look).collect();
    let well = groups.iter().all(|g| {
        g.members.iter().all(|m| m.state == "up" && m.in_sync != Some(false))
            && g.processes.iter().flat_map(|p| p.members.values()).all(|state| state == "up")
    });
    if context.json {
        output::json(&Document { schema: 1, groups })?;
    } else {
        print!("{}", text(&groups));
        if !with_pin {
            println!("objects are counted with a PIN: --pin-file FILE, or PKCS11_HA_PIN");
        }
    }
    Ok(if well { Answer::Well } else { Answer::BadNews })
}

/// Until interrupted, or nobody reads any more.
fn watch_groups(provider: &Provider) -> Result<Answer> {
    let mut out = std::io::stdout();
    let clear = if out.is_terminal() { "\x1b[H\x1b[2J" } else { "" };
    loop {
        let started = Instant::now();
        let groups: Vec<_> = provider.groups().iter().map(look).collect();
        if write!(out, "{clear}{}", text(&groups)).and_then(|()| out.flush()).is_err() {
            return Ok(Answer::Well);
        }
        std::thread::sleep(Duration::from_secs(1).saturating_sub(started.elapsed()));
    }
}

/// What one member said of itself.
struct Seen {
    round_trip: Duration,
    objects: Option<usize>,
    enrolled: Option<bool>,
}

/// Asks every member that is up, each on a thread of its own: one that hangs keeps nobody waiting but for its deadline.
fn look(group: &Arc<Group>) -> GroupDocument {
    let patience = group.config.deadline.unwrap_or(PATIENCE);
    let asked: Vec<_> = group.members.iter().map(|m| m.is_up().then(|| in_time(group, m, ask))).collect();
    let sync = is_up_to_date(group, patience);
    let until = Instant::now() + patience;
    let mut enrolment = None;
    let mut seen = Vec::new();
    for (asked, member) in asked.into_iter().zip(group.members.iter()) {
        let answer = asked.map(|a| {
            a.recv_timeout(until.saturating_duration_since(Instant::now())).unwrap_or(Err(Rv::DEVICE_ERROR))
        });
        let one = match answer {
            Some(Ok(one)) => Some(one),
            Some(Err(rv)) => {
                group.blame(member, Function::GetTokenInfo, rv);
                None
            }
            None => None,
        };
        if let Some(enrolled) = one.as_ref().and_then(|o| o.enrolled) {
            enrolment = Some(if enrolled { "ceremony" } else { "self" });
        }
        seen.push(one);
    }
    let members = group.status().members;
    let members = members.iter().zip(seen).map(|(status, seen)| document(status, seen, &sync)).collect();
    GroupDocument { label: group.config.label.clone(), enrolment, members, processes: processes(group) }
}

fn processes(group: &Group) -> Vec<ProcessDocument> {
    let of = |p: Process| ProcessDocument {
        pid: p.pid,
        program: p.program,
        since: p.since.as_secs(),
        members: p.members.into_iter().map(|m| (m.name, m.sight.state.to_string())).collect(),
    };
    group.processes().into_iter().map(of).collect()
}

fn in_time<T: Send + 'static>(
    group: &Arc<Group>,
    member: &Arc<Member>,
    f: fn(&Group, &Arc<Member>) -> T,
) -> mpsc::Receiver<T> {
    let (sender, receiver) = mpsc::channel();
    let (group, member) = (Arc::clone(group), Arc::clone(member));
    // Nobody may be waiting any more when the answer comes.
    std::thread::spawn(move || _ = sender.send(f(&group, &member)));
    receiver
}

fn ask(group: &Group, member: &Arc<Member>) -> Result<Seen, Rv> {
    let link = member.link().ok_or(Rv::DEVICE_ERROR)?;
    let started = Instant::now();
    link.probe(&*group.world)?;
    let round_trip = started.elapsed();
    let logged_in = group.login.who() == ha_core::group::Who::User;
    let keys = link.group_keys();
    let objects = if logged_in {
        let lease = group.lease(member)?;
        let all = find_all(lease.on(), &vec![Attribute::bool(ck::CKA_TOKEN, true)], 512)?.len();
        Some(all.saturating_sub(link.own_objects()))
    } else {
        None
    };
    Ok(Seen { round_trip, objects, enrolled: keys.map(|k| k.enrolled) })
}

/// By member: whether nothing is missing or pending there; empty where it cannot be known.
fn is_up_to_date(group: &Arc<Group>, patience: Duration) -> Vec<(String, bool)> {
    if group.login.who() != ha_core::group::Who::User || !group.may_change() {
        return Vec::new();
    }
    let (sender, receiver) = mpsc::channel();
    let all = Arc::clone(group);
    std::thread::spawn(move || _ = sender.send(all.sync(true)));
    let answer = receiver
        .recv_timeout(patience.saturating_mul(u32::try_from(group.members.len()).unwrap_or(u32::MAX)));
    let Ok(Ok(members)) = answer else { return Vec::new() };
    members.into_iter().map(|(name, done)| (name, done == Default::default())).collect()
}

fn document(status: &MemberStatus, seen: Option<Seen>, sync: &[(String, bool)]) -> MemberDocument {
    let up = status.state == State::Up;
    let fault = status.last_fault.as_ref().map(|f| format!("{} answered {}", f.function, f.rv));
    MemberDocument {
        name: status.name.clone(),
        state: status.state.to_string(),
        role: if status.standby { "standby" } else { "active" },
        last_fault: status.connect_error.clone().or(fault),
        rtt_us: seen
            .as_ref()
            .map(|s| s.round_trip)
            .or(status.round_trip.filter(|_| up))
            .map(|t| t.as_micros() as u64),
        objects: seen.and_then(|s| s.objects),
        in_sync: if up { sync.iter().find(|s| s.0 == status.name).map(|s| s.1) } else { None },
    }
}

fn text(groups: &[GroupDocument]) -> String {
    let mut text = String::new();
    for group in groups {
        let enrolment = match group.enrolment {
            Some("ceremony") => ", enrolled with its security officers",
            Some(_) => ", enrolled by itself: whoever has the user PIN can get at the keys",
            None => "",
        };
        let mut table = output::table(&["member", "state", "role", "round trip", "objects", "in sync"]);
        for m in &group.members {
            let sync = match m.in_sync {
                Some(true) => "yes",
                Some(false) => "no",
                None => "",
            };
            table.add_row(vec![
                m.name.clone(),
                m.state.clone(),
                m.role.to_owned(),
                m.rtt_us.map(|us| format!("{us} µs")).unwrap_or_default(),
                m.objects.map(|n| n.to_string()).unwrap_or_default(),
                sync.to_owned(),
            ]);
        }
        _ = writeln!(text, "group {:?}{enrolment}\n{table}", group.label);
        for m in &group.members {
            if let Some(fault) = &m.last_fault {
                _ = writeln!(text, "  {}: {fault}", m.name);
            }
        }
        if !group.processes.is_empty() {
            _ = writeln!(text, "used by\n{}", users(group));
        }
    }
    text
}

/// The processes that use a group: of the members those that one sees otherwise than this command does.
fn users(group: &GroupDocument) -> comfy_table::Table {
    let mut table = output::table(&["process", "program", "for", "sees otherwise"]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for process in &group.processes {
        let differs =
            |m: &&MemberDocument| process.members.get(&m.name).is_some_and(|state| *state != m.state);
        let sees = |m: &MemberDocument| format!("{} {}", m.name, process.members[&m.name]);
        let otherwise: Vec<_> = group.members.iter().filter(differs).map(sees).collect();
        let time = span(now.saturating_sub(process.since));
        table.add_row(vec![process.pid.to_string(), process.program.clone(), time, otherwise.join(", ")]);
    }
    table
}

/// Seconds, for people.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
