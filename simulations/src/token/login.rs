//! Sessions, logins and PINs.

use ha_token::{Result, Rv, SessionHandle, SessionInfo, SlotInfo, TokenInfo, Ulong, UserType, Version, ck};

use super::hash::Hash;
use super::state::{Call, Session, User};

const PIN_LENGTHS: std::ops::RangeInclusive<usize> = 4..=255;

/// What is kept of a PIN.
pub(super) fn digest(pin: &[u8]) -> [u8; 32] {
    Hash::Sha256.digest(pin).try_into().unwrap_or_default()
}

impl Call<'_> {
    pub(super) fn slot_info(&self) -> Result<SlotInfo> {
        Ok(SlotInfo {
            description: format!("Simulated slot of {}", self.store.durable.serial),
            manufacturer: self.profile.manufacturer.into(),
            flags: ck::CKF_TOKEN_PRESENT,
            hardware_version: Version { major: 2, minor: 6 },
            firmware_version: Version { major: 2, minor: 6 },
        })
    }

    pub(super) fn token_info(&self) -> Result<TokenInfo> {
        if self.own.broken {
            return Err(Rv::GENERAL_ERROR);
        }
        let durable = &self.store.durable;
        let mut flags =
            ck::CKF_RNG | ck::CKF_LOGIN_REQUIRED | ck::CKF_RESTORE_KEY_NOT_NEEDED | ck::CKF_TOKEN_INITIALIZED;
        if durable.user_pin.is_some() {
            flags |= ck::CKF_USER_PIN_INITIALIZED;
        }
        let counters = [
            (
                durable.user_failures,
                [ck::CKF_USER_PIN_COUNT_LOW, ck::CKF_USER_PIN_FINAL_TRY, ck::CKF_USER_PIN_LOCKED],
            ),
            (
                durable.so_failures,
                [ck::CKF_SO_PIN_COUNT_LOW, ck::CKF_SO_PIN_FINAL_TRY, ck::CKF_SO_PIN_LOCKED],
            ),
        ];
        for (failures, [low, last, locked]) in counters {
            flags |= if failures > 0 { low } else { 0 };
            if let Some(tries) = self.profile.pin_tries {
                flags |= if failures + 1 == tries { last } else { 0 };
                flags |= if failures >= tries { locked } else { 0 };
            }
        }
        let most = self.profile.most_sessions.map_or(ck::CK_EFFECTIVELY_INFINITE, |n| n as Ulong);
        Ok(TokenInfo {
            label: durable.label.clone(),
            manufacturer: self.profile.manufacturer.into(),
            model: self.profile.model.into(),
            serial: durable.serial.clone(),
            flags,
            max_session_count: most,
            session_count: ck::CK_UNAVAILABLE_INFORMATION,
            max_rw_session_count: most,
            rw_session_count: ck::CK_UNAVAILABLE_INFORMATION,
            max_pin_len: 255,
            min_pin_len: 4,
            total_public_memory: ck::CK_UNAVAILABLE_INFORMATION,
            free_public_memory: ck::CK_UNAVAILABLE_INFORMATION,
            total_private_memory: ck::CK_UNAVAILABLE_INFORMATION,
            free_private_memory: ck::CK_UNAVAILABLE_INFORMATION,
            hardware_version: Version { major: 2, minor: 6 },
            firmware_version: Version { major: 2, minor: 6 },
            // It has no clock.
            utc_time: String::new(),
        })
    }

    pub(super) fn open_session(&mut self, read_write: bool) -> Result<SessionHandle> {
        if !read_write && self.own.login == Some(User::So) {
            return Err(Rv::SESSION_READ_WRITE_SO_EXISTS);
        }
        if self.profile.most_sessions.is_some_and(|most| self.sessions >= most) {
            return Err(Rv::SESSION_COUNT);
        }
        let handle = self.own.next_handle(self.profile);
        self.own.sessions.insert(handle, Session { read_write, ..Session::default() });
        Ok(SessionHandle(handle))
    }

    pub(super) fn session_info(&self, session: SessionHandle) -> Result<SessionInfo> {
        let state = self.state(session)?;
        let read_write = self.own.sessions.get(&session.0).is_some_and(|s| s.read_write);
        let flags = ck::CKF_SERIAL_SESSION | if read_write { ck::CKF_RW_SESSION } else { 0 };
        Ok(SessionInfo { state, flags, device_error: 0 })
    }

    pub(super) fn session_cancel(&mut self, session: SessionHandle, flags: Ulong) -> Result<()> {
        if !self.profile.version_3 {
            return Err(Rv::FUNCTION_NOT_SUPPORTED);
        }
        let session = self.session(session)?;
        if session.operation.as_ref().is_some_and(|op| op.flag() & flags != 0) {
            session.operation = None;
            session.wants_login = false;
        }
        Ok(())
    }

    /// Compares a PIN, and counts.
    fn judge(&mut self, user: User, pin: &[u8]) -> Result<()> {
        let store = &mut *self.store;
        let durable = &mut store.durable;
        let (right, failures) = match user {
            User::So => (Some(durable.so_pin), &mut durable.so_failures),
            User::User => (durable.user_pin, &mut durable.user_failures),
        };
        if self.profile.pin_tries.is_some_and(|tries| *failures >= tries) {
            return Err(Rv::PIN_LOCKED);
        }
        let given = digest(pin);
        if right != Some(given) {
            *failures += 1;
            *store.refused.entry(given).or_default() += 1;
            let locked = self.profile.pin_tries.is_some_and(|tries| *failures >= tries);
            return Err(if locked { Rv::PIN_LOCKED } else { Rv::PIN_INCORRECT });
        }
        *failures = 0;
        store.accepted += 1;
        Ok(())
    }

    pub(super) fn login(&mut self, session: SessionHandle, user: UserType, pin: Option<&[u8]>) -> Result<()> {
        self.open(session)?;
        let pin = pin.ok_or(Rv::ARGUMENTS_BAD)?;
        if user == UserType::ContextSpecific {
            let there = self.session(session)?;
            if !there.wants_login || there.operation.is_none() {
                return Err(Rv::OPERATION_NOT_INITIALIZED);
            }
            if self.own.broken {
                return Err(Rv::GENERAL_ERROR);
            }
            let user = self.own.login.ok_or(Rv::OPERATION_NOT_INITIALIZED)?;
            self.judge(user, pin)?;
            self.session(session)?.wants_login = false;
            return Ok(());
        }
        let as_so = user == UserType::So;
        if as_so && self.own.sessions.values().any(|s| !s.read_write) {
            return Err(Rv::SESSION_READ_ONLY_EXISTS);
        }
        let user = if as_so { User::So } else { User::User };
        match self.own.login {
            Some(there) if there == user => return Err(Rv::USER_ALREADY_LOGGED_IN),
            Some(_) => return Err(Rv::USER_ANOTHER_ALREADY_LOGGED_IN),
            None => {}
        }
        if self.own.broken {
            return Err(Rv::GENERAL_ERROR);
        }
        if user == User::User && self.store.durable.user_pin.is_none() {
            return Err(Rv::USER_PIN_NOT_INITIALIZED);
        }
        self.judge(user, pin)?;
        self.own.login = Some(user);
        Ok(())
    }

    pub(super) fn login_user(
        &mut self,
        session: SessionHandle,
        user: UserType,
        pin: Option<&[u8]>,
    ) -> Result<()> {
        if self.profile.version_3 { self.login(session, user, pin) } else { Err(Rv::FUNCTION_NOT_SUPPORTED) }
    }

    pub(super) fn logout(&mut self, session: SessionHandle) -> Result<()> {
        self.open(session)?;
        if self.profile.version_3 && self.own.login.is_none() {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        self.own.log_out(&self.store.durable);
        Ok(())
    }

    pub(super) fn init_token(&mut self, pin: Option<&[u8]>, label: &str) -> Result<()> {
        if !self.own.sessions.is_empty() {
            return Err(Rv::SESSION_EXISTS);
        }
        let pin = pin.ok_or(Rv::ARGUMENTS_BAD)?;
        if !PIN_LENGTHS.contains(&pin.len()) {
            return Err(Rv::PIN_INCORRECT);
        }
        self.may_store()?;
        self.judge(User::So, pin)?;
        let durable = &mut self.store.durable;
        durable.label = label.trim_end().to_owned();
        durable.user_pin = None;
        durable.user_failures = 0;
        durable.objects.clear();
        Ok(())
    }

    pub(super) fn init_pin(&mut self, session: SessionHandle, pin: Option<&[u8]>) -> Result<()> {
        if self.state(session)? != ck::CKS_RW_SO_FUNCTIONS {
            return Err(Rv::USER_NOT_LOGGED_IN);
        }
        let pin = pin.ok_or(Rv::ARGUMENTS_BAD)?;
        if !PIN_LENGTHS.contains(&pin.len()) {
            return Err(Rv::PIN_LEN_RANGE);
        }
        self.may_store()?;
        self.store.durable.user_pin = Some(digest(pin));
        self.store.durable.user_failures = 0;
        Ok(())
    }

    pub(super) fn set_pin(
        &mut self,
        session: SessionHandle,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<()> {
        let state = self.state(session)?;
        let (old, new) = (old.ok_or(Rv::ARGUMENTS_BAD)?, new.ok_or(Rv::ARGUMENTS_BAD)?);
        if !PIN_LENGTHS.contains(&new.len()) {
            return Err(Rv::PIN_LEN_RANGE);
        }
        let user = match state {
            ck::CKS_RW_PUBLIC_SESSION | ck::CKS_RW_USER_FUNCTIONS => User::User,
            ck::CKS_RW_SO_FUNCTIONS => User::So,
            _ => return Err(Rv::SESSION_READ_ONLY),
        };
        self.may_store()?;
        self.judge(user, old)?;
        match user {
            User::So => self.store.durable.so_pin = digest(new),
            User::User => self.store.durable.user_pin = Some(digest(new)),
        }
        Ok(())
    }
}
