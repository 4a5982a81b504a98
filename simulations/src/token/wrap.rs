//! Keys carried out and in under other keys.

use ha_token::{
    Attribute, Mechanism, ObjectHandle, Output, Params, Result, Rv, SessionHandle, Template, Ulong, ck,
};

use super::aes::{Aes, Chain, pad, unpad};
use super::material::{Key, Padding};
use super::object::{Make, Object};
use super::objects::Outline;
use super::start::padding_of;
use super::state::Call;

/// How a key is carried.
#[derive(Clone, Copy)]
enum Carrier {
    /// RFC 3394.
    Wrap,
    /// RFC 5649.
    WrapPadded,
    /// CBC with this initialisation vector, padded or not.
    Cbc([u8; 16], bool),
    Rsa(Padding),
}

impl Carrier {
    fn is_rsa(self) -> bool {
        matches!(self, Carrier::Rsa(_))
    }

    /// Whether a key of this class and type can carry so.
    fn fits(self, key: &Object, class: Ulong) -> bool {
        match self {
            Carrier::Rsa(_) => key.class() == class && key.key_type() == ck::CKK_RSA,
            _ => key.class() == ck::CKO_SECRET_KEY && key.key_type() == ck::CKK_AES,
        }
    }
}

impl Call<'_> {
    fn carrier(&self, mechanism: &Mechanism, flag: Ulong) -> Result<Carrier> {
        if self.profile.mechanism(mechanism.kind).is_none_or(|info| info.flags & flag == 0) {
            return Err(Rv::MECHANISM_INVALID);
        }
        let iv = || match &mechanism.params {
            Params::Bytes(iv) => iv.as_ref().try_into().map_err(|_| Rv::ARGUMENTS_BAD),
            Params::None | Params::Struct(_) => Err(Rv::ARGUMENTS_BAD),
        };
        let carrier = match mechanism.kind {
            ck::CKM_AES_KEY_WRAP => Carrier::Wrap,
            ck::CKM_AES_KEY_WRAP_PAD | ck::CKM_AES_KEY_WRAP_KWP => Carrier::WrapPadded,
            ck::CKM_AES_CBC => Carrier::Cbc(iv()?, false),
            ck::CKM_AES_CBC_PAD => Carrier::Cbc(iv()?, true),
            ck::CKM_RSA_PKCS | ck::CKM_RSA_PKCS_OAEP => {
                Carrier::Rsa(padding_of(mechanism, self.profile.oaep_sha2)?)
            }
            _ => return Err(Rv::MECHANISM_INVALID),
        };
        // A chosen initial value is not taken.
        let plain = matches!(carrier, Carrier::Wrap | Carrier::WrapPadded | Carrier::Rsa(Padding::Pkcs));
        if plain && mechanism.params != Params::None {
            return Err(Rv::ARGUMENTS_BAD);
        }
        Ok(carrier)
    }

    pub(super) fn wrap_key(
        &mut self,
        session: SessionHandle,
        mechanism: &Mechanism,
        wrapping: ObjectHandle,
        key: ObjectHandle,
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.open(session)?;
        let carrier = self.carrier(mechanism, ck::CKF_WRAP)?;
        let by = self.key(wrapping, Rv::WRAPPING_KEY_HANDLE_INVALID)?;
        if !carrier.fits(by, ck::CKO_PUBLIC_KEY) {
            return Err(Rv::WRAPPING_KEY_TYPE_INCONSISTENT);
        }
        if !by.flag(ck::CKA_WRAP) {
            return Err(Rv::KEY_FUNCTION_NOT_PERMITTED);
        }
        self.permits(by, mechanism.kind)?;
        let key = self.key(key, Rv::KEY_HANDLE_INVALID)?;
        if !key.flag(ck::CKA_EXTRACTABLE) {
            return Err(Rv::KEY_UNEXTRACTABLE);
        }
        let trusted = !key.flag(ck::CKA_WRAP_WITH_TRUSTED) || by.flag(ck::CKA_TRUSTED);
        let class = key.class();
        let possible = match class {
            ck::CKO_SECRET_KEY => true,
            ck::CKO_PRIVATE_KEY => !(carrier.is_rsa() && self.profile.rsa_wraps_secrets_only),
            _ => false,
        };
        let as_wanted = match by.get(ck::CKA_WRAP_TEMPLATE) {
            Some(ha_token::Value::Template(wanted)) => {
                wanted.iter().all(|a| key.get(a.kind) == Some(&a.value))
            }
            _ => true,
        };
        if !trusted || !possible || !as_wanted {
            return Err(Rv::KEY_NOT_WRAPPABLE);
        }
        let mut value = match (class, Key::of(key)) {
            (ck::CKO_SECRET_KEY, _) => key.bytes(ck::CKA_VALUE).to_vec(),
            (_, Some(Key::Ed25519 { .. })) if !self.profile.wraps_ed25519 => {
                return Err(Rv::KEY_NOT_WRAPPABLE);
            }
            (_, Some(key)) => key.encode(),
            (_, None) => return Err(Rv::GENERAL_ERROR),
        };
        if value.is_empty() {
            return Err(Rv::KEY_NOT_WRAPPABLE);
        }
        if let Carrier::Rsa(padding) = carrier {
            let Some(Key::Rsa(rsa)) = Key::of(by) else { return Err(Rv::GENERAL_ERROR) };
            let most = rsa.size().saturating_sub(match padding {
                Padding::Pkcs => 11,
                Padding::Oaep(hash) => 2 + 2 * hash.size(),
            });
            if value.len() > most {
                return Err(Rv::KEY_SIZE_RANGE);
            }
            let wrapped = rsa.encrypt(padding, &value, &mut self.store.random).ok_or(Rv::GENERAL_ERROR)?;
            return output.write(&wrapped);
        }
        if self.profile.pads_secrets {
            value.resize(value.len().next_multiple_of(8), 0);
        }
        let aes = Aes::new(by.bytes(ck::CKA_VALUE)).ok_or(Rv::GENERAL_ERROR)?;
        let wrapped = match carrier {
            Carrier::Wrap if value.len() < 16 || !value.len().is_multiple_of(8) => {
                return Err(Rv::KEY_SIZE_RANGE);
            }
            Carrier::Wrap => aes.wrap(&value),
            Carrier::WrapPadded => aes.wrap_padded(&value),
            Carrier::Cbc(iv, padded) => {
                let value = if padded { pad(&value) } else { value };
                let whole = value.len().is_multiple_of(16);
                whole.then(|| Chain { key: aes, iv: Some(iv), encrypting: true }.run(&value))
            }
            Carrier::Rsa(_) => None,
        };
        output.write(&wrapped.ok_or(Rv::GENERAL_ERROR)?)
    }

    pub(super) fn unwrap_key(
        &mut self,
        session: SessionHandle,
        mechanism: &Mechanism,
        unwrapping: ObjectHandle,
        wrapped: &[u8],
        template: &Template,
    ) -> Result<ObjectHandle> {
        self.open(session)?;
        let carrier = self.carrier(mechanism, ck::CKF_UNWRAP)?;
        let least = match carrier {
            Carrier::Wrap => 24,
            Carrier::WrapPadded => 16,
            Carrier::Cbc(..) | Carrier::Rsa(_) => 0,
        };
        if wrapped.len() < least || (least > 0 && !wrapped.len().is_multiple_of(8)) {
            return Err(Rv::WRAPPED_KEY_LEN_RANGE);
        }
        let by = self.key(unwrapping, Rv::UNWRAPPING_KEY_HANDLE_INVALID)?;
        if !carrier.fits(by, ck::CKO_PRIVATE_KEY) {
            return Err(Rv::UNWRAPPING_KEY_TYPE_INCONSISTENT);
        }
        if !by.flag(ck::CKA_UNWRAP) {
            return Err(Rv::KEY_FUNCTION_NOT_PERMITTED);
        }
        self.permits(by, mechanism.kind)?;
        let outline = Outline::of(template)?;
        if !matches!(outline.class, ck::CKO_SECRET_KEY | ck::CKO_PRIVATE_KEY) {
            return Err(Rv::ATTRIBUTE_VALUE_INVALID);
        }
        self.may_write(session, outline.on_token, outline.private)?;
        let whole = outline.template(template, &[])?;
        if let Some(ha_token::Value::Template(forced)) = by.get(ck::CKA_UNWRAP_TEMPLATE) {
            for attribute in forced {
                let mut given = whole.iter().filter(|a| a.kind == attribute.kind);
                match (given.next(), given.next()) {
                    (Some(one), None) if one.value == attribute.value => {}
                    _ => return Err(Rv::TEMPLATE_INCONSISTENT),
                }
            }
        }
        let value = match carrier {
            Carrier::Rsa(padding) => {
                let Some(Key::Rsa(rsa)) = Key::of(by) else { return Err(Rv::GENERAL_ERROR) };
                rsa.decrypt(padding, wrapped)
            }
            carrier => {
                let aes = Aes::new(by.bytes(ck::CKA_VALUE)).ok_or(Rv::GENERAL_ERROR)?;
                match carrier {
                    Carrier::Wrap => aes.unwrap(wrapped),
                    Carrier::WrapPadded => aes.unwrap_padded(wrapped),
                    Carrier::Cbc(iv, padded) => {
                        let whole = wrapped.len().is_multiple_of(16);
                        let open = Chain { key: aes, iv: Some(iv), encrypting: false }.run(wrapped);
                        let open = if padded { unpad(&open).map(<[u8]>::to_vec) } else { Some(open) };
                        open.filter(|_| whole)
                    }
                    Carrier::Rsa(_) => None,
                }
            }
        };
        // SoftHSM says no more of a blob that is not what it should be.
        let value = value.ok_or(Rv::GENERAL_ERROR)?;
        self.make(session, &whole, Make::Unwrap, |object| {
            for kind in [ck::CKA_LOCAL, ck::CKA_ALWAYS_SENSITIVE, ck::CKA_NEVER_EXTRACTABLE] {
                object.put(Attribute::bool(kind, false));
            }
            if outline.class == ck::CKO_SECRET_KEY {
                object.put(Attribute::bytes(ck::CKA_VALUE, value));
                return Ok(());
            }
            let key = Key::decode(&value).filter(|k| k.key_type() == outline.sort);
            let parts = key.ok_or(Rv::FUNCTION_FAILED)?.private_attributes();
            parts.into_iter().for_each(|a| object.put(a));
            Ok(())
        })
    }
}
