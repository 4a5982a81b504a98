//! What only a caller of the C functions sees: interfaces, lengths that cannot be, forks, threads that may not be made.
#![allow(missing_docs, clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)]

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;

use cryptoki_sys::*;
use ha_rig::{Alone, PIN, Store, is_alone, softhsm};
use ha_token::{Function, Rv};

const LABEL: &str = "raw";

fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap();
    let places = [folder.join("libfaulty_token.so"), folder.parent().unwrap().join("libfaulty_token.so")];
    places.into_iter().find(|p| p.exists()).expect("libfaulty_token.so is built with the tests")
}

/// Runs the test `name` in a process with the library in front of a token, with these rules; answers whether this is it.
fn alone(name: &str, rules: &[&str]) -> bool {
    alone_with(name, rules, |_| softhsm())
}

/// The same, in front of another module, which is made in a folder.
fn alone_with(name: &str, rules: &[&str], module: impl Fn(&Path) -> PathBuf) -> bool {
    if is_alone(name) {
        return true;
    }
    let store = Store::with(&[LABEL]);
    let module = module(store.dir());
    let conf = store.dir().join("faulty.toml");
    let socket = store.dir().join("socket");
    std::fs::write(&conf, format!("module = {module:?}\nsocket = {socket:?}\nrules = {rules:?}")).unwrap();
    ha_rig::set_mode(&conf, 0o600);
    Alone::new(name)
        .env("FAULTY_TOKEN_CONF", &conf)
        .env("SOFTHSM2_CONF", store.conf())
        .env("SOCKET", &socket)
        .env("LIBRARY", library())
        .run();
    false
}

/// The library, loaded as any program does it.
struct Loaded {
    library: libloading::Library,
    list: CK_FUNCTION_LIST,
}

macro_rules! call {
    ($loaded:expr, $f:ident($($arg:expr),* $(,)?)) => {{
        let function = $loaded.list.$f.unwrap();
        // SAFETY: each test gives what PKCS#11 says.
        Rv::check(unsafe { function($($arg),*) })
    }};
}

fn load() -> Loaded {
    try_load().unwrap()
}

fn try_load() -> Result<Loaded, Rv> {
    // SAFETY: it is what is tested; nothing runs in it before it is called.
    let library = unsafe { libloading::Library::new(std::env::var_os("LIBRARY").unwrap()) }.unwrap();
    let mut list: *mut CK_FUNCTION_LIST = null_mut();
    // SAFETY: the standard fixes the type of the function of this name, and the place for its answer is there.
    let rv = unsafe {
        library
            .get::<unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV>(b"C_GetFunctionList")
            .unwrap()(&mut list)
    };
    Rv::check(rv)?;
    // SAFETY: the library gave it.
    let list = unsafe { *list };
    Ok(Loaded { library, list })
}

impl Loaded {
    fn initialize(&self, flags: CK_FLAGS) -> Result<(), Rv> {
        let mut args = CK_C_INITIALIZE_ARGS {
            CreateMutex: None,
            DestroyMutex: None,
            LockMutex: None,
            UnlockMutex: None,
            flags: CKF_OS_LOCKING_OK | flags,
            pReserved: null_mut(),
        };
        call!(self, C_Initialize((&raw mut args).cast()))
    }

    /// A session, logged in.
    fn session(&self) -> CK_SESSION_HANDLE {
        let (mut slots, mut count) = ([0; 8], 8);
        call!(self, C_GetSlotList(CK_TRUE, slots.as_mut_ptr(), &mut count)).unwrap();
        let mut session = 0;
        let flags = CKF_SERIAL_SESSION | CKF_RW_SESSION;
        call!(self, C_OpenSession(slots[0], flags, null_mut(), None, &mut session)).unwrap();
        let mut pin = PIN.as_bytes().to_vec();
        call!(self, C_Login(session, CKU_USER, pin.as_mut_ptr(), pin.len() as CK_ULONG)).unwrap();
        session
    }
}

fn socket() -> PathBuf {
    std::env::var_os("SOCKET").unwrap().into()
}

fn say(line: &str) -> String {
    use std::io::{BufRead as _, Write as _};
    let mut stream = std::os::unix::net::UnixStream::connect(socket()).unwrap();
    // Who is refused is told so at once, and not listened to.
    _ = stream.write_all(format!("{line}\n").as_bytes());
    let mut answer = String::new();
    std::io::BufReader::new(stream).read_line(&mut answer).unwrap();
    answer.trim_end().to_owned()
}

#[test]
fn the_modules_own_interfaces_are_offered() {
    if !alone("the_modules_own_interfaces_are_offered", &[]) {
        return;
    }
    let loaded = load();
    assert_eq!((loaded.list.version.major, loaded.list.version.minor), (2, 40));
    // SAFETY: the standard fixes the types of the functions of these names.
    let (list, get) = unsafe {
        type List = unsafe extern "C" fn(*mut CK_INTERFACE, *mut CK_ULONG) -> CK_RV;
        type Get = unsafe extern "C" fn(
            *mut CK_UTF8CHAR,
            *mut CK_VERSION,
            *mut *mut CK_INTERFACE,
            CK_FLAGS,
        ) -> CK_RV;
        (
            *loaded.library.get::<List>(b"C_GetInterfaceList").unwrap(),
            *loaded.library.get::<Get>(b"C_GetInterface").unwrap(),
        )
    };
    // SoftHSM has no interfaces but its list.
    let mut count = 0;
    // SAFETY: asks for the count; then there is room.
    unsafe {
        assert_eq!((list(null_mut(), &mut count), count), (CKR_OK, 1));
        let mut one = [CK_INTERFACE { pInterfaceName: null_mut(), pFunctionList: null_mut(), flags: 0 }];
        count = 0;
        assert_eq!((list(one.as_mut_ptr(), &mut count), count), (CKR_BUFFER_TOO_SMALL, 1));
        assert_eq!((list(one.as_mut_ptr(), &mut count), count), (CKR_OK, 1));
        assert!(!one[0].pFunctionList.is_null());
        assert_eq!(list(null_mut(), null_mut()), CKR_ARGUMENTS_BAD);
    }
    let ask = |version: Option<(u8, u8)>, name: Option<&str>, flags| {
        let mut version = version.map(|(major, minor)| CK_VERSION { major, minor });
        let name = name.map(|name| CString::new(name).unwrap());
        let mut found: *mut CK_INTERFACE = null_mut();
        // SAFETY: what is not NULL is there.
        let rv = unsafe {
            get(
                name.as_ref().map_or(null_mut(), |n| n.as_ptr().cast_mut().cast()),
                version.as_mut().map_or(null_mut(), std::ptr::from_mut),
                &mut found,
                flags,
            )
        };
        Rv::check(rv)
    };
    assert_eq!(ask(None, None, 0), Ok(()));
    assert_eq!(ask(Some((2, 40)), Some("PKCS 11"), 0), Ok(()));
    assert_eq!(ask(Some((3, 0)), None, 0), Err(Rv::ARGUMENTS_BAD));
    assert_eq!(ask(None, Some("Vendor"), 0), Err(Rv::ARGUMENTS_BAD));
    assert_eq!(ask(None, None, CKF_INTERFACE_FORK_SAFE), Err(Rv::ARGUMENTS_BAD));
    // Nothing else is exported.
    for function in Function::ALL {
        let mut name = function.name().as_bytes().to_vec();
        name.push(0);
        // SAFETY: the symbol is not used.
        let found = unsafe { loaded.library.get::<*mut ()>(&name) }.is_ok();
        let handed_out = matches!(
            function,
            Function::GetFunctionList | Function::GetInterfaceList | Function::GetInterface
        );
        assert_eq!(found, handed_out, "{function}");
    }
    assert_eq!(loaded.initialize(0), Ok(()));
    assert_eq!(loaded.initialize(0), Err(Rv::CRYPTOKI_ALREADY_INITIALIZED));
    assert_eq!(call!(loaded, C_Finalize(null_mut())), Ok(()));
    assert_eq!(call!(loaded, C_Finalize(null_mut())), Err(Rv::CRYPTOKI_NOT_INITIALIZED));
}

#[test]
fn lengths_that_cannot_be() {
    if !alone("lengths_that_cannot_be", &[]) {
        return;
    }
    let loaded = load();
    loaded.initialize(0).unwrap();
    let s = loaded.session();
    for (kind, digest, found, label) in [
        ("more", 41, 4, 33),
        ("huge", CK_ULONG::MAX / 2, CK_ULONG::MAX / 2, CK_ULONG::MAX / 2),
        ("unavailable", CK_ULONG::MAX, CK_ULONG::MAX, CK_ULONG::MAX),
        ("zero", 0, 0, 0),
    ] {
        assert!(say(&format!("add C_Digest,C_FindObjects,C_GetSlotList lengths {kind}")).starts_with("ok"));
        let mut mechanism = CK_MECHANISM { mechanism: CKM_SHA256, pParameter: null_mut(), ulParameterLen: 0 };
        call!(loaded, C_DigestInit(s, &mut mechanism)).unwrap();
        let (mut data, mut space, mut len) = ([1u8; 4], [0u8; 64], 40);
        call!(loaded, C_Digest(s, data.as_mut_ptr(), 4, space.as_mut_ptr(), &mut len)).unwrap();
        assert_eq!(len, digest, "{kind}: of 32 bytes where there was room for 40");
        assert!(space[..32].iter().any(|b| *b != 0) && space[32..].iter().all(|b| *b == 0));

        call!(loaded, C_FindObjectsInit(s, null_mut(), 0)).unwrap();
        let (mut objects, mut count) = ([0; 3], 0);
        call!(loaded, C_FindObjects(s, objects.as_mut_ptr(), 3, &mut count)).unwrap();
        call!(loaded, C_FindObjectsFinal(s)).unwrap();
        assert_eq!(count, found, "{kind}: of none where there was room for three");

        let mut slots = 0;
        call!(loaded, C_GetSlotList(CK_FALSE, null_mut(), &mut slots)).unwrap();
        let told = if kind == "more" { 3 } else { digest };
        assert_eq!(slots, told, "{kind}: a question for the count, of two, is told a wrong one, too");
        say("clear");

        let (mut class, mut yes, mut text) = (CKO_DATA, CK_TRUE, [b'x'; 32]);
        let attribute = |type_, value: *mut u8, len: usize| CK_ATTRIBUTE {
            type_,
            pValue: value.cast(),
            ulValueLen: len as CK_ULONG,
        };
        let mut template = [
            attribute(CKA_CLASS, (&raw mut class).cast(), size_of_val(&class)),
            attribute(CKA_PRIVATE, &raw mut yes, 1),
            attribute(CKA_LABEL, text.as_mut_ptr(), text.len()),
        ];
        let mut object = 0;
        call!(loaded, C_CreateObject(s, template.as_mut_ptr(), 3, &mut object)).unwrap();
        say(&format!("add C_GetAttributeValue lengths {kind}"));
        let mut asked = [attribute(CKA_LABEL, text.as_mut_ptr(), text.len())];
        call!(loaded, C_GetAttributeValue(s, object, asked.as_mut_ptr(), 1)).unwrap();
        assert_eq!((asked[0].ulValueLen, text), (label, [b'x'; 32]), "{kind}");
        say("clear");
        call!(loaded, C_DestroyObject(s, object)).unwrap();
    }
}

#[test]
fn counts_and_places_that_cannot_be_are_the_modules_to_refuse() {
    if !alone("counts_and_places_that_cannot_be_are_the_modules_to_refuse", &["C_GenerateRandom corrupt"]) {
        return;
    }
    let loaded = load();
    loaded.initialize(0).unwrap();
    let s = loaded.session();
    let mut value = [7u8; 4];
    for count in [CK_ULONG::MAX, CK_ULONG::MAX / 2, CK_ULONG::MAX / 24 + 1] {
        let mut one = CK_ATTRIBUTE { type_: CKA_LABEL, pValue: value.as_mut_ptr().cast(), ulValueLen: 4 };
        let invalid = Err(Rv::SESSION_HANDLE_INVALID);
        assert_eq!(call!(loaded, C_GetAttributeValue(s + 99, 1, &mut one, count)), invalid);
        let (mut found, mut told) = ([0; 1], 0);
        assert_eq!(call!(loaded, C_FindObjects(s + 99, found.as_mut_ptr(), count, &mut told)), invalid);
        assert_eq!(call!(loaded, C_GenerateRandom(s + 99, value.as_mut_ptr(), count)), invalid);
    }
    let null = null_mut();
    let bad = Err(Rv::ARGUMENTS_BAD);
    assert!(call!(loaded, C_GetAttributeValue(s, 1, null_mut(), 1)).is_err());
    assert_eq!(call!(loaded, C_GetSlotList(CK_TRUE, null_mut(), null_mut())), bad);
    assert!(call!(loaded, C_OpenSession(0, CKF_SERIAL_SESSION, null, None, null_mut())).is_err());
    assert_eq!(call!(loaded, C_GenerateRandom(s, null_mut(), 8)), bad);
    assert_eq!(value, [7; 4]);
}

#[test]
fn sessions_that_are_lost_under_other_threads_calls_crash_nothing() {
    let rules = ["C_DigestInit lose-sessions probability=0.05"];
    if !alone("sessions_that_are_lost_under_other_threads_calls_crash_nothing", &rules) {
        return;
    }
    let loaded = load();
    loaded.initialize(0).unwrap();
    let (mut slots, mut count) = ([0; 8], 8);
    call!(loaded, C_GetSlotList(CK_TRUE, slots.as_mut_ptr(), &mut count)).unwrap();
    let open = || {
        let mut session = 0;
        call!(loaded, C_OpenSession(slots[0], CKF_SERIAL_SESSION, null_mut(), None, &mut session)).unwrap();
        session
    };
    let data = vec![7u8; 4096];
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut session = open();
                let mut lost = 0;
                while lost < 40 {
                    let mut mechanism =
                        CK_MECHANISM { mechanism: CKM_SHA256, pParameter: null_mut(), ulParameterLen: 0 };
                    let (mut space, mut len) = ([0u8; 32], 32);
                    let answer = call!(loaded, C_DigestInit(session, &mut mechanism)).and_then(|()| {
                        let data_len = data.len() as CK_ULONG;
                        let data = data.as_ptr().cast_mut();
                        call!(loaded, C_Digest(session, data, data_len, space.as_mut_ptr(), &mut len))
                    });
                    match answer {
                        Ok(()) => {}
                        Err(Rv::SESSION_HANDLE_INVALID) => {
                            lost += 1;
                            session = open();
                        }
                        Err(rv) => panic!("{rv}"),
                    }
                }
            });
        }
    });
    let mut info = CK_TOKEN_INFO::default();
    call!(loaded, C_GetTokenInfo(slots[0], &mut info)).unwrap();
    call!(loaded, C_Finalize(null_mut())).unwrap();
}

#[test]
fn a_forked_child_has_no_control_thread_and_keeps_nothing_of_its_parents() {
    if !alone(
        "a_forked_child_has_no_control_thread_and_keeps_nothing_of_its_parents",
        &["C_GetInfo delay 1ms"],
    ) {
        return;
    }
    let loaded = load();
    loaded.initialize(0).unwrap();
    let (mut go, mut done) = ([0; 2], [0; 2]);
    // SAFETY: room for two descriptors each.
    assert_eq!(unsafe { (libc::pipe(go.as_mut_ptr()), libc::pipe(done.as_mut_ptr())) }, (0, 0));
    // SAFETY: the child makes system calls and calls of the library only, and ends without its parent's handlers.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let mut info = CK_INFO::default();
        // SoftHSM lets a child go on with its parent's state.
        let called = call!(loaded, C_GetInfo(&mut info)) == Ok(());
        let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
        let listens = std::fs::read_dir("/proc/self/fd").unwrap().any(|fd| {
            std::fs::read_link(fd.unwrap().path())
                .is_ok_and(|to| to.to_string_lossy().ends_with("socket.lock"))
        });
        let fine = [u8::from(called && threads == 1 && !listens)];
        // SAFETY: one byte each; then the child ends.
        unsafe {
            libc::write(done[1], fine.as_ptr().cast(), 1);
            libc::close(go[1]);
            libc::read(go[0], [0u8].as_mut_ptr().cast(), 1);
        }
        // There is no thread to wait for.
        let ended = call!(loaded, C_Finalize(null_mut())) == Ok(());
        // SAFETY: nothing of the child's is left to do.
        unsafe {
            libc::_exit(i32::from(!ended));
        }
    }
    let mut fine = [0u8];
    // SAFETY: one byte.
    assert_eq!(unsafe { libc::read(done[0], fine.as_mut_ptr().cast(), 1) }, 1);
    assert_eq!(fine, [1]);
    assert!(say("list").contains("(seen 1, hit 1)"), "what the child did is known: {}", say("list"));
    // The child lives on, and yet the socket is free at once.
    call!(loaded, C_Finalize(null_mut())).unwrap();
    assert!(!socket().exists());
    loaded.initialize(0).unwrap();
    assert!(say("list").starts_with("ok"));
    // The thread that answered takes none of the program's signals.
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let statuses = threads.map(|t| std::fs::read_to_string(t.unwrap().path().join("status")).unwrap());
    let status = statuses.into_iter().find(|s| s.starts_with("Name:\tfaulty-token\n")).unwrap();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
    let blocked = u64::from_str_radix(blocked, 16).unwrap();
    assert_ne!(blocked & (1 << (libc::SIGTERM - 1)), 0);
    // SAFETY: the child reads until this end is closed.
    unsafe {
        libc::close(go[1]);
        let mut status = -1;
        assert_eq!((libc::waitpid(child, &mut status, 0), status), (child, 0));
    }
}

#[test]
fn where_no_threads_may_be_made_there_is_no_socket() {
    if !alone("where_no_threads_may_be_made_there_is_no_socket", &["C_GetInfo error CKR_DEVICE_ERROR"]) {
        return;
    }
    let loaded = load();
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    loaded.initialize(CKF_LIBRARY_CANT_CREATE_OS_THREADS).unwrap();
    assert_eq!((socket().exists(), threads()), (false, before));
    assert_eq!(call!(loaded, C_GetInfo(&mut CK_INFO::default())), Err(Rv::DEVICE_ERROR), "the script holds");
}

#[test]
fn what_is_at_the_sockets_place_is_not_removed_unless_it_is_one() {
    if !alone("what_is_at_the_sockets_place_is_not_removed_unless_it_is_one", &[]) {
        return;
    }
    std::fs::write(socket(), "precious").unwrap();
    let loaded = load();
    assert_eq!(loaded.initialize(0), Err(Rv::GENERAL_ERROR));
    assert_eq!(std::fs::read_to_string(socket()).unwrap(), "precious");
    let not_initialized = Err(Rv::CRYPTOKI_NOT_INITIALIZED);
    assert_eq!(call!(loaded, C_GetInfo(&mut CK_INFO::default())), not_initialized, "nor is the module");
    std::fs::remove_file(socket()).unwrap();
    loaded.initialize(0).unwrap();
    assert!(Path::new(&socket()).exists());
}

/// A module with three interfaces. Each function answers with what it was given, or with its own number.
const SHIM: &str = r#"
typedef unsigned long (*function)(unsigned long, unsigned long, unsigned long, unsigned long);
static unsigned long ok() { return 0; }
static unsigned long cancel(unsigned long session, unsigned long flags) { return session * 256 + flags; }
static unsigned long sign(unsigned long s, void *p, unsigned long pl, void *d, unsigned long dl, unsigned char *out,
                          unsigned long *len) {
    for (int i = 0; i < 8; i++) out[i] = 7;
    *len = 8;
    return 0;
}
static unsigned long many(unsigned long s, void *m, unsigned long k, void *w, unsigned long wl, void *t, unsigned long c,
                          void *a, unsigned long al, unsigned long *made) {
    *made = s + k + wl + c + al;
    return 0;
}
static struct { unsigned char major, minor; function f[104]; } v32 = { 3, 2 }, v30 = { 3, 0 }, v2 = { 2, 40 };
struct interface { const char *name; void *list; unsigned long flags; };
static int vendors;
static struct interface all[] = { { "PKCS 11", &v32, 1 }, { "Vendor", &vendors, 0 }, { "PKCS 11", &v30, 0 } };
static void fill() {
    v2.f[0] = v2.f[1] = v30.f[0] = v30.f[1] = v32.f[0] = v32.f[1] = (function)ok;
    v30.f[71] = v32.f[71] = (function)cancel;
    v32.f[83] = (function)sign;
    v32.f[CUT] = (function)many;
}
unsigned long C_GetFunctionList(void **list) { fill(); *list = &v2; return 0; }
unsigned long C_GetInterfaceList(struct interface *list, unsigned long *count) {
    fill();
    if (list) for (int i = 0; i < 3; i++) list[i] = all[i];
    *count = 3;
    return 0;
}
unsigned long C_GetInterface(const char *name, unsigned char *version, struct interface **found, unsigned long flags) {
    fill();
    *found = version && version[1] == 0 ? &all[2] : &all[0];
    return 0;
}
void *vendors_list() { return &vendors; }
"#;

fn shim(dir: &Path) -> PathBuf {
    let place = |function: Function| Function::ALL.iter().position(|f| *f == function).unwrap();
    assert_eq!((place(Function::SessionCancel), place(Function::SignMessage)), (71, 83));
    build(dir, &SHIM.replace("CUT", &place(Function::UnwrapKeyAuthenticated).to_string()))
}

/// Builds a module.
fn build(dir: &Path, source: &str) -> PathBuf {
    let (c, so) = (dir.join("shim.c"), dir.join("shim.so"));
    std::fs::write(&c, source).unwrap();
    let made = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-w", "-o"])
        .args([&so, &c])
        .arg("-ldl")
        .output()
        .expect("cc runs: install the Debian package gcc");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    so
}

/// A module that shows other modules, as p11-kit's proxy does, and ours among them.
const PROXY: &str = r#"
#include <dlfcn.h>
#include <stdlib.h>
unsigned long C_GetFunctionList(void **list) {
    unsigned long (*get)(void **) = dlsym(dlopen(getenv("LIBRARY"), RTLD_NOW), "C_GetFunctionList");
    return get(list);
}
"#;

#[test]
fn a_module_that_leads_back_is_refused() {
    if !alone_with("a_module_that_leads_back_is_refused", &[], |dir| build(dir, PROXY)) {
        return;
    }
    assert_eq!(try_load().map(drop), Err(Rv::GENERAL_ERROR));
    assert_eq!(try_load().map(drop), Err(Rv::GENERAL_ERROR), "and again");
}

#[test]
fn newer_interfaces_reach_every_function_and_other_peoples_are_left_alone() {
    let name = "newer_interfaces_reach_every_function_and_other_peoples_are_left_alone";
    if !alone_with(name, &["C_SignMessage wrong-signature after=1"], shim) {
        return;
    }
    let loaded = load();
    // SAFETY: the standard fixes the type of the function of this name.
    let list = unsafe {
        type List = unsafe extern "C" fn(*mut CK_INTERFACE, *mut CK_ULONG) -> CK_RV;
        *loaded.library.get::<List>(b"C_GetInterfaceList").unwrap()
    };
    let none = CK_INTERFACE { pInterfaceName: null_mut(), pFunctionList: null_mut(), flags: 0 };
    let (mut all, mut count) = ([none; 3], 3);
    // SAFETY: room for three.
    assert_eq!((unsafe { list(all.as_mut_ptr(), &mut count) }, count), (CKR_OK, 3));
    assert_eq!(all.map(|i| i.flags), [1, 0, 0]);
    // SAFETY: the first two bytes of each are its version, or zero.
    let versions = all.map(|i| unsafe { *i.pFunctionList.cast::<[u8; 2]>() });
    assert_eq!(versions, [[3, 2], [0, 0], [3, 0]]);
    // SAFETY: the interface's version says so.
    let (new, old) = unsafe {
        (
            &*all[0].pFunctionList.cast::<CK_FUNCTION_LIST_3_2>(),
            &*all[2].pFunctionList.cast::<CK_FUNCTION_LIST_3_0>(),
        )
    };
    assert!(new.C_Sign.is_none() && old.C_LoginUser.is_none(), "what the module has not is not there");
    // SAFETY: as the shim has them.
    unsafe {
        assert_eq!(new.C_Initialize.unwrap()(null_mut()), CKR_OK);
        for cancel in [new.C_SessionCancel, old.C_SessionCancel] {
            assert_eq!(cancel.unwrap()(3, 4), 3 * 256 + 4);
        }
        let mut made = 0;
        let unwrap = new.C_UnwrapKeyAuthenticated.unwrap();
        assert_eq!(
            unwrap(1, null_mut(), 10, null_mut(), 100, null_mut(), 1000, null_mut(), 10000, &mut made),
            CKR_OK
        );
        assert_eq!(made, 11111, "ten arguments, each in its place");
        for signature in [[7; 8], [7, 7, 7, 7, 6, 7, 7, 7]] {
            let (mut out, mut len) = ([0; 8], 8);
            let sign = new.C_SignMessage.unwrap();
            assert_eq!(sign(1, null_mut(), 0, null_mut(), 0, out.as_mut_ptr(), &mut len), CKR_OK);
            assert_eq!((out, len), (signature, 8));
        }
    }
    assert!(say("count").contains("C_SessionCancel 2; "), "{}", say("count"));
}

/// Whatever the modes of files say, another user is not answered. Only root can be another user here.
#[test]
fn another_user_is_refused() {
    let name = "another_user_is_refused";
    if is_alone(name) && std::env::var_os("STRANGER").is_some() {
        assert_eq!(say("list"), "error this token is another user's");
        return;
    }
    if !alone(name, &[]) {
        return;
    }
    let loaded = load();
    loaded.initialize(0).unwrap();
    assert_eq!(say("list"), "ok");
    if ha_rig::is_root() {
        ha_rig::set_mode(&socket(), 0o666);
        ha_rig::set_mode(socket().parent().unwrap(), 0o711);
        Alone::new(name).env("STRANGER", "1").as_ordinary_user().run();
    }
}
