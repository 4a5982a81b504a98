//! The scheduler alone: one thread at a time, time that passes only when it must, the same seed the same history.
#![allow(missing_docs, clippy::unwrap_used)]

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ha_core::seam::World;
use ha_core::seam::turns::Turns as _;
use simulations::pool::Pool;
use simulations::random::Random;
use simulations::scheduler::{Fate, Scheduler};
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

type Seen = Arc<Mutex<Vec<String>>>;

fn count(seen: &Seen, what: &str) -> usize {
    seen.lock().unwrap().iter().filter(|s| *s == what).count()
}

/// Says when it is dropped.
struct Says(Seen, &'static str);

impl Drop for Says {
    fn drop(&mut self) {
        self.0.lock().unwrap().push(self.1.into());
    }
}

#[test]
fn a_process_that_is_killed_does_nothing_any_more() {
    for seed in 0..30 {
        let seen = Seen::default();
        let history = || {
            let seen = Arc::clone(&seen);
            Scheduler::run(&Pool::new(), Random::new(seed), Trace::new(false), move |scheduler| {
                let told = Arc::clone(&seen);
                scheduler.on_death(move |process| told.lock().unwrap().push(format!("{process} died")));
                scheduler.doom(2, Fate { at: 5, at_work: false, done: 0 });
                let threads: Vec<_> = [(1, "one"), (2, "two"), (2, "two")]
                    .map(|(process, name)| {
                        let (seen, me) = (Arc::clone(&seen), Arc::clone(scheduler));
                        let body = move || {
                            seen.lock().unwrap().push("begun".into());
                            let _says = Says(Arc::clone(&seen), "unwound");
                            for _ in 0..10 {
                                seen.lock().unwrap().push(name.into());
                                me.point();
                            }
                        };
                        scheduler.spawn_in(Some(process), name, Box::new(body))
                    })
                    .into();
                threads.into_iter().for_each(|t| scheduler.join(t));
                assert!(scheduler.is_dead(2) && !scheduler.is_dead(1));
                assert_eq!(scheduler.running(2), Vec::<String>::new());
                // Those that were killed stay where they are, until all is over.
                assert_eq!(count(&seen, "unwound"), 1);
                let late = scheduler.spawn_in(Some(2), "late", Box::new(|| panic!("it runs")));
                scheduler.join(late);
            })
        };
        let (scheduler, answer) = history();
        answer.unwrap();
        assert_eq!((count(&seen, "one"), count(&seen, "two")), (10, 6), "seed {seed}");
        // One may have been killed before it began.
        assert_eq!((count(&seen, "2 died"), count(&seen, "unwound")), (1, count(&seen, "begun")));
        let first = std::mem::take(&mut *seen.lock().unwrap());
        let again = history().0;
        assert_eq!((again.cost(), &*seen.lock().unwrap()), (scheduler.cost(), &first));
    }
}

/// What was asked for, done, and heard of by who asked, when a process is killed while its threads call members.
fn calls(seed: u64, done: u64) -> [usize; 3] {
    let seen = Seen::default();
    let theirs = Arc::clone(&seen);
    let (_, answer) = Scheduler::run(&Pool::new(), Random::new(seed), Trace::new(false), move |scheduler| {
        scheduler.doom(1, Fate { at: 4, at_work: false, done });
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (seen, me) = (Arc::clone(&theirs), Arc::clone(scheduler));
                let says = move |what: &str| seen.lock().unwrap().push(what.into());
                let body = move || {
                    for _ in 0..4 {
                        says("asked");
                        me.call_begins();
                        me.point();
                        me.sleep(Duration::from_millis(3));
                        says("done");
                        me.call_ends();
                        says("heard");
                    }
                };
                scheduler.spawn_in(Some(1), "calls", Box::new(body))
            })
            .collect();
        threads.into_iter().for_each(|t| scheduler.join(t));
        assert!(scheduler.is_dead(1));
    });
    answer.unwrap();
    ["asked", "done", "heard"].map(|what| count(&seen, what))
}

#[test]
fn what_a_member_is_asked_for_when_the_process_is_killed_is_done_or_not() {
    let mut in_flight = 0;
    for seed in 0..30 {
        let [asked, done, heard] = calls(seed, 1000);
        assert_eq!(asked, done, "seed {seed}: all of them were done");
        assert!(heard < done, "seed {seed}: nobody was told of the last ones");
        in_flight = in_flight.max(done - heard);
        let [asked, done, heard] = calls(seed, 0);
        assert!(done == heard && done < asked, "seed {seed}: what was in flight was not done");
    }
    assert!(in_flight > 1, "more than one was in flight at once");
}

#[test]
fn the_locks_of_a_process_go_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let open = || std::fs::File::create(&path).unwrap();
    let (_, answer) = Scheduler::run(&Pool::new(), Random::new(3), Trace::new(false), |scheduler| {
        let (held, me) = (Arc::new(open()), Arc::clone(scheduler));
        held.try_lock().unwrap();
        scheduler.doom(1, Fate { at: 1, at_work: false, done: 0 });
        let body = move || {
            me.holds(Arc::downgrade(&held));
            me.point();
            me.point();
        };
        assert!(open().try_lock().is_err());
        scheduler.join(scheduler.spawn_in(Some(1), "holds", Box::new(body)));
        assert!(open().try_lock().is_ok());
    });
    answer.unwrap();
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
