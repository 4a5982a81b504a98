//! Slots, tokens and the opening of sessions.

use std::sync::Arc;

use cryptoki::error::Result;
use cryptoki::mechanism::{MechanismInfo, MechanismType};
use cryptoki::slot::{Slot, SlotInfo, TokenInfo};
use cryptoki::types::AuthPin;
use ha_token::ck::CKF_TOKEN_PRESENT;
use ha_token::{Rv, Token, Ulong};
use secrecy::ExposeSecret;

use super::super::convert::{self, OrError};
use super::super::session::Session;
use super::{Function, Pkcs11};

/// The longest label of a token, in bytes.
const LABEL_LEN: usize = 32;

impl Pkcs11 {
    /// Every slot with a token in it. A group's has one once a member was seen.
    ///
    /// # Errors
    /// `CKR_CRYPTOKI_NOT_INITIALIZED`.
    pub fn get_slots_with_token(&self) -> Result<Vec<Slot>> {
        self.slots(|token| token.slot_info().is_ok_and(|i| i.flags & CKF_TOKEN_PRESENT != 0))
    }

    /// Every slot.
    ///
    /// # Errors
    /// `CKR_CRYPTOKI_NOT_INITIALIZED`.
    pub fn get_all_slots(&self) -> Result<Vec<Slot>> {
        self.slots(|_| true)
    }

    /// Every slot with an initialised token in it.
    ///
    /// # Errors
    /// As [`Pkcs11::get_token_info`].
    pub fn get_slots_with_initialized_token(&self) -> Result<Vec<Slot>> {
        let mut slots = Vec::new();
        for slot in self.get_slots_with_token()? {
            if self.get_token_info(slot)?.token_initialized() {
                slots.push(slot);
            }
        }
        Ok(slots)
    }

    fn slots(&self, wanted: impl Fn(&dyn Token) -> bool) -> Result<Vec<Slot>> {
        let function = Function::GetSlotList;
        let running = self.running(function)?;
        let slots = running.provider().or_error(function)?.slots();
        (0..).zip(slots).filter(|(_, token)| wanted(token.as_ref())).map(|(id, _)| slot_of(id)).collect()
    }

    /// `C_InitToken`; the configuration's `init_token` says whether a group allows it. A label of more than 32 bytes is
    /// cut.
    ///
    /// # Errors
    /// `CKR_ACTION_PROHIBITED` for a group that does not allow it, and the token's own.
    pub fn init_token(&self, slot: Slot, pin: &AuthPin, label: &str) -> Result<()> {
        self.on(slot, Function::InitToken, |token| {
            token.init_token(Some(pin.expose_secret().as_bytes()), convert::fit(label, LABEL_LEN))
        })
    }

    /// What is known about the slot.
    ///
    /// # Errors
    /// `CKR_SLOT_ID_INVALID`.
    pub fn get_slot_info(&self, slot: Slot) -> Result<SlotInfo> {
        Ok(convert::slot_info(&self.on(slot, Function::GetSlotInfo, |token| token.slot_info())?))
    }

    /// What is known about the token.
    ///
    /// # Errors
    /// `CKR_SLOT_ID_INVALID`, `CKR_TOKEN_NOT_PRESENT` and the token's own.
    pub fn get_token_info(&self, slot: Slot) -> Result<TokenInfo> {
        convert::token_info(&self.on(slot, Function::GetTokenInfo, |token| token.token_info())?)
    }

    /// The token's mechanisms that cryptoki has a name for.
    ///
    /// # Errors
    /// As [`Pkcs11::get_token_info`].
    pub fn get_mechanism_list(&self, slot: Slot) -> Result<Vec<MechanismType>> {
        let all = self.on(slot, Function::GetMechanismList, |token| token.mechanism_list())?;
        Ok(all.into_iter().filter_map(|kind| kind.try_into().ok()).collect())
    }

    /// What the token says about a mechanism.
    ///
    /// # Errors
    /// `CKR_MECHANISM_INVALID`, and as [`Pkcs11::get_token_info`].
    pub fn get_mechanism_info(&self, slot: Slot, type_: MechanismType) -> Result<MechanismInfo> {
        self.on(slot, Function::GetMechanismInfo, |token| token.mechanism_info(type_.into()))
            .map(convert::mechanism_info)
    }

    /// Waits until a token appears or goes.
    ///
    /// # Errors
    /// `CKR_CRYPTOKI_NOT_INITIALIZED`, also when it is finalised meanwhile.
    pub fn wait_for_slot_event(&self) -> Result<Slot> {
        slot_of(self.event(true).or_error(Function::WaitForSlotEvent)?)
    }

    /// The slot where a token appeared or went since the last call, if any.
    ///
    /// # Errors
    /// `CKR_CRYPTOKI_NOT_INITIALIZED`.
    pub fn get_slot_event(&self) -> Result<Option<Slot>> {
        match self.event(false) {
            Err(Rv::NO_EVENT) => Ok(None),
            answer => slot_of(answer.or_error(Function::WaitForSlotEvent)?).map(Some),
        }
    }

    fn event(&self, block: bool) -> ha_token::Result<Ulong> {
        let running = self.instance.running.load_full().ok_or(Rv::CRYPTOKI_NOT_INITIALIZED)?;
        running.provider()?.wait_for_slot_event(block)
    }

    /// Opens a read-only session, closed when it is dropped.
    ///
    /// # Errors
    /// `CKR_SLOT_ID_INVALID`, `CKR_TOKEN_NOT_PRESENT` and the token's own.
    pub fn open_ro_session(&self, slot_id: Slot) -> Result<Session> {
        self.open_session(slot_id, false, true)
    }

    /// Opens a read-write session, closed when it is dropped.
    ///
    /// # Errors
    /// As [`Pkcs11::open_ro_session`].
    pub fn open_rw_session(&self, slot_id: Slot) -> Result<Session> {
        self.open_session(slot_id, true, true)
    }

    /// Opens a read-only session that stays open when it is dropped, until [`Session::close`] or `finalize`.
    ///
    /// # Errors
    /// As [`Pkcs11::open_ro_session`].
    pub fn open_ro_session_no_drop(&self, slot_id: Slot) -> Result<Session> {
        self.open_session(slot_id, false, false)
    }

    /// Opens a read-write session that stays open when it is dropped, until [`Session::close`] or `finalize`.
    ///
    /// # Errors
    /// As [`Pkcs11::open_ro_session`].
    pub fn open_rw_session_no_drop(&self, slot_id: Slot) -> Result<Session> {
        self.open_session(slot_id, true, false)
    }

    fn open_session(&self, slot: Slot, read_write: bool, close_on_drop: bool) -> Result<Session> {
        let function = Function::OpenSession;
        let running = self.running(function)?;
        let token = Arc::clone(running.provider().and_then(|p| p.slot(slot.into())).or_error(function)?);
        let handle = token.open_session(read_write).or_error(function)?;
        Ok(Session::new(running, token, slot, handle, close_on_drop))
    }

    /// One call of a slot's token.
    fn on<T>(
        &self,
        slot: Slot,
        function: Function,
        call: impl FnOnce(&dyn Token) -> ha_token::Result<T>,
    ) -> Result<T> {
        let running = self.running(function)?;
        let token = running.provider().and_then(|p| p.slot(slot.into())).or_error(function)?;
        call(token.as_ref()).or_error(function)
    }
}

/// cryptoki's name of a slot.
fn slot_of(id: Ulong) -> Result<Slot> {
    Slot::try_from(id)
}
