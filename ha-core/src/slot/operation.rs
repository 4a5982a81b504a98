//! Operations in flight: started on one member, and taken over by another when that one fails.

use std::sync::Arc;

use ha_token::{
    CombinedKind, Function, Mechanism, ObjectHandle, OpKind, Output, Params, Result, Rv, SessionHandle,
    TemplateExt, Token, Ulong, ck,
};
use sha2::{Digest, Sha256};

use super::VirtualSlot;
use super::kept::{Keep, Runs};
use super::replay::{Replay, Step};
use super::run::{Call, Left};
use super::session::SessionState;
use crate::group::{Lease, Need, Object, Pin, Standing, Who};
use crate::policy::failure::Class;

/// An operation of a virtual session, with all that another member needs to go on with it.
pub(super) struct Operation {
    kind: OpKind,
    /// The result depends on what one member made up and the caller has seen: no other member can go on.
    pinned: bool,
    mechanism: Ulong,
    key: Option<Arc<Object>>,
    /// Counts the session's operations.
    pub number: u32,
    /// What most one-shot operations do not have.
    more: Option<Box<More>>,
    /// Where it runs.
    pub runs: Runs,
}

/// What an operation may have besides a mechanism and a key.
#[derive(Default)]
struct More {
    params: Params,
    /// Objects that the mechanism's parameter names.
    inner: Box<[Arc<Object>]>,
    /// `C_VerifySignatureInit`'s signature.
    signature: Box<[u8]>,
    /// The PIN that a member accepted for `CKU_CONTEXT_SPECIFIC`, given again to one that takes over.
    context_pin: Option<Pin>,
    replay: Replay,
}

/// An operation, and where it may run.
pub(super) struct Running<'a> {
    /// The operation.
    pub op: &'a mut Operation,
    /// Its session's place for a backing session.
    pub kept: &'a mut Keep,
}

impl Operation {
    /// A digest without a parameter.
    pub(super) fn digest(mechanism: Ulong, runs: Runs) -> Self {
        Operation { kind: OpKind::Digest, pinned: false, mechanism, key: None, number: 0, more: None, runs }
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
    fn need(&self, preferred: Option<usize>) -> Need<'_> {
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
    fn lease(&mut self) -> Option<&mut Lease> {
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
        let more = match (&mechanism.params, signature) {
            (Params::None, []) => None,
            _ => Some(self.more(mechanism, signature)?),
        };
        if kind == OpKind::Digest && more.is_none() && state.add_late_digest(mechanism.kind) {
            return Ok(());
        }
        let key = if kind == OpKind::Digest { None } else { Some(self.key(key)?) };
        let op = Operation {
            kind,
            pinned: false,
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
            Ok(None) => Ok(()),
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
        let started = self.run_from(tried, &call, &mut |lease| self.start(lease, op));
        // What a token says of any object, here it is said of a key.
        let (after, lease) = started.map_err(|rv| match rv {
            Rv::OBJECT_HANDLE_INVALID => Rv::KEY_HANDLE_INVALID,
            rv => rv,
        })?;
        op.runs = kept.settle(lease, op.mechanism_and_flag());
        Ok(after)
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
    #[inline(always)]
    fn start(&self, lease: &Lease, op: &Operation) -> Result<Option<Box<Mechanism>>> {
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
        let (token, session) = (lease.token(), lease.session);
        let mechanism = Mechanism { kind: op.mechanism, params: more.params.clone() };
        let mut mechanism = self.localised(lease, &mechanism)?;
        if op.kind == OpKind::VerifySignature {
            token.verify_signature_init(session, Some(&mut mechanism), key, &more.signature)?;
        } else {
            token.op_init(session, op.kind, Some(&mut mechanism), key)?;
        }
        if let Some(pin) = &more.context_pin {
            self.group.context_login(lease, Some(pin), Standing::Accepted)?;
        }
        let written = more.inner.is_empty() && mechanism.params != more.params;
        Ok(written.then(|| Box::new(mechanism)))
    }

    /// Makes one call of an operation, on the member it runs on or, when that fails, on another one that is brought to
    /// the same point first.
    #[inline]
    fn advance(
        &self,
        running: &mut Running<'_>,
        function: Function,
        output: &mut Output<'_>,
        call: &mut impl FnMut(&Lease, &mut Output<'_>) -> Result<()>,
    ) -> Result<()> {
        if let Runs::NotYet = running.op.runs {
            self.start_late(running);
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

    /// Starts an operation that was left for its first call, where its session's last one was. If that fails, it is
    /// started elsewhere ([`go_on`](Self::go_on)).
    #[inline(never)]
    fn start_late(&self, running: &mut Running<'_>) {
        let op = &mut *running.op;
        op.runs = Runs::Nowhere;
        let Some(lease) = running.kept.take_up(&self.group, &op.need(None)) else { return };
        match self.start(lease, op) {
            Ok(_) => op.runs = Runs::OnKept,
            Err(rv) => {
                tracing::debug!(group = %self.group.config.label, %rv, "a digest is started elsewhere");
                if let Some(mut lease) = running.kept.give_up() {
                    lease.set_busy(true);
                }
            }
        }
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
        let mut failed_on = None;
        let mut ambiguous = None;
        let mut left = None;
        if let Some(rv) = failed
            && let Some(lease) = running.lease()
        {
            let class = group.failed(&lease.member, &lease.link, function, rv);
            match class {
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
            left = Some(Left { member: Arc::clone(&lease.member), rv, class });
            running.leave();
        }
        let op = &*running.op;
        let whole = op.more.as_ref().is_none_or(|m| m.replay.is_whole());
        if op.pinned || !whole {
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
        let call_again = Call { function, need: op.need(None), skip: failed_on };
        let taken_over = self.run_after(None, left, &call_again, &mut |lease| {
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
        });
        match (taken_over, ambiguous) {
            (Ok((answer, lease)), first) => {
                if let Some((member, rv)) = first {
                    group.blame(&member, function, rv);
                }
                running.op.runs = running.kept.settle(lease, running.op.mechanism_and_flag());
                answer
            }
            // Nobody else could be asked, or said the same: the first answer is the caller's.
            (Err(Rv::DEVICE_ERROR), Some((_, rv))) => Err(rv),
            (Err(rv), _) => Err(rv),
        }
    }

    /// Feeds a freshly started operation what the application has fed so far.
    fn feed_again(&self, lease: &Lease, op: &Operation) -> Result<()> {
        let Some(replay) = op.more.as_ref().map(|m| &m.replay).filter(|r| !r.is_empty()) else {
            return Ok(());
        };
        let (token, session) = (lease.token(), lease.session);
        let (mut digest, mut total) = (Sha256::new(), 0);
        let mut space = Vec::new();
        for step in replay.steps() {
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
        if kind == OpKind::Digest
            && let Some(mechanism) = state.take_late_digest()
        {
            return self.digest_at_once(&mut state, mechanism, input, output);
        }
        on_operation(&mut state, kind, |running| {
            let answer = self.advance(running, kind.one_shot(), output, &mut |l, out| {
                l.token().op_one_shot(l.session, kind, input, out)
            });
            (answer, stays(answer, output))
        })
    }

    /// Starts a digest that was left for this call, and makes the call, where its session's last operation was; or
    /// elsewhere, if that fails.
    #[inline(always)]
    fn digest_at_once(
        &self,
        state: &mut SessionState,
        mechanism: Ulong,
        input: &[u8],
        output: &mut Output<'_>,
    ) -> Result<()> {
        let kind = OpKind::Digest;
        let need = Need { mechanism: Some((mechanism, kind.flag())), ..Need::default() };
        let (runs, answer) = match state.kept.take_up(&self.group, &need) {
            None => (Runs::Nowhere, None),
            Some(lease) => {
                let (token, session) = (lease.token(), lease.session);
                let answer = token.op_at_once(session, kind, mechanism, ObjectHandle(0), input, output);
                if answer.is_ok() && !output.is_query() {
                    self.group.succeeded();
                    state.kept.rest();
                    return Ok(());
                }
                (Runs::OnKept, Some(answer))
            }
        };
        state.add(Operation::digest(mechanism, runs));
        self.digest_goes_on(state, input, output, answer)
    }

    /// What follows the first call of a digest that has not ended it.
    #[inline(never)]
    fn digest_goes_on(
        &self,
        state: &mut SessionState,
        input: &[u8],
        output: &mut Output<'_>,
        answer: Option<Result<()>>,
    ) -> Result<()> {
        let kind = OpKind::Digest;
        if let Some(Ok(())) = answer {
            self.group.succeeded();
            return Ok(());
        }
        on_operation(state, kind, |running| {
            let failed = answer.and_then(Result::err);
            let answer = self.go_on(running, kind.one_shot(), output, failed, &mut |l, out| {
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
        }
        (answer, answer.is_ok() || answer == Err(Rv::BUFFER_TOO_SMALL))
    }

    /// `C_XxxFinal` with an output.
    pub(super) fn finish(&self, session: SessionHandle, kind: OpKind, output: &mut Output<'_>) -> Result<()> {
        self.with_operation(session, kind, |running| {
            let answer = self.advance(running, kind.last(), output, &mut |l, out| {
                l.token().op_final(l.session, kind, out)
            });
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
        let object = self.key(key)?;
        self.with_operation(session, OpKind::Digest, |running| {
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

    /// `C_Login` with `CKU_CONTEXT_SPECIFIC` (section 5.6.8): for the operation that was just started with a key that
    /// has `CKA_ALWAYS_AUTHENTICATE`.
    ///
    /// # Errors
    /// `CKR_OPERATION_NOT_INITIALIZED` without one; the first asked member's refusal.
    pub(super) fn context_login(&self, session: SessionHandle, pin: Option<&[u8]>) -> Result<()> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        let kind = self.wants_login(&mut state).ok_or(Rv::OPERATION_NOT_INITIALIZED)?;
        let mut running = state.operation(kind)?;
        let pin = pin.map(|p| self.group.login.hold(p));
        let standing = self.group.standing(pin.as_ref())?;
        self.advance(&mut running, Function::Login, &mut Output::query(), &mut |lease, _| {
            self.group.context_login(lease, pin.as_ref(), standing)
        })
        .map_err(|rv| self.group.context_answer(rv))?;
        running.op.more.get_or_insert_default().context_pin = pin;
        Ok(())
    }

    /// The operation that a login for its key's use is meant for: the last one started with a private key, or, of several,
    /// the last whose key says that it wants one.
    fn wants_login(&self, state: &mut SessionState) -> Option<OpKind> {
        let private = |o: &Operation| {
            let class = o.key.as_ref().map(|k| k.traits().class);
            class.is_some_and(|c| c != ck::CKO_PUBLIC_KEY)
        };
        let candidates = state.latest(private);
        let says = |kind: OpKind, state: &mut SessionState| -> Result<bool> {
            let mut running = state.operation(kind)?;
            let key = running.op.key.clone().ok_or(Rv::KEY_HANDLE_INVALID)?;
            let lease = running.lease().ok_or(Rv::DEVICE_ERROR)?;
            let handle = self.group.handle_to_read(lease, &key, &[])?;
            let on = lease.on();
            Ok(on.read(handle, &[ck::CKA_ALWAYS_AUTHENTICATE])?.get_bool(ck::CKA_ALWAYS_AUTHENTICATE)
                == Some(true))
        };
        if let [_, _, ..] = &candidates[..]
            && let Some(kind) = candidates.iter().find(|k| says(**k, state) == Ok(true))
        {
            return Some(*kind);
        }
        candidates.first().copied()
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
