//! Which attributes an object of each class has, with their defaults and what may be done to them.
//!
//! The checks are the footnotes of the standard's attribute tables (PKCS#11 v3.2, section 4.2), as SoftHSM reads them.

use ha_token::{AttributeType, Ulong, ck};

/// Must be given to `C_CreateObject`.
pub(super) const CREATE: u16 = 1;
/// Must not be given to `C_CreateObject`.
pub(super) const NOT_CREATE: u16 = 2;
/// Must be given to `C_GenerateKey` and `C_GenerateKeyPair`.
pub(super) const GENERATE: u16 = 4;
/// Must not be given to `C_GenerateKey` and `C_GenerateKeyPair`.
pub(super) const NOT_GENERATE: u16 = 8;
/// Must be given to `C_UnwrapKey`.
pub(super) const UNWRAP: u16 = 16;
/// Must not be given to `C_UnwrapKey`.
pub(super) const NOT_UNWRAP: u16 = 32;
/// Not revealed of a key that is sensitive or may not be extracted.
pub(super) const SECRET: u16 = 64;
/// May be changed, and given to a copy.
pub(super) const CHANGE: u16 = 128;
/// May be given to a copy.
pub(super) const COPY: u16 = 256;

/// No more than what the key itself brings.
const BROUGHT: u16 = NOT_CREATE | NOT_GENERATE | NOT_UNWRAP;
/// A part of a private key.
const PART: u16 = NOT_GENERATE | NOT_UNWRAP | SECRET;

/// What an attribute is, and is by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Initial {
    Bool(bool),
    Ulong(Ulong),
    Bytes,
    Mechanisms,
    Template,
}

/// An attribute of a class.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) kind: AttributeType,
    pub(super) default: Initial,
    pub(super) checks: u16,
}

const fn rule(kind: AttributeType, default: Initial, checks: u16) -> Rule {
    Rule { kind, default, checks }
}

use Initial::{Bool, Bytes, Mechanisms, Template};

const NUMBER: Initial = Initial::Ulong(0);
const NONE: Initial = Initial::Ulong(ck::CK_UNAVAILABLE_INFORMATION);

static COMMON: [Rule; 7] = [
    rule(ck::CKA_CLASS, NONE, CREATE),
    rule(ck::CKA_TOKEN, Bool(false), COPY),
    rule(ck::CKA_PRIVATE, Bool(true), COPY),
    rule(ck::CKA_MODIFIABLE, Bool(true), COPY),
    rule(ck::CKA_LABEL, Bytes, CHANGE),
    rule(ck::CKA_COPYABLE, Bool(true), 0),
    rule(ck::CKA_DESTROYABLE, Bool(true), COPY),
];
static DATA: [Rule; 3] =
    [rule(ck::CKA_APPLICATION, Bytes, 0), rule(ck::CKA_OBJECT_ID, Bytes, 0), rule(ck::CKA_VALUE, Bytes, 0)];
static CERTIFICATE: [Rule; 7] = [
    rule(ck::CKA_CERTIFICATE_TYPE, NONE, CREATE),
    rule(ck::CKA_TRUSTED, Bool(false), 0),
    rule(ck::CKA_CERTIFICATE_CATEGORY, NUMBER, 0),
    rule(ck::CKA_CHECK_VALUE, Bytes, 0),
    rule(ck::CKA_START_DATE, Bytes, 0),
    rule(ck::CKA_END_DATE, Bytes, 0),
    rule(ck::CKA_PUBLIC_KEY_INFO, Bytes, 0),
];
static X_509: [Rule; 10] = [
    rule(ck::CKA_SUBJECT, Bytes, CREATE),
    rule(ck::CKA_ID, Bytes, CHANGE),
    rule(ck::CKA_ISSUER, Bytes, CHANGE),
    rule(ck::CKA_SERIAL_NUMBER, Bytes, CHANGE),
    rule(ck::CKA_VALUE, Bytes, CREATE),
    rule(ck::CKA_URL, Bytes, 0),
    rule(ck::CKA_HASH_OF_SUBJECT_PUBLIC_KEY, Bytes, 0),
    rule(ck::CKA_HASH_OF_ISSUER_PUBLIC_KEY, Bytes, 0),
    rule(ck::CKA_JAVA_MIDP_SECURITY_DOMAIN, NUMBER, 0),
    rule(ck::CKA_NAME_HASH_ALGORITHM, Initial::Ulong(ck::CKM_SHA_1), 0),
];
static KEY: [Rule; 8] = [
    rule(ck::CKA_KEY_TYPE, NONE, CREATE | UNWRAP),
    rule(ck::CKA_ID, Bytes, CHANGE),
    rule(ck::CKA_START_DATE, Bytes, CHANGE),
    rule(ck::CKA_END_DATE, Bytes, CHANGE),
    rule(ck::CKA_DERIVE, Bool(false), CHANGE),
    rule(ck::CKA_LOCAL, Bool(false), BROUGHT),
    rule(ck::CKA_KEY_GEN_MECHANISM, NONE, BROUGHT),
    rule(ck::CKA_ALLOWED_MECHANISMS, Mechanisms, 0),
];
static PUBLIC: [Rule; 8] = [
    rule(ck::CKA_SUBJECT, Bytes, CHANGE),
    rule(ck::CKA_ENCRYPT, Bool(true), CHANGE),
    rule(ck::CKA_VERIFY, Bool(true), CHANGE),
    rule(ck::CKA_VERIFY_RECOVER, Bool(true), CHANGE),
    rule(ck::CKA_WRAP, Bool(true), CHANGE),
    rule(ck::CKA_TRUSTED, Bool(false), 0),
    rule(ck::CKA_WRAP_TEMPLATE, Template, 0),
    rule(ck::CKA_PUBLIC_KEY_INFO, Bytes, 0),
];
static PUBLIC_RSA: [Rule; 3] = [
    rule(ck::CKA_MODULUS, Bytes, CREATE | NOT_GENERATE),
    rule(ck::CKA_MODULUS_BITS, NUMBER, NOT_CREATE | GENERATE),
    rule(ck::CKA_PUBLIC_EXPONENT, Bytes, CREATE),
];
static PUBLIC_CURVE: [Rule; 2] =
    [rule(ck::CKA_EC_PARAMS, Bytes, CREATE | GENERATE), rule(ck::CKA_EC_POINT, Bytes, CREATE | NOT_GENERATE)];
static PRIVATE: [Rule; 13] = [
    rule(ck::CKA_SUBJECT, Bytes, CHANGE),
    rule(ck::CKA_SENSITIVE, Bool(false), CHANGE),
    rule(ck::CKA_DECRYPT, Bool(true), CHANGE),
    rule(ck::CKA_SIGN, Bool(true), CHANGE),
    rule(ck::CKA_SIGN_RECOVER, Bool(true), CHANGE),
    rule(ck::CKA_UNWRAP, Bool(true), CHANGE),
    rule(ck::CKA_EXTRACTABLE, Bool(false), CHANGE),
    rule(ck::CKA_ALWAYS_SENSITIVE, Bool(false), BROUGHT),
    rule(ck::CKA_NEVER_EXTRACTABLE, Bool(true), BROUGHT),
    rule(ck::CKA_WRAP_WITH_TRUSTED, Bool(false), 0),
    rule(ck::CKA_UNWRAP_TEMPLATE, Template, 0),
    rule(ck::CKA_ALWAYS_AUTHENTICATE, Bool(false), 0),
    rule(ck::CKA_PUBLIC_KEY_INFO, Bytes, CHANGE),
];
static PRIVATE_RSA: [Rule; 8] = [
    rule(ck::CKA_MODULUS, Bytes, CREATE | NOT_GENERATE | NOT_UNWRAP),
    rule(ck::CKA_PUBLIC_EXPONENT, Bytes, NOT_GENERATE | NOT_UNWRAP),
    rule(ck::CKA_PRIVATE_EXPONENT, Bytes, CREATE | PART),
    rule(ck::CKA_PRIME_1, Bytes, PART),
    rule(ck::CKA_PRIME_2, Bytes, PART),
    rule(ck::CKA_EXPONENT_1, Bytes, PART),
    rule(ck::CKA_EXPONENT_2, Bytes, PART),
    rule(ck::CKA_COEFFICIENT, Bytes, PART),
];
static PRIVATE_CURVE: [Rule; 2] = [
    rule(ck::CKA_EC_PARAMS, Bytes, CREATE | NOT_GENERATE | NOT_UNWRAP),
    rule(ck::CKA_VALUE, Bytes, CREATE | PART),
];
static SECRET_KEY: [Rule; 15] = [
    rule(ck::CKA_SENSITIVE, Bool(false), CHANGE),
    rule(ck::CKA_ENCRYPT, Bool(true), CHANGE),
    rule(ck::CKA_DECRYPT, Bool(true), CHANGE),
    rule(ck::CKA_SIGN, Bool(true), CHANGE),
    rule(ck::CKA_VERIFY, Bool(true), CHANGE),
    rule(ck::CKA_WRAP, Bool(true), CHANGE),
    rule(ck::CKA_UNWRAP, Bool(true), CHANGE),
    rule(ck::CKA_EXTRACTABLE, Bool(false), CHANGE),
    rule(ck::CKA_ALWAYS_SENSITIVE, Bool(false), BROUGHT),
    rule(ck::CKA_NEVER_EXTRACTABLE, Bool(true), BROUGHT),
    rule(ck::CKA_CHECK_VALUE, Bytes, CHANGE),
    rule(ck::CKA_WRAP_WITH_TRUSTED, Bool(false), 0),
    rule(ck::CKA_TRUSTED, Bool(false), 0),
    rule(ck::CKA_WRAP_TEMPLATE, Template, 0),
    rule(ck::CKA_UNWRAP_TEMPLATE, Template, 0),
];
static SECRET_GENERIC: [Rule; 2] =
    [rule(ck::CKA_VALUE, Bytes, CREATE | PART), rule(ck::CKA_VALUE_LEN, NUMBER, NOT_CREATE | GENERATE)];
static SECRET_AES: [Rule; 2] = [
    rule(ck::CKA_VALUE, Bytes, CREATE | PART),
    rule(ck::CKA_VALUE_LEN, NUMBER, NOT_CREATE | GENERATE | NOT_UNWRAP),
];
static DOMAIN: [Rule; 2] =
    [rule(ck::CKA_KEY_TYPE, NONE, CREATE), rule(ck::CKA_LOCAL, Bool(false), NOT_CREATE | NOT_GENERATE)];
static DOMAIN_DSA: [Rule; 4] = [
    rule(ck::CKA_PRIME, Bytes, CREATE | NOT_GENERATE),
    rule(ck::CKA_SUBPRIME, Bytes, CREATE | NOT_GENERATE),
    rule(ck::CKA_BASE, Bytes, CREATE | NOT_GENERATE),
    rule(ck::CKA_PRIME_BITS, NUMBER, NOT_CREATE | GENERATE),
];
static DOMAIN_DH: [Rule; 3] = [
    rule(ck::CKA_PRIME, Bytes, CREATE | NOT_GENERATE),
    rule(ck::CKA_BASE, Bytes, CREATE | NOT_GENERATE),
    rule(ck::CKA_PRIME_BITS, NUMBER, NOT_CREATE | GENERATE),
];
static UNIQUE: [Rule; 1] = [rule(ck::CKA_UNIQUE_ID, Bytes, BROUGHT)];

/// The attributes of a class and a key type or certificate type; `None` where there is no such object.
pub(super) fn rules(
    class: Ulong,
    sort: Ulong,
    unique_id: bool,
) -> Option<impl Iterator<Item = &'static Rule>> {
    let parts: &[&'static [Rule]] = match (class, sort) {
        (ck::CKO_DATA, _) => &[&DATA],
        (ck::CKO_CERTIFICATE, ck::CKC_X_509) => &[&CERTIFICATE, &X_509],
        (ck::CKO_PUBLIC_KEY, ck::CKK_RSA) => &[&KEY, &PUBLIC, &PUBLIC_RSA],
        (ck::CKO_PUBLIC_KEY, ck::CKK_EC | ck::CKK_EC_EDWARDS) => &[&KEY, &PUBLIC, &PUBLIC_CURVE],
        (ck::CKO_PRIVATE_KEY, ck::CKK_RSA) => &[&KEY, &PRIVATE, &PRIVATE_RSA],
        (ck::CKO_PRIVATE_KEY, ck::CKK_EC | ck::CKK_EC_EDWARDS) => &[&KEY, &PRIVATE, &PRIVATE_CURVE],
        (ck::CKO_SECRET_KEY, ck::CKK_AES) => &[&KEY, &SECRET_KEY, &SECRET_AES],
        (ck::CKO_SECRET_KEY, kind) if is_generic(kind) => &[&KEY, &SECRET_KEY, &SECRET_GENERIC],
        (ck::CKO_DOMAIN_PARAMETERS, ck::CKK_DSA) => &[&DOMAIN, &DOMAIN_DSA],
        (ck::CKO_DOMAIN_PARAMETERS, ck::CKK_DH) => &[&DOMAIN, &DOMAIN_DH],
        _ => return None,
    };
    let unique: &'static [Rule] = if unique_id { &UNIQUE } else { &[] };
    // A handful of slices: their iterators are the result, so that nothing is kept.
    let parts: Vec<&'static [Rule]> =
        [&COMMON as &[Rule], unique].into_iter().chain(parts.iter().copied()).collect();
    Some(parts.into_iter().flatten())
}

/// Whether keys of this type are bytes without a structure.
pub(super) fn is_generic(key_type: Ulong) -> bool {
    matches!(
        key_type,
        ck::CKK_GENERIC_SECRET
            | ck::CKK_SHA_1_HMAC
            | ck::CKK_SHA224_HMAC
            | ck::CKK_SHA256_HMAC
            | ck::CKK_SHA384_HMAC
            | ck::CKK_SHA512_HMAC
    )
}
