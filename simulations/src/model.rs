//! What the application was told: the reference that every answer must agree with.
//!
//! The model is a single perfect token, seen by several threads at once. An object that a call is changing is neither
//! there nor gone while the call lasts; one whose call ended with an error is what it was, or what it was to become, until
//! a later answer tells. An answer is judged by what held from the start of its call to the end of it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ha_core::replica::verifier::Verifier;
use ha_token::{ObjectHandle, Rv};

use crate::plan::Kind;

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
    /// A call that was making or destroying it ended with an error.
    Unknown,
}

/// What an object must answer.
#[derive(Clone, Debug)]
pub enum Proof {
    /// Signatures fit this.
    Public(Verifier),
    /// The answer to a fixed question.
    Answer(Vec<u8>),
}

/// An object of the application's.
#[derive(Clone, Debug)]
pub struct Thing {
    /// `CKA_LABEL`: no two have the same.
    pub label: String,
    /// What it is.
    pub kind: Kind,
    /// The thread that made it.
    pub owner: usize,
    /// Whether it is there.
    pub standing: Standing,
    /// Counts the changes of `standing`.
    pub version: u64,
    /// What it must answer, once known.
    pub proof: Option<Proof>,
    /// Its handle in this life of the process.
    pub handle: Option<ObjectHandle>,
    /// `CKA_ID`, or the two that it may be.
    pub ids: Vec<Vec<u8>>,
}

/// Everything that the application has.
#[derive(Default)]
pub struct Model {
    things: Mutex<Vec<Thing>>,
}

impl Model {
    /// The objects.
    pub fn things(&self) -> MutexGuard<'_, Vec<Thing>> {
        self.things.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new object, which a call is about to make.
    pub fn make(&self, kind: Kind, owner: usize) -> usize {
        let mut things = self.things();
        let label = format!("{kind:?}-{owner}-{}", things.len());
        let id = vec![1, things.len() as u8, owner as u8];
        things.push(Thing {
            label,
            kind,
            owner,
            standing: Standing::Making,
            version: 0,
            proof: None,
            handle: None,
            ids: vec![id],
        });
        things.len() - 1
    }

    /// Changes where an object stands.
    pub fn set(&self, thing: usize, standing: Standing) {
        let thing = &mut self.things()[thing];
        thing.standing = standing;
        thing.version += 1;
    }

    /// One of a thread's objects of this standing.
    pub fn choose(&self, owner: usize, n: u8, standing: Standing) -> Option<usize> {
        let things = self.things();
        let own: Vec<usize> = (0..things.len())
            .filter(|i| things[*i].owner == owner && things[*i].standing == standing)
            .collect();
        own.get(usize::from(n) % own.len().max(1)).copied()
    }

    /// A copy of an object.
    pub fn get(&self, thing: usize) -> Thing {
        self.things()[thing].clone()
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
