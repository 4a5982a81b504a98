//! OpenSSL with the PKCS#11 engine (libp11): signatures, certificates, decryption, a TLS server.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use crate::harness::{Beside, Both, Step, needed};

/// Thread numbers in OpenSSL's error queue.
const RULES: &[(&str, &str)] = &[("(?m)^[0-9A-F]{12,16}:error:", "THREAD:error:")];

const CONFIG: &str = "openssl_conf = all
[all]
engines = engines
[engines]
pkcs11 = pkcs11
[pkcs11]
engine_id = pkcs11
MODULE_PATH = ${ENV::MODULE}
PIN = ${ENV::PIN}
init = 0
[req]
distinguished_name = nobody
[nobody]
";

fn both() -> Both {
    both_with("")
}

/// With a line of its own for the group.
fn both_with(group: &str) -> Both {
    needed(
        &["/usr/lib/x86_64-linux-gnu/engines-3/pkcs11.so", "/usr/lib/aarch64-linux-gnu/engines-3/pkcs11.so"],
        "libengine-pkcs11-openssl",
    );
    let mut both = Both::new(group, RULES);
    both.file("data", "hello world");
    both.file("openssl.cnf", CONFIG);
    both.set("OPENSSL_CONF", "{dir}/openssl.cnf");
    both.set("MODULE", "{module}");
    both.set("PIN", "1234");
    for key in ["rsa:2048 --id 01 --label r", "EC:prime256v1 --id 02 --label e"] {
        let made = both.step(&format!(
            "pkcs11-tool --module {{module}} --token-label ha1 --login --pin 1234 --keypairgen --key-type {key}"
        ));
        made.quietly_succeeds();
    }
    both
}

trait Tool {
    /// With the engine; KEY is the URI's beginning.
    fn engine(&self, line: &str) -> Step;
}

impl Tool for Both {
    fn engine(&self, line: &str) -> Step {
        let (verb, rest) = line.split_once(' ').unwrap();
        self.step(&format!("openssl {verb} -engine pkcs11 {rest}"))
    }
}

#[test]
fn signs_certifies_and_decrypts_while_members_come_and_go() {
    let both = both();
    both.step("openssl engine -t pkcs11").same().says("[ available ]");
    uses_keys(&both);
    both.members.hide(0);
    uses_keys(&both);
    both.members.restore(0);
    both.members.hide(1);
    uses_keys(&both);
}

#[test]
fn every_signature_of_its_is_verified_before_it_is_given() {
    let both = both_with("verify_signatures = true");
    uses_keys(&both);
    let log = both.log();
    assert!(!log.contains("verif") && !log.contains("member="), "somebody is suspected: {log}");
}

fn uses_keys(both: &Both) {
    for key in ["r", "e"] {
        both.engine(&format!(
            "pkey -inform engine -pubin -in pkcs11:token=ha1;object={key} -pubout -out {key}.pem"
        ))
        .same();
        both.engine(&format!(
            "dgst -sha256 -keyform engine -sign pkcs11:token=ha1;object={key};type=private -out sig data"
        ))
        .same();
        both.step(&format!("openssl dgst -sha256 -verify {key}.pem -signature sig data"))
            .same()
            .says("Verified OK");
        both.engine(&format!(
            "dgst -sha256 -keyform engine -verify pkcs11:token=ha1;object={key};type=public -signature sig data"
        ))
        .same()
        .says("Verified OK");
    }
    let pss = "-sha256 -sigopt rsa_padding_mode:pss";
    both.engine(&format!(
        "dgst {pss} -keyform engine -sign pkcs11:token=ha1;object=r;type=private -out pss data"
    ))
    .same();
    both.step(&format!("openssl dgst {pss} -verify r.pem -signature pss data")).same().says("Verified OK");

    // A certificate authority in the token, and a request of the other key's.
    both.engine("req -new -x509 -days 30 -subj /CN=ca -keyform engine -key pkcs11:token=ha1;object=e;type=private -out ca.pem")
        .same();
    both.step("openssl verify -CAfile ca.pem ca.pem").same().says("ca.pem: OK");
    both.engine(
        "req -new -subj /CN=leaf -keyform engine -key pkcs11:token=ha1;object=r;type=private -out leaf.csr",
    )
    .same();
    both.step("openssl req -in leaf.csr -verify -noout").same().says("verify OK");
    both.engine("x509 -req -in leaf.csr -days 5 -CA ca.pem -CAkeyform engine -CAkey pkcs11:token=ha1;object=e;type=private -CAcreateserial -out leaf.pem")
        .same();
    both.step("openssl verify -CAfile ca.pem leaf.pem").same().says("leaf.pem: OK");

    for padding in ["pkcs1", "oaep"] {
        let padding = format!("-pkeyopt rsa_padding_mode:{padding}");
        both.step(&format!("openssl pkeyutl -encrypt -pubin -inkey r.pem {padding} -in data -out secret"))
            .same();
        both.engine(&format!(
            "pkeyutl -decrypt -keyform engine -inkey pkcs11:token=ha1;object=r;type=private {padding} -in secret"
        ))
        .same()
        .says("hello world");
    }
    both.engine("cms -sign -nodetach -signer ca.pem -keyform engine -inkey pkcs11:token=ha1;object=e;type=private -in data -outform PEM -out m.cms")
        .same();
    both.step("openssl cms -verify -in m.cms -inform PEM -CAfile ca.pem -purpose any")
        .same()
        .says("hello world");
}

/// The engine uses what it has freed in an exit handler of its own then (libp11 0.4.12 with OpenSSL 3.0), on a bare token
/// too: nearly always that is a crash.
#[test]
fn a_key_that_is_not_there_and_a_wrong_pin_fail_alike() {
    let mut both = both();
    both.engine("dgst -sha256 -keyform engine -sign pkcs11:token=ha1;object=none;type=private -out sig data")
        .may_crash(1)
        .fails(1)
        .says("object not found");
    both.set("PIN", "9999");
    both.engine("dgst -sha256 -keyform engine -sign pkcs11:token=ha1;object=e;type=private -out sig data")
        .may_crash(1)
        .fails(1)
        .says("PIN incorrect");
    both.set("PIN", "1234");
    both.engine("dgst -sha256 -keyform engine -sign pkcs11:token=ha1;object=e;type=private -out sig data")
        .same();
}

#[test]
fn a_tls_server_goes_on_when_a_member_is_killed() {
    let mut both = both();
    both.engine("req -new -x509 -days 30 -subj /CN=localhost -keyform engine -key pkcs11:token=ha1;object=e;type=private -out c.pem")
        .same();
    both.serve();
    let mut server = both.command(
        &both.slot,
        "openssl s_server -engine pkcs11 -keyform engine -key pkcs11:token=ha1;object=e;type=private -cert c.pem -accept 127.0.0.1:0 -naccept 3 -www",
    );
    let mut server = Beside(server.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let port = loop {
        let line = lines.next().expect("the server says where it listens").unwrap();
        if let Some(address) = line.strip_prefix("ACCEPT ") {
            break address.rsplit(':').next().unwrap().to_owned();
        }
    };
    for victim in [None, Some(0), None] {
        if let Some(member) = victim {
            both.members.kill(member);
        }
        let client = both.on_slot(&format!(
            "openssl s_client -connect 127.0.0.1:{port} -CAfile c.pem -verify_return_error -brief"
        ));
        assert!(client.raw.contains("Verification: OK"), "{}", client.raw);
    }
    assert!(server.0.wait().unwrap().success());
}
