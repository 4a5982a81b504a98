//! Where Debian's packages put what the tests need.

use std::io::{Error, ErrorKind, Result};
use std::path::PathBuf;

use tempfile::TempDir;

/// The first of these files that is there.
fn first(paths: &[&str], package: &str) -> Result<PathBuf> {
    let found = paths.iter().map(PathBuf::from).find(|p| p.exists());
    found.ok_or_else(|| {
        let why = format!("none of {paths:?} is there: install the Debian package {package}");
        Error::new(ErrorKind::NotFound, why)
    })
}

/// SoftHSM's module.
///
/// # Panics
/// When it is not installed, with the package's name.
pub fn softhsm() -> PathBuf {
    find_softhsm().unwrap_or_else(|error| panic!("{error}"))
}

/// SoftHSM's module.
///
/// # Errors
/// It is not installed, with the package's name.
pub fn find_softhsm() -> Result<PathBuf> {
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
///
/// # Panics
/// When it is not installed, with the package's name.
pub fn p11_kit_client() -> PathBuf {
    find_p11_kit_client().unwrap_or_else(|error| panic!("{error}"))
}

/// p11-kit's client module.
///
/// # Errors
/// It is not installed, with the package's name.
pub fn find_p11_kit_client() -> Result<PathBuf> {
    first(
        &[
            "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so",
            "/usr/lib/aarch64-linux-gnu/pkcs11/p11-kit-client.so",
            "/usr/lib/pkcs11/p11-kit-client.so",
        ],
        "p11-kit-modules",
    )
}

/// Where files are kept in memory.
const MEMORY: &str = "/dev/shm";

/// A new folder in memory, where there is a place for that with so much room, in bytes. What is truncated or synced on a
/// disk waits, on a busy one for seconds.
pub fn folder_in_memory(prefix: &str, room: u64) -> Option<TempDir> {
    let about = rustix::fs::statvfs(MEMORY).ok()?;
    if about.f_bavail.saturating_mul(about.f_frsize) < room {
        return None;
    }
    tempfile::Builder::new().prefix(prefix).tempdir_in(MEMORY).ok()
}
