//! Narrow histories: each is about one rule of the core, and draws much of what that rule is for and little else.

use std::time::Duration;

use ha_token::{Function, Rv};

use super::{ANSWERS, Before, Fault, Kill, Kind, Make, Op, Plan, Trouble};
use crate::random::Random;

/// What a history is about.
#[derive(Clone, Copy)]
enum Corner {
    /// Makings that fail halfway and are tried again, and leave what they made.
    Again,
    /// Destructions of which no member tells whether it made them.
    Undone,
    /// Keys of one value: there are few RSA pairs.
    Twins,
    /// Objects that are renamed all the time, on members that forget their handles.
    Renamed,
    /// Keys of one type are made and renamed while a member is away that has one of another type, which is not the group's.
    Strangers,
    /// Changes that one member takes long to refuse, while others come back.
    Refused,
    /// Session objects, whose sessions are lost.
    Owners,
    /// A member comes back empty when the other one's handles were lost, and nobody has asked that one since.
    Keys,
    /// A member that nobody uses dies a moment before the other one.
    Stale,
    /// A program changes its objects; the others search, and bring members up to date.
    Beside,
    /// Processes die at work, and no other one begins.
    Left,
    /// Members are dead for long, also those that nobody uses.
    Idle,
    /// What one process destroys is not told to the others at once.
    Untold,
}

/// Each as often as it takes to come to what it is about.
const CORNERS: [(u64, Corner); 13] = [
    (4, Corner::Again),
    (1, Corner::Undone),
    (2, Corner::Twins),
    (1, Corner::Renamed),
    (1, Corner::Strangers),
    (2, Corner::Refused),
    (1, Corner::Owners),
    (1, Corner::Keys),
    (3, Corner::Stale),
    (5, Corner::Beside),
    (2, Corner::Left),
    (1, Corner::Idle),
    (3, Corner::Untold),
];

/// An operation, drawn from the kinds of object that there are.
type Draw = fn(&mut Random, &[Kind]) -> Op;

const MAKE: Draw = |r, kinds| Op::Make(*r.pick(kinds));
const SESSION: Draw = |r, kinds| Op::Session(*r.pick(kinds));
const USE: Draw = |r, _| Op::Use(r.draw() as u8);
const FIND: Draw = |r, _| Op::Find(r.draw() as u8);
const FIND_ALL: Draw = |_, _| Op::FindAll;
const CHANGE: Draw = |r, _| Op::Change(r.draw() as u8);
const DESTROY: Draw = |r, _| Op::Destroy(r.draw() as u8);
const SHARED: Draw = |_, _| Op::Shared;
const PAUSE: Draw = |r, _| Op::Pause(r.below(2000) as u16);
const THEIRS: Draw = |r, _| Op::Theirs(r.draw() as u8);
const THEIRS_KEPT: Draw = |r, _| Op::TheirsKept(r.draw() as u8);
const DESTROY_THEIRS: Draw = |r, _| Op::DestroyTheirs(r.draw() as u8);

/// Kinds that are quickly made.
const QUICK: [Kind; 5] = [Kind::Ec, Kind::Mac, Kind::Aes, Kind::Data, Kind::Certificate];

/// How long everything is given to come to rest where nothing has to be asked for a second time.
const SHORT: Duration = Duration::from_secs(20);

impl Plan {
    /// The plan of a seed in the scenario of that name.
    pub(super) fn corner(seed: u64) -> Plan {
        let r = &mut Random::new(seed).part("corners");
        let corner = weighed(r, &CORNERS);
        let mut plan = Plan {
            seed,
            members: 2,
            min_copies: 1 + u32::from(r.chance(300)),
            balance: (*r.pick(&["least-busy", "round-robin", "primary"])).into(),
            gentle: r.chance(500),
            spread: true,
            wrong_pin: false,
            lives: Vec::new(),
            troubles: Vec::new(),
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
        match corner {
            Corner::Again => plan.again(r),
            Corner::Undone => plan.undone(r),
            Corner::Twins => plan.twins(r),
            Corner::Renamed => plan.renamed(r),
            Corner::Strangers => plan.strangers(r),
            Corner::Refused => plan.refused(r),
            Corner::Owners => plan.owners(r),
            Corner::Keys => plan.keys(r),
            Corner::Stale => plan.stale(r),
            Corner::Beside => plan.beside(r),
            Corner::Left => plan.left(r),
            Corner::Idle => plan.idle(r),
            Corner::Untold => plan.untold(r),
        }
        plan
    }

    fn again(&mut self, r: &mut Random) {
        let kinds = some(r, &QUICK);
        (self.min_copies, self.gentle) = (2, r.chance(300));
        let mut threads = threads(r, 4, 12, &kinds, &[(4, MAKE), (1, USE), (3, FIND_ALL), (1, DESTROY)]);
        for _ in 0..3 + r.below(5) {
            let fault = if r.chance(400) { half_made(r) } else { forgets(r) };
            self.befalls(r, None, fault, &[5, 100, 1000]);
        }
        // What was left is seen under new handles before it is destroyed.
        threads.iter_mut().for_each(|ops| ops.push(Op::FindAll));
        self.lives = vec![threads];
        (0..2).for_each(|member| self.befalls(r, Some(member), Fault::Handles, &[5]));
    }

    fn undone(&mut self, r: &mut Random) {
        self.gentle = false;
        let kinds = some(r, &QUICK);
        self.lives = vec![threads(r, 3, 12, &kinds, &[(3, MAKE), (4, DESTROY), (1, FIND)])];
        for member in [0, 1, 0, 1] {
            let answers = vec![*r.pick(&[Rv::DEVICE_ERROR, Rv::GENERAL_ERROR, Rv::FUNCTION_FAILED])];
            let (before, only) = (*r.pick(&[300, 600]), vec![Function::DestroyObject]);
            let fault = Fault::Err { before, after: 1000, answers, only };
            self.befalls(r, Some(member), fault, &[3000, 9000]);
        }
    }

    fn twins(&mut self, r: &mut Random) {
        const RSA: &[Kind] = &[Kind::Rsa];
        // There are eight pairs, and each is handed out again only when all were. Only the first thread renames its own, two of
        // the last that are made: of two renamed ones of one value nobody can tell which is which.
        let mut renames = vec![Op::Pause(2000), Op::Make(Kind::Rsa), Op::Make(Kind::Rsa)];
        renames.extend((0..4 + r.below(12)).map(|_| CHANGE(r, RSA)));
        let mut all = vec![renames];
        for _ in 0..3 {
            let destroys =
                (0..8 + r.below(6)).map(|_| if r.chance(800) { DESTROY(r, RSA) } else { FIND_ALL(r, RSA) });
            all.push(
                std::iter::repeat_n(Op::Make(Kind::Rsa), 5).chain(destroys.collect::<Vec<_>>()).collect(),
            );
        }
        self.lives = vec![all];
        for _ in 0..2 + r.below(4) {
            let fault = if r.chance(200) { Fault::Die } else { forgets(r) };
            self.befalls(r, None, fault, &[5, 100, 3000]);
        }
    }

    fn renamed(&mut self, r: &mut Random) {
        let kinds = some(r, &[Kind::Certificate, Kind::Aes, Kind::Mac, Kind::Ec]);
        self.lives = vec![threads(r, 4, 12, &kinds, &[(3, MAKE), (8, CHANGE), (1, FIND), (2, DESTROY)])];
        for _ in 0..2 + r.below(6) {
            let fault = match r.below(4) {
                0 => Fault::Die,
                1 => Fault::Emptied { renewed: false },
                _ => forgets(r),
            };
            self.befalls(r, None, fault, &[5, 100, 1000]);
        }
    }

    fn strangers(&mut self, r: &mut Random) {
        let mut kinds = [Kind::Aes, Kind::Mac];
        if r.chance(500) {
            kinds.reverse();
        }
        self.min_copies = 1;
        // A digest would tell keys of any type apart.
        self.makes = vec![Make::Terse; 2];
        self.before.push(Before { member: 1, kind: kinds[0] });
        self.lives = vec![threads(r, 3, 12, &kinds[1..], &[(3, MAKE), (4, CHANGE), (1, USE)])];
        for _ in 0..1 + r.below(4) {
            let fault = if r.chance(700) { Fault::Die } else { forgets(r) };
            self.befalls(r, Some(1), fault, &[100, 1000, 5000]);
        }
    }

    fn refused(&mut self, r: &mut Random) {
        self.gentle = false;
        let kinds = some(r, &[Kind::Certificate, Kind::Aes, Kind::Mac, Kind::Ec]);
        self.lives = vec![threads(r, 3, 12, &kinds, &[(2, MAKE), (8, CHANGE)])];
        let steady = r.below(2) as usize;
        for _ in 0..2 + r.below(8) {
            if r.chance(400) {
                let fault = Fault::Refuse(Duration::from_millis(1 + r.below(100)));
                self.befalls(r, Some(steady), fault, &[1000, 5000]);
            } else {
                let fault = if r.chance(600) { Fault::Die } else { forgets(r) };
                self.befalls(r, Some(1 - steady), fault, &[5, 60]);
            }
        }
    }

    fn owners(&mut self, r: &mut Random) {
        let kinds = some(r, &QUICK);
        self.lives = vec![threads(r, 3, 12, &kinds, &[(1, MAKE), (6, SESSION), (1, USE)])];
        for _ in 0..1 + r.below(5) {
            let fault = if r.chance(600) { Fault::Sessions } else { forgets(r) };
            self.befalls(r, None, fault, &[5, 100, 3000]);
        }
    }

    fn keys(&mut self, r: &mut Random) {
        self.gentle = false;
        self.rest = Some(SHORT);
        self.balance = "primary".into();
        let kinds = some(r, &[Kind::Aes, Kind::Mac, Kind::Ec]);
        self.lives = vec![threads(r, 2, 12, &kinds, &[(1, USE), (1, SHARED)])];
        self.befalls(r, Some(0), Fault::Emptied { renewed: false }, &[5, 100]);
        for _ in 0..1 + r.below(2) {
            self.befalls(r, Some(1), Fault::Handles, &[5, 100]);
        }
    }

    fn stale(&mut self, r: &mut Random) {
        (self.gentle, self.members, self.min_copies) = (true, 2, 1);
        self.balance = "primary".into();
        // So long that one that was found dead is tried again, and so short that one that was not is not looked at.
        self.rest = Some(Duration::from_millis(2500 + r.below(2000)));
        self.lives = vec![threads(r, 8, 10, &[Kind::Mac, Kind::Aes], &[(4, USE), (4, SHARED), (1, FIND)])];
        self.befalls(r, Some(1), Fault::Die, &[5, 100]);
        self.befalls(r, Some(0), Fault::Die, &[5, 100, 3000]);
    }

    fn beside(&mut self, r: &mut Random) {
        let kinds = some(r, &QUICK);
        let all = if r.chance(500) { kinds.clone() } else { vec![Kind::Certificate] };
        self.lives = vec![threads(r, 2, 25, &all, &[(3, MAKE), (12, CHANGE), (1, DESTROY)])];
        for _ in 0..1 + r.below(2) {
            let mix = [(6, FIND), (1, FIND_ALL), (1, MAKE), (1, THEIRS), (2, DESTROY_THEIRS)];
            self.beside.push(vec![threads(r, 2, 25, &kinds, &mix)]);
        }
        for _ in 0..r.below(5) {
            let fault = match r.below(3) {
                0 => Fault::Die,
                1 => Fault::Slow(Duration::from_millis(1 + r.below(100))),
                _ => forgets(r),
            };
            self.befalls(r, None, fault, &[5, 100, 1000]);
        }
    }

    fn left(&mut self, r: &mut Random) {
        self.stays_dead = true;
        let kinds = some(r, &QUICK);
        let mix = [(4, MAKE), (1, USE), (3, CHANGE), (3, DESTROY)];
        self.lives = vec![threads(r, 3, 12, &kinds, &mix)];
        self.beside.push(vec![threads(r, 2, 12, &kinds, &[(1, MAKE), (1, PAUSE), (1, THEIRS), (1, FIND)])]);
        let (at, done) = (r.below(300), *r.pick(&[0, 500, 1000]));
        self.kills.push(Kill { program: 0, life: 0, at, at_work: true, done });
        for _ in 0..r.below(3) {
            let fault = if r.chance(500) { Fault::Die } else { forgets(r) };
            self.befalls(r, None, fault, &[5, 100, 1000]);
        }
    }

    fn idle(&mut self, r: &mut Random) {
        let kinds = some(r, &QUICK);
        self.lives = vec![threads(r, 2, 8, &kinds, &[(1, MAKE), (4, USE), (1, FIND), (4, PAUSE)])];
        for _ in 0..1 + r.below(3) {
            let fault = if r.chance(600) { Fault::Die } else { Fault::Emptied { renewed: false } };
            self.befalls(r, None, fault, &[5000, 20_000, 60_000]);
        }
    }

    fn untold(&mut self, r: &mut Random) {
        // The first member is asked first, and always there.
        (self.gentle, self.untold) = (true, true);
        self.balance = "primary".into();
        let kinds = some(r, &QUICK);
        let mix = [(3, MAKE), (1, USE), (3, DESTROY), (1, THEIRS)];
        self.lives = vec![threads(r, 2, 14, &kinds, &mix)];
        let mix = [(3, THEIRS), (12, THEIRS_KEPT)];
        self.beside.push(vec![threads(r, 2, 20, &kinds, &mix)]);
        for _ in 0..1 + r.below(3) {
            let answers = vec![*r.pick(&[Rv::DEVICE_ERROR, Rv::GENERAL_ERROR, Rv::FUNCTION_FAILED])];
            let only = vec![Function::DestroyObject];
            self.befalls(r, Some(1), Fault::Err { before: 1000, after: 0, answers, only }, &[1000, 9000]);
        }
    }

    /// Adds a trouble of this member's, or of any one's.
    fn befalls(&mut self, r: &mut Random, member: Option<usize>, fault: Fault, longest: &[u64]) {
        let any = r.below(self.members as u64) as usize;
        let longest = *r.pick(longest);
        self.troubles.push(Trouble {
            after: Duration::from_millis(r.below(400)),
            member: member.unwrap_or(any),
            fault,
            lasts: Duration::from_millis(1 + r.below(longest)),
        });
    }
}

/// Some of them, one at least.
fn some(r: &mut Random, kinds: &[Kind]) -> Vec<Kind> {
    let one = *r.pick(kinds);
    kinds.iter().copied().filter(|k| *k == one || r.chance(400)).collect()
}

/// One of these, by weight.
fn weighed<T: Copy>(r: &mut Random, of: &[(u64, T)]) -> T {
    let mut at = r.below(of.iter().map(|(weight, _)| weight).sum());
    let drawn = of.iter().find(|(weight, _)| {
        let here = at < *weight;
        at = at.saturating_sub(*weight);
        here
    });
    drawn.unwrap_or(&of[0]).1
}

/// So many threads at the most, and what each does: makes something, and then of `mix`, by weight.
fn threads(r: &mut Random, most: u64, longest: u64, kinds: &[Kind], mix: &[(u64, Draw)]) -> Vec<Vec<Op>> {
    let op = |r: &mut Random| weighed(r, mix)(r, kinds);
    let count = 1 + r.below(most);
    let thread = |r: &mut Random| {
        let first = MAKE(r, kinds);
        std::iter::once(first).chain((0..2 + r.below(longest)).map(|_| op(r))).collect()
    };
    (0..count).map(|_| thread(r)).collect()
}

/// A member loses what it knew.
fn forgets(r: &mut Random) -> Fault {
    match r.below(5) {
        0 => Fault::Logins,
        1 => Fault::Handles,
        2 => Fault::Sessions,
        _ => {
            let most_turns = *r.pick(&[3, 10, 50]);
            Fault::Flicker { times: 2 + r.below(30) as u16, turns: 1 + r.below(most_turns) as u16 }
        }
    }
}

/// A member makes some of what it is asked, or destroys it, and says that it did not.
fn half_made(r: &mut Random) -> Fault {
    let only = [Function::CreateObject, Function::UnwrapKey, Function::DestroyObject];
    Fault::Err {
        before: *r.pick(&[0, 100, 300]),
        after: *r.pick(&[0, 100, 300]),
        answers: vec![*r.pick(&ANSWERS)],
        only: only.into_iter().filter(|_| r.chance(700)).chain([Function::GetAttributeValue]).collect(),
    }
}
