//! Keys made by the token: generated and derived.

use ha_token::{
    Attribute, FieldValue, Mechanism, ObjectHandle, Params, Result, Rv, SessionHandle, Template, Ulong, ck,
};

use super::aes::{Aes, BLOCK, Chain};
use super::material::{Key, bare_point};
use super::object::{Make, Object, check_value};
use super::objects::Outline;
use super::rules::is_generic;
use super::state::Call;

/// Whether the template leaves the check value to the token: an empty one says that it is not wanted.
fn wants_check_value(template: &Template) -> Result<bool> {
    let mut given = template.iter().filter(|a| a.kind == ck::CKA_CHECK_VALUE).peekable();
    let wanted = given.peek().is_none();
    let empty = given.all(|a| a.value.as_bytes().is_some_and(<[u8]>::is_empty));
    if empty { Ok(wanted) } else { Err(Rv::ATTRIBUTE_VALUE_INVALID) }
}

/// What a key that the token made says of its past.
fn made_here(object: &mut Object, mechanism: Ulong) {
    object.put(Attribute::bool(ck::CKA_LOCAL, true));
    object.put(Attribute::ulong(ck::CKA_KEY_GEN_MECHANISM, mechanism));
    if object.get(ck::CKA_SENSITIVE).is_some() {
        let (sensitive, extractable) = (object.flag(ck::CKA_SENSITIVE), object.flag(ck::CKA_EXTRACTABLE));
        object.put(Attribute::bool(ck::CKA_ALWAYS_SENSITIVE, sensitive));
        object.put(Attribute::bool(ck::CKA_NEVER_EXTRACTABLE, !extractable));
    }
}

impl Call<'_> {
    pub(super) fn generate_key(
        &mut self,
        session: SessionHandle,
        mechanism: &Mechanism,
        template: &Template,
    ) -> Result<ObjectHandle> {
        self.open(session)?;
        let key_type = match mechanism.kind {
            ck::CKM_AES_KEY_GEN => ck::CKK_AES,
            ck::CKM_GENERIC_SECRET_KEY_GEN => ck::CKK_GENERIC_SECRET,
            _ => return Err(Rv::MECHANISM_INVALID),
        };
        self.profile.mechanism(mechanism.kind).ok_or(Rv::MECHANISM_INVALID)?;
        let outline = Outline::or(template, ck::CKO_SECRET_KEY, key_type);
        if !matches!(outline.class, ck::CKO_SECRET_KEY | ck::CKO_DOMAIN_PARAMETERS) {
            return Err(Rv::ATTRIBUTE_VALUE_INVALID);
        }
        if outline.class != ck::CKO_SECRET_KEY || outline.sort != key_type {
            return Err(Rv::TEMPLATE_INCONSISTENT);
        }
        self.may_write(session, outline.on_token, outline.private)?;
        let length = Call::given_number(template, ck::CKA_VALUE_LEN)?;
        let check = wants_check_value(template)? && self.profile.check_values;
        let right = match key_type {
            _ if length == 0 => return Err(Rv::TEMPLATE_INCOMPLETE),
            ck::CKK_AES => matches!(length, 16 | 24 | 32),
            // SoftHSM takes more; nobody wants to wait for it.
            _ => length <= 0x10_0000,
        };
        if !right {
            return Err(Rv::ATTRIBUTE_VALUE_INVALID);
        }
        let value = self.store.random.bytes(length as usize);
        let template = outline.template(template, &[ck::CKA_CHECK_VALUE])?;
        self.make(session, &template, Make::Generate, |object| {
            made_here(object, mechanism.kind);
            if check {
                object.put(Attribute::bytes(ck::CKA_CHECK_VALUE, check_value(key_type, &value)));
            }
            object.put(Attribute::bytes(ck::CKA_VALUE, value));
            Ok(())
        })
    }

    pub(super) fn generate_key_pair(
        &mut self,
        session: SessionHandle,
        mechanism: &Mechanism,
        public: &Template,
        private: &Template,
    ) -> Result<(ObjectHandle, ObjectHandle)> {
        self.open(session)?;
        let key_type = match mechanism.kind {
            ck::CKM_RSA_PKCS_KEY_PAIR_GEN => ck::CKK_RSA,
            ck::CKM_EC_KEY_PAIR_GEN => ck::CKK_EC,
            ck::CKM_EC_EDWARDS_KEY_PAIR_GEN => ck::CKK_EC_EDWARDS,
            _ => return Err(Rv::MECHANISM_INVALID),
        };
        self.profile.mechanism(mechanism.kind).ok_or(Rv::MECHANISM_INVALID)?;
        let outlines = [
            (Outline::or(public, ck::CKO_PUBLIC_KEY, key_type), ck::CKO_PUBLIC_KEY),
            (Outline::or(private, ck::CKO_PRIVATE_KEY, key_type), ck::CKO_PRIVATE_KEY),
        ];
        for (outline, class) in outlines {
            if outline.class != class {
                return Err(Rv::ATTRIBUTE_VALUE_INVALID);
            }
            if outline.sort != key_type {
                return Err(Rv::TEMPLATE_INCONSISTENT);
            }
        }
        let [(to_public, _), (to_private, _)] = outlines;
        self.may_write(
            session,
            to_public.on_token || to_private.on_token,
            to_public.private || to_private.private,
        )?;
        let key = self.new_key(key_type, public)?;
        // The exponent is what the pair has, not what was asked for.
        let left_out: &[Ulong] = if key_type == ck::CKK_RSA { &[ck::CKA_PUBLIC_EXPONENT] } else { &[] };
        let template = to_public.template(public, left_out)?;
        let made = self.make(session, &template, Make::Generate, |object| {
            made_here(object, mechanism.kind);
            key.public_attributes().into_iter().for_each(|a| object.put(a));
            Ok(())
        })?;
        let other = to_private.template(private, &[]).and_then(|template| {
            self.make(session, &template, Make::Generate, |object| {
                made_here(object, mechanism.kind);
                key.private_attributes().into_iter().for_each(|a| object.put(a));
                Ok(())
            })
        });
        match other {
            Ok(other) => Ok((made, other)),
            Err(rv) => {
                if let Some(place) = self.own.place(made) {
                    self.remove(place)?;
                }
                Err(rv)
            }
        }
    }

    fn new_key(&mut self, key_type: Ulong, public: &Template) -> Result<Key> {
        if key_type != ck::CKK_RSA {
            let params = Call::given_bytes(public, ck::CKA_EC_PARAMS).filter(|p| !p.is_empty());
            let key = Key::generate(params.ok_or(Rv::TEMPLATE_INCOMPLETE)?, &mut self.store.random);
            return key.filter(|k| k.key_type() == key_type).ok_or(Rv::GENERAL_ERROR);
        }
        let bits = Call::given_number(public, ck::CKA_MODULUS_BITS)?;
        if bits == 0 {
            return Err(Rv::TEMPLATE_INCOMPLETE);
        }
        let usual = match Call::given_bytes(public, ck::CKA_PUBLIC_EXPONENT) {
            None => true,
            Some(exponent) => super::der::trim(exponent) == [1, 0, 1],
        };
        // The pool has pairs of two sizes with the usual exponent.
        let pool = self.store.pool.clone();
        let key = pool.draw(bits as usize, &mut self.store.random).filter(|_| usual);
        key.map(Key::Rsa).ok_or(Rv::GENERAL_ERROR)
    }

    pub(super) fn derive_key(
        &mut self,
        session: SessionHandle,
        mechanism: &Mechanism,
        base: ObjectHandle,
        template: &Template,
    ) -> Result<ObjectHandle> {
        self.open(session)?;
        let known = self.profile.mechanism(mechanism.kind).is_some_and(|i| i.flags & ck::CKF_DERIVE != 0);
        if !known {
            return Err(Rv::MECHANISM_INVALID);
        }
        let key = self.key(base, Rv::OBJECT_HANDLE_INVALID)?;
        if !key.flag(ck::CKA_DERIVE) {
            return Err(Rv::KEY_FUNCTION_NOT_PERMITTED);
        }
        self.permits(key, mechanism.kind)?;
        let outline = Outline::of(template)?;
        if outline.class != ck::CKO_SECRET_KEY {
            return Err(Rv::ATTRIBUTE_VALUE_INVALID);
        }
        if !matches!(outline.sort, ck::CKK_GENERIC_SECRET | ck::CKK_AES) {
            return Err(Rv::TEMPLATE_INCONSISTENT);
        }
        self.may_write(session, outline.on_token, outline.private)?;
        let fits = match mechanism.kind {
            ck::CKM_ECDH1_DERIVE => key.class() == ck::CKO_PRIVATE_KEY && key.key_type() == ck::CKK_EC,
            _ => key.class() == ck::CKO_SECRET_KEY && key.key_type() == ck::CKK_AES,
        };
        if !fits {
            return Err(Rv::KEY_TYPE_INCONSISTENT);
        }
        let source = source(mechanism)?;
        // The first that is wrong is the one that is told.
        for attribute in template {
            let one = vec![attribute.clone()];
            if attribute.kind == ck::CKA_VALUE {
                return Err(Rv::ATTRIBUTE_READ_ONLY);
            }
            Call::given_number(&one, ck::CKA_VALUE_LEN)?;
            wants_check_value(&one)?;
        }
        let agreed = mechanism.kind == ck::CKM_ECDH1_DERIVE;
        let length = Call::given_number(template, ck::CKA_VALUE_LEN)? as usize;
        let check = wants_check_value(template)? && self.profile.check_values;
        match outline.sort {
            ck::CKK_AES if length == 0 && agreed => {}
            ck::CKK_AES if !matches!(length, 16 | 24 | 32) => return Err(Rv::ATTRIBUTE_VALUE_INVALID),
            kind if is_generic(kind) && length == 0 && !agreed => return Err(Rv::TEMPLATE_INCOMPLETE),
            _ => {}
        }
        let whole = derive(key, &source)?;
        let wanted = match (length, outline.sort) {
            (0, ck::CKK_AES) => [32, 24, 16].into_iter().find(|l| *l <= whole.len()).unwrap_or(16),
            (0, _) => whole.len(),
            (wanted, _) => wanted,
        };
        let (sensitive, never) =
            (key.flag(ck::CKA_ALWAYS_SENSITIVE), key.flag_or_true(ck::CKA_NEVER_EXTRACTABLE));
        let template = outline.template(template, &[ck::CKA_CHECK_VALUE])?;
        self.make(session, &template, Make::Derive, |object| {
            object.put(Attribute::bool(ck::CKA_LOCAL, false));
            let (is_sensitive, is_extractable) =
                (object.flag(ck::CKA_SENSITIVE), object.flag(ck::CKA_EXTRACTABLE));
            object.put(Attribute::bool(ck::CKA_ALWAYS_SENSITIVE, sensitive && is_sensitive));
            object.put(Attribute::bool(ck::CKA_NEVER_EXTRACTABLE, never && !is_extractable));
            // A shared secret loses its front, what was enciphered its end.
            let value = match agreed {
                true => whole.len().checked_sub(wanted).and_then(|start| whole.get(start..)),
                false => whole.get(..wanted),
            };
            let value = value.ok_or(Rv::FUNCTION_FAILED)?;
            // SoftHSM's is that of a generic secret, and of the whole shared secret.
            let checked = if agreed { &whole } else { value };
            if check {
                object
                    .put(Attribute::bytes(ck::CKA_CHECK_VALUE, check_value(ck::CKK_GENERIC_SECRET, checked)));
            }
            object.put(Attribute::bytes(ck::CKA_VALUE, value));
            Ok(())
        })
    }
}

/// What a key is derived from, besides the base key.
enum Source {
    Peer(Vec<u8>),
    Data { iv: Option<[u8; BLOCK]>, data: Vec<u8> },
}

fn source(mechanism: &Mechanism) -> Result<Source> {
    let bad = Rv::MECHANISM_PARAM_INVALID;
    let Params::Struct(params) = &mechanism.params else { return Err(bad) };
    let bytes = |name| match params.field(name) {
        Some(FieldValue::Bytes(Some(bytes))) if !bytes.is_empty() => Some(bytes.clone()),
        _ => None,
    };
    if mechanism.kind == ck::CKM_ECDH1_DERIVE {
        let plain = matches!(params.field("kdf"), Some(FieldValue::Ulong(ck::CKD_NULL)));
        let shared = bytes("pSharedData").is_some();
        return match bytes("pPublicData") {
            Some(peer) if plain && !shared => Ok(Source::Peer(peer)),
            _ => Err(bad),
        };
    }
    let data = bytes("pData").filter(|d| d.len().is_multiple_of(BLOCK)).ok_or(bad)?;
    let iv = match params.field("iv") {
        Some(FieldValue::Inline(iv)) => Some(iv.as_slice().try_into().map_err(|_| bad)?),
        _ => None,
    };
    Ok(Source::Data { iv, data })
}

fn derive(key: &Object, source: &Source) -> Result<Vec<u8>> {
    match source {
        Source::Peer(peer) => match Key::of(key) {
            Some(Key::Ec { curve, scalar, .. }) => {
                // SoftHSM takes a bare point of these lengths, and every other one as DER.
                let point = if matches!(peer.len(), 65 | 97 | 133) { peer } else { bare_point(peer) };
                curve.agree(&scalar, point).ok_or(Rv::GENERAL_ERROR)
            }
            _ => Err(Rv::GENERAL_ERROR),
        },
        Source::Data { iv, data } => {
            let key = Aes::new(key.bytes(ck::CKA_VALUE)).ok_or(Rv::MECHANISM_INVALID)?;
            Ok(Chain { key, iv: *iv, encrypting: true }.run(data))
        }
    }
}
