//! Operations in flight: started on one member, and taken over by another when that one fails.

use std::sync::Arc;

use ha_token::{
    CombinedKind, Function, Mechanism, ObjectHandle, OpKind, Output, Params, Result, Rv, SessionHandle,
    Token, Ulong,
};
use sha2::{Digest, Sha256};

use super::VirtualSlot;
use super::replay::{Replay, Step};
use super::run::Call;
use super::session::SessionState;
use crate::group::{Lease, Need, Object, Pin, Who};
use crate::policy::balance::STAYS;
use crate::policy::failure::Class;

/// An operation of a virtual session, with all that another member needs to go on with it.
pub(super) struct Operation {
    kind: OpKind,
    mechanism: Mechanism,
    key: Option<Arc<Object>>,
    /// Objects that the mechanism's parameter names.
    inner: Box<[Arc<Object>]>,
    /// `C_VerifySignatureInit`'s signature.
    signature: Box<[u8]>,
    /// The PIN of `CKU_CONTEXT_SPECIFIC`, done again on a member that takes over.
    context_pin: Option<Box<Pin>>,
    replay: Replay,
    /// The result depends on what one member made up and the caller has seen: no other member can go on.
    pinned: bool,
    /// The backing session it runs in; `None` after its member failed.
    lease: Option<Lease>,
    /// How many operations after this one may stay on that lease.
    stays: u8,
}

impl Operation {
    /// What it does.
    pub(super) fn kind(&self) -> OpKind {
        self.kind
    }

    /// What a member must have for it: a mechanism, with the flag of its use.
    fn mechanism_and_flag(&self) -> (Ulong, Ulong) {
        (self.mechanism.kind, self.kind.flag())
    }

    /// The member it runs on.
    pub(super) fn member(&self) -> Option<usize> {
        self.lease.as_ref().map(|l| l.member.index)
    }
}

impl Operation {
    /// Calls `f` with what a member must have for it. Allocates only for objects in the mechanism's parameter.
    fn with_need<T>(&self, preferred: Option<usize>, f: impl FnOnce(Need<'_>) -> Result<T>) -> Result<T> {
        let mechanism = Some(self.mechanism_and_flag());
        match (&self.key, &*self.inner) {
            (None, []) => f(Need { mechanism, objects: &[], preferred }),
            (Some(key), []) => f(Need { mechanism, objects: &[key], preferred }),
            (key, inner) => {
                let objects: Vec<&Object> = key.iter().chain(inner).map(|o| &**o).collect();
                f(Need { mechanism, objects: &objects, preferred })
            }
        }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // Dropped with its lease means cancelled: the backing session is not lent again with something going on in it.
        if let Some(lease) = &mut self.lease {
            lease.set_busy(true);
        }
    }
}

/// One call of an operation, on whatever member it runs.
type StepCall<'a> = &'a mut dyn FnMut(&Lease, &mut Output<'_>) -> Result<()>;

impl VirtualSlot {
    /// Starts an operation, or cancels it (`mechanism` is `None`).
    ///
    /// # Errors
    /// `CKR_OPERATION_ACTIVE`, `CKR_KEY_HANDLE_INVALID`, the members' answers.
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
            drop(state.take(kind));
            return Ok(());
        };
        self.vet(mechanism)?;
        if state.operation(kind).is_ok() {
            return Err(Rv::OPERATION_ACTIVE);
        }
        let mut op = Operation {
            kind,
            inner: self.inner_objects(mechanism)?.into(),
            mechanism: mechanism.clone(),
            key: if kind == OpKind::Digest { None } else { Some(self.key(key)?) },
            signature: signature.into(),
            context_pin: None,
            replay: Replay::new(self.group.config.replay_limit),
            pinned: false,
            lease: None,
            stays: STAYS,
        };
        let home = state.home();
        let (after, lease) = op.with_need(home, |need| {
            let kept = state.stay(&self.group, &need);
            let stays = kept.as_ref().map_or(STAYS, |k| k.1);
            let call = Call { function: kind.init(), need, skip: None };
            let (after, lease) =
                self.run_from(kept.map(|k| k.0), &call, &mut |lease| self.start(lease, &op))?;
            Ok((after, (lease, stays)))
        })?;
        if let Some(after) = after {
            op.pinned = true;
            mechanism.params = after.params;
        }
        op.lease = Some(lease.0);
        op.stays = lease.1;
        state.start(op);
        Ok(())
    }

    /// Refuses vendor mechanisms whose parameter nobody here can read.
    pub(super) fn vet(&self, mechanism: &Mechanism) -> Result<()> {
        let opaque = mechanism.is_vendor() && mechanism.params != Params::None;
        if opaque && !self.group.config.vendor_mechanisms.contains(&mechanism.kind) {
            return Err(Rv::MECHANISM_PARAM_INVALID);
        }
        Ok(())
    }

    /// The objects that a mechanism's parameter names.
    pub(super) fn inner_objects(&self, mechanism: &Mechanism) -> Result<Vec<Arc<Object>>> {
        let mut objects = Vec::new();
        if matches!(mechanism.params, Params::Struct(_)) {
            mechanism.clone().translate_handles(&mut |h| {
                objects.push(self.key(h)?);
                Ok(h)
            })?;
        }
        Ok(objects)
    }

    /// The mechanism as a member must see it: object handles replaced by its own.
    pub(super) fn localised(&self, lease: &Lease, mechanism: &Mechanism) -> Result<Mechanism> {
        let mut local = mechanism.clone();
        if matches!(local.params, Params::Struct(_)) {
            local.translate_handles(&mut |h| self.group.backing(lease, &*self.key(h)?))?;
        }
        Ok(local)
    }

    /// Starts an operation in a backing session. Answers the mechanism if the member wrote into it.
    fn start(&self, lease: &Lease, op: &Operation) -> Result<Option<Mechanism>> {
        let key = match &op.key {
            None => ObjectHandle(0),
            Some(key) => self.group.backing(lease, key)?,
        };
        let (token, session) = (lease.token(), lease.session);
        let mut mechanism = self.localised(lease, &op.mechanism)?;
        if op.kind == OpKind::VerifySignature {
            token.verify_signature_init(session, Some(&mut mechanism), key, &op.signature)?;
        } else {
            token.op_init(session, op.kind, Some(&mut mechanism), key)?;
        }
        if let Some(pin) = &op.context_pin {
            token.login(session, ha_token::UserType::ContextSpecific, Some(pin))?;
        }
        let written = op.inner.is_empty() && mechanism.params != op.mechanism.params;
        Ok(written.then_some(mechanism))
    }

    /// Makes one call of an operation, on the member it runs on or, when that fails, on another one that is brought to
    /// the same point first.
    fn advance(
        &self,
        op: &mut Operation,
        function: Function,
        output: &mut Output<'_>,
        call: StepCall<'_>,
    ) -> Result<()> {
        let group = &*self.group;
        let mut failed_on = None;
        let mut ambiguous = None;
        if let Some(lease) = &mut op.lease {
            let mut out = output.reborrow();
            let answer = call(lease, &mut out);
            let len = out.len();
            output.set_len(len);
            let Err(rv) = answer else {
                group.succeeded(&lease.member);
                return Ok(());
            };
            match group.failed(&lease.member, &lease.link, function, rv) {
                Class::Caller => return Err(rv),
                Class::Login if group.login.who() == Who::Nobody => return Err(rv),
                Class::Session | Class::Login => {}
                Class::Object | Class::Ambiguous => match group.looks_alive(&lease.link) {
                    Ok(()) => {
                        failed_on = Some(lease.member.index);
                        ambiguous = Some((Arc::clone(&lease.member), rv));
                    }
                    Err(dead) => group.blame(&lease.member, Function::GetTokenInfo, dead),
                },
                Class::Capacity | Class::Member => failed_on = Some(lease.member.index),
            }
            tracing::debug!(group = %group.config.label, member = lease.member.name(), %function, %rv, "the operation moves to another member");
            lease.set_busy(true);
            op.lease = None;
        }
        if op.pinned || !op.replay.is_whole() {
            let why = if op.pinned {
                "its result depends on what the failed member made up"
            } else {
                "its input is over replay_limit"
            };
            group.reporter.refused(
                function,
                Rv::DEVICE_ERROR,
                &format!("the operation cannot go on elsewhere: {why}"),
            );
            return Err(ambiguous.map_or(Rv::DEVICE_ERROR, |(_, rv)| rv));
        }
        let taken_over = op.with_need(None, |need| {
            self.run(&Call { function, need, skip: failed_on }, &mut |lease| {
                self.start(lease, op)?;
                self.feed_again(lease, op)?;
                let mut out = output.reborrow();
                let answer = call(lease, &mut out);
                let len = out.len();
                output.set_len(len);
                match answer {
                    // The operation goes on in this session after it.
                    Err(Rv::BUFFER_TOO_SMALL) => Ok(Err(Rv::BUFFER_TOO_SMALL)),
                    Err(rv) => Err(rv),
                    Ok(()) => Ok(Ok(())),
                }
            })
        });
        match (taken_over, ambiguous) {
            (Ok((answer, lease)), first) => {
                if let Some((member, rv)) = first {
                    group.blame(&member, function, rv);
                }
                op.lease = Some(lease);
                answer
            }
            // Nobody else could be asked, or said the same: the first answer is the caller's.
            (Err(Rv::DEVICE_ERROR), Some((_, rv))) => Err(rv),
            (Err(rv), _) => Err(rv),
        }
    }

    /// Feeds a freshly started operation what the application has fed so far.
    fn feed_again(&self, lease: &Lease, op: &Operation) -> Result<()> {
        if op.replay.is_empty() {
            return Ok(());
        }
        let (token, session) = (lease.token(), lease.session);
        let (mut digest, mut total) = (Sha256::new(), 0);
        let mut space = Vec::new();
        for step in op.replay.steps() {
            match step {
                Step::Key(key) => token.digest_key(session, self.group.backing(lease, &*self.key(key)?)?)?,
                Step::Update(input) if has_output(op.kind) => {
                    space.resize(input.len() + 256, 0);
                    let mut out = Output::buffer(&mut space);
                    token.op_update(session, op.kind, input, &mut out)?;
                    digest.update(out.written());
                    total += out.len();
                }
                Step::Update(input) => token.op_update(session, op.kind, input, &mut Output::query())?,
            }
        }
        op.replay.same_output(digest, total)
    }

    /// Makes one call on the session's operation of a kind; ends the operation if it does not go on.
    fn with_operation(
        &self,
        session: SessionHandle,
        kind: OpKind,
        f: impl FnOnce(&mut Operation) -> (Result<()>, bool),
    ) -> Result<()> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        on_operation(&mut state, kind, f)
    }

    /// `C_Sign` and the other one-shot functions with an output.
    pub(super) fn one_shot(
        &self,
        session: SessionHandle,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.with_operation(session, kind, |op| {
            let answer = self.advance(op, kind.one_shot(), output, &mut |l, out| {
                l.token().op_one_shot(l.session, kind, input, out)
            });
            (answer, stays(answer, output))
        })
    }

    /// `C_XxxUpdate`.
    pub(super) fn update(
        &self,
        session: SessionHandle,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.with_operation(session, kind, |op| self.update_op(op, input, output))
    }

    fn update_op(&self, op: &mut Operation, input: &[u8], output: &mut Output<'_>) -> (Result<()>, bool) {
        let kind = op.kind;
        let answer = self.advance(op, kind.update(), output, &mut |l, out| {
            l.token().op_update(l.session, kind, input, out)
        });
        if answer.is_ok() && !(has_output(kind) && output.is_query()) {
            op.replay.record(Step::Update(input), output.written());
        }
        (answer, answer.is_ok() || answer == Err(Rv::BUFFER_TOO_SMALL))
    }

    /// `C_XxxFinal` with an output.
    pub(super) fn finish(&self, session: SessionHandle, kind: OpKind, output: &mut Output<'_>) -> Result<()> {
        self.with_operation(session, kind, |op| {
            let answer =
                self.advance(op, kind.last(), output, &mut |l, out| l.token().op_final(l.session, kind, out));
            (answer, stays(answer, output))
        })
    }

    /// A call that ends the operation and has no output: the verifying ones.
    pub(super) fn conclude(
        &self,
        session: SessionHandle,
        kind: OpKind,
        function: Function,
        call: &mut dyn FnMut(&dyn Token, SessionHandle) -> Result<()>,
    ) -> Result<()> {
        self.with_operation(session, kind, |op| {
            let answer =
                self.advance(op, function, &mut Output::query(), &mut |l, _| call(l.token(), l.session));
            (answer, false)
        })
    }

    /// `C_DigestKey`.
    pub(super) fn digest_key_step(&self, session: SessionHandle, key: ObjectHandle) -> Result<()> {
        let object = self.key(key)?;
        self.with_operation(session, OpKind::Digest, |op| {
            let answer = self.advance(op, Function::DigestKey, &mut Output::query(), &mut |l, _| {
                l.token().digest_key(l.session, self.group.backing(l, &object)?)
            });
            if answer.is_ok() {
                op.replay.record(Step::Key(key), &[]);
            }
            (answer, answer.is_ok())
        })
    }

    /// The dual-function calls (section 5.16): each is the two calls that it stands for.
    pub(super) fn combined(
        &self,
        session: SessionHandle,
        kind: CombinedKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        let (data, outer) = match kind {
            CombinedKind::DigestEncrypt => (OpKind::Digest, OpKind::Encrypt),
            CombinedKind::DecryptDigest => (OpKind::Digest, OpKind::Decrypt),
            CombinedKind::SignEncrypt => (OpKind::Sign, OpKind::Encrypt),
            CombinedKind::DecryptVerify => (OpKind::Verify, OpKind::Decrypt),
        };
        if state.operation(data).is_err() || state.operation(outer).is_err() {
            return Err(Rv::OPERATION_NOT_INITIALIZED);
        }
        on_operation(&mut state, outer, |op| self.update_op(op, input, output))?;
        if output.is_query() {
            return Ok(());
        }
        let plain = match outer {
            OpKind::Decrypt => output.written(),
            _ => input,
        };
        on_operation(&mut state, data, |op| self.update_op(op, plain, &mut Output::query()))
    }

    /// `C_Login` with `CKU_CONTEXT_SPECIFIC` (section 5.6.8): for the operation that was just started with a key that
    /// has `CKA_ALWAYS_AUTHENTICATE`.
    pub(super) fn context_login(&self, session: SessionHandle, pin: &[u8]) -> Result<()> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        for kind in [
            OpKind::Sign,
            OpKind::Decrypt,
            OpKind::SignRecover,
            OpKind::Encrypt,
            OpKind::Verify,
            OpKind::VerifyRecover,
        ] {
            if let Ok(op) = state.operation(kind)
                && let Some(lease) = &op.lease
            {
                lease.token().login(lease.session, ha_token::UserType::ContextSpecific, Some(pin))?;
                op.context_pin = Some(Box::new(zeroize::Zeroizing::new(pin.to_vec())));
                return Ok(());
            }
        }
        Err(Rv::OPERATION_NOT_INITIALIZED)
    }
}

/// Makes one call on an operation; ends it if it does not go on, and keeps its backing session for the next one.
fn on_operation(
    state: &mut SessionState,
    kind: OpKind,
    f: impl FnOnce(&mut Operation) -> (Result<()>, bool),
) -> Result<()> {
    let (answer, goes_on) = f(state.operation(kind)?);
    if !goes_on
        && let Some(mut op) = state.take(kind)
        && let Some(mut lease) = op.lease.take()
    {
        // The member ended the operation with its answer. Should one not have, its next start says so, and goes to a
        // fresh session.
        lease.set_busy(false);
        state.keep(lease, op.stays, op.mechanism_and_flag());
    }
    answer
}

/// Whether parts of this kind give output.
fn has_output(kind: OpKind) -> bool {
    matches!(kind, OpKind::Encrypt | OpKind::Decrypt)
}

/// Whether a call that ends the operation has left it alive: a size query or a buffer too small (section 5.2).
fn stays(answer: Result<()>, output: &Output<'_>) -> bool {
    match answer {
        Ok(()) => output.is_query(),
        Err(rv) => rv == Rv::BUFFER_TOO_SMALL,
    }
}
