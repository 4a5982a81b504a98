//! Scenarios: which kinds of trouble a seed may draw.

use clap::ValueEnum;

use crate::plan::Fault;

/// A mix of what the application does and of what goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Any trouble; each seed leaves some kinds out.
    Everything,
    /// No trouble: threads that work at once, and nothing else.
    Calm,
    /// Members die and come back.
    Deaths,
    /// Members answer errors, or are slow.
    Errors,
    /// Members lose their token, sessions, logins or handles.
    LostState,
    /// Members are full or cannot be written.
    NoRoom,
    /// The process ends and starts again, twice, under any trouble.
    Restarts,
    /// Several processes on one ledger, under any trouble.
    Processes,
    /// Processes are killed, alone or beside others, under any trouble.
    Crashes,
}

/// What `everything` does not draw from yet, and what is owed until it does.
pub const OWED: &[(Scenario, &str)] = &[
    (
        Scenario::Processes,
        "G2: what one process has destroyed, and could not on a member that it finds down, is used by another process that \
         finds that member up and has a handle from before (a search heeds the ledger, an operation does not; seed 264)",
    ),
    (
        Scenario::Crashes,
        "the same, and G4: a key cannot be made while a member is well that lost its token before and that nobody has used \
         since, because that is found out only when the other one is lost too (seed 1277)",
    ),
];

/// Whether `everything` does not draw from a scenario yet.
pub fn is_owed(scenario: Scenario) -> bool {
    OWED.iter().any(|(owed, _)| *owed == scenario)
}

impl Scenario {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
    }

    /// Whether members may be in this trouble.
    pub fn plays(self, fault: &Fault) -> bool {
        match self {
            Scenario::Everything | Scenario::Restarts | Scenario::Processes | Scenario::Crashes => true,
            Scenario::Calm => false,
            Scenario::Deaths => matches!(fault, Fault::Die),
            Scenario::Errors => matches!(fault, Fault::Err { .. } | Fault::Slow(_)),
            Scenario::LostState => {
                matches!(fault, Fault::Lost | Fault::Sessions | Fault::Logins | Fault::Handles | Fault::Other)
            }
            Scenario::NoRoom => matches!(fault, Fault::Full | Fault::ReadOnly),
        }
    }

    /// How many troubles there are, of those drawn.
    pub(crate) fn troubles(self, drawn: u64) -> usize {
        if self == Scenario::Calm { 0 } else { drawn as usize }
    }

    /// Whether a seed draws a kind of trouble at all: where the scenario has chosen already it leaves none out.
    pub(crate) fn chooses(self, drawn: bool) -> bool {
        use Scenario::{Crashes, Everything, Processes, Restarts};
        drawn || !matches!(self, Everything | Restarts | Processes | Crashes)
    }

    /// How many programs run beside the first one: as drawn, at least one, or perhaps none.
    pub(crate) fn beside(self, drawn: u64, one: u64, some: bool) -> u64 {
        match self {
            Scenario::Everything if is_owed(Scenario::Processes) => 0,
            Scenario::Everything => drawn,
            Scenario::Processes => one,
            Scenario::Crashes if some => one,
            _ => 0,
        }
    }

    /// Whether processes are killed.
    pub(crate) fn crashes(self, drawn: bool) -> bool {
        self == Scenario::Crashes || (self == Scenario::Everything && drawn && !is_owed(Scenario::Crashes))
    }

    /// How often the process starts.
    pub(crate) fn lives(self, drawn: usize) -> usize {
        if self == Scenario::Restarts { 3 } else { drawn }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::plan::{Op, Plan};

    /// The kinds of trouble that 300 seeds draw.
    fn kinds(scenario: Scenario) -> BTreeSet<String> {
        let plans = (0..300).map(|seed| Plan::of(scenario, seed));
        let name = |f: &Fault| format!("{f:?}").split([' ', '(']).next().unwrap_or_default().to_owned();
        plans.flat_map(|p| p.troubles.iter().map(|t| name(&t.fault)).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn a_scenario_draws_its_own_kinds_of_trouble_and_every_one_of_them() {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        assert_eq!(kinds(Scenario::Calm), set(&[]));
        assert_eq!(kinds(Scenario::Deaths), set(&["Die"]));
        assert_eq!(kinds(Scenario::Errors), set(&["Err", "Slow"]));
        assert_eq!(kinds(Scenario::LostState), set(&["Lost", "Sessions", "Logins", "Handles", "Other"]));
        assert_eq!(kinds(Scenario::NoRoom), set(&["Full", "ReadOnly"]));
        let all = kinds(Scenario::Everything);
        for scenario in [Scenario::Restarts, Scenario::Processes, Scenario::Crashes] {
            assert_eq!(all, kinds(scenario));
        }
        for scenario in Scenario::value_variants() {
            assert!(kinds(*scenario).is_subset(&all));
        }
    }

    #[test]
    fn processes_and_their_deaths_are_drawn_where_they_are_asked_for() {
        let beside = |s| (0..300).map(|seed| Plan::of(s, seed).beside.len()).collect::<BTreeSet<_>>();
        let deaths = |s| (0..300).map(|seed| Plan::of(s, seed).kills.len().min(1)).collect::<BTreeSet<_>>();
        for scenario in Scenario::value_variants() {
            let (programs, killed): (&[usize], &[usize]) = match scenario {
                Scenario::Processes => (&[1, 2], &[0]),
                Scenario::Crashes => (&[0, 1, 2], &[1]),
                Scenario::Everything => (
                    if is_owed(Scenario::Processes) { &[0] } else { &[0, 1, 2] },
                    if is_owed(Scenario::Crashes) { &[0] } else { &[0, 1] },
                ),
                _ => (&[0], &[0]),
            };
            assert_eq!(beside(*scenario), programs.iter().copied().collect(), "{scenario:?}");
            assert_eq!(deaths(*scenario), killed.iter().copied().collect(), "{scenario:?}");
        }
        let plans: Vec<_> = (0..300).map(|seed| Plan::of(Scenario::Processes, seed)).collect();
        let does = |wanted: fn(&Op) -> bool| {
            plans.iter().flat_map(Plan::programs).flatten().flatten().flatten().any(wanted)
        };
        assert!(does(|op| matches!(op, Op::Theirs(_))));
        assert!(does(|op| matches!(op, Op::TheirsGone(_))));
        assert!(does(|op| matches!(op, Op::DestroyTheirs(_))));
    }

    #[test]
    fn restarts_restart() {
        assert!((0..50).all(|seed| Plan::of(Scenario::Restarts, seed).lives.len() == 3));
    }
}
