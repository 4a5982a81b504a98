//! Where Debian's packages put what the tests need.

use std::path::PathBuf;

/// The first of these files that is there.
fn first(paths: &[&str], package: &str) -> PathBuf {
    let found = paths.iter().map(PathBuf::from).find(|p| p.exists());
    found.unwrap_or_else(|| panic!("none of {paths:?} is there: install the Debian package {package}"))
}

/// SoftHSM's module.
///
/// # Panics
/// When it is not installed, with the package's name.
pub fn softhsm() -> PathBuf {
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
    first(
        &[
            "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so",
            "/usr/lib/aarch64-linux-gnu/pkcs11/p11-kit-client.so",
            "/usr/lib/pkcs11/p11-kit-client.so",
        ],
        "p11-kit-modules",
    )
}
