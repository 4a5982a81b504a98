//! The models, as they are and, where they have barriers, without them.
#![allow(missing_docs, clippy::unwrap_used)]

use ha_models::{presence, retries, slot, without_barriers};

/// What loom says of two who are at one thing at once.
const TWO: &str = "Causality violation";

#[test]
fn who_finds_nobody_inside_has_it_alone() {
    presence::who_finds_nobody_inside_has_it_alone();
}

#[test]
fn without_barriers_a_caller_is_missed() {
    let why = without_barriers(presence::who_finds_nobody_inside_has_it_alone).unwrap();
    assert!(why.starts_with(TWO), "{why}");
}

#[test]
fn a_seat_that_is_used_again_tells_of_its_new_thread() {
    presence::a_seat_that_is_used_again_tells_of_its_new_thread();
}

#[test]
fn no_seat_is_had_twice_and_none_is_lost() {
    presence::no_seat_is_had_twice_and_none_is_lost();
}

#[test]
fn the_floor_is_there_for_whoever_comes_to_a_new_window() {
    retries::the_floor_is_there_for_whoever_comes_to_a_new_window();
}

#[test]
fn no_window_gives_what_the_one_before_has_left() {
    retries::no_window_gives_what_the_one_before_has_left();
}

#[test]
fn a_call_without_the_state_sees_the_closing_or_is_seen() {
    slot::a_call_without_the_state_sees_the_closing_or_is_seen();
}

#[test]
fn without_barriers_a_call_and_a_closing_miss_each_other() {
    let why = without_barriers(slot::a_call_without_the_state_sees_the_closing_or_is_seen).unwrap();
    assert!(why.starts_with(TWO), "{why}");
}

#[test]
fn nobody_has_the_state_of_the_next_session() {
    slot::nobody_has_the_state_of_the_next_session();
}

#[test]
fn a_session_is_closed_once() {
    slot::a_session_is_closed_once();
}
