//! `C_Initialize` and `C_Finalize`: arguments, several threads at once, fork, no configuration, and the shared object
//! itself.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::{CStr, CString, c_void};
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use common::{Recorder, alone, call, fixture, turn};
use cryptoki_sys::*;
use ha_core::provider::Provider;
use ha_token::Rv;

fn empty() -> Provider {
    Provider::from_slots(Vec::new())
}

unsafe extern "C" fn create(_: *mut *mut c_void) -> CK_RV {
    CKR_OK
}

unsafe extern "C" fn other(_: *mut c_void) -> CK_RV {
    CKR_OK
}

fn arguments(callbacks: bool, flags: CK_FLAGS) -> CK_C_INITIALIZE_ARGS {
    CK_C_INITIALIZE_ARGS {
        CreateMutex: callbacks.then_some(create),
        DestroyMutex: callbacks.then_some(other),
        LockMutex: callbacks.then_some(other),
        UnlockMutex: callbacks.then_some(other),
        flags,
        pReserved: null_mut(),
    }
}

fn initialize(mut args: CK_C_INITIALIZE_ARGS) -> Result<(), Rv> {
    call!(C_Initialize((&raw mut args).cast()))
}

#[test]
fn without_configuration_there_are_no_slots() {
    if !alone("without_configuration_there_are_no_slots", &[]) {
        return;
    }
    assert_eq!(call!(C_Initialize(null_mut())), Ok(()));
    assert_eq!(call!(C_Initialize(null_mut())), Err(Rv::CRYPTOKI_ALREADY_INITIALIZED));
    let mut count = 99;
    assert_eq!(call!(C_GetSlotList(0, null_mut(), &raw mut count)), Ok(()));
    assert_eq!(count, 0);
    let mut slots = [5; 1];
    assert_eq!(call!(C_GetSlotList(1, slots.as_mut_ptr(), &raw mut count)), Ok(()));
    assert_eq!((count, slots), (0, [5]));
    let mut session = 0;
    let open = call!(C_OpenSession(0, CKF_SERIAL_SESSION, null_mut(), None, &raw mut session));
    assert_eq!(open, Err(Rv::SLOT_ID_INVALID));
    assert_eq!(call!(C_CloseSession(0)), Err(Rv::SESSION_HANDLE_INVALID));
    assert_eq!(call!(C_Finalize(null_mut())), Ok(()));
    assert_eq!(call!(C_Finalize(null_mut())), Err(Rv::CRYPTOKI_NOT_INITIALIZED));
    assert_eq!(call!(C_GetSlotList(0, null_mut(), &raw mut count)), Err(Rv::CRYPTOKI_NOT_INITIALIZED));
}

#[test]
fn the_arguments_of_initialize() {
    if !alone("the_arguments_of_initialize", &[]) {
        return;
    }
    let mut reserved = arguments(false, CKF_OS_LOCKING_OK);
    reserved.pReserved = (&raw mut reserved).cast();
    assert_eq!(initialize(reserved), Err(Rv::ARGUMENTS_BAD));
    let mut some = arguments(true, CKF_OS_LOCKING_OK);
    some.LockMutex = None;
    assert_eq!(initialize(some), Err(Rv::ARGUMENTS_BAD));
    assert_eq!(initialize(arguments(true, 0)), Err(Rv::CANT_LOCK));
    for good in [
        arguments(false, 0),
        arguments(false, CKF_OS_LOCKING_OK),
        arguments(true, CKF_OS_LOCKING_OK),
        // Nothing to start threads for without a group.
        arguments(false, CKF_OS_LOCKING_OK | CKF_LIBRARY_CANT_CREATE_OS_THREADS),
    ] {
        assert_eq!(initialize(good), Ok(()));
        assert_eq!(call!(C_Finalize((&raw mut some).cast())), Err(Rv::ARGUMENTS_BAD));
        assert_eq!(call!(C_Finalize(null_mut())), Ok(()));
    }
}

#[test]
fn of_many_threads_exactly_one_initializes() {
    let _turn = turn();
    for _ in 0..50 {
        let barrier = Barrier::new(8);
        let answers: Vec<_> = thread::scope(|scope| {
            let start = || {
                barrier.wait();
                let answer = ha_module::install(empty());
                // Whoever is told that it is initialised can use it.
                let mut count = 0;
                assert_eq!(call!(C_GetSlotList(0, null_mut(), &raw mut count)), Ok(()));
                answer
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(answers.iter().filter(|a| a.is_ok()).count(), 1);
        assert!(answers.iter().all(|a| matches!(a, Ok(()) | Err(Rv::CRYPTOKI_ALREADY_INITIALIZED))));
        let barrier = Barrier::new(4);
        let ended: Vec<_> = thread::scope(|scope| {
            let end = || {
                barrier.wait();
                call!(C_Finalize(null_mut()))
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(end)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(ended.iter().filter(|a| a.is_ok()).count(), 1);
        assert!(ended.iter().all(|a| matches!(a, Ok(()) | Err(Rv::CRYPTOKI_NOT_INITIALIZED))));
    }
}

#[test]
fn calls_meet_the_end_without_harm() {
    let _turn = turn();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let mut count = 0;
                    match call!(C_GetSlotList(0, null_mut(), &raw mut count)) {
                        Ok(()) => assert_eq!(count, 2),
                        Err(rv) => assert_eq!(rv, Rv::CRYPTOKI_NOT_INITIALIZED),
                    }
                }
            });
        }
        for _ in 0..200 {
            let slots: Vec<Arc<Recorder>> = (0..2).map(|n| Arc::new(Recorder::new(n))).collect();
            let watch = Arc::downgrade(&slots[0]);
            ha_module::install(Provider::from_slots(slots.into_iter().map(|s| s as _).collect())).unwrap();
            call!(C_Finalize(null_mut())).unwrap();
            assert!(watch.upgrade().is_none(), "a token outlived C_Finalize with no call in it");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn sessions_do_not_survive_the_end() {
    let fixture = fixture();
    let old = fixture.session;
    drop(fixture);
    assert_eq!(call!(C_Logout(old)), Err(Rv::CRYPTOKI_NOT_INITIALIZED));
}

#[test]
fn a_forked_child_starts_anew_and_the_parent_goes_on() {
    if !alone("a_forked_child_starts_anew_and_the_parent_goes_on", &[]) {
        return;
    }
    let fixture = fixture();
    // SAFETY: the child only calls the library and `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let mut count = 99;
        let orphan = call!(C_GetSlotList(0, null_mut(), &raw mut count)) == Err(Rv::CRYPTOKI_NOT_INITIALIZED)
            && call!(C_Logout(fixture.session)) == Err(Rv::CRYPTOKI_NOT_INITIALIZED)
            && call!(C_Finalize(null_mut())) == Err(Rv::CRYPTOKI_NOT_INITIALIZED);
        let anew = call!(C_Initialize(null_mut())) == Ok(())
            && call!(C_GetSlotList(0, null_mut(), &raw mut count)) == Ok(())
            && count == 0
            && call!(C_Finalize(null_mut())) == Ok(());
        // SAFETY: ends the child without running what belongs to the parent.
        unsafe { libc::_exit(if orphan && anew { 0 } else { 1 }) }
    }
    let mut status = -1;
    // SAFETY: waits for the child made above.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0));
    assert_eq!(call!(C_Logout(fixture.session)), Ok(()));
    fixture.saw("logout");
}

/// The shared object, which cargo builds with these tests.
fn shared_object() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let folder = tests.parent().unwrap();
    let places = [folder.join("libha_module.so"), folder.parent().unwrap().join("libha_module.so")];
    places.into_iter().find(|p| p.exists()).expect("libha_module.so is built with the tests")
}

#[test]
fn the_shared_object_exports_three_functions() {
    let output = std::process::Command::new("nm")
        .args(["-D", "--defined-only", "-j"])
        .arg(shared_object())
        .output()
        .expect("nm is part of the tools that link Rust programs");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut names: Vec<&str> = text.lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["C_GetFunctionList", "C_GetInterface", "C_GetInterfaceList"]);
}

#[test]
fn the_shared_object_can_be_loaded_used_and_closed_again_and_again() {
    if !alone("the_shared_object_can_be_loaded_used_and_closed_again_and_again", &[]) {
        return;
    }
    let path = CString::new(shared_object().into_os_string().into_encoded_bytes()).unwrap();
    let mut kept = None;
    for _ in 0..3 {
        // SAFETY: a library whose initialisers do nothing.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!library.is_null());
        // SAFETY: the library is open.
        let symbol = unsafe { libc::dlsym(library, c"C_GetFunctionList".as_ptr()) };
        assert!(!symbol.is_null());
        // SAFETY: the type that PKCS#11 gives this symbol.
        let get: unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV =
            unsafe { std::mem::transmute(symbol) };
        let mut list: *mut CK_FUNCTION_LIST = null_mut();
        // SAFETY: a place for the list.
        assert_eq!(unsafe { get(&raw mut list) }, CKR_OK);
        // SAFETY: a static of the library.
        let list = unsafe { &*list };
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { list.C_Initialize.unwrap()(null_mut()) }, CKR_OK);
        // SAFETY: NULL is demanded.
        assert_eq!(unsafe { list.C_Finalize.unwrap()(null_mut()) }, CKR_OK);
        // SAFETY: nothing of the library is used by this thread from here on, unless it says that it stays.
        assert_eq!(unsafe { libc::dlclose(library) }, 0);
        // It stays: its code may still be needed by a thread that it left behind.
        // SAFETY: only asks whether it is still there.
        let there = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
        assert!(!there.is_null(), "the library was unloaded");
        assert_eq!(*kept.get_or_insert(there), there);
    }
}

#[test]
fn another_library_with_the_same_names_changes_nothing() {
    let name = "another_library_with_the_same_names_changes_nothing";
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.so");
    std::fs::copy(shared_object(), &other).unwrap();
    // In the global scope, where symbols are looked for first.
    if !alone(name, &[("LD_PRELOAD", other.as_os_str())]) {
        return;
    }
    // SAFETY: only looks a name up.
    let preloaded = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"C_GetFunctionList".as_ptr()) };
    let path = CString::new(shared_object().into_os_string().into_encoded_bytes()).unwrap();
    // SAFETY: a library whose initialisers do nothing.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    // SAFETY: the library is open.
    let symbol = unsafe { libc::dlsym(library, c"C_GetFunctionList".as_ptr()) };
    assert!(!symbol.is_null() && !preloaded.is_null() && symbol != preloaded);
    // SAFETY: the type that PKCS#11 gives this symbol.
    let get: unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV =
        unsafe { std::mem::transmute(symbol) };
    let mut list: *mut CK_FUNCTION_LIST = null_mut();
    // SAFETY: a place for the list.
    assert_eq!(unsafe { get(&raw mut list) }, CKR_OK);
    // SAFETY: a static of the library.
    let listed = unsafe { &*list }.C_GetFunctionList.unwrap();
    assert_eq!(listed as *const () as usize, symbol as usize, "the list names another library's function");
}

#[test]
fn the_library_says_what_it_is() {
    let _fixture = fixture();
    // SAFETY: numbers and bytes only.
    let mut info: CK_INFO = unsafe { std::mem::zeroed() };
    assert_eq!(call!(C_GetInfo(&raw mut info)), Ok(()));
    assert_eq!((info.cryptokiVersion.major, info.cryptokiVersion.minor), (3, 2));
    let text = CString::new(info.manufacturerID).unwrap();
    assert_eq!(<CString as AsRef<CStr>>::as_ref(&text).to_str().unwrap().trim_end(), "pkcs11-ha");
    assert_eq!(text.as_bytes().len(), 32);
}

#[test]
fn finalize_ends_a_wait_for_a_slot() {
    let fixture = fixture();
    let started = Barrier::new(2);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            started.wait();
            let mut slot = 0;
            call!(C_WaitForSlotEvent(0, &raw mut slot, null_mut()))
        });
        started.wait();
        // Whether the wait has begun or not: it must not outlive this.
        assert_eq!(call!(C_Finalize(null_mut())), Ok(()));
        assert_eq!(waiting.join().unwrap(), Err(Rv::CRYPTOKI_NOT_INITIALIZED));
    });
    drop(fixture);
}
