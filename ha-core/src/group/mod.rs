//! Who the members are, their health, who serves next, and recovery.
//!
//! A [`Group`] owns its members, the table of virtual objects, the login state and the ledger. It lends backing
//! sessions ([`Lease`]) and is told how the calls made on them ended; the rules of PKCS#11 are the slot's.

mod again;
mod authenticate;
mod backing;
mod catch_up;
mod change;
mod changed_pins;
mod check;
mod connecting;
mod copies;
mod doubted;
mod enrol;
mod examined;
mod give;
mod half_made;
mod identify;
mod initialise;
mod keeper;
mod key_use;
mod lease;
mod link;
mod login;
mod marked;
mod matching;
mod member;
mod membership;
mod objects;
mod others;
mod out_of_reach;
mod pins;
mod probe;
mod put;
mod reconfigure;
mod recorded;
mod refused;
mod replicate;
mod report;
mod resolve;
mod restored;
mod roster;
mod set_back;
mod sharing;
mod status;
mod stop;
mod sync;
mod vet;
mod vouch;
pub(crate) mod watch;
mod wrapped;
mod writers;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ha_token::{Connector, Function, MechanismInfo, ObjectHandle, Result, Rv, Ulong};

pub(crate) use again::{Again, Made};
pub use catch_up::CaughtUp;
pub use examined::{Asked, Checked, Examination, Examined, Shown, Testimony, Word};
pub(crate) use identify::DIFFER;
pub(crate) use key_use::{NOT_HERE, Standing};
pub use lease::Lease;
pub use link::Link;
pub(crate) use login::Visit;
pub use login::{Login, Who};
pub use marked::Discarded;
pub use member::{Fault, Member};
pub use membership::TakenOff;
pub use objects::{Object, Objects, Origin, Place, Traits, Trust};
pub use reconfigure::{ConfigSource, News};
pub use recorded::{NotRecorded, Recorded};
pub use report::{GroupEvent, Reporter};
pub use resolve::{Fate, Named, Rival};
pub use restored::{Partly, Whereabouts};
pub use roster::Roster;
pub use status::{GroupStatus, MemberStatus};
pub use sync::Adopted;
pub(crate) use vouch::PublicHalf;
pub use watch::LastFault;

use crate::board::Board;
use crate::config::GroupConfig;
use crate::lanes::AllLanes;
use crate::map::{Map, map};
use crate::mutants::wrong;
use crate::policy::balance::{Candidate, MAX_MEMBERS, Plan, may_stay, plan};
use crate::policy::budget::Budget;
use crate::policy::failure::{Class, classify};
use crate::policy::health::{self, Health, State};
use crate::policy::slow_start::{self, WHOLE};
use crate::replica::ledger::Ledger;
use crate::replica::verifier::Verifier;
use crate::seam::{Thread, World};
use crate::sync::Mutex;

/// How long the end of the process waits for keepers that are in a member.
const ENDING_PATIENCE: Duration = Duration::from_secs(2);

/// Several member tokens behind one virtual slot. All methods may be called from any thread.
pub struct Group {
    /// What the configuration file said at the start; who the members are now [`Group::members`] says, and
    /// [`Group::min_copies`] how many copies are wanted.
    pub config: GroupConfig,
    /// Time, randomness and threads.
    pub world: Arc<dyn World>,
    /// The members.
    pub members: Roster,
    /// What of the configuration may change while the group is running.
    configured: reconfigure::Configured,
    /// The virtual objects.
    pub objects: Objects,
    /// The application's login.
    pub login: Login,
    /// What is told to people and programs.
    pub reporter: Reporter,
    /// What is shared with the other processes of this host; without it each is alone.
    board: Option<Board>,
    /// Sets this process apart where a turn is drawn.
    lot: u64,
    /// The ledger; without one nothing is created, changed or destroyed.
    pub(crate) ledger: Option<Ledger>,
    /// What foreign objects that were used answer, by their handles.
    foreign_verifiers: Mutex<HashMap<ObjectHandle, Verifier>>,
    /// What the signatures of private keys that were used are verified with, by the keys' handles; `None`: nothing is known
    /// of it. Empty without `verify_signatures`.
    public_halves: Map<ObjectHandle, Option<Arc<PublicHalf>>>,
    /// What is kept of session objects that are made again on the member that takes over. Empty without that setting.
    again: again::Agains,
    /// The mechanisms whose signatures were handed out although they could not be verified.
    unverified: Map<Ulong, ()>,
    /// Of two objects that the ledger does not know and that are one, by two threads, one goes. No call is made under it.
    joining: Mutex<()>,
    budget: Budget,
    turn: AtomicU64,
    generations: AtomicU64,
    seen: AtomicBool,
    stopping: AtomicBool,
    by_hand: AtomicBool,
    /// Whether the ledger is none, and the tokens are read to make one.
    is_to_be_rebuilt: AtomicBool,
    /// The ledger's state when it was last looked at for what other processes have done.
    heeded: AtomicI64,
    /// Whether no keeper looks after the members: whoever calls does.
    alone: AtomicBool,
    /// The keepers' threads, with their members' seats.
    keepers: Mutex<Vec<(usize, Box<dyn Thread>)>>,
    /// Held by the caller that takes in what operators wish, where no keeper does.
    heeding: Mutex<()>,
    /// The lanes of every connection that there was.
    lanes: Arc<AllLanes>,
    on_appear: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    /// Held while the group keys are made or moved: by one thread at a time.
    bootstrap: Mutex<()>,
    /// Held while a connection is made a member's: no call to a member in it.
    taking_in: Mutex<()>,
}

/// What a call needs of the member that serves it.
#[derive(Clone, Copy, Default)]
pub struct Need<'a> {
    /// The mechanism, with the flag of the use (0: any use).
    pub mechanism: Option<(Ulong, Ulong)>,
    /// The object that must be there.
    pub object: Option<&'a Object>,
    /// Further objects that must be there.
    pub others: &'a [Arc<Object>],
    /// The member to stay on, if it can serve.
    pub preferred: Option<usize>,
}

impl<'a> Need<'a> {
    /// All objects that must be there.
    pub fn objects(&self) -> impl Iterator<Item = &'a Object> + use<'a> {
        self.object.into_iter().chain(self.others.iter().map(|o| &**o))
    }

    /// The members that have the objects, as far as is known: a bit for each.
    #[inline(always)]
    fn seats(&self) -> u32 {
        let mut seats = match self.object {
            Some(object) => object.seats(),
            None => u32::MAX,
        };
        for other in self.others {
            seats &= other.seats();
        }
        seats
    }
}

impl Group {
    /// A group whose members are not connected yet; [`Group::start`] does that. `configuration`: the digest of what it was
    /// read from, and where it is looked whether that has changed.
    pub fn new(
        config: GroupConfig,
        connectors: Vec<Box<dyn Connector>>,
        ledger: Option<Ledger>,
        board: Option<Board>,
        world: Arc<dyn World>,
        configuration: (Option<String>, Option<Box<dyn ConfigSource>>),
    ) -> Arc<Self> {
        let settings = health::Settings::from(&config.recovery);
        let mut key = [0; 32];
        if let Err(error) = world.random(&mut key) {
            tracing::error!(group = %config.label, %error, "no random numbers: what is remembered of refused PINs is not keyed");
        }
        let mut lot = [0; 8];
        if board.is_some() {
            // Without randomness processes take their turns in the same order each time, which is harmless.
            drop(world.random(&mut lot));
        }
        let members =
            config.members.iter().cloned().zip(connectors).enumerate().map(|(i, (c, connector))| {
                Arc::new(Member::new(i, c, connector, Health::new(settings), world.event()))
            });
        let members = Roster::new(members);
        let (digest, source) = configuration;
        let group = Arc::new(Group {
            reporter: Reporter::new(&config.label, Arc::clone(&world)),
            members,
            configured: reconfigure::Configured::new(config.min_copies, digest, source),
            objects: Objects::new(),
            board,
            lot: u64::from_ne_bytes(lot),
            login: Login::new(&key),
            ledger,
            foreign_verifiers: Mutex::default(),
            public_halves: map(),
            again: again::Agains::default(),
            unverified: map(),
            joining: Mutex::default(),
            budget: Budget::new(),
            turn: AtomicU64::new(0),
            generations: AtomicU64::new(1),
            seen: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            by_hand: AtomicBool::new(false),
            is_to_be_rebuilt: AtomicBool::new(false),
            heeded: AtomicI64::new(-1),
            alone: AtomicBool::new(false),
            keepers: Mutex::default(),
            heeding: Mutex::default(),
            lanes: Arc::default(),
            on_appear: Mutex::default(),
            bootstrap: Mutex::default(),
            taking_in: Mutex::default(),
            config,
            world,
        });
        group.recall_mechanisms();
        group
    }

    /// Whether any member has been connected since the start: from then on the virtual token is present.
    pub fn is_present(&self) -> bool {
        self.seen.load(Ordering::Acquire)
    }

    /// Calls `f` once, when the virtual token appears. If it is there already `f` is dropped, and false answered.
    pub fn when_present(&self, f: impl FnOnce() + Send + 'static) -> bool {
        let mut on_appear = self.on_appear.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at under the lock that who brings the token takes afterwards: one of the two sees the other.
        let absent = !self.is_present();
        if absent {
            *on_appear = Some(Box::new(f));
        }
        absent
    }

    /// From now on a login brings no member up to date: only [`Group::sync`] does. For who looks, or rehearses.
    pub fn sync_by_hand(&self) {
        self.by_hand.store(true, Ordering::Release);
    }

    /// The members to try, best first.
    pub fn plan(&self, need: &Need<'_>) -> Plan {
        self.look_after();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        if need.objects().any(Object::moves) {
            return self.plan_to_move(need, turn);
        }
        self.plan_on(need.seats(), need, turn)
    }

    /// The members to try for what can be made again: those that have it, then the others, and last of all one that has it and
    /// that the operator has taken out.
    #[cold]
    fn plan_to_move(&self, need: &Need<'_>, turn: u64) -> Plan {
        let live = need.objects().fold(u32::MAX, |seats, object| {
            seats & if object.moves() { self.live_seats(object) } else { object.seats() }
        });
        let others = need.objects().filter(|o| !o.moves()).fold(u32::MAX, |seats, o| seats & o.seats());
        let up = self.plan_on(live, need, turn).and_then(self.plan_on(others & self.seats_up(), need, turn));
        up.and_then(self.plan_on(others, need, turn))
    }

    fn plan_on(&self, seats: u32, need: &Need<'_>, turn: u64) -> Plan {
        let none = Candidate { usable: false, standby: false, aside: false, load: 0, place: 0 };
        let mut candidates = [none; MAX_MEMBERS];
        for (candidate, member) in candidates.iter_mut().zip(self.members.seats()) {
            *candidate = Candidate {
                usable: self.can_serve(member, seats, need),
                standby: member.is_standby(),
                aside: self.stands_aside(member, turn),
                load: member.load(),
                place: member.place(),
            };
        }
        let count = self.members.next();
        plan(self.config.balance, candidates.get(..count).unwrap_or(&[]), turn, need.preferred)
    }

    /// Whether the next operation may stay on a kept lease without a plan: its member is up, the connection and its
    /// login are those of now, it has what is needed (`fits`: it has the mechanism), and the balance allows it.
    #[inline(always)]
    pub(crate) fn may_stay(&self, lease: &Lease, need: &Need<'_>, fits: bool) -> bool {
        let member = &*lease.member;
        let seats = need.seats();
        let candidate = |m: &Member| Candidate {
            usable: m.is_up() && on_seat(seats, m),
            standby: m.is_standby(),
            aside: false,
            load: m.load(),
            place: m.place(),
        };
        // Who starts slowly has its share of the turns: each operation has one.
        let has_its_share = |m: &Arc<Member>| !m.starts_slowly() || !m.is_up();
        // Where no keeper looks at what operators wish, a plan does.
        (!self.alone.load(Ordering::Relaxed) || !(self.has_news() || self.is_configuration_due()))
            && member.is_current(&lease.link)
            && lease.link.has_followed(self.login.epoch())
            && (fits || need.mechanism.is_none_or(|(mechanism, flag)| lease.link.supports(mechanism, flag)))
            && need.preferred.is_none_or(|p| p == member.index)
            && may_stay(
                self.config.balance,
                (member.index, candidate(member)),
                self.members.seats().map(|m| candidate(m)),
            )
            && self.members.seats().all(has_its_share)
    }

    /// Whether a member stands aside in this turn, because it has just come back.
    fn stands_aside(&self, member: &Member, turn: u64) -> bool {
        member.starts_slowly() && slow_start::stands_aside(self.share_of(member), turn)
    }

    fn share_of(&self, member: &Member) -> u8 {
        member.share(self.world.now(), health::Settings::from(&self.config.recovery).trial())
    }

    /// Whether a member is up and serves all that balancing gives it: one that has just come back does not for a while.
    pub fn serves_fully(&self, member: &Member) -> bool {
        member.is_up() && (!member.starts_slowly() || self.share_of(member) == WHOLE)
    }

    fn can_serve(&self, member: &Member, seats: u32, need: &Need<'_>) -> bool {
        if !on_seat(seats, member) || !(member.is_up() || self.is_needed(member, need)) {
            return false;
        }
        match need.mechanism {
            None => true,
            Some((mechanism, flag)) => {
                // Where no member is known to have it, the members themselves say so in their own words.
                !self.someone_supports(mechanism, flag)
                    || member.link().is_some_and(|l| l.supports(mechanism, flag))
            }
        }
    }

    /// Whether a member that the operator has taken out is called all the same: for a session object that is on it and on none
    /// that is up. It would be lost otherwise, and with a member that still answers there is no reason for that.
    #[cold]
    fn is_needed(&self, member: &Member, need: &Need<'_>) -> bool {
        member.state() == State::Drained
            && member.link().is_some()
            && need.objects().any(|object| {
                matches!(object.origin, Origin::Session(_))
                    && on_seat(object.seats(), member)
                    && !self.up().any(|other| on_seat(object.seats(), other))
            })
    }

    fn someone_supports(&self, mechanism: Ulong, flag: Ulong) -> bool {
        self.members.iter().any(|m| m.is_up() && m.supports(mechanism, flag))
    }

    /// Lends a backing session of a member, logged in as the application is.
    ///
    /// # Errors
    /// `CKR_DEVICE_ERROR` without a connection, else the member's answer.
    pub fn lease(&self, member: &Arc<Member>) -> Result<Lease> {
        let link = member.link().ok_or(Rv::DEVICE_ERROR)?;
        self.lease_on(member, link)
    }

    fn lease_on(&self, member: &Arc<Member>, link: Arc<Link>) -> Result<Lease> {
        if !link.has_followed(self.login.epoch()) {
            // Its PIN may not be the group's any more.
            if member.has_left() {
                return Err(Rv::DEVICE_ERROR);
            }
            self.follow(member, &link)?;
            // What it has missed is its keeper's.
            if self.is_behind(member) {
                member.wake.set();
            }
        }
        Lease::new(member, link)
    }

    /// A call to a member succeeded.
    pub fn succeeded(&self) {
        self.budget.deposit();
    }

    /// Whether another try may be made now (guarantee G7).
    pub fn may_retry(&self, first_on_healthy: bool) -> bool {
        self.budget.withdraw(self.world.now(), first_on_healthy)
    }

    /// A call on a connection failed: classifies the answer, tells the health machine and the log.
    pub fn failed(&self, member: &Arc<Member>, link: &Link, function: Function, rv: Rv) -> Class {
        let class = classify(function, rv);
        if class == Class::Caller {
            return class;
        }
        if matches!(class, Class::Session | Class::Login | Class::Object) {
            link.is_shaken();
        }
        watch::failed(member.name(), function, rv, class);
        let stale = member.link().is_none_or(|l| l.generation != link.generation);
        if !stale && class == Class::Member {
            self.blame_on(member, link, function, rv);
        }
        class
    }

    /// Puts a fault of a connection down to its member, unless another connection has taken its place by then.
    pub(crate) fn blame_on(&self, member: &Arc<Member>, link: &Link, function: Function, rv: Rv) {
        self.put_down(member, Some(link), function, rv);
    }

    /// Puts a fault down to a member: it is suspect and gets probed.
    pub fn blame(&self, member: &Arc<Member>, function: Function, rv: Rv) {
        self.put_down(member, None, function, rv);
    }

    fn put_down(&self, member: &Arc<Member>, link: Option<&Link>, function: Function, rv: Rv) {
        member.set_fault(Fault { function, rv, class: Class::Member, at: self.world.wall_clock() });
        self.reporter.fault(member.name(), function, rv, Class::Member);
        watch::blamed(member.name(), function, rv);
        self.health_event_on(member, link, health::Event::CallFailed(Class::Member));
    }

    /// Feeds the health machine of a member and tells of the change, if there is one: the log, and the member's keeper,
    /// who may be waiting for what it was before.
    pub(crate) fn health_event(&self, member: &Member, event: health::Event) {
        self.health_event_on(member, None, event);
    }

    /// The same of an event of a connection: nothing, where it is not the member's any more.
    fn health_event_on(&self, member: &Member, link: Option<&Link>, event: health::Event) {
        let now = self.world.now();
        let random = self.random_u64();
        let transition = {
            let mut health = member.health();
            // Asked under the lock: who saw the failure may have slept while the member was connected anew.
            let is_over = link.is_some_and(|l| !member.is_current(l)) && !wrong!(ReplacedBlamed);
            let transition = if is_over { None } else { health.on(event, now, random) };
            member.publish(&health, transition.as_ref());
            transition
        };
        if let Some(t) = transition {
            self.stands_anew(member);
            #[cfg(feature = "simulation")]
            crate::seam::turns::reached(crate::seam::turns::Reached::Health(t));
            self.reporter.transition(member.name(), t.from, t.to, &t.cause.to_string());
            if !wrong!(KeeperNotWoken) {
                member.wake.set();
            }
        }
    }

    /// A random number for jitter; its quality does not matter.
    pub(crate) fn random_u64(&self) -> u64 {
        let mut bytes = [0u8; 8];
        // Without randomness the jitter is constant, which is harmless.
        drop(self.world.random(&mut bytes));
        u64::from_ne_bytes(bytes)
    }

    /// Fresh random bytes for identifiers and challenges.
    ///
    /// # Errors
    /// `CKR_RANDOM_NO_RNG` when the operating system has none.
    pub(crate) fn nonce<const N: usize>(&self) -> Result<[u8; N]> {
        let mut bytes = [0u8; N];
        self.world.random(&mut bytes).map_err(|error| {
            tracing::error!(%error, "no random numbers");
            Rv::RANDOM_NO_RNG
        })?;
        Ok(bytes)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn next_generation(&self) -> u64 {
        self.generations.fetch_add(1, Ordering::Relaxed)
    }

    fn appeared(&self) {
        if self.seen.swap(true, Ordering::AcqRel) {
            return;
        }
        let told = self.on_appear.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(tell) = told {
            tell();
        }
    }

    /// The mechanisms that every active member has, as last known, whether or not it is there now: each with the
    /// narrowest key sizes and common flags. Where no active member was ever seen the standby members' stand for them.
    pub fn mechanisms(&self) -> Vec<(Ulong, MechanismInfo)> {
        let known = |standby: bool| {
            let members = self.members.iter().filter(move |m| m.is_standby() == standby);
            members.filter_map(|m| m.mechanisms()).reduce(|common, list| {
                let both = common.iter().filter_map(|(kind, info)| {
                    let i = list.binary_search_by_key(kind, |m| m.0).ok()?;
                    Some((*kind, narrow(*info, list.get(i)?.1)))
                });
                Arc::new(both.collect())
            })
        };
        known(false).or_else(|| known(true)).map(Arc::unwrap_or_clone).unwrap_or_default()
    }

    /// Lets no keeper into a member any more, and waits for those that are in one, and for calls that were left behind there:
    /// the process may end next, and its modules with it.
    pub(crate) fn rest(&self, patience: Duration) {
        self.stopping.store(true, Ordering::Release);
        for member in self.members.seats() {
            member.wake.set();
        }
        let Ok(keepers) = self.keepers.try_lock() else { return };
        let until = self.world.now() + patience;
        let pause = self.world.event();
        let is_in_one = || {
            keepers.iter().any(|(_, k)| !k.is_finished())
                || self.members.seats().any(|m| m.pending.left() > 0)
        };
        while is_in_one() && self.world.now() < until {
            pause.wait(Some(Duration::from_millis(1)));
        }
    }

    /// A bit for each member that is up now.
    pub(crate) fn seats_up(&self) -> u32 {
        keeper::bits(self.up().map(|m| m.index))
    }

    /// Members that are up now.
    pub fn up(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.members.iter().filter(|m| m.state() == State::Up)
    }
}

impl ha_member::Ending for Group {
    fn ending(&self) {
        self.rest(ENDING_PATIENCE);
        if let Some(board) = &self.board {
            board.leave_at_exit();
        }
    }
}

/// Whether a member is among those of [`Need::seats`].
#[inline]
fn on_seat(seats: u32, member: &Member) -> bool {
    seats >> member.index & 1 != 0
}

fn narrow(a: MechanismInfo, b: MechanismInfo) -> MechanismInfo {
    MechanismInfo {
        min_key_size: a.min_key_size.max(b.min_key_size),
        max_key_size: a.max_key_size.min(b.max_key_size),
        flags: a.flags & b.flags,
    }
}
