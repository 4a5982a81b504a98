//! The C interface allocates nothing for a signature with a mechanism without parameter.
#![allow(clippy::unwrap_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::{OUTPUT, call, fixture, plain};
use cryptoki_sys::*;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, which counts what this thread asks for.
struct Counting;

// SAFETY: everything is handed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_signature_allocates_nothing() {
    let f = fixture();
    f.token.be_quiet();
    let mut signature = [0u8; 32];
    let mut sign = || {
        let mut mechanism = plain(CKM_ECDSA);
        let mut len = 32;
        call!(C_SignInit(f.session, &raw mut mechanism, 1)).unwrap();
        call!(C_Sign(f.session, OUTPUT.as_ptr().cast_mut(), 12, signature.as_mut_ptr(), &raw mut len))
            .unwrap();
    };
    sign(); // the first call of a thread may set up what the thread keeps
    let before = COUNT.get();
    assert!(before > 0, "the counter counts");
    for _ in 0..10 {
        sign();
    }
    assert_eq!(COUNT.get() - before, 0);
    let mut iv = [0u8; 16];
    let mut mechanism =
        CK_MECHANISM { mechanism: CKM_AES_CBC, pParameter: iv.as_mut_ptr().cast(), ulParameterLen: 16 };
    call!(C_EncryptInit(f.session, &raw mut mechanism, 1)).unwrap();
    assert_eq!(COUNT.get() - before, 1, "a parameter is copied once");
}
