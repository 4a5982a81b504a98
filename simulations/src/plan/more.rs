//! The kinds of trouble that came after the first histories were kept. Each is drawn from a part of the random of its own,
//! after everything else: the plan of a seed that draws none of them is what it always was.

use std::time::Duration;

use super::{End, Fault, Kind, Make, Op, Plan, Trouble};
use crate::random::Random;
use crate::scenario::Scenario;

/// Adds so many troubles of a kind to a plan.
type Add = fn(&mut Plan, &mut Random, usize);

/// A kind of trouble by the scenario that plays nothing else, and how a seed draws it. New ones come last: each
/// takes its part of the random in turn.
const KINDS: &[(Scenario, Add)] = &[
    (Scenario::Flaps, flaps),
    (Scenario::Emptied, emptied),
    (Scenario::SetBacks, set_backs),
    (Scenario::LedgerDisk, ledger_disk),
    (Scenario::Ledger, ledger),
    (Scenario::Hangs, hangs),
    (Scenario::Makes, makes),
    (Scenario::Liars, liars),
    (Scenario::SessionObjects, session_objects),
    (Scenario::Joins, joins),
];

impl Plan {
    /// Adds what the scenario plays of these.
    pub(super) fn add_more(&mut self, scenario: Scenario) {
        let mut random = Random::new(self.seed).part("more");
        for (kind, add) in KINDS {
            let mut r = random.part(&kind.name());
            if r.chance(scenario.adds(*kind)) {
                let most = if scenario == *kind { 6 } else { 2 };
                let count = 1 + r.below(most) as usize;
                add(self, &mut r, count);
            }
        }
        self.one_stays_away();
        self.one_lies();
    }

    /// Puts a trouble of any member's among the others.
    fn insert(&mut self, r: &mut Random, fault: Fault, lasts: Duration) {
        let trouble = Trouble {
            after: Duration::from_millis(r.below(400)),
            member: r.below(self.members as u64) as usize,
            fault,
            lasts,
        };
        let at = r.below(self.troubles.len() as u64 + 1) as usize;
        self.troubles.insert(at, trouble);
    }

    /// A member that signs wrongly stays out of use for as long as the process runs. That is one member at the most, and in a
    /// gentle history no other one is in trouble after that.
    fn one_lies(&mut self) {
        let lies = |t: &Trouble| matches!(t.fault, Fault::Lie { .. });
        let Some(first) = self.troubles.iter().position(lies) else { return };
        let member = self.troubles[first].member;
        self.troubles.iter_mut().filter(|t| lies(t)).for_each(|t| t.member = member);
        if self.gentle {
            let mut n = 0;
            self.troubles.retain(|t| {
                n += 1;
                n <= first + 1 || t.member == member
            });
        }
    }

    /// A member whose token was made anew with another serial number stays out of the group. That is one member at the
    /// most, and in a gentle history, where another one is well at every moment, no other member is in trouble after that.
    fn one_stays_away(&mut self) {
        let renewed = |t: &Trouble| t.fault == Fault::Emptied { renewed: true };
        let Some(first) = self.troubles.iter().position(renewed) else { return };
        let member = self.troubles[first].member;
        for trouble in self.troubles.iter_mut().filter(|t| renewed(t) && t.member != member) {
            trouble.fault = Fault::Emptied { renewed: false };
        }
        if self.gentle {
            let mut n = 0;
            self.troubles.retain(|t| {
                n += 1;
                n <= first + 1 || t.member == member
            });
        }
    }
}

fn millis(r: &mut Random, longest: &[u64]) -> Duration {
    let longest = *r.pick(longest);
    Duration::from_millis(1 + r.below(longest))
}

fn flaps(plan: &mut Plan, r: &mut Random, count: usize) {
    for _ in 0..count {
        let (dead, alive) = (millis(r, &[3, 50, 1500]), millis(r, &[3, 50, 1500]));
        let times = 3 + r.below(15) as u32;
        plan.insert(r, Fault::Flap { dead, alive }, (dead + alive) * times);
    }
}

fn emptied(plan: &mut Plan, r: &mut Random, count: usize) {
    for _ in 0..count {
        let (renewed, lasts) = (r.chance(250), millis(r, &[5, 100, 3000]));
        plan.insert(r, Fault::Emptied { renewed }, lasts);
    }
}

fn set_backs(plan: &mut Plan, r: &mut Random, count: usize) {
    for _ in 0..count {
        let (by, lasts) = (r.below(4) as u8, millis(r, &[5, 100, 3000]));
        plan.insert(r, Fault::SetBack { by }, lasts);
    }
}

fn ledger_disk(plan: &mut Plan, r: &mut Random, count: usize) {
    for _ in 0..count {
        let lasts = millis(r, &[5, 100, 3000]);
        plan.insert(r, Fault::LedgerFull, lasts);
    }
    plan.ends = (1..plan.lives.len()).map(|_| if r.chance(500) { End::Torn } else { End::Kept }).collect();
}

fn ledger(plan: &mut Plan, r: &mut Random, count: usize) {
    ledger_disk(plan, r, count.div_ceil(3));
    if r.chance(200) {
        plan.insert(r, Fault::LedgerGone, Duration::from_millis(1));
    }
    for end in &mut plan.ends {
        if r.chance(700) {
            *end = if r.chance(300) { End::Gone } else { End::Old { after: r.below(256) as u8 } };
        }
    }
}

fn liars(plan: &mut Plan, r: &mut Random, count: usize) {
    plan.verify = true;
    for _ in 0..count {
        let (of, lasts) = (*r.pick(&[100, 400, 1000]), millis(r, &[5, 100, 3000]));
        plan.insert(r, Fault::Lie { of }, lasts);
    }
}

/// Session objects that outlive their members, and more of them. A member that answers errors while one is made may leave
/// one that stays where it is: in a gentle history, where every call must succeed, members do not.
fn session_objects(plan: &mut Plan, r: &mut Random, _count: usize) {
    let errs = |t: &Trouble| {
        matches!(t.fault, Fault::Err { .. } | Fault::Full | Fault::ReadOnly | Fault::Lie { .. })
    };
    if plan.gentle && plan.troubles.iter().any(errs) {
        return;
    }
    plan.replay = true;
    more_session_objects(plan, r, 300);
}

/// So many of 1000 operations make session objects.
fn more_session_objects(plan: &mut Plan, r: &mut Random, per_mille: u64) {
    for op in plan.lives.iter_mut().flatten().flatten() {
        if r.chance(per_mille) {
            *op = Op::Session(*r.pick(&[Kind::Ec, Kind::Mac, Kind::Aes, Kind::Data, Kind::Certificate]));
        }
    }
}

/// Calls that do not return for long, and some that return soon after nobody waits for them any more, when the member has
/// long been well again.
fn hangs(plan: &mut Plan, r: &mut Random, count: usize) {
    let deadline = *r.pick(&[200, 500, 2000]);
    plan.deadline = Some(Duration::from_millis(deadline));
    for _ in 0..count {
        if r.chance(500) {
            let lasts = millis(r, &[400, 5000, 600_000]);
            plan.insert(r, Fault::Hang, lasts);
        } else {
            let takes = Duration::from_millis(deadline + 1 + r.below(2 * deadline));
            let lasts = millis(r, &[5, 20, 100]);
            plan.insert(r, Fault::Slow(takes), lasts);
        }
    }
}

/// A member leaves the group, and joins it again: one that the others can do without.
fn joins(plan: &mut Plan, r: &mut Random, count: usize) {
    if plan.members <= plan.min_copies as usize {
        plan.min_copies = plan.members as u32 - 1;
    }
    let member = r.below(plan.members as u64) as usize;
    for _ in 0..count {
        let lasts = millis(r, &[1500, 5000, 20_000]);
        plan.insert(r, Fault::Leaves, lasts);
    }
    plan.troubles.iter_mut().filter(|t| t.fault == Fault::Leaves).for_each(|t| t.member = member);
    if plan.only_leaves() {
        more_session_objects(plan, r, 200);
    }
}

/// One of another make at least. A TPM only where the others can have the copies that are asked for, and one of them is
/// well when every call must succeed.
fn makes(plan: &mut Plan, r: &mut Random, _count: usize) {
    plan.makes = (0..plan.members).map(|_| *r.pick(&[Make::SoftHsm, Make::Kryoptic])).collect();
    let other = r.below(plan.members as u64) as usize;
    let others = plan.members - 1;
    let least = if plan.gentle { 2 } else { plan.min_copies as usize };
    plan.makes[other] = if r.chance(300) && others >= least { Make::Tpm } else { Make::Kryoptic };
    if plan.makes.iter().all(|m| *m == Make::Kryoptic) {
        plan.makes[(other + 1) % plan.members] = Make::SoftHsm;
    }
}
