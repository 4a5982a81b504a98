//! The mechanisms that keys are used with, and operations run to their end.

use ha_token::{
    Field, FieldValue, Mechanism, OpKind, Output, Params, Result, SessionHandle, StructParams, Token, ck,
};

/// Ends an operation that was begun, at once or in two parts.
pub(crate) fn run(
    token: &dyn Token,
    s: SessionHandle,
    kind: OpKind,
    data: &[u8],
    parts: bool,
) -> Result<Vec<u8>> {
    let mut space = [0; 512];
    if !parts {
        let mut out = Output::buffer(&mut space);
        token.op_one_shot(s, kind, data, &mut out)?;
        return Ok(out.written().to_vec());
    }
    let mut made = Vec::new();
    for part in data.chunks(data.len().div_ceil(2).max(1)) {
        let mut out = Output::buffer(&mut space);
        token.op_update(s, kind, part, &mut out)?;
        if matches!(kind, OpKind::Encrypt | OpKind::Decrypt) {
            made.extend(out.written());
        }
    }
    let mut out = Output::buffer(&mut space);
    token.op_final(s, kind, &mut out)?;
    made.extend(out.written());
    Ok(made)
}

/// A mechanism that fits the key's type: what does not crashes SoftHSM.
pub(crate) fn sign_mechanism(
    n: u8,
    (class, key_type): (ck::CK_OBJECT_CLASS, ck::CK_KEY_TYPE),
) -> Option<ck::CK_MECHANISM_TYPE> {
    let of: &[ck::CK_MECHANISM_TYPE] = match (class, key_type) {
        (ck::CKO_PUBLIC_KEY | ck::CKO_PRIVATE_KEY, ck::CKK_EC) => &[ck::CKM_ECDSA],
        (ck::CKO_PUBLIC_KEY | ck::CKO_PRIVATE_KEY, ck::CKK_EC_EDWARDS) => &[ck::CKM_EDDSA],
        (ck::CKO_PUBLIC_KEY | ck::CKO_PRIVATE_KEY, ck::CKK_RSA) => &[
            ck::CKM_RSA_PKCS,
            ck::CKM_SHA256_RSA_PKCS,
            ck::CKM_SHA1_RSA_PKCS,
            ck::CKM_SHA384_RSA_PKCS,
            ck::CKM_SHA512_RSA_PKCS,
        ],
        (ck::CKO_SECRET_KEY, _) => &[
            ck::CKM_SHA256_HMAC,
            ck::CKM_SHA_1_HMAC,
            ck::CKM_SHA384_HMAC,
            ck::CKM_SHA512_HMAC,
            ck::CKM_AES_CMAC,
        ],
        _ => return None,
    };
    Some(of[usize::from(n) % of.len()])
}

pub(crate) fn crypt_mechanism(
    n: u8,
    (class, key_type): (ck::CK_OBJECT_CLASS, ck::CK_KEY_TYPE),
) -> Option<Mechanism> {
    match (class, key_type) {
        (ck::CKO_PUBLIC_KEY | ck::CKO_PRIVATE_KEY, ck::CKK_RSA) => {
            Some(if n.is_multiple_of(2) { Mechanism::plain(ck::CKM_RSA_PKCS) } else { oaep() })
        }
        (ck::CKO_SECRET_KEY, _) => Some(match n % 4 {
            0 => Mechanism::plain(ck::CKM_AES_ECB),
            1 => Mechanism::bytes(ck::CKM_AES_CBC, &[4; 16]),
            2 => Mechanism::bytes(ck::CKM_AES_CBC_PAD, &[4; 16]),
            _ => Mechanism::plain(ck::CKM_AES_CBC),
        }),
        _ => None,
    }
}

pub(crate) fn wrap_mechanism(n: u8) -> Mechanism {
    match n % 8 {
        0 | 1 => Mechanism::plain(ck::CKM_AES_KEY_WRAP),
        2 | 3 => Mechanism::plain(ck::CKM_AES_KEY_WRAP_PAD),
        4 => Mechanism::plain(ck::CKM_RSA_PKCS),
        5 => oaep(),
        6 => Mechanism::bytes(ck::CKM_AES_CBC, &[4; 16]),
        _ => Mechanism::plain(ck::CKM_AES_KEY_WRAP_KWP),
    }
}

pub(crate) fn oaep() -> Mechanism {
    let field = |name, value| Field { name, value };
    let fields = vec![
        field("hashAlg", FieldValue::Ulong(ck::CKM_SHA_1)),
        field("mgf", FieldValue::Ulong(ck::CKG_MGF1_SHA1)),
        field("source", FieldValue::Ulong(ck::CKZ_DATA_SPECIFIED as ck::CK_ULONG)),
        field("pSourceData", FieldValue::Bytes(None)),
    ];
    let params = Params::Struct(Box::new(StructParams { layout: "CK_RSA_PKCS_OAEP_PARAMS", fields }));
    Mechanism { kind: ck::CKM_RSA_PKCS_OAEP, params }
}
