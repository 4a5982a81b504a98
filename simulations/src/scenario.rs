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
    /// Objects are changed all the time, while members refuse that, come and go, or lose what they knew in a call.
    Restless,
}

impl Scenario {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
    }

    /// Whether members may be in this trouble.
    pub fn plays(self, fault: &Fault) -> bool {
        match self {
            Scenario::Everything | Scenario::Restarts | Scenario::Restless => true,
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
        drawn || !matches!(self, Scenario::Everything | Scenario::Restarts)
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
    use crate::plan::Plan;

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
        assert_eq!(all, kinds(Scenario::Restarts));
        assert_eq!(
            kinds(Scenario::Restless),
            set(&["Die", "Err", "Slow", "Sessions", "Logins", "Handles", "Flicker"])
        );
        for scenario in Scenario::value_variants().iter().filter(|s| **s != Scenario::Restless) {
            assert!(kinds(*scenario).is_subset(&all));
        }
    }

    #[test]
    fn restarts_restart() {
        assert!((0..50).all(|seed| Plan::of(Scenario::Restarts, seed).lives.len() == 3));
    }
}
