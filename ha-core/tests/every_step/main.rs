//! The table mechanism × step × fault: every operation that two SoftHSM tokens have, with each call of it failing in each way on
//! the member that serves first. The application sees no error, and the answer is right (guarantees G3 and G4).
//!
//! Each test prints its part of the table (`cargo test -p ha-core --test every_step -- --nocapture`).
#![allow(missing_docs, clippy::unwrap_used)]

mod cases;
mod fault;
mod rig;

use ha_token::{OpKind, ck};

use cases::Case;
use fault::Fault;
use rig::Rig;

const FAILS: [Fault; 4] = [Fault::GoneBefore, Fault::GoneAfter, Fault::NoSession, Fault::Vague];

/// Plays these rows with these faults, and prints them.
fn play(rig: &Rig, cases: &[Case], faults: &[Fault]) {
    assert!(!cases.is_empty());
    for case in cases {
        let row = rig.row(case, faults);
        println!("{:<30} {:<8} {:<8} {row}", case.name, format!("{:?}", case.kind), case.shape);
    }
}

fn of(kinds: &[OpKind]) {
    let rig = Rig::new("off");
    let cases: Vec<Case> = rig.cases().into_iter().filter(|case| kinds.contains(&case.kind)).collect();
    play(&rig, &cases, &FAILS);
}

/// A hang costs a deadline: one mechanism of each kind and shape.
#[test]
fn a_member_that_hangs() {
    let rig = Rig::new("1s");
    let mut cases: Vec<Case> = Vec::new();
    for case in rig.cases() {
        if !cases.iter().any(|other| (other.kind, other.shape) == (case.kind, case.shape)) {
            cases.push(case);
        }
    }
    play(&rig, &cases, &[Fault::Hangs]);
}

#[test]
fn signing() {
    of(&[OpKind::Sign]);
}

#[test]
fn verifying() {
    of(&[OpKind::Verify]);
}

#[test]
fn enciphering_deciphering_and_digesting() {
    of(&[OpKind::Encrypt, OpKind::Decrypt, OpKind::Digest]);
}

/// Every mechanism of the token that signs, verifies, enciphers, deciphers or digests is in the table, or is known not to be.
#[test]
fn no_mechanism_is_left_out() {
    let rig = Rig::new("off");
    let cases = rig.cases();
    let wanted = [
        (ck::CKF_SIGN, OpKind::Sign),
        (ck::CKF_VERIFY, OpKind::Verify),
        (ck::CKF_ENCRYPT, OpKind::Encrypt),
        (ck::CKF_DECRYPT, OpKind::Decrypt),
        (ck::CKF_DIGEST, OpKind::Digest),
    ];
    for mechanism in rig.slot.mechanism_list().unwrap() {
        let flags = rig.slot.mechanism_info(mechanism).unwrap().flags;
        for (flag, kind) in wanted.iter().filter(|(flag, _)| flags & flag != 0) {
            let there = cases.iter().any(|case| case.kind == *kind && case.mechanism.kind == mechanism);
            let known = cases::LEFT_OUT.iter().any(|(other, _)| *other == mechanism);
            assert!(there != known, "mechanism {mechanism:#x}, flag {flag:#x}");
        }
    }
}
