//! A configured group to be drilled: whether it may be, its members behind seams, and the drill's own objects on it.

use std::cell::Cell;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ha_core::config::{Config, GroupConfig};
use ha_core::group::MemberStatus;
use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_member::open_plain;
use ha_token::{Attribute, AttributeType, ObjectHandle, Rv, SessionHandle, Template, Token, UserType, ck};
use zeroize::Zeroizing;

use crate::load::LABEL;
use crate::plan::Scenario;
use crate::run::{COMING_UP, DrillError, ENDING, LOOK, provider_behind};
use crate::seam::Seam;

/// Of the group's longest interval: a member that was mended may be tried only after that.
const INTERVALS: u32 = 2;

/// A configured group, and the PIN of its user.
pub struct Configured {
    config: Config,
    pin: Zeroizing<Vec<u8>>,
}

impl Configured {
    /// The group with this label; where none is said, the only one.
    ///
    /// # Errors
    /// [`DrillError::Group`]: there is no such group, or it is not said which is meant.
    pub fn new(
        mut config: Config,
        label: Option<&str>,
        pin: Zeroizing<Vec<u8>>,
    ) -> std::result::Result<Self, DrillError> {
        let labels: Vec<String> = config.groups.iter().map(|group| group.label.clone()).collect();
        match label {
            Some(label) => config.groups.retain(|group| group.label == label),
            None if labels.len() > 1 => {
                return Err(DrillError::Refused(format!("which group? There are: {}", labels.join(", "))));
            }
            None => {}
        }
        if config.groups.is_empty() {
            return Err(DrillError::Refused(match label {
                Some(label) => format!("there is no group {label:?}; there are: {}", labels.join(", ")),
                None => "the configuration has no group".into(),
            }));
        }
        config.ha_only = true;
        Ok(Configured { config, pin })
    }

    fn group(&self) -> &GroupConfig {
        // There is one since `new`.
        &self.config.groups[0]
    }

    /// Its label.
    pub fn label(&self) -> &str {
        &self.group().label
    }

    /// How many members it has.
    pub fn members(&self) -> usize {
        self.group().members.len()
    }

    /// How long a call waits for one of its members.
    pub fn deadline(&self) -> Option<Duration> {
        self.group().deadline
    }

    /// How long a member of it takes at most to be tried again, once it is mended.
    pub fn comes_back_within(&self) -> Duration {
        self.group().recovery.max_interval * INTERVALS
    }

    /// Whether the scenario can be played on it at all.
    ///
    /// # Errors
    /// Why not, in words.
    pub(crate) fn suits(&self, scenario: Scenario) -> std::result::Result<(), DrillError> {
        let (members, copies) = (self.members(), self.group().min_copies);
        if members < 2 {
            return Err(DrillError::Refused(format!(
                "group {:?} has one member: there is no failover",
                self.label()
            )));
        }
        if scenario.writes() && copies >= members {
            return Err(DrillError::Refused(format!(
                "{scenario} makes objects while one member cannot write, and min_copies of group {:?} is {copies} with {members} members: each would be refused",
                self.label()
            )));
        }
        Ok(())
    }

    /// Looks at the group as its operators see it, and leaves it as it is.
    ///
    /// # Errors
    /// [`DrillError::Down`] where a member is not up; where nothing can be made on it; where another drill is going on.
    pub(crate) fn look(&self, is_over: &dyn Fn() -> bool) -> std::result::Result<Lock, DrillError> {
        let lock = Lock::take(&self.config.state_dir)?;
        let provider = Provider::for_operator(self.config.clone())?;
        let looked = self.look_with(&provider, is_over);
        provider.shutdown(ENDING);
        looked.map(|()| lock)
    }

    fn look_with(
        &self,
        provider: &Provider,
        is_over: &dyn Fn() -> bool,
    ) -> std::result::Result<(), DrillError> {
        let group = provider.groups().first().ok_or(DrillError::Call("the group", Rv::SLOT_ID_INVALID))?;
        group.sync_by_hand();
        let down = |why: String| Err(DrillError::Down(format!("group {:?}: {why}", self.label())));
        if let Err(rv) = group.log_in(UserType::User, &self.pin) {
            let members: Vec<String> = group.status().members.iter().map(words).collect();
            return down(format!("the login answered {rv}; {}", members.join("; ")));
        }
        let until = Instant::now() + COMING_UP;
        loop {
            let away: Vec<_> = group.status().members.into_iter().filter(|m| m.state != State::Up).collect();
            // Those that are neither up nor given up may be on their way.
            let is_final =
                |m: &MemberStatus| matches!(m.state, State::Down | State::Quarantined | State::Drained);
            if away.iter().any(is_final) || (!away.is_empty() && Instant::now() >= until) {
                return down(away.iter().map(words).collect::<Vec<_>>().join("; "));
            }
            if away.is_empty() || is_over() {
                break;
            }
            std::thread::sleep(LOOK);
        }
        if !group.may_change() {
            return down(
                "its ledger cannot be written here (is it another user's?), so that the drill can make no keys of its own"
                    .into(),
            );
        }
        Ok(())
    }

    /// The group with seams between it and its members. Other processes of this host do not see what becomes of its members.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(&self, seams: &[Seam], verifies: bool) -> std::result::Result<Provider, DrillError> {
        let mut config = self.config.clone();
        for group in &mut config.groups {
            group.verify_signatures |= verifies;
        }
        provider_behind(config, seams)
    }

    /// The PIN.
    pub(crate) fn pin(&self) -> &[u8] {
        &self.pin
    }

    /// The configuration, with this group alone in it.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }
}

/// How it is with a member.
pub(crate) fn words(member: &MemberStatus) -> String {
    let why = member.connect_error.clone();
    let why = why.or_else(|| member.last_fault.as_ref().map(|f| format!("{} answered {}", f.function, f.rv)));
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    format!("member {} is {}{why}", member.name, member.state)
}

/// Held by one drill of this host's groups: what it finds of a drill's objects then is its own, or left behind.
pub(crate) struct Lock(#[allow(dead_code, reason = "held")] File);

impl Lock {
    fn take(state: &std::path::Path) -> std::result::Result<Lock, DrillError> {
        DirBuilder::new().recursive(true).mode(0o700).create(state)?;
        let path = state.join("drill.lock");
        let refused = |error| DrillError::Refused(format!("{}: {error}", path.display()));
        let options = &mut OpenOptions::new();
        let file = open_plain(options.write(true).create(true).truncate(false).mode(0o600), &path);
        let file = file.map_err(refused)?;
        match file.try_lock() {
            Ok(()) => Ok(Lock(file)),
            Err(TryLockError::WouldBlock) => Err(DrillError::Refused("another drill is going on".into())),
            Err(TryLockError::Error(error)) => Err(refused(error)),
        }
    }
}

/// A drill's objects on a configured group, whatever drill's: removed when this is dropped.
pub(crate) struct Own<'a> {
    slot: &'a dyn Token,
    session: SessionHandle,
    /// Whether nothing is left to do.
    done: Cell<bool>,
    _lock: Lock,
}

impl<'a> Own<'a> {
    /// None yet.
    pub(crate) fn new(slot: &'a Arc<dyn Token>, session: SessionHandle, lock: Lock) -> Self {
        Own { slot: &**slot, session, done: Cell::new(false), _lock: lock }
    }

    /// Removes them, for the last time; answers how many there were.
    ///
    /// # Errors
    /// What is left of them, in words.
    pub(crate) fn end(self) -> std::result::Result<usize, String> {
        self.done.set(true);
        self.remove()
    }

    /// Removes them; answers how many there were.
    ///
    /// # Errors
    /// As [`end`](Self::end).
    pub(crate) fn remove(&self) -> std::result::Result<usize, String> {
        let (mut removed, mut left) = (0, Vec::new());
        let found =
            self.find().map_err(|rv| format!("the drill's own objects could not be looked for: {rv}"))?;
        for object in found {
            match self.slot.destroy_object(self.session, object) {
                Ok(()) => removed += 1,
                Err(rv) => left.push(rv),
            }
        }
        match left.first() {
            None => Ok(removed),
            Some(rv) => Err(format!("{} objects of the drill could not be removed ({rv})", left.len())),
        }
    }

    fn find(&self) -> ha_token::Result<Vec<ObjectHandle>> {
        let begins = |object, kind| Ok(self.read(object, kind)?.starts_with(LABEL.as_bytes()));
        let mut found = Vec::new();
        for object in self.search(&vec![Attribute::bytes(ck::CKA_LABEL, LABEL.as_bytes())])? {
            if begins(object, ck::CKA_ID)? {
                found.push(object);
            }
        }
        for object in self.search(&vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA)])? {
            if begins(object, ck::CKA_LABEL)? {
                found.push(object);
            }
        }
        Ok(found)
    }

    fn read(&self, object: ObjectHandle, kind: AttributeType) -> ha_token::Result<Vec<u8>> {
        let values = self.slot.get_attributes(self.session, object, &[kind])?;
        // Of what another class has no such attribute.
        Ok(values.first().and_then(|v| v.bytes()).map(<[u8]>::to_vec).unwrap_or_default())
    }

    fn search(&self, wanted: &Template) -> ha_token::Result<Vec<ObjectHandle>> {
        crate::objects::find_all(self.slot, self.session, wanted)
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        // There is nobody to be told.
        if !self.done.get() {
            _ = self.remove();
        }
    }
}
