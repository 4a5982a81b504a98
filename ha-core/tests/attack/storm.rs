//! Threads at work while members come and go: none hangs, and no session is left over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use ha_rig::{PIN, Tokens};
use ha_token::{Attribute, Rv, UserType, ck};

use crate::open_group::Open;
use crate::setting::{all_up, data, failing, plain, yes};

/// How often a member goes and comes back, and how much is done without it, and with it again.
const TIMES: usize = 8;
const ROUNDS: usize = 250;

#[test]
fn threads_beside_a_member_that_comes_and_goes_neither_hang_nor_leave_sessions() {
    let tokens = Tokens::in_memory(2);
    Open::new(&tokens, "").ec_pair(1).unwrap();
    let group = "min_copies = 1\n[group.recovery]\ninterval = \"20ms\"\nmax_interval = \"100ms\"\n";
    let (open, watches) = failing(&tokens, group);
    let stop = AtomicBool::new(false);
    let (did, done) = channel();
    let until_more_is_done = || (0..ROUNDS).for_each(|_| done.recv().unwrap());
    let slot = &open.slot;
    std::thread::scope(|scope| {
        for t in 0..5u8 {
            let (stop, did) = (&stop, did.clone());
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let s = slot.open_session(true).unwrap();
                    match slot.login(s, UserType::User, Some(PIN.as_bytes())) {
                        Ok(()) | Err(Rv::USER_ALREADY_LOGGED_IN | Rv::DEVICE_ERROR) => {}
                        // SoftHSM says so while its folder goes.
                        Err(Rv::PIN_INCORRECT) => {}
                        Err(rv) => panic!("{rv}"),
                    }
                    // What is asked is right or an error; what a lost member does to writes is not looked at here.
                    // Nothing is left lying: hundreds of objects that cannot be told apart would be all that is timed here.
                    if let Ok(object) = slot.create_object(s, &data(&[b't', t], b"v")) {
                        _ = slot.destroy_object(s, object);
                    }
                    let template = vec![Attribute::ulong(ck::CKA_VALUE_LEN, 16), yes(ck::CKA_ENCRYPT)];
                    _ = slot.generate_key(s, &mut plain(ck::CKM_AES_KEY_GEN), &template);
                    _ = slot.generate_random(s, &mut [0; 8]);
                    if t == 0 {
                        _ = slot.logout(s);
                    }
                    slot.close_session(s).unwrap();
                    assert_eq!(slot.session_info(s).err(), Some(Rv::SESSION_HANDLE_INVALID));
                    assert_eq!(slot.generate_random(s, &mut [0; 8]), Err(Rv::SESSION_HANDLE_INVALID));
                    _ = did.send(());
                }
            });
        }
        // With the last thread the last sender goes: nobody waits for those that ended.
        drop(did);
        for member in [0, 1].into_iter().cycle().take(TIMES) {
            tokens.hide(member);
            until_more_is_done();
            tokens.restore(member);
            until_more_is_done();
        }
        stop.store(true, Ordering::Relaxed);
    });
    all_up(&open);
    slot.close_all_sessions().unwrap();
    assert_eq!(slot.token_info().unwrap().session_count, 0);
    open.wait("nothing is under way", |g| g.members.iter().all(|m| m.load() == 0));
    for (member, watch) in open.provider.groups()[0].members.iter().zip(&watches) {
        let open = watch.sessions();
        assert!(open < 20, "{open} sessions of {} are more than the pool's", member.name());
    }
}
