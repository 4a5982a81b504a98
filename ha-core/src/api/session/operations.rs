//! Encryption, decryption, digests, signatures and their verification, in one call or in parts.

use cryptoki::context::Function;
use cryptoki::error::Result;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::ObjectHandle;
use ha_token::{OpKind, Output};

use super::super::convert::{self, OrError, from_handle};
use super::Session;

impl Session {
    /// Encrypts `data`.
    ///
    /// # Errors
    /// As `C_EncryptInit` and `C_Encrypt`.
    pub fn encrypt(&self, mechanism: &Mechanism, key: ObjectHandle, data: &[u8]) -> Result<Vec<u8>> {
        self.encrypt_init(mechanism, key)?;
        self.one_shot(OpKind::Encrypt, Function::Encrypt, data)
    }

    /// Starts an encryption in parts.
    ///
    /// # Errors
    /// As `C_EncryptInit`.
    pub fn encrypt_init(&self, mechanism: &Mechanism, key: ObjectHandle) -> Result<()> {
        self.init(OpKind::Encrypt, Function::EncryptInit, mechanism, from_handle(key))
    }

    /// Encrypts the next part; what comes out may lag behind what went in.
    ///
    /// # Errors
    /// As `C_EncryptUpdate`.
    pub fn encrypt_update(&self, data: &[u8]) -> Result<Vec<u8>> {
        self.update(OpKind::Encrypt, Function::EncryptUpdate, data)
    }

    /// Ends an encryption in parts: the rest of the output.
    ///
    /// # Errors
    /// As `C_EncryptFinal`.
    pub fn encrypt_final(&self) -> Result<Vec<u8>> {
        self.last(OpKind::Encrypt, Function::EncryptFinal)
    }

    /// Decrypts `encrypted_data`.
    ///
    /// # Errors
    /// As `C_DecryptInit` and `C_Decrypt`.
    pub fn decrypt(
        &self,
        mechanism: &Mechanism,
        key: ObjectHandle,
        encrypted_data: &[u8],
    ) -> Result<Vec<u8>> {
        self.decrypt_init(mechanism, key)?;
        self.one_shot(OpKind::Decrypt, Function::Decrypt, encrypted_data)
    }

    /// Starts a decryption in parts.
    ///
    /// # Errors
    /// As `C_DecryptInit`.
    pub fn decrypt_init(&self, mechanism: &Mechanism, key: ObjectHandle) -> Result<()> {
        self.init(OpKind::Decrypt, Function::DecryptInit, mechanism, from_handle(key))
    }

    /// Decrypts the next part; what comes out may lag behind what went in.
    ///
    /// # Errors
    /// As `C_DecryptUpdate`.
    pub fn decrypt_update(&self, encrypted_data: &[u8]) -> Result<Vec<u8>> {
        self.update(OpKind::Decrypt, Function::DecryptUpdate, encrypted_data)
    }

    /// Ends a decryption in parts: the rest of the output.
    ///
    /// # Errors
    /// As `C_DecryptFinal`.
    pub fn decrypt_final(&self) -> Result<Vec<u8>> {
        self.last(OpKind::Decrypt, Function::DecryptFinal)
    }

    /// The digest of `data`.
    ///
    /// # Errors
    /// As `C_DigestInit` and `C_Digest`.
    pub fn digest(&self, m: &Mechanism, data: &[u8]) -> Result<Vec<u8>> {
        self.digest_init(m)?;
        self.one_shot(OpKind::Digest, Function::Digest, data)
    }

    /// Starts a digest in parts.
    ///
    /// # Errors
    /// As `C_DigestInit`.
    pub fn digest_init(&self, m: &Mechanism) -> Result<()> {
        self.init(OpKind::Digest, Function::DigestInit, m, ha_token::ObjectHandle(0))
    }

    /// Digests the next part.
    ///
    /// # Errors
    /// As `C_DigestUpdate`.
    pub fn digest_update(&self, data: &[u8]) -> Result<()> {
        self.feed(OpKind::Digest, Function::DigestUpdate, data)
    }

    /// Digests the value of a secret key as the next part.
    ///
    /// # Errors
    /// As `C_DigestKey`.
    pub fn digest_key(&self, key: ObjectHandle) -> Result<()> {
        self.call(Function::DigestKey, |token, session| token.digest_key(session, from_handle(key)))
    }

    /// Ends a digest in parts.
    ///
    /// # Errors
    /// As `C_DigestFinal`.
    pub fn digest_final(&self) -> Result<Vec<u8>> {
        self.last(OpKind::Digest, Function::DigestFinal)
    }

    /// The signature, or MAC, of `data`.
    ///
    /// # Errors
    /// As `C_SignInit` and `C_Sign`.
    pub fn sign(&self, mechanism: &Mechanism, key: ObjectHandle, data: &[u8]) -> Result<Vec<u8>> {
        self.sign_init(mechanism, key)?;
        self.one_shot(OpKind::Sign, Function::Sign, data)
    }

    /// Starts a signature in parts.
    ///
    /// # Errors
    /// As `C_SignInit`.
    pub fn sign_init(&self, mechanism: &Mechanism, key: ObjectHandle) -> Result<()> {
        self.init(OpKind::Sign, Function::SignInit, mechanism, from_handle(key))
    }

    /// Signs the next part.
    ///
    /// # Errors
    /// As `C_SignUpdate`.
    pub fn sign_update(&self, data: &[u8]) -> Result<()> {
        self.feed(OpKind::Sign, Function::SignUpdate, data)
    }

    /// Ends a signature in parts.
    ///
    /// # Errors
    /// As `C_SignFinal`.
    pub fn sign_final(&self) -> Result<Vec<u8>> {
        self.last(OpKind::Sign, Function::SignFinal)
    }

    /// `Ok` only if `signature` is `key`'s of `data`.
    ///
    /// # Errors
    /// `CKR_SIGNATURE_INVALID`, `CKR_SIGNATURE_LEN_RANGE`, and as `C_VerifyInit`.
    pub fn verify(
        &self,
        mechanism: &Mechanism,
        key: ObjectHandle,
        data: &[u8],
        signature: &[u8],
    ) -> Result<()> {
        self.verify_init(mechanism, key)?;
        self.call(Function::Verify, |token, session| token.verify(session, data, signature))
    }

    /// Starts a verification in parts.
    ///
    /// # Errors
    /// As `C_VerifyInit`.
    pub fn verify_init(&self, mechanism: &Mechanism, key: ObjectHandle) -> Result<()> {
        self.init(OpKind::Verify, Function::VerifyInit, mechanism, from_handle(key))
    }

    /// Verifies the next part.
    ///
    /// # Errors
    /// As `C_VerifyUpdate`.
    pub fn verify_update(&self, data: &[u8]) -> Result<()> {
        self.feed(OpKind::Verify, Function::VerifyUpdate, data)
    }

    /// Ends a verification in parts: `Ok` only if `signature` is right.
    ///
    /// # Errors
    /// As [`Session::verify`].
    pub fn verify_final(&self, signature: &[u8]) -> Result<()> {
        self.call(Function::VerifyFinal, |token, session| token.verify_final(session, signature))
    }

    /// Starts a verification of a signature that is given first (3.2).
    ///
    /// # Errors
    /// As `C_VerifySignatureInit`.
    pub fn verify_signature_init(
        &self,
        mechanism: &Mechanism,
        key: ObjectHandle,
        signature: &[u8],
    ) -> Result<()> {
        let function = Function::VerifySignatureInit;
        self.with_mechanism(mechanism, function, |session, m| {
            session
                .raw(|token, s| token.verify_signature_init(s, Some(m), from_handle(key), signature))
                .or_error(function)
        })
    }

    /// `Ok` only if the signature given first is that of `data` (3.2).
    ///
    /// # Errors
    /// As [`Session::verify`].
    pub fn verify_signature(&self, data: &[u8]) -> Result<()> {
        self.call(Function::VerifySignature, |token, session| token.verify_signature(session, data))
    }

    /// Verifies the next part (3.2).
    ///
    /// # Errors
    /// As `C_VerifySignatureUpdate`.
    pub fn verify_signature_update(&self, data: &[u8]) -> Result<()> {
        self.feed(OpKind::VerifySignature, Function::VerifySignatureUpdate, data)
    }

    /// Ends a verification of the signature given first: `Ok` only if it is right (3.2).
    ///
    /// # Errors
    /// As [`Session::verify`].
    pub fn verify_signature_final(&self) -> Result<()> {
        self.call(Function::VerifySignatureFinal, |token, session| token.verify_signature_final(session))
    }

    /// Runs `call` with a copy of `mechanism`, and hands back what the token wrote into its parameter.
    pub(super) fn with_mechanism<T>(
        &self,
        mechanism: &Mechanism,
        function: Function,
        call: impl FnOnce(&Self, &mut ha_token::Mechanism) -> Result<T>,
    ) -> Result<T> {
        let mut ours = convert::mechanism(mechanism, function)?;
        let answer = call(self, &mut ours)?;
        ha_abi::write_back_cryptoki_mechanism(mechanism, &ours);
        Ok(answer)
    }

    fn init(
        &self,
        kind: OpKind,
        function: Function,
        mechanism: &Mechanism,
        key: ha_token::ObjectHandle,
    ) -> Result<()> {
        self.with_mechanism(mechanism, function, |session, m| {
            session.raw(|token, s| token.op_init(s, kind, Some(m), key)).or_error(function)
        })
    }

    fn one_shot(&self, kind: OpKind, function: Function, data: &[u8]) -> Result<Vec<u8>> {
        convert::collect(data.len(), |output| self.raw(|token, s| token.op_one_shot(s, kind, data, output)))
            .or_error(function)
    }

    fn update(&self, kind: OpKind, function: Function, data: &[u8]) -> Result<Vec<u8>> {
        convert::collect(data.len(), |output| self.raw(|token, s| token.op_update(s, kind, data, output)))
            .or_error(function)
    }

    /// An update without output.
    fn feed(&self, kind: OpKind, function: Function, data: &[u8]) -> Result<()> {
        self.call(function, |token, session| token.op_update(session, kind, data, &mut Output::query()))
    }

    fn last(&self, kind: OpKind, function: Function) -> Result<Vec<u8>> {
        convert::collect(0, |output| self.raw(|token, s| token.op_final(s, kind, output))).or_error(function)
    }
}
