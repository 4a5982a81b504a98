//! What the application was told: the reference that every answer must agree with.
//!
//! The model is a single perfect token, seen by several threads of several processes at once. An object that a call is changing is neither
//! there nor gone while the call lasts; one whose call ended with an error, or never because its process was killed, is
//! what it was, or what it was to become, until a later answer tells. An answer is judged by what held from the start of
//! its call to the end of it. Handles belong to a process, and end with it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ha_core::replica::verifier::Verifier;
use ha_token::{AttributeType, ObjectHandle, Rv, Ulong, ck};

use crate::plan::Kind;
use crate::token::Inspected;

/// Whether an object is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// A call is making it.
    Making,
    /// It is there: the application was told so.
    There,
    /// A call is destroying it.
    Leaving,
    /// It is gone: the application was told so.
    Gone,
    /// A call that was making or destroying it ended with an error, or its process was killed.
    Unknown,
    /// It was there, and every token that held it was set back: it may be made anew from what the group kept of it, or is
    /// gone, on every member.
    Lost,
}

/// What an object must answer.
#[derive(Clone, Debug)]
pub enum Proof {
    /// Signatures fit this.
    Public(Verifier),
    /// The answer to a fixed question.
    Answer(Vec<u8>),
}

/// A thread of a program, in whatever process that runs as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// The program.
    pub program: usize,
    /// The thread's number in it.
    pub thread: usize,
}

impl Owner {
    /// Nobody in particular: what every thread may use.
    pub const SHARED: Owner = Owner { program: 0, thread: usize::MAX };
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.program {
            0 => write!(f, "{}", self.thread),
            program => write!(f, "{program}.{}", self.thread),
        }
    }
}

/// An object of the application's.
#[derive(Clone, Debug)]
pub struct Thing {
    /// Its number in the model; that of a session object, which is not in it, is none.
    pub number: Option<usize>,
    /// `CKA_LABEL`: no two have the same but the two keys of a pair.
    pub label: String,
    /// What it is.
    pub kind: Kind,
    /// Whether it is the public key of a pair; the private one is the number before it.
    pub public: bool,
    /// Who made it.
    pub owner: Owner,
    /// The process whose call makes or destroys it.
    pub busy: Option<u32>,
    /// Whether it is there.
    pub standing: Standing,
    /// Counts the changes of `standing`.
    pub version: u64,
    /// What it must answer, once known.
    pub proof: Option<Proof>,
    /// Its handle in each process that knows one.
    pub handles: BTreeMap<u32, ObjectHandle>,
    /// `CKA_ID`, or those that it may be after changes that ended with an error.
    pub ids: Vec<Vec<u8>>,
}

impl Thing {
    /// `CKA_CLASS`.
    pub fn class(&self) -> Ulong {
        match self.kind {
            Kind::Ec | Kind::Rsa if self.public => ck::CKO_PUBLIC_KEY,
            Kind::Ec | Kind::Rsa => ck::CKO_PRIVATE_KEY,
            Kind::Mac | Kind::Aes => ck::CKO_SECRET_KEY,
            Kind::Data => ck::CKO_DATA,
            Kind::Certificate => ck::CKO_CERTIFICATE,
        }
    }

    /// The flags that the application gives it, each of them true.
    pub fn flags(&self) -> &'static [AttributeType] {
        match self.kind {
            Kind::Ec | Kind::Rsa if self.public => &[ck::CKA_VERIFY],
            Kind::Ec | Kind::Rsa => &[ck::CKA_SIGN, ck::CKA_PRIVATE],
            Kind::Mac => &[ck::CKA_SIGN],
            Kind::Aes => &[ck::CKA_ENCRYPT],
            Kind::Data | Kind::Certificate => &[],
        }
    }

    /// Its handle in a process.
    pub fn handle(&self, process: u32) -> Option<ObjectHandle> {
        self.handles.get(&process).copied()
    }

    /// What it is called in a report.
    pub fn name(&self) -> String {
        let half = if self.public { "the public half of " } else { "" };
        format!("{half}{}", self.label)
    }

    /// Whether an object of a token's has its names.
    pub fn is(&self, object: &Inspected) -> bool {
        object.class == self.class() && object.label == self.label.as_bytes()
    }

    /// The content that the application gives it, if it is not a key.
    pub fn content(&self) -> Vec<u8> {
        format!("the value of {}", self.label).into_bytes()
    }
}

/// Everything that the application has.
#[derive(Default)]
pub struct Model {
    things: Mutex<Vec<Thing>>,
    ids: AtomicU32,
}

impl Model {
    /// The objects.
    pub fn things(&self) -> MutexGuard<'_, Vec<Thing>> {
        self.things.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A `CKA_ID` that nothing had before.
    pub fn new_id(&self) -> Vec<u8> {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        [&[1], &id.to_be_bytes()[..]].concat()
    }

    /// What a call of a process is about to make: two things where it is a pair, with one label and one id.
    pub fn make(&self, kind: Kind, owner: Owner, process: u32) -> Vec<Thing> {
        let id = self.new_id();
        let mut things = self.things();
        let first = things.len();
        let label = format!("{kind:?}-{owner}-{first}");
        let halves: &[bool] = if matches!(kind, Kind::Ec | Kind::Rsa) { &[false, true] } else { &[false] };
        things.extend(halves.iter().enumerate().map(|(i, public)| Thing {
            number: Some(first + i),
            label: label.clone(),
            kind,
            public: *public,
            owner,
            busy: Some(process),
            standing: Standing::Making,
            version: 0,
            proof: None,
            handles: BTreeMap::new(),
            ids: vec![id.clone()],
        }));
        things[first..].to_vec()
    }

    /// Changes a thing, if it is in the model.
    pub fn update(&self, thing: &Thing, change: impl FnOnce(&mut Thing)) {
        if let Some(number) = thing.number {
            change(&mut self.things()[number]);
        }
    }

    /// Changes where an object stands: the call that did so far has ended.
    pub fn set(&self, thing: &Thing, standing: Standing) {
        self.update(thing, |thing| {
            thing.standing = standing;
            thing.busy = None;
            thing.version += 1;
        });
    }

    /// These things as they stand now.
    pub fn again(&self, things: &[Thing]) -> Vec<Thing> {
        let all = self.things();
        things.iter().filter_map(|t| all.get(t.number?).cloned()).collect()
    }

    /// A process is about to destroy an object. False if somebody else does, or has done so since `thing` was looked at.
    pub fn leaves(&self, thing: &Thing, process: u32) -> bool {
        let is_free = self.is_as_before(thing);
        if is_free {
            self.set(thing, Standing::Leaving);
            self.update(thing, |thing| thing.busy = Some(process));
        }
        is_free
    }

    /// Whether an object stands as it did when `thing` was looked at.
    pub fn is_as_before(&self, thing: &Thing) -> bool {
        thing.number.is_none_or(|number| self.things()[number].version == thing.version)
    }

    /// A process was killed: what it was at is done or not.
    pub fn died(&self, process: u32) {
        for thing in self.things().iter_mut() {
            thing.handles.remove(&process);
            if thing.busy == Some(process) {
                thing.busy = None;
                thing.standing = Standing::Unknown;
                thing.version += 1;
            }
        }
    }

    /// One of those objects that somebody wants.
    fn pick(&self, n: u8, wanted: impl Fn(&Thing) -> bool) -> Option<Thing> {
        let things = self.things();
        let all: Vec<_> = things.iter().filter(|t| wanted(t)).collect();
        all.get(usize::from(n) % all.len().max(1)).map(|t| (*t).clone())
    }

    /// One of a thread's objects of this standing.
    pub fn choose(&self, owner: Owner, n: u8, standing: Standing) -> Option<Thing> {
        self.pick(n, |t| t.standing == standing && t.owner == owner)
    }

    /// One of this standing that another program has made, and that no thread but its own counts on.
    pub fn choose_theirs(&self, program: usize, n: u8, standing: Standing) -> Option<Thing> {
        self.pick(n, |t| t.standing == standing && t.owner.program != program && t.owner != Owner::SHARED)
    }

    /// One that another program has made, that is there or gone, and of which a process knows a handle.
    pub fn choose_known(&self, program: usize, process: u32, n: u8) -> Option<Thing> {
        let stands = |t: &Thing| matches!(t.standing, Standing::There | Standing::Gone);
        let theirs = |t: &Thing| t.owner.program != program && t.owner != Owner::SHARED;
        self.pick(n, |t| stands(t) && theirs(t) && t.handle(process).is_some())
    }

    /// The public key of a pair's private one.
    pub fn public_of(&self, private: &Thing) -> Option<Thing> {
        self.things().get(private.number? + 1).filter(|t| t.public).cloned()
    }
}

/// An error of a call, with what it was asked for.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The step of the call.
    pub step: &'static str,
    /// The answer.
    pub rv: Rv,
}
