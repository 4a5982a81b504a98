//! Operations in flight: their calls, on the member where they began or, when that one fails, on one that takes over.

use std::sync::Arc;

use ha_token::{
    CombinedKind, Function, ObjectHandle, OpKind, Output, Params, Result, Rv, SessionHandle, Token, Ulong,
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::VirtualSlot;
use super::kept::{Begun, Keep, Runs};
use super::replay::{Replay, Step};
use super::run::{Broken, Call};
use super::session::{Late, SessionState};
use super::signed::{Input, Signed};
use crate::group::{Lease, Need, Object};
use crate::mutants::wrong;
use crate::pin::Pin;

/// An operation of a virtual session, with all that another member needs to go on with it.
pub(super) struct Operation {
    pub kind: OpKind,
    /// No other member can go on: the result depends on what one member made up and the caller has seen, or nobody here can
    /// read the mechanism's parameter.
    pub pinned: bool,
    pub mechanism: Ulong,
    pub key: Option<Arc<Object>>,
    /// Counts the session's operations.
    pub number: u32,
    /// What most one-shot operations do not have.
    pub more: Option<Box<More>>,
    /// Where it runs.
    pub runs: Runs,
}

/// What an operation may have besides a mechanism and a key.
#[derive(Default)]
pub(super) struct More {
    pub params: Params,
    /// Objects that the mechanism's parameter names.
    pub inner: Box<[Arc<Object>]>,
    /// `C_VerifySignatureInit`'s signature.
    pub signature: Box<[u8]>,
    /// The PIN that a member accepted for `CKU_CONTEXT_SPECIFIC`, given again to one that takes over.
    pub context_pin: Option<Pin>,
    pub replay: Replay,
    /// What its signature is verified with, if it is.
    pub signed: Option<Box<Signed>>,
}

/// An operation, and where it may run.
pub(super) struct Running<'a> {
    /// The operation.
    pub op: &'a mut Operation,
    /// Its session's place for a backing session.
    pub kept: &'a mut Keep,
}

impl Operation {
    /// One that was left for its first call.
    pub(super) fn late(Late { kind, mechanism, key, number }: Late, runs: Runs) -> Self {
        Operation { kind, pinned: false, mechanism, key, number, more: None, runs }
    }

    /// What its token has agreed to, if it may be begun late the next time. `changes`: those that the group had made when the
    /// token was asked.
    #[inline]
    pub(super) fn begun(&self, changes: u64) -> Option<Begun> {
        let key = self.key.as_ref().map_or(ObjectHandle(0), |key| key.handle);
        self.more.is_none().then_some(Begun { kind: self.kind, mechanism: self.mechanism, key, changes })
    }

    /// What it does.
    pub(super) fn kind(&self) -> OpKind {
        self.kind
    }

    /// What a member must have for it: a mechanism, with the flag of its use.
    pub(super) fn mechanism_and_flag(&self) -> (Ulong, Ulong) {
        (self.mechanism, self.kind.flag())
    }

    /// The member it runs on, if it has a backing session of its own.
    pub(super) fn own_member(&self) -> Option<usize> {
        match &self.runs {
            Runs::On(lease) => Some(lease.member.index),
            Runs::OnKept | Runs::NotYet | Runs::Nowhere => None,
        }
    }

    /// Objects that the mechanism's parameter names.
    fn inner(&self) -> &[Arc<Object>] {
        self.more.as_ref().map_or(&[], |m| &m.inner)
    }

    /// What a member must have for it.
    pub(super) fn need(&self, preferred: Option<usize>) -> Need<'_> {
        Need {
            mechanism: Some(self.mechanism_and_flag()),
            object: self.key.as_deref(),
            others: self.inner(),
            preferred,
        }
    }

    /// Remembers a step, for a member that takes over.
    fn record(&mut self, step: Step<'_>, output: &[u8], limit: usize) {
        self.more.get_or_insert_default().replay.record(step, output, limit);
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // Dropped with its lease means cancelled: the backing session is not lent again with something going on in it.
        if let Runs::On(lease) = &mut self.runs {
            lease.set_busy(true);
        }
    }
}

impl Running<'_> {
    pub(super) fn lease(&mut self) -> Option<&mut Lease> {
        match &mut self.op.runs {
            Runs::OnKept => self.kept.in_use(),
            Runs::On(lease) => Some(lease),
            Runs::NotYet | Runs::Nowhere => None,
        }
    }

    /// Leaves the member, where something may still go on: the backing session is closed.
    fn leave(&mut self) {
        let lease = match std::mem::replace(&mut self.op.runs, Runs::Nowhere) {
            Runs::OnKept => self.kept.give_up(),
            Runs::On(lease) => Some(lease),
            Runs::NotYet | Runs::Nowhere => None,
        };
        if let Some(mut lease) = lease {
            lease.set_busy(true);
        }
    }
}

/// One call of an operation, on whatever member it runs.
type StepCall<'a> = &'a mut dyn FnMut(&Lease, &mut Output<'_>) -> Result<()>;

impl VirtualSlot {
    /// Makes one call of an operation, on the member it runs on or, when that fails, on another one that is brought to
    /// the same point first.
    #[inline]
    pub(super) fn advance(
        &self,
        running: &mut Running<'_>,
        function: Function,
        output: &mut Output<'_>,
        call: &mut impl FnMut(&Lease, &mut Output<'_>) -> Result<()>,
    ) -> Result<()> {
        if let Runs::NotYet = running.op.runs
            && let Err(rv) = self.start_late(running)?
        {
            return self.go_on(running, function, output, Some(rv), call);
        }
        let failed = match running.lease() {
            None => None,
            Some(lease) => match call(lease, output) {
                Ok(()) => {
                    self.group.succeeded();
                    return Ok(());
                }
                Err(rv) => Some(rv),
            },
        };
        self.go_on(running, function, output, failed, call)
    }

    /// Starts an operation that was left for its first call, where its session's last one was. Answers how that ended there; if
    /// there is none, or it may not stay there, the operation is started elsewhere ([`go_on`](Self::go_on)).
    ///
    /// # Errors
    /// `CKR_KEY_HANDLE_INVALID`: its key is not there any more.
    #[inline(never)]
    fn start_late(&self, running: &mut Running<'_>) -> Result<Result<()>> {
        let op = &mut *running.op;
        self.is_still_there(op.key.as_deref())?;
        op.runs = Runs::Nowhere;
        let Some(lease) = running.kept.take_up(&self.group, &op.need(None)) else { return Ok(Ok(())) };
        let answer = self.start(lease, op);
        op.runs = Runs::OnKept;
        Ok(answer.map(drop))
    }

    /// The key of an operation that was left for its first call was there before. Where it was destroyed since, by another
    /// process too, its token may have given the number of its handle to another one (guarantee G3).
    ///
    /// # Errors
    /// `CKR_KEY_HANDLE_INVALID`.
    fn is_still_there(&self, key: Option<&Object>) -> Result<()> {
        let Some(key) = key else { return Ok(()) };
        self.group.heed_destructions();
        if key.is_taken_out() { Err(Rv::KEY_HANDLE_INVALID) } else { Ok(()) }
    }

    /// What a failed call of an operation leads to: its error, or the same call on another member.
    #[inline(never)]
    fn go_on(
        &self,
        running: &mut Running<'_>,
        function: Function,
        output: &mut Output<'_>,
        failed: Option<Rv>,
        call: StepCall<'_>,
    ) -> Result<()> {
        let group = &*self.group;
        let mut broken = None;
        if let Some(rv) = failed {
            let objects: Vec<_> = running.op.key.iter().chain(running.op.inner()).cloned().collect();
            if let Some(lease) = running.lease() {
                broken = Some(self.broken(lease, &objects, function, rv)?);
                running.leave();
            }
        }
        let answer = broken.as_ref().map_or(Rv::DEVICE_ERROR, Broken::answer);
        let skip = broken.as_ref().and_then(|b| b.skip);
        let left = broken.map(|b| b.left);
        let op = &*running.op;
        let whole = op.more.as_ref().is_none_or(|m| m.replay.is_whole());
        if op.pinned || !whole {
            let why = if op.pinned {
                "its result depends on what the failed member made up, or on a parameter that only a member can read"
            } else {
                "its input is over replay_limit"
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
        let taken_over = self.run_after(None, left, &call_again, &mut |lease| {
            if self.start(lease, op).map_err(of_a_key)?.is_some() {
                is_another = true;
                return Err(self.writes_into_its_parameter(lease, function));
            }
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
        });
        let (answer, lease) = taken_over.map_err(|rv| match rv {
            Rv::FUNCTION_NOT_SUPPORTED if is_another => Rv::DEVICE_ERROR,
            rv => rv,
        })?;
        running.op.runs = running.kept.settle(lease, running.op.mechanism_and_flag());
        answer
    }

    /// Feeds a freshly started operation what the application has fed so far.
    fn feed_again(&self, lease: &Lease, op: &Operation) -> Result<()> {
        let Some(replay) = op.more.as_ref().map(|m| &m.replay).filter(|r| !r.is_empty()) else {
            return Ok(());
        };
        let (token, session) = (lease.token(), lease.session);
        let (mut digest, mut total) = (Sha256::new(), 0);
        // What comes out may be a secret.
        let mut space = Zeroizing::new(Vec::new());
        let last = replay.steps().count().saturating_sub(usize::from(wrong!(ReplayMissesLast)));
        for step in replay.steps().take(last) {
            match step {
                Step::Key(key) => token.digest_key(session, self.group.backing(lease, &*self.key(key)?)?)?,
                Step::Update(input) if has_output(op.kind) => {
                    if space.len() < input.len() + 256 {
                        space = Zeroizing::new(vec![0; input.len() + 256]);
                    }
                    let mut out = Output::buffer(&mut space);
                    token.op_update(session, op.kind, input, &mut out)?;
                    digest.update(out.written());
                    total += out.len();
                }
                Step::Update(input) => token.op_update(session, op.kind, input, &mut Output::query())?,
            }
        }
        replay.same_output(digest, total)
    }

    /// Makes one call on the session's operation of a kind; ends the operation if it does not go on.
    fn with_operation(
        &self,
        session: SessionHandle,
        kind: OpKind,
        f: impl FnOnce(&mut Running<'_>) -> (Result<()>, bool),
    ) -> Result<()> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        on_operation(&mut state, kind, f)
    }

    /// `C_Sign` and the other one-shot functions with an output.
    #[inline(always)]
    pub(super) fn one_shot(
        &self,
        session: SessionHandle,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        if let Some(late) = state.take_late(kind) {
            return self.at_once(&mut state, late, input, output);
        }
        on_operation(&mut state, kind, |running| {
            let mut signed = running.op.take_signed();
            let answer = self.advance(running, kind.one_shot(), output, &mut |l, out| {
                l.token().op_one_shot(l.session, kind, input, out)?;
                self.vouch(signed.as_deref_mut(), l, kind.one_shot(), Input::Whole(input), out)
            });
            running.op.put_signed(signed);
            (answer, stays(answer, output))
        })
    }

    /// Starts an operation that was left for this call, and makes the call, where its session's last operation was; or
    /// elsewhere, if that fails.
    #[inline(always)]
    fn at_once(
        &self,
        state: &mut SessionState,
        late: Late,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        self.is_still_there(late.key.as_deref())?;
        let (kind, mechanism) = (late.kind, late.mechanism);
        let changes = self.group.objects.changes();
        let need = Need {
            mechanism: Some((mechanism, kind.flag())),
            object: late.key.as_deref(),
            ..Need::default()
        };
        let (runs, answer) = match state.kept.take_up(&self.group, &need) {
            None => (Runs::Nowhere, None),
            Some(lease) => {
                let key = match &late.key {
                    None => Ok(ObjectHandle(0)),
                    Some(key) => self.group.backing(lease, key),
                };
                let (token, session) = (lease.token(), lease.session);
                let answer =
                    key.and_then(|key| token.op_at_once(session, kind, mechanism, key, input, output));
                if answer.is_ok() && !output.is_query() {
                    self.group.succeeded();
                    let key = late.key.as_ref().map_or(ObjectHandle(0), |key| key.handle);
                    state.kept.has_begun(Some(Begun { kind, mechanism, key, changes }));
                    state.kept.rest();
                    return Ok(());
                }
                (Runs::OnKept, Some(answer))
            }
        };
        state.add_late_one(Operation::late(late, runs));
        self.late_goes_on(state, kind, input, output, answer)
    }

    /// What follows the first call of a late operation that has not ended it.
    #[inline(never)]
    fn late_goes_on(
        &self,
        state: &mut SessionState,
        kind: OpKind,
        input: &[u8],
        output: &mut Output<'_>,
        answer: Option<Result<()>>,
    ) -> Result<()> {
        if let Some(Ok(())) = answer {
            self.group.succeeded();
            return Ok(());
        }
        on_operation(state, kind, |running| {
            let failed = answer.and_then(Result::err);
            let answer = self.go_on(running, kind.one_shot(), output, failed, &mut |l, out| {
                l.token().op_one_shot(l.session, kind, input, out)
            });
            let answer = answer.map_err(of_a_key);
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
        self.with_operation(session, kind, |running| self.update_op(running, input, output))
    }

    fn update_op(
        &self,
        running: &mut Running<'_>,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> (Result<()>, bool) {
        let kind = running.op.kind;
        let answer = self.advance(running, kind.update(), output, &mut |l, out| {
            l.token().op_update(l.session, kind, input, out)
        });
        if answer.is_ok() && !(has_output(kind) && output.is_query()) {
            running.op.record(Step::Update(input), output.written(), self.group.config.replay_limit);
            if let Some(signed) = running.op.more.as_mut().and_then(|m| m.signed.as_mut()) {
                signed.hear(input);
            }
        }
        (answer, answer.is_ok() || answer == Err(Rv::BUFFER_TOO_SMALL))
    }

    /// `C_XxxFinal` with an output.
    pub(super) fn finish(&self, session: SessionHandle, kind: OpKind, output: &mut Output<'_>) -> Result<()> {
        self.with_operation(session, kind, |running| {
            let all = running.op.all_fed();
            let mut signed = running.op.take_signed();
            let answer = self.advance(running, kind.last(), output, &mut |l, out| {
                l.token().op_final(l.session, kind, out)?;
                let input = Input::Parts(&[], all.as_ref().map(|all| all.as_slice()));
                self.vouch(signed.as_deref_mut(), l, kind.last(), input, out)
            });
            running.op.put_signed(signed);
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
        self.with_operation(session, kind, |running| {
            let answer =
                self.advance(running, function, &mut Output::query(), &mut |l, _| call(l.token(), l.session));
            (answer, false)
        })
    }

    /// `C_DigestKey`.
    pub(super) fn digest_key_step(&self, session: SessionHandle, key: ObjectHandle) -> Result<()> {
        self.with_operation(session, OpKind::Digest, |running| {
            let object = match self.key(key) {
                Ok(object) => object,
                // The operation goes on.
                Err(rv) => return (Err(rv), true),
            };
            let answer = self.advance(running, Function::DigestKey, &mut Output::query(), &mut |l, _| {
                l.token().digest_key(l.session, self.group.backing(l, &object)?)
            });
            if answer.is_ok() {
                running.op.record(Step::Key(key), &[], self.group.config.replay_limit);
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
        if !state.is_active(data) || !state.is_active(outer) {
            return Err(Rv::OPERATION_NOT_INITIALIZED);
        }
        on_operation(&mut state, outer, |running| self.update_op(running, input, output))?;
        if output.is_query() {
            return Ok(());
        }
        let plain = match outer {
            OpKind::Decrypt => output.written(),
            _ => input,
        };
        on_operation(&mut state, data, |running| self.update_op(running, plain, &mut Output::query()))
    }
}

/// Makes one call on an operation; ends it if it does not go on, and keeps its backing session for the next one.
fn on_operation(
    state: &mut SessionState,
    kind: OpKind,
    f: impl FnOnce(&mut Running<'_>) -> (Result<()>, bool),
) -> Result<()> {
    let (answer, goes_on) = f(&mut state.operation(kind)?);
    if !goes_on {
        state.end(kind);
    }
    answer
}

/// What a token says of any object is said of a key, where it is one that was asked for.
pub(super) fn of_a_key(rv: Rv) -> Rv {
    match rv {
        Rv::OBJECT_HANDLE_INVALID => Rv::KEY_HANDLE_INVALID,
        rv => rv,
    }
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
