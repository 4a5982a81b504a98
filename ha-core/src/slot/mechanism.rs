//! A mechanism's parameter: whether somebody here can read it, which objects it names, and what a member must see of it.

use std::sync::Arc;

use ha_token::{Function, Mechanism, Params, Result, Rv};

use super::VirtualSlot;
use crate::group::{Lease, Object};
use crate::policy::failure::{Class, classify};

impl VirtualSlot {
    /// Refuses vendor mechanisms whose parameter nobody here can read.
    pub(super) fn vet(&self, mechanism: &Mechanism) -> Result<()> {
        if mechanism.is_opaque() && !self.group.config.vendor_mechanisms.contains(&mechanism.kind) {
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
}

/// Ties a call that may run several times to the connection on which it ran first, if it is to be tied: where its mechanism
/// is [opaque](Mechanism::is_opaque). What that does elsewhere, or once more, cannot be told.
pub(super) struct Tie {
    tied: bool,
    first: Option<(usize, u64)>,
    failed: Option<Rv>,
}

impl Tie {
    pub(super) fn new(tied: bool) -> Self {
        Tie { tied, first: None, failed: None }
    }

    /// It was made already, and failed so.
    pub(super) fn after(tied: bool, tried: Option<&(Lease, Rv)>) -> Self {
        let first = tried.filter(|(_, rv)| !is_missing(*rv)).map(|(lease, _)| place(lease));
        Tie { tied, first, failed: tried.map(|(_, rv)| *rv) }
    }

    /// Makes the call, unless it was made elsewhere before.
    ///
    /// # Errors
    /// Its answer.
    pub(super) fn on<T>(&mut self, lease: &Lease, call: impl FnOnce() -> Result<T>) -> Result<T> {
        let here = place(lease);
        // What was lost before anything was done is no reason not to ask once more.
        let is_over = self.failed.is_some_and(|rv| {
            !matches!(classify(Function::SignInit, rv), Class::Session | Class::Login | Class::Object)
        });
        if self.tied && (is_over || *self.first.get_or_insert(here) != here) {
            // Nobody is suspected for it.
            return Err(Rv::FUNCTION_NOT_SUPPORTED);
        }
        let answer = call();
        self.failed = answer.as_ref().err().copied();
        if self.failed.is_some_and(is_missing) {
            self.first = None;
        }
        answer
    }

    /// The application's answer, where no member could be asked: that of the one that was.
    pub(super) fn answer(&self, function: Function, rv: Rv) -> Rv {
        match self.failed.filter(|_| self.tied) {
            None => rv,
            Some(first) => match classify(function, first) {
                Class::Session | Class::Login | Class::Member => Rv::DEVICE_ERROR,
                Class::Object => rv,
                Class::Caller | Class::Capacity | Class::Ambiguous => first,
            },
        }
    }
}

/// Whether a member has not the key, so that nothing was done there.
fn is_missing(rv: Rv) -> bool {
    classify(Function::SignInit, rv) == Class::Object
}

fn place(lease: &Lease) -> (usize, u64) {
    (lease.member.index, lease.link.generation)
}
