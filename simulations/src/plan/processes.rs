//! Several processes, and which of them are killed.

use serde::{Deserialize, Serialize};

use super::{Kind, Op, Plan};
use crate::random::Random;
use crate::scenario::Scenario;

/// The death of a process, as if it were killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kill {
    /// Of the program of this number, ...
    pub program: usize,
    /// ... the process of this life, ...
    pub life: usize,
    /// ... at this point of its threads.
    pub at: u64,
    /// Whether only points between the steps of protocols count.
    pub at_work: bool,
    /// Of 1000 calls in flight, those that the members have done.
    pub done: u16,
}

impl Plan {
    /// Programs beside the first one, which see what the others make, and processes that are killed.
    pub(super) fn draw_processes(
        &mut self,
        scenario: Scenario,
        r: &mut Random,
        weights: &[u64],
        kinds: &[Kind],
    ) {
        let crashes = scenario.crashes(r.chance(200));
        let beside =
            scenario.beside(if r.chance(200) { 1 + r.below(2) } else { 0 }, 1 + r.below(2), r.chance(500));
        let most = if r.chance(200) { 4 } else { 2 };
        self.beside = (0..beside)
            .map(|_| {
                let (lives, threads) = (1 + r.below(2) as usize, 1 + r.below(most) as usize);
                let per_thread = 4 + r.below(60 / (threads * lives) as u64) as usize;
                Self::lives(r, lives, threads, per_thread, weights, kinds)
            })
            .collect();
        if beside > 0 {
            let often = *r.pick(&[50, 150, 400]);
            let all = self.lives.iter_mut().chain(self.beside.iter_mut().flatten());
            for op in all.flatten().flat_map(|ops| ops.iter_mut().skip(1)) {
                if !r.chance(often) {
                    continue;
                }
                let n = r.draw() as u8;
                *op = match r.below(8) {
                    0 => Op::DestroyTheirs(n),
                    1 | 2 => Op::TheirsGone(n),
                    _ => Op::Theirs(n),
                };
            }
        }
        if !crashes {
            return;
        }
        if self.lives.len() == 1 {
            // Somebody is to find what the one that was killed has left.
            let again = self.lives.clone();
            self.lives.extend(again);
        }
        let lives: Vec<usize> = std::iter::once(&self.lives).chain(&self.beside).map(Vec::len).collect();
        for (program, lives) in lives.into_iter().enumerate() {
            for life in 0..lives {
                if r.chance(600) {
                    let at_work = r.chance(700);
                    let longest =
                        if at_work { *r.pick(&[60, 300, 1500]) } else { *r.pick(&[500, 3000, 12000]) };
                    let (at, done) = (r.below(longest), *r.pick(&[0, 500, 1000]));
                    self.kills.push(Kill { program, life, at, at_work, done });
                }
            }
        }
        if self.kills.is_empty() {
            self.kills.push(Kill { program: 0, life: 0, at: r.below(500), at_work: true, done: 500 });
        }
    }

    /// A program beside the first one that does nothing is left out, unless its death is told.
    pub(super) fn drop_idle_programs(&mut self) {
        while let Some(last) = self.beside.last() {
            let is_told = self.kills.iter().any(|k| k.program == self.beside.len());
            if is_told || last.iter().flatten().any(|ops| !ops.is_empty()) {
                return;
            }
            self.beside.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_of_every_program_and_deaths_can_be_left_out() {
        let mut plan =
            (0..).map(|s| Plan::of(Scenario::Crashes, s)).find(|p| !p.beside.is_empty() && p.kills.len() > 1);
        let mut plan = plan.take().expect("some seed draws both");
        let count = |plan: &Plan| plan.programs().flatten().flatten().map(Vec::len).sum::<usize>();
        let operations = count(&plan);
        assert_eq!(plan.len(), operations + plan.troubles.len() + plan.kills.len());
        // Deaths come last, and before them the operations of the other programs.
        let last = plan.kills.len() - 1;
        plan = plan.without(plan.len() - 1..plan.len());
        assert_eq!((count(&plan), plan.kills.len()), (operations, last));
        let first: usize = plan.lives.iter().flatten().map(Vec::len).sum();
        plan = plan.without(first + plan.troubles.len()..plan.len());
        assert_eq!((count(&plan), plan.kills.len(), plan.beside.len()), (first, 0, 0));
        assert!(plan.without(0..plan.len()).is_empty());
    }

    #[test]
    fn a_seed_without_other_processes_means_what_it_meant() {
        let plan = (0..).map(Plan::new).find(|p| p.beside.is_empty() && p.kills.is_empty());
        let line = serde_json::to_string(&plan).expect("a plan can be written");
        assert!(!line.contains("beside") && !line.contains("kills"), "{line}");
        let (everything, processes) = (Plan::new(7), Plan::of(Scenario::Processes, 7));
        // What `everything` draws besides is put among them.
        let mut left = everything.troubles.iter();
        let is_kept = processes.troubles.iter().all(|trouble| left.any(|one| one == trouble));
        assert!(is_kept && !processes.troubles.is_empty(), "what is drawn first does not change");
    }
}
