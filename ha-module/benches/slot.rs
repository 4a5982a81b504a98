//! The slot beside the bare token, through the C interface of both: rounds in turn, ratios of medians.
//!
//! `cargo bench -p ha-module` prints the table of `docs/speed.md`. One thread, `deadline = "off"`, two private SoftHSM
//! members; "bare" is SoftHSM itself with one of the same tokens. Figures of single rounds mean little on a shared
//! machine; the ratio of the medians of interleaved rounds is what counts.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use cryptoki_sys::*;
use ha_rig::{PIN, Tokens, softhsm};

const ROUNDS: usize = 7;

/// A module's function list with a logged-in session.
struct Opened {
    f: &'static CK_FUNCTION_LIST,
    slot: CK_SLOT_ID,
    session: CK_SESSION_HANDLE,
}

macro_rules! call {
    ($opened:expr, $name:ident ( $($argument:expr),* $(,)? )) => {{
        let f = $opened.f.$name.unwrap();
        // SAFETY: the module is initialised, and every pointer is to a live value of the length given beside it.
        let rv = unsafe { f($($argument),*) };
        assert_eq!(rv, CKR_OK, stringify!($name));
    }};
}

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
    call!(opened, C_Initialize(std::ptr::null_mut()));
    let mut slots = [0; 16];
    let mut count = 16;
    call!(opened, C_GetSlotList(CK_TRUE, slots.as_mut_ptr(), &mut count));
    for slot in &slots[..count as usize] {
        let mut info = CK_TOKEN_INFO::default();
        call!(opened, C_GetTokenInfo(*slot, &mut info));
        if info.label.starts_with(label.as_bytes()) {
            opened.slot = *slot;
        }
    }
    let mut session = 0;
    call!(
        opened,
        C_OpenSession(
            opened.slot,
            CKF_SERIAL_SESSION | CKF_RW_SESSION,
            std::ptr::null_mut(),
            None,
            &mut session
        )
    );
    opened.session = session;
    call!(opened, C_Login(session, CKU_USER, PIN.as_ptr().cast_mut(), PIN.len() as CK_ULONG));
    opened
}

fn find(opened: &Opened, class: CK_ULONG, id: u8) -> CK_OBJECT_HANDLE {
    let (mut class, mut id) = (class, [id]);
    let mut template = [
        CK_ATTRIBUTE {
            type_: CKA_CLASS,
            pValue: (&raw mut class).cast(),
            ulValueLen: size_of::<CK_ULONG>() as CK_ULONG,
        },
        CK_ATTRIBUTE { type_: CKA_ID, pValue: id.as_mut_ptr().cast(), ulValueLen: 1 },
    ];
    call!(opened, C_FindObjectsInit(opened.session, template.as_mut_ptr(), 2));
    let (mut handle, mut count) = (0, 0);
    call!(opened, C_FindObjects(opened.session, &mut handle, 1, &mut count));
    call!(opened, C_FindObjectsFinal(opened.session));
    assert_eq!(count, 1);
    handle
}

fn sign(opened: &Opened, mechanism: CK_ULONG, key: CK_OBJECT_HANDLE) {
    let mut mechanism = CK_MECHANISM { mechanism, pParameter: std::ptr::null_mut(), ulParameterLen: 0 };
    call!(opened, C_SignInit(opened.session, &mut mechanism, key));
    let (mut data, mut space, mut len) = ([7u8; 32], [0u8; 512], 512);
    call!(opened, C_Sign(opened.session, data.as_mut_ptr(), 32, space.as_mut_ptr(), &mut len));
}

fn digest(opened: &Opened) {
    let mut mechanism =
        CK_MECHANISM { mechanism: CKM_SHA256, pParameter: std::ptr::null_mut(), ulParameterLen: 0 };
    call!(opened, C_DigestInit(opened.session, &mut mechanism));
    let (mut data, mut space, mut len) = ([7u8; 32], [0u8; 32], 32);
    call!(opened, C_Digest(opened.session, data.as_mut_ptr(), 32, space.as_mut_ptr(), &mut len));
}

fn time(count: u32, mut f: impl FnMut()) -> f64 {
    let started = Instant::now();
    for _ in 0..count {
        f();
    }
    started.elapsed().as_secs_f64() * 1e6 / f64::from(count)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    // Cargo's test runner asks benches too whether they have tests.
    if std::env::args().any(|a| a == "--list") {
        return;
    }
    if std::env::var_os("SLOT_BENCH_CHILD").is_none() {
        // The module and SoftHSM find their configurations in the environment: the bench runs in a child that has both.
        let tokens = Tokens::new(2);
        let config = tokens.path().join("ha.toml");
        std::fs::write(&config, tokens.config(false, &std::env::var("SLOT_BENCH_GROUP").unwrap_or_default()))
            .unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .env("SLOT_BENCH_CHILD", "1")
            .env("PKCS11_HA_CONF", &config)
            .env("SOFTHSM2_CONF", tokens.conf(0))
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let module: PathBuf = {
        let me = std::env::current_exe().unwrap();
        me.ancestors()
            .map(|d| d.join("libha_module.so"))
            .find(|p| p.exists())
            .expect("libha_module.so is built beside this bench")
    };
    for (kind, id) in [("EC:prime256v1", "01"), ("rsa:2048", "02"), ("GENERIC:32", "03")] {
        let verb = if id == "03" { "--keygen" } else { "--keypairgen" };
        let mut command = Command::new("pkcs11-tool");
        command.arg("--module").arg(&module).args([
            "--login",
            "--pin",
            PIN,
            verb,
            "--key-type",
            kind,
            "--id",
            id,
        ]);
        if id == "03" {
            command.arg("--usage-sign");
        }
        let made = command.output().unwrap();
        assert!(made.status.success(), "{made:?}");
    }
    let bare = load(&softhsm(), "member-a");
    let slot = load(&module, "ha1");
    let keys =
        |o: &Opened| (find(o, CKO_PRIVATE_KEY, 1), find(o, CKO_PRIVATE_KEY, 2), find(o, CKO_SECRET_KEY, 3));
    let (of_bare, of_slot) = (keys(&bare), keys(&slot));
    type Row<'a> =
        (&'a str, u32, Box<dyn Fn(&Opened, (CK_OBJECT_HANDLE, CK_OBJECT_HANDLE, CK_OBJECT_HANDLE))>);
    let rows: Vec<Row<'_>> = vec![
        ("ECDSA P-256", 2000, Box::new(|o, k| sign(o, CKM_ECDSA, k.0))),
        ("RSA-2048", 200, Box::new(|o, k| sign(o, CKM_SHA256_RSA_PKCS, k.1))),
        ("HMAC-SHA256", 5000, Box::new(|o, k| sign(o, CKM_SHA256_HMAC, k.2))),
        (
            "SHA-256, 32 bytes",
            std::env::var("SLOT_BENCH_N").map_or(20000, |n| n.parse().unwrap()),
            Box::new(|o, _| digest(o)),
        ),
        (
            "random, 32 bytes",
            20000,
            Box::new(|o, _| {
                let mut space = [0u8; 32];
                call!(o, C_GenerateRandom(o.session, space.as_mut_ptr(), 32));
            }),
        ),
        (
            "open and close a session",
            20000,
            Box::new(|o, _| {
                let mut session = 0;
                call!(o, C_OpenSession(o.slot, CKF_SERIAL_SESSION, std::ptr::null_mut(), None, &mut session));
                call!(o, C_CloseSession(session));
            }),
        ),
        (
            "session info",
            50000,
            Box::new(|o, _| {
                let mut info = CK_SESSION_INFO::default();
                call!(o, C_GetSessionInfo(o.session, &mut info));
            }),
        ),
    ];
    println!(
        "| operation, token keys, one thread | bare, µs | slot, µs | bare / slot |\n| --- | --- | --- | --- |"
    );
    let only = std::env::var("SLOT_BENCH_ROW").unwrap_or_default();
    for (name, count, f) in rows.into_iter().filter(|r| r.0.contains(&only)) {
        let (mut b, mut s) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            b.push(time(count, || f(&bare, of_bare)));
            s.push(time(count, || f(&slot, of_slot)));
        }
        let (b, s) = (median(b), median(s));
        println!("| {name} | {b:.2} | {s:.2} | {:.2} |", b / s);
    }
}
