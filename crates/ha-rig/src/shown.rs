//! How answers are printed, so that they can be compared: chance is left out.

use ha_token::{Fetched, Result, Value, ck};

/// The attributes that are read of every object.
pub const READ: [ck::CK_ATTRIBUTE_TYPE; 62] = [
    ck::CKA_CLASS,
    ck::CKA_TOKEN,
    ck::CKA_PRIVATE,
    ck::CKA_LABEL,
    ck::CKA_UNIQUE_ID,
    ck::CKA_APPLICATION,
    ck::CKA_VALUE,
    ck::CKA_OBJECT_ID,
    ck::CKA_CERTIFICATE_TYPE,
    ck::CKA_ISSUER,
    ck::CKA_SERIAL_NUMBER,
    ck::CKA_TRUSTED,
    ck::CKA_CERTIFICATE_CATEGORY,
    ck::CKA_JAVA_MIDP_SECURITY_DOMAIN,
    ck::CKA_URL,
    ck::CKA_NAME_HASH_ALGORITHM,
    ck::CKA_CHECK_VALUE,
    ck::CKA_KEY_TYPE,
    ck::CKA_SUBJECT,
    ck::CKA_ID,
    ck::CKA_SENSITIVE,
    ck::CKA_ENCRYPT,
    ck::CKA_DECRYPT,
    ck::CKA_WRAP,
    ck::CKA_UNWRAP,
    ck::CKA_SIGN,
    ck::CKA_SIGN_RECOVER,
    ck::CKA_VERIFY,
    ck::CKA_VERIFY_RECOVER,
    ck::CKA_DERIVE,
    ck::CKA_START_DATE,
    ck::CKA_END_DATE,
    ck::CKA_MODULUS,
    ck::CKA_MODULUS_BITS,
    ck::CKA_PUBLIC_EXPONENT,
    ck::CKA_PRIVATE_EXPONENT,
    ck::CKA_PRIME_1,
    ck::CKA_PRIME_2,
    ck::CKA_EXPONENT_1,
    ck::CKA_EXPONENT_2,
    ck::CKA_COEFFICIENT,
    ck::CKA_PUBLIC_KEY_INFO,
    ck::CKA_PRIME,
    ck::CKA_SUBPRIME,
    ck::CKA_BASE,
    ck::CKA_PRIME_BITS,
    ck::CKA_VALUE_LEN,
    ck::CKA_EXTRACTABLE,
    ck::CKA_LOCAL,
    ck::CKA_NEVER_EXTRACTABLE,
    ck::CKA_ALWAYS_SENSITIVE,
    ck::CKA_KEY_GEN_MECHANISM,
    ck::CKA_MODIFIABLE,
    ck::CKA_COPYABLE,
    ck::CKA_DESTROYABLE,
    ck::CKA_EC_PARAMS,
    ck::CKA_EC_POINT,
    ck::CKA_ALWAYS_AUTHENTICATE,
    ck::CKA_WRAP_WITH_TRUSTED,
    ck::CKA_WRAP_TEMPLATE,
    ck::CKA_UNWRAP_TEMPLATE,
    ck::CKA_ALLOWED_MECHANISMS,
];

/// The attributes in which chance is, where the token made the key.
pub const BY_CHANCE: [ck::CK_ATTRIBUTE_TYPE; 10] = [
    ck::CKA_VALUE,
    ck::CKA_CHECK_VALUE,
    ck::CKA_MODULUS,
    ck::CKA_PRIVATE_EXPONENT,
    ck::CKA_PRIME_1,
    ck::CKA_PRIME_2,
    ck::CKA_EXPONENT_1,
    ck::CKA_EXPONENT_2,
    ck::CKA_COEFFICIENT,
    ck::CKA_EC_POINT,
];

/// Whether it went well, or the error.
pub fn plain<T>(answer: Result<T>) -> String {
    match answer {
        Ok(_) => "ok".into(),
        Err(rv) => format!("{rv}"),
    }
}

/// In hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The bytes, or how many they are where chance is in them.
pub fn shown(bytes: &[u8], exact: bool) -> String {
    if exact { hex(bytes) } else { format!("{} bytes", bytes.len()) }
}

/// Attributes by [`READ`], those [`BY_CHANCE`] by their sizes unless they are `equal`.
pub fn printed(read: &[Fetched], equal: bool) -> String {
    let one = |(kind, fetched): (&ck::CK_ATTRIBUTE_TYPE, &Fetched)| {
        let chance = !equal && BY_CHANCE.contains(kind);
        let value = match fetched {
            Fetched::Sensitive => "sensitive".into(),
            Fetched::Invalid => return String::new(),
            Fetched::Value(Value::Template(t)) => {
                t.iter().map(|a| format!("{:x}={}", a.kind, hex(a.value.as_bytes().unwrap_or(&[])))).collect()
            }
            // A number may be shorter by chance.
            Fetched::Value(Value::Bytes(b)) if chance => format!("{} blocks", b.len().div_ceil(8)),
            Fetched::Value(Value::Bytes(b)) => hex(b),
        };
        format!("{kind:x}:{value} ")
    };
    READ.iter().zip(read).map(one).collect()
}
