//! Run as another user than the ledger's owner, `hactl` says so and writes nothing.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ha_rig::{another_user, give_to, is_root, set_mode};
use support::{Made, pair};

/// Every file and folder with its content, owner and mode.
fn everything(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    let mut all = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = std::fs::metadata(&path).unwrap();
            let content = if meta.is_dir() {
                folders.push(path.clone());
                Vec::new()
            } else if path.ends_with("token.object") {
                // SoftHSM writes it anew at each login.
                Vec::new()
            } else {
                std::fs::read(&path).unwrap()
            };
            all.insert(path, (content, meta.uid(), meta.mode()));
        }
    }
    all
}

const READING: [&[&str]; 5] =
    [&["status"], &["check"], &["check", "--prove"], &["slot", "list"], &["adopt", "a", "--dry-run"]];
const WRITING: [&[&str]; 8] = [
    &["sync"],
    &["adopt", "a"],
    &["member", "add", "c", "--token", "x"],
    &["member", "replace", "a", "c", "--token", "x"],
    &["member", "remove", "a", "--force", "--lose"],
    &["member", "set", "a", "--role", "standby"],
    &["ledger", "restore", "/nonexistent"],
    &["dissolve"],
];

fn says_so_and_writes_nothing(made: &Made, owner: &str) {
    let before = everything(&made.dir());
    for verb in READING {
        let ran = made.run(verb);
        // The key of one member only is news, and bad.
        assert!(ran.code < 2, "{verb:?}: {}", ran.err);
        assert!(ran.err.contains(owner), "{verb:?}: {}", ran.err);
    }
    for verb in WRITING {
        let ran = made.run(verb);
        assert_eq!(ran.code, 2, "{verb:?}: {}", ran.err);
        assert!(ran.err.contains(owner) && ran.err.contains("nothing is changed"), "{verb:?}: {}", ran.err);
    }
    let doctor = made.run(&["doctor"]);
    assert!(doctor.out.contains("belongs to uid") && doctor.out.contains("as that user"), "{}", doctor.out);
    let after = everything(&made.dir());
    let differing: Vec<_> =
        before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path)).collect();
    assert!(differing.is_empty(), "{differing:?}");
}

#[test]
fn another_users_ledger_is_read_and_not_written() {
    let made = Made::with(2);
    made.as_application(|token, session| {
        pair(token, session, "one", 1, true);
    });
    made.on_member(0, |token, session| {
        pair(token, session, "foreign", 2, true);
    });
    if is_root() {
        give_to(&made.dir(), another_user());
        says_so_and_writes_nothing(&made, &format!("belongs to uid {}", another_user()));
        give_to(&made.dir(), 0);
    } else {
        // Whose files are not root's cannot give them away: a folder that is root's stands for another user's.
        let right = std::fs::read_to_string(made.config()).unwrap();
        let state = format!("{:?}", made.dir().join("state"));
        assert!(right.contains(&state));
        std::fs::write(made.config(), right.replace(&state, "\"/usr\"")).unwrap();
        says_so_and_writes_nothing(&made, "belongs to uid 0");
        std::fs::write(made.config(), right).unwrap();
    }
    set_mode(&made.config(), 0o600);
    let adopted = made.run(&["adopt", "a"]);
    assert_eq!(adopted.code, 0, "{}{}", adopted.out, adopted.err);
    assert_eq!(made.run(&["check", "--prove"]).code, 0);
}
