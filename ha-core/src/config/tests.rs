//! The file: its defaults, its errors, and what no text may do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use ha_token::Selector;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::policy::balance::Balance;

const MEMBER: &str = "[[group.member]]\nmodule = \"/m.so\"\ntoken = \"t\"\n";

fn group(lines: &str) -> String {
    format!("[[group]]\nlabel = \"g\"\n{lines}\n{MEMBER}")
}

fn mistake(text: &str) -> Mistake {
    match Config::parse(text) {
        Err(ConfigError::Wrong { mistake, .. }) => mistake,
        other => panic!("{text}\n{other:?}"),
    }
}

#[test]
fn defaults_are_the_documented_ones() {
    let config = Config::parse(&group("")).unwrap();
    let g = config.groups.first().unwrap();
    assert!(config.ha_only && g.balance == Balance::LeastBusy && g.min_copies == 1);
    assert_eq!(
        (g.deadline, g.generate_deadline),
        (Some(Duration::from_secs(10)), Some(Duration::from_secs(120)))
    );
    assert_eq!(
        (g.replay_limit, g.recovery.interval, g.recovery.max_interval),
        (1 << 20, Duration::from_secs(1), Duration::from_secs(60))
    );
    assert_eq!(g.members.first().unwrap().name, "t");
}

/// Each mistake with the line and the key that must be named, and a part of what was expected.
#[test]
fn what_is_wrong_is_named_with_line_key_and_what_was_expected() {
    let in_member = |lines: &str| format!("{}{lines}\n", group(""));
    let second = |lines: &str| format!("{}[[group.member]]\nmodule = \"/m.so\"\n{lines}\n", group(""));
    for (text, line, key, expected) in [
        // Syntax.
        ("ha_only = \n".into(), 1, "ha_only", "string values must be quoted"),
        ("\nha_only = true true\n".into(), 2, "ha_only", "must be quoted"),
        ("[log\n".into(), 1, "", "unclosed table"),
        // Unknown keys, at any depth.
        ("ha_onli = true\n".into(), 1, "ha_onli", "ha_only, state_dir, log, group"),
        ("\n[log]\nlevl = \"warn\"\n".into(), 3, "log.levl", "level, target, format"),
        (group("balanced = \"primary\""), 3, "group.balanced", "balance"),
        (group("recovery = { modus = \"auto\" }"), 3, "group.recovery.modus", "max_interval"),
        (in_member("label = \"x\""), 7, "group.member.label", "fingerprint"),
        // Kinds and words.
        ("ha_only = \"yes\"\n".into(), 1, "ha_only", "true or false"),
        ("log = 7\n".into(), 1, "log", "a table [log]"),
        ("[log]\nlevel = \"loud\"\n".into(), 2, "log.level", "\"error\" or \"warn\""),
        ("[log]\ntarget = \"file:log\"\n".into(), 2, "log.target", "file:/path"),
        ("state_dir = \"\"\n".into(), 1, "state_dir", "the path of a folder"),
        ("[group]\nlabel = \"g\"\n".into(), 1, "group", "tables [[group]]"),
        (group("balance = \"fastest\""), 3, "group.balance", "least-busy"),
        (group("deadline = \"10\""), 3, "group.deadline", "250ms"),
        (group("deadline = 10"), 3, "group.deadline", "250ms"),
        (group("deadline = \"25h\""), 3, "group.deadline", "at most a day"),
        (group("replay_limit = \"1MB\""), 3, "group.replay_limit", "1MiB"),
        (group("strict_usage = 1"), 3, "group.strict_usage", "true or false"),
        (group("vendor_mechanisms = [\n  1 ]"), 4, "group.vendor_mechanisms", "0x80000000"),
        // What does not fit together.
        (group("min_copies = 2"), 3, "group.min_copies", "from 1 to that of the members, 1,"),
        (group("min_copies = -1"), 3, "group.min_copies", "from 1 to that of the members"),
        (group("\nrecovery.interval = \"off\""), 4, "group.recovery.interval", "mode = \"manual\""),
        (
            group("[group.recovery]\nmax_interval = \"2s\"\ninterval = \"3s\""),
            4,
            "group.recovery.max_interval",
            "no longer than max_interval",
        ),
        (format!("[[group]]\n{MEMBER}"), 1, "group.label", "1 to 32 bytes"),
        (format!("[[group]]\nlabel = \"{}\"\n{MEMBER}", "ä".repeat(17)), 2, "group.label", "1 to 32 bytes"),
        (format!("{}{}", group(""), group("")), 8, "group.label", "line 2"),
        ("\n[[group]]\nlabel = \"g\"\n".into(), 2, "group.member", "1 to 32 of them"),
        ("[[group]]\nlabel = \"g\"\nmember = []\n".into(), 3, "group.member", "1 to 32 of them"),
        ("[[group]]\nlabel = \"g\"\nmember = [ 1 ]\n".into(), 3, "group.member", "[[group.member]]"),
        (in_member("role = \"standby\""), 4, "group.member", "one active member"),
        (second("token = \"t\""), 9, "group.member.token", "line 6"),
        (second("token = \"t\"\nname = \"u\""), 7, "group.member", "the same token as the member of line 6"),
        (second("name = \"t\"\ntoken = \"u\""), 9, "group.member.name", "line 6"),
        (second(""), 7, "group.member", "token, serial and uri"),
        (in_member("serial = \"1\""), 7, "group.member.serial", "exactly one of token, serial and uri"),
        (second("uri = \"pkcs11:object=k\""), 9, "group.member.uri", "does not name a token"),
        (second("uri = \"pkcs11:model=m\""), 7, "group.member.name", "a name"),
        (second("name = \"x\"\ntoken = \"\""), 10, "group.member.token", "a token's label"),
        (in_member("name = \"a\\nb\""), 7, "group.member.name", "control characters"),
        (
            "[[group]]\nlabel = \"g\"\n[[group.member]]\ntoken = \"t\"\n".into(),
            3,
            "group.member.module",
            "PKCS#11 module",
        ),
        (in_member("env = { A = 1 }"), 7, "group.member.env.(a variable)", "a string"),
        (in_member("env = { \"A=\" = \"1\" }"), 7, "group.member.env.(a variable)", "name"),
        (in_member("instance = \"shared\"\nenv = { A = \"1\" }"), 8, "group.member.env", "private"),
        (in_member("fingerprint = \"sha256:12\""), 7, "group.member.fingerprint", "64 hex digits"),
        (in_member("pin = { command = [] }"), 7, "group.member.pin", "a program"),
        (in_member("pin = { env = \"A\", file = \"/b\" }"), 7, "group.member.pin", "exactly one of"),
    ] {
        let text: String = text;
        let mistake = mistake(&text);
        assert_eq!((mistake.line, mistake.key.as_str()), (line, key), "{text}\n{mistake}");
        assert!(mistake.message.contains(expected), "{text}\n{mistake}");
    }
}

#[test]
fn a_pin_that_stands_in_the_file_is_refused_and_not_repeated() {
    for pin in [
        "\"geheim47\"",
        "4711471147",
        "[\"geheim47\"]",
        "{ value = \"geheim47\" }",
        "{ geheim = \"env\" }",
        "{ env = [\"geheim47\"] }",
        "{ command = [4711471147] }",
        "47.114711",
        "\"geheim47",
        "geheim47",
    ] {
        let mistake = mistake(&format!("{}pin = {pin}\n", group("")));
        assert_eq!(mistake.line, 7, "{pin}: {mistake}");
        let error = mistake.to_string();
        assert!(!error.contains("geheim") && !error.contains("4711"), "{pin}: {error}");
    }
}

#[test]
fn no_depth_of_tables_or_lists_overflows_the_stack() {
    for (one, n) in [("a.", 400_000), ("[", 900_000), ("{a=", 300_000), ("[a.", 300_000), ("x=[", 300_000)] {
        assert!(Config::parse(&one.repeat(n)).is_err());
        assert!(Config::parse(&format!("x = {}", one.repeat(n))).is_err());
    }
    assert!(Config::parse(&format!("{}x = 1", "a.".repeat(400_000))).is_err());
    assert!(Config::parse(&format!("[{}x]", "a.".repeat(400_000))).is_err());
    assert!(
        Config::parse(&(1..5000).map(|n| format!("[{}x]\n", "a.".repeat(n % 70))).collect::<String>())
            .is_err()
    );
}

#[test]
fn what_no_file_can_say_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let config = Config::parse(&group("")).unwrap();
    let not_utf8 = PathBuf::from(std::ffi::OsString::from_vec(vec![b'/', 0xff]));
    let odd = Config { state_dir: not_utf8, ..config.clone() };
    assert!(matches!(odd.to_toml(), Err(ConfigError::Unsayable)));
    let mut odd = config.clone();
    odd.groups[0].deadline = Some(Duration::from_micros(1500));
    assert!(matches!(odd.to_toml(), Err(ConfigError::Unsayable)));
    let mut odd = config;
    odd.groups[0].min_copies = 3;
    assert!(matches!(odd.to_toml(), Err(ConfigError::Wrong { .. })));
}

fn durations() -> impl Strategy<Value = Duration> {
    prop_oneof![
        1..=86_400_000u64,
        (1..=86_400u64).prop_map(|s| s * 1000),
        (1..=24u64).prop_map(|h| h * 3_600_000)
    ]
    .prop_map(Duration::from_millis)
}

/// Any characters at all that such a text may hold.
fn texts() -> impl Strategy<Value = String> {
    any::<String>().prop_map(|t| t.replace('\0', "0")).prop_filter("empty", |t| !t.is_empty())
}

fn paths() -> impl Strategy<Value = PathBuf> {
    texts().prop_map(|t| PathBuf::from(format!("/{t}")))
}

fn names() -> impl Strategy<Value = String> {
    "\\PC{1,12}".prop_filter("control", |t| !t.contains(char::is_control))
}

fn selectors() -> impl Strategy<Value = Selector> {
    let field = || option::of(texts());
    (field(), field(), field(), field(), option::of(any::<u32>()))
        .prop_map(|(label, serial, manufacturer, model, slot)| Selector {
            label,
            serial,
            manufacturer,
            model,
            slot_id: slot.map(Into::into),
        })
        .prop_filter("names nothing", |s| *s != Selector::default())
}

fn pins() -> impl Strategy<Value = PinSource> {
    prop_oneof![
        texts().prop_map(PinSource::Env),
        paths().prop_map(PinSource::File),
        vec(texts(), 1..4).prop_map(PinSource::Command),
    ]
}

fn members() -> impl Strategy<Value = Vec<MemberConfig>> {
    let one = (
        paths(),
        selectors(),
        select(&[Role::Active, Role::Standby]),
        select(&[InstanceMode::Auto, InstanceMode::Private, InstanceMode::Shared]),
        btree_map(
            texts().prop_map(|t| t.replace('=', "-")),
            any::<String>().prop_map(|t| t.replace('\0', "0")),
            0..3,
        ),
        option::of(pins()),
        option::of("[0-9a-f]{64}"),
    );
    (btree_set(names(), 1..5), vec(one, 5)).prop_map(|(names, parts)| {
        let members = names.into_iter().zip(parts).enumerate();
        members
            .map(|(i, (name, (module, mut selector, role, instance, env, pin, digits)))| {
                // No two are the same token, and one at least is active.
                selector.slot_id = Some(i as ha_token::Ulong);
                MemberConfig {
                    name,
                    module,
                    selector,
                    role: if i == 0 { Role::Active } else { role },
                    instance,
                    env: if instance == InstanceMode::Shared { BTreeMap::new() } else { env },
                    pin,
                    fingerprint: digits.map(|d| format!("sha256:{d}")),
                }
            })
            .collect()
    })
}

/// A group, but for its label, and with its number of copies as a choice.
fn groups() -> impl Strategy<Value = GroupConfig> {
    let policies = (
        select(&[Balance::LeastBusy, Balance::RoundRobin, Balance::Primary]),
        select(&[NonExtractable::Escrow, NonExtractable::Refuse, NonExtractable::Local]),
        select(&[Uncopyable::Refuse, Uncopyable::Local, Uncopyable::HostMemory]),
        select(&[SessionObjects::Local, SessionObjects::Replay]),
        select(&[InitToken::Refuse, InitToken::All]),
        any::<(bool, bool)>(),
    );
    let numbers = (
        option::of(durations()),
        option::of(durations()),
        any::<Index>(),
        prop_oneof![0..=10_000usize, (0..=4096usize).prop_map(|n| n << 10)],
        vec(0x8000_0000..=0xffff_ffffu64, 0..3),
    );
    let recovery = (select(&[RecoveryMode::Auto, RecoveryMode::Manual]), durations(), durations());
    (members(), policies, numbers, recovery).prop_map(|(members, policies, numbers, recovery)| {
        let (balance, non_extractable, uncopyable, session_objects, init_token, (verify, strict)) = policies;
        let (deadline, generate_deadline, copies, replay_limit, vendor) = numbers;
        let (mode, one, other) = recovery;
        GroupConfig {
            label: String::new(),
            balance,
            deadline,
            generate_deadline,
            min_copies: copies.index(members.len()) + 1,
            non_extractable,
            uncopyable,
            session_objects,
            replay_limit,
            verify_signatures: verify,
            strict_usage: strict,
            init_token,
            vendor_mechanisms: vendor.into_iter().map(|m| m as ha_token::Ulong).collect(),
            recovery: Recovery { mode, interval: one.min(other), max_interval: one.max(other) },
            members,
        }
    })
}

fn configs() -> impl Strategy<Value = Config> {
    let labels = btree_set("\\PC{1,8}".prop_filter("control", |t| !t.contains(char::is_control)), 0..3);
    let targets = prop_oneof![
        Just(LogTarget::Stderr),
        Just(LogTarget::Journal),
        Just(LogTarget::Syslog),
        paths().prop_map(LogTarget::File)
    ];
    let log = (
        select(&[LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace]),
        targets,
        select(&[LogFormat::Text, LogFormat::Json]),
    )
        .prop_map(|(level, target, format)| Log { level, target, format });
    (any::<bool>(), paths(), log, labels, vec(groups(), 3)).prop_map(
        |(ha_only, state_dir, log, labels, groups)| Config {
            path: None,
            digest: None,
            ha_only,
            state_dir,
            log,
            groups: labels.into_iter().zip(groups).map(|(label, g)| GroupConfig { label, ..g }).collect(),
        },
    )
}

/// One change of a text.
#[derive(Clone, Debug)]
enum Edit {
    Put(Index, Vec<u8>),
    Cut(Index, usize),
    Repeat(Index, Index, usize),
}

fn edits() -> impl Strategy<Value = Edit> {
    let pieces = prop_oneof![
        vec(any::<u8>(), 1..3),
        select(&[
            "\"",
            "'",
            "\n",
            "=",
            "[[group]]\n",
            "[",
            "]",
            "{",
            "}",
            "#",
            "\\",
            "pin = ",
            "\"\"\"",
            ",",
            ".",
            "1"
        ])
        .prop_map(|t: &str| t.as_bytes().to_vec())
    ];
    prop_oneof![
        (any::<Index>(), pieces).prop_map(|(at, what)| Edit::Put(at, what)),
        (any::<Index>(), 1..40usize).prop_map(|(at, n)| Edit::Cut(at, n)),
        (any::<Index>(), any::<Index>(), 1..60usize).prop_map(|(from, to, n)| Edit::Repeat(from, to, n)),
    ]
}

fn edited(mut text: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        match edit {
            Edit::Put(at, what) => {
                let at = at.index(text.len() + 1);
                text.splice(at..at, what.iter().copied());
            }
            Edit::Cut(at, n) => {
                let at = at.index(text.len() + 1);
                text.drain(at..(at + n).min(text.len()));
            }
            Edit::Repeat(from, to, n) => {
                let from = from.index(text.len() + 1);
                let piece = text[from..(from + n).min(text.len())].to_vec();
                let to = to.index(text.len() + 1);
                text.splice(to..to, piece);
            }
        }
    }
    text
}

fn parse(bytes: &[u8]) -> Result<Config, Mistake> {
    Config::parse_bytes(bytes, None, &Surroundings::default())
}

const SECRET: &str = "47-11-47-11";

proptest! {
    #[test]
    fn a_configuration_is_read_back_as_it_was_written(config in configs()) {
        let text = config.to_toml().unwrap();
        prop_assert_eq!(Config::parse(&text).unwrap(), config, "{}", text);
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..400), text in "\\PC*") {
        drop(parse(&bytes));
        drop(parse(text.as_bytes()));
    }

    #[test]
    fn no_value_panics(key in "[a-z_]{1,20}", value in "\\PC{0,40}") {
        drop(Config::parse(&group(&format!("{key} = {value}"))));
    }

    /// A file with a PIN in it, in the place of a value, and anything done to it: whatever is wrong, the PIN is not told.
    #[test]
    fn no_mutation_of_a_file_panics_or_tells_a_pin(
        mut config in configs().prop_filter("no member", |c| !c.groups.is_empty()),
        place in any::<Index>(),
        kind in 0..4usize,
        edits in vec(edits(), 0..4),
    ) {
        let members: usize = config.groups.iter().map(|g| g.members.len()).sum();
        let member = config.groups.iter_mut().flat_map(|g| &mut g.members).nth(place.index(members)).unwrap();
        // One that would stand in the file once, to be replaced.
        member.pin = Some(PinSource::Env("THE-PLACE".into()));
        let pin = [
            format!("pin = \"{SECRET}\""),
            format!("pin = {{ value = \"{SECRET}\" }}"),
            format!("token = \"{SECRET}\""),
            format!("pin = [\"{SECRET}\"]"),
        ];
        let text = config.to_toml().unwrap().replace("pin = { env = \"THE-PLACE\" }", &pin[kind]);
        prop_assert!(text.contains(SECRET));
        if let Err(mistake) = parse(&edited(text.into_bytes(), &edits)) {
            let told = format!("{mistake} {mistake:?}");
            prop_assert!(!told.contains(SECRET), "{}", told);
            prop_assert!(mistake.line > 0 && !mistake.message.is_empty());
        } else {
            prop_assert!(!edits.is_empty(), "a PIN in the file was taken");
        }
    }
}
