//! The quick calls allocate nothing of ours. One test: the counter is the process's.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use ha_token::{Attribute, Mechanism, OpKind, Output, ck};
use support::{Store, connect, connector, login};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static COUNTS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

// SAFETY: the system's allocator, with a counter beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTS.with(std::cell::Cell::get) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: handed on.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn counted(f: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    COUNTS.with(|c| c.set(true));
    f();
    COUNTS.with(|c| c.set(false));
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

#[test]
fn signing_and_random_allocate_nothing() {
    let store = Store::with(&["lean"]);
    let connector = connector(&store, "lean");
    let token = connect(&connector);
    let session = login(&*token);
    let template = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
        Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET),
        Attribute::bytes(ck::CKA_VALUE, [7; 32]),
        Attribute::bool(ck::CKA_SIGN, true),
    ];
    let key = token.create_object(session, &template).expect("a key");
    let mut mac = [0; 32];
    let mut random = [0; 32];
    let sign = counted(|| {
        let mut hmac = Mechanism::plain(ck::CKM_SHA256_HMAC);
        token.op_init(session, OpKind::Sign, Some(&mut hmac), key).expect("init");
        token.op_one_shot(session, OpKind::Sign, b"data", &mut Output::buffer(&mut mac)).expect("signs");
        token.generate_random(session, &mut random).expect("random");
    });
    assert_eq!(sign, 0);
    let boxed = counted(|| drop(std::hint::black_box(Box::new(1))));
    assert_eq!(boxed, 1, "the counter counts");
}
