//! The scheduler alone: one thread at a time, time that passes only when it must, the same seed the same history.
#![allow(missing_docs, clippy::unwrap_used)]

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ha_core::seam::World;
use simulations::pool::Pool;
use simulations::random::Random;
use simulations::scheduler::Scheduler;
use simulations::trace::Trace;
use simulations::world::SimWorld;

fn history(seed: u64, pool: &Arc<Pool>) -> (Vec<usize>, u64) {
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&order);
    let (scheduler, answer) = Scheduler::run(pool, Random::new(seed), Trace::new(false), move |scheduler| {
        let world = SimWorld::new(scheduler, Random::new(1), 1);
        let threads: Vec<_> = (0..4)
            .map(|i| {
                let (seen, me) = (Arc::clone(&seen), Arc::clone(scheduler));
                let body = move || {
                    for n in 0..5 {
                        seen.lock().unwrap().push(i);
                        me.trace.add(me.now(), "thread", format_args!("{i} {n}"));
                        me.sleep(Duration::from_millis(1 + i as u64 % 2));
                    }
                };
                world.spawn("counts", Box::new(body)).unwrap()
            })
            .collect();
        threads.into_iter().for_each(|t| t.join());
    });
    answer.unwrap();
    let order = order.lock().unwrap().clone();
    (order, scheduler.trace.hash())
}

#[test]
fn the_same_seed_is_the_same_history_and_another_one_another() {
    let pool = Pool::new();
    let first = history(7, &pool);
    assert_eq!(first.0.len(), 20);
    (0..20).for_each(|_| assert_eq!(history(7, &pool), first));
    assert!((0..20).any(|seed| history(seed, &pool) != first));
}

#[test]
fn an_hour_costs_nothing_and_an_event_ends_a_wait() {
    let pool = Pool::new();
    let (scheduler, answer) = Scheduler::run(&pool, Random::new(3), Trace::new(false), |scheduler| {
        let world = SimWorld::new(scheduler, Random::new(1), 1);
        let event = world.event();
        assert!(!event.wait(Some(Duration::from_secs(3600))), "nobody has set it");
        let theirs = Arc::clone(&event);
        let thread = world.spawn("sets", Box::new(move || theirs.set())).unwrap();
        assert!(event.wait(None));
        assert!(!event.wait(Some(Duration::ZERO)), "one set lets one wait pass");
        thread.join();
    });
    answer.unwrap();
    assert!(scheduler.now() >= Duration::from_secs(3600));
}

#[test]
fn threads_that_wait_for_each_other_for_ever_are_found() {
    let pool = Pool::new();
    let (_, answer) = Scheduler::run(&pool, Random::new(3), Trace::new(false), |scheduler| {
        let world = SimWorld::new(scheduler, Random::new(1), 1);
        let event = world.event();
        let theirs = Arc::clone(&event);
        let _thread = world.spawn("waits", Box::new(move || _ = theirs.wait(None))).unwrap();
        _ = event.wait(None);
    });
    assert!(answer.unwrap_err().starts_with("nobody can go on"));
}

#[test]
fn a_panic_in_any_thread_ends_the_history_with_its_words() {
    let pool = Pool::new();
    let (_, answer) = Scheduler::run(&pool, Random::new(3), Trace::new(false), |scheduler| {
        let world = SimWorld::new(scheduler, Random::new(1), 1);
        let thread = world.spawn("panics", Box::new(|| panic!("as it was told"))).unwrap();
        thread.join();
        world.event().wait(None);
    });
    let words = answer.unwrap_err();
    assert!(words.contains("as it was told"), "{words}");
}

#[test]
fn threads_that_have_locked_up_are_found_while_another_one_waits_for_their_end() {
    let pool = Pool::new();
    let (scheduler, answer) = Scheduler::run(&pool, Random::new(3), Trace::new(false), |scheduler| {
        let world = SimWorld::new(scheduler, Random::new(1), 1);
        let event = world.event();
        world.spawn("waits", Box::new(move || _ = event.wait(None))).unwrap().join();
    });
    let words = answer.unwrap_err();
    assert!(words.starts_with("nobody can go on: main (Joining(1)), 1:waits (Waiting"), "{words}");
    assert!(scheduler.now() < Duration::from_secs(2), "at once, and not when the time is over");
}

#[test]
fn a_panic_in_a_thread_that_outlives_the_first_one_is_the_histories_end_too() {
    let pool = Pool::new();
    let (_, answer) = Scheduler::run(&pool, Random::new(3), Trace::new(false), |scheduler| {
        let world = SimWorld::new(scheduler, Random::new(1), 1);
        let (event, begun) = (world.event(), world.event());
        let told = Arc::clone(&begun);
        let body = move || {
            told.set();
            _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| event.wait(None)));
            panic!("when it was stopped");
        };
        drop(world.spawn("outlives", Box::new(body)).unwrap());
        begun.wait(None);
    });
    let words = answer.unwrap_err();
    assert!(words.starts_with("thread 1:outlives panicked: when it was stopped"), "{words}");
}

/// Panics while it is unwound, which no process survives.
struct Worse;

impl Drop for Worse {
    fn drop(&mut self) {
        panic!("and then worse");
    }
}

#[test]
#[ignore = "it aborts its process: the next one runs it in one of its own"]
fn aborts() {
    simulations::panics::tell_with_their_history();
    let trace = Trace::new(false).named("seed 4711".into());
    _ = Scheduler::run(&Pool::new(), Random::new(3), trace, |_| {
        let _worse = Worse;
        panic!("bad");
    });
}

#[test]
fn a_history_that_makes_the_process_abort_is_named() {
    let me = std::env::current_exe().unwrap();
    let child = Command::new(me).args(["--ignored", "--exact", "aborts", "--nocapture"]).output().unwrap();
    let told = String::from_utf8(child.stderr).unwrap();
    assert!(
        child.status.signal() == Some(6) && told.contains("this was seed 4711"),
        "{}\n{told}",
        child.status
    );
}
