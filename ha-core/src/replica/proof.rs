//! The proof that a member's copy is the key it should be: a fresh challenge, answered by the member, checked here.

use ha_token::{
    Attribute, FieldValue, Mechanism, ObjectHandle, OpKind, Output, Params, Result, Rv, StructParams,
    Template, TemplateExt, Ulong, UserType, ck,
};
use zeroize::Zeroizing;

use super::verifier::{Curve, SecretMethod, Verifier, challenge_message, possible_points};
use super::{On, find_all, is_secret};

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

const USES: [Ulong; 14] = [
    ck::CKA_KEY_TYPE,
    ck::CKA_SIGN,
    ck::CKA_DECRYPT,
    ck::CKA_DERIVE,
    ck::CKA_ENCRYPT,
    ck::CKA_WRAP,
    ck::CKA_ALWAYS_AUTHENTICATE,
    ck::CKA_VALUE_LEN,
    ck::CKA_MODULUS,
    ck::CKA_PUBLIC_EXPONENT,
    ck::CKA_EC_PARAMS,
    ck::CKA_EC_POINT,
    ck::CKA_ID,
    ck::CKA_UNWRAP,
];

/// Makes a verifier of an object as it is on one member: from its public part, or from its own answer to a challenge.
/// `None` when no challenge fits the key.
///
/// # Errors
/// The member's answer.
pub fn make_verifier(
    on: On<'_>,
    object: ObjectHandle,
    class: Ulong,
    nonce: &[u8; 32],
    pin: Option<&[u8]>,
) -> Result<Option<Verifier>> {
    if !is_secret(class) && class != ck::CKO_PUBLIC_KEY {
        return content(on, object, class).map(Some);
    }
    let read = on.read(object, &USES)?;
    if class == ck::CKO_SECRET_KEY {
        for method in methods(on, &read) {
            if let Some(answer) = ask(on, object, method, nonce, None)? {
                let length = read.get_ulong(ck::CKA_VALUE_LEN).unwrap_or(0);
                return Ok(Some(Verifier::Secret { method, length, nonce: nonce.to_vec(), answer }));
            }
        }
        return Ok(None);
    }
    if let Some(verifier) = public_part(&read) {
        return Ok(Some(verifier));
    }
    // Private EC keys have no point on many tokens: the public key beside it has, if it is its own.
    let id = read.get_bytes(ck::CKA_ID).unwrap_or(&[]);
    let mut template: Template = vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_PUBLIC_KEY)];
    template.extend(read.get_ulong(ck::CKA_KEY_TYPE).map(|t| Attribute::ulong(ck::CKA_KEY_TYPE, t)));
    if !id.is_empty() {
        template.push(Attribute::bytes(ck::CKA_ID, id));
    }
    for public in find_all(on, &template, 64)? {
        if let Some(verifier) = public_part(&on.read(public, &USES)?)
            && prove(on, object, class, &verifier, nonce, pin)? == Outcome::Same
        {
            return Ok(Some(verifier));
        }
    }
    from_signatures(on, object, &read, nonce, pin)
}

/// A private key's verifier from its own signatures: two of ECDSA give the public key away; one of EdDSA, which is
/// deterministic, is an answer like a MAC.
fn from_signatures(
    on: On<'_>,
    key: ObjectHandle,
    read: &Template,
    nonce: &[u8; 32],
    pin: Option<&[u8]>,
) -> Result<Option<Verifier>> {
    if read.get_bool(ck::CKA_SIGN) != Some(true) {
        return Ok(None);
    }
    let pin = if read.get_bool(ck::CKA_ALWAYS_AUTHENTICATE) == Some(true) { pin } else { None };
    match read.get_ulong(ck::CKA_KEY_TYPE) {
        Some(ck::CKK_EC) => {
            let Some(params) = read.get_bytes(ck::CKA_EC_PARAMS) else { return Ok(None) };
            let Some(curve) = Curve::of(params) else { return Ok(None) };
            let mut common: Option<Vec<Vec<u8>>> = None;
            for round in 0..2u8 {
                let mut asked = *nonce;
                asked[0] ^= round;
                let message = challenge_message(&asked);
                let mut mechanism = Mechanism::plain(ck::CKM_ECDSA);
                let Some(signature) =
                    once(on, OpKind::Sign, &mut mechanism, key, &curve.digest(&message), pin)?
                else {
                    return Ok(None);
                };
                let points = possible_points(params, &message, &signature);
                common = Some(match common {
                    None => points,
                    Some(before) => before.into_iter().filter(|p| points.contains(p)).collect(),
                });
            }
            Ok(match common.as_deref() {
                Some([point]) => Some(Verifier::Ec { params: params.to_vec(), point: point.clone() }),
                _ => None,
            })
        }
        Some(ck::CKK_EC_EDWARDS) => {
            let method = SecretMethod::Sign(ck::CKM_EDDSA);
            let answer = ask(on, key, method, nonce, pin)?;
            Ok(answer.map(|answer| Verifier::Secret { method, length: 0, nonce: nonce.to_vec(), answer }))
        }
        _ => Ok(None),
    }
}

/// The verifier that a public key's attributes make.
pub fn public_part(read: &Template) -> Option<Verifier> {
    Verifier::from_public(
        read.get_ulong(ck::CKA_KEY_TYPE)?,
        read.get_bytes(ck::CKA_MODULUS),
        read.get_bytes(ck::CKA_PUBLIC_EXPONENT),
        read.get_bytes(ck::CKA_EC_PARAMS),
        read.get_bytes(ck::CKA_EC_POINT),
    )
}

/// Challenges an object on one member. `pin` is for keys that want a login for each use. Nothing is left behind.
///
/// # Errors
/// The member's answer, where it says nothing of the key.
pub fn prove(
    on: On<'_>,
    object: ObjectHandle,
    class: Ulong,
    verifier: &Verifier,
    nonce: &[u8; 32],
    pin: Option<&[u8]>,
) -> Result<Outcome> {
    let word = |same: bool| if same { Outcome::Same } else { Outcome::Different };
    if class == ck::CKO_PUBLIC_KEY {
        let read = on.read(object, &USES)?;
        return Ok(match public_part(&read) {
            Some(there) => word(there == *verifier),
            None => word(content(on, object, class)? == *verifier),
        });
    }
    if let Verifier::Content { .. } = verifier {
        return Ok(word(content(on, object, class)? == *verifier));
    }
    let read = on.read(object, &USES)?;
    let allowed = |kind: Ulong| read.get_bool(kind) == Some(true);
    let login = allowed(ck::CKA_ALWAYS_AUTHENTICATE);
    let pin = if login { Some(pin.ok_or(Rv::USER_NOT_LOGGED_IN)?) } else { None };
    if let Verifier::Secret { method, length, nonce: asked, answer } = verifier {
        let there = read.get_ulong(ck::CKA_VALUE_LEN).unwrap_or(0);
        if there != 0 && *length != 0 && there != *length {
            return Ok(Outcome::Different);
        }
        let asked: &[u8; 32] = asked.as_slice().try_into().map_err(|_| Rv::GENERAL_ERROR)?;
        let Some(now) = ask(on, object, *method, asked, pin)? else {
            return Ok(Outcome::Unproven("the key may not be used as the proof wants it".into()));
        };
        if now != *answer {
            return Ok(Outcome::Different);
        }
        // A MAC cannot tell a key from itself padded with zeros, and copies made by wrapping do not say their length.
        // Padding is to a multiple of eight, so that a key of such a length was not padded.
        let padded = matches!(method, SecretMethod::Mac(_))
            && (there == 0 || *length == 0)
            && !length.max(&there).is_multiple_of(8);
        return Ok(if padded || (matches!(method, SecretMethod::Mac(_)) && there == 0 && *length == 0) {
            Outcome::Unproven(
                "neither copy says its length, and a MAC cannot tell a key from itself padded with zeros"
                    .into(),
            )
        } else {
            Outcome::Same
        });
    }
    // What can be read of the key itself is compared first: it costs nothing.
    if let (Some(there), Verifier::Rsa { .. }) = (public_part(&read), verifier)
        && there != *verifier
    {
        return Ok(Outcome::Different);
    }
    if allowed(ck::CKA_SIGN)
        && let Some(same) = by_signature(on, object, verifier, nonce, pin)?
    {
        return Ok(word(same));
    }
    if allowed(ck::CKA_DECRYPT)
        && let Some(sealed) = verifier.encrypt_challenge(nonce, nonce)
    {
        let mut mechanism = Mechanism::plain(ck::CKM_RSA_PKCS);
        if let Some(opened) = once(on, OpKind::Decrypt, &mut mechanism, object, &sealed, pin)? {
            return Ok(word(opened == nonce));
        }
        return Ok(Outcome::Different);
    }
    if allowed(ck::CKA_UNWRAP)
        && let Some(sealed) = verifier.encrypt_challenge(nonce, nonce)
        && let Some(opened) = by_unwrapping(on, object, &sealed)?
    {
        return Ok(word(opened.as_slice() == nonce));
    }
    if allowed(ck::CKA_DERIVE)
        && let Some((peer, secret)) = verifier.agree(nonce)
        && let Some(there) = by_agreement(on, object, &peer, secret.len())?
    {
        return Ok(word(*there == secret));
    }
    Ok(Outcome::Unproven(
        "the key may not sign, decrypt, unwrap or derive in a way that could be checked".into(),
    ))
}

/// Whether the member's signature is the key's; `None` when it can make none that could be checked.
fn by_signature(
    on: On<'_>,
    key: ObjectHandle,
    verifier: &Verifier,
    nonce: &[u8; 32],
    pin: Option<&[u8]>,
) -> Result<Option<bool>> {
    let message = challenge_message(nonce);
    let tries: Vec<(Ulong, Vec<u8>)> = match verifier {
        Verifier::Rsa { .. } => {
            // The DigestInfo of SHA-256 (RFC 8017, section 9.2), for keys or tokens without the combined mechanism.
            let mut info = vec![
                0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01,
                0x05, 0x00, 0x04, 0x20,
            ];
            info.extend_from_slice(&Curve::P256.digest(&message));
            vec![(ck::CKM_SHA256_RSA_PKCS, message.clone()), (ck::CKM_RSA_PKCS, info)]
        }
        Verifier::Ec { params, .. } => match Curve::of(params) {
            Some(curve) => vec![(ck::CKM_ECDSA, curve.digest(&message))],
            None => return Ok(None),
        },
        Verifier::Ed25519 { .. } => vec![(ck::CKM_EDDSA, message.clone())],
        Verifier::Secret { .. } | Verifier::Content { .. } => return Ok(None),
    };
    for (kind, data) in tries {
        if let Some(signature) = once(on, OpKind::Sign, &mut Mechanism::plain(kind), key, &data, pin)? {
            return Ok(verifier.check_signature(&message, &signature));
        }
    }
    Ok(None)
}

/// One operation in one call; `None` when the member refuses the key, the mechanism or the data.
fn once(
    on: On<'_>,
    kind: OpKind,
    mechanism: &mut Mechanism,
    key: ObjectHandle,
    input: &[u8],
    pin: Option<&[u8]>,
) -> Result<Option<Vec<u8>>> {
    use crate::policy::failure::{Class, classify};
    let refused = |rv: Rv| match classify(kind.init(), rv) {
        // A wrong key makes some tokens answer a padding error in vague words.
        Class::Caller | Class::Ambiguous => Ok(None),
        _ => Err(rv),
    };
    if let Err(rv) = on.token.op_init(on.session, kind, Some(mechanism), key) {
        return refused(rv);
    }
    if let Some(pin) = pin {
        on.token.login(on.session, UserType::ContextSpecific, Some(pin))?;
    }
    let mut space = vec![0; 2048];
    let mut out = Output::buffer(&mut space);
    match on.token.op_one_shot(on.session, kind, input, &mut out) {
        Ok(()) => Ok(Some(out.written().to_vec())),
        Err(rv) => refused(rv),
    }
}

/// A throw-away key sealed to an RSA key, unwrapped and read.
fn by_unwrapping(on: On<'_>, key: ObjectHandle, sealed: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let made = on.token.unwrap_key(
        on.session,
        &mut Mechanism::plain(ck::CKM_RSA_PKCS),
        key,
        sealed,
        &readable(None),
    );
    read_value(on, made)
}

/// The secret that a key agreement gives, as a throw-away key, read.
fn by_agreement(
    on: On<'_>,
    key: ObjectHandle,
    peer: &[u8],
    length: usize,
) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let field = |name, value| ha_token::Field { name, value };
    let mut mechanism = Mechanism {
        kind: ck::CKM_ECDH1_DERIVE,
        params: Params::Struct(Box::new(StructParams {
            layout: "CK_ECDH1_DERIVE_PARAMS",
            fields: vec![
                field("kdf", FieldValue::Ulong(ck::CKD_NULL)),
                field("pSharedData", FieldValue::Bytes(None)),
                field("pPublicData", FieldValue::Bytes(Some(peer.to_vec()))),
            ],
        })),
    };
    let made = on
        .token
        .derive_key(on.session, &mut mechanism, key, &readable(Some(length)), true)
        .and_then(|h| h.ok_or(Rv::GENERAL_ERROR));
    read_value(on, made)
}

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

fn read_value(on: On<'_>, made: Result<ObjectHandle>) -> Result<Option<Zeroizing<Vec<u8>>>> {
    use crate::policy::failure::{Class, classify};
    let handle = match made {
        Ok(handle) => handle,
        Err(rv)
            if matches!(classify(ha_token::Function::DeriveKey, rv), Class::Caller | Class::Ambiguous) =>
        {
            return Ok(None);
        }
        Err(rv) => return Err(rv),
    };
    let value = on.read(handle, &[ck::CKA_VALUE]);
    on.discard(handle);
    Ok(value?.get_bytes(ck::CKA_VALUE).map(|v| Zeroizing::new(v.to_vec())))
}

/// The ways a secret key may be challenged, best first: what its use flags and the token's mechanisms allow.
fn methods(on: On<'_>, read: &Template) -> Vec<SecretMethod> {
    let allowed = |kind: Ulong| read.get_bool(kind) == Some(true);
    let aes = read.get_ulong(ck::CKA_KEY_TYPE) == Some(ck::CKK_AES);
    let mut methods = Vec::new();
    if aes && allowed(ck::CKA_ENCRYPT) {
        methods.push(SecretMethod::Encrypt(ck::CKM_AES_ECB));
    }
    if aes && allowed(ck::CKA_DECRYPT) {
        methods.push(SecretMethod::Decrypt(ck::CKM_AES_ECB));
    }
    if allowed(ck::CKA_SIGN) {
        methods.push(SecretMethod::Mac(if aes { ck::CKM_AES_CMAC } else { ck::CKM_SHA256_HMAC }));
    }
    if aes && allowed(ck::CKA_WRAP) {
        methods.push(SecretMethod::Wrap(ck::CKM_AES_KEY_WRAP));
    }
    methods.retain(|m| {
        let (SecretMethod::Mac(kind)
        | SecretMethod::Encrypt(kind)
        | SecretMethod::Decrypt(kind)
        | SecretMethod::Wrap(kind)
        | SecretMethod::Sign(kind)) = *m;
        on.token.mechanism_info(kind).is_ok()
    });
    methods
}

/// A secret key's answer; `None` when the member refuses.
fn ask(
    on: On<'_>,
    key: ObjectHandle,
    method: SecretMethod,
    nonce: &[u8; 32],
    pin: Option<&[u8]>,
) -> Result<Option<Vec<u8>>> {
    match method {
        SecretMethod::Mac(kind) | SecretMethod::Sign(kind) => {
            once(on, OpKind::Sign, &mut Mechanism::plain(kind), key, &challenge_message(nonce), pin)
        }
        SecretMethod::Encrypt(kind) => {
            once(on, OpKind::Encrypt, &mut Mechanism::plain(kind), key, nonce, pin)
        }
        SecretMethod::Decrypt(kind) => {
            once(on, OpKind::Decrypt, &mut Mechanism::plain(kind), key, nonce, pin)
        }
        SecretMethod::Wrap(kind) => {
            let mut template = readable(None);
            template.push(Attribute::bytes(ck::CKA_VALUE, *nonce));
            let throw_away = on.token.create_object(on.session, &template)?;
            let mut space = [0; 128];
            let mut out = Output::buffer(&mut space);
            let answer =
                on.token.wrap_key(on.session, &mut Mechanism::plain(kind), key, throw_away, &mut out);
            on.discard(throw_away);
            Ok(answer.is_ok().then(|| out.written().to_vec()))
        }
    }
}

/// A digest of what can be read of an object that holds nothing secret.
fn content(on: On<'_>, object: ObjectHandle, class: Ulong) -> Result<Verifier> {
    const PARTS: [Ulong; 10] = [
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
    let read = on.read(object, &PARTS)?;
    let class = class.to_be_bytes();
    let parts = PARTS.iter().map(|p| read.get_bytes(*p).unwrap_or(&[]));
    Ok(Verifier::of_content(std::iter::once(&class[..]).chain(parts)))
}
