//! Which fault a call gets: the rules, what they have seen, and the random number, as one value without effects.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use ha_token::{Function, Ulong};

use crate::rule::{Fault, Rule};

/// Everything that decides, of one token.
#[derive(Clone, PartialEq, Debug)]
pub struct State {
    /// Which script it began with.
    script: u64,
    random: u64,
    next: u64,
    released: u64,
    rules: Vec<Entry>,
    /// Wrong PINs in a row, by slot and user type.
    wrong_pins: BTreeMap<(Ulong, Ulong), u32>,
}

/// A rule with its past.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// What it is called by.
    pub number: u64,
    /// The rule.
    pub rule: Rule,
    /// The rule as a line.
    pub text: String,
    /// Calls that it was for.
    pub seen: u64,
    /// Calls that it hit.
    pub hit: u64,
}

/// What a rule may look at.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The function.
    pub function: Function,
    /// The mechanism that it names, or those of the operations that it goes on with.
    pub mechanisms: &'a [Ulong],
    /// Whether it asks only how long its output will be.
    pub query: bool,
}

/// What happens to a call.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Verdict {
    /// Before the call, in this order.
    pub before: Vec<Fault>,
    /// What settles it.
    pub settled: Option<Fault>,
    /// There is no token.
    pub gone: bool,
    /// Another token is behind this one.
    pub swapped: Option<Swapped>,
    /// So many wrong PINs lock.
    pub tries: Option<u32>,
    /// How often hung calls were released before.
    pub released: u64,
}

/// A token that another one stands in for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Swapped {
    /// The label of the token.
    pub token: String,
    /// The label of the one that answers.
    pub other: String,
    /// Whether label and serial number are still the token's own.
    pub identity_kept: bool,
}

/// A step of SplitMix64.
fn step(random: &mut u64) -> u64 {
    *random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *random;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

const FIRST_LINE: &str = "faulty-token 1";

impl State {
    /// With the rules of a script, and the generator's seed.
    pub fn new(rules: &[Rule], seed: u64) -> State {
        let mut state = State {
            script: fingerprint(rules, seed),
            random: seed,
            next: 1,
            released: 0,
            rules: Vec::new(),
            wrong_pins: BTreeMap::new(),
        };
        rules.iter().for_each(|rule| _ = state.add(rule.clone()));
        state
    }

    /// With another random number in the place of the seed's.
    #[must_use]
    pub fn drawn(self, random: u64) -> State {
        State { random, ..self }
    }

    /// Whether it began with the same script as `other`.
    pub fn began_as(&self, other: &State) -> bool {
        self.script == other.script
    }

    /// Decides what happens to a call, and takes note of it.
    ///
    /// The rules are gone through in their order. One that settles the call is the last: later ones do not see it.
    pub fn decide(&mut self, call: &Call<'_>) -> Verdict {
        let mut verdict = Verdict { released: self.released, ..Verdict::default() };
        for entry in &mut self.rules {
            let rule = &entry.rule;
            if let Fault::LockPin(tries) = rule.fault {
                verdict.tries = verdict.tries.or(Some(tries));
                continue;
            }
            if rule.fault.stands() {
                if entry.hit == 0 && entry.is_for(call) && entry.hits(&mut self.random) {
                    entry.hit = 1;
                }
            } else if entry.is_for(call) && entry.hits(&mut self.random) {
                entry.hit += 1;
                if entry.rule.fault.settles() {
                    verdict.settled = Some(entry.rule.fault.clone());
                    break;
                }
                verdict.before.push(entry.rule.fault.clone());
            }
        }
        // What stands does so for every call, also for one that an earlier rule has settled.
        for entry in self.rules.iter().filter(|e| e.hit > 0) {
            verdict.stand(&entry.rule.fault);
        }
        verdict
    }

    /// A number for what is to be corrupted.
    pub fn random(&mut self) -> u64 {
        step(&mut self.random)
    }

    /// Adds a rule, and answers its number.
    pub fn add(&mut self, rule: Rule) -> u64 {
        let number = self.next;
        self.next += 1;
        let text = rule.to_string();
        self.rules.push(Entry { number, rule, text, seen: 0, hit: 0 });
        number
    }

    /// The rules.
    pub fn rules(&self) -> &[Entry] {
        &self.rules
    }

    /// Takes one rule away, or all; answers how many went.
    pub fn clear(&mut self, number: Option<u64>) -> usize {
        let before = self.rules.len();
        self.rules.retain(|entry| number.is_some_and(|n| n != entry.number));
        if !self.rules.iter().any(|entry| matches!(entry.rule.fault, Fault::LockPin(_))) {
            self.wrong_pins.clear();
        }
        before - self.rules.len()
    }

    /// Begins again with the script's rules. Calls that hang go on.
    pub fn reset(&mut self, script: &State) {
        *self = State { released: self.released + 1, ..script.clone() };
    }

    /// Lets the calls that hang go on.
    pub fn release(&mut self) {
        self.released += 1;
    }

    /// How often hung calls were released.
    pub fn released(&self) -> u64 {
        self.released
    }

    /// How many wrong PINs in a row this user of the slot's token has given.
    pub fn wrong_pins(&self, slot: Ulong, user: Ulong) -> u32 {
        self.wrong_pins.get(&(slot, user)).copied().unwrap_or(0)
    }

    /// Takes note of a PIN that was right or wrong.
    pub fn judged(&mut self, slot: Ulong, user: Ulong, right: bool) {
        if right {
            self.wrong_pins.remove(&(slot, user));
        } else {
            let wrong = self.wrong_pins.entry((slot, user)).or_default();
            *wrong = wrong.saturating_add(1);
        }
    }

    /// As the text that [`read`](Self::read) reads.
    pub fn write(&self) -> String {
        let mut text = format!(
            "{FIRST_LINE}\nscript {}\nrandom {}\nnext {}\nreleased {}\n",
            self.script, self.random, self.next, self.released
        );
        for Entry { number, text: rule, seen, hit, .. } in &self.rules {
            _ = writeln!(text, "rule {number} {seen} {hit} {rule}");
        }
        for ((slot, user), wrong) in &self.wrong_pins {
            _ = writeln!(text, "wrong {slot} {user} {wrong}");
        }
        text.push_str("end\n");
        text
    }

    /// From the text that [`write`](Self::write) wrote; what follows its end is not looked at. `None` for any other text.
    pub fn read(text: &str) -> Option<State> {
        let mut lines = text.lines();
        if lines.next() != Some(FIRST_LINE) {
            return None;
        }
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ')?.parse::<u64>().ok();
        let mut state = State {
            script: field("script")?,
            random: field("random")?,
            next: field("next")?,
            released: field("released")?,
            rules: Vec::new(),
            wrong_pins: BTreeMap::new(),
        };
        for line in lines {
            if line == "end" {
                return Some(state);
            }
            let (kind, rest) = line.split_once(' ')?;
            let mut parts = rest.splitn(if kind == "rule" { 4 } else { 3 }, ' ');
            let mut number = || parts.next()?.parse::<u64>().ok();
            match kind {
                "rule" => {
                    let (number, seen, hit) = (number()?, number()?, number()?);
                    let text = parts.next()?.to_owned();
                    let rule = Rule::parse(&text).ok()?;
                    state.rules.push(Entry { number, rule, text, seen, hit });
                }
                "wrong" => {
                    let (slot, user, wrong) = (number()?, number()?, number()?);
                    state.wrong_pins.insert((slot as Ulong, user as Ulong), wrong.try_into().ok()?);
                }
                _ => return None,
            }
        }
        None
    }
}

impl Entry {
    /// Whether the rule is for this call.
    fn is_for(&self, call: &Call<'_>) -> bool {
        let Rule { calls, fault, mechanism, .. } = &self.rule;
        calls.has(call.function)
            && mechanism.is_none_or(|wanted| call.mechanisms.contains(&wanted))
            && !(call.query && fault.spares_queries())
    }

    /// Whether it hits a call that it is for.
    fn hits(&mut self, random: &mut u64) -> bool {
        self.seen = self.seen.saturating_add(1);
        let due = self.seen > self.rule.after && self.rule.count.is_none_or(|count| self.hit < count);
        // 53 random bits make a number from 0 to below 1 in which each is as likely as the next.
        due && self.rule.probability.is_none_or(|p| ((step(random) >> 11) as f64) / ((1u64 << 53) as f64) < p)
    }
}

impl Verdict {
    fn stand(&mut self, fault: &Fault) {
        let swap = |token: &String, other: &String, identity_kept| Swapped {
            token: token.clone(),
            other: other.clone(),
            identity_kept,
        };
        match fault {
            Fault::TokenGone => self.gone = true,
            Fault::SwapStore { token, other } if self.swapped.is_none() => {
                self.swapped = Some(swap(token, other, true));
            }
            Fault::SwapToken { token, other } if self.swapped.is_none() => {
                self.swapped = Some(swap(token, other, false));
            }
            _ => {}
        }
    }

    /// How long the call waits first.
    pub fn delay(&self) -> Duration {
        let delays = self.before.iter().map(|fault| match fault {
            Fault::Delay(time) => *time,
            _ => Duration::ZERO,
        });
        delays.fold(Duration::ZERO, Duration::saturating_add)
    }
}

/// Tells scripts apart (FNV-1a).
fn fingerprint(rules: &[Rule], seed: u64) -> u64 {
    let text: String = rules.iter().map(|rule| format!("{rule}\n")).collect();
    let bytes = text.bytes().chain(seed.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use ha_token::ck::{CKM_ECDSA, CKM_RSA_PKCS};
    use ha_token::{Rv, ck};
    use proptest::prelude::*;

    use super::*;

    fn state(rules: &[&str]) -> State {
        let rules: Vec<Rule> = rules.iter().map(|r| Rule::parse(r).unwrap()).collect();
        State::new(&rules, 7)
    }

    fn call(function: Function) -> Call<'static> {
        Call { function, mechanisms: &[], query: false }
    }

    fn device_error() -> Option<Fault> {
        Some(Fault::Error { rv: Rv::DEVICE_ERROR, done: false })
    }

    #[test]
    fn after_and_count_bound_the_hits() {
        let mut state = state(&["C_Sign error CKR_DEVICE_ERROR after=2 count=3"]);
        let hits: Vec<bool> = (0..8).map(|_| state.decide(&call(Function::Sign)).settled.is_some()).collect();
        assert_eq!(hits, [false, false, true, true, true, false, false, false]);
        assert_eq!((state.rules()[0].seen, state.rules()[0].hit), (8, 3));
        assert_eq!(state.decide(&call(Function::Verify)), Verdict::default());
        assert_eq!(state.rules()[0].seen, 8, "another function is not seen");
    }

    #[test]
    fn a_mechanism_is_that_of_the_operation() {
        let mut state = state(&["@sign error CKR_DEVICE_ERROR mechanism=CKM_ECDSA"]);
        let mut with = |mechanisms: &[Ulong]| {
            state.decide(&Call { function: Function::Sign, mechanisms, query: false }).settled
        };
        assert_eq!(with(&[CKM_ECDSA]), device_error());
        assert_eq!(with(&[CKM_RSA_PKCS, CKM_ECDSA]), device_error());
        assert_eq!((with(&[CKM_RSA_PKCS]), with(&[])), (None, None));
    }

    #[test]
    fn delays_add_up_and_the_first_that_settles_ends_it() {
        let mut state = state(&[
            "* delay 10ms",
            "C_Sign delay 20ms",
            "C_Sign lose-handles count=1",
            "C_Sign error CKR_DEVICE_ERROR",
            "C_Sign error CKR_HOST_MEMORY",
            "C_Sign delay 1s",
        ]);
        let verdict = state.decide(&call(Function::Sign));
        assert_eq!(verdict.delay(), Duration::from_millis(30));
        assert_eq!(verdict.before.last(), Some(&Fault::LoseHandles));
        assert_eq!(verdict.settled, device_error());
        assert_eq!(state.rules().iter().map(|e| e.seen).collect::<Vec<_>>(), [1, 1, 1, 1, 0, 0]);
    }

    #[test]
    fn a_query_is_not_spoilt_and_not_counted() {
        let mut state = state(&["C_Sign wrong-signature count=1"]);
        let query = Call { query: true, ..call(Function::Sign) };
        assert_eq!(state.decide(&query).settled, None);
        assert_eq!(state.decide(&call(Function::Sign)).settled, Some(Fault::WrongSignature));
        assert_eq!(state.decide(&call(Function::Sign)).settled, None);
    }

    #[test]
    fn what_stands_holds_for_every_call_until_it_is_cleared() {
        let mut state = state(&[
            "C_Digest error CKR_DEVICE_ERROR",
            "C_Sign token-gone after=1",
            "C_Sign swap-store a b after=2",
        ]);
        let mut gone = |function| {
            let verdict = state.decide(&call(function));
            (verdict.gone, verdict.swapped.is_some())
        };
        assert_eq!(gone(Function::Sign), (false, false));
        assert_eq!(gone(Function::Login), (false, false));
        assert_eq!(gone(Function::Sign), (true, false));
        assert_eq!(gone(Function::Digest), (true, false), "also for what another rule settles");
        assert_eq!(gone(Function::Sign), (true, true));
        state.clear(Some(2));
        let verdict = state.decide(&call(Function::Login));
        let swapped = Swapped { token: "a".into(), other: "b".into(), identity_kept: true };
        assert_eq!((verdict.gone, verdict.swapped), (false, Some(swapped)));
        assert_eq!((state.clear(Some(2)), state.clear(None)), (0, 2));
        assert_eq!(state.decide(&call(Function::Digest)), Verdict::default());
    }

    #[test]
    fn a_pin_counter_is_that_of_one_user_and_a_right_pin_resets_it() {
        let mut state = state(&["* lock-pin 3"]);
        assert_eq!(state.decide(&call(Function::Login)).tries, Some(3));
        state.judged(5, ck::CKU_USER, false);
        state.judged(5, ck::CKU_USER, false);
        state.judged(5, ck::CKU_SO, false);
        assert_eq!((state.wrong_pins(5, ck::CKU_USER), state.wrong_pins(5, ck::CKU_SO)), (2, 1));
        assert_eq!(state.wrong_pins(6, ck::CKU_USER), 0);
        state.judged(5, ck::CKU_USER, true);
        assert_eq!((state.wrong_pins(5, ck::CKU_USER), state.wrong_pins(5, ck::CKU_SO)), (0, 1));
    }

    #[test]
    fn one_seed_is_one_history() {
        let mut one = state(&["C_Sign error CKR_DEVICE_ERROR probability=0.3"]);
        let mut same = one.clone();
        let play = |state: &mut State| -> Vec<bool> {
            (0..1000).map(|_| state.decide(&call(Function::Sign)).settled.is_some()).collect()
        };
        let history = play(&mut one);
        assert_eq!(history, play(&mut same));
        let hits = history.iter().filter(|hit| **hit).count();
        assert!((200..400).contains(&hits), "{hits} of 1000 with a probability of 0.3");
    }

    #[test]
    fn a_changed_script_is_another_one() {
        let one = state(&["C_Sign hang"]);
        assert!(one.began_as(&state(&["C_Sign hang"])));
        assert!(!one.began_as(&state(&["C_Sign hang count=1"])));
        assert!(!one.began_as(&State::new(&[], 7)));
        let mut changed = one.clone();
        changed.clear(None);
        assert!(one.began_as(&changed));
    }

    proptest! {
        /// Whatever is called: the counts are kept to, and the state survives being written down at any point.
        #[test]
        fn counts_are_kept_and_what_is_written_is_read(
            after in 0u64..6, count in 1u64..6, probability in proptest::option::of(0.05f64..1.0), seed in any::<u64>(),
            calls in proptest::collection::vec((0..Function::ALL.len(), any::<bool>(), any::<bool>()), 0..60),
        ) {
            let p = probability.map_or(String::new(), |p| format!(" probability={p}"));
            let rule = Rule::parse(&format!("@crypto error CKR_DEVICE_ERROR after={after} count={count}{p}")).unwrap();
            let mut state = State::new(&[rule], seed);
            let (mut seen, mut hit) = (0, 0);
            for (function, query, stored) in calls {
                let function = Function::ALL[function];
                let settled = state.decide(&Call { function, mechanisms: &[], query }).settled.is_some();
                seen += u64::from(state.rules()[0].rule.calls.has(function));
                hit += u64::from(settled);
                prop_assert!(!settled || seen > after);
                prop_assert!(hit <= count);
                prop_assert_eq!((state.rules()[0].seen, state.rules()[0].hit), (seen, hit));
                if stored {
                    let read = State::read(&(state.write() + "what an older, longer text left\n"));
                    prop_assert_eq!(read.as_ref(), Some(&state));
                }
            }
            if probability.is_none() {
                prop_assert_eq!(hit, seen.saturating_sub(after).min(count));
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,80}") {
            prop_assert_eq!(State::read(&text), None);
            prop_assert_eq!(State::read(&format!("{FIRST_LINE}\n{text}")), None);
        }
    }
}
