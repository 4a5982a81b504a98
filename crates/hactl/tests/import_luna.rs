//! `hactl config import-luna` as it is run: what it prints is a configuration, and what it refuses has status 2.

mod support;

use std::path::PathBuf;

use serde_json::json;
use support::{hactl, keys};

const FILE: &str = "Chrystoki2 = {
   LibUNIX64 = /usr/safenet/lunaclient/lib/libCryptoki2_64.so;
}
VirtualToken = {
   VirtualToken00Label = myHAgroup;
   VirtualToken00SN = 11165087;
   VirtualToken00Members = 1165087, 1165088;
}
HASynchronize = {
   myHAgroup = 1;
}
HAConfiguration = {
   HAOnly = 1;
   reconnAtt = 0;
   AutoReconnectInterval = 600;
}
";

/// A file in a folder of its own.
fn written(content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("Chrystoki.conf");
    std::fs::write(&file, content).expect("written");
    (folder, file)
}

#[test]
fn luna_groups_are_printed_as_a_configuration_that_is_right() {
    let (folder, file) = written(FILE);
    let ran = hactl(&["config", "import-luna", file.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.starts_with("# Made by `hactl config import-luna` from "), "{}", ran.out);
    assert!(ran.err.lines().all(|line| line.starts_with("note: ")), "{}", ran.err);
    assert!(
        ran.err.contains("note: HAOnly = 1: ") && ran.err.contains("ChrystokiConfigurationPath"),
        "{}",
        ran.err
    );
    for line in [
        "state_dir = \"/var/lib/pkcs11-ha\"",
        "label = \"myHAgroup\"",
        "mode = \"manual\"",
        "max_interval = \"10m\"",
        "module = \"/usr/safenet/lunaclient/lib/libCryptoki2_64.so\"",
        "serial = \"1165087\"",
        "serial = \"1165088\"",
    ] {
        assert!(ran.out.lines().any(|l| l == line), "{line}: {}", ran.out);
    }
    let config = folder.path().join("ha.toml");
    std::fs::write(&config, &ran.out).unwrap();
    let checked = hactl(&["config", "check", "--json", "--config", config.to_str().unwrap()]);
    assert_eq!(checked.code, 0, "{}", checked.err);
    assert_eq!(checked.json()["groups"], json!([{"label": "myHAgroup", "members": ["1165087", "1165088"]}]));
}

#[test]
fn luna_groups_as_one_document() {
    let (_folder, file) = written(FILE);
    let plain = hactl(&["config", "import-luna", file.to_str().unwrap(), "--module", "/opt/luna.so"]);
    let ran = hactl(&["config", "import-luna", "--json", "--module", "/opt/luna.so", file.to_str().unwrap()]);
    assert_eq!((plain.code, ran.code), (0, 0), "{}{}", plain.err, ran.err);
    let document = ran.json();
    assert_eq!(keys(&document), ["notes", "schema", "toml"]);
    assert_eq!(document["toml"], plain.out);
    assert!(plain.out.contains("module = \"/opt/luna.so\""));
    let notes: Vec<_> = document["notes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| format!("note: {}", n.as_str().unwrap()))
        .collect();
    assert_eq!(plain.err.lines().collect::<Vec<_>>(), notes);
    assert_eq!(ran.err, "");
}

#[test]
fn luna_files_that_are_wrong_are_refused() {
    let no_group = "Chrystoki2 = { LibUNIX64 = /l.so; }\n";
    let huge = vec![b'#'; (1 << 20) + 1];
    for (content, words) in [
        (FILE.replace("LibUNIX64", "LibNT").as_bytes(), "line 1: Chrystoki2 names no library (LibUNIX64)"),
        (
            FILE.replace("1165088;", "1165087;").as_bytes(),
            "line 7: VirtualToken00Members: 1165087 stands on line 7",
        ),
        (
            FILE.replace("1165087, 1165088", "").as_bytes(),
            "line 5: VirtualToken00Label: this group has no members",
        ),
        (FILE.replacen("}\n", "", 1).as_bytes(), "line 3: VirtualToken: "),
        (no_group.as_bytes(), "it has no section VirtualToken"),
        (b"[group]\n", "line 1: "),
        (b"\x7fELF\0\xff", "line 1: not UTF-8"),
        (&huge, "larger than a Chrystoki.conf can be (1 MiB)"),
        (b"", "not a Chrystoki.conf"),
    ] {
        let (_folder, file) = written(content);
        let file = file.to_str().unwrap();
        let ran = hactl(&["config", "import-luna", file]);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{words}: {}", ran.err);
        assert!(ran.err.starts_with(&format!("hactl: {file}: {words}")), "{words}: {}", ran.err);
        let ran = hactl(&["config", "import-luna", "--json", file]);
        assert_eq!(ran.code, 2);
        assert_eq!(keys(&ran.json()), ["error", "schema"]);
    }
    let (folder, file) = written("");
    for file in [folder.path(), &file.with_extension("gone")] {
        let ran = hactl(&["config", "import-luna", file.to_str().unwrap()]);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{}", ran.err);
        assert!(ran.err.starts_with(&format!("hactl: {}: ", file.display())), "{}", ran.err);
    }
    assert_eq!(hactl(&["config", "import-luna"]).code, 2);
}
