//! A mechanism's parameter: whether somebody here can read it, which objects it names, and what a member must see of it.

use std::sync::Arc;

use ha_token::{Mechanism, Params, Result, Rv};

use super::VirtualSlot;
use crate::group::{Lease, Object};

impl VirtualSlot {
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
}
