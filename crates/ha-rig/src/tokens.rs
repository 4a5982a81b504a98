//! The tokens of a group.

use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;

use crate::{
    PIN, Server, Store, find_p11_kit_client, find_softhsm, folder_in_memory, p11_kit_client, server,
    set_mode, softhsm, store,
};

/// N tokens, `member-a`, `member-b`, … if not labelled otherwise, and what serves them.
pub struct Tokens {
    /// Before the folder: they end before it is removed.
    servers: Vec<Mutex<Option<Server>>>,
    stores: Vec<Store>,
    labels: Vec<String>,
    /// Whether no server is to be started any more.
    ended: AtomicBool,
    dir: TempDir,
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

    /// As [`new`](Self::new), in memory where there is a place for that: for tests that make very many objects.
    ///
    /// # Panics
    /// When SoftHSM cannot be had.
    pub fn in_memory(count: usize) -> Self {
        let labels: Vec<String> = (0..count).map(|i| format!("member-{}", name(i))).collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        match folder_in_memory("tokens-", 0) {
            Some(dir) => Tokens::labelled_in(dir, &labels),
            None => Tokens::labelled(&labels),
        }
    }

    /// Makes tokens with these labels.
    ///
    /// # Panics
    /// When SoftHSM cannot be had.
    pub fn labelled(labels: &[&str]) -> Self {
        Tokens::labelled_in(tempfile::tempdir().unwrap(), labels)
    }

    fn labelled_in(dir: TempDir, labels: &[&str]) -> Self {
        Tokens::try_labelled_in(dir, labels).unwrap()
    }

    /// As [`new`](Self::new), in this folder, for programs that are no tests. What they need to be served is there too.
    ///
    /// # Errors
    /// SoftHSM or p11-kit cannot be had, in words that say what to install; or the folder cannot be written.
    pub fn try_in(dir: TempDir, count: usize) -> Result<Self> {
        find_softhsm()?;
        find_p11_kit_client()?;
        let labels: Vec<String> = (0..count).map(|i| format!("member-{}", name(i))).collect();
        Tokens::try_labelled_in(dir, &labels.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn try_labelled_in(dir: TempDir, labels: &[&str]) -> Result<Self> {
        let make = |(i, label): (usize, &&str)| {
            let store = Store::try_named(dir.path(), &name(i))?;
            store.try_add(label)?;
            Ok(store)
        };
        Ok(Tokens {
            stores: labels.iter().enumerate().map(make).collect::<Result<_>>()?,
            servers: labels.iter().map(|_| Mutex::new(None)).collect(),
            labels: labels.iter().map(|l| (*l).to_owned()).collect(),
            ended: AtomicBool::new(false),
            dir,
        })
    }

    /// Makes a token with this label beside another one, in the same folder: a module shows both.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn add_beside(&self, i: usize, label: &str) {
        self.stores[i].add(label);
    }

    /// How many tokens there are.
    pub fn count(&self) -> usize {
        self.labels.len()
    }

    /// The SoftHSM configuration of a token.
    pub fn conf(&self, i: usize) -> PathBuf {
        self.stores[i].conf().to_owned()
    }

    /// The folder that holds a token.
    pub fn store(&self, i: usize) -> PathBuf {
        self.stores[i].tokens().to_owned()
    }

    /// Takes a token away: whoever looks for it from here on finds an empty folder in its place.
    ///
    /// # Panics
    /// When it is away already.
    pub fn hide(&self, i: usize) {
        self.try_hide(i).unwrap();
    }

    /// As [`hide`](Self::hide).
    ///
    /// # Errors
    /// It is away already, or cannot be moved.
    pub fn try_hide(&self, i: usize) -> Result<()> {
        store::try_hide(&self.store(i))
    }

    /// Brings a hidden token back.
    ///
    /// # Panics
    /// When it is not hidden.
    pub fn restore(&self, i: usize) {
        self.try_restore(i).unwrap();
    }

    /// As [`restore`](Self::restore).
    ///
    /// # Errors
    /// It is not hidden, or cannot be moved.
    pub fn try_restore(&self, i: usize) -> Result<()> {
        store::try_restore(&self.store(i))
    }

    fn socket(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("{}.sock", name(i)))
    }

    /// Starts the p11-kit server of a token and waits until it takes connections.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn serve(&self, i: usize) {
        self.try_serve(i).unwrap();
    }

    /// As [`serve`](Self::serve).
    ///
    /// # Errors
    /// It cannot be started; it is killed meanwhile; all of them [ended](Self::end).
    pub fn try_serve(&self, i: usize) -> Result<()> {
        let starting = {
            let mut place = self.servers[i].lock().map_err(|_| Error::other("another thread panicked"))?;
            if self.ended.load(Ordering::Acquire) {
                return Err(Error::other("the tokens are not served any more"));
            }
            let (server, starting) = Server::begin(self.stores[i].conf(), &self.labels[i], &self.socket(i))?;
            *place = Some(server);
            starting
        };
        // Where others can kill it.
        starting.listens()
    }

    /// Kills every server, also one that is just being started. No other one can be started from here on.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        for server in &self.servers {
            drop(server.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }

    /// Kills the server with all the children it has for its connections.
    ///
    /// # Panics
    /// When another thread panicked while it used the same server.
    pub fn kill(&self, i: usize) {
        drop(self.servers[i].lock().unwrap().take());
    }

    /// Lets no file that the server writes grow past so many bytes, or any again: what a full disk is to it.
    ///
    /// # Errors
    /// It does not run, or the system refuses.
    pub fn limit_files(&self, i: usize, bytes: Option<u64>) -> Result<()> {
        let server = self.servers[i].lock().unwrap_or_else(PoisonError::into_inner);
        server.as_ref().ok_or_else(|| Error::other("the server does not run"))?.limit_files(bytes)
    }

    /// Sends a signal to the server with all its children; answers whether it is there.
    pub fn signal(&self, i: usize, signal: rustix::process::Signal) -> bool {
        let server = self.servers[i].lock().unwrap_or_else(PoisonError::into_inner);
        server.as_ref().map(|server| server.signal(signal)).is_some()
    }

    /// Stops the server with all its children where they are: calls to it hang until it is killed, or goes on.
    ///
    /// # Panics
    /// When it does not run.
    pub fn freeze(&self, i: usize) {
        assert!(self.signal(i, rustix::process::Signal::STOP), "it runs");
    }

    /// Lets a server that was stopped go on: calls that hang in it return.
    ///
    /// # Panics
    /// When it does not run.
    pub fn thaw(&self, i: usize) {
        assert!(self.signal(i, rustix::process::Signal::CONT), "it runs");
    }

    /// How many connections its server has.
    ///
    /// # Panics
    /// When it does not run.
    pub fn connections(&self, i: usize) -> usize {
        self.servers[i].lock().unwrap().as_ref().expect("it runs").connections()
    }

    /// The configuration, with lines of its own for the group. Where they set no deadline there is none, unless the
    /// environment's `HA_TEST_DEADLINE` says one: for trying the tests with it.
    pub fn config(&self, served: bool, group: &str) -> String {
        let recovery =
            if group.contains("recovery") { "" } else { "[group.recovery]\ninterval = \"100ms\"\n" };
        let deadline = match std::env::var("HA_TEST_DEADLINE") {
            _ if group.lines().any(|line| line.starts_with("deadline")) => String::new(),
            Ok(deadline) => format!("deadline = {deadline:?}\n"),
            Err(_) => "deadline = \"off\"\n".to_owned(),
        };
        self.config_of(served, &format!("{deadline}{group}\n{recovery}"))
    }

    /// The configuration, with nothing in it but these lines for the group and the members.
    pub fn config_of(&self, served: bool, group: &str) -> String {
        let mut text = format!("state_dir = {:?}\n[[group]]\nlabel = \"ha1\"\n{group}\n", self.state());
        for (i, label) in self.labels.iter().enumerate() {
            let n = name(i);
            let (module, env) = if served {
                let address = server::address(&self.socket(i));
                (p11_kit_client(), format!("P11_KIT_SERVER_ADDRESS = {address:?}"))
            } else {
                (softhsm(), format!("SOFTHSM2_CONF = {:?}", self.conf(i)))
            };
            text.push_str(&format!("[[group.member]]\nname = \"{n}\"\nmodule = {module:?}\ntoken = {label:?}\nenv = {{ {env} }}\n"));
        }
        text
    }

    /// Writes a configuration, so that nobody else may write it, whatever the umask here.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_config(&self, text: &str) -> PathBuf {
        let path = self.path().join("ha.toml");
        std::fs::write(&path, text).unwrap();
        set_mode(&path, 0o600);
        path
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

    /// The folder of the ledger.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The ledger's file, once there is one.
    ///
    /// # Panics
    /// When there is none.
    pub fn ledger(&self) -> PathBuf {
        let mut entries = std::fs::read_dir(self.state()).unwrap().map(|e| e.unwrap().path());
        entries.find(|p| p.extension().is_some_and(|e| e == "ledger")).expect("a ledger")
    }

    /// The folder of everything.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}
