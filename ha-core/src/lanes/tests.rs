//! Lanes in front of a real SoftHSM token whose calls can be held up.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use ha_member::{Instance, ModuleConfig, ModuleConnector};
use ha_rig::{Hook, Passing, Tokens, softhsm};
use ha_token::{
    Attribute, Connector, Function, Mechanism, ObjectHandle, OpKind, Output, Result, Rv, Selector, Token, ck,
};

use super::{AllLanes, Deadlines, Lanes, Pending};
use crate::seam::{System, World};

const HOUR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(20);

/// Holds calls up for as long as it is shut, and knows which there were.
#[derive(Default)]
struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
    begun: Mutex<Vec<Function>>,
    returned: Mutex<Vec<Function>>,
}

#[derive(Clone, Default)]
struct AtGate(Arc<Gate>);

impl Hook for AtGate {
    fn call<T>(&self, function: Function, go: impl FnOnce() -> Result<T>) -> Result<T> {
        self.0.begun.lock().unwrap().push(function);
        drop(self.0.opened.wait_while(self.0.shut.lock().unwrap(), |shut| *shut).unwrap());
        let answer = go();
        self.0.returned.lock().unwrap().push(function);
        answer
    }
}

impl Gate {
    fn shut(&self) {
        *self.shut.lock().unwrap() = true;
    }

    fn open(&self) {
        *self.shut.lock().unwrap() = false;
        self.opened.notify_all();
    }

    fn begun(&self, function: Function) -> usize {
        self.begun.lock().unwrap().iter().filter(|f| **f == function).count()
    }

    fn returned(&self, function: Function) -> usize {
        self.returned.lock().unwrap().iter().filter(|f| **f == function).count()
    }
}

/// The test runner's own limit ends this if it never comes true.
fn wait_until(f: impl Fn() -> bool) {
    while !f() {
        std::thread::yield_now();
    }
}

struct Rig {
    gate: Arc<Gate>,
    lanes: Arc<Lanes>,
    pending: Arc<Pending>,
    all: Arc<AllLanes>,
    told: Arc<AtomicUsize>,
    world: Arc<dyn World>,
    _connector: ModuleConnector,
    _tokens: Tokens,
}

fn rig(call: Duration) -> Rig {
    let tokens = Tokens::new(1);
    let connector = ModuleConnector::new(ModuleConfig {
        path: softhsm(),
        instance: Instance::Private,
        env: vec![("SOFTHSM2_CONF".into(), tokens.conf(0).display().to_string())],
        selector: Selector { label: Some("member-a".into()), ..Selector::default() },
    });
    let (hook, told) = (AtGate::default(), Arc::new(AtomicUsize::new(0)));
    let gate = Arc::clone(&hook.0);
    let token = Arc::new(Passing { real: connector.connect().unwrap(), hook });
    let world: Arc<dyn World> = System::new();
    let (pending, all) = (Arc::<Pending>::default(), Arc::<AllLanes>::default());
    let counts = Arc::clone(&told);
    let lanes = Lanes::new(
        token,
        (Arc::clone(&world), Arc::clone(&all)),
        "lane".into(),
        Deadlines { call, generate: Some(call) },
        Arc::clone(&pending),
        Box::new(move || _ = counts.fetch_add(1, Ordering::SeqCst)),
    );
    Rig { gate, lanes: Arc::new(lanes), pending, all, told, world, _connector: connector, _tokens: tokens }
}

#[test]
fn a_session_in_which_a_call_hangs_is_closed_when_that_returns() {
    let rig = rig(SOON);
    let session = rig.lanes.open_session(true).unwrap();
    rig.gate.shut();
    assert_eq!(rig.lanes.session_info(session), Err(Rv::NO_ANSWER));
    assert!(rig.lanes.has_left_some());
    assert_eq!(rig.lanes.close_session(session), Ok(()), "nobody waits for that");
    assert_eq!(rig.gate.begun(Function::CloseSession), 0);
    rig.gate.open();
    wait_until(|| rig.gate.returned(Function::CloseSession) == 1);
    wait_until(|| !rig.lanes.has_left_some());
    assert_eq!(rig.lanes.session_info(session), Err(Rv::SESSION_HANDLE_INVALID));
}

/// What the call that hangs has begun in a session, or will have, no other one is to meet.
#[test]
fn nothing_is_called_in_a_session_in_which_a_call_hangs() {
    let rig = rig(SOON);
    let session = rig.lanes.open_session(true).unwrap();
    let begin = || {
        let mut mechanism = Mechanism::plain(ck::CKM_SHA256);
        rig.lanes.op_init(session, OpKind::Digest, Some(&mut mechanism), ObjectHandle(0))
    };
    rig.gate.shut();
    assert_eq!(begin(), Err(Rv::NO_ANSWER));
    rig.gate.open();
    wait_until(|| rig.pending.left() == 0);
    rig.gate.shut();
    assert_eq!(rig.lanes.op_update(session, OpKind::Digest, b"a", &mut Output::query()), Err(Rv::NO_ANSWER));
    assert_eq!(begin(), Err(Rv::SESSION_HANDLE_INVALID));
    assert_eq!(rig.gate.begun(Function::DigestInit), 1);
    rig.gate.open();
    wait_until(|| rig.pending.left() == 0);
    assert_eq!(begin(), Err(Rv::OPERATION_ACTIVE), "the token says how it is");
}

#[test]
fn a_session_that_is_opened_too_late_is_closed() {
    let rig = rig(SOON);
    rig.gate.shut();
    assert_eq!(rig.lanes.open_session(true), Err(Rv::NO_ANSWER));
    rig.gate.open();
    wait_until(|| rig.gate.returned(Function::CloseSession) == 1);
    wait_until(|| rig.pending.left() == 0);
}

#[test]
fn of_a_change_that_returns_too_late_is_told_and_of_nothing_else() {
    let rig = rig(SOON);
    let session = rig.lanes.open_session(true).unwrap();
    rig.gate.shut();
    let template =
        vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA), Attribute::bool(ck::CKA_PRIVATE, false)];
    assert_eq!(rig.lanes.create_object(session, &template), Err(Rv::NO_ANSWER));
    assert_eq!(rig.lanes.slot_info().map(drop), Err(Rv::NO_ANSWER));
    assert_eq!((rig.pending.left(), rig.pending.left_writes(), rig.pending.writes()), (2, 1, 1));
    rig.gate.open();
    wait_until(|| rig.pending.left() == 0 && rig.told.load(Ordering::SeqCst) == 1);
    assert_eq!((rig.pending.left_writes(), rig.pending.writes()), (0, 0));
    assert_eq!(rig.lanes.create_object(session, &template).map(drop), Ok(()), "a lane is used again");
    assert_eq!(rig.told.load(Ordering::SeqCst), 1);
}

#[test]
fn so_many_calls_hang_and_no_more_are_made() {
    let rig = rig(SOON);
    rig.gate.shut();
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let lanes = Arc::clone(&rig.lanes);
            std::thread::spawn(move || lanes.slot_info().map(drop))
        })
        .collect();
    for call in calls {
        assert_eq!(call.join().unwrap(), Err(Rv::NO_ANSWER));
    }
    assert_eq!(rig.lanes.slot_info().map(drop), Err(Rv::NO_ANSWER));
    assert!(rig.gate.begun(Function::GetSlotInfo) <= super::pool::MOST);
    rig.gate.open();
    wait_until(|| rig.pending.left() == 0);
    assert_eq!(rig.lanes.slot_info().map(drop), Ok(()));
}

#[test]
fn the_end_lets_every_caller_go_and_leaves_no_thread() {
    let rig = rig(HOUR);
    rig.gate.shut();
    let (lanes, is_back) = (Arc::clone(&rig.lanes), Arc::new(AtomicBool::new(false)));
    let back = Arc::clone(&is_back);
    let caller = std::thread::spawn(move || {
        let answer = lanes.slot_info().map(drop);
        back.store(true, Ordering::SeqCst);
        answer
    });
    wait_until(|| rig.gate.begun(Function::GetSlotInfo) == 1);
    assert!(!is_back.load(Ordering::SeqCst), "it has an hour");
    rig.all.end(&*rig.world, rig.world.now() + HOUR, || rig.pending.left());
    assert_eq!(caller.join().unwrap(), Err(Rv::NO_ANSWER));
    assert_eq!(rig.lanes.slot_info().map(drop), Err(Rv::CRYPTOKI_NOT_INITIALIZED));
    rig.gate.open();
    wait_until(|| rig.pending.left() == 0);
}
