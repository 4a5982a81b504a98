//! What the core logs in a history: shown in its trace where that is read, and searched for what no log may hold (G9).

use std::io::Write;
use std::sync::Once;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::scheduler::Scheduler;

/// Sends this process's log here, from the first call on.
pub fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(LevelFilter::DEBUG)
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .with_writer(Lines)
            .finish();
        // A program that has a log of its own keeps it.
        _ = tracing::subscriber::set_global_default(subscriber);
    });
}

struct Lines;

struct Line(Vec<u8>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Vec::new())
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        Scheduler::log(String::from_utf8_lossy(&self.0).trim_end());
    }
}
