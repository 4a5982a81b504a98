//! The ledger's folder is full, read-only, damaged or another user's: keys that exist are used, nothing is made that
//! could be lost, nothing is left behind, and when the cause is removed it works again.
#![allow(missing_docs, clippy::unwrap_used)]

mod open_group;

use std::io::Write;
use std::path::{Path, PathBuf};

use ha_core::group::Word;
use ha_rig::{Alone, Tokens, can_mount, is_alone, limit_files, set_mode};
use ha_token::{Attribute, Rv, ck};
use open_group::{Open, private};

/// What is on the bare tokens.
fn bare(tokens: &Tokens) -> [Vec<String>; 2] {
    [0, 1].map(|i| {
        let mut lines: Vec<_> = tokens.bare(i, &["-O"]).lines().map(str::to_owned).collect();
        lines.sort();
        assert!(lines.len() > 1, "{lines:?}");
        lines
    })
}

/// Key 1 is there and works, whichever member is asked; nothing can be made, changed or destroyed, and nothing is left.
fn used_and_not_changed(tokens: &Tokens, open: &Open, answer: Rv) {
    let before = bare(tokens);
    let key = open.find(&private(1));
    assert_eq!(key.len(), 1);
    for _ in 0..4 {
        open.sign(key[0]).unwrap();
    }
    assert_eq!(open.ec_pair(9).unwrap_err(), answer);
    let data = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bytes(ck::CKA_VALUE, *b"value"),
    ];
    assert_eq!(open.slot.create_object(open.s, &data).unwrap_err(), answer);
    assert_eq!(open.slot.destroy_object(open.s, key[0]).unwrap_err(), answer);
    let label = vec![Attribute::bytes(ck::CKA_LABEL, *b"other")];
    assert_eq!(open.slot.set_attributes(open.s, key[0], &label).unwrap_err(), answer);
    // What is in memory only can be made all the same.
    let mut session = private(8);
    session[0] = Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA);
    open.slot.create_object(open.s, &session[..1].to_vec()).unwrap();
    assert!(open.find(&private(9)).is_empty());
    open.sign(key[0]).unwrap();
    assert_eq!(bare(tokens), before);
}

/// All is well again: a new key is made, and everything is on both members.
fn works(open: &Open, id: u8, objects: usize) {
    let (_, key) = open.ec_pair(id).unwrap();
    open.sign(key).unwrap();
    open.sign(open.find(&private(1))[0]).unwrap();
    assert_eq!(open.words(true), vec![Word::Same; objects]);
}

/// Runs the rest of a test as an ordinary user, to whom permissions mean something.
fn ordinary(name: &str) -> bool {
    is_alone(name) || {
        Alone::new(name).as_ordinary_user().run();
        false
    }
}

#[test]
fn a_folder_that_cannot_be_written() {
    if !ordinary("a_folder_that_cannot_be_written") {
        return;
    }
    let tokens = Tokens::new(2);
    works(&Open::new(&tokens, ""), 1, 2);
    set_mode(&tokens.ledger(), 0o400);
    set_mode(&tokens.state(), 0o500);
    let open = Open::new(&tokens, "");
    used_and_not_changed(&tokens, &open, Rv::TOKEN_WRITE_PROTECTED);
    assert_ne!(open.slot.token_info().unwrap().flags & ck::CKF_WRITE_PROTECTED, 0);
    drop(open);
    set_mode(&tokens.state(), 0o700);
    set_mode(&tokens.ledger(), 0o600);
    works(&Open::new(&tokens, ""), 2, 4);
}

#[test]
fn a_folder_that_cannot_be_made() {
    if !ordinary("a_folder_that_cannot_be_made") {
        return;
    }
    let tokens = Tokens::new(2);
    let outer = tokens.path().join("outer");
    std::fs::create_dir(&outer).unwrap();
    set_mode(&outer, 0o500);
    let text = with_state(&tokens, &outer.join("state"));
    let open = Open::of(&text);
    assert_eq!(open.ec_pair(1).unwrap_err(), Rv::TOKEN_WRITE_PROTECTED);
    assert!(open.find(&Vec::new()).is_empty());
    drop(open);
    set_mode(&outer, 0o700);
    works(&Open::of(&text), 1, 2);
}

fn with_state(tokens: &Tokens, state: &Path) -> String {
    let text = tokens.config(false, "");
    let there = format!("{:?}", tokens.state());
    assert!(text.contains(&there));
    text.replace(&there, &format!("{state:?}"))
}

/// A full disk of its own where the kernel gives one, with the ledger on it.
#[test]
fn a_full_disk() {
    const NAME: &str = "a_full_disk";
    if !is_alone(NAME) {
        // Where it does not, in some containers, files that may not grow stand in: `files_that_cannot_grow`.
        if can_mount() {
            Alone::new(NAME).with_small_disk("disk", 16 << 10).run();
        }
        return;
    }
    let tokens = Tokens::new(2);
    let disk = PathBuf::from(std::env::var_os("HOME").unwrap()).join("disk");
    let filler = disk.join("filler");
    let fill = || {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&filler).unwrap();
        while file.write(&[0; 4096]).is_ok_and(|n| n > 0) {}
    };
    let text = with_state(&tokens, &disk.join("state"));
    let open = Open::of(&text);
    works(&open, 1, 2);
    fill();
    used_and_not_changed(&tokens, &open, Rv::FUNCTION_FAILED);
    std::fs::remove_file(&filler).unwrap();
    works(&open, 2, 4);
    drop(open);
    // A member comes back and is brought up to date, and the ledger cannot note it: the member is used all the same.
    tokens.hide(1);
    let open = Open::of(&text);
    for key in open.find(&vec![Attribute::bytes(ck::CKA_ID, [2])]) {
        open.slot.destroy_object(open.s, key).unwrap();
    }
    fill();
    tokens.restore(1);
    open.wait("the member is back", |g| g.up().count() == 2);
    for _ in 0..4 {
        open.sign(open.find(&private(1))[0]).unwrap();
    }
    assert_eq!(open.provider.groups()[0].up().count(), 2);
    std::fs::remove_file(&filler).unwrap();
    drop(open);
    works(&Open::of(&text), 2, 4);
    // A start on a full disk.
    fill();
    let open = Open::of(&text);
    used_and_not_changed(&tokens, &open, Rv::TOKEN_WRITE_PROTECTED);
    drop(open);
    std::fs::remove_file(&filler).unwrap();
    works(&Open::of(&text), 3, 6);
    // The first start of all on a full disk.
    std::fs::remove_dir_all(disk.join("state")).unwrap();
    fill();
    let others = Tokens::new(2);
    let text = with_state(&others, &disk.join("state"));
    let open = Open::of(&text);
    assert_eq!(open.ec_pair(1).unwrap_err(), Rv::TOKEN_WRITE_PROTECTED);
    drop(open);
    std::fs::remove_file(&filler).unwrap();
    works(&Open::of(&text), 1, 2);
}

#[test]
fn files_that_cannot_grow() {
    const NAME: &str = "files_that_cannot_grow";
    if !is_alone(NAME) {
        Alone::new(NAME).with_limited_files().run();
        return;
    }
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    works(&open, 1, 2);
    // Far more than a token's object needs, and what the ledger's journal has already.
    let journal = tokens.ledger().with_extension("ledger-wal");
    limit_files(Some(std::fs::metadata(journal).unwrap().len()));
    used_and_not_changed(&tokens, &open, Rv::FUNCTION_FAILED);
    limit_files(None);
    works(&open, 2, 4);
    drop(open);
    works(&Open::new(&tokens, ""), 3, 6);
}

#[test]
fn a_ledger_that_is_damaged_is_left_as_it_is() {
    let tokens = Tokens::new(2);
    works(&Open::new(&tokens, ""), 1, 2);
    let file = tokens.ledger();
    let right = std::fs::read(&file).unwrap();
    let half = right[..right.len() / 2].to_vec();
    for (what, damaged) in [("garbage", vec![b'x'; right.len()]), ("cut off", half)] {
        std::fs::write(&file, &damaged).unwrap();
        let open = Open::new(&tokens, "");
        used_and_not_changed(&tokens, &open, Rv::TOKEN_WRITE_PROTECTED);
        drop(open);
        assert!(std::fs::read(&file).unwrap() == damaged, "{what}");
        std::fs::write(&file, &right).unwrap();
    }
    works(&Open::new(&tokens, ""), 2, 4);
}

/// Damage that is seen only when the page is read: what does not touch it goes on, what does is refused and leaves
/// nothing behind.
#[test]
fn a_ledger_with_a_damaged_page() {
    let pages = |tokens: &Tokens| std::fs::metadata(tokens.ledger()).unwrap().len() / 4096;
    let mut refused = 0;
    let mut page = 1;
    loop {
        let tokens = Tokens::new(2);
        works(&Open::new(&tokens, ""), 1, 2);
        // The markers are written.
        drop(Open::new(&tokens, ""));
        if page == pages(&tokens) {
            break;
        }
        let file = tokens.ledger();
        let right = std::fs::read(&file).unwrap();
        let mut damaged = right.clone();
        damaged[page as usize * 4096..][..4096].fill(0xff);
        std::fs::write(&file, damaged).unwrap();
        let before = bare(&tokens);
        let open = Open::new(&tokens, "");
        let key = open.find(&private(1));
        assert_eq!(key.len(), 1, "page {page}");
        for _ in 0..4 {
            open.sign(key[0]).unwrap();
        }
        match open.ec_pair(2) {
            Ok((_, key)) => drop(open.sign(key).unwrap()),
            Err(rv) => {
                refused += 1;
                eprintln!("page {page}: {rv}");
                assert!(matches!(rv, Rv::FUNCTION_FAILED | Rv::TOKEN_WRITE_PROTECTED), "page {page}: {rv}");
                assert_eq!(bare(&tokens), before, "page {page}");
                drop(open);
                drop(std::fs::remove_file(file.with_extension("ledger-wal")));
                drop(std::fs::remove_file(file.with_extension("ledger-shm")));
                std::fs::write(&file, right).unwrap();
                works(&Open::new(&tokens, ""), 3, 4);
            }
        }
        page += 1;
    }
    assert!(refused > 3, "of {page} pages {refused}");
}
