//! [`open_plain`]: opening a file in a folder that others may put files into.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Opens a file that is one, under its own name: no link to another one, which would be locked or written in its place, and
/// nothing that keeps who opens or reads it waiting, as a pipe does.
///
/// # Errors
/// The operating system's; `InvalidInput` when it is something else than a file.
pub fn open_plain(options: &mut OpenOptions, path: &Path) -> Result<File, Error> {
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is no plain file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_a_pipe_and_a_folder_are_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "it").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        let pipe = std::ffi::CString::new(at("pipe").to_str().unwrap()).unwrap();
        // SAFETY: the name is a string that ends with a zero.
        assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
        for name in ["link", "folder", "pipe"] {
            for options in [OpenOptions::new().read(true), OpenOptions::new().write(true)] {
                assert!(open_plain(options, &at(name)).is_err(), "{name}");
            }
        }
        assert!(open_plain(OpenOptions::new().read(true), &at("file")).is_ok());
        assert!(open_plain(OpenOptions::new().write(true).create(true), &at("new")).is_ok());
    }
}
