//! A PIN counter that locks, in front of a module that may have none.

use cryptoki_sys as ck;
use ha_token::{Function, Rv, Ulong};

use crate::shape::Role;
use crate::state::Verdict;
use crate::through::Passage;

/// What a token says of a user's PIN: wrong ones were given; one more locks; it is locked.
const USER: [ck::CK_FLAGS; 3] =
    [ck::CKF_USER_PIN_COUNT_LOW, ck::CKF_USER_PIN_FINAL_TRY, ck::CKF_USER_PIN_LOCKED];
const SO: [ck::CK_FLAGS; 3] = [ck::CKF_SO_PIN_COUNT_LOW, ck::CKF_SO_PIN_FINAL_TRY, ck::CKF_SO_PIN_LOCKED];

impl Passage<'_> {
    /// The slot and the user whose PIN the call gives.
    fn whose_pin(&self) -> Option<(Ulong, Ulong)> {
        if self.function == Function::InitToken {
            let slot = self.word(Role::Slot)?;
            return Some((self.live.tracking().real_slot(slot), ck::CKU_SO));
        }
        let session = self.real_session()?;
        let slot = self.live.tracking().slot(session)?;
        let user = match self.function {
            Function::Login | Function::LoginUser => match self.word(Role::User)? {
                ck::CKU_SO => ck::CKU_SO,
                _ => ck::CKU_USER, // for one operation, too
            },
            Function::SetPin => {
                let mut info = ck::CK_SESSION_INFO { slotID: 0, state: 0, flags: 0, ulDeviceError: 0 };
                // SAFETY: a number, and a place for the answer.
                let rv = unsafe { self.module.real().C_GetSessionInfo?(session, &mut info) };
                match info.state {
                    ck::CKS_RW_SO_FUNCTIONS if rv == ck::CKR_OK => ck::CKU_SO,
                    _ => ck::CKU_USER,
                }
            }
            _ => return None,
        };
        Some((slot, user))
    }

    /// Whether the call gives a PIN that is not looked at any more.
    pub(crate) fn is_locked(&self, verdict: &Verdict) -> Result<bool, Rv> {
        let Some(tries) = verdict.tries else { return Ok(false) };
        let Some((slot, user)) = self.whose_pin() else { return Ok(false) };
        self.kept(|state| state.wrong_pins(slot, user) >= tries)
    }

    /// Takes note of a PIN that was right or wrong, and of one that the security officer has set anew.
    pub(crate) fn judge(&self, verdict: &Verdict, answer: Result<(), Rv>) -> Result<(), Rv> {
        if verdict.tries.is_none() {
            return Ok(());
        }
        if self.function == Function::InitPin && answer.is_ok() {
            let slot = self.real_session().and_then(|session| self.live.tracking().slot(session));
            return slot.map_or(Ok(()), |slot| self.kept(|state| state.judged(slot, ck::CKU_USER, true)));
        }
        let right = match answer {
            Ok(()) => true,
            Err(Rv::PIN_INCORRECT) => false,
            Err(_) => return Ok(()),
        };
        let Some((slot, user)) = self.whose_pin() else { return Ok(()) };
        self.kept(|state| {
            state.judged(slot, user, right);
            // A token that was made anew has no user's PIN that could be locked.
            if right && self.function == Function::InitToken {
                state.judged(slot, ck::CKU_USER, true);
            }
        })
    }

    /// Says in a token's flags what the counters say; and takes away tokens that are gone.
    pub(crate) fn flag(&self, verdict: &Verdict) -> Result<(), Rv> {
        if verdict.gone {
            self.pointers.take_tokens();
        }
        let (Some(tries), Some(slot)) = (verdict.tries, self.word(Role::Slot)) else { return Ok(()) };
        if self.function != Function::GetTokenInfo {
            return Ok(());
        }
        let slot = self.live.tracking().real_slot(slot);
        for (user, flags) in [(ck::CKU_USER, USER), (ck::CKU_SO, SO)] {
            let wrong = self.kept(|state| state.wrong_pins(slot, user))?;
            let holds = [wrong >= 1, wrong.checked_add(1) == Some(tries), wrong >= tries];
            self.pointers.change_token_info(|info| {
                for (flag, holds) in flags.into_iter().zip(holds) {
                    info.flags = if holds { info.flags | flag } else { info.flags & !flag };
                }
            });
        }
        Ok(())
    }
}
