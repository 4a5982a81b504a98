//! Where the log goes when this library is loaded as a PKCS#11 module: the `[log]` section put into effect.
//!
//! A Rust service that embeds the library has a `tracing` subscriber of its own, and this is not called.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

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
    Datagram { path: &'static str, frame: fn(&[u8]) -> Vec<u8> },
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

    fn send(&self, line: &[u8]) -> io::Result<()> {
        match self {
            Sink::Stderr => io::stderr().write_all(line),
            Sink::File { path, open } => {
                let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
                current(path, &mut open)?.write_all(line)
            }
            Sink::Datagram { path, frame } => UnixDatagram::unbound()?.send_to(&frame(line), path).map(drop),
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

/// The journal's native protocol: one field with its length, because a line may hold anything.
fn journal_frame(line: &[u8]) -> Vec<u8> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut frame = b"SYSLOG_IDENTIFIER=pkcs11-ha\nMESSAGE\n".to_vec();
    frame.extend_from_slice(&(line.len() as u64).to_le_bytes());
    frame.extend_from_slice(line);
    frame.push(b'\n');
    frame
}

/// RFC 3164 without the time, which the daemon adds; facility daemon, severity warning.
fn syslog_frame(line: &[u8]) -> Vec<u8> {
    let mut frame = b"<28>pkcs11-ha: ".to_vec();
    frame.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
    frame
}

/// One event's line, sent as a whole when it is dropped.
struct Line<'a> {
    sink: &'a Sink,
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
        if let Err(error) = self.sink.send(&self.bytes) {
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
        Line { sink: self, bytes: Vec::new() }
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
        sink.send(b"one\n").unwrap();
        std::fs::rename(&path, dir.path().join("log.1")).unwrap();
        sink.send(b"two\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two\n");
        assert_eq!(std::fs::read(dir.path().join("log.1")).unwrap(), b"one\n");
    }

    #[test]
    fn a_journal_field_carries_its_length() {
        assert_eq!(journal_frame(b"hi\n"), b"SYSLOG_IDENTIFIER=pkcs11-ha\nMESSAGE\n\x02\0\0\0\0\0\0\0hi\n");
    }
}
