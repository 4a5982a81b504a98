//! What is said to one member's token, on a thread of its own; what it answers goes to the report line by line.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use ha_core::config::MemberConfig;
use ha_core::provider;
use ha_core::replica::wrapping::WrapAbility;
use ha_core::replica::{On, mechanisms_of};
use ha_member::{Instance, ModuleConfig};
use ha_token::{Connector, Rv, SessionHandle, Token, TokenInfo, Ulong, UserType, ck};
use zeroize::Zeroizing;

use super::{Finding, Line};

/// From the thread that talks to a member.
pub(super) enum Message {
    Line(Line),
    Serial(String),
}

/// What is said to one member.
pub(super) struct Talk {
    pub(super) name: String,
    pub(super) config: MemberConfig,
    pub(super) pin: Option<Arc<Zeroizing<Vec<u8>>>>,
    pub(super) refused: Arc<AtomicBool>,
    pub(super) sender: Sender<Message>,
}

impl Talk {
    fn say(&self, finding: Finding, text: String, mend: Option<&str>) {
        let line = Line { finding, subject: self.name.clone(), text, mend: mend.map(str::to_owned) };
        // Nobody listens any more when the member took too long.
        _ = self.sender.send(Message::Line(line));
    }

    pub(super) fn run(&self) {
        let module = self.config.module.display();
        let connector = provider::connector(&self.config);
        match ha_member::tokens(&self.module()) {
            Err(error) => {
                return self.say(
                    Finding::Fail,
                    error.to_string(),
                    Some("applications go on with the other members until this is mended"),
                );
            }
            Ok(tokens) => {
                let labels: Vec<_> =
                    tokens.iter().filter_map(|t| Some(format!("{:?}", t.2.as_ref()?.label))).collect();
                self.say(Finding::Ok, format!("module {module} loads; tokens: {}", labels.join(", ")), None);
            }
        }
        match connector.connect() {
            Err(error) => self.say(
                Finding::Fail,
                error.to_string(),
                Some("applications go on with the other members until this is mended"),
            ),
            Ok(token) => {
                if let Err(rv) = self.token(&*token) {
                    self.say(
                        Finding::Fail,
                        format!("the token answered {rv}"),
                        Some("look at the token's own log, and at its service"),
                    );
                }
                drop(token);
            }
        }
        connector.disconnect();
    }

    fn module(&self) -> ModuleConfig {
        use ha_core::config::InstanceMode;
        ModuleConfig {
            path: self.config.module.clone(),
            instance: match self.config.instance {
                InstanceMode::Auto => Instance::Auto,
                InstanceMode::Private => Instance::Private,
                InstanceMode::Shared => Instance::Shared,
            },
            env: self.config.env.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            selector: self.config.selector.clone(),
        }
    }

    fn token(&self, token: &dyn Token) -> Result<(), Rv> {
        let info = token.token_info()?;
        _ = self.sender.send(Message::Serial(info.serial.clone()));
        let version = info.firmware_version;
        let text = format!(
            "token {:?}: {} {}, firmware {}.{}, serial {}",
            info.label, info.manufacturer, info.model, version.major, version.minor, info.serial
        );
        self.say(Finding::Ok, text, None);
        self.flags(&info);
        self.mechanisms(token)?;
        let own = self.config.pin.as_ref().filter(|_| self.pin.is_some()).and_then(|p| p.resolve().ok());
        let pin = match (&own, &self.pin) {
            (Some(own), _) => own,
            (None, Some(_)) if self.refused.load(Ordering::Acquire) => {
                self.say(
                    Finding::Warn,
                    "another token refused the PIN: it is not sent to this one".into(),
                    Some("give the right PIN"),
                );
                return Ok(());
            }
            (None, Some(pin)) => pin,
            (None, None) => return Ok(()),
        };
        if info.flags & (ck::CKF_USER_PIN_FINAL_TRY | ck::CKF_USER_PIN_LOCKED) != 0 {
            // Said above; a wrong PIN now would lock the token.
            return Ok(());
        }
        let session = token.open_session(true)?;
        let answer = self.log_in(token, session, pin, own.is_some());
        token.close_session(session)?;
        answer
    }

    fn flags(&self, info: &TokenInfo) {
        let has = |flag: Ulong| info.flags & flag != 0;
        if !has(ck::CKF_USER_PIN_INITIALIZED) {
            self.say(
                Finding::Fail,
                "the token has no user PIN".into(),
                Some("set one, for example with `pkcs11-tool --init-pin`"),
            );
        }
        if has(ck::CKF_USER_PIN_LOCKED) {
            self.say(
                Finding::Fail,
                "the user PIN is locked".into(),
                Some("let the token's security officer set a new one"),
            );
        } else if has(ck::CKF_USER_PIN_FINAL_TRY) {
            let mend = "log in to this token directly with the right PIN, which clears its counter; until then no PIN is sent to it";
            self.say(Finding::Fail, "one more wrong PIN locks the token".into(), Some(mend));
        } else if has(ck::CKF_USER_PIN_COUNT_LOW) {
            self.say(
                Finding::Warn,
                "a wrong PIN was tried on it".into(),
                Some("a right one clears the counter"),
            );
        }
        if has(ck::CKF_WRITE_PROTECTED) {
            self.say(
                Finding::Warn,
                "the token is write-protected".into(),
                Some("no key can be made on it; min_copies may not be reached"),
            );
        }
    }

    /// By the token's own list; what it really can is tried after a login.
    fn mechanisms(&self, token: &dyn Token) -> Result<(), Rv> {
        let list = token.mechanism_list()?;
        let can = |kind: Ulong| {
            let both = ck::CKF_WRAP | ck::CKF_UNWRAP;
            list.contains(&kind) && token.mechanism_info(kind).is_ok_and(|i| i.flags & both == both)
        };
        let wraps: Vec<_> = WRAPS.iter().filter(|w| can(w.0)).map(|w| w.1).collect();
        if wraps.is_empty() {
            let mend = "keys are not copied to or from it: they are refused, or stay where they are, by `uncopyable`";
            self.say(
                Finding::Warn,
                "it has no wrapping mechanism that copies keys (AES key wrap)".into(),
                Some(mend),
            );
        } else {
            self.say(Finding::Ok, format!("wrapping mechanisms: {}", wraps.join(", ")), None);
        }
        if !can(ck::CKM_RSA_PKCS_OAEP) {
            let mend = "group keys cannot be brought to it, so that it gets no copies of new keys";
            self.say(Finding::Warn, "RSA-OAEP does not wrap and unwrap on it".into(), Some(mend));
        }
        Ok(())
    }

    fn log_in(&self, token: &dyn Token, session: SessionHandle, pin: &[u8], own: bool) -> Result<(), Rv> {
        match token.login(session, UserType::User, Some(pin)) {
            Ok(()) => self.say(
                Finding::Ok,
                format!("login with the {} PIN", if own { "member's own" } else { "given" }),
                None,
            ),
            Err(
                rv @ (Rv::PIN_INCORRECT
                | Rv::PIN_LEN_RANGE
                | Rv::PIN_INVALID
                | Rv::PIN_LOCKED
                | Rv::PIN_EXPIRED),
            ) => {
                if !own {
                    self.refused.store(true, Ordering::Release);
                }
                let mend = "do not simply try again: each refusal may count; give the member the group's PIN, or a `pin` of its own";
                self.say(Finding::Fail, format!("login: {rv}"), Some(mend));
                return Ok(());
            }
            Err(rv) => return Err(rv),
        }
        let mechanisms = mechanisms_of(token)?;
        let ability = WrapAbility::probe(On { token, session, mechanisms: &mechanisms })?;
        let formats: Vec<_> = ability
            .formats(None)
            .map(|f| WRAPS.iter().find(|w| w.0 == f.mechanism).map_or("other", |w| w.1))
            .collect();
        if formats.is_empty() {
            let mend = "keys are not copied to or from it: they are refused, or stay where they are, by `uncopyable`";
            self.say(Finding::Warn, "no wrapping mechanism brings a key back as it was".into(), Some(mend));
        } else {
            self.say(Finding::Ok, format!("tried on throw-away keys: {}", formats.join(", ")), None);
        }
        token.logout(session)
    }
}

/// The wrapping mechanisms that copies are made with.
const WRAPS: [(Ulong, &str); 3] = [
    (ck::CKM_AES_KEY_WRAP_KWP, "AES_KEY_WRAP_KWP"),
    (ck::CKM_AES_KEY_WRAP_PAD, "AES_KEY_WRAP_PAD"),
    (ck::CKM_AES_KEY_WRAP, "AES_KEY_WRAP"),
];
