//! The oracles: what is on the tokens, against what the application was told. They look from outside and never ask the
//! code under test.
//!
//! * **G1** durability: at the moment when the application is told that an object is there, as many tokens as
//!   `min_copies` says hold it, with the same value; when all is at rest, every token does.
//! * **G2** no zombies: what the application was told is gone is never found or used again, and is on no token at rest.
//!   What it was told nothing of is on every token or on none, and nothing is there that nobody made.
//! * **G3** right key: every signature fits the public key that was read when the key was made; every other answer is the
//!   one that the object gave then (`application`).
//! * **G4** availability: while a member that can serve is up, no call fails (`application`); at rest each member alone
//!   serves everything.
//! * **G6** no lock-out: no PIN is sent that the application did not give, and the right one is never refused.
//! * **G7** no amplification: operations begun on members are no more than the application's, a first retry of each, a
//!   fifth of them, and ten in each ten seconds.
//! * **G8** same answers: copies have the same `CKA_ID`, the one that the application gave last; a search gives each object once (`application`).

use std::collections::BTreeMap;

use ha_token::{Function, UserType, ck};

use crate::history::{PIN, Stage};
use crate::model::{Standing, Thing};
use crate::plan::Kind;
use crate::token::Inspected;

/// The copies of an object that carries its value, by member: what identifies the value.
fn copies(stage: &Stage, thing: &Thing) -> Vec<Vec<Vec<u8>>> {
    stage
        .devices
        .iter()
        .map(|device| {
            let all = device.inspect();
            let ours = all.iter().filter(|o| is_copy(o, thing));
            ours.map(|o| o.material.clone()).collect()
        })
        .collect()
}

fn is_copy(object: &Inspected, thing: &Thing) -> bool {
    let class = match thing.kind {
        Kind::Ec | Kind::Rsa => ck::CKO_PRIVATE_KEY,
        Kind::Mac | Kind::Aes => ck::CKO_SECRET_KEY,
        Kind::Data => ck::CKO_DATA,
    };
    object.class == class && object.label == thing.label.as_bytes()
}

/// G1, when an object is acknowledged.
pub fn durable(stage: &Stage, thing: usize) {
    let thing = stage.model.get(thing);
    // A try that came to nothing may have left something of its name, which is destroyed later: what counts is how many
    // members hold one value.
    let mut holders: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for value in copies(stage, &thing).into_iter().flatten() {
        *holders.entry(value).or_default() += 1;
    }
    let most = holders.values().max().copied().unwrap_or(0);
    if most < stage.plan.min_copies as usize {
        stage.broken("G1", format!("{} was acknowledged and is on {most} members", thing.label));
    }
}

fn same(stage: &Stage, thing: &Thing, copies: &[Vec<Vec<u8>>]) {
    let mut values = copies.iter().flatten();
    if let Some(first) = values.next()
        && values.any(|v| v != first)
    {
        stage.broken("G3", format!("the copies of {} differ", thing.label));
    }
    if copies.iter().any(|c| c.len() > 1) {
        stage.broken("G8", format!("{} is twice on one member", thing.label));
    }
}

/// G1 and G2, when everything is at rest.
pub fn at_rest(stage: &Stage) {
    let things = stage.model.things().clone();
    for thing in &things {
        let copies = copies(stage, thing);
        let holders = copies.iter().filter(|c| !c.is_empty()).count();
        match thing.standing {
            Standing::There if holders < copies.len() => {
                stage.broken(
                    "G1",
                    format!("{} is on {holders} of {} members at rest", thing.label, copies.len()),
                );
            }
            Standing::Gone if holders > 0 => {
                stage.broken("G2", format!("{} is gone and is on {holders} members at rest", thing.label));
            }
            Standing::Unknown if holders != 0 && holders != copies.len() => {
                let all = copies.len();
                stage.broken(
                    "G2",
                    format!("{}, of which nothing was said, is on {holders} of {all} members", thing.label),
                );
            }
            _ => same(stage, thing, &copies),
        }
    }
    for (member, device) in stage.devices.iter().enumerate() {
        let open = device.sessions_open();
        let most = 24 + 4 * stage.plan.lives.iter().map(Vec::len).max().unwrap_or(0);
        if open > most {
            stage.broken("sessions", format!("{open} sessions are open on member {member} at rest"));
        }
        let mut by_label: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        for object in device.inspect() {
            *by_label.entry(object.label.clone()).or_default() += 1;
        }
        for label in by_label.keys() {
            let known = things.iter().any(|t| t.label.as_bytes() == label) || label.starts_with(b"pkcs11-ha");
            if !known {
                let label = String::from_utf8_lossy(label);
                stage.broken("G2", format!("nobody made {label:?}, which is on member {member}"));
            }
        }
    }
}

/// G7, at the end.
fn amplified(stage: &Stage) {
    let begun = stage.begun.load(std::sync::atomic::Ordering::Relaxed);
    let most = 2 * begun + begun / 5 + 10 * (1 + stage.scheduler.now().as_secs() / 10);
    let made: u64 =
        stage.lines.iter().map(|l| l.calls().get(&Function::EncryptInit).copied().unwrap_or(0)).sum();
    if made > most {
        stage.broken("G7", format!("{begun} operations became {made}"));
    }
}

/// What must hold when the last process has ended.
pub fn at_the_end(stage: &Stage) {
    amplified(stage);
    for (member, (line, device)) in stage.lines.iter().zip(&stage.devices).enumerate() {
        for attempt in line.take_logins() {
            let ours = attempt.user == UserType::User && attempt.pin == PIN.as_bytes();
            if !ours {
                stage.broken("G6", format!("member {member} was sent a PIN that nobody gave"));
            }
        }
        let open = device.sessions_open();
        if open != 0 {
            stage.broken("sessions", format!("{open} sessions are left open on member {member}"));
        }
    }
}
