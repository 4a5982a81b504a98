//! The system packages that the commands need: installed as root on Debian and Ubuntu, named otherwise.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// A package, with a file of it that shows that it is there.
pub(crate) type Package = (&'static str, &'static [&'static str]);

/// What the demo needs.
pub(crate) const DEMO: &[Package] = &[
    ("softhsm2", &["/usr/bin/softhsm2-util"]),
    ("opensc", &["/usr/bin/pkcs11-tool"]),
    ("p11-kit", &["/usr/bin/p11-kit"]),
    (
        "p11-kit-modules",
        &[
            "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so",
            "/usr/lib/aarch64-linux-gnu/pkcs11/p11-kit-client.so",
        ],
    ),
    ("openssl", &["/usr/bin/openssl"]),
    ("build-essential", &["/usr/include/stdio.h"]),
];

/// What the tests need.
pub(crate) const TEST: &[Package] = &[
    ("softhsm2", &["/usr/bin/softhsm2-util"]),
    ("opensc", &["/usr/bin/pkcs11-tool"]),
    ("p11-kit", &["/usr/bin/p11-kit"]),
    (
        "p11-kit-modules",
        &[
            "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so",
            "/usr/lib/aarch64-linux-gnu/pkcs11/p11-kit-client.so",
        ],
    ),
    ("openssl", &["/usr/bin/openssl"]),
    ("build-essential", &["/usr/include/stdio.h"]),
    ("gnutls-bin", &["/usr/bin/p11tool"]),
    ("binutils", &["/usr/bin/nm"]),
];

/// Packages are missing and cannot be installed here.
#[derive(Debug)]
pub(crate) struct Missing(Vec<&'static str>);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "these packages are missing: {0}; install them as root, for example with `apt-get install {0}`",
            self.0.join(" ")
        )
    }
}

impl std::error::Error for Missing {}

/// Sees to it that the packages are there.
pub(crate) fn ensure(packages: &[Package]) -> Result<()> {
    let missing = |packages: &[Package]| -> Vec<&'static str> {
        packages
            .iter()
            .filter(|(_, files)| !files.iter().any(|f| Path::new(f).exists()))
            .map(|(name, _)| *name)
            .collect()
    };
    let wanted = missing(packages);
    if wanted.is_empty() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() || !Path::new("/usr/bin/apt-get").exists() {
        bail!(Missing(wanted));
    }
    eprintln!("installing {}", wanted.join(" "));
    apt(&["update", "-qq"])?;
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(&wanted);
    apt(&install)?;
    let still = missing(packages);
    if !still.is_empty() {
        bail!(Missing(still));
    }
    Ok(())
}

fn apt(arguments: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("apt-get cannot be run")?;
    if !status.success() {
        bail!("apt-get {} failed", arguments.join(" "));
    }
    Ok(())
}
