//! OpenSSH: `ssh-keygen -D`, and logins with a token's keys at a server of the test's own.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Beside, Both, needed};

const RULES: &[(&str, &str)] = &[(r"AAAA[0-9A-Za-z+/=]+", "KEY")];

/// Both have an RSA and an EC key, and answer OpenSSH's question for the PIN.
fn both() -> Both {
    let mut both = Both::new("", RULES);
    both.file("ask", "#!/bin/sh\necho 1234\n");
    for side in [&both.bare, &both.slot] {
        std::fs::set_permissions(side.dir.join("ask"), PermissionsExt::from_mode(0o700)).unwrap();
    }
    both.set("SSH_ASKPASS", "{dir}/ask");
    both.set("SSH_ASKPASS_REQUIRE", "force");
    for key in ["rsa:2048 --id 01 --label r", "EC:prime256v1 --id 02 --label e"] {
        let made = both.step(&format!(
            "pkcs11-tool --module {{module}} --token-label ha1 --login --pin 1234 --keypairgen --key-type {key}"
        ));
        made.quietly_succeeds();
    }
    both
}

/// A key pair of this host's own.
fn make_key(path: &Path) {
    let mut make = Command::new("ssh-keygen");
    make.args(["-q", "-t", "ed25519", "-N", "", "-C", "a key", "-f"]).arg(path);
    assert!(make.status().expect("ssh-keygen: install openssh-client").success());
}

/// A server on a port of its own that lets in whoever has one of these keys, and says hello.
fn serve(both: &Both, keys: &str) -> (Beside, u16) {
    let sshd = needed(&["/usr/sbin/sshd"], "openssh-server");
    let dir = &both.slot.dir;
    make_key(&dir.join("host"));
    std::fs::write(dir.join("authorized"), keys).unwrap();
    // Where a server that root starts puts its unprivileged half, which else the boot scripts make. Nobody else can make
    // it, or needs it.
    _ = std::fs::create_dir_all("/run/sshd");
    // Another program may take the free port before sshd does: then another one is tried.
    for _ in 0..20 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized\nPidFile none\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin yes\nForceCommand echo hello world\n",
            dir.display()
        );
        std::fs::write(dir.join("sshd.conf"), config).unwrap();
        let mut server = Command::new(&sshd);
        server.args(["-D", "-e", "-f"]).arg(dir.join("sshd.conf")).stderr(Stdio::piped());
        let mut server = Beside(server.spawn().unwrap());
        let mut said = String::new();
        for line in BufReader::new(server.0.stderr.take().unwrap()).lines() {
            let line = line.unwrap();
            if line.contains("Server listening") {
                return (server, port);
            }
            said += &(line + "\n");
        }
        assert!(said.contains("Address already in use"), "{said}");
    }
    panic!("no free port");
}

#[test]
fn logs_in_with_either_key_while_members_are_killed_and_come_back() {
    let mut both = both();
    let keys = both.step("ssh-keygen -D {module}").sorted("^(ssh-rsa|ecdsa-sha2-nistp256)").same().slot.raw;
    assert_eq!(keys.lines().count(), 2, "{keys}");
    both.serve();
    let (_server, port) = serve(&both, &keys);
    std::fs::write(both.slot.dir.join("e.pub"), keys.lines().find(|l| l.starts_with("ecdsa")).unwrap())
        .unwrap();
    std::fs::write(both.slot.dir.join("r.pub"), keys.lines().find(|l| l.starts_with("ssh-rsa")).unwrap())
        .unwrap();
    let log_in = || {
        for key in ["e", "r"] {
            let line = format!(
                "ssh -F none -p {port} -o PKCS11Provider={{module}} -o IdentitiesOnly=yes -o IdentityFile={{dir}}/{key}.pub \
                 -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={{dir}}/known -o IdentityAgent=none 127.0.0.1"
            );
            let ran = both.on_slot(&line);
            assert!(ran.code == Some(0) && ran.raw.contains("hello world"), "{key}: {}", ran.raw);
        }
    };
    log_in();
    both.members.kill(0);
    log_in();
    both.members.serve(0);
    both.members.kill(1);
    log_in();
}

#[test]
fn certifies_keys_with_an_authority_in_the_token() {
    let both = both();
    make_key(&both.bare.dir.join("user"));
    let keys = both.step("ssh-keygen -D {module}").sorted("^(ssh-rsa|ecdsa-sha2-nistp256)").same();
    for (side, ran) in [(&both.bare, &keys.bare), (&both.slot, &keys.slot)] {
        let authority = ran.raw.lines().find(|l| l.starts_with("ecdsa")).unwrap();
        std::fs::write(side.dir.join("ca.pub"), authority).unwrap();
    }
    both.file("user.pub", std::fs::read(both.bare.dir.join("user.pub")).unwrap());
    both.members.hide(0);
    both.step("ssh-keygen -q -D {module} -s ca.pub -I somebody -n root -V +1d user.pub").same();
    both.step("ssh-keygen -L -f user-cert.pub")
        .quietly_succeeds()
        .says("ssh-ed25519-cert-v01@openssh.com user certificate");
}
