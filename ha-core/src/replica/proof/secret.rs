//! Challenges of secret keys: an answer of the key that was made, which its copies must give again.

use ha_token::{
    Attribute, Field, FieldValue, Mechanism, ObjectHandle, OpKind, Output, Params, Result, Rv, StructParams,
    TemplateExt, Ulong, ck,
};

use sha2::{Digest as _, Sha256};

use super::{Evidence, Exchange, Outcome, Proof, Subject, derived, once, readable, taken};
use crate::replica::verifier::{SecretMethod, Verifier, challenge_message};

/// Makes a verifier of every kind that the key answers to.
///
/// # Errors
/// The member's answer.
pub(super) fn make(key: &Subject<'_>) -> Result<Option<Verifier>> {
    let nonce = key.challenge.nonce;
    let length = key.read.get_ulong(ck::CKA_VALUE_LEN).unwrap_or(0);
    let mut found = Vec::new();
    let add = |found: &mut Vec<Verifier>, method, answer: Vec<u8>| {
        found.push(Verifier::Secret { method, length, nonce: nonce.to_vec(), answer });
    };
    for exact in [true, false] {
        // A digest needs no use that may be taken away; next to it one answer by use is enough.
        if exact
            && let Some(method) = digest(key)
            && let Some(answer) = ask(key, key.handle, method, &nonce)?
        {
            // SoftHSM ends the process that uses a key without a value otherwise.
            if answer == of_nothing(&nonce) {
                return Ok(None);
            }
            add(&mut found, method, answer);
        }
        for method in methods(key).into_iter().filter(|m| m.is_exact() == exact) {
            if found.len() < 2
                && method.usage().is_none_or(|u| key.may(u))
                && let Some(answer) = ask(key, key.handle, method, &nonce)?
            {
                add(&mut found, method, answer);
                break;
            }
        }
    }
    if found.is_empty() {
        for method in methods(key) {
            if let Some(usage) = method.usage()
                && !key.may(usage)
                && let Some(answer) = key.through_copy(usage, &mut |copy| ask(key, copy, method, &nonce))?
            {
                add(&mut found, method, answer);
                break;
            }
        }
    }
    let exact = found.iter().any(|v| matches!(v, Verifier::Secret { method, .. } if method.is_exact()));
    if !exact && let Some(wrapped) = key.rewrapped()? {
        // Ahead of a MAC, which cannot tell a key from itself padded with zeros.
        found.insert(0, wrapped);
    }
    Ok(Verifier::of(found))
}

/// Whether a copy gives the answer again.
///
/// # Errors
/// The member's answer.
pub(super) fn prove(
    key: &Subject<'_>,
    method: SecretMethod,
    length: Ulong,
    nonce: &[u8],
    answer: &[u8],
) -> Result<Proof> {
    let there = key.read.get_ulong(ck::CKA_VALUE_LEN).unwrap_or(0);
    if there != 0 && length != 0 && there != length {
        return Ok(Proof::of(false, Evidence::of(Exchange::Length { expected: length, there })));
    }
    let nonce: &[u8; 32] = nonce.try_into().map_err(|_| Rv::GENERAL_ERROR)?;
    if method.usage().is_some() && is_empty(key)? {
        return Ok(Proof::of(false, Evidence::of(Exchange::NoValue)));
    }
    let direct = match method.usage() {
        Some(usage) if !key.may(usage) => None,
        _ => ask(key, key.handle, method, nonce)?,
    };
    let by_copy = direct.is_none();
    let now = match (direct, method.usage()) {
        (None, Some(usage)) => key.through_copy(usage, &mut |copy| ask(key, copy, method, nonce))?,
        (answered, _) => answered,
    };
    let Some(now) = now else {
        return Ok(Proof::unproven("the key may not be used as the proof wants it"));
    };
    // An HMAC cannot tell a key from itself padded with zeros, and copies made by wrapping do not say their length.
    // Wrapping pads to a multiple of eight, so that a key of such a length was not padded.
    let known = there != 0 && length != 0;
    let whole = length != 0 && length.is_multiple_of(8);
    let outcome = if now != answer {
        Outcome::Different
    } else if method.is_exact() || known || whole {
        Outcome::Same
    } else {
        Outcome::unproven(
            "the copy does not say its length, and a MAC cannot tell a key from itself padded with zeros",
        )
    };
    let exchange =
        Exchange::Answer { method, question: method.question(nonce), expected: answer.to_vec(), answer: now };
    Ok(Proof { outcome, evidence: Some(Evidence { by_copy, exchange }) })
}

fn digest(key: &Subject<'_>) -> Option<SecretMethod> {
    key.on().supports(ck::CKM_SHA256, 0).then_some(SecretMethod::Digest(ck::CKM_SHA256))
}

/// The ways in which a key of this type may be challenged here by its uses, best first. A mechanism that does not fit the
/// type is never tried: it crashes some tokens.
fn methods(key: &Subject<'_>) -> Vec<SecretMethod> {
    let mut methods = match key.key_type() {
        Some(ck::CKK_AES) => vec![
            SecretMethod::Encrypt(ck::CKM_AES_ECB),
            SecretMethod::Decrypt(ck::CKM_AES_ECB),
            SecretMethod::Mac(ck::CKM_AES_CMAC),
            SecretMethod::Wrap(ck::CKM_AES_KEY_WRAP),
            SecretMethod::Derive(ck::CKM_AES_ECB_ENCRYPT_DATA),
        ],
        Some(ck::CKK_DES2 | ck::CKK_DES3) => vec![
            SecretMethod::Encrypt(ck::CKM_DES3_ECB),
            SecretMethod::Decrypt(ck::CKM_DES3_ECB),
            SecretMethod::Mac(ck::CKM_DES3_CMAC),
            SecretMethod::Derive(ck::CKM_DES3_ECB_ENCRYPT_DATA),
        ],
        Some(ck::CKK_GENERIC_SECRET | ck::CKK_SHA256_HMAC) => vec![SecretMethod::Mac(ck::CKM_SHA256_HMAC)],
        _ => Vec::new(),
    };
    methods.retain(|m| key.on().supports(m.mechanism(), 0));
    methods
}

/// A key's answer; `None` when the member refuses.
pub(super) fn ask(
    key: &Subject<'_>,
    handle: ObjectHandle,
    method: SecretMethod,
    nonce: &[u8; 32],
) -> Result<Option<Vec<u8>>> {
    let on = key.on();
    let operation =
        |kind, mechanism, input: &[u8]| Ok(once(on, kind, mechanism, handle, input, key.pin)?.done());
    let question = method.question(nonce);
    match method {
        SecretMethod::Mac(kind) | SecretMethod::Sign(kind) => operation(OpKind::Sign, kind, &question),
        SecretMethod::Encrypt(kind) => operation(OpKind::Encrypt, kind, &question),
        SecretMethod::Decrypt(kind) => operation(OpKind::Decrypt, kind, &question),
        SecretMethod::Wrap(kind) => {
            let mut template = readable(None);
            template.push(Attribute::bytes(ck::CKA_VALUE, question));
            let throw_away = on.token.create_object(on.session, &template)?;
            let mut space = [0; 128];
            let mut out = Output::buffer(&mut space);
            let answer =
                on.token.wrap_key(on.session, &mut Mechanism::plain(kind), handle, throw_away, &mut out);
            on.discard(throw_away);
            Ok(taken(answer)?.map(|()| out.written().to_vec()))
        }
        SecretMethod::Digest(kind) => digested(key, handle, kind, nonce),
        SecretMethod::Derive(kind) => {
            let data = Field { name: "pData", value: FieldValue::Bytes(Some(question)) };
            let mut mechanism = Mechanism {
                kind,
                params: Params::Struct(Box::new(StructParams {
                    layout: "CK_KEY_DERIVATION_STRING_DATA",
                    fields: vec![data],
                })),
            };
            Ok(derived(on, handle, &mut mechanism, nonce.len())?.map(|v| v.to_vec()))
        }
    }
}

/// Whether the key's value is empty, as far as a digest tells.
///
/// # Errors
/// The member's answer.
pub(super) fn is_empty(key: &Subject<'_>) -> Result<bool> {
    let Some(SecretMethod::Digest(kind)) = digest(key) else { return Ok(false) };
    let nonce = &key.challenge.nonce;
    Ok(digested(key, key.handle, kind, nonce)?.is_some_and(|there| there == of_nothing(nonce)))
}

/// The digest of the nonce with nothing behind it.
fn of_nothing(nonce: &[u8; 32]) -> Vec<u8> {
    Sha256::digest(challenge_message(nonce)).to_vec()
}

/// The digest of the nonce with the key's value behind it.
fn digested(
    key: &Subject<'_>,
    handle: ObjectHandle,
    kind: Ulong,
    nonce: &[u8; 32],
) -> Result<Option<Vec<u8>>> {
    let on = key.on();
    let mut mechanism = Mechanism::plain(kind);
    if taken(on.token.op_init(on.session, OpKind::Digest, Some(&mut mechanism), ObjectHandle(0)))?.is_none() {
        return Ok(None);
    }
    let message = challenge_message(nonce);
    let fed = on
        .token
        .op_update(on.session, OpKind::Digest, &message, &mut Output::query())
        .and_then(|()| on.token.digest_key(on.session, handle));
    let mut space = [0; 64];
    let mut out = Output::buffer(&mut space);
    // Also after a refusal: the operation must not stay open, and some tokens have ended it.
    let ended = on.token.op_final(on.session, OpKind::Digest, &mut out);
    if taken(fed)?.is_none() {
        return Ok(None);
    }
    Ok(taken(ended)?.map(|()| out.written().to_vec()))
}
