//! p11tool and certtool (GnuTLS), which allow a module no threads of its own.

use crate::harness::{Both, Difference, Step};

/// Numbers of objects, whose order is nobody's, and identifiers that GnuTLS makes up.
const RULES: &[(&str, &str)] = &[
    (r"(;|:)serial=[0-9a-f]{16}", "${1}serial=SERIAL"),
    (r"Object \d+:", "Object:"),
    (r"(?m)^(\tID: )[0-9a-f]{2}(:[0-9a-f]{2}){15}$", "${1}MADE-UP"),
    (r";id=(%[0-9A-F]{2}){16};", ";id=MADE-UP;"),
    (r"(?s)(-----BEGIN PUBLIC KEY-----\n).*?(-----END)", "${1}KEY\n$2"),
    (r"(Expires: ).*", "${1}THEN"),
];

/// What a group of GnuTLS programs needs; the rig's own `deadline` is "off" already.
const NO_THREADS: &str = "[group.recovery]\nmode = \"manual\"";

/// A replicated key is a copy, and copies cannot have this.
const PRIVATE: Difference =
    ("CKA_PRIVATE; CKA_NEVER_EXTRACTABLE; CKA_SENSITIVE", "CKA_PRIVATE; CKA_SENSITIVE");

const OBJECT: &str = "^Object:";

fn both() -> Both {
    let mut both = Both::new(NO_THREADS, RULES);
    both.set("GNUTLS_PIN", "1234");
    both.set("GNUTLS_SO_PIN", "12345678");
    both
}

trait Tool {
    fn tool(&self, line: &str) -> Step;
}

impl Tool for Both {
    fn tool(&self, line: &str) -> Step {
        self.step(&format!("p11tool --provider {{module}} --batch --login {line}"))
    }
}

#[test]
fn lists_tokens_and_mechanisms() {
    let both = both();
    both.step("p11tool --provider {module} --list-tokens").same().says("Label: ha1");
    both.step("p11tool --provider {module} --list-token-urls").same().says("token=ha1");
    // SoftHSM 2.6.1 adds its flags to what the caller's memory held; these are left over from the mechanism before.
    both.step("p11tool --provider {module} --list-mechanisms pkcs11:token=ha1").sorted("^.").differs(&[
        ("CKM_DES3_ECB encrypt decrypt sign verify", "CKM_DES3_ECB encrypt decrypt"),
        ("CKM_DES3_CBC_PAD encrypt decrypt derive", "CKM_DES3_CBC_PAD encrypt decrypt"),
        (
            "CKM_AES_ECB keysize range (16, 32) encrypt decrypt sign verify",
            "CKM_AES_ECB keysize range (16, 32) encrypt decrypt",
        ),
        (
            "CKM_AES_CBC_PAD keysize range (16, 32) encrypt decrypt derive",
            "CKM_AES_CBC_PAD keysize range (16, 32) encrypt decrypt",
        ),
        (
            "CKM_AES_CTR keysize range (16, 32) encrypt decrypt sign verify",
            "CKM_AES_CTR keysize range (16, 32) encrypt decrypt",
        ),
        (
            "CKM_AES_GCM keysize range (16, 32) encrypt decrypt derive",
            "CKM_AES_GCM keysize range (16, 32) encrypt decrypt",
        ),
    ]);
    both.tool("--generate-random 16 --outfile random pkcs11:token=ha1").same();
    for side in [&both.bare, &both.slot] {
        assert_eq!(std::fs::read(side.dir.join("random")).unwrap().len(), 16);
    }
}

#[test]
fn a_group_that_needs_threads_is_refused_and_the_log_says_what_to_set() {
    let mut both = Both::new("", RULES);
    both.set("GNUTLS_PIN", "1234");
    let step = both.tool("--list-mechanisms pkcs11:token=ha1").refused(1, "Thread locking error");
    let log = std::fs::read_to_string(both.members.path().join("log")).unwrap();
    assert!(log.contains("set deadline = \"off\" and [group.recovery] mode = \"manual\""), "{step}");
}

#[test]
fn makes_keys_and_certificates_while_members_come_and_go() {
    let both = both();
    both.tool("--generate-privkey=rsa --bits 2048 --label r --id 01 --outfile r.pub pkcs11:token=ha1").same();
    both.tool(
        "--generate-privkey=ecdsa --curve secp256r1 --label e --id 02 --outfile e.pub pkcs11:token=ha1",
    )
    .same();
    // GnuTLS 3.7 asks for Ed25519 in a way that SoftHSM does not know: the same on both.
    both.tool("--generate-privkey=ed25519 --label ed --id 03 --outfile ed.pub pkcs11:token=ha1").fails(1);
    both.file(
        "template",
        "cn = \"ca\"\nca\nsigning_key\ncert_signing_key\nencryption_key\nexpiration_days = 30\nserial = 7\n",
    );
    uses_keys(&both);
    both.tool("--write --load-certificate c.pem --label c --id 02 pkcs11:token=ha1").same();
    both.members.hide(0);
    uses_keys(&both);
    both.tool("--list-all-certs pkcs11:token=ha1").same().says("Label: c");
    both.members.restore(0);
    both.members.hide(1);
    uses_keys(&both);
    both.tool("--export --outfile out.pem pkcs11:token=ha1;object=c;type=cert").same();
    both.step("openssl x509 -in out.pem -noout -subject").same().says("CN = ca");
}

fn uses_keys(both: &Both) {
    both.tool("--list-privkeys pkcs11:token=ha1").sorted(OBJECT).differs(&[PRIVATE]);
    both.tool("--info pkcs11:token=ha1;object=e;type=private").differs(&[PRIVATE]).says("EC/ECDSA-SECP256R1");
    both.tool("--export-pubkey pkcs11:token=ha1;object=e;type=private").same();
    both.tool("--export pkcs11:token=ha1;object=e;type=public").same();
    both.tool("--test-sign pkcs11:token=ha1;object=e;type=private").same();
    both.tool("--test-sign pkcs11:token=ha1;object=r;type=private").same();
    both.tool("--test-sign --sign-params RSA-PSS --hash SHA256 pkcs11:token=ha1;object=r;type=private")
        .same();
    let key = |name: &str| {
        format!(
            "--load-privkey pkcs11:token=ha1;object={name};type=private --load-pubkey pkcs11:token=ha1;object={name};type=public --template template"
        )
    };
    let certtool = "certtool --provider {module}";
    // It prints the certificate, with serial number, dates and key.
    let made = both.step(&format!("{certtool} --generate-self-signed {} --outfile c.pem", key("e")));
    made.quietly_succeeds();
    both.step("openssl verify -CAfile c.pem c.pem").same().says("c.pem: OK");
    both.step(&format!("{certtool} --generate-request {} --outfile r.csr", key("r"))).same();
    both.step("openssl req -in r.csr -verify -noout").same().says("verify OK");
}

#[test]
fn writes_changes_and_deletes_objects() {
    let both = both();
    both.prepare("certtool --generate-privkey --key-type=ecdsa --outfile k.pem", &["k.pem"]);
    both.tool("--write --load-privkey k.pem --label k --id 05 pkcs11:token=ha1").same();
    let secret = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    both.tool(&format!("--write --secret-key={secret} --label s pkcs11:token=ha1")).same();
    both.tool("--set-id 06 pkcs11:token=ha1;object=k;type=private").same();
    both.tool("--set-label kk pkcs11:token=ha1;object=k;type=private").same();
    both.tool("--list-all pkcs11:token=ha1").sorted(OBJECT).same().says("ID: 06");
    both.tool("--delete pkcs11:token=ha1;object=k").fails(1);
    both.tool("--delete pkcs11:token=ha1;object=kk").same().says("1 objects deleted");
    for member in 0..2 {
        both.members.hide(member);
        both.tool("--list-all pkcs11:token=ha1").sorted(OBJECT).same().says("Label: s");
        both.members.restore(member);
    }
}

#[test]
fn a_wrong_pin_is_refused_alike() {
    let mut both = both();
    both.set("GNUTLS_PIN", "9999");
    both.tool("--list-all pkcs11:token=ha1").fails(1).says("Only few tries left before locking");
    both.set("GNUTLS_PIN", "1234");
    both.tool("--generate-privkey=ecdsa --curve secp256r1 --label e --outfile e.pub pkcs11:token=ha1").same();
    both.tool("--test-sign pkcs11:token=ha1;object=e;type=private").same();
}
