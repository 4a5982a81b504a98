//! Message-based operations (PKCS#11 v3.2, sections 5.9, 5.11, 5.14 and 5.16).
//!
//! Each message is a call, or a short run of calls, of its own: between messages another member can take over by a
//! fresh `C_MessageXxxInit`. In the middle of a message in parts the operation stays where it is.

use std::sync::Arc;

use ha_token::{
    Function, Mechanism, MessageKind, ObjectHandle, Params, Result, Rv, SessionHandle, Ulong, ck,
};

use super::VirtualSlot;
use super::run::Call;
use crate::group::{Lease, Need, Object};
use crate::policy::failure::Class;

/// A message-based operation of a virtual session.
pub(super) struct MessageOperation {
    mechanism: Mechanism,
    key: Arc<Object>,
    in_message: bool,
    lease: Option<Lease>,
}

impl Drop for MessageOperation {
    fn drop(&mut self) {
        if let Some(lease) = &mut self.lease {
            lease.set_busy(true);
        }
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
            mechanism: mechanism.clone(),
            key: self.key(key)?,
            in_message: false,
            lease: None,
        };
        op.lease = Some(self.start_messages(&op, kind, None)?);
        *place = Some(op);
        Ok(())
    }

    fn start_messages(&self, op: &MessageOperation, kind: MessageKind, skip: Option<usize>) -> Result<Lease> {
        let need = Need {
            mechanism: Some((op.mechanism.kind, flag(kind))),
            object: Some(&op.key),
            others: &[],
            preferred: None,
        };
        let ((), lease) = self.run(&Call { function: kind.init(), need, skip }, &mut |lease| {
            let key = self.group.backing(lease, &op.key)?;
            let mut mechanism = self.localised(lease, &op.mechanism)?;
            lease.token().message_init(lease.session, kind, Some(&mut mechanism), key)
        })?;
        Ok(lease)
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
        call: &mut dyn FnMut(&Lease, &mut Params) -> Result<()>,
    ) -> Result<()> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        let place = state.messages.get_mut(kind as usize).ok_or(Rv::GENERAL_ERROR)?;
        let op = place.as_mut().ok_or(Rv::OPERATION_NOT_INITIALIZED)?;
        let whole = !op.in_message && (!opens || closes);
        let before = params.clone();
        let mut skip = None;
        for first in [true, false] {
            if op.lease.is_none() {
                op.lease = Some(self.start_messages(op, kind, skip)?);
            }
            let Some(lease) = &mut op.lease else { return Err(Rv::GENERAL_ERROR) };
            let answer = call(lease, params);
            let Err(rv) = answer else {
                self.group.succeeded();
                op.in_message = (op.in_message || opens) && !closes;
                return Ok(());
            };
            if self.group.failed(&lease.member, &lease.link, function, rv) == Class::Caller {
                return Err(rv);
            }
            skip = Some(lease.member.index);
            lease.set_busy(true);
            op.lease = None;
            if !whole || !first || !self.group.may_retry(first) {
                *place = None;
                return Err(if whole { rv } else { Rv::DEVICE_ERROR });
            }
            *params = before.clone();
        }
        Err(Rv::DEVICE_ERROR)
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
