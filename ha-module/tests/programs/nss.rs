//! NSS: modutil and certutil.

use crate::harness::{Both, Step};

/// Numbers in lists, and identifiers that NSS makes of a key's public part.
const RULES: &[(&str, &str)] =
    &[(r"(?m)^< ?\d+>", "<N>"), (r"\b[0-9a-f]{40}\b", "ID"), (r"Library description.*", "")];

const LISTED: &str = "^(<N>|ha1:)";

fn both() -> Both {
    let both = Both::new("", RULES);
    both.file("pins", "ha1:1234\n");
    both.file("noise", [7; 100]);
    both.file("data", "hello world");
    both.step("certutil -N -d sql:{dir} --empty-password").same();
    both.step("modutil -dbdir sql:{dir} -force -add ha -libfile {module}").same().says("added to database");
    both
}

trait Tool {
    fn certutil(&self, line: &str) -> Step;
}

impl Tool for Both {
    fn certutil(&self, line: &str) -> Step {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        self.step(&format!("certutil {verb} -d sql:{{dir}} -h ha1 -f pins {rest}"))
    }
}

#[test]
fn modutil_knows_the_token() {
    let both = both();
    both.step("modutil -dbdir sql:{dir} -list ha").quietly_succeeds().says("Token Name: ha1");
    both.step("modutil -dbdir sql:{dir} -force -delete ha").same().says("deleted from database");
}

#[test]
fn makes_keys_and_certificates_while_members_come_and_go() {
    let both = both();
    both.certutil("-S -n ca -s CN=ca -x -t CT,C,C -k rsa -g 2048 -z noise -m 7").same();
    both.certutil("-S -n ec -s CN=ec -x -t CT,C,C -k ec -q nistp256 -z noise -m 8").same();
    both.certutil("-R -k rsa -g 2048 -z noise -s CN=leaf -a -o leaf.csr").same();
    both.step("openssl req -in leaf.csr -verify -noout").same().says("verify OK");
    uses_keys(&both);
    both.members.hide(0);
    uses_keys(&both);
    both.members.restore(0);
    both.members.hide(1);
    uses_keys(&both);
    both.members.restore(1);
    both.certutil("-D -n ha1:ec").same();
    both.certutil("-L").sorted(LISTED).same();
}

fn uses_keys(both: &Both) {
    both.certutil("-K").sorted(LISTED).same().says("ha1:ca");
    both.certutil("-L").sorted(LISTED).same().says("ha1:ec");
    for name in ["ca", "ec"] {
        both.certutil(&format!("-L -n ha1:{name} -a -o {name}.pem")).same();
        both.step(&format!("openssl verify -CAfile {name}.pem {name}.pem")).same().says("OK");
    }
    both.step("cmsutil -S -d sql:{dir} -f pins -N ha1:ca -i data -o message").same();
    let verify = "openssl cms -verify -inform DER -in message -CAfile ca.pem -purpose any";
    both.step(verify).same().says("hello world");
}

#[test]
fn a_wrong_pin_is_refused_alike() {
    let both = both();
    both.file("pins", "ha1:9999\n");
    both.certutil("-K").fails(255).says("SEC_ERROR_BAD_PASSWORD");
    both.file("pins", "ha1:1234\n");
    both.certutil("-S -n ca -s CN=ca -x -t CT,C,C -k rsa -g 2048 -z noise -m 7").same();
}
