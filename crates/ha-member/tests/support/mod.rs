//! The rig's tokens and servers as this crate's connectors see them, and modules that forward to SoftHSM.
#![allow(dead_code, unused_imports, unreachable_pub)] // each test file uses a part of it

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ha_member::{Instance, ModuleConfig, ModuleConnector};
pub use ha_rig::{Server, Signal, Store, await_file, p11_kit_client, softhsm};
use ha_token::{Attribute, Connector, Mechanism, ObjectHandle, Selector, SessionHandle, Token, UserType, ck};

pub const PIN: &[u8] = ha_rig::PIN.as_bytes();

pub fn config(store: &Store, selector: Selector) -> ModuleConfig {
    ModuleConfig {
        path: softhsm(),
        instance: Instance::Private,
        env: vec![("SOFTHSM2_CONF".into(), store.conf().display().to_string())],
        selector,
    }
}

pub fn connector(store: &Store, label: &str) -> ModuleConnector {
    ModuleConnector::new(config(store, by_label(label)))
}

pub fn by_label(label: &str) -> Selector {
    Selector { label: Some(label.into()), ..Selector::default() }
}

/// Serves a store's token.
pub fn serve(store: &Store, label: &str) -> Server {
    Server::start(store.conf(), label, &store.dir().join("p11.sock")).expect("p11-kit server")
}

/// The way to a token that is served.
pub fn remote(server: &Server, label: &str) -> ModuleConfig {
    ModuleConfig {
        path: p11_kit_client(),
        instance: Instance::Private,
        env: vec![("P11_KIT_SERVER_ADDRESS".into(), server.address())],
        selector: by_label(label),
    }
}

pub fn login(token: &dyn Token) -> SessionHandle {
    let session = token.open_session(true).expect("a session");
    token.login(session, UserType::User, Some(PIN)).expect("login");
    session
}

pub fn token_label(token: &dyn Token) -> String {
    token.token_info().expect("token information").label
}

pub fn connect(connector: &ModuleConnector) -> Arc<dyn Token> {
    connector.connect().expect("connects")
}

/// An AES key that may do everything, as a token or session object.
pub fn aes_key(token: &dyn Token, session: SessionHandle, on_token: bool, label: &str) -> ObjectHandle {
    let template = vec![
        Attribute::bool(ck::CKA_TOKEN, on_token),
        Attribute::bytes(ck::CKA_LABEL, label),
        Attribute::ulong(ck::CKA_VALUE_LEN, 32),
        Attribute::bool(ck::CKA_SENSITIVE, true),
        Attribute::bool(ck::CKA_EXTRACTABLE, true),
        Attribute::bool(ck::CKA_WRAP, true),
        Attribute::bool(ck::CKA_UNWRAP, true),
        Attribute::bool(ck::CKA_ENCRYPT, true),
        Attribute::bool(ck::CKA_DECRYPT, true),
    ];
    token.generate_key(session, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &template).expect("a key")
}

pub fn find(token: &dyn Token, session: SessionHandle, label: &str) -> Vec<ObjectHandle> {
    token.find_objects_init(session, &vec![Attribute::bytes(ck::CKA_LABEL, label)]).expect("search");
    let found = token.find_objects(session, 10).expect("found");
    token.find_objects_final(session).expect("search ends");
    found
}

/// A module that forwards to a SoftHSM of its own, built in `dir`, with more C in it.
///
/// `extra` may define `static void change(void **list)`, which sees the function list as an array (`list[1]` is
/// `C_Initialize`, and so on in the standard's order), and use `wait_while(file)`, which makes `inside` while it waits.
pub fn shim(dir: &Path, extra: &str, flags: &[&str]) -> PathBuf {
    // New names each time: a file that is loaded must not be written over.
    static BUILT: AtomicUsize = AtomicUsize::new(0);
    let number = BUILT.fetch_add(1, Ordering::Relaxed);
    let file = |name: &str| dir.join(format!("{number}-{name}"));
    let (c, so, own) = (file("shim.c"), file("shim.so"), file("softhsm.so"));
    std::fs::copy(softhsm(), &own).expect("a copy");
    let change = if extra.contains("change(") { "" } else { "static void change(void **list) {}" };
    let source = format!(
        r#"
#include <dlfcn.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#define DIR "{dir}"
static void *original[70];
static void wait_while(const char *file) {{
    if (access(file, F_OK) == 0) close(open(DIR "/inside", O_CREAT | O_WRONLY, 0600));
    while (access(file, F_OK) == 0) usleep(1000);
}}
{extra}
{change}
unsigned long C_GetFunctionList(void **answer) {{
    static void *list[70];
    void *module = dlopen("{own}", RTLD_NOW | RTLD_LOCAL);
    unsigned long (*get)(void **) = dlsym(module, "C_GetFunctionList");
    void *given;
    unsigned long rv = get(&given);
    if (rv) return rv;
    memcpy(original, given, 69 * sizeof(void *));
    memcpy(list, given, 69 * sizeof(void *));
    change(list);
    *answer = list;
    return 0;
}}
"#,
        dir = dir.display(),
        own = own.display(),
    );
    std::fs::write(&c, source).expect("source");
    build(&[c.as_path()], &so, flags);
    so
}

/// Compiles a shared library.
pub fn build(sources: &[&Path], so: &Path, flags: &[&str]) {
    let out = Command::new("cc")
        .args(["-shared", "-fPIC", "-w", "-o"])
        .arg(so)
        .args(sources)
        .args(flags)
        .arg("-ldl")
        .output()
        .expect("cc");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
