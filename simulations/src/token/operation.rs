//! Operations that are kept in a session: fed and ended.

use std::collections::VecDeque;

use ha_token::{CombinedKind, ObjectHandle, OpKind, Output, Result, Rv, SessionHandle, Ulong, ck};

use super::aes::{Aes, BLOCK, Chain, pad, unpad};
use super::hash::Hash;
use super::material::{Key, Padding, RsaKey, Scheme};
use super::state::Call;

/// What goes on in a session.
pub(super) enum Operation {
    /// A search: what is still to be told.
    Find(VecDeque<ObjectHandle>),
    Cipher(Box<Cipher>),
    Rsa {
        encrypting: bool,
        key: RsaKey,
        padding: Padding,
    },
    Digest {
        hash: Hash,
        data: Vec<u8>,
    },
    Sign(Signing),
    Verify(Signing),
}

/// Enciphering or deciphering with a block cipher.
pub(super) struct Cipher {
    pub(super) chain: Chain,
    pub(super) padding: bool,
    /// What does not fill a block yet, or is kept back because it may be the padding.
    pub(super) rest: Vec<u8>,
}

/// Signing or verifying.
pub(super) struct Signing {
    pub(super) with: With,
    /// Whether it may be fed in parts.
    pub(super) parts: bool,
    /// Whether it was.
    pub(super) fed: bool,
    pub(super) data: Vec<u8>,
}

/// What signs.
pub(super) enum With {
    Hmac(Hash, Vec<u8>),
    Cmac(Box<Aes>),
    Key(Key, Scheme),
}

impl With {
    fn size(&self) -> usize {
        match self {
            With::Hmac(hash, _) => hash.size(),
            With::Cmac(_) => BLOCK,
            With::Key(key, _) => key.signature_len(),
        }
    }

    fn sign(&self, data: &[u8]) -> Option<Vec<u8>> {
        match self {
            With::Hmac(hash, key) => Some(hash.hmac(key, data)),
            With::Cmac(aes) => Some(aes.cmac(data).to_vec()),
            With::Key(key, scheme) => key.sign(*scheme, data),
        }
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> bool {
        match self {
            With::Key(key, scheme) => key.verify(*scheme, data, signature),
            mac => mac.sign(data).as_deref() == Some(signature),
        }
    }
}

impl Operation {
    /// The flag of its kind.
    pub(super) fn flag(&self) -> Ulong {
        match self {
            Operation::Find(_) => ck::CKF_FIND_OBJECTS,
            Operation::Cipher(cipher) if cipher.chain.encrypting => ck::CKF_ENCRYPT,
            Operation::Rsa { encrypting: true, .. } => ck::CKF_ENCRYPT,
            Operation::Cipher(_) | Operation::Rsa { .. } => ck::CKF_DECRYPT,
            Operation::Digest { .. } => ck::CKF_DIGEST,
            Operation::Sign(_) => ck::CKF_SIGN,
            Operation::Verify(_) => ck::CKF_VERIFY,
        }
    }

    pub(super) fn is(&self, kind: OpKind) -> bool {
        self.flag() == kind.flag() && kind != OpKind::VerifySignature
    }
}

impl Call<'_> {
    /// Takes the operation of a kind out of its session, to be put back if it goes on.
    fn take(&mut self, session: SessionHandle, kind: OpKind) -> Result<(Operation, bool)> {
        let session = self.session(session)?;
        match session.operation.take() {
            Some(operation) if operation.is(kind) => Ok((operation, session.wants_login)),
            other => {
                session.operation = other;
                Err(Rv::OPERATION_NOT_INITIALIZED)
            }
        }
    }

    fn keep(&mut self, session: SessionHandle, operation: Operation) -> Result<()> {
        self.session(session)?.operation = Some(operation);
        Ok(())
    }

    /// Answers with what the operation makes, which ends it; a question for the length, or too little room, does not.
    fn answer(
        &mut self,
        session: SessionHandle,
        operation: Operation,
        size: usize,
        output: &mut Output<'_>,
        make: impl FnOnce(&mut Self, Operation) -> Result<Vec<u8>>,
    ) -> Result<()> {
        if output.capacity().is_none_or(|room| room < size) {
            output.set_len(size);
            let short = !output.is_query();
            self.keep(session, operation)?;
            return if short { Err(Rv::BUFFER_TOO_SMALL) } else { Ok(()) };
        }
        let made = make(self, operation)?;
        output.write(&made)
    }

    pub(super) fn op_one_shot(
        &mut self,
        session: SessionHandle,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        if matches!(kind, OpKind::SignRecover | OpKind::VerifyRecover) {
            self.open(session)?;
            return Err(Rv::FUNCTION_NOT_SUPPORTED);
        }
        let (operation, wants_login) = self.take(session, kind)?;
        match &operation {
            Operation::Digest { hash, .. } => {
                let size = hash.size();
                self.answer(session, operation, size, output, |_, operation| match operation {
                    Operation::Digest { hash, mut data } => {
                        data.extend(input);
                        Ok(hash.digest(&data))
                    }
                    _ => Err(Rv::GENERAL_ERROR),
                })
            }
            Operation::Sign(signing) => {
                if signing.fed {
                    return Err(Rv::OPERATION_NOT_INITIALIZED);
                }
                if wants_login {
                    return Err(Rv::USER_NOT_LOGGED_IN);
                }
                let size = signing.with.size();
                self.answer(session, operation, size, output, |_, operation| match operation {
                    Operation::Sign(signing) => signing.with.sign(input).ok_or(Rv::GENERAL_ERROR),
                    _ => Err(Rv::GENERAL_ERROR),
                })
            }
            Operation::Rsa { key, .. } => {
                if wants_login {
                    return Err(Rv::USER_NOT_LOGGED_IN);
                }
                let size = key.size();
                self.answer(session, operation, size, output, |call, operation| match operation {
                    Operation::Rsa { encrypting: true, key, padding } => {
                        key.encrypt(padding, input, &mut call.store.random).ok_or(Rv::GENERAL_ERROR)
                    }
                    Operation::Rsa { key, padding, .. } => {
                        key.decrypt(padding, input).ok_or(Rv::GENERAL_ERROR)
                    }
                    _ => Err(Rv::GENERAL_ERROR),
                })
            }
            Operation::Cipher(cipher) => {
                let whole = input.len().is_multiple_of(BLOCK);
                let size = match (cipher.chain.encrypting, cipher.padding) {
                    (true, true) => (input.len() / BLOCK + 1) * BLOCK,
                    (true, false) if !whole => return Err(Rv::DATA_LEN_RANGE),
                    (false, _) if !whole => return Err(Rv::ENCRYPTED_DATA_LEN_RANGE),
                    _ => input.len(),
                };
                self.answer(session, operation, size, output, |_, operation| match operation {
                    Operation::Cipher(mut cipher) => {
                        let mut made = cipher.feed(input);
                        made.extend(cipher.finish()?);
                        Ok(made)
                    }
                    _ => Err(Rv::GENERAL_ERROR),
                })
            }
            Operation::Find(_) | Operation::Verify(_) => Err(Rv::OPERATION_NOT_INITIALIZED),
        }
    }

    pub(super) fn op_update(
        &mut self,
        session: SessionHandle,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        let (mut operation, wants_login) = self.take(session, kind)?;
        match &mut operation {
            Operation::Digest { data, .. } => data.extend(input),
            Operation::Sign(signing) | Operation::Verify(signing) => {
                if !signing.parts {
                    return Err(Rv::OPERATION_NOT_INITIALIZED);
                }
                if wants_login {
                    return Err(Rv::USER_NOT_LOGGED_IN);
                }
                signing.data.extend(input);
                signing.fed = true;
            }
            Operation::Cipher(cipher) => {
                let size = cipher.will_make(input.len());
                if output.capacity().is_none_or(|room| room < size) {
                    output.set_len(size);
                    let short = !output.is_query();
                    self.keep(session, operation)?;
                    return if short { Err(Rv::BUFFER_TOO_SMALL) } else { Ok(()) };
                }
                let made = cipher.feed(input);
                self.keep(session, operation)?;
                return output.write(&made);
            }
            Operation::Rsa { .. } => {
                self.keep(session, operation)?;
                return Err(Rv::FUNCTION_NOT_SUPPORTED);
            }
            Operation::Find(_) => {}
        }
        self.keep(session, operation)
    }

    pub(super) fn op_final(
        &mut self,
        session: SessionHandle,
        kind: OpKind,
        output: &mut Output<'_>,
    ) -> Result<()> {
        let (operation, wants_login) = self.take(session, kind)?;
        match &operation {
            Operation::Digest { hash, .. } => {
                let size = hash.size();
                self.answer(session, operation, size, output, |_, operation| match operation {
                    Operation::Digest { hash, data } => Ok(hash.digest(&data)),
                    _ => Err(Rv::GENERAL_ERROR),
                })
            }
            Operation::Sign(signing) if !signing.parts => {
                self.keep(session, operation)?;
                Err(Rv::OPERATION_NOT_INITIALIZED)
            }
            Operation::Sign(signing) => {
                if wants_login {
                    return Err(Rv::USER_NOT_LOGGED_IN);
                }
                let size = signing.with.size();
                self.answer(session, operation, size, output, |_, operation| match operation {
                    Operation::Sign(signing) => signing.with.sign(&signing.data).ok_or(Rv::GENERAL_ERROR),
                    _ => Err(Rv::GENERAL_ERROR),
                })
            }
            Operation::Cipher(cipher) => {
                let size = cipher.will_finish()?;
                self.answer(session, operation, size, output, |_, operation| match operation {
                    Operation::Cipher(mut cipher) => cipher.finish(),
                    _ => Err(Rv::GENERAL_ERROR),
                })
            }
            Operation::Rsa { .. } => {
                self.keep(session, operation)?;
                Err(Rv::FUNCTION_NOT_SUPPORTED)
            }
            Operation::Find(_) | Operation::Verify(_) => Err(Rv::OPERATION_NOT_INITIALIZED),
        }
    }

    /// Compares a signature; `data` is what was fed, where there is none.
    pub(super) fn verify(
        &mut self,
        session: SessionHandle,
        data: Option<&[u8]>,
        signature: &[u8],
    ) -> Result<()> {
        let (operation, _) = self.take(session, OpKind::Verify)?;
        let Operation::Verify(signing) = operation else { return Err(Rv::OPERATION_NOT_INITIALIZED) };
        match data {
            Some(_) if signing.fed => return Err(Rv::OPERATION_NOT_INITIALIZED),
            None if !signing.parts => {
                self.keep(session, Operation::Verify(signing))?;
                return Err(Rv::OPERATION_NOT_INITIALIZED);
            }
            _ => {}
        }
        if signature.len() != signing.with.size() {
            return Err(Rv::SIGNATURE_LEN_RANGE);
        }
        let right = signing.with.verify(data.unwrap_or(&signing.data), signature);
        if right { Ok(()) } else { Err(Rv::SIGNATURE_INVALID) }
    }

    pub(super) fn digest_key(&mut self, session: SessionHandle, key: ObjectHandle) -> Result<()> {
        if !self.profile.digests_keys {
            return Err(Rv::FUNCTION_NOT_SUPPORTED);
        }
        if !matches!(self.session(session)?.operation, Some(Operation::Digest { .. })) {
            return Err(Rv::OPERATION_NOT_INITIALIZED);
        }
        let (_, object) = self.object(key).ok_or(Rv::KEY_HANDLE_INVALID)?;
        self.may_read(object.is_private()).map_err(|_| Rv::GENERAL_ERROR)?;
        let value = object.get(ck::CKA_VALUE).ok_or(Rv::KEY_INDIGESTIBLE)?.as_bytes().unwrap_or(&[]).to_vec();
        if let Some(Operation::Digest { data, .. }) = &mut self.session(session)?.operation {
            data.extend(value);
        }
        Ok(())
    }

    pub(super) fn combined_update(&self, session: SessionHandle, _: CombinedKind) -> Result<()> {
        self.open(session)?;
        Err(Rv::FUNCTION_NOT_SUPPORTED)
    }
}

impl Cipher {
    /// How many bytes of what is there by then come out.
    fn whole(&self, there: usize) -> usize {
        // The last block may be the padding.
        let kept = usize::from(self.padding && !self.chain.encrypting);
        there.saturating_sub(kept) / BLOCK * BLOCK
    }

    fn will_make(&self, input: usize) -> usize {
        self.whole(self.rest.len() + input)
    }

    fn feed(&mut self, input: &[u8]) -> Vec<u8> {
        self.rest.extend(input);
        let rest = self.rest.split_off(self.whole(self.rest.len()));
        let now = std::mem::replace(&mut self.rest, rest);
        self.chain.run(&now)
    }

    /// How many bytes may come at the end.
    fn will_finish(&self) -> Result<usize> {
        let left = self.rest.len();
        match (self.chain.encrypting, self.padding) {
            (true, true) => Ok((left / BLOCK + 1) * BLOCK),
            (true, false) if !left.is_multiple_of(BLOCK) => Err(Rv::DATA_LEN_RANGE),
            (false, _) if !left.is_multiple_of(BLOCK) => Err(Rv::ENCRYPTED_DATA_LEN_RANGE),
            (false, true) => Ok(left.saturating_sub(1)),
            _ => Ok(left),
        }
    }

    fn finish(&mut self) -> Result<Vec<u8>> {
        let rest = std::mem::take(&mut self.rest);
        match (self.chain.encrypting, self.padding) {
            (true, true) => Ok(self.chain.run(&pad(&rest))),
            (false, true) => {
                let open = self.chain.run(&rest);
                unpad(&open).map(<[u8]>::to_vec).ok_or(Rv::GENERAL_ERROR)
            }
            _ => Ok(self.chain.run(&rest)),
        }
    }
}
