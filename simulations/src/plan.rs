//! What a history consists of, drawn from its seed before it begins: who does what, and what goes wrong when.
//!
//! It is plain data, so that a history that went wrong can be run again with some of it left out.

mod corners;
mod more;
mod processes;
mod restless;
mod written;

use std::time::Duration;

use ha_token::{Function, Rv};
use serde::{Deserialize, Serialize};

use crate::random::Random;
use crate::scenario::Scenario;
use crate::token::Profile;

pub use crate::before::Before;
pub use processes::Kill;
use written::{functions, numbers};

/// A kind of object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// A P-256 key pair.
    Ec,
    /// An RSA key pair.
    Rsa,
    /// A generic secret that makes MACs.
    Mac,
    /// An AES key.
    Aes,
    /// A data object.
    Data,
    /// A certificate, as far as a token looks into one.
    Certificate,
}

/// One thing that an application's thread does. A number picks one of the thread's own objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Op {
    /// Makes a token object.
    Make(Kind),
    /// Makes a session object, uses it, and destroys it.
    Session(Kind),
    /// Uses an object in one call.
    Use(u8),
    /// Uses an object in several calls.
    Parts(u8),
    /// Uses the object that every thread uses.
    Shared,
    /// Looks for an object by its label.
    Find(u8),
    /// Looks for everything.
    FindAll,
    /// Gives an object another id.
    Change(u8),
    /// Destroys an object.
    Destroy(u8),
    /// Uses an object that was destroyed.
    UseGone(u8),
    /// Finds and uses an object that another program has made. A number picks one of all of those.
    Theirs(u8),
    /// Looks for, and uses, one that another program has made and that is gone.
    TheirsGone(u8),
    /// Uses one that another program has made under the handle that this process knows, be it gone or not.
    TheirsKept(u8),
    /// Destroys one that another program has made.
    DestroyTheirs(u8),
    /// Asks an object for what it cannot do.
    Mistake(u8),
    /// Closes the session and opens another one.
    Reopen,
    /// A digest, and random bytes.
    Digest,
    /// Waits.
    Pause(u16),
}

/// One thing that goes wrong with a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Fault {
    /// It dies: every call fails, and connections from before stay dead.
    Die,
    /// It answers some calls with errors, before or after it has done them.
    Err {
        /// Of 1000 calls, those that are not done.
        before: u16,
        /// Of 1000 calls, those that are done, and whose answer is lost.
        after: u16,
        /// The answers.
        #[serde(with = "numbers")]
        answers: Vec<Rv>,
        /// The functions that are met by it; all of them where none is named.
        #[serde(default, with = "functions", skip_serializing_if = "Vec::is_empty")]
        only: Vec<Function>,
    },
    /// It is slow.
    Slow(Duration),
    /// It takes so long for each call, and refuses to change objects as if that were the application's mistake.
    Refuse(Duration),
    /// Its token is gone, as SoftHSM's is when its folder was removed.
    Lost,
    /// It loses its sessions.
    Sessions,
    /// It loses its login.
    Logins,
    /// Its handles are no longer known.
    Handles,
    /// It loses its login and its handles in turn, again and again, when other threads have gone on so often.
    Flicker {
        /// How often it loses something.
        times: u16,
        /// Turns of other threads in between.
        turns: u16,
    },
    /// It is full.
    Full,
    /// It cannot be written.
    ReadOnly,
    /// It dies and comes back as another token, until it is itself again.
    Other,
    /// It dies and comes back again and again.
    Flap {
        /// How long it is dead each time.
        dead: Duration,
        /// How long it is well in between.
        alive: Duration,
    },
    /// It dies and comes back empty: its token was initialised anew, with the same label and PINs.
    Emptied {
        /// Whether it has another serial number: then it is another token, which nobody may take for the member.
        renewed: bool,
    },
    /// Calls to it do not return until it is over, and are done then.
    Hang,
    /// Whoever writes to the ledger is told that its disk is full. It is no member's.
    LedgerFull,
    /// The ledger's folder goes while the process has it open; what is written from then on is gone with the process.
    LedgerGone,
    /// Some of its signatures are wrong by one bit: of what the application signs, not of the group's challenges, and no MACs.
    Lie {
        /// Of 1000 signatures, those that are wrong.
        of: u16,
    },
    /// The configuration names it no more, until it is over: it leaves the group, and joins it again.
    Leaves,
    /// It dies and comes back with the objects that it had when one of its troubles began.
    SetBack {
        /// How many troubles before this one.
        by: u8,
    },
}

impl Fault {
    /// Whether it befalls the ledger, and no member.
    pub fn is_of_the_ledger(&self) -> bool {
        matches!(self, Fault::LedgerFull | Fault::LedgerGone)
    }
}

/// A make of tokens: a profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Make {
    /// SoftHSM 2.6.1.
    #[default]
    SoftHsm,
    /// kryoptic.
    Kryoptic,
    /// tpm2-pkcs11, which wraps nothing: it is not written by the group where a key is secret.
    Tpm,
    /// SoftHSM without `C_DigestKey`.
    Terse,
}

impl Make {
    /// Its profile.
    pub fn profile(self) -> Profile {
        match self {
            Make::SoftHsm => Profile::softhsm(),
            Make::Kryoptic => Profile::kryoptic(),
            Make::Tpm => Profile::tpm(),
            Make::Terse => Profile::terse(),
        }
    }
}

/// What becomes of the ledger's files when a life of the process has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum End {
    /// Nothing.
    #[default]
    Kept,
    /// The power went as the process ended: what was not synced is lost, and what was being written is torn.
    Torn,
    /// They are put back to what they were before an operation of that life.
    Old {
        /// Which, in 256ths of them all.
        after: u8,
    },
    /// They are gone.
    Gone,
}

/// A fault, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trouble {
    /// How long after the one before has ended.
    pub after: Duration,
    /// The member; the one in whose row it is, if it is the ledger's.
    pub member: usize,
    /// What.
    pub fault: Fault,
    /// How long.
    pub lasts: Duration,
}

/// A history, before it happens.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The seed it was drawn from.
    pub seed: u64,
    /// The members.
    pub members: usize,
    /// `min_copies`.
    pub min_copies: u32,
    /// `balance`.
    pub balance: String,
    /// One member at a time is in trouble, and only when the one before has had time to come back: every call must succeed.
    pub gentle: bool,
    /// The threads of the application live as long as the troubles do: each makes a part of its operations when a trouble
    /// begins.
    #[serde(default)]
    pub spread: bool,
    /// A wrong PIN comes before the right one.
    pub wrong_pin: bool,
    /// What each thread of the first program does, in each life of its process.
    pub lives: Vec<Vec<Vec<Op>>>,
    /// What goes wrong.
    pub troubles: Vec<Trouble>,
    /// `deadline`; `None` is `"off"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Duration>,
    /// What each member's token is; SoftHSM where none is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub makes: Vec<Make>,
    /// What becomes of the ledger at the end of each life; nothing after the last of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<End>,
    /// The same as `lives`, for each program that runs beside the first one, as a process of its own on the same ledger.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<Vec<Vec<Vec<Op>>>>,
    /// The processes that are killed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kills: Vec<Kill>,
    /// How long everything is given to come to rest, if that is not as long as it is elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<Duration>,
    /// What the members' tokens have before the group knows them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Before>,
    /// A program whose last process was killed is not started again, where another one runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stays_dead: bool,
    /// Processes cannot tell each other at once what they destroy: the file that they do it in cannot be had.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untold: bool,
    /// `verify_signatures`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verify: bool,
    /// `session_objects = "replay"`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replay: bool,
}

/// Functions of which one alone may fail.
const ALONE: [Function; 12] = [
    Function::SignInit,
    Function::Sign,
    Function::EncryptInit,
    Function::Encrypt,
    Function::FindObjectsInit,
    Function::FindObjects,
    Function::GetAttributeValue,
    Function::GenerateKeyPair,
    Function::UnwrapKey,
    Function::CreateObject,
    Function::SetAttributeValue,
    Function::DestroyObject,
];

/// What a member may say when it, a session, a login or an object is gone, or it does not know.
pub const ANSWERS: [Rv; 15] = [
    Rv::DEVICE_ERROR,
    Rv::DEVICE_REMOVED,
    Rv::TOKEN_NOT_PRESENT,
    Rv::TOKEN_NOT_RECOGNIZED,
    Rv::SESSION_HANDLE_INVALID,
    Rv::SESSION_CLOSED,
    Rv::SESSION_COUNT,
    Rv::USER_NOT_LOGGED_IN,
    Rv::OBJECT_HANDLE_INVALID,
    Rv::KEY_HANDLE_INVALID,
    Rv::GENERAL_ERROR,
    Rv::FUNCTION_FAILED,
    Rv::DEVICE_MEMORY,
    Rv::HOST_MEMORY,
    Rv::CRYPTOKI_NOT_INITIALIZED,
];

/// So long a rest is enough for whatever is tried again, a few times over.
pub(crate) const ENOUGH: Duration = Duration::from_secs(40);

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64) -> Self {
        Self::of(Scenario::Everything, seed)
    }

    /// The plan of a seed in a scenario.
    pub fn of(scenario: Scenario, seed: u64) -> Self {
        let mut plan = Self::drawn(scenario, seed);
        // Drawn apart, as what the seed means otherwise does not depend on it. Nothing that a member is owed waits for
        // longer; that nothing comes afterwards either is what the long rests are for.
        if plan.rest.is_none() && Random::new(seed).part("rest").chance(875) {
            plan.rest = Some(ENOUGH);
        }
        plan
    }

    fn drawn(scenario: Scenario, seed: u64) -> Self {
        match scenario {
            Scenario::Restless => return Self::restless(seed),
            Scenario::Corners => return Self::corner(seed),
            _ => {}
        }
        let mut random = Random::new(seed);
        let r = &mut random;
        let storm = r.chance(20) && scenario == Scenario::Everything;
        let members = if storm || r.chance(250) { 3 } else { 2 };
        let gentle = !storm && r.chance(600);
        let most = if r.chance(300) { 8 } else { 3 };
        let threads = 1 + r.below(most) as usize;
        let lives = scenario.lives(1 + usize::from(r.chance(400)));
        let per_thread = 4 + r.below(100 / (threads * lives) as u64) as usize;
        // Each seed makes some things often and some not at all.
        let weights: Vec<u64> = match storm {
            // Nothing but uses of keys.
            true => vec![0, 1, 1, 0, 1],
            false => (0..14).map(|_| *r.pick(&[0, 1, 1, 2, 4])).collect(),
        };
        let kinds: Vec<Kind> = {
            let all = [Kind::Ec, Kind::Mac, Kind::Aes, Kind::Data, Kind::Rsa, Kind::Certificate];
            let some: Vec<Kind> =
                all.into_iter().filter(|k| r.chance(if *k == Kind::Rsa { 150 } else { 600 })).collect();
            if some.is_empty() { vec![Kind::Mac] } else { some }
        };
        let lives = Self::lives(r, lives, threads, per_thread, &weights, &kinds);
        let troubles = scenario.troubles(if r.chance(60) { 0 } else { 1 + r.below(8) });
        let on: Vec<bool> = (0..10).map(|_| scenario.chooses(r.chance(500))).collect();
        let troubles = match storm {
            true => Self::storm(members),
            false => std::iter::repeat_with(|| Self::trouble(r, members, gentle, &on))
                .filter(|t| scenario.plays(&t.fault))
                .take(troubles)
                .collect(),
        };
        let mut plan = Plan {
            seed,
            members,
            min_copies: 1 + u32::from(r.chance(500)),
            balance: (*r.pick(&["least-busy", "least-busy", "round-robin", "primary"])).into(),
            gentle,
            spread: storm || r.chance(750),
            wrong_pin: r.chance(100),
            lives,
            troubles,
            deadline: None,
            makes: Vec::new(),
            ends: Vec::new(),
            beside: Vec::new(),
            kills: Vec::new(),
            rest: None,
            before: Vec::new(),
            stays_dead: false,
            untold: false,
            verify: false,
            replay: false,
        };
        if !storm {
            plan.add_more(scenario);
            // Drawn apart: a seed that has none of it means what it meant before. What becomes of the ledger, of what a member
            // held and of calls that hang is told of one process that ends as it should.
            let mut apart = Random::new(seed).part("processes");
            if plan.is_plain() {
                plan.draw_processes(scenario, &mut apart, &weights, &kinds);
            }
        }
        plan
    }

    fn lives(
        r: &mut Random,
        lives: usize,
        threads: usize,
        per_thread: usize,
        weights: &[u64],
        kinds: &[Kind],
    ) -> Vec<Vec<Vec<Op>>> {
        let mut thread = || {
            let mut ops = vec![Op::Make(*r.pick(kinds))];
            ops.extend((0..per_thread).map(|_| Self::op(r, weights, kinds)));
            ops
        };
        (0..lives).map(|_| (0..threads).map(|_| thread()).collect()).collect()
    }

    /// Whether nothing becomes of the ledger, of what members hold, or of calls that hang, and all are SoftHSM's.
    fn is_plain(&self) -> bool {
        let plain = |t: &Trouble| {
            let fault = &t.fault;
            !fault.is_of_the_ledger()
                && !matches!(
                    fault,
                    Fault::Emptied { .. } | Fault::SetBack { .. } | Fault::Hang | Fault::Lie { .. }
                )
        };
        self.deadline.is_none()
            && self.makes.is_empty()
            && self.ends.is_empty()
            && self.troubles.iter().all(plain)
    }

    /// What each program does: lives, threads, operations.
    pub fn programs(&self) -> impl Iterator<Item = &Vec<Vec<Vec<Op>>>> {
        std::iter::once(&self.lives).chain(&self.beside)
    }

    /// The threads of the process that has the most of them.
    pub fn most_threads(&self) -> usize {
        self.programs().flatten().map(Vec::len).max().unwrap_or(0)
    }

    fn op(r: &mut Random, weights: &[u64], kinds: &[Kind]) -> Op {
        let total: u64 = weights.iter().sum::<u64>().max(1);
        let mut at = r.below(total);
        let which = weights.iter().position(|w| {
            let here = at < *w;
            at = at.saturating_sub(*w);
            here
        });
        let n = r.draw() as u8;
        match which.unwrap_or(1) {
            0 => Op::Make(*r.pick(kinds)),
            1 | 2 => Op::Use(n),
            3 => Op::Parts(n),
            4 => Op::Shared,
            5 => Op::Find(n),
            6 => Op::FindAll,
            7 => Op::Change(n),
            8 => Op::Destroy(n),
            9 => Op::UseGone(n),
            10 => Op::Reopen,
            11 => Op::Digest,
            12 => Op::Mistake(n),
            _ if r.chance(400) => Op::Session(*r.pick(kinds)),
            _ => Op::Pause(r.below(3000) as u16),
        }
    }

    fn trouble(r: &mut Random, members: usize, gentle: bool, on: &[bool]) -> Trouble {
        let which = (0..20).map(|_| r.below(10) as usize).find(|i| on.get(*i) == Some(&true)).unwrap_or(0);
        let fault = match which {
            1 | 2 => {
                let count = 1 + r.below(4);
                // Any code may be answered to what was not done; a token that did what it was asked does not say that the
                // question was wrong.
                let any = !gentle && r.chance(300);
                let answers =
                    (0..count).map(|_| if any { *r.pick(Rv::ALL) } else { *r.pick(&ANSWERS) }).collect();
                let before = *r.pick(&[0, 20, 100, 400, 1000]);
                let after = if any { 0 } else { *r.pick(&[0, 0, 20, 100, 400]) };
                let only = if r.chance(300) { vec![*r.pick(&ALONE)] } else { Vec::new() };
                Fault::Err { before, after, answers, only }
            }
            3 => Fault::Slow(Duration::from_millis(1 + r.below(2000))),
            4 => Fault::Lost,
            5 => Fault::Sessions,
            6 => Fault::Logins,
            7 => Fault::Handles,
            8 if r.chance(500) => Fault::Full,
            8 => Fault::ReadOnly,
            9 => Fault::Other,
            _ => Fault::Die,
        };
        let longest = *r.pick(&[5, 100, 3000]);
        Trouble {
            after: Duration::from_millis(r.below(400)),
            member: r.below(members as u64) as usize,
            fault,
            lasts: Duration::from_millis(r.below(longest)),
        }
    }

    /// No member has room to begin anything, for as long as it takes: each call is tried on all of them, unless there is a
    /// budget.
    fn storm(members: usize) -> Vec<Trouble> {
        let trouble = |member| Trouble {
            after: Duration::from_millis(10),
            member,
            fault: Fault::Err {
                before: 1000,
                after: 0,
                answers: vec![Rv::HOST_MEMORY],
                only: vec![Function::SignInit, Function::EncryptInit],
            },
            lasts: Duration::from_secs(5),
        };
        (0..members).map(trouble).collect()
    }

    /// How many operations, faults and deaths there are.
    pub fn len(&self) -> usize {
        let operations: usize = self.programs().flatten().flatten().map(Vec::len).sum();
        let ends = self.ends.iter().filter(|end| **end != End::Kept).count();
        operations + self.troubles.len() + ends + self.kills.len()
    }

    /// Whether its configuration changes while it is played.
    pub(crate) fn changes_members(&self) -> bool {
        self.troubles.iter().any(|t| t.fault == Fault::Leaves)
    }

    /// Whether nothing else goes wrong than that members leave, and always another one is there.
    pub(crate) fn only_leaves(&self) -> bool {
        self.gentle && self.changes_members() && self.troubles.iter().all(|t| t.fault == Fault::Leaves)
    }

    /// What a member's token is.
    pub fn make(&self, member: usize) -> Make {
        self.makes.get(member).copied().unwrap_or_default()
    }

    /// What becomes of the ledger at the end of a life.
    pub fn end(&self, life: usize) -> End {
        self.ends.get(life).copied().unwrap_or_default()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes out those of `range`, counted as by [`len`](Self::len).
    pub fn without(&self, range: std::ops::Range<usize>) -> Plan {
        let mut plan = self.clone();
        let mut n = 0;
        let mut keep = || {
            n += 1;
            !range.contains(&(n - 1))
        };
        for ops in plan.lives.iter_mut().flatten() {
            ops.retain(|_| keep());
        }
        plan.troubles.retain(|_| keep());
        for end in plan.ends.iter_mut().filter(|end| **end != End::Kept) {
            if !keep() {
                *end = End::Kept;
            }
        }
        for ops in plan.beside.iter_mut().flatten().flatten() {
            ops.retain(|_| keep());
        }
        plan.kills.retain(|_| keep());
        plan.drop_idle_programs();
        plan
    }
}
