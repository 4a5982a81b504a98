//! `hactl doctor`: tries everything step by step, and says what to mend. Writes nothing, not even a ledger.

mod talk;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::Result;
use ha_core::config::{Config, GroupConfig, MemberConfig, PinSource};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::context::Context;
use crate::{Answer, output};
use talk::{Message, Talk};

/// How long a member is waited for where the configuration sets no deadline.
const PATIENCE: Duration = Duration::from_secs(10);
/// Less free space than this is worth a word.
const LITTLE: u64 = 64 << 20;

#[derive(Serialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Finding {
    Ok,
    Warn,
    Fail,
}

/// One line: what was looked at, what was found, what to do about it.
#[derive(Serialize)]
struct Line {
    finding: Finding,
    subject: String,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

/// Prints lines as they come, or keeps them for one document.
struct Report {
    json: bool,
    lines: Vec<Line>,
}

impl Report {
    fn add(&mut self, line: Line) {
        if !self.json {
            let mark = match line.finding {
                Finding::Ok => '✓',
                Finding::Warn => '!',
                Finding::Fail => '✗',
            };
            println!("{mark} {}: {}", line.subject, line.text);
            if let Some(mend) = &line.mend {
                println!("    {mend}");
            }
        }
        self.lines.push(line);
    }

    fn ok(&mut self, subject: &str, text: impl Into<String>) {
        self.add(Line { finding: Finding::Ok, subject: subject.into(), text: text.into(), mend: None });
    }

    fn warn(&mut self, subject: &str, text: impl Into<String>, mend: impl Into<String>) {
        self.add(Line {
            finding: Finding::Warn,
            subject: subject.into(),
            text: text.into(),
            mend: Some(mend.into()),
        });
    }

    fn fail(&mut self, subject: &str, text: impl Into<String>, mend: impl Into<String>) {
        self.add(Line {
            finding: Finding::Fail,
            subject: subject.into(),
            text: text.into(),
            mend: Some(mend.into()),
        });
    }

    fn count(&self, finding: Finding) -> usize {
        self.lines.iter().filter(|l| l.finding == finding).count()
    }
}

#[derive(Serialize)]
struct Document<'a> {
    schema: u8,
    lines: &'a [Line],
    failed: usize,
    warnings: usize,
}

/// Looks at everything. Bad news: any ✗.
///
/// # Errors
/// Only when the answer cannot be written.
pub(crate) fn run(context: &Context) -> Result<Answer> {
    let mut report = Report { json: context.json, lines: Vec::new() };
    report.ok("versions", format!("hactl {}, PKCS#11 3.2", env!("CARGO_PKG_VERSION")));
    report.ok("clocks", "not needed: nothing here is decided by the time of day");
    match context.load() {
        Err(error) => report.fail(
            "configuration",
            format!("{error:#}"),
            "mend the file; `hactl config check` looks at it alone",
        ),
        Ok(config) => examine(context, &config, &mut report),
    }
    let (failed, warnings) = (report.count(Finding::Fail), report.count(Finding::Warn));
    if context.json {
        output::json(&Document { schema: 1, lines: &report.lines, failed, warnings })?;
    } else {
        println!("{failed} to mend, {warnings} to look at");
    }
    Ok(if failed == 0 { Answer::Well } else { Answer::BadNews })
}

fn examine(context: &Context, config: &Config, report: &mut Report) {
    configuration(config, report);
    state(config, report);
    let pin = match context.given_pin() {
        Ok(pin) => {
            if pin.is_none() {
                report.ok("PIN", "none was given (--pin-file, PKCS11_HA_PIN): no login is tried");
            }
            pin
        }
        Err(error) => {
            report.fail(
                "PIN",
                format!("{error:#}"),
                "give a file that only its owner can read, or set PKCS11_HA_PIN",
            );
            None
        }
    };
    let pin = Pin { given: pin.map(Arc::new), refused: Arc::default() };
    for group in &config.groups {
        let mut serials: Vec<(String, String)> = Vec::new();
        for config in &group.members {
            if let Some(serial) = member(group, config, &pin, report) {
                if let Some((other, _)) = serials.iter().find(|(_, s)| *s == serial) {
                    let text = format!("it is the same token as member {other:?} (serial {serial})");
                    report.fail(
                        &subject(group, config),
                        text,
                        "name another token, or take one of the two out of the group",
                    );
                }
                serials.push((config.name.clone(), serial));
            }
        }
    }
}

fn subject(group: &GroupConfig, member: &MemberConfig) -> String {
    format!("{}/{}", group.label, member.name)
}

fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn configuration(config: &Config, report: &mut Report) {
    let Some(path) = &config.path else { return };
    let groups = config.groups.len();
    let members: usize = config.groups.iter().map(|g| g.members.len()).sum();
    report.ok("configuration", format!("{}: right; groups: {groups}, members: {members}", path.display()));
    if groups == 0 {
        report.warn(
            "configuration",
            "it has no [[group]]: applications see no slot",
            "add one, or make a first one with `hactl init`",
        );
    }
    if let Ok(meta) = fs::metadata(path) {
        if meta.mode() & 0o020 != 0 {
            let mend = format!(
                "run `chmod g-w {}`, unless all of the group may choose the modules that are loaded",
                path.display()
            );
            report.warn(
                "configuration",
                format!("its group can write it (mode {:o})", meta.mode() & 0o7777),
                mend,
            );
        }
        if meta.uid() != 0 && meta.uid() != me() {
            let text = format!("it belongs to uid {}, neither root nor who runs this", meta.uid());
            report.warn("configuration", text, "who owns it chooses the modules that are loaded: let it belong to root or to the application's user");
        }
    }
}

fn state(config: &Config, report: &mut Report) {
    let dir = &config.state_dir;
    let shown = dir.display();
    let meta = match fs::metadata(dir) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let text = format!("{shown} is not there yet");
            return report.warn(
                "state",
                text,
                "the first application makes it; as that user, check that its parent folder can be written",
            );
        }
        Err(e) => {
            return report.fail(
                "state",
                format!("{shown}: {e}"),
                "run this as the user that the application runs as",
            );
        }
    };
    if !meta.is_dir() {
        return report.fail(
            "state",
            format!("{shown} is not a folder"),
            "move it away, or set another state_dir",
        );
    }
    // Group-writable only in the shape that shares it on purpose: set-group-id, nothing for others.
    let shared = meta.mode() & 0o2007 == 0o2000;
    if meta.mode() & 0o002 != 0 || (meta.mode() & 0o020 != 0 && !shared) {
        let mode = meta.mode() & 0o7777;
        report.fail(
            "state",
            format!("{shown}: others can write it (mode {mode:o}); it is not used"),
            format!("run `chmod 700 {shown}`"),
        );
    }
    let mut foreign = (!shared && meta.uid() != me()).then_some(meta.uid());
    let mut ledgers = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|e| e == "ledger") {
            ledgers += 1;
            let owner = entry.metadata().map(|m| m.uid()).ok().filter(|uid| *uid != me() && !shared);
            foreign = foreign.or(owner);
        }
    }
    match foreign {
        Some(uid) => {
            let text = format!(
                "{shown} belongs to uid {uid}, and this runs as uid {}: nothing is written here",
                me()
            );
            report.warn("state", text, "run hactl as that user to change anything");
        }
        None => report.ok("state", format!("{shown}: ours; ledgers: {ledgers}")),
    }
    if let Ok(space) = rustix::fs::statvfs(dir) {
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < LITTLE {
            report.warn(
                "state",
                format!("only {} MiB are free there", free >> 20),
                "without space for the ledger no key is made or destroyed",
            );
        }
    }
}

/// The PIN to try, and whether a token has refused it: it then goes to no other one.
struct Pin {
    given: Option<Arc<Zeroizing<Vec<u8>>>>,
    refused: Arc<AtomicBool>,
}

/// Looks at one member, on a thread of its own: one that hangs is reported. Answers its token's serial number.
fn member(group: &GroupConfig, config: &MemberConfig, pin: &Pin, report: &mut Report) -> Option<String> {
    let name = subject(group, config);
    if !files(&name, config, report) {
        return None;
    }
    pin_source(&name, config, pin.given.is_some(), report);
    let (sender, receiver): (Sender<Message>, Receiver<Message>) = channel();
    let talk = Talk {
        name: name.clone(),
        config: config.clone(),
        pin: pin.given.clone(),
        refused: Arc::clone(&pin.refused),
        sender,
    };
    std::thread::spawn(move || talk.run());
    let patience = group.deadline.unwrap_or(PATIENCE);
    let mut serial = None;
    loop {
        match receiver.recv_timeout(patience) {
            Ok(Message::Line(line)) => report.add(line),
            Ok(Message::Serial(s)) => serial = Some(s),
            Err(RecvTimeoutError::Disconnected) => return serial,
            Err(RecvTimeoutError::Timeout) => {
                let text = format!("no answer for {} s: a call into the module hangs", patience.as_secs());
                report.fail(
                    &name,
                    text,
                    "look at the token's service and its network; applications go on with the other members",
                );
                return serial;
            }
        }
    }
}

/// The module's file and what its environment names. Answers whether it makes sense to go on.
fn files(name: &str, config: &MemberConfig, report: &mut Report) -> bool {
    let module = config.module.display();
    match fs::metadata(&config.module) {
        Err(e) => {
            report.fail(
                name,
                format!("module {module}: {e}"),
                "install the token's PKCS#11 module, or correct `module`",
            );
            return false;
        }
        Ok(meta) if meta.mode() & 0o002 != 0 => {
            report.warn(
                name,
                format!("module {module}: anybody can write it"),
                format!("run `chmod o-w {module}`"),
            );
        }
        Ok(_) => {}
    }
    for (variable, value) in &config.env {
        if value.starts_with('/')
            && let Err(e) = fs::metadata(value)
        {
            // The value is a path here: such a one is no secret.
            report.warn(
                name,
                format!("env {variable} = {value:?}: {e}"),
                "is the path right, and may this user read it?",
            );
        }
    }
    true
}

fn pin_source(name: &str, config: &MemberConfig, may_fetch: bool, report: &mut Report) {
    let words = match &config.pin {
        None => return,
        Some(PinSource::Env(variable)) => format!("pin from the environment variable {variable}"),
        Some(PinSource::File(path)) => format!("pin from {}", path.display()),
        Some(PinSource::Command(command)) => {
            let program = command.first().map_or("", String::as_str);
            if !may_fetch {
                return report.ok(
                    name,
                    format!("pin from the command {program:?}: not run, because no login is tried"),
                );
            }
            format!("pin from the command {program:?}")
        }
    };
    match config.pin.as_ref().map(PinSource::resolve) {
        Some(Err(error)) => {
            report.fail(name, format!("{words}: {error}"), "without it the member is not logged in to")
        }
        _ => report.ok(name, format!("{words}: there")),
    }
}
