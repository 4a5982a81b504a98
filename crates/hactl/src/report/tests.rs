//! What reports say of examinations that are made up, and where they go.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use ha_core::group::{
    Asked, Checked, Examination, Examined, GroupStatus, MemberStatus, Shown, Testimony, Word,
};
use ha_core::policy::health::State;
use ha_core::replica::proof::{Evidence, Exchange};
use ha_core::replica::verifier::{Digested, SecretMethod, Verifier};
use ha_token::{TokenInfo, Ulong, Version, ck};

use super::document::{Document, Group};
use super::{ReportFile, html};

const NASTY: &str = "</h3><script>alert(\"'&\")</script>\u{202e}\u{1b}[2J";

fn member(name: &str, state: State) -> MemberStatus {
    MemberStatus {
        name: name.into(),
        state,
        standby: false,
        last_fault: None,
        connect_error: None,
        round_trip: None,
        load: 0,
    }
}

fn asked(name: &str) -> Asked {
    let version = Version { major: 1, minor: 0 };
    Asked {
        member: name.into(),
        token: TokenInfo {
            label: NASTY.into(),
            manufacturer: NASTY.into(),
            model: NASTY.into(),
            serial: NASTY.into(),
            flags: 0,
            max_session_count: 0,
            session_count: 0,
            max_rw_session_count: 0,
            rw_session_count: 0,
            max_pin_len: 0,
            min_pin_len: 0,
            total_public_memory: 0,
            free_public_memory: 0,
            total_private_memory: 0,
            free_private_memory: 0,
            hardware_version: version,
            firmware_version: version,
            utc_time: String::new(),
        },
    }
}

fn examined(class: Ulong, verifier: Verifier, said: &[(&str, Word, Option<Exchange>)]) -> Examined {
    let copies = said.iter().map(|(name, word, exchange)| Testimony {
        member: (*name).into(),
        word: *word,
        reason: (*word != Word::Same).then(|| NASTY.to_owned()),
        shown: exchange.clone().map(|exchange| Shown {
            at: Duration::from_millis(1_800_000_000_123),
            evidence: Evidence { by_copy: false, exchange },
        }),
    });
    Examined {
        object: Checked {
            class,
            key_type: ck::CKK_AES,
            id: vec![1],
            label: NASTY.into(),
            fingerprint: Some(verifier.fingerprint()),
            copyable: true,
            foreign: false,
            members: said.iter().map(|(name, word, _)| ((*name).to_owned(), *word)).collect(),
            reasons: Vec::new(),
        },
        verifier: Some(verifier),
        conflicted: false,
        copies: copies.collect(),
    }
}

/// A secret key of which each member said this.
fn secret(said: &[(&str, Word)]) -> Examined {
    let method = SecretMethod::Mac(ck::CKM_AES_CMAC);
    let verifier = Verifier::Secret { method, length: 16, nonce: vec![7; 32], answer: vec![8; 16] };
    let said: Vec<_> = said
        .iter()
        .map(|(name, word)| {
            let answer = vec![if *word == Word::Different { 9 } else { 8 }; 16];
            let exchange = Exchange::Answer { method, question: vec![7; 51], expected: vec![8; 16], answer };
            (*name, *word, (*word != Word::Missing).then_some(exchange))
        })
        .collect();
    examined(ck::CKO_SECRET_KEY, verifier, &said)
}

fn document(members: &[MemberStatus], asked: Vec<Asked>, objects: Vec<Examined>) -> Document {
    let status = GroupStatus { label: NASTY.into(), members: members.to_vec() };
    let group = Group::of(NASTY, &status, &Examination { asked, objects });
    Document::of(vec![group], UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(1))
}

fn page(document: &Document) -> String {
    let mut page = Vec::new();
    html::write(&mut page, document).unwrap();
    String::from_utf8(page).unwrap()
}

fn two() -> [MemberStatus; 2] {
    [member("a", State::Up), member("<b>", State::Up)]
}

#[test]
fn nothing_that_others_write_is_markup_and_nothing_else_is_needed() {
    let words = [Word::Same, Word::Different, Word::Missing, Word::Unproven];
    let objects = words.iter().map(|word| secret(&[("a", Word::Same), ("<b>", *word)])).collect();
    let page = page(&document(&two(), vec![asked("a"), asked("<b>")], objects));
    for outside in ["http:", "https:", "src=", "url(", "@import", "<script", "<b>", "href=\"h"] {
        assert!(!page.contains(outside), "{outside}: {page}");
    }
    assert!(page.contains("&lt;script&gt;alert(&quot;&#39;&amp;&quot;)"), "{page}");
    for unseen in ['\u{202e}', '\u{1b}'] {
        assert!(!page.contains(unseen), "{page}");
    }
    assert!(page.contains("\\u{202e}\\u{1b}[2J"), "{page}");
}

#[test]
fn the_verdict_says_in_one_sentence_how_it_is() {
    let both = || vec![asked("a"), asked("<b>")];
    let fine = || secret(&[("a", Word::Same), ("<b>", Word::Same)]);
    let of = |word| secret(&[("a", Word::Same), ("<b>", word)]);
    for (members, asked, objects, verdict) in [
        (two(), both(), vec![], "There is no object to prove."),
        (
            two(),
            both(),
            vec![fine()],
            "All is well: each of the group's 1 object is proven to be the same on every one of its 2 members.",
        ),
        (
            two(),
            both(),
            vec![fine(), of(Word::Different), of(Word::Missing), of(Word::Unproven)],
            "Not all is well: of 4 objects 1 proven to be the same; 1 different, 1 missing from a member, 1 not proven.",
        ),
        (
            [member("a", State::Up), member("<b>", State::Down)],
            vec![asked("a")],
            vec![secret(&[("a", Word::Same)])],
            "Not all is well: of 1 object 1 proven to be the same; member <b> is down and was not asked.",
        ),
        (
            [member("a", State::Up), member("<b>", State::Suspect)],
            both(),
            vec![fine()],
            "Not all is well: of 1 object 1 proven to be the same; member <b> is suspect by now.",
        ),
        (
            two(),
            both(),
            vec![fine(), secret(&[("a", Word::Same)])],
            "Not all is well: of 2 objects 2 proven to be the same; 1 not asked for on a member that failed meanwhile.",
        ),
    ] {
        let document = document(&members, asked, objects);
        assert_eq!(document.verdict, verdict);
        assert_eq!(document.well, !verdict.starts_with("Not"));
        assert!(page(&document).contains(if document.well { "verdict well" } else { "verdict bad" }));
    }
}

#[test]
fn an_answer_has_its_time_its_kind_and_what_it_is_judged_by() {
    let examined = secret(&[("a", Word::Same), ("<b>", Word::Different)]);
    let document =
        serde_json::to_value(document(&two(), vec![asked("a"), asked("<b>")], vec![examined])).unwrap();
    assert_eq!((&document["schema"], &document["ended"]), (&1.into(), &"1970-01-01T00:00:01.000Z".into()));
    assert_eq!(document["kinds"].as_object().unwrap().keys().collect::<Vec<_>>(), ["mac"]);
    let copies = &document["groups"][0]["objects"][0]["copies"];
    assert_eq!(
        copies[0]["proof"],
        serde_json::json!({
            "time": "2027-01-15T08:00:00.123Z",
            "kind": "mac",
            "mechanism": "CKM_AES_CMAC",
            "by_session_copy": false,
            "challenge": "07".repeat(51),
            "answer": "08".repeat(16),
            "expected": "08".repeat(16),
            "verify": "cmp answer expected",
        })
    );
    assert_eq!(copies[1]["proof"]["answer"], "09".repeat(16));
    assert_eq!((&copies[1]["word"], &copies[1]["serial"]), (&"different".into(), &NASTY.into()));
}

#[test]
fn a_key_on_a_curve_that_nobody_else_names_is_verified_by_nobody_else() {
    let verifier = Verifier::Ec { params: b"\x13\x0aprime256v1".to_vec(), point: vec![4; 65] };
    let signed = Exchange::Signature {
        mechanism: ck::CKM_ECDSA,
        message: vec![1],
        digested: Digested::Sha256Begin,
        signature: vec![2; 64],
    };
    let read = Exchange::Read { there: verifier.clone() };
    for exchange in [signed, read] {
        let one = examined(ck::CKO_PRIVATE_KEY, verifier.clone(), &[("a", Word::Same, Some(exchange))]);
        let document = serde_json::to_value(document(&two()[..1], vec![asked("a")], vec![one])).unwrap();
        let object = &document["groups"][0]["objects"][0];
        assert!(object["public_key"].is_null() && object["copies"][0]["proof"]["verify"].is_null());
    }
}

#[test]
fn a_length_is_told_in_words() {
    let lengths = Exchange::Length { expected: 32, there: 16 };
    let verifier = Verifier::Content { digest: vec![1; 32] };
    let one = examined(ck::CKO_SECRET_KEY, verifier, &[("a", Word::Different, Some(lengths))]);
    let document = document(&two()[..1], vec![asked("a")], vec![one]);
    let copy = &document.groups[0].objects[0].copies[0];
    assert!(copy.proof.is_none());
    assert!(copy.reason.as_ref().unwrap().ends_with(": it has 16 bytes and should have 32"));
}

fn file(path: &Path) -> ReportFile {
    path.to_str().unwrap().parse().unwrap()
}

#[test]
fn a_file_is_html_or_json_by_its_name() {
    for (name, is_taken) in [
        ("r.html", true),
        ("r.JSON", true),
        ("dir.json/r.html", true),
        ("r", false),
        ("r.htm", false),
        ("html", false),
        (".json", false),
        ("", false),
    ] {
        assert_eq!(name.parse::<ReportFile>().is_ok(), is_taken, "{name}");
    }
}

#[test]
fn a_report_is_there_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let count = || std::fs::read_dir(folder.path()).unwrap().count();
    let document = document(&two(), vec![asked("a"), asked("<b>")], vec![]);
    let (report, other) = (folder.path().join("r.json"), folder.path().join("other.json"));
    let json = file(&report);
    json.may_be_written().unwrap();
    assert_eq!(count(), 0, "nothing is left of the trial");

    std::fs::write(&other, "old").unwrap();
    std::os::unix::fs::symlink(&other, &report).unwrap();
    json.may_be_written().unwrap();
    json.write(&document).unwrap();
    assert!(std::fs::symlink_metadata(&report).unwrap().is_file());
    assert_eq!(std::fs::read_to_string(&other).unwrap(), "old", "what a link led to is not written");
    let read: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!(read["schema"], 1);
    assert_eq!(count(), 2);

    for path in [folder.path().join("missing/r.html"), folder.path().join("f.html")] {
        if path.ends_with("f.html") {
            std::fs::create_dir(&path).unwrap();
        }
        for error in [file(&path).may_be_written(), file(&path).write(&document)] {
            let error = format!("{:#}", error.unwrap_err());
            assert!(error.contains("cannot be written") && error.contains(path.to_str().unwrap()), "{error}");
        }
    }
    assert_eq!(count(), 3, "nothing is left of what failed");
}
