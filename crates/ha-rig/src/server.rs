//! A token behind a p11-kit server: a member that can be killed and stopped.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, kill_process_group, prlimit};

pub use rustix::process::Signal;

use crate::find_softhsm;

/// How long a server may take until it listens.
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// A running server, in a process group of its own: it makes a child for each connection, and all are meant together.
/// Killed when dropped.
pub struct Server {
    child: Child,
    /// Kept open: a server that writes to nobody ends.
    _out: OwnedFd,
    socket: PathBuf,
}

/// A server that does not listen yet.
pub(crate) struct Starting {
    out: File,
    label: String,
}

impl Server {
    /// Serves the token with this label on a socket, and answers once it can be connected to.
    ///
    /// # Errors
    /// It cannot be run, or ends at once, or does not listen within half a minute; SoftHSM is not installed.
    pub fn start(conf: &Path, label: &str, socket: &Path) -> Result<Self> {
        Server::of(&find_softhsm()?, &[("SOFTHSM2_CONF", conf)], label, socket)
    }

    /// As [`start`](Self::start), of a token of any module, with variables of its own in the environment.
    ///
    /// # Errors
    /// It cannot be run, or ends at once, or does not listen within half a minute.
    pub fn of(module: &Path, env: &[(&str, &Path)], label: &str, socket: &Path) -> Result<Self> {
        let (server, starting) = Server::begin_of(module, env, label, socket)?;
        starting.listens()?;
        Ok(server)
    }

    /// As [`start`](Self::start), without waiting until it listens.
    pub(crate) fn begin(conf: &Path, label: &str, socket: &Path) -> Result<(Self, Starting)> {
        Server::begin_of(&find_softhsm()?, &[("SOFTHSM2_CONF", conf)], label, socket)
    }

    fn begin_of(
        module: &Path,
        env: &[(&str, &Path)],
        label: &str,
        socket: &Path,
    ) -> Result<(Self, Starting)> {
        if socket.exists() {
            std::fs::remove_file(socket)?;
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|dir| dir.join("p11-kit").is_file()) {
            return Err(Error::other("there is no p11-kit: install the Debian package p11-kit"));
        }
        // A write past a limit is an error to it, and no signal that ends it.
        let mut child = Command::new("sh")
            .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh", "p11-kit", "server", "-f", "-n"])
            .arg(socket)
            .arg("--provider")
            .arg(module)
            .arg(format!("pkcs11:token={label}"))
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let out = child.stdout.take().ok_or_else(|| Error::other("no standard output"));
        let server = Server { child, _out: out?.into(), socket: socket.to_owned() };
        let starting = Starting { out: server._out.try_clone()?.into(), label: label.to_owned() };
        Ok((server, starting))
    }

    /// What `P11_KIT_SERVER_ADDRESS` is for a client.
    pub fn address(&self) -> String {
        address(&self.socket)
    }

    /// How many connections it has: it makes a child for each.
    ///
    /// # Panics
    /// Where there is no `/proc`.
    pub fn connections(&self) -> usize {
        self.children().count()
    }

    fn children(&self) -> impl Iterator<Item = Pid> {
        let own = self.child.id().to_string();
        let is_child = move |process: &std::fs::DirEntry| {
            let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
            // Name and state go before the parent's number; the name may have anything in it.
            stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)) == Some(&own)
        };
        let number = |process: std::fs::DirEntry| process.file_name().to_str()?.parse().ok();
        let processes = std::fs::read_dir("/proc").expect("processes").flatten();
        processes.filter(is_child).filter_map(number).filter_map(Pid::from_raw)
    }

    /// Lets no file that it writes grow past so many bytes, or any again: what a full disk is to it.
    ///
    /// # Errors
    /// The system refuses.
    pub fn limit_files(&self, bytes: Option<u64>) -> Result<()> {
        // It has our own.
        let maximum = getrlimit(Resource::Fsize).maximum;
        let limit = |process: Pid| {
            let wanted = Rlimit { current: bytes.or(maximum), maximum };
            prlimit(Some(process), Resource::Fsize, wanted)
        };
        // First itself: children that it makes meanwhile have the limit then.
        for process in Pid::from_raw(self.child.id() as i32).into_iter().chain(self.children()) {
            match limit(process) {
                // A connection that has just ended.
                Ok(_) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Kills it, with every child it has for its connections.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        _ = self.child.wait();
    }

    /// Sends a signal to the server and all of its children.
    pub fn signal(&self, signal: Signal) {
        if let Some(group) = Pid::from_raw(self.child.id() as i32) {
            // It may be gone already.
            _ = kill_process_group(group, signal);
        }
    }
}

impl Starting {
    /// Waits until it listens: it writes its address then. Ends at once where the server is killed.
    pub(crate) fn listens(mut self) -> Result<()> {
        let until = Instant::now() + STARTS_WITHIN;
        let mut line = Vec::new();
        let mut space = [0; 256];
        while !line.contains(&b'\n') {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(Error::other)?;
            let is_there = match poll(&mut [PollFd::new(&self.out, PollFlags::IN)], Some(&left)) {
                Err(Errno::INTR) => continue,
                answer => answer? > 0,
            };
            if !is_there {
                let words =
                    format!("p11-kit server does not listen for {} within {STARTS_WITHIN:?}", self.label);
                return Err(Error::new(ErrorKind::TimedOut, words));
            }
            match self.out.read(&mut space)? {
                0 => break,
                n => line.extend_from_slice(&space[..n]),
            }
        }
        if line.starts_with(b"P11_KIT_SERVER_ADDRESS=") {
            Ok(())
        } else {
            let line = String::from_utf8_lossy(&line);
            Err(Error::other(format!("p11-kit server does not serve {}: {line}", self.label)))
        }
    }
}

/// What `P11_KIT_SERVER_ADDRESS` is for a socket.
pub(crate) fn address(socket: &Path) -> String {
    format!("unix:path={}", socket.display())
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
