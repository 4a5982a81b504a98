//! Which functions a rule is for.

use std::fmt;

use ha_token::Function;

use crate::shape::{self, Operation};

/// A set of functions. [`fmt::Display`] writes what [`parse`](Calls::parse) reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Calls(u128);

const _: () = assert!(Function::ALL.len() <= 128);

/// A class of functions: its name, and whether one is in it.
type Class = (&'static str, fn(Function) -> bool);

/// The classes.
const CLASSES: [Class; 5] =
    [("@sign", signs), ("@login", logs_in), ("@find", finds), ("@write", writes), ("@crypto", is_crypto)];

/// The classes' names, for help and for error texts.
pub(crate) fn classes() -> String {
    CLASSES.map(|(name, _)| name).join(", ")
}

/// What begins a signature or goes on with one.
fn signs(function: Function) -> bool {
    let is_signing =
        |o: &Operation| matches!(o, Operation::Sign | Operation::SignRecover | Operation::MessageSign);
    shape::operations(function).iter().any(is_signing)
}

fn logs_in(function: Function) -> bool {
    matches!(function, Function::Login | Function::LoginUser | Function::Logout)
}

fn finds(function: Function) -> bool {
    matches!(
        function,
        Function::GetObjectSize
            | Function::GetAttributeValue
            | Function::FindObjectsInit
            | Function::FindObjects
            | Function::FindObjectsFinal
    )
}

/// What makes a key.
fn makes_keys(function: Function) -> bool {
    matches!(
        function,
        Function::GenerateKey
            | Function::GenerateKeyPair
            | Function::UnwrapKey
            | Function::DeriveKey
            | Function::EncapsulateKey
            | Function::DecapsulateKey
            | Function::UnwrapKeyAuthenticated
    )
}

/// What may write to a token.
fn writes(function: Function) -> bool {
    makes_keys(function)
        || matches!(
            function,
            Function::InitToken
                | Function::InitPin
                | Function::SetPin
                | Function::CreateObject
                | Function::CopyObject
                | Function::DestroyObject
                | Function::SetAttributeValue
        )
}

/// What computes: every operation of a session, keys, random numbers.
fn is_crypto(function: Function) -> bool {
    let other =
        [Function::WrapKey, Function::WrapKeyAuthenticated, Function::SeedRandom, Function::GenerateRandom];
    makes_keys(function) || !shape::operations(function).is_empty() || other.contains(&function)
}

/// What only hands out functions: no rule is for these.
const NEVER: [Function; 3] = [Function::GetFunctionList, Function::GetInterfaceList, Function::GetInterface];

impl Calls {
    /// Reads a list with commas of `*`, `@class`, `C_Name` and `C_Begin*`.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &str) -> Result<Calls, String> {
        let mut calls = Calls(0);
        for part in text.split(',') {
            let mut found = false;
            let mut add = |function: Function| {
                found = true;
                calls.0 |= bit(function);
            };
            let ruled = || Function::ALL.iter().copied().filter(|f| !NEVER.contains(f));
            if let Some((_, class)) = CLASSES.iter().find(|(name, _)| *name == part) {
                Function::ALL.iter().copied().filter(|f| class(*f)).for_each(&mut add);
            } else if let Some(begin) = part.strip_suffix('*') {
                ruled().filter(|f| f.name().starts_with(begin)).for_each(&mut add);
            } else {
                ruled().filter(|f| f.name() == part).for_each(&mut add);
            }
            if !found {
                return Err(format!(
                    "`{part}` names no function: expected *, C_Sign, C_Sign* or one of {}",
                    classes()
                ));
            }
        }
        Ok(calls)
    }

    /// Whether the function is one of them.
    pub fn has(self, function: Function) -> bool {
        self.0 & bit(function) != 0
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Keeps some of them.
    pub(crate) fn retain(&mut self, keep: impl Fn(Function) -> bool) {
        for function in Function::ALL {
            if !keep(*function) {
                self.0 &= !bit(*function);
            }
        }
    }
}

const fn bit(function: Function) -> u128 {
    1 << function as u32
}

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // In the fewest words: one that says it all, or else the names.
        let short = ["*"].into_iter().chain(CLASSES.map(|(name, _)| name));
        for word in short {
            if Calls::parse(word) == Ok(*self) {
                return f.write_str(word);
            }
        }
        for function in Function::ALL {
            let begin = format!("{}*", function.name());
            if Calls::parse(&begin) == Ok(*self) && Calls::parse(function.name()) != Ok(*self) {
                return f.write_str(&begin);
            }
        }
        let names: Vec<&str> =
            Function::ALL.iter().filter(|function| self.has(**function)).map(|f| f.name()).collect();
        f.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_classes_and_names() {
        let star = Calls::parse("*").unwrap();
        for function in Function::ALL {
            assert_eq!(star.has(*function), !NEVER.contains(function), "{function}");
            if !NEVER.contains(function) {
                let one = Calls::parse(function.name()).unwrap();
                assert!(Function::ALL.iter().all(|f| one.has(*f) == (f == function)));
            }
        }
        let some = Calls::parse("C_Find*,@login,C_Digest").unwrap();
        for function in Function::ALL {
            let expected = function.name().starts_with("C_Find")
                || matches!(function, Function::Login | Function::LoginUser | Function::Logout)
                || *function == Function::Digest;
            assert_eq!(some.has(*function), expected, "{function}");
        }
        for text in ["", "C_", "sign", "C_Sign,", "@", "C_GetFunctionList", "c_sign"] {
            assert!(Calls::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_class_has_every_function_of_its_kind() {
        let has = |class: &str, function| Calls::parse(class).unwrap().has(function);
        for function in [
            Function::SignMessage,
            Function::EncryptMessageNext,
            Function::VerifySignature,
            Function::EncapsulateKey,
            Function::DecapsulateKey,
            Function::WrapKeyAuthenticated,
            Function::UnwrapKeyAuthenticated,
            Function::Sign,
            Function::GenerateRandom,
        ] {
            assert!(has("@crypto", function), "{function}");
        }
        assert!(has("@sign", Function::SignEncryptUpdate) && !has("@sign", Function::Verify));
        assert!(!has("@crypto", Function::Login) && !has("@write", Function::Sign));
    }

    #[test]
    fn it_is_written_as_it_is_read() {
        for text in ["*", "@sign", "C_Sign*", "C_Sign,C_SignFinal", "C_Login", "C_FindObjects*"] {
            assert_eq!(Calls::parse(text).unwrap().to_string(), text);
        }
    }
}
