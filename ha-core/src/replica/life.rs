//! A new key's life, as templates: what the key is made from, and what every copy of it is.
//!
//! A key is made as a session object that may be extracted, whatever was asked for; the copies that stay are unwrapped
//! from its blob with exactly what was asked for, every default written out, so that all are alike.

use ha_token::{Attribute, AttributeType, ObjectHandle, Result, Template, TemplateExt, Ulong, Value, ck};

use super::{On, PUBLIC_VALUE};

/// What says how the key is kept, not what it is: not given to the session object it is made as.
const KEEPING: [AttributeType; 6] = [
    ck::CKA_MODIFIABLE,
    ck::CKA_COPYABLE,
    ck::CKA_DESTROYABLE,
    ck::CKA_TRUSTED,
    ck::CKA_WRAP_WITH_TRUSTED,
    ck::CKA_ALWAYS_AUTHENTICATE,
];

/// What a value brings with it, of whatever type the key is, ...
const OF_ANY: [AttributeType; 5] =
    [ck::CKA_VALUE, ck::CKA_VALUE_LEN, ck::CKA_CHECK_VALUE, ck::CKA_PUBLIC_KEY_INFO, ck::CKA_SEED];
/// ... of an RSA key, ...
const OF_RSA: [AttributeType; 9] = [
    ck::CKA_MODULUS,
    ck::CKA_MODULUS_BITS,
    ck::CKA_PUBLIC_EXPONENT,
    ck::CKA_PRIVATE_EXPONENT,
    ck::CKA_PRIME_1,
    ck::CKA_PRIME_2,
    ck::CKA_EXPONENT_1,
    ck::CKA_EXPONENT_2,
    ck::CKA_COEFFICIENT,
];
/// ... of a DSA or Diffie-Hellman key, ...
const OF_FIELDS: [AttributeType; 5] =
    [ck::CKA_PRIME, ck::CKA_PRIME_BITS, ck::CKA_SUBPRIME, ck::CKA_BASE, ck::CKA_VALUE_BITS];
/// ... and of a key on a curve.
const OF_CURVES: [AttributeType; 2] = [ck::CKA_EC_PARAMS, ck::CKA_EC_POINT];

/// Attributes of a secret or private key whose defaults are the token's: read from the key that was made.
const SECRET_FLAGS: [AttributeType; 9] = [
    ck::CKA_PRIVATE,
    ck::CKA_ENCRYPT,
    ck::CKA_DECRYPT,
    ck::CKA_SIGN,
    ck::CKA_VERIFY,
    ck::CKA_WRAP,
    ck::CKA_UNWRAP,
    ck::CKA_DERIVE,
    ck::CKA_KEY_TYPE,
];
const PRIVATE_FLAGS: [AttributeType; 7] = [
    ck::CKA_PRIVATE,
    ck::CKA_DECRYPT,
    ck::CKA_SIGN,
    ck::CKA_SIGN_RECOVER,
    ck::CKA_UNWRAP,
    ck::CKA_DERIVE,
    ck::CKA_KEY_TYPE,
];
const PUBLIC_FLAGS: [AttributeType; 7] = [
    ck::CKA_PRIVATE,
    ck::CKA_ENCRYPT,
    ck::CKA_VERIFY,
    ck::CKA_VERIFY_RECOVER,
    ck::CKA_WRAP,
    ck::CKA_DERIVE,
    ck::CKA_KEY_TYPE,
];
/// What limits what may be done with a key, beyond its usage flags.
const LIMITS: [AttributeType; 9] = [
    ck::CKA_ALLOWED_MECHANISMS,
    ck::CKA_WRAP_TEMPLATE,
    ck::CKA_UNWRAP_TEMPLATE,
    ck::CKA_DERIVE_TEMPLATE,
    ck::CKA_ALWAYS_AUTHENTICATE,
    ck::CKA_WRAP_WITH_TRUSTED,
    ck::CKA_COPYABLE,
    ck::CKA_DESTROYABLE,
    ck::CKA_MODIFIABLE,
];
/// Those that any object has, the last one of which is given last.
const PERMISSIONS: [AttributeType; 3] = [ck::CKA_COPYABLE, ck::CKA_DESTROYABLE, ck::CKA_MODIFIABLE];
/// Attributes that name the key: read from it where they were not asked for (a copy or an unwrapped key inherits them).
const NAMES: [AttributeType; 5] =
    [ck::CKA_ID, ck::CKA_LABEL, ck::CKA_SUBJECT, ck::CKA_START_DATE, ck::CKA_END_DATE];
/// What a token decides of an object that was created, where its template does not say: ...
const OTHER_FLAGS: [AttributeType; 1] = [ck::CKA_PRIVATE];
/// ... of a secret or private key also how it is protected.
const PROTECTION: [AttributeType; 2] = [ck::CKA_SENSITIVE, ck::CKA_EXTRACTABLE];
/// What differs between a key that was generated and its copies: answered from the ledger.
const REMEMBERED: [AttributeType; 4] =
    [ck::CKA_LOCAL, ck::CKA_KEY_GEN_MECHANISM, ck::CKA_VALUE_LEN, ck::CKA_CHECK_VALUE];

/// What a certificate, a data object or domain parameters are made of.
const READABLE: [AttributeType; 18] = [
    ck::CKA_CLASS,
    ck::CKA_CERTIFICATE_TYPE,
    ck::CKA_CERTIFICATE_CATEGORY,
    ck::CKA_PRIVATE,
    ck::CKA_LABEL,
    ck::CKA_APPLICATION,
    ck::CKA_OBJECT_ID,
    ck::CKA_ID,
    ck::CKA_SUBJECT,
    ck::CKA_ISSUER,
    ck::CKA_SERIAL_NUMBER,
    ck::CKA_VALUE,
    ck::CKA_START_DATE,
    ck::CKA_END_DATE,
    ck::CKA_KEY_TYPE,
    ck::CKA_PRIME,
    ck::CKA_SUBPRIME,
    ck::CKA_BASE,
];

/// The template of a copy: without what is only answered in its place.
pub fn of_copy(template: &Template) -> Template {
    template.iter().filter(|a| !REMEMBERED.contains(&a.kind)).cloned().collect()
}

/// What a token decides of an object of this class that is created, where its template does not say.
pub fn flags(class: Ulong) -> Vec<AttributeType> {
    let (flags, protection): (&[AttributeType], &[AttributeType]) = match class {
        ck::CKO_SECRET_KEY => (&SECRET_FLAGS, &PROTECTION),
        ck::CKO_PRIVATE_KEY => (&PRIVATE_FLAGS, &PROTECTION),
        ck::CKO_PUBLIC_KEY => (&PUBLIC_FLAGS, &[]),
        _ => (&OTHER_FLAGS, &[]),
    };
    flags.iter().chain(protection).copied().collect()
}

/// Whether an attribute belongs to a key's value: it comes with it, is not given again when that is unwrapped, and does not
/// change.
pub fn is_value(kind: AttributeType) -> bool {
    [&OF_ANY[..], &OF_RSA, &OF_FIELDS, &OF_CURVES].iter().any(|of| of.contains(&kind))
}

/// Whether keys of a type may have an attribute that [belongs to a key's value](is_value): of types that are not known here,
/// any.
pub fn may_have(key_type: Ulong, kind: AttributeType) -> bool {
    let (rsa, fields, curves) =
        (OF_RSA.contains(&kind), OF_FIELDS.contains(&kind), OF_CURVES.contains(&kind));
    match key_type {
        ck::CKK_RSA => !fields && !curves,
        ck::CKK_EC | ck::CKK_EC_EDWARDS | ck::CKK_EC_MONTGOMERY => !rsa && !fields,
        ck::CKK_AES | ck::CKK_DES | ck::CKK_DES2 | ck::CKK_DES3 | ck::CKK_GENERIC_SECRET => {
            !rsa && !fields && !curves
        }
        _ => true,
    }
}

/// Whether the asked-for key may be extracted: with the defaults that SoftHSM and most tokens have, it may not.
pub fn may_be_extracted(asked: &Template) -> bool {
    asked.get_bool(ck::CKA_EXTRACTABLE) == Some(true)
        && asked.get_bool(ck::CKA_WRAP_WITH_TRUSTED) != Some(true)
}

/// The template of a session key that says nothing about extraction: it may be extracted, so that it can be copied to a
/// token key later; `None` for a template that does say.
pub fn as_sealed(asked: &Template) -> Option<Template> {
    if asked.get(ck::CKA_EXTRACTABLE).is_some() {
        return None;
    }
    let mut sealed = asked.clone();
    // Whatever was asked: what may not be extracted cannot be read, and this one could be.
    sealed.set(Attribute::bool(ck::CKA_SENSITIVE, true));
    sealed.push(Attribute::bool(ck::CKA_EXTRACTABLE, true));
    Some(sealed)
}

/// What limits a key that is there: a copy of it is never good for more. What is as by default is left out.
///
/// # Errors
/// The member's answer.
pub fn limits(on: On<'_>, key: ObjectHandle) -> Result<Template> {
    let mut read = on.read(key, &LIMITS)?;
    read.retain(|a| match a.kind {
        ck::CKA_ALWAYS_AUTHENTICATE | ck::CKA_WRAP_WITH_TRUSTED => a.value.as_bool() == Some(true),
        ck::CKA_COPYABLE | ck::CKA_DESTROYABLE | ck::CKA_MODIFIABLE => a.value.as_bool() == Some(false),
        _ => match &a.value {
            Value::Template(t) => !t.is_empty(),
            value => value.as_bytes().is_none_or(|b| !b.is_empty()),
        },
    });
    Ok(read)
}

/// Those of the [limits] that any object may have, as far as they are not as by default.
///
/// # Errors
/// The member's answer.
pub fn permissions(on: On<'_>, object: ObjectHandle) -> Result<Template> {
    let mut read = on.read(object, &PERMISSIONS)?;
    read.retain(|a| a.value.as_bool() == Some(false));
    Ok(read)
}

/// The template of the session object that the key is made as.
pub fn as_made(asked: &Template) -> Template {
    let mut made: Template = asked.iter().filter(|a| !KEEPING.contains(&a.kind)).cloned().collect();
    made.set(Attribute::bool(ck::CKA_TOKEN, false));
    made.set(Attribute::bool(ck::CKA_SENSITIVE, true));
    made.set(Attribute::bool(ck::CKA_EXTRACTABLE, true));
    made
}

/// The same for a public key, which has neither sensitivity nor extractability.
pub fn public_as_made(asked: &Template) -> Template {
    let mut made: Template = asked.iter().filter(|a| !KEEPING.contains(&a.kind)).cloned().collect();
    made.set(Attribute::bool(ck::CKA_TOKEN, false));
    made
}

/// Whether a key's value may be read.
fn is_open(asked: &Template) -> bool {
    asked.get_bool(ck::CKA_SENSITIVE) == Some(false) && may_be_extracted(asked)
}

/// The template of a session object that is itself the key, and stays on its member: no copy is made from a blob, which
/// would be told these, and a copy on the token has them from it (section 4.9: they are told when a key is made, or once).
pub fn as_made_to_stay(asked: &Template) -> Template {
    let mut made = as_made(asked);
    made.set(Attribute::bool(ck::CKA_SENSITIVE, !is_open(asked)));
    let of_use = |a: &&Attribute| [ck::CKA_WRAP_WITH_TRUSTED, ck::CKA_ALWAYS_AUTHENTICATE].contains(&a.kind);
    made.extend(asked.iter().filter(of_use).cloned());
    made
}

/// What the copy on the token is told of a key that was made as a session object to stay.
pub fn as_stays(kept: &Template) -> Template {
    // CKA_SENSITIVE it has already, and may not be told again. That it may not be modified comes last: a token may take no
    // more then.
    const TOLD: [AttributeType; 7] = [
        ck::CKA_TOKEN,
        ck::CKA_PRIVATE,
        ck::CKA_EXTRACTABLE,
        ck::CKA_ID,
        ck::CKA_LABEL,
        ck::CKA_DESTROYABLE,
        ck::CKA_MODIFIABLE,
    ];
    TOLD.iter().filter_map(|kind| kept.iter().find(|a| a.kind == *kind)).cloned().collect()
}

/// A copy's template in two steps: what a session object is told that the copy is then made of, and what only the copy is, in the
/// order in which a token takes it.
pub fn in_two_steps(template: &Template) -> (Template, Template) {
    let is_last = |a: &Attribute| {
        let forbids = matches!(a.kind, ck::CKA_COPYABLE | ck::CKA_DESTROYABLE | ck::CKA_MODIFIABLE);
        forbids && a.value.as_bool() == Some(false)
    };
    let told = template.iter().filter(|a| a.kind != ck::CKA_TOKEN).cloned();
    let (last, first): (Template, Template) = told.partition(is_last);
    let step = |token, rest| [Attribute::bool(ck::CKA_TOKEN, token)].into_iter().chain(rest).collect();
    // Once SoftHSM has been told that the copy may not be modified it takes nothing more.
    let (locks, last): (Template, Template) = last.into_iter().partition(|a| a.kind == ck::CKA_MODIFIABLE);
    (step(false, first), step(true, last.into_iter().chain(locks).collect()))
}

/// Whether an object has every flag as it is to be kept, as far as its token knows of them.
///
/// # Errors
/// The member's answer.
pub fn has_flags(on: On<'_>, object: ObjectHandle, kept: &Template) -> Result<bool> {
    let flags: Vec<&Attribute> = kept.iter().filter(|a| a.value.as_bool().is_some()).collect();
    let read = on.read(object, &flags.iter().map(|a| a.kind).collect::<Vec<_>>())?;
    Ok(flags.iter().all(|flag| read.get(flag.kind).is_none_or(|there| *there == flag.value)))
}

/// The template that every copy of a secret or private key is unwrapped with.
///
/// # Errors
/// The member's answer.
pub fn as_kept(on: On<'_>, made: ObjectHandle, class: Ulong, asked: &Template) -> Result<Template> {
    let flags: &[AttributeType] = if class == ck::CKO_PRIVATE_KEY { &PRIVATE_FLAGS } else { &SECRET_FLAGS };
    let types: Vec<AttributeType> = flags.iter().chain(&NAMES).copied().collect();
    let read = on.read(made, &types)?;
    let mut kept = vec![Attribute::ulong(ck::CKA_CLASS, class)];
    kept.extend(read.get_ulong(ck::CKA_KEY_TYPE).map(|t| Attribute::ulong(ck::CKA_KEY_TYPE, t)));
    kept.push(Attribute::bool(ck::CKA_TOKEN, true));
    // A key that may not be extracted cannot be read either (section 4.9): sensitive is what it is, whatever was asked,
    // and what the group key's unwrap template wants.
    kept.push(Attribute::bool(ck::CKA_SENSITIVE, !is_open(asked)));
    kept.push(Attribute::bool(ck::CKA_EXTRACTABLE, asked.get_bool(ck::CKA_EXTRACTABLE) == Some(true)));
    add_missing(&mut kept, read);
    add_asked(&mut kept, asked);
    Ok(kept)
}

/// The template that every copy of a public key is created from.
///
/// # Errors
/// The member's answer.
pub fn public_as_kept(on: On<'_>, made: ObjectHandle, asked: &Template) -> Result<Template> {
    let types: Vec<AttributeType> = PUBLIC_FLAGS.iter().chain(&NAMES).chain(&PUBLIC_VALUE).copied().collect();
    let read = on.read(made, &types)?;
    let mut kept = vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_PUBLIC_KEY)];
    kept.extend(read.get_ulong(ck::CKA_KEY_TYPE).map(|t| Attribute::ulong(ck::CKA_KEY_TYPE, t)));
    kept.push(Attribute::bool(ck::CKA_TOKEN, true));
    add_missing(&mut kept, read);
    add_asked(&mut kept, asked);
    Ok(kept)
}

/// The template that every copy of an object that is no key is created from.
///
/// # Errors
/// The member's answer.
pub fn readable_as_kept(on: On<'_>, there: ObjectHandle) -> Result<Template> {
    let mut kept = on.read(there, &READABLE)?;
    kept.retain(|a| a.value.as_bytes().is_none_or(|b| !b.is_empty()));
    kept.insert(1.min(kept.len()), Attribute::bool(ck::CKA_TOKEN, true));
    Ok(kept)
}

/// A key with its value, for a token that cannot wrap it: the value passes through this process.
///
/// # Errors
/// The member's answer.
pub fn with_value(on: On<'_>, readable: ObjectHandle, kept: &Template) -> Result<Template> {
    let value = on.read(readable, &[ck::CKA_VALUE, ck::CKA_EC_PARAMS])?;
    let mut whole = kept.clone();
    for attribute in value {
        // Ahead of CKA_MODIFIABLE, which stays last.
        whole.insert(2.min(whole.len()), attribute);
    }
    Ok(whole)
}

/// What the ledger answers for every copy, as it is of the key that was made.
///
/// # Errors
/// The member's answer.
pub fn to_remember(on: On<'_>, made: ObjectHandle, generated: bool) -> Result<Template> {
    let mut read = on.read(made, &REMEMBERED)?;
    // A session object made by CreateObject is not local; one made by generation is, and so is the key that was asked for.
    read.set(Attribute::bool(ck::CKA_LOCAL, generated));
    read.retain(|a| a.value.as_bytes().is_none_or(|b| !b.is_empty()));
    Ok(read)
}

fn add_missing(kept: &mut Template, read: Template) {
    for attribute in read {
        let empty = attribute.value.as_bytes().is_some_and(<[u8]>::is_empty);
        if !empty && kept.get(attribute.kind).is_none() {
            kept.push(attribute);
        }
    }
}

/// What was asked for wins over what was read; CKA_MODIFIABLE comes last (SoftHSM refuses what follows it).
fn add_asked(kept: &mut Template, asked: &Template) {
    let mut last = None;
    for attribute in asked {
        match attribute.kind {
            ck::CKA_TOKEN
            | ck::CKA_CLASS
            | ck::CKA_KEY_TYPE
            | ck::CKA_SENSITIVE
            | ck::CKA_EXTRACTABLE
            | ck::CKA_LOCAL
            | ck::CKA_UNIQUE_ID => {}
            ck::CKA_MODIFIABLE => last = Some(attribute.clone()),
            kind if is_value(kind) => {}
            _ => kept.set(attribute.clone()),
        }
    }
    kept.extend(last);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_extractable_whatever_was_asked() {
        let asked = vec![
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::bool(ck::CKA_EXTRACTABLE, false),
            Attribute::bool(ck::CKA_MODIFIABLE, false),
        ];
        let made = as_made(&asked);
        assert_eq!(made.get_bool(ck::CKA_TOKEN), Some(false));
        assert_eq!(made.get_bool(ck::CKA_EXTRACTABLE), Some(true));
        assert_eq!(made.get_bool(ck::CKA_SENSITIVE), Some(true));
        assert!(made.get(ck::CKA_MODIFIABLE).is_none());
    }

    #[test]
    fn modifiable_is_last_and_no_value_is_given_twice() {
        let asked = vec![
            Attribute::bool(ck::CKA_MODIFIABLE, false),
            Attribute::bytes(ck::CKA_VALUE, *b"secret"),
            Attribute::bytes(ck::CKA_ID, *b"1"),
        ];
        let mut kept = Vec::new();
        add_asked(&mut kept, &asked);
        assert_eq!(kept.iter().map(|a| a.kind).collect::<Vec<_>>(), [ck::CKA_ID, ck::CKA_MODIFIABLE]);
    }

    #[test]
    fn a_key_that_wants_a_trusted_wrapper_counts_as_not_extractable() {
        let asked = vec![
            Attribute::bool(ck::CKA_EXTRACTABLE, true),
            Attribute::bool(ck::CKA_WRAP_WITH_TRUSTED, true),
        ];
        assert!(!may_be_extracted(&asked));
    }
}
