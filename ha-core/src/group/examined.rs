//! What a check finds, for people, programs, and who is to judge it afterwards: plain data.

use std::time::Duration;

use ha_token::{TokenInfo, Ulong};

use crate::replica::proof::Evidence;
use crate::replica::verifier::Verifier;

/// What a member has of an object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Word {
    /// The same object, as far as was asked for.
    Same,
    /// There, and not proven to be the same.
    Unproven,
    /// Not there.
    Missing,
    /// There, and another key.
    Different,
}

/// One object of a check.
#[derive(Clone, Debug)]
pub struct Checked {
    /// `CKA_CLASS`.
    pub class: Ulong,
    /// `CKA_KEY_TYPE`; all bits set where there is none.
    pub key_type: Ulong,
    /// `CKA_ID` (`CKA_APPLICATION` for data objects).
    pub id: Vec<u8>,
    /// `CKA_LABEL`.
    pub label: Vec<u8>,
    /// Digest of what identifies the key, where it is known.
    pub fingerprint: Option<[u8; 32]>,
    /// Whether the object can be brought to a member that lacks it.
    pub copyable: bool,
    /// Whether the ledger does not know it: it was there before the group, or was made behind its back.
    pub foreign: bool,
    /// By member. One that is not up is left out.
    pub members: Vec<(String, Word)>,
    /// Why a word is not `Same`, where there is more to say.
    pub reasons: Vec<String>,
}

impl Checked {
    /// The worst of the members' words.
    pub fn worst(&self) -> Word {
        self.members.iter().map(|m| m.1).max().unwrap_or(Word::Missing)
    }

    /// What objects are sorted by where they are listed: label, id, class.
    pub fn order(&self) -> (&[u8], &[u8], Ulong) {
        (&self.label, &self.id, self.class)
    }
}

/// A check with all that its words were said by.
#[derive(Clone, Debug)]
pub struct Examination {
    /// The members that were asked. One that failed meanwhile was not asked of every object.
    pub asked: Vec<Asked>,
    /// The objects.
    pub objects: Vec<Examined>,
}

/// A member that was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its name in the configuration.
    pub member: String,
    /// What its token said of itself when it was connected.
    pub token: TokenInfo,
}

/// One object of a check, with what each member's word was said by.
#[derive(Clone, Debug)]
pub struct Examined {
    /// What was found.
    pub object: Checked,
    /// What every copy had to answer. `None` where nothing can be asked of it.
    pub verifier: Option<Verifier>,
    /// Whether another object has its class, label and id and is a different one. Then the verifier is what its own copy
    /// answers, not what it had to.
    pub conflicted: bool,
    /// Of each of [`Checked::members`], in that order.
    pub copies: Vec<Testimony>,
}

/// What a member said of its copy of an object.
#[derive(Clone, Debug)]
pub struct Testimony {
    /// The member's name.
    pub member: String,
    /// What follows from it.
    pub word: Word,
    /// Why that is not `Same`, where there is more to say.
    pub reason: Option<String>,
    /// By what it was shown; `None` where there was nothing to ask, or no answer.
    pub shown: Option<Shown>,
}

/// What a proof was shown by, and when.
#[derive(Clone, Debug)]
pub struct Shown {
    /// When the answer was there, as wall-clock time since the Unix epoch.
    pub at: Duration,
    /// The question and the answer.
    pub evidence: Evidence,
}
