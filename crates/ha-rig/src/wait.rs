//! Waiting for what others do.

use std::mem::MaybeUninit;
use std::path::Path;

use rustix::fs::inotify;

/// Waits for a file to be there.
///
/// # Panics
/// When its folder is not.
pub fn await_file(path: &Path) {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    let flags = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, path.parent().unwrap(), flags).unwrap();
    let mut space = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(&watch, &mut space);
    while !path.exists() {
        events.next().unwrap();
    }
}
