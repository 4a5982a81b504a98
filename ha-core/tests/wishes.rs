//! What operators wish of members, as one process heeds it: once, and whatever its application does.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use ha_core::board::{Board, Part, What};
use ha_core::config::Config;
use ha_core::policy::health::State;
use ha_core::provider::Provider;
use ha_rig::Tokens;
use ha_token::{Function, Rv};

/// A group of two in this process, with the board that its operator has.
fn group(tokens: &Tokens, recovery: &str) -> (Provider, Board) {
    let config = Config::parse(&tokens.config(false, &format!("[group.recovery]\n{recovery}"))).unwrap();
    let provider = Provider::from_config(config).unwrap();
    let board = Board::open(&tokens.state(), "ha1", Part::Operator, Duration::ZERO).unwrap();
    (provider, board)
}

fn wish(board: &Board, what: What) -> u64 {
    board.ask_for(&board.turn().unwrap(), "b", what, Duration::ZERO).unwrap()
}

/// Whatever a thread has to say it says slowly: others come meanwhile.
struct Slow;

impl tracing::Subscriber for Slow {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        std::thread::sleep(Duration::from_millis(2));
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Where no keeper sees to it, each of the application's threads does what is wished: one of them, and once. A member that
/// refused its PIN would be sent it once more for each.
#[test]
fn a_wish_that_many_threads_see_is_taken_in_once() {
    let tokens = Tokens::new(2);
    let (provider, board) = group(&tokens, "mode = \"manual\"");
    let slot = Arc::clone(provider.slot(0).unwrap());
    let b = Arc::clone(provider.groups()[0].members.get(1).unwrap());
    let (over, round) = (AtomicBool::new(false), Barrier::new(9));
    let connection = || b.link().unwrap().generation;
    let mut seen = Vec::new();
    std::thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| {
                let s = slot.open_session(true).unwrap();
                tracing::subscriber::with_default(Slow, || {
                    loop {
                        round.wait();
                        if over.load(Ordering::Acquire) {
                            return;
                        }
                        slot.generate_random(s, &mut [0; 8]).unwrap();
                        round.wait();
                    }
                });
            });
        }
        // All of them call, once, after what is wished.
        let call = || {
            round.wait();
            round.wait();
        };
        call();
        let group = &provider.groups()[0];
        for _ in 0..30 {
            let before = connection();
            group.blame(&b, Function::GetTokenInfo, Rv::DEVICE_ERROR);
            wish(&board, What::Recover);
            call();
            seen.push((b.state(), connection() - before));
        }
        over.store(true, Ordering::Release);
        round.wait();
    });
    // None, where another thread's probe was answered first.
    assert!(seen.iter().all(|(state, times)| *state == State::Up && *times <= 1), "{seen:?}");
    assert!(seen.iter().any(|(_, times)| *times == 1));
    assert!(provider.shutdown(Duration::from_secs(60)).is_empty());
}

/// A service that takes back whatever is not up does not undo what its operator wants.
#[test]
fn a_service_does_not_take_back_what_its_operator_took_out() {
    let tokens = Tokens::new(2);
    for recovery in ["mode = \"manual\"", "interval = \"100ms\""] {
        let (provider, board) = group(&tokens, recovery);
        let slot = Arc::clone(provider.slot(0).unwrap());
        let s = slot.open_session(true).unwrap();
        let group = &provider.groups()[0];
        let b = &group.members.get(1).unwrap();
        let becomes = |state| {
            while b.state() != state {
                slot.generate_random(s, &mut [0; 8]).unwrap();
            }
        };
        becomes(State::Up);
        wish(&board, What::Drain);
        becomes(State::Drained);
        assert!(!group.recover("b"));
        assert_eq!(b.state(), State::Drained);
        wish(&board, What::Resume);
        becomes(State::Up);
        assert!(provider.shutdown(Duration::from_secs(60)).is_empty());
    }
}
