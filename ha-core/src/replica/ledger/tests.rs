//! The ledger's own tests: what it remembers, whom it refuses.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use ha_token::{Attribute, UserType, ck};

use super::*;
use crate::pin::KeptDigest;

pub(super) fn open_in(dir: &Path) -> Result<Ledger, LedgerError> {
    let mut n = 0u8;
    Ledger::open(dir, "g", Duration::from_secs(5), &mut |bytes| {
        n += 1;
        bytes.fill(n);
    })
}

pub(super) fn staged(label: &[u8]) -> Staged {
    Staged {
        class: ck::CKO_PRIVATE_KEY,
        key_type: ck::CKK_EC,
        ckaid: b"1".to_vec(),
        label: label.to_vec(),
        private: true,
        verifier: Some(Verifier::Ed25519 { point: vec![1; 32] }),
        template: vec![Attribute::bytes(ck::CKA_LABEL, label)],
        blob: Some(Blob { format: 7, extractable: false, bytes: vec![9; 40] }),
    }
}

/// A change that waits for a member.
fn pend(ledger: &Ledger, id: ObjectId, member: &str, change: &Template) -> Vec<i64> {
    let found = Found { ckaid: b"1", label: b"new", template: &staged(b"new").template, blob: None };
    let before = ledger.object(id).unwrap().unwrap();
    let announced = ledger.change_begin(&before, &[member], change, &found).unwrap();
    let (its, others): (Vec<_>, Vec<_>) = announced.into_iter().partition(|(name, _)| name == member);
    let (its, others) = (numbers(its), numbers(others));
    ledger.change_decided(&its, &[]).unwrap();
    ledger.change_decided(&others, &others).unwrap();
    its
}

fn numbers(announced: Vec<(String, i64)>) -> Vec<i64> {
    announced.into_iter().map(|(_, number)| number).collect()
}

pub(super) fn committed(ledger: &Ledger, id: u8, members: &[&str]) -> ObjectId {
    let id = ObjectId([id; 16]);
    ledger.begin(&Intent { id, class: ck::CKO_PRIVATE_KEY }).unwrap();
    ledger.stage(id, &staged(b"k")).unwrap();
    ledger.commit(&[(id, members.iter().map(|m| m.to_string()).collect())]).unwrap();
    id
}

#[test]
fn everything_is_there_when_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open_in(dir.path()).unwrap();
    let identity = ledger.identity();
    assert_eq!(ledger.remember_member("a", "serial").unwrap(), None);
    let id = committed(&ledger, 1, &["a", "b"]);
    drop(ledger);
    let ledger = open_in(dir.path()).unwrap();
    assert_eq!(ledger.identity(), identity);
    assert_eq!(ledger.remember_member("a", "another").unwrap().as_deref(), Some("serial"));
    let row = ledger.object(id).unwrap().unwrap();
    assert_eq!(
        (row.verifier(), row.blob.clone(), row.copies.len()),
        (staged(b"k").verifier, staged(b"k").blob, 2)
    );
    assert_eq!(ledger.find(ck::CKO_PRIVATE_KEY, ck::CKK_EC, b"1", b"k").unwrap(), [row]);
    assert!(ledger.find(ck::CKO_PRIVATE_KEY, ck::CKK_EC, b"1", b"other").unwrap().is_empty());
}

#[test]
fn a_members_mechanisms_are_remembered_also_in_a_ledger_from_before_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open_in(dir.path()).unwrap();
    let list = |flags| {
        let info = |min| ha_token::MechanismInfo { min_key_size: min, max_key_size: 4096, flags };
        vec![(ck::CKM_RSA_PKCS, info(512)), (ck::CKM_VENDOR_DEFINED | 7, info(0))]
    };
    assert_eq!(ledger.mechanisms_of("a").unwrap(), None);
    ledger.remember_mechanisms("a", &list(1)).unwrap();
    ledger.remember_mechanisms("a", &list(2)).unwrap();
    ledger.remember_mechanisms("b", &[]).unwrap();
    drop(ledger);
    let ledger = open_in(dir.path()).unwrap();
    assert_eq!(ledger.mechanisms_of("a").unwrap(), Some(list(2)));
    assert_eq!(ledger.mechanisms_of("b").unwrap(), Some(Vec::new()));
    ledger.connection().unwrap().execute_batch("DROP TABLE mechanisms").unwrap();
    assert_eq!(ledger.mechanisms_of("a").unwrap(), None);
    drop(ledger);
    open_in(dir.path()).unwrap().remember_mechanisms("a", &list(1)).unwrap();
}

#[test]
fn of_two_processes_one_destroys() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open_in(dir.path()).unwrap(), open_in(dir.path()).unwrap());
    let id = committed(&one, 1, &["a"]);
    assert_eq!(one.destroy_begin(id, &["a", "b"]).unwrap().copies, ["a"]);
    assert!(matches!(two.destroy_begin(id, &[]), Err(LedgerError::Conflict)));
    assert_eq!(two.object(id).unwrap().unwrap().copies, ["a", "b"], "everybody is to say that it has none");
    one.destroy_rollback(id, &["a"]).unwrap();
    assert_eq!(two.object(id).unwrap().unwrap().copies, ["a"]);
    two.destroy_begin(id, &[]).unwrap();
    two.destroy_final(id).unwrap();
    assert!(one.object(id).unwrap().unwrap().is_destroyed());
}

#[test]
fn a_tombstone_stays_until_every_member_has_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open_in(dir.path()).unwrap();
    let id = committed(&ledger, 1, &["a", "b"]);
    pend(&ledger, id, "b", &vec![Attribute::bytes(ck::CKA_LABEL, *b"new")]);
    ledger.destroy_begin(id, &[]).unwrap();
    ledger.destroy_final(id).unwrap();
    assert!(ledger.pending_for("b").unwrap().is_empty(), "nothing dead is changed");
    assert_eq!(ledger.pending_of(id, "b").unwrap().len(), 1, "it is called as before there");
    ledger.acknowledge(id, "a").unwrap();
    assert_eq!(ledger.tombstones_for("b").unwrap().len(), 1);
    assert!(ledger.tombstones_for("a").unwrap().is_empty());
    ledger.acknowledge(id, "b").unwrap();
    assert!(ledger.tombstones_for("b").unwrap().is_empty());
}

#[test]
fn an_object_given_up_never_counts_as_made() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open_in(dir.path()).unwrap();
    let id = ObjectId([1; 16]);
    ledger.begin(&Intent { id, class: ck::CKO_PRIVATE_KEY }).unwrap();
    ledger.stage(id, &staged(b"k")).unwrap();
    ledger.abandon(id, &["a".into()]).unwrap();
    assert!(ledger.object(id).unwrap().unwrap().blob.is_none(), "what was given up is not kept");
    assert!(matches!(ledger.commit(&[(id, vec!["a".into()])]), Err(LedgerError::Conflict)));
    assert_eq!(ledger.tombstones_for("a").unwrap().len(), 1);
}

#[test]
fn what_a_member_lacks_and_has_yet_to_change() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open_in(dir.path()).unwrap();
    let id = committed(&ledger, 1, &["a"]);
    assert_eq!((ledger.missing_on("a").unwrap().len(), ledger.missing_on("b").unwrap().len()), (0, 1));
    let row = ledger.object(id).unwrap().unwrap();
    ledger.add_copy(&row, "b").unwrap();
    assert_eq!((ledger.missing_on("b").unwrap().len(), ledger.count_on("b").unwrap()), (0, 1));
    let change = vec![Attribute::bytes(ck::CKA_LABEL, *b"new")];
    let its = pend(&ledger, id, "b", &change);
    let pending = ledger.pending_for("b").unwrap();
    assert_eq!((pending[0].object, &pending[0].template, pending[0].number), (id, &change, its[0]));
    assert_eq!(ledger.object(id).unwrap().unwrap().label, b"new");
    ledger.done(&its).unwrap();
    assert!(ledger.pending_for("b").unwrap().is_empty());
    let before = ledger.object(id).unwrap().unwrap();
    let found = Found { ckaid: b"1", label: b"newer", template: &staged(b"newer").template, blob: None };
    let all = numbers(ledger.change_begin(&before, &["b"], &change, &found).unwrap());
    assert!(matches!(ledger.change_begin(&before, &["b"], &change, &found), Err(LedgerError::Conflict)));
    assert_eq!(ledger.object(id).unwrap().unwrap().label, b"newer");
    let back = vec![Attribute::bytes(ck::CKA_LABEL, *b"new")];
    ledger.change_rollback(&before, &all, &["b"], &back).unwrap();
    let undo = ledger.pending_for("b").unwrap();
    assert_eq!((undo.len(), &undo[0].template), (1, &back), "who may have made it makes it back");
    ledger.done(&[undo[0].number]).unwrap();
    let row = ledger.object(id).unwrap().unwrap();
    assert_eq!((row.label.as_slice(), &row.template), (b"new".as_slice(), &before.template));
    assert!(matches!(ledger.add_copy(&before, "c"), Err(LedgerError::Conflict)), "it was changed since");
    let all = numbers(ledger.change_begin(&row, &["b"], &change, &found).unwrap());
    assert!(ledger.is_undecided(id).unwrap() && ledger.has_unfinished().unwrap());
    assert_eq!((ledger.pending_for("b").unwrap().len(), ledger.pending_of(id, "b").unwrap().len()), (1, 1));
    ledger.add_copy(&ledger.object(id).unwrap().unwrap(), "c").unwrap();
    ledger.change_rollback(&row, &all, &[], &back).unwrap();
    assert!(!ledger.is_undecided(id).unwrap() && !ledger.has_unfinished().unwrap());
    let undo = ledger.pending_for("c").unwrap();
    assert_eq!((undo.len(), &undo[0].template), (1, &back), "it was given a copy that has the change");
    ledger.done(&[undo[0].number]).unwrap();
    let row = ledger.object(id).unwrap().unwrap();
    // Who died while it was made: it goes forward.
    let all = numbers(ledger.change_begin(&row, &["a", "b"], &change, &found).unwrap());
    assert_eq!(ledger.settle(&["a", "b"]).unwrap(), all.len(), "one change, on each");
    assert!(ledger.pending_for("a").unwrap().len() == 1 && !ledger.is_undecided(id).unwrap());
    ledger.change_decided(&all, &all).unwrap();
    assert!(ledger.pending_for("b").unwrap().is_empty());
    let row = ledger.object(id).unwrap().unwrap();
    ledger.destroy_begin(id, &[]).unwrap();
    assert!(matches!(ledger.add_copy(&row, "c"), Err(LedgerError::Conflict)), "it is dead");
    assert!(matches!(ledger.change_begin(&row, &["b"], &change, &found), Err(LedgerError::Conflict)));
}

#[test]
fn a_change_is_for_whoever_was_given_a_copy_since_it_was_prepared() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open_in(dir.path()).unwrap();
    let id = committed(&ledger, 1, &["a"]);
    let before = ledger.object(id).unwrap().unwrap();
    ledger.add_copy(&before, "b").unwrap();
    let change = vec![Attribute::bytes(ck::CKA_LABEL, *b"new")];
    let found = Found { ckaid: b"1", label: b"new", template: &staged(b"new").template, blob: None };
    let all = numbers(ledger.change_begin(&before, &["c"], &change, &found).unwrap());
    for member in ["a", "b", "c"] {
        assert_eq!(ledger.pending_of(id, member).unwrap(), std::slice::from_ref(&change), "{member}");
    }
    // What was not known before is not set back.
    ledger.change_rollback(&before, &all, &["a"], &Template::new()).unwrap();
    assert!(ledger.pending_for("a").unwrap().is_empty());
}

#[test]
fn what_another_process_does_is_seen_and_what_it_leaves_to_members_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (open_in(dir.path()).unwrap(), open_in(dir.path()).unwrap());
    let owed = || ["a", "b"].map(|member| ours.owed_to(member).unwrap());
    let before = ours.version_of_others().unwrap();
    committed(&ours, 1, &["a", "b"]);
    assert_eq!(ours.version_of_others().unwrap(), before, "it was not another one's");
    let id = committed(&theirs, 2, &["a"]);
    assert_ne!(ours.version_of_others().unwrap(), before);
    assert_eq!(owed(), [0, 1], "it is to be given to b");
    let row = theirs.object(id).unwrap().unwrap();
    let found = Found { ckaid: b"1", label: b"new", template: &staged(b"new").template, blob: None };
    let all = numbers(theirs.change_begin(&row, &["a"], &Template::new(), &found).unwrap());
    assert_eq!(owed(), [0, 1], "it may be taken back");
    theirs.change_decided(&all, &[]).unwrap();
    assert_eq!(owed(), [1, 1]);
    theirs.destroy_begin(id, &["a", "b"]).unwrap();
    let lives = || ours.living().unwrap().contains(&id);
    assert!(lives() && owed() == [0, 0]);
    theirs.destroy_final(id).unwrap();
    assert!(!lives() && owed() == [1, 1]);
    theirs.acknowledge(id, "a").unwrap();
    assert_eq!(owed(), [0, 1]);
    theirs.acknowledge(id, "b").unwrap();
    assert!(!lives() && owed() == [0, 0]);
}

#[test]
fn a_row_with_a_change_that_was_announced_or_taken_back_since_is_untried() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open_in(dir.path()).unwrap();
    let id = committed(&ledger, 1, &["a"]);
    let before = ledger.object(id).unwrap().unwrap();
    assert!(!ledger.is_untried(&before).unwrap());
    let change = vec![Attribute::bytes(ck::CKA_LABEL, "new")];
    let numbers = pend(&ledger, id, "b", &change);
    let announced = ledger.object(id).unwrap().unwrap();
    assert!(ledger.is_untried(&before).unwrap() && ledger.is_untried(&announced).unwrap());
    ledger.change_rollback(&before, &numbers, &[], &Template::new()).unwrap();
    assert!(ledger.is_untried(&announced).unwrap());
    assert!(!ledger.is_untried(&ledger.object(id).unwrap().unwrap()).unwrap());
}

#[test]
fn a_change_that_its_maker_has_done_is_not_left_to_the_member() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open_in(dir.path()).unwrap();
    let id = committed(&ledger, 1, &["a"]);
    let announce = |label: &[u8]| {
        let row = ledger.object(id).unwrap().unwrap();
        let change = vec![Attribute::bytes(ck::CKA_LABEL, label)];
        let found = Found { ckaid: b"1", label, template: &staged(label).template, blob: None };
        numbers(ledger.change_begin(&row, &[], &change, &found).unwrap())
    };
    let first = announce(b"one");
    let listed = ledger.pending_for("a").unwrap().remove(0);
    assert!(!ledger.is_left_to("a", &listed).unwrap(), "it is not decided");
    ledger.change_decided(&first, &[]).unwrap();
    assert!(ledger.is_left_to("a", &listed).unwrap());
    ledger.done(&first).unwrap();
    assert!(!ledger.is_left_to("a", &listed).unwrap());
    // The next one may have its number.
    let next = announce(b"two");
    ledger.change_decided(&next, &[]).unwrap();
    assert!(!ledger.is_left_to("a", &listed).unwrap());
    assert!(ledger.is_left_to("a", &ledger.pending_for("a").unwrap()[0]).unwrap());
}

#[test]
fn a_destruction_is_told_to_the_others_and_not_to_who_made_it() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (open_in(dir.path()).unwrap(), open_in(dir.path()).unwrap());
    let told = || [&ours, &theirs].map(|l| l.destroyed_by_others());
    let destroy = |by: &Ledger, n: u8| {
        let id = committed(by, n, &["a"]);
        by.destroy_begin(id, &["a"]).unwrap();
        by.destroy_final(id).unwrap();
    };
    assert_eq!(told(), [ByOthers::Nothing; 2]);
    destroy(&theirs, 1);
    assert_eq!(told(), [ByOthers::Something(1), ByOthers::Nothing]);
    // Not heeded yet: what is destroyed here meanwhile does not hide it.
    destroy(&ours, 2);
    assert_eq!(told(), [ByOthers::Something(2), ByOthers::Something(2)]);
    for ledger in [&ours, &theirs] {
        ledger.heeded(ByOthers::Something(2));
    }
    assert_eq!(told(), [ByOthers::Nothing; 2]);
    // What a dead process left is news to everybody.
    theirs.destroy_begin(committed(&theirs, 3, &["a"]), &["a"]).unwrap();
    ours.settle(&["a"]).unwrap();
    assert_eq!(told(), [ByOthers::Something(3), ByOthers::Something(3)]);
    // One that is told less than it has heeded heeds that once.
    ours.heeded(ByOthers::Something(9));
    assert_eq!(ours.destroyed_by_others(), ByOthers::Something(3));
    ours.heeded(ByOthers::Something(3));
    assert_eq!(ours.destroyed_by_others(), ByOthers::Nothing);
    // A process that begins reads what is there.
    assert_eq!(open_in(dir.path()).unwrap().destroyed_by_others(), ByOthers::Nothing);
}

#[test]
fn a_change_that_is_refused_is_taken_back_unless_some_member_may_have_made_it() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open_in(dir.path()).unwrap();
    let id = committed(&ledger, 1, &["a", "b"]);
    let change = vec![Attribute::bytes(ck::CKA_LABEL, *b"new")];
    let found = Found { ckaid: b"1", label: b"new", template: &staged(b"new").template, blob: None };
    let back = Found { ckaid: b"1", label: b"k", template: &staged(b"k").template, blob: None };
    let row = || ledger.object(id).unwrap().unwrap();
    let all = numbers(ledger.change_begin(&row(), &["a", "b", "c"], &change, &found).unwrap());
    ledger.settle(&["a", "b", "c"]).unwrap();
    let other = vec![Attribute::bytes(ck::CKA_LABEL, *b"other")];
    assert!(!ledger.change_refused(&row(), &other, &back).unwrap(), "nobody is to make that");
    assert!(ledger.change_refused(&row(), &change, &back).unwrap());
    assert_eq!(
        (row().label, row().template, row().blob),
        (b"k".to_vec(), staged(b"k").template, staged(b"k").blob)
    );
    assert!(["a", "b", "c"].iter().all(|m| ledger.pending_of(id, m).unwrap().is_empty()) && all.len() == 3);
    let all = numbers(ledger.change_begin(&row(), &["a", "b"], &change, &found).unwrap());
    ledger.settle(&["a", "b"]).unwrap();
    ledger.done(&all[..1]).unwrap();
    assert!(!ledger.change_refused(&row(), &change, &back).unwrap(), "one has made it");
    assert_eq!(row().label, b"new");
}

#[test]
fn what_takes_a_change_back_is_no_change_that_nobody_vouched_for() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open_in(dir.path()).unwrap();
    let id = committed(&ledger, 1, &["a", "b"]);
    let row = || ledger.object(id).unwrap().unwrap();
    let to = |label: &[u8]| vec![Attribute::bytes(ck::CKA_LABEL, label)];
    let begin = |label: &'static [u8], members: &[&str]| {
        let template = staged(label).template;
        let found = Found { ckaid: b"1", label, template: &template, blob: None };
        numbers(ledger.change_begin(&row(), members, &to(label), &found).unwrap())
    };
    // Acknowledged, and still to be made on b.
    let all = begin(b"new", &["a", "b"]);
    ledger.change_decided(&all, &all[..1]).unwrap();
    // Another one, whose fate on a is not known: a is to be as before.
    let before = row();
    let all = begin(b"newer", &["a", "b"]);
    ledger.change_rollback(&before, &all, &["a"], &to(b"new")).unwrap();
    assert!(["a", "b"].iter().all(|m| ledger.pending_of(id, m).unwrap() == [to(b"new")]));
    ledger.settle(&["a", "b"]).unwrap();
    let back = Found { ckaid: b"1", label: b"k", template: &staged(b"k").template, blob: None };
    assert!(!ledger.change_refused(&row(), &to(b"new"), &back).unwrap());
    assert_eq!(row().label, b"new");
}

#[test]
fn a_place_that_others_can_write_or_that_is_no_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    assert!(open_in(dir.path()).err().unwrap().to_string().contains("others can write it"));
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(open_in(&file), Err(LedgerError::Place { .. })));
    assert!(matches!(open_in(&file.join("below")), Err(LedgerError::Place { .. })));
}

#[test]
fn a_newer_format_and_a_broken_file_are_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    drop(open_in(dir.path()).unwrap());
    let path = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "ledger"))
        .unwrap();
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(open_in(dir.path()), Err(LedgerError::Newer { found: 99, .. })));
    std::fs::write(&path, vec![b'x'; 8192]).unwrap();
    assert!(matches!(open_in(dir.path()), Err(LedgerError::Database(_))));
}

#[test]
fn a_full_disk_refuses_a_change_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open_in(dir.path()).unwrap();
    let id = committed(&ledger, 1, &["a"]);
    let pages: i64 =
        ledger.connection().unwrap().pragma_query_value(None, "page_count", |r| r.get(0)).unwrap();
    ledger.connection().unwrap().pragma_update(None, "max_page_count", pages).unwrap();
    let large = Staged {
        blob: Some(Blob { format: 7, extractable: false, bytes: vec![0; 1 << 20] }),
        ..staged(b"large")
    };
    let other = ObjectId([2; 16]);
    let refused = ledger
        .begin(&Intent { id: other, class: ck::CKO_PRIVATE_KEY })
        .and_then(|()| ledger.stage(other, &large));
    assert!(matches!(refused, Err(LedgerError::Database(_))), "{refused:?}");
    assert!(ledger.object(id).unwrap().unwrap().is_committed());
}

#[test]
fn refused_pins_are_there_when_it_is_opened_again_and_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open_in(dir.path()).unwrap();
    let (user, so) = (UserType::User, UserType::So);
    let kept = |n: u8| Some(KeptDigest { salt: [7; 16], digest: [n; 32] });
    assert_eq!((ledger.refused(user).unwrap(), ledger.refused_salt().unwrap()), (vec![], None));
    for n in 0..20 {
        ledger.remember_refused(user, "a", true, kept(n), 0).unwrap();
    }
    ledger.remember_refused(user, "b", false, None, 0).unwrap();
    ledger.remember_refused(user, "b", true, None, 0).unwrap();
    ledger.remember_refused(so, "a", false, kept(1), 0).unwrap();
    drop(ledger);
    let ledger = open_in(dir.path()).unwrap();
    let rows = ledger.refused(user).unwrap();
    assert_eq!(rows.len(), 17, "sixteen PINs, and one member's refusal of what others take");
    assert_eq!((&*rows[0].member, rows[0].counted, rows[0].pin), ("b", true, None));
    assert_eq!((rows[1].pin, rows[16].pin), (kept(19), kept(4)));
    assert_eq!(ledger.refused_salt().unwrap(), Some([7; 16]));
    ledger.forget_refused("a", &[user]).unwrap();
    assert_eq!(ledger.refused(user).unwrap().len(), 1);
    assert_eq!(ledger.refused(so).unwrap().len(), 1);
    ledger.member_renewed("b").unwrap();
    assert!(ledger.refused(user).unwrap().is_empty());
}
