//! What happens in a group, told to people and programs: log events that do not flood, and a channel of events.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use ha_token::{Function, Rv};

use super::objects::Traits;
use crate::policy::failure::Class;
use crate::policy::health::State;
use crate::seam::World;
use crate::sync::Mutex;

/// Events kept for a receiver that does not read; the oldest unread ones stay, newer ones are counted.
const BACKLOG: usize = 1024;
/// The same report is logged once in this time, with the count of those in between.
const QUIET: Duration = Duration::from_secs(5);
/// Reports that differ in their details only are logged up to this many in that time.
const BURST: usize = 16;
/// Reports remembered before old ones are forgotten.
const MOST_KEYS: usize = 1024;

/// Something that happened in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupEvent {
    /// A member's health changed.
    Member {
        /// The member.
        member: String,
        /// Before.
        from: State,
        /// After.
        to: State,
        /// Why, in words.
        cause: String,
    },
    /// The configuration, which has changed, names a new member.
    Joined {
        /// The member.
        member: String,
    },
    /// It names one no more.
    Left {
        /// The member.
        member: String,
    },
    /// A call to a member failed and was put down to the member.
    Fault {
        /// The member.
        member: String,
        /// The function.
        function: Function,
        /// What the member answered.
        rv: Rv,
        /// What that was taken for.
        class: Class,
    },
    /// A call that failed on one member succeeded on another; the application saw nothing of it.
    Moved {
        /// The member that failed.
        from: String,
        /// The member that served.
        to: String,
        /// The function that the application called.
        function: Function,
        /// What the first member answered.
        rv: Rv,
        /// What that was taken for.
        class: Class,
    },
    /// A copy on a member is not the key it should be.
    Conflict {
        /// The member.
        member: String,
        /// The object's label.
        label: String,
    },
    /// A member made a signature that is not the key's; nobody was given it (`verify_signatures`). What becomes of the
    /// member is an event of its own.
    WrongSignature {
        /// The member.
        member: String,
        /// The key's label.
        label: String,
        /// The mechanism's name.
        mechanism: String,
    },
    /// Something was refused that the application asked for.
    Refused {
        /// The function.
        function: Function,
        /// What was answered.
        rv: Rv,
        /// Why.
        reason: String,
    },
    /// The receiver was too far behind: so many events before the next one were not told to it.
    Missed {
        /// How many.
        count: u64,
    },
}

/// What is told at most once in a while.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Fault,
    Moved,
    Conflict,
    WrongSignature,
    Refused,
}

/// What makes two reports the same: kind, member, function, answer.
type Key = (Kind, String, Function, Rv);

/// What was told of one key since `since`.
struct Told {
    since: Duration,
    /// Digests of the details told since.
    details: Vec<u64>,
    /// Reports that were only counted.
    counted: u64,
}

/// Lets the first report of its kind pass, and counts those that follow at once.
#[derive(Default)]
struct Quiet {
    told: Mutex<HashMap<Key, Told>>,
}

impl Quiet {
    /// Whether to tell now, and of how many reports nothing was told before. Different `detail`s of one key (the label of
    /// an object, a reason) are told up to [`BURST`].
    fn passes(&self, now: Duration, key: Key, detail: &str) -> Option<u64> {
        let mut hasher = std::hash::DefaultHasher::new();
        detail.hash(&mut hasher);
        let detail = hasher.finish();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= MOST_KEYS && !told.contains_key(&key) {
            told.retain(|_, t| now.saturating_sub(t.since) < QUIET);
        }
        let entry = told.entry(key).or_insert(Told { since: now, details: Vec::new(), counted: 0 });
        if now.saturating_sub(entry.since) >= QUIET {
            let counted = entry.counted;
            *entry = Told { since: now, details: vec![detail], counted: 0 };
            return Some(counted);
        }
        if entry.details.contains(&detail) || entry.details.len() >= BURST {
            entry.counted += 1;
            return None;
        }
        entry.details.push(detail);
        Some(0)
    }
}

/// Who listens.
struct Listener {
    sender: Sender<GroupEvent>,
    wants: fn(&GroupEvent) -> bool,
    /// Events that found no place since the last one that did.
    missed: u64,
}

impl Listener {
    /// False if nobody is there any more.
    fn tell(&mut self, event: &GroupEvent) -> bool {
        if !(self.wants)(event) {
            return true;
        }
        if self.missed > 0 && self.has_place() {
            self.tell_of_missed();
        }
        if !self.has_place() {
            self.missed += 1;
            return true;
        }
        self.sender.try_send(event.clone()).is_ok()
    }

    /// The last place is kept for telling what was missed when there is nothing more to come.
    fn has_place(&self) -> bool {
        self.sender.len() < BACKLOG
    }

    fn tell_of_missed(&mut self) {
        if self.missed > 0 {
            // There is place; who is gone misses nothing.
            _ = self.sender.try_send(GroupEvent::Missed { count: self.missed });
            self.missed = 0;
        }
    }
}

/// Tells the log and whoever listens. All methods may be called from any thread; no lock is held while a log line is
/// written.
pub struct Reporter {
    group: String,
    world: Arc<dyn World>,
    /// `None` once the group has stopped.
    listeners: Mutex<Option<Vec<Listener>>>,
    quiet: Quiet,
}

impl Reporter {
    /// For the group of this label.
    pub fn new(group: &str, world: Arc<dyn World>) -> Self {
        Reporter {
            group: group.to_owned(),
            world,
            listeners: Mutex::new(Some(Vec::new())),
            quiet: Quiet::default(),
        }
    }

    /// A channel that gets the events from now on that are wanted, until the group is stopped.
    pub fn listen(&self, wants: fn(&GroupEvent) -> bool) -> Receiver<GroupEvent> {
        let (sender, receiver) = bounded(BACKLOG + 1);
        if let Some(listeners) = &mut *self.listeners.lock().unwrap_or_else(PoisonError::into_inner) {
            listeners.push(Listener { sender, wants, missed: 0 });
        }
        receiver
    }

    /// Ends every channel: what is in it can still be received.
    pub(super) fn end(&self) {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).take();
        listeners.into_iter().flatten().for_each(|mut listener| listener.tell_of_missed());
    }

    fn tell(&self, event: &GroupEvent) {
        if let Some(listeners) = &mut *self.listeners.lock().unwrap_or_else(PoisonError::into_inner) {
            listeners.retain_mut(|listener| listener.tell(event));
        }
    }

    fn passes(&self, kind: Kind, member: &str, function: Function, rv: Rv, detail: &str) -> Option<u64> {
        self.quiet.passes(self.world.now(), (kind, member.to_owned(), function, rv), detail)
    }

    /// A member's health changed.
    pub fn transition(&self, member: &str, from: State, to: State, cause: &str) {
        match to {
            State::Up => tracing::info!(group = %self.group, member, %from, %to, cause, "member is up"),
            State::Syncing => {
                tracing::info!(group = %self.group, member, %from, %to, cause, "member is catching up")
            }
            _ => tracing::warn!(group = %self.group, member, %from, %to, cause, "member is not used"),
        }
        self.tell(&GroupEvent::Member { member: member.to_owned(), from, to, cause: cause.to_owned() });
    }

    /// The configuration names a new member.
    pub fn joined(&self, member: &str) {
        tracing::info!(group = %self.group, member, "the configuration names a new member: it is brought up to date and proven, and serves then");
        self.tell(&GroupEvent::Joined { member: member.to_owned() });
    }

    /// The configuration names a member no more.
    pub fn left(&self, member: &str) {
        tracing::info!(group = %self.group, member, "the configuration names the member no more: it is not used any longer");
        self.tell(&GroupEvent::Left { member: member.to_owned() });
    }

    /// A call to a member failed and was put down to the member.
    pub fn fault(&self, member: &str, function: Function, rv: Rv, class: Class) {
        self.tell(&GroupEvent::Fault { member: member.to_owned(), function, rv, class });
        if let Some(suppressed) = self.passes(Kind::Fault, member, function, rv, "") {
            tracing::warn!(group = %self.group, member, function = %function, rv = %rv, class = ?class, suppressed,
                "a call to a member failed; it is probed");
        }
    }

    /// A call that failed on one member succeeded on another: the application saw nothing of it.
    pub fn moved(&self, from: &str, to: &str, function: Function, rv: Rv, class: Class) {
        self.tell(&GroupEvent::Moved { from: from.to_owned(), to: to.to_owned(), function, rv, class });
        let Some(suppressed) = self.passes(Kind::Moved, from, function, rv, to) else { return };
        // A member without a free session is busy, not broken.
        if class == Class::Capacity {
            tracing::info!(group = %self.group, member = from, to, function = %function, rv = %rv, class = ?class, suppressed,
                "failover: the call was made on another member");
        } else {
            tracing::warn!(group = %self.group, member = from, to, function = %function, rv = %rv, class = ?class, suppressed,
                "failover: the call was made on another member");
        }
    }

    /// A copy is not the key it should be.
    pub fn conflict(&self, member: &str, label: &[u8]) {
        let label = String::from_utf8_lossy(label).into_owned();
        // No function and no answer of a member belong to it; what matters is whose copy it is.
        let passes = self.passes(Kind::Conflict, member, Function::GetAttributeValue, Rv(0), &label);
        if let Some(suppressed) = passes {
            tracing::error!(group = %self.group, member, label, suppressed, "the copy on this member is another key: it is not used there; see `hactl check --prove`");
        }
        self.tell(&GroupEvent::Conflict { member: member.to_owned(), label });
    }

    /// A member made a signature that is not the key's.
    pub fn wrong_signature(&self, member: &str, function: Function, key: &Traits, mechanism: &str) {
        let label = String::from_utf8_lossy(&key.label).into_owned();
        let id: String = key.id.iter().map(|b| format!("{b:02x}")).collect();
        let passes = self.passes(Kind::WrongSignature, member, function, Rv::WRONG_SIGNATURE, &label);
        if let Some(suppressed) = passes {
            tracing::error!(group = %self.group, member, function = %function, key = label, id, mechanism, suppressed,
                "the member made a signature that does not verify: it was not handed out");
        }
        let mechanism = mechanism.to_owned();
        self.tell(&GroupEvent::WrongSignature { member: member.to_owned(), label, mechanism });
    }

    /// Something the application asked for was refused by the group itself.
    pub fn refused(&self, function: Function, rv: Rv, reason: &str) {
        if let Some(suppressed) = self.passes(Kind::Refused, "", function, rv, reason) {
            tracing::warn!(group = %self.group, function = %function, rv = %rv, reason, suppressed, "refused");
        }
        self.tell(&GroupEvent::Refused { function, rv, reason: reason.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn key(kind: Kind, member: &str) -> Key {
        (kind, member.to_owned(), Function::Sign, Rv::DEVICE_ERROR)
    }

    #[test]
    fn the_same_is_told_once_and_then_counted() {
        let quiet = Quiet::default();
        assert_eq!(quiet.passes(S, key(Kind::Refused, ""), "no budget"), Some(0));
        for _ in 0..1000 {
            assert_eq!(quiet.passes(S, key(Kind::Refused, ""), "no budget"), None);
        }
        assert_eq!(quiet.passes(S + QUIET, key(Kind::Refused, ""), "no budget"), Some(1000));
        assert_eq!(quiet.passes(S + QUIET, key(Kind::Refused, ""), "no budget"), None);
    }

    #[test]
    fn another_member_another_kind_and_another_detail_are_told() {
        let quiet = Quiet::default();
        assert_eq!(quiet.passes(S, key(Kind::Fault, "a"), ""), Some(0));
        assert_eq!(quiet.passes(S, key(Kind::Fault, "b"), ""), Some(0));
        assert_eq!(quiet.passes(S, key(Kind::Moved, "a"), ""), Some(0));
        assert_eq!(quiet.passes(S, key(Kind::Fault, "a"), "else"), Some(0));
    }

    #[test]
    fn details_that_are_always_new_do_not_flood() {
        let quiet = Quiet::default();
        let passed =
            (0..1000).filter(|n| quiet.passes(S, key(Kind::Conflict, "a"), &n.to_string()).is_some());
        assert_eq!(passed.count(), BURST);
        assert_eq!(quiet.passes(S + QUIET, key(Kind::Conflict, "a"), "more"), Some(1000 - BURST as u64));
    }

    #[test]
    fn keys_that_are_always_new_are_not_kept_for_ever() {
        let quiet = Quiet::default();
        for n in 0..3 * MOST_KEYS as u32 {
            quiet.passes(QUIET * n, key(Kind::Fault, &n.to_string()), "");
        }
        assert!(quiet.told.lock().unwrap().len() <= MOST_KEYS);
    }

    #[test]
    fn channels_end_with_the_group() {
        let reporter = Reporter::new("g", crate::seam::System::new());
        let events = reporter.listen(|_| true);
        reporter.refused(Function::Sign, Rv::DEVICE_ERROR, "why");
        reporter.end();
        assert!(matches!(events.recv(), Ok(GroupEvent::Refused { .. })));
        assert!(events.recv().is_err() && reporter.listen(|_| true).recv().is_err());
    }

    #[test]
    fn who_is_behind_is_told_how_much_was_missed() {
        let reporter = Reporter::new("g", crate::seam::System::new());
        let events = reporter.listen(|_| true);
        let refuse = || reporter.refused(Function::Sign, Rv::DEVICE_ERROR, "why");
        (0..BACKLOG + 5).for_each(|_| refuse());
        assert!(matches!(events.recv(), Ok(GroupEvent::Refused { .. })));
        assert!(matches!(events.recv(), Ok(GroupEvent::Refused { .. })));
        (0..3).for_each(|_| refuse());
        reporter.end();
        let rest: Vec<_> = events.iter().collect();
        let missed: Vec<_> = rest
            .iter()
            .filter_map(|e| if let GroupEvent::Missed { count } = e { Some(*count) } else { None })
            .collect();
        assert_eq!(missed, [5, 2], "one of the three found place beside the word of the first five");
        assert!(matches!(rest.last(), Some(GroupEvent::Missed { .. })));
    }

    #[test]
    fn what_is_not_wanted_takes_no_place() {
        let reporter = Reporter::new("g", crate::seam::System::new());
        let health = reporter.listen(|event| matches!(event, GroupEvent::Member { .. }));
        (0..2 * BACKLOG).for_each(|_| reporter.refused(Function::Sign, Rv::DEVICE_ERROR, "why"));
        reporter.transition("a", State::Syncing, State::Up, "why");
        reporter.end();
        assert_eq!(health.iter().count(), 1);
    }
}
