//! Lanes in front of a real SoftHSM token whose calls can be held up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use ha_member::{Instance, ModuleConfig, ModuleConnector};
use ha_rig::{Gate, Passing, Tokens, softhsm};
use ha_token::{
    Attribute, Connector, Function, Mechanism, ObjectHandle, OpKind, Output, Rv, Selector, SessionHandle,
    Template, Token, UserType, ck,
};

use super::{AllLanes, Deadlines, Lanes, Pending};
use crate::policy::width::STALL;
use crate::seam::{Event, System, Thread, World};

const HOUR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(20);

/// The test runner's own limit ends this if it never comes true.
fn wait_until(f: impl Fn() -> bool) {
    while !f() {
        std::thread::yield_now();
    }
}

struct Rig {
    gate: Gate,
    lanes: Arc<Lanes>,
    /// The same, for calls that are to be answered, on a busy machine too.
    patient: Lanes,
    pending: Arc<Pending>,
    all: Arc<AllLanes>,
    told: Arc<AtomicUsize>,
    world: Arc<dyn World>,
    /// The token behind the gate.
    real: Arc<dyn Token>,
    connector: ModuleConnector,
    _tokens: Tokens,
}

fn rig(call: Duration) -> Rig {
    rig_with(Deadlines { call, generate: Some(call) })
}

fn rig_with(deadlines: Deadlines) -> Rig {
    rig_in(System::new(), deadlines)
}

fn rig_in(world: Arc<dyn World>, deadlines: Deadlines) -> Rig {
    let tokens = Tokens::new(1);
    let connector = ModuleConnector::new(ModuleConfig {
        path: softhsm(),
        instance: Instance::Private,
        env: vec![("SOFTHSM2_CONF".into(), tokens.conf(0).display().to_string())],
        selector: Selector { label: Some("member-a".into()), ..Selector::default() },
    });
    let (gate, told) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
    let real = connector.connect().unwrap();
    let token = Arc::new(Passing { real: Arc::clone(&real), hook: gate.clone() });
    let (pending, all) = (Arc::<Pending>::default(), Arc::<AllLanes>::default());
    let counts = Arc::clone(&told);
    let lanes = Lanes::new(
        token,
        (Arc::clone(&world), Arc::clone(&all)),
        "lane".into(),
        deadlines,
        Arc::clone(&pending),
        Box::new(move || _ = counts.fetch_add(1, Ordering::SeqCst)),
    );
    let mut patient = lanes.for_keeper();
    patient.deadlines = Deadlines { call: HOUR, generate: Some(HOUR) };
    Rig { gate, lanes: Arc::new(lanes), patient, pending, all, told, world, real, connector, _tokens: tokens }
}

#[test]
fn a_session_in_which_a_call_hangs_is_closed_when_that_returns() {
    let rig = rig(SOON);
    let session = rig.patient.open_session(true).unwrap();
    rig.gate.shut();
    assert_eq!(rig.lanes.session_info(session), Err(Rv::NO_ANSWER));
    assert!(rig.lanes.has_left_some());
    assert_eq!(rig.lanes.close_session(session), Ok(()), "nobody waits for that");
    assert_eq!(rig.gate.begun(Function::CloseSession), 0);
    rig.gate.open();
    wait_until(|| rig.gate.returned(Function::CloseSession) == 1);
    wait_until(|| !rig.lanes.has_left_some());
    assert_eq!(rig.patient.session_info(session), Err(Rv::SESSION_HANDLE_INVALID));
}

/// What the call that hangs has begun in a session, or will have, no other one is to meet.
#[test]
fn nothing_is_called_in_a_session_in_which_a_call_hangs() {
    let rig = rig(SOON);
    let session = rig.patient.open_session(true).unwrap();
    let begin = |lanes: &Lanes| {
        let mut mechanism = Mechanism::plain(ck::CKM_SHA256);
        lanes.op_init(session, OpKind::Digest, Some(&mut mechanism), ObjectHandle(0))
    };
    rig.gate.shut();
    assert_eq!(begin(&rig.lanes), Err(Rv::NO_ANSWER));
    rig.gate.open();
    wait_until(|| rig.pending.left() == 0);
    rig.gate.shut();
    assert_eq!(rig.lanes.op_update(session, OpKind::Digest, b"a", &mut Output::query()), Err(Rv::NO_ANSWER));
    assert_eq!(begin(&rig.lanes), Err(Rv::SESSION_HANDLE_INVALID));
    assert_eq!(rig.gate.begun(Function::DigestInit), 1);
    rig.gate.open();
    wait_until(|| rig.pending.left() == 0);
    assert_eq!(begin(&rig.patient), Err(Rv::OPERATION_ACTIVE), "the token says how it is");
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
    let session = rig.patient.open_session(true).unwrap();
    rig.gate.shut();
    let template =
        vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA), Attribute::bool(ck::CKA_PRIVATE, false)];
    assert_eq!(rig.lanes.create_object(session, &template), Err(Rv::NO_ANSWER));
    assert_eq!(rig.lanes.slot_info().map(drop), Err(Rv::NO_ANSWER));
    assert_eq!((rig.pending.left(), rig.pending.left_writes(), rig.pending.writes()), (2, 1, 1));
    rig.gate.open();
    wait_until(|| rig.pending.left() == 0 && rig.told.load(Ordering::SeqCst) == 1);
    assert_eq!((rig.pending.left_writes(), rig.pending.writes()), (0, 0));
    assert_eq!(rig.patient.create_object(session, &template).map(drop), Ok(()), "a lane is used again");
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
    assert_eq!(rig.patient.slot_info().map(drop), Ok(()));
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

/// What a busy token has no lane for is no sign that it is dead; and who looks after it has one.
#[test]
fn a_token_with_as_many_calls_as_it_has_lanes_is_busy_and_not_dead() {
    let rig = rig_with(Deadlines { call: SOON, generate: None });
    rig.gate.shut_to(&[Function::GenerateKey]);
    let session = rig.patient.open_session(true).unwrap();
    let template = vec![
        Attribute::ulong(ck::CKA_VALUE_LEN, 32),
        Attribute::bool(ck::CKA_TOKEN, false),
        Attribute::bool(ck::CKA_PRIVATE, false),
    ];
    let calls: Vec<_> = (0..super::pool::MOST)
        .map(|_| {
            let (lanes, template) = (Arc::clone(&rig.lanes), template.clone());
            std::thread::spawn(move || {
                let mut mechanism = Mechanism::plain(ck::CKM_AES_KEY_GEN);
                lanes.generate_key(session, &mut mechanism, &template).map(drop)
            })
        })
        .collect();
    wait_until(|| rig.gate.begun(Function::GenerateKey) == super::pool::MOST);
    assert_eq!(rig.lanes.slot_info().map(drop), Err(Rv::HOST_MEMORY));
    assert_eq!(rig.gate.begun(Function::GetSlotInfo), 0);
    assert_eq!(rig.patient.slot_info().map(drop), Ok(()));
    rig.gate.open();
    for call in calls {
        assert_eq!(call.join().unwrap(), Ok(()), "none of them was let go");
    }
    assert_eq!(rig.pending.left(), 0);
}

/// Nobody here can read such a parameter: it may point to what is its caller's only while the call lasts.
#[test]
fn an_operation_with_a_vendors_parameter_stays_on_its_callers_thread() {
    let rig = rig(HOUR);
    let session = rig.patient.open_session(true).unwrap();
    let here = std::thread::current().name().unwrap_or_default().to_owned();
    let begin = |mut mechanism: Mechanism| {
        rig.lanes.op_init(session, OpKind::Digest, Some(&mut mechanism), ObjectHandle(0))
    };
    let update = || rig.lanes.op_update(session, OpKind::Digest, b"a", &mut Output::query());
    assert_eq!(begin(Mechanism::bytes(ck::CKM_VENDOR_DEFINED, &[1; 16])), Err(Rv::MECHANISM_INVALID));
    assert_eq!(update(), Err(Rv::OPERATION_NOT_INITIALIZED));
    let mut wraps = Mechanism::bytes(ck::CKM_VENDOR_DEFINED, &[1; 16]);
    let made = rig.lanes.derive_key(session, &mut wraps, ObjectHandle(1), &Template::new(), true);
    assert!(made.is_err());
    for function in [Function::DigestInit, Function::DigestUpdate, Function::DeriveKey] {
        assert_eq!(rig.gate.threads(function), [here.as_str()], "{function}");
    }
    assert_eq!(begin(Mechanism::plain(ck::CKM_SHA256)), Ok(()));
    assert_eq!(update(), Ok(()));
    for function in [Function::DigestInit, Function::DigestUpdate] {
        assert_eq!(rig.gate.threads(function)[1], "lane", "the next operation has a deadline again");
    }
}

/// Nobody can say how long a person takes to type a PIN.
#[test]
fn a_pin_that_is_typed_at_the_token_has_no_deadline() {
    let rig = rig(Duration::ZERO);
    let limit = |by_hand| {
        rig.lanes
            .limit(super::Asked { by_hand, ..super::Asked::new(Function::Login, Some(SessionHandle(1))) })
    };
    assert_eq!((limit(true), limit(false)), (None, Some(Duration::ZERO)));
    rig.gate.shut_to(&[Function::Login]);
    let lanes = Arc::clone(&rig.lanes);
    let login = std::thread::spawn(move || lanes.login(SessionHandle(7), UserType::User, None));
    wait_until(|| rig.gate.begun(Function::Login) == 1);
    rig.gate.open();
    assert_ne!(login.join().unwrap(), Err(Rv::NO_ANSWER));
}

/// What was made too late is taken back: what only its session knows at once, what is the group's to look for when that has
/// given up to.
#[test]
fn what_is_made_too_late_is_taken_back() {
    let rig = rig(SOON);
    let session = rig.patient.open_session(true).unwrap();
    let data = |token| {
        vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
            Attribute::bool(ck::CKA_PRIVATE, false),
            Attribute::bool(ck::CKA_TOKEN, token),
        ]
    };
    let make_late = |token, given_up: bool| {
        rig.gate.shut_to(&[Function::CreateObject]);
        assert_eq!(rig.lanes.create_object(session, &data(token)), Err(Rv::NO_ANSWER));
        // Nobody gives it up before the member is connected anew.
        let anew = given_up.then(|| rig.connector.connect().unwrap());
        if given_up {
            rig.pending.give_up_writes();
        }
        rig.gate.open();
        wait_until(|| rig.pending.left() == 0);
        let token = anew.as_ref().unwrap_or(&rig.real);
        let s = token.open_session(false).unwrap();
        token.find_objects_init(s, &data(true)).unwrap();
        let found = token.find_objects(s, 10).unwrap().len();
        token.close_session(s).unwrap();
        (rig.gate.begun(Function::DestroyObject), found)
    };
    assert_eq!(make_late(false, false), (1, 0));
    assert_eq!(make_late(true, false), (1, 1), "who waits for it looks for it");
    assert_eq!(make_late(true, true), (2, 1));
}

/// One core, and a clock that moves when it is told to.
struct Still {
    real: Arc<System>,
    now: AtomicU64,
    threads: AtomicUsize,
}

impl World for Still {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.now.load(Ordering::SeqCst))
    }

    fn wall_clock(&self) -> Duration {
        self.real.wall_clock()
    }

    fn random(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        self.real.random(bytes)
    }

    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> std::io::Result<Box<dyn Thread>> {
        self.threads.fetch_add(1, Ordering::SeqCst);
        self.real.spawn(name, body)
    }

    fn event(&self) -> Arc<dyn Event> {
        self.real.event()
    }
}

fn still() -> (Arc<Still>, Rig) {
    let (now, threads) = (AtomicU64::new(1), AtomicUsize::new(0));
    let world = Arc::new(Still { real: System::new(), now, threads });
    let rig = rig_in(Arc::clone(&world) as Arc<dyn World>, Deadlines { call: HOUR, generate: None });
    (world, rig)
}

fn ask(rig: &Rig) -> std::thread::JoinHandle<Result<(), Rv>> {
    let lanes = Arc::clone(&rig.lanes);
    std::thread::spawn(move || lanes.slot_info().map(drop))
}

/// On one core a second lane would only take it from the first: that one makes the calls of all.
#[test]
fn calls_wait_for_the_lane_that_is_at_work() {
    let (world, rig) = still();
    rig.gate.shut();
    let first = ask(&rig);
    wait_until(|| rig.gate.begun(Function::GetSlotInfo) == 1);
    let others = [ask(&rig), ask(&rig), ask(&rig)];
    wait_until(|| rig.lanes.pool.waiting() == others.len());
    rig.gate.open();
    for call in others.into_iter().chain([first]) {
        assert_eq!(call.join().unwrap(), Ok(()));
    }
    assert_eq!(rig.gate.begun(Function::GetSlotInfo), 4);
    assert_eq!(world.threads.load(Ordering::SeqCst), 1);
}

/// A lane whose call waits for something else than a core keeps nobody waiting, also where nobody else comes by.
#[test]
fn calls_do_not_wait_for_a_lane_that_makes_no_progress() {
    let (world, rig) = still();
    rig.gate.shut();
    let mut calls = vec![ask(&rig)];
    wait_until(|| rig.gate.begun(Function::GetSlotInfo) == 1);
    for begun in 1..=2 {
        calls.push(ask(&rig));
        wait_until(|| rig.lanes.pool.waiting() == 1);
        assert_eq!(
            rig.gate.begun(Function::GetSlotInfo),
            begun,
            "the last one was begun at this very moment"
        );
        world.now.fetch_add(u64::try_from(STALL.as_nanos()).unwrap(), Ordering::SeqCst);
        wait_until(|| rig.gate.begun(Function::GetSlotInfo) == begun + 1);
    }
    rig.gate.open();
    for call in calls {
        assert_eq!(call.join().unwrap(), Ok(()));
    }
    assert_eq!(world.threads.load(Ordering::SeqCst), 3);
}

/// Whoever calls beside it has a lane as before: it is not counted where there is no core for it to keep busy.
#[test]
fn a_call_that_hangs_costs_nobody_else_anything() {
    let (world, rig) = still();
    rig.gate.shut_to(&[Function::GetTokenInfo]);
    let lanes = Arc::clone(&rig.lanes);
    let hung = std::thread::spawn(move || lanes.token_info().map(drop));
    wait_until(|| rig.gate.begun(Function::GetTokenInfo) == 1);
    world.now.fetch_add(u64::try_from(STALL.as_nanos()).unwrap(), Ordering::SeqCst);
    // A second lane is started for the first of them.
    assert_eq!(ask(&rig).join().unwrap(), Ok(()));
    for _ in 0..20 {
        let call = ask(&rig);
        while !call.is_finished() {
            assert_eq!(rig.lanes.pool.waiting(), 0, "the clock stands still, and there is a lane");
            std::thread::yield_now();
        }
        assert_eq!(call.join().unwrap(), Ok(()));
    }
    assert_eq!(world.threads.load(Ordering::SeqCst), 2);
    rig.gate.open();
    assert_eq!(hung.join().unwrap(), Ok(()));
}
