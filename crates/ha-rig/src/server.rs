//! A token behind a p11-kit server: a member that can be killed and stopped.

use std::io::{BufRead, BufReader, Error, Result};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, kill_process_group};

pub use rustix::process::Signal;

use crate::find_softhsm;

/// A running server, in a process group of its own: it makes a child for each connection, and all are meant together.
/// Killed when dropped.
pub struct Server {
    child: Child,
    /// Kept open: a server that writes to nobody ends.
    out: BufReader<ChildStdout>,
    socket: PathBuf,
}

impl Server {
    /// Serves the token with this label on a socket, and answers once it can be connected to.
    ///
    /// # Errors
    /// It cannot be run, or ends at once; SoftHSM is not installed.
    pub fn start(conf: &Path, label: &str, socket: &Path) -> Result<Self> {
        if socket.exists() {
            std::fs::remove_file(socket)?;
        }
        let mut child = Command::new("p11-kit")
            .args(["server", "-f", "-n"])
            .arg(socket)
            .arg("--provider")
            .arg(find_softhsm()?)
            .arg(format!("pkcs11:token={label}"))
            .env("SOFTHSM2_CONF", conf)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|e| {
                Error::other(format!("p11-kit cannot be run ({e}): install the Debian package p11-kit"))
            })?;
        let out = BufReader::new(child.stdout.take().ok_or_else(|| Error::other("no standard output"))?);
        let mut server = Server { child, out, socket: socket.to_owned() };
        // It writes its address once it listens.
        let mut line = String::new();
        server.out.read_line(&mut line)?;
        if line.starts_with("P11_KIT_SERVER_ADDRESS=") {
            Ok(server)
        } else {
            Err(Error::other(format!("p11-kit server does not serve {label}: {line}")))
        }
    }

    /// What `P11_KIT_SERVER_ADDRESS` is for a client.
    pub fn address(&self) -> String {
        address(&self.socket)
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

/// What `P11_KIT_SERVER_ADDRESS` is for a socket.
pub(crate) fn address(socket: &Path) -> String {
    format!("unix:path={}", socket.display())
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
