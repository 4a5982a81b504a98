//! Many virtual sessions need few of a member's.

use std::collections::HashSet;
use std::sync::Barrier;

use ha_token::{Attribute, Mechanism, ObjectHandle, OpKind, Output, SessionHandle, Token, ck};

use crate::spied;

const THREADS: usize = 16;
const EACH: usize = 625;

/// The most sessions that a member had open at a moment, and how many it has opened.
fn opened(record: &str) -> (usize, usize) {
    let (mut open, mut most, mut all) = (HashSet::new(), 0, 0);
    let mut function = "";
    for line in record.lines() {
        // A call begins with its number and name: "12: C_OpenSession".
        if let Some((number, name)) = line.split_once(": ")
            && number.bytes().all(|b| b.is_ascii_digit())
        {
            function = name.trim();
        }
        let handle = |words: &str| line.trim().strip_prefix(words).map(|h| h.trim().to_owned());
        match function {
            "C_OpenSession" => {
                if let Some(handle) = handle("[out] *phSession =") {
                    all += 1;
                    open.insert(handle);
                    most = most.max(open.len());
                }
            }
            "C_CloseSession" => {
                if let Some(handle) = handle("[in] hSession =") {
                    open.remove(&handle);
                }
            }
            "C_Initialize" | "C_Finalize" => open.clear(),
            _ => {}
        }
    }
    (most, all)
}

fn mac(slot: &dyn Token, s: SessionHandle, key: ObjectHandle) -> Vec<u8> {
    slot.op_init(s, OpKind::Sign, Some(&mut Mechanism::plain(ck::CKM_SHA256_HMAC)), key).unwrap();
    for part in [b"one".as_slice(), b"two"] {
        slot.op_update(s, OpKind::Sign, part, &mut Output::buffer(&mut [])).unwrap();
    }
    let mut space = [0; 32];
    let mut out = Output::buffer(&mut space);
    slot.op_final(s, OpKind::Sign, &mut out).unwrap();
    out.written().to_vec()
}

#[test]
fn ten_thousand_sessions_use_a_hundred_of_a_member_through_a_failover() {
    let group = spied("");
    let slot = &*group.slot;
    let template = vec![
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bool(ck::CKA_SIGN, true),
        Attribute::ulong(ck::CKA_VALUE_LEN, 32),
    ];
    let generate = &mut Mechanism::plain(ck::CKM_GENERIC_SECRET_KEY_GEN);
    let key = slot.generate_key(group.s, generate, &template).unwrap();
    let right = mac(slot, group.s, key);
    let all_are_open = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (tokens, right, all_are_open) = (&group.tokens, &right, &all_are_open);
            scope.spawn(move || {
                let sessions: Vec<_> = (0..EACH).map(|_| slot.open_session(true).unwrap()).collect();
                all_are_open.wait();
                for round in 0..2 {
                    for (i, session) in sessions.iter().enumerate() {
                        if (thread, round, i) == (0, 1, EACH / 2) {
                            assert_eq!(slot.token_info().unwrap().session_count, (THREADS * EACH + 1) as u64);
                            tokens.hide(0);
                        }
                        assert_eq!(&mac(slot, *session, key), right);
                    }
                }
            });
        }
    });
    assert!(!group.provider.groups()[0].members.get(0).unwrap().is_up(), "nobody missed the member");
    for record in group.records() {
        let (most, all) = opened(&record);
        assert!((2..=100).contains(&most), "{most} sessions at a time");
        println!("{most} sessions of a member at a time, {all} opened");
    }
}
