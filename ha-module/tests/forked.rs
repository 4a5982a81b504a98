//! A program that forks, as a daemon does, while the library is in use: the child starts anew, and its ledger is its own.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use common::alone;
use ha_core::context::{CInitializeArgs, CInitializeFlags};
use ha_core::cryptoki::context::Pkcs11 as Loaded;
use ha_core::cryptoki::session::Session;
use ha_core::object::{Attribute, ObjectClass};
use ha_core::session::UserType;
use ha_core::types::AuthPin;
use ha_rig::{PIN, Tokens};

/// When a child that hangs is ended.
const HANGS: u32 = 300;

fn started() -> Loaded {
    let program = std::env::current_exe().unwrap();
    let folder = program.parent().unwrap();
    let places = [folder.join("libha_module.so"), folder.parent().unwrap().join("libha_module.so")];
    let module = places.into_iter().find(|p| p.exists()).expect("libha_module.so is built with the tests");
    let library = Loaded::new(module).unwrap();
    library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    library
}

fn session(library: &Loaded) -> Session {
    let slot = library.get_slots_with_token().unwrap()[0];
    let session = library.open_rw_session(slot).unwrap();
    session.login(UserType::User, Some(&AuthPin::new(PIN.into()))).unwrap();
    session
}

fn keep(session: &Session, label: &str) -> bool {
    let data = [
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Label(label.into()),
        Attribute::Value(b"kept".to_vec()),
    ];
    session.create_object(&data).is_ok()
}

fn is_there(session: &Session, label: &str) -> bool {
    session.find_objects(&[Attribute::Label(label.into())]).unwrap().len() == 1
}

/// Forks; the child does `body` and ends with what that answers.
fn fork(body: impl FnOnce() -> bool) -> libc::pid_t {
    // SAFETY: the child takes none of this process's locks but those that a fork leaves usable, and ends without running
    // what belongs to the parent.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: a child that hangs ends by this signal.
            unsafe { libc::alarm(HANGS) };
            let well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(false);
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!well)) }
        }
        child => child,
    }
}

fn ended(child: libc::pid_t) -> i32 {
    let mut status = -1;
    // SAFETY: waits for a child made above.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

/// The group of a test in a process of its own; `None` in the one that only starts that.
fn group(name: &str) -> Option<PathBuf> {
    let tokens = Tokens::new(2);
    let conf = tokens.path().join("ha.toml");
    std::fs::write(&conf, tokens.config(false, "")).unwrap();
    std::fs::set_permissions(&conf, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let environment: [(&str, &OsStr); 1] = [("PKCS11_HA_CONF", conf.as_os_str())];
    alone(name, &environment).then(|| PathBuf::from(std::env::var_os("PKCS11_HA_CONF").unwrap()))
}

fn ledger(conf: &Path) -> PathBuf {
    let config = ha_core::config::Config::from_file(conf).unwrap();
    let files = std::fs::read_dir(&config.state_dir).unwrap();
    files.map(|f| f.unwrap().path()).find(|p| p.extension().is_some_and(|e| e == "ledger")).unwrap()
}

/// The other process that holds a lock on the file, as SQLite does while it has it open.
fn who_holds(file: &Path) -> libc::pid_t {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    // SAFETY: a struct of numbers, of which zero is a value.
    let mut asked: libc::flock = unsafe { std::mem::zeroed() };
    asked.l_type = libc::F_WRLCK as _;
    // SAFETY: an open file, and a place for the answer.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut asked) }, 0);
    if asked.l_type == libc::F_UNLCK as libc::c_short { 0 } else { asked.l_pid }
}

#[test]
fn a_forked_child_has_the_ledger_for_itself() {
    let Some(conf) = group("a_forked_child_has_the_ledger_for_itself") else { return };
    let library = started();
    let parents = session(&library);
    assert!(keep(&parents, "before"));

    let (mut is_open, mut opened) = std::io::pipe().unwrap();
    let (mut may_go_on, mut go_on) = std::io::pipe().unwrap();
    let child = fork(|| {
        let library = started();
        let session = session(&library);
        let made = is_there(&session, "before") && keep(&session, "by the child");
        opened.write_all(&[u8::from(made)]).unwrap();
        may_go_on.read_exact(&mut [0]).unwrap();
        let made = is_there(&session, "by another one") && keep(&session, "by the child again");
        drop(session);
        library.finalize().unwrap();
        made
    });
    let mut made = [0];
    is_open.read_exact(&mut made).unwrap();
    assert_eq!(made, [1], "the child made something");
    assert!(is_there(&parents, "by the child") && keep(&parents, "by the parent"));
    drop(parents);
    library.finalize().unwrap();

    // Whoever is the last to close the ledger clears its journal away. That may not be the parent.
    let journal = ledger(&conf).with_extension("ledger-wal");
    assert!(journal.exists(), "the parent took itself for the last one");
    assert_eq!(who_holds(&ledger(&conf)), child);
    let library = started();
    let others = session(&library);
    assert!(is_there(&others, "by the parent") && keep(&others, "by another one"));
    drop(others);
    library.finalize().unwrap();
    assert!(journal.exists(), "another process took itself for the last one");

    go_on.write_all(&[0]).unwrap();
    assert_eq!(ended(child), 0);
    let library = started();
    let session = session(&library);
    for label in ["before", "by the child", "by the parent", "by another one", "by the child again"] {
        assert!(is_there(&session, label), "{label}");
    }
}

#[test]
fn a_fork_falls_into_nothing_that_another_thread_is_writing() {
    let Some(_conf) = group("a_fork_falls_into_nothing_that_another_thread_is_writing") else { return };
    let library = started();
    let parents = session(&library);
    assert!(keep(&parents, "parent"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for n in 0..2 {
            let (library, stop) = (&library, &stop);
            scope.spawn(move || {
                let slot = library.get_slots_with_token().unwrap()[0];
                let session = library.open_rw_session(slot).unwrap();
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    assert!(keep(&session, &format!("thread {n}, {count}")));
                    count += 1;
                }
            });
        }
        for n in 0..8 {
            let label = format!("child {n}");
            let child = fork(|| {
                let library = started();
                let session = session(&library);
                let made = is_there(&session, "parent") && keep(&session, &label);
                drop(session);
                made && library.finalize().is_ok()
            });
            let status = ended(child);
            if status != 0 || !is_there(&parents, &label) {
                stop.store(true, Ordering::Relaxed);
                panic!("child {n} ended with {status:x}");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}
