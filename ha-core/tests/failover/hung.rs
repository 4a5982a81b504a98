//! A member does not answer: its server is stopped, so that calls to it hang.

use std::time::{Duration, Instant};

use ha_core::policy::health::State;
use ha_rig::Tokens;

use super::load::{Done, Load, make_and_serve, wait_until};

const SOON: &str = "[group.recovery]\ninterval = \"50ms\"\nmax_interval = \"200ms\"";

/// Either of two members hangs under eight threads: nothing fails, nothing is wrong, and once it is known nobody waits for
/// it. What was measured is shown; how long it took is not judged here, where a busy machine may say anything.
#[test]
fn either_member_hangs_under_eight_threads_and_goes_on() {
    let tokens = Tokens::new(2);
    let (open, keys) = make_and_serve(&tokens, &format!("deadline = \"500ms\"\n{SOON}"));
    let group = &open.provider.groups()[0];
    let load = Load::start(&open, keys, 8);
    load.more(200);
    for victim in [0, 1] {
        let from = Instant::now();
        tokens.freeze(victim);
        wait_until("the victim is not used", || group.members[victim].state() != State::Up);
        load.more(200);
        eprintln!("it hung for {:?}", from.elapsed());
        tokens.thaw(victim);
        wait_until("the victim is back", || group.members[victim].state() == State::Up);
        load.more(200);
    }
    let done = load.end();
    show(&done);
    assert_eq!(done.failed, 0, "of {} operations", done.operations.len());
    assert!(open.provider.shutdown(Duration::from_secs(60)).is_empty());
}

fn show(done: &Done) {
    let mut took: Vec<_> = done.operations.iter().map(|(from, to)| *to - *from).collect();
    took.sort_unstable();
    let mut ends: Vec<_> = done.operations.iter().map(|(_, to)| *to).collect();
    ends.sort_unstable();
    let pause = ends.windows(2).map(|w| w[1] - w[0]).max().unwrap_or_default();
    let p99 = took[took.len() * 99 / 100];
    let longest = took.last().copied().unwrap_or_default();
    eprintln!("{} operations, longest {longest:?}, p99 {p99:?}, longest pause {pause:?}", took.len());
}
