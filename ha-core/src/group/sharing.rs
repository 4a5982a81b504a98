//! What this process tells the others of its host about the members, and what it takes from them and from operators:
//! the group's side of the [board](crate::board). Without one nothing here does anything.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, TryLockError};
use std::time::Duration;

use ha_token::UserType;

use super::{Group, Member};
use crate::board::{Board, Process, Seen, Sights, Wish};
use crate::policy::health::{Event, State};
use crate::policy::shared::{Again, Asker, Own, Sight, plan, send_again};

/// How long a wish waits at most until the keepers see it.
const TICK: Duration = Duration::from_secs(1);

/// The same while another process is waited for that takes its turn before this one.
const TURN_TICK: Duration = Duration::from_millis(50);

/// How long a process is waited for whose turn it is to send a refused PIN, and that does not get on.
const TURN_PATIENCE: Duration = Duration::from_secs(5);

/// What the board says of a member on behalf of this process. Moments are the host's, in microseconds; 0: there was none.
#[derive(Default)]
pub(super) struct Shown {
    /// Since when its health is what it is.
    since: AtomicU64,
    /// When it was last tried, and since when it is being tried.
    tried: AtomicU64,
    trying: AtomicU64,
    /// The last wish about it that was taken in.
    heeded: AtomicU64,
    /// The wish that is taken in when it is this process's turn, and when it was seen.
    awaits: AtomicU64,
    awaits_since: AtomicU64,
    /// The board's number when the other processes' sights of it were last looked at.
    seen: AtomicU64,
    /// Something of it has changed since that was last said.
    is_new: AtomicBool,
}

fn set(moment: &AtomicU64, time: Duration) {
    moment.store((time.as_micros() as u64).max(1), Ordering::Release);
}

fn get(moment: &AtomicU64) -> Option<Duration> {
    match moment.load(Ordering::Acquire) {
        0 => None,
        us => Some(Duration::from_micros(us)),
    }
}

impl Group {
    /// The processes of this host that use the group, as they say themselves; empty where nothing is shared.
    pub fn processes(&self) -> Vec<Process> {
        self.board.as_ref().map(Board::processes).unwrap_or_default()
    }

    /// Before any member is connected: what operators wished before this process began.
    pub(super) fn heed_earlier_wishes(&self) {
        self.members.iter().for_each(|member| self.heed_earlier_wish(member));
    }

    /// The same of one member.
    pub(super) fn heed_earlier_wish(&self, member: &Member) {
        let Some(wish) = self.wish(member) else { return };
        member.shown.heeded.store(wish.number, Ordering::Release);
        if wish.drained {
            self.health_event(member, Event::Drain);
        }
    }

    fn wish(&self, member: &Member) -> Option<Wish> {
        self.board.as_ref()?.wish(member.name())
    }

    /// Takes in what an operator has wished since; says how this process sees the members now.
    pub(super) fn share(&self, member: &Member) {
        if self.board.is_none() {
            return;
        }
        if let Some(wish) =
            self.wish(member).filter(|w| member.shown.heeded.load(Ordering::Acquire) != w.number)
        {
            let state = member.state();
            let try_it = if wish.drained {
                if state != State::Drained {
                    self.health_event(member, Event::Drain);
                }
                false
            } else {
                state == State::Drained
                    || (wish.recover && matches!(state, State::Down | State::Quarantined | State::Suspect))
            };
            let again = if try_it { self.send_again(member, wish.number) } else { Again::Keep };
            if again == Again::Wait {
                self.show();
                return;
            }
            member.shown.awaits.store(0, Ordering::Release);
            if try_it {
                // Said before the wish is said to be taken in: who waits for what came of it waits for the try.
                set(&member.shown.trying, self.world.host_time());
                match again {
                    Again::Keep => self.health_event(member, Event::Recover),
                    Again::Send | Again::Wait => self.wanted_back(member),
                }
                member.asked_for.store(true, Ordering::Release);
            }
            member.shown.heeded.store(wish.number, Ordering::Release);
            member.shown.is_new.store(true, Ordering::Release);
        }
        self.show();
    }

    /// Whether the member is sent the PIN once more that it refused, if it did: one process after the other.
    fn send_again(&self, member: &Member, wish: u64) -> Again {
        let was_refused = member.refused.has(UserType::User)
            && matches!(member.state(), State::Quarantined | State::Drained);
        let Some(board) = self.board.as_ref().filter(|_| was_refused) else { return Again::Send };
        let (now, shown) = (self.world.host_time(), &member.shown);
        if shown.awaits.swap(wish, Ordering::AcqRel) != wish {
            set(&shown.awaits_since, now);
        }
        let mine = board.draw(None, wish);
        let asker = |process: &Process| {
            let is_first = board.draw(Some(process), wish) < mine;
            // Of one that cannot be read nobody knows what it does: it may have been refused as this one was.
            if process.members.is_empty() {
                return Some(Asker { heeded: false, refused: true, trying: None, is_first });
            }
            let seen = process.members.iter().find(|m| m.name == member.name())?;
            Some(Asker {
                heeded: seen.heeded == wish,
                refused: seen.refused,
                trying: seen.sight.trying,
                is_first,
            })
        };
        let others: Vec<_> = board.others().iter().filter_map(asker).collect();
        send_again(&others, get(&shown.awaits_since).unwrap_or(now), now, TURN_PATIENCE)
    }

    /// A member's operator wants it back: it is connected, and a PIN that it refused is sent to it once more.
    pub(super) fn wanted_back(&self, member: &Member) {
        self.forget_refused_by(member);
        self.health_event(member, Event::Recover);
    }

    /// Says how this process sees the members, where that has changed.
    fn show(&self) {
        let Some(board) = &self.board else { return };
        let now = self.world.host_time();
        // Each of them is taken back, so no `any`.
        let is_new = self.members.iter().filter(|m| m.shown.is_new.swap(false, Ordering::AcqRel)).count() > 0;
        if !is_new && !board.is_due(now, self.config.recovery.max_interval, TICK) {
            return;
        }
        board.show(now, self.config.recovery.max_interval, || Sights {
            configuration: self.configuration(),
            members: self.members.iter().map(|m| self.how_it_sees(m)).collect(),
        });
    }

    /// Says how this process sees the members, and by which configuration it goes.
    pub(super) fn show_anew(&self) {
        self.members.iter().for_each(|m| m.shown.is_new.store(true, Ordering::Release));
        self.show();
    }

    fn how_it_sees(&self, member: &Member) -> Seen {
        // Before the rest: what is said beside a wish is what has come of it. Another member's keeper says this too.
        let heeded = member.shown.heeded.load(Ordering::Acquire);
        // What it has refused changes while it is tried, so that is looked at on both sides of it.
        let trying = get(&member.shown.trying);
        let has_refused = member.refused.has(UserType::User);
        let (state, next, failures) = {
            let health = member.health();
            (health.state(), health.next_probe(), health.failures())
        };
        let trying = trying.or(get(&member.shown.trying));
        let shown = &member.shown;
        let fault = member.last_fault().map(|f| format!("{} answered {}", f.function, f.rv));
        Seen {
            name: member.name().to_owned(),
            sight: Sight {
                state,
                since: get(&shown.since).unwrap_or_default(),
                tried: get(&shown.tried),
                next: next.map(|at| self.on_host(at)),
                trying,
                failures,
            },
            fault: member.connect_error().or(fault),
            round_trip: member.round_trip(),
            heeded,
            // Of another PIN, perhaps, than that with which it is used.
            refused: has_refused && matches!(state, State::Quarantined | State::Drained),
        }
    }

    /// A moment of this process's clock on that of the host.
    fn on_host(&self, at: Duration) -> Duration {
        (self.world.host_time() + at).saturating_sub(self.world.now())
    }

    /// A member's health has changed.
    pub(super) fn stands_anew(&self, member: &Member) {
        if self.board.is_some() {
            set(&member.shown.since, self.world.host_time());
            member.shown.is_new.store(true, Ordering::Release);
        }
    }

    /// Others are told that the member is being tried, and what came of it.
    pub(super) fn trying<T>(&self, member: &Member, f: impl FnOnce() -> T) -> T {
        if self.board.is_none() {
            return f();
        }
        set(&member.shown.trying, self.world.host_time());
        member.shown.is_new.store(true, Ordering::Release);
        self.show();
        let answer = f();
        set(&member.shown.tried, self.world.host_time());
        member.shown.trying.store(0, Ordering::Release);
        member.shown.is_new.store(true, Ordering::Release);
        self.show();
        answer
    }

    /// When a member that is down and due at `at` is to be tried, considering what other processes have found.
    pub(super) fn considering_others(&self, member: &Member, at: Duration) -> Duration {
        let Some(board) = &self.board else { return at };
        let number = board.number();
        let shown = &member.shown;
        // Nothing has changed that would make it sooner.
        if shown.seen.swap(number, Ordering::AcqRel) == number && self.world.now() < at {
            return at;
        }
        let (up_until, flaps) = {
            let health = member.health();
            (health.up_until(), health.flaps())
        };
        let own = Own {
            due: self.on_host(at),
            tried: get(&shown.tried),
            up_until: up_until.map(|t| self.on_host(t)),
            flaps,
            lot: self.lot,
        };
        let of_member = |p: Process| p.members.into_iter().find(|m| m.name == member.name()).map(|m| m.sight);
        let others: Vec<Sight> = board.others().into_iter().filter_map(of_member).collect();
        let now = self.world.host_time();
        let plan = plan(&own, &others, now, &(&self.config.recovery).into());
        member.health().heed_failures(plan.failures);
        let (here, tries) = (self.world.now(), (self.world.now() + plan.at).saturating_sub(now));
        // Whoever is waited for may die meanwhile, and nobody would tell.
        if tries > here { tries.min(at.max(here) + self.config.recovery.interval) } else { tries }
    }

    /// What keepers see to, where there are none: on the thread of a caller, when something on the board has changed.
    pub(super) fn heed_wishes_alone(&self) {
        if !self.has_news() {
            return;
        }
        // One of the callers does: a wish that two of them take in would have a refused PIN sent twice.
        let _one = match self.heeding.try_lock() {
            Ok(one) => one,
            Err(TryLockError::Poisoned(one)) => one.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        for member in self.members.iter() {
            let number = self.board.as_ref().map_or(0, Board::number);
            member.shown.seen.store(number, Ordering::Release);
            self.share(member);
            self.connect_if_asked(member);
        }
    }

    /// Connects a member if somebody has asked for that, and its operator has not taken it out since.
    pub(super) fn connect_if_asked(&self, member: &Arc<Member>) -> bool {
        let is_asked = member.asked_for.swap(false, Ordering::AcqRel);
        if is_asked && member.state() == State::Drained {
            member.shown.trying.store(0, Ordering::Release);
        } else if is_asked {
            self.connect(member);
        }
        if is_asked {
            member.asked_done.fetch_add(1, Ordering::AcqRel);
        }
        is_asked
    }

    /// Whether something on the board has changed, or is to be said there.
    #[cold]
    pub(super) fn has_news(&self) -> bool {
        let Some(board) = &self.board else { return false };
        let number = board.number();
        let is_news = |s: &Shown| {
            s.seen.load(Ordering::Acquire) != number
                || s.is_new.load(Ordering::Acquire)
                || s.awaits.load(Ordering::Acquire) != 0
        };
        self.members.iter().any(|m| is_news(&m.shown)) || board.has_left_some(self.world.host_time(), TICK)
    }

    /// A keeper's rest: until it is woken or `limit` has passed; until there is something to be seen, where processes share
    /// what they know; until the configuration has changed, or the member has left. Answers whether the limit has not passed.
    pub(super) fn rest_at(&self, member: &Arc<Member>, limit: Option<Duration>) -> bool {
        if self.board.is_none() && !self.configured.changes() {
            return member.wake.wait(limit);
        }
        let until = limit.map(|l| self.world.now() + l);
        loop {
            let left = until.map(|u| u.saturating_sub(self.world.now()));
            let tick = if member.shown.awaits.load(Ordering::Acquire) == 0 { TICK } else { TURN_TICK };
            if member.wake.wait(Some(left.map_or(tick, |l| l.min(tick)))) {
                return true;
            }
            self.share(member);
            if self.has_new_configuration() || member.has_left() {
                return true;
            }
            if member.asked_for.load(Ordering::Acquire) {
                return true;
            }
            let is_news = |board: &Board| board.number() != member.shown.seen.load(Ordering::Acquire);
            if member.state() == State::Down && self.board.as_ref().is_some_and(is_news) {
                return true;
            }
            if until.is_some_and(|u| self.world.now() >= u) {
                return false;
            }
        }
    }
}
