//! The virtual token's mechanisms are the same whichever members are there, after a restart too.
#![allow(missing_docs, clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use ha_core::config::Config;
use ha_core::provider::Provider;
use ha_rig::Tokens;
use ha_token::{Ulong, ck};

/// Two tokens of which the second cannot do everything.
fn tokens() -> Tokens {
    let tokens = Tokens::new(2);
    let mut conf = std::fs::read_to_string(tokens.conf(1)).unwrap();
    conf.push_str("slots.mechanisms = CKM_SHA256,CKM_RSA_PKCS,CKM_AES_KEY_GEN\n");
    std::fs::write(tokens.conf(1), conf).unwrap();
    tokens
}

/// The list that a group of them has from its start, and how many members were there.
fn list(tokens: &Tokens) -> (Vec<Ulong>, usize) {
    let config = Config::parse(&tokens.config(false, "")).unwrap();
    let provider = Provider::from_config(config).unwrap();
    let list = provider.slots()[0].mechanism_list().unwrap();
    for kind in &list {
        provider.slots()[0].mechanism_info(*kind).unwrap();
    }
    let up = provider.groups()[0].up().count();
    assert!(provider.shutdown(Duration::from_secs(5)).is_empty());
    (list, up)
}

fn common() -> Vec<Ulong> {
    let mut common = vec![ck::CKM_SHA256, ck::CKM_RSA_PKCS, ck::CKM_AES_KEY_GEN];
    common.sort_unstable();
    common
}

fn ledger(tokens: &Tokens) -> PathBuf {
    let mut entries = std::fs::read_dir(tokens.path().join("state")).unwrap().map(|e| e.unwrap().path());
    entries.find(|p| p.extension().is_some_and(|e| e == "ledger")).unwrap()
}

#[test]
fn a_member_that_is_away_at_the_start_counts_with_what_it_had() {
    let tokens = tokens();
    assert_eq!(list(&tokens), (common(), 2));
    tokens.hide(1);
    assert_eq!(list(&tokens), (common(), 1));
    tokens.restore(1);
    tokens.hide(0);
    assert_eq!(list(&tokens), (common(), 1));
    tokens.restore(0);
    // What it has now counts, once it is seen.
    let conf = std::fs::read_to_string(tokens.conf(1)).unwrap().replace("CKM_RSA_PKCS,", "");
    std::fs::write(tokens.conf(1), conf).unwrap();
    let fewer: Vec<_> = common().into_iter().filter(|m| *m != ck::CKM_RSA_PKCS).collect();
    assert_eq!(list(&tokens), (fewer.clone(), 2));
    tokens.hide(1);
    assert_eq!(list(&tokens), (fewer, 1));
}

#[test]
fn a_member_that_goes_away_still_counts() {
    let tokens = tokens();
    tokens.serve(0);
    tokens.serve(1);
    let provider = Provider::from_config(Config::parse(&tokens.config(true, "")).unwrap()).unwrap();
    let (group, slot) = (&provider.groups()[0], &provider.slots()[0]);
    assert_eq!(slot.mechanism_list().unwrap(), common());
    tokens.kill(1);
    // Whoever asks the member finds out, and its keeper tries to connect it again.
    let session = slot.open_session(false).unwrap();
    while group.members.get(1).unwrap().connect_error().is_none() {
        slot.generate_random(session, &mut [0; 8]).unwrap();
    }
    assert_eq!(slot.mechanism_list().unwrap(), common());
}

#[test]
fn a_ledger_that_can_only_be_read_is_read_and_one_that_is_not_there_is_not_missed() {
    let tokens = tokens();
    assert_eq!(list(&tokens), (common(), 2));
    let file = ledger(&tokens);
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o444)).unwrap();
    if rustix::process::geteuid().is_root() {
        // Nothing is read-only to root; another user's is left alone.
        std::os::unix::fs::chown(&file, Some(65534), None).unwrap();
    }
    let before = std::fs::read(&file).unwrap();
    tokens.hide(1);
    assert_eq!(list(&tokens), (common(), 1));
    tokens.restore(1);
    assert_eq!(list(&tokens), (common(), 2));
    assert_eq!(std::fs::read(&file).unwrap(), before);
    // Without one only those that are there count.
    std::fs::remove_dir_all(tokens.path().join("state")).unwrap();
    std::fs::write(tokens.path().join("state"), "").unwrap();
    assert_eq!(list(&tokens), (common(), 2));
    tokens.hide(1);
    let (more, up) = list(&tokens);
    assert!(up == 1 && more.len() > common().len() && more.contains(&ck::CKM_ECDSA));
}
