//! The proof that a member's copy is the key it should be: a fresh challenge, answered by the member, checked here.
//!
//! What a key may be used for decides how it is challenged. Where nothing fits, a session object is copied from it that
//! may do what the challenge wants, and discarded again; and what may be extracted is wrapped again. A key that none of
//! this reaches is `Unproven`, never `Same`.

mod evidence;
mod private;
mod secret;

use ha_token::{
    Attribute, AttributeType, Mechanism, ObjectHandle, OpKind, Output, Result, Rv, Template, TemplateExt,
    Ulong, UserType, ck,
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

pub use evidence::{Evidence, Exchange, Proof};

use super::verifier::Verifier;
use super::{On, PUBLIC_VALUE, is_secret, life, wrapping};
use crate::pin::{Pin, log_in};
use crate::policy::failure::{Class, classify};

/// What a proof showed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is the key.
    Same,
    /// It is another key.
    Different,
    /// Neither could be shown, for this reason.
    Unproven(String),
}

impl Outcome {
    fn of(same: bool) -> Self {
        if same { Outcome::Same } else { Outcome::Different }
    }

    fn unproven(why: &str) -> Self {
        Outcome::Unproven(why.to_owned())
    }
}

/// What a challenge on one member needs.
#[derive(Clone, Copy)]
pub struct Challenge<'a> {
    /// Where.
    pub on: On<'a>,
    /// Never used before.
    pub nonce: [u8; 32],
    /// The user's PIN, for keys that want a login for each use.
    pub pin: Option<&'a Pin>,
    /// The member's handle of the group key for keys that may be extracted, where there is one.
    pub group_key: Option<ObjectHandle>,
}

const READ: [AttributeType; 20] = [
    ck::CKA_KEY_TYPE,
    ck::CKA_SIGN,
    ck::CKA_DECRYPT,
    ck::CKA_DERIVE,
    ck::CKA_ENCRYPT,
    ck::CKA_WRAP,
    ck::CKA_UNWRAP,
    ck::CKA_ALWAYS_AUTHENTICATE,
    ck::CKA_COPYABLE,
    ck::CKA_EXTRACTABLE,
    ck::CKA_WRAP_WITH_TRUSTED,
    ck::CKA_VALUE_LEN,
    ck::CKA_MODULUS,
    ck::CKA_PUBLIC_EXPONENT,
    ck::CKA_EC_PARAMS,
    ck::CKA_EC_POINT,
    ck::CKA_ID,
    ck::CKA_PRIME,
    ck::CKA_SUBPRIME,
    ck::CKA_BASE,
];

/// What decides how a key can be challenged.
pub const DECIDING: [AttributeType; 9] = [
    ck::CKA_SIGN,
    ck::CKA_DECRYPT,
    ck::CKA_DERIVE,
    ck::CKA_ENCRYPT,
    ck::CKA_WRAP,
    ck::CKA_UNWRAP,
    ck::CKA_COPYABLE,
    ck::CKA_EXTRACTABLE,
    ck::CKA_WRAP_WITH_TRUSTED,
];

/// What is known of a key before it is asked.
#[derive(Clone, Copy, Default)]
pub struct Known<'a> {
    /// A private key's public part.
    pub public: Option<&'a Verifier>,
    /// What its copies will be: they must be able to answer, not only the key that was made.
    pub kept: Option<&'a Template>,
}

/// The key that is challenged.
struct Subject<'a> {
    challenge: Challenge<'a>,
    handle: ObjectHandle,
    class: Ulong,
    read: Template,
    /// The PIN, where the key wants it for each use.
    pin: Option<&'a Pin>,
}

impl<'a> Subject<'a> {
    fn of(challenge: Challenge<'a>, handle: ObjectHandle, class: Ulong) -> Result<Self> {
        let read = challenge.on.read(handle, &READ)?;
        let pin = if read.get_bool(ck::CKA_ALWAYS_AUTHENTICATE) == Some(true) {
            Some(challenge.pin.ok_or(Rv::USER_NOT_LOGGED_IN)?)
        } else {
            None
        };
        Ok(Subject { challenge, handle, class, read, pin })
    }

    /// With what it may be used for as these attributes say.
    fn allowed_by(mut self, attributes: &Template) -> Self {
        for kind in DECIDING {
            if let Some(flag) = attributes.get_bool(kind) {
                self.read.set(Attribute::bool(kind, flag));
            }
        }
        self
    }

    fn on(&self) -> On<'a> {
        self.challenge.on
    }

    fn key_type(&self) -> Option<Ulong> {
        self.read.get_ulong(ck::CKA_KEY_TYPE)
    }

    fn may(&self, usage: AttributeType) -> bool {
        self.read.get_bool(usage) == Some(true)
    }

    /// Does something with a session object that is copied from the key and may be used so; `None` when it may not be
    /// copied, or not so.
    fn through_copy<T>(
        &self,
        usage: AttributeType,
        f: &mut dyn FnMut(ObjectHandle) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        if self.read.get_bool(ck::CKA_COPYABLE) == Some(false) {
            return Ok(None);
        }
        let on = self.on();
        let changes = vec![Attribute::bool(ck::CKA_TOKEN, false), Attribute::bool(usage, true)];
        let Some(copy) = taken(on.token.copy_object(on.session, self.handle, &changes))? else {
            return Ok(None);
        };
        let answer = f(copy);
        on.discard(copy);
        answer
    }

    /// What wrapping the key gives: `None` where it may not be extracted, or there is nothing to wrap it with.
    fn wrapped(&self, mechanism: Ulong) -> Result<Option<Vec<u8>>> {
        let Some(group_key) = self.challenge.group_key else { return Ok(None) };
        if !self.may(ck::CKA_EXTRACTABLE) || self.may(ck::CKA_WRAP_WITH_TRUSTED) {
            return Ok(None);
        }
        let blob = taken(wrapping::wrap(self.on(), group_key, self.handle, mechanism))?;
        Ok(blob.map(|b| Sha256::digest(b).to_vec()))
    }

    /// A verifier from the key's own wrapping.
    fn rewrapped(&self) -> Result<Option<Verifier>> {
        for mechanism in wrapping::CANDIDATES {
            if self.on().supports(mechanism, 0)
                && let Some(digest) = self.wrapped(mechanism)?
            {
                return Ok(Some(Verifier::Wrapped { mechanism, digest }));
            }
        }
        Ok(None)
    }
}

/// Makes a verifier of an object as it is on one member: from its public part, or from its own answers to challenges.
/// `None` when no challenge fits the key.
///
/// # Errors
/// The member's answer.
pub fn make_verifier(
    challenge: Challenge<'_>,
    object: ObjectHandle,
    class: Ulong,
    known: Known<'_>,
) -> Result<Option<Verifier>> {
    let subject = || {
        let subject = Subject::of(challenge, object, class)?;
        Ok(match known.kept {
            Some(kept) => subject.allowed_by(kept),
            None => subject,
        })
    };
    match class {
        ck::CKO_SECRET_KEY => secret::make(&subject()?),
        ck::CKO_PRIVATE_KEY => private::make(&subject()?, known.public),
        ck::CKO_PUBLIC_KEY => match public_on(challenge.on, object)? {
            Some(verifier) => Ok(Some(verifier)),
            None => content(challenge.on, object, class).map(Some),
        },
        _ => content(challenge.on, object, class).map(Some),
    }
}

/// Challenges an object on one member. Nothing is left behind.
///
/// # Errors
/// The member's answer, where it says nothing of the key.
pub fn prove(
    challenge: Challenge<'_>,
    object: ObjectHandle,
    class: Ulong,
    verifier: &Verifier,
) -> Result<Proof> {
    prove_as_if(challenge, object, class, verifier, &Template::new())
}

/// As [`prove`], in the ways that would be left once these attributes were set.
///
/// # Errors
/// As [`prove`].
pub fn prove_as_if(
    challenge: Challenge<'_>,
    object: ObjectHandle,
    class: Ulong,
    verifier: &Verifier,
    attributes: &Template,
) -> Result<Proof> {
    if class == ck::CKO_PUBLIC_KEY {
        let there = match public_on(challenge.on, object)? {
            Some(there) => there,
            None => content(challenge.on, object, class)?,
        };
        return Ok(Proof::by_reading(there, verifier));
    }
    if !is_secret(class) {
        return Ok(Proof::by_reading(content(challenge.on, object, class)?, verifier));
    }
    let subject = Subject::of(challenge, object, class)?.allowed_by(attributes);
    let all = match verifier {
        Verifier::Several(all) => all.as_slice(),
        one => std::slice::from_ref(one),
    };
    let mut reasons: Vec<String> = Vec::new();
    let mut evidence = None;
    for one in all {
        let proof = prove_by(&subject, one)?;
        let Outcome::Unproven(reason) = proof.outcome else { return Ok(proof) };
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
        evidence = evidence.or(proof.evidence);
    }
    Ok(Proof { outcome: Outcome::Unproven(reasons.join("; ")), evidence })
}

/// Whether a secret key has no value, and so is half made: then its digest is that of nothing. False where that cannot be
/// asked.
///
/// # Errors
/// The member's answer.
pub fn has_no_value(challenge: Challenge<'_>, object: ObjectHandle) -> Result<bool> {
    let subject = Subject::of(challenge, object, ck::CKO_SECRET_KEY)?;
    secret::is_empty(&subject)
}

fn prove_by(subject: &Subject<'_>, verifier: &Verifier) -> Result<Proof> {
    match verifier {
        Verifier::Secret { method, length, nonce, answer } => {
            secret::prove(subject, *method, *length, nonce, answer)
        }
        Verifier::Agreement { mechanism, peer, digest } => {
            let Some(answer) = private::agreed(subject, *mechanism, peer)? else {
                return Ok(Proof::unproven("the key can be brought to no key agreement"));
            };
            let same = answer == *digest;
            let exchange = Exchange::AgreedAgain {
                mechanism: *mechanism,
                peer: peer.clone(),
                expected: digest.clone(),
                answer,
            };
            Ok(Proof::of(same, Evidence { by_copy: !subject.may(ck::CKA_DERIVE), exchange }))
        }
        Verifier::Wrapped { mechanism, digest } => {
            let Some(answer) = subject.wrapped(*mechanism)? else {
                return Ok(Proof::unproven("the key cannot be wrapped"));
            };
            let outcome = match answer == *digest {
                false if subject.class != ck::CKO_SECRET_KEY => {
                    // The same private key may be encoded in more than one way.
                    Outcome::unproven("wrapping the key gives other bytes than it should")
                }
                same => Outcome::of(same),
            };
            let exchange = Exchange::Wrapped { mechanism: *mechanism, expected: digest.clone(), answer };
            Ok(Proof { outcome, evidence: Some(Evidence::of(exchange)) })
        }
        Verifier::Rsa { .. } | Verifier::Ec { .. } | Verifier::Ed25519 { .. } | Verifier::Dsa { .. } => {
            private::prove(subject, verifier)
        }
        Verifier::Content { .. } | Verifier::Several(_) => {
            Ok(Proof::unproven("the ledger's verifier is not one of a key"))
        }
    }
}

/// The verifier that a public key on a member makes, if its attributes tell its value.
fn public_on(on: On<'_>, object: ObjectHandle) -> Result<Option<Verifier>> {
    let types: Vec<AttributeType> = [ck::CKA_KEY_TYPE].into_iter().chain(PUBLIC_VALUE).collect();
    Ok(public_part(&on.read(object, &types)?))
}

/// The verifier that a public key's attributes make.
pub fn public_part(read: &Template) -> Option<Verifier> {
    let key_type = read.get_ulong(ck::CKA_KEY_TYPE)?;
    if key_type == ck::CKK_DSA {
        return Verifier::from_dsa(
            [ck::CKA_PRIME, ck::CKA_SUBPRIME, ck::CKA_BASE, ck::CKA_VALUE].map(|k| read.get_bytes(k)),
        );
    }
    Verifier::from_public(
        key_type,
        read.get_bytes(ck::CKA_MODULUS),
        read.get_bytes(ck::CKA_PUBLIC_EXPONENT),
        read.get_bytes(ck::CKA_EC_PARAMS),
        read.get_bytes(ck::CKA_EC_POINT),
    )
}

/// What an operation on a key came to.
enum Once {
    Done(Vec<u8>),
    /// The key or the mechanism was refused.
    Refused,
    /// The key was taken and the data was not: a wrong key makes a padding error, in vague words on some tokens.
    Failed,
}

impl Once {
    fn done(self) -> Option<Vec<u8>> {
        match self {
            Once::Done(answer) => Some(answer),
            Once::Refused | Once::Failed => None,
        }
    }
}

/// One operation in one call.
fn once(
    on: On<'_>,
    kind: OpKind,
    mechanism: Ulong,
    key: ObjectHandle,
    input: &[u8],
    pin: Option<&Pin>,
) -> Result<Once> {
    let begun = on.token.op_init(on.session, kind, Some(&mut Mechanism::plain(mechanism)), key);
    if taken(begun)?.is_none() {
        return Ok(Once::Refused);
    }
    if let Some(pin) = pin {
        log_in(on.token, on.session, UserType::ContextSpecific, Some(pin))?;
    }
    let mut space = vec![0; 4096];
    let mut out = Output::buffer(&mut space);
    let answer = on.token.op_one_shot(on.session, kind, input, &mut out);
    Ok(match (answer, taken(answer)?) {
        (_, Some(())) => Once::Done(out.written().to_vec()),
        // Vague words say nothing of the key.
        (Err(rv), None) if classify(kind.one_shot(), rv) == Class::Caller => Once::Failed,
        (_, None) => Once::Refused,
    })
}

/// An answer that says something of the key or the mechanism is `None`; one that says something of the member is an error.
fn taken<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(rv) => match classify(ha_token::Function::DeriveKey, rv) {
            Class::Caller | Class::Ambiguous => Ok(None),
            // A token that has not got the function.
            Class::Capacity if rv == Rv::FUNCTION_NOT_SUPPORTED => Ok(None),
            _ => Err(rv),
        },
    }
}

/// A throw-away secret that can be read.
fn readable(length: Option<usize>) -> Template {
    let mut template = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
        Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET),
        Attribute::bool(ck::CKA_TOKEN, false),
        Attribute::bool(ck::CKA_SENSITIVE, false),
        Attribute::bool(ck::CKA_EXTRACTABLE, true),
    ];
    template.extend(length.map(|l| Attribute::ulong(ck::CKA_VALUE_LEN, l as Ulong)));
    template
}

/// Derives a throw-away secret and reads it.
fn derived(
    on: On<'_>,
    key: ObjectHandle,
    mechanism: &mut Mechanism,
    length: usize,
) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let made = on
        .token
        .derive_key(on.session, mechanism, key, &readable(Some(length)), true)
        .and_then(|h| h.ok_or(Rv::GENERAL_ERROR));
    read_value(on, made)
}

fn read_value(on: On<'_>, made: Result<ObjectHandle>) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let Some(handle) = taken(made)? else { return Ok(None) };
    let value = on.read(handle, &[ck::CKA_VALUE]);
    on.discard(handle);
    Ok(value?.get_bytes(ck::CKA_VALUE).map(|v| Zeroizing::new(v.to_vec())))
}

/// What makes an object that holds nothing secret the one it is.
const PARTS: [AttributeType; 10] = [
    ck::CKA_VALUE,
    ck::CKA_OBJECT_ID,
    ck::CKA_APPLICATION,
    ck::CKA_SUBJECT,
    ck::CKA_PRIME,
    ck::CKA_SUBPRIME,
    ck::CKA_BASE,
    ck::CKA_EC_PARAMS,
    ck::CKA_EC_POINT,
    ck::CKA_CERTIFICATE_TYPE,
];

/// Whether an attribute is what an object is, not how it is called or used: no change of it can be proven.
pub fn is_content(class: Ulong, kind: AttributeType) -> bool {
    match class {
        ck::CKO_PUBLIC_KEY | ck::CKO_PRIVATE_KEY | ck::CKO_SECRET_KEY => life::is_value(kind),
        _ => PARTS.contains(&kind),
    }
}

/// A digest of what can be read of an object that holds nothing secret.
fn content(on: On<'_>, object: ObjectHandle, class: Ulong) -> Result<Verifier> {
    let read = on.read(object, &PARTS)?;
    let class = class.to_be_bytes();
    let parts = PARTS.iter().map(|p| read.get_bytes(*p).unwrap_or(&[]));
    Ok(Verifier::of_content(std::iter::once(&class[..]).chain(parts)))
}
