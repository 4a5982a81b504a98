//! Challenges of private keys: signatures, decryptions and key agreements, checked against the public part.

use ha_token::{
    Attribute, AttributeType, Field, FieldValue, Mechanism, ObjectHandle, OpKind, Params, Result, Rv,
    StructParams, Template, TemplateExt, Ulong, ck,
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{
    Evidence, Exchange, Once, Outcome, Proof, Subject, derived, once, public_on, public_part, read_value,
    readable, secret, taken,
};
use crate::replica::find_all;
use crate::replica::verifier::{
    Agreed, Curve, Digested, Sealed, SecretMethod, Verifier, bare_point, challenge_message, possible_points,
};

/// Bytes of a key agreement's secret that are compared: no curve or group gives fewer.
const AGREED: usize = 16;

/// Curves of key agreement only, which cannot sign: as object identifiers (X25519, X448) and as printable names.
const MONTGOMERY: [&[u8]; 4] = [
    &[0x06, 0x03, 0x2b, 0x65, 0x6e],
    &[0x06, 0x03, 0x2b, 0x65, 0x6f],
    b"\x13\x0acurve25519",
    b"\x13\x08curve448",
];

/// Makes a verifier: the public part if the key answers to it, else what the key answers to.
///
/// # Errors
/// The member's answer.
pub(super) fn make(key: &Subject<'_>, public: Option<&Verifier>) -> Result<Option<Verifier>> {
    let own = public_part(&key.read);
    for candidate in public.into_iter().chain(&own) {
        if prove(key, candidate)?.outcome == Outcome::Same {
            return Ok(Some(candidate.clone()));
        }
    }
    if public.is_none() {
        // Private EC keys have no point on many tokens: the public key beside it has, if it is its own.
        let mut template: Template = vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_PUBLIC_KEY)];
        template.extend(key.key_type().map(|t| Attribute::ulong(ck::CKA_KEY_TYPE, t)));
        if let Some(id) = key.read.get_bytes(ck::CKA_ID).filter(|id| !id.is_empty()) {
            template.push(Attribute::bytes(ck::CKA_ID, id));
        }
        for beside in find_all(key.on(), &template, 64)? {
            if let Some(verifier) = public_on(key.on(), beside)?
                && prove(key, &verifier)?.outcome == Outcome::Same
            {
                return Ok(Some(verifier));
            }
        }
    }
    if let Some(verifier) = from_signatures(key)? {
        return Ok(Some(verifier));
    }
    if let Some(verifier) = from_agreement(key)? {
        return Ok(Some(verifier));
    }
    key.rewrapped()
}

/// Does something with the key where it may be used so, else with a copy that may.
fn with_use<T>(
    key: &Subject<'_>,
    usage: AttributeType,
    f: &mut dyn FnMut(ObjectHandle) -> Result<Option<T>>,
) -> Result<Option<T>> {
    if key.may(usage) { f(key.handle) } else { key.through_copy(usage, f) }
}

/// A private key's verifier from its own signatures: two of ECDSA give the public key away; one of EdDSA, which is
/// deterministic, is an answer like a MAC.
fn from_signatures(key: &Subject<'_>) -> Result<Option<Verifier>> {
    let params = key.read.get_bytes(ck::CKA_EC_PARAMS);
    let nonce = key.challenge.nonce;
    match (key.key_type(), params) {
        (Some(ck::CKK_EC), Some(params)) => {
            let Some(curve) = Curve::of(params) else { return Ok(None) };
            let points = with_use(key, ck::CKA_SIGN, &mut |handle| {
                let mut common: Option<Vec<Vec<u8>>> = None;
                for round in 0..2u8 {
                    let mut asked = nonce;
                    asked[0] ^= round;
                    let message = challenge_message(&asked);
                    let digest = curve.digest(&message);
                    let signature = once(key.on(), OpKind::Sign, ck::CKM_ECDSA, handle, &digest, key.pin)?;
                    let Once::Done(signature) = signature else { return Ok(None) };
                    let points = possible_points(params, &message, &signature);
                    common = Some(match common {
                        None => points,
                        Some(before) => before.into_iter().filter(|p| points.contains(p)).collect(),
                    });
                }
                Ok(common)
            })?;
            Ok(match points.as_deref() {
                Some([point]) => Some(Verifier::Ec { params: params.to_vec(), point: point.clone() }),
                _ => None,
            })
        }
        (Some(ck::CKK_EC_EDWARDS), params) if params.is_none_or(|p| !MONTGOMERY.contains(&p)) => {
            let method = SecretMethod::Sign(ck::CKM_EDDSA);
            let answer = with_use(key, ck::CKA_SIGN, &mut |handle| secret::ask(key, handle, method, &nonce))?;
            Ok(answer.map(|answer| Verifier::Secret { method, length: 0, nonce: nonce.to_vec(), answer }))
        }
        _ => Ok(None),
    }
}

/// A verifier from a key agreement with a throw-away pair of the same domain, for a key whose public part is not to be
/// had or cannot be computed with.
fn from_agreement(key: &Subject<'_>) -> Result<Option<Verifier>> {
    let on = key.on();
    let (generate, mechanism, domain, value): (_, _, &[AttributeType], _) = match key.key_type() {
        Some(ck::CKK_EC) => {
            (ck::CKM_EC_KEY_PAIR_GEN, ck::CKM_ECDH1_DERIVE, &[ck::CKA_EC_PARAMS], ck::CKA_EC_POINT)
        }
        Some(ck::CKK_EC_MONTGOMERY) => {
            (ck::CKM_EC_MONTGOMERY_KEY_PAIR_GEN, ck::CKM_ECDH1_DERIVE, &[ck::CKA_EC_PARAMS], ck::CKA_EC_POINT)
        }
        Some(ck::CKK_DH) => (
            ck::CKM_DH_PKCS_KEY_PAIR_GEN,
            ck::CKM_DH_PKCS_DERIVE,
            &[ck::CKA_PRIME, ck::CKA_BASE],
            ck::CKA_VALUE,
        ),
        _ => return Ok(None),
    };
    if ![generate, mechanism].iter().all(|m| on.supports(*m, 0)) {
        return Ok(None);
    }
    let mut public = vec![Attribute::bool(ck::CKA_TOKEN, false), Attribute::bool(ck::CKA_PRIVATE, false)];
    for part in domain {
        let Some(bytes) = key.read.get_bytes(*part) else { return Ok(None) };
        public.push(Attribute::bytes(*part, bytes));
    }
    let private = vec![Attribute::bool(ck::CKA_TOKEN, false), Attribute::bool(ck::CKA_DERIVE, true)];
    let pair = on.token.generate_key_pair(on.session, &mut Mechanism::plain(generate), &public, &private);
    let Some(pair) = taken(pair)? else { return Ok(None) };
    let peer = on.read(pair.0, &[value]);
    on.discard(pair.0);
    on.discard(pair.1);
    let peer = peer?;
    let Some(peer) = peer.get_bytes(value) else { return Ok(None) };
    // SoftHSM takes a bare point of these lengths only, and every other one as it gives it itself.
    let peer = match bare_point(peer) {
        bare if key.key_type() == Some(ck::CKK_EC) && matches!(bare.len(), 65 | 97 | 133) => bare,
        _ => peer,
    };
    let digest = agreed(key, mechanism, peer)?;
    Ok(digest.map(|digest| Verifier::Agreement { mechanism, peer: peer.to_vec(), digest }))
}

/// A digest of the secret that the key and a peer agree on; `None` when the member refuses.
///
/// # Errors
/// The member's answer.
pub(super) fn agreed(key: &Subject<'_>, mechanism: Ulong, peer: &[u8]) -> Result<Option<Vec<u8>>> {
    let secret = with_use(key, ck::CKA_DERIVE, &mut |handle| {
        derived(key.on(), handle, &mut agreement(mechanism, peer), AGREED)
    })?;
    Ok(secret.map(|s| Sha256::digest(s.as_slice()).to_vec()))
}

fn agreement(kind: Ulong, peer: &[u8]) -> Mechanism {
    let field = |name, value| Field { name, value };
    let params = match kind {
        ck::CKM_ECDH1_DERIVE => Params::Struct(Box::new(StructParams {
            layout: "CK_ECDH1_DERIVE_PARAMS",
            fields: vec![
                field("kdf", FieldValue::Ulong(ck::CKD_NULL)),
                field("pSharedData", FieldValue::Bytes(None)),
                field("pPublicData", FieldValue::Bytes(Some(peer.to_vec()))),
            ],
        })),
        _ => Params::Bytes(peer.into()),
    };
    Mechanism { kind, params }
}

/// What stands before the digest in the DigestInfo of SHA-256 (RFC 8017, section 9.2).
const SHA256_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00,
    0x04, 0x20,
];

/// How a private key shows that it belongs to a public one.
#[derive(Clone, Copy)]
enum Way {
    Signature,
    Decryption,
    Unwrapping,
    Agreement,
}

/// Whether the key belongs to a public part: by what it may be used for, else by a copy that may.
///
/// # Errors
/// The member's answer.
pub(super) fn prove(key: &Subject<'_>, verifier: &Verifier) -> Result<Proof> {
    // What can be read of the key itself is compared first: it costs nothing.
    if let (Some(there), Verifier::Rsa { .. }) = (public_part(&key.read), verifier)
        && there != *verifier
    {
        return Ok(Proof::by_reading(there, verifier));
    }
    let (key_type, ways): (_, &[(AttributeType, Way)]) = match verifier {
        Verifier::Rsa { .. } => (
            ck::CKK_RSA,
            &[
                (ck::CKA_SIGN, Way::Signature),
                (ck::CKA_DECRYPT, Way::Decryption),
                (ck::CKA_UNWRAP, Way::Unwrapping),
            ],
        ),
        Verifier::Ec { .. } => {
            (ck::CKK_EC, &[(ck::CKA_SIGN, Way::Signature), (ck::CKA_DERIVE, Way::Agreement)])
        }
        Verifier::Ed25519 { .. } => (ck::CKK_EC_EDWARDS, &[(ck::CKA_SIGN, Way::Signature)]),
        Verifier::Dsa { .. } => (ck::CKK_DSA, &[(ck::CKA_SIGN, Way::Signature)]),
        _ => return Ok(Proof::unproven("the verifier is not a public key")),
    };
    // A mechanism that does not fit the key's type crashes some tokens.
    if key.key_type() != Some(key_type) {
        return Ok(Proof::bare(Outcome::Different));
    }
    for (_, way) in ways.iter().filter(|(usage, _)| key.may(*usage)) {
        if let Some((same, exchange)) = by(key, key.handle, verifier, *way)? {
            return Ok(Proof::of(same, Evidence { by_copy: false, exchange }));
        }
    }
    for (usage, way) in ways.iter().filter(|(usage, _)| !key.may(*usage)) {
        let answer = key.through_copy(*usage, &mut |copy| by(key, copy, verifier, *way))?;
        if let Some((same, exchange)) = answer {
            return Ok(Proof::of(same, Evidence { by_copy: true, exchange }));
        }
    }
    Ok(Proof::unproven("the key may not sign, decrypt, unwrap or derive in a way that could be checked"))
}

/// Whether the key is the right one, and by what; `None` when it cannot be asked in this way.
type Shown = Option<(bool, Exchange)>;

fn by(key: &Subject<'_>, handle: ObjectHandle, verifier: &Verifier, way: Way) -> Result<Shown> {
    let nonce = &key.challenge.nonce;
    match way {
        Way::Signature => by_signature(key, handle, verifier),
        Way::Decryption | Way::Unwrapping => {
            let Some(Sealed { block, sealed }) = verifier.encrypt_challenge(nonce, nonce) else {
                return Ok(None);
            };
            let mechanism = ck::CKM_RSA_PKCS;
            let unwrapped = matches!(way, Way::Unwrapping);
            let opened = if unwrapped {
                let Some(opened) = by_unwrapping(key, handle, &sealed)? else { return Ok(None) };
                Some(opened.to_vec())
            } else {
                match once(key.on(), OpKind::Decrypt, mechanism, handle, &sealed, key.pin)? {
                    Once::Done(opened) => Some(opened),
                    Once::Failed => None,
                    Once::Refused => return Ok(None),
                }
            };
            let same = opened.as_deref() == Some(nonce);
            let expected = nonce.to_vec();
            Ok(Some((same, Exchange::Opening { mechanism, unwrapped, block, sealed, expected, opened })))
        }
        Way::Agreement => {
            let Some(Agreed { peer, throw_away, secret }) = verifier.agree(nonce) else { return Ok(None) };
            let mechanism = ck::CKM_ECDH1_DERIVE;
            let there = derived(key.on(), handle, &mut agreement(mechanism, &peer), secret.len())?;
            Ok(there.map(|there| {
                let digest = |secret: &[u8]| Sha256::digest(secret).to_vec();
                let (expected, answer) = (digest(&secret), digest(&there));
                (*there == secret, Exchange::Agreement { mechanism, peer, throw_away, expected, answer })
            }))
        }
    }
}

/// A throw-away key sealed to an RSA key, unwrapped and read.
fn by_unwrapping(
    key: &Subject<'_>,
    handle: ObjectHandle,
    sealed: &[u8],
) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let on = key.on();
    let mut mechanism = Mechanism::plain(ck::CKM_RSA_PKCS);
    let made = on.token.unwrap_key(on.session, &mut mechanism, handle, sealed, &readable(None));
    read_value(on, made)
}

/// By a signature; `None` when it can make none that could be checked.
fn by_signature(key: &Subject<'_>, handle: ObjectHandle, verifier: &Verifier) -> Result<Shown> {
    use Digested::{Sha224, Sha256, Sha384, Sha512, Whole};
    // The first is what most keys may do; the others are for those whose CKA_ALLOWED_MECHANISMS leave it out.
    let tries: &[(Ulong, Digested)] = match verifier {
        Verifier::Rsa { .. } => &[
            (ck::CKM_SHA256_RSA_PKCS, Sha256),
            (ck::CKM_RSA_PKCS, Sha256),
            (ck::CKM_SHA512_RSA_PKCS, Sha512),
            (ck::CKM_SHA384_RSA_PKCS, Sha384),
            (ck::CKM_SHA224_RSA_PKCS, Sha224),
        ],
        Verifier::Ec { params, .. } => match Curve::of(params) {
            Some(curve) => &[
                (ck::CKM_ECDSA, curve.digested()),
                (ck::CKM_ECDSA_SHA256, Sha256),
                (ck::CKM_ECDSA_SHA384, Sha384),
                (ck::CKM_ECDSA_SHA512, Sha512),
            ],
            None => return by_signature_there(key, handle, verifier, ck::CKM_ECDSA),
        },
        Verifier::Dsa { .. } => return by_signature_there(key, handle, verifier, ck::CKM_DSA),
        Verifier::Ed25519 { .. } => &[(ck::CKM_EDDSA, Whole)],
        _ => return Ok(None),
    };
    let message = challenge_message(&key.challenge.nonce);
    for (mechanism, digested) in tries.iter().copied() {
        let input = match mechanism {
            // For keys or tokens without the combined mechanism.
            ck::CKM_RSA_PKCS => [&SHA256_INFO[..], &digested.of(&message)].concat(),
            ck::CKM_ECDSA => digested.of(&message),
            _ => message.clone(),
        };
        if let Once::Done(signature) = once(key.on(), OpKind::Sign, mechanism, handle, &input, key.pin)? {
            let same = verifier.check_signature_by(mechanism, &message, &signature);
            return Ok(
                same.map(|same| (same, Exchange::Signature { mechanism, message, digested, signature }))
            );
        }
    }
    Ok(None)
}

/// The same for a key that cannot be computed with here: the member itself verifies, with the public key as a throw-away
/// object. A member that also takes the signature for another message's is not believed.
fn by_signature_there(
    key: &Subject<'_>,
    handle: ObjectHandle,
    verifier: &Verifier,
    kind: Ulong,
) -> Result<Shown> {
    let on = key.on();
    let Some(public) = verifier.public_object() else { return Ok(None) };
    let message = challenge_message(&key.challenge.nonce);
    let digested = Digested::Sha256Begin;
    let digest = digested.of(&message);
    let Once::Done(signature) = once(on, OpKind::Sign, kind, handle, &digest, key.pin)? else {
        return Ok(None);
    };
    let Some(public) = taken(on.token.create_object(on.session, &public))? else { return Ok(None) };
    let verify = |digest: &[u8]| -> Result<Option<bool>> {
        let mut mechanism = Mechanism::plain(kind);
        let begun = on.token.op_init(on.session, OpKind::Verify, Some(&mut mechanism), public);
        if taken(begun)?.is_none() {
            return Ok(None);
        }
        match on.token.verify(on.session, digest, &signature) {
            Err(Rv::SIGNATURE_INVALID | Rv::SIGNATURE_LEN_RANGE) => Ok(Some(false)),
            answer => Ok(taken(answer)?.map(|()| true)),
        }
    };
    let mut other = digest.clone();
    other.iter_mut().for_each(|b| *b ^= 0xff);
    let answers = verify(&digest).and_then(|right| Ok((right, verify(&other)?)));
    on.discard(public);
    let same = match answers? {
        (Some(true), Some(false)) => true,
        (Some(false), _) => false,
        _ => return Ok(None),
    };
    Ok(Some((same, Exchange::Signature { mechanism: kind, message, digested, signature })))
}
