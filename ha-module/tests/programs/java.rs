//! Java's keytool and jarsigner, through SunPKCS11.

use crate::harness::{Both, Step};

/// Dates, and what a fresh certificate is made of.
const RULES: &[(&str, &str)] = &[
    (r"(?m)^(\s*SHA(1|256): ).*$", "${1}DIGEST"),
    (r"(?m)^(Serial number: ).*$", "${1}NUMBER"),
    (r"(?m)^Valid from: .*$", "Valid from: THEN"),
    (r"(?m)^(\w+, (?:PrivateKeyEntry|trustedCertEntry),).*$", "$1"),
    (r"(fingerprint \(SHA-256\): ).*", "${1}DIGEST"),
    (r"(?s)KeyIdentifier \[.*?\]", "KeyIdentifier [ID]"),
    (r"will expire .*|on \d{4}-\d\d-\d\d.*", "THEN"),
];

const CONFIG: &str = "name = token\nlibrary = LIBRARY\nslotListIndex = 0\n";

fn both() -> Both {
    let both = Both::new("", RULES);
    for side in [&both.bare, &both.slot] {
        let config = CONFIG.replace("LIBRARY", side.module.to_str().unwrap());
        std::fs::write(side.dir.join("java.cfg"), config).unwrap();
    }
    both
}

trait Tool {
    fn java(&self, line: &str) -> Step;
}

impl Tool for Both {
    fn java(&self, line: &str) -> Step {
        let (tool, rest) = line.split_once(' ').unwrap();
        self.step(&format!(
            "{tool} -J-Xshare:auto -J-XX:TieredStopAtLevel=1 -keystore NONE -storetype PKCS11 -storepass 1234 \
             -addprovider SunPKCS11 -providerArg java.cfg {rest}"
        ))
    }
}

#[test]
fn makes_keys_and_signs_archives_while_members_come_and_go() {
    let both = both();
    both.file("a.txt", "hello\n");
    both.step("jar --create --file a.jar a.txt").same();
    both.java("keytool -genkeypair -alias r -keyalg RSA -keysize 2048 -dname CN=r -validity 3000").same();
    both.java("keytool -genkeypair -alias e -keyalg EC -groupname secp256r1 -dname CN=e -validity 3000")
        .same();
    uses_keys(&both);
    both.members.hide(0);
    uses_keys(&both);
    both.members.restore(0);
    both.members.hide(1);
    uses_keys(&both);
    both.members.restore(1);
    both.java("keytool -delete -alias e").same();
    both.java("keytool -list").sorted("PrivateKeyEntry").same().says("contains 1 entry");
}

fn uses_keys(both: &Both) {
    both.java("keytool -list").sorted("PrivateKeyEntry").same().says("contains 2 entries");
    for key in ["r", "e"] {
        both.java(&format!("keytool -certreq -alias {key} -file {key}.csr")).same();
        both.step(&format!("openssl req -in {key}.csr -verify -noout")).same().says("verify OK");
        both.java(&format!("jarsigner -signedjar {key}.jar a.jar {key}"))
            .quietly_succeeds()
            .says("jar signed.");
        both.step(&format!("jarsigner -verify {key}.jar")).quietly_succeeds().says("jar verified.");
    }
    both.java("keytool -exportcert -rfc -alias e -file e.pem").same();
    both.step("openssl x509 -in e.pem -noout -subject").same().says("CN = e");
}

#[test]
fn a_wrong_pin_is_refused_alike() {
    let both = both();
    let wrong = "keytool -keystore NONE -storetype PKCS11 -storepass 9999 -addprovider SunPKCS11 -providerArg java.cfg";
    both.step(&format!("{wrong} -list")).fails(1).says("load failed");
    both.java("keytool -list").same().says("contains 0 entries");
}
