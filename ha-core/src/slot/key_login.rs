//! The login for the use of one key: which operation it is for, and the PIN kept for a member that takes over.

use std::cell::Cell;

use ha_token::{Fetched, Function, Output, Params, Result, Rv, SessionHandle, TemplateExt, ck};

use super::VirtualSlot;
use super::session::{Active, SessionState};
use crate::group::{Lease, NOT_HERE, Object};
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
        let active = self.wants_login(&mut state).ok_or(Rv::OPERATION_NOT_INITIALIZED)?;
        // Without a name it is that of who is logged in.
        let pin = pin.map(|p| if p.user_name().is_empty() { self.group.login.hold(&p) } else { p });
        if pin.is_some() && !self.group.is_of(pin.as_ref()) {
            return Err(Rv::USER_ANOTHER_ALREADY_LOGGED_IN);
        }
        let standing = self.group.standing(pin.as_ref())?;
        let doubtful = Cell::new(0u32);
        let login = |lease: &Lease| self.group.context_login(lease, pin.as_ref(), standing, &doubtful);
        let answered = |rv| match rv {
            // What a member made of it is not known: perhaps it is right.
            NOT_HERE if doubtful.get() != 0 => Rv::DEVICE_ERROR,
            rv => self.group.context_answer(rv),
        };
        match active {
            Active::Operation(kind) => {
                let mut running = state.operation(kind)?;
                self.advance(&mut running, Function::Login, &mut Output::query(), &mut |l, _| login(l))
                    .map_err(answered)?;
                running.op.more.get_or_insert_default().context_pin = pin;
            }
            Active::Messages(kind) => {
                let op = state.messages(kind)?;
                self.advance_messages(op, Function::Login, &mut Params::None, &mut |l, _| login(l))
                    .map_err(answered)?;
                op.context_pin = pin;
            }
        }
        Ok(())
    }

    /// The operation that a login for its key's use is meant for: the last one started with a private key, or, of several,
    /// the last whose key says that it wants one.
    fn wants_login(&self, state: &mut SessionState) -> Option<Active> {
        let candidates = state.latest(|key| key.traits().class != ck::CKO_PUBLIC_KEY);
        let reads = |lease: Option<&Lease>, key: &Object| -> Result<bool> {
            let lease = lease.ok_or(Rv::DEVICE_ERROR)?;
            let handle = self.group.handle_to_read(lease, key, &[])?;
            let on = lease.on();
            Ok(on.read(handle, &[ck::CKA_ALWAYS_AUTHENTICATE])?.get_bool(ck::CKA_ALWAYS_AUTHENTICATE)
                == Some(true))
        };
        let says = |active: Active, state: &mut SessionState| -> Result<bool> {
            match active {
                Active::Operation(kind) => {
                    let mut running = state.operation(kind)?;
                    let key = running.op.key.clone().ok_or(Rv::KEY_HANDLE_INVALID)?;
                    match running.lease() {
                        Some(lease) => reads(Some(&*lease), &key),
                        // It was left for its first call.
                        None => {
                            let read = self.fetch(&key, &[ck::CKA_ALWAYS_AUTHENTICATE])?;
                            Ok(matches!(&read[..], [Fetched::Value(value)] if value.as_bool() == Some(true)))
                        }
                    }
                }
                Active::Messages(kind) => {
                    let op = state.messages(kind)?;
                    reads(op.lease(), &op.key)
                }
            }
        };
        if let [_, _, ..] = &candidates[..]
            && let Some(active) = candidates.iter().find(|a| says(**a, state) == Ok(true))
        {
            return Some(*active);
        }
        candidates.first().copied()
    }
}
