//! Knot DNS: keymgr, and a knotd that makes its keys in the token and signs a zone with them.
//!
//! Whether the zone is signed well others say: ldns and BIND.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::Stdio;

use crate::harness::{Beside, Both, Side};

/// Identifiers, key tags and times.
const RULES: &[(&str, &str)] = &[
    (r"\b[0-9a-f]{40}\b", "ID"),
    (r"(?m)^ID\s+\d+( [KZ]SK)", "ID TAG$1"),
    (r"=\d{10}\b", "=TIME"),
    (r"(example\.com\. DS )\d+( 13 2 )[0-9a-f]{64}", "${1}TAG${2}DIGEST"),
    (r"(?m)^(example\.com\. DS ).*$", "${1}KEY"),
];

/// Knot loads modules with GnuTLS, which allows them no threads.
const NO_THREADS: &str = "[group.recovery]\nmode = \"manual\"";

const ZONE: &str = "example.com. 3600 SOA ns.example.com. admin.example.com. 1 3600 900 1209600 300
example.com. 3600 NS ns.example.com.
ns.example.com. 3600 A 192.0.2.1
www.example.com. 3600 A 192.0.2.2
";

const CONFIG: &str = "server:
    rundir: DIR
    listen: 127.0.0.1@PORT
    background-workers: 2
database:
    storage: DIR/db
log:
  - target: stderr
    any: info
keystore:
  - id: ha
    backend: pkcs11
    config: \"pkcs11:token=ha1;pin-value=1234 MODULE\"
policy:
  - id: ha
    keystore: ha
    algorithm: ecdsap256sha256
zone:
  - domain: example.com
    storage: DIR
    file: example.com.zone
    zonefile-sync: -1
    zonefile-load: difference-no-serial
    journal-content: all
    dnssec-signing: on
    dnssec-policy: ha
";

fn both() -> Both {
    let both = Both::new(NO_THREADS, RULES);
    both.file("example.com.zone", ZONE);
    for side in [&both.bare, &both.slot] {
        std::fs::create_dir(side.dir.join("db")).unwrap();
        configure(side);
    }
    both
}

fn configure(side: &Side) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (module, dir) = (side.module.to_str().unwrap(), side.dir.to_str().unwrap());
    let config = CONFIG.replace("MODULE", module).replace("DIR", dir).replace("PORT", &port.to_string());
    std::fs::write(side.dir.join("knot.conf"), config).unwrap();
}

/// Starts knotd on the slot, on a port that is free.
fn knotd(both: &Both) -> Beside {
    for _ in 0..20 {
        configure(&both.slot);
        let mut command = both.command(&both.slot, "knotd -c {dir}/knot.conf");
        let mut server = Beside(command.stderr(Stdio::piped()).spawn().unwrap());
        let mut said = String::new();
        let mut lines = BufReader::new(server.0.stderr.take().unwrap()).lines();
        while let Some(Ok(line)) = lines.next() {
            if line.contains("control, binding to") {
                // What it says from here on is read, so that it can go on speaking.
                std::thread::spawn(move || lines.for_each(drop));
                return server;
            }
            said += &(line + "\n");
        }
        assert!(said.contains("address already in use"), "knotd: install knot\n{said}");
    }
    panic!("no free port");
}

/// Has the whole zone signed anew, and verified by others. Answers its DNSKEY records.
fn sign(both: &Both, name: &str) -> Vec<String> {
    let out = both.slot.dir.join(name);
    std::fs::create_dir(&out).unwrap();
    for line in [
        "knotc -c {dir}/knot.conf -t 60 -b zone-sign example.com".to_owned(),
        format!("knotc -c {{dir}}/knot.conf -t 60 -b zone-flush example.com +outdir {}", out.display()),
        format!("ldns-verify-zone {}/example.com.zone", out.display()),
        format!("dnssec-verify -o example.com {}/example.com.zone", out.display()),
    ] {
        let ran = both.on_slot(&line);
        assert_eq!(ran.code, Some(0), "{name}: {line}\n{}", ran.raw);
    }
    let zone = std::fs::read_to_string(out.join("example.com.zone")).unwrap();
    assert!(zone.matches("RRSIG").count() >= 8, "{zone}");
    let mut keys: Vec<String> =
        zone.lines().filter(|l| l.contains("\tDNSKEY\t")).map(str::to_owned).collect();
    keys.sort();
    keys
}

#[test]
fn keymgr_makes_lists_and_removes_keys_while_members_come_and_go() {
    let both = both();
    let keymgr = |line: &str| both.step(&format!("keymgr -c {{dir}}/knot.conf example.com {line}"));
    keymgr("generate algorithm=ECDSAP256SHA256 ksk=yes").same();
    keymgr("generate algorithm=RSASHA256 size=2048").same();
    for member in 0..2 {
        both.members.hide(member);
        keymgr("list").sorted("^ID").same().says("KSK ECDSAP256SHA256");
        keymgr("ds").same().says("example.com. DS");
        both.members.restore(member);
    }
    let made = keymgr("list").sorted("^ID").same();
    let of = |text: &str| text.split_whitespace().next().unwrap().to_owned();
    for (side, id) in [(&both.bare, of(&made.bare.raw)), (&both.slot, of(&made.slot.raw))] {
        let ran = both.run(side, &format!("keymgr -c {{dir}}/knot.conf example.com delete {id}"));
        assert_eq!(ran.code, Some(0), "{}", ran.raw);
    }
    let left =
        both.step("pkcs11-tool --module {module} --token-label ha1 --login --pin 1234 -O --type privkey");
    assert_eq!(left.quietly_succeeds().slot.raw.matches("Private Key Object").count(), 1);
}

#[test]
fn knotd_makes_its_keys_and_signs_on_when_either_member_is_killed() {
    let mut both = both();
    // Members behind servers can be killed, and cannot be given new keys: knotd makes its keys before.
    let keys = {
        let _server = knotd(&both);
        sign(&both, "first")
    };
    assert_eq!(keys.len(), 2, "a KSK and a ZSK: {keys:#?}");
    both.serve();
    for (victim, name) in [(0, "without-a"), (1, "without-b")] {
        let _server = knotd(&both);
        assert_eq!(sign(&both, &format!("before-{name}")), keys);
        both.members.kill(victim);
        assert_eq!(sign(&both, name), keys);
        both.members.serve(victim);
    }
}
