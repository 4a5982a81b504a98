//! SoftHSM tokens and p11-kit servers of a test's own.
#![allow(dead_code, unreachable_pub)] // each test file uses a part of it

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ha_member::{Instance, ModuleConfig, ModuleConnector};
use ha_token::{Attribute, Connector, Mechanism, ObjectHandle, Selector, SessionHandle, Token, UserType, ck};

pub const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";
pub const PIN: &[u8] = b"1234";

/// A SoftHSM directory with its configuration.
pub struct Store {
    pub dir: tempfile::TempDir,
}

impl Store {
    /// With one initialised token for each label.
    pub fn with(labels: &[&str]) -> Store {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("tokens")).expect("tokens");
        let conf =
            format!("directories.tokendir = {}\nlog.level = ERROR\n", dir.path().join("tokens").display());
        std::fs::write(dir.path().join("a.conf"), conf).expect("configuration");
        let store = Store { dir };
        for label in labels {
            store.add(label);
        }
        store
    }

    pub fn add(&self, label: &str) {
        let out = Command::new("softhsm2-util")
            .env("SOFTHSM2_CONF", self.conf())
            .args(["--init-token", "--free", "--label", label, "--so-pin", "12345678", "--pin", "1234"])
            .output()
            .expect("softhsm2-util");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }

    pub fn conf(&self) -> PathBuf {
        self.dir.path().join("a.conf")
    }

    pub fn tokens(&self) -> PathBuf {
        self.dir.path().join("tokens")
    }

    pub fn config(&self, selector: Selector) -> ModuleConfig {
        ModuleConfig {
            path: SOFTHSM.into(),
            instance: Instance::Private,
            env: vec![("SOFTHSM2_CONF".into(), self.conf().display().to_string())],
            selector,
        }
    }

    pub fn connector(&self, label: &str) -> ModuleConnector {
        ModuleConnector::new(self.config(by_label(label)))
    }
}

pub fn by_label(label: &str) -> Selector {
    Selector { label: Some(label.into()), ..Selector::default() }
}

/// A p11-kit server for a store's token, in a process group of its own.
pub struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    pub fn start(store: &Store, label: &str) -> Server {
        let socket = store.dir.path().join("p11.sock");
        let _ = std::fs::remove_file(&socket);
        let child = Command::new("p11-kit")
            .env("SOFTHSM2_CONF", store.conf())
            .args(["server", "-f", "-n"])
            .arg(&socket)
            .args(["--provider", SOFTHSM, &format!("pkcs11:token={label}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("p11-kit server");
        let server = Server { child, socket };
        while UnixStream::connect(&server.socket).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        server
    }

    pub fn config(&self, label: &str) -> ModuleConfig {
        ModuleConfig {
            path: client(),
            instance: Instance::Private,
            env: vec![("P11_KIT_SERVER_ADDRESS".into(), format!("unix:path={}", self.socket.display()))],
            selector: by_label(label),
        }
    }

    pub fn signal(&self, signal: i32) {
        let group = -i32::try_from(self.child.id()).expect("a process id");
        // SAFETY: signals the process group that this test started.
        unsafe { libc::kill(group, signal) };
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
        let _ = self.child.wait();
    }
}

pub fn client() -> PathBuf {
    let known = [
        "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so",
        "/usr/lib/aarch64-linux-gnu/pkcs11/p11-kit-client.so",
        "/usr/lib/pkcs11/p11-kit-client.so",
    ];
    known.iter().map(PathBuf::from).find(|p| p.exists()).expect("p11-kit-client.so")
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
    std::fs::copy(SOFTHSM, &own).expect("a copy");
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

/// Waits for a file to be there.
pub fn await_file(path: &Path) {
    while !path.exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
