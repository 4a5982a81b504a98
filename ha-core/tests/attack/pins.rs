//! No wrong PIN is taken for right, and no login ends by itself (guarantee G6).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ha_rig::{Act, PIN, Tokens};
use ha_token::{Function, Rv, UserType, ck};

use crate::open_group::Open;
use crate::setting::{all_up, failing};

#[test]
fn never_a_wrong_pin_is_accepted_after_a_logout_that_a_member_failed() {
    let tokens = Tokens::new(2);
    let (open, watches) = failing(&tokens, "");
    watches[0].next(Function::Logout, Act::Answer(Rv::DEVICE_ERROR));
    open.slot.logout(open.s).unwrap();
    all_up(&open);
    let told = open.slot.login(open.s, UserType::User, Some(b"wrong"));
    assert_eq!(told, Err(Rv::PIN_INCORRECT));
}

#[test]
fn never_a_login_ends_when_another_thread_closes_its_session() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let slot = &open.slot;
    slot.close_all_sessions().unwrap();
    let until = Instant::now() + Duration::from_secs(3);
    let lost = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while Instant::now() < until && lost.load(Ordering::Relaxed) == 0 {
                    let s = slot.open_session(true).unwrap();
                    let told = slot.login(s, UserType::User, Some(PIN.as_bytes()));
                    assert!(matches!(told, Ok(()) | Err(Rv::USER_ALREADY_LOGGED_IN)), "{told:?}");
                    // Nobody logs out, and this session is open.
                    if slot.session_info(s).unwrap().state != ck::CKS_RW_USER_FUNCTIONS {
                        lost.fetch_add(1, Ordering::Relaxed);
                    }
                    slot.close_session(s).unwrap();
                }
            });
        }
    });
    assert_eq!(lost.load(Ordering::Relaxed), 0);
}
