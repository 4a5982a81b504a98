//! What was made by a call that nobody waited for any more: whose it is to take back, and how.

use ha_token::{ObjectHandle, SessionHandle, Template, TemplateExt, Token, Value, ck};

use super::owned::Filled;
use crate::mutants::wrong;

/// What a call has made.
pub(super) trait Made {
    /// Its objects, in the order of their templates.
    fn handles(&self) -> [Option<ObjectHandle>; 2];
}

impl Made for ObjectHandle {
    fn handles(&self) -> [Option<ObjectHandle>; 2] {
        [Some(*self), None]
    }
}

impl Made for Option<ObjectHandle> {
    fn handles(&self) -> [Option<ObjectHandle>; 2] {
        [*self, None]
    }
}

impl Made for (ObjectHandle, ObjectHandle) {
    fn handles(&self) -> [Option<ObjectHandle>; 2] {
        [Some(self.0), Some(self.1)]
    }
}

impl Made for (Option<ObjectHandle>, Filled) {
    fn handles(&self) -> [Option<ObjectHandle>; 2] {
        [self.0, None]
    }
}

/// Whether what is made of a template outlives its session; `unsaid`: where nothing is said.
pub(super) fn is_lasting(template: &Template, unsaid: bool) -> bool {
    template.get(ck::CKA_TOKEN).and_then(Value::as_bool).unwrap_or(unsaid)
}

/// Takes back what was made too late. A token object is its group's to look for, unless that does so no more.
pub(super) fn take_back(
    token: &dyn Token,
    session: SessionHandle,
    made: &impl Made,
    lasting: [bool; 2],
    given_up: bool,
) {
    for (handle, lasting) in made.handles().into_iter().zip(lasting) {
        if let Some(handle) = handle.filter(|_| given_up || !lasting)
            && !wrong!(LateObjectKept)
            && let Err(rv) = token.destroy_object(session, handle)
        {
            tracing::warn!(%rv, "what a member made too late could not be taken back: `hactl check` shows whether it is there");
        }
    }
}
