//! One rule in its one-line language: which calls, what happens to them, and when.

use std::fmt;
use std::time::Duration;

use ha_token::{Function, Rv, Ulong, mechanism_by_name, mechanism_name};

use crate::calls::Calls;
use crate::shape;

/// `CALLS FAULT [ARGUMENT] [done] [mechanism=…] [after=N] [count=N] [probability=P]`.
///
/// [`fmt::Display`] writes what [`parse`](Rule::parse) reads.
#[derive(Clone, PartialEq, Debug)]
pub struct Rule {
    /// Which functions.
    pub calls: Calls,
    /// What happens.
    pub fault: Fault,
    /// Only calls with this mechanism, or in an operation that was begun with it.
    pub mechanism: Option<Ulong>,
    /// So many such calls are let through first.
    pub after: u64,
    /// At most so many are hit.
    pub count: Option<u64>,
    /// Of the rest, what part is hit.
    pub probability: Option<f64>,
}

/// What happens to a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Answers with an error.
    Error {
        /// The error.
        rv: Rv,
        /// Only after the call was made: its own answer is lost.
        done: bool,
    },
    /// Waits first.
    Delay(Duration),
    /// Waits until it is released.
    Hang,
    /// Kills the process.
    Die {
        /// Only after the call was made.
        done: bool,
    },
    /// The signature looks like one and does not verify.
    WrongSignature,
    /// One bit of the output is another one.
    Corrupt,
    /// A length that cannot be.
    Lengths(Length),
    /// Every object handle given out so far is invalid.
    LoseHandles,
    /// Every session is closed.
    LoseSessions,
    /// Every token is logged out.
    LoseLogin,
    /// From then on there is no token.
    TokenGone,
    /// From then on another token's objects are in a token.
    SwapStore {
        /// The label of the token.
        token: String,
        /// The label of the other.
        other: String,
    },
    /// From then on another token is in a token's place.
    SwapToken {
        /// The label of the token.
        token: String,
        /// The label of the other.
        other: String,
    },
    /// So many wrong PINs in a row, and no other is tried.
    LockPin(u32),
}

/// A length that cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Length {
    /// One more than there was room for.
    More,
    /// Half of all memory.
    Huge,
    /// `CK_UNAVAILABLE_INFORMATION`.
    Unavailable,
    /// 0.
    Zero,
}

const LENGTHS: [(&str, Length); 4] = [
    ("more", Length::More),
    ("huge", Length::Huge),
    ("unavailable", Length::Unavailable),
    ("zero", Length::Zero),
];

/// The faults by name, with the arguments they take: for help and for error texts.
pub const FAULTS: &str = "error CKR_…|NUMBER [done], delay 250ms, hang, die [done], wrong-signature, corrupt, \
     lengths more|huge|unavailable|zero, lose-handles, lose-sessions, lose-login, token-gone, \
     swap-store TOKEN OTHER, swap-token TOKEN OTHER, lock-pin TRIES";

impl Fault {
    /// Whether nothing else can happen to a call that it hits.
    pub fn settles(&self) -> bool {
        matches!(
            self,
            Fault::Error { .. }
                | Fault::Die { .. }
                | Fault::WrongSignature
                | Fault::Corrupt
                | Fault::Lengths(_)
        )
    }

    /// Whether, once it has hit, it holds for every call as long as its rule is there.
    pub fn stands(&self) -> bool {
        matches!(self, Fault::TokenGone | Fault::SwapStore { .. } | Fault::SwapToken { .. })
    }

    /// Whether it can happen to a call of this function.
    fn can_hit(&self, function: Function) -> bool {
        match self {
            Fault::WrongSignature => shape::signs(function),
            Fault::Corrupt => shape::has_output(function),
            Fault::Lengths(_) => shape::has_length(function),
            _ => true,
        }
    }

    /// Whether a call that only asks how long its output will be is left alone.
    pub fn spares_queries(&self) -> bool {
        matches!(self, Fault::WrongSignature | Fault::Corrupt)
    }
}

impl Rule {
    /// Reads a rule.
    ///
    /// # Errors
    /// What is wrong, in words, with what was expected.
    pub fn parse(text: &str) -> Result<Rule, String> {
        let mut words = words(text)?.into_iter().peekable();
        let calls = words.next().ok_or("an empty rule: CALLS FAULT is the least")?;
        let name = words.next().ok_or_else(|| format!("`{calls}` what? Expected one of: {FAULTS}"))?;
        let mut calls = Calls::parse(&calls)?;
        let mut argument = |what: &str| {
            words.next_if(|word| !word.contains('=')).ok_or_else(|| format!("`{name}` needs {what}"))
        };
        let fault = match name.as_str() {
            "error" => Fault::Error {
                rv: rv(&argument("an answer such as CKR_DEVICE_ERROR or 0x30")?)?,
                done: words.next_if(|w| w == "done").is_some(),
            },
            "delay" => Fault::Delay(duration(&argument("a time such as 250ms or 2s")?)?),
            "hang" => Fault::Hang,
            "die" => Fault::Die { done: words.next_if(|w| w == "done").is_some() },
            "wrong-signature" => Fault::WrongSignature,
            "corrupt" => Fault::Corrupt,
            "lengths" => {
                let word = argument("one of more, huge, unavailable, zero")?;
                let known = LENGTHS.iter().find(|(name, _)| *name == word);
                Fault::Lengths(
                    known.ok_or_else(|| format!("`{word}` is none of more, huge, unavailable, zero"))?.1,
                )
            }
            "lose-handles" => Fault::LoseHandles,
            "lose-sessions" => Fault::LoseSessions,
            "lose-login" => Fault::LoseLogin,
            "token-gone" => Fault::TokenGone,
            "swap-store" | "swap-token" => {
                let token = argument("the labels of two tokens")?;
                let other = argument("the labels of two tokens")?;
                if name == "swap-store" {
                    Fault::SwapStore { token, other }
                } else {
                    Fault::SwapToken { token, other }
                }
            }
            "lock-pin" => match argument("how many wrong PINs")?.parse() {
                Ok(tries @ 1..) => Fault::LockPin(tries),
                _ => return Err("`lock-pin` needs a number of wrong PINs, at least 1".into()),
            },
            other => return Err(format!("`{other}` is no fault; expected one of: {FAULTS}")),
        };
        calls.retain(|function| fault.can_hit(function));
        if calls.is_empty() {
            return Err(format!("`{name}` can happen to none of these functions"));
        }
        let mut rule = Rule { calls, fault, mechanism: None, after: 0, count: None, probability: None };
        for word in words {
            rule.set(&word)?;
        }
        if rule.count.is_some() && rule.fault.stands() {
            return Err(format!("`{name}` holds from its first hit until it is cleared: it takes no count"));
        }
        let plain = rule.mechanism.is_none() && (rule.after, rule.count, rule.probability) == (0, None, None);
        if matches!(rule.fault, Fault::LockPin(_)) && !plain {
            return Err("`lock-pin` has a count of its own and takes no other".into());
        }
        Ok(rule)
    }

    fn set(&mut self, word: &str) -> Result<(), String> {
        const EXPECTED: &str = "expected mechanism=…, after=N, count=N or probability=P";
        let (key, value) = word.split_once('=').ok_or_else(|| format!("`{word}`: {EXPECTED}"))?;
        let number = || value.parse().map_err(|_| format!("`{word}`: {value} is no number"));
        match key {
            "mechanism" => self.mechanism = Some(mechanism(value)?),
            "after" => self.after = number()?,
            "count" => match number()? {
                0 => return Err("count=0: a rule that never hits".into()),
                count => self.count = Some(count),
            },
            "probability" => match value.parse() {
                Ok(p) if p > 0.0 && p <= 1.0 => self.probability = Some(p),
                _ => return Err(format!("`{word}`: a probability is above 0 and at most 1")),
            },
            _ => return Err(format!("`{word}`: {EXPECTED}")),
        }
        Ok(())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.calls, self.fault)?;
        if let Some(mechanism) = self.mechanism {
            match mechanism_name(mechanism) {
                Some(name) => write!(f, " mechanism={name}")?,
                None => write!(f, " mechanism=0x{mechanism:x}")?,
            }
        }
        if self.after > 0 {
            write!(f, " after={}", self.after)?;
        }
        if let Some(count) = self.count {
            write!(f, " count={count}")?;
        }
        match self.probability {
            Some(p) => write!(f, " probability={p}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = |done: &bool| if *done { " done" } else { "" };
        match self {
            Fault::Error { rv, done: d } => match rv.name() {
                Some(name) => write!(f, "error {name}{}", done(d)),
                None => write!(f, "error 0x{:x}{}", rv.0, done(d)),
            },
            Fault::Delay(time) => write!(f, "delay {}ms", time.as_millis()),
            Fault::Hang => f.write_str("hang"),
            Fault::Die { done: d } => write!(f, "die{}", done(d)),
            Fault::WrongSignature => f.write_str("wrong-signature"),
            Fault::Corrupt => f.write_str("corrupt"),
            Fault::Lengths(length) => {
                let name = LENGTHS.iter().find(|(_, l)| l == length).map_or("", |(name, _)| name);
                write!(f, "lengths {name}")
            }
            Fault::LoseHandles => f.write_str("lose-handles"),
            Fault::LoseSessions => f.write_str("lose-sessions"),
            Fault::LoseLogin => f.write_str("lose-login"),
            Fault::TokenGone => f.write_str("token-gone"),
            Fault::SwapStore { token, other } => write!(f, "swap-store {} {}", quoted(token), quoted(other)),
            Fault::SwapToken { token, other } => write!(f, "swap-token {} {}", quoted(token), quoted(other)),
            Fault::LockPin(tries) => write!(f, "lock-pin {tries}"),
        }
    }
}

fn quoted(word: &str) -> String {
    if word.is_empty() || word.contains([' ', '\t', ',']) { format!("\"{word}\"") } else { word.to_owned() }
}

/// The words of a line; what is between `"` is one, blanks and all.
fn words(text: &str) -> Result<Vec<String>, String> {
    if text.contains(|c: char| c.is_control() && c != '\t') || text.contains(';') {
        return Err("a rule is one line, without `;`".into());
    }
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').ok_or("a `\"` without its fellow")?,
            None => {
                let end = rest.find([' ', '\t']).unwrap_or(rest.len());
                rest.split_at(end)
            }
        };
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    Ok(words)
}

/// A number, decimal or hexadecimal.
fn number(text: &str) -> Option<Ulong> {
    match text.strip_prefix("0x") {
        Some(hex) => Ulong::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn rv(text: &str) -> Result<Rv, String> {
    let named = Rv::ALL.iter().find(|rv| rv.name() == Some(text)).copied();
    match named.or_else(|| number(text).map(Rv)) {
        Some(Rv(0)) => Err("CKR_OK is no error".into()),
        Some(rv) => Ok(rv),
        None => Err(format!(
            "`{text}` is no answer: neither a name of the standard such as CKR_DEVICE_ERROR nor a number"
        )),
    }
}

fn mechanism(text: &str) -> Result<Ulong, String> {
    mechanism_by_name(text).or_else(|| number(text)).ok_or_else(|| {
        format!("`{text}` is no mechanism: neither a name of the standard such as CKM_ECDSA nor a number")
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time such as 250ms, 2s or 1m, of at most a day");
    let unit = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let ms = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        _ => None,
    };
    ms.filter(|ms| (1..=86_400_000).contains(ms)).map(Duration::from_millis).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_kind_of_rule_is_read_and_written_alike() {
        for text in [
            "C_Sign error CKR_DEVICE_ERROR",
            "C_Sign error CKR_DEVICE_ERROR done mechanism=CKM_ECDSA after=3 count=2 probability=0.25",
            "* error 0x80001234",
            "C_Sign,C_SignFinal wrong-signature",
            "C_Sign delay 250ms",
            "C_Sign* hang count=1",
            "@write die done",
            "C_GetAttributeValue corrupt",
            "C_GetAttributeValue lengths unavailable",
            "* lose-handles count=1",
            "* lose-sessions count=1",
            "* lose-login count=1",
            "* token-gone after=10",
            "* swap-store member-a \"another one\"",
            "* swap-token member-a other",
            "* lock-pin 3",
            "C_SignInit error CKR_MECHANISM_INVALID mechanism=0x80000001",
        ] {
            let rule = Rule::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            let shown = rule.to_string();
            assert_eq!(Rule::parse(&shown).as_ref(), Ok(&rule), "{text} became {shown}");
            // What can happen to some functions only is shown with those.
            if !text.contains("wrong") && !text.contains("lengths") {
                assert_eq!(shown, text);
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, reason) in [
            ("", "empty rule"),
            ("C_Sign", "what?"),
            ("C_Sgin hang", "C_Sgin"),
            ("@signs hang", "@signs"),
            ("C_Sign explode", "`explode` is no fault"),
            ("C_Sign error", "needs an answer"),
            ("C_Sign error count=1", "needs an answer"),
            ("C_Sign error CKR_OK", "no answer"),
            ("C_Sign error 0", "no error"),
            ("C_Sign error CKR_NONSENSE", "no answer"),
            ("C_Sign delay 5", "no time"),
            ("C_Sign delay 0ms", "no time"),
            ("C_Sign delay 25h", "no time"),
            ("C_Login wrong-signature", "none of these functions"),
            ("C_Login corrupt", "none of these functions"),
            ("C_Sign lengths long", "none of more"),
            ("C_Sign hang count=0", "never hits"),
            ("C_Sign hang probability=1.5", "at most 1"),
            ("C_Sign hang probability=NaN", "at most 1"),
            ("C_Sign hang mechanism=CKM_NONE", "no mechanism"),
            ("C_Sign hang sometimes", "expected mechanism"),
            ("C_Sign hang often=3", "expected mechanism"),
            ("C_Sign hang; C_Sign die", "one line"),
            ("* token-gone count=1", "takes no count"),
            ("* lock-pin 0", "at least 1"),
            ("* lock-pin 3 count=2", "count of its own"),
            ("* swap-store a", "two tokens"),
            ("* swap-store \"a b", "fellow"),
        ] {
            let error = Rule::parse(text).expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn the_documentation_has_every_fault_command_and_class() {
        let text = include_str!("../../../docs/faulty-token.md");
        let faults = FAULTS.split(", ").map(|fault| fault.split(' ').next().unwrap());
        let commands = crate::commands::HELP.split(", ").map(|command| command.split(' ').next().unwrap());
        let classes = crate::calls::classes();
        for word in faults.chain(commands).chain(classes.split(", ")) {
            let shown = [format!("`{word}`"), format!("`{word} ")];
            assert!(shown.iter().any(|shown| text.contains(shown)), "{word}");
        }
    }

    fn fault() -> impl Strategy<Value = String> {
        prop_oneof![
            (0..Rv::ALL.len(), any::<bool>()).prop_map(|(i, done)| format!(
                "error {}{}",
                Rv::ALL[i],
                if done { " done" } else { "" }
            )),
            (1..=Ulong::MAX).prop_map(|n| format!("error {n}")),
            (1u64..=86_400_000).prop_map(|ms| format!("delay {ms}ms")),
            Just("hang".to_owned()),
            Just("corrupt".to_owned()),
            Just("lengths huge".to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}") {
            if let Ok(rule) = Rule::parse(&text) {
                prop_assert_eq!(Rule::parse(&rule.to_string()), Ok(rule));
            }
        }

        #[test]
        fn what_is_written_is_read(
            fault in fault(),
            calls in proptest::sample::select(vec!["*", "C_Sign", "C_Sign*,C_Decrypt", "@crypto", "@find,C_Login,C_Digest"]),
            after in 0u64..5, count in proptest::option::of(1u64..), probability in proptest::option::of(1e-9f64..=1.0),
            mechanism in proptest::option::of(any::<Ulong>()),
        ) {
            let mut text = format!("{calls} {fault} after={after}");
            count.iter().for_each(|c| text.push_str(&format!(" count={c}")));
            probability.iter().for_each(|p| text.push_str(&format!(" probability={p}")));
            mechanism.iter().for_each(|m| text.push_str(&format!(" mechanism={m}")));
            let rule = Rule::parse(&text).unwrap();
            prop_assert_eq!((rule.after, rule.count, rule.probability, rule.mechanism), (after, count, probability, mechanism));
            prop_assert_eq!(Rule::parse(&rule.to_string()), Ok(rule));
        }
    }
}
