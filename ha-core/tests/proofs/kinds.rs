//! The table: kinds of keys, what they may be used for, whether they may be extracted, how they were made.

use ha_rig::{RSA_PARTS, Tokens};
use ha_token::{
    Attribute, AttributeType, Mechanism, ObjectHandle, OpKind, Output, Result, Rv, Template, TemplateExt,
    Ulong, ck,
};

use crate::group::{Bare, Open};

const SECRET_USES: [AttributeType; 7] = [
    ck::CKA_ENCRYPT,
    ck::CKA_DECRYPT,
    ck::CKA_SIGN,
    ck::CKA_VERIFY,
    ck::CKA_WRAP,
    ck::CKA_UNWRAP,
    ck::CKA_DERIVE,
];
const PRIVATE_USES: [AttributeType; 4] = [ck::CKA_SIGN, ck::CKA_DECRYPT, ck::CKA_UNWRAP, ck::CKA_DERIVE];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    Generated,
    Created,
    Unwrapped,
    Copied,
    /// A token object of the group's, copied to another one.
    CopiedOnTheToken,
}

const EVERY_WAY: [How; 5] =
    [How::Generated, How::Created, How::Unwrapped, How::Copied, How::CopiedOnTheToken];

/// With the public key beside it and without: the ways for keys that may be used for something.
const MOST_UNLIKE: [How; 2] = [How::Generated, How::Unwrapped];

#[derive(Clone)]
struct Kind {
    name: String,
    class: Ulong,
    key_type: Ulong,
    generate: Ulong,
    /// What the generation is told: in the public template for pairs.
    told: Template,
    /// What a key's value is made of.
    parts: &'static [AttributeType],
    uses: &'static [AttributeType],
    /// What is done with it after the restart, for a use.
    operation: Option<(AttributeType, OpKind, Ulong, usize)>,
    /// Whether its public part cannot be had from the private key alone, in no way.
    mute: bool,
}

fn secret(name: &str, key_type: Ulong, generate: Ulong, length: Option<Ulong>) -> Kind {
    Kind {
        name: name.to_owned(),
        class: ck::CKO_SECRET_KEY,
        key_type,
        generate,
        told: length.map(|l| Attribute::ulong(ck::CKA_VALUE_LEN, l)).into_iter().collect(),
        parts: &[ck::CKA_VALUE],
        uses: &SECRET_USES,
        operation: None,
        mute: false,
    }
}

/// The kind with the uses only that say least.
fn few(kind: Kind) -> Kind {
    Kind { uses: &[ck::CKA_SIGN, ck::CKA_DERIVE], ..kind }
}

fn curve(name: &str, params: &[u8]) -> Kind {
    Kind {
        name: name.to_owned(),
        class: ck::CKO_PRIVATE_KEY,
        key_type: ck::CKK_EC,
        generate: ck::CKM_EC_KEY_PAIR_GEN,
        told: vec![Attribute::bytes(ck::CKA_EC_PARAMS, params)],
        parts: &[ck::CKA_EC_PARAMS, ck::CKA_VALUE],
        uses: &[ck::CKA_SIGN, ck::CKA_DERIVE],
        operation: Some((ck::CKA_SIGN, OpKind::Sign, ck::CKM_ECDSA, 20)),
        mute: false,
    }
}

/// Makes a key of the kind, as a session object, or as a token object in one of the ways.
fn make(open: &Open, kind: &Kind, how: How, template: &Template) -> Result<ObjectHandle> {
    let (slot, s) = (&open.slot, open.s);
    let generate = |token: bool, template: &Template| -> Result<ObjectHandle> {
        let mut mechanism = Mechanism::plain(kind.generate);
        if kind.class == ck::CKO_SECRET_KEY {
            let mut whole = template.clone();
            whole.extend(kind.told.iter().cloned());
            return slot.generate_key(s, &mut mechanism, &whole);
        }
        let mut public = kind.told.clone();
        public.push(Attribute::bool(ck::CKA_TOKEN, token));
        public.extend(template.iter().find(|a| a.kind == ck::CKA_ID).cloned());
        Ok(slot.generate_key_pair(s, &mut mechanism, &public, template)?.1)
    };
    let mut open_key: Template = template.iter().filter(|a| a.kind != ck::CKA_ID).cloned().collect();
    open_key.set(Attribute::bool(ck::CKA_TOKEN, false));
    open_key.set(Attribute::bool(ck::CKA_SENSITIVE, false));
    open_key.set(Attribute::bool(ck::CKA_EXTRACTABLE, true));
    let mut whole =
        vec![Attribute::ulong(ck::CKA_CLASS, kind.class), Attribute::ulong(ck::CKA_KEY_TYPE, kind.key_type)];
    whole.extend(template.iter().cloned());
    match how {
        How::Generated => generate(true, template),
        How::Created => {
            let source = generate(false, &open_key)?;
            for part in kind.parts {
                whole.push(Attribute::bytes(*part, open.value(source, *part)));
            }
            slot.create_object(s, &whole)
        }
        How::Unwrapped => {
            let source = generate(false, &open_key)?;
            let wrapping = vec![
                Attribute::ulong(ck::CKA_VALUE_LEN, 32),
                Attribute::bool(ck::CKA_WRAP, true),
                Attribute::bool(ck::CKA_UNWRAP, true),
            ];
            let wrapping = slot.generate_key(s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &wrapping)?;
            let mut space = [0; 4096];
            let mut out = Output::buffer(&mut space);
            let mut pad = Mechanism::plain(ck::CKM_AES_KEY_WRAP_PAD);
            slot.wrap_key(s, &mut pad, wrapping, source, &mut out)?;
            slot.unwrap_key(s, &mut pad, wrapping, out.written(), &whole)
        }
        How::Copied => {
            let mut session = open_key.clone();
            for kept in [ck::CKA_SENSITIVE, ck::CKA_EXTRACTABLE] {
                session.set(template.iter().find(|a| a.kind == kept).unwrap().clone());
            }
            // A session key that may not be extracted cannot be copied to a token, but one that does not say so can.
            session.retain(|a| a.kind != ck::CKA_EXTRACTABLE || a.value.as_bytes() == Some(&[1]));
            let source = generate(false, &session)?;
            let changes = vec![
                Attribute::bool(ck::CKA_TOKEN, true),
                template.get(ck::CKA_ID).map(|_| id_of(template)).unwrap(),
            ];
            slot.copy_object(s, source, &changes)
        }
        How::CopiedOnTheToken => {
            let mut first = template.clone();
            let mut id = id_of(template).value.as_bytes().unwrap().to_vec();
            id.push(0xff);
            first.set(Attribute::bytes(ck::CKA_ID, id));
            let source = generate(true, &first)?;
            slot.copy_object(s, source, &vec![id_of(template)])
        }
    }
}

fn id_of(template: &Template) -> Attribute {
    template.iter().find(|a| a.kind == ck::CKA_ID).unwrap().clone()
}

/// Every use, alone and not at all, extractable and not, made in every way: each is the same on both members, also after a
/// restart, and can be used, copied and destroyed then; or it is refused, if it is one of those that say nothing.
fn every_case(kind: &Kind) {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let uses: Vec<Option<AttributeType>> =
        std::iter::once(None).chain(kind.uses.iter().copied().map(Some)).collect();
    let all = if kind.class == ck::CKO_SECRET_KEY { SECRET_USES.as_slice() } else { &PRIVATE_USES };
    let mut made = Vec::new();
    for usage in &uses {
        for extractable in [true, false] {
            for how in if usage.is_none() { EVERY_WAY.as_slice() } else { &MOST_UNLIKE } {
                let how = *how;
                let case = format!("{} for {usage:x?}, extractable {extractable}, {how:?}", kind.name);
                let id = vec![made.len() as u8, 1];
                let mut template = vec![
                    Attribute::bool(ck::CKA_TOKEN, true),
                    Attribute::bytes(ck::CKA_ID, &*id),
                    Attribute::bool(ck::CKA_SENSITIVE, true),
                    Attribute::bool(ck::CKA_EXTRACTABLE, extractable),
                ];
                template.extend(all.iter().map(|u| Attribute::bool(*u, Some(*u) == *usage)));
                let answer = make(&open, kind, how, &template);
                let alone = matches!(how, How::Created | How::Unwrapped | How::Copied);
                if kind.mute && alone && !extractable {
                    assert_eq!(answer.err(), Some(Rv::TEMPLATE_INCONSISTENT), "{case}");
                    continue;
                }
                assert!(answer.is_ok(), "{case}: {answer:?}");
                made.push((case, id, *usage));
            }
        }
    }
    assert_eq!(open.left_behind(), 0, "{}: no throw-away is left", kind.name);
    assert_eq!(open.doubts(), [], "{}", kind.name);
    drop(open);

    let open = Open::new(&tokens, "");
    assert_eq!(open.doubts(), [], "{} after a restart", kind.name);
    drop(open);
    // Without a check before, which would have proven them.
    let open = Open::new(&tokens, "");
    for (case, id, usage) in &made {
        let key = open.one(kind.class, id);
        if let Some((allowed, operation, mechanism, length)) = kind.operation
            && *usage == Some(allowed)
        {
            // Once on each member, whoever is chosen.
            for _ in 0..2 {
                let answer = open.operate(operation, mechanism, key, &vec![7; length]);
                assert!(answer.is_ok(), "{case}: {answer:?}");
            }
        }
        let copy = open.slot.copy_object(open.s, key, &vec![Attribute::bool(ck::CKA_TOKEN, false)]);
        assert!(copy.is_ok(), "{case}: {copy:?}");
    }
    assert_eq!(open.left_behind(), 0, "{}: no throw-away is left after the restart", kind.name);
    for object in open.find(&vec![Attribute::bool(ck::CKA_TOKEN, true)]) {
        assert_eq!(open.slot.destroy_object(open.s, object), Ok(()), "{}", kind.name);
    }
    drop(open);
    for member in [0, 1] {
        assert_eq!(Bare::new(&tokens, member).objects(), 0, "{}: nothing is left on {member}", kind.name);
    }
}

#[test]
fn aes_keys() {
    let mut kind = secret("AES-128", ck::CKK_AES, ck::CKM_AES_KEY_GEN, Some(16));
    kind.operation = Some((ck::CKA_ENCRYPT, OpKind::Encrypt, ck::CKM_AES_ECB, 32));
    every_case(&kind);
    every_case(&few(secret("AES-256", ck::CKK_AES, ck::CKM_AES_KEY_GEN, Some(32))));
}

#[test]
fn generic_secrets() {
    let mut kind = secret("a secret", ck::CKK_GENERIC_SECRET, ck::CKM_GENERIC_SECRET_KEY_GEN, Some(32));
    kind.operation = Some((ck::CKA_SIGN, OpKind::Sign, ck::CKM_SHA256_HMAC, 20));
    every_case(&kind);
    // Too short for SoftHSM's HMAC with SHA-256.
    every_case(&few(secret(
        "a short secret",
        ck::CKK_GENERIC_SECRET,
        ck::CKM_GENERIC_SECRET_KEY_GEN,
        Some(16),
    )));
}

#[test]
fn des3_keys() {
    let mut kind = secret("DES3", ck::CKK_DES3, ck::CKM_DES3_KEY_GEN, None);
    kind.operation = Some((ck::CKA_SIGN, OpKind::Sign, ck::CKM_DES3_CMAC, 20));
    every_case(&kind);
}

#[test]
fn rsa_keys() {
    every_case(&Kind {
        name: "RSA".to_owned(),
        class: ck::CKO_PRIVATE_KEY,
        key_type: ck::CKK_RSA,
        generate: ck::CKM_RSA_PKCS_KEY_PAIR_GEN,
        told: vec![
            Attribute::ulong(ck::CKA_MODULUS_BITS, 1024),
            Attribute::bytes(ck::CKA_PUBLIC_EXPONENT, [1, 0, 1]),
        ],
        parts: &RSA_PARTS,
        uses: &[ck::CKA_SIGN, ck::CKA_DECRYPT, ck::CKA_UNWRAP],
        operation: Some((ck::CKA_SIGN, OpKind::Sign, ck::CKM_SHA256_RSA_PKCS, 20)),
        mute: false,
    });
}

#[test]
fn keys_on_curves_that_are_computed_with() {
    every_case(&curve("P-256", &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07]));
    every_case(&curve("P-384", &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22]));
    every_case(&curve("P-521", &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23]));
    every_case(&curve("secp256k1", &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a]));
}

#[test]
fn keys_on_brainpool_curves() {
    for (name, last) in [("brainpoolP256r1", 0x07), ("brainpoolP384r1", 0x0b), ("brainpoolP512r1", 0x0d)] {
        every_case(&curve(name, &[0x06, 0x09, 0x2b, 0x24, 0x03, 0x03, 0x02, 0x08, 0x01, 0x01, last]));
    }
}

#[test]
fn keys_on_curves_that_only_the_token_knows() {
    every_case(&curve("P-192", &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x01]));
    every_case(&curve("P-224", &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x21]));
    every_case(&curve("sect283k1", &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x10]));
}

/// Domain parameters that the token makes.
fn domain(key_type: Ulong, generate: Ulong, bits: Ulong, parts: &[AttributeType]) -> Template {
    let tokens = Tokens::new(1);
    let bare = Bare::new(&tokens, 0);
    let template =
        vec![Attribute::ulong(ck::CKA_PRIME_BITS, bits), Attribute::ulong(ck::CKA_KEY_TYPE, key_type)];
    let made = bare.token.generate_key(bare.s, &mut Mechanism::plain(generate), &template).unwrap();
    let read = bare.token.get_attributes(bare.s, made, parts).unwrap();
    parts.iter().zip(read).map(|(k, f)| Attribute::bytes(*k, f.bytes().unwrap())).collect()
}

#[test]
fn dsa_keys() {
    let parts = [ck::CKA_PRIME, ck::CKA_SUBPRIME, ck::CKA_BASE];
    every_case(&Kind {
        name: "DSA".to_owned(),
        class: ck::CKO_PRIVATE_KEY,
        key_type: ck::CKK_DSA,
        generate: ck::CKM_DSA_KEY_PAIR_GEN,
        told: domain(ck::CKK_DSA, ck::CKM_DSA_PARAMETER_GEN, 1024, &parts),
        parts: &[ck::CKA_PRIME, ck::CKA_SUBPRIME, ck::CKA_BASE, ck::CKA_VALUE],
        uses: &[ck::CKA_SIGN],
        operation: Some((ck::CKA_SIGN, OpKind::Sign, ck::CKM_DSA, 20)),
        // Its signatures give nothing away, and there is no key agreement.
        mute: true,
    });
}

#[test]
fn diffie_hellman_keys() {
    every_case(&Kind {
        name: "DH".to_owned(),
        class: ck::CKO_PRIVATE_KEY,
        key_type: ck::CKK_DH,
        generate: ck::CKM_DH_PKCS_KEY_PAIR_GEN,
        told: domain(ck::CKK_DH, ck::CKM_DH_PKCS_PARAMETER_GEN, 512, &[ck::CKA_PRIME, ck::CKA_BASE]),
        parts: &[ck::CKA_PRIME, ck::CKA_BASE, ck::CKA_VALUE],
        uses: &[ck::CKA_DERIVE],
        operation: None,
        mute: false,
    });
}
