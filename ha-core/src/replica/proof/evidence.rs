//! What a proof was shown by, for who is to judge it afterwards: plain data, and nothing secret in it.

use ha_token::{Ulong, ck};

use super::Outcome;
use crate::replica::verifier::{Digested, SecretMethod, Verifier};

/// What a proof showed, and by what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proof {
    /// What was shown.
    pub outcome: Outcome,
    /// What was asked and answered; `None` where the key could not be asked, or told apart by its kind alone.
    pub evidence: Option<Evidence>,
}

impl Proof {
    pub(super) fn of(same: bool, evidence: Evidence) -> Self {
        Proof { outcome: Outcome::of(same), evidence: Some(evidence) }
    }

    pub(super) fn bare(outcome: Outcome) -> Self {
        Proof { outcome, evidence: None }
    }

    pub(super) fn unproven(why: &str) -> Self {
        Proof::bare(Outcome::unproven(why))
    }

    /// From what can be read of an object.
    pub(super) fn by_reading(there: Verifier, expected: &Verifier) -> Self {
        Proof::of(there == *expected, Evidence::of(Exchange::Read { there }))
    }
}

/// What one copy was asked, and what it answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evidence {
    /// Whether a session object answered that was copied from the key, because the key itself may not be used so.
    pub by_copy: bool,
    /// The question and the answer.
    pub exchange: Exchange,
}

impl Evidence {
    pub(super) fn of(exchange: Exchange) -> Self {
        Evidence { by_copy: false, exchange }
    }
}

/// A question and its answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Exchange {
    /// Nothing was asked: this can be read of the object.
    Read {
        /// The public key, or the digest of the content.
        there: Verifier,
    },
    /// A fresh message was signed, which the public key verifies.
    Signature {
        /// The mechanism.
        mechanism: Ulong,
        /// The message.
        message: Vec<u8>,
        /// What of it was signed.
        digested: Digested,
        /// As the token gave it.
        signature: Vec<u8>,
    },
    /// What was encrypted to the public key was opened.
    Opening {
        /// The mechanism.
        mechanism: Ulong,
        /// Whether it was unwrapped as the value of a throw-away key, and not decrypted.
        unwrapped: bool,
        /// What was encrypted, with its padding.
        block: Vec<u8>,
        /// That, encrypted.
        sealed: Vec<u8>,
        /// What the block is about.
        expected: Vec<u8>,
        /// What the key found in it; `None` where it found nothing of the right form.
        opened: Option<Vec<u8>>,
    },
    /// The key agreed on a secret with a throw-away one.
    Agreement {
        /// The mechanism.
        mechanism: Ulong,
        /// The throw-away key's public point.
        peer: Vec<u8>,
        /// The throw-away pair as a DER `ECPrivateKey`: with it and the public key anybody has the secret.
        throw_away: Vec<u8>,
        /// SHA-256 of the secret that must come out.
        expected: Vec<u8>,
        /// SHA-256 of the secret that came out.
        answer: Vec<u8>,
    },
    /// A question that the ledger keeps with its answer was asked again.
    Answer {
        /// What the key was made to do.
        method: SecretMethod,
        /// What it was given.
        question: Vec<u8>,
        /// What the key answered that the group made.
        expected: Vec<u8>,
        /// What this copy answered.
        answer: Vec<u8>,
    },
    /// A key agreement was made again whose result the ledger keeps.
    AgreedAgain {
        /// The mechanism.
        mechanism: Ulong,
        /// The peer's public value.
        peer: Vec<u8>,
        /// SHA-256 of the last bytes of the secret of the key that the group made.
        expected: Vec<u8>,
        /// The same of this copy.
        answer: Vec<u8>,
    },
    /// The key was wrapped under the group key, which gives the same bytes each time.
    Wrapped {
        /// The mechanism.
        mechanism: Ulong,
        /// SHA-256 of the wrapped key that the group made.
        expected: Vec<u8>,
        /// The same of this copy.
        answer: Vec<u8>,
    },
    /// A secret key has another length.
    Length {
        /// That of the key that the group made, in bytes.
        expected: Ulong,
        /// That of this copy.
        there: Ulong,
    },
    /// A secret key has no value.
    NoValue,
}

impl Exchange {
    /// The mechanism by which the key answered, where it was asked something.
    pub fn mechanism(&self) -> Option<Ulong> {
        match self {
            Exchange::Signature { mechanism, .. }
            | Exchange::Opening { mechanism, .. }
            | Exchange::Agreement { mechanism, .. }
            | Exchange::AgreedAgain { mechanism, .. }
            | Exchange::Wrapped { mechanism, .. } => Some(*mechanism),
            Exchange::Answer { method, .. } => Some(method.mechanism()),
            Exchange::NoValue => Some(ck::CKM_SHA256),
            Exchange::Read { .. } | Exchange::Length { .. } => None,
        }
    }
}
