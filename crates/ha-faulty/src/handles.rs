//! Handles that were lost: from then on the caller's handles are others than the module's.

use std::collections::HashMap;

use ha_token::Ulong;

/// Which handle of the module is meant by one of the caller's. As long as none was lost they are the same.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    lost: bool,
    last: Ulong,
    real: HashMap<Ulong, Ulong>,
    shown: HashMap<Ulong, Ulong>,
}

/// Above what modules are known to count up to, and within 32 bits.
const FIRST: Ulong = 0x4000_0000;

impl Handles {
    /// What the module calls it; `None` when it was lost, or never given out since.
    pub(crate) fn real(&self, shown: Ulong) -> Option<Ulong> {
        if self.lost { self.real.get(&shown).copied() } else { Some(shown) }
    }

    /// What the caller is told.
    pub(crate) fn shown(&mut self, real: Ulong) -> Ulong {
        if !self.lost {
            return real;
        }
        if let Some(shown) = self.shown.get(&real) {
            return *shown;
        }
        self.last = self.last.max(FIRST) + 1;
        self.real.insert(self.last, real);
        self.shown.insert(real, self.last);
        self.last
    }

    /// Every handle so far is invalid, and none of them is given out again.
    pub(crate) fn lose(&mut self) {
        self.lost = true;
        self.real.clear();
        self.shown.clear();
    }

    /// The module's handle is no more; it may give the number to something else.
    pub(crate) fn forget(&mut self, real: Ulong) {
        if let Some(shown) = self.shown.remove(&real) {
            self.real.remove(&shown);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn before_a_loss_they_are_the_modules_own() {
        let mut handles = Handles::default();
        assert_eq!((handles.shown(3), handles.real(3), handles.real(4)), (3, Some(3), Some(4)));
    }

    proptest! {
        /// Each loss makes every handle so far invalid; those given out since lead back, and none comes twice.
        #[test]
        fn what_was_given_out_since_the_last_loss_leads_back(
            rounds in proptest::collection::vec(proptest::collection::vec(1u64..20, 1..10), 1..5)
        ) {
            let mut handles = Handles::default();
            let mut old: Vec<Ulong> = (1..20).collect();
            for round in rounds {
                handles.lose();
                let mut now = Vec::new();
                for real in round {
                    let real = real as Ulong;
                    let shown = handles.shown(real);
                    prop_assert_eq!(handles.real(shown), Some(real));
                    prop_assert!(!old.contains(&shown));
                    now.push(shown);
                }
                prop_assert!(old.iter().all(|lost| handles.real(*lost).is_none()));
                let first = now[0];
                let real = handles.real(first).unwrap();
                handles.forget(real);
                prop_assert_eq!(handles.real(first), None);
                prop_assert_ne!(handles.shown(real), first);
                old.extend(now);
            }
        }
    }
}
