//! The test rig: real SoftHSM tokens, each in a folder of its own, reached directly or through a p11-kit server that
//! can be killed. What goes wrong here panics: it is for tests only.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use tempfile::TempDir;

/// The user PIN of every token.
pub const PIN: &str = "1234";
/// The security officer's PIN of every token.
pub const SO_PIN: &str = "12345678";

/// The first of these files that is there.
fn first(paths: &[&str], package: &str) -> PathBuf {
    let found = paths.iter().map(PathBuf::from).find(|p| p.exists());
    found.unwrap_or_else(|| panic!("none of {paths:?} is there: install the Debian package {package}"))
}

/// SoftHSM's module.
///
/// # Panics
/// When it is not installed, with the package's name.
pub fn softhsm() -> PathBuf {
    first(
        &[
            "/usr/lib/softhsm/libsofthsm2.so",
            "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
            "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
        ],
        "softhsm2",
    )
}

/// p11-kit's client module.
///
/// # Panics
/// When it is not installed, with the package's name.
pub fn p11_kit_client() -> PathBuf {
    first(
        &[
            "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so",
            "/usr/lib/aarch64-linux-gnu/pkcs11/p11-kit-client.so",
        ],
        "p11-kit-modules",
    )
}

/// N tokens, `member-a`, `member-b`, … if not labelled otherwise, and what serves them.
pub struct Tokens {
    dir: TempDir,
    labels: Vec<String>,
    servers: Vec<Mutex<Option<Child>>>,
}

/// The name of the member at this place: `a`, `b`, …
pub fn name(i: usize) -> String {
    char::from(b'a' + i as u8).to_string()
}

impl Tokens {
    /// Makes that many tokens, each with a configuration and a folder of its own.
    ///
    /// # Panics
    /// When SoftHSM cannot be had.
    pub fn new(count: usize) -> Self {
        let labels: Vec<String> = (0..count).map(|i| format!("member-{}", name(i))).collect();
        Tokens::labelled(&labels.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Makes tokens with these labels.
    ///
    /// # Panics
    /// When SoftHSM cannot be had.
    pub fn labelled(labels: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let servers = labels.iter().map(|_| Mutex::new(None)).collect();
        let tokens = Tokens { dir, labels: labels.iter().map(|l| (*l).to_owned()).collect(), servers };
        for (i, label) in labels.iter().enumerate() {
            let conf = tokens.conf(i);
            let store = tokens.dir.path().join(format!("tokens-{}", name(i)));
            std::fs::create_dir(&store).unwrap();
            std::fs::write(
                &conf,
                format!(
                    "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
                    store.display()
                ),
            )
            .unwrap();
            let made = Command::new("softhsm2-util")
                .args(["--init-token", "--free", "--label", label, "--so-pin", SO_PIN, "--pin", PIN])
                .env("SOFTHSM2_CONF", &conf)
                .output()
                .expect("softhsm2-util runs: install the Debian package softhsm2");
            assert!(made.status.success(), "{made:?}");
        }
        tokens
    }

    /// The SoftHSM configuration of a token.
    pub fn conf(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("{}.conf", name(i)))
    }

    /// The folder that holds a token.
    pub fn store(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("tokens-{}", name(i)))
    }

    /// Takes a token away: whoever looks for it from here on finds an empty folder in its place.
    ///
    /// # Panics
    /// When it is away already.
    pub fn hide(&self, i: usize) {
        let store = self.store(i);
        std::fs::rename(&store, self.away(i)).unwrap();
        std::fs::create_dir(&store).unwrap();
    }

    /// Brings a hidden token back.
    ///
    /// # Panics
    /// When it is not hidden.
    pub fn restore(&self, i: usize) {
        let store = self.store(i);
        std::fs::remove_dir_all(&store).unwrap();
        std::fs::rename(self.away(i), &store).unwrap();
    }

    fn away(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("away-{}", name(i)))
    }

    fn socket(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("{}.sock", name(i)))
    }

    /// Starts the p11-kit server of a token and waits until it takes connections.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn serve(&self, i: usize) {
        let socket = self.socket(i);
        drop(std::fs::remove_file(&socket));
        let mut child = Command::new("p11-kit")
            .args(["server", "-f", "-n"])
            .arg(&socket)
            .arg("--provider")
            .arg(softhsm())
            .arg(format!("pkcs11:token={}", self.labels[i]))
            .env("SOFTHSM2_CONF", self.conf(i))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("p11-kit runs: install the Debian package p11-kit");
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "p11-kit server ended at once");
            std::thread::yield_now();
        }
        *self.servers[i].lock().unwrap() = Some(child);
    }

    /// Kills the server with all the children it has for its connections.
    ///
    /// # Panics
    /// When another thread panicked while it used the same server.
    pub fn kill(&self, i: usize) {
        if let Some(mut child) = self.servers[i].lock().unwrap().take() {
            let group = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
            // It may be gone already.
            _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            _ = child.wait();
        }
    }

    /// Stops the server with all its children where they are: calls to it hang until it is killed.
    ///
    /// # Panics
    /// When it does not run.
    pub fn freeze(&self, i: usize) {
        let server = self.servers[i].lock().unwrap();
        let group = rustix::process::Pid::from_raw(server.as_ref().unwrap().id() as i32).unwrap();
        rustix::process::kill_process_group(group, rustix::process::Signal::STOP).unwrap();
    }

    /// The configuration, with lines of its own for the group.
    pub fn config(&self, served: bool, group: &str) -> String {
        let mut text = format!(
            "state_dir = {:?}\n[[group]]\nlabel = \"ha1\"\ndeadline = \"off\"\n{group}\n",
            self.dir.path().join("state")
        );
        if !group.contains("recovery") {
            text.push_str("[group.recovery]\ninterval = \"100ms\"\n");
        }
        for (i, label) in self.labels.iter().enumerate() {
            let n = name(i);
            let (module, env) = if served {
                (
                    p11_kit_client(),
                    format!("P11_KIT_SERVER_ADDRESS = \"unix:path={}\"", self.socket(i).display()),
                )
            } else {
                (softhsm(), format!("SOFTHSM2_CONF = {:?}", self.conf(i)))
            };
            text.push_str(&format!("[[group.member]]\nname = \"{n}\"\nmodule = {module:?}\ntoken = {label:?}\nenv = {{ {env} }}\n"));
        }
        text
    }

    /// What `pkcs11-tool`, logged in, says of the bare token.
    ///
    /// # Panics
    /// When it is not installed.
    pub fn bare(&self, i: usize, arguments: &[&str]) -> String {
        let output = Command::new("pkcs11-tool")
            .arg("--module")
            .arg(softhsm())
            .args(["--login", "--pin", PIN])
            .args(arguments)
            .env("SOFTHSM2_CONF", self.conf(i))
            .output()
            .expect("pkcs11-tool runs: install the Debian package opensc");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    /// The folder of everything.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        for i in 0..self.labels.len() {
            self.kill(i);
        }
    }
}
