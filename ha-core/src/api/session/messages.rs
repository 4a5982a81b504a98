//! Message-based encryption and decryption (3.0): one initialisation, many messages, each with its own parameter.

use cryptoki::context::Function;
use cryptoki::error::Result;
use cryptoki::mechanism::{Mechanism, MessageParam};
use cryptoki::object::ObjectHandle;
use ha_token::{MessageKind, Params};

use super::super::convert::{self, OrError, from_handle};
use super::Session;

impl Session {
    /// Prepares the session for encrypting messages.
    ///
    /// # Errors
    /// As `C_MessageEncryptInit`.
    pub fn message_encrypt_init(&self, mechanism: &Mechanism, key: ObjectHandle) -> Result<()> {
        self.message_init(MessageKind::Encrypt, Function::MessageEncryptInit, mechanism, key)
    }

    /// Encrypts one message. What the token makes (IV, tag) is in `param`'s buffers afterwards.
    ///
    /// # Errors
    /// As `C_EncryptMessage`.
    pub fn encrypt_message(&self, param: &MessageParam, aad: &[u8], data: &[u8]) -> Result<Vec<u8>> {
        self.message(MessageKind::Encrypt, Function::EncryptMessage, param, aad, data)
    }

    /// Begins to encrypt a message in parts.
    ///
    /// # Errors
    /// As `C_EncryptMessageBegin`.
    pub fn encrypt_message_begin(&self, param: MessageParam, aad: &[u8]) -> Result<()> {
        self.message_begin(MessageKind::Encrypt, Function::EncryptMessageBegin, &param, aad)
    }

    /// Encrypts the next part of a message, the last one if `end`.
    ///
    /// # Errors
    /// As `C_EncryptMessageNext`.
    pub fn encrypt_message_next(&self, param: MessageParam, data: &[u8], end: bool) -> Result<Vec<u8>> {
        self.message_next(MessageKind::Encrypt, Function::EncryptMessageNext, &param, data, end)
    }

    /// Ends the encrypting of messages.
    ///
    /// # Errors
    /// As `C_MessageEncryptFinal`.
    pub fn message_encrypt_final(&self) -> Result<()> {
        self.message_final(MessageKind::Encrypt, Function::MessageEncryptFinal)
    }

    /// Prepares the session for decrypting messages.
    ///
    /// # Errors
    /// As `C_MessageDecryptInit`.
    pub fn message_decrypt_init(&self, mechanism: &Mechanism, key: ObjectHandle) -> Result<()> {
        self.message_init(MessageKind::Decrypt, Function::MessageDecryptInit, mechanism, key)
    }

    /// Decrypts one message.
    ///
    /// # Errors
    /// As `C_DecryptMessage`.
    pub fn decrypt_message(
        &self,
        param: &MessageParam,
        aad: &[u8],
        encrypted_data: &[u8],
    ) -> Result<Vec<u8>> {
        self.message(MessageKind::Decrypt, Function::DecryptMessage, param, aad, encrypted_data)
    }

    /// Begins to decrypt a message in parts.
    ///
    /// # Errors
    /// As `C_DecryptMessageBegin`.
    pub fn decrypt_message_begin(&self, param: MessageParam, aad: &[u8]) -> Result<()> {
        self.message_begin(MessageKind::Decrypt, Function::DecryptMessageBegin, &param, aad)
    }

    /// Decrypts the next part of a message, the last one if `end`.
    ///
    /// # Errors
    /// As `C_DecryptMessageNext`.
    pub fn decrypt_message_next(
        &self,
        param: MessageParam,
        encrypted_data: &[u8],
        end: bool,
    ) -> Result<Vec<u8>> {
        self.message_next(MessageKind::Decrypt, Function::DecryptMessageNext, &param, encrypted_data, end)
    }

    /// Ends the decrypting of messages.
    ///
    /// # Errors
    /// As `C_MessageDecryptFinal`.
    pub fn message_decrypt_final(&self) -> Result<()> {
        self.message_final(MessageKind::Decrypt, Function::MessageDecryptFinal)
    }

    fn message_init(
        &self,
        kind: MessageKind,
        function: Function,
        mechanism: &Mechanism,
        key: ObjectHandle,
    ) -> Result<()> {
        self.with_mechanism(mechanism, function, |session, m| {
            session.raw(|token, s| token.message_init(s, kind, Some(m), from_handle(key))).or_error(function)
        })
    }

    fn message(
        &self,
        kind: MessageKind,
        function: Function,
        param: &MessageParam,
        aad: &[u8],
        input: &[u8],
    ) -> Result<Vec<u8>> {
        self.with_param(param, function, |session, params| {
            convert::collect(input.len(), |output| {
                session.raw(|token, s| token.message_one_shot(s, kind, params, aad, input, output))
            })
        })
    }

    fn message_begin(
        &self,
        kind: MessageKind,
        function: Function,
        param: &MessageParam,
        aad: &[u8],
    ) -> Result<()> {
        self.with_param(param, function, |session, params| {
            session.raw(|token, s| token.message_begin(s, kind, params, aad))
        })
    }

    fn message_next(
        &self,
        kind: MessageKind,
        function: Function,
        param: &MessageParam,
        input: &[u8],
        end: bool,
    ) -> Result<Vec<u8>> {
        self.with_param(param, function, |session, params| {
            convert::collect(input.len(), |output| {
                session.raw(|token, s| token.message_next(s, kind, params, input, end, output))
            })
        })
    }

    fn message_final(&self, kind: MessageKind, function: Function) -> Result<()> {
        self.call(function, |token, session| token.message_final(session, kind))
    }

    /// Runs `call` with a copy of `param`, and hands back what the token wrote into it.
    fn with_param<T>(
        &self,
        param: &MessageParam,
        function: Function,
        call: impl FnOnce(&Self, &mut Params) -> ha_token::Result<T>,
    ) -> Result<T> {
        let mechanism = convert::message_mechanism(param);
        self.with_mechanism(&mechanism, function, |session, ours| {
            call(session, &mut ours.params).or_error(function)
        })
    }
}
