//! Operations started: which mechanism with which key, and who may.

use ha_token::{FieldValue, Mechanism, ObjectHandle, OpKind, Params, Result, Rv, SessionHandle, Ulong, ck};

use super::aes::{Aes, BLOCK, Chain};
use super::hash::Hash;
use super::material::{Key, Padding, Scheme};
use super::object::Object;
use super::operation::{Cipher, Operation, Signing, With};
use super::state::Call;

/// The digest of a mechanism.
pub(super) fn digest_of(mechanism: Ulong) -> Option<Hash> {
    match mechanism {
        ck::CKM_SHA_1 => Some(Hash::Sha1),
        ck::CKM_SHA224 => Some(Hash::Sha224),
        ck::CKM_SHA256 => Some(Hash::Sha256),
        ck::CKM_SHA384 => Some(Hash::Sha384),
        ck::CKM_SHA512 => Some(Hash::Sha512),
        _ => None,
    }
}

/// An HMAC's digest and the key type of its own.
fn hmac_of(mechanism: Ulong) -> Option<(Hash, Ulong)> {
    match mechanism {
        ck::CKM_SHA_1_HMAC => Some((Hash::Sha1, ck::CKK_SHA_1_HMAC)),
        ck::CKM_SHA224_HMAC => Some((Hash::Sha224, ck::CKK_SHA224_HMAC)),
        ck::CKM_SHA256_HMAC => Some((Hash::Sha256, ck::CKK_SHA256_HMAC)),
        ck::CKM_SHA384_HMAC => Some((Hash::Sha384, ck::CKK_SHA384_HMAC)),
        ck::CKM_SHA512_HMAC => Some((Hash::Sha512, ck::CKK_SHA512_HMAC)),
        _ => None,
    }
}

fn scheme_of(mechanism: Ulong) -> Option<(Scheme, Ulong)> {
    Some(match mechanism {
        ck::CKM_RSA_PKCS => (Scheme::RsaPkcs(None), ck::CKK_RSA),
        ck::CKM_SHA1_RSA_PKCS => (Scheme::RsaPkcs(Some(Hash::Sha1)), ck::CKK_RSA),
        ck::CKM_SHA224_RSA_PKCS => (Scheme::RsaPkcs(Some(Hash::Sha224)), ck::CKK_RSA),
        ck::CKM_SHA256_RSA_PKCS => (Scheme::RsaPkcs(Some(Hash::Sha256)), ck::CKK_RSA),
        ck::CKM_SHA384_RSA_PKCS => (Scheme::RsaPkcs(Some(Hash::Sha384)), ck::CKK_RSA),
        ck::CKM_SHA512_RSA_PKCS => (Scheme::RsaPkcs(Some(Hash::Sha512)), ck::CKK_RSA),
        ck::CKM_ECDSA => (Scheme::Ecdsa(None), ck::CKK_EC),
        ck::CKM_ECDSA_SHA256 => (Scheme::Ecdsa(Some(Hash::Sha256)), ck::CKK_EC),
        ck::CKM_ECDSA_SHA384 => (Scheme::Ecdsa(Some(Hash::Sha384)), ck::CKK_EC),
        ck::CKM_ECDSA_SHA512 => (Scheme::Ecdsa(Some(Hash::Sha512)), ck::CKK_EC),
        ck::CKM_EDDSA => (Scheme::Eddsa, ck::CKK_EC_EDWARDS),
        _ => return None,
    })
}

/// The padding that a mechanism of RSA names.
pub(super) fn padding_of(mechanism: &Mechanism, oaep_sha2: bool) -> Result<Padding> {
    if mechanism.kind == ck::CKM_RSA_PKCS {
        return Ok(Padding::Pkcs);
    }
    let Params::Struct(params) = &mechanism.params else { return Err(Rv::ARGUMENTS_BAD) };
    let number = |name| match params.field(name) {
        Some(FieldValue::Ulong(n)) => Ok(*n),
        _ => Err(Rv::ARGUMENTS_BAD),
    };
    let hash = digest_of(number("hashAlg")?).ok_or(Rv::ARGUMENTS_BAD)?;
    let mask = match number("mgf")? {
        ck::CKG_MGF1_SHA1 => Hash::Sha1,
        ck::CKG_MGF1_SHA224 => Hash::Sha224,
        ck::CKG_MGF1_SHA256 => Hash::Sha256,
        ck::CKG_MGF1_SHA384 => Hash::Sha384,
        ck::CKG_MGF1_SHA512 => Hash::Sha512,
        _ => return Err(Rv::ARGUMENTS_BAD),
    };
    let label = matches!(params.field("pSourceData"), Some(FieldValue::Bytes(Some(_))));
    let known = number("source")? == ck::CKZ_DATA_SPECIFIED as Ulong && !label && mask == hash;
    if !known || (hash != Hash::Sha1 && !oaep_sha2) {
        return Err(Rv::ARGUMENTS_BAD);
    }
    Ok(Padding::Oaep(hash))
}

/// An initialisation vector.
fn iv_of(mechanism: &Mechanism) -> Result<[u8; BLOCK]> {
    match &mechanism.params {
        Params::Bytes(bytes) => bytes.as_ref().try_into().map_err(|_| Rv::MECHANISM_INVALID),
        Params::None | Params::Struct(_) => Err(Rv::ARGUMENTS_BAD),
    }
}

impl Call<'_> {
    /// Whether the token has the mechanism and the key may be used with it.
    pub(super) fn permits(&self, key: &Object, mechanism: Ulong) -> Result<()> {
        let there = self.profile.mechanism(mechanism).is_some() && key.allows(mechanism);
        if there { Ok(()) } else { Err(Rv::MECHANISM_INVALID) }
    }

    pub(super) fn op_init(
        &mut self,
        session: SessionHandle,
        kind: OpKind,
        mechanism: Option<&Mechanism>,
        key: ObjectHandle,
    ) -> Result<()> {
        let Some(mechanism) = mechanism else {
            let has = self.profile.version_3;
            let session = self.session(session)?;
            match &session.operation {
                Some(operation) if has && operation.is(kind) => session.operation = None,
                _ if has => return Err(Rv::OPERATION_NOT_INITIALIZED),
                _ => return Err(Rv::ARGUMENTS_BAD),
            }
            return Ok(());
        };
        if self.session(session)?.operation.is_some() {
            return Err(Rv::OPERATION_ACTIVE);
        }
        let (operation, wants_login) = match kind {
            OpKind::Digest => {
                let hash =
                    digest_of(mechanism.kind).filter(|_| self.profile.mechanism(mechanism.kind).is_some());
                (Operation::Digest { hash: hash.ok_or(Rv::MECHANISM_INVALID)?, data: Vec::new() }, false)
            }
            OpKind::Encrypt | OpKind::Decrypt => self.begin_crypt(kind == OpKind::Encrypt, mechanism, key)?,
            OpKind::Sign | OpKind::Verify => self.begin_sign(kind == OpKind::Sign, mechanism, key)?,
            OpKind::SignRecover | OpKind::VerifyRecover | OpKind::VerifySignature => {
                return Err(Rv::FUNCTION_NOT_SUPPORTED);
            }
        };
        let session = self.session(session)?;
        session.operation = Some(operation);
        session.wants_login = wants_login;
        Ok(())
    }

    fn begin_crypt(
        &self,
        encrypting: bool,
        mechanism: &Mechanism,
        handle: ObjectHandle,
    ) -> Result<(Operation, bool)> {
        let key = self.key(handle, Rv::OBJECT_HANDLE_INVALID)?;
        if !key.flag(if encrypting { ck::CKA_ENCRYPT } else { ck::CKA_DECRYPT }) {
            return Err(Rv::KEY_FUNCTION_NOT_PERMITTED);
        }
        // SoftHSM does not look at what an RSA key allows when it enciphers.
        let unlimited = encrypting && matches!(mechanism.kind, ck::CKM_RSA_PKCS | ck::CKM_RSA_PKCS_OAEP);
        if !unlimited {
            self.permits(key, mechanism.kind)?;
        }
        let flag = if encrypting { ck::CKF_ENCRYPT } else { ck::CKF_DECRYPT };
        if self.profile.mechanism(mechanism.kind).is_none_or(|info| info.flags & flag == 0) {
            return Err(Rv::MECHANISM_INVALID);
        }
        let iv = match mechanism.kind {
            ck::CKM_AES_ECB => None,
            ck::CKM_AES_CBC | ck::CKM_AES_CBC_PAD if key.key_type() == ck::CKK_AES => Some(iv_of(mechanism)?),
            ck::CKM_AES_CBC | ck::CKM_AES_CBC_PAD => return Err(Rv::KEY_TYPE_INCONSISTENT),
            ck::CKM_RSA_PKCS | ck::CKM_RSA_PKCS_OAEP => {
                if key.key_type() != ck::CKK_RSA {
                    return Err(Rv::KEY_TYPE_INCONSISTENT);
                }
                let padding = padding_of(mechanism, self.profile.oaep_sha2)?;
                let Some(Key::Rsa(rsa)) = Key::of(key) else { return Err(Rv::GENERAL_ERROR) };
                let wants_login = !encrypting && key.flag(ck::CKA_ALWAYS_AUTHENTICATE);
                return Ok((Operation::Rsa { encrypting, key: rsa, padding }, wants_login));
            }
            _ => return Err(Rv::MECHANISM_INVALID),
        };
        if key.key_type() != ck::CKK_AES {
            return Err(Rv::KEY_TYPE_INCONSISTENT);
        }
        let key = Aes::new(key.bytes(ck::CKA_VALUE)).ok_or(Rv::MECHANISM_INVALID)?;
        let chain = Chain { key, iv, encrypting };
        let padding = mechanism.kind == ck::CKM_AES_CBC_PAD;
        Ok((Operation::Cipher(Box::new(Cipher { chain, padding, rest: Vec::new() })), false))
    }

    fn begin_sign(
        &self,
        signing: bool,
        mechanism: &Mechanism,
        handle: ObjectHandle,
    ) -> Result<(Operation, bool)> {
        let key = self.key(handle, Rv::OBJECT_HANDLE_INVALID)?;
        if !key.flag(if signing { ck::CKA_SIGN } else { ck::CKA_VERIFY }) {
            return Err(Rv::KEY_FUNCTION_NOT_PERMITTED);
        }
        self.permits(key, mechanism.kind)?;
        let key_type = key.key_type();
        let (with, parts) = if let Some((hash, own)) = hmac_of(mechanism.kind) {
            if key_type != ck::CKK_GENERIC_SECRET && key_type != own {
                return Err(Rv::KEY_TYPE_INCONSISTENT);
            }
            let value = key.bytes(ck::CKA_VALUE);
            if value.len() < hash.size() {
                return Err(Rv::KEY_SIZE_RANGE);
            }
            (With::Hmac(hash, value.to_vec()), true)
        } else if mechanism.kind == ck::CKM_AES_CMAC {
            if key_type != ck::CKK_AES {
                return Err(Rv::KEY_TYPE_INCONSISTENT);
            }
            let aes = Aes::new(key.bytes(ck::CKA_VALUE)).ok_or(Rv::MECHANISM_INVALID)?;
            (With::Cmac(Box::new(aes)), true)
        } else {
            let (scheme, own) = scheme_of(mechanism.kind).ok_or(Rv::MECHANISM_INVALID)?;
            let class = if signing { ck::CKO_PRIVATE_KEY } else { ck::CKO_PUBLIC_KEY };
            if key_type != own || key.class() != class {
                return Err(Rv::KEY_TYPE_INCONSISTENT);
            }
            let parts = matches!(scheme, Scheme::RsaPkcs(Some(_)) | Scheme::Ecdsa(Some(_)));
            (With::Key(Key::of(key).ok_or(Rv::GENERAL_ERROR)?, scheme), parts)
        };
        let wants_login = signing && key.flag(ck::CKA_ALWAYS_AUTHENTICATE);
        let signing_op = Signing { with, parts, fed: false, data: Vec::new() };
        Ok((if signing { Operation::Sign(signing_op) } else { Operation::Verify(signing_op) }, wants_login))
    }
}
