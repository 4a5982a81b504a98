//! The login for the use of one key: which operation it is for, and the PIN kept for a member that takes over.

use ha_token::{Function, OpKind, Output, Result, Rv, SessionHandle, TemplateExt, ck};

use super::VirtualSlot;
use super::operation::Operation;
use super::session::SessionState;
use crate::pin::Pin;

impl VirtualSlot {
    /// `C_Login` with `CKU_CONTEXT_SPECIFIC` (section 5.6.8): for the operation that was just started with a key that
    /// has `CKA_ALWAYS_AUTHENTICATE`.
    ///
    /// # Errors
    /// `CKR_OPERATION_NOT_INITIALIZED` without one; the first asked member's refusal.
    pub(super) fn context_login(&self, session: SessionHandle, pin: Option<Pin>) -> Result<()> {
        let session = self.session(session)?;
        let mut state = session.state()?;
        let kind = self.wants_login(&mut state).ok_or(Rv::OPERATION_NOT_INITIALIZED)?;
        let mut running = state.operation(kind)?;
        // Without a name it is that of who is logged in.
        let pin = pin.map(|p| if p.user_name().is_empty() { self.group.login.hold(&p) } else { p });
        if pin.is_some() && !self.group.is_of(pin.as_ref()) {
            return Err(Rv::USER_ANOTHER_ALREADY_LOGGED_IN);
        }
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
