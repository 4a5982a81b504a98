//! `hactl check --prove --report` on a real group, and what it says verified with OpenSSL, as an auditor does it.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use ha_token::{Attribute, AttributeType, Mechanism, SessionHandle, Template, Token, Ulong, ck};
use serde_json::{Value, json};
use support::{Made, Ran, find, keys, mode, pair};

const P224: &[u8] = &[6, 5, 0x2b, 0x81, 4, 0, 0x21];
const P256: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const P384: &[u8] = &[6, 5, 0x2b, 0x81, 4, 0, 0x22];
const P521: &[u8] = &[6, 5, 0x2b, 0x81, 4, 0, 0x23];
const ED25519: &[u8] = b"\x13\x0cedwards25519";

const NASTY: &str = "</h3><script>alert(1)</script>\u{202e}";

/// What objects are told by.
fn named(label: &str, id: u8) -> Template {
    vec![
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bytes(ck::CKA_LABEL, label),
        Attribute::bytes(ck::CKA_ID, [id]),
    ]
}

/// A pair that may do this and nothing else.
fn pair_for(
    token: &dyn Token,
    session: SessionHandle,
    (label, id): (&str, u8),
    (mechanism, told): (Ulong, Attribute),
    usage: AttributeType,
) {
    let (mut public, mut private) = (named(label, id), named(label, id));
    public.push(told);
    private.push(Attribute::bool(ck::CKA_PRIVATE, true));
    for may in [ck::CKA_SIGN, ck::CKA_DECRYPT, ck::CKA_UNWRAP, ck::CKA_DERIVE] {
        private.push(Attribute::bool(may, may == usage));
    }
    token.generate_key_pair(session, &mut Mechanism::plain(mechanism), &public, &private).expect(label);
}

fn secret(
    token: &dyn Token,
    session: SessionHandle,
    (label, id): (&str, u8),
    mechanism: Ulong,
    usage: AttributeType,
) {
    let mut template = named(label, id);
    template.extend([
        Attribute::ulong(ck::CKA_VALUE_LEN, 32),
        Attribute::bool(ck::CKA_PRIVATE, true),
        Attribute::bool(ck::CKA_SENSITIVE, true),
        Attribute::bool(usage, true),
    ]);
    token.generate_key(session, &mut Mechanism::plain(mechanism), &template).expect(label);
}

/// The check with both reports: what was said, and the two.
fn reported(made: &Made) -> (Ran, String, Value) {
    let folder = tempfile::tempdir().expect("a folder");
    let files = ["r.html", "r.json"].map(|name| folder.path().join(name));
    let [html, json] = files.each_ref().map(|path| path.to_str().unwrap());
    let ran = made.run(&["check", "--prove", "--json", "--report", html, "--report", json]);
    for file in [html, json] {
        assert!(ran.err.contains(&format!("the report is {file}")), "{}", ran.err);
        assert_eq!(mode(Path::new(file)), 0o600);
    }
    let [html, json] = files.map(|path| std::fs::read_to_string(path).expect("a report"));
    let document = serde_json::from_str(&json).expect("JSON");
    let pin = String::from_utf8(made.pin()).unwrap();
    assert!(!html.contains(pin.trim()) && !json.contains(pin.trim()), "the PIN is in a report");
    for outside in ["http:", "https:", "src=", "url(", "@import", "<script"] {
        assert!(!html.contains(outside), "{outside}");
    }
    (ran, html, document)
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("digits")).collect()
}

/// Follows the report's own words on how a proof is verified.
fn is_verified(object: &Value, proof: &Value) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    if let Some(key) = object["public_key"].as_str() {
        std::fs::write(folder.path().join("key.pem"), key).unwrap();
    }
    for name in ["challenge", "answer", "expected", "signature", "block", "throw_away_key"] {
        if let Some(digits) = proof[name].as_str() {
            std::fs::write(folder.path().join(name), bytes(digits)).unwrap();
        }
    }
    let verify = proof["verify"].as_str().expect("a command");
    let shell = Command::new("sh").args(["-c", verify]).current_dir(&folder).output();
    shell.expect("a shell").status.success()
}

/// Every proof is verified where the word is `same`, and fails where it is `different`. Answers the kinds of proof, by label,
/// of keys that hold a secret.
fn verify_all(report: &Value) -> BTreeMap<String, String> {
    let mut kinds = BTreeMap::new();
    for object in report["groups"][0]["objects"].as_array().unwrap() {
        let is_key_pair = object["public_key"].is_string();
        assert_eq!(is_key_pair, object["class"] != "secret-key", "{object}");
        for copy in object["copies"].as_array().unwrap() {
            if copy["word"] == "missing" {
                assert!(copy["proof"].is_null());
                continue;
            }
            let proof = &copy["proof"];
            let is_same = copy["word"] == "same" || object["conflict"] == true;
            assert_eq!(is_verified(object, proof), is_same, "{object}");
            let time = proof["time"].as_str().unwrap();
            assert!(report["begun"].as_str().unwrap() <= time && time <= report["ended"].as_str().unwrap());
            assert!(time.ends_with('Z') && time.len() == "2027-01-15T08:00:00.123Z".len(), "{time}");
            if object["class"] != "public-key" {
                let kind =
                    format!("{} {}", proof["kind"].as_str().unwrap(), proof["mechanism"].as_str().unwrap());
                kinds.insert(object["label"].as_str().unwrap().to_owned(), kind);
            }
        }
    }
    kinds
}

/// What the script of the docs says of a report, line by line, and whether it is content.
fn by_script(report: &Value) -> (bool, Vec<String>) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("r.json");
    std::fs::write(&path, report.to_string()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/verify-report.sh");
    let ran = Command::new("sh").arg(script).arg(&path).output().expect("a shell");
    assert!(ran.stderr.is_empty(), "{}", String::from_utf8_lossy(&ran.stderr));
    let said = String::from_utf8(ran.stdout).unwrap();
    (ran.status.success(), said.lines().map(str::to_owned).collect())
}

fn object<'a>(report: &'a Value, class: &str, label: &str) -> Vec<&'a Value> {
    let objects = report["groups"][0]["objects"].as_array().unwrap().iter();
    objects.filter(|o| o["class"] == class && o["label"] == label).collect()
}

#[test]
fn an_auditor_verifies_every_answer_without_us() {
    let made = Made::with(2);
    made.as_application(|token, s| {
        let curve = |params| (ck::CKM_EC_KEY_PAIR_GEN, Attribute::bytes(ck::CKA_EC_PARAMS, params));
        let rsa = || (ck::CKM_RSA_PKCS_KEY_PAIR_GEN, Attribute::ulong(ck::CKA_MODULUS_BITS, 2048));
        pair_for(token, s, (NASTY, 1), curve(P256), ck::CKA_SIGN);
        pair_for(token, s, ("p224", 2), curve(P224), ck::CKA_SIGN);
        pair_for(token, s, ("p384", 3), curve(P384), ck::CKA_SIGN);
        pair_for(token, s, ("p521", 4), curve(P521), ck::CKA_SIGN);
        pair_for(token, s, ("ecdh", 5), curve(P256), ck::CKA_DERIVE);
        pair_for(token, s, ("rsa signs", 6), rsa(), ck::CKA_SIGN);
        pair_for(token, s, ("rsa decrypts", 7), rsa(), ck::CKA_DECRYPT);
        pair_for(token, s, ("rsa unwraps", 8), rsa(), ck::CKA_UNWRAP);
        secret(token, s, ("aes", 9), ck::CKM_AES_KEY_GEN, ck::CKA_ENCRYPT);
        secret(token, s, ("aes wraps", 10), ck::CKM_AES_KEY_GEN, ck::CKA_WRAP);
        secret(token, s, ("hmac", 11), ck::CKM_GENERIC_SECRET_KEY_GEN, ck::CKA_SIGN);
    });
    // The contract's document is what it is without a report.
    let plain = made.run(&["check", "--prove", "--json"]).json();
    let (ran, html, report) = reported(&made);
    assert_eq!((ran.code, &ran.json()), (0, &plain), "{}", ran.err);

    assert_eq!(
        verify_all(&report),
        BTreeMap::from(
            [
                (NASTY, "signature CKM_ECDSA"),
                ("p224", "signature CKM_ECDSA"),
                ("p384", "signature CKM_ECDSA"),
                ("p521", "signature CKM_ECDSA"),
                ("ecdh", "key-agreement CKM_ECDH1_DERIVE"),
                ("rsa signs", "signature CKM_SHA256_RSA_PKCS"),
                ("rsa decrypts", "decryption CKM_RSA_PKCS"),
                ("rsa unwraps", "unwrapping CKM_RSA_PKCS"),
                ("aes", "key-digest CKM_SHA256"),
                ("aes wraps", "key-digest CKM_SHA256"),
                ("hmac", "key-digest CKM_SHA256"),
            ]
            .map(|(label, kind)| (label.to_owned(), kind.to_owned()))
        )
    );
    let (is_content, said) = by_script(&report);
    assert!(is_content && said.len() == 38, "{said:#?}");
    assert!(said.iter().all(|line| line.starts_with("verified by ")), "{said:#?}");
    // One bit of any answer, and it is found.
    for label in ["p224", "rsa decrypts", "ecdh", "hmac"] {
        let mut other = report.clone();
        let mut objects = other["groups"][0]["objects"].as_array_mut().unwrap().iter_mut();
        let one = objects.find(|o| o["label"] == label && o["class"] != "public-key").unwrap();
        let proof = &mut one["copies"][1]["proof"];
        for field in ["answer", "signature"] {
            let Some(digits) = proof[field].as_str() else { continue };
            let (most, last) = digits.split_at(digits.len() - 1);
            let last = if last == "0" { "1" } else { "0" };
            proof[field] = format!("{most}{last}").into();
        }
        let (is_content, said) = by_script(&other);
        let wrong: Vec<_> = said.iter().filter(|line| line.starts_with("WRONG: ")).collect();
        assert!(!is_content && wrong.len() == 1 && wrong[0].contains(label), "{said:#?}");
    }
    assert_eq!(
        keys(&report),
        [
            "begun",
            "ended",
            "groups",
            "how_to_verify",
            "kinds",
            "limits",
            "program",
            "schema",
            "verdict",
            "version",
            "well"
        ]
    );
    assert_eq!((&report["schema"], &report["well"]), (&json!(1), &json!(true)));
    let group = &report["groups"][0];
    assert_eq!((&group["summary"], &group["label"]), (&plain["groups"][0]["summary"], &json!("ha1")));
    let tokens: Vec<_> = group["members"].as_array().unwrap().iter().map(|m| &m["token"]["label"]).collect();
    assert_eq!(tokens, ["member-a", "member-b"]);
    // Each member was asked for itself, with a challenge of its own.
    let copies = object(&report, "private-key", "rsa signs")[0]["copies"].as_array().unwrap();
    assert_ne!(copies[0]["proof"]["challenge"], copies[1]["proof"]["challenge"]);
    assert_ne!(copies[0]["serial"], copies[1]["serial"]);
    // Of a secret key both were asked the same.
    let copies = object(&report, "secret-key", "hmac")[0]["copies"].as_array().unwrap();
    assert_eq!(copies[0]["proof"]["answer"], copies[1]["proof"]["answer"]);

    assert!(html.contains("&lt;/h3&gt;&lt;script&gt;alert(1)&lt;/script&gt;\\u{202e}"), "{html}");
    for word in
        [report["verdict"].as_str().unwrap(), group["members"][1]["token"]["serial"].as_str().unwrap()]
    {
        assert!(html.contains(&word.replace('\'', "&#39;")), "{word}");
    }
    for copy in object(&report, "private-key", "rsa signs")[0]["copies"].as_array().unwrap() {
        for field in ["time", "challenge", "answer", "verify"] {
            assert!(html.contains(copy["proof"][field].as_str().unwrap()), "{field}");
        }
    }
}

#[test]
fn another_key_is_shown_as_one_with_what_it_answered() {
    let made = Made::with(2);
    made.as_application(|token, s| {
        pair(token, s, "swapped", 1, true);
        secret(token, s, ("gone", 2), ck::CKM_AES_KEY_GEN, ck::CKA_ENCRYPT);
    });
    made.on_member(1, |token, s| {
        for object in ["swapped", "gone"].iter().flat_map(|label| find(token, s, label)) {
            token.destroy_object(s, object).unwrap();
        }
        pair(token, s, "swapped", 1, true);
    });
    for member in [0, 1] {
        made.on_member(member, |token, s| pair(token, s, "twin", 3, true));
    }
    // One that nobody copies, on one member alone.
    made.on_member(0, |token, s| {
        let edwards = (ck::CKM_EC_EDWARDS_KEY_PAIR_GEN, Attribute::bytes(ck::CKA_EC_PARAMS, ED25519));
        pair_for(token, s, ("alone", 4), edwards, ck::CKA_SIGN);
    });
    let (ran, html, report) = reported(&made);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert_eq!(report["well"], false);
    assert!(
        report["verdict"].as_str().unwrap().starts_with("Not all is well: of 9 objects "),
        "{}",
        report["verdict"]
    );
    assert!(html.contains("verdict bad") && html.contains("<span class=\"different\">different</span>"));

    let (is_content, said) = by_script(&report);
    assert!(is_content, "{said:#?}");
    assert_eq!(
        said.iter().filter(|line| line.starts_with("another key, as reported: ")).count(),
        2,
        "{said:#?}"
    );
    let kinds = verify_all(&report);
    assert_eq!(kinds["alone"], "signature CKM_EDDSA");
    let words = |class, label| -> Vec<String> {
        let copies = object(&report, class, label)[0]["copies"].as_array().unwrap().iter();
        copies.map(|c| format!("{} {}", c["member"], c["word"]).replace('"', "")).collect()
    };
    for class in ["private-key", "public-key"] {
        assert_eq!(words(class, "swapped"), ["a same", "b different"]);
        assert_eq!(words(class, "alone"), ["a same", "b missing"]);
    }
    assert_eq!(words("secret-key", "gone"), ["a same", "b missing"]);
    // Each of the two is verified with a key of its own.
    let twins = object(&report, "private-key", "twin");
    let [one, other] = twins.as_slice() else { panic!("{twins:?}") };
    assert_ne!(one["public_key"], other["public_key"]);
    for twin in [one, other] {
        assert_eq!((&twin["conflict"], twin["copies"].as_array().unwrap().len()), (&json!(true), 1));
        let copy = &twin["copies"][0];
        assert_eq!(copy["word"], "different");
        assert!(copy["reason"].as_str().unwrap().contains("is a different one"), "{copy}");
    }
    assert!(html.contains("neither is used"));
}

#[test]
fn a_member_that_is_away_is_told_to_be() {
    let made = Made::with(2);
    made.as_application(|token, s| {
        pair(token, s, "k", 1, true);
    });
    made.hide("b", true);
    let (ran, html, report) = reported(&made);
    assert_eq!(ran.code, 1);
    assert_eq!(report["groups"][0]["objects"][0]["not_asked"], json!(["b"]));
    assert!(report["groups"][0]["members"][1]["token"].is_null());
    assert!(
        report["verdict"].as_str().unwrap().contains("member b is down and was not asked"),
        "{}",
        report["verdict"]
    );
    assert!(html.contains("not asked: b"), "{html}");
}

#[test]
fn what_cannot_be_reported_is_found_out_before_the_check() {
    let made = Made::with(1);
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("taken.json")).unwrap();
    for (arguments, word) in [
        (vec!["--prove", "--report", &path("missing/r.html")], "missing/r.html: it cannot be written"),
        (vec!["--prove", "--report", &path("taken.json")], "it is a folder"),
        (vec!["--prove", "--report", "/proc/r.json"], "/proc/r.json: it cannot be written"),
        (vec!["--prove", "--report", &path("r.pdf")], ".html or .json"),
        (vec!["--prove", "--report", &path("r")], ".html or .json"),
        (vec!["--report", &path("r.html")], "--prove"),
    ] {
        let ran = made.run_without_pin(&[&["check"], arguments.as_slice()].concat());
        assert_eq!(ran.code, 2, "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(word), "{arguments:?}: {}", ran.err);
        assert!(!ran.err.contains("PIN"), "found out before it is wanted: {}", ran.err);
    }
    let good = path("r.html");
    assert_eq!(made.run_without_pin(&["check", "--prove", "--report", &good]).code, 2, "there is no PIN");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was left");
    let ran = made.run(&["check", "--prove", "--report", &good]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(std::fs::read_to_string(&good).unwrap().contains("There is no object to prove."));
}
