//! What is said over the control socket: one line each way.

use ha_token::Function;

use crate::rule::{FAULTS, Rule};
use crate::state::State;

/// The commands.
pub const HELP: &str = "add RULE, list, clear [NUMBER], reset, release, count, help";

/// So many rules are kept at most.
const MOST_RULES: usize = 256;

/// How often each function was called here.
pub type Counts = [u64; Function::ALL.len()];

/// Carries out a command. The answer is one line and begins with `ok` or `error`; parts of a list are set apart by `; `.
pub fn answer(line: &str, state: &mut State, script: &State, counts: &Counts) -> String {
    match carry_out(line, state, script, counts) {
        Ok(text) if text.is_empty() => "ok".into(),
        Ok(text) => format!("ok {text}"),
        Err(text) => format!("error {text}"),
    }
}

fn carry_out(line: &str, state: &mut State, script: &State, counts: &Counts) -> Result<String, String> {
    let line = line.trim();
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let rest = rest.trim();
    if !rest.is_empty() && !matches!(verb, "add" | "clear") {
        return Err(format!("`{verb}` takes no argument"));
    }
    match verb {
        // A list of them is one line, which the socket takes in one piece.
        "add" if state.rules().len() >= MOST_RULES => {
            Err(format!("there are {MOST_RULES} rules already: clear some"))
        }
        "add" => Ok(state.add(Rule::parse(rest)?).to_string()),
        "list" => {
            let rules = state.rules().iter();
            let rules = rules.map(|e| format!("{}: {} (seen {}, hit {})", e.number, e.text, e.seen, e.hit));
            Ok(rules.collect::<Vec<_>>().join("; "))
        }
        "clear" if rest.is_empty() => Ok(state.clear(None).to_string()),
        "clear" => {
            let number = rest.parse().map_err(|_| format!("`{rest}` is no rule's number"))?;
            match state.clear(Some(number)) {
                0 => Err(format!("there is no rule {number}")),
                _ => Ok(String::new()),
            }
        }
        "reset" => {
            state.reset(script);
            Ok(String::new())
        }
        "release" => {
            state.release();
            Ok(String::new())
        }
        "count" => {
            let counts = Function::ALL.iter().zip(counts).filter(|(_, n)| **n > 0);
            Ok(counts.map(|(function, n)| format!("{function} {n}")).collect::<Vec<_>>().join("; "))
        }
        "help" => Ok(format!(
            "{HELP}; a RULE is CALLS FAULT [mechanism=…] [after=N] [count=N] [probability=P]; the faults: {FAULTS}"
        )),
        _ => Err(format!("`{verb}` is no command; expected {HELP}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_is_answered_with_one_line() {
        let script = State::new(&[Rule::parse("C_Sign delay 5ms").unwrap()], 1);
        let mut state = script.clone();
        let mut counts = [0; Function::ALL.len()];
        counts[Function::Sign as usize] = 3;
        let mut say = |line: &str| answer(line, &mut state, &script, &counts);
        assert_eq!(say("add  C_Login error CKR_PIN_INCORRECT count=2 "), "ok 2");
        assert_eq!(
            say("list"),
            "ok 1: C_Sign delay 5ms (seen 0, hit 0); 2: C_Login error CKR_PIN_INCORRECT count=2 (seen 0, hit 0)"
        );
        assert_eq!((say("clear 1"), say("clear 1")), ("ok".into(), "error there is no rule 1".into()));
        assert_eq!(say("clear"), "ok 1");
        assert_eq!(say("list"), "ok");
        assert_eq!(say("count"), "ok C_Sign 3");
        assert_eq!((say("release"), say("reset")), ("ok".into(), "ok".into()));
        assert_eq!(say("list"), "ok 1: C_Sign delay 5ms (seen 0, hit 0)");
        for (line, reason) in [
            ("", "is no command"),
            ("explode", "is no command"),
            ("add", "empty rule"),
            ("add C_Sign", "what?"),
            ("list all", "takes no argument"),
            ("clear x", "no rule's number"),
        ] {
            let answer = say(line);
            assert!(answer.starts_with("error ") && answer.contains(reason), "{line}: {answer}");
        }
        for _ in 1..MOST_RULES {
            assert!(say("add C_Sign hang").starts_with("ok"));
        }
        assert!(say("add C_Sign hang").starts_with("error there are 256"));
        assert!(!say("help").contains('\n') && say("help").contains("wrong-signature"));
        assert_eq!(state.released(), 2, "a reset releases too");
    }
}
