//! What becomes of a `Chrystoki.conf`, and of what is none.

use super::file::NAME;
use super::*;

/// With what such files were seen to have: comments of both kinds, a name with a blank, an empty value, no blanks around a
/// `=`, a section on one line, quotes, a list over two lines.
const FILE: &str = "\u{feff}# of a client\r
Chrystoki2 = {\r
   LibUNIX = /usr/lib/libCryptoki2.so;\r
   LibUNIX64 = /usr/safenet/lunaclient/lib/libCryptoki2_64.so;\r
}
Luna = { DefaultTimeOut=500000; PEDTimeout1 = 100000; }
LunaSA Client = {
   ServerName00 = hsm1.example;
   ServerHtl00 = ;
}
REST = {
   AuthTokenClientSecret = not-to-be-shown;
   Url = https://cloud.example/x;
};
VirtualToken = {
   VirtualToken01Members = 1238700701510; // the serial numbers
   VirtualToken00Label = myHAgroup;       // the label
   VirtualToken00SN = 1154438865287;
   VirtualToken00Members = 154438865287,
                       1238700701509, 1238700701508;
   VirtualToken01Label = 'second group';
   VirtualTokenActiveRecovery = activeEnhanced;
   VirtualToken02Label = ;
}
HASynchronize = {
   myHAgroup = 1;
}
HAConfiguration = {
   HAOnly = 1;
   ReconnAtt = -1;
   AutoReconnectInterval = 120;
   haLogStatus = enabled;
   haLogPath = /tmp/halog;
   logLen = 262144;
   failover_on_deactivation = 1;
   myHAgroupStandbyMembers = 1238700701508;
}
";

fn imported(text: &str) -> Imported {
    import(text.as_bytes(), None).unwrap_or_else(|e| panic!("{e}"))
}

fn mistake(text: &str) -> String {
    import(text.as_bytes(), None).expect_err("a mistake").to_string()
}

/// A file with these settings, the groups' on line 2 and HAConfiguration's on line 3.
fn file(groups: &str, configuration: &str) -> String {
    format!(
        "Chrystoki2 = {{ LibUNIX64 = /l.so; }}\nVirtualToken = {{ {groups} }}\nHAConfiguration = {{ {configuration} }}\n"
    )
}

const GROUP: &str = "VirtualToken00Label = g; VirtualToken00Members = 1, 2;";

fn notes(groups: &str, configuration: &str) -> Vec<String> {
    imported(&file(groups, configuration)).notes
}

/// The one note about a setting.
fn note(about: &str, notes: &[String]) -> String {
    let found: Vec<_> = notes.iter().filter(|n| n.contains(about)).collect();
    assert_eq!(found.len(), 1, "{about}: {notes:?}");
    found[0].clone()
}

#[test]
fn a_whole_file_is_carried_over() {
    let Imported { config, notes } = imported(FILE);
    assert!(config.ha_only);
    let [first, second] = config.groups.as_slice() else { panic!("{config:?}") };
    assert_eq!((first.label.as_str(), second.label.as_str()), ("myHAgroup", "second group"));
    let members: Vec<_> = first.members.iter().map(|m| (m.name.as_str(), m.role)).collect();
    assert_eq!(
        members,
        [("154438865287", Role::Active), ("1238700701509", Role::Active), ("1238700701508", Role::Standby)]
    );
    for member in first.members.iter().chain(&second.members) {
        assert_eq!(member.selector.serial.as_deref(), Some(member.name.as_str()));
        assert_eq!(member.module, Path::new("/usr/safenet/lunaclient/lib/libCryptoki2_64.so"));
    }
    assert_eq!((first.min_copies, second.min_copies), (2, 1));
    for group in &config.groups {
        assert_eq!(group.recovery.mode, RecoveryMode::Auto);
        assert_eq!(group.recovery.interval, Duration::from_secs(1));
        assert_eq!(group.recovery.max_interval, Duration::from_secs(120));
    }
    for about in [
        "HAOnly = 1: ",
        "VirtualToken00SN: ",
        "AutoReconnectInterval: ",
        "haLogPath, haLogStatus, logLen: ",
        "failover_on_deactivation",
        "myHAgroupStandbyMembers: role",
    ] {
        note(about, &notes);
    }
    assert_eq!(notes.len(), 6, "{notes:?}");
    assert!(!format!("{notes:?}").contains("not-to-be-shown"));
    // What is printed can be read, and means the same.
    let read = Config::parse(&config.to_toml().unwrap()).unwrap();
    assert_eq!(read, config);
}

#[test]
fn the_library_is_the_wider_one_unless_another_is_named() {
    let module = |chrystoki2: &str, given: Option<&str>| {
        let text = format!("{chrystoki2}\nVirtualToken = {{ {GROUP} }}");
        import(text.as_bytes(), given.map(Path::new))
            .map(|i| (i.config.groups[0].members[0].module.display().to_string(), i.notes))
            .map_err(|e| e.to_string())
    };
    let both = "Chrystoki2 = { LibUNIX = /32.so; LibUNIX64 = /64.so; }";
    assert_eq!(module(both, None).unwrap().0, "/64.so");
    assert_eq!(module("Chrystoki2 = { LibUNIX = /32.so; LibUNIX64 = ; }", None).unwrap().0, "/32.so");
    assert_eq!(module(both, Some("/own.so")).unwrap().0, "/own.so");
    assert_eq!(module("", Some("/own.so")).unwrap().0, "/own.so");
    assert!(module("", None).unwrap_err().contains("--module"));
    assert!(module("\nChrystoki2 = { LibNT = cryptoki.dll; }", None).unwrap_err().starts_with("line 2: "));
    let (path, notes) = module("Chrystoki2 = { LibUNIX64 = libs/64/libcklog2.so; }", None).unwrap();
    assert_eq!(path, "libs/64/libcklog2.so");
    note("LibUNIX64: this is the client's logging library", &notes);
    note("is a relative path", &notes);
}

#[test]
fn ha_only_is_off_where_the_file_does_not_say() {
    for (configuration, on) in [("", false), ("HAOnly = 0;", false), ("haonly=1;", true)] {
        let Imported { config, notes } = imported(&file(GROUP, configuration));
        assert_eq!(config.ha_only, on, "{configuration}");
        assert_eq!(note("HAOnly", &notes).contains("hides"), on);
    }
    assert_eq!(mistake(&file(GROUP, "HAOnly = yes;")), "line 3: HAOnly: 0 or 1 was expected");
}

#[test]
fn no_tries_are_manual_recovery_and_some_are_without_end() {
    let mode = |configuration: &str| imported(&file(GROUP, configuration)).config.groups[0].recovery.mode;
    assert_eq!(mode("reconnAtt = 0;"), RecoveryMode::Manual);
    assert_eq!(mode("reconnAtt = -1;"), RecoveryMode::Auto);
    assert_eq!(mode("reconnAtt = 500;"), RecoveryMode::Auto);
    assert_eq!(mode(""), RecoveryMode::Auto);
    assert!(!notes(GROUP, "reconnAtt = -1;").iter().any(|n| n.contains("reconnAtt")));
    note("reconnAtt: the tries do not end", &notes(GROUP, "reconnAtt = 500;"));
    note("reconnAtt is not there", &notes(GROUP, ""));
    for wrong in ["-2", "x", "1.5"] {
        assert!(mistake(&file(GROUP, &format!("reconnAtt = {wrong};"))).starts_with("line 3: reconnAtt: "));
    }
}

#[test]
fn an_interval_is_the_longest_between_tries() {
    let longest = |seconds: &str| {
        let text = file(GROUP, &format!("AutoReconnectInterval = {seconds};"));
        imported(&text).config.groups[0].recovery.max_interval.as_secs()
    };
    assert_eq!(longest("1"), 1);
    assert_eq!(longest("1200"), 1200);
    for out_of_range in ["0", "86401"] {
        assert_eq!(longest(out_of_range), 60);
        let text = format!("AutoReconnectInterval = {out_of_range};");
        note("AutoReconnectInterval: left out", &notes(GROUP, &text));
    }
    for text in ["AutoReconnectInterval = -1;", "AutoReconnectInterval = 1m;"] {
        assert!(mistake(&file(GROUP, text)).starts_with("line 3: AutoReconnectInterval: "));
    }
}

#[test]
fn standbys_are_told_by_their_groups_label() {
    let groups = format!("{GROUP} VirtualToken01Label = h; VirtualToken01Members = 3;");
    let Imported { config, notes } = imported(&file(&groups, "gStandbyMembers = 2, 4;"));
    let members: Vec<_> = config.groups[0].members.iter().map(|m| (m.name.as_str(), m.role)).collect();
    assert_eq!(members, [("1", Role::Active), ("2", Role::Standby), ("4", Role::Standby)]);
    note("4 is not in VirtualToken00Members", &notes);
    let of = |configuration: &str| mistake(&file(&groups, configuration));
    assert_eq!(of("gStandbyMembers = 3;"), "line 3: gStandbyMembers: 3 is a member of another group");
    assert!(
        of("hStandbyMembers = 3;").starts_with("line 2: VirtualToken01Members: every member is a standby")
    );
    assert!(of("gStandbyMembers = <none>;").contains("no serial number"));
    let notes = self::notes(&groups, "iStandbyMembers = 9;");
    note("iStandbyMembers: left out", &notes);
}

#[test]
fn what_has_no_equivalent_is_named() {
    let more = "HASynchronize = { g = 0; other = 1; }\nHARecovery = { g = 1; }\n";
    let groups = format!("{GROUP} VirtualTokenActiveRecovery = activeBasic; VirtualToken00Standby = 2;");
    let text = file(&groups, "haLogStatus = disabled; haLogPath = /x;") + more;
    let Imported { notes, .. } = imported(&text);
    for about in [
        "HASynchronize: g = 0",
        "HASynchronize: other",
        "HARecovery: ",
        "VirtualTokenActiveRecovery: ",
        "VirtualToken00Standby is left out",
    ] {
        note(about, &notes);
    }
    assert!(!notes.iter().any(|n| n.contains("haLog")), "what is off is missed by nobody: {notes:?}");
    let wrong = file(GROUP, "") + "HASynchronize = { g = maybe; }\n";
    assert_eq!(mistake(&wrong), "line 4: HASynchronize: g: 0 or 1 was expected");
}

#[test]
fn wrong_groups_are_told_with_their_line() {
    let long = "x".repeat(33);
    for (groups, expected) in [
        ("", "line 2: VirtualToken: it has no group"),
        ("VirtualToken00SN = 12;", "line 2: VirtualToken: it has no group"),
        (
            "VirtualToken00Label = g;",
            "line 2: VirtualToken00Label: this group has no members (VirtualToken00Members)",
        ),
        (
            "VirtualToken00Label = g; VirtualToken00Members = ,;",
            "line 2: VirtualToken00Members: this group has no members",
        ),
        (
            "VirtualToken03Members = 1;",
            "line 2: VirtualToken03Members: this group has no label (VirtualToken03Label)",
        ),
        (
            "VirtualToken00Label = g; VirtualToken00Members = 1,\n2, 1;",
            "line 2: VirtualToken00Members: 1 stands on line 2 already; a partition can be one member of one group",
        ),
        (
            "VirtualToken00Label = g; VirtualToken00Members = 1;\nVirtualToken01Label = h;\nVirtualToken01Members = 1;",
            "line 4: VirtualToken01Members: 1 stands on line 2 already; a partition can be one member of one group",
        ),
        (
            "VirtualToken00Label = g; VirtualToken00Members = 1, hsm-2;",
            "line 2: VirtualToken00Members: number 2 of the list is no serial number, which has 1 to 16 digits",
        ),
        (
            "VirtualToken00Label = g; VirtualToken00Members = 12345678901234567;",
            "line 2: VirtualToken00Members: number 1 of the list is no serial number, which has 1 to 16 digits",
        ),
        (
            "VirtualToken00Label = g; VirtualToken00Members = 1;\nVirtualToken01Label = g; VirtualToken01Members = 2;",
            "line 3: VirtualToken01Label: the group of line 2 has this label too",
        ),
        (
            "VirtualToken00Label = g;\nvirtualtoken00label = h; VirtualToken00Members = 1;",
            "line 3: virtualtoken00label stands on line 2 too",
        ),
        (
            &format!("VirtualToken00Label = {long}; VirtualToken00Members = 1;"),
            "line 2: VirtualToken00Label: a label of 1 to 32 bytes on one line was expected",
        ),
    ] {
        assert_eq!(mistake(&file(groups, "")), expected, "{groups}");
    }
    let many: Vec<_> = (1..=MAX_MEMBERS + 1).map(|n| n.to_string()).collect();
    let groups = format!("VirtualToken00Label = g; VirtualToken00Members = {};", many.join(","));
    assert!(mistake(&file(&groups, "")).contains("33 members; a group here has at most 32"));
}

#[test]
fn what_is_no_such_file_is_told_with_its_line() {
    for (text, expected) in [
        ("", "not a Chrystoki.conf: it has neither a section Chrystoki2 nor VirtualToken"),
        ("A = { b = c; }", "not a Chrystoki.conf: it has neither a section Chrystoki2 nor VirtualToken"),
        (
            "Chrystoki2 = { LibUNIX64 = /l.so; }",
            "it has no section VirtualToken: this client has no HA group",
        ),
        (
            "[Chrystoki2]\nLibNT=cryptoki.dll\n",
            "line 1: this is the form of a crystoki.ini, which Windows clients have; a Chrystoki.conf was expected",
        ),
        ("\n\nhello\n", "line 3: a section, NAME = { … }, was expected"),
        ("a = 1;\n", "line 1: a stands in no section: a { was expected after it"),
        ("A = {\n b = c;\n}\n}\n", "line 4: a } that ends no section"),
        ("\nA = {\n b = c;\n", "line 2: the section A does not end: a } was expected"),
        (
            "A = {\n b = c;\nB = {\n d = e;\n}\n",
            "line 3: B: a value and a ; were expected; or is a } missing, for the section A, which begins on line 1?",
        ),
        (
            "A = {\n b = secret\n c = d;\n}\n",
            "line 2: b: a value and a ; were expected; or is a } missing, for the section A, which begins on line 1?",
        ),
        ("A = {\n secret\n}\n", "line 2: a setting, KEY = VALUE;, was expected in the section A"),
        ("VirtualToken = { }\nVIRTUALTOKEN = { }", "line 2: the section VirtualToken begins on line 1 too"),
    ] {
        assert_eq!(mistake(text), expected, "{text}");
    }
    let of = |bytes: &[u8]| import(bytes, None).expect_err("a mistake").to_string();
    assert_eq!(of(b"A = {\n\xff\n}"), "line 2: not UTF-8: this is no text file");
    assert_eq!(of(b"\x7fELF\x02\x01\x01\0"), "line 1: a control character: this is no text file");
    assert_eq!(of(b"A = {\n\x1b[2J = 1;\n}"), "line 2: a control character: this is no text file");
    // Whatever is that long is not shown.
    let long = "x".repeat(NAME + 1);
    assert!(!mistake(&format!("A = {{ {long} = 1; }}")).contains(&long));
}

/// No file makes it panic, and what it prints can be read.
#[test]
fn damaged_files_are_told_or_read() {
    let check = |bytes: &[u8]| {
        if let Ok(Imported { config, .. }) = import(bytes, None) {
            config.to_toml().unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(bytes)));
        }
    };
    let whole = FILE.as_bytes();
    for n in 0..whole.len() {
        let (before, after) = (&whole[..n], &whole[n + 1..]);
        check(before);
        check(&[before, after].concat());
        for other in *b"{};=,\n\0/\xff1" {
            check(&[before, &[other], after].concat());
        }
    }
}

#[test]
fn the_head_is_comments_whatever_the_files_name() {
    for name in ["/etc/Chrystoki.conf", "a\nha_only = false\n\u{1b}[2J"] {
        assert!(head(Path::new(name)).lines().all(|line| line.starts_with('#')), "{name:?}");
        assert!(!head(Path::new(name)).contains('\u{1b}'));
    }
}
