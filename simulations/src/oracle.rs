//! The oracles: what is on the tokens, against what the application was told. They look from outside and never ask the
//! code under test.
//!
//! * **G1** durability: at the moment when the application is told that an object is there, as many members as
//!   `min_copies` says hold it, with the same value; when all is at rest, every member does, also one that came back empty.
//!   It is found whenever every call must succeed (`application::search`). What every token that held it has lost is on
//!   every member or on none, and is what it was.
//! * **G2** no zombies: what the application was told is gone is never found or used again, and is on no token at rest.
//!   What it was told nothing of, also because its process was killed, is on every token or on none, both halves of a
//!   pair alike, and nothing is there that nobody made, least of all on a token that took a member's place. What was on a
//!   token before the group is there still, and nowhere else.
//! * **G3** right key: every signature fits the public key that was read when the key was made; every other answer is the
//!   one that the object gave then (`application`); the copies of a key have one value (`copies`). Where signatures are
//!   verified, a member that made a wrong one is not used again.
//! * **G4** availability: while a member that can serve is up, no call fails (`application`); at rest each member alone
//!   serves everything.
//! * **G5** bounded wait: a shutdown ends in time, and with it every thread of the process (`history`); an operation with
//!   a key takes a minute at the most, whatever its members are slow with; with a deadline, and members that only hang or
//!   are dead, that for each member and three seconds.
//! * **G6** no lock-out: no PIN is sent that the application did not give, and the right one is never refused while a
//!   member that can judge it is up (`history`).
//! * **G7** no amplification: operations that are tried on a third member, or again, are no more than a fifth of the calls
//!   and ten in each ten seconds (`retries`).
//! * **G8** same answers: copies have the `CKA_ID` and the flags that the application gave last, and do not differ in any
//!   attribute (`copies`); a search gives each object once, and a mistake the same error on every member (`application`).
//! * **G9** secrets: no PIN and no key's value is in the log or in a file of the group's (`secrets`).
//!
//! And **sessions**: no process leaves one open on a token, and none of the application's outlives its closing.

mod copies;
mod retries;
pub mod secrets;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ha_token::UserType;

use crate::before;
use crate::history::{PIN, WRONG};
use crate::model::{Standing, Thing};
use crate::plan::{Fault, Trouble};
use crate::stage::Stage;
use crate::token::Inspected;

/// How long an operation with a key may take.
const LONGEST: Duration = Duration::from_secs(60);

/// How long an operation may take where nothing else is wrong with members than that they hang or are dead: the deadline for
/// each member, and the time for what is done on another one.
fn longest(stage: &Stage) -> Duration {
    let slow = |t: &Trouble| !matches!(t.fault, Fault::Hang | Fault::Die | Fault::Flap { .. });
    match stage.plan.deadline {
        Some(deadline) if !stage.plan.troubles.iter().any(slow) => {
            deadline * stage.plan.members as u32 + Duration::from_secs(3)
        }
        _ => LONGEST,
    }
}

/// What each member's token holds at one moment. The keys that are there are remembered, as secrets.
fn look(stage: &Stage) -> Vec<Vec<Inspected>> {
    let held: Vec<Vec<Inspected>> = stage.devices.iter().map(|device| device.inspect()).collect();
    secrets::remember(&mut stage.secrets(), held.iter().flatten());
    held
}

/// G1, when objects are acknowledged.
pub fn durable(stage: &Stage, things: &[Thing]) {
    let held = look(stage);
    for thing in things {
        // A try that came to nothing may have left something of its name, which is destroyed later: what counts is how
        // many members hold one value.
        let mut holders: BTreeMap<&[u8], usize> = BTreeMap::new();
        for copies in copies::of(&held, thing) {
            let values: BTreeSet<_> = copies.into_iter().map(|copy| &*copy.material).collect();
            for value in values {
                *holders.entry(value).or_default() += 1;
            }
        }
        let most = holders.values().max().copied().unwrap_or(0);
        if most < stage.plan.min_copies as usize {
            stage.broken("G1", format!("{} was acknowledged and is on {most} members", thing.name()));
        }
    }
}

/// G1, G2 and G8, when everything is at rest.
pub fn at_rest(stage: &Stage) {
    let held = look(stage);
    let things = stage.model.things().clone();
    for thing in &things {
        let copies = copies::of(&held, thing);
        // A member that cannot hold it holds none, and the others hold it or do not, all of them.
        let holders = copies.iter().filter(|c| !c.is_empty()).count();
        let has_to: Vec<usize> = (0..copies.len()).filter(|m| stage.must_hold(*m, thing)).collect();
        let all = has_to.len();
        let (name, known) = (thing.name(), !stage.is_forgotten(thing));
        match thing.standing {
            Standing::There if has_to.iter().any(|m| copies[*m].is_empty()) => {
                stage.broken("G1", format!("{name} is on {holders} of {all} members at rest"));
            }
            Standing::Gone if holders > 0 => {
                stage.broken("G2", format!("{name} is gone and is on {holders} members at rest"));
            }
            Standing::Unknown if known && holders != 0 && holders != all => {
                stage.broken(
                    "G2",
                    format!("{name}, of which nothing was said, is on {holders} of {all} members"),
                );
            }
            Standing::Lost if known && holders != 0 && holders != all => {
                stage.broken("G1", format!("{name}, which was lost, is on {holders} of {all} members"));
            }
            _ => copies::same(stage, thing, &copies),
        }
    }
    whole(stage, &things, &held);
    for (member, (device, objects)) in stage.devices.iter().zip(&held).enumerate() {
        // Each thread has one session that rests and one in use, and so has who looks after the member.
        let most = 8 + 2 * stage.plan.most_threads();
        for (process, open) in device.sessions_by_process() {
            let untold = stage.lines.get(member).map_or(0, |line| line.untold(process));
            if open > most + untold || !stage.is_running(process) {
                let how = format!("process {process} has {open} sessions open on member {member} at rest");
                stage.broken("sessions", how);
            }
        }
        if let Some(object) = objects.first().filter(|_| stage.is_out(member)) {
            let label = String::from_utf8_lossy(&object.label);
            stage.broken("G2", format!("{label:?} is on the token that took the place of member {member}"));
        }
        let from_before = stage.plan.before.iter().filter(|before| before.member == member).count();
        if before::count(objects) != from_before {
            stage.broken("G2", format!("what was on member {member} before the group is not as it was"));
        }
        for object in objects {
            let known = before::is_from_before(&object.label) || things.iter().any(|t| t.is(object));
            if !known && !object.label.starts_with(b"pkcs11-ha") {
                let label = String::from_utf8_lossy(&object.label);
                let class = object.class;
                stage.broken("G2", format!("nobody made {label:?} of class {class:#x} on member {member}"));
            }
        }
    }
}

/// The two halves of a pair have one fate as long as nobody destroys one: they were acknowledged together, or not at all.
fn whole(stage: &Stage, things: &[Thing], held: &[Vec<Inspected>]) {
    for halves in things.windows(2) {
        let [private, public] = halves else { continue };
        // Made, and given up or left by who died, and nothing since.
        let untouched = |t: &Thing| t.standing == Standing::Unknown && t.version == 1;
        if public.public && untouched(private) && untouched(public) {
            let holders = |t: &Thing| copies::of(held, t).iter().filter(|c| !c.is_empty()).count();
            if holders(private) != holders(public) {
                stage.broken("G2", format!("of {} one half is there and the other is not", private.name()));
            }
        }
    }
}

/// When a process has ended: nothing of it is left on the tokens, but those that it has named, by what hung in them.
pub fn when_ended(stage: &Stage, process: u32, left: &[String]) {
    for (member, device) in stage.devices.iter().enumerate() {
        // Nobody can close what is left in a call that hangs, or hung until just now.
        if !left.contains(&format!("m{member}"))
            && stage.lines[member].hanging().is_empty()
            && let Some(open) = device.sessions_by_process().get(&process)
        {
            stage.broken("sessions", format!("{open} sessions are left open on member {member}"));
        }
    }
}

/// What must hold when the last process has ended.
pub fn at_the_end(stage: &Stage) {
    retries::bounded(stage);
    let longest = longest(stage);
    if let Some(long) = stage.operations().iter().find(|o| o.until - o.from > longest) {
        let took = long.until - long.from;
        stage.broken("G5", format!("an operation of {} took {took:?} from {:?} on", long.thread, long.from));
    }
    // Who tried a wrong one looks itself how often it was sent, unless it was killed at it.
    let mut wrong = usize::from(stage.plan.wrong_pin && !stage.plan.kills.is_empty());
    for (member, line) in stage.lines.iter().enumerate() {
        for attempt in line.take_logins() {
            let ours = attempt.user == UserType::User && attempt.pin == PIN.as_bytes();
            let tried = attempt.pin == WRONG.as_bytes() && std::mem::take(&mut wrong) == 1;
            if !ours && !tried {
                stage.broken("G6", format!("member {member} was sent a PIN that nobody gave"));
            }
        }
    }
}
