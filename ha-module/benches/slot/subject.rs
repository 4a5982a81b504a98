//! What is measured: a module through its C interface, in a process of its own.

use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Barrier;
use std::time::Instant;

use cryptoki_sys::*;
use ha_rig::PIN;

/// Which keys an operation uses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    Token,
    Session,
    /// The operation has no key.
    None,
}

impl Keys {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Keys::Token => "token",
            Keys::Session => "session",
            Keys::None => "–",
        }
    }
}

/// An operation that is measured.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Calls in one round, by each of one or two threads.
    pub(crate) count: u32,
    pub(crate) has_keys: bool,
    run: fn(&Opened, &Handles),
}

/// Every operation.
pub(crate) const ROWS: [Row; 7] = [
    Row { name: "ECDSA P-256", count: 2000, has_keys: true, run: |o, k| sign(o, CKM_ECDSA, k.ec) },
    Row { name: "RSA-2048", count: 200, has_keys: true, run: |o, k| sign(o, CKM_SHA256_RSA_PKCS, k.rsa) },
    Row { name: "HMAC-SHA256", count: 5000, has_keys: true, run: |o, k| sign(o, CKM_SHA256_HMAC, k.secret) },
    Row { name: "SHA-256, 32 bytes", count: 20000, has_keys: false, run: |o, _| digest(o) },
    Row { name: "random, 32 bytes", count: 20000, has_keys: false, run: |o, _| random(o) },
    Row { name: "open and close a session", count: 20000, has_keys: false, run: |o, _| open_and_close(o) },
    Row { name: "session info", count: 50000, has_keys: false, run: |o, _| info(o) },
];

/// A module's function list with a logged-in session.
#[derive(Clone, Copy)]
pub(crate) struct Opened {
    f: &'static CK_FUNCTION_LIST,
    slot: CK_SLOT_ID,
    session: CK_SESSION_HANDLE,
}

/// The keys of one kind.
#[derive(Clone, Copy, Default)]
struct Handles {
    ec: CK_OBJECT_HANDLE,
    rsa: CK_OBJECT_HANDLE,
    secret: CK_OBJECT_HANDLE,
}

macro_rules! call {
    ($opened:expr, $name:ident ( $($argument:expr),* $(,)? )) => {{
        let f = $opened.f.$name.unwrap();
        // SAFETY: the module is initialised, and every pointer is to a live value of the length given beside it.
        let rv = unsafe { f($($argument),*) };
        assert_eq!(rv, CKR_OK, stringify!($name));
    }};
}

/// Loads and initialises a module, and logs in to its token of this label.
fn load(path: &Path, label: &str) -> Opened {
    // SAFETY: a PKCS#11 module's initialisers may run here, before any other thread.
    let library = Box::leak(Box::new(unsafe { libloading::Library::new(path) }.unwrap()));
    // SAFETY: the symbol has this type in every PKCS#11 module.
    let get: libloading::Symbol<'_, unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV> =
        unsafe { library.get(b"C_GetFunctionList") }.unwrap();
    let mut list = std::ptr::null_mut();
    // SAFETY: `list` is a place for the pointer.
    assert_eq!(unsafe { get(&mut list) }, CKR_OK);
    // SAFETY: the module gave a valid list, which lives as long as the module: for ever here.
    let mut opened = Opened { f: unsafe { &*list }, slot: 0, session: 0 };
    // As a program with threads must: without it SoftHSM takes no locks.
    let mut args = CK_C_INITIALIZE_ARGS {
        CreateMutex: None,
        DestroyMutex: None,
        LockMutex: None,
        UnlockMutex: None,
        flags: CKF_OS_LOCKING_OK,
        pReserved: std::ptr::null_mut(),
    };
    call!(opened, C_Initialize((&raw mut args).cast()));
    let mut slots = [0; 64];
    let mut count = 64;
    call!(opened, C_GetSlotList(CK_TRUE, slots.as_mut_ptr(), &mut count));
    let slot = slots[..count as usize].iter().find(|slot| {
        let mut info = CK_TOKEN_INFO::default();
        call!(opened, C_GetTokenInfo(**slot, &mut info));
        info.label.starts_with(label.as_bytes())
    });
    opened.slot = *slot.expect("the token is there");
    opened.session = open(&opened, CKF_RW_SESSION);
    call!(opened, C_Login(opened.session, CKU_USER, PIN.as_ptr().cast_mut(), PIN.len() as CK_ULONG));
    opened
}

fn open(opened: &Opened, flags: CK_FLAGS) -> CK_SESSION_HANDLE {
    let mut session = 0;
    call!(
        opened,
        C_OpenSession(opened.slot, CKF_SERIAL_SESSION | flags, std::ptr::null_mut(), None, &mut session)
    );
    session
}

fn attribute<T>(kind: CK_ULONG, value: &mut T) -> CK_ATTRIBUTE {
    CK_ATTRIBUTE {
        type_: kind,
        pValue: std::ptr::from_mut(value).cast(),
        ulValueLen: size_of::<T>() as CK_ULONG,
    }
}

fn mechanism(mechanism: CK_ULONG) -> CK_MECHANISM {
    CK_MECHANISM { mechanism, pParameter: std::ptr::null_mut(), ulParameterLen: 0 }
}

fn find(opened: &Opened, mut class: CK_ULONG, id: u8) -> CK_OBJECT_HANDLE {
    let mut id = [id];
    let mut template = [attribute(CKA_CLASS, &mut class), attribute(CKA_ID, &mut id)];
    call!(opened, C_FindObjectsInit(opened.session, template.as_mut_ptr(), 2));
    let (mut handle, mut count) = (0, 0);
    call!(opened, C_FindObjects(opened.session, &mut handle, 1, &mut count));
    call!(opened, C_FindObjectsFinal(opened.session));
    assert_eq!(count, 1);
    handle
}

/// The token keys that [`make_token_keys`](crate::make_token_keys) has made.
fn token_keys(opened: &Opened) -> Handles {
    Handles {
        ec: find(opened, CKO_PRIVATE_KEY, 1),
        rsa: find(opened, CKO_PRIVATE_KEY, 2),
        secret: find(opened, CKO_SECRET_KEY, 3),
    }
}

/// Makes session keys.
fn session_keys(opened: &Opened) -> Handles {
    let (mut yes, mut no) = (CK_TRUE, CK_FALSE);
    let mut curve = [6u8, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    let (mut bits, mut bytes): (CK_ULONG, CK_ULONG) = (2048, 32);
    let (mut class, mut generic) = (CKO_SECRET_KEY, CKK_GENERIC_SECRET);
    let mut pair = |kind: CK_ULONG, public: &mut [CK_ATTRIBUTE]| {
        let mut private = [attribute(CKA_TOKEN, &mut no), attribute(CKA_SIGN, &mut yes)];
        let (mut a, mut b) = (0, 0);
        call!(
            opened,
            C_GenerateKeyPair(
                opened.session,
                &mut mechanism(kind),
                public.as_mut_ptr(),
                public.len() as CK_ULONG,
                private.as_mut_ptr(),
                2,
                &mut a,
                &mut b
            )
        );
        b
    };
    let ec = pair(CKM_EC_KEY_PAIR_GEN, &mut [attribute(CKA_EC_PARAMS, &mut curve)]);
    let rsa = pair(CKM_RSA_PKCS_KEY_PAIR_GEN, &mut [attribute(CKA_MODULUS_BITS, &mut bits)]);
    let mut template = [
        attribute(CKA_CLASS, &mut class),
        attribute(CKA_KEY_TYPE, &mut generic),
        attribute(CKA_VALUE_LEN, &mut bytes),
        attribute(CKA_TOKEN, &mut no),
        attribute(CKA_SIGN, &mut yes),
    ];
    let mut secret = 0;
    call!(
        opened,
        C_GenerateKey(
            opened.session,
            &mut mechanism(CKM_GENERIC_SECRET_KEY_GEN),
            template.as_mut_ptr(),
            5,
            &mut secret
        )
    );
    Handles { ec, rsa, secret }
}

fn sign(opened: &Opened, kind: CK_ULONG, key: CK_OBJECT_HANDLE) {
    call!(opened, C_SignInit(opened.session, &mut mechanism(kind), key));
    let (mut data, mut space, mut len) = ([7u8; 32], [0u8; 512], 512);
    call!(opened, C_Sign(opened.session, data.as_mut_ptr(), 32, space.as_mut_ptr(), &mut len));
}

fn digest(opened: &Opened) {
    call!(opened, C_DigestInit(opened.session, &mut mechanism(CKM_SHA256)));
    let (mut data, mut space, mut len) = ([7u8; 32], [0u8; 32], 32);
    call!(opened, C_Digest(opened.session, data.as_mut_ptr(), 32, space.as_mut_ptr(), &mut len));
}

fn random(opened: &Opened) {
    let mut space = [0u8; 32];
    call!(opened, C_GenerateRandom(opened.session, space.as_mut_ptr(), 32));
}

fn open_and_close(opened: &Opened) {
    let session = open(opened, 0);
    call!(opened, C_CloseSession(session));
}

fn info(opened: &Opened) {
    let mut info = CK_SESSION_INFO::default();
    call!(opened, C_GetSessionInfo(opened.session, &mut info));
}

/// Serves rounds: a line `row keys threads` in, a line of microseconds for one operation of one thread out. With two
/// modules each thread has one for itself; with one, each has a session of its own.
pub(crate) fn serve(modules: &[(&Path, &str, Option<&Path>)]) {
    let opened: Vec<(Opened, [Handles; 3])> = modules
        .iter()
        .map(|(path, label, conf)| {
            if let Some(conf) = conf {
                // SAFETY: no other thread runs here yet; SoftHSM reads it in C_Initialize.
                unsafe { std::env::set_var("SOFTHSM2_CONF", conf) };
            }
            let opened = load(path, label);
            (opened, [token_keys(&opened), session_keys(&opened), Handles::default()])
        })
        .collect();
    let mut out = std::io::stdout();
    writeln!(out, "ready").unwrap();
    out.flush().unwrap();
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let mut words = line.split(' ').map(|w| w.parse::<usize>().unwrap());
        let (row, keys, threads) =
            (&ROWS[words.next().unwrap()], words.next().unwrap(), words.next().unwrap());
        let barrier = Barrier::new(threads);
        // Two threads' work, by however many.
        let count = (row.count * 2 / threads as u32).max(100).min(row.count);
        let slowest = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|i| {
                    let (of, handles) = &opened[i % opened.len()];
                    let (mut of, handles) = (*of, handles[keys]);
                    let barrier = &barrier;
                    scope.spawn(move || {
                        of.session = open(&of, CKF_RW_SESSION);
                        (0..count / 10 + 1).for_each(|_| (row.run)(&of, &handles));
                        barrier.wait();
                        let started = Instant::now();
                        (0..count).for_each(|_| (row.run)(&of, &handles));
                        let took = started.elapsed().as_secs_f64() * 1e6 / f64::from(count);
                        call!(of, C_CloseSession(of.session));
                        took
                    })
                })
                .collect();
            workers.into_iter().map(|w| w.join().unwrap()).fold(0.0, f64::max)
        });
        writeln!(out, "{slowest}").unwrap();
        out.flush().unwrap();
    }
}
