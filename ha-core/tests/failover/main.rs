//! A member dies under load, or hangs, and comes back: no call fails, no answer is wrong (guarantees G3, G4 and G5).
#![allow(missing_docs, clippy::unwrap_used)]

mod hung;
mod left;
mod load;

use ha_core::policy::health::State;
use ha_rig::Tokens;
use load::{Load, make_and_serve};

#[test]
fn either_member_dies_under_eight_threads_and_comes_back() {
    let tokens = Tokens::new(2);
    let (open, keys) = make_and_serve(&tokens, "");
    let group = &open.provider.groups()[0];
    let load = Load::start(&open, keys, 8);
    load.more(200);
    for victim in [0, 1] {
        tokens.kill(victim);
        load::wait_until("the victim is not used", || {
            group.members.get(victim).unwrap().state() != State::Up
        });
        load.more(200);
        tokens.serve(victim);
        load::wait_until("the victim is back", || group.members.get(victim).unwrap().state() == State::Up);
        load.more(200);
    }
    let done = load.end();
    assert_eq!(done.failed, 0, "of {} operations", done.operations.len());
    assert!(open.provider.shutdown(std::time::Duration::from_secs(60)).is_empty());
}
