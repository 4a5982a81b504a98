//! A gate in front of a token: calls are held up at it for as long as it is shut, and it knows which there were.

use std::sync::{Arc, Condvar, Mutex};

use ha_token::{Function, Result, Rv};

use crate::Hook;

/// Holds calls up, or answers in the token's place.
#[derive(Clone, Default)]
pub struct Gate(Arc<Inner>);

#[derive(Default)]
struct Inner {
    shut: Mutex<Shut>,
    opened: Condvar,
    fails: Mutex<Vec<(Function, Rv)>>,
    calls: Mutex<Vec<Call>>,
}

/// To which functions it is shut.
#[derive(Default)]
enum Shut {
    #[default]
    No,
    All,
    To(Vec<Function>),
}

struct Call {
    function: Function,
    /// The name of the thread that made it.
    thread: String,
    has_returned: bool,
}

impl Gate {
    /// Shuts it to every call.
    pub fn shut(&self) {
        *self.0.shut.lock().unwrap() = Shut::All;
    }

    /// Shuts it to calls of these functions only.
    pub fn shut_to(&self, functions: &[Function]) {
        *self.0.shut.lock().unwrap() = Shut::To(functions.to_vec());
    }

    /// Lets every call through that waits.
    pub fn open(&self) {
        *self.0.shut.lock().unwrap() = Shut::No;
        self.0.opened.notify_all();
    }

    /// Calls of these functions are answered so, without the token; the others are made.
    pub fn fails(&self, functions: &[(Function, Rv)]) {
        *self.0.fails.lock().unwrap() = functions.to_vec();
    }

    fn count(&self, is: impl Fn(&Call) -> bool) -> usize {
        self.0.calls.lock().unwrap().iter().filter(|call| is(call)).count()
    }

    /// How many calls of a function there were, those that wait too.
    pub fn begun(&self, function: Function) -> usize {
        self.count(|call| call.function == function)
    }

    /// How many of them have returned.
    pub fn returned(&self, function: Function) -> usize {
        self.count(|call| call.function == function && call.has_returned)
    }

    /// The names of the threads that made them.
    pub fn threads(&self, function: Function) -> Vec<String> {
        let calls = self.0.calls.lock().unwrap();
        calls.iter().filter(|call| call.function == function).map(|call| call.thread.clone()).collect()
    }
}

impl Hook for Gate {
    fn call<T>(&self, function: Function, go: impl FnOnce() -> Result<T>) -> Result<T> {
        let number = {
            let mut calls = self.0.calls.lock().unwrap();
            let thread = std::thread::current().name().unwrap_or_default().to_owned();
            calls.push(Call { function, thread, has_returned: false });
            calls.len() - 1
        };
        let waits = |shut: &mut Shut| match shut {
            Shut::No => false,
            Shut::All => true,
            Shut::To(functions) => functions.contains(&function),
        };
        drop(self.0.opened.wait_while(self.0.shut.lock().unwrap(), waits).unwrap());
        let fails = self.0.fails.lock().unwrap().iter().find(|(f, _)| *f == function).map(|(_, rv)| *rv);
        let answer = fails.map_or_else(go, Err);
        self.0.calls.lock().unwrap()[number].has_returned = true;
        answer
    }
}
