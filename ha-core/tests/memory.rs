//! What the virtual slot allocates: nothing for a signature, and little for an object that it knows.
//!
//! `HA_MEMORY_OBJECTS=20000 cargo test -p ha-core --release --test memory -- --nocapture` prints the figure of
//! `docs/speed.md`. What a member's module allocates is its own, and is not counted.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ha_core::config::Config;
use ha_core::provider::Provider;
use ha_rig::{PIN, Tokens};
use ha_token::{Attribute, Mechanism, ObjectHandle, OpKind, Output, SessionHandle, Token, UserType, ck};

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}
static BYTES: AtomicIsize = AtomicIsize::new(0);

/// The system's allocator, which counts what this thread asks for, and the bytes that all have.
struct Counting;

// SAFETY: everything is handed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        BYTES.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is counted is the whole process's: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn start(tokens: &Tokens) -> (Provider, Arc<dyn Token>, SessionHandle) {
    let provider = Provider::from_config(Config::parse(&tokens.config(false, "")).unwrap()).unwrap();
    let slot = Arc::clone(&provider.slots()[0]);
    let session = slot.open_session(true).unwrap();
    slot.login(session, UserType::User, Some(PIN.as_bytes())).unwrap();
    (provider, slot, session)
}

#[test]
fn a_signature_allocates_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let tokens = Tokens::new(2);
    let (_provider, slot, session) = start(&tokens);
    let p256 = Attribute::bytes(ck::CKA_EC_PARAMS, [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]);
    for token in [true, false] {
        let (_, key) = slot
            .generate_key_pair(
                session,
                &mut Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN),
                &vec![p256.clone(), Attribute::bool(ck::CKA_TOKEN, token)],
                &vec![Attribute::bool(ck::CKA_SIGN, true), Attribute::bool(ck::CKA_TOKEN, token)],
            )
            .unwrap();
        let mut space = [0; 64];
        let mut sign = || {
            slot.op_init(session, OpKind::Sign, Some(&mut Mechanism::plain(ck::CKM_ECDSA)), key).unwrap();
            slot.op_one_shot(session, OpKind::Sign, &[7; 32], &mut Output::buffer(&mut space)).unwrap();
        };
        // Every member's first signature may set up what is kept.
        (0..500).for_each(|_| sign());
        let before = COUNT.get();
        assert!(before > 0, "the counter counts");
        (0..500).for_each(|_| sign());
        assert_eq!(COUNT.get() - before, 0, "token key: {token}");
    }
}

/// Finds every object, as an application would.
fn find_all(slot: &Arc<dyn Token>, session: SessionHandle) -> usize {
    slot.find_objects_init(session, &Vec::new()).unwrap();
    let mut all = 0;
    loop {
        let found: Vec<ObjectHandle> = slot.find_objects(session, 256).unwrap();
        all += found.len();
        if found.is_empty() {
            break;
        }
    }
    slot.find_objects_final(session).unwrap();
    all
}

#[test]
fn an_object_that_is_known_costs_little() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let count: usize = std::env::var("HA_MEMORY_OBJECTS").map_or(1500, |n| n.parse().unwrap());
    let first = 1000.min(count / 2); // tables double: half as many fill half of them
    let tokens = Tokens::in_memory(2);
    let make = |from: usize, to: usize| {
        let (_provider, slot, session) = start(&tokens);
        for i in from..to {
            let name = format!("object-{i:08}");
            let template = vec![
                Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
                Attribute::bool(ck::CKA_TOKEN, true),
                Attribute::bytes(ck::CKA_LABEL, name.as_bytes()),
                Attribute::bytes(ck::CKA_VALUE, name.as_bytes()),
            ];
            slot.create_object(session, &template).unwrap();
        }
    };
    // What is kept after a fresh start that has seen them all.
    let known = |expected: usize| {
        let (_provider, slot, session) = start(&tokens);
        assert_eq!(find_all(&slot, session), expected);
        assert_eq!(find_all(&slot, session), expected);
        BYTES.load(Ordering::Relaxed)
    };
    make(0, first);
    known(first); // what only the first start sets up
    let before = known(first);
    make(first, count);
    let after = known(count);
    let each = (after - before) as f64 / (count - first) as f64;
    println!("{each:.0} bytes for each of {} objects beyond the first {first}", count - first);
    assert!(each <= 300.0, "{each} bytes for each object");
}
