//! Message-based operations (PKCS#11 v3.2, sections 5.9, 5.11, 5.14 and 5.16).
//!
//! Each message is a call, or a short run of calls, of its own: between messages another member can take over by a
//! fresh `C_MessageXxxInit`. In the middle of a message in parts the operation stays where it is.

use std::cell::Cell;
use std::sync::Arc;

use ha_token::{
    Function, Mechanism, MessageKind, ObjectHandle, Params, Result, Rv, SessionHandle, Ulong, ck,
};

use super::VirtualSlot;
use super::mechanism::Tie;
use super::run::{Broken, Call};
use super::signed::Signed;
use crate::group::{Lease, Need, Object, Standing};
use crate::pin::Pin;
use crate::policy::failure::{Class, classify};

/// A message-based operation of a virtual session.
pub(super) struct MessageOperation {
    pub kind: MessageKind,
    mechanism: Mechanism,
    pub key: Arc<Object>,
    /// Objects that the mechanism's parameter names.
    inner: Box<[Arc<Object>]>,
    /// Counts the session's operations.
    pub number: u32,
    /// No other member can go on: the result depends on what one member made up and the caller has seen, or nobody here can
    /// read the mechanism's parameter.
    pinned: bool,
    in_message: bool,
    /// The PIN that a member accepted for `CKU_CONTEXT_SPECIFIC`, given again to one that takes over.
    pub context_pin: Option<Pin>,
    lease: Option<Lease>,
    /// What its signatures are verified with, if they are.
    signed: Option<Box<Signed>>,
}

/// One call of a message-based operation, on whatever member it runs.
type MessageCall<'a> = &'a mut dyn FnMut(&Lease, &mut Params, Option<&mut Signed>) -> Result<()>;

impl MessageOperation {
    /// The backing session that it runs in.
    pub(super) fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// The member that it runs on.
    pub(super) fn own_member(&self) -> Option<usize> {
        self.lease().map(|l| l.member.index)
    }

    fn need(&self, preferred: Option<usize>) -> Need<'_> {
        Need {
            mechanism: Some((self.mechanism.kind, flag(self.kind))),
            object: Some(&self.key),
            others: &self.inner,
            preferred,
        }
    }

    /// Leaves the member, where something may still go on: the backing session is closed.
    fn leave(&mut self) {
        if let Some(mut lease) = self.lease.take() {
            lease.set_busy(true);
        }
    }
}

impl Drop for MessageOperation {
    fn drop(&mut self) {
        self.leave();
    }
}

fn flag(kind: MessageKind) -> Ulong {
    match kind {
        MessageKind::Encrypt => ck::CKF_MESSAGE_ENCRYPT,
        MessageKind::Decrypt => ck::CKF_MESSAGE_DECRYPT,
        MessageKind::Sign => ck::CKF_MESSAGE_SIGN,
        MessageKind::Verify => ck::CKF_MESSAGE_VERIFY,
    }
}

impl VirtualSlot {
    /// The mechanism of the session's operation of this kind.
    ///
    /// # Errors
    /// `CKR_OPERATION_NOT_INITIALIZED`.
    pub(super) fn mechanism_of_messages(&self, session: SessionHandle, kind: MessageKind) -> Result<Ulong> {
        let session = self.session(session)?;
        let state = session.state()?;
        let op = state.messages.get(kind as usize).and_then(Option::as_ref);
        op.map(|o| o.mechanism.kind).ok_or(Rv::OPERATION_NOT_INITIALIZED)
    }

    /// `C_MessageXxxInit`.
    ///
    /// # Errors
    /// `CKR_OPERATION_ACTIVE`, `CKR_KEY_HANDLE_INVALID`, the members' answers.
    pub(super) fn begin_messages(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
    ) -> Result<()> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        let home = state.home();
        let place = state.messages.get_mut(kind as usize).ok_or(Rv::GENERAL_ERROR)?;
        let Some(mechanism) = mechanism else {
            *place = None;
            return Ok(());
        };
        if place.is_some() {
            return Err(Rv::OPERATION_ACTIVE);
        }
        self.vet(mechanism)?;
        let mut op = MessageOperation {
            kind,
            mechanism: mechanism.clone(),
            key: self.key(key)?,
            inner: self.inner_objects(mechanism)?.into(),
            number: 0,
            pinned: mechanism.is_opaque(),
            in_message: false,
            context_pin: None,
            lease: None,
            signed: None,
        };
        if kind == MessageKind::Sign && self.group.config.verify_signatures {
            op.signed = Some(Signed::new(mechanism.kind, &mechanism.params, &op.key));
        }
        let call = Call { function: kind.init(), need: op.need(home), skip: None };
        let mut tie = Tie::new(op.pinned);
        let started = self.run(&call, &mut |lease| tie.on(lease, || self.start_messages(lease, &op)));
        // What a token says of any object, here it is said of a key.
        let (after, lease) = started.map_err(|rv| match tie.answer(call.function, rv) {
            Rv::OBJECT_HANDLE_INVALID => Rv::KEY_HANDLE_INVALID,
            rv => rv,
        })?;
        op.lease = Some(lease);
        if let Some(after) = after {
            op.pinned = true;
            mechanism.params = after;
        }
        state.add_messages(op);
        Ok(())
    }

    /// Starts an operation in a backing session. Answers the mechanism's parameter if the member wrote into it.
    fn start_messages(&self, lease: &Lease, op: &MessageOperation) -> Result<Option<Params>> {
        let key = self.group.backing(lease, &op.key)?;
        self.find_half(op.signed.as_deref(), lease, key);
        let mut mechanism = self.localised(lease, &op.mechanism)?;
        lease.token().message_init(lease.session, op.kind, Some(&mut mechanism), key)?;
        if let Some(pin) = &op.context_pin {
            self.group.context_login(lease, Some(pin), Standing::Accepted, &Cell::default())?;
        }
        let written = op.inner.is_empty() && mechanism.params != op.mechanism.params;
        Ok(written.then_some(mechanism.params))
    }

    /// One call on the session's message-based operation. `opens` and `closes` say whether a message in parts begins
    /// or ends with it.
    ///
    /// # Errors
    /// `CKR_OPERATION_NOT_INITIALIZED`, the members' answers; `CKR_DEVICE_ERROR` when the member fails within a message.
    pub(super) fn message(
        &self,
        session: SessionHandle,
        kind: MessageKind,
        function: Function,
        (opens, closes): (bool, bool),
        params: &mut Params,
        call: MessageCall<'_>,
    ) -> Result<()> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        let place = state.messages.get_mut(kind as usize).ok_or(Rv::GENERAL_ERROR)?;
        let op = place.as_mut().ok_or(Rv::OPERATION_NOT_INITIALIZED)?;
        let mut signed = op.signed.take();
        let answer =
            self.advance_messages(op, function, params, &mut |l, p| call(l, p, signed.as_deref_mut()));
        op.signed = signed;
        match answer {
            Ok(()) => op.in_message = (op.in_message || opens) && !closes,
            // The application's own mistake: the operation goes on. A message that was to end has, but for a buffer that was too
            // small (section 5.2).
            Err(rv) if op.lease.is_some() => op.in_message &= !closes || rv == Rv::BUFFER_TOO_SMALL,
            Err(_) => *place = None,
        }
        answer
    }

    /// Makes one call of an operation, on the member it runs on or, between messages, on another one when that fails. After
    /// an error the operation is nowhere, unless it goes on.
    pub(super) fn advance_messages(
        &self,
        op: &mut MessageOperation,
        function: Function,
        params: &mut Params,
        call: &mut dyn FnMut(&Lease, &mut Params) -> Result<()>,
    ) -> Result<()> {
        let group = &*self.group;
        let before = params.clone();
        let mut broken = None;
        if let Some(lease) = &op.lease {
            match call(lease, params) {
                Ok(()) => {
                    group.succeeded();
                    return Ok(());
                }
                Err(rv) => {
                    let objects: Vec<_> = op.inner.iter().chain([&op.key]).cloned().collect();
                    broken = Some(self.broken(lease, &objects, function, rv)?);
                }
            }
            op.leave();
        }
        let answer = broken.as_ref().map_or(Rv::DEVICE_ERROR, Broken::answer);
        let skip = broken.as_ref().and_then(|b| b.skip);
        if op.pinned || op.in_message {
            let why = if op.pinned {
                "its result depends on what the failed member made up, or on a parameter that only a member can read"
            } else {
                "it is in the middle of a message"
            };
            group.reporter.refused(
                function,
                Rv::DEVICE_ERROR,
                &format!("the operation cannot go on elsewhere: {why}"),
            );
            return Err(answer);
        }
        let mut is_another = false;
        let call_again = Call { function, need: op.need(None), skip };
        let taken_over = self.run_after(None, broken.map(|b| b.left), &call_again, &mut |lease| {
            if self.start_messages(lease, op)?.is_some() {
                is_another = true;
                return Err(self.writes_into_its_parameter(lease, function));
            }
            *params = before.clone();
            match call(lease, params) {
                // The operation goes on in this session after it.
                Err(rv) if classify(function, rv) == Class::Caller => Ok(Err(rv)),
                answer => answer.map(Ok),
            }
        });
        let (answer, lease) = taken_over.map_err(|rv| match rv {
            Rv::FUNCTION_NOT_SUPPORTED if is_another => Rv::DEVICE_ERROR,
            rv => rv,
        })?;
        op.lease = Some(lease);
        answer
    }

    /// `C_MessageXxxFinal`.
    ///
    /// # Errors
    /// `CKR_OPERATION_NOT_INITIALIZED`.
    pub(super) fn end_messages(&self, session: SessionHandle, kind: MessageKind) -> Result<()> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        let mut op = state
            .messages
            .get_mut(kind as usize)
            .and_then(Option::take)
            .ok_or(Rv::OPERATION_NOT_INITIALIZED)?;
        if let Some(mut lease) = op.lease.take() {
            // Every message was answered already; how the member takes the end changes nothing for the caller.
            let ended = lease.token().message_final(lease.session, kind).is_ok();
            lease.set_busy(!ended);
        }
        Ok(())
    }
}
