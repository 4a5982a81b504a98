//! The system packages that the commands need: installed as root on Debian and Ubuntu, named otherwise.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// A Debian package.
pub(crate) struct Package {
    name: &'static str,
    /// A file of it that shows that it is there: any of these.
    files: &'static [&'static str],
}

const fn package(name: &'static str, files: &'static [&'static str]) -> Package {
    Package { name, files }
}

/// What the demo needs.
pub(crate) const DEMO: &[Package] = &[
    // The tokens.
    package("softhsm2", &["/usr/bin/softhsm2-util"]),
    // pkcs11-tool, which makes keys and shows objects.
    package("opensc", &["/usr/bin/pkcs11-tool"]),
    // The servers that members are reached through, so that they can be killed.
    package("p11-kit", &["/usr/bin/p11-kit"]),
    // The module that talks to such a server.
    package(
        "p11-kit-modules",
        &[
            "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so",
            "/usr/lib/aarch64-linux-gnu/pkcs11/p11-kit-client.so",
        ],
    ),
    // Verifies signatures outside of all modules.
    package("openssl", &["/usr/bin/openssl"]),
    // Builds SQLite, and links.
    package("build-essential", &["/usr/include/stdio.h"]),
];

/// What the tests need besides.
pub(crate) const TEST: &[Package] = &[
    // p11tool and certtool.
    package("gnutls-bin", &["/usr/bin/p11tool"]),
    // Reads a check's report, where that is verified outside of hactl.
    package("jq", &["/usr/bin/jq"]),
    // nm, which reads what the shared object exports.
    package("binutils", &["/usr/bin/nm"]),
    // OpenSSL's engine for PKCS#11.
    package(
        "libengine-pkcs11-openssl",
        &["/usr/lib/x86_64-linux-gnu/engines-3/pkcs11.so", "/usr/lib/aarch64-linux-gnu/engines-3/pkcs11.so"],
    ),
    // ssh and ssh-keygen, and the server to log in to.
    package("openssh-client", &["/usr/bin/ssh"]),
    package("openssh-server", &["/usr/sbin/sshd"]),
    // NSS's certutil, modutil and cmsutil.
    package("libnss3-tools", &["/usr/bin/certutil"]),
    // ods-hsmutil.
    package("libhsm-bin", &["/usr/bin/ods-hsmutil"]),
    // knotd, knotc and keymgr.
    package("knot", &["/usr/sbin/knotd"]),
    // Verify signed zones: ldns-verify-zone and dnssec-verify.
    package("ldnsutils", &["/usr/bin/ldns-verify-zone"]),
    package("bind9-utils", &["/usr/bin/dnssec-verify"]),
    // keytool, jar and jarsigner.
    package("default-jdk-headless", &["/usr/bin/jarsigner"]),
];

/// What the published tests need besides.
pub(crate) const PUBLISHED: &[Package] = &[
    // python-pkcs11's tests, and what builds it.
    package(
        "python3-venv",
        &[
            "/usr/lib/python3/dist-packages/venv",
            "/usr/share/python-wheels",
            "/usr/lib/python3.11/venv/__main__.py",
            "/usr/lib/python3.13/venv/__main__.py",
        ],
    ),
    package("python3-dev", &["/usr/bin/python3-config"]),
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
pub(crate) fn ensure(packages: &[&[Package]]) -> Result<()> {
    let missing = || -> Vec<&'static str> {
        let there = |p: &&Package| p.files.iter().any(|f| Path::new(f).exists());
        packages.iter().copied().flatten().filter(|p| !there(p)).map(|p| p.name).collect()
    };
    let wanted = missing();
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
    let still = missing();
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
