//! The standard's numbers in words, for people and documents.

use ha_token::{Ulong, ck};

/// An object class: `private-key`, or its number.
pub fn class(class: Ulong) -> String {
    match class {
        ck::CKO_DATA => "data",
        ck::CKO_CERTIFICATE => "certificate",
        ck::CKO_PUBLIC_KEY => "public-key",
        ck::CKO_PRIVATE_KEY => "private-key",
        ck::CKO_SECRET_KEY => "secret-key",
        ck::CKO_DOMAIN_PARAMETERS => "domain-parameters",
        other => return format!("0x{other:x}"),
    }
    .into()
}

/// A key type: `EC`, or its number; empty where the class has none.
pub fn key_type(class: Ulong, key_type: Ulong) -> String {
    if !matches!(
        class,
        ck::CKO_PUBLIC_KEY | ck::CKO_PRIVATE_KEY | ck::CKO_SECRET_KEY | ck::CKO_DOMAIN_PARAMETERS
    ) {
        return String::new();
    }
    match key_type {
        ck::CKK_RSA => "RSA",
        ck::CKK_DSA => "DSA",
        ck::CKK_DH => "DH",
        ck::CKK_EC => "EC",
        ck::CKK_EC_EDWARDS => "EC-Edwards",
        ck::CKK_EC_MONTGOMERY => "EC-Montgomery",
        ck::CKK_GENERIC_SECRET => "generic-secret",
        ck::CKK_AES => "AES",
        ck::CKK_DES3 => "DES3",
        other => return format!("0x{other:x}"),
    }
    .into()
}
