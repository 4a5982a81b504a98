//! A test in a process of its own: as an ordinary user, with a small disk, with an environment of its own.
//!
//! The process is this test binary again, told to run the one test. Nothing here needs root, and nothing is skipped:
//! what a machine does not allow is done another way, or panics.

use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// Names the test that a process was started for.
const INNER: &str = "PKCS11_HA_TEST_INNER";
/// Debian's `nobody`.
const NOBODY: u32 = 65534;

/// Whether this process was started by [`Alone`] for the test `name`: then its body is run.
pub fn is_alone(name: &str) -> bool {
    std::env::var_os(INNER).is_some_and(|inner| inner == name)
}

/// A process to be started for one test.
pub struct Alone {
    name: String,
    home: TempDir,
    environment: Vec<(String, std::ffi::OsString)>,
    ordinary: bool,
    disk: Option<(PathBuf, u32)>,
    limited: bool,
}

impl Alone {
    /// For the test `name` of this binary. Its home and its folder for temporary files are new and empty, and nothing in
    /// its environment leads to a configuration.
    ///
    /// # Panics
    /// When no folder can be made.
    pub fn new(name: &str) -> Self {
        Alone {
            name: name.into(),
            home: tempfile::tempdir().unwrap(),
            environment: Vec::new(),
            ordinary: false,
            disk: None,
            limited: false,
        }
    }

    /// Its home.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().into()));
        self
    }

    /// As an ordinary user, to whom permissions mean something: `nobody` if this is root.
    #[must_use]
    pub fn as_ordinary_user(mut self) -> Self {
        self.ordinary = true;
        self
    }

    /// With a disk of so many KiB in the folder `name` of its home.
    ///
    /// # Panics
    /// When the folder cannot be made.
    #[must_use]
    pub fn with_small_disk(mut self, name: &str, kib: u32) -> Self {
        let disk = self.home().join(name);
        std::fs::create_dir(&disk).unwrap();
        self.disk = Some((disk, kib));
        self
    }

    /// Able to live under [`limit_files`]: a write past the limit is an error there, and no signal that ends it.
    #[must_use]
    pub fn with_limited_files(mut self) -> Self {
        self.limited = true;
        self
    }

    /// Runs it; the test must pass there. Answers what was written to standard output and standard error.
    ///
    /// # Panics
    /// When the test fails, or the process cannot be started.
    pub fn run(self) -> String {
        let said = self.output();
        let text =
            String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
        assert!(said.status.success() && text.contains("1 passed"), "{:?}\n{text}", said.status);
        text
    }

    fn output(&self) -> Output {
        let mut exe = std::env::current_exe().unwrap();
        let lowered = self.ordinary && is_root();
        if lowered {
            // Where the binary is the other user may not go.
            let copy = self.home().join("test");
            std::fs::copy(exe, &copy).unwrap();
            exe = copy;
            give_to(self.home(), NOBODY);
        }
        let mut command = match &self.disk {
            None if self.limited => {
                let mut command = Command::new("sh");
                command.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"]).arg(exe);
                command
            }
            None => Command::new(exe),
            Some((disk, kib)) => {
                let mut command = Command::new("unshare");
                if !is_root() || lowered {
                    command.args(["--user", "--map-root-user"]);
                }
                let script = "mount -t tmpfs -o \"size=$1k,mode=700\" tmpfs \"$2\" && shift 2 && exec \"$@\"";
                command
                    .args(["--mount", "--", "sh", "-c", script, "sh", &kib.to_string()])
                    .arg(disk)
                    .arg(exe);
                command
            }
        };
        command
            .args([&self.name, "--exact", "--nocapture", "--test-threads=1", "--include-ignored"])
            .current_dir(self.home())
            .stdin(Stdio::null())
            .env(INNER, &self.name)
            .env("HOME", self.home())
            .env("TMPDIR", self.home());
        for name in ["PKCS11_HA_CONF", "PKCS11_HA_PIN", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "SOFTHSM2_CONF"]
        {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        if lowered {
            command.uid(NOBODY).gid(NOBODY);
        }
        // The copy of this test may still be open for writing in a child that another test is just starting.
        loop {
            match command.output() {
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                    std::thread::yield_now()
                }
                output => return output.unwrap(),
            }
        }
    }
}

/// Whether a process may have a disk of its own: not in every container.
pub fn can_mount() -> bool {
    let mut command = Command::new("unshare");
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let dir = tempfile::tempdir().unwrap();
    command.args(["--mount", "--", "mount", "-t", "tmpfs", "tmpfs"]).arg(dir.path());
    command.output().is_ok_and(|o| o.status.success())
}

/// Lets no file of this process grow past so many bytes, or any file again: what a full disk is to one process.
///
/// # Panics
/// When the system refuses.
pub fn limit_files(bytes: Option<u64>) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: bytes.or(maximum), maximum }).unwrap();
}

/// Whether permissions mean nothing to this process.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A user who is not this one: only root can give anything to them.
pub fn another_user() -> u32 {
    NOBODY
}

/// Gives a folder with everything in it to a user.
///
/// # Panics
/// When that is not allowed.
pub fn give_to(path: &Path, user: u32) {
    chown(path, Some(user), Some(user)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).unwrap() {
            give_to(&entry.unwrap().path(), user);
        }
    }
}

/// Changes the mode of a file or folder.
///
/// # Panics
/// When that is not allowed.
pub fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
