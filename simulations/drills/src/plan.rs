//! What is done when: from a scenario, a seed and a few settings. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What goes wrong in a drill.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scenario {
    /// Each member's server in turn is killed, and started again later.
    Kill,
    /// Each member's server in turn is stopped (`SIGSTOP`), and goes on later.
    Hang,
    /// One member's server is killed and started again and again.
    Flap,
    /// Each member's server in turn is restarted, twice.
    RestartRolling,
    /// The folder of each member's token in turn is taken away, and brought back later.
    LoseToken,
    /// Each member's server in turn gets to work for a small part of the time only.
    Slow,
    /// Each member's server in turn cannot write anything large, while objects are made and destroyed.
    FullDisk,
    /// Each member's signatures in turn are wrong.
    WrongAnswers,
    /// The PIN of each member's token in turn is another one.
    WrongPin,
    /// Every server is killed, and later started; then every one is stopped, and later goes on.
    AllDown,
    /// All of these, one after the other.
    All,
}

impl Scenario {
    /// Every one, in the order in which [`Scenario::All`] plays them.
    pub const EVERY: [Scenario; 11] = [
        Scenario::Kill,
        Scenario::Hang,
        Scenario::Flap,
        Scenario::RestartRolling,
        Scenario::LoseToken,
        Scenario::Slow,
        Scenario::FullDisk,
        Scenario::WrongAnswers,
        Scenario::WrongPin,
        Scenario::AllDown,
        Scenario::All,
    ];

    /// As it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Kill => "kill",
            Scenario::Hang => "hang",
            Scenario::Flap => "flap",
            Scenario::RestartRolling => "restart-rolling",
            Scenario::LoseToken => "lose-token",
            Scenario::Slow => "slow",
            Scenario::FullDisk => "full-disk",
            Scenario::WrongAnswers => "wrong-answers",
            Scenario::WrongPin => "wrong-pin",
            Scenario::AllDown => "all-down",
            Scenario::All => "all",
        }
    }

    /// Whether signatures are verified before they are handed out: a scenario without that would show wrong ones.
    pub(crate) fn verifies(self) -> bool {
        self.parts().contains(&Scenario::WrongAnswers)
    }

    /// Whether objects are made on the tokens while it is played.
    pub(crate) fn writes(self) -> bool {
        self.parts().contains(&Scenario::FullDisk)
    }

    /// Whether it does to a configured group what a drill that is killed leaves there: objects on its tokens; or has its
    /// members seem to be in a state that only an operator ends.
    pub fn is_destructive(self) -> bool {
        let alarming = [Scenario::LoseToken, Scenario::FullDisk, Scenario::WrongAnswers, Scenario::WrongPin];
        self.parts().iter().any(|part| alarming.contains(part))
    }

    fn parts(self) -> Vec<Scenario> {
        match self {
            Scenario::All => Scenario::EVERY.into_iter().filter(|s| *s != Scenario::All).collect(),
            one => vec![one],
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No scenario has this name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no scenario {:?}; there are: {}", .0, Scenario::EVERY.map(Scenario::name).join(", "))]
pub struct UnknownScenario(String);

impl FromStr for Scenario {
    type Err = UnknownScenario;

    fn from_str(name: &str) -> Result<Self, UnknownScenario> {
        let found = Scenario::EVERY.into_iter().find(|s| s.name() == name);
        found.ok_or_else(|| UnknownScenario(name.to_owned()))
    }
}

/// How a member is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// Its server is killed.
    Killed,
    /// Its server is stopped where it is.
    Hung,
    /// The folder of its token is taken away.
    Lost,
    /// Its server is stopped for most of the time, in turns shorter than a call waits.
    Slow,
    /// Its server cannot write a file larger than [`FULL`].
    Full,
    /// Its signatures are wrong.
    Lying,
    /// Its PIN was changed, by whoever.
    Locked,
}

impl How {
    /// Every one.
    pub const EVERY: [How; 7] =
        [How::Killed, How::Hung, How::Lost, How::Slow, How::Full, How::Lying, How::Locked];
}

/// What still finds room on a full disk: SoftHSM's own small files, which it writes anew at each login, and keys.
pub const FULL: u64 = 32 << 10;

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            How::Killed => "killed",
            How::Hung => "hung",
            How::Lost => "without its token",
            How::Slow => "slow",
            How::Full => "on a full disk",
            How::Lying => "signing wrongly",
            How::Locked => "under another PIN",
        })
    }
}

/// One thing that is done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// The load goes on for so long, and nothing else happens.
    Go(Duration),
    /// These members are broken.
    Break(Vec<usize>, How),
    /// They are mended.
    Mend(Vec<usize>, How),
    /// Every member is waited for.
    Back,
    /// It is waited until every member holds what the others hold; nothing is made meanwhile.
    Same,
}

/// What a scenario does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// The scenario.
    pub scenario: Scenario,
    /// Its steps.
    pub steps: Vec<Step>,
}

/// What a plan is made of, besides its scenario.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// How many members there are.
    pub members: usize,
    /// How long each scenario is to last, waiting for members not counted.
    pub length: Duration,
    /// How long a call waits for a member that hangs.
    pub deadline: Option<Duration>,
    /// Who goes first, and when exactly.
    pub seed: u64,
}

/// A small generator of what looks random: the same from the same seed, on every machine.
#[derive(Clone, Debug)]
pub struct Draw(u64);

impl Draw {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Draw(seed)
    }

    /// The next number: splitmix64.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`; 0 if that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.number().checked_rem(limit as u64).unwrap_or(0) as usize
    }

    /// So long, a fifth more or less.
    fn about(&mut self, time: Duration) -> Duration {
        time.mul_f64(0.8 + self.below(401) as f64 / 1000.0)
    }

    fn order(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for i in (1..count).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// How often a member flaps at most, and at least.
const FLAPS: (u32, u32) = (3, 20);
/// About how long a flap takes, down and up.
const FLAP: Duration = Duration::from_millis(800);

/// The plan of a scenario.
pub fn plan(scenario: Scenario, settings: &Settings) -> Vec<Part> {
    let mut draw = Draw::new(settings.seed);
    scenario.parts().into_iter().map(|s| Part { scenario: s, steps: steps(s, settings, &mut draw) }).collect()
}

fn steps(scenario: Scenario, settings: &Settings, draw: &mut Draw) -> Vec<Step> {
    let order = draw.order(settings.members);
    // A member that hangs for a shorter time than a call waits for it is not noticed.
    let longest = settings.deadline.map_or(Duration::ZERO, |d| d * 2 + Duration::from_millis(200));
    let one_by_one = |how, draw: &mut Draw| {
        let faults = order.iter().map(|m| (vec![*m], how)).collect();
        let least = if how == How::Hung { longest } else { Duration::ZERO };
        in_turn(faults, settings.length, least, draw)
    };
    match scenario {
        Scenario::Kill => one_by_one(How::Killed, draw),
        Scenario::Hang => one_by_one(How::Hung, draw),
        Scenario::LoseToken => one_by_one(How::Lost, draw),
        Scenario::Slow => one_by_one(How::Slow, draw),
        Scenario::WrongAnswers => one_by_one(How::Lying, draw),
        Scenario::WrongPin => one_by_one(How::Locked, draw),
        Scenario::FullDisk => {
            let steps = one_by_one(How::Full, draw);
            let with_same = |step| if step == Step::Back { vec![step, Step::Same] } else { vec![step] };
            steps.into_iter().flat_map(with_same).chain([Step::Same]).collect()
        }
        Scenario::RestartRolling => {
            let share = settings.length / (2 * settings.members.max(1) as u32 + 1);
            let mut steps = vec![Step::Go(share)];
            for member in order.iter().chain(&order) {
                let all = || vec![*member];
                steps.extend([Step::Break(all(), How::Killed), Step::Mend(all(), How::Killed), Step::Back]);
                steps.push(Step::Go(draw.about(share)));
            }
            steps
        }
        Scenario::Flap => {
            let member = order.first().copied().unwrap_or(0);
            let calm = settings.length / 6;
            let times = (settings.length * 4 / 6).as_millis() / FLAP.as_millis();
            let times = u32::try_from(times).unwrap_or(FLAPS.1).clamp(FLAPS.0, FLAPS.1);
            let half = settings.length * 4 / 6 / times / 2;
            let mut steps = vec![Step::Go(calm)];
            for _ in 0..times {
                steps.extend([
                    Step::Break(vec![member], How::Killed),
                    Step::Go(draw.about(half)),
                    Step::Mend(vec![member], How::Killed),
                    Step::Go(draw.about(half)),
                ]);
            }
            steps.extend([Step::Back, Step::Go(calm)]);
            steps
        }
        Scenario::AllDown => {
            let all: Vec<usize> = (0..settings.members).collect();
            in_turn(vec![(all.clone(), How::Killed), (all, How::Hung)], settings.length, longest, draw)
        }
        Scenario::All => Vec::new(),
    }
}

/// One fault after the other, each mended and over before the next one: a third of the time broken, but at least so long.
fn in_turn(faults: Vec<(Vec<usize>, How)>, length: Duration, least: Duration, draw: &mut Draw) -> Vec<Step> {
    let share = length / faults.len().max(1) as u32 / 3;
    let mut steps = Vec::new();
    for (members, how) in faults {
        steps.push(Step::Go(draw.about(share)));
        steps.push(Step::Break(members.clone(), how));
        let least = if how == How::Hung { least } else { Duration::ZERO };
        steps.push(Step::Go(draw.about(share).max(least)));
        steps.push(Step::Mend(members, how));
        steps.push(Step::Back);
        steps.push(Step::Go(draw.about(share)));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(members: usize, seed: u64) -> Settings {
        let (length, deadline) = (Duration::from_secs(6), Some(Duration::from_millis(500)));
        Settings { members, length, deadline, seed }
    }

    fn every(mut look: impl FnMut(Scenario, &Settings, &[Step])) {
        for members in 2..=4 {
            for seed in 0..50 {
                let settings = settings(members, seed);
                for part in plan(Scenario::All, &settings) {
                    look(part.scenario, &settings, &part.steps);
                }
            }
        }
    }

    #[test]
    fn the_same_seed_is_the_same_plan_and_another_one_another() {
        let one = plan(Scenario::All, &settings(3, 1));
        assert_eq!(one, plan(Scenario::All, &settings(3, 1)));
        assert_ne!(one, plan(Scenario::All, &settings(3, 2)));
        assert_eq!(one.len(), Scenario::EVERY.len() - 1);
    }

    #[test]
    fn who_is_broken_is_mended_and_waited_for() {
        every(|scenario, settings, steps| {
            let mut broken = vec![None; settings.members];
            let (mut owed, mut most) = (false, 0);
            for step in steps {
                match step {
                    Step::Break(members, how) => {
                        // Another one than before only once all are back.
                        assert!(!owed || scenario == Scenario::Flap, "{scenario}: {steps:?}");
                        for m in members {
                            assert_eq!(broken[*m].replace(*how), None);
                        }
                        owed = true;
                    }
                    Step::Mend(members, how) => {
                        members.iter().for_each(|m| assert_eq!(broken[*m].take(), Some(*how)));
                    }
                    Step::Back => {
                        assert!(broken.iter().all(Option::is_none));
                        owed = false;
                    }
                    Step::Go(_) | Step::Same => {}
                }
                most = most.max(broken.iter().flatten().count());
            }
            assert!(!owed && broken.iter().all(Option::is_none), "{scenario}: {steps:?}");
            assert_eq!(most, if scenario == Scenario::AllDown { settings.members } else { 1 });
        });
    }

    #[test]
    fn every_member_has_its_turn_but_where_one_flaps() {
        every(|scenario, settings, steps| {
            let mut times = vec![0; settings.members];
            for step in steps {
                if let Step::Break(members, _) = step {
                    members.iter().for_each(|m| times[*m] += 1);
                }
            }
            match scenario {
                Scenario::Flap => {
                    times.sort_unstable();
                    assert!(times.pop().unwrap() >= 3 && times.iter().all(|t| *t == 0));
                }
                Scenario::RestartRolling | Scenario::AllDown => assert!(times.iter().all(|t| *t == 2)),
                _ => assert!(times.iter().all(|t| *t == 1)),
            }
        });
    }

    #[test]
    fn what_hangs_hangs_for_longer_than_calls_wait() {
        every(|_, settings, steps| {
            for window in steps.windows(2) {
                if let [Step::Break(_, How::Hung), Step::Go(time)] = window {
                    assert!(*time > settings.deadline.unwrap() * 2);
                }
            }
        });
    }

    #[test]
    fn it_lasts_about_as_long_as_it_is_to() {
        every(|scenario, settings, steps| {
            let all: Duration =
                steps.iter().map(|s| if let Step::Go(time) = s { *time } else { Duration::ZERO }).sum();
            assert!(all > settings.length / 2 && all < settings.length * 2, "{scenario}: {all:?}");
        });
    }

    #[test]
    fn names_lead_back_and_others_are_answered_with_the_list() {
        for scenario in Scenario::EVERY {
            assert_eq!(scenario.name().parse(), Ok(scenario));
        }
        let none = "x".parse::<Scenario>().unwrap_err().to_string();
        assert!(none.contains("\"x\"") && none.contains("lose-token"), "{none}");
    }
}
