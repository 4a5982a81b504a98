//! Objects that are made, changed and destroyed all the time, while members refuse changes, come and go, or lose what they
//! knew in the middle of a call.

use std::time::Duration;

use ha_token::{Function, Rv};

use super::{Fault, Kind, Op, Plan, Trouble};
use crate::random::Random;

/// What a token may say of a change that it does not make.
const REFUSALS: [Rv; 4] =
    [Rv::ATTRIBUTE_READ_ONLY, Rv::ATTRIBUTE_VALUE_INVALID, Rv::TEMPLATE_INCONSISTENT, Rv::ACTION_PROHIBITED];

/// What a token may say of what it cannot do.
const INABILITIES: [Rv; 4] =
    [Rv::FUNCTION_NOT_SUPPORTED, Rv::MECHANISM_INVALID, Rv::KEY_NOT_WRAPPABLE, Rv::KEY_UNEXTRACTABLE];

/// What a history is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// One member is slow, or refuses changes; the others die and come back.
    Refusals,
    /// Members lose their logins and handles again and again.
    Flicker,
    /// One member is well; others say for a while that they cannot what they can.
    Inability,
    /// One member at a time loses what it knew, or dies, while objects are changed and asked for what they cannot have.
    Mixed,
}

impl Plan {
    /// The plan of a seed in the scenario of that name.
    pub(super) fn restless(seed: u64) -> Plan {
        let r = &mut Random::new(seed);
        let mood = *r.pick(&[Mood::Refusals, Mood::Flicker, Mood::Mixed, Mood::Inability]);
        let members = 2 + usize::from(r.chance(150));
        // What is refused in the other ones may be refused to the application.
        let gentle = mood == Mood::Mixed || (mood == Mood::Flicker && r.chance(600));
        let threads = 2 + r.below(4) as usize;
        let per_thread = 6 + r.below(50 / threads as u64) as usize;
        let kinds: Vec<Kind> = [Kind::Ec, Kind::Mac, Kind::Aes, Kind::Data, Kind::Certificate]
            .into_iter()
            .filter(|_| r.chance(500))
            .chain([Kind::Certificate])
            .collect();
        // As in `Plan::op`: make, use twice, parts, shared, find, find all, change, destroy, use gone, reopen, digest, mistake.
        let weights: [u64; 13] = match mood {
            Mood::Refusals => [4, 1, 0, 0, 0, 0, 0, *r.pick(&[1, 4]), 0, 0, 0, 0, *r.pick(&[2, 8])],
            Mood::Flicker => [4, 1, 1, 0, 1, 1, 1, 3, 3, 1, 0, 0, 0],
            Mood::Mixed => [2, 2, 0, 1, 2, 1, 1, *r.pick(&[4, 12]), 1, 1, 0, 0, *r.pick(&[2, 8])],
            Mood::Inability => [4, 2, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0],
        };
        let ops = |r: &mut Random| {
            let first = Op::Make(*r.pick(&kinds));
            std::iter::once(first).chain((0..per_thread).map(|_| Self::op(r, &weights, &kinds))).collect()
        };
        let lives = vec![(0..threads).map(|_| ops(r)).collect()];
        let steady = r.below(members as u64) as usize;
        let other = |r: &mut Random| (steady + 1 + r.below(members as u64 - 1) as usize) % members;
        let mut troubles = Vec::new();
        for _ in 0..2 + r.below(if gentle { 4 } else { 12 }) {
            let (fault, member, longest) = match mood {
                Mood::Refusals if r.chance(300) => (Self::refusal(r), steady, 3000),
                Mood::Refusals => (Fault::Die, other(r), 60),
                Mood::Flicker => (Self::unrest(r), other(r), 30),
                Mood::Mixed if r.chance(300) => (Fault::Die, other(r), 60),
                Mood::Mixed => (Self::unrest(r), other(r), 60),
                Mood::Inability if r.chance(300) => (Fault::Die, other(r), 60),
                Mood::Inability => (Self::inability(r), other(r), 3000),
            };
            let (after, lasts) = (r.below(1500), 1 + r.below(longest));
            troubles.push(Trouble {
                after: Duration::from_millis(after),
                member,
                fault,
                lasts: Duration::from_millis(lasts),
            });
        }
        Plan {
            seed,
            members,
            min_copies: 1 + u32::from(r.chance(100)),
            balance: (*r.pick(&["least-busy", "round-robin", "primary"])).into(),
            gentle,
            spread: mood != Mood::Refusals || r.chance(500),
            wrong_pin: false,
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
        }
    }

    /// A member takes long for each call, so that others come back meanwhile, or does not make changes.
    fn refusal(r: &mut Random) -> Fault {
        match r.below(3) {
            0 | 1 => Fault::Slow(Duration::from_millis(1 + r.below(300))),
            _ => Fault::Err {
                before: *r.pick(&[300, 1000]),
                after: 0,
                answers: vec![*r.pick(&REFUSALS)],
                only: vec![Function::SetAttributeValue],
            },
        }
    }

    /// A member loses what it knew.
    fn unrest(r: &mut Random) -> Fault {
        match r.below(10) {
            0 => Fault::Logins,
            1 => Fault::Handles,
            2 => Fault::Sessions,
            _ => {
                let most_turns = *r.pick(&[3, 10, 50]);
                Fault::Flicker { times: 2 + r.below(40) as u16, turns: 1 + r.below(most_turns) as u16 }
            }
        }
    }

    /// A member says that it cannot what it can.
    fn inability(r: &mut Random) -> Fault {
        Fault::Err {
            before: *r.pick(&[300, 1000]),
            after: 0,
            answers: vec![*r.pick(&INABILITIES)],
            only: vec![*r.pick(&[Function::WrapKey, Function::UnwrapKey, Function::GenerateKey])],
        }
    }
}
