//! The rows: each mechanism of SoftHSM with keys that two of its tokens can share, in one call and in parts.

use std::fmt;

use ha_token::{
    Attribute, Field, FieldValue, Mechanism, ObjectHandle, OpKind, Params, SessionHandle, StructParams,
    Template, Token, ck,
};

use crate::rig::Rig;

const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// Mechanisms that are not in the table, and why.
pub(crate) const LEFT_OUT: &[(u64, &str)] = &[
    (ck::CKM_EDDSA, "SoftHSM cannot wrap such a key: it is on one token only"),
    (ck::CKM_DSA, "nothing proves that two such keys are one: they are refused"),
    (ck::CKM_DSA_SHA1, "as CKM_DSA"),
    (ck::CKM_DSA_SHA224, "as CKM_DSA"),
    (ck::CKM_DSA_SHA256, "as CKM_DSA"),
    (ck::CKM_DSA_SHA384, "as CKM_DSA"),
    (ck::CKM_DSA_SHA512, "as CKM_DSA"),
    (ck::CKM_DES_ECB, "OpenSSL 3 has no single DES without its legacy provider"),
    (ck::CKM_DES_CBC, "as CKM_DES_ECB"),
    (ck::CKM_DES_CBC_PAD, "as CKM_DES_ECB"),
];

/// How an operation is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    /// In one call.
    Whole,
    /// In parts.
    Parts,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Shape::Whole => "one call",
            Shape::Parts => "parts",
        })
    }
}

/// One operation.
pub(crate) struct Case {
    pub name: String,
    pub kind: OpKind,
    pub shape: Shape,
    pub mechanism: Mechanism,
    pub key: ObjectHandle,
    pub input: Vec<u8>,
    /// What is verified.
    pub signature: Vec<u8>,
    /// What comes of it, where that is always the same.
    pub expected: Option<Vec<u8>>,
    /// By what it is judged otherwise.
    pub undone_by: Option<(OpKind, ObjectHandle)>,
}

impl Case {
    /// The input, in uneven parts.
    pub(crate) fn parts(&self) -> Vec<&[u8]> {
        let (first, rest) = self.input.split_at(5);
        let (second, third) = rest.split_at(27);
        vec![first, second, third]
    }
}

/// The keys, each on both tokens.
pub(crate) struct Keys {
    rsa: (ObjectHandle, ObjectHandle),
    ec: (ObjectHandle, ObjectHandle),
    aes: ObjectHandle,
    des3: ObjectHandle,
    secret: ObjectHandle,
}

/// By what each of them is found.
const RSA: u8 = 1;
const EC: u8 = 2;
const AES: u8 = 3;
const DES3: u8 = 4;
const SECRET: u8 = 5;

impl Keys {
    /// Makes them on both tokens.
    pub(crate) fn make(slot: &dyn Token, s: SessionHandle) {
        let yes = |id: u8, kinds: &[u64]| {
            let mut template: Template = kinds.iter().map(|kind| Attribute::bool(*kind, true)).collect();
            template.push(Attribute::bytes(ck::CKA_ID, [id]));
            template
        };
        let pair = |id, generate, own: Attribute| {
            let mut public = yes(id, &[ck::CKA_TOKEN, ck::CKA_VERIFY, ck::CKA_ENCRYPT]);
            public.push(own);
            let private = yes(id, &[ck::CKA_TOKEN, ck::CKA_PRIVATE, ck::CKA_SIGN, ck::CKA_DECRYPT]);
            slot.generate_key_pair(s, &mut Mechanism::plain(generate), &public, &private).unwrap();
        };
        let secret = |id, generate, len: Option<u64>| {
            let mut template =
                yes(id, &[ck::CKA_TOKEN, ck::CKA_SIGN, ck::CKA_VERIFY, ck::CKA_ENCRYPT, ck::CKA_DECRYPT]);
            template.extend(len.map(|len| Attribute::ulong(ck::CKA_VALUE_LEN, len)));
            slot.generate_key(s, &mut Mechanism::plain(generate), &template).unwrap();
        };
        pair(RSA, ck::CKM_RSA_PKCS_KEY_PAIR_GEN, Attribute::ulong(ck::CKA_MODULUS_BITS, 1024));
        pair(EC, ck::CKM_EC_KEY_PAIR_GEN, Attribute::bytes(ck::CKA_EC_PARAMS, P256));
        secret(AES, ck::CKM_AES_KEY_GEN, Some(32));
        secret(DES3, ck::CKM_DES3_KEY_GEN, None);
        secret(SECRET, ck::CKM_GENERIC_SECRET_KEY_GEN, Some(64));
    }

    /// Finds them.
    pub(crate) fn find(slot: &dyn Token, s: SessionHandle) -> Self {
        let find = |class, id: u8| {
            let template = vec![Attribute::ulong(ck::CKA_CLASS, class), Attribute::bytes(ck::CKA_ID, [id])];
            slot.find_objects_init(s, &template).unwrap();
            let found = slot.find_objects(s, 2).unwrap();
            slot.find_objects_final(s).unwrap();
            assert_eq!(found.len(), 1, "key {id} of class {class}");
            found[0]
        };
        let pair = |id| (find(ck::CKO_PUBLIC_KEY, id), find(ck::CKO_PRIVATE_KEY, id));
        let secret = |id| find(ck::CKO_SECRET_KEY, id);
        Keys { rsa: pair(RSA), ec: pair(EC), aes: secret(AES), des3: secret(DES3), secret: secret(SECRET) }
    }
}

/// A mechanism, its key (or its private and its public one), what it is given, and whether that may be in parts.
struct Kind {
    name: &'static str,
    mechanism: Mechanism,
    keys: (ObjectHandle, ObjectHandle),
    input: Vec<u8>,
    in_parts: bool,
    /// The same input has many answers.
    many: bool,
}

fn numbers(kind: u64, numbers: &[u64]) -> Mechanism {
    Mechanism::bytes(kind, &numbers.iter().flat_map(|n| n.to_ne_bytes()).collect::<Vec<u8>>())
}

fn structure(kind: u64, layout: &'static str, fields: Vec<(&'static str, FieldValue)>) -> Mechanism {
    let fields = fields.into_iter().map(|(name, value)| Field { name, value }).collect();
    Mechanism { kind, params: Params::Struct(Box::new(StructParams { layout, fields })) }
}

fn message() -> Vec<u8> {
    (0..64u8).collect()
}

fn signing(keys: &Keys) -> Vec<Kind> {
    let mut kinds = Vec::new();
    let mut add = |name, mechanism, keys, input: Vec<u8>, in_parts, many| {
        kinds.push(Kind { name, mechanism, keys, input, in_parts, many });
    };
    add("RSA-PKCS", Mechanism::plain(ck::CKM_RSA_PKCS), keys.rsa, vec![9; 51], false, false);
    add("RSA-X-509", Mechanism::plain(ck::CKM_RSA_X_509), keys.rsa, vec![0x5a; 127], false, false);
    for (name, mechanism) in [
        ("MD5-RSA-PKCS", ck::CKM_MD5_RSA_PKCS),
        ("SHA1-RSA-PKCS", ck::CKM_SHA1_RSA_PKCS),
        ("SHA224-RSA-PKCS", ck::CKM_SHA224_RSA_PKCS),
        ("SHA256-RSA-PKCS", ck::CKM_SHA256_RSA_PKCS),
        ("SHA384-RSA-PKCS", ck::CKM_SHA384_RSA_PKCS),
        ("SHA512-RSA-PKCS", ck::CKM_SHA512_RSA_PKCS),
    ] {
        add(name, Mechanism::plain(mechanism), keys.rsa, message(), true, false);
    }
    let sha256 = [ck::CKM_SHA256, ck::CKG_MGF1_SHA256, 32];
    add("RSA-PKCS-PSS", numbers(ck::CKM_RSA_PKCS_PSS, &sha256), keys.rsa, vec![3; 32], false, true);
    for (name, mechanism, hash, mgf, salt) in [
        ("SHA1-RSA-PKCS-PSS", ck::CKM_SHA1_RSA_PKCS_PSS, ck::CKM_SHA_1, ck::CKG_MGF1_SHA1, 20),
        ("SHA224-RSA-PKCS-PSS", ck::CKM_SHA224_RSA_PKCS_PSS, ck::CKM_SHA224, ck::CKG_MGF1_SHA224, 28),
        ("SHA256-RSA-PKCS-PSS", ck::CKM_SHA256_RSA_PKCS_PSS, ck::CKM_SHA256, ck::CKG_MGF1_SHA256, 32),
        ("SHA384-RSA-PKCS-PSS", ck::CKM_SHA384_RSA_PKCS_PSS, ck::CKM_SHA384, ck::CKG_MGF1_SHA384, 48),
        ("SHA512-RSA-PKCS-PSS", ck::CKM_SHA512_RSA_PKCS_PSS, ck::CKM_SHA512, ck::CKG_MGF1_SHA512, 62),
    ] {
        add(name, numbers(mechanism, &[hash, mgf, salt]), keys.rsa, message(), true, true);
    }
    add("ECDSA", Mechanism::plain(ck::CKM_ECDSA), keys.ec, vec![7; 32], false, true);
    for (name, mechanism) in [
        ("MD5-HMAC", ck::CKM_MD5_HMAC),
        ("SHA-1-HMAC", ck::CKM_SHA_1_HMAC),
        ("SHA224-HMAC", ck::CKM_SHA224_HMAC),
        ("SHA256-HMAC", ck::CKM_SHA256_HMAC),
        ("SHA384-HMAC", ck::CKM_SHA384_HMAC),
        ("SHA512-HMAC", ck::CKM_SHA512_HMAC),
    ] {
        add(name, Mechanism::plain(mechanism), (keys.secret, keys.secret), message(), true, false);
    }
    add("AES-CMAC", Mechanism::plain(ck::CKM_AES_CMAC), (keys.aes, keys.aes), message(), true, false);
    add("DES3-CMAC", Mechanism::plain(ck::CKM_DES3_CMAC), (keys.des3, keys.des3), message(), true, false);
    kinds
}

fn enciphering(keys: &Keys) -> Vec<Kind> {
    let (aes, des3) = ((keys.aes, keys.aes), (keys.des3, keys.des3));
    let mut kinds = Vec::new();
    let mut add = |name, mechanism, keys, input: Vec<u8>, in_parts, many| {
        kinds.push(Kind { name, mechanism, keys, input, in_parts, many });
    };
    add("AES-ECB", Mechanism::plain(ck::CKM_AES_ECB), aes, message(), true, false);
    add("AES-CBC", Mechanism::bytes(ck::CKM_AES_CBC, &[4; 16]), aes, message(), true, false);
    add("AES-CBC-PAD", Mechanism::bytes(ck::CKM_AES_CBC_PAD, &[4; 16]), aes, vec![1; 61], true, false);
    let counter: Vec<u8> = 128u64.to_ne_bytes().into_iter().chain([4; 16]).collect();
    add("AES-CTR", Mechanism::bytes(ck::CKM_AES_CTR, &counter), aes, vec![1; 61], true, false);
    let gcm = vec![
        ("pIv", FieldValue::Output(Some(vec![6; 12]))),
        ("ulIvBits", FieldValue::Ulong(96)),
        ("pAAD", FieldValue::Bytes(Some(b"with it".to_vec()))),
        ("ulTagBits", FieldValue::Ulong(128)),
    ];
    add("AES-GCM", structure(ck::CKM_AES_GCM, "CK_GCM_PARAMS", gcm), aes, vec![1; 61], true, false);
    add("DES3-ECB", Mechanism::plain(ck::CKM_DES3_ECB), des3, message(), true, false);
    add("DES3-CBC", Mechanism::bytes(ck::CKM_DES3_CBC, &[4; 8]), des3, message(), true, false);
    add("DES3-CBC-PAD", Mechanism::bytes(ck::CKM_DES3_CBC_PAD, &[4; 8]), des3, vec![1; 61], true, false);
    add("RSA-PKCS", Mechanism::plain(ck::CKM_RSA_PKCS), keys.rsa, vec![9; 51], false, true);
    add("RSA-X-509", Mechanism::plain(ck::CKM_RSA_X_509), keys.rsa, vec![0x5a; 128], false, false);
    let oaep = vec![
        ("hashAlg", FieldValue::Ulong(ck::CKM_SHA_1)),
        ("mgf", FieldValue::Ulong(ck::CKG_MGF1_SHA1)),
        ("source", FieldValue::Ulong(ck::CKZ_DATA_SPECIFIED as u64)),
        ("pSourceData", FieldValue::Bytes(None)),
    ];
    let oaep = structure(ck::CKM_RSA_PKCS_OAEP, "CK_RSA_PKCS_OAEP_PARAMS", oaep);
    add("RSA-PKCS-OAEP", oaep, keys.rsa, vec![9; 51], false, true);
    kinds
}

const DIGESTS: [(&str, u64); 6] = [
    ("MD5", ck::CKM_MD5),
    ("SHA-1", ck::CKM_SHA_1),
    ("SHA224", ck::CKM_SHA224),
    ("SHA256", ck::CKM_SHA256),
    ("SHA384", ck::CKM_SHA384),
    ("SHA512", ck::CKM_SHA512),
];

/// Every row. What they need is made by the group itself, both of whose members are sound.
pub(crate) fn all(rig: &Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes = |in_parts: bool| [Shape::Whole, Shape::Parts].into_iter().take(1 + usize::from(in_parts));
    for kind in signing(&rig.keys) {
        let signature = rig.once(OpKind::Sign, &kind.mechanism, kind.keys.1, &kind.input);
        for shape in shapes(kind.in_parts) {
            let case = |op: OpKind, key, signature: Vec<u8>, expected, undone_by| Case {
                name: kind.name.to_owned(),
                kind: op,
                shape,
                mechanism: kind.mechanism.clone(),
                key,
                input: kind.input.clone(),
                signature,
                expected,
                undone_by,
            };
            let (public, private) = kind.keys;
            let expected = (!kind.many).then(|| signature.clone());
            cases.push(case(OpKind::Sign, private, Vec::new(), expected, Some((OpKind::Verify, public))));
            cases.push(case(OpKind::Verify, public, signature.clone(), Some(Vec::new()), None));
        }
    }
    for kind in enciphering(&rig.keys) {
        let (public, private) = kind.keys;
        let enciphered = rig.once(OpKind::Encrypt, &kind.mechanism, public, &kind.input);
        for shape in shapes(kind.in_parts) {
            let case = |op, key, input: &[u8], expected, undone_by| Case {
                name: format!(
                    "{} ({})",
                    kind.name,
                    if op == OpKind::Encrypt { "encrypt" } else { "decrypt" }
                ),
                kind: op,
                shape,
                mechanism: kind.mechanism.clone(),
                key,
                input: input.to_vec(),
                signature: Vec::new(),
                expected,
                undone_by,
            };
            let expected = (!kind.many).then(|| enciphered.clone());
            let back = Some((OpKind::Decrypt, private));
            cases.push(case(OpKind::Encrypt, public, &kind.input, expected, back));
            cases.push(case(OpKind::Decrypt, private, &enciphered, Some(kind.input.clone()), None));
        }
    }
    for (name, mechanism) in DIGESTS {
        let mechanism = Mechanism::plain(mechanism);
        let digest = rig.once(OpKind::Digest, &mechanism, ObjectHandle(0), &message());
        for shape in shapes(true) {
            cases.push(Case {
                name: name.to_owned(),
                kind: OpKind::Digest,
                shape,
                mechanism: mechanism.clone(),
                key: ObjectHandle(0),
                input: message(),
                signature: Vec::new(),
                expected: Some(digest.clone()),
                undone_by: None,
            });
        }
    }
    cases
}
