//! The backing session that a virtual session keeps from one operation to the next.
//!
//! It stays in its place while an operation runs in it: an operation on it is started and ended without a plan, without
//! the pool, and without moving anything.

use ha_token::{ObjectHandle, OpKind, Ulong};

use crate::group::{Group, Lease, Need};
use crate::policy::balance::STAYS;

/// A backing session, kept.
pub(super) struct Kept {
    lease: Lease,
    /// An operation runs in it, or a call.
    in_use: bool,
    /// Operations that may still stay here before a plan is made again.
    stays: u8,
    /// The mechanism and flag that were last found to be there.
    fits: (Ulong, Ulong),
    /// What its token has begun last, if that may be begun late the next time.
    begun: Option<Begun>,
}

/// An operation without a parameter that a token has agreed to begin.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Begun {
    pub kind: OpKind,
    pub mechanism: Ulong,
    /// 0 for none.
    pub key: ObjectHandle,
    /// How many changes of objects the group had made when the token was asked: what a key may do may have changed since.
    pub changes: u64,
}

/// Where an operation runs.
pub(super) enum Runs {
    /// In the session's kept backing session.
    OnKept,
    /// In one of its own, because another operation had the kept one.
    On(Lease),
    /// Nowhere yet: its first call starts it.
    NotYet,
    /// Nowhere any more: its member failed.
    Nowhere,
}

/// The place for a virtual session's kept backing session.
#[derive(Default)]
pub(super) struct Keep(Option<Kept>);

impl Keep {
    /// Takes the kept backing session up for an operation or a call, if that may stay on it. One that may not be stayed
    /// on is given back to its pool.
    #[inline(always)]
    pub(super) fn take_up(&mut self, group: &Group, need: &Need<'_>) -> Option<&mut Lease> {
        let kept = self.0.as_mut()?;
        if kept.in_use {
            return None;
        }
        let fits = need.mechanism.is_none_or(|m| m == kept.fits);
        if kept.stays == 0 || !group.may_stay(&kept.lease, need, fits) {
            self.0 = None;
            return None;
        }
        kept.stays -= 1;
        kept.in_use = true;
        kept.begun = None;
        if let Some(mechanism) = need.mechanism {
            kept.fits = mechanism;
        }
        kept.lease.resume();
        self.in_use()
    }

    /// The token has agreed to begin this, the last thing here.
    #[inline]
    pub(super) fn has_begun(&mut self, what: Option<Begun>) {
        if let Some(kept) = &mut self.0 {
            kept.begun = what;
        }
    }

    /// Whether the token has just begun the same, and nothing is under way.
    #[inline]
    pub(super) fn would_begin(&self, what: Begun) -> bool {
        self.0.as_ref().is_some_and(|k| !k.in_use && k.begun == Some(what))
    }

    /// The backing session that [`take_up`](Self::take_up) or [`settle`](Self::settle) has put to use.
    #[inline]
    pub(super) fn in_use(&mut self) -> Option<&mut Lease> {
        self.0.as_mut().filter(|k| k.in_use).map(|k| &mut k.lease)
    }

    /// Takes a fresh backing session in, in use, if there is none.
    pub(super) fn settle(&mut self, lease: Lease, fits: (Ulong, Ulong)) -> Runs {
        if self.0.is_some() {
            return Runs::On(lease);
        }
        self.0 = Some(Kept { lease, in_use: true, stays: STAYS, fits, begun: None });
        Runs::OnKept
    }

    /// The operation or call in it has ended: it rests, or is given back if it cannot be spared.
    #[inline]
    pub(super) fn rest(&mut self) {
        if let Some(kept) = &mut self.0 {
            kept.in_use = false;
            if !kept.lease.rest() {
                self.0 = None;
            }
        }
    }

    /// Takes it out of its place, if it is in use.
    #[inline]
    pub(super) fn give_up(&mut self) -> Option<Lease> {
        self.0.take_if(|k| k.in_use).map(|k| k.lease)
    }

    /// Lets go of it: closed if an operation still runs in it, which is cancelled with that.
    pub(super) fn discard(&mut self) {
        if let Some(mut kept) = self.0.take() {
            kept.lease.set_busy(kept.in_use);
        }
    }
}
