//! How an operation begins: where its session's last one was, or on another member.

use std::cell::Cell;

use ha_token::{Mechanism, ObjectHandle, OpKind, Params, Result, Rv, SessionHandle};

use super::VirtualSlot;
use super::kept::{Begun, Keep, Runs};
use super::mechanism::Tie;
use super::operation::{More, Operation, Running, of_a_key};
use super::run::Call;
use super::signed::Signed;
use crate::group::{Lease, Standing};

impl VirtualSlot {
    /// Starts an operation, or cancels it (`mechanism` is `None`).
    ///
    /// # Errors
    /// `CKR_OPERATION_ACTIVE`, `CKR_KEY_HANDLE_INVALID`, the members' answers.
    #[inline(always)]
    pub(super) fn begin(
        &self,
        session: SessionHandle,
        kind: OpKind,
        mechanism: Option<&mut Mechanism>,
        key: ObjectHandle,
        signature: &[u8],
    ) -> Result<()> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        let Some(mechanism) = mechanism else {
            state.cancel(kind);
            return Ok(());
        };
        if state.is_active(kind) {
            self.vet(mechanism)?;
            return Err(Rv::OPERATION_ACTIVE);
        }
        let verified =
            self.group.config.verify_signatures && matches!(kind, OpKind::Sign | OpKind::SignRecover);
        let mut more = match (&mechanism.params, signature) {
            (Params::None, []) => None,
            _ => Some(self.more(mechanism, signature)?),
        };
        let mut key = if kind == OpKind::Digest { None } else { Some(self.key(key)?) };
        let changes = self.group.objects.changes();
        if more.is_none() && !verified && is_one_call(kind) && key.as_ref().is_none_or(|k| !k.is_conflicted())
        {
            let handle = key.as_ref().map_or(ObjectHandle(0), |key| key.handle);
            let what = Begun { kind, mechanism: mechanism.kind, key: handle, changes };
            match state.add_late(what, key) {
                Ok(()) => return Ok(()),
                Err(again) => key = again,
            }
        }
        if verified && let Some(key) = &key {
            let signed = Signed::new(mechanism.kind, &mechanism.params, key);
            more.get_or_insert_default().signed = Some(signed);
        }
        let op = Operation {
            kind,
            pinned: more.is_some() && mechanism.is_opaque(),
            mechanism: mechanism.kind,
            key,
            number: 0,
            more,
            runs: Runs::Nowhere,
        };
        let home = state.home();
        // Started in its place: what it is made of is not moved.
        state.add(op);
        let Running { op, kept } = state.operation(kind)?;
        match self.begin_added(op, kept, home) {
            Ok(None) => {
                if matches!(op.runs, Runs::OnKept) {
                    kept.has_begun(op.begun(changes));
                }
                Ok(())
            }
            Ok(Some(after)) => {
                op.pinned = true;
                mechanism.params = after.params;
                Ok(())
            }
            Err(rv) => {
                state.end(kind);
                Err(rv)
            }
        }
    }

    #[cold]
    fn more(&self, mechanism: &Mechanism, signature: &[u8]) -> Result<Box<More>> {
        self.vet(mechanism)?;
        Ok(Box::new(More {
            params: mechanism.params.clone(),
            inner: self.inner_objects(mechanism)?.into(),
            signature: signature.into(),
            ..More::default()
        }))
    }

    /// Starts an operation where its session's last one was, or elsewhere. Answers the mechanism if the member wrote
    /// into it.
    #[inline(always)]
    fn begin_added(
        &self,
        op: &mut Operation,
        kept: &mut Keep,
        home: Option<usize>,
    ) -> Result<Option<Box<Mechanism>>> {
        let need = op.need(home);
        let Some(lease) = kept.take_up(&self.group, &need) else {
            return self.begin_elsewhere(op, kept, home, None);
        };
        match self.start(lease, op) {
            Ok(after) => {
                self.group.succeeded();
                op.runs = Runs::OnKept;
                Ok(after)
            }
            Err(rv) => {
                let tried = kept.give_up().map(|lease| (lease, rv));
                self.begin_elsewhere(op, kept, home, tried)
            }
        }
    }

    #[inline(never)]
    fn begin_elsewhere(
        &self,
        op: &mut Operation,
        kept: &mut Keep,
        home: Option<usize>,
        tried: Option<(Lease, Rv)>,
    ) -> Result<Option<Box<Mechanism>>> {
        let call = Call { function: op.kind.init(), need: op.need(home), skip: None };
        let mut tie = Tie::after(op.pinned, tried.as_ref());
        let started = self.run_from(tried, &call, &mut |lease| tie.on(lease, || self.start(lease, op)));
        let (after, lease) = started.map_err(|rv| of_a_key(tie.answer(call.function, rv)))?;
        op.runs = kept.settle(lease, op.mechanism_and_flag());
        Ok(after)
    }

    /// Starts an operation in a backing session. Answers the mechanism if the member wrote into it.
    #[inline(always)]
    pub(super) fn start(&self, lease: &Lease, op: &Operation) -> Result<Option<Box<Mechanism>>> {
        let key = match &op.key {
            None => ObjectHandle(0),
            Some(key) => self.group.backing(lease, key)?,
        };
        match &op.more {
            Some(more) => self.start_with_more(lease, op, more, key),
            None => {
                let mut mechanism = Mechanism::plain(op.mechanism);
                lease.token().op_init(lease.session, op.kind, Some(&mut mechanism), key)?;
                Ok(None)
            }
        }
    }

    #[inline(never)]
    fn start_with_more(
        &self,
        lease: &Lease,
        op: &Operation,
        more: &More,
        key: ObjectHandle,
    ) -> Result<Option<Box<Mechanism>>> {
        self.find_half(more.signed.as_deref(), lease, key);
        let (token, session) = (lease.token(), lease.session);
        let mechanism = Mechanism { kind: op.mechanism, params: more.params.clone() };
        let mut mechanism = self.localised(lease, &mechanism)?;
        if op.kind == OpKind::VerifySignature {
            token.verify_signature_init(session, Some(&mut mechanism), key, &more.signature)?;
        } else {
            token.op_init(session, op.kind, Some(&mut mechanism), key)?;
        }
        if let Some(pin) = &more.context_pin {
            self.group.context_login(lease, Some(pin), Standing::Accepted, &Cell::default())?;
        }
        let written = more.inner.is_empty() && mechanism.params != more.params;
        Ok(written.then(|| Box::new(mechanism)))
    }
}

/// Whether an operation of a kind can be begun and ended in one call of a [`Token`](ha_token::Token).
fn is_one_call(kind: OpKind) -> bool {
    !matches!(kind, OpKind::Verify | OpKind::VerifySignature)
}
