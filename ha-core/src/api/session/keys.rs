//! Keys: generation, derivation, wrapping, encapsulation.

use cryptoki::context::Function;
use cryptoki::error::{Error, Result, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};

use super::super::convert::{self, OrError, from_handle, to_handle};
use super::Session;

impl Session {
    /// Makes a secret key, or a set of domain parameters.
    ///
    /// # Errors
    /// As `C_GenerateKey`.
    pub fn generate_key(&self, mechanism: &Mechanism, template: &[Attribute]) -> Result<ObjectHandle> {
        let function = Function::GenerateKey;
        let template = convert::template(template);
        self.with_mechanism(mechanism, function, |session, m| {
            session.raw(|token, s| token.generate_key(s, m, &template)).or_error(function)
        })
        .map(to_handle)
    }

    /// Makes a key pair: public, then private.
    ///
    /// # Errors
    /// As `C_GenerateKeyPair`.
    pub fn generate_key_pair(
        &self,
        mechanism: &Mechanism,
        pub_key_template: &[Attribute],
        priv_key_template: &[Attribute],
    ) -> Result<(ObjectHandle, ObjectHandle)> {
        let function = Function::GenerateKeyPair;
        let (public, private) = (convert::template(pub_key_template), convert::template(priv_key_template));
        let pair = self.with_mechanism(mechanism, function, |session, m| {
            session.raw(|token, s| token.generate_key_pair(s, m, &public, &private)).or_error(function)
        })?;
        Ok((to_handle(pair.0), to_handle(pair.1)))
    }

    /// Derives a key from `base_key`.
    ///
    /// # Errors
    /// As `C_DeriveKey`.
    pub fn derive_key(
        &self,
        mechanism: &Mechanism,
        base_key: ObjectHandle,
        template: &[Attribute],
    ) -> Result<ObjectHandle> {
        let function = Function::DeriveKey;
        let template = convert::template(template);
        let made = self.with_mechanism(mechanism, function, |session, m| {
            session
                .raw(|token, s| token.derive_key(s, m, from_handle(base_key), &template, true))
                .or_error(function)
        })?;
        made.map(to_handle).ok_or(Error::Pkcs11(RvError::GeneralError, function))
    }

    /// `key`, wrapped under `wrapping_key`.
    ///
    /// # Errors
    /// As `C_WrapKey`.
    pub fn wrap_key(
        &self,
        mechanism: &Mechanism,
        wrapping_key: ObjectHandle,
        key: ObjectHandle,
    ) -> Result<Vec<u8>> {
        let function = Function::WrapKey;
        let (wrapping, key) = (from_handle(wrapping_key), from_handle(key));
        self.with_mechanism(mechanism, function, |session, m| {
            convert::collect(0, |output| session.raw(|token, s| token.wrap_key(s, m, wrapping, key, output)))
                .or_error(function)
        })
    }

    /// The key that is wrapped in `wrapped_key`.
    ///
    /// # Errors
    /// As `C_UnwrapKey`.
    pub fn unwrap_key(
        &self,
        mechanism: &Mechanism,
        unwrapping_key: ObjectHandle,
        wrapped_key: &[u8],
        template: &[Attribute],
    ) -> Result<ObjectHandle> {
        let function = Function::UnwrapKey;
        let template = convert::template(template);
        self.with_mechanism(mechanism, function, |session, m| {
            session
                .raw(|token, s| token.unwrap_key(s, m, from_handle(unwrapping_key), wrapped_key, &template))
                .or_error(function)
        })
        .map(to_handle)
    }

    /// A fresh secret for the owner of `publickey`: the ciphertext, and the secret key here.
    ///
    /// # Errors
    /// As `C_EncapsulateKey` (3.2).
    pub fn encapsulate_key(
        &self,
        mechanism: &Mechanism,
        publickey: ObjectHandle,
        template: &[Attribute],
    ) -> Result<(Vec<u8>, ObjectHandle)> {
        let function = Function::EncapsulateKey;
        let template = convert::template(template);
        let mut made = None;
        let ciphertext = self.with_mechanism(mechanism, function, |session, m| {
            convert::collect(0, |output| {
                made = session
                    .raw(|token, s| token.encapsulate_key(s, m, from_handle(publickey), &template, output))?;
                Ok(())
            })
            .or_error(function)
        })?;
        let key = made.ok_or(Error::Pkcs11(RvError::GeneralError, function))?;
        Ok((ciphertext, to_handle(key)))
    }

    /// The secret that `ciphertext` carries to the owner of `privatekey`.
    ///
    /// # Errors
    /// As `C_DecapsulateKey` (3.2).
    pub fn decapsulate_key(
        &self,
        mechanism: &Mechanism,
        privatekey: ObjectHandle,
        template: &[Attribute],
        ciphertext: &[u8],
    ) -> Result<ObjectHandle> {
        let function = Function::DecapsulateKey;
        let template = convert::template(template);
        self.with_mechanism(mechanism, function, |session, m| {
            session
                .raw(|token, s| token.decapsulate_key(s, m, from_handle(privatekey), &template, ciphertext))
                .or_error(function)
        })
        .map(to_handle)
    }
}
