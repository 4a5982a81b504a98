//! What `C_Initialize` answers for each state that the configuration can be in, and what the log says.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::ptr::null_mut;

use common::call;
use ha_rig::{Alone, Tokens, is_alone, set_mode};
use ha_token::Rv;

/// Written to standard error between two tries: the log is there too.
const MARK: &str = "==== ";

/// One try of `C_Initialize`, with the log's lines under a name.
fn initialize(name: &str) -> Result<(), Rv> {
    eprintln!("{MARK}{name}");
    let answer = call!(C_Initialize(null_mut()));
    if answer.is_ok() {
        assert_eq!(call!(C_Finalize(null_mut())), Ok(()));
    }
    answer
}

/// What was written under a name.
fn under<'a>(log: &'a str, name: &str) -> &'a str {
    let start = log.find(&format!("{MARK}{name}\n")).unwrap_or_else(|| panic!("no {name} in\n{log}"));
    let rest = &log[start + MARK.len()..];
    rest.split(MARK).next().unwrap()
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    set_mode(path, 0o600);
}

#[test]
fn a_named_configuration_that_is_not_right_is_an_error_that_says_where_and_what() {
    const NAME: &str = "a_named_configuration_that_is_not_right_is_an_error_that_says_where_and_what";
    if is_alone(NAME) {
        return each_mistake();
    }
    let alone = Alone::new(NAME).as_ordinary_user();
    let file = alone.home().join("ha.toml");
    let alone = alone.env("PKCS11_HA_CONF", &file);
    let log = alone.run();
    let file = file.display();
    for (name, parts) in [
        ("missing", &["No such file or directory"][..]),
        ("a folder", &["directory"]),
        ("unreadable", &["Permission denied"]),
        ("writable by others", &["writable by others (mode 602)", "chmod o-w"]),
        ("not UTF-8", &["line 2: not UTF-8"]),
        ("no syntax", &["line 2: group.label: ", "quoted"]),
        ("an unknown key", &["line 7: group.member.tokn: unknown key", "token, serial, uri"]),
        ("a wrong value", &["line 3: group.deadline: ", "a duration such as", "was expected"]),
        ("a wrong sum", &["line 3: group.min_copies: ", "from 1 to that of the members, 2,"]),
        ("a PIN", &["line 8: group.member.pin: ", "{ env = … }"]),
    ] {
        let said = under(&log, name);
        assert!(said.contains("ERROR") && said.contains("pkcs11-ha cannot start"), "{name}: {said}");
        assert!(said.contains(&format!("{file}: ")), "{name}: {said}");
        assert!(parts.iter().all(|p| said.contains(p)), "{name}: {parts:?} in {said}");
        assert!(!said.contains("4711"), "{said}");
    }
    assert!(!under(&log, "right").contains("ERROR"), "{log}");
}

fn each_mistake() {
    let tokens = Tokens::new(2);
    let file = PathBuf::from(std::env::var_os("PKCS11_HA_CONF").unwrap());
    let general = Err(Rv::GENERAL_ERROR);
    assert_eq!(initialize("missing"), general);
    std::fs::create_dir(&file).unwrap();
    assert_eq!(initialize("a folder"), general);
    std::fs::remove_dir(&file).unwrap();
    let right = tokens.config(false, "");
    write(&file, &right);
    set_mode(&file, 0o000);
    assert_eq!(initialize("unreadable"), general);
    set_mode(&file, 0o602);
    assert_eq!(initialize("writable by others"), general);
    set_mode(&file, 0o600);
    std::fs::write(&file, b"# a comment\n\xff\n").unwrap();
    assert_eq!(initialize("not UTF-8"), general);
    let group = |lines: &str, member: &str| {
        let one = |n: &str| format!("[[group.member]]\nmodule = \"/m.so\"\n{n}\n");
        format!("[[group]]\nlabel = \"g\"\n{lines}\n{}{}", one(member), one("token = \"b\""))
    };
    for (name, text) in [
        ("no syntax", "[[group]]\ngroup.label = ha1\n".to_owned()),
        ("an unknown key", group("\n", "tokn = \"a\"")),
        ("a wrong value", group("deadline = \"soon\"", "token = \"a\"")),
        ("a wrong sum", group("min_copies = 3", "token = \"a\"")),
        ("a PIN", group("\n", "token = \"a\"\npin = \"4711\"")),
    ] {
        write(&file, &text);
        assert_eq!(initialize(name), general, "{name}");
    }
    // What was wrong is mended: it works, in the same process.
    write(&file, &right);
    assert_eq!(initialize("right"), Ok(()));
}

#[test]
fn a_users_own_file_that_is_there_must_be_right_and_none_is_no_error() {
    const NAME: &str = "a_users_own_file_that_is_there_must_be_right_and_none_is_no_error";
    if !is_alone(NAME) {
        let log = Alone::new(NAME).as_ordinary_user().run();
        let said = under(&log, "not right");
        assert!(said.contains("/.config/pkcs11-ha/ha.toml: line 1: ha_onli: unknown key"), "{said}");
        assert_eq!(under(&log, "none").trim(), "none", "nothing to complain of");
        return;
    }
    assert!(!Path::new("/etc/pkcs11-ha/ha.toml").exists(), "this machine has a configuration of its own");
    assert_eq!(initialize("none"), Ok(()));
    let folder = PathBuf::from(std::env::var_os("HOME").unwrap()).join(".config/pkcs11-ha");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("ha.toml");
    write(&file, "ha_onli = true\n");
    assert_eq!(initialize("not right"), Err(Rv::GENERAL_ERROR));
    write(&file, &Tokens::new(1).config(false, ""));
    assert_eq!(initialize("right"), Ok(()));
}
