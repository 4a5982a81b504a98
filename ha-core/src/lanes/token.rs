//! Each of a token's calls, made on a lane.

use ha_member::Secret;
use ha_token::{
    AttributeType, CombinedKind, Fetched, Function, Mechanism, MechanismInfo, MessageKind, ObjectHandle,
    OpKind, Output, Params, Result, SessionHandle, SessionInfo, SlotInfo, Template, Token, TokenInfo, Ulong,
    UserType,
};
use zeroize::Zeroizing;

use super::late::{Made, is_lasting, take_back};
use super::owned::{Filled, Space, copy, copy_pin};
use super::{Asked, Lanes};
use crate::mutants::wrong;

impl Lanes {
    /// A call with a mechanism, into which the token may write.
    fn start<T: Send + 'static>(
        &self,
        function: Function,
        session: SessionHandle,
        mechanism: Option<&mut Mechanism>,
        go: impl FnOnce(&dyn Token, Option<&mut Mechanism>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut own = mechanism.as_deref().cloned();
        let asked = self.begins(function, session, own.as_ref().is_some_and(Mechanism::is_opaque));
        let with_own = move |token: &dyn Token| {
            let answer = go(token, own.as_mut());
            Ok((answer, own))
        };
        let (answer, own) = self.call(asked, with_own, |_, _, _| {})?;
        if let (Some(mechanism), Some(own)) = (mechanism, own) {
            *mechanism = own;
        }
        answer
    }

    /// A call that makes objects from a mechanism; `lasting`: which of them outlive the session.
    fn make<T: Made + Send + 'static>(
        &self,
        function: Function,
        session: SessionHandle,
        (mechanism, lasting): (&mut Mechanism, [bool; 2]),
        go: impl FnOnce(&dyn Token, &mut Mechanism) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut own = mechanism.clone();
        let go = move |token: &dyn Token| {
            let answer = go(token, &mut own);
            Ok((answer, own))
        };
        let asked = Asked { here: mechanism.is_opaque(), ..Asked::new(function, Some(session)) };
        let (answer, own) = self.call(asked, go, move |token, (answer, _), given_up| {
            if let Ok(made) = answer {
                take_back(token, session, &made, lasting, given_up);
            }
        })?;
        *mechanism = own;
        answer
    }

    /// A call that makes an object without a mechanism.
    fn make_plainly(
        &self,
        function: Function,
        session: SessionHandle,
        lasting: bool,
        go: impl FnOnce(&dyn Token) -> Result<ObjectHandle> + Send + 'static,
    ) -> Result<ObjectHandle> {
        let lasting = [lasting; 2];
        self.call(Asked::new(function, Some(session)), go, move |token, made, given_up| {
            take_back(token, session, &made, lasting, given_up);
        })
    }

    /// A call of an operation that was begun by another function.
    fn proceed<T: Send + 'static>(
        &self,
        function: Function,
        session: SessionHandle,
        begun_by: Function,
        go: impl FnOnce(&dyn Token) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.call(self.goes_on(function, session, &[begun_by]), go, |_, _, _| {})
    }

    /// A call with a PIN, which is typed at the token where it is `by_hand`.
    fn with_pin(
        &self,
        function: Function,
        session: Option<SessionHandle>,
        by_hand: bool,
        go: impl FnOnce(&dyn Token) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        self.call(Asked { by_hand, ..Asked::new(function, session) }, go, |_, _, _| {})
    }

    /// A call of an operation, with output.
    fn put_out(
        &self,
        asked: Asked,
        input: usize,
        output: &mut Output<'_>,
        go: impl FnMut(&dyn Token, &mut Output<'_>) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (space, mut go) = (Space::like(output, input), go);
        self.call(asked, move |token| Ok(space.fill(|out| go(token, out))), |_, _, _| {})?.give(output)
    }

    /// A call of a message, into whose parameter the token may write.
    fn message<T: Send + 'static>(
        &self,
        asked: Asked,
        params: &mut Params,
        go: impl FnOnce(&dyn Token, &mut Params) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut own = params.clone();
        let go = move |token: &dyn Token| {
            let answer = go(token, &mut own);
            Ok((answer, own))
        };
        let (answer, own) = self.call(asked, go, |_, _, _| {})?;
        *params = own;
        answer
    }
}

/// What a copied PIN is lent as.
fn lent(pin: &Option<Secret>) -> Option<&[u8]> {
    pin.as_deref()
}

impl Token for Lanes {
    fn slot_info(&self) -> Result<SlotInfo> {
        self.look(Function::GetSlotInfo, |token| token.slot_info())
    }

    fn token_info(&self) -> Result<TokenInfo> {
        self.look(Function::GetTokenInfo, |token| token.token_info())
    }

    fn mechanism_list(&self) -> Result<Vec<Ulong>> {
        self.look(Function::GetMechanismList, |token| token.mechanism_list())
    }

    fn mechanism_info(&self, mechanism: Ulong) -> Result<MechanismInfo> {
        self.look(Function::GetMechanismInfo, move |token| token.mechanism_info(mechanism))
    }

    fn init_token(&self, pin: Option<&[u8]>, label: &str) -> Result<()> {
        let (by_hand, pin, label) = (pin.is_none(), copy_pin(pin), label.to_owned());
        self.with_pin(Function::InitToken, None, by_hand, move |token| token.init_token(lent(&pin), &label))
    }

    fn init_pin(&self, session: SessionHandle, pin: Option<&[u8]>) -> Result<()> {
        let (by_hand, pin) = (pin.is_none(), copy_pin(pin));
        self.with_pin(Function::InitPin, Some(session), by_hand, move |token| {
            token.init_pin(session, lent(&pin))
        })
    }

    fn set_pin(&self, session: SessionHandle, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<()> {
        let by_hand = old.is_none() || new.is_none();
        let (old, new) = (copy_pin(old), copy_pin(new));
        self.with_pin(Function::SetPin, Some(session), by_hand, move |token| {
            token.set_pin(session, lent(&old), lent(&new))
        })
    }

    fn open_session(&self, read_write: bool) -> Result<SessionHandle> {
        self.call(
            Asked::new(Function::OpenSession, None),
            move |token| token.open_session(read_write),
            |token, session, _| {
                if !wrong!(LateSessionKept) {
                    _ = token.close_session(session);
                }
            },
        )
    }

    fn close_session(&self, session: SessionHandle) -> Result<()> {
        self.close(session)
    }

    fn close_all_sessions(&self) -> Result<()> {
        self.look(Function::CloseAllSessions, |token| token.close_all_sessions())
    }

    fn session_info(&self, session: SessionHandle) -> Result<SessionInfo> {
        self.within(Function::GetSessionInfo, session, move |token| token.session_info(session))
    }

    fn session_cancel(&self, session: SessionHandle, flags: Ulong) -> Result<()> {
        self.within(Function::SessionCancel, session, move |token| token.session_cancel(session, flags))
    }

    fn session_validation_flags(&self, session: SessionHandle, kind: Ulong) -> Result<Ulong> {
        self.within(Function::GetSessionValidationFlags, session, move |token| {
            token.session_validation_flags(session, kind)
        })
    }

    fn login(&self, session: SessionHandle, user: UserType, pin: Option<&[u8]>) -> Result<()> {
        let (by_hand, pin) = (pin.is_none(), copy_pin(pin));
        self.with_pin(Function::Login, Some(session), by_hand, move |token| {
            token.login(session, user, lent(&pin))
        })
    }

    fn login_user(
        &self,
        session: SessionHandle,
        user: UserType,
        pin: Option<&[u8]>,
        name: &[u8],
    ) -> Result<()> {
        let (by_hand, pin, name) = (pin.is_none(), copy_pin(pin), name.to_vec());
        self.with_pin(Function::LoginUser, Some(session), by_hand, move |token| {
            token.login_user(session, user, lent(&pin), &name)
        })
    }

    fn logout(&self, session: SessionHandle) -> Result<()> {
        self.within(Function::Logout, session, move |token| token.logout(session))
    }

    fn create_object(&self, session: SessionHandle, template: &Template) -> Result<ObjectHandle> {
        let (lasting, template) = (is_lasting(template, false), template.clone());
        self.make_plainly(Function::CreateObject, session, lasting, move |token| {
            token.create_object(session, &template)
        })
    }

    fn copy_object(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        template: &Template,
    ) -> Result<ObjectHandle> {
        // Where nothing is said a copy is as its original, which may be either.
        let (lasting, template) = (is_lasting(template, true), template.clone());
        self.make_plainly(Function::CopyObject, session, lasting, move |token| {
            token.copy_object(session, object, &template)
        })
    }

    fn destroy_object(&self, session: SessionHandle, object: ObjectHandle) -> Result<()> {
        self.within(Function::DestroyObject, session, move |token| token.destroy_object(session, object))
    }

    fn object_size(&self, session: SessionHandle, object: ObjectHandle) -> Result<Ulong> {
        self.within(Function::GetObjectSize, session, move |token| token.object_size(session, object))
    }

    fn get_attributes(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        types: &[AttributeType],
    ) -> Result<Vec<Fetched>> {
        let types = types.to_vec();
        self.within(Function::GetAttributeValue, session, move |token| {
            token.get_attributes(session, object, &types)
        })
    }

    fn set_attributes(
        &self,
        session: SessionHandle,
        object: ObjectHandle,
        template: &Template,
    ) -> Result<()> {
        let template = template.clone();
        self.within(Function::SetAttributeValue, session, move |token| {
            token.set_attributes(session, object, &template)
        })
    }

    // No calls of the token's, and over soon.
    fn whole_objects(&self) -> Option<u64> {
        self.shared.token.whole_objects()
    }

    fn await_whole_objects(&self) {
        self.shared.token.await_whole_objects();
    }

    fn find_objects_init(&self, session: SessionHandle, template: &Template) -> Result<()> {
        let template = template.clone();
        self.within(Function::FindObjectsInit, session, move |token| {
            token.find_objects_init(session, &template)
        })
    }

    fn find_objects(&self, session: SessionHandle, max: usize) -> Result<Vec<ObjectHandle>> {
        self.within(Function::FindObjects, session, move |token| token.find_objects(session, max))
    }

    fn find_objects_final(&self, session: SessionHandle) -> Result<()> {
        self.within(Function::FindObjectsFinal, session, move |token| token.find_objects_final(session))
    }

    fn op_init(
        &self,
        session: SessionHandle,
        kind: OpKind,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
    ) -> Result<()> {
        self.start(kind.init(), session, mechanism, move |token, mechanism| {
            token.op_init(session, kind, mechanism, key)
        })
    }

    fn op_one_shot(
        &self,
        session: SessionHandle,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        let data = copy(input);
        self.put_out(
            self.goes_on(kind.one_shot(), session, &[kind.init()]),
            input.len(),
            output,
            move |token, out| token.op_one_shot(session, kind, &data, out),
        )
    }

    fn op_at_once(
        &self,
        session: SessionHandle,
        kind: OpKind,
        mechanism: Ulong,
        key: ObjectHandle,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        let data = copy(input);
        let mut begun = false;
        self.put_out(
            self.goes_on(kind.one_shot(), session, &[kind.init()]),
            input.len(),
            output,
            move |token, out| {
                // Made once more, for want of room, it goes on with what was begun.
                if std::mem::replace(&mut begun, true) {
                    token.op_one_shot(session, kind, &data, out)
                } else {
                    token.op_at_once(session, kind, mechanism, key, &data, out)
                }
            },
        )
    }

    fn op_update(
        &self,
        session: SessionHandle,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        let data = copy(input);
        self.put_out(
            self.goes_on(kind.update(), session, &[kind.init()]),
            input.len(),
            output,
            move |token, out| token.op_update(session, kind, &data, out),
        )
    }

    fn op_final(&self, session: SessionHandle, kind: OpKind, output: &mut Output<'_>) -> Result<()> {
        self.put_out(self.goes_on(kind.last(), session, &[kind.init()]), 0, output, move |token, out| {
            token.op_final(session, kind, out)
        })
    }

    fn verify(&self, session: SessionHandle, data: &[u8], signature: &[u8]) -> Result<()> {
        let (data, signature) = (copy(data), signature.to_vec());
        self.proceed(Function::Verify, session, OpKind::Verify.init(), move |token| {
            token.verify(session, &data, &signature)
        })
    }

    fn verify_final(&self, session: SessionHandle, signature: &[u8]) -> Result<()> {
        let signature = signature.to_vec();
        self.proceed(Function::VerifyFinal, session, OpKind::Verify.init(), move |token| {
            token.verify_final(session, &signature)
        })
    }

    fn digest_key(&self, session: SessionHandle, key: ObjectHandle) -> Result<()> {
        self.proceed(Function::DigestKey, session, OpKind::Digest.init(), move |token| {
            token.digest_key(session, key)
        })
    }

    fn combined_update(
        &self,
        session: SessionHandle,
        kind: CombinedKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        let data = copy(input);
        let begun_by = OpKind::ALL.map(OpKind::init);
        self.put_out(
            self.goes_on(kind.function(), session, &begun_by),
            input.len(),
            output,
            move |token, out| token.combined_update(session, kind, &data, out),
        )
    }

    fn verify_signature_init(
        &self,
        session: SessionHandle,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
        signature: &[u8],
    ) -> Result<()> {
        let signature = signature.to_vec();
        self.start(Function::VerifySignatureInit, session, mechanism, move |token, mechanism| {
            token.verify_signature_init(session, mechanism, key, &signature)
        })
    }

    fn verify_signature(&self, session: SessionHandle, data: &[u8]) -> Result<()> {
        let data = copy(data);
        self.proceed(Function::VerifySignature, session, Function::VerifySignatureInit, move |token| {
            token.verify_signature(session, &data)
        })
    }

    fn verify_signature_final(&self, session: SessionHandle) -> Result<()> {
        self.proceed(Function::VerifySignatureFinal, session, Function::VerifySignatureInit, move |token| {
            token.verify_signature_final(session)
        })
    }

    fn message_mechanism(&self, session: SessionHandle, kind: MessageKind) -> Result<Ulong> {
        // It calls no function of the module, but may wait for its turn there.
        self.within(kind.init(), session, move |token| token.message_mechanism(session, kind))
    }

    fn message_init(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
    ) -> Result<()> {
        self.start(kind.init(), session, mechanism, move |token, mechanism| {
            token.message_init(session, kind, mechanism, key)
        })
    }

    fn message_one_shot(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        params: &mut Params,
        associated: &[u8],
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        let (space, associated, data) = (Space::like(output, input.len()), copy(associated), copy(input));
        self.message(self.goes_on(kind.one_shot(), session, &[kind.init()]), params, move |token, params| {
            Ok(space.fill(|out| token.message_one_shot(session, kind, params, &associated, &data, out)))
        })?
        .give(output)
    }

    fn message_begin(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        params: &mut Params,
        associated: &[u8],
    ) -> Result<()> {
        let associated = copy(associated);
        self.message(self.goes_on(kind.begin(), session, &[kind.init()]), params, move |token, params| {
            token.message_begin(session, kind, params, &associated)
        })
    }

    fn message_next(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        params: &mut Params,
        input: &[u8],
        last: bool,
        output: &mut Output<'_>,
    ) -> Result<()> {
        let (space, data) = (Space::like(output, input.len()), copy(input));
        self.message(self.goes_on(kind.next(), session, &[kind.init()]), params, move |token, params| {
            Ok(space.fill(|out| token.message_next(session, kind, params, &data, last, out)))
        })?
        .give(output)
    }

    fn verify_message(
        &self,
        session: SessionHandle,
        params: &mut Params,
        data: &[u8],
        signature: &[u8],
    ) -> Result<()> {
        let (data, signature) = (copy(data), signature.to_vec());
        self.message(
            self.goes_on(Function::VerifyMessage, session, &[MessageKind::Verify.init()]),
            params,
            move |token, params| token.verify_message(session, params, &data, &signature),
        )
    }

    fn verify_message_next(
        &self,
        session: SessionHandle,
        params: &mut Params,
        data: &[u8],
        signature: Option<&[u8]>,
    ) -> Result<()> {
        let (data, signature) = (copy(data), signature.map(<[u8]>::to_vec));
        self.message(
            self.goes_on(Function::VerifyMessageNext, session, &[MessageKind::Verify.init()]),
            params,
            move |token, params| token.verify_message_next(session, params, &data, signature.as_deref()),
        )
    }

    fn message_final(&self, session: SessionHandle, kind: MessageKind) -> Result<()> {
        self.proceed(kind.last(), session, kind.init(), move |token| token.message_final(session, kind))
    }

    fn generate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        template: &Template,
    ) -> Result<ObjectHandle> {
        let (lasting, template) = ([is_lasting(template, false); 2], template.clone());
        self.make(Function::GenerateKey, session, (mechanism, lasting), move |token, mechanism| {
            token.generate_key(session, mechanism, &template)
        })
    }

    fn generate_key_pair(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        public: &Template,
        private: &Template,
    ) -> Result<(ObjectHandle, ObjectHandle)> {
        let lasting = [is_lasting(public, false), is_lasting(private, false)];
        let (public, private) = (public.clone(), private.clone());
        self.make(Function::GenerateKeyPair, session, (mechanism, lasting), move |token, mechanism| {
            token.generate_key_pair(session, mechanism, &public, &private)
        })
    }

    fn wrap_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        wrapping: ObjectHandle,
        key: ObjectHandle,
        output: &mut Output<'_>,
    ) -> Result<()> {
        let space = Space::like(output, 0);
        self.wrap(Function::WrapKey, session, mechanism, output, move |token, mechanism| {
            space.fill(|out| token.wrap_key(session, mechanism, wrapping, key, out))
        })
    }

    fn unwrap_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        unwrapping: ObjectHandle,
        wrapped: &[u8],
        template: &Template,
    ) -> Result<ObjectHandle> {
        let lasting = [is_lasting(template, false); 2];
        let (wrapped, template) = (copy(wrapped), template.clone());
        self.make(Function::UnwrapKey, session, (mechanism, lasting), move |token, mechanism| {
            token.unwrap_key(session, mechanism, unwrapping, &wrapped, &template)
        })
    }

    fn derive_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        base: ObjectHandle,
        template: &Template,
        want_handle: bool,
    ) -> Result<Option<ObjectHandle>> {
        let (lasting, template) = ([is_lasting(template, false); 2], template.clone());
        self.make(Function::DeriveKey, session, (mechanism, lasting), move |token, mechanism| {
            token.derive_key(session, mechanism, base, &template, want_handle)
        })
    }

    fn wrap_key_authenticated(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        wrapping: ObjectHandle,
        key: ObjectHandle,
        associated: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        let (space, associated) = (Space::like(output, 0), copy(associated));
        self.wrap(Function::WrapKeyAuthenticated, session, mechanism, output, move |token, mechanism| {
            space
                .fill(|out| token.wrap_key_authenticated(session, mechanism, wrapping, key, &associated, out))
        })
    }

    fn unwrap_key_authenticated(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        unwrapping: ObjectHandle,
        wrapped: &[u8],
        template: &Template,
        associated: &[u8],
    ) -> Result<ObjectHandle> {
        let lasting = [is_lasting(template, false); 2];
        let (wrapped, template, associated) = (copy(wrapped), template.clone(), copy(associated));
        self.make(Function::UnwrapKeyAuthenticated, session, (mechanism, lasting), move |token, mechanism| {
            token.unwrap_key_authenticated(session, mechanism, unwrapping, &wrapped, &template, &associated)
        })
    }

    fn encapsulate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        public: ObjectHandle,
        template: &Template,
        output: &mut Output<'_>,
    ) -> Result<Option<ObjectHandle>> {
        let lasting = [is_lasting(template, false); 2];
        let (space, template) = (Space::like(output, 0), template.clone());
        let (made, filled) =
            self.make(Function::EncapsulateKey, session, (mechanism, lasting), move |token, mechanism| {
                let mut made = None;
                let filled = space.fill(|out| {
                    made = token.encapsulate_key(session, mechanism, public, &template, out)?;
                    Ok(())
                });
                Ok((made, filled))
            })?;
        filled.give(output)?;
        Ok(made)
    }

    fn decapsulate_key(
        &self,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        private: ObjectHandle,
        template: &Template,
        ciphertext: &[u8],
    ) -> Result<ObjectHandle> {
        let lasting = [is_lasting(template, false); 2];
        let (template, ciphertext) = (template.clone(), copy(ciphertext));
        self.make(Function::DecapsulateKey, session, (mechanism, lasting), move |token, mechanism| {
            token.decapsulate_key(session, mechanism, private, &template, &ciphertext)
        })
    }

    fn seed_random(&self, session: SessionHandle, seed: &[u8]) -> Result<()> {
        let seed = copy(seed);
        self.within(Function::SeedRandom, session, move |token| token.seed_random(session, &seed))
    }

    fn generate_random(&self, session: SessionHandle, output: &mut [u8]) -> Result<()> {
        let len = output.len();
        let drawn = self.within(Function::GenerateRandom, session, move |token| {
            let mut drawn = Zeroizing::new(vec![0; len]);
            token.generate_random(session, &mut drawn).map(|()| drawn)
        })?;
        output.copy_from_slice(&drawn);
        Ok(())
    }
}

impl Lanes {
    /// A call that wraps a key.
    fn wrap(
        &self,
        function: Function,
        session: SessionHandle,
        mechanism: &mut Mechanism,
        output: &mut Output<'_>,
        go: impl FnOnce(&dyn Token, &mut Mechanism) -> Filled + Send + 'static,
    ) -> Result<()> {
        self.start(function, session, Some(mechanism), move |token, mechanism| {
            Ok(mechanism.map(|mechanism| go(token, mechanism)))
        })?
        .map_or(Ok(()), |filled| filled.give(output))
    }
}
