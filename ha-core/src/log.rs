//! Where the log goes when this library is loaded as a PKCS#11 module: the `[log]` section put into effect.
//!
//! A Rust service that embeds the library has a `tracing` subscriber of its own, and this is not called.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tracing::Level;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{Log, LogFormat, LogLevel, LogTarget};

/// Installs the log for the process, unless the process has one already: the first caller's stays.
pub(crate) fn install(log: &Log) {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_target(false)
        .with_writer(Sink::new(&log.target));
    // An error means that the application has a log of its own: ours goes there then.
    drop(match (log.format, &log.target) {
        (LogFormat::Json, _) => builder.json().try_init(),
        // The journal and syslog stamp the time themselves.
        (LogFormat::Text, LogTarget::Journal | LogTarget::Syslog) => builder.without_time().try_init(),
        (LogFormat::Text, LogTarget::Stderr | LogTarget::File(_)) => builder.try_init(),
    });
}

/// The places a line can go to. What cannot be written there goes to standard error.
enum Sink {
    Stderr,
    File { path: PathBuf, open: Mutex<Option<File>> },
    Datagram { path: &'static str, frame: fn(u8, &[u8]) -> Vec<u8> },
}

impl Sink {
    fn new(target: &LogTarget) -> Self {
        match target {
            LogTarget::Stderr => Sink::Stderr,
            LogTarget::File(path) => Sink::File { path: path.clone(), open: Mutex::new(None) },
            LogTarget::Journal => {
                Sink::Datagram { path: "/run/systemd/journal/socket", frame: journal_frame }
            }
            LogTarget::Syslog => Sink::Datagram { path: "/dev/log", frame: syslog_frame },
        }
    }

    fn send(&self, severity: u8, line: &[u8]) -> io::Result<()> {
        match self {
            Sink::Stderr => io::stderr().write_all(line),
            Sink::File { path, open } => {
                let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
                current(path, &mut open)?.write_all(line)
            }
            Sink::Datagram { path, frame } => {
                UnixDatagram::unbound()?.send_to(&frame(severity, line), path).map(drop)
            }
        }
    }
}

/// The log file, opened again when it was moved away.
fn current<'a>(path: &Path, open: &'a mut Option<File>) -> io::Result<&'a mut File> {
    let here = std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let ours = open.as_ref().and_then(|f| f.metadata().ok()).map(|m| (m.dev(), m.ino()));
    if ours.is_none() || here != ours {
        *open = Some(OpenOptions::new().append(true).create(true).mode(0o640).open(path)?);
    }
    open.as_mut().ok_or_else(|| io::Error::other("the log file is not open"))
}

/// Syslog's number for a level (RFC 5424, section 6.2.1), which is the journal's too.
fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// The journal's native protocol. The message is a field with its length, because a line may hold anything.
fn journal_frame(severity: u8, line: &[u8]) -> Vec<u8> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut frame = format!("SYSLOG_IDENTIFIER=pkcs11-ha\nPRIORITY={severity}\nMESSAGE\n").into_bytes();
    frame.extend_from_slice(&(line.len() as u64).to_le_bytes());
    frame.extend_from_slice(line);
    frame.push(b'\n');
    frame
}

/// RFC 3164 without the time, which the daemon adds; facility daemon.
fn syslog_frame(severity: u8, line: &[u8]) -> Vec<u8> {
    const DAEMON: u8 = 3;
    let mut frame = format!("<{}>pkcs11-ha: ", DAEMON * 8 + severity).into_bytes();
    frame.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
    frame
}

/// One event's line, sent as a whole when it is dropped.
struct Line<'a> {
    sink: &'a Sink,
    severity: u8,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.sink.send(self.severity, &self.bytes) {
            let mut stderr = io::stderr().lock();
            // Nowhere is left to complain to if this fails too.
            drop(write!(stderr, "pkcs11-ha: the log cannot be written ({error}): "));
            drop(stderr.write_all(&self.bytes));
        }
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { sink: self, severity: severity(Level::WARN), bytes: Vec::new() }
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Line<'a> {
        Line { sink: self, severity: severity(*meta.level()), bytes: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_moved_away_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let sink = Sink::new(&LogTarget::File(path.clone()));
        sink.send(4, b"one\n").unwrap();
        std::fs::rename(&path, dir.path().join("log.1")).unwrap();
        sink.send(4, b"two\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two\n");
        assert_eq!(std::fs::read(dir.path().join("log.1")).unwrap(), b"one\n");
    }

    #[test]
    fn a_journal_field_carries_its_length() {
        assert_eq!(
            journal_frame(3, b"hi\n"),
            b"SYSLOG_IDENTIFIER=pkcs11-ha\nPRIORITY=3\nMESSAGE\n\x02\0\0\0\0\0\0\0hi\n"
        );
    }

    /// What a daemon at the other end of the socket gets for an event of each level.
    #[test]
    fn syslog_is_told_how_bad_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path: &'static str = dir.path().join("log").display().to_string().leak();
        let daemon = UnixDatagram::bind(path).unwrap();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(LevelFilter::TRACE)
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .with_writer(Sink::Datagram { path, frame: syslog_frame })
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!("e");
            tracing::warn!("w");
            tracing::info!("i");
            tracing::debug!("d");
            tracing::trace!("t");
        });
        let mut space = [0; 200];
        for expected in [
            "<27>pkcs11-ha: ERROR e",
            "<28>pkcs11-ha:  WARN w",
            "<30>pkcs11-ha:  INFO i",
            "<31>pkcs11-ha: DEBUG d",
            "<31>pkcs11-ha: TRACE t",
        ] {
            let len = daemon.recv(&mut space).unwrap();
            assert_eq!(String::from_utf8_lossy(&space[..len]), expected);
        }
    }
}
