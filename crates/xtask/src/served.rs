//! A SoftHSM token behind a p11-kit server: a member that can be killed.

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// A running server; killed when dropped.
pub(crate) struct Server {
    child: Child,
}

/// Longest that a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

impl Server {
    /// Serves the token with this label on a socket.
    pub(crate) fn start(socket: &Path, conf: &Path, label: &str) -> Result<Server> {
        if socket.exists() {
            std::fs::remove_file(socket)?;
        }
        let mut server = Server {
            child: Command::new("p11-kit")
                .args(["server", "-f", "-n"])
                .arg(socket)
                .arg("--provider")
                .arg(softhsm()?)
                .arg(format!("pkcs11:token={label}"))
                .env("SOFTHSM2_CONF", conf)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                // It makes a child for each connection: all are killed together.
                .process_group(0)
                .spawn()
                .context("p11-kit cannot be run")?,
        };
        let until = Instant::now() + PATIENCE;
        while UnixStream::connect(socket).is_err() {
            if server.child.try_wait()?.is_some() || Instant::now() > until {
                bail!("p11-kit server does not serve {label}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Kills it, with every child it has for its connections.
    pub(crate) fn kill(&mut self) {
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            // It may be gone already.
            _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn first(paths: &[&str], package: &str) -> Result<PathBuf> {
    match paths.iter().map(PathBuf::from).find(|p| p.exists()) {
        Some(path) => Ok(path),
        None => bail!("none of {} is there; is the package {package} installed?", paths.join(", ")),
    }
}

/// SoftHSM's module.
pub(crate) fn softhsm() -> Result<PathBuf> {
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
pub(crate) fn client() -> Result<PathBuf> {
    first(
        &[
            "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so",
            "/usr/lib/aarch64-linux-gnu/pkcs11/p11-kit-client.so",
        ],
        "p11-kit-modules",
    )
}
