//! The control socket: one thread that answers lines, from `C_Initialize` to `C_Finalize`.
//!
//! Its folder must be the user's own and nobody else may write there; the socket is made with mode 0600, and who connects
//! must be the same user, or root. Where several processes have one token, the first that comes listens; when it ends,
//! another takes over. What they are told holds for all of them (see `kept`).

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Uid, geteuid};

use crate::commands;
use crate::kept::{beside, open_own};
use crate::live::Live;

/// How often one that does not listen looks whether it can.
const TURN: Duration = Duration::from_millis(100);
/// More than any command has.
const LONGEST: usize = 64 << 10;
/// So many may ask at a time; who comes then takes the place of who came first.
const MOST_CLIENTS: usize = 16;

/// The descriptors that a forked child must not keep: its parent's end would not be seen. -1 is none.
static OPEN: [AtomicI32; 2] = [AtomicI32::new(-1), AtomicI32::new(-1)];

/// In the child of a fork: gives up what is its parent's.
pub(crate) fn in_child() {
    for place in &OPEN {
        let fd = place.swap(-1, Ordering::SeqCst);
        if fd >= 0 {
            // SAFETY: the thread that owns it does not exist in this process, and `close` may be called here.
            unsafe { libc::close(fd) };
        }
    }
}

/// Whether a socket may be made there.
///
/// # Errors
/// Why not, in words.
pub fn check(socket: &Path) -> Result<(), String> {
    let folder = match socket.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let refused = |reason: String| Err(format!("control socket {} refused: {reason}", socket.display()));
    let about = match std::fs::metadata(folder) {
        Ok(about) if about.is_dir() => about,
        Ok(_) => return refused(format!("{} is no folder", folder.display())),
        Err(error) => return refused(format!("{}: {error}", folder.display())),
    };
    let me = geteuid().as_raw();
    if about.uid() != me {
        return refused(format!(
            "its folder {} belongs to user {}, not to user {me}, who runs this",
            folder.display(),
            about.uid()
        ));
    }
    if about.mode() & 0o022 != 0 {
        let mode = about.mode() & 0o7777;
        return refused(format!(
            "others may write to its folder {} (mode {mode:04o}): chmod go-w",
            folder.display()
        ));
    }
    match SocketAddrUnix::new(socket) {
        Ok(_) => Ok(()),
        Err(_) => refused("its path is longer than a socket's can be".into()),
    }
}

/// The thread that answers.
#[derive(Debug)]
pub(crate) struct Control {
    stop: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

impl Control {
    /// Listens when this returns, unless another process of the same token does.
    ///
    /// # Errors
    /// Why it cannot, in words.
    pub(crate) fn start(socket: &Path, live: &'static Live) -> Result<Control, String> {
        check(socket)?;
        let refused = |error: io::Error| format!("control socket {}: {error}", socket.display());
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let stop = Arc::new(eventfd(0, flags).map_err(|e| refused(e.into()))?);
        let listening = Listening::take(socket).map_err(refused)?;
        let (path, stopped) = (socket.to_owned(), Arc::clone(&stop));
        let run = move || {
            block_signals();
            if let Err(error) = run(&path, listening, &stopped, live) {
                crate::say(&format!("control socket {}: {error}", path.display()));
            }
        };
        let thread = std::thread::Builder::new().name("faulty-token".into()).spawn(run).map_err(refused)?;
        Ok(Control { stop, thread })
    }

    /// Ends the thread and removes the socket. It is never in a call of the module, so this does not hang.
    pub(crate) fn stop(self) {
        // It cannot be full: this is the only writing to it.
        _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        _ = self.thread.join();
    }
}

/// The application's signals are not for this thread.
fn block_signals() {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: it is written whole.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: a set, and no place for the old one.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut()) };
}

/// The socket, and the lock that says whose it is.
struct Listening {
    socket: OwnedFd,
    path: std::path::PathBuf,
    _lock: std::fs::File,
}

impl Listening {
    /// `None` when another process listens.
    fn take(path: &Path) -> io::Result<Option<Listening>> {
        let lock = open_own(&beside(path, "lock"), true)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        match std::fs::symlink_metadata(path) {
            Ok(about) if about.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::other("something that is no socket is there")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Before it has a name: from its first moment nobody else may connect.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&socket, 16)?;
        let [first, second] = &OPEN;
        first.store(socket.as_raw_fd(), Ordering::SeqCst);
        second.store(lock.as_raw_fd(), Ordering::SeqCst);
        Ok(Some(Listening { socket, path: path.to_owned(), _lock: lock }))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // While the lock is held: it is ours.
        _ = std::fs::remove_file(&self.path);
        OPEN.iter().for_each(|place| place.store(-1, Ordering::SeqCst));
    }
}

fn run(path: &Path, first: Option<Listening>, stop: &OwnedFd, live: &Live) -> io::Result<()> {
    let mut listening = first;
    loop {
        if let Some(listening) = &listening {
            return serve(listening, stop, live);
        }
        if wait(&mut [PollFd::new(stop, PollFlags::IN)], Some(TURN))? {
            return Ok(());
        }
        listening = Listening::take(path)?;
    }
}

/// Whether something happened in time.
fn wait(fds: &mut [PollFd<'_>], time: Option<Duration>) -> io::Result<bool> {
    let time = time.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: i64::from(t.subsec_nanos()) });
    match poll(fds, time.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

struct Client {
    socket: OwnedFd,
    read: Vec<u8>,
}

fn serve(listening: &Listening, stop: &OwnedFd, live: &Live) -> io::Result<()> {
    let mut clients: Vec<Client> = Vec::new();
    loop {
        let ready = {
            let own = [PollFd::new(stop, PollFlags::IN), PollFd::new(&listening.socket, PollFlags::IN)];
            let theirs = clients.iter().map(|client| PollFd::new(&client.socket, PollFlags::IN));
            let mut fds: Vec<PollFd<'_>> = own.into_iter().chain(theirs).collect();
            wait(&mut fds, None)?;
            fds.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<bool>>()
        };
        let (own, theirs) = ready.split_at(2);
        if own.first() == Some(&true) {
            return Ok(());
        }
        let mut theirs = theirs.iter();
        clients.retain_mut(|client| theirs.next() != Some(&true) || client.go_on(live));
        if own.get(1) == Some(&true) {
            match accept(listening) {
                Ok(client) => {
                    if clients.len() >= MOST_CLIENTS {
                        clients.remove(0);
                    }
                    clients.extend(client);
                }
                // Where there is no descriptor left it would be asked again at once, for as long as that is so.
                Err(_) => _ = wait(&mut [PollFd::new(stop, PollFlags::IN)], Some(TURN))?,
            }
        }
    }
}

/// The user whose token it is, and root.
fn may_ask(peer: Uid, own: Uid) -> bool {
    peer == own || peer.is_root()
}

/// Lets somebody in who may be; `None` is somebody who may not.
fn accept(listening: &Listening) -> io::Result<Option<Client>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::accept_with(&listening.socket, flags)?;
    let peer = rustix::net::sockopt::socket_peercred(&socket)?;
    if !may_ask(peer.uid, geteuid()) {
        _ = rustix::io::write(&socket, b"error this token is another user's\n");
        return Ok(None);
    }
    Ok(Some(Client { socket, read: Vec::new() }))
}

impl Client {
    /// Answers what has come; false when it is done.
    fn go_on(&mut self, live: &Live) -> bool {
        let mut space = [0; 4096];
        match rustix::io::read(&self.socket, &mut space) {
            Ok(0) => return false,
            Ok(count) => self.read.extend_from_slice(space.get(..count).unwrap_or_default()),
            Err(Errno::INTR | Errno::AGAIN) => return true,
            Err(_) => return false,
        }
        while let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.read.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).into_owned();
            let counts = live.counts();
            let answer = live.kept.with(|state| commands::answer(&line, state, live.kept.script(), &counts));
            let answer = answer.unwrap_or_else(|error| format!("error {error}")) + "\n";
            // An answer is far shorter than what the kernel keeps for who reads slowly.
            if !rustix::io::write(&self.socket, answer.as_bytes()).is_ok_and(|n| n == answer.len()) {
                return false;
            }
        }
        self.read.len() <= LONGEST
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        for (mode, refused) in [(0o700, false), (0o755, false), (0o770, true), (0o1777, true), (0o702, true)]
        {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            let answer = check(&socket);
            assert_eq!(answer.is_err(), refused, "{mode:o}: {answer:?}");
        }
        assert!(check(Path::new("/proc/version/s")).unwrap_err().contains("no folder"));
        assert!(check(Path::new("/nowhere/s")).unwrap_err().contains("/nowhere"));
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        assert!(check(&dir.path().join("x".repeat(108))).unwrap_err().contains("longer"));
    }

    #[test]
    fn the_same_user_may_ask_and_root() {
        let [root, one, other] = [Uid::ROOT, Uid::from_raw(1000), Uid::from_raw(1001)];
        assert!(may_ask(one, one) && may_ask(root, one) && may_ask(root, root));
        assert!(!may_ask(other, one) && !may_ask(one, root));
    }

    #[test]
    fn one_listens_and_the_next_takes_over_what_a_dead_one_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = Listening::take(&path).unwrap().expect("nobody else");
        assert!(Listening::take(&path).unwrap().is_none());
        assert_eq!(std::fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(first);
        assert!(!path.exists());
        // One that was killed has removed nothing.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left behind");
        drop(Listening::take(&path).unwrap().expect("taken over"));
        std::fs::write(&path, "precious").unwrap();
        assert!(Listening::take(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
