//! Signatures, verified in software before the application is given them (`verify_signatures`).
//!
//! The check stands between the member's call and whoever called it: a signature that does not verify makes the call one that
//! failed ([`Rv::WRONG_SIGNATURE`], a member's fault), and what follows is what follows any such call. Parts are digested as
//! they are fed; a mechanism that does not digest its input is checked by what is kept for a failover.

use std::sync::{Arc, OnceLock};

use ha_token::{Function, ObjectHandle, Output, Params, Result, Rv, Ulong};
use zeroize::Zeroizing;

use super::VirtualSlot;
use super::operation::Operation;
use crate::group::{Lease, Object, PublicHalf};
use crate::mutants::wrong;
use crate::policy::liar::Trial;
use crate::replica::verifier::{Hasher, Judgement, Scheme};

/// What an operation's signatures are verified with.
pub(super) struct Signed {
    mechanism: Ulong,
    /// `None`: not computed with here.
    scheme: Option<Scheme>,
    object: Arc<Object>,
    /// Looked for where the operation starts.
    half: OnceLock<Arc<PublicHalf>>,
    /// The parts of a message, where it is digested.
    heard: Option<Hasher>,
    trial: Trial,
}

/// What was signed.
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    /// A whole message.
    Whole(&'a [u8]),
    /// The parts that were [heard](Signed::hear), and a last one; all of them together, where they are known.
    Parts(&'a [u8], Option<&'a [u8]>),
}

impl Signed {
    pub(super) fn new(mechanism: Ulong, params: &Params, object: &Arc<Object>) -> Box<Self> {
        let scheme = Scheme::of(mechanism, params);
        let object = Arc::clone(object);
        Box::new(Signed {
            mechanism,
            scheme,
            object,
            half: OnceLock::new(),
            heard: None,
            trial: Trial::default(),
        })
    }

    /// Whether parts are worth nothing but all together.
    pub(super) fn wants_whole(&self) -> bool {
        self.scheme.is_some_and(|scheme| scheme.hash().is_none())
    }

    /// A message in parts begins.
    pub(super) fn begin(&mut self) {
        self.heard = None;
    }

    /// A member has taken a part of a message.
    pub(super) fn hear(&mut self, part: &[u8]) {
        if let Some(hash) = self.scheme.and_then(Scheme::hash) {
            self.heard.get_or_insert_with(|| hash.start()).hear(part);
        }
    }

    fn judge(&self, input: Input<'_>, signature: &[u8]) -> Judgement {
        let (Some(scheme), Some(half)) = (self.scheme, self.half.get()) else { return Judgement::CannotTell };
        match (input, scheme.hash()) {
            (Input::Whole(message), _) => half.key.judge(scheme, message, signature),
            (Input::Parts(last, _), Some(hash)) => {
                let mut heard = self.heard.clone().unwrap_or_else(|| hash.start());
                heard.hear(last);
                half.key.judge_digest(scheme, &heard.finish(), signature)
            }
            (Input::Parts(_, Some(all)), None) => half.key.judge(scheme, all, signature),
            (Input::Parts(_, None), None) => Judgement::CannotTell,
        }
    }
}

impl Operation {
    /// What its signature is verified with, taken out for one call.
    #[inline]
    pub(super) fn take_signed(&mut self) -> Option<Box<Signed>> {
        self.more.as_mut()?.signed.take()
    }

    /// All that it was fed, where its signature can be verified by nothing else, and it is still known.
    pub(super) fn all_fed(&self) -> Option<Zeroizing<Vec<u8>>> {
        let more = self.more.as_ref().filter(|m| m.signed.as_ref().is_some_and(|s| s.wants_whole()))?;
        more.replay.is_whole().then(|| more.replay.input())
    }

    /// Puts it back, if it was there.
    #[inline]
    pub(super) fn put_signed(&mut self, signed: Option<Box<Signed>>) {
        if signed.is_some() {
            self.more.get_or_insert_default().signed = signed;
        }
    }
}

impl VirtualSlot {
    /// Before an operation starts, its key's public half is looked for, on a member that has the key under this handle.
    pub(super) fn find_half(&self, signed: Option<&Signed>, lease: &Lease, handle: ObjectHandle) {
        if let Some(signed) = signed
            && signed.scheme.is_some()
            && signed.half.get().is_none()
            && let Some(half) = self.group.public_half(lease, &signed.object, handle)
        {
            _ = signed.half.set(half);
        }
    }

    /// A member has signed. Nothing of a signature that does not verify is left in the output.
    ///
    /// # Errors
    /// [`Rv::WRONG_SIGNATURE`].
    pub(super) fn vouch(
        &self,
        signed: Option<&mut Signed>,
        lease: &Lease,
        function: Function,
        input: Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<()> {
        match signed {
            Some(signed) if !output.is_query() => self.vouch_for(signed, lease, function, input, output),
            _ => Ok(()),
        }
    }

    #[inline(never)]
    fn vouch_for(
        &self,
        signed: &mut Signed,
        lease: &Lease,
        function: Function,
        input: Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<()> {
        let (group, member) = (&*self.group, &*lease.member);
        match signed.judge(input, output.written()) {
            Judgement::CannotTell => {
                group.not_verified(signed.mechanism);
                Ok(())
            }
            Judgement::Wrong if wrong!(WrongSignatureHandedOut) => Ok(()),
            Judgement::Wrong => {
                let len = output.len();
                if let Some(written) = output.space().and_then(|space| space.get_mut(..len)) {
                    written.fill(0);
                }
                output.set_len(0);
                group.signed_wrongly(member, &signed.object, signed.mechanism, function);
                let shown =
                    signed.scheme.zip(signed.half.get()).is_some_and(|(scheme, half)| half.is_shown(scheme));
                if signed.trial.wrong(member.index, shown) {
                    group.convict(member, &signed.object, signed.mechanism);
                }
                Err(Rv::WRONG_SIGNATURE)
            }
            Judgement::Right => {
                if let Some((scheme, half)) = signed.scheme.zip(signed.half.get()) {
                    half.show(scheme);
                }
                let convicted = signed.trial.right();
                for liar in group.members.iter().filter(|m| convicted >> m.index & 1 != 0) {
                    group.convict(liar, &signed.object, signed.mechanism);
                }
                Ok(())
            }
        }
    }
}
